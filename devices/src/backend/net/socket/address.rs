//! Where a socket is: a path, or a host and a port.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a socket is. As text `unix:PATH`, a path that has a `/`, `HOST:PORT` or `[ADDRESS]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP or UDP.
    Inet {
        /// A name or an address; empty for all addresses of this host.
        host: String,
        /// The port.
        port: u16,
    },
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address; unix:PATH, /PATH, HOST:PORT and [IPV6]:PORT are")]
pub struct AddressError(String);

impl SocketAddress {
    /// The addresses that a host's name stands for. Blocks on the resolver.
    pub(super) fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        // Both kinds, if the host has both.
        let host = if host.is_empty() { "::" } else { host };
        let found: Vec<_> = (host, port).to_socket_addrs()?.collect();
        if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
    }
}

impl FromStr for SocketAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(SocketAddress::Unix(path.into())) };
        }
        if text.contains('/') {
            return Ok(SocketAddress::Unix(text.into()));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // More colons belong to an IPv6 address, which stands in brackets.
        if bare.is_none() && host.contains([':', '[', ']']) {
            return Err(wrong());
        }
        let port = port.parse().map_err(|_| wrong())?;
        Ok(SocketAddress::Inet { host: bare.unwrap_or(host).to_owned(), port })
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            SocketAddress::Inet { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            SocketAddress::Inet { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_back_as_it_is_written() {
        for text in ["unix:/tmp/a", "unix:a", "localhost:80", ":80", "[::1]:80", "10.0.2.2:1"] {
            assert_eq!(text.parse::<SocketAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_text_with_a_slash_is_a_path() {
        assert_eq!("./a:1".parse(), Ok(SocketAddress::Unix("./a:1".into())));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_forms_that_are() {
        for text in ["", "host", "host:", "host:70000", "::1:80", "unix:", "[::1:80"] {
            let error = text.parse::<SocketAddress>().unwrap_err().to_string();
            assert!(error.contains("HOST:PORT"), "{error}");
        }
    }
}
