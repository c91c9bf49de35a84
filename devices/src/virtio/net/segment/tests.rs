//! Checksums and segments against an independent implementation (etherparse) and known vectors.

use etherparse::{LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use proptest::prelude::*;

use super::*;

const MSS: u16 = 1000;

/// Bytes that differ from place to place.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

/// A TCP header with every flag that segmentation cares for, an option, and a sequence number that soon wraps.
fn tcp_header() -> TcpHeader {
    let mut header = TcpHeader::new(80, 4000, 0xffff_ff00, 512);
    (header.fin, header.psh, header.cwr, header.ack) = (true, true, true, true);
    header.acknowledgment_number = 99;
    header.set_options_raw(&[1, 1, 1, 0]).unwrap();
    header
}

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

fn tcp4(data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4([10, 0, 2, 15], [10, 0, 2, 2], 64);
    let mut frame = Vec::new();
    builder.tcp_header(tcp_header()).write(&mut frame, data).unwrap();
    frame
}

fn tcp6(data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6([0xfe; 16], [0xfd; 16], 64);
    let mut frame = Vec::new();
    builder.tcp_header(tcp_header()).write(&mut frame, data).unwrap();
    frame
}

fn tagged_tcp4(data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1)
        .single_vlan(etherparse::VlanId::try_new(5).unwrap())
        .ipv4([10, 0, 2, 15], [10, 0, 2, 2], 64);
    let mut frame = Vec::new();
    builder.tcp_header(tcp_header()).write(&mut frame, data).unwrap();
    frame
}

const TCP4: Segmentation = Segmentation { kind: SegmentationKind::Tcp4, size: MSS, headers: 14 + 20 + 24 };
const TCP6: Segmentation = Segmentation { kind: SegmentationKind::Tcp6, size: MSS, headers: 14 + 40 + 24 };

/// All frames that `frame` is cut into.
fn cut(frame: &[u8], segmentation: Segmentation) -> Vec<Vec<u8>> {
    let mut segmenter = Segmenter::new(frame, segmentation).unwrap();
    let mut headers = [0; MAX_HEADERS];
    let mut frames = Vec::new();
    while let Some((head, range)) = segmenter.segment(frame, &mut headers) {
        frames.push([&*head, &frame[range]].concat());
        segmenter.advance();
    }
    assert!(segmenter.is_done());
    frames
}

/// Checks lengths and checksums of a frame; gives its TCP header and payload.
#[track_caller]
fn check(frame: &[u8]) -> (TcpHeader, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    assert!(matches!(packet.link, Some(LinkSlice::Ethernet2(_))));
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
    let header = tcp.to_header();
    let data = tcp.payload();
    match packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
            assert_eq!(header.calc_checksum_ipv4(&ip, data).unwrap(), header.checksum);
            assert_eq!(usize::from(ip.payload_len().unwrap()), tcp.slice().len());
        }
        Some(NetSlice::Ipv6(ip)) => {
            let ip = ip.header().to_header();
            assert_eq!(header.calc_checksum_ipv6(&ip, data).unwrap(), header.checksum);
            assert_eq!(usize::from(ip.payload_length), frame.len() - ETHERNET_HEADER - IPV6_HEADER);
        }
        other => panic!("{other:?}"),
    }
    (header, data.to_vec())
}

#[test]
fn the_checksum_of_the_rfcs_example_is_right() {
    // RFC 1071, 3: the sum is ddf2.
    assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)), !0xddf2);
}

#[test]
fn a_known_ip_header_has_its_known_checksum() {
    let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
    assert_eq!(fold(sum(&header, 0)), 0xb861);
}

#[test]
fn payloads_come_out_in_order_and_whole() {
    let data = payload(2500);
    for (frame, segmentation) in [(tcp4(&data), TCP4), (tcp6(&data), TCP6)] {
        let parts: Vec<_> = cut(&frame, segmentation).iter().map(|frame| check(frame).1).collect();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert_eq!(parts.concat(), data);
    }
}

#[test]
fn sequence_numbers_go_on_and_wrap() {
    let sequences: Vec<_> =
        cut(&tcp4(&payload(2500)), TCP4).iter().map(|frame| check(frame).0.sequence_number).collect();
    assert_eq!(sequences, [0xffff_ff00, 0x2e8, 0x6d0]);
}

#[test]
fn only_the_last_segment_pushes_and_ends_and_only_the_first_says_that_the_window_shrank() {
    let flags: Vec<_> = cut(&tcp6(&payload(2500)), TCP6)
        .iter()
        .map(|frame| check(frame).0)
        .map(|header| (header.cwr, header.psh, header.fin, header.ack))
        .collect();
    assert_eq!(flags, [(true, false, false, true), (false, false, false, true), (false, true, true, true)]);
}

#[test]
fn each_ipv4_segment_has_an_identification_of_its_own() {
    let ids: Vec<_> = cut(&tcp4(&payload(2500)), TCP4)
        .iter()
        .map(|frame| u16::from_be_bytes([frame[18], frame[19]]))
        .collect();
    assert_eq!([ids[1], ids[2]], [ids[0] + 1, ids[0] + 2]);
}

#[test]
fn options_and_everything_else_in_the_headers_stay() {
    let frames = cut(&tcp4(&payload(2500)), TCP4);
    let (header, _) = check(&frames[2]);
    assert_eq!(header.options.as_slice(), [1, 1, 1, 0]);
    assert_eq!((header.source_port, header.acknowledgment_number, header.window_size), (80, 99, 512));
}

