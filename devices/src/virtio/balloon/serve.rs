//! What the balloon's worker does with the queues. Here because giving gigabytes back takes its time.

use std::io::Read;
use std::sync::atomic::Ordering;

use hvrun_arch::GuestMemory;

use super::pages::{Inflated, address_of, join};
use super::stats::BalloonStats;
use super::{F_PAGE_POISON, F_PAGE_REPORTING, F_STATS_VQ, Shared, field};
use crate::util::lock;
use crate::virtio::chain::Chain;
use crate::virtio::device::Activation;
use crate::virtio::queue::{Virtqueue, VirtqueueState};

/// Page numbers that are read at a time. A reset waits for no more than so many.
const PFNS: usize = 1024;

/// inflateq and deflateq (virtio 1.2, 5.5.2).
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The first queue that depends on features.
const OPTIONAL: usize = 2;
/// Where the specification has the reporting queue, whatever other queues there are.
const REPORTING: usize = 4;

/// Which queue is the reporting queue, if there is one.
///
/// The specification gives every queue a number (virtio 1.2, 5.5.2); but Linux, as QEMU, counts only those that the negotiated
/// features make. Which of the two a driver means is seen from the queues it has set up: free page hints are never offered, so that
/// the queue behind the others can only be this one.
pub(super) fn reporting_queue(features: u64, is_set_up: impl Fn(usize) -> bool) -> Option<usize> {
    let next = OPTIONAL + usize::from(features & F_STATS_VQ != 0);
    let found = [REPORTING, next].into_iter().find(|queue| is_set_up(*queue));
    found.filter(|_| features & F_PAGE_REPORTING != 0)
}

/// The queues, as long as the driver runs.
#[derive(Debug)]
pub(super) struct Serving {
    memory: GuestMemory,
    features: u64,
    queues: Vec<Option<Virtqueue>>,
    reporting: Option<usize>,
    /// Made when the first page comes.
    inflated: Option<Inflated>,
    /// The head of the chain that the guest has put its statistics into; it gets it back when new ones are wanted.
    stats_chain: Option<u16>,
}

impl Serving {
    pub(super) fn new(activation: Activation) -> Self {
        let Activation { memory, queues, features, .. } = activation;
        let reporting =
            reporting_queue(features, |queue| queues.get(queue).is_some_and(|queue| queue.is_some()));
        Serving { memory, features, queues, reporting, inflated: None, stats_chain: None }
    }

    pub(super) fn state(&self) -> (Vec<Option<VirtqueueState>>, Option<u16>) {
        (self.queues.iter().map(|queue| queue.as_ref().map(Virtqueue::state)).collect(), self.stats_chain)
    }

    /// Serves all there is.
    pub(super) fn serve(&mut self, shared: &Shared) {
        let Serving { memory, features, queues, reporting, inflated, stats_chain } = self;
        let memory = &*memory;
        // Deflating first: a page that goes out and in again is in.
        if let Some(Some(queue)) = queues.get_mut(DEFLATE) {
            let deflate = |chain: &Chain<'_>| {
                each_pfn(chain, shared, |pfns| {
                    if let Some(inflated) = inflated.as_mut() {
                        pfns.iter().for_each(|pfn| inflated.remove(*pfn));
                    }
                })
            };
            drain(queue, memory, shared, deflate);
        }
        if let Some(Some(queue)) = queues.get_mut(INFLATE) {
            let inflated = inflated.get_or_insert_with(|| Inflated::new(memory, shared.discard.granule()));
            let mut complete = Vec::with_capacity(PFNS);
            drain(queue, memory, shared, |chain| {
                each_pfn(chain, shared, |pfns| inflate(pfns, inflated, &mut complete, shared))
            });
        }
        if *features & F_STATS_VQ != 0
            && let Some(Some(queue)) = queues.get_mut(OPTIONAL)
        {
            serve_stats(queue, memory, shared, stats_chain);
        }
        if let Some(Some(queue)) = reporting.and_then(|reporting| queues.get_mut(reporting)) {
            // A page that is to hold the guest's poison, and that poison is not zero, must be left as it is (virtio 1.2, 5.5.6.8).
            let poisoned = *features & F_PAGE_POISON != 0 && shared.field(field::POISON_VAL) != 0;
            drain(queue, memory, shared, |chain| poisoned || report(chain, memory, shared));
        }
    }
}

