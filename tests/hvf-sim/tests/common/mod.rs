//! What the tests of the simulator's rules share: the framework's C declarations, and a little guest made by hand.

#![allow(unused, clippy::missing_safety_doc, reason = "each test file uses a part")]

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use hvrun_hvf_sim::{Config, MacOs, Session, violations};

pub const BUSY: i32 = 0xfae9_4002_u32 as i32;
pub const BAD_ARGUMENT: i32 = 0xfae9_4003_u32 as i32;
pub const NO_RESOURCES: i32 = 0xfae9_4005_u32 as i32;
pub const NO_DEVICE: i32 = 0xfae9_4006_u32 as i32;
pub const DENIED: i32 = 0xfae9_4007_u32 as i32;
pub const UNSUPPORTED: i32 = 0xfae9_400f_u32 as i32;

pub const CANCELED: u32 = 0;
pub const EXCEPTION: u32 = 1;
pub const VTIMER_ACTIVATED: u32 = 2;
pub const UNKNOWN: u32 = 3;

pub const PC: u32 = 31;
pub const CPSR: u32 = 34;
pub const MPIDR: u16 = 0xc005;
/// EL1h with interrupts masked.
pub const EL1H: u64 = 0x3c5;
/// EL1h with interrupts unmasked.
pub const EL1H_OPEN: u64 = 0x5;

/// Read, write and execute.
pub const RWX: u64 = 7;
pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: usize = 64 << 10;
pub const GRANULE: usize = 16 << 10;

pub const HVC: u32 = 0xd400_0002;
pub const SMC: u32 = 0xd400_0003;
pub const WFI: u32 = 0xd503_207f;
/// b .
pub const LOOP: u32 = 0x1400_0000;
/// ldr w0, [x1]
pub const LOAD: u32 = 0xb940_0020;
/// str w0, [x1]
pub const STORE: u32 = 0xb900_0020;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Exit {
    pub reason: u32,
    pub syndrome: u64,
    pub virtual_address: u64,
    pub physical_address: u64,
}

