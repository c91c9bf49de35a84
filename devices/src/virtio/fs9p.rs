//! virtio-9p (device id 9; its registers and its ring are those of Linux' net/9p/trans_virtio.c): carries the messages of
//! [`crate::backend::ninep`] between the guest's ring and the server. It knows no file and of a message only the first bytes.
//!
//! A quick request, and a read of what the host has in its page cache, is answered on the thread that rang the doorbell: no other
//! thread is woken for it. That is a vCPU's on every backend, for the device has no event descriptor for its doorbell. What may block
//! ([`Session::kind`] knows) goes to a few workers, so that a slow disk delays neither a vCPU nor other requests.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::{Builder, JoinHandle};

use hvrun_arch::GuestMemory;
use serde::{Deserialize, Serialize};

use super::chain::{Chain, SpareChain};
use super::device::{Activation, DeviceType, VirtioDevice};
use super::queue::{Virtqueue, VirtqueueState};
use crate::backend::ninep::{HEADER_SIZE, RequestKind, Session, Share};
use crate::util::lock;

/// VIRTIO_9P_MOUNT_TAG: the configuration space has the tag (Linux uapi/linux/virtio_9p.h).
const F_MOUNT_TAG: u64 = 1 << 0;
/// The only queue; as many entries as Linux' client uses (VIRTQUEUE_NUM).
const QUEUE_SIZES: [u16; 1] = [128];
/// How many requests that may block are served at once.
const WORKERS: usize = 4;

/// A share of a directory, as the guest's `mount -t 9p -o trans=virtio TAG` finds it.
///
/// ```no_run
/// use hvrun_devices::backend::ninep::{Share, ShareConfig};
/// use hvrun_devices::virtio::fs9p::Fs9p;
///
/// let share = Share::open(&ShareConfig::new("/srv/data", "data"))?;
/// let device = Fs9p::new(share); // hand it to `MachineBuilder::virtio`
/// # Ok::<(), hvrun_devices::backend::ninep::ShareError>(())
/// ```
#[derive(Debug)]
pub struct Fs9p {
    share: Arc<Share>,
    name: String,
    config: Vec<u8>,
    /// Read-locked by those who serve the ring on a vCPU's thread, so that a reset waits for them.
    active: RwLock<Option<Active>>,
}

/// What a snapshot keeps of the device. What the client has open is the share's own affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fs9pState {
    /// The request queue; `None` before the driver is ready.
    pub queue: Option<VirtqueueState>,
}

impl Fs9p {
    /// The device of `share`, with the share's tag.
    pub fn new(share: Arc<Share>) -> Self {
        let tag = share.config().tag.clone();
        // A tag is short: `Share::open` has seen to it.
        let mut config = u16::try_from(tag.len()).unwrap_or(0).to_le_bytes().to_vec();
        config.extend_from_slice(tag.as_bytes());
        Fs9p { name: format!("share {tag}"), config, share, active: RwLock::new(None) }
    }

    /// For a snapshot. No request may be in flight.
    pub fn state(&self) -> Fs9pState {
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner);
        Fs9pState { queue: active.as_ref().map(|active| lock(&active.ring.state).queue.state()) }
    }
}

impl VirtioDevice for Fs9p {
    fn device_type(&self) -> DeviceType {
        DeviceType::Fs9p
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        F_MOUNT_TAG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config, offset, data);
    }

    fn activate(&self, activation: Activation) {
        let Activation { memory, mut queues, .. } = activation;
        let Some(queue) = queues.pop().flatten() else { return };
        let ring = Arc::new(Ring {
            state: Mutex::new(RingState { queue, spare: SpareChain::default() }),
            session: Session::new(self.share.clone()),
            memory,
            work: Mutex::default(),
            wake: Condvar::new(),
        });
        let active = Active::new(ring, &self.name);
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = Some(active);
        self.notify(0);
    }

    fn notify(&self, _queue: u16) {
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(active) = active.as_ref() {
            active.ring.serve(Who::Vcpu);
        }
    }

    /// None: a doorbell that is served where it rings is quicker than any wake-up.
    fn doorbell(&self, _queue: u16) -> Option<BorrowedFd<'_>> {
        None
    }

    fn reset(&self) {
        let active = self.active.write().unwrap_or_else(PoisonError::into_inner).take();
        // Joins the workers.
        drop(active);
    }
}

