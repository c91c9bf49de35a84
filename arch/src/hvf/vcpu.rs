//! One vCPU of Hypervisor.framework as a raw vCPU: what its exits mean is `trap_vcpu`'s. It belongs to the thread that made it.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::ffi::{
    self, ExitReason, Framework, GeneralReg, IccReg, InterruptType, RedistributorReg, SystemReg,
};
use super::id_registers::{self, Facts};
use super::ram::Ram;
use super::registers::{GIC_CPU_INTERFACE, GIC_GROUP_ENABLES, GUEST_STATE};
use super::vm::Guest;
use crate::aarch64::layout;
use crate::aarch64::raw::{InterruptLine, RawExit, RawVcpu, Reg, SysReg};
use crate::aarch64::sysreg::{MPIDR_RES1, names};
use crate::aarch64::timer::VIRTUAL_TIMER_INTID;
use crate::hypervisor::{HypervisorError, Kick, Kicker};

/// How long a vCPU waits that wants to run while the machine is taken apart: somebody will tell it to end.
const CLOSED_WAIT: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub struct HvfVcpu {
    vcpu: ffi::Vcpu,
    guest: Arc<Guest>,
    id: u32,
    kick: Arc<HvfKick>,
    /// What registers held after creation: where a reset goes back to.
    first: Vec<(SysReg, u64)>,
    /// The same of the host GIC's CPU interface.
    first_icc: Vec<(SysReg, u64)>,
    /// It has been in the guest, which may have changed its registers.
    ran: bool,
    /// PPIs that were made pending in the host's GIC: bit n is INTID n.
    host_ppis: u32,
}

/// Gets a vCPU out of `hv_vcpu_run`. The lock keeps the handle from going stale during the call.
#[derive(Debug)]
struct HvfKick {
    framework: Arc<Framework>,
    handle: Mutex<Option<ffi::VcpuHandle>>,
}

impl Kick for HvfKick {
    fn kick(&self) {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = *handle
            && let Err(error) = self.framework.exit_vcpu(handle)
        {
            // Whoever kicked tries again if it matters.
            log::debug!("a kick fails: {error}");
        }
    }
}

impl HvfVcpu {
    /// Makes CPU `id` of `guest` for the calling thread, with its identity set.
    pub fn create(guest: Arc<Guest>, id: u32) -> Result<Self, HypervisorError> {
        let framework = guest.framework();
        let vcpu = ffi::Vcpu::create(framework.clone())?;
        let kick =
            Arc::new(HvfKick { framework: framework.clone(), handle: Mutex::new(Some(vcpu.handle())) });
        guest.quiesce().attach(id, Kicker::new(kick.clone()));
        // From here on `drop` cleans up.
        let mut vcpu = HvfVcpu {
            vcpu,
            guest,
            id,
            kick,
            first: Vec::new(),
            first_icc: Vec::new(),
            ran: false,
            host_ppis: 0,
        };
        // Before the first run, as the interrupt controller finds its CPUs by it.
        vcpu.set_sys_reg(names::MPIDR_EL1, MPIDR_RES1 | layout::mpidr(id))?;
        vcpu.set_id_registers()?;
        vcpu.first = GUEST_STATE.into_iter().filter_map(|reg| Some((reg, vcpu.sys_reg(reg).ok()?))).collect();
        if let Some(gic) = vcpu.guest.host_gic() {
            let read = |reg: SysReg| Some((reg, vcpu.vcpu.icc_reg(gic, IccReg(reg.0)).ok()?));
            vcpu.first_icc = GIC_CPU_INTERFACE.into_iter().filter_map(read).collect();
        }
        Ok(vcpu)
    }

    /// Hides from the guest what it cannot have.
    fn set_id_registers(&mut self) -> Result<(), HypervisorError> {
        let facts = Facts {
            ipa_bits: self.guest.ipa_bits(),
            // The host's GIC came with the macOS that has it right.
            pointer_authentication: self.guest.framework().gic().is_some(),
        };
        for register in id_registers::REGISTERS {
            let host = match self.sys_reg(register.reg) {
                Ok(host) => host,
                Err(_) if !register.everywhere => continue,
                Err(error) => return Err(error),
            };
            let wanted = id_registers::policy(register.reg, host, facts);
            if wanted == host {
                continue;
            }
            self.set_sys_reg(register.reg, wanted)?;
            if let Some(text) = id_registers::mismatch(register, wanted, self.sys_reg(register.reg)?) {
                log::warn!("CPU {}: {text}", self.id);
            }
        }
        Ok(())
    }

