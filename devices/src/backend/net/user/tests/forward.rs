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
