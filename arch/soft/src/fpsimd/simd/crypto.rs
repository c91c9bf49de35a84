//! The cryptographic extensions: AES rounds (FIPS 197), SHA-1 and SHA-256 steps (FIPS 180-4). PMULL is with the multiplications.
//!
//! The AES S-boxes are look-up tables: like every interpreter's, their timing depends on the data, so the guest's keys
//! are as safe as the host is private.

use super::lane::{Lane, reg, reg_mut};
use super::{AesOp, Sha2RegOp, Sha3RegOp};
use crate::regs::Regs;

/// The S-box (FIPS 197, section 5.1.1): the inverse in GF(2^8), then an affine map.
const SBOX: [u8; 256] = {
    let mut sbox = [0u8; 256];
    // 3 generates the multiplicative group: `power` runs through all non-zero elements, `inverse` through their inverses.
    let (mut power, mut inverse) = (1u8, 1u8);
    loop {
        sbox[power as usize] = inverse
            ^ inverse.rotate_left(1)
            ^ inverse.rotate_left(2)
            ^ inverse.rotate_left(3)
            ^ inverse.rotate_left(4)
            ^ 0x63;
        power ^= (power << 1) ^ if power & 0x80 != 0 { 0x1b } else { 0 };
        // Division by 3.
        inverse ^= inverse << 1;
        inverse ^= inverse << 2;
        inverse ^= inverse << 4;
        if inverse & 0x80 != 0 {
            inverse ^= 0x09;
        }
        if power == 1 {
            break;
        }
    }
    sbox[0] = 0x63;
    sbox
};

/// The inverse S-box (FIPS 197, section 5.3.2).
const INVERSE_SBOX: [u8; 256] = {
    let mut inverse = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        inverse[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    inverse
};

pub(super) fn aes(regs: &mut Regs, op: AesOp, rd: u8, rn: u8) {
    let (d, n) = (*reg(regs, rd), *reg(regs, rn));
    match op {
        // Byte i of the state is in column i / 4, row i % 4; row r moves left by r columns, so comes from 4 r bytes further.
        AesOp::Aese => substitute(regs, rd, d ^ n, &SBOX, 5),
        AesOp::Aesd => substitute(regs, rd, d ^ n, &INVERSE_SBOX, 13),
        AesOp::Aesmc => *reg_mut(regs, rd) = mix_columns(n),
        AesOp::Aesimc => {
            // The inverse matrix is the forward one times another that is sparse: {04}x^2 + {05}.
            let n4 = double(double(n ^ rotate_rows(n, 2)));
            *reg_mut(regs, rd) = mix_columns(n ^ n4);
        }
    }
}

/// SubBytes and ShiftRows in one: byte i comes from byte `step` * i.
#[inline(always)]
fn substitute(regs: &mut Regs, rd: u8, state: u128, sbox: &[u8; 256], step: usize) {
    let state = state.to_le_bytes();
    let d = <u8 as Lane<16>>::view_mut(reg_mut(regs, rd));
    for (i, to) in d.iter_mut().enumerate() {
        *to = sbox[usize::from(state[(i * step) % 16])];
    }
}

/// Each byte times {02} in GF(2^8).
#[inline(always)]
fn double(state: u128) -> u128 {
    const LOW7: u128 = 0x7f7f_7f7f_7f7f_7f7f_7f7f_7f7f_7f7f_7f7f;
    const ONES: u128 = 0x0101_0101_0101_0101_0101_0101_0101_0101;
    let carry = state >> 7 & ONES;
    ((state & LOW7) << 1) ^ carry ^ carry << 1 ^ carry << 3 ^ carry << 4
}

/// Each column rotated so that row r shows what was in row r + `rows`.
#[inline(always)]
fn rotate_rows(state: u128, rows: u32) -> u128 {
    let low = u128::from(u32::MAX >> (8 * rows));
    let low = low | low << 32 | low << 64 | low << 96;
    (state >> (8 * rows) & low) | (state << (32 - 8 * rows) & !low)
}

/// MixColumns (FIPS 197, section 5.1.3): `2 a0 + 3 a1 + a2 + a3`.
#[inline(always)]
fn mix_columns(state: u128) -> u128 {
    let next = rotate_rows(state, 1);
    double(state ^ next) ^ next ^ rotate_rows(state ^ next, 2)
}

/// Ch, "choose" (FIPS 180-4, section 4.1).
#[inline(always)]
fn choose(x: u32, y: u32, z: u32) -> u32 {
    z ^ (x & (y ^ z))
}

/// Maj, "majority".
#[inline(always)]
fn majority(x: u32, y: u32, z: u32) -> u32 {
    (x & y) | (z & (x | y))
}

/// Parity.
#[inline(always)]
fn parity(x: u32, y: u32, z: u32) -> u32 {
    x ^ y ^ z
}

#[inline(always)]
fn words(regs: &Regs, n: u8) -> [u32; 4] {
    *<u32 as Lane<4>>::view(reg(regs, n))
}

#[inline(always)]
fn set_words(regs: &mut Regs, d: u8, words: [u32; 4]) {
    *<u32 as Lane<4>>::view_mut(reg_mut(regs, d)) = words;
}

/// Four rounds of SHA-1 (Arm ARM, SHA1C): `e` and the message words already hold the round constant.
#[inline(always)]
fn sha1_rounds([a, b, c, d]: [u32; 4], e: u32, w: [u32; 4], f: impl Fn(u32, u32, u32) -> u32) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d, mut e] = [a, b, c, d, e];
    for w in w {
        let next = e.wrapping_add(a.rotate_left(5)).wrapping_add(f(b, c, d)).wrapping_add(w);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    [a, b, c, d]
}

