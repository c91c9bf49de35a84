//! Widening and narrowing arithmetic: results of twice or half the width of their sources. Shifts of this kind are elsewhere.

use super::integer::{active_bytes, polynomial_multiply_8};
use super::lane::{
    self, Lane, Operand, Part, Whole, clamp, each_signed_wide, each_unsigned_wide, lengthen,
    lengthen_saturating, narrow_saturating, reg, reg_mut, trim,
};
use super::{Esize, HighNarrowOp, LongMultiplyOp, LongOp, NarrowOp, PairwiseLongOp, WideOp};
use crate::regs::Regs;

pub(super) fn long(regs: &mut Regs, op: LongOp, size: Esize, high: bool, rd: u8, rn: u8, rm: u8) {
    macro_rules! with {
        ($each:ident, |$d:ident, $x:ident, $y:ident| $value:expr) => {
            $each!(size, T, W => lengthen(regs, high, rd, rn, Whole(rm), |$d: W, $x: T, $y: T| {
                let ($x, $y) = (W::from($x), W::from($y));
                $value
            }))
        };
    }
    match op {
        LongOp::Saddl => with!(each_signed_wide, |_d, x, y| x.wrapping_add(y)),
        LongOp::Uaddl => with!(each_unsigned_wide, |_d, x, y| x.wrapping_add(y)),
        LongOp::Ssubl => with!(each_signed_wide, |_d, x, y| x.wrapping_sub(y)),
        LongOp::Usubl => with!(each_unsigned_wide, |_d, x, y| x.wrapping_sub(y)),
        LongOp::Sabal => with!(each_signed_wide, |d, x, y| d.wrapping_add(x.wrapping_sub(y).wrapping_abs())),
        LongOp::Uabal => with!(each_unsigned_wide, |d, x, y| d.wrapping_add(x.abs_diff(y))),
        LongOp::Sabdl => with!(each_signed_wide, |_d, x, y| x.wrapping_sub(y).wrapping_abs()),
        LongOp::Uabdl => with!(each_unsigned_wide, |_d, x, y| x.abs_diff(y)),
        LongOp::Pmull => {
            lengthen(regs, high, rd, rn, Whole(rm), |_: u16, x: u8, y: u8| polynomial_multiply_8(x, y));
        }
    }
}

pub(super) fn multiply(
    regs: &mut Regs,
    op: LongMultiplyOp,
    size: Esize,
    part: Part,
    rd: u8,
    rn: u8,
    m: impl Operand,
) {
    let high = part == Part::High;
    macro_rules! with {
        ($each:ident, |$d:ident, $product:ident| $value:expr) => {
            $each!(size, T, W => lengthen(regs, high, rd, rn, m, |$d: W, x: T, y: T| {
                let $product = W::from(x).wrapping_mul(W::from(y));
                $value
            }))
        };
    }
    match op {
        LongMultiplyOp::Smull => with!(each_signed_wide, |_d, product| product),
        LongMultiplyOp::Umull => with!(each_unsigned_wide, |_d, product| product),
        LongMultiplyOp::Smlal => with!(each_signed_wide, |d, product| d.wrapping_add(product)),
        LongMultiplyOp::Umlal => with!(each_unsigned_wide, |d, product| d.wrapping_add(product)),
        LongMultiplyOp::Smlsl => with!(each_signed_wide, |d, product| d.wrapping_sub(product)),
        LongMultiplyOp::Umlsl => with!(each_unsigned_wide, |d, product| d.wrapping_sub(product)),
        LongMultiplyOp::Sqdmull | LongMultiplyOp::Sqdmlal | LongMultiplyOp::Sqdmlsl => {
            multiply_doubling(regs, op, size, part, rd, rn, m);
        }
    }
}

