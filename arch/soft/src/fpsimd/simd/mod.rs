//! The integer half of Advanced SIMD and the cryptographic extensions (AES with PMULL, SHA1, SHA256): decoding and execution.
//!
//! Vector and scalar forms share their variants: a scalar is a vector of which only the first bytes are active. No
//! floating point, no conversions, no loads and stores; nothing newer than ARMv8.0-A (RDM, DotProd, SHA3, ...).

mod crypto;
mod decode;
mod integer;
mod lane;
mod long;
mod permute;
mod shift;

pub use decode::decode;
pub use lane::Part;

use crate::regs::Regs;

/// The size of an element: 8, 16, 32 or 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Esize {
    B,
    H,
    S,
    D,
}

impl Esize {
    /// The size from its two-bit encoding, log2 of the bytes.
    pub fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Esize::B,
            1 => Esize::H,
            2 => Esize::S,
            _ => Esize::D,
        }
    }

    /// The bytes of an element.
    pub fn bytes(self) -> u8 {
        1 << self as u8
    }

    /// The bits of an element.
    pub fn bits(self) -> u8 {
        8 << self as u8
    }
}

/// Bitwise operations on whole registers. BSL, BIT and BIF read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogicOp {
    And,
    Bic,
    Orr,
    Orn,
    Eor,
    Bsl,
    Bit,
    Bif,
}

/// Lane-wise operations of two registers, some of which (SABA, UABA) read Vd as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ThreeSameOp {
    Add,
    Sub,
    Cmeq,
    Cmtst,
    Cmgt,
    Cmge,
    Cmhi,
    Cmhs,
    Smax,
    Umax,
    Smin,
    Umin,
    Shadd,
    Uhadd,
    Srhadd,
    Urhadd,
    Shsub,
    Uhsub,
    Sqadd,
    Uqadd,
    Sqsub,
    Uqsub,
    Sabd,
    Uabd,
    Saba,
    Uaba,
    Pmul,
}

/// Shifts by a signed count in the low byte of each lane of Vm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShiftRegOp {
    Sshl,
    Ushl,
    Srshl,
    Urshl,
    Sqshl,
    Uqshl,
    Sqrshl,
    Uqrshl,
}

/// Multiplications that keep the width. MLA and MLS read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MultiplyOp {
    Mul,
    Mla,
    Mls,
    Sqdmulh,
    Sqrdmulh,
}

/// Operations on neighbouring lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PairwiseOp {
    Addp,
    Smaxp,
    Umaxp,
    Sminp,
    Uminp,
}

/// Operations of two narrow registers with a wide result. SABAL and UABAL read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LongOp {
    Saddl,
    Uaddl,
    Ssubl,
    Usubl,
    Sabal,
    Uabal,
    Sabdl,
    Uabdl,
    /// Of bytes. That of doublewords is [`Simd::Pmull64`].
    Pmull,
}

/// Multiplications with a wide result. All but SMULL, UMULL and SQDMULL read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LongMultiplyOp {
    Smull,
    Umull,
    Smlal,
    Umlal,
    Smlsl,
    Umlsl,
    Sqdmull,
    Sqdmlal,
    Sqdmlsl,
}

/// Operations of a wide and a narrow register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum WideOp {
    Saddw,
    Uaddw,
    Ssubw,
    Usubw,
}

/// The upper halves of sums and differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HighNarrowOp {
    Addhn,
    Raddhn,
    Subhn,
    Rsubhn,
}

/// Operations of one register. SUQADD and USQADD read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum UnaryOp {
    Rev64,
    Rev32,
    Rev16,
    Cls,
    Clz,
    Cnt,
    Not,
    Rbit,
    Abs,
    Neg,
    Sqabs,
    Sqneg,
    Suqadd,
    Usqadd,
    /// CMGT with zero, as the following ones.
    CmgtZero,
    CmgeZero,
    CmeqZero,
    CmleZero,
    CmltZero,
}

