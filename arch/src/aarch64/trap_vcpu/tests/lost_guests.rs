//! Guests that run away.

use super::*;

#[test]
fn a_jump_outside_ram_is_an_external_abort() {
    let mut vcpu = vcpu();
    vcpu.raw.then(|raw| {
        raw.set_reg(Reg::Pc, 0x1000).unwrap();
        instruction_abort(0x1000)
    });
    run_script(&mut vcpu);
    assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::INSTRUCTION_ABORT_SAME, 0x10));
    assert_eq!((sys(&vcpu, names::ELR_EL1), sys(&vcpu, names::FAR_EL1)), (0x1000, 0x1000));
    assert_eq!(pc(&vcpu), VBAR + 0x200);
}

#[test]
fn vectors_outside_ram_end_in_a_fault() {
    let mut vcpu = vcpu();
    vcpu.raw.set_sys_reg(names::VBAR_EL1, 0).unwrap();
    vcpu.raw.set_reg(Reg::Pc, 0x1000).unwrap();
    for _ in 0..10 {
        vcpu.raw.then(|raw| instruction_abort(raw.reg(Reg::Pc).unwrap()));
    }
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("vectors")));
}

#[test]
fn a_guest_that_returns_to_the_same_abort_for_ever_ends_in_a_fault() {
    let mut vcpu = vcpu();
    for _ in 0..20_000 {
        vcpu.raw.then(|raw| {
            raw.set_reg(Reg::Pc, 0x1000).unwrap();
            instruction_abort(0x1000)
        });
    }
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("again and again")));
}

#[test]
fn aborts_at_different_places_are_no_loop() {
    let mut vcpu = vcpu();
    for n in 0..20_000u64 {
        vcpu.raw.then(move |raw| {
            let addr = 0x1000 + 4 * (n % 2);
            raw.set_reg(Reg::Pc, addr).unwrap();
            instruction_abort(addr)
        });
    }
    assert_eq!(run_script(&mut vcpu), VcpuExit::Kicked);
}

#[test]
fn an_instruction_abort_on_ram_is_a_fault() {
    let mut vcpu = vcpu();
    vcpu.raw.exits(instruction_abort(PC));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(_)));
}
