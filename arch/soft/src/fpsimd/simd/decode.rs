//! The decoder, by the tables of Arm ARM C4.1.96 "Data Processing - Scalar Floating-Point and Advanced SIMD". Only what is
//! integer or cryptographic, and of ARMv8.0-A, decodes; all else is `None`.

use super::lane::Part;
use super::*;

/// The fields that most encodings share.
#[derive(Clone, Copy)]
struct Fields {
    word: u32,
    q: bool,
    unsigned: bool,
    scalar: bool,
    size: u32,
    rd: u8,
    rn: u8,
    rm: u8,
}

impl Fields {
    fn new(word: u32) -> Self {
        Fields {
            word,
            q: word & 1 << 30 != 0,
            unsigned: word & 1 << 29 != 0,
            // Bit 28 is set in scalar forms, where bit 30 is no longer Q.
            scalar: word & 1 << 28 != 0,
            size: word >> 22 & 3,
            rd: (word & 31) as u8,
            rn: (word >> 5 & 31) as u8,
            rm: (word >> 16 & 31) as u8,
        }
    }

    fn bits(&self, high: u32, low: u32) -> u32 {
        self.word >> low & ((2 << (high - low)) - 1)
    }

    /// The element size, from the size field.
    fn esize(&self) -> Esize {
        Esize::from_bits(self.size)
    }

    /// The bytes that a form with elements of `size` works on, or `None` for the reserved vector of one doubleword.
    fn active(&self, size: Esize) -> Option<u8> {
        match (self.scalar, self.q) {
            (true, _) => Some(size.bytes()),
            (false, true) => Some(16),
            (false, false) => (size != Esize::D).then_some(8),
        }
    }

    /// Which half a widening or narrowing form works on.
    fn part(&self) -> Part {
        match (self.scalar, self.q) {
            (true, _) => Part::Scalar,
            (false, true) => Part::High,
            (false, false) => Part::Low,
        }
    }
}

/// One or the other of two partners, of which the second is that with U set.
fn either<T>(unsigned: bool, signed: T, other: T) -> T {
    if unsigned { other } else { signed }
}

/// `Some` only if the condition holds: to be used with `?`.
fn require(condition: bool) -> Option<()> {
    condition.then_some(())
}

/// Decodes one word, or `None` if it is unallocated here: floating-point, of an extension that this CPU lacks, or nothing at all.
pub fn decode(word: u32) -> Option<Simd> {
    let f = Fields::new(word);
    match word >> 24 & 0xdf {
        0x0e | 0x4e | 0x5e => match (f.bits(21, 21), f.bits(11, 10), f.bits(20, 17)) {
            (1, 0b01 | 0b11, _) => three_same(f),
            (1, 0b00, _) => three_different(f),
            (1, 0b10, 0b0000) => two_register(f),
            (1, 0b10, 0b1000) => across_lanes(f),
            (1, 0b10, 0b0100) => crypto_two_register(f),
            (0, low, _) if f.bits(15, 15) == 0 => bit21_clear(f, low),
            _ => None,
        },
        0x0f | 0x4f | 0x5f => match (f.bits(10, 10), f.bits(23, 23), f.bits(22, 19)) {
            (1, 0, 0) => modified_immediate(f),
            (1, 0, _) => shift_immediate(f),
            (0, _, _) => by_element(f),
            _ => None,
        },
        _ => None,
    }
}

