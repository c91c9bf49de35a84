//! The card behind virtio-mmio, driven by hand, in front of a backend in memory.

mod hostile;
mod offloads;

use std::collections::VecDeque;
use std::time::Instant;

use super::header::HEADER;
use super::*;
use crate::backend::net::{FrameInfo, Interest, NetBackend, Offloads, RxRing, Transmit, TxFrame};
use crate::virtio::device::F_RING_EVENT_IDX;
use crate::virtio::testing::{BUFFERS, Desc, Driver, Ring, reg, wait_until};

/// The cause of an interrupt (virtio 1.2, 4.2.2): the configuration has changed.
const CONFIG_CHANGED: u32 = 2;

/// What the test knows of the backend, whose other half the card's thread owns.
#[derive(Debug)]
struct Wire {
    event: Event,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    offloads: Offloads,
    guest: Offloads,
    /// Frames for the guest.
    inbound: VecDeque<(Vec<u8>, FrameInfo)>,
    /// Frames of the guest.
    outbound: Vec<(Vec<u8>, FrameInfo)>,
    /// How many more frames it takes before it is busy; `None` is all of them.
    room: Option<usize>,
    /// Room that it asks the guest for, if not just a frame's length.
    max: Option<usize>,
    /// Its other end is gone.
    dead: bool,
    down: bool,
    services: usize,
    /// It leaves its descriptor readable.
    noisy: bool,
    refusals: usize,
}

impl Wire {
    fn new() -> Arc<Wire> {
        Arc::new(Wire { event: Event::new().unwrap(), inner: Mutex::default() })
    }

    /// Changes it and wakes the card.
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut lock(&self.inner));
        self.event.signal();
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut lock(&self.inner))
    }

    /// A frame for the guest.
    fn send(&self, frame: &[u8]) {
        self.change(|inner| inner.inbound.push_back((frame.to_vec(), FrameInfo::default())));
    }

    /// Waits until the guest has sent `count` frames in all, and gives them.
    fn sent(&self, count: usize) -> Vec<(Vec<u8>, FrameInfo)> {
        wait_until(|| self.with(|inner| inner.outbound.len() >= count));
        self.with(|inner| std::mem::take(&mut inner.outbound))
    }
}

/// The card's half.
#[derive(Debug)]
struct Fake(Arc<Wire>);

impl NetBackend for Fake {
    fn offloads(&self) -> Offloads {
        self.0.with(|inner| inner.offloads)
    }

    fn set_guest_offloads(&mut self, guest: Offloads) {
        self.0.with(|inner| inner.guest = guest);
    }

    fn descriptors(&self, _write: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        vec![(self.0.event.as_fd(), Interest::Read)]
    }

    fn service(&mut self, _now: Instant) -> io::Result<()> {
        if !self.0.with(|inner| inner.noisy) {
            let _ = self.0.event.wait();
        }
        self.0.with(|inner| {
            inner.services += 1;
            if inner.dead { Err(io::Error::other("the switch was switched off")) } else { Ok(()) }
        })
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        self.0.with(|inner| {
            if inner.room == Some(0) {
                inner.refusals += 1;
                return Transmit::Busy;
            }
            inner.room = inner.room.map(|room| room - 1);
            let mut bytes = vec![0; frame.len];
            assert_eq!(header::copy_out(frame.slices, &mut bytes), frame.len);
            assert_eq!(frame.slices.iter().map(|slice| slice.len()).sum::<usize>(), frame.len);
            inner.outbound.push((bytes, frame.info));
            Transmit::Done
        })
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        loop {
            let Some((frame, info)) = self.0.with(|inner| inner.inbound.pop_front()) else { return Ok(()) };
            let max = self.0.with(|inner| inner.max).unwrap_or(frame.len());
            let taken = ring.put(max, &mut |slices| {
                assert!(slices.iter().map(|slice| slice.len()).sum::<usize>() >= max);
                assert_eq!(header::copy_in(slices, &frame), frame.len());
                Some((frame.len(), info))
            });
            if !taken {
                self.0.with(|inner| inner.inbound.push_front((frame, info)));
                return Ok(());
            }
        }
    }

    fn link(&self) -> bool {
        self.0.with(|inner| !inner.down)
    }
}

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// Space between two buffers of the test.
const STEP: u64 = 0x1_0000;

