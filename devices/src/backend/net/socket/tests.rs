//! Both formats between two backends, against peers that do not keep to them, and against the real `passt`.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::frames::MAX_FRAME;
use super::super::testing::{Ring, collect, drive, failure, frame, mac, need, send, transmit};
use super::super::{NetBackend, Transmit};
use super::*;

fn open(text: &str) -> Box<dyn NetBackend> {
    text.parse::<SocketConfig>().unwrap().open().unwrap()
}

fn refused(text: &str) -> SocketError {
    text.parse::<SocketConfig>().unwrap().open().unwrap_err()
}

/// Drives both until their links are up.
fn meet(a: &mut dyn NetBackend, b: &mut dyn NetBackend) {
    let start = Instant::now();
    while !(a.link() && b.link()) {
        assert!(start.elapsed() < Duration::from_secs(20), "they have not met");
        a.service(Instant::now()).unwrap();
        b.service(Instant::now()).unwrap();
        std::thread::yield_now();
    }
}

fn exchange(a: &mut dyn NetBackend, b: &mut dyn NetBackend) {
    transmit(a, &frame(1, 60));
    transmit(a, &frame(1, 1514));
    assert_eq!(collect(b, 2), [frame(1, 60), frame(1, 1514)]);
    transmit(b, &frame(2, 100));
    assert_eq!(collect(a, 1), [frame(2, 100)]);
}

/// A stream backend and its peer.
fn stream() -> (Stream, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    (Stream::adopt(ours.into(), "test").unwrap(), peer)
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

#[test]
fn two_cards_talk_over_a_unix_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut server = open(&format!("stream,path={},server", path.display()));
    let mut client = open(&format!("stream,path={}", path.display()));
    meet(&mut *server, &mut *client);
    exchange(&mut *server, &mut *client);
}

#[test]
fn two_cards_talk_over_tcp() {
    let address = |port| SocketAddress::Inet { host: "127.0.0.1".into(), port };
    let mut server = Stream::listen(&address(0)).unwrap();
    let mut client = Stream::connect(&address(server.port().unwrap()), None).unwrap();
    meet(&mut server, &mut client);
    exchange(&mut server, &mut client);
}

#[test]
fn a_client_that_reconnects_waits_for_its_server() {
    let address = |port| SocketAddress::Inet { host: "127.0.0.1".into(), port };
    // A port that was free a moment ago.
    let port = Stream::listen(&address(0)).unwrap().port().unwrap();
    let mut client = Stream::connect(&address(port), Some(1)).unwrap();
    let mut server = Stream::listen(&address(port)).unwrap();
    meet(&mut server, &mut client);
    exchange(&mut server, &mut client);
}

#[test]
fn a_client_that_reconnects_finds_a_restarted_unix_server() {
    let dir = tempfile::tempdir().unwrap();
    let address = SocketAddress::Unix(dir.path().join("s"));
    let mut server = Stream::listen(&address).unwrap();
    let mut client = Stream::connect(&address, Some(1)).unwrap();
    meet(&mut server, &mut client);
    drop(server);
    let mut ring = Ring::new(9);
    while client.link() {
        client.receive(&mut ring).unwrap();
    }
    let mut server = Stream::listen(&address).unwrap();
    meet(&mut server, &mut client);
    exchange(&mut server, &mut client);
}

#[test]
fn a_server_is_down_without_a_peer_and_serves_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut server = Stream::listen(&SocketAddress::Unix(path.clone())).unwrap();
    for _ in 0..3 {
        assert!(!server.link());
        transmit(&mut server, &frame(9, 60));
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(&framed(&frame(1, 60))).unwrap();
        assert_eq!(collect(&mut server, 1), [frame(1, 60)]);
        assert!(server.link());
        drop(peer);
        let mut ring = Ring::new(9);
        while server.link() {
            server.receive(&mut ring).unwrap();
        }
    }
}

#[test]
fn the_servers_path_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(Stream::listen(&SocketAddress::Unix(path.clone())).unwrap());
    assert!(!path.exists());
}

#[test]
fn a_frame_is_sent_behind_its_length_in_big_endian() {
    let (mut backend, mut peer) = stream();
    transmit(&mut backend, &frame(1, 300));
    let mut bytes = [0; 304];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..4], [0, 0, 1, 44]);
    assert_eq!(bytes[4..], frame(1, 300));
}

#[test]
fn a_frame_that_comes_byte_by_byte_arrives_whole() {
    let (mut backend, mut peer) = stream();
    let mut ring = Ring::new(9);
    for byte in framed(&frame(1, 60)) {
        assert_eq!(ring.frames().len(), 0);
        peer.write_all(&[byte]).unwrap();
        backend.receive(&mut ring).unwrap();
    }
    assert_eq!(ring.frames(), [frame(1, 60)]);
}

#[test]
fn the_longest_frame_arrives() {
    let (mut backend, mut peer) = stream();
    let writer = std::thread::spawn(move || {
        peer.write_all(&framed(&frame(1, MAX_FRAME))).unwrap();
        peer
    });
    assert_eq!(collect(&mut backend, 1), [frame(1, MAX_FRAME)]);
    writer.join().unwrap();
}

