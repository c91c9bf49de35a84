//! The scenario of NixOS tests, driven as the NixOS test driver drives it: Debian's systemd in machines whose command line is that of a NixOS
//! test. A boot is dear, so a machine shows several things before it ends.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvrun_tests::disks::{self, Pattern};
use hvrun_tests::driver::{Driver, Machine};

const MIB: usize = 1 << 20;

/// A path of the host's with the bytes of a pattern.
fn pattern(dir: &std::path::Path, name: &str, seed: u64) -> Result<Vec<u8>> {
    Pattern { seed }.write(&dir.join(name), MIB as u64)?;
    Ok(fs::read(dir.join(name))?)
}

fn commands_end_with_their_status_and_print_what_they_print(machine: &mut Machine) -> Result<()> {
    assert_eq!(machine.succeed("echo \"it's\" 'a \"test\"' $((1 + 1))")?, "it's a \"test\" 2\n");
    assert_eq!(machine.fail("echo before; exit 3")?, "before\n");
    assert_eq!(machine.execute("false | true")?.status, 1, "pipefail is not set");
    let bytes = machine.execute("printf '\\x00\\xff\\r\\n\\x04\\x11\\x13\\n'")?.bytes;
    assert_eq!(bytes, b"\x00\xff\r\n\x04\x11\x13\n");
    Ok(())
}

fn five_mebibytes_of_output_arrive_whole(machine: &mut Machine) -> Result<()> {
    let text = machine.succeed("seq 0 764855")?;
    ensure!(text.len() >= 5 * MIB, "{} bytes", text.len());
    let numbers = text.lines().map(str::parse::<u32>);
    ensure!(numbers.eq((0..=764_855).map(Ok)), "the output was changed on its way");
    Ok(())
}

/// What `copy_from_host_via_shell` sends.
fn a_command_of_many_kibibytes_arrives_whole(machine: &mut Machine) -> Result<()> {
    // The kernel takes at most 128 KiB for one argument of a program.
    let text: String = (0..20_000).map(|number| format!("{number:05}")).collect();
    assert_eq!(machine.succeed(&format!("echo -n {text} > /tmp/large; cat /tmp/large"))?, text);
    Ok(())
}

fn the_store_is_a_share_under_a_writable_overlay(machine: &mut Machine) -> Result<()> {
    machine.succeed("findmnt --kernel --type 9p /nix/.ro-store")?;
    machine.succeed("findmnt --kernel --type overlay /nix/store")?;
    machine.succeed("echo changed > /nix/store/scripts/network && mkdir /nix/store/new")?;
    machine.fail("test -e /nix/.ro-store/new")?;
    assert_eq!(machine.succeed("stat -c %u:%g /nix/.ro-store/usr/bin/bash")?, "0:0\n");
    Ok(())
}

fn files_are_copied_both_ways(machine: &mut Machine) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("folder");
    fs::create_dir_all(folder.join("below"))?;
    let bytes = pattern(&folder, "below/file", 1)?;
    machine.copy_from_host(&folder, "/var/from/host")?;
    machine.succeed("cp -r /var/from/host /var/back && echo more >> /var/back/below/file")?;
    machine.copy_from_vm("/var/back", &dir.path().join("back"))?;
    let back = fs::read(dir.path().join("back/below/file"))?;
    ensure!(back == [&bytes[..], b"more\n"].concat(), "the file has changed: {} bytes", back.len());
    // And at once what either side writes to the machine's own folder.
    fs::write(machine.xchg().join("note"), "from the host")?;
    assert_eq!(
        machine.succeed("cat /tmp/xchg/note; echo -n from the guest > /tmp/xchg/note")?,
        "from the host"
    );
    assert_eq!(fs::read_to_string(machine.xchg().join("note"))?, "from the guest");
    Ok(())
}

fn what_is_journalled_is_on_the_console(machine: &mut Machine) -> Result<()> {
    machine.succeed("echo to the journal | systemd-cat -t test")?;
    machine.wait_for_console_text("to the journal")
}

fn devices_have_the_names_that_tests_use(machine: &mut Machine) -> Result<()> {
    assert_eq!(machine.succeed("readlink -f /dev/disk/by-id/virtio-root")?, "/dev/vda\n");
    assert_eq!(machine.succeed("readlink -f /dev/disk/by-label/nixos")?, "/dev/vda\n");
    let macs = machine.succeed("cat /sys/class/net/eth0/address /sys/class/net/eth1/address")?;
    assert_eq!(macs, "52:54:00:12:34:56\n52:54:00:12:01:01\n");
    Ok(())
}

