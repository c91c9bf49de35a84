//! Decoding of the group "Data Processing - Immediate" (Arm ARM C4.1). Nothing is executed here.

use super::{bit, byte, field, rd, rm, rn, signed};
use crate::insn::{BitfieldOp, Insn, LogicOp, MoveOp};

/// Decodes a word of this group.
pub(super) fn decode(word: u32) -> Option<Insn> {
    match field(word, 23, 3) {
        0b000 | 0b001 => Some(adr(word)),
        0b010 => Some(add_sub(word)),
        0b100 => logical(word),
        0b101 => move_wide(word),
        0b110 => bitfield(word),
        0b111 => extract(word),
        // Min/max (FEAT_CSSC) and tags (FEAT_MTE).
        _ => None,
    }
}

fn adr(word: u32) -> Insn {
    let page = bit(word, 31);
    let offset = signed(word, 5, 19) << 2 | i64::from(field(word, 29, 2));
    Insn::Adr { page, rd: rd(word), offset: if page { offset << 12 } else { offset } }
}

fn add_sub(word: u32) -> Insn {
    Insn::AddSubImm {
        sf: bit(word, 31),
        sub: bit(word, 30),
        set_flags: bit(word, 29),
        rd: rd(word),
        rn: rn(word),
        imm: field(word, 10, 12) << if bit(word, 22) { 12 } else { 0 },
    }
}

fn logical(word: u32) -> Option<Insn> {
    let sf = bit(word, 31);
    Some(Insn::LogicalImm {
        sf,
        op: logic_op(word),
        rd: rd(word),
        rn: rn(word),
        imm: bitmask(sf, bit(word, 22), field(word, 16, 6), field(word, 10, 6))?,
    })
}

/// The operation in bits 30 to 29 of the logical instructions.
pub(super) fn logic_op(word: u32) -> LogicOp {
    match field(word, 29, 2) {
        0 => LogicOp::And,
        1 => LogicOp::Orr,
        2 => LogicOp::Eor,
        _ => LogicOp::Ands,
    }
}

/// DecodeBitMasks (Arm ARM, shared pseudocode): a run of ones, rotated right by `immr`, in an element that is repeated.
/// `None` if reserved.
fn bitmask(sf: bool, n: bool, immr: u32, imms: u32) -> Option<u64> {
    // The element's size is the highest set bit of N:NOT(imms).
    let combined = u32::from(n) << 6 | (!imms & 0x3f);
    let len = combined.checked_ilog2()?;
    let size = 1 << len;
    let (ones, rotation) = (imms & (size - 1), immr & (size - 1));
    if len == 0 || (n && !sf) || ones == size - 1 {
        return None;
    }
    let run = (1u64 << (ones + 1)) - 1;
    let element_mask = u64::MAX >> (64 - size);
    let rotated = match rotation {
        0 => run,
        _ => (run >> rotation | run << (size - rotation)) & element_mask,
    };
    // One bit set in each element: multiplying by it repeats the element.
    let repeated = rotated.wrapping_mul(u64::MAX / element_mask);
    Some(if sf { repeated } else { repeated & 0xffff_ffff })
}

fn move_wide(word: u32) -> Option<Insn> {
    let sf = bit(word, 31);
    let op = match field(word, 29, 2) {
        0 => MoveOp::Movn,
        2 => MoveOp::Movz,
        3 => MoveOp::Movk,
        _ => return None,
    };
    let shift = byte(word, 21, 2) * 16;
    (sf || shift < 32).then(|| Insn::MoveWide { sf, op, rd: rd(word), imm: field(word, 5, 16) as u16, shift })
}

/// Whether a 32-bit form keeps its 6-bit positions below 32, and bit N (22) is as `sf` demands.
fn positions_fit(word: u32) -> bool {
    let sf = bit(word, 31);
    bit(word, 22) == sf && (sf || !bit(word, 15))
}

fn bitfield(word: u32) -> Option<Insn> {
    let op = match field(word, 29, 2) {
        0 => BitfieldOp::Sbfm,
        1 => BitfieldOp::Bfm,
        2 => BitfieldOp::Ubfm,
        _ => return None,
    };
    let sf = bit(word, 31);
    (positions_fit(word) && (sf || !bit(word, 21))).then(|| Insn::Bitfield {
        sf,
        op,
        rd: rd(word),
        rn: rn(word),
        immr: byte(word, 16, 6),
        imms: byte(word, 10, 6),
    })
}

fn extract(word: u32) -> Option<Insn> {
    let allocated = field(word, 29, 2) == 0 && !bit(word, 21) && positions_fit(word);
    allocated.then(|| Insn::Extract {
        sf: bit(word, 31),
        rd: rd(word),
        rn: rn(word),
        rm: rm(word),
        lsb: byte(word, 10, 6),
    })
}
