//! Network cards under Debian's kernel and its own driver, by PCI and by virtio-mmio, on the software CPU: between two guests over a
//! socket, and to the host through the NAT.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hvrun_tests::{Hvrun, Running};

/// Bytes of the file that goes over the network: enough for many large segments.
const FILE: usize = 3 << 20;

/// What a path is called on the command line.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// A guest with a card on `net`, which has the address `address`.
fn guest(net: &str, transport: &str, address: &str) -> Result<Running> {
    let mut guest = Hvrun::virtio_linux(1)?.args(["--transport", transport, "--net", net]).start()?;
    guest.ready()?;
    guest.sh(&format!("ip link set eth0 up && ip addr add {address}/24 dev eth0"))?;
    Ok(guest)
}

/// Sends a file of random bytes over TCP to the guest at `address`. (Either end of busybox' nc leaves when the other one says that it
/// has no more to send, so the receiver's input is a pipe that never ends.)
fn send_file(from: &mut Running, to: &mut Running, address: &str) -> Result<()> {
    to.sh("rm -f /tmp/got /tmp/all /tmp/in; mkfifo /tmp/in; (nc -l -p 80 <> /tmp/in > /tmp/got; touch /tmp/all) & until grep -q ':0050 .* 0A ' /proc/net/tcp*; do sleep 0.1; done")?;
    from.sh(&format!("head -c {FILE} /dev/urandom > /tmp/file; nc {address} 80 < /tmp/file"))?;
    let sent = from.sh("sha256sum < /tmp/file")?;
    let got = to.sh("until [ -e /tmp/all ]; do sleep 0.1; done; sha256sum < /tmp/got")?;
    ensure!(sent == got, "the file was changed on its way: {sent} {got}");
    Ok(())
}

/// Two guests that send each other what is small and what is large.
fn check_pair(first: &str, second: &str, transport: &str) -> Result<()> {
    let mut server = guest(first, transport, "192.168.9.1")?;
    let mut client = guest(second, transport, "192.168.9.2")?;
    client.sh("ping -c 3 -W 20 192.168.9.1 >/dev/null")?;
    // Larger than a frame, so the guests' own fragments pass, too.
    client.sh("ping -c 2 -W 20 -s 5000 192.168.9.1 >/dev/null")?;
    send_file(&mut client, &mut server, "192.168.9.1")?;
    send_file(&mut server, &mut client, "192.168.9.2")?;
    for mut guest in [client, server] {
        assert_eq!(guest.sh("cat /sys/class/net/eth0/statistics/rx_errors")?.trim(), "0");
        assert_eq!(guest.poweroff()?.code, Some(0));
    }
    Ok(())
}

#[test]
fn two_guests_reach_each_other_over_a_stream_by_pci() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("net.sock");
    let path = text(&socket)?;
    let client = format!("socket:stream,path={path},mac=52:54:00:12:34:57");
    check_pair(&format!("socket:stream,path={path},server"), &client, "pci")
}

#[test]
fn two_guests_reach_each_other_over_datagrams_by_mmio() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let (one, two) = (text(&one)?, text(&two)?);
    let second = format!("socket:dgram,local={two},remote={one},mac=52:54:00:12:34:57");
    check_pair(&format!("socket:dgram,local={one},remote={two}"), &second, "mmio")
}

#[test]
fn cards_have_the_addresses_and_the_mtu_they_were_given() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("net.sock");
    let net = format!("socket:stream,path={},server", text(&path)?);
    let mut guest = Hvrun::virtio_linux(1)?
        .args(["--net", &format!("{net},mtu=1400")])
        .args(["--net", &net.replace("net.sock", "other.sock")])
        .args(["--net", &format!("{},mac=02:00:00:00:00:07", net.replace("net.sock", "third.sock"))])
        .start()?;
    guest.ready()?;
    let addresses = guest
        .sh("cat /sys/class/net/eth0/address /sys/class/net/eth1/address /sys/class/net/eth2/address")?;
    let expected = ["52:54:00:12:34:56", "52:54:00:12:34:57", "02:00:00:00:00:07"];
    assert_eq!(addresses.split_whitespace().collect::<Vec<_>>(), expected);
    assert_eq!(guest.sh("cat /sys/class/net/eth0/mtu")?.trim(), "1400");
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn a_link_is_up_while_there_is_a_peer() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("net.sock");
    let mut guest = guest(&format!("socket:stream,path={},server", text(&socket)?), "pci", "192.168.9.1")?;
    let carrier = |guest: &mut Running, wanted: &str| {
        guest.sh(&format!("until [ $(cat /sys/class/net/eth0/carrier) = {wanted} ]; do sleep 0.1; done"))
    };
    carrier(&mut guest, "0")?;
    let peer = std::os::unix::net::UnixStream::connect(&socket)?;
    carrier(&mut guest, "1")?;
    drop(peer);
    carrier(&mut guest, "0")?;
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn a_driver_that_lets_go_and_comes_back_finds_its_network() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("net.sock");
    let path = text(&socket)?;
    let mut first = guest(&format!("socket:stream,path={path},server"), "pci", "192.168.9.1")?;
    let second = format!("socket:stream,path={path},mac=52:54:00:12:34:57");
    let mut second = guest(&second, "pci", "192.168.9.2")?;
    second.sh("ping -c 1 -W 20 192.168.9.1 >/dev/null")?;
    first.sh("d=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; for i in 1 2 3; do echo $d > unbind; echo $d > bind; done; cd /")?;
    first.sh("ip link set eth0 up && ip addr add 192.168.9.1/24 dev eth0")?;
    second.sh("ping -c 3 -W 20 192.168.9.1 >/dev/null")?;
    assert_eq!(first.poweroff()?.code, Some(0));
    assert_eq!(second.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn what_a_card_sends_is_in_its_record() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (socket, record) = (dir.path().join("net.sock"), dir.path().join("net.pcap"));
    let net = format!("socket:stream,path={},server,dump={}", text(&socket)?, text(&record)?);
    let mut machine = Hvrun::virtio_linux(1)?.args(["--net", &net]).start()?;
    machine.ready()?;
    let _peer = std::os::unix::net::UnixStream::connect(&socket)?;
    machine.sh("until [ $(cat /sys/class/net/eth0/carrier 2>/dev/null || echo 0) = 1 ]; do ip link set eth0 up; sleep 0.1; done")?;
    machine.sh("ip addr add 192.168.9.1/24 dev eth0; ping -c 1 -W 1 192.168.9.2 >/dev/null || true")?;
    assert_eq!(machine.poweroff()?.code, Some(0));
    let bytes = fs::read(&record)?;
    ensure!(bytes.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]), "no pcap");
    // The question of ARP for the other's address.
    let question = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 6];
    ensure!(bytes.windows(question.len()).any(|window| window == question), "no ARP in the record");
    Ok(())
}
