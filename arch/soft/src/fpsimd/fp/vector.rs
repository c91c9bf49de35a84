//! Instructions that work lane by lane, on one lane (scalars) or several; pairwise, across lanes, widening and narrowing.
//!
//! Each is a function of its own that is not inlined, so that the cheap ones do not pay for the registers and the stack that
//! the dear ones need.

use std::cmp::Ordering;

use super::convert::IntFormat;
use super::hostfloat::Arithmetic;
use super::scalar::{env, read, write};
use super::softfloat::{Double, Env, Format, Half, Rounding, Single};
use super::{BinaryOp, ElementOp, Shape, UnaryOp, arith, convert, estimate};
use crate::regs::Regs;

/// Calls a function of format and lane count with those of a shape.
macro_rules! with_shape {
    ($shape:expr, $function:ident($($argument:expr),*)) => {
        match $shape {
            Shape::S => $function::<Single, 1>($($argument),*),
            Shape::D => $function::<Double, 1>($($argument),*),
            Shape::V2S => $function::<Single, 2>($($argument),*),
            Shape::V4S => $function::<Single, 4>($($argument),*),
            Shape::V2D => $function::<Double, 2>($($argument),*),
        }
    };
}

#[inline]
fn lane<F: Format>(value: u128, index: usize) -> u64 {
    (value >> (index as u32 * F::BITS)) as u64 & F::MASK
}

/// A register whose lane `i` is `f(i)`, zero above.
#[inline]
fn build<F: Format, const N: usize>(mut f: impl FnMut(usize) -> u64) -> u128 {
    let mut value = 0;
    for index in 0..N {
        value |= u128::from(f(index)) << (index as u32 * F::BITS);
    }
    value
}

/// A lane of all ones or all zeroes.
#[inline]
fn mask<F: Format>(set: bool) -> u64 {
    if set { F::MASK } else { 0 }
}

#[inline]
fn binary_lane<F: Arithmetic>(op: BinaryOp, a: u64, b: u64, env: &mut Env) -> u64 {
    match op {
        BinaryOp::Add => arith::add::<F>(a, b, env),
        BinaryOp::Sub => arith::sub::<F>(a, b, env),
        BinaryOp::Mul => arith::mul::<F>(a, b, env),
        BinaryOp::Div => arith::div::<F>(a, b, env),
        BinaryOp::Max => arith::max_min::<F>(true, a, b, env),
        BinaryOp::Min => arith::max_min::<F>(false, a, b, env),
        BinaryOp::MaxNum => arith::max_min_num::<F>(true, a, b, env),
        BinaryOp::MinNum => arith::max_min_num::<F>(false, a, b, env),
        BinaryOp::NegMul => arith::mul::<F>(a, b, env) ^ F::SIGN,
        BinaryOp::MulX => arith::mulx::<F>(a, b, env),
        BinaryOp::AbsDiff => arith::sub::<F>(a, b, env) & !F::SIGN,
        BinaryOp::RecipStep => arith::recip_step::<F>(a, b, env),
        BinaryOp::RsqrtStep => arith::rsqrt_step::<F>(a, b, env),
        BinaryOp::Eq => compare_lane::<F>(a, b, false, Ordering::is_eq, env),
        BinaryOp::Ge => compare_lane::<F>(a, b, true, Ordering::is_ge, env),
        BinaryOp::Gt => compare_lane::<F>(a, b, true, Ordering::is_gt, env),
        BinaryOp::AbsGe => compare_lane::<F>(a & !F::SIGN, b & !F::SIGN, true, Ordering::is_ge, env),
        BinaryOp::AbsGt => compare_lane::<F>(a & !F::SIGN, b & !F::SIGN, true, Ordering::is_gt, env),
    }
}

#[inline]
fn compare_lane<F: Format>(a: u64, b: u64, signal: bool, holds: fn(Ordering) -> bool, env: &mut Env) -> u64 {
    mask::<F>(arith::compare::<F>(a, b, signal, env).is_some_and(holds))
}

