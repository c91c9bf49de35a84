//! A vCPU inside `hv_vcpu_run`: what ends a run, how other threads reach it, and, with the host's GIC, the part of the machine
//! that the kernel plays: interrupts, the virtual timer's PPI, ICC registers and WFI, none of which the caller sees.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use hvrun_arch::aarch64::esr::{self, DataAbort, FaultKind, SysRegAccess, Trap, Wfx, fault_kind};
use hvrun_arch::aarch64::timer::{VIRTUAL_TIMER_INTID, asserts, ticks_to_sleep, ticks_until};
use hvrun_soft::{Canceller, Exit, Line};

use crate::abi::{EXIT_CANCELED, EXIT_EXCEPTION, EXIT_UNKNOWN, EXIT_VTIMER_ACTIVATED, Return, VcpuExit};
use crate::config::Kicks;
use crate::host_gic::HostGic;
use crate::identification;
use crate::state::{count_exit, count_lost_kick, generation, lock, state, violation};
use crate::sysregs::{CNTV_CTL, CNTV_CVAL};
use crate::vcpu::{LocalVcpu, with};

/// No affinity was set.
const UNSET: u64 = u64::MAX;

#[derive(Default)]
struct Control {
    running: bool,
    kicked: bool,
    signalled: bool,
    /// The GIC has news.
    woken: bool,
}

/// The side of a vCPU that other threads may touch.
pub(crate) struct Shared {
    pub handle: u64,
    pub generation: u64,
    pub thread: ThreadId,
    /// The affinity fields of MPIDR_EL1; see [`Shared::affinity`].
    pub affinity: AtomicU64,
    pub vtimer_offset: AtomicU64,
    canceller: Canceller,
    kicks: Kicks,
    control: Mutex<Control>,
    bell: Condvar,
}

impl Shared {
    /// The side of a vCPU of the calling thread.
    pub(crate) fn new(handle: u64, generation: u64, canceller: Canceller, kicks: Kicks) -> Self {
        Shared {
            handle,
            generation,
            thread: std::thread::current().id(),
            affinity: AtomicU64::new(UNSET),
            vtimer_offset: AtomicU64::new(0),
            canceller,
            kicks,
            control: Mutex::default(),
            bell: Condvar::new(),
        }
    }

    /// What MPIDR_EL1 was set to, if it was.
    pub(crate) fn affinity(&self) -> Option<u64> {
        Some(self.affinity.load(Ordering::SeqCst)).filter(|affinity| *affinity != UNSET)
    }

    /// It belongs to an earlier configuration of the simulator.
    pub(crate) fn is_stale(&self) -> bool {
        generation() != self.generation
    }

    pub(crate) fn is_running(&self) -> bool {
        lock(&self.control).running
    }

    /// `hv_vcpus_exit`.
    pub(crate) fn kick(&self) {
        let mut control = lock(&self.control);
        if self.kicks == Kicks::Lost && !control.running {
            count_lost_kick();
            return;
        }
        control.kicked = true;
        self.poke();
    }

    /// A host signal.
    pub(crate) fn interrupt(&self) {
        let mut control = lock(&self.control);
        control.signalled = true;
        self.poke();
    }

    /// The GIC has news.
    pub(crate) fn wake(&self) {
        let mut control = lock(&self.control);
        control.woken = true;
        self.poke();
    }

    fn poke(&self) {
        self.canceller.cancel();
        self.bell.notify_all();
    }

    fn enter(&self) {
        lock(&self.control).running = true;
    }

    fn leave(&self) {
        let mut control = lock(&self.control);
        control.running = false;
        if self.kicks == Kicks::Lost {
            control.kicked = false;
        }
    }

    /// Whether somebody wants the run to end, and for which reason it then does. Forgets it.
    fn take_reason(&self) -> Option<u32> {
        let mut control = lock(&self.control);
        if std::mem::take(&mut control.kicked) {
            return Some(EXIT_CANCELED);
        }
        std::mem::take(&mut control.signalled).then_some(EXIT_UNKNOWN)
    }

