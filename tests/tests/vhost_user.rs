//! Devices that another process serves, under Debian's kernel on the software CPU: virtiofs with Debian's virtiofsd.
#![cfg(target_os = "linux")]

use std::collections::HashSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvrun_tests::bare::Program;
use hvrun_tests::virtiofsd::Virtiofsd;
use hvrun_tests::{Hvrun, Running, artifacts};

/// A guest that moves megabytes and reboots on a busy machine.
const LIMIT: Duration = Duration::from_secs(150);
/// Files in the folder that is listed.
const FILES: usize = 1000;
/// Bytes of the large files.
const LARGE: usize = 24 << 20;

/// What a path is called on the command line.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// Bytes without a pattern that a wrong offset would repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(word).collect()
}

fn first_word(text: &str) -> Result<String> {
    Ok(text.split_whitespace().next().context("no checksum")?.to_owned())
}

/// The SHA-256 of a file on the host.
fn checksum(path: &Path) -> Result<String> {
    first_word(&String::from_utf8_lossy(&Command::new("sha256sum").arg(path).output()?.stdout))
}

fn mount(guest: &mut Running) -> Result<()> {
    guest.sh("mkdir -p /mnt && mount -t virtiofs store /mnt").map(drop)
}

/// QEMU's command line with shared memory and a virtiofs share.
fn qemu(socket: &Path) -> Result<Hvrun> {
    let devices = format!(
        "-machine virt -accel tcg -m 512 -object memory-backend-memfd,id=mem,size=512M,share=on -numa node,memdev=mem \
         -device vhost-user-fs-pci,queue-size=1024,chardev=store,tag=store \
         -device virtio-balloon-pci,free-page-reporting=on \
         -chardev socket,id=store,path={} -nodefaults -serial stdio",
        text(socket)?
    );
    let (kernel, initrd) = (artifacts::kernel()?, artifacts::virtio_initrd()?);
    Ok(Hvrun::called("qemu-system-aarch64")
        .limit(LIMIT)
        .args(devices.split_whitespace())
        .args(["-kernel", text(&kernel)?, "-initrd", text(&initrd)?])
        .args(["-append", hvrun_tests::VIRTIO_COMMAND_LINE]))
}

#[test]
fn a_folder_of_virtiofsd_is_the_same_on_both_sides_and_survives_a_reboot() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("store");
    fs::create_dir_all(folder.join("many"))?;
    for number in 0..FILES {
        fs::write(folder.join(format!("many/file-{number}")), number.to_string())?;
    }
    fs::write(folder.join("large"), noise(LARGE))?;
    let server = Virtiofsd::start(&folder, &dir.path().join("fs.sock"), LIMIT)?;
    let mut guest = qemu(server.socket())?.start()?;
    guest.ready()?;
    mount(&mut guest)?;

    let listed = guest.sh("ls /mnt/many")?;
    let listed: HashSet<&str> = listed.split_whitespace().collect();
    let expected: Vec<String> = (0..FILES).map(|number| format!("file-{number}")).collect();
    assert_eq!(listed, expected.iter().map(String::as_str).collect());
    assert_eq!(guest.sh("cat /mnt/many/file-999")?, "999");
    assert_eq!(first_word(&guest.sh("sha256sum /mnt/large")?)?, checksum(&folder.join("large"))?);
    guest.sh("cp /mnt/large /mnt/copy && sync")?;
    assert_eq!(checksum(&folder.join("copy"))?, checksum(&folder.join("large"))?);

    fs::write(folder.join("late"), "from the host")?;
    assert_eq!(guest.sh("cat /mnt/late && rm /mnt/late && mkdir /mnt/made")?, "from the host");
    ensure!(!folder.join("late").exists() && folder.join("made").is_dir(), "the guest's changes are missing");

    // With files open and memory full of them: the back end has to let go of it all, and the guest finds empty memory.
    guest.sh("tail -f /mnt/large >/dev/null 2>&1 </dev/null & cp /mnt/large /tmp/large")?;
    guest.send(b"reboot\n")?;
    guest.ready()?;
    mount(&mut guest)?;
    assert_eq!(first_word(&guest.sh("sha256sum /mnt/copy")?)?, checksum(&folder.join("large"))?);
    guest.sh("echo again > /mnt/again")?;
    assert_eq!(fs::read_to_string(folder.join("again"))?, "again\n");

    let outcome = guest.poweroff()?;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    Ok(())
}

