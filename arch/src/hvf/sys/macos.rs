//! The framework and the clock of a Mac.

use std::ffi::{CStr, c_void};
use std::path::PathBuf;

use super::super::availability::Host;
use super::super::clock::Clock;
use super::super::ffi::Base;

/// The functions that are linked, because every macOS that the program starts on has them.
pub fn base_functions() -> Result<Base, String> {
    Ok(Base::linked())
}

/// The function of the framework with this name; null if this macOS does not have it.
pub fn lookup(name: &CStr) -> *const c_void {
    // SAFETY: a name with its NUL; the framework is linked, so that the search finds it.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// `mach_absolute_time`.
pub fn host_ticks() -> Result<extern "C" fn() -> u64, String> {
    unsafe extern "C" {
        safe fn mach_absolute_time() -> u64;
    }
    Ok(mach_absolute_time)
}

/// The units of `mach_absolute_time` and of the guest's counter.
pub fn clock() -> Clock {
    /// mach_timebase_info_data_t.
    #[repr(C)]
    struct Timebase {
        numer: u32,
        denom: u32,
    }
    unsafe extern "C" {
        fn mach_timebase_info(info: *mut Timebase) -> i32;
    }
    let mut timebase = Timebase { numer: 0, denom: 0 };
    // SAFETY: the pointer may be written. Should the call fail, both stay 0, which `Clock` takes for unknown.
    unsafe { mach_timebase_info(&mut timebase) };
    let frequency: u64;
    // SAFETY: CNTFRQ_EL0 may be read by user programs on macOS; nothing else is touched.
    unsafe {
        std::arch::asm!("mrs {}, CNTFRQ_EL0", out(reg) frequency, options(nomem, nostack, preserves_flags));
    }
    Clock::new(timebase.numer, timebase.denom, frequency)
}

/// What the host says about itself.
pub fn host() -> Host {
    Host {
        // A host that does not say is asked by making a VM.
        hv_support: sysctl(c"kern.hv_support").is_none_or(|value| value != 0),
        inside_vm: sysctl(c"kern.hv_vmm_present").is_some_and(|value| value != 0),
    }
}

fn sysctl(name: &CStr) -> Option<i32> {
    let mut value = 0i32;
    let mut size = size_of::<i32>();
    // SAFETY: a name with its NUL, and a buffer with its size; nothing is set.
    let result = unsafe {
        libc::sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &mut size, std::ptr::null_mut(), 0)
    };
    (result == 0 && size == size_of::<i32>()).then_some(value)
}

/// The running program.
pub fn program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

/// Size of the host's pages.
pub fn page_size() -> u64 {
    // SAFETY: no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(0)
}

/// Tells the scheduler that the user waits for what this thread does. Without it a Mac runs vCPUs of a program in the
/// background late and slowly.
pub fn prefer_this_thread() {
    // SAFETY: it concerns the calling thread only.
    let result =
        unsafe { libc::pthread_set_qos_class_self_np(libc::qos_class_t::QOS_CLASS_USER_INITIATED, 0) };
    if result != 0 {
        log::debug!("the thread's quality of service cannot be set: error {result}");
    }
}
