//! hvrun by QEMU's names: the command line of a NixOS test boots Debian's kernel, and what is wrong is refused as QEMU's users expect it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvrun_tests::bare::Program;
use hvrun_tests::socket::Socket;
use hvrun_tests::{Hvrun, Outcome, artifacts, disks};

const MIB: u64 = 1 << 20;
/// As long as a guest may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// What a path is called on the command line.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

fn qemu() -> Hvrun {
    Hvrun::called("qemu-system-aarch64")
}

/// qemu-system-aarch64 with a program for the bare machine, on the software CPU.
fn bare(program: &Program, args: &[&str]) -> Result<Outcome> {
    let (_dir, kernel) = program.file()?;
    qemu()
        .args(["-accel", "tcg", "-nodefaults", "-serial", "stdio", "-kernel", text(&kernel)?])
        .args(args)
        .run()
}

/// Refused with exit code 1, nothing on standard output, and one line on standard error with all of `words`.
fn refused(hvrun: Hvrun, words: &[&str]) -> Result<()> {
    let outcome = hvrun.run()?;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    ensure!(outcome.serial.is_empty(), "standard output has: {}", outcome.serial);
    ensure!(outcome.stderr.lines().count() == 1, "more than one line: {}", outcome.stderr);
    for word in words {
        ensure!(outcome.stderr.contains(word), "'{word}' is not in: {}", outcome.stderr);
    }
    Ok(())
}

/// The words of a NixOS test on a Mac (24.05 to 26.05), but for its monitors; a socket takes the place of the VDE switch.
#[test]
fn the_command_line_of_a_nixos_test_boots_linux_with_all_its_devices() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let state = text(dir.path())?;
    fs::create_dir(dir.path().join("xchg"))?;
    fs::write(dir.path().join("xchg/note"), "from the host")?;
    let root = disks::qcow2(dir.path(), "machine.qcow2", 64 * MIB, "", None)?;
    let empty = disks::qcow2(dir.path(), "empty0.qcow2", 32 * MIB, "", None)?;
    let shell = UnixListener::bind(dir.path().join("shell"))?;
    let (kernel, initrd) = (artifacts::kernel()?, artifacts::virtio_initrd()?);
    let script = format!(
        "-machine virt,gic-version=2,accel=hvf:tcg -cpu max -name machine -m 1024 -smp 1 -device virtio-rng-pci \
         -net nic,netdev=user.0,model=virtio -netdev user,id=user.0, \
         -virtfs local,path={state}/xchg,security_model=none,mount_tag=xchg \
         -drive cache=writeback,file={root},id=drive1,if=none,index=1,werror=report \
         -device virtio-blk-pci,bootindex=1,drive=drive1,serial=root \
         -drive file={empty},id=drive2,if=none,index=2,werror=report -device virtio-blk-pci,drive=drive2 \
         -device virtio-net-pci,netdev=vlan1,mac=52:54:00:12:01:01 \
         -netdev stream,id=vlan1,server=on,addr.type=unix,addr.path={state}/vlan1 \
         -device virtio-keyboard -device virtio-gpu-pci -device usb-ehci,id=usb0 -device usb-kbd -device usb-tablet \
         -chardev socket,id=shell,path={state}/shell -device virtio-serial -device virtconsole,chardev=shell \
         -device virtio-rng-pci -serial stdio -no-reboot -nographic",
        root = text(&root)?,
        empty = text(&empty)?
    );
    let mut guest = qemu()
        .args(script.split_whitespace())
        .args(["-kernel", text(&kernel)?, "-initrd", text(&initrd)?])
        .args(["-append", hvrun_tests::VIRTIO_COMMAND_LINE])
        .start()?;
    let mut far = Socket::accept(&shell, LIMIT)?;
    guest.ready()?;

    assert_eq!(guest.disk("root")?, "/dev/vda");
    let sizes = guest.sh("cat /sys/block/vda/size /sys/block/vdb/size")?;
    assert_eq!(sizes.split_whitespace().collect::<Vec<_>>(), ["131072", "65536"]);
    guest.share("xchg", "/mnt", "msize=16384")?;
    assert_eq!(guest.sh("cat /mnt/note; echo -n from the guest > /mnt/answer")?, "from the host");
    assert_eq!(fs::read_to_string(dir.path().join("xchg/answer"))?, "from the guest");
    let macs = guest.sh("cat /sys/class/net/eth0/address /sys/class/net/eth1/address")?;
    assert_eq!(macs.split_whitespace().collect::<Vec<_>>(), ["52:54:00:12:34:56", "52:54:00:12:01:01"]);
    guest.sh(
        "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ping -c 1 -W 20 10.0.2.2 >/dev/null",
    )?;
    guest.sh("echo Spawning backdoor root shell... > /dev/hvc0")?;
    far.expect("Spawning backdoor root shell...")?;

    let outcome = guest.poweroff()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    ensure!(outcome.stderr.contains("qemu-system-aarch64: info: hvf is not available"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn a_reset_ends_the_machine_under_no_reboot() -> Result<()> {
    let outcome = bare(&Program::new().print("ONCE\n").reset(), &["-no-reboot"])?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "ONCE\n"));
    Ok(())
}