fn options() -> NetOptions {
    NetOptions::of_card(0, &CommonOptions::default())
}

/// A card and its driver.
struct Setup {
    wire: Arc<Wire>,
    net: Arc<Net>,
    driver: Driver,
    rx: Ring,
    tx: Ring,
    control: Ring,
    /// Where the next buffer is.
    next: u64,
}

impl Setup {
    fn new(features: u64) -> Setup {
        Setup::with(features, options(), Inner::default())
    }

    fn with(features: u64, options: NetOptions, inner: Inner) -> Setup {
        let wire = Wire::new();
        *lock(&wire.inner) = inner;
        let net = Arc::new(Net::new(options, Box::new(Fake(wire.clone()))).unwrap());
        let (driver, rings) = Driver::start(net.clone(), features, &QUEUE_SIZES);
        let [rx, tx, control] = rings.try_into().unwrap();
        Setup { wire, net, driver, rx, tx, control, next: BUFFERS }
    }

    fn buffer(&mut self) -> u64 {
        self.next += STEP;
        self.next - STEP
    }

    /// Sends `frame` behind `header`, without looking what becomes of it.
    fn transmit(&mut self, header: &[u8], frame: &[u8]) {
        let addr = self.buffer();
        self.driver.put(addr, header);
        self.driver.put(addr + 0x100, frame);
        let descs =
            [Desc::readable(addr, header.len() as u32), Desc::readable(addr + 0x100, frame.len() as u32)];
        self.tx.add(&descs);
        self.driver.kick(TX as u16);
    }

    /// Adds a receive buffer of `len` bytes.
    fn post(&mut self, len: u32) -> u64 {
        let addr = self.buffer();
        self.rx.add(&[Desc::writable(addr, len)]);
        self.driver.kick(RX as u16);
        addr
    }

    /// Sends a command; gives the answer.
    fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let addr = self.buffer();
        self.driver.put(addr, &[class, command]);
        self.driver.put(addr + 0x100, data);
        self.driver.put(addr + 0x8000, &[0xee]);
        self.control.add(&[
            Desc::readable(addr, 2),
            Desc::readable(addr + 0x100, data.len() as u32),
            Desc::writable(addr + 0x8000, 1),
        ]);
        self.driver.kick(CONTROL as u16);
        assert_eq!(self.control.wait_used(1).len(), 1);
        self.driver.get(addr + 0x8000, 1)[0]
    }

    /// The card has nothing to do any more: a frame has gone all the way around.
    fn settle(&mut self) {
        let count = self.wire.with(|inner| inner.outbound.len());
        self.transmit(&PLAIN, &frame(60));
        wait_until(|| self.wire.with(|inner| inner.outbound.len() > count));
        self.tx.wait_used(1);
    }
}

/// A header that asks for nothing.
const PLAIN: [u8; HEADER] = [0; HEADER];

/// A frame to the card, whose bytes differ.
fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|index| (index * 3 + index / 256) as u8).collect();
    let destination = MAC.0;
    frame[..6].copy_from_slice(&destination);
    frame
}

fn to(mac: Mac) -> Vec<u8> {
    let mut bytes = frame(60);
    bytes[..6].copy_from_slice(&mac.0);
    bytes
}

#[test]
fn a_frame_of_the_guest_reaches_the_backend_as_it_is() {
    let mut setup = Setup::new(0);
    setup.transmit(&PLAIN, &frame(1514));
    assert_eq!(setup.wire.sent(1), [(frame(1514), FrameInfo::default())]);
    assert_eq!(setup.tx.wait_used(1), [(0, 0)]);
    let counters = setup.net.counters();
    assert_eq!((counters.tx_frames, counters.tx_bytes), (1, 1514));
}

#[test]
fn header_and_frame_may_share_a_buffer_or_lie_in_many() {
    let mut setup = Setup::new(0);
    let addr = setup.buffer();
    setup.driver.put(addr, &[&PLAIN[..], &frame(100)].concat());
    setup.tx.add(&[Desc::readable(addr, 112)]);
    let pieces: Vec<_> = (0..16).map(|index| Desc::readable(addr + index * 7, 7)).collect();
    setup.tx.add(&pieces);
    setup.driver.kick(TX as u16);
    let sent = setup.wire.sent(2);
    assert_eq!(sent[0].0, frame(100));
    assert_eq!(sent[1].0, frame(100));
}

