//! Frames that no honest guest sends.

use proptest::prelude::*;

use super::udp::fragments;
use super::*;

/// A TCP segment of the guest's with whatever in it.
pub(super) struct Tcp<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) from: u16,
    pub(super) to: u16,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) urgent: u16,
    pub(super) options: &'a [u8],
}

impl Default for Tcp<'_> {
    fn default() -> Self {
        Tcp {
            source: IpAddr::from(GUEST),
            destination: IpAddr::from(ROUTER),
            from: 1234,
            to: 9,
            seq: 7,
            ack: 0,
            flags: SYN,
            window: 0xffff,
            urgent: 0,
            options: &[],
        }
    }
}

impl Tcp<'_> {
    fn segment(&self, payload: &[u8]) -> Vec<u8> {
        let mut segment = [self.from.to_be_bytes(), self.to.to_be_bytes()].concat();
        segment.extend_from_slice(&self.seq.to_be_bytes());
        segment.extend_from_slice(&self.ack.to_be_bytes());
        segment.push(u8::try_from((20 + self.options.len()) / 4).unwrap() << 4);
        segment.push(self.flags);
        segment.extend_from_slice(&self.window.to_be_bytes());
        segment.extend_from_slice(&[0, 0]);
        segment.extend_from_slice(&self.urgent.to_be_bytes());
        segment.extend_from_slice(self.options);
        segment.extend_from_slice(payload);
        let sum = packet::transport_checksum(self.source, self.destination, TCP, &segment);
        packet::put16(&mut segment, 16, sum);
        segment
    }

    pub(super) fn frame(&self, payload: &[u8]) -> Vec<u8> {
        frame(self.source, self.destination, TCP, &self.segment(payload))
    }
}

const SYN: u8 = 2;

/// A frame with one packet of the guest's.
fn frame(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let ethertype = if source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    let packet = ip_packet(source, destination, protocol, payload, None).unwrap();
    [&ROUTER_MAC[..], &MAC, &ethertype, &packet].concat()
}

fn tcp_frame(port: u16, source: u16, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    Tcp { to: port, from: source, flags, urgent: 0xffff, options, ..Tcp::default() }.frame(payload)
}

fn listener() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A guest and a server that only a guestfwd reaches, at port 9 of the router.
fn forwarded(options: &str) -> (Guest, std::net::TcpListener) {
    let (listener, port) = listener();
    let options = format!("{options}guestfwd=tcp:10.0.2.100:9-tcp:127.0.0.1:{port}");
    (Guest::new(&options), listener)
}

#[test]
fn a_syn_flood_stays_bounded() {
    let (mut guest, _listener) = forwarded("restrict=on,");
    let destination = IpAddr::from([10, 0, 2, 100]);
    for from in 1..3000 {
        guest.send(&Tcp { destination, from, ..Tcp::default() }.frame(&[]));
    }
    guest.net.service(Instant::now()).unwrap();
    assert!(guest.net.connections() <= 1024);
}

#[test]
fn a_syn_flood_to_a_command_starts_a_bounded_number_of_them() {
    let mut guest = Guest::new("guestfwd=tcp:10.0.2.100:9-cmd:exec cat");
    let destination = IpAddr::from([10, 0, 2, 100]);
    for from in 1..500 {
        guest.send(&Tcp { destination, from, ..Tcp::default() }.frame(&[]));
    }
    assert!((1..=128).contains(&guest.net.connections()));
}

#[test]
fn a_connection_is_made_in_the_midst_of_a_syn_flood() {
    let (mut guest, _listener) = forwarded("");
    // Loopback servers of their own, so that it is not their queue of clients that is full.
    let (other, port) = listener();
    let destination = IpAddr::from([10, 0, 2, 100]);
    for from in 1..3000 {
        guest.send(&Tcp { destination, from, ..Tcp::default() }.frame(&[]));
    }
    let handle = guest.connect(&format!("10.0.2.2:{port}"));
    guest.until(|guest| guest.socket(handle).may_send().then_some(()));
    other.accept().unwrap();
}

#[test]
fn those_who_cannot_be_answered_get_no_connection() {
    let mut guest = Guest::new("");
    let (listener, to) = listener();
    listener.set_nonblocking(true).unwrap();
    let sources =
        ["10.0.2.2", "10.0.2.3", "127.0.0.1", "0.0.0.0", "255.255.255.255", "10.0.2.255", "224.0.0.1"];
    for source in sources.map(|source| source.parse().unwrap()) {
        guest.send(&Tcp { source, to, ..Tcp::default() }.frame(&[]));
    }
    let destination = "fec0::2".parse().unwrap();
    for source in
        ["::", "::1", "ff02::1", "fec0::2", "::ffff:127.0.0.1"].map(|source| source.parse().unwrap())
    {
        guest.send(&Tcp { source, destination, to, ..Tcp::default() }.frame(&[]));
    }
    guest.net.service(Instant::now()).unwrap();
    assert_eq!(guest.net.connections(), 0);
    assert!(listener.accept().is_err());
}

