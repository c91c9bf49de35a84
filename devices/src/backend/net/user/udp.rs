//! The guest's datagrams: one socket of the host's for each port that the guest sends from, so that whoever is sent to can answer
//! (RFC 4787, endpoint-independent mapping), forwarded ports, and the name server, which passes questions on to the host's.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::link::{Link, Unreachable, ports};
use super::packet::{IPV4_HEADER, IPV6_HEADER, Ip, UDP_HEADER, be16};
use super::plan::Place;
use super::{Source, watch_key};

/// Name service (RFC 1035, 4.2.1).
pub(super) const DNS_PORT: u16 = 53;
/// A DNS message's header, up to the questions (RFC 1035, 4.1.1).
const DNS_HEADER: usize = 12;
/// Most sockets for datagrams; beyond it the one unused for longest goes.
const MAX_FLOWS: usize = 512;
/// Clients of one forwarded port that are remembered; beyond it the one silent for longest is forgotten.
const MAX_CLIENTS: usize = 256;
/// How long a port without traffic is kept (RFC 4787, REQ-5: two minutes at least).
const IDLE: Duration = Duration::from_secs(150);
/// The same for questions to the name server.
const DNS_IDLE: Duration = Duration::from_secs(20);
/// A server that has not answered for so long when the guest asks again gives way to the next.
const DNS_PATIENCE: Duration = Duration::from_millis(1500);
/// How often the host's configuration is looked at.
const RESOLVERS_FRESH: Duration = Duration::from_secs(5);
/// The longest datagram.
const MAX_DATAGRAM: usize = 65535;

/// The host's name servers.
#[derive(Debug, Default)]
pub(super) struct Resolvers {
    servers: Vec<SocketAddr>,
    current: usize,
    read: Option<Instant>,
    /// Instead of the host's.
    fixed: bool,
}

impl Resolvers {
    /// These and no others.
    pub(super) fn fixed(servers: Vec<SocketAddr>) -> Self {
        Resolvers { servers, fixed: true, ..Resolvers::default() }
    }

    /// The server to ask.
    pub(super) fn current(&mut self, now: Instant) -> Option<SocketAddr> {
        let stale = self.read.is_none_or(|read| now.saturating_duration_since(read) >= RESOLVERS_FRESH);
        if stale && !self.fixed {
            // The system's listing costs a process, so it is only asked when there is nothing else, and not again and again.
            let first = self.read.is_none();
            self.read = Some(now);
            let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            let mut servers = name_servers(&text);
            if servers.is_empty() && (first || self.servers.is_empty()) {
                servers =
                    crate::sys::net::resolver_listing().map(|text| name_servers(&text)).unwrap_or_default();
            }
            if !servers.is_empty() {
                self.servers = servers;
            }
        }
        self.servers.get(self.current.checked_rem(self.servers.len())?).copied()
    }

    fn give_up(&mut self, server: SocketAddr) {
        if self.servers.get(self.current.checked_rem(self.servers.len()).unwrap_or(0)) == Some(&server) {
            self.current = self.current.wrapping_add(1);
        }
    }
}

/// The servers that `text` names: lines of resolv.conf(5), `nameserver ADDRESS`, and of macOS's listing, `nameserver[0] : ADDRESS`.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim_start().strip_prefix("nameserver") else { continue };
        let rest = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((_, rest)) => rest.trim_start().strip_prefix(':').unwrap_or(rest),
            None => rest,
        };
        // One on a link that only a scope names is left out: it would need the interface's number.
        let address = rest.split_whitespace().next().and_then(|word| word.parse::<IpAddr>().ok());
        if let Some(address) = address.map(|ip| SocketAddr::new(ip, DNS_PORT))
            && !servers.contains(&address)
        {
            servers.push(address);
        }
    }
    servers
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A port of the guest's that sends to the world.
    Plain,
    /// Questions from a port of the guest's, on a socket connected to that server.
    Dns { server: SocketAddr, unanswered: Option<Instant> },
    /// A port of the host's that leads to one of the guest's. Stays.
    Forward,
}

#[derive(Debug)]
struct Flow {
    guest: SocketAddr,
    socket: UdpSocket,
    kind: Kind,
    /// Where questions were sent: to which of our addresses.
    asked: SocketAddr,
    last: Instant,
    queued: bool,
    /// Of a forwarding: by what the guest knows them, who they are and when they spoke last.
    clients: HashMap<SocketAddr, (SocketAddr, Instant)>,
}

/// All sockets for datagrams.
#[derive(Debug)]
pub(super) struct Udp {
    flows: Vec<Option<Flow>>,
    free: Vec<usize>,
    /// By the guest's port; name service apart.
    by_guest: HashMap<(SocketAddr, bool), usize>,
    ready: Vec<usize>,
    buffer: Vec<u8>,
    sweep: Option<Instant>,
}

