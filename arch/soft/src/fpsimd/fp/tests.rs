//! Named edge cases of floating point. The broad comparison is in `tests/fp_oracle.rs`.

use super::softfloat::{DZC, IDC, IOC, IXC, OFC, UFC};
use super::{Fp, decode, execute};
use crate::regs::Regs;

const RMODE_NEG_INF: u32 = 0b10 << 22;
const RMODE_ZERO: u32 = 0b11 << 22;
const FZ: u32 = 1 << 24;
const DN: u32 = 1 << 25;
const AHP: u32 = 1 << 26;

const FADD_D0_D1_D2: u32 = 0x1e62_2820;
const FSUB_D0_D1_D2: u32 = 0x1e62_3820;
const FMUL_D0_D1_D2: u32 = 0x1e62_0820;
const FDIV_D0_D1_D2: u32 = 0x1e62_1820;
const FADD_S0_S1_S2: u32 = 0x1e22_2820;
const FMUL_S0_S1_S2: u32 = 0x1e22_0820;
const FMAX_D0_D1_D2: u32 = 0x1e62_4820;
const FMAXNM_D0_D1_D2: u32 = 0x1e62_6820;
const FMADD_D0_D1_D2_D3: u32 = 0x1f42_0c20;
const FMSUB_D0_D1_D2_D3: u32 = 0x1f42_8c20;
const FMULX_D0_D1_D2: u32 = 0x5e62_dc20;
const FSQRT_D0_D1: u32 = 0x1e61_c020;
const FCMP_D1_D2: u32 = 0x1e62_2020;
const FCMPE_D1_D2: u32 = 0x1e62_2030;
const FCMGT_D0_D1_D2: u32 = 0x7ee2_e420;
const FRINTN_D0_D1: u32 = 0x1e64_4020;
const FRINTX_D0_D1: u32 = 0x1e67_4020;
const FCVTZS_W0_D1: u32 = 0x1e78_0020;
const FCVTZU_X0_D1: u32 = 0x9e79_0020;
const FCVTAS_W0_D1: u32 = 0x1e64_0020;
const UCVTF_S0_X1: u32 = 0x9e23_0020;
const FCVT_S0_D1: u32 = 0x1e62_4020;
const FCVT_H0_S1: u32 = 0x1e23_c020;
const FCVT_S0_H1: u32 = 0x1ee2_4020;
const FCVTXN_S0_D1: u32 = 0x7e61_6820;
const FRECPE_S0_S1: u32 = 0x5ea1_d820;
const FRSQRTE_S0_S1: u32 = 0x7ea1_d820;
const FRECPX_S0_S1: u32 = 0x5ea1_f820;
const FMAXNMV_S0_V1_4S: u32 = 0x6e30_c820;
const FMOV_V0_D1_X1: u32 = 0x9eaf_0020;
const FMOV_D0_ONE: u32 = 0x1e6e_1000;
const FMOV_V0_4S_ONE: u32 = 0x4f03_f600;

const SIGNALLING: u64 = 0x7ff0_0000_0000_1234;
const QUIETED: u64 = 0x7ff8_0000_0000_1234;
const QUIET: u64 = 0xfff8_0000_0000_5678;
const DEFAULT_NAN: u64 = 0x7ff8_0000_0000_0000;

/// Registers with D1, D2 and D3 set to `operands`, and V0 full of ones.
fn doubles(operands: [f64; 3]) -> Regs {
    bits(operands.map(f64::to_bits))
}

fn singles(operands: [f32; 3]) -> Regs {
    bits(operands.map(|x| u64::from(x.to_bits())))
}

fn bits(operands: [u64; 3]) -> Regs {
    let mut regs = Regs::default();
    regs.q[0] = u128::MAX;
    for (register, operand) in regs.q[1..].iter_mut().zip(operands) {
        *register = u128::from(operand);
    }
    regs
}

fn run(word: u32, mut regs: Regs) -> Regs {
    let insn = decode(word).expect("the word is an instruction");
    execute(&insn, &mut regs);
    regs
}

