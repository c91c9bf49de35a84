//! What drivers do to the registers, good and bad, tried on the entropy device.

use super::*;
use crate::virtio::device::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::rng::{Rng, RngConfig};
use crate::virtio::testing::{BUFFERS, Desc, Driver, RAM, RAM_SIZE, Ring, reg, status};

const SIZE: u16 = 8;
/// The most entries that the device's queue can have.
const MAX_SIZE: u16 = 64;
/// VIRTIO_F_RING_PACKED (virtio 1.2, 6).
const F_RING_PACKED: u64 = 1 << 34;

fn new() -> Driver {
    Driver::new(Arc::new(Rng::new(RngConfig::default())))
}

fn started() -> (Driver, Ring) {
    let (driver, mut rings) = Driver::start(Arc::new(Rng::new(RngConfig::default())), 0, &[SIZE]);
    (driver, rings.remove(0))
}

/// One request, from the next descriptor to the used ring.
#[track_caller]
fn works(driver: &Driver, ring: &mut Ring) {
    ring.used();
    let head = ring.add(&[Desc::writable(BUFFERS, 16)]);
    driver.kick(0);
    assert_eq!(ring.used(), [(head.into(), 16)]);
}

/// Brings the device up with a queue that `change` has changed, and says whether it was refused. It must recover.
#[track_caller]
fn refuses_queue(change: impl FnOnce(&mut Ring)) {
    let driver = new();
    driver.negotiate(F_VERSION_1);
    let mut ring = Ring::new(&driver.memory, 0, SIZE);
    change(&mut ring);
    driver.set_queue(&ring);
    driver.set_status(status::RUNNING);
    assert!(driver.needs_reset(), "the queue was taken");
    driver.kick(0);
    let mut ring = driver.bring_up(0, &[SIZE]).remove(0);
    works(&driver, &mut ring);
}

#[test]
fn it_says_what_it_is() {
    let driver = new();
    let words = [0, 4, 8, 12].map(|register| driver.read(register));
    assert_eq!(words, [u32::from_le_bytes(*b"virt"), 2, 4, u32::from_le_bytes(*b"QEMU")]);
}

#[test]
fn it_offers_what_every_device_offers() {
    assert_eq!(new().device_features(), F_VERSION_1 | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX);
}

#[test]
fn features_beyond_64_read_as_zero() {
    let driver = new();
    driver.write(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(reg::DEVICE_FEATURES), 0);
}

#[test]
fn a_negotiated_device_works() {
    let (driver, mut ring) = started();
    works(&driver, &mut ring);
    assert_eq!((driver.acknowledge(), driver.read(reg::INTERRUPT_STATUS)), (INT_USED_RING, 0));
}

#[test]
fn the_packed_ring_is_refused() {
    let driver = new();
    driver.negotiate(F_VERSION_1 | F_RING_PACKED);
    assert_eq!(driver.status() & status::FEATURES_OK, 0);
}

#[test]
fn a_feature_that_was_not_offered_is_refused() {
    let driver = new();
    driver.negotiate(F_VERSION_1 | 1);
    assert_eq!(driver.status() & status::FEATURES_OK, 0);
}

#[test]
fn a_driver_without_version_1_is_refused() {
    let driver = new();
    driver.negotiate(F_RING_EVENT_IDX);
    assert_eq!(driver.status() & status::FEATURES_OK, 0);
}

#[test]
fn a_refused_driver_may_try_again_with_less() {
    let driver = new();
    driver.negotiate(F_VERSION_1 | 1);
    driver.negotiate(F_VERSION_1);
    assert_eq!(driver.status(), status::NEGOTIATED);
}

#[test]
fn features_cannot_change_after_features_ok() {
    let driver = new();
    driver.negotiate(F_VERSION_1);
    driver.write(reg::DRIVER_FEATURES_SEL, 0);
    driver.write(reg::DRIVER_FEATURES, u32::MAX);
    assert_eq!(driver.mmio.state().registers.driver_features, F_VERSION_1);
}

