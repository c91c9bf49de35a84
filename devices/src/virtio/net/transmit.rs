//! Frames from the guest: taken out of the transmit queue, checked, and handed to the backend, which gets no more to do than it
//! understands. A frame that it has no room for stays in the queue.

use hvrun_arch::GuestMemory;
use vm_memory::VolatileSlice;

use super::counters::Counters;
use super::header::{self, HEADER};
use super::pcap::Pcap;
use super::segment::{self, MAX_HEADERS, Segmenter};
use crate::backend::net::{FrameInfo, NetBackend, Offloads, SegmentationKind, Transmit, TxFrame};
use crate::util::LogLimit;
use crate::virtio::chain::{Chain, SpareChain};
use crate::virtio::queue::Virtqueue;

/// Most frames in a row before the card looks after other things.
const BATCH: usize = 256;
/// Frames after which the driver hears of those that are done with, although there are more: its buffers shall not all wait for the
/// last frame.
const SIGNAL_BATCH: usize = 64;

/// Frames that are not what they are said to be, of all cards.
static MALFORMED: LogLimit = LogLimit::new();

/// A frame that was taken from the guest and worked on, on its way to the backend.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    /// Its bytes: a copy, which the guest cannot change any more.
    frame: Vec<u8>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// There is none.
    #[default]
    Empty,
    /// All of it.
    Whole,
    /// In segments.
    Segments(Segmenter),
}

/// A frame all of whose checksums are there.
const COMPLETE: FrameInfo = FrameInfo { checksum: None, segmentation: None, checksum_valid: true };

impl Outbound {
    /// Forgets the frame.
    pub(super) fn clear(&mut self) {
        self.state = State::Empty;
    }

    /// Takes the frame in `slices` and does to it what `info` says. `false`: it is not what that says.
    fn load(&mut self, slices: &[VolatileSlice<'_>], len: usize, info: &FrameInfo) -> bool {
        self.frame.resize(len, 0);
        header::copy_out(slices, &mut self.frame);
        if let Some(segmentation) = info.segmentation {
            let Ok(segmenter) = Segmenter::new(&self.frame, segmentation) else { return false };
            self.state = State::Segments(segmenter);
        } else {
            self.state = State::Whole;
            if let Some(checksum) = info.checksum {
                return segment::complete_checksum(&mut self.frame, checksum);
            }
        }
        true
    }

    /// Hands what there is to `backend`. `false`: it had no room for all of it.
    fn send(&mut self, backend: &mut dyn NetBackend) -> bool {
        if let State::Whole = self.state {
            let len = self.frame.len();
            let slices = [VolatileSlice::from(&mut self.frame[..])];
            if backend.transmit(&TxFrame { slices: &slices, len, info: COMPLETE }) == Transmit::Busy {
                return false;
            }
        }
        if let State::Segments(segmenter) = &mut self.state {
            let mut headers = [0; MAX_HEADERS];
            while let Some((head, payload)) = segmenter.segment(&self.frame, &mut headers) {
                let len = head.len() + payload.len();
                let Some(payload) = self.frame.get_mut(payload) else { break };
                let slices = [VolatileSlice::from(head), VolatileSlice::from(payload)];
                if backend.transmit(&TxFrame { slices: &slices, len, info: COMPLETE }) == Transmit::Busy {
                    return false;
                }
                segmenter.advance();
            }
        }
        self.state = State::Empty;
        true
    }
}

/// What sending needs besides the queue.
#[derive(Debug)]
pub(super) struct Transmission<'a> {
    pub(super) backend: &'a mut dyn NetBackend,
    pub(super) outbound: &'a mut Outbound,
    pub(super) spare: &'a mut SpareChain,
    pub(super) features: u64,
    /// Without a link every frame is dropped.
    pub(super) link: bool,
    pub(super) counters: &'a Counters,
    pub(super) dump: Option<&'a mut Pcap>,
    /// Whose queue it is, for the log.
    pub(super) name: &'a str,
}

/// How far [`Transmission::drain`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drained {
    /// The queue is empty, and its next frame will be announced.
    Empty,
    /// There may be more.
    More,
    /// The backend has no room.
    Busy,
}

