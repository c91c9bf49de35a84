//! Floating-point, AdvSIMD and cryptographic data processing: decoding and execution. Loads and stores are not here.

pub mod fp;
pub mod simd;

use crate::regs::Regs;

/// A decoded data-processing instruction of the FP and SIMD register file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FpSimd {
    /// Floating-point arithmetic, scalar or vector.
    Fp(fp::Fp),
    /// Integer, permute and bitwise vector operations, and cryptography.
    Simd(simd::Simd),
}

/// Decodes one word of the group "Data Processing - Scalar Floating-Point and Advanced SIMD" (Arm ARM C4.1, op0 = x111).
/// `None` means unallocated (or of an extension that this CPU does not have): UNDEFINED.
pub fn decode(word: u32) -> Option<FpSimd> {
    fp::decode(word).map(FpSimd::Fp).or_else(|| simd::decode(word).map(FpSimd::Simd))
}

/// Executes one decoded instruction.
#[inline]
pub fn execute(insn: &FpSimd, regs: &mut Regs) {
    match insn {
        FpSimd::Fp(insn) => fp::execute(insn, regs),
        FpSimd::Simd(insn) => simd::execute(insn, regs),
    }
}
