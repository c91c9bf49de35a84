//! Every call into Hypervisor.framework, and all `unsafe` that it takes. What the calls are used for is in `vm` and `vcpu`.
//!
//! The prototypes are ours, not those of `applevisor-sys`, whose version 1.0.0 differs from Apple's headers in four points that
//! matter: values that the kernel fills in are Rust enums there (undefined behaviour for a value that is new), IRQ and FIQ are
//! swapped, `hv_vcpu_set_simd_fp_reg` takes its vector in integer registers instead of v0, and memory can only be mapped that
//! it allocated itself (in its safe sister). From it come the framework's linking and the prototypes that are right, which
//! the compiler holds ours against below.
//!
//! Calls that came with macOS 15 (`hv_gic_*`) are looked up at run time, so that the program starts on macOS 13 and 14 too.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::availability::HvReturn;
use super::clock::Clock;
use super::gic_layout::{Extent, HostGicShape};
use super::sys;
use crate::aarch64::layout::Window;
use crate::hypervisor::HypervisorError;

/// hv_vcpu_t.
pub type VcpuHandle = u64;
/// os_object of a configuration.
type Object = *mut c_void;
/// hv_memory_flags_t: HV_MEMORY_READ | HV_MEMORY_WRITE | HV_MEMORY_EXEC. Guest RAM is everything.
const MEMORY_RWX: u64 = 0b111;

/// hv_exit_reason_t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct ExitReason(pub u32);

impl ExitReason {
    /// HV_EXIT_REASON_CANCELED.
    pub const CANCELED: ExitReason = ExitReason(0);
    /// HV_EXIT_REASON_EXCEPTION.
    pub const EXCEPTION: ExitReason = ExitReason(1);
    /// HV_EXIT_REASON_VTIMER_ACTIVATED.
    pub const VTIMER_ACTIVATED: ExitReason = ExitReason(2);
}

/// hv_vcpu_exit_t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// ESR_EL2.
    pub syndrome: u64,
    /// FAR_EL2.
    pub virtual_address: u64,
    /// The faulting IPA.
    pub physical_address: u64,
}

const _: () = assert!(size_of::<Exit>() == 32);

/// hv_interrupt_type_t, numbered as in Apple's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct InterruptType(u32);

impl InterruptType {
    /// HV_INTERRUPT_TYPE_IRQ.
    pub const IRQ: InterruptType = InterruptType(0);
    /// HV_INTERRUPT_TYPE_FIQ.
    pub const FIQ: InterruptType = InterruptType(1);
}

/// hv_reg_t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct GeneralReg(u32);

impl GeneralReg {
    /// HV_REG_PC.
    pub const PC: GeneralReg = GeneralReg(31);
    /// HV_REG_FPCR.
    pub const FPCR: GeneralReg = GeneralReg(32);
    /// HV_REG_FPSR.
    pub const FPSR: GeneralReg = GeneralReg(33);
    /// HV_REG_CPSR.
    pub const CPSR: GeneralReg = GeneralReg(34);

    /// HV_REG_X0 to HV_REG_X30; there is no more.
    pub fn x(n: u8) -> Option<GeneralReg> {
        (n < 31).then_some(GeneralReg(n.into()))
    }
}

/// hv_simd_fp_reg_t: Q0 to Q31.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
struct SimdReg(u32);

/// hv_sys_reg_t: the architectural encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct SystemReg(pub u16);

/// hv_gic_icc_reg_t: the architectural encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct IccReg(pub u16);

/// hv_gic_redistributor_reg_t: the offset in the redistributor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct RedistributorReg(u32);

impl RedistributorReg {
    /// GICR_ISPENDR0.
    pub const ISPENDR0: RedistributorReg = RedistributorReg(0x1_0200);
    /// GICR_ICPENDR0.
    pub const ICPENDR0: RedistributorReg = RedistributorReg(0x1_0280);
}

/// hv_simd_fp_uchar16_t, a vector by value.
#[cfg(target_arch = "aarch64")]
type Vector = std::arch::aarch64::uint8x16_t;
/// The same for the simulator on x86-64.
#[cfg(target_arch = "x86_64")]
type Vector = std::arch::x86_64::__m128i;

/// Defines a table of the framework's functions and, where the attributes say so, a way to fill it by name.
macro_rules! functions {
    ($(#[$doc:meta])* struct $table:ident; $(#[$find:meta])* find; $(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $table {
            $($name: unsafe extern "C" fn($($ty),*) $(-> $ret)?,)*
        }

        $(#[$find])*
        impl $table {
            /// Takes every function from `find`, or gives the name of the first that it does not know.
            ///
            /// # Safety
            /// What `find` answers for a name is null or the function of that name in Apple's headers.
            pub(super) unsafe fn find(find: impl Fn(&CStr) -> *const c_void) -> Result<Self, &'static str> {
                $(
                    let name = concat!(stringify!($name), "\0");
                    let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else {
                        return Err(stringify!($name));
                    };
                    let found = find(name);
                    if found.is_null() {
                        return Err(stringify!($name));
                    }
                    // SAFETY: by the caller's promise it is a function with this prototype.
                    let $name = unsafe {
                        std::mem::transmute::<*const c_void, unsafe extern "C" fn($($ty),*) $(-> $ret)?>(found)
                    };
                )*
                Ok($table { $($name,)* })
            }
        }
    };
}

