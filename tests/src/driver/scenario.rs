//! What a NixOS test does with its machines, and how long a person waits for it: a scenario for benchmarks. What it is run with and who prints
//! the numbers is the caller's.

use super::{Driver, Emulator, Guest, Machine};
use crate::disks::Pattern;
use crate::spread::Spread;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Instant;

/// What is measured: names, and what they are.
pub const ROWS: &[(&str, &str)] = &[
    ("whole", "whole scenario, s"),
    ("banner", "start to the backdoor's banner, s"),
    ("restart", "crash to the next banner, s"),
    ("off", "poweroff to the end, s"),
    ("output", "5 MiB of output, s"),
    ("copies", "1 MiB there and back, s"),
    ("trip", "round trip of `true`, ms"),
    ("own", "of it the guest's own time, ms"),
    ("beyond", "beyond the guest's own, ms"),
    ("line", "round trip of one line, ms"),
];

/// How much of it there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// How often what takes milliseconds is repeated.
    pub trips: usize,
    /// Whether there is a second machine on the VLAN, with which the first one talks.
    pub neighbour: bool,
}

/// What the round trip of `true` makes the guest do; the shell says how long that took, in microseconds.
const OWN_TIME: &str = "a=${EPOCHREALTIME/./}; timeout 900 bash -c 'set -euo pipefail; true' | (base64 -w 0; echo) >/dev/null; echo \
                        ${PIPESTATUS[0]} >/dev/null; echo $((${EPOCHREALTIME/./} - a))";

/// One test. Each value is reported by its name of [`ROWS`] as soon as it is there.
pub fn run(
    emulator: Emulator,
    guest: Guest,
    size: Size,
    report: &mut dyn FnMut(&'static str, f64),
) -> Result<()> {
    let begin = Instant::now();
    let driver = Driver::new(emulator, guest)?;
    let mut one = driver.machine("one", 1)?;
    one.start()?;
    report("banner", one.connect()?.as_secs_f64());
    // Before anything is measured, the guest finishes its boot.
    one.wait_for_unit("multi-user.target")?;
    round_trips(&mut one, size.trips, report)?;
    let output = timed(|| {
        let text = one.succeed("seq 0 764855")?;
        ensure!(text.len() >= 5 << 20, "only {} bytes came", text.len());
        Ok(())
    })?;
    report("output", output);
    report("copies", timed(|| there_and_back(&mut one))?);

    if size.neighbour {
        let mut two = driver.machine("two", 2)?;
        two.start()?;
        two.wait_for_unit("network.service")?;
        one.succeed("ping -c 1 -W 30 192.168.1.2")?;
        one.block()?;
        one.fail("ping -c 1 -W 1 192.168.1.2")?;
        one.unblock()?;
        two.wait_until_succeeds("ping -c 1 -W 30 192.168.1.1")?;
        report("off", timed(|| two.shutdown().map(drop))?);
    }
    let restart = timed(|| {
        one.crash()?;
        one.start()?;
        one.connect().map(drop)
    })?;
    report("restart", restart);
    if size.neighbour {
        one.release()?;
    } else {
        report("off", timed(|| one.shutdown().map(drop))?);
    }
    report("whole", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Reports medians, in milliseconds: of `true` by the driver's protocol, of what the guest does for that, and of a line that the shell
/// answers itself.
fn round_trips(machine: &mut Machine, count: usize, report: &mut dyn FnMut(&'static str, f64)) -> Result<()> {
    let median = |times: Vec<f64>| Spread::of(times.into_iter()).median;
    let (mut trips, mut owns, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    // In turn, so that whatever else the host does meets all of them.
    for _ in 0..count {
        trips.push(timed(|| machine.succeed("true").map(drop))? * 1e3);
        let own = machine.ask_shell(OWN_TIME)?;
        owns.push(own.parse::<f64>().with_context(|| format!("'{own}' is no time"))? / 1e3);
        lines.push(timed(|| machine.ask_shell("echo hello").map(drop))? * 1e3);
    }
    let (trip, own) = (median(trips), median(owns));
    report("trip", trip);
    report("own", own);
    // Measured apart, so that it may come out below zero.
    report("beyond", trip - own);
    report("line", median(lines));
    Ok(())
}

fn there_and_back(machine: &mut Machine) -> Result<()> {
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let (file, back) = (dir.path().join("file"), dir.path().join("back"));
    Pattern { seed: 0 }.write(&file, 1 << 20)?;
    machine.copy_from_host(&file, "/var/lib/file")?;
    machine.copy_from_vm("/var/lib/file", &back)?;
    ensure!(fs::read(&file)? == fs::read(&back)?, "the file was changed on its way");
    Ok(())
}

/// How long something took, in seconds.
fn timed(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    act()?;
    Ok(begin.elapsed().as_secs_f64())
}
