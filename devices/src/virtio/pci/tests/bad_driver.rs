//! Drivers that do what none should.

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{BUFFERS, Desc};

#[test]
fn a_running_queues_registers_cannot_be_rewritten() {
    let bench = Bench::new();
    let mut ring = bench.start();
    bench.write2(at::QUEUE_SELECT, 0);
    bench.write2(at::QUEUE_SIZE, 0);
    bench.write(at::QUEUE_DESC, &[0xff; 8]);
    bench.write2(at::QUEUE_ENABLE, 0);
    assert_eq!([bench.read2(at::QUEUE_SIZE), bench.read2(at::QUEUE_ENABLE)], [64, 1]);
    assert_eq!(u64::from_le_bytes(bench.read(at::QUEUE_DESC)), ring.desc);
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    bench.write2(NOTIFY, 0);
    assert_eq!(ring.used(), [(0, 16)]);
}

#[test]
fn a_queue_that_was_not_set_up_in_time_stays_out() {
    let bench = Bench::new();
    bench.start();
    bench.set_queue(&Ring::new(&bench.memory, 1, 64));
    assert_eq!(bench.read2(at::QUEUE_ENABLE), 0);
    bench.write2(NOTIFY + 4, 1);
    assert_eq!(bench.status(), RUNNING);
}

#[test]
fn an_enabled_queue_keeps_its_registers_before_driver_ok_too() {
    let bench = Bench::new();
    bench.negotiate();
    bench.set_queue(&Ring::new(&bench.memory, 0, 64));
    bench.write2(at::QUEUE_SIZE, 3);
    bench.write2(at::QUEUE_ENABLE, 0);
    assert_eq!([bench.read2(at::QUEUE_SIZE), bench.read2(at::QUEUE_ENABLE)], [64, 1]);
}

/// What the status is after DRIVER_OK with a queue that `change` has made worse.
fn status_with(change: impl FnOnce(&mut Ring)) -> (u8, bool) {
    let bench = Bench::new();
    bench.negotiate();
    let mut ring = Ring::new(&bench.memory, 0, 64);
    change(&mut ring);
    bench.set_queue(&ring);
    bench.set_status(RUNNING);
    (bench.status() & NEEDS_RESET, bench.device.is_running())
}

#[test]
fn a_queue_of_nonsense_makes_the_device_need_a_reset() {
    let refused = (NEEDS_RESET, false);
    assert_eq!(status_with(|ring| ring.size = 0), refused);
    assert_eq!(status_with(|ring| ring.size = 3), refused);
    assert_eq!(status_with(|ring| ring.size = 512), refused);
    assert_eq!(status_with(|ring| ring.desc = 0), refused);
    assert_eq!(status_with(|ring| ring.used = u64::MAX - 3), refused);
    assert_eq!(status_with(|ring| ring.avail += 1), refused);
    assert_eq!(status_with(|_| {}), (0, true));
}

#[test]
fn a_doorbell_before_driver_ok_and_after_a_reset_does_nothing() {
    let bench = Bench::new();
    bench.write2(NOTIFY, 0);
    let mut ring = bench.start();
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    bench.set_status(0);
    bench.write2(NOTIFY, 0);
    assert_eq!(ring.used(), []);
}

#[test]
fn reads_of_nothing_give_zeros() {
    let bench = Bench::new();
    assert_eq!(bench.read::<4>(0x38), [0; 4]);
    assert_eq!(bench.read::<4>(ISR + 4), [0; 4]);
    assert_eq!(bench.read::<4>(NOTIFY), [0; 4]);
    assert_eq!(bench.read::<4>(VIRTIO_BAR_SIZE - 4), [0; 4]);
}

#[test]
fn odd_accesses_of_the_isr_do_no_harm() {
    let bench = Bench::new();
    bench.start();
    bench.device.interrupt(|interrupt| interrupt.used(0));
    bench.write(ISR, &[0xff; 4]);
    assert_eq!(bench.read::<8>(ISR), [1, 0, 0, 0, 0, 0, 0, 0]);
}

/// An access of either BAR or of configuration space, mostly where something is.
fn access() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let place = prop_oneof![
        6 => (0..0x40_u64).prop_map(|offset| VIRTIO_AT + offset),
        1 => (0..VIRTIO_BAR_SIZE).prop_map(|offset| VIRTIO_AT + offset),
        1 => (0..0x1000_u64).prop_map(|offset| MSIX_AT + offset),
        2 => (0x40..0x100_u64).prop_map(|register| 0x3f00_8000 + register),
    ];
    let small = any::<u16>().prop_map(|value| u64::from(value) & 0x40f);
    let value = prop_oneof![any::<u64>(), small, Just(u64::MAX), Just(BUFFERS)];
    (place, value, prop_oneof![Just(1), Just(2), Just(4), Just(8), 0..8_usize])
        .prop_map(|(place, value, len)| (place, value.to_le_bytes()[..len].to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn no_sequence_of_accesses_panics_or_keeps_a_device_from_starting(
        accesses in prop::collection::vec(access(), 1..200),
    ) {
        let bench = Bench::new();
        for (addr, data) in accesses {
            bench.bus.write(addr, &data);
            bench.bus.read(addr, &mut vec![0; data.len()]);
        }
        let mut ring = bench.start();
        ring.add(&[Desc::writable(BUFFERS, 16)]);
        bench.write2(NOTIFY, 0);
        prop_assert_eq!(ring.used(), [(0, 16)]);
    }
}
