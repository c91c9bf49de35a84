//! The guest's virtual counter, which KVM keeps: how a pause is left out of it. Timers are KVM's.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::vcpu::Cpu;
use crate::aarch64::sysreg::names;
use crate::aarch64::timer::ns_to_ticks;
use crate::hypervisor::HypervisorError;
use crate::kvm::nisv::GuestRegisters;

/// The pauses that the counter leaves out already.
#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Duration>);

impl Clock {
    /// Sets the counter so that it leaves out `total` altogether. There is one offset for the whole VM, whichever vCPU sets it (uapi
    /// asm/kvm.h, KVM_REG_ARM_TIMER_CNT): the first vCPU to come does it, before any of them runs.
    pub(super) fn leave_out(&self, total: Duration, cpu: &mut Cpu) -> Result<(), HypervisorError> {
        let mut left_out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(more) = total.checked_sub(*left_out).filter(|more| !more.is_zero()) else { return Ok(()) };
        let ns = u64::try_from(more.as_nanos()).unwrap_or(u64::MAX);
        let now = cpu.sys_reg(names::CNTVCT_EL0)?;
        cpu.set_sys_reg(names::CNTVCT_EL0, now.wrapping_sub(ns_to_ticks(ns, frequency())))?;
        *left_out = total;
        Ok(())
    }
}

/// Of the host's counter and the guest's, in Hz.
fn frequency() -> u64 {
    let frequency: u64;
    // SAFETY: Linux lets user programs read CNTFRQ_EL0; nothing else is touched.
    unsafe {
        std::arch::asm!("mrs {}, CNTFRQ_EL0", out(reg) frequency, options(nomem, nostack, preserves_flags));
    }
    frequency
}
