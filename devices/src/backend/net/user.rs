//! A network of the guest's own behind a NAT, without privileges, helper programs or C libraries: what QEMU calls `user`. The guest
//! gets an address by DHCP, reaches through ordinary sockets of this process whatever the host reaches, and the host itself at the
//! router's address. It is no bridge: nobody outside sees the guest but through forwarded ports.
//!
//! The whole is one state machine on the card's thread: frames come in by [`NetBackend::transmit`], sockets' news by
//! [`NetBackend::service`], and what results goes out when [`NetBackend::receive`] finds room. Thousands of sockets wait behind one
//! descriptor.

mod config;
mod dhcp;
mod fragments;
mod icmp;
mod link;
mod packet;
mod plan;
mod tcp;
#[cfg(test)]
mod tests;
mod tftp;
mod udp;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::config::MTU;
pub use self::config::{ForwardError, GuestForward, GuestTarget, HostForward, Ipv4Net, Protocol, UserConfig};
use self::dhcp::Dhcp;
use self::fragments::Fragments;
use self::icmp::{Icmp, is_icmp};
use self::link::{Link, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, ROUTER_SOLICITATION, ports};
use self::packet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, ICMPV6, Ip, TCP, UDP, UDP_HEADER, be16,
    checksum_holds, ip_packet,
};
use self::plan::{Mac, Place, Plan};
use self::tcp::Tcp;
use self::tftp::Tftp;
use self::udp::{Resolvers, Udp};
use super::{ETHERNET_HEADER, FrameInfo, Interest, NetBackend, Offloads, RxRing, Transmit, TxFrame};
use crate::sys::Event;
use crate::sys::net::{Ready, Watch};
use crate::util::lock;

/// The longest frame: an IP packet of full length behind an Ethernet header with a tag.
const MAX_FRAME: usize = ETHERNET_HEADER + 4 + 65535;
/// Clients of a forwarded port that are taken at a time.
const ACCEPT_BATCH: usize = 64;
/// When to try again after the host could not give us a client's socket.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// How long a port that is being given up may take until it can be had again. The network does it at once, if it still runs.
const CLOSING: Duration = Duration::from_secs(2);

/// Why a user-mode network cannot be.
#[derive(Debug, thiserror::Error)]
pub enum UserNetError {
    /// An address that has to be in the network and is not.
    #[error("{key}={address} has to be an address in the network {net}")]
    Outside {
        /// Which.
        key: &'static str,
        /// The address.
        address: IpAddr,
        /// The network.
        net: Ipv4Net,
    },
    /// Router, name server and guest share an address.
    #[error(
        "host, dns and dhcpstart have to be three addresses, and two of them are the same (dhcpstart is {0})"
    )]
    Same(Ipv4Addr),
    /// A network that is too large or too small.
    #[error("net: a prefix of {0} bits is none of 8 to 29")]
    Prefix(u8),
    /// An MTU that IPv6 or IPv4 cannot have.
    #[error("mtu={0}: it can be {least} to {most}", least = MTU.start(), most = MTU.end())]
    Mtu(u16),
    /// A TFTP folder that cannot be read.
    #[error("tftp={path}: it has to be a folder")]
    Tftp {
        /// The folder.
        path: String,
        /// What the host says.
        source: io::Error,
    },
    /// A name that DHCP cannot carry.
    #[error("{key}: {length} bytes are too many; DHCP carries 255")]
    Name {
        /// Which.
        key: &'static str,
        /// Its length.
        length: usize,
    },
    /// A port of the host's that cannot be had.
    #[error("hostfwd={forward}: cannot listen on {} port {}", forward.host.ip(), forward.host.port())]
    Listen {
        /// The forwarding.
        forward: HostForward,
        /// What the host says; the port may be another program's.
        source: io::Error,
    },
    /// A forwarding that is there already.
    #[error("hostfwd={0}: this port is forwarded already")]
    Forwarded(HostForward),
    /// A forwarding that is to be removed and is not there.
    #[error("{protocol}:{host} is not forwarded")]
    NotForwarded {
        /// Its protocol.
        protocol: Protocol,
        /// Its address on the host.
        host: SocketAddr,
    },
    /// The host gives no descriptor.
    #[error("cannot set up the network's sockets")]
    Sockets(#[source] io::Error),
}

/// What a watched descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Control,
    Tcp,
    Udp,
    Icmp,
    Listener,
}

/// A key for [`Watch::add`] that [`watched`] takes apart.
fn watch_key(source: Source, index: usize) -> u64 {
    let kind = match source {
        Source::Control => 0,
        Source::Tcp => 1,
        Source::Udp => 2,
        Source::Icmp => 3,
        Source::Listener => 4,
    };
    (kind << 32) | (index as u64 & 0xffff_ffff)
}

