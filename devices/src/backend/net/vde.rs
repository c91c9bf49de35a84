//! A card on a port of a VDE switch (`vde_switch` of vde2): the plug's side of the protocol that libvdeplug speaks, version 3.
//!
//! A stream to the switch's control socket asks for a port and keeps it: when it closes, by whatever death, the port is free again.
//! Frames are datagrams between a socket of ours, which must have a path that the switch can connect to, and one that
//! it names in its answer. Not a switch, and no offloads: the frames of others go through it too, 1518 bytes at most.

mod plug;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::datagram::Datagrams;
use super::socket_file::SocketFile;
use super::{FrameInfo, Interest, NetBackend, Offloads, RxRing, Transmit, TxFrame, frames};
use crate::options::{OptionError, OptionList};

pub use super::socket_file::BindError;

/// Longest frame on the wire: 14 bytes of header, a tag, 1500 of payload. The switch has no more room (vde2, `struct bipkt`).
const MAX_FRAME: usize = 1518;

/// Frames that wait in our memory for a guest that takes none. On macOS a switch stands still for everybody while one socket is full,
/// so the socket is always emptied; what a guest has not taken by then is lost, the oldest first.
const BACKLOG: usize = 512;

/// Which switch: the value of `--net vde:DIR[,port=N]`. Data only; [`Vde::open`] makes it real.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VdeConfig {
    /// The directory with the switch's sockets (`vde_switch -s DIR`).
    pub sock: PathBuf,
    /// The port to plug into; the switch chooses a free one if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl VdeConfig {
    /// Any port of the switch in `sock`.
    pub fn new(sock: impl Into<PathBuf>) -> Self {
        VdeConfig { sock: sock.into(), port: None }
    }
}

impl FromStr for VdeConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut options = OptionList::parse(text)?;
        let sock = options.first("the directory of the switch")?.into();
        let port = options.value("port", "3")?;
        options.finish()?;
        Ok(VdeConfig { sock, port })
    }
}

impl fmt::Display for VdeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.sock.display().to_string().replace(',', ",,"))?;
        self.port.map_or(Ok(()), |port| write!(f, ",port={port}"))
    }
}

