//! `cargo xtask bench net`: iperf3 and small exchanges over a guest's network card: to the host through the NAT, beside QEMU's; between two
//! guests on a VDE switch; and the NAT without a guest.

use super::QEMU;
use super::options::{Options, Side};
use super::virtio::{self, Bench, Report, Rows, Tool};
use crate::{test, workspace};
use anyhow::{Context, Result, ensure};
use hvrun_tests::probe;
use hvrun_tests::process::Supervised;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the guest runs.
pub const SCRIPT: &str = include_str!("../../guest/bench-net");
/// What it runs it with.
pub const TOOLS: &[Tool] = &[Tool::Iperf3, Tool::Probe];
const ROUNDS: usize = 3;
/// Measures, and the Debian package that has it.
const IPERF3: (&str, &str) = ("iperf3", "iperf3");
/// The switch between two guests, and the Debian package that has it.
const VDE_SWITCH: (&str, &str) = ("vde_switch", "vde2");
/// How long something beside the measured guest may live.
const LIMIT: Duration = Duration::from_secs(900);
/// How long a program may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The rates that the script reports.
pub const ROWS: &Rows = &[
    ("tcp_up_1", "TCP from the guest, Mbit/s"),
    ("tcp_up_4", "TCP from the guest, 4 streams, Mbit/s"),
    ("tcp_down_1", "TCP to the guest, Mbit/s"),
    ("tcp_down_4", "TCP to the guest, 4 streams, Mbit/s"),
    ("udp_up", "UDP of 1400 from the guest, Mbit/s"),
    ("udp_down", "UDP of 1400 to the guest, Mbit/s"),
    ("exchanges", "exchanges of 1 byte, /s"),
    ("connections", "connections, /s"),
];

/// What it counts, where less is better.
pub const COUNTS: &Rows = &[
    ("lost_up", "UDP at a calm rate from it, lost, %"),
    ("lost_down", "UDP at a calm rate to it, lost, %"),
    ("frames_up", "frames a MiB, TCP from the guest"),
    ("frames_down", "frames a MiB, TCP to the guest"),
    ("interrupts_up", "interrupts a MiB, TCP from the guest"),
    ("interrupts_down", "interrupts a MiB, TCP to the guest"),
    ("doorbells_up", "doorbells a MiB, TCP from the guest"),
    ("doorbells_down", "doorbells a MiB, TCP to the guest"),
];

/// Where a guest is, and where what serves it is.
struct Place {
    guest: &'static str,
    server: Option<&'static str>,
    mac: &'static str,
}

/// Behind the NAT, whose router is the host.
const BEHIND_NAT: Place = Place { guest: "10.0.2.15", server: Some("10.0.2.2"), mac: "52:54:00:12:34:56" };
/// On a switch.
const SERVER: Place = Place { guest: "192.168.9.1", server: None, mac: "52:54:00:12:34:56" };
const CLIENT: Place = Place { guest: "192.168.9.2", server: Some(SERVER.guest), mac: "52:54:00:12:34:57" };

impl Place {
    /// What the kernel's command line tells the script.
    fn append(&self) -> String {
        let server = self.server.map(|server| format!(" net_server={server}")).unwrap_or_default();
        format!("net_address={}{server}", self.guest)
    }
}

/// `cargo xtask bench net`.
pub fn command(options: &Options) -> Result<()> {
    if options.host {
        return host();
    }
    let network = options.network.as_deref();
    test::install_debian_packages(&[QEMU, IPERF3, VDE_SWITCH])?;
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let servers = Servers::start()?;
    let settings = settings(&servers, options.quick);
    let bench = Bench::prepare(options, 1, SCRIPT, &settings, TOOLS, dir.path())?;
    let rounds = options.rounds(ROUNDS);
    let about = |what: &str| {
        println!("{what}, {} CPU(s), {rounds} rounds in turn, median (smallest to largest)\n", bench.cpus());
    };
    if network != Some("vde") {
        about("To the host through the NAT");
        print(&measure(options, rounds, &|side| {
            let mut command = bench.command(side, &BEHIND_NAT.append())?;
            match side {
                Side::Hvrun => command.args(["--net", "user"]),
                Side::Qemu => card(&mut command, "user", BEHIND_NAT.mac),
            };
            virtio::run(&mut command)
        })?);
    }
    if network != Some("user") {
        about("Between two guests on a VDE switch");
        print(&measure(options, rounds, &|side| pair(&bench, side))?);
    }
    Ok(())
}

/// The script's settings: where the servers are, and how long each measurement takes.
fn settings(servers: &Servers, quick: bool) -> String {
    let (seconds, warm_up) = if quick { (1, 0) } else { (3, 1) };
    script_settings(servers.iperf, servers.probe, seconds, warm_up, "20M")
}

