//! Addition, multiplication, division, square root, fused multiply-add, maximum and minimum, comparison. Conversions and
//! estimates are elsewhere.
//!
//! Each operation first tries the host's: if [`Env::host_rounds`], the operands are zero or normal and the result is normal
//! and cannot have been subnormal before rounding, then the result is the same and no flag can be due. The soft ways are kept
//! out of line: inlined, they would make every path save their registers.

use std::cmp::Ordering;

use super::hostfloat::Arithmetic;
use super::softfloat::{
    Class, DZC, Env, Format, IOC, Rounding, Unpacked, flush_input, invalid, process_nan, process_nans,
    round_pack, shift_right_jam, shift_right_jam_wide, unpack,
};

/// FPAdd.
#[inline]
pub(super) fn add<F: Arithmetic>(a: u64, b: u64, env: &mut Env) -> u64 {
    if env.host_rounds() && F::is_zero_or_normal(a) && F::is_zero_or_normal(b) {
        let sum = F::host_add(a, b);
        if F::is_zero_or_normal(sum) {
            return sum;
        }
    }
    soft_add::<F>(a, b, false, env)
}

/// FPSub.
#[inline]
pub(super) fn sub<F: Arithmetic>(a: u64, b: u64, env: &mut Env) -> u64 {
    if env.host_rounds() && F::is_zero_or_normal(a) && F::is_zero_or_normal(b) {
        let difference = F::host_sub(a, b);
        if F::is_zero_or_normal(difference) {
            return difference;
        }
    }
    soft_add::<F>(a, b, true, env)
}

/// FPMul.
#[inline]
pub(super) fn mul<F: Arithmetic>(a: u64, b: u64, env: &mut Env) -> u64 {
    if env.host_rounds() && F::is_zero_or_normal(a) && F::is_zero_or_normal(b) {
        let product = F::host_mul(a, b);
        if F::is_safely_normal(product) {
            return product;
        }
    }
    soft_mul::<F>(a, b, env).unwrap_or_else(|_| invalid::<F>(env))
}

/// FPMulX: as [`mul`], but zero times infinity is two.
#[inline]
pub(super) fn mulx<F: Arithmetic>(a: u64, b: u64, env: &mut Env) -> u64 {
    if env.host_rounds() && F::is_zero_or_normal(a) && F::is_zero_or_normal(b) {
        let product = F::host_mul(a, b);
        if F::is_safely_normal(product) {
            return product;
        }
    }
    soft_mul::<F>(a, b, env).unwrap_or_else(|ZeroTimesInfinity { sign }| F::zero(sign) | F::TWO)
}

/// FPDiv.
#[inline]
pub(super) fn div<F: Arithmetic>(a: u64, b: u64, env: &mut Env) -> u64 {
    if env.host_rounds() && F::is_normal(a) && F::is_normal(b) {
        let quotient = F::host_div(a, b);
        if F::is_safely_normal(quotient) {
            return quotient;
        }
    }
    soft_div::<F>(a, b, env)
}

/// FPSqrt.
#[inline]
pub(super) fn sqrt<F: Arithmetic>(a: u64, env: &mut Env) -> u64 {
    if env.host_rounds() && F::is_normal(a) && a & F::SIGN == 0 {
        return F::host_sqrt(a);
    }
    soft_sqrt::<F>(a, env)
}

/// FPMulAdd: `addend + a * b` with a single rounding.
#[inline]
pub(super) fn mul_add<F: Arithmetic>(addend: u64, a: u64, b: u64, env: &mut Env) -> u64 {
    if env.host_rounds() && F::is_zero_or_normal(addend) && F::is_zero_or_normal(a) && F::is_zero_or_normal(b)
    {
        let sum = F::host_mul_add(a, b, addend);
        if F::is_safely_normal(sum) {
            return sum;
        }
    }
    soft_mul_add::<F>(addend, a, b, env)
}

