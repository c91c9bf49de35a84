//! The backdoor: a root shell behind a console, spoken to a line at a time, whose answers come in base64 so that nothing on the way can
//! change them.

use super::base64;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What the guest says when the shell is there.
const BANNER: &[u8] = b"Spawning backdoor root shell...";

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it wrote to its standard output.
    pub bytes: Vec<u8>,
}

/// The driver's end of the console.
#[derive(Debug)]
pub(super) struct Shell {
    stream: UnixStream,
    /// What has come and was not asked for yet.
    buffer: Vec<u8>,
}

impl Shell {
    pub(super) fn new(stream: UnixStream, limit: Duration) -> Result<Shell> {
        // An answer that does not come is an error, and not a test that hangs.
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Shell { stream, buffer: Vec::new() })
    }

    /// Waits until the guest says that its shell is there.
    pub(super) fn wait_for_banner(&mut self) -> Result<()> {
        loop {
            if let Some(at) = self.buffer.windows(BANNER.len()).position(|window| window == BANNER) {
                self.buffer.drain(..at);
                // The rest of its line.
                return self.line().map(drop);
            }
            self.read().context("the backdoor did not open")?;
        }
    }

    /// Runs a command, in a shell of its own.
    pub(super) fn execute(&mut self, command: &str) -> Result<Output> {
        let script = quote(&format!("set -euo pipefail; {command}"));
        self.send(&format!("timeout 900 bash -c {script} | (base64 -w 0; echo)\n"))?;
        let bytes = base64::decode(&self.line()?)?;
        self.send("echo ${PIPESTATUS[0]}\n")?;
        let status = String::from_utf8(self.line()?)?;
        let status = status.parse().with_context(|| format!("'{status}' is no exit status"))?;
        Ok(Output { status, bytes })
    }

    /// Gives the shell a line and does not wait for what comes of it.
    pub(super) fn send(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).context("the backdoor does not take what it is sent")
    }

    /// The shell's next line, without its end.
    pub(super) fn line(&mut self) -> Result<Vec<u8>> {
        let mut from = 0;
        loop {
            if let Some(at) = self.buffer[from..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=from + at).collect();
                line.pop();
                return Ok(line);
            }
            from = self.buffer.len();
            self.read()?;
        }
    }

    fn read(&mut self) -> Result<()> {
        let mut chunk = [0; 65536];
        let count = self.stream.read(&mut chunk).context("the backdoor does not answer")?;
        ensure!(count > 0, "the backdoor's socket was closed");
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(())
    }
}

/// One word of the shell's, whatever is in it.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r#"'"'"'"#))
}

#[cfg(test)]
mod tests {
    use super::super::LIMIT;
    use super::*;

    #[test]
    fn banner_that_comes_in_pieces_is_seen_and_the_next_line_is_the_answer_s() -> Result<()> {
        let (near, mut far) = UnixStream::pair()?;
        let mut shell = Shell::new(near, LIMIT)?;
        let writer = std::thread::spawn(move || -> Result<()> {
            for piece in ["\nSpawning back", "door root shell...", "\n", "YQ==", "\n0\n"] {
                far.write_all(piece.as_bytes())?;
            }
            let mut sent = Vec::new();
            far.read_to_end(&mut sent)?;
            assert_eq!(
                String::from_utf8(sent)?,
                "timeout 900 bash -c 'set -euo pipefail; echo '\"'\"'a'\"'\"'' | (base64 -w 0; echo)\necho ${PIPESTATUS[0]}\n"
            );
            Ok(())
        });
        shell.wait_for_banner()?;
        assert_eq!(shell.execute("echo 'a'")?, Output { status: 0, bytes: b"a".to_vec() });
        drop(shell);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    }
}