unsafe extern "C" {
    pub fn hv_vm_create(config: *mut c_void) -> i32;
    pub fn hv_vm_destroy() -> i32;
    pub fn hv_vm_get_max_vcpu_count(count: *mut u32) -> i32;
    pub fn hv_vm_map(addr: *mut c_void, ipa: u64, size: usize, flags: u64) -> i32;
    pub fn hv_vm_unmap(ipa: u64, size: usize) -> i32;
    pub fn hv_vm_protect(ipa: u64, size: usize, flags: u64) -> i32;
    pub fn hv_vm_config_create() -> *mut c_void;
    pub fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> i32;
    pub fn hv_vm_config_get_default_ipa_size(bits: *mut u32) -> i32;
    pub fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> i32;
    pub fn os_release(object: *mut c_void);
    pub fn hv_vcpu_config_create() -> *mut c_void;
    pub fn hv_vcpu_config_get_feature_reg(config: *mut c_void, feature: u32, value: *mut u64) -> i32;
    pub fn hv_vcpu_create(vcpu: *mut u64, exit: *mut *mut Exit, config: *mut c_void) -> i32;
    pub fn hv_vcpu_destroy(vcpu: u64) -> i32;
    pub fn hv_vcpu_run(vcpu: u64) -> i32;
    pub fn hv_vcpus_exit(vcpus: *const u64, count: u32) -> i32;
    pub fn hv_vcpu_get_reg(vcpu: u64, reg: u32, value: *mut u64) -> i32;
    pub fn hv_vcpu_set_reg(vcpu: u64, reg: u32, value: u64) -> i32;
    pub fn hv_vcpu_get_simd_fp_reg(vcpu: u64, reg: u32, value: *mut u128) -> i32;
    pub fn hv_vcpu_get_sys_reg(vcpu: u64, reg: u16, value: *mut u64) -> i32;
    pub fn hv_vcpu_set_sys_reg(vcpu: u64, reg: u16, value: u64) -> i32;
    pub fn hv_vcpu_set_pending_interrupt(vcpu: u64, interrupt: u32, pending: bool) -> i32;
    pub fn hv_vcpu_get_pending_interrupt(vcpu: u64, interrupt: u32, pending: *mut bool) -> i32;
    pub fn hv_vcpu_get_vtimer_mask(vcpu: u64, masked: *mut bool) -> i32;
    pub fn hv_vcpu_set_vtimer_mask(vcpu: u64, masked: bool) -> i32;
    pub fn hv_vcpu_set_vtimer_offset(vcpu: u64, offset: u64) -> i32;
    pub fn hv_gic_config_create() -> *mut c_void;
    pub fn hv_gic_config_set_distributor_base(config: *mut c_void, base: u64) -> i32;
    pub fn hv_gic_config_set_redistributor_base(config: *mut c_void, base: u64) -> i32;
    pub fn hv_gic_config_set_msi_region_base(config: *mut c_void, base: u64) -> i32;
    pub fn hv_gic_config_set_msi_interrupt_range(config: *mut c_void, first: u32, count: u32) -> i32;
    pub fn hv_gic_create(config: *mut c_void) -> i32;
    pub fn hv_gic_reset() -> i32;
    pub fn hv_gic_set_spi(intid: u32, level: bool) -> i32;
    pub fn hv_gic_send_msi(address: u64, intid: u32) -> i32;
    pub fn hv_gic_get_redistributor_region_size(size: *mut usize) -> i32;
    pub fn hv_gic_get_distributor_reg(reg: u32, value: *mut u64) -> i32;
    pub fn hv_gic_set_distributor_reg(reg: u32, value: u64) -> i32;
    pub fn hv_gic_get_redistributor_reg(vcpu: u64, reg: u32, value: *mut u64) -> i32;
    pub fn hv_gic_set_redistributor_reg(vcpu: u64, reg: u32, value: u64) -> i32;
    pub fn hv_gic_get_icc_reg(vcpu: u64, reg: u16, value: *mut u64) -> i32;
    pub fn hv_gic_set_icc_reg(vcpu: u64, reg: u16, value: u64) -> i32;
    pub fn hv_gic_state_create() -> *mut c_void;
    pub fn hv_gic_state_get_size(state: *mut c_void, size: *mut usize) -> i32;
    pub fn hv_gic_state_get_data(state: *mut c_void, data: *mut c_void) -> i32;
    pub fn hv_gic_set_state(data: *const c_void, size: usize) -> i32;
    pub fn hv_sim_dlsym(name: *const c_char) -> *const c_void;
    pub fn mach_absolute_time() -> u64;
}

/// Calls a getter that stores through a pointer.
pub fn get<T: Default>(call: impl FnOnce(*mut T) -> i32) -> T {
    let mut value = T::default();
    assert_eq!(call(&raw mut value), 0);
    value
}

/// Memory for a guest, in whole granules. Never freed: a test's process does not live long.
pub fn memory() -> *mut c_void {
    let layout = std::alloc::Layout::from_size_align(RAM_SIZE, GRANULE).unwrap();
    // SAFETY: the size is not zero.
    unsafe { std::alloc::alloc_zeroed(layout).cast() }
}

/// A session with a VM.
pub fn vm(config: Config) -> Session {
    let session = Session::new(config);
    // SAFETY: null is the default configuration.
    assert_eq!(unsafe { hv_vm_create(null_mut()) }, 0);
    session
}

/// Maps RAM with `words` at its start.
pub fn load(words: &[u32]) {
    let ram = memory();
    for (index, word) in words.iter().enumerate() {
        // SAFETY: the program is smaller than the RAM.
        unsafe { ram.cast::<u32>().add(index).write(word.to_le()) };
    }
    // SAFETY: the memory is never freed.
    assert_eq!(unsafe { hv_vm_map(ram, RAM, RAM_SIZE, RWX) }, 0);
}

