//! The guest's RAM on the host: one private anonymous mapping, given out by the host as it is touched.
//! What lies where in it is `boot`'s.

use std::ffi::c_void;
use std::{io, ptr};

use hvrun_arch::GuestMemory;
use hvrun_arch::aarch64::layout::Window;
use hvrun_arch::memory::Owner;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

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
        source: io::Error,
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

/// Host addresses are congruent with guest physical ones modulo this: the size of the blocks in which hypervisors with 4 KiB
/// pages map best (Arm ARM D8.2, a level 2 block), and a multiple of every host's page.
const ALIGNMENT: usize = 2 << 20;

/// Maps RAM for `window`. No page of it is touched, and none counts against the host's memory until the guest does.
pub(crate) fn map(window: Window) -> Result<GuestMemory, RamError> {
    let size = MemorySize::from_bytes(window.size);
    let failed = |source| RamError::Map { size, source };
    let len = usize::try_from(window.size).map_err(|_| RamError::HostAddressSpace(size))?;
    let mapping = Mapping::new(window.base, len).map_err(failed)?;
    sys::prefer_huge_pages(mapping.ram, len);
    let builder = MmapRegionBuilder::new_with_bitmap(len, Owner::new(mapping.reservation))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the mapping has `len` bytes there, and the region owns it: it stays until the region goes.
    let region = unsafe { builder.with_raw_mmap_pointer(mapping.ram) }.build();
    let region = region.map_err(|error| failed(io::Error::other(error)))?;
    let region = GuestRegionMmap::new(region, GuestAddress(window.base));
    let region = region.ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    GuestMemory::from_regions(vec![region]).map_err(|error| failed(io::Error::other(error)))
}

/// Memory that is congruent with its guest physical address.
struct Mapping {
    ram: *mut u8,
    reservation: Reservation,
}

impl Mapping {
    /// `len` bytes for guest physical address `base`: in a reservation larger than that, so that one address in it is right.
    fn new(base: u64, len: usize) -> io::Result<Self> {
        let reserved = len.checked_add(ALIGNMENT).ok_or(io::ErrorKind::OutOfMemory)?;
        let reservation = Reservation::new(reserved)?;
        let start = reservation.start.cast::<u8>();
        // The difference, modulo a power of two that divides 2^64.
        let padding = (base as usize).wrapping_sub(start as usize) % ALIGNMENT;
        let ram = start.wrapping_add(padding);
        // SAFETY: these bytes are the reservation's, at whole pages, and nobody has been told of them.
        unsafe { mprotect(ram.cast(), len, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        Ok(Mapping { ram, reservation })
    }
}

/// Addresses of this process's: a private anonymous mapping, without access at first. Unmapped when dropped.
#[derive(Debug)]
struct Reservation {
    start: *mut c_void,
    len: usize,
}

// SAFETY: the value is a range of addresses, which mean the same on every thread; it gives no access to what is there.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

impl Reservation {
    fn new(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        Ok(Reservation { start, len })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and by nobody else since; whoever used it had to keep this value.
        if let Err(error) = unsafe { munmap(self.start, self.len) } {
            log::debug!("the guest's RAM cannot be unmapped: {error}");
        }
    }
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

    fn host_address(memory: &GuestMemory) -> usize {
        memory.iter().map(|region| region.as_ptr() as usize).next().unwrap()
    }

    #[test]
    fn mapping_is_2_mib_aligned() {
        // Several at once, so that no luck can do it.
        let memories = [4 << 20, 0x5000, 0x1000, 6 << 20].map(|size| map(Window::new(BASE, size)).unwrap());
        assert_eq!(memories.each_ref().map(|memory| host_address(memory) % (2 << 20)), [0; 4]);
    }

    #[test]
    fn mapping_is_congruent_with_a_base_that_is_not_aligned() {
        let memory = map(Window::new(BASE + 0x3_4000, 4 << 20)).unwrap();
        assert_eq!(host_address(&memory) % (2 << 20), 0x3_4000);
    }

    #[test]
    fn mapping_stays_while_a_clone_of_the_memory_does() {
        let memory = map(Window::new(BASE, 4 << 20)).unwrap();
        let clone = memory.clone();
        drop(memory);
        clone.write_obj(7u8, GuestAddress(BASE)).unwrap();
    }

    #[test]
    fn mapping_goes_with_the_memory() {
        // Together more than the address space of any host (2^48 bytes for user space on arm64, 2^47 on x86-64).
        for _ in 0..8192 {
            drop(map(Window::new(BASE, 64 << 30)).unwrap());
        }
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
