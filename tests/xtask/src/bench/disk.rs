//! `cargo xtask bench disk`: fio in the guest on a virtio disk whose image lies in the host's page cache.

use super::QEMU;
use super::options::{Options, Side};
use super::virtio::{self, Bench, Rows, Tool};
use crate::test;
use anyhow::{Context, Result};
use hvrun_tests::disks::{self, Pattern};
use hvrun_tests::spread::Spread;
use std::path::Path;
use std::process::Command;

/// What the guest runs.
pub const SCRIPT: &str = include_str!("../../guest/bench-disk");
/// The disk's serial.
const SERIAL: &str = "bench";
/// The disk's size: several times the guest's largest request at the greatest depth, and small enough to stay in the page cache.
const SIZE: u64 = 256 << 20;
const ROUNDS: usize = 3;
/// Makes qcow2 images, and the Debian package that has it.
const QEMU_IMG: (&str, &str) = ("qemu-img", "qemu-utils");

/// What the script reports.
pub const ROWS: &Rows = &[
    ("read_1m_1", "read 1M in order, depth 1, MiB/s"),
    ("read_1m_32", "read 1M in order, depth 32, MiB/s"),
    ("write_1m_1", "write 1M in order, depth 1, MiB/s"),
    ("write_1m_32", "write 1M in order, depth 32, MiB/s"),
    ("read_4k_1", "read 4k at random, depth 1, /s"),
    ("read_4k_32", "read 4k at random, depth 32, /s"),
    ("write_4k_1", "write 4k at random, depth 1, /s"),
    ("write_4k_32", "write 4k at random, depth 32, /s"),
];

/// `cargo xtask bench disk`.
pub fn command(options: &Options) -> Result<()> {
    let mut tools = vec![QEMU];
    tools.extend(options.qcow2.then_some(QEMU_IMG));
    test::install_debian_packages(&tools)?;
    let dir = tempfile::tempdir().context("no temporary folder")?;
    // Shorter runs than these measure mostly how fio starts.
    let (seconds, warm_up) = if options.quick { ("1", "0") } else { ("2", "500ms") };
    let settings = format!("SERIAL={SERIAL}\nSECONDS_EACH={seconds}\nWARM_UP={warm_up}\n");
    let bench = Bench::prepare(options, 1, SCRIPT, &settings, &[Tool::Fio], dir.path())?;
    let rounds = options.rounds(ROUNDS);

    let raw = disks::raw(dir.path(), "disk.raw", SIZE, Pattern { seed: 1 })?;
    let image = match options.qcow2 {
        true => {
            let image = dir.path().join("disk.qcow2");
            disks::convert((&raw, "raw"), (&image, "qcow2"), &[])?;
            image
        }
        false => raw,
    };
    let format = if options.qcow2 { "qcow2" } else { "raw" };
    println!(
        "fio in the guest, {} CPU(s), a {format} disk of {} MiB, {rounds} rounds in turn, median (smallest to largest)\n",
        bench.cpus(),
        SIZE >> 20
    );
    let measured =
        virtio::rounds(&bench, rounds, &|side, command| disk(side, command, &image, format), &|| Ok(()))?;
    virtio::print(ROWS, &measured);
    for (side, reports) in &measured {
        let gain =
            Spread::of(reports.iter().filter_map(|report| {
                Some(report.values.get("read_4k_32")? / report.values.get("read_4k_1")?)
            }));
        println!("reads of 4k, depth 32 over depth 1, {}: {gain}", side.name());
    }
    Ok(())
}

fn disk(side: Side, command: &mut Command, image: &Path, format: &str) {
    let path = image.display();
    match side {
        Side::Hvrun => {
            command.arg("--disk").arg(format!("{path},serial={SERIAL},format={format}"));
        }
        Side::Qemu => {
            command.arg("-drive").arg(format!("file={path},if=none,id=d0,cache=writeback,format={format}"));
            command.arg("-device").arg(format!("virtio-blk-pci,drive=d0,serial={SERIAL}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_job_of_the_script() {
        let jobs: Vec<String> = ["read", "write"]
            .iter()
            .flat_map(|what| ["1m", "4k"].map(|size| format!("{what}_{size}_")))
            .collect();
        for (name, _) in ROWS {
            assert!(jobs.iter().any(|job| name.starts_with(job)), "{name}");
        }
        assert!(SCRIPT.contains("[%s_1m_%s]") && SCRIPT.contains("[%s_4k_%s]"));
    }
}