/// Why a card could not be plugged into a switch.
#[derive(Debug, thiserror::Error)]
pub enum VdeError {
    /// The directory is missing.
    #[error(
        "there is no VDE switch at {dir:?}: the directory cannot be found; 'vde_switch --sock {dir:?}' starts one"
    )]
    NoDirectory {
        /// The directory as it was given.
        dir: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// Nobody listens in the directory.
    #[error("no VDE switch is running at {dir:?}; 'vde_switch --sock {dir:?}' starts one")]
    NoSwitch {
        /// The directory.
        dir: PathBuf,
        /// What the host says about its control socket.
        #[source]
        source: io::Error,
    },
    /// The directory's path is too long for sockets in it.
    #[error("the VDE switch's control socket {path:?} cannot be reached")]
    Path {
        /// The control socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BindError,
    },
    /// Our own socket finds no place.
    #[error("no socket for a port of the VDE switch can be made: not {path:?}, and nowhere else either")]
    NoPlace {
        /// The first place tried.
        path: PathBuf,
        /// Why not there.
        #[source]
        source: BindError,
    },
    /// The switch hung up or kept silent instead of answering.
    #[error(
        "the VDE switch at {dir:?} gives no port{}: all its ports are taken, this one is, or it may not write to {socket:?}",
        port.map(|port| format!(" {port}")).unwrap_or_default()
    )]
    Refused {
        /// The directory.
        dir: PathBuf,
        /// The port that was asked for.
        port: Option<u16>,
        /// Our own socket.
        socket: PathBuf,
    },
    /// The switch's answer makes no sense.
    #[error("the VDE switch at {dir:?} does not answer as one: {reason}")]
    Answer {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A port of a VDE switch.
pub struct Vde {
    /// The switch, for messages.
    dir: PathBuf,
    /// Held open for as long as the port is ours. Nothing is said on it any more.
    control: UnixStream,
    data: Datagrams,
    /// Removes our socket's file.
    file: SocketFile,
    backlog: VecDeque<Vec<u8>>,
    /// The guest was offered what has come since the last [`NetBackend::service`].
    offered: bool,
    gone: bool,
}

impl Vde {
    /// Plugs into the switch.
    ///
    /// # Errors
    /// See [`VdeError`]. It answers within seconds, also if the switch does not.
    pub fn open(config: &VdeConfig) -> Result<Vde, VdeError> {
        let plug::Plugged { dir, control, data, file } = plug::plug(config)?;
        Ok(Vde {
            dir,
            control,
            data: Datagrams::new(data.into(), MAX_FRAME),
            file,
            backlog: VecDeque::new(),
            offered: true,
            gone: false,
        })
    }

    /// The path of our own socket.
    pub fn socket(&self) -> &Path {
        self.file.path()
    }

    /// Whether the switch has hung up.
    fn check(&mut self) {
        // Nobody says anything here; if somebody does, it is thrown away.
        let mut buffer = [0u8; 256];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.control, &mut buffer)) {
            Ok(0) => self.gone = true,
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(_) => self.gone = true,
        }
    }

    fn lost(&self) -> io::Error {
        let dir = self.dir.display();
        io::Error::new(ErrorKind::ConnectionReset, format!("the VDE switch at {dir} is gone"))
    }

    /// Empties the socket for a guest that takes nothing.
    fn drain(&mut self) -> Result<(), Errno> {
        let mut buffer = Vec::new();
        for _ in 0..BACKLOG {
            if !self.data.take(&mut buffer)? {
                break;
            }
            if self.backlog.len() >= BACKLOG {
                self.backlog.pop_front();
            }
            self.backlog.push_back(buffer.clone());
        }
        Ok(())
    }

    /// Hands out what was drained before. `false`: not all of it.
    fn put_backlog(&mut self, ring: &mut dyn RxRing) -> bool {
        while let Some(frame) = self.backlog.front() {
            let stored = ring
                .put(frame.len(), &mut |slices| Some((frames::scatter(frame, slices), FrameInfo::default())));
            if !stored {
                return false;
            }
            self.backlog.pop_front();
        }
        true
    }
}

impl NetBackend for Vde {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn descriptors(&self, write: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        if self.gone {
            return Vec::new();
        }
        // While only time says when there is room, being writable says nothing.
        let interest = if write && self.data.retry().is_none() { Interest::Both } else { Interest::Read };
        vec![(self.data.socket(), interest), (self.control.as_fd(), Interest::Read)]
    }

    fn deadline(&self) -> Option<Instant> {
        self.data.retry().filter(|_| !self.gone)
    }

    fn service(&mut self, _now: Instant) -> io::Result<()> {
        self.data.service();
        if !self.gone {
            self.check();
        }
        if self.gone {
            return Err(self.lost());
        }
        if !std::mem::take(&mut self.offered) || self.data.blocked() || !self.backlog.is_empty() {
            self.drain().map_err(io::Error::from)?;
        }
        Ok(())
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        if self.gone {
            return Transmit::Done;
        }
        self.data.transmit(frame).unwrap_or_else(|error| {
            // Its control stream closes too, which wakes us.
            log::debug!("network: the VDE switch at {:?} takes no frame: {error}", self.dir);
            Transmit::Done
        })
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        self.offered = true;
        if !self.put_backlog(ring) || self.gone {
            return Ok(());
        }
        self.data.receive(ring).map_err(io::Error::from)
    }

    fn link(&self) -> bool {
        !self.gone
    }
}

impl Drop for Vde {
    fn drop(&mut self) {
        // What libvdeplug says goodbye with; the port is freed by the control stream.
        let _ = rustix::net::send(self.data.socket(), &[], crate::sys::SEND_NO_SIGNAL);
    }
}

impl fmt::Debug for Vde {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backlog = self.backlog.len();
        f.debug_struct("Vde").field("dir", &self.dir).field("backlog", &backlog).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