impl Udp {
    pub(super) fn new() -> Self {
        Udp {
            flows: Vec::new(),
            free: Vec::new(),
            by_guest: HashMap::new(),
            ready: Vec::new(),
            buffer: vec![0; MAX_DATAGRAM],
            sweep: None,
        }
    }

    /// How many sockets there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.flows.iter().flatten().count()
    }

    /// How many clients of forwarded ports are remembered.
    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.flows.iter().flatten().map(|flow| flow.clients.len()).sum()
    }

    /// Takes a datagram from the guest that is neither DHCP's nor TFTP's, and whose checksum is right.
    pub(super) fn input(&mut self, link: &mut Link, resolvers: &mut Resolvers, ip: &Ip, packet: &[u8]) {
        let segment = ip.payload(packet);
        let (Some((source, destination)), Some(len)) = (ports(segment), be16(segment, 4)) else { return };
        let Some(payload) = segment.get(UDP_HEADER..usize::from(len)) else { return };
        let guest = SocketAddr::new(ip.source, source);
        let peer = SocketAddr::new(ip.destination, destination);
        let sendable = match ip.source {
            IpAddr::V4(v4) => {
                !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast() && !v4.is_loopback()
            }
            IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_loopback(),
        };
        if !sendable || source == 0 || destination == 0 {
            return;
        }
        // An answer to a client of a forwarded port is what the forwarding is for, and goes even under restrict.
        let flow = self.by_guest.get(&(guest, false)).and_then(|index| self.flows.get(*index));
        let client = flow.and_then(Option::as_ref).and_then(|flow| {
            let (client, _) = flow.clients.get(&peer)?;
            Some(send(&flow.socket, payload, Some(*client)).err())
        });
        match link.plan.place(peer.ip()) {
            _ if ip.destination.is_multicast() || is_broadcast(link, ip.destination) => {}
            _ if let Some(error) = client => {
                if let Some(why) = error.and_then(Unreachable::of) {
                    link.unreachable(ip, packet, why);
                }
            }
            _ if link.plan.restrict => link.unreachable(ip, packet, Unreachable::Prohibited),
            Place::Dns if destination == DNS_PORT => self.ask(link, resolvers, guest, peer, payload),
            Place::Dns => link.unreachable(ip, packet, Unreachable::Port),
            Place::Nowhere => link.unreachable(ip, packet, Unreachable::Host),
            Place::Router | Place::Outside => {
                let Some(to) = link.plan.host_address(peer) else { return };
                let error = match self.plain(link, guest) {
                    Ok(flow) => send(&flow.socket, payload, Some(to)).err(),
                    Err(error) => Some(error),
                };
                if let Some(why) = error.and_then(Unreachable::of) {
                    link.unreachable(ip, packet, why);
                }
            }
        }
    }

    /// The socket for what `guest` sends.
    fn plain(&mut self, link: &Link, guest: SocketAddr) -> Result<&mut Flow, Errno> {
        let index = match self.by_guest.get(&(guest, false)) {
            Some(index) => *index,
            None => {
                let any = if guest.is_ipv4() {
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
                } else {
                    IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                };
                let socket = bind(SocketAddr::new(any, 0)).map_err(|error| errno(&error))?;
                self.insert(link, Flow::new(guest, socket, Kind::Plain, link.now))?
            }
        };
        let flow = self.flows.get_mut(index).and_then(Option::as_mut).ok_or(Errno::BADF)?;
        flow.last = link.now;
        Ok(flow)
    }

    /// Passes a question to one of the host's name servers.
    fn ask(
        &mut self,
        link: &mut Link,
        resolvers: &mut Resolvers,
        guest: SocketAddr,
        asked: SocketAddr,
        question: &[u8],
    ) {
        if question.len() < DNS_HEADER {
            return;
        }
        if let Some(index) = self.by_guest.get(&(guest, true)).copied() {
            let kind = self.flows.get(index).and_then(Option::as_ref).map(|flow| flow.kind);
            let Some(Kind::Dns { server, unanswered }) = kind else { return };
            if unanswered.is_some_and(|since| link.now.saturating_duration_since(since) >= DNS_PATIENCE) {
                resolvers.give_up(server);
            }
            if resolvers.current(link.now) != Some(server) {
                self.remove(index);
            }
        }
        let index = match self.by_guest.get(&(guest, true)) {
            Some(index) => Some(*index),
            None => resolvers.current(link.now).and_then(|server| self.open_dns(link, guest, server)),
        };
        let flow = index.and_then(|index| self.flows.get_mut(index)).and_then(Option::as_mut);
        let sent = flow.is_some_and(|flow| {
            flow.last = link.now;
            flow.asked = asked;
            if let Kind::Dns { unanswered, .. } = &mut flow.kind {
                unanswered.get_or_insert(link.now);
            }
            send(&flow.socket, question, None).is_ok()
        });
        if !sent {
            // Nobody to ask: server failure (RFC 1035, 4.1.1), at once.
            let mut answer = question.get(..question.len().min(512)).unwrap_or_default().to_vec();
            if let Some([flags, code]) = answer.get_mut(2..4) {
                *flags |= 0x80;
                *code = 0x80 | 2;
            }
            link.send_udp(asked, guest, &answer);
        }
    }

    fn open_dns(&mut self, link: &Link, guest: SocketAddr, server: SocketAddr) -> Option<usize> {
        let any = if server.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let socket = bind(SocketAddr::new(any, 0)).ok()?;
        socket.connect(server).ok()?;
        let kind = Kind::Dns { server, unanswered: None };
        self.insert(link, Flow::new(guest, socket, kind, link.now)).ok()
    }

    /// A port of the host's leads to `guest` from now on. Gives the number that [`Udp::close`] takes.
    pub(super) fn forward(
        &mut self,
        link: &Link,
        socket: UdpSocket,
        guest: SocketAddr,
    ) -> Result<usize, Errno> {
        if let Some(index) = self.by_guest.get(&(guest, false)).copied() {
            let plain =
                self.flows.get(index).and_then(Option::as_ref).is_some_and(|flow| flow.kind == Kind::Plain);
            if plain {
                self.remove(index);
            }
        }
        self.insert(link, Flow::new(guest, socket, Kind::Forward, link.now))
    }

    /// The forwarding leads to another guest from now on.
    pub(super) fn aim(&mut self, index: usize, guest: SocketAddr) {
        let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut) else { return };
        let old = std::mem::replace(&mut flow.guest, guest);
        if old == guest {
            return;
        }
        if self.by_guest.get(&(old, false)) == Some(&index) {
            self.by_guest.remove(&(old, false));
        }
        // Whatever socket the guest's port had until now.
        if let Some(other) = self.by_guest.insert((guest, false), index) {
            let plain = |flow: &Flow| flow.kind == Kind::Plain;
            if self.flows.get(other).and_then(Option::as_ref).is_some_and(plain)
                && let Some(slot) = self.flows.get_mut(other)
            {
                *slot = None;
                self.free.push(other);
            }
        }
    }

    /// The forwarding ends.
    pub(super) fn close(&mut self, index: usize) {
        self.remove(index);
    }

    fn insert(&mut self, link: &Link, flow: Flow) -> Result<usize, Errno> {
        if self.by_guest.len() >= MAX_FLOWS {
            self.remove_oldest();
        }
        let index = self.free.pop().unwrap_or(self.flows.len());
        if let Err(error) = link.watch.add(&flow.socket, watch_key(Source::Udp, index)) {
            self.free.push(index);
            return Err(errno(&error));
        }
        if index >= self.flows.len() {
            self.flows.resize_with(index + 1, || None);
        }
        self.by_guest.insert((flow.guest, flow.is_dns()), index);
        if let Some(slot) = self.flows.get_mut(index) {
            *slot = Some(flow);
        }
        self.sweep.get_or_insert(link.now + DNS_IDLE);
        Ok(index)
    }

    fn remove_oldest(&mut self) {
        let oldest = self
            .flows
            .iter()
            .enumerate()
            .filter_map(|(index, flow)| flow.as_ref().map(|flow| (index, flow)))
            .filter(|(_, flow)| flow.kind != Kind::Forward)
            .min_by_key(|(_, flow)| flow.last)
            .map(|(index, _)| index);
        if let Some(index) = oldest {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) {
        let Some(flow) = self.flows.get_mut(index).and_then(Option::take) else { return };
        let key = (flow.guest, flow.is_dns());
        if self.by_guest.get(&key) == Some(&index) {
            self.by_guest.remove(&key);
        }
        self.free.push(index);
    }

    /// Something has come.
    pub(super) fn event(&mut self, index: usize) {
        if let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut)
            && !flow.queued
        {
            flow.queued = true;
            self.ready.push(index);
        }
    }

    /// Fetches what has come, as long as the guest's queue is not long.
    pub(super) fn pump(&mut self, link: &mut Link, resolvers: &mut Resolvers) {
        while let Some(index) = self.ready.last().copied() {
            if link.frames.is_busy() {
                return;
            }
            let Some(flow) = self.flows.get_mut(index).and_then(Option::as_mut) else {
                self.ready.pop();
                continue;
            };
            match flow.socket.recv_from(&mut self.buffer) {
                Ok((len, from)) => {
                    flow.last = link.now;
                    let payload = self.buffer.get_mut(..len).unwrap_or_default();
                    flow.answer(link, from, payload);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    flow.queued = false;
                    self.ready.pop();
                }
                Err(_) => {
                    // Nobody listens there, which a connected socket learns.
                    if let Kind::Dns { server, .. } = flow.kind {
                        resolvers.give_up(server);
                    }
                    flow.queued = false;
                    self.ready.pop();
                }
            }
        }
    }

    /// When [`Udp::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.sweep
    }

    /// Closes what has been idle for long.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.sweep.is_none_or(|due| due > now) {
            return;
        }
        let idle: Vec<usize> = self
            .flows
            .iter()
            .enumerate()
            .filter(|(_, flow)| flow.as_ref().is_some_and(|flow| flow.is_idle(now)))
            .map(|(index, _)| index)
            .collect();
        for index in idle {
            self.remove(index);
        }
        let any = self.flows.iter().flatten().any(|flow| flow.kind != Kind::Forward);
        self.sweep = any.then(|| now + DNS_IDLE);
    }
}

