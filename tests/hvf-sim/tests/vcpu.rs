//! The simulator's rules about vCPUs: threads, registers, exits, kicks and the virtual timer. Each is broken here, and caught.
#![cfg(not(target_os = "macos"))]

mod common;

use std::ptr::null_mut;
use std::sync::mpsc;
use std::thread;

use common::*;
use hvrun_hvf_sim::{Config, Kicks, MacOs, Session, interrupt_all, statistics, violations};

/// CNTV_CTL_EL0 and CNTV_CVAL_EL0.
const CNTV_CTL: u16 = 0xdf19;
const CNTV_CVAL: u16 = 0xdf1a;

#[test]
fn a_vcpu_needs_a_vm() {
    let _mac = Session::new(Config::default());
    let (mut handle, mut exit) = (0, null_mut());
    // SAFETY: both are ours.
    let created = unsafe { hv_vcpu_create(&raw mut handle, &raw mut exit, null_mut()) };
    assert_eq!(created, NO_DEVICE);
    caught("hv_vcpu_create without a VM");
}

#[test]
fn a_thread_has_one_vcpu_at_most() {
    let _mac = vm(Config::default());
    let vcpu = Vcpu::bare();
    let (mut handle, mut exit) = (0, null_mut());
    // SAFETY: both are ours.
    assert_eq!(unsafe { hv_vcpu_create(&raw mut handle, &raw mut exit, null_mut()) }, BUSY);
    caught("on a thread that has a vCPU");
    vcpu.destroy();
}

#[test]
fn more_vcpus_than_the_host_has_are_refused() {
    let _mac = vm(Config { max_vcpus: 0, ..Config::default() });
    let (mut handle, mut exit) = (0, null_mut());
    // SAFETY: both are ours.
    assert_eq!(unsafe { hv_vcpu_create(&raw mut handle, &raw mut exit, null_mut()) }, NO_RESOURCES);
    caught("beyond the 0 vCPUs");
}

/// Makes `call` with the handle of a vCPU of this thread, on another thread.
fn from_another_thread(call: impl FnOnce(u64) -> i32 + Send + 'static) -> i32 {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::new(0);
    let handle = vcpu.handle;
    let returned = thread::spawn(move || call(handle)).join().unwrap();
    caught("which belongs to");
    vcpu.destroy();
    returned
}

#[test]
fn a_register_cannot_be_read_on_another_thread() {
    let mut value = 0;
    // SAFETY: the pointer is to a local of the calling thread's closure.
    let read = move |vcpu| unsafe { hv_vcpu_get_reg(vcpu, PC, &raw mut value) };
    assert_eq!(from_another_thread(read), BAD_ARGUMENT);
}

#[test]
fn a_system_register_cannot_be_written_on_another_thread() {
    // SAFETY: no pointers.
    assert_eq!(from_another_thread(|vcpu| unsafe { hv_vcpu_set_sys_reg(vcpu, MPIDR, 0) }), BAD_ARGUMENT);
}

#[test]
fn a_vcpu_cannot_run_on_another_thread() {
    // SAFETY: no pointers.
    assert_eq!(from_another_thread(|vcpu| unsafe { hv_vcpu_run(vcpu) }), BAD_ARGUMENT);
}

#[test]
fn a_vcpu_cannot_be_destroyed_on_another_thread() {
    // SAFETY: no pointers.
    assert_eq!(from_another_thread(|vcpu| unsafe { hv_vcpu_destroy(vcpu) }), BAD_ARGUMENT);
}

#[test]
fn an_interrupt_cannot_be_set_on_another_thread() {
    // SAFETY: no pointers.
    let set = |vcpu| unsafe { hv_vcpu_set_pending_interrupt(vcpu, 0, true) };
    assert_eq!(from_another_thread(set), BAD_ARGUMENT);
}

#[test]
fn the_timer_cannot_be_unmasked_on_another_thread() {
    // SAFETY: no pointers.
    assert_eq!(from_another_thread(|vcpu| unsafe { hv_vcpu_set_vtimer_mask(vcpu, false) }), BAD_ARGUMENT);
}

#[test]
fn a_thread_that_ends_with_its_vcpu_is_caught() {
    let _mac = vm(Config::default());
    thread::spawn(|| Vcpu::bare().handle).join().unwrap();
    caught("ended without hv_vcpu_destroy");
}

