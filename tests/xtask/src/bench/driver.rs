//! `cargo xtask bench driver`: what a NixOS test does with its machines, by the NixOS test driver's protocol, with hvrun and with QEMU in
//! turn. The driver is that of the tests; what is measured is how long a person waits.

use super::options::{Options, Side};
use super::{QEMU, Spread};
use crate::{guest, systemd, test, workspace};
use anyhow::{Context, Result, ensure};
use hvrun_tests::disks::Pattern;
use hvrun_tests::driver::{Driver, Emulator, Guest, Machine};
use std::fs;
use std::time::Instant;

const ROUNDS: usize = 3;
/// The switch between machines, and the Debian package that has it.
const VDE_SWITCH: (&str, &str) = ("vde_switch", "vde2");
/// What a round measures.
const ROWS: &[&str] = &[
    "whole scenario, s",
    "start to the backdoor's banner, s",
    "crash to the next banner, s",
    "poweroff to the end, s",
    "5 MiB of output, s",
    "1 MiB there and back, s",
    "round trip of `true`, ms",
    "of it the guest's own time, ms",
    "beyond the guest's own, ms",
    "round trip of one line, ms",
];

/// What the round trip of `true` makes the guest do; the shell says how long that took, in microseconds.
const OWN_TIME: &str = "a=${EPOCHREALTIME/./}; timeout 900 bash -c 'set -euo pipefail; true' | (base64 -w 0; echo) >/dev/null; echo \
                        ${PIPESTATUS[0]} >/dev/null; echo $((${EPOCHREALTIME/./} - a))";

/// `cargo xtask bench driver`.
pub fn command(options: &Options) -> Result<()> {
    test::install_debian_packages(&[QEMU, VDE_SWITCH])?;
    let guest = guest::ensure()?;
    let systemd = systemd::ensure(&guest)?;
    let guest = Guest { kernel: guest.kernel, initrd: systemd.initrd, store: systemd.store };
    let rounds = options.rounds(ROUNDS);
    let mut measured: Vec<(Side, Vec<Vec<f64>>)> = Vec::new();
    for side in options.sides() {
        measured.push((*side, Vec::new()));
    }
    for round in 1..=rounds {
        for (side, reports) in &mut measured {
            eprintln!("round {round} of {rounds}: {}", side.name());
            let emulator = match side {
                Side::Hvrun => Emulator::hvrun(workspace::release_hvrun()?),
                Side::Qemu => Emulator::qemu(),
            };
            reports.push(scenario(emulator, guest.clone(), options.quick)?);
        }
    }
    println!("Two machines with systemd, {rounds} rounds in turn, median (smallest to largest)\n");
    print(&measured);
    Ok(())
}

/// One test with two machines; what it measured, in the order of [`ROWS`].
fn scenario(emulator: Emulator, guest: Guest, quick: bool) -> Result<Vec<f64>> {
    let begin = Instant::now();
    let driver = Driver::new(emulator, guest)?;
    let mut one = driver.machine("one", 1)?;
    one.start()?;
    let banner = one.connect()?.as_secs_f64();
    // Before anything is measured, the guest finishes its boot.
    one.wait_for_unit("multi-user.target")?;
    let [trip, own, line] = round_trips(&mut one, if quick { 10 } else { 50 })?;
    let output = timed(|| {
        let text = one.succeed("seq 0 764855")?;
        ensure!(text.len() >= 5 << 20, "only {} bytes came", text.len());
        Ok(())
    })?;
    let copies = timed(|| there_and_back(&mut one))?;

    let mut two = driver.machine("two", 2)?;
    two.start()?;
    two.wait_for_unit("network.service")?;
    one.succeed("ping -c 1 -W 30 192.168.1.2")?;
    one.block()?;
    one.fail("ping -c 1 -W 1 192.168.1.2")?;
    one.unblock()?;
    two.wait_until_succeeds("ping -c 1 -W 30 192.168.1.1")?;
    let off = timed(|| two.shutdown().map(drop))?;
    let restart = timed(|| {
        one.crash()?;
        one.start()?;
        one.connect().map(drop)
    })?;
    one.release()?;
    let whole = begin.elapsed().as_secs_f64();
    Ok(vec![whole, banner, restart, off, output, copies, trip, own, trip - own, line])
}

/// Medians, in milliseconds: of `true` by the driver's protocol, of what the guest does for that, and of a line that the shell answers itself.
fn round_trips(machine: &mut Machine, count: usize) -> Result<[f64; 3]> {
    let median = |times: Vec<f64>| Spread::of(times.into_iter()).median;
    let (mut trips, mut owns, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    // In turn, so that whatever else the host does meets all of them.
    for _ in 0..count {
        trips.push(timed(|| machine.succeed("true").map(drop))? * 1e3);
        let own = machine.ask_shell(OWN_TIME)?;
        owns.push(own.parse::<f64>().with_context(|| format!("'{own}' is no time"))? / 1e3);
        lines.push(timed(|| machine.ask_shell("echo hello").map(drop))? * 1e3);
    }
    Ok([median(trips), median(owns), median(lines)])
}

fn there_and_back(machine: &mut Machine) -> Result<()> {
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let (file, back) = (dir.path().join("file"), dir.path().join("back"));
    Pattern { seed: 0 }.write(&file, 1 << 20)?;
    machine.copy_from_host(&file, "/root/file")?;
    machine.copy_from_vm("/root/file", &back)?;
    ensure!(fs::read(&file)? == fs::read(&back)?, "the file was changed on its way");
    Ok(())
}

/// How long something took, in seconds.
fn timed(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    act()?;
    Ok(begin.elapsed().as_secs_f64())
}

fn print(measured: &[(Side, Vec<Vec<f64>>)]) {
    print!("{:<36}", "");
    for (side, _) in measured {
        print!(" {:>26}", side.name());
    }
    println!("{}", if measured.len() == 2 { format!(" {:>7}", "ratio") } else { String::new() });
    for (index, name) in ROWS.iter().enumerate() {
        let spreads: Vec<Spread> = measured
            .iter()
            .map(|(_, reports)| Spread::of(reports.iter().filter_map(|report| report.get(index).copied())))
            .collect();
        print!("{name:<36}");
        for spread in &spreads {
            print!(" {:>26}", spread.to_string());
        }
        match spreads.as_slice() {
            // The guest's own time is measured apart, so that it may come out longer than the whole.
            [ours, theirs] if ours.median > 0.0 && theirs.median > 0.0 => {
                println!(" {:>7.2}", ours.median / theirs.median);
            }
            [_, _] => println!(" {:>7}", "-"),
            _ => println!(),
        }
    }
}
