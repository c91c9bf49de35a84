//! Packages for Python that tests use: each is fetched once, by its whole version, into a folder of its own. Nothing is installed.

use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with `package` (`NAME==VERSION`) in `dir`, fetched if it is not there. `purpose` says what it is for.
pub fn package(dir: &Path, package: &str, purpose: &str) -> Result<PathBuf> {
    let folder = dir.join(package.replace("==", "-"));
    if !folder.exists() {
        fetch(dir, &folder, package, purpose).with_context(|| {
            format!(
                "{package}, {purpose}, is not here and could not be had from PyPI.\nLet 'python3 -m pip' reach a package index (on \
                 Debian: apt-get install python3-pip) and run this again"
            )
        })?;
    }
    Ok(folder)
}

/// Unpacks the package into `folder`, by way of a folder of another name: what is there is whole.
fn fetch(dir: &Path, folder: &Path, package: &str, purpose: &str) -> Result<()> {
    println!("    {package}, {purpose}, is not here yet: fetching it into {}", folder.display());
    fs::create_dir_all(dir)?;
    let part = tempfile::Builder::new().prefix("pypi-").tempdir_in(dir)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(part.path())
        .arg(package)
        // It warns of what it might do to the system's Python. It does nothing to it.
        .env("PIP_ROOT_USER_ACTION", "ignore");
    println!("    {}", workspace::describe(&pip));
    workspace::run(&mut pip)?;
    fs::rename(part.keep(), folder).with_context(|| format!("cannot create {}", folder.display()))
}