#[test]
fn driver_ok_without_features_ok_starts_nothing() {
    let driver = new();
    let mut ring = Ring::new(&driver.memory, 0, SIZE);
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
    driver.set_queue(&ring);
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK);
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    driver.kick(0);
    assert_eq!((driver.status() & status::DRIVER_OK, ring.used()), (0, vec![]));
}

#[test]
fn a_status_bit_cannot_be_taken_back() {
    let (driver, mut ring) = started();
    driver.set_status(status::ACKNOWLEDGE);
    assert_eq!(driver.status(), status::RUNNING);
    works(&driver, &mut ring);
}

#[test]
fn a_driver_cannot_set_needs_reset() {
    let (driver, _) = started();
    driver.set_status(status::RUNNING | status::NEEDS_RESET);
    assert!(!driver.needs_reset());
}

#[test]
fn a_status_of_zero_in_its_eight_bits_is_a_reset() {
    let (driver, mut ring) = started();
    works(&driver, &mut ring);
    driver.set_status(0x100);
    assert_eq!((driver.status(), driver.read(reg::INTERRUPT_STATUS)), (0, 0));
}

#[test]
fn a_queue_of_size_0_is_refused() {
    // The register, as rings of no entries cannot be.
    let driver = new();
    driver.negotiate(F_VERSION_1);
    driver.set_queue(&Ring::new(&driver.memory, 0, SIZE));
    driver.write(reg::QUEUE_NUM, 0);
    driver.set_status(status::RUNNING);
    assert!(driver.needs_reset());
}

#[test]
fn a_queue_size_that_is_no_power_of_2_is_refused() {
    refuses_queue(|ring| ring.size = 7);
}

#[test]
fn a_queue_size_above_the_most_is_refused() {
    refuses_queue(|ring| ring.size = 2 * MAX_SIZE);
}

#[test]
fn a_queue_size_of_more_than_16_bits_is_refused() {
    let driver = new();
    driver.negotiate(F_VERSION_1);
    driver.set_queue(&Ring::new(&driver.memory, 0, SIZE));
    driver.write(reg::QUEUE_NUM, 0x1_0008);
    driver.set_status(status::RUNNING);
    assert!(driver.needs_reset());
}

#[test]
fn the_largest_queue_works() {
    let (driver, mut rings) = Driver::start(Arc::new(Rng::new(RngConfig::default())), 0, &[MAX_SIZE]);
    assert_eq!(driver.read(reg::QUEUE_NUM_MAX), u32::from(MAX_SIZE));
    works(&driver, &mut rings[0]);
}

#[test]
fn a_queue_of_one_entry_works() {
    let (driver, mut rings) = Driver::start(Arc::new(Rng::new(RngConfig::default())), 0, &[1]);
    works(&driver, &mut rings[0]);
    works(&driver, &mut rings[0]);
}

#[test]
fn a_descriptor_table_outside_ram_is_refused() {
    refuses_queue(|ring| ring.desc = RAM + RAM_SIZE);
}

#[test]
fn a_descriptor_table_across_the_end_of_ram_is_refused() {
    refuses_queue(|ring| ring.desc = RAM + RAM_SIZE - 16);
}

#[test]
fn a_descriptor_table_that_wraps_is_refused() {
    refuses_queue(|ring| ring.desc = u64::MAX - 15);
}

#[test]
fn an_available_ring_outside_ram_is_refused() {
    refuses_queue(|ring| ring.avail = 0);
}

#[test]
fn an_available_ring_across_the_end_of_ram_is_refused() {
    refuses_queue(|ring| ring.avail = RAM + RAM_SIZE - 20);
}

#[test]
fn a_used_ring_outside_ram_is_refused() {
    refuses_queue(|ring| ring.used = RAM - 4);
}

#[test]
fn a_used_ring_across_the_end_of_ram_is_refused() {
    refuses_queue(|ring| ring.used = RAM + RAM_SIZE - 68);
}

#[test]
fn an_unaligned_descriptor_table_is_refused() {
    refuses_queue(|ring| ring.desc += 8);
}

#[test]
fn an_unaligned_available_ring_is_refused() {
    refuses_queue(|ring| ring.avail += 1);
}

