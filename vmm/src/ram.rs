//! The guest's RAM on the host: one private anonymous mapping, given out by the host as it is touched.
//! What lies where in it is `boot`'s.

use std::io;

use hvrun_arch::GuestMemory;
use hvrun_arch::aarch64::layout::Window;
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::size::MemorySize;
use crate::sys;

/// Why there is no RAM for the guest.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host's address space is too small.
    #[error("memory: {0} is more than this host can address")]
    HostAddressSpace(MemorySize),
    /// The host refused.
    #[error("memory: the host gives no {size}; use less, or allow it more (ulimit -v, vm.overcommit_memory)")]
    Map {
        /// How much was asked for.
        size: MemorySize,
        /// What the host answered.
        source: FromRangesError,
    },
    /// The host did not take the pages back.
    #[error("memory: the host cannot empty {size} for a reset")]
    Discard {
        /// How much was to be emptied.
        size: MemorySize,
        /// What the host answered.
        source: io::Error,
    },
}

/// Maps RAM for `window`. No page of it is touched, and none counts against the host's memory until the guest does.
pub(crate) fn map(window: Window) -> Result<GuestMemory, RamError> {
    let size = MemorySize::from_bytes(window.size);
    let len = usize::try_from(window.size).map_err(|_| RamError::HostAddressSpace(size))?;
    let memory = GuestMemory::from_ranges(&[(GuestAddress(window.base), len)])
        .map_err(|source| RamError::Map { size, source })?;
    for region in memory.iter() {
        sys::prefer_huge_pages(region.as_ptr(), region.len() as usize);
    }
    Ok(memory)
}

/// Makes all of `memory` zero again, as [`map`] gave it out, and returns its pages to the host. Nothing may use the memory
/// meanwhile: the vCPUs are stopped and the devices reset.
pub(crate) fn discard(memory: &GuestMemory) -> Result<(), RamError> {
    for region in memory.iter() {
        let size = MemorySize::from_bytes(region.len());
        // SAFETY: the region is a private anonymous mapping of our own (`map` makes no other), which lives as long as
        // `memory`. No Rust reference into it exists: everybody reaches it through volatile accesses.
        unsafe { sys::discard(region.as_ptr(), region.len() as usize) }
            .map_err(|source| RamError::Discard { size, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const BASE: u64 = 0x4000_0000;

    #[test]
    fn discarded_memory_is_zero() {
        let memory = map(Window::new(BASE, 4 << 20)).unwrap();
        memory.write_obj(0x1234_5678u32, GuestAddress(BASE + 0x12_3454)).unwrap();
        discard(&memory).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(BASE + 0x12_3454)).unwrap(), 0);
    }

    #[test]
    fn more_than_the_host_has_is_mapped_on_demand() {
        let memory = map(Window::new(BASE, 64 << 30)).unwrap();
        memory.write_obj(7u8, GuestAddress(BASE + (64 << 30) - 1)).unwrap();
        assert_eq!(memory.last_addr().0, BASE + (64 << 30) - 1);
    }

    #[test]
    fn more_than_the_host_can_address_is_refused_with_the_size() {
        let error = map(Window::new(BASE, 1 << 60)).unwrap_err().to_string();
        assert!(error.contains("1073741824G"), "{error}");
    }
}
