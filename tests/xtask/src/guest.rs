//! The guest of the demo, the tests and the benchmarks: Debian's arm64 kernel and busybox, fetched once into `target/guest` through the
//! machine's own apt, and the initrd around them. It installs nothing and changes nothing outside `target/`.

use crate::apt::{self, Apt};
use crate::{initrd, modules, systemd, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A local kernel to use instead of Debian's.
pub const KERNEL_VAR: &str = "HVRUN_GUEST_KERNEL";
/// The `lib/modules/VERSION` of the kernel that [`KERNEL_VAR`] names.
pub const MODULES_VAR: &str = "HVRUN_GUEST_MODULES";
/// A local static arm64 busybox to use instead of Debian's.
pub const BUSYBOX_VAR: &str = "HVRUN_GUEST_BUSYBOX";

/// Debian's name for "the newest generic arm64 kernel", which depends on the real package.
const KERNEL_META_PACKAGE: &str = "linux-image-arm64";
const KERNEL_PACKAGE_PREFIX: &str = "linux-image-";
const BUSYBOX_PACKAGE: &str = "busybox-static";
/// Changes when what is kept in the folder changes, so that older folders are filled anew.
const STAMP_VERSION: &str = "guest 4";

/// What a machine is started with.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel as Debian ships it.
    pub kernel: PathBuf,
    /// The initrd built by this program.
    pub initrd: PathBuf,
    /// The same with the kernel's modules, for guests with virtio devices; not there for a local kernel without [`MODULES_VAR`].
    pub virtio_initrd: Option<PathBuf>,
}

impl Guest {
    /// The initrd with modules, or what to do to have one.
    pub fn with_modules(&self) -> Result<&Path> {
        let advice =
            || format!("{KERNEL_VAR} is set without {MODULES_VAR}, the lib/modules/VERSION of that kernel");
        self.virtio_initrd.as_deref().with_context(advice)
    }
}

/// Where the guest lies.
pub fn dir() -> PathBuf {
    workspace::root().join("target/guest")
}

/// Where the guest kernel's module of this name is, if it has it as a file and [`ensure`] has been called.
pub fn module(name: &str) -> PathBuf {
    dir().join("modules").join(name).with_extension("ko")
}

/// Makes sure that the guest is there, and returns it. Uses the network only the first time.
pub fn ensure() -> Result<Guest> {
    let dir = dir();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let kernel = dir.join("vmlinuz");
    let busybox = dir.join("busybox");
    let modules_dir = dir.join("modules");
    let stamp = dir.join("stamp");

    let local_kernel = std::env::var_os(KERNEL_VAR);
    let local_busybox = std::env::var_os(BUSYBOX_VAR);
    let cached = kernel.is_file()
        && busybox.is_file()
        && fs::read_to_string(&stamp).is_ok_and(|text| text.lines().next() == Some(STAMP_VERSION));
    if local_kernel.is_some() || local_busybox.is_some() || !cached {
        let (kernel_source, kernel_name) = match &local_kernel {
            Some(path) => (Source::Local(path.into()), path.to_string_lossy().into_owned()),
            None => (Source::Debian, String::new()),
        };
        let (busybox_source, busybox_name) = match &local_busybox {
            Some(path) => (Source::Local(path.into()), path.to_string_lossy().into_owned()),
            None => (Source::Debian, String::new()),
        };
        // Without the stamp, a run that is interrupted here starts over.
        remove_if_there(&stamp)?;
        let mut apt = None;
        let kernel_name = match kernel_source {
            Source::Local(path) => {
                copy_local(KERNEL_VAR, &path, &kernel)?;
                match std::env::var_os(MODULES_VAR) {
                    Some(from) => modules::collect(Path::new(&from), &modules_dir)?,
                    None => modules::remove(&modules_dir)?,
                }
                kernel_name
            }
            Source::Debian => prepared(&mut apt, &dir)
                .and_then(|apt| fetch_kernel(apt, &kernel, &modules_dir))
                .map_err(advise)?,
        };
        let busybox_name = match busybox_source {
            Source::Local(path) => copy_local(BUSYBOX_VAR, &path, &busybox).map(|()| busybox_name)?,
            Source::Debian => {
                prepared(&mut apt, &dir).and_then(|apt| fetch_busybox(apt, &busybox)).map_err(advise)?
            }
        };
        write_atomically(
            &stamp,
            format!("{STAMP_VERSION}\nkernel {kernel_name}\nbusybox {busybox_name}\n").as_bytes(),
        )?;
    }

    // Cheap, and the scripts in it may have changed.
    let initrd = dir.join("initrd.cpio");
    let mut bytes = initrd::build(&busybox)?;
    write_if_changed(&initrd, &bytes)?;
    let with_modules = dir.join("initrd-virtio.cpio");
    let virtio_initrd = if modules_dir.is_dir() {
        bytes.extend(modules::archive(&modules_dir)?);
        write_if_changed(&with_modules, &bytes)?;
        Some(with_modules)
    } else {
        remove_if_there(&with_modules)?;
        None
    };
    Ok(Guest { kernel, initrd, virtio_initrd })
}

