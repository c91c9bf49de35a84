//! Finding calls by name, as `dlsym` does in a process that is linked against an old SDK, and the few facts about the host that
//! are no part of the framework: `mach_absolute_time` and what sysctl says.

use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, Mutex};

use hvrun_soft::Machine;

use crate::config::MacOs;
use crate::state::{lock, state};
use crate::symbols as host;
use crate::{gic, gic_state, objects, registers, run, vcpu, vm};

macro_rules! table {
    ($($version:ident: $module:ident { $($name:ident)* })*) => {
        /// Every call with the version that added it.
        fn table() -> Vec<(&'static str, MacOs, *const c_void)> {
            vec![$($((stringify!($name), MacOs::$version, $module::$name as *const c_void),)*)*]
        }
    };
}

table! {
    V11: vm { hv_vm_create hv_vm_destroy hv_vm_get_max_vcpu_count hv_vm_map hv_vm_unmap hv_vm_protect }
    V12_1: vm { hv_vm_allocate }
    V13: vm {
        hv_vm_config_create hv_vm_config_get_max_ipa_size hv_vm_config_get_default_ipa_size
        hv_vm_config_set_ipa_size hv_vm_config_get_ipa_size
    }
    V15: vm { hv_vm_config_get_el2_supported hv_vm_config_set_el2_enabled }
    V11: objects { os_retain os_release }
    V11: vcpu {
        hv_vcpu_config_create hv_vcpu_config_get_feature_reg hv_vcpu_config_get_ccsidr_el1_sys_reg_values
        hv_vcpu_create hv_vcpu_destroy hv_vcpus_exit
        hv_vcpu_set_pending_interrupt hv_vcpu_get_pending_interrupt
        hv_vcpu_get_vtimer_mask hv_vcpu_set_vtimer_mask hv_vcpu_get_vtimer_offset hv_vcpu_set_vtimer_offset
        hv_vcpu_get_exec_time
        hv_vcpu_get_trap_debug_exceptions hv_vcpu_set_trap_debug_exceptions
        hv_vcpu_get_trap_debug_reg_accesses hv_vcpu_set_trap_debug_reg_accesses
    }
    V11: run { hv_vcpu_run }
    V11: registers {
        hv_vcpu_get_reg hv_vcpu_set_reg hv_vcpu_get_simd_fp_reg hv_vcpu_set_simd_fp_reg
        hv_vcpu_get_sys_reg hv_vcpu_set_sys_reg
    }
    V15: gic {
        hv_gic_config_create hv_gic_config_set_distributor_base hv_gic_config_set_redistributor_base
        hv_gic_config_set_msi_region_base hv_gic_config_set_msi_interrupt_range
        hv_gic_create hv_gic_reset hv_gic_set_spi hv_gic_send_msi
        hv_gic_get_distributor_size hv_gic_get_distributor_base_alignment
        hv_gic_get_redistributor_region_size hv_gic_get_redistributor_size
        hv_gic_get_redistributor_base_alignment
        hv_gic_get_msi_region_size hv_gic_get_msi_region_base_alignment
        hv_gic_get_spi_interrupt_range hv_gic_get_intid
        hv_gic_get_distributor_reg hv_gic_set_distributor_reg hv_gic_get_redistributor_base
        hv_gic_get_redistributor_reg hv_gic_set_redistributor_reg hv_gic_get_icc_reg hv_gic_set_icc_reg
    }
    V15: gic_state {
        hv_gic_state_create hv_gic_state_get_size hv_gic_state_get_data hv_gic_set_state
    }
    V11: host { mach_absolute_time mach_timebase_info hv_sim_cntfrq hv_sim_hv_support hv_sim_vmm_present }
}

/// `dlsym` of the simulated system: null for what its version lacks.
///
/// # Safety
/// `name` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_sim_dlsym(name: *const c_char) -> *const c_void {
    if name.is_null() {
        return std::ptr::null();
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    let macos = state().config.macos;
    table()
        .into_iter()
        .find(|(known, since, _)| known.as_bytes() == name.to_bytes() && *since <= macos)
        .map_or(std::ptr::null(), |(_, _, address)| address)
}

/// The counter when the process began: the Mac has been up for a while.
const UPTIME: u64 = 1 << 36;

/// A clock that runs with and without a VM: a machine's counter, and its frequency.
type Clock = (u64, Arc<Machine>);

static CLOCK: Mutex<Option<Clock>> = Mutex::new(None);

/// The counter of the host, in ticks of `hz`.
pub(crate) fn host_counter(hz: u64) -> u64 {
    let mut clock = lock(&CLOCK);
    let ticks = match &*clock {
        Some((known, machine)) if *known == hz => machine.counter(),
        _ => clock.insert((hz, Machine::with_counter(40, hz))).1.counter(),
    };
    UPTIME + ticks
}

#[unsafe(no_mangle)]
pub extern "C" fn mach_absolute_time() -> u64 {
    let (counter_hz, mach_hz, vm) = {
        let state = state();
        let vm = state.vm.as_ref().map(|vm| (vm.counter_base, vm.machine.clone()));
        (state.config.counter_hz, state.config.mach_hz, vm)
    };
    let counter = match vm {
        Some((base, machine)) => base + machine.counter(),
        None => host_counter(counter_hz),
    };
    (u128::from(counter) * u128::from(mach_hz)).div_ceil(u128::from(counter_hz.max(1))) as u64
}

/// mach_timebase_info_data_t: nanoseconds are ticks * numer / denom.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Timebase {
    /// Numerator.
    pub numer: u32,
    /// Denominator.
    pub denom: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mach_timebase_info(info: *mut Timebase) -> i32 {
    const NS_PER_S: u64 = 1_000_000_000;
    let hz = state().config.mach_hz.max(1);
    let (mut divisor, mut rest) = (NS_PER_S, hz);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    let base = Timebase { numer: (NS_PER_S / divisor) as u32, denom: (hz / divisor) as u32 };
    // SAFETY: the caller's promise to the system.
    unsafe { crate::abi::put(info, base) }.map_or_else(|error| error, |()| 0)
}

/// What `mrs CNTFRQ_EL0` says on the simulated Mac.
#[unsafe(no_mangle)]
pub extern "C" fn hv_sim_cntfrq() -> u64 {
    state().config.counter_hz
}

/// `sysctl kern.hv_support` on the simulated Mac.
#[unsafe(no_mangle)]
pub extern "C" fn hv_sim_hv_support() -> i32 {
    i32::from(!state().config.virtual_machine)
}

/// `sysctl kern.hv_vmm_present` on the simulated Mac.
#[unsafe(no_mangle)]
pub extern "C" fn hv_sim_vmm_present() -> i32 {
    i32::from(state().config.virtual_machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_listed_twice() {
        let mut names: Vec<_> = table().into_iter().map(|(name, ..)| name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
