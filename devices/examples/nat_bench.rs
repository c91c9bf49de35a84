//! How fast the user-mode network is without a guest: frames go in and come out, smoltcp plays the guest's TCP, and the server is
//! on this host's loopback. Prints one line per figure; the figures include what the guest's side costs.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use hvrun_devices::backend::net::user::{UserConfig, UserNet};
use hvrun_devices::backend::net::{FrameInfo, NetBackend, Offloads, PartialChecksum, RxRing, TxFrame};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use vm_memory::VolatileSlice;

const LARGE: usize = 65535 + 14;
const SMALL: usize = 1514;

struct Card {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    mtu: usize,
}

impl Card {
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }
}

struct Rx<'a>(Vec<u8>, &'a mut Vec<Vec<u8>>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.0);
        self.1.push(self.0);
        result
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Rx<'a>;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Time) -> Option<(Rx<'_>, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?, &mut self.spare), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: Time) -> Option<Tx<'_>> {
        (self.tx.len() < 64).then_some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = self.mtu;
        // As between a virtio driver and its device.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.checksum.ipv4 = smoltcp::phy::Checksum::Tx;
        capabilities
    }
}

impl RxRing for Card {
    fn put(
        &mut self,
        max: usize,
        fill: &mut dyn FnMut(&[VolatileSlice<'_>]) -> Option<(usize, FrameInfo)>,
    ) -> bool {
        if self.rx.len() >= 256 {
            return false;
        }
        let mut bytes = self.buffer(max);
        if let Some((len, _)) = fill(&[VolatileSlice::from(&mut bytes[..])]) {
            bytes.truncate(len);
            self.rx.push_back(bytes);
        }
        true
    }
}

struct Guest {
    net: UserNet,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    port: u16,
    buffer: usize,
}

impl Guest {
    fn new(mtu: usize, buffer: usize) -> Guest {
        let mut card = Card { rx: VecDeque::new(), tx: Vec::new(), spare: Vec::new(), mtu };
        let mac = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ethernet(mac)), &mut card, Time::ZERO);
        interface.update_ip_addrs(|a| a.push(IpCidr::new(Ipv4Addr::new(10, 0, 2, 15).into(), 24)).unwrap());
        let mut net = UserNet::open(&UserConfig { ipv6: false, ..UserConfig::default() }).unwrap();
        let large = mtu == LARGE;
        net.set_guest_offloads(Offloads { checksum: true, tso4: large, tso6: large });
        Guest {
            net,
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            start: Instant::now(),
            port: 10000,
            buffer,
        }
    }

    fn step(&mut self) {
        self.net.service(Instant::now()).unwrap();
        self.net.receive(&mut self.card).unwrap();
        let now = Time::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap());
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        for mut frame in std::mem::take(&mut self.card.tx) {
            let len = frame.len();
            let slices = [VolatileSlice::from(&mut frame[..])];
            let checksum = Some(PartialChecksum { start: 34, offset: 16 });
            let info = FrameInfo { checksum, ..FrameInfo::default() };
            self.net.transmit(&TxFrame { slices: &slices, len, info });
        }
        self.net.flush();
    }

    fn connect(&mut self, to: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; self.buffer]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        self.port = self.port.wrapping_add(1).max(10000);
        socket.connect(self.interface.context(), (Ipv4Addr::new(10, 0, 2, 2), to), self.port).unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn connected(&mut self, to: u16) -> SocketHandle {
        let handle = self.connect(to);
        while !self.socket(handle).may_send() {
            self.step();
        }
        handle
    }
}

fn server(serve: impl Fn(std::net::TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().map(|a: SocketAddr| a.port()).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    port
}

fn report(name: &str, value: f64, unit: &str) {
    println!("{name}: {value:.2} {unit}");
}

fn throughput(mtu: usize, name: &str) {
    const TIME: Duration = Duration::from_secs(3);
    let sink = server(|mut stream| {
        let mut buffer = vec![0; 1 << 18];
        while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
    });
    let source = server(|mut stream| {
        let buffer = vec![0; 1 << 18];
        while stream.write(&buffer).is_ok() {}
    });
    let chunk = vec![0; 1 << 18];
    let mut sink_bytes = vec![0; 1 << 20];
    for (port, direction) in [(sink, "guest to host"), (source, "host to guest")] {
        let mut guest = Guest::new(mtu, 1 << 20);
        let handle = guest.connected(port);
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < TIME {
            let socket = guest.socket(handle);
            bytes += if port == sink {
                socket.send_slice(&chunk).unwrap()
            } else {
                socket.recv_slice(&mut sink_bytes).unwrap_or(0)
            };
            guest.step();
        }
        let gigabits = f64::from(u32::try_from(bytes >> 10).unwrap()) * 8192.0 / 1e9;
        report(&format!("{direction}, {name}"), gigabits / start.elapsed().as_secs_f64(), "Gbit/s");
    }
}

fn latency() {
    const ROUNDS: u32 = 20_000;
    let echo = server(|mut stream| {
        let _ = stream.set_nodelay(true);
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|n| n > 0) && stream.write(&byte).is_ok() {}
    });
    let mut guest = Guest::new(SMALL, 1 << 16);
    let handle = guest.connected(echo);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        guest.socket(handle).send_slice(b"x").unwrap();
        while !guest.socket(handle).can_recv() {
            guest.step();
        }
        guest.socket(handle).recv_slice(&mut [0]).unwrap();
    }
    report("request and response", start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS), "us");
}

fn connect_rate() {
    const ROUNDS: u32 = 5_000;
    let closer = server(drop);
    let mut guest = Guest::new(SMALL, 4096);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let handle = guest.connect(closer);
        while guest.socket(handle).state() != State::CloseWait {
            guest.step();
        }
        guest.socket(handle).close();
        while guest.socket(handle).state() != State::Closed {
            guest.step();
        }
        guest.sockets.remove(handle);
    }
    report("connect and close", f64::from(ROUNDS) / start.elapsed().as_secs_f64(), "per second");
}

fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u32 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    f64::from(pages) * 4096.0 / f64::from(1 << 20)
}

/// 1,000 connections whose guest does not read while the host sends all it can: the worst case.
fn memory() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(SMALL, 2048);
    let before = resident();
    let handles: Vec<_> = (0..1000).map(|_| guest.connect(port)).collect();
    let mut streams = Vec::new();
    listener.set_nonblocking(true).unwrap();
    while streams.len() < 1000 || handles.iter().any(|h| !guest.sockets.get::<Socket<'_>>(*h).may_send()) {
        guest.step();
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
    }
    report("1,000 connections, idle (with the guest's 4 MiB)", resident() - before, "MiB");
    for _ in 0..50 {
        for stream in &mut streams {
            let _ = stream.write(&[0; 65536]);
        }
        guest.step();
    }
    report("1,000 connections, all buffers full (with the guest's)", resident() - before, "MiB");
}

fn main() {
    throughput(LARGE, "large segments");
    throughput(SMALL, "1500-byte frames");
    latency();
    connect_rate();
    memory();
}
