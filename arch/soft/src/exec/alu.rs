//! Integer data processing (Arm ARM C4.1.86 and C4.1.92).

use super::{put, x};
use crate::cpu::Cpu;
use crate::op::{At, Next};
use crate::regs::Flags;

/// Shift kinds of the const parameters: the encoding's, and none.
pub(crate) const LSL: u8 = 0;
pub(crate) const LSR: u8 = 1;
pub(crate) const ASR: u8 = 2;
pub(crate) const NO_SHIFT: u8 = 4;

/// a + b + carry with all flags (Arm ARM, AddWithCarry).
#[inline(always)]
fn add_with_carry<const SF: bool>(flags: &mut Flags, a: u64, b: u64, carry: bool) -> u64 {
    if SF {
        let (sum, c1) = a.overflowing_add(b);
        let (sum, c2) = sum.overflowing_add(u64::from(carry));
        *flags = Flags { n: sum, z: sum, c: u64::from(c1 | c2), v: (a ^ sum) & (b ^ sum) };
        sum
    } else {
        let sum = u64::from(a as u32) + u64::from(b as u32) + u64::from(carry);
        let v = (a ^ sum) & (b ^ sum);
        *flags = Flags { n: sum << 32, z: u64::from(sum as u32), c: sum >> 32, v: v << 32 };
        u64::from(sum as u32)
    }
}

/// a - b with all flags: C is "no borrow".
#[inline(always)]
fn subtract<const SF: bool>(flags: &mut Flags, a: u64, b: u64) -> u64 {
    if SF {
        let diff = a.wrapping_sub(b);
        *flags = Flags { n: diff, z: diff, c: u64::from(a >= b), v: (a ^ b) & (a ^ diff) };
        diff
    } else {
        let diff = (a as u32).wrapping_sub(b as u32);
        let v = (a ^ b) & (a ^ u64::from(diff));
        *flags = Flags {
            n: u64::from(diff) << 32,
            z: u64::from(diff),
            c: u64::from(a as u32 >= b as u32),
            v: v << 32,
        };
        u64::from(diff)
    }
}

#[inline(always)]
fn add_sub<const SF: bool, const SUB: bool, const FLAGS: bool>(cpu: &mut Cpu, a: u64, b: u64) -> u64 {
    match (FLAGS, SUB) {
        (false, false) => a.wrapping_add(b),
        (false, true) => a.wrapping_sub(b),
        (true, false) => add_with_carry::<SF>(&mut cpu.regs.flags, a, b, false),
        (true, true) => subtract::<SF>(&mut cpu.regs.flags, a, b),
    }
}

#[inline(always)]
fn logic_flags<const SF: bool>(cpu: &mut Cpu, value: u64) {
    let (n, z) = if SF { (value, value) } else { (value << 32, u64::from(value as u32)) };
    cpu.regs.flags = Flags { n, z, c: 0, v: 0 };
}

#[inline(always)]
fn shifted<const SF: bool, const SHIFT: u8>(value: u64, amount: u8) -> u64 {
    let amount = u32::from(amount);
    match (SHIFT, SF) {
        (NO_SHIFT, _) => value,
        (LSL, true) => value << (amount & 63),
        (LSL, false) => u64::from((value as u32) << (amount & 31)),
        (LSR, true) => value >> (amount & 63),
        (LSR, false) => u64::from(value as u32 >> (amount & 31)),
        (ASR, true) => (value as i64 >> (amount & 63)) as u64,
        (ASR, false) => u64::from((value as i32 >> (amount & 31)) as u32),
        (_, true) => value.rotate_right(amount),
        (_, false) => u64::from((value as u32).rotate_right(amount)),
    }
}

#[inline(always)]
fn extended<const EXTEND: u8>(value: u64) -> u64 {
    match EXTEND {
        0 => u64::from(value as u8),
        1 => u64::from(value as u16),
        2 => u64::from(value as u32),
        4 => value as i8 as u64,
        5 => value as i16 as u64,
        6 => value as i32 as u64,
        _ => value,
    }
}

