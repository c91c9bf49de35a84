//! What all parts of a user-mode network share: its addresses, who is on the link, and the way of a packet to the guest; ARP,
//! neighbour discovery and router advertisements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::packet::{
    self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Fragment, Frame, Frames, ICMPV6,
    IPV4_HEADER, IPV6_HEADER, Ip, UDP, be16, ip_packet, put16, transport_checksum, udp_segment,
};
use super::plan::{DNS6, LINK_LOCAL, Mac, PREFIX6, Plan};
use crate::backend::net::{FrameInfo, Offloads};
use crate::sys::net::Watch;
use crate::util::LogLimit;

/// Everyone on the link.
pub(super) const BROADCAST: Mac = [0xff; 6];
/// All nodes on the link (RFC 4291, 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// ICMPv6 types (RFC 4861, 4).
pub(super) const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// How often a router speaks unasked (RFC 4861, 6.2.1: MaxRtrAdvInterval's default), and how long it is good for.
const ADVERTISEMENT_INTERVAL: Duration = Duration::from_secs(600);
const ROUTER_LIFETIME: u16 = 1800;
/// Addresses on the link that are remembered. One guest has a handful.
const MAX_NEIGHBOURS: usize = 64;

/// What all parts share.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) plan: Plan,
    /// What the guest understands.
    pub(super) guest: Offloads,
    pub(super) frames: Frames,
    pub(super) watch: Watch,
    pub(super) now: Instant,
    pub(super) log: LogLimit,
    /// The address that DHCP gave away first, for forwardings that name no guest.
    pub(super) first_guest: Option<Ipv4Addr>,
    /// Few, so that looking through them takes less time than a hash.
    neighbours: Vec<(IpAddr, Mac)>,
    /// Who spoke last.
    last: Option<Mac>,
    next_advertisement: Instant,
    next_id: u32,
}

impl Link {
    pub(super) fn new(plan: Plan, watch: Watch, now: Instant) -> Self {
        Link {
            plan,
            guest: Offloads::default(),
            frames: Frames::default(),
            watch,
            now,
            log: LogLimit::new(),
            first_guest: None,
            neighbours: Vec::new(),
            last: None,
            next_advertisement: now,
            next_id: 1,
        }
    }

    /// Remembers who has an address. `true` if that is news.
    pub(super) fn learn(&mut self, address: IpAddr, mac: Mac) -> bool {
        let unicast = mac[0] & 1 == 0 && mac != [0; 6];
        if !unicast {
            return false;
        }
        self.last = Some(mac);
        if self.neighbours.contains(&(address, mac)) {
            return false;
        }
        let on_link = match address {
            IpAddr::V4(v4) => self.plan.assignable(v4),
            IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_loopback(),
        };
        if !on_link || self.plan.is_ours(address) {
            return false;
        }
        self.neighbours.retain(|(known, _)| *known != address);
        if self.neighbours.len() >= MAX_NEIGHBOURS {
            self.neighbours.remove(0);
        }
        self.neighbours.push((address, mac));
        true
    }

    /// Who has `address`, known for sure.
    pub(super) fn knows(&self, address: IpAddr) -> bool {
        self.neighbours.iter().any(|(known, _)| *known == address)
    }

    fn mac_of(&self, address: IpAddr) -> Mac {
        let known = self.neighbours.iter().find(|(known, _)| *known == address);
        known.map(|(_, mac)| *mac).or(self.last).unwrap_or(BROADCAST)
    }

    /// The guest that a forwarding means.
    pub(super) fn forward_guest(&self, guest: Option<IpAddr>) -> IpAddr {
        guest.unwrap_or(IpAddr::V4(self.first_guest.unwrap_or(self.plan.dhcp_start)))
    }

    /// The header of a frame that carries IP to `destination`.
    pub(super) fn ethernet_to(&self, destination: IpAddr) -> Ethernet {
        let mac = match destination {
            IpAddr::V4(Ipv4Addr::BROADCAST) => BROADCAST,
            IpAddr::V6(v6) if v6.is_multicast() => {
                // RFC 2464, 7.
                let [.., a, b, c, d] = v6.octets();
                [0x33, 0x33, a, b, c, d]
            }
            other => self.mac_of(other),
        };
        let ethertype = if destination.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        Ethernet { destination: mac, source: self.plan.mac(), ethertype }
    }

    /// Sends an IP packet without Ethernet header.
    pub(super) fn send_packet(&mut self, destination: IpAddr, packet: &[u8], info: FrameInfo) {
        let mut bytes = self.ethernet_to(destination).emit().to_vec();
        bytes.extend_from_slice(packet);
        self.frames.push(Frame { bytes, info });
    }

