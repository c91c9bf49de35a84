//! The simulator's rules about the GIC that macOS 15 has in its kernel, and what that does unseen by its user.
#![cfg(not(target_os = "macos"))]

mod common;

use std::ffi::c_void;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::*;
use hvrun_hvf_sim::{Config, MacOs, statistics};

const DISTRIBUTOR: u64 = 0x0800_0000;
const MSI: u64 = 0x0801_0000;
const REDISTRIBUTORS: u64 = 0x1000_0000;
/// An SPI that is no message.
const SPI: u32 = 40;
/// The messages: first INTID and how many.
const MESSAGES: (u32, u32) = (64, 32);
/// GICD_ISPENDR1, which has [`SPI`] in bit 8.
const ISPENDR1: u32 = 0x204;
/// GICD_ISPENDR2, which has the first message in bit 0.
const ISPENDR2: u32 = 0x208;
/// GICD_ICFGR2, which has [`SPI`] in bits 17:16.
const ICFGR2: u32 = 0xc08;
/// GICD_ICPENDR1.
const ICPENDR1: u32 = 0x284;

/// What to make a GIC of.
#[derive(Clone, Copy)]
struct Bases {
    distributor: Option<u64>,
    redistributors: Option<u64>,
    msi: Option<u64>,
    messages: Option<(u32, u32)>,
}

const GOOD: Bases = Bases {
    distributor: Some(DISTRIBUTOR),
    redistributors: Some(REDISTRIBUTORS),
    msi: Some(MSI),
    messages: Some(MESSAGES),
};

fn create(bases: Bases) -> i32 {
    // SAFETY: the object is a GIC configuration, released once.
    unsafe {
        let config = hv_gic_config_create();
        if let Some(base) = bases.distributor {
            assert_eq!(hv_gic_config_set_distributor_base(config, base), 0);
        }
        if let Some(base) = bases.redistributors {
            assert_eq!(hv_gic_config_set_redistributor_base(config, base), 0);
        }
        if let Some(base) = bases.msi {
            assert_eq!(hv_gic_config_set_msi_region_base(config, base), 0);
        }
        if let Some((first, count)) = bases.messages {
            assert_eq!(hv_gic_config_set_msi_interrupt_range(config, first, count), 0);
        }
        let created = hv_gic_create(config);
        os_release(config);
        created
    }
}

/// A session with a VM, a GIC and a program.
fn machine(program: &[u32]) -> hvrun_hvf_sim::Session {
    let session = vm(Config::default());
    assert_eq!(create(GOOD), 0);
    load(program);
    session
}

fn distributor(reg: u32) -> u64 {
    // SAFETY: the pointer is to a local.
    get(|value| unsafe { hv_gic_get_distributor_reg(reg, value) })
}

fn set_distributor(reg: u32, value: u64) {
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_gic_set_distributor_reg(reg, value) }, 0);
}

fn set_spi(intid: u32, level: bool) -> i32 {
    // SAFETY: no pointers.
    unsafe { hv_gic_set_spi(intid, level) }
}

fn send_msi(address: u64, intid: u32) -> i32 {
    // SAFETY: no pointers.
    unsafe { hv_gic_send_msi(address, intid) }
}

#[test]
fn macos_14_has_no_gic() {
    let _mac = vm(Config { macos: MacOs::V14, ..Config::default() });
    // SAFETY: it gives null.
    assert!(unsafe { hv_gic_config_create() }.is_null());
    caught("does not exist in macOS 14.0");
}

#[test]
fn a_gic_needs_a_configuration() {
    let _mac = vm(Config::default());
    // SAFETY: it is refused.
    assert_eq!(unsafe { hv_gic_create(std::ptr::null_mut()) }, BAD_ARGUMENT);
    caught("an object that does not exist");
}

#[test]
fn the_host_can_refuse_a_gic() {
    let _mac = vm(Config { refuse_gic: true, ..Config::default() });
    assert_eq!(create(GOOD), UNSUPPORTED);
    clean();
}

#[test]
fn a_second_gic_is_refused() {
    let _mac = machine(&[]);
    assert_eq!(create(GOOD), BUSY);
    caught("a second GIC");
}

#[test]
fn a_gic_comes_before_vcpus() {
    let _mac = vm(Config::default());
    let vcpu = Vcpu::bare();
    assert_eq!(create(GOOD), BUSY);
    caught("after 1 vCPUs");
    vcpu.destroy();
}

