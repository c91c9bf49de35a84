//! The device with a driver: queues handed over, doorbells, interrupts, the end of a back end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::Receiver;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::peer::Message;
use super::*;
use crate::virtio::testing::{BUFFERS, Desc, Driver, RAM, RAM_SIZE, Ring as Queue, reg, wait_until};

/// Opcode and number of the requests here, in a `struct fuse_in_header`.
const REQUEST: [u8; 40] = {
    let mut bytes = [0; 40];
    bytes[0] = 40;
    bytes[4] = 3;
    bytes[8] = 0x77;
    bytes
};
/// What they are answered when nobody else does: 16 bytes, -ENOTCONN, the same number.
const FAILURE: [u8; 16] = [16, 0, 0, 0, 0x95, 0xff, 0xff, 0xff, 0x77, 0, 0, 0, 0, 0, 0, 0];

/// RAM that a back end can map.
pub(super) fn shared_memory() -> GuestMemory {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(RAM_SIZE).unwrap();
    let range = (GuestAddress(RAM), RAM_SIZE as usize, Some(FileOffset::new(file, 0)));
    GuestMemory::from_ranges_with_files([range]).unwrap()
}

/// A file system whose driver is not up yet, and a back end's diary.
fn device(place: &Place, abilities: Abilities, memory: GuestMemory) -> (Driver, Receiver<Message>) {
    let messages = place.next_good(abilities);
    let device = VhostUser::open_with(&fs(place), LONG).unwrap();
    (Driver::with_memory(Arc::new(device), memory), messages)
}

/// Messages up to the last one that makes a device with `queues` queues run.
fn until_running(messages: &Receiver<Message>, queues: usize) -> Vec<Message> {
    let mut seen = Vec::new();
    while seen.iter().filter(|message: &&Message| message.is(Request::SetVringEnable)).count() < queues {
        seen.push(messages.recv_timeout(LONG).unwrap());
    }
    seen
}

fn find(messages: &[Message], request: Request, nth: usize) -> &Message {
    messages.iter().filter(|message| message.is(request)).nth(nth).unwrap()
}

/// Puts a request into `queue` with room for an answer behind it.
fn request(driver: &Driver, queue: &mut Queue) {
    driver.put(BUFFERS, &REQUEST);
    driver.put(BUFFERS + 0x1000, &[0; 64]);
    queue.add(&[Desc::readable(BUFFERS, 40), Desc::writable(BUFFERS + 0x1000, 64)]);
    driver.kick(queue.index);
}

fn has_failed(driver: &Driver, queue: &mut Queue) {
    let head = queue.wait_used(1)[0];
    assert_eq!(head.1, 16);
    assert_eq!(driver.get(BUFFERS + 0x1000, 16), FAILURE);
}

#[test]
fn the_back_end_is_given_features_memory_and_queues() {
    let place = Place::new();
    let memory = shared_memory();
    let (driver, messages) = device(&place, Abilities::default(), memory.clone());
    let queues = driver.bring_up(F_RING_EVENT_IDX, &[64, 128]);
    let seen = until_running(&messages, 2);

    let features = find(&seen, Request::SetFeatures, 0).number();
    assert_eq!(features, F_VERSION | F_RING_EVENT_IDX | 1 << 30);
    let table = find(&seen, Request::SetMemTable, 0);
    assert_eq!((table.half(0), table.word(8), table.word(16), table.word(32)), (1, RAM, RAM_SIZE, 0));
    let user = |addr: u64| table.word(24) + (addr - RAM);
    driver.put(BUFFERS, b"seen by both");
    let mut bytes = [0; 12];
    File::from(table.fds[0].try_clone().unwrap()).read_exact_at(&mut bytes, BUFFERS - RAM).unwrap();
    assert_eq!(&bytes, b"seen by both");

    let addresses = find(&seen, Request::SetVringAddr, 1);
    assert_eq!((addresses.half(0), addresses.half(4)), (1, 0));
    let at = [addresses.word(8), addresses.word(16), addresses.word(24)];
    assert_eq!(at, [queues[1].desc, queues[1].used, queues[1].avail].map(user));
    let number = find(&seen, Request::SetVringNum, 1);
    assert_eq!((number.half(0), number.half(4)), (1, 128));
    let order: Vec<u32> = seen.iter().map(|message| message.header.request).skip(5).collect();
    // Features and memory, each queue's size, base, addresses, call and kick, and only then their beginning.
    assert_eq!(order, [2, 5, 8, 10, 9, 13, 12, 8, 10, 9, 13, 12, 18, 18]);
}

