//! Floating point, scalar and vector: what the instructions are, how they decode and what they compute. Integer vector
//! instructions are in `simd`, loads and stores elsewhere.
//!
//! The arithmetic is a soft float (`softfloat`, `arith`, `convert`, `estimate`) that obeys FPCR and accumulates FPSR to the
//! letter of the Arm ARM; the common case runs on the host's arithmetic (`hostfloat`). ARMv8.0-A: no half-precision
//! arithmetic, no trapped exceptions.

mod arith;
mod convert;
mod decode;
mod estimate;
mod hostfloat;
mod scalar;
mod softfloat;
#[cfg(test)]
mod tests;
mod vector;

pub use decode::decode;
pub use softfloat::Rounding;

use crate::regs::Regs;

/// The precision of a scalar operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 16 bits: conversions only.
    Half,
    /// 32 bits.
    Single,
    /// 64 bits.
    Double,
}

/// How many lanes of which precision an instruction works on. Register bits above them become zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Scalar single.
    S,
    /// Scalar double.
    D,
    /// Two singles.
    V2S,
    /// Four singles.
    V4S,
    /// Two doubles.
    V2D,
}

/// One-operand operations that exist lane by lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnaryOp {
    /// FMOV between FP registers.
    Mov,
    /// FABS.
    Abs,
    /// FNEG.
    Neg,
    /// FSQRT.
    Sqrt,
    /// FRINTN.
    RoundTieEven,
    /// FRINTP.
    RoundPosInf,
    /// FRINTM.
    RoundNegInf,
    /// FRINTZ.
    RoundZero,
    /// FRINTA.
    RoundTieAway,
    /// FRINTX: as FPCR says, raising Inexact.
    RoundExact,
    /// FRINTI: as FPCR says.
    RoundCurrent,
    /// FCMEQ with zero.
    EqZero,
    /// FCMGE with zero.
    GeZero,
    /// FCMGT with zero.
    GtZero,
    /// FCMLE with zero.
    LeZero,
    /// FCMLT with zero.
    LtZero,
    /// FRECPE.
    RecipEstimate,
    /// FRSQRTE.
    RsqrtEstimate,
    /// FRECPX.
    RecipExponent,
    /// URECPE: unsigned 32-bit lanes.
    UnsignedRecipEstimate,
    /// URSQRTE: unsigned 32-bit lanes.
    UnsignedRsqrtEstimate,
}

/// Two-operand operations that exist lane by lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryOp {
    /// FADD.
    Add,
    /// FSUB.
    Sub,
    /// FMUL.
    Mul,
    /// FDIV.
    Div,
    /// FMAX.
    Max,
    /// FMIN.
    Min,
    /// FMAXNM.
    MaxNum,
    /// FMINNM.
    MinNum,
    /// FNMUL.
    NegMul,
    /// FMULX.
    MulX,
    /// FABD.
    AbsDiff,
    /// FRECPS.
    RecipStep,
    /// FRSQRTS.
    RsqrtStep,
    /// FCMEQ.
    Eq,
    /// FCMGE.
    Ge,
    /// FCMGT.
    Gt,
    /// FACGE.
    AbsGe,
    /// FACGT.
    AbsGt,
}

/// Operations with one element of a vector as the second operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementOp {
    /// FMLA.
    MulAdd,
    /// FMLS.
    MulSub,
    /// FMUL.
    Mul,
    /// FMULX.
    MulX,
}

/// Which bits FMOV moves between a general and an FP register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GprMove {
    /// Wn and Sn.
    Word,
    /// Xn and Dn.
    Doubleword,
    /// Xn and `Vn.D[1]`.
    TopHalf,
}

