//! Character devices: what stands behind a guest's serial port or console on the host (a terminal, a file, a socket, nothing).
//!
//! It moves bytes and knows no UART and no virtqueue. A device writes and reads without ever blocking ([`CharBackend`]) and is told when
//! that became possible again ([`CharFrontend`]). Everything in between is bounded: a consumer that is stuck stalls only
//! the guest's port, and input that the guest does not take stays where it came from.

pub mod escape;
pub mod terminal;

mod fd;
mod file;
mod input;
mod null;
mod output;
mod pty;
mod stdio;
mod stream;
mod unix;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use null::Null;
pub use stream::Stream;

use super::BindError;

/// The host's end of a serial line. Every call but [`CharBackend::flush`] returns at once and may come from any thread, also
/// under the calling device's lock; the backend never calls the device from within one.
pub trait CharBackend: Send + Sync + fmt::Debug {
    /// Names the device at the guest's end. Input that came earlier has waited for it.
    fn attach(&self, frontend: Weak<dyn CharFrontend>);

    /// Takes the first bytes of `data`, in order, as many as there is room for, and says how many. If it took fewer,
    /// [`CharFrontend::output_ready`] follows once there is room.
    fn write(&self, data: &[u8]) -> usize;

    /// Like [`CharBackend::write`], for a device that writes whole messages: what the peer can take leaves at once and on the calling
    /// thread, as far as that is possible without blocking; only the rest waits in the buffer. Bytes that come one by one are
    /// better gathered, with [`CharBackend::write`].
    fn send(&self, data: &[u8]) -> usize {
        self.write(data)
    }

    /// Hands out the oldest input, at most `buf.len()` bytes, and says how many. The backend reads from its source only
    /// while its own small buffer has room, so what a device does not take is held back at the source.
    fn read(&self, buf: &mut [u8]) -> usize;

    /// Whether [`CharBackend::read`] would hand something out.
    fn has_input(&self) -> bool;

    /// Asks for one call of [`CharFrontend::input_retry`] once `after` has passed. A later request replaces an earlier one. A
    /// backend that never has input need not call.
    fn retry_input(&self, after: Duration);

    /// Waits until all output taken so far has left the monitor, at most for `timeout` (`None`: as long as it takes, which
    /// with a stuck consumer is for ever). Says whether it has. Not to be called under a device's lock.
    fn flush(&self, timeout: Option<Duration>) -> bool;

    /// Who is at the other end. [`CharFrontend::peer_changed`] says when the answer has changed. While nobody is connected,
    /// output is taken and vanishes. Input that a peer has sent may still wait here after it has gone.
    fn peer(&self) -> Peer {
        Peer::ALWAYS
    }

    /// For a pseudo-terminal: the path of the side that other programs open.
    fn terminal(&self) -> Option<&Path> {
        None
    }
}

/// Who is at the other end of a character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Whether anybody is.
    pub connected: bool,
    /// Counts connections, so that a new peer is told from its predecessor although nobody saw the moment between them.
    pub connections: u64,
}

impl Peer {
    /// A file or standard streams: nobody comes or goes.
    pub const ALWAYS: Peer = Peer { connected: true, connections: 1 };
    /// Nobody has come yet.
    pub const NOBODY: Peer = Peer { connected: false, connections: 0 };

    /// Somebody has come.
    #[must_use]
    pub fn joined(self) -> Peer {
        Peer { connected: true, connections: self.connections.wrapping_add(1) }
    }

    /// Whoever was there has gone.
    #[must_use]
    pub fn left(self) -> Peer {
        Peer { connected: false, ..self }
    }
}

/// The guest's end of a serial line: what a backend tells its device. Calls come from the backend's own threads.
pub trait CharFrontend: Send + Sync {
    /// There is new input to [`CharBackend::read`].
    fn input_ready(&self);

    /// The time asked for with [`CharBackend::retry_input`] has passed.
    fn input_retry(&self);

    /// There is room again after a [`CharBackend::write`] that took too little.
    fn output_ready(&self);

    /// [`CharBackend::peer`] has changed.
    fn peer_changed(&self) {}
}

/// Sees all input before the guest does: the place for an escape key. Runs on the backend's reading thread.
pub trait InputFilter: Send {
    /// Takes `input` and appends what is for the guest to `to_guest`, and what the person at the other end shall read (a help
    /// text) to `to_user`; that is written among the guest's output. It may not append much more than it takes.
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>, to_user: &mut Vec<u8>);
}

