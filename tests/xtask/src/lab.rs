//! `cargo xtask lab`: hvrun for arm64 Linux on a real KVM. QEMU emulates an arm64 machine that has the virtualisation extensions; Debian's
//! kernel in it offers /dev/kvm, and hvrun, in its initrd, boots the same kernel there. What is checked is in `lab/init`; this builds the
//! machine and reads what it says on its serial port.

mod bench;

use crate::{cross, guest, initrd, test, workspace};
use anyhow::{Context, Result, bail, ensure};
pub use bench::command as bench;
use hvrun_tests::bare::Program;
use hvrun_tests::process::Supervised;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The emulator, and the Debian package that has it.
const QEMU: (&str, &str) = ("qemu-system-aarch64", "qemu-system-arm");
/// The outer machine's first process.
const INIT: &str = include_str!("../lab/init");
/// A CPU that starts at EL2, has VHE, no pointer authentication (slow to emulate), and 40 bits of physical address, which is less than
/// what hvrun's machine could have.
const CPU: &str = "cortex-a76";
/// What a kernel does not need to do here, for both kernels.
const TRIM: &str = "quiet nokaslr rodata=off mitigations=off cryptomgr.notests panic=-1 \
                    initcall_blacklist=load_system_certificate_list,jent_mod_init,bpf_tcp_ca_kfunc_init";
/// How long the whole machine may take.
const LIMIT: Duration = Duration::from_secs(900);
/// How long one guest inside may take, in seconds of the outer machine.
const GUEST_LIMIT_SECONDS: u32 = 150;
/// The address of no device, in a gap before the first.
const NO_DEVICE: u64 = 0x0700_0000;
/// The cargo profile of hvrun: of the software CPU, which is the greatest part, the lab needs little.
const PROFILE: &str = "lab";

/// The checks, in the order in which they are run: functions of `lab/init`.
const CHECKS: &[&str] = &[
    "power_off_ends_with_0",
    "linux_boots_with_1_cpu",
    "linux_boots_with_2_cpus",
    "linux_boots_with_4_cpus",
    "linux_boots_with_8_cpus",
    "reboot_in_place_twice",
    "no_reboot_ends_at_a_reset",
    "reset_starts_the_program_afresh",
    "sigterm_ends_a_guest_that_computes",
    "sigterm_ends_a_guest_that_sleeps",
    "sigterm_ends_linux",
    "read_where_no_device_is_does_not_stop_the_machine",
    "auto_chooses_kvm_and_says_so_in_one_line",
    "too_many_vcpus_are_refused",
    "memory_beyond_the_address_space_is_refused",
    "missing_dev_kvm_is_named",
    "unreadable_dev_kvm_is_named",
    "auto_without_dev_kvm_falls_to_soft_and_says_why",
];

/// `cargo xtask lab`.
pub fn command(args: &[OsString]) -> Result<()> {
    let words: Vec<String> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if words.iter().any(|word| word == "--list") {
        CHECKS.iter().for_each(|check| println!("{check}"));
        return Ok(());
    }
    let profile = if words.iter().any(|word| word == "--release") { "release" } else { PROFILE };
    let mut chosen = Vec::new();
    for word in words.iter().filter(|word| *word != "--release") {
        let check = CHECKS.iter().find(|check| **check == word.as_str());
        chosen.push(*check.with_context(|| {
            format!("the lab has no check '{word}'; 'cargo xtask lab --list' names them")
        })?);
    }
    run(profile, if chosen.is_empty() { CHECKS } else { &chosen })
}

/// The step of `cargo xtask test`.
pub fn step() -> Result<()> {
    run(PROFILE, CHECKS)
}

fn run(profile: &str, checks: &[&str]) -> Result<()> {
    test::install_debian_packages(&[QEMU])?;
    let guest = guest::ensure()?;
    let hvrun = hvrun(profile)?;
    let dir = dir()?;
    let initrd = dir.join("outer.cpio");
    let mut archive = outer_initrd(&guest, &hvrun)?;
    archive.file("lab/checks", 0o644, checks.join("\n").as_bytes())?;
    let settings = format!("LIMIT={GUEST_LIMIT_SECONDS}\nTRIM='{TRIM}'\n");
    archive.file("lab/settings", 0o644, settings.as_bytes())?;
    guest::write_atomically(&initrd, &archive.finish()?)?;

    let log = dir.join("serial.log");
    let started = Instant::now();
    let mut report = Report::default();
    boot(&guest.kernel, &initrd, &log, &mut |line| report.read(line))?;
    println!(
        "    {} of {} checks passed in {:.1} s",
        report.passed.len(),
        checks.len(),
        started.elapsed().as_secs_f64()
    );
    let missing: Vec<&&str> =
        checks.iter().filter(|check| !report.passed.iter().any(|name| name == **check)).collect();
    ensure!(
        missing.is_empty(),
        "the lab did not pass {missing:?}{}; {} has what the machine wrote",
        if report.ended { "" } else { ", and the machine did not come to its end" },
        log.display()
    );
    Ok(())
}

