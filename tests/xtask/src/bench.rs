//! `cargo xtask bench`, and of it `bench boot`: hvrun beside QEMU on this machine, in turn, so that whatever else the machine does meets both.

mod diod;
pub(crate) mod disk;
mod driver;
pub(crate) mod net;
pub(crate) mod ninep;
pub(crate) mod options;
pub(crate) mod virtio;

use crate::{guest, lab, test, workspace};
use anyhow::{Context, Result, ensure};
use hvrun_tests::bare::Program;
use hvrun_tests::process::{Ended, Supervised, cpu_time};
use hvrun_tests::spread::Spread;
use options::Options;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// QEMU's emulator, and the Debian package that has it.
const QEMU: (&str, &str) = ("qemu-system-aarch64", "qemu-system-arm");
/// Powers off as soon as the kernel starts its first process: what is measured is the boot.
const POWEROFF_COMMAND_LINE: &str = "console=ttyAMA0 rdinit=/bin/busybox -- poweroff -f";
/// A run that takes longer is a failure.
const LIMIT: Duration = Duration::from_secs(300);
/// How long an idle guest is watched.
const IDLE: Duration = Duration::from_secs(10);

/// How often `bench boot` and `bench lab` run each side, if nothing is said.
const ROUNDS: usize = 5;
/// How often `bench lab --net` does, whose guests take a minute each.
const NET_ROUNDS: usize = 3;
/// How often `bench lab --driver` does, whose round takes minutes.
const DRIVER_ROUNDS: usize = 1;

/// `cargo xtask bench`.
pub fn command(args: &[OsString]) -> Result<()> {
    let words: Vec<String> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let (name, options) = options::parse(&words)?;
    match name {
        "disk" => disk::command(&options),
        "driver" => driver::command(&options),
        "9p" => ninep::command(&options),
        "net" => net::command(&options),
        "lab" if options.net => lab::bench_net(options.rounds(NET_ROUNDS)),
        "lab" if options.driver => lab::bench_driver(options.rounds(DRIVER_ROUNDS)),
        "lab" if options.virtio => lab::bench_virtio(options.rounds(ROUNDS)),
        "lab" => lab::bench(options.rounds(ROUNDS)),
        _ => boot(&options),
    }
}

fn boot(options: &Options) -> Result<()> {
    test::install_debian_packages(&[QEMU])?;
    let guest = guest::ensure()?;
    let hvrun = workspace::release_hvrun()?;
    let rounds = options.rounds(ROUNDS);
    println!(
        "Debian's kernel to poweroff, {} of memory, {} rounds in turn, median (smallest to largest)\n",
        options.memory, rounds
    );
    for cpus in [1, 2] {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..rounds {
            ours.push(measure(&mut hvrun_boot(&hvrun, &guest, options, cpus))?);
            theirs.push(measure(&mut qemu_boot(&guest, options, cpus))?);
        }
        report(cpus, &ours, &theirs);
    }
    first_instruction(&hvrun, options)?;
    idle(&hvrun, &guest, options)
}

fn hvrun_boot(hvrun: &Path, guest: &guest::Guest, options: &Options, cpus: u32) -> Command {
    let mut command = Command::new(hvrun);
    command.args(["--accel", "soft", "--cpus", &cpus.to_string(), "--memory", &options.memory]);
    command.args(["--no-reboot", "--append", POWEROFF_COMMAND_LINE]).arg(&guest.kernel).arg(&guest.initrd);
    command
}

fn qemu_boot(guest: &guest::Guest, options: &Options, cpus: u32) -> Command {
    let mut command = Command::new(QEMU.0);
    command.args([
        "-accel",
        "tcg",
        "-cpu",
        "cortex-a72",
        "-M",
        "virt,gic-version=3",
        "-nodefaults",
        "-display",
        "none",
    ]);
    command.args(["-serial", "stdio", "-no-reboot", "-smp", &cpus.to_string(), "-m", &options.memory]);
    command
        .args(["-append", POWEROFF_COMMAND_LINE, "-kernel"])
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initrd);
    command
}

