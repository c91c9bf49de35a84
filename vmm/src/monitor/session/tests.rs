use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use hvrun_devices::backend::chardev::Stream;

use super::*;

/// Reports what it hears, one line each.
struct Probe(Sender<String>);

impl Protocol for Probe {
    fn connected(&mut self, out: &Outbox) {
        out.send(b"hello\n");
        self.0.send("connected".to_owned()).unwrap();
    }

    fn input(&mut self, bytes: &[u8], _out: &Outbox) {
        for byte in bytes {
            self.0.send(format!("{}", char::from(*byte))).unwrap();
        }
    }

    fn message(_event: MachineEvent, _pretty: bool) -> Option<Vec<u8>> {
        None
    }
}

fn heard(lines: &Receiver<String>) -> String {
    lines.recv_timeout(Duration::from_secs(30)).unwrap()
}

#[test]
fn what_a_peer_sent_before_it_left_is_heard_before_the_next_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (sender, lines) = channel();
    let chardev = Arc::new(Stream::unix(&path).unwrap());
    let mut sessions = Sessions::default();
    sessions.add(Session::start("test", chardev, Probe(sender)).unwrap());
    for text in ["ab", "c"] {
        let mut peer = UnixStream::connect(&path).unwrap();
        std::io::Write::write_all(&mut peer, text.as_bytes()).unwrap();
        drop(peer);
        assert_eq!(heard(&lines), "connected");
        for byte in text.chars() {
            assert_eq!(heard(&lines), byte.to_string());
        }
    }
}

#[test]
fn many_peers_that_hang_up_at_once_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (sender, lines) = channel();
    let chardev = Arc::new(Stream::unix(&path).unwrap());
    let mut sessions = Sessions::default();
    sessions.add(Session::start("test", chardev, Probe(sender)).unwrap());
    for _ in 0..200 {
        drop(UnixStream::connect(&path).unwrap());
    }
    let mut last = UnixStream::connect(&path).unwrap();
    std::io::Write::write_all(&mut last, b"z").unwrap();
    while heard(&lines) != "z" {}
}

#[test]
fn dropping_the_sessions_ends_them_while_the_peer_is_still_there() {
    let (near, far) = UnixStream::pair().unwrap();
    let (sender, lines) = channel();
    let mut sessions = Sessions::default();
    sessions.add(Session::start("test", Arc::new(Stream::socket("t", far).unwrap()), Probe(sender)).unwrap());
    assert_eq!(heard(&lines), "connected");
    drop(sessions);
    let mut greeting = String::new();
    std::io::Read::read_to_string(&mut &near, &mut greeting).unwrap();
    assert_eq!(greeting, "hello\n");
}
