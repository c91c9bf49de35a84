//! A hostile driver, for every device and over both transports. The input's first 8 bytes choose the device; then come operations, see
//! `Code`. It does not say what a device must answer, only that it does and goes on.

use std::sync::Arc;

use hvrun_arch::GuestMemory;
use hvrun_devices::backend::chardev::Null;
use hvrun_devices::backend::net::Offloads;
use hvrun_devices::backend::ninep::{Share, ShareConfig};
use hvrun_devices::virtio::VirtioDevice;
use hvrun_devices::virtio::balloon::{Balloon, BalloonConfig};
use hvrun_devices::virtio::block::{BlockOptions, VirtioBlock};
use hvrun_devices::virtio::console::{Console, PortKind, PortSetup, TerminalSize};
use hvrun_devices::virtio::fs9p::Fs9p;
use hvrun_devices::virtio::net::{CommonOptions, Net, NetOptions};
use hvrun_devices::virtio::rng::{Rng, RngConfig};
use tempfile::TempDir;

use crate::guest::{BUFFERS, Desc, Guest, RAM, RAM_SIZE, memory};
use crate::input::{Input, Op};
use crate::parts::{Discard, Echo, MemoryDisk, store};

/// Most operations of one input.
const MOST_OPS: usize = 512;

/// The devices, in the order of the input's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block,
    Console,
    Rng,
    Fs9p,
    Balloon,
    Net,
}

const KINDS: [Kind; 6] = [Kind::Block, Kind::Console, Kind::Rng, Kind::Fs9p, Kind::Balloon, Kind::Net];

/// What an operation does. Its number in the input is taken modulo [`Code::ALL`]'s length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    /// Writes to the window at offset b.
    Write,
    /// Reads from there.
    Read,
    /// A whole initialisation, without the features c and with queues of 2^b entries.
    BringUp,
    /// Descriptor b & 0xff of queue a & 7, see [`desc`].
    Desc,
    /// Makes the chain at b available in queue a.
    Offer,
    /// Rings doorbell a.
    Kick,
    /// Sets the available index of queue a to b.
    AvailIdx,
    /// 4 bytes, c, at place a with offset b, see [`place`].
    Store,
    /// The a bytes that follow go to the buffers at offset b.
    StoreBytes,
    /// Resets the device.
    Reset,
    /// Writes c to the device's configuration at b.
    WriteConfig,
    /// Reads it.
    ReadConfig,
    /// Waits until queue a is served.
    Settle,
    /// Writes c to PCI configuration space at b.
    Configure,
    /// Reads it.
    Inspect,
}

impl Code {
    const ALL: [Code; 15] = [
        Code::Write,
        Code::Read,
        Code::BringUp,
        Code::Desc,
        Code::Offer,
        Code::Kick,
        Code::AvailIdx,
        Code::Store,
        Code::StoreBytes,
        Code::Reset,
        Code::WriteConfig,
        Code::ReadConfig,
        Code::Settle,
        Code::Configure,
        Code::Inspect,
    ];

    fn of(op: Op) -> Code {
        Code::ALL[usize::from(op.code) % Code::ALL.len()]
    }
}

/// The target `virtio-mmio`.
pub fn mmio(bytes: &[u8]) {
    run(bytes, Guest::mmio);
}

/// The target `virtio-pci`.
pub fn pci(bytes: &[u8]) {
    run(bytes, Guest::pci);
}

fn run(bytes: &[u8], carry: fn(Arc<dyn VirtioDevice>, GuestMemory) -> Guest) {
    let mut input = Input(bytes);
    let Some(choice) = input.op() else { return };
    let memory = memory();
    let (device, _dir) = device(choice, &memory);
    let guest = carry(device, memory);
    let mut size = 0;
    for _ in 0..MOST_OPS {
        let Some(op) = input.op() else { break };
        perform(&guest, op, &mut input, &mut size);
    }
    guest.reset();
}