    /// Sends `segment` of `protocol`, whose checksum is complete, cut into fragments if need be.
    pub(super) fn send_ip(&mut self, source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) {
        let header = if source.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        let mtu = usize::from(self.plan.mtu);
        let info = FrameInfo { checksum_valid: true, ..FrameInfo::default() };
        if header + segment.len() <= mtu {
            if let Some(bytes) = ip_packet(source, destination, protocol, segment, None) {
                self.send_packet(destination, &bytes, info);
            }
            return;
        }
        // Room for IPv6's fragment header, too; a multiple of 8 (RFC 791, 3.2).
        let piece = (mtu - header - 8) & !7;
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut offset = 0;
        for part in segment.chunks(piece) {
            let more = offset + part.len() < segment.len();
            let fragment = Fragment { id, offset, more };
            if let Some(bytes) = ip_packet(source, destination, protocol, part, Some(fragment)) {
                self.send_packet(destination, &bytes, FrameInfo::default());
            }
            offset += part.len();
        }
    }

    /// Sends a datagram.
    pub(super) fn send_udp(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        let (from, to) = (source.ip(), destination.ip());
        let Some(mut segment) = udp_segment(source, destination, payload) else { return };
        let header = if from.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        if self.guest.checksum && header + segment.len() <= usize::from(self.plan.mtu) {
            let len = segment.len();
            put16(&mut segment, 6, packet::pseudo_header(from, to, UDP, len));
            if let Some(bytes) = ip_packet(from, to, UDP, &segment, None) {
                self.send_packet(to, &bytes, packet::partial(header, 6));
            }
            return;
        }
        let sum = transport_checksum(from, to, UDP, &segment);
        // Zero would say that there is none (RFC 768).
        put16(&mut segment, 6, if sum == 0 { 0xffff } else { sum });
        self.send_ip(from, to, UDP, &segment);
    }

    /// Sends an ICMPv6 message, whose checksum is filled in.
    pub(super) fn send_icmp6(&mut self, source: Ipv6Addr, destination: Ipv6Addr, mut message: Vec<u8>) {
        put16(&mut message, 2, 0);
        let sum = transport_checksum(source.into(), destination.into(), ICMPV6, &message);
        put16(&mut message, 2, sum);
        self.send_ip(source.into(), destination.into(), ICMPV6, &message);
    }

