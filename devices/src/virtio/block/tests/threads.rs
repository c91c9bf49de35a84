//! How requests get into each other's way, or rather do not.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::block::pool::{Load, MAX_THREADS};
use crate::virtio::device::F_RING_EVENT_IDX;
use crate::virtio::testing::wait_until;

#[test]
fn a_slow_request_does_not_hold_up_the_others() {
    let backend = Fake::new(64);
    let mut guest = Guest::on(backend.clone());
    backend.hold(Some(&[1]));
    let stuck = guest.offer_in(VIRTIO_BLK_T_IN, 1, 512);
    let others: Vec<u64> = (2..20).map(|sector| guest.offer_in(VIRTIO_BLK_T_IN, sector, 512)).collect();
    guest.wait(others.len());
    assert_eq!(guest.status(stuck), UNTOUCHED);
    assert!(others.iter().all(|slot| guest.status(*slot) == OK));
    backend.release();
    guest.ring.wait_used(1);
    assert_eq!(guest.status(stuck), OK);
}

#[test]
fn requests_that_come_while_one_is_stuck_are_served() {
    let backend = Fake::new(64);
    let mut guest = Guest::on(backend.clone());
    backend.hold(Some(&[1]));
    guest.offer_in(VIRTIO_BLK_T_IN, 1, 512);
    guest.driver.kick(0);
    wait_until(|| backend.waiting() == 1);
    assert_eq!(guest.read(2, 512).0, OK);
    assert_eq!(guest.read(3, 512).0, OK);
    backend.release();
    guest.ring.wait_used(1);
}

#[test]
fn with_event_idx_too_requests_that_come_while_one_is_stuck_are_served() {
    let backend = Fake::new(64);
    let device = VirtioBlock::new(backend.clone(), &BlockOptions::default()).unwrap();
    let mut guest = Guest::new(device, USUAL | F_RING_EVENT_IDX);
    backend.hold(Some(&[1]));
    guest.offer_in(VIRTIO_BLK_T_IN, 1, 512);
    guest.driver.kick(0);
    wait_until(|| backend.waiting() == 1);
    // A driver that rings only when asked to: once the device has asked for the next one.
    wait_until(|| guest.ring.avail_event() == 1);
    assert_eq!(guest.read(2, 512).0, OK);
    wait_until(|| guest.ring.avail_event() == 2);
    assert_eq!(guest.read(3, 512).0, OK);
    backend.release();
    guest.ring.wait_used(1);
}

#[test]
fn a_queue_is_in_flight_at_the_host_as_deep_as_there_are_threads() {
    let backend = Fake::new(64);
    let device = Arc::new(VirtioBlock::new(backend.clone(), &BlockOptions::default()).unwrap());
    let (driver, mut rings) = Driver::start(device, USUAL, &[QUEUE_SIZE]);
    backend.hold(None);
    driver.put(BUFFERS, &[0; 16]);
    // Status and data of all in one buffer of two descriptors, so that 128 requests fit into the queue.
    for _ in 0..MAX_THREADS {
        rings[0].add(&[Desc::readable(BUFFERS, 16), Desc::writable(BUFFERS + DATA, 513)]);
    }
    driver.kick(0);
    wait_until(|| backend.waiting() == MAX_THREADS);
    backend.release();
    assert_eq!(rings[0].wait_used(MAX_THREADS).len(), MAX_THREADS);
}

#[test]
fn large_requests_are_served_beside_each_other_where_the_host_has_cpus_for_it() {
    let load = Load::default();
    assert!(load.wants_company(1 << 20, 2));
    assert!(!load.wants_company(1 << 20, 1));
    assert!(!load.wants_company(4096, 2));
}

/// Four times what counts as slow.
const LONG: Duration = Duration::from_micros(200);

fn wait() {
    std::thread::sleep(LONG);
}

#[cfg(target_os = "linux")]
fn compute() {
    let start = Instant::now();
    while start.elapsed() < LONG {
        std::hint::spin_loop();
    }
}

/// What a pool is told of so many requests.
fn requests(load: &Load, count: usize, request: fn()) {
    for _ in 0..count {
        let (asked, start) = (load.begin(), Instant::now());
        request();
        load.finished(asked, start.elapsed());
    }
}

