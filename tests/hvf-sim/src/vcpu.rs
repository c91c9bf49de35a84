//! A vCPU's life and its control calls: creation, destruction, kicks, interrupts, virtual timer. Its registers are in
//! `registers`, what happens while it runs is in `run`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use hvrun_soft::Cpu;

use crate::abi::{
    BAD_ARGUMENT, BUSY, EXIT_GONE, Failed, INTERRUPT_FIQ, INTERRUPT_IRQ, NO_DEVICE, NO_RESOURCES, Return,
    UNSUPPORTED, VcpuExit, call, put,
};
use crate::config::Config;
use crate::host_gic::HostGic;
use crate::identification::{self, CCSIDR, CLIDR, CSSELR, FEATURES};
use crate::objects::{self, Object};
use crate::run::Shared;
use crate::state::{refuse, state, violation};

/// What general registers hold before anybody wrote them: nothing to rely on.
const GARBAGE: u64 = 0xdead_0000_beef_0000;

/// A vCPU, on the thread that made it.
pub(crate) struct LocalVcpu {
    pub shared: Arc<Shared>,
    pub cpu: Cpu,
    pub exit: *mut VcpuExit,
    /// IRQ and FIQ, for the next run.
    pub pending: [bool; 2],
    /// Registers that the framework keeps and the software CPU does not.
    pub extra: BTreeMap<u16, u64>,
    pub config: Config,
    pub ipa_bits: u32,
    /// The host's counter when the machine's was zero.
    pub counter_base: u64,
    pub gic: Option<Arc<HostGic>>,
    pub vm_has_run: Arc<AtomicBool>,
    pub protections: Arc<AtomicU64>,
    pub protections_seen: u64,
    pub has_run: bool,
    /// In ticks of `mach_absolute_time`.
    pub vtimer_offset: u64,
    /// The virtual timer's PPI of the host's GIC is asserted.
    pub vtimer_fired: bool,
    pub exec_time: Duration,
    pub trap_debug: [bool; 2],
}

/// Where a thread keeps its vCPU.
struct Slot(Option<LocalVcpu>);

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(local) = self.0.take() else { return };
        let (handle, generation) = (local.shared.handle, local.shared.generation);
        {
            let mut state = state();
            if state.generation != generation {
                return;
            }
            state.vcpus.remove(&handle);
        }
        violation(format!("the thread of vCPU {handle} ended without hv_vcpu_destroy"));
    }
}

thread_local! {
    static SLOT: RefCell<Slot> = const { RefCell::new(Slot(None)) };
}

/// What is known of a vCPU that is not the calling thread's.
fn foreign(vcpu: u64, name: &str) -> Failed {
    let owner: Option<ThreadId> = state().vcpus.get(&vcpu).map(|shared| shared.thread);
    match owner {
        Some(owner) => refuse(
            format!(
                "{name} of vCPU {vcpu}, which belongs to {owner:?}, on {:?}",
                std::thread::current().id()
            ),
            BAD_ARGUMENT,
        ),
        None => refuse(format!("{name} of vCPU {vcpu}, which does not exist"), BAD_ARGUMENT),
    }
}

