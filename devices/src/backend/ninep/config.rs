//! What a share is: plain data that can be written down, and what can be wrong with it. Opens nothing.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::proto::MAX_MSIZE;

/// A directory of the host that a guest may mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// The directory on the host. A symbolic link here is followed, below it none is.
    pub path: PathBuf,
    /// The name that the guest mounts it by.
    pub tag: String,
    /// Every request that would change something is answered with EROFS.
    #[serde(default)]
    pub readonly: bool,
    /// How owners, modes and special files of the guest are kept on the host.
    #[serde(default)]
    pub security: SecurityModel,
    /// Report every file as owned by uid 0 and gid 0, and let chown and chmod of what the host's user does not own succeed
    /// without effect, as the QEMU of nixpkgs' tests does. `None`: on for [`SecurityModel::None`], off for all others.
    #[serde(default)]
    pub squash_to_root: Option<bool>,
    /// Whether names that end in `~nix~case~hack~N` are presented under the name that Nix meant.
    #[serde(default)]
    pub case_hack: CaseHack,
    /// What to do about other file systems that are mounted below [`path`](Self::path).
    #[serde(default)]
    pub multidevs: Multidevs,
    /// How a path is turned into a directory descriptor.
    #[serde(default)]
    pub resolution: Resolution,
    /// What a client may use up.
    #[serde(default)]
    pub limits: Limits,
}

impl ShareConfig {
    /// A writable share of `path` named `tag`, with security model `none` and everything else as it is by default.
    pub fn new(path: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            tag: tag.into(),
            readonly: false,
            security: SecurityModel::default(),
            squash_to_root: None,
            case_hack: CaseHack::default(),
            multidevs: Multidevs::default(),
            resolution: Resolution::default(),
            limits: Limits::default(),
        }
    }

    /// [`squash_to_root`](Self::squash_to_root) with its default filled in.
    pub fn squashes_to_root(&self) -> bool {
        self.squash_to_root.unwrap_or(self.security == SecurityModel::None)
    }
}

/// How the owner, mode and type that a guest gives a file are kept on the host. The names and the formats are QEMU's, so
/// a directory may be used by either in turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityModel {
    /// As the host's, with the rights of the user that runs this program; an owner that cannot be set is ignored.
    #[default]
    None,
    /// As the host's; failing to set an owner fails the request. Needs root.
    Passthrough,
    /// In extended attributes `user.virtfs.{uid,gid,mode,rdev}`; symbolic links and special files are regular files.
    MappedXattr,
    /// In files below `.virtfs_metadata` in each directory, which the guest does not see.
    MappedFile,
}

impl SecurityModel {
    /// Whether attributes are kept beside the file instead of in its inode.
    pub(super) fn is_mapped(self) -> bool {
        matches!(self, Self::MappedXattr | Self::MappedFile)
    }
}

/// An option's value that is none of those it can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} cannot be '{value}': use {expected}")]
pub struct ParseOptionError {
    option: &'static str,
    value: String,
    expected: &'static str,
}

impl FromStr for SecurityModel {
    type Err = ParseOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "passthrough" => Ok(Self::Passthrough),
            "mapped" | "mapped-xattr" => Ok(Self::MappedXattr),
            "mapped-file" => Ok(Self::MappedFile),
            other => Err(ParseOptionError {
                option: "the security model",
                value: other.to_owned(),
                expected: "none, passthrough, mapped-xattr or mapped-file",
            }),
        }
    }
}

impl fmt::Display for SecurityModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Passthrough => "passthrough",
            Self::MappedXattr => "mapped-xattr",
            Self::MappedFile => "mapped-file",
        })
    }
}

/// Whether the names that Nix gives to files that differ only in case are undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaseHack {
    /// On if the host is macOS, where Nix makes such names, and off elsewhere.
    #[default]
    Auto,
    /// Present `Foo~nix~case~hack~1` as `Foo`.
    On,
    /// Present every name as it is.
    Off,
}

/// What to do about file systems mounted below the root of a share, whose inode numbers may collide with its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Multidevs {
    /// Mix the device into the inode numbers that the guest sees.
    #[default]
    Remap,
    /// The same, and say so in the log once.
    Warn,
    /// Answer ENODEV to whatever is not on the root's own file system.
    Forbid,
}

impl FromStr for Multidevs {
    type Err = ParseOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "remap" => Ok(Self::Remap),
            "warn" => Ok(Self::Warn),
            "forbid" => Ok(Self::Forbid),
            other => Err(ParseOptionError {
                option: "multidevs",
                value: other.to_owned(),
                expected: "remap, warn or forbid",
            }),
        }
    }
}

/// How the path of a directory within the share is turned into a descriptor. Neither leaves the share or follows a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// One call for the whole path where the host has such a call (Linux: openat2), else [`Components`](Self::Components).
    #[default]
    Auto,
    /// One `openat` with `O_NOFOLLOW` for each component.
    Components,
}