/// Copy, permute, EXT, TBL and the three-register SHA group.
fn bit21_clear(f: Fields, low: u32) -> Option<Simd> {
    let Fields { q, rd, rn, rm, .. } = f;
    match (f.scalar, f.unsigned, low) {
        (_, _, 0b01 | 0b11) => {
            require(f.size == 0)?;
            copy(f)
        }
        (true, false, 0b00) => {
            require(f.size == 0)?;
            let op = match f.bits(14, 12) {
                0 => Sha3RegOp::Sha1c,
                1 => Sha3RegOp::Sha1p,
                2 => Sha3RegOp::Sha1m,
                3 => Sha3RegOp::Sha1su0,
                4 => Sha3RegOp::Sha256h,
                5 => Sha3RegOp::Sha256h2,
                6 => Sha3RegOp::Sha256su1,
                _ => return None,
            };
            Some(Simd::Sha3Reg { op, rd, rn, rm })
        }
        (false, false, 0b00) => {
            require(f.size == 0)?;
            Some(Simd::Table { extend: f.bits(12, 12) == 1, q, count: f.bits(14, 13) as u8 + 1, rd, rn, rm })
        }
        (false, false, 0b10) => {
            let op = match f.bits(14, 12) {
                1 => PermuteOp::Uzp1,
                2 => PermuteOp::Trn1,
                3 => PermuteOp::Zip1,
                5 => PermuteOp::Uzp2,
                6 => PermuteOp::Trn2,
                7 => PermuteOp::Zip2,
                _ => return None,
            };
            f.active(f.esize())?;
            Some(Simd::Permute { op, size: f.esize(), q, rd, rn, rm })
        }
        (false, true, 0b00 | 0b10) => {
            // imm4 lies in bits 14 to 11, so bit 11 is not part of the opcode here.
            let index = f.bits(14, 11) as u8;
            require(f.size == 0 && (q || index < 8))?;
            Some(Simd::Ext { q, rd, rn, rm, index })
        }
        _ => None,
    }
}

fn copy(f: Fields) -> Option<Simd> {
    let Fields { q, rd, rn, .. } = f;
    let imm5 = f.bits(20, 16);
    require(imm5 & 15 != 0)?;
    let log2 = imm5.trailing_zeros();
    let size = Esize::from_bits(log2);
    let index = (imm5 >> (log2 + 1)) as u8;
    let imm4 = f.bits(14, 11);
    if f.unsigned {
        require(q && !f.scalar)?;
        return Some(Simd::InsElement { size, rd, to: index, rn, from: (imm4 >> log2) as u8 });
    }
    match imm4 {
        0b0000 => Some(Simd::DupElement { size, bytes: f.active(size)?, rd, rn, index }),
        _ if f.scalar => None,
        0b0001 => {
            f.active(size)?;
            Some(Simd::DupGeneral { size, q, rd, rn })
        }
        0b0011 if q => Some(Simd::InsGeneral { size, rd, index, rn }),
        0b0101 if log2 < if q { 3 } else { 2 } => Some(Simd::Smov { size, sf: q, rd, rn, index }),
        0b0111 if q == (size == Esize::D) => Some(Simd::Umov { size, rd, rn, index }),
        _ => None,
    }
}

