//! Tap interfaces, which only Linux has: a guest's way to the host and its end, and who may make one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hvrun_tests::artifacts;
use hvrun_tests::bare::Program;

use super::{Server, Shell, guest, lines, need, refused};

/// A tap interface of the test's own, up, with the host's address 10.213.99.1/24. Dropping it removes it.
struct Interface(String);

impl Interface {
    fn new() -> Result<Self> {
        let interface = Interface(format!("hvw{}", std::process::id() % 1_000_000));
        let name = &interface.0;
        ip(&format!("tuntap add dev {name} mode tap"))?;
        ip(&format!("addr add 10.213.99.1/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        Ok(interface)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // The test may have removed it.
        let _ = ip(&format!("link del {}", self.0));
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new(need("ip", "iproute2")?).args(arguments.split(' ')).output()?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Whether this user can make interfaces; if not, hvrun says so, and this test says on standard error that it has seen no more. As root
/// it insists.
fn may_make_interfaces() -> Result<bool> {
    if rustix::process::geteuid().is_root() {
        return Ok(true);
    }
    refused(&["--net", "tap:hvw0,create"], &["net0", "hvw0"])?;
    writeln!(std::io::stderr(), "not root: only the refusal of a tap interface was tested")?;
    Ok(false)
}

#[test]
fn a_guest_reaches_the_host_over_a_tap_interface_and_survives_its_end() -> Result<()> {
    if !may_make_interfaces()? {
        return Ok(());
    }
    let interface = Interface::new().context("this test runs as root, but it cannot make a tap interface")?;
    let server = Server::start("10.213.99.1")?;
    let mut guest = guest(&format!("tap:{}", interface.0), "10.213.99.2")?;
    guest.ping("10.213.99.1")?;
    server.check(&mut guest, "10.213.99.1")?;
    refused(&["--net", &format!("tap:{}", interface.0)], &[&interface.0, "in use"])?;

    let name = interface.0.clone();
    drop(interface);
    guest.carrier(false)?;
    let outcome = guest.poweroff()?;
    assert_eq!(lines(&outcome, &["net0", &name, "is gone"]), 1, "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    Ok(())
}

#[test]
fn tap_interface_that_is_missing_or_not_ours_is_named() -> Result<()> {
    // Where tap devices are out of reach of this user, that is what is said.
    refused(&["--net", "tap:hvw-none"], &["net0", "hvw-none"])?;
    if !may_make_interfaces()? {
        return Ok(());
    }
    refused(&["--net", "tap:hvw-none"], &["there is no network interface", "ip tuntap add"])?;
    refused(&["--net", "tap:lo"], &["net0", "\"lo\"", "no tap interface"])?;
    // As somebody else, hvrun may not make one.
    let (_dir, kernel) = Program::new().print("RAN\n").power_off().file()?;
    fs::set_permissions(kernel.parent().context("no folder")?, fs::Permissions::from_mode(0o755))?;
    let hvrun = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir()?;
    let binary = hvrun.path().join("hvrun");
    fs::copy(artifacts::hvrun()?, &binary)?;
    let mut command = Command::new(&binary);
    command.args(["--accel", "soft", "--net", "tap:hvw1,create"]).arg(&kernel).uid(65534).gid(65534);
    let output = command.stdin(Stdio::null()).output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    ensure!(message.contains("hvw1") && message.contains("may not use"), "{message}");
    Ok(())
}
