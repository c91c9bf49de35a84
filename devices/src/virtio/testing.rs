//! A driver for tests, which can do what no driver should: rings in guest memory, descriptors as one likes them, and registers
//! over virtio-mmio. It knows no particular device.

pub(crate) mod calls;
pub(crate) mod hal;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hvrun_arch::{GuestMemory, Spi};
use vm_memory::{Bytes, GuestAddress};

use super::device::{F_VERSION_1, VirtioDevice};
use super::mmio::VirtioMmio;
use crate::bus::MmioDevice;
use crate::irq::EdgeIrq;
use crate::irq::fake::FakeChip;

/// Where the test guest's RAM begins.
pub(crate) const RAM: u64 = 0x4000_0000;
/// How much of it there is.
pub(crate) const RAM_SIZE: u64 = 16 << 20;
/// Where tests put their buffers: RAM from here on holds no rings.
pub(crate) const BUFFERS: u64 = RAM + 0x10_0000;
/// Space of one queue's rings, enough for 1024 entries.
const RING_SPACE: u64 = 0x1_0000;
/// How long a worker may take. Only a test that fails waits that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// VIRTQ_DESC_F_NEXT (virtio 1.2, 2.7.5).
pub(crate) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub(crate) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub(crate) const INDIRECT: u16 = 4;

/// Offsets of the virtio-mmio registers that drivers use (virtio 1.2, table 4.1).
pub(crate) mod reg {
    pub(crate) const DEVICE_FEATURES: u64 = 0x010;
    pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(crate) const QUEUE_SEL: u64 = 0x030;
    pub(crate) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(crate) const QUEUE_NUM: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
    pub(crate) const INTERRUPT_ACK: u64 = 0x064;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const QUEUE_DESC: u64 = 0x080;
    pub(crate) const QUEUE_DRIVER: u64 = 0x090;
    pub(crate) const QUEUE_DEVICE: u64 = 0x0a0;
    pub(crate) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(crate) const CONFIG: u64 = 0x100;
}

/// Values of the status register (virtio 1.2, 2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u32 = 1;
    pub(crate) const DRIVER: u32 = 2;
    pub(crate) const DRIVER_OK: u32 = 4;
    pub(crate) const FEATURES_OK: u32 = 8;
    pub(crate) const NEEDS_RESET: u32 = 64;
    /// Up to the negotiation's end.
    pub(crate) const NEGOTIATED: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    /// All the way.
    pub(crate) const RUNNING: u32 = NEGOTIATED | DRIVER_OK;
}

/// Zeroed RAM.
pub(crate) fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(RAM), RAM_SIZE as usize)]).unwrap()
}

/// A descriptor as it lies in a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Desc {
    /// A buffer for the device to read.
    pub(crate) fn readable(addr: u64, len: u32) -> Desc {
        Desc { addr, len, ..Desc::default() }
    }

    /// A buffer for the device to fill.
    pub(crate) fn writable(addr: u64, len: u32) -> Desc {
        Desc { addr, len, flags: WRITE, next: 0 }
    }

    /// A table of `entries` descriptors.
    pub(crate) fn indirect(addr: u64, entries: u32) -> Desc {
        Desc { addr, len: entries * 16, flags: INDIRECT, next: 0 }
    }

    /// The same with a next one.
    pub(crate) fn then(self, next: u16) -> Desc {
        Desc { flags: self.flags | NEXT, next, ..self }
    }

    /// Writes it as entry `index` of the table at `table`.
    pub(crate) fn store(self, memory: &GuestMemory, table: u64, index: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        memory.write_slice(&bytes, GuestAddress(table + u64::from(index) * 16)).unwrap();
    }
}

/// A queue as the driver sees it. The addresses may be changed before the device is told of them.
#[derive(Debug, Clone)]
pub(crate) struct Ring {
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    memory: GuestMemory,
    next_desc: u16,
    next_avail: u16,
    seen: u16,
}

