//! `cargo xtask lab`: hvrun for arm64 Linux on a real KVM. QEMU emulates an arm64 machine that has the virtualisation extensions; Debian's
//! kernel in it offers /dev/kvm, and hvrun, in its initrd, boots the same kernel there. What is checked is in `lab/`; this builds the
//! machines, one with a GICv3 and one with a GICv2, and reads what they say on their serial ports.

mod bench;

use crate::{cross, guest, initrd, libraries, test, workspace};
use anyhow::{Context, Result, anyhow, bail, ensure};
pub use bench::{command as bench, driver as bench_driver, net as bench_net, virtio as bench_virtio};
use hvrun_tests::bare::Program;
use hvrun_tests::disks::{self, Pattern};
use hvrun_tests::process::Supervised;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The emulator, and the Debian package that has it.
const QEMU: (&str, &str) = ("qemu-system-aarch64", "qemu-system-arm");
/// The outer machine's first process.
const INIT: &str = include_str!("../lab/init");
/// What it reads: the checks of guests with virtio devices.
const DEVICES: &str = include_str!("../lab/devices");
/// A CPU that starts at EL2, has VHE, no pointer authentication (slow to emulate), and 40 bits of physical address, which is less than
/// what hvrun's machine could have.
const CPU: &str = "cortex-a76";
/// What a kernel does not need to do here, for both kernels.
const TRIM: &str = "quiet nokaslr rodata=off mitigations=off cryptomgr.notests panic=-1 \
                    initcall_blacklist=load_system_certificate_list,jent_mod_init,bpf_tcp_ca_kfunc_init";
/// How long a whole machine may take.
const LIMIT: Duration = Duration::from_secs(900);
/// How long one guest inside may take, in seconds of the outer machine.
const GUEST_LIMIT_SECONDS: u32 = 400;
/// The address of no device, in a gap before the first.
const NO_DEVICE: u64 = 0x0700_0000;
/// EOT, which ends the guest that sends back what it gets.
const END_OF_TRANSMISSION: u8 = 4;
/// Makes qcow2 images, and the Debian package that has it.
const QEMU_IMG: (&str, &str) = ("qemu-img", "qemu-utils");
/// Debian's packages that have virtiofsd, in the order of the places where it is in them.
const VIRTIOFSD_PACKAGES: [&str; 2] = ["virtiofsd", "qemu-system-common"];
/// The size of the inner guests' disks.
const DISK_SIZE: u64 = 1 << 20;
/// The cargo profile of hvrun: of the software CPU, which is the greatest part, the lab needs little.
const PROFILE: &str = "lab";

/// An outer machine.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// What it says before each line of its.
    name: &'static str,
    /// The version of its interrupt controller, and of those that its KVM has.
    gic: u32,
    /// Its memory, as QEMU writes it.
    memory: &'static str,
    /// How long it may take.
    limit: Duration,
    /// Its checks, in the order in which they are run: functions of `lab/init` and `lab/devices`.
    checks: &'static [&'static str],
}

/// The machines, which run at the same time. What has nothing to do with an interrupt controller is where there is time for it.
const MACHINES: [Machine; 2] = [
    Machine {
        name: "gicv3",
        gic: 3,
        memory: "1536M",
        limit: LIMIT,
        checks: &[
            "power_off_ends_with_0",
            "irqfd_signal_is_taken_as_an_interrupt",
            "unregistered_irqfd_raises_nothing",
            "ioevent_takes_doorbell_writes_without_an_exit",
            "ioevent_takes_only_the_value_that_it_matches",
            "unregistered_ioevent_lets_the_write_exit",
            "second_ioevent_for_the_same_doorbell_is_refused",
            "linux_boots_with_1_cpu",
            "linux_boots_with_2_cpus",
            "linux_boots_with_4_cpus",
            "linux_boots_with_8_cpus",
            "pause_is_left_out_of_the_guest_s_time",
            "devices_work_by_pci_and_after_two_reboots",
            "virtiofs_is_shared_with_a_guest",
        ],
    },
    Machine {
        name: "gicv2",
        gic: 2,
        memory: "1536M",
        limit: LIMIT,
        checks: &[
            "power_off_ends_with_0",
            "irqfd_signal_is_taken_as_an_interrupt",
            "unregistered_irqfd_raises_nothing",
            "linux_boots_and_reboots_twice_on_a_gicv2",
            "devices_and_networks_work_by_pci_on_a_gicv2",
            "devices_work_by_mmio",
            "a_disk_is_plugged_into_a_running_guest_and_pulled",
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
            "auto_with_unreadable_dev_kvm_warns",
            "auto_without_dev_kvm_falls_to_soft_and_says_why",
        ],
    },
];