#[test]
fn vcpus_come_before_the_first_run() {
    let _mac = machine(&[HVC]);
    let vcpu = Vcpu::new(0);
    vcpu.run();
    let late = || {
        let (mut handle, mut exit) = (0, std::ptr::null_mut());
        // SAFETY: both are ours.
        unsafe { hv_vcpu_create(&raw mut handle, &raw mut exit, std::ptr::null_mut()) }
    };
    assert_eq!(thread::spawn(late).join().unwrap(), BUSY);
    caught("after a vCPU has run");
    vcpu.destroy();
}

#[test]
fn a_gic_without_redistributors_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(create(Bases { redistributors: None, ..GOOD }), BAD_ARGUMENT);
    caught("without a base");
}

#[test]
fn an_unaligned_distributor_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(create(Bases { distributor: Some(0x0800_1000), ..GOOD }), BAD_ARGUMENT);
    caught("not aligned");
}

#[test]
fn a_redistributor_region_beyond_the_ipa_space_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(create(Bases { redistributors: Some((1 << 36) - 0x10_0000), ..GOOD }), BAD_ARGUMENT);
    caught("beyond the IPA space");
}

#[test]
fn regions_that_overlap_are_refused() {
    let _mac = vm(Config::default());
    assert_eq!(create(Bases { redistributors: Some(DISTRIBUTOR - (16 << 20)), ..GOOD }), BAD_ARGUMENT);
    caught("overlap");
}

#[test]
fn an_msi_region_without_interrupts_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(create(Bases { messages: None, ..GOOD }), BAD_ARGUMENT);
    caught("half of what MSIs need");
}

#[test]
fn messages_that_are_no_spis_are_refused() {
    let _mac = vm(Config::default());
    assert_eq!(create(Bases { messages: Some((16, 32)), ..GOOD }), BAD_ARGUMENT);
    caught("not all SPIs");
}

#[test]
fn memory_cannot_be_mapped_over_the_gic() {
    let _mac = machine(&[]);
    // SAFETY: the memory is never freed.
    assert_eq!(unsafe { hv_vm_map(memory(), REDISTRIBUTORS + (1 << 20), GRANULE, RWX) }, BAD_ARGUMENT);
    caught("belongs to the GIC");
}

#[test]
fn the_redistributor_region_is_sized_for_the_most_vcpus() {
    let _mac = vm(Config::default());
    // SAFETY: the pointer is to a local.
    let size: usize = get(|value| unsafe { hv_gic_get_redistributor_region_size(value) });
    assert_eq!(size, 32 << 20);
}

#[test]
fn interrupts_need_a_gic() {
    let _mac = vm(Config::default());
    assert_eq!(set_spi(SPI, true), NO_DEVICE);
    caught("hv_gic_set_spi without a GIC");
}

#[test]
fn a_private_interrupt_is_no_spi() {
    let _mac = machine(&[]);
    assert_eq!(set_spi(27, true), BAD_ARGUMENT);
    caught("which is no SPI");
}

#[test]
fn a_message_cannot_be_driven_as_a_line() {
    let _mac = machine(&[]);
    assert_eq!(set_spi(MESSAGES.0, true), BAD_ARGUMENT);
    caught("in the MSI range");
}

#[test]
fn a_line_cannot_be_sent_as_a_message() {
    let _mac = machine(&[]);
    assert_eq!(send_msi(MSI + 0x40, SPI), BAD_ARGUMENT);
    caught("not in the MSI range");
}

#[test]
fn a_message_to_another_address_is_refused() {
    let _mac = machine(&[]);
    assert_eq!(send_msi(MSI, MESSAGES.0), BAD_ARGUMENT);
    caught("no doorbell");
}

#[test]
fn a_message_becomes_pending() {
    let _mac = machine(&[]);
    assert_eq!(send_msi(MSI + 0x40, MESSAGES.0), 0);
    assert_eq!(distributor(ISPENDR2) & 1, 1);
    clean();
}

#[test]
fn a_level_spi_follows_its_line() {
    let _mac = machine(&[]);
    set_spi(SPI, true);
    let high = distributor(ISPENDR1);
    set_spi(SPI, false);
    assert_eq!((high, distributor(ISPENDR1)), (1 << 8, 0));
}

#[test]
fn a_low_level_does_nothing_to_an_edge_spi() {
    let _mac = machine(&[]);
    set_distributor(ICFGR2, 2 << 16);
    set_spi(SPI, true);
    set_spi(SPI, false);
    assert_eq!(distributor(ISPENDR1), 1 << 8);
}