#[test]
fn a_vcpu_cannot_be_destroyed_while_another_runs() {
    let _mac = vm_with(Config::default(), &[LOOP]);
    let (sender, receiver) = mpsc::channel();
    let runner = thread::spawn(move || {
        let vcpu = Vcpu::new(1);
        sender.send(vcpu.handle).unwrap();
        let exit = vcpu.run();
        vcpu.destroy();
        exit.reason
    });
    let running = receiver.recv().unwrap();
    let mine = Vcpu::bare();
    while statistics().running == 0 {
        thread::yield_now();
    }
    mine.destroy();
    assert_eq!(kick(running), 0);
    assert_eq!(runner.join().unwrap(), CANCELED);
    caught("that crashes");
}

#[test]
fn the_exit_of_a_destroyed_vcpu_is_nonsense() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::new(0);
    let exit = vcpu.exit;
    vcpu.run();
    vcpu.destroy();
    // SAFETY: the simulator does not free it, so that this is nonsense and not chance.
    assert!(unsafe { exit.read() }.reason > UNKNOWN);
    clean();
}

#[test]
fn there_is_no_stack_pointer_among_the_general_registers() {
    let _mac = vm(Config::default());
    let vcpu = Vcpu::bare();
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_vcpu_set_reg(vcpu.handle, CPSR + 1, 0) }, BAD_ARGUMENT);
    caught("no general register");
    vcpu.destroy();
}

#[test]
fn a_system_register_that_the_framework_does_not_list_is_refused() {
    let _mac = vm(Config::default());
    let vcpu = Vcpu::bare();
    // CNTVCT_EL0
    assert_eq!(vcpu.set_sys(0xdf02, 0), BAD_ARGUMENT);
    vcpu.destroy();
}

#[test]
fn a_system_register_of_a_newer_system_is_refused() {
    let _mac = vm(Config { macos: MacOs::V14, ..Config::default() });
    let vcpu = Vcpu::bare();
    // ACTLR_EL1
    assert_eq!(vcpu.set_sys(0xc081, 2), BAD_ARGUMENT);
    vcpu.destroy();
}

#[test]
fn stack_pointers_are_system_registers() {
    let _mac = vm(Config::default());
    let vcpu = Vcpu::bare();
    assert_eq!((vcpu.set_sys(0xc208, 0x1230), vcpu.set_sys(0xe208, 0x4560)), (0, 0));
    assert_eq!((vcpu.sys(0xc208), vcpu.sys(0xe208)), (0x1230, 0x4560));
    vcpu.destroy();
    clean();
}

#[test]
fn a_new_vcpu_has_nothing_in_its_general_registers_to_rely_on() {
    let _mac = vm(Config::default());
    let vcpu = Vcpu::bare();
    assert!((0..=PC).all(|reg| vcpu.get(reg) != 0));
    vcpu.destroy();
}

#[test]
fn running_without_mpidr_is_caught() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::bare();
    vcpu.describe();
    vcpu.set(PC, RAM);
    vcpu.set(CPSR, EL1H);
    vcpu.run();
    caught("without MPIDR_EL1");
    vcpu.destroy();
}

#[test]
fn two_vcpus_with_one_mpidr_are_caught() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let first = Vcpu::new(0);
    let run = || {
        let second = Vcpu::new(0);
        second.run();
        second.destroy();
    };
    thread::spawn(run).join().unwrap();
    caught("the MPIDR_EL1 of another");
    first.destroy();
}

#[test]
fn mpidr_cannot_change_after_the_first_run() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::new(0);
    vcpu.run();
    assert_eq!(vcpu.set_sys(MPIDR, 1), BAD_ARGUMENT);
    caught("changed after it has run");
    vcpu.destroy();
}

#[test]
fn every_promise_of_the_hardware_that_nobody_keeps_is_caught() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::bare();
    assert_eq!(vcpu.set_sys(MPIDR, 0), 0);
    vcpu.set(PC, RAM);
    vcpu.run();
    let seen = violations().join("\n");
    for what in ["GIC is not 1", "SVE", "EL2", "SME", "PMU", "PARange", "nested", "CnP"] {
        assert!(seen.contains(what), "{what} is missing in {seen}");
    }
    vcpu.destroy();
}

