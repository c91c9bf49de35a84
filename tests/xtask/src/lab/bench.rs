//! `cargo xtask bench lab`: hvrun beside Debian's arm64 QEMU, both on KVM inside the lab's machine, in turn. What is measured is in
//! `lab/bench`; this puts QEMU and its libraries into the machine and prints medians. Times are of an emulated machine: only ratios count.

use super::{GUEST_LIMIT_SECONDS, Machine, QEMU, TRIM, boot, dir, hvrun, outer_initrd};
use crate::apt::{self, Apt};
use crate::bench::virtio::{self, Rows, Tool};
use crate::bench::{Spread, disk, net, ninep};
use crate::{guest, test};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the outer machine runs.
const SCRIPT: &str = include_str!("../../lab/bench");
/// What it runs to measure virtio devices.
const VIRTIO_SCRIPT: &str = include_str!("../../lab/bench-virtio");
/// What it runs to measure network cards.
const NET_SCRIPT: &str = include_str!("../../lab/bench-net");
/// Where.
const MACHINE: Machine = Machine { name: "bench", gic: 3, memory: "2G", checks: &[] };
/// QEMU's program in its package.
const PROGRAM: &str = "usr/bin/qemu-system-aarch64";
/// The dynamic linker: where programs look for it.
const LOADER: &str = "lib/ld-linux-aarch64.so.1";
/// Where the dynamic linker looks for libraries, on a Debian of arm64.
const LIBRARIES: &str = "lib/aarch64-linux-gnu";
/// Says what a program needs, and the Debian package that has it.
const OBJDUMP: (&str, &str) = ("aarch64-linux-gnu-objdump", "binutils-aarch64-linux-gnu");

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
    let measured = measure(&guest, rounds, SCRIPT, "", Extra::default())?;
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
    let measured = measure(&guest, rounds, VIRTIO_SCRIPT, NINEP_SETTINGS, extra)?;
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
        programs: virtio::debian("iperf3")?,
        probe: Some(virtio::probe()?),
    };
    let measured = measure(&guest, rounds, NET_SCRIPT, &settings, extra)?;
    println!(
        "On KVM in an emulated machine, guest of 512 MiB, {rounds} rounds in turn, median (smallest to largest); above 1 \
         hvrun is faster\n"
    );
    measured.print(net::ROWS);
    println!("\nof these the fewer, the better:");
    measured.print(net::COUNTS);
    Ok(())
}

/// What the outer machine has for a script.
#[derive(Debug, Default)]
struct Extra {
    /// Files by their names.
    files: Vec<(&'static str, Vec<u8>)>,
    /// Programs and their libraries, by their names.
    programs: BTreeMap<String, PathBuf>,
    /// `net_probe`.
    probe: Option<Vec<u8>>,
}

/// Runs `script` for so many rounds, with `settings`, shell assignments, and with `extra` in the outer machine.
fn measure(
    guest: &guest::Guest,
    rounds: usize,
    script: &str,
    settings: &str,
    extra: Extra,
) -> Result<Measured> {
    test::install_debian_packages(&[QEMU, OBJDUMP])?;
    let hvrun = hvrun("release")?;
    let dir = dir()?;
    let qemu = qemu_root(&dir)?;
    let mut archive = outer_initrd(guest, &hvrun)?;
    for folder in ["lib", LIBRARIES] {
        archive.dir(folder)?;
    }
    let mut programs = extra.programs;
    programs.extend(qemu_files(&qemu)?);
    for (name, path) in programs {
        archive.file(&name, 0o755, &fs::read(path)?)?;
    }
    if let Some(probe) = extra.probe {
        archive.file("bin/net_probe", 0o755, &probe)?;
    }
    for (name, bytes) in extra.files {
        archive.file(name, 0o644, &bytes)?;
    }
    archive.file("lab/bench", 0o644, script.as_bytes())?;
    archive.file(&format!("lab/checks.{}", MACHINE.name), 0o644, b"")?;
    let settings = format!("LIMIT={GUEST_LIMIT_SECONDS}\nTRIM='{TRIM}'\nROUNDS={rounds}\n{settings}");
    archive.file("lab/settings", 0o644, settings.as_bytes())?;
    let initrd = dir.join("bench.cpio");
    guest::write_atomically(&initrd, &archive.finish()?)?;

    let log = dir.join("bench.log");
    let mut measured = Measured::default();
    boot(&MACHINE, &guest.kernel, &initrd, &log, &mut |line| measured.read(line))?;
    ensure!(
        measured.rounds > rounds && measured.failure.is_none(),
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

/// The program, the dynamic linker and all libraries that they need, by their names in the machine.
fn qemu_files(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let program = root.join(PROGRAM);
    let mut wanted = needed(&program)?;
    files.insert("bin/qemu-system-aarch64".to_owned(), program);
    files.insert(LOADER.to_owned(), find(root, "ld-linux-aarch64.so.1")?);
    while let Some(name) = wanted.pop() {
        let path = find(root, &name)?;
        let target = format!("{LIBRARIES}/{name}");
        if name.starts_with("ld-linux") || files.contains_key(&target) {
            continue;
        }
        wanted.extend(needed(&path)?);
        files.insert(target, path);
    }
    Ok(files)
}

/// A library among the unpacked packages.
fn find(root: &Path, name: &str) -> Result<PathBuf> {
    let folders = ["usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib", "lib"];
    let found = folders.iter().map(|folder| root.join(folder).join(name)).find(|path| path.is_file());
    found.with_context(|| format!("none of QEMU's packages has {name}"))
}

/// The libraries that a program or a library names.
fn needed(path: &Path) -> Result<Vec<String>> {
    let output = Command::new(OBJDUMP.0).arg("-p").arg(path).output().context("cannot run objdump")?;
    ensure!(output.status.success(), "objdump cannot read {}", path.display());
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| Some(line.trim().strip_prefix("NEEDED")?.trim().to_owned())).collect())
}

/// What the machine has reported.
#[derive(Debug, Default)]
struct Measured {
    /// Rounds begun. The first warms up and does not count.
    rounds: usize,
    values: HashMap<(String, String), Vec<f64>>,
    failure: Option<String>,
}

impl Measured {
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["LAB-CHECK", "round", round] => {
                self.rounds += 1;
                eprintln!("round {round}");
            }
            ["LAB-VALUE", who, name, number] if self.rounds > 1 => {
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
            println!(
                "{about:<36} {:>26} {:>26} {:>7.2}",
                ours.to_string(),
                theirs.to_string(),
                ours.median / theirs.median
            );
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
