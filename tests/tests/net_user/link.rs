//! What a guest finds on its link: an address, a router, names, an MTU; and pings, within and beyond.

use std::fs;
use std::io::{self, Write};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hvrun_tests::Running;

use crate::{AUTOCONFIGURED, DHCP, end, guest, hvrun, text};

/// The payloads of the record's datagrams over IPv4 between those two ports, in order.
fn datagrams(pcap: &[u8], ports: [u16; 2]) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    // The file's header has 24 bytes, a record's 16; its third word is the length (of this host's byte order).
    let mut rest = pcap.get(24..).context("no pcap")?;
    while let Some((header, after)) = rest.split_at_checked(16) {
        let len = u32::from_ne_bytes(header[8..12].try_into()?);
        let (frame, after) = after.split_at_checked(usize::try_from(len)?).context("a record is cut")?;
        rest = after;
        // IPv4 without options, UDP.
        if frame.len() > 42 && frame[12..15] == [8, 0, 0x45] && frame[23] == 17 {
            let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            if ports.contains(&port(34)) && ports.contains(&port(36)) {
                found.push(frame[42..].to_vec());
            }
        }
    }
    Ok(found)
}

/// The message type (option 53) of a DHCP message.
fn dhcp_type(message: &[u8]) -> Option<u8> {
    let mut options = message.get(240..)?;
    loop {
        match *options {
            [0, ref rest @ ..] => options = rest,
            [53, 1, kind, ..] => return Some(kind),
            [_, len, ref rest @ ..] => options = rest.get(usize::from(len)..)?,
            _ => return None,
        }
    }
}

#[test]
fn dhcp_gives_address_router_names_and_domain_in_one_round() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let record = dir.path().join("net.pcap");
    let net = format!("user,hostname=walrus,domainname=example.org,dump={}", text(&record)?);
    let mut guest = guest(&net)?;
    ensure!(guest.sh("ip -4 addr show dev eth0")?.contains("inet 10.0.2.15/24"));
    assert_eq!(guest.sh("ip -4 route show default")?.trim(), "default via 10.0.2.2 dev eth0");
    assert_eq!(guest.sh("cat /etc/resolv.conf")?, "search example.org\nnameserver 10.0.2.3\n");
    assert_eq!(guest.sh("hostname")?, "walrus\n");
    end(guest)?;
    let types: Vec<_> = datagrams(&fs::read(&record)?, [67, 68])?.iter().map(|m| dhcp_type(m)).collect();
    // DISCOVER, OFFER, REQUEST, ACK (RFC 2132, 9.6).
    assert_eq!(types, [Some(1), Some(2), Some(3), Some(5)]);
    Ok(())
}

fn ping(guest: &mut Running, options: &str) -> Result<()> {
    guest.sh(&format!("ping -c 2 -i 0.1 -W 20 {options} >/dev/null")).map(drop)
}

#[test]
fn router_answers_pings_of_any_size_by_both_protocols() -> Result<()> {
    let mut guest = guest("user")?;
    ping(&mut guest, "10.0.2.2")?;
    // In fragments, both ways.
    ping(&mut guest, "-s 20000 10.0.2.2")?;
    ping(&mut guest, "10.0.2.3")?;
    guest.sh(AUTOCONFIGURED)?;
    ensure!(guest.sh("ip -6 route show default")?.contains("via fe80::2"));
    ping(&mut guest, "-6 fec0::2")?;
    ping(&mut guest, "-6 -s 20000 fec0::2")?;
    end(guest)
}

/// A network of its own around hvrun, whose users may ping, with the address 198.51.100.7 (RFC 5737) on its loopback.
const OWN_NETWORK: &str = "exec unshare --user --map-root-user --net sh -c '\
    ip link set lo up && ip addr add 198.51.100.7/32 dev lo && \
    echo 0 0 >/proc/sys/net/ipv4/ping_group_range && exec \"$0\" \"$@\"' \"$0\" \"$@\"";

#[test]
fn jumbo_mtu_is_announced_in_every_way_and_pings_reach_the_outside() -> Result<()> {
    // Not every host lets its users have networks of their own; macOS has none.
    let own = Command::new("unshare").args(["--user", "--map-root-user", "--net", "true"]).output();
    let own = own.is_ok_and(|output| output.status.success());
    let hvrun = hvrun("user,mtu=9000")?;
    let mut guest = if own { hvrun.through(OWN_NETWORK) } else { hvrun }.start()?;
    guest.ready()?;
    assert_eq!(guest.sh("cat /sys/class/net/eth0/mtu")?, "9000\n");
    guest.sh("ip link set lo up; ip link set eth0 up")?;
    guest.sh("printf '#!/bin/sh\\necho $1 $mtu\\n' > /tmp/mtu && chmod +x /tmp/mtu")?;
    ensure!(guest.sh("udhcpc -i eth0 -n -q -f -s /tmp/mtu 2>/dev/null")?.contains("bound 9000"));
    guest.sh(DHCP)?;
    guest.sh(AUTOCONFIGURED)?;
    assert_eq!(guest.sh("cat /proc/sys/net/ipv6/conf/eth0/mtu")?, "9000\n");
    ping(&mut guest, "-s 8972 10.0.2.2")?;
    if own {
        ping(&mut guest, "198.51.100.7")?;
        ping(&mut guest, "-s 20000 198.51.100.7")?;
    } else {
        writeln!(io::stderr(), "no ping to the outside: 'unshare --user --net' does not work here")?;
    }
    end(guest)
}
