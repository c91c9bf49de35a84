//! Connections of the guest's to servers on this host.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use smoltcp::socket::tcp::State;

use super::*;

fn server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = format!("10.0.2.2:{}", listener.local_addr().unwrap().port());
    (listener, peer)
}

/// A connection of the guest's and the server's end of it.
fn connected(guest: &mut Guest) -> (SocketHandle, TcpStream) {
    let (listener, peer) = server();
    let handle = guest.connect(&peer);
    guest.until(|guest| guest.socket(handle).may_send().then_some(()));
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (handle, stream)
}

#[test]
fn a_connection_carries_bytes_both_ways() {
    let mut guest = Guest::new("");
    let (handle, mut stream) = connected(&mut guest);
    guest.socket(handle).send_slice(b"to the host").unwrap();
    guest.step();
    let mut buffer = [0; 11];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"to the host");
    stream.write_all(b"to the guest").unwrap();
    guest.until(|guest| (guest.socket(handle).recv_queue() == 12).then_some(()));
    assert_eq!(guest.socket(handle).peek(12).unwrap(), b"to the guest");
}

#[test]
fn a_connection_to_a_closed_port_is_reset() {
    let mut guest = Guest::new("");
    let (listener, peer) = server();
    drop(listener);
    let handle = guest.connect(&peer);
    guest.until(|guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    assert_eq!(guest.net.connections(), 0);
}

#[test]
fn the_guest_hears_nothing_before_the_host_has_connected() {
    let mut guest = Guest::new("");
    // Nobody answers at a documentation address, if it can be sent to at all.
    let handle = guest.connect("192.0.2.1:80");
    guest.idle();
    assert_ne!(guest.socket(handle).state(), State::Established);
}

#[test]
fn the_guest_can_send_on_after_the_host_has_ended() {
    let mut guest = Guest::new("");
    let (handle, mut stream) = connected(&mut guest);
    stream.shutdown(Shutdown::Write).unwrap();
    guest.until(|guest| (guest.socket(handle).state() == State::CloseWait).then_some(()));
    guest.socket(handle).send_slice(b"still here").unwrap();
    guest.socket(handle).close();
    guest.until(|guest| (guest.net.connections() == 0).then_some(()));
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
}

#[test]
fn the_host_can_send_on_after_the_guest_has_ended() {
    let mut guest = Guest::new("");
    let (handle, mut stream) = connected(&mut guest);
    guest.socket(handle).close();
    guest.until(|guest| (guest.socket(handle).state() == State::FinWait2).then_some(()));
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    stream.write_all(b"still here").unwrap();
    drop(stream);
    guest.until(|guest| (guest.socket(handle).recv_queue() == 10).then_some(()));
    guest.until(|guest| (guest.net.connections() == 0).then_some(()));
}

#[test]
fn a_reset_of_the_guests_reaches_the_host() {
    let mut guest = Guest::new("");
    let (handle, mut stream) = connected(&mut guest);
    guest.socket(handle).abort();
    guest.until(|guest| (guest.net.connections() == 0).then_some(()));
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_of_the_hosts_reaches_the_guest() {
    let mut guest = Guest::new("");
    let (handle, stream) = connected(&mut guest);
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until(|guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    assert_eq!(guest.net.connections(), 0);
}

#[test]
fn a_host_that_does_not_read_slows_the_guest_down_and_loses_nothing() {
    let mut guest = Guest::new("");
    let (handle, mut stream) = connected(&mut guest);
    // The host holds little, so that little is enough to fill it.
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 65536).unwrap();
    const TOTAL: usize = 10 << 20;
    let mut sent = 0;
    let mut stuck = 0;
    // Until nothing moves any more.
    guest.until(|guest| {
        let chunk = [u8::try_from(sent / 65536 % 251).unwrap(); 65536];
        let room = (65536 - sent % 65536).min(TOTAL - sent);
        let now = guest.socket(handle).send_slice(&chunk[..room]).unwrap();
        sent += now;
        stuck = if now == 0 { stuck + 1 } else { 0 };
        (stuck == 50).then_some(())
    });
    assert!(sent < TOTAL);
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    guest.until(|guest| {
        let chunk = [u8::try_from(sent / 65536 % 251).unwrap(); 65536];
        let room = (65536 - sent % 65536).min(TOTAL - sent);
        sent += guest.socket(handle).send_slice(&chunk[..room]).unwrap();
        (sent == TOTAL).then(|| guest.socket(handle).close())
    });
    guest.until(|_| reader.is_finished().then_some(()));
    let received = reader.join().unwrap();
    assert_eq!(received.len(), TOTAL);
    assert!(received.chunks(65536).enumerate().all(|(i, c)| c.iter().all(|b| usize::from(*b) == i % 251)));
}

#[test]
fn a_guest_that_does_not_read_slows_the_host_down() {
    let mut guest = Guest::new("");
    let (_, mut stream) = connected(&mut guest);
    stream.set_nonblocking(true).unwrap();
    let mut stuck = 0;
    let mut sent = 0;
    guest.until(|_| {
        let now = stream.write(&[0; 65536]).unwrap_or(0);
        sent += now;
        stuck = if now == 0 { stuck + 1 } else { 0 };
        (stuck == 50).then_some(())
    });
    assert!(sent < 64 << 20);
}

#[test]
fn restrict_resets_connections_to_the_host() {
    let mut guest = Guest::new("restrict=on");
    let (listener, peer) = server();
    listener.set_nonblocking(true).unwrap();
    let handle = guest.connect(&peer);
    guest.until(|guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    assert!(listener.accept().is_err());
}

#[test]
fn a_connection_by_ipv6_reaches_the_hosts_loopback() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let mut guest = Guest::new("");
    let handle = guest.connect(&format!("[fec0::2]:{}", listener.local_addr().unwrap().port()));
    guest.until(|guest| guest.socket(handle).may_send().then_some(()));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"six").unwrap();
    guest.until(|guest| (guest.socket(handle).recv_queue() == 3).then_some(()));
}

#[test]
fn many_connections_live_side_by_side() {
    let mut guest = Guest::new("");
    let (listener, peer) = server();
    let handles: Vec<_> = (0..100).map(|_| guest.connect(&peer)).collect();
    guest.until(|guest| handles.iter().all(|h| guest.socket(*h).may_send()).then_some(()));
    assert_eq!(guest.net.connections(), 100);
    let streams: Vec<_> = (0..100).map(|_| listener.accept().unwrap().0).collect();
    drop(streams);
    for handle in handles {
        guest.socket(handle).close();
    }
    guest.until(|guest| (guest.net.connections() == 0).then_some(()));
}

#[test]
fn a_guest_with_segmentation_gets_packets_still_to_be_cut() {
    let mut guest = Guest::new("");
    guest.net.set_guest_offloads(Offloads { checksum: true, tso4: true, tso6: true });
    let (listener, _) = server();
    let port = listener.local_addr().unwrap().port();
    let mut syn = Vec::new();
    let builder =
        PacketBuilder::ethernet2(MAC, ROUTER_MAC).ipv4(GUEST, ROUTER, 64).tcp(1234, port, 7, 65535).syn();
    let options = [etherparse::TcpOptionElement::MaximumSegmentSize(1460)];
    builder.options(&options).unwrap().write(&mut syn, &[]).unwrap();
    guest.send(&syn);
    let mut ring = Ring::new(64);
    while ring.with_info().iter().all(|(frame, _)| frame[23] != TCP) {
        guest.net.service(Instant::now()).unwrap();
        guest.net.receive(&mut ring).unwrap();
    }
    let sequence = u32::from_be_bytes(ring.with_info().last().unwrap().0[38..42].try_into().unwrap());
    let mut ack = Vec::new();
    let builder = PacketBuilder::ethernet2(MAC, ROUTER_MAC).ipv4(GUEST, ROUTER, 64).tcp(1234, port, 8, 65535);
    builder.ack(sequence.wrapping_add(1)).write(&mut ack, &[]).unwrap();
    guest.send(&ack);
    listener.accept().unwrap().0.write_all(&[1; 30000]).unwrap();
    ring.clear();
    while ring.with_info().iter().all(|(frame, _)| frame.len() < 20000) {
        guest.net.service(Instant::now()).unwrap();
        guest.net.receive(&mut ring).unwrap();
    }
    let (_, info) = ring.with_info().last().unwrap();
    let expected = crate::backend::net::Segmentation {
        kind: crate::backend::net::SegmentationKind::Tcp4,
        size: 1460,
        headers: 54,
    };
    assert_eq!(info.segmentation, Some(expected));
    assert_eq!(info.checksum, Some(crate::backend::net::PartialChecksum { start: 34, offset: 16 }));
}
