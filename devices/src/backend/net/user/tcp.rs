//! The guest's connections: which there are, how they come about and end. A SYN of the guest's is answered when the host's own
//! connect has been, and likewise. It knows no frames of other protocols.
//!
//! All work on a connection is pulled: it is in the ready queue when something has happened to it, and [`Tcp::receive`] takes it
//! from there when the guest has room. What cannot go on stays in sockets and buffers, which is what slows the other side down.

mod flow;
mod host;
mod stack;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp::{Socket, State};

use self::flow::{Flow, Key, Stage};
use self::host::Begun;
use self::stack::{Flags, Stack, lift_segment_size};
use super::config::GuestTarget;
use super::link::{Link, Unreachable, ports};
use super::packet::{Frame, Ip, ip_packet};
use super::plan::Place;
use super::udp::Resolvers;
use super::{Source, deliver, watch_key};
use crate::backend::net::{Offloads, RxRing};
use crate::sys::net::Ready;

/// Most connections; beyond it the guest's SYNs are not answered until others have ended.
const MAX_FLOWS: usize = 4096;
/// Most connections that one side has begun and the other not confirmed; beyond it the oldest of them go.
const MAX_EMBRYONIC: usize = 1024;
/// How many go at a time.
const EVICTED: usize = 32;
/// Most commands that run for guestfwd. One may go on when its connection is long gone.
const MAX_CHILDREN: usize = 128;
/// Buffers per direction: bytes, and how many connections can have them at a time. The first come get large ones; the worst case
/// of 1,000 connections whose buffers are all full is 44 MiB, of 4,096 it is 92 MiB.
const CLASSES: [(usize, usize); 4] =
    [(256 * 1024, 8), (128 * 1024, 48), (32 * 1024, 192), (8 * 1024, usize::MAX)];
/// How many sockets of each class are kept for the next connections: new buffers cost more than all else that a short one needs.
const SPARE: [usize; CLASSES.len()] = [8, 32, 64, 128];
/// How long a guest may take to confirm a connection, or to be found on the link.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// How often a guest is looked for.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);
/// Packets of one connection before it is the next one's turn.
const TURN: usize = 32;
/// smoltcp may want to be asked at once when nothing can be done yet.
const SHORTEST_TIMER: Duration = Duration::from_millis(5);

/// All connections.
#[derive(Debug)]
pub(super) struct Tcp {
    stack: Stack,
    flows: Vec<Option<Box<Flow>>>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
    /// Whom the last packet concerned: the next one does, too, most times.
    last: Option<(Key, usize)>,
    ready: VecDeque<usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    embryonic: usize,
    classes: [usize; CLASSES.len()],
    spare: [Vec<Socket<'static>>; CLASSES.len()],
    /// A set without sockets, which answers everything with a reset.
    nobody: SocketSet<'static>,
    children: Vec<Child>,
}

impl Tcp {
    pub(super) fn new(link: &Link, seed: u64) -> Self {
        Tcp {
            stack: Stack::new(link, seed),
            flows: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            last: None,
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            embryonic: 0,
            classes: [0; CLASSES.len()],
            spare: Default::default(),
            nobody: SocketSet::new(Vec::new()),
            children: Vec::new(),
        }
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Takes a packet from the guest, whose checksums are right.
    pub(super) fn input(&mut self, link: &mut Link, resolvers: &mut Resolvers, ip: &Ip, packet: &mut [u8]) {
        let Some(segment) = packet.get_mut(ip.header..ip.len) else { return };
        let (Some(flags), Some((source, destination))) = (Flags::of(segment), ports(segment)) else { return };
        let key = Key {
            guest: SocketAddr::new(ip.source, source),
            peer: SocketAddr::new(ip.destination, destination),
        };
        if source == 0 || destination == 0 || !may_connect(link, ip.source) {
            return;
        }
        let known = self.find(&key);
        let size =
            if flags.syn && takes_large(link, key.guest.ip()) { lift_segment_size(segment) } else { None };
        let packet = packet.get(..ip.len).unwrap_or_default();
        match known {
            Some(index) => self.continue_flow(link, index, flags, size, packet),
            None if flags.syn && !flags.ack && !flags.rst => {
                match without_data(ip, packet) {
                    Some((ip, syn)) => self.begin(link, resolvers, key, &ip, &syn),
                    None => self.begin(link, resolvers, key, ip, packet),
                }
                if let (Some(index), Some(_)) = (self.find(&key), size)
                    && let Some(flow) = self.flow(index)
                {
                    flow.segment = size;
                }
            }
            None if flags.rst => {}
            None => self.refuse(link, packet),
        }
    }

    fn find(&mut self, key: &Key) -> Option<usize> {
        if let Some((last, index)) = &self.last
            && last == key
        {
            return Some(*index);
        }
        let index = self.by_key.get(key).copied()?;
        self.last = Some((*key, index));
        Some(index)
    }

    fn continue_flow(
        &mut self,
        link: &mut Link,
        index: usize,
        flags: Flags,
        size: Option<u16>,
        packet: &[u8],
    ) {
        let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut) else { return };
        match flow.stage {
            Stage::Connecting(_) if flags.rst => self.remove(index),
            Stage::Connecting(_) | Stage::Resolving => {}
            Stage::Open(_) => {
                flow.heard(link.now);
                if flags.ack && size.is_some() {
                    flow.segment = size;
                }
                if self.stack.input(link.now, &mut flow.set, packet)
                    && let Some((bytes, info)) = self.stack.finish(link, flow.segment)
                {
                    link.frames.push(Frame { bytes: bytes.to_vec(), info });
                }
                self.enqueue(index);
            }
        }
    }