fn three_same(f: Fields) -> Option<Simd> {
    let Fields { q, unsigned: u, rd, rn, rm, .. } = f;
    let size = f.esize();
    let plain = |op| Some(Simd::ThreeSame { op, size, bytes: f.active(size)?, rd, rn, rm });
    let shift = |op| Some(Simd::ShiftReg { op, size, bytes: f.active(size)?, rd, rn, rm });
    let multiply = |op| Some(Simd::Multiply { op, size, bytes: f.active(size)?, rd, rn, rm });
    let pairwise = |op| f.active(size).map(|_| Simd::Pairwise { op, size, q, rd, rn, rm });
    let opcode = f.bits(15, 11);
    // Which element sizes are there.
    match opcode {
        // All sizes, scalar and vector: saturating addition, subtraction and shifts.
        0b00001 | 0b00101 | 0b01001 | 0b01011 => {}
        // Scalars only of doublewords: comparisons, shifts, addition, subtraction.
        0b00110 | 0b00111 | 0b01000 | 0b01010 | 0b10000 | 0b10001 => require(!f.scalar || size == Esize::D)?,
        // SQDMULH, SQRDMULH.
        0b10110 => require(matches!(size, Esize::H | Esize::S))?,
        // ADDP, and the bitwise operations, whose size field is part of the opcode.
        0b10111 | 0b00011 => require(!f.scalar)?,
        _ => require(!f.scalar && size != Esize::D)?,
    }
    match opcode {
        0b00000 => plain(either(u, ThreeSameOp::Shadd, ThreeSameOp::Uhadd)),
        0b00001 => plain(either(u, ThreeSameOp::Sqadd, ThreeSameOp::Uqadd)),
        0b00010 => plain(either(u, ThreeSameOp::Srhadd, ThreeSameOp::Urhadd)),
        0b00011 => Some(Simd::Logic { op: logic_op(f), q, rd, rn, rm }),
        0b00100 => plain(either(u, ThreeSameOp::Shsub, ThreeSameOp::Uhsub)),
        0b00101 => plain(either(u, ThreeSameOp::Sqsub, ThreeSameOp::Uqsub)),
        0b00110 => plain(either(u, ThreeSameOp::Cmgt, ThreeSameOp::Cmhi)),
        0b00111 => plain(either(u, ThreeSameOp::Cmge, ThreeSameOp::Cmhs)),
        0b01000 => shift(either(u, ShiftRegOp::Sshl, ShiftRegOp::Ushl)),
        0b01001 => shift(either(u, ShiftRegOp::Sqshl, ShiftRegOp::Uqshl)),
        0b01010 => shift(either(u, ShiftRegOp::Srshl, ShiftRegOp::Urshl)),
        0b01011 => shift(either(u, ShiftRegOp::Sqrshl, ShiftRegOp::Uqrshl)),
        0b01100 => plain(either(u, ThreeSameOp::Smax, ThreeSameOp::Umax)),
        0b01101 => plain(either(u, ThreeSameOp::Smin, ThreeSameOp::Umin)),
        0b01110 => plain(either(u, ThreeSameOp::Sabd, ThreeSameOp::Uabd)),
        0b01111 => plain(either(u, ThreeSameOp::Saba, ThreeSameOp::Uaba)),
        0b10000 => plain(either(u, ThreeSameOp::Add, ThreeSameOp::Sub)),
        0b10001 => plain(either(u, ThreeSameOp::Cmtst, ThreeSameOp::Cmeq)),
        0b10010 => multiply(either(u, MultiplyOp::Mla, MultiplyOp::Mls)),
        0b10011 if !u => multiply(MultiplyOp::Mul),
        0b10011 if size == Esize::B => plain(ThreeSameOp::Pmul),
        0b10100 => pairwise(either(u, PairwiseOp::Smaxp, PairwiseOp::Umaxp)),
        0b10101 => pairwise(either(u, PairwiseOp::Sminp, PairwiseOp::Uminp)),
        0b10110 => multiply(either(u, MultiplyOp::Sqdmulh, MultiplyOp::Sqrdmulh)),
        0b10111 if !u => pairwise(PairwiseOp::Addp),
        _ => None,
    }
}

fn logic_op(f: Fields) -> LogicOp {
    match (f.unsigned, f.size) {
        (false, 0) => LogicOp::And,
        (false, 1) => LogicOp::Bic,
        (false, 2) => LogicOp::Orr,
        (false, _) => LogicOp::Orn,
        (true, 0) => LogicOp::Eor,
        (true, 1) => LogicOp::Bsl,
        (true, 2) => LogicOp::Bit,
        (true, _) => LogicOp::Bif,
    }
}

fn three_different(f: Fields) -> Option<Simd> {
    let Fields { q: high, unsigned: u, rd, rn, rm, .. } = f;
    let size = f.esize();
    let opcode = f.bits(15, 12);
    let long = |op| Some(Simd::Long { op, size, high, rd, rn, rm });
    let multiply = |op| Some(Simd::LongMultiply { op, size, part: f.part(), rd, rn, rm });
    let wide = |op| Some(Simd::Wide { op, size, high, rd, rn, rm });
    let high_narrow = |op| Some(Simd::HighNarrow { op, size, high, rd, rn, rm });
    match opcode {
        0b1001 | 0b1011 | 0b1101 => {
            require(!u && matches!(size, Esize::H | Esize::S))?;
            return multiply(doubling_op(opcode));
        }
        _ => require(!f.scalar)?,
    }
    match opcode {
        0b1110 if !u && size == Esize::D => Some(Simd::Pmull64 { high, rd, rn, rm }),
        0b1110 if !u && size == Esize::B => long(LongOp::Pmull),
        0b1110 | 0b1111 => None,
        _ if size == Esize::D => None,
        0b0000 => long(either(u, LongOp::Saddl, LongOp::Uaddl)),
        0b0001 => wide(either(u, WideOp::Saddw, WideOp::Uaddw)),
        0b0010 => long(either(u, LongOp::Ssubl, LongOp::Usubl)),
        0b0011 => wide(either(u, WideOp::Ssubw, WideOp::Usubw)),
        0b0100 => high_narrow(either(u, HighNarrowOp::Addhn, HighNarrowOp::Raddhn)),
        0b0101 => long(either(u, LongOp::Sabal, LongOp::Uabal)),
        0b0110 => high_narrow(either(u, HighNarrowOp::Subhn, HighNarrowOp::Rsubhn)),
        0b0111 => long(either(u, LongOp::Sabdl, LongOp::Uabdl)),
        0b1000 => multiply(either(u, LongMultiplyOp::Smlal, LongMultiplyOp::Umlal)),
        0b1010 => multiply(either(u, LongMultiplyOp::Smlsl, LongMultiplyOp::Umlsl)),
        _ => multiply(either(u, LongMultiplyOp::Smull, LongMultiplyOp::Umull)),
    }
}

