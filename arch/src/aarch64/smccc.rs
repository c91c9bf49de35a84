//! The SMC calling convention (Arm DEN0028) and its TRNG service (DEN0098). Power control is in `psci`.
//! Answers are values for X0 to X3; nothing here touches a CPU.

/// Function identifiers.
pub mod function {
    /// SMCCC_VERSION (DEN0028 7.2).
    pub const VERSION: u32 = 0x8000_0000;
    /// SMCCC_ARCH_FEATURES (7.3).
    pub const ARCH_FEATURES: u32 = 0x8000_0001;
    /// TRNG_VERSION (DEN0098 2.1).
    pub const TRNG_VERSION: u32 = 0x8400_0050;
    /// TRNG_FEATURES (2.2).
    pub const TRNG_FEATURES: u32 = 0x8400_0051;
    /// TRNG_GET_UUID (2.3).
    pub const TRNG_GET_UUID: u32 = 0x8400_0052;
    /// TRNG_RND, 32-bit convention (2.4).
    pub const TRNG_RND32: u32 = 0x8400_0053;
    /// TRNG_RND, 64-bit convention (2.4).
    pub const TRNG_RND64: u32 = 0xc400_0053;
}

/// SMCCC_VERSION: 1.1.
const SMCCC_VERSION: i64 = 0x1_0001;
/// TRNG_VERSION: 1.0.
const TRNG_VERSION: i64 = 0x1_0000;
/// The UUID of this entropy source: any fixed value that is not another's.
const TRNG_UUID: [u32; 4] = [0x6b1e_42c3, 0x4d9a_4f17, 0x91d2_5e08, 0x2c47_a3f6];

/// Success.
const SUCCESS: i64 = 0;
/// "Not supported", and what SMCCC returns for an unknown function.
pub const NOT_SUPPORTED: i64 = -1;
/// TRNG: an argument is wrong.
const TRNG_INVALID_PARAMETERS: i64 = -2;
/// TRNG: the host has no entropy at the moment.
const TRNG_NO_ENTROPY: i64 = -3;

/// Values for X0 and, if the call has more results, X1 to X3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// X0 only.
    One(i64),
    /// X0 to X3.
    Four([u64; 4]),
}

/// Fills a buffer with entropy; false if there is none.
pub type Entropy = fn(&mut [u8]) -> bool;

/// The host's entropy.
pub fn host_entropy(buffer: &mut [u8]) -> bool {
    getrandom::fill(buffer).is_ok()
}

/// Answers `function` with argument X1; `None` if it is not one of ours (PSCI, or unknown).
pub fn call(function: u32, x1: u64, entropy: Entropy) -> Option<Answer> {
    Some(match function {
        function::VERSION => Answer::One(SMCCC_VERSION),
        function::ARCH_FEATURES => Answer::One(match x1 as u32 {
            function::VERSION | function::ARCH_FEATURES => SUCCESS,
            // Also ARCH_WORKAROUND_1, 2 and 3: nothing here needs them, and calling them is an unknown function.
            _ => NOT_SUPPORTED,
        }),
        function::TRNG_VERSION => Answer::One(TRNG_VERSION),
        function::TRNG_FEATURES => Answer::One(match x1 as u32 {
            function::TRNG_VERSION
            | function::TRNG_FEATURES
            | function::TRNG_GET_UUID
            | function::TRNG_RND32
            | function::TRNG_RND64 => SUCCESS,
            _ => NOT_SUPPORTED,
        }),
        function::TRNG_GET_UUID => Answer::Four(TRNG_UUID.map(u64::from)),
        function::TRNG_RND32 => random(x1 & 0xffff_ffff, 32, entropy),
        function::TRNG_RND64 => random(x1, 64, entropy),
        _ => return None,
    })
}

