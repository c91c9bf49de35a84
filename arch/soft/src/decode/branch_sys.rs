//! Decoding of the group "Branches, Exception Generating and System instructions" (Arm ARM C4.1). Nothing is executed here.

use super::{bit, byte, field, rd, rn, signed};
use crate::insn::Insn;

/// Decodes a word of this group.
pub(super) fn decode(word: u32) -> Option<Insn> {
    match field(word, 24, 8) {
        0x14..=0x17 => Some(Insn::B { offset: signed(word, 0, 26) << 2 }),
        0x94..=0x97 => Some(Insn::Bl { offset: signed(word, 0, 26) << 2 }),
        0x34 | 0x35 | 0xb4 | 0xb5 => Some(Insn::Cbz {
            sf: bit(word, 31),
            nonzero: bit(word, 24),
            rt: rd(word),
            offset: signed(word, 5, 19) << 2,
        }),
        0x36 | 0x37 | 0xb6 | 0xb7 => Some(Insn::Tbz {
            nonzero: bit(word, 24),
            bit: byte(word, 31, 1) << 5 | byte(word, 19, 5),
            rt: rd(word),
            offset: signed(word, 5, 14) << 2,
        }),
        // With bit 4 set it is BC.cond (FEAT_HBC).
        0x54 if !bit(word, 4) => {
            Some(Insn::BCond { cond: byte(word, 0, 4), offset: signed(word, 5, 19) << 2 })
        }
        0xd4 => exception(word),
        0xd5 => system(word),
        0xd6 => branch_register(word),
        _ => None,
    }
}

fn exception(word: u32) -> Option<Insn> {
    let imm = field(word, 5, 16) as u16;
    match (field(word, 21, 3), field(word, 0, 5)) {
        (0b000, 0b00001) => Some(Insn::Svc { imm }),
        (0b000, 0b00010) => Some(Insn::Hvc { imm }),
        (0b000, 0b00011) => Some(Insn::Smc { imm }),
        (0b001, 0b00000) => Some(Insn::Brk { imm }),
        (0b010, 0b00000) => Some(Insn::Hlt { imm }),
        // DCPS1 to DCPS3 are UNDEFINED outside Debug state.
        _ => None,
    }
}

fn branch_register(word: u32) -> Option<Insn> {
    let rn = rn(word);
    // op2 must be ones; op3 and op4 are zero without pointer authentication.
    if field(word, 10, 11) != 0x7c0 || field(word, 0, 5) != 0 {
        return None;
    }
    match field(word, 21, 4) {
        0b0000 => Some(Insn::Br { rn }),
        0b0001 => Some(Insn::Blr { rn }),
        0b0010 => Some(Insn::Ret { rn }),
        0b0100 if rn == 31 => Some(Insn::Eret),
        // DRPS is UNDEFINED outside Debug state.
        _ => None,
    }
}

fn system(word: u32) -> Option<Insn> {
    if field(word, 22, 2) != 0 {
        // The 128-bit system instructions (FEAT_D128).
        return None;
    }
    let (op1, crn, crm, op2, rt) =
        (byte(word, 16, 3), byte(word, 12, 4), byte(word, 8, 4), byte(word, 5, 3), rd(word));
    match (bit(word, 21), field(word, 19, 2)) {
        (false, 0) if rt == 31 => match crn {
            0b0010 if op1 == 3 => Some(hint(crm << 3 | op2)),
            0b0011 if op1 == 3 => barrier(crm, op2),
            0b0100 => pstate(op1, op2, crm),
            _ => None,
        },
        (_, 0) => None,
        (false, 1) => Some(Insn::Sys { op1, crn, crm, op2, rt }),
        (true, 1) => Some(Insn::Sysl { op1, crn, crm, op2, rt }),
        (false, _) => Some(Insn::Msr { reg: field(word, 5, 16) as u16, rt }),
        (true, _) => Some(Insn::Mrs { reg: field(word, 5, 16) as u16, rt }),
    }
}

fn hint(number: u8) -> Insn {
    match number {
        1 => Insn::Yield,
        2 => Insn::Wfe,
        3 => Insn::Wfi,
        4 => Insn::Sev,
        5 => Insn::Sevl,
        _ => Insn::Nop,
    }
}

fn barrier(crm: u8, op2: u8) -> Option<Insn> {
    match op2 {
        0b010 => Some(Insn::Clrex),
        0b100 => Some(Insn::Dsb { option: crm }),
        0b101 => Some(Insn::Dmb { option: crm }),
        0b110 => Some(Insn::Isb),
        // DSB nXS (FEAT_XS), TCOMMIT (FEAT_TME), SB (FEAT_SB).
        _ => None,
    }
}

/// MSR (immediate): SPSel, PAN (FEAT_PAN), DAIFSet and DAIFClr.
fn pstate(op1: u8, op2: u8, imm: u8) -> Option<Insn> {
    matches!((op1, op2), (0, 4) | (0, 5) | (3, 6) | (3, 7)).then_some(Insn::MsrImm { op1, op2, imm })
}