#[test]
fn every_high_level_is_an_edge() {
    let _mac = machine(&[]);
    set_distributor(ICFGR2, 2 << 16);
    set_spi(SPI, true);
    set_distributor(ICPENDR1, 1 << 8);
    let cleared = distributor(ISPENDR1);
    set_spi(SPI, true);
    assert_eq!((cleared, distributor(ISPENDR1)), (0, 1 << 8));
}

#[test]
fn pending_interrupts_are_not_set_by_hand() {
    let _mac = machine(&[]);
    let vcpu = Vcpu::bare();
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_vcpu_set_pending_interrupt(vcpu.handle, 0, true) }, UNSUPPORTED);
    caught("beside the host's GIC");
    vcpu.destroy();
}

#[test]
fn redistributors_fault_without_mpidr() {
    let _mac = machine(&[LOAD, HVC]);
    let vcpu = Vcpu::bare();
    vcpu.describe();
    vcpu.set(PC, RAM);
    vcpu.set(CPSR, EL1H);
    vcpu.set(1, REDISTRIBUTORS + 8);
    let exit = vcpu.run();
    assert_eq!((class(&exit), exit.physical_address), (0x24, REDISTRIBUTORS + 8));
    caught("without MPIDR_EL1");
    vcpu.destroy();
}

#[test]
fn the_last_vcpu_has_the_last_redistributor() {
    let _mac = machine(&[LOAD, HVC]);
    let vcpu = Vcpu::new(0);
    vcpu.set(1, REDISTRIBUTORS + 8);
    assert_eq!((class(&vcpu.run()), vcpu.get(0) & 0x10), (0x16, 0x10));
    vcpu.destroy();
    clean();
}

#[test]
fn a_device_under_the_redistributor_region_is_caught() {
    let _mac = machine(&[LOAD, HVC]);
    let vcpu = Vcpu::new(0);
    vcpu.set(1, REDISTRIBUTORS + (16 << 20));
    assert_eq!((class(&vcpu.run()), vcpu.get(0)), (0x16, 0));
    caught("it hides what else is there");
    vcpu.destroy();
}

#[test]
fn the_msi_frame_says_which_interrupts_are_messages() {
    let _mac = machine(&[LOAD, HVC]);
    let vcpu = Vcpu::new(0);
    vcpu.set(1, MSI + 8);
    vcpu.run();
    assert_eq!(vcpu.get(0), u64::from(MESSAGES.0 << 16 | MESSAGES.1));
    vcpu.destroy();
}

#[test]
fn a_store_to_the_doorbell_sends_a_message() {
    let _mac = machine(&[STORE, HVC]);
    let vcpu = Vcpu::new(0);
    vcpu.set(0, u64::from(MESSAGES.0) + 1);
    vcpu.set(1, MSI + 0x40);
    vcpu.run();
    assert_eq!(distributor(ISPENDR2), 2);
    vcpu.destroy();
}

#[test]
fn icc_registers_do_not_trap() {
    // mov x0, #0xf0 ; msr icc_pmr_el1, x0 ; hvc
    let _mac = machine(&[0xd280_1e00, 0xd518_4600, HVC]);
    let vcpu = Vcpu::new(0);
    assert_eq!(class(&vcpu.run()), 0x16);
    // SAFETY: the pointer is to a local.
    let pmr: u64 = get(|value| unsafe { hv_gic_get_icc_reg(vcpu.handle, 0xc230, value) });
    assert_eq!(pmr, 0xf0);
    vcpu.destroy();
    clean();
}

#[test]
fn a_register_that_acknowledges_cannot_be_read_from_outside() {
    let _mac = machine(&[]);
    let vcpu = Vcpu::new(0);
    let mut value = 0;
    // SAFETY: the pointer is to a local. ICC_IAR1_EL1.
    assert_eq!(unsafe { hv_gic_get_icc_reg(vcpu.handle, 0xc660, &raw mut value) }, BAD_ARGUMENT);
    vcpu.destroy();
}

#[test]
fn a_redistributor_register_that_the_framework_does_not_list_is_refused() {
    let _mac = machine(&[]);
    let vcpu = Vcpu::new(0);
    // GICR_WAKER
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_gic_set_redistributor_reg(vcpu.handle, 0x14, 0) }, BAD_ARGUMENT);
    caught("no redistributor register");
    vcpu.destroy();
}

