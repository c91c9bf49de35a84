//! Guest pages and host pages: which host pages lie wholly in the balloon, and how they are given back where no hypervisor minds.

use std::fmt;
use std::ops::Range;

use hvrun_arch::{GuestMemory, HypervisorError, RamDiscard};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::PAGE_SIZE;
use crate::sys;

/// The pages in the balloon: a bit each. A host page is given back when all guest pages in it are there.
#[derive(Debug)]
pub(super) struct Inflated {
    regions: Vec<Region>,
    granule: u64,
}

#[derive(Debug)]
struct Region {
    start: u64,
    len: u64,
    bits: Vec<u64>,
}

impl Region {
    /// The word and the bit in it of the page at `addr`.
    fn bit(&mut self, addr: u64) -> Option<(&mut u64, u64)> {
        let page = addr.checked_sub(self.start).filter(|offset| *offset < self.len)? / PAGE_SIZE;
        let word = self.bits.get_mut(usize::try_from(page / 64).ok()?)?;
        Some((word, 1 << (page % 64)))
    }
}

impl Inflated {
    /// None yet.
    pub(super) fn new(memory: &GuestMemory, granule: u64) -> Self {
        let region = |region: &vm_memory::GuestRegionMmap<_>| {
            let words = region.len().div_ceil(PAGE_SIZE * 64);
            let bits = vec![0; usize::try_from(words).unwrap_or(0)];
            Region { start: region.start_addr().0, len: region.len(), bits }
        };
        Inflated { regions: memory.iter().map(region).collect(), granule: granule.max(PAGE_SIZE) }
    }

    fn region(&mut self, addr: u64) -> Option<&mut Region> {
        self.regions.iter_mut().find(|region| addr >= region.start && addr - region.start < region.len)
    }

    /// The guest gives the page with this number. The address of the host page that is complete now, if one is; an error for a page
    /// that is no RAM.
    pub(super) fn insert(&mut self, pfn: u32) -> Result<Option<u64>, u64> {
        let (addr, granule) = (u64::from(pfn) * PAGE_SIZE, self.granule);
        let region = self.region(addr).ok_or(addr)?;
        let (word, bit) = region.bit(addr).ok_or(addr)?;
        *word |= bit;
        let host_page = addr / granule * granule;
        let complete = (host_page..host_page + granule)
            .step_by(PAGE_SIZE as usize)
            .all(|page| region.bit(page).is_some_and(|(word, bit)| *word & bit != 0));
        Ok(complete.then_some(host_page))
    }

    /// The guest takes the page with this number back.
    pub(super) fn remove(&mut self, pfn: u32) {
        let addr = u64::from(pfn) * PAGE_SIZE;
        if let Some((word, bit)) = self.region(addr).and_then(|region| region.bit(addr)) {
            *word &= !bit;
        }
    }

    /// Size of a host page.
    pub(super) fn granule(&self) -> u64 {
        self.granule
    }
}

/// Joins pages of `size` bytes at `pages` to ranges, as long as possible.
pub(super) fn join(pages: &mut Vec<u64>, size: u64) -> Vec<Range<u64>> {
    pages.sort_unstable();
    pages.dedup();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages.drain(..) {
        match ranges.last_mut() {
            Some(last) if last.end == page => last.end = page + size,
            _ => ranges.push(page..page + size),
        }
    }
    ranges
}

/// The guest physical address of `slice`, which was resolved from one in `memory`.
pub(super) fn address_of(memory: &GuestMemory, slice: &VolatileSlice<'_>) -> Option<u64> {
    let host = slice.ptr_guard().as_ptr() as u64;
    memory.iter().find_map(|region| {
        let offset = host.checked_sub(region.as_ptr() as u64).filter(|offset| *offset < region.len())?;
        Some(region.start_addr().0 + offset)
    })
}

/// Gives pages of guest memory back, in place: of a private anonymous mapping of this process's, or out of the file of a shared one.
pub struct HostPages {
    memory: GuestMemory,
    page_size: u64,
}

impl fmt::Debug for HostPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostPages").field("page_size", &self.page_size).finish_non_exhaustive()
    }
}

