//! The monitor for programs, controlled with the library that QEMU's project publishes for that (`qemu.qmp` on PyPI). What is said is in
//! `qmp_client/client.py`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvrun_tests::bare::Program;
use hvrun_tests::process::Supervised;
use hvrun_tests::{Hvrun, artifacts, disks};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn qemu_s_own_library_for_programs_controls_a_machine() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the path is not UTF-8");
    let (server, listen) = (text(&dir.path().join("server"))?, text(&dir.path().join("listen"))?);
    let disk = text(&disks::empty(dir.path(), "disk.raw", 1 << 20)?)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qmp_client/client.py");
    let mut command = Command::new("python3");
    command.arg(script).args([&server, &listen]).env("PYTHONPATH", artifacts::qmp_library()?);
    let (program, mut child) =
        Supervised::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()), LIMIT)?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut errors = child.stderr.take().context("no errors")?;
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).map(|_| text)
    });
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(line == "listening\n", "{:?}", errors.join());

    let (_kernel_dir, kernel) = Program::new().print("UP\n").sleep().file()?;
    let machine = Hvrun::called("qemu-system-aarch64")
        .args([
            "-accel",
            "tcg",
            "-nodefaults",
            "-name",
            "horus",
            "-serial",
            "stdio",
            "-kernel",
            &text(&kernel)?,
        ])
        .args(["-drive", &format!("file={disk},format=raw,id=drive1,if=none")])
        .args(["-device", "virtio-blk-pci,drive=drive1"])
        .args(["-nic", "user,id=net0", "-qmp", &format!("unix:{server},server=on,wait=off")])
        .args(["-qmp", &format!("unix:{listen}")])
        .limit(LIMIT)
        .start()?;

    let ended = program.wait()?;
    let errors = errors.join().ok().context("the reader has panicked")??;
    ensure!(ended.status.success(), "{}: {errors}", ended.status);
    assert_eq!(machine.wait()?.code, Some(0));
    Ok(())
}
