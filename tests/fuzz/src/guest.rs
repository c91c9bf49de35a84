//! A guest's driver that does what the input says: register accesses over either transport, rings and buffers in memory. Where they lie
//! is fixed, so that inputs can name them in few bytes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hvrun_arch::aarch64::layout::Layout;
use hvrun_arch::{GuestMemory, IrqChip, Spi};
use hvrun_devices::irq::EdgeIrq;
use hvrun_devices::pci::{MsiPort, PciHost};
use hvrun_devices::virtio::VirtioDevice;
use hvrun_devices::virtio::mmio::VirtioMmio;
use hvrun_devices::virtio::pci::VirtioPci;
use hvrun_devices::{Bus, MmioDevice};
use vm_memory::{Bytes, GuestAddress};

use crate::parts::{Chip, store};

/// Where RAM begins.
pub const RAM: u64 = 0x4000_0000;
/// How much of it there is: little, so that no chain of it is long.
pub const RAM_SIZE: u64 = 0x4_0000;
/// Queues that have rings of their own; others share them.
pub const RINGS: u64 = 8;
/// Room of one queue: descriptors, and the two rings at these offsets.
const RING_SPACE: u64 = 0x3000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// RAM from here on is for buffers.
pub const BUFFERS: u64 = RAM + RINGS * RING_SPACE;

/// Status bits (virtio 1.2, 2.1): ACKNOWLEDGE and DRIVER; FEATURES_OK too; DRIVER_OK too.
const FOUND: u32 = 1 | 2;
const NEGOTIATED: u32 = FOUND | 8;
const RUNNING: u32 = NEGOTIATED | 4;

/// How long a worker may have its way before the driver goes on: in most cases it is done at once.
const WAIT: Duration = Duration::from_micros(50);
const WAITS: u32 = 8;

/// Slot 1's registers in the ECAM window.
const SLOT: u64 = 1 << 15;
/// Where the guest puts BAR 1 and BAR 4 of a virtio function.
const MSIX_AT: u32 = 0x1000_0000;
const VIRTIO_AT: u32 = 0x1001_0000;

/// A device behind a transport, and the guest's memory.
pub struct Guest {
    pub memory: GuestMemory,
    carrier: Carrier,
    queues: u16,
}

/// What differs between the transports.
enum Carrier {
    Mmio(VirtioMmio),
    // The bridge lives on the bus, which holds it.
    Pci(Arc<Bus>, Layout),
}

/// Registers that every transport has, with their offsets (virtio 1.2, table 4.1 and 4.1.4.3) and widths on PCI.
#[derive(Clone, Copy)]
enum Register {
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueNum,
    QueueReady,
    Status,
    Desc,
    Driver,
    Device,
}

impl Register {
    fn on_mmio(self) -> u64 {
        match self {
            Register::DeviceFeatures => 0x10,
            Register::DeviceFeaturesSel => 0x14,
            Register::DriverFeatures => 0x20,
            Register::DriverFeaturesSel => 0x24,
            Register::QueueSel => 0x30,
            Register::QueueNum => 0x38,
            Register::QueueReady => 0x44,
            Register::Status => 0x70,
            Register::Desc => 0x80,
            Register::Driver => 0x90,
            Register::Device => 0xa0,
        }
    }

    /// Offset and width.
    fn on_pci(self) -> (u64, usize) {
        match self {
            Register::DeviceFeatures => (0x04, 4),
            Register::DeviceFeaturesSel => (0x00, 4),
            Register::DriverFeatures => (0x0c, 4),
            Register::DriverFeaturesSel => (0x08, 4),
            Register::QueueSel => (0x16, 2),
            Register::QueueNum => (0x18, 2),
            Register::QueueReady => (0x1c, 2),
            Register::Status => (0x14, 1),
            Register::Desc => (0x20, 4),
            Register::Driver => (0x28, 4),
            Register::Device => (0x30, 4),
        }
    }
}

/// Memory of a guest.
pub fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(RAM), RAM_SIZE as usize)]).expect("256 KiB can be mapped")
}

impl Guest {
    /// `device` in a virtio-mmio slot.
    pub fn mmio(device: Arc<dyn VirtioDevice>, memory: GuestMemory) -> Guest {
        let queues = device.queue_sizes().len() as u16;
        let irq = EdgeIrq::new(Arc::new(Chip), None, Spi(16));
        Guest { carrier: Carrier::Mmio(VirtioMmio::new(device, memory.clone(), irq)), memory, queues }
    }

