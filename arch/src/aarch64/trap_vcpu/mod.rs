//! A raw vCPU made into a whole one: what a hypervisor's user space must do for a guest CPU that exits at trap level.
//! The same code for Hypervisor.framework and for the software CPU; it knows neither, only [`RawVcpu`].
//!
//! This file is the run loop. What each trap means is in `exits`, device accesses in `access`, timers and waiting in
//! `wait`, the interrupt controller in `interrupts`, meeting other threads in `park` and `alarm`, what CPUs share in
//! `machine`.

mod access;
mod alarm;
mod exits;
mod interrupts;
mod machine;
mod park;
pub(crate) mod report;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
mod wait;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use interrupts::{HostGic, Interrupts};
pub use machine::TrapMachine;

use self::access::AccessInFlight;
use self::exits::AbortWatch;
use self::park::{Park, RequestExit};
use self::wait::Timers;
use super::gicv3::PendingLines;
use super::inject::pstate;
use super::layout;
use super::raw::{InterruptLine, RawExit, RawVcpu, Reg};
use super::sysreg::{MPIDR_RES1, Shadow, names};
use super::timer::ns_to_ticks;
use super::translate::Regime;
use crate::hypervisor::{BootState, HypervisorError, Kicker, Vcpu, VcpuExit};

/// How many exits for an unknown reason in a row are retried before the caller may look around.
const UNKNOWN_EXITS: u32 = 16;

/// Why the run loop ends: [`VcpuExit`] without its borrow.
#[derive(Debug)]
enum Stop {
    Read { addr: u64, size: u8 },
    Write { addr: u64, size: u8 },
    SystemOff,
    SystemReset,
    Kicked,
    Fault(String),
}

/// One CPU of a [`TrapMachine`].
pub struct TrapVcpu<R: RawVcpu> {
    /// First, so that it is gone before the memory that `machine` holds.
    raw: R,
    machine: Arc<TrapMachine>,
    park: Arc<Park>,
    id: u32,
    /// Switched on by PSCI or by boot; the truth is in the machine's PSCI state, this saves its lock.
    online: bool,
    /// The lines that are pending in `raw` for the next run.
    lines: PendingLines,
    timers: Timers,
    shadow: Shadow,
    access: Option<AccessInFlight>,
    /// Data of the MMIO exit that the caller is answering.
    buffer: [u8; 8],
    watch: AbortWatch,
    unknown_exits: u32,
}

impl<R: RawVcpu> fmt::Debug for TrapVcpu<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrapVcpu")
            .field("id", &self.id)
            .field("online", &self.online)
            .field("timers", &self.timers)
            .finish_non_exhaustive()
    }
}

impl<R: RawVcpu> TrapVcpu<R> {
    /// Makes `raw` CPU `id` of `machine`, in the reset state: CPU 0 starts at `boot`, the others are off.
    pub fn new(machine: Arc<TrapMachine>, id: u32, raw: R, boot: BootState) -> Result<Self, HypervisorError> {
        let Some(park) = machine.park(id).cloned() else {
            return Err(HypervisorError::Call {
                call: "create_vcpu",
                reason: format!("there is no CPU {id}; the machine has {}", machine.cpus()),
            });
        };
        if !raw.remembers_kicks() {
            machine.start_alarm();
        }
        park.attach(raw.kicker(), raw.remembers_kicks());
        let mut vcpu = TrapVcpu {
            raw,
            machine,
            park,
            id,
            online: false,
            lines: PendingLines::default(),
            timers: Timers::default(),
            shadow: Shadow::default(),
            access: None,
            buffer: [0; 8],
            watch: AbortWatch::default(),
            unknown_exits: 0,
        };
        vcpu.reset(boot)?;
        Ok(vcpu)
    }

    /// Puts all registers into the reset state and the CPU at `entry` with X0 = `context`.
    fn start_at(&mut self, entry: u64, context: u64) -> Result<(), HypervisorError> {
        self.raw.reset()?;
        self.raw.set_sys_reg(names::MPIDR_EL1, MPIDR_RES1 | layout::mpidr(self.id))?;
        let offset = self.machine.counter_offset(self.raw.counter());
        self.raw.set_vtimer_offset(offset)?;
        self.raw.set_vtimer_mask(false)?;
        self.raw.set_reg(Reg::Cpsr, pstate::RESET)?;
        self.raw.set_reg(Reg::Pc, entry)?;
        self.raw.set_reg(Reg::X(0), context)?;
        self.lines = PendingLines::default();
        self.shadow = Shadow::default();
        self.access = None;
        self.watch = AbortWatch::default();
        self.stop_timers()
    }