/// FPRecipStepFused: `2 - a * b`.
#[inline(never)]
pub(super) fn recip_step<F: Arithmetic>(a: u64, b: u64, env: &mut Env) -> u64 {
    fused_step::<F>(F::TWO, 0, F::TWO, a, b, env)
}

/// FPRSqrtStepFused: `(3 - a * b) / 2`.
#[inline(never)]
pub(super) fn rsqrt_step<F: Arithmetic>(a: u64, b: u64, env: &mut Env) -> u64 {
    fused_step::<F>(F::THREE, -1, F::ONE_POINT_FIVE, a, b, env)
}

#[inline(never)]
fn soft_add<F: Format>(a: u64, b: u64, negate_b: bool, env: &mut Env) -> u64 {
    let x = unpack::<F>(a, env);
    let mut y = unpack::<F>(b, env);
    if let Some(nan) = process_nans::<F, 2>([a, b], env) {
        return nan;
    }
    y.sign ^= negate_b;
    match (x.class, y.class) {
        (Class::Infinity, Class::Infinity) if x.sign != y.sign => invalid::<F>(env),
        (Class::Infinity, _) => F::infinity(x.sign),
        (_, Class::Infinity) => F::infinity(y.sign),
        (Class::Zero, Class::Zero) => F::zero(zero_sum_sign(x.sign, y.sign, env)),
        (Class::Zero, _) => F::zero(y.sign) | b & !F::SIGN,
        (_, Class::Zero) => a,
        _ => add_finite::<F>(x, y, env),
    }
}

/// The sign of an exact sum of two zeros, or (with differing signs) of any exact zero sum.
fn zero_sum_sign(a: bool, b: bool, env: &Env) -> bool {
    if a == b { a } else { env.rounding() == Rounding::NegInf }
}

fn add_finite<F: Format>(x: Unpacked, y: Unpacked, env: &mut Env) -> u64 {
    let (x, y) = if x.exp >= y.exp { (x, y) } else { (y, x) };
    // Two bits of room at the top: the low bits are zero in every format.
    let big = x.sig >> 2;
    let small = shift_right_jam(y.sig >> 2, (x.exp - y.exp) as u32);
    let (sign, sum) = if x.sign == y.sign {
        (x.sign, big + small)
    } else if big >= small {
        (x.sign, big - small)
    } else {
        (y.sign, small - big)
    };
    if sum == 0 {
        return F::zero(zero_sum_sign(x.sign, y.sign, env));
    }
    let shift = sum.leading_zeros();
    round_pack::<F>(sign, x.exp + 2 - shift as i32, sum << shift, env.rounding(), env)
}

/// The one product on which FPMul and FPMulX differ; `sign` is that of the product.
struct ZeroTimesInfinity {
    sign: bool,
}

#[inline(never)]
fn soft_mul<F: Format>(a: u64, b: u64, env: &mut Env) -> Result<u64, ZeroTimesInfinity> {
    let x = unpack::<F>(a, env);
    let y = unpack::<F>(b, env);
    if let Some(nan) = process_nans::<F, 2>([a, b], env) {
        return Ok(nan);
    }
    let sign = x.sign != y.sign;
    Ok(match (x.class, y.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => {
            return Err(ZeroTimesInfinity { sign });
        }
        (Class::Infinity, _) | (_, Class::Infinity) => F::infinity(sign),
        (Class::Zero, _) | (_, Class::Zero) => F::zero(sign),
        _ => {
            let product = u128::from(x.sig) * u128::from(y.sig);
            round_wide::<F>(sign, x.exp + y.exp + 1, product, env)
        }
    })
}

/// Rounds `sig * 2^(exp - 127)`, not yet normalized.
fn round_wide<F: Format>(sign: bool, exp: i32, sig: u128, env: &mut Env) -> u64 {
    let shift = sig.leading_zeros();
    let sig = sig << shift;
    let jammed = (sig >> 64) as u64 | u64::from(sig as u64 != 0);
    round_pack::<F>(sign, exp - shift as i32, jammed, env.rounding(), env)
}

