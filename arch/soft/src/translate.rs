//! From decoded instructions to threaded code: builds basic blocks and chooses the handler of each op.
//!
//! This is the interpreter's half of the seam at [`crate::insn`]: another execution engine would take the same instructions
//! and produce host code instead. Nothing is executed here.

mod lower;

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::code::{Block, Link};
use crate::cpu::Cpu;
use crate::decode::decode;
use crate::exec::{branch, memory, system};
use crate::machine::{PAGE_SIZE, Region};
use crate::op::{Handler, Op, Payload};

/// Most instructions in a block.
const MAX_BLOCK: usize = 64;

/// What one instruction became, apart from its position.
#[derive(Clone, Copy)]
struct Lowered {
    handler: Handler,
    regs: [u8; 4],
    payload: Payload,
    end: End,
    /// Accesses memory through SP.
    uses_sp: bool,
    /// May leave SP without its alignment.
    changes_sp: bool,
    /// Does nothing at all, so that no op is needed.
    nothing: bool,
}

/// How an instruction ends its block, if it does. Targets are relative to the page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    No,
    /// Goes on behind itself, but in a new block.
    Through,
    /// Goes to the target.
    Jump(i64),
    /// Goes to the target or on behind itself.
    Branch(i64),
    /// Goes where `Cpu::pc` says.
    Away,
}

/// Decodes the block at the CPU's `pc`, which lies in the physical `page` of `region`, and adds it to the cache.
pub(crate) fn block(cpu: &mut Cpu, region: &Region, page: u64) -> *const Block {
    let variant = cpu.variant();
    let start = cpu.pc & (PAGE_SIZE - 1);
    region.mark_code(page);
    let mut ops = Vec::with_capacity(16);
    let mut offset = start;
    let mut sp_is_aligned = false;
    let (mut taken, mut through) = (-1, -1);
    // Regions consist of whole pages, so that the condition always holds.
    while let Some(host) = region.host(page + offset, 4) {
        // SAFETY: the word is 4-aligned and inside mapped guest memory, which is only accessed atomically.
        let word = u32::from_le(unsafe { AtomicU32::from_ptr(host.cast()) }.load(Ordering::Acquire));
        let lowered = decode(word)
            .map_or_else(|| lower::undefined(variant), |insn| lower::insn(insn, offset as i64, variant));
        if lowered.uses_sp && !sp_is_aligned {
            ops.push(op(memory::check_sp, offset));
            sp_is_aligned = true;
        }
        sp_is_aligned &= !lowered.changes_sp;
        let Lowered { handler, regs: [a, b, c, d], payload, end, .. } = lowered;
        if !lowered.nothing {
            ops.push(Op { handler, a, b, c, d, offset: offset as u16, payload });
        }
        offset += 4;
        match end {
            End::No if offset == PAGE_SIZE || ops.len() >= MAX_BLOCK => {
                ops.push(op(branch::through, offset - 4));
                through = offset as i64;
                break;
            }
            End::No => {}
            End::Through => {
                through = offset as i64;
                break;
            }
            End::Jump(target) => {
                taken = target;
                break;
            }
            End::Branch(target) => {
                (taken, through) = (target, offset as i64);
                break;
            }
            End::Away => break,
        }
    }
    if ops.is_empty() {
        ops.push(op(system::undefined, start));
    }
    let link = |target| Cell::new(Link { target, block: std::ptr::null(), epoch: 0 });
    cpu.code.insert(Block {
        ops: ops.into_boxed_slice(),
        page,
        offset: start as u16,
        variant,
        links: [link(taken), link(through)],
    })
}

fn op(handler: Handler, offset: u64) -> Op {
    Op { handler, a: 0, b: 0, c: 0, d: 0, offset: offset as u16, payload: Payload { imm: [0, 0] } }
}