/// The tests of the CPU seam on a real KVM: package and name.
const KVM_TESTS: (&str, &str) = ("hvrun-arch", "kvm");

/// `cargo xtask lab`.
pub fn command(args: &[OsString]) -> Result<()> {
    let words: Vec<String> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if words.iter().any(|word| word == "--list") {
        for machine in &MACHINES {
            machine.checks.iter().for_each(|check| println!("{}: {check}", machine.name));
        }
        return Ok(());
    }
    let profile = if words.iter().any(|word| word == "--release") { "release" } else { PROFILE };
    let chosen: Vec<String> = words.into_iter().filter(|word| word != "--release").collect();
    if let Some(unknown) = chosen.iter().find(|word| MACHINES.iter().all(|machine| !machine.has(word))) {
        bail!("the lab has no check '{unknown}'; 'cargo xtask lab --list' names them");
    }
    run(profile, &chosen)
}

/// The step of `cargo xtask test`.
pub fn step() -> Result<()> {
    run(PROFILE, &[])
}

/// Runs the `chosen` checks on all machines that have them, or all if none is.
fn run(profile: &str, chosen: &[String]) -> Result<()> {
    test::install_debian_packages(&[QEMU, QEMU_IMG])?;
    let guest = guest::ensure()?;
    let hvrun = hvrun(profile)?;
    let kvm_tests = cross::static_test(KVM_TESTS.0, KVM_TESTS.1, profile)?;
    let dir = dir()?;
    let initrd = dir.join("outer.cpio");
    let mut archive = outer_initrd(&guest, &hvrun)?;
    let tests = fs::read(&kvm_tests).with_context(|| format!("cannot read {}", kvm_tests.display()))?;
    archive.file("lab/kvm-tests", 0o755, &tests)?;
    let wanted = MACHINES.map(|machine| (machine, machine.chosen(chosen)));
    for (machine, checks) in &wanted {
        archive.file(&format!("lab/checks.{}", machine.name), 0o644, checks.join("\n").as_bytes())?;
    }
    let sum = add_devices(&mut archive, &guest)?;
    add_virtiofsd(&mut archive)?;
    let settings = format!("LIMIT={GUEST_LIMIT_SECONDS}\nTRIM='{TRIM}'\nQCOW2_SUM={sum}\n");
    archive.file("lab/settings", 0o644, settings.as_bytes())?;
    guest::write_atomically(&initrd, &archive.finish()?)?;

    let logs = wanted.iter().filter(|(_, checks)| !checks.is_empty());
    let logs = logs.map(|(machine, checks)| (machine, checks, dir.join(format!("{}.log", machine.name))));
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let running: Vec<_> = logs
            .map(|(machine, checks, log)| {
                let (kernel, initrd) = (&guest.kernel, &initrd);
                scope.spawn(move || machine.check(kernel, initrd, checks, &log))
            })
            .collect();
        let panicked = |_| Err(anyhow!("the thread of a machine panicked"));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let failures: Vec<String> =
        results.into_iter().filter_map(|result| result.err().map(|error| format!("{error:#}"))).collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

impl Machine {
    fn has(&self, check: &str) -> bool {
        self.checks.contains(&check)
    }

    /// Those of its checks that are among `names`, or all if there are no names.
    fn chosen(&self, names: &[String]) -> Vec<&'static str> {
        let is_chosen = |check: &&&str| names.is_empty() || names.iter().any(|name| name == **check);
        self.checks.iter().filter(is_chosen).copied().collect()
    }

    /// Boots the machine, and says whether it has passed all `checks`.
    fn check(&self, kernel: &Path, initrd: &Path, checks: &[&str], log: &Path) -> Result<()> {
        let started = Instant::now();
        let mut report = Report { machine: self.name, ..Report::default() };
        boot(self, kernel, initrd, log, &mut |line| report.read(line))?;
        println!(
            "    {}: {} of {} checks passed in {:.1} s",
            self.name,
            report.passed.len(),
            checks.len(),
            started.elapsed().as_secs_f64()
        );
        let missing: Vec<&&str> =
            checks.iter().filter(|check| !report.passed.iter().any(|name| name == **check)).collect();
        ensure!(
            missing.is_empty(),
            "the lab's machine {} did not pass {missing:?}{}{}; {} has what it wrote",
            self.name,
            report.failed.iter().map(|failure| format!("; {failure}")).collect::<String>(),
            if report.ended { "" } else { "; and it did not come to its end" },
            log.display()
        );
        Ok(())
    }
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
    archive.file("lab/devices", 0o644, DEVICES.as_bytes())?;
    archive.file("sbin/hvrun", 0o755, &read(hvrun)?)?;
    archive.file("lab/Image", 0o644, &read(&guest.kernel)?)?;
    archive.file("lab/initrd.cpio", 0o644, &read(&guest.initrd)?)?;
    for (name, program) in programs() {
        archive.file(&format!("lab/{name}"), 0o644, &program.image())?;
    }
    Ok(archive)
}