    /// News from now on count anew.
    fn look(&self) {
        lock(&self.control).woken = false;
    }

    /// Sleeps until there is any reason to look around, at most until `deadline`.
    fn sleep(&self, deadline: Option<Instant>) {
        let mut control = lock(&self.control);
        while !(control.kicked || control.signalled || control.woken) {
            control = match deadline {
                None => self.bell.wait(control).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return;
                    }
                    self.bell.wait_timeout(control, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_run(vcpu: u64) -> Return {
    with(vcpu, "hv_vcpu_run", |local| {
        local.check_before_run();
        let started = Instant::now();
        if local.config.kicks == Kicks::Lost {
            // Gives a kick that is on its way the chance to come too early.
            std::thread::yield_now();
        }
        local.shared.enter();
        let exit = local.run();
        local.shared.leave();
        local.exec_time += started.elapsed();
        local.pending = [false; 2];
        count_exit();
        // SAFETY: made when the vCPU was, and not freed.
        unsafe { local.exit.write(exit) };
        Ok(())
    })
}

/// An exit that carries no syndrome. The other fields are not zero, so that nobody reads them for nothing.
fn bare(reason: u32) -> VcpuExit {
    VcpuExit { reason, syndrome: !0, virtual_address: !0, physical_address: !0 }
}

impl LocalVcpu {
    /// The rules that can be seen to be broken when a vCPU is about to run.
    fn check_before_run(&mut self) {
        let (handle, offset) = (self.shared.handle, self.vtimer_offset);
        let others: Vec<_> = {
            let state = state();
            state.vcpus.values().filter(|other| other.handle != handle).cloned().collect()
        };
        if others.iter().any(|o| o.is_running() && o.vtimer_offset.load(Ordering::SeqCst) != offset) {
            violation(format!("vCPU {handle} runs with another virtual timer offset than others"));
        }
        if self.has_run {
            return;
        }
        self.has_run = true;
        self.vm_has_run.store(true, Ordering::SeqCst);
        match self.shared.affinity() {
            None => violation(format!("vCPU {handle} runs without MPIDR_EL1 having been set")),
            affinity if others.iter().any(|other| other.affinity() == affinity) => {
                violation(format!("vCPU {handle} runs with the MPIDR_EL1 of another"));
            }
            Some(_) => {}
        }
        for promise in identification::broken_promises(&self.cpu, self.ipa_bits) {
            violation(format!("vCPU {handle}: {promise}"));
        }
    }

    /// Runs the guest until the caller must see something.
    fn run(&mut self) -> VcpuExit {
        self.protections_seen = self.protections.load(Ordering::SeqCst);
        let gic = self.gic.clone();
        loop {
            if let Some(reason) = self.shared.take_reason() {
                return bare(reason);
            }
            let lines = match &gic {
                None => self.pending,
                Some(gic) => {
                    self.shared.look();
                    let lines = gic.pending(&self.shared);
                    [lines.irq, lines.fiq]
                }
            };
            self.cpu.set_pending(Line::Irq, lines[0]);
            self.cpu.set_pending(Line::Fiq, lines[1]);
            let exit = self.cpu.run();
            if let Some(gic) = &gic {
                self.update_timer(gic);
            }
            match (exit, &gic) {
                // The reason, if there is one, is looked up above.
                (Exit::Canceled, _) => {}
                (Exit::VtimerActivated, None) => return bare(EXIT_VTIMER_ACTIVATED),
                (Exit::VtimerActivated, Some(gic)) => self.timer_fired(gic),
                (Exit::Exception { syndrome, far, ipa }, gic) => {
                    let handled = self.is_transient(syndrome)
                        || gic.as_ref().is_some_and(|gic| self.handle(gic, syndrome, ipa));
                    if !handled {
                        return VcpuExit {
                            reason: EXIT_EXCEPTION,
                            syndrome,
                            virtual_address: far,
                            physical_address: ipa,
                        };
                    }
                }
            }
        }
    }

    /// Whether an abort came while `hv_vm_protect` had the memory unmapped for a moment: then the access is made again.
    fn is_transient(&mut self, syndrome: u64) -> bool {
        if !matches!(esr::decode(syndrome), Trap::DataAbort(_) | Trap::InstructionAbort(_)) {
            return false;
        }
        let now = self.protections.load(Ordering::SeqCst);
        let changed = now != self.protections_seen;
        // Odd while a change is going on.
        self.protections_seen = if now & 1 == 1 { now.wrapping_sub(1) } else { now };
        changed
    }

    fn advance(&mut self) {
        self.cpu.set_pc(self.cpu.pc().wrapping_add(4));
    }

    /// What the kernel does by itself where it has a GIC. False: the caller must see the exit.
    fn handle(&mut self, gic: &HostGic, syndrome: u64, ipa: u64) -> bool {
        match esr::decode(syndrome) {
            Trap::Wfx(wfx) => {
                self.wait(gic, wfx);
                true
            }
            Trap::SysReg(access) => self.cpu_interface(gic, access),
            Trap::DataAbort(abort) => self.gic_frame(gic, abort, ipa),
            _ => false,
        }
    }

    fn wait(&mut self, gic: &HostGic, wfx: Wfx) {
        self.advance();
        if wfx.event {
            std::thread::yield_now();
            return;
        }
        self.shared.look();
        if gic.pending(&self.shared).any() {
            return;
        }
        let timer = |reg| self.cpu.sys_reg(reg).unwrap_or(0);
        let machine = self.cpu.machine();
        let now = machine.counter().wrapping_sub(self.cpu.vtimer_offset());
        // A timer that has fired has its PPI pending or handled already.
        let ticks = ticks_until(timer(CNTV_CTL), timer(CNTV_CVAL), now).filter(|_| !self.vtimer_fired);
        let deadline = ticks.map(|ticks| Instant::now() + ticks_to_sleep(ticks, machine.counter_frequency()));
        self.shared.sleep(deadline);
    }

    fn timer_fired(&mut self, gic: &HostGic) {
        self.vtimer_fired = true;
        gic.set_ppi(&self.shared, VIRTUAL_TIMER_INTID, true);
    }

    /// Follows the virtual timer's condition with its PPI.
    fn update_timer(&mut self, gic: &HostGic) {
        if self.vtimer_fired && !asserts(self.cpu.sys_reg(CNTV_CTL).unwrap_or(0)) {
            self.vtimer_fired = false;
            gic.set_ppi(&self.shared, VIRTUAL_TIMER_INTID, false);
            self.cpu.set_vtimer_mask(false);
        }
    }

    fn cpu_interface(&mut self, gic: &HostGic, access: SysRegAccess) -> bool {
        let done = if access.read {
            match gic.icc_read(&self.shared, access.reg) {
                Some(value) => {
                    self.cpu.set_x(access.rt, value);
                    true
                }
                None => false,
            }
        } else {
            let value = if access.rt < 31 { self.cpu.x(access.rt) } else { 0 };
            gic.icc_write(&self.shared, access.reg, value)
        };
        if done {
            self.advance();
        }
        done
    }

    fn gic_frame(&mut self, gic: &HostGic, abort: DataAbort, ipa: u64) -> bool {
        let Some(access) = abort.access else { return false };
        if abort.s1ptw || fault_kind(abort.dfsc) == FaultKind::Other {
            return false;
        }
        let mut data = [0; 8];
        let size = usize::from(access.size).min(data.len());
        let done = if abort.write {
            let value = if access.rt < 31 { self.cpu.x(access.rt) } else { 0 };
            data = value.to_le_bytes();
            gic.mmio_write(ipa, &data[..size])
        } else {
            gic.mmio_read(ipa, &mut data[..size])
        };
        if !done {
            return false;
        }
        if !abort.write {
            let mut value = u64::from_le_bytes(data);
            if access.sign_extend {
                let unused = 64 - 8 * size as u32;
                value = ((value << unused) as i64 >> unused) as u64;
                if !access.sixty_four {
                    value &= 0xffff_ffff;
                }
            }
            self.cpu.set_x(access.rt, value);
        }
        self.advance();
        true
    }
}
