//! To be replaced.

use crate::regs::Regs;

/// A decoded instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fp {}

/// Decodes one word, or `None`.
pub fn decode(_word: u32) -> Option<Fp> {
    None
}

/// Executes one decoded instruction.
pub fn execute(insn: &Fp, _regs: &mut Regs) {
    match *insn {}
}
