//! `cargo xtask bench lab`: hvrun beside Debian's arm64 QEMU, both on KVM inside the lab's machine, in turn. What is measured is in
//! `lab/bench`; this puts QEMU and its libraries into the machine and prints medians. Times are of an emulated machine: only ratios count.

use super::{GUEST_LIMIT_SECONDS, LIMIT, Machine, QEMU, TRIM, boot, dir, hvrun, outer_initrd};
use crate::apt::{self, Apt};
use crate::bench::virtio::{self, Rows, Tool};
use crate::bench::{disk, net, ninep};
use crate::{cross, guest, libraries, systemd, test};
use anyhow::{Context, Result, ensure};
use hvrun_tests::driver::scenario;
use hvrun_tests::spread::Spread;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// What the outer machine runs.
const SCRIPT: &str = include_str!("../../lab/bench");
/// What it runs to measure virtio devices.
const VIRTIO_SCRIPT: &str = include_str!("../../lab/bench-virtio");
/// What it runs to measure network cards.
const NET_SCRIPT: &str = include_str!("../../lab/bench-net");
/// What it runs to measure a NixOS test's scenario.
const DRIVER_SCRIPT: &str = include_str!("../../lab/bench-driver");
/// Where.
const MACHINE: Machine = Machine { name: "bench", gic: 3, memory: "2G", limit: LIMIT, checks: &[] };
/// QEMU's program in its package.
const PROGRAM: &str = "usr/bin/qemu-system-aarch64";
/// What QEMU and its libraries look for themselves, relative to where they lie: virtio-gpu-pci, which machines of NixOS tests have, and the
/// VDE switch.
const MODULES: &[&str] =
    &["qemu/hw-display-virtio-gpu.so", "qemu/hw-display-virtio-gpu-pci.so", "vdeplug/libvdeplug_vde.so"];

/// The values that the script reports, and what they are.
const VALUES: &Rows = &[
    ("first_run", "start to first KVM_RUN, ms"),
    ("boot_1", "boot to poweroff, 1 CPU, s"),
    ("boot_2", "boot to poweroff, 2 CPUs, s"),
    ("cpu_1", "monitor's CPU time of it, 1 CPU, s"),
    ("cpu_2", "monitor's CPU time of it, 2 CPUs, s"),
    ("memory", "memory beyond the guest's, MiB"),
    ("anonymous", "of it not from files, MiB"),
    ("threads", "threads"),
    ("exits", "exits until the prompt"),
    ("mmio_exit_user", "of them MMIO to user space"),
    ("wfi_exit_stat", "of them WFI"),
    ("signal_exits", "of them by signals"),
    ("exits_interrupts", "of them by interrupts of the host"),
    ("exits_sysreg", "of them system registers"),
    ("exits_hvc", "of them HVC"),
    ("exits_instruction_aborts", "of them instruction aborts"),
    ("exits_data_aborts", "of them data aborts, MMIO included"),
];

/// How much the guest of the 9p benchmark has to do, as `bench-virtio` and the guest's script want it.
const NINEP_SETTINGS: &str = "FILES=500\nBIG=8\nSUM=1\n";
/// And what only the guest's script wants.
const NINEP_GUEST_SETTINGS: &str = "TAG=bench\nNEW=200\n";
/// What the guest of the disk benchmark does.
const DISK_SETTINGS: &str = "SERIAL=bench\nSECONDS_EACH=1\nWARM_UP=0\n";

/// `cargo xtask bench lab`.
pub fn command(rounds: usize) -> Result<()> {
    let guest = guest::ensure()?;
    let measured = measure(&MACHINE, &guest, rounds, SCRIPT, "", Extra::default())?;
    println!(
        "On KVM in an emulated machine, guest of 256 MiB, {rounds} rounds in turn, median (smallest to largest)\n"
    );
    measured.print(VALUES);
    Ok(())
}

/// `cargo xtask bench lab --virtio`.
pub fn virtio(rounds: usize) -> Result<()> {
    let guest = guest::ensure()?;
    let ninep_settings = format!("{NINEP_GUEST_SETTINGS}{NINEP_SETTINGS}");
    let files = vec![
        ("lab/disk.cpio", virtio::initrd(&guest, disk::SCRIPT, DISK_SETTINGS, &[Tool::Fio])?),
        ("lab/9p.cpio", virtio::initrd(&guest, ninep::SCRIPT, &ninep_settings, &[])?),
    ];
    let extra = Extra { files, ..Extra::default() };
    let measured = measure(&MACHINE, &guest, rounds, VIRTIO_SCRIPT, NINEP_SETTINGS, extra)?;
    println!(
        "On KVM in an emulated machine, guest of 512 MiB, {rounds} rounds in turn, median (smallest to largest); above 1 \
         hvrun is faster\n"
    );
    measured.print(disk::ROWS);
    measured.print(ninep::ROWS);
    Ok(())
}

