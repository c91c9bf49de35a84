//! The transport of drivers that others wrote, those of `virtio-drivers`. Their own one for virtio-mmio wants the registers in memory;
//! this one calls the device instead, in the same order (virtio 1.2, 4.2.3).

use virtio_drivers::PhysAddr;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Driver, reg};
use crate::bus::MmioDevice;

/// The registers by calls.
pub(crate) struct Calls(pub(crate) Driver);

impl Transport for Calls {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.0.read(8)).unwrap()
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
