//! Bytes both ways: all of them, in order, and none too early.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;
use crate::backend::chardev::Stream;
use crate::virtio::testing::wait_until;

const MIB: usize = 1 << 20;

/// A guest whose console is one end of a socket; the other end.
fn socket_guest() -> (Guest, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut guest = Guest::ready(vec![console(Arc::new(Stream::socket("test", theirs).unwrap()))]);
    guest.say(0, PORT_OPEN, 1);
    (guest, ours)
}

#[test]
fn all_buffers_of_a_chain_are_printed() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    guest.driver.put(OUTPUT, b"one two three");
    let parts = [
        Desc::readable(OUTPUT, 3),
        Desc::readable(OUTPUT + 3, 0),
        Desc::readable(OUTPUT + 3, 4),
        Desc::readable(OUTPUT + 7, 6),
    ];
    guest.rings[usize::from(TX)].add(&parts);
    guest.driver.kick(TX);
    assert_eq!(fake.output(), b"one two three");
    assert_eq!(guest.rings[usize::from(TX)].used(), [(0, 0)]);
}

#[test]
fn all_buffers_of_a_chain_are_filled() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    guest.say(0, PORT_OPEN, 1);
    let parts = [Desc::writable(INPUT, 3), Desc::writable(INPUT + 3, 4), Desc::writable(INPUT + 7, 100)];
    guest.rings[usize::from(RX)].add(&parts);
    fake.type_in(b"one two three");
    assert_eq!(guest.rings[usize::from(RX)].used(), [(0, 13)]);
    assert_eq!(guest.driver.get(INPUT, 13), b"one two three");
}

#[test]
fn input_waits_until_the_guest_opens_its_port() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![serial("a", fake.clone())]);
    guest.post(4, 0);
    fake.type_in(b"early");
    assert_eq!(guest.take_input(4), b"");
    guest.say(1, PORT_OPEN, 1);
    assert_eq!(guest.take_input(4), b"early");
}

#[test]
fn input_waits_while_the_port_is_closed_again() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![serial("a", fake.clone())]);
    guest.say(1, PORT_OPEN, 1);
    guest.say(1, PORT_OPEN, 0);
    guest.post(4, 0);
    fake.type_in(b"x");
    assert_eq!(fake.waiting_input(), 1);
}

#[test]
fn input_waits_for_buffers_and_comes_with_the_doorbell() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    guest.say(0, PORT_OPEN, 1);
    fake.type_in(&pattern(5000));
    assert_eq!(fake.waiting_input(), 5000);
    guest.post(RX, 0);
    assert_eq!(fake.waiting_input(), 5000 - 4096);
    guest.post(RX, 1);
    assert_eq!(guest.take_input(RX), pattern(5000));
}

#[test]
fn input_without_buffers_stays_at_its_source() {
    let (guest, ours) = socket_guest();
    ours.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut taken = 0;
    while let Ok(count) = (&ours).write(&[b'x'; 4096]) {
        taken += count;
        assert!(taken < 8 * MIB, "input is buffered without bound");
    }
    drop(guest);
}

#[test]
fn what_the_consumer_does_not_take_stays_in_the_ring() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    fake.set_room(4);
    guest.print(TX, b"abcdefgh");
    assert_eq!(guest.rings[usize::from(TX)].used(), []);
    assert_eq!(fake.output(), b"abcd");
    fake.set_room(2);
    assert_eq!(guest.rings[usize::from(TX)].used(), []);
    fake.set_room(100);
    assert_eq!(guest.rings[usize::from(TX)].used().len(), 1);
    assert_eq!(fake.output(), b"abcdefgh");
}

#[test]
fn a_full_console_does_not_hold_up_a_port() {
    let (full, other) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    let mut guest = Guest::ready(vec![console(full.clone()), serial("a", other.clone())]);
    full.set_room(0);
    guest.print(TX, b"stuck");
    guest.print(5, b"goes");
    assert_eq!(other.output(), b"goes");
}

#[test]
fn a_reset_forgets_a_chain_of_which_a_part_has_left() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    fake.set_room(3);
    guest.print(TX, b"old chain");
    guest.restart();
    fake.set_room(100);
    guest.print(TX, b"new");
    assert_eq!(fake.output(), b"oldnew");
}

#[test]
fn nothing_is_completed_after_a_reset() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![console(fake.clone())]);
    guest.say(0, PORT_OPEN, 1);
    guest.post(RX, 0);
    fake.set_room(0);
    guest.print(TX, b"x");
    guest.driver.set_status(0);
    fake.set_room(100);
    fake.type_in(b"y");
    assert_eq!((guest.rings[0].used_idx(), guest.rings[1].used_idx()), (0, 0));
    assert_eq!(fake.output(), b"");
}

#[test]
fn a_reset_keeps_the_connection_and_input_that_waits() {
    let (mut guest, mut ours) = socket_guest();
    ours.write_all(b"typed during the reset").unwrap();
    let backend_has_it = |guest: &Guest| guest.console.ports[0].backend().has_input();
    wait_until(|| backend_has_it(&guest));
    guest.restart();
    guest.bring_up_ports();
    guest.say(0, PORT_OPEN, 1);
    guest.post(RX, 0);
    assert_eq!(guest.take_input(RX), b"typed during the reset");
    guest.print(TX, b"back");
    let mut output = [0; 4];
    ours.read_exact(&mut output).unwrap();
    assert_eq!(&output, b"back");
}

