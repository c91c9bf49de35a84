//! The guest with systemd, for tests that speak with a machine as the NixOS test driver does: a folder of Debian's arm64 packages that a
//! machine has as its store over 9P, and an initrd whose stage 1 mounts it. What is in the folder besides Debian's files is in
//! `guest/systemd`; who talks with the guest is in `hvrun_tests::driver`.

use crate::apt::Apt;
use crate::guest::{self, Guest};
use crate::{initrd, modules};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What Debian's packages are fetched for; what they depend on comes with them.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "udev",
    "bash",
    "coreutils",
    "grep",
    "util-linux",
    "kmod",
    "iproute2",
    "iputils-ping",
];
/// Changes when what is kept in the folder changes, so that older folders are filled anew.
const STAMP: &str = "systemd 4";
/// What of the packages is left out: what a root disk has of its own, and what nobody reads.
const LEFT_OUT: &[&str] = &[
    "./boot",
    "./dev",
    "./etc",
    "./home",
    "./proc",
    "./root",
    "./run",
    "./sys",
    "./tmp",
    "./var",
    "./usr/share",
    "./usr/games",
    "./usr/include",
    "./usr/lib/systemd/system-generators",
    "./lib/systemd/system-generators",
    "./usr/lib/udev/hwdb.d",
    "./lib/udev/hwdb.d",
];
/// What systemd starts at a boot, of all that Debian's packages want: each further unit takes an interpreted CPU its time.
const WANTED: &[&str] = &[
    "sockets.target.wants/systemd-journald.socket",
    "sockets.target.wants/systemd-journald-dev-log.socket",
    "sockets.target.wants/systemd-udevd-control.socket",
    "sockets.target.wants/systemd-udevd-kernel.socket",
    "sysinit.target.wants/systemd-journald.service",
    "sysinit.target.wants/systemd-udevd.service",
    "sysinit.target.wants/systemd-udev-trigger.service",
];
/// Where systemd's units are.
const UNITS: &str = "usr/lib/systemd/system";
/// What udev does with devices, of all that Debian's packages have it do.
const RULES_KEPT: &[&str] =
    &["50-udev-default.rules", "60-persistent-storage.rules", "80-net-setup-link.rules", "99-systemd.rules"];
/// Where udev's rules are.
const RULES: &str = "usr/lib/udev/rules.d";

/// The initrd's first process.
const STAGE_1: &str = include_str!("../guest/systemd/stage1");

/// A file of ours in the store.
struct Ours {
    path: &'static str,
    mode: u32,
    text: &'static str,
}

const fn script(path: &'static str, text: &'static str) -> Ours {
    Ours { path, mode: 0o755, text }
}

const fn config(path: &'static str, text: &'static str) -> Ours {
    Ours { path, mode: 0o644, text }
}