#[test]
fn an_unaligned_used_ring_is_refused() {
    refuses_queue(|ring| ring.used += 2);
}

#[test]
fn queue_registers_written_after_driver_ok_change_nothing() {
    let (driver, mut ring) = started();
    let before = driver.mmio.state().registers.queues;
    driver.write(reg::QUEUE_NUM, 0);
    for register in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE] {
        driver.write(register, 0xffff_fff0);
        driver.write(register + 4, 0xffff_ffff);
    }
    driver.write(reg::QUEUE_READY, 1);
    assert_eq!(driver.mmio.state().registers.queues, before);
    works(&driver, &mut ring);
}

#[test]
fn a_queue_that_is_stopped_reads_as_stopped_and_is_served_no_more() {
    let (driver, mut ring) = started();
    works(&driver, &mut ring);
    driver.write(reg::QUEUE_READY, 0);
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    driver.kick(0);
    assert_eq!((driver.read(reg::QUEUE_READY), ring.used()), (0, vec![]));
}

#[test]
fn a_stopped_device_works_after_a_reset() {
    let (driver, _) = started();
    driver.write(reg::QUEUE_READY, 0);
    let mut ring = driver.bring_up(0, &[SIZE]).remove(0);
    works(&driver, &mut ring);
}

#[test]
fn a_queue_that_is_not_there_has_no_registers() {
    let driver = new();
    driver.negotiate(F_VERSION_1);
    let before = driver.mmio.state().registers.queues;
    for select in [1, 0xffff, 0x1_0000, u32::MAX] {
        driver.write(reg::QUEUE_SEL, select);
        driver.write(reg::QUEUE_NUM, 4);
        driver.write(reg::QUEUE_READY, 1);
        assert_eq!((driver.read(reg::QUEUE_NUM_MAX), driver.read(reg::QUEUE_READY)), (0, 0));
    }
    assert_eq!(driver.mmio.state().registers.queues, before);
}

#[test]
fn a_doorbell_of_a_queue_that_is_not_there_is_ignored() {
    let (driver, mut ring) = started();
    driver.kick(1);
    driver.kick(u16::MAX);
    driver.write(reg::QUEUE_NOTIFY, u32::MAX);
    assert_eq!(driver.status(), status::RUNNING);
    works(&driver, &mut ring);
}

#[test]
fn a_doorbell_before_driver_ok_is_ignored() {
    let driver = new();
    driver.kick(0);
    driver.negotiate(F_VERSION_1);
    let mut ring = Ring::new(&driver.memory, 0, SIZE);
    driver.set_queue(&ring);
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    driver.kick(0);
    assert_eq!(ring.used(), []);
}

#[test]
fn a_doorbell_after_a_reset_is_ignored() {
    let (driver, mut ring) = started();
    driver.set_status(0);
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    let interrupts = driver.interrupts();
    driver.kick(0);
    assert_eq!((ring.used(), driver.interrupts()), (vec![], interrupts));
}

#[test]
fn a_reset_puts_all_registers_back() {
    let driver = new();
    let fresh = driver.mmio.state();
    let mut ring = driver.bring_up(F_RING_EVENT_IDX, &[SIZE]).remove(0);
    works(&driver, &mut ring);
    driver.write(reg::DEVICE_FEATURES_SEL, 1);
    driver.set_status(0);
    assert_eq!(driver.mmio.state(), fresh);
}

#[test]
fn another_kernel_can_take_over_after_a_reset() {
    let (driver, mut ring) = started();
    works(&driver, &mut ring);
    let mut ring = driver.bring_up(F_RING_EVENT_IDX | F_RING_INDIRECT_DESC, &[2 * SIZE]).remove(0);
    works(&driver, &mut ring);
}

#[test]
fn the_machines_reset_resets_the_device() {
    let (driver, mut ring) = started();
    works(&driver, &mut ring);
    driver.mmio.reset();
    assert_eq!((driver.status(), driver.read(reg::INTERRUPT_STATUS)), (0, 0));
    let mut ring = driver.bring_up(0, &[SIZE]).remove(0);
    works(&driver, &mut ring);
}