impl Ring {
    /// An empty one, at a place of its own.
    pub(crate) fn new(memory: &GuestMemory, index: u16, size: u16) -> Ring {
        let desc = RAM + u64::from(index) * RING_SPACE;
        let zeros = vec![0; RING_SPACE as usize];
        memory.write_slice(&zeros, GuestAddress(desc)).unwrap();
        let (avail, used) = (desc + 0x4000, desc + 0x8000);
        let memory = memory.clone();
        Ring { index, size, desc, avail, used, memory, next_desc: 0, next_avail: 0, seen: 0 }
    }

    fn load(&self, addr: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(addr)).unwrap())
    }

    fn store(&self, addr: u64, value: u16) {
        self.memory.write_obj(value.to_le(), GuestAddress(addr)).unwrap();
    }

    /// Writes one descriptor.
    pub(crate) fn set_desc(&self, index: u16, desc: Desc) {
        desc.store(&self.memory, self.desc, index);
    }

    /// Offers the chain at `head`, whatever is there.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = self.next_avail % self.size;
        self.store(self.avail + 4 + u64::from(slot) * 2, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_idx(self.next_avail);
    }

    /// Sets the available index, whatever the ring holds.
    pub(crate) fn set_avail_idx(&self, idx: u16) {
        self.memory
            .store(idx.to_le(), GuestAddress(self.avail + 2), std::sync::atomic::Ordering::SeqCst)
            .unwrap();
    }

    /// Links `descs` to a chain in the next free descriptors (round and round) and offers it. Gives its head.
    pub(crate) fn add(&mut self, descs: &[Desc]) -> u16 {
        let head = self.next_desc;
        for (left, desc) in (0..descs.len()).rev().zip(descs) {
            let next = (self.next_desc + 1) % self.size;
            self.set_desc(self.next_desc, if left > 0 { desc.then(next) } else { *desc });
            self.next_desc = next;
        }
        self.offer(head);
        head
    }

    /// Index of the used ring.
    pub(crate) fn used_idx(&self) -> u16 {
        let idx: u16 =
            self.memory.load(GuestAddress(self.used + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
        u16::from_le(idx)
    }

    /// The used entries since the last call: head and bytes written.
    pub(crate) fn used(&mut self) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        while self.seen != self.used_idx() {
            let at = self.used + 4 + u64::from(self.seen % self.size) * 8;
            let entry: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            entries.push((u32::from_le(entry[0]), u32::from_le(entry[1])));
            self.seen = self.seen.wrapping_add(1);
        }
        entries
    }

    /// Waits until `count` more entries are used, for devices with a worker, and gives them.
    pub(crate) fn wait_used(&mut self, count: usize) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        wait_until(|| {
            entries.extend(self.used());
            entries.len() >= count
        });
        entries
    }

    /// VIRTQ_AVAIL_F_NO_INTERRUPT and whatever else there may be.
    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.store(self.avail, flags);
    }

    /// The entry of the used ring from which on the driver wants an interrupt.
    pub(crate) fn set_used_event(&self, idx: u16) {
        self.store(self.avail + 4 + u64::from(self.size) * 2, idx);
    }

    /// The entry of the available ring from which on the device wants a doorbell.
    pub(crate) fn avail_event(&self) -> u16 {
        self.load(self.used + 4 + u64::from(self.size) * 8)
    }

    /// VIRTQ_USED_F_NO_NOTIFY.
    pub(crate) fn used_flags(&self) -> u16 {
        self.load(self.used)
    }
}

/// Waits for what another thread does.
#[track_caller]
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A device behind virtio-mmio, and the other side of it.
pub(crate) struct Driver {
    pub(crate) mmio: VirtioMmio,
    pub(crate) memory: GuestMemory,
    chip: Arc<FakeChip>,
}

impl Driver {
    /// A driver that has done nothing yet.
    pub(crate) fn new(device: Arc<dyn VirtioDevice>) -> Driver {
        Driver::with_memory(device, memory())
    }