/// The doubling multiplications of the three-different group.
fn doubling_op(opcode: u32) -> LongMultiplyOp {
    match opcode {
        0b1001 => LongMultiplyOp::Sqdmlal,
        0b1011 => LongMultiplyOp::Sqdmlsl,
        _ => LongMultiplyOp::Sqdmull,
    }
}

fn two_register(f: Fields) -> Option<Simd> {
    let Fields { q, unsigned: u, rd, rn, .. } = f;
    let size = f.esize();
    let opcode = f.bits(16, 12);
    let vector_below = |limit| require(!f.scalar && f.size < limit);
    let unary = |op| Some(Simd::Unary { op, size, bytes: f.active(size)?, rd, rn });
    let zero = |op| {
        require(!f.scalar || size == Esize::D)?;
        Some(Simd::Unary { op, size, bytes: f.active(size)?, rd, rn })
    };
    let pairwise = |op| {
        require(!f.scalar && size != Esize::D)?;
        Some(Simd::PairwiseLong { op, size, q, rd, rn })
    };
    let narrow = |op| {
        require(size != Esize::D)?;
        Some(Simd::Narrow { op, size, part: f.part(), rd, rn })
    };
    match (opcode, u) {
        (0b00000, false) => vector_below(3).and_then(|()| unary(UnaryOp::Rev64)),
        (0b00000, true) => vector_below(2).and_then(|()| unary(UnaryOp::Rev32)),
        (0b00001, false) => vector_below(1).and_then(|()| unary(UnaryOp::Rev16)),
        (0b00010, _) => pairwise(either(u, PairwiseLongOp::Saddlp, PairwiseLongOp::Uaddlp)),
        (0b00011, _) => unary(either(u, UnaryOp::Suqadd, UnaryOp::Usqadd)),
        (0b00100, _) => vector_below(3).and_then(|()| unary(either(u, UnaryOp::Cls, UnaryOp::Clz))),
        (0b00101, false) => vector_below(1).and_then(|()| unary(UnaryOp::Cnt)),
        (0b00101, true) => {
            vector_below(2).and_then(|()| unary(if f.size == 0 { UnaryOp::Not } else { UnaryOp::Rbit }))
        }
        (0b00110, _) => pairwise(either(u, PairwiseLongOp::Sadalp, PairwiseLongOp::Uadalp)),
        (0b00111, _) => unary(either(u, UnaryOp::Sqabs, UnaryOp::Sqneg)),
        (0b01000, _) => zero(either(u, UnaryOp::CmgtZero, UnaryOp::CmgeZero)),
        (0b01001, _) => zero(either(u, UnaryOp::CmeqZero, UnaryOp::CmleZero)),
        (0b01010, false) => zero(UnaryOp::CmltZero),
        (0b01011, _) => zero(either(u, UnaryOp::Abs, UnaryOp::Neg)),
        (0b10010, false) if !f.scalar => narrow(NarrowOp::Xtn),
        (0b10010, true) => narrow(NarrowOp::Sqxtun),
        (0b10011, true) => {
            vector_below(3)?;
            Some(Simd::ShiftLong { unsigned: true, size, high: q, shift: size.bits(), rd, rn })
        }
        (0b10100, _) => narrow(either(u, NarrowOp::Sqxtn, NarrowOp::Uqxtn)),
        _ => None,
    }
}

