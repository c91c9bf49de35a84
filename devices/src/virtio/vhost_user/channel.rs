//! The socket to a back end: a message goes out, with descriptors, and its reply comes in, or an error by the deadline. It believes
//! nothing that comes in; what the messages mean is `backend`'s affair.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketAddrUnix, connect, sendmsg,
};

use super::message::{HEADER_SIZE, Header, MAX_REGIONS, Request, flags};
use crate::sys::SEND_NO_SIGNAL;
use crate::sys::wire::stream_socket;

/// What went wrong between the two ends. Words for behind "the back end at PATH".
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Nobody listens.
    #[error("cannot be reached; start it first")]
    Connect(#[source] io::Error),
    /// It has closed the connection.
    #[error("has hung up")]
    HungUp,
    /// It has closed the connection instead of an answer.
    #[error("has hung up at {0}")]
    HungUpAt(String),
    /// It does not answer.
    #[error("has not answered {request} after {seconds} s")]
    Silent {
        /// What it was asked.
        request: String,
        /// How long it had.
        seconds: u64,
    },
    /// The socket fails.
    #[error("cannot be talked to")]
    Socket(#[source] io::Error),
    /// It answers something else.
    #[error("answers {request} with message {got} (flags {flags:#x})")]
    Reply {
        /// What it was asked.
        request: String,
        /// The number of the message that came.
        got: u32,
        /// Its flags.
        flags: u32,
    },
    /// Its answer has the wrong length.
    #[error("answers {request} with {got} bytes instead of {expected}")]
    ReplySize {
        /// What it was asked.
        request: String,
        /// How many bytes the answer has.
        expected: usize,
        /// How many came, or were said to come.
        got: u32,
    },
    /// It says no.
    #[error("refuses {request} (error {code})")]
    Refused {
        /// What it was asked.
        request: String,
        /// Its error number.
        code: u64,
    },
    /// It lacks what the device cannot do without.
    #[error("is not one for this device: it has no {0}")]
    Lacks(&'static str),
    /// A restarted one can do less than what the guest was promised.
    #[error("lacks the features {0:#x} that the guest relies on")]
    FewerFeatures(u64),
    /// Too few queues.
    #[error("has {has} queues, but the device has {needed}; ask for fewer (num-request-queues, queues)")]
    Queues {
        /// How many it has.
        has: u64,
        /// How many it should have.
        needed: usize,
    },
    /// Memory that cannot be handed over.
    #[error("cannot be given the guest's memory: {0}")]
    Memory(&'static str),
}

/// A connection to a back end.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Arc<UnixStream>,
    timeout: Duration,
    /// When all answers of this conversation have to be there.
    deadline: Instant,
}

impl Channel {
    /// Connects to the socket at `path`, and begins a conversation, all of which may take `timeout`.
    pub(super) fn connect(path: &Path, timeout: Duration) -> Result<Self, BackendError> {
        let address =
            SocketAddrUnix::new(path).map_err(|error| BackendError::Connect(io::Error::from(error)))?;
        // Not blocking: a listener whose queue is full would make it wait.
        let socket = stream_socket(AddressFamily::UNIX).map_err(BackendError::Connect)?;
        connect(&socket, &address).map_err(|error| BackendError::Connect(io::Error::from(error)))?;
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(false).map_err(BackendError::Socket)?;
        Ok(Channel { socket: Arc::new(socket), timeout, deadline: Instant::now() + timeout })
    }

    /// Begins another conversation: one deadline for all of it, or a back end that takes its time for each answer would stop a vCPU for
    /// minutes.
    pub(super) fn begin(&mut self) {
        self.deadline = Instant::now() + self.timeout;
    }

    /// How much of the conversation's time is left.
    fn left(&self, request: Request) -> Result<Duration, BackendError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.failure(request, ErrorKind::TimedOut.into())) } else { Ok(left) }
    }

    /// The socket, to wait for its end on.
    pub(super) fn watch(&self) -> Arc<UnixStream> {
        self.socket.clone()
    }

    /// Sends a message.
    pub(super) fn send(
        &mut self,
        request: Request,
        extra_flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), BackendError> {
        // No payload here is as long as that.
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { request: request as u32, flags: flags::VERSION | extra_flags, size };
        let bytes = [&header.encode()[..], payload].concat();
        self.socket.set_write_timeout(Some(self.left(request)?)).map_err(BackendError::Socket)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REGIONS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(BackendError::Memory("it is in too many parts"));
        }
        let sent = loop {
            match sendmsg(self.socket.as_ref(), &[IoSlice::new(&bytes)], &mut control, SEND_NO_SIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result.map_err(io::Error::from),
            }
        };
        let rest = |sent: usize| self.socket.as_ref().write_all(bytes.get(sent..).unwrap_or_default());
        sent.and_then(rest).map_err(|error| self.failure(request, error))
    }

    /// Receives the reply to `request`, which has exactly the size of `payload`.
    pub(super) fn receive(&mut self, request: Request, payload: &mut [u8]) -> Result<(), BackendError> {
        let mut header = [0; HEADER_SIZE];
        self.read(request, &mut header)?;
        let header = Header::decode(header);
        if header.request != request as u32
            || header.flags & !flags::NEED_REPLY != flags::VERSION | flags::REPLY
        {
            let (got, flags) = (header.request, header.flags);
            return Err(BackendError::Reply { request: request.to_string(), got, flags });
        }
        if usize::try_from(header.size) != Ok(payload.len()) {
            let (expected, got) = (payload.len(), header.size);
            return Err(BackendError::ReplySize { request: request.to_string(), expected, got });
        }
        self.read(request, payload)
    }

    /// Fills `bytes`. Descriptors that come with them are closed by the kernel, since nobody has room for them.
    fn read(&mut self, request: Request, mut bytes: &mut [u8]) -> Result<(), BackendError> {
        while !bytes.is_empty() {
            let left = self.left(request)?;
            self.socket.set_read_timeout(Some(left)).map_err(BackendError::Socket)?;
            match self.socket.as_ref().read(bytes) {
                Ok(0) => return Err(BackendError::HungUpAt(request.to_string())),
                Ok(count) => bytes = bytes.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failure(request, error)),
            }
        }
        Ok(())
    }

    fn failure(&self, request: Request, error: io::Error) -> BackendError {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                BackendError::Silent { request: request.to_string(), seconds: self.timeout.as_secs() }
            }
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => BackendError::HungUpAt(request.to_string()),
            _ => BackendError::Socket(error),
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Also for who waits on it.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