/// SADDLP, UADDLP and their accumulating partners, which read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PairwiseLongOp {
    Saddlp,
    Uaddlp,
    Sadalp,
    Uadalp,
}

/// Narrowing moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NarrowOp {
    Xtn,
    Sqxtn,
    Sqxtun,
    Uqxtn,
}

/// Reductions of all lanes to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AcrossOp {
    Addv,
    Smaxv,
    Umaxv,
    Sminv,
    Uminv,
    Saddlv,
    Uaddlv,
}

/// Interleavings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PermuteOp {
    Uzp1,
    Uzp2,
    Trn1,
    Trn2,
    Zip1,
    Zip2,
}

/// Shifts by a constant. SSRA, USRA, SRSRA, URSRA, SRI and SLI read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShiftOp {
    Sshr,
    Ushr,
    Ssra,
    Usra,
    Srshr,
    Urshr,
    Srsra,
    Ursra,
    Sri,
    Shl,
    Sli,
    Sqshl,
    Uqshl,
    Sqshlu,
}

/// Narrowing right shifts by a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShiftNarrowOp {
    Shrn,
    Rshrn,
    Sqshrn,
    Uqshrn,
    Sqshrun,
    Sqrshrn,
    Uqrshrn,
    Sqrshrun,
}

/// AES rounds, each on one register; AESE and AESD read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AesOp {
    Aese,
    Aesd,
    Aesmc,
    Aesimc,
}

/// SHA1 and SHA256 steps of three registers. All read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sha3RegOp {
    Sha1c,
    Sha1p,
    Sha1m,
    Sha1su0,
    Sha256h,
    Sha256h2,
    Sha256su1,
}

/// SHA1 and SHA256 steps of two registers. All but SHA1H read Vd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sha2RegOp {
    Sha1h,
    Sha1su1,
    Sha256su0,
}

