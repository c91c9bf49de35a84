//! What the CPUs of one machine share: the map of guest memory, the maintenance broadcasts and the timer. Not a CPU.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use crate::timer::Timer;

/// Guest pages are tracked in units of 4 KiB, whatever granule the guest's tables use.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Size of such a page.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// What the guest may do with a mapped range (stage 2 permissions).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Perms {
    /// Loads.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Perms {
    /// Ordinary RAM.
    pub const ALL: Perms = Perms { read: true, write: true, execute: true };
}

/// Why a mapping was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Address or size is not a multiple of 4 KiB, or the size is zero.
    #[error("guest range {ipa:#x}+{len:#x} is empty or not aligned to 4 KiB")]
    Unaligned {
        /// Start of the range.
        ipa: u64,
        /// Its length.
        len: u64,
    },
    /// The range ends beyond the address space.
    #[error("guest range {ipa:#x}+{len:#x} ends beyond the {bits}-bit address space")]
    OutOfRange {
        /// Start of the range.
        ipa: u64,
        /// Its length.
        len: u64,
        /// Width of the address space.
        bits: u32,
    },
    /// The range touches a mapped one.
    #[error("guest range {ipa:#x}+{len:#x} overlaps a mapped range")]
    Overlap {
        /// Start of the range.
        ipa: u64,
        /// Its length.
        len: u64,
    },
    /// No mapping of exactly this range exists.
    #[error("guest range {ipa:#x}+{len:#x} was not mapped as one range")]
    NotMapped {
        /// Start of the range.
        ipa: u64,
        /// Its length.
        len: u64,
    },
}

/// One mapped range of guest memory.
#[derive(Clone)]
pub(crate) struct Region {
    pub ipa: u64,
    pub len: u64,
    pub host: *mut u8,
    pub perms: Perms,
    /// One flag a page: some CPU has decoded code from it, so that instruction cache maintenance matters.
    has_code: Arc<[AtomicU8]>,
}

// SAFETY: the pointer is to memory that `Machine::map`'s caller promised to keep valid while it is mapped; all accesses
// through it are made as a CPU makes them (atomically, or racing only where the guest's own program races).
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// The host address of `ipa`, if `len` bytes from there lie inside.
    #[inline]
    pub fn host(&self, ipa: u64, len: u64) -> Option<*mut u8> {
        let offset = ipa.wrapping_sub(self.ipa);
        if offset < self.len && self.len - offset >= len {
            // SAFETY: the offset is inside the mapped range.
            Some(unsafe { self.host.add(offset as usize) })
        } else {
            None
        }
    }

    /// Notes that code of the page at `ipa` is about to be decoded. Must come before the code is read.
    pub fn mark_code(&self, ipa: u64) {
        if let Some(flag) = self.has_code.get(((ipa - self.ipa) >> PAGE_SHIFT) as usize) {
            flag.store(1, Ordering::SeqCst);
        }
    }

    fn has_code(&self, ipa: u64) -> bool {
        self.has_code
            .get((ipa.wrapping_sub(self.ipa) >> PAGE_SHIFT) as usize)
            .is_some_and(|flag| flag.load(Ordering::SeqCst) != 0)
    }
}

/// Bits of [`CpuShared::request`]: what a CPU must look at between two blocks.
pub(crate) mod request {
    /// Leave `run`.
    pub const CANCEL: u32 = 1;
    /// There is mail.
    pub const MAINTENANCE: u32 = 2;
    /// The virtual timer's deadline passed.
    pub const TIMER: u32 = 4;
}

/// A maintenance operation that must take effect on every CPU of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maintenance {
    /// TLBI of everything.
    TlbAll,
    /// TLBI by ASID.
    TlbAsid(u16),
    /// TLBI by address: the page of `va`, whatever its ASID (a superset of VAE1 is allowed and cheap here).
    TlbVa(u64),
    /// Decoded code of the page at this IPA is stale.
    Code(u64),
    /// All decoded code is stale.
    CodeAll,
    /// The machine's memory map changed.
    Map,
}

/// Longer queues are folded into "everything".
const MAILBOX_LIMIT: usize = 64;

