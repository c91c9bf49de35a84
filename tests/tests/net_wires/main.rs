//! What network cards are wired to: a real `vde_switch`, a real `passt`, the host's kernel through a tap interface, and the switch
//! inside a process with two machines; with Linux in the guests, on the software CPU. The NAT and cards among themselves are in `net.rs`.

#[cfg(target_os = "linux")]
mod tap;

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hvrun_tests::bare::Program;
use hvrun_tests::process::{Supervised, need};
use hvrun_tests::vde::Switch;
use hvrun_tests::{Hvrun, Outcome, Running, artifacts};
use hvrun_vmm::serial::{ChardevConfig, StdioStreams};
use hvrun_vmm::virtio::net::{Net, NetConfig};
use hvrun_vmm::{Accel, MachineBuilder, MachineConfig, RunningMachine};
use rustix::process::Signal;
use tempfile::TempDir;

/// Bytes of a file that goes over a network: enough for many large segments.
const FILE: usize = 256 << 10;
/// Longer than anything here takes on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A guest that takes commands.
trait Shell {
    /// Runs a command and returns its output; an error if it fails.
    fn sh(&mut self, command: &str) -> Result<String>;

    /// Waits until `eth0` has a carrier (or none), which it can tell only while it is up.
    fn carrier(&mut self, wanted: bool) -> Result<()> {
        let wanted = u8::from(wanted);
        let command = format!("until [ $(cat /sys/class/net/eth0/carrier) = {wanted} ]; do sleep 0.1; done");
        self.sh(&command).map(drop)
    }

    fn address(&mut self, address: &str) -> Result<()> {
        self.sh(&format!("ip link set eth0 up && ip addr add {address}/24 dev eth0")).map(drop)
    }

    fn ping(&mut self, arguments: &str) -> Result<()> {
        self.sh(&format!("ping -c 2 -W 20 {arguments} >/dev/null")).map(drop)
    }
}

impl Shell for Running {
    fn sh(&mut self, command: &str) -> Result<String> {
        Running::sh(self, command)
    }
}

/// What a path is called on the command line.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

fn start(net: &str) -> Result<Running> {
    let mut guest = Hvrun::virtio_linux(1)?.limit(LIMIT).args(["--net", net]).start()?;
    guest.ready()?;
    Ok(guest)
}

/// A guest with a card on `net`, which has the address `address`.
fn guest(net: &str, address: &str) -> Result<Running> {
    let mut guest = start(net)?;
    guest.address(address)?;
    Ok(guest)
}

/// Sends a file of random bytes over TCP to the guest at `address`. (Either end of busybox' nc leaves when the other one says that it
/// has no more to send, so the receiver's input is a pipe that never ends.)
fn send_file(from: &mut impl Shell, to: &mut impl Shell, address: &str) -> Result<()> {
    to.sh("rm -f /tmp/got /tmp/all /tmp/in; mkfifo /tmp/in; (nc -l -p 80 <> /tmp/in > /tmp/got; touch /tmp/all) & until grep -q ':0050 .* 0A ' /proc/net/tcp*; do sleep 0.1; done")?;
    from.sh(&format!("head -c {FILE} /dev/urandom > /tmp/file; nc {address} 80 < /tmp/file"))?;
    let sent = from.sh("sha256sum < /tmp/file")?;
    let got = to.sh("until [ -e /tmp/all ]; do sleep 0.1; done; sha256sum < /tmp/got")?;
    ensure!(sent == got, "the file was changed on its way: {sent} {got}");
    Ok(())
}

