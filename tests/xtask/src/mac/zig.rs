//! A linker for Mach-O where Apple's is not: `zig cc`, which brings its own description of libSystem. Fetched once, as a package for Python,
//! into `target/mac`.

use super::version::Version;
use crate::pypi;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

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
    let folder = pypi::package(dir, PACKAGE, "which links for macOS")
        .with_context(|| format!("no zig; {ZIG_VAR} may name one of about that version"))?;
    let zig = folder.join("ziglang/zig");
    ensure!(zig.exists(), "the package {PACKAGE} has no {}", zig.display());
    Ok(zig)
}
