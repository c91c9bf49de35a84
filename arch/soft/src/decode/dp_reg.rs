//! Decoding of the group "Data Processing - Register" (Arm ARM C4.1). Nothing is executed here.

use super::dp_imm::logic_op;
use super::{bit, byte, field, ra, rd, rm, rn};
use crate::insn::{CompareOperand, DataProc1, DataProc2, DataProc3, Extend, Insn, SelectOp, Shift};

/// Decodes a word of this group.
pub(super) fn decode(word: u32) -> Option<Insn> {
    match (bit(word, 28), field(word, 21, 4)) {
        (false, 0b0000..=0b0111) => logical_shifted(word),
        (false, op) if op & 1 == 0 => add_sub_shifted(word),
        (false, _) => add_sub_extended(word),
        (true, 0b0000) => add_sub_carry(word),
        (true, 0b0010) => cond_compare(word),
        (true, 0b0100) => cond_select(word),
        (true, 0b0110) if bit(word, 30) => one_source(word),
        (true, 0b0110) => two_source(word),
        (true, 0b1000..=0b1111) => three_source(word),
        _ => None,
    }
}

/// The shift type in bits 23 to 22.
fn shift(word: u32) -> Shift {
    match field(word, 22, 2) {
        0 => Shift::Lsl,
        1 => Shift::Lsr,
        2 => Shift::Asr,
        _ => Shift::Ror,
    }
}

/// The extension in bits 15 to 13.
pub(super) fn extend(word: u32) -> Extend {
    match field(word, 13, 3) {
        0 => Extend::Uxtb,
        1 => Extend::Uxth,
        2 => Extend::Uxtw,
        3 => Extend::Uxtx,
        4 => Extend::Sxtb,
        5 => Extend::Sxth,
        6 => Extend::Sxtw,
        _ => Extend::Sxtx,
    }
}

fn logical_shifted(word: u32) -> Option<Insn> {
    let (sf, amount) = (bit(word, 31), byte(word, 10, 6));
    (sf || amount < 32).then(|| Insn::LogicalReg {
        sf,
        op: logic_op(word),
        invert: bit(word, 21),
        shift: shift(word),
        amount,
        rd: rd(word),
        rn: rn(word),
        rm: rm(word),
    })
}

fn add_sub_shifted(word: u32) -> Option<Insn> {
    let (sf, amount, shift) = (bit(word, 31), byte(word, 10, 6), shift(word));
    (shift != Shift::Ror && (sf || amount < 32)).then(|| Insn::AddSubReg {
        sf,
        sub: bit(word, 30),
        set_flags: bit(word, 29),
        shift,
        amount,
        rd: rd(word),
        rn: rn(word),
        rm: rm(word),
    })
}

fn add_sub_extended(word: u32) -> Option<Insn> {
    let amount = byte(word, 10, 3);
    (field(word, 22, 2) == 0 && amount <= 4).then(|| Insn::AddSubExt {
        sf: bit(word, 31),
        sub: bit(word, 30),
        set_flags: bit(word, 29),
        extend: extend(word),
        amount,
        rd: rd(word),
        rn: rn(word),
        rm: rm(word),
    })
}

fn add_sub_carry(word: u32) -> Option<Insn> {
    // Other values of bits 15 to 10 are RMIF and SETF (FEAT_FlagM), ADDPT and SUBPT (FEAT_CPA).
    (field(word, 10, 6) == 0).then(|| Insn::AddSubCarry {
        sf: bit(word, 31),
        sub: bit(word, 30),
        set_flags: bit(word, 29),
        rd: rd(word),
        rn: rn(word),
        rm: rm(word),
    })
}

fn cond_compare(word: u32) -> Option<Insn> {
    let operand = if bit(word, 11) { CompareOperand::Imm(rm(word)) } else { CompareOperand::Reg(rm(word)) };
    (bit(word, 29) && !bit(word, 10) && !bit(word, 4)).then(|| Insn::CondCompare {
        sf: bit(word, 31),
        sub: bit(word, 30),
        cond: byte(word, 12, 4),
        nzcv: byte(word, 0, 4),
        rn: rn(word),
        operand,
    })
}

fn cond_select(word: u32) -> Option<Insn> {
    let op = match (bit(word, 30), bit(word, 10)) {
        (false, false) => SelectOp::Csel,
        (false, true) => SelectOp::Csinc,
        (true, false) => SelectOp::Csinv,
        (true, true) => SelectOp::Csneg,
    };
    (!bit(word, 29) && !bit(word, 11)).then(|| Insn::CondSelect {
        sf: bit(word, 31),
        op,
        cond: byte(word, 12, 4),
        rd: rd(word),
        rn: rn(word),
        rm: rm(word),
    })
}

fn two_source(word: u32) -> Option<Insn> {
    let sf = bit(word, 31);
    let size = byte(word, 10, 2);
    let op = match field(word, 10, 6) {
        0b000010 => DataProc2::Udiv,
        0b000011 => DataProc2::Sdiv,
        0b001000 => DataProc2::Lslv,
        0b001001 => DataProc2::Lsrv,
        0b001010 => DataProc2::Asrv,
        0b001011 => DataProc2::Rorv,
        // The 64-bit operand goes with sf and with nothing else.
        0b010000..=0b010011 if sf == (size == 3) => DataProc2::Crc32 { size },
        0b010100..=0b010111 if sf == (size == 3) => DataProc2::Crc32c { size },
        _ => return None,
    };
    (!bit(word, 29)).then(|| Insn::DataProc2 { sf, op, rd: rd(word), rn: rn(word), rm: rm(word) })
}

fn one_source(word: u32) -> Option<Insn> {
    let sf = bit(word, 31);
    let op = match (field(word, 10, 6), sf) {
        (0, _) => DataProc1::Rbit,
        (1, _) => DataProc1::Rev16,
        (2, false) | (3, true) => DataProc1::Rev,
        (2, true) => DataProc1::Rev32,
        (4, _) => DataProc1::Clz,
        (5, _) => DataProc1::Cls,
        _ => return None,
    };
    // opcode2 00001 is pointer authentication.
    (!bit(word, 29) && rm(word) == 0).then(|| Insn::DataProc1 { sf, op, rd: rd(word), rn: rn(word) })
}

fn three_source(word: u32) -> Option<Insn> {
    let sf = bit(word, 31);
    let op = match (sf, field(word, 21, 3), bit(word, 15)) {
        (_, 0b000, false) => DataProc3::Madd,
        (_, 0b000, true) => DataProc3::Msub,
        (true, 0b001, false) => DataProc3::Smaddl,
        (true, 0b001, true) => DataProc3::Smsubl,
        (true, 0b010, false) => DataProc3::Smulh,
        (true, 0b101, false) => DataProc3::Umaddl,
        (true, 0b101, true) => DataProc3::Umsubl,
        (true, 0b110, false) => DataProc3::Umulh,
        _ => return None,
    };
    (field(word, 29, 2) == 0).then(|| Insn::DataProc3 {
        sf,
        op,
        rd: rd(word),
        rn: rn(word),
        rm: rm(word),
        ra: ra(word),
    })
}
