//! `restrict=on`: nothing of the guest's gets out but what is forwarded.

use std::net::{TcpListener, TcpStream, UdpSocket};

use anyhow::{Result, ensure};

use crate::datagrams::wait_at_port_5000;
use crate::host::{LOOPBACK, ask, datagram_socket, free_port, receive};
use crate::{end, fails, guest};

/// An address of this host that is not its loopback's, if it has one: it costs no packet to ask.
fn own_address() -> Result<Option<String>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let address = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()).ok();
    Ok(address.map(|address| address.ip().to_string()).filter(|ip| ip != "127.0.0.1"))
}

#[test]
fn restricted_guest_reaches_what_is_forwarded_and_nothing_else() -> Result<()> {
    // On all addresses, so that whatever got out would arrive.
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let datagrams = UdpSocket::bind(("0.0.0.0", listener.local_addr()?.port()))?;
    let port = listener.local_addr()?.port();
    let resolver = UdpSocket::bind((LOOPBACK, 0))?;
    let (tcp, udp) = (free_port()?, free_port()?);
    let mut guest = guest(&format!(
        "user,restrict=on,resolver={},hostfwd=tcp:127.0.0.1:{tcp}-:80,hostfwd=udp:127.0.0.1:{udp}-:5000,\
         guestfwd=tcp:10.0.2.100:80-cmd:echo hello",
        resolver.local_addr()?
    ))?;
    // DHCP has given an address, and neither a way out nor a name server.
    ensure!(guest.sh("ip -4 addr show dev eth0")?.contains("inet 10.0.2.15/24"));
    assert_eq!(guest.sh("ip -4 route show default; cat /etc/resolv.conf")?, "");

    // The guest tries all the same.
    guest.sh("ip route add default via 10.0.2.2")?;
    let outside = own_address()?.unwrap_or_else(|| "192.0.2.2".to_owned());
    for host in ["10.0.2.2", &outside] {
        fails(&mut guest, &format!("nc {host} {port} </dev/null"))?;
        fails(&mut guest, &format!("timeout 1 tftp -g -r x -l /tmp/not {host} {port}"))?;
    }
    fails(&mut guest, "nc 10.0.2.3 53 </dev/null")?;
    fails(&mut guest, "timeout 1 nslookup example.org 10.0.2.3")?;
    fails(&mut guest, &format!("ping -c 1 -W 1 {outside}"))?;
    for socket in [&datagrams, &resolver] {
        socket.set_nonblocking(true)?;
        ensure!(socket.recv_from(&mut [0; 64]).is_err(), "a datagram has got out");
    }
    listener.set_nonblocking(true)?;
    ensure!(listener.accept().is_err(), "a connection has got out");

    // What is forwarded works, both ways.
    assert_eq!(guest.sh("nc 10.0.2.100 80 </dev/null")?, "hello\n");
    guest.sh("(nc -l -p 80 -e cat) & until netstat -tln | grep -q ':80 '; do sleep 0.1; done")?;
    assert_eq!(ask(&TcpStream::connect((LOOPBACK, tcp))?, b"question")?, b"question");
    // A port of the guest's that is forwarded lets nothing out but answers.
    wait_at_port_5000(&mut guest, &format!("10.0.2.2 {port}"))?;
    let (client, _) = datagram_socket()?;
    client.send_to(b"\0\x03\0\x01data", (LOOPBACK, udp))?;
    assert_eq!(receive(&client)?.0, b"\0\x04\0\x01");
    guest.sh("wait")?;
    ensure!(datagrams.recv_from(&mut [0; 64]).is_err(), "a datagram has got out by a forwarded port");
    end(guest)
}