#[inline]
fn unary_lane<F: Arithmetic>(op: UnaryOp, a: u64, env: &mut Env) -> u64 {
    match op {
        UnaryOp::Mov => a,
        UnaryOp::Abs => a & !F::SIGN,
        UnaryOp::Neg => a ^ F::SIGN,
        UnaryOp::Sqrt => arith::sqrt::<F>(a, env),
        UnaryOp::RoundTieEven => convert::round_to_int::<F>(a, Rounding::TieEven, false, env),
        UnaryOp::RoundPosInf => convert::round_to_int::<F>(a, Rounding::PosInf, false, env),
        UnaryOp::RoundNegInf => convert::round_to_int::<F>(a, Rounding::NegInf, false, env),
        UnaryOp::RoundZero => convert::round_to_int::<F>(a, Rounding::Zero, false, env),
        UnaryOp::RoundTieAway => convert::round_to_int::<F>(a, Rounding::TieAway, false, env),
        UnaryOp::RoundExact => convert::round_to_int::<F>(a, env.rounding(), true, env),
        UnaryOp::RoundCurrent => convert::round_to_int::<F>(a, env.rounding(), false, env),
        UnaryOp::EqZero => compare_lane::<F>(a, 0, false, Ordering::is_eq, env),
        UnaryOp::GeZero => compare_lane::<F>(a, 0, true, Ordering::is_ge, env),
        UnaryOp::GtZero => compare_lane::<F>(a, 0, true, Ordering::is_gt, env),
        UnaryOp::LeZero => compare_lane::<F>(a, 0, true, Ordering::is_le, env),
        UnaryOp::LtZero => compare_lane::<F>(a, 0, true, Ordering::is_lt, env),
        UnaryOp::RecipEstimate => estimate::recip_estimate::<F>(a, env),
        UnaryOp::RsqrtEstimate => estimate::rsqrt_estimate::<F>(a, env),
        UnaryOp::RecipExponent => estimate::recip_exponent::<F>(a, env),
        UnaryOp::UnsignedRecipEstimate => estimate::unsigned_recip_estimate(a),
        UnaryOp::UnsignedRsqrtEstimate => estimate::unsigned_rsqrt_estimate(a),
    }
}

/// One operand, lane by lane.
#[inline(never)]
pub(super) fn unary(regs: &mut Regs, op: UnaryOp, shape: Shape, rd: u8, rn: u8) {
    fn of<F: Arithmetic, const N: usize>(op: UnaryOp, n: u128, env: &mut Env) -> u128 {
        build::<F, N>(|i| unary_lane::<F>(op, lane::<F>(n, i), env))
    }
    let mut env = env(regs);
    let value = with_shape!(shape, of(op, read(regs, rn), &mut env));
    finish(regs, rd, value, env);
}

#[inline]
fn finish(regs: &mut Regs, rd: u8, value: u128, env: Env) {
    write(regs, rd, value);
    regs.fpsr = env.fpsr;
}

/// Two operands, lane by lane. `registers` is Rd, Rn, Rm, here and below.
#[inline(never)]
pub(super) fn binary(regs: &mut Regs, op: BinaryOp, shape: Shape, registers: [u8; 3]) {
    #[inline(never)]
    fn of<F: Arithmetic, const N: usize>(regs: &mut Regs, op: BinaryOp, registers: [u8; 3]) {
        let [rd, rn, rm] = registers;
        let (n, m) = (read(regs, rn), read(regs, rm));
        let mut env = env(regs);
        let value = build::<F, N>(|i| binary_lane::<F>(op, lane::<F>(n, i), lane::<F>(m, i), &mut env));
        finish(regs, rd, value, env);
    }
    with_shape!(shape, of(regs, op, registers));
}