#[test]
fn a_frame_for_the_guest_comes_behind_a_header_for_one_buffer() {
    let mut setup = Setup::new(0);
    let addr = setup.post(2048);
    setup.wire.send(&frame(60));
    assert_eq!(setup.rx.wait_used(1), [(0, 72)]);
    assert_eq!(setup.driver.get(addr, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(setup.driver.get(addr + 12, 60), frame(60));
    assert_eq!(setup.net.counters().rx_bytes, 60);
}

#[test]
fn a_large_frame_takes_as_many_buffers_as_it_needs_and_no_more() {
    let mut setup = Setup::new(F_MRG_RXBUF);
    setup.wire.change(|inner| inner.max = Some(1514));
    let buffers: Vec<_> = (0..4).map(|_| setup.post(1024)).collect();
    setup.wire.send(&frame(1500));
    assert_eq!(setup.rx.wait_used(2), [(0, 1024), (1, 488)]);
    assert_eq!(setup.driver.get(buffers[0] + 10, 2), [2, 0]);
    let got = [setup.driver.get(buffers[0] + 12, 1012), setup.driver.get(buffers[1], 488)].concat();
    assert_eq!(got, frame(1500));
    // The other two serve the next one.
    setup.wire.send(&frame(1400));
    assert_eq!(setup.rx.wait_used(2), [(2, 1024), (3, 388)]);
}

#[test]
fn frames_wait_for_the_guests_room_and_keep_their_order() {
    let mut setup = Setup::new(F_MRG_RXBUF | F_RING_EVENT_IDX);
    for len in 60..70 {
        setup.wire.send(&frame(len));
    }
    setup.settle();
    for len in 60..70 {
        let addr = setup.post(2048);
        let used = setup.rx.wait_used(1);
        assert_eq!(used[0].1, len + 12);
        assert_eq!(setup.driver.get(addr + 12, len as usize), frame(len as usize));
    }
    assert_eq!(setup.net.counters().rx_dropped, 0);
}

#[test]
fn a_frame_that_turns_out_larger_than_the_room_waits_for_more() {
    let mut setup = Setup::new(F_MRG_RXBUF | F_RING_EVENT_IDX);
    setup.wire.change(|inner| inner.max = Some(65536));
    setup.post(2048);
    setup.wire.send(&frame(4000));
    setup.wire.send(&frame(60));
    setup.settle();
    assert_eq!(setup.rx.used(), []);
    setup.post(2048);
    setup.post(2048);
    assert_eq!(setup.rx.wait_used(3), [(0, 2048), (1, 1964), (2, 72)]);
    assert_eq!(setup.driver.get(BUFFERS + 12, 2036), frame(4000)[..2036]);
    assert_eq!(setup.net.counters().rx_dropped, 0);
}

#[test]
fn a_frame_that_no_buffer_can_hold_is_lost_and_counted() {
    let mut setup = Setup::new(0);
    setup.post(1526);
    setup.wire.send(&frame(4000));
    setup.wire.send(&frame(60));
    assert_eq!(setup.rx.wait_used(1), [(0, 72)]);
    assert_eq!(setup.net.counters().rx_dropped, 1);
}

#[test]
fn a_backend_without_room_leaves_frames_in_the_queue() {
    let mut setup = Setup::with(0, options(), Inner { room: Some(1), ..Inner::default() });
    for len in 60..63 {
        setup.transmit(&PLAIN, &frame(len));
    }
    wait_until(|| setup.wire.with(|inner| inner.refusals > 0));
    assert_eq!(setup.tx.wait_used(1).len(), 1);
    assert_eq!(setup.tx.used(), []);
    setup.wire.change(|inner| inner.room = None);
    assert_eq!(setup.tx.wait_used(2).len(), 2);
    let lengths: Vec<_> = setup.wire.sent(3).iter().map(|(frame, _)| frame.len()).collect();
    assert_eq!(lengths, [60, 61, 62]);
}

#[test]
fn a_ring_may_go_round_many_times() {
    let mut setup = Setup::new(F_MRG_RXBUF);
    let addr = setup.buffer();
    setup.driver.put(addr, &[&PLAIN[..], &frame(60)].concat());
    for _ in 0..2000 {
        setup.tx.add(&[Desc::readable(addr, 72)]);
        setup.driver.kick(TX as u16);
        setup.tx.wait_used(1);
    }
    assert_eq!(setup.wire.sent(2000).len(), 2000);
}

#[test]
fn the_configuration_has_address_link_and_mtu() {
    let options = NetOptions { mtu: Some(9000), ..options() };
    let setup = Setup::with(F_MTU | F_STATUS | F_MAC, options, Inner::default());
    let config: [u8; 14] = setup.driver.config(0);
    assert_eq!(config, [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0x28, 0x23, 0, 0]);
}

#[test]
fn a_card_without_an_mtu_announces_none() {
    let setup = Setup::new(0);
    assert_eq!(setup.driver.device_features() & F_MTU, 0);
}

#[test]
fn a_pulled_cable_is_told_and_stops_frames_both_ways() {
    let mut setup = Setup::new(F_STATUS);
    setup.post(2048);
    setup.settle();
    setup.driver.acknowledge();
    setup.wire.sent(1);
    setup.net.set_link(false);
    wait_until(|| setup.driver.read(reg::INTERRUPT_STATUS) & CONFIG_CHANGED != 0);
    assert_eq!(setup.driver.config(6), [0, 0]);
    setup.transmit(&PLAIN, &frame(60));
    setup.tx.wait_used(1);
    setup.wire.send(&frame(60));
    wait_until(|| setup.net.counters().rx_dropped == 1);
    assert_eq!(setup.net.counters().tx_dropped, 1);
    setup.driver.acknowledge();
    setup.net.set_link(true);
    wait_until(|| setup.driver.read(reg::INTERRUPT_STATUS) & CONFIG_CHANGED != 0);
    assert_eq!(setup.driver.config(6), [1, 0]);
    setup.wire.send(&frame(61));
    assert_eq!(setup.rx.wait_used(1), [(0, 73)]);
    assert!(setup.wire.with(|inner| inner.outbound.is_empty()));
}

#[test]
fn a_backend_that_fails_takes_the_link_down_and_the_guest_lives() {
    let mut setup = Setup::new(F_STATUS);
    setup.post(2048);
    setup.settle();
    setup.wire.change(|inner| inner.dead = true);
    wait_until(|| setup.driver.read(reg::INTERRUPT_STATUS) & CONFIG_CHANGED != 0);
    assert!(!setup.net.link());
    setup.transmit(&PLAIN, &frame(60));
    setup.tx.wait_used(1);
    assert!(!setup.driver.needs_reset());
    assert_eq!(setup.net.counters().tx_dropped, 1);
}

#[test]
fn a_backend_without_a_peer_is_a_link_that_is_down() {
    let setup = Setup::with(F_STATUS, options(), Inner { down: true, ..Inner::default() });
    assert_eq!(setup.driver.config(6), [0, 0]);
    setup.wire.with(|inner| inner.down = false);
    setup.driver.kick(RX as u16);
    wait_until(|| setup.driver.config(6) == [1, 0]);
    wait_until(|| setup.driver.read(reg::INTERRUPT_STATUS) & CONFIG_CHANGED != 0);
}

#[test]
fn a_backend_that_is_always_ready_is_looked_at_less_often_and_frames_pass() {
    let mut setup = Setup::with(0, options(), Inner { noisy: true, ..Inner::default() });
    setup.wire.event.signal();
    wait_until(|| setup.wire.with(|inner| inner.services > 30));
    for _ in 0..20 {
        setup.transmit(&PLAIN, &frame(60));
        setup.tx.wait_used(1);
    }
    assert_eq!(setup.wire.sent(20).len(), 20);
}

#[test]
fn after_a_reset_the_same_backend_serves_the_next_driver() {
    let mut setup = Setup::new(F_MRG_RXBUF);
    setup.settle();
    setup.driver.set_status(0);
    setup.wire.send(&frame(60));
    let rings = setup.driver.bring_up(F_CTRL_VQ, &QUEUE_SIZES);
    [setup.rx, setup.tx, setup.control] = rings.try_into().unwrap();
    setup.post(2048);
    assert_eq!(setup.rx.wait_used(1), [(0, 72)]);
    setup.settle();
}

#[test]
fn after_a_reset_no_buffer_is_written() {
    let mut setup = Setup::new(F_MRG_RXBUF);
    setup.post(2048);
    setup.settle();
    setup.driver.set_status(0);
    setup.wire.send(&frame(60));
    setup.driver.kick(RX as u16);
    setup.driver.bring_up(0, &[0, 256, 0]);
    assert_eq!(setup.rx.used(), []);
    assert_eq!(setup.driver.get(BUFFERS, 72), [0; 72]);
}

#[test]
fn a_card_takes_only_its_own_frames_when_the_driver_says_so() {
    let mut setup = Setup::new(F_CTRL_VQ | F_CTRL_RX | F_MRG_RXBUF);
    let other = Mac([2, 0, 0, 0, 0, 9]);
    setup.post(2048);
    setup.post(2048);
    setup.wire.send(&to(other));
    assert_eq!(setup.rx.wait_used(1), [(0, 72)]);
    assert_eq!(setup.command(0, 0, &[0]), 0);
    setup.wire.send(&to(other));
    setup.wire.send(&to(MAC));
    assert_eq!(setup.rx.wait_used(1), [(1, 72)]);
    assert_eq!(setup.net.counters().rx_filtered, 1);
}

#[test]
fn an_address_the_driver_sets_counts_until_the_reset() {
    let mut setup = Setup::new(F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC_ADDR);
    let other = Mac([2, 0, 0, 0, 0, 9]);
    assert_eq!(setup.command(1, 1, &other.0), 0);
    assert_eq!(setup.driver.config(0), other.0);
    setup.driver.set_status(0);
    assert_eq!(setup.net.mac(), MAC);
}

#[test]
fn a_table_of_groups_is_taken_whole_or_not_at_all() {
    let mut setup = Setup::new(F_CTRL_VQ | F_CTRL_RX);
    let group = [1, 0, 0x5e, 0, 0, 7];
    let table = [&[0, 0, 0, 0, 1, 0, 0, 0][..], &group].concat();
    assert_eq!(setup.command(1, 0, &table), 0);
    assert_eq!(setup.net.state().filter.unwrap().multicast.addresses, [Mac(group)]);
    assert_eq!(setup.command(1, 0, &table[..13]), 1);
    assert_eq!(setup.command(1, 0, &[0xff; 8]), 1);
    assert_eq!(setup.net.state().filter.unwrap().multicast.addresses, [Mac(group)]);
}

#[test]
fn unknown_and_unasked_commands_are_refused() {
    let mut setup = Setup::new(F_CTRL_VQ | F_CTRL_RX);
    for (class, command, data) in
        [(0, 6, &[1][..]), (0, 2, &[1]), (0, 0, &[]), (1, 1, &[2; 6]), (4, 0, &[1, 0]), (5, 0, &[0; 8])]
    {
        assert_eq!(setup.command(class, command, data), 1, "{class} {command}");
    }
}

#[test]
fn traffic_is_recorded_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pcap");
    let options = NetOptions { dump: Some(path.clone()), ..options() };
    let mut setup = Setup::with(0, options, Inner::default());
    setup.transmit(&PLAIN, &frame(60));
    setup.tx.wait_used(1);
    setup.post(2048);
    setup.wire.send(&frame(61));
    setup.rx.wait_used(1);
    drop(setup.driver);
    drop(setup.net);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 24 + 16 + 60 + 16 + 61);
    assert_eq!(bytes[40..100], frame(60));
    assert_eq!(bytes[116..], frame(61));
}

#[test]
fn a_record_that_cannot_be_is_refused_with_its_name() {
    let options = NetOptions { dump: Some("/nowhere/x.pcap".into()), ..options() };
    let error = Net::new(options, Box::new(Fake(Wire::new()))).unwrap_err().to_string();
    assert_eq!(error, "cannot record the traffic of net0 in /nowhere/x.pcap");
}

#[test]
fn a_state_survives_json() {
    let setup = Setup::new(F_CTRL_VQ | F_CTRL_RX | F_GUEST_CSUM);
    let state = setup.net.state();
    assert_eq!(state.queues.len(), 3);
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<NetState>(&json).unwrap(), state);
}
