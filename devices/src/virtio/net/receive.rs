//! Frames to the guest: room for them in the receive queue, over several buffers where the driver has agreed to that (virtio 1.2,
//! 5.1.6.3 and 5.1.6.4). What comes is the backend's affair; what is for this guest, the filter's.

use std::collections::VecDeque;
use std::io;

use hvrun_arch::GuestMemory;
use vm_memory::VolatileSlice;

use super::counters::Counters;
use super::filter::Filter;
use super::header::{self, HEADER, MAX_FRAME};
use super::mac::Mac;
use super::pcap::Pcap;
use crate::backend::net::{ETHERNET_HEADER, Filled, FrameInfo, NetBackend, Offloads, RxRing};
use crate::virtio::chain::Chain;
use crate::virtio::queue::Virtqueue;

/// Room for every frame without segmentation that a link with the usual MTU has, with two tags. A guest that has so much may be
/// handed a frame that turns out larger: that one waits.
const PLAIN_FRAME: usize = 1500 + ETHERNET_HEADER + 8;
/// Most frames in a row before the card looks after other things.
const BATCH: usize = 256;

/// Memory for frames that are larger than the room there was, which is only known when they are there.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    /// Where the end of such a frame goes first.
    tail: Vec<u8>,
    /// A frame that waits for room.
    waiting: Vec<u8>,
    info: Option<FrameInfo>,
}

impl Overflow {
    /// Forgets the frame that waits.
    pub(super) fn clear(&mut self) {
        self.info = None;
    }
}

/// What decides about a frame.
#[derive(Debug)]
pub(super) struct Reception<'a> {
    pub(super) filter: &'a Filter,
    pub(super) guest: Offloads,
    /// Frames may take several buffers.
    pub(super) merge: bool,
    /// Without a link every frame is dropped.
    pub(super) link: bool,
    pub(super) counters: &'a Counters,
    pub(super) dump: Option<&'a mut Pcap>,
}

/// A chain that was taken and is not used yet.
#[derive(Debug, Clone, Copy)]
struct Held {
    head: u16,
    slices: usize,
    bytes: usize,
}

/// The receive queue during one [`NetBackend::receive`]. Chains that were taken for a frame
/// and not needed serve the next one, and go back at the end.
#[derive(Debug)]
pub(super) struct Room<'a, 'm> {
    queue: &'a mut Virtqueue,
    memory: &'m GuestMemory,
    overflow: &'a mut Overflow,
    reception: Reception<'a>,
    chain: Chain<'m>,
    held: VecDeque<Held>,
    /// The buffers of the chains in `held`, one after the other, from `first` on.
    slices: Vec<VolatileSlice<'m>>,
    first: usize,
    bytes: usize,
    /// How often the backend was handed room, and how many frames the guest got.
    offers: usize,
    frames: usize,
    /// The last frame's slices, to be used again.
    spare: Vec<VolatileSlice<'m>>,
}

impl<'a, 'm> Room<'a, 'm> {
    pub(super) fn new(
        queue: &'a mut Virtqueue,
        memory: &'m GuestMemory,
        overflow: &'a mut Overflow,
        reception: Reception<'a>,
    ) -> Self {
        queue.disable_notification(memory);
        Room {
            queue,
            memory,
            overflow,
            reception,
            chain: Chain::new(),
            held: VecDeque::new(),
            slices: Vec::new(),
            first: 0,
            bytes: 0,
            offers: 0,
            frames: 0,
            spare: Vec::new(),
        }
    }

    /// Puts `backend`'s frames into the queue, and one that waits for room in front of them.
    pub(super) fn fill(&mut self, backend: &mut dyn NetBackend) -> io::Result<()> {
        // Without room for it the backend is told so by the first `put`.
        self.deliver_waiting();
        backend.receive(self)
    }

    /// Gives back what was not needed and tells the driver of the rest.
    pub(super) fn finish(self) -> Received {
        let Room { queue, memory, held, offers, frames, .. } = self;
        held.iter().for_each(|_| queue.undo_pop());
        queue.signal(memory);
        Received { offers, frames, more: offers >= BATCH }
    }

    /// Takes chains until they have room for `bytes` or there are no more. Without merging, one chain is all a frame gets.
    fn gather(&mut self, bytes: usize) {
        while self.bytes < bytes && (self.reception.merge || self.held.is_empty()) {
            if self.first > 0 && self.held.is_empty() {
                self.slices.clear();
                self.first = 0;
            }
            if !self.queue.pop(self.memory, &mut self.chain) {
                // Asks for a doorbell before the chains go back: from the last one on.
                if !self.queue.enable_notification(self.memory) {
                    return;
                }
                self.queue.disable_notification(self.memory);
                continue;
            }
            let len = self.chain.writable_len();
            if len < HEADER {
                self.queue.fail(format_args!("a receive buffer has {len} bytes, less than a frame's header"));
                return;
            }
            let slices = self.chain.writable();
            self.slices.extend_from_slice(slices);
            self.held.push_back(Held { head: self.chain.head(), slices: slices.len(), bytes: len });
            self.bytes += len;
        }
    }

