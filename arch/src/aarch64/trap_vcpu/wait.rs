//! A vCPU's timers and its sleep in WFI. The timers' arithmetic is in `timer`; here they meet the GIC and the clock.

use std::time::{Duration, Instant};

use super::{Interrupts, TrapVcpu};
use crate::aarch64::raw::RawVcpu;
use crate::aarch64::sysreg::names;
use crate::aarch64::timer::{
    self, PHYSICAL_TIMER_INTID, PhysicalTimer, VIRTUAL_TIMER_INTID, asserts, ticks_to_sleep,
};
use crate::hypervisor::HypervisorError;

/// How long CPU_SUSPEND sleeps where the interrupts are the host's.
const BLIND_SLEEP: Duration = Duration::from_millis(1);

/// The timers of one vCPU.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// The virtual timer is masked at the host because it fired, and its PPI is asserted.
    fired: bool,
    /// CNTP, emulated here.
    pub(super) physical: PhysicalTimer,
    /// Level of the physical timer's PPI.
    physical_level: bool,
    /// For which CNTP_CVAL the alarm is set, and when it rings.
    alarm: Option<(u64, Instant)>,
}

impl<R: RawVcpu> TrapVcpu<R> {
    /// Both timers off and their PPIs released.
    pub(super) fn stop_timers(&mut self) -> Result<(), HypervisorError> {
        self.timers = Timers::default();
        self.set_ppi(VIRTUAL_TIMER_INTID, false)?;
        self.set_ppi(PHYSICAL_TIMER_INTID, false)
    }

    /// The virtual timer's condition became true; the host has masked it.
    pub(super) fn virtual_timer_fired(&mut self) -> Result<(), HypervisorError> {
        self.timers.fired = true;
        self.set_ppi(VIRTUAL_TIMER_INTID, true)
    }

    /// Once the guest has taken the condition of a fired virtual timer away: releases the PPI and unmasks the timer.
    pub(super) fn update_virtual_timer(&mut self) -> Result<(), HypervisorError> {
        if self.timers.fired && !asserts(self.raw.sys_reg(names::CNTV_CTL_EL0)?) {
            self.timers.fired = false;
            self.set_ppi(VIRTUAL_TIMER_INTID, false)?;
            self.raw.set_vtimer_mask(false)?;
        }
        Ok(())
    }

    /// Makes the physical timer's PPI what its condition says, and sets the alarm for when that changes.
    pub(super) fn update_physical_timer(&mut self) -> Result<(), HypervisorError> {
        let now = self.raw.counter();
        let level = self.timers.physical.level(now);
        if level != self.timers.physical_level {
            self.timers.physical_level = level;
            self.set_ppi(PHYSICAL_TIMER_INTID, level)?;
        }
        let timers = &mut self.timers;
        match timers.physical.ticks_until(now) {
            None | Some(0) => timers.alarm = None,
            Some(ticks) => {
                let cval = timers.physical.cval();
                let clock = Instant::now();
                if timers.alarm.is_none_or(|(set_for, at)| set_for != cval || at <= clock) {
                    let at = clock + ticks_to_sleep(ticks, self.raw.counter_frequency());
                    timers.alarm = Some((cval, at));
                    self.machine.set_alarm(self.id, at);
                }
            }
        }
        Ok(())
    }

    /// CNTVCT now.
    pub(super) fn virtual_counter(&self) -> Result<u64, HypervisorError> {
        Ok(self.raw.counter().wrapping_sub(self.raw.vtimer_offset()?))
    }

    /// WFI: sleeps until an interrupt is pending (masked by PSTATE or not), a timer is due, `until` (a value of CNTVCT)
    /// has passed, or somebody wants this vCPU to leave `run`.
    pub(super) fn wait_for_interrupt(&mut self, until: Option<u64>) -> Result<(), HypervisorError> {
        if let Interrupts::Host(_) = self.machine.interrupts() {
            // What is pending there cannot be seen, and its WFI does not come here. A guest must live with waking for nothing.
            self.park.look();
            if !self.park.exit_requested() {
                self.park.sleep(Some(Instant::now() + BLIND_SLEEP));
            }
            return Ok(());
        }
        loop {
            self.park.look();
            self.update_physical_timer()?;
            if self.park.exit_requested() || self.machine.interrupts().pending(self.id).any() {
                return Ok(());
            }
            let virtual_due = self.virtual_timer_ticks()?;
            if virtual_due == Some(0) {
                if !asserts(self.raw.sys_reg(names::CNTV_CTL_EL0)?) {
                    // The host's view of the timer is the one that counts: let it fire in the guest.
                    return Ok(());
                }
                self.raw.set_vtimer_mask(true)?;
                self.virtual_timer_fired()?;
                continue;
            }
            let timeout = match until {
                Some(until) => Some(until.saturating_sub(self.virtual_counter()?)),
                None => None,
            };
            if timeout == Some(0) {
                return Ok(());
            }
            let physical = match self.timers.physical.ticks_until(self.raw.counter()) {
                // Due since the update above: assert it first.
                Some(0) if !self.timers.physical_level => continue,
                // Due and asserted, but the GIC does not signal it: nothing to wait for.
                Some(0) => None,
                ticks => ticks,
            };
            let deadline = [virtual_due, physical, timeout]
                .into_iter()
                .flatten()
                .min()
                .map(|ticks| Instant::now() + ticks_to_sleep(ticks, self.raw.counter_frequency()));
            self.park.sleep(deadline);
        }
    }

    /// Ticks until the virtual timer fires; `None` if it will not, or has fired already.
    fn virtual_timer_ticks(&self) -> Result<Option<u64>, HypervisorError> {
        if self.timers.fired {
            return Ok(None);
        }
        let ctl = self.raw.sys_reg(names::CNTV_CTL_EL0)?;
        let cval = self.raw.sys_reg(names::CNTV_CVAL_EL0)?;
        Ok(timer::ticks_until(ctl, cval, self.virtual_counter()?))
    }
}
