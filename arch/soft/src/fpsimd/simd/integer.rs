//! Lane-wise integer arithmetic, comparisons, bitwise operations and reductions, all of one element size. Shifts, widening
//! and narrowing are elsewhere.

use super::lane::{
    self, Lane, Operand, Whole, clamp, each_signed, each_unsigned, map1, map2, map3, reg, reg_mut, trim,
};
use super::{AcrossOp, Esize, LogicOp, MultiplyOp, PairwiseOp, ThreeSameOp, UnaryOp};
use crate::regs::Regs;

/// 8 for a 64-bit form, 16 for a 128-bit one.
#[inline(always)]
pub(super) fn active_bytes(q: bool) -> u8 {
    if q { 16 } else { 8 }
}

#[inline]
pub(super) fn logic(regs: &mut Regs, op: LogicOp, q: bool, rd: u8, rn: u8, rm: u8) {
    let (d, n, m) = (*reg(regs, rd), *reg(regs, rn), *reg(regs, rm));
    *reg_mut(regs, rd) = match op {
        LogicOp::And => n & m,
        LogicOp::Bic => n & !m,
        LogicOp::Orr => n | m,
        LogicOp::Orn => n | !m,
        LogicOp::Eor => n ^ m,
        LogicOp::Bsl => m ^ ((m ^ n) & d),
        LogicOp::Bit => d ^ ((d ^ n) & m),
        LogicOp::Bif => d ^ ((d ^ n) & !m),
    };
    trim(regs, rd, active_bytes(q));
}

pub(super) fn three_same(regs: &mut Regs, op: ThreeSameOp, size: Esize, bytes: u8, rd: u8, rn: u8, rm: u8) {
    let m = Whole(rm);
    match op {
        ThreeSameOp::Add => each_unsigned!(size, T => map2(regs, rd, rn, m, T::wrapping_add)),
        ThreeSameOp::Sub => each_unsigned!(size, T => map2(regs, rd, rn, m, T::wrapping_sub)),
        ThreeSameOp::Cmeq => each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| mask(x == y) as T)),
        ThreeSameOp::Cmtst => {
            each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| mask(x & y != 0) as T))
        }
        ThreeSameOp::Cmgt => each_signed!(size, T => map2(regs, rd, rn, m, |x: T, y| mask(x > y) as T)),
        ThreeSameOp::Cmge => each_signed!(size, T => map2(regs, rd, rn, m, |x: T, y| mask(x >= y) as T)),
        ThreeSameOp::Cmhi => each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| mask(x > y) as T)),
        ThreeSameOp::Cmhs => each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| mask(x >= y) as T)),
        ThreeSameOp::Smax => each_signed!(size, T => map2(regs, rd, rn, m, |x: T, y| x.max(y))),
        ThreeSameOp::Umax => each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| x.max(y))),
        ThreeSameOp::Smin => each_signed!(size, T => map2(regs, rd, rn, m, |x: T, y| x.min(y))),
        ThreeSameOp::Umin => each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| x.min(y))),
        ThreeSameOp::Pmul => map2(regs, rd, rn, m, |x: u8, y| polynomial_multiply_8(x, y) as u8),
        ThreeSameOp::Saba => each_signed!(size, T => map3(regs, rd, rn, m, |d: T, x, y| {
            d.wrapping_add(x.abs_diff(y) as T)
        })),
        ThreeSameOp::Uaba => each_unsigned!(size, T => map3(regs, rd, rn, m, |d: T, x, y| {
            d.wrapping_add(x.abs_diff(y))
        })),
        ThreeSameOp::Sabd => each_signed!(size, T => map2(regs, rd, rn, m, |x: T, y| x.abs_diff(y) as T)),
        ThreeSameOp::Uabd => each_unsigned!(size, T => map2(regs, rd, rn, m, T::abs_diff)),
        ThreeSameOp::Sqadd | ThreeSameOp::Uqadd | ThreeSameOp::Sqsub | ThreeSameOp::Uqsub => {
            saturating(regs, op, size, bytes, rd, rn, m);
        }
        _ => halving(regs, op, size, rd, rn, m),
    }
    trim(regs, rd, bytes);
}

