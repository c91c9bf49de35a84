//! Trapped system registers.

use super::*;

#[test]
fn a_read_fills_rt_and_advances() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 7, 0xdead);
    vcpu.raw.traps(sysreg_trap(names::OSLSR_EL1, true, 7));
    run_script(&mut vcpu);
    assert_eq!(x(&vcpu, 7), 0b1010);
    assert_eq!(pc(&vcpu), PC + 4);
}

#[test]
fn a_read_into_register_31_is_discarded() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(sysreg_trap(names::OSLSR_EL1, true, 31));
    run_script(&mut vcpu);
    assert_eq!(pc(&vcpu), PC + 4);
}

#[test]
fn a_write_from_register_31_writes_zero() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(sysreg_trap(names::OSLAR_EL1, false, 31));
    vcpu.raw.traps(sysreg_trap(names::OSLSR_EL1, true, 1));
    run_script(&mut vcpu);
    assert_eq!(x(&vcpu, 1), 0b1000);
}

#[test]
fn mdscr_remembers_what_was_written() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 1, 0x8000);
    vcpu.raw.traps(sysreg_trap(names::MDSCR_EL1, false, 1));
    vcpu.raw.traps(sysreg_trap(names::MDSCR_EL1, true, 2));
    run_script(&mut vcpu);
    assert_eq!(x(&vcpu, 2), 0x8000);
}

#[test]
fn an_unknown_register_is_undefined_at_its_own_pc() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(sysreg_trap(SysReg::new(3, 7, 15, 0, 0), true, 3));
    run_script(&mut vcpu);
    assert_eq!(pc(&vcpu), VBAR + 0x200);
    assert_eq!(sys(&vcpu, names::ELR_EL1), PC);
    assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::UNKNOWN, 0));
}

#[test]
fn writing_a_read_only_gic_register_is_undefined() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(sysreg_trap(SysReg::new(3, 0, 12, 11, 3), false, 3)); // ICC_RPR_EL1
    run_script(&mut vcpu);
    assert_eq!(pc(&vcpu), VBAR + 0x200);
}

#[test]
fn the_counters_run() {
    let mut vcpu = vcpu();
    let before = vcpu.raw.counter();
    vcpu.raw.traps(sysreg_trap(names::CNTPCT_EL0, true, 1));
    vcpu.raw.traps(sysreg_trap(names::CNTVCT_EL0, true, 2));
    run_script(&mut vcpu);
    assert!(x(&vcpu, 1) >= before);
    assert!(x(&vcpu, 2) >= x(&vcpu, 1) - vcpu.raw.vtimer_offset().unwrap());
}

#[test]
fn the_counter_cannot_be_written() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(sysreg_trap(names::CNTPCT_EL0, false, 1));
    run_script(&mut vcpu);
    assert_eq!(pc(&vcpu), VBAR + 0x200);
}
