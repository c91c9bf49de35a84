//! The memory balloon (virtio 1.2, 5.5): takes memory from the guest on request, and takes the guest's free pages as it reports
//! them. What it gets goes back to the host at once. It decides nothing about how much memory a guest should have.

mod config;
mod pages;
#[cfg(test)]
mod properties;
mod serve;
mod stats;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hvrun_arch::{GuestMemory, RamDiscard};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

pub use self::config::{BalloonConfig, BalloonConfigError};
pub use self::pages::HostPages;
use self::serve::Serving;
pub use self::stats::BalloonStats;
use super::device::{Activation, DeviceType, Interrupt, VirtioDevice};
use super::queue::VirtqueueState;
use super::worker::Worker;
use crate::sys::Event;
use crate::util::{LogLimit, lock};

/// VIRTIO_BALLOON_F_STATS_VQ (virtio 1.2, 5.5.3): the guest tells its statistics.
const F_STATS_VQ: u64 = 1 << 1;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest may take pages back before it kills a program for want of memory.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_POISON: free pages of the guest's hold a value that it tells.
const F_PAGE_POISON: u64 = 1 << 4;
/// VIRTIO_BALLOON_F_PAGE_REPORTING: the guest reports free pages.
const F_PAGE_REPORTING: u64 = 1 << 5;
// VIRTIO_BALLOON_F_MUST_TELL_HOST is not offered: a page that the guest takes back is there when it is touched.

/// Entries of each queue. Linux wants 32 for reports.
const QUEUE_SIZE: u16 = 128;
/// inflateq, deflateq, and up to three more, whose numbers [`serve`] finds out.
const QUEUES: [u16; 5] = [QUEUE_SIZE; 5];

/// Pages of the balloon are always of this size (virtio 1.2, 5.5.6).
const PAGE_SIZE: u64 = 4096;

/// Configuration space (virtio 1.2, 5.5.4): offsets of its fields, 32 bits each.
mod field {
    /// How many pages the host wants.
    pub const NUM_PAGES: usize = 0;
    /// How many it has got.
    pub const ACTUAL: usize = 4;
    /// What the guest's free pages are filled with.
    pub const POISON_VAL: usize = 12;
    /// The end.
    pub const SIZE: usize = 16;
}

/// A memory balloon.
///
/// Inflating and deflating is the guest's own doing, whose driver follows [`Balloon::set_target`] as it can:
///
/// ```
/// use std::sync::Arc;
///
/// use hvrun_arch::GuestMemory;
/// use hvrun_devices::virtio::VirtioDevice;
/// use hvrun_devices::virtio::balloon::{Balloon, BalloonConfig, HostPages};
/// use vm_memory::GuestAddress;
///
/// let memory = GuestMemory::from_ranges(&[(GuestAddress(0x4000_0000), 64 << 20)])?;
/// // SAFETY: nobody holds references into this memory, and no hypervisor minds what becomes of it.
/// let pages = unsafe { HostPages::new(memory.clone()) };
/// let balloon = Balloon::new(BalloonConfig::default(), &memory, Arc::new(pages))?;
///
/// balloon.set_target(48 << 20);
/// assert_eq!(balloon.target(), 48 << 20);
/// // No driver has given anything yet.
/// assert_eq!(balloon.actual(), 64 << 20);
///
/// let mut num_pages = [0; 4];
/// balloon.read_config(0, &mut num_pages);
/// assert_eq!(u32::from_le_bytes(num_pages), 4096);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Balloon {
    shared: Arc<Shared>,
    worker: Mutex<Option<Worker>>,
}

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BalloonState {
    /// How many pages the host wants.
    pub num_pages: u32,
    /// How many it has got.
    pub actual: u32,
    /// What the guest's free pages are filled with.
    pub poison_val: u32,
    /// The queues that the driver has set up.
    pub queues: Vec<Option<VirtqueueState>>,
    /// The head of the chain that waits for the next request of statistics.
    pub stats_chain: Option<u16>,
}

/// What the device and its worker share.
struct Shared {
    config: BalloonConfig,
    /// Bytes of RAM.
    ram: u64,
    discard: Arc<dyn RamDiscard>,
    /// All queues' doorbell.
    event: Arc<Event>,
    space: Mutex<[u8; field::SIZE]>,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    stats: Mutex<Option<BalloonStats>>,
    /// Somebody wants new statistics.
    stats_wanted: AtomicBool,
    /// The worker is to end in the middle of what it does.
    stop: AtomicBool,
    serving: Mutex<Option<Serving>>,
    complaints: LogLimit,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).field("ram", &self.ram).finish_non_exhaustive()
    }
}

impl Shared {
    fn field(&self, at: usize) -> u32 {
        let space = lock(&self.space);
        let bytes = space.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    }