#[test]
fn empty_and_short_frames_are_dropped_and_the_next_one_arrives() {
    let (mut backend, mut peer) = stream();
    for bytes in [&[][..], &[1], &[1; 13], &frame(7, 14)] {
        peer.write_all(&framed(bytes)).unwrap();
    }
    assert_eq!(collect(&mut backend, 1), [frame(7, 14)]);
}

#[test]
fn a_length_that_no_frame_has_ends_the_connection_with_the_length() {
    for length in [MAX_FRAME as u32 + 1, u32::MAX] {
        let (mut backend, mut peer) = stream();
        peer.write_all(&length.to_be_bytes()).unwrap();
        let error = failure(&mut backend).to_string();
        assert!(error.contains(&length.to_string()), "{error}");
        assert!(!backend.link());
    }
}

#[test]
fn a_server_outlives_a_peer_that_does_not_speak_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut server = Stream::listen(&SocketAddress::Unix(path.clone())).unwrap();
    UnixStream::connect(&path).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut good = UnixStream::connect(&path).unwrap();
    good.write_all(&framed(&frame(3, 60))).unwrap();
    assert_eq!(collect(&mut server, 1), [frame(3, 60)]);
}

#[test]
fn a_frame_cut_short_by_the_end_is_not_handed_out() {
    let (mut backend, mut peer) = stream();
    peer.write_all(&framed(&frame(1, 60))[..40]).unwrap();
    drop(peer);
    let mut ring = Ring::new(9);
    let error = drive(&mut [(&mut backend, &mut ring)], |_| false).unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
    assert_eq!(ring.frames().len(), 0);
    assert!(backend.descriptors(true).is_empty());
}

#[test]
fn a_peer_that_takes_nothing_makes_the_guest_wait_and_no_frame_is_lost() {
    let (mut backend, mut peer) = stream();
    let mut accepted = 0u32;
    let numbered = |n: u32| {
        let mut bytes = frame(1, 1514);
        bytes[14..18].copy_from_slice(&n.to_be_bytes());
        bytes
    };
    while send(|tx| backend.transmit(tx), &numbered(accepted)) == Transmit::Done {
        accepted += 1;
        assert!(accepted < 100_000, "it takes without bound");
    }
    assert!(
        backend
            .descriptors(true)
            .iter()
            .any(|(_, interest)| *interest != crate::backend::net::Interest::Read)
    );
    let reader = std::thread::spawn(move || {
        for n in 0..accepted {
            let mut bytes = vec![0; 4 + 1514];
            peer.read_exact(&mut bytes).unwrap();
            assert!(bytes == framed(&numbered(n)), "frame {n}");
        }
        peer
    });
    let mut ring = Ring::new(9);
    drive(&mut [(&mut backend, &mut ring)], |_| reader.is_finished()).unwrap();
    reader.join().unwrap();
}

#[test]
fn a_guest_without_room_makes_the_peer_wait_and_no_frame_is_lost() {
    let (mut backend, mut peer) = stream();
    peer.write_all(&[framed(&frame(1, 60)), framed(&frame(2, 60)), framed(&frame(3, 60))].concat()).unwrap();
    let mut small = Ring::new(1);
    backend.receive(&mut small).unwrap();
    assert!(backend.descriptors(false).is_empty(), "nothing to wake up for");
    let mut large = Ring::new(9);
    backend.receive(&mut large).unwrap();
    assert_eq!((small.frames(), large.frames()), (vec![frame(1, 60)], vec![frame(2, 60), frame(3, 60)]));
    assert_eq!(backend.descriptors(false).len(), 1);
}

#[test]
fn two_cards_talk_over_unix_datagrams_whoever_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let mut first = open(&format!("dgram,local={},remote={}", a.display(), b.display()));
    assert!(!first.link());
    let mut second = open(&format!("dgram,local={},remote={}", b.display(), a.display()));
    meet(&mut *first, &mut *second);
    exchange(&mut *first, &mut *second);
}

#[test]
fn a_datagram_peer_that_was_restarted_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let text = format!("dgram,local={},remote={}", b.display(), a.display());
    let mut first = open(&format!("dgram,local={},remote={}", a.display(), b.display()));
    let mut second = open(&text);
    meet(&mut *first, &mut *second);
    drop(second);
    transmit(&mut *first, &frame(9, 60));
    assert!(!first.link());
    let mut second = open(&text);
    meet(&mut *first, &mut *second);
    exchange(&mut *first, &mut *second);
}

