//! Debian's kernel on hvrun's Hypervisor.framework backend, over the simulator of that framework: boots to user space, reboots in
//! place, powers off, and breaks no rule on the way.
#![cfg(not(target_os = "macos"))]

use std::cell::RefCell;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hvrun_arch::{Accel, GicChoice, Hypervisor, HypervisorError};
use hvrun_hvf_sim::{Config, Kicks, MacOs, Session, interrupt_all, leaked_objects, statistics, violations};
use hvrun_tests::disks::{self, Pattern, SECTOR};
use hvrun_tests::{artifacts, process};
use hvrun_vmm::serial::{ChardevConfig, StdioStreams};
use hvrun_vmm::virtio::balloon::BalloonConfig;
use hvrun_vmm::virtio::console::ConsoleConfig;
use hvrun_vmm::{Machine, MachineBuilder, MachineConfig, Outcome, RunningMachine};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Longer than a boot takes on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(150);
const MIB: u64 = 1 << 20;
/// Timer interrupts a second that a busy CPU of the guest has at least.
const LEAST_TICKS: f64 = 10.0;

/// A Mac with a GIC in its kernel.
fn host_gic(kicks: Kicks) -> Config {
    Config { macos: MacOs::V15, kicks, ..Config::default() }
}

/// A Mac without.
fn our_gic(kicks: Kicks) -> Config {
    Config { macos: MacOs::V14, kicks, ..Config::default() }
}

/// Makes the simulator the host's framework, on such a Mac.
fn mac(config: Config) -> Session {
    let session = Session::new(config);
    // SAFETY: the simulator's functions are Apple's.
    unsafe { hvrun_arch::hvf::install_simulator(hvrun_hvf_sim::hv_sim_dlsym) };
    session
}

/// A Linux that runs, and the test's end of its serial port.
struct Guest {
    /// First, so that it is stopped before the rest goes.
    running: Option<RunningMachine>,
    input: PipeWriter,
    output: Receiver<Vec<u8>>,
    seen: String,
    deadline: Instant,
    _mac: Session,
}

/// The description of a machine on Hypervisor.framework.
fn description(cpus: u32, memory: &str) -> Result<MachineConfig> {
    let mut config = MachineConfig::new(artifacts::kernel()?);
    config.initrd = Some(artifacts::initrd()?);
    config.cpus = cpus;
    config.memory = memory.parse()?;
    config.cmdline = "console=ttyAMA0 quiet hvrun=test".to_owned();
    config.accel = vec![Accel::Hvf];
    config.serial = ChardevConfig::None;
    Ok(config)
}

fn machine(mut config: MachineConfig, input: PipeReader, output: PipeWriter) -> Result<Machine> {
    config.serial = ChardevConfig::Stdio;
    let streams =
        StdioStreams { input: Some(OwnedFd::from(input)), output: OwnedFd::from(output), filter: None };
    Ok(MachineBuilder::new(config).stdio(streams).build()?)
}

impl Guest {
    fn boot(mac_config: Config, cpus: u32) -> Result<Guest> {
        Self::boot_with(mac_config, description(cpus, "512M")?)
    }