#[test]
fn nographic_has_the_serial_port_on_standard_output() -> Result<()> {
    let (_dir, kernel) = Program::new().print("HELLO\n").power_off().file()?;
    let args = ["-M", "virt", "-accel", "tcg", "-nographic", "-kernel", text(&kernel)?];
    let outcome = qemu().args(args).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "HELLO\n"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn the_pidfile_is_gone_at_the_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pidfile = dir.path().join("pid");
    let outcome = bare(&Program::new().power_off(), &["-pidfile", text(&pidfile)?])?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(fs::read_dir(dir.path())?.count(), 0);
    Ok(())
}

#[test]
fn version_and_help_are_on_standard_output() -> Result<()> {
    let version = qemu().arg("--version").run()?;
    assert_eq!(version.code, Some(0));
    ensure!(
        version.serial.starts_with("QEMU emulator version 9.") && version.serial.contains("hvrun"),
        "{}",
        version.serial
    );
    let help = qemu().arg("-h").run()?;
    assert_eq!(help.code, Some(0));
    ensure!(help.serial.contains("-netdev TYPE,id=ID"), "{}", help.serial);
    Ok(())
}

#[test]
fn print_config_shows_the_machine_and_boots_nothing() -> Result<()> {
    let outcome =
        qemu().args(["-M", "virt", "-m", "2G", "-kernel", "/nonexistent", "--print-config"]).run()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    ensure!(outcome.serial.contains("\"memory\": \"2G\""), "{}", outcome.serial);
    Ok(())
}

#[test]
fn an_unknown_option_is_refused_with_1_by_the_programs_own_name() -> Result<()> {
    refused(qemu().args(["-drvie", "x"]), &["qemu-system-aarch64: -drvie", "did you mean 'drive'?"])
}

#[test]
fn missing_files_are_named() -> Result<()> {
    refused(
        qemu().args(["-kernel", "/nonexistent/Image", "-display", "none"]),
        &["/nonexistent/Image", "does not exist"],
    )?;
    let (_dir, kernel) = Program::new().power_off().file()?;
    let disk = ["-accel", "tcg", "-hda", "/nonexistent/disk", "-display", "none", "-kernel", text(&kernel)?];
    refused(qemu().args(disk), &["/nonexistent/disk"])
}

#[test]
fn more_cpus_than_a_machine_has_are_refused() -> Result<()> {
    refused(qemu().args(["-smp", "9", "-kernel", "/nonexistent"]), &["1 to 8 CPUs, not 9"])
}

#[test]
fn help_for_every_kind_of_value_is_on_standard_output() -> Result<()> {
    for (words, known) in [
        (["-machine", "help"], "virt-"),
        (["-M", "?"], "virt-"),
        (["-device", "help"], "virtio-blk-pci"),
        (["-cpu", "help"], "cortex-a53"),
        (["-accel", "help"], "hvf\nkvm\ntcg\n"),
        (["-netdev", "help"], "  user\n"),
    ] {
        let outcome = qemu().args(words).run()?;
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{words:?}");
        ensure!(outcome.serial.contains(known), "{words:?}: {}", outcome.serial);
    }
    Ok(())
}

