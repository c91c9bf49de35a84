//! Interrupts from the GIC reach the guest.

use super::*;

const SPI: Spi = Spi(1);

fn enable_spi(machine: &TrapMachine) {
    enable_ppi(machine, VIRTUAL_TIMER_INTID);
    let dist = Layout::new(1, RAM_SIZE).gic_dist.base;
    machine.gic().mmio_write(0, dist + 0x84, &u32::MAX.to_le_bytes());
    machine.gic().mmio_write(0, dist + 0x104, &(1u32 << SPI.0).to_le_bytes());
}

#[test]
fn a_pending_interrupt_is_asserted_before_every_run() {
    let mut vcpu = vcpu();
    enable_spi(&vcpu.machine);
    vcpu.machine.gic().set_spi(SPI, true);
    vcpu.raw.exits(RawExit::Canceled);
    run_script(&mut vcpu);
    let run = Run { pc: PC, irq: true, fiq: false };
    assert_eq!(vcpu.raw.runs, [run, run]);
}

#[test]
fn nothing_is_asserted_without_an_interrupt() {
    let mut vcpu = vcpu();
    run_script(&mut vcpu);
    assert_eq!(vcpu.raw.runs, [Run { pc: PC, irq: false, fiq: false }]);
}

#[test]
fn an_interrupt_from_another_thread_reaches_a_running_guest() {
    let mut vcpu = vcpu();
    enable_spi(&vcpu.machine);
    let machine = vcpu.machine.clone();
    let helper = kick_after_run(&mut vcpu, 2, move || {
        std::thread::sleep(Duration::from_millis(10));
        machine.gic().set_spi(SPI, true);
    });
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    helper.join().unwrap();
    assert!(vcpu.raw.runs.last().unwrap().irq);
}

#[test]
fn acknowledging_through_the_trapped_register_returns_the_intid() {
    let mut vcpu = vcpu();
    enable_spi(&vcpu.machine);
    vcpu.machine.gic().set_spi(SPI, true);
    vcpu.raw.traps(sysreg_trap(SysReg::new(3, 0, 12, 12, 0), true, 4));
    run_script(&mut vcpu);
    assert_eq!(x(&vcpu, 4), u64::from(SPI.intid()));
    assert!(!vcpu.raw.runs[1].irq);
}
