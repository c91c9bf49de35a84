//! hvrun on a terminal: raw mode, the way back out of it, and the keys of its own.

use anyhow::{Result, ensure};
use hvrun_tests::bare::Program;
use hvrun_tests::{Hvrun, Input, Running, Terminal, artifacts};
use rustix::process::Signal;
use std::path::Path;

/// A guest that says `HELLO`, then sends back what is typed until `q`, then powers off.
fn echo() -> Program {
    Program::new().print("HELLO\n").echo_until(b'q').power_off()
}

fn start_on_terminal(kernel: &Path) -> Result<(Running, Terminal)> {
    let terminal = Terminal::open()?;
    ensure!(terminal.modes()?.is_cooked(), "a new terminal is cooked");
    let observer = terminal.try_clone()?;
    let mut guest = Hvrun::kernel(kernel).input(Input::Terminal(terminal)).start()?;
    guest.expect("HELLO")?;
    Ok((guest, observer))
}

#[test]
fn terminal_is_raw_while_the_guest_runs_and_as_before_afterwards() -> Result<()> {
    let (_dir, kernel) = echo().file()?;
    let before = Terminal::open()?.modes()?;
    let (mut guest, terminal) = start_on_terminal(&kernel)?;
    ensure!(!terminal.modes()?.is_cooked(), "raw mode");
    guest.send(b"q")?;
    let outcome = guest.wait()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(terminal.modes()?, before);
    Ok(())
}

#[test]
fn ctrl_a_x_ends_the_machine_and_restores_the_terminal() -> Result<()> {
    let (_dir, kernel) = echo().file()?;
    let before = Terminal::open()?.modes()?;
    let (mut guest, terminal) = start_on_terminal(&kernel)?;
    guest.send(b"\x01x")?;
    let outcome = guest.wait()?;
    ensure!(outcome.code.is_some(), "ended by signal {:?}", outcome.signal);
    assert_eq!(terminal.modes()?, before);
    Ok(())
}

#[test]
fn ctrl_a_h_shows_help_and_the_guest_goes_on() -> Result<()> {
    let (_dir, kernel) = echo().file()?;
    let (mut guest, _terminal) = start_on_terminal(&kernel)?;
    guest.send(b"\x01h")?;
    guest.send(b"go on")?;
    guest.expect("go on")?;
    guest.send(b"q")?;
    let outcome = guest.wait()?;
    assert_eq!(outcome.code, Some(0));
    let shown = (outcome.serial + &outcome.stderr).to_lowercase();
    ensure!(shown.contains("ctrl-a"), "no help in: {shown}");
    Ok(())
}

#[test]
fn ctrl_a_twice_sends_one_to_the_guest() -> Result<()> {
    let (_dir, kernel) = echo().file()?;
    let (mut guest, _terminal) = start_on_terminal(&kernel)?;
    guest.send(b"<\x01\x01>q")?;
    guest.expect("<\x01>")?;
    assert_eq!(guest.wait()?.code, Some(0));
    Ok(())
}

#[test]
fn ctrl_c_goes_to_the_guest() -> Result<()> {
    let (_dir, kernel) = echo().file()?;
    let (mut guest, _terminal) = start_on_terminal(&kernel)?;
    guest.send(b"<\x03>q")?;
    guest.expect("<\x03>")?;
    assert_eq!(guest.wait()?.code, Some(0));
    Ok(())
}

fn terminal_is_restored_after(signal: Signal) -> Result<()> {
    let (_dir, kernel) = echo().file()?;
    let before = Terminal::open()?.modes()?;
    let (guest, terminal) = start_on_terminal(&kernel)?;
    guest.signal(signal)?;
    guest.wait()?;
    assert_eq!(terminal.modes()?, before);
    Ok(())
}

#[test]
fn terminal_is_restored_after_sigterm() -> Result<()> {
    terminal_is_restored_after(Signal::TERM)
}

#[test]
fn terminal_is_restored_after_sigint() -> Result<()> {
    terminal_is_restored_after(Signal::INT)
}

#[test]
fn terminal_is_restored_after_sighup() -> Result<()> {
    terminal_is_restored_after(Signal::HUP)
}

#[test]
fn terminal_is_restored_after_an_error() -> Result<()> {
    let before = Terminal::open()?.modes()?;
    let terminal = Terminal::open()?;
    let observer = terminal.try_clone()?;
    let outcome = Hvrun::kernel(Path::new("/nonexistent/kernel")).input(Input::Terminal(terminal)).run()?;
    assert_eq!(outcome.code, Some(1));
    assert_eq!(observer.modes()?, before);
    Ok(())
}

#[test]
fn demo_guest_has_a_shell_with_job_control() -> Result<()> {
    let terminal = Terminal::open()?;
    let mut guest = Hvrun::kernel(&artifacts::kernel()?)
        .arg(artifacts::initrd()?)
        .args(["--append", "console=ttyAMA0 quiet"])
        .limit(std::time::Duration::from_secs(90))
        .input(Input::Terminal(terminal))
        .start()?;
    guest.expect("root@hvrun:/root# ")?;
    // Typed, so the command comes back as an echo; the result is what the echo does not contain.
    guest.send(b"sleep 1000\r")?;
    guest.expect("sleep 1000")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    guest.send(b"\x1a")?; // Ctrl-Z
    guest.expect("Stopped")?;
    guest.send(b"fg\r")?;
    guest.expect("fg")?;
    guest.expect("sleep 1000")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    guest.send(b"\x03")?; // Ctrl-C
    guest.expect("root@hvrun:/root# ")?;
    guest.send(b"echo $((6*7))$((6*7))\r")?;
    guest.expect("4242")?;
    guest.send(b"exit\r")?;
    let outcome = guest.wait()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    Ok(())
}
