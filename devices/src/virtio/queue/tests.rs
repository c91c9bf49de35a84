//! What drivers do to rings, good and bad, tried on the entropy device: each buffer it is given shows in the used ring.

use std::sync::Arc;

use super::*;
use crate::virtio::device::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC};
use crate::virtio::rng::{Rng, RngConfig};
use crate::virtio::testing::{BUFFERS, Desc, Driver, INDIRECT, NEXT, RAM, RAM_SIZE, Ring};

const SIZE: u16 = 8;
/// A buffer that is as good as any.
const GOOD: Desc = Desc { addr: BUFFERS, len: 16, flags: crate::virtio::testing::WRITE, next: 0 };
/// Where indirect tables are.
const TABLE: u64 = BUFFERS + 0x1_0000;

fn start(features: u64) -> (Driver, Ring) {
    let (driver, mut rings) = Driver::start(Arc::new(Rng::new(RngConfig::default())), features, &[SIZE]);
    (driver, rings.remove(0))
}

/// Whether a device that served `ring` until now survives what was put there: it asks for a reset, and works after one.
#[track_caller]
fn breaks_and_recovers(driver: &Driver, ring: &mut Ring) {
    driver.kick(0);
    assert!(driver.needs_reset(), "the device took it");
    assert_eq!(ring.used(), []);
    let mut ring = driver.bring_up(0, &[SIZE]).remove(0);
    ring.add(&[GOOD]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 16)]);
}

#[test]
fn next_beyond_the_table_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.set_desc(0, GOOD.then(SIZE));
    ring.offer(0);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_head_beyond_the_table_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.offer(SIZE);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_descriptor_that_is_its_own_next_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.set_desc(0, GOOD.then(0));
    ring.offer(0);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_cycle_of_descriptors_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    for index in 0..3 {
        ring.set_desc(index, GOOD.then((index + 1) % 3));
    }
    ring.offer(0);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_cycle_in_an_indirect_table_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    GOOD.then(1).store(&driver.memory, TABLE, 0);
    GOOD.then(0).store(&driver.memory, TABLE, 1);
    ring.add(&[Desc::indirect(TABLE, 2)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_chain_as_long_as_the_queue_is_served() {
    let (driver, mut ring) = start(0);
    ring.add(&[GOOD; SIZE as usize]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 16 * u32::from(SIZE))]);
}

#[test]
fn a_chain_of_more_buffers_than_any_driver_needs_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    let entries = MAX_BUFFERS as u16 + 1;
    for index in 0..entries {
        let last = index + 1 == entries;
        (if last { GOOD } else { GOOD.then(index + 1) }).store(&driver.memory, TABLE, index);
    }
    ring.add(&[Desc::indirect(TABLE, entries.into())]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn an_indirect_chain_may_be_longer_than_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    let entries = 3 * SIZE;
    for index in 0..entries {
        let last = index + 1 == entries;
        (if last { GOOD } else { GOOD.then(index + 1) }).store(&driver.memory, TABLE, index);
    }
    ring.add(&[Desc::indirect(TABLE, entries.into())]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 16 * u32::from(entries))]);
}