/// The functions that every macOS from 13 on has, once to be linked and once to be looked up in a simulator.
macro_rules! base_functions {
    ($($all:tt)*) => {
        functions! {
            /// The functions that every macOS from 13 on has.
            struct Base;
            #[cfg(not(target_os = "macos"))] find;
            $($all)*
        }

        #[cfg(target_os = "macos")]
        impl Base {
            linked! { $($all)* }
        }
    };
}

/// Makes `Base::linked`, which refers to the functions by their symbols.
#[cfg(target_os = "macos")]
macro_rules! linked {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        pub(super) fn linked() -> Self {
            unsafe extern "C" {
                $(fn $name($($arg: $ty),*) $(-> $ret)?;)*
            }
            Base { $($name,)* }
        }
    };
}

// `hv_vcpu_set_simd_fp_reg` takes (hv_vcpu_t, hv_simd_fp_reg_t, hv_simd_fp_uchar16_t), which stable Rust cannot declare: only
// `set_simd_fp_reg` below may call it.
base_functions! {
    fn os_release(object: Object);
    fn hv_vm_config_create() -> Object;
    fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> HvReturn;
    fn hv_vm_config_get_default_ipa_size(bits: *mut u32) -> HvReturn;
    fn hv_vm_config_set_ipa_size(config: Object, bits: u32) -> HvReturn;
    fn hv_vm_create(config: Object) -> HvReturn;
    fn hv_vm_destroy() -> HvReturn;
    fn hv_vm_get_max_vcpu_count(count: *mut u32) -> HvReturn;
    fn hv_vm_map(addr: *mut c_void, ipa: u64, size: usize, flags: u64) -> HvReturn;
    fn hv_vm_unmap(ipa: u64, size: usize) -> HvReturn;
    fn hv_vcpu_create(vcpu: *mut VcpuHandle, exit: *mut *const Exit, config: Object) -> HvReturn;
    fn hv_vcpu_destroy(vcpu: VcpuHandle) -> HvReturn;
    fn hv_vcpu_run(vcpu: VcpuHandle) -> HvReturn;
    fn hv_vcpus_exit(vcpus: *const VcpuHandle, count: u32) -> HvReturn;
    fn hv_vcpu_get_reg(vcpu: VcpuHandle, reg: GeneralReg, value: *mut u64) -> HvReturn;
    fn hv_vcpu_set_reg(vcpu: VcpuHandle, reg: GeneralReg, value: u64) -> HvReturn;
    fn hv_vcpu_get_simd_fp_reg(vcpu: VcpuHandle, reg: SimdReg, value: *mut u128) -> HvReturn;
    fn hv_vcpu_set_simd_fp_reg();
    fn hv_vcpu_get_sys_reg(vcpu: VcpuHandle, reg: SystemReg, value: *mut u64) -> HvReturn;
    fn hv_vcpu_set_sys_reg(vcpu: VcpuHandle, reg: SystemReg, value: u64) -> HvReturn;
    fn hv_vcpu_set_pending_interrupt(vcpu: VcpuHandle, kind: InterruptType, pending: bool) -> HvReturn;
    fn hv_vcpu_get_vtimer_mask(vcpu: VcpuHandle, masked: *mut bool) -> HvReturn;
    fn hv_vcpu_set_vtimer_mask(vcpu: VcpuHandle, masked: bool) -> HvReturn;
    fn hv_vcpu_get_vtimer_offset(vcpu: VcpuHandle, offset: *mut u64) -> HvReturn;
    fn hv_vcpu_set_vtimer_offset(vcpu: VcpuHandle, offset: u64) -> HvReturn;
}