/// Adds what inner guests with virtio devices need: drivers, the outer machine's one of tap interfaces, a raw disk and a qcow2 one with
/// other contents, whose SHA-256 it returns.
fn add_devices(archive: &mut initrd::Archive, guest: &guest::Guest) -> Result<String> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let first = disks::raw(dir.path(), "first", DISK_SIZE, Pattern { seed: 1 })?;
    let second = disks::raw(dir.path(), "second", DISK_SIZE, Pattern { seed: 2 })?;
    let image = dir.path().join("qcow2");
    disks::convert((&second, "raw"), (&image, "qcow2"), &[])?;
    archive.file("lab/disk.raw", 0o644, &read(&first)?)?;
    archive.file("lab/disk.qcow2", 0o644, &read(&image)?)?;
    archive.file("lab/initrd-virtio.cpio", 0o644, &read(guest.with_modules()?)?)?;
    let tun = guest::module("tun");
    // A kernel that has it built in has no file of it.
    if tun.is_file() {
        archive.file("lab/tun.ko", 0o644, &read(&tun)?)?;
    }
    let output = Command::new("sha256sum").arg(&second).output().context("cannot run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().next().context("sha256sum prints nothing")?.to_owned())
}

/// Adds Debian's virtiofsd and what it loads. Uses the network only the first time.
fn add_virtiofsd(archive: &mut initrd::Archive) -> Result<()> {
    let dir = dir()?;
    let root = dir.join("virtiofsd");
    libraries::unpack(&dir.join("apt"), &VIRTIOFSD_PACKAGES, &root)?;
    libraries::add(archive, &libraries::files(&root, "virtiofsd")?)
}