/// The device that the input's first operation chooses, and the directory it lives on.
fn device(choice: Op, memory: &GuestMemory) -> (Arc<dyn VirtioDevice>, Option<TempDir>) {
    let options = choice.a;
    match KINDS[usize::from(choice.code) % KINDS.len()] {
        Kind::Block => {
            let options = BlockOptions { serial: "fuzz".to_owned(), queues: u16::from(options & 3) + 1 };
            let block = VirtioBlock::new(Arc::new(MemoryDisk::new()), &options);
            (Arc::new(block.expect("a descriptor is left")), None)
        }
        Kind::Console => (console(options), None),
        Kind::Rng => {
            // A short period, so that requests are put off and come again.
            let max_bytes = (options & 1 == 1).then_some(64);
            (Arc::new(Rng::new(RngConfig { max_bytes, period: 1 })), None)
        }
        Kind::Fs9p => {
            let dir = TempDir::new().expect("a directory can be made");
            std::fs::write(dir.path().join("file"), "contents").expect("a file can be made");
            let mut config = ShareConfig::new(dir.path(), "fuzz");
            config.readonly = options & 1 == 1;
            (Arc::new(Fs9p::new(Share::open(&config).expect("it is a directory"))), Some(dir))
        }
        Kind::Balloon => {
            let config =
                BalloonConfig { deflate_on_oom: options & 1 == 1, free_page_reporting: options & 2 == 0 };
            let balloon = Balloon::new(config, memory, Arc::new(Discard(memory.clone())));
            let balloon = balloon.expect("a descriptor is left");
            balloon.set_target(RAM_SIZE / 2);
            (Arc::new(balloon), None)
        }
        Kind::Net => {
            // What the network does not do is done by the card.
            let offloads =
                Offloads { checksum: options & 1 == 1, tso4: options & 3 == 3, tso6: options & 3 == 3 };
            let named = NetOptions::of_card(0, &CommonOptions::default());
            let net = Net::new(named, Box::new(Echo::new(offloads)));
            (Arc::new(net.expect("a descriptor is left")), None)
        }
    }
}

fn console(options: u8) -> Arc<dyn VirtioDevice> {
    let port =
        |kind, name: Option<&str>| PortSetup { kind, name: name.map(str::to_owned), backend: Arc::new(Null) };
    let mut setups = vec![port(PortKind::Serial, Some("one")), port(PortKind::Serial, Some("two"))];
    if options & 1 == 0 {
        let size = TerminalSize { cols: 80, rows: 25 };
        setups.push(port(PortKind::Console((options & 2 == 0).then_some(size)), None));
    }
    Console::new("console", setups).expect("few ports")
}

fn perform(guest: &Guest, op: Op, input: &mut Input<'_>, size: &mut u16) {
    let width = op.width();
    let (data, mut answer) = (op.data(), [0; 8]);
    let queue = u64::from(op.a);
    match Code::of(op) {
        Code::Write => guest.write(op.b, &data[..width]),
        Code::Read => guest.read(op.b, &mut answer[..width]),
        Code::BringUp => {
            *size = 1 << (op.b % 9);
            guest.bring_up(op.c.into(), *size);
        }
        Code::Desc => guest.set_desc(queue & 7, u64::from(op.b & 0xff), desc(op)),
        Code::Offer => guest.offer(queue, op.b, *size),
        Code::Kick => guest.kick(op.a.into()),
        Code::AvailIdx => guest.set_avail_idx(queue, op.b),
        Code::Store => store(&guest.memory, place(op.a, op.b), &op.c.to_le_bytes()),
        Code::StoreBytes => store(&guest.memory, BUFFERS + u64::from(op.b), input.bytes(op.a.into())),
        Code::Reset => guest.reset(),
        Code::WriteConfig => guest.write(guest.device_config().wrapping_add(op.b % 0x100), &data[..width]),
        Code::ReadConfig => {
            guest.read(guest.device_config().wrapping_add(op.b % 0x100), &mut answer[..width])
        }
        Code::Settle => guest.settle(queue),
        Code::Configure => guest.configure(op.b, &data[..width]),
        Code::Inspect => guest.inspect(op.b, &mut answer[..width]),
    }
}

/// An address: in the buffers, in the rings, near the end of RAM, or nowhere.
fn place(kind: u8, offset: u16) -> u64 {
    let offset = u64::from(offset);
    match kind & 3 {
        0 => BUFFERS + offset,
        1 => RAM + offset,
        2 => RAM + RAM_SIZE - offset,
        _ => offset << 48 | offset,
    }
}

