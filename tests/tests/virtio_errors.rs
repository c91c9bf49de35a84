//! What goes wrong on the host while Linux runs: errors of a disk reach the guest as I/O errors and the log in a line, and everything else
//! lives on. On the software CPU.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hvrun_tests::disks::{self, Pattern};
use hvrun_tests::{Hvrun, Outcome, Running};

const MIB: u64 = 1 << 20;

/// The value of `--disk` for a raw image.
fn raw(path: &Path, serial: &str) -> Result<String> {
    Ok(format!("{},serial={serial},format=raw", path.to_str().context("the path is not UTF-8")?))
}

/// Writes `count` KiB at `at` KiB of a device, down to the host. Whether the guest sees an error is the answer.
fn write_fails(guest: &mut Running, device: &str, at: u64, count: u64) -> Result<bool> {
    let dd = format!("dd if=/dev/urandom of={device} bs=1k seek={at} count={count} conv=notrunc,fsync");
    Ok(guest
        .sh(&format!("{dd} 2>/tmp/error && echo fine || echo failed; cat /tmp/error"))?
        .starts_with("failed"))
}

/// The disk `device` can be written and read back.
fn check_lives(guest: &mut Running, device: &str) -> Result<()> {
    guest.sh("dd if=/dev/urandom of=/tmp/data bs=1k count=64 2>/dev/null")?;
    guest.sh(&format!("dd if=/tmp/data of={device} bs=1k conv=notrunc,fsync 2>/dev/null"))?;
    guest.sh("echo 3 > /proc/sys/vm/drop_caches")?;
    guest
        .sh(&format!("dd if={device} of=/tmp/back bs=1k count=64 2>/dev/null; cmp /tmp/data /tmp/back"))
        .map(drop)
}

/// The guest has ended by itself, and the log has lines with all of `words`; says how many.
fn check_log(outcome: &Outcome, words: &[&str]) -> Result<usize> {
    assert_eq!(outcome.code, Some(0), "signal {:?}: {}", outcome.signal, outcome.stderr);
    let lines = outcome.stderr.lines().filter(|line| words.iter().all(|word| line.contains(word))).count();
    ensure!(lines > 0, "no line has {words:?}: {}", outcome.stderr);
    Ok(lines)
}

/// Where `ulimit -f` lets files end in these tests.
const LIMIT_KIB: u64 = 1024;

#[test]
fn a_raw_disk_that_cannot_grow_gives_io_errors_and_others_live_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // Sparse; what lies behind the limit can be read, and not written.
    let full = disks::empty(dir.path(), "full.raw", 8 * MIB)?;
    let other = disks::empty(dir.path(), "other.raw", MIB)?;
    let mut guest = Hvrun::virtio_linux(2)?
        .file_size_limit(LIMIT_KIB)
        .args(["--disk", &raw(&full, "full")?, "--disk", &raw(&other, "other")?])
        .start()?;
    guest.ready()?;
    let (full, other) = (guest.disk("full")?, guest.disk("other")?);
    ensure!(write_fails(&mut guest, &full, 2 * LIMIT_KIB, 256)?, "a write beyond the limit has succeeded");
    ensure!(write_fails(&mut guest, &full, 3 * LIMIT_KIB, 256)?, "and another one");
    check_lives(&mut guest, &full)?;
    check_lives(&mut guest, &other)?;
    // None of the writes in between has succeeded.
    let lines = check_log(&guest.poweroff()?, &["full.raw", "cannot write", "the guest sees an I/O error"])?;
    assert_eq!(lines, 1);
    Ok(())
}

#[test]
fn a_qcow2_disk_that_cannot_grow_gives_io_errors_and_stays_sound() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let full = disks::qcow2(dir.path(), "full.qcow2", 64 * MIB, "", None)?;
    let path = full.to_str().context("the path is not UTF-8")?;
    let mut guest = Hvrun::virtio_linux(1)?
        .file_size_limit(LIMIT_KIB)
        .args(["--disk", &format!("{path},serial=full")])
        .start()?;
    guest.ready()?;
    let device = guest.disk("full")?;
    ensure!(!write_fails(&mut guest, &device, 0, 128)?, "a write below the limit has failed");
    guest.sh(&format!("dd if={device} bs=1k count=128 2>/dev/null | sha256sum > /tmp/before"))?;
    ensure!(write_fails(&mut guest, &device, 1024, 2048)?, "a write beyond the limit has succeeded");
    guest.sh("echo 3 > /proc/sys/vm/drop_caches")?;
    guest.sh(&format!("dd if={device} bs=1k count=128 2>/dev/null | sha256sum | cmp - /tmp/before"))?;
    check_log(&guest.poweroff()?, &["full.qcow2", "cannot write", "the guest sees an I/O error"])?;
    disks::check_qcow2(&full)
}

#[test]
fn an_image_that_the_host_cuts_short_and_a_share_that_it_removes_do_not_end_the_machine() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cut = disks::raw(dir.path(), "cut.raw", 4 * MIB, Pattern { seed: 1 })?;
    let other = disks::empty(dir.path(), "other.raw", MIB)?;
    let shared = dir.path().join("shared");
    fs::create_dir_all(shared.join("deep"))?;
    fs::write(shared.join("deep/file"), "contents")?;
    let mut guest = Hvrun::virtio_linux(1)?
        .args(["--disk", &raw(&cut, "cut")?, "--disk", &raw(&other, "other")?])
        .args(["--share", &format!("{}:src", shared.to_str().context("the path is not UTF-8")?)])
        .start()?;
    guest.ready()?;
    let (device, other) = (guest.disk("cut")?, guest.disk("other")?);
    guest.share("src", "/mnt", "")?;
    guest.sh("exec 3</mnt/deep/file; cd /mnt/deep")?;

    OpenOptions::new().write(true).open(&cut)?.set_len(MIB)?;
    fs::remove_dir_all(&shared)?;

    // What is left can be read; what is gone is zeros or an error.
    let head = guest.sh(&format!("dd if={device} bs=512 count=1 2>/dev/null | sha256sum"))?;
    let first = format!("{:?}", head.split_whitespace().next().unwrap_or_default());
    fs::write(dir.path().join("sector"), Pattern { seed: 1 }.sector(0))?;
    let sum = std::process::Command::new("sha256sum").arg(dir.path().join("sector")).output()?;
    ensure!(first.contains(String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or("?")), "{head}");
    let gone = format!("dd if={device} bs=64k skip=32 count=4 of=/tmp/gone 2>/dev/null");
    let gone = guest.sh(&format!("({gone} && tr -d '\\0' < /tmp/gone | wc -c || echo 0) | tail -n 1"))?;
    assert_eq!(gone.trim(), "0", "what the host has cut off is still something");
    // Writes make the file grow again, or fail.
    write_fails(&mut guest, &device, 3 * 1024, 64)?;
    check_lives(&mut guest, &other)?;

    // Of the share, errors and no answer at all are the choices; an open file is still there.
    guest.sh(
        "cd /; ! cat /mnt/deep/file 2>/dev/null; ! ls /mnt/deep 2>/dev/null; ! touch /mnt/new 2>/dev/null",
    )?;
    assert_eq!(guest.sh("cat <&3; exec 3<&-")?, "contents");
    assert_eq!(guest.poweroff()?.code, Some(0));
    let mut grown = [0; 512];
    OpenOptions::new().read(true).open(&cut)?.read_exact_at(&mut grown, 0)?;
    assert_eq!(grown, Pattern { seed: 1 }.sector(0));
    Ok(())
}
