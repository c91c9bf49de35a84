//! Datagrams: to the host, to name servers, in fragments.

use std::net::UdpSocket;

use super::*;

fn server() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 65536];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

#[test]
fn a_datagram_to_the_router_reaches_the_hosts_loopback_and_back() {
    let (server, port) = server();
    let mut guest = Guest::new("");
    guest.datagram(5000, ROUTER, port, b"question");
    let (payload, from) = receive(&server);
    assert_eq!(payload, b"question");
    server.send_to(b"answer", from).unwrap();
    let expected = SocketAddr::new(Ipv4Addr::from(ROUTER).into(), port);
    assert_eq!(guest.answer(5000), (expected, b"answer".to_vec()));
}

#[test]
fn nothing_leaves_under_restrict() {
    let (server, port) = server();
    let mut guest = Guest::new("restrict=on");
    guest.datagram(5000, ROUTER, port, b"question");
    assert_eq!(guest.icmp(3)[35], 13);
    server.set_nonblocking(true).unwrap();
    assert!(server.recv_from(&mut [0; 8]).is_err());
}

#[test]
fn a_question_goes_to_the_hosts_name_server_and_its_answer_comes_from_ours() {
    let (server, _) = server();
    let mut guest = Guest::new("");
    guest.net.resolvers = Resolvers::fixed(vec![server.local_addr().unwrap()]);
    guest.datagram(5353, DNS, 53, b"0123456789abquestion");
    let (_, from) = receive(&server);
    server.send_to(b"0123456789abanswer", from).unwrap();
    let expected = SocketAddr::new(Ipv4Addr::from(DNS).into(), 53);
    assert_eq!(guest.answer(5353), (expected, b"0123456789abanswer".to_vec()));
}

#[test]
fn a_resolver_that_is_named_is_asked_instead_of_the_hosts() {
    let (server, port) = server();
    let mut guest = Guest::new(&format!("resolver=127.0.0.1:{port}"));
    guest.datagram(5353, DNS, 53, b"0123456789abquestion");
    assert_eq!(receive(&server).0, b"0123456789abquestion");
}

#[test]
fn an_answer_beyond_512_bytes_passes_whole() {
    let (server, _) = server();
    let mut guest = Guest::new("");
    guest.net.resolvers = Resolvers::fixed(vec![server.local_addr().unwrap()]);
    guest.datagram(5353, DNS, 53, b"0123456789abquestion with EDNS");
    let (_, from) = receive(&server);
    server.send_to(&[0x80; 1400], from).unwrap();
    assert_eq!(guest.answer(5353).1, [0x80; 1400]);
}

#[test]
fn an_answer_that_is_too_big_says_that_it_was_cut() {
    let (server, _) = server();
    let mut guest = Guest::new("");
    guest.net.resolvers = Resolvers::fixed(vec![server.local_addr().unwrap()]);
    guest.datagram(5353, DNS, 53, b"0123456789abquestion");
    let (_, from) = receive(&server);
    server.send_to(&[0x80; 4000], from).unwrap();
    assert_eq!(guest.answer(5353).1, [0x80, 0x80, 0x82, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn without_a_name_server_a_question_fails_at_once() {
    let mut guest = Guest::new("");
    guest.net.resolvers = Resolvers::fixed(Vec::new());
    guest.datagram(5353, DNS, 53, b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0x");
    assert_eq!(guest.answer(5353).1[..4], [0x12, 0x34, 0x81, 0x82]);
}

#[test]
fn a_long_datagram_arrives_from_fragments() {
    let (server, port) = server();
    let mut guest = Guest::new("");
    let payload: Vec<u8> = (0..4000u16).map(|i| i.to_be_bytes()[1]).collect();
    for frame in fragments(&datagram(5000, ROUTER, port, &payload), 1480) {
        guest.send(&frame);
    }
    assert_eq!(receive(&server).0, payload);
}

#[test]
fn a_long_datagram_for_the_guest_comes_in_fragments() {
    let (server, port) = server();
    let mut guest = Guest::new("ipv6=off");
    guest.datagram(5000, ROUTER, port, b"question");
    let (_, from) = receive(&server);
    server.send_to(&[5; 4000], from).unwrap();
    guest.until(|guest| (guest.inbox.len() == 3).then_some(()));
    let mut parts = Fragments::default();
    let whole = guest.inbox.iter().find_map(|frame| {
        assert!(frame.len() <= 1514);
        parts.add(Instant::now(), &Ip::parse4(&frame[14..]).unwrap(), &frame[14..])
    });
    let whole = whole.unwrap();
    let ip = Ip::parse4(&whole).unwrap();
    assert!(checksum_holds(&ip, ip.payload(&whole)));
    assert_eq!(ip.payload(&whole)[8..], [5; 4000]);
}

/// Cuts a frame's IP payload into pieces of `size`.
pub(super) fn fragments(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let ip = Ip::parse4(&frame[14..]).unwrap();
    let payload = ip.payload(&frame[14..]);
    let pieces = payload.chunks(size).enumerate();
    let packet = |(index, piece): (usize, &[u8])| {
        let offset = index * size;
        let fragment = packet::Fragment { id: 99, offset, more: offset + piece.len() < payload.len() };
        let packet = ip_packet(ip.source, ip.destination, ip.protocol, piece, Some(fragment)).unwrap();
        [&frame[..14], &packet].concat()
    };
    pieces.map(packet).collect()
}

#[test]
fn a_flood_of_source_ports_keeps_sockets_bounded() {
    let (_server, port) = server();
    let mut guest = Guest::new("");
    for from in 1000..2000 {
        guest.datagram(from, ROUTER, port, b"x");
    }
    assert_eq!(guest.net.udp.len(), 512);
}