    /// Puts the registers that a guest changes back to what they were. What is as it was is not written: a host may keep some
    /// registers from being written that can be read.
    fn put_back(&mut self) -> Result<(), HypervisorError> {
        for at in 0..self.first.len() {
            let (reg, value) = self.first[at];
            if self.sys_reg(reg)? != value {
                self.set_sys_reg(reg, value)?;
            }
        }
        let Some(gic) = self.guest.host_gic() else { return Ok(()) };
        let off = GIC_GROUP_ENABLES.map(|reg| (reg, 0));
        for (reg, value) in off.iter().chain(&self.first_icc) {
            let icc = IccReg(reg.0);
            if self.vcpu.icc_reg(gic, icc).map_err(about(*reg))? != *value {
                self.vcpu.set_icc_reg(gic, icc, *value).map_err(about(*reg))?;
            }
        }
        Ok(())
    }

    /// The platform delivers the virtual timer's interrupt where the GIC is the host's. Should the exit come all the same, the
    /// interrupt is made pending there, and the timer, which is masked now, is let go on.
    fn hand_timer_to_host(&mut self) -> Result<(), HypervisorError> {
        self.set_host_ppi(VIRTUAL_TIMER_INTID, true)?;
        self.vcpu.set_vtimer_mask(false)
    }
}

/// What an exit is to `trap_vcpu`.
fn decode(exit: ffi::Exit) -> RawExit {
    match exit.reason {
        ExitReason::CANCELED => RawExit::Canceled,
        ExitReason::EXCEPTION => RawExit::Exception {
            syndrome: exit.syndrome,
            far: exit.virtual_address,
            ipa: exit.physical_address,
        },
        ExitReason::VTIMER_ACTIVATED => RawExit::VtimerActivated,
        // HV_EXIT_REASON_UNKNOWN, and whatever a later macOS may invent.
        _ => RawExit::Unknown,
    }
}

fn general(reg: Reg) -> Result<GeneralReg, HypervisorError> {
    Ok(match reg {
        Reg::X(n) => GeneralReg::x(n).ok_or_else(|| HypervisorError::Call {
            call: "general register access",
            reason: format!("there is no X{n}"),
        })?,
        Reg::Pc => GeneralReg::PC,
        Reg::Cpsr => GeneralReg::CPSR,
        Reg::Fpcr => GeneralReg::FPCR,
        Reg::Fpsr => GeneralReg::FPSR,
    })
}

/// Adds which register it was.
fn about(reg: SysReg) -> impl FnOnce(HypervisorError) -> HypervisorError {
    move |error| match error {
        HypervisorError::Call { call, reason } => HypervisorError::Call {
            call,
            reason: format!(
                "{reason} (register {}, {:#06x})",
                crate::aarch64::sysreg::Fields::of(reg),
                reg.0
            ),
        },
        other => other,
    }
}

impl RawVcpu for HvfVcpu {
    fn run(&mut self) -> Result<RawExit, HypervisorError> {
        if !self.guest.quiesce().enter(self.id) {
            thread::sleep(CLOSED_WAIT);
            return Ok(RawExit::Canceled);
        }
        self.ran = true;
        let discards = self.guest.ram().map_or(0, Ram::generation);
        let exit = self.vcpu.run();
        self.guest.quiesce().leave(self.id);
        match decode(exit?) {
            // It fell into a hole that is closed again.
            RawExit::Exception { syndrome, ipa, .. }
                if self.guest.ram().is_some_and(|ram| ram.explains(discards, syndrome, ipa)) =>
            {
                Ok(RawExit::Canceled)
            }
            RawExit::VtimerActivated if self.guest.host_gic().is_some() => {
                self.hand_timer_to_host()?;
                Ok(RawExit::Canceled)
            }
            exit => Ok(exit),
        }
    }

