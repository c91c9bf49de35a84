//! The handlers of threaded code: one function an operation, specialised by const parameters for its forms.
//!
//! Every handler ends in `at.next(cpu)`, or returns a [`Next`](crate::op::Next) if it ends its block. Only `translate`
//! chooses handlers; it guarantees that register numbers fit `Regs::x` and that a block's last op returns.

pub(crate) mod alu;
pub(crate) mod atomic;
pub(crate) mod branch;
pub(crate) mod memory;
pub(crate) mod simd_memory;
pub(crate) mod system;

use crate::cpu::Cpu;

/// Register `n` as the ops number them.
#[inline(always)]
pub(crate) fn x(cpu: &Cpu, n: u8) -> u64 {
    cpu.regs.x[usize::from(n)]
}

/// Writes a result of 64 or (zero-extended) 32 bits.
#[inline(always)]
pub(crate) fn put<const SF: bool>(cpu: &mut Cpu, n: u8, value: u64) {
    cpu.regs.x[usize::from(n)] = if SF { value } else { u64::from(value as u32) };
}