    fn run_until_stop(&mut self) -> Result<Stop, HypervisorError> {
        if let Some(stop) = self.resume_access()? {
            return Ok(stop);
        }
        loop {
            if let Some(stop) = self.prepare()? {
                return Ok(stop);
            }
            if !self.park.enter_guest() {
                continue;
            }
            let exit = self.raw.run();
            self.park.leave_guest();
            self.lines = PendingLines::default();
            let exit = exit?;
            self.update_virtual_timer()?;
            if let Some(stop) = self.handle(exit)? {
                return Ok(stop);
            }
        }
    }

    /// All that must be looked at before the guest runs: requests, power, timers, interrupts.
    fn prepare(&mut self) -> Result<Option<Stop>, HypervisorError> {
        loop {
            self.park.look();
            if self.park.take_exit_request() {
                return Ok(Some(Stop::Kicked));
            }
            if self.online {
                break;
            }
            let pending = self.machine.psci().take_pending(self.id);
            if let Some((entry, context)) = pending {
                self.start_at(entry, context)?;
                self.online = true;
                break;
            }
            self.park.sleep(None);
        }
        self.update_physical_timer()?;
        self.drive_lines()?;
        Ok(None)
    }

    /// Makes the interrupt inputs of `raw` what the GIC says: they last for one run only.
    fn drive_lines(&mut self) -> Result<(), HypervisorError> {
        let pending = self.machine.interrupts().pending(self.id);
        if pending.irq != self.lines.irq {
            self.raw.set_pending(InterruptLine::Irq, pending.irq)?;
        }
        if pending.fiq != self.lines.fiq {
            self.raw.set_pending(InterruptLine::Fiq, pending.fiq)?;
        }
        self.lines = pending;
        Ok(())
    }

    fn handle(&mut self, exit: RawExit) -> Result<Option<Stop>, HypervisorError> {
        if exit == RawExit::Unknown {
            self.unknown_exits += 1;
            if self.unknown_exits >= UNKNOWN_EXITS {
                self.unknown_exits = 0;
                log::debug!("CPU {}: {UNKNOWN_EXITS} exits for an unknown reason in a row", self.id);
                return Ok(Some(Stop::Kicked));
            }
            return Ok(None);
        }
        self.unknown_exits = 0;
        match exit {
            RawExit::Canceled | RawExit::Unknown => Ok(None),
            RawExit::VtimerActivated => {
                self.virtual_timer_fired()?;
                Ok(None)
            }
            RawExit::Exception { syndrome, far, ipa } => self.handle_trap(syndrome, far, ipa),
        }
    }

    fn advance_pc(&mut self) -> Result<(), HypervisorError> {
        let pc = self.raw.reg(Reg::Pc)?;
        self.raw.set_reg(Reg::Pc, pc.wrapping_add(4))
    }

    /// Xn, or zero for 31.
    fn x(&self, n: u8) -> Result<u64, HypervisorError> {
        if n < 31 { self.raw.reg(Reg::X(n)) } else { Ok(0) }
    }

    /// Sets Xn; 31 discards.
    fn set_x(&mut self, n: u8, value: u64) -> Result<(), HypervisorError> {
        if n < 31 { self.raw.set_reg(Reg::X(n), value) } else { Ok(()) }
    }
}

impl<R: RawVcpu> Vcpu for TrapVcpu<R> {
    fn run(&mut self) -> Result<VcpuExit<'_>, HypervisorError> {
        Ok(match self.run_until_stop()? {
            Stop::Read { addr, size } => {
                VcpuExit::MmioRead { addr, data: &mut self.buffer[..usize::from(size)] }
            }
            Stop::Write { addr, size } => {
                VcpuExit::MmioWrite { addr, data: &self.buffer[..usize::from(size)] }
            }
            Stop::SystemOff => VcpuExit::SystemOff,
            Stop::SystemReset => VcpuExit::SystemReset,
            Stop::Kicked => VcpuExit::Kicked,
            Stop::Fault(report) => VcpuExit::Fault(report),
        })
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(Arc::new(RequestExit(self.park.clone())))
    }

    fn reset(&mut self, boot: BootState) -> Result<(), HypervisorError> {
        self.start_at(boot.pc, boot.x0)?;
        self.online = self.id == 0;
        Ok(())
    }

    fn set_stopped_time(&mut self, total: Duration) -> Result<(), HypervisorError> {
        let ns = u64::try_from(total.as_nanos()).unwrap_or(u64::MAX);
        self.machine.set_stopped_ticks(ns_to_ticks(ns, self.raw.counter_frequency()));
        let offset = self.machine.counter_offset(self.raw.counter());
        self.raw.set_vtimer_offset(offset)
    }

    fn describe(&self) -> String {
        report::registers(self.id, self.online, &self.raw)
    }

    fn regime(&self) -> Option<Regime> {
        Regime::of(&self.raw).ok()
    }
}
