//! The life of a machine on a scripted hypervisor: start, device accesses, resets, every kind of end. No guest code runs.

mod fake;
mod hotplug;
mod pause;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{FakeHypervisor, Log, Step};
use hvrun_arch::aarch64::layout::RAM_BASE;
use hvrun_vmm::serial::{CharBackend, Null, Stream};
use hvrun_vmm::{
    BuildError, ConfigError, Machine, MachineBuilder, MachineConfig, MemorySize, Outcome, RunError,
};
use tempfile::TempDir;

/// The PL011's registers (ARM DDI 0183, 3.2) and its first identification byte.
const UART: u64 = 0x0900_0000;
const UARTCR: u64 = UART + 0x30;
const UARTPERIPHID0: u64 = UART + 0xFE0;

/// Where nothing is loaded.
const FREE_RAM: u64 = RAM_BASE + (48 << 20);

/// A machine about to be built: 64 MiB of memory and a kernel of nothing but a header.
struct Setup {
    dir: TempDir,
    config: MachineConfig,
    hypervisor: FakeHypervisor,
    serial: Arc<dyn CharBackend>,
    log: Log,
}

/// `scripts[cpu][boot]`, as many CPUs as there are scripts.
fn setup(scripts: Vec<Vec<Vec<Step>>>) -> Setup {
    let dir = TempDir::new().unwrap();
    let kernel = dir.path().join("Image");
    std::fs::write(&kernel, image()).unwrap();
    let mut config = MachineConfig::new(kernel);
    config.cpus = scripts.len() as u32;
    config.memory = MemorySize::from_mib(64);
    let log = Log::default();
    let hypervisor = FakeHypervisor { scripts, log: log.clone(), unmakeable: None };
    Setup { dir, config, hypervisor, serial: Arc::new(Null), log }
}

/// The header of an arm64 `Image` (Linux Documentation/arch/arm64/booting.rst) that claims 4 KiB, and the rest of these.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(&0x1400_0010u32.to_le_bytes());
    bytes[16..24].copy_from_slice(&4096u64.to_le_bytes());
    bytes[24..32].copy_from_slice(&0b1010u64.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}

impl Setup {
    fn build(self) -> Result<(Machine, Log, TempDir), BuildError> {
        let builder =
            MachineBuilder::new(self.config).hypervisor(Arc::new(self.hypervisor)).serial(self.serial);
        Ok((builder.build()?, self.log, self.dir))
    }

    /// Runs it to its end.
    fn run(self) -> (Result<Outcome, RunError>, Log) {
        let (machine, log, _dir) = self.build().unwrap();
        (machine.start().and_then(|running| running.wait()), log)
    }
}

#[test]
fn power_off_ends_the_machine_and_drops_every_vcpu() {
    let (end, log) = setup(vec![vec![vec![Step::Off]], vec![], vec![]]).run();
    assert_eq!(end.unwrap(), Outcome::PoweredOff);
    assert_eq!((log.count("create"), log.count("drop")), (3, 3));
}

#[test]
fn device_answers_a_read() {
    let (end, log) = setup(vec![vec![vec![Step::Read(UARTPERIPHID0), Step::Off]]]).run();
    end.unwrap();
    assert!(log.lines().contains(&"read 0 0x11".to_owned()), "{:?}", log.lines());
}

#[test]
fn read_where_no_device_is_gives_zero() {
    let (end, log) = setup(vec![vec![vec![Step::Read(0x0700_0000), Step::Off]]]).run();
    end.unwrap();
    assert!(log.lines().contains(&"read 0 0x0".to_owned()), "{:?}", log.lines());
}

#[test]
fn guest_resets_twice_in_place() {
    let boots = vec![vec![Step::Reset], vec![Step::Reset]];
    let (machine, log, _dir) = setup(vec![boots, vec![]]).build().unwrap();
    let running = machine.start().unwrap();
    // Not from a vCPU of the last boot: the machine could end before the other one has begun it.
    while log.count("reset 0") + log.count("reset 1") < 4 {
        std::thread::yield_now();
    }
    running.control().stop();
    assert_eq!(running.wait().unwrap(), Outcome::Stopped);
    let counts = ["reset vm", "reset 0", "reset 1", "create", "drop"].map(|line| log.count(line));
    assert_eq!(counts, [2, 2, 2, 2, 2]);
}

