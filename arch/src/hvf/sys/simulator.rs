//! The framework and the clock that a simulator offers, for tests off macOS. A test installs the simulator; without one there
//! is no framework. Nothing is linked, so that a program that was built with this file but has no simulator still links.

use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use super::super::availability::Host;
use super::super::clock::Clock;
use super::super::ffi::Base;

/// How a simulator is asked for a function: by its name in Apple's headers. It answers null for one that it does not have.
pub type Resolver = unsafe extern "C" fn(name: *const c_char) -> *const c_void;

static RESOLVER: RwLock<Option<Resolver>> = RwLock::new(None);

/// Makes `resolver` the host's Hypervisor.framework, for backends that are opened from now on. Besides `hv_*` and `os_release`
/// it knows `mach_absolute_time`, `mach_timebase_info` and, instead of a register and two sysctls, the functions
/// `uint64_t hv_sim_cntfrq(void)`, `int hv_sim_hv_support(void)` and `int hv_sim_vmm_present(void)`.
///
/// # Safety
/// For every name `resolver` answers null or a function with the prototype in Apple's headers, or the above.
pub unsafe fn install_simulator(resolver: Resolver) {
    *RESOLVER.write().unwrap_or_else(PoisonError::into_inner) = Some(resolver);
}

/// The function with this name; null if there is none.
pub fn lookup(name: &CStr) -> *const c_void {
    match *RESOLVER.read().unwrap_or_else(PoisonError::into_inner) {
        // SAFETY: a name with its NUL.
        Some(resolver) => unsafe { resolver(name.as_ptr()) },
        None => std::ptr::null(),
    }
}

/// The functions that every version has.
pub fn base_functions() -> Result<Base, String> {
    if RESOLVER.read().unwrap_or_else(PoisonError::into_inner).is_none() {
        return Err("this build is for a simulator of Hypervisor.framework, and none is installed".to_owned());
    }
    // SAFETY: `install_simulator` has the promise that the functions are what their names say.
    unsafe { Base::find(lookup) }.map_err(|name| format!("the simulator has no {name}"))
}

/// The simulated `mach_absolute_time`.
pub fn host_ticks() -> Result<extern "C" fn() -> u64, String> {
    let found = lookup(c"mach_absolute_time");
    if found.is_null() {
        return Err("the simulator has no mach_absolute_time".to_owned());
    }
    // SAFETY: `install_simulator` has the promise that the function is what its name says.
    Ok(unsafe { std::mem::transmute::<*const c_void, extern "C" fn() -> u64>(found) })
}

/// mach_timebase_info_data_t.
#[repr(C)]
struct Timebase {
    numer: u32,
    denom: u32,
}

/// The units of `mach_absolute_time` and of the guest's counter.
pub fn clock() -> Clock {
    let mut timebase = Timebase { numer: 0, denom: 0 };
    let found = lookup(c"mach_timebase_info");
    if !found.is_null() {
        // SAFETY: `install_simulator` has the promise that the function is what its name says; the pointer may be written.
        unsafe {
            std::mem::transmute::<*const c_void, extern "C" fn(*mut Timebase) -> i32>(found)(&mut timebase)
        };
    }
    let found = lookup(c"hv_sim_cntfrq");
    let frequency = if found.is_null() {
        0
    } else {
        // SAFETY: `install_simulator` has the promise that the function is what its name says.
        unsafe { std::mem::transmute::<*const c_void, extern "C" fn() -> u64>(found)() }
    };
    Clock::new(timebase.numer, timebase.denom, frequency)
}

/// What the simulated host says about itself.
pub fn host() -> Host {
    Host {
        hv_support: fact(c"hv_sim_hv_support").is_none_or(|value| value != 0),
        inside_vm: fact(c"hv_sim_vmm_present").is_some_and(|value| value != 0),
    }
}

fn fact(name: &CStr) -> Option<i32> {
    let found = lookup(name);
    // SAFETY: `install_simulator` has the promise that the function is what its name says.
    (!found.is_null())
        .then(|| unsafe { std::mem::transmute::<*const c_void, extern "C" fn() -> i32>(found)() })
}

/// The running program.
pub fn program() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

/// Size of the host's pages: the simulator cannot ask for larger ones than there are.
pub fn page_size() -> u64 {
    0x1000
}

/// Schedulers off macOS are not asked.
pub fn prefer_this_thread() {}
