//! System instructions (Arm ARM C4.1.87): registers, barriers, maintenance, hints and exception generation.

use std::sync::atomic::{Ordering, fence};

use super::memory::attempt;
use super::{put, x};
use crate::cpu::{Cpu, Event};
use crate::exception::{CM, ec, syndrome};
use crate::machine::{Maintenance, page_has_code};
use crate::mmu::{Access, Fault, Privilege};
use crate::op::{At, Next};
use crate::registers::Written;
use crate::sysreg::{enc, id, sctlr};

/// ISS of a trapped MSR, MRS or SYS (Arm ARM, ISS encoding for EC 0x18).
pub(crate) fn system_iss(reg: u16, rt: u8, read: bool) -> u64 {
    let reg = u64::from(reg);
    let (op0, op1, crn, crm, op2) = (reg >> 14 & 3, reg >> 11 & 7, reg >> 7 & 15, reg >> 3 & 15, reg & 7);
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | u64::from(rt) << 5 | crm << 1 | u64::from(read)
}

pub(crate) fn undefined(cpu: &mut Cpu, at: At) -> Next {
    cpu.undefined(at)
}

/// An FP or SIMD instruction while CPACR_EL1.FPEN forbids it.
pub(crate) fn fp_trap(cpu: &mut Cpu, at: At) -> Next {
    // CV and COND = always.
    cpu.raise(at, ec::FP_ACCESS, 1 << 24 | 0xe << 20)
}

pub(crate) fn svc(cpu: &mut Cpu, at: At) -> Next {
    let next = cpu.pc_of(at).wrapping_add(4);
    crate::exception::synchronous(cpu, syndrome(ec::SVC64, at.imm()), next);
    Next::Lookup
}

/// HVC leaves with the program counter already past it.
pub(crate) fn hvc(cpu: &mut Cpu, at: At) -> Next {
    cpu.trap(at, syndrome(ec::HVC64, at.imm()), 4)
}

/// SMC leaves with the program counter still at it.
pub(crate) fn smc(cpu: &mut Cpu, at: At) -> Next {
    cpu.trap(at, syndrome(ec::SMC64, at.imm()), 0)
}

pub(crate) fn brk(cpu: &mut Cpu, at: At) -> Next {
    cpu.raise(at, ec::BRK64, at.imm())
}

pub(crate) fn eret(cpu: &mut Cpu, _at: At) -> Next {
    cpu.exception_return();
    if cpu.interrupt_due() { Next::Event } else { Next::Lookup }
}

/// WFI (`a` 0) and WFE (`a` 1).
pub(crate) fn wait(cpu: &mut Cpu, at: At) -> Next {
    let wfe = at.a == 1;
    if cpu.wakes() || wfe && cpu.shared.event.swap(false, Ordering::SeqCst) {
        return at.next(cpu);
    }
    let iss = 1 << 24 | 0xe << 20 | u64::from(wfe);
    let permitted = if wfe { sctlr::NTWE } else { sctlr::NTWI };
    if cpu.pstate.el == 0 && cpu.sys.sctlr & permitted == 0 {
        return cpu.raise(at, ec::WFX, iss);
    }
    cpu.trap(at, syndrome(ec::WFX, iss), 0)
}

pub(crate) fn sev(cpu: &mut Cpu, at: At) -> Next {
    cpu.machine.send_event();
    at.next(cpu)
}

pub(crate) fn sevl(cpu: &mut Cpu, at: At) -> Next {
    cpu.shared.event.store(true, Ordering::SeqCst);
    at.next(cpu)
}

pub(crate) fn clrex(cpu: &mut Cpu, at: At) -> Next {
    cpu.monitor.host = 0;
    at.next(cpu)
}

/// DMB, by the kind of its option: 0 all, 1 loads, 2 stores.
pub(crate) fn dmb<const KIND: u8>(cpu: &mut Cpu, at: At) -> Next {
    match KIND {
        1 => fence(Ordering::Acquire),
        2 => fence(Ordering::Release),
        _ => fence(Ordering::SeqCst),
    }
    at.next(cpu)
}

