//! A guest that sends any frames to the user-mode network, a host that answers as it likes, and a clock that runs ahead. The network is
//! under `restrict` throughout, so that what a frame asks for stays on this machine: sockets lead to what was forwarded, and nowhere else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hvrun_devices::backend::net::user::{Protocol, UserNet};
use hvrun_devices::backend::net::{FrameInfo, NetBackend, Offloads, PartialChecksum, Transmit, TxFrame};
use tempfile::TempDir;
use vm_memory::VolatileSlice;

use crate::input::{Input, Op};
use crate::ring::Ring;

/// Most operations of one input.
const MOST_OPS: usize = 512;
/// Most frames that wait while the guest has no room, and their bytes.
const MOST_WAITING: usize = 2048;
/// Most clients and datagram sockets of the host's.
const MOST_CLIENTS: usize = 16;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const ROUTER_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const ROUTER: [u8; 4] = [10, 0, 2, 2];
/// Behind it is a server of the host's.
const SERVER: [u8; 4] = [10, 0, 2, 100];
const SERVER_PORT: u16 = 7;
/// The guest's ports that are forwarded, and the first of those that it connects from.
const SSH: u16 = 22;
const FIRST_PORT: u16 = 10_000;
const PORTS: usize = 8;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 0x10;
const FIN: u8 = 1;

/// What an operation does. Its number in the input is taken modulo [`Code::ALL`]'s length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    /// The a bytes that follow are a frame, whose checksums count if b is even.
    Raw,
    /// A TCP segment with flags a. b: connection, how far its acknowledgement is off, its window; c: length and how far its sequence
    /// number is off.
    Tcp,
    /// Seed a, whose byte b is c.
    Seed,
    /// A seed that is cut off after b bytes.
    Cut,
    /// The clock runs c milliseconds, an hour at most.
    Wait,
    /// There is room for a frames.
    Room,
    /// The host does something, see [`World::host`].
    Host,
    /// The guest is reset, and understands what a says.
    Reset,
    /// What was gathered goes.
    Flush,
}

impl Code {
    const ALL: [Code; 9] = [
        Code::Raw,
        Code::Tcp,
        Code::Seed,
        Code::Cut,
        Code::Wait,
        Code::Room,
        Code::Host,
        Code::Reset,
        Code::Flush,
    ];

    fn of(op: Op) -> Code {
        Code::ALL[usize::from(op.code) % Code::ALL.len()]
    }
}

/// What the guest knows of a connection.
#[derive(Debug, Default, Clone, Copy)]
struct Connection {
    seq: u32,
    ack: u32,
    /// The other side's port, where it is not the server's.
    peer: Option<([u8; 4], u16)>,
}

struct World {
    net: UserNet,
    connections: [Connection; PORTS + 1],
    offloads: Offloads,
    ahead: Duration,
    /// The host's side, if anything is forwarded.
    server: Option<UnixListener>,
    forwarded: Vec<SocketAddr>,
    peers: Vec<UnixStream>,
    clients: Vec<TcpStream>,
    datagrams: Vec<UdpSocket>,
    /// Descriptors of this process when nothing had happened.
    descriptors: usize,
    _dir: Option<TempDir>,
}

impl World {
    /// With ways to the host, or without any.
    fn new(open: bool) -> World {
        let mut options = "restrict=on".to_owned();
        let (mut dir, mut server) = (None, None);
        if open {
            let folder = TempDir::new().expect("a directory can be made");
            let path = folder.path().join("s");
            let listener = UnixListener::bind(&path).expect("a socket can be made");
            listener.set_nonblocking(true).expect("a socket need not block");
            options.push_str(
                ",hostfwd=tcp:127.0.0.1:0-:22,hostfwd=udp:127.0.0.1:0-:22,guestfwd=tcp:10.0.2.100:7-unix:",
            );
            options.push_str(&path.display().to_string());
            (dir, server) = (Some(folder), Some(listener));
        }
        let net = UserNet::open(&options.parse().expect("it is well-formed")).expect("ports are free");
        let forwarded =
            net.handle().hostfwds().iter().map(|forward| (forward.protocol, forward.host)).collect();
        World {
            connections: [Connection { seq: 1, ..Connection::default() }; PORTS + 1],
            offloads: Offloads::default(),
            ahead: Duration::ZERO,
            server,
            forwarded: sorted(forwarded),
            peers: Vec::new(),
            clients: Vec::new(),
            datagrams: Vec::new(),
            descriptors: descriptors(),
            net,
            _dir: dir,
        }
    }

