//! A card's thread: sleeps until the guest rings, one of the backend's descriptors is ready or its deadline has come, and then moves
//! frames both ways until neither side has more or can take more. It alone touches the backend.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::control::{self, Settings};
use super::header;
use super::pcap::Pcap;
use super::receive::{Overflow, Reception, Room};
use super::transmit::{Drained, Outbound, Transmission};
use super::{F_MRG_RXBUF, F_STATUS, Guest, Shared};
use crate::backend::net::{Filled, Interest, NetBackend, RxRing};
use crate::util::lock;
use crate::virtio::chain::{Chain, SpareChain};

/// How often a backend may have something ready with which nothing can be done, before it is looked at less often.
const FUTILE: u32 = 16;
/// A wait that took longer than this was one: what is ready now was not ready before.
const A_WAIT: Duration = Duration::from_micros(20);
/// How long the thread looks away from it then, at most.
const LOOK_AWAY: Duration = Duration::from_millis(10);

/// What the thread has.
#[derive(Debug)]
pub(super) struct Card {
    shared: Arc<Shared>,
    backend: Box<dyn NetBackend>,
    dump: Option<Pcap>,
    outbound: Outbound,
    overflow: Overflow,
    spare: SpareChain,
    /// The backend has failed, which was logged.
    failed: bool,
    /// The backend has refused a frame.
    busy: bool,
    /// The link as of this turn.
    link: bool,
    /// How often in a row the backend had something ready, and no frame moved.
    futile: u32,
}

/// Whether the thread may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Sleep,
    Again,
}

/// What has ended a sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Woken {
    /// The guest has rung, or somebody else wants something of the card.
    rung: bool,
    /// The backend has something ready: a descriptor, or its deadline.
    ready: bool,
}

impl Card {
    pub(super) fn new(shared: Arc<Shared>, backend: Box<dyn NetBackend>, dump: Option<Pcap>) -> Self {
        let link = shared.link();
        Card {
            shared,
            backend,
            dump,
            outbound: Outbound::default(),
            overflow: Overflow::default(),
            spare: SpareChain::default(),
            failed: false,
            busy: false,
            link,
            futile: 0,
        }
    }

    /// The thread's life.
    pub(super) fn run(mut self) {
        let mut next = Next::Again;
        loop {
            let woken = match self.wait(next) {
                Ok(woken) => woken,
                Err(error) => {
                    log::error!("{}: cannot wait for its descriptors: {error}", self.shared.name);
                    self.shared.backend_link.store(false, Ordering::SeqCst);
                    break;
                }
            };
            if self.shared.stop.load(Ordering::SeqCst) {
                break;
            }
            next = self.serve(woken);
        }
    }

