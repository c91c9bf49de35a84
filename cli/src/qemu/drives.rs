//! Disk images: `-drive`, `-hda` and its like, `-cdrom`. Which guest's disk an image becomes is decided in `devices`.

use std::collections::HashSet;

use hvrun_vmm::disk::{CacheMode, DiskConfig, ErrorPolicy};
use hvrun_vmm::hotplug::NodeRequest;

use super::command::{Command, Given};
use super::opts::{Opts, Refusal, boolean};
use super::registry::Registry;
use super::table::{Id, NO_FIRMWARE};

/// What makes a disk of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interface {
    /// A `-device` that names it.
    None,
    /// Itself: a virtio disk.
    Virtio,
}

/// An image.
#[derive(Debug, Clone)]
pub struct Drive {
    pub interface: Interface,
    pub disk: DiskConfig,
}

/// Where an image is in its interface: QEMU's index, or the first that is free.
#[derive(Debug, Default)]
struct Places(HashSet<(Interface, u64)>);

impl Places {
    fn take(&mut self, opts: &Opts, interface: Interface, index: Option<u64>) -> Result<u64, Refusal> {
        let free = || (0..).find(|index| !self.0.contains(&(interface, *index)));
        let index = index.or_else(free).unwrap_or(u64::MAX);
        if !self.0.insert((interface, index)) {
            return Err(opts.refuse(format_args!("another drive has index={index} already; choose another")));
        }
        Ok(index)
    }
}

/// Reads all images, in their order.
pub fn read(command: &Command) -> Result<Registry<Drive>, Refusal> {
    let mut registry = Registry::new("drive");
    let mut places = Places::default();
    for given in &command.given {
        let (opts, drive, index) = match given.id {
            Id::Drive => drive(given.opts()?)?,
            Id::Image | Id::Cdrom => image(given)?,
            _ => continue,
        };
        let mut opts = opts;
        let index = places.take(&opts, drive.interface, index)?;
        // QEMU's own names.
        let default = match drive.interface {
            Interface::None => format!("none{index}"),
            Interface::Virtio => format!("virtio{index}"),
        };
        let id = opts.text("id")?.unwrap_or(default);
        opts.clone().finish()?;
        let mut drive = drive;
        drive.disk.id = Some(id.clone());
        registry.insert(&opts, id, drive)?;
    }
    Ok(registry)
}

/// `-hda FILE` and its like; a `,` is part of the name.
fn image(given: &Given) -> Result<(Opts, Drive, Option<u64>), Refusal> {
    let mut disk = DiskConfig::new(&given.argument);
    disk.readonly = given.id == Id::Cdrom;
    disk.werror = ErrorPolicy::Enospc;
    let index = match given.option.as_str() {
        "-hdb" => 1,
        "-hdc" | "-cdrom" => 2,
        "-hdd" => 3,
        _ => 0,
    };
    let mut opts = Opts::parse(&given.option, &given.argument.replace(',', ",,"), Some("file"))?;
    opts.text("file")?;
    if disk.path.as_os_str().is_empty() {
        return Err(opts.refuse("the file's name is empty"));
    }
    Ok((opts, Drive { interface: Interface::Virtio, disk }, Some(index)))
}

/// An image that a monitor adds, and its name.
pub fn added(mut opts: Opts) -> Result<(String, DiskConfig), Refusal> {
    let id = opts.needed("id")?;
    let (opts, drive, _) = drive(opts)?;
    if drive.interface != Interface::None {
        return Err(opts.refuse("a drive of a running machine needs if=none; device_add makes a disk of it"));
    }
    opts.finish()?;
    Ok((id, drive.disk))
}

/// An image as `blockdev-add` describes it.
pub fn node(mut opts: Opts) -> Result<NodeRequest, Refusal> {
    let name = opts.needed("node-name")?;
    let driver = opts.needed("driver")?;
    let readonly = opts.switch("read-only")?;
    let automatic = opts.switch("auto-read-only")?;
    let (direct, no_flush) = (opts.switch("cache.direct")?, opts.switch("cache.no-flush")?);
    let is_file = driver == "file" || driver == "host_device";
    let mut over = None;
    let mut disk = if is_file {
        DiskConfig::new(opts.needed("filename")?)
    } else {
        let format = driver.parse().map_err(|_| {
            opts.refuse(format_args!(
                "Parameter 'driver' does not accept value '{driver}'; it can be raw, qcow2 or file"
            ))
        })?;
        over = opts.text("file")?;
        let name = opts.text("file.filename")?;
        opts.only("file.driver", &["file", "host_device"])?;
        let path = match (&over, name) {
            (None, Some(name)) if !name.is_empty() => name,
            (Some(_), None) => String::new(),
            _ => return Err(opts.refuse("Parameter 'file' is missing: a node-name, or file.filename=...")),
        };
        DiskConfig { format: Some(format), ..DiskConfig::new(path) }
    };
    for key in ["locking", "file.locking"] {
        match opts.text(key)?.as_deref() {
            None | Some("auto") => {}
            Some(text) => disk.lock = boolean(text).unwrap_or(true),
        }
    }
    disk.readonly = readonly.unwrap_or(false);
    disk.cache = match (direct, no_flush) {
        (_, Some(true)) => CacheMode::Unsafe,
        (Some(true), _) => CacheMode::None,
        _ => CacheMode::Writeback,
    };
    if let Some(discard) = opts.text("discard")? {
        disk.discard = matches!(discard.as_str(), "unmap" | "on");
    }
    if automatic == Some(true) {
        log::debug!("{}: auto-read-only makes no difference here", opts.source());
    }
    opts.without_effect(&[
        "aio",
        "detect-zeroes",
        "file.aio",
        "file.node-name",
        "file.auto-read-only",
        "file.read-only",
        "file.discard",
        "file.cache.direct",
        "file.cache.no-flush",
    ]);
    opts.finish()?;
    Ok(NodeRequest { name, disk, over, is_file })
}

