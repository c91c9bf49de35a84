//! What is on the link: ARP, DHCP, pings, neighbour discovery, TFTP.

use super::*;

pub(super) fn dhcp_message(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&[9, 8, 7, 6]);
    message[28..34].copy_from_slice(&MAC);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend_from_slice(&[53, 1, kind]);
    message.extend_from_slice(options);
    message.push(255);
    message
}

pub(super) fn dhcp_frame(mac: [u8; 6], message: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac, [0xff; 6]).ipv4([0; 4], [255; 4], 64).udp(68, 67);
    let mut frame = Vec::new();
    builder.write(&mut frame, message).unwrap();
    frame
}

fn option(reply: &[u8], wanted: u8) -> Option<Vec<u8>> {
    let mut rest = &reply[240..];
    while rest[0] != 255 {
        let len = usize::from(rest[1]);
        if rest[0] == wanted {
            return Some(rest[2..2 + len].to_vec());
        }
        rest = &rest[2 + len..];
    }
    None
}

#[test]
fn dhcp_offers_and_confirms_the_first_address_at_once() {
    let mut guest = Guest::new("hostname=box,bootfile=/pxe");
    guest.send(&dhcp_frame(MAC, &dhcp_message(1, &[])));
    let (from, offer) = guest.answer(68);
    assert_eq!(from, "10.0.2.2:67".parse().unwrap());
    assert_eq!(option(&offer, 53), Some(vec![2]));
    guest.send(&dhcp_frame(MAC, &dhcp_message(3, &[50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2])));
    let (_, ack) = guest.answer(68);
    assert_eq!(option(&ack, 53), Some(vec![5]));
    assert_eq!(ack[16..20], GUEST);
    assert_eq!(ack[4..8], [9, 8, 7, 6]);
    assert_eq!(option(&ack, 1), Some(vec![255, 255, 255, 0]));
    assert_eq!(option(&ack, 3), Some(ROUTER.to_vec()));
    assert_eq!(option(&ack, 6), Some(DNS.to_vec()));
    assert_eq!(option(&ack, 12), Some(b"box".to_vec()));
    assert_eq!(option(&ack, 26), Some(1500u16.to_be_bytes().to_vec()));
    assert_eq!(ack[108..113], *b"/pxe\0");
}

#[test]
fn dhcp_refuses_an_address_that_it_does_not_give() {
    let mut guest = Guest::new("");
    guest.send(&dhcp_frame(MAC, &dhcp_message(3, &[50, 4, 192, 168, 1, 1])));
    let (_, reply) = guest.answer(68);
    assert_eq!(option(&reply, 53), Some(vec![6]));
}

#[test]
fn forged_dhcp_for_another_address_is_ignored() {
    let mut guest = Guest::new("ipv6=off");
    guest.send(&dhcp_frame([2, 0, 0, 0, 0, 1], &dhcp_message(1, &[])));
    guest.idle();
    assert!(guest.inbox.is_empty());
}

#[test]
fn the_router_answers_arp_and_others_do_not() {
    let mut guest = Guest::new("ipv6=off");
    let request = |target: [u8; 4]| {
        let mut frame =
            [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &GUEST, &[0; 6]].concat();
        frame.extend_from_slice(&target);
        frame
    };
    guest.send(&request([10, 0, 2, 77]));
    guest.send(&request(ROUTER));
    guest.step();
    assert_eq!(guest.inbox.len(), 1);
    assert_eq!(guest.inbox[0][22..32], [&ROUTER_MAC[..], &ROUTER].concat());
}

fn ping(to: [u8; 4]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MAC, ROUTER_MAC).ipv4(GUEST, to, 64).icmpv4_echo_request(77, 3);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").unwrap();
    frame
}

#[test]
fn the_router_answers_a_ping() {
    let mut guest = Guest::new("restrict=on");
    guest.send(&ping(ROUTER));
    let reply = guest.icmp(0);
    assert_eq!(reply[26..34], [ROUTER, GUEST].concat());
    assert_eq!(reply[38..], *b"\x00\x4d\x00\x03hello");
}

