//! What becomes of disks while Linux runs, seen from the monitors: the host has no space left, an image grows, the guest powers off and
//! its machine stays. And what its memory holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvrun_tests::monitors::{Monitor, Qmp};
use hvrun_tests::socket::Socket;
use hvrun_tests::{Hvrun, Running, artifacts, disks};
use serde_json::json;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(150);

/// A machine whose disk `full` lies on a file system of 4 MiB, of which a file `filler` has taken 3 MiB. Only it sees that.
struct Machine {
    guest: Running,
    qmp: Qmp,
    monitor: Monitor,
    dir: TempDir,
}

/// In a mount namespace of its own: `$1` is the folder, the rest the command line.
const SMALL_FILE_SYSTEM: &str = "exec unshare --user --map-root-user --mount sh -c '\
    dir=$1; shift; mount -t tmpfs -o size=4m none \"$dir/small\" && truncate -s 16M \"$dir/small/full.raw\" && \
    dd if=/dev/zero of=\"$dir/small/filler\" bs=1M count=3 2>/dev/null && exec \"$dir/qemu-system-aarch64\" \"$@\"' \"$0\" \"$@\"";

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

impl Machine {
    fn start() -> Result<Machine> {
        let dir = tempfile::tempdir()?;
        let state = text(dir.path())?.to_owned();
        fs::create_dir(dir.path().join("small"))?;
        std::os::unix::fs::symlink(artifacts::hvrun()?, dir.path().join("qemu-system-aarch64"))?;
        let grow = disks::qcow2(dir.path(), "grow.qcow2", 32 * MIB, "", None)?;
        let (kernel, initrd) = (artifacts::kernel()?, artifacts::virtio_initrd()?);
        let guest = Hvrun::new()
            .through(SMALL_FILE_SYSTEM)
            .limit(LIMIT)
            .args([&state, "-machine", "virt,accel=tcg", "-m", "512", "-nographic", "-no-shutdown"])
            .args(["-kernel", text(&kernel)?, "-initrd", text(&initrd)?])
            .args(["-append", hvrun_tests::VIRTIO_COMMAND_LINE])
            .args(["-drive", &format!("file={state}/small/full.raw,format=raw,id=drive0,if=none")])
            .args(["-device", "virtio-blk-pci,drive=drive0,serial=full,id=disk0"])
            .args(["-drive", &format!("file={},format=qcow2,id=drive1,if=none", text(&grow)?)])
            .args(["-device", "virtio-blk-pci,drive=drive1,serial=grow"])
            .args(["-qmp", &format!("unix:{state}/qmp,server=on,wait=off"), "-serial", "stdio"])
            .args(["-monitor", &format!("unix:{state}/monitor,server=on,wait=off")])
            .start()?;
        let qmp = Qmp::begin(Socket::connect(&dir.path().join("qmp"), LIMIT)?)?;
        let monitor = Monitor::begin(Socket::connect(&dir.path().join("monitor"), LIMIT)?)?;
        Ok(Machine { guest, qmp, monitor, dir })
    }

    /// A file of the small file system.
    fn file(&self, name: &str) -> PathBuf {
        let seen = format!("/proc/{}/root{}/small", self.guest.pid(), self.dir.path().display());
        Path::new(&seen).join(name)
    }

    /// A guest that writes to a full disk stands still, and goes on when there is space again.
    fn a_full_disk_stops_the_machine(&mut self) -> Result<()> {
        let device = self.guest.disk("full")?;
        self.guest.sh("dd if=/dev/urandom of=/tmp/data bs=1M count=3 2>/dev/null")?;
        let sum = self.guest.sh("sha256sum < /tmp/data")?;
        let write = format!("dd if=/tmp/data of={device} bs=1M conv=notrunc,fsync 2>/dev/null");
        self.guest.send(format!("{write}\n").as_bytes())?;
        let error = self.qmp.event("BLOCK_IO_ERROR")?;
        let told = [&error["device"], &error["action"], &error["operation"], &error["nospace"]];
        assert_eq!(told, [&json!("drive0"), &json!("stop"), &json!("write"), &json!(true)], "{error}");
        self.qmp.event("STOP")?;
        assert_eq!(self.qmp.status()?, "io-error");
        ensure!(self.monitor.command("info status")?.contains("VM status: paused (io-error)\r\n"));
        let block = self.monitor.command("info block drive0")?;
        ensure!(
            block.contains("/machine/peripheral/disk0/virtio-backend") && block.contains("nospace"),
            "{block}"
        );

        // In vain, and then not.
        assert_eq!(self.monitor.command("cont")?, "cont\r\n");
        self.qmp.event("STOP")?;
        assert_eq!(self.qmp.status()?, "io-error");
        fs::remove_file(self.file("filler"))?;
        assert_eq!(self.qmp.execute("cont", json!({}))?, json!({ "return": {} }));
        self.guest.done(&write)?;
        assert_eq!(self.qmp.status()?, "running");
        let written = fs::read(self.file("full.raw"))?;
        fs::write(self.dir.path().join("written"), &written[..3 * MIB as usize])?;
        let host = std::process::Command::new("sha256sum").arg(self.dir.path().join("written")).output()?;
        let first = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
        ensure!(sum.contains(&first(&String::from_utf8_lossy(&host.stdout))), "other data has arrived");
        Ok(())
    }

