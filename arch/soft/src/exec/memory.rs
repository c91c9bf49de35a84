//! Loads and stores of one or two registers (Arm ARM C4.1.94): the fast path over the TLB. What misses is in `memory`.

use super::x;
use crate::cpu::Cpu;
use crate::host;
use crate::machine::PAGE_SIZE;
use crate::mmu::{Access, Privilege};
use crate::op::{At, Next};
use crate::sysreg::ZVA_BYTES;

const PAGE_MASK: u64 = !(PAGE_SIZE - 1);

/// How the address is formed; a const parameter of the handlers.
pub(crate) mod mode {
    /// Base and constant.
    pub const IMM: u8 = 0;
    /// Base and constant, written back, before the access.
    pub const PRE: u8 = 1;
    /// Base; base and constant written back.
    pub const POST: u8 = 2;
    /// Base and shifted register.
    pub const REG: u8 = 3;
    /// Base and shifted, zero-extended 32-bit register.
    pub const REG_UXTW: u8 = 4;
    /// Base and shifted, sign-extended 32-bit register.
    pub const REG_SXTW: u8 = 5;
    /// As `IMM`, with EL0's permissions (LDTR, STTR).
    pub const UNPRIVILEGED: u8 = 6;
    /// Relative to the executed page.
    pub const LITERAL: u8 = 7;
}

/// What is transferred; a const parameter of [`single`].
pub(crate) mod kind {
    /// Plus log2 of the bytes.
    pub const STORE: u8 = 0;
    /// Plus log2 of the bytes.
    pub const LOAD: u8 = 4;
    /// Sign-extended to 64 bits, plus log2 of the bytes.
    pub const LOAD_S64: u8 = 8;
    /// Sign-extended to 32 bits, plus log2 of the bytes.
    pub const LOAD_S32: u8 = 11;
    /// Plus log2 of the bytes.
    pub const STORE_SIMD: u8 = 13;
    /// Plus log2 of the bytes.
    pub const LOAD_SIMD: u8 = 18;
}

/// The fast path's answer to a TLB miss: the same operation is then tried again on the slow path. Keeping the two apart
/// keeps calls, and so saved registers, out of the handlers that run all the time.
const MISS: Next = Next::Event;

/// Loads 1 << `LOG2` bytes. With `SLOW` a miss is resolved, else it is [`MISS`].
#[inline(always)]
pub(crate) fn load<const LOG2: u8, const UNPRIVILEGED: bool, const SLOW: bool>(
    cpu: &mut Cpu,
    at: At,
    va: u64,
    iss: u64,
) -> Result<u64, Next> {
    let entry = if UNPRIVILEGED { cpu.tlb.entry_of(va, Privilege::El0) } else { cpu.tlb.entry(va) };
    // The last byte's page against the first byte's entry: an access that crosses a page cannot match.
    if va.wrapping_add((1 << LOG2) - 1) & PAGE_MASK == entry.read {
        // SAFETY: the entry says that this page is readable guest memory at that host address.
        Ok(unsafe { host::read::<LOG2>(va.wrapping_add(entry.addend)) })
    } else if SLOW {
        let who = if UNPRIVILEGED { Privilege::El0 } else { cpu.privilege() };
        cpu.load_slow(at, va, LOG2, who, iss)
    } else {
        Err(MISS)
    }
}

/// Stores 1 << `LOG2` bytes. `SLOW` as for [`load`].
#[inline(always)]
pub(crate) fn store<const LOG2: u8, const UNPRIVILEGED: bool, const SLOW: bool>(
    cpu: &mut Cpu,
    at: At,
    va: u64,
    value: u64,
    iss: u64,
) -> Result<(), Next> {
    let entry = if UNPRIVILEGED { cpu.tlb.entry_of(va, Privilege::El0) } else { cpu.tlb.entry(va) };
    if va.wrapping_add((1 << LOG2) - 1) & PAGE_MASK == entry.write {
        // SAFETY: the entry says that this page is writable guest memory at that host address.
        unsafe { host::write::<LOG2>(va.wrapping_add(entry.addend), value) };
        Ok(())
    } else if SLOW {
        let who = if UNPRIVILEGED { Privilege::El0 } else { cpu.privilege() };
        cpu.store_slow(at, va, LOG2, value, who, iss)
    } else {
        Err(MISS)
    }
}

