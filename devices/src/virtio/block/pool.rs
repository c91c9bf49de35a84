//! Which thread serves which request of a disk.
//!
//! The thread that a doorbell wakes serves what it finds itself: a quick request costs one wake-up. While requests do not wait, one
//! thread serves them all, one after the other, and interrupts the driver once for several. Three things bring in more threads:
//! - *Slow mode*: when requests wait long that the host can run several of, or for one of a kind that always does, a thread first
//!   sees to it that another one looks at the queue, and then blocks. As many requests as there are threads ([`MAX_THREADS`]) are in
//!   flight at the host. What counts is that the thread slept, not what the clock says: a request that takes long because the host's
//!   CPU is slow or busy is not done sooner by more threads, and each hand-over makes it worse.
//! - *Large requests*: where several wait and the host has another CPU, another thread comes. While one copies, the other takes its
//!   request apart, and copies, too, where the host lets it.
//! - *The watch*: a thread that ticks while there is work. Where no request has made progress for a tick and nobody listens to the
//!   doorbell, it calls in another thread. So a request that is slow against expectation holds up the others for a tick or two, and
//!   no longer.
//!
//! The invariant behind that: a thread begins to listen only after it has found the queues empty and asked for doorbells, so
//! whenever somebody listens, nothing waits unseen.

use std::fmt;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};
use std::time::{Duration, Instant};

use hvrun_arch::GuestMemory;

use super::request::{Request, Unit};
use crate::sys::{self, Event};
use crate::util::lock;
use crate::virtio::chain::Chain;
use crate::virtio::device::{Activation, Interrupt};
use crate::virtio::queue::{Virtqueue, VirtqueueState};

/// The most threads of a disk, and so the most requests in flight at the host.
pub(super) const MAX_THREADS: usize = 128;
/// How long a thread that nobody needs stays.
const RETIRE_AFTER: Duration = Duration::from_secs(5);
/// How long a request may hold up others.
const TICK: Duration = Duration::from_millis(1);
/// The same while all goes well: each tick that finds nothing stuck makes the next one longer, up to this. Waking up a thousand
/// times a second to find nothing wrong costs more than it saves.
const LONGEST_TICK: Duration = Duration::from_millis(8);
/// After so many ticks without work the watch sleeps.
const QUIET_TICKS: u32 = 8;
/// Requests that wait longer on average are slow: what calling in another thread costs is little against it.
const SLOW: Duration = Duration::from_micros(50);
/// Where requests take less on average, whether they wait is not asked: asking costs a tenth of this.
const QUICK: Duration = Duration::from_micros(6);
/// From so many bytes on, a request is large: copying them takes longer than calling in another thread.
const LARGE: usize = 256 << 10;
/// How many answers may wait for a common interrupt while the thread goes on.
const BATCH: u32 = 8;

/// The queues may be served.
const RUN: u8 = 0;
/// Nothing more is taken; what was taken is answered.
const PAUSE: u8 = 1;
/// Nothing more is taken or answered.
const STOP: u8 = 2;

/// The threads of one disk. Dropping it ends them and waits for that.
pub(super) struct Pool(Arc<Shared>);

/// What the driver's activation gave us.
struct Active {
    memory: GuestMemory,
    queues: Vec<Mutex<Served>>,
    interrupt: Arc<dyn Interrupt>,
    mode: AtomicU8,
}

/// A queue, and how many answers in it the driver may not have heard of.
struct Served {
    queue: Virtqueue,
    unsignalled: u32,
}

struct Shared {
    unit: Arc<Unit>,
    /// How many the host has.
    cpus: usize,
    doorbell: Event,
    roster: Mutex<Roster>,
    /// For threads with nothing to do.
    wanted: Condvar,
    /// For those who wait until nobody serves.
    left: Condvar,
    load: Load,
    watch: Mutex<bool>,
    watch_wake: Condvar,
}

#[derive(Default)]
struct Roster {
    active: Option<Arc<Active>>,
    /// Threads that hold `active`.
    serving: usize,
    threads: usize,
    idle: usize,
    /// How many idle threads have been called and have not come yet.
    called: usize,
    listening: bool,
    watching: bool,
    closing: bool,
    /// All that were started, but for those known to have ended.
    handles: Vec<JoinHandle<()>>,
}

