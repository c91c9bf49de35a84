//! Exclusives, acquire and release, and the LSE atomics (Arm ARM B2.9, C3.2.6, C3.2.12) on host atomics.
//!
//! A store-exclusive succeeds if the memory still holds what the load-exclusive read (compare and swap), which every lock and
//! reference count of practice is content with. An A-B-A change in between is not seen.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::memory::attempt;
use super::x;
use crate::cpu::{Cpu, Monitor};
use crate::host;
use crate::insn::AtomicOp;
use crate::mmu::Access;
use crate::op::{At, Next};

/// Compares and swaps 1 << `log2` aligned bytes; returns what was there, zero-extended.
///
/// # Safety
/// `host` must point at that many mapped, writable bytes of guest memory, aligned to their number.
unsafe fn compare_exchange(host: u64, log2: u8, expected: u64, new: u64) -> u64 {
    macro_rules! with {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: the caller's promise.
            let cell = unsafe { <$atomic>::from_ptr(host as *mut $int) };
            let result =
                cell.compare_exchange(expected as $int, new as $int, Ordering::SeqCst, Ordering::SeqCst);
            u64::from(match result {
                Ok(old) | Err(old) => old,
            })
        }};
    }
    match log2 {
        0 => with!(AtomicU8, u8),
        1 => with!(AtomicU16, u16),
        2 => with!(AtomicU32, u32),
        _ => with!(AtomicU64, u64),
    }
}

/// LDXR, LDAXR: loads `a` from `b`.
pub(crate) fn load_exclusive<const LOG2: u8>(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let host = attempt!(cpu.locate_aligned(at, va, 1 << LOG2, Access::Read, 0));
    // SAFETY: `locate_aligned` found that many bytes of readable guest memory.
    let value = unsafe { host::read::<LOG2>(host) };
    // An acquire, and a barrier for the plain form costs nothing worth saving.
    fence(Ordering::Acquire);
    cpu.monitor = Monitor { host, bytes: 1 << LOG2, value: u128::from(value) };
    cpu.regs.x[usize::from(at.a)] = value;
    at.next(cpu)
}

/// STXR, STLXR: stores `a` to `b`, status to `c`.
pub(crate) fn store_exclusive<const LOG2: u8>(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let host = attempt!(cpu.locate_aligned(at, va, 1 << LOG2, Access::Write, 0));
    let monitor = std::mem::take(&mut cpu.monitor);
    let ok = monitor.host == host && monitor.bytes == 1 << LOG2 && {
        let expected = monitor.value as u64;
        // SAFETY: `locate_aligned` found that many aligned bytes of writable guest memory.
        unsafe { compare_exchange(host, LOG2, expected, x(cpu, at.a)) == expected }
    };
    cpu.regs.x[usize::from(at.c)] = u64::from(!ok);
    at.next(cpu)
}

/// LDXP, LDAXP: loads `a` and `c` from `b`; 1 << d bytes each.
pub(crate) fn load_exclusive_pair(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let bytes = 2u8 << at.d;
    let host = attempt!(cpu.locate_aligned(at, va, u64::from(bytes), Access::Read, 0));
    let (first, second, value);
    if at.d == 2 {
        // SAFETY: `locate_aligned` found that many bytes of readable guest memory.
        let both = unsafe { host::read::<3>(host) };
        (first, second, value) = (both & 0xffff_ffff, both >> 32, u128::from(both));
    } else {
        // Not one access: if the halves do not belong together, the store-exclusive will fail, as the architecture has it.
        // SAFETY: as above.
        (first, second) = unsafe { (host::read::<3>(host), host::read::<3>(host + 8)) };
        value = u128::from(second) << 64 | u128::from(first);
    }
    fence(Ordering::Acquire);
    cpu.monitor = Monitor { host, bytes, value };
    cpu.regs.x[usize::from(at.a)] = first;
    cpu.regs.x[usize::from(at.c)] = second;
    at.next(cpu)
}

