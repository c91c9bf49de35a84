//! What each trap of a guest means, by exception class. Data accesses are in `access`, sleeping is in `wait`.

use super::{Stop, TrapVcpu};
use crate::aarch64::esr::{self, InstructionAbort, SysRegAccess, Trap, Wfx, fsc};
use crate::aarch64::inject::{self, Exception};
use crate::aarch64::psci::{Call, Outcome};
use crate::aarch64::raw::{RawVcpu, Reg};
use crate::aarch64::smccc::{self, Answer};
use crate::aarch64::sysreg::{self, Fields, Rule, TimerReg};
use crate::hypervisor::HypervisorError;

/// After how many aborts at the exception vector itself a guest is given up: it cannot take any exception.
const VECTOR_ABORTS: u32 = 3;
/// After how many aborts at one PC, with nothing else in between, a guest is given up.
const ABORTS_IN_A_ROW: u32 = 10_000;

/// Notices a guest that aborts for ever without getting anywhere.
#[derive(Debug, Default)]
pub(super) struct AbortWatch {
    /// Where the last injected exception made the guest continue.
    vector: Option<u64>,
    at_vector: u32,
    pc: u64,
    in_a_row: u32,
}

impl AbortWatch {
    /// The guest did something else than abort.
    pub(super) fn progress(&mut self) {
        self.at_vector = 0;
        self.in_a_row = 0;
    }

    /// Notes an abort at `pc`. False if it is one too many.
    fn abort_at(&mut self, pc: u64) -> bool {
        self.at_vector = if self.vector == Some(pc) { self.at_vector + 1 } else { 0 };
        self.in_a_row = if self.pc == pc { self.in_a_row + 1 } else { 1 };
        self.pc = pc;
        self.at_vector < VECTOR_ABORTS && self.in_a_row < ABORTS_IN_A_ROW
    }
}

impl<R: RawVcpu> TrapVcpu<R> {
    pub(super) fn handle_trap(
        &mut self,
        syndrome: u64,
        far: u64,
        ipa: u64,
    ) -> Result<Option<Stop>, HypervisorError> {
        match esr::decode(syndrome) {
            Trap::DataAbort(abort) => return self.data_abort(abort, far, ipa),
            Trap::SysReg(access) => self.system_register(access)?,
            Trap::Wfx(wfx) => self.wait_instruction(wfx)?,
            Trap::Hvc(immediate) => return self.hypercall(immediate),
            Trap::Smc(immediate) => {
                // The PC is still at an SMC, but already behind an HVC.
                self.advance_pc()?;
                return self.hypercall(immediate);
            }
            Trap::InstructionAbort(abort) => return self.instruction_abort(abort, far, ipa),
            Trap::Unknown | Trap::Extension(_) => self.undefined()?,
            Trap::Debug(event) => {
                self.inject(Exception::Debug(event, far))?;
            }
            Trap::Svc | Trap::Other(_) => {
                return Ok(Some(self.fault(&format!("a trap with the syndrome {syndrome:#x}"))?));
            }
        }
        Ok(None)
    }

    /// A report of something that cannot be continued.
    pub(super) fn fault(&self, what: &str) -> Result<Stop, HypervisorError> {
        let pc = self.raw.reg(Reg::Pc)?;
        Ok(Stop::Fault(format!("CPU {} cannot continue at PC {pc:#x}: {what}", self.id)))
    }

    fn inject(&mut self, exception: Exception) -> Result<(), HypervisorError> {
        let vector = inject::inject(&mut self.raw, exception)?;
        self.watch.vector = Some(vector);
        Ok(())
    }

    pub(super) fn undefined(&mut self) -> Result<(), HypervisorError> {
        self.inject(Exception::Undefined)
    }

    /// Injects an abort, unless the guest does nothing but abort.
    pub(super) fn inject_abort(&mut self, abort: Exception) -> Result<Option<Stop>, HypervisorError> {
        let pc = self.raw.reg(Reg::Pc)?;
        if !self.watch.abort_at(pc) {
            let what = match abort {
                Exception::InstructionAbort { .. } if self.watch.vector == Some(pc) => {
                    "its exception vectors are outside RAM, so that every abort causes the next one"
                        .to_owned()
                }
                _ => format!("it aborts there again and again ({abort:x?})"),
            };
            return Ok(Some(self.fault(&what)?));
        }
        self.inject(abort)?;
        Ok(None)
    }

    fn instruction_abort(
        &mut self,
        abort: InstructionAbort,
        far: u64,
        ipa: u64,
    ) -> Result<Option<Stop>, HypervisorError> {
        let far = if abort.far_not_valid { self.raw.reg(Reg::Pc)? } else { far };
        if abort.s1ptw {
            let ifsc = self.walk_abort_status(far)?;
            return self.inject_abort(Exception::InstructionAbort { far, ifsc });
        }
        if self.machine.is_memory(ipa) && esr::fault_kind(abort.ifsc) != esr::FaultKind::Other {
            return Ok(Some(
                self.fault(&format!("an instruction abort (status {:#x}) on RAM at {ipa:#x}", abort.ifsc))?,
            ));
        }
        log::log!(
            self.machine.guest_log_level(),
            "CPU {}: a jump to {far:#x} ({ipa:#x}), which is no RAM; it gets an external abort",
            self.id
        );
        self.inject_abort(Exception::InstructionAbort { far, ifsc: fsc::SYNC_EXTERNAL })
    }