    fn reg(&self, reg: Reg) -> Result<u64, HypervisorError> {
        self.vcpu.reg(general(reg)?)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HypervisorError> {
        self.vcpu.set_reg(general(reg)?, value)
    }

    fn simd_reg(&self, n: u8) -> Result<u128, HypervisorError> {
        self.vcpu.simd(n)
    }

    fn set_simd_reg(&mut self, n: u8, value: u128) -> Result<(), HypervisorError> {
        self.vcpu.set_simd(n, value)
    }

    fn sys_reg(&self, reg: SysReg) -> Result<u64, HypervisorError> {
        self.vcpu.sys_reg(SystemReg(reg.0)).map_err(about(reg))
    }

    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<(), HypervisorError> {
        self.vcpu.set_sys_reg(SystemReg(reg.0), value).map_err(about(reg))
    }

    fn set_pending(&mut self, line: InterruptLine, pending: bool) -> Result<(), HypervisorError> {
        let kind = match line {
            InterruptLine::Irq => InterruptType::IRQ,
            InterruptLine::Fiq => InterruptType::FIQ,
        };
        self.vcpu.set_pending(kind, pending)
    }

    fn vtimer_mask(&self) -> Result<bool, HypervisorError> {
        self.vcpu.vtimer_mask()
    }

    fn set_vtimer_mask(&mut self, masked: bool) -> Result<(), HypervisorError> {
        self.vcpu.set_vtimer_mask(masked)
    }

    fn vtimer_offset(&self) -> Result<u64, HypervisorError> {
        let clock = self.guest.framework().clock();
        self.vcpu.vtimer_offset().map(|offset| clock.guest_ticks(offset))
    }

    fn set_vtimer_offset(&mut self, offset: u64) -> Result<(), HypervisorError> {
        let clock = self.guest.framework().clock();
        self.vcpu.set_vtimer_offset(clock.host_ticks(offset))
    }

    /// `mach_absolute_time`, in the guest's ticks: not CNTPCT as an instruction would read it, which goes on while the Mac
    /// sleeps.
    fn counter(&self) -> u64 {
        let framework = self.guest.framework();
        framework.clock().guest_ticks(framework.host_ticks())
    }

    fn counter_frequency(&self) -> u64 {
        self.guest.framework().clock().frequency()
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.kick.clone())
    }

    /// Sources disagree about `hv_vcpus_exit` for a vCPU that is not inside `hv_vcpu_run`; so it may be lost.
    fn remembers_kicks(&self) -> bool {
        false
    }

    fn set_host_ppi(&mut self, intid: u32, level: bool) -> Result<(), HypervisorError> {
        let Some(gic) = self.guest.host_gic() else { return Ok(()) };
        let bit = 1 << (intid & 31);
        if level {
            self.host_ppis |= bit;
            return self.vcpu.set_redistributor_reg(gic, RedistributorReg::ISPENDR0, bit.into());
        }
        if self.host_ppis & bit == 0 {
            return Ok(());
        }
        self.host_ppis &= !bit;
        self.vcpu.set_redistributor_reg(gic, RedistributorReg::ICPENDR0, bit.into())
    }

    fn reset(&mut self) -> Result<(), HypervisorError> {
        for n in 0..31 {
            self.set_reg(Reg::X(n), 0)?;
        }
        for reg in [Reg::Pc, Reg::Fpcr, Reg::Fpsr] {
            self.set_reg(reg, 0)?;
        }
        for n in 0..32 {
            self.vcpu.set_simd(n, 0)?;
        }
        if self.guest.host_gic().is_none() {
            self.set_pending(InterruptLine::Irq, false)?;
            self.set_pending(InterruptLine::Fiq, false)?;
        }
        if self.ran { self.put_back() } else { Ok(()) }
    }
}

impl Drop for HvfVcpu {
    fn drop(&mut self) {
        self.guest.quiesce().close();
        *self.kick.handle.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // SAFETY: nobody runs any more after `close`, and nobody can kick it without the handle; this value is gone after this.
        if let Err(error) = unsafe { self.vcpu.destroy() } {
            log::error!("CPU {} cannot be destroyed: {error}", self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: u32) -> ffi::Exit {
        ffi::Exit { reason: ExitReason(reason), syndrome: 1, virtual_address: 2, physical_address: 3 }
    }

    #[test]
    fn an_exception_keeps_its_three_words() {
        assert_eq!(decode(exit(1)), RawExit::Exception { syndrome: 1, far: 2, ipa: 3 });
    }

    #[test]
    fn cancelled_and_timer_exits_are_told_apart() {
        assert_eq!((decode(exit(0)), decode(exit(2))), (RawExit::Canceled, RawExit::VtimerActivated));
    }

    #[test]
    fn a_reason_that_is_not_known_yet_is_unknown() {
        assert_eq!((decode(exit(3)), decode(exit(77))), (RawExit::Unknown, RawExit::Unknown));
    }

    #[test]
    fn there_is_no_x31() {
        assert!(general(Reg::X(31)).unwrap_err().to_string().contains("X31"));
    }
}