/// V0 as a double, and FPSR.
fn double_of(regs: &Regs) -> (u64, u32) {
    assert_eq!(regs.q[0] >> 64, 0, "a scalar result zeroes the rest of the register");
    (regs.q[0] as u64, regs.fpsr)
}

fn single_of(regs: &Regs) -> (u32, u32) {
    assert_eq!(regs.q[0] >> 32, 0, "a scalar result zeroes the rest of the register");
    (regs.q[0] as u32, regs.fpsr)
}

#[test]
fn a_decoded_instruction_takes_eight_bytes() {
    assert_eq!(size_of::<Fp>(), 8);
}

#[test]
fn the_default_path_records_inexactness() {
    let regs = run(FADD_D0_D1_D2, doubles([0.1, 0.2, 0.0]));
    assert_eq!(double_of(&regs), ((0.1f64 + 0.2).to_bits(), IXC));
}

#[test]
fn an_exact_sum_leaves_fpsr_alone() {
    let regs = run(FADD_D0_D1_D2, doubles([1.5, 2.25, 0.0]));
    assert_eq!(double_of(&regs), (3.75f64.to_bits(), 0));
}

#[test]
fn opposite_zeroes_add_to_minus_zero_only_when_rounding_down() {
    let sum = |fpcr| double_of(&run(FADD_D0_D1_D2, Regs { fpcr, ..doubles([0.0, -0.0, 0.0]) }));
    assert_eq!(sum(0), (0.0f64.to_bits(), 0));
    assert_eq!(sum(RMODE_NEG_INF), ((-0.0f64).to_bits(), 0));
}

#[test]
fn the_host_path_agrees_on_the_sign_of_a_cancelled_sum() {
    let regs = Regs { fpsr: IXC, ..doubles([1.25, 1.25, 0.0]) };
    assert_eq!(double_of(&run(FSUB_D0_D1_D2, regs)), (0.0f64.to_bits(), IXC));
}

#[test]
fn overflow_rounds_to_the_largest_number_towards_zero() {
    let regs = Regs { fpcr: RMODE_ZERO, ..doubles([f64::MAX, f64::MAX, 0.0]) };
    assert_eq!(double_of(&run(FADD_D0_D1_D2, regs)), (f64::MAX.to_bits(), OFC | IXC));
}

#[test]
fn overflow_is_recorded_even_when_inexactness_already_was() {
    let regs = Regs { fpsr: IXC, ..doubles([f64::MAX, 2.0, 0.0]) };
    assert_eq!(double_of(&run(FMUL_D0_D1_D2, regs)), (f64::INFINITY.to_bits(), OFC | IXC));
}

#[test]
fn tininess_is_detected_before_rounding() {
    // The exact product is just below the smallest normal number and rounds up to it.
    let regs = Regs { fpsr: IXC, ..singles([f32::MIN_POSITIVE, f32::from_bits(0x3f7f_ffff), 0.0]) };
    let product = single_of(&run(FMUL_S0_S1_S2, regs));
    assert_eq!(product, (f32::MIN_POSITIVE.to_bits(), UFC | IXC));
}

#[test]
fn an_exact_subnormal_is_no_underflow() {
    let regs = run(FMUL_D0_D1_D2, doubles([f64::MIN_POSITIVE, 0.5, 0.0]));
    assert_eq!(double_of(&regs), ((f64::MIN_POSITIVE / 2.0).to_bits(), 0));
}

#[test]
fn flush_to_zero_replaces_a_subnormal_operand() {
    let regs = Regs { fpcr: FZ, ..bits([0x8000_0000_0000_0001, 0, 0]) };
    assert_eq!(double_of(&run(FADD_D0_D1_D2, regs)), (0, IDC));
}

#[test]
fn flush_to_zero_replaces_a_subnormal_result_without_inexactness() {
    let regs = Regs { fpcr: FZ, ..doubles([-f64::MIN_POSITIVE, 0.75, 0.0]) };
    assert_eq!(double_of(&run(FMUL_D0_D1_D2, regs)), ((-0.0f64).to_bits(), UFC));
}