/// d = a + imm, without flags (a subtraction adds the negative).
pub(crate) fn add_imm<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.b).wrapping_add(at.imm());
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn add_sub_imm_flags<const SF: bool, const SUB: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = add_sub::<SF, SUB, true>(cpu, x(cpu, at.b), at.imm());
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn add_sub_reg<const SF: bool, const SUB: bool, const FLAGS: bool, const SHIFT: u8>(
    cpu: &mut Cpu,
    at: At,
) -> Next {
    let operand = shifted::<SF, SHIFT>(x(cpu, at.c), at.d);
    let value = add_sub::<SF, SUB, FLAGS>(cpu, x(cpu, at.b), operand);
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn add_sub_ext<const SF: bool, const SUB: bool, const FLAGS: bool, const EXTEND: u8>(
    cpu: &mut Cpu,
    at: At,
) -> Next {
    let operand = extended::<EXTEND>(x(cpu, at.c)) << (at.d & 7);
    let value = add_sub::<SF, SUB, FLAGS>(cpu, x(cpu, at.b), operand);
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn add_sub_carry<const SF: bool, const SUB: bool, const FLAGS: bool>(
    cpu: &mut Cpu,
    at: At,
) -> Next {
    let (a, b) = (x(cpu, at.b), x(cpu, at.c));
    let b = if SUB { !b } else { b };
    let carry = cpu.regs.flags.c != 0;
    let value = if FLAGS {
        add_with_carry::<SF>(&mut cpu.regs.flags, a, b, carry)
    } else {
        a.wrapping_add(b).wrapping_add(u64::from(carry))
    };
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

/// `OP`: 0 AND, 1 ORR, 2 EOR, 3 ANDS.
#[inline(always)]
fn logic<const SF: bool, const OP: u8>(cpu: &mut Cpu, rd: u8, a: u64, b: u64) {
    let value = match OP {
        1 => a | b,
        2 => a ^ b,
        _ => a & b,
    };
    if OP == 3 {
        logic_flags::<SF>(cpu, value);
    }
    put::<SF>(cpu, rd, value);
}

pub(crate) fn logic_imm<const SF: bool, const OP: u8>(cpu: &mut Cpu, at: At) -> Next {
    logic::<SF, OP>(cpu, at.a, x(cpu, at.b), at.imm());
    at.next(cpu)
}

pub(crate) fn logic_reg<const SF: bool, const OP: u8, const INVERT: bool, const SHIFT: u8>(
    cpu: &mut Cpu,
    at: At,
) -> Next {
    let operand = shifted::<SF, SHIFT>(x(cpu, at.c), at.d);
    let operand = if INVERT { !operand } else { operand };
    logic::<SF, OP>(cpu, at.a, x(cpu, at.b), operand);
    at.next(cpu)
}

/// MOV (register).
pub(crate) fn mov<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    put::<SF>(cpu, at.a, x(cpu, at.c));
    at.next(cpu)
}

/// MOVZ, MOVN: a constant.
pub(crate) fn constant(cpu: &mut Cpu, at: At) -> Next {
    put::<true>(cpu, at.a, at.imm());
    at.next(cpu)
}

/// MOVK and BFI-like insertions of a constant: d = d & imm | imm2.
pub(crate) fn insert_constant(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.a) & at.imm() | at.imm2();
    put::<true>(cpu, at.a, value);
    at.next(cpu)
}

/// ADR, ADRP: relative to the page that is executed.
pub(crate) fn page_relative(cpu: &mut Cpu, at: At) -> Next {
    put::<true>(cpu, at.a, cpu.page_va.wrapping_add(at.imm()));
    at.next(cpu)
}

/// UBFX, LSR: d = (a >> c) & imm.
pub(crate) fn ubfx(cpu: &mut Cpu, at: At) -> Next {
    put::<true>(cpu, at.a, x(cpu, at.b) >> (at.c & 63) & at.imm());
    at.next(cpu)
}

/// UBFIZ, LSL: d = (a & imm) << c.
pub(crate) fn ubfiz(cpu: &mut Cpu, at: At) -> Next {
    put::<true>(cpu, at.a, (x(cpu, at.b) & at.imm()) << (at.c & 63));
    at.next(cpu)
}

/// SBFX, SBFIZ, ASR, SXTB ...: d = (a << c) >> d, arithmetically.
pub(crate) fn sbfm<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = (x(cpu, at.b) << (at.c & 63)) as i64 >> (at.d & 63);
    put::<SF>(cpu, at.a, value as u64);
    at.next(cpu)
}