functions! {
    /// The functions of the GIC in the kernel, from macOS 15 on.
    struct GicFunctions;
    find;
    fn hv_gic_config_create() -> Object;
    fn hv_gic_config_set_distributor_base(config: Object, base: u64) -> HvReturn;
    fn hv_gic_config_set_redistributor_base(config: Object, base: u64) -> HvReturn;
    fn hv_gic_config_set_msi_region_base(config: Object, base: u64) -> HvReturn;
    fn hv_gic_config_set_msi_interrupt_range(config: Object, base: u32, count: u32) -> HvReturn;
    fn hv_gic_create(config: Object) -> HvReturn;
    fn hv_gic_reset() -> HvReturn;
    fn hv_gic_set_spi(intid: u32, level: bool) -> HvReturn;
    fn hv_gic_send_msi(address: u64, intid: u32) -> HvReturn;
    fn hv_gic_get_distributor_size(size: *mut usize) -> HvReturn;
    fn hv_gic_get_distributor_base_alignment(align: *mut usize) -> HvReturn;
    fn hv_gic_get_redistributor_region_size(size: *mut usize) -> HvReturn;
    fn hv_gic_get_redistributor_base_alignment(align: *mut usize) -> HvReturn;
    fn hv_gic_get_msi_region_size(size: *mut usize) -> HvReturn;
    fn hv_gic_get_msi_region_base_alignment(align: *mut usize) -> HvReturn;
    fn hv_gic_get_spi_interrupt_range(base: *mut u32, count: *mut u32) -> HvReturn;
    fn hv_gic_get_icc_reg(vcpu: VcpuHandle, reg: IccReg, value: *mut u64) -> HvReturn;
    fn hv_gic_set_icc_reg(vcpu: VcpuHandle, reg: IccReg, value: u64) -> HvReturn;
    fn hv_gic_set_redistributor_reg(vcpu: VcpuHandle, reg: RedistributorReg, value: u64) -> HvReturn;
}

/// Ours and the bindings' prototypes are the same where those are right; a constant that no code refers to links nothing.
/// `HvReturn` is an `i32` by its representation, so results are compared by hand.
#[allow(clippy::type_complexity, reason = "prototypes")]
const _: () = {
    use applevisor_sys as sys;
    let _: (unsafe extern "C" fn(Object), unsafe extern "C" fn() -> Object) =
        (sys::os_release, sys::hv_vm_config_create);
    let _: [unsafe extern "C" fn(*mut u32) -> i32; 3] = [
        sys::hv_vm_config_get_max_ipa_size,
        sys::hv_vm_config_get_default_ipa_size,
        sys::hv_vm_get_max_vcpu_count,
    ];
    let _: unsafe extern "C" fn(Object, u32) -> i32 = sys::hv_vm_config_set_ipa_size;
    let _: (unsafe extern "C" fn(Object) -> i32, unsafe extern "C" fn() -> i32) =
        (sys::hv_vm_create, sys::hv_vm_destroy);
    let _: unsafe extern "C" fn(u64, usize) -> i32 = sys::hv_vm_unmap;
    let _: [unsafe extern "C" fn(VcpuHandle) -> i32; 2] = [sys::hv_vcpu_destroy, sys::hv_vcpu_run];
    let _: unsafe extern "C" fn(*const VcpuHandle, u32) -> i32 = sys::hv_vcpus_exit;
    let _: unsafe extern "C" fn(VcpuHandle, *mut bool) -> i32 = sys::hv_vcpu_get_vtimer_mask;
    let _: unsafe extern "C" fn(VcpuHandle, bool) -> i32 = sys::hv_vcpu_set_vtimer_mask;
    let _: unsafe extern "C" fn(VcpuHandle, *mut u64) -> i32 = sys::hv_vcpu_get_vtimer_offset;
    let _: unsafe extern "C" fn(VcpuHandle, u64) -> i32 = sys::hv_vcpu_set_vtimer_offset;
    let _: [unsafe extern "C" fn(Object, u64) -> i32; 3] = [
        sys::hv_gic_config_set_distributor_base,
        sys::hv_gic_config_set_redistributor_base,
        sys::hv_gic_config_set_msi_region_base,
    ];
    let _: unsafe extern "C" fn(Object, u32, u32) -> i32 = sys::hv_gic_config_set_msi_interrupt_range;
    let _: (unsafe extern "C" fn(Object) -> i32, unsafe extern "C" fn() -> i32) =
        (sys::hv_gic_create, sys::hv_gic_reset);
    let _: unsafe extern "C" fn(u32, bool) -> i32 = sys::hv_gic_set_spi;
    let _: unsafe extern "C" fn(u64, u32) -> i32 = sys::hv_gic_send_msi;
    let _: [unsafe extern "C" fn(*mut usize) -> i32; 6] = [
        sys::hv_gic_get_distributor_size,
        sys::hv_gic_get_distributor_base_alignment,
        sys::hv_gic_get_redistributor_region_size,
        sys::hv_gic_get_redistributor_base_alignment,
        sys::hv_gic_get_msi_region_size,
        sys::hv_gic_get_msi_region_base_alignment,
    ];
    let _: unsafe extern "C" fn(*mut u32, *mut u32) -> i32 = sys::hv_gic_get_spi_interrupt_range;
};