/// All ones if the condition holds.
#[inline(always)]
fn mask(condition: bool) -> i64 {
    -i64::from(condition)
}

/// The halved sums and differences, without a wider type: `x + y = 2 (x & y) + (x ^ y) = 2 (x | y) - (x ^ y)` and
/// `x - y = (x ^ y) - 2 (!x & y)`.
fn halving(regs: &mut Regs, op: ThreeSameOp, size: Esize, rd: u8, rn: u8, m: Whole) {
    match op {
        ThreeSameOp::Shadd => each_signed!(size, T => map2(regs, rd, rn, m, |x: T, y| {
            (x & y).wrapping_add((x ^ y) >> 1)
        })),
        ThreeSameOp::Uhadd => each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| {
            (x & y).wrapping_add((x ^ y) >> 1)
        })),
        ThreeSameOp::Srhadd => each_signed!(size, T => map2(regs, rd, rn, m, |x: T, y| {
            (x | y).wrapping_sub((x ^ y) >> 1)
        })),
        ThreeSameOp::Urhadd => each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| {
            (x | y).wrapping_sub((x ^ y) >> 1)
        })),
        ThreeSameOp::Shsub => each_signed!(size, T => map2(regs, rd, rn, m, |x: T, y| {
            ((x ^ y) >> 1).wrapping_sub(!x & y)
        })),
        _ => each_unsigned!(size, T => map2(regs, rd, rn, m, |x: T, y| ((x ^ y) >> 1).wrapping_sub(!x & y))),
    }
}

fn saturating(regs: &mut Regs, op: ThreeSameOp, size: Esize, bytes: u8, rd: u8, rn: u8, m: Whole) {
    macro_rules! with {
        ($each:ident, $saturating:ident, $wrapping:ident) => {
            $each!(size, T => lane::saturating(regs, bytes, rd, rn, m, |_: T, x, y, saturated| {
                let result = x.$saturating(y);
                *saturated |= result != x.$wrapping(y);
                result
            }))
        };
    }
    match op {
        ThreeSameOp::Sqadd => with!(each_signed, saturating_add, wrapping_add),
        ThreeSameOp::Uqadd => with!(each_unsigned, saturating_add, wrapping_add),
        ThreeSameOp::Sqsub => with!(each_signed, saturating_sub, wrapping_sub),
        _ => with!(each_unsigned, saturating_sub, wrapping_sub),
    }
}

/// The product of two polynomials over {0, 1} (Arm ARM, PolynomialMult).
#[inline(always)]
pub(super) fn polynomial_multiply_8(x: u8, y: u8) -> u16 {
    (0..8).fold(0, |sum, bit| sum ^ ((u16::from(x) << bit) & u16::from(y >> bit & 1).wrapping_neg()))
}

/// Doubled product, upper half, of elements of 16 or 32 bits. `round` is half of the discarded unit, or zero.
#[inline(always)]
fn doubling_multiply_high(x: i64, y: i64, bits: u32, round: bool, saturated: &mut bool) -> i64 {
    let (min, max) = (-1 << (bits - 1), (1 << (bits - 1)) - 1);
    // Not doubled, so that the product of two minima fits: shifting right by one less is the same.
    let result = (x * y + (i64::from(round) << (bits - 2))) >> (bits - 1);
    *saturated |= result > max;
    result.clamp(min, max)
}

pub(super) fn multiply(
    regs: &mut Regs,
    op: MultiplyOp,
    size: Esize,
    bytes: u8,
    rd: u8,
    rn: u8,
    m: impl Operand,
) {
    match op {
        MultiplyOp::Mul => each_unsigned!(size, T => map2(regs, rd, rn, m, T::wrapping_mul)),
        MultiplyOp::Mla => each_unsigned!(size, T => map3(regs, rd, rn, m, |d: T, x, y| {
            d.wrapping_add(x.wrapping_mul(y))
        })),
        MultiplyOp::Mls => each_unsigned!(size, T => map3(regs, rd, rn, m, |d: T, x, y| {
            d.wrapping_sub(x.wrapping_mul(y))
        })),
        MultiplyOp::Sqdmulh | MultiplyOp::Sqrdmulh => {
            let round = op == MultiplyOp::Sqrdmulh;
            if size == Esize::H {
                lane::saturating(regs, bytes, rd, rn, m, |_: i16, x, y, saturated| {
                    doubling_multiply_high(x.into(), y.into(), 16, round, saturated) as i16
                });
            } else {
                lane::saturating(regs, bytes, rd, rn, m, |_: i32, x, y, saturated| {
                    doubling_multiply_high(x.into(), y.into(), 32, round, saturated) as i32
                });
            }
        }
    }
    trim(regs, rd, bytes);
}