/// The doubling multiplications saturate twice: the doubled product, then the sum.
fn multiply_doubling(
    regs: &mut Regs,
    op: LongMultiplyOp,
    size: Esize,
    part: Part,
    rd: u8,
    rn: u8,
    m: impl Operand,
) {
    macro_rules! with {
        (|$d:ident, $product:ident| $value:expr) => {
            each_signed_wide!(size, T, W => {
                lengthen_saturating(regs, part, rd, rn, m, |$d: W, x: T, y: T, saturated| {
                    let (min, max) = (W::MIN.into(), W::MAX.into());
                    let $product = clamp(2 * i128::from(x) * i128::from(y), min, max, saturated);
                    let $d = i128::from($d);
                    clamp($value, min, max, saturated) as W
                })
            })
        };
    }
    match op {
        LongMultiplyOp::Sqdmlal => with!(|d, product| d + product),
        LongMultiplyOp::Sqdmlsl => with!(|d, product| d - product),
        _ => with!(|_d, product| product),
    }
}

pub(super) fn wide(regs: &mut Regs, op: WideOp, size: Esize, high: bool, rd: u8, rn: u8, rm: u8) {
    /// Every wide lane of Vd from that of Vn and the narrow one of a half of Vm.
    #[inline(always)]
    fn map<T: Lane<N>, W: Lane<M>, const N: usize, const M: usize>(
        regs: &mut Regs,
        high: bool,
        [rd, rn, rm]: [u8; 3],
        f: impl Fn(W, T) -> W,
    ) {
        let n = *W::view(reg(regs, rn));
        let m: [T; M] = Whole(rm).half(regs, high);
        let d = W::view_mut(reg_mut(regs, rd));
        for i in 0..M {
            d[i] = f(n[i], m[i]);
        }
    }
    let numbers = [rd, rn, rm];
    match op {
        WideOp::Saddw => each_signed_wide!(size, T, W => map(regs, high, numbers, |x: W, y: T| {
            x.wrapping_add(y.into())
        })),
        WideOp::Uaddw => each_unsigned_wide!(size, T, W => map(regs, high, numbers, |x: W, y: T| {
            x.wrapping_add(y.into())
        })),
        WideOp::Ssubw => each_signed_wide!(size, T, W => map(regs, high, numbers, |x: W, y: T| {
            x.wrapping_sub(y.into())
        })),
        WideOp::Usubw => each_unsigned_wide!(size, T, W => map(regs, high, numbers, |x: W, y: T| {
            x.wrapping_sub(y.into())
        })),
    }
}

pub(super) fn high_narrow(
    regs: &mut Regs,
    op: HighNarrowOp,
    size: Esize,
    high: bool,
    rd: u8,
    rn: u8,
    rm: u8,
) {
    macro_rules! with {
        ($combine:ident, $round:expr) => {
            each_unsigned_wide!(size, T, W => lane::narrow(regs, high, rd, rn, rm, |x: W, y: W| {
                let round: W = if $round { 1 << (T::BITS - 1) } else { 0 };
                (x.$combine(y).wrapping_add(round) >> T::BITS) as T
            }))
        };
    }
    match op {
        HighNarrowOp::Addhn => with!(wrapping_add, false),
        HighNarrowOp::Raddhn => with!(wrapping_add, true),
        HighNarrowOp::Subhn => with!(wrapping_sub, false),
        HighNarrowOp::Rsubhn => with!(wrapping_sub, true),
    }
}

pub(super) fn pmull64(regs: &mut Regs, high: bool, rd: u8, rn: u8, rm: u8) {
    let n = <u64 as Lane<2>>::view(reg(regs, rn))[usize::from(high)];
    let m = <u64 as Lane<2>>::view(reg(regs, rm))[usize::from(high)];
    *reg_mut(regs, rd) = polynomial_multiply_64(n, m);
}