/// BFXIL: d = d & imm | (a >> c) & imm2.
pub(crate) fn bfxil(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.a) & at.imm() | x(cpu, at.b) >> (at.c & 63) & at.imm2();
    put::<true>(cpu, at.a, value);
    at.next(cpu)
}

/// BFI: d = d & imm | (a << c) & imm2.
pub(crate) fn bfi(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.a) & at.imm() | x(cpu, at.b) << (at.c & 63) & at.imm2();
    put::<true>(cpu, at.a, value);
    at.next(cpu)
}

/// EXTR, ROR.
pub(crate) fn extract<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let (high, low) = (x(cpu, at.b), x(cpu, at.c));
    let value = if SF {
        ((u128::from(high) << 64 | u128::from(low)) >> (at.d & 63)) as u64
    } else {
        (high << 32 | u64::from(low as u32)) >> (at.d & 31)
    };
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

#[inline(always)]
fn compare_if<const SF: bool, const SUB: bool>(cpu: &mut Cpu, at: At, operand: u64) {
    if cpu.regs.flags.holds(at.b) {
        let _ = add_sub::<SF, SUB, true>(cpu, x(cpu, at.a), operand);
    } else {
        cpu.regs.flags.set_nzcv(u32::from(at.d) << 28);
    }
}

/// CCMP, CCMN (register): `a` compared with `c` if `b` holds, else flags `d`.
pub(crate) fn compare_if_reg<const SF: bool, const SUB: bool>(cpu: &mut Cpu, at: At) -> Next {
    compare_if::<SF, SUB>(cpu, at, x(cpu, at.c));
    at.next(cpu)
}

/// CCMP, CCMN (immediate).
pub(crate) fn compare_if_imm<const SF: bool, const SUB: bool>(cpu: &mut Cpu, at: At) -> Next {
    compare_if::<SF, SUB>(cpu, at, at.imm());
    at.next(cpu)
}

/// `OP`: 0 CSEL, 1 CSINC, 2 CSINV, 3 CSNEG. The condition is `d`.
pub(crate) fn select<const SF: bool, const OP: u8, const COND: u8>(cpu: &mut Cpu, at: At) -> Next {
    let (yes, no) = (x(cpu, at.b), x(cpu, at.c));
    let no = match OP {
        0 => no,
        1 => no.wrapping_add(1),
        2 => !no,
        _ => no.wrapping_neg(),
    };
    let value = if cpu.regs.flags.holds(COND) { yes } else { no };
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn udiv<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let (a, b) = (x(cpu, at.b), x(cpu, at.c));
    let value = if SF {
        a.checked_div(b).unwrap_or(0)
    } else {
        u64::from((a as u32).checked_div(b as u32).unwrap_or(0))
    };
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn sdiv<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let (a, b) = (x(cpu, at.b), x(cpu, at.c));
    let value = match (SF, b) {
        (true, 0) => 0,
        (true, _) => (a as i64).wrapping_div(b as i64) as u64,
        (false, _) if b as u32 == 0 => 0,
        (false, _) => (a as i32).wrapping_div(b as i32) as u64,
    };
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

/// LSLV, LSRV, ASRV, RORV: `SHIFT` as for immediate shifts.
pub(crate) fn shift_by_reg<const SF: bool, const SHIFT: u8>(cpu: &mut Cpu, at: At) -> Next {
    let amount = x(cpu, at.c) as u8 & if SF { 63 } else { 31 };
    let value = shifted::<SF, SHIFT>(x(cpu, at.b), amount);
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

/// One byte of a reflected CRC-32 with `POLY`, by table.
const fn crc_table(poly: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ poly } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

static CRC32: [u32; 256] = crc_table(0xedb8_8320);
static CRC32C: [u32; 256] = crc_table(0x82f6_3b78);

/// CRC32, CRC32C of 1 << d bytes of c.
pub(crate) fn crc<const CASTAGNOLI: bool>(cpu: &mut Cpu, at: At) -> Next {
    let table = if CASTAGNOLI { &CRC32C } else { &CRC32 };
    let mut crc = x(cpu, at.b) as u32;
    let data = x(cpu, at.c).to_le_bytes();
    for byte in data.iter().take(1 << (at.d & 3)) {
        crc = crc >> 8 ^ table[usize::from(crc as u8 ^ byte)];
    }
    put::<false>(cpu, at.a, u64::from(crc));
    at.next(cpu)
}

pub(crate) fn rbit<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.b);
    let value = if SF { value.reverse_bits() } else { u64::from((value as u32).reverse_bits()) };
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn rev16<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.b);
    let value = (value & 0x00ff_00ff_00ff_00ff) << 8 | value >> 8 & 0x00ff_00ff_00ff_00ff;
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

