//! What the user says about a disk: plain data, and the option string it is parsed from. It opens nothing.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::options::{OptionError, OptionList};

/// The longest serial number a virtio disk shows (VIRTIO_BLK_ID_BYTES, virtio 1.2, 5.2.6).
pub const MAX_SERIAL: usize = 20;
/// The most queues a disk has.
pub const MAX_QUEUES: u16 = 16;

/// How the bytes of an image are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
}

/// What stands between a guest's write and the host's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// The host's page cache; a flush of the guest reaches the storage.
    #[default]
    Writeback,
    /// No page cache (O_DIRECT, on macOS F_NOCACHE); a flush of the guest reaches the storage.
    None,
    /// The host's page cache, and flushes end there: fast, and lost when the host loses power.
    Unsafe,
}

/// What becomes of a guest's request that the host cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorPolicy {
    /// The guest sees an I/O error.
    #[default]
    Report,
    /// The guest sees nothing: the request succeeds. What was to be read is zeros.
    Ignore,
    /// [`ErrorPolicy::Stop`] where the host has no space left, [`ErrorPolicy::Report`] otherwise.
    Enospc,
    /// The machine is paused. When it is resumed, the request is tried again.
    Stop,
}

impl ErrorPolicy {
    /// What becomes of a request that met `error`.
    pub fn action(self, error: &io::Error) -> ErrorAction {
        match self {
            ErrorPolicy::Report => ErrorAction::Report,
            ErrorPolicy::Ignore => ErrorAction::Ignore,
            ErrorPolicy::Stop => ErrorAction::Stop,
            ErrorPolicy::Enospc if error.kind() == io::ErrorKind::StorageFull => ErrorAction::Stop,
            ErrorPolicy::Enospc => ErrorAction::Report,
        }
    }
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorAction {
    /// The guest sees an I/O error.
    Report,
    /// The guest sees nothing.
    Ignore,
    /// The machine is paused.
    Stop,
}

/// What makes a flush last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// What the host calls a sync: `fdatasync` on Linux; `fsync` on macOS, which leaves the drive's own cache alone.
    #[default]
    Fsync,
    /// Down to the medium: F_FULLFSYNC on macOS, some hundred times slower; elsewhere no difference.
    Full,
}

/// A disk: the value of `--disk`. The same value always describes the same disk; nothing in it is open.
///
/// Its text form is a path and `key=value` pairs with commas between them, `,,` being a comma within a value:
///
/// ```
/// use hvrun_devices::backend::disk::{CacheMode, DiskConfig};
///
/// let disk: DiskConfig = "root.qcow2,serial=root,cache=none,ro".parse().unwrap();
/// assert_eq!(disk.serial.as_deref(), Some("root"));
/// assert_eq!(disk.cache, CacheMode::None);
/// assert!(disk.readonly);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// What monitors call the disk's contents, QEMU's `-drive id=`; if not given, `virtio` and the disk's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What monitors call the device, QEMU's `-device id=`; none if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The image, a file or a block device.
    pub path: PathBuf,
    /// Its format; found out by its first bytes if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// The guest may not write to it.
    #[serde(default)]
    pub readonly: bool,
    /// The serial number the guest sees, at most [`MAX_SERIAL`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// What stands between a guest's write and the host's storage.
    #[serde(default)]
    pub cache: CacheMode,
    /// What becomes of write and flush errors.
    #[serde(default)]
    pub werror: ErrorPolicy,
    /// What becomes of read errors.
    #[serde(default)]
    pub rerror: ErrorPolicy,
    /// What the guest discards is given back to the host.
    #[serde(default = "yes")]
    pub discard: bool,
    /// How many queues the guest may use, 1 to [`MAX_QUEUES`].
    #[serde(default = "one")]
    pub queues: u16,
    /// What makes a flush last.
    #[serde(default)]
    pub sync: SyncMode,
    /// Whether the image is locked against a second writer.
    #[serde(default = "yes")]
    pub lock: bool,
    /// Whether an image may name other files as its backing images.
    #[serde(default = "yes")]
    pub backing: bool,
}