#[inline(never)]
fn soft_div<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let x = unpack::<F>(a, env);
    let y = unpack::<F>(b, env);
    if let Some(nan) = process_nans::<F, 2>([a, b], env) {
        return nan;
    }
    let sign = x.sign != y.sign;
    match (x.class, y.class) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => invalid::<F>(env),
        (Class::Infinity, _) => F::infinity(sign),
        (_, Class::Zero) => {
            env.raise(DZC);
            F::infinity(sign)
        }
        (Class::Zero, _) | (_, Class::Infinity) => F::zero(sign),
        _ => {
            // Both significands have their top bit set, so the quotient has 63 or 64 bits.
            let dividend = u128::from(x.sig) << 63;
            let divisor = u128::from(y.sig);
            let quotient = (dividend / divisor) as u64 | u64::from(!dividend.is_multiple_of(divisor));
            let shift = quotient.leading_zeros();
            round_pack::<F>(sign, x.exp - y.exp - shift as i32, quotient << shift, env.rounding(), env)
        }
    }
}

#[inline(never)]
fn soft_sqrt<F: Format>(a: u64, env: &mut Env) -> u64 {
    let x = unpack::<F>(a, env);
    match x.class {
        Class::Quiet | Class::Signalling => process_nan::<F>(a, env),
        Class::Zero => F::zero(x.sign),
        _ if x.sign => invalid::<F>(env),
        Class::Infinity => F::INFINITY,
        Class::Finite => {
            // An even exponent, and the radicand as a fixed-point number with 126 bits of fraction.
            let odd = x.exp & 1;
            let radicand = u128::from(x.sig) << (63 + odd);
            let root = radicand.isqrt();
            let sig = root as u64 | u64::from(root * root != radicand);
            round_pack::<F>(false, (x.exp - odd) / 2, sig, env.rounding(), env)
        }
    }
}

#[inline(never)]
fn soft_mul_add<F: Format>(addend: u64, a: u64, b: u64, env: &mut Env) -> u64 {
    let z = unpack::<F>(addend, env);
    let x = unpack::<F>(a, env);
    let y = unpack::<F>(b, env);
    let bad_product = is_zero_times_infinity(&x, &y);
    if let Some(nan) = process_nans::<F, 3>([addend, a, b], env) {
        return if bad_product && z.class == Class::Quiet { invalid::<F>(env) } else { nan };
    }
    let sign = x.sign != y.sign;
    let infinite_product = x.class == Class::Infinity || y.class == Class::Infinity;
    let infinite_addend = z.class == Class::Infinity;
    if bad_product || infinite_product && infinite_addend && sign != z.sign {
        return invalid::<F>(env);
    }
    if infinite_product {
        return F::infinity(sign);
    }
    if infinite_addend {
        return F::infinity(z.sign);
    }
    add_product::<F>(z, x, y, 0, env)
}

fn is_zero_times_infinity(x: &Unpacked, y: &Unpacked) -> bool {
    matches!((x.class, y.class), (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity))
}

