//! `cargo xtask mac`: hvrun for macOS, built on Linux. It type-checks the crates for `aarch64-apple-darwin`, links the command with zig and
//! text stubs in the place of Apple's SDK, looks whether the oldest supported macOS has all that the binary imports, and signs it.
//! Nothing here runs the binary: that takes a Mac.

mod binary;
mod sign;
mod symbols;
mod version;
mod zig;

use crate::{cross, workspace};
use anyhow::{Context, Result, bail, ensure};
use binary::Binary;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use symbols::Table;
use version::Version;

/// The oldest macOS that hvrun runs on: the first in which a virtual machine can have the address size it needs (`hv_vm_config_*`).
/// `.cargo/config.toml` gives it to builds on a Mac.
const MINIMUM: Version = Version { major: 13, minor: 0 };

/// What may be imported, and since when.
const SYMBOLS: &str = "tests/xtask/mac/symbols.txt";

/// Stand-ins for Apple's SDK: `Hypervisor.framework` and `libiconv`. The rest is in zig.
const STUBS: &str = "tests/xtask/mac";

/// `cargo xtask mac [--release] [check] [link]`.
pub fn command(args: &[OsString]) -> Result<ExitCode> {
    let mut release = false;
    let (mut check, mut link) = (false, false);
    for word in args {
        match word.to_string_lossy().as_ref() {
            "--release" => release = true,
            "check" => check = true,
            "link" => link = true,
            other => bail!("'{other}' is no option of 'mac'; it takes --release, check and link"),
        }
    }
    if !check && !link {
        (check, link) = (true, true);
    }
    if check {
        type_check()?;
    }
    if link {
        let path = link_and_inspect(if release { Profile::Release } else { Profile::Quick })?;
        println!("    {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The step of `cargo xtask test`: type-check and link.
pub fn step() -> Result<()> {
    type_check()?;
    link_and_inspect(Profile::Quick).map(|_| ())
}

/// How the binary is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    /// As fast as it compiles: to see that it links.
    Quick,
    /// What a person would run.
    Release,
}

impl Profile {
    /// cargo's options for it.
    fn options(self) -> &'static [&'static str] {
        match self {
            // The software CPU is optimised in the dev profile; here nobody runs it.
            Self::Quick => {
                &["--config", "profile.dev.debug=0", "--config", "profile.dev.package.hvrun-soft.opt-level=0"]
            }
            Self::Release => &["--release"],
        }
    }

    /// The folder of cargo's that it lands in.
    fn folder(self) -> &'static str {
        match self {
            Self::Quick => "debug",
            Self::Release => "release",
        }
    }
}

/// Type-checks everything that a Mac builds, tests and chores too, with clippy's lints.
fn type_check() -> Result<()> {
    run(cargo("clippy")?.args(["--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Links hvrun, compares what it imports with what the oldest macOS has, and signs it. Returns where it is.
fn link_and_inspect(profile: Profile) -> Result<PathBuf> {
    let mut command = cargo("build")?;
    command.args(["--package", "hvrun"]).args(profile.options());
    if !cfg!(target_os = "macos") {
        stand_in_for_the_sdk(&mut command)?;
    }
    run(&mut command)?;
    let path = workspace::target_dir().join(cross::MACOS_ARM64).join(profile.folder()).join("hvrun");
    inspect(&path)?;
    sign::sign(&path)
}

/// cargo for a Mac, with the subcommand and the target already said.
fn cargo(subcommand: &str) -> Result<Command> {
    let mut command = cross::cargo(cross::MACOS_ARM64, subcommand)?;
    command.arg("--locked").env("MACOSX_DEPLOYMENT_TARGET", MINIMUM.to_string());
    Ok(command)
}

/// Says what it runs, and runs it.
fn run(command: &mut Command) -> Result<()> {
    println!("    {}", workspace::describe(command));
    workspace::run(command)
}

/// The folder of what this chore fetches and makes.
fn dir() -> PathBuf {
    workspace::root().join("target/mac")
}

/// Has `command`, a cargo, link with zig and our stubs.
fn stand_in_for_the_sdk(command: &mut Command) -> Result<()> {
    let sdk = dir().join("sdk");
    fs::create_dir_all(&sdk).with_context(|| format!("cannot create {}", sdk.display()))?;
    let linker = zig::linker(&dir(), &workspace::root().join(STUBS), MINIMUM)?;
    command
        .env("CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER", linker)
        // rustc would ask `xcrun` for the SDK and warn that there is none. An empty one does: the libraries are in zig and in our stubs.
        .env("SDKROOT", sdk);
    Ok(())
}

/// Fails if the binary is not what `MINIMUM` can start.
fn inspect(path: &Path) -> Result<()> {
    let table = read_table()?;
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let binary = Binary::parse(&bytes).with_context(|| format!("cannot make sense of {}", path.display()))?;
    let complaints = table.complaints(&binary, MINIMUM);
    ensure!(
        complaints.is_empty(),
        "macOS {MINIMUM} would not start {}:\n  {}",
        path.display(),
        complaints.join("\n  ")
    );
    let weak = binary.imports.iter().filter(|import| import.weak).count();
    println!(
        "    {} bytes, for macOS {} and newer: {} imports ({weak} of them weak) from {} libraries",
        bytes.len(),
        binary.minimum,
        binary.imports.len(),
        binary.libraries.len()
    );
    Ok(())
}

fn read_table() -> Result<Table> {
    let path = workspace::root().join(SYMBOLS);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Table::parse(&text).with_context(|| format!("{SYMBOLS} is not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const HYPERVISOR: &str = "/System/Library/Frameworks/Hypervisor.framework/Versions/A/Hypervisor";

    fn repository_file(name: &str) -> String {
        fs::read_to_string(workspace::root().join(name)).expect("it is in the repository")
    }

    /// The names between the brackets of `symbols: [ ... ]`.
    fn stub_symbols(text: &str) -> BTreeSet<String> {
        let list = text.split_once("symbols:").expect("a list of symbols").1;
        let list = list.split_once('[').expect("opens").1.split_once(']').expect("closes").0;
        list.split(',').map(|name| name.trim().to_owned()).collect()
    }

    #[test]
    fn hypervisor_stub_has_exactly_what_the_table_gives_to_the_oldest_macos() {
        let table = read_table().expect("the table");
        let expected: BTreeSet<String> = table.available(HYPERVISOR, MINIMUM).map(str::to_owned).collect();
        let stub = stub_symbols(&repository_file("tests/xtask/mac/Hypervisor.framework/Hypervisor.tbd"));
        assert_eq!(stub, expected);
    }

    #[test]
    fn table_says_that_the_interrupt_controller_is_newer_than_the_oldest_macos() {
        let table = read_table().expect("the table");
        assert_eq!(table.since(HYPERVISOR, "_hv_gic_create"), Some(Version { major: 15, minor: 0 }));
    }

    #[test]
    fn cargo_on_a_mac_builds_for_the_same_oldest_macos() {
        let config = repository_file(".cargo/config.toml");
        assert!(config.contains(&format!("MACOSX_DEPLOYMENT_TARGET = \"{MINIMUM}\"")), "{config}");
    }
}
