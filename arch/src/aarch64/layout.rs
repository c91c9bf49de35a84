//! Where things lie in the guest's physical address space. Modelled on QEMU's `virt`, because firmware and people know it.
//!
//! ```text
//! 0x0000_0000  flash 0, flash 1 (64 MiB each)
//! 0x0800_0000  GIC distributor     0x0801_0000  GICv2 CPU interface
//!                                  0x0802_0000  GICv2m frame     0x080A_0000  GIC redistributors
//! 0x0900_0000  PL011               0x0901_0000  PL031            0x0902_0000  fw_cfg      0x0903_0000  PL061
//! 0x0A00_0000  virtio-mmio (32 x 0x200)
//! 0x1000_0000  PCIe 32-bit MMIO    0x3EFF_0000  PCIe PIO         0x3F00_0000  PCIe ECAM
//! 0x4000_0000  RAM
//! above RAM    PCIe 64-bit MMIO, from 512 GiB on if the host's address space reaches that far
//! ```

use crate::hypervisor::Spi;

/// Most vCPUs a machine can have.
pub const MAX_CPUS: u32 = 8;

/// Size of one vCPU's GICv3 redistributor: the RD_base and SGI_base frames of 64 KiB each (GICv3 spec 12.10).
pub const GIC_REDIST_SIZE: u64 = 0x2_0000;

/// The PL011's interrupt: level, high.
pub const UART_SPI: Spi = Spi(1);
/// The PL031's interrupt: level, high.
pub const RTC_SPI: Spi = Spi(2);
/// The PL061's interrupt: level, high.
pub const GPIO_SPI: Spi = Spi(7);
/// INTA to INTD of the PCIe host bridge: level, high.
pub const PCI_INTX_SPI: Spi = Spi(3);
/// How many virtio-mmio slots there are.
pub const VIRTIO_MMIO_SLOTS: u32 = 32;
/// Size of a virtio-mmio slot's window.
pub const VIRTIO_MMIO_SLOT_SIZE: u64 = 0x200;
/// First virtio-mmio slot's interrupt: edge.
pub const VIRTIO_MMIO_SPI: Spi = Spi(16);
/// First SPI that the GICv2m frame hands out.
pub const V2M_SPI: Spi = Spi(48);
/// How many SPIs the GICv2m frame hands out.
pub const V2M_SPI_COUNT: u32 = 64;

/// The PL061 line behind the power button (as in QEMU's `virt`).
pub const POWER_BUTTON_GPIO: u32 = 3;

/// PPI numbers (INTID - 16) of the timers: secure physical, non-secure physical, virtual, hypervisor physical.
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// PPI number of the PMU, as in QEMU's `virt`.
pub const PMU_PPI: u32 = 7;

/// The architecture of a machine's interrupt controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GicVersion {
    /// Distributor and redistributors; the CPU interface is system registers.
    #[default]
    V3,
    /// Distributor and a CPU interface in memory: hosts that can give their guests no other.
    V2,
}

/// A range of guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Window {
    /// The window of `size` bytes at `base`.
    pub const fn new(base: u64, size: u64) -> Self {
        Window { base, size }
    }

    /// First address behind the window.
    pub const fn end(self) -> u64 {
        self.base + self.size
    }

    /// Whether `addr` lies inside.
    pub const fn contains(self, addr: u64) -> bool {
        addr >= self.base && addr - self.base < self.size
    }

    /// Whether the two windows share an address.
    pub const fn overlaps(self, other: Window) -> bool {
        self.base < other.end() && other.base < self.end()
    }
}

/// One machine's address map, with what else depends on the host. A value, not constants: a hypervisor's own interrupt controller may dictate sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The two flash banks.
    pub flash: [Window; 2],
    /// What kind of GIC there is.
    pub gic: GicVersion,
    /// GIC distributor.
    pub gic_dist: Window,
    /// CPU interface of a GICv2.
    pub gic_cpu: Window,
    /// PPI number of the CPUs' performance monitors, if they have any.
    pub pmu: Option<u32>,
    /// GICv2m MSI frame.
    pub gic_v2m: Window,
    /// Redistributors of a GICv3, one [`GIC_REDIST_SIZE`] a vCPU.
    pub gic_redist: Window,
    /// PL011.
    pub uart: Window,
    /// PL031.
    pub rtc: Window,
    /// fw_cfg.
    pub fw_cfg: Window,
    /// PL061.
    pub gpio: Window,
    /// The 32 virtio-mmio slots.
    pub virtio_mmio: Window,
    /// PCIe memory below 4 GiB.
    pub pci_mmio32: Window,
    /// PCIe port I/O.
    pub pci_pio: Window,
    /// PCIe configuration space (ECAM), 16 buses.
    pub pci_ecam: Window,
    /// RAM.
    pub ram: Window,
    /// PCIe memory above RAM. Empty if there is no room for it.
    pub pci_mmio64: Window,
}

/// Largest and preferred size of the PCIe memory above RAM: QEMU's.
const PCI_MMIO64_MAX: u64 = 512 << 30;
/// Smallest size that is worth having it.
const PCI_MMIO64_MIN: u64 = 1 << 30;

/// Where RAM begins.
pub const RAM_BASE: u64 = 0x4000_0000;