    /// Answers with a reset.
    fn refuse(&mut self, link: &mut Link, packet: &[u8]) {
        if self.stack.input(link.now, &mut self.nobody, packet)
            && let Some((bytes, info)) = self.stack.finish(link, None)
        {
            link.frames.push(Frame { bytes: bytes.to_vec(), info });
        }
    }

    /// The guest opens a connection.
    fn begin(&mut self, link: &mut Link, resolvers: &mut Resolvers, key: Key, ip: &Ip, syn: &[u8]) {
        if !self.make_room(link) {
            return;
        }
        let forward = link.plan.forwards.iter().find(|(server, _)| *server == key.peer);
        let crowded = self.children.len() >= MAX_CHILDREN;
        let mut reach = || match (forward, link.plan.place(key.peer.ip())) {
            (Some((_, GuestTarget::Cmd(_))), _) if crowded => Err(Errno::AGAIN),
            (Some((_, target)), _) => host::reach(target),
            (None, _) if link.plan.restrict => Err(Errno::CONNREFUSED),
            (None, Place::Dns) if key.peer.port() == 53 => match resolvers.current(link.now) {
                Some(server) => host::connect(server),
                None => Err(Errno::CONNREFUSED),
            },
            (None, Place::Dns) => Err(Errno::CONNREFUSED),
            (None, Place::Nowhere) => Err(Errno::HOSTUNREACH),
            (None, Place::Router | Place::Outside) => match link.plan.host_address(key.peer) {
                Some(address) => host::connect(address),
                None => Err(Errno::HOSTUNREACH),
            },
        };
        let mut begun = reach();
        // The descriptors of connections that nobody has confirmed are better spent on this one.
        if let Err(Errno::MFILE | Errno::NFILE) = begun
            && self.evict()
        {
            begun = reach();
        }
        match begun {
            Ok(Begun { socket, connected, child }) => {
                self.children.extend(child);
                let flow = Flow::new(key, socket, Stage::Connecting(syn.to_vec()), link.now);
                let Some(index) = self.insert(link, flow) else { return };
                if connected {
                    self.establish(link, index);
                }
            }
            Err(error) => self.fail(link, error, ip, syn),
        }
    }

    /// Whether there can be one more connection; half-open ones make room for it.
    fn make_room(&mut self, link: &mut Link) -> bool {
        if self.embryonic < MAX_EMBRYONIC && self.len() < MAX_FLOWS {
            return true;
        }
        let room = self.evict();
        if let Some(more) = link.log.allow() {
            let what = if room { "half-open ones are dropped" } else { "one is not answered" };
            log::warn!("net user: too many connections: {what}{more}");
        }
        room
    }

