//! The calls about the virtual machine and its memory (`hv_vm_*`).

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hvrun_soft::{Machine, Perms};

use crate::abi::{
    BAD_ARGUMENT, BUSY, DENIED, ERROR, Failed, GRANULE, MEMORY_EXEC, MEMORY_READ, MEMORY_WRITE, NO_DEVICE,
    NO_RESOURCES, Return, UNSUPPORTED, call, put,
};
use crate::config::MacOs;
use crate::host_gic::HostGic;
use crate::objects::{self, Object};
use crate::state::{State, refuse, since, state, violation};
use crate::symbols::host_counter;

/// Smallest IPA space that can be asked for.
const MIN_IPA_BITS: u32 = 32;

/// What one call of `hv_vm_map` mapped, cut into pieces of equal permissions by `hv_vm_protect`.
struct Mapping {
    ipa: u64,
    size: u64,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy)]
struct Piece {
    ipa: u64,
    size: u64,
    host: usize,
    flags: u64,
}

/// The one virtual machine of the process.
pub(crate) struct Vm {
    pub machine: Arc<Machine>,
    pub ipa_bits: u32,
    /// The host's counter when the machine's was zero.
    pub counter_base: u64,
    pub gic: Option<Arc<HostGic>>,
    /// Some vCPU has run: the topology is final.
    pub has_run: Arc<AtomicBool>,
    /// Counts changes of permissions, during which pieces are not mapped for moments.
    pub protections: Arc<AtomicU64>,
    mappings: Vec<Mapping>,
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

fn perms(flags: u64) -> Perms {
    Perms {
        read: flags & MEMORY_READ != 0,
        write: flags & MEMORY_WRITE != 0,
        execute: flags & MEMORY_EXEC != 0,
    }
}

impl Vm {
    fn overlaps(&self, ipa: u64, size: u64) -> bool {
        self.mappings.iter().any(|mapping| overlap((mapping.ipa, mapping.size), (ipa, size)))
    }

    /// Whether anything is mapped in a range.
    pub(crate) fn is_mapped(&self, ipa: u64, size: u64) -> bool {
        self.overlaps(ipa, size)
    }

    fn map_piece(&self, piece: Piece) -> Result<(), Failed> {
        if piece.flags == 0 {
            return Ok(());
        }
        // SAFETY: who called `hv_vm_map` promised Hypervisor.framework what `Machine::map` asks for.
        let mapped =
            unsafe { self.machine.map(piece.ipa, piece.host as *mut u8, piece.size, perms(piece.flags)) };
        mapped.map_err(|_| ERROR)
    }