/// What a serial port or a console is connected to: the value of `--serial` and `--console`. Data only; [`open`] makes it real.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChardevConfig {
    /// The process' standard input and output.
    #[default]
    Stdio,
    /// Output into a file, which is created or emptied; no input.
    File(PathBuf),
    /// Output behind what is in a file already, which is created if it is not there; no input.
    FileAppend(PathBuf),
    /// A unix socket that listens (server); one client at a time, and another may follow.
    Unix(PathBuf),
    /// The same, and the machine is not made before the first client is there.
    UnixWait(PathBuf),
    /// A unix socket that another program listens on (client). It must do so before the machine starts; when it hangs up, that
    /// was it.
    UnixConnect(PathBuf),
    /// A unix socket that another program listens on (client), which need not do so yet: connecting is tried again, also when it
    /// has hung up.
    UnixReconnect {
        /// The socket's path.
        path: PathBuf,
        /// Seconds between two attempts, at least 1.
        seconds: u32,
    },
    /// A new pseudo-terminal; its path is in the log and in [`CharBackend::terminal`].
    Pty,
    /// Output vanishes, there is no input.
    None,
}

impl ChardevConfig {
    /// The forms that [`FromStr`] takes, for help texts and error messages.
    pub const FORMS: &str = "stdio, file:PATH, append:PATH, unix:PATH (listens), unix-wait:PATH (and waits for its client), \
                             unix-connect:PATH (connects), unix-reconnect:SECONDS:PATH (again and again), pty or none";
}

impl fmt::Display for ChardevConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChardevConfig::Stdio => f.write_str("stdio"),
            ChardevConfig::File(path) => write!(f, "file:{}", path.display()),
            ChardevConfig::FileAppend(path) => write!(f, "append:{}", path.display()),
            ChardevConfig::Unix(path) => write!(f, "unix:{}", path.display()),
            ChardevConfig::UnixWait(path) => write!(f, "unix-wait:{}", path.display()),
            ChardevConfig::UnixReconnect { path, seconds } => {
                write!(f, "unix-reconnect:{seconds}:{}", path.display())
            }
            ChardevConfig::UnixConnect(path) => write!(f, "unix-connect:{}", path.display()),
            ChardevConfig::Pty => f.write_str("pty"),
            ChardevConfig::None => f.write_str("none"),
        }
    }
}

impl FromStr for ChardevConfig {
    type Err = ChardevParseError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let invalid = || ChardevParseError(s.to_owned());
        match s.split_once(':') {
            None if s == "stdio" => Ok(ChardevConfig::Stdio),
            None if s == "pty" => Ok(ChardevConfig::Pty),
            None if s == "none" => Ok(ChardevConfig::None),
            Some(("file", path)) if !path.is_empty() => Ok(ChardevConfig::File(path.into())),
            Some(("append", path)) if !path.is_empty() => Ok(ChardevConfig::FileAppend(path.into())),
            Some(("unix-wait", path)) if !path.is_empty() => Ok(ChardevConfig::UnixWait(path.into())),
            Some(("unix-reconnect", rest)) => match rest.split_once(':') {
                Some((seconds, path)) if !path.is_empty() && !seconds.starts_with('+') => {
                    let seconds = seconds.parse().ok().filter(|seconds| *seconds > 0).ok_or_else(invalid)?;
                    Ok(ChardevConfig::UnixReconnect { path: path.into(), seconds })
                }
                _ => Err(invalid()),
            },
            Some(("unix", path)) if !path.is_empty() => Ok(ChardevConfig::Unix(path.into())),
            Some(("unix-connect", path)) if !path.is_empty() => Ok(ChardevConfig::UnixConnect(path.into())),
            _ => Err(invalid()),
        }
    }
}

/// "{0}" is no place for a serial port or a console.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is no place for a serial port or a console; it can be {forms}", forms = ChardevConfig::FORMS)]
pub struct ChardevParseError(pub String);

