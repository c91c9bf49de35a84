//! Checksums and segments: done in the card for a backend that does not understand them, passed on to one that does.

use etherparse::PacketBuilder;

use super::*;
use crate::backend::net::{PartialChecksum, Segmentation, SegmentationKind};
use crate::virtio::net::segment::{fold, pseudo_header};

const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true };
const FEATURES: u64 = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6;

/// TCP with `len` bytes of payload, and the same with a checksum of the pseudo-header alone.
fn tcp(len: usize) -> (Vec<u8>, Vec<u8>) {
    let payload: Vec<u8> = (0..len).map(|index| (index * 5) as u8).collect();
    let mut whole = Vec::new();
    PacketBuilder::ethernet2([2; 6], MAC.0)
        .ipv4([10, 0, 2, 15], [10, 0, 2, 2], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut whole, &payload)
        .unwrap();
    let mut partial = whole.clone();
    let pseudo = !fold(pseudo_header(&whole[26..34], 6, whole.len() - 34));
    partial[50..52].copy_from_slice(&pseudo.to_be_bytes());
    (whole, partial)
}

/// A header that asks for a checksum, and for segments if their size is not 0.
fn header(size: u16) -> [u8; HEADER] {
    let mut header = [1, u8::from(size > 0), 54, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    header[4..6].copy_from_slice(&size.to_le_bytes());
    header
}

const CHECKSUM: Option<PartialChecksum> = Some(PartialChecksum { start: 34, offset: 16 });

#[test]
fn a_checksum_is_computed_for_a_backend_that_cannot() {
    let mut setup = Setup::new(FEATURES);
    let (whole, partial) = tcp(500);
    setup.transmit(&header(0), &partial);
    let info = FrameInfo { checksum_valid: true, ..FrameInfo::default() };
    assert_eq!(setup.wire.sent(1), [(whole, info)]);
}

#[test]
fn a_checksum_is_left_to_a_backend_that_can() {
    let mut setup = Setup::with(FEATURES, options(), Inner { offloads: ALL, ..Inner::default() });
    let (_, partial) = tcp(500);
    setup.transmit(&header(0), &partial);
    let info = FrameInfo { checksum: CHECKSUM, ..FrameInfo::default() };
    assert_eq!(setup.wire.sent(1), [(partial, info)]);
}

#[test]
fn a_large_frame_is_cut_for_a_backend_that_cannot() {
    let mut setup = Setup::new(FEATURES);
    let (whole, partial) = tcp(3000);
    setup.transmit(&header(1460), &partial);
    let sent = setup.wire.sent(3);
    assert_eq!(sent.iter().map(|(frame, _)| frame.len()).collect::<Vec<_>>(), [1514, 1514, 134]);
    let payload: Vec<u8> = sent.iter().flat_map(|(frame, _)| frame[54..].to_vec()).collect();
    assert_eq!(payload, whole[54..]);
    assert_eq!(setup.tx.wait_used(1).len(), 1);
    assert_eq!(setup.net.counters().tx_frames, 1);
}

#[test]
fn a_large_frame_is_left_whole_for_a_backend_that_cuts() {
    let mut setup = Setup::with(FEATURES, options(), Inner { offloads: ALL, ..Inner::default() });
    let (_, partial) = tcp(3000);
    setup.transmit(&header(1460), &partial);
    let segmentation = Some(Segmentation { kind: SegmentationKind::Tcp4, size: 1460, headers: 54 });
    let info = FrameInfo { checksum: CHECKSUM, segmentation, checksum_valid: false };
    assert_eq!(setup.wire.sent(1), [(partial, info)]);
}

#[test]
fn a_backend_that_gets_busy_between_segments_gets_the_rest_later() {
    let mut setup = Setup::with(FEATURES, options(), Inner { room: Some(2), ..Inner::default() });
    let (whole, partial) = tcp(14600);
    setup.transmit(&header(1460), &partial);
    setup.transmit(&PLAIN, &frame(60));
    wait_until(|| setup.wire.with(|inner| inner.refusals > 0));
    setup.wire.change(|inner| inner.room = None);
    let sent = setup.wire.sent(11);
    let payload: Vec<u8> = sent[..10].iter().flat_map(|(frame, _)| frame[54..].to_vec()).collect();
    assert_eq!(payload, whole[54..]);
    assert_eq!(sent[10].0, frame(60));
}

#[test]
fn the_backend_is_told_what_the_guest_understands() {
    let setup = Setup::new(F_GUEST_CSUM | F_GUEST_TSO4);
    let expected = Offloads { checksum: true, tso4: true, tso6: false };
    wait_until(|| setup.wire.with(|inner| inner.guest == expected));
}

#[test]
fn segments_need_checksums_in_either_direction() {
    assert_eq!(header::guest_offloads(F_GUEST_TSO4 | F_GUEST_TSO6), Offloads::default());
}

#[test]
fn offloads_that_the_driver_turns_off_are_off_for_the_backend() {
    let mut setup = Setup::new(F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS | GUEST_OFFLOADS);
    assert_eq!(setup.command(5, 0, &F_GUEST_CSUM.to_le_bytes()), 0);
    let expected = Offloads { checksum: true, ..Offloads::default() };
    wait_until(|| setup.wire.with(|inner| inner.guest == expected));
    assert_eq!(setup.command(5, 0, &F_MAC.to_le_bytes()), 1);
}

#[test]
fn what_is_left_to_do_is_said_in_the_received_header() {
    let mut setup = Setup::new(GUEST_OFFLOADS | F_MRG_RXBUF);
    let addr = setup.post(8192);
    let (_, partial) = tcp(3000);
    let segmentation = Some(Segmentation { kind: SegmentationKind::Tcp4, size: 1460, headers: 54 });
    let info = FrameInfo { checksum: CHECKSUM, segmentation, checksum_valid: false };
    setup.wire.change(|inner| inner.inbound.push_back((partial, info)));
    setup.rx.wait_used(1);
    assert_eq!(setup.driver.get(addr, 12), [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 1, 0]);
}

#[test]
fn a_checksum_that_was_found_right_is_said_to_be() {
    let mut setup = Setup::new(F_GUEST_CSUM);
    let addr = setup.post(2048);
    let info = FrameInfo { checksum_valid: true, ..FrameInfo::default() };
    setup.wire.change(|inner| inner.inbound.push_back((frame(60), info)));
    setup.rx.wait_used(1);
    assert_eq!(setup.driver.get(addr, 12), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn a_frame_with_offloads_that_the_guest_does_not_have_never_reaches_it() {
    let mut setup = Setup::new(0);
    setup.post(2048);
    let info = FrameInfo { checksum: CHECKSUM, ..FrameInfo::default() };
    setup.wire.change(|inner| inner.inbound.push_back((frame(70), info)));
    setup.wire.send(&frame(60));
    assert_eq!(setup.rx.wait_used(1), [(0, 72)]);
    assert_eq!(setup.net.counters().rx_dropped, 1);
}
