//! QEMU's monitors on a real kernel: the command line, the order of connections and the words of the NixOS test driver.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hvrun_tests::monitors::{Monitor, Qmp};
use hvrun_tests::socket::Socket;
use hvrun_tests::{Hvrun, Running, artifacts};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(90);

/// A machine with both monitors, as the driver starts it, and the driver's ends of them.
struct Driven {
    guest: Running,
    monitor: Monitor,
    qmp: Qmp,
    _dir: TempDir,
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

impl Driven {
    /// Starts Linux and waits for the monitors, in the driver's order.
    fn start(more: &[&str]) -> Result<Driven> {
        let dir = tempfile::tempdir()?;
        let state = text(dir.path())?.to_owned();
        let listener = UnixListener::bind(dir.path().join("monitor"))?;
        let (kernel, initrd) = (artifacts::kernel()?, artifacts::initrd()?);
        let guest = Hvrun::called("qemu-system-aarch64")
            .args(["-machine", "virt,gic-version=2,accel=hvf:tcg", "-cpu", "max", "-m", "512", "-smp", "2"])
            .args(["-net", "nic,netdev=user.0,model=virtio", "-netdev", "user,id=user.0,"])
            .args(["-kernel", text(&kernel)?, "-initrd", text(&initrd)?])
            .args(["-append", hvrun_tests::QUICK_COMMAND_LINE])
            .args(["-qmp", &format!("unix:{state}/qmp,server=on,wait=off")])
            .args(["-monitor", &format!("unix:{state}/monitor"), "-serial", "stdio", "-nographic"])
            .args(more)
            .start()?;
        let monitor = Socket::accept(&listener, LIMIT)?;
        // The driver does not try twice: the socket is there before ours is connected to.
        ensure!(dir.path().join("qmp").exists(), "the QMP socket came later than the monitor");
        let qmp = Qmp::begin(Socket::connect(&dir.path().join("qmp"), LIMIT)?)?;
        Ok(Driven { guest, monitor: Monitor::begin(monitor)?, qmp, _dir: dir })
    }
}

/// Seconds since the guest's kernel has started, by its virtual counter.
fn uptime(guest: &mut Running) -> Result<f64> {
    let text = guest.sh("cat /proc/uptime")?;
    Ok(text.split_whitespace().next().context("no uptime")?.parse()?)
}

#[test]
fn stop_keeps_the_guest_s_counter_from_counting() -> Result<()> {
    let mut driven = Driven::start(&[])?;
    driven.guest.ready()?;
    let begin = Instant::now();
    let before = uptime(&mut driven.guest)?;
    assert_eq!(driven.monitor.command("stop")?, "stop\r\n");
    let stopped = Instant::now();
    driven.qmp.event("STOP")?;
    assert_eq!(driven.qmp.status()?, "paused");
    ensure!(driven.monitor.command("info status")?.contains("VM status: paused"));
    ensure!(driven.monitor.command("info registers -a")?.contains("CPU#1"));
    std::thread::sleep(Duration::from_secs(3));
    let paused = stopped.elapsed();
    assert_eq!(driven.monitor.command("cont")?, "cont\r\n");
    driven.qmp.event("RESUME")?;
    let after = uptime(&mut driven.guest)?;
    // However slow the host is, the guest cannot have lived longer than that.
    let most = (begin.elapsed() - paused).as_secs_f64() + 0.1;
    ensure!(
        after - before <= most,
        "{} s passed in the guest, {most} s outside of the pause",
        after - before
    );
    assert_eq!(driven.qmp.status()?, "running");
    assert_eq!(driven.guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn system_reset_boots_again_with_both_monitors_connected() -> Result<()> {
    let mut driven = Driven::start(&[])?;
    driven.guest.ready()?;
    assert_eq!(driven.qmp.execute("system_reset", json!({}))?, json!({ "return": {} }));
    assert_eq!(driven.qmp.event("RESET")?, json!({ "guest": false, "reason": "host-qmp-system-reset" }));
    driven.guest.ready()?;
    driven.guest.send(b"reboot\n")?;
    assert_eq!(driven.qmp.event("RESET")?, json!({ "guest": true, "reason": "guest-reset" }));
    driven.guest.ready()?;
    ensure!(driven.monitor.command("info status")?.contains("VM status: running"));
    assert_eq!(driven.guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn quit_ends_the_process_with_0_and_the_monitors_with_an_end_of_file() -> Result<()> {
    let mut driven = Driven::start(&["-no-reboot"])?;
    driven.monitor.send("quit")?;
    let end = driven.qmp.event("SHUTDOWN")?;
    assert_eq!(end, json!({ "guest": false, "reason": "host-qmp-quit" }));
    assert_eq!(driven.guest.wait()?.code, Some(0));
    ensure!(driven.monitor.finish().ends_with(b"(qemu) quit\r\n"), "something else came behind quit");
    driven.qmp.finish();
    Ok(())
}

#[test]
fn sigterm_is_told_as_the_end_by_a_signal() -> Result<()> {
    let mut driven = Driven::start(&[])?;
    driven.guest.signal(Signal::TERM)?;
    assert_eq!(driven.qmp.event("SHUTDOWN")?["reason"], "host-signal");
    assert_eq!(driven.guest.wait()?.code, Some(0));
    Ok(())
}

#[test]
fn system_powerdown_presses_the_button_and_says_so() -> Result<()> {
    let mut driven = Driven::start(&[])?;
    driven.guest.ready()?;
    assert_eq!(driven.qmp.execute("system_powerdown", json!({}))?, json!({ "return": {} }));
    driven.qmp.event("POWERDOWN")?;
    driven.guest.poweroff()?;
    Ok(())
}

#[test]
fn errors_are_those_that_the_driver_s_tests_ask_for() -> Result<()> {
    let mut driven = Driven::start(&["-S"])?;
    assert_eq!(driven.qmp.status()?, "prelaunch");
    let answer = driven.qmp.execute("no-such-command", json!({}))?;
    assert_eq!(answer["error"]["class"], "CommandNotFound");
    ensure!(answer.get("id").is_none() && answer["error"]["desc"].as_str().is_some_and(|d| !d.is_empty()));
    assert_eq!(driven.monitor.command("set_link virtio-net-pci.0 off")?, "set_link virtio-net-pci.0 off\r\n");
    ensure!(driven.monitor.command("info network")?.contains("link=down"));
    ensure!(
        driven
            .monitor
            .command("set_link virtio-net-pci.7 off")?
            .contains("Device 'virtio-net-pci.7' not found")
    );
    driven.monitor.send("quit")?;
    assert_eq!(driven.guest.wait()?.code, Some(0));
    Ok(())
}

#[test]
fn ctrl_a_c_reaches_the_monitor_behind_the_serial_port() -> Result<()> {
    let (kernel, initrd) = (artifacts::kernel()?, artifacts::initrd()?);
    let mut guest = Hvrun::called("qemu-system-aarch64")
        .args(["-machine", "virt,accel=tcg", "-m", "512", "-nographic"])
        .args(["-kernel", text(&kernel)?, "-initrd", text(&initrd)?])
        .args(["-append", hvrun_tests::QUICK_COMMAND_LINE])
        .start()?;
    guest.ready()?;
    guest.send(b"\x01cinfo status\n")?;
    guest.expect("monitor - type 'help' for more information\r\n(qemu) info status\r\n")?;
    guest.expect("VM status: running\r\n(qemu) ")?;
    guest.send(b"\x01c")?;
    assert_eq!(guest.sh("echo hello")?.trim(), "hello");
    guest.send(b"\x01x")?;
    assert_eq!(guest.wait()?.code, Some(0));
    Ok(())
}
