//! Data aborts: MMIO exits, the GIC, and what a device refuses.

use super::*;

#[test]
fn a_read_is_completed_by_the_next_run() {
    let mut vcpu = vcpu();
    vcpu.raw.exits(word_abort(DEVICE, false, 3));
    match vcpu.run().unwrap() {
        VcpuExit::MmioRead { addr: DEVICE, data } => data.copy_from_slice(&0x8765_4321u32.to_le_bytes()),
        other => panic!("{other:?}"),
    }
    assert_eq!(pc(&vcpu), PC);
    run_script(&mut vcpu);
    assert_eq!((x(&vcpu, 3), pc(&vcpu)), (0x8765_4321, PC + 4));
}

#[test]
fn a_write_carries_the_register() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 3, 0x1_2345_6789);
    vcpu.raw.exits(word_abort(DEVICE + 4, true, 3));
    assert_eq!(
        vcpu.run().unwrap(),
        VcpuExit::MmioWrite { addr: DEVICE + 4, data: &0x2345_6789u32.to_le_bytes() }
    );
    run_script(&mut vcpu);
    assert_eq!(pc(&vcpu), PC + 4);
}

#[test]
fn register_31_writes_zero_and_discards_reads() {
    let mut vcpu = vcpu();
    vcpu.raw.exits(word_abort(DEVICE, true, 31));
    vcpu.raw.exits(word_abort(DEVICE, false, 31));
    assert_eq!(vcpu.run().unwrap(), VcpuExit::MmioWrite { addr: DEVICE, data: &[0; 4] });
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
    run_script(&mut vcpu);
    assert_eq!(pc(&vcpu), PC + 8);
}

#[test]
fn a_pair_load_is_two_exits_and_a_writeback() {
    let mut vcpu = vcpu();
    put_instruction(&vcpu, 0xa8c1_0440); // ldp x0, x1, [x2], #16
    set_x(&mut vcpu, 2, DEVICE);
    vcpu.raw.exits(blind_abort(DEVICE));
    for (offset, value) in [(0, 0x11u64), (8, 0x22)] {
        match vcpu.run().unwrap() {
            VcpuExit::MmioRead { addr, data } if addr == DEVICE + offset => {
                data.copy_from_slice(&value.to_le_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
    run_script(&mut vcpu);
    assert_eq!((x(&vcpu, 0), x(&vcpu, 1), x(&vcpu, 2)), (0x11, 0x22, DEVICE + 16));
    assert_eq!(pc(&vcpu), PC + 4);
}

#[test]
fn writeback_to_the_stack_pointer() {
    let mut vcpu = vcpu();
    put_instruction(&vcpu, 0xf800_87e1); // str x1, [sp], #8
    vcpu.raw.set_sys_reg(names::SP_EL1, DEVICE).unwrap();
    vcpu.raw.exits(blind_abort(DEVICE));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioWrite { addr: DEVICE, .. }));
    run_script(&mut vcpu);
    assert_eq!(sys(&vcpu, names::SP_EL1), DEVICE + 8);
}

#[test]
fn a_simd_load_reaches_its_register() {
    let mut vcpu = vcpu();
    put_instruction(&vcpu, 0x3dc0_0041); // ldr q1, [x2]
    set_x(&mut vcpu, 2, DEVICE);
    vcpu.raw.exits(blind_abort(DEVICE));
    for value in [1u64, 2] {
        match vcpu.run().unwrap() {
            VcpuExit::MmioRead { data, .. } => data.copy_from_slice(&value.to_le_bytes()),
            other => panic!("{other:?}"),
        }
    }
    run_script(&mut vcpu);
    assert_eq!(vcpu.raw.simd_reg(1).unwrap(), 2 << 64 | 1);
}

#[test]
fn an_exclusive_on_a_device_is_an_external_abort() {
    let mut vcpu = vcpu();
    put_instruction(&vcpu, 0x885f_7c41); // ldxr w1, [x2]
    set_x(&mut vcpu, 2, DEVICE);
    vcpu.raw.exits(blind_abort(DEVICE));
    run_script(&mut vcpu);
    assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::DATA_ABORT_SAME, 0x10));
    assert_eq!(sys(&vcpu, names::FAR_EL1), DEVICE);
    assert_eq!(pc(&vcpu), VBAR + 0x200);
}

