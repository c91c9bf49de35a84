//! HVC and SMC: SMCCC, TRNG and PSCI.

use super::*;

fn call(class: u8, function: u64, args: [u64; 3]) -> TrapVcpu<Scripted> {
    let mut vcpu = vcpu_of(&machine(2), 0, Scripted::new());
    set_x(&mut vcpu, 0, function);
    for (n, arg) in (1..).zip(args) {
        set_x(&mut vcpu, n, arg);
    }
    vcpu.raw.traps(esr(class, 0));
    run_script(&mut vcpu);
    vcpu
}

#[test]
fn hvc_leaves_the_pc_where_it_is() {
    let vcpu = call(ec::HVC64, 0x8400_0000, [0; 3]);
    assert_eq!((x(&vcpu, 0), pc(&vcpu)), (0x1_0001, PC));
}

#[test]
fn smc_advances_the_pc() {
    let vcpu = call(ec::SMC64, 0x8400_0000, [0; 3]);
    assert_eq!((x(&vcpu, 0), pc(&vcpu)), (0x1_0001, PC + 4));
}

#[test]
fn an_unknown_function_returns_minus_one() {
    assert_eq!(x(&call(ec::HVC64, 0x8600_ff01, [0; 3]), 0), u64::MAX);
}

#[test]
fn another_immediate_than_zero_is_unknown() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 0, 0x8400_0000);
    vcpu.raw.traps(esr(ec::HVC64, 1));
    run_script(&mut vcpu);
    assert_eq!(x(&vcpu, 0), u64::MAX);
}

#[test]
fn upper_bits_of_the_function_are_ignored() {
    assert_eq!(x(&call(ec::HVC64, 0xffff_ffff_8400_0000, [0; 3]), 0), 0x1_0001);
}

#[test]
fn trng_fills_x1_to_x3() {
    let vcpu = call(ec::HVC64, 0xc400_0053, [192, 0, 0]);
    assert_eq!(x(&vcpu, 0), 0);
    assert!((1..4).all(|n| x(&vcpu, n) != 0));
}

#[test]
fn cpu_on_outside_ram_is_an_invalid_address() {
    assert_eq!(x(&call(ec::HVC64, 0xc400_0003, [1, 0x1000, 0]), 0), -9i64 as u64);
}

#[test]
fn system_off_and_reset_leave_run() {
    for (function, exit) in [
        (0x8400_0008, VcpuExit::SystemOff),
        (0x8400_0009, VcpuExit::SystemReset),
        (0xc400_0012, VcpuExit::SystemReset),
    ] {
        let mut vcpu = vcpu();
        set_x(&mut vcpu, 0, function);
        vcpu.raw.traps(esr(ec::HVC64, 0));
        assert_eq!(vcpu.run().unwrap(), exit);
    }
}

#[test]
fn switching_the_last_cpu_off_ends_the_machine() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 0, 0x8400_0002);
    vcpu.raw.traps(esr(ec::HVC64, 0));
    assert_eq!(vcpu.run().unwrap(), VcpuExit::SystemOff);
}

#[test]
fn cpu_on_starts_a_waiting_cpu_with_its_context() {
    let machine = machine(2);
    let (ready, started) = mpsc::channel();
    let other = machine.clone();
    let helper = std::thread::spawn(move || {
        let mut second = vcpu_of(&other, 1, Scripted::new());
        ready.send(second.kicker()).unwrap();
        second.raw.exits(word_abort(DEVICE, true, 0));
        let exit = second.run().unwrap();
        let wrote = matches!(exit, VcpuExit::MmioWrite { data, .. } if data == 77u32.to_le_bytes());
        (wrote, second.raw.runs[0].pc)
    });
    started.recv().unwrap();
    let mut first = vcpu_of(&machine, 0, Scripted::new());
    set_x(&mut first, 0, 0xc400_0003);
    set_x(&mut first, 1, 1);
    set_x(&mut first, 2, PC + 0x40);
    set_x(&mut first, 3, 77);
    first.raw.traps(esr(ec::HVC64, 0));
    run_script(&mut first);
    assert_eq!(helper.join().unwrap(), (true, PC + 0x40));
    assert_eq!(x(&first, 0), 0);
    assert_eq!(machine.psci().state(1), PowerState::On);
}

#[test]
fn cpu_off_parks_the_caller_until_it_is_switched_on() {
    let machine = machine(2);
    let mut second = vcpu_of(&machine, 1, Scripted::new());
    let on = crate::aarch64::psci::Call { function: 0xc400_0003, args: [1, PC, 0] };
    machine.psci().call(0, on, |_| true);
    second.raw.then(|raw| {
        raw.set_reg(Reg::X(0), 0x8400_0002).unwrap();
        RawExit::Exception { syndrome: esr(ec::HVC64, 0), far: 0, ipa: 0 }
    });
    let kicker = second.kicker();
    let helper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        kicker.kick();
    });
    assert_eq!(second.run().unwrap(), VcpuExit::Kicked);
    helper.join().unwrap();
    assert_eq!(second.raw.runs.len(), 1);
    assert_eq!(machine.psci().state(1), PowerState::Off);
}