/// The hvrun to put into the machine.
fn hvrun(profile: &str) -> Result<PathBuf> {
    match std::env::var_os(workspace::LAB_BINARY_VAR) {
        Some(path) => Ok(path.into()),
        None => cross::static_hvrun(profile),
    }
}

/// Where the lab's files lie.
fn dir() -> Result<PathBuf> {
    let dir = workspace::root().join("target/lab");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// The outer machine's initrd without what it shall do: uncompressed, because unpacking is slow to emulate.
fn outer_initrd(guest: &guest::Guest, hvrun: &Path) -> Result<initrd::Archive> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = initrd::Archive::default();
    for dir in ["bin", "dev", "etc", "lab", "proc", "sbin", "sys", "tmp"] {
        archive.dir(dir)?;
    }
    archive.char_device("dev/console", 5, 1)?;
    archive.file("bin/busybox", 0o755, &read(&guest::dir().join("busybox"))?)?;
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/:/bin/sh\nnobody::65534:65534:nobody:/:/bin/sh\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("sbin/hvrun", 0o755, &read(hvrun)?)?;
    archive.file("lab/Image", 0o644, &read(&guest.kernel)?)?;
    archive.file("lab/initrd.cpio", 0o644, &read(&guest.initrd)?)?;
    for (name, program) in programs() {
        archive.file(&format!("lab/{name}"), 0o644, &program.image())?;
    }
    Ok(archive)
}

/// Guests of a few instructions.
fn programs() -> [(&'static str, Program); 5] {
    let hello = || Program::new().print("HELLO\n");
    [
        ("power_off", hello().power_off()),
        ("reset", hello().reset()),
        ("spin", hello().spin()),
        ("sleep", hello().sleep()),
        ("no_device", Program::new().read(NO_DEVICE).print("ON\n").power_off()),
    ]
}

/// The emulator's command line. A single thread emulates both CPUs: KVM guests of several CPUs are slower with one thread each.
fn qemu(kernel: &Path, initrd: &Path) -> Command {
    let mut command = Command::new(QEMU.0);
    command.args(["-M", "virt,virtualization=on,gic-version=3", "-cpu", CPU, "-smp", "2", "-m", "1536M"]);
    command.args(["-accel", "tcg,thread=single", "-nodefaults", "-nic", "none", "-display", "none"]);
    command.args(["-serial", "stdio", "-no-reboot", "-append"]).arg(format!("console=ttyAMA0 {TRIM}"));
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    command
}

/// What the machine said.
#[derive(Debug, Default)]
struct Report {
    passed: Vec<String>,
    ended: bool,
}

/// Boots the outer machine, gives each line of its to `read` as it comes, and keeps all it writes in `log`.
fn boot(kernel: &Path, initrd: &Path, log: &Path, read: &mut dyn FnMut(&str)) -> Result<()> {
    let mut command = qemu(kernel, initrd);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut log_file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let (process, mut child) = Supervised::spawn(&mut command, LIMIT)?;
    let mut serial = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut line = Vec::new();
    while serial.read_until(b'\n', &mut line)? > 0 {
        log_file.write_all(&line)?;
        read(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let ended = process.wait()?;
    if ended.timed_out {
        bail!("the lab took more than {LIMIT:?}; {} has what the machine wrote", log.display());
    }
    ensure!(ended.status.success(), "{} failed ({})", QEMU.0, ended.status);
    Ok(())
}

impl Report {
    fn read(&mut self, line: &str) {
        // Whatever the kernel wrote without an end of line stands before it.
        let Some(at) = line.find("LAB") else { return };
        let line = &line[at..];
        match line.split_once([' ', '|']) {
            Some(("LAB-OK", rest)) => {
                let (name, seconds) = rest.split_once(' ').unwrap_or((rest, "?"));
                self.passed.push(name.to_owned());
                println!("    ok      {name} ({seconds} s)");
            }
            Some(("LAB-FAILED", rest)) => println!("    FAILED  {rest}"),
            Some(("LAB", rest)) => println!("           {rest}"),
            Some(("LAB-UP", seconds)) => println!("    the outer machine is up ({seconds} s)"),
            _ if line == "LAB-END" => self.ended = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_a_function_of_the_script() {
        let missing: Vec<&&str> =
            CHECKS.iter().filter(|check| !INIT.contains(&format!("\n{check}() {{"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn failed_check_has_not_passed() {
        let mut report = Report::default();
        report.read("LAB-CHECK a");
        report.read("LAB-FAILED a it ended with 1");
        report.read("LAB-OK b 1.5");
        assert_eq!((report.passed.as_slice(), report.ended), (["b".to_owned()].as_slice(), false));
    }

    #[test]
    fn machine_that_says_so_has_come_to_its_end() {
        let mut report = Report::default();
        report.read("LAB-END");
        assert!(report.ended);
    }
}