/// A decoded instruction.
///
/// `q` is true for 128-bit forms. `bytes` is how much of the result is active: 16, 8, or the element size of a scalar form.
/// `high` picks the upper half of the narrow side (the "2" forms). `size` is that of the narrower elements where there are two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Simd {
    Logic {
        op: LogicOp,
        q: bool,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    ThreeSame {
        op: ThreeSameOp,
        size: Esize,
        bytes: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    ShiftReg {
        op: ShiftRegOp,
        size: Esize,
        bytes: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    Multiply {
        op: MultiplyOp,
        size: Esize,
        bytes: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// By element `index` of `rm`.
    MultiplyElement {
        op: MultiplyOp,
        size: Esize,
        bytes: u8,
        rd: u8,
        rn: u8,
        rm: u8,
        index: u8,
    },
    Pairwise {
        op: PairwiseOp,
        size: Esize,
        q: bool,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// ADDP (scalar): the sum of both doublewords.
    AddpScalar {
        rd: u8,
        rn: u8,
    },
    Long {
        op: LongOp,
        size: Esize,
        high: bool,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    LongMultiply {
        op: LongMultiplyOp,
        size: Esize,
        part: Part,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// By element `index` of `rm`.
    LongMultiplyElement {
        op: LongMultiplyOp,
        size: Esize,
        part: Part,
        rd: u8,
        rn: u8,
        rm: u8,
        index: u8,
    },
    Wide {
        op: WideOp,
        size: Esize,
        high: bool,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    HighNarrow {
        op: HighNarrowOp,
        size: Esize,
        high: bool,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// PMULL, PMULL2 of doublewords.
    Pmull64 {
        high: bool,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    Unary {
        op: UnaryOp,
        size: Esize,
        bytes: u8,
        rd: u8,
        rn: u8,
    },
    PairwiseLong {
        op: PairwiseLongOp,
        size: Esize,
        q: bool,
        rd: u8,
        rn: u8,
    },
    Narrow {
        op: NarrowOp,
        size: Esize,
        part: Part,
        rd: u8,
        rn: u8,
    },
    Across {
        op: AcrossOp,
        size: Esize,
        q: bool,
        rd: u8,
        rn: u8,
    },
    /// DUP (element): to a vector, or (`bytes` of the element) to a scalar.
    DupElement {
        size: Esize,
        bytes: u8,
        rd: u8,
        rn: u8,
        index: u8,
    },
    /// DUP (general): `rn` 31 is ZR.
    DupGeneral {
        size: Esize,
        q: bool,
        rd: u8,
        rn: u8,
    },
    /// INS (general): `rn` 31 is ZR.
    InsGeneral {
        size: Esize,
        rd: u8,
        index: u8,
        rn: u8,
    },
    InsElement {
        size: Esize,
        rd: u8,
        to: u8,
        rn: u8,
        from: u8,
    },
    /// To a general register (31 is ZR), sign-extended to 32 or (`sf`) 64 bits.
    Smov {
        size: Esize,
        sf: bool,
        rd: u8,
        rn: u8,
        index: u8,
    },
    /// To a general register (31 is ZR), zero-extended.
    Umov {
        size: Esize,
        rd: u8,
        rn: u8,
        index: u8,
    },
    Permute {
        op: PermuteOp,
        size: Esize,
        q: bool,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// `index` is in bytes.
    Ext {
        q: bool,
        rd: u8,
        rn: u8,
        rm: u8,
        index: u8,
    },
    /// TBL, or TBX (`extend`), with `count` (1 to 4) table registers from `rn` on.
    Table {
        extend: bool,
        q: bool,
        count: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// MOVI, MVNI: the pattern of each doubleword.
    MoveImm {
        q: bool,
        rd: u8,
        imm: u64,
    },
    /// ORR (immediate): the pattern of each doubleword.
    OrrImm {
        q: bool,
        rd: u8,
        imm: u64,
    },
    /// BIC (immediate): the pattern of each doubleword, the bits to be cleared.
    BicImm {
        q: bool,
        rd: u8,
        imm: u64,
    },
    /// `shift` is 1 to the element's bits for right, 0 to one less for left shifts.
    Shift {
        op: ShiftOp,
        size: Esize,
        bytes: u8,
        shift: u8,
        rd: u8,
        rn: u8,
    },
    /// USHLL (`unsigned`), SSHLL, and SHLL, whose shift is that of the element's bits.
    ShiftLong {
        unsigned: bool,
        size: Esize,
        high: bool,
        shift: u8,
        rd: u8,
        rn: u8,
    },
    /// `shift` is 1 to the bits of the narrow element.
    ShiftNarrow {
        op: ShiftNarrowOp,
        size: Esize,
        part: Part,
        shift: u8,
        rd: u8,
        rn: u8,
    },
    Aes {
        op: AesOp,
        rd: u8,
        rn: u8,
    },
    Sha3Reg {
        op: Sha3RegOp,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    Sha2Reg {
        op: Sha2RegOp,
        rd: u8,
        rn: u8,
    },
}

const _: () = assert!(size_of::<Simd>() <= 16);

/// Executes one decoded instruction.
pub fn execute(insn: &Simd, regs: &mut Regs) {
    match *insn {
        Simd::Logic { op, q, rd, rn, rm } => integer::logic(regs, op, q, rd, rn, rm),
        Simd::ThreeSame { op, size, bytes, rd, rn, rm } => {
            integer::three_same(regs, op, size, bytes, rd, rn, rm)
        }
        Simd::ShiftReg { op, size, bytes, rd, rn, rm } => {
            shift::by_register(regs, op, size, bytes, rd, rn, rm)
        }
        Simd::Multiply { op, size, bytes, rd, rn, rm } => {
            integer::multiply(regs, op, size, bytes, rd, rn, lane::Whole(rm))
        }
        Simd::MultiplyElement { op, size, bytes, rd, rn, rm, index } => {
            integer::multiply(regs, op, size, bytes, rd, rn, lane::Element { rm, index })
        }
        Simd::Pairwise { op, size, q, rd, rn, rm } => integer::pairwise(regs, op, size, q, rd, rn, rm),
        Simd::AddpScalar { rd, rn } => integer::addp_scalar(regs, rd, rn),
        Simd::Long { op, size, high, rd, rn, rm } => long::long(regs, op, size, high, rd, rn, rm),
        Simd::LongMultiply { op, size, part, rd, rn, rm } => {
            long::multiply(regs, op, size, part, rd, rn, lane::Whole(rm))
        }
        Simd::LongMultiplyElement { op, size, part, rd, rn, rm, index } => {
            long::multiply(regs, op, size, part, rd, rn, lane::Element { rm, index })
        }
        Simd::Wide { op, size, high, rd, rn, rm } => long::wide(regs, op, size, high, rd, rn, rm),
        Simd::HighNarrow { op, size, high, rd, rn, rm } => {
            long::high_narrow(regs, op, size, high, rd, rn, rm)
        }
        Simd::Pmull64 { high, rd, rn, rm } => long::pmull64(regs, high, rd, rn, rm),
        Simd::Unary { op, size, bytes, rd, rn } => integer::unary(regs, op, size, bytes, rd, rn),
        Simd::PairwiseLong { op, size, q, rd, rn } => long::pairwise_long(regs, op, size, q, rd, rn),
        Simd::Narrow { op, size, part, rd, rn } => long::narrow(regs, op, size, part, rd, rn),
        Simd::Across { op, size, q, rd, rn } => integer::across(regs, op, size, q, rd, rn),
        Simd::DupElement { size, bytes, rd, rn, index } => {
            permute::dup_element(regs, size, bytes, rd, rn, index)
        }
        Simd::DupGeneral { size, q, rd, rn } => permute::dup_general(regs, size, q, rd, rn),
        Simd::InsGeneral { size, rd, index, rn } => permute::ins_general(regs, size, rd, index, rn),
        Simd::InsElement { size, rd, to, rn, from } => permute::ins_element(regs, size, rd, to, rn, from),
        Simd::Smov { size, sf, rd, rn, index } => permute::smov(regs, size, sf, rd, rn, index),
        Simd::Umov { size, rd, rn, index } => permute::umov(regs, size, rd, rn, index),
        Simd::Permute { op, size, q, rd, rn, rm } => permute::permute(regs, op, size, q, rd, rn, rm),
        Simd::Ext { q, rd, rn, rm, index } => permute::ext(regs, q, rd, rn, rm, index),
        Simd::Table { extend, q, count, rd, rn, rm } => permute::table(regs, extend, q, count, rd, rn, rm),
        Simd::MoveImm { q, rd, imm } => permute::move_imm(regs, q, rd, imm),
        Simd::OrrImm { q, rd, imm } => permute::orr_imm(regs, q, rd, imm),
        Simd::BicImm { q, rd, imm } => permute::bic_imm(regs, q, rd, imm),
        Simd::Shift { op, size, bytes, shift, rd, rn } => {
            shift::by_immediate(regs, op, size, bytes, shift, rd, rn)
        }
        Simd::ShiftLong { unsigned, size, high, shift, rd, rn } => {
            shift::long(regs, unsigned, size, high, shift, rd, rn)
        }
        Simd::ShiftNarrow { op, size, part, shift, rd, rn } => {
            shift::narrow(regs, op, size, part, shift, rd, rn)
        }
        Simd::Aes { op, rd, rn } => crypto::aes(regs, op, rd, rn),
        Simd::Sha3Reg { op, rd, rn, rm } => crypto::sha_three(regs, op, rd, rn, rm),
        Simd::Sha2Reg { op, rd, rn } => crypto::sha_two(regs, op, rd, rn),
    }
}

#[cfg(test)]
mod tests;