pub(super) fn pairwise(regs: &mut Regs, op: PairwiseOp, size: Esize, q: bool, rd: u8, rn: u8, rm: u8) {
    match op {
        PairwiseOp::Addp => each_unsigned!(size, T => lane::pairwise(regs, q, rd, rn, rm, T::wrapping_add)),
        PairwiseOp::Smaxp => each_signed!(size, T => lane::pairwise(regs, q, rd, rn, rm, |x: T, y| x.max(y))),
        PairwiseOp::Umaxp => {
            each_unsigned!(size, T => lane::pairwise(regs, q, rd, rn, rm, |x: T, y| x.max(y)))
        }
        PairwiseOp::Sminp => each_signed!(size, T => lane::pairwise(regs, q, rd, rn, rm, |x: T, y| x.min(y))),
        PairwiseOp::Uminp => {
            each_unsigned!(size, T => lane::pairwise(regs, q, rd, rn, rm, |x: T, y| x.min(y)))
        }
    }
}

pub(super) fn addp_scalar(regs: &mut Regs, rd: u8, rn: u8) {
    let [low, high] = *<u64 as Lane<2>>::view(reg(regs, rn));
    *reg_mut(regs, rd) = u128::from(low.wrapping_add(high));
}

pub(super) fn unary(regs: &mut Regs, op: UnaryOp, size: Esize, bytes: u8, rd: u8, rn: u8) {
    match op {
        UnaryOp::Rev64 => match size {
            Esize::B => map1(regs, rd, rn, u64::swap_bytes),
            Esize::H => map1(regs, rd, rn, |x: u64| {
                let x = x.rotate_left(32);
                (x & 0x0000_ffff_0000_ffff) << 16 | (x >> 16 & 0x0000_ffff_0000_ffff)
            }),
            _ => map1(regs, rd, rn, |x: u64| x.rotate_left(32)),
        },
        UnaryOp::Rev32 => match size {
            Esize::B => map1(regs, rd, rn, u32::swap_bytes),
            _ => map1(regs, rd, rn, |x: u32| x.rotate_left(16)),
        },
        UnaryOp::Rev16 => map1(regs, rd, rn, u16::swap_bytes),
        UnaryOp::Cls => each_signed!(size, T => map1(regs, rd, rn, |x: T| {
            // Bits equal to the sign bit, without the sign bit itself.
            (i64::from(((x ^ (x >> 1)) & T::MAX).leading_zeros()) - 1) as T
        })),
        UnaryOp::Clz => {
            each_unsigned!(size, T => map1(regs, rd, rn, |x: T| u64::from(x.leading_zeros()) as T))
        }
        UnaryOp::Cnt => map1(regs, rd, rn, |x: u8| x.count_ones() as u8),
        UnaryOp::Not => map1(regs, rd, rn, |x: u64| !x),
        UnaryOp::Rbit => map1(regs, rd, rn, u8::reverse_bits),
        UnaryOp::Abs => each_signed!(size, T => map1(regs, rd, rn, T::wrapping_abs)),
        UnaryOp::Neg => each_signed!(size, T => map1(regs, rd, rn, T::wrapping_neg)),
        UnaryOp::CmgtZero => each_signed!(size, T => map1(regs, rd, rn, |x: T| mask(x > 0) as T)),
        UnaryOp::CmgeZero => each_signed!(size, T => map1(regs, rd, rn, |x: T| mask(x >= 0) as T)),
        UnaryOp::CmeqZero => each_signed!(size, T => map1(regs, rd, rn, |x: T| mask(x == 0) as T)),
        UnaryOp::CmleZero => each_signed!(size, T => map1(regs, rd, rn, |x: T| mask(x <= 0) as T)),
        UnaryOp::CmltZero => each_signed!(size, T => map1(regs, rd, rn, |x: T| mask(x < 0) as T)),
        _ => unary_saturating(regs, op, size, bytes, rd, rn),
    }
    trim(regs, rd, bytes);
}

