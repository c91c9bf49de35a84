//! The header, and, where the test may make an interface (root), the kernel itself.

use std::process::Command;

use super::super::testing::{Ring, drive, mac, need, send, transmit};
use super::*;

const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true };

fn segment(kind: SegmentationKind) -> FrameInfo {
    FrameInfo {
        checksum: Some(PartialChecksum { start: 34, offset: 16 }),
        segmentation: Some(Segmentation { kind, size: 1448, headers: 66 }),
        checksum_valid: false,
    }
}

#[test]
fn what_is_to_be_done_survives_the_header() {
    for info in [
        FrameInfo::default(),
        FrameInfo { checksum_valid: true, ..FrameInfo::default() },
        segment(SegmentationKind::Tcp4),
        segment(SegmentationKind::Tcp6),
    ] {
        assert_eq!(decode(encode(info)), Some(info));
    }
}

#[test]
fn the_headers_fields_are_where_the_kernel_has_them() {
    let header = encode(segment(SegmentationKind::Tcp6));
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    assert_eq!((header[0], header[1]), (1, 4));
    assert_eq!((word(2), word(4), word(6), word(8)), (66, 1448, 34, 16));
}

#[test]
fn a_kind_of_segmentation_without_a_name_is_refused() {
    assert_eq!(decode([0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
}

#[test]
fn a_frame_that_the_guest_does_not_understand_is_dropped() {
    let plain = Offloads { checksum: true, ..Offloads::default() };
    assert_eq!(usable(9000, Some(segment(SegmentationKind::Tcp4)), plain), None);
    assert!(usable(9000, Some(segment(SegmentationKind::Tcp4)), ALL).is_some());
    assert!(usable(13, Some(FrameInfo::default()), ALL).is_none(), "shorter than its header");
}

#[test]
fn a_name_that_no_interface_can_have_is_refused() {
    for name in ["", "a/b", "a b", "sixteen-bytes-xx", "..", "tap%d"] {
        let error = Tap::open(&TapConfig::new(name)).unwrap_err();
        assert!(matches!(error, TapError::Name(_)), "{error}");
    }
}

#[test]
fn a_configuration_is_read_back_as_it_is_written() {
    for text in ["tap0", "tap0,create"] {
        assert_eq!(text.parse::<TapConfig>().unwrap().to_string(), text);
    }
}

#[test]
fn every_refusal_of_the_host_has_a_message_of_its_own() {
    let message = |error: Errno| refused("tap0", error.into()).to_string();
    assert!(message(Errno::PERM).contains("may not"));
    assert!(message(Errno::BUSY).contains("in use"));
    assert!(message(Errno::INVAL).contains("no tap interface"));
}

/// Whether this process may make interfaces, and tap devices are there.
fn may_create() -> bool {
    rustix::process::geteuid().is_root() && wire::open_tun().is_ok()
}

#[test]
fn an_interface_that_is_not_there_is_an_error_that_says_how_to_make_one() {
    let error = Tap::open(&TapConfig::new("hvrun-none")).unwrap_err();
    // Where tap devices are out of reach, that is what is said.
    if wire::open_tun().is_ok() {
        let message = error.to_string();
        assert!(message.contains("hvrun-none") && message.contains("ip tuntap add"), "{message}");
    } else {
        assert!(
            matches!(error, TapError::Permission(_) | TapError::DeviceFile { .. } | TapError::Unsupported(_)),
            "{error}"
        );
    }
}

/// A tap interface of the test's own, up, with the host's address 10.213.N.1/24; `None` where it may not make one, after checking that
/// trying is a clear error.
fn interface(number: u8) -> Option<Tap> {
    let config =
        TapConfig { interface: format!("hvt{}{number}", std::process::id() % 100_000), create: true };
    if !may_create() {
        let error = Tap::open(&config).unwrap_err();
        assert!(matches!(
            error,
            TapError::Permission(_) | TapError::DeviceFile { .. } | TapError::Unsupported(_)
        ));
        return None;
    }
    let tap = Tap::open(&config).unwrap();
    let ip = need("ip", "iproute2");
    for arguments in
        [format!("addr add 10.213.{number}.1/24 dev {}", tap.name), format!("link set {} up", tap.name)]
    {
        let status = Command::new(&ip).args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }
    Some(tap)
}

/// Drives `tap` until a frame comes of which `wanted` is true.
fn await_frame(tap: &mut Tap, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, FrameInfo) {
    let mut ring = Ring::new(usize::MAX);
    let found = |ring: &Ring| ring.with_info().iter().find(|(bytes, _)| wanted(bytes)).cloned();
    drive(&mut [(tap, &mut ring)], |rings| rings.iter().all(|ring| found(ring).is_some())).unwrap();
    found(&ring).unwrap()
}

/// Answers the host's question for 10.213.N.2 and returns the host's Ethernet address.
fn answer_arp(tap: &mut Tap) -> [u8; 6] {
    let (question, _) = await_frame(tap, |bytes| bytes[12..14] == [8, 6] && bytes[21] == 1);
    let mut answer = question.clone();
    answer.copy_within(6..12, 0);
    answer[6..12].copy_from_slice(&mac(2));
    answer[21] = 2;
    // The target becomes the sender.
    answer[22..28].copy_from_slice(&mac(2));
    answer[28..32].copy_from_slice(&question[38..42]);
    answer[32..42].copy_from_slice(&question[22..32]);
    transmit(tap, &answer);
    question[6..12].try_into().unwrap()
}

#[test]
fn the_host_and_the_guest_exchange_frames_with_unfinished_checksums() {
    let Some(mut tap) = interface(1) else { return };
    tap.set_guest_offloads(ALL);
    let socket = std::net::UdpSocket::bind("10.213.1.1:0").unwrap();
    socket.send_to(b"to the guest", "10.213.1.2:9").unwrap();
    let host = answer_arp(&mut tap);

    let udp = |bytes: &[u8]| bytes[12..14] == [8, 0] && bytes[23] == 17 && bytes.ends_with(b"to the guest");
    let (frame, info) = await_frame(&mut tap, udp);
    assert_eq!(info.checksum, Some(PartialChecksum { start: 34, offset: 6 }), "the kernel leaves it to us");

    // The same frame back to its sender: only the checksum is still to be done, over the same pseudo-header.
    let mut back = frame;
    back[..6].copy_from_slice(&host);
    back[6..12].copy_from_slice(&mac(2));
    let (source, target): ([u8; 4], [u8; 4]) =
        (back[26..30].try_into().unwrap(), back[30..34].try_into().unwrap());
    back[26..30].copy_from_slice(&target);
    back[30..34].copy_from_slice(&source);
    back.swap(34, 36);
    back.swap(35, 37);
    socket.connect("10.213.1.2:9").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let sent = send(|tx| tap.transmit(&TxFrame { info, ..*tx }), &back);
    assert_eq!(sent, Transmit::Done);
    let mut buffer = [0; 100];
    let len = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"to the guest");
}

#[test]
fn a_guest_without_offloads_gets_finished_frames() {
    let Some(mut tap) = interface(2) else { return };
    let socket = std::net::UdpSocket::bind("10.213.2.1:0").unwrap();
    socket.send_to(b"to the guest", "10.213.2.2:9").unwrap();
    answer_arp(&mut tap);
    let (_, info) = await_frame(&mut tap, |bytes| bytes.ends_with(b"to the guest"));
    assert_eq!((info.checksum, info.segmentation), (None, None));
}

#[test]
fn an_interface_in_use_is_an_error_that_says_so() {
    let Some(tap) = interface(3) else { return };
    let error = Tap::open(&TapConfig::new(tap.name.clone())).unwrap_err();
    assert!(matches!(error, TapError::Busy(_)), "{error}");
}

#[test]
fn an_interface_that_is_no_tap_is_an_error_that_says_so() {
    if !may_create() {
        return;
    }
    let error = Tap::open(&TapConfig::new("lo")).unwrap_err();
    assert!(matches!(error, TapError::NotATap(_)), "{error}");
}

#[test]
fn an_interface_that_is_removed_takes_the_link_down() {
    let Some(mut tap) = interface(4) else { return };
    let status = Command::new(need("ip", "iproute2")).args(["link", "del", &tap.name]).status().unwrap();
    assert!(status.success());
    let error = super::super::testing::failure(&mut tap).to_string();
    assert!(error.contains(&tap.name), "{error}");
    assert!(!tap.link() && tap.descriptors(true).is_empty());
    transmit(&mut tap, &super::super::testing::frame(1, 60));
}