#[test]
fn a_signalling_nan_wins_over_an_earlier_quiet_one() {
    let regs = run(FADD_D0_D1_D2, bits([QUIET, SIGNALLING, 0]));
    assert_eq!(double_of(&regs), (QUIETED, IOC));
}

#[test]
fn the_first_of_two_quiet_nans_survives() {
    let regs = run(FADD_D0_D1_D2, bits([QUIET, DEFAULT_NAN | 1, 0]));
    assert_eq!(double_of(&regs), (QUIET, 0));
}

#[test]
fn default_nan_mode_drops_the_payload() {
    let regs = Regs { fpcr: DN, ..bits([QUIET, 0, 0]) };
    assert_eq!(double_of(&run(FADD_D0_D1_D2, regs)), (DEFAULT_NAN, 0));
}

#[test]
fn infinity_minus_infinity_is_invalid() {
    let regs = run(FSUB_D0_D1_D2, doubles([f64::INFINITY, f64::INFINITY, 0.0]));
    assert_eq!(double_of(&regs), (DEFAULT_NAN, IOC));
}

#[test]
fn division_by_zero_is_recorded() {
    let regs = Regs { fpsr: IXC, ..doubles([-1.0, 0.0, 0.0]) };
    assert_eq!(double_of(&run(FDIV_D0_D1_D2, regs)), (f64::NEG_INFINITY.to_bits(), DZC | IXC));
}

#[test]
fn zero_divided_by_zero_is_invalid() {
    let regs = run(FDIV_D0_D1_D2, doubles([0.0, -0.0, 0.0]));
    assert_eq!(double_of(&regs), (DEFAULT_NAN, IOC));
}

#[test]
fn infinity_divided_by_zero_is_no_division_by_zero() {
    let regs = run(FDIV_D0_D1_D2, doubles([f64::INFINITY, -0.0, 0.0]));
    assert_eq!(double_of(&regs), (f64::NEG_INFINITY.to_bits(), 0));
}

#[test]
fn the_root_of_minus_zero_is_minus_zero() {
    let regs = run(FSQRT_D0_D1, doubles([-0.0, 0.0, 0.0]));
    assert_eq!(double_of(&regs), ((-0.0f64).to_bits(), 0));
}

#[test]
fn the_root_of_a_negative_number_is_invalid() {
    let regs = run(FSQRT_D0_D1, doubles([-4.0, 0.0, 0.0]));
    assert_eq!(double_of(&regs), (DEFAULT_NAN, IOC));
}

#[test]
fn maximum_takes_plus_zero() {
    let regs = run(FMAX_D0_D1_D2, doubles([-0.0, 0.0, 0.0]));
    assert_eq!(double_of(&regs), (0, 0));
}

#[test]
fn maximum_number_ignores_a_lone_quiet_nan() {
    let regs = run(FMAXNM_D0_D1_D2, bits([QUIET, (-3.0f64).to_bits(), 0]));
    assert_eq!(double_of(&regs), ((-3.0f64).to_bits(), 0));
}

#[test]
fn maximum_number_does_not_ignore_a_signalling_nan() {
    let regs = run(FMAXNM_D0_D1_D2, bits([1.0f64.to_bits(), SIGNALLING, 0]));
    assert_eq!(double_of(&regs), (QUIETED, IOC));
}

#[test]
fn fused_multiply_add_rounds_once() {
    let a = 1.0 + f64::EPSILON;
    let regs = run(FMADD_D0_D1_D2_D3, doubles([a, a, -(1.0 + 2.0 * f64::EPSILON)]));
    assert_eq!(double_of(&regs), ((f64::EPSILON * f64::EPSILON).to_bits(), 0));
}

#[test]
fn fused_multiply_add_of_a_quiet_nan_and_an_invalid_product_is_the_default_nan() {
    let regs = run(FMADD_D0_D1_D2_D3, bits([f64::INFINITY.to_bits(), 0, QUIET]));
    assert_eq!(double_of(&regs), (DEFAULT_NAN, IOC));
}

#[test]
fn multiply_subtract_negates_a_nan_factor() {
    let regs = run(FMSUB_D0_D1_D2_D3, bits([QUIET, 0, 0]));
    assert_eq!(double_of(&regs), (QUIET & !(1 << 63), 0));
}

