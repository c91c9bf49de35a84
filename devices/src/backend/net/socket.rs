//! A card whose peer is another program behind a socket, in QEMU's formats: `stream` (each frame behind its length in 4 bytes,
//! big-endian) and `dgram` (each frame a datagram), over unix sockets and over TCP and UDP. So passt, gvproxy, socket_vmnet, QEMU
//! or another of us can be the peer.
//!
//! A stream never loses a frame while it stands: what the peer does not take makes the guest wait. No offloads: neither format can
//! say what is still to be done to a frame.

mod address;
mod config;
mod dgram;
mod stream;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::NetBackend;
use crate::backend::BindError;

pub use address::{AddressError, SocketAddress};
pub use config::SocketConfig;
pub use dgram::Dgram;
pub use stream::Stream;

/// Why a card's socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path cannot be bound.
    #[error("no socket can be made at {path:?}")]
    Bind {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BindError,
    },
    /// The address cannot be bound.
    #[error("{address} cannot be listened on; the port may be in use, or the address none of this host's")]
    Listen {
        /// The address.
        address: SocketAddress,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// Nobody is there.
    #[error("nothing answers at {address}; start the peer first, or add 'reconnect=1' to wait for it")]
    Connect {
        /// The address.
        address: SocketAddress,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// The name has no address.
    #[error("the host name in {address} cannot be resolved")]
    Resolve {
        /// The address.
        address: SocketAddress,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// A group of hosts.
    #[error(
        "{0} is a multicast address; a switch of this process ('switch:NAME') or VDE ('vde:DIR') connects several machines"
    )]
    Multicast(SocketAddress),
    /// The two ends are of different kinds.
    #[error("the local address {local} and the remote address {remote} are of different kinds")]
    Mixed {
        /// Ours.
        local: SocketAddress,
        /// The peer's.
        remote: SocketAddress,
    },
    /// The host has no socket for us.
    #[error("a socket for {name} cannot be set up")]
    Setup {
        /// What it is for.
        name: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

impl SocketConfig {
    /// Makes the socket, and connects it if that is asked for.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(&self) -> Result<Box<dyn NetBackend>, SocketError> {
        match self {
            SocketConfig::Stream { address, server: true, .. } => Ok(Box::new(Stream::listen(address)?)),
            SocketConfig::Stream { address, server: false, reconnect } => {
                Ok(Box::new(Stream::connect(address, *reconnect)?))
            }
            SocketConfig::Dgram { local, remote } => Ok(Box::new(Dgram::open(local.as_ref(), remote)?)),
        }
    }
}

/// Puts a descriptor that somebody else opened into the mode that a backend needs.
fn adopt(socket: OwnedFd, name: &str) -> Result<OwnedFd, SocketError> {
    match rustix::io::ioctl_fionbio(&socket, true) {
        Ok(()) => Ok(socket),
        Err(error) => Err(SocketError::Setup { name: name.to_owned(), source: error.into() }),
    }
}

#[cfg(test)]
mod tests;