#[test]
fn a_ping_to_the_outside_is_refused_under_restrict() {
    let mut guest = Guest::new("restrict=on");
    guest.send(&ping([192, 0, 2, 1]));
    assert_eq!(guest.icmp(3)[35], 13);
}

fn icmp6(source: &str, to: &str, message: &[u8]) -> Vec<u8> {
    let (source, to): (IpAddr, IpAddr) = (source.parse().unwrap(), to.parse().unwrap());
    let mut message = message.to_vec();
    let sum = packet::transport_checksum(source, to, ICMPV6, &message);
    packet::put16(&mut message, 2, sum);
    let ip = ip_packet(source, to, ICMPV6, &message, None).unwrap();
    [&[0x33, 0x33, 0, 0, 0, 2][..], &MAC, &[0x86, 0xdd], &ip].concat()
}

#[test]
fn a_router_solicitation_is_answered_with_the_prefix() {
    let mut guest = Guest::new("mtu=9000");
    guest.send(&icmp6("fe80::15", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]));
    guest.step();
    let advert = guest.inbox.iter().find(|f| f.len() > 54 && f[54] == 134).unwrap();
    assert!(advert.windows(6).any(|w| w == [3, 4, 64, 0xc0, 0xff, 0xff]));
    assert!(advert.windows(8).any(|w| w == [5, 1, 0, 0, 0, 0, 0x23, 0x28]));
    assert!(checksum_holds(&Ip::parse6(&advert[14..]).unwrap(), &advert[54..]));
}

#[test]
fn a_router_that_leads_nowhere_advertises_a_prefix_and_neither_itself_nor_a_name_server() {
    let mut guest = Guest::new("restrict=on");
    guest.send(&icmp6("fe80::15", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]));
    guest.step();
    let advert = guest.inbox.iter().find(|f| f.len() > 54 && f[54] == 134).unwrap();
    assert!(advert.windows(6).any(|w| w == [3, 4, 64, 0xc0, 0xff, 0xff]));
    assert_eq!(advert[60..62], [0, 0]);
    assert!(!advert.windows(4).any(|w| w == [25, 3, 0, 0]));
}

#[test]
fn a_router_solicitation_is_not_answered_without_ipv6() {
    let mut guest = Guest::new("ipv6=off");
    guest.send(&icmp6("fe80::15", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]));
    guest.idle();
    assert!(guest.inbox.is_empty());
}

#[test]
fn the_router_answers_a_ping_by_ipv6() {
    let mut guest = Guest::new("");
    guest.send(&icmp6("fec0::15", "fec0::2", &[128, 0, 0, 0, 0, 7, 0, 1, 42]));
    guest.step();
    assert!(guest.inbox.iter().any(|f| f.len() > 54 && f[54..56] == [129, 0] && f[58..] == [0, 7, 0, 1, 42]));
}

#[test]
fn a_file_is_served_by_tftp_block_by_block() {
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..1000u16).map(|i| u8::try_from(i % 251).unwrap()).collect();
    std::fs::write(folder.path().join("kernel"), &content).unwrap();
    let mut guest = Guest::new(&format!("tftp={}", folder.path().display()));
    guest.datagram(2000, ROUTER, 69, b"\0\x01/kernel\0octet\0tsize\x000\0blksize\x00600\0");
    assert_eq!(guest.answer(2000).1, b"\0\x06tsize\x001000\0blksize\x00600\0");
    guest.datagram(2000, ROUTER, 69, b"\0\x04\0\0");
    assert_eq!(guest.answer(2000).1, [b"\0\x03\0\x01", &content[..600]].concat());
    guest.datagram(2000, ROUTER, 69, b"\0\x04\0\x01");
    assert_eq!(guest.answer(2000).1, [b"\0\x03\0\x02", &content[600..]].concat());
}

#[test]
fn tftp_serves_nothing_outside_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("pub")).unwrap();
    std::fs::write(folder.path().join("secret"), "x").unwrap();
    let mut guest = Guest::new(&format!("tftp={}/pub", folder.path().display()));
    guest.datagram(2000, ROUTER, 69, b"\0\x01../secret\0octet\0");
    assert_eq!(guest.answer(2000).1[..4], [0, 5, 0, 1]);
}