#[test]
fn more_than_4_gib_in_one_chain_break_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    let huge = Desc::writable(RAM, RAM_SIZE as u32);
    for index in 0..257 {
        (if index < 256 { huge.then(index + 1) } else { huge }).store(&driver.memory, TABLE, index);
    }
    ring.add(&[Desc::indirect(TABLE, 257)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn the_same_head_offered_again_is_served_again_and_no_more() {
    let (driver, mut ring) = start(0);
    ring.set_desc(3, GOOD);
    for _ in 0..SIZE {
        ring.offer(3);
    }
    driver.kick(0);
    driver.kick(0);
    assert_eq!(ring.used(), [(3, 16); SIZE as usize]);
    assert!(!driver.needs_reset());
}

#[test]
fn an_available_index_too_far_ahead_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.set_desc(0, GOOD);
    ring.set_avail_idx(SIZE + 1);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn an_available_index_that_goes_back_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.add(&[GOOD]);
    driver.kick(0);
    ring.used();
    ring.set_avail_idx(0);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn an_address_that_wraps_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.add(&[Desc::writable(u64::MAX - 7, 16)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_buffer_across_the_end_of_ram_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.add(&[Desc::writable(RAM + RAM_SIZE - 8, 16)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_buffer_up_to_the_end_of_ram_is_served() {
    let (driver, mut ring) = start(0);
    ring.add(&[Desc::writable(RAM + RAM_SIZE - 16, 16)]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 16)]);
}

#[test]
fn a_buffer_below_ram_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.add(&[Desc::writable(RAM - 8, 16)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn an_empty_buffer_is_no_reason_to_look_at_its_address() {
    let (driver, mut ring) = start(0);
    ring.add(&[Desc::writable(u64::MAX, 0), GOOD]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 16)]);
}

#[test]
fn a_readable_buffer_behind_a_writable_one_breaks_the_queue() {
    let (driver, mut ring) = start(0);
    ring.add(&[GOOD, Desc::readable(BUFFERS, 16)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_table_in_a_table_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    Desc::indirect(TABLE + 0x100, 1).store(&driver.memory, TABLE, 0);
    GOOD.store(&driver.memory, TABLE + 0x100, 0);
    ring.add(&[Desc::indirect(TABLE, 1)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_table_that_contains_itself_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    Desc::indirect(TABLE, 1).store(&driver.memory, TABLE, 0);
    ring.add(&[Desc::indirect(TABLE, 1)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn an_empty_table_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    ring.add(&[Desc::indirect(TABLE, 0)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_table_of_no_whole_descriptors_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    GOOD.store(&driver.memory, TABLE, 0);
    ring.add(&[Desc { addr: TABLE, len: 24, flags: INDIRECT, next: 0 }]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_table_outside_ram_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    ring.add(&[Desc::indirect(RAM + RAM_SIZE, 1)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_table_across_the_end_of_ram_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    GOOD.then(1).store(&driver.memory, RAM + RAM_SIZE - 16, 0);
    ring.add(&[Desc::indirect(RAM + RAM_SIZE - 16, 2)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn a_next_beyond_an_indirect_table_breaks_the_queue() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    GOOD.then(1).store(&driver.memory, TABLE, 0);
    GOOD.store(&driver.memory, TABLE, 1);
    ring.add(&[Desc::indirect(TABLE, 1)]);
    breaks_and_recovers(&driver, &mut ring);
}

#[test]
fn an_indirect_table_is_served_as_one_chain() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    Desc::writable(BUFFERS, 5).then(2).store(&driver.memory, TABLE, 0);
    Desc::writable(BUFFERS + 0x100, 7).store(&driver.memory, TABLE, 2);
    let head = ring.add(&[Desc::indirect(TABLE, 3)]);
    driver.kick(0);
    assert_eq!(ring.used(), [(head.into(), 12)]);
}

#[test]
fn buffers_may_come_before_an_indirect_table() {
    let (driver, mut ring) = start(F_RING_INDIRECT_DESC);
    GOOD.store(&driver.memory, TABLE, 0);
    ring.add(&[GOOD, Desc::indirect(TABLE, 1)]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 32)]);
}

#[test]
fn a_broken_queue_interrupts_once_and_stays_empty() {
    let (driver, mut ring) = start(0);
    ring.offer(SIZE);
    driver.kick(0);
    let interrupts = driver.interrupts();
    ring.add(&[GOOD]);
    driver.kick(0);
    driver.kick(0);
    assert_eq!((ring.used(), interrupts, driver.interrupts()), (vec![], 1, 1));
}

#[test]
fn indices_wrap_at_16_bits() {
    let (driver, mut ring) = start(0);
    let mut served = 0;
    for _ in 0..(1 << 16) / u32::from(SIZE) + 1 {
        for _ in 0..SIZE {
            ring.add(&[GOOD]);
        }
        driver.kick(0);
        served += ring.used().len();
    }
    assert_eq!(served, (1 << 16) + usize::from(SIZE));
}

#[test]
fn one_interrupt_announces_a_batch() {
    let (driver, mut ring) = start(0);
    ring.add(&[GOOD]);
    ring.add(&[GOOD]);
    ring.add(&[GOOD]);
    driver.kick(0);
    assert_eq!((ring.used().len(), driver.interrupts()), (3, 1));
}

#[test]
fn a_doorbell_without_work_interrupts_nobody() {
    let (driver, mut ring) = start(0);
    driver.kick(0);
    assert_eq!((ring.used(), driver.interrupts()), (vec![], 0));
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let (driver, mut ring) = start(0);
    ring.set_avail_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
    ring.add(&[GOOD]);
    driver.kick(0);
    assert_eq!((ring.used().len(), driver.interrupts()), (1, 0));
}

#[test]
fn with_event_idx_the_flag_means_nothing() {
    let (driver, mut ring) = start(F_RING_EVENT_IDX);
    ring.set_avail_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
    ring.add(&[GOOD]);
    driver.kick(0);
    assert_eq!((ring.used().len(), driver.interrupts()), (1, 1));
}

#[test]
fn with_event_idx_the_interrupt_waits_for_the_entry_that_was_asked_for() {
    let (driver, mut ring) = start(F_RING_EVENT_IDX);
    ring.set_used_event(2);
    ring.add(&[GOOD]);
    driver.kick(0);
    ring.add(&[GOOD]);
    driver.kick(0);
    let before = driver.interrupts();
    ring.add(&[GOOD]);
    driver.kick(0);
    assert_eq!((before, driver.interrupts()), (0, 1));
}

#[test]
fn with_event_idx_a_batch_over_the_entry_interrupts_once() {
    let (driver, mut ring) = start(F_RING_EVENT_IDX);
    ring.set_used_event(1);
    for _ in 0..4 {
        ring.add(&[GOOD]);
    }
    driver.kick(0);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn with_event_idx_an_entry_long_past_interrupts_no_more() {
    let (driver, mut ring) = start(F_RING_EVENT_IDX);
    ring.add(&[GOOD]);
    driver.kick(0);
    ring.add(&[GOOD]);
    driver.kick(0);
    assert_eq!((ring.used().len(), driver.interrupts()), (2, 1));
}

#[test]
fn with_event_idx_the_device_asks_for_a_doorbell_with_the_next_entry() {
    let (driver, mut ring) = start(F_RING_EVENT_IDX);
    for _ in 0..3 {
        ring.add(&[GOOD]);
    }
    driver.kick(0);
    assert_eq!((ring.used().len(), ring.avail_event()), (3, 3));
}

#[test]
fn an_idle_device_lets_doorbells_be_rung() {
    let (driver, mut ring) = start(0);
    ring.add(&[GOOD]);
    driver.kick(0);
    assert_eq!(ring.used_flags(), 0);
}

#[test]
fn a_chain_that_is_put_back_comes_again() {
    let (driver, mut ring) = start(0);
    driver.set_status(0);
    ring.add(&[GOOD]);
    let mut queue = queue_over(&driver, &ring, 0);
    let mut chain = Chain::new();
    assert!(queue.pop(&driver.memory, &mut chain));
    queue.undo_pop();
    assert!(queue.pop(&driver.memory, &mut chain));
    assert!(!queue.pop(&driver.memory, &mut Chain::new()));
    assert_eq!((chain.head(), chain.writable_len(), chain.readable_len()), (0, 16, 0));
}

#[test]
fn a_queue_goes_on_where_its_state_says() {
    let (driver, mut ring) = start(0);
    ring.add(&[GOOD]);
    driver.kick(0);
    ring.add(&[GOOD]);
    let mut queue = queue_over(&driver, &ring, 1);
    let mut chain = Chain::new();
    assert!(queue.pop(&driver.memory, &mut chain));
    queue.push(&driver.memory, chain.head(), 5);
    assert_eq!((chain.head(), queue.state().next_avail, queue.state().next_used), (1, 2, 2));
    assert_eq!(ring.used(), [(0, 16), (1, 5)]);
}

/// A queue over `ring` that has come to entry `next`.
fn queue_over(driver: &Driver, ring: &Ring, next: u16) -> Virtqueue {
    #[derive(Debug)]
    struct Nobody;
    impl Interrupt for Nobody {
        fn used(&self, _index: u16) {}
        fn config_changed(&self) {}
        fn needs_reset(&self) {}
    }
    let state = VirtqueueState {
        size: ring.size,
        desc: ring.desc,
        avail: ring.avail,
        used: ring.used,
        next_avail: next,
        next_used: next,
    };
    Virtqueue::new("test".into(), 0, SIZE, state, false, &driver.memory, Arc::new(Nobody)).unwrap()
}

#[test]
fn flags_that_do_not_exist_are_ignored() {
    let (driver, mut ring) = start(0);
    ring.add(&[Desc { flags: GOOD.flags | !(NEXT | INDIRECT), ..GOOD }]);
    driver.kick(0);
    assert_eq!(ring.used(), [(0, 16)]);
}