/// The side of a CPU that others may touch.
#[derive(Debug, Default)]
pub(crate) struct CpuShared {
    pub request: AtomicU32,
    /// Whether the CPU is inside `run` and may be using translations and decoded code.
    pub running: AtomicBool,
    /// The event register of WFE and SEV.
    pub event: AtomicBool,
    mailbox: Mutex<Vec<Maintenance>>,
    posted: AtomicU64,
    processed: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panicking holder cannot have left these plain values half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CpuShared {
    pub fn request(&self, bits: u32) {
        self.request.fetch_or(bits, Ordering::SeqCst);
    }

    fn post(&self, item: Maintenance) {
        let mut mail = lock(&self.mailbox);
        if mail.len() >= MAILBOX_LIMIT {
            let map_changed = mail.contains(&Maintenance::Map) || item == Maintenance::Map;
            mail.clear();
            mail.extend([Maintenance::TlbAll, Maintenance::CodeAll]);
            if map_changed {
                mail.push(Maintenance::Map);
            }
        } else if mail.last() != Some(&item) {
            mail.push(item);
        }
        self.posted.fetch_add(1, Ordering::SeqCst);
        drop(mail);
        self.request(request::MAINTENANCE);
    }

    /// Takes the mail; the caller must act on it and then call [`CpuShared::acknowledge`] with the number given.
    pub fn take_mail(&self) -> (Vec<Maintenance>, u64) {
        let mut mail = lock(&self.mailbox);
        (std::mem::take(&mut *mail), self.posted.load(Ordering::SeqCst))
    }

    pub fn acknowledge(&self, number: u64) {
        self.processed.store(number, Ordering::SeqCst);
    }

    /// Whether this CPU can no longer act on anything that was posted up to `number`.
    fn has_seen(&self, number: u64) -> bool {
        // Order matters: a CPU that enters `run` after this looked takes its mail first.
        !self.running.load(Ordering::SeqCst) || self.processed.load(Ordering::SeqCst) >= number
    }
}

/// A broadcast that has been posted; it is complete when every CPU it went to has acted on it.
#[derive(Debug, Default)]
pub(crate) struct Broadcast(Vec<(Arc<CpuShared>, u64)>);

impl Broadcast {
    /// Whether every CPU has acted on it.
    pub fn is_complete(&mut self) -> bool {
        self.0.retain(|(cpu, number)| !cpu.has_seen(*number));
        self.0.is_empty()
    }

    /// Does not wait for `cpu`, which is the waiting one itself.
    pub fn forget(&mut self, cpu: &Arc<CpuShared>) {
        self.0.retain(|(c, _)| !Arc::ptr_eq(c, cpu));
    }

    /// Waits for `other` too, which was posted later. A guest may post any number before it waits: one entry a CPU suffices.
    pub fn append(&mut self, other: Broadcast) {
        for (cpu, number) in other.0 {
            match self.0.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &cpu)) {
                Some(entry) => entry.1 = number,
                None => self.0.push((cpu, number)),
            }
        }
    }

    /// Nothing outstanding was ever posted (or it was found complete).
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One machine: guest memory and what keeps its CPUs coherent.
pub struct Machine {
    ipa_bits: u32,
    /// Frequency of the counter in Hz.
    frequency: u64,
    regions: RwLock<Arc<[Region]>>,
    cpus: RwLock<Vec<Arc<CpuShared>>>,
    start: Instant,
    pub(crate) timer: Timer,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("ipa_bits", &self.ipa_bits).finish_non_exhaustive()
    }
}

impl Machine {
    /// Frequency of a machine's system counter in Hz if nothing else is asked for: nanoseconds, as Armv8.6 made standard.
    pub const COUNTER_FREQUENCY: u64 = 1_000_000_000;

    /// The widest intermediate physical address that a machine can have, in bits (ID_AA64MMFR0_EL1.PARange = 2).
    pub const MAX_IPA_BITS: u32 = 40;

    /// An empty machine with `ipa_bits` (32 to [`Machine::MAX_IPA_BITS`]; others are clamped) of guest physical address.
    pub fn new(ipa_bits: u32) -> Arc<Machine> {
        Self::with_counter(ipa_bits, Self::COUNTER_FREQUENCY)
    }

    /// As [`Machine::new`], with a system counter of `frequency` Hz (1 to [`Machine::COUNTER_FREQUENCY`]; others are clamped).
    pub fn with_counter(ipa_bits: u32, frequency: u64) -> Arc<Machine> {
        Arc::new(Machine {
            ipa_bits: ipa_bits.clamp(32, Self::MAX_IPA_BITS),
            frequency: frequency.clamp(1, Self::COUNTER_FREQUENCY),
            regions: RwLock::new(Arc::new([])),
            cpus: RwLock::default(),
            start: Instant::now(),
            timer: Timer::new(),
        })
    }

    /// Width of the guest physical address space in bits.
    pub fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// Frequency of the system counter in Hz.
    pub fn counter_frequency(&self) -> u64 {
        self.frequency
    }

    /// The physical counter now, in ticks of [`Machine::counter_frequency`].
    #[inline]
    pub fn counter(&self) -> u64 {
        let ns = self.start.elapsed().as_nanos() as u64;
        if self.frequency == Self::COUNTER_FREQUENCY {
            ns
        } else {
            (u128::from(ns) * u128::from(self.frequency) / u128::from(Self::COUNTER_FREQUENCY)) as u64
        }
    }

    /// The host's time at which the counter reads `ticks`; `None` if that is beyond what the host can express.
    pub(crate) fn instant_of(&self, ticks: u64) -> Option<Instant> {
        // Rounded up, so that the deadline has passed when the alarm rings.
        let ns =
            (u128::from(ticks) * u128::from(Self::COUNTER_FREQUENCY)).div_ceil(u128::from(self.frequency));
        self.start.checked_add(std::time::Duration::from_nanos(u64::try_from(ns).ok()?))
    }