/// `result` of `call` as a `Result`.
fn check(call: &'static str, result: HvReturn) -> Result<(), HypervisorError> {
    match result {
        HvReturn::SUCCESS => Ok(()),
        failed => Err(HypervisorError::Call { call, reason: format!("it answers {failed}") }),
    }
}

/// A value that `call` stores.
fn get<T>(call: &'static str, fill: impl FnOnce(*mut T) -> HvReturn) -> Result<T, HypervisorError> {
    let mut value = MaybeUninit::uninit();
    check(call, fill(value.as_mut_ptr()))?;
    // SAFETY: every call that is used here stores its value if it succeeds, and `T` is an integer or bool as in its prototype.
    Ok(unsafe { value.assume_init() })
}

/// The framework, as far as this host has it.
pub struct Framework {
    base: Base,
    gic: Option<Gic>,
    /// `mach_absolute_time`.
    host_ticks: extern "C" fn() -> u64,
    clock: Clock,
}

impl std::fmt::Debug for Framework {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Framework").field("gic", &self.gic.is_some()).finish_non_exhaustive()
    }
}

impl Framework {
    /// The framework of this host, or why it has none.
    pub fn load() -> Result<Arc<Framework>, String> {
        let base = sys::base_functions()?;
        // SAFETY: `lookup` answers with functions of the framework.
        let gic = unsafe { GicFunctions::find(sys::lookup) }.ok().map(Gic);
        Ok(Arc::new(Framework { base, gic, host_ticks: sys::host_ticks()?, clock: sys::clock() }))
    }

    /// `mach_absolute_time` now: a counter that stands still while the Mac sleeps.
    pub fn host_ticks(&self) -> u64 {
        (self.host_ticks)()
    }

    /// The units of [`Framework::host_ticks`] and of the guest's counter.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The GIC in the kernel, if this macOS has it.
    pub fn gic(&self) -> Option<&Gic> {
        self.gic.as_ref()
    }

    /// Makes a VM with all defaults and destroys it again: says whether this process may.
    pub fn try_vm(&self) -> HvReturn {
        // SAFETY: a null configuration means the defaults; a VM without vCPUs and mappings may be destroyed at once.
        unsafe {
            let result = (self.base.hv_vm_create)(std::ptr::null_mut());
            if result == HvReturn::SUCCESS { (self.base.hv_vm_destroy)() } else { result }
        }
    }

    /// Widest IPA space that a VM may have, in bits.
    pub fn max_ipa_bits(&self) -> Result<u32, HypervisorError> {
        // SAFETY: the pointer may be written.
        get("hv_vm_config_get_max_ipa_size", |to| unsafe { (self.base.hv_vm_config_get_max_ipa_size)(to) })
    }

    /// IPA space of a VM that does not ask for one, in bits.
    pub fn default_ipa_bits(&self) -> Result<u32, HypervisorError> {
        // SAFETY: the pointer may be written.
        get("hv_vm_config_get_default_ipa_size", |to| unsafe {
            (self.base.hv_vm_config_get_default_ipa_size)(to)
        })
    }

    /// Most vCPUs of a VM.
    pub fn max_vcpus(&self) -> Result<u32, HypervisorError> {
        // SAFETY: the pointer may be written.
        get("hv_vm_get_max_vcpu_count", |to| unsafe { (self.base.hv_vm_get_max_vcpu_count)(to) })
    }

    /// Makes the process' one VM. With `None` its IPA space has the default size.
    pub fn create_vm(&self, ipa_bits: Option<u32>) -> Result<HvReturn, HypervisorError> {
        let Some(bits) = ipa_bits else {
            // SAFETY: a null configuration means the defaults.
            return Ok(unsafe { (self.base.hv_vm_create)(std::ptr::null_mut()) });
        };
        // SAFETY: no arguments.
        let config = self.owned(unsafe { (self.base.hv_vm_config_create)() }, "hv_vm_config_create")?;
        // SAFETY: the configuration is one and lives until after the calls.
        unsafe {
            check("hv_vm_config_set_ipa_size", (self.base.hv_vm_config_set_ipa_size)(config.object, bits))?;
            Ok((self.base.hv_vm_create)(config.object))
        }
    }

    /// Destroys the VM.
    ///
    /// # Safety
    /// No vCPU of it exists.
    pub unsafe fn destroy_vm(&self) -> Result<(), HypervisorError> {
        // SAFETY: the caller's promise.
        check("hv_vm_destroy", unsafe { (self.base.hv_vm_destroy)() })
    }

    /// Gives the guest `size` bytes at `host` as RAM at `ipa`.
    ///
    /// # Safety
    /// The memory stays mapped until it is unmapped from the guest or the VM is destroyed, and Rust holds no reference into it.
    pub unsafe fn map(&self, host: *mut u8, ipa: u64, size: usize) -> Result<(), HypervisorError> {
        // SAFETY: the caller's promise.
        check("hv_vm_map", unsafe { (self.base.hv_vm_map)(host.cast(), ipa, size, MEMORY_RWX) })
    }