    /// Drops the oldest of the connections that one side has begun and the other not confirmed. `false`: there are none.
    fn evict(&mut self) -> bool {
        let flows = self.flows.iter().enumerate().filter_map(|(index, flow)| Some((index, flow.as_ref()?)));
        let mut embryos: Vec<(Instant, usize)> =
            flows.filter(|(_, flow)| flow.embryonic).map(|(index, flow)| (flow.begun, index)).collect();
        if embryos.len() > EVICTED {
            embryos.select_nth_unstable(EVICTED);
            embryos.truncate(EVICTED);
        }
        for (_, index) in &embryos {
            if let Some(flow) = self.flow(*index) {
                host::reset_on_close(&flow.host);
            }
            self.remove(*index);
        }
        !embryos.is_empty()
    }

    /// Tells the guest what became of the connection that `syn` was to open.
    fn fail(&mut self, link: &mut Link, error: Errno, ip: &Ip, syn: &[u8]) {
        match error {
            // It would hear nothing from there either.
            Errno::TIMEDOUT => {}
            // It may ask again when others have ended.
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN => {
                if let Some(more) = link.log.allow() {
                    log::warn!("net user: no socket for a connection of the guest's: {error}{more}");
                }
            }
            _ => match Unreachable::of(error) {
                Some(why) => link.unreachable(ip, syn, why),
                None => self.refuse(link, syn),
            },
        }
    }

    fn insert(&mut self, link: &mut Link, flow: Flow) -> Option<usize> {
        let index = self.free.pop().unwrap_or(self.flows.len());
        if let Err(error) = link.watch.add(&flow.host, watch_key(Source::Tcp, index)) {
            self.free.push(index);
            if let Some(more) = link.log.allow() {
                log::warn!("net user: cannot watch a connection: {error}{more}");
            }
            return None;
        }
        let key = flow.key;
        let mut flow = Box::new(flow);
        flow.embryonic = true;
        self.embryonic += 1;
        if index >= self.flows.len() {
            self.flows.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.flows.get_mut(index) {
            *slot = Some(flow);
        }
        self.by_key.insert(key, index);
        Some(index)
    }

    /// A socket for one more connection, with buffers as large as there still are, and their class.
    fn take_socket(&mut self) -> (usize, Socket<'static>) {
        let free = |((_, most), used): (&(usize, usize), &usize)| used < most;
        let class = CLASSES.iter().zip(&self.classes).position(free).unwrap_or(CLASSES.len() - 1);
        if let Some(used) = self.classes.get_mut(class) {
            *used += 1;
        }
        let spare = self.spare.get_mut(class).and_then(Vec::pop);
        (class, spare.unwrap_or_else(|| flow::socket(CLASSES.get(class).map_or(0, |(size, _)| *size))))
    }

    /// The host's side is there: now the guest gets its answer.
    fn establish(&mut self, link: &mut Link, index: usize) {
        let (class, socket) = self.take_socket();
        let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut) else { return };
        flow.class = Some(class);
        let Stage::Connecting(syn) = std::mem::replace(&mut flow.stage, Stage::Resolving) else { return };
        let peer = flow.key.peer;
        flow.since = link.now;
        if flow.open(socket).listen(peer).is_err() {
            return self.remove(index);
        }
        let answered = self.stack.input(link.now, &mut flow.set, &syn);
        if answered || flow.state() == State::Listen {
            // A SYN that smoltcp does not take, from an address that cannot be, say.
            return self.remove(index);
        }
        self.enqueue(index);
    }

    /// The host has a client for one of the guest's ports.
    pub(super) fn accepted(&mut self, link: &mut Link, socket: OwnedFd, peer: SocketAddr, guest: SocketAddr) {
        host::prepare(&socket);
        if !self.make_room(link) {
            return host::reset_on_close(&socket);
        }
        let mut peer = link.plan.guest_view(peer, guest.is_ipv6());
        // Clients from several of the host's addresses may have the same port.
        for _ in 0..64 {
            if peer.port() != 0 && !self.by_key.contains_key(&Key { guest, peer }) {
                break;
            }
            peer.set_port(peer.port().wrapping_add(1).max(1024));
        }
        let key = Key { guest, peer };
        if self.by_key.contains_key(&key) {
            return host::reset_on_close(&socket);
        }
        let Some(index) = self.insert(link, Flow::new(key, socket, Stage::Resolving, link.now)) else {
            return;
        };
        if link.knows(guest.ip()) {
            self.knock(link, index);
        } else {
            link.solicit(guest.ip());
            self.arm(index, link.now + RESOLVE_INTERVAL);
        }
    }

