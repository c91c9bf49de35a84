//! Shifts of lanes: by registers, by constants, widening and narrowing.

use super::lane::{
    self, Lane, Operand, Part, Whole, clamp, each_signed, each_signed_wide, each_unsigned,
    each_unsigned_wide, map1, map3, narrow_saturating, reg_mut, trim,
};
use super::{Esize, ShiftNarrowOp, ShiftOp, ShiftRegOp};
use crate::regs::Regs;

/// Shifts an element of at most 64 bits left (`count` positive) or right, without losing bits on the left. What no result
/// of 64 bits could show comes out as a power of two beyond them, so that it still saturates.
#[inline(always)]
fn shift_exact(value: i128, count: i32, round: bool) -> i128 {
    if count > 63 {
        value.signum() << 100
    } else if count >= 0 {
        value << count
    } else {
        let count = (-count).min(66);
        (value + (i128::from(round) << (count - 1))) >> count
    }
}

pub(super) fn by_register(regs: &mut Regs, op: ShiftRegOp, size: Esize, bytes: u8, rd: u8, rn: u8, rm: u8) {
    let m = Whole(rm);
    macro_rules! plain {
        ($each:ident, $round:expr) => {
            $each!(size, T => lane::saturating(regs, bytes, rd, rn, m, |_: T, x, y, _| {
                shift_exact(x.into(), i32::from(y as i8), $round) as T
            }))
        };
    }
    macro_rules! saturating {
        ($each:ident, $round:expr) => {
            $each!(size, T => lane::saturating(regs, bytes, rd, rn, m, |_: T, x, y, saturated| {
                clamp(shift_exact(x.into(), i32::from(y as i8), $round), T::MIN.into(), T::MAX.into(), saturated) as T
            }))
        };
    }
    match op {
        ShiftRegOp::Sshl => plain!(each_signed, false),
        ShiftRegOp::Ushl => plain!(each_unsigned, false),
        ShiftRegOp::Srshl => plain!(each_signed, true),
        ShiftRegOp::Urshl => plain!(each_unsigned, true),
        ShiftRegOp::Sqshl => saturating!(each_signed, false),
        ShiftRegOp::Uqshl => saturating!(each_unsigned, false),
        ShiftRegOp::Sqrshl => saturating!(each_signed, true),
        ShiftRegOp::Uqrshl => saturating!(each_unsigned, true),
    }
}

pub(super) fn by_immediate(regs: &mut Regs, op: ShiftOp, size: Esize, bytes: u8, shift: u8, rd: u8, rn: u8) {
    let n = Whole(rn);
    let shift = u32::from(shift);
    // Right shifts go up to the width of an element, where Rust's do not: split the last place off.
    let (most, last) = (shift.saturating_sub(1), 1);
    match op {
        ShiftOp::Sshr => each_signed!(size, T => map1(regs, rd, rn, |x: T| {
            x >> (most & (T::BITS - 1)) >> last
        })),
        ShiftOp::Ushr => each_unsigned!(size, T => map1(regs, rd, rn, |x: T| {
            x >> (most & (T::BITS - 1)) >> last
        })),
        ShiftOp::Ssra => each_signed!(size, T => map3(regs, rd, rn, n, |d: T, x, _| {
            d.wrapping_add(x >> (most & (T::BITS - 1)) >> last)
        })),
        ShiftOp::Usra => each_unsigned!(size, T => map3(regs, rd, rn, n, |d: T, x, _| {
            d.wrapping_add(x >> (most & (T::BITS - 1)) >> last)
        })),
        ShiftOp::Sri => each_unsigned!(size, T => map3(regs, rd, rn, n, |d: T, x, _| {
            let kept = !(T::MAX >> (most & (T::BITS - 1)) >> last);
            d & kept | x >> (most & (T::BITS - 1)) >> last
        })),
        ShiftOp::Shl => each_unsigned!(size, T => map1(regs, rd, rn, |x: T| x.wrapping_shl(shift))),
        ShiftOp::Sli => each_unsigned!(size, T => map3(regs, rd, rn, n, |d: T, x, _| {
            d & !T::MAX.wrapping_shl(shift) | x.wrapping_shl(shift)
        })),
        ShiftOp::Srshr => each_signed!(size, T => map1(regs, rd, rn, |x: T| {
            let x = x >> (most & (T::BITS - 1));
            (x >> last).wrapping_add(x & 1)
        })),
        ShiftOp::Urshr => each_unsigned!(size, T => map1(regs, rd, rn, |x: T| {
            let x = x >> (most & (T::BITS - 1));
            (x >> last).wrapping_add(x & 1)
        })),
        ShiftOp::Srsra => each_signed!(size, T => map3(regs, rd, rn, n, |d: T, x, _| {
            let x = x >> (most & (T::BITS - 1));
            d.wrapping_add(x >> last).wrapping_add(x & 1)
        })),
        ShiftOp::Ursra => each_unsigned!(size, T => map3(regs, rd, rn, n, |d: T, x, _| {
            let x = x >> (most & (T::BITS - 1));
            d.wrapping_add(x >> last).wrapping_add(x & 1)
        })),
        ShiftOp::Sqshl | ShiftOp::Uqshl | ShiftOp::Sqshlu => {
            by_immediate_saturating(regs, op, size, bytes, shift, rd, rn);
        }
    }
    trim(regs, rd, bytes);
}