    /// Sleeps.
    fn wait(&mut self, next: Next) -> Result<Woken, Errno> {
        let shared = self.shared.clone();
        let futile = self.futile >= FUTILE;
        let deadline = self.backend.deadline();
        let mut fds = Vec::with_capacity(4);
        fds.push(PollFd::from_borrowed_fd(shared.event.as_fd(), PollFlags::IN));
        let backend = if futile { Vec::new() } else { self.backend.descriptors(self.busy) };
        fds.extend(backend.into_iter().map(|(fd, interest)| PollFd::from_borrowed_fd(fd, flags(interest))));
        let timeout = match next {
            Next::Again => Some(Duration::ZERO),
            Next::Sleep if futile => {
                Some(LOOK_AWAY.min(Duration::from_millis(1 << (self.futile - FUTILE).min(8))))
            }
            Next::Sleep => deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let start = Instant::now();
        let count = match poll(&mut fds, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => return Ok(Woken { rung: false, ready: false }),
            Err(error) => return Err(error),
        };
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let rung = ready.next() == Some(true);
        if rung {
            // Does not block, and nobody else takes the signal.
            let _ = shared.event.wait();
        }
        let ready = futile && count == 0 || ready.any(|ready| ready);
        drop(fds);
        let now = Instant::now();
        let ready = ready || deadline.is_some_and(|deadline| deadline <= now);
        if rung || !ready || !futile && now.saturating_duration_since(start) > A_WAIT {
            self.futile = 0;
        }
        Ok(Woken { rung, ready })
    }

    /// One turn of everything.
    fn serve(&mut self, woken: Woken) -> Next {
        if woken.ready {
            self.futile = self.futile.saturating_add(1);
            self.service();
        }
        let shared = self.shared.clone();
        if shared.pausing.load(Ordering::SeqCst) {
            // Whoever waits for the lock signals when it is done.
            return Next::Sleep;
        }
        let mut guest = lock(&shared.guest);
        let Some(guest) = guest.as_mut() else {
            self.busy = false;
            self.refuse();
            return Next::Sleep;
        };
        let fresh = std::mem::take(&mut guest.fresh);
        if fresh {
            self.outbound.clear();
            self.overflow.clear();
            self.backend.set_guest_offloads(header::guest_offloads(guest.offloads));
        }
        self.tell_link(guest);
        // A command comes with a doorbell, and seldom: most turns are about frames alone.
        if woken.rung || fresh {
            self.control(guest);
        }
        let sent = self.transmit(guest);
        let received = self.receive(guest);
        self.tell_link(guest);
        if let Some(dump) = &mut self.dump {
            dump.flush();
        }
        if sent == Next::Again { sent } else { received }
    }

    /// Nobody is there to receive anything.
    fn refuse(&mut self) {
        if !self.failed
            && let Err(error) = self.backend.receive(&mut Closed)
        {
            self.fail(&error);
        }
    }

    fn service(&mut self) {
        self.busy = false;
        match self.backend.service(Instant::now()) {
            Ok(()) => {
                if self.failed {
                    log::info!("{}: the network is back", self.shared.name);
                }
                self.failed = false;
                self.shared.backend_link.store(self.backend.link(), Ordering::SeqCst);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The backend's other end is gone.
    fn fail(&mut self, error: &std::io::Error) {
        if !self.failed {
            log::warn!("{}: the network is gone, and the guest's link with it: {error}", self.shared.name);
        }
        self.failed = true;
        self.shared.backend_link.store(false, Ordering::SeqCst);
    }

    /// Tells the driver when the link has changed (virtio 1.2, 5.1.4.2).
    fn tell_link(&mut self, guest: &mut Guest) {
        if !self.failed {
            self.shared.backend_link.store(self.backend.link(), Ordering::SeqCst);
        }
        self.link = self.shared.link();
        if self.link != guest.told_link {
            guest.told_link = self.link;
            log::info!("{}: the link is {}", self.shared.name, if self.link { "up" } else { "down" });
            if guest.features & F_STATUS != 0 {
                guest.interrupt.config_changed();
            }
        }
    }

    fn control(&mut self, guest: &mut Guest) {
        let Guest { control: Some(queue), memory, filter, offloads, features, .. } = guest else { return };
        let before = *offloads;
        // As many commands as there is room for, and no more in one go: each is answered before the driver sends the next.
        let mut left = queue.size();
        let mut chain = Chain::new();
        loop {
            queue.disable_notification(memory);
            while left > 0 && queue.pop(memory, &mut chain) {
                left -= 1;
                let settings = &mut Settings { filter: &mut *filter, guest_offloads: &mut *offloads };
                let written = control::execute(&chain, *features, settings);
                queue.push(memory, chain.head(), written);
            }
            queue.signal(memory);
            if !queue.enable_notification(memory) {
                break;
            }
            if left == 0 {
                // The rest in the next turn, which the signal brings about.
                self.shared.event.signal();
                break;
            }
        }
        self.shared.set_mac(filter.mac);
        if *offloads != before {
            self.backend.set_guest_offloads(header::guest_offloads(*offloads));
        }
    }

    fn transmit(&mut self, guest: &mut Guest) -> Next {
        let Guest { tx: Some(queue), memory, features, .. } = guest else { return Next::Sleep };
        if self.busy && self.link {
            return Next::Sleep;
        }
        let drained = Transmission {
            backend: self.backend.as_mut(),
            outbound: &mut self.outbound,
            spare: &mut self.spare,
            features: *features,
            link: self.link,
            counters: &self.shared.counters,
            dump: self.dump.as_mut(),
            name: &self.shared.name,
        }
        .drain(queue, memory);
        if !self.failed {
            self.backend.flush();
        }
        self.busy = drained == Drained::Busy;
        if drained == Drained::More { Next::Again } else { Next::Sleep }
    }

    fn receive(&mut self, guest: &mut Guest) -> Next {
        let Guest { rx: Some(queue), memory, features, filter, offloads, .. } = guest else {
            self.refuse();
            return Next::Sleep;
        };
        if self.failed {
            return Next::Sleep;
        }
        let reception = Reception {
            filter,
            guest: header::guest_offloads(*offloads),
            merge: *features & F_MRG_RXBUF != 0,
            link: self.link,
            counters: &self.shared.counters,
            dump: self.dump.as_mut(),
        };
        let mut room = Room::new(queue, memory, &mut self.overflow, reception);
        let result = room.fill(self.backend.as_mut());
        let received = room.finish();
        if received.offers > 0 {
            self.futile = 0;
        }
        if let Err(error) = result {
            self.fail(&error);
            return Next::Sleep;
        }
        if self.busy && received.frames > 0 {
            // What the guest has taken may have made room, of which no descriptor tells.
            self.service();
            return Next::Again;
        }
        if received.more { Next::Again } else { Next::Sleep }
    }
}

/// What makes a descriptor ready, for poll(2).
fn flags(interest: Interest) -> PollFlags {
    match interest {
        Interest::Read => PollFlags::IN,
        Interest::Write => PollFlags::OUT,
        Interest::Both => PollFlags::IN | PollFlags::OUT,
    }
}

/// The receive queue of a guest that has none.
struct Closed;

impl RxRing for Closed {
    fn put(&mut self, _max: usize, _fill: &mut dyn FnMut(&[VolatileSlice<'_>]) -> Filled) -> bool {
        false
    }
}
