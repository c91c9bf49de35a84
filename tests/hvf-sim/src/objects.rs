//! The framework's reference-counted objects (`os_object`): configurations of VMs, vCPUs and GICs, and saved GIC states. A handle
//! is a number in the shape of an address that nobody may look behind.

use std::collections::BTreeMap;
use std::ffi::c_void;

use crate::abi::{BAD_ARGUMENT, Failed};
use crate::host_gic::GicConfig;
use crate::state::{refuse, state, violation};

/// One object.
#[derive(Debug, Clone)]
pub(crate) enum Object {
    /// hv_vm_config_t: the IPA size asked for.
    Vm { ipa_bits: Option<u32> },
    /// hv_vcpu_config_t.
    Vcpu,
    /// hv_gic_config_t.
    Gic(GicConfig),
    /// hv_gic_state_t.
    GicState(Vec<u8>),
}

/// All objects that are not released, with their reference counts.
#[derive(Default)]
pub(crate) struct Objects {
    live: BTreeMap<usize, (Object, u32)>,
    made: usize,
}

impl Objects {
    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    pub(crate) fn add(&mut self, object: Object) -> *mut c_void {
        self.made += 1;
        let handle = 0x6f62_0000 + self.made * 64;
        self.live.insert(handle, (object, 1));
        handle as *mut c_void
    }

    fn get(&self, handle: *mut c_void) -> Option<&Object> {
        self.live.get(&(handle as usize)).map(|(object, _)| object)
    }

    fn get_mut(&mut self, handle: *mut c_void) -> Option<&mut Object> {
        self.live.get_mut(&(handle as usize)).map(|(object, _)| object)
    }
}

/// A copy of the object behind `handle`; an error if there is none.
pub(crate) fn look_up(handle: *mut c_void, call: &str) -> Result<Object, Failed> {
    let object = state().objects.get(handle).cloned();
    object.ok_or_else(|| refuse(format!("{call} was given an object that does not exist"), BAD_ARGUMENT))
}

/// Changes the object behind `handle`.
pub(crate) fn change<R>(
    handle: *mut c_void,
    name: &str,
    change: impl FnOnce(&mut Object) -> Option<R>,
) -> Result<R, Failed> {
    let changed = state().objects.get_mut(handle).and_then(change);
    changed.ok_or_else(|| refuse(format!("{name} was given an object that is not of its kind"), BAD_ARGUMENT))
}

#[unsafe(no_mangle)]
pub extern "C" fn os_retain(object: *mut c_void) -> *mut c_void {
    match state().objects.live.get_mut(&(object as usize)) {
        Some((_, references)) => *references += 1,
        None => return std::ptr::null_mut(),
    }
    object
}

#[unsafe(no_mangle)]
pub extern "C" fn os_release(object: *mut c_void) {
    let known = {
        let objects = &mut state().objects.live;
        match objects.get_mut(&(object as usize)) {
            Some((_, references @ 2..)) => {
                *references -= 1;
                true
            }
            Some(_) => objects.remove(&(object as usize)).is_some(),
            None => false,
        }
    };
    if !known {
        violation("os_release of an object that does not exist, or no longer");
    }
}