/// The product of two polynomials over {0, 1}, by integer multiplications of every fourth bit: between two used bits there is room
/// for a sum of 15 partial products, whose lowest bit is what counts. Sixteen of them could only meet where all bits
/// of a quarter do, so the top four bits of one factor go separately.
fn polynomial_multiply_64(x: u64, y: u64) -> u128 {
    const QUARTER: u64 = 0x1111_1111_1111_1111;
    const QUARTER_WIDE: u128 = 0x1111_1111_1111_1111_1111_1111_1111_1111;
    let xs: [u128; 4] = std::array::from_fn(|i| u128::from(x & (QUARTER << i)));
    let ys: [u128; 4] = std::array::from_fn(|i| u128::from(y & (u64::MAX >> 4) & (QUARTER << i)));
    let mut product = 0;
    for residue in 0..4 {
        let sum = (0..4).fold(0, |sum, i| sum ^ xs[i].wrapping_mul(ys[(residue + 4 - i) % 4]));
        product |= sum & (QUARTER_WIDE << residue);
    }
    for bit in 60..64 {
        product ^= (u128::from(x) << bit) & u128::from(y >> bit & 1).wrapping_neg();
    }
    product
}

pub(super) fn pairwise_long(regs: &mut Regs, op: PairwiseLongOp, size: Esize, q: bool, rd: u8, rn: u8) {
    /// Every wide lane of Vd from its old value and two neighbours of Vn.
    #[inline(always)]
    fn map<T: Lane<N>, W: Lane<M>, const N: usize, const M: usize>(
        regs: &mut Regs,
        rd: u8,
        rn: u8,
        f: impl Fn(W, T, T) -> W,
    ) {
        let n = *T::view(reg(regs, rn));
        let d = W::view_mut(reg_mut(regs, rd));
        for i in 0..M {
            d[i] = f(d[i], n[2 * i], n[2 * i + 1]);
        }
    }
    macro_rules! with {
        ($each:ident, |$d:ident| $start:expr) => {
            $each!(size, T, W => map(regs, rd, rn, |$d: W, x: T, y: T| {
                W::from(x).wrapping_add(W::from(y)).wrapping_add($start)
            }))
        };
    }
    match op {
        PairwiseLongOp::Saddlp => with!(each_signed_wide, |_d| 0),
        PairwiseLongOp::Uaddlp => with!(each_unsigned_wide, |_d| 0),
        PairwiseLongOp::Sadalp => with!(each_signed_wide, |d| d),
        PairwiseLongOp::Uadalp => with!(each_unsigned_wide, |d| d),
    }
    trim(regs, rd, active_bytes(q));
}

pub(super) fn narrow(regs: &mut Regs, op: NarrowOp, size: Esize, part: Part, rd: u8, rn: u8) {
    macro_rules! saturating {
        ($each:ident, $T:ident in $min:expr, $max:expr) => {
            $each!(size, $T, W => narrow_saturating(regs, part, rd, rn, |x: W, saturated| {
                clamp(x.into(), $min, $max, saturated) as $T
            }))
        };
    }
    match op {
        NarrowOp::Xtn => each_unsigned_wide!(size, T, W => {
            lane::narrow(regs, part == Part::High, rd, rn, rn, |x: W, _: W| x as T)
        }),
        NarrowOp::Sqxtn => saturating!(each_signed_wide, T in T::MIN.into(), T::MAX.into()),
        NarrowOp::Uqxtn => saturating!(each_unsigned_wide, T in T::MIN.into(), T::MAX.into()),
        NarrowOp::Sqxtun => saturating!(each_signed_wide, T in 0, (1 << T::BITS) - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomial_product_agrees_with_the_definition() {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let factors: Vec<u64> = [0, 1, u64::MAX, 1 << 63]
            .into_iter()
            .chain((0..60).map(|_| {
                x = x.rotate_left(7).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ 0x1234_5678;
                x
            }))
            .collect();
        for &x in &factors {
            for &y in &factors {
                let expected =
                    (0..64).filter(|bit| y >> bit & 1 == 1).fold(0, |sum, bit| sum ^ u128::from(x) << bit);
                assert_eq!(polynomial_multiply_64(x, y), expected, "{x:#x} by {y:#x}");
            }
        }
    }
}
