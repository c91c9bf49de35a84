//! One split virtqueue as a device uses it: take a chain, give it back, tell the driver. The rings themselves are `virtio-queue`'s.
//!
//! A driver that breaks its ring breaks its device: [`Virtqueue`] then asks for a reset, once, and stays empty.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hvrun_arch::GuestMemory;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::chain::Chain;
use super::device::Interrupt;
use crate::util::LogLimit;

/// Most buffers in one chain, also by way of an indirect table: as many as QEMU takes, and more than drivers use. (Linux's chains
/// may be longer than the queue if they are indirect; a table alone could have 65535.)
const MAX_BUFFERS: usize = 1024;

/// Broken queues of all devices: a driver may break one, reset the device, and break it again.
static BROKEN: LogLimit = LogLimit::new();

/// What is wrong with a ring. Words for a log line; the driver only learns that the device needs a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It has a size that is no power of 2, or more than it can have.
    #[error("its size of {0} entries is not valid")]
    Size(u16),
    /// The descriptor table is not aligned, or not in guest memory.
    #[error("its descriptor table is not valid")]
    DescriptorTable,
    /// The available ring is not aligned or not in guest memory, or its index is further ahead than the queue is long.
    #[error("its available ring is not valid")]
    AvailRing,
    /// A chain has a loop, an index beyond the table, a table in a table, or more than 2^32 bytes.
    #[error("the descriptor chain at {0} is not valid")]
    Chain(u16),
    /// A buffer lies outside of guest memory.
    #[error("a descriptor of {len} bytes at {addr:#x} lies outside of guest memory")]
    Address {
        /// Guest physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A chain has more buffers than any driver needs.
    #[error("the descriptor chain at {0} has more than {MAX_BUFFERS} buffers")]
    Length(u16),
    /// A readable buffer follows a writable one.
    #[error("the descriptor chain at {0} has a readable buffer behind a writable one")]
    Order(u16),
    /// The used ring is not aligned, or cannot be written.
    #[error("its used ring is not valid")]
    UsedRing,
}

/// A queue's place and progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VirtqueueState {
    /// Entries.
    pub size: u16,
    /// GPA of the descriptor table.
    pub desc: u64,
    /// GPA of the available ring.
    pub avail: u64,
    /// GPA of the used ring.
    pub used: u64,
    /// The next entry of the available ring to take.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

/// A virtqueue that a device serves. One owner at a time; a device with several threads puts it behind a lock.
///
/// The device's loop, which [`Virtqueue::drain`] is the simple form of:
///
/// ```
/// use hvrun_arch::GuestMemory;
/// use hvrun_devices::virtio::{Chain, Virtqueue};
///
/// fn serve(queue: &mut Virtqueue, memory: &GuestMemory, mut request: impl FnMut(&Chain<'_>) -> u32) {
///     let mut chain = Chain::new();
///     loop {
///         queue.disable_notification(memory);
///         while queue.pop(memory, &mut chain) {
///             let written = request(&chain);
///             queue.push(memory, chain.head(), written);
///         }
///         queue.signal(memory);
///         if !queue.enable_notification(memory) {
///             break;
///         }
///     }
/// }
/// ```
pub struct Virtqueue {
    queue: Queue,
    index: u16,
    interrupt: Arc<dyn Interrupt>,
    /// Whose queue it is, for the log.
    device: Arc<str>,
    broken: bool,
    /// The next entry of the used ring at the last [`Virtqueue::signal`].
    signalled: u16,
}

impl Virtqueue {
    /// A queue where `state` says, if that lies in guest memory.
    ///
    /// # Errors
    /// A size that is no power of 2 or above `max_size`, addresses that are not aligned or lie outside of RAM.
    pub fn new(
        device: Arc<str>,
        index: u16,
        max_size: u16,
        state: VirtqueueState,
        event_idx: bool,
        memory: &GuestMemory,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, QueueError> {
        let mut queue = Queue::new(max_size).map_err(|_| QueueError::Size(max_size))?;
        queue.try_set_size(state.size).map_err(|_| QueueError::Size(state.size))?;
        queue
            .try_set_desc_table_address(GuestAddress(state.desc))
            .map_err(|_| QueueError::DescriptorTable)?;
        queue.try_set_avail_ring_address(GuestAddress(state.avail)).map_err(|_| QueueError::AvailRing)?;
        queue.try_set_used_ring_address(GuestAddress(state.used)).map_err(|_| QueueError::UsedRing)?;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(state.next_avail);
        queue.set_next_used(state.next_used);
        queue.set_ready(true);
        // virtio 1.2, 2.7: the table, and the rings with their event fields. (`Queue::is_valid` would log what a guest can repeat.)
        let entries = usize::from(state.size);
        for (addr, len, error) in [
            (state.desc, 16 * entries, QueueError::DescriptorTable),
            (state.avail, 6 + 2 * entries, QueueError::AvailRing),
            (state.used, 6 + 8 * entries, QueueError::UsedRing),
        ] {
            if !memory.check_range(GuestAddress(addr), len) {
                return Err(error);
            }
        }
        Ok(Virtqueue { queue, index, interrupt, device, broken: false, signalled: state.next_used })
    }

    /// Which of its device's queues it is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many entries it has.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the driver broke it. It then stays empty until the device is reset.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Takes the next available chain into `chain`. `false`: there is none, or the ring is broken.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory, chain: &mut Chain<'m>) -> bool {
        if self.broken {
            return false;
        }
        match self.try_pop(memory, chain) {
            Ok(found) => found,
            Err(error) => {
                self.fail(error);
                false
            }
        }
    }

