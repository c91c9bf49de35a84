//! Queues whose back end has gone: what the guest asks of them fails, instead of never being answered.
//!
//! A queue is taken over where its used ring ends. That is right for back ends that answer in order, as virtiofsd does unless it is told to
//! use several threads; after one that did not, a driver may find a request answered twice, and then gives the queue up by itself.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hvrun_arch::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::chain::Chain;
use crate::virtio::device::{DeviceType, Interrupt};
use crate::virtio::queue::{Virtqueue, VirtqueueState};

/// Bytes of `struct fuse_out_header` (Linux uapi/linux/fuse.h): length, error, number of the request.
const FUSE_OUT_HEADER: usize = 16;
/// Where the number of the request is in `struct fuse_in_header`: behind length and operation.
const FUSE_IN_UNIQUE: usize = 8;
/// The guest's number of "Transport endpoint is not connected".
const ENOTCONN: i32 = 107;

/// The queue of outgoing packets of a vsock device (virtio 1.2, 5.10.2).
const VSOCK_TX: u16 = 1;
/// Its queue of events.
pub(super) const VSOCK_EVENTS: u16 = 2;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7): all connections are gone.
const VSOCK_TRANSPORT_RESET: [u8; 4] = [0; 4];

/// A queue of the guest's and where it is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) device: Arc<str>,
    pub(super) kind: DeviceType,
    pub(super) index: u16,
    pub(super) state: VirtqueueState,
    pub(super) event_idx: bool,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

/// A queue that nobody serves.
#[derive(Debug)]
pub(super) struct Orphan {
    queue: Virtqueue,
    kind: DeviceType,
}

impl Orphan {
    /// Takes over the queue at `place`; `None` if it cannot be that of any device.
    pub(super) fn take_over(place: Place, memory: &GuestMemory) -> Option<Self> {
        let Place { device, kind, index, state, event_idx, interrupt } = place;
        // The index of the used ring is behind its flags (virtio 1.2, 2.7.8).
        let used = GuestAddress(state.used.checked_add(2)?);
        let done = u16::from_le(memory.load::<u16>(used, Ordering::Acquire).ok()?);
        let state = VirtqueueState { next_avail: done, next_used: done, ..state };
        let queue = Virtqueue::new(device, index, state.size, state, event_idx, memory, interrupt).ok()?;
        Some(Orphan { queue, kind })
    }

    /// Fails what is in the queue.
    pub(super) fn serve(&mut self, memory: &GuestMemory) {
        match (self.kind, self.queue.index()) {
            (DeviceType::Vsock, VSOCK_TX) => self.queue.drain(memory, &mut Chain::new(), |_| 0),
            // Room for packets that will not come.
            (DeviceType::Vsock, _) => {}
            _ => self.queue.drain(memory, &mut Chain::new(), fail_fuse),
        }
    }

    /// Tells the driver of a vsock device that its connections are gone, once.
    pub(super) fn reset_transport(&mut self, memory: &GuestMemory) {
        let mut chain = Chain::new();
        if (self.kind, self.queue.index()) != (DeviceType::Vsock, VSOCK_EVENTS)
            || !self.queue.pop(memory, &mut chain)
        {
            return;
        }
        let mut writer = chain.writer();
        // A driver without room for an event gets none.
        let _ = writer.write_all(&VSOCK_TRANSPORT_RESET);
        self.queue.push(memory, chain.head(), writer.written());
        self.queue.signal(memory);
    }
}

/// Answers a request of a file system with an error, if it has room for an answer. Returns how many bytes that are.
fn fail_fuse(chain: &Chain<'_>) -> u32 {
    if chain.writable_len() < FUSE_OUT_HEADER {
        return 0;
    }
    let mut request = [0; FUSE_IN_UNIQUE + 8];
    // One that is shorter has no number; the driver knows which it is anyway.
    let _ = chain.reader().read_exact(&mut request);
    let mut answer = [0; FUSE_OUT_HEADER];
    answer[..4].copy_from_slice(&(FUSE_OUT_HEADER as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&(-ENOTCONN).to_le_bytes());
    answer[8..].copy_from_slice(&request[FUSE_IN_UNIQUE..]);
    let mut writer = chain.writer();
    // There is room.
    let _ = writer.write_all(&answer);
    writer.written()
}