#[test]
fn extended_multiply_of_zero_and_infinity_is_two() {
    let regs = run(FMULX_D0_D1_D2, doubles([f64::INFINITY, -0.0, 0.0]));
    assert_eq!(double_of(&regs), ((-2.0f64).to_bits(), 0));
}

#[test]
fn quiet_comparison_of_a_quiet_nan_is_unordered_and_silent() {
    let regs = run(FCMP_D1_D2, bits([QUIET, 0, 0]));
    assert_eq!((regs.flags.nzcv() >> 28, regs.fpsr), (0b0011, 0));
}

#[test]
fn signalling_comparison_of_a_quiet_nan_is_invalid() {
    let regs = run(FCMPE_D1_D2, bits([QUIET, 0, 0]));
    assert_eq!((regs.flags.nzcv() >> 28, regs.fpsr), (0b0011, IOC));
}

#[test]
fn zeroes_of_either_sign_compare_equal() {
    let regs = run(FCMP_D1_D2, doubles([0.0, -0.0, 0.0]));
    assert_eq!(regs.flags.nzcv() >> 28, 0b0110);
}

#[test]
fn comparison_into_a_register_gives_all_ones() {
    let regs = run(FCMGT_D0_D1_D2, doubles([-1.0, -2.0, 0.0]));
    assert_eq!(double_of(&regs), (u64::MAX, 0));
}

#[test]
fn only_the_exact_rounding_to_integral_records_inexactness() {
    let operands = [-2.5, 0.0, 0.0];
    assert_eq!(double_of(&run(FRINTN_D0_D1, doubles(operands))), ((-2.0f64).to_bits(), 0));
    assert_eq!(double_of(&run(FRINTX_D0_D1, doubles(operands))), ((-2.0f64).to_bits(), IXC));
}

#[test]
fn rounding_to_integral_keeps_the_sign_of_zero() {
    let regs = run(FRINTN_D0_D1, doubles([-0.25, 0.0, 0.0]));
    assert_eq!(double_of(&regs), ((-0.0f64).to_bits(), 0));
}

#[test]
fn conversion_to_integer_saturates() {
    let regs = run(FCVTZS_W0_D1, doubles([-3e9, 0.0, 0.0]));
    assert_eq!((regs.x[0], regs.fpsr), (0x8000_0000, IOC));
}

#[test]
fn a_negative_fraction_is_an_inexact_unsigned_zero() {
    let regs = run(FCVTZU_X0_D1, doubles([-0.75, 0.0, 0.0]));
    assert_eq!((regs.x[0], regs.fpsr), (0, IXC));
}

#[test]
fn a_nan_converts_to_integer_zero() {
    let regs = run(FCVTZU_X0_D1, bits([QUIET, 0, 0]));
    assert_eq!((regs.x[0], regs.fpsr), (0, IOC));
}

#[test]
fn ties_away_rounds_halves_outwards() {
    let regs = run(FCVTAS_W0_D1, doubles([-2.5, 0.0, 0.0]));
    assert_eq!((regs.x[0], regs.fpsr), (0xffff_fffd, IXC));
}

#[test]
fn the_largest_unsigned_integer_rounds_up_to_a_power_of_two() {
    let mut regs = bits([0; 3]);
    regs.x[1] = u64::MAX;
    assert_eq!(single_of(&run(UCVTF_S0_X1, regs)), (18_446_744_073_709_551_616f32.to_bits(), IXC));
}

#[test]
fn narrowing_a_nan_keeps_the_top_of_its_payload() {
    let regs = run(FCVT_S0_D1, bits([0xfff4_0000_2000_0000, 0, 0]));
    assert_eq!(single_of(&regs), (0xffe0_0001, IOC));
}

#[test]
fn odd_rounding_sets_the_lowest_bit() {
    let regs = run(FCVTXN_S0_D1, doubles([1.0 + f64::EPSILON, 0.0, 0.0]));
    assert_eq!(single_of(&regs), (0x3f80_0001, IXC));
}