#[test]
fn a_guest_reads_the_identification_that_was_written() {
    // mrs x0, id_aa64pfr1_el1 ; hvc
    let _mac = vm_with(Config::default(), &[0xd538_0420, HVC]);
    let vcpu = Vcpu::new(0);
    assert_eq!(vcpu.set_sys(0xc021, 0x10), 0);
    vcpu.run();
    assert_eq!(vcpu.get(0), 0x10);
    vcpu.destroy();
    clean();
}

#[test]
fn feature_registers_are_readable_before_there_is_a_vcpu() {
    let _mac = Session::new(Config::default());
    // SAFETY: the object is a vCPU configuration, released once.
    let pfr0: u64 = unsafe {
        let config = hv_vcpu_config_create();
        let value = get(|value| hv_vcpu_config_get_feature_reg(config, 7, value));
        os_release(config);
        value
    };
    assert_eq!(pfr0 >> 24 & 0xf, 0);
    clean();
}

#[test]
fn the_pc_is_past_an_hvc() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::new(0);
    assert_eq!((class(&vcpu.run()), vcpu.get(PC)), (0x16, RAM + 4));
    vcpu.destroy();
}

#[test]
fn the_pc_is_at_an_smc() {
    let _mac = vm_with(Config::default(), &[SMC]);
    let vcpu = Vcpu::new(0);
    assert_eq!((class(&vcpu.run()), vcpu.get(PC)), (0x17, RAM));
    vcpu.destroy();
}

#[test]
fn a_wfi_exits_where_the_host_has_no_gic() {
    let _mac = vm_with(Config::default(), &[WFI]);
    let vcpu = Vcpu::new(0);
    assert_eq!((class(&vcpu.run()), vcpu.get(PC)), (1, RAM));
    vcpu.destroy();
}

#[test]
fn a_pending_interrupt_lasts_for_one_run() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::new(0);
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_vcpu_set_pending_interrupt(vcpu.handle, 0, true) }, 0);
    vcpu.run();
    // SAFETY: the pointer is to a local.
    let pending: bool = get(|value| unsafe { hv_vcpu_get_pending_interrupt(vcpu.handle, 0, value) });
    assert!(!pending);
    vcpu.destroy();
}

#[test]
fn interrupt_type_zero_is_irq() {
    // The vectors are at RAM: offset 0x280 is an IRQ at EL1h.
    let mut program = vec![LOOP; 0x300 / 4];
    program[0x280 / 4] = HVC;
    let _mac = vm_with(Config::default(), &program);
    let vcpu = Vcpu::new(0);
    assert_eq!(vcpu.set_sys(0xc600, RAM), 0);
    vcpu.set(CPSR, EL1H_OPEN);
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_vcpu_set_pending_interrupt(vcpu.handle, 0, true) }, 0);
    assert_eq!((class(&vcpu.run()), vcpu.get(PC)), (0x16, RAM + 0x284));
    vcpu.destroy();
}

#[test]
fn a_sticky_kick_ends_the_next_run() {
    let _mac = vm_with(Config { kicks: Kicks::Sticky, ..Config::default() }, &[HVC]);
    let vcpu = Vcpu::new(0);
    assert_eq!(kick(vcpu.handle), 0);
    assert_eq!((vcpu.run().reason, vcpu.run().reason), (CANCELED, EXCEPTION));
    vcpu.destroy();
}

#[test]
fn an_early_kick_can_be_lost() {
    let _mac = vm_with(Config { kicks: Kicks::Lost, ..Config::default() }, &[HVC]);
    let vcpu = Vcpu::new(0);
    assert_eq!(kick(vcpu.handle), 0);
    assert_eq!((vcpu.run().reason, statistics().lost_kicks), (EXCEPTION, 1));
    vcpu.destroy();
}

#[test]
fn a_kick_ends_a_run_where_early_ones_are_lost() {
    let _mac = vm_with(Config { kicks: Kicks::Lost, ..Config::default() }, &[LOOP]);
    let (sender, receiver) = mpsc::channel();
    let runner = thread::spawn(move || {
        let vcpu = Vcpu::new(0);
        sender.send(vcpu.handle).unwrap();
        let reason = vcpu.run().reason;
        vcpu.destroy();
        reason
    });
    let handle = receiver.recv().unwrap();
    while !runner.is_finished() {
        // Once the vCPU is gone its handle is refused.
        kick(handle);
        thread::yield_now();
    }
    assert_eq!(runner.join().unwrap(), CANCELED);
}

