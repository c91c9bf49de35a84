//! The guest of the demo, the tests and the benchmarks: Debian's arm64 kernel and busybox, fetched once into `target/guest` through the
//! machine's own apt, and the initrd around them. It installs nothing and changes nothing outside `target/`.

use crate::{initrd, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A local kernel to use instead of Debian's.
pub const KERNEL_VAR: &str = "HVRUN_GUEST_KERNEL";
/// A local static arm64 busybox to use instead of Debian's.
pub const BUSYBOX_VAR: &str = "HVRUN_GUEST_BUSYBOX";

/// Debian's name for "the newest generic arm64 kernel", which depends on the real package.
const KERNEL_META_PACKAGE: &str = "linux-image-arm64";
const BUSYBOX_PACKAGE: &str = "busybox-static";
/// Changes when what is kept in the folder changes, so that older folders are filled anew.
const STAMP_VERSION: &str = "guest 1";

/// What a machine is started with.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel as Debian ships it.
    pub kernel: PathBuf,
    /// The initrd built by this program.
    pub initrd: PathBuf,
}

/// Where the guest lies.
pub fn dir() -> PathBuf {
    workspace::root().join("target/guest")
}

/// Makes sure that the guest is there, and returns it. Uses the network only the first time.
pub fn ensure() -> Result<Guest> {
    let dir = dir();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let kernel = dir.join("vmlinuz");
    let busybox = dir.join("busybox");
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
            Source::Local(path) => copy_local(KERNEL_VAR, &path, &kernel).map(|()| kernel_name)?,
            Source::Debian => fetch_kernel(Apt::get(&mut apt, &dir)?, &kernel)?,
        };
        let busybox_name = match busybox_source {
            Source::Local(path) => copy_local(BUSYBOX_VAR, &path, &busybox).map(|()| busybox_name)?,
            Source::Debian => fetch_busybox(Apt::get(&mut apt, &dir)?, &busybox)?,
        };
        write_atomically(
            &stamp,
            format!("{STAMP_VERSION}\nkernel {kernel_name}\nbusybox {busybox_name}\n").as_bytes(),
        )?;
    }

    // Cheap, and the scripts in it may have changed.
    let path = dir.join("initrd.cpio");
    let bytes = initrd::build(&busybox)?;
    if fs::read(&path).ok().as_deref() != Some(&bytes[..]) {
        write_atomically(&path, &bytes)?;
    }
    Ok(Guest { kernel, initrd: path })
}