/// STXP, STLXP: stores `a` and the register of the constant to `b`, status to `c`; 1 << d bytes each.
pub(crate) fn store_exclusive_pair(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let bytes = 2u8 << at.d;
    let host = attempt!(cpu.locate_aligned(at, va, u64::from(bytes), Access::Write, 0));
    let (first, second) = (x(cpu, at.a), x(cpu, at.imm() as u8));
    let monitor = std::mem::take(&mut cpu.monitor);
    let ok = monitor.host == host && monitor.bytes == bytes && {
        // SAFETY: `locate_aligned` found that many aligned bytes of writable guest memory.
        unsafe {
            if at.d == 2 {
                let expected = monitor.value as u64;
                compare_exchange(host, 3, expected, second << 32 | first & 0xffff_ffff) == expected
            } else {
                let new = u128::from(second) << 64 | u128::from(first);
                host::compare_exchange_16(host, monitor.value, new) == monitor.value
            }
        }
    };
    cpu.regs.x[usize::from(at.c)] = u64::from(!ok);
    at.next(cpu)
}

/// LDAR, LDLAR: `a` from `b`.
pub(crate) fn load_acquire<const LOG2: u8>(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let host = attempt!(cpu.locate_aligned(at, va, 1 << LOG2, Access::Read, at.imm2()));
    // SAFETY: `locate_aligned` found that many aligned bytes of readable guest memory.
    let value = unsafe {
        match LOG2 {
            0 => u64::from(AtomicU8::from_ptr(host as *mut u8).load(Ordering::SeqCst)),
            1 => u64::from(AtomicU16::from_ptr(host as *mut u16).load(Ordering::SeqCst)),
            2 => u64::from(AtomicU32::from_ptr(host as *mut u32).load(Ordering::SeqCst)),
            _ => AtomicU64::from_ptr(host as *mut u64).load(Ordering::SeqCst),
        }
    };
    cpu.regs.x[usize::from(at.a)] = value;
    at.next(cpu)
}

/// STLR, STLLR: `a` to `b`. Sequentially consistent: a later LDAR must not overtake it.
pub(crate) fn store_release<const LOG2: u8>(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let host = attempt!(cpu.locate_aligned(at, va, 1 << LOG2, Access::Write, at.imm2()));
    let value = x(cpu, at.a);
    // SAFETY: `locate_aligned` found that many aligned bytes of writable guest memory.
    unsafe {
        match LOG2 {
            0 => AtomicU8::from_ptr(host as *mut u8).store(value as u8, Ordering::SeqCst),
            1 => AtomicU16::from_ptr(host as *mut u16).store(value as u16, Ordering::SeqCst),
            2 => AtomicU32::from_ptr(host as *mut u32).store(value as u32, Ordering::SeqCst),
            _ => AtomicU64::from_ptr(host as *mut u64).store(value, Ordering::SeqCst),
        }
    }
    at.next(cpu)
}

/// Applies `op` with `operand` to 1 << `log2` bytes; returns what was there, zero-extended.
///
/// # Safety
/// As [`compare_exchange`].
unsafe fn read_modify_write(host: u64, log2: u8, op: AtomicOp, operand: u64) -> u64 {
    macro_rules! with {
        ($atomic:ty, $int:ty, $signed:ty) => {{
            // SAFETY: the caller's promise.
            let cell = unsafe { <$atomic>::from_ptr(host as *mut $int) };
            let v = operand as $int;
            const ORDER: Ordering = Ordering::SeqCst;
            let signed =
                |pick: fn($signed, $signed) -> $signed| match cell
                    .fetch_update(ORDER, ORDER, |old| Some(pick(old as $signed, v as $signed) as $int))
                {
                    Ok(old) | Err(old) => old,
                };
            u64::from(match op {
                AtomicOp::Add => cell.fetch_add(v, ORDER),
                AtomicOp::Clr => cell.fetch_and(!v, ORDER),
                AtomicOp::Eor => cell.fetch_xor(v, ORDER),
                AtomicOp::Set => cell.fetch_or(v, ORDER),
                AtomicOp::Smax => signed(Ord::max),
                AtomicOp::Smin => signed(Ord::min),
                AtomicOp::Umax => cell.fetch_max(v, ORDER),
                AtomicOp::Umin => cell.fetch_min(v, ORDER),
                AtomicOp::Swp => cell.swap(v, ORDER),
            })
        }};
    }
    match log2 {
        0 => with!(AtomicU8, u8, i8),
        1 => with!(AtomicU16, u16, i16),
        2 => with!(AtomicU32, u32, i32),
        _ => with!(AtomicU64, u64, i64),
    }
}