    /// Begins a connection to the guest, who is on the link.
    fn knock(&mut self, link: &Link, index: usize) {
        let (class, socket) = self.take_socket();
        let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut) else { return };
        flow.class = Some(class);
        flow.since = link.now;
        let (guest, peer) = (flow.key.guest, flow.key.peer);
        let socket = flow.open(socket);
        if socket.connect(self.stack.context(), guest, peer).is_err() {
            host::reset_on_close(&flow.host);
            return self.remove(index);
        }
        self.enqueue(index);
    }

    /// Somebody on the link is known now.
    pub(super) fn learned(&mut self, link: &Link, address: IpAddr) {
        if self.embryonic == 0 {
            return;
        }
        let waits = |flow: &Flow| matches!(flow.stage, Stage::Resolving) && flow.key.guest.ip() == address;
        let waiting: Vec<usize> = self
            .by_key
            .values()
            .copied()
            .filter(|index| self.flows.get(*index).and_then(Option::as_ref).is_some_and(|flow| waits(flow)))
            .collect();
        for index in waiting {
            self.knock(link, index);
        }
    }

    /// Something has happened to a socket of the host's.
    pub(super) fn event(&mut self, link: &mut Link, index: usize, ready: &Ready) {
        let Some(flow) = self.flow(index) else { return };
        match &flow.stage {
            Stage::Connecting(syn) => match host::arrived(&flow.host) {
                Ok(true) => self.establish(link, index),
                Ok(false) => {}
                Err(error) => {
                    let syn = syn.clone();
                    self.remove(index);
                    let ip = if syn.first().is_some_and(|b| b >> 4 == 4) {
                        Ip::parse4(&syn)
                    } else {
                        Ip::parse6(&syn)
                    };
                    if let Some(ip) = ip {
                        self.fail(link, error, &ip, &syn);
                    }
                }
            },
            Stage::Resolving => flow.event(ready.readable, ready.writable, ready.ended),
            Stage::Open(_) => {
                flow.event(ready.readable, ready.writable, ready.ended);
                self.enqueue(index);
            }
        }
    }

    /// Moves what the guest has sent on to the host, whether or not the guest has room for answers.
    pub(super) fn flush(&mut self) {
        for index in &self.ready {
            if let Some(flow) = self.flows.get_mut(*index).and_then(Option::as_mut) {
                flow.exchange();
            }
        }
    }