#[test]
fn another_source_than_the_guests_own_reaches_no_more_than_that() {
    let mut guest = Guest::new("restrict=on");
    let (listener, to) = listener();
    listener.set_nonblocking(true).unwrap();
    let source = "192.0.2.9".parse().unwrap();
    guest.send(&Tcp { source, to, ..Tcp::default() }.frame(&[]));
    guest.net.service(Instant::now()).unwrap();
    assert_eq!(guest.net.connections(), 0);
    assert!(listener.accept().is_err());
}

#[test]
fn nobody_is_connected_to_everybody() {
    let mut guest = Guest::new("");
    for destination in ["255.255.255.255", "10.0.2.255", "224.0.0.1", "239.1.2.3"] {
        let destination = destination.parse().unwrap();
        guest.send(&Tcp { destination, to: 80, ..Tcp::default() }.frame(&[]));
    }
    let source = "fec0::15".parse().unwrap();
    guest.send(&Tcp { source, destination: "ff02::1".parse().unwrap(), to: 80, ..Tcp::default() }.frame(&[]));
    assert_eq!(guest.net.connections(), 0);
}

/// Addresses that a host takes for itself, or hands to somebody who must not be reached this way.
const FORBIDDEN4: [&str; 5] = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "0.0.0.1", "10.0.2.77"];
const FORBIDDEN6: [&str; 6] = ["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "::ffff:10.0.2.2", "fec0::77"];

/// Packets of every protocol to `destination`, each whole and in pieces.
fn probes(destination: &str, port: u16) -> Vec<Vec<u8>> {
    let destination: IpAddr = destination.parse().unwrap();
    let v6 = destination.is_ipv6();
    let source: IpAddr = if v6 { "fec0::15".parse().unwrap() } else { IpAddr::from(GUEST) };
    let mut udp =
        packet::udp_segment(SocketAddr::new(source, 7), SocketAddr::new(destination, port), b"probe")
            .unwrap();
    let sum = packet::transport_checksum(source, destination, UDP, &udp);
    packet::put16(&mut udp, 6, sum);
    let mut echo = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0, 1, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9];
    let icmp = if v6 { packet::ICMPV6 } else { packet::ICMP };
    let sum = if v6 {
        packet::transport_checksum(source, destination, icmp, &echo)
    } else {
        !smoltcp::wire::checksum::data(&echo)
    };
    packet::put16(&mut echo, 2, sum);
    let tcp = Tcp { source, destination, to: port, ..Tcp::default() }.segment(&[0; 8]);
    let mut frames = Vec::new();
    for (protocol, payload) in [(TCP, tcp), (UDP, udp), (icmp, echo)] {
        frames.push(frame(source, destination, protocol, &payload));
        let (one, two) = payload.split_at(8);
        let ethertype = if v6 { [0x86, 0xdd] } else { [8, 0] };
        for (offset, more, part) in [(0, true, one), (8, false, two)] {
            let fragment = packet::Fragment { id: u32::from(protocol), offset, more };
            let packet = ip_packet(source, destination, protocol, part, Some(fragment)).unwrap();
            frames.push([&ROUTER_MAC[..], &MAC, &ethertype, &packet].concat());
        }
    }
    frames
}

#[test]
fn the_hosts_own_addresses_are_reached_by_no_name_but_the_routers() {
    let mut guest = Guest::new("");
    let (tcp, port) = listener();
    tcp.set_nonblocking(true).unwrap();
    let udp = std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap();
    udp.set_nonblocking(true).unwrap();
    for frame in FORBIDDEN4.iter().chain(&FORBIDDEN6).flat_map(|address| probes(address, port)) {
        guest.send(&frame);
    }
    guest.idle();
    assert_eq!((guest.net.connections(), guest.net.udp.len()), (0, 0));
    assert!(tcp.accept().is_err() && udp.recv_from(&mut [0; 8]).is_err());
}

#[test]
fn under_restrict_no_packet_opens_a_socket() {
    let mut guest = Guest::new("restrict=on");
    let others = [
        "10.0.2.2",
        "10.0.2.3",
        "192.0.2.1",
        "169.254.169.254",
        "fec0::2",
        "fec0::3",
        "fe80::2",
        "2001:db8::1",
    ];
    for frame in FORBIDDEN4.iter().chain(&FORBIDDEN6).chain(&others).flat_map(|address| probes(address, 53)) {
        guest.send(&frame);
    }
    guest.idle();
    assert_eq!((guest.net.connections(), guest.net.udp.len()), (0, 0));
}