impl Transmission<'_> {
    /// Sends what the queue holds, up to a batch.
    pub(super) fn drain(&mut self, queue: &mut Virtqueue, memory: &GuestMemory) -> Drained {
        let mut chain = self.spare.take();
        let mut slices = Vec::new();
        let mut left = BATCH;
        let drained = loop {
            queue.disable_notification(memory);
            if !self.link {
                self.outbound.clear();
            } else if !self.outbound.send(self.backend) {
                break Drained::Busy;
            }
            let busy = self.take_frames(queue, memory, &mut chain, &mut slices, &mut left);
            if busy {
                break Drained::Busy;
            }
            if left == 0 {
                break Drained::More;
            }
            // Frames that come meanwhile share the interrupt.
            if !queue.enable_notification(memory) {
                break Drained::Empty;
            }
        };
        queue.signal(memory);
        self.spare.put(chain);
        drained
    }

    /// Takes frames until there are none, `left` is zero or the backend is busy, which it says.
    fn take_frames<'m>(
        &mut self,
        queue: &mut Virtqueue,
        memory: &'m GuestMemory,
        chain: &mut Chain<'m>,
        slices: &mut Vec<VolatileSlice<'m>>,
        left: &mut usize,
    ) -> bool {
        let offloads = self.backend.offloads();
        while *left > 0 && queue.pop(memory, chain) {
            *left -= 1;
            if left.is_multiple_of(SIGNAL_BATCH) {
                queue.signal(memory);
            }
            slices.clear();
            header::skip(chain.readable(), HEADER, slices);
            match self.send(chain, slices, offloads) {
                Sent::Taken => queue.push(memory, chain.head(), 0),
                Sent::Refused => {
                    queue.undo_pop();
                    return true;
                }
                Sent::Begun => {
                    queue.push(memory, chain.head(), 0);
                    return true;
                }
            }
        }
        false
    }

    /// One frame, which lies in `slices`.
    fn send(&mut self, chain: &Chain<'_>, slices: &[VolatileSlice<'_>], offloads: Offloads) -> Sent {
        let total = chain.readable_len();
        let mut header = [0; HEADER];
        let whole = header::copy_out(chain.readable(), &mut header) == HEADER;
        let len = total.saturating_sub(HEADER);
        let parsed = match whole {
            true => header::parse(&header, slices, len, self.features),
            false => Err(header::HeaderError::Short(total)),
        };
        let info = match parsed {
            Ok(info) => info,
            Err(error) => return self.malformed(&error),
        };
        if !self.link {
            self.counters.tx_dropped.add(1);
            return Sent::Taken;
        }
        let segments = info.segmentation.is_some_and(|segmentation| match segmentation.kind {
            SegmentationKind::Tcp4 => !offloads.tso4,
            SegmentationKind::Tcp6 => !offloads.tso6,
        });
        let sent = if segments || info.checksum.is_some() && !offloads.checksum {
            if !self.outbound.load(slices, len, &info) {
                self.outbound.clear();
                return self.malformed(&"its headers are not what is said of it");
            }
            if self.outbound.send(self.backend) { Sent::Taken } else { Sent::Begun }
        } else {
            match self.backend.transmit(&TxFrame { slices, len, info }) {
                Transmit::Done => Sent::Taken,
                Transmit::Busy => return Sent::Refused,
            }
        };
        self.counters.tx_frames.add(1);
        self.counters.tx_bytes.add(len as u64);
        if let Some(dump) = self.dump.as_deref_mut() {
            dump.record(slices, len);
        }
        sent
    }

    /// A frame that goes nowhere.
    fn malformed(&self, why: &dyn std::fmt::Display) -> Sent {
        self.counters.tx_malformed.add(1);
        if let Some(suppressed) = MALFORMED.allow() {
            log::warn!("{}: a frame of the guest is dropped: {why}{suppressed}", self.name);
        }
        Sent::Taken
    }
}

/// What became of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// It is done with.
    Taken,
    /// The backend has no room for it.
    Refused,
    /// It is done with, but the backend had no room for all of it: the rest is in [`Outbound`].
    Begun,
}
