//! Virtio devices under Debian's kernel and its own drivers, by PCI and by virtio-mmio, on the software CPU.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvrun_tests::disks::{self, Pattern, SECTOR};
use hvrun_tests::process;
use hvrun_tests::socket::{self, Socket};
use hvrun_tests::{Hvrun, Running};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
/// As much as a guest's console gets in one line.
const LINE: usize = 5 << 20;
/// A guest that moves megabytes on a busy machine.
const LIMIT: Duration = Duration::from_secs(150);

/// What a path is called on the command line.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// The SHA-256 of a file on the host.
fn checksum(path: &Path) -> Result<String> {
    let output = std::process::Command::new("sha256sum").arg(path).output()?;
    first_word(&String::from_utf8_lossy(&output.stdout))
}

fn first_word(text: &str) -> Result<String> {
    Ok(text.split_whitespace().next().context("no checksum")?.to_owned())
}

/// The SHA-256 of a file in the guest.
fn guest_checksum(guest: &mut Running, path: &str) -> Result<String> {
    first_word(&guest.sh(&format!("sha256sum {path}"))?)
}

/// Three disks, of which the second is read-only, found by serial and in order; reads and writes arrive.
fn check_disks(transport: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = disks::raw(dir.path(), "first.raw", 4 * MIB, Pattern { seed: 1 })?;
    let second = disks::raw(dir.path(), "second.raw", 2 * MIB, Pattern { seed: 2 })?;
    let third = disks::qcow2(dir.path(), "third.qcow2", 8 * MIB, "", None)?;
    let mut guest = Hvrun::virtio_linux(2)?
        .args(["--transport", transport])
        .args(["--disk", &format!("{},serial=one,format=raw", text(&first)?)])
        .args(["--disk", &format!("{},serial=two,ro", text(&second)?)])
        .args(["--disk", &format!("{},serial=three", text(&third)?)])
        .start()?;
    guest.ready()?;
    for (serial, device) in [("one", "/dev/vda"), ("two", "/dev/vdb"), ("three", "/dev/vdc")] {
        assert_eq!(guest.disk(serial)?, device);
    }
    assert_eq!(guest_checksum(&mut guest, "/dev/vda")?, checksum(&first)?);
    assert_eq!(guest_checksum(&mut guest, "/dev/vdb")?, checksum(&second)?);
    assert_eq!(guest.sh("cat /sys/block/vdb/ro")?.trim(), "1");
    guest.sh("dd if=/dev/vdb of=/dev/vdc bs=64k conv=fsync 2>/dev/null; dd if=/dev/vdb of=/dev/vda bs=1M seek=1 conv=fsync,notrunc 2>/dev/null")?;
    assert_eq!(guest.poweroff()?.code, Some(0));

    Pattern { seed: 2 }.check(&second, 0..2 * MIB / SECTOR as u64)?;
    Pattern { seed: 1 }.check(&first, 0..MIB / SECTOR as u64)?;
    Pattern { seed: 1 }.check(&first, 3 * MIB / SECTOR as u64..4 * MIB / SECTOR as u64)?;
    disks::check_qcow2(&third)?;
    let copy = dir.path().join("third.raw");
    disks::convert((&third, "qcow2"), (&copy, "raw"), &[])?;
    Pattern { seed: 2 }.check(&copy, 0..2 * MIB / SECTOR as u64)
}

#[test]
fn disks_are_found_by_serial_and_in_order_over_pci() -> Result<()> {
    check_disks("pci")
}

#[test]
fn disks_are_found_by_serial_and_in_order_over_mmio() -> Result<()> {
    check_disks("mmio")
}