/// Serves each chain of `queue` and gives it back, until `serve` says that it was stopped.
fn drain<'m>(
    queue: &mut Virtqueue,
    memory: &'m GuestMemory,
    shared: &Shared,
    mut serve: impl FnMut(&Chain<'m>) -> bool,
) {
    let mut chain = Chain::new();
    loop {
        queue.disable_notification(memory);
        while !shared.is_stopped() && queue.pop(memory, &mut chain) {
            if !serve(&chain) {
                return;
            }
            queue.push(memory, chain.head(), 0);
            // The driver waits for each.
            queue.signal(memory);
        }
        if shared.is_stopped() || !queue.enable_notification(memory) {
            return;
        }
    }
}

/// Calls `each` with the page numbers in `chain`, some at a time. False if it was stopped in the middle.
fn each_pfn(chain: &Chain<'_>, shared: &Shared, mut each: impl FnMut(&[u32])) -> bool {
    let mut reader = chain.reader();
    let mut bytes = vec![0; PFNS * 4];
    let mut pfns = Vec::with_capacity(PFNS);
    loop {
        if shared.is_stopped() {
            return false;
        }
        let count = reader.read(&mut bytes).unwrap_or(0);
        let (words, _) = bytes.get(..count).unwrap_or_default().as_chunks();
        if words.is_empty() {
            return true;
        }
        pfns.clear();
        pfns.extend(words.iter().map(|word| u32::from_le_bytes(*word)));
        each(&pfns);
    }
}

/// Takes pages, and gives back the host pages that are complete with them.
fn inflate(pfns: &[u32], inflated: &mut Inflated, complete: &mut Vec<u64>, shared: &Shared) {
    for pfn in pfns {
        match inflated.insert(*pfn) {
            Ok(page) => complete.extend(page),
            Err(addr) => {
                if let Some(suppressed) = shared.complaints.allow() {
                    log::debug!("balloon: a page at {addr:#x}, which is no RAM: ignored{suppressed}");
                }
            }
        }
    }
    for range in join(complete, inflated.granule()) {
        discard(shared, range.start, range.end - range.start);
    }
}

/// Gives back the free pages that make up `chain`. False if it was stopped in the middle.
fn report(chain: &Chain<'_>, memory: &GuestMemory, shared: &Shared) -> bool {
    for slice in chain.writable() {
        if shared.is_stopped() {
            return false;
        }
        if let Some(addr) = address_of(memory, slice) {
            discard(shared, addr, slice.len() as u64);
        }
    }
    true
}

fn discard(shared: &Shared, addr: u64, len: u64) {
    if let Err(error) = shared.discard.discard(addr, len)
        && let Some(suppressed) = shared.complaints.allow()
    {
        log::warn!("balloon: memory that the guest does not use is kept: {error}{suppressed}");
    }
}

/// Takes statistics, and gives their buffer back for new ones if those are wanted.
fn serve_stats(queue: &mut Virtqueue, memory: &GuestMemory, shared: &Shared, held: &mut Option<u16>) {
    let mut chain = Chain::new();
    loop {
        queue.disable_notification(memory);
        while !shared.is_stopped() && queue.pop(memory, &mut chain) {
            *lock(&shared.stats) = Some(BalloonStats::read(chain.reader()));
            // There is only one such buffer. A driver with another gets the first one back.
            if let Some(head) = held.replace(chain.head()) {
                queue.push(memory, head, 0);
            }
        }
        if held.is_some() && shared.stats_wanted.swap(false, Ordering::SeqCst) {
            queue.push(memory, held.take().unwrap_or_default(), 0);
        }
        queue.signal(memory);
        if shared.is_stopped() || !queue.enable_notification(memory) {
            return;
        }
    }
}