/// A descriptor in 8 bytes. Its flags are bits 3 to 5 of a, the place of its buffer the upper two, its next one the upper half of b; c
/// is offset and length, 0xffff being all that a length can say.
fn desc(op: Op) -> Desc {
    let (len, offset) = (op.c as u16, (op.c >> 16) as u16);
    let len = if len == u16::MAX { u32::MAX } else { len.into() };
    Desc { addr: place(op.a >> 6, offset), len, flags: u16::from(op.a >> 3 & 7), next: op.b >> 8 }
}

/// Descriptor flags as [`desc`] reads them.
const NEXT: u8 = 1 << 3;
const WRITE: u8 = 2 << 3;
const INDIRECT: u8 = 4 << 3;

/// Writes inputs.
struct Script(Vec<u8>);

impl Script {
    fn new(kind: Kind, options: u8) -> Self {
        let kind = KINDS.iter().position(|other| *other == kind).unwrap_or_default();
        Script(Op::new(kind as u8, options, 0, 0).bytes().to_vec())
    }

    fn op(mut self, code: Code, a: u8, b: u16, c: u32) -> Self {
        let code = Code::ALL.iter().position(|other| *other == code).unwrap_or_default();
        self.0.extend(Op::new(code as u8, a, b, c).bytes());
        self
    }

    fn up(self) -> Self {
        self.op(Code::BringUp, 0, 4, 0)
    }

    fn bytes(mut self, offset: u16, bytes: &[u8]) -> Self {
        for (offset, part) in (offset..).step_by(128).zip(bytes.chunks(128)) {
            self = self.op(Code::StoreBytes, part.len() as u8, offset, 0);
            self.0.extend(part);
        }
        self
    }

    /// Links buffers (flags, offset, length) to a chain from descriptor `head` on, offers it and waits.
    fn chain(mut self, queue: u8, head: u16, buffers: &[(u8, u16, u16)]) -> Self {
        for (index, (flags, offset, len)) in (head..).zip(buffers) {
            let last = usize::from(index - head) + 1 == buffers.len();
            let flags = flags | if last { 0 } else { NEXT };
            let b = (index + 1) << 8 | index;
            self = self.op(Code::Desc, queue | flags, b, u32::from(*offset) << 16 | u32::from(*len));
        }
        self.op(Code::Offer, queue, head, 0).op(Code::Kick, queue, 0, 0).op(Code::Settle, queue, 0, 0)
    }

    /// A block request: type, sector, data.
    fn block(self, head: u16, kind: u32, sector: u64, data: &[(u8, u16, u16)]) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        let mut buffers = vec![(0, head * 32, 16)];
        buffers.extend(data);
        buffers.push((WRITE, head * 32 + 16, 1));
        self.bytes(head * 32, &bytes).chain(0, head, &buffers)
    }
}

/// Valid sequences of each device.
pub fn corpus() -> Vec<Vec<u8>> {
    let scripts = [block_reads_and_writes(), block_gives_back(), block_indirect(), console_talks()];
    let others = [rng_fills(), ninep_attaches(), balloon_inflates(), looks_around()];
    let nets = (0..4).map(net_talks);
    scripts.into_iter().chain(others).chain(nets).map(|script| script.0).collect()
}

/// VIRTIO_BLK_T_* (virtio 1.2, 5.2.6): read, write, flush, id, discard, write zeroes.
fn block_reads_and_writes() -> Script {
    Script::new(Kind::Block, 0)
        .up()
        .block(0, 1, 2, &[(0, 0x1000, 512)])
        .block(4, 0, 0, &[(WRITE, 0x2000, 512), (WRITE, 0x3000, 1024)])
        .block(8, 4, 0, &[])
        .block(12, 8, 0, &[(WRITE, 0x4000, 20)])
        // The sector whose writes fail.
        .block(0, 1, 127, &[(0, 0x1000, 512)])
}