fn drive(mut opts: Opts) -> Result<(Opts, Drive, Option<u64>), Refusal> {
    let interface = match opts.text("if")?.as_deref() {
        Some("none") => Interface::None,
        // What this machine has if nothing is said.
        Some("virtio") | None => Interface::Virtio,
        Some("pflash") => return Err(opts.refuse(format_args!("if=pflash: {NO_FIRMWARE}"))),
        Some(other @ ("ide" | "scsi" | "sd" | "mtd" | "floppy" | "xen")) => {
            return Err(opts.refuse(format_args!("this machine has no disks of if={other}; use if=virtio")));
        }
        Some(other) => return Err(opts.refuse(format_args!("if={other}: it can be none or virtio"))),
    };
    let index = place(&mut opts)?;
    let cdrom = match opts.text("media")?.as_deref() {
        None | Some("disk") => false,
        Some("cdrom") => true,
        Some(other) => return Err(opts.refuse(format_args!("media={other}: it can be disk or cdrom"))),
    };
    let mut disk = file(&mut opts)?;
    let readonly = opts.switch("readonly")?;
    disk.readonly = opts.switch("read-only")?.or(readonly).unwrap_or(cdrom);
    tune(&mut opts, &mut disk)?;
    Ok((opts, Drive { interface, disk }, index))
}

/// `index`, or what amounts to it.
fn place(opts: &mut Opts) -> Result<Option<u64>, Refusal> {
    let (index, bus, unit) = (opts.number("index")?, opts.number("bus")?, opts.number("unit")?);
    match (index, bus, unit) {
        (Some(_), None, None) | (None, None | Some(0), _) => Ok(index.or(unit)),
        (Some(_), _, _) => Err(opts.refuse("index= says what bus= and unit= say; use one of the two")),
        (None, Some(bus), _) => Err(opts.refuse(format_args!("bus={bus}: there is one bus, 0"))),
    }
}

/// The image's name and format, under all the names that they have.
fn file(opts: &mut Opts) -> Result<DiskConfig, Refusal> {
    let plain = opts.text("file")?;
    let name = opts.text("file.filename")?.or(plain).filter(|name| !name.is_empty());
    let Some(name) = name else { return Err(opts.refuse("file=... is missing: a drive needs an image")) };
    let name = name.strip_prefix("file:").unwrap_or(&name);
    if let Some((protocol, _)) = name.split_once("://") {
        return Err(
            opts.refuse(format_args!("images over {protocol}: are not there; use a file of this host"))
        );
    }
    if let Some((protocol, _)) =
        name.split_once(':').filter(|(name, _)| ["nbd", "rbd", "json", "fat", "blkdebug"].contains(name))
    {
        return Err(
            opts.refuse(format_args!("images over {protocol}: are not there; use a file of this host"))
        );
    }
    let mut disk = DiskConfig::new(name);
    opts.only("file.driver", &["file", "host_device"])?;
    let driver = opts.value("driver")?;
    disk.format = opts.value("format")?.or(driver);
    match opts.text("file.locking")?.as_deref() {
        None | Some("auto") => {}
        Some(text) => match boolean(text) {
            Some(on) => disk.lock = on,
            None => return Err(opts.refuse(format_args!("file.locking={text}: it can be on, off or auto"))),
        },
    }
    Ok(disk)
}

/// Everything else that can be said about an image.
fn tune(opts: &mut Opts, disk: &mut DiskConfig) -> Result<(), Refusal> {
    disk.cache = opts.value("cache")?.unwrap_or_default();
    // QEMU's defaults.
    disk.werror = opts.value("werror")?.unwrap_or(ErrorPolicy::Enospc);
    disk.rerror = opts.value("rerror")?.unwrap_or(ErrorPolicy::Report);
    disk.serial = opts.text("serial")?.filter(|serial| !serial.is_empty());
    match opts.text("discard")?.as_deref() {
        None => {}
        Some("unmap" | "on") => disk.discard = true,
        Some("ignore" | "off") => disk.discard = false,
        Some(other) => return Err(opts.refuse(format_args!("discard={other}: it can be unmap or ignore"))),
    }
    if opts.switch("snapshot")? == Some(true) {
        return Err(opts.refuse(
            "snapshot=on is not supported; make an overlay with 'qemu-img create -f qcow2 -b IMAGE -F FORMAT OVERLAY'",
        ));
    }
    opts.only("aio", &["threads", "native", "io_uring"])?;
    opts.only("detect-zeroes", &["off", "on", "unmap"])?;
    opts.only("copy-on-read", &["off"])?;
    opts.only("file.aio", &["threads", "native", "io_uring"])?;
    Ok(())
}
