//! Forwarded ports, both ways.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use smoltcp::socket::tcp::State;

use super::*;

/// A guest that listens on port 22, and the host's port that leads there.
fn forwarded() -> (Guest, SocketHandle, SocketAddr) {
    let mut guest = Guest::new("restrict=on,hostfwd=tcp:127.0.0.1:0-:22");
    let handle = guest.sockets.add(socket());
    guest.socket(handle).listen(22).unwrap();
    let host = guest.net.handle().hostfwds()[0].host;
    (guest, handle, host)
}

#[test]
fn a_client_of_the_hosts_reaches_the_guest_from_the_routers_address() {
    let (mut guest, handle, host) = forwarded();
    let mut client = TcpStream::connect(host).unwrap();
    client.write_all(b"hello").unwrap();
    guest.until(|guest| (guest.socket(handle).recv_queue() == 5).then_some(()));
    let peer = guest.socket(handle).remote_endpoint().unwrap();
    assert_eq!(peer.addr, Ipv4Addr::from(ROUTER).into());
    guest.socket(handle).send_slice(b"you").unwrap();
    guest.step();
    let mut answer = [0; 3];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"you");
}

#[test]
fn a_client_is_reset_when_the_guest_does_not_listen() {
    let (mut guest, handle, host) = forwarded();
    guest.socket(handle).abort();
    let mut client = TcpStream::connect(host).unwrap();
    client.set_nonblocking(true).unwrap();
    let error = guest.until(|_| client.read(&mut [0; 8]).err().filter(|e| e.kind() != ErrorKind::WouldBlock));
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_port_in_use_is_refused_with_its_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = format!("hostfwd=tcp:127.0.0.1:{port}-:22").parse().unwrap();
    let error = UserNet::open(&config).unwrap_err().to_string();
    let expected = format!("hostfwd=tcp:127.0.0.1:{port}-:22: cannot listen on 127.0.0.1 port {port}");
    assert_eq!(error, expected);
}

#[test]
fn a_forwarding_added_from_another_thread_works_and_a_removed_one_does_not() {
    let mut guest = Guest::new("");
    let listening = guest.sockets.add(socket());
    guest.socket(listening).listen(22).unwrap();
    let handle = guest.net.handle();
    let add = move || handle.add_hostfwd(&"tcp:127.0.0.1:0-:22".parse().unwrap()).unwrap();
    let host = std::thread::spawn(add).join().unwrap();
    let client = TcpStream::connect(host).unwrap();
    guest.until(|guest| (guest.socket(listening).state() == State::Established).then_some(()));
    drop(client);
    guest.net.handle().remove_hostfwd(Protocol::Tcp, host).unwrap();
    guest.until(|_| TcpStream::connect(host).err());
    let again = guest.net.handle().remove_hostfwd(Protocol::Tcp, host).unwrap_err().to_string();
    assert_eq!(again, format!("tcp:{host} is not forwarded"));
}

#[test]
fn a_forwarded_datagram_is_answered_from_the_hosts_port() {
    let mut guest = Guest::new("restrict=on,hostfwd=udp:127.0.0.1:0-:5000");
    let host = guest.net.handle().hostfwds()[0].host;
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"question", host).unwrap();
    let (from, payload) = guest.answer(5000);
    assert_eq!(payload, b"question");
    guest.datagram(5000, ROUTER, from.port(), b"answer");
    let mut buffer = [0; 16];
    let (len, sender) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], sender), (&b"answer"[..], host));
}

#[test]
fn a_forwarded_port_lets_nothing_out_but_answers_to_its_clients_under_restrict() {
    let mut guest = Guest::new("restrict=on,hostfwd=udp:127.0.0.1:0-:5000");
    let host = guest.net.handle().hostfwds()[0].host;
    let [client, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    client.send_to(b"question", host).unwrap();
    guest.answer(5000);
    guest.datagram(5000, ROUTER, other.local_addr().unwrap().port(), b"secret");
    assert_eq!(guest.icmp(3)[35], 13);
    other.set_nonblocking(true).unwrap();
    assert!(other.recv_from(&mut [0; 8]).is_err());
}

#[test]
fn clients_of_a_forwarded_port_are_remembered_in_bounds() {
    let mut guest = Guest::new("hostfwd=udp:127.0.0.1:0-:5000");
    let host = guest.net.handle().hostfwds()[0].host;
    for _ in 0..300 {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", host).unwrap();
        guest.answer(5000);
    }
    assert!(guest.net.udp.clients() <= 256);
}

#[test]
fn a_forwarding_without_a_guest_follows_the_address_that_dhcp_gives() {
    let mut guest = Guest::new("hostfwd=udp:127.0.0.1:0-:5000");
    let host = guest.net.handle().hostfwds()[0].host;
    guest.send(&super::lan::dhcp_frame(MAC, &super::lan::dhcp_message(3, &[50, 4, 10, 0, 2, 20])));
    guest.answer(68);
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", host).unwrap();
    let frame = guest.until(|guest| {
        let to_guest = |frame: &Vec<u8>| parse_udp(frame).is_some_and(|(_, port, _)| port == 5000);
        guest.inbox.iter().find(|frame| to_guest(frame)).cloned()
    });
    assert_eq!(frame[30..34], [10, 0, 2, 20]);
}

#[test]
fn a_removed_port_can_be_forwarded_again_at_once() {
    let mut guest = Guest::new("");
    let handle = guest.net.handle();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = done.clone();
    let monitor = std::thread::spawn(move || {
        for text in ["tcp:127.0.0.1:0-:22", "udp:127.0.0.1:0-:22"] {
            let forward: HostForward = text.parse().unwrap();
            let host = handle.add_hostfwd(&forward).unwrap();
            for _ in 0..20 {
                handle.remove_hostfwd(forward.protocol, host).unwrap();
                handle.add_hostfwd(&HostForward { host, ..forward }).unwrap();
            }
        }
        seen.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    guest.until(|_| (done.load(std::sync::atomic::Ordering::SeqCst) || monitor.is_finished()).then_some(()));
    monitor.join().unwrap();
}

#[test]
fn a_connection_to_a_guestfwd_talks_to_its_command() {
    let mut guest = Guest::new("restrict=on,guestfwd=tcp:10.0.2.100:80-cmd:tr a-z A-Z");
    let handle = guest.connect("10.0.2.100:80");
    guest.until(|guest| guest.socket(handle).may_send().then_some(()));
    guest.socket(handle).send_slice(b"shout").unwrap();
    guest.socket(handle).close();
    guest.until(|guest| (guest.socket(handle).recv_queue() == 5).then_some(()));
    assert_eq!(guest.socket(handle).peek(5).unwrap(), b"SHOUT");
}

#[test]
fn a_connection_to_a_guestfwd_reaches_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut guest = Guest::new(&format!("guestfwd=tcp:10.0.2.100:80-unix:{}", path.display()));
    let handle = guest.connect("10.0.2.100:80");
    guest.until(|guest| guest.socket(handle).may_send().then_some(()));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"hi").unwrap();
    guest.until(|guest| (guest.socket(handle).recv_queue() == 2).then_some(()));
}
