//! A driver that others wrote, `virtio-drivers`, finds the device on the bus, gives its BARs addresses, and drives it. Its own PCI
//! transport wants BARs in memory; the one here goes by the capabilities that it finds and accesses the bus.

use std::collections::BTreeMap;

use virtio_drivers::PhysAddr;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::pci::bus::{
    Command as GuestCommand, ConfigurationAccess, DeviceFunction, PciRoot,
};
use virtio_drivers::transport::pci::virtio_device_type;
use virtio_drivers::transport::{DeviceStatus, DeviceType as GuestType, InterruptStatus, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::*;
use crate::virtio::testing::hal::GuestHal;

/// Configuration space by way of the bus.
struct Ecam(Arc<Bus>);

impl Ecam {
    fn addr(function: DeviceFunction, register: u8) -> u64 {
        let DeviceFunction { bus, device, function } = function;
        0x3f00_0000
            + (u64::from(bus) << 20)
            + (u64::from(device) << 15)
            + (u64::from(function) << 12)
            + u64::from(register)
    }
}

impl ConfigurationAccess for Ecam {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        let mut data = [0; 4];
        self.0.read(Ecam::addr(function, register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        self.0.write(Ecam::addr(function, register), &data.to_le_bytes());
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Ecam(self.0.clone())
    }
}

/// The transport: where the structures are, by what the capabilities say.
struct OverBus {
    bus: Arc<Bus>,
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    isr: u64,
    config: u64,
}

impl OverBus {
    /// Finds the structures of the device at `function`.
    fn new(bus: &Arc<Bus>, root: &mut PciRoot<Ecam>, function: DeviceFunction) -> OverBus {
        let mut places = BTreeMap::new();
        let mut notify_multiplier = 0;
        let access = Ecam(bus.clone());
        let capabilities: Vec<_> = root.capabilities(function).collect();
        for capability in capabilities.iter().filter(|capability| capability.id == CAP_VENDOR) {
            let [cap_len, cfg_type] = capability.private_header.to_le_bytes();
            let word = |index: u8| access.read_word(function, capability.offset + 4 * index);
            if cfg_type == cfg_type::PCI {
                continue;
            }
            if cfg_type == cfg_type::NOTIFY {
                assert_eq!(cap_len, 20);
                notify_multiplier = word(4).into();
            }
            let bar = root.bar_info(function, word(1) as u8).unwrap().unwrap();
            let (address, size) = bar.memory_address_size().unwrap();
            assert!(u64::from(word(2)) + u64::from(word(3)) <= size);
            places.insert(cfg_type, address + u64::from(word(2)));
        }
        OverBus {
            bus: bus.clone(),
            common: places[&cfg_type::COMMON],
            notify: places[&cfg_type::NOTIFY],
            notify_multiplier,
            isr: places[&cfg_type::ISR],
            config: places[&cfg_type::DEVICE],
        }
    }

    fn read<const N: usize>(&self, field: u64) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read(self.common + field, &mut data);
        data
    }

    fn read2(&self, field: u64) -> u16 {
        u16::from_le_bytes(self.read(field))
    }

    fn write2(&self, field: u64, value: u16) {
        self.bus.write(self.common + field, &value.to_le_bytes());
    }

    fn write4(&self, field: u64, value: u32) {
        self.bus.write(self.common + field, &value.to_le_bytes());
    }
}

impl Transport for OverBus {
    fn device_type(&self) -> GuestType {
        GuestType::EntropySource
    }

    fn read_device_features(&mut self) -> u64 {
        (0..2).fold(0, |features, half| {
            self.write4(at::DEVICE_FEATURE_SELECT, half);
            features | u64::from(u32::from_le_bytes(self.read(at::DEVICE_FEATURE))) << (32 * half)
        })
    }

    fn write_driver_features(&mut self, features: u64) {
        for half in 0..2 {
            self.write4(at::DRIVER_FEATURE_SELECT, half);
            self.write4(at::DRIVER_FEATURE, (features >> (32 * half)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write2(at::QUEUE_SELECT, queue);
        self.read2(at::QUEUE_SIZE).into()
    }

    fn notify(&mut self, queue: u16) {
        self.write2(at::QUEUE_SELECT, queue);
        let offset = u64::from(self.read2(at::QUEUE_NOTIFY_OFF)) * self.notify_multiplier;
        self.bus.write(self.notify + offset, &queue.to_le_bytes());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(u8::from_le_bytes(self.read(at::STATUS)).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.bus.write(self.common + at::STATUS, &[status.bits() as u8]);
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, avail: PhysAddr, used: PhysAddr) {
        self.write2(at::QUEUE_SELECT, queue);
        self.write2(at::QUEUE_SIZE, size as u16);
        for (field, addr) in [(at::QUEUE_DESC, desc), (at::QUEUE_DRIVER, avail), (at::QUEUE_DEVICE, used)] {
            self.bus.write(self.common + field, &addr.to_le_bytes());
        }
        self.write2(at::QUEUE_ENABLE, 1);
    }

    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write2(at::QUEUE_SELECT, queue);
        self.read2(at::QUEUE_ENABLE) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let mut isr = [0];
        self.bus.read(self.isr, &mut isr);
        InterruptStatus::from_bits_truncate(isr[0].into())
    }

    fn read_config_generation(&self) -> u32 {
        u8::from_le_bytes(self.read(at::GENERATION)).into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        self.bus.read(self.config + offset as u64, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        self.bus.write(self.config + offset as u64, value.as_bytes());
        Ok(())
    }
}

/// The device's place as the driver's enumeration finds it, after the firmware's work: BARs have addresses and answer.
fn enumerate(bench: &Bench) -> (PciRoot<Ecam>, DeviceFunction) {
    let mut root = PciRoot::new(Ecam(bench.bus.clone()));
    let found: Vec<_> = root.enumerate_bus(0).collect();
    let of_type = |info| virtio_device_type(info) == Some(GuestType::EntropySource);
    let function = found.iter().find(|(_, info)| of_type(info)).unwrap().0;
    let bars = root.bars(function).unwrap();
    let sizes: Vec<_> = bars.iter().flatten().map(|bar| bar.memory_address_size().unwrap().1).collect();
    assert_eq!((found.len(), sizes), (2, vec![0x1000, 0x4000]));
    root.set_bar_32(function, MSIX_BAR, MSIX_AT as u32);
    root.set_bar_64(function, VIRTIO_BAR, VIRTIO_AT);
    root.set_command(function, GuestCommand::MEMORY_SPACE | GuestCommand::BUS_MASTER);
    (root, function)
}

#[test]
fn an_independent_driver_finds_the_device_and_drives_it() {
    let bench = Bench::unmapped(Filler::new(&[256]), None);
    GuestHal::use_memory(&bench.memory);
    let (mut root, function) = enumerate(&bench);
    let mut driver = VirtIORng::<GuestHal, _>::new(OverBus::new(&bench.bus, &mut root, function)).unwrap();
    for _ in 0..300 {
        let mut buffer = [0; 40];
        assert_eq!(driver.request_entropy(&mut buffer), Ok(40));
        assert_eq!(buffer, [FILL; 40]);
    }
}

#[test]
fn an_independent_driver_sees_its_interrupt_and_acknowledges_it() {
    let bench = Bench::unmapped(Filler::new(&[256]), None);
    GuestHal::use_memory(&bench.memory);
    let (mut root, function) = enumerate(&bench);
    let mut driver = VirtIORng::<GuestHal, _>::new(OverBus::new(&bench.bus, &mut root, function)).unwrap();
    driver.enable_interrupts();
    driver.request_entropy(&mut [0; 8]).unwrap();
    assert!(bench.chip.level());
    assert!(driver.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
    assert!(!bench.chip.level());
}