impl Flow {
    fn new(guest: SocketAddr, socket: UdpSocket, kind: Kind, now: Instant) -> Self {
        Flow { guest, socket, kind, asked: guest, last: now, queued: false, clients: HashMap::new() }
    }

    fn is_dns(&self) -> bool {
        matches!(self.kind, Kind::Dns { .. })
    }

    fn is_idle(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.last);
        match self.kind {
            Kind::Plain => idle >= IDLE,
            Kind::Dns { .. } => idle >= DNS_IDLE,
            Kind::Forward => false,
        }
    }

    /// Hands what came from `from` to the guest.
    fn answer(&mut self, link: &mut Link, from: SocketAddr, payload: &mut [u8]) {
        if let Kind::Dns { unanswered, .. } = &mut self.kind {
            *unanswered = None;
            let header = if self.guest.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER } + UDP_HEADER;
            let payload = truncate(payload, usize::from(link.plan.mtu).saturating_sub(header));
            link.send_udp(self.asked, self.guest, payload);
            return;
        }
        if self.kind == Kind::Forward && !link.knows(self.guest.ip()) {
            link.solicit(self.guest.ip());
        }
        let view = link.plan.guest_view(from, self.guest.is_ipv6());
        if self.kind == Kind::Forward {
            if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&view) {
                let oldest = self.clients.iter().min_by_key(|(_, (_, last))| *last).map(|(view, _)| *view);
                oldest.and_then(|view| self.clients.remove(&view));
            }
            self.clients.insert(view, (from, link.now));
        }
        link.send_udp(view, self.guest, payload);
    }
}

