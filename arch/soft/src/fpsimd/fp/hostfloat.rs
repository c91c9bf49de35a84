//! The host's own arithmetic on raw bits, for the fast paths of `arith`. Which cases may take it is decided there.
//!
//! IEEE 754 fixes the result of these operations on normal operands to the bit, and every host rounds to nearest.

use super::softfloat::{Double, Format, Single};

/// A format in which this CPU (and the host) calculates.
pub(super) trait Arithmetic: Format {
    fn host_add(a: u64, b: u64) -> u64;
    fn host_sub(a: u64, b: u64) -> u64;
    fn host_mul(a: u64, b: u64) -> u64;
    fn host_div(a: u64, b: u64) -> u64;
    fn host_sqrt(a: u64) -> u64;
    /// `a * b + c`, rounded once.
    fn host_mul_add(a: u64, b: u64, c: u64) -> u64;
}

macro_rules! host_arithmetic {
    ($format:ty, $float:ty, $bits:ty) => {
        impl Arithmetic for $format {
            #[inline]
            fn host_add(a: u64, b: u64) -> u64 {
                u64::from((<$float>::from_bits(a as $bits) + <$float>::from_bits(b as $bits)).to_bits())
            }
            #[inline]
            fn host_sub(a: u64, b: u64) -> u64 {
                u64::from((<$float>::from_bits(a as $bits) - <$float>::from_bits(b as $bits)).to_bits())
            }
            #[inline]
            fn host_mul(a: u64, b: u64) -> u64 {
                u64::from((<$float>::from_bits(a as $bits) * <$float>::from_bits(b as $bits)).to_bits())
            }
            #[inline]
            fn host_div(a: u64, b: u64) -> u64 {
                u64::from((<$float>::from_bits(a as $bits) / <$float>::from_bits(b as $bits)).to_bits())
            }
            #[inline]
            fn host_sqrt(a: u64) -> u64 {
                u64::from(<$float>::from_bits(a as $bits).sqrt().to_bits())
            }
            #[inline]
            fn host_mul_add(a: u64, b: u64, c: u64) -> u64 {
                let (a, b, c) = (a as $bits, b as $bits, c as $bits);
                u64::from(
                    <$float>::from_bits(a).mul_add(<$float>::from_bits(b), <$float>::from_bits(c)).to_bits(),
                )
            }
        }
    };
}

host_arithmetic!(Single, f32, u32);
host_arithmetic!(Double, f64, u64);