    /// Takes back exactly what was mapped at `ipa`; anything else may end the process.
    ///
    /// # Safety
    /// `ipa` and `size` are those of one [`Framework::map`] that was not undone yet.
    pub unsafe fn unmap(&self, ipa: u64, size: usize) -> Result<(), HypervisorError> {
        // SAFETY: the caller's promise.
        check("hv_vm_unmap", unsafe { (self.base.hv_vm_unmap)(ipa, size) })
    }

    /// Makes `handle`'s vCPU leave `hv_vcpu_run`. The only call about a vCPU that any thread may make.
    pub fn exit_vcpu(&self, handle: VcpuHandle) -> Result<(), HypervisorError> {
        // SAFETY: the pointer is to one handle; a handle of a vCPU that is gone is answered with an error.
        check("hv_vcpus_exit", unsafe { (self.base.hv_vcpus_exit)(&handle, 1) })
    }

    fn owned(&self, object: Object, call: &'static str) -> Result<Owned<'_>, HypervisorError> {
        if object.is_null() {
            return Err(HypervisorError::Call { call, reason: "it gives no object".to_owned() });
        }
        Ok(Owned { framework: self, object })
    }
}

/// An os_object of ours, released at the end.
struct Owned<'a> {
    framework: &'a Framework,
    object: Object,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: a `..._create` call gave it to us, and this is its only release.
        unsafe { (self.framework.base.os_release)(self.object) };
    }
}

/// The GIC in the kernel.
#[derive(Clone, Copy)]
pub struct Gic(GicFunctions);

impl Gic {
    /// What it dictates about where it may lie.
    pub fn shape(&self) -> Result<HostGicShape, HypervisorError> {
        let f = &self.0;
        let size = |call, function: unsafe extern "C" fn(*mut usize) -> HvReturn| {
            // SAFETY: the pointer may be written.
            get(call, |to| unsafe { function(to) }).map(|value| value as u64)
        };
        let (mut spi_base, mut spi_count) = (0, 0);
        // SAFETY: both pointers may be written.
        let range = unsafe { (f.hv_gic_get_spi_interrupt_range)(&mut spi_base, &mut spi_count) };
        check("hv_gic_get_spi_interrupt_range", range)?;
        Ok(HostGicShape {
            dist: Extent {
                size: size("hv_gic_get_distributor_size", f.hv_gic_get_distributor_size)?,
                align: size(
                    "hv_gic_get_distributor_base_alignment",
                    f.hv_gic_get_distributor_base_alignment,
                )?,
            },
            redist: Extent {
                size: size("hv_gic_get_redistributor_region_size", f.hv_gic_get_redistributor_region_size)?,
                align: size(
                    "hv_gic_get_redistributor_base_alignment",
                    f.hv_gic_get_redistributor_base_alignment,
                )?,
            },
            msi: Extent {
                size: size("hv_gic_get_msi_region_size", f.hv_gic_get_msi_region_size)?,
                align: size("hv_gic_get_msi_region_base_alignment", f.hv_gic_get_msi_region_base_alignment)?,
            },
            spi_base,
            spi_count,
        })
    }

    /// Makes the VM's GIC. After the VM and before its first vCPU.
    pub fn create(&self, framework: &Framework, place: GicPlace) -> Result<(), HypervisorError> {
        let f = &self.0;
        // SAFETY: no arguments.
        let config = framework.owned(unsafe { (f.hv_gic_config_create)() }, "hv_gic_config_create")?;
        let config = &config.object;
        // SAFETY: the configuration is one and lives until after the calls.
        unsafe {
            check(
                "hv_gic_config_set_distributor_base",
                (f.hv_gic_config_set_distributor_base)(*config, place.dist.base),
            )?;
            check(
                "hv_gic_config_set_redistributor_base",
                (f.hv_gic_config_set_redistributor_base)(*config, place.redist.base),
            )?;
            // Both or there are no message-signalled interrupts.
            check(
                "hv_gic_config_set_msi_region_base",
                (f.hv_gic_config_set_msi_region_base)(*config, place.msi.base),
            )?;
            check(
                "hv_gic_config_set_msi_interrupt_range",
                (f.hv_gic_config_set_msi_interrupt_range)(*config, place.msi_intid, place.msi_count),
            )?;
            check("hv_gic_create", (f.hv_gic_create)(*config))
        }
    }

    /// Puts distributor and redistributors into their reset state. No vCPU may run.
    pub fn reset(&self) -> Result<(), HypervisorError> {
        // SAFETY: no arguments.
        check("hv_gic_reset", unsafe { (self.0.hv_gic_reset)() })
    }