fn watched(key: u64) -> (Source, usize) {
    let source = match key >> 32 {
        1 => Source::Tcp,
        2 => Source::Udp,
        3 => Source::Icmp,
        4 => Source::Listener,
        _ => Source::Control,
    };
    (source, usize::try_from(key & 0xffff_ffff).unwrap_or(usize::MAX))
}

/// Copies a frame into the guest's memory; `false` if there is no room.
fn deliver(ring: &mut dyn RxRing, bytes: &[u8], info: FrameInfo) -> bool {
    ring.put(bytes.len(), &mut |slices| {
        let mut rest = bytes;
        for slice in slices {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
        }
        rest.is_empty().then_some((bytes.len(), info))
    })
}

/// A socket that listens for a forwarding.
#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

fn listen(forward: &HostForward) -> Result<(Listening, HostForward), UserNetError> {
    let failed = |source| UserNetError::Listen { forward: *forward, source };
    let (socket, host) = match forward.protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(forward.host).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let host = listener.local_addr().map_err(failed)?;
            (Listening::Tcp(listener), host)
        }
        Protocol::Udp => {
            let socket = udp::bind(forward.host).map_err(failed)?;
            let host = socket.local_addr().map_err(failed)?;
            (Listening::Udp(socket), host)
        }
    };
    Ok((socket, HostForward { host, ..*forward }))
}

#[derive(Debug)]
enum Command {
    Add(Listening, HostForward),
    Remove(Protocol, SocketAddr),
}

#[derive(Debug, Default)]
struct Control {
    forwards: Vec<HostForward>,
    commands: Vec<Command>,
    /// Removed, and perhaps not closed yet.
    closing: Vec<(Protocol, SocketAddr)>,
}

/// Forwards ports of a network that runs, from any thread. Outlives the network, without effect then.
#[derive(Debug, Clone)]
pub struct UserNetHandle {
    control: Arc<Mutex<Control>>,
    /// [`Control::closing`] has become shorter.
    closed: Arc<Condvar>,
    event: Arc<Event>,
}

impl UserNetHandle {
    /// Forwards one more port, and says where the host listens: a port 0 becomes one that was free.
    ///
    /// # Errors
    /// The port is taken.
    pub fn add_hostfwd(&self, forward: &HostForward) -> Result<SocketAddr, UserNetError> {
        self.wait_for_closing(forward);
        let (socket, forward) = listen(forward)?;
        let mut control = lock(&self.control);
        let guest = |f: &HostForward| (f.protocol, f.guest, f.guest_port);
        // Two sockets for one of the guest's ports would leave open where its datagrams go.
        if forward.protocol == Protocol::Udp && control.forwards.iter().any(|f| guest(f) == guest(&forward)) {
            return Err(UserNetError::Forwarded(forward));
        }
        control.forwards.push(forward);
        control.commands.push(Command::Add(socket, forward));
        drop(control);
        self.event.signal();
        Ok(forward.host)
    }

    /// Forwards a port no longer. Connections that were made stay.
    ///
    /// # Errors
    /// It is not forwarded.
    pub fn remove_hostfwd(&self, protocol: Protocol, host: SocketAddr) -> Result<(), UserNetError> {
        let mut control = lock(&self.control);
        let at = control.forwards.iter().position(|f| f.protocol == protocol && f.host == host);
        let Some(at) = at else { return Err(UserNetError::NotForwarded { protocol, host }) };
        control.forwards.remove(at);
        control.commands.push(Command::Remove(protocol, host));
        control.closing.push((protocol, host));
        drop(control);
        self.event.signal();
        Ok(())
    }