    /// Works on the connections that have something to do, until the guest has no more room: `false`.
    pub(super) fn receive(&mut self, link: &mut Link, ring: &mut dyn RxRing) -> bool {
        while let Some(index) = self.ready.pop_front() {
            let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut) else { continue };
            flow.queued = false;
            let mut turns = 0;
            let mut room = true;
            flow.exchange();
            while room && turns < TURN && self.stack.output(link.now, &mut flow.set) {
                turns += 1;
                let Some((bytes, info)) = self.stack.finish(link, flow.segment) else { continue };
                room = deliver(ring, bytes, info);
                if !room {
                    link.frames.push(Frame { bytes: bytes.to_vec(), info });
                }
            }
            self.settle(link, index, turns == TURN || !room);
            if !room {
                return false;
            }
        }
        true
    }

    /// After its turn: it is over, or has more to do, or waits for something.
    fn settle(&mut self, link: &Link, index: usize, more: bool) {
        let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut) else { return };
        if flow.is_over() {
            return self.remove(index);
        }
        let state = flow.state();
        if flow.embryonic && !matches!(state, State::Listen | State::SynReceived | State::SynSent) {
            flow.embryonic = false;
            self.embryonic = self.embryonic.saturating_sub(1);
            // What the host had said meanwhile can go now.
            self.enqueue(index);
        } else if more {
            self.enqueue(index);
        } else if flow.is_deserted(link.now) {
            flow.abort();
            self.enqueue(index);
        } else if let Stage::Open(_) = flow.stage
            && let Some(at) = self.stack.poll_at(link.now, &flow.set)
        {
            self.arm(index, at.max(link.now + SHORTEST_TIMER));
        }
    }

    fn arm(&mut self, index: usize, at: Instant) {
        let Some(flow) = self.flow(index) else { return };
        if flow.armed.is_none_or(|armed| at < armed) {
            flow.armed = Some(at);
            self.timers.push(Reverse((at, index)));
        }
    }

    /// When [`Tcp::tick`] has something to do.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let reap = (!self.children.is_empty()).then(|| now + Duration::from_secs(1));
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        timer.into_iter().chain(reap).min()
    }

    /// Wakes the connections whose time has come.
    pub(super) fn tick(&mut self, link: &mut Link) {
        self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        while let Some(Reverse((at, index))) = self.timers.peek().copied() {
            if at > link.now {
                break;
            }
            self.timers.pop();
            let Some(flow) = self.flow(index) else { continue };
            if flow.armed != Some(at) {
                // Of a connection that had the place before, or earlier than need be.
                continue;
            }
            flow.armed = None;
            if matches!(flow.stage, Stage::Resolving) {
                if link.now.saturating_duration_since(flow.since) >= HANDSHAKE {
                    host::reset_on_close(&flow.host);
                    self.remove(index);
                } else {
                    link.solicit(flow.key.guest.ip());
                    self.arm(index, link.now + RESOLVE_INTERVAL);
                }
                continue;
            }
            if flow.is_stale(link.now, HANDSHAKE) {
                flow.abort();
            }
            self.enqueue(index);
        }
    }

    /// The guest has been reset and understands other frames: what it would not understand any more ends.
    pub(super) fn reset(&mut self, guest: Offloads) {
        let lost = |flow: &Flow| {
            let large = if flow.key.guest.is_ipv4() { guest.tso4 } else { guest.tso6 };
            flow.segment.is_some() && !(large && guest.checksum)
        };
        let over: Vec<usize> = self
            .by_key
            .values()
            .copied()
            .filter(|index| self.flows.get(*index).and_then(Option::as_ref).is_some_and(|flow| lost(flow)))
            .collect();
        for index in over {
            if let Some(flow) = self.flow(index) {
                host::reset_on_close(&flow.host);
            }
            self.remove(index);
        }
    }

    fn flow(&mut self, index: usize) -> Option<&mut Flow> {
        self.flows.get_mut(index).and_then(Option::as_mut).map(Box::as_mut)
    }

    fn enqueue(&mut self, index: usize) {
        if let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut)
            && !flow.queued
        {
            flow.queued = true;
            self.ready.push_back(index);
        }
    }

    fn remove(&mut self, index: usize) {
        let Some(mut flow) = self.flows.get_mut(index).and_then(Option::take) else { return };
        self.by_key.remove(&flow.key);
        self.last = self.last.filter(|(_, last)| *last != index);
        if flow.embryonic {
            self.embryonic = self.embryonic.saturating_sub(1);
        }
        if let Some(used) = flow.class.and_then(|class| self.classes.get_mut(class)) {
            *used = used.saturating_sub(1);
        }
        if let (Some(class), Some(socket)) = (flow.class, flow.take_socket())
            && let (Some(spare), Some(most)) = (self.spare.get_mut(class), SPARE.get(class))
            && spare.len() < *most
        {
            spare.push(socket);
        }
        self.free.push(index);
    }
}

/// Whether somebody with `address` can have connections: one host, and not one that we play.
fn may_connect(link: &Link, address: IpAddr) -> bool {
    let one = match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] != 0 && !v4.is_multicast() && !v4.is_broadcast() && v4 != link.plan.net.broadcast()
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && v6.to_ipv4().is_none(),
    };
    one && !address.is_loopback() && !link.plan.is_ours(address)
}

/// A SYN without the data that came with it: the guest sends them again (RFC 9293, 3.10.7.2 lets us choose), and what waits for the
/// host's answer is small. `None` if there were none.
fn without_data(ip: &Ip, syn: &[u8]) -> Option<(Ip, Vec<u8>)> {
    let segment = ip.payload(syn);
    let headers = segment.get(..stack::header_len(segment)?)?;
    if headers.len() == segment.len() {
        return None;
    }
    let packet = ip_packet(ip.source, ip.destination, ip.protocol, headers, None)?;
    let ip = if ip.source.is_ipv4() { Ip::parse4(&packet) } else { Ip::parse6(&packet) };
    Some((ip?, packet))
}

/// Whether the guest that has `address` takes packets still to be cut.
fn takes_large(link: &Link, address: IpAddr) -> bool {
    link.guest.checksum && if address.is_ipv4() { link.guest.tso4 } else { link.guest.tso6 }
}