/// Loads two registers' worth of 1 << `LOG2` bytes each. `SLOW` as for [`load`].
#[inline(always)]
pub(crate) fn load_two<const LOG2: u8, const SLOW: bool>(
    cpu: &mut Cpu,
    at: At,
    va: u64,
) -> Result<(u64, u64), Next> {
    let entry = cpu.tlb.entry(va);
    if va.wrapping_add((2 << LOG2) - 1) & PAGE_MASK == entry.read {
        let host = va.wrapping_add(entry.addend);
        // SAFETY: the entry says that this page is readable guest memory at that host address.
        return Ok(unsafe { (host::read::<LOG2>(host), host::read::<LOG2>(host + (1 << LOG2))) });
    }
    if !SLOW {
        return Err(MISS);
    }
    let who = cpu.privilege();
    let first = cpu.load_slow(at, va, LOG2, who, 0)?;
    Ok((first, cpu.load_slow(at, va.wrapping_add(1 << LOG2), LOG2, who, 0)?))
}

/// Stores two registers' worth of 1 << `LOG2` bytes each. `SLOW` as for [`load`].
#[inline(always)]
pub(crate) fn store_two<const LOG2: u8, const SLOW: bool>(
    cpu: &mut Cpu,
    at: At,
    va: u64,
    values: (u64, u64),
) -> Result<(), Next> {
    let entry = cpu.tlb.entry(va);
    if va.wrapping_add((2 << LOG2) - 1) & PAGE_MASK == entry.write {
        let host = va.wrapping_add(entry.addend);
        // SAFETY: the entry says that this page is writable guest memory at that host address.
        unsafe {
            host::write::<LOG2>(host, values.0);
            host::write::<LOG2>(host + (1 << LOG2), values.1);
        }
        return Ok(());
    }
    if !SLOW {
        return Err(MISS);
    }
    let who = cpu.privilege();
    cpu.store_slow(at, va, LOG2, values.0, who, 0)?;
    cpu.store_slow(at, va.wrapping_add(1 << LOG2), LOG2, values.1, who, 0)
}

#[inline(always)]
fn address<const MODE: u8>(cpu: &Cpu, at: At) -> u64 {
    match MODE {
        mode::POST => x(cpu, at.b),
        mode::REG => x(cpu, at.b).wrapping_add(x(cpu, at.c) << (at.d & 7)),
        mode::REG_UXTW => x(cpu, at.b).wrapping_add(u64::from(x(cpu, at.c) as u32) << (at.d & 7)),
        mode::REG_SXTW => x(cpu, at.b).wrapping_add((x(cpu, at.c) as i32 as u64) << (at.d & 7)),
        mode::LITERAL => cpu.page_va.wrapping_add(at.imm()),
        _ => x(cpu, at.b).wrapping_add(at.imm()),
    }
}

#[inline(always)]
fn write_back<const MODE: u8>(cpu: &mut Cpu, at: At) {
    if MODE == mode::PRE || MODE == mode::POST {
        let base = x(cpu, at.b);
        cpu.regs.x[usize::from(at.b)] = base.wrapping_add(at.imm());
    }
}

macro_rules! attempt {
    ($e:expr) => {
        match $e {
            Ok(value) => value,
            Err(next) => return next,
        }
    };
}
pub(crate) use attempt;

/// Calls `load` or `store` for a size that follows from a const parameter.
macro_rules! sized {
    ($log2:expr, $f:ident, $($arg:expr),*) => {
        match $log2 {
            0 => $f::<0, UNPRIVILEGED, SLOW>($($arg),*),
            1 => $f::<1, UNPRIVILEGED, SLOW>($($arg),*),
            2 => $f::<2, UNPRIVILEGED, SLOW>($($arg),*),
            _ => $f::<3, UNPRIVILEGED, SLOW>($($arg),*),
        }
    };
}