    /// A port that has just been removed can be had again as soon as the network has closed it.
    fn wait_for_closing(&self, forward: &HostForward) {
        let is_closing = |control: &mut Control| control.closing.contains(&(forward.protocol, forward.host));
        let waited = self.closed.wait_timeout_while(lock(&self.control), CLOSING, is_closing);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn has_closed(&self, protocol: Protocol, host: SocketAddr) {
        lock(&self.control).closing.retain(|closing| *closing != (protocol, host));
        self.closed.notify_all();
    }

    /// What is forwarded.
    pub fn hostfwds(&self) -> Vec<HostForward> {
        lock(&self.control).forwards.clone()
    }
}

#[derive(Debug)]
struct Listener {
    forward: HostForward,
    kind: ListenerKind,
}

#[derive(Debug)]
enum ListenerKind {
    Tcp(TcpListener),
    /// The number that [`Udp`] knows it by.
    Udp(usize),
}

/// A user-mode network.
#[derive(Debug)]
pub struct UserNet {
    link: Link,
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    dhcp: Dhcp,
    tftp: Tftp,
    fragments: Fragments,
    resolvers: Resolvers,
    listeners: Vec<Option<Listener>>,
    retry: Option<Instant>,
    handle: UserNetHandle,
    /// The guest's frame, copied before it is looked at: the guest may change its own at any time.
    staging: Vec<u8>,
    news: Vec<Ready>,
}

impl UserNet {
    /// Makes a network and takes the host's ports that it forwards.
    ///
    /// # Errors
    /// Addresses do not fit together, or a port is taken.
    pub fn open(config: &UserConfig) -> Result<UserNet, UserNetError> {
        let plan = Plan::new(config)?;
        // A connection needs one descriptor.
        crate::sys::raise_descriptor_limit();
        if let Some(path) = &config.tftp {
            let error = |source| UserNetError::Tftp { path: path.display().to_string(), source };
            std::fs::read_dir(path).map_err(error)?;
        }
        let names = [
            ("hostname", &config.hostname),
            ("domainname", &config.domainname),
            ("bootfile", &config.bootfile),
        ];
        for (key, name) in names {
            let length = name.as_ref().map_or(0, String::len);
            if length > 255 {
                return Err(UserNetError::Name { key, length });
            }
        }
        let event = Arc::new(Event::new().map_err(UserNetError::Sockets)?);
        let watch = Watch::new().map_err(UserNetError::Sockets)?;
        watch.add(event.as_fd(), watch_key(Source::Control, 0)).map_err(UserNetError::Sockets)?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)
            .map_err(|error| UserNetError::Sockets(io::Error::other(error.to_string())))?;
        let link = Link::new(plan, watch, Instant::now());
        let tcp = Tcp::new(&link, u64::from_ne_bytes(seed));
        let handle = UserNetHandle { control: Arc::default(), closed: Arc::default(), event };
        for forward in &config.hostfwd {
            handle.add_hostfwd(forward)?;
        }
        let mut network = UserNet {
            link,
            tcp,
            udp: Udp::new(),
            icmp: Icmp::new(),
            dhcp: Dhcp::new(config),
            tftp: Tftp::new(config.tftp.clone()),
            fragments: Fragments::default(),
            resolvers: match config.resolvers.is_empty() {
                true => Resolvers::default(),
                false => Resolvers::fixed(config.resolvers.clone()),
            },
            listeners: Vec::new(),
            retry: None,
            handle,
            staging: vec![0; MAX_FRAME],
            news: Vec::new(),
        };
        network.obey();
        Ok(network)
    }

    /// For forwarding ports while the network runs.
    pub fn handle(&self) -> UserNetHandle {
        self.handle.clone()
    }

    /// How many connections there are, those being made included.
    pub fn connections(&self) -> usize {
        self.tcp.len()
    }

    /// Does what the handle was told.
    fn obey(&mut self) {
        let commands = std::mem::take(&mut lock(&self.handle.control).commands);
        for command in commands {
            match command {
                Command::Add(socket, forward) => self.add_listener(socket, forward),
                Command::Remove(protocol, host) => {
                    let is_it = |slot: &Option<Listener>| {
                        slot.as_ref()
                            .is_some_and(|l| l.forward.protocol == protocol && l.forward.host == host)
                    };
                    let slot = self.listeners.iter_mut().find(|slot| is_it(slot)).and_then(Option::take);
                    if let Some(Listener { kind: ListenerKind::Udp(index), .. }) = &slot {
                        self.udp.close(*index);
                    }
                    // Whoever waits wants the port.
                    drop(slot);
                    self.handle.has_closed(protocol, host);
                }
            }
        }
    }

    fn add_listener(&mut self, socket: Listening, forward: HostForward) {
        let index = self.listeners.iter().position(Option::is_none).unwrap_or(self.listeners.len());
        let kind = match socket {
            Listening::Tcp(listener) => {
                let watched = self.link.watch.add(&listener, watch_key(Source::Listener, index));
                watched.map(|()| ListenerKind::Tcp(listener))
            }
            Listening::Udp(socket) => {
                let guest = SocketAddr::new(self.link.forward_guest(forward.guest), forward.guest_port);
                self.udp.forward(&self.link, socket, guest).map(ListenerKind::Udp).map_err(Into::into)
            }
        };
        match kind {
            Ok(kind) => {
                if index >= self.listeners.len() {
                    self.listeners.push(None);
                }
                if let Some(slot) = self.listeners.get_mut(index) {
                    *slot = Some(Listener { forward, kind });
                }
                // Somebody may have come already.
                self.accept(index);
            }
            Err(error) => log::warn!("net user: hostfwd={forward} does not work: {error}"),
        }
    }

