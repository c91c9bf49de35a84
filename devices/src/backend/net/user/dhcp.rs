//! Gives the guest its address: DHCP (RFC 2131) and what was before it, BOOTP (RFC 951). No leases run out; every guest keeps what
//! it got as long as the network is there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::config::UserConfig;
use super::link::Link;
use super::packet::{Ip, UDP_HEADER};
use super::plan::Mac;

/// Ports (RFC 2131, 4.1).
pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Where in a message things lie (RFC 2131, 2).
const XID: std::ops::Range<usize> = 4..8;
const FLAGS: std::ops::Range<usize> = 10..12;
const CIADDR: usize = 12;
const YIADDR: usize = 16;
const SIADDR: usize = 20;
const GIADDR: std::ops::Range<usize> = 24..28;
const CHADDR: usize = 28;
const FILE: std::ops::Range<usize> = 108..236;
const COOKIE: std::ops::Range<usize> = 236..240;
const OPTIONS: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Message types (RFC 2132, 9.6).
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;
/// A day, as slirp says.
const LEASE: u32 = 86400;
/// Guests that have an address at a time; the one that asked first gives way to more.
const MAX_LEASES: usize = 16;
/// A BOOTP message is padded to this (RFC 1542, 2.1).
const SHORTEST: usize = 300;

/// Who has which address.
#[derive(Debug)]
pub(super) struct Dhcp {
    /// The address `index` after the first; `None` is free.
    leases: Vec<Option<Mac>>,
    oldest: usize,
    hostname: Option<String>,
    domainname: Option<String>,
    bootfile: Option<String>,
    tftp: bool,
}

/// What a client wants.
#[derive(Debug, Default)]
struct Wish {
    kind: Option<u8>,
    address: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Wish {
    /// Reads the options (RFC 2132, 2), whatever their order.
    fn parse(mut options: &[u8]) -> Self {
        let mut wish = Wish::default();
        while let Some((&code, rest)) = options.split_first() {
            match code {
                0 => options = rest,
                255 => break,
                _ => {
                    let Some((&len, rest)) = rest.split_first() else { break };
                    let Some((value, rest)) = rest.split_at_checked(usize::from(len)) else { break };
                    let address = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
                    match code {
                        50 => wish.address = address,
                        53 => wish.kind = value.first().copied(),
                        54 => wish.server = address,
                        _ => {}
                    }
                    options = rest;
                }
            }
        }
        wish
    }
}

impl Dhcp {
    pub(super) fn new(config: &UserConfig) -> Self {
        Dhcp {
            leases: vec![None; MAX_LEASES],
            oldest: 0,
            hostname: config.hostname.clone(),
            domainname: config.domainname.clone(),
            bootfile: config.bootfile.clone(),
            tftp: config.tftp.is_some(),
        }
    }

    /// Answers a message.
    pub(super) fn input(&mut self, link: &mut Link, ip: &Ip, source_mac: Mac, packet: &[u8]) {
        let Some(message) = ip.payload(packet).get(UDP_HEADER..) else { return };
        let Some((&[op, hardware, length, _], _)) = message.split_first_chunk::<4>() else { return };
        let chaddr = message.get(CHADDR..CHADDR + 6).and_then(|b| Mac::try_from(b).ok());
        // A request by Ethernet, for whoever sent it: who speaks for others could use up all addresses.
        let (1, 1, 6, Some(mac)) = (op, hardware, length, chaddr) else { return };
        if mac != source_mac || mac[0] & 1 != 0 {
            return;
        }
        let has_options = message.get(COOKIE) == Some(&MAGIC);
        let wish = if has_options {
            Wish::parse(message.get(OPTIONS..).unwrap_or_default())
        } else {
            Wish::default()
        };
        let ciaddr =
            message.get(CIADDR..CIADDR + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Ipv4Addr::from);
        let ciaddr = ciaddr.filter(|address| !address.is_unspecified());
        let router = link.plan.router;
        if wish.server.is_some_and(|server| server != router) {
            return;
        }
        let (kind, address) = match wish.kind {
            Some(DISCOVER) => (Some(OFFER), self.lease(link, mac, wish.address)),
            Some(REQUEST) => {
                let wanted = wish.address.or(ciaddr);
                let address = self.lease(link, mac, wanted);
                if address.is_some() && wanted.is_none_or(|wanted| Some(wanted) == address) {
                    (Some(ACK), address)
                } else {
                    (Some(NAK), None)
                }
            }
            Some(INFORM) => (Some(ACK), None),
            Some(RELEASE | DECLINE) => return self.release(mac),
            Some(_) => return,
            None => (None, self.lease(link, mac, None)),
        };
        if kind != Some(NAK) && wish.kind != Some(INFORM) && address.is_none() {
            return;
        }
        if let Some(address) = address {
            link.learn(IpAddr::V4(address), mac);
            if kind != Some(OFFER) {
                link.first_guest.get_or_insert(address);
            }
        }
        let reply = self.reply(link, message, kind, address, has_options);
        let to = ciaddr.filter(|_| kind == Some(ACK)).unwrap_or(Ipv4Addr::BROADCAST);
        let from = SocketAddr::new(IpAddr::V4(router), SERVER_PORT);
        link.send_udp(from, SocketAddr::new(IpAddr::V4(to), CLIENT_PORT), &reply);
    }

