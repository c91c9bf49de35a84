//! Getting a port of a VDE switch: the handshake on its control socket, and a place for our own socket.

use std::env;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix};

use super::{VdeConfig, VdeError};
use crate::backend::socket_file::{BindError, SocketFile, check_length};
use crate::sys::wire::{self, UNIX_LAYOUT};

/// `SWITCH_MAGIC` (vde2, libvdeplug.c).
const MAGIC: u32 = 0xfeed_face;
/// Version of the request.
const VERSION: u32 = 3;
/// `REQ_NEW_CONTROL`; a wanted port goes into the bits from 8 on.
const NEW_CONTROL: u32 = 0;
/// Where the port begins in the request's type.
const PORT_SHIFT: u32 = 8;
/// Longest description, with its NUL (`MAXDESCR`).
const MAX_DESCRIPTION: usize = 128;

/// How long a switch has for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where our socket may be when it cannot be in the switch's directory, as libvdeplug has it.
const FALLBACKS: [&str; 3] = ["/var/run", "/var/tmp", "/tmp"];

/// Sockets of one process on one switch, counted from 1.
const MOST_SOCKETS: u32 = 1000;

/// A port.
#[derive(Debug)]
pub(super) struct Plugged {
    /// Held open for as long as the port is ours. Nothing is said on it any more. Non-blocking.
    pub control: UnixStream,
    /// Connected to the switch, non-blocking.
    pub data: UnixDatagram,
    /// Removes our socket's file.
    pub file: SocketFile,
}

/// A port that was asked for and not yet given.
#[derive(Debug)]
pub(super) struct Request {
    dir: PathBuf,
    port: Option<u16>,
    control: UnixStream,
    data: UnixDatagram,
    file: SocketFile,
    /// As much of the answer as has come.
    answer: Vec<u8>,
    deadline: Instant,
}

/// What became of a [`Request`].
#[derive(Debug)]
pub(super) enum Progress {
    /// Nothing yet.
    Waiting(Request),
    Plugged(Plugged),
}

/// Gets a port. Blocks until the switch answers.
pub(super) fn plug(config: &VdeConfig) -> Result<Plugged, VdeError> {
    let mut request = Request::start(config, |path| UnixStream::connect(path))?;
    loop {
        request = match request.proceed(Instant::now())? {
            Progress::Plugged(plugged) => return Ok(plugged),
            Progress::Waiting(request) => request,
        };
        let left = request.deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(request.control(), PollFlags::IN)];
        // A signal ends the wait, too, and the next look at the answer says so.
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
    }
}