/// Adjacent lanes of the concatenation of Rm and Rn.
#[inline(never)]
pub(super) fn pairwise(regs: &mut Regs, op: BinaryOp, shape: Shape, registers: [u8; 3]) {
    fn of<F: Arithmetic, const N: usize>(op: BinaryOp, n: u128, m: u128, env: &mut Env) -> u128 {
        let pick = |i: usize| if i < N { lane::<F>(n, i) } else { lane::<F>(m, i - N) };
        build::<F, N>(|i| binary_lane::<F>(op, pick(2 * i), pick(2 * i + 1), env))
    }
    let [rd, rn, rm] = registers;
    let mut env = env(regs);
    let value = with_shape!(shape, of(op, read(regs, rn), read(regs, rm), &mut env));
    finish(regs, rd, value, env);
}

/// All lanes to one. The order (neighbours first, then the halves) decides which NaN survives.
#[inline(never)]
pub(super) fn reduce(regs: &mut Regs, op: BinaryOp, shape: Shape, rd: u8, rn: u8) {
    fn of<F: Arithmetic, const N: usize>(op: BinaryOp, n: u128, env: &mut Env) -> u64 {
        let mut pair = |a, b| binary_lane::<F>(op, a, b, env);
        let low = if N == 1 { lane::<F>(n, 0) } else { pair(lane::<F>(n, 0), lane::<F>(n, 1)) };
        if N < 4 {
            return low;
        }
        let high = pair(lane::<F>(n, 2), lane::<F>(n, 3));
        pair(low, high)
    }
    let mut env = env(regs);
    let value = with_shape!(shape, of(op, read(regs, rn), &mut env));
    finish(regs, rd, u128::from(value), env);
}

/// FMLA, FMLS (`sub`).
#[inline(never)]
pub(super) fn accumulate(regs: &mut Regs, sub: bool, shape: Shape, registers: [u8; 3]) {
    fn of<F: Arithmetic, const N: usize>(sub: bool, d: u128, n: u128, m: u128, env: &mut Env) -> u128 {
        let flip = F::zero(sub);
        build::<F, N>(|i| arith::mul_add::<F>(lane::<F>(d, i), lane::<F>(n, i) ^ flip, lane::<F>(m, i), env))
    }
    let [rd, rn, rm] = registers;
    let mut env = env(regs);
    let value = with_shape!(shape, of(sub, read(regs, rd), read(regs, rn), read(regs, rm), &mut env));
    finish(regs, rd, value, env);
}

/// By element `index` of Rm.
#[inline(never)]
pub(super) fn element(regs: &mut Regs, op: ElementOp, shape: Shape, registers: [u8; 3], index: u8) {
    fn of<F: Arithmetic, const N: usize>(
        op: ElementOp,
        operands: [u128; 3],
        index: u8,
        env: &mut Env,
    ) -> u128 {
        let [d, n, m] = operands;
        let b = lane::<F>(m, usize::from(index));
        build::<F, N>(|i| {
            let a = lane::<F>(n, i);
            match op {
                ElementOp::MulAdd => arith::mul_add::<F>(lane::<F>(d, i), a, b, env),
                ElementOp::MulSub => arith::mul_add::<F>(lane::<F>(d, i), a ^ F::SIGN, b, env),
                ElementOp::Mul => arith::mul::<F>(a, b, env),
                ElementOp::MulX => arith::mulx::<F>(a, b, env),
            }
        })
    }
    let [rd, rn, rm] = registers;
    let mut env = env(regs);
    let operands = [read(regs, rd), read(regs, rn), read(regs, rm)];
    let value = with_shape!(shape, of(op, operands, index, &mut env));
    finish(regs, rd, value, env);
}

