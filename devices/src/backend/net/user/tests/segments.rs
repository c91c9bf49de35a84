//! Single TCP segments, as no honest stack sends them, or not in this order: what becomes of the connection and of its bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use rustix::net::SendFlags;

use super::hostile::Tcp;
use super::*;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

/// A segment that came.
#[derive(Debug, Clone)]
struct Segment {
    flags: u8,
    seq: u32,
    payload: Vec<u8>,
}

/// One connection of a guest's whose every segment the test makes.
struct Raw {
    guest: Guest,
    to: u16,
    seq: u32,
    ack: u32,
    window: u16,
    /// What came in order, and whether it is acknowledged at once.
    received: Vec<u8>,
    acknowledges: bool,
    segments: Vec<Segment>,
    /// How far the network's clock is ahead.
    ahead: Duration,
}

const PORT: u16 = 1234;

impl Raw {
    fn new(to: u16) -> Raw {
        Raw {
            guest: Guest::new(""),
            to,
            seq: 7,
            ack: 0,
            window: 60000,
            received: Vec::new(),
            acknowledges: true,
            segments: Vec::new(),
            ahead: Duration::ZERO,
        }
    }

    /// Sends a segment at `seq` and leaves the count alone.
    fn send_at(&mut self, seq: u32, flags: u8, payload: &[u8]) {
        let urgent = if flags & URG != 0 { 2 } else { 0 };
        let (ack, window) = (self.ack, self.window);
        let tcp = Tcp { to: self.to, from: PORT, flags, seq, ack, window, urgent, ..Tcp::default() };
        self.guest.send(&tcp.frame(payload));
        self.guest.net.flush();
    }

    fn send(&mut self, flags: u8, payload: &[u8]) {
        self.send_at(self.seq, flags, payload);
        let counts = u32::from(flags & (SYN | FIN) != 0) + u32::try_from(payload.len()).unwrap();
        self.seq = self.seq.wrapping_add(counts);
    }

    /// Lets the network work and takes what comes.
    fn step(&mut self) {
        self.guest.net.service(Instant::now() + self.ahead).unwrap();
        self.guest.net.flush();
        let mut ring = Ring::new(64);
        self.guest.net.receive(&mut ring).unwrap();
        for (frame, _) in ring.with_info() {
            self.take(frame);
        }
    }

    fn take(&mut self, frame: &[u8]) {
        let Some(ip) = Ip::parse4(&frame[14..]).filter(|ip| ip.protocol == TCP) else { return };
        let segment = ip.payload(&frame[14..]);
        if ports(segment) != Some((self.to, PORT)) {
            return;
        }
        let flags = segment[13];
        let seq = u32::from_be_bytes(segment[4..8].try_into().unwrap());
        let payload = segment[usize::from(segment[12] >> 4) * 4..].to_vec();
        if flags & SYN != 0 {
            self.ack = seq.wrapping_add(1);
        } else if seq == self.ack && self.acknowledges {
            self.received.extend_from_slice(&payload);
            let counts = u32::try_from(payload.len()).unwrap() + u32::from(flags & FIN);
            self.ack = self.ack.wrapping_add(counts);
            if counts > 0 {
                self.send(ACK, &[]);
            }
        }
        self.segments.push(Segment { flags, seq, payload });
    }

