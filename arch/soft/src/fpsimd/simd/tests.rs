//! Named cases from the standards and the architecture manual. Breadth comes from the comparison with an emulator, in `tests/`.

use super::lane::FPSR_QC;
use super::*;

/// Executes one instruction word.
fn run(regs: &mut Regs, word: u32) {
    let insn = decode(word).unwrap_or_else(|| panic!("{word:#010x} does not decode"));
    execute(&insn, regs);
}

/// A register from its bytes in memory order, in hexadecimal as the standards print them.
fn bytes(hex: &str) -> u128 {
    u128::from_str_radix(hex, 16).expect("a constant").swap_bytes()
}

const AESE_V0_V1: u32 = 0x4e28_4820;
const AESD_V0_V1: u32 = 0x4e28_5820;
const AESMC_V0_V0: u32 = 0x4e28_6800;
const AESIMC_V0_V0: u32 = 0x4e28_7800;

#[test]
fn aes_round_gives_the_state_of_fips_197_appendix_b() {
    let mut regs = Regs::default();
    regs.q[0] = bytes("3243f6a8885a308d313198a2e0370734");
    regs.q[1] = bytes("2b7e151628aed2a6abf7158809cf4f3c");
    run(&mut regs, AESE_V0_V1);
    assert_eq!(regs.q[0], bytes("d4bf5d30e0b452aeb84111f11e2798e5"));
    run(&mut regs, AESMC_V0_V0);
    assert_eq!(regs.q[0], bytes("046681e5e0cb199a48f8d37a2806264c"));
}

#[test]
fn inverse_aes_steps_undo_the_forward_ones() {
    let mut regs = Regs::default();
    let state = bytes("00112233445566778899aabbccddeeff");
    regs.q[0] = state;
    run(&mut regs, AESE_V0_V1);
    run(&mut regs, AESMC_V0_V0);
    run(&mut regs, AESIMC_V0_V0);
    run(&mut regs, AESD_V0_V1);
    assert_eq!(regs.q[0], state);
}

/// The round constants of SHA-256 (FIPS 180-4, section 4.2.2): the first 32 bits of the fractions of the primes' cube roots.
fn sha256_constants() -> Vec<u32> {
    let is_prime = |n: &u128| (2..*n).all(|d| !n.is_multiple_of(d));
    // The greatest r with r^3 <= p 2^96, by bits from the top, is the cube root times 2^32.
    let cube_root = |p: u128| {
        (0..36).rev().fold(0u128, |r, bit| if (r | 1 << bit).pow(3) <= p << 96 { r | 1 << bit } else { r })
    };
    (2..).filter(is_prime).take(64).map(|p| cube_root(p) as u32).collect()
}

#[test]
fn sha256_instructions_hash_the_block_of_fips_180() {
    let mut regs = Regs::default();
    let words = |w: [u32; 4]| w.iter().rev().fold(0u128, |q, &w| q << 32 | u128::from(w));
    let initial = [
        words([0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a]),
        words([0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19]),
    ];
    (regs.q[0], regs.q[1]) = (initial[0], initial[1]);
    // "abc", padded: V4 to V7 hold the message schedule.
    regs.q[4] = words([0x6162_6380, 0, 0, 0]);
    regs.q[7] = words([0, 0, 0, 24]);

    for (round, k) in sha256_constants().chunks(4).enumerate() {
        regs.q[16] = words([k[0], k[1], k[2], k[3]]);
        let at = |i: usize| 4 + ((round + i) % 4) as u32;
        run(&mut regs, 0x4ea0_8400 | at(0) << 16 | 16 << 5 | 17); // ADD V17.4S, V16.4S, Vw.4S
        run(&mut regs, 0x4ea0_1c00 | 2); // MOV V2, V0
        run(&mut regs, 0x5e00_4000 | 17 << 16 | 1 << 5); // SHA256H Q0, Q1, V17.4S
        run(&mut regs, 0x5e00_5000 | 17 << 16 | 2 << 5 | 1); // SHA256H2 Q1, Q2, V17.4S
        run(&mut regs, 0x5e28_2800 | at(1) << 5 | at(0)); // SHA256SU0
        run(&mut regs, 0x5e00_6000 | at(3) << 16 | at(2) << 5 | at(0)); // SHA256SU1
    }
    (regs.q[2], regs.q[3]) = (initial[0], initial[1]);
    run(&mut regs, 0x4ea2_8400); // ADD V0.4S, V0.4S, V2.4S
    run(&mut regs, 0x4ea3_8421); // ADD V1.4S, V1.4S, V3.4S

    assert_eq!(regs.q[0], words([0xba78_16bf, 0x8f01_cfea, 0x4141_40de, 0x5dae_2223]));
    assert_eq!(regs.q[1], words([0xb003_61a3, 0x9617_7a9c, 0xb410_ff61, 0xf200_15ad]));
}

#[test]
fn saturating_addition_sets_qc() {
    let mut regs = Regs::default();
    regs.q[1] = 0x7f;
    regs.q[2] = 0x01;
    run(&mut regs, 0x4e22_0c20); // SQADD V0.16B, V1.16B, V2.16B
    assert_eq!((regs.q[0], regs.fpsr), (0x7f, FPSR_QC));
}

#[test]
fn lanes_above_a_64_bit_form_do_not_set_qc() {
    let mut regs = Regs::default();
    regs.q[1] = 0x7f << 64;
    regs.q[2] = 0x01 << 64;
    run(&mut regs, 0x0e22_0c20); // SQADD V0.8B, V1.8B, V2.8B
    assert_eq!((regs.q[0], regs.fpsr), (0, 0));
}

#[test]
fn doubling_the_product_of_two_minima_saturates() {
    let mut regs = Regs::default();
    regs.q[1] = 0x8000;
    run(&mut regs, 0x5e61_b420); // SQDMULH H0, H1, H1
    assert_eq!((regs.q[0], regs.fpsr), (0x7fff, FPSR_QC));
}

#[test]
fn write_to_the_zero_register_is_dropped() {
    let mut regs = Regs::default();
    regs.q[1] = u128::MAX;
    run(&mut regs, 0x4e08_3c3f); // UMOV XZR, V1.D[0]
    assert_eq!(regs.read_x(31), 0);
}

#[test]
fn floating_point_encodings_are_not_of_this_module() {
    let words = [
        0x4e20_d400, // FADD V0.4S, V0.4S, V0.4S
        0x4ea1_c800, // URECPE V0.4S, V0.4S
        0x6ea1_c800, // URSQRTE V0.4S, V0.4S
        0x0f00_f400, // FMOV V0.2S, #2.0
        0x0f20_e400, // SCVTF V0.2S, V0.2S, #32
        0x1e20_2800, // FADD S0, S0, S0
    ];
    assert_eq!(words.map(decode), [None; 6]);
}
