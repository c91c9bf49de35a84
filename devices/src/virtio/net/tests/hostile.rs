//! A driver that does what no driver should: the frame, or the device, is lost, and nothing else.

use super::*;
use crate::virtio::testing::WRITE;

const FEATURES: u64 = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6;

/// Sends a frame of `len` bytes behind `header`, and sees that it is refused while the next one passes.
#[track_caller]
fn refused(features: u64, header: &[u8], len: usize) {
    let mut setup = Setup::new(features);
    setup.transmit(header, &vec![0x45; len]);
    setup.transmit(&PLAIN, &frame(60));
    assert_eq!(setup.tx.wait_used(2).len(), 2);
    assert_eq!(setup.wire.sent(1), [(frame(60), FrameInfo::default())]);
    assert_eq!(setup.net.counters().tx_malformed, 1);
    assert!(!setup.driver.needs_reset());
}

/// A header of flags, gso_type, gso_size, csum_start and csum_offset.
fn header(flags: u8, gso: u8, size: u16, start: u16, offset: u16) -> Vec<u8> {
    let fields = [0, size, start, offset, 0].map(u16::to_le_bytes).concat();
    [&[flags, gso][..], &fields].concat()
}

#[test]
fn a_header_that_is_not_whole_is_refused() {
    refused(FEATURES, &[0; 5], 4);
}

#[test]
fn a_frame_without_an_ethernet_header_is_refused() {
    refused(FEATURES, &PLAIN, 13);
}

#[test]
fn a_frame_longer_than_any_is_refused() {
    let mut setup = Setup::new(FEATURES);
    let descs = [Desc::readable(BUFFERS, 12), Desc::readable(BUFFERS, 0x10_0000)];
    setup.tx.add(&descs);
    setup.driver.kick(TX as u16);
    setup.tx.wait_used(1);
    assert_eq!(setup.net.counters().tx_malformed, 1);
}

#[test]
fn a_checksum_outside_of_the_frame_is_refused() {
    for (start, offset) in [(60, 0), (59, 0), (34, 25), (65535, 65535), (34, 65535), (0, 0), (13, 2)] {
        refused(FEATURES, &header(1, 0, 0, start, offset), 60);
    }
}

#[test]
fn a_checksum_that_was_not_negotiated_is_refused() {
    refused(0, &header(1, 0, 0, 34, 16), 60);
}

#[test]
fn segments_that_were_not_negotiated_are_refused() {
    refused(F_CSUM, &header(1, 1, 1460, 34, 16), 200);
    refused(F_CSUM | F_HOST_TSO4, &header(1, 4, 1460, 34, 16), 200);
    // UDP fragmentation, ECN, nonsense.
    for gso in [3, 5, 0x81, 0x80, 2, 0xff] {
        refused(FEATURES, &header(1, gso, 1460, 34, 16), 200);
    }
}

#[test]
fn segments_of_no_size_are_refused() {
    refused(FEATURES, &header(1, 1, 0, 34, 16), 200);
    refused(FEATURES, &header(1, 1, 7, 34, 16), 200);
}

#[test]
fn segments_without_a_checksum_are_refused() {
    refused(FEATURES, &header(0, 1, 1460, 34, 16), 200);
    refused(FEATURES, &header(1, 1, 1460, 34, 6), 200);
}

#[test]
fn segments_whose_headers_are_not_in_the_frame_are_refused() {
    refused(FEATURES, &header(1, 1, 1460, 182, 16), 200);
    refused(FEATURES, &header(1, 1, 1460, 40, 16), 58);
}

#[test]
fn segments_of_something_that_is_not_tcp_are_refused() {
    refused(FEATURES, &header(1, 1, 1460, 34, 16), 200);
    refused(FEATURES, &header(1, 4, 1460, 54, 16), 200);
}

#[test]
fn a_transmit_chain_of_writable_buffers_is_refused_and_nothing_is_written() {
    let mut setup = Setup::new(0);
    setup.tx.add(&[Desc { flags: WRITE, ..Desc::readable(BUFFERS, 100) }]);
    setup.driver.kick(TX as u16);
    assert_eq!(setup.tx.wait_used(1), [(0, 0)]);
    assert_eq!(setup.net.counters().tx_malformed, 1);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_breaks_the_device_until_its_reset() {
    let mut setup = Setup::new(F_MRG_RXBUF);
    setup.post(11);
    setup.wire.send(&frame(60));
    wait_until(|| setup.driver.needs_reset());
    let rings = setup.driver.bring_up(0, &QUEUE_SIZES);
    [setup.rx, setup.tx, setup.control] = rings.try_into().unwrap();
    setup.post(2048);
    assert_eq!(setup.rx.wait_used(1), [(0, 72)]);
}

#[test]
fn a_command_without_room_for_an_answer_gets_none() {
    let mut setup = Setup::new(F_CTRL_VQ | F_CTRL_RX);
    setup.driver.put(BUFFERS, &[0, 0, 0]);
    setup.control.add(&[Desc::readable(BUFFERS, 3)]);
    setup.driver.kick(CONTROL as u16);
    assert_eq!(setup.control.wait_used(1), [(0, 0)]);
}

#[test]
fn a_driver_that_sets_up_no_queue_is_left_alone() {
    let setup = Setup::new(0);
    setup.driver.bring_up(F_CTRL_VQ, &[0, 0, 0]);
    setup.wire.send(&frame(60));
    (0..3).for_each(|queue| setup.driver.kick(queue));
    assert_eq!(setup.net.state().queues, [None, None, None]);
    assert!(!setup.driver.needs_reset());
}