#[test]
fn machine_is_reset_before_its_vcpus() {
    let (end, log) = setup(vec![vec![vec![Step::Reset], vec![Step::Off]]]).run();
    end.unwrap();
    let entry = format!("reset 0 at {RAM_BASE:#x}");
    assert_eq!(log.lines(), ["create 0", "reset vm", &entry, "drop 0"]);
}

#[test]
fn cpu_other_than_the_boot_cpu_can_reset_and_power_off() {
    let (end, log) = setup(vec![vec![], vec![vec![Step::Reset], vec![Step::Off]]]).run();
    assert_eq!(end.unwrap(), Outcome::PoweredOff);
    assert_eq!(log.count("reset vm"), 1);
}

#[test]
fn cpus_that_ask_for_a_reset_together_get_one() {
    let boots = || vec![vec![Step::Reset], vec![Step::Off]];
    let (end, log) = setup(vec![boots(), boots(), boots(), boots()]).run();
    assert_eq!(end.unwrap(), Outcome::PoweredOff);
    assert_eq!(log.count("reset vm"), 1);
}

#[test]
fn hundred_resets_asked_by_eight_cpus_in_turn_lose_nobody() {
    let mut scripts = vec![vec![]; 8];
    for boot in 0..100 {
        for (cpu, boots) in scripts.iter_mut().enumerate() {
            boots.push(if boot % 8 == cpu { vec![Step::Reset] } else { vec![] });
        }
    }
    scripts[3].push(vec![Step::Off]);
    let (end, log) = setup(scripts).run();
    assert_eq!(end.unwrap(), Outcome::PoweredOff);
    assert_eq!((log.count("reset vm"), log.count("reset 3")), (100, 100));
}

#[test]
fn reset_empties_ram_and_loads_the_kernel_again() {
    let first = vec![Step::Poke(FREE_RAM, 7), Step::Poke(RAM_BASE, 8), Step::Reset];
    let second = vec![Step::Peek(FREE_RAM), Step::Peek(RAM_BASE), Step::Off];
    let (end, log) = setup(vec![vec![first, second]]).run();
    end.unwrap();
    let lines = log.lines();
    let peeks: Vec<_> = lines.iter().filter(|line| line.starts_with("peek")).collect();
    assert_eq!(peeks, ["peek 0 0x0", "peek 0 0x14000010"]);
}

#[test]
fn reset_resets_the_devices() {
    let first = vec![Step::Write(UARTCR, 0x301), Step::Read(UARTCR), Step::Reset];
    let second = vec![Step::Read(UARTCR), Step::Off];
    let (end, log) = setup(vec![vec![first, second]]).run();
    end.unwrap();
    let lines = log.lines();
    let reads: Vec<_> = lines.iter().filter(|line| line.starts_with("read")).collect();
    // 0x300 is the reset value (DDI 0183 3.3.8).
    assert_eq!(reads, ["read 0 0x301", "read 0 0x300"]);
}

#[test]
fn reset_ends_the_machine_under_no_reboot() {
    let mut setup = setup(vec![vec![vec![Step::Reset]], vec![]]);
    setup.config.lifecycle.no_reboot = true;
    let (end, log) = setup.run();
    assert_eq!(end.unwrap(), Outcome::Reset);
    assert_eq!(log.count("reset"), 0);
}

#[test]
fn reset_with_a_kernel_cut_short_meanwhile_is_an_error_that_names_it() {
    let (machine, _log, dir) = setup(vec![vec![vec![Step::Reset]], vec![]]).build().unwrap();
    let kernel: PathBuf = dir.path().join("Image");
    File::options().write(true).open(&kernel).unwrap().set_len(100).unwrap();
    let error = machine.start().and_then(|running| running.wait()).unwrap_err();
    let RunError::ResetLoad(cause) = error else { panic!("{error}") };
    assert!(cause.to_string().contains("Image"), "{cause}");
}

#[test]
fn fault_ends_the_machine_with_reason_cpu_and_registers() {
    let (end, log) = setup(vec![vec![], vec![vec![Step::Fault]]]).run();
    let report = end.unwrap_err().to_string();
    assert_eq!(report, "the guest cannot go on: it tripped over 0xbad\nPC=0x1234 CPU=1");
    assert_eq!(log.count("drop"), 2);
}

#[test]
fn failing_hypervisor_ends_the_machine() {
    let (end, log) = setup(vec![vec![], vec![vec![Step::Fail]]]).run();
    assert!(matches!(end, Err(RunError::Vcpu { cpu: 1, .. })), "{end:?}");
    assert_eq!(log.count("drop"), 2);
}