#[test]
fn a_tag_moves_the_headers_and_stays() {
    let frame = tagged_tcp4(&payload(1500));
    let frames = cut(&frame, Segmentation { headers: TCP4.headers + 4, ..TCP4 });
    assert_eq!(frames.len(), 2);
    frames.iter().for_each(|part| {
        check(part);
        assert_eq!(part[..18], frame[..18]);
    });
}

#[test]
fn what_fits_one_segment_is_one_frame_as_it_was() {
    for len in [0, 1, 999, 1000] {
        let frame = tcp4(&payload(len));
        assert_eq!(cut(&frame, TCP4), [frame]);
    }
}

#[test]
fn the_segments_checksum_does_not_depend_on_the_frames() {
    let mut frame = tcp4(&payload(2500));
    let whole = cut(&frame, TCP4);
    frame[50..52].copy_from_slice(&[0xde, 0xad]);
    assert_eq!(cut(&frame, TCP4), whole);
}

#[test]
fn ipv6_options_in_front_of_tcp_are_kept() {
    let plain = tcp6(&payload(1500));
    let mut frame = plain.clone();
    // Eight bytes of destination options: next header TCP, no further words, padding.
    frame.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    frame[20] = 60;
    let frames = cut(&frame, Segmentation { headers: TCP6.headers + 8, ..TCP6 });
    assert_eq!(frames.len(), 2);
    frames.iter().for_each(|part| assert_eq!(part[54..62], frame[54..62]));
    check(&frames[0]);
}

#[test]
fn a_frame_of_another_protocol_is_not_cut() {
    let mut udp = tcp4(&payload(100));
    udp[23] = 17;
    for (frame, segmentation) in [(udp, TCP4), (tcp4(&payload(100)), TCP6), (tcp6(&payload(100)), TCP4)] {
        assert_eq!(Segmenter::new(&frame, segmentation), Err(SegmentError::Headers));
    }
}

#[test]
fn a_fragment_is_not_cut() {
    let mut frame = tcp4(&payload(100));
    frame[20] |= 0x20;
    assert_eq!(Segmenter::new(&frame, TCP4), Err(SegmentError::Headers));
}

#[test]
fn header_lengths_that_are_not_the_frames_are_refused() {
    let frame = tcp4(&payload(100));
    for headers in [0, 14, 54, 57, 59, 158, 65535] {
        let segmentation = Segmentation { headers, ..TCP4 };
        assert_eq!(Segmenter::new(&frame, segmentation), Err(SegmentError::Headers), "{headers}");
    }
}

#[test]
fn segments_without_bytes_are_refused() {
    let frame = tcp4(&payload(100));
    assert_eq!(Segmenter::new(&frame, Segmentation { size: 0, ..TCP4 }), Err(SegmentError::Size(0)));
}

#[test]
fn a_partial_checksum_is_completed_as_the_peer_expects_it() {
    let whole = tcp4(&payload(333));
    let mut partial = whole.clone();
    let pseudo = !fold(pseudo_header(&whole[26..34], 6, whole.len() - 34));
    partial[50..52].copy_from_slice(&pseudo.to_be_bytes());
    assert!(complete_checksum(&mut partial, PartialChecksum { start: 34, offset: 16 }));
    assert_eq!(partial, whole);
}

#[test]
fn a_checksum_that_would_be_zero_is_the_other_zero() {
    let mut frame = [0; 60];
    frame[40..42].copy_from_slice(&[0xff, 0xff]);
    assert!(complete_checksum(&mut frame, PartialChecksum { start: 34, offset: 6 }));
    assert_eq!(frame[40..42], [0xff, 0xff]);
}

#[test]
fn a_checksum_outside_of_the_frame_is_refused() {
    for (start, offset) in [(59, 0), (60, 0), (61, 0), (34, 25), (34, 65535), (65535, 65535)] {
        assert!(!complete_checksum(&mut [0; 60], PartialChecksum { start, offset }), "{start} {offset}");
    }
}

proptest! {
    #[test]
    fn pieces_sum_up_to_the_whole(bytes: Vec<u8>, at in 0usize..100) {
        let at = (at * 2).min(bytes.len() / 2 * 2);
        let (head, tail) = bytes.split_at(at);
        prop_assert_eq!(fold(sum(tail, sum(head, 0))), fold(sum(&bytes, 0)));
    }

    #[test]
    fn any_bytes_are_cut_or_refused(bytes: Vec<u8>, size: u16, headers: u16, six: bool) {
        let kind = if six { SegmentationKind::Tcp6 } else { SegmentationKind::Tcp4 };
        if let Ok(segmenter) = Segmenter::new(&bytes, Segmentation { kind, size, headers }) {
            segmenter.segment(&bytes, &mut [0; MAX_HEADERS]);
        }
    }

    #[test]
    fn a_damaged_frame_is_cut_into_frames_no_larger_than_itself(
        len in 0usize..3000, at in 0usize..80, byte: u8, size in MIN_SEGMENT..2000, six: bool,
    ) {
        let (mut frame, segmentation) = match six {
            true => (tcp6(&payload(len)), Segmentation { size, ..TCP6 }),
            false => (tcp4(&payload(len)), Segmentation { size, ..TCP4 }),
        };
        if let Some(place) = frame.get_mut(at) {
            *place = byte;
        }
        if Segmenter::new(&frame, segmentation).is_ok() {
            let frames = cut(&frame, segmentation);
            prop_assert!(frames.iter().all(|part| part.len() <= frame.len()));
            prop_assert_eq!(frames.len(), len.div_ceil(size.into()).max(1));
        }
    }
}
