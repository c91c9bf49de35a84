//! `--net user` under Debian's kernel and busybox on the software CPU: what a guest can reach through the NAT and by which addresses, and
//! what it cannot. The servers are this process's own, on the host's loopback; nothing needs a network.

mod bad;
mod connections;
mod datagrams;
mod dns;
mod host;
mod link;
mod many;
mod restrict;
mod run_time;
mod tftp;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvrun_tests::{Hvrun, Running};

/// How long a step may take on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for a whole guest, which takes many steps.
const GUEST_LIMIT: Duration = Duration::from_secs(240);
/// Bytes of a file that goes over a connection.
const FILE: usize = 1 << 20;
/// The guest's address that it makes of its card's (RFC 4291, appendix A): fec0::/64 and 52:54:00:12:34:56.
const GUEST6: &str = "fec0::5054:ff:fe12:3456";
/// Does what DHCP says.
const DHCP: &str = "dhcp eth0 >/dev/null 2>&1";
/// Waits until the guest has made its IPv6 address and may use it (scope 40, site-local; flags 80 or none, without tentative, 40).
const AUTOCONFIGURED: &str = "until grep -q '^fec0.* 40 [08]0 *eth0' /proc/net/if_inet6; do sleep 0.1; done";

/// What a path is called on the command line.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// A guest about to be started with one card.
fn hvrun(net: &str) -> Result<Hvrun> {
    Ok(Hvrun::virtio_linux(1)?.limit(GUEST_LIMIT).args(["--net", net]))
}

/// A guest that has its addresses.
fn guest(net: &str) -> Result<Running> {
    let mut guest = hvrun(net)?.start()?;
    guest.ready()?;
    guest.sh("ip link set lo up")?;
    guest.sh(DHCP)?;
    Ok(guest)
}

/// The guest ends by itself, and nobody has complained.
fn end(guest: Running) -> Result<()> {
    let outcome = guest.poweroff()?;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    Ok(())
}

/// In the guest, a file of random bytes: `/tmp/file`.
fn make_file(guest: &mut Running) -> Result<()> {
    guest.sh(&format!("head -c {FILE} /dev/urandom > /tmp/file")).map(drop)
}

/// Runs a command in the guest that has to fail, and returns what it says.
fn fails(guest: &mut Running, command: &str) -> Result<String> {
    let output = guest.sh(&format!("({command}) 2>&1 && echo SUCCEEDED; true"))?;
    ensure!(!output.contains("SUCCEEDED"), "'{command}' succeeded: {output}");
    Ok(output)
}