#[test]
fn requests_that_wait_are_slow() {
    let load = Load::default();
    requests(&load, 64, wait);
    assert!(load.is_slow());
}

#[cfg(target_os = "linux")]
#[test]
fn requests_that_take_as_long_without_waiting_are_not_slow() {
    let load = Load::default();
    requests(&load, 64, compute);
    assert!(!load.is_slow());
}

#[cfg(target_os = "linux")]
#[test]
fn requests_are_slow_only_as_long_as_they_wait() {
    let load = Load::default();
    requests(&load, 64, wait);
    // Enough even if one of the former was a hundred milliseconds late.
    requests(&load, 128, compute);
    assert!(!load.is_slow());
}

#[test]
fn requests_complete_out_of_order() {
    let backend = Fake::new(64);
    let mut guest = Guest::on(backend.clone());
    backend.hold(Some(&[1]));
    guest.offer_in(VIRTIO_BLK_T_IN, 1, 512);
    guest.offer_in(VIRTIO_BLK_T_IN, 2, 512);
    let first = guest.wait(1)[0].0;
    backend.release();
    let second = guest.ring.wait_used(1)[0].0;
    assert_eq!((first, second), (3, 0));
}

#[test]
fn a_reset_waits_for_requests_in_flight_and_nothing_completes_after_it() {
    let backend = Fake::new(64);
    let mut guest = Guest::on(backend.clone());
    backend.hold(None);
    let slot = guest.offer_in(VIRTIO_BLK_T_IN, 1, 512);
    guest.driver.kick(0);
    wait_until(|| backend.waiting() == 1);
    let device = guest.device.clone();
    let reset = std::thread::spawn(move || device.reset());
    // The reset cannot be over while the backend holds the guest's memory.
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!reset.is_finished());
    let interrupts = guest.driver.interrupts();
    backend.release();
    reset.join().unwrap();
    assert_eq!(backend.waiting(), 0);
    assert_eq!(guest.ring.used_idx(), 0);
    assert_eq!(guest.driver.interrupts(), interrupts);
    // Whatever the next driver finds there is its own.
    guest.driver.put(slot + DATA, &[UNTOUCHED; 512]);
    assert_eq!(guest.driver.get(slot + DATA, 512), [UNTOUCHED; 512]);
}

#[test]
fn a_reset_without_a_driver_does_nothing() {
    let device = VirtioBlock::new(Fake::new(8), &BlockOptions::default()).unwrap();
    device.reset();
    device.notify(0);
    device.notify(7);
    device.reset();
    assert!(device.doorbell(7).is_none() && device.doorbell(0).is_some());
}

#[test]
fn a_dropped_device_ends_its_threads() {
    let backend = Fake::new(8);
    let mut guest = Guest::on(backend.clone());
    assert_eq!(guest.read(0, 512).0, OK);
    drop(guest);
    // The device's and its threads' references are gone.
    assert_eq!(Arc::strong_count(&backend), 1);
}

#[test]
fn many_requests_at_once_are_all_answered_right() {
    let backend = Fake::new(256);
    let mut guest = Guest::on(backend.clone());
    for round in 0..40u64 {
        let slots: Vec<(u64, u64)> = (0..64)
            .map(|n| (round * 5 + n) % 256)
            .map(|sector| (sector, guest.offer_in(VIRTIO_BLK_T_IN, sector, 512)))
            .collect();
        assert_eq!(guest.wait(64).len(), 64);
        let right = |(sector, slot): &(u64, u64)| {
            guest.status(*slot) == OK && guest.driver.get(slot + DATA, 512) == [*sector as u8; 512]
        };
        assert!(slots.iter().all(right), "round {round}");
    }
}

#[test]
fn with_event_idx_every_batch_is_announced() {
    let device = VirtioBlock::new(Fake::new(64), &BlockOptions::default()).unwrap();
    let mut guest = Guest::new(device, USUAL | F_RING_EVENT_IDX);
    for round in 0..50u16 {
        let before = guest.driver.interrupts();
        guest.ring.set_used_event(round * 3);
        for _ in 0..3 {
            guest.offer_in(VIRTIO_BLK_T_IN, 1, 512);
        }
        guest.wait(3);
        wait_until(|| guest.driver.interrupts() > before);
    }
}