/// TRNG_RND: `bits` of entropy, the least significant in X3, then X2 and X1, each register `width` bits wide.
fn random(bits: u64, width: u32, entropy: Entropy) -> Answer {
    if bits == 0 || bits > u64::from(3 * width) {
        return Answer::One(TRNG_INVALID_PARAMETERS);
    }
    let mut bytes = [0u8; 24];
    if !entropy(&mut bytes) {
        return Answer::One(TRNG_NO_ENTROPY);
    }
    let mut registers = [0u64; 4];
    let mut left = bits;
    for (chunk, register) in bytes.chunks_exact(8).zip(registers.iter_mut().rev()) {
        let take = left.min(u64::from(width));
        let value = chunk.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        *register = if take == 64 { value } else { value & ((1 << take) - 1) };
        left -= take;
    }
    Answer::Four(registers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ones(buffer: &mut [u8]) -> bool {
        buffer.fill(0xff);
        true
    }

    fn none(_: &mut [u8]) -> bool {
        false
    }

    #[test]
    fn smccc_version_is_1_1() {
        assert_eq!(call(0x8000_0000, 0, ones), Some(Answer::One(0x1_0001)));
    }

    #[test]
    fn arch_features_knows_itself_and_the_version() {
        assert_eq!(call(0x8000_0001, 0x8000_0000, ones), Some(Answer::One(0)));
        assert_eq!(call(0x8000_0001, 0x8000_0001, ones), Some(Answer::One(0)));
    }

    #[test]
    fn workarounds_are_not_supported() {
        for id in [0x8000_8000, 0x8000_7fff, 0x8000_3fff] {
            assert_eq!(call(0x8000_0001, id, ones), Some(Answer::One(-1)));
            assert_eq!(call(id as u32, 0, ones), None);
        }
    }

    #[test]
    fn trng_version_is_1_0() {
        assert_eq!(call(0x8400_0050, 0, ones), Some(Answer::One(0x1_0000)));
    }

    #[test]
    fn trng_features_reports_exactly_what_is_answered() {
        for id in (0x8400_0050..0x8400_0060).chain(0xc400_0050..0xc400_0060) {
            let reported = call(0x8400_0051, u64::from(id), ones) == Some(Answer::One(0));
            assert_eq!(reported, call(id, 1, ones).is_some(), "{id:#x}");
        }
    }

    #[test]
    fn uuid_fills_four_32_bit_registers() {
        let Some(Answer::Four(uuid)) = call(0x8400_0052, 0, ones) else { panic!("no UUID") };
        assert!(uuid.iter().all(|part| *part != 0 && *part < 1 << 32));
        assert_ne!(uuid[0], 0xffff_ffff);
    }

    #[test]
    fn rnd64_fills_from_x3_upwards_and_clears_excess_bits() {
        assert_eq!(call(0xc400_0053, 65, ones), Some(Answer::Four([0, 0, 1, u64::MAX])));
        assert_eq!(call(0xc400_0053, 192, ones), Some(Answer::Four([0, u64::MAX, u64::MAX, u64::MAX])));
    }

    #[test]
    fn rnd32_uses_the_lower_halves_only() {
        assert_eq!(
            call(0x8400_0053, 96, ones),
            Some(Answer::Four([0, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]))
        );
        assert_eq!(call(0x8400_0053, 8, ones), Some(Answer::Four([0, 0, 0, 0xff])));
    }

    #[test]
    fn rnd_rejects_zero_and_too_many_bits() {
        assert_eq!(call(0xc400_0053, 0, ones), Some(Answer::One(-2)));
        assert_eq!(call(0xc400_0053, 193, ones), Some(Answer::One(-2)));
        assert_eq!(call(0x8400_0053, 97, ones), Some(Answer::One(-2)));
    }

    #[test]
    fn rnd_without_host_entropy_says_no_entropy() {
        assert_eq!(call(0xc400_0053, 64, none), Some(Answer::One(-3)));
    }

    #[test]
    fn the_host_has_entropy() {
        let mut buffer = [0; 32];
        assert!(host_entropy(&mut buffer));
        assert_ne!(buffer, [0; 32]);
    }

    #[test]
    fn an_unknown_function_is_not_ours() {
        assert_eq!(call(0x8600_ff01, 0, ones), None);
    }
}
