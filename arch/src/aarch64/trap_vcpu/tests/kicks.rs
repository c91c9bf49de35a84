//! Kicks: none is lost, none is invented.

use super::*;

#[test]
fn a_kick_before_run_is_not_lost() {
    let mut vcpu = vcpu();
    vcpu.kicker().kick();
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    assert!(vcpu.raw.runs.is_empty());
}

#[test]
fn a_kick_before_run_is_not_lost_by_a_forgetful_kicker() {
    let mut vcpu = vcpu_of(&machine(1), 0, Scripted::forgetful());
    vcpu.kicker().kick();
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
}

#[test]
fn a_kick_between_the_check_and_the_run_is_repeated() {
    let mut vcpu = vcpu_of(&machine(1), 0, Scripted::forgetful());
    let kicker = vcpu.kicker();
    vcpu.raw.before_run = Some(Box::new(move || kicker.kick()));
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
}

#[test]
fn a_kick_during_run_ends_it() {
    let mut vcpu = vcpu();
    let kicker = vcpu.kicker();
    let helper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        kicker.kick();
    });
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    helper.join().unwrap();
}

#[test]
fn two_kicks_before_run_are_one() {
    let mut vcpu = vcpu();
    vcpu.kicker().kick();
    vcpu.kicker().kick();
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    vcpu.raw.exits(word_abort(DEVICE, false, 3));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
}

#[test]
fn a_kick_of_unknown_origin_is_no_exit() {
    let mut vcpu = vcpu();
    vcpu.raw.exits(RawExit::Canceled);
    vcpu.raw.exits(word_abort(DEVICE, false, 3));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
}

#[test]
fn unknown_exits_are_retried() {
    let mut vcpu = vcpu();
    vcpu.raw.exits(RawExit::Unknown);
    vcpu.raw.exits(RawExit::Unknown);
    vcpu.raw.exits(word_abort(DEVICE, false, 3));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
}

#[test]
fn unknown_exits_without_end_let_the_caller_look() {
    let mut vcpu = vcpu();
    for _ in 0..UNKNOWN_EXITS {
        vcpu.raw.exits(RawExit::Unknown);
    }
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
}

#[test]
fn a_kick_wakes_a_powered_off_cpu() {
    let mut vcpu = vcpu_of(&machine(2), 1, Scripted::new());
    let kicker = vcpu.kicker();
    let helper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        kicker.kick();
    });
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    helper.join().unwrap();
    assert!(vcpu.raw.runs.is_empty());
}
