//! What a card counts. Plain numbers that anybody may read at any time.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Traffic of a card since the machine was made. "Received" is what the guest receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct NetCounters {
    /// Frames that the guest got; one that is to be cut into segments counts once.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames for the guest that were lost: no link, too large for its buffers.
    pub rx_dropped: u64,
    /// Frames that were not for this guest.
    pub rx_filtered: u64,
    /// Frames that the guest sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames of the guest that were lost for want of a link.
    pub tx_dropped: u64,
    /// Frames of the guest that were refused, because they are not what they are said to be.
    pub tx_malformed: u64,
}

/// One number. Only the card's thread writes it.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        // There is one writer, so nothing is lost between the two; a locked addition a frame would be dearer.
        self.0.store(self.get().wrapping_add(count), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The numbers while they are counted; see [`NetCounters`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rx_frames: Counter,
    pub(super) rx_bytes: Counter,
    pub(super) rx_dropped: Counter,
    pub(super) rx_filtered: Counter,
    pub(super) tx_frames: Counter,
    pub(super) tx_bytes: Counter,
    pub(super) tx_dropped: Counter,
    pub(super) tx_malformed: Counter,
}

impl Counters {
    pub(super) fn get(&self) -> NetCounters {
        NetCounters {
            rx_frames: self.rx_frames.get(),
            rx_bytes: self.rx_bytes.get(),
            rx_dropped: self.rx_dropped.get(),
            rx_filtered: self.rx_filtered.get(),
            tx_frames: self.tx_frames.get(),
            tx_bytes: self.tx_bytes.get(),
            tx_dropped: self.tx_dropped.get(),
            tx_malformed: self.tx_malformed.get(),
        }
    }
}
