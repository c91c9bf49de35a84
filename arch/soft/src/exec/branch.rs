//! Branches and calls (Arm ARM C4.1.87). All of them end their block.

use super::x;
use crate::cpu::Cpu;
use crate::op::{At, Next};

fn link(cpu: &mut Cpu, at: At) {
    cpu.regs.x[30] = cpu.pc_of(at).wrapping_add(4);
}

/// B: link 0 says where.
pub(crate) fn b(_cpu: &mut Cpu, _at: At) -> Next {
    Next::Taken
}

/// The end of a block that no branch ended: link 1 says where.
pub(crate) fn through(_cpu: &mut Cpu, _at: At) -> Next {
    Next::Through
}

pub(crate) fn bl(cpu: &mut Cpu, at: At) -> Next {
    link(cpu, at);
    Next::Taken
}

fn taken_if(condition: bool) -> Next {
    if condition { Next::Taken } else { Next::Through }
}

pub(crate) fn b_cond<const COND: u8>(cpu: &mut Cpu, _at: At) -> Next {
    taken_if(cpu.regs.flags.holds(COND))
}

pub(crate) fn cbz<const SF: bool, const NONZERO: bool>(cpu: &mut Cpu, at: At) -> Next {
    let value = x(cpu, at.a);
    let zero = if SF { value == 0 } else { value as u32 == 0 };
    taken_if(zero != NONZERO)
}

pub(crate) fn tbz<const NONZERO: bool>(cpu: &mut Cpu, at: At) -> Next {
    taken_if((x(cpu, at.a) >> (at.b & 63) & 1 != 0) == NONZERO)
}

/// BR, RET.
pub(crate) fn br(cpu: &mut Cpu, at: At) -> Next {
    cpu.pc = x(cpu, at.a);
    Next::Lookup
}

pub(crate) fn blr(cpu: &mut Cpu, at: At) -> Next {
    cpu.pc = x(cpu, at.a);
    link(cpu, at);
    Next::Lookup
}
