//! Pings. Those to the router and its like are answered here; those to the outside go through sockets that need no privilege,
//! where the host has such.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use super::link::{Link, Unreachable};
use super::packet::{ICMP, ICMPV6, Ip, be16, put16};
use super::plan::Place;
use super::{Source, watch_key};
use crate::sys::net::{PING_HAS_IP_HEADER, ping_socket};

/// Message types (RFC 792; RFC 4443, 4).
const ECHO_REQUEST4: u8 = 8;
const ECHO_REPLY4: u8 = 0;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;
/// Type, code, checksum, identifier, sequence number.
const ECHO_HEADER: usize = 8;
/// The longest message, with the IP header that some hosts leave before it.
const MAX_MESSAGE: usize = 65535;
/// Programs that ping at a time; beyond it the one silent for longest gives way.
const MAX_FLOWS: usize = 32;
/// How long a silent one is kept.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Flow {
    guest: IpAddr,
    id: u16,
    socket: OwnedFd,
    last: Instant,
}

/// The guest's pings to the outside.
#[derive(Debug)]
pub(super) struct Icmp {
    flows: HashMap<usize, Flow>,
    next: usize,
    ready: Vec<usize>,
    buffer: Vec<u8>,
}

impl Icmp {
    pub(super) fn new() -> Self {
        Icmp { flows: HashMap::new(), next: 0, ready: Vec::new(), buffer: vec![0; MAX_MESSAGE] }
    }

    /// Takes an ICMP message from the guest, whose checksum is right.
    pub(super) fn input(&mut self, link: &mut Link, ip: &Ip, packet: &[u8]) {
        let message = ip.payload(packet);
        let request = if ip.source.is_ipv4() { ECHO_REQUEST4 } else { ECHO_REQUEST6 };
        if message.len() < ECHO_HEADER || message.first() != Some(&request) || ip.source.is_unspecified() {
            return;
        }
        if link.plan.is_ours(ip.destination) {
            return reply(link, ip.destination, ip.source, message.to_vec());
        }
        match link.plan.place(ip.destination) {
            Place::Outside if link.plan.restrict => link.unreachable(ip, packet, Unreachable::Prohibited),
            Place::Outside => {
                if let Err(error) = self.send(link, ip, message) {
                    if matches!(error, Errno::ACCESS | Errno::PERM | Errno::PROTONOSUPPORT)
                        && let Some(more) = link.log.allow()
                    {
                        log::warn!(
                            "net user: this host does not let everyone ping, so the guest cannot: {error}{more}"
                        );
                    }
                    let why = Unreachable::of(error).unwrap_or(Unreachable::Network);
                    link.unreachable(ip, packet, why);
                }
            }
            Place::Nowhere if !ip.destination.is_multicast() => {
                link.unreachable(ip, packet, Unreachable::Host)
            }
            _ => {}
        }
    }

    fn send(&mut self, link: &Link, ip: &Ip, message: &[u8]) -> Result<(), Errno> {
        let id = be16(message, 4).unwrap_or(0);
        let known = self.flows.iter_mut().find(|(_, flow)| flow.guest == ip.source && flow.id == id);
        let flow = match known {
            Some((_, flow)) => flow,
            None => {
                let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
                let socket = ping_socket(ip.source.is_ipv6()).map_err(errno)?;
                if self.flows.len() >= MAX_FLOWS {
                    let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.last).map(|(index, _)| *index);
                    oldest.and_then(|index| self.flows.remove(&index));
                }
                let index = self.next;
                self.next = self.next.wrapping_add(1) & 0xffff_ffff;
                link.watch.add(&socket, watch_key(Source::Icmp, index)).map_err(errno)?;
                self.flows.entry(index).or_insert(Flow { guest: ip.source, id, socket, last: link.now })
            }
        };
        flow.last = link.now;
        match sendto(&flow.socket, message, SendFlags::empty(), &SocketAddr::new(ip.destination, 0)) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Something has come.
    pub(super) fn event(&mut self, index: usize) {
        if self.flows.contains_key(&index) && !self.ready.contains(&index) {
            self.ready.push(index);
        }
    }

    /// Fetches answers.
    pub(super) fn pump(&mut self, link: &mut Link) {
        while let Some(index) = self.ready.last() {
            if link.frames.is_busy() {
                return;
            }
            let Some(flow) = self.flows.get_mut(index) else {
                self.ready.pop();
                continue;
            };
            let received = recvfrom(&flow.socket, &mut self.buffer[..], RecvFlags::empty());
            let Ok((len, _, Some(from))) = received else {
                self.ready.pop();
                continue;
            };
            let Ok(from) = SocketAddr::try_from(from) else { continue };
            let message = self.buffer.get(..len).unwrap_or_default();
            if let Some(answer) = answer(flow, message) {
                flow.last = link.now;
                let (from, guest) = (from.ip(), flow.guest);
                reply(link, from, guest, answer);
            }
        }
    }

    /// When [`Icmp::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.flows.values().map(|flow| flow.last + IDLE).min()
    }

    /// Closes what has been silent for long.
    pub(super) fn tick(&mut self, now: Instant) {
        self.flows.retain(|_, flow| now.saturating_duration_since(flow.last) < IDLE);
    }
}

/// The message for the guest, if what the host's socket got is an answer to it: Linux filters and renumbers, macOS does neither.
fn answer(flow: &Flow, received: &[u8]) -> Option<Vec<u8>> {
    let v4 = flow.guest.is_ipv4();
    let header = if PING_HAS_IP_HEADER && v4 { usize::from(received.first()? & 0xf) * 4 } else { 0 };
    let mut message = received.get(header..)?.to_vec();
    let expected = if v4 { ECHO_REPLY4 } else { ECHO_REPLY6 };
    if message.len() < ECHO_HEADER || message.first() != Some(&expected) {
        return None;
    }
    if PING_HAS_IP_HEADER && be16(&message, 4) != Some(flow.id) {
        return None;
    }
    put16(&mut message, 4, flow.id);
    Some(message)
}

/// Sends `message` as an echo reply.
fn reply(link: &mut Link, from: IpAddr, to: IpAddr, mut message: Vec<u8>) {
    match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            message[0] = ECHO_REPLY6;
            link.send_icmp6(from, to, message);
        }
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            message[0] = ECHO_REPLY4;
            put16(&mut message, 2, 0);
            let sum = !smoltcp::wire::checksum::data(&message);
            put16(&mut message, 2, sum);
            link.send_ip(from, to, ICMP, &message);
        }
        _ => {}
    }
}

/// Which of the two a packet carries.
pub(super) fn is_icmp(ip: &Ip) -> bool {
    ip.protocol == if ip.source.is_ipv4() { ICMP } else { ICMPV6 }
}