    fn wait_instruction(&mut self, wfx: Wfx) -> Result<(), HypervisorError> {
        self.watch.progress();
        self.advance_pc()?;
        if wfx.event {
            // An event may come from anywhere, at any time: give the other vCPUs a chance to send it.
            std::thread::yield_now();
            return Ok(());
        }
        let until = match wfx.deadline {
            Some(register) => Some(self.x(register)?),
            None => None,
        };
        self.wait_for_interrupt(until)
    }

    /// HVC and SMC: SMCCC, TRNG and PSCI. The PC is past the instruction.
    fn hypercall(&mut self, immediate: u16) -> Result<Option<Stop>, HypervisorError> {
        self.watch.progress();
        let function = self.x(0)? as u32;
        let args = [self.x(1)?, self.x(2)?, self.x(3)?];
        if immediate != 0 {
            // SMCCC 2.9: other immediates are for other conventions, and there is none.
            self.set_x(0, smccc::NOT_SUPPORTED as u64)?;
            return Ok(None);
        }
        match smccc::call(function, args[0], smccc::host_entropy) {
            Some(Answer::One(value)) => {
                self.set_x(0, value as u64)?;
                return Ok(None);
            }
            Some(Answer::Four(values)) => {
                for (n, value) in (0..).zip(values) {
                    self.set_x(n, value)?;
                }
                return Ok(None);
            }
            None => {}
        }
        let outcome = {
            let machine = &self.machine;
            machine.psci().call(self.id, Call { function, args }, |addr| machine.is_memory(addr))
        };
        self.psci_outcome(function, outcome)
    }

    fn psci_outcome(
        &mut self,
        function: u32,
        outcome: Option<Outcome>,
    ) -> Result<Option<Stop>, HypervisorError> {
        let result = match outcome {
            Some(Outcome::Return(value)) => value,
            Some(Outcome::Started { cpu }) => {
                if let Some(park) = self.machine.park(cpu) {
                    park.wake();
                }
                0
            }
            Some(Outcome::Suspend) => {
                self.set_x(0, 0)?;
                self.wait_for_interrupt(None)?;
                return Ok(None);
            }
            Some(Outcome::CpuOff { last }) => {
                self.online = false;
                self.stop_timers()?;
                if last {
                    log::warn!("the guest has switched its last CPU off; that ends the machine");
                    return Ok(Some(Stop::SystemOff));
                }
                return Ok(None);
            }
            Some(Outcome::SystemOff) => return Ok(Some(Stop::SystemOff)),
            Some(Outcome::SystemReset) => return Ok(Some(Stop::SystemReset)),
            None => {
                log::debug!("CPU {}: unknown hypercall {function:#x}", self.id);
                smccc::NOT_SUPPORTED
            }
        };
        self.set_x(0, result as u64)?;
        Ok(None)
    }

    fn system_register(&mut self, access: SysRegAccess) -> Result<(), HypervisorError> {
        let done = if access.read {
            match self.read_system_register(access)? {
                Some(value) => {
                    self.set_x(access.rt, value)?;
                    true
                }
                None => false,
            }
        } else {
            let value = self.x(access.rt)?;
            self.write_system_register(access, value)?
        };
        if done {
            return self.advance_pc();
        }
        log::log!(
            self.machine.guest_log_level(),
            "CPU {}: {} of the system register {} at PC {:#x} is undefined",
            self.id,
            if access.read { "a read" } else { "a write" },
            Fields::of(access.reg),
            self.raw.reg(Reg::Pc)?
        );
        self.undefined()
    }

    /// `None`: UNDEFINED.
    fn read_system_register(&mut self, access: SysRegAccess) -> Result<Option<u64>, HypervisorError> {
        let now = self.raw.counter();
        Ok(match sysreg::rule(access.reg) {
            Rule::RazWi | Rule::OsLock | Rule::CacheMaintenance => Some(0),
            Rule::OsLockStatus => Some(self.shadow.os_lock_status()),
            Rule::Shadow(slot) => Some(self.shadow.get(slot)),
            Rule::PhysicalCounter { .. } => Some(now),
            Rule::VirtualCounter => Some(self.virtual_counter()?),
            Rule::PhysicalTimer(TimerReg::Ctl) => Some(self.timers.physical.ctl(now)),
            Rule::PhysicalTimer(TimerReg::Cval) => Some(self.timers.physical.cval()),
            Rule::PhysicalTimer(TimerReg::Tval) => Some(self.timers.physical.tval(now)),
            Rule::Gic => self.machine.interrupts().icc_read(self.id, access.reg),
            Rule::Undefined => None,
        })
    }

    /// False: UNDEFINED.
    fn write_system_register(&mut self, access: SysRegAccess, value: u64) -> Result<bool, HypervisorError> {
        match sysreg::rule(access.reg) {
            Rule::RazWi | Rule::OsLockStatus | Rule::CacheMaintenance => {}
            Rule::OsLock => self.shadow.set_os_lock(value),
            Rule::Shadow(slot) => self.shadow.set(slot, value),
            Rule::PhysicalCounter { writable } => return Ok(writable),
            Rule::PhysicalTimer(reg) => {
                let now = self.raw.counter();
                match reg {
                    TimerReg::Ctl => self.timers.physical.set_ctl(value),
                    TimerReg::Cval => self.timers.physical.set_cval(value),
                    TimerReg::Tval => self.timers.physical.set_tval(value, now),
                }
                self.update_physical_timer()?;
            }
            Rule::Gic => return Ok(self.machine.interrupts().icc_write(self.id, access.reg, value)),
            Rule::VirtualCounter | Rule::Undefined => return Ok(false),
        }
        Ok(true)
    }
}