/// Four rounds of SHA-256 (Arm ARM, SHA256hash) on a to d and e to h; the message words already hold the round constants.
#[inline(always)]
fn sha256_rounds(abcd: [u32; 4], efgh: [u32; 4], w: [u32; 4]) -> ([u32; 4], [u32; 4]) {
    let ([mut a, mut b, mut c, mut d], [mut e, mut f, mut g, mut h]) = (abcd, efgh);
    for w in w {
        let sigma1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sigma0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t1 = h.wrapping_add(sigma1).wrapping_add(choose(e, f, g)).wrapping_add(w);
        let t2 = sigma0.wrapping_add(majority(a, b, c));
        (a, b, c, d, e, f, g, h) = (t1.wrapping_add(t2), a, b, c, d.wrapping_add(t1), e, f, g);
    }
    ([a, b, c, d], [e, f, g, h])
}

pub(super) fn sha_three(regs: &mut Regs, op: Sha3RegOp, rd: u8, rn: u8, rm: u8) {
    let (d, n, m) = (words(regs, rd), words(regs, rn), words(regs, rm));
    let result = match op {
        Sha3RegOp::Sha1c => sha1_rounds(d, n[0], m, choose),
        Sha3RegOp::Sha1p => sha1_rounds(d, n[0], m, parity),
        Sha3RegOp::Sha1m => sha1_rounds(d, n[0], m, majority),
        Sha3RegOp::Sha1su0 => {
            [d[0] ^ d[2] ^ m[0], d[1] ^ d[3] ^ m[1], d[2] ^ n[0] ^ m[2], d[3] ^ n[1] ^ m[3]]
        }
        Sha3RegOp::Sha256h => sha256_rounds(d, n, m).0,
        // Here Vd is e to h, and Vn a to d.
        Sha3RegOp::Sha256h2 => sha256_rounds(n, d, m).1,
        Sha3RegOp::Sha256su1 => {
            let sigma1 = |x: u32| x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10;
            let w14 = d[0].wrapping_add(n[1]).wrapping_add(sigma1(m[2]));
            let w15 = d[1].wrapping_add(n[2]).wrapping_add(sigma1(m[3]));
            let w16 = d[2].wrapping_add(n[3]).wrapping_add(sigma1(w14));
            let w17 = d[3].wrapping_add(m[0]).wrapping_add(sigma1(w15));
            [w14, w15, w16, w17]
        }
    };
    set_words(regs, rd, result);
}

pub(super) fn sha_two(regs: &mut Regs, op: Sha2RegOp, rd: u8, rn: u8) {
    let (d, n) = (words(regs, rd), words(regs, rn));
    let result = match op {
        Sha2RegOp::Sha1h => [n[0].rotate_left(30), 0, 0, 0],
        Sha2RegOp::Sha1su1 => {
            let first = (d[0] ^ n[1]).rotate_left(1);
            [first, (d[1] ^ n[2]).rotate_left(1), (d[2] ^ n[3]).rotate_left(1), (d[3] ^ first).rotate_left(1)]
        }
        Sha2RegOp::Sha256su0 => {
            let sigma0 = |x: u32| x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3;
            [
                d[0].wrapping_add(sigma0(d[1])),
                d[1].wrapping_add(sigma0(d[2])),
                d[2].wrapping_add(sigma0(d[3])),
                d[3].wrapping_add(sigma0(n[0])),
            ]
        }
    };
    set_words(regs, rd, result);
}
