//! Decoding of the group "Loads and Stores" (Arm ARM C4.1). Nothing is accessed here.

use super::dp_reg::extend;
use super::{bit, byte, field, ra, rd, rm, rn, signed};
use crate::insn::{Address, AtomicOp, IndexMode, Insn, MemOp};

/// Decodes a word of this group.
pub(super) fn decode(word: u32) -> Option<Insn> {
    let simd = bit(word, 26);
    match field(word, 28, 2) {
        0b00 if simd && !bit(word, 31) && bit(word, 24) => simd_single(word),
        0b00 if simd && !bit(word, 31) => simd_multiple(word),
        // With bit 24 set: unprivileged exclusives (FEAT_LSUI), GCS.
        0b00 if !simd && !bit(word, 24) => exclusive(word),
        // With bit 24 set: LDAPUR (FEAT_LRCPC2), tags (FEAT_MTE), memory copy (FEAT_MOPS).
        0b01 if !bit(word, 24) => literal(word),
        0b10 => pair(word),
        0b11 => single(word),
        _ => None,
    }
}

/// Exclusive, ordered, and compare-and-swap.
fn exclusive(word: u32) -> Option<Insn> {
    let (size, load, ordered) = (byte(word, 30, 2), bit(word, 22), bit(word, 15));
    let (rs, rt, rt2, rn) = (rm(word), rd(word), ra(word), rn(word));
    // Bits 23 (o2) and 21 (o1).
    match (bit(word, 23), bit(word, 21)) {
        (false, false) if load => Some(Insn::LoadExclusive { size, ordered, rt, rn }),
        (false, false) => Some(Insn::StoreExclusive { size, ordered, rs, rt, rn }),
        (false, true) if size & 2 == 0 => {
            let even = rs & 1 == 0 && rt & 1 == 0;
            (rt2 == 31 && even).then_some(Insn::CompareSwapPair { size: size + 2, rs, rt, rn })
        }
        (false, true) if load => Some(Insn::LoadExclusivePair { size, ordered, rt, rt2, rn }),
        (false, true) => Some(Insn::StoreExclusivePair { size, ordered, rs, rt, rt2, rn }),
        (true, false) if load => Some(Insn::LoadAcquire { size, rt, rn }),
        (true, false) => Some(Insn::StoreRelease { size, rt, rn }),
        (true, true) => (rt2 == 31).then_some(Insn::CompareSwap { size, rs, rt, rn }),
    }
}

fn literal(word: u32) -> Option<Insn> {
    let opc = byte(word, 30, 2);
    let op = match (bit(word, 26), opc) {
        (false, 0 | 1) => MemOp::Load { size: opc + 2 },
        (false, 2) => MemOp::LoadSigned { size: 2, to64: true },
        (false, _) => MemOp::Prefetch,
        (true, 3) => return None,
        (true, _) => MemOp::LoadSimd { size: opc + 2 },
    };
    let addr = Address::Literal { offset: signed(word, 5, 19) << 2 };
    Some(Insn::LoadStore { op, rt: rd(word), addr, unprivileged: false })
}

fn pair(word: u32) -> Option<Insn> {
    let (simd, load, opc) = (bit(word, 26), bit(word, 22), byte(word, 30, 2));
    let (no_allocate, mode) = match field(word, 23, 2) {
        0b00 => (true, IndexMode::Offset),
        0b01 => (false, IndexMode::Post),
        0b10 => (false, IndexMode::Offset),
        _ => (false, IndexMode::Pre),
    };
    let (size, signed_load) = match (simd, opc) {
        (_, 3) => return None,
        (true, _) => (opc + 2, false),
        // LDPSW; the store is STGP (FEAT_MTE).
        (false, 1) if !load || no_allocate => return None,
        (false, 1) => (2, true),
        (false, 0) => (2, false),
        (false, _) => (3, false),
    };
    Some(Insn::LoadStorePair {
        load,
        simd,
        size,
        signed: signed_load,
        rt: rd(word),
        rt2: ra(word),
        rn: rn(word),
        offset: signed(word, 15, 7) << size,
        mode,
    })
}

/// What size (31 to 30), V (26) and opc (23 to 22) of a single-register access say.
fn mem_op(word: u32) -> Option<MemOp> {
    let size = byte(word, 30, 2);
    match (bit(word, 26), field(word, 22, 2), size) {
        (false, 0, _) => Some(MemOp::Store { size }),
        (false, 1, _) => Some(MemOp::Load { size }),
        (false, 2, 3) => Some(MemOp::Prefetch),
        (false, 2, _) => Some(MemOp::LoadSigned { size, to64: true }),
        (false, _, 0 | 1) => Some(MemOp::LoadSigned { size, to64: false }),
        (true, 0, _) => Some(MemOp::StoreSimd { size }),
        (true, 1, _) => Some(MemOp::LoadSimd { size }),
        (true, 2, 0) => Some(MemOp::StoreSimd { size: 4 }),
        (true, 3, 0) => Some(MemOp::LoadSimd { size: 4 }),
        _ => None,
    }
}