/// A decoded floating-point instruction. `rd`, `rn`, `rm` and `ra` are FP registers unless said; general register 31 is ZR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fp {
    Unary {
        op: UnaryOp,
        shape: Shape,
        rd: u8,
        rn: u8,
    },
    Binary {
        op: BinaryOp,
        shape: Shape,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// Pairs of adjacent lanes of the concatenation of `rm` (high) and `rn`.
    Pairwise {
        op: BinaryOp,
        shape: Shape,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// All lanes of `rn` to one: scalar pairwise (V2S, V2D) and across lanes (V4S).
    Reduce {
        op: BinaryOp,
        shape: Shape,
        rd: u8,
        rn: u8,
    },
    /// FMLA, FMLS (`sub`).
    Accumulate {
        sub: bool,
        shape: Shape,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// By element.
    Element {
        op: ElementOp,
        shape: Shape,
        rd: u8,
        rn: u8,
        rm: u8,
        index: u8,
    },
    /// FMADD, FMSUB, FNMADD, FNMSUB. Single or double.
    MulAdd {
        negate_product: bool,
        negate_addend: bool,
        double: bool,
        rd: u8,
        rn: u8,
        rm: u8,
        ra: u8,
    },
    /// FCVTxS, FCVTxU within the FP registers.
    ToInt {
        rounding: Rounding,
        signed: bool,
        fbits: u8,
        shape: Shape,
        rd: u8,
        rn: u8,
    },
    /// SCVTF, UCVTF within the FP registers.
    FromInt {
        signed: bool,
        fbits: u8,
        shape: Shape,
        rd: u8,
        rn: u8,
    },
    /// FCVTxS, FCVTxU to general register `rd` (64 bits if `sf`).
    ToGpr {
        rounding: Rounding,
        signed: bool,
        fbits: u8,
        double: bool,
        sf: bool,
        rd: u8,
        rn: u8,
    },
    /// SCVTF, UCVTF from general register `rn` (64 bits if `sf`).
    FromGpr {
        signed: bool,
        fbits: u8,
        double: bool,
        sf: bool,
        rd: u8,
        rn: u8,
    },
    /// FMOV to general register `rd`.
    MovToGpr {
        part: GprMove,
        rd: u8,
        rn: u8,
    },
    /// FMOV from general register `rn`.
    MovFromGpr {
        part: GprMove,
        rd: u8,
        rn: u8,
    },
    /// FCVT.
    Convert {
        from: Precision,
        to: Precision,
        rd: u8,
        rn: u8,
    },
    /// FCVTXN, scalar.
    ConvertOdd {
        rd: u8,
        rn: u8,
    },
    /// FCVTL, FCVTL2 (`high`). `double`: from single to double, else from half to single.
    Widen {
        double: bool,
        high: bool,
        rd: u8,
        rn: u8,
    },
    /// FCVTN, FCVTN2 (`high`), FCVTXN, FCVTXN2 (`odd`). `double`: from double to single, else from single to half.
    Narrow {
        double: bool,
        high: bool,
        odd: bool,
        rd: u8,
        rn: u8,
    },
    /// FCMP, FCMPE (`signal`).
    Compare {
        signal: bool,
        double: bool,
        rn: u8,
        rm: u8,
    },
    /// FCMP, FCMPE (`signal`) with zero.
    CompareZero {
        signal: bool,
        double: bool,
        rn: u8,
    },
    /// FCCMP, FCCMPE (`signal`). `nzcv` is 4 bits, N highest.
    CondCompare {
        signal: bool,
        double: bool,
        cond: u8,
        nzcv: u8,
        rn: u8,
        rm: u8,
    },
    /// FCSEL.
    Select {
        double: bool,
        cond: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// FMOV (immediate), scalar and vector. `imm8` is as encoded.
    MovImm {
        shape: Shape,
        rd: u8,
        imm8: u8,
    },
}

/// Executes one decoded instruction.
pub fn execute(insn: &Fp, regs: &mut Regs) {
    match *insn {
        Fp::Unary { op, shape, rd, rn } => vector::unary(regs, op, shape, rd, rn),
        Fp::Binary { op, shape, rd, rn, rm } => vector::binary(regs, op, shape, [rd, rn, rm]),
        Fp::Pairwise { op, shape, rd, rn, rm } => vector::pairwise(regs, op, shape, [rd, rn, rm]),
        Fp::Reduce { op, shape, rd, rn } => vector::reduce(regs, op, shape, rd, rn),
        Fp::Accumulate { sub, shape, rd, rn, rm } => vector::accumulate(regs, sub, shape, [rd, rn, rm]),
        Fp::Element { op, shape, rd, rn, rm, index } => vector::element(regs, op, shape, [rd, rn, rm], index),
        Fp::MulAdd { negate_product, negate_addend, double, rd, rn, rm, ra } => {
            scalar::mul_add(regs, negate_product, negate_addend, double, [rd, rn, rm, ra]);
        }
        Fp::ToInt { rounding, signed, fbits, shape, rd, rn } => {
            vector::to_int(regs, rounding, signed, fbits, shape, [rd, rn]);
        }
        Fp::FromInt { signed, fbits, shape, rd, rn } => {
            vector::from_int(regs, signed, fbits, shape, [rd, rn])
        }
        Fp::ToGpr { rounding, signed, fbits, double, sf, rd, rn } => {
            scalar::to_gpr(regs, rounding, scalar::int_format(signed, sf, fbits), double, rd, rn);
        }
        Fp::FromGpr { signed, fbits, double, sf, rd, rn } => {
            scalar::from_gpr(regs, scalar::int_format(signed, sf, fbits), double, rd, rn);
        }
        Fp::MovToGpr { part, rd, rn } => scalar::mov_to_gpr(regs, part, rd, rn),
        Fp::MovFromGpr { part, rd, rn } => scalar::mov_from_gpr(regs, part, rd, rn),
        Fp::Convert { from, to, rd, rn } => scalar::convert(regs, from, to, rd, rn),
        Fp::ConvertOdd { rd, rn } => scalar::convert_odd(regs, rd, rn),
        Fp::Widen { double, high, rd, rn } => vector::widen(regs, double, high, rd, rn),
        Fp::Narrow { double, high, odd, rd, rn } => vector::narrow(regs, double, high, odd, [rd, rn]),
        Fp::Compare { signal, double, rn, rm } => scalar::compare(regs, signal, double, rn, Some(rm)),
        Fp::CompareZero { signal, double, rn } => scalar::compare(regs, signal, double, rn, None),
        Fp::CondCompare { signal, double, cond, nzcv, rn, rm } => {
            if regs.flags.holds(cond) {
                scalar::compare(regs, signal, double, rn, Some(rm));
            } else {
                regs.flags.set_nzcv(u32::from(nzcv) << 28);
            }
        }
        Fp::Select { double, cond, rd, rn, rm } => scalar::select(regs, double, cond, [rd, rn, rm]),
        Fp::MovImm { shape, rd, imm8 } => vector::mov_imm(regs, shape, rd, imm8),
    }
}
