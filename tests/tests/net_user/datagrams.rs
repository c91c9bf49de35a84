//! UDP: from the guest to the host, with answers from another port, in datagrams longer than a frame; and by forwarded ports. The
//! guest's only program for datagrams is busybox' tftp, so that is spoken.

use std::net::UdpSocket;
use std::thread;

use anyhow::{Result, ensure};

use crate::host::{LOOPBACK, datagram_socket, free_port, pattern, receive};
use crate::{end, guest};

/// Bytes of payload in each datagram: six fragments.
const BLOCK: usize = 8000;
/// Opcodes (RFC 1350, 5; RFC 2347).
const DATA: u8 = 3;
const ACK: u8 = 4;
const OACK: u8 = 6;
/// What every request here is answered with.
const OPTIONS: &[u8] = b"\0\x06blksize\08000\0";

/// Sends `file` to the client whose request comes next, from a port of its own.
fn send_file(server: &UdpSocket, file: &[u8]) -> Result<()> {
    let (_, client) = receive(server)?;
    let (socket, _) = datagram_socket()?;
    socket.send_to(OPTIONS, client)?;
    ensure!(receive(&socket)?.0 == [0, ACK, 0, 0], "the options were not confirmed");
    // One more, shorter than the others, is the end.
    let end: &[u8] = &[];
    for (number, block) in (1u16..).zip(file.chunks(BLOCK).chain([end])) {
        let number = number.to_be_bytes();
        socket.send_to(&[&[0, DATA], &number[..], block].concat(), client)?;
        let (answer, from) = receive(&socket)?;
        ensure!(from == client && answer == [0, ACK, number[0], number[1]], "{answer:?} from {from}");
    }
    Ok(())
}

/// Takes the file that the client whose request comes next has for us.
fn take_file(server: &UdpSocket) -> Result<Vec<u8>> {
    let (_, client) = receive(server)?;
    let (socket, _) = datagram_socket()?;
    socket.send_to(OPTIONS, client)?;
    let mut file = Vec::new();
    loop {
        let (message, _) = receive(&socket)?;
        let Some(([0, DATA, high, low], block)) = message.split_first_chunk::<4>() else { continue };
        file.extend_from_slice(block);
        socket.send_to(&[0, ACK, *high, *low], client)?;
        if block.len() < BLOCK {
            return Ok(file);
        }
    }
}

#[test]
fn datagrams_of_8000_bytes_go_both_ways_and_may_be_answered_from_another_port() -> Result<()> {
    let mut guest = guest("user")?;
    let (server, port) = datagram_socket()?;
    let file = pattern(10 * BLOCK);
    let sent = file.clone();
    let host = thread::spawn(move || -> Result<Vec<u8>> {
        send_file(&server, &sent)?;
        take_file(&server)
    });
    guest.sh(&format!("tftp -g -b {BLOCK} -r x -l /tmp/x 10.0.2.2 {port}"))?;
    guest.sh(&format!("tftp -p -b {BLOCK} -r x -l /tmp/x 10.0.2.2 {port}"))?;
    let back = host.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    ensure!(back == file, "{} bytes came back, and not those that were sent", back.len());
    end(guest)
}

#[test]
fn forwarded_datagrams_reach_the_guest_and_are_answered_from_the_hosts_port() -> Result<()> {
    let port = free_port()?;
    let mut guest = guest(&format!("user,hostfwd=udp:127.0.0.1:{port}-:5000"))?;
    wait_at_port_5000(&mut guest, "10.0.2.2 9")?;
    let (client, _) = datagram_socket()?;
    let block = [&[0, DATA, 0, 1], &b"a block"[..]].concat();
    client.send_to(&block, (LOOPBACK, port))?;
    let (answer, from) = receive(&client)?;
    assert_eq!(answer, [0, ACK, 0, 1]);
    assert_eq!((from.ip(), from.port()), (LOOPBACK, port));
    assert_eq!(guest.sh("wait; cat /tmp/x")?, "a block");
    end(guest)
}

/// In the guest, a program asks `server` and waits at port 5000, where it takes an answer of whoever comes.
pub fn wait_at_port_5000(guest: &mut hvrun_tests::Running, server: &str) -> Result<()> {
    guest.sh("echo 5000 5000 > /proc/sys/net/ipv4/ip_local_port_range")?;
    guest.sh(&format!(
        "tftp -g -r x -l /tmp/x {server} & until grep -q ':1388 ' /proc/net/udp; do sleep 0.1; done"
    ))?;
    Ok(())
}

/// Whether `OPTIONS` says what its opcode should.
const _: () = assert!(OPTIONS[1] == OACK);
