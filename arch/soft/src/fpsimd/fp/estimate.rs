//! Reciprocal and reciprocal square root estimates (FRECPE, FRSQRTE, URECPE, URSQRTE) and FRECPX.
//!
//! The architecture fixes these to the bit: the tables hold what RecipEstimate and RecipSqrtEstimate of Arm ARM J1.3 compute.

use super::softfloat::{DZC, Env, Format, IXC, OFC, UFC, flush_input, invalid, process_nan};

/// RecipEstimate(256..512) - 256.
static RECIP: [u8; 256] = recip_table();
/// RecipSqrtEstimate(128..512) - 256.
static RSQRT: [u8; 384] = rsqrt_table();

const fn recip_table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let a = (i as u32 + 256) * 2 + 1;
        let b = (1 << 19) / a;
        table[i] = (b.div_ceil(2) & 0xff) as u8;
        i += 1;
    }
    table
}

const fn rsqrt_table() -> [u8; 384] {
    let mut table = [0; 384];
    let mut i = 0;
    while i < 384 {
        let a = i as u32 + 128;
        let a = if a < 256 { a * 2 + 1 } else { ((a >> 1 << 1) + 1) * 2 };
        let mut b = 512;
        while a * (b + 1) * (b + 1) < 1 << 28 {
            b += 1;
        }
        table[i] = (u32::div_ceil(b, 2) & 0xff) as u8;
        i += 1;
    }
    table
}

/// The low eight bits of RecipEstimate(`a`), 256 <= `a` < 512; the ninth is one.
fn recip_entry(a: u64) -> u64 {
    u64::from(RECIP[(a & 0xff) as usize])
}

/// The low eight bits of RecipSqrtEstimate(`a`), 128 <= `a` < 512; the ninth is one.
fn rsqrt_entry(a: u64) -> u64 {
    u64::from(RSQRT[(a.wrapping_sub(128) as usize).min(RSQRT.len() - 1)])
}

/// The fraction with its highest bit at bit 51, whatever the format.
fn fraction<F: Format>(bits: u64) -> u64 {
    (bits & F::FRAC_MASK) << (52 - F::FRAC_BITS)
}

const FRACTION_MASK: u64 = (1 << 52) - 1;

/// FPRecipEstimate.
#[inline(never)]
pub(super) fn recip_estimate<F: Format>(a: u64, env: &mut Env) -> u64 {
    let a = flush_input::<F>(a, env);
    let sign_bit = a & F::SIGN;
    let magnitude = a & !F::SIGN;
    if F::is_nan(a) {
        return process_nan::<F>(a, env);
    }
    if magnitude == F::INFINITY {
        return sign_bit;
    }
    if magnitude == 0 {
        env.raise(DZC);
        return sign_bit | F::INFINITY;
    }
    // Below 2^(MIN_EXP - 2), the reciprocal overflows.
    if magnitude < 1 << (F::FRAC_BITS - 2) {
        env.raise(OFC | IXC);
        let to_infinity = env.rounding().overflows_to_infinity(sign_bit != 0);
        return sign_bit | if to_infinity { F::INFINITY } else { F::MAX_NORMAL };
    }
    let mut exp = F::exponent_field(a) as i64;
    // From 2^(BIAS - 1) on, the reciprocal is subnormal.
    if env.flush_to_zero() && exp >= 2 * i64::from(F::BIAS) - 1 {
        env.raise(UFC);
        return sign_bit;
    }
    let mut frac = fraction::<F>(a);
    if exp == 0 {
        if frac >> 51 == 0 {
            exp = -1;
            frac = frac << 2 & FRACTION_MASK;
        } else {
            frac = frac << 1 & FRACTION_MASK;
        }
    }
    let estimate = recip_entry(256 | frac >> 44) << 44;
    let (field, frac) = match 2 * i64::from(F::BIAS) - 1 - exp {
        0 => (0, 1 << 51 | estimate >> 1),
        -1 => (0, 1 << 50 | estimate >> 2),
        field => (field as u64, estimate),
    };
    sign_bit | field << F::FRAC_BITS | frac >> (52 - F::FRAC_BITS)
}

/// FPRSqrtEstimate.
#[inline(never)]
pub(super) fn rsqrt_estimate<F: Format>(a: u64, env: &mut Env) -> u64 {
    let a = flush_input::<F>(a, env);
    if F::is_nan(a) {
        return process_nan::<F>(a, env);
    }
    if F::is_zero(a) {
        env.raise(DZC);
        return a | F::INFINITY;
    }
    if a & F::SIGN != 0 {
        return invalid::<F>(env);
    }
    if a == F::INFINITY {
        return 0;
    }
    let mut exp = F::exponent_field(a) as i64;
    let mut frac = fraction::<F>(a);
    if exp == 0 {
        // `frac` is not zero: shift its highest bit out of the fraction.
        let shift = i64::from(frac.leading_zeros()) - 11;
        frac = frac << shift & FRACTION_MASK;
        exp = 1 - shift;
    }
    let scaled = if exp & 1 == 0 { 256 | frac >> 44 } else { 128 | frac >> 45 };
    let field = (3 * i64::from(F::BIAS) - 1 - exp) / 2;
    (field as u64) << F::FRAC_BITS | rsqrt_entry(scaled) << (F::FRAC_BITS - 8)
}

/// FPRecpX: the exponent inverted, for a later multiplication that must not overflow.
#[inline(never)]
pub(super) fn recip_exponent<F: Format>(a: u64, env: &mut Env) -> u64 {
    let flushed = flush_input::<F>(a, env);
    if F::is_nan(flushed) {
        return process_nan::<F>(flushed, env);
    }
    let field = F::exponent_field(a);
    let inverted = if field == 0 { F::EXP_MAX - 1 } else { F::EXP_MAX - field };
    a & F::SIGN | inverted << F::FRAC_BITS
}

/// UnsignedRecipEstimate, on the low 32 bits.
pub(super) fn unsigned_recip_estimate(a: u64) -> u64 {
    if a >> 31 & 1 == 0 { 0xffff_ffff } else { (256 | recip_entry(a >> 23 & 0x1ff)) << 23 }
}

/// UnsignedRSqrtEstimate, on the low 32 bits.
pub(super) fn unsigned_rsqrt_estimate(a: u64) -> u64 {
    if a >> 30 & 3 == 0 { 0xffff_ffff } else { (256 | rsqrt_entry(a >> 23 & 0x1ff)) << 23 }
}