    /// Drives the line of an SPI, from any thread.
    pub fn set_spi(&self, intid: u32, level: bool) -> Result<(), HypervisorError> {
        // SAFETY: plain values.
        check("hv_gic_set_spi", unsafe { (self.0.hv_gic_set_spi)(intid, level) })
    }

    /// Delivers a message, from any thread.
    pub fn send_msi(&self, address: u64, intid: u32) -> Result<(), HypervisorError> {
        // SAFETY: plain values.
        check("hv_gic_send_msi", unsafe { (self.0.hv_gic_send_msi)(address, intid) })
    }
}

/// Where a GIC is to lie.
#[derive(Debug, Clone, Copy)]
pub struct GicPlace {
    /// Distributor.
    pub dist: Window,
    /// Redistributors.
    pub redist: Window,
    /// GICv2m frame.
    pub msi: Window,
    /// First INTID of message-signalled interrupts.
    pub msi_intid: u32,
    /// How many there are.
    pub msi_count: u32,
}

/// A vCPU of this thread. It cannot leave the thread, as every call but a kick must come from the one that created it.
pub struct Vcpu {
    framework: Arc<Framework>,
    handle: VcpuHandle,
    /// The framework's, filled in by every run, valid as long as the vCPU.
    exit: *const Exit,
    _of_this_thread: PhantomData<*mut ()>,
}