    fn perform(&mut self, op: Op, input: &mut Input<'_>) {
        match Code::of(op) {
            Code::Raw => self.send(&mut input.bytes(op.a.into()).to_vec(), op.b % 2 == 1),
            Code::Tcp => self.segment(op),
            Code::Seed => {
                let mut frame = seed(op.a);
                let at = usize::from(op.b) % frame.len();
                frame[at] = op.c as u8;
                self.send(&mut frame, op.c & 0x100 != 0);
            }
            Code::Cut => {
                let mut frame = seed(op.a);
                frame.truncate(usize::from(op.b) % frame.len());
                self.send(&mut frame, op.c & 0x100 != 0);
            }
            Code::Wait => self.ahead += Duration::from_millis(u64::from(op.c % 3_600_000)),
            Code::Room => return self.work(op.a.into()),
            Code::Host => self.host(op),
            Code::Reset => {
                let bit = |bit: u8| op.a & bit != 0;
                self.offloads = Offloads { checksum: bit(1), tso4: bit(3) && bit(1), tso6: bit(5) && bit(1) };
                self.net.set_guest_offloads(self.offloads);
            }
            Code::Flush => self.net.flush(),
        }
        self.work(0);
    }

    fn send(&mut self, frame: &mut [u8], trusted: bool) {
        let len = frame.len();
        let slices: Vec<_> = frame.chunks_mut(100).map(VolatileSlice::from).collect();
        let checksum = trusted.then_some(PartialChecksum { start: 34, offset: 16 });
        let info = FrameInfo { checksum, ..FrameInfo::default() };
        assert_eq!(self.net.transmit(&TxFrame { slices: &slices, len, info }), Transmit::Done);
    }

    /// A TCP segment that may well be right.
    fn segment(&mut self, op: Op) {
        let index = usize::from(op.b & 0xf) % (PORTS + 1);
        let Some(connection) = self.connections.get_mut(index) else { return };
        // Mostly none, for the mutations to change.
        let off = i32::from((op.c >> 16) as i16);
        let seq = connection.seq.wrapping_add_signed(off);
        let ack = connection.ack.wrapping_add_signed((i32::from(op.b >> 4 & 0xf) ^ 8) - 8);
        let window = [60_000, 0, 1, 100][usize::from(op.b >> 8 & 3)];
        let from = if index == PORTS { SSH } else { FIRST_PORT + index as u16 };
        let (address, to) = connection.peer.unwrap_or((SERVER, SERVER_PORT));
        let payload = vec![index as u8; (op.c & 0x7ff) as usize];
        if off == 0 {
            let counts = payload.len() as u32 + u32::from(op.a & (SYN | FIN) != 0);
            connection.seq = connection.seq.wrapping_add(counts);
        }
        let tcp = [
            &from.to_be_bytes()[..],
            &to.to_be_bytes(),
            &seq.to_be_bytes(),
            &ack.to_be_bytes(),
            &[if op.a & SYN != 0 { 7 << 4 } else { 5 << 4 }, op.a],
            &u16::to_be_bytes(window),
            &[0, 0],
            &u16::to_be_bytes(op.b >> 10),
            // The largest segment, and the window's scale.
            if op.a & SYN != 0 { &[2, 4, 5, 180, 1, 3, 3, 7] } else { &[] },
            &payload,
        ];
        let mut frame = ipv4(6, GUEST, address, &tcp.concat());
        self.send(&mut frame, true);
    }

    /// The host does what a says, to the connection that b says.
    fn host(&mut self, op: Op) {
        let which = usize::from(op.b);
        let bytes = vec![op.a; (op.c & 0xffff) as usize];
        match op.a % 8 {
            0 => {
                let accepted = self.server.as_ref().and_then(|server| server.accept().ok());
                if let Some((peer, _)) = accepted.filter(|(peer, _)| peer.set_nonblocking(true).is_ok()) {
                    self.peers.push(peer);
                }
            }
            1 => {
                let _ = nth(&mut self.peers, which).map(|peer| peer.write(&bytes));
            }
            2 => {
                let _ = nth(&mut self.peers, which).map(|peer| peer.read(&mut vec![0; bytes.len()]));
            }
            3 => {
                let _ = nth(&mut self.peers, which).map(|peer| peer.shutdown(std::net::Shutdown::Write));
            }
            4 if !self.peers.is_empty() => drop(self.peers.swap_remove(which % self.peers.len())),
            5 if self.clients.len() < MOST_CLIENTS => {
                let stream = self.forwarded.first().and_then(|address| TcpStream::connect(address).ok());
                self.clients.extend(stream.filter(|stream| stream.set_nonblocking(true).is_ok()));
            }
            6 if !self.clients.is_empty() => drop(self.clients.swap_remove(which % self.clients.len())),
            7 if self.datagrams.len() < MOST_CLIENTS => {
                let Some(to) = self.forwarded.get(1) else { return };
                let Ok(socket) = UdpSocket::bind("127.0.0.1:0") else { return };
                let _ = socket.send_to(bytes.get(..1000).unwrap_or(&bytes), to);
                self.datagrams.push(socket);
            }
            _ => {}
        }
    }