fn by_immediate_saturating(regs: &mut Regs, op: ShiftOp, size: Esize, bytes: u8, shift: u32, rd: u8, rn: u8) {
    macro_rules! with {
        ($each:ident, $T:ident in $min:expr, $max:expr) => {
            $each!(size, $T => lane::saturating(regs, bytes, rd, rn, Whole(rn), |_: $T, x, _, saturated| {
                clamp(i128::from(x) << (shift & 63), $min, $max, saturated) as $T
            }))
        };
    }
    match op {
        ShiftOp::Sqshl => with!(each_signed, T in T::MIN.into(), T::MAX.into()),
        ShiftOp::Uqshl => with!(each_unsigned, T in T::MIN.into(), T::MAX.into()),
        _ => with!(each_signed, T in 0, (1 << T::BITS) - 1),
    }
}

pub(super) fn long(regs: &mut Regs, unsigned: bool, size: Esize, high: bool, shift: u8, rd: u8, rn: u8) {
    /// Every wide lane of Vd from the narrow one of a half of Vn.
    #[inline(always)]
    fn map<T: Lane<N>, W: Lane<M>, const N: usize, const M: usize>(
        regs: &mut Regs,
        high: bool,
        rd: u8,
        rn: u8,
        f: impl Fn(T) -> W,
    ) {
        let n: [T; M] = Whole(rn).half(regs, high);
        let d = W::view_mut(reg_mut(regs, rd));
        for i in 0..M {
            d[i] = f(n[i]);
        }
    }
    let shift = u32::from(shift);
    if unsigned {
        each_unsigned_wide!(size, T, W => map(regs, high, rd, rn, |x: T| W::from(x).wrapping_shl(shift)));
    } else {
        each_signed_wide!(size, T, W => map(regs, high, rd, rn, |x: T| W::from(x).wrapping_shl(shift)));
    }
}

pub(super) fn narrow(regs: &mut Regs, op: ShiftNarrowOp, size: Esize, part: Part, shift: u8, rd: u8, rn: u8) {
    let high = part == Part::High;
    let shift = u32::from(shift);
    match op {
        ShiftNarrowOp::Shrn => each_unsigned_wide!(size, T, W => {
            lane::narrow(regs, high, rd, rn, rn, |x: W, _: W| x.wrapping_shr(shift) as T)
        }),
        ShiftNarrowOp::Rshrn => each_unsigned_wide!(size, T, W => {
            let round = W::from(true).wrapping_shl(shift.wrapping_sub(1));
            lane::narrow(regs, high, rd, rn, rn, |x: W, _: W| x.wrapping_add(round).wrapping_shr(shift) as T)
        }),
        _ => narrow_clamped(regs, op, size, part, shift, rd, rn),
    }
}

fn narrow_clamped(regs: &mut Regs, op: ShiftNarrowOp, size: Esize, part: Part, shift: u32, rd: u8, rn: u8) {
    let count = -(shift.min(64) as i32);
    macro_rules! same {
        ($each:ident, $round:expr) => {
            $each!(size, T, W => narrow_saturating(regs, part, rd, rn, |x: W, saturated| {
                clamp(shift_exact(x.into(), count, $round), T::MIN.into(), T::MAX.into(), saturated) as T
            }))
        };
    }
    macro_rules! to_unsigned {
        ($round:expr) => {
            each_signed_wide!(size, T, W => narrow_saturating(regs, part, rd, rn, |x: W, saturated| {
                clamp(shift_exact(x.into(), count, $round), 0, (1 << T::BITS) - 1, saturated) as T
            }))
        };
    }
    match op {
        ShiftNarrowOp::Sqshrn => same!(each_signed_wide, false),
        ShiftNarrowOp::Uqshrn => same!(each_unsigned_wide, false),
        ShiftNarrowOp::Sqrshrn => same!(each_signed_wide, true),
        ShiftNarrowOp::Uqrshrn => same!(each_unsigned_wide, true),
        ShiftNarrowOp::Sqshrun => to_unsigned!(false),
        _ => to_unsigned!(true),
    }
}
