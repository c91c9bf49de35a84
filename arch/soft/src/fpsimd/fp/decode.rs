//! From instruction words to [`Fp`] (Arm ARM C4.1, "Data Processing - Scalar Floating-Point and Advanced SIMD"). Encodings of
//! integer vector instructions, of extensions this CPU does not have and unallocated ones give `None`.

use super::{BinaryOp, ElementOp, Fp, GprMove, Precision, Rounding, Shape, UnaryOp};

/// Bits `low` to `low + count - 1` of an instruction word.
#[inline]
fn bits(word: u32, low: u32, count: u32) -> u32 {
    word >> low & ((1 << count) - 1)
}

#[inline]
fn bit(word: u32, at: u32) -> bool {
    word >> at & 1 == 1
}

/// A 5-bit register field.
#[inline]
fn reg(word: u32, low: u32) -> u8 {
    bits(word, low, 5) as u8
}

fn rd(word: u32) -> u8 {
    reg(word, 0)
}

fn rn(word: u32) -> u8 {
    reg(word, 5)
}

fn rm(word: u32) -> u8 {
    reg(word, 16)
}

/// Decodes one word, or `None`.
pub fn decode(word: u32) -> Option<Fp> {
    match bits(word, 24, 5) {
        // Bit 31 is `sf` in the conversions; bits 30 and 29 select other groups.
        0b11110 if bits(word, 29, 2) == 0 => scalar(word),
        0b11111 if bits(word, 29, 3) == 0 => mul_add(word),
        0b01110 if !bit(word, 31) => simd(word, vector_shape(word)),
        0b11110 if bits(word, 30, 2) == 0b01 => simd(word, Some(scalar_shape(word))),
        0b01111 if !bit(word, 31) => simd_immediate_or_element(word),
        0b11111 if bits(word, 30, 2) == 0b01 => simd_immediate_or_element(word),
        _ => None,
    }
}

