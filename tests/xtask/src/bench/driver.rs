//! `cargo xtask bench driver`: what a NixOS test does with its machines, by the NixOS test driver's protocol, with hvrun and with QEMU in
//! turn. The driver is that of the tests; what is measured is how long a person waits.

use super::QEMU;
use super::options::{Options, Side};
use super::virtio::{self, Report};
use crate::{guest, systemd, test, workspace};
use anyhow::Result;
use hvrun_tests::driver::scenario::{self, Size};
use hvrun_tests::driver::{Emulator, Guest};

const ROUNDS: usize = 3;
/// The switch between machines, and the Debian package that has it.
const VDE_SWITCH: (&str, &str) = ("vde_switch", "vde2");
/// How often what takes milliseconds is repeated, and how often with `--quick`.
const TRIPS: (usize, usize) = (50, 10);

/// `cargo xtask bench driver`.
pub fn command(options: &Options) -> Result<()> {
    test::install_debian_packages(&[QEMU, VDE_SWITCH])?;
    let guest = guest::ensure()?;
    let systemd = systemd::ensure(&guest)?;
    let guest = Guest { kernel: guest.kernel, initrd: systemd.initrd, store: systemd.store };
    let rounds = options.rounds(ROUNDS);
    let trips = if options.quick { TRIPS.1 } else { TRIPS.0 };
    let mut measured: Vec<(Side, Vec<Report>)> = Vec::new();
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
            let mut report = Report::default();
            let size = Size { trips, neighbour: true };
            scenario::run(emulator, guest.clone(), size, &mut |name, value| {
                report.values.insert(name.to_owned(), value);
            })?;
            reports.push(report);
        }
    }
    println!("Two machines with systemd, {rounds} rounds in turn, median (smallest to largest)\n");
    virtio::print(scenario::ROWS, &measured);
    Ok(())
}
