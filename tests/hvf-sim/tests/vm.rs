//! The simulator's rules about the VM, its memory, its objects and the system's version: each is broken here, and caught.
#![cfg(not(target_os = "macos"))]

mod common;

use std::ffi::c_void;
use std::process::Command;
use std::ptr::null_mut;

use common::*;
use hvrun_hvf_sim::{Config, MacOs, OnViolation, Session, leaked_objects, violations};

fn map(ipa: u64, size: usize) -> i32 {
    // SAFETY: the memory is never freed.
    unsafe { hv_vm_map(memory(), ipa, size, RWX) }
}

fn unmap(ipa: u64, size: usize) -> i32 {
    // SAFETY: nothing runs.
    unsafe { hv_vm_unmap(ipa, size) }
}

fn protect(ipa: u64, size: usize, flags: u64) -> i32 {
    // SAFETY: nothing runs.
    unsafe { hv_vm_protect(ipa, size, flags) }
}

fn create_vm(ipa_bits: Option<u32>) -> i32 {
    let Some(bits) = ipa_bits else {
        // SAFETY: null is the default configuration.
        return unsafe { hv_vm_create(null_mut()) };
    };
    // SAFETY: the object is used as its kind allows and released once.
    unsafe {
        let config = hv_vm_config_create();
        let set = hv_vm_config_set_ipa_size(config, bits);
        let created = if set == 0 { hv_vm_create(config) } else { set };
        os_release(config);
        created
    }
}

#[test]
fn a_second_vm_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(create_vm(None), BUSY);
    caught("while the process has a VM");
}

#[test]
fn a_vm_can_follow_one_that_was_destroyed() {
    let _mac = vm(Config::default());
    // SAFETY: nothing uses the VM.
    assert_eq!(unsafe { hv_vm_destroy() }, 0);
    assert_eq!(create_vm(None), 0);
    clean();
}

#[test]
fn a_process_without_the_entitlement_is_denied() {
    let _mac = Session::new(Config { entitlement: false, ..Config::default() });
    assert_eq!(create_vm(None), DENIED);
    clean();
}

#[test]
fn a_virtual_mac_has_no_hypervisor() {
    let _mac = Session::new(Config { virtual_machine: true, ..Config::default() });
    assert_eq!(create_vm(None), UNSUPPORTED);
    clean();
}

#[test]
fn memory_calls_need_a_vm() {
    let _mac = Session::new(Config::default());
    assert_eq!(map(RAM, GRANULE), NO_DEVICE);
    caught("without a VM");
}

#[test]
fn a_vm_with_vcpus_cannot_be_destroyed() {
    let _mac = vm(Config::default());
    let vcpu = Vcpu::bare();
    // SAFETY: it is refused.
    assert_eq!(unsafe { hv_vm_destroy() }, BUSY);
    caught("while 1 vCPUs exist");
    vcpu.destroy();
}

#[test]
fn an_ipa_that_is_not_16_kib_aligned_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(map(RAM + 0x1000, GRANULE), BAD_ARGUMENT);
    caught("not a multiple of 16 KiB");
}

#[test]
fn a_size_that_is_not_16_kib_aligned_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(map(RAM, 0x1000), BAD_ARGUMENT);
    caught("not a multiple of 16 KiB");
}

#[test]
fn a_host_address_that_is_not_16_kib_aligned_is_refused() {
    let _mac = vm(Config::default());
    // SAFETY: it is refused; and else the memory is never freed.
    assert_eq!(unsafe { hv_vm_map(memory().byte_add(0x1000), RAM, GRANULE, RWX) }, BAD_ARGUMENT);
    caught("which is no multiple of 0x4000");
}

#[test]
fn unknown_permissions_are_refused() {
    let _mac = vm(Config::default());
    // SAFETY: it is refused.
    assert_eq!(unsafe { hv_vm_map(memory(), RAM, GRANULE, 8) }, BAD_ARGUMENT);
    caught("with the permissions 0x8");
}

#[test]
fn mapping_over_a_mapping_fails() {
    let _mac = vm(Config::default());
    assert_eq!(map(RAM, 2 * GRANULE), 0);
    assert_ne!(map(RAM + GRANULE as u64, 2 * GRANULE), 0);
    caught("is mapped already");
}

#[test]
fn unmapping_a_part_of_a_mapping_is_guarded() {
    let _mac = vm(Config::default());
    assert_eq!(map(RAM, 2 * GRANULE), 0);
    assert_eq!(unmap(RAM, GRANULE), BAD_ARGUMENT);
    caught("EXC_GUARD");
}

#[test]
fn unmapping_a_hole_is_guarded() {
    let _mac = vm(Config::default());
    assert_eq!(unmap(RAM, GRANULE), BAD_ARGUMENT);
    caught("EXC_GUARD");
}