    /// Takes the clients that wait at a forwarded port.
    fn accept(&mut self, index: usize) {
        let Some(Listener { forward, kind: ListenerKind::Tcp(listener) }) =
            self.listeners.get(index).and_then(Option::as_ref)
        else {
            return;
        };
        let guest = SocketAddr::new(self.link.forward_guest(forward.guest), forward.guest_port);
        for _ in 0..ACCEPT_BATCH {
            match listener.accept() {
                Ok((stream, peer)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        self.tcp.accepted(&mut self.link, stream.into(), peer, guest);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    if let Some(more) = self.link.log.allow() {
                        log::warn!("net user: a client of {} has to wait: {error}{more}", forward.host);
                    }
                    break;
                }
            }
        }
        // Not all were taken, and no more news will come of those that wait.
        self.retry = Some(self.link.now + ACCEPT_RETRY);
    }

    /// Looks at a frame of `len` bytes in the staging buffer.
    fn frame(&mut self, len: usize, trusted: bool) {
        let mut staging = std::mem::take(&mut self.staging);
        if let Some(frame) = staging.get_mut(..len)
            && let Some(header) = Ethernet::parse(frame)
            && (header.destination == self.link.plan.mac() || header.destination[0] & 1 != 0)
            && header.source[0] & 1 == 0
        {
            match header.ethertype {
                ETHERTYPE_ARP => {
                    let sender = frame.get(28..32).and_then(|b| <[u8; 4]>::try_from(b).ok());
                    if self.link.arp(frame)
                        && let Some(sender) = sender
                    {
                        self.tcp.learned(&self.link, IpAddr::V4(sender.into()));
                    }
                }
                ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => {
                    let packet = frame.get_mut(ETHERNET_HEADER..).unwrap_or_default();
                    self.packet(header.ethertype, header.source, packet, trusted);
                }
                _ => {}
            }
        }
        self.staging = staging;
    }

    fn packet(&mut self, ethertype: u16, source: Mac, packet: &mut [u8], trusted: bool) {
        let parsed = match ethertype {
            ETHERTYPE_IPV4 => Ip::parse4(packet),
            _ if self.link.plan.ipv6 => Ip::parse6(packet),
            _ => None,
        };
        let Some(ip) = parsed else { return };
        if ip.is_plain() {
            return self.dispatch(&ip, source, packet, trusted);
        }
        let whole = if ip.fragment.is_some() {
            self.fragments.add(self.link.now, &ip, packet)
        } else {
            ip_packet(ip.source, ip.destination, ip.protocol, ip.payload(packet), None)
        };
        let Some(mut whole) = whole else { return };
        let again = if ethertype == ETHERTYPE_IPV4 { Ip::parse4(&whole) } else { Ip::parse6(&whole) };
        if let Some(again) = again
            && again.is_plain()
        {
            let trusted = trusted && ip.fragment.is_none();
            self.dispatch(&Ip { hop_limit: ip.hop_limit, ..again }, source, &mut whole, trusted);
        }
    }

    /// Hands a whole packet to whom it concerns.
    fn dispatch(&mut self, ip: &Ip, source: Mac, packet: &mut [u8], trusted: bool) {
        if !trusted && !checksum_holds(ip, ip.payload(packet)) {
            return;
        }
        let is_discovery = ip.protocol == ICMPV6
            && matches!(
                ip.payload(packet).first(),
                Some(&(ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT))
            );
        let news = if is_discovery {
            let message = ip.payload(packet).to_vec();
            let news = self.link.neighbour_discovery(ip, source, &message);
            // What was advertised may be another address than the packet's own.
            let target = message.get(8..24).and_then(|b| <[u8; 16]>::try_from(b).ok());
            if let (true, Some(target)) = (news, target) {
                self.tcp.learned(&self.link, IpAddr::V6(target.into()));
            }
            news
        } else {
            self.link.learn(ip.source, source)
        };
        if news {
            self.tcp.learned(&self.link, ip.source);
        }
        match ip.protocol {
            TCP => self.tcp.input(&mut self.link, &mut self.resolvers, ip, packet),
            UDP => self.datagram(ip, source, packet),
            _ if is_icmp(ip) && !is_discovery => self.icmp.input(&mut self.link, ip, packet),
            _ => {}
        }
    }

