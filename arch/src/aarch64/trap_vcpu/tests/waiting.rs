//! WFI, WFE and their relatives: what ends a sleep.

use super::*;

fn wfi() -> u64 {
    esr(ec::WFX, 0)
}

#[test]
fn wfi_advances_the_pc() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(wfi());
    let kicker = vcpu.kicker();
    let helper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        kicker.kick();
    });
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    helper.join().unwrap();
    assert_eq!(pc(&vcpu), PC + 4);
}

#[test]
fn wfi_sleeps_until_the_virtual_timer_fires() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, VIRTUAL_TIMER_INTID);
    start_virtual_timer(&mut vcpu.raw, 20_000_000);
    vcpu.raw.traps(wfi());
    run_script(&mut vcpu);
    assert_eq!(vcpu.raw.runs[1], Run { pc: PC + 4, irq: true, fiq: false });
    assert!(vcpu.raw.vtimer_mask().unwrap());
}

#[test]
fn wfi_sleeps_until_the_physical_timer_is_due() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, 30);
    set_x(&mut vcpu, 1, 20_000_000);
    set_x(&mut vcpu, 2, CTL_ENABLE);
    vcpu.raw.traps(sysreg_trap(names::CNTP_TVAL_EL0, false, 1));
    vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 2));
    vcpu.raw.traps(wfi());
    run_script(&mut vcpu);
    assert!(!vcpu.raw.runs[2].irq);
    assert!(vcpu.raw.runs[3].irq);
}

#[test]
fn wfi_wakes_for_an_interrupt_from_another_thread() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, 20);
    vcpu.raw.traps(wfi());
    let machine = vcpu.machine.clone();
    let helper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        machine.gic().set_ppi_remote(0, 20, true);
    });
    run_script(&mut vcpu);
    helper.join().unwrap();
    assert!(vcpu.raw.runs[1].irq);
}

#[test]
fn wfi_with_a_pending_interrupt_does_not_sleep() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, 20);
    vcpu.machine.gic().set_ppi(0, 20, true);
    vcpu.raw.traps(wfi());
    run_script(&mut vcpu);
    assert!(vcpu.raw.runs[1].irq);
}

#[test]
fn a_timer_whose_interrupt_is_disabled_does_not_end_wfi() {
    let mut vcpu = vcpu();
    start_virtual_timer(&mut vcpu.raw, 1_000_000);
    vcpu.raw.traps(wfi());
    let kicker = vcpu.kicker();
    let helper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(60));
        kicker.kick();
    });
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    helper.join().unwrap();
    assert_eq!(vcpu.raw.runs.len(), 1);
}

#[test]
fn wfit_ends_at_its_deadline() {
    let mut vcpu = vcpu();
    let deadline = vcpu.raw.counter() - vcpu.raw.vtimer_offset().unwrap() + 5_000_000;
    set_x(&mut vcpu, 5, deadline);
    vcpu.raw.traps(esr(ec::WFX, 5 << 5 | 1 << 2 | 2));
    run_script(&mut vcpu);
    assert_eq!(vcpu.raw.runs.len(), 2);
    assert!(vcpu.virtual_counter().unwrap() >= deadline);
}

#[test]
fn wfe_does_not_sleep() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(esr(ec::WFX, 1));
    run_script(&mut vcpu);
    assert_eq!(vcpu.raw.runs[1].pc, PC + 4);
}

#[test]
fn cpu_suspend_waits_and_succeeds() {
    let mut vcpu = vcpu();
    enable_ppi(&vcpu.machine, VIRTUAL_TIMER_INTID);
    start_virtual_timer(&mut vcpu.raw, 5_000_000);
    set_x(&mut vcpu, 0, 0xc400_0001);
    vcpu.raw.traps(esr(ec::HVC64, 0));
    run_script(&mut vcpu);
    assert_eq!(x(&vcpu, 0), 0);
    assert!(vcpu.raw.runs[1].irq);
}
