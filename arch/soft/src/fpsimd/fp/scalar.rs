//! Instructions that exist only as scalars: those with general registers or flags, FCVT, FMADD and FCSEL. Everything that
//! also exists lane by lane is in `vector`, where a scalar is one lane.

use std::cmp::Ordering;

use super::convert::IntFormat;
use super::hostfloat::Arithmetic;
use super::softfloat::{Double, Env, Format, Half, Rounding, Single};
use super::{GprMove, Precision, arith, convert};
use crate::regs::Regs;

/// The flags of FPCompare, in PSTATE position.
const UNORDERED: u32 = 0b0011 << 28;
const EQUAL: u32 = 0b0110 << 28;
const LESS: u32 = 0b1000 << 28;
const GREATER: u32 = 0b0010 << 28;

/// FPCR and FPSR at the start of an instruction.
#[inline]
pub(super) fn env(regs: &Regs) -> Env {
    Env { fpcr: regs.fpcr, fpsr: regs.fpsr }
}

/// Register `n` (Vn).
#[inline]
pub(super) fn read(regs: &Regs, n: u8) -> u128 {
    regs.q[usize::from(n & 31)]
}

/// Sets register `n` (Vn).
#[inline]
pub(super) fn write(regs: &mut Regs, n: u8, value: u128) {
    regs.q[usize::from(n & 31)] = value;
}

/// The scalar of format `F` in register `n`.
#[inline]
fn operand<F: Format>(regs: &Regs, n: u8) -> u64 {
    read(regs, n) as u64 & F::MASK
}

/// Writes a scalar and zeroes the rest of the register.
#[inline]
fn write_scalar(regs: &mut Regs, n: u8, value: u64, env: Env) {
    write(regs, n, u128::from(value));
    regs.fpsr = env.fpsr;
}

/// The integer format of a general register.
pub(super) fn int_format(signed: bool, sf: bool, fbits: u8) -> IntFormat {
    IntFormat { signed, width: if sf { 64 } else { 32 }, fbits }
}

/// FMADD and kin. `registers` is Rd, Rn, Rm, Ra.
#[inline(never)]
pub(super) fn mul_add(
    regs: &mut Regs,
    negate_product: bool,
    negate_addend: bool,
    double: bool,
    registers: [u8; 4],
) {
    #[inline(never)]
    fn of<F: Arithmetic>(regs: &mut Regs, negate_product: bool, negate_addend: bool, registers: [u8; 4]) {
        let [rd, rn, rm, ra] = registers;
        let mut env = env(regs);
        let addend = operand::<F>(regs, ra) ^ F::zero(negate_addend);
        let factor = operand::<F>(regs, rn) ^ F::zero(negate_product);
        let value = arith::mul_add::<F>(addend, factor, operand::<F>(regs, rm), &mut env);
        write_scalar(regs, rd, value, env);
    }
    if double {
        of::<Double>(regs, negate_product, negate_addend, registers);
    } else {
        of::<Single>(regs, negate_product, negate_addend, registers);
    }
}

/// FCVTxS, FCVTxU, to a general register.
#[inline(never)]
pub(super) fn to_gpr(regs: &mut Regs, rounding: Rounding, to: IntFormat, double: bool, rd: u8, rn: u8) {
    let mut env = env(regs);
    let value = if double {
        convert::to_int::<Double>(operand::<Double>(regs, rn), to, rounding, &mut env)
    } else {
        convert::to_int::<Single>(operand::<Single>(regs, rn), to, rounding, &mut env)
    };
    regs.write_x(rd, value);
    regs.fpsr = env.fpsr;
}

/// SCVTF, UCVTF, from a general register.
#[inline(never)]
pub(super) fn from_gpr(regs: &mut Regs, from: IntFormat, double: bool, rd: u8, rn: u8) {
    let mut env = env(regs);
    let value = if double {
        convert::from_int::<Double>(regs.read_x(rn), from, &mut env)
    } else {
        convert::from_int::<Single>(regs.read_x(rn), from, &mut env)
    };
    write_scalar(regs, rd, value, env);
}