/// Runs a guest to its poweroff.
fn measure(command: &mut Command) -> Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let (process, mut child) = Supervised::spawn(command, LIMIT)?;
    let mut serial = Vec::new();
    child.stdout.take().context("no stdout")?.read_to_end(&mut serial)?;
    let ended = process.wait()?;
    let what = || workspace::describe(command);
    ensure!(!ended.timed_out, "'{}' took more than {LIMIT:?}", what());
    ensure!(ended.status.success(), "'{}' failed ({})", what(), ended.status);
    let text = String::from_utf8_lossy(&serial);
    ensure!(!text.contains("Kernel panic"), "the guest of '{}' panicked: {text}", what());
    Ok(ended)
}

/// Prints the table for one number of CPUs.
fn report(cpus: u32, ours: &[Ended], theirs: &[Ended]) {
    println!(
        "{cpus} CPU{:<15} {:>26} {:>26} {:>7}",
        if cpus == 1 { "" } else { "s" },
        "hvrun",
        "QEMU (tcg)",
        "ratio"
    );
    type Value = fn(&Ended) -> f64;
    let rows: [(&str, Value); 4] = [
        ("wall time, s", |ended| ended.wall.as_secs_f64()),
        ("user CPU, s", |ended| ended.usage.user.as_secs_f64()),
        ("system CPU, s", |ended| ended.usage.system.as_secs_f64()),
        ("peak memory, MiB", |ended| ended.usage.max_rss_kib as f64 / 1024.0),
    ];
    for (name, value) in rows {
        let ours = Spread::of(ours.iter().map(value));
        let theirs = Spread::of(theirs.iter().map(value));
        println!(
            "  {name:<18} {:>26} {:>26} {:>7.2}",
            ours.to_string(),
            theirs.to_string(),
            ours.median / theirs.median
        );
    }
    println!();
}

/// From the start of the process to the end of a guest whose first instructions ask for the poweroff: an upper bound of the time to the
/// first instruction. And the same of a program that does nothing, to see what the host itself takes.
fn first_instruction(hvrun: &Path, options: &Options) -> Result<()> {
    const ROUNDS: usize = 20;
    let (_dir, kernel) = Program::new().power_off().file()?;
    let mut whole = Vec::new();
    let mut nothing = Vec::new();
    for _ in 0..ROUNDS {
        let mut command = Command::new(hvrun);
        command.args(["--accel", "soft", "--memory", &options.memory]).arg(&kernel);
        whole.push(measure(&mut command)?.wall);
        nothing.push(measure(&mut Command::new("true"))?.wall);
    }
    let milliseconds = |times: &[Duration]| Spread::of(times.iter().map(|time| time.as_secs_f64() * 1e3));
    println!("process start to poweroff of a guest of three instructions, {ROUNDS} rounds, ms");
    println!(
        "  hvrun              {:>26}\n  /bin/true          {:>26}\n",
        milliseconds(&whole).to_string(),
        milliseconds(&nothing).to_string()
    );
    Ok(())
}

/// The CPU that hvrun uses while its guest waits at a shell prompt.
fn idle(hvrun: &Path, guest: &guest::Guest, options: &Options) -> Result<()> {
    let mut command = Command::new(hvrun);
    command.args([
        "--accel",
        "soft",
        "--memory",
        &options.memory,
        "--append",
        "console=ttyAMA0 quiet hvrun=test",
    ]);
    command.arg(&guest.kernel).arg(&guest.initrd).stdin(Stdio::piped()).stdout(Stdio::piped());
    let (process, mut child) = Supervised::spawn(&mut command, LIMIT)?;
    let mut serial = child.stdout.take().context("no stdout")?;
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while !String::from_utf8_lossy(&text).contains("HVRUN-READY") {
        let count = serial.read(&mut chunk)?;
        ensure!(count > 0, "the guest did not come up: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&chunk[..count]);
    }
    // Let it finish what it does after a boot.
    std::thread::sleep(Duration::from_secs(2));
    let (before, started) = (cpu_time(process.pid())?, Instant::now());
    std::thread::sleep(IDLE);
    let used =
        cpu_time(process.pid())?.saturating_sub(before).as_secs_f64() / started.elapsed().as_secs_f64();
    println!("idle guest at a prompt, over {IDLE:?}: {:.2} % of one host core", used * 100.0);
    child.stdin.take().context("no stdin")?.write_all(b"poweroff\n")?;
    process.wait()?;
    Ok(())
}