    /// The same with RAM that exists already.
    pub(crate) fn with_memory(device: Arc<dyn VirtioDevice>, memory: GuestMemory) -> Driver {
        let chip = Arc::new(FakeChip::default());
        let mmio = VirtioMmio::new(device, memory.clone(), EdgeIrq::new(chip.clone(), None, Spi(16)));
        Driver { mmio, memory, chip }
    }

    /// A driver that has brought the device up with `features` (and VERSION_1) and queues of the sizes given.
    pub(crate) fn start(device: Arc<dyn VirtioDevice>, features: u64, sizes: &[u16]) -> (Driver, Vec<Ring>) {
        let driver = Driver::new(device);
        let rings = driver.bring_up(features, sizes);
        (driver, rings)
    }

    /// The driver's part of an initialisation (virtio 1.2, 3.1.1), after a reset. Queues of size 0 are left out.
    pub(crate) fn bring_up(&self, features: u64, sizes: &[u16]) -> Vec<Ring> {
        self.set_status(0);
        self.negotiate(features | F_VERSION_1);
        let rings: Vec<Ring> =
            (0..).zip(sizes).map(|(index, size)| Ring::new(&self.memory, index, *size)).collect();
        rings.iter().filter(|ring| ring.size > 0).for_each(|ring| self.set_queue(ring));
        self.set_status(status::RUNNING);
        assert_eq!(self.status(), status::RUNNING);
        rings
    }

    /// Accepts exactly `features` and sets FEATURES_OK. The answer is in the status.
    pub(crate) fn negotiate(&self, features: u64) {
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        for half in 0..2 {
            self.write(reg::DRIVER_FEATURES_SEL, half);
            self.write(reg::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.set_status(status::NEGOTIATED);
    }

    /// What the device offers.
    pub(crate) fn device_features(&self) -> u64 {
        (0..2).fold(0, |features, half| {
            self.write(reg::DEVICE_FEATURES_SEL, half);
            features | u64::from(self.read(reg::DEVICE_FEATURES)) << (32 * half)
        })
    }

    /// Tells the device where a queue is, and that it is ready.
    pub(crate) fn set_queue(&self, ring: &Ring) {
        self.write(reg::QUEUE_SEL, ring.index.into());
        self.write(reg::QUEUE_NUM, ring.size.into());
        for (register, addr) in
            [(reg::QUEUE_DESC, ring.desc), (reg::QUEUE_DRIVER, ring.avail), (reg::QUEUE_DEVICE, ring.used)]
        {
            self.write(register, addr as u32);
            self.write(register + 4, (addr >> 32) as u32);
        }
        self.write(reg::QUEUE_READY, 1);
    }

    /// Reads a register.
    pub(crate) fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub(crate) fn write(&self, register: u64, value: u32) {
        self.mmio.write(register, &value.to_le_bytes());
    }

    /// Reads from the configuration space.
    pub(crate) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(reg::CONFIG + offset, &mut data);
        data
    }

    /// The status register.
    pub(crate) fn status(&self) -> u32 {
        self.read(reg::STATUS)
    }

    /// Writes the status register.
    pub(crate) fn set_status(&self, status: u32) {
        self.write(reg::STATUS, status);
    }

    /// Whether the device asks for a reset.
    pub(crate) fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    /// Rings a queue's doorbell.
    pub(crate) fn kick(&self, queue: u16) {
        self.write(reg::QUEUE_NOTIFY, queue.into());
    }

    /// How many interrupts there were so far.
    pub(crate) fn interrupts(&self) -> usize {
        self.chip.calls().iter().filter(|(_, level)| *level).count()
    }

    /// Reads and acknowledges the interrupt's causes.
    pub(crate) fn acknowledge(&self) -> u32 {
        let causes = self.read(reg::INTERRUPT_STATUS);
        self.write(reg::INTERRUPT_ACK, causes);
        causes
    }

    /// Puts `bytes` into guest memory.
    pub(crate) fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    /// Gets bytes out of guest memory.
    pub(crate) fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }
}
