//! The far end of a console on a unix socket: what the guest writes is collected by a thread, or left unread on purpose.

use crate::transcript::Transcript;
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a socket may take to appear.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// A connection whose incoming bytes are kept.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    text: Transcript,
}

impl Socket {
    /// Connects to a socket that something else listens on, or soon will. What `expect` waits for must come within `limit` from now.
    pub fn connect(path: &Path, limit: Duration) -> Result<Socket> {
        Self::of(connect(path)?, limit)
    }

    /// Waits for the other side to connect to a socket that the test listens on.
    pub fn accept(listener: &UnixListener, limit: Duration) -> Result<Socket> {
        Self::of(accept(listener, limit)?, limit)
    }

    fn of(stream: UnixStream, limit: Duration) -> Result<Socket> {
        let text = Transcript::of(stream.try_clone()?, Instant::now() + limit);
        Ok(Socket { stream, text })
    }

    /// Waits for `marker` behind what was seen so far, and returns what lies between.
    pub fn expect(&mut self, marker: &str) -> Result<String> {
        self.text.expect(marker)
    }

    /// Sends bytes; waits for as long as the other side does not take them.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("the socket's other side")
    }

    /// Says that nothing more will be sent.
    pub fn end_sending(&self) -> Result<()> {
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    /// Everything until now, as it came.
    pub fn bytes(&self) -> Vec<u8> {
        self.text.bytes()
    }

    /// Waits until `count` bytes have come, and returns them all; an error if the other side ends before, or time is up.
    pub fn expect_bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        self.text.expect_bytes(count)
    }

    /// Waits for the other side's end and returns everything, as it came.
    pub fn finish(self) -> Vec<u8> {
        self.text.finish_bytes()
    }
}

/// Connects to a socket that something else listens on, or soon will.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot connect to {}", path.display()));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Waits for a connection, at most for `limit`.
pub fn accept(listener: &UnixListener, limit: Duration) -> Result<UnixStream> {
    let deadline = Instant::now() + limit;
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock || Instant::now() > deadline => {
                return Err(error).context("nothing connected");
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Reads `count` bytes no faster than `chunk` bytes every `pause`: a reader that makes the writer wait.
pub fn read_slowly(stream: &mut UnixStream, count: usize, chunk: usize, pause: Duration) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    for part in bytes.chunks_mut(chunk.max(1)) {
        stream.read_exact(part).context("the socket ended early")?;
        std::thread::sleep(pause);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn bytes_that_are_no_text_arrive_as_they_were_sent() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let listener = UnixListener::bind(dir.path().join("socket"))?;
        let mut far = UnixStream::connect(dir.path().join("socket"))?;
        let mut socket = Socket::accept(&listener, LIMIT)?;
        far.write_all(&[0xFF, 0, 0xC3, 10])?;
        assert_eq!(socket.expect_bytes(4)?, [0xFF, 0, 0xC3, 10]);
        drop(far);
        assert_eq!(socket.finish(), [0xFF, 0, 0xC3, 10]);
        Ok(())
    }

    #[test]
    fn end_before_enough_bytes_is_an_error() -> Result<()> {
        let (near, far) = UnixStream::pair()?;
        let mut socket = Socket::of(near, LIMIT)?;
        drop(far);
        assert!(socket.expect_bytes(1).is_err());
        Ok(())
    }
}