    fn unmap_piece(&self, piece: Piece) -> Result<(), Failed> {
        if piece.flags == 0 {
            return Ok(());
        }
        self.machine.unmap(piece.ipa, piece.size).map_err(|_| ERROR)
    }
}

/// Runs `body` on the VM; an error without one.
pub(crate) fn with_vm<R>(name: &str, body: impl FnOnce(&mut Vm) -> Result<R, Failed>) -> Result<R, Failed> {
    let result = state().vm.as_mut().map(body);
    result.unwrap_or_else(|| Err(refuse(format!("{name} without a VM"), NO_DEVICE)))
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_create(config: *mut c_void) -> Return {
    call(|| {
        let asked = if config.is_null() {
            None
        } else {
            since(MacOs::V13, "a VM configuration")?;
            match objects::look_up(config, "hv_vm_create")? {
                Object::Vm { ipa_bits } => ipa_bits,
                _ => {
                    return Err(refuse("hv_vm_create was given an object of another kind", BAD_ARGUMENT));
                }
            }
        };
        let hz = state().config.counter_hz;
        // Before the machine is made, so that the host's counter never goes backwards when the machine is gone.
        let counter_base = host_counter(hz);
        let mut state = state();
        let State { config, vm, .. } = &mut *state;
        if !config.entitlement {
            return Err(DENIED);
        }
        if config.virtual_machine {
            return Err(UNSUPPORTED);
        }
        if vm.is_some() {
            drop(state);
            return Err(refuse("hv_vm_create while the process has a VM", BUSY));
        }
        let ipa_bits = asked.unwrap_or(config.default_ipa_bits);
        *vm = Some(Vm {
            machine: Machine::with_counter(ipa_bits, config.counter_hz),
            ipa_bits,
            counter_base,
            gic: None,
            has_run: Arc::default(),
            protections: Arc::default(),
            mappings: Vec::new(),
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_destroy() -> Return {
    call(|| {
        let mut state = state();
        if !state.vcpus.is_empty() {
            let left = state.vcpus.len();
            drop(state);
            return Err(refuse(format!("hv_vm_destroy while {left} vCPUs exist"), BUSY));
        }
        let vm = state.vm.take();
        drop(state);
        vm.map(drop).ok_or_else(|| refuse("hv_vm_destroy without a VM", NO_DEVICE))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_get_max_vcpu_count(count: *mut u32) -> Return {
    let max = state().config.max_vcpus;
    // SAFETY: the caller's promise to the framework.
    call(|| unsafe { put(count, max) })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_config_create() -> *mut c_void {
    if since(MacOs::V13, "hv_vm_config_create").is_err() {
        return std::ptr::null_mut();
    }
    state().objects.add(Object::Vm { ipa_bits: None })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> Return {
    call(|| {
        since(MacOs::V13, "hv_vm_config_get_max_ipa_size")?;
        let max = state().config.max_ipa_bits;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(bits, max) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_get_default_ipa_size(bits: *mut u32) -> Return {
    call(|| {
        since(MacOs::V13, "hv_vm_config_get_default_ipa_size")?;
        let default = state().config.default_ipa_bits;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(bits, default) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> Return {
    call(|| {
        since(MacOs::V13, "hv_vm_config_set_ipa_size")?;
        let max = state().config.max_ipa_bits;
        if !(MIN_IPA_BITS..=max).contains(&bits) {
            return Err(refuse(
                format!("an IPA size of {bits} bits, on a Mac that has at most {max}"),
                BAD_ARGUMENT,
            ));
        }
        objects::change(config, "hv_vm_config_set_ipa_size", |object| match object {
            Object::Vm { ipa_bits } => {
                *ipa_bits = Some(bits);
                Some(())
            }
            _ => None,
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_get_ipa_size(config: *mut c_void, bits: *mut u32) -> Return {
    call(|| {
        since(MacOs::V13, "hv_vm_config_get_ipa_size")?;
        let default = state().config.default_ipa_bits;
        let size = objects::change(config, "hv_vm_config_get_ipa_size", |object| match object {
            Object::Vm { ipa_bits } => Some(ipa_bits.unwrap_or(default)),
            _ => None,
        })?;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(bits, size) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_get_el2_supported(supported: *mut bool) -> Return {
    call(|| {
        since(MacOs::V15, "hv_vm_config_get_el2_supported")?;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(supported, false) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_config_set_el2_enabled(_config: *mut c_void, enabled: bool) -> Return {
    call(|| {
        since(MacOs::V15, "hv_vm_config_set_el2_enabled")?;
        if enabled { Err(UNSUPPORTED) } else { Ok(()) }
    })
}

/// The rules that all ranges keep: not empty, 16 KiB aligned, inside the IPA space.
fn check_range(name: &str, bits: u32, ipa: u64, size: u64) -> Result<(), Failed> {
    if size == 0 || !(ipa | size).is_multiple_of(GRANULE) {
        return Err(refuse(
            format!("{name} of {ipa:#x}+{size:#x}: empty, or not a multiple of 16 KiB"),
            BAD_ARGUMENT,
        ));
    }
    if ipa.checked_add(size).is_none_or(|end| end > 1 << bits) {
        return Err(refuse(
            format!("{name} of {ipa:#x}+{size:#x}: beyond the IPA space of {bits} bits"),
            BAD_ARGUMENT,
        ));
    }
    Ok(())
}

fn ipa_bits(name: &str) -> Result<u32, Failed> {
    let bits = state().vm.as_ref().map(|vm| vm.ipa_bits);
    bits.ok_or_else(|| refuse(format!("{name} without a VM"), NO_DEVICE))
}

fn check_flags(name: &str, flags: u64) -> Result<(), Failed> {
    if flags & !(MEMORY_READ | MEMORY_WRITE | MEMORY_EXEC) != 0 {
        return Err(refuse(format!("{name} with the permissions {flags:#x}"), BAD_ARGUMENT));
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_map(addr: *mut c_void, ipa: u64, size: usize, flags: u64) -> Return {
    call(|| {
        let size = size as u64;
        check_range("hv_vm_map", ipa_bits("hv_vm_map")?, ipa, size)?;
        check_flags("hv_vm_map", flags)?;
        let host_page = state().config.host_page;
        if addr.is_null() || !(addr as u64).is_multiple_of(host_page) {
            return Err(refuse(
                format!("hv_vm_map of the host address {addr:p}, which is no multiple of {host_page:#x}"),
                BAD_ARGUMENT,
            ));
        }
        let mut broken = None;
        let mapped = with_vm("hv_vm_map", |vm| {
            if vm.overlaps(ipa, size) {
                broken = Some("is mapped already");
                return Err(ERROR);
            }
            if vm.gic.as_ref().is_some_and(|gic| gic.config().overlaps(ipa, size)) {
                broken = Some("belongs to the GIC");
                return Err(BAD_ARGUMENT);
            }
            let piece = Piece { ipa, size, host: addr as usize, flags };
            vm.map_piece(piece)?;
            vm.mappings.push(Mapping { ipa, size, pieces: vec![piece] });
            Ok(())
        });
        if let Some(broken) = broken {
            violation(format!("hv_vm_map of {ipa:#x}+{size:#x}, part of which {broken}"));
        }
        mapped
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_unmap(ipa: u64, size: usize) -> Return {
    call(|| {
        let size = size as u64;
        check_range("hv_vm_unmap", ipa_bits("hv_vm_unmap")?, ipa, size)?;
        let mut guarded = false;
        let unmapped = with_vm("hv_vm_unmap", |vm| {
            let Some(index) = vm.mappings.iter().position(|m| m.ipa == ipa && m.size == size) else {
                guarded = true;
                return Err(BAD_ARGUMENT);
            };
            let mapping = vm.mappings.remove(index);
            mapping.pieces.into_iter().try_for_each(|piece| vm.unmap_piece(piece))
        });
        if guarded {
            violation(format!(
                "hv_vm_unmap of {ipa:#x}+{size:#x}, which was not mapped by one call: EXC_GUARD kills the process"
            ));
        }
        unmapped
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_protect(ipa: u64, size: usize, flags: u64) -> Return {
    call(|| {
        let size = size as u64;
        check_range("hv_vm_protect", ipa_bits("hv_vm_protect")?, ipa, size)?;
        check_flags("hv_vm_protect", flags)?;
        let mut hole = false;
        let protected = with_vm("hv_vm_protect", |vm| {
            let covered: u64 = vm.mappings.iter().map(|m| shared(m.ipa, m.size, ipa, size)).sum();
            if covered != size {
                hole = true;
                return Err(BAD_ARGUMENT);
            }
            vm.protections.fetch_add(1, Ordering::SeqCst);
            let mut mappings = std::mem::take(&mut vm.mappings);
            let mut result = Ok(());
            for mapping in &mut mappings {
                if overlap((mapping.ipa, mapping.size), (ipa, size)) {
                    result = result.and(protect(vm, mapping, (ipa, ipa + size), flags));
                }
            }
            vm.mappings = mappings;
            vm.protections.fetch_add(1, Ordering::SeqCst);
            result
        });
        if hole {
            violation(format!("hv_vm_protect of {ipa:#x}+{size:#x}, part of which is not mapped"));
        }
        protected
    })
}

/// How many bytes two ranges share.
fn shared(a: u64, a_size: u64, b: u64, b_size: u64) -> u64 {
    (a + a_size).min(b + b_size).saturating_sub(a.max(b))
}

/// Gives the part of `mapping` inside `range` other permissions.
fn protect(vm: &Vm, mapping: &mut Mapping, range: (u64, u64), flags: u64) -> Result<(), Failed> {
    let mut pieces = Vec::new();
    for piece in &mapping.pieces {
        let end = piece.ipa + piece.size;
        let cut = |from: u64, to: u64, flags: u64| {
            let host = piece.host + (from - piece.ipa) as usize;
            (from < to).then_some(Piece { ipa: from, size: to - from, host, flags })
        };
        let (start, stop) = (range.0.clamp(piece.ipa, end), range.1.clamp(piece.ipa, end));
        if start == stop {
            pieces.push(*piece);
            continue;
        }
        vm.unmap_piece(*piece)?;
        let parts =
            [cut(piece.ipa, start, piece.flags), cut(start, stop, flags), cut(stop, end, piece.flags)];
        for part in parts.into_iter().flatten() {
            vm.map_piece(part)?;
            pieces.push(part);
        }
    }
    mapping.pieces = pieces;
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_allocate(memory: *mut *mut c_void, size: usize, flags: u64) -> Return {
    call(|| {
        since(MacOs::V12_1, "hv_vm_allocate")?;
        if size == 0 || !(size as u64).is_multiple_of(GRANULE) || flags != 0 {
            return Err(refuse(format!("hv_vm_allocate of {size:#x} bytes, flags {flags}"), BAD_ARGUMENT));
        }
        let layout = std::alloc::Layout::from_size_align(size, GRANULE as usize).map_err(|_| BAD_ARGUMENT)?;
        // SAFETY: the size is not zero.
        let new = unsafe { std::alloc::alloc_zeroed(layout) };
        if new.is_null() {
            return Err(NO_RESOURCES);
        }
        // SAFETY: the caller's promise to the framework.
        unsafe { put(memory, new.cast()) }
    })
}