/// REV32: bytes of each half of a 64-bit register.
pub(crate) fn rev32(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.b).swap_bytes().rotate_right(32);
    put::<true>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn rev<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.b);
    let value = if SF { value.swap_bytes() } else { u64::from((value as u32).swap_bytes()) };
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

pub(crate) fn clz<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.b);
    let count = if SF { value.leading_zeros() } else { (value as u32).leading_zeros() };
    put::<SF>(cpu, at.a, u64::from(count));
    at.next(cpu)
}

pub(crate) fn cls<const SF: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.b);
    let count = if SF {
        ((value ^ (value as i64 >> 1) as u64) << 1 | 1).leading_zeros()
    } else {
        let value = value as u32;
        ((value ^ (value as i32 >> 1) as u32) << 1 | 1).leading_zeros()
    };
    put::<SF>(cpu, at.a, u64::from(count));
    at.next(cpu)
}

/// MADD, MSUB: d = c's partner: a = d ± b * c.
pub(crate) fn multiply_add<const SF: bool, const SUB: bool>(cpu: &mut Cpu, at: At) -> Next {
    let product = x(cpu, at.b).wrapping_mul(x(cpu, at.c));
    let addend = x(cpu, at.d);
    let value = if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) };
    put::<SF>(cpu, at.a, value);
    at.next(cpu)
}

/// SMADDL, SMSUBL, UMADDL, UMSUBL.
pub(crate) fn multiply_add_long<const SIGNED: bool, const SUB: bool>(cpu: &mut Cpu, at: At) -> Next {
    let (b, c) = (x(cpu, at.b), x(cpu, at.c));
    let product = if SIGNED {
        (i64::from(b as i32) * i64::from(c as i32)) as u64
    } else {
        u64::from(b as u32) * u64::from(c as u32)
    };
    let addend = x(cpu, at.d);
    let value = if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) };
    put::<true>(cpu, at.a, value);
    at.next(cpu)
}

/// SMULH, UMULH.
pub(crate) fn multiply_high<const SIGNED: bool>(cpu: &mut Cpu, at: At) -> Next {
    let (b, c) = (x(cpu, at.b), x(cpu, at.c));
    let value = if SIGNED {
        ((i128::from(b as i64) * i128::from(c as i64)) >> 64) as u64
    } else {
        ((u128::from(b) * u128::from(c)) >> 64) as u64
    };
    put::<true>(cpu, at.a, value);
    at.next(cpu)
}

/// Data processing on FP and SIMD registers.
pub(crate) fn fp_simd(cpu: &mut Cpu, at: At) -> Next {
    // SAFETY: `translate` pairs this handler with this payload.
    let insn = unsafe { &at.payload.fpsimd };
    crate::fpsimd::execute(insn, &mut cpu.regs);
    at.next(cpu)
}