/// FMOV to a general register.
#[inline(never)]
pub(super) fn mov_to_gpr(regs: &mut Regs, part: GprMove, rd: u8, rn: u8) {
    let value = read(regs, rn);
    let value = match part {
        GprMove::Word => value as u64 & 0xffff_ffff,
        GprMove::Doubleword => value as u64,
        GprMove::TopHalf => (value >> 64) as u64,
    };
    regs.write_x(rd, value);
}

/// FMOV from a general register.
#[inline(never)]
pub(super) fn mov_from_gpr(regs: &mut Regs, part: GprMove, rd: u8, rn: u8) {
    let value = regs.read_x(rn);
    let value = match part {
        GprMove::Word => u128::from(value as u32),
        GprMove::Doubleword => u128::from(value),
        GprMove::TopHalf => u128::from(value) << 64 | u128::from(read(regs, rd) as u64),
    };
    write(regs, rd, value);
}

/// FCVT.
#[inline(never)]
pub(super) fn convert(regs: &mut Regs, from: Precision, to: Precision, rd: u8, rn: u8) {
    let mut env = env(regs);
    let rounding = env.rounding();
    let bits = read(regs, rn) as u64;
    let value = match from {
        Precision::Half => convert_to::<Half>(bits, to, rounding, &mut env),
        Precision::Single => convert_to::<Single>(bits, to, rounding, &mut env),
        Precision::Double => convert_to::<Double>(bits, to, rounding, &mut env),
    };
    write_scalar(regs, rd, value, env);
}

fn convert_to<A: Format>(bits: u64, to: Precision, rounding: Rounding, env: &mut Env) -> u64 {
    let bits = bits & A::MASK;
    match to {
        Precision::Half => convert::convert::<A, Half>(bits, rounding, env),
        Precision::Single => convert::convert::<A, Single>(bits, rounding, env),
        Precision::Double => convert::convert::<A, Double>(bits, rounding, env),
    }
}

/// FCVTXN, scalar.
#[inline(never)]
pub(super) fn convert_odd(regs: &mut Regs, rd: u8, rn: u8) {
    let mut env = env(regs);
    let value = convert::convert::<Double, Single>(operand::<Double>(regs, rn), Rounding::Odd, &mut env);
    write_scalar(regs, rd, value, env);
}

/// FCMP, FCMPE; without `rm`, with zero.
#[inline(never)]
pub(super) fn compare(regs: &mut Regs, signal: bool, double: bool, rn: u8, rm: Option<u8>) {
    fn of<F: Format>(regs: &Regs, signal: bool, rn: u8, rm: Option<u8>, env: &mut Env) -> Option<Ordering> {
        let second = rm.map_or(0, |rm| operand::<F>(regs, rm));
        arith::compare::<F>(operand::<F>(regs, rn), second, signal, env)
    }
    let mut env = env(regs);
    let order = if double {
        of::<Double>(regs, signal, rn, rm, &mut env)
    } else {
        of::<Single>(regs, signal, rn, rm, &mut env)
    };
    regs.flags.set_nzcv(match order {
        None => UNORDERED,
        Some(Ordering::Equal) => EQUAL,
        Some(Ordering::Less) => LESS,
        Some(Ordering::Greater) => GREATER,
    });
    regs.fpsr = env.fpsr;
}

/// FCSEL. `registers` is Rd, Rn, Rm.
#[inline(never)]
pub(super) fn select(regs: &mut Regs, double: bool, cond: u8, registers: [u8; 3]) {
    let [rd, rn, rm] = registers;
    let chosen = read(regs, if regs.flags.holds(cond) { rn } else { rm }) as u64;
    write(regs, rd, u128::from(if double { chosen } else { chosen & Single::MASK }));
}