/// Guests of a few instructions.
fn programs() -> [(&'static str, Program); 6] {
    let hello = || Program::new().print("HELLO\n");
    [
        ("power_off", hello().power_off()),
        ("reset", hello().reset()),
        ("spin", hello().spin()),
        ("sleep", hello().sleep()),
        ("echo", hello().echo_until(END_OF_TRANSMISSION).power_off()),
        ("no_device", Program::new().read(NO_DEVICE).print("ON\n").power_off()),
    ]
}

/// The emulator's command line. A single thread emulates both CPUs: KVM guests of several CPUs are slower with one thread each.
fn qemu(machine: &Machine, kernel: &Path, initrd: &Path) -> Command {
    let mut command = Command::new(QEMU.0);
    command.args(["-M", &format!("virt,virtualization=on,gic-version={}", machine.gic)]);
    command.args(["-cpu", CPU, "-smp", "2", "-m", machine.memory, "-accel", "tcg,thread=single"]);
    command.args(["-nodefaults", "-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    // What the kernel does not know becomes a variable of its first process.
    command.arg("-append").arg(format!("console=ttyAMA0 {TRIM} lab={}", machine.name));
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    command
}

/// What the machine said.
#[derive(Debug, Default)]
struct Report {
    machine: &'static str,
    passed: Vec<String>,
    /// Names of checks, with what was seen.
    failed: Vec<String>,
    ended: bool,
}

/// Boots the outer machine, gives each line of its to `read` as it comes, and keeps all it writes in `log`.
fn boot(
    machine: &Machine,
    kernel: &Path,
    initrd: &Path,
    log: &Path,
    read: &mut dyn FnMut(&str),
) -> Result<()> {
    let mut command = qemu(machine, kernel, initrd);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut log_file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let (process, mut child) = Supervised::spawn(&mut command, machine.limit)?;
    let mut serial = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut line = Vec::new();
    while serial.read_until(b'\n', &mut line)? > 0 {
        log_file.write_all(&line)?;
        read(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let ended = process.wait()?;
    if ended.timed_out {
        bail!("the lab took more than {:?}; {} has what the machine wrote", machine.limit, log.display());
    }
    ensure!(ended.status.success(), "{} failed ({})", QEMU.0, ended.status);
    Ok(())
}

impl Report {
    fn read(&mut self, line: &str) {
        // Whatever the kernel wrote without an end of line stands before it.
        let Some(at) = line.find("LAB") else { return };
        let line = &line[at..];
        let machine = self.machine;
        match line.split_once([' ', '|']) {
            Some(("LAB-OK", rest)) => {
                let (name, seconds) = rest.split_once(' ').unwrap_or((rest, "?"));
                self.passed.push(name.to_owned());
                println!("    {machine}: ok      {name} ({seconds} s)");
            }
            Some(("LAB-PART", rest)) => {
                let (name, seconds) = rest.split_once(' ').unwrap_or((rest, "?"));
                println!("    {machine}: ok        its part {name} ({seconds} s)");
            }
            Some(("LAB-FAILED", rest)) => {
                println!("    {machine}: FAILED  {rest}");
                self.failed.push(rest.to_owned());
            }
            Some(("LAB", rest)) => println!("    {machine}:        {rest}"),
            Some(("LAB-UP", seconds)) => println!("    {machine}: the outer machine is up ({seconds} s)"),
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
        let checks = MACHINES.iter().flat_map(|machine| machine.checks);
        let is_there =
            |check: &&&str| [INIT, DEVICES].iter().any(|it| it.contains(&format!("\n{check}() {{")));
        let missing: Vec<&&str> = checks.filter(|check| !is_there(check)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn chosen_check_is_run_where_it_is() {
        let [gicv3, gicv2] = MACHINES.map(|machine| machine.chosen(&["sigterm_ends_linux".to_owned()]));
        assert_eq!((gicv3.as_slice(), gicv2.as_slice()), ([].as_slice(), ["sigterm_ends_linux"].as_slice()));
    }

    #[test]
    fn failed_check_has_not_passed() {
        let mut report = Report::default();
        report.read("LAB-CHECK a");
        report.read("LAB-FAILED a it ended with 1");
        report.read("LAB-OK b 1.5");
        assert_eq!((report.passed, report.ended), (vec!["b".to_owned()], false));
    }

    #[test]
    fn what_was_seen_of_a_failed_check_is_kept() {
        let mut report = Report::default();
        report.read("LAB-FAILED a its_part: it ended with 1");
        assert_eq!(report.failed, ["a its_part: it ended with 1"]);
    }

    #[test]
    fn part_of_a_check_is_no_check() {
        let mut report = Report::default();
        report.read("LAB-PART a 1.5");
        assert_eq!(report.passed, [""; 0]);
    }

    #[test]
    fn machine_that_says_so_has_come_to_its_end() {
        let mut report = Report::default();
        report.read("LAB-END");
        assert!(report.ended);
    }
}