impl Layout {
    /// The map of a machine with `cpus` vCPUs and `ram` bytes of memory, without PCIe memory above it: how far addresses reach is
    /// the host's affair ([`Layout::with_ipa_bits`]).
    pub const fn new(cpus: u32, ram: u64) -> Self {
        Layout {
            flash: [Window::new(0, 0x0400_0000), Window::new(0x0400_0000, 0x0400_0000)],
            gic: GicVersion::V3,
            gic_dist: Window::new(0x0800_0000, 0x1_0000),
            gic_cpu: Window::new(0x0801_0000, 0x1_0000),
            pmu: None,
            gic_v2m: Window::new(0x0802_0000, 0x1000),
            gic_redist: Window::new(0x080A_0000, GIC_REDIST_SIZE * cpus as u64),
            uart: Window::new(0x0900_0000, 0x1000),
            rtc: Window::new(0x0901_0000, 0x1000),
            fw_cfg: Window::new(0x0902_0000, 0x18),
            gpio: Window::new(0x0903_0000, 0x1000),
            virtio_mmio: Window::new(0x0A00_0000, VIRTIO_MMIO_SLOTS as u64 * VIRTIO_MMIO_SLOT_SIZE),
            pci_mmio32: Window::new(0x1000_0000, 0x2EFF_0000),
            pci_pio: Window::new(0x3EFF_0000, 0x1_0000),
            pci_ecam: Window::new(0x3F00_0000, 0x0100_0000),
            ram: Window::new(RAM_BASE, ram),
            pci_mmio64: Window::new(RAM_BASE.saturating_add(ram), 0),
        }
    }

    /// This map with the PCIe memory above RAM that fits into `bits` of guest physical address: the largest power of two up to
    /// 512 GiB, at a multiple of its size. Every host with 40 bits has it where QEMU does.
    #[must_use]
    pub const fn with_ipa_bits(mut self, bits: u32) -> Self {
        let limit = if bits < 64 { 1 << bits } else { u64::MAX };
        let mut size = PCI_MMIO64_MAX;
        while size >= PCI_MMIO64_MIN {
            if let Some(base) = self.ram.end().checked_next_multiple_of(size)
                && base < limit
                && limit - base >= size
            {
                self.pci_mmio64 = Window::new(base, size);
                return self;
            }
            size /= 2;
        }
        self.pci_mmio64 = Window::new(self.ram.end(), 0);
        self
    }

    /// The window of virtio-mmio slot `slot`.
    pub const fn virtio_mmio_slot(&self, slot: u32) -> Window {
        Window::new(self.virtio_mmio.base + slot as u64 * VIRTIO_MMIO_SLOT_SIZE, VIRTIO_MMIO_SLOT_SIZE)
    }

    /// Every window with its name, in no particular order.
    pub fn windows(&self) -> [(&'static str, Window); 16] {
        [
            ("flash 0", self.flash[0]),
            ("flash 1", self.flash[1]),
            ("GIC distributor", self.gic_dist),
            ("GIC CPU interface", self.gic_cpu),
            ("GICv2m frame", self.gic_v2m),
            ("GIC redistributors", self.gic_redist),
            ("PL011", self.uart),
            ("PL031", self.rtc),
            ("fw_cfg", self.fw_cfg),
            ("PL061", self.gpio),
            ("virtio-mmio", self.virtio_mmio),
            ("PCIe MMIO", self.pci_mmio32),
            ("PCIe PIO", self.pci_pio),
            ("PCIe ECAM", self.pci_ecam),
            ("RAM", self.ram),
            ("PCIe 64-bit MMIO", self.pci_mmio64),
        ]
    }
}

/// MPIDR_EL1 affinity (Aff0) of vCPU `id`: what the device tree's `reg` says and PSCI CPU_ON takes.
pub const fn mpidr(id: u32) -> u64 {
    id as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn mmio64(ram: u64, bits: u32) -> Window {
        Layout::new(1, ram).with_ipa_bits(bits).pci_mmio64
    }

    #[test]
    fn pcie_memory_is_where_qemu_has_it_if_addresses_reach_there() {
        assert_eq!(mmio64(4 * GIB, 40), Window::new(512 * GIB, 512 * GIB));
        assert_eq!(mmio64(4 * GIB, 48), Window::new(512 * GIB, 512 * GIB));
        assert_eq!(mmio64(600 * GIB, 48), Window::new(1024 * GIB, 512 * GIB));
    }

    #[test]
    fn pcie_memory_takes_the_room_there_is_above_ram() {
        assert_eq!(mmio64(4 * GIB, 36), Window::new(32 * GIB, 32 * GIB));
        assert_eq!(mmio64(40 * GIB, 36), Window::new(48 * GIB, 16 * GIB));
    }

    #[test]
    fn without_room_above_ram_there_is_no_pcie_memory() {
        assert_eq!(mmio64(63 * GIB, 36), Window::new(64 * GIB, 0));
        assert_eq!(mmio64(2 * GIB, 32).size, GIB);
        assert_eq!(mmio64(3 * GIB, 32).size, 0);
    }

    #[test]
    fn no_two_windows_overlap() {
        let layout = Layout::new(MAX_CPUS, 1 << 30).with_ipa_bits(36);
        let windows = layout.windows();
        for (i, (a_name, a)) in windows.iter().enumerate() {
            for (b_name, b) in &windows[i + 1..] {
                assert!(!a.overlaps(*b), "{a_name} {a:x?} overlaps {b_name} {b:x?}");
            }
        }
    }
}
