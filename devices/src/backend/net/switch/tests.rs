//! Ports of one switch, driven as cards drive them.

use super::super::testing::{Ring, collect, drive, frame, send, transmit, unicast};
use super::*;

fn ports<const N: usize>() -> [SwitchPort; N] {
    let switch = Switch::new("test");
    std::array::from_fn(|_| switch.port().unwrap())
}

/// What waits for a port now.
fn waiting(port: &mut SwitchPort) -> Vec<Vec<u8>> {
    let mut ring = Ring::new(usize::MAX);
    port.receive(&mut ring).unwrap();
    ring.frames()
}

/// Sends `bytes` until they are refused, at the time `now`; says how often they were not.
fn fill(port: &mut SwitchPort, bytes: &[u8], now: Instant) -> usize {
    (0..QUEUE_FRAMES * 2)
        .take_while(|_| send(|tx| port.transmit_at(tx, now), bytes) == Transmit::Done)
        .count()
}

#[test]
fn a_frame_to_an_unknown_station_goes_to_every_other_port() {
    let [mut a, mut b, mut c] = ports();
    transmit(&mut a, &unicast(1, 2, 100));
    assert_eq!(waiting(&mut b), [unicast(1, 2, 100)]);
    assert_eq!(waiting(&mut c), [unicast(1, 2, 100)]);
    assert_eq!(waiting(&mut a).len(), 0);
}

#[test]
fn a_frame_to_a_known_station_goes_to_its_port_alone() {
    let [mut a, mut b, mut c] = ports();
    transmit(&mut b, &frame(2, 60));
    transmit(&mut a, &unicast(1, 2, 100));
    assert_eq!(waiting(&mut b), [unicast(1, 2, 100)]);
    assert_eq!(waiting(&mut c), [frame(2, 60)]);
}

#[test]
fn a_frame_to_a_station_at_the_senders_own_port_goes_nowhere() {
    let [mut a, mut b] = ports();
    transmit(&mut a, &frame(1, 60));
    transmit(&mut a, &unicast(3, 1, 100));
    assert_eq!(waiting(&mut b), [frame(1, 60)]);
}

#[test]
fn a_card_that_sleeps_is_woken_by_a_frame() {
    let [mut a, mut b] = ports();
    let sender = std::thread::spawn(move || transmit(&mut a, &frame(1, 60)));
    assert_eq!(collect(&mut b, 1), [frame(1, 60)]);
    sender.join().unwrap();
}

#[test]
fn service_without_news_does_not_block() {
    let [mut a, mut b] = ports();
    for _ in 0..3 {
        a.service(Instant::now()).unwrap();
        transmit(&mut a, &frame(1, 60));
        b.service(Instant::now()).unwrap();
        b.service(Instant::now()).unwrap();
    }
}

#[test]
fn a_full_port_makes_the_sender_wait() {
    let [mut a, mut b] = ports();
    transmit(&mut b, &frame(2, 60));
    let now = Instant::now();
    assert_eq!(fill(&mut a, &unicast(1, 2, 100), now), QUEUE_FRAMES);
    assert!(a.deadline().is_some());
    assert_eq!(b.dropped(), 0);
}

#[test]
fn a_sender_that_waits_is_woken_when_there_is_room() {
    let [mut a, mut b] = ports();
    transmit(&mut b, &frame(2, 60));
    let mut ring_a = Ring::new(usize::MAX);
    a.service(Instant::now()).unwrap();
    a.receive(&mut ring_a).unwrap();
    fill(&mut a, &unicast(1, 2, 100), Instant::now());
    a.service(Instant::now()).unwrap();
    let woken = |port: &SwitchPort| lock(&port.switch.inner).ports[&port.number].signalled;
    assert!(!woken(&a));
    assert_eq!(waiting(&mut b).len(), QUEUE_FRAMES);
    assert!(woken(&a));
    assert_eq!(send(|tx| a.transmit(tx), &unicast(1, 2, 100)), Transmit::Done);
}

#[test]
fn a_port_that_takes_nothing_makes_nobody_wait_and_loses_the_oldest() {
    let [mut a, mut b] = ports();
    transmit(&mut b, &frame(2, 60));
    let now = Instant::now();
    fill(&mut a, &unicast(1, 2, 100), now);
    let later = now + PATIENCE;
    assert_eq!(send(|tx| a.transmit_at(tx, later), &unicast(9, 2, 100)), Transmit::Done);
    assert_eq!(b.dropped(), 1);
    let got = waiting(&mut b);
    assert_eq!((got.len(), got.last()), (QUEUE_FRAMES, Some(&unicast(9, 2, 100))));
}