/// How the requests are doing. Read and written without a lock; being a little wrong costs a little time.
#[derive(Default)]
pub(super) struct Load {
    executing: AtomicUsize,
    /// Counts every beginning and end of a request.
    progress: AtomicU64,
    /// Average time of a request in nanoseconds.
    average: AtomicU64,
    /// The same, where a request that did not wait counts as none.
    waiting: AtomicU64,
    /// Requests wait longer than [`SLOW`].
    slow: AtomicBool,
    /// The watch ticks.
    watched: AtomicBool,
}

impl Load {
    /// Whether requests wait long enough for more threads to be worth it.
    pub(super) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// Whether a request of `len` bytes is better served beside the next one than before it, on a host with `cpus` CPUs.
    pub(super) fn wants_company(&self, len: usize, cpus: usize) -> bool {
        len >= LARGE && self.executing.load(Ordering::SeqCst) + 1 < cpus
    }

    /// How often this thread has waited so far, where that is worth asking.
    pub(super) fn begin(&self) -> Asked {
        let quick = u128::from(self.average.load(Ordering::Relaxed)) < QUICK.as_nanos();
        if quick { Asked::No } else { Asked::Yes(sys::thread_waits()) }
    }

    /// A request is done that has taken `took`; `asked` is what [`Load::begin`] gave before it.
    pub(super) fn finished(&self, asked: Asked, took: Duration) {
        let waited = match asked {
            // On average it did not take long enough for that.
            Asked::No => false,
            // A host that does not count leaves only the clock.
            Asked::Yes(before) => before.is_none() || before != sys::thread_waits(),
        };
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).min(1 << 40);
        let update = |average: &AtomicU64, nanos: u64| {
            let before = average.load(Ordering::Relaxed);
            let after = before - before / 8 + nanos / 8;
            average.store(after, Ordering::Relaxed);
            after
        };
        update(&self.average, nanos);
        let waiting = update(&self.waiting, if waited { nanos } else { 0 });
        self.slow.store(u128::from(waiting) > SLOW.as_nanos(), Ordering::Relaxed);
    }
}

/// What is known before a request about how often its thread has waited.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    No,
    /// The host's count, if it has one.
    Yes(Option<u64>),
}

/// Counts a request that is being executed, also if it panics.
struct Executing<'a>(&'a Load);

impl<'a> Executing<'a> {
    fn new(load: &'a Load) -> Self {
        load.executing.fetch_add(1, Ordering::SeqCst);
        load.progress.fetch_add(1, Ordering::Relaxed);
        Executing(load)
    }
}

