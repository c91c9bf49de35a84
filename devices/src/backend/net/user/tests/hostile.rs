//! Frames that no honest guest sends.

use proptest::prelude::*;

use super::udp::fragments;
use super::*;

fn tcp_frame(port: u16, source: u16, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = [&source.to_be_bytes()[..], &port.to_be_bytes(), &[0, 0, 0, 7, 0, 0, 0, 0]].concat();
    segment.push(u8::try_from((20 + options.len()) / 4).unwrap() << 4);
    segment.extend_from_slice(&[flags, 255, 255, 0, 0, 0xff, 0xff]);
    segment.extend_from_slice(options);
    segment.extend_from_slice(payload);
    let sum = packet::transport_checksum(IpAddr::from(GUEST), IpAddr::from(ROUTER), TCP, &segment);
    packet::put16(&mut segment, 16, sum);
    let ip = ip_packet(IpAddr::from(GUEST), IpAddr::from(ROUTER), TCP, &segment, None).unwrap();
    [&ROUTER_MAC[..], &MAC, &[8, 0], &ip].concat()
}

fn listener() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn a_syn_flood_stays_bounded() {
    let mut guest = Guest::new("restrict=on,guestfwd=tcp:10.0.2.2:9-tcp:127.0.0.1:1");
    let (_listener, port) = listener();
    guest.net.link.plan.forwards[0].1 = GuestTarget::Tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    for source in 1..3000 {
        guest.send(&tcp_frame(9, source, 2, &[], &[]));
    }
    guest.net.service(Instant::now()).unwrap();
    assert!(guest.net.connections() <= 1024);
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
    let mut ring = Ring { room: usize::MAX, ..Ring::default() };
    guest.net.receive(&mut ring).unwrap();
    assert!(ring.frames.len() <= 1024);
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
        let mut ring = Ring { room: usize::MAX, ..Ring::default() };
        guest.net.receive(&mut ring).unwrap();
        prop_assert!(guest.net.connections() <= 60);
    }
}