/// `(z + x * y) * 2^scale` for finite numbers and zeros.
fn add_product<F: Format>(z: Unpacked, x: Unpacked, y: Unpacked, scale: i32, env: &mut Env) -> u64 {
    let sign = x.sign != y.sign;
    if x.class == Class::Zero || y.class == Class::Zero {
        if z.class == Class::Zero {
            return F::zero(zero_sum_sign(z.sign, sign, env));
        }
        return round_pack::<F>(z.sign, z.exp + scale, z.sig, env.rounding(), env);
    }
    // Value is `product * 2^(exp - 126)`, and likewise for the addend.
    let product = u128::from(x.sig) * u128::from(y.sig);
    let exp = x.exp + y.exp;
    if z.class == Class::Zero {
        return round_wide::<F>(sign, exp + 1 + scale, product, env);
    }
    // Two bits of room at the top: the low bits of both are zero.
    let (mut product, mut addend) = (product >> 2, u128::from(z.sig) << 61);
    let top = exp.max(z.exp);
    product = shift_right_jam_wide(product, (top - exp) as u32);
    addend = shift_right_jam_wide(addend, (top - z.exp) as u32);
    let (sign, sum) = if sign == z.sign {
        (sign, product + addend)
    } else if product >= addend {
        (sign, product - addend)
    } else {
        (z.sign, addend - product)
    };
    if sum == 0 {
        return F::zero(env.rounding() == Rounding::NegInf);
    }
    round_wide::<F>(sign, top + 3 + scale, sum, env)
}

/// `(constant - a * b) * 2^scale`, where zero times infinity counts as zero: then the result is `otherwise`.
fn fused_step<F: Format>(constant: u64, scale: i32, otherwise: u64, a: u64, b: u64, env: &mut Env) -> u64 {
    // The negation comes first and so shows in the sign of a NaN.
    let a = a ^ F::SIGN;
    let x = unpack::<F>(a, env);
    let y = unpack::<F>(b, env);
    if let Some(nan) = process_nans::<F, 2>([a, b], env) {
        return nan;
    }
    if is_zero_times_infinity(&x, &y) {
        return otherwise;
    }
    if x.class == Class::Infinity || y.class == Class::Infinity {
        return F::infinity(x.sign != y.sign);
    }
    let z = unpack::<F>(constant, env);
    add_product::<F>(z, x, y, scale, env)
}

/// FPMax (`max`) and FPMin.
#[inline(never)]
pub(super) fn max_min<F: Format>(max: bool, a: u64, b: u64, env: &mut Env) -> u64 {
    let x = flush_input::<F>(a, env);
    let y = flush_input::<F>(b, env);
    if let Some(nan) = process_nans::<F, 2>([a, b], env) {
        return nan;
    }
    match order::<F>(x, y) {
        // Equal but for the sign of zero: plus zero is the greater.
        Ordering::Equal => {
            if max {
                x & y
            } else {
                x | y
            }
        }
        Ordering::Greater if max => x,
        Ordering::Less if !max => x,
        _ => y,
    }
}

/// FPMaxNum (`max`) and FPMinNum: a lone quiet NaN loses to a number.
#[inline(never)]
pub(super) fn max_min_num<F: Format>(max: bool, a: u64, b: u64, env: &mut Env) -> u64 {
    let quiet = |x| F::is_nan(x) && !F::is_signalling(x);
    let loser = F::infinity(max);
    match (quiet(a), quiet(b)) {
        (true, false) => max_min::<F>(max, loser, b, env),
        (false, true) => max_min::<F>(max, a, loser, env),
        _ => max_min::<F>(max, a, b, env),
    }
}

/// The order of two values that are not NaNs.
#[inline]
fn order<F: Format>(a: u64, b: u64) -> Ordering {
    if F::is_zero(a) && F::is_zero(b) {
        return Ordering::Equal;
    }
    let signed = |x: u64| {
        let magnitude = (x & !F::SIGN) as i64;
        if x & F::SIGN != 0 { -magnitude } else { magnitude }
    };
    signed(a).cmp(&signed(b))
}

/// Compares; `None` is unordered. A signalling NaN is an invalid operation, a quiet one only if `signal`.
#[inline]
pub(super) fn compare<F: Format>(a: u64, b: u64, signal: bool, env: &mut Env) -> Option<Ordering> {
    let x = flush_input::<F>(a, env);
    let y = flush_input::<F>(b, env);
    if F::is_nan(x) || F::is_nan(y) {
        if signal || F::is_signalling(x) || F::is_signalling(y) {
            env.raise(IOC);
        }
        return None;
    }
    Some(order::<F>(x, y))
}
