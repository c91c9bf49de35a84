//! Saved states of the interrupt controller (`hv_gic_state_*`): opaque, and without the CPU interfaces, whose registers belong to
//! the vCPUs.

use std::ffi::c_void;

use crate::abi::{BAD_ARGUMENT, BUSY, Failed, Return, call, put};
use crate::gic::gic;
use crate::objects::{self, Object};
use crate::state::{refuse, state};

/// All vCPUs must stand still while a state is taken or given.
fn check_quiet(name: &str) -> Result<(), Failed> {
    let running = state().vcpus.values().any(|vcpu| vcpu.is_running());
    if running { Err(refuse(format!("{name} while a vCPU runs"), BUSY)) } else { Ok(()) }
}

fn saved(object: *mut c_void, name: &str) -> Result<Vec<u8>, Failed> {
    match objects::look_up(object, name)? {
        Object::GicState(data) => Ok(data),
        _ => Err(refuse(format!("{name} was given an object of another kind"), BAD_ARGUMENT)),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_state_create() -> *mut c_void {
    let Ok(gic) = gic("hv_gic_state_create") else { return std::ptr::null_mut() };
    if check_quiet("hv_gic_state_create").is_err() {
        return std::ptr::null_mut();
    }
    match serde_json::to_vec(&gic.save()) {
        Ok(data) => state().objects.add(Object::GicState(data)),
        Err(_) => std::ptr::null_mut(),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_state_get_size(object: *mut c_void, size: *mut usize) -> Return {
    call(|| {
        let data = saved(object, "hv_gic_state_get_size")?;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(size, data.len()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_state_get_data(object: *mut c_void, to: *mut c_void) -> Return {
    call(|| {
        let data = saved(object, "hv_gic_state_get_data")?;
        if to.is_null() {
            return Err(BAD_ARGUMENT);
        }
        // SAFETY: the caller promised the framework room for the size that it was told.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.cast(), data.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_set_state(data: *const c_void, size: usize) -> Return {
    call(|| {
        let gic = gic("hv_gic_set_state")?;
        check_quiet("hv_gic_set_state")?;
        if data.is_null() {
            return Err(BAD_ARGUMENT);
        }
        // SAFETY: the caller promised the framework `size` bytes.
        let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) };
        let state = serde_json::from_slice(data).map_err(|_| BAD_ARGUMENT)?;
        if gic.restore(state) { Ok(()) } else { Err(BAD_ARGUMENT) }
    })
}