const fn yes() -> bool {
    true
}

const fn one() -> u16 {
    1
}

/// What cannot be said about a disk. Each message names the option, the value and what would work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskConfigError {
    /// The text is not a path and options of a disk.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// No path at all.
    #[error("a disk needs the path of its image")]
    NoPath,
    /// A serial number that the guest could not see all of.
    #[error("serial={0}: it has {len} bytes, and a virtio disk shows at most {MAX_SERIAL}", len = .0.len())]
    Serial(String),
    /// A number of queues that no disk has.
    #[error("queues={0}: a disk has 1 to {MAX_QUEUES} queues")]
    Queues(u16),
}

impl DiskConfig {
    /// The disk at `path`, everything else as it is by default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DiskConfig {
            id: None,
            device: None,
            path: path.into(),
            format: None,
            readonly: false,
            serial: None,
            cache: CacheMode::default(),
            werror: ErrorPolicy::default(),
            rerror: ErrorPolicy::default(),
            discard: true,
            queues: 1,
            sync: SyncMode::default(),
            lock: true,
            backing: true,
        }
    }

    /// Checks what the type cannot: the text form has passed, a value from elsewhere may not have.
    pub fn validate(&self) -> Result<(), DiskConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(DiskConfigError::NoPath);
        }
        match &self.serial {
            Some(serial) if serial.len() > MAX_SERIAL => return Err(DiskConfigError::Serial(serial.clone())),
            _ => {}
        }
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(DiskConfigError::Queues(self.queues));
        }
        Ok(())
    }
}

impl FromStr for DiskConfig {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut options = OptionList::parse(text)?;
        let mut config = DiskConfig::new(options.first("the path of the disk's image")?);
        config.id = options.text("id", "root")?;
        config.format = options.value("format", "qcow2")?;
        // QEMU's name for it, and the short one.
        let readonly = options.switch("readonly")?;
        config.readonly = options.switch("ro")?.or(readonly).unwrap_or(false);
        config.serial = options.text("serial", "root")?;
        config.cache = options.value("cache", "none")?.unwrap_or_default();
        config.werror = options.value("werror", "report")?.unwrap_or_default();
        config.rerror = options.value("rerror", "report")?.unwrap_or_default();
        config.discard = options.value::<Discard>("discard", "on")?.is_none_or(|discard| discard.0);
        config.queues = options.value("queues", "4")?.unwrap_or(1);
        config.sync = options.value("sync", "full")?.unwrap_or_default();
        config.lock = options.switch("lock")?.unwrap_or(true);
        config.backing = options.switch("backing")?.unwrap_or(true);
        options.finish()?;
        config.validate()?;
        Ok(config)
    }
}

/// `discard=unmap` and `discard=ignore` are what QEMU calls on and off.
struct Discard(bool);

/// The value that `text` names in `choices`, or a sentence that says what there is.
fn choose<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<&str> = choices.iter().map(|choice| choice.0).collect();
    let found = choices.iter().find(|choice| choice.0 == text).map(|choice| choice.1);
    found.ok_or_else(|| format!("it can be {}", names.join(", ")))
}

impl FromStr for ImageFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        choose(text, &[("raw", ImageFormat::Raw), ("qcow2", ImageFormat::Qcow2)])
    }
}

impl FromStr for CacheMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use CacheMode::{None, Unsafe, Writeback};
        choose(text, &[("writeback", Writeback), ("none", None), ("unsafe", Unsafe)])
    }
}

impl FromStr for ErrorPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use ErrorPolicy::{Enospc, Ignore, Report, Stop};
        choose(text, &[("report", Report), ("ignore", Ignore), ("enospc", Enospc), ("stop", Stop)])
    }
}

impl FromStr for SyncMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        choose(text, &[("fsync", SyncMode::Fsync), ("full", SyncMode::Full)])
    }
}