#[test]
fn a_kick_of_nobody_is_no_kick_of_everybody() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::new(0);
    // SAFETY: null with no handles is allowed.
    assert_eq!(unsafe { hv_vcpus_exit(std::ptr::null(), 0) }, 0);
    assert_eq!(vcpu.run().reason, EXCEPTION);
    vcpu.destroy();
}

#[test]
fn a_kick_of_a_destroyed_vcpu_is_refused() {
    let _mac = vm(Config::default());
    let vcpu = Vcpu::bare();
    let handle = vcpu.handle;
    vcpu.destroy();
    assert_eq!(kick(handle), BAD_ARGUMENT);
    caught("which does not exist");
}

#[test]
fn a_host_signal_ends_a_run_for_an_unknown_reason() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = Vcpu::new(0);
    interrupt_all();
    assert_eq!((vcpu.run().reason, vcpu.run().reason), (UNKNOWN, EXCEPTION));
    vcpu.destroy();
}

/// A vCPU whose virtual timer is due.
fn due_timer() -> Vcpu {
    let vcpu = Vcpu::new(0);
    assert_eq!((vcpu.set_sys(CNTV_CVAL, 0), vcpu.set_sys(CNTV_CTL, 1)), (0, 0));
    vcpu
}

#[test]
fn a_timer_that_fires_is_masked() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = due_timer();
    assert_eq!(vcpu.run().reason, VTIMER_ACTIVATED);
    // SAFETY: the pointer is to a local.
    let masked: bool = get(|value| unsafe { hv_vcpu_get_vtimer_mask(vcpu.handle, value) });
    assert!(masked);
    vcpu.destroy();
}

#[test]
fn a_masked_timer_is_silent() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = due_timer();
    vcpu.run();
    assert_eq!(vcpu.run().reason, EXCEPTION);
    vcpu.destroy();
}

#[test]
fn an_unmasked_timer_fires_again() {
    let _mac = vm_with(Config::default(), &[HVC]);
    let vcpu = due_timer();
    vcpu.run();
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_vcpu_set_vtimer_mask(vcpu.handle, false) }, 0);
    assert_eq!(vcpu.run().reason, VTIMER_ACTIVATED);
    vcpu.destroy();
}

/// CNTVCT_EL0 with the timer's offset at the mach time of now, on a Mac with such counters.
fn counter_from_now(config: Config) -> u64 {
    // mrs x0, cntvct_el0 ; hvc
    let _mac = vm_with(config, &[0xd53b_e040, HVC]);
    let vcpu = Vcpu::new(0);
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_vcpu_set_vtimer_offset(vcpu.handle, mach_absolute_time()) }, 0);
    vcpu.run();
    let counter = vcpu.get(0);
    vcpu.destroy();
    clean();
    counter
}

#[test]
fn the_offset_counts_in_mach_ticks_where_the_counter_is_as_slow() {
    assert!(counter_from_now(Config::default()) < 24_000_000);
}

#[test]
fn the_offset_counts_in_mach_ticks_where_the_counter_is_faster() {
    assert!(counter_from_now(Config { counter_hz: 1_000_000_000, ..Config::default() }) < 1_000_000_000);
}

#[test]
fn running_vcpus_with_different_timer_offsets_are_caught() {
    let _mac = vm_with(Config::default(), &[LOOP]);
    let (sender, receiver) = mpsc::channel();
    let runner = thread::spawn(move || {
        let vcpu = Vcpu::new(1);
        sender.send(vcpu.handle).unwrap();
        vcpu.run();
        vcpu.destroy();
    });
    let other = receiver.recv().unwrap();
    let vcpu = Vcpu::new(0);
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_vcpu_set_vtimer_offset(vcpu.handle, 5) }, 0);
    while statistics().running == 0 {
        thread::yield_now();
    }
    kick(vcpu.handle);
    vcpu.run();
    kick(other);
    runner.join().unwrap();
    vcpu.destroy();
    caught("another virtual timer offset");
}