    /// The guest hears of an image that grows.
    fn a_disk_grows(&mut self) -> Result<()> {
        let device = self.guest.disk("grow")?;
        let size = format!("/sys/block/{}/size", device.trim_start_matches("/dev/"));
        for (command, bytes) in
            [("block_resize drive1 64M", 64 * MIB), ("block_resize drive1 128", 128 * MIB)]
        {
            assert_eq!(self.monitor.command(command)?, format!("{command}\r\n"));
            let sectors = bytes / disks::SECTOR as u64;
            self.guest.sh(&format!("until [ $(cat {size}) = {sectors} ]; do sleep 0.1; done"))?;
        }
        self.guest
            .sh(&format!("dd if=/tmp/data of={device} bs=1M seek=120 conv=notrunc,fsync 2>/dev/null"))?;
        ensure!(self.monitor.command("eject drive1")?.contains("Device 'drive1' is not removable"));
        let stats = &self.qmp.execute("query-blockstats", json!({}))?["return"][1]["stats"];
        ensure!(
            stats["wr_highest_offset"] == 123 * MIB && stats["wr_bytes"].as_u64() >= Some(3 * MIB),
            "{stats}"
        );
        Ok(())
    }

    /// A guest that has powered off leaves a machine that boots again after a reset.
    fn the_machine_outlives_its_guest(&mut self) -> Result<()> {
        self.guest.send(b"poweroff\n")?;
        assert_eq!(self.qmp.event("SHUTDOWN")?, json!({ "guest": true, "reason": "guest-shutdown" }));
        self.qmp.event("STOP")?;
        assert_eq!(self.qmp.status()?, "shutdown");
        ensure!(self.monitor.command("cont")?.contains("Error: Resetting the Virtual Machine is required"));
        self.qmp.execute("system_reset", json!({}))?;
        self.qmp.event("RESET")?;
        assert_eq!(self.qmp.status()?, "prelaunch");
        self.qmp.execute("cont", json!({}))?;
        self.guest.ready()?;
        let device = self.guest.disk("grow")?;
        self.guest.sh(&format!("dd if={device} bs=1M skip=120 count=3 2>/dev/null | grep -q ."))?;
        Ok(())
    }
}

#[test]
fn disks_that_fill_up_and_grow_and_a_guest_that_powers_off_leave_the_machine_alive() -> Result<()> {
    let mut machine = Machine::start()?;
    machine.guest.ready()?;
    machine.a_full_disk_stops_the_machine()?;
    machine.a_disk_grows()?;
    let registers = machine.monitor.command("info registers")?;
    let pc = registers.split("PC=").nth(1).and_then(|text| text.get(..16)).context("no PC")?.to_owned();
    // Wherever the kernel is, its own code is mapped.
    let code = machine.monitor.command(&format!("x /1xw 0x{pc}"))?;
    ensure!(code.contains(&format!("\r\n{pc}: 0x")), "{code}");
    ensure!(machine.monitor.command("xp /2xw 0x40000000")?.contains("\r\n0000000040000000: 0x"));
    ensure!(machine.monitor.command("xp 0x9000000")?.contains("Cannot access memory"));
    machine.the_machine_outlives_its_guest()?;
    machine.monitor.send("quit")?;
    assert_eq!(machine.guest.wait()?.code, Some(0));
    disks::check_qcow2(&machine.dir.path().join("grow.qcow2"))
}
