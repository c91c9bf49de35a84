//! The ground of the software floating point: formats, FPCR and FPSR, unpacking, NaNs and the one place that rounds.
//! The operations themselves are in `arith`, `convert` and `estimate`.
//!
//! Values travel as raw bits in the low end of a `u64`, whatever their format. Names and rules are those of the pseudocode in
//! Arm ARM J1.3 ("shared/functions/float").

/// FPSR cumulative exception bits (Arm ARM C5.2.8).
pub(super) const IOC: u32 = 1 << 0;
pub(super) const DZC: u32 = 1 << 1;
pub(super) const OFC: u32 = 1 << 2;
pub(super) const UFC: u32 = 1 << 3;
pub(super) const IXC: u32 = 1 << 4;
pub(super) const IDC: u32 = 1 << 7;

/// FPCR fields (Arm ARM C5.2.7).
const FPCR_RMODE_SHIFT: u32 = 22;
const FPCR_FZ: u32 = 1 << 24;
const FPCR_DN: u32 = 1 << 25;
const FPCR_AHP: u32 = 1 << 26;

/// How an inexact result is rounded (Arm ARM, type `FPRounding`). The first four are in FPCR.RMode order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    TieEven,
    /// Towards plus infinity.
    PosInf,
    /// Towards minus infinity.
    NegInf,
    /// Towards zero.
    Zero,
    /// To nearest, ties away from zero: FRINTA and FCVTA only.
    TieAway,
    /// Towards zero, then the lowest bit set if inexact: FCVTXN only.
    Odd,
}

impl Rounding {
    /// Whether a magnitude whose lowest kept bit is odd (`odd`) and whose dropped bits, top-aligned, are `rest` goes up.
    #[inline]
    pub(super) fn rounds_up(self, sign: bool, odd: bool, rest: u64) -> bool {
        const HALF: u64 = 1 << 63;
        match self {
            Rounding::TieEven => rest > HALF || rest == HALF && odd,
            Rounding::TieAway => rest >= HALF,
            Rounding::PosInf => rest != 0 && !sign,
            Rounding::NegInf => rest != 0 && sign,
            Rounding::Zero | Rounding::Odd => false,
        }
    }

    /// Whether an overflow gives infinity rather than the largest number.
    #[inline]
    pub(super) fn overflows_to_infinity(self, sign: bool) -> bool {
        match self {
            Rounding::TieEven | Rounding::TieAway => true,
            Rounding::PosInf => !sign,
            Rounding::NegInf => sign,
            Rounding::Zero | Rounding::Odd => false,
        }
    }
}

/// FPCR, and FPSR as it accumulates during an instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Env {
    pub(super) fpcr: u32,
    pub(super) fpsr: u32,
}

impl Env {
    #[inline]
    pub(super) fn raise(&mut self, flags: u32) {
        self.fpsr |= flags;
    }

    #[inline]
    pub(super) fn rounding(&self) -> Rounding {
        match self.fpcr >> FPCR_RMODE_SHIFT & 3 {
            0 => Rounding::TieEven,
            1 => Rounding::PosInf,
            2 => Rounding::NegInf,
            _ => Rounding::Zero,
        }
    }

    #[inline]
    pub(super) fn flush_to_zero(&self) -> bool {
        self.fpcr & FPCR_FZ != 0
    }

    #[inline]
    pub(super) fn default_nan(&self) -> bool {
        self.fpcr & FPCR_DN != 0
    }

    #[inline]
    pub(super) fn alternative_half(&self) -> bool {
        self.fpcr & FPCR_AHP != 0
    }

    /// Whether the host's arithmetic may stand in for ours as long as operands and result are normal: it rounds to nearest, and
    /// cannot tell us of inexactness, which is already recorded.
    #[inline]
    pub(super) fn host_rounds(&self) -> bool {
        self.fpcr >> FPCR_RMODE_SHIFT & 3 == 0 && self.fpsr & IXC != 0
    }
}

/// An IEEE 754 binary interchange format.
pub(super) trait Format {
    const EXP_BITS: u32;
    const FRAC_BITS: u32;
    /// Half precision: FPCR.AHP applies, FPCR.FZ does not.
    const HALF: bool = false;