#[test]
fn requests_fail_when_virtiofsd_is_killed_and_a_new_one_serves_after_a_reboot() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("store");
    fs::create_dir(&folder)?;
    fs::write(folder.join("note"), "here")?;
    let socket = dir.path().join("fs.sock");
    let server = Virtiofsd::start(&folder, &socket, LIMIT)?;
    let mut guest = Hvrun::virtio_linux(2)?
        .limit(LIMIT)
        .args(["--memory", "512M,shared", "--transport", "mmio"])
        .args(["--vhost-user", &format!("fs:{},tag=store", text(&socket)?)])
        .start()?;
    guest.ready()?;
    mount(&mut guest)?;
    assert_eq!(guest.sh("cat /mnt/note")?, "here");

    server.kill()?;
    guest.sh("! cat /mnt/other && ! echo x > /mnt/new")?;
    // The machine itself goes on.
    assert_eq!(guest.sh("echo alive")?, "alive\n");

    let _server = Virtiofsd::start(&folder, &socket, LIMIT)?;
    guest.send(b"reboot\n")?;
    guest.ready()?;
    mount(&mut guest)?;
    assert_eq!(guest.sh("cat /mnt/note")?, "here");
    let outcome = guest.poweroff()?;
    assert_eq!(outcome.code, Some(0));
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    ensure!(lines.len() == 1 && lines[0].contains("store") && lines[0].contains("hung up"), "{lines:?}");
    Ok(())
}

/// What is refused with exit code 1 and one line that has all of `words`.
fn refused(hvrun: Hvrun, words: &[&str]) -> Result<()> {
    let outcome = hvrun.run()?;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    ensure!(outcome.stderr.lines().count() == 1, "more than one line: {}", outcome.stderr);
    for word in words {
        ensure!(outcome.stderr.contains(word), "'{word}' is not in: {}", outcome.stderr);
    }
    Ok(())
}

#[test]
fn a_back_end_that_is_not_there_or_hangs_up_is_refused_with_its_socket() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_dir, kernel) = Program::new().power_off().file()?;
    let start = |socket: &Path| -> Result<Hvrun> {
        let device = format!("fs:{},tag=store", text(socket)?);
        Ok(Hvrun::kernel(&kernel).args(["--memory", "64M,shared", "--vhost-user", &device]))
    };
    let nobody = dir.path().join("nobody.sock");
    refused(start(&nobody)?, &["virtiofs store", text(&nobody)?, "start it first", "No such file"])?;

    let rude = dir.path().join("rude.sock");
    let listener = UnixListener::bind(&rude)?;
    let peer = std::thread::spawn(move || listener.accept().map(drop));
    refused(start(&rude)?, &["virtiofs store", text(&rude)?, "hung up at GET_FEATURES"])?;
    peer.join().ok().context("the peer panicked")??;
    Ok(())
}

#[test]
fn a_virtiofs_share_without_shared_memory_is_refused_with_what_would_work() -> Result<()> {
    let (_dir, kernel) = Program::new().power_off().file()?;
    let line =
        "-accel tcg -nodefaults -chardev socket,id=c,path=/nowhere -device vhost-user-fs-pci,chardev=c,tag=t";
    let qemu = Hvrun::called("qemu-system-aarch64").args(line.split_whitespace());
    refused(
        qemu.args(["-kernel", text(&kernel)?]),
        &["virtiofs t", "memory-backend-memfd,id=mem", "share=on"],
    )
}