#[test]
fn frames_to_everybody_never_wait() {
    let [mut a, mut b] = ports();
    assert_eq!(fill(&mut a, &frame(1, 100), Instant::now()), QUEUE_FRAMES * 2);
    assert_eq!(b.dropped(), QUEUE_FRAMES as u64);
    assert_eq!(waiting(&mut b).len(), QUEUE_FRAMES);
}

#[test]
fn large_frames_are_bounded_by_their_bytes() {
    let [mut a, b] = ports();
    fill(&mut a, &frame(1, 60_000), Instant::now());
    let inner = lock(&b.switch.inner);
    assert!(inner.ports[&b.number].bytes <= QUEUE_BYTES);
}

#[test]
fn frames_that_no_wire_carries_are_dropped() {
    let [mut a, mut b] = ports();
    for len in [14, MAX_FRAME] {
        transmit(&mut a, &frame(1, len));
    }
    send(|tx| a.transmit(tx), &[1; 13]);
    send(|tx| a.transmit(tx), &frame(1, MAX_FRAME + 1));
    assert_eq!(waiting(&mut b), [frame(1, 14), frame(1, MAX_FRAME)]);
}

#[test]
fn a_guest_without_room_gets_the_rest_later_and_in_order() {
    let [mut a, mut b] = ports();
    for n in 0..200 {
        transmit(&mut a, &frame(n, 60));
    }
    let mut small = Ring::new(70);
    b.receive(&mut small).unwrap();
    let mut got = small.frames();
    got.extend(waiting(&mut b));
    assert!(got == (0..200).map(|n| frame(n, 60)).collect::<Vec<_>>());
}

#[test]
fn a_port_that_goes_frees_who_waited_for_it_and_is_forgotten() {
    let [mut a, mut b, mut c] = ports();
    transmit(&mut b, &frame(2, 60));
    fill(&mut a, &unicast(1, 2, 100), Instant::now());
    drop(b);
    waiting(&mut c);
    transmit(&mut a, &unicast(1, 2, 100));
    assert_eq!(waiting(&mut c), [unicast(1, 2, 100)]);
}

#[test]
fn two_that_flood_each_other_both_get_everything() {
    let [mut a, mut b] = ports();
    transmit(&mut a, &frame(1, 60));
    transmit(&mut b, &frame(2, 60));
    assert_eq!((waiting(&mut a).len(), waiting(&mut b).len()), (1, 1));
    // The queues are exactly full, and both senders wait.
    let now = Instant::now();
    let (to_b, to_a) = (fill(&mut a, &unicast(1, 2, 100), now), fill(&mut b, &unicast(2, 1, 100), now));
    let (mut ring_a, mut ring_b) = (Ring::new(usize::MAX), Ring::new(usize::MAX));
    drive(&mut [(&mut a, &mut ring_a), (&mut b, &mut ring_b)], |rings| {
        rings[0].frames().len() == to_a && rings[1].frames().len() == to_b
    })
    .unwrap();
}

#[test]
fn a_name_stands_for_one_switch_while_it_has_a_port() {
    let config: SwitchConfig = "tests-lan".parse().unwrap();
    let (mut a, mut b) = (config.open().unwrap(), config.open().unwrap());
    transmit(&mut a, &frame(1, 60));
    assert_eq!(waiting(&mut b), [frame(1, 60)]);
    let old = Arc::downgrade(a.switch());
    drop((a, b));
    assert!(old.upgrade().is_none(), "it goes with its last port");
    assert!(config.open().is_ok());
}

#[test]
fn switches_of_different_names_are_different() {
    let mut a = SwitchConfig { name: "tests-one".into() }.open().unwrap();
    let mut b = SwitchConfig { name: "tests-two".into() }.open().unwrap();
    transmit(&mut a, &frame(1, 60));
    assert_eq!(waiting(&mut b).len(), 0);
}

#[test]
fn a_switch_has_no_more_ports_than_it_says() {
    let switch = Switch::new("full");
    let event = Arc::new(Event::new().unwrap());
    let mut inner = lock(&switch.inner);
    for number in 0..MAX_PORTS as u64 {
        inner.ports.insert(number, Port::new(event.clone()));
    }
    drop(inner);
    assert!(matches!(switch.port(), Err(SwitchError::Full(_))));
}

#[test]
fn a_configuration_is_read_back_as_it_is_written() {
    assert_eq!("a,,b".parse::<SwitchConfig>().unwrap().to_string(), "a,,b");
    assert!("".parse::<SwitchConfig>().unwrap_err().to_string().contains("name"));
}