    /// The address of the guest with `mac`: the one it has, the one it wants, or the next.
    fn lease(&mut self, link: &Link, mac: Mac, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let plan = &link.plan;
        let address = |index: usize| {
            let offset = u32::try_from(index).ok()?;
            let address = Ipv4Addr::from_bits(plan.dhcp_start.to_bits().checked_add(offset)?);
            (plan.assignable(address) && !plan.is_ours(IpAddr::V4(address))).then_some(address)
        };
        let free = |lease: &Option<Mac>| lease.is_none();
        let wanted = wanted.and_then(|wanted| (0..MAX_LEASES).find(|index| address(*index) == Some(wanted)));
        let index = self
            .leases
            .iter()
            .position(|lease| *lease == Some(mac))
            .or(wanted.filter(|index| self.leases.get(*index).is_some_and(free)))
            .or_else(|| {
                (0..MAX_LEASES).find(|i| self.leases.get(*i).is_some_and(free) && address(*i).is_some())
            })
            .unwrap_or_else(|| {
                self.oldest = (self.oldest + 1) % MAX_LEASES;
                self.oldest
            });
        let given = address(index)?;
        *self.leases.get_mut(index)? = Some(mac);
        Some(given)
    }

    fn release(&mut self, mac: Mac) {
        if let Some(lease) = self.leases.iter_mut().find(|lease| **lease == Some(mac)) {
            *lease = None;
        }
    }

    fn reply(
        &self,
        link: &Link,
        request: &[u8],
        kind: Option<u8>,
        address: Option<Ipv4Addr>,
        has_options: bool,
    ) -> Vec<u8> {
        let plan = &link.plan;
        let mut reply = vec![0; OPTIONS];
        reply[..4].copy_from_slice(&[2, 1, 6, 0]);
        for range in [XID, FLAGS, CIADDR..CIADDR + 4, GIADDR, CHADDR..CHADDR + 16] {
            if let (Some(to), Some(from)) = (reply.get_mut(range.clone()), request.get(range)) {
                to.copy_from_slice(from);
            }
        }
        if let Some(address) = address {
            reply[YIADDR..YIADDR + 4].copy_from_slice(&address.octets());
        }
        reply[SIADDR..SIADDR + 4].copy_from_slice(&plan.router.octets());
        if let (Some(name), Some(room)) = (&self.bootfile, reply.get_mut(FILE)) {
            // Cut if need be; option 67 has the whole.
            let len = name.len().min(room.len() - 1);
            room[..len].copy_from_slice(&name.as_bytes()[..len]);
        }
        reply[COOKIE].copy_from_slice(&MAGIC);
        let mut option = |code: u8, value: &[u8]| {
            // What does not fit an option's length is left out.
            if let Ok(len) = u8::try_from(value.len()) {
                reply.extend_from_slice(&[code, len]);
                reply.extend_from_slice(value);
            }
        };
        if let Some(kind) = kind {
            option(53, &[kind]);
            option(54, &plan.router.octets());
        }
        if kind != Some(NAK) && (has_options || kind.is_some()) {
            option(1, &plan.net.mask().octets());
            // As slirp: no way out and no name server where nothing leaves.
            if !plan.restrict {
                option(3, &plan.router.octets());
                option(6, &plan.dns.octets());
            }
            if kind.is_some() && address.is_some() {
                option(51, &LEASE.to_be_bytes());
            }
            option(26, &plan.mtu.to_be_bytes());
            for (code, text) in [(12, &self.hostname), (15, &self.domainname), (67, &self.bootfile)] {
                if let Some(text) = text {
                    option(code, text.as_bytes());
                }
            }
            if self.tftp {
                option(66, plan.router.to_string().as_bytes());
            }
        }
        reply.push(255);
        reply.resize(reply.len().max(SHORTEST), 0);
        reply
    }
}