    fn until(&mut self, mut done: impl FnMut(&mut Raw) -> bool) {
        let start = Instant::now();
        while !done(self) {
            self.step();
            assert!(start.elapsed() < PATIENCE, "it does not happen; these came: {:?}", self.segments);
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn until_segment(&mut self, flag: u8) {
        self.until(|raw| raw.segments.iter().any(|segment| segment.flags & flag != 0));
    }

    fn connections(&self) -> usize {
        self.guest.net.connections()
    }
}

fn server() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection whose SYN has been answered, and the host's end of it.
fn answered() -> (Raw, TcpStream) {
    let (listener, port) = server();
    let mut raw = Raw::new(port);
    raw.send(SYN, &[]);
    raw.until_segment(SYN);
    (raw, accept(&listener))
}

fn established() -> (Raw, TcpStream) {
    let (mut raw, stream) = answered();
    raw.send(ACK, &[]);
    raw.step();
    raw.segments.clear();
    (raw, stream)
}

fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn urgent_bytes_of_the_guests_stay_where_they_are_in_the_stream() {
    let (mut raw, mut stream) = established();
    raw.send(ACK | PSH, b"before ");
    raw.send(ACK | PSH | URG, b"urgent ");
    raw.send(ACK | PSH, b"after");
    raw.step();
    assert_eq!(read(&mut stream, 19), b"before urgent after");
}

#[test]
fn urgent_bytes_of_the_hosts_stay_where_they_are_and_hold_nothing_up() {
    let (mut raw, stream) = established();
    (&stream).write_all(b"before").unwrap();
    rustix::net::send(&stream, b"!", SendFlags::OOB).unwrap();
    (&stream).write_all(b"after").unwrap();
    raw.until(|raw| raw.received.len() >= 12);
    assert_eq!(raw.received, b"before!after");
}

#[test]
fn a_reset_in_answer_to_our_syn_ends_the_connection_on_both_sides() {
    let (mut raw, mut stream) = answered();
    raw.send(RST, &[]);
    raw.until(|raw| raw.connections() == 0);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_after_the_guests_own_end_reaches_the_host() {
    let (mut raw, mut stream) = established();
    raw.send(ACK | FIN, &[]);
    raw.until(|raw| !raw.segments.is_empty());
    raw.send(RST, &[]);
    raw.until(|raw| raw.connections() == 0);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // The reset is what the next bytes meet.
    let failed = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        stream.write(b"x").is_err()
    });
    assert!(failed);
}

#[test]
fn a_reset_after_the_hosts_end_frees_the_connection() {
    let (mut raw, stream) = established();
    stream.shutdown(Shutdown::Write).unwrap();
    raw.until_segment(FIN);
    raw.send(RST, &[]);
    raw.until(|raw| raw.connections() == 0);
}

#[test]
fn bytes_for_a_host_that_has_reset_the_connection_are_answered_with_a_reset() {
    let (mut raw, stream) = established();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    raw.send(ACK, b"too late");
    raw.until_segment(RST);
    raw.until(|raw| raw.connections() == 0);
}

#[test]
fn a_reset_out_of_the_window_changes_nothing() {
    let (mut raw, mut stream) = established();
    raw.send_at(raw.seq.wrapping_add(1 << 30), RST, &[]);
    raw.step();
    raw.send(ACK, b"still here");
    raw.step();
    assert_eq!(read(&mut stream, 10), b"still here");
}

#[test]
fn a_segment_out_of_the_window_is_acknowledged_and_lost() {
    let (mut raw, mut stream) = established();
    raw.send_at(raw.seq.wrapping_add(1 << 30), ACK, b"foreign");
    raw.until(|raw| !raw.segments.is_empty());
    raw.send(ACK, b"right");
    raw.step();
    assert_eq!(read(&mut stream, 5), b"right");
}

#[test]
fn where_segments_overlap_the_bytes_that_came_first_count() {
    let (mut raw, mut stream) = established();
    let start = raw.seq;
    raw.send(ACK, b"aaaaaaaaaa");
    raw.step();
    raw.send_at(start.wrapping_add(5), ACK, b"bbbbbbbbbb");
    raw.step();
    assert_eq!(read(&mut stream, 15), b"aaaaaaaaaabbbbb");
}

#[test]
fn segments_in_the_wrong_order_are_put_into_the_right_one() {
    let (mut raw, mut stream) = established();
    raw.send_at(raw.seq.wrapping_add(3), ACK, b"two");
    raw.step();
    raw.send_at(raw.seq, ACK, b"one");
    raw.step();
    assert_eq!(read(&mut stream, 6), b"onetwo");
}

#[test]
fn a_guest_whose_window_is_shut_gets_no_more_than_a_probe_until_it_opens() {
    let (mut raw, mut stream) = answered();
    raw.window = 0;
    raw.send(ACK, &[]);
    raw.segments.clear();
    stream.write_all(b"many bytes").unwrap();
    for _ in 0..20 {
        raw.step();
        std::thread::sleep(Duration::from_micros(500));
    }
    assert!(raw.segments.iter().all(|segment| segment.payload.len() <= 1), "{:?}", raw.segments);
    raw.window = 60000;
    raw.send(ACK, &[]);
    raw.until(|raw| raw.received == b"many bytes");
}

#[test]
fn a_tiny_window_is_kept_to() {
    let (mut raw, mut stream) = answered();
    raw.window = 3;
    raw.send(ACK, &[]);
    raw.segments.clear();
    stream.write_all(b"many bytes").unwrap();
    raw.until(|raw| raw.received == b"many bytes");
    assert!(raw.segments.iter().all(|segment| segment.payload.len() <= 3), "{:?}", raw.segments);
}

#[test]
fn data_in_a_syn_comes_when_they_are_sent_again() {
    let (listener, port) = server();
    let mut raw = Raw::new(port);
    raw.send_at(raw.seq, SYN, &[b'x'; 1000]);
    raw.seq += 1;
    raw.until_segment(SYN);
    raw.send(ACK, b"again");
    raw.step();
    assert_eq!(read(&mut accept(&listener), 5), b"again");
}

#[test]
fn a_connection_on_which_nobody_says_anything_stays() {
    let (mut raw, mut stream) = established();
    raw.send(ACK, b"x");
    raw.step();
    raw.ahead = Duration::from_secs(24 * 3600);
    for _ in 0..3 {
        raw.step();
    }
    raw.send(ACK, b"y");
    raw.step();
    assert_eq!(read(&mut stream, 2), b"xy");
    stream.write_all(b"z").unwrap();
    raw.until(|raw| raw.received == b"z");
}

#[test]
fn a_connection_whose_guest_has_vanished_ends_after_a_quarter_of_an_hour() {
    let (mut raw, mut stream) = established();
    raw.acknowledges = false;
    stream.write_all(b"anybody?").unwrap();
    raw.until(|raw| raw.segments.iter().any(|segment| segment.payload == b"anybody?"));
    for _ in 0..100 {
        raw.ahead += Duration::from_secs(20);
        raw.step();
    }
    assert_eq!(raw.connections(), 0);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_repeated_segment_is_delivered_once() {
    let (mut raw, mut stream) = established();
    let start = raw.seq;
    raw.send(ACK, b"once");
    raw.send_at(start, ACK, b"once");
    raw.send(ACK, b"more");
    raw.step();
    assert_eq!(read(&mut stream, 8), b"oncemore");
    assert!(raw.segments.iter().all(|segment| segment.seq == raw.ack));
}
