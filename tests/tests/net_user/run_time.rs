//! Forwardings that come and go while the machine runs, through the library.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, ensure};
use hvrun_tests::artifacts;
use hvrun_tests::socket::Socket;
use hvrun_vmm::net::user::{HostForward, Protocol};
use hvrun_vmm::serial::{ChardevConfig, StdioStreams};
use hvrun_vmm::{Accel, MachineBuilder, MachineConfig, RunningMachine};

use crate::host::{LOOPBACK, ask, datagram_socket, receive};
use crate::{DHCP, GUEST_LIMIT};

/// A machine of this process, and its serial port.
struct Guest {
    /// First, so that it has ended before its serial port goes.
    machine: RunningMachine,
    serial: Socket,
}

impl Guest {
    fn boot(net: &str) -> Result<Guest> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("serial");
        let listener = UnixListener::bind(&path)?;
        let near = UnixStream::connect(&path)?;
        let serial = Socket::accept(&listener, GUEST_LIMIT)?;
        let streams = StdioStreams {
            input: Some(OwnedFd::from(near.try_clone()?)),
            output: OwnedFd::from(near),
            filter: None,
        };
        let mut config = MachineConfig::new(artifacts::kernel()?);
        config.initrd = Some(artifacts::virtio_initrd()?);
        config.memory = "512M".parse()?;
        config.cmdline = hvrun_tests::VIRTIO_COMMAND_LINE.to_owned();
        config.accel = vec![Accel::Soft];
        config.nets = vec![net.parse()?];
        config.serial = ChardevConfig::Stdio;
        let machine = MachineBuilder::new(config).stdio(streams).build()?.start()?;
        let mut guest = Guest { machine, serial };
        guest.serial.expect("HVRUN-READY\n")?;
        Ok(guest)
    }

    fn sh(&mut self, command: &str) -> Result<String> {
        self.serial.send(format!("{command}\n").as_bytes())?;
        let output = self.serial.expect("HVRUN-DONE:")?;
        let status = self.serial.expect("\n")?;
        ensure!(status == "0", "'{command}' ended with {status}: {output}");
        Ok(output)
    }
}

#[test]
fn forwardings_come_and_go_while_the_machine_runs() -> Result<()> {
    let mut guest = Guest::boot("user,id=lan")?;
    guest.sh(DHCP)?;
    guest.sh("(nc -ll -p 80 -e cat) & until netstat -tln | grep -q ':80 '; do sleep 0.1; done")?;
    let card = guest.machine.control().net("lan").context("there is no card")?;
    let network = card.user().context("it has no NAT")?;
    assert_eq!(network.hostfwds(), []);

    // A free port, which stays the same from here on.
    let added = network.add_hostfwd(&"tcp:127.0.0.1:0-:80".parse()?)?;
    let kept = TcpStream::connect(added)?;
    assert_eq!(ask(&TcpStream::connect(added)?, b"once")?, b"once");
    let same: HostForward = format!("tcp:{added}-:80").parse()?;
    ensure!(network.add_hostfwd(&same).is_err(), "the same port was forwarded twice");

    network.remove_hostfwd(Protocol::Tcp, added)?;
    ensure!(network.remove_hostfwd(Protocol::Tcp, added).is_err(), "it was removed twice");
    // At once, though it is another thread that closes it.
    assert_eq!(network.add_hostfwd(&same)?, added);
    assert_eq!(ask(&TcpStream::connect(added)?, b"again")?, b"again");
    assert_eq!(ask(&kept, b"still")?, b"still");
    assert_eq!(network.hostfwds(), [same]);

    let added = network.add_hostfwd(&"udp:127.0.0.1:0-:5000".parse()?)?;
    guest.sh("echo 5000 5000 > /proc/sys/net/ipv4/ip_local_port_range")?;
    guest
        .sh("tftp -g -r x -l /tmp/x 10.0.2.2 9 & until grep -q ':1388 ' /proc/net/udp; do sleep 0.1; done")?;
    let (client, _) = datagram_socket()?;
    client.send_to(b"\0\x03\0\x01data", SocketAddr::new(LOOPBACK, added.port()))?;
    assert_eq!(receive(&client)?, (b"\0\x04\0\x01".to_vec(), added));
    network.remove_hostfwd(Protocol::Udp, added)?;
    assert_eq!(network.hostfwds(), [same]);
    Ok(())
}
