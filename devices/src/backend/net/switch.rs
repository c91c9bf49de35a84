//! A learning Ethernet switch inside this process, for programs with several machines: `--net switch:NAME`. It has no socket and no
//! thread: the sender's thread puts a frame into the receivers' queues and wakes them.
//!
//! A frame to one card whose queue is full makes the sender wait, as long as that card takes frames at all; in the queue of one that does
//! not, and for frames to everybody, the oldest frame makes room, as in a switch of metal. It knows no spanning tree: such
//! frames, like all to groups, go to every port. No offloads: machines of different abilities share it.

mod table;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::table::Table;
use super::frames::{MAX_FRAME, gather, scatter};
use super::{ETHERNET_HEADER, FrameInfo, Interest, NetBackend, Offloads, RxRing, Transmit, TxFrame};
use crate::options::{OptionError, OptionList};
use crate::sys::Event;
use crate::util::lock;

/// Frames that wait for a port at most.
const QUEUE_FRAMES: usize = 1024;

/// Bytes that wait for a port at most.
const QUEUE_BYTES: usize = 4 << 20;

/// Frames that a port takes out of its queue at a time.
const TAKE: usize = 64;

/// A port that has taken nothing for so long while frames wait makes nobody wait any more.
const PATIENCE: Duration = Duration::from_millis(50);

/// Most ports of one switch.
const MAX_PORTS: usize = 1024;

/// Every switch that has a name, for as long as it has a port or somebody holds it.
static NAMED: Mutex<BTreeMap<String, Weak<Switch>>> = Mutex::new(BTreeMap::new());

/// Which switch: the value of `--net switch:NAME`. Data only; [`SwitchConfig::open`] makes it real.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SwitchConfig {
    /// The switch's name; all of a process that give the same name share a switch, which is there as long as one of them is.
    pub name: String,
}

impl SwitchConfig {
    /// A port of the switch of that name.
    ///
    /// # Errors
    /// See [`SwitchError`].
    pub fn open(&self) -> Result<SwitchPort, SwitchError> {
        Switch::named(&self.name).port()
    }
}

impl FromStr for SwitchConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut options = OptionList::parse(text)?;
        let name = options.first("the switch's name")?;
        options.finish()?;
        Ok(SwitchConfig { name })
    }
}

