//! What the vCPUs of one trap-level machine share: interrupt controller, power states, memory, and how to wake each other.
//! It runs nothing; see [`super::TrapVcpu`].

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::alarm::Alarm;
use super::interrupts::{HostGic, Interrupts};
use super::park::{Park, Wake};
use crate::aarch64::gicv3::Gic;
use crate::aarch64::psci::Psci;
use crate::hypervisor::{Kicker, VmConfig};
use crate::memory::GuestMemory;

/// How many guest-triggered warnings of one machine are logged as such; further ones are debug lines.
const WARNINGS: u32 = 16;

/// The part of a trap-level machine that all its vCPUs share.
#[derive(Debug)]
pub struct TrapMachine {
    interrupts: Interrupts,
    psci: Mutex<Psci>,
    parks: Vec<Arc<Park>>,
    alarm: Alarm,
    memory: GuestMemory,
    /// CNTVOFF of every vCPU without the time for which all were stopped, fixed by the first: the virtual counter starts at zero.
    counter_offset: OnceLock<u64>,
    /// Ticks for which all were stopped.
    stopped_ticks: AtomicU64,
    warnings: AtomicU32,
}

impl TrapMachine {
    /// A machine with our GICv3, in the reset state: CPU 0 on, the others off.
    pub fn new(config: &VmConfig) -> Arc<Self> {
        let gic = Arc::new(Gic::new(config.cpus, &config.layout));
        let machine = Self::with_interrupts(config, Interrupts::Model(gic.clone()));
        for (cpu, park) in (0u32..).zip(&machine.parks) {
            gic.attach_cpu(cpu, Kicker::new(Arc::new(Wake(park.clone()))));
        }
        machine
    }

    /// As [`TrapMachine::new`], with an interrupt controller in the host.
    pub fn with_host_gic(config: &VmConfig, gic: Arc<dyn HostGic>) -> Arc<Self> {
        Self::with_interrupts(config, Interrupts::Host(gic))
    }

    fn with_interrupts(config: &VmConfig, interrupts: Interrupts) -> Arc<Self> {
        let alarm = Alarm::new(config.cpus);
        let parks: Vec<_> =
            (0..config.cpus).map(|cpu| Arc::new(Park::new(cpu, alarm.clock().clone()))).collect();
        Arc::new(TrapMachine {
            interrupts,
            psci: Mutex::new(Psci::new(config.cpus)),
            parks,
            alarm,
            memory: config.memory.clone(),
            counter_offset: OnceLock::new(),
            stopped_ticks: AtomicU64::new(0),
            warnings: AtomicU32::new(0),
        })
    }

    /// The interrupt controller.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// The interrupt controller of a machine that has ours.
    #[cfg(test)]
    pub(crate) fn gic(&self) -> &Arc<Gic> {
        match &self.interrupts {
            Interrupts::Model(gic) => gic,
            Interrupts::Host(gic) => panic!("the machine has {gic:?}"),
        }
    }

    /// The guest's RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// How many vCPUs there can be.
    pub fn cpus(&self) -> u32 {
        self.parks.len() as u32
    }

    /// Back to the reset state. Only while no vCPU is inside `run`; each vCPU is reset by itself.
    pub fn reset(&self) {
        self.alarm.clear();
        self.interrupts.reset();
        self.psci().reset();
    }

    pub(super) fn psci(&self) -> MutexGuard<'_, Psci> {
        self.psci.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn park(&self, cpu: u32) -> Option<&Arc<Park>> {
        self.parks.get(cpu as usize)
    }

    /// Whether `ipa` is RAM.
    pub(super) fn is_memory(&self, ipa: u64) -> bool {
        self.memory.address_in_range(GuestAddress(ipa))
    }

    /// CNTVOFF, given the counter now.
    pub(super) fn counter_offset(&self, now: u64) -> u64 {
        let first = *self.counter_offset.get_or_init(|| now);
        first.wrapping_add(self.stopped_ticks.load(Ordering::SeqCst))
    }

    /// All vCPUs together were stopped for `ticks` so far.
    pub(super) fn set_stopped_ticks(&self, ticks: u64) {
        self.stopped_ticks.store(ticks, Ordering::SeqCst);
    }

    /// Wakes `cpu` at `at`, also out of the guest.
    pub(super) fn set_alarm(&self, cpu: u32, at: Instant) {
        self.start_alarm();
        self.alarm.set(cpu, at);
    }

    pub(super) fn start_alarm(&self) {
        self.alarm.start(&self.parks);
    }

    /// The level for the next line that the guest can trigger at will.
    pub(super) fn guest_log_level(&self) -> log::Level {
        // Saturates long before it could wrap: the first lines count, the rest are for a debugger.
        let seen = self.warnings.load(Ordering::Relaxed);
        if seen < WARNINGS {
            self.warnings.store(seen + 1, Ordering::Relaxed);
            log::Level::Warn
        } else {
            log::Level::Debug
        }
    }
}
