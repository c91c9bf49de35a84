//! The network as a guest sees it: frames go in and come out, and smoltcp plays the guest's TCP. The servers are real ones on this
//! host's loopback.

mod forward;
mod hostile;
mod lan;
mod segments;
mod tcp;
mod udp;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use vm_memory::VolatileSlice;

use super::packet::{Ethernet, Ip};
use super::*;
use crate::backend::net::testing::Ring;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const ROUTER_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const ROUTER: [u8; 4] = [10, 0, 2, 2];
const DNS: [u8; 4] = [10, 0, 2, 3];
/// Longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// smoltcp's device on the guest's side.
#[derive(Default)]
struct Card {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Time) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: Time) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest with its network.
struct Guest {
    net: UserNet,
    /// What came that is not TCP's.
    inbox: Vec<Vec<u8>>,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    next_port: u16,
    /// What the network said about each frame.
    infos: Vec<FrameInfo>,
}

impl Guest {
    fn new(options: &str) -> Guest {
        let mut card = Card::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut card, Time::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(Ipv4Addr::from(GUEST).into(), 24)).unwrap();
            addresses.push("fec0::15/64".parse().unwrap()).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(ROUTER.into()).unwrap();
        Guest {
            net: UserNet::open(&options.parse().unwrap()).unwrap(),
            inbox: Vec::new(),
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            start: Instant::now(),
            next_port: 40000,
            infos: Vec::new(),
        }
    }

    /// Sends one frame.
    fn send(&mut self, frame: &[u8]) {
        let mut bytes = frame.to_vec();
        let len = bytes.len();
        let slices = [VolatileSlice::from(&mut bytes[..])];
        let frame = TxFrame { slices: &slices, len, info: FrameInfo::default() };
        assert_eq!(self.net.transmit(&frame), Transmit::Done);
    }

    /// Everything moves one step.
    fn step(&mut self) {
        self.net.service(Instant::now()).unwrap();
        self.net.flush();
        let mut ring = Ring::new(64);
        self.net.receive(&mut ring).unwrap();
        for (frame, info) in ring.take() {
            self.infos.push(info);
            let ethernet = Ethernet::parse(&frame).unwrap();
            let is_tcp = match ethernet.ethertype {
                packet::ETHERTYPE_IPV4 => frame[14 + 9] == TCP,
                packet::ETHERTYPE_IPV6 => frame[14 + 6] == TCP,
                _ => false,
            };
            if !is_tcp {
                self.inbox.push(frame.clone());
            }
            self.card.rx.push_back(frame);
        }
        let now = Time::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap());
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        for frame in std::mem::take(&mut self.card.tx) {
            self.send(&frame);
        }
        self.net.flush();
    }

    /// Goes on until `done` gives something.
    fn until<T>(&mut self, mut done: impl FnMut(&mut Guest) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.step();
            if let Some(result) = done(self) {
                return result;
            }
            assert!(start.elapsed() < PATIENCE, "it does not happen");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Goes on for a while in which nothing is expected.
    fn idle(&mut self) {
        for _ in 0..20 {
            self.step();
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// A socket of the guest's on its way to `peer`.
    fn connect(&mut self, peer: &str) -> SocketHandle {
        let peer: SocketAddr = peer.parse().unwrap();
        let handle = self.sockets.add(socket());
        self.next_port += 1;
        let socket = self.sockets.get_mut::<Socket>(handle);
        socket.connect(self.interface.context(), peer, self.next_port).unwrap();
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends a datagram from the guest.
    fn datagram(&mut self, from: u16, to: [u8; 4], port: u16, payload: &[u8]) {
        self.send(&datagram(from, to, port, payload));
    }

    /// Waits for a datagram to the guest's `port`: who sent it, and what.
    fn answer(&mut self, port: u16) -> (SocketAddr, Vec<u8>) {
        self.until(|guest| {
            let found =
                guest.inbox.iter().position(|frame| parse_udp(frame).is_some_and(|(_, to, _)| to == port))?;
            let (from, _, payload) = parse_udp(&guest.inbox.remove(found))?;
            Some((from, payload))
        })
    }

    /// Waits for an ICMP message of `kind`.
    fn icmp(&mut self, kind: u8) -> Vec<u8> {
        self.until(|guest| {
            let is_it = |frame: &Vec<u8>| {
                frame.len() > 34 && frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == kind
            };
            let found = guest.inbox.iter().position(is_it)?;
            Some(guest.inbox.remove(found))
        })
    }
}

fn socket() -> Socket<'static> {
    Socket::new(SocketBuffer::new(vec![0; 65536]), SocketBuffer::new(vec![0; 65536]))
}

fn datagram(from: u16, to: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MAC, ROUTER_MAC).ipv4(GUEST, to, 64).udp(from, port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn parse_udp(frame: &[u8]) -> Option<(SocketAddr, u16, Vec<u8>)> {
    let packet = frame.get(14..)?;
    let ip = if frame[12..14] == [8, 0] { Ip::parse4(packet)? } else { Ip::parse6(packet)? };
    let segment = ip.payload(packet);
    if ip.protocol != UDP || ip.fragment.is_some() {
        return None;
    }
    assert!(checksum_holds(&ip, segment), "a datagram's checksum is wrong");
    let (from, to) = ports(segment)?;
    Some((SocketAddr::new(ip.source, from), to, segment[8..].to_vec()))
}