#[test]
fn unmapping_exactly_what_was_mapped_succeeds() {
    let _mac = vm(Config::default());
    assert_eq!(map(RAM, 2 * GRANULE), 0);
    assert_eq!(protect(RAM, GRANULE, 1), 0);
    assert_eq!(unmap(RAM, 2 * GRANULE), 0);
    assert_eq!(map(RAM, 2 * GRANULE), 0);
    clean();
}

#[test]
fn protecting_a_hole_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(map(RAM, GRANULE), 0);
    assert_eq!(protect(RAM, 2 * GRANULE, 1), BAD_ARGUMENT);
    caught("part of which is not mapped");
}

#[test]
fn a_store_to_protected_memory_is_a_permission_fault() {
    let _mac = vm_with(Config::default(), &[STORE, HVC]);
    assert_eq!(protect(RAM + GRANULE as u64, GRANULE, 1), 0);
    let vcpu = Vcpu::new(0);
    vcpu.set(1, RAM + GRANULE as u64);
    let exit = vcpu.run();
    assert_eq!((class(&exit), exit.syndrome & 0x3c), (0x24, 0x0c));
    assert_eq!((exit.physical_address, vcpu.get(PC)), (RAM + GRANULE as u64, RAM));
    vcpu.destroy();
    clean();
}

#[test]
fn memory_beyond_the_default_ipa_space_is_refused() {
    let _mac = vm(Config::default());
    assert_eq!(map(1 << 36, GRANULE), BAD_ARGUMENT);
    caught("beyond the IPA space of 36 bits");
}

#[test]
fn a_wider_ipa_space_can_be_asked_for() {
    let _mac = Session::new(Config::default());
    assert_eq!(create_vm(Some(40)), 0);
    assert_eq!(map(1 << 36, GRANULE), 0);
    clean();
}

#[test]
fn an_ipa_space_wider_than_the_hardware_is_refused() {
    let _mac = Session::new(Config { max_ipa_bits: 36, ..Config::default() });
    assert_eq!(create_vm(Some(40)), BAD_ARGUMENT);
    caught("at most 36");
}

#[test]
fn a_vm_configuration_needs_macos_13() {
    let _mac = Session::new(Config { macos: MacOs(12, 6), ..Config::default() });
    // SAFETY: it gives null.
    assert!(unsafe { hv_vm_config_create() }.is_null());
    caught("does not exist in macOS 12.6");
}

#[test]
fn an_object_released_twice_is_caught() {
    let _mac = Session::new(Config::default());
    // SAFETY: handles are numbers to the simulator.
    unsafe {
        let config = hv_vm_config_create();
        os_release(config);
        os_release(config);
    }
    caught("os_release");
}

#[test]
fn an_object_that_was_released_cannot_be_used() {
    let _mac = Session::new(Config::default());
    // SAFETY: handles are numbers to the simulator.
    let created = unsafe {
        let config = hv_vm_config_create();
        os_release(config);
        hv_vm_create(config)
    };
    assert_eq!(created, BAD_ARGUMENT);
    caught("an object that does not exist");
}

#[test]
fn an_object_that_is_not_released_is_counted() {
    let _mac = Session::new(Config::default());
    // SAFETY: it is released below.
    let config = unsafe { hv_vm_config_create() };
    let leaked = leaked_objects();
    // SAFETY: for the first time.
    unsafe { os_release(config) };
    assert_eq!((leaked, leaked_objects()), (1, 0));
}

fn symbol(name: &std::ffi::CStr) -> *const c_void {
    // SAFETY: a C string.
    unsafe { hv_sim_dlsym(name.as_ptr()) }
}

#[test]
fn macos_14_has_no_symbols_of_the_gic() {
    let _mac = Session::new(Config { macos: MacOs::V14, ..Config::default() });
    assert!(symbol(c"hv_gic_create").is_null());
    assert!(!symbol(c"hv_vm_create").is_null());
}

#[test]
fn macos_15_has_symbols_of_the_gic() {
    let _mac = Session::new(Config::default());
    assert!(std::ptr::eq(symbol(c"hv_gic_create"), hv_gic_create as *const c_void));
    assert!(symbol(c"hv_no_such_call").is_null());
}

#[test]
fn time_counts_in_mach_ticks() {
    let _mac = Session::new(Config { counter_hz: 1_000_000_000, ..Config::default() });
    // SAFETY: no arguments.
    let (before, after) = unsafe {
        let before = mach_absolute_time();
        std::thread::sleep(std::time::Duration::from_millis(100));
        (before, mach_absolute_time())
    };
    // At least 2.4 million ticks of 24 MHz; ticks of the counter would be 100 million.
    assert!((2_400_000..60_000_000).contains(&(after - before)), "{}", after - before);
}

#[test]
fn a_broken_rule_can_be_made_fatal() {
    const CHILD: &str = "HVF_SIM_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let _mac = Session::new(Config { on_violation: OnViolation::Abort, ..Config::default() });
        map(RAM, GRANULE);
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_broken_rule_can_be_made_fatal", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("hv_vm_map without a VM"), "{text}; {:?}", violations());
}