#[test]
fn two_cards_talk_over_udp() {
    // Ports that were free a moment ago.
    let port = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (a, b) = (port(), port());
    let mut first = open(&format!("dgram,local=127.0.0.1:{a},remote=127.0.0.1:{b}"));
    // Nobody is there: the answer to this must not disturb what comes later.
    transmit(&mut *first, &frame(9, 60));
    let mut second = open(&format!("dgram,local=127.0.0.1:{b},remote=127.0.0.1:{a}"));
    meet(&mut *first, &mut *second);
    // The first send after that answer reports it; what it carried is lost, as datagrams can be.
    transmit(&mut *first, &frame(9, 60));
    transmit(&mut *first, &frame(1, 60));
    drive_until(&mut *second, &frame(1, 60));
    exchange(&mut *first, &mut *second);
}

fn drive_until(backend: &mut dyn NetBackend, last: &[u8]) {
    let mut ring = Ring::new(usize::MAX);
    drive(&mut [(backend, &mut ring)], |rings| rings[0].frames().last().is_some_and(|frame| frame == last))
        .unwrap();
}

#[test]
fn the_other_half_of_a_pair_that_closes_is_an_error() {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    let mut backend = Dgram::adopt(ours.into(), "test").unwrap();
    peer.send(&frame(1, 60)).unwrap();
    assert_eq!(collect(&mut backend, 1), [frame(1, 60)]);
    drop(peer);
    transmit(&mut backend, &frame(2, 60));
    assert!(backend.service(Instant::now()).is_err());
    assert!(!backend.link() && backend.descriptors(true).is_empty());
}

#[test]
fn nobody_at_the_path_is_an_error_that_says_what_to_do() {
    let error = refused("stream,path=/nonexistent/s").to_string();
    assert!(error.contains("/nonexistent/s") && error.contains("reconnect"), "{error}");
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let address = |port| SocketAddress::Inet { host: "127.0.0.1".into(), port };
    let server = Stream::listen(&address(0)).unwrap();
    let port = server.port().unwrap();
    let error = Stream::listen(&address(port)).unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
}

#[test]
fn a_path_in_use_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _used = UnixListener::bind(&path).unwrap();
    let error = refused(&format!("stream,path={},server", path.display()));
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn a_multicast_group_is_refused_with_what_would_work() {
    let error = refused("dgram,remote=230.0.0.1:1234").to_string();
    assert!(error.contains("230.0.0.1") && error.contains("switch:NAME"), "{error}");
}

#[test]
fn ends_of_different_kinds_are_refused() {
    assert!(matches!(refused("dgram,local=/tmp/a,remote=127.0.0.1:1"), SocketError::Mixed { .. }));
}

/// A running `passt`. It leaves root for "nobody", so its directory is everybody's.
struct Passt {
    process: std::process::Child,
    dir: tempfile::TempDir,
}

impl Passt {
    fn start() -> Passt {
        let program = need("passt", "passt");
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let process = Command::new("timeout")
            .arg("60")
            .arg(program)
            .args(["--foreground", "--one-off", "--socket"])
            .arg(dir.path().join("s"))
            .args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"])
            // The loopback interface, so that it also runs where there is no network.
            .args(["--mac-addr", "52:55:0a:00:02:02", "--ipv4-only", "--interface", "lo"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Passt { process, dir }
    }

    /// Waits for its socket, or says why there is none.
    fn connect(&mut self) -> Stream {
        let address = SocketAddress::Unix(self.dir.path().join("s"));
        loop {
            if let Ok(stream) = Stream::connect(&address, None) {
                return stream;
            }
            if let Some(status) = self.process.try_wait().unwrap() {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
                panic!("passt does not run here ({status}):\n{log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // With --one-off it ends with its peer; should it not, the signal goes through `timeout` to it.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

#[test]
fn passt_answers_for_the_router() {
    let mut passt = Passt::start();
    let mut card = passt.connect();
    let mut question = vec![0; 42];
    question[..6].fill(0xff);
    question[6..12].copy_from_slice(&mac(1));
    // Ethernet type ARP; hardware Ethernet, protocol IPv4, lengths 6 and 4, a request (RFC 826).
    question[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    question[22..28].copy_from_slice(&mac(1));
    question[28..32].copy_from_slice(&[10, 0, 2, 15]);
    question[38..42].copy_from_slice(&[10, 0, 2, 2]);
    transmit(&mut card, &question);

    let mut ring = Ring::new(usize::MAX);
    let reply = |bytes: &[u8]| bytes.len() >= 42 && bytes[12..14] == [8, 6] && bytes[20..22] == [0, 2];
    drive(&mut [(&mut card, &mut ring)], |rings| rings[0].frames().iter().any(|bytes| reply(bytes))).unwrap();
    let answer = ring.frames().into_iter().find(|bytes| reply(bytes)).unwrap();
    assert_eq!(answer[..6], mac(1));
    assert_eq!(answer[22..28], [0x52, 0x55, 0x0a, 0, 2, 2]);
    assert_eq!(answer[28..32], [10, 0, 2, 2]);
}

#[test]
fn passt_that_ends_takes_the_link_down() {
    let mut passt = Passt::start();
    let mut card = passt.connect();
    drop(passt);
    let error = failure(&mut card).to_string();
    assert!(error.contains("stream:unix:"), "{error}");
    assert!(!card.link());
}