/// Reductions, and ADDP (scalar), which shares their place.
fn across_lanes(f: Fields) -> Option<Simd> {
    let Fields { q, unsigned: u, rd, rn, .. } = f;
    let opcode = f.bits(16, 12);
    if f.scalar {
        require(opcode == 0b11011 && !u && f.size == 3)?;
        return Some(Simd::AddpScalar { rd, rn });
    }
    let op = match opcode {
        0b00011 => either(u, AcrossOp::Saddlv, AcrossOp::Uaddlv),
        0b01010 => either(u, AcrossOp::Smaxv, AcrossOp::Umaxv),
        0b11010 => either(u, AcrossOp::Sminv, AcrossOp::Uminv),
        0b11011 if !u => AcrossOp::Addv,
        _ => return None,
    };
    require(f.size < if q { 3 } else { 2 })?;
    Some(Simd::Across { op, size: f.esize(), q, rd, rn })
}

fn crypto_two_register(f: Fields) -> Option<Simd> {
    let Fields { q, rd, rn, .. } = f;
    require(f.size == 0 && !f.unsigned)?;
    match (f.scalar, f.bits(16, 12)) {
        (false, opcode) if q => {
            let op = match opcode {
                0b00100 => AesOp::Aese,
                0b00101 => AesOp::Aesd,
                0b00110 => AesOp::Aesmc,
                0b00111 => AesOp::Aesimc,
                _ => return None,
            };
            Some(Simd::Aes { op, rd, rn })
        }
        (true, 0b00000) => Some(Simd::Sha2Reg { op: Sha2RegOp::Sha1h, rd, rn }),
        (true, 0b00001) => Some(Simd::Sha2Reg { op: Sha2RegOp::Sha1su1, rd, rn }),
        (true, 0b00010) => Some(Simd::Sha2Reg { op: Sha2RegOp::Sha256su0, rd, rn }),
        _ => None,
    }
}

/// AdvSIMDExpandImm, without its floating-point half.
fn modified_immediate(f: Fields) -> Option<Simd> {
    let Fields { q, unsigned: op, rd, .. } = f;
    require(!f.scalar && f.bits(11, 11) == 0)?;
    let cmode = f.bits(15, 12);
    let imm8 = u64::from(f.bits(18, 16) << 5 | f.bits(9, 5));
    let twice = |imm32: u64| imm32 | imm32 << 32;
    let imm = match cmode {
        0b0000..=0b0111 => twice(imm8 << (8 * (cmode >> 1))),
        0b1000..=0b1011 => twice((imm8 | imm8 << 16) << (8 * (cmode >> 1 & 1))),
        0b1100 => twice(imm8 << 8 | 0xff),
        0b1101 => twice(imm8 << 16 | 0xffff),
        0b1110 if !op => imm8 * 0x0101_0101_0101_0101,
        0b1110 => (0..8).filter(|bit| imm8 >> bit & 1 == 1).fold(0, |imm, bit| imm | 0xff << (8 * bit)),
        _ => return None,
    };
    // Below 0b1100, odd values of cmode combine with Vd instead of replacing it.
    match (cmode < 0b1100 && cmode & 1 == 1, op) {
        (true, false) => Some(Simd::OrrImm { q, rd, imm }),
        (true, true) => Some(Simd::BicImm { q, rd, imm }),
        (false, true) if cmode != 0b1110 => Some(Simd::MoveImm { q, rd, imm: !imm }),
        (false, _) => Some(Simd::MoveImm { q, rd, imm }),
    }
}