/// Single or double by `ptype` (bits 23:22); half precision has no arithmetic here.
fn double(word: u32) -> Option<bool> {
    match bits(word, 22, 2) {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn scalar_of(double: bool) -> Shape {
    if double { Shape::D } else { Shape::S }
}

/// C4.1: conversions with general registers (bit 21 clear, or bits 15:10 zero), and the rest of scalar floating point.
fn scalar(word: u32) -> Option<Fp> {
    if !bit(word, 21) {
        return fixed_point(word);
    }
    if bits(word, 10, 6) == 0 {
        return integer(word);
    }
    if bit(word, 31) {
        return None;
    }
    match bits(word, 10, 2) {
        0b00 if bits(word, 10, 5) == 0b10000 => one_source(word),
        0b00 if bits(word, 10, 4) == 0b1000 => compare(word),
        0b00 if bit(word, 12) => {
            let shape = scalar_of(double(word)?);
            (reg(word, 5) == 0).then(|| Fp::MovImm { shape, rd: rd(word), imm8: bits(word, 13, 8) as u8 })
        }
        0b00 => None,
        0b01 => Some(Fp::CondCompare {
            signal: bit(word, 4),
            double: double(word)?,
            cond: bits(word, 12, 4) as u8,
            nzcv: bits(word, 0, 4) as u8,
            rn: rn(word),
            rm: rm(word),
        }),
        0b10 => two_source(word),
        _ => Some(Fp::Select {
            double: double(word)?,
            cond: bits(word, 12, 4) as u8,
            rd: rd(word),
            rn: rn(word),
            rm: rm(word),
        }),
    }
}

/// Conversion between floating-point and fixed-point.
fn fixed_point(word: u32) -> Option<Fp> {
    let sf = bit(word, 31);
    let double = double(word)?;
    let scale = bits(word, 10, 6);
    if !sf && scale < 32 {
        return None;
    }
    let fbits = (64 - scale) as u8;
    let (rd, rn, signed) = (rd(word), rn(word), !bit(word, 16));
    match (bits(word, 19, 2), bits(word, 16, 3)) {
        (0b00, 0b010 | 0b011) => Some(Fp::FromGpr { signed, fbits, double, sf, rd, rn }),
        (0b11, 0b000 | 0b001) => {
            Some(Fp::ToGpr { rounding: Rounding::Zero, signed, fbits, double, sf, rd, rn })
        }
        _ => None,
    }
}

/// Conversion between floating-point and integer, and FMOV (general).
fn integer(word: u32) -> Option<Fp> {
    let sf = bit(word, 31);
    let (rd, rn, signed) = (rd(word), rn(word), !bit(word, 16));
    let (mode, opcode) = (bits(word, 19, 2), bits(word, 16, 3));
    if opcode >= 0b110 {
        let part = match (sf, bits(word, 22, 2), mode) {
            (false, 0b00, 0b00) => GprMove::Word,
            (true, 0b01, 0b00) => GprMove::Doubleword,
            (true, 0b10, 0b01) => GprMove::TopHalf,
            _ => return None,
        };
        return Some(if signed { Fp::MovToGpr { part, rd, rn } } else { Fp::MovFromGpr { part, rd, rn } });
    }
    let double = double(word)?;
    let rounding = match (mode, opcode >> 1) {
        (0b00, 0b01) => return Some(Fp::FromGpr { signed, fbits: 0, double, sf, rd, rn }),
        (0b00, 0b10) => Rounding::TieAway,
        (_, 0b00) => directed(mode),
        _ => return None,
    };
    Some(Fp::ToGpr { rounding, signed, fbits: 0, double, sf, rd, rn })
}

/// A 2-bit rounding mode as in FPCR.RMode.
fn directed(mode: u32) -> Rounding {
    match mode {
        0b00 => Rounding::TieEven,
        0b01 => Rounding::PosInf,
        0b10 => Rounding::NegInf,
        _ => Rounding::Zero,
    }
}

/// Floating-point data-processing (1 source).
fn one_source(word: u32) -> Option<Fp> {
    let (rd, rn) = (rd(word), rn(word));
    let opcode = bits(word, 15, 6);
    if let 0b000100 | 0b000101 | 0b000111 = opcode {
        let from = precision(bits(word, 22, 2))?;
        let to = precision(opcode & 3)?;
        return (from != to).then_some(Fp::Convert { from, to, rd, rn });
    }
    let shape = scalar_of(double(word)?);
    let op = match opcode {
        0b000000 => UnaryOp::Mov,
        0b000001 => UnaryOp::Abs,
        0b000010 => UnaryOp::Neg,
        0b000011 => UnaryOp::Sqrt,
        0b001000 => UnaryOp::RoundTieEven,
        0b001001 => UnaryOp::RoundPosInf,
        0b001010 => UnaryOp::RoundNegInf,
        0b001011 => UnaryOp::RoundZero,
        0b001100 => UnaryOp::RoundTieAway,
        0b001110 => UnaryOp::RoundExact,
        0b001111 => UnaryOp::RoundCurrent,
        _ => return None,
    };
    Some(Fp::Unary { op, shape, rd, rn })
}

fn precision(ptype: u32) -> Option<Precision> {
    match ptype {
        0b00 => Some(Precision::Single),
        0b01 => Some(Precision::Double),
        0b11 => Some(Precision::Half),
        _ => None,
    }
}

/// Floating-point compare.
fn compare(word: u32) -> Option<Fp> {
    let double = double(word)?;
    if bits(word, 14, 2) != 0 || bits(word, 0, 3) != 0 {
        return None;
    }
    let (signal, rn) = (bit(word, 4), rn(word));
    Some(if bit(word, 3) {
        Fp::CompareZero { signal, double, rn }
    } else {
        Fp::Compare { signal, double, rn, rm: rm(word) }
    })
}

/// Floating-point data-processing (2 source).
fn two_source(word: u32) -> Option<Fp> {
    let op = match bits(word, 12, 4) {
        0b0000 => BinaryOp::Mul,
        0b0001 => BinaryOp::Div,
        0b0010 => BinaryOp::Add,
        0b0011 => BinaryOp::Sub,
        0b0100 => BinaryOp::Max,
        0b0101 => BinaryOp::Min,
        0b0110 => BinaryOp::MaxNum,
        0b0111 => BinaryOp::MinNum,
        0b1000 => BinaryOp::NegMul,
        _ => return None,
    };
    Some(Fp::Binary { op, shape: scalar_of(double(word)?), rd: rd(word), rn: rn(word), rm: rm(word) })
}

/// Floating-point data-processing (3 source).
fn mul_add(word: u32) -> Option<Fp> {
    let (o1, o0) = (bit(word, 21), bit(word, 15));
    Some(Fp::MulAdd {
        negate_product: o1 != o0,
        negate_addend: o1,
        double: double(word)?,
        rd: rd(word),
        rn: rn(word),
        rm: rm(word),
        ra: reg(word, 10),
    })
}

/// The lanes of a vector instruction with Q at bit 30 and sz at bit 22; one double is reserved.
fn vector_shape(word: u32) -> Option<Shape> {
    match (bit(word, 30), bit(word, 22)) {
        (false, false) => Some(Shape::V2S),
        (true, false) => Some(Shape::V4S),
        (true, true) => Some(Shape::V2D),
        (false, true) => None,
    }
}

/// The lane of an Advanced SIMD scalar instruction with sz at bit 22.
fn scalar_shape(word: u32) -> Shape {
    scalar_of(bit(word, 22))
}

/// Whether this is an Advanced SIMD scalar encoding rather than a vector one.
fn is_scalar(word: u32) -> bool {
    bit(word, 28)
}

/// Three same, two-register miscellaneous, across lanes and scalar pairwise. `shape` is that of the common case.
fn simd(word: u32, shape: Option<Shape>) -> Option<Fp> {
    if !bit(word, 21) {
        return None;
    }
    if bit(word, 10) {
        return three_same(word, shape?);
    }
    match bits(word, 17, 5) {
        _ if !bit(word, 11) => None,
        0b10000 => change_width(word).or_else(|| two_misc(word, shape?)),
        0b11000 if bit(word, 29) => reduce(word),
        _ => None,
    }
}

/// What selects an instruction: U (bit 29) and size<1> (bit 23) as two bits, and the opcode (5 bits at `low`).
fn key(word: u32, low: u32) -> (u32, u32) {
    (bits(word, 29, 1) << 1 | bits(word, 23, 1), bits(word, low, 5))
}

/// Advanced SIMD (scalar) three same.
fn three_same(word: u32, shape: Shape) -> Option<Fp> {
    let (rd, rn, rm) = (rd(word), rn(word), rm(word));
    let (op, only_vector) = match key(word, 11) {
        (0b01, 0b11111) => (BinaryOp::RsqrtStep, false),
        (0b00, 0b11111) => (BinaryOp::RecipStep, false),
        (0b00, 0b11011) => (BinaryOp::MulX, false),
        (0b00, 0b11100) => (BinaryOp::Eq, false),
        (0b10, 0b11100) => (BinaryOp::Ge, false),
        (0b11, 0b11100) => (BinaryOp::Gt, false),
        (0b10, 0b11101) => (BinaryOp::AbsGe, false),
        (0b11, 0b11101) => (BinaryOp::AbsGt, false),
        (0b11, 0b11010) => (BinaryOp::AbsDiff, false),
        (0b00, 0b11000) => (BinaryOp::MaxNum, true),
        (0b01, 0b11000) => (BinaryOp::MinNum, true),
        (0b00, 0b11010) => (BinaryOp::Add, true),
        (0b01, 0b11010) => (BinaryOp::Sub, true),
        (0b00, 0b11110) => (BinaryOp::Max, true),
        (0b01, 0b11110) => (BinaryOp::Min, true),
        (0b10, 0b11011) => (BinaryOp::Mul, true),
        (0b10, 0b11111) => (BinaryOp::Div, true),
        _ if is_scalar(word) => return None,
        (0b00, 0b11001) => return Some(Fp::Accumulate { sub: false, shape, rd, rn, rm }),
        (0b01, 0b11001) => return Some(Fp::Accumulate { sub: true, shape, rd, rn, rm }),
        other => {
            let op = match other {
                (0b10, 0b11000) => BinaryOp::MaxNum,
                (0b11, 0b11000) => BinaryOp::MinNum,
                (0b10, 0b11010) => BinaryOp::Add,
                (0b10, 0b11110) => BinaryOp::Max,
                (0b11, 0b11110) => BinaryOp::Min,
                _ => return None,
            };
            return Some(Fp::Pairwise { op, shape, rd, rn, rm });
        }
    };
    (!(only_vector && is_scalar(word))).then_some(Fp::Binary { op, shape, rd, rn, rm })
}

/// FCVTN, FCVTXN, FCVTL: two-register miscellaneous, but Q selects a half.
fn change_width(word: u32) -> Option<Fp> {
    let (rd, rn, high, double) = (rd(word), rn(word), bit(word, 30), bit(word, 22));
    let (u_size, opcode) = key(word, 12);
    match (u_size, opcode, is_scalar(word)) {
        (0b00, 0b10110, false) => Some(Fp::Narrow { double, high, odd: false, rd, rn }),
        (0b00, 0b10111, false) => Some(Fp::Widen { double, high, rd, rn }),
        (0b10, 0b10110, false) if double => Some(Fp::Narrow { double, high, odd: true, rd, rn }),
        (0b10, 0b10110, true) if double => Some(Fp::ConvertOdd { rd, rn }),
        _ => None,
    }
}

/// Advanced SIMD (scalar) two-register miscellaneous.
fn two_misc(word: u32, shape: Shape) -> Option<Fp> {
    let (rd, rn) = (rd(word), rn(word));
    let signed = !bit(word, 29);
    let to_int = |rounding| Some(Fp::ToInt { rounding, signed, fbits: 0, shape, rd, rn });
    let (op, only_vector) = match key(word, 12) {
        (0b01, 0b01100) => (UnaryOp::GtZero, false),
        (0b01, 0b01101) => (UnaryOp::EqZero, false),
        (0b01, 0b01110) => (UnaryOp::LtZero, false),
        (0b11, 0b01100) => (UnaryOp::GeZero, false),
        (0b11, 0b01101) => (UnaryOp::LeZero, false),
        (0b01, 0b11101) => (UnaryOp::RecipEstimate, false),
        (0b11, 0b11101) => (UnaryOp::RsqrtEstimate, false),
        (0b01, 0b11111) if is_scalar(word) => (UnaryOp::RecipExponent, false),
        (0b00, 0b11010) | (0b10, 0b11010) => return to_int(Rounding::TieEven),
        (0b00, 0b11011) | (0b10, 0b11011) => return to_int(Rounding::NegInf),
        (0b00, 0b11100) | (0b10, 0b11100) => return to_int(Rounding::TieAway),
        (0b01, 0b11010) | (0b11, 0b11010) => return to_int(Rounding::PosInf),
        (0b01, 0b11011) | (0b11, 0b11011) => return to_int(Rounding::Zero),
        (0b00, 0b11101) | (0b10, 0b11101) => return Some(Fp::FromInt { signed, fbits: 0, shape, rd, rn }),
        (0b01, 0b01111) => (UnaryOp::Abs, true),
        (0b11, 0b01111) => (UnaryOp::Neg, true),
        (0b11, 0b11111) => (UnaryOp::Sqrt, true),
        (0b00, 0b11000) => (UnaryOp::RoundTieEven, true),
        (0b00, 0b11001) => (UnaryOp::RoundNegInf, true),
        (0b01, 0b11000) => (UnaryOp::RoundPosInf, true),
        (0b01, 0b11001) => (UnaryOp::RoundZero, true),
        (0b10, 0b11000) => (UnaryOp::RoundTieAway, true),
        (0b10, 0b11001) => (UnaryOp::RoundExact, true),
        (0b11, 0b11001) => (UnaryOp::RoundCurrent, true),
        (0b01, 0b11100) if !bit(word, 22) => (UnaryOp::UnsignedRecipEstimate, true),
        (0b11, 0b11100) if !bit(word, 22) => (UnaryOp::UnsignedRsqrtEstimate, true),
        _ => return None,
    };
    (!(only_vector && is_scalar(word))).then_some(Fp::Unary { op, shape, rd, rn })
}

/// Scalar pairwise (two lanes) and across lanes (four singles), with U set: the half-precision forms have it clear.
fn reduce(word: u32) -> Option<Fp> {
    let (min, double) = (bit(word, 23), bit(word, 22));
    let op = match (bits(word, 12, 5), min) {
        (0b01100, false) => BinaryOp::MaxNum,
        (0b01100, true) => BinaryOp::MinNum,
        (0b01111, false) => BinaryOp::Max,
        (0b01111, true) => BinaryOp::Min,
        (0b01101, false) if is_scalar(word) => BinaryOp::Add,
        _ => return None,
    };
    let shape = match (is_scalar(word), double) {
        (true, false) => Shape::V2S,
        (true, true) => Shape::V2D,
        (false, false) if bit(word, 30) => Shape::V4S,
        _ => return None,
    };
    Some(Fp::Reduce { op, shape, rd: rd(word), rn: rn(word) })
}

/// Shift by immediate and modified immediate (bit 10 set, bit 23 clear), vector by element (bit 10 clear).
fn simd_immediate_or_element(word: u32) -> Option<Fp> {
    if !bit(word, 10) {
        return element(word);
    }
    if bit(word, 23) {
        return None;
    }
    if bits(word, 19, 4) == 0 {
        return if is_scalar(word) { None } else { modified_immediate(word) };
    }
    fixed_point_lanes(word)
}

/// SCVTF, UCVTF, FCVTZS, FCVTZU (fixed-point) among the shifts by immediate.
fn fixed_point_lanes(word: u32) -> Option<Fp> {
    let immh_immb = bits(word, 16, 7);
    let (size, double) = match immh_immb {
        64.. => (64, true),
        32..64 => (32, false),
        _ => return None,
    };
    let shape = match (is_scalar(word), bit(word, 30), double) {
        (true, _, _) => scalar_of(double),
        (false, false, false) => Shape::V2S,
        (false, true, false) => Shape::V4S,
        (false, true, true) => Shape::V2D,
        (false, false, true) => return None,
    };
    let fbits = (2 * size - immh_immb) as u8;
    let (rd, rn, signed) = (rd(word), rn(word), !bit(word, 29));
    match bits(word, 11, 5) {
        0b11100 => Some(Fp::FromInt { signed, fbits, shape, rd, rn }),
        0b11111 => Some(Fp::ToInt { rounding: Rounding::Zero, signed, fbits, shape, rd, rn }),
        _ => None,
    }
}

/// FMOV (vector, immediate): cmode 1111 of the modified immediates.
fn modified_immediate(word: u32) -> Option<Fp> {
    if bits(word, 11, 5) != 0b11110 {
        return None;
    }
    let shape = match (bit(word, 30), bit(word, 29)) {
        (false, false) => Shape::V2S,
        (true, false) => Shape::V4S,
        (true, true) => Shape::V2D,
        (false, true) => return None,
    };
    Some(Fp::MovImm { shape, rd: rd(word), imm8: (bits(word, 16, 3) << 5 | bits(word, 5, 5)) as u8 })
}

/// Advanced SIMD (scalar) vector x indexed element.
fn element(word: u32) -> Option<Fp> {
    // size 1x; size 00 is half precision.
    if !bit(word, 23) {
        return None;
    }
    let op = match (bit(word, 29), bits(word, 12, 4)) {
        (false, 0b0001) => ElementOp::MulAdd,
        (false, 0b0101) => ElementOp::MulSub,
        (false, 0b1001) => ElementOp::Mul,
        (true, 0b1001) => ElementOp::MulX,
        _ => return None,
    };
    let shape = if is_scalar(word) { scalar_shape(word) } else { vector_shape(word)? };
    let (high, low) = (bits(word, 11, 1), bits(word, 21, 1));
    let index = match (bit(word, 22), low) {
        (false, _) => high << 1 | low,
        (true, 0) => high,
        (true, _) => return None,
    };
    Some(Fp::Element { op, shape, rd: rd(word), rn: rn(word), rm: rm(word), index: index as u8 })
}