    fn try_pop<'m>(&mut self, memory: &'m GuestMemory, chain: &mut Chain<'m>) -> Result<bool, QueueError> {
        chain.readable.clear();
        chain.writable.clear();
        let mut available = self.queue.iter(memory).map_err(|_| QueueError::AvailRing)?;
        let Some(descriptors) = available.next() else { return Ok(false) };
        chain.head = descriptors.head_index();
        let mut more = true;
        for descriptor in descriptors {
            let (addr, len) = (descriptor.addr(), descriptor.len());
            let slices = match (descriptor.is_write_only(), chain.writable.is_empty()) {
                (true, _) => &mut chain.writable,
                (false, true) => &mut chain.readable,
                (false, false) => return Err(QueueError::Order(chain.head)),
            };
            resolve(memory, addr.0, len, slices)?;
            if chain.readable.len() + chain.writable.len() > MAX_BUFFERS {
                return Err(QueueError::Length(chain.head));
            }
            more = descriptor.has_next();
        }
        // A chain that ends although its last descriptor names a next one was cut short by a check.
        if more { Err(QueueError::Chain(chain.head)) } else { Ok(true) }
    }

    /// Whether another chain is there to be taken.
    pub fn has_more(&self, memory: &GuestMemory) -> bool {
        let available = self.queue.avail_idx(memory, Ordering::Acquire);
        !self.broken && available.is_ok_and(|available| available.0 != self.queue.next_avail())
    }

    /// Puts the chain that was taken last back, to be taken again.
    pub fn undo_pop(&mut self) {
        if !self.broken {
            self.queue.go_to_previous_position();
        }
    }

    /// Gives the chain with this head back to the driver, with `written` bytes in its writable buffers. The driver hears of it
    /// at the next [`Virtqueue::signal`].
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) {
        if !self.broken && self.queue.add_used(memory, head, written).is_err() {
            self.fail(QueueError::UsedRing);
        }
    }

    /// Interrupts the driver if it wants to hear of what was pushed since the last call.
    pub fn signal(&mut self, memory: &GuestMemory) {
        if self.broken || self.queue.next_used() == self.signalled {
            return;
        }
        self.signalled = self.queue.next_used();
        match self.wants_interrupt(memory) {
            Ok(true) => self.interrupt.used(self.index),
            Ok(false) => {}
            Err(error) => self.fail(error),
        }
    }

    /// Whether the driver wants to hear of used buffers (virtio 1.2, 2.7.7 and 2.7.10).
    fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let wanted = self.queue.needs_notification(memory).map_err(|_| QueueError::AvailRing)?;
        if !wanted || self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|_| QueueError::AvailRing)?;
        Ok(u16::from_le(flags) & VIRTQ_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver for no doorbells: the device is looking at the queue anyway.
    pub fn disable_notification(&mut self, memory: &GuestMemory) {
        if !self.broken && self.queue.disable_notification(memory).is_err() {
            self.fail(QueueError::UsedRing);
        }
    }

    /// Asks for a doorbell with the next chain. `true`: there is one already, which nobody will announce.
    pub fn enable_notification(&mut self, memory: &GuestMemory) -> bool {
        if self.broken {
            return false;
        }
        match self.queue.enable_notification(memory) {
            Ok(more) => more,
            Err(_) => {
                self.fail(QueueError::UsedRing);
                false
            }
        }
    }

    /// Serves all there is: `serve` answers each chain and says how many bytes it has written. For devices that never block.
    pub fn drain<'m>(
        &mut self,
        memory: &'m GuestMemory,
        chain: &mut Chain<'m>,
        mut serve: impl FnMut(&Chain<'m>) -> u32,
    ) {
        loop {
            self.disable_notification(memory);
            while self.pop(memory, chain) {
                let written = serve(chain);
                self.push(memory, chain.head, written);
            }
            self.signal(memory);
            if !self.enable_notification(memory) {
                break;
            }
        }
    }

    /// Marks the device as one that needs a reset, because `why` a driver would not do this. Says so in the log, once.
    pub fn fail(&mut self, why: impl fmt::Display) {
        if !self.broken {
            self.broken = true;
            if let Some(suppressed) = BROKEN.allow() {
                log::warn!(
                    "{}: the driver broke queue {}: {why}; the device needs a reset{suppressed}",
                    self.device,
                    self.index
                );
            }
            self.interrupt.needs_reset();
        }
    }

    /// For a snapshot: where it is and how far it got. No chain may be taken and not pushed.
    pub fn state(&self) -> VirtqueueState {
        VirtqueueState {
            size: self.queue.size(),
            desc: self.queue.desc_table(),
            avail: self.queue.avail_ring(),
            used: self.queue.used_ring(),
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }
}

impl fmt::Debug for Virtqueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Virtqueue")
            .field("device", &self.device)
            .field("index", &self.index)
            .field("state", &self.state())
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.6).
const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Adds the host memory of `len` bytes at `addr` to `slices`. An empty buffer adds nothing.
fn resolve<'m>(
    memory: &'m GuestMemory,
    addr: u64,
    len: u32,
    slices: &mut Vec<VolatileSlice<'m>>,
) -> Result<(), QueueError> {
    if len > 0 {
        let slice = memory.get_slice(GuestAddress(addr), len as usize);
        slices.push(slice.map_err(|_| QueueError::Address { addr, len })?);
    }
    Ok(())
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