/// The machine has ended by itself, without a panic; says how many lines of its log have all of `words`.
fn lines(outcome: &Outcome, words: &[&str]) -> usize {
    assert_eq!(outcome.code, Some(0), "signal {:?}: {}", outcome.signal, outcome.stderr);
    outcome.stderr.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// Reads a record of traffic with tcpdump; says what it prints for the frames that `filter` is true of.
fn tcpdump(record: &Path, filter: &str) -> Result<String> {
    // By its standard input, because it may give up its privileges before it opens a file.
    let output = Command::new(need("tcpdump", "tcpdump")?)
        .args(["-n", "-e", "-r", "-", filter])
        .stdin(File::open(record)?)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tcpdump cannot read {}: {errors}", record.display());
    ensure!(!errors.contains("truncated"), "the record ends within a frame: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A server on the host: it takes the text of every first connection, and sends it on every second one. (One connection for both would
/// have to be half closed in between, which not every `passt` passes on.)
struct Server {
    port: u16,
    /// Whether what came was the text.
    verdicts: Receiver<bool>,
}

impl Server {
    fn start(address: &str) -> Result<Server> {
        let listener = TcpListener::bind((address, 0))?;
        let port = listener.local_addr()?.port();
        let (sender, verdicts) = channel();
        thread::spawn(move || {
            // What `seq 40000` prints: no part of it is like another.
            let text: String = (1..=40_000).map(|n| format!("{n}\n")).collect();
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(mut stream) = stream else { return };
                if number % 2 == 1 {
                    // A guest that gets less says so itself.
                    let _ = stream.write_all(text.as_bytes());
                    continue;
                }
                let mut got = Vec::new();
                let verdict = stream.read_to_end(&mut got).is_ok() && got == text.as_bytes();
                if sender.send(verdict).is_err() {
                    return;
                }
            }
        });
        Ok(Server { port, verdicts })
    }

    /// A guest that reaches the host at `address` sends it the text, and gets it.
    fn check(&self, guest: &mut impl Shell, address: &str) -> Result<()> {
        let port = self.port;
        guest.sh(&format!("seq 40000 > /tmp/file; nc {address} {port} < /tmp/file"))?;
        ensure!(self.verdicts.recv_timeout(LIMIT)?, "the host has got something else");
        let get = format!("nc {address} {port} <> /tmp/in > /tmp/back; cmp /tmp/file /tmp/back");
        guest.sh(&format!("rm -f /tmp/in; mkfifo /tmp/in; {get}")).map(drop)
    }
}

// VDE.

#[test]
fn guests_on_a_vde_switch_reach_each_other_with_and_without_tags_and_a_killed_one_leaves_its_port()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    let (sock, record) = (dir.path().join("s"), dir.path().join("net.pcap"));
    // Port 0 is none, so there are two.
    let mut switch = Switch::start(&sock, &["--numports", "3"])?;
    let sock = text(&sock)?;
    let mut one = guest(&format!("vde:{sock},dump={}", text(&record)?), "192.168.9.1")?;
    let second = format!("vde:{sock},port=2,mac=52:54:00:12:34:57");
    let mut two = guest(&second, "192.168.9.2")?;
    two.ping("192.168.9.1")?;
    send_file(&mut one, &mut two, "192.168.9.2")?;
    send_file(&mut two, &mut one, "192.168.9.1")?;

    // The largest packet, in a frame of 1518 bytes with its tag. The switch carries the VLANs that it was told of.
    for command in ["vlan/create 5", "vlan/addport 5 1", "vlan/addport 5 2"] {
        switch.ask(command)?;
    }
    let tagged = "modprobe 8021q && ip link add link eth0 name eth0.5 type vlan id 5 && ip link set eth0.5 up && ip addr add dev eth0.5";
    Shell::sh(&mut one, &format!("{tagged} 192.168.5.1/24"))?;
    Shell::sh(&mut two, &format!("{tagged} 192.168.5.2/24"))?;
    two.ping("-s 1472 192.168.5.1")?;

    two.signal(Signal::KILL)?;
    assert_eq!(two.wait()?.signal, Some(9));
    let mut third = guest(&second, "192.168.9.3")?;
    let port = switch.ask("port/print 2")?;
    ensure!(port.contains("hvrun"), "another port: {port}");
    third.ping("192.168.9.1")?;
    for guest in [third, one] {
        assert_eq!(lines(&guest.poweroff()?, &[" is gone"]), 0);
    }
    let frames = tcpdump(&record, "vlan 5 and icmp")?;
    // Two questions and two answers, each in one frame.
    assert_eq!(frames.lines().filter(|line| line.contains("length 1518")).count(), 4, "{frames}");
    Ok(())
}

#[test]
fn guests_on_a_vde_hub_lose_their_link_with_it_and_find_it_again() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sock = dir.path().join("s");
    let hub = Switch::start(&sock, &["--hub"])?;
    let net = format!("vde:{}", text(&sock)?);
    let mut one = guest(&net, "192.168.9.1")?;
    let mut two = guest(&format!("{net},mac=52:54:00:12:34:57"), "192.168.9.2")?;
    one.carrier(true)?;
    two.ping("192.168.9.1")?;
    send_file(&mut one, &mut two, "192.168.9.2")?;

    drop(hub);
    one.carrier(false)?;
    two.carrier(false)?;
    let _hub = Switch::start(&sock, &["--hub"])?;
    one.carrier(true)?;
    two.carrier(true)?;
    two.ping("192.168.9.1")?;
    for guest in [one, two] {
        let outcome = guest.poweroff()?;
        assert_eq!(lines(&outcome, &["net0", "the VDE switch at", "is gone"]), 1, "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
    Ok(())
}

// passt.

/// A directory that everybody may write to: `passt` leaves root for "nobody".
fn public_dir() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
    Ok(dir)
}

/// Starts `passt`, the router 10.0.2.2 of the host, on the socket `path`, and waits until it listens.
fn passt(path: &Path) -> Result<Supervised> {
    let log = path.with_extension("log");
    let mut command = Command::new(need("passt", "passt")?);
    command
        .args(["--foreground", "--socket"])
        .arg(path)
        .args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"])
        // The loopback interface, so that it also runs where there is no network.
        .args(["--mac-addr", "52:55:0a:00:02:02", "--ipv4-only", "--interface", "lo"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?);
    let (process, mut child) = Supervised::spawn(&mut command, LIMIT)?;
    // It serves one peer at a time, so connecting to find out would be one too many.
    let table = || fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let listening = |line: &str| line.contains("00010000") && line.ends_with(path.to_str().unwrap_or("?"));
    while !table().lines().any(listening) {
        if let Some(status) = child.try_wait()? {
            bail!("passt does not run here ({status}): {}", fs::read_to_string(&log)?);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}

#[test]
fn a_guest_behind_passt_gets_an_address_and_connections_and_survives_its_restart() -> Result<()> {
    let dir = public_dir()?;
    let path = dir.path().join("passt.sock");
    let server = Server::start("127.0.0.1")?;
    let router = passt(&path)?;
    let mut guest = start(&format!("socket:stream,path={},reconnect=1", text(&path)?))?;
    guest.sh("printf '#!/bin/sh\\n[ $1 = bound ] && ip addr flush dev $interface && ip addr add $ip/$mask dev $interface && ip route add default via $router\\n' > /tmp/bound; chmod +x /tmp/bound; ip link set eth0 up")?;
    let dhcp = "udhcpc -i eth0 -s /tmp/bound -n -q -t 20 -T 1 >/dev/null 2>&1; ip addr show dev eth0";
    let address = guest.sh(dhcp)?;
    ensure!(address.contains("10.0.2.15/24"), "no address: {address}");
    server.check(&mut guest, "10.0.2.2")?;

    drop(router);
    guest.carrier(false)?;
    guest.sh("ip addr flush dev eth0")?;
    let _router = passt(&path)?;
    guest.carrier(true)?;
    let address = guest.sh(dhcp)?;
    ensure!(address.contains("10.0.2.15/24"), "no address from the next one: {address}");
    server.check(&mut guest, "10.0.2.2")?;
    let outcome = guest.poweroff()?;
    assert_eq!(lines(&outcome, &["passt.sock", "the guest's link is down"]), 1, "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    Ok(())
}

#[test]
fn a_guest_whose_peer_goes_for_good_loses_its_link_and_lives() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("net.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    let mut guest = guest(&format!("socket:stream,path={}", text(&path)?), "192.168.9.1")?;
    let (peer, _) = listener.accept()?;
    guest.carrier(true)?;
    drop((peer, listener));
    guest.carrier(false)?;
    guest.sh("ping -c 2 -W 1 192.168.9.2 >/dev/null 2>&1 || true")?;
    let outcome = guest.poweroff()?;
    assert_eq!(
        lines(&outcome, &["net0", "net.sock", "gone", "closed the connection"]),
        1,
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    Ok(())
}

// The switch of a process, and the library.

/// A machine of this process that runs Linux, and the test's end of its serial port.
struct Embedded {
    /// First, so that it is stopped before the rest goes.
    running: Option<RunningMachine>,
    net: Arc<Net>,
    input: PipeWriter,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    deadline: Instant,
}

impl Embedded {
    fn start(net: &str) -> Result<Embedded> {
        let mut config = MachineConfig::new(artifacts::kernel()?);
        config.initrd = Some(artifacts::virtio_initrd()?);
        config.memory = "256M".parse()?;
        config.cmdline = hvrun_tests::VIRTIO_COMMAND_LINE.to_owned();
        config.accel = vec![Accel::Soft];
        config.serial = ChardevConfig::Stdio;
        config.nets.push(net.parse::<NetConfig>()?);
        let (guest_input, input): (PipeReader, PipeWriter) = std::io::pipe()?;
        let (mut output, guest_output) = std::io::pipe()?;
        let streams = StdioStreams {
            input: Some(OwnedFd::from(guest_input)),
            output: OwnedFd::from(guest_output),
            filter: None,
        };
        let machine = MachineBuilder::new(config).stdio(streams).build()?;
        let net = machine.control().net("net0").context("it has no network card")?;
        let (sender, output_chunks) = channel();
        thread::spawn(move || {
            let mut chunk = vec![0; 4096];
            while let Ok(count @ 1..) = output.read(&mut chunk) {
                if sender.send(chunk[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let running = Some(machine.start()?);
        let deadline = Instant::now() + LIMIT;
        Ok(Embedded { running, net, input, output: output_chunks, seen: Vec::new(), deadline })
    }

    /// Waits for `marker` and returns what came before.
    fn expect(&mut self, marker: &str) -> Result<String> {
        let find = |seen: &[u8]| seen.windows(marker.len()).position(|part| part == marker.as_bytes());
        loop {
            if let Some(at) = find(&self.seen) {
                let before = String::from_utf8_lossy(&self.seen[..at]).into_owned();
                self.seen.drain(..at + marker.len());
                return Ok(before);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(error) => {
                    bail!("no '{marker}' ({error}); there was: {}", String::from_utf8_lossy(&self.seen))
                }
            }
        }
    }

    fn poweroff(mut self) -> Result<()> {
        self.input.write_all(b"poweroff\n")?;
        self.expect("reboot: Power down").ok();
        let running = self.running.take().context("it has ended")?;
        assert_eq!(running.wait()?, hvrun_vmm::Outcome::PoweredOff);
        Ok(())
    }
}

impl Shell for Embedded {
    fn sh(&mut self, command: &str) -> Result<String> {
        self.input.write_all(format!("{command}\n").as_bytes())?;
        let output = self.expect("HVRUN-DONE:")?;
        let status = self.expect("\n")?;
        ensure!(status == "0", "'{command}' ended with {status}: {output}");
        Ok(output)
    }
}

#[test]
fn two_machines_of_a_process_share_a_switch_and_their_program_pulls_cables_and_counts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let record = dir.path().join("net.pcap");
    let mut one = Embedded::start(&format!("switch:lan,dump={}", text(&record)?))?;
    let mut two = Embedded::start("switch:lan,mac=52:54:00:12:34:57")?;
    for (machine, address) in [(&mut one, "192.168.9.1"), (&mut two, "192.168.9.2")] {
        machine.expect("HVRUN-READY\n")?;
        machine.address(address)?;
    }
    two.ping("192.168.9.1")?;
    send_file(&mut one, &mut two, "192.168.9.2")?;
    let (sent, got) = (one.net.counters(), two.net.counters());
    ensure!(sent.tx_bytes > FILE as u64 && got.rx_bytes > FILE as u64, "{sent:?} {got:?}");
    assert_eq!((sent.tx_malformed, got.rx_dropped), (0, 0));

    // Its own cable out: no frame reaches the guest, and the other one keeps its link.
    two.net.set_link(false);
    two.carrier(false)?;
    one.carrier(true)?;
    ensure!(
        one.ping("-W 1 192.168.9.2").is_err() && !two.net.link(),
        "there is a connection without a cable"
    );
    let cut = two.net.counters();
    ensure!(cut.rx_dropped > 0, "{cut:?}");
    assert_eq!(cut.rx_frames, two.net.counters().rx_frames);
    two.net.set_link(true);
    two.carrier(true)?;
    one.ping("192.168.9.2")?;
    send_file(&mut two, &mut one, "192.168.9.1")?;
    one.poweroff()?;
    two.poweroff()?;
    let frames = tcpdump(&record, "icmp and src 192.168.9.2")?;
    ensure!(frames.contains("ICMP echo request") && frames.contains("ICMP echo reply"), "{frames}");
    Ok(())
}

// What is wrong before the first instruction.

/// hvrun refuses a machine with these options: nothing ran, and the message is one line with all of `words`.
fn refused(options: &[&str], words: &[&str]) -> Result<()> {
    let (_dir, kernel) = Program::new().print("RAN\n").power_off().file()?;
    let outcome = Hvrun::kernel(&kernel).args(options).run()?;
    ensure!(outcome.code == Some(1), "code {:?}: {}", outcome.code, outcome.stderr);
    ensure!(outcome.serial.is_empty(), "it ran: {}", outcome.serial);
    for word in words {
        ensure!(outcome.stderr.contains(word), "'{word}' is not in: {}", outcome.stderr);
    }
    ensure!(outcome.stderr.lines().count() == 1, "more than one line: {}", outcome.stderr);
    Ok(())
}

/// A command line that is wrong, with the words that its message has.
fn usage(net: &str, words: &[&str]) -> Result<()> {
    let outcome = Hvrun::new().args(["--net", net, "Image"]).run()?;
    ensure!(outcome.code == Some(2), "code {:?}: {}", outcome.code, outcome.stderr);
    for word in words {
        ensure!(outcome.stderr.contains(word), "'{word}' is not in: {}", outcome.stderr);
    }
    Ok(())
}

#[test]
fn vde_directory_that_is_missing_is_named_with_what_starts_a_switch() -> Result<()> {
    let words = ["net0", "/nonexistent/vde", "cannot be found", "vde_switch --sock"];
    refused(&["--net", "vde:/nonexistent/vde"], &words)
}

#[test]
fn vde_directory_without_a_switch_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = text(dir.path())?;
    refused(
        &["--net", &format!("vde:{path},id=lan")],
        &["lan", path, "no VDE switch is running", "vde_switch"],
    )
}

#[test]
fn vde_port_that_is_taken_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sock = dir.path().join("s");
    let _switch = Switch::start(&sock, &["--numports", "2"])?;
    let net = format!("vde:{}", text(&sock)?);
    refused(&["--net", &net, "--net", &net], &["net1", "gives no port", text(&sock)?])
}

#[test]
fn socket_without_a_listener_is_named_with_what_to_do() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("net.sock");
    let net = format!("socket:stream,path={}", text(&path)?);
    refused(&["--net", &net], &["net0", text(&path)?, "start the peer first", "reconnect=1"])?;
    // One that a dead process has left is as good as none.
    drop(std::os::unix::net::UnixListener::bind(&path)?);
    ensure!(UnixStream::connect(&path).is_err());
    refused(&["--net", &net], &["net0", text(&path)?, "start the peer first"])
}

#[test]
fn socket_to_listen_on_that_another_program_has_is_named_and_left_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("net.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path)?;
    refused(
        &["--net", &format!("socket:stream,path={},server", text(&path)?)],
        &["net0", text(&path)?, "another process uses it"],
    )?;
    ensure!(path.exists(), "the socket of another program was removed");
    Ok(())
}

#[test]
fn tap_interface_that_cannot_be_is_named() -> Result<()> {
    refused(&["--net", "tap:a/b"], &["net0", "\"a/b\"", "1 to 15 bytes"])?;
    refused(&["--net", "tap:sixteen-bytes-xx"], &["net0", "sixteen-bytes-xx", "1 to 15 bytes"])
}

#[test]
fn network_that_is_unknown_is_quoted_with_the_known_ones() -> Result<()> {
    usage("swich:lan", &["--net", "\"swich:lan\" is not a network", "switch:NAME", "vde:DIR", "tap:NAME"])?;
    usage("switch", &["switch needs to know where: switch:NAME"])?;
    usage("switch:", &["--net", "the switch's name"])?;
    usage("switch:lan,port=3", &["--net", "\"port\""])
}

#[test]
fn switch_of_a_process_is_in_the_description_of_a_machine() -> Result<()> {
    let outcome = Hvrun::new().args(["--net", "switch:lan,id=eth", "--print-config", "Image"]).run()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let config: MachineConfig = serde_json::from_str(&outcome.serial)?;
    assert_eq!(config.nets, ["switch:lan,id=eth".parse::<NetConfig>()?]);
    Ok(())
}
