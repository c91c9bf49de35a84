//! How fast the user-mode network is without a guest: a packet generator plays the guest's TCP through the frame interface, and the
//! servers are on this host's loopback. The generator looks at headers alone, so what the figures say is the network's and the host's.
//! It is no TCP: it relies on a link that loses nothing.
//!
//! ```text
//! cargo run --release -p hvrun-devices --example nat_bench [large] [small] [plain] [latency] [connect] [memory]
//! ```
//!
//! One line per figure. Beside each rate stands the processor time that the network's own thread took, the generator's included: on a
//! machine with few processors the peer's thread is what limits the rate.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use hvrun_devices::backend::net::user::{UserConfig, UserNet};
use hvrun_devices::backend::net::{FrameInfo, NetBackend, Offloads, PartialChecksum, RxRing, TxFrame};
use rustix::event::{PollFd, PollFlags, Timespec};
use vm_memory::VolatileSlice;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const ROUTER_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const ROUTER: [u8; 4] = [10, 0, 2, 2];
/// Ethernet, IPv4 and TCP without options.
const HEADERS: usize = 14 + 20 + 20;
const MSS: usize = 1460;
/// Segments of a frame with TCP segmentation, as many as fit.
const LARGE: usize = 65535 - 40;
/// Buffers that frames lie in, one after the other: as in a guest, none is still in the processor's nearest cache.
const BUFFERS: usize = 24;
/// What the generator lets come before it has answered (RFC 7323): 4 MiB.
const WINDOW_SHIFT: u8 = 7;
const WINDOW: u16 = 0x8000;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 0x10;

/// One connection of the generator's.
#[derive(Debug, Default, Clone, Copy)]
struct Connection {
    to: u16,
    /// What is sent next, and what the other side has confirmed.
    seq: u32,
    confirmed: u32,
    /// What is expected next, and what of it was confirmed.
    ack: u32,
    told: u32,
    window: u32,
    shift: u8,
    established: bool,
    finished: bool,
    reset: bool,
    received: u64,
}

impl Connection {
    fn room(&self) -> usize {
        self.window.saturating_sub(self.seq.wrapping_sub(self.confirmed)) as usize
    }

    fn all_confirmed(&self) -> bool {
        self.seq == self.confirmed
    }
}

/// The generator's buffers for what comes, and the headers of what has.
struct Ring {
    buffers: Vec<Vec<u8>>,
    next: usize,
    got: Vec<([u8; HEADERS + 40], usize)>,
}