fn block_gives_back() -> Script {
    let segment = [0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0];
    Script::new(Kind::Block, 3)
        .up()
        .bytes(0x1000, &segment)
        .block(0, 13, 0, &[(0, 0x1000, 16)])
        .bytes(0x1000 + 12, &[0])
        .block(4, 11, 0, &[(0, 0x1000, 16)])
        .op(Code::WriteConfig, 0, 32, 0)
        .block(8, 1, 5, &[(0, 0x2000, 1024)])
        .op(Code::Reset, 0, 0, 0)
        .up()
        .block(8, 0, 5, &[(WRITE, 0x2000, 1024)])
}

fn block_indirect() -> Script {
    let head = [0; 16];
    let descs = [
        Desc { addr: BUFFERS, len: 16, flags: 1, next: 1 },
        Desc { addr: BUFFERS + 0x1000, len: 512, flags: 3, next: 2 },
        Desc { addr: BUFFERS + 0x800, len: 1, flags: 2, next: 0 },
    ];
    let table: Vec<u8> = descs.into_iter().flat_map(Desc::bytes).collect();
    Script::new(Kind::Block, 0).up().bytes(0, &head).bytes(0x100, &table).chain(
        0,
        0,
        &[(INDIRECT, 0x100, 48)],
    )
}

/// Control messages (virtio 1.2, 5.3.6.2): the device is ready, ports are ready and open; then data.
fn console_talks() -> Script {
    let mut script = Script::new(Kind::Console, 0).up();
    for head in 0..8 {
        script = script.chain(2, head, &[(WRITE, 0x1000 + head * 64, 64)]);
    }
    let control = |id: u8, event: u8, value: u8| [id, 0, 0, 0, event, 0, value, 0];
    let messages = [control(0, 0, 1), control(0, 3, 1), control(1, 3, 1), control(1, 6, 1), control(0, 6, 1)];
    for (head, message) in (0_u16..).zip(messages) {
        script = script.bytes(head * 8, &message).chain(3, head, &[(0, head * 8, 8)]);
    }
    script
        .chain(0, 0, &[(WRITE, 0x2000, 128)])
        .chain(1, 0, &[(0, 0x1000, 100), (0, 0x1100, 1)])
        .chain(5, 0, &[(0, 0x1000, 300)])
        .bytes(0, &control(1, 6, 0))
        .chain(3, 6, &[(0, 0, 8)])
        // A character without queues.
        .op(Code::WriteConfig, 2, 8, 65)
}

fn rng_fills() -> Script {
    Script::new(Kind::Rng, 1).up().chain(0, 0, &[(WRITE, 0x1000, 64)]).chain(
        0,
        1,
        &[(WRITE, 0x2000, 100), (WRITE, 0x3000, 1)],
    )
}

/// Tversion, Tattach, Twalk, Tlopen, Tread, Treaddir, Tclunk.
fn ninep_attaches() -> Script {
    let mut script = Script::new(Kind::Fs9p, 0).up();
    for (head, message) in (0_u16..).step_by(2).zip(crate::ninep::session()) {
        let len = message.len() as u16;
        script = script.bytes(0, &message).chain(0, head % 16, &[(0, 0, len), (WRITE, 0x1000, 0x2000)]);
    }
    script
}

/// Page numbers to inflate and deflate, statistics, a report of free pages.
fn balloon_inflates() -> Script {
    let pages: Vec<u8> =
        (0..16_u32).flat_map(|page| ((RAM >> 12) as u32 + 40 + page).to_le_bytes()).collect();
    Script::new(Kind::Balloon, 0)
        .up()
        .op(Code::WriteConfig, 2, 4, 16)
        .bytes(0, &pages)
        .chain(0, 0, &[(0, 0, 64)])
        .chain(1, 0, &[(0, 0, 64)])
        .bytes(0x100, &[3, 0, 0, 0, 0, 0, 1, 0, 0, 0])
        .chain(2, 0, &[(0, 0x100, 10)])
        .chain(2, 1, &[(0, 0x100, 10)])
        .chain(4, 0, &[(WRITE, 0x4000, 0x4000), (WRITE, 0x9000, 0x1000)])
}