/// The ports of the servers in the outer machine: iperf3's and that of `net_probe`.
const NET_PORTS: (u16, u16) = (5201, 5202);

/// `cargo xtask bench lab --net`.
pub fn net(rounds: usize) -> Result<()> {
    let guest = guest::ensure()?;
    let (iperf, probe) = NET_PORTS;
    let settings = net::script_settings(iperf, probe, 4, 2, "5M");
    let extra = Extra {
        files: vec![("lab/net.cpio", virtio::initrd(&guest, net::SCRIPT, &settings, net::TOOLS)?)],
        programs: virtio::debian("iperf3", "iperf3")?,
        ours: vec![("bin/net_probe", virtio::probe()?)],
        ..Extra::default()
    };
    let measured = measure(&MACHINE, &guest, rounds, NET_SCRIPT, &settings, extra)?;
    println!(
        "On KVM in an emulated machine, guest of 512 MiB, {rounds} rounds in turn, median (smallest to largest); above 1 \
         hvrun is faster\n"
    );
    measured.print(net::ROWS);
    println!("\nof these the fewer, the better:");
    measured.print(net::COUNTS);
    Ok(())
}

/// How often the scenario repeats what takes milliseconds.
const TRIPS: usize = 10;
/// What it runs besides: the switch between its machines and what formats their root disks, each with the Debian package that has it.
const DRIVER_PROGRAMS: [(&str, &str); 2] = [("vde_switch", "vde-switch"), ("mke2fs", "e2fsprogs")];

/// `cargo xtask bench lab --driver`.
pub fn driver(rounds: usize) -> Result<()> {
    let guest = guest::ensure()?;
    let systemd = systemd::ensure(&guest)?;
    let limit = LIMIT.saturating_mul(u32::try_from(rounds).context("too many rounds")?);
    // It has the store, which is copied at its boot, and a guest of 1 GiB.
    let machine = Machine { memory: "4G", limit, ..MACHINE };
    let mut programs = BTreeMap::new();
    for (program, package) in DRIVER_PROGRAMS {
        programs.extend(virtio::debian(package, program)?);
    }
    // As hvrun, whose libraries are then built once.
    let program = cross::static_example("hvrun-tests", "driver_bench", "release")?;
    let extra = Extra {
        files: vec![("lab/initrd-systemd.cpio", fs::read(systemd.initrd)?)],
        programs,
        ours: vec![("bin/driver_bench", fs::read(program)?)],
        trees: vec![("lab/store", systemd.store)],
    };
    let settings = format!("TRIPS={TRIPS}\nMACHINE_LIMIT={}\n", LIMIT.as_secs());
    let measured = measure(&machine, &guest, rounds, DRIVER_SCRIPT, &settings, extra)?;
    println!(
        "On KVM in an emulated machine, one machine with systemd (not two), {rounds} rounds in turn, median (smallest to largest); below 1 \
         hvrun is faster\n"
    );
    measured.print(scenario::ROWS);
    Ok(())
}

