//! TCP: from the guest to the host, from the host to the guest, and to what stands behind an address of the guest's network.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread;

use anyhow::{Context, Result, ensure};
use hvrun_tests::Running;

use crate::host::{LOOPBACK, ask, free_port, give_back, next, pattern, server};
use crate::{AUTOCONFIGURED, FILE, GUEST6, PATIENCE, end, fails, guest, make_file, text};

/// The guest sends its file to `server`, ends its side, and gets all of it back.
fn round_trip(guest: &mut Running, server: &str) -> Result<()> {
    guest
        .sh(&format!("rm -f /tmp/back; nc {server} < /tmp/file > /tmp/back && cmp /tmp/file /tmp/back"))
        .map(drop)
}

/// For a server: sends `bytes` and no more, and gets what the guest sends from then on.
fn send_first(client: &TcpStream, bytes: &[u8]) -> Result<Vec<u8>> {
    ask(client, bytes)
}

#[test]
fn connections_to_the_router_reach_the_host_and_either_side_may_end_first() -> Result<()> {
    let mut guest = guest("user")?;
    make_file(&mut guest)?;
    let (port, results) = server(LOOPBACK, give_back)?;
    round_trip(&mut guest, &format!("10.0.2.2 {port}"))?;
    assert_eq!(next(&results)?, FILE);

    let file = pattern(FILE);
    let sent = file.clone();
    let (port, results) = server(LOOPBACK, move |client| send_first(&client, &sent))?;
    guest.sh(&format!("nc 10.0.2.2 {port} -e sh -c 'cat > /tmp/first; cat /tmp/first'"))?;
    ensure!(next(&results)? == file, "what the guest sent after the host's end is not what it got before");

    let (port, results) = server(Ipv6Addr::LOCALHOST.into(), give_back)?;
    guest.sh(AUTOCONFIGURED)?;
    round_trip(&mut guest, &format!("fec0::2 {port}"))?;
    assert_eq!(next(&results)?, FILE);

    // Nobody listens there.
    let port = free_port()?;
    ensure!(fails(&mut guest, &format!("nc 10.0.2.2 {port}"))?.contains("refused"));
    ensure!(fails(&mut guest, &format!("nc fec0::2 {port}"))?.contains("refused"));
    end(guest)
}

#[test]
fn forwarded_ports_of_the_host_lead_to_the_guest() -> Result<()> {
    let (four, six) = (free_port()?, free_port()?);
    let forwards = format!("hostfwd=tcp:127.0.0.1:{four}-:80,hostfwd=tcp:[::1]:{six}-[{GUEST6}]:80");
    let mut guest = guest(&format!("user,{forwards}"))?;
    guest.sh(AUTOCONFIGURED)?;
    // Nobody listens there yet.
    let mut early = TcpStream::connect((LOOPBACK, four))?;
    early.set_read_timeout(Some(PATIENCE))?;
    ensure!(early.read(&mut [0]).is_err(), "a connection that the guest has refused was not reset");

    guest.sh("(nc -ll -p 80 -e sh -c 'f=/tmp/in.$$; cat > $f; cat $f') & until netstat -tln | grep -q ':80 '; do sleep 0.1; done")?;
    let file = pattern(FILE);
    let answer = ask(&TcpStream::connect((LOOPBACK, four))?, &file)?;
    ensure!(answer == file, "by IPv4: {} bytes came back", answer.len());
    let answer = ask(&TcpStream::connect((Ipv6Addr::LOCALHOST, six))?, &file)?;
    ensure!(answer == file, "by IPv6: {} bytes came back", answer.len());
    end(guest)
}

#[test]
fn addresses_of_the_guests_network_lead_to_commands_servers_and_unix_sockets() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");
    let unix = UnixListener::bind(&path)?;
    let (port, results) = server(LOOPBACK, give_back)?;
    let mut guest = guest(&format!(
        "user,guestfwd=tcp:10.0.2.100:1-cmd:cat,guestfwd=tcp:10.0.2.100:2-tcp:127.0.0.1:{port},guestfwd=tcp:10.0.2.101:1-unix:{},\
         guestfwd=tcp:10.0.2.102:1-cmd:echo $((6 * 7)),, and no more,guestfwd=tcp:10.0.2.102:2-unix:/nonexistent",
        text(&path)?
    ))?;
    make_file(&mut guest)?;
    round_trip(&mut guest, "10.0.2.100 1")?;
    round_trip(&mut guest, "10.0.2.100 2")?;
    assert_eq!(next(&results)?, FILE);

    let client = thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = unix.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        stream.write_all(&bytes)?;
        stream.shutdown(Shutdown::Both)?;
        Ok(bytes.len())
    });
    round_trip(&mut guest, "10.0.2.101 1")?;
    assert_eq!(client.join().ok().context("the server panicked")??, FILE);

    assert_eq!(guest.sh("nc 10.0.2.102 1 </dev/null")?, "42, and no more\n");
    // Neither a port nobody forwards nor a target that is not there.
    fails(&mut guest, "nc 10.0.2.102 9 </dev/null")?;
    fails(&mut guest, "nc 10.0.2.102 2 </dev/null")?;
    end(guest)
}