#[test]
fn a_wfi_sleeps_inside_the_run_and_a_kick_ends_it() {
    let _mac = machine(&[WFI, HVC]);
    let (sender, receiver) = mpsc::channel();
    let runner = thread::spawn(move || {
        let vcpu = Vcpu::new(0);
        sender.send(vcpu.handle).unwrap();
        let reason = vcpu.run().reason;
        let pc = vcpu.get(PC);
        vcpu.destroy();
        (reason, pc)
    });
    let handle = receiver.recv().unwrap();
    while statistics().running == 0 {
        thread::yield_now();
    }
    // Long enough for a WFI that does not sleep to be left behind.
    thread::sleep(Duration::from_millis(50));
    assert_eq!(kick(handle), 0);
    assert_eq!(runner.join().unwrap(), (CANCELED, RAM + 4));
}

/// Lets interrupts of group 1 through to a vCPU: distributor, redistributor (all private ones) and CPU interface.
fn open(vcpu: &Vcpu) {
    set_distributor(0, 2);
    // SAFETY: no pointers.
    unsafe {
        assert_eq!(hv_gic_set_redistributor_reg(vcpu.handle, 0x1_0080, 0xffff_ffff), 0);
        assert_eq!(hv_gic_set_redistributor_reg(vcpu.handle, 0x1_0100, 0xffff_ffff), 0);
        assert_eq!(hv_gic_set_icc_reg(vcpu.handle, 0xc230, 0xf0), 0);
        assert_eq!(hv_gic_set_icc_reg(vcpu.handle, 0xc667, 1), 0);
    }
}

#[test]
fn the_virtual_timer_interrupts_without_an_exit() {
    // At 0: str w0, [x1] (to GICR_WAKER) ; wfi ; b . ; IRQ vector at 0x280: mrs x0, icc_iar1_el1 ; hvc
    let mut program = vec![LOOP; 0x300 / 4];
    program[0] = STORE;
    program[1] = WFI;
    program[0x280 / 4] = 0xd538_cc00;
    program[0x284 / 4] = HVC;
    let _mac = machine(&program);
    let vcpu = Vcpu::new(0);
    open(&vcpu);
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_vcpu_set_vtimer_offset(vcpu.handle, mach_absolute_time()) }, 0);
    assert_eq!(vcpu.set_sys(0xc600, RAM), 0);
    vcpu.set(CPSR, EL1H_OPEN);
    vcpu.set(0, 0);
    vcpu.set(1, REDISTRIBUTORS + 0x14);
    // A hundredth of a second at 24 MHz.
    assert_eq!((vcpu.set_sys(0xdf1a, 240_000), vcpu.set_sys(0xdf19, 1)), (0, 0));
    assert_eq!((class(&vcpu.run()), vcpu.get(0)), (0x16, 27));
    vcpu.destroy();
    clean();
}

#[test]
fn a_reset_leaves_the_cpu_interface_alone() {
    let _mac = machine(&[]);
    let vcpu = Vcpu::new(0);
    open(&vcpu);
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_gic_reset() }, 0);
    // SAFETY: the pointers are to locals.
    let (pmr, enabled): (u64, u64) = unsafe {
        (
            get(|value| hv_gic_get_icc_reg(vcpu.handle, 0xc230, value)),
            get(|value| hv_gic_get_redistributor_reg(vcpu.handle, 0x1_0100, value)),
        )
    };
    assert_eq!((pmr, enabled), (0xf0, 0));
    vcpu.destroy();
    clean();
}

#[test]
fn a_saved_state_can_be_restored() {
    let _mac = machine(&[]);
    set_spi(SPI, true);
    // SAFETY: the buffer has the size that was said; the object is released once.
    let data = unsafe {
        let state = hv_gic_state_create();
        let size: usize = get(|value| hv_gic_state_get_size(state, value));
        let mut data = vec![0u8; size];
        assert_eq!(hv_gic_state_get_data(state, data.as_mut_ptr().cast()), 0);
        os_release(state);
        data
    };
    set_spi(SPI, false);
    // SAFETY: the pointer and the size belong together.
    assert_eq!(unsafe { hv_gic_set_state(data.as_ptr().cast::<c_void>(), data.len()) }, 0);
    assert_eq!(distributor(ISPENDR1), 1 << 8);
    clean();
}

#[test]
fn a_reset_while_a_vcpu_runs_is_refused() {
    let _mac = machine(&[LOOP]);
    let (sender, receiver) = mpsc::channel();
    let runner = thread::spawn(move || {
        let vcpu = Vcpu::new(0);
        sender.send(vcpu.handle).unwrap();
        vcpu.run();
        vcpu.destroy();
    });
    let handle = receiver.recv().unwrap();
    while statistics().running == 0 {
        thread::yield_now();
    }
    // SAFETY: no pointers.
    assert_eq!(unsafe { hv_gic_reset() }, BUSY);
    kick(handle);
    runner.join().unwrap();
    caught("hv_gic_reset while");
}