/// DSB also waits until the other CPUs have seen this one's maintenance.
pub(crate) fn dsb(cpu: &mut Cpu, at: At) -> Next {
    fence(Ordering::SeqCst);
    if cpu.broadcast.is_empty() || cpu.broadcast.is_complete() {
        return at.next(cpu);
    }
    cpu.pc = cpu.pc_of(at).wrapping_add(4);
    cpu.event = Event::Synchronise;
    Next::Event
}

/// ISB: what follows is fetched anew.
pub(crate) fn isb(cpu: &mut Cpu, at: At) -> Next {
    cpu.pc = cpu.pc_of(at).wrapping_add(4);
    Next::Lookup
}

/// MSR DAIFSet.
pub(crate) fn daif_set(cpu: &mut Cpu, at: At) -> Next {
    cpu.pstate.daif |= at.a;
    at.next(cpu)
}

/// MSR DAIFClr.
pub(crate) fn daif_clear(cpu: &mut Cpu, at: At) -> Next {
    cpu.pstate.daif &= !at.a;
    if cpu.interrupt_due() {
        cpu.pc = cpu.pc_of(at).wrapping_add(4);
        return Next::Event;
    }
    at.next(cpu)
}

/// MSR SPSel and MSR PAN, by register and value. Ends the block.
pub(crate) fn set_field(cpu: &mut Cpu, at: At) -> Next {
    // Both fields are known to `write_sys_reg`.
    let _ = cpu.write_sys_reg(at.imm() as u16, at.imm2());
    Next::Through
}

/// MSR DAIFSet, DAIFClr at EL0: allowed by SCTLR_EL1.UMA.
pub(crate) fn daif_el0(cpu: &mut Cpu, at: At) -> Next {
    if cpu.sys.sctlr & sctlr::UMA == 0 {
        return cpu.raise(at, ec::SYSTEM, at.imm());
    }
    if at.b != 0 { daif_clear(cpu, at) } else { daif_set(cpu, at) }
}

/// MRS of SP_EL0 while SP_EL1 is in use: the kernel's current task.
pub(crate) fn mrs_sp_el0(cpu: &mut Cpu, at: At) -> Next {
    if !cpu.pstate.sp_sel {
        return cpu.undefined(at);
    }
    put::<true>(cpu, at.a, cpu.sp_of(0));
    at.next(cpu)
}

/// MSR of SP_EL0 while SP_EL1 is in use.
pub(crate) fn msr_sp_el0(cpu: &mut Cpu, at: At) -> Next {
    if !cpu.pstate.sp_sel {
        return cpu.undefined(at);
    }
    cpu.set_sp_of(0, x(cpu, at.a));
    at.next(cpu)
}

pub(crate) fn mrs_tpidr_el0(cpu: &mut Cpu, at: At) -> Next {
    put::<true>(cpu, at.a, cpu.sys.tpidr_el0);
    at.next(cpu)
}

pub(crate) fn mrs_tpidr_el1(cpu: &mut Cpu, at: At) -> Next {
    put::<true>(cpu, at.a, cpu.sys.tpidr_el1);
    at.next(cpu)
}

pub(crate) fn mrs_daif(cpu: &mut Cpu, at: At) -> Next {
    put::<true>(cpu, at.a, u64::from(cpu.pstate.daif) << 6);
    at.next(cpu)
}

/// MRS at EL1. `b` is Rt as encoded; the first constant is the register.
pub(crate) fn mrs(cpu: &mut Cpu, at: At) -> Next {
    let reg = at.imm() as u16;
    match cpu.sys_reg(reg) {
        Some(value) if reg != id::SP_EL1 => {
            put::<true>(cpu, at.a, value);
            at.next(cpu)
        }
        _ => trap_register(cpu, at, reg, true),
    }
}

/// MSR at EL1. `a` is the source.
pub(crate) fn msr(cpu: &mut Cpu, at: At) -> Next {
    let reg = at.imm() as u16;
    let value = x(cpu, at.a);
    match cpu.write_sys_reg(reg, value) {
        Some(Written::Plain) => at.next(cpu),
        Some(Written::Context) => {
            cpu.pc = cpu.pc_of(at).wrapping_add(4);
            if cpu.interrupt_due() { Next::Event } else { Next::Lookup }
        }
        // Read-only.
        None if cpu.sys_reg(reg).is_some() => cpu.undefined(at),
        None => trap_register(cpu, at, reg, false),
    }
}

