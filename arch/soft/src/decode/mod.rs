//! From an instruction word to an [`Insn`]: which encodings exist and what their fields say. Nothing is executed here.
//!
//! The order follows the Arm ARM's chapter C4.1 (A64 instruction set encoding): one file a top-level group.

mod branch_sys;
mod dp_imm;
mod dp_reg;
mod ldst;

use crate::fpsimd;
use crate::insn::Insn;

/// Decodes one A64 instruction word. `None` means UNDEFINED: unallocated, or of an extension that this CPU does not have.
///
/// CONSTRAINED UNPREDICTABLE encodings (writeback to a loaded register, wrong should-be bits) decode normally.
pub fn decode(word: u32) -> Option<Insn> {
    match field(word, 25, 4) {
        0b1000 | 0b1001 => dp_imm::decode(word),
        0b1010 | 0b1011 => branch_sys::decode(word),
        0b0100 | 0b0110 | 0b1100 | 0b1110 => ldst::decode(word),
        0b0101 | 0b1101 => dp_reg::decode(word),
        0b0111 | 0b1111 => fpsimd::decode(word).map(Insn::FpSimd),
        // Reserved (UDF), SME and SVE.
        _ => None,
    }
}

/// The `width` bits of `word` from bit `low` upwards.
fn field(word: u32, low: u32, width: u32) -> u32 {
    word >> low & ((1 << width) - 1)
}

/// [`field`] for widths of at most 8 bits.
fn byte(word: u32, low: u32, width: u32) -> u8 {
    field(word, low, width) as u8
}

/// Whether bit `n` of `word` is set.
fn bit(word: u32, n: u32) -> bool {
    word >> n & 1 == 1
}

/// [`field`], sign-extended.
fn signed(word: u32, low: u32, width: u32) -> i64 {
    let unused = 32 - width;
    i64::from((field(word, low, width) << unused) as i32 >> unused)
}

/// Rd and Rt: bits 4 to 0.
fn rd(word: u32) -> u8 {
    byte(word, 0, 5)
}

/// Rn: bits 9 to 5.
fn rn(word: u32) -> u8 {
    byte(word, 5, 5)
}

/// Rm and Rs: bits 20 to 16.
fn rm(word: u32) -> u8 {
    byte(word, 16, 5)
}

/// Ra and Rt2: bits 14 to 10.
fn ra(word: u32) -> u8 {
    byte(word, 10, 5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::insn::{Address, AtomicOp, Extend, IndexMode, LogicOp, MemOp};

    #[test]
    fn zero_word_is_undefined() {
        assert_eq!(decode(0), None);
    }

    #[test]
    fn bitmask_immediate_is_rotated_and_replicated() {
        let insn = Insn::LogicalImm { sf: true, op: LogicOp::And, rd: 0, rn: 1, imm: 0xf00f_f00f_f00f_f00f };
        assert_eq!(decode(0x9204_9c20), Some(insn)); // and x0, x1, #0xf00ff00ff00ff00f
    }

    #[test]
    fn bitmask_immediate_of_all_ones_is_undefined() {
        assert_eq!(decode(0x9240_fc20), None);
    }

    #[test]
    fn adrp_offset_counts_pages_and_is_signed() {
        assert_eq!(decode(0xf0ff_ffe3), Some(Insn::Adr { page: true, rd: 3, offset: -4096 })); // adrp x3, .-4096
    }

    #[test]
    fn load_with_post_index_has_a_signed_unscaled_offset() {
        let insn = Insn::LoadStore {
            op: MemOp::Load { size: 3 },
            rt: 0,
            addr: Address::Imm { rn: 31, offset: -16, mode: IndexMode::Post },
            unprivileged: false,
        };
        assert_eq!(decode(0xf85f_07e0), Some(insn)); // ldr x0, [sp], #-16
    }

    #[test]
    fn register_offset_shift_is_the_size_of_the_access() {
        let insn = Insn::LoadStore {
            op: MemOp::LoadSigned { size: 1, to64: true },
            rt: 0,
            addr: Address::Reg { rn: 1, rm: 2, extend: Extend::Sxtw, shift: 1 },
            unprivileged: false,
        };
        assert_eq!(decode(0x78a2_d820), Some(insn)); // ldrsh x0, [x1, w2, sxtw #1]
    }

    #[test]
    fn pair_offset_is_scaled() {
        let insn = Insn::LoadStorePair {
            load: false,
            simd: false,
            size: 3,
            signed: false,
            rt: 29,
            rt2: 30,
            rn: 31,
            offset: -32,
            mode: IndexMode::Pre,
        };
        assert_eq!(decode(0xa9be_7bfd), Some(insn)); // stp x29, x30, [sp, #-32]!
    }

    #[test]
    fn swap_and_load_add_are_told_apart() {
        let atomic = |op| Some(Insn::Atomic { op, size: 2, rs: 1, rt: 0, rn: 2 });
        assert_eq!(decode(0xb8e1_8040), atomic(AtomicOp::Swp)); // swpal w1, w0, [x2]
        assert_eq!(decode(0xb8e1_0040), atomic(AtomicOp::Add)); // ldaddal w1, w0, [x2]
    }

    #[test]
    fn unknown_hints_are_nops() {
        assert_eq!(decode(0xd503_233f), Some(Insn::Nop)); // paciasp
        assert_eq!(decode(0xd503_2fff), Some(Insn::Nop)); // hint #127
    }

    #[test]
    fn lane_index_takes_q_s_and_size() {
        let insn =
            Insn::SimdSingle { load: true, size: 0, selem: 1, index: 15, rt: 0, rn: 1, post: Some(31) };
        assert_eq!(decode(0x4ddf_1c20), Some(insn)); // ld1 {v0.b}[15], [x1], #1
    }

    #[test]
    fn pstate_fields_of_absent_extensions_are_undefined() {
        assert_eq!(decode(0xd503_4ddf), Some(Insn::MsrImm { op1: 3, op2: 6, imm: 13 })); // msr daifset, #13
        assert_eq!(decode(0xd500_417f), None); // msr uao, #1
    }
}
