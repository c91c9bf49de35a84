//! AdvSIMD structure loads and stores (Arm ARM C4.1.94, "Advanced SIMD load/store").

use super::memory::{attempt, load, load_two, store, store_two};
use super::x;
use crate::cpu::Cpu;
use crate::op::{At, Next};
use crate::regs::SP;

/// The operands, as packed into an op's first constant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Structure {
    pub load: bool,
    /// Bytes of a register that take part: 8 or 16.
    pub bytes: u8,
    /// log2 of an element's bytes.
    pub size: u8,
    /// Registers: `rpt` for LD1, `selem` else.
    pub rpt: u8,
    pub selem: u8,
    /// Lane of a single structure.
    pub index: u8,
    /// 0 none, 1 by the bytes moved, 2 by register `c`.
    pub post: u8,
}

impl Structure {
    pub fn pack(self) -> u64 {
        u64::from_le_bytes([
            u8::from(self.load),
            self.bytes,
            self.size,
            self.rpt,
            self.selem,
            self.index,
            self.post,
            0,
        ])
    }

    fn unpack(imm: u64) -> Self {
        let [load, bytes, size, rpt, selem, index, post, _] = imm.to_le_bytes();
        Structure { load: load != 0, bytes, size, rpt, selem, index, post }
    }
}

fn load_element(cpu: &mut Cpu, at: At, va: u64, size: u8) -> Result<u64, Next> {
    match size {
        0 => load::<0, false, true>(cpu, at, va, 0),
        1 => load::<1, false, true>(cpu, at, va, 0),
        2 => load::<2, false, true>(cpu, at, va, 0),
        _ => load::<3, false, true>(cpu, at, va, 0),
    }
}

fn store_element(cpu: &mut Cpu, at: At, va: u64, size: u8, value: u64) -> Result<(), Next> {
    match size {
        0 => store::<0, false, true>(cpu, at, va, value, 0),
        1 => store::<1, false, true>(cpu, at, va, value, 0),
        2 => store::<2, false, true>(cpu, at, va, value, 0),
        _ => store::<3, false, true>(cpu, at, va, value, 0),
    }
}

fn element_mask(size: u8) -> u128 {
    u128::from(u64::MAX >> (64 - (8u32 << (size & 3))))
}

fn set_lane(q: &mut u128, lane: u8, size: u8, value: u64) {
    let shift = u32::from(lane) << (3 + size) & 127;
    *q = *q & !(element_mask(size) << shift) | u128::from(value) << shift;
}

fn lane(q: u128, lane: u8, size: u8) -> u64 {
    (q >> (u32::from(lane) << (3 + size) & 127) & element_mask(size)) as u64
}

fn finish(cpu: &mut Cpu, at: At, post: u8, moved: u64) -> Next {
    if post != 0 {
        let step = if post == 1 { moved } else { x(cpu, at.c) };
        let base = x(cpu, at.b);
        cpu.regs.x[usize::from(at.b)] = base.wrapping_add(step);
    }
    at.next(cpu)
}

/// LD1 to LD4 and ST1 to ST4, multiple structures, from register `a` on at `b`.
pub(crate) fn multiple(cpu: &mut Cpu, at: At) -> Next {
    let s = Structure::unpack(at.imm());
    let va = x(cpu, at.b);
    debug_assert!(usize::from(at.b) <= SP);
    let registers = s.rpt.max(s.selem);
    if s.selem == 1 {
        attempt!(contiguous(cpu, at, s, va));
    } else {
        attempt!(interleaved(cpu, at, s, va, 0));
    }
    finish(cpu, at, s.post, u64::from(registers) * u64::from(s.bytes))
}

/// Registers one after another. On a TLB hit the element size does not matter; else it is the alignment to be checked.
fn contiguous(cpu: &mut Cpu, at: At, s: Structure, mut va: u64) -> Result<(), Next> {
    for r in 0..s.rpt {
        let q = usize::from((at.a + r) & 31);
        if whole(cpu, at, s, va, q).is_err() {
            interleaved(cpu, at, Structure { rpt: 1, ..s }, va, r)?;
        }
        va = va.wrapping_add(u64::from(s.bytes));
    }
    Ok(())
}

/// Register `q` at once; `Err` on a TLB miss.
fn whole(cpu: &mut Cpu, at: At, s: Structure, va: u64, q: usize) -> Result<(), Next> {
    let value = cpu.regs.q[q];
    match (s.load, s.bytes) {
        (true, 16) => {
            let (low, high) = load_two::<3, false>(cpu, at, va)?;
            cpu.regs.q[q] = u128::from(high) << 64 | u128::from(low);
        }
        (true, _) => cpu.regs.q[q] = u128::from(load::<3, false, false>(cpu, at, va, 0)?),
        (false, 16) => store_two::<3, false>(cpu, at, va, (value as u64, (value >> 64) as u64))?,
        (false, _) => store::<3, false, false>(cpu, at, va, value as u64, 0)?,
    }
    Ok(())
}

/// Element e of each of `selem` registers in turn, the first of which is `a` + `first`.
fn interleaved(cpu: &mut Cpu, at: At, s: Structure, mut va: u64, first: u8) -> Result<(), Next> {
    let register = |r: u8| usize::from((at.a + first + r) & 31);
    let mut loaded = [0u128; 4];
    for e in 0..s.bytes >> s.size {
        for r in 0..s.selem {
            if s.load {
                let value = load_element(cpu, at, va, s.size)?;
                set_lane(&mut loaded[usize::from(r & 3)], e, s.size, value);
            } else {
                let value = lane(cpu.regs.q[register(r)], e, s.size);
                store_element(cpu, at, va, s.size, value)?;
            }
            va = va.wrapping_add(1 << s.size);
        }
    }
    if s.load {
        for r in 0..s.selem {
            cpu.regs.q[register(r)] = loaded[usize::from(r & 3)];
        }
    }
    Ok(())
}

/// LD1 to LD4 and ST1 to ST4 of one lane.
pub(crate) fn single(cpu: &mut Cpu, at: At) -> Next {
    let s = Structure::unpack(at.imm());
    let base = x(cpu, at.b);
    let mut va = base;
    for r in 0..s.selem {
        let q = usize::from((at.a + r) & 31);
        if s.load {
            let value = attempt!(load_element(cpu, at, va, s.size));
            set_lane(&mut cpu.regs.q[q], s.index, s.size, value);
        } else {
            let value = lane(cpu.regs.q[q], s.index, s.size);
            attempt!(store_element(cpu, at, va, s.size, value));
        }
        va = va.wrapping_add(1 << s.size);
    }
    finish(cpu, at, s.post, va.wrapping_sub(base))
}

/// LD1R to LD4R: one element to all lanes of each register.
pub(crate) fn replicate(cpu: &mut Cpu, at: At) -> Next {
    let s = Structure::unpack(at.imm());
    let base = x(cpu, at.b);
    let mut va = base;
    for r in 0..s.selem {
        let value = attempt!(load_element(cpu, at, va, s.size));
        let mut q = 0;
        for e in 0..s.bytes >> s.size {
            set_lane(&mut q, e, s.size, value);
        }
        cpu.regs.q[usize::from((at.a + r) & 31)] = q;
        va = va.wrapping_add(1 << s.size);
    }
    finish(cpu, at, s.post, va.wrapping_sub(base))
}