    /// Whether waiting brings no more room for one frame.
    fn is_most(&self) -> bool {
        !self.reception.merge || self.held.len() >= usize::from(self.queue.size())
    }

    /// Where a frame goes: what is behind the header.
    fn frame_slices(&mut self) -> Vec<VolatileSlice<'m>> {
        let mut slices = std::mem::take(&mut self.spare);
        slices.clear();
        header::skip(self.slices.get(self.first..).unwrap_or_default(), HEADER, &mut slices);
        slices
    }

    /// The frame that waits goes first. `false`: it still waits.
    fn deliver_waiting(&mut self) -> bool {
        let Some(info) = self.overflow.info else { return true };
        let len = self.overflow.waiting.len();
        self.gather(len + HEADER);
        if self.bytes >= len + HEADER {
            let slices = self.frame_slices();
            header::copy_in(&slices, &self.overflow.waiting);
            self.spare = slices;
            self.commit(len, &info);
        } else if self.held.is_empty() || !self.is_most() {
            return false;
        } else {
            self.reception.counters.rx_dropped.add(1);
        }
        self.overflow.info = None;
        true
    }

    /// A frame of `len` bytes lies in `slices`, perhaps with its end in the overflow.
    fn accept(&mut self, slices: &[VolatileSlice<'_>], len: usize, info: FrameInfo) {
        let mut destination = [0; Mac::LEN];
        header::copy_out(slices, &mut destination);
        if !(ETHERNET_HEADER..=MAX_FRAME).contains(&len) || !self.reception.link {
            return self.reception.counters.rx_dropped.add(1);
        }
        if !self.reception.filter.accepts(Mac(destination)) {
            return self.reception.counters.rx_filtered.add(1);
        }
        if let Some(dump) = self.reception.dump.as_deref_mut() {
            dump.record(slices, len);
        }
        if len + HEADER <= self.bytes {
            return self.commit(len, &info);
        }
        if self.is_most() {
            return self.reception.counters.rx_dropped.add(1);
        }
        self.overflow.waiting.resize(len, 0);
        header::copy_out(slices, &mut self.overflow.waiting);
        self.overflow.info = Some(info);
    }

    /// Gives the driver the frame of `len` bytes that lies in the chains held first.
    fn commit(&mut self, len: usize, info: &FrameInfo) {
        let total = len + HEADER;
        let (mut chains, mut room) = (0_u16, 0);
        for held in &self.held {
            if room >= total {
                break;
            }
            room += held.bytes;
            chains += 1;
        }
        let Some(bytes) = header::build(info, self.reception.guest, chains) else {
            log::debug!("a frame with offloads that the guest does not have is dropped: {info:?}");
            return self.reception.counters.rx_dropped.add(1);
        };
        header::copy_in(self.slices.get(self.first..).unwrap_or_default(), &bytes);
        self.frames += 1;
        self.reception.counters.rx_frames.add(1);
        self.reception.counters.rx_bytes.add(len as u64);
        let mut left = total;
        for _ in 0..chains {
            let Some(held) = self.held.pop_front() else { break };
            let written = held.bytes.min(left);
            left -= written;
            self.first += held.slices;
            self.bytes -= held.bytes;
            self.queue.push(self.memory, held.head, written as u32);
        }
    }
}

impl RxRing for Room<'_, '_> {
    fn put(&mut self, max: usize, fill: &mut dyn FnMut(&[VolatileSlice<'_>]) -> Filled) -> bool {
        if self.offers >= BATCH {
            return false;
        }
        if !self.deliver_waiting() {
            return false;
        }
        let max = max.min(MAX_FRAME);
        self.gather(max + HEADER);
        let enough = self.bytes >= max.min(PLAIN_FRAME) + HEADER;
        if self.held.is_empty() || !enough && !self.is_most() {
            return false;
        }
        self.offers += 1;
        let slices = self.frame_slices();
        let missing = (max + HEADER).saturating_sub(self.bytes);
        if missing == 0 {
            if let Some((len, info)) = fill(&slices) {
                self.accept(&slices, len.min(self.bytes - HEADER), info);
            }
        } else {
            // Out of `self`, so that the frame can be looked at while it is there.
            let mut tail = std::mem::take(&mut self.overflow.tail);
            tail.resize(tail.len().max(missing), 0);
            let mut whole: Vec<VolatileSlice<'_>> = slices.clone();
            whole.push(VolatileSlice::from(&mut tail[..missing]));
            if let Some((len, info)) = fill(&whole) {
                self.accept(&whole, len.min(max), info);
            }
            drop(whole);
            self.overflow.tail = tail;
        }
        self.spare = slices;
        true
    }
}

/// What became of a [`Room`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    /// How often the backend was handed room.
    pub(super) offers: usize,
    /// Frames that the guest got.
    pub(super) frames: usize,
    /// The backend was stopped in the middle.
    pub(super) more: bool,
}
