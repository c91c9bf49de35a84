//! A thousand connections at a time, from a process that begins with few descriptors.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::host::{LOOPBACK, free_port};
use crate::{DHCP, PATIENCE, end, hvrun};

/// Connections that each side opens: half of a thousand.
const HALF: usize = 500;

#[test]
fn thousand_connections_live_at_a_time_whatever_the_limit_of_descriptors_was() -> Result<()> {
    // This process has the other end of each.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let listener = TcpListener::bind((LOOPBACK, 0))?;
    let server = listener.local_addr()?.port();
    let forwarded = free_port()?;
    let net = format!("user,hostfwd=tcp:127.0.0.1:{forwarded}-:80");
    let mut guest = hvrun(&net)?.descriptor_limit(256).start()?;
    guest.ready()?;
    guest.sh(DHCP)?;

    let clients = thread::spawn(move || -> Result<Vec<TcpStream>> {
        let clients = listener.incoming().take(HALF);
        clients.map(|client| client.context("no client of the guest's")).collect()
    });
    // Their input is a pipe that never ends. `-lll...` is how busybox' nc is told how many may wait to be served.
    guest.sh("mkfifo /tmp/never && exec 9<>/tmp/never")?;
    guest.sh(&format!("for i in $(seq {HALF}); do nc 10.0.2.2 {server} </tmp/never >/tmp/from.$i & done"))?;
    let mut clients = clients.join().ok().context("the server panicked")??;
    guest.sh(&format!(
        "nc -{} -p 80 -e cat & until netstat -tln | grep -q ':80 '; do sleep 0.1; done",
        "l".repeat(HALF)
    ))?;
    let mut served = Vec::new();
    for _ in 0..HALF {
        let stream = TcpStream::connect((LOOPBACK, forwarded))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        served.push(stream);
    }
    // Every one of them carries bytes while all are there.
    for (number, stream) in served.iter_mut().enumerate() {
        writeln!(stream, "served {number:04}")?;
    }
    for (number, stream) in served.iter_mut().enumerate() {
        let mut line = [0; 12];
        stream.read_exact(&mut line).with_context(|| format!("connection {number} to the guest"))?;
        ensure!(
            line == format!("served {number:04}\n").as_bytes(),
            "connection {number} got another's bytes"
        );
    }
    let established = guest.sh("grep -c ' 01 ' /proc/net/tcp6; grep -c ' 01 ' /proc/net/tcp")?;
    let counts: Vec<usize> = established.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(counts.iter().sum::<usize>() >= 2 * HALF, "the guest knows of {established}");
    for client in &mut clients {
        client.write_all(b"hello\n")?;
    }
    drop(clients);
    guest.sh(&format!("until [ $(cat /tmp/from.* | grep -c hello) = {HALF} ]; do sleep 0.1; done"))?;
    end(guest)
}