/// A register that is not kept here: the caller's, unless it is of a higher exception level.
fn trap_register(cpu: &mut Cpu, at: At, reg: u16, read: bool) -> Next {
    if reg >> 14 & 3 == 3 && reg >> 11 & 7 >= 4 {
        return cpu.undefined(at);
    }
    cpu.trap(at, syndrome(ec::SYSTEM, system_iss(reg, at.b, read)), 0)
}

/// CNTKCTL_EL1.
mod cntkctl {
    pub const EL0PCTEN: u64 = 1;
    pub const EL0VCTEN: u64 = 2;
    pub const EL0VTEN: u64 = 1 << 8;
    pub const EL0PTEN: u64 = 1 << 9;
}

/// What EL0 may do with a register.
enum El0 {
    Yes,
    /// Trapped to EL1 with the access's syndrome.
    Trap,
    Undefined,
}

fn el0_access(cpu: &Cpu, reg: u16, read: bool) -> El0 {
    let if_set = |value: u64, bits: u64| if value & bits != 0 { El0::Yes } else { El0::Trap };
    let kctl = cpu.sys.cntkctl;
    match reg {
        id::NZCV | id::FPCR | id::FPSR | id::TPIDR_EL0 => El0::Yes,
        id::TPIDRRO_EL0 | id::DCZID_EL0 if read => El0::Yes,
        id::CTR_EL0 if read => if_set(cpu.sys.sctlr, sctlr::UCT),
        id::DAIF => if_set(cpu.sys.sctlr, sctlr::UMA),
        id::CNTFRQ_EL0 if read => if_set(kctl, cntkctl::EL0PCTEN | cntkctl::EL0VCTEN),
        id::CNTPCT_EL0 if read => if_set(kctl, cntkctl::EL0PCTEN),
        id::CNTVCT_EL0 if read => if_set(kctl, cntkctl::EL0VCTEN),
        id::CNTV_TVAL_EL0 | id::CNTV_CTL_EL0 | id::CNTV_CVAL_EL0 => if_set(kctl, cntkctl::EL0VTEN),
        id::CNTP_TVAL_EL0 | id::CNTP_CTL_EL0 | id::CNTP_CVAL_EL0 => if_set(kctl, cntkctl::EL0PTEN),
        // The PMU's registers of EL0 (CRn 9, and 14 from CRm 8 on), with PMUSERENR_EL0 zero.
        _ if reg & !0x7f == enc(3, 3, 9, 0, 0) || reg & !0x3f == enc(3, 3, 14, 8, 0) => El0::Trap,
        _ if reg >> 11 == enc(2, 3, 0, 0, 0) >> 11 => El0::Trap,
        _ => El0::Undefined,
    }
}

/// MRS, MSR at EL0: `c` is 1 for a read. Operands as for [`mrs`] and [`msr`].
pub(crate) fn register_el0(cpu: &mut Cpu, at: At) -> Next {
    let reg = at.imm() as u16;
    let read = at.c == 1;
    match el0_access(cpu, reg, read) {
        El0::Yes if read => mrs(cpu, at),
        El0::Yes => msr(cpu, at),
        El0::Trap => cpu.raise(at, ec::SYSTEM, system_iss(reg, at.b, read)),
        El0::Undefined => cpu.undefined(at),
    }
}

/// TLBI of this CPU, or (`broadcast`) of all.
fn invalidate_tlb(cpu: &mut Cpu, item: Maintenance, broadcast: bool) {
    match item {
        Maintenance::TlbVa(va) => cpu.flush_va(va),
        Maintenance::TlbAsid(asid) => cpu.flush_asid(asid),
        _ => cpu.flush_translations(),
    }
    if broadcast {
        let posted = cpu.machine.broadcast(item, Some(&cpu.shared));
        cpu.broadcast.append(posted);
    }
}

/// Makes decoded code stale: on this CPU before its next block, on the others before this one's next DSB ends.
fn invalidate_code(cpu: &mut Cpu, item: Maintenance) {
    let mut posted = cpu.machine.broadcast(item, None);
    posted.forget(&cpu.shared);
    cpu.broadcast.append(posted);
}