#[test]
fn an_instruction_that_does_not_touch_the_fault_is_an_external_abort() {
    let mut vcpu = vcpu();
    put_instruction(&vcpu, 0xf940_0041); // ldr x1, [x2]
    set_x(&mut vcpu, 2, DEVICE + 0x100);
    vcpu.raw.exits(blind_abort(DEVICE));
    run_script(&mut vcpu);
    assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::DATA_ABORT_SAME, 0x10));
}

#[test]
fn cache_maintenance_on_a_device_is_skipped() {
    let mut vcpu = vcpu();
    let syndrome = esr(ec::DATA_ABORT_LOWER, 1 << 8 | 0x06);
    vcpu.raw.exits(RawExit::Exception { syndrome, far: DEVICE, ipa: DEVICE });
    run_script(&mut vcpu);
    assert_eq!(pc(&vcpu), PC + 4);
}

#[test]
fn page_tables_outside_memory_are_an_external_abort_on_the_walk() {
    let mut vcpu = vcpu();
    vcpu.raw.set_sys_reg(names::SCTLR_EL1, 1).unwrap();
    vcpu.raw.set_sys_reg(names::TCR_EL1, 25).unwrap();
    vcpu.raw.set_sys_reg(names::TTBR0_EL1, 0x1000).unwrap();
    let syndrome = esr(ec::DATA_ABORT_LOWER, 1 << 7 | 0x06);
    vcpu.raw.exits(RawExit::Exception { syndrome, far: 0x5000, ipa: 0x1000 });
    run_script(&mut vcpu);
    assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::DATA_ABORT_SAME, 0x15));
    assert_eq!(sys(&vcpu, names::FAR_EL1), 0x5000);
}

#[test]
fn an_external_abort_is_passed_on() {
    let mut vcpu = vcpu();
    let syndrome = esr(ec::DATA_ABORT_LOWER, 1 << 6 | 0x10);
    vcpu.raw.exits(RawExit::Exception { syndrome, far: DEVICE, ipa: DEVICE });
    run_script(&mut vcpu);
    assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::DATA_ABORT_SAME, 1 << 6 | 0x10));
}

#[test]
fn an_abort_on_ram_is_a_fault() {
    let mut vcpu = vcpu();
    vcpu.raw.exits(word_abort(RAM_BASE + 0x10, false, 0));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("RAM")));
}

#[test]
fn the_gic_is_served_without_an_exit() {
    let mut vcpu = vcpu();
    let layout = Layout::new(1, RAM_SIZE);
    vcpu.raw.exits(word_abort(layout.gic_dist.base + 4, false, 1)); // GICD_TYPER
    vcpu.raw.exits(word_abort(layout.gic_redist.base + 8, false, 2)); // GICR_TYPER
    assert_eq!(run_script(&mut vcpu), VcpuExit::Kicked);
    assert_ne!(x(&vcpu, 1), 0);
    assert_ne!(x(&vcpu, 2), 0);
}

#[test]
fn the_ram_part_of_an_access_beside_a_device_is_memory() {
    let mut vcpu = vcpu();
    put_instruction(&vcpu, 0xa940_0440); // ldp x0, x1, [x2]
    let end = RAM_BASE + RAM_SIZE;
    vcpu.machine.memory().write_obj(0x55u64, GuestAddress(end - 8)).unwrap();
    set_x(&mut vcpu, 2, end - 8);
    vcpu.raw.exits(blind_abort(end));
    match vcpu.run().unwrap() {
        VcpuExit::MmioRead { addr, data } if addr == end => data.copy_from_slice(&0x66u64.to_le_bytes()),
        other => panic!("{other:?}"),
    }
    run_script(&mut vcpu);
    assert_eq!((x(&vcpu, 0), x(&vcpu, 1)), (0x55, 0x66));
}

#[test]
fn a_kick_does_not_lose_the_answer_to_a_read() {
    let mut vcpu = vcpu();
    vcpu.raw.exits(word_abort(DEVICE, false, 3));
    match vcpu.run().unwrap() {
        VcpuExit::MmioRead { data, .. } => data.copy_from_slice(&7u32.to_le_bytes()),
        other => panic!("{other:?}"),
    }
    vcpu.kicker().kick();
    assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    assert_eq!((x(&vcpu, 3), pc(&vcpu)), (7, PC + 4));
}
