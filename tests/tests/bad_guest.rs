//! Guests that do what no guest should: each ends in the architectural exception (the image's vectors then print `EXC` and the class,
//! ESR_EL1.EC, and power off) or in a report, and never in a hang or a panic of the monitor.

use anyhow::{Result, bail, ensure};
use hvrun_tests::Hvrun;
use hvrun_tests::bare::Program;
use rustix::process::Signal;
use std::time::Duration;

/// ESR_EL1.EC (Arm ARM D24.2.40): unknown reason; instruction abort, data abort, each from the same exception level; PC alignment fault.
const UNKNOWN: &str = "00";
const INSTRUCTION_ABORT: &str = "21";
const PC_ALIGNMENT: &str = "22";
const DATA_ABORT: &str = "25";

/// Nothing of the machine lies here: behind 1 GiB of memory, and in a gap before the devices.
const BEHIND_MEMORY: u64 = 0x1_4000_0000;
const NO_DEVICE: u64 = 0x0700_0000;

/// The guest takes the exception of this class.
fn takes_exception(class: &str, program: &Program) -> Result<()> {
    let (_dir, kernel) = program.file()?;
    let outcome = Hvrun::kernel(&kernel).run()?;
    assert_eq!(
        (outcome.serial.as_str(), outcome.code),
        (&*format!("EXC {class}\n"), Some(0)),
        "{}",
        outcome.stderr
    );
    Ok(())
}

/// The guest takes an exception of one of these classes, or hvrun ends with a report that names the address.
fn takes_exception_or_is_reported(classes: &[&str], address: u64, program: &Program) -> Result<()> {
    let (_dir, kernel) = program.file()?;
    let outcome = Hvrun::kernel(&kernel).run()?;
    match outcome.code {
        Some(0) => {
            let class = outcome.serial.strip_prefix("EXC ").map(str::trim);
            ensure!(
                class.is_some_and(|class| classes.contains(&class)),
                "the guest wrote: {}",
                outcome.serial
            );
        }
        Some(1) => {
            let report = outcome.stderr.to_lowercase().replace('_', "");
            ensure!(
                report.contains(&format!("{address:x}")),
                "the report does not name {address:#x}: {report}"
            );
        }
        _ => bail!("code {:?}, signal {:?}: {}", outcome.code, outcome.signal, outcome.stderr),
    }
    Ok(())
}

/// The guest ends by itself with a report, or runs on and can be ended.
fn ends_or_can_be_ended(program: &Program) -> Result<()> {
    let (_dir, kernel) = program.file()?;
    let guest = Hvrun::kernel(&kernel).limit(Duration::from_secs(10)).start()?;
    std::thread::sleep(Duration::from_secs(1));
    guest.signal(Signal::TERM)?;
    let outcome = guest.wait()?;
    if outcome.code == Some(1) {
        ensure!(!outcome.stderr.trim().is_empty(), "an error without a report");
    }
    Ok(())
}

#[test]
fn undefined_instruction_is_an_exception_of_unknown_reason() -> Result<()> {
    takes_exception(UNKNOWN, &Program::new().word(0).spin())
}

#[test]
fn unallocated_encoding_is_an_exception_of_unknown_reason() -> Result<()> {
    takes_exception(UNKNOWN, &Program::new().word(0xFFFF_FFFF).spin())
}

#[test]
fn jump_to_an_odd_address_is_a_pc_alignment_fault() -> Result<()> {
    takes_exception(PC_ALIGNMENT, &Program::new().jump(0x4000_0002))
}

#[test]
fn jump_behind_memory_is_an_instruction_abort_or_a_report() -> Result<()> {
    takes_exception_or_is_reported(&[INSTRUCTION_ABORT], BEHIND_MEMORY, &Program::new().jump(BEHIND_MEMORY))
}

#[test]
fn jump_into_a_device_is_an_instruction_abort_or_a_report() -> Result<()> {
    // Either the fetch aborts, or what it reads from the UART is no instruction.
    takes_exception_or_is_reported(
        &[INSTRUCTION_ABORT, UNKNOWN],
        0x0900_0000,
        &Program::new().jump(0x0900_0000),
    )
}

#[test]
fn read_of_an_address_beyond_the_address_space_is_a_data_abort() -> Result<()> {
    takes_exception_or_is_reported(&[DATA_ABORT], 1 << 50, &Program::new().read(1 << 50).spin())
}

#[test]
fn read_where_no_device_is_does_not_stop_the_machine() -> Result<()> {
    let (_dir, kernel) = Program::new().read(NO_DEVICE).print("ON\n").power_off().file()?;
    let outcome = Hvrun::kernel(&kernel).run()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    ensure!(["ON\n", "EXC 25\n"].contains(&outcome.serial.as_str()), "{}", outcome.serial);
    Ok(())
}

#[test]
fn abort_whose_vector_is_outside_memory_does_not_hang_the_monitor() -> Result<()> {
    ends_or_can_be_ended(&Program::new().vectors_at(BEHIND_MEMORY).word(0))
}

#[test]
fn endless_exceptions_do_not_hang_the_monitor() -> Result<()> {
    // The vector is in the zeroes at the end of the image, so each exception takes the next.
    ends_or_can_be_ended(&Program::new().vectors_at(0x4100_0000).word(0))
}

#[test]
fn kernel_of_noise_does_not_hang_the_monitor() -> Result<()> {
    let mut program = Program::new();
    let mut state = 0x9E37_79B9_u32;
    for _ in 0..900 {
        // xorshift32
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        program = program.word(state);
    }
    ends_or_can_be_ended(&program)
}