#[inline(always)]
fn transfer<const KIND: u8, const UNPRIVILEGED: bool, const SLOW: bool>(
    cpu: &mut Cpu,
    at: At,
    va: u64,
) -> Result<(), Next> {
    let iss = at.imm2();
    let a = usize::from(at.a);
    match KIND {
        kind::STORE..kind::LOAD => {
            let value = cpu.regs.x[a];
            sized!(KIND - kind::STORE, store, cpu, at, va, value, iss)?;
        }
        kind::LOAD..kind::LOAD_S64 => {
            cpu.regs.x[a] = sized!(KIND - kind::LOAD, load, cpu, at, va, iss)?;
        }
        kind::LOAD_S64..kind::LOAD_S32 => {
            let log2 = KIND - kind::LOAD_S64;
            let value = sized!(log2, load, cpu, at, va, iss)?;
            let shift = 64 - (8 << log2);
            cpu.regs.x[a] = ((value << shift) as i64 >> shift) as u64;
        }
        kind::LOAD_S32..kind::STORE_SIMD => {
            let log2 = KIND - kind::LOAD_S32;
            let value = sized!(log2, load, cpu, at, va, iss)?;
            let shift = 32 - (8 << log2);
            let extended = (((value as u32) << shift) as i32 >> shift) as u32;
            cpu.regs.x[a] = u64::from(extended);
        }
        kind::STORE_SIMD..kind::LOAD_SIMD => {
            let value = cpu.regs.q[a & 31];
            if KIND == kind::STORE_SIMD + 4 {
                if SLOW {
                    cpu.check_vector(at, va, Access::Write)?;
                }
                store_two::<3, SLOW>(cpu, at, va, (value as u64, (value >> 64) as u64))?;
            } else {
                sized!(KIND - kind::STORE_SIMD, store, cpu, at, va, value as u64, iss)?;
            }
        }
        _ => {
            cpu.regs.q[a & 31] = if KIND == kind::LOAD_SIMD + 4 {
                if SLOW {
                    cpu.check_vector(at, va, Access::Read)?;
                }
                let (low, high) = load_two::<3, SLOW>(cpu, at, va)?;
                u128::from(high) << 64 | u128::from(low)
            } else {
                u128::from(sized!(KIND - kind::LOAD_SIMD, load, cpu, at, va, iss)?)
            };
        }
    }
    Ok(())
}

/// One register. `a` is transferred, `b` the base, `c` the index shifted by `d`; the second constant is the ISS.
pub(crate) fn single<const KIND: u8, const MODE: u8>(cpu: &mut Cpu, at: At) -> Next {
    match single_with::<KIND, MODE, false>(cpu, at) {
        Ok(()) => at.next(cpu),
        Err(_) => single_slow::<KIND, MODE>(cpu, at),
    }
}

#[cold]
#[inline(never)]
fn single_slow<const KIND: u8, const MODE: u8>(cpu: &mut Cpu, at: At) -> Next {
    attempt!(single_with::<KIND, MODE, true>(cpu, at));
    at.next(cpu)
}

#[inline(always)]
fn single_with<const KIND: u8, const MODE: u8, const SLOW: bool>(cpu: &mut Cpu, at: At) -> Result<(), Next> {
    let va = address::<MODE>(cpu, at);
    if MODE == mode::UNPRIVILEGED {
        transfer::<KIND, true, SLOW>(cpu, at, va)?;
    } else {
        transfer::<KIND, false, SLOW>(cpu, at, va)?;
    }
    write_back::<MODE>(cpu, at);
    Ok(())
}

/// LDP, STP of general registers `a` and `c`. `SIGNED` is LDPSW.
pub(crate) fn pair<const LOAD: bool, const LOG2: u8, const SIGNED: bool, const MODE: u8>(
    cpu: &mut Cpu,
    at: At,
) -> Next {
    match pair_with::<LOAD, LOG2, SIGNED, MODE, false>(cpu, at) {
        Ok(()) => at.next(cpu),
        Err(_) => pair_slow::<LOAD, LOG2, SIGNED, MODE>(cpu, at),
    }
}

#[cold]
#[inline(never)]
fn pair_slow<const LOAD: bool, const LOG2: u8, const SIGNED: bool, const MODE: u8>(
    cpu: &mut Cpu,
    at: At,
) -> Next {
    attempt!(pair_with::<LOAD, LOG2, SIGNED, MODE, true>(cpu, at));
    at.next(cpu)
}