/// A session with a VM with a program in its RAM.
pub fn vm_with(config: Config, words: &[u32]) -> Session {
    let session = vm(config);
    load(words);
    session
}

/// A vCPU of the calling thread.
pub struct Vcpu {
    pub handle: u64,
    pub exit: *const Exit,
}

impl Vcpu {
    /// As the framework makes it.
    pub fn bare() -> Vcpu {
        let (mut handle, mut exit) = (0, null_mut());
        // SAFETY: both are ours.
        assert_eq!(unsafe { hv_vcpu_create(&raw mut handle, &raw mut exit, null_mut()) }, 0);
        Vcpu { handle, exit }
    }

    /// With what every guest needs: affinity, an honest description of itself, and the PC at the start of RAM.
    pub fn new(affinity: u64) -> Vcpu {
        let vcpu = Vcpu::bare();
        assert_eq!(vcpu.set_sys(MPIDR, 1 << 31 | affinity), 0);
        vcpu.describe();
        vcpu.set(PC, RAM);
        vcpu.set(CPSR, EL1H);
        vcpu
    }

    /// Takes away what the hardware promises and the vCPU has not.
    pub fn describe(&self) {
        let clear = |reg: u16, mask: u64, set: u64| {
            let value = self.sys(reg);
            assert_eq!(self.set_sys(reg, value & !mask | set), 0);
        };
        clear(0xc020, 0xf << 24 | 0xf << 8 | 0xf << 32, 1 << 24);
        clear(0xc021, 0xf << 24, 0);
        clear(0xc028, 0xf << 8, 0);
        clear(0xc038, 0xf, 1);
        clear(0xc03a, 0xf | 0xf << 24, 0);
    }

    pub fn get(&self, reg: u32) -> u64 {
        // SAFETY: the pointer is to a local.
        get(|value| unsafe { hv_vcpu_get_reg(self.handle, reg, value) })
    }

    pub fn set(&self, reg: u32, value: u64) {
        // SAFETY: no pointers.
        assert_eq!(unsafe { hv_vcpu_set_reg(self.handle, reg, value) }, 0);
    }

    pub fn sys(&self, reg: u16) -> u64 {
        // SAFETY: the pointer is to a local.
        get(|value| unsafe { hv_vcpu_get_sys_reg(self.handle, reg, value) })
    }

    pub fn set_sys(&self, reg: u16, value: u64) -> i32 {
        // SAFETY: no pointers.
        unsafe { hv_vcpu_set_sys_reg(self.handle, reg, value) }
    }

    /// Runs, and says why it ended.
    pub fn run(&self) -> Exit {
        // SAFETY: no pointers.
        assert_eq!(unsafe { hv_vcpu_run(self.handle) }, 0);
        // SAFETY: valid until the vCPU is destroyed, which this value outlives not.
        unsafe { self.exit.read() }
    }

    pub fn destroy(self) {
        // SAFETY: no pointers.
        assert_eq!(unsafe { hv_vcpu_destroy(self.handle) }, 0);
    }
}

/// `hv_vcpus_exit` of one vCPU.
pub fn kick(handle: u64) -> i32 {
    // SAFETY: one handle.
    unsafe { hv_vcpus_exit(&raw const handle, 1) }
}

/// The exception class of an exit.
pub fn class(exit: &Exit) -> u64 {
    assert_eq!(exit.reason, EXCEPTION, "{exit:?}");
    exit.syndrome >> 26
}

/// Asserts that exactly one rule was broken, and that its text contains `what`.
#[track_caller]
pub fn caught(what: &str) {
    let seen = violations();
    assert!(seen.len() == 1 && seen[0].contains(what), "expected one about \"{what}\", found {seen:?}");
}

/// Asserts that no rule was broken.
#[track_caller]
pub fn clean() {
    assert_eq!(violations(), Vec::<String>::new());
}
