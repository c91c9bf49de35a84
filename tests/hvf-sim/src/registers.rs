//! The register calls (`hv_vcpu_{get,set}_{reg,simd_fp_reg,sys_reg}`). Which system registers exist is in `sysregs`.

use std::sync::atomic::Ordering;

use crate::abi::{BAD_ARGUMENT, Failed, REG_CPSR, REG_FPCR, REG_FPSR, REG_PC, Return, put};
use crate::identification::WRITABLE;
use crate::state::{refuse, violation};
use crate::sysregs::{self, FPCR, FPSR, MPIDR};
use crate::vcpu::{LocalVcpu, with};

/// MPIDR_EL1: the affinity fields.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// A 16-byte vector in a vector register, as the C declaration has it.
#[cfg(target_arch = "x86_64")]
type Vector = std::arch::x86_64::__m128i;
/// A 16-byte vector in a vector register, as the C declaration has it.
#[cfg(target_arch = "aarch64")]
type Vector = std::arch::aarch64::uint8x16_t;

fn bad_register(kind: &str, reg: u32) -> Failed {
    refuse(format!("there is no {kind} register {reg:#x}"), BAD_ARGUMENT)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_reg(vcpu: u64, reg: u32, value: *mut u64) -> Return {
    with(vcpu, "hv_vcpu_get_reg", |local| {
        let found = match reg {
            0..REG_PC => local.cpu.x(reg as u8),
            REG_PC => local.cpu.pc(),
            REG_FPCR => local.cpu.sys_reg(FPCR).unwrap_or(0),
            REG_FPSR => local.cpu.sys_reg(FPSR).unwrap_or(0),
            REG_CPSR => local.cpu.cpsr(),
            _ => return Err(bad_register("general", reg)),
        };
        // SAFETY: the caller's promise to the framework.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_reg(vcpu: u64, reg: u32, value: u64) -> Return {
    with(vcpu, "hv_vcpu_set_reg", |local| {
        match reg {
            0..REG_PC => local.cpu.set_x(reg as u8, value),
            REG_PC => local.cpu.set_pc(value),
            REG_FPCR => drop(local.cpu.set_sys_reg(FPCR, value)),
            REG_FPSR => drop(local.cpu.set_sys_reg(FPSR, value)),
            REG_CPSR => local.cpu.set_cpsr(value),
            _ => return Err(bad_register("general", reg)),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_simd_fp_reg(vcpu: u64, reg: u32, value: *mut u128) -> Return {
    with(vcpu, "hv_vcpu_get_simd_fp_reg", |local| {
        if reg > 31 {
            return Err(bad_register("SIMD", reg));
        }
        if value.is_null() {
            return Err(BAD_ARGUMENT);
        }
        // SAFETY: not null, and else the caller's promise to the framework; C asks for no alignment of bytes.
        unsafe { value.write_unaligned(local.cpu.q(reg as u8)) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
#[expect(improper_ctypes_definitions, reason = "the framework's own declaration has a vector")]
pub extern "C" fn hv_vcpu_set_simd_fp_reg(vcpu: u64, reg: u32, value: Vector) -> Return {
    // SAFETY: both are sixteen bytes without invalid values.
    let value: u128 = unsafe { std::mem::transmute(value) };
    with(vcpu, "hv_vcpu_set_simd_fp_reg", |local| {
        if reg > 31 {
            return Err(bad_register("SIMD", reg));
        }
        local.cpu.set_q(reg as u8, value);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_sys_reg(vcpu: u64, reg: u16, value: *mut u64) -> Return {
    with(vcpu, "hv_vcpu_get_sys_reg", |local| {
        if !sysregs::exists(reg, local.config.macos) {
            return Err(BAD_ARGUMENT);
        }
        let found = match local.extra.get(&reg) {
            Some(value) => *value,
            None => local.cpu.sys_reg(reg).unwrap_or(0),
        };
        // SAFETY: the caller's promise to the framework.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_sys_reg(vcpu: u64, reg: u16, value: u64) -> Return {
    with(vcpu, "hv_vcpu_set_sys_reg", |local| {
        if !sysregs::exists(reg, local.config.macos) {
            return Err(BAD_ARGUMENT);
        }
        if reg == MPIDR {
            return set_mpidr(local, value);
        }
        if WRITABLE.contains(&reg) {
            if local.has_run && local.cpu.sys_reg(reg) != Some(value) {
                violation(format!("identification register {reg:#x} changed after the vCPU has run"));
            }
            local.cpu.describe_as(reg, value);
        } else if !local.cpu.set_sys_reg(reg, value) {
            local.extra.insert(reg, value);
        }
        Ok(())
    })
}

fn set_mpidr(local: &mut LocalVcpu, value: u64) -> Result<(), Failed> {
    let affinity = value & AFFINITY;
    if local.has_run && local.shared.affinity() != Some(affinity) {
        return Err(refuse(
            format!("MPIDR_EL1 of vCPU {} changed after it has run", local.shared.handle),
            BAD_ARGUMENT,
        ));
    }
    local.shared.affinity.store(affinity, Ordering::SeqCst);
    if let Some(gic) = &local.gic {
        gic.add_cpu(affinity, &local.shared);
    }
    local.cpu.set_sys_reg(MPIDR, value);
    Ok(())
}
