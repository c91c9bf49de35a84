//! The guest's RAM as Hypervisor.framework has it: mappings of which parts can be given back to the host while vCPUs run.
//!
//! macOS keeps pages that a guest has touched for as long as they are mapped into it, whatever `madvise` is told, and takes back
//! from a guest only exactly what one call gave it. So a discard is: the mappings around the range out of the guest, fresh memory
//! in the range's place, and back in as up to three mappings, which from then on are the ones that can be taken out.
//!
//! Meanwhile a vCPU may touch what is out for a moment, and leaves the guest with an abort on RAM. It waits here for the lock that
//! a discard holds from the first unmap to the last map, sees in [`Ram::generation`] that one has gone by since it entered the
//! guest, and makes the access again ([`Ram::explains`]).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::ffi::Framework;
use super::{ipa, sys};
use crate::aarch64::esr::{self, FaultKind, Trap, fault_kind};
use crate::hypervisor::HypervisorError;
use crate::memory::GuestMemory;

/// Most that is mapped by one call, and discarded at a time: what shares a mapping with a discarded page leaves the guest for a
/// moment, and vCPUs that want it wait.
const BLOCK: u64 = 64 << 20;

/// The mappings of one VM's RAM. They go when this value does, before the VM is destroyed.
pub struct Ram {
    framework: Arc<Framework>,
    memory: GuestMemory,
    /// What is mapped: guest address to size.
    mapped: Mutex<BTreeMap<u64, u64>>,
    /// How many discards are complete.
    generation: AtomicU64,
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ram").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Ram {
    /// Maps all of `memory`, after the host's GIC has its place.
    pub fn map(framework: Arc<Framework>, memory: GuestMemory) -> Result<Self, HypervisorError> {
        let ram = Ram { framework, memory, mapped: Mutex::default(), generation: AtomicU64::new(0) };
        for region in ram.memory.iter() {
            let (host, ipa, size) = (region.as_ptr(), region.start_addr().0, region.len());
            if let Some(reason) = ipa::misaligned(host as u64, ipa, size, sys::page_size()) {
                return Err(HypervisorError::Call { call: "hv_vm_map", reason });
            }
            let mut mapped = ram.lock();
            for start in (ipa..ipa + size).step_by(BLOCK as usize) {
                ram.map_piece(&mut mapped, start..ipa + size.min(start - ipa + BLOCK))?;
            }
        }
        Ok(ram)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's address of `range`, if that is RAM in one region, and not empty.
    fn host(&self, range: &Range<u64>) -> Option<*mut u8> {
        let region = self.memory.iter().find(|region| {
            let start = region.start_addr().0;
            start <= range.start && range.start < range.end && range.end - start <= region.len()
        })?;
        Some(region.as_ptr().wrapping_add((range.start - region.start_addr().0) as usize))
    }

    fn map_piece(&self, mapped: &mut BTreeMap<u64, u64>, range: Range<u64>) -> Result<(), HypervisorError> {
        let Some(host) = self.host(&range) else { return Ok(()) };
        let size = range.end - range.start;
        // SAFETY: the memory lives as long as this value, whose `drop` unmaps it first; nobody holds a Rust reference into guest
        // memory.
        unsafe { self.framework.map(host, range.start, size as usize) }?;
        mapped.insert(range.start, size);
        Ok(())
    }

    /// How many discards are complete: to be asked before the guest is entered, for [`Ram::explains`].
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether an exit with `syndrome` and `ipa`, of a vCPU that entered the guest after it saw `seen`, came of a discard, so that
    /// the access is to be made again. Waits for one that goes on.
    pub fn explains(&self, seen: u64, syndrome: u64, ipa: u64) -> bool {
        let (status, walk) = match esr::decode(syndrome) {
            Trap::DataAbort(abort) => (abort.dfsc, abort.s1ptw),
            Trap::InstructionAbort(abort) => (abort.ifsc, abort.s1ptw),
            _ => return false,
        };
        // The address of a table walk is not told by every host.
        let on_ram = walk || self.host(&(ipa..ipa.saturating_add(1))).is_some();
        if !on_ram || fault_kind(status) != FaultKind::Translation {
            return false;
        }
        // A hole exists only under the lock, and the number changes before the lock is released: whoever fell into a hole sees
        // another number than the one from before.
        let _no_discard = self.lock();
        self.generation() != seen
    }

    /// Discards whole granules of one region, [`BLOCK`] bytes at most.
    fn discard_block(&self, range: Range<u64>) -> Result<(), HypervisorError> {
        let Some(host) = self.host(&range) else { return Ok(()) };
        let mut mapped = self.lock();
        let touched = overlapping(&mapped, &range);
        let mut result = Ok(());
        let mut out = Vec::with_capacity(touched.len());
        for piece in touched {
            // SAFETY: `mapped` has what is mapped, piece by piece. vCPUs that fall into the hole wait for the lock.
            match unsafe { self.framework.unmap(piece.start, (piece.end - piece.start) as usize) } {
                Ok(()) => {
                    mapped.remove(&piece.start);
                    out.push(piece);
                }
                Err(error) => result = Err(error),
            }
        }
        if result.is_ok() {
            // SAFETY: the range is guest memory of our own, whole host pages, and out of the guest; Rust holds no references into
            // it. Devices' accesses meet the old pages or the new ones: the kernel replaces them in one step.
            result = unsafe { fresh_pages(host, (range.end - range.start) as usize) }
                .map_err(|error| HypervisorError::Call { call: "mmap", reason: error.to_string() });
        }
        // Back in, also after an error. Memory from before and fresh memory are regions of their own to macOS, and a mapping lies
        // in one region; so what is back is in pieces, the fresh one whole.
        let fresh = result.is_ok();
        let mut back = Vec::new();
        for piece in &out {
            if fresh {
                back.push(piece.start..piece.end.min(range.start));
                back.push(piece.start.max(range.end)..piece.end);
            } else {
                back.push(piece.clone());
            }
        }
        back.extend(fresh.then_some(range));
        for piece in back {
            if let Err(error) = self.map_piece(&mut mapped, piece.clone()) {
                log::error!("guest memory at {:#x} is lost to the guest: {error}", piece.start);
                result = Err(error);
            }
        }
        self.generation.fetch_add(1, Ordering::SeqCst);
        result
    }
}

/// The mappings that share an address with `range`.
fn overlapping(mapped: &BTreeMap<u64, u64>, range: &Range<u64>) -> Vec<Range<u64>> {
    let mut pieces: Vec<_> = mapped
        .range(..range.end)
        .rev()
        .map(|(start, size)| *start..start + size)
        .take_while(|piece| piece.end > range.start)
        .collect();
    pieces.reverse();
    pieces
}

/// Puts fresh memory, all zeros, in the place of what is there.
///
/// # Safety
/// The range is a private anonymous mapping of the caller's, in whole pages, to which no reference exists.
unsafe fn fresh_pages(start: *mut u8, len: usize) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the caller's promise; what is replaced is only the caller's.
    let mapped = unsafe { libc::mmap(start.cast(), len, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Ram {
    /// Pages of this size can be given back.
    pub fn granule() -> u64 {
        ipa::GRANULE.max(sys::page_size())
    }

    /// [`RamDiscard::discard`](crate::hypervisor::RamDiscard::discard).
    pub fn discard(&self, addr: u64, len: u64) -> Result<(), HypervisorError> {
        let range = addr..addr.saturating_add(len);
        if self.host(&range).is_none() {
            let reason = format!("{len:#x} bytes at {addr:#x} are not all RAM");
            return Err(HypervisorError::Call { call: "discard", reason });
        }
        let granule = Self::granule();
        // RAM begins at a multiple of the granule, and ends far below 2^64.
        let (mut start, end) = (addr.next_multiple_of(granule), range.end / granule * granule);
        while start < end {
            // At blocks' boundaries, as they are mapped.
            let stop = end.min((start / BLOCK + 1) * BLOCK);
            self.discard_block(start..stop)?;
            start = stop;
        }
        Ok(())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        for (ipa, size) in std::mem::take(&mut *self.lock()) {
            // SAFETY: mapped by `map_piece`, and taken, so unmapped once.
            if let Err(error) = unsafe { self.framework.unmap(ipa, size as usize) } {
                log::error!("guest memory at {ipa:#x}: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped() -> BTreeMap<u64, u64> {
        BTreeMap::from([(0x1_0000, 0x1_0000), (0x2_0000, 0x4000), (0x3_0000, 0x1_0000)])
    }

    #[test]
    fn a_range_inside_one_mapping_touches_that() {
        assert!(overlapping(&mapped(), &(0x1_4000..0x1_8000)).into_iter().eq(Some(0x1_0000..0x2_0000)));
    }

    #[test]
    fn a_range_over_several_mappings_touches_all_of_them() {
        let touched = overlapping(&mapped(), &(0x1_c000..0x3_4000));
        assert_eq!(touched, [0x1_0000..0x2_0000, 0x2_0000..0x2_4000, 0x3_0000..0x4_0000]);
    }

    #[test]
    fn neighbours_are_not_touched() {
        assert!(overlapping(&mapped(), &(0x2_0000..0x2_4000)).into_iter().eq(Some(0x2_0000..0x2_4000)));
    }
}