impl std::fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vcpu").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl Vcpu {
    /// Makes a vCPU of the process' VM for the calling thread. [`Vcpu::destroy`] must follow; there is no `Drop`, because when
    /// that may happen is a matter of the whole machine.
    pub fn create(framework: Arc<Framework>) -> Result<Self, HypervisorError> {
        let mut handle = 0;
        let mut exit = std::ptr::null();
        // SAFETY: both pointers may be written; a null configuration means the defaults.
        let result = unsafe { (framework.base.hv_vcpu_create)(&mut handle, &mut exit, std::ptr::null_mut()) };
        check("hv_vcpu_create", result)?;
        if exit.is_null() {
            // SAFETY: it was created just now, by this thread, and nobody else knows it.
            let _ = unsafe { (framework.base.hv_vcpu_destroy)(handle) };
            return Err(HypervisorError::Call {
                call: "hv_vcpu_create",
                reason: "it does not say where exits are reported".to_owned(),
            });
        }
        Ok(Vcpu { framework, handle, exit, _of_this_thread: PhantomData })
    }

    /// What other threads kick it by.
    pub fn handle(&self) -> VcpuHandle {
        self.handle
    }

    /// Destroys it.
    ///
    /// # Safety
    /// No vCPU of the VM runs or will run again, and no method of this value is called any more.
    pub unsafe fn destroy(&mut self) -> Result<(), HypervisorError> {
        // SAFETY: the caller's promise; the type keeps us on the vCPU's thread.
        check("hv_vcpu_destroy", unsafe { (self.framework.base.hv_vcpu_destroy)(self.handle) })
    }

    /// Runs the guest until it exits.
    pub fn run(&mut self) -> Result<Exit, HypervisorError> {
        // SAFETY: a vCPU of this thread.
        check("hv_vcpu_run", unsafe { (self.framework.base.hv_vcpu_run)(self.handle) })?;
        // SAFETY: the pointer is valid as long as the vCPU, and nobody writes there while it does not run. All bit patterns
        // are values. Volatile, as the kernel is the writer.
        Ok(unsafe { self.exit.read_volatile() })
    }

    /// Reads a general register.
    pub fn reg(&self, reg: GeneralReg) -> Result<u64, HypervisorError> {
        // SAFETY: a vCPU of this thread; the pointer may be written.
        get("hv_vcpu_get_reg", |to| unsafe { (self.framework.base.hv_vcpu_get_reg)(self.handle, reg, to) })
    }

    /// Writes a general register.
    pub fn set_reg(&mut self, reg: GeneralReg, value: u64) -> Result<(), HypervisorError> {
        // SAFETY: a vCPU of this thread.
        check("hv_vcpu_set_reg", unsafe { (self.framework.base.hv_vcpu_set_reg)(self.handle, reg, value) })
    }

    /// Reads Q`n`.
    pub fn simd(&self, n: u8) -> Result<u128, HypervisorError> {
        let reg = SimdReg(u32::from(n & 31));
        get("hv_vcpu_get_simd_fp_reg", |to| {
            // SAFETY: a vCPU of this thread; the pointer may be written and is aligned for a vector.
            unsafe { (self.framework.base.hv_vcpu_get_simd_fp_reg)(self.handle, reg, to) }
        })
    }

    /// Writes Q`n`.
    pub fn set_simd(&mut self, n: u8, value: u128) -> Result<(), HypervisorError> {
        let reg = SimdReg(u32::from(n & 31));
        // SAFETY: a vCPU of this thread; the function is the one of this prototype.
        let result =
            unsafe { set_simd_fp_reg(self.framework.base.hv_vcpu_set_simd_fp_reg, self.handle, reg, value) };
        check("hv_vcpu_set_simd_fp_reg", result)
    }

    /// Reads a system register.
    pub fn sys_reg(&self, reg: SystemReg) -> Result<u64, HypervisorError> {
        let call = self.framework.base.hv_vcpu_get_sys_reg;
        // SAFETY: a vCPU of this thread; the pointer may be written.
        get("hv_vcpu_get_sys_reg", |to| unsafe { call(self.handle, reg, to) })
    }

    /// Writes a system register.
    pub fn set_sys_reg(&mut self, reg: SystemReg, value: u64) -> Result<(), HypervisorError> {
        let call = self.framework.base.hv_vcpu_set_sys_reg;
        // SAFETY: a vCPU of this thread.
        check("hv_vcpu_set_sys_reg", unsafe { call(self.handle, reg, value) })
    }

    /// Makes an interrupt input pending, for the next run only. Not for a VM with a GIC of the host's.
    pub fn set_pending(&mut self, kind: InterruptType, pending: bool) -> Result<(), HypervisorError> {
        let call = self.framework.base.hv_vcpu_set_pending_interrupt;
        // SAFETY: a vCPU of this thread.
        check("hv_vcpu_set_pending_interrupt", unsafe { call(self.handle, kind, pending) })
    }

    /// Whether the virtual timer is masked.
    pub fn vtimer_mask(&self) -> Result<bool, HypervisorError> {
        let call = self.framework.base.hv_vcpu_get_vtimer_mask;
        // SAFETY: a vCPU of this thread; the pointer may be written, and a C bool is stored.
        get("hv_vcpu_get_vtimer_mask", |to| unsafe { call(self.handle, to) })
    }

    /// Masks or unmasks the virtual timer.
    pub fn set_vtimer_mask(&mut self, masked: bool) -> Result<(), HypervisorError> {
        let call = self.framework.base.hv_vcpu_set_vtimer_mask;
        // SAFETY: a vCPU of this thread.
        check("hv_vcpu_set_vtimer_mask", unsafe { call(self.handle, masked) })
    }

    /// What `mach_absolute_time` is ahead of the guest's counter.
    pub fn vtimer_offset(&self) -> Result<u64, HypervisorError> {
        let call = self.framework.base.hv_vcpu_get_vtimer_offset;
        // SAFETY: a vCPU of this thread; the pointer may be written.
        get("hv_vcpu_get_vtimer_offset", |to| unsafe { call(self.handle, to) })
    }

    /// Sets what `mach_absolute_time` is ahead of the guest's counter.
    pub fn set_vtimer_offset(&mut self, offset: u64) -> Result<(), HypervisorError> {
        let call = self.framework.base.hv_vcpu_set_vtimer_offset;
        // SAFETY: a vCPU of this thread.
        check("hv_vcpu_set_vtimer_offset", unsafe { call(self.handle, offset) })
    }

    /// Reads a register of the host GIC's CPU interface.
    pub fn icc_reg(&self, gic: &Gic, reg: IccReg) -> Result<u64, HypervisorError> {
        // SAFETY: a vCPU of this thread; the pointer may be written.
        get("hv_gic_get_icc_reg", |to| unsafe { (gic.0.hv_gic_get_icc_reg)(self.handle, reg, to) })
    }

    /// Writes a register of the host GIC's CPU interface.
    pub fn set_icc_reg(&mut self, gic: &Gic, reg: IccReg, value: u64) -> Result<(), HypervisorError> {
        // SAFETY: a vCPU of this thread.
        check("hv_gic_set_icc_reg", unsafe { (gic.0.hv_gic_set_icc_reg)(self.handle, reg, value) })
    }

    /// Writes a register of the host GIC's redistributor.
    pub fn set_redistributor_reg(
        &mut self,
        gic: &Gic,
        reg: RedistributorReg,
        value: u64,
    ) -> Result<(), HypervisorError> {
        let call = gic.0.hv_gic_set_redistributor_reg;
        // SAFETY: a vCPU of this thread.
        check("hv_gic_set_redistributor_reg", unsafe { call(self.handle, reg, value) })
    }
}

/// `hv_vcpu_set_simd_fp_reg`, of which only the address is known to Rust.
type SetSimd = unsafe extern "C" fn();