impl HostPages {
    /// For a machine whose backend does not mind ([`hvrun_arch::Vm::ram_discard`] is `None`).
    ///
    /// # Safety
    /// All of `memory` is private anonymous memory, or a shared mapping of the file that its region has, to which nobody holds references,
    /// and which no hypervisor has been given that must hear of such a change (on macOS: none at all).
    pub unsafe fn new(memory: GuestMemory) -> Self {
        // Always a power of 2.
        HostPages { memory, page_size: (rustix::param::page_size() as u64).max(PAGE_SIZE) }
    }
}

impl RamDiscard for HostPages {
    fn granule(&self) -> u64 {
        self.page_size
    }

    fn discard(&self, addr: u64, len: u64) -> Result<(), HypervisorError> {
        let failed = |reason: String| HypervisorError::Call { call: "discard", reason };
        let region = self.memory.iter().find(|region| {
            addr.checked_sub(region.start_addr().0)
                .is_some_and(|offset| offset < region.len() && len != 0 && len <= region.len() - offset)
        });
        let Some(region) = region else {
            return Err(failed(format!("{len:#x} bytes at {addr:#x} are not all RAM")));
        };
        // Whole pages of the host, whose borders the guest's need not share.
        let host = region.as_ptr() as u64 + (addr - region.start_addr().0);
        let start = host.next_multiple_of(self.page_size);
        let end = (host + len) / self.page_size * self.page_size;
        if start >= end {
            return Ok(());
        }
        let pages = region.as_ptr().wrapping_add((start - region.as_ptr() as u64) as usize);
        let len = (end - start) as usize;
        let discarded = match region.file_offset() {
            // SAFETY: whole pages inside of the region; the rest is the promise given to `new`.
            None => unsafe { sys::discard(pages, len) },
            // SAFETY: as above.
            Some(_) => unsafe { sys::discard_shared(pages, len) },
        };
        discarded.map_err(|error| failed(format!("{len:#x} bytes at {addr:#x}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    const RAM: u64 = 0x4000_0000;
    /// PFN of the first page of RAM.
    const FIRST: u32 = (RAM / PAGE_SIZE) as u32;

    fn inflated(size: usize, granule: u64) -> Inflated {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(RAM), size)]).unwrap();
        Inflated::new(&memory, granule)
    }

    #[test]
    fn each_guest_page_is_a_host_page_of_the_same_size() {
        assert_eq!(inflated(1 << 20, 4096).insert(FIRST + 3), Ok(Some(RAM + 0x3000)));
    }

    #[test]
    fn a_larger_host_page_goes_with_the_last_guest_page_in_it() {
        let mut inflated = inflated(1 << 20, 16384);
        assert_eq!([4, 6, 7].map(|page| inflated.insert(FIRST + page)), [Ok(None); 3]);
        assert_eq!(inflated.insert(FIRST + 5), Ok(Some(RAM + 0x4000)));
    }

    #[test]
    fn a_page_that_was_taken_back_keeps_its_host_page() {
        let mut inflated = inflated(1 << 20, 16384);
        assert_eq!([0, 1, 2].map(|page| inflated.insert(FIRST + page)), [Ok(None); 3]);
        inflated.remove(FIRST + 1);
        assert_eq!(inflated.insert(FIRST + 3), Ok(None));
    }

    #[test]
    fn a_host_page_across_the_end_of_ram_is_kept() {
        let mut inflated = inflated(0x2000, 16384);
        assert_eq!([0, 1].map(|page| inflated.insert(FIRST + page)), [Ok(None); 2]);
    }

    #[test]
    fn pages_that_are_no_ram_are_refused() {
        let mut inflated = inflated(1 << 20, 4096);
        assert_eq!(inflated.insert(FIRST - 1), Err(RAM - 0x1000));
        assert_eq!(inflated.insert(FIRST + 256), Err(RAM + (1 << 20)));
        assert_eq!(inflated.insert(u32::MAX), Err(u64::from(u32::MAX) * PAGE_SIZE));
        inflated.remove(u32::MAX);
    }

    #[test]
    fn neighbours_are_joined_in_any_order() {
        let mut pages = vec![0x3000, 0x1000, 0x6000, 0x2000, 0x1000];
        assert_eq!(join(&mut pages, 0x1000), [0x1000..0x4000, 0x6000..0x7000]);
    }
}
