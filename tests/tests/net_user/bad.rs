//! What can be wrong with `--net user`: each ends before anything starts, with one message that names it.

use std::net::TcpListener;

use anyhow::{Result, ensure};
use hvrun_tests::Hvrun;
use hvrun_tests::bare::Program;

use crate::host::{LOOPBACK, free_port};

/// hvrun refuses the network: exit code `code`, nothing on standard output, and one line with all of `words`.
fn refused(net: &str, code: i32, words: &[&str]) -> Result<()> {
    let (_dir, kernel) = Program::new().print("RAN\n").power_off().file()?;
    let outcome = Hvrun::kernel(&kernel).args(["--net", net]).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(code), ""), "{}", outcome.stderr);
    for word in words {
        ensure!(outcome.stderr.contains(word), "{word:?} is not in: {}", outcome.stderr);
    }
    ensure!(outcome.stderr.lines().count() <= 2, "more than a message: {}", outcome.stderr);
    Ok(())
}

#[test]
fn port_in_use_is_named_with_its_forwarding() -> Result<()> {
    let taken = TcpListener::bind((LOOPBACK, 0))?;
    let address = taken.local_addr()?;
    let forward = format!("hostfwd=tcp:{address}-:22");
    refused(&format!("user,{forward}"), 1, &[&forward, &address.port().to_string(), "in use"])
}

#[test]
fn forwarding_without_a_guest_is_quoted_with_one_that_works() -> Result<()> {
    refused("user,hostfwd=tcp::2222", 2, &["hostfwd=tcp::2222", "tcp::2222-:22"])
}

#[test]
fn forwarding_of_another_protocol_is_quoted_with_one_that_works() -> Result<()> {
    refused("user,hostfwd=sctp::2222-:22", 2, &["sctp", "tcp|udp"])
}

#[test]
fn forwarding_to_nothing_is_quoted_with_one_that_works() -> Result<()> {
    refused("user,guestfwd=tcp:10.0.2.100:80-pipe:x", 2, &["pipe:x", "-cmd:", "-unix:"])
}

#[test]
fn forwarding_outside_of_the_network_is_named_with_the_network() -> Result<()> {
    refused("user,guestfwd=tcp:192.0.2.1:80-cmd:cat", 1, &["192.0.2.1", "10.0.2.0/24"])
}

#[test]
fn resolver_by_name_is_quoted_with_an_address_that_works() -> Result<()> {
    refused("user,resolver=localhost", 2, &["resolver=localhost", "127.0.0.53"])
}

#[test]
fn mtu_out_of_range_is_named_with_the_range() -> Result<()> {
    refused("user,mtu=1000", 1, &["mtu=1000", "1280", "65520"])
}

#[test]
fn missing_tftp_folder_is_named() -> Result<()> {
    refused("user,tftp=/nonexistent", 1, &["tftp=/nonexistent", "No such file"])
}

#[test]
fn second_machine_cannot_have_the_same_port() -> Result<()> {
    let (_dir, kernel) = Program::new().print("RAN\n").spin().file()?;
    let forward = format!("hostfwd=tcp:127.0.0.1:{}-:22", free_port()?);
    let net = format!("user,{forward}");
    let mut first = Hvrun::kernel(&kernel).args(["--net", &net]).start()?;
    first.expect("RAN\n")?;
    refused(&net, 1, &[&forward, "in use"])
}