#[test]
fn doorbells_reach_the_back_end_and_its_calls_the_driver() {
    let place = Place::new();
    let (driver, messages) = device(&place, Abilities::default(), shared_memory());
    driver.bring_up(0, &[128, 128]);
    let seen = until_running(&messages, 2);
    let kick = File::from(find(&seen, Request::SetVringKick, 1).fds[0].try_clone().unwrap());
    let call = File::from(find(&seen, Request::SetVringCall, 1).fds[0].try_clone().unwrap());
    let mut count = [0; 8];
    // The first one is for what lies in the ring from the beginning.
    std::io::Read::read_exact(&mut &kick, &mut count).unwrap();
    driver.kick(1);
    std::io::Read::read_exact(&mut &kick, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    assert_eq!(driver.interrupts(), 0);
    std::io::Write::write_all(&mut &call, &1u64.to_ne_bytes()).unwrap();
    wait_until(|| driver.interrupts() == 1);
}

#[test]
fn a_reset_takes_the_queues_back_and_lets_no_call_through() {
    let place = Place::new();
    let messages = place.next_good(Abilities::default());
    let device = Arc::new(VhostUser::open_with(&fs(&place), LONG).unwrap());
    let driver = Driver::with_memory(device.clone(), shared_memory());
    driver.bring_up(0, &[128, 128]);
    let seen = until_running(&messages, 2);
    driver.set_status(0);
    let end: Vec<u32> = (0..4).map(|_| messages.recv_timeout(LONG).unwrap().header.request).collect();
    assert_eq!(end, [18, 18, 11, 11]);
    let call = File::from(find(&seen, Request::SetVringCall, 1).fds[0].try_clone().unwrap());
    std::io::Write::write_all(&mut &call, &1u64.to_ne_bytes()).unwrap();
    // The watcher takes it under the lock, and has done with it when that is free.
    wait_until(|| {
        let mut fds = [PollFd::new(&call, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::event::Timespec::default())) == Ok(0)
    });
    drop(lock(&device.shared.state));
    assert_eq!(driver.interrupts(), 0);
}

#[test]
fn a_queue_that_the_driver_left_out_is_not_handed_over() {
    let place = Place::new();
    let (driver, messages) = device(&place, Abilities::default(), shared_memory());
    driver.bring_up(0, &[0, 128]);
    let seen = until_running(&messages, 1);
    assert_eq!(find(&seen, Request::SetVringEnable, 0).half(0), 1);
    assert_eq!(seen.iter().filter(|message| message.is(Request::SetVringKick)).count(), 1);
}

#[test]
fn requests_fail_when_the_back_end_is_gone() {
    let place = Place::new();
    let (stay, until) = std::sync::mpsc::channel::<()>();
    let peer = place.next(Abilities::default(), move |mut peer| {
        let (_, message) = peer.serve_until(Request::SetVringEnable);
        peer.answer(&message);
        let message = peer.receive().unwrap();
        peer.answer(&message);
        until.recv()
    });
    let device = VhostUser::open_with(&fs(&place), LONG).unwrap();
    let driver = Driver::with_memory(Arc::new(device), shared_memory());
    let mut queues = driver.bring_up(0, &[128, 128]);
    // One that it has taken, or not: the driver hears of it either way.
    request(&driver, &mut queues[1]);
    drop(stay);
    peer.join().unwrap().unwrap_err();
    has_failed(&driver, &mut queues[1]);
    wait_until(|| driver.needs_reset());
    request(&driver, &mut queues[1]);
    has_failed(&driver, &mut queues[1]);
    // One without room for an answer, such as FORGET, is only given back.
    queues[0].add(&[Desc::readable(BUFFERS, 40)]);
    driver.kick(0);
    assert_eq!(queues[0].wait_used(1)[0].1, 0);
}

#[test]
fn a_queue_is_taken_over_where_the_back_end_left_it() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| {
        let (_, message) = peer.serve_until(Request::SetVringEnable);
        peer.answer(&message);
        let message = peer.receive().unwrap();
        peer.answer(&message);
        // The test says when.
        peer.receive()
    });
    let device = Arc::new(VhostUser::open_with(&fs(&place), LONG).unwrap());
    let driver = Driver::with_memory(device.clone(), shared_memory());
    let mut queues = driver.bring_up(0, &[128, 128]);
    // Three requests, of which the back end has answered two.
    for _ in 0..3 {
        request(&driver, &mut queues[1]);
    }
    driver.memory.write_obj(2u16.to_le(), GuestAddress(queues[1].used + 2)).unwrap();
    let state = lock(&device.shared.state);
    let socket = state.backend.as_ref().unwrap().watch();
    drop(state);
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    let heads: Vec<u32> = queues[1].wait_used(3).iter().map(|(head, _)| *head).collect();
    assert_eq!(heads[2], 4);
    assert!(peer.join().unwrap().is_none());
}

#[test]
fn a_command_that_is_refused_at_the_start_makes_requests_fail() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| {
        let (_, message) = peer.serve_until(Request::SetMemTable);
        peer.reply(&message, &1u64.to_ne_bytes());
        peer.receive()
    });
    let device = VhostUser::open_with(&fs(&place), LONG).unwrap();
    let driver = Driver::with_memory(Arc::new(device), shared_memory());
    driver.negotiate(F_VERSION);
    let mut queue = Queue::new(&driver.memory, 1, 128);
    driver.set_queue(&queue);
    driver.set_status(crate::virtio::testing::status::RUNNING);
    assert!(driver.needs_reset());
    request(&driver, &mut queue);
    has_failed(&driver, &mut queue);
    // It is not talked to any more.
    assert!(peer.join().unwrap().is_none());
}

