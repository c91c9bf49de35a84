//! Moving lanes about: copies to and from general registers, permutations, table look-ups, immediates. Nothing is computed.

use super::integer::active_bytes;
use super::lane::{Lane, each_signed, each_unsigned, reg, reg_mut, trim};
use super::{Esize, PermuteOp};
use crate::regs::Regs;

/// Lane `index` of Vn, zero-extended. Indices wrap, though the decoder makes none that is too large.
#[inline(always)]
fn element(regs: &Regs, size: Esize, n: u8, index: u8) -> u64 {
    each_unsigned!(size, T => {
        let lanes = T::view(reg(regs, n));
        u128::from(lanes[usize::from(index) % lanes.len()]) as u64
    })
}

#[inline(always)]
fn set_element(regs: &mut Regs, size: Esize, d: u8, index: u8, value: u64) {
    each_unsigned!(size, T => {
        let lanes = T::view_mut(reg_mut(regs, d));
        lanes[usize::from(index) % lanes.len()] = value as T;
    });
}

/// `value`, truncated to the element size, in every lane of Vd.
#[inline(always)]
fn replicate(regs: &mut Regs, size: Esize, bytes: u8, rd: u8, value: u64) {
    each_unsigned!(size, T => T::view_mut(reg_mut(regs, rd)).fill(value as T));
    trim(regs, rd, bytes);
}

pub(super) fn dup_element(regs: &mut Regs, size: Esize, bytes: u8, rd: u8, rn: u8, index: u8) {
    let value = element(regs, size, rn, index);
    replicate(regs, size, bytes, rd, value);
}

pub(super) fn dup_general(regs: &mut Regs, size: Esize, q: bool, rd: u8, rn: u8) {
    replicate(regs, size, active_bytes(q), rd, regs.read_x(rn));
}

pub(super) fn ins_general(regs: &mut Regs, size: Esize, rd: u8, index: u8, rn: u8) {
    set_element(regs, size, rd, index, regs.read_x(rn));
}

pub(super) fn ins_element(regs: &mut Regs, size: Esize, rd: u8, to: u8, rn: u8, from: u8) {
    let value = element(regs, size, rn, from);
    set_element(regs, size, rd, to, value);
}

pub(super) fn smov(regs: &mut Regs, size: Esize, sf: bool, rd: u8, rn: u8, index: u8) {
    let value = each_signed!(size, T => {
        let lanes = T::view(reg(regs, rn));
        lanes[usize::from(index) % lanes.len()] as u64
    });
    regs.write_x(rd, if sf { value } else { u64::from(value as u32) });
}

#[inline]
pub(super) fn umov(regs: &mut Regs, size: Esize, rd: u8, rn: u8, index: u8) {
    let value = element(regs, size, rn, index);
    regs.write_x(rd, value);
}

pub(super) fn permute(regs: &mut Regs, op: PermuteOp, size: Esize, q: bool, rd: u8, rn: u8, rm: u8) {
    /// The first `count` lanes of the result. `count` is a constant wherever this is inlined.
    #[inline(always)]
    fn lanes<T: Lane<N>, const N: usize>(
        op: PermuteOp,
        count: usize,
        n: &[T; N],
        m: &[T; N],
        d: &mut [T; N],
    ) {
        let pairs = count / 2;
        match op {
            PermuteOp::Uzp1 | PermuteOp::Uzp2 => {
                let odd = usize::from(op == PermuteOp::Uzp2);
                for i in 0..pairs {
                    d[i] = n[2 * i + odd];
                    d[pairs + i] = m[2 * i + odd];
                }
            }
            PermuteOp::Trn1 | PermuteOp::Trn2 => {
                let odd = usize::from(op == PermuteOp::Trn2);
                for i in 0..pairs {
                    d[2 * i] = n[2 * i + odd];
                    d[2 * i + 1] = m[2 * i + odd];
                }
            }
            PermuteOp::Zip1 | PermuteOp::Zip2 => {
                let start = if op == PermuteOp::Zip2 { pairs } else { 0 };
                for i in 0..pairs {
                    d[2 * i] = n[start + i];
                    d[2 * i + 1] = m[start + i];
                }
            }
        }
    }
    each_unsigned!(size, T => {
        let n = *T::view(reg(regs, rn));
        let m = *T::view(reg(regs, rm));
        let d = T::view_mut(reg_mut(regs, rd));
        if q {
            lanes(op, n.len(), &n, &m, d);
        } else {
            lanes(op, n.len() / 2, &n, &m, d);
        }
    });
    trim(regs, rd, active_bytes(q));
}

#[inline]
pub(super) fn ext(regs: &mut Regs, q: bool, rd: u8, rn: u8, rm: u8, index: u8) {
    let (n, m) = (*reg(regs, rn), *reg(regs, rm));
    let shift = u32::from(index & 15) * 8;
    *reg_mut(regs, rd) = if q {
        // Shifting in two steps keeps a zero index in range.
        n >> shift | m << 1 << (127 - shift)
    } else {
        let pair = (n & u128::from(u64::MAX)) | m << 64;
        (pair >> (shift & 63)) & u128::from(u64::MAX)
    };
}

pub(super) fn table(regs: &mut Regs, extend: bool, q: bool, count: u8, rd: u8, rn: u8, rm: u8) {
    let indices = *<u8 as Lane<16>>::view(reg(regs, rm));
    let mut result = if extend { *<u8 as Lane<16>>::view(reg(regs, rd)) } else { [0; 16] };
    for (to, index) in result.iter_mut().zip(indices) {
        let row = index >> 4;
        if row < count {
            *to = <u8 as Lane<16>>::view(reg(regs, rn.wrapping_add(row)))[usize::from(index & 15)];
        }
    }
    *<u8 as Lane<16>>::view_mut(reg_mut(regs, rd)) = result;
    trim(regs, rd, active_bytes(q));
}

#[inline]
pub(super) fn move_imm(regs: &mut Regs, q: bool, rd: u8, imm: u64) {
    *<u64 as Lane<2>>::view_mut(reg_mut(regs, rd)) = [imm, if q { imm } else { 0 }];
}

pub(super) fn orr_imm(regs: &mut Regs, q: bool, rd: u8, imm: u64) {
    let d = <u64 as Lane<2>>::view_mut(reg_mut(regs, rd));
    *d = [d[0] | imm, if q { d[1] | imm } else { 0 }];
}

pub(super) fn bic_imm(regs: &mut Regs, q: bool, rd: u8, imm: u64) {
    let d = <u64 as Lane<2>>::view_mut(reg_mut(regs, rd));
    *d = [d[0] & !imm, if q { d[1] & !imm } else { 0 }];
}