    /// Lets the network do what it has to, with room for so many frames.
    fn work(&mut self, room: usize) {
        self.net.service(Instant::now() + self.ahead).expect("there is no other end that could be gone");
        self.net.flush();
        let mut ring = Ring::new(room);
        self.net.receive(&mut ring).expect("there is no other end that could be gone");
        for (frame, info) in ring.frames {
            self.take(&frame, info);
        }
        let _ = self.net.deadline();
    }

    /// Looks at what the guest gets: frames that are what is said of them.
    fn take(&mut self, frame: &[u8], info: FrameInfo) {
        assert!(frame.len() >= 14, "a frame of {} bytes", frame.len());
        assert!(
            info.checksum.is_none() || self.offloads.checksum,
            "a checksum is left to a guest that computes none"
        );
        if let Some(partial) = info.checksum {
            let end = usize::from(partial.start) + usize::from(partial.offset) + 2;
            assert!(end <= frame.len(), "the checksum's place is outside of the frame");
        }
        match info.segmentation {
            Some(cut) => {
                assert!(
                    self.offloads.tso4 || self.offloads.tso6,
                    "the guest does not take packets still to be cut"
                );
                assert!(usize::from(cut.headers) <= frame.len() && cut.size > 0, "{cut:?}");
            }
            None => assert!(frame.len() <= 1514, "a frame of {} bytes for an MTU of 1500", frame.len()),
        }
        let Some(segment) = frame.get(34..).filter(|_| frame[12..14] == [8, 0] && frame[23] == 6) else {
            return;
        };
        let half = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let word = |at: usize| u32::from(half(at)) << 16 | u32::from(half(at + 2));
        let (from, to, flags) = (half(0), half(2), segment[13]);
        let index = match to {
            SSH => PORTS,
            _ => usize::from(to.wrapping_sub(FIRST_PORT)),
        };
        let Some(connection) = self.connections.get_mut(index) else { return };
        let payload = segment.len().saturating_sub(usize::from(segment[12] >> 4) * 4) as u32;
        if flags & RST == 0 {
            connection.ack = word(4).wrapping_add(payload + u32::from(flags & (SYN | FIN) != 0));
        }
        let source = [frame[26], frame[27], frame[28], frame[29]];
        connection.peer = (index == PORTS).then_some((source, from));
    }

    /// No more descriptors than connections, and nothing kept without bound.
    fn check(&mut self) {
        let own = self.peers.len() + self.clients.len() + self.datagrams.len();
        let most = self.descriptors + own + self.net.connections();
        let now = descriptors();
        assert!(now <= most, "{now} descriptors are open, and no more than {most} are accounted for");
        let mut ring = Ring::new(usize::MAX);
        self.net.receive(&mut ring).expect("there is no other end that could be gone");
        let len: usize = ring.frames.iter().map(|(frame, _)| frame.len()).sum();
        assert!(ring.frames.len() <= MOST_WAITING + 64 * (PORTS + 1), "{} frames waited", ring.frames.len());
        assert!(len <= 16 << 20, "{len} bytes of frames waited");
    }
}

fn nth<T>(list: &mut [T], which: usize) -> Option<&mut T> {
    let len = list.len();
    list.get_mut(which.checked_rem(len)?)
}

/// TCP's first.
fn sorted(forwards: Vec<(Protocol, SocketAddr)>) -> Vec<SocketAddr> {
    let (tcp, udp): (Vec<_>, Vec<_>) =
        forwards.into_iter().partition(|(protocol, _)| *protocol == Protocol::Tcp);
    tcp.into_iter().chain(udp).map(|(_, address)| address).collect()
}

/// How many descriptors this process has.
fn descriptors() -> usize {
    std::fs::read_dir("/dev/fd").map_or(0, Iterator::count)
}

/// The target `nat`.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let Some(choice) = input.op() else { return };
    let mut world = World::new(choice.a & 1 == 1);
    for _ in 0..MOST_OPS {
        let Some(op) = input.op() else { break };
        world.perform(op, &mut input);
    }
    world.check();
}