/// What a machine wants of a folder in which there is nothing, and the words with which it is refused.
const NOT_THERE: [(&str, &[&str]); 8] = [
    ("-monitor unix:DIR/none", &["cannot connect a monitor", "DIR/none", "must listen there"]),
    ("-qmp unix:DIR/none", &["cannot connect a monitor", "DIR/none", "must listen there"]),
    ("-serial unix:DIR/none", &["DIR/none", "must listen there"]),
    (
        "-chardev socket,id=shell,path=DIR/none -device virtio-serial -device virtconsole,chardev=shell",
        &["cannot connect console 0", "DIR/none", "must listen there"],
    ),
    (
        "-netdev stream,id=n,addr.type=unix,addr.path=DIR/none -device virtio-net-pci,netdev=n",
        &["virtio-net-pci.0", "DIR/none", "start the peer first"],
    ),
    (
        "-netdev vde,id=n,sock=DIR/none -device virtio-net-pci,netdev=n",
        &["virtio-net-pci.0", "DIR/none", "vde_switch"],
    ),
    ("-drive file=DIR/none,if=virtio", &["DIR/none", "no such file", "qemu-img create"]),
    ("-virtfs local,path=DIR/none,mount_tag=t,security_model=none", &["DIR/none", "does not exist"]),
];

#[test]
fn what_is_not_there_is_named_and_nothing_is_left_behind() -> Result<()> {
    let (dir, (_kernel_dir, kernel)) = (tempfile::tempdir()?, Program::new().power_off().file()?);
    let here = |words: &str| Ok::<_, anyhow::Error>(words.replace("DIR", text(dir.path())?));
    // All of these are made when a machine starts: a process id, sockets, a file for the serial port's output.
    let made = here(
        "-pidfile DIR/pid -qmp unix:DIR/qmp,server=on,wait=off -mon chardev=m -chardev socket,id=m,path=DIR/m,server=on,wait=off",
    )?;
    for (words, refusal) in NOT_THERE {
        let serial = if words.starts_with("-serial") { String::new() } else { here("-serial file:DIR/log")? };
        let words = format!("{made} {serial} {}", here(words)?);
        let refusal: Vec<String> = refusal.iter().map(|word| here(word)).collect::<Result<_>>()?;
        let machine = qemu().args(["-accel", "tcg", "-nodefaults", "-kernel", text(&kernel)?]);
        refused(
            machine.args(words.split_whitespace()),
            &refusal.iter().map(String::as_str).collect::<Vec<_>>(),
        )?;
        let left: Vec<_> = fs::read_dir(dir.path())?.collect::<Result<_, _>>()?;
        ensure!(left.is_empty(), "{words}: {left:?}");
    }
    Ok(())
}

#[test]
fn x86_guests_are_not_there_yet_whatever_is_asked() -> Result<()> {
    let mut names = vec!["qemu-system-x86_64", "qemu-system-i386"];
    if cfg!(target_arch = "x86_64") {
        names.push("/usr/bin/qemu-kvm");
    }
    for name in names {
        for words in ["-machine accel=kvm:tcg -cpu max -m 1024", "-version", "-machine help", ""] {
            let program = name.trim_start_matches("/usr/bin/");
            refused(
                Hvrun::called(name).args(words.split_whitespace()),
                &[&format!("{program}: x86 guests are not there yet"), "qemu-system-aarch64"],
            )?;
        }
    }
    Ok(())
}

#[cfg(target_arch = "aarch64")]
#[test]
fn qemu_kvm_is_for_arm64_guests_on_an_arm64_host() -> Result<()> {
    let outcome = Hvrun::called("qemu-kvm").args(["-m", "384", "-kernel", "Image", "-print-config"]).run()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    ensure!(outcome.serial.contains("\"memory\": \"384M\""), "{}", outcome.serial);
    Ok(())
}