/// Runs `body` on vCPU `vcpu`, which must be the calling thread's.
pub(crate) fn with(vcpu: u64, name: &str, body: impl FnOnce(&mut LocalVcpu) -> Result<(), Failed>) -> Return {
    call(|| {
        SLOT.with(|slot| {
            // Borrowed only while this thread is inside another call, which makes no calls of its own.
            let mut slot = slot.borrow_mut();
            match &mut slot.0 {
                Some(local) if local.shared.handle == vcpu && !local.shared.is_stale() => body(local),
                _ => Err(foreign(vcpu, name)),
            }
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_config_create() -> *mut c_void {
    state().objects.add(Object::Vcpu)
}

/// A CPU that says what the hardware says.
fn hardware_register(reg: u16) -> u64 {
    let cpu = Cpu::new(hvrun_soft::Machine::new(40));
    identification::of_hardware(reg, cpu.sys_reg(reg).unwrap_or(0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_config_get_feature_reg(
    config: *mut c_void,
    feature: u32,
    value: *mut u64,
) -> Return {
    call(|| {
        let Object::Vcpu = objects::look_up(config, "hv_vcpu_config_get_feature_reg")? else {
            return Err(BAD_ARGUMENT);
        };
        let reg = FEATURES.get(feature as usize).copied().ok_or(BAD_ARGUMENT)?;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(value, hardware_register(reg)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_config_get_ccsidr_el1_sys_reg_values(
    config: *mut c_void,
    cache_type: u32,
    values: *mut u64,
) -> Return {
    call(|| {
        let Object::Vcpu = objects::look_up(config, "hv_vcpu_config_get_ccsidr_el1_sys_reg_values")? else {
            return Err(BAD_ARGUMENT);
        };
        if cache_type > 1 || values.is_null() {
            return Err(BAD_ARGUMENT);
        }
        let mut cpu = Cpu::new(hvrun_soft::Machine::new(40));
        let clidr = cpu.sys_reg(CLIDR).unwrap_or(0);
        for level in 0..8u64 {
            cpu.set_sys_reg(CSSELR, level << 1 | u64::from(cache_type));
            // Ctype of the level (Arm ARM D24.2.29): 0 none.
            let exists = level < 7 && clidr >> (3 * level) & 7 != 0;
            let ccsidr = if exists { cpu.sys_reg(CCSIDR).unwrap_or(0) } else { 0 };
            // SAFETY: the caller promised the framework room for eight values.
            unsafe { values.add(level as usize).write(ccsidr) };
        }
        Ok(())
    })
}

/// Registers a new vCPU with everybody else, under the lowest free handle.
fn register() -> Result<LocalVcpu, Failed> {
    let mut state = state();
    let generation = state.generation;
    let Some(vm) = &state.vm else {
        drop(state);
        return Err(refuse("hv_vcpu_create without a VM", NO_DEVICE));
    };
    if vm.gic.is_some() && vm.has_run.load(Ordering::SeqCst) {
        drop(state);
        return Err(refuse(
            "hv_vcpu_create after a vCPU has run: with hv_gic all must exist before the first run",
            BUSY,
        ));
    }
    let handle = (0..).find(|handle| !state.vcpus.contains_key(handle)).unwrap_or(0);
    let limit = state.config.max_vcpus;
    if handle >= u64::from(limit) {
        drop(state);
        return Err(refuse(format!("hv_vcpu_create beyond the {limit} vCPUs of this host"), NO_RESOURCES));
    }
    let mut cpu = Cpu::new(vm.machine.clone());
    for reg in identification::WRITABLE {
        let own = cpu.sys_reg(reg).unwrap_or(0);
        cpu.describe_as(reg, identification::of_hardware(reg, own));
    }
    cpu.set_pc(GARBAGE);
    (0..31).for_each(|n| cpu.set_x(n, GARBAGE | u64::from(n)));
    (0..32).for_each(|n| cpu.set_q(n, u128::from(GARBAGE) << 64 | u128::from(n)));
    let shared = Arc::new(Shared::new(handle, generation, cpu.canceller(), state.config.kicks));
    let (gic, ipa_bits, counter_base) = (vm.gic.clone(), vm.ipa_bits, vm.counter_base);
    let (vm_has_run, protections) = (vm.has_run.clone(), vm.protections.clone());
    let config = state.config.clone();
    state.vcpus.insert(handle, shared.clone());
    Ok(LocalVcpu {
        shared,
        cpu,
        exit: Box::into_raw(Box::new(VcpuExit {
            reason: EXIT_GONE,
            syndrome: 0,
            virtual_address: 0,
            physical_address: 0,
        })),
        pending: [false; 2],
        extra: BTreeMap::new(),
        config,
        ipa_bits,
        counter_base,
        gic,
        vm_has_run,
        protections,
        protections_seen: 0,
        has_run: false,
        vtimer_offset: 0,
        vtimer_fired: false,
        exec_time: Duration::ZERO,
        trap_debug: [true; 2],
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_create(
    vcpu: *mut u64,
    exit: *mut *mut VcpuExit,
    config: *mut c_void,
) -> Return {
    call(|| {
        if !config.is_null() {
            let Object::Vcpu = objects::look_up(config, "hv_vcpu_create")? else { return Err(BAD_ARGUMENT) };
        }
        if vcpu.is_null() || exit.is_null() {
            return Err(refuse("hv_vcpu_create without room for its results", BAD_ARGUMENT));
        }
        SLOT.with(|slot| {
            let mut slot = slot.borrow_mut();
            if slot.0.as_ref().is_some_and(|local| !local.shared.is_stale()) {
                return Err(refuse("hv_vcpu_create on a thread that has a vCPU", BUSY));
            }
            let local = register()?;
            // SAFETY: neither is null, and else the caller's promise to the framework.
            unsafe {
                vcpu.write(local.shared.handle);
                exit.write(local.exit);
            }
            slot.0 = Some(local);
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_destroy(vcpu: u64) -> Return {
    let destroyed = with(vcpu, "hv_vcpu_destroy", |local| {
        let others: Vec<u64> = {
            let mut state = state();
            state.vcpus.remove(&vcpu);
            state.vcpus.values().filter(|other| other.is_running()).map(|other| other.handle).collect()
        };
        if !others.is_empty() {
            violation(format!("hv_vcpu_destroy of vCPU {vcpu} while {others:?} run: that crashes"));
        }
        let gone = VcpuExit { reason: EXIT_GONE, syndrome: !0, virtual_address: !0, physical_address: !0 };
        // SAFETY: made in `register`. It is not freed, so that a use after this shows as nonsense instead of chance.
        unsafe { local.exit.write(gone) };
        Ok(())
    });
    if destroyed == crate::abi::SUCCESS {
        let local = SLOT.with(|slot| slot.borrow_mut().0.take());
        drop(local);
    }
    destroyed
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpus_exit(vcpus: *const u64, count: u32) -> Return {
    call(|| {
        if vcpus.is_null() || count == 0 {
            // Not "all of them", as on x86.
            return Ok(());
        }
        for index in 0..count as usize {
            // SAFETY: the caller promised the framework `count` handles.
            let handle = unsafe { vcpus.add(index).read() };
            let shared = state().vcpus.get(&handle).cloned();
            match shared {
                Some(shared) => shared.kick(),
                None => {
                    return Err(refuse(
                        format!("hv_vcpus_exit of vCPU {handle}, which does not exist"),
                        BAD_ARGUMENT,
                    ));
                }
            }
        }
        Ok(())
    })
}

fn interrupt_line(interrupt: u32) -> Result<usize, Failed> {
    match interrupt {
        INTERRUPT_IRQ | INTERRUPT_FIQ => Ok(interrupt as usize),
        other => Err(refuse(format!("the interrupt type {other}"), BAD_ARGUMENT)),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_pending_interrupt(vcpu: u64, interrupt: u32, pending: bool) -> Return {
    with(vcpu, "hv_vcpu_set_pending_interrupt", |local| {
        if local.gic.is_some() {
            return Err(refuse("hv_vcpu_set_pending_interrupt beside the host's GIC", UNSUPPORTED));
        }
        local.pending[interrupt_line(interrupt)?] = pending;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_pending_interrupt(
    vcpu: u64,
    interrupt: u32,
    pending: *mut bool,
) -> Return {
    with(vcpu, "hv_vcpu_get_pending_interrupt", |local| {
        // SAFETY: the caller's promise to the framework.
        unsafe { put(pending, local.pending[interrupt_line(interrupt)?]) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_vtimer_mask(vcpu: u64, masked: *mut bool) -> Return {
    // SAFETY: the caller's promise to the framework.
    with(vcpu, "hv_vcpu_get_vtimer_mask", |local| unsafe { put(masked, local.cpu.vtimer_mask()) })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_vtimer_mask(vcpu: u64, masked: bool) -> Return {
    with(vcpu, "hv_vcpu_set_vtimer_mask", |local| {
        local.cpu.set_vtimer_mask(masked);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_vtimer_offset(vcpu: u64, offset: *mut u64) -> Return {
    // SAFETY: the caller's promise to the framework.
    with(vcpu, "hv_vcpu_get_vtimer_offset", |local| unsafe { put(offset, local.vtimer_offset) })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_vtimer_offset(vcpu: u64, offset: u64) -> Return {
    with(vcpu, "hv_vcpu_set_vtimer_offset", |local| {
        let Config { counter_hz, mach_hz, .. } = local.config;
        local.vtimer_offset = offset;
        local.shared.vtimer_offset.store(offset, Ordering::SeqCst);
        let ticks = u128::from(offset) * u128::from(counter_hz) / u128::from(mach_hz.max(1));
        local.cpu.set_vtimer_offset((ticks as u64).wrapping_sub(local.counter_base));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_exec_time(vcpu: u64, time: *mut u64) -> Return {
    with(vcpu, "hv_vcpu_get_exec_time", |local| {
        let ticks = local.exec_time.as_nanos() * u128::from(local.config.mach_hz) / 1_000_000_000;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(time, ticks as u64) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_trap_debug_exceptions(vcpu: u64, trap: bool) -> Return {
    with(vcpu, "hv_vcpu_set_trap_debug_exceptions", |local| {
        local.trap_debug[0] = trap;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_trap_debug_exceptions(vcpu: u64, trap: *mut bool) -> Return {
    // SAFETY: the caller's promise to the framework.
    with(vcpu, "hv_vcpu_get_trap_debug_exceptions", |local| unsafe { put(trap, local.trap_debug[0]) })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_trap_debug_reg_accesses(vcpu: u64, trap: bool) -> Return {
    with(vcpu, "hv_vcpu_set_trap_debug_reg_accesses", |local| {
        local.trap_debug[1] = trap;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_trap_debug_reg_accesses(vcpu: u64, trap: *mut bool) -> Return {
    // SAFETY: the caller's promise to the framework.
    with(vcpu, "hv_vcpu_get_trap_debug_reg_accesses", |local| unsafe { put(trap, local.trap_debug[1]) })
}