impl Drop for Executing<'_> {
    fn drop(&mut self) {
        self.0.progress.fetch_add(1, Ordering::Relaxed);
        self.0.executing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a thread does next.
enum Role {
    /// Waits for the doorbell, then serves.
    Listen,
    /// Serves at once.
    Serve,
    /// Ends.
    Leave,
}

impl Pool {
    /// A pool without threads.
    pub(super) fn new(unit: Arc<Unit>) -> io::Result<Self> {
        Ok(Pool(Arc::new(Shared {
            unit,
            cpus: available_parallelism().map_or(1, NonZero::get),
            doorbell: Event::new()?,
            roster: Mutex::default(),
            wanted: Condvar::new(),
            left: Condvar::new(),
            load: Load::default(),
            watch: Mutex::new(false),
            watch_wake: Condvar::new(),
        })))
    }

    /// What announces new requests, in whichever queue.
    pub(super) fn doorbell(&self) -> &Event {
        &self.0.doorbell
    }

    /// Serves the queues of `activation` from now on.
    pub(super) fn start(&self, activation: Activation) {
        let Activation { memory, queues, interrupt, .. } = activation;
        let served = |queue| Mutex::new(Served { queue, unsignalled: 0 });
        let queues = queues.into_iter().flatten().map(served).collect();
        let active = Arc::new(Active { memory, queues, interrupt, mode: AtomicU8::new(RUN) });
        let mut roster = lock(&self.0.roster);
        roster.active = Some(active.clone());
        if let Err(error) = self.0.ensure_threads(&mut roster) {
            log::error!("{}: it cannot be served: {error}", self.0.unit.backend.name());
            active.interrupt.needs_reset();
        }
        drop(roster);
        self.0.doorbell.signal();
    }

    /// Takes no more requests, waits until those in flight are done at the host, and answers none of them. Drops the queues.
    pub(super) fn stop(&self) {
        let Some(active) = lock(&self.0.roster).active.take() else { return };
        active.mode.store(STOP, Ordering::SeqCst);
        self.0.wait_until_nobody_serves();
    }

    /// Takes no more requests, and waits until those in flight are done and answered.
    pub(super) fn pause(&self) {
        let Some(active) = lock(&self.0.roster).active.clone() else { return };
        active.mode.store(PAUSE, Ordering::SeqCst);
        self.0.wait_until_nobody_serves();
    }

    /// Goes on after a pause.
    pub(super) fn resume(&self) {
        let Some(active) = lock(&self.0.roster).active.clone() else { return };
        active.mode.store(RUN, Ordering::SeqCst);
        self.0.doorbell.signal();
    }

    /// Tells the driver that the configuration space has changed, if there is a driver.
    pub(super) fn config_changed(&self) {
        if let Some(active) = lock(&self.0.roster).active.clone() {
            active.interrupt.config_changed();
        }
    }

    /// Where the queues are; in a pause this is exact.
    pub(super) fn queue_states(&self) -> Vec<Option<VirtqueueState>> {
        let Some(active) = lock(&self.0.roster).active.clone() else { return Vec::new() };
        active.queues.iter().map(|served| Some(lock(served).queue.state())).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
        lock(&self.0.roster).closing = true;
        self.0.wanted.notify_all();
        self.0.doorbell.signal();
        *lock(&self.0.watch) = true;
        self.0.watch_wake.notify_all();
        // Only a thread that is joined has let go of the backend, and so of the locks on its files.
        let handles = std::mem::take(&mut lock(&self.0.roster).handles);
        for handle in handles {
            // A panic in it has been printed.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn wait_until_nobody_serves(&self) {
        let mut roster = lock(&self.roster);
        while roster.serving > 0 {
            roster = self.left.wait(roster).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The first thread, and the watch.
    fn ensure_threads(self: &Arc<Self>, roster: &mut Roster) -> io::Result<()> {
        if !roster.watching {
            let shared = self.clone();
            let handle = Builder::new().name("blk-watch".into()).spawn(move || shared.watch())?;
            roster.handles.push(handle);
            roster.watching = true;
        }
        if roster.threads == 0 {
            self.spawn(roster)?;
        }
        Ok(())
    }

    fn spawn(self: &Arc<Self>, roster: &mut Roster) -> io::Result<()> {
        let shared = self.clone();
        let handle = Builder::new().name("blk".into()).spawn(move || shared.work())?;
        roster.handles.retain(|handle| !handle.is_finished());
        roster.handles.push(handle);
        roster.threads += 1;
        Ok(())
    }

    /// Sees to it that somebody listens, or is on the way to look.
    fn call_another(self: &Arc<Self>) {
        let mut roster = lock(&self.roster);
        if roster.listening || roster.closing {
            return;
        }
        if roster.idle > roster.called {
            roster.called += 1;
            self.wanted.notify_one();
        } else if roster.threads < MAX_THREADS && self.spawn(&mut roster).is_err() {
            // The host has no thread left: those there are go on.
            log::debug!("{}: no thread left for more requests at once", self.unit.backend.name());
        }
    }

    /// A thread's life.
    fn work(self: Arc<Self>) {
        let mut roster = lock(&self.roster);
        // Whoever is new was called.
        let mut role = if roster.closing { Role::Leave } else { Role::Serve };
        loop {
            match role {
                Role::Leave => break,
                Role::Serve => {}
                Role::Listen => {
                    roster.listening = true;
                    drop(roster);
                    let heard = self.doorbell.wait();
                    roster = lock(&self.roster);
                    roster.listening = false;
                    if heard.is_err() || roster.closing {
                        break;
                    }
                }
            }
            if let Some(active) = roster.active.clone() {
                roster.serving += 1;
                drop(roster);
                self.serve(&active);
                drop(active);
                roster = lock(&self.roster);
                roster.serving -= 1;
                if roster.serving == 0 {
                    self.left.notify_all();
                }
            }
            (role, roster) = self.next_role(roster);
        }
        roster.threads -= 1;
    }

    fn next_role<'a>(&'a self, mut roster: MutexGuard<'a, Roster>) -> (Role, MutexGuard<'a, Roster>) {
        loop {
            if roster.closing {
                return (Role::Leave, roster);
            }
            if roster.called > 0 {
                // Whoever comes first answers the call.
                roster.called -= 1;
                return (Role::Serve, roster);
            }
            if !roster.listening {
                return (Role::Listen, roster);
            }
            roster.idle += 1;
            let slept = self.wanted.wait_timeout(roster, RETIRE_AFTER);
            let timeout;
            (roster, timeout) = slept.unwrap_or_else(PoisonError::into_inner);
            roster.idle -= 1;
            if timeout.timed_out() && roster.called == 0 && roster.listening {
                return (Role::Leave, roster);
            }
        }
    }

    /// Serves all queues until they are empty.
    fn serve(self: &Arc<Self>, active: &Active) {
        loop {
            let mut found = false;
            for queue in &active.queues {
                found |= self.drain(active, queue);
            }
            if !found || active.mode.load(Ordering::SeqCst) != RUN {
                return;
            }
        }
    }

    /// Serves one queue until it is empty, and asks for a doorbell. Whether there was anything.
    fn drain(self: &Arc<Self>, active: &Active, queue: &Mutex<Served>) -> bool {
        let memory = &active.memory;
        let mut chain = Chain::new();
        let mut scratch = Vec::new();
        let mut found = false;
        let mut served = lock(queue);
        while active.mode.load(Ordering::SeqCst) == RUN {
            if !served.queue.pop(memory, &mut chain) {
                served.signal(memory);
                if !served.queue.enable_notification(memory) {
                    break;
                }
                continue;
            }
            found = true;
            let len = chain.readable_len().saturating_add(chain.writable_len());
            let company = self.load.wants_company(len, self.cpus) && served.queue.has_more(memory);
            drop(served);
            let request = Request::parse(&chain);
            let executing = Executing::new(&self.load);
            self.wake_watch();
            // Requests that the host runs one at a time say nothing about the use of more threads.
            let parallel = request.as_ref().is_some_and(|request| request.is_parallel(&self.unit));
            let alone = !(company || parallel && self.load.is_slow());
            if !alone || request.as_ref().is_some_and(Request::is_slow) {
                self.call_another();
            }
            let before = parallel.then(|| (self.load.begin(), Instant::now()));
            let written = self.unit.serve(request, &chain, &mut scratch);
            drop(executing);
            if let Some((asked, start)) = before {
                self.load.finished(asked, start.elapsed());
            }
            served = lock(queue);
            if active.mode.load(Ordering::SeqCst) == STOP {
                return found;
            }
            served.queue.push(memory, chain.head(), written);
            served.unsignalled += 1;
            // Who waits for the next request keeps no answer back.
            if served.unsignalled >= BATCH || !alone {
                served.signal(memory);
            }
        }
        if active.mode.load(Ordering::SeqCst) == PAUSE {
            served.signal(memory);
        }
        found
    }

    fn wake_watch(&self) {
        if !self.load.watched.load(Ordering::SeqCst) {
            let _watch = lock(&self.watch);
            self.load.watched.store(true, Ordering::SeqCst);
            self.watch_wake.notify_all();
        }
    }

    /// The watch's life.
    fn watch(self: Arc<Self>) {
        let (mut last, mut quiet, mut tick) = (0, 0, TICK);
        let mut closing = lock(&self.watch);
        while !*closing {
            if !self.load.watched.load(Ordering::SeqCst) {
                tick = TICK;
                closing = self.watch_wake.wait(closing).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            (closing, _) =
                self.watch_wake.wait_timeout(closing, tick).unwrap_or_else(PoisonError::into_inner);
            let progress = self.load.progress.load(Ordering::Relaxed);
            let busy = self.load.executing.load(Ordering::SeqCst) > 0;
            if progress != last {
                quiet = 0;
            } else if busy {
                quiet = 0;
                tick = Duration::ZERO;
                self.call_another();
            } else {
                quiet += 1;
            }
            tick = (tick * 2).clamp(TICK, LONGEST_TICK);
            last = progress;
            if quiet > QUIET_TICKS {
                quiet = 0;
                self.load.watched.store(false, Ordering::SeqCst);
                // A request may have begun just before; it saw the watch awake.
                if self.load.executing.load(Ordering::SeqCst) > 0 {
                    self.load.watched.store(true, Ordering::SeqCst);
                }
            }
        }
    }
}

impl Served {
    fn signal(&mut self, memory: &GuestMemory) {
        self.unsignalled = 0;
        self.queue.signal(memory);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roster = lock(&self.0.roster);
        f.debug_struct("Pool")
            .field("threads", &roster.threads)
            .field("idle", &roster.idle)
            .field("serving", &roster.serving)
            .finish_non_exhaustive()
    }
}