/// Operations in the order of `OP`.
const OPS: [AtomicOp; 9] = [
    AtomicOp::Add,
    AtomicOp::Clr,
    AtomicOp::Eor,
    AtomicOp::Set,
    AtomicOp::Smax,
    AtomicOp::Smin,
    AtomicOp::Umax,
    AtomicOp::Umin,
    AtomicOp::Swp,
];

/// The number of `op` as a const parameter.
pub(crate) fn op_number(op: AtomicOp) -> u8 {
    OPS.iter().position(|&o| o == op).unwrap_or(0) as u8
}

/// LDADD ... SWP: `a` gets what `b` pointed at; the operand is `c`; 1 << d bytes.
pub(crate) fn read_modify<const OP: u8>(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let host = attempt!(cpu.locate_atomic(at, va, 1 << at.d));
    // SAFETY: `locate_atomic` found that many aligned bytes of writable guest memory.
    let old = unsafe { read_modify_write(host, at.d, OPS[usize::from(OP)], x(cpu, at.c)) };
    cpu.regs.x[usize::from(at.a)] = old;
    at.next(cpu)
}

/// CAS: if `b` points at the value of `c`, it gets that of `a`; what was there goes to the register of the constant.
pub(crate) fn compare_swap(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let host = attempt!(cpu.locate_atomic(at, va, 1 << at.d));
    // SAFETY: `locate_atomic` found that many aligned bytes of writable guest memory.
    let old = unsafe { compare_exchange(host, at.d, x(cpu, at.c), x(cpu, at.a)) };
    cpu.regs.x[usize::from(at.imm() as u8)] = old;
    at.next(cpu)
}

/// CASP: pairs `c`, `c`+1 compared, `a`, `a`+1 stored. The constants are the indices of the second registers and of the
/// destinations: bytes 0 and 1 the second sources of `a` and `c`, bytes 2 and 3 where the old values go.
pub(crate) fn compare_swap_pair(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.b);
    let host = attempt!(cpu.locate_atomic(at, va, 2 << at.d));
    let [new_second, expected_second, first_out, second_out, ..] = at.imm().to_le_bytes();
    let (new, expected) = ((x(cpu, at.a), x(cpu, new_second)), (x(cpu, at.c), x(cpu, expected_second)));
    let (first, second);
    if at.d == 2 {
        let join = |(low, high): (u64, u64)| high << 32 | low & 0xffff_ffff;
        // SAFETY: `locate_atomic` found that many aligned bytes of writable guest memory.
        let old = unsafe { compare_exchange(host, 3, join(expected), join(new)) };
        (first, second) = (old & 0xffff_ffff, old >> 32);
    } else {
        let join = |(low, high): (u64, u64)| u128::from(high) << 64 | u128::from(low);
        // SAFETY: as above.
        let old = unsafe { host::compare_exchange_16(host, join(expected), join(new)) };
        (first, second) = (old as u64, (old >> 64) as u64);
    }
    cpu.regs.x[usize::from(first_out)] = first;
    cpu.regs.x[usize::from(second_out)] = second;
    at.next(cpu)
}
