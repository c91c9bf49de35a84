//! `cargo xtask bench 9p`: a share of the host, used from a guest; and, without a guest, hvrun's 9P server in process beside diod.

use super::QEMU;
use super::diod::Diod;
use super::options::{Options, Side};
use super::virtio::{self, Bench, Rows};
use crate::{test, workspace};
use anyhow::{Context, Result, ensure};
use hvrun_tests::disks::Pattern;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the guest runs.
pub const SCRIPT: &str = include_str!("../../guest/bench-9p");
/// The share's tag.
const TAG: &str = "bench";
const ROUNDS: usize = 2;
/// How many files lie in each folder of the tree.
const FILES_A_FOLDER: usize = 100;

/// What the script reports.
pub const ROWS: &Rows = &[
    ("find", "find, with attributes, files/s"),
    ("create", "create, files/s"),
    ("unlink", "unlink, files/s"),
    ("sha256", "sha256sum, 4 in parallel, MiB/s"),
    ("read_16", "read in order, msize 16k, MiB/s"),
    ("read_128", "read in order, msize 128k, MiB/s"),
    ("read_512", "read in order, msize 512k, MiB/s"),
];

/// How much there is to do.
struct Sizes {
    files: usize,
    new: usize,
    big_mib: u64,
    sum_mib: u64,
}

/// `cargo xtask bench 9p`.
pub fn command(options: &Options) -> Result<()> {
    if !options.host {
        guest(options)?;
    }
    host(options)
}

fn guest(options: &Options) -> Result<()> {
    test::install_debian_packages(&[QEMU])?;
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let sizes = match options.quick {
        true => Sizes { files: 4_000, new: 1_000, big_mib: 32, sum_mib: 1 },
        false => Sizes { files: 20_000, new: 5_000, big_mib: 128, sum_mib: 4 },
    };
    let settings = format!(
        "TAG={TAG}\nFILES={}\nNEW={}\nBIG={}\nSUM={}\n",
        sizes.files, sizes.new, sizes.big_mib, sizes.sum_mib
    );
    let bench = Bench::prepare(options, 2, SCRIPT, &settings, &[], dir.path())?;
    let share = dir.path().join("share");
    fill(&share, &sizes)?;
    let rounds = options.rounds(ROUNDS);
    println!(
        "a share with {} files, {} CPU(s), {rounds} rounds in turn, median (smallest to largest)\n",
        sizes.files,
        bench.cpus()
    );
    let scratch = share.join("scratch");
    let tidy = || {
        let left = fs::read_dir(&scratch)?.count();
        ensure!(left == 0, "the guest left {left} entries in {}", scratch.display());
        Ok(())
    };
    let measured = virtio::rounds(&bench, rounds, &|side, command| attach(side, command, &share), &tidy)?;
    let sums: BTreeSet<&Vec<String>> =
        measured.iter().flat_map(|(_, reports)| reports).map(|report| &report.sums).collect();
    ensure!(sums.len() == 1, "not all guests have read the same: {sums:?}");
    virtio::print(ROWS, &measured);
    Ok(())
}

/// Makes what the guest works on.
fn fill(share: &Path, sizes: &Sizes) -> Result<()> {
    for index in 0..sizes.files {
        let folder = share.join(format!("tree/d{:03}", index / FILES_A_FOLDER));
        if index % FILES_A_FOLDER == 0 {
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(folder.join(format!("file{index:05}")), index.to_string())?;
    }
    fs::create_dir(share.join("scratch"))?;
    Pattern { seed: 0 }.write(&share.join("big"), sizes.big_mib << 20)?;
    for seed in 1..=4 {
        Pattern { seed }.write(&share.join(format!("sum{seed}")), sizes.sum_mib << 20)?;
    }
    Ok(())
}

fn attach(side: Side, command: &mut Command, share: &Path) {
    let path = share.display();
    match side {
        Side::Hvrun => {
            command.arg("--share").arg(format!("{path}:{TAG},security=none"));
        }
        Side::Qemu => {
            command.arg("-virtfs").arg(format!("local,path={path},security_model=none,mount_tag={TAG}"));
        }
    }
}

/// Requests per second without a guest: the server in process, as the device calls it, over a socket, and diod over a socket.
fn host(options: &Options) -> Result<()> {
    let seconds = if options.quick { "0.3" } else { "1" };
    if options.only != Some(Side::Qemu) {
        println!("hvrun's 9P server, one request at a time");
        workspace::run(ninep_bench().args(["--seconds", seconds]))?;
        println!();
    }
    if options.only != Some(Side::Hvrun) {
        println!("diod, the same");
        let dir = tempfile::tempdir().context("no temporary folder")?;
        let diod = Diod::start(dir.path())?;
        workspace::run(ninep_bench().args(["--seconds", seconds]).args(diod.options()))?;
    }
    Ok(())
}

/// The client, which can also serve itself.
fn ninep_bench() -> Command {
    let mut command = workspace::cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "hvrun-devices",
        "--example",
        "ninep_bench",
        "--",
    ]);
    command
}