    /// Answers who has our addresses. `true` if it taught us who has another.
    pub(super) fn arp(&mut self, frame: &[u8]) -> bool {
        let Some(Ok(packet)) = frame.get(crate::backend::net::ETHERNET_HEADER..).map(ArpPacket::new_checked)
        else {
            return false;
        };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return false;
        };
        // Who asks for its own address only wants to know that nobody has it (RFC 5227).
        let news = self.learn(IpAddr::V4(source_protocol_addr), source_hardware_addr.0);
        let asked = operation == ArpOperation::Request && self.plan.is_ours(IpAddr::V4(target_protocol_addr));
        if asked && source_protocol_addr != target_protocol_addr {
            self.send_arp(
                ArpOperation::Reply,
                target_protocol_addr,
                (source_hardware_addr.0, source_protocol_addr),
            );
        }
        news
    }

    fn send_arp(&mut self, operation: ArpOperation, source: Ipv4Addr, target: (Mac, Ipv4Addr)) {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(self.plan.mac()),
            source_protocol_addr: source,
            target_hardware_addr: EthernetAddress(target.0),
            target_protocol_addr: target.1,
        };
        let header = Ethernet { destination: target.0, source: self.plan.mac(), ethertype: ETHERTYPE_ARP };
        let mut bytes = header.emit().to_vec();
        let start = bytes.len();
        bytes.resize(start + repr.buffer_len(), 0);
        if let Some(room) = bytes.get_mut(start..) {
            repr.emit(&mut ArpPacket::new_unchecked(room));
        }
        self.frames.push(Frame { bytes, info: FrameInfo::default() });
    }

    /// Asks who has `address`.
    pub(super) fn solicit(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.send_arp(ArpOperation::Request, self.plan.router, (BROADCAST, v4)),
            IpAddr::V6(v6) => {
                let [.., a, b, c] = v6.octets();
                // The solicited-node address (RFC 4291, 2.7.1).
                let group =
                    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
                let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
                message.extend_from_slice(&v6.octets());
                self.push_link_layer_option(&mut message, 1);
                self.send_icmp6(LINK_LOCAL, group, message);
            }
        }
    }

    /// A link-layer address option: 1 is the source's, 2 the target's (RFC 4861, 4.6.1).
    fn push_link_layer_option(&self, message: &mut Vec<u8>, kind: u8) {
        message.extend_from_slice(&[kind, 1]);
        message.extend_from_slice(&self.plan.mac());
    }

    /// Takes part in neighbour discovery. `true` if it taught us who has an address.
    pub(super) fn neighbour_discovery(&mut self, ip: &Ip, source_mac: Mac, message: &[u8]) -> bool {
        // From this link for sure (RFC 4861, 7.1.1).
        let (IpAddr::V6(source), 255) = (ip.source, ip.hop_limit) else { return false };
        match message.first() {
            Some(&ROUTER_SOLICITATION) => {
                let news = self.learn(ip.source, source_mac);
                self.advertise_router();
                news
            }
            Some(&NEIGHBOUR_SOLICITATION) => {
                let Some(target) = message.get(8..24).and_then(|b| <[u8; 16]>::try_from(b).ok()) else {
                    return false;
                };
                let news = self.learn(ip.source, source_mac);
                if self.plan.is_ours(IpAddr::V6(target.into())) {
                    let probing = source.is_unspecified();
                    // Router, solicited, override (RFC 4861, 4.4).
                    let flags = 0x80 | if probing { 0 } else { 0x40 } | 0x20;
                    let mut answer = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
                    answer.extend_from_slice(&target);
                    self.push_link_layer_option(&mut answer, 2);
                    let to = if probing { ALL_NODES } else { source };
                    self.send_icmp6(target.into(), to, answer);
                }
                news
            }
            Some(&NEIGHBOUR_ADVERTISEMENT) => {
                let target = message.get(8..24).and_then(|b| <[u8; 16]>::try_from(b).ok());
                target.is_some_and(|target| self.learn(IpAddr::V6(target.into()), source_mac))
            }
            _ => false,
        }
    }

    /// A router advertisement (RFC 4861, 4.2) with the prefix to make addresses of, the MTU and the name server (RFC 8106, 5.1).
    fn advertise_router(&mut self) {
        const FOREVER: [u8; 4] = [0xff; 4];
        // A router that leads nowhere is none to go by (RFC 4861, 4.2), as with DHCP.
        let lifetime = if self.plan.restrict { 0 } else { ROUTER_LIFETIME }.to_be_bytes();
        let mut message =
            vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0, lifetime[0], lifetime[1], 0, 0, 0, 0, 0, 0, 0, 0];
        self.push_link_layer_option(&mut message, 1);
        // On-link and autonomous: hosts choose their addresses in it (RFC 4861, 4.6.2).
        message.extend_from_slice(&[3, 4, 64, 0xc0]);
        message.extend_from_slice(&FOREVER);
        message.extend_from_slice(&FOREVER);
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&PREFIX6.octets());
        message.extend_from_slice(&[5, 1, 0, 0]);
        message.extend_from_slice(&u32::from(self.plan.mtu).to_be_bytes());
        if !self.plan.restrict {
            message.extend_from_slice(&[25, 3, 0, 0]);
            message.extend_from_slice(&u32::from(ROUTER_LIFETIME).to_be_bytes());
            message.extend_from_slice(&DNS6.octets());
        }
        self.send_icmp6(LINK_LOCAL, ALL_NODES, message);
        self.next_advertisement = self.now + ADVERTISEMENT_INTERVAL;
    }

    /// When [`Link::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.plan.ipv6 && self.last.is_some()).then_some(self.next_advertisement)
    }

    /// Speaks unasked when it is time. Not before the guest has spoken: it may still be far from listening.
    pub(super) fn tick(&mut self) {
        if self.deadline().is_some_and(|due| due <= self.now) {
            self.advertise_router();
        }
    }

    /// Tells the guest that `packet`, which it sent, went nowhere: destination unreachable (RFC 792; RFC 4443, 3.1).
    pub(super) fn unreachable(&mut self, ip: &Ip, packet: &[u8], why: Unreachable) {
        let quoted = |most: usize| packet.get(..ip.len.min(most)).unwrap_or(packet);
        match (ip.source, ip.destination) {
            (IpAddr::V4(source), IpAddr::V4(_)) => {
                // Header and 8 bytes at least; the whole shall not exceed 576 (RFC 1812, 4.3.2.3).
                let mut message = vec![3, why.code4(), 0, 0, 0, 0, 0, 0];
                message.extend_from_slice(quoted(548));
                let sum = !smoltcp::wire::checksum::data(&message);
                put16(&mut message, 2, sum);
                self.send_ip(self.plan.router.into(), source.into(), packet::ICMP, &message);
            }
            (IpAddr::V6(source), IpAddr::V6(_)) if !source.is_unspecified() => {
                let mut message = vec![1, why.code6(), 0, 0, 0, 0, 0, 0];
                message.extend_from_slice(quoted(1232));
                let from = if source.is_unicast_link_local() { LINK_LOCAL } else { super::plan::ROUTER6 };
                self.send_icmp6(from, source, message);
            }
            _ => {}
        }
    }

    /// Forgets what waits for the guest, which has been reset.
    pub(super) fn reset(&mut self, guest: Offloads) {
        self.guest = guest;
        self.frames.clear();
    }
}

/// Why a packet went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    fn code4(self) -> u8 {
        match self {
            Unreachable::Network => 0,
            Unreachable::Host => 1,
            Unreachable::Port => 3,
            Unreachable::Prohibited => 13,
        }
    }

    fn code6(self) -> u8 {
        match self {
            Unreachable::Network => 0,
            Unreachable::Prohibited => 1,
            Unreachable::Host => 3,
            Unreachable::Port => 4,
        }
    }

    /// What the host's error about a send or a connect means, if the guest is to hear of it this way.
    pub(super) fn of(error: rustix::io::Errno) -> Option<Self> {
        use rustix::io::Errno;
        match error {
            Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => {
                Some(Unreachable::Network)
            }
            Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Unreachable::Host),
            Errno::ACCESS | Errno::PERM => Some(Unreachable::Prohibited),
            _ => None,
        }
    }
}

/// The ports of a TCP or UDP segment.
pub(super) fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    Some((be16(segment, 0)?, be16(segment, 2)?))
}
