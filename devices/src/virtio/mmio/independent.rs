//! A driver that others wrote, `virtio-drivers`, against the entropy device behind virtio-mmio. Its own transport wants the
//! registers in memory; this one calls the device instead, in the same order (virtio 1.2, 4.2.3).

use virtio_drivers::PhysAddr;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::*;
use crate::virtio::rng::{Rng, RngConfig};
use crate::virtio::testing::hal::GuestHal;
use crate::virtio::testing::{Driver, reg, status};

/// The registers by calls.
struct Calls(Driver);

impl Transport for Calls {
    fn device_type(&self) -> DeviceType {
        assert_eq!(self.0.read(8), 4);
        DeviceType::EntropySource
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.device_features()
    }

    fn write_driver_features(&mut self, features: u64) {
        for half in 0..2 {
            self.0.write(reg::DRIVER_FEATURES_SEL, half);
            self.0.write(reg::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.write(reg::QUEUE_SEL, queue.into());
        self.0.read(reg::QUEUE_NUM_MAX)
    }

    fn notify(&mut self, queue: u16) {
        self.0.kick(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.0.status())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status.bits());
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, avail: PhysAddr, used: PhysAddr) {
        self.0.write(reg::QUEUE_SEL, queue.into());
        self.0.write(reg::QUEUE_NUM, size);
        for (register, addr) in
            [(reg::QUEUE_DESC, desc), (reg::QUEUE_DRIVER, avail), (reg::QUEUE_DEVICE, used)]
        {
            self.0.write(register, addr as u32);
            self.0.write(register + 4, (addr >> 32) as u32);
        }
        self.0.write(reg::QUEUE_READY, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.write(reg::QUEUE_SEL, queue.into());
        self.0.write(reg::QUEUE_READY, 0);
        // The specification has the driver read it back (virtio 1.2, 4.2.2.2), and drivers wait for it.
        assert_eq!(self.0.read(reg::QUEUE_READY), 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.write(reg::QUEUE_SEL, queue.into());
        self.0.read(reg::QUEUE_READY) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(self.0.acknowledge())
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read(reg::CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        self.0.mmio.read(reg::CONFIG + offset as u64, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        self.0.mmio.write(reg::CONFIG + offset as u64, value.as_bytes());
        Ok(())
    }
}

/// The driver, brought up.
fn start() -> VirtIORng<GuestHal, Calls> {
    let driver = Driver::new(Arc::new(Rng::new(RngConfig::default())));
    GuestHal::use_memory(&driver.memory);
    VirtIORng::new(Calls(driver)).unwrap()
}

#[test]
fn an_independent_driver_gets_entropy() {
    let mut rng = start();
    let (mut first, mut second) = ([0; 64], [0; 64]);
    assert_eq!(rng.request_entropy(&mut first).unwrap(), 64);
    assert_eq!(rng.request_entropy(&mut second).unwrap(), 64);
    assert_ne!(first, second);
    assert_ne!(first, [0; 64]);
}

#[test]
fn an_independent_driver_goes_round_its_ring_many_times() {
    let mut rng = start();
    let mut byte = [0; 1];
    let served: usize = (0..1000).map(|_| rng.request_entropy(&mut byte).unwrap()).sum();
    assert_eq!(served, 1000);
}

#[test]
fn an_independent_driver_sees_its_interrupt_and_acknowledges_it() {
    let mut rng = start();
    rng.enable_interrupts();
    rng.request_entropy(&mut [0; 8]).unwrap();
    assert!(rng.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
    assert!(rng.ack_interrupt() == InterruptStatus::empty());
}

#[test]
fn the_status_that_an_independent_driver_reads_is_its_own() {
    assert_eq!(DeviceStatus::DRIVER_OK.bits(), status::DRIVER_OK);
    assert_eq!(DeviceStatus::FEATURES_OK.bits(), status::FEATURES_OK);
}