#[test]
fn panic_on_a_vcpu_thread_ends_the_machine_with_its_message() {
    let (end, log) = setup(vec![vec![], vec![vec![Step::Panic]]]).run();
    let Err(RunError::Panicked { cpu, message }) = end else { panic!("{end:?}") };
    assert_eq!((cpu, message.as_str()), (1, "scripted panic"));
    assert_eq!(log.count("drop"), 2);
}

#[test]
fn vcpu_that_cannot_be_made_fails_the_start() {
    let mut setup = setup(vec![vec![], vec![], vec![]]);
    setup.hypervisor.unmakeable = Some(1);
    let (machine, log, _dir) = setup.build().unwrap();
    let error = machine.start().unwrap_err();
    assert!(matches!(error, RunError::Vcpu { cpu: 1, .. }), "{error}");
    assert_eq!((log.count("create"), log.count("drop")), (2, 2));
}

#[test]
fn stop_from_another_thread_ends_an_idle_machine() {
    let (machine, log, _dir) = setup(vec![vec![], vec![]]).build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    let stopper = std::thread::spawn(move || control.stop());
    assert_eq!(running.wait().unwrap(), Outcome::Stopped);
    stopper.join().unwrap();
    assert_eq!(log.count("drop"), 2);
}

#[test]
fn machine_stopped_before_its_start_runs_nothing() {
    let (machine, log, _dir) = setup(vec![vec![vec![Step::Panic]]]).build().unwrap();
    machine.control().stop();
    assert_eq!(machine.start().unwrap().wait().unwrap(), Outcome::Stopped);
    assert_eq!(log.count("create"), log.count("drop"));
}

#[test]
fn dropping_a_running_machine_ends_its_threads() {
    let (machine, log, _dir) = setup(vec![vec![], vec![]]).build().unwrap();
    drop(machine.start().unwrap());
    assert_eq!(log.count("drop"), 2);
}

#[test]
fn control_of_a_machine_that_is_gone_does_nothing() {
    let (machine, _log, _dir) = setup(vec![vec![vec![Step::Off]]]).build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    running.wait().unwrap();
    control.stop();
    control.power_button();
    control.send_break();
    assert!(control.has_ended());
}

/// A consumer that takes its time.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<Vec<u8>>>);

impl Write for Slow {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(20));
        let count = data.len().min(3);
        self.0.lock().unwrap().extend(&data[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn all_serial_output_has_left_when_wait_returns() {
    let mut script = vec![Step::Write(UARTCR, 0x301)];
    script.extend(b"LAST WORDS".map(|byte| Step::Write(UART, byte.into())));
    script.push(Step::Off);
    let mut setup = setup(vec![vec![script]]);
    let consumer = Slow::default();
    setup.serial = Arc::new(Stream::to_writer("slow", Box::new(consumer.clone())).unwrap());
    let (machine, _log, _dir) = setup.build().unwrap();
    machine.start().unwrap().wait().unwrap();
    assert_eq!(*consumer.0.lock().unwrap(), b"LAST WORDS");
}

#[test]
fn memory_beyond_the_accelerators_reach_is_refused_with_the_limit() {
    let mut setup = setup(vec![vec![]]);
    setup.config.memory = "64G".parse().unwrap();
    let error = setup.build().unwrap_err();
    assert!(matches!(error, BuildError::Config(ConfigError::MemoryTooLarge { .. })), "{error}");
    assert!(error.to_string().contains("63G"), "{error}");
}

#[test]
fn serial_file_is_not_touched_when_the_kernel_is_missing() {
    let mut setup = setup(vec![vec![]]);
    let path = setup.dir.path().join("serial.log");
    setup.config.kernel = "/nonexistent/Image".into();
    setup.config.serial = hvrun_vmm::serial::ChardevConfig::File(path.clone());
    let error = MachineBuilder::new(setup.config).hypervisor(Arc::new(setup.hypervisor)).build().unwrap_err();
    assert!(error.to_string().contains("/nonexistent/Image"), "{error}");
    assert!(!path.exists());
}

#[test]
fn serial_port_on_stdio_needs_streams() {
    let setup = setup(vec![vec![]]);
    let error = MachineBuilder::new(setup.config).hypervisor(Arc::new(setup.hypervisor)).build().unwrap_err();
    assert!(matches!(error, BuildError::Serial(_)), "{error}");
}
