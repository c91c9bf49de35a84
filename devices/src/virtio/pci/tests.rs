mod bad_driver;
mod configuration;
mod doorbells;
mod independent;
mod registers;

use std::os::fd::{AsFd, BorrowedFd};

use hvrun_arch::IrqChip;
use hvrun_arch::aarch64::layout::Layout;

use super::*;
use crate::bus::Bus;
use crate::irq::fake::FakeChip;
use crate::pci::config::reg;
use crate::pci::msi::fake::Messages;
use crate::pci::{Command, PciHost};
use crate::sys::Event;
use crate::virtio::Chain;
use crate::virtio::device::{Activation, F_VERSION_1};
use crate::virtio::testing::{Ring, memory};

/// Where the tests put the BARs.
const MSIX_AT: u64 = 0x1000_0000;
const VIRTIO_AT: u64 = 512 << 30;
/// The GICv2m frame's doorbell.
const V2M_DOORBELL: u64 = 0x0802_0040;

/// Offsets in the common configuration structure (virtio 1.2, 4.1.4.3).
mod at {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
}

/// ACKNOWLEDGE, DRIVER, FEATURES_OK (virtio 1.2, 2.1).
const NEGOTIATED: u8 = 1 | 2 | 8;
/// And DRIVER_OK.
const RUNNING: u8 = NEGOTIATED | 4;
/// DEVICE_NEEDS_RESET.
const NEEDS_RESET: u8 = 64;

/// What each buffer is filled with.
const FILL: u8 = 0x5a;

/// A device that fills every buffer on the doorbell, and remembers what it is told.
#[derive(Debug)]
struct Filler {
    sizes: Vec<u16>,
    running: Mutex<Option<Activation>>,
    rung: Mutex<Vec<u16>>,
    resets: Mutex<u32>,
    config: Mutex<[u8; 8]>,
    doorbells: Vec<Event>,
}

impl Filler {
    fn new(sizes: &[u16]) -> Filler {
        Filler {
            sizes: sizes.to_vec(),
            running: Mutex::new(None),
            rung: Mutex::new(Vec::new()),
            resets: Mutex::new(0),
            config: Mutex::new(*b"filler__"),
            doorbells: Vec::new(),
        }
    }

    fn is_running(&self) -> bool {
        lock(&self.running).is_some()
    }

    /// The device's own reason to interrupt.
    fn interrupt(&self, raise: impl FnOnce(&dyn crate::virtio::Interrupt)) {
        let interrupt = lock(&self.running).as_ref().unwrap().interrupt.clone();
        raise(interrupt.as_ref());
    }
}

impl VirtioDevice for Filler {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn name(&self) -> &str {
        "filler"
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_config_bytes(&*lock(&self.config), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = lock(&self.config);
        for (to, from) in config.iter_mut().skip(offset as usize).zip(data) {
            *to = *from;
        }
    }

    fn activate(&self, activation: Activation) {
        *lock(&self.running) = Some(activation);
    }

    fn notify(&self, queue: u16) {
        lock(&self.rung).push(queue);
        let mut running = lock(&self.running);
        let Some(Activation { memory, queues, .. }) = running.as_mut() else { return };
        let Some(Some(queue)) = queues.get_mut(usize::from(queue)) else { return };
        queue.drain(memory, &mut Chain::new(), |chain| {
            chain.writable().iter().for_each(|slice| slice.copy_from(&vec![FILL; slice.len()]));
            chain.writable_len() as u32
        });
    }

    fn doorbell(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        self.doorbells.get(usize::from(queue)).map(Event::as_fd)
    }