#[test]
fn one_line_of_5_mib_reaches_a_slow_reader_intact() {
    let (mut guest, mut ours) = socket_guest();
    let mut line = pattern(5 * MIB);
    line.push(b'\n');
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        let mut chunk = vec![0; 50_000];
        while received.last() != Some(&b'\n') || received.len() <= 5 * MIB {
            let count = ours.read(&mut chunk).unwrap();
            received.extend_from_slice(&chunk[..count]);
            thread::sleep(Duration::from_micros(200));
        }
        received
    });
    for chunk in line.chunks(30_000) {
        guest.print(TX, chunk);
        // As Linux's hvc does: it waits for the device with every chunk.
        guest.rings[usize::from(TX)].wait_used(1);
    }
    assert!(reader.join().unwrap() == line, "the line arrived damaged");
}

#[test]
fn one_line_of_5_mib_reaches_a_slow_guest_intact() {
    let (mut guest, mut ours) = socket_guest();
    let writer = thread::spawn(move || {
        ours.write_all(&pattern(5 * MIB)).unwrap();
        ours
    });
    let mut received = Vec::new();
    (0..SIZE).for_each(|number| guest.post(RX, number));
    while received.len() < 5 * MIB {
        // The buffer's number is its descriptor's.
        let used = guest.rings[usize::from(RX)].wait_used(1);
        for (head, len) in used {
            let addr = INPUT + u64::from(head) * u64::from(INPUT_BUFFER);
            received.extend(guest.driver.get(addr, len as usize));
            guest.post(RX, head as u16);
        }
        thread::sleep(Duration::from_micros(50));
    }
    assert!(received == pattern(5 * MIB), "the line arrived damaged");
    writer.join().unwrap();
}

#[test]
fn a_stuck_reader_stops_the_guest_with_its_chain_in_the_ring_and_loses_nothing() {
    let (mut guest, mut ours) = socket_guest();
    let chunk = pattern(32 * 1024);
    let mut printed = 0;
    while guest.rings[usize::from(TX)].used_idx() == printed {
        assert!(usize::from(printed) < 8 * MIB / chunk.len(), "output is buffered without bound");
        guest.print(TX, &chunk);
        printed += 1;
        // What goes through the character device's thread takes a moment.
        thread::sleep(Duration::from_millis(5));
    }
    let mut received = vec![0; usize::from(printed) * chunk.len()];
    ours.read_exact(&mut received).unwrap();
    assert!(received.chunks(chunk.len()).all(|received| received == chunk));
    wait_until(|| guest.rings[usize::from(TX)].used_idx() == printed);
}

#[test]
fn a_peer_that_goes_away_frees_a_guest_that_waits_for_it() {
    let (mut guest, ours) = socket_guest();
    let chunk = pattern(32 * 1024);
    for _ in 0..7 {
        guest.print(TX, &chunk);
    }
    drop(ours);
    wait_until(|| guest.rings[usize::from(TX)].used_idx() == 7);
    wait_until(|| guest.hear().is_some_and(|message| message == heard(0, PORT_OPEN, 0)));
    guest.print(TX, b"into the void");
    guest.rings[usize::from(TX)].wait_used(8);
}

#[test]
fn the_end_of_the_machine_waits_for_output_in_the_ring() {
    let (mut guest, mut ours) = socket_guest();
    let chunk = pattern(32 * 1024);
    for _ in 0..SIZE {
        guest.print(TX, &chunk);
    }
    let reader = thread::spawn(move || {
        let mut received = vec![0; usize::from(SIZE) * 32 * 1024];
        ours.read_exact(&mut received).unwrap();
        ours
    });
    assert!(guest.console.flush(Some(Duration::from_secs(60))));
    assert_eq!(guest.rings[usize::from(TX)].used_idx(), SIZE);
    reader.join().unwrap();
}

#[test]
fn without_control_queues_the_first_port_is_open_at_once() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::with_features(vec![console(fake.clone()), serial("a", Arc::<Fake>::default())], 0);
    guest.post(RX, 0);
    fake.type_in(b"in");
    assert_eq!(guest.take_input(RX), b"in");
    guest.print(TX, b"out");
    assert_eq!(fake.output(), b"out");
    guest.print(5, b"no such port");
    assert_eq!(guest.rings[5].used(), []);
}

#[test]
fn what_lies_in_the_ring_before_driver_ok_is_printed() {
    let fake = Arc::new(Fake::default());
    let console = Console::new("console", vec![console(fake.clone())]).unwrap();
    let driver = Driver::new(console);
    driver.negotiate(1 << 32);
    let mut ring = Ring::new(&driver.memory, TX, SIZE);
    driver.set_queue(&ring);
    driver.put(OUTPUT, b"early");
    ring.add(&[Desc::readable(OUTPUT, 5)]);
    driver.set_status(crate::virtio::testing::status::RUNNING);
    assert_eq!(fake.output(), b"early");
}

#[test]
fn an_emergency_write_needs_no_driver() {
    let fake = Arc::new(Fake::default());
    let console = Console::new("console", vec![console(fake.clone())]).unwrap();
    console.write_config(8, &u32::from(b'!').to_le_bytes());
    console.write_config(0, b"?");
    assert_eq!(fake.output(), b"!");
}
