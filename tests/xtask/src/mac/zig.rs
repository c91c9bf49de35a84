//! A linker for Mach-O where Apple's is not: `zig cc`, which brings its own description of libSystem. Fetched once, as a package for Python,
//! into `target/mac`.

use super::version::Version;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A zig to use instead of the one from PyPI.
const ZIG_VAR: &str = "HVRUN_ZIG";

/// The package that has zig in it. The version is named, so that every build links with the same one.
const PACKAGE: &str = "ziglang==0.17.1";

/// Writes the program that rustc calls as its linker, in `dir`, and returns it. `stubs` is searched for frameworks and libraries.
pub fn linker(dir: &Path, stubs: &Path, minimum: Version) -> Result<PathBuf> {
    let zig = zig(dir)?;
    let cache = dir.join("zig-cache");
    let path = dir.join("linker");
    let [zig, cache, stubs] = [&zig, &cache, stubs].map(quoted);
    let script = format!(
        "#!/bin/sh\n\
         export ZIG_GLOBAL_CACHE_DIR={cache} ZIG_LOCAL_CACHE_DIR={cache}\n\
         exec {zig} cc -target aarch64-macos.{minimum} -F {stubs} -L {stubs} \"$@\"\n"
    );
    fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The path as one word of the shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// The zig to use, fetched if need be.
fn zig(dir: &Path) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(ZIG_VAR) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{ZIG_VAR} names {}, which is no file", path.display());
        return Ok(path);
    }
    let folder = dir.join(PACKAGE.replace("==", "-"));
    let zig = folder.join("ziglang/zig");
    if !zig.exists() {
        fetch(dir, &folder).with_context(|| {
            format!(
                "zig, which links for macOS, is not here and could not be had from PyPI.\nLet 'python3 -m pip' reach a package index (on \
                 Debian: apt-get install python3-pip), or set {ZIG_VAR} to a zig of about that version ({PACKAGE}), and run this again"
            )
        })?;
    }
    ensure!(zig.exists(), "the package {PACKAGE} has no {}", zig.display());
    Ok(zig)
}

/// Unpacks the package into `folder`, by way of a folder of another name: what is there is whole.
fn fetch(dir: &Path, folder: &Path) -> Result<()> {
    println!("    zig, which links for macOS, is not here yet: fetching it into {}", folder.display());
    fs::create_dir_all(dir)?;
    let part = tempfile::Builder::new().prefix("zig-").tempdir_in(dir)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(part.path())
        .arg(PACKAGE)
        // It warns of what it might do to the system's Python. It does nothing to it.
        .env("PIP_ROOT_USER_ACTION", "ignore");
    println!("    {}", workspace::describe(&pip));
    workspace::run(&mut pip)?;
    fs::rename(part.keep(), folder).with_context(|| format!("cannot create {}", folder.display()))
}
