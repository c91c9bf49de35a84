//! Disks and network cards that come and go while Linux runs, by QEMU's monitors: its own hot-plug driver, and what is left on the host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvrun_tests::disks::{self, Pattern, SECTOR};
use hvrun_tests::monitors::Qmp;
use hvrun_tests::socket::Socket;
use hvrun_tests::{Hvrun, Running, artifacts};
use serde_json::json;
use tempfile::TempDir;

/// Each card that Linux lets go of takes it six seconds, and more on a busy machine.
const LIMIT: Duration = Duration::from_secs(150);
const MIB: u64 = 1 << 20;

/// A machine with two free slots, and a monitor for programs.
struct Machine {
    guest: Running,
    qmp: Qmp,
    dir: TempDir,
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

impl Machine {
    fn start(more: &[&str]) -> Result<Machine> {
        let dir = tempfile::tempdir()?;
        let (kernel, initrd) = (artifacts::kernel()?, artifacts::virtio_initrd()?);
        let socket = dir.path().join("qmp");
        let guest = Hvrun::called("qemu-system-aarch64")
            .limit(LIMIT)
            .args(["-machine", "virt,accel=tcg", "-m", "512", "-smp", "2", "-nic", "none", "-nographic"])
            .args(["-kernel", text(&kernel)?, "-initrd", text(&initrd)?])
            .args([
                "-append",
                "console=ttyAMA0 quiet cryptomgr.notests hvrun=test modules=virtio_pci,virtio_blk,virtio_net",
            ])
            .args([
                "-device",
                "pcie-root-port,id=rp0,chassis=1",
                "-device",
                "pcie-root-port,id=rp1,chassis=2",
            ])
            .args(["-serial", "stdio", "-monitor", "none"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", text(&socket)?)])
            .args(more)
            .start()?;
        let qmp = Qmp::begin(Socket::connect(&socket, LIMIT)?)?;
        let mut machine = Machine { guest, qmp, dir };
        machine.guest.ready()?;
        Ok(machine)
    }
}

/// Whether QEMU's own tool may write to the image, which it may not while somebody else does.
fn may_be_written(image: &Path) -> Result<bool> {
    let mut command = std::process::Command::new("qemu-img");
    Ok(command.args(["resize", "-q", "-f", "raw"]).arg(image).arg("4M").output()?.status.success())
}

#[test]
fn a_disk_and_a_card_come_are_used_and_go() -> Result<()> {
    let mut machine = Machine::start(&[])?;
    let image = disks::raw(machine.dir.path(), "hot.raw", 4 * MIB, Pattern { seed: 7 })?;
    let filename = text(&image)?.to_owned();
    let file = json!({ "driver": "file", "filename": filename });
    let node = json!({ "driver": "raw", "node-name": "n0", "file": file });
    machine.qmp.done("blockdev-add", node.clone())?;
    assert_eq!(machine.qmp.refused("blockdev-add", node)?.1, "Duplicate nodes with node-name='n0'");

    // What QEMU says to what cannot be.
    let device = |bus: &str| json!({ "driver": "virtio-blk-pci", "id": "d0", "drive": "n0", "bus": bus, "serial": "hot" });
    let wrong = machine.qmp.refused("device_add", device("pcie.0"))?;
    assert_eq!(wrong, ("GenericError".into(), "Bus 'pcie.0' does not support hotplugging".into()));
    assert_eq!(machine.qmp.refused("device_add", device("rp7"))?.1, "Bus 'rp7' not found");
    assert_eq!(machine.qmp.refused("device_del", json!({ "id": "d0" }))?.0, "DeviceNotFound");

    machine.qmp.done("device_add", device("rp0"))?;
    assert_eq!(machine.qmp.refused("device_add", device("rp1"))?.1, "Duplicate ID 'd0' for device");
    machine.qmp.done("netdev_add", json!({ "type": "user", "id": "u0" }))?;
    assert_eq!(machine.qmp.hmp("device_add virtio-net-pci,id=c0,netdev=u0,bus=rp1")?, "");

    // Both are used.
    assert_eq!(machine.guest.disk("hot")?, "/dev/vda");
    machine
        .guest
        .sh("dd if=/dev/vda of=/dev/vda bs=512 skip=8 seek=0 count=8 conv=fsync,notrunc 2>/dev/null")?;
    machine.guest.sh(
        "waits [ -e /sys/class/net/eth0 ]; dhcp eth0 >/dev/null 2>&1; ping -c 1 -W 20 10.0.2.2 >/dev/null",
    )?;
    let shown =
        [machine.qmp.hmp("info block")?, machine.qmp.hmp("info network")?, machine.qmp.hmp("info qtree")?];
    ensure!(
        shown[0].contains("Attached to:      /machine/peripheral/d0/virtio-backend")
            && shown[1].contains("c0: index=0"),
        "{shown:?}"
    );
    ensure!(
        shown[2].contains("bus: rp0") && shown[2].contains("dev: virtio-blk-pci, id \"d0\""),
        "{shown:?}"
    );
    let answer = machine.qmp.execute("query-block", json!({}))?;
    let disk = &answer["return"][0];
    assert_eq!(disk["qdev"], "/machine/peripheral/d0/virtio-backend", "{answer}");
    assert_eq!(disk["inserted"]["node-name"], "n0", "{answer}");
    ensure!(!may_be_written(&image)?, "the image is not locked");

    // Both go, the guest having written what it had to.
    machine
        .guest
        .sh("dd if=/dev/vda of=/dev/vda bs=512 skip=100 seek=99 count=1 conv=notrunc 2>/dev/null")?;
    machine.qmp.done("device_del", json!({ "id": "d0" }))?;
    assert_eq!(
        machine.qmp.refused("device_del", json!({ "id": "d0" }))?.1,
        "Device d0 is already in the process of unplug"
    );
    machine.qmp.hmp("device_del c0")?;
    let mut gone = [machine.qmp.event("DEVICE_DELETED")?, machine.qmp.event("DEVICE_DELETED")?];
    gone.sort_by_key(ToString::to_string);
    let [card, disk] =
        ["c0", "d0"].map(|id| json!({ "device": id, "path": format!("/machine/peripheral/{id}") }));
    assert_eq!(gone, [card, disk]);
    machine.guest.sh("[ ! -e /dev/vda ] && [ ! -e /sys/class/net/eth0 ]")?;
    machine.qmp.done("blockdev-del", json!({ "node-name": "n0" }))?;
    assert_eq!(machine.qmp.hmp("netdev_del u0")?, "");
    ensure!(may_be_written(&image)?, "the image is still locked");
    let bytes = std::fs::read(&image)?;
    for (at, what) in [(0, 8), (7, 15), (8, 8), (99, 100)] {
        ensure!(bytes[at * SECTOR..][..SECTOR] == Pattern { seed: 7 }.sector(what), "sector {at}");
    }
    assert_eq!(machine.guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn a_reset_keeps_what_is_plugged_and_takes_what_was_to_go() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cold = disks::raw(dir.path(), "cold.raw", 4 * MIB, Pattern { seed: 1 })?;
    let spare = disks::raw(dir.path(), "spare.raw", 4 * MIB, Pattern { seed: 2 })?;
    let mut machine = Machine::start(&[
        "-drive",
        &format!("if=none,id=cold,format=raw,file={}", text(&cold)?),
        "-device",
        "virtio-blk-pci,id=a,drive=cold,bus=rp0,serial=cold",
    ])?;
    assert_eq!(machine.guest.disk("cold")?, "/dev/vda");
    let add = format!("drive_add 0 if=none,id=spare,format=raw,file={}", text(&spare)?);
    assert_eq!(machine.qmp.hmp(&add)?, "OK\r\n");
    assert_eq!(machine.qmp.hmp("device_add virtio-blk-pci,id=b,drive=spare,bus=rp1,serial=spare")?, "");
    assert_eq!(machine.guest.disk("spare")?, "/dev/vdb");
    // The guest has no time to let go.
    assert_eq!(machine.qmp.hmp("device_del a")?, "");
    machine.qmp.done("system_reset", json!({}))?;
    assert_eq!(machine.qmp.event("DEVICE_DELETED")?["device"], "a");
    machine.guest.ready()?;
    assert_eq!(machine.guest.disk("spare")?, "/dev/vda");
    machine.guest.sh("[ ! -e /dev/vdb ]")?;
    ensure!(may_be_written(&cold)? && !may_be_written(&spare)?, "the wrong image is locked");
    assert_eq!(machine.guest.poweroff()?.code, Some(0));
    Ok(())
}
