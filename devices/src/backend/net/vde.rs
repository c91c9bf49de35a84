//! A card on a port of a VDE switch (`vde_switch` of vde2): the plug's side of the protocol that libvdeplug speaks, version 3.
//!
//! A stream to the switch's control socket asks for a port and keeps it: when it closes, by whatever death, the port is free again.
//! Frames are datagrams between a socket of ours, which must have a path that the switch can connect to, and one that
//! it names in its answer. A switch that goes away is looked for until it is back. Not a switch, and no offloads: the frames of others
//! go through it too, 1518 bytes at most.

mod plug;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::plug::{Plugged, Progress, Request};
use super::datagram::Datagrams;
use super::{FrameInfo, Interest, NetBackend, Offloads, RxRing, Transmit, TxFrame, frames};
use crate::backend::BindError;
use crate::backend::socket_file::SocketFile;
use crate::options::{OptionError, OptionList};

/// Longest frame on the wire: 14 bytes of header, a tag, 1500 of payload. The switch has no more room (vde2, `struct bipkt`).
const MAX_FRAME: usize = 1518;

/// Frames that wait in our memory for a guest that takes none. On macOS a switch stands still for everybody while one socket is full,
/// so the socket is always emptied; what a guest has not taken by then is lost, the oldest first.
const BACKLOG: usize = 512;

/// How often a switch that has gone away is looked for.
const RETRY: Duration = Duration::from_secs(1);

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

/// A card's cable to a VDE switch.
pub struct Vde {
    config: VdeConfig,
    cable: Cable,
    backlog: VecDeque<Vec<u8>>,
    /// The guest was offered what has come since the last [`NetBackend::service`].
    offered: bool,
}

/// Where the cable ends.
enum Cable {
    /// In a port.
    In(Port),
    /// The switch has been asked for a port.
    Asked(Request),
    /// Nowhere; the switch is looked for again then.
    Out(Instant),
}

/// A port that is ours.
struct Port {
    control: std::os::unix::net::UnixStream,
    data: Datagrams,
    file: SocketFile,
}

impl Port {
    fn new(plugged: Plugged) -> Self {
        let Plugged { control, data, file } = plugged;
        Port { control, data: Datagrams::new(data.into(), MAX_FRAME), file }
    }

    /// Whether the switch has hung up.
    fn is_gone(&self) -> bool {
        // Nobody says anything here; if somebody does, it is thrown away.
        let mut buffer = [0u8; 256];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.control, &mut buffer)) {
            Ok(0) => true,
            Ok(_) | Err(Errno::AGAIN) => false,
            Err(_) => true,
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // What libvdeplug says goodbye with; the port is freed by the control stream.
        let _ = rustix::net::send(self.data.socket(), &[], crate::sys::SEND_NO_SIGNAL);
    }
}

impl Vde {
    /// Plugs into the switch.
    ///
    /// # Errors
    /// See [`VdeError`]. It answers within seconds, also if the switch does not.
    pub fn open(config: &VdeConfig) -> Result<Vde, VdeError> {
        let port = Port::new(plug::plug(config)?);
        // Absolute, because the process may change its directory.
        let sock = std::path::absolute(&config.sock).unwrap_or_else(|_| config.sock.clone());
        Ok(Vde {
            config: VdeConfig { sock, port: config.port },
            cable: Cable::In(port),
            backlog: VecDeque::new(),
            offered: true,
        })
    }

    /// The path of our own socket, while there is one.
    pub fn socket(&self) -> Option<&Path> {
        match &self.cable {
            Cable::In(port) => Some(port.file.path()),
            Cable::Asked(_) | Cable::Out(_) => None,
        }
    }

    /// The switch is gone, and our socket with it.
    fn lose(&mut self, now: Instant) {
        self.cable = Cable::Out(now + RETRY);
        self.backlog.clear();
    }

    fn lost(&self) -> io::Error {
        let dir = self.config.sock.display();
        io::Error::new(
            ErrorKind::ConnectionReset,
            format!("the VDE switch at {dir} is gone; it is looked for until it is back"),
        )
    }

    /// Plugs in again, as far as that goes without waiting.
    fn replug(&mut self, now: Instant) {
        let progress = match std::mem::replace(&mut self.cable, Cable::Out(now + RETRY)) {
            Cable::Asked(request) => request.proceed(now),
            Cable::Out(due) if due <= now => {
                Request::start(&self.config, plug::connect_at_once).and_then(|request| request.proceed(now))
            }
            cable => {
                self.cable = cable;
                return;
            }
        };
        match progress {
            Ok(Progress::Plugged(plugged)) => self.cable = Cable::In(Port::new(plugged)),
            Ok(Progress::Waiting(request)) => self.cable = Cable::Asked(request),
            Err(error) => log::debug!("network: {error}"),
        }
    }

    /// Empties the socket for a guest that takes nothing.
    fn drain(&mut self) -> Result<(), Errno> {
        let Cable::In(port) = &mut self.cable else { return Ok(()) };
        let mut buffer = Vec::new();
        for _ in 0..BACKLOG {
            if !port.data.take(&mut buffer)? {
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

    /// Passes on what the socket has failed with, which ends its use.
    fn failed(&mut self, error: Errno) -> io::Error {
        self.lose(Instant::now());
        let lost = self.lost();
        io::Error::new(lost.kind(), format!("{lost} ({error})"))
    }
}

impl NetBackend for Vde {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn descriptors(&self, write: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        match &self.cable {
            Cable::In(port) => {
                // While only time says when there is room, being writable says nothing.
                let write = write && port.data.retry().is_none();
                let interest = if write { Interest::Both } else { Interest::Read };
                vec![(port.data.socket(), interest), (port.control.as_fd(), Interest::Read)]
            }
            Cable::Asked(request) => vec![(request.control(), Interest::Read)],
            Cable::Out(_) => Vec::new(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.cable {
            Cable::In(port) => port.data.retry(),
            Cable::Asked(request) => Some(request.deadline()),
            Cable::Out(due) => Some(*due),
        }
    }

    fn service(&mut self, now: Instant) -> io::Result<()> {
        self.replug(now);
        let Cable::In(port) = &mut self.cable else { return Err(self.lost()) };
        port.data.service();
        let blocked = port.data.blocked();
        if port.is_gone() {
            self.lose(now);
            return Err(self.lost());
        }
        if !std::mem::take(&mut self.offered) || blocked || !self.backlog.is_empty() {
            self.drain().map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        let Cable::In(port) = &mut self.cable else { return Transmit::Done };
        port.data.transmit(frame).unwrap_or_else(|error| {
            // Its control stream closes too, which wakes us.
            log::debug!("network: the VDE switch at {:?} takes no frame: {error}", self.config.sock);
            Transmit::Done
        })
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        self.offered = true;
        if !self.put_backlog(ring) {
            return Ok(());
        }
        let Cable::In(port) = &mut self.cable else { return Ok(()) };
        port.data.receive(ring).map_err(|error| self.failed(error))
    }

    fn link(&self) -> bool {
        matches!(self.cable, Cable::In(_))
    }
}

impl fmt::Debug for Vde {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backlog = self.backlog.len();
        f.debug_struct("Vde")
            .field("config", &self.config)
            .field("link", &self.link())
            .field("backlog", &backlog)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
