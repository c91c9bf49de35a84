//! The command around the machine: its exit codes, its standard input, where the serial port goes, and signals. The guests are a few
//! instructions long and take milliseconds.

use anyhow::{Context, Result, ensure};
use hvrun_tests::bare::{Program, file};
use hvrun_tests::{Hvrun, Input, Outcome};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn hello() -> Program {
    Program::new().print("HELLO\n")
}

#[test]
fn poweroff_ends_with_0_and_the_serial_port_is_on_stdout() -> Result<()> {
    let (_dir, kernel) = hello().power_off().file()?;
    let outcome = Hvrun::kernel(&kernel).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "HELLO\n"));
    Ok(())
}

#[test]
fn reset_starts_the_program_afresh() -> Result<()> {
    let (_dir, kernel) = hello().reset().file()?;
    let mut guest = Hvrun::kernel(&kernel).start()?;
    for _ in 0..3 {
        guest.expect("HELLO\n")?;
    }
    guest.signal(Signal::TERM)?;
    guest.wait()?;
    Ok(())
}

#[test]
fn reset_ends_with_0_under_no_reboot() -> Result<()> {
    let (_dir, kernel) = hello().reset().file()?;
    let outcome = Hvrun::kernel(&kernel).arg("--no-reboot").run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "HELLO\n"));
    Ok(())
}

fn ends_promptly_on(signal: Signal, program: &Program) -> Result<()> {
    let (_dir, kernel) = program.file()?;
    let mut guest = Hvrun::kernel(&kernel).start()?;
    guest.expect("HELLO\n")?;
    guest.signal(signal)?;
    let asked = Instant::now();
    guest.wait()?;
    // The watchdog would end it after 20 s.
    ensure!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    Ok(())
}

#[test]
fn sigterm_ends_a_guest_that_computes() -> Result<()> {
    ends_promptly_on(Signal::TERM, &hello().spin())
}

#[test]
fn sigterm_ends_a_guest_that_sleeps() -> Result<()> {
    ends_promptly_on(Signal::TERM, &hello().sleep())
}

#[test]
fn sigint_ends_a_guest_that_computes() -> Result<()> {
    ends_promptly_on(Signal::INT, &hello().spin())
}

#[test]
fn sigint_ends_a_guest_that_sleeps() -> Result<()> {
    ends_promptly_on(Signal::INT, &hello().sleep())
}

/// A guest that has had time to notice that its standard input is at an end.
fn survives(input: Input) -> Result<Outcome> {
    let (_dir, kernel) = hello().delay(300).print("STILL HERE\n").power_off().file()?;
    let outcome = Hvrun::kernel(&kernel).input(input).run()?;
    assert_eq!(
        (outcome.code, outcome.serial.as_str()),
        (Some(0), "HELLO\nSTILL HERE\n"),
        "{}",
        outcome.stderr
    );
    Ok(outcome)
}

#[test]
fn empty_stdin_is_no_event() -> Result<()> {
    survives(Input::Empty).map(|_| ())
}

#[test]
fn closed_stdin_is_no_event() -> Result<()> {
    survives(Input::Closed).map(|_| ())
}

#[test]
fn stdin_at_its_end_uses_no_cpu() -> Result<()> {
    let (_dir, kernel) = hello().sleep().file()?;
    let mut guest = Hvrun::kernel(&kernel).start()?;
    guest.expect("HELLO\n")?;
    guest.close_input();
    std::thread::sleep(Duration::from_secs(1));
    guest.signal(Signal::TERM)?;
    let used = guest.wait()?.usage;
    ensure!((used.user + used.system) < Duration::from_millis(500), "{used:?}");
    Ok(())
}

#[test]
fn stdin_is_read_from_a_pipe_until_its_end() -> Result<()> {
    let (_dir, kernel) = hello().echo_until(b'q').power_off().file()?;
    let mut guest = Hvrun::kernel(&kernel).start()?;
    guest.expect("HELLO\n")?;
    guest.send(b"from a pipe q")?;
    guest.close_input();
    guest.expect("from a pipe q")?;
    assert_eq!(guest.wait()?.code, Some(0));
    Ok(())
}

#[test]
fn serial_goes_to_a_file() -> Result<()> {
    let (dir, kernel) = hello().power_off().file()?;
    let log = dir.path().join("serial.log");
    let outcome = Hvrun::kernel(&kernel).arg("--serial").arg(format!("file:{}", log.display())).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), ""), "{}", outcome.stderr);
    assert_eq!(std::fs::read_to_string(log)?, "HELLO\n");
    Ok(())
}

#[test]
fn serial_none_is_silent() -> Result<()> {
    let (_dir, kernel) = hello().power_off().file()?;
    let outcome = Hvrun::kernel(&kernel).args(["--serial", "none"]).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), ""), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn serial_talks_over_a_unix_socket() -> Result<()> {
    let (dir, kernel) = Program::new().echo_until(b'q').power_off().file()?;
    let path = dir.path().join("serial.sock");
    let guest = Hvrun::kernel(&kernel).arg("--serial").arg(format!("unix:{}", path.display())).start()?;
    let mut socket = connect(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(15)))?;
    socket.write_all(b"over a socket q")?;
    let mut answer = [0; 15];
    socket.read_exact(&mut answer).context("no answer")?;
    assert_eq!(&answer, b"over a socket q");
    assert_eq!(guest.wait()?.code, Some(0));
    Ok(())
}

fn connect(path: &std::path::Path) -> Result<UnixStream> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => return Ok(socket),
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error).context("the socket did not appear"),
        }
    }
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

#[test]
fn gzip_compressed_kernel_boots() -> Result<()> {
    let (_dir, kernel) = file(&gzip(&hello().power_off().image())?)?;
    let outcome = Hvrun::kernel(&kernel).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "HELLO\n"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn help_goes_to_stdout_and_names_every_option() -> Result<()> {
    let outcome = Hvrun::new().arg("--help").run()?;
    assert_eq!(outcome.code, Some(0));
    for option in ["--append", "--memory", "--cpus", "--accel", "--no-reboot", "--serial", "--print-config"] {
        ensure!(outcome.serial.contains(option), "{option} is not in: {}", outcome.serial);
    }
    Ok(())
}

#[test]
fn version_goes_to_stdout() -> Result<()> {
    let outcome = Hvrun::new().arg("--version").run()?;
    assert_eq!(outcome.code, Some(0));
    ensure!(outcome.serial.starts_with("hvrun "), "{}", outcome.serial);
    Ok(())
}

#[test]
fn print_config_is_json_and_starts_nothing() -> Result<()> {
    let (_dir, kernel) = hello().power_off().file()?;
    let outcome = Hvrun::kernel(&kernel).args(["--cpus", "3", "--print-config"]).run()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let config: serde_json::Value = serde_json::from_str(&outcome.serial)?;
    ensure!(config["cpus"] == 3, "{config}");
    Ok(())
}

#[test]
fn accel_list_takes_the_first_that_works() -> Result<()> {
    let (_dir, kernel) = hello().power_off().file()?;
    let outcome = Hvrun::new().args(["--accel", "hvf:kvm:soft", "-v"]).arg(&kernel).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "HELLO\n"), "{}", outcome.stderr);
    Ok(())
}