/// log2 of the bytes that `op` moves, by which offsets are scaled.
fn scale(op: MemOp) -> u8 {
    match op {
        MemOp::Store { size }
        | MemOp::Load { size }
        | MemOp::LoadSigned { size, .. }
        | MemOp::StoreSimd { size }
        | MemOp::LoadSimd { size } => size,
        MemOp::Prefetch => 3,
    }
}

/// One register, every addressing mode but the literal; and the atomic memory operations.
fn single(word: u32) -> Option<Insn> {
    let (rn, rt) = (rn(word), rd(word));
    let (indexing, register) = (field(word, 10, 2), bit(word, 21));
    if !bit(word, 24) && register && indexing == 0b00 {
        return atomic(word);
    }
    let op = mem_op(word)?;
    if bit(word, 24) {
        let offset = i64::from(field(word, 10, 12)) << scale(op);
        let addr = Address::Imm { rn, offset, mode: IndexMode::Offset };
        return Some(Insn::LoadStore { op, rt, addr, unprivileged: false });
    }
    if register {
        // Other values of bits 11 to 10 are LDRAA and LDRAB (FEAT_PAuth); bit 14 clear would extend from bytes.
        let shift = if bit(word, 12) { scale(op) } else { 0 };
        let addr = Address::Reg { rn, rm: rm(word), extend: extend(word), shift };
        let allocated = indexing == 0b10 && bit(word, 14);
        return allocated.then_some(Insn::LoadStore { op, rt, addr, unprivileged: false });
    }
    let mode = match indexing {
        0b01 => IndexMode::Post,
        0b11 => IndexMode::Pre,
        _ => IndexMode::Offset,
    };
    let unprivileged = indexing == 0b10;
    if (op == MemOp::Prefetch && indexing != 0b00) || (unprivileged && bit(word, 26)) {
        return None;
    }
    let addr = Address::Imm { rn, offset: signed(word, 12, 9), mode };
    Some(Insn::LoadStore { op, rt, addr, unprivileged })
}

fn atomic(word: u32) -> Option<Insn> {
    const OPS: [AtomicOp; 8] = [
        AtomicOp::Add,
        AtomicOp::Clr,
        AtomicOp::Eor,
        AtomicOp::Set,
        AtomicOp::Smax,
        AtomicOp::Smin,
        AtomicOp::Umax,
        AtomicOp::Umin,
    ];
    let op = match field(word, 12, 4) {
        opc @ 0..=7 => OPS[opc as usize],
        8 => AtomicOp::Swp,
        // LDAPR (FEAT_LRCPC), 64-byte accesses (FEAT_LS64) and others.
        _ => return None,
    };
    // With V set: floating-point atomics (FEAT_LSFE).
    let allocated = !bit(word, 26);
    allocated.then(|| Insn::Atomic { op, size: byte(word, 30, 2), rs: rm(word), rt: rd(word), rn: rn(word) })
}

/// The writeback of the AdvSIMD structure accesses, bits 23 and 20 to 16: `None` if the encoding is unallocated.
fn structure_post(word: u32) -> Option<Option<u8>> {
    match (bit(word, 23), rm(word)) {
        (true, rm) => Some(Some(rm)),
        (false, 0) => Some(None),
        // STL1 and LDAP1 (FEAT_LRCPC3), or nothing.
        _ => None,
    }
}

fn simd_multiple(word: u32) -> Option<Insn> {
    let (q, size) = (bit(word, 30), byte(word, 10, 2));
    let (rpt, selem) = match field(word, 12, 4) {
        0b0000 => (1, 4),
        0b0010 => (4, 1),
        0b0100 => (1, 3),
        0b0110 => (3, 1),
        0b0111 => (1, 1),
        0b1000 => (1, 2),
        0b1010 => (2, 1),
        _ => return None,
    };
    let post = structure_post(word)?;
    if bit(word, 21) || (size == 3 && !q && selem != 1) {
        return None;
    }
    Some(Insn::SimdMulti { load: bit(word, 22), q, size, rpt, selem, rt: rd(word), rn: rn(word), post })
}

fn simd_single(word: u32) -> Option<Insn> {
    let (load, q, s, size) = (bit(word, 22), byte(word, 30, 1), byte(word, 12, 1), byte(word, 10, 2));
    let (rt, rn, post) = (rd(word), rn(word), structure_post(word)?);
    let selem = (byte(word, 13, 1) << 1 | byte(word, 21, 1)) + 1;
    let (size, index) = match (field(word, 14, 2), size, s) {
        (0, ..) => (0, q << 3 | s << 2 | size),
        (1, 0 | 2, _) => (1, q << 2 | s << 1 | size >> 1),
        (2, 0, _) => (2, q << 1 | s),
        (2, 1, 0) => (3, q),
        (3, _, 0) if load => return Some(Insn::SimdReplicate { q: q == 1, size, selem, rt, rn, post }),
        _ => return None,
    };
    Some(Insn::SimdSingle { load, size, selem, index, rt, rn, post })
}