/// What clients of a share may use up. Whatever goes beyond is answered with an error, never with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest msize in bytes that is agreed to; at most [`MAX_MSIZE`].
    pub msize: u32,
    /// Fids of one session.
    pub fids: u32,
    /// Fids of one session that hold a descriptor, that is, opened files and directories.
    pub open_files: u32,
    /// Names that a share keeps, those of fids and of the directories above them.
    pub nodes: u32,
    /// Descriptors of directories that a share keeps to answer faster.
    pub directories: u32,
    /// Bytes of extended attribute values that the fids of one session hold.
    pub xattr_bytes: u32,
    /// Bytes of directory listings that the fids of one session hold: a name of 30 bytes takes 48.
    pub listing_bytes: u32,
    /// Ranges that one session may have locked.
    pub locks: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            msize: MAX_MSIZE,
            fids: 65_536,
            open_files: 16_384,
            nodes: 262_144,
            directories: 256,
            xattr_bytes: 4 << 20,
            listing_bytes: 256 << 20,
            locks: 8192,
        }
    }
}

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Nothing is at the path.
    #[error("cannot share {path} as '{tag}': it does not exist; create the directory first", path = path.display())]
    NotFound {
        /// The path asked for.
        path: PathBuf,
        /// The share's tag.
        tag: String,
    },
    /// Something else than a directory is at the path.
    #[error("cannot share {path} as '{tag}': it is not a directory; share the directory that holds it", path = path.display())]
    NotADirectory {
        /// The path asked for.
        path: PathBuf,
        /// The share's tag.
        tag: String,
    },
    /// This user may not read and enter the directory.
    #[error(
        "cannot share {path} as '{tag}': permission denied; the user that runs hvrun must be able to read and enter it",
        path = path.display()
    )]
    PermissionDenied {
        /// The path asked for.
        path: PathBuf,
        /// The share's tag.
        tag: String,
    },
    /// A tag that no guest could mount.
    #[error("the tag '{tag}' of share {path} is {length} bytes long; use 1 to {max}", path = path.display(), length = tag.len(), max = ShareConfig::MAX_TAG)]
    Tag {
        /// The path asked for.
        path: PathBuf,
        /// The share's tag.
        tag: String,
    },
    /// A path with a zero byte, which no host can open.
    #[error("cannot share {path:?} as '{tag}': a path cannot contain a zero byte")]
    ZeroByte {
        /// The path asked for.
        path: PathBuf,
        /// The share's tag.
        tag: String,
    },
    /// The file system cannot keep what the security model needs.
    #[error(
        "cannot share {path} with security model mapped-xattr: its file system keeps no user extended attributes; use mapped-file",
        path = path.display()
    )]
    NoXattrs {
        /// The path asked for.
        path: PathBuf,
    },
    /// Anything else that the host said.
    #[error("cannot share {path} as '{tag}'", path = path.display())]
    Open {
        /// The path asked for.
        path: PathBuf,
        /// The share's tag.
        tag: String,
        /// What the host said.
        source: io::Error,
    },
}

impl ShareConfig {
    /// Longest tag in bytes. Linux shows it in `/sys`, in a page, and QEMU has the same limit (`MAX_TAG_LEN`).
    pub const MAX_TAG: usize = 31;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_models_are_parsed_by_the_names_of_qemu() {
        let names = ["none", "passthrough", "mapped-xattr", "mapped", "mapped-file"];
        let parsed: Vec<_> = names.iter().map(|name| name.parse::<SecurityModel>()).collect();
        use SecurityModel::{MappedFile, MappedXattr, None, Passthrough};
        assert_eq!(parsed, [Ok(None), Ok(Passthrough), Ok(MappedXattr), Ok(MappedXattr), Ok(MappedFile)]);
    }

    #[test]
    fn an_unknown_security_model_is_refused_with_those_that_exist() {
        let error = "squash".parse::<SecurityModel>().map_err(|e| e.to_string());
        let expected =
            "the security model cannot be 'squash': use none, passthrough, mapped-xattr or mapped-file";
        assert_eq!(error, Err(expected.to_owned()));
    }

    #[test]
    fn a_share_of_path_and_tag_alone_is_complete() {
        let config: Result<ShareConfig, _> = serde_json::from_str(r#"{"path": "/srv", "tag": "srv"}"#);
        assert_eq!(config.ok(), Some(ShareConfig::new("/srv", "srv")));
    }

    #[test]
    fn only_security_model_none_squashes_owners_by_default() {
        let mut config = ShareConfig::new("/srv", "srv");
        let none = config.squashes_to_root();
        config.security = SecurityModel::MappedXattr;
        assert_eq!((none, config.squashes_to_root()), (true, false));
    }
}
