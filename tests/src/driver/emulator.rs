//! What a machine is started with: hvrun or QEMU, and the arguments of a NixOS test's run script and driver.

use super::machine::Place;
use super::{Guest, LIMIT};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What both are called by.
const NAME: &str = "qemu-system-aarch64";
/// The tool for disk images.
const IMAGE_TOOL: &str = "qemu-img";
/// The size of a root disk.
const DISK_SIZE: &str = "512M";
/// The kernel's command line of a NixOS test; `init` is that of the guest of `xtask`, and its tests of its own ciphers are left out.
const COMMAND_LINE: &str = "console=ttyAMA0 panic=1 boot.panic_on_fail clocksource=acpi_pm loglevel=7 cryptomgr.notests net.ifnames=0 init=/sbin/init \
                            regInfo=/nix/store/registration console=ttyAMA0";

/// A program that runs machines.
#[derive(Debug, Clone)]
pub struct Emulator {
    program: PathBuf,
    image_tool: PathBuf,
    machine: &'static str,
    cpu: &'static str,
    /// What this program needs to run as Debian packages it.
    more: &'static [&'static str],
    /// What the kernel's command line has before that of a test.
    kernel_options: String,
    limit: Duration,
}

/// The boot program of a card is in a package that nothing else here needs.
const NO_CARD_PROGRAM: &[&str] = &["-global", "virtio-net-pci.romfile="];

impl Emulator {
    /// The hvrun at `binary`, with the arguments of a Mac: where there is no Hypervisor.framework, `tcg` is the software CPU.
    pub fn hvrun(binary: PathBuf) -> Emulator {
        Emulator {
            image_tool: binary.clone(),
            program: binary,
            machine: "virt,gic-version=2,accel=hvf:tcg",
            cpu: "max",
            more: &[],
            kernel_options: String::new(),
            limit: LIMIT,
        }
    }

    /// Debian's QEMU on its translator, with the CPU it is quickest with.
    pub fn qemu() -> Emulator {
        Emulator {
            program: NAME.into(),
            image_tool: IMAGE_TOOL.into(),
            machine: "virt,gic-version=3,accel=tcg",
            cpu: "cortex-a72",
            more: NO_CARD_PROGRAM,
            kernel_options: String::new(),
            limit: LIMIT,
        }
    }

    /// The same with KVM alone, with the arguments of an arm64 Linux and with `kernel_options` before those of a test; its disks are made
    /// by the hvrun at `image_tool`. No machine of it lives longer than `limit`, and nothing that one is asked takes longer.
    pub fn kvm(self, image_tool: PathBuf, kernel_options: &str, limit: Duration) -> Emulator {
        Emulator {
            image_tool,
            machine: "virt,gic-version=max,accel=kvm",
            cpu: "max",
            kernel_options: format!("{kernel_options} "),
            limit,
            ..self
        }
    }

    /// How long a machine may live.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    fn called(program: &Path, name: &str) -> Command {
        let mut command = Command::new(program);
        command.arg0(name).env_remove("RUST_LOG");
        command
    }

    /// Makes a root disk as the run script does: a file system on a raw image, which is then converted.
    pub(super) fn disk(&self, path: &Path) -> Result<()> {
        let raw = path.with_extension("raw");
        let tool = || Self::called(&self.image_tool, IMAGE_TOOL);
        run(tool().args(["create", "-f", "raw"]).arg(&raw).arg(DISK_SIZE))?;
        crate::disks::format_ext4(&raw, &["-L", "nixos"])?;
        run(tool().args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(path))?;
        fs::remove_file(&raw).with_context(|| format!("cannot remove {}", raw.display()))
    }

    /// What the run script executes, with what the driver appends to it.
    pub(super) fn command(&self, guest: &Guest, place: &Place, allow_reboot: bool) -> Result<Command> {
        let text = |path: &Path| path.to_str().context("a path is not UTF-8").map(str::to_owned);
        let state = text(&place.state)?;
        let mut command = Self::called(&self.program, NAME);
        let mut add = |words: &str| {
            command.args(words.split_whitespace());
        };
        add(&format!("-machine {} -cpu {}", self.machine, self.cpu));
        add(&format!("-name {} -m 1024 -smp 1 -device virtio-rng-pci", place.name));
        add("-net nic,netdev=user.0,model=virtio -netdev user,id=user.0,");
        let shares = [
            (text(&guest.store)?, "nix-store"),
            (text(&place.shared)?, "shared"),
            (format!("{state}/xchg"), "xchg"),
        ];
        for (path, tag) in shares {
            add(&format!("-virtfs local,path={path},security_model=none,mount_tag={tag}"));
        }
        let disk = text(&place.disk)?;
        add(&format!("-drive cache=writeback,file={disk},id=drive1,if=none,index=1,werror=report"));
        add("-device virtio-blk-pci,bootindex=1,drive=drive1,serial=root");
        add(&format!("-device virtio-net-pci,netdev=vlan1,mac=52:54:00:12:01:{:02x}", place.node));
        add(&format!("-netdev vde,id=vlan1,sock={}", text(&place.vlan)?));
        add("-device virtio-keyboard");
        add("-device virtio-gpu-pci -device usb-ehci,id=usb0 -device usb-kbd -device usb-tablet");
        add(&format!("-kernel {} -initrd {}", text(&guest.kernel)?, text(&guest.initrd)?));
        add(&format!("-qmp unix:{state}/qmp,server=on,wait=off -monitor unix:{state}/monitor"));
        add(&format!("-chardev socket,id=shell,path={state}/shell"));
        add("-device virtio-serial -device virtconsole,chardev=shell -device virtio-rng-pci -serial stdio");
        if !allow_reboot {
            add("-no-reboot");
        }
        add("-nographic");
        let append = format!("{}{COMMAND_LINE}", self.kernel_options);
        command.args(["-append", &append]).args(self.more);
        ensure!(
            !state.contains(char::is_whitespace),
            "the temporary folder '{state}' has a space in its name"
        );
        Ok(command)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}): {stderr}", output.status);
    Ok(())
}
