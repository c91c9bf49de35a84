//! 9P over any byte stream: messages one after the other, each framed by its own size. Not how virtio carries them.

use std::io::{self, Read, Write};

use super::proto::{HEADER_SIZE, MAX_MSIZE};
use super::session::Session;

/// Why a connection ended before the client closed it between two messages.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The stream failed, or ended within a message.
    #[error("the 9P connection broke")]
    Stream(#[from] io::Error),
    /// A message that cannot be one, so that nothing after it could be told from garbage.
    #[error("a 9P message of {size} bytes, where {least} to {most} are possible", least = HEADER_SIZE, most = MAX_MSIZE)]
    Size {
        /// What the first four bytes of it said.
        size: u32,
    },
}

/// Answers the requests that come in over `stream` until the other side closes it, one after the other on this thread.
/// Replies to requests that arrived together leave together.
///
/// # Errors
///
/// When the stream fails, or when its bytes cannot be messages. The session's fids are clunked in any case.
pub fn serve(session: &Session, stream: impl Read + Write) -> Result<(), ServeError> {
    let served = pump(session, stream);
    session.reset();
    served
}

fn pump(session: &Session, mut stream: impl Read + Write) -> Result<(), ServeError> {
    let most = MAX_MSIZE as usize;
    // Pages are the host's to give when they are first touched.
    let mut input = vec![0_u8; 2 * most];
    let mut output = vec![0_u8; 2 * most];
    let (mut start, mut end) = (0, 0);
    loop {
        let mut ready = 0;
        while let Some(size) = message_size(&input[start..end])? {
            if end - start < size {
                break;
            }
            if output.len() - ready < most {
                stream.write_all(&output[..ready])?;
                ready = 0;
            }
            ready += session.handle_bytes(&input[start..start + size], &mut output[ready..]);
            start += size;
        }
        stream.write_all(&output[..ready])?;
        stream.flush()?;
        input.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        match stream.read(&mut input[end..]) {
            Ok(0) if end == 0 => return Ok(()),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => end += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The size of the message at the beginning of `bytes`, once its first four are there.
fn message_size(bytes: &[u8]) -> Result<Option<usize>, ServeError> {
    let Some(size) = bytes.first_chunk().map(|size| u32::from_le_bytes(*size)) else { return Ok(None) };
    if (size as usize) < HEADER_SIZE || size > MAX_MSIZE {
        return Err(ServeError::Size { size });
    }
    Ok(Some(size as usize))
}