    fn reset(&self) {
        *lock(&self.running) = None;
        *lock(&self.resets) += 1;
    }
}

/// A machine with one device in slot 1, its BARs mapped.
struct Bench {
    bus: Arc<Bus>,
    chip: Arc<FakeChip>,
    messages: Arc<Messages>,
    host: Arc<PciHost>,
    device: Arc<Filler>,
    function: Arc<VirtioPci>,
    memory: GuestMemory,
    layout: Layout,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Filler::new(&[256, 64]), None)
    }

    fn with(device: Filler, fds: Option<Arc<dyn EventFds>>) -> Bench {
        let bench = Bench::unmapped(device, fds);
        bench.set_config(0x14, MSIX_AT as u32);
        bench.set_config(0x20, 0);
        bench.set_config(0x24, (VIRTIO_AT >> 32) as u32);
        bench.set_config(reg::COMMAND, (Command::MEMORY | Command::BUS_MASTER).bits().into());
        bench
    }

    fn unmapped(device: Filler, fds: Option<Arc<dyn EventFds>>) -> Bench {
        let layout = Layout::new(1, 1 << 30).with_ipa_bits(40);
        let (bus, chip, memory) = (Arc::new(Bus::new()), Arc::new(FakeChip::default()), memory());
        let dynamic: Arc<dyn IrqChip> = chip.clone();
        let host = PciHost::new(&bus, &dynamic, &layout).unwrap();
        let (device, messages) = (Arc::new(device), Arc::new(Messages::default()));
        let function = VirtioPci::new(device.clone(), memory.clone(), messages.clone(), fds).unwrap();
        let function = Arc::new(function);
        host.plug(function.clone()).unwrap();
        Bench { bus, chip, messages, host, device, function, memory, layout }
    }

    fn config_addr(&self, register: u16) -> u64 {
        self.layout.pci_ecam.base + (1 << 15) + u64::from(register)
    }

    fn config(&self, register: u16) -> u32 {
        let mut data = [0; 4];
        self.bus.read(self.config_addr(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn set_config(&self, register: u16, value: u32) {
        self.bus.write(self.config_addr(register), &value.to_le_bytes());
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read(VIRTIO_AT + offset, &mut data);
        data
    }

    fn read2(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn read4(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.bus.write(VIRTIO_AT + offset, data);
    }

    fn write2(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write4(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u8 {
        u8::from_le_bytes(self.read(at::STATUS))
    }

    fn set_status(&self, status: u8) {
        self.write(at::STATUS, &[status]);
    }

    fn isr(&self) -> u8 {
        u8::from_le_bytes(self.read(ISR))
    }

    /// From reset to FEATURES_OK with VERSION_1 alone.
    fn negotiate(&self) {
        self.set_status(0);
        self.set_status(3);
        self.write4(at::DRIVER_FEATURE_SELECT, 1);
        self.write4(at::DRIVER_FEATURE, (F_VERSION_1 >> 32) as u32);
        self.set_status(NEGOTIATED);
    }

    fn set_queue(&self, ring: &Ring) {
        self.write2(at::QUEUE_SELECT, ring.index);
        self.write2(at::QUEUE_SIZE, ring.size);
        for (register, addr) in
            [(at::QUEUE_DESC, ring.desc), (at::QUEUE_DRIVER, ring.avail), (at::QUEUE_DEVICE, ring.used)]
        {
            self.write4(register, addr as u32);
            self.write4(register + 4, (addr >> 32) as u32);
        }
        self.write2(at::QUEUE_ENABLE, 1);
    }

    /// All of an initialisation, with queue 0 only.
    fn start(&self) -> Ring {
        self.negotiate();
        let ring = Ring::new(&self.memory, 0, 64);
        self.set_queue(&ring);
        self.set_status(RUNNING);
        ring
    }

    /// Enables MSI-X, with message 80 + n for vector n.
    fn enable_msix(&self) {
        for vector in 0..3 {
            self.bus.write(MSIX_AT + vector * 16, &V2M_DOORBELL.to_le_bytes());
            self.bus.write(MSIX_AT + vector * 16 + 8, &(80 + vector).to_le_bytes());
        }
        self.set_config(self.function.msix_cap, 0x8000_0000);
    }
}