/// The device between activation and reset.
#[derive(Debug)]
struct Active {
    ring: Arc<Ring>,
    workers: Vec<JoinHandle<()>>,
}

impl Active {
    fn new(ring: Arc<Ring>, name: &str) -> Self {
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let worker_ring = ring.clone();
            let spawned = Builder::new().name(format!("9p{number}")).spawn(move || worker_ring.work());
            match spawned {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    log::warn!(
                        "{name}: {number} of {WORKERS} workers, for the host has no more threads: {error}"
                    );
                    break;
                }
            }
        }
        if workers.is_empty() {
            lock(&ring.state).queue.fail("there is no thread to serve it");
        }
        Active { ring, workers }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        lock(&self.ring.work).stop = true;
        self.ring.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A panic has been printed; the ring is given up anyway.
            let _ = worker.join();
        }
    }
}

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// A vCPU's thread, which may not block.
    Vcpu,
    /// One of the workers.
    Worker,
}

/// The queue and what stands behind it.
#[derive(Debug)]
struct Ring {
    state: Mutex<RingState>,
    session: Session,
    memory: GuestMemory,
    work: Mutex<Work>,
    wake: Condvar,
}

#[derive(Debug)]
struct RingState {
    queue: Virtqueue,
    spare: SpareChain,
}

#[derive(Debug, Default)]
struct Work {
    /// There is something in the ring that may block.
    pending: bool,
    stop: bool,
}

impl Ring {
    /// Serves what is in the ring, up to the first request that `who` must leave to somebody else.
    fn serve(&self, who: Who) {
        let mut state = lock(&self.state);
        let mut chain = state.spare.take();
        while let Some(more) = self.pop(&mut state.queue, &mut chain) {
            let header = header_of(&chain);
            let kind = self.session.kind(chain.readable());
            if who == Who::Vcpu && kind == RequestKind::MayBlock {
                // What is in the host's memory already needs no worker. The ring stays locked: nothing overtakes it.
                if let Some(written) = self.session.read_cached(chain.readable(), chain.writable()) {
                    state.queue.push(&self.memory, chain.head(), u32::try_from(written).unwrap_or(u32::MAX));
                    state.queue.signal(&self.memory);
                    continue;
                }
                state.queue.undo_pop();
                self.wake_worker();
                break;
            }
            // Only now may the next request be taken by another: the server hears of them in the ring's order.
            let ticket = self.session.admit(&header);
            drop(state);
            if more && kind == RequestKind::MayBlock {
                // What comes behind this one does not wait for it.
                self.wake_worker();
            }
            self.session.finish(ticket, chain.readable(), chain.writable(), |written| {
                let mut state = lock(&self.state);
                state.queue.push(&self.memory, chain.head(), u32::try_from(written).unwrap_or(u32::MAX));
                state.queue.signal(&self.memory);
            });
            state = lock(&self.state);
        }
        state.spare.put(chain);
    }

    /// Takes a chain and says whether there are more; when there is none, asks for the next doorbell and looks once more.
    fn pop<'m>(&'m self, queue: &mut Virtqueue, chain: &mut Chain<'m>) -> Option<bool> {
        loop {
            if queue.pop(&self.memory, chain) {
                // The next one rings, and is served by another vCPU while this one is.
                return Some(queue.enable_notification(&self.memory));
            }
            if !queue.enable_notification(&self.memory) {
                return None;
            }
        }
    }

    fn wake_worker(&self) {
        lock(&self.work).pending = true;
        self.wake.notify_one();
    }

    /// A worker's life.
    fn work(&self) {
        let mut work = lock(&self.work);
        loop {
            if work.stop {
                return;
            }
            if std::mem::take(&mut work.pending) {
                drop(work);
                self.serve(Who::Worker);
                work = lock(&self.work);
            } else {
                work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The first bytes of the request in `chain`; zeros where it has fewer.
fn header_of(chain: &Chain<'_>) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    // Reading guest memory that has been checked does not fail.
    let _ = std::io::Read::read(&mut chain.reader(), &mut header);
    header
}

#[cfg(test)]
mod tests;
