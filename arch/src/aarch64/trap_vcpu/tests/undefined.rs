//! Traps that become UNDEFINED, or nothing that can be continued.

use super::*;

fn is_undefined(class: u8) -> bool {
    let mut vcpu = vcpu();
    vcpu.raw.traps(esr(class, 0));
    run_script(&mut vcpu);
    pc(&vcpu) == VBAR + 0x200 && sys(&vcpu, names::ESR_EL1) == esr(ec::UNKNOWN, 0)
}

#[test]
fn unknown_fp_sve_and_sme_traps_are_undefined() {
    for class in [ec::UNKNOWN, ec::FP_ACCESS, ec::SVE, ec::SME] {
        assert!(is_undefined(class), "class {class:#x}");
    }
}

#[test]
fn a_brk_that_was_routed_to_us_goes_back_to_the_guest() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(esr(ec::BRK64, 0x800));
    run_script(&mut vcpu);
    assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::BRK64, 0x800));
}

#[test]
fn a_class_that_nobody_expects_is_a_fault() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(esr(0x2f, 0));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("syndrome")));
}
