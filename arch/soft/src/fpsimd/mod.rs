//! Floating-point, AdvSIMD and cryptographic data processing: decoding and execution. Loads and stores are not here.

use crate::regs::Regs;

/// A decoded data-processing instruction of the FP and SIMD register file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FpSimd {}

/// Decodes one word of the group "Data Processing - Scalar Floating-Point and Advanced SIMD" (Arm ARM C4.1, op0 = x111).
/// `None` means unallocated (or of an extension that this CPU does not have): UNDEFINED.
pub fn decode(_word: u32) -> Option<FpSimd> {
    None
}

/// Executes one decoded instruction.
#[inline]
pub fn execute(insn: &FpSimd, _regs: &mut Regs) {
    match *insn {}
}