/// An IPv4 packet in a frame.
fn ipv4(protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&ROUTER_MAC[..], &MAC, &[8, 0], &header, payload].concat()
}

/// An IPv6 packet in a frame.
fn ipv6(protocol: u8, destination: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let source = [0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15];
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let header = [&[0x60, 0, 0, 0, high, low, protocol, 255], &source[..], &destination].concat();
    [&ROUTER_MAC[..], &MAC, &[0x86, 0xdd], &header, payload].concat()
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// How many seeds there are.
const SEEDS: u8 = 15;
/// fec0::2, fec0::3 and ::ffff:127.0.0.1.
const ROUTER6: [u8; 16] = [0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const DNS6: [u8; 16] = [0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];

/// A good frame of each kind.
fn seed(which: u8) -> Vec<u8> {
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
    match which % SEEDS {
        0 => [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &GUEST, &[0; 6], &ROUTER].concat(),
        1 => {
            let mut discover = vec![1, 1, 6, 0];
            discover.resize(28, 0);
            discover.extend_from_slice(&MAC);
            discover.resize(236, 0);
            discover.extend_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
            ipv4(17, [0; 4], [255; 4], &udp(68, 67, &discover))
        }
        2 => ipv4(17, GUEST, [10, 0, 2, 3], &udp(5353, 53, question)),
        3 => ipv4(17, GUEST, ROUTER, &udp(SSH, 9, b"answer")),
        4 => ipv4(17, GUEST, [192, 0, 2, 1], &udp(5000, 9, b"outside")),
        5 => ipv4(1, GUEST, ROUTER, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]),
        6 => ipv4(1, GUEST, [192, 0, 2, 1], &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]),
        7 => ipv4(17, GUEST, ROUTER, &udp(6969, 69, b"\x00\x01file\x00octet\x00blksize\x001468\x00")),
        8 => {
            // The first of two pieces; the next seed is the second.
            let mut frame = ipv4(17, GUEST, ROUTER, &udp(5000, 9, &[1; 24])[..16]);
            (frame[20], frame[24], frame[25]) = (0x20, 0, 0);
            rewrite(frame)
        }
        9 => {
            let mut frame = ipv4(17, GUEST, ROUTER, &[1; 16]);
            (frame[20], frame[21]) = (0, 2);
            rewrite(frame)
        }
        10 => ipv6(58, [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], &[133, 0, 0, 0, 0, 0, 0, 0]),
        11 => ipv6(58, ROUTER6, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &ROUTER6, &[1, 1], &MAC].concat()),
        12 => ipv6(
            60,
            ROUTER6,
            &[
                &[0, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0][..],
                &[17, 0, 0, 1, 0, 0, 0, 1],
                &udp(5000, 9, &[1; 8]),
            ]
            .concat(),
        ),
        13 => ipv6(17, DNS6, &udp(5353, 53, question)),
        _ => ipv6(6, MAPPED, &[4, 210, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2, 255, 255, 0, 0, 0, 0]),
    }
}