    /// `device` as a PCI function, its BARs where the generated accesses go, all messages set up.
    pub fn pci(device: Arc<dyn VirtioDevice>, memory: GuestMemory) -> Guest {
        let queues = device.queue_sizes().len() as u16;
        let layout = Layout::new(1, 1 << 30).with_ipa_bits(40);
        let chip: Arc<dyn IrqChip> = Arc::new(Chip);
        let bus = Arc::new(Bus::new());
        let host = PciHost::new(&bus, &chip, &layout).expect("the bus is empty");
        let msi = Arc::new(MsiPort::new(chip, None, layout.gic_v2m));
        let function = VirtioPci::new(device, memory.clone(), msi, None).expect("few queues");
        host.plug(Arc::new(function)).expect("the slots are empty");
        let guest = Guest { carrier: Carrier::Pci(bus, layout), memory, queues };
        guest.configure(0x14, &MSIX_AT.to_le_bytes());
        guest.configure(0x20, &VIRTIO_AT.to_le_bytes());
        // Memory accesses, bus master.
        guest.configure(0x04, &6_u16.to_le_bytes());
        guest
    }

    /// Writes to the function's configuration space; nothing without PCI.
    pub fn configure(&self, register: u16, data: &[u8]) {
        if let Carrier::Pci(bus, layout) = &self.carrier {
            bus.write(layout.pci_ecam.base + SLOT + u64::from(register & 0xfff), data);
        }
    }

    /// Reads from there.
    pub fn inspect(&self, register: u16, data: &mut [u8]) {
        if let Carrier::Pci(bus, layout) = &self.carrier {
            bus.read(layout.pci_ecam.base + SLOT + u64::from(register & 0xfff), data);
        }
    }

    /// Writes to the transport's window, whatever is there; with PCI, that is both BARs.
    pub fn write(&self, offset: u16, data: &[u8]) {
        match &self.carrier {
            Carrier::Mmio(mmio) => mmio.write(inside(offset, data.len()), data),
            Carrier::Pci(bus, _) => bus.write(pci_addr(offset), data),
        }
    }