    const BITS: u32 = 1 + Self::EXP_BITS + Self::FRAC_BITS;
    const SIGN: u64 = 1 << (Self::BITS - 1);
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    const FRAC_MASK: u64 = (1 << Self::FRAC_BITS) - 1;
    const QUIET: u64 = 1 << (Self::FRAC_BITS - 1);
    /// The exponent field of infinities and NaNs.
    const EXP_MAX: u64 = (1 << Self::EXP_BITS) - 1;
    const BIAS: i32 = (1 << (Self::EXP_BITS - 1)) - 1;
    /// The exponent of the smallest normal number.
    const MIN_EXP: i32 = 1 - Self::BIAS;
    const INFINITY: u64 = Self::EXP_MAX << Self::FRAC_BITS;
    const MAX_NORMAL: u64 = Self::INFINITY - 1;
    /// FPDefaultNaN.
    const DEFAULT_NAN: u64 = Self::INFINITY | Self::QUIET;
    const TWO: u64 = (Self::BIAS as u64 + 1) << Self::FRAC_BITS;
    const ONE_POINT_FIVE: u64 = (Self::BIAS as u64) << Self::FRAC_BITS | Self::QUIET;
    const THREE: u64 = Self::TWO | Self::QUIET;

    /// Zero with this sign; or the sign bit to be OR-ed into a magnitude.
    #[inline]
    fn zero(sign: bool) -> u64 {
        if sign { Self::SIGN } else { 0 }
    }

    #[inline]
    fn infinity(sign: bool) -> u64 {
        Self::zero(sign) | Self::INFINITY
    }

    #[inline]
    fn exponent_field(bits: u64) -> u64 {
        bits >> Self::FRAC_BITS & Self::EXP_MAX
    }

    #[inline]
    fn is_nan(bits: u64) -> bool {
        bits & !Self::SIGN > Self::INFINITY
    }

    #[inline]
    fn is_signalling(bits: u64) -> bool {
        Self::is_nan(bits) && bits & Self::QUIET == 0
    }

    #[inline]
    fn is_zero(bits: u64) -> bool {
        bits & !Self::SIGN == 0
    }

    /// Neither infinite, nor NaN, nor subnormal.
    #[inline]
    fn is_zero_or_normal(bits: u64) -> bool {
        Self::is_normal(bits) || Self::is_zero(bits)
    }

    #[inline]
    fn is_normal(bits: u64) -> bool {
        Self::exponent_field(bits).wrapping_sub(1) < Self::EXP_MAX - 1
    }

    /// Normal, and too large to have been rounded up from a subnormal.
    #[inline]
    fn is_safely_normal(bits: u64) -> bool {
        Self::exponent_field(bits).wrapping_sub(2) < Self::EXP_MAX - 2
    }
}

/// binary16: conversions only.
#[derive(Debug)]
pub(super) struct Half;
/// binary32.
#[derive(Debug)]
pub(super) struct Single;
/// binary64.
#[derive(Debug)]
pub(super) struct Double;

impl Format for Half {
    const EXP_BITS: u32 = 5;
    const FRAC_BITS: u32 = 10;
    const HALF: bool = true;
}

impl Format for Single {
    const EXP_BITS: u32 = 8;
    const FRAC_BITS: u32 = 23;
}

impl Format for Double {
    const EXP_BITS: u32 = 11;
    const FRAC_BITS: u32 = 52;
}

/// What kind of value it is (Arm ARM, type `FPType`, where subnormals are already nonzero or flushed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Zero,
    Finite,
    Infinity,
    Quiet,
    Signalling,
}

/// A value taken apart. If finite it is `sig * 2^(exp - 63)` with the top bit of `sig` set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unpacked {
    pub(super) class: Class,
    pub(super) sign: bool,
    pub(super) exp: i32,
    pub(super) sig: u64,
}

/// Replaces a subnormal by zero if FPCR.FZ says so.
#[inline]
pub(super) fn flush_input<F: Format>(bits: u64, env: &mut Env) -> u64 {
    if env.flush_to_zero() && !F::HALF && F::exponent_field(bits) == 0 && bits & F::FRAC_MASK != 0 {
        env.raise(IDC);
        return bits & F::SIGN;
    }
    bits
}

