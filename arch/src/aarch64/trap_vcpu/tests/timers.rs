//! The virtual and the physical timer.

use super::*;

#[test]
fn a_fired_virtual_timer_asserts_its_ppi() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, VIRTUAL_TIMER_INTID);
    start_virtual_timer(&mut vcpu.raw, 0);
    vcpu.raw.exits(RawExit::VtimerActivated);
    run_script(&mut vcpu);
    assert!(vcpu.raw.runs[1].irq);
}

#[test]
fn the_timer_stays_masked_while_its_condition_holds() {
    let mut vcpu = vcpu();
    start_virtual_timer(&mut vcpu.raw, 0);
    vcpu.raw.exits(RawExit::VtimerActivated);
    vcpu.raw.exits(RawExit::Canceled);
    run_script(&mut vcpu);
    assert!(vcpu.raw.vtimer_mask().unwrap());
}

#[test]
fn reprogramming_unmasks_the_timer_and_releases_the_ppi() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, VIRTUAL_TIMER_INTID);
    start_virtual_timer(&mut vcpu.raw, 0);
    vcpu.raw.exits(RawExit::VtimerActivated);
    vcpu.raw.then(|raw| {
        start_virtual_timer(raw, 60_000_000_000);
        RawExit::Canceled
    });
    run_script(&mut vcpu);
    assert!(!vcpu.raw.vtimer_mask().unwrap());
    assert!(!vcpu.raw.runs[2].irq);
}

#[test]
fn masking_in_the_guest_unmasks_at_the_host() {
    let mut vcpu = vcpu();
    start_virtual_timer(&mut vcpu.raw, 0);
    vcpu.raw.exits(RawExit::VtimerActivated);
    vcpu.raw.then(|raw| {
        raw.set_sys_reg(names::CNTV_CTL_EL0, CTL_ENABLE | CTL_IMASK).unwrap();
        RawExit::Canceled
    });
    run_script(&mut vcpu);
    assert!(!vcpu.raw.vtimer_mask().unwrap());
}

#[test]
fn the_physical_timer_kicks_a_running_guest() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, 30);
    set_x(&mut vcpu, 1, 20_000_000);
    set_x(&mut vcpu, 2, CTL_ENABLE);
    vcpu.raw.traps(sysreg_trap(names::CNTP_TVAL_EL0, false, 1));
    vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 2));
    // Out of script, the third run stays in the guest until the alarm; the fourth has the interrupt.
    let helper = kick_after_run(&mut vcpu, 4, || {});
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    helper.join().unwrap();
    assert!(!vcpu.raw.runs[2].irq);
    assert!(vcpu.raw.runs.last().unwrap().irq);
}

#[test]
fn the_physical_timer_reads_back() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 1, 0x1234_5678_9abc);
    vcpu.raw.traps(sysreg_trap(names::CNTP_CVAL_EL0, false, 1));
    vcpu.raw.traps(sysreg_trap(names::CNTP_CVAL_EL0, true, 2));
    run_script(&mut vcpu);
    assert_eq!(x(&vcpu, 2), 0x1234_5678_9abc);
}

#[test]
fn a_masked_physical_timer_releases_its_ppi() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, 30);
    set_x(&mut vcpu, 2, CTL_ENABLE);
    set_x(&mut vcpu, 3, CTL_ENABLE | CTL_IMASK);
    vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 2));
    vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 3));
    run_script(&mut vcpu);
    assert!(vcpu.raw.runs[1].irq);
    assert!(!vcpu.raw.runs[2].irq);
}