/// `cargo xtask guest`.
pub fn command() -> Result<()> {
    let guest = ensure()?;
    print!("{}", fs::read_to_string(dir().join("stamp"))?);
    println!("{}\n{}", guest.kernel.display(), guest.initrd.display());
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

fn fetch_kernel(apt: &Apt, to: &Path) -> Result<String> {
    let package = apt.real_kernel_package()?;
    let deb = apt.download(&package)?;
    let version = package.strip_prefix("linux-image-").unwrap_or(&package);
    apt.extract(&deb, &format!("./boot/vmlinuz-{version}"), to)?;
    Ok(package_file_name(&deb))
}

fn fetch_busybox(apt: &Apt, to: &Path) -> Result<String> {
    let deb = apt.download(BUSYBOX_PACKAGE)?;
    // Debian moved it from /bin to /usr/bin when it merged the two.
    apt.extract(&deb, "./bin/busybox", to).or_else(|_| apt.extract(&deb, "./usr/bin/busybox", to))?;
    Ok(package_file_name(&deb))
}

fn package_file_name(deb: &Path) -> String {
    deb.file_stem().map(|name| name.to_string_lossy().replace("%3a", ":")).unwrap_or_default()
}

/// apt for arm64 with private folders: it reads the machine's sources, keys and proxies, and writes nothing outside `dir`.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// The apt of this run, prepared (and its lists updated) at the first call.
    fn get<'a>(slot: &'a mut Option<Apt>, dir: &Path) -> Result<&'a Apt> {
        if slot.is_none() {
            *slot = Some(Apt::prepare(dir)?);
        }
        slot.as_ref().context("apt was not prepared")
    }

    fn prepare(guest_dir: &Path) -> Result<Apt> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            ensure!(workspace::has_tool(tool), "{}", no_apt(&format!("'{tool}' is not installed here")));
        }
        let dir = guest_dir.join("apt");
        for sub in ["state/lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("state/status"), "")?;
        let apt = Apt { dir };
        eprintln!("fetching the list of Debian's arm64 packages");
        apt.run("apt-get", &["-qq", "update"])
            .map_err(|error| error.context(no_apt("apt could not update its lists of packages")))?;
        Ok(apt)
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        let path = |sub: &str| self.dir.join(sub).into_os_string();
        let mut option = |name: &str, value: OsString| {
            let mut word = OsString::from(format!("-o{name}="));
            word.push(value);
            command.arg(word);
        };
        option("APT::Architecture", "arm64".into());
        option("APT::Architectures", "arm64".into());
        option("Dir::State", path("state"));
        option("Dir::State::Lists", path("state/lists"));
        option("Dir::State::status", path("state/status"));
        option("Dir::Cache", path("cache"));
        option("Acquire::Languages", "none".into());
        option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".into());
        if rustix::process::geteuid().is_root() {
            // As root, apt downloads as the user _apt, who may not write into the checkout.
            option("APT::Sandbox::User", "root".into());
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn run(&self, tool: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command(tool);
        command.args(args).current_dir(self.dir.join("debs"));
        let output = command.output().with_context(|| format!("cannot run {tool}"))?;
        ensure!(
            output.status.success(),
            "{tool} {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What the meta-package stands for at the moment, such as `linux-image-6.1.0-40-arm64`.
    fn real_kernel_package(&self) -> Result<String> {
        let text = self.run("apt-cache", &["depends", KERNEL_META_PACKAGE])?;
        match text.lines().filter_map(|line| line.trim().strip_prefix("Depends: linux-image-")).next() {
            Some(rest) => Ok(format!("linux-image-{rest}")),
            None => bail!(
                "{}",
                no_apt(&format!("no configured source of packages has {KERNEL_META_PACKAGE} for arm64"))
            ),
        }
    }

    /// Downloads `package` and returns the file.
    fn download(&self, package: &str) -> Result<PathBuf> {
        eprintln!("downloading {package} for arm64");
        let debs = self.dir.join("debs");
        for old in deb_files(&debs, package)? {
            remove_if_there(&old)?;
        }
        self.run("apt-get", &["-qq", "download", package])
            .map_err(|error| error.context(no_apt(&format!("apt could not download {package}"))))?;
        deb_files(&debs, package)?.pop().with_context(|| format!("apt-get download {package} left no file"))
    }

    /// Takes one file out of a package.
    fn extract(&self, deb: &Path, member: &str, to: &Path) -> Result<()> {
        let mut unpack = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(deb)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run dpkg-deb")?;
        let stream = unpack.stdout.take().context("dpkg-deb has no output")?;
        let output = Command::new("tar")
            .args(["--extract", "--to-stdout", "--file=-", member])
            .stdin(stream)
            .output()
            .context("cannot run tar")?;
        unpack.wait()?;
        ensure!(
            output.status.success() && !output.stdout.is_empty(),
            "{} has no {member}: {}",
            deb.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        write_atomically(to, &output.stdout)
    }
}

fn deb_files(debs: &Path, package: &str) -> Result<Vec<PathBuf>> {
    let prefix = format!("{package}_");
    let mut found = Vec::new();
    for entry in fs::read_dir(debs)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn no_apt(what: &str) -> String {
    format!(
        "{what}.\nThe guest's kernel and busybox come from Debian's arm64 packages, through the apt of a Debian machine with its sources \
         configured.\nWithout that, set {KERNEL_VAR} to an arm64 Linux kernel (Image, or a distribution's vmlinuz) and {BUSYBOX_VAR} to a \
         static arm64 busybox, and run this again"
    )
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file so that nobody ever sees half of it.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension(format!("part{}", std::process::id()));
    fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
}