/// What the outer machine has for a script.
#[derive(Debug, Default)]
struct Extra {
    /// Files by their names.
    files: Vec<(&'static str, Vec<u8>)>,
    /// Programs and their libraries, by their names.
    programs: BTreeMap<String, PathBuf>,
    /// Programs of this project.
    ours: Vec<(&'static str, Vec<u8>)>,
    /// Folders of the host's, with all that is in them.
    trees: Vec<(&'static str, PathBuf)>,
}

/// Runs `script` in `machine` for so many rounds, with `settings`, shell assignments, and with `extra` in it.
fn measure(
    machine: &Machine,
    guest: &guest::Guest,
    rounds: usize,
    script: &str,
    settings: &str,
    extra: Extra,
) -> Result<Measured> {
    test::install_debian_packages(&[QEMU])?;
    let hvrun = hvrun("release")?;
    let dir = dir()?;
    let qemu = qemu_root(&dir)?;
    let mut archive = outer_initrd(guest, &hvrun)?;
    let mut programs = extra.programs;
    programs.extend(qemu_files(&qemu)?);
    libraries::add(&mut archive, &programs)?;
    for (name, bytes) in extra.ours {
        archive.file(name, 0o755, &bytes)?;
    }
    for (name, path) in extra.trees {
        archive.tree(name, &path)?;
    }
    for (name, bytes) in extra.files {
        archive.file(name, 0o644, &bytes)?;
    }
    archive.file("lab/bench", 0o644, script.as_bytes())?;
    archive.file(&format!("lab/checks.{}", machine.name), 0o644, b"")?;
    let settings = format!("LIMIT={GUEST_LIMIT_SECONDS}\nTRIM='{TRIM}'\nROUNDS={rounds}\n{settings}");
    archive.file("lab/settings", 0o644, settings.as_bytes())?;
    let initrd = dir.join("bench.cpio");
    guest::write_atomically(&initrd, &archive.finish()?)?;

    let log = dir.join("bench.log");
    let mut measured = Measured::default();
    boot(machine, &guest.kernel, &initrd, &log, &mut |line| measured.read(line))?;
    ensure!(
        measured.round == Some(rounds) && measured.failure.is_none(),
        "the benchmark did not come to its end{}; {} has what the machine wrote",
        measured.failure.map(|line| format!(": {line}")).unwrap_or_default(),
        log.display()
    );
    Ok(measured)
}

/// QEMU and what it needs, unpacked from Debian's arm64 packages. Uses the network only the first time.
fn qemu_root(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("qemu");
    let stamp = dir.join("qemu.stamp");
    if stamp.is_file() && root.join(PROGRAM).is_file() {
        return Ok(root);
    }
    let apt = Apt::prepare(&dir.join("apt"), "arm64")?;
    let packages = apt.closure(&[QEMU.1])?;
    ensure!(packages.iter().any(|name| name == QEMU.1), "apt does not offer {} for arm64", QEMU.1);
    for package in &packages {
        // Firmware and keymaps: the machine of the benchmark has no use for them.
        if package != "qemu-system-data" {
            apt::unpack(&apt.download(package)?, &root)?;
        }
    }
    guest::write_atomically(&stamp, packages.join("\n").as_bytes())?;
    Ok(root)
}

/// The program with its modules and all that they load, by their names in the machine.
fn qemu_files(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = libraries::files(root, QEMU.0)?;
    for name in MODULES {
        libraries::add_module(&mut files, root, name)?;
    }
    Ok(files)
}

/// What the machine has reported.
#[derive(Debug, Default)]
struct Measured {
    /// The round that runs. That of number 0 warms up and does not count.
    round: Option<usize>,
    values: HashMap<(String, String), Vec<f64>>,
    failure: Option<String>,
}

impl Measured {
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["LAB-CHECK", "round", round] => {
                self.round = round.parse().ok();
                eprintln!("round {round}");
            }
            ["LAB-VALUE", who, name, number] if self.round > Some(0) => {
                let values = self.values.entry(((*who).to_owned(), (*name).to_owned())).or_default();
                values.extend(number.parse::<f64>());
            }
            ["LAB-FAILED", ..] => self.failure = Some(line.to_owned()),
            _ => {}
        }
    }

    fn print(&self, rows: &Rows) {
        println!("{:<36} {:>26} {:>26} {:>7}", "", "hvrun", "QEMU (kvm)", "ratio");
        for (name, about) in rows {
            let spread = |who: &str| {
                let values = self.values.get(&(who.to_owned(), (*name).to_owned()));
                Spread::of(values.into_iter().flatten().copied())
            };
            let (ours, theirs) = (spread("hvrun"), spread("qemu"));
            let ratio = ours.ratio(theirs);
            println!("{about:<36} {:>26} {:>26} {ratio:>7}", ours.to_string(), theirs.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_that_warms_up_does_not_count() {
        let mut measured = Measured::default();
        for line in ["LAB-CHECK round 0", "LAB-VALUE hvrun a 9", "LAB-CHECK round 1", "LAB-VALUE hvrun a 2.5"]
        {
            measured.read(line);
        }
        assert_eq!(measured.values[&("hvrun".to_owned(), "a".to_owned())], [2.5]);
    }

    #[test]
    fn every_printed_value_is_reported_by_the_script() {
        let missing: Vec<&str> = VALUES
            .iter()
            .map(|(name, _)| name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_start_matches("exits_"))
            .filter(|name| !SCRIPT.contains(name))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