#[test]
fn a_host_that_cannot_be_reached_is_reported_by_icmp() {
    let mut guest = Guest::new("");
    let destination = "10.0.2.77".parse().unwrap();
    guest.send(&Tcp { destination, to: 80, ..Tcp::default() }.frame(&[]));
    assert_eq!(guest.icmp(3)[35], 1);
}

#[test]
fn a_wrong_tcp_checksum_is_not_let_through() {
    let mut guest = Guest::new("");
    let (_listener, to) = listener();
    let mut frame = Tcp { to, ..Tcp::default() }.frame(&[]);
    frame[50] ^= 1;
    guest.send(&frame);
    assert_eq!(guest.net.connections(), 0);
}

#[test]
fn a_wrong_ip_checksum_is_not_let_through() {
    let mut guest = Guest::new("");
    let (_listener, to) = listener();
    let mut frame = Tcp { to, ..Tcp::default() }.frame(&[]);
    frame[24] ^= 1;
    guest.send(&frame);
    assert_eq!(guest.net.connections(), 0);
}

#[test]
fn frames_cut_off_anywhere_are_harmless() {
    let mut guest = Guest::new("restrict=on");
    for seed in seeds() {
        for len in 0..seed.len() {
            guest.send(&seed[..len]);
        }
    }
    guest.idle();
    guest.inbox.clear();
    // And goes on: who has 10.0.2.2?
    guest.send(
        &[&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &GUEST, &[0; 6], &ROUTER].concat(),
    );
    guest.until(|guest| guest.inbox.iter().any(|frame| frame[12..14] == [8, 6]).then_some(()));
}

/// An echo request to the router behind `count` IPv6 headers of `kind`, each 8 bytes long.
fn behind_extensions(kind: u8, count: usize) -> Vec<u8> {
    let (source, destination) = ("fec0::15".parse().unwrap(), "fec0::2".parse().unwrap());
    let mut echo = vec![128, 0, 0, 0, 0, 1, 0, 1];
    let sum = packet::transport_checksum(source, destination, packet::ICMPV6, &echo);
    packet::put16(&mut echo, 2, sum);
    let mut payload = Vec::new();
    for left in (0..count).rev() {
        // Six bytes of padding: PadN (RFC 8200, 4.2).
        payload.extend_from_slice(&[if left == 0 { packet::ICMPV6 } else { kind }, 0, 1, 4, 0, 0, 0, 0]);
    }
    payload.extend_from_slice(&echo);
    frame(source, destination, kind, &payload)
}

fn echo_replies(guest: &Guest) -> usize {
    guest
        .inbox
        .iter()
        .filter(|frame| frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 129)
        .count()
}

#[test]
fn what_is_behind_ipv6_extension_headers_is_found() {
    let mut guest = Guest::new("");
    // Hop-by-hop options, routing, destination options.
    for kind in [0, 43, 60] {
        guest.send(&behind_extensions(kind, 1));
    }
    guest.until(|guest| (echo_replies(guest) == 3).then_some(()));
}

#[test]
fn more_ipv6_extension_headers_than_sense_are_thrown_away() {
    let mut guest = Guest::new("");
    guest.send(&behind_extensions(60, 100));
    guest.idle();
    assert_eq!(echo_replies(&guest), 0);
}

#[test]
fn an_answer_of_dhcp_from_the_guest_is_no_question() {
    let mut guest = Guest::new("");
    for kind in [2, 5, 6] {
        let mut forged = vec![0; 240];
        forged[..4].copy_from_slice(&[2, 1, 6, 0]);
        forged[16..20].copy_from_slice(&[10, 0, 2, 99]);
        forged[28..34].copy_from_slice(&MAC);
        forged[236..].copy_from_slice(&[99, 130, 83, 99]);
        forged.extend_from_slice(&[53, 1, kind, 255]);
        guest.datagram(67, ROUTER, 67, &forged);
        guest.datagram(67, [255; 4], 67, &forged);
    }
    guest.idle();
    assert!(guest.inbox.iter().all(|frame| parse_udp(frame).is_none()));
    assert_eq!(guest.net.link.first_guest, None);
}

#[test]
fn overlapping_fragments_are_thrown_away() {
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new("");
    let frame = datagram(5000, ROUTER, port, &[1; 3000]);
    let mut parts = fragments(&frame, 1480);
    let overlap = fragments(&frame, 1472).remove(1);
    parts.insert(1, overlap);
    for part in parts {
        guest.send(&part);
    }
    assert!(server.recv_from(&mut [0; 4000]).is_err());
}

#[test]
fn a_fragment_beyond_the_longest_packet_is_thrown_away() {
    let mut guest = Guest::new("");
    let fragment = packet::Fragment { id: 1, offset: 65528, more: false };
    let ip = ip_packet(IpAddr::from(GUEST), IpAddr::from(ROUTER), UDP, &[0; 64], Some(fragment)).unwrap();
    guest.send(&[&ROUTER_MAC[..], &MAC, &[8, 0], &ip].concat());
    guest.idle();
    assert!(guest.inbox.is_empty());
}