fn a_forwarded_port_leads_into_the_guest(machine: &mut Machine) -> Result<()> {
    machine.wait_for_unit("network.service")?;
    machine.succeed("ip -4 address show dev eth0 | grep -w 10.0.2.15/24 && ping -c 1 -W 20 10.0.2.2")?;
    machine.succeed("(echo hello | busybox nc -l -p 80) >/dev/null 2>&1 &")?;
    machine.wait_until_succeeds("grep ':0050 .* 0A ' /proc/net/tcp*")?;
    // One that is free now.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    machine.forward_port(port, 80)?;
    let mut text = String::new();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.read_to_string(&mut text)?;
    assert_eq!(text, "hello\n");
    Ok(())
}

#[test]
fn a_machine_does_for_the_driver_what_a_machine_of_qemu_does() -> Result<()> {
    let driver = Driver::hvrun()?;
    let mut machine = driver.machine("machine", 1)?;
    machine.start()?;
    commands_end_with_their_status_and_print_what_they_print(&mut machine)?;
    five_mebibytes_of_output_arrive_whole(&mut machine)?;
    a_command_of_many_kibibytes_arrives_whole(&mut machine)?;
    the_store_is_a_share_under_a_writable_overlay(&mut machine)?;
    files_are_copied_both_ways(&mut machine)?;
    what_is_journalled_is_on_the_console(&mut machine)?;
    devices_have_the_names_that_tests_use(&mut machine)?;
    a_forwarded_port_leads_into_the_guest(&mut machine)?;
    assert_eq!(machine.qmp("query-status")?["status"], "running");
    machine.shutdown()?;
    // The image is closed and whole.
    disks::check_qcow2(machine.disk())
}

#[test]
fn a_machine_that_reboots_keeps_its_sockets_and_one_that_crashes_keeps_its_disk() -> Result<()> {
    let driver = Driver::hvrun()?;
    let mut machine = driver.machine("machine", 1)?;
    machine.start_allowing_reboot()?;
    let first = machine.succeed("echo flushed > /var/lib/file; sync; cat /proc/sys/kernel/random/boot_id")?;
    machine.reboot()?;
    let second = machine.succeed("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(first != second, "it has not booted again");
    ensure!(machine.send_monitor_command("info status")?.contains("running"));
    assert_eq!(machine.qmp("query-status")?["status"], "running");
    machine.succeed("echo again >> /var/lib/file; sync")?;
    machine.crash()?;
    disks::check_qcow2(machine.disk())?;

    machine.start()?;
    assert_eq!(machine.succeed("cat /var/lib/file")?, "flushed\nagain\n");
    machine.release()?;
    Ok(())
}

#[test]
fn two_machines_meet_on_their_vlan_until_one_is_blocked() -> Result<()> {
    let driver = Driver::hvrun()?;
    let (mut one, mut two) = (driver.machine("one", 1)?, driver.machine("two", 2)?);
    one.start()?;
    two.start()?;
    for machine in [&mut one, &mut two] {
        machine.wait_for_unit("network.service")?;
    }
    let ping = "ping -c 1 -W 30 192.168.1.2";
    one.succeed(ping)?;
    two.succeed("ping -c 1 -W 30 192.168.1.1")?;
    // What one writes to the folder of all machines, the other reads.
    one.succeed("seq 100000 > /tmp/shared/numbers")?;
    assert_eq!(two.succeed("wc -l < /tmp/shared/numbers")?.trim(), "100000");
    two.succeed("busybox nc -l -p 80 < /tmp/shared/numbers >/dev/null 2>&1 &")?;
    two.wait_until_succeeds("grep ':0050 .* 0A ' /proc/net/tcp*")?;
    let sum = one.succeed("sha256sum < /dev/tcp/192.168.1.2/80")?;
    assert_eq!(one.succeed("sha256sum < /tmp/shared/numbers")?, sum);

    let carrier = |value: u8| format!("[ $(cat /sys/class/net/eth1/carrier) = {value} ]");
    one.block()?;
    one.wait_until_succeeds(&carrier(0))?;
    one.fail("ping -c 1 -W 1 192.168.1.2")?;
    two.fail("ping -c 1 -W 1 192.168.1.1")?;
    one.unblock()?;
    one.wait_until_succeeds(&carrier(1))?;
    // Not at once: the guest's kernel may still hold that nobody answers for the address.
    one.wait_until_succeeds(ping)?;
    one.shutdown()?;
    two.crash().context("the other one")?;
    Ok(())
}