#[test]
fn odd_rounding_never_overflows_to_infinity() {
    let regs = run(FCVTXN_S0_D1, doubles([1e300, 0.0, 0.0]));
    assert_eq!(single_of(&regs), (f32::MAX.to_bits(), OFC | IXC));
}

#[test]
fn alternative_half_precision_has_no_infinity() {
    let regs = Regs { fpcr: AHP, ..singles([f32::NEG_INFINITY, 0.0, 0.0]) };
    assert_eq!(single_of(&run(FCVT_H0_S1, regs)), (0xffff, IOC));
}

#[test]
fn alternative_half_precision_overflow_is_invalid_and_exact() {
    let regs = Regs { fpcr: AHP, ..singles([131_072.0, 0.0, 0.0]) };
    assert_eq!(single_of(&run(FCVT_H0_S1, regs)), (0x7fff, IOC));
}

#[test]
fn alternative_half_precision_reads_the_top_exponent_as_a_number() {
    let regs = Regs { fpcr: AHP, ..bits([0x7fff, 0, 0]) };
    assert_eq!(single_of(&run(FCVT_S0_H1, regs)), (131_008f32.to_bits(), 0));
}

#[test]
fn flush_to_zero_does_not_apply_to_half_precision() {
    let regs = Regs { fpcr: FZ, ..bits([1, 0, 0]) };
    assert_eq!(single_of(&run(FCVT_S0_H1, regs)), (2f32.powi(-24).to_bits(), 0));
}

#[test]
fn the_reciprocal_estimate_of_one_has_eight_bits() {
    let regs = run(FRECPE_S0_S1, singles([1.0, 0.0, 0.0]));
    assert_eq!(single_of(&regs), (0x3f7f_8000, 0));
}

#[test]
fn the_reciprocal_estimate_of_a_tiny_number_overflows() {
    let regs = run(FRECPE_S0_S1, bits([1, 0, 0]));
    assert_eq!(single_of(&regs), (f32::INFINITY.to_bits(), OFC | IXC));
}

#[test]
fn the_reciprocal_square_root_estimate_of_minus_zero_divides_by_zero() {
    let regs = run(FRSQRTE_S0_S1, singles([-0.0, 0.0, 0.0]));
    assert_eq!(single_of(&regs), (f32::NEG_INFINITY.to_bits(), DZC));
}

#[test]
fn the_reciprocal_exponent_of_zero_is_the_largest() {
    let regs = run(FRECPX_S0_S1, singles([0.0; 3]));
    assert_eq!(single_of(&regs), (0x7f00_0000, 0));
}

#[test]
fn reduction_joins_neighbours_first() {
    // Two quiet NaNs meet in the low pair and beat the number only there; the high pair then wins.
    let mut regs = bits([0; 3]);
    regs.q[1] = 0x3f80_0000_4000_0000_7fc0_0002_7fc0_0001;
    assert_eq!(single_of(&run(FMAXNMV_S0_V1_4S, regs)), (2f32.to_bits(), 0));
}

#[test]
fn moving_to_the_top_half_keeps_the_low_half() {
    let mut regs = bits([0; 3]);
    regs.q[0] = 0x1111;
    regs.x[1] = 0x2222;
    assert_eq!(run(FMOV_V0_D1_X1, regs).q[0], 0x2222 << 64 | 0x1111);
}

#[test]
fn the_immediate_one_expands() {
    assert_eq!(double_of(&run(FMOV_D0_ONE, bits([0; 3]))), (1f64.to_bits(), 0));
    assert_eq!(run(FMOV_V0_4S_ONE, bits([0; 3])).q[0], 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000);
}

#[test]
fn adding_singles_ignores_the_rest_of_the_register() {
    let mut regs = singles([1.0, 2.0, 0.0]);
    regs.q[1] |= u128::MAX << 32;
    assert_eq!(single_of(&run(FADD_S0_S1_S2, regs)), (3f32.to_bits(), 0));
}

#[test]
fn half_precision_arithmetic_does_not_decode() {
    // FADD H0, H1, H2.
    assert_eq!(decode(0x1ee2_2820), None);
}