#[test]
fn an_urgent_pointer_beyond_the_data_is_harmless() {
    let mut guest = Guest::new("");
    let (_listener, port) = listener();
    guest.send(&tcp_frame(port, 1234, 2, &[], &[]));
    guest.idle();
    guest.send(&tcp_frame(port, 1234, 0x38, &[], b"urgent"));
    guest.datagram(5353, [10, 0, 2, 77], 53, b"x");
    assert_eq!(guest.icmp(3)[35], 1);
}

#[test]
fn tcp_options_that_do_not_fit_are_harmless() {
    let mut guest = Guest::new("");
    guest.net.set_guest_offloads(Offloads { checksum: true, tso4: true, tso6: true });
    let (_listener, port) = listener();
    guest.send(&tcp_frame(port, 1234, 2, &[2, 40, 0, 0], &[]));
    guest.send(&tcp_frame(port, 1235, 2, &[1, 1, 1, 2], &[]));
    guest.send(&tcp_frame(port, 1236, 2, &[8, 0, 0, 0], &[]));
    guest.idle();
}

#[test]
fn a_wrong_checksum_is_not_let_through() {
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let mut guest = Guest::new("");
    let mut frame = datagram(5000, ROUTER, server.local_addr().unwrap().port(), b"x");
    frame[42] ^= 0xff;
    guest.send(&frame);
    assert!(server.recv_from(&mut [0; 8]).is_err());
}

#[test]
fn a_frame_longer_than_any_packet_is_lost() {
    let mut guest = Guest::new("");
    guest.send(&vec![0xff; 70000]);
    guest.step();
    assert!(guest.inbox.is_empty());
}

#[test]
fn a_guest_without_room_gets_bounded_answers() {
    let mut guest = Guest::new("");
    for _ in 0..100_000 {
        guest.datagram(5353, [10, 0, 2, 77], 53, b"x");
    }
    let mut ring = Ring::new(usize::MAX);
    guest.net.receive(&mut ring).unwrap();
    assert!(ring.with_info().len() <= 1024);
}

/// A good frame of each kind for the fuzzer to spoil.
fn seeds() -> Vec<Vec<u8>> {
    let udp = datagram(5353, [10, 0, 2, 77], 53, b"0123456789abc");
    let mut seeds = fragments(&datagram(5000, [10, 0, 2, 77], 7, &[1; 100]), 40);
    seeds.push(udp);
    seeds.push(tcp_frame(1, 1234, 2, &[2, 4, 5, 180], &[]));
    seeds.push(
        [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &GUEST, &[0; 6], &ROUTER].concat(),
    );
    let mut solicit = vec![0x33, 0x33, 0, 0, 0, 2];
    solicit.extend_from_slice(&MAC);
    solicit.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 0, 255]);
    solicit.extend_from_slice(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    solicit.extend_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    solicit.extend_from_slice(&[58, 0, 1, 4, 0, 0, 0, 0, 133, 0, 0, 0, 0, 0, 0, 0]);
    seeds.push(solicit);
    let mut discover = vec![0; 240];
    discover[..4].copy_from_slice(&[1, 1, 6, 0]);
    discover[28..34].copy_from_slice(&MAC);
    discover[236..].copy_from_slice(&[99, 130, 83, 99]);
    discover.extend_from_slice(&[53, 1, 1, 255]);
    seeds.push(datagram(68, ROUTER, 67, &discover));
    seeds
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_frame_brings_the_network_down(
        changes in prop::collection::vec((0usize..9, prop::collection::vec((any::<u16>(), any::<u8>()), 0..6), any::<u16>()), 1..60),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        // Nothing leaves, so that what the fuzzer makes up stays here.
        let mut guest = Guest::new("restrict=on");
        let seeds = seeds();
        guest.send(&noise);
        for (seed, bytes, cut) in changes {
            let mut frame = seeds[seed % seeds.len()].clone();
            for (at, value) in bytes {
                let at = usize::from(at) % frame.len();
                frame[at] = value;
            }
            if cut % 4 == 0 {
                frame.truncate(usize::from(cut) % frame.len());
            }
            let len = frame.len();
            let slices = [VolatileSlice::from(&mut frame[..])];
            // As if the guest had left the checksum to us, so that it does not stop everything.
            let info = FrameInfo { checksum_valid: cut % 8 != 1, ..FrameInfo::default() };
            guest.net.transmit(&TxFrame { slices: &slices, len, info });
        }
        guest.net.flush();
        guest.net.service(Instant::now()).unwrap();
        let mut ring = Ring::new(usize::MAX);
        guest.net.receive(&mut ring).unwrap();
        prop_assert!(guest.net.connections() <= 60);
    }
}