    /// Maps `len` bytes at `host` to the guest address `ipa`. Both are multiples of 4 KiB.
    ///
    /// # Safety
    /// The host memory must stay mapped, readable and (with `perms.write`) writable until the range is unmapped and the
    /// call of [`Machine::unmap`] has returned, or the machine and all its CPUs are gone. Guest code changes it at any time:
    /// nobody may hold Rust references into it.
    pub unsafe fn map(&self, ipa: u64, host: *mut u8, len: u64, perms: Perms) -> Result<(), MapError> {
        if len == 0 || (ipa | len | host as u64) & (PAGE_SIZE - 1) != 0 {
            return Err(MapError::Unaligned { ipa, len });
        }
        if ipa.checked_add(len).is_none_or(|end| end > 1 << self.ipa_bits) {
            return Err(MapError::OutOfRange { ipa, len, bits: self.ipa_bits });
        }
        {
            let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
            if regions.iter().any(|r| ipa < r.ipa + r.len && r.ipa < ipa + len) {
                return Err(MapError::Overlap { ipa, len });
            }
            let has_code = (0..len >> PAGE_SHIFT).map(|_| AtomicU8::new(0)).collect();
            let mut all = regions.to_vec();
            all.push(Region { ipa, len, host, perms, has_code });
            *regions = all.into();
        }
        self.map_changed();
        Ok(())
    }

    /// Unmaps exactly what one [`Machine::map`] mapped. When it returns no CPU uses the memory any more. Must not be called
    /// from a thread that is inside [`crate::Cpu::run`].
    pub fn unmap(&self, ipa: u64, len: u64) -> Result<(), MapError> {
        {
            let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
            let mut all = regions.to_vec();
            let Some(index) = all.iter().position(|r| r.ipa == ipa && r.len == len) else {
                return Err(MapError::NotMapped { ipa, len });
            };
            all.remove(index);
            *regions = all.into();
        }
        self.map_changed();
        Ok(())
    }

    fn map_changed(&self) {
        let mut broadcast = self.broadcast(Maintenance::Map, None);
        while !broadcast.is_complete() {
            std::thread::yield_now();
        }
    }

    pub(crate) fn regions(&self) -> Arc<[Region]> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Posts `item` to every CPU but `except`.
    pub(crate) fn broadcast(&self, item: Maintenance, except: Option<&Arc<CpuShared>>) -> Broadcast {
        let cpus = self.cpus.read().unwrap_or_else(PoisonError::into_inner);
        let mut broadcast = Broadcast::default();
        for cpu in cpus.iter().filter(|cpu| except.is_none_or(|e| !Arc::ptr_eq(cpu, e))) {
            cpu.post(item);
            let number = cpu.posted.load(Ordering::SeqCst);
            if !cpu.has_seen(number) {
                broadcast.0.push((cpu.clone(), number));
            }
        }
        broadcast
    }

    /// SEV: sets every CPU's event register.
    pub(crate) fn send_event(&self) {
        for cpu in self.cpus.read().unwrap_or_else(PoisonError::into_inner).iter() {
            cpu.event.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn add_cpu(&self) -> Arc<CpuShared> {
        let shared = Arc::new(CpuShared::default());
        self.cpus.write().unwrap_or_else(PoisonError::into_inner).push(shared.clone());
        shared
    }

    pub(crate) fn remove_cpu(&self, shared: &Arc<CpuShared>) {
        self.cpus.write().unwrap_or_else(PoisonError::into_inner).retain(|cpu| !Arc::ptr_eq(cpu, shared));
    }
}

/// Whether any CPU may have decoded code from the page at `ipa`.
pub(crate) fn page_has_code(regions: &[Region], ipa: u64) -> bool {
    regions.iter().any(|r| r.host(ipa, 1).is_some() && r.has_code(ipa))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_without_a_wait_are_remembered_once_a_cpu() {
        let machine = Machine::new(40);
        let cpus = [machine.add_cpu(), machine.add_cpu()];
        cpus.iter().for_each(|cpu| cpu.running.store(true, Ordering::SeqCst));
        let mut outstanding = Broadcast::default();
        for va in 0..1000 {
            outstanding.append(machine.broadcast(Maintenance::TlbVa(va << 12), Some(&cpus[0])));
        }
        assert_eq!(outstanding.0.len(), 1);
    }

    #[test]
    fn merged_broadcasts_are_complete_only_with_the_last_one() {
        let machine = Machine::new(40);
        let cpu = machine.add_cpu();
        cpu.running.store(true, Ordering::SeqCst);
        let mut outstanding = machine.broadcast(Maintenance::TlbAll, None);
        outstanding.append(machine.broadcast(Maintenance::CodeAll, None));
        cpu.acknowledge(1);
        let after_first = outstanding.is_complete();
        cpu.acknowledge(2);
        assert_eq!((after_first, outstanding.is_complete()), (false, true));
    }
}