fn unary_saturating(regs: &mut Regs, op: UnaryOp, size: Esize, bytes: u8, rd: u8, rn: u8) {
    macro_rules! with {
        ($each:ident, |$d:ident: $T:ident, $x:ident| $value:expr) => {
            $each!(size, $T => lane::saturating(regs, bytes, rd, rn, Whole(rn), |$d: $T, $x, _, saturated| {
                clamp($value, $T::MIN.into(), $T::MAX.into(), saturated) as $T
            }))
        };
    }
    match op {
        UnaryOp::Sqabs => with!(each_signed, |_d: T, x| i128::from(x).abs()),
        UnaryOp::Sqneg => with!(each_signed, |_d: T, x| -i128::from(x)),
        // An unsigned Vn is added to a signed Vd; in USQADD the other way round. Sign-changing casts keep the lane's width.
        UnaryOp::Suqadd => {
            with!(each_signed, |d: T, x| i128::from(d) + (i128::from(x) & ((1 << T::BITS) - 1)))
        }
        _ => with!(each_unsigned, |d: T, x| i128::from(d)
            + ((i128::from(x) << (128 - T::BITS)) >> (128 - T::BITS))),
    }
}

pub(super) fn across(regs: &mut Regs, op: AcrossOp, size: Esize, q: bool, rd: u8, rn: u8) {
    /// Reduces with `f`, and leaves the result alone in Vd.
    #[inline(always)]
    fn reduce<T: Lane<N>, const N: usize>(regs: &mut Regs, q: bool, rd: u8, rn: u8, f: impl Fn(T, T) -> T) {
        let n = *T::view(reg(regs, rn));
        let mut result = n[0];
        for &lane in &n[1..N / 2] {
            result = f(result, lane);
        }
        if q {
            for &lane in &n[N / 2..] {
                result = f(result, lane);
            }
        }
        *reg_mut(regs, rd) = 0;
        T::view_mut(reg_mut(regs, rd))[0] = result;
    }
    match op {
        AcrossOp::Addv => each_unsigned!(size, T => reduce(regs, q, rd, rn, T::wrapping_add)),
        AcrossOp::Smaxv => each_signed!(size, T => reduce(regs, q, rd, rn, |x: T, y| x.max(y))),
        AcrossOp::Umaxv => each_unsigned!(size, T => reduce(regs, q, rd, rn, |x: T, y| x.max(y))),
        AcrossOp::Sminv => each_signed!(size, T => reduce(regs, q, rd, rn, |x: T, y| x.min(y))),
        AcrossOp::Uminv => each_unsigned!(size, T => reduce(regs, q, rd, rn, |x: T, y| x.min(y))),
        AcrossOp::Saddlv | AcrossOp::Uaddlv => across_long(regs, op, size, q, rd, rn),
    }
}

/// SADDLV, UADDLV: the sum, of twice the element's width.
fn across_long(regs: &mut Regs, op: AcrossOp, size: Esize, q: bool, rd: u8, rn: u8) {
    macro_rules! sum {
        ($each:ident, $X:ident) => {
            $each!(size, T => {
                let lanes = T::view(reg(regs, rn));
                let count = if q { lanes.len() } else { lanes.len() / 2 };
                lanes[..count].iter().fold(0, |sum: $X, &x| sum.wrapping_add($X::from(x)))
            })
        };
    }
    let sum = if op == AcrossOp::Saddlv { sum!(each_signed, i64) as u64 } else { sum!(each_unsigned, u64) };
    *reg_mut(regs, rd) = u128::from(sum);
    trim(regs, rd, size.bytes().saturating_mul(2).min(8));
}