/// Why a character device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChardevError {
    /// `stdio` was asked for where there are no standard streams to give away.
    #[error(
        "a port on stdio, but the machine has no standard input and output to give to it (any more); use file:PATH, unix:PATH or none"
    )]
    NoStdio,
    /// The file cannot be created.
    #[error("cannot create the file {path} for a guest's output")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on the unix socket {path}")]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: BindError,
    },
    /// Nobody listens on the socket.
    #[error(
        "cannot connect to the unix socket {path}; a program must listen there before the machine starts"
    )]
    Connect {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: BindError,
    },
    /// The host gives no pseudo-terminal.
    #[error("cannot make a pseudo-terminal")]
    Pty(#[source] io::Error),
    /// The host has no thread or descriptor left.
    #[error("cannot start the threads of the character device {name}")]
    Start {
        /// Which backend.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// The standard streams that a caller gives away to a serial port, and what looks at the input before the guest does.
///
/// The descriptors are used as they are: nothing changes their flags, which they share with other processes.
pub struct StdioStreams {
    /// Where input comes from; `None` for none. Its end is no event: there is just no more.
    pub input: Option<OwnedFd>,
    /// Where output goes.
    pub output: OwnedFd,
    /// An escape key, for instance [`escape::EscapeFilter`].
    pub filter: Option<Box<dyn InputFilter>>,
}

impl fmt::Debug for StdioStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StdioStreams")
            .field("input", &self.input)
            .field("output", &self.output)
            .field("filter", &self.filter.is_some())
            .finish()
    }
}

/// Opens what `config` describes. `stdio` is used for [`ChardevConfig::Stdio`] and otherwise dropped.
pub fn open(
    config: &ChardevConfig,
    stdio: Option<StdioStreams>,
) -> Result<Arc<dyn CharBackend>, ChardevError> {
    Ok(match config {
        ChardevConfig::Stdio => Arc::new(Stream::stdio(stdio.ok_or(ChardevError::NoStdio)?)?),
        ChardevConfig::File(path) => Arc::new(Stream::file(path)?),
        ChardevConfig::FileAppend(path) => Arc::new(Stream::file_append(path)?),
        ChardevConfig::Unix(path) => Arc::new(Stream::unix(path)?),
        ChardevConfig::UnixWait(path) => Arc::new(Stream::unix_wait(path)?),
        ChardevConfig::UnixReconnect { path, seconds } => {
            Arc::new(Stream::unix_reconnect(path, Duration::from_secs((*seconds).into()))?)
        }
        ChardevConfig::UnixConnect(path) => Arc::new(Stream::unix_connect(path)?),
        ChardevConfig::Pty => Arc::new(Stream::pty()?),
        ChardevConfig::None => Arc::new(Null),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_option_parses() {
        assert_eq!("stdio".parse(), Ok(ChardevConfig::Stdio));
        assert_eq!("none".parse(), Ok(ChardevConfig::None));
        assert_eq!("file:/tmp/a:b".parse(), Ok(ChardevConfig::File("/tmp/a:b".into())));
        assert_eq!("unix:s.sock".parse(), Ok(ChardevConfig::Unix("s.sock".into())));
        assert_eq!("unix-connect:./s".parse(), Ok(ChardevConfig::UnixConnect("./s".into())));
        assert_eq!("pty".parse(), Ok(ChardevConfig::Pty));
    }

    #[test]
    fn an_unknown_form_is_refused_with_what_would_work() {
        for wrong in [
            "",
            "file:",
            "unix:",
            "unix-connect:",
            "file",
            "Stdio",
            "tcp:1234",
            "stdio:",
            "pty:",
            "append:",
            "unix-wait:",
            "unix-reconnect:/x",
            "unix-reconnect:0:/x",
            "unix-reconnect:1:",
            "unix-reconnect:x:/y",
        ] {
            let error = wrong.parse::<ChardevConfig>().unwrap_err().to_string();
            assert!(error.contains(ChardevConfig::FORMS), "{error}");
        }
    }

    #[test]
    fn display_is_what_parses() {
        for text in [
            "stdio",
            "none",
            "pty",
            "file:/x",
            "append:/x",
            "unix:/y",
            "unix-wait:/y",
            "unix-connect:/z",
            "unix-reconnect:2:/z:a",
        ] {
            assert_eq!(text.parse::<ChardevConfig>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn stdio_without_streams_is_refused() {
        assert!(matches!(open(&ChardevConfig::Stdio, None), Err(ChardevError::NoStdio)));
    }
}
