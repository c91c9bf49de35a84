//! Threaded code: what the interpreter makes of decoded instructions. Not the decoder, and not the execution itself.
//!
//! A block is a row of [`Op`]s. Each op's handler does its work and jumps to the next op's handler (in optimised builds a
//! tail call: one indirect jump an instruction); the last op of every block returns a [`Next`] to the run loop instead.

use std::fmt;
use std::ops::Deref;

use crate::cpu::Cpu;
use crate::fpsimd::FpSimd;

/// What to do when a block ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Next {
    /// Follow the block's link 0: the branch was taken.
    Taken = 0,
    /// Follow the block's link 1: fall through.
    Through = 1,
    /// Find the block at `Cpu::pc`.
    Lookup = 2,
    /// Look at `Cpu::event`, then go on at `Cpu::pc`.
    Event = 3,
}

/// Executes one op and those behind it in the block.
pub(crate) type Handler = fn(&mut Cpu, At) -> Next;

/// The operands that do not fit into the register numbers.
#[derive(Clone, Copy)]
pub(crate) union Payload {
    /// Two constants; their meaning is the handler's.
    pub imm: [u64; 2],
    /// For the FP and SIMD data-processing handler.
    pub fpsimd: FpSimd,
}

/// One op of threaded code. `a` to `d` are register numbers as `Regs::x` has them, or small constants.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub handler: Handler,
    pub a: u8,
    pub b: u8,
    pub c: u8,
    pub d: u8,
    /// Offset of the instruction in its page.
    pub offset: u16,
    pub payload: Payload,
}

impl Op {
    /// The first constant.
    #[inline(always)]
    pub fn imm(&self) -> u64 {
        // SAFETY: all payloads are initialised in full (`Op::new` zeroes what `fpsimd` does not cover), and any bytes are
        // valid integers.
        unsafe { self.payload.imm[0] }
    }

    /// The second constant.
    #[inline(always)]
    pub fn imm2(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.payload.imm[1] }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Op").field("regs", &[self.a, self.b, self.c, self.d]).finish_non_exhaustive()
    }
}

/// The op being executed. Having one proves that it lies in a live block whose last op does not call [`At::next`]: blocks
/// are only freed between two runs of a block, in the run loop.
#[derive(Clone, Copy)]
pub(crate) struct At(*const Op);

impl At {
    /// # Safety
    /// `op` must be the first op of a block as [`At`] describes it.
    #[inline(always)]
    pub unsafe fn new(op: *const Op) -> Self {
        At(op)
    }

    /// Goes on with the next op.
    #[inline(always)]
    pub fn next(self, cpu: &mut Cpu) -> Next {
        // SAFETY: this is not the block's last op (see the type), so another one follows.
        let next = At(unsafe { self.0.add(1) });
        (next.handler)(cpu, next)
    }
}

impl Deref for At {
    type Target = Op;

    #[inline(always)]
    fn deref(&self) -> &Op {
        // SAFETY: see the type.
        unsafe { &*self.0 }
    }
}