#[test]
fn disks_and_shares_work_with_intx_when_the_kernel_refuses_msi() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = disks::raw(dir.path(), "disk.raw", MIB, Pattern { seed: 3 })?;
    fs::write(dir.path().join("file"), "contents")?;
    let mut guest = Hvrun::virtio_linux(1)?
        .args(["--append", "console=ttyAMA0 quiet cryptomgr.notests hvrun=test modules=auto pci=nomsi"])
        .args(["--disk", &format!("{},serial=one,format=raw", text(&disk)?)])
        .args(["--share", &format!("{}:src", text(dir.path())?)])
        .start()?;
    guest.ready()?;
    ensure!(guest.sh("grep -c MSI /proc/interrupts || true")?.trim() == "0", "MSI in spite of pci=nomsi");
    assert_eq!(guest_checksum(&mut guest, "/dev/vda")?, checksum(&disk)?);
    guest.share("src", "/mnt", "")?;
    assert_eq!(guest.sh("cat /mnt/file")?, "contents");
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn a_driver_that_lets_go_and_comes_back_finds_its_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = disks::raw(dir.path(), "disk.raw", MIB, Pattern { seed: 4 })?;
    let mut guest = Hvrun::virtio_linux(1)?
        .args(["--disk", &format!("{},serial=one,format=raw", text(&disk)?)])
        .start()?;
    guest.ready()?;
    guest.sh("cd /sys/bus/virtio/drivers/virtio_blk; for i in 1 2 3; do echo virtio0 > unbind; echo virtio0 > bind; done; cd /")?;
    guest.disk("one")?;
    assert_eq!(guest_checksum(&mut guest, "/dev/vda")?, checksum(&disk)?);
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn disk_share_and_console_work_again_after_a_guest_reset() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = disks::raw(dir.path(), "disk.raw", MIB, Pattern { seed: 5 })?;
    let shell = dir.path().join("shell.sock");
    let mut guest = Hvrun::virtio_linux(2)?
        .args(["--disk", &format!("{},serial=one,format=raw", text(&disk)?)])
        .args(["--share", &format!("{}:src", text(dir.path())?)])
        .args(["--console", &format!("unix:{}", text(&shell)?)])
        .start()?;
    let mut far = Socket::connect(&shell, LIMIT)?;
    for boot in 0..3 {
        guest.ready().with_context(|| format!("boot {boot}"))?;
        assert_eq!(guest_checksum(&mut guest, "/dev/vda")?, checksum(&disk)?);
        guest.share("src", "/mnt", "")?;
        guest.sh(&format!("echo {boot} > /mnt/boot; echo boot {boot} > /dev/hvc0"))?;
        far.expect(&format!("boot {boot}"))?;
        assert_eq!(fs::read_to_string(dir.path().join("boot"))?.trim(), boot.to_string());
        if boot < 2 {
            guest.send(b"reboot\n")?;
        }
    }
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn guest_and_host_see_each_others_writes_in_a_share_at_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let share = format!("{}:src", text(dir.path())?);
    let mut first = Hvrun::virtio_linux(1)?.args(["--share", &share]).start()?;
    let mut second = Hvrun::virtio_linux(1)?.args(["--share", &share, "--transport", "mmio"]).start()?;
    for guest in [&mut first, &mut second] {
        guest.ready()?;
        guest.share("src", "/mnt", "msize=131072")?;
    }
    for round in 0..10 {
        first.sh(&format!("echo first {round} > /mnt/note"))?;
        assert_eq!(fs::read_to_string(dir.path().join("note"))?, format!("first {round}\n"));
        assert_eq!(second.sh("cat /mnt/note")?, format!("first {round}\n"));
        fs::write(dir.path().join("note"), format!("host {round}\n"))?;
        assert_eq!(first.sh("cat /mnt/note")?, format!("host {round}\n"));
        assert_eq!(second.sh("cat /mnt/note")?, format!("host {round}\n"));
    }
    assert_eq!(first.poweroff()?.code, Some(0));
    assert_eq!(second.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn a_read_only_share_refuses_every_change() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("file"), "contents")?;
    let mut guest =
        Hvrun::virtio_linux(1)?.args(["--share", &format!("{}:src,ro", text(dir.path())?)]).start()?;
    guest.ready()?;
    guest.share("src", "/mnt", "")?;
    for change in
        ["echo x > /mnt/file", "mkdir /mnt/dir", "rm /mnt/file", "chmod 600 /mnt/file", "ln -s a /mnt/link"]
    {
        guest.sh(&format!("! ({change}) 2>/dev/null")).with_context(|| change.to_owned())?;
    }
    assert_eq!(guest.sh("cat /mnt/file")?, "contents");
    assert_eq!(guest.poweroff()?.code, Some(0));
    assert_eq!(fs::read_dir(dir.path())?.count(), 1);
    Ok(())
}

/// What a store and a build do in a share: many files, links, renames, an unlinked file that stays open, execution by mmap.
#[test]
fn a_share_bears_what_a_build_does_to_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut guest =
        Hvrun::virtio_linux(2)?.args(["--share", &format!("{}:src", text(dir.path())?)]).start()?;
    guest.ready()?;
    guest.share("src", "/mnt", "msize=16384")?;
    guest.sh("cd /mnt; mkdir -p a/b/c; for i in $(seq 500); do echo $i > a/b/c/$i; done; [ $(ls a/b/c | wc -l) = 500 ]")?;
    guest.sh("cd /mnt; ln a/b/c/1 hard; ln -s a/b/c/2 soft; [ $(cat soft) = 2 ]; mv a/b d; [ $(cat hard) = 1 ] && ! cat soft 2>/dev/null")?;
    guest.sh("cd /mnt; exec 5>gone 6<gone; rm gone; echo still here >&5; [ \"$(cat <&6)\" = 'still here' ]; exec 5>&- 6<&-")?;
    guest.sh("cp /bin/busybox /mnt/busybox; chmod 755 /mnt/busybox; [ $(/mnt/busybox echo run) = run ]")?;
    guest.sh("cd /mnt; dd if=/dev/urandom of=big bs=1M count=8 2>/dev/null; cp big copy; cmp big copy; rm -r d; [ ! -e d ]")?;
    let (big, copy) = (dir.path().join("big"), dir.path().join("copy"));
    assert_eq!(checksum(&big)?, checksum(&copy)?);
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

