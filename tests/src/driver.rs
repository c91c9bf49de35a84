//! The far side of the contract that hvrun keeps as a stand-in for QEMU: a test driver that starts machines with the command line of a
//! NixOS test, talks with them as the NixOS test driver does, and has them on a VLAN. It knows the contract, not hvrun: the same driver
//! drives QEMU. What the guest is made of is in `xtask`'s `systemd.rs`.

mod base64;
mod emulator;
mod machine;
mod monitors;
pub mod scenario;
mod shell;

use crate::artifacts;
use crate::vde::Switch;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

pub use emulator::Emulator;
pub use machine::Machine;
pub use shell::Output;

/// Longer than a machine of a test lives on a slow and busy host; on a host that is emulated itself, see [`Emulator::kvm`].
const LIMIT: Duration = Duration::from_secs(230);

/// A test's switch lives longer than its machines, of which this many live after each other.
const SCENES: u32 = 3;

/// The guest's files.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd whose stage 1 mounts the store.
    pub initrd: PathBuf,
    /// The folder that machines have as their store.
    pub store: PathBuf,
}

impl Guest {
    /// The one that `cargo xtask guest` makes.
    pub fn find() -> Result<Guest> {
        Ok(Guest {
            kernel: artifacts::kernel()?,
            initrd: artifacts::systemd_initrd()?,
            store: artifacts::store()?,
        })
    }
}

/// A test: its folder, its VLAN, and what its machines are started with. To be dropped behind the machines.
#[derive(Debug)]
pub struct Driver {
    dir: TempDir,
    emulator: Emulator,
    guest: Guest,
    _vlan: Switch,
}

impl Driver {
    /// A test with `emulator`.
    pub fn new(emulator: Emulator, guest: Guest) -> Result<Driver> {
        let dir = tempfile::tempdir().context("no temporary folder")?;
        fs::create_dir(dir.path().join("shared-xchg"))?;
        let vlan = Switch::start_for(SCENES * emulator.limit(), &dir.path().join("vde1.ctl"), &["--hub"])?;
        Ok(Driver { dir, emulator, guest, _vlan: vlan })
    }

    /// hvrun with the guest of the tests.
    pub fn hvrun() -> Result<Driver> {
        Self::new(Emulator::hvrun(artifacts::hvrun()?), Guest::find()?)
    }

    /// The machine with this name, not started yet; it is the node `node` of the VLAN, `192.168.1.NODE`.
    pub fn machine(&self, name: &str, node: u8) -> Result<Machine> {
        Machine::new(self, name, node)
    }
}
