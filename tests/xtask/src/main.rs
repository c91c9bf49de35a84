//! `cargo xtask`: the one door to every chore of the project. Each chore has a file of its own.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people at a terminal")]

mod apt;
mod bench;
mod cross;
mod demo;
mod elf;
mod guest;
mod initrd;
mod lab;
mod libraries;
mod mac;
mod modules;
mod pypi;
mod systemd;
mod test;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  demo [--run CMD] [--cpus N] [--memory SIZE] [-- HVRUN-OPTIONS]
                 boots Debian's arm64 kernel with a shell on this terminal; with --run, runs
                 CMD in it, prints its output and exits with its status
  test [STEP..]  every check: format, clippy, docs, unit tests, doc tests, end-to-end boots;
                 with STEPs, only these (`test --list` names them)
  bench boot [--rounds N] [--memory SIZE]
                 boots to poweroff, hvrun and qemu-system-aarch64 in turn: time, memory, CPU
  bench disk [--rounds N] [--quick] [--qcow2] [--cpus N] [--transport pci|mmio] [--only SIDE]
                 fio in the guest on a virtio disk, hvrun and QEMU in turn
  bench 9p [--rounds N] [--quick] [--host] [--cpus N] [--transport pci|mmio] [--only SIDE]
                 a share used from the guest, hvrun and QEMU in turn; and the 9P server without
                 a guest, beside diod
  bench net [--rounds N] [--quick] [--host] [--network user|vde] [--cpus N]
            [--transport pci|mmio] [--only SIDE]
                 iperf3 and small exchanges between guest and host, and between two guests, hvrun
                 and QEMU in turn; with --host, the NAT without a guest
  bench driver [--rounds N] [--quick] [--only SIDE]
                 a NixOS test's scenario by its driver's protocol, hvrun and QEMU in turn: the
                 whole, the time to the backdoor's banner, a command's round trip
  bench lab [--rounds N] [--virtio | --net | --driver]
                 boots (or disk and share, or network, or the scenario of bench driver) on KVM,
                 inside the lab's emulated machine, and the time to KVM_RUN
  lab [--list] [--release] [CHECK..]
                 boots hvrun's arm64 build, with KVM, inside an emulated machine: every check
                 or only these
  cross [--from-source]
                 gets Rust's standard library for arm64 Linux and macOS and checks that it works
  mac [--release] [check] [link]
                 type-checks everything for macOS, links hvrun for it and looks whether the
                 oldest supported macOS has what it imports; signs it if rcodesign is there
  guest          fetches the guest of the above into target/guest (they do it themselves)
  help           this text

Environment:
  HVRUN_BIN                a hvrun to use instead of building one (demo, bench)
  HVRUN_ZIG                a zig to link with for macOS instead of the one from PyPI
  HVRUN_GUEST_KERNEL       an arm64 kernel to use instead of Debian's
  HVRUN_GUEST_MODULES      the lib/modules/VERSION of that kernel
  HVRUN_GUEST_BUSYBOX      a static arm64 busybox to use instead of Debian's
";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let result = match args.first().map(|word| word.to_string_lossy()).as_deref() {
        Some("demo") => demo::command(rest),
        Some("test") => test::command(rest),
        Some("bench") => bench::command(rest).map(|()| ExitCode::SUCCESS),
        Some("lab") => lab::command(rest).map(|()| ExitCode::SUCCESS),
        Some("cross") => cross::command(rest).map(|()| ExitCode::SUCCESS),
        Some("mac") => mac::command(rest),
        Some("guest") => guest::command().map(|()| ExitCode::SUCCESS),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => {
            eprintln!(
                "xtask: {}\n\n{HELP}",
                other.map_or("no command".into(), |word| format!("no command '{word}'"))
            );
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