/// Calls `function` with the vector in v0, where C passes it. Rust has no stable way to declare such a foreign function; a
/// `u128` instead would go into x2 and x3, and the register would get whatever v0 held.
///
/// # Safety
/// `function` is (u64, u32, vector) -> i32 in C, and its own rules hold.
#[cfg(target_arch = "aarch64")]
unsafe fn set_simd_fp_reg(function: SetSimd, handle: VcpuHandle, reg: SimdReg, value: u128) -> HvReturn {
    // SAFETY: 16 bytes of each, of which every pattern is a value; the first byte is lane 0 on a little-endian host.
    let vector = unsafe { std::mem::transmute::<u128, Vector>(value) };
    let result: u64;
    // SAFETY: the registers are AAPCS64's for (u64, u32, vector) -> i32, everything that a call may change is declared.
    unsafe {
        std::arch::asm!(
            "blr {function}",
            function = in(reg) function,
            inlateout("x0") handle => result,
            in("w1") reg.0,
            in("v0") vector,
            clobber_abi("C"),
        );
    }
    HvReturn(result as i32)
}

/// As on arm64, for the simulator: x86-64 passes the vector in xmm0, and Rust can say so.
///
/// # Safety
/// As above.
#[cfg(target_arch = "x86_64")]
unsafe fn set_simd_fp_reg(function: SetSimd, handle: VcpuHandle, reg: SimdReg, value: u128) -> HvReturn {
    // SAFETY: 16 bytes of each, of which every pattern is a value.
    let vector = unsafe { std::mem::transmute::<u128, Vector>(value) };
    #[expect(improper_ctypes_definitions, reason = "C passes such a vector in the same register")]
    type Typed = unsafe extern "C" fn(VcpuHandle, SimdReg, Vector) -> HvReturn;
    // SAFETY: the caller's promise.
    unsafe { std::mem::transmute::<SetSimd, Typed>(function)(handle, reg, vector) }
}

#[cfg(test)]
mod tests {
    use applevisor_sys::{hv_gic_icc_reg_t, hv_gic_redistributor_reg_t, hv_reg_t, hv_sys_reg_t};

    use super::*;

    #[test]
    fn register_numbers_are_those_of_the_bindings() {
        assert_eq!(GeneralReg::x(30).map(|reg| reg.0), Some(hv_reg_t::LR as u32));
        assert_eq!(GeneralReg::x(31), None);
        assert_eq!(GeneralReg::PC.0, hv_reg_t::PC as u32);
        assert_eq!(GeneralReg::FPCR.0, hv_reg_t::FPCR as u32);
        assert_eq!(GeneralReg::FPSR.0, hv_reg_t::FPSR as u32);
        assert_eq!(GeneralReg::CPSR.0, hv_reg_t::CPSR as u32);
        assert_eq!(u32::from(crate::aarch64::sysreg::names::MPIDR_EL1.0), hv_sys_reg_t::MPIDR_EL1 as u32);
    }

    #[test]
    fn gic_register_numbers_are_those_of_the_bindings() {
        assert_eq!(RedistributorReg::ISPENDR0.0, hv_gic_redistributor_reg_t::ISPENDR0 as u32);
        assert_eq!(RedistributorReg::ICPENDR0.0, hv_gic_redistributor_reg_t::ICPENDR0 as u32);
        let pmr = crate::aarch64::raw::SysReg::new(3, 0, 4, 6, 0);
        assert_eq!(u32::from(pmr.0), hv_gic_icc_reg_t::PMR_EL1 as u32);
    }

    #[test]
    fn irq_is_the_first_interrupt_type() {
        assert_eq!((InterruptType::IRQ, InterruptType::FIQ), (InterruptType(0), InterruptType(1)));
    }

    #[test]
    fn a_table_is_refused_by_the_first_name_that_is_missing() {
        let find = |name: &CStr| match name.to_bytes() {
            b"hv_gic_config_set_msi_region_base" => std::ptr::null(),
            _ => find_nothing as *const c_void,
        };
        // SAFETY: nothing found here is called.
        let missing = unsafe { GicFunctions::find(find) }.err();
        assert_eq!(missing, Some("hv_gic_config_set_msi_region_base"));
    }

    fn find_nothing() {}

    #[expect(improper_ctypes_definitions, reason = "C passes such a vector in the same register")]
    unsafe extern "C" fn keep_vector(handle: VcpuHandle, reg: SimdReg, value: Vector) -> HvReturn {
        // SAFETY: 16 bytes of each, of which every pattern is a value.
        let value = unsafe { std::mem::transmute::<Vector, u128>(value) };
        let expected = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
        HvReturn(if (handle, reg, value) == (7, SimdReg(31), expected) { 0x1234 } else { -1 })
    }

    #[test]
    fn a_vector_arrives_whole_where_c_passes_it() {
        let value = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
        // SAFETY: only the prototype is forgotten.
        let function = unsafe { std::mem::transmute::<*const (), SetSimd>(keep_vector as *const ()) };
        // SAFETY: a function of this file with that prototype.
        let result = unsafe { set_simd_fp_reg(function, 7, SimdReg(31), value) };
        assert_eq!(result, HvReturn(0x1234));
    }
}