#[inline(always)]
fn pair_with<const LOAD: bool, const LOG2: u8, const SIGNED: bool, const MODE: u8, const SLOW: bool>(
    cpu: &mut Cpu,
    at: At,
) -> Result<(), Next> {
    let va = address::<MODE>(cpu, at);
    if LOAD {
        let (first, second) = load_two::<LOG2, SLOW>(cpu, at, va)?;
        let extend = |value: u64| if SIGNED { value as i32 as u64 } else { value };
        write_back::<MODE>(cpu, at);
        cpu.regs.x[usize::from(at.a)] = extend(first);
        cpu.regs.x[usize::from(at.c)] = extend(second);
    } else {
        let values = (x(cpu, at.a), x(cpu, at.c));
        store_two::<LOG2, SLOW>(cpu, at, va, values)?;
        write_back::<MODE>(cpu, at);
    }
    Ok(())
}

/// LDP, STP of SIMD registers `a` and `c`.
pub(crate) fn pair_simd<const LOAD: bool, const LOG2: u8, const MODE: u8>(cpu: &mut Cpu, at: At) -> Next {
    match pair_simd_with::<LOAD, LOG2, MODE, false>(cpu, at) {
        Ok(()) => at.next(cpu),
        Err(_) => pair_simd_slow::<LOAD, LOG2, MODE>(cpu, at),
    }
}

#[cold]
#[inline(never)]
fn pair_simd_slow<const LOAD: bool, const LOG2: u8, const MODE: u8>(cpu: &mut Cpu, at: At) -> Next {
    attempt!(pair_simd_with::<LOAD, LOG2, MODE, true>(cpu, at));
    at.next(cpu)
}

#[inline(always)]
fn pair_simd_with<const LOAD: bool, const LOG2: u8, const MODE: u8, const SLOW: bool>(
    cpu: &mut Cpu,
    at: At,
) -> Result<(), Next> {
    let va = address::<MODE>(cpu, at);
    let (a, c) = (usize::from(at.a & 31), usize::from(at.c & 31));
    let join = |(low, high): (u64, u64)| u128::from(high) << 64 | u128::from(low);
    let split = |q: u128| (q as u64, (q >> 64) as u64);
    if SLOW && LOG2 == 4 {
        cpu.check_vector(at, va, if LOAD { Access::Read } else { Access::Write })?;
    }
    match (LOG2, LOAD) {
        (4, true) => {
            let first = load_two::<3, SLOW>(cpu, at, va)?;
            let second = load_two::<3, SLOW>(cpu, at, va.wrapping_add(16))?;
            (cpu.regs.q[a], cpu.regs.q[c]) = (join(first), join(second));
        }
        (4, false) => {
            store_two::<3, SLOW>(cpu, at, va, split(cpu.regs.q[a]))?;
            store_two::<3, SLOW>(cpu, at, va.wrapping_add(16), split(cpu.regs.q[c]))?;
        }
        (_, true) => {
            let (first, second) =
                if LOG2 == 3 { load_two::<3, SLOW>(cpu, at, va)? } else { load_two::<2, SLOW>(cpu, at, va)? };
            (cpu.regs.q[a], cpu.regs.q[c]) = (u128::from(first), u128::from(second));
        }
        (_, false) => {
            let values = (cpu.regs.q[a] as u64, cpu.regs.q[c] as u64);
            if LOG2 == 3 {
                store_two::<3, SLOW>(cpu, at, va, values)?;
            } else {
                store_two::<2, SLOW>(cpu, at, va, values)?;
            }
        }
    }
    write_back::<MODE>(cpu, at);
    Ok(())
}

/// Raises the stack alignment fault if SP is not a multiple of 16 and the checks are on (Arm ARM D1.3.10). Stands before
/// the first access through SP in a block.
pub(crate) fn check_sp(cpu: &mut Cpu, at: At) -> Next {
    if cpu.regs.x[crate::regs::SP] & 15 != 0 && cpu.checks_sp() {
        return cpu.raise(at, crate::exception::ec::SP_ALIGNMENT, 0);
    }
    at.next(cpu)
}

/// DC ZVA: zeroes the aligned block of 64 bytes at `a`.
pub(crate) fn zero_block(cpu: &mut Cpu, at: At) -> Next {
    let va = x(cpu, at.a);
    let entry = cpu.tlb.entry(va);
    let host = if va & PAGE_MASK == entry.write {
        va.wrapping_add(entry.addend) & !(ZVA_BYTES - 1)
    } else {
        attempt!(cpu.locate_block(at, va))
    };
    for i in 0..ZVA_BYTES / 8 {
        // SAFETY: the block is aligned, so that it lies in the page that was found writable.
        unsafe { host::write::<3>(host + 8 * i, 0) };
    }
    at.next(cpu)
}