/// FPUnpack and FPUnpackCV.
#[inline]
pub(super) fn unpack<F: Format>(bits: u64, env: &mut Env) -> Unpacked {
    let bits = flush_input::<F>(bits, env);
    let sign = bits & F::SIGN != 0;
    let field = F::exponent_field(bits);
    let frac = bits & F::FRAC_MASK;
    let aligned = frac << (63 - F::FRAC_BITS);
    if field == 0 {
        if frac == 0 {
            return Unpacked { class: Class::Zero, sign, exp: 0, sig: 0 };
        }
        let shift = aligned.leading_zeros();
        return Unpacked {
            class: Class::Finite,
            sign,
            exp: F::MIN_EXP - shift as i32,
            sig: aligned << shift,
        };
    }
    if field == F::EXP_MAX && !(F::HALF && env.alternative_half()) {
        let class = if frac == 0 {
            Class::Infinity
        } else if frac & F::QUIET != 0 {
            Class::Quiet
        } else {
            Class::Signalling
        };
        return Unpacked { class, sign, exp: 0, sig: 0 };
    }
    Unpacked { class: Class::Finite, sign, exp: field as i32 - F::BIAS, sig: 1 << 63 | aligned }
}

/// Shifts right; what falls off leaves a trace in the lowest bit.
#[inline]
pub(super) fn shift_right_jam(value: u64, count: u32) -> u64 {
    match count {
        0 => value,
        1..64 => value >> count | u64::from(value << (64 - count) != 0),
        _ => u64::from(value != 0),
    }
}

/// [`shift_right_jam`] for a double-width significand.
#[inline]
pub(super) fn shift_right_jam_wide(value: u128, count: u32) -> u128 {
    match count {
        0 => value,
        1..128 => value >> count | u128::from(value << (128 - count) != 0),
        _ => u128::from(value != 0),
    }
}

/// FPRound: packs `sig * 2^(exp - 63)`, whose top bit is set and whose lowest bit may stand for anything below it.
pub(super) fn round_pack<F: Format>(
    sign: bool,
    exp: i32,
    sig: u64,
    rounding: Rounding,
    env: &mut Env,
) -> u64 {
    debug_assert!(sig >> 63 == 1);
    let sign_bit = F::zero(sign);
    let tiny = exp < F::MIN_EXP;
    if tiny && !F::HALF && env.flush_to_zero() {
        env.raise(UFC);
        return sign_bit;
    }
    // The integer bit of `kept` adds one to the exponent field, so `base` is that field less one.
    let (base, sig) = if tiny {
        (0, shift_right_jam(sig, (F::MIN_EXP - exp) as u32))
    } else {
        ((exp - F::MIN_EXP) as u64, sig)
    };
    let dropped = 63 - F::FRAC_BITS;
    let kept = sig >> dropped;
    let rest = sig << (64 - dropped);
    let inexact = rest != 0;
    if tiny && inexact {
        // Tininess is detected before rounding.
        env.raise(UFC);
    }
    let mut mantissa = kept + u64::from(rounding.rounds_up(sign, kept & 1 == 1, rest));
    if rounding == Rounding::Odd && inexact {
        mantissa |= 1;
    }
    let alternative = F::HALF && env.alternative_half();
    let limit = F::EXP_MAX + u64::from(alternative);
    if base >= limit || ((base << F::FRAC_BITS) + mantissa) >> F::FRAC_BITS >= limit {
        if alternative {
            env.raise(IOC);
            return sign_bit | (F::SIGN - 1);
        }
        env.raise(OFC | IXC);
        return sign_bit | if rounding.overflows_to_infinity(sign) { F::INFINITY } else { F::MAX_NORMAL };
    }
    if inexact {
        env.raise(IXC);
    }
    sign_bit | ((base << F::FRAC_BITS) + mantissa)
}

/// Invalid operation: the default NaN.
#[inline]
pub(super) fn invalid<F: Format>(env: &mut Env) -> u64 {
    env.raise(IOC);
    F::DEFAULT_NAN
}

/// FPProcessNaN: what an operation makes of a NaN operand.
#[inline]
pub(super) fn process_nan<F: Format>(bits: u64, env: &mut Env) -> u64 {
    if F::is_signalling(bits) {
        env.raise(IOC);
    }
    if env.default_nan() { F::DEFAULT_NAN } else { bits | F::QUIET }
}

/// FPProcessNaNs and FPProcessNaNs3: the first signalling NaN wins, then the first quiet one.
#[inline]
pub(super) fn process_nans<F: Format, const N: usize>(operands: [u64; N], env: &mut Env) -> Option<u64> {
    let winner = operands.into_iter().find(|&x| F::is_signalling(x));
    let winner = winner.or_else(|| operands.into_iter().find(|&x| F::is_nan(x)))?;
    Some(process_nan::<F>(winner, env))
}