/// The script's settings: the ports of the servers, how long each measurement takes, and a rate of which every side is capable.
pub fn script_settings(iperf: u16, probe: u16, seconds: u32, warm_up: u32, calm: &str) -> String {
    format!("IPERF={iperf}\nPROBE={probe}\nSECONDS_EACH={seconds}\nWARM_UP={warm_up}\nCALM={calm}\n")
}

/// A table of rates, and one of what there should be little of.
fn print(measured: &[(Side, Vec<Report>)]) {
    virtio::print(ROWS, measured);
    println!("of these the fewer, the better:");
    virtio::print(COUNTS, measured);
}

/// `rounds` rounds, the sides in turn.
fn measure(
    options: &Options,
    rounds: usize,
    run: &dyn Fn(Side) -> Result<Report>,
) -> Result<Vec<(Side, Vec<Report>)>> {
    let sides = options.sides();
    let mut measured: Vec<(Side, Vec<Report>)> = sides.iter().map(|side| (*side, Vec::new())).collect();
    for round in 1..=rounds {
        for (side, reports) in &mut measured {
            eprintln!("round {round} of {rounds}: {}", side.name());
            reports.push(run(*side)?);
        }
    }
    Ok(measured)
}

/// QEMU's card; without the program for booting over it, for which there need not be a file.
fn card<'c>(command: &'c mut Command, netdev: &str, mac: &str) -> &'c mut Command {
    command.arg("-netdev").arg(format!("{netdev},id=n0"));
    command.arg("-device").arg(format!("virtio-net-pci,netdev=n0,mac={mac},romfile="))
}

/// Two guests of the same side on a switch: one serves, the other measures.
fn pair(bench: &Bench, side: Side) -> Result<Report> {
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let socket = dir.path().join("switch");
    let _switch = switch(&socket)?;
    let guest = |place: &Place| -> Result<Command> {
        let mut command = bench.command(side, &place.append())?;
        match side {
            Side::Hvrun => command.arg("--net").arg(format!("vde:{},mac={}", socket.display(), place.mac)),
            Side::Qemu => card(&mut command, &format!("vde,sock={}", socket.display()), place.mac),
        };
        Ok(command)
    };
    let mut server = guest(&SERVER)?;
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let _server = Supervised::spawn(&mut server, LIMIT)?;
    virtio::run(&mut guest(&CLIENT)?)
}

/// A switch, which ends when it is dropped.
fn switch(socket: &Path) -> Result<(Supervised, Child)> {
    let mut command = Command::new(VDE_SWITCH.0);
    // Its standard input is a console whose end would be its end: a pipe, which the returned child holds. It complains of guests that go.
    command.arg("--sock").arg(socket).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Supervised::spawn(&mut command, LIMIT)?;
    wait("vde_switch", || socket.join("ctl").exists())?;
    Ok(running)
}

fn wait(what: &str, there: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !there() {
        ensure!(start.elapsed() < PATIENCE, "{what} did not come up within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What serves on the host.
struct Servers {
    iperf: u16,
    probe: u16,
    _iperf: (Supervised, Child),
}

impl Servers {
    fn start() -> Result<Servers> {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port of the host's");
        // A port that is free now; iperf3 cannot choose one itself.
        let iperf = listen()?.local_addr()?.port();
        let mut command = Command::new(IPERF3.0);
        command.args(["--server", "--bind", "127.0.0.1", "--port", &iperf.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Without a limit of its own: it lives as long as this program measures.
        let running = Supervised::spawn(&mut command, LIMIT.saturating_mul(100))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, iperf));
        wait("iperf3", || TcpStream::connect(address).is_ok())?;
        let listener = listen()?;
        let probe = listener.local_addr()?.port();
        thread::spawn(move || probe::serve(&listener));
        Ok(Servers { iperf, probe, _iperf: running })
    }
}

/// The NAT without a guest.
fn host() -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["run", "--quiet", "--release", "--locked", "-p", "hvrun-devices"]);
    workspace::run(command.args(["--example", "nat_bench"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printed_value_is_reported_by_the_script() {
        let without = |name: &str| {
            ["_up", "_down", "_1", "_4"].iter().fold(name.to_owned(), |name, end| name.replace(end, ""))
        };
        let rows = ROWS.iter().chain(COUNTS);
        let missing: Vec<String> =
            rows.map(|(name, _)| without(name)).filter(|name| !SCRIPT.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn guest_that_serves_is_told_of_no_server() {
        assert_eq!(SERVER.append(), "net_address=192.168.9.1");
        assert_eq!(CLIENT.append(), "net_address=192.168.9.2 net_server=192.168.9.1");
    }
}