#[test]
fn resets_without_a_driver_do_nothing() {
    let driver = new();
    let fresh = driver.mmio.state();
    driver.set_status(0);
    driver.set_status(0);
    driver.mmio.reset();
    assert_eq!(driver.mmio.state(), fresh);
}

#[test]
fn needing_a_reset_is_told_by_a_configuration_interrupt() {
    let (driver, mut ring) = started();
    ring.offer(SIZE);
    driver.kick(0);
    assert_eq!((driver.needs_reset(), driver.acknowledge()), (true, INT_CONFIG));
}

#[test]
fn a_reset_that_was_needed_clears_the_need() {
    let (driver, mut ring) = started();
    ring.offer(SIZE);
    driver.kick(0);
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_device_without_its_queue_starts_and_does_nothing() {
    let driver = new();
    driver.bring_up(0, &[0]);
    driver.kick(0);
    assert_eq!((driver.status(), driver.interrupts()), (status::RUNNING, 0));
}

#[test]
fn only_the_causes_that_were_seen_are_acknowledged() {
    let (driver, mut ring) = started();
    works(&driver, &mut ring);
    driver.write(reg::INTERRUPT_ACK, INT_CONFIG);
    assert_eq!(driver.read(reg::INTERRUPT_STATUS), INT_USED_RING);
}

#[test]
fn configuration_out_of_range_reads_as_zero() {
    let driver = new();
    assert_eq!(driver.config::<8>(0), [0; 8]);
    assert_eq!(driver.config::<4>(0xfc), [0; 4]);
    assert_eq!(driver.config::<1>(u64::MAX - reg::CONFIG), [0; 1]);
}

#[test]
fn writes_to_a_configuration_that_is_not_there_are_ignored() {
    let (driver, mut ring) = started();
    driver.mmio.write(reg::CONFIG, &[0xff; 8]);
    driver.mmio.write(reg::CONFIG + 0xff, &[0xff]);
    works(&driver, &mut ring);
}

#[test]
fn registers_are_read_in_32_bits_only() {
    let driver = new();
    let mut byte = [0; 1];
    driver.mmio.read(0, &mut byte);
    let mut half = [0; 2];
    driver.mmio.read(0, &mut half);
    let mut double = [0; 8];
    driver.mmio.read(0, &mut double);
    let mut unaligned = [0; 4];
    driver.mmio.read(2, &mut unaligned);
    assert_eq!((byte, half, double, unaligned), ([0; 1], [0; 2], [0; 8], [0; 4]));
}

#[test]
fn registers_are_written_in_32_bits_only() {
    let (driver, mut ring) = started();
    driver.mmio.write(reg::STATUS, &[0]);
    driver.mmio.write(reg::STATUS, &[0; 2]);
    driver.mmio.write(reg::STATUS - 2, &[0; 4]);
    driver.mmio.write(reg::STATUS - 4, &[0; 8]);
    assert_eq!(driver.status(), status::RUNNING);
    works(&driver, &mut ring);
}

#[test]
fn a_data_width_of_zero_is_harmless() {
    let driver = new();
    driver.mmio.read(0, &mut []);
    driver.mmio.write(reg::STATUS, &[]);
    driver.mmio.read(reg::CONFIG, &mut []);
    assert_eq!(driver.status(), 0);
}

#[test]
fn there_is_no_shared_memory() {
    let driver = new();
    assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|register| driver.read(register)), [u32::MAX; 4]);
}

#[test]
fn registers_that_do_not_exist_read_as_zero() {
    let driver = new();
    assert_eq!([0x028, 0x040, 0x0c4, 0x0f8].map(|register| driver.read(register)), [0; 4]);
}

#[test]
fn the_state_survives_serialisation() {
    let (driver, _) = started();
    let state = driver.mmio.state();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<VirtioMmioState>(&text).unwrap(), state);
}

#[test]
fn a_queues_doorbell_is_its_number_written_to_queue_notify() {
    let (addr, data) = doorbell(0x0a00_0200, 3);
    assert_eq!((addr, data), (0x0a00_0200 + reg::QUEUE_NOTIFY, Datamatch::U32(3)));
}
