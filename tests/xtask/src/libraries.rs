//! A program of Debian's arm64 packages with the dynamic linker and every library that it needs, as files for an initrd. Nothing is
//! installed: packages are unpacked into a folder once.

use crate::apt::{self, Apt};
use crate::initrd::Archive;
use crate::{elf, guest};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The dynamic linker: where programs look for it.
const LOADER: &str = "lib/ld-linux-aarch64.so.1";
/// Where the dynamic linker looks for libraries, on a Debian of arm64.
const LIBRARIES: &str = "lib/aarch64-linux-gnu";
/// Where packages have them: before and after Debian merged /lib into /usr/lib, and those that libraries name as their DT_RUNPATH.
const FOLDERS: &[&str] = &[
    "usr/lib/aarch64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/ceph",
    "usr/lib",
    "lib",
];

/// Where packages have programs.
const PROGRAM_FOLDERS: &[&str] = &["usr/bin", "usr/sbin", "bin", "sbin", "usr/libexec", "usr/lib/qemu"];

/// Packages with libraries, by the beginnings of their names.
const LIBRARY_PACKAGES: &[&str] = &["lib", "zlib"];
/// Of these, what belongs to languages and logins, which other packages run and programs do not load.
const NO_LIBRARY_PACKAGES: &[&str] = &["libperl", "libpython", "libpam", "libsema", "libsepol"];

/// Unpacks the first of `packages` that there is, and the libraries it depends on, into `root`, unless that has been done.
pub fn unpack(apt_dir: &Path, packages: &[&str], root: &Path) -> Result<()> {
    let stamp = root.with_extension("stamp");
    if stamp.is_file() && root.is_dir() {
        return Ok(());
    }
    let apt = Apt::prepare(apt_dir, "arm64")?;
    let mut package = None;
    for name in packages {
        if package.is_none() && !apt.versions(name)?.is_empty() {
            package = Some(*name);
        }
    }
    let package =
        package.with_context(|| format!("apt does not offer {} for arm64", packages.join(" or ")))?;
    let closure = apt.closure(&[package])?;
    let begins = |name: &str, list: &[&str]| list.iter().any(|prefix| name.starts_with(prefix));
    let is_library = |name: &str| begins(name, LIBRARY_PACKAGES) && !begins(name, NO_LIBRARY_PACKAGES);
    let names = closure.iter().map(String::as_str);
    let wanted: Vec<&str> = names.filter(|name| *name == package || is_library(name)).collect();
    for deb in apt.download_all(&wanted)? {
        apt::unpack(&deb, root)?;
    }
    guest::write_atomically(&stamp, closure.join("\n").as_bytes())
}

/// The program `name` of those below `root` and all that it loads, by their names in an initrd.
pub fn files(root: &Path, name: &str) -> Result<BTreeMap<String, PathBuf>> {
    let path = find_in(PROGRAM_FOLDERS, root, name)?;
    let mut files = BTreeMap::new();
    load(&mut files, root, &path)?;
    files.insert(format!("bin/{name}"), path);
    files.insert(LOADER.to_owned(), find(root, "ld-linux-aarch64.so.1")?);
    Ok(files)
}

/// The module at `path` below a folder of libraries, which a program or a library looks for there by itself, with all that it loads, besides
/// `files`.
pub fn add_module(files: &mut BTreeMap<String, PathBuf>, root: &Path, path: &str) -> Result<()> {
    let module = find(root, path)?;
    load(files, root, &module)?;
    files.insert(format!("{LIBRARIES}/{path}"), module);
    Ok(())
}

/// Adds all that the dynamic linker loads for a program or a library.
fn load(files: &mut BTreeMap<String, PathBuf>, root: &Path, path: &Path) -> Result<()> {
    let mut wanted = needed(path)?;
    while let Some(name) = wanted.pop() {
        let target = format!("{LIBRARIES}/{name}");
        if name.starts_with("ld-linux") || files.contains_key(&target) {
            continue;
        }
        let path = find(root, &name)?;
        wanted.extend(needed(&path)?);
        files.insert(target, path);
    }
    Ok(())
}

/// Adds such files, and the folders they lie in, to an archive that has `bin`.
pub fn add(archive: &mut Archive, files: &BTreeMap<String, PathBuf>) -> Result<()> {
    let above =
        |name: &String| Path::new(name).ancestors().skip(1).map(Path::to_path_buf).collect::<Vec<_>>();
    // In order, so that each folder is there before what it has.
    let folders: BTreeSet<PathBuf> = files.keys().flat_map(above).collect();
    let is_new = |folder: &&PathBuf| !folder.as_os_str().is_empty() && !folder.ends_with("bin");
    for folder in folders.iter().filter(is_new) {
        archive.dir(&folder.to_string_lossy())?;
    }
    for (name, path) in files {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.file(name, 0o755, &bytes)?;
    }
    Ok(())
}

fn find(root: &Path, name: &str) -> Result<PathBuf> {
    find_in(FOLDERS, root, name)
}

fn find_in(folders: &[&str], root: &Path, name: &str) -> Result<PathBuf> {
    let found = folders.iter().map(|folder| root.join(folder).join(name)).find(|path| path.is_file());
    found.with_context(|| format!("none of the packages in {} has {name}", root.display()))
}

fn needed(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    elf::needed(&bytes).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_that_no_package_has_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let error = find(dir.path(), "libnone.so.1").expect_err("an empty folder");
        assert!(error.to_string().contains("libnone.so.1"), "{error}");
    }
}
