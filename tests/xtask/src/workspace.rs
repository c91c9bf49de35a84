//! Where things are, and how to run cargo and other tools. No chore of its own.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A hvrun to use instead of building one.
pub const BINARY_VAR: &str = "HVRUN_BIN";

/// A static arm64 hvrun for the lab to use instead of building one.
pub const LAB_BINARY_VAR: &str = "HVRUN_LAB_BIN";

/// The top of the checkout.
pub fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.ancestors().nth(2).map_or(here.clone(), Path::to_path_buf)
}

/// The folder that cargo builds into.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that started this program, in the checkout.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // These describe the xtask package; build scripts and `env!` of others must not see them.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

/// Runs `command` with the terminal of this program; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", describe(command)))?;
    ensure!(status.success(), "'{}' failed ({status})", describe(command));
    Ok(())
}

/// The command as a person would type it.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    let quote = |word: std::borrow::Cow<'_, str>| {
        let plain =
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=./:,@+%".contains(c));
        if plain { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    std::iter::once(name)
        .chain(command.get_args().map(|word| quote(word.to_string_lossy())))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether `name` is an executable on the PATH.
pub fn has_tool(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .any(|dir| rustix::fs::access(dir.join(name), rustix::fs::Access::EXEC_OK).is_ok())
}

/// Builds the release hvrun and returns its path; or the binary that `HVRUN_BIN` names.
pub fn release_hvrun() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VAR) {
        return Ok(path.into());
    }
    run(cargo().args(["build", "--quiet", "--release", "--locked", "--package", "hvrun"]))?;
    Ok(target_dir().join("release/hvrun"))
}