impl FromStr for Discard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        choose(text, &[("on", true), ("off", false), ("unmap", true), ("ignore", false)]).map(Discard)
    }
}

impl ImageFormat {
    /// Its name in options.
    pub const fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskConfig, DiskConfigError> {
        text.parse()
    }

    #[test]
    fn a_path_alone_is_a_writable_disk_of_any_format() {
        assert_eq!(parse("root.img"), Ok(DiskConfig::new("root.img")));
    }

    #[test]
    fn every_option_is_taken() {
        let text = "a,id=i,format=raw,ro,serial=s,cache=unsafe,werror=enospc,rerror=ignore,discard=off,queues=4,sync=full,lock=off,backing=off";
        let expected = DiskConfig {
            id: Some("i".into()),
            device: None,
            path: "a".into(),
            format: Some(ImageFormat::Raw),
            readonly: true,
            serial: Some("s".into()),
            cache: CacheMode::Unsafe,
            werror: ErrorPolicy::Enospc,
            rerror: ErrorPolicy::Ignore,
            discard: false,
            queues: 4,
            sync: SyncMode::Full,
            lock: false,
            backing: false,
        };
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn two_commas_are_one_in_a_path() {
        assert_eq!(parse("a,,b,serial=x,,y").map(|d| (d.path, d.serial)), {
            Ok((PathBuf::from("a,b"), Some("x,y".to_owned())))
        });
    }

    #[test]
    fn an_unknown_option_is_answered_with_the_options_there_are() {
        let error = parse("a,seriall=x").unwrap_err().to_string();
        assert!(error.contains("\"seriall\"") && error.contains("serial, cache"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_answered_with_the_values_there_are() {
        let error = parse("a,cache=writethru").unwrap_err().to_string();
        assert_eq!(error, "cache=writethru: it can be writeback, none, unsafe");
    }

    #[test]
    fn an_option_given_twice_is_refused() {
        let error = parse("a,cache=none,cache=unsafe").unwrap_err().to_string();
        assert_eq!(error, "cache is given twice");
    }

    #[test]
    fn a_full_disk_stops_the_machine_under_enospc_and_other_errors_do_not() {
        let action = |kind: io::ErrorKind| ErrorPolicy::Enospc.action(&kind.into());
        assert_eq!(action(io::ErrorKind::StorageFull), ErrorAction::Stop);
        assert_eq!(action(io::ErrorKind::FileTooLarge), ErrorAction::Report);
    }

    #[test]
    fn qemus_words_for_discard_are_understood() {
        assert_eq!(parse("a,discard=ignore").map(|disk| disk.discard), Ok(false));
        assert_eq!(parse("a,discard=unmap").map(|disk| disk.discard), Ok(true));
    }

    #[test]
    fn a_serial_that_is_too_long_is_refused() {
        assert!(matches!(parse("a,serial=123456789012345678901"), Err(DiskConfigError::Serial(_))));
        assert!(parse("a,serial=12345678901234567890").is_ok());
    }

    #[test]
    fn no_queues_and_too_many_queues_are_refused() {
        assert_eq!(parse("a,queues=0"), Err(DiskConfigError::Queues(0)));
        assert_eq!(parse("a,queues=17"), Err(DiskConfigError::Queues(17)));
    }

    #[test]
    fn an_empty_text_is_no_disk() {
        assert_eq!(parse("").unwrap_err().to_string(), "the path of the disk's image is missing");
        assert_eq!(DiskConfig::new("").validate(), Err(DiskConfigError::NoPath));
    }

    #[test]
    fn a_config_survives_being_written_down() {
        let config = parse("a,format=qcow2,serial=s,cache=none").unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<DiskConfig>(&text).unwrap(), config);
    }

    #[test]
    fn a_path_is_all_a_written_config_needs() {
        assert_eq!(serde_json::from_str::<DiskConfig>(r#"{"path":"a"}"#).unwrap(), DiskConfig::new("a"));
    }
}
