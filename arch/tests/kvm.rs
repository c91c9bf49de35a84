//! Eventfds on a real KVM, through the seam: what the kernel does past the vCPU threads, seen by a guest of a few instructions.
//! `cargo xtask lab` runs each test by its name; elsewhere a host without KVM has nothing to show here.
#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hvrun_arch::aarch64::layout::{GicVersion, Layout};
use hvrun_arch::{
    BootState, Datamatch, EventFds, GicChoice, GuestMemory, Hypervisor, Spi, Vcpu, VcpuExit, Vm, VmConfig,
};
use vm_memory::{Bytes, GuestAddress};

/// Set where KVM must be there.
const REQUIRED_VAR: &str = "HVRUN_KVM_REQUIRED";
/// A guest that has not come to its next exit by then never will.
const LIMIT: Duration = Duration::from_secs(30);

const RAM_SIZE: u64 = 2 << 20;
/// Where the exception vectors lie, from the start of RAM.
const VECTORS: u64 = 0x1000;
/// The vector of an interrupt at EL1 with SP_EL1 (Arm ARM D1.3.1).
const IRQ_VECTOR: u64 = VECTORS + 0x280;

/// Addresses of no device: writes to the first are what the test looks at, each at the second is an exit.
const DOORBELL: u64 = 0x0700_0000;
const REPORT: u64 = 0x0700_1000;

/// Two interrupts of the GICv2m frame.
const SPI: Spi = Spi(48);
const OTHER_SPI: Spi = Spi(49);

/// Instructions, with scratch registers X0 and X1 (Arm ARM C6.2).
#[derive(Default)]
struct Code(Vec<u32>);

impl Code {
    fn word(mut self, word: u32) -> Self {
        self.0.push(word);
        self
    }

    fn load(mut self, register: u32, value: u64) -> Self {
        self.0.push(0xD280_0000 | register); // MOVZ, #0
        for half in 0..4 {
            let part = (value >> (16 * half)) as u16;
            self.0.push(0xF280_0000 | half << 21 | u32::from(part) << 5 | register); // MOVK
        }
        self
    }

    /// Writes `width` bytes of `value` at `address`.
    fn write(self, width: u32, address: u64, value: u64) -> Self {
        let size = width.trailing_zeros();
        self.load(0, address).load(1, value).word(0x3900_0000 | size << 30 | 1) // STR(B,H) X1, [X0]
    }

    fn msr(self, reg: SysReg, register: u32) -> Self {
        self.word(0xD510_0000 | reg.0 | register)
    }

    fn mrs(self, register: u32, reg: SysReg) -> Self {
        self.word(0xD530_0000 | reg.0 | register)
    }

    fn isb(self) -> Self {
        self.word(0xD503_3FDF)
    }

    /// Goes back to the first instruction.
    fn repeat(self) -> Self {
        let back = -(self.0.len() as i32) as u32;
        self.word(0x1400_0000 | back & 0x03FF_FFFF)
    }
}

/// A system register as MSR and MRS encode it.
#[derive(Clone, Copy)]
struct SysReg(u32);

