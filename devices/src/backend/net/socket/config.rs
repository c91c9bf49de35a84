//! The value of `--net socket:...` as plain data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SocketAddress;
use crate::options::{OptionError, OptionList};

/// What the peer is and where. Data only; [`SocketConfig::open`] makes it real. As text
/// `stream,path=PATH|addr=HOST:PORT[,server][,reconnect=SECONDS]` or `dgram[,local=ADDRESS],remote=ADDRESS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SocketConfig {
    /// A stream of frames, each behind its length.
    #[serde(rename_all = "kebab-case")]
    Stream {
        /// Where the peer listens, or we do.
        address: SocketAddress,
        /// We listen; one peer at a time, and another may follow.
        #[serde(default)]
        server: bool,
        /// Seconds after which we try to connect again when nobody is there. Without it the peer has to be there first, and its end
        /// is the end of the link.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reconnect: Option<u32>,
    },
    /// Every datagram is a frame.
    #[serde(rename_all = "kebab-case")]
    Dgram {
        /// Our own address, at which the peer reaches us. Only needed for unix sockets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        local: Option<SocketAddress>,
        /// The peer's. It need not be there yet.
        remote: SocketAddress,
    },
}

impl SocketConfig {
    /// The forms that [`FromStr`] takes, for help texts and error messages.
    pub const FORMS: &str = "stream,path=PATH|addr=HOST:PORT[,server][,reconnect=SECONDS] or dgram[,local=ADDRESS],remote=ADDRESS";
}

impl FromStr for SocketConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut options = OptionList::parse(text)?;
        let config = match options.first("stream or dgram")?.as_str() {
            "stream" => stream(&mut options)?,
            "dgram" => SocketConfig::Dgram {
                local: options.value("local", "/tmp/a")?,
                remote: options
                    .value("remote", "/tmp/b")?
                    .ok_or_else(|| OptionError::Missing("remote=ADDRESS".into()))?,
            },
            other => {
                let reason = "it can be stream or dgram".to_owned();
                return Err(OptionError::Value { key: "socket".into(), value: other.to_owned(), reason });
            }
        };
        options.finish()?;
        match &config {
            SocketConfig::Dgram { local: None, remote: SocketAddress::Unix(_) } => {
                Err(OptionError::Missing("local=ADDRESS, for the peer to answer to,".into()))
            }
            _ => Ok(config),
        }
    }
}

fn stream(options: &mut OptionList) -> Result<SocketConfig, OptionError> {
    let path: Option<std::path::PathBuf> = options.value("path", "/tmp/net.sock")?;
    let addr = options.value("addr", "127.0.0.1:1234")?;
    let server = options.switch("server")?.unwrap_or(false);
    let reconnect: Option<u32> = options.value("reconnect", "1")?;
    let address = match (path, addr) {
        (Some(path), None) => SocketAddress::Unix(path),
        (None, Some(address)) => address,
        (None, None) => return Err(OptionError::Missing("path=PATH or addr=HOST:PORT".into())),
        (Some(path), Some(_)) => {
            let (value, reason) = (path.display().to_string(), "addr is given too; one is enough".to_owned());
            return Err(OptionError::Value { key: "path".into(), value, reason });
        }
    };
    match reconnect {
        Some(seconds) if server || seconds == 0 => {
            let reason = if server { "a server waits for peers anyway" } else { "at least 1 would work" };
            let (value, reason) = (seconds.to_string(), reason.to_owned());
            Err(OptionError::Value { key: "reconnect".into(), value, reason })
        }
        _ => Ok(SocketConfig::Stream { address, server, reconnect }),
    }
}

impl fmt::Display for SocketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |text: String| text.replace(',', ",,");
        match self {
            SocketConfig::Stream { address, server, reconnect } => {
                match address {
                    SocketAddress::Unix(path) => {
                        write!(f, "stream,path={}", escaped(path.display().to_string()))?;
                    }
                    address => write!(f, "stream,addr={}", escaped(address.to_string()))?,
                }
                if *server {
                    f.write_str(",server")?;
                }
                reconnect.map_or(Ok(()), |seconds| write!(f, ",reconnect={seconds}"))
            }
            SocketConfig::Dgram { local, remote } => {
                f.write_str("dgram")?;
                if let Some(local) = local {
                    write!(f, ",local={}", escaped(local.to_string()))?;
                }
                write!(f, ",remote={}", escaped(remote.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_back_as_it_is_written() {
        for text in [
            "stream,path=/tmp/a",
            "stream,path=/tmp/a,,b,server",
            "stream,addr=localhost:1234,reconnect=2",
            "stream,addr=[::1]:1234,server",
            "dgram,local=unix:/tmp/a,remote=unix:/tmp/b",
            "dgram,remote=10.0.0.1:99",
        ] {
            assert_eq!(text.parse::<SocketConfig>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_configuration_passes_through_json() {
        let config: SocketConfig = "stream,addr=localhost:1234,server".parse().unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<SocketConfig>(&json).unwrap(), config);
    }

    #[test]
    fn what_contradicts_itself_or_lacks_something_is_refused_with_the_reason() {
        for (text, reason) in [
            ("seqpacket,path=/a", "stream or dgram"),
            ("stream", "path=PATH or addr=HOST:PORT"),
            ("stream,path=/a,addr=b:1", "one is enough"),
            ("stream,addr=b", "HOST:PORT"),
            ("stream,path=/a,server,reconnect=1", "waits for peers anyway"),
            ("stream,path=/a,reconnect=0", "at least 1"),
            ("stream,path=/a,speed=1", "speed"),
            ("dgram,local=/a", "remote=ADDRESS"),
            ("dgram,remote=/a", "local=ADDRESS"),
        ] {
            let error = text.parse::<SocketConfig>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
