//! The entropy device behind virtio-mmio, driven by hand.

use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::virtio::testing::{BUFFERS, Desc, Driver, RAM_SIZE, Ring, wait_until};

/// Fills each request with the next number.
#[derive(Debug, Default)]
struct Numbers(AtomicU8);

impl EntropySource for Numbers {
    fn fill(&self, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(self.0.fetch_add(1, Ordering::SeqCst) + 1);
        Ok(())
    }
}

/// Has nothing.
#[derive(Debug)]
struct Dry;

impl EntropySource for Dry {
    fn fill(&self, _buffer: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("it ran dry"))
    }
}

fn start(config: RngConfig, source: impl EntropySource + 'static) -> (Driver, Ring) {
    let (driver, mut rings) = Driver::start(Arc::new(Rng::with_source(config, source)), 0, &[QUEUE_SIZE]);
    (driver, rings.remove(0))
}

fn unlimited() -> (Driver, Ring) {
    start(RngConfig::default(), Numbers::default())
}

#[test]
fn a_request_is_filled_from_its_beginning_to_its_end() {
    let (driver, mut ring) = unlimited();
    let head = ring.add(&[Desc::writable(BUFFERS, 10), Desc::writable(BUFFERS + 0x100, 6)]);
    driver.kick(0);
    assert_eq!(ring.used(), [(head.into(), 16)]);
    assert_eq!(driver.get(BUFFERS, 11), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(driver.get(BUFFERS + 0x100, 7), [1, 1, 1, 1, 1, 1, 0]);
}

#[test]
fn the_hosts_entropy_differs_from_request_to_request() {
    let (driver, mut ring) = start(RngConfig::default(), HostEntropy);
    ring.add(&[Desc::writable(BUFFERS, 32)]);
    ring.add(&[Desc::writable(BUFFERS + 32, 32)]);
    driver.kick(0);
    assert_eq!(ring.used().len(), 2);
    assert_ne!(driver.get(BUFFERS, 32), driver.get(BUFFERS + 32, 32));
}

#[test]
fn requests_from_before_driver_ok_are_served_without_a_doorbell() {
    let driver = Driver::new(Arc::new(Rng::new(RngConfig::default())));
    driver.negotiate(crate::virtio::device::F_VERSION_1);
    let mut ring = Ring::new(&driver.memory, 0, 8);
    ring.add(&[Desc::writable(BUFFERS, 8)]);
    driver.set_queue(&ring);
    driver.set_status(crate::virtio::testing::status::RUNNING);
    assert_eq!(ring.used(), [(0, 8)]);
}

#[test]
fn a_huge_request_gets_a_bounded_answer() {
    let (driver, mut ring) = unlimited();
    let table = BUFFERS;
    for index in 0..256u16 {
        let desc = Desc::writable(BUFFERS + 0x10_0000, (RAM_SIZE - 0x20_0000) as u32);
        (if index < 255 { desc.then(index + 1) } else { desc }).store(&driver.memory, table, index);
    }
    ring.add(&[Desc::indirect(table, 256)]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, MAX_REQUEST as u32)]);
}

#[test]
fn a_request_without_room_is_given_back_empty() {
    let (driver, mut ring) = unlimited();
    driver.put(BUFFERS, b"readable");
    ring.add(&[Desc::readable(BUFFERS, 8)]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 0)]);
    assert_eq!(driver.get(BUFFERS, 8), b"readable");
}

#[test]
fn a_limit_cuts_a_request_and_puts_the_next_one_off() {
    let (driver, mut ring) = start(RngConfig { max_bytes: Some(20), period: u32::MAX }, Numbers::default());
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 16), (1, 4)]);
}

#[test]
fn a_request_that_was_put_off_is_served_in_the_next_period() {
    let (driver, mut ring) = start(RngConfig { max_bytes: Some(16), period: 20 }, Numbers::default());
    for _ in 0..3 {
        ring.add(&[Desc::writable(BUFFERS, 16)]);
    }
    driver.kick(0);
    assert_eq!(ring.wait_used(3), [(0, 16), (1, 16), (2, 16)]);
}

#[test]
fn a_device_that_was_reset_serves_nothing_that_was_put_off() {
    let rng = Arc::new(Rng::with_source(RngConfig { max_bytes: Some(16), period: 1 }, Numbers::default()));
    let (driver, mut rings) = Driver::start(rng.clone(), 0, &[8]);
    rings[0].add(&[Desc::writable(BUFFERS, 16)]);
    rings[0].add(&[Desc::writable(BUFFERS, 16)]);
    driver.kick(0);
    driver.set_status(0);
    let seen = rings[0].used_idx();
    rng.alarm.set(Duration::ZERO);
    wait_until(|| lock(&rng.inner.active).is_none() && format!("{:?}", rng.alarm).contains("None"));
    assert_eq!(rings[0].used_idx(), seen);
}

#[test]
fn a_host_without_entropy_asks_for_a_reset() {
    let (driver, mut ring) = start(RngConfig::default(), Dry);
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    driver.kick(0);
    assert!(driver.needs_reset());
    assert_eq!(ring.used(), []);
}

#[test]
fn state_tells_how_far_the_queue_got() {
    let rng = Arc::new(Rng::new(RngConfig::default()));
    assert_eq!(rng.state(), RngState::default());
    let (driver, mut rings) = Driver::start(rng.clone(), 0, &[8]);
    rings[0].add(&[Desc::writable(BUFFERS, 16)]);
    driver.kick(0);
    let queue = rng.state().queue.unwrap();
    assert_eq!((queue.next_avail, queue.next_used, queue.size), (1, 1, 8));
}