fn shift_immediate(f: Fields) -> Option<Simd> {
    let Fields { q, unsigned: u, rd, rn, .. } = f;
    let immh_immb = f.bits(22, 16);
    // immh is not zero, or this would be a modified immediate; its highest bit gives the size. Scalars have no such neighbour.
    require(immh_immb >> 3 != 0)?;
    let log2 = (immh_immb >> 3).ilog2();
    let size = Esize::from_bits(log2);
    let right = ((16 << log2) - immh_immb) as u8;
    let left = (immh_immb - (8 << log2)) as u8;
    let opcode = f.bits(15, 11);
    let plain = |op, shift| {
        // Only the saturating left shifts have scalars of all sizes.
        require(
            !f.scalar || size == Esize::D || matches!(op, ShiftOp::Sqshl | ShiftOp::Uqshl | ShiftOp::Sqshlu),
        )?;
        Some(Simd::Shift { op, size, bytes: f.active(size)?, shift, rd, rn })
    };
    let narrow = |op| {
        let saturating = !matches!(op, ShiftNarrowOp::Shrn | ShiftNarrowOp::Rshrn);
        require(size != Esize::D && (saturating || !f.scalar))?;
        Some(Simd::ShiftNarrow { op, size, part: f.part(), shift: right, rd, rn })
    };
    match (opcode, u) {
        (0b00000, _) => plain(either(u, ShiftOp::Sshr, ShiftOp::Ushr), right),
        (0b00010, _) => plain(either(u, ShiftOp::Ssra, ShiftOp::Usra), right),
        (0b00100, _) => plain(either(u, ShiftOp::Srshr, ShiftOp::Urshr), right),
        (0b00110, _) => plain(either(u, ShiftOp::Srsra, ShiftOp::Ursra), right),
        (0b01000, true) => plain(ShiftOp::Sri, right),
        (0b01010, _) => plain(either(u, ShiftOp::Shl, ShiftOp::Sli), left),
        (0b01100, true) => plain(ShiftOp::Sqshlu, left),
        (0b01110, _) => plain(either(u, ShiftOp::Sqshl, ShiftOp::Uqshl), left),
        (0b10000, _) => narrow(either(u, ShiftNarrowOp::Shrn, ShiftNarrowOp::Sqshrun)),
        (0b10001, _) => narrow(either(u, ShiftNarrowOp::Rshrn, ShiftNarrowOp::Sqrshrun)),
        (0b10010, _) => narrow(either(u, ShiftNarrowOp::Sqshrn, ShiftNarrowOp::Uqshrn)),
        (0b10011, _) => narrow(either(u, ShiftNarrowOp::Sqrshrn, ShiftNarrowOp::Uqrshrn)),
        (0b10100, _) => {
            require(!f.scalar && size != Esize::D)?;
            Some(Simd::ShiftLong { unsigned: u, size, high: q, shift: left, rd, rn })
        }
        _ => None,
    }
}

fn by_element(f: Fields) -> Option<Simd> {
    let Fields { unsigned: u, rd, rn, .. } = f;
    let size = f.esize();
    let (h, l, m) = (f.bits(11, 11), f.bits(21, 21), f.bits(20, 20));
    // Halfwords have three bits of index and so one less of register number.
    let (index, rm) = match size {
        Esize::H => ((h << 2 | l << 1 | m) as u8, f.rm & 15),
        Esize::S => ((h << 1 | l) as u8, f.rm),
        _ => return None,
    };
    let multiply = |op| Some(Simd::MultiplyElement { op, size, bytes: f.active(size)?, rd, rn, rm, index });
    let long = |op| Some(Simd::LongMultiplyElement { op, size, part: f.part(), rd, rn, rm, index });
    match (f.bits(15, 12), u) {
        (0b0011, false) => long(LongMultiplyOp::Sqdmlal),
        (0b0111, false) => long(LongMultiplyOp::Sqdmlsl),
        (0b1011, false) => long(LongMultiplyOp::Sqdmull),
        (0b1100, false) => multiply(MultiplyOp::Sqdmulh),
        (0b1101, false) => multiply(MultiplyOp::Sqrdmulh),
        _ if f.scalar => None,
        (0b0000, true) => multiply(MultiplyOp::Mla),
        (0b0100, true) => multiply(MultiplyOp::Mls),
        (0b1000, false) => multiply(MultiplyOp::Mul),
        (0b0010, _) => long(either(u, LongMultiplyOp::Smlal, LongMultiplyOp::Umlal)),
        (0b0110, _) => long(either(u, LongMultiplyOp::Smlsl, LongMultiplyOp::Umlsl)),
        (0b1010, _) => long(either(u, LongMultiplyOp::Smull, LongMultiplyOp::Umull)),
        _ => None,
    }
}
