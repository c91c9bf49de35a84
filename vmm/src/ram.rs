//! The guest's RAM on the host: one mapping, private or of a file in memory that other processes may map too, given out by the host as
//! it is touched.
//! What lies where in it is `boot`'s.

use std::ffi::c_void;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::{io, ptr};

use hvrun_arch::GuestMemory;
use hvrun_arch::aarch64::layout::Window;
use hvrun_arch::memory::Owner;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::size::MemorySize;
use crate::sys;

/// What the guest's RAM is on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBacking {
    /// Memory of this process alone.
    #[default]
    Private,
    /// Memory that is handed to other processes, the back ends of vhost-user devices. On Linux only.
    Shared,
    /// The same in a file, which is made if it is not there, or in a nameless one if this is a directory, such as `/dev/shm` or that of
    /// another file system.
    SharedFile(PathBuf),
}

impl MemoryBacking {
    /// Whether other processes can map it.
    pub fn is_shared(&self) -> bool {
        *self != MemoryBacking::Private
    }
}

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
    /// There is no memory that another process could map.
    #[error("memory: no {size} that other processes can map are to be had")]
    Share {
        /// How much was asked for.
        size: MemorySize,
        /// Why not.
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

/// Maps RAM for `window`. No page of it is touched, and none counts against the host's memory until the guest does. What is shared has its
/// file in the region ([`GuestMemoryRegion::file_offset`]).
pub(crate) fn map(window: Window, backing: &MemoryBacking) -> Result<GuestMemory, RamError> {
    let size = MemorySize::from_bytes(window.size);
    let failed = |source| RamError::Map { size, source };
    let len = usize::try_from(window.size).map_err(|_| RamError::HostAddressSpace(size))?;
    let file = match backing {
        MemoryBacking::Private => Ok(None),
        MemoryBacking::Shared => sys::shared_memory(None, window.size).map(Some),
        MemoryBacking::SharedFile(path) => sys::shared_memory(Some(path), window.size).map(Some),
    };
    let file = file.map_err(|source| RamError::Share { size, source })?;
    let mapping = Mapping::new(window.base, len, file.as_ref()).map_err(failed)?;
    sys::prefer_huge_pages(mapping.ram, len);
    let mut builder = MmapRegionBuilder::new_with_bitmap(len, Owner::new(mapping.reservation))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::from_arc(Arc::new(file), 0));
    }
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
    /// `len` bytes for guest physical address `base`, of `file` if there is one: in a reservation larger than that, so that one address in
    /// it is right.
    fn new(base: u64, len: usize, file: Option<&File>) -> io::Result<Self> {
        let reserved = len.checked_add(ALIGNMENT).ok_or(io::ErrorKind::OutOfMemory)?;
        let reservation = Reservation::new(reserved)?;
        let start = reservation.start.cast::<u8>();
        // The difference, modulo a power of two that divides 2^64.
        let padding = (base as usize).wrapping_sub(start as usize) % ALIGNMENT;
        let ram = start.wrapping_add(padding);
        match file {
            None => {
                // SAFETY: these bytes are the reservation's, at whole pages, and nobody has been told of them.
                unsafe { mprotect(ram.cast(), len, MprotectFlags::READ | MprotectFlags::WRITE) }?;
            }
            Some(file) => {
                let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
                // SAFETY: what is replaced is the reservation's, at whole pages, and nobody has been told of it.
                unsafe { mmap(ram.cast(), len, prot, flags | MapFlags::NORESERVE, file, 0) }?;
            }
        }
        Ok(Mapping { ram, reservation })
    }
}

/// Addresses of this process's: a private anonymous mapping, without access at first, and whatever was put in its place. Unmapped when
/// dropped.
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
        // SAFETY: the range was mapped by `new`, and since then only by who had this value; whoever used it had to keep this value.
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
        let (start, len) = (region.as_ptr(), region.len() as usize);
        let discarded = match region.file_offset() {
            // SAFETY: the region is a private anonymous mapping of our own (`map` makes no other without a file), which lives as long as
            // `memory`. No Rust reference into it exists: everybody reaches it through volatile accesses.
            None => unsafe { sys::discard(start, len) },
            // SAFETY: as above, but for the mapping, which is a shared one of a file that `map` has opened for it.
            Some(_) => unsafe { sys::discard_shared(start, len) },
        };
        discarded.map_err(|source| RamError::Discard { size, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::MemoryBacking::Private;
    use super::*;
    use vm_memory::Bytes;

    const BASE: u64 = 0x4000_0000;

    #[test]
    fn discarded_memory_is_zero() {
        let memory = map(Window::new(BASE, 4 << 20), &Private).unwrap();
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
        let memories =
            [4 << 20, 0x5000, 0x1000, 6 << 20].map(|size| map(Window::new(BASE, size), &Private).unwrap());
        assert_eq!(memories.each_ref().map(|memory| host_address(memory) % (2 << 20)), [0; 4]);
    }

    #[test]
    fn mapping_is_congruent_with_a_base_that_is_not_aligned() {
        let memory = map(Window::new(BASE + 0x3_4000, 4 << 20), &Private).unwrap();
        assert_eq!(host_address(&memory) % (2 << 20), 0x3_4000);
    }

    #[test]
    fn mapping_stays_while_a_clone_of_the_memory_does() {
        let memory = map(Window::new(BASE, 4 << 20), &Private).unwrap();
        let clone = memory.clone();
        drop(memory);
        clone.write_obj(7u8, GuestAddress(BASE)).unwrap();
    }

    #[test]
    fn mapping_goes_with_the_memory() {
        // Together more than the address space of any host (2^48 bytes for user space on arm64, 2^47 on x86-64).
        for _ in 0..8192 {
            drop(map(Window::new(BASE, 64 << 30), &Private).unwrap());
        }
    }

    #[test]
    fn more_than_the_host_has_is_mapped_on_demand() {
        let memory = map(Window::new(BASE, 64 << 30), &Private).unwrap();
        memory.write_obj(7u8, GuestAddress(BASE + (64 << 30) - 1)).unwrap();
        assert_eq!(memory.last_addr().0, BASE + (64 << 30) - 1);
    }

    #[test]
    fn more_than_the_host_can_address_is_refused_with_the_size() {
        let error = map(Window::new(BASE, 1 << 60), &Private).unwrap_err().to_string();
        assert!(error.contains("1073741824G"), "{error}");
    }
}
