//! Pausing and resetting a machine from outside, and what others hear of it.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hvrun_vmm::{Cause, Machine, MachineControl, MachineEvent, Outcome, RunState};

use super::fake::Step;
use super::setup;

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

fn events(control: &MachineControl) -> Receiver<MachineEvent> {
    let (sender, receiver) = channel();
    control.observe(move |event| sender.send(event).unwrap());
    receiver
}

fn next(events: &Receiver<MachineEvent>) -> MachineEvent {
    events.recv_timeout(LIMIT).unwrap()
}

#[test]
fn machine_that_starts_paused_runs_nothing_until_it_is_resumed() {
    let mut setup = setup(vec![vec![vec![Step::Read(super::UARTPERIPHID0), Step::Off]], vec![]]);
    setup.config.lifecycle.paused = true;
    let (machine, log, _dir) = setup.build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    // Both answer at the gate, so both are there.
    assert!(control.registers(0).is_some() && control.registers(1).is_some());
    assert_eq!((control.run_state(), log.count("read")), (RunState::Prelaunch, 0));
    control.resume();
    assert_eq!(running.wait().unwrap(), Outcome::PoweredOff);
    assert_eq!(log.count("read"), 1);
}

#[test]
fn pause_and_resume_are_told_once_each() {
    let (machine, _log, _dir) = setup(vec![vec![], vec![]]).build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    let events = events(&control);
    control.pause();
    control.pause();
    assert_eq!(control.run_state(), RunState::Paused);
    control.resume();
    control.resume();
    assert_eq!(control.run_state(), RunState::Running);
    control.stop();
    assert_eq!(running.wait().unwrap(), Outcome::Stopped);
    let told = [next(&events), next(&events), next(&events)];
    assert_eq!(
        told,
        [MachineEvent::Stopped, MachineEvent::Resumed, MachineEvent::Shutdown(Cause::HostSignal)]
    );
    assert!(events.try_recv().is_err());
}

#[test]
fn every_vcpu_hears_of_the_time_that_it_was_stopped_before_it_goes_on() {
    let (machine, log, _dir) = setup(vec![vec![], vec![]]).build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    control.pause();
    assert_eq!(log.count("clock"), 0);
    control.resume();
    assert!(control.registers(0).is_some() && control.registers(1).is_some());
    assert_eq!((log.count("clock 0"), log.count("clock 1")), (1, 1));
}

#[test]
fn paused_machine_can_be_stopped() {
    let (machine, log, _dir) = setup(vec![vec![], vec![]]).build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    control.pause();
    control.stop();
    assert_eq!(running.wait().unwrap(), Outcome::Stopped);
    assert_eq!((control.run_state(), log.count("drop")), (RunState::Shutdown, 2));
}

#[test]
fn reset_of_a_paused_machine_leaves_it_paused() {
    let (machine, log, _dir) = setup(vec![vec![vec![], vec![Step::Off]], vec![]]).build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    control.pause();
    let events = events(&control);
    control.reset();
    assert_eq!(next(&events), MachineEvent::Reset(Cause::HostReset));
    assert_eq!((control.run_state(), log.count("reset vm")), (RunState::Prelaunch, 1));
    control.resume();
    assert_eq!(running.wait().unwrap(), Outcome::PoweredOff);
}

#[test]
fn guest_s_power_off_pauses_the_machine_under_no_shutdown_until_it_is_reset() {
    let boots = vec![vec![vec![Step::Off], vec![Step::Read(super::UARTPERIPHID0)]], vec![]];
    let mut setup = setup(boots);
    setup.config.lifecycle.no_shutdown = true;
    let (machine, log, _dir) = setup.build().unwrap();
    let control = machine.control();
    let events = events(&control);
    let running = machine.start().unwrap();
    assert_eq!(next(&events), MachineEvent::Shutdown(Cause::GuestShutdown));
    assert_eq!(next(&events), MachineEvent::Stopped);
    assert_eq!(control.run_state(), RunState::PoweredOff);
    assert!(!control.resume(), "its guest cannot go on");
    assert_eq!(control.run_state(), RunState::PoweredOff);
    control.reset();
    assert_eq!(next(&events), MachineEvent::Reset(Cause::HostReset));
    assert_eq!((control.run_state(), log.count("read")), (RunState::Prelaunch, 0));
    assert!(control.resume());
    assert_eq!(next(&events), MachineEvent::Resumed);
    control.stop();
    assert_eq!(running.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn reset_from_outside_boots_again() {
    let (machine, log, _dir) = setup(vec![vec![vec![], vec![Step::Off]], vec![]]).build().unwrap();
    let running = machine.start().unwrap();
    running.control().reset();
    assert_eq!(running.wait().unwrap(), Outcome::PoweredOff);
    assert_eq!(log.count("reset vm"), 1);
}

#[test]
fn reset_from_outside_ends_the_machine_under_no_reboot() {
    let mut setup = setup(vec![vec![]]);
    setup.config.lifecycle.no_reboot = true;
    let (machine, _log, _dir) = setup.build().unwrap();
    let running = machine.start().unwrap();
    let events = events(&running.control());
    running.control().reset();
    assert_eq!(running.wait().unwrap(), Outcome::Reset);
    assert_eq!(next(&events), MachineEvent::Shutdown(Cause::HostReset));
}

#[test]
fn guest_s_own_end_and_reset_are_told_as_such() {
    let boots = vec![vec![Step::Reset], vec![Step::Off]];
    let (machine, _log, _dir) = setup(vec![boots]).build().unwrap();
    let events = events(&machine.control());
    machine.start().unwrap().wait().unwrap();
    assert_eq!(next(&events), MachineEvent::Reset(Cause::GuestReset));
    assert_eq!(next(&events), MachineEvent::Shutdown(Cause::GuestShutdown));
}

#[test]
fn registers_are_those_of_the_vcpu_that_was_asked_for() {
    let (machine, _log, _dir) = setup(vec![vec![], vec![]]).build().unwrap();
    let control = machine.control();
    assert_eq!(control.registers(1), None, "it has not started");
    let running: hvrun_vmm::RunningMachine = Machine::start(machine).unwrap();
    assert_eq!(control.registers(1).as_deref(), Some("PC=0x1234 CPU=1\n"));
    assert_eq!(control.registers(2), None);
    control.pause();
    assert_eq!(control.registers(0).as_deref(), Some("PC=0x1234 CPU=0\n"));
    drop(running);
    assert_eq!(control.registers(0), None, "it has ended");
}

#[test]
fn pause_before_the_start_does_not_wait() {
    let (machine, _log, _dir) = setup(vec![vec![vec![Step::Off]]]).build().unwrap();
    let control = machine.control();
    control.pause();
    let running = machine.start().unwrap();
    assert_eq!(control.run_state(), RunState::Prelaunch);
    control.resume();
    assert_eq!(running.wait().unwrap(), Outcome::PoweredOff);
}