/// Makes an IPv4 header's checksum right.
fn rewrite(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Writes inputs.
struct Script(Vec<u8>);

impl Script {
    fn new(open: bool) -> Self {
        Script(Op::new(0, open.into(), 0, 0).bytes().to_vec())
    }

    fn op(mut self, code: Code, a: u8, b: u16, c: u32) -> Self {
        let code = Code::ALL.iter().position(|other| *other == code).unwrap_or_default();
        self.0.extend(Op::new(code as u8, a, b, c).bytes());
        self
    }

    /// The guest's part of a handshake, and the host's.
    fn connect(self, index: u16) -> Self {
        self.op(Code::Tcp, SYN, index, 0)
            .op(Code::Host, 0, 0, 0)
            .op(Code::Room, 8, 0, 0)
            .op(Code::Tcp, ACK, index, 0)
            .op(Code::Room, 8, 0, 0)
    }
}

/// A conversation in which the guest ends first, one in which the host does, one that the host begins, and every other kind of frame.
pub fn corpus() -> Vec<Vec<u8>> {
    let guest_ends = Script::new(true)
        .connect(0)
        .op(Code::Tcp, ACK, 0, 1000)
        .op(Code::Host, 2, 0, 2000)
        .op(Code::Host, 1, 0, 5000)
        .op(Code::Room, 16, 0, 0)
        .op(Code::Tcp, ACK, 0, 0)
        .op(Code::Tcp, ACK | FIN, 0, 10)
        .op(Code::Room, 16, 0, 0)
        .op(Code::Host, 4, 0, 0)
        .op(Code::Room, 16, 0, 0)
        .op(Code::Tcp, ACK, 0, 0)
        .op(Code::Wait, 0, 0, 1000);
    let host_ends = Script::new(true)
        .op(Code::Reset, 7, 0, 0)
        .connect(1)
        .op(Code::Host, 1, 0, 60_000)
        .op(Code::Room, 16, 0, 0)
        .op(Code::Host, 3, 0, 0)
        .op(Code::Tcp, ACK, 0x101, 0)
        .op(Code::Wait, 0, 0, 2000)
        .op(Code::Room, 16, 0, 0)
        .op(Code::Tcp, ACK | FIN, 1, 0)
        .op(Code::Room, 16, 0, 0);
    let host_begins = Script::new(true)
        .op(Code::Seed, 0, 0, 0xff)
        .op(Code::Host, 5, 0, 0)
        .op(Code::Room, 8, 0, 0)
        .op(Code::Tcp, ACK | SYN, PORTS as u16, 0)
        .op(Code::Room, 8, 0, 0)
        .op(Code::Tcp, ACK, PORTS as u16, 100)
        .op(Code::Host, 7, 0, 64)
        .op(Code::Room, 8, 0, 0)
        .op(Code::Seed, 3, 0, 0x152)
        .op(Code::Host, 6, 0, 0)
        .op(Code::Room, 8, 0, 0)
        .op(Code::Wait, 0, 0, 3_000_000);
    let out_of_order = Script::new(true)
        .connect(2)
        .op(Code::Tcp, ACK, 2, 100 << 16 | 50)
        .op(Code::Tcp, ACK, 2, 60 << 16 | 100)
        .op(Code::Tcp, ACK, 2, 120)
        .op(Code::Tcp, RST, 2, 0)
        .op(Code::Room, 8, 0, 0);
    let kinds = |open| {
        let script = (0..SEEDS).fold(Script::new(open), |script, which| {
            // The first byte of a seed's destination stays what it is where it is the router's.
            script.op(Code::Seed, which, 0, if which == 0 { 0x1ff } else { 0x152 })
        });
        script.op(Code::Room, 64, 0, 0)
    };
    let flood =
        (0..PORTS as u16).fold(Script::new(true), |script, index| script.op(Code::Tcp, SYN, index, 0));
    let flood = flood.op(Code::Wait, 0, 0, 61_000).op(Code::Room, 64, 0, 0).op(Code::Wait, 0, 0, 61_000);
    let scripts = [guest_ends, host_ends, host_begins, out_of_order, kinds(true), kinds(false), flood];
    scripts.into_iter().map(|script| script.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(script: &Script) -> World {
        let mut input = Input(&script.0);
        let mut world = World::new(input.op().unwrap().a & 1 == 1);
        while let Some(op) = input.op() {
            world.perform(op, &mut input);
        }
        world
    }

    #[test]
    fn the_seeds_handshake_makes_a_connection_that_carries_bytes() {
        let script = Script::new(true).connect(0).op(Code::Tcp, ACK, 0, 1000);
        let mut world = after(&script);
        assert_eq!((world.net.connections(), world.peers.len()), (1, 1));
        assert_eq!(world.peers[0].read(&mut [0; 2000]).unwrap(), 1000);
        world.check();
    }

    #[test]
    fn the_seed_of_a_client_of_the_hosts_reaches_the_guest() {
        let script = Script::new(true)
            .op(Code::Seed, 0, 0, 0xff)
            .op(Code::Host, 5, 0, 0)
            .op(Code::Room, 8, 0, 0)
            .op(Code::Tcp, ACK | SYN, PORTS as u16, 0)
            .op(Code::Room, 8, 0, 0)
            .op(Code::Tcp, ACK, PORTS as u16, 100);
        let mut world = after(&script);
        assert_eq!(world.clients[0].read(&mut [0; 200]).unwrap(), 100);
    }

    #[test]
    fn every_kind_of_seed_is_answered() {
        let mut world = World::new(false);
        let answered = |world: &mut World, which: u8| {
            world.send(&mut seed(which), true);
            let mut ring = Ring::new(8);
            world.net.receive(&mut ring).unwrap();
            !ring.frames.is_empty()
        };
        // These two are first pieces of datagrams, which wait for the rest.
        let silent: Vec<u8> = (0..SEEDS).filter(|which| !answered(&mut world, *which)).collect();
        assert_eq!(silent, [8, 12], "of these nothing was heard");
    }

    #[test]
    fn a_descriptor_too_many_is_found() {
        let mut world = World::new(false);
        let _leak = UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.check()));
        assert!(found.is_err());
    }
}
