//! Reset state, power-on and what a vCPU says of itself.

use super::*;

#[test]
fn the_boot_cpu_starts_at_its_entry_in_el1h() {
    let vcpu = vcpu();
    assert_eq!((pc(&vcpu), x(&vcpu, 0)), (PC, 0xfd7));
    assert_eq!(vcpu.raw.reg(Reg::Cpsr).unwrap(), 0x3c5);
}

#[test]
fn mpidr_is_the_cpu_s_affinity() {
    let vcpu = vcpu_of(&machine(3), 2, Scripted::new());
    assert_eq!(sys(&vcpu, names::MPIDR_EL1), 1 << 31 | 2);
}

#[test]
fn the_virtual_counter_starts_at_zero_and_is_the_same_on_all_cpus() {
    let machine = machine(2);
    let first = vcpu_of(&machine, 0, Scripted::new());
    let second = vcpu_of(&machine, 1, Scripted::new());
    assert_eq!(first.raw.vtimer_offset().unwrap(), second.raw.vtimer_offset().unwrap());
}

#[test]
fn a_cpu_beyond_the_machine_is_refused() {
    assert!(TrapVcpu::new(machine(1), 1, Scripted::new(), BOOT).is_err());
}

#[test]
fn reset_starts_over() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 5, 5);
    vcpu.raw.set_reg(Reg::Pc, 0).unwrap();
    vcpu.machine.reset();
    vcpu.reset(BOOT).unwrap();
    assert_eq!((pc(&vcpu), x(&vcpu, 0), x(&vcpu, 5)), (PC, 0xfd7, 0));
}

#[test]
fn reset_forgets_an_unanswered_access() {
    let mut vcpu = vcpu();
    vcpu.raw.exits(word_abort(DEVICE, false, 3));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
    vcpu.reset(BOOT).unwrap();
    assert_eq!(run_script(&mut vcpu), VcpuExit::Kicked);
    assert_eq!(pc(&vcpu), PC);
}

#[test]
fn reset_switches_other_cpus_off() {
    let mut vcpu = vcpu_of(&machine(2), 1, Scripted::new());
    vcpu.online = true;
    vcpu.machine.reset();
    vcpu.reset(BOOT).unwrap();
    assert!(!vcpu.online);
}

#[test]
fn the_description_names_every_register_asked_for() {
    let text = vcpu().describe();
    for name in
        ["PC", "CPSR", "X0", "X30", "SP_EL1", "ESR_EL1", "FAR_EL1", "ELR_EL1", "SCTLR_EL1", "TTBR1_EL1"]
    {
        assert!(text.contains(&format!("{name}=")), "{name} is missing in {text}");
    }
}

#[test]
fn time_for_which_all_were_stopped_is_left_out_of_every_virtual_counter() {
    let machine = machine(2);
    let mut first = vcpu_of(&machine, 0, Scripted::new());
    let before = first.raw.vtimer_offset().unwrap();
    let ticks = ns_to_ticks(3_000_000_000, first.raw.counter_frequency());
    first.set_stopped_time(Duration::from_secs(3)).unwrap();
    first.set_stopped_time(Duration::from_secs(3)).unwrap();
    assert_eq!(first.raw.vtimer_offset().unwrap(), before + ticks);
    let second = vcpu_of(&machine, 1, Scripted::new());
    assert_eq!(second.raw.vtimer_offset().unwrap(), before + ticks);
}