    /// Aims the forwardings of datagrams that name no guest at the one that is known now. (Connections look for themselves.)
    fn aim_forwards(&mut self) {
        for listener in self.listeners.iter().flatten() {
            if let Listener {
                forward: HostForward { guest: None, guest_port, .. },
                kind: ListenerKind::Udp(index),
            } = listener
            {
                self.udp.aim(*index, SocketAddr::new(self.link.forward_guest(None), *guest_port));
            }
        }
    }

    fn datagram(&mut self, ip: &Ip, source: Mac, packet: &[u8]) {
        let segment = ip.payload(packet);
        let (Some((from, to)), Some(len)) = (ports(segment), be16(segment, 4)) else { return };
        let local = self.link.plan.place(ip.destination) == Place::Router;
        let everyone = matches!(ip.destination, IpAddr::V4(v4)
            if v4.is_broadcast() || v4 == self.link.plan.net.broadcast());
        match to {
            dhcp::SERVER_PORT if ip.source.is_ipv4() && (local || everyone) => {
                let known = self.link.first_guest;
                self.dhcp.input(&mut self.link, ip, source, packet);
                if self.link.first_guest != known {
                    self.aim_forwards();
                }
            }
            tftp::PORT if local && self.tftp.is_on() => {
                let message = segment.get(UDP_HEADER..usize::from(len)).unwrap_or_default();
                let guest = SocketAddr::new(ip.source, from);
                self.tftp.input(&mut self.link, guest, SocketAddr::new(ip.destination, to), message);
            }
            _ => self.udp.input(&mut self.link, &mut self.resolvers, ip, packet),
        }
    }
}

impl NetBackend for UserNet {
    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true }
    }

    fn set_guest_offloads(&mut self, guest: Offloads) {
        self.link.reset(guest);
        self.tcp.reset(guest);
    }

    fn descriptors(&self, _: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        vec![(self.link.watch.as_fd(), Interest::Read)]
    }

    fn deadline(&self) -> Option<Instant> {
        let parts = [
            self.tcp.deadline(self.link.now),
            self.udp.deadline(),
            self.icmp.deadline(),
            self.link.deadline(),
            self.retry,
        ];
        parts.into_iter().flatten().min()
    }

    fn service(&mut self, now: Instant) -> io::Result<()> {
        self.link.now = now;
        let mut news = std::mem::take(&mut self.news);
        loop {
            news.clear();
            let all = self.link.watch.take(&mut news)?;
            for ready in &news {
                match watched(ready.key) {
                    // Only then is there something to take; waiting for more would be for ever.
                    (Source::Control, _) if ready.readable => {
                        self.handle.event.wait()?;
                        self.obey();
                    }
                    (Source::Tcp, index) => self.tcp.event(&mut self.link, index, ready),
                    (Source::Udp, index) if ready.readable => self.udp.event(index),
                    (Source::Icmp, index) if ready.readable => self.icmp.event(index),
                    (Source::Listener, index) => self.accept(index),
                    _ => {}
                }
            }
            if all {
                break;
            }
        }
        self.news = news;
        if self.retry.is_some_and(|due| due <= now) {
            self.retry = None;
            for index in 0..self.listeners.len() {
                self.accept(index);
            }
        }
        self.tcp.tick(&mut self.link);
        self.udp.tick(now);
        self.icmp.tick(now);
        self.link.tick();
        Ok(())
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        self.link.now = self.link.now.max(Instant::now());
        let mut len = 0;
        for slice in frame.slices {
            let Some(room) = self.staging.get_mut(len..).filter(|room| room.len() >= slice.len()) else {
                // Longer than any frame: lost, as on a wire.
                return Transmit::Done;
            };
            len += slice.copy_to(room);
        }
        // What has not been computed cannot be wrong.
        let trusted = frame.info.checksum.is_some() || frame.info.checksum_valid;
        self.frame(len.min(frame.len), trusted);
        Transmit::Done
    }

    fn flush(&mut self) {
        self.tcp.flush();
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        self.link.now = self.link.now.max(Instant::now());
        loop {
            while let Some(frame) = self.link.frames.front() {
                if !deliver(ring, &frame.bytes, frame.info) {
                    return Ok(());
                }
                self.link.frames.pop();
            }
            self.udp.pump(&mut self.link, &mut self.resolvers);
            self.icmp.pump(&mut self.link);
            if self.link.frames.front().is_some() {
                continue;
            }
            if !self.tcp.receive(&mut self.link, ring) || self.link.frames.front().is_none() {
                return Ok(());
            }
        }
    }
}