/// Room for frames; a TCP frame to be cut into segments of 100 bytes, one to be completed, a plain one, each behind its
/// `struct virtio_net_hdr` (virtio 1.2, 5.1.6); receive modes and an address by the control queue (5.1.6.5).
fn net_talks(options: u8) -> Script {
    let mut script = Script::new(Kind::Net, options).up();
    for head in 0..8 {
        script = script.chain(0, head, &[(WRITE, 0x8000 + head * 0x800, 0x700)]);
    }
    let header = |flags, kind, size: u8| [flags, kind, 54, 0, size, 0, 34, 0, 16, 0, 1, 0];
    let mut frame = vec![0xff; 12];
    frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 240, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    frame.extend_from_slice(&[0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.resize(54 + 200, 5);
    let len = 12 + frame.len() as u16;
    for (head, header) in (0_u16..).zip([header(1, 1, 100), header(1, 0, 0), header(0, 0, 0)]) {
        let at = head * 0x200;
        let bytes = [&header[..], &frame].concat();
        script = script.bytes(at, &bytes).chain(1, head * 2, &[(0, at, 12), (0, at + 12, len - 12)]);
    }
    let commands: [&[u8]; 4] =
        [&[0, 0, 1], &[1, 1, 2, 0x52, 0x54, 0, 1, 2, 3], &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[4, 0, 1, 0]];
    for (head, command) in (0_u16..).step_by(2).zip(commands) {
        let at = 0x1000 + head * 16;
        let buffers = [(0, at, command.len() as u16), (WRITE, at + 24, 1)];
        script = script.bytes(at, command).chain(2, head, &buffers);
    }
    script.op(Code::ReadConfig, 2, 0, 0).op(Code::ReadConfig, 1, 6, 0)
}

/// Every register and the first of the configuration, before and after the start; an event index; a register of MSI-X.
fn looks_around() -> Script {
    let mut script = Script::new(Kind::Block, 1);
    for offset in (0..0x120).step_by(4) {
        script = script.op(Code::Read, 2, offset, 0);
    }
    script = script.up().op(Code::Store, 1, 0x1000 + 4 + 32, 3).op(Code::Write, 2, 0x4000, 0x0802_0040);
    for offset in (0..0x60).step_by(4) {
        script = script.op(Code::ReadConfig, 2, offset, 0).op(Code::Inspect, 2, offset, 0);
    }
    script.op(Code::Configure, 2, 0x40, 0x8000_0000).op(Code::AvailIdx, 0, 0xffff, 0).op(Code::Kick, 0, 0, 0)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// The script's queue is served over either transport: so many chains are used in the end.
    #[track_caller]
    fn check(script: &Script, queue: u64, chains: u16) {
        for carry in [Guest::mmio, Guest::pci] {
            let mut input = Input(&script.0);
            let memory = memory();
            let (device, _dir) = device(input.op().unwrap(), &memory);
            let guest = carry(device, memory);
            let mut size = 0;
            while let Some(op) = input.op() {
                perform(&guest, op, &mut input, &mut size);
            }
            // Only a test that fails waits that long.
            let patience = Instant::now() + Duration::from_secs(60);
            while guest.used_idx(queue) < chains && Instant::now() < patience {
                std::thread::yield_now();
            }
            assert_eq!(guest.used_idx(queue), chains, "{guest:?}");
        }
    }

    #[test]
    fn seeds_of_the_block_device_are_served() {
        check(&block_reads_and_writes(), 0, 5);
        check(&block_indirect(), 0, 1);
    }

    #[test]
    fn seeds_of_the_console_are_served() {
        check(&console_talks(), 3, 6);
        check(&console_talks(), 5, 1);
    }

    #[test]
    fn seeds_of_the_entropy_device_are_served() {
        check(&Script::new(Kind::Rng, 0).up().chain(0, 0, &[(WRITE, 0x1000, 64)]), 0, 1);
    }

    #[test]
    fn seeds_of_the_9p_device_are_served() {
        check(&ninep_attaches(), 0, crate::ninep::session().len() as u16);
    }

    #[test]
    fn seeds_of_the_network_card_are_served() {
        for options in 0..4 {
            check(&net_talks(options), 1, 3);
            check(&net_talks(options), 2, 4);
        }
    }

    #[test]
    fn seeds_of_the_balloon_are_served() {
        check(&balloon_inflates(), 0, 1);
        check(&balloon_inflates(), 4, 1);
    }
}
