//! A driver that others wrote, `virtio-drivers`, against the entropy device behind virtio-mmio.

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus};

use super::*;
use crate::virtio::rng::{Rng, RngConfig};
use crate::virtio::testing::calls::Calls;
use crate::virtio::testing::hal::GuestHal;
use crate::virtio::testing::{Driver, status};

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
