//! What a vhost-user device is described by, and how it is written on a command line.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::options::{OptionError, OptionList};

/// Longest tag in bytes (virtio 1.2, 5.11.4).
pub const MAX_TAG: usize = 36;
/// Most entries of a queue, as in QEMU.
const MAX_QUEUE_SIZE: u16 = 1024;
/// Most request queues: more than there are CPUs.
const MAX_REQUEST_QUEUES: u16 = 64;

/// A device that another process serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUserConfig {
    /// The unix socket at which that process listens.
    pub socket: PathBuf,
    /// What it is to the guest.
    pub device: VhostUserDevice,
}

/// What a vhost-user device is to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VhostUserDevice {
    /// A file system, such as virtiofsd serves.
    Fs(FsConfig),
    /// Sockets between the guest and the host. The back end knows the guest's number (CID).
    Vsock,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// The name by which the guest mounts it, at most [`MAX_TAG`] bytes.
    pub tag: String,
    /// How many queues there are for requests.
    #[serde(default = "default_request_queues")]
    pub request_queues: u16,
    /// The most entries that each queue can have, a power of 2.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
}

const fn default_request_queues() -> u16 {
    1
}

const fn default_queue_size() -> u16 {
    128
}

impl FsConfig {
    /// One request queue, of QEMU's size.
    pub fn new(tag: impl Into<String>) -> Self {
        FsConfig {
            tag: tag.into(),
            request_queues: default_request_queues(),
            queue_size: default_queue_size(),
        }
    }
}

/// What cannot be in a [`VhostUserConfig`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VhostUserConfigError {
    /// A tag that no guest can be told.
    #[error("the tag {0:?} has to have 1 to {MAX_TAG} bytes")]
    Tag(String),
    /// A size that no queue has.
    #[error("a queue has 2 to {MAX_QUEUE_SIZE} entries, a power of 2, not {0}")]
    QueueSize(u16),
    /// A number of queues that no device has.
    #[error("there can be 1 to {MAX_REQUEST_QUEUES} request queues, not {0}")]
    RequestQueues(u16),
}

impl VhostUserConfig {
    /// Checks all that can be told without the back end.
    pub fn validate(&self) -> Result<(), VhostUserConfigError> {
        let VhostUserDevice::Fs(fs) = &self.device else { return Ok(()) };
        if !(1..=MAX_TAG).contains(&fs.tag.len()) || fs.tag.contains('\0') {
            return Err(VhostUserConfigError::Tag(fs.tag.clone()));
        }
        if !(2..=MAX_QUEUE_SIZE).contains(&fs.queue_size) || !fs.queue_size.is_power_of_two() {
            return Err(VhostUserConfigError::QueueSize(fs.queue_size));
        }
        if !(1..=MAX_REQUEST_QUEUES).contains(&fs.request_queues) {
            return Err(VhostUserConfigError::RequestQueues(fs.request_queues));
        }
        Ok(())
    }

    /// A short name for log lines.
    pub fn name(&self) -> String {
        match &self.device {
            VhostUserDevice::Fs(fs) => format!("virtiofs {}", fs.tag),
            VhostUserDevice::Vsock => "vsock".to_owned(),
        }
    }
}

/// `fs:SOCKET,tag=TAG[,queues=N][,queue-size=N]` or `vsock:SOCKET`.
///
/// ```
/// use hvrun_devices::virtio::vhost_user::{FsConfig, VhostUserConfig, VhostUserDevice};
///
/// let config: VhostUserConfig = "fs:/run/store.sock,tag=nix-store".parse().unwrap();
/// assert_eq!(config.device, VhostUserDevice::Fs(FsConfig::new("nix-store")));
/// ```
impl FromStr for VhostUserConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut options = OptionList::parse(text)?;
        let first = options.first("the kind and the socket, as in fs:SOCKET,tag=TAG or vsock:SOCKET,")?;
        let (kind, socket) = match first.split_once(':') {
            Some((kind, socket)) if !socket.is_empty() => (kind, PathBuf::from(socket)),
            _ => return Err(OptionError::Missing(format!("the socket behind {first:?}, as in fs:SOCKET,"))),
        };
        let device = match kind {
            "fs" => {
                let tag = options.text("tag", "store")?;
                let mut fs = FsConfig::new(tag.ok_or_else(|| OptionError::Missing("tag=TAG".to_owned()))?);
                if let Some(queues) = options.value("queues", "1")? {
                    fs.request_queues = queues;
                }
                if let Some(size) = options.value("queue-size", "128")? {
                    fs.queue_size = size;
                }
                VhostUserDevice::Fs(fs)
            }
            "vsock" => VhostUserDevice::Vsock,
            other => {
                let reason = "it can be fs or vsock".to_owned();
                return Err(OptionError::Value { key: "kind".to_owned(), value: other.to_owned(), reason });
            }
        };
        options.finish()?;
        Ok(VhostUserConfig { socket, device })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        match text.parse::<VhostUserConfig>() {
            Err(error) => error.to_string(),
            Ok(config) => config.validate().unwrap_err().to_string(),
        }
    }

    #[test]
    fn options_reach_the_file_system() {
        let config: VhostUserConfig = "fs:/a:b,tag=t,queues=2,queue-size=1024".parse().unwrap();
        assert_eq!(config.socket.to_str(), Some("/a:b"));
        let fs = FsConfig { tag: "t".into(), request_queues: 2, queue_size: 1024 };
        assert_eq!(config.device, VhostUserDevice::Fs(fs));
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn a_vsock_is_a_socket_alone() {
        let config: VhostUserConfig = "vsock:/run/v.sock".parse().unwrap();
        assert_eq!((config.device, config.socket.to_str()), (VhostUserDevice::Vsock, Some("/run/v.sock")));
        assert!(refusal("vsock:/run/v.sock,tag=t").contains("tag"));
    }

    #[test]
    fn what_is_missing_is_named_with_the_form() {
        assert!(refusal("").contains("fs:SOCKET,tag=TAG"));
        assert!(refusal("fs:,tag=t").contains("fs:SOCKET"));
        assert!(refusal("fs:/s").contains("tag=TAG"));
        assert!(refusal("blk:/s").contains("fs or vsock"));
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_value_and_the_range() {
        let long = format!("fs:/s,tag={}", "x".repeat(37));
        assert!(refusal(&long).contains("36"));
        let size = refusal("fs:/s,tag=t,queue-size=100");
        assert!(size.contains("100") && size.contains("1024"), "{size}");
        assert!(refusal("fs:/s,tag=t,queue-size=2048").contains("2048"));
        let queues = refusal("fs:/s,tag=t,queues=0");
        assert!(queues.contains("not 0") && queues.contains("64"), "{queues}");
    }

    #[test]
    fn a_tag_of_the_longest_length_is_taken() {
        let config: VhostUserConfig = format!("fs:/s,tag={}", "x".repeat(36)).parse().unwrap();
        assert_eq!(config.validate(), Ok(()));
    }
}