/// Cuts an answer that does not fit a packet down to its header and says so (RFC 1035, 4.1.1: TC), so that the guest asks again
/// by TCP.
fn truncate(answer: &mut [u8], room: usize) -> &[u8] {
    if answer.len() <= room || answer.len() < DNS_HEADER {
        return answer;
    }
    let Some(header) = answer.get_mut(..DNS_HEADER) else { return &[] };
    header[2] |= 2;
    // No question, no answers.
    header[4..].fill(0);
    header
}

fn is_broadcast(link: &Link, address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4 == link.plan.net.broadcast())
}

/// A socket that never blocks.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn send(socket: &UdpSocket, payload: &[u8], to: Option<SocketAddr>) -> Result<(), Errno> {
    let attempt = || match to {
        Some(to) => socket.send_to(payload, to),
        None => socket.send(payload),
    };
    // The first attempt may report what became of an earlier one (udp(7)).
    match attempt() {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => attempt(),
        other => other,
    }
    .map(|_| ())
    .map_err(|error| errno(&error))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_found_in_resolv_conf() {
        let text =
            "# x\nsearch example.org\nnameserver 192.0.2.1\nnameserver 2001:db8::1 # y\noptions edns0\n";
        let expected = ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(name_servers(text), expected);
    }

    #[test]
    fn name_servers_are_found_in_the_listing_of_macos() {
        let text = "resolver #1\n  nameserver[0] : 192.0.2.1\n  nameserver[1] : fe80::1%en0\n  if_index : 4 (en0)\n\n\
                    resolver #2\n  nameserver[0] : 192.0.2.1\n";
        assert_eq!(name_servers(text), ["192.0.2.1:53".parse().unwrap()]);
    }

    #[test]
    fn an_answer_that_is_too_long_becomes_a_header_that_says_so() {
        let mut answer = [7; 2000];
        let cut = truncate(&mut answer, 1472);
        assert_eq!(cut, [7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
