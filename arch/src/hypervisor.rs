//! The CPU seam: what `vmm` asks of any hypervisor, and the exits it gets back.
//!
//! Every backend (KVM, Hypervisor.framework, the software CPU) answers with the same machine-level [`VcpuExit`]s, so that
//! `vmm` has one run loop. What happens below that level (traps, ESR, PSCI, GIC) is not visible here.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::aarch64::layout::Layout;
use crate::memory::GuestMemory;

/// Which backend runs the guest CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Apple's Hypervisor.framework (macOS on Apple silicon).
    Hvf,
    /// The Linux kernel's KVM (arm64 hosts).
    Kvm,
    /// The software CPU (any host).
    Soft,
}

impl Accel {
    /// Every backend, best first: the order of `--accel auto`.
    pub const ALL: [Accel; 3] = [Accel::Hvf, Accel::Kvm, Accel::Soft];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Hvf => "hvf",
            Accel::Kvm => "kvm",
            Accel::Soft => "soft",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Accel {
    type Err = UnknownAccel;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Accel::ALL.into_iter().find(|a| a.name() == s).ok_or_else(|| UnknownAccel(s.to_owned()))
    }
}

/// "{0}" is not an accelerator; the accelerators are hvf, kvm and soft.
#[derive(Debug, thiserror::Error)]
#[error(
    "\"{0}\" is not an accelerator; the accelerators are hvf, kvm and soft (auto takes the first that works)"
)]
pub struct UnknownAccel(pub String);

/// Whose interrupt controller a machine gets, where the backend has a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GicChoice {
    /// The host's if it has one that can be used, else ours.
    #[default]
    Auto,
    /// The host's: in the kernel (KVM, Hypervisor.framework from macOS 15 on).
    Host,
    /// Our GICv3 model.
    Soft,
}

impl GicChoice {
    /// Every choice.
    pub const ALL: [GicChoice; 3] = [GicChoice::Auto, GicChoice::Host, GicChoice::Soft];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            GicChoice::Auto => "auto",
            GicChoice::Host => "host",
            GicChoice::Soft => "soft",
        }
    }
}

impl fmt::Display for GicChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GicChoice {
    type Err = UnknownGicChoice;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        GicChoice::ALL.into_iter().find(|c| c.name() == s).ok_or_else(|| UnknownGicChoice(s.to_owned()))
    }
}

/// "{0}" is not an interrupt controller; the choices are auto, host and soft.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not an interrupt controller; the choices are auto, host and soft")]
pub struct UnknownGicChoice(pub String);

/// Why a hypervisor could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// This host cannot offer the accelerator; says why and what would help.
    #[error("{accel} is not available: {reason}")]
    Unavailable {
        /// The accelerator asked for.
        accel: Accel,
        /// Why not, and what would help.
        reason: String,
    },
    /// This host could offer the accelerator, but not to this process; says what would change that.
    #[error("{accel} is not available: {reason}")]
    Forbidden {
        /// The accelerator asked for.
        accel: Accel,
        /// Why not, and what would help.
        reason: String,
    },
    /// More vCPUs were asked for than the backend has.
    #[error("{asked} CPUs were asked for; {accel} has at most {max}")]
    TooManyCpus {
        /// The accelerator.
        accel: Accel,
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        max: u32,
    },
    /// Guest memory does not fit below the backend's limit of guest physical addresses.
    #[error("guest memory ends at {end:#x}; {accel} reaches {limit:#x}")]
    AddressSpace {
        /// The accelerator.
        accel: Accel,
        /// First address behind the guest's memory.
        end: u64,
        /// First address that the backend cannot reach.
        limit: u64,
    },
    /// The interrupt controller asked for cannot be had.
    #[error("{accel} cannot use that interrupt controller: {reason}")]
    Gic {
        /// The accelerator.
        accel: Accel,
        /// Why not, and what would do.
        reason: String,
    },
    /// A call into the hypervisor failed.
    #[error("{call} failed: {reason}")]
    Call {
        /// The call's name.
        call: &'static str,
        /// What it answered, in words.
        reason: String,
    },
}