    fn boot_with(mac_config: Config, config: MachineConfig) -> Result<Guest> {
        let session = mac(mac_config);
        let (guest_input, input) = std::io::pipe()?;
        let (mut from_guest, guest_output) = std::io::pipe()?;
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = from_guest.read(&mut chunk) {
                if sender.send(chunk[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let running = machine(config, guest_input, guest_output)?.start()?;
        let deadline = Instant::now() + LIMIT;
        let mut guest =
            Guest { running: Some(running), input, output, seen: String::new(), deadline, _mac: session };
        guest.expect("HVRUN-READY\n")?;
        Ok(guest)
    }

    /// Waits until the guest has written `marker`, and returns what it wrote before.
    fn expect(&mut self, marker: &str) -> Result<String> {
        loop {
            if let Some((before, after)) = self.seen.split_once(marker) {
                let (before, after) = (before.to_owned(), after.to_owned());
                self.seen = after;
                return Ok(before);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(data) => self.seen.push_str(&String::from_utf8_lossy(&data)),
                Err(error) => bail!(
                    "waited for {marker:?}: {}; serial: {}; rules: {:?}; {:?}",
                    if error == RecvTimeoutError::Timeout { "too long" } else { "the machine ended" },
                    self.seen,
                    violations(),
                    statistics()
                ),
            }
        }
    }

    fn send(&mut self, line: &str) -> Result<()> {
        self.input.write_all(line.as_bytes()).context("the serial port's input")
    }

    /// Runs a command in the guest and returns its output.
    fn sh(&mut self, command: &str) -> Result<String> {
        self.send(&format!("{command}\n"))?;
        let output = self.expect("HVRUN-DONE:")?;
        let status = self.expect("\n")?;
        ensure!(status == "0", "'{command}' ended with {status}: {output}");
        Ok(output)
    }

    /// The guest's uptime in seconds, and how many interrupts of the virtual timer each CPU has had.
    fn timers(&mut self) -> Result<(f64, Vec<u64>)> {
        let text = self.sh("cut -d' ' -f1 /proc/uptime; grep arch_timer /proc/interrupts")?;
        let (uptime, interrupts) = text.split_once('\n').context("two lines")?;
        let counts = interrupts.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
        Ok((uptime.trim().parse()?, counts))
    }

    /// Powers the guest off, and checks that no rule was broken from its beginning to its end.
    fn poweroff(mut self) -> Result<()> {
        self.send("poweroff\n")?;
        let outcome = self.running.take().context("it runs")?.wait()?;
        assert_eq!(outcome, Outcome::PoweredOff);
        assert_eq!(violations(), Vec::<String>::new());
        assert_eq!(leaked_objects(), 0);
        Ok(())
    }
}

/// Boots, gives every CPU something to do, and powers off.
fn boot_and_power_off(mac_config: Config, cpus: u32) -> Result<()> {
    let mut guest = Guest::boot(mac_config, cpus)?;
    assert_eq!(guest.sh("nproc")?.trim(), cpus.to_string());
    assert!(!guest.sh("dmesg")?.contains("x1-x3 nonzero"), "the boot protocol wants X1 to X3 zero");
    let before = guest.timers()?;
    guest.sh(
        "for i in $(seq $(nproc)); do taskset -c $((i - 1)) sh -c 'i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done' & done; wait",
    )?;
    let after = guest.timers()?;
    // By the guest's own clock, in which its 250 ticks a second are due; a host that is busy makes it miss some.
    let enough = (after.0 - before.0) * LEAST_TICKS;
    assert_eq!(after.1.len(), cpus as usize);
    let all = before.1.iter().zip(&after.1).all(|(before, after)| (after - before) as f64 >= enough);
    assert!(all, "from {before:?} to {after:?}");
    // Sleeps, so that every CPU waits in WFI for its timer.
    guest.sh("sleep 1")?;
    guest.poweroff()
}

#[test]
fn linux_boots_with_1_cpu_on_the_hosts_gic() -> Result<()> {
    boot_and_power_off(host_gic(Kicks::Sticky), 1)
}

#[test]
fn linux_boots_with_2_cpus_on_the_hosts_gic() -> Result<()> {
    boot_and_power_off(host_gic(Kicks::Sticky), 2)
}

#[test]
fn linux_boots_with_4_cpus_on_the_hosts_gic() -> Result<()> {
    boot_and_power_off(host_gic(Kicks::Sticky), 4)
}

#[test]
fn linux_boots_with_1_cpu_on_the_hosts_gic_where_early_kicks_are_lost() -> Result<()> {
    boot_and_power_off(host_gic(Kicks::Lost), 1)
}

#[test]
fn linux_boots_with_2_cpus_on_the_hosts_gic_where_early_kicks_are_lost() -> Result<()> {
    boot_and_power_off(host_gic(Kicks::Lost), 2)
}

#[test]
fn linux_boots_with_4_cpus_on_the_hosts_gic_where_early_kicks_are_lost() -> Result<()> {
    boot_and_power_off(host_gic(Kicks::Lost), 4)
}

#[test]
fn linux_boots_with_1_cpu_on_our_gic() -> Result<()> {
    boot_and_power_off(our_gic(Kicks::Sticky), 1)
}

#[test]
fn linux_boots_with_2_cpus_on_our_gic() -> Result<()> {
    boot_and_power_off(our_gic(Kicks::Sticky), 2)
}

#[test]
fn linux_boots_with_4_cpus_on_our_gic() -> Result<()> {
    boot_and_power_off(our_gic(Kicks::Sticky), 4)
}

#[test]
fn linux_boots_with_1_cpu_on_our_gic_where_early_kicks_are_lost() -> Result<()> {
    boot_and_power_off(our_gic(Kicks::Lost), 1)
}

#[test]
fn linux_boots_with_2_cpus_on_our_gic_where_early_kicks_are_lost() -> Result<()> {
    boot_and_power_off(our_gic(Kicks::Lost), 2)
}

#[test]
fn linux_boots_with_4_cpus_on_our_gic_where_early_kicks_are_lost() -> Result<()> {
    boot_and_power_off(our_gic(Kicks::Lost), 4)
}

#[test]
fn linux_boots_with_8_cpus_on_our_gic() -> Result<()> {
    boot_and_power_off(our_gic(Kicks::Sticky), 8)
}

#[test]
fn linux_boots_where_the_counter_is_faster_than_mach_time() -> Result<()> {
    boot_and_power_off(Config { counter_hz: 1_000_000_000, ..our_gic(Kicks::Sticky) }, 2)
}

#[test]
fn linux_boots_with_memory_beyond_the_default_ipa_space() -> Result<()> {
    // It ends at 5 GiB, and 32 bits reach 4; a guest touches little of it.
    let mac_config = Config { default_ipa_bits: 32, max_ipa_bits: 40, ..host_gic(Kicks::Sticky) };
    let guest = Guest::boot_with(mac_config, description(1, "4G")?)?;
    guest.poweroff()
}

#[test]
fn linux_boots_on_our_gic_where_the_host_has_one_too() -> Result<()> {
    let mut config = description(2, "512M")?;
    config.gic = GicChoice::Soft;
    let mut guest = Guest::boot_with(host_gic(Kicks::Sticky), config)?;
    assert_eq!(guest.sh("nproc")?.trim(), "2");
    guest.poweroff()
}

#[test]
fn linux_boots_where_the_counter_is_faster_than_mach_time_on_the_hosts_gic() -> Result<()> {
    boot_and_power_off(Config { counter_hz: 1_000_000_000, ..host_gic(Kicks::Lost) }, 2)
}

/// Reboots twice with 2 CPUs, and powers off.
fn reboot_twice(mac_config: Config) -> Result<()> {
    let mut guest = Guest::boot(mac_config, 2)?;
    for _ in 0..2 {
        guest.sh("[ ! -e /mark ] && touch /mark")?;
        guest.send("reboot\n")?;
        guest.expect("HVRUN-READY\n")?;
    }
    assert_eq!(guest.sh("nproc")?.trim(), "2");
    guest.poweroff()
}

#[test]
fn linux_reboots_in_place_on_the_hosts_gic() -> Result<()> {
    reboot_twice(host_gic(Kicks::Lost))
}

#[test]
fn linux_reboots_in_place_on_our_gic() -> Result<()> {
    reboot_twice(our_gic(Kicks::Lost))
}

#[test]
fn host_signals_do_not_disturb_linux() -> Result<()> {
    let mut guest = Guest::boot(our_gic(Kicks::Sticky), 2)?;
    for _ in 0..50 {
        interrupt_all();
        assert_eq!(guest.sh("echo $((6 * 7))")?, "42\n");
    }
    guest.poweroff()
}

#[test]
fn stopping_a_running_linux_breaks_no_rule() -> Result<()> {
    let mut guest = Guest::boot(host_gic(Kicks::Lost), 4)?;
    guest.send("while :; do :; done\n")?;
    let running = guest.running.take().context("it runs")?;
    running.control().stop();
    assert_eq!(running.wait()?, Outcome::Stopped);
    assert_eq!(violations(), Vec::<String>::new());
    Ok(())
}

/// A machine with a source of entropy and a balloon, whose guest has drivers for all devices.
fn with_drivers() -> Result<MachineConfig> {
    let mut config = description(2, "512M")?;
    config.initrd = Some(artifacts::virtio_initrd()?);
    config.cmdline = hvrun_tests::VIRTIO_COMMAND_LINE.to_owned();
    config.balloon = Some(BalloonConfig::default());
    Ok(config)
}

/// The files on the host of a machine with two disks, a share and a console.
struct Furnished {
    dir: tempfile::TempDir,
    raw: PathBuf,
    qcow2: PathBuf,
}

/// The size of its disks.
const DISK: u64 = MIB;

impl Furnished {
    fn new() -> Result<Furnished> {
        let dir = tempfile::tempdir()?;
        let raw = disks::raw(dir.path(), "disk.raw", DISK, Pattern { seed: 1 })?;
        let qcow2 = disks::qcow2(dir.path(), "disk.qcow2", DISK, "", None)?;
        fs::create_dir(dir.path().join("share"))?;
        fs::write(dir.path().join("share/note"), "from the host\n")?;
        Ok(Furnished { dir, raw, qcow2 })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn description(&self) -> Result<MachineConfig> {
        let mut config = with_drivers()?;
        config.disks = vec![
            format!("{},serial=raw,format=raw", self.raw.display()).parse()?,
            format!("{},serial=qcow2,format=qcow2", self.qcow2.display()).parse()?,
        ];
        config.shares = vec![format!("{}:src", self.path("share").display()).parse()?];
        config.consoles =
            vec![ConsoleConfig { to: ChardevConfig::File(self.path("console")), ..Default::default() }];
        Ok(config)
    }

    /// Each device does its work; what the guest wrote is in its place on the host when the guest is off.
    fn use_by(&self, guest: &mut Guest, boot: &str) -> Result<()> {
        ensure!(guest.sh("disk raw; disk qcow2")? == "/dev/vda\n/dev/vdb\n", "other disks");
        ensure!(
            guest.sh("grep MSI /proc/interrupts | grep -c virtio0-req")?.trim() != "0",
            "no MSI of a disk"
        );
        let copy = "dd if=/dev/vda of=/dev/vdb bs=64k conv=fsync 2>/dev/null; cmp /dev/vda /dev/vdb";
        guest.sh(copy)?;
        guest.sh(&format!(
            "share src /mnt msize=131072 && cp /mnt/note /mnt/{boot} && cat /dev/vda >/mnt/disk"
        ))?;
        ensure!(
            fs::read_to_string(self.path("share").join(boot))? == "from the host\n",
            "not the file of the share"
        );
        guest.sh(&format!("echo console {boot} >/dev/hvc0"))?;
        ensure!(
            guest.sh("cat /sys/class/misc/hw_random/rng_current")?.starts_with("virtio_rng"),
            "no entropy of the host"
        );
        guest.sh("[ $(head -c 4096 /dev/hwrng | gzip | wc -c) -gt 4000 ]").map(drop)
    }

    /// What is on the host when the guest, having done its work, is off.
    fn check(&self) -> Result<()> {
        let sectors = 0..DISK / SECTOR as u64;
        Pattern { seed: 1 }.check(&self.raw, sectors.clone())?;
        Pattern { seed: 1 }.check(&self.path("share/disk"), sectors.clone())?;
        disks::check_qcow2(&self.qcow2)?;
        let copy = self.path("copy");
        disks::convert((&self.qcow2, "qcow2"), (&copy, "raw"), &[])?;
        Pattern { seed: 1 }.check(&copy, sectors)
    }
}

/// Boots with devices, uses them, uses them again after a reboot, and powers off.
fn use_devices(mac_config: Config) -> Result<()> {
    let furnished = Furnished::new()?;
    let mut guest = Guest::boot_with(mac_config, furnished.description()?)?;
    furnished.use_by(&mut guest, "first")?;
    guest.send("reboot\n")?;
    guest.expect("HVRUN-READY\n")?;
    furnished.use_by(&mut guest, "second")?;
    guest.poweroff()?;
    let console = fs::read_to_string(furnished.path("console"))?;
    ensure!(console.contains("console first") && console.contains("console second"), "{console:?}");
    furnished.check()
}

#[test]
fn disks_share_console_and_entropy_reach_linux_on_the_hosts_gic() -> Result<()> {
    use_devices(host_gic(Kicks::Lost))
}

#[test]
fn disks_share_console_and_entropy_reach_linux_on_our_gic() -> Result<()> {
    use_devices(our_gic(Kicks::Lost))
}

#[test]
fn memory_that_linux_has_freed_goes_back_to_the_mac() -> Result<()> {
    let mut guest = Guest::boot_with(host_gic(Kicks::Sticky), with_drivers()?)?;
    guest.sh(
        "mkdir /t; mount -t tmpfs -o size=300M tmpfs /t; dd if=/dev/zero of=/t/x bs=1M count=200 2>/dev/null",
    )?;
    let full = resident()?;
    // Linux reports free pages two seconds after they have been freed.
    guest.sh("rm /t/x; echo 3 >/proc/sys/vm/drop_caches")?;
    let deadline = Instant::now() + LIMIT;
    let mut left = resident()?;
    while left + 150 * MIB > full && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(500));
        left = resident()?;
    }
    ensure!(left + 150 * MIB <= full, "{} MiB before, {} MiB after", full / MIB, left / MIB);
    // What went back can be used again, and is whole.
    guest.sh("for i in $(seq 10); do cp /bin/busybox /t/$i; done; for i in $(seq 10); do cmp /bin/busybox /t/$i || bad=1; done; [ -z \"$bad\" ]")?;
    guest.poweroff()
}

/// The resident memory of this process, which is the Mac and the machine.
fn resident() -> Result<u64> {
    process::resident(rustix::process::getpid())
}

/// What a machine that cannot be made says. Afterwards no rule is broken, and another machine can be made.
fn refusal(mac_config: Config, config: MachineConfig) -> Result<String> {
    let _mac = mac(mac_config);
    let error = Machine::build(config).err().context("it can be made")?;
    assert_eq!((violations(), leaked_objects()), (Vec::new(), 0));
    let mut small = description(1, "512M")?;
    small.gic = GicChoice::Soft;
    drop(Machine::build(small)?);
    assert_eq!((violations(), leaked_objects()), (Vec::new(), 0));
    Ok(error.to_string())
}

#[test]
fn a_gic_that_the_host_refuses_is_one_clear_error() -> Result<()> {
    let mut config = description(1, "512M")?;
    config.gic = GicChoice::Host;
    let text = refusal(Config { refuse_gic: true, ..Config::default() }, config)?;
    assert!(text.contains("hv_gic_create") && text.contains("soft would do"), "{text}");
    Ok(())
}

#[test]
fn a_gic_that_macos_14_does_not_have_is_one_clear_error() -> Result<()> {
    let mut config = description(1, "512M")?;
    config.gic = GicChoice::Host;
    let text = refusal(Config { macos: MacOs::V14, ..Config::default() }, config)?;
    assert!(text.contains("15"), "{text}");
    Ok(())
}

#[test]
fn more_cpus_than_the_host_has_are_one_clear_error() -> Result<()> {
    let text = refusal(Config { max_vcpus: 2, ..Config::default() }, description(4, "512M")?)?;
    assert!(text.contains("at most 2"), "{text}");
    Ok(())
}

#[test]
fn memory_beyond_the_widest_ipa_space_is_one_clear_error() -> Result<()> {
    let mac_config = Config { max_ipa_bits: 36, ..Config::default() };
    let text = refusal(mac_config, description(1, "65536M")?)?;
    assert!(text.contains("memory") && text.contains("hvf"), "{text}");
    Ok(())
}

#[test]
fn a_missing_entitlement_is_named_with_its_remedy() {
    let _mac = mac(Config { entitlement: false, ..Config::default() });
    let error = hvrun_arch::open(&[Accel::Hvf]).expect_err("it has no entitlement").to_string();
    assert!(error.contains("com.apple.security.hypervisor") && error.contains("codesign"), "{error}");
}

#[test]
fn a_missing_entitlement_under_auto_is_a_warning() -> Result<()> {
    let _mac = mac(Config { entitlement: false, ..Config::default() });
    let lines = logged(|| hvrun_arch::open(&[Accel::Hvf, Accel::Soft]))?;
    let [(Level::Warn, line)] = lines.as_slice() else { bail!("not one warning: {lines:?}") };
    ensure!(line.contains("com.apple.security.hypervisor") && line.contains("codesign"), "{line}");
    Ok(())
}

#[test]
fn a_virtual_mac_under_auto_is_no_warning() -> Result<()> {
    let _mac = mac(Config { virtual_machine: true, ..Config::default() });
    let lines = logged(|| hvrun_arch::open(&[Accel::Hvf, Accel::Soft]))?;
    ensure!(lines.iter().all(|(level, _)| *level > Level::Warn), "{lines:?}");
    Ok(())
}

thread_local! {
    /// What this thread has logged.
    static LOGGED: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LOGGED.with_borrow_mut(|lines| lines.push((record.level(), record.args().to_string())));
    }

    fn flush(&self) {}
}

/// What opening an accelerator logs.
fn logged(open: impl FnOnce() -> Opened) -> Result<Vec<(Level, String)>> {
    // Another test of this process may have set it.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
    LOGGED.take();
    open()?;
    Ok(LOGGED.take())
}

/// What opening an accelerator gives.
type Opened = Result<Arc<dyn Hypervisor>, HypervisorError>;

#[test]
fn a_virtual_mac_falls_back_to_the_software_cpu() -> Result<()> {
    let _mac = mac(Config { virtual_machine: true, ..Config::default() });
    let (hypervisor, skipped) = hvrun_arch::open_first(&[Accel::Hvf, Accel::Soft])?;
    assert_eq!(hypervisor.accel(), Accel::Soft);
    assert!(skipped[0].1.to_string().contains("virtual"), "{skipped:?}");
    Ok(())
}