    fn set_field(&self, at: usize, value: u32) {
        if let Some(bytes) = lock(&self.space).get_mut(at..at + 4) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// How much memory a guest has without so many pages.
    fn without(&self, pages: u32) -> u64 {
        self.ram.saturating_sub(u64::from(pages) * PAGE_SIZE)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl Balloon {
    /// A balloon of a machine with `memory`; what it gets is given back by `discard`.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(
        config: BalloonConfig,
        memory: &GuestMemory,
        discard: Arc<dyn RamDiscard>,
    ) -> io::Result<Self> {
        let shared = Shared {
            config,
            ram: memory.iter().map(GuestMemoryRegion::len).sum(),
            discard,
            event: Arc::new(Event::new()?),
            space: Mutex::default(),
            interrupt: Mutex::new(None),
            stats: Mutex::new(None),
            stats_wanted: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            serving: Mutex::new(None),
            complaints: LogLimit::new(),
        };
        Ok(Balloon { shared: Arc::new(shared), worker: Mutex::new(None) })
    }

    /// Asks the guest to make do with `bytes` of memory, at most all it was made with. Returns at once; what it really does is in
    /// [`Balloon::actual`]. The wish stays when the guest reboots.
    pub fn set_target(&self, bytes: u64) {
        let pages = self.shared.ram.saturating_sub(bytes) / PAGE_SIZE;
        self.shared.set_field(field::NUM_PAGES, u32::try_from(pages).unwrap_or(u32::MAX));
        if let Some(interrupt) = &*lock(&self.shared.interrupt) {
            interrupt.config_changed();
        }
    }

    /// How many bytes of memory the guest is to make do with.
    pub fn target(&self) -> u64 {
        self.shared.without(self.shared.field(field::NUM_PAGES))
    }

    /// How many bytes of memory the guest has left, as it says: all, as long as no driver has said anything.
    pub fn actual(&self) -> u64 {
        self.shared.without(self.shared.field(field::ACTUAL))
    }

    /// What the guest last told about its memory; `None`: nothing since it booted, or its driver tells nothing.
    pub fn stats(&self) -> Option<BalloonStats> {
        lock(&self.shared.stats).clone()
    }

    /// Asks the guest for new statistics. They will be in [`Balloon::stats`].
    pub fn request_stats(&self) {
        self.shared.stats_wanted.store(true, Ordering::SeqCst);
        self.shared.event.signal();
    }

    /// For a snapshot. Waits until the worker is between two requests.
    pub fn state(&self) -> BalloonState {
        let serving = lock(&self.shared.serving);
        let (queues, stats_chain) = serving.as_ref().map(Serving::state).unwrap_or_default();
        BalloonState {
            num_pages: self.shared.field(field::NUM_PAGES),
            actual: self.shared.field(field::ACTUAL),
            poison_val: self.shared.field(field::POISON_VAL),
            queues,
            stats_chain,
        }
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn name(&self) -> &str {
        "balloon"
    }

    fn features(&self) -> u64 {
        let optional = [
            (self.shared.config.deflate_on_oom, F_DEFLATE_ON_OOM),
            (self.shared.config.free_page_reporting, F_PAGE_REPORTING | F_PAGE_POISON),
        ];
        optional.into_iter().filter(|(on, _)| *on).fold(F_STATS_VQ, |all, (_, bits)| all | bits)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&*lock(&self.shared.space), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let writable = |at: &usize| {
            (field::ACTUAL..field::ACTUAL + 4).contains(at)
                || (field::POISON_VAL..field::POISON_VAL + 4).contains(at)
        };
        let Ok(offset) = usize::try_from(offset) else { return };
        let mut space = lock(&self.shared.space);
        for (at, byte) in (offset..field::SIZE).zip(data).filter(|(at, _)| writable(at)) {
            if let Some(to) = space.get_mut(at) {
                *to = *byte;
            }
        }
    }

    fn activate(&self, activation: Activation) {
        let shared = self.shared.clone();
        shared.stop.store(false, Ordering::SeqCst);
        *lock(&shared.interrupt) = Some(activation.interrupt.clone());
        let interrupt = activation.interrupt.clone();
        *lock(&shared.serving) = Some(Serving::new(activation));
        let serve = move || {
            if let Some(serving) = &mut *lock(&shared.serving) {
                serving.serve(&shared);
            }
        };
        match Worker::spawn("balloon", self.shared.event.clone(), serve) {
            Ok(worker) => *lock(&self.worker) = Some(worker),
            Err(error) => {
                log::error!("balloon: the host gives no thread for it: {error}");
                interrupt.needs_reset();
            }
        }
    }

    fn notify(&self, _queue: u16) {
        self.shared.event.signal();
    }

    fn doorbell(&self, _queue: u16) -> Option<BorrowedFd<'_>> {
        Some(self.shared.event.as_fd())
    }

    fn reset(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Waits for what it is doing, which is one piece of one request.
        let worker = lock(&self.worker).take();
        drop(worker);
        *lock(&self.shared.serving) = None;
        *lock(&self.shared.interrupt) = None;
        *lock(&self.shared.stats) = None;
        self.shared.stats_wanted.store(false, Ordering::SeqCst);
        // The next driver has given nothing yet; what the host wants stays.
        self.shared.set_field(field::ACTUAL, 0);
        self.shared.set_field(field::POISON_VAL, 0);
    }
}
