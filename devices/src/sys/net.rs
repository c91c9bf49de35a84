//! Sockets of the user-mode network: what is the same on every host, and the host's own.

pub(crate) use super::host::net::*;

/// What has become of a watched socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// The key it was added with.
    pub(crate) key: u64,
    /// There is something to read, or an end.
    pub(crate) readable: bool,
    /// There is room, or an error.
    pub(crate) writable: bool,
    /// The other end sends no more, or there is an error: reading will tell.
    pub(crate) ended: bool,
}