/// FCVTxS, FCVTxU. `registers` is Rd, Rn.
#[inline(never)]
pub(super) fn to_int(
    regs: &mut Regs,
    rounding: Rounding,
    signed: bool,
    fbits: u8,
    shape: Shape,
    registers: [u8; 2],
) {
    fn of<F: Arithmetic, const N: usize>(
        rounding: Rounding,
        signed: bool,
        fbits: u8,
        n: u128,
        env: &mut Env,
    ) -> u128 {
        let to = IntFormat { signed, width: F::BITS as u8, fbits };
        build::<F, N>(|i| convert::to_int::<F>(lane::<F>(n, i), to, rounding, env))
    }
    let [rd, rn] = registers;
    let mut env = env(regs);
    let value = with_shape!(shape, of(rounding, signed, fbits, read(regs, rn), &mut env));
    finish(regs, rd, value, env);
}

/// SCVTF, UCVTF. `registers` is Rd, Rn.
#[inline(never)]
pub(super) fn from_int(regs: &mut Regs, signed: bool, fbits: u8, shape: Shape, registers: [u8; 2]) {
    fn of<F: Arithmetic, const N: usize>(signed: bool, fbits: u8, n: u128, env: &mut Env) -> u128 {
        let from = IntFormat { signed, width: F::BITS as u8, fbits };
        build::<F, N>(|i| convert::from_int::<F>(lane::<F>(n, i), from, env))
    }
    let [rd, rn] = registers;
    let mut env = env(regs);
    let value = with_shape!(shape, of(signed, fbits, read(regs, rn), &mut env));
    finish(regs, rd, value, env);
}

/// FCVTL, FCVTL2.
#[inline(never)]
pub(super) fn widen(regs: &mut Regs, double: bool, high: bool, rd: u8, rn: u8) {
    let mut env = env(regs);
    let rounding = env.rounding();
    let half = read(regs, rn) >> if high { 64 } else { 0 };
    let value = if double {
        build::<Double, 2>(|i| {
            convert::convert::<Single, Double>(lane::<Single>(half, i), rounding, &mut env)
        })
    } else {
        build::<Single, 4>(|i| convert::convert::<Half, Single>(lane::<Half>(half, i), rounding, &mut env))
    };
    finish(regs, rd, value, env);
}

/// FCVTN, FCVTXN, and their second-part forms (`high`), which keep the low half of Rd. `registers` is Rd, Rn.
#[inline(never)]
pub(super) fn narrow(regs: &mut Regs, double: bool, high: bool, odd: bool, registers: [u8; 2]) {
    let [rd, rn] = registers;
    let mut env = env(regs);
    let rounding = if odd { Rounding::Odd } else { env.rounding() };
    let n = read(regs, rn);
    let half = if double {
        build::<Single, 2>(|i| convert::convert::<Double, Single>(lane::<Double>(n, i), rounding, &mut env))
    } else {
        build::<Half, 4>(|i| convert::convert::<Single, Half>(lane::<Single>(n, i), rounding, &mut env))
    };
    let value = if high { half << 64 | u128::from(read(regs, rd) as u64) } else { half };
    finish(regs, rd, value, env);
}

/// FMOV (immediate): VFPExpandImm to every lane.
#[inline(never)]
pub(super) fn mov_imm(regs: &mut Regs, shape: Shape, rd: u8, imm8: u8) {
    fn of<F: Arithmetic, const N: usize>(imm8: u8) -> u128 {
        let imm = u64::from(imm8);
        let b = imm >> 6 & 1;
        // Sign, NOT(b), b replicated, cd, efgh: the exponent is -3 to 4.
        let replicated = if b == 1 { (1 << (F::EXP_BITS - 3)) - 1 } else { 0 };
        let exp = (b ^ 1) << (F::EXP_BITS - 1) | replicated << 2 | imm >> 4 & 3;
        let bits = F::zero(imm >> 7 == 1) | exp << F::FRAC_BITS | (imm & 0xf) << (F::FRAC_BITS - 4);
        build::<F, N>(|_| bits)
    }
    let value = with_shape!(shape, of(imm8));
    write(regs, rd, value);
}
