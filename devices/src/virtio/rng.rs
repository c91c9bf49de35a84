//! The entropy device (virtio 1.2, 5.4): fills the guest's buffers with the host's random bytes. Makes no random numbers itself.

mod alarm;
mod limit;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvrun_arch::GuestMemory;
use serde::{Deserialize, Serialize};

use self::alarm::Alarm;
use self::limit::Quota;
pub use self::limit::{RngConfig, RngConfigError};
use super::chain::Chain;
use super::device::{Activation, DeviceType, VirtioDevice};
use super::queue::{Virtqueue, VirtqueueState};
use crate::util::lock;

/// Most entries of the queue. Drivers have one request in flight.
const QUEUE_SIZE: u16 = 64;
/// Most bytes that one request gets, however large its buffer is: it is served on a vCPU's thread. Drivers ask for less than 100,
/// and must take what they get (virtio 1.2, 5.4.6.2).
const MAX_REQUEST: usize = 4096;

/// Where random bytes come from.
pub trait EntropySource: Send + Sync + fmt::Debug {
    /// Fills `buffer`. Must not block.
    ///
    /// # Errors
    /// There is none to be had, now or ever.
    fn fill(&self, buffer: &mut [u8]) -> io::Result<()>;
}

/// The host's generator (getrandom(2), getentropy(2)).
#[derive(Debug, Clone, Copy, Default)]
pub struct HostEntropy;

impl EntropySource for HostEntropy {
    fn fill(&self, buffer: &mut [u8]) -> io::Result<()> {
        getrandom::fill(buffer).map_err(|error| io::Error::other(error.to_string()))
    }
}

/// An entropy device. Requests are served on the thread that rings the doorbell; only what a limit puts off is a thread's of its own.
///
/// By itself, behind virtio-mmio:
///
/// ```
/// use std::sync::Arc;
///
/// use hvrun_arch::aarch64::layout::Window;
/// use hvrun_arch::{GuestMemory, IrqChip, Spi};
/// use hvrun_devices::Bus;
/// use hvrun_devices::irq::EdgeIrq;
/// use hvrun_devices::virtio::mmio::{VirtioMmio, WINDOW_SIZE};
/// use hvrun_devices::virtio::rng::{Rng, RngConfig};
/// use vm_memory::GuestAddress;
///
/// struct Interrupts;
///
/// impl IrqChip for Interrupts {
///     fn set_spi(&self, spi: Spi, level: bool) {
///         println!("{spi:?} is {level}");
///     }
///
///     fn send_msi(&self, _addr: u64, _data: u32) {}
/// }
///
/// let memory = GuestMemory::from_ranges(&[(GuestAddress(0x4000_0000), 1 << 20)])?;
/// let rng = Arc::new(Rng::new(RngConfig { max_bytes: Some(1024), ..RngConfig::default() }));
/// let slot = VirtioMmio::new(rng, memory, EdgeIrq::new(Arc::new(Interrupts), None, Spi(16)));
/// let bus = Bus::new();
/// bus.insert(Window::new(0x0a00_0000, WINDOW_SIZE), Arc::new(slot))?;
///
/// let mut device_id = [0; 4];
/// bus.read(0x0a00_0008, &mut device_id);
/// assert_eq!(u32::from_le_bytes(device_id), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Rng {
    inner: Arc<Inner>,
    /// Serves what could not be served at once.
    alarm: Alarm,
}

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RngState {
    /// The queue, if the driver has set it up.
    pub queue: Option<VirtqueueState>,
}

#[derive(Debug)]
struct Inner {
    source: Box<dyn EntropySource>,
    config: RngConfig,
    active: Mutex<Option<Active>>,
}

#[derive(Debug)]
struct Active {
    queue: Virtqueue,
    memory: GuestMemory,
    quota: Option<Quota>,
}

impl Rng {
    /// One with the host's entropy.
    pub fn new(config: RngConfig) -> Self {
        Rng::with_source(config, HostEntropy)
    }

    /// One with entropy of another kind.
    pub fn with_source(config: RngConfig, source: impl EntropySource + 'static) -> Self {
        let inner = Arc::new(Inner { source: Box::new(source), config, active: Mutex::new(None) });
        let later = inner.clone();
        Rng { inner, alarm: Alarm::new("rng", move || later.serve(Instant::now())) }
    }

    /// For a snapshot.
    pub fn state(&self) -> RngState {
        RngState { queue: lock(&self.inner.active).as_ref().map(|active| active.queue.state()) }
    }

    fn serve(&self) {
        if let Some(delay) = self.inner.serve(Instant::now()) {
            self.alarm.set(delay);
        }
    }
}

impl Inner {
    /// Serves what there is, but no more than the queue holds, so that a driver that adds and adds keeps nobody in here. Says after
    /// what time to go on, if there is more.
    fn serve(&self, now: Instant) -> Option<Duration> {
        let mut active = lock(&self.active);
        let Active { queue, memory, quota } = active.as_mut()?;
        let mut chain = Chain::new();
        let mut buffer = [0; MAX_REQUEST];
        let mut requests = queue.size();
        loop {
            queue.disable_notification(memory);
            while queue.pop(memory, &mut chain) {
                let allowed = quota.as_mut().map_or(Ok(MAX_REQUEST), |quota| quota.available(now));
                let delay = allowed.err().or_else(|| (requests == 0).then_some(Duration::ZERO));
                if let Some(delay) = delay {
                    queue.undo_pop();
                    queue.signal(memory);
                    return Some(delay);
                }
                requests -= 1;
                let len = chain.writable_len().min(allowed.unwrap_or(0)).min(MAX_REQUEST);
                if let Err(error) = self.source.fill(&mut buffer[..len]) {
                    queue.fail(format_args!("the host has no entropy for it: {error}"));
                    break;
                }
                let mut writer = chain.writer();
                // There is room for `len` bytes.
                let _ = writer.write_all(&buffer[..len]);
                queue.push(memory, chain.head(), writer.written());
                if let Some(quota) = quota {
                    quota.take(len);
                }
            }
            queue.signal(memory);
            if !queue.enable_notification(memory) {
                break;
            }
        }
        None
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&self, mut activation: Activation) {
        let Some(Some(queue)) = activation.queues.pop() else { return };
        let quota = Quota::new(self.inner.config, Instant::now());
        *lock(&self.inner.active) = Some(Active { queue, memory: activation.memory, quota });
        self.serve();
    }

    fn notify(&self, _queue: u16) {
        self.serve();
    }

    fn reset(&self) {
        // Whoever serves holds the lock; the alarm finds nothing afterwards.
        *lock(&self.inner.active) = None;
    }
}