    /// Reads from there.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        match &self.carrier {
            Carrier::Mmio(mmio) => mmio.read(inside(offset, data.len()), data),
            Carrier::Pci(bus, _) => bus.read(pci_addr(offset), data),
        }
    }

    /// Where the device's configuration begins, for [`Guest::read`].
    pub fn device_config(&self) -> u16 {
        match self.carrier {
            Carrier::Mmio(_) => 0x100,
            Carrier::Pci(..) => 0x2000,
        }
    }

    fn set(&self, register: Register, value: u32) {
        match &self.carrier {
            Carrier::Mmio(mmio) => mmio.write(register.on_mmio(), &value.to_le_bytes()),
            Carrier::Pci(bus, _) => {
                let (offset, width) = register.on_pci();
                bus.write(u64::from(VIRTIO_AT) + offset, &value.to_le_bytes()[..width]);
            }
        }
    }

    fn set_addr(&self, register: Register, addr: u64) {
        let (low, high) = (addr as u32, (addr >> 32) as u32);
        match &self.carrier {
            Carrier::Mmio(mmio) => {
                mmio.write(register.on_mmio(), &low.to_le_bytes());
                mmio.write(register.on_mmio() + 4, &high.to_le_bytes());
            }
            Carrier::Pci(bus, _) => {
                let at = u64::from(VIRTIO_AT) + register.on_pci().0;
                bus.write(at, &low.to_le_bytes());
                bus.write(at + 4, &high.to_le_bytes());
            }
        }
    }

    fn features(&self) -> u64 {
        (0..2).fold(0, |features, half| {
            self.set(Register::DeviceFeaturesSel, half);
            let mut data = [0; 4];
            match &self.carrier {
                Carrier::Mmio(mmio) => mmio.read(Register::DeviceFeatures.on_mmio(), &mut data),
                Carrier::Pci(bus, _) => {
                    bus.read(u64::from(VIRTIO_AT) + Register::DeviceFeatures.on_pci().0, &mut data);
                }
            }
            features | u64::from(u32::from_le_bytes(data)) << (32 * half)
        })
    }

    /// A whole initialisation (virtio 1.2, 3.1.1): the offered features but `without`, and queues of `size` entries.
    pub fn bring_up(&self, without: u64, size: u16) {
        self.reset();
        let zeros = [0; 0x1000];
        (RAM..BUFFERS).step_by(zeros.len()).for_each(|addr| store(&self.memory, addr, &zeros));
        self.set(Register::Status, FOUND);
        let features = self.features() & !without;
        for half in 0..2 {
            self.set(Register::DriverFeaturesSel, half);
            self.set(Register::DriverFeatures, (features >> (32 * half)) as u32);
        }
        self.set(Register::Status, NEGOTIATED);
        for queue in 0..self.queues {
            let base = ring(u64::from(queue));
            self.set(Register::QueueSel, queue.into());
            self.set(Register::QueueNum, size.into());
            self.set_addr(Register::Desc, base);
            self.set_addr(Register::Driver, base + AVAIL);
            self.set_addr(Register::Device, base + USED);
            self.set(Register::QueueReady, 1);
        }
        self.set(Register::Status, RUNNING);
    }

    /// The driver lets go of the device.
    pub fn reset(&self) {
        self.set(Register::Status, 0);
    }

    /// Rings the doorbell of `queue`.
    pub fn kick(&self, queue: u16) {
        match &self.carrier {
            Carrier::Mmio(mmio) => mmio.write(0x50, &u32::from(queue).to_le_bytes()),
            Carrier::Pci(bus, _) => {
                let at = u64::from(VIRTIO_AT) + 0x3000 + u64::from(queue) * 4;
                bus.write(at, &queue.to_le_bytes());
            }
        }
    }

    /// Writes descriptor `index` of `queue`.
    pub fn set_desc(&self, queue: u64, index: u64, desc: Desc) {
        store(&self.memory, ring(queue) + index * 16, &desc.bytes());
    }

    /// Makes the chain at `head` available.
    pub fn offer(&self, queue: u64, head: u16, size: u16) {
        let idx = self.avail_idx(queue);
        let slot = u64::from(idx % size.max(1));
        store(&self.memory, ring(queue) + AVAIL + 4 + slot * 2, &head.to_le_bytes());
        self.set_avail_idx(queue, idx.wrapping_add(1));
    }

    /// Sets the available ring's index.
    pub fn set_avail_idx(&self, queue: u64, idx: u16) {
        let at = GuestAddress(ring(queue) + AVAIL + 2);
        let _ = self.memory.store(idx.to_le(), at, Ordering::SeqCst);
    }

    fn avail_idx(&self, queue: u64) -> u16 {
        self.index(queue, AVAIL)
    }

    /// How many chains of `queue` the device has used.
    pub fn used_idx(&self, queue: u64) -> u16 {
        self.index(queue, USED)
    }

    fn index(&self, queue: u64, part: u64) -> u16 {
        let at = GuestAddress(ring(queue) + part + 2);
        self.memory.load::<u16>(at, Ordering::SeqCst).map(u16::from_le).unwrap_or_default()
    }

    /// Lets the device's threads work until everything in `queue` is used, or a while.
    pub fn settle(&self, queue: u64) {
        for _ in 0..WAITS {
            if self.used_idx(queue) == self.avail_idx(queue) {
                return;
            }
            std::thread::sleep(WAIT);
        }
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.carrier {
            Carrier::Mmio(_) => "virtio-mmio",
            Carrier::Pci(..) => "virtio-pci",
        };
        write!(f, "a guest with {} queues over {transport}", self.queues)
    }
}

/// A descriptor (virtio 1.2, 2.7.5).
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    /// As it lies in a table.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Where the rings of a queue are.
pub fn ring(queue: u64) -> u64 {
    RAM + queue % RINGS * RING_SPACE
}

/// An offset at which an access of `len` bytes is inside of a virtio-mmio window, as the bus sees to.
fn inside(offset: u16, len: usize) -> u64 {
    u64::from(offset) % (hvrun_devices::virtio::mmio::WINDOW_SIZE - len as u64 + 1)
}

/// Offsets up to the size of the one BAR are in that, then comes the other one.
fn pci_addr(offset: u16) -> u64 {
    match offset {
        0..0x4000 => u64::from(VIRTIO_AT) + u64::from(offset),
        _ => u64::from(MSIX_AT) + u64::from(offset & 0x3fff),
    }
}