const fn sysreg(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> SysReg {
    SysReg((op0 - 2) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5)
}

const VBAR_EL1: SysReg = sysreg(3, 0, 12, 0, 0);
/// The CPU interface of a GICv3 (GICv3 spec 12.2).
const ICC_PMR_EL1: SysReg = sysreg(3, 0, 4, 6, 0);
const ICC_IAR1_EL1: SysReg = sysreg(3, 0, 12, 12, 0);
const ICC_EOIR1_EL1: SysReg = sysreg(3, 0, 12, 12, 1);
const ICC_IGRPEN1_EL1: SysReg = sysreg(3, 0, 12, 12, 7);
/// The CPU interface of a GICv2 (GICv2 spec 4.4).
const GICC_CTLR: u64 = 0x0;
const GICC_PMR: u64 = 0x4;
const GICC_IAR: u64 = 0xC;
const GICC_EOIR: u64 = 0x10;
/// The distributor, which both have (GICv3 spec 12.9).
const GICD_CTLR: u64 = 0x0;
const GICD_IGROUPR: u64 = 0x80;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ITARGETSR: u64 = 0x800;
const GICD_ICFGR: u64 = 0xC00;

/// A guest that writes each of `writes` (bytes, address, value) and a 4-byte 0 to [`REPORT`], again and again.
fn writer(writes: &[(u32, u64, u64)]) -> Code {
    let code = writes.iter().fold(Code::default(), |code, &(width, at, value)| code.write(width, at, value));
    code.write(4, REPORT, 0).repeat()
}

/// A guest that writes 0 to [`REPORT`] when it can take [`SPI`] and [`OTHER_SPI`], edge-triggered, and then the INTID of each
/// interrupt that it takes; and its interrupt handler.
fn interrupted(layout: &Layout) -> (Code, Code) {
    let code = Code::default().load(1, layout.ram.base + VECTORS).msr(VBAR_EL1, 1).isb();
    let code = match layout.gic {
        GicVersion::V3 => {
            let code = code.write(4, layout.gic_dist.base + GICD_CTLR, 0b1_0010); // ARE, EnableGrp1
            code.load(1, 0xFF).msr(ICC_PMR_EL1, 1).load(1, 1).msr(ICC_IGRPEN1_EL1, 1).isb()
        }
        GicVersion::V2 => {
            let code = code.write(4, layout.gic_dist.base + GICD_CTLR, 1);
            let code = code.write(4, layout.gic_cpu.base + GICC_PMR, 0xFF);
            code.write(4, layout.gic_cpu.base + GICC_CTLR, 1)
        }
    };
    let code = [SPI, OTHER_SPI].iter().fold(code, |code, spi| enable(code, layout, spi.intid().into()));
    let code = code.write(4, REPORT, 0).word(0xD503_42FF); // MSR DAIFClr, #2
    let code = code.word(0xD503_207F).word(0x17FF_FFFF); // WFI; B -1
    // X2: what the CPU interface says.
    let handler = match layout.gic {
        GicVersion::V3 => Code::default().mrs(2, ICC_IAR1_EL1),
        GicVersion::V2 => Code::default().load(0, layout.gic_cpu.base + GICC_IAR).word(0xB940_0002), // LDR W2, [X0]
    };
    let handler = handler.load(0, REPORT).word(0xB900_0002); // STR W2, [X0]
    let handler = match layout.gic {
        GicVersion::V3 => handler.msr(ICC_EOIR1_EL1, 2),
        GicVersion::V2 => handler.load(0, layout.gic_cpu.base + GICC_EOIR).word(0xB900_0002),
    };
    (code, handler.word(0xD69F_03E0)) // ERET
}

/// Makes an interrupt edge-triggered, gives it to the first CPU and enables it; in a GICv3 the reset state routes it there.
fn enable(code: Code, layout: &Layout, intid: u64) -> Code {
    let dist = layout.gic_dist.base;
    let code = match layout.gic {
        GicVersion::V3 => code.write(4, dist + GICD_IGROUPR + intid / 32 * 4, u32::MAX.into()),
        GicVersion::V2 => code.write(1, dist + GICD_ITARGETSR + intid, 1),
    };
    let code = code.write(4, dist + GICD_ICFGR + intid / 16 * 4, 0xAAAA_AAAA);
    code.write(4, dist + GICD_ISENABLER + intid / 32 * 4, 1 << (intid % 32))
}

/// A machine with one CPU.
struct Machine {
    /// Before the VM that it is of.
    vcpu: Box<dyn Vcpu>,
    vm: Arc<dyn Vm>,
    late: Arc<AtomicBool>,
}

/// This host's KVM, if it has one.
fn kvm() -> Option<Arc<dyn Hypervisor>> {
    match hvrun_arch::kvm::open() {
        Ok(kvm) => Some(kvm),
        Err(error) if std::env::var_os(REQUIRED_VAR).is_some() => panic!("{error}"),
        Err(_) => None,
    }
}

fn layout(kvm: &dyn Hypervisor) -> Layout {
    kvm.layout(1, RAM_SIZE, GicChoice::Auto).unwrap()
}

impl Machine {
    fn new(kvm: &dyn Hypervisor, code: &Code, handler: &Code) -> Self {
        let layout = layout(kvm);
        let start = layout.ram.base;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(start), RAM_SIZE as usize)]).unwrap();
        for (base, code) in [(start, code), (start + IRQ_VECTOR, handler)] {
            for (address, word) in (base..).step_by(4).zip(&code.0) {
                memory.write_obj(*word, GuestAddress(address)).unwrap();
            }
        }
        let config = VmConfig { cpus: 1, memory, layout, gic: GicChoice::Auto };
        let vm = kvm.create_vm(config).unwrap();
        let vcpu = vm.create_vcpu(0, BootState { pc: start, x0: 0 }).unwrap();
        let late = Arc::new(AtomicBool::new(false));
        let (kicker, flag) = (vcpu.kicker(), late.clone());
        thread::spawn(move || {
            thread::sleep(LIMIT);
            flag.store(true, Ordering::SeqCst);
            kicker.kick();
        });
        Machine { vcpu, vm, late }
    }

    fn event_fds(&self) -> Arc<dyn EventFds> {
        self.vm.event_fds().expect("KVM has eventfds")
    }

    /// The next write that comes out of the guest: its address, its bytes as a number.
    fn next_write(&mut self) -> (u64, u64) {
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::MmioWrite { addr, data } => {
                    let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
                    return (addr, value);
                }
                VcpuExit::Kicked => assert!(!self.late.load(Ordering::SeqCst), "the guest waits for ever"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The doorbell writes that come out of the guest before its report.
    fn exits_before_report(&mut self) -> Vec<u64> {
        let mut values = Vec::new();
        loop {
            match self.next_write() {
                (REPORT, _) => return values,
                (DOORBELL, value) => values.push(value),
                other => panic!("{other:x?}"),
            }
        }
    }
}

fn eventfd() -> File {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { File::from_raw_fd(fd) }
}

fn signal(mut fd: &File) {
    fd.write_all(&1u64.to_ne_bytes()).unwrap();
}

/// How many signals there have been that nobody has taken.
fn signals(mut fd: &File) -> u64 {
    let mut count = [0; 8];
    match fd.read_exact(&mut count) {
        Ok(()) => u64::from_ne_bytes(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn irqfd_signal_is_taken_as_an_interrupt() {
    let Some(kvm) = kvm() else { return };
    let (code, handler) = interrupted(&layout(&*kvm));
    let mut machine = Machine::new(&*kvm, &code, &handler);
    let fd = eventfd();
    machine.event_fds().register_irqfd(SPI, fd.as_fd()).unwrap();
    assert_eq!(machine.next_write(), (REPORT, 0));

    signal(&fd);

    assert_eq!(machine.next_write(), (REPORT, SPI.intid().into()));
    signal(&fd);
    assert_eq!(machine.next_write(), (REPORT, SPI.intid().into()));
}

#[test]
fn unregistered_irqfd_raises_nothing() {
    let Some(kvm) = kvm() else { return };
    let (code, handler) = interrupted(&layout(&*kvm));
    let mut machine = Machine::new(&*kvm, &code, &handler);
    let (fd, other) = (eventfd(), eventfd());
    let event_fds = machine.event_fds();
    event_fds.register_irqfd(SPI, fd.as_fd()).unwrap();
    event_fds.register_irqfd(OTHER_SPI, other.as_fd()).unwrap();
    assert_eq!(machine.next_write(), (REPORT, 0));
    signal(&fd);
    assert_eq!((signals(&fd), machine.next_write()), (0, (REPORT, SPI.intid().into())));

    event_fds.unregister_irqfd(SPI, fd.as_fd()).unwrap();
    signal(&fd);

    // The kernel has not taken it, and what the guest takes next is what comes after it.
    assert_eq!(signals(&fd), 1);
    signal(&other);
    assert_eq!(machine.next_write(), (REPORT, OTHER_SPI.intid().into()));
}

#[test]
fn ioevent_takes_doorbell_writes_without_an_exit() {
    let Some(kvm) = kvm() else { return };
    let code = writer(&[(1, DOORBELL, 1), (2, DOORBELL, 2), (4, DOORBELL, 3), (8, DOORBELL, 4)]);
    let mut machine = Machine::new(&*kvm, &code, &Code::default());
    let fd = eventfd();
    machine.event_fds().register_ioevent(DOORBELL, Datamatch::Any, fd.as_fd()).unwrap();

    let exits = machine.exits_before_report();

    assert_eq!((exits, signals(&fd)), (vec![], 4));
}

#[test]
fn ioevent_takes_only_the_value_that_it_matches() {
    let Some(kvm) = kvm() else { return };
    let code = writer(&[
        (2, DOORBELL, 0x1122),
        (2, DOORBELL, 0x1123),
        (4, DOORBELL, 0x1122_3344),
        (4, DOORBELL, 0x1122),
        (8, DOORBELL, 0x1122_3344_5566_7788),
        (8, DOORBELL, 0x1122_3344),
    ]);
    let mut machine = Machine::new(&*kvm, &code, &Code::default());
    let fds = [eventfd(), eventfd(), eventfd()];
    let matches =
        [Datamatch::U16(0x1122), Datamatch::U32(0x1122_3344), Datamatch::U64(0x1122_3344_5566_7788)];
    for (fd, data) in fds.iter().zip(matches) {
        machine.event_fds().register_ioevent(DOORBELL, data, fd.as_fd()).unwrap();
    }

    let exits = machine.exits_before_report();

    assert_eq!(exits, [0x1123, 0x1122, 0x1122_3344]);
    assert_eq!(fds.each_ref().map(signals), [1, 1, 1]);
}

#[test]
fn unregistered_ioevent_lets_the_write_exit() {
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::new(&*kvm, &writer(&[(4, DOORBELL, 7)]), &Code::default());
    let fd = eventfd();
    let event_fds = machine.event_fds();
    event_fds.register_ioevent(DOORBELL, Datamatch::U32(7), fd.as_fd()).unwrap();
    let before = machine.exits_before_report();
    assert_eq!((before, signals(&fd)), (vec![], 1));

    event_fds.unregister_ioevent(DOORBELL, Datamatch::U32(7), fd.as_fd()).unwrap();

    assert_eq!((machine.exits_before_report(), signals(&fd)), (vec![7], 0));
}

#[test]
fn second_ioevent_for_the_same_doorbell_is_refused() {
    let Some(kvm) = kvm() else { return };
    let machine = Machine::new(&*kvm, &writer(&[]), &Code::default());
    let (fd, other) = (eventfd(), eventfd());
    let event_fds = machine.event_fds();
    event_fds.register_ioevent(DOORBELL, Datamatch::U16(1), fd.as_fd()).unwrap();

    let error = event_fds.register_ioevent(DOORBELL, Datamatch::U16(1), other.as_fd()).unwrap_err();

    assert!(error.to_string().contains("eventfd already"), "{error}");
}