/// `cargo xtask guest`.
pub fn command() -> Result<()> {
    let guest = ensure()?;
    print!("{}", fs::read_to_string(dir().join("stamp"))?);
    println!("{}\n{}", guest.kernel.display(), guest.initrd.display());
    if let Some(path) = &guest.virtio_initrd {
        println!("{}", path.display());
        let systemd = systemd::ensure(&guest)?;
        println!("{}\n{}", systemd.initrd.display(), systemd.store.display());
    }
    Ok(())
}

enum Source {
    Local(PathBuf),
    Debian,
}

fn copy_local(variable: &str, from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| {
        format!("cannot read {}, which the environment variable {variable} names", from.display())
    })?;
    write_atomically(to, &bytes)
}

/// The apt of this run, prepared (and its lists updated) at the first call.
fn prepared<'a>(slot: &'a mut Option<Apt>, dir: &Path) -> Result<&'a Apt> {
    if slot.is_none() {
        *slot = Some(Apt::prepare(&dir.join("apt"), "arm64")?);
    }
    slot.as_ref().context("apt was not prepared")
}

fn fetch_kernel(apt: &Apt, to: &Path, modules_dir: &Path) -> Result<String> {
    // Such as `linux-image-6.1.0-40-arm64`.
    let package = apt.first_dependency(KERNEL_META_PACKAGE, KERNEL_PACKAGE_PREFIX)?;
    let deb = apt.download(&package)?;
    let version = package.strip_prefix(KERNEL_PACKAGE_PREFIX).unwrap_or(&package);
    write_atomically(to, &apt::read_member(&deb, &format!("./boot/vmlinuz-{version}"))?)?;
    let unpacked = tempfile::tempdir_in(dir())?;
    apt::unpack(&deb, unpacked.path())?;
    // Debian moved them from /lib to /usr/lib when it merged the two.
    let homes = ["lib/modules", "usr/lib/modules"].map(|home| unpacked.path().join(home).join(version));
    let home = homes.iter().find(|home| home.is_dir()).context("the kernel's package has no modules")?;
    modules::collect(home, modules_dir)?;
    Ok(package_file_name(&deb))
}

fn fetch_busybox(apt: &Apt, to: &Path) -> Result<String> {
    let deb = apt.download(BUSYBOX_PACKAGE)?;
    // Debian moved it from /bin to /usr/bin when it merged the two.
    let bytes =
        apt::read_member(&deb, "./bin/busybox").or_else(|_| apt::read_member(&deb, "./usr/bin/busybox"))?;
    write_atomically(to, &bytes)?;
    Ok(package_file_name(&deb))
}

fn package_file_name(deb: &Path) -> String {
    deb.file_stem().map(|name| name.to_string_lossy().replace("%3a", ":")).unwrap_or_default()
}

/// Says what to do where the packages cannot be had.
fn advise(error: anyhow::Error) -> anyhow::Error {
    error.context(format!(
        "the guest's kernel and busybox come from Debian's arm64 packages, through the apt of a Debian machine with its sources \
         configured.\nWithout that, set {KERNEL_VAR} to an arm64 Linux kernel (Image, or a distribution's vmlinuz) and {BUSYBOX_VAR} to a \
         static arm64 busybox, and run this again"
    ))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file, unless it is that already.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        write_atomically(path, bytes)?;
    }
    Ok(())
}

/// Writes a file so that nobody ever sees half of it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension(format!("part{}", std::process::id()));
    fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
}