/// Text in one line, of which no part repeats.
fn one_line(length: usize) -> Vec<u8> {
    let mut line = Vec::with_capacity(length + 16);
    let mut number = 0_u64;
    while line.len() < length - 1 {
        line.extend(format!("{:x}.", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).bytes());
        number += 1;
    }
    line.truncate(length - 1);
    line.push(b'\n');
    line
}

#[test]
fn five_mebibytes_in_one_line_pass_a_console_with_a_slow_reader() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let line = one_line(LINE);
    fs::write(dir.path().join("line"), &line)?;
    let shell = dir.path().join("shell.sock");
    // hvrun is the client here, as under NixOS' test driver.
    let listener = UnixListener::bind(&shell)?;
    let mut guest = Hvrun::virtio_linux(1)?
        .limit(LIMIT)
        .args(["--share", &format!("{}:src", text(dir.path())?)])
        .args(["--console", &format!("unix-connect:{}", text(&shell)?)])
        .start()?;
    let mut far = socket::accept(&listener, LIMIT)?;
    guest.ready()?;
    guest.share("src", "/mnt", "")?;
    guest.sh("(stty raw -echo; exec cat /mnt/line) < /dev/hvc0 > /dev/hvc0 &")?;
    let received = socket::read_slowly(&mut far, LINE, 64 << 10, Duration::from_millis(5))?;
    ensure!(received == line, "the line was changed on its way out");
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn five_mebibytes_in_one_line_reach_the_guest_through_a_port() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let line = one_line(LINE);
    fs::write(dir.path().join("line"), &line)?;
    let socket = dir.path().join("port.sock");
    let mut guest = Hvrun::virtio_linux(1)?
        .limit(LIMIT)
        .args(["--port", &format!("name=org.example.0,to=unix:{}", text(&socket)?)])
        .start()?;
    let mut far = Socket::connect(&socket, LIMIT)?;
    guest.ready()?;
    let port = guest.port("org.example.0")?;
    let command = format!("head -c {LINE} {port} > /tmp/line; sha256sum /tmp/line");
    guest.send(format!("{command}\n").as_bytes())?;
    far.send(&line)?;
    assert_eq!(first_word(&guest.done(&command)?)?, checksum(&dir.path().join("line"))?);
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn the_guest_gets_entropy_from_the_host() -> Result<()> {
    let mut guest = Hvrun::virtio_linux(1)?.start()?;
    guest.ready()?;
    ensure!(guest.sh("cat /sys/class/misc/hw_random/rng_current")?.starts_with("virtio_rng"));
    guest.sh("[ $(head -c 4096 /dev/hwrng | gzip | wc -c) -gt 4000 ]")?;
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn memory_that_the_guest_has_freed_goes_back_to_the_host() -> Result<()> {
    let mut guest = Hvrun::virtio_linux(1)?.args(["--balloon", "on", "--memory", "512M"]).start()?;
    guest.ready()?;
    guest.sh("mkdir -p /t; mount -t tmpfs -o size=300M tmpfs /t; dd if=/dev/zero of=/t/x bs=1M count=200 2>/dev/null")?;
    let full = process::resident(guest.pid())?;
    // Linux reports free pages two seconds after they have been freed.
    guest.sh("rm /t/x; echo 3 > /proc/sys/vm/drop_caches")?;
    let mut left = full;
    for _ in 0..60 {
        left = process::resident(guest.pid())?;
        if left + 150 * MIB < full {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    ensure!(left + 150 * MIB < full, "{} MiB before, {} MiB after", full / MIB, left / MIB);
    guest.sh("cp /bin/busybox /t/x; cmp /bin/busybox /t/x")?;
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

/// Pulls the plug right after a `sync` of the guest, several times, and looks whether what it covers is there.
fn check_pulled_plug(format: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = match format {
        "raw" => disks::empty(dir.path(), "disk", 16 * MIB)?,
        _ => disks::qcow2(dir.path(), "disk", 16 * MIB, "", None)?,
    };
    for round in 0..3_u64 {
        let mut guest = Hvrun::virtio_linux(1)?
            .args(["--disk", &format!("{},serial=one,format={format}", text(&disk)?)])
            .start()?;
        guest.ready()?;
        // What earlier rounds have written is still there.
        for earlier in 0..round {
            let read = guest.sh(&format!(
                "dd if=/dev/vda bs=512 skip={} count=1 2>/dev/null | head -c 8",
                earlier * 999
            ))?;
            assert_eq!(read, format!("round {earlier} "), "round {round}");
        }
        guest.sh(&format!(
            "printf '%-512s' 'round {round} ' | dd of=/dev/vda bs=512 seek={} conv=fsync,notrunc 2>/dev/null",
            round * 999
        ))?;
        guest.signal(Signal::KILL)?;
        guest.wait()?;
        if format == "qcow2" {
            disks::check_qcow2(&disk)?;
        }
    }
    Ok(())
}

#[test]
fn what_was_synced_to_a_raw_disk_survives_a_pulled_plug() -> Result<()> {
    check_pulled_plug("raw")
}

#[test]
fn what_was_synced_to_a_qcow2_disk_survives_a_pulled_plug() -> Result<()> {
    check_pulled_plug("qcow2")
}
