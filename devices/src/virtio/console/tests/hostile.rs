//! A driver that breaks the rules. Each test is a class of bugs that others had.

use super::*;
use crate::virtio::testing::INDIRECT;

#[test]
fn a_driver_that_is_ready_all_the_time_hears_of_each_port_once() {
    let mut guest = Guest::new(vec![console(Arc::<Fake>::default()), serial("a", Arc::<Fake>::default())]);
    for _ in 0..5000 {
        guest.say(0, DEVICE_READY, 1);
    }
    assert_eq!(guest.hear_all().len(), 2);
}

#[test]
fn a_port_that_is_ready_all_the_time_is_described_once() {
    let mut guest = Guest::new(vec![serial("a", Arc::<Fake>::default())]);
    for _ in 0..5000 {
        guest.say(1, PORT_READY, 1);
    }
    // Its name, and that it is open.
    assert_eq!(guest.hear_all().len(), 2);
}

#[test]
fn odd_control_messages_are_ignored() {
    let mut guest = Guest::ready(vec![console(Arc::<Fake>::default())]);
    for (id, event, value) in [
        (0, 99, 1),
        (0, DEVICE_ADD, 1),
        (0, CONSOLE_PORT, 1),
        (7, PORT_OPEN, 1),
        (u32::MAX, PORT_READY, 1),
        (0, PORT_READY, 0),
        (0, DEVICE_READY, 0),
    ] {
        guest.say(id, event, value);
    }
    assert_eq!(guest.hear(), None);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn a_control_message_that_is_too_short_is_ignored() {
    let mut guest = Guest::new(vec![console(Arc::<Fake>::default())]);
    guest.say_bytes(&[0; 7]);
    guest.say_bytes(&[]);
    assert_eq!(guest.hear(), None);
    guest.say(0, DEVICE_READY, 1);
    assert_eq!(guest.hear(), Some(heard(0, DEVICE_ADD, 1)));
}

#[test]
fn a_control_buffer_that_is_too_small_gets_the_beginning() {
    let mut guest = Guest::new(vec![console(Arc::<Fake>::default())]);
    guest.say(0, DEVICE_READY, 1);
    let ring = &mut guest.rings[usize::from(CONTROL_RX)];
    ring.add(&[Desc::writable(CONTROL_BUFFERS, 3)]);
    guest.driver.kick(CONTROL_RX);
    assert_eq!(guest.rings[usize::from(CONTROL_RX)].used(), [(0, 3)]);
}

#[test]
fn a_control_buffer_that_is_not_writable_is_given_back_empty() {
    let mut guest = Guest::new(vec![console(Arc::<Fake>::default())]);
    guest.say(0, DEVICE_READY, 1);
    let ring = &mut guest.rings[usize::from(CONTROL_RX)];
    ring.add(&[Desc::readable(CONTROL_BUFFERS, 64)]);
    guest.driver.kick(CONTROL_RX);
    assert_eq!(guest.rings[usize::from(CONTROL_RX)].used(), [(0, 0)]);
}

#[test]
fn an_input_buffer_that_is_not_writable_loses_no_input() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    guest.say(0, PORT_OPEN, 1);
    fake.type_in(b"kept");
    guest.rings[usize::from(RX)].add(&[Desc::readable(INPUT, 64)]);
    guest.driver.kick(RX);
    assert_eq!(guest.take_input(RX), b"");
    guest.post(RX, 1);
    assert_eq!(guest.take_input(RX), b"kept");
}

#[test]
fn writable_buffers_in_the_output_are_not_printed() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    guest.driver.put(OUTPUT, b"yes no");
    guest.rings[usize::from(TX)].add(&[Desc::readable(OUTPUT, 3), Desc::writable(OUTPUT + 3, 3)]);
    guest.driver.kick(TX);
    assert_eq!(fake.output(), b"yes");
    assert_eq!(guest.rings[usize::from(TX)].used(), [(0, 0)]);
}

#[test]
fn output_from_outside_of_memory_needs_a_reset() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    guest.rings[usize::from(TX)].add(&[Desc::readable(RAM - 8, 16)]);
    guest.driver.kick(TX);
    assert!(guest.driver.needs_reset());
    assert_eq!(fake.output(), b"");
    guest.restart();
    guest.print(TX, b"again");
    assert_eq!(fake.output(), b"again");
}

#[test]
fn input_to_outside_of_memory_loses_none_over_the_reset() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    guest.say(0, PORT_OPEN, 1);
    guest.rings[usize::from(RX)].add(&[Desc::writable(u64::MAX - 8, u32::MAX)]);
    fake.type_in(b"kept");
    assert!(guest.driver.needs_reset());
    assert_eq!(fake.waiting_input(), 4);
}

#[test]
fn a_chain_that_says_the_same_memory_over_and_over_is_refused() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    let table = RAM + 0x40_0000;
    for index in 0..9 {
        let desc = Desc::readable(RAM, 8 << 20);
        let desc = if index < 8 { desc.then(index + 1) } else { desc };
        desc.store(&guest.driver.memory, table, index);
    }
    assert_eq!(Desc::indirect(table, 9).flags, INDIRECT);
    guest.restart_with_indirect();
    guest.rings[usize::from(TX)].add(&[Desc::indirect(table, 9)]);
    guest.driver.kick(TX);
    assert!(guest.driver.needs_reset());
    assert_eq!(fake.output().len(), 0);
}

#[test]
fn a_chain_that_shrinks_while_it_waits_is_done() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    fake.set_room(6);
    guest.print(TX, b"abcdefgh");
    guest.rings[usize::from(TX)].set_desc(0, Desc::readable(OUTPUT, 2));
    fake.set_room(100);
    assert_eq!(guest.rings[usize::from(TX)].used(), [(0, 0)]);
    assert_eq!(fake.output(), b"abcdef");
}

#[test]
fn doorbells_of_queues_that_do_not_exist_do_nothing() {
    let guest = Guest::ready(vec![serial("a", Arc::<Fake>::default())]);
    for queue in [0, 1, 6, 63, 64, u16::MAX] {
        guest.driver.kick(queue);
        guest.console.notify(queue);
    }
    assert!(!guest.driver.needs_reset());
}

#[test]
fn the_configuration_space_ends_where_it_ends() {
    let guest = Guest::new(vec![console(Arc::<Fake>::default())]);
    let mut data = [0xaa; 8];
    guest.console.read_config(u64::MAX - 2, &mut data);
    assert_eq!(data, [0xaa; 8]);
    guest.console.write_config(u64::MAX, &data);
    guest.console.write_config(8, &[]);
}

#[test]
fn a_state_that_does_not_fit_is_cut_off() {
    let guest = Guest::ready(vec![console(Arc::<Fake>::default())]);
    let port = PortState { sent: u64::MAX, pending: 0xff, ready: true, ..PortState::default() };
    guest.console.restore(&ConsoleState { ports: vec![port; 3] });
    assert_eq!(guest.console.save().ports.len(), 1);
}