/// Connects to a switch, but waits for none that is too busy to answer.
pub(super) fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let socket = wire::stream_socket(AddressFamily::UNIX)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl Request {
    /// Asks for a port; `connect` makes the connection.
    pub(super) fn start(
        config: &VdeConfig,
        connect: impl FnOnce(&Path) -> io::Result<UnixStream>,
    ) -> Result<Request, VdeError> {
        // The switch has another working directory.
        let dir = fs::canonicalize(&config.sock)
            .map_err(|source| VdeError::NoDirectory { dir: config.sock.clone(), source })?;
        let path = dir.join("ctl");
        if let Err(source) = check_length(&path) {
            return Err(VdeError::Path { path, source });
        }
        let control =
            connect(&path).map_err(|source| VdeError::NoSwitch { dir: config.sock.clone(), source })?;
        let (data, file) = own_socket(&dir)?;
        let deadline = Instant::now() + PATIENCE;
        let request = Request { dir, port: config.port, control, data, file, answer: Vec::new(), deadline };
        request.send().map_err(|error| request.refused(&error))?;
        Ok(request)
    }

    fn send(&self) -> io::Result<()> {
        let request = encode(self.port, self.file.path(), &description())
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "our socket's path is too long"))?;
        self.control.set_nonblocking(true)?;
        // A socket that nothing was sent on has room for so little.
        (&self.control).write_all(&request)
    }

    /// What becomes ready when the switch answers.
    pub(super) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// When the switch has had time enough.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Takes as much of the answer as there is. Does not block.
    pub(super) fn proceed(mut self, now: Instant) -> Result<Progress, VdeError> {
        match self.read() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && now < self.deadline => {
                return Ok(Progress::Waiting(self));
            }
            Err(error) => return Err(self.refused(&error)),
        }
        let wrong = |reason: String| VdeError::Answer { dir: self.dir.clone(), reason };
        let peer = UNIX_LAYOUT
            .decode(&self.answer)
            .ok_or_else(|| wrong("its answer is not a socket's address".to_owned()))?;
        let ready = || {
            self.data.connect(&peer)?;
            self.data.set_nonblocking(true)
        };
        ready().map_err(|error| wrong(format!("its socket {peer:?} cannot be used: {error}")))?;
        let Request { control, data, file, .. } = self;
        Ok(Progress::Plugged(Plugged { control, data, file }))
    }

    /// Reads until the answer is whole.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; UNIX_LAYOUT.size()];
        while let Some(room) = buffer.get_mut(self.answer.len()..).filter(|room| !room.is_empty()) {
            match (&self.control).read(room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.answer.extend_from_slice(&room[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn refused(&self, error: &io::Error) -> VdeError {
        let dir = self.dir.clone();
        match error.kind() {
            // vde_switch says nothing at all when it has no port left.
            ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::WouldBlock => {
                VdeError::Refused { dir, port: self.port, socket: self.file.path().to_owned() }
            }
            _ => VdeError::Answer { dir, reason: error.to_string() },
        }
    }
}

/// Makes our datagram socket, in the switch's directory if possible.
fn own_socket(dir: &Path) -> Result<(UnixDatagram, SocketFile), VdeError> {
    let mut first: Option<(PathBuf, BindError)> = None;
    for path in places(dir, std::process::id()) {
        match SocketFile::datagram(&path) {
            Ok((socket, file)) => {
                // Whoever may write to it can put frames into the guest. The switch runs as the same user, or as root.
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
                return Ok((socket, file));
            }
            Err(error) => first = first.or(Some((path, error))),
        }
    }
    let (path, source) = first.unwrap_or_else(|| (dir.to_owned(), BindError::InUse));
    Err(VdeError::NoPlace { path, source })
}

/// Paths for the sockets of process `pid`, in the order to try them.
fn places(dir: &Path, pid: u32) -> impl Iterator<Item = PathBuf> {
    let inside = (1..=MOST_SOCKETS).map(move |n| dir.join(format!(".{pid:05}-{n:05}")));
    let outside = FALLBACKS.iter().flat_map(move |dir| {
        (1..=MOST_SOCKETS).map(move |n| Path::new(dir).join(format!("vde.{pid:05}-{n:05}")))
    });
    inside.chain(outside)
}

/// `struct request_v3`: all in the host's byte order.
fn encode(port: Option<u16>, own: &Path, description: &str) -> Option<Vec<u8>> {
    let kind = NEW_CONTROL | u32::from(port.unwrap_or(0)) << PORT_SHIFT;
    let mut bytes = Vec::new();
    for word in [MAGIC, VERSION, kind] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(UNIX_LAYOUT.encode(own)?);
    // Without a NUL: the length says where it ends.
    bytes.extend(description.bytes().take(MAX_DESCRIPTION - 1));
    Some(bytes)
}

/// What the switch's `port/print` shows for us. Of the environment only what cannot disturb its output.
fn description() -> String {
    let user = env::var("USER").or_else(|_| env::var("LOGNAME")).unwrap_or_default();
    let user: String = user.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    let user = if user.is_empty() { rustix::process::getuid().as_raw().to_string() } else { user };
    format!("hvrun user={user} PID={}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_three_words_an_address_and_a_description() {
        let bytes = encode(Some(5), Path::new("/a"), "me").unwrap();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8)), (0xfeed_face, 3, 0x500));
        assert_eq!(bytes.len(), 12 + UNIX_LAYOUT.size() + 2);
        assert_eq!(UNIX_LAYOUT.decode(&bytes[12..]), Some("/a".into()));
        assert!(bytes.ends_with(b"\0me"));
    }

    #[test]
    fn a_long_description_is_cut() {
        let bytes = encode(None, Path::new("/a"), &"d".repeat(500)).unwrap();
        assert_eq!(bytes.len(), 12 + UNIX_LAYOUT.size() + 127);
    }

    #[test]
    fn our_sockets_are_named_as_libvdeplug_names_its_own() {
        let places: Vec<_> = places(Path::new("/s"), 42).collect();
        assert_eq!(places[0], Path::new("/s/.00042-00001"));
        assert_eq!(places[1], Path::new("/s/.00042-00002"));
        assert_eq!(places[MOST_SOCKETS as usize], Path::new("/var/run/vde.00042-00001"));
        assert_eq!(places.last().unwrap(), Path::new("/tmp/vde.00042-01000"));
    }

    #[test]
    fn a_socket_goes_elsewhere_when_the_directory_takes_none() {
        let (_socket, file) = own_socket(Path::new("/nonexistent")).unwrap();
        assert!(FALLBACKS.iter().any(|dir| file.path().starts_with(dir)), "{:?}", file.path());
    }

    #[test]
    fn two_cards_of_a_process_have_two_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let (_one, first) = own_socket(dir.path()).unwrap();
        let (_two, second) = own_socket(dir.path()).unwrap();
        assert_ne!(first.path(), second.path());
    }

    #[test]
    fn a_socket_of_a_dead_process_with_our_number_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!(".{:05}-00001", std::process::id()));
        drop(UnixDatagram::bind(&path).unwrap());
        let (_socket, file) = own_socket(dir.path()).unwrap();
        assert_eq!(file.path(), path);
    }
}
