//! Name service: the guest's questions reach a resolver of the test's own, by UDP and, where the answer is too long for that, by TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::host::{LOOPBACK, free_port, give_back, next, server};
use crate::{end, guest};

/// A DNS message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// The flags: an answer (QR) that recursion was available for (RD, RA).
const ANSWER: [u8; 2] = [0x81, 0x80];

/// The answer to a question: the router's address for type A, and nothing for others; for a name with `long` in it 200 times, which is
/// more than 3 KiB.
fn answer(question: &[u8]) -> Vec<u8> {
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let is_long = question.windows(4).any(|window| window == b"long");
    let count: u8 = if !is_a {
        0
    } else if is_long {
        200
    } else {
        1
    };
    let mut answer = question.to_vec();
    if let Some(fields) = answer.get_mut(2..HEADER) {
        fields.copy_from_slice(&[ANSWER[0], ANSWER[1], 0, 1, 0, count, 0, 0, 0, 0]);
    }
    for _ in 0..count {
        // The name is that of the question; A, IN, an hour, 4 bytes (RFC 1035, 4.1.3 and 4.1.4).
        answer.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 10, 0, 2, 2]);
    }
    answer
}

/// A resolver on the host's loopback: its port.
fn resolver() -> Result<u16> {
    let port = free_port()?;
    let socket = UdpSocket::bind((LOOPBACK, port))?;
    let listener = TcpListener::bind((LOOPBACK, port))?;
    thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let (len, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(&answer(&buffer[..len]), from)?;
        }
    });
    thread::spawn(move || -> Result<()> {
        for client in listener.incoming() {
            let mut client = client?;
            // A length goes before each message (RFC 1035, 4.2.2).
            let mut len = [0; 2];
            client.read_exact(&mut len)?;
            let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
            client.read_exact(&mut question)?;
            let answer = answer(&question);
            client.write_all(&u16::try_from(answer.len())?.to_be_bytes())?;
            client.write_all(&answer)?;
        }
        Ok(())
    });
    Ok(port)
}

/// A question for an address, as printf(1) writes it.
fn question(name: &str) -> (usize, String) {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    (bytes.len(), bytes.iter().map(|byte| format!("\\{byte:03o}")).collect())
}

#[test]
fn names_are_looked_up_at_the_hosts_resolver() -> Result<()> {
    let port = resolver()?;
    let mut guest = guest(&format!("user,resolver=127.0.0.1:{port}"))?;
    let found = guest.sh("nslookup -type=a server.example.org")?;
    ensure!(found.contains("10.0.2.3:53") && found.contains("Address: 10.0.2.2\n"), "{found}");
    // As every program of the guest does it, by the name server that DHCP has named.
    let (server, results) = server(LOOPBACK, give_back)?;
    guest.sh(&format!("echo hello | nc server.example.org {server} | grep -q hello"))?;
    assert_eq!(next(&results)?, 6);

    // Too long for a datagram: an answer that says so, and has nothing in it.
    let found = guest.sh("nslookup -type=a long.example.org || true")?;
    ensure!(!found.contains("Address: 10.0.2.2\n"), "{found}");
    let (len, bytes) = question("long.example.org");
    guest.sh(&format!("printf '\\000\\{len:03o}{bytes}' | nc 10.0.2.3 53 > /tmp/answer"))?;
    let expected = 2 + len + 200 * 16;
    assert_eq!(guest.sh("wc -c < /tmp/answer")?.trim(), expected.to_string());
    let head = guest.sh("head -c 6 /tmp/answer | hexdump -v -e '1/1 \"%02x\"'")?;
    let head = head.trim().get(4..).context("no answer")?;
    assert_eq!(head, format!("1234{:02x}{:02x}", ANSWER[0], ANSWER[1]));
    end(guest)
}
