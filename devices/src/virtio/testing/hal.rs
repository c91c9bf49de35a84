//! What drivers that others wrote, those of `virtio-drivers`, need of the test's guest: its memory. How they reach a device is for the
//! transports of the tests.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::NonNull;

use hvrun_arch::GuestMemory;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{BUFFERS, RAM, RAM_SIZE};

/// What one test's driver allocates from.
struct Pool {
    memory: GuestMemory,
    next: u64,
    /// Shared buffers: address and length of the copies.
    shared: BTreeMap<u64, usize>,
}

thread_local! {
    /// The driver's functions have no `self`, so it is the thread's: each test has its own.
    static POOL: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

fn with_pool<R>(body: impl FnOnce(&mut Pool) -> R) -> R {
    POOL.with(|pool| body(pool.borrow_mut().as_mut().unwrap()))
}

impl Pool {
    fn take(&mut self, len: usize) -> u64 {
        let addr = self.next;
        self.next += (len as u64).next_multiple_of(PAGE_SIZE as u64);
        assert!(self.next <= RAM + RAM_SIZE, "the test's RAM is too small");
        addr
    }

    fn host(&self, addr: u64) -> NonNull<u8> {
        NonNull::new(self.memory.get_host_address(GuestAddress(addr)).unwrap()).unwrap()
    }
}

/// Memory of the test's guest.
pub(crate) struct GuestHal;

impl GuestHal {
    /// From now on, this thread's drivers live in `memory`, from [`BUFFERS`] on.
    pub(crate) fn use_memory(memory: &GuestMemory) {
        let pool = Pool { memory: memory.clone(), next: BUFFERS, shared: BTreeMap::new() };
        POOL.with(|slot| *slot.borrow_mut() = Some(pool));
    }
}

// SAFETY: allocations are whole pages of zeroed guest memory, which lives until the test ends, and none is given out twice.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        with_pool(|pool| {
            let addr = pool.take(pages * PAGE_SIZE);
            (addr, pool.host(addr))
        })
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("the tests' transports have no registers in memory")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        // SAFETY: the caller's promise: valid, and nobody else's now.
        let bytes = unsafe { buffer.as_ref() };
        with_pool(|pool| {
            let addr = pool.take(bytes.len());
            pool.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
            pool.shared.insert(addr, bytes.len());
            addr
        })
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        with_pool(|pool| {
            assert_eq!(pool.shared.remove(&paddr), Some(buffer.len()));
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: the caller's promise: valid, and nobody else's now.
                pool.memory.read_slice(unsafe { buffer.as_mut() }, GuestAddress(paddr)).unwrap();
            }
        });
    }
}