impl RxRing for Ring {
    fn put(
        &mut self,
        max: usize,
        fill: &mut dyn FnMut(&[VolatileSlice<'_>]) -> Option<(usize, FrameInfo)>,
    ) -> bool {
        if self.got.len() >= 256 {
            return false;
        }
        self.next = (self.next + 1) % BUFFERS;
        let buffer = &mut self.buffers[self.next];
        if let Some((len, _)) = fill(&[VolatileSlice::from(&mut buffer[..max])]) {
            let mut headers = [0; HEADERS + 40];
            let most = headers.len().min(len);
            headers[..most].copy_from_slice(&buffer[..most]);
            self.got.push((headers, len));
        }
        true
    }
}

struct Guest {
    net: UserNet,
    ring: Ring,
    frames: Vec<Vec<u8>>,
    next: usize,
    connections: HashMap<u16, Connection>,
    port: u16,
    /// Whether the guest leaves checksums to the network, and takes frames still to be cut.
    offloads: Offloads,
    /// Whether what comes is confirmed.
    reads: bool,
}

impl Guest {
    fn new(offloads: Offloads) -> Guest {
        let mut net = UserNet::open(&UserConfig { ipv6: false, ..UserConfig::default() }).unwrap();
        net.set_guest_offloads(offloads);
        Guest {
            net,
            ring: Ring { buffers: vec![vec![0; 1 << 17]; BUFFERS], next: 0, got: Vec::new() },
            frames: vec![vec![0; HEADERS + LARGE]; BUFFERS],
            next: 0,
            connections: HashMap::new(),
            port: 10_000,
            offloads,
            reads: true,
        }
    }

    /// Sends a segment of `len` zeros.
    fn send(&mut self, port: u16, flags: u8, options: &[u8], len: usize) {
        let connection = self.connections.get_mut(&port).unwrap();
        self.next = (self.next + 1) % BUFFERS;
        let frame = &mut self.frames[self.next];
        let headers = HEADERS + options.len();
        frame[..6].copy_from_slice(&ROUTER_MAC);
        frame[6..12].copy_from_slice(&MAC);
        frame[12..14].copy_from_slice(&[8, 0]);
        let total = u16::try_from(headers - 14 + len).unwrap();
        let ip = &mut frame[14..34];
        ip.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[12..16].copy_from_slice(&GUEST);
        ip[16..20].copy_from_slice(&ROUTER);
        let checksum = !fold(sum(ip));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let tcp = &mut frame[34..headers];
        tcp[..2].copy_from_slice(&port.to_be_bytes());
        tcp[2..4].copy_from_slice(&connection.to.to_be_bytes());
        tcp[4..8].copy_from_slice(&connection.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&connection.ack.to_be_bytes());
        tcp[12] = u8::try_from((20 + options.len()) * 4).unwrap();
        tcp[13] = flags;
        tcp[14..16].copy_from_slice(&WINDOW.to_be_bytes());
        tcp[16..20].fill(0);
        tcp[20..].copy_from_slice(options);
        if len > 0 {
            // Where a SYN's options lay.
            frame[headers..headers + len.min(8)].fill(0);
        }
        let tcp = &mut frame[34..headers];
        let checksum = if self.offloads.checksum {
            Some(PartialChecksum { start: 34, offset: 16 })
        } else {
            // The payload is zeros, which do not count.
            let pseudo = sum(&GUEST) + sum(&ROUTER) + 6 + u32::from(total) - 20;
            let checksum = !fold(pseudo + sum(tcp));
            tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
            None
        };
        let sequence = u32::try_from(len).unwrap() + u32::from(flags & (SYN | FIN) != 0);
        connection.seq = connection.seq.wrapping_add(sequence);
        connection.told = connection.ack;
        let (one, two) = frame[..headers + len].split_at_mut(headers);
        let slices = [VolatileSlice::from(one), VolatileSlice::from(two)];
        let info = FrameInfo { checksum, ..FrameInfo::default() };
        self.net.transmit(&TxFrame { slices: &slices, len: headers + len, info });
    }

    /// Begins a connection to a server on the host.
    fn connect(&mut self, to: u16) -> u16 {
        self.port = self.port.wrapping_add(1).max(10_000);
        let seq = u32::from(self.port) << 8;
        let connection = Connection { to, seq, confirmed: seq, ..Connection::default() };
        self.connections.insert(self.port, connection);
        let [high, low] = u16::try_from(MSS).unwrap().to_be_bytes();
        self.send(self.port, SYN, &[2, 4, high, low, 1, 3, 3, WINDOW_SHIFT], 0);
        self.port
    }

    fn get(&self, port: u16) -> Connection {
        self.connections[&port]
    }

    /// Lets the network work, and answers what comes. Whether anything came.
    fn step(&mut self) -> bool {
        self.net.flush();
        self.net.service(Instant::now()).unwrap();
        self.net.receive(&mut self.ring).unwrap();
        let mut touched = Vec::new();
        let mut got = std::mem::take(&mut self.ring.got);
        for (frame, len) in &got {
            touched.extend(self.take(frame, *len));
        }
        let any = !got.is_empty();
        got.clear();
        self.ring.got = got;
        for port in touched {
            let connection = self.get(port);
            if connection.ack != connection.told && self.reads {
                self.send(port, ACK, &[], 0);
            }
        }
        any
    }

    fn take(&mut self, frame: &[u8], len: usize) -> Option<u16> {
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_be_bytes(frame[at..at + 2].try_into().unwrap());
        if half(12) != 0x0800 || frame[23] != 6 {
            return None;
        }
        let (port, header, flags) = (half(36), usize::from(frame[46] >> 4) * 4, frame[47]);
        let connection = self.connections.get_mut(&port)?;
        let payload = u32::try_from(len - 34 - header).unwrap();
        if flags & RST != 0 {
            connection.reset = true;
            return None;
        }
        if flags & SYN != 0 {
            connection.ack = word(38).wrapping_add(1);
            connection.told = connection.ack.wrapping_sub(1);
            connection.established = true;
            let options = &frame[54..34 + header];
            connection.shift = options.windows(3).find(|o| o[..2] == [3, 3]).map_or(0, |o| o[2]);
        }
        connection.confirmed = word(42);
        let shift = if flags & SYN != 0 { 0 } else { connection.shift };
        connection.window = u32::from(half(48)) << shift;
        if word(38) == connection.ack {
            connection.ack = connection.ack.wrapping_add(payload);
            connection.received += u64::from(payload);
            if flags & FIN != 0 {
                connection.ack = connection.ack.wrapping_add(1);
                connection.finished = true;
            }
        }
        Some(port)
    }

    /// Sleeps as a card does: until a descriptor or the deadline wakes it.
    fn sleep(&self) {
        let now = Instant::now();
        let rest =
            self.net.deadline().map_or(Duration::from_millis(100), |at| at.saturating_duration_since(now));
        let rest = rest.min(Duration::from_millis(100));
        let descriptors = self.net.descriptors(false);
        let mut fds: Vec<_> =
            descriptors.iter().map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let time = Timespec { tv_sec: 0, tv_nsec: rest.subsec_nanos().into() };
        let _ = rustix::event::poll(&mut fds, Some(&time));
    }

    fn until(&mut self, mut done: impl FnMut(&Guest) -> bool) {
        while !done(self) {
            if !self.step() && !done(self) {
                self.sleep();
            }
        }
    }

    fn connected(&mut self, to: u16) -> u16 {
        let port = self.connect(to);
        self.until(|guest| guest.get(port).established);
        port
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Processor time of this thread so far.
fn own_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time` alone, which is one.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// A server with a thread for all its connections, one after the other.
fn server(serve: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
    port
}

fn sink() -> u16 {
    server(|mut stream| {
        let mut buffer = vec![0; 1 << 18];
        while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
    })
}

fn source() -> u16 {
    server(|mut stream| {
        let buffer = vec![0; 1 << 18];
        while stream.write(&buffer).is_ok() {}
    })
}

fn rates(name: &str, bytes: u64, wall: Duration, own: Duration) {
    let gigabits = bytes as f64 * 8.0 / 1e9;
    println!(
        "{name}: {:.1} Gbit/s, {:.1} Gbit/s per core of the network's, {:.0} ms of it per GiB",
        gigabits / wall.as_secs_f64(),
        gigabits / own.as_secs_f64(),
        own.as_secs_f64() * 1e3 * f64::from(1 << 30) / bytes as f64,
    );
}

fn throughput(name: &str, offloads: Offloads, segment: usize) {
    const TIME: Duration = Duration::from_secs(3);
    let mut guest = Guest::new(offloads);
    let port = guest.connected(sink());
    let (start, own, mut bytes) = (Instant::now(), own_time(), 0);
    while start.elapsed() < TIME {
        let mut room = guest.get(port).room();
        // As many as a ring holds, or what the other side takes.
        let mut frames = 0;
        while room >= segment && frames < 64 {
            guest.send(port, ACK, &[], segment);
            room -= segment;
            frames += 1;
            bytes += segment as u64;
        }
        if !guest.step() && frames == 0 {
            guest.sleep();
        }
    }
    rates(&format!("guest to host, {name}"), bytes, start.elapsed(), own_time() - own);

    let mut guest = Guest::new(offloads);
    let port = guest.connected(source());
    let (start, own) = (Instant::now(), own_time());
    while start.elapsed() < TIME {
        if !guest.step() {
            guest.sleep();
        }
    }
    let bytes = guest.get(port).received;
    rates(&format!("host to guest, {name}"), bytes, start.elapsed(), own_time() - own);
}

/// What two sockets of this host reach without any network between them: no path can be faster than this.
fn loopback() {
    const TIME: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect(("127.0.0.1", sink())).unwrap();
    let buffer = vec![0; 1 << 18];
    let (start, own, mut bytes) = (Instant::now(), own_time(), 0);
    while start.elapsed() < TIME {
        bytes += stream.write(&buffer).unwrap() as u64;
    }
    rates("yardstick: a socket to a socket", bytes, start.elapsed(), own_time() - own);
    let mut stream = TcpStream::connect(("127.0.0.1", source())).unwrap();
    let mut buffer = vec![0; 1 << 18];
    let (start, own, mut bytes) = (Instant::now(), own_time(), 0);
    while start.elapsed() < TIME {
        bytes += stream.read(&mut buffer).unwrap() as u64;
    }
    rates("yardstick: a socket from a socket", bytes, start.elapsed(), own_time() - own);
}

fn latency() {
    const ROUNDS: u32 = 20_000;
    let echo = || {
        server(|mut stream| {
            let _ = stream.set_nodelay(true);
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|n| n > 0) && stream.write(&byte).is_ok() {}
        })
    };
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(ROUNDS);
    let mut stream = TcpStream::connect(("127.0.0.1", echo())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        stream.write_all(b"x").unwrap();
        while stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {}
    }
    println!(
        "yardstick: request and response of two sockets, nobody sleeps: {:.1} us",
        each(start.elapsed())
    );
    for sleeps in [false, true] {
        let mut guest = Guest::new(Offloads { checksum: true, ..Offloads::default() });
        let port = guest.connected(echo());
        let (start, own) = (Instant::now(), own_time());
        for round in 1..=u64::from(ROUNDS) {
            guest.send(port, ACK, &[], 1);
            while guest.get(port).received < round {
                if !guest.step() && sleeps {
                    guest.sleep();
                }
            }
        }
        let how = if sleeps { "the card sleeps meanwhile" } else { "nobody sleeps" };
        let (wall, own) = (each(start.elapsed()), each(own_time() - own));
        println!("request and response, {how}: {wall:.1} us, {own:.1} us of the network's thread");
    }
}

fn connect_rate() {
    const ROUNDS: usize = 20_000;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / ROUNDS as f64;
    let closer = server(drop);
    let (start, own) = (Instant::now(), own_time());
    for _ in 0..ROUNDS {
        let mut stream = TcpStream::connect(("127.0.0.1", closer)).unwrap();
        let _ = stream.read(&mut [0]);
    }
    let (wall, own) = (start.elapsed(), own_time() - own);
    let rate = ROUNDS as f64 / wall.as_secs_f64();
    println!(
        "yardstick: connect and close of two sockets, 1 at a time: {rate:.0} per second, {:.1} us each",
        each(own)
    );
    for parallel in [1, 32] {
        let mut guest = Guest::new(Offloads { checksum: true, ..Offloads::default() });
        let (start, own) = (Instant::now(), own_time());
        let (mut done, mut begun) = (0, 0);
        let mut live = Vec::new();
        while done < ROUNDS {
            while live.len() < parallel && begun < ROUNDS {
                live.push((guest.connect(closer), false));
                begun += 1;
            }
            if !guest.step() {
                guest.sleep();
            }
            live.retain_mut(|(port, closing)| {
                let connection = guest.get(*port);
                if connection.finished && !*closing {
                    *closing = true;
                    guest.send(*port, ACK | FIN, &[], 0);
                }
                let over = connection.reset || *closing && connection.all_confirmed();
                if over {
                    guest.connections.remove(port);
                    done += 1;
                }
                !over
            });
        }
        let (wall, own) = (start.elapsed(), own_time() - own);
        let rate = ROUNDS as f64 / wall.as_secs_f64();
        println!(
            "connect and close, {parallel} at a time: {rate:.0} per second, {:.1} us each of the network's thread",
            each(own)
        );
    }
}

fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u32 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    f64::from(pages) * 4096.0 / f64::from(1 << 20)
}

/// 1,000 connections whose guest confirms nothing while the host sends all it can, and whose host reads nothing while the guest does:
/// the worst case.
fn memory() {
    const COUNT: usize = 1000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let to = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(Offloads { checksum: true, ..Offloads::default() });
    let before = resident();
    let mut streams = Vec::new();
    let mut ports = Vec::new();
    while streams.len() < COUNT || ports.iter().any(|port| !guest.get(*port).established) {
        if ports.len() < COUNT && ports.len() < streams.len() + 64 {
            ports.push(guest.connect(to));
        }
        guest.step();
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
    }
    guest.until(|_| true);
    println!("1,000 connections, idle: {:.1} MiB", resident() - before);
    guest.reads = false;
    for _ in 0..64 {
        for stream in &mut streams {
            let _ = stream.write(&[0; 65536]);
        }
        for port in &ports {
            while guest.get(*port).room() >= MSS {
                guest.send(*port, ACK, &[], MSS);
            }
        }
        guest.step();
    }
    println!("1,000 connections, all buffers of both directions full: {:.1} MiB", resident() - before);
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    let checksum = Offloads { checksum: true, ..Offloads::default() };
    if wants("large") {
        loopback();
        throughput("large segments", Offloads { tso4: true, tso6: true, ..checksum }, LARGE);
    }
    if wants("small") {
        throughput("1500-byte frames", checksum, MSS);
    }
    if wants("plain") {
        throughput("1500-byte frames, no offloads", Offloads::default(), MSS);
    }
    if wants("latency") {
        latency();
    }
    if wants("connect") {
        connect_rate();
    }
    if wants("memory") {
        memory();
    }
}