const OURS: &[Ours] = &[
    script("scripts/backdoor", include_str!("../guest/systemd/backdoor")),
    script("scripts/network", include_str!("../guest/systemd/network")),
    script("scripts/dhcp", initrd::DHCP),
    config("etc/systemd/system/backdoor.service", include_str!("../guest/systemd/backdoor.service")),
    config("etc/systemd/system/network.service", include_str!("../guest/systemd/network.service")),
    config("etc/systemd/journald.conf", include_str!("../guest/systemd/journald.conf")),
    config("etc/systemd/system.conf", "[Manager]\nShowStatus=no\n"),
    // The end of the machine unmounts what it can; before it, a unit for each mount that is in use has only its time.
    config("etc/systemd/system/mount.d/keep.conf", "[Unit]\nDefaultDependencies=no\n"),
    config(
        "etc/systemd/system/systemd-udev-trigger.service.d/few.conf",
        include_str!("../guest/systemd/udev-trigger.conf"),
    ),
    // NixOS renames a VLAN's cards by their addresses, too.
    config(
        "etc/udev/rules.d/10-vlan.rules",
        "SUBSYSTEM==\"net\", ACTION==\"add\", ATTR{address}==\"52:54:00:12:0?:*\", NAME=\"eth1\"\n",
    ),
    config("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    config("etc/hostname", "machine\n"),
    config("etc/hosts", "127.0.0.1 localhost\n"),
    config("etc/os-release", "ID=debian\nNAME=\"Debian GNU/Linux\"\n"),
    config(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    ),
    // The groups that udev's rules name.
    config(
        "etc/group",
        "root:x:0:\ntty:x:5:\ndisk:x:6:\nlp:x:7:\nkmem:x:15:\ndialout:x:20:\ncdrom:x:24:\ntape:x:26:\naudio:x:29:\nvideo:x:44:\n\
         input:x:101:\nsgx:x:102:\nkvm:x:103:\nrender:x:104:\nsystemd-journal:x:105:\nnogroup:x:65534:\n",
    ),
];

/// Units of ours that a boot starts.
const WANTED_OURS: &[&str] = &["backdoor.service", "network.service"];

/// A guest with systemd: what a machine is started with.
#[derive(Debug, Clone)]
pub struct Systemd {
    /// The folder that the machine has as its store.
    pub store: PathBuf,
    /// The initrd with stage 1.
    pub initrd: PathBuf,
}

/// Makes sure that the guest with systemd is there, beside `guest`, whose modules it has. Uses the network only the first time.
pub fn ensure(guest: &Guest) -> Result<Systemd> {
    guest.with_modules()?;
    let dir = guest::dir();
    let store = dir.join("store");
    let stamp = dir.join("store.stamp");
    let cached =
        store.is_dir() && fs::read_to_string(&stamp).is_ok_and(|text| text.lines().next() == Some(STAMP));
    if !cached {
        let packages = fill(&dir, &store).context(
            "the guest with systemd is made of Debian's arm64 packages, through the apt of a Debian machine with its sources configured",
        )?;
        guest::write_atomically(&stamp, format!("{STAMP}\n{}\n", packages.join("\n")).as_bytes())?;
    }
    // Cheap, and our own files may have changed.
    add_ours(&store)?;
    let mut bytes = initrd::build_with(&dir.join("busybox"), STAGE_1)?;
    bytes.extend(modules::archive(&dir.join("modules"))?);
    let initrd = dir.join("initrd-systemd.cpio");
    guest::write_if_changed(&initrd, &bytes)?;
    Ok(Systemd { store, initrd })
}

/// Unpacks the packages into a folder, and returns their names.
fn fill(dir: &Path, store: &Path) -> Result<Vec<String>> {
    let apt = Apt::prepare(&dir.join("apt"), "arm64")?;
    let closure = apt.closure(PACKAGES)?;
    for package in PACKAGES {
        ensure!(closure.iter().any(|name| name == package), "apt does not offer {package} for arm64");
    }
    let names: Vec<&str> = closure.iter().map(String::as_str).collect();
    let debs = apt.download_all(&names)?;

    let part = tempfile::tempdir_in(dir)?;
    let root = part.path();
    for folder in ["bin", "lib", "sbin"] {
        fs::create_dir_all(root.join("usr").join(folder))?;
        // Packages of before Debian merged the two end up in the same folder as later ones.
        symlink(format!("usr/{folder}"), root.join(folder))?;
    }
    for deb in &debs {
        unpack(deb, root)?;
    }
    let busybox = root.join("usr/bin/busybox");
    fs::copy(dir.join("busybox"), &busybox).context("the guest has no busybox")?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
    prune_units(&root.join(UNITS))?;
    prune_rules(&root.join(RULES))?;
    remove_tree(store)?;
    fs::rename(part.keep(), store).with_context(|| format!("cannot create {}", store.display()))?;
    fs::set_permissions(store, fs::Permissions::from_mode(0o755))?;
    Ok(closure)
}

/// Unpacks what the guest needs of a package.
fn unpack(deb: &Path, root: &Path) -> Result<()> {
    let mut packed = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stream = packed.stdout.take().context("dpkg-deb has no output")?;
    let output = Command::new("tar")
        .args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--file=-", "-C"])
        .arg(root)
        .args(LEFT_OUT.iter().map(|path| format!("--exclude={path}")))
        .stdin(stream)
        .output()
        .context("cannot run tar")?;
    let unpacked = packed.wait()?.success() && output.status.success();
    ensure!(unpacked, "cannot unpack {}: {}", deb.display(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Removes from systemd's units the wish to start any but [`WANTED`].
fn prune_units(units: &Path) -> Result<()> {
    for entry in fs::read_dir(units).with_context(|| format!("{} is missing", units.display()))? {
        let folder = entry?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.ends_with(".wants") {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let unit = format!("{name}/{}", entry.file_name().to_string_lossy());
            if !WANTED.contains(&unit.as_str()) {
                fs::remove_file(entry.path())?;
            }
        }
    }
    let missing = WANTED.iter().find(|unit| fs::symlink_metadata(units.join(unit)).is_err());
    ensure!(missing.is_none(), "systemd's package has no {missing:?}");
    Ok(())
}

fn prune_rules(rules: &Path) -> Result<()> {
    for entry in fs::read_dir(rules).with_context(|| format!("{} is missing", rules.display()))? {
        let entry = entry?;
        if !RULES_KEPT.iter().any(|name| entry.file_name() == *name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn add_ours(store: &Path) -> Result<()> {
    for file in OURS {
        let path = store.join(file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        guest::write_if_changed(&path, file.text.as_bytes())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    let wants = store.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    for unit in WANTED_OURS {
        link(&format!("../{unit}"), &wants.join(unit))?;
    }
    link("/usr/lib/systemd/system/multi-user.target", &store.join("etc/systemd/system/default.target"))
}

fn link(target: &str, path: &Path) -> Result<()> {
    match symlink(target, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot create {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