/// What a VM is made of, as far as a hypervisor must know.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Number of vCPUs, 1 to [`crate::aarch64::layout::MAX_CPUS`].
    pub cpus: u32,
    /// The guest's RAM. The VM keeps a clone for as long as it lives.
    pub memory: GuestMemory,
    /// Where the machine's windows lie, as [`Hypervisor::layout`] says for the same `gic`; the backend answers the interrupt
    /// controller's.
    pub layout: Layout,
    /// Whose interrupt controller it gets.
    pub gic: GicChoice,
}

/// The state in which the boot CPU starts (the others wait for PSCI CPU_ON).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootState {
    /// Address of the first instruction, in EL1h with the MMU off and interrupts masked.
    pub pc: u64,
    /// Value of X0: the device tree's address, by the arm64 boot protocol. X1 to X3 are 0.
    pub x0: u64,
}

/// A backend that can make virtual machines.
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// Which backend this is.
    fn accel(&self) -> Accel;

    /// How many bits of guest physical address it can map.
    fn ipa_bits(&self) -> u32;

    /// The address map of a machine with `cpus` vCPUs and `ram` bytes of memory. Not always [`Layout::new`]: an interrupt
    /// controller of the host's has sizes of its own. The same for the same arguments.
    fn layout(&self, cpus: u32, ram: u64, gic: GicChoice) -> Result<Layout, HypervisorError> {
        let _ = gic;
        Ok(Layout::new(cpus, ram).with_ipa_bits(self.ipa_bits()))
    }

    /// Makes a machine with its RAM mapped and its interrupt controller in the reset state, without vCPUs.
    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, HypervisorError>;
}

/// One virtual machine: RAM, interrupt controller and the right to make vCPUs.
pub trait Vm: Send + Sync {
    /// Makes vCPU `id` (0 up to the configured number). Must be called on the thread that will run it; with
    /// Hypervisor.framework a vCPU never leaves its thread. vCPU 0 boots at `boot`; the others start powered off.
    fn create_vcpu(&self, id: u32, boot: BootState) -> Result<Box<dyn Vcpu>, HypervisorError>;

    /// The interrupt controller, for devices to raise interrupts on.
    fn irq_chip(&self) -> Arc<dyn IrqChip>;

    /// Interrupts and doorbells as eventfds, where the backend has them. A device must work without.
    fn event_fds(&self) -> Option<Arc<dyn EventFds>> {
        None
    }

    /// How this backend gives pages of RAM back to the host while the guest runs; `None` where it does not mind what becomes of the
    /// memory behind it, so that the owner of the mapping can empty it in place (Linux: madvise(2), MADV_DONTNEED).
    fn ram_discard(&self) -> Option<Arc<dyn RamDiscard>> {
        None
    }

    /// Puts the machine-wide state (interrupt controller, PSCI) back to what it was after `create_vm`. May be called only
    /// while no vCPU is inside [`Vcpu::run`]; each vCPU's own state is reset by [`Vcpu::reset`].
    fn reset(&self);
}

/// One guest CPU. It is created, run and dropped on one thread; only its [`Kicker`] may cross threads.
pub trait Vcpu {
    /// Runs guest code until something needs the machine. A read exit is answered by filling its `data` before the next
    /// call. A powered-off CPU sleeps in here until PSCI CPU_ON or a kick.
    fn run(&mut self) -> Result<VcpuExit<'_>, HypervisorError>;

    /// The handle with which any thread makes [`Vcpu::run`] return [`VcpuExit::Kicked`] soon.
    fn kicker(&self) -> Kicker;

    /// Puts this CPU into its reset state: vCPU 0 at `boot`, the others powered off.
    fn reset(&mut self, boot: BootState) -> Result<(), HypervisorError>;

    /// Says for how long, since the machine was made, all its vCPUs together were stopped: time that the guest's virtual counter leaves
    /// out. Every vCPU is told, with the same value, before it runs again.
    fn set_stopped_time(&mut self, total: Duration) -> Result<(), HypervisorError>;

