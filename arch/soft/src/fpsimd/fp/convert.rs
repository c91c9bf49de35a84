//! Conversions: between formats, to and from integers and fixed point, and rounding to an integral value.

use super::softfloat::{Class, Env, Format, IOC, IXC, Rounding, process_nan, round_pack, unpack};

/// Splits `sig * 2^-shift` into its integer part and its fraction, top-aligned, whose lowest bit may stand for anything below.
#[inline]
fn split(sig: u64, shift: u32) -> (u64, u64) {
    match shift {
        0 => (sig, 0),
        1..64 => (sig >> shift, sig << (64 - shift)),
        64 => (0, sig),
        _ => (0, 1),
    }
}

/// FPRoundInt: to an integral value in the same format. Only FRINTX (`exact`) tells of inexactness.
#[inline(never)]
pub(super) fn round_to_int<F: Format>(a: u64, rounding: Rounding, exact: bool, env: &mut Env) -> u64 {
    let x = unpack::<F>(a, env);
    match x.class {
        Class::Quiet | Class::Signalling => process_nan::<F>(a, env),
        Class::Infinity => a,
        Class::Zero => F::zero(x.sign),
        Class::Finite if x.exp >= F::FRAC_BITS as i32 => a,
        Class::Finite => {
            let (whole, rest) = split(x.sig, (63 - x.exp) as u32);
            if exact && rest != 0 {
                env.raise(IXC);
            }
            let whole = whole + u64::from(rounding.rounds_up(x.sign, whole & 1 == 1, rest));
            from_magnitude::<F>(x.sign, whole, 0, env)
        }
    }
}

/// FPToFixed: `a * 2^fbits` as an integer of `width` bits, saturated.
#[inline(never)]
pub(super) fn to_int<F: Format>(a: u64, to: IntFormat, rounding: Rounding, env: &mut Env) -> u64 {
    let x = unpack::<F>(a, env);
    let exp = x.exp + i32::from(to.fbits);
    let (magnitude, rest) = match x.class {
        Class::Quiet | Class::Signalling => {
            env.raise(IOC);
            return 0;
        }
        Class::Zero => return 0,
        Class::Infinity => (u128::MAX, 0),
        Class::Finite if exp > 64 => (u128::MAX, 0),
        Class::Finite if exp >= 63 => (u128::from(x.sig) << (exp - 63), 0),
        Class::Finite => {
            let (whole, rest) = split(x.sig, (63 - exp) as u32);
            let up = rounding.rounds_up(x.sign, whole & 1 == 1, rest);
            (u128::from(whole) + u128::from(up), rest)
        }
    };
    let limit = match (to.signed, x.sign) {
        (true, false) => (1 << (to.width - 1)) - 1,
        (true, true) => 1 << (to.width - 1),
        (false, false) => (1 << to.width) - 1,
        (false, true) => 0u128,
    };
    if magnitude > limit {
        env.raise(IOC);
    } else if rest != 0 {
        env.raise(IXC);
    }
    let magnitude = magnitude.min(limit) as u64;
    let value = if x.sign { magnitude.wrapping_neg() } else { magnitude };
    value & (u64::MAX >> (64 - u32::from(to.width)))
}

/// FixedToFP: an integer of `width` bits, divided by `2^fbits`.
#[inline(never)]
pub(super) fn from_int<F: Format>(value: u64, from: IntFormat, env: &mut Env) -> u64 {
    let unused = 64 - u32::from(from.width);
    let value = value << unused;
    let negative = from.signed && value >> 63 == 1;
    let magnitude = if negative { ((value as i64) >> unused).unsigned_abs() } else { value >> unused };
    from_magnitude::<F>(negative, magnitude, from.fbits, env)
}

fn from_magnitude<F: Format>(sign: bool, magnitude: u64, fbits: u8, env: &mut Env) -> u64 {
    if magnitude == 0 {
        return F::zero(sign);
    }
    let shift = magnitude.leading_zeros();
    round_pack::<F>(sign, 63 - shift as i32 - i32::from(fbits), magnitude << shift, env.rounding(), env)
}

/// An integer or fixed-point format.
#[derive(Debug, Clone, Copy)]
pub(super) struct IntFormat {
    pub(super) signed: bool,
    /// 32 or 64.
    pub(super) width: u8,
    /// Fraction bits, 0 to 64.
    pub(super) fbits: u8,
}

/// FPConvert: from format `A` to format `B`.
#[inline(never)]
pub(super) fn convert<A: Format, B: Format>(a: u64, rounding: Rounding, env: &mut Env) -> u64 {
    let x = unpack::<A>(a, env);
    let alternative = B::HALF && env.alternative_half();
    match x.class {
        Class::Quiet | Class::Signalling => {
            if alternative || x.class == Class::Signalling {
                env.raise(IOC);
            }
            if alternative {
                // The alternative format has no NaNs.
                B::zero(x.sign)
            } else if env.default_nan() {
                B::DEFAULT_NAN
            } else {
                convert_nan::<A, B>(a)
            }
        }
        Class::Infinity if alternative => {
            env.raise(IOC);
            B::zero(x.sign) | (B::SIGN - 1)
        }
        Class::Infinity => B::infinity(x.sign),
        Class::Zero => B::zero(x.sign),
        Class::Finite => round_pack::<B>(x.sign, x.exp, x.sig, rounding, env),
    }
}

/// FPConvertNaN: the top fraction bits survive, and the result is quiet.
fn convert_nan<A: Format, B: Format>(a: u64) -> u64 {
    let aligned = (a & A::FRAC_MASK) << (63 - A::FRAC_BITS);
    B::DEFAULT_NAN | B::zero(a & A::SIGN != 0) | aligned >> (63 - B::FRAC_BITS)
}