#[test]
fn memory_that_nobody_else_can_map_makes_requests_fail() {
    let place = Place::new();
    let (driver, _messages) = device(&place, Abilities::default(), crate::virtio::testing::memory());
    driver.negotiate(F_VERSION);
    let mut queue = Queue::new(&driver.memory, 1, 128);
    driver.set_queue(&queue);
    driver.set_status(crate::virtio::testing::status::RUNNING);
    request(&driver, &mut queue);
    has_failed(&driver, &mut queue);
}

#[test]
fn a_back_end_that_lies_about_a_queue_that_it_shall_let_go_is_left() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| {
        let (_, message) = peer.serve_until(Request::GetVringBase);
        peer.reply(&message, &[0; 4096]);
        peer.receive()
    });
    let device = Arc::new(VhostUser::open_with(&fs(&place), LONG).unwrap());
    let driver = Driver::with_memory(device.clone(), shared_memory());
    driver.bring_up(0, &[128, 128]);
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
    assert!(lock(&device.shared.state).backend.is_none());
    assert!(peer.join().unwrap().is_none());
}

#[test]
fn a_new_back_end_serves_from_the_next_reset_on() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| drop(peer.serve_until(Request::SetVringEnable)));
    let device = VhostUser::open_with(&fs(&place), LONG).unwrap();
    let driver = Driver::with_memory(Arc::new(device), shared_memory());
    driver.negotiate(F_VERSION);
    driver.set_queue(&Queue::new(&driver.memory, 1, 128));
    driver.set_status(crate::virtio::testing::status::RUNNING);
    peer.join().unwrap();
    assert!(driver.needs_reset());

    let messages = place.next_good(Abilities::default());
    driver.bring_up(0, &[128, 128]);
    until_running(&messages, 2);
    assert!(!driver.needs_reset());
}

#[test]
fn a_new_back_end_that_can_do_less_is_not_used() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| drop(peer.serve_until(Request::SetFeatures)));
    let device = VhostUser::open_with(&fs(&place), LONG).unwrap();
    let driver = Driver::with_memory(Arc::new(device), shared_memory());
    let start = || {
        driver.set_status(0);
        driver.negotiate(F_VERSION | F_RING_EVENT_IDX);
        driver.set_queue(&Queue::new(&driver.memory, 1, 128));
        driver.set_status(crate::virtio::testing::status::RUNNING);
        driver.needs_reset()
    };
    assert!(start());
    peer.join().unwrap();
    let features = Abilities::default().features & !F_RING_EVENT_IDX;
    let _messages = place.next_good(Abilities { features, ..Abilities::default() });
    assert!(start());
}

#[test]
fn a_driver_of_vsock_hears_that_its_connections_are_gone() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| {
        let (_, message) = peer.serve_until(Request::SetVringEnable);
        peer.answer(&message);
        let message = peer.receive().unwrap();
        peer.answer(&message);
        peer.receive()
    });
    let device = Arc::new(VhostUser::open_with(&vsock(&place), LONG).unwrap());
    let driver = Driver::with_memory(device.clone(), shared_memory());
    let mut queues = driver.bring_up(0, &[16, 16, 4]);
    driver.put(BUFFERS, &[0xff; 4]);
    queues[2].add(&[Desc::writable(BUFFERS, 4)]);
    queues[0].add(&[Desc::writable(BUFFERS + 0x1000, 0x1000)]);
    let socket = lock(&device.shared.state).backend.as_ref().unwrap().watch();
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(queues[2].wait_used(1), [(0, 4)]);
    assert_eq!(driver.get(BUFFERS, 4), [0; 4]);
    // What it sends vanishes, and nothing comes.
    queues[1].add(&[Desc::readable(BUFFERS, 44)]);
    driver.kick(1);
    assert_eq!(queues[1].wait_used(1), [(0, 0)]);
    assert!(queues[0].used().is_empty());
    assert!(peer.join().unwrap().is_none());
}

#[test]
fn what_the_driver_writes_to_the_configuration_changes_nothing() {
    let place = Place::new();
    let (driver, _messages) = device(&place, Abilities::default(), shared_memory());
    driver.write(reg::CONFIG, u32::MAX);
    assert_eq!(&driver.config::<5>(0), b"store");
}

#[test]
fn doorbells_before_activation_and_of_queues_that_are_none_do_nothing() {
    let place = Place::new();
    let (driver, messages) = device(&place, Abilities::default(), shared_memory());
    for queue in [0, 1, 2, 0xffff] {
        driver.kick(queue);
    }
    driver.bring_up(0, &[128, 128]);
    until_running(&messages, 2);
    driver.kick(2);
    assert!(!driver.needs_reset());
}