    /// A human-readable dump of the registers, for fault reports and monitors.
    fn describe(&self) -> String;
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, PartialEq, Eq)]
pub enum VcpuExit<'a> {
    /// The guest reads `data.len()` (1, 2, 4 or 8) bytes at `addr`; fill `data` (little-endian) and run again.
    MmioRead {
        /// Guest physical address.
        addr: u64,
        /// Where the answer goes.
        data: &'a mut [u8],
    },
    /// The guest writes `data` (1, 2, 4 or 8 bytes, little-endian) at `addr`.
    MmioWrite {
        /// Guest physical address.
        addr: u64,
        /// What is written.
        data: &'a [u8],
    },
    /// The guest asked to power the machine off.
    SystemOff,
    /// The guest asked to reset the machine.
    SystemReset,
    /// A [`Kicker`] interrupted the run, or there was nothing to do but look around.
    Kicked,
    /// The guest did something that cannot be continued; says what.
    Fault(String),
}

/// The side of a vCPU that may be called from any thread.
pub trait Kick: Send + Sync {
    /// Makes the vCPU leave `run` soon. A kick that arrives outside `run` must not be lost: the next `run` returns at once.
    fn kick(&self);
}

/// A cheap, clonable handle to kick one vCPU. Follow *publish, kick, recheck*: set the request first, then kick.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Kick>);

impl Kicker {
    /// Wraps a backend's way to kick.
    pub fn new(kick: Arc<dyn Kick>) -> Self {
        Kicker(kick)
    }

    /// See [`Kick::kick`].
    pub fn kick(&self) {
        self.0.kick();
    }
}

impl fmt::Debug for Kicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kicker")
    }
}

/// A shared peripheral interrupt, numbered from 0 as in a device tree (its INTID is 32 more).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Spi(pub u32);

impl Spi {
    /// The GIC's number for it: SPIs follow the 32 private interrupts.
    pub const fn intid(self) -> u32 {
        self.0 + 32
    }
}

/// The interrupt controller as devices see it. Every call may come from any thread.
pub trait IrqChip: Send + Sync {
    /// Drives the line of `spi`. For an edge-triggered interrupt a rising level makes it pending.
    fn set_spi(&self, spi: Spi, level: bool);

    /// Delivers a message-signalled interrupt: a write of `data` to `addr` in the GICv2m frame.
    fn send_msi(&self, addr: u64, data: u32);
}

/// Gives RAM that the guest does not use back to the host, while the guest runs. Every call may come from any thread, but those of
/// vCPUs inside [`Vcpu::run`].
pub trait RamDiscard: Send + Sync + fmt::Debug {
    /// Pages of this size can be given back: a power of 2, at least 4 KiB.
    fn granule(&self) -> u64;

    /// Gives back `len` bytes of RAM at the guest physical address `addr`, as far as they are whole granules; the rest keeps its
    /// contents. When it returns, what was given back reads as zeros, and costs no memory until it is written again. A vCPU, or a
    /// device, that accesses it meanwhile finds the old contents or zeros, and nothing else happens to it.
    ///
    /// # Errors
    /// The range is not all RAM (then nothing has happened), or the host refuses.
    fn discard(&self, addr: u64, len: u64) -> Result<(), HypervisorError>;
}

/// Which writes to an address ring a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datamatch {
    /// All, of any size.
    Any,
    /// Two bytes of this value.
    U16(u16),
    /// Four bytes of this value.
    U32(u32),
    /// Eight bytes of this value.
    U64(u64),
}

/// Eventfds that the backend serves past the vCPU threads: an optional capability of a [`Vm`]. Every call may come from any
/// thread; the descriptor may be closed after it has been unregistered.
pub trait EventFds: Send + Sync {
    /// Makes each signal of `fd` an edge on the line of `spi`.
    fn register_irqfd(&self, spi: Spi, fd: BorrowedFd<'_>) -> Result<(), HypervisorError>;

    /// Undoes [`EventFds::register_irqfd`] with the same arguments.
    fn unregister_irqfd(&self, spi: Spi, fd: BorrowedFd<'_>) -> Result<(), HypervisorError>;

    /// Makes each write at `addr` that `data` matches a signal of `fd`. The guest goes on at once; there is no exit.
    fn register_ioevent(&self, addr: u64, data: Datamatch, fd: BorrowedFd<'_>)
    -> Result<(), HypervisorError>;

    /// Undoes [`EventFds::register_ioevent`] with the same arguments.
    fn unregister_ioevent(
        &self,
        addr: u64,
        data: Datamatch,
        fd: BorrowedFd<'_>,
    ) -> Result<(), HypervisorError>;
}