/// Translates the address of a maintenance operation, which is `a`.
fn maintenance_address(cpu: &mut Cpu, at: At, access: Access) -> Result<Option<u64>, Next> {
    let va = x(cpu, at.a);
    // PSTATE.PAN does not concern it.
    let who = if cpu.pstate.el == 0 { Privilege::El0 } else { Privilege::El1 };
    match cpu.translate(va, access, who) {
        Ok(translation) => Ok(Some(translation.page)),
        // A stage 1 walk outside memory: nothing is cached of such a page.
        Err(Fault::WalkOutsideMemory { .. }) => Ok(None),
        // Maintenance faults are reported as writes.
        Err(fault) => Err(cpu.data_abort(at, va, Access::Write, fault, CM)),
    }
}

/// AT S1E1R, S1E1W, S1E0R, S1E0W: the result goes to PAR_EL1.
fn address_translate(cpu: &mut Cpu, va: u64, op2: u16) {
    let access = if op2 & 1 != 0 { Access::Write } else { Access::Read };
    let who = if op2 & 2 != 0 { Privilege::El0 } else { Privilege::El1 };
    cpu.sys.par = match cpu.translate(va, access, who) {
        // Normal, inner shareable, write-back: what this CPU treats all memory as.
        Ok(translation) => 0xff << 56 | 3 << 7 | 1 << 11 | translation.page & 0x0000_ffff_ffff_f000,
        Err(fault) => {
            let code = match fault {
                Fault::Stage1(code) => u64::from(code),
                Fault::WalkOutsideMemory { level, .. } => 0x14 | u64::from(level),
            };
            1 << 11 | code << 1 | 1
        }
    };
}

/// SYS at EL1: `a` is the operand, the first constant the operation in register form.
pub(crate) fn sys(cpu: &mut Cpu, at: At) -> Next {
    let op = at.imm() as u16 & 0x3fff;
    let value = x(cpu, at.a);
    match (op >> 11, op >> 7 & 15, op >> 3 & 15, op & 7) {
        // TLBI: CRm 3 is inner shareable, 7 local.
        (0, 8, crm @ (3 | 7), op2) => {
            let item = match op2 {
                0 => Maintenance::TlbAll,
                1 | 3 | 5 | 7 => Maintenance::TlbVa(value << 12),
                2 => Maintenance::TlbAsid((value >> 48) as u16),
                _ => return cpu.undefined(at),
            };
            invalidate_tlb(cpu, item, crm == 3);
        }
        // IC IALLUIS, IC IALLU.
        (0, 7, 1 | 5, 0) => invalidate_code(cpu, Maintenance::CodeAll),
        // IC IVAU.
        (3, 7, 5, 1) => {
            if let Some(page) = attempt!(maintenance_address(cpu, at, Access::Read))
                && page_has_code(&cpu.regions, page)
            {
                invalidate_code(cpu, Maintenance::Code(page));
            }
        }
        // DC IVAC wants write permission; DC CVAC, CVAU, CIVAC read.
        (0, 7, 6, 1) => {
            attempt!(maintenance_address(cpu, at, Access::Write));
        }
        (3, 7, 10 | 11 | 14, 1) => {
            attempt!(maintenance_address(cpu, at, Access::Read));
        }
        // DC ISW, CSW, CISW: memory and caches are one.
        (0, 7, 6 | 10 | 14, 2) => {}
        // AT.
        (0, 7, 8, op2 @ 0..=3) => address_translate(cpu, value, op2),
        _ => return cpu.undefined(at),
    }
    at.next(cpu)
}

/// SYS at EL0: cache maintenance by address if SCTLR_EL1.UCI allows it, DC ZVA if DZE does.
pub(crate) fn sys_el0(cpu: &mut Cpu, at: At) -> Next {
    let op = at.imm() as u16 & 0x3fff;
    let allowed_by = match (op >> 11, op >> 7 & 15, op >> 3 & 15, op & 7) {
        (3, 7, 4, 1) => sctlr::DZE,
        (3, 7, 5 | 10 | 11 | 14, 1) => sctlr::UCI,
        _ => return cpu.undefined(at),
    };
    if cpu.sys.sctlr & allowed_by == 0 {
        return cpu.raise(at, ec::SYSTEM, system_iss(at.imm() as u16, at.b, false));
    }
    if allowed_by == sctlr::DZE { super::memory::zero_block(cpu, at) } else { sys(cpu, at) }
}