impl fmt::Display for SwitchConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.replace(',', ",,"))
    }
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// All are taken.
    #[error("switch {0:?} has no port left; it has {MAX_PORTS}")]
    Full(String),
    /// The host has no descriptor for it.
    #[error("a port of switch {name:?} cannot be made")]
    Event {
        /// The switch.
        name: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

/// The switch. It lives as long as one of its ports, or whoever made it, does.
pub struct Switch {
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    ports: BTreeMap<u64, Port>,
    table: Table,
    /// The next port's number; numbers are not used again.
    next: u64,
}

struct Port {
    queue: VecDeque<Arc<[u8]>>,
    bytes: usize,
    event: Arc<Event>,
    /// The event was signalled and not yet taken.
    signalled: bool,
    /// Since when the queue waits for the card: when it became non-empty, or was last taken from.
    since: Instant,
    /// Ports that wait for room in this one's queue.
    waiting: Vec<u64>,
    /// Frames that had to make room.
    dropped: u64,
}

impl Port {
    /// A port of which `event` tells its card.
    fn new(event: Arc<Event>) -> Self {
        Port {
            queue: VecDeque::new(),
            bytes: 0,
            event,
            signalled: false,
            since: Instant::now(),
            waiting: Vec::new(),
            dropped: 0,
        }
    }
}

impl Switch {
    /// A switch that no name leads to, only the result; `name` is for messages. Its ports go into cards of the program's own
    /// ([`Net::new`](crate::virtio::net::Net::new)).
    pub fn new(name: impl Into<String>) -> Arc<Switch> {
        Arc::new(Switch { name: name.into(), inner: Mutex::default() })
    }

    /// The switch of that name, which is made if there is none.
    pub fn named(name: &str) -> Arc<Switch> {
        let mut named = lock(&NAMED);
        if let Some(switch) = named.get(name).and_then(Weak::upgrade) {
            return switch;
        }
        named.retain(|_, switch| switch.strong_count() > 0);
        let switch = Switch::new(name);
        named.insert(name.to_owned(), Arc::downgrade(&switch));
        switch
    }

    /// A new port.
    ///
    /// # Errors
    /// See [`SwitchError`].
    pub fn port(self: &Arc<Self>) -> Result<SwitchPort, SwitchError> {
        let failed = |source| SwitchError::Event { name: self.name.clone(), source };
        let event = Arc::new(Event::new().map_err(failed)?);
        let mut inner = lock(&self.inner);
        if inner.ports.len() >= MAX_PORTS {
            return Err(SwitchError::Full(self.name.clone()));
        }
        let number = inner.next;
        inner.next += 1;
        inner.ports.insert(number, Port::new(event.clone()));
        Ok(SwitchPort { switch: self.clone(), number, event, taken: VecDeque::new(), retry: None })
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = lock(&self.inner).ports.len();
        f.debug_struct("Switch").field("name", &self.name).field("ports", &ports).finish_non_exhaustive()
    }
}

impl Inner {
    /// Passes a frame on from a port; `Err` says until when its receiver has time to make room.
    fn forward(&mut self, from: u64, frame: &Arc<[u8]>, now: Instant) -> Result<(), Instant> {
        let Some((target, source)) = addresses(frame) else { return Ok(()) };
        self.table.learn(source, from, now);
        match self.table.find(target, now) {
            // It is where it came from.
            Some(to) if to == from => Ok(()),
            Some(to) => self.deliver(from, to, frame, now),
            None => {
                for (&number, port) in &mut self.ports {
                    if number != from {
                        port.push(frame, now);
                    }
                }
                Ok(())
            }
        }
    }

    fn deliver(&mut self, from: u64, to: u64, frame: &Arc<[u8]>, now: Instant) -> Result<(), Instant> {
        let Some(port) = self.ports.get_mut(&to) else { return Ok(()) };
        let until = port.since + PATIENCE;
        if port.is_full(frame.len()) && now < until {
            if !port.waiting.contains(&from) {
                port.waiting.push(from);
            }
            return Err(until);
        }
        port.push(frame, now);
        Ok(())
    }

    /// Takes frames for a port and wakes those that wait for room.
    fn take(&mut self, number: u64, taken: &mut VecDeque<Arc<[u8]>>) {
        let Some(port) = self.ports.get_mut(&number) else { return };
        let count = port.queue.len().min(TAKE);
        if count == 0 {
            return;
        }
        for frame in port.queue.drain(..count) {
            port.bytes -= frame.len();
            taken.push_back(frame);
        }
        port.since = Instant::now();
        // Half empty, so that they do not come back at once.
        if port.queue.len() <= QUEUE_FRAMES / 2 && port.bytes <= QUEUE_BYTES / 2 {
            for waiting in std::mem::take(&mut port.waiting) {
                if let Some(port) = self.ports.get_mut(&waiting) {
                    port.wake();
                }
            }
        }
    }
}

impl Port {
    fn is_full(&self, len: usize) -> bool {
        self.queue.len() >= QUEUE_FRAMES || self.bytes + len > QUEUE_BYTES
    }

    /// Appends a frame, for which older ones make room.
    fn push(&mut self, frame: &Arc<[u8]>, now: Instant) {
        while self.is_full(frame.len()) {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.bytes -= oldest.len();
            self.dropped += 1;
        }
        if self.queue.is_empty() {
            self.since = now;
        }
        self.bytes += frame.len();
        self.queue.push_back(frame.clone());
        self.wake();
    }

    fn wake(&mut self) {
        if !std::mem::replace(&mut self.signalled, true) {
            self.event.signal();
        }
    }
}

/// Where a frame goes and whence it comes (IEEE 802.3, 3.2.3).
fn addresses(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    let (target, rest) = frame.split_first_chunk::<6>()?;
    let (source, _) = rest.split_first_chunk::<6>()?;
    Some((*target, *source))
}

/// A card's port.
pub struct SwitchPort {
    switch: Arc<Switch>,
    number: u64,
    event: Arc<Event>,
    /// Taken out of the queue, but the guest had no room yet.
    taken: VecDeque<Arc<[u8]>>,
    /// When to offer a refused frame again at the latest.
    retry: Option<Instant>,
}

impl SwitchPort {
    /// The switch that it is a port of.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// Frames for this port that were lost because it did not take them in time.
    pub fn dropped(&self) -> u64 {
        lock(&self.switch.inner).ports.get(&self.number).map_or(0, |port| port.dropped)
    }

    fn transmit_at(&mut self, frame: &TxFrame<'_, '_>, now: Instant) -> Transmit {
        if !(ETHERNET_HEADER..=MAX_FRAME).contains(&frame.len) {
            return Transmit::Done;
        }
        let mut bytes = Vec::with_capacity(frame.len);
        gather(frame, &mut bytes);
        match lock(&self.switch.inner).forward(self.number, &bytes.into(), now) {
            Ok(()) => Transmit::Done,
            Err(until) => {
                self.retry = Some(until);
                Transmit::Busy
            }
        }
    }
}

impl NetBackend for SwitchPort {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn descriptors(&self, _write: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        // Also says when a receiver has room again.
        vec![(self.event.as_fd(), Interest::Read)]
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    fn service(&mut self, _now: Instant) -> io::Result<()> {
        self.retry = None;
        let mut inner = lock(&self.switch.inner);
        let Some(port) = inner.ports.get_mut(&self.number) else { return Ok(()) };
        if std::mem::take(&mut port.signalled) {
            // It is signalled under the same lock, so this does not block.
            port.event.wait()?;
        }
        Ok(())
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        self.transmit_at(frame, Instant::now())
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        // The queue holds no more than that at a time; what comes meanwhile signals again.
        for _ in 0..QUEUE_FRAMES / TAKE {
            if self.taken.is_empty() {
                lock(&self.switch.inner).take(self.number, &mut self.taken);
            }
            if self.taken.is_empty() {
                return Ok(());
            }
            while let Some(frame) = self.taken.front() {
                let room =
                    ring.put(frame.len(), &mut |slices| Some((scatter(frame, slices), FrameInfo::default())));
                if !room {
                    return Ok(());
                }
                self.taken.pop_front();
            }
        }
        // There may be more, for which nobody signals a second time.
        if let Some(port) =
            lock(&self.switch.inner).ports.get_mut(&self.number).filter(|port| !port.queue.is_empty())
        {
            port.wake();
        }
        Ok(())
    }
}

impl Drop for SwitchPort {
    fn drop(&mut self) {
        let mut inner = lock(&self.switch.inner);
        let waiting = inner.ports.remove(&self.number).map(|port| port.waiting).unwrap_or_default();
        inner.table.forget(self.number);
        for number in waiting {
            if let Some(port) = inner.ports.get_mut(&number) {
                port.wake();
            }
        }
    }
}

impl fmt::Debug for SwitchPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwitchPort")
            .field("switch", &self.switch.name)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
