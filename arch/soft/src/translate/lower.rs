//! The handler and the operands for each decoded instruction.

use super::{End, Lowered};
use crate::code::Variant;
use crate::exec::alu::*;
use crate::exec::atomic::*;
use crate::exec::branch::*;
use crate::exec::memory::{kind, mode, pair, pair_simd, single, zero_block};
use crate::exec::simd_memory::{self, Structure};
use crate::exec::system;
use crate::insn::*;
use crate::op::{Handler, Payload};
use crate::regs::{SINK, SP, ZR};
use crate::sysreg::{enc, id};

/// Turns run-time values into const parameters: `pick!(handler, bool a, (0 1 2 3) b)`. A value outside its list is a bug of
/// the decoder and becomes UNDEFINED.
macro_rules! pick {
    ($f:ident $(, $kind:tt $e:expr)*) => { pick!(@ $f [] {$([$kind $e])*}) };
    // All chosen.
    (@ $f:ident [$($chosen:tt)*] {}) => { $f::<$($chosen)*> as Handler };
    // The next one to choose.
    (@ $f:ident $chosen:tt {[bool $e:expr] $($rest:tt)*}) => {
        if $e { pick!(+ $f $chosen true {$($rest)*}) } else { pick!(+ $f $chosen false {$($rest)*}) }
    };
    (@ $f:ident $chosen:tt {[($($n:literal)*) $e:expr] $($rest:tt)*}) => {
        pick!(? $f $chosen ($($n)*) ($e) {$($rest)*})
    };
    (? $f:ident $chosen:tt ($($n:literal)*) $e:tt $rest:tt) => {
        match $e {
            $($n => pick!(+ $f $chosen $n $rest),)*
            #[allow(unreachable_patterns)]
            _ => system::undefined as Handler,
        }
    };
    // Chosen.
    (+ $f:ident [$($chosen:tt)*] $n:tt $rest:tt) => { pick!(@ $f [$($chosen)* $n,] $rest) };
}

/// Register `n` as a source, where 31 is ZR.
fn src(n: u8) -> u8 {
    if n == 31 { ZR as u8 } else { n & 31 }
}

/// Register `n` as a destination, where 31 is ZR.
fn dst(n: u8) -> u8 {
    if n == 31 { SINK as u8 } else { n & 31 }
}

/// Register `n`, where 31 is SP.
fn sp(n: u8) -> u8 {
    if n == 31 { SP as u8 } else { n & 31 }
}

fn ones(width: u32) -> u64 {
    if width >= 64 { u64::MAX } else { (1 << width) - 1 }
}

impl Lowered {
    fn new(handler: Handler, regs: [u8; 4]) -> Self {
        Lowered {
            handler,
            regs,
            payload: Payload { imm: [0, 0] },
            end: End::No,
            uses_sp: false,
            changes_sp: false,
            nothing: false,
        }
    }

    fn nothing() -> Self {
        Lowered { nothing: true, ..Lowered::new(system::undefined, [0; 4]) }
    }

    fn imm(self, imm: u64) -> Self {
        self.imms(imm, 0)
    }

    fn imms(self, imm: u64, imm2: u64) -> Self {
        Lowered { payload: Payload { imm: [imm, imm2] }, ..self }
    }

    fn ends(self, end: End) -> Self {
        Lowered { end, ..self }
    }

    /// For an access through base register `rn`, which a writeback changes by `offset` (`None`: by anything).
    fn base(self, rn: u8, write_back: bool, offset: Option<i64>) -> Self {
        let aligned = offset.is_some_and(|offset| offset % 16 == 0);
        Lowered { uses_sp: rn == 31, changes_sp: rn == 31 && write_back && !aligned, ..self }
    }
}

/// An instruction that does not exist.
pub(super) fn undefined(_variant: Variant) -> Lowered {
    Lowered::new(system::undefined, [0; 4]).ends(End::Away)
}

/// An FP or SIMD instruction while access is disabled.
fn fp_trap() -> Lowered {
    Lowered::new(system::fp_trap, [0; 4]).ends(End::Away)
}

/// Lowers `insn`, which stands at `offset` in its page, for execution in `variant`.
pub(super) fn insn(insn: Insn, offset: i64, variant: Variant) -> Lowered {
    let el1 = variant & 1 != 0;
    let fp = variant & 2 != 0;
    if !fp && touches_fp(&insn) {
        return fp_trap();
    }
    match insn {
        Insn::AddSubImm { .. }
        | Insn::LogicalImm { .. }
        | Insn::MoveWide { .. }
        | Insn::Adr { .. }
        | Insn::Bitfield { .. }
        | Insn::Extract { .. } => immediate(insn, offset),
        Insn::LogicalReg { .. }
        | Insn::AddSubReg { .. }
        | Insn::AddSubExt { .. }
        | Insn::AddSubCarry { .. }
        | Insn::CondCompare { .. }
        | Insn::CondSelect { .. }
        | Insn::DataProc2 { .. }
        | Insn::DataProc1 { .. }
        | Insn::DataProc3 { .. } => register(insn),
        Insn::B { .. }
        | Insn::Bl { .. }
        | Insn::BCond { .. }
        | Insn::Cbz { .. }
        | Insn::Tbz { .. }
        | Insn::Br { .. }
        | Insn::Blr { .. }
        | Insn::Ret { .. } => branches(insn, offset),
        Insn::LoadStore { op, rt, addr, unprivileged } => {
            load_store(op, rt, addr, unprivileged && el1, offset)
        }
        Insn::LoadStorePair { .. } => load_store_pair(insn),
        Insn::LoadExclusive { .. }
        | Insn::StoreExclusive { .. }
        | Insn::LoadExclusivePair { .. }
        | Insn::StoreExclusivePair { .. }
        | Insn::LoadAcquire { .. }
        | Insn::StoreRelease { .. }
        | Insn::Atomic { .. }
        | Insn::CompareSwap { .. }
        | Insn::CompareSwapPair { .. } => synchronisation(insn),
        Insn::SimdMulti { .. } | Insn::SimdSingle { .. } | Insn::SimdReplicate { .. } => structures(insn),
        Insn::FpSimd(insn) => {
            // The union must be initialised in full.
            let mut payload = Payload { imm: [0, 0] };
            payload.fpsimd = insn;
            Lowered { payload, ..Lowered::new(fp_simd, [0; 4]) }
        }
        _ => system_insn(insn, el1),
    }
}

fn touches_fp(insn: &Insn) -> bool {
    match insn {
        Insn::FpSimd(_)
        | Insn::SimdMulti { .. }
        | Insn::SimdSingle { .. }
        | Insn::SimdReplicate { .. }
        | Insn::LoadStorePair { simd: true, .. }
        | Insn::LoadStore { op: MemOp::StoreSimd { .. } | MemOp::LoadSimd { .. }, .. } => true,
        Insn::Mrs { reg, .. } | Insn::Msr { reg, .. } => matches!(*reg, id::FPCR | id::FPSR),
        _ => false,
    }
}

fn logic_number(op: LogicOp) -> u8 {
    match op {
        LogicOp::And => 0,
        LogicOp::Orr => 1,
        LogicOp::Eor => 2,
        LogicOp::Ands => 3,
    }
}

fn shift_number(shift: Shift, amount: u8) -> u8 {
    match (shift, amount) {
        (_, 0) => NO_SHIFT,
        (Shift::Lsl, _) => LSL,
        (Shift::Lsr, _) => LSR,
        (Shift::Asr, _) => ASR,
        (Shift::Ror, _) => 3,
    }
}

fn immediate(insn: Insn, offset: i64) -> Lowered {
    match insn {
        Insn::AddSubImm { sf, sub, set_flags: false, rd, rn, imm } => {
            let imm = i64::from(imm) * if sub { -1 } else { 1 };
            let lowered = Lowered::new(pick!(add_imm, bool sf), [sp(rd), sp(rn), 0, 0]).imm(imm as u64);
            let stays = rn == 31 && sf && imm % 16 == 0;
            Lowered { changes_sp: rd == 31 && !stays, ..lowered }
        }
        Insn::AddSubImm { sf, sub, set_flags: true, rd, rn, imm } => {
            Lowered::new(pick!(add_sub_imm_flags, bool sf, bool sub), [dst(rd), sp(rn), 0, 0])
                .imm(u64::from(imm))
        }
        Insn::LogicalImm { sf, op, rd, rn, imm } => {
            let op = logic_number(op);
            let rd_index = if op == 3 { dst(rd) } else { sp(rd) };
            let lowered =
                Lowered::new(pick!(logic_imm, bool sf, (0 1 2 3) op), [rd_index, src(rn), 0, 0]).imm(imm);
            Lowered { changes_sp: rd == 31 && op != 3, ..lowered }
        }
        Insn::MoveWide { sf, op, rd, imm, shift } => {
            let value = u64::from(imm) << (shift & 63);
            let width = ones(if sf { 64 } else { 32 });
            match op {
                MoveOp::Movz => Lowered::new(constant, [dst(rd), 0, 0, 0]).imm(value & width),
                MoveOp::Movn => Lowered::new(constant, [dst(rd), 0, 0, 0]).imm(!value & width),
                MoveOp::Movk => {
                    let keep = !(0xffff << (shift & 63)) & width;
                    Lowered::new(insert_constant, [dst(rd), 0, 0, 0]).imms(keep, value)
                }
            }
        }
        Insn::Adr { page, rd, offset: by } => {
            let relative = if page { by } else { by.wrapping_add(offset) };
            Lowered::new(page_relative, [dst(rd), 0, 0, 0]).imm(relative as u64)
        }
        Insn::Bitfield { sf, op, rd, rn, immr, imms } => bitfield(sf, op, rd, rn, immr, imms),
        Insn::Extract { sf, rd, rn, rm, lsb } => {
            Lowered::new(pick!(extract, bool sf), [dst(rd), src(rn), src(rm), lsb])
        }
        _ => undefined(0),
    }
}

fn bitfield(sf: bool, op: BitfieldOp, rd: u8, rn: u8, immr: u8, imms: u8) -> Lowered {
    let size = if sf { 64 } else { 32 };
    let (immr, imms) = (u32::from(immr), u32::from(imms));
    // Either a field of `width` bits at `immr` goes to bit 0, or one at bit 0 goes to `position`.
    let extracts = imms >= immr;
    let width = if extracts { imms - immr + 1 } else { imms + 1 };
    let position = (size - immr) % size;
    let regs = |shift: u32| [dst(rd), src(rn), shift as u8, 0];
    match op {
        BitfieldOp::Ubfm if extracts => Lowered::new(ubfx, regs(immr)).imm(ones(width)),
        BitfieldOp::Ubfm => Lowered::new(ubfiz, regs(position)).imm(ones(width)),
        BitfieldOp::Sbfm => {
            let left = 63 - imms;
            let right = if extracts { left + immr } else { left - position };
            Lowered::new(pick!(sbfm, bool sf), [dst(rd), src(rn), left as u8, right as u8])
        }
        BitfieldOp::Bfm => {
            let (handler, shift, mask): (Handler, _, _) =
                if extracts { (bfxil, immr, ones(width)) } else { (bfi, position, ones(width) << position) };
            let keep = !mask & ones(size);
            // The old value is a source, too: ZR then reads as zero and goes nowhere.
            let rd = if rd == 31 { ZR as u8 } else { rd };
            if usize::from(rd) == ZR {
                return Lowered::nothing();
            }
            Lowered::new(handler, [rd, src(rn), shift as u8, 0]).imms(keep, mask)
        }
    }
}

fn register(insn: Insn) -> Lowered {
    match insn {
        Insn::LogicalReg { sf, op: LogicOp::Orr, invert: false, amount: 0, rd, rn: 31, rm, .. } => {
            Lowered::new(pick!(mov, bool sf), [dst(rd), 0, src(rm), 0])
        }
        Insn::LogicalReg { sf, op, invert, shift, amount, rd, rn, rm } => {
            let (op, kind) = (logic_number(op), shift_number(shift, amount));
            let handler = pick!(logic_reg, bool sf, (0 1 2 3) op, bool invert, (0 1 2 3 4) kind);
            Lowered::new(handler, [dst(rd), src(rn), src(rm), amount])
        }
        Insn::AddSubReg { sf, sub, set_flags, shift, amount, rd, rn, rm } => {
            let kind = shift_number(shift, amount);
            let handler = pick!(add_sub_reg, bool sf, bool sub, bool set_flags, (0 1 2 4) kind);
            Lowered::new(handler, [dst(rd), src(rn), src(rm), amount])
        }
        Insn::AddSubExt { sf, sub, set_flags, extend, amount, rd, rn, rm } => {
            let extend = extend as u8;
            let handler = pick!(add_sub_ext, bool sf, bool sub, bool set_flags, (0 1 2 3 4 5 6 7) extend);
            let rd_index = if set_flags { dst(rd) } else { sp(rd) };
            let lowered = Lowered::new(handler, [rd_index, sp(rn), src(rm), amount]);
            Lowered { changes_sp: rd == 31 && !set_flags, ..lowered }
        }
        Insn::AddSubCarry { sf, sub, set_flags, rd, rn, rm } => Lowered::new(
            pick!(add_sub_carry, bool sf, bool sub, bool set_flags),
            [dst(rd), src(rn), src(rm), 0],
        ),
        Insn::CondCompare { sf, sub, cond, nzcv, rn, operand } => match operand {
            CompareOperand::Reg(rm) => {
                Lowered::new(pick!(compare_if_reg, bool sf, bool sub), [src(rn), cond, src(rm), nzcv])
            }
            CompareOperand::Imm(imm) => {
                Lowered::new(pick!(compare_if_imm, bool sf, bool sub), [src(rn), cond, 0, nzcv])
                    .imm(u64::from(imm))
            }
        },
        Insn::CondSelect { sf, op, cond, rd, rn, rm } => {
            let op = op as u8;
            let handler = pick!(select, bool sf, (0 1 2 3) op, (0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) cond);
            Lowered::new(handler, [dst(rd), src(rn), src(rm), 0])
        }
        Insn::DataProc2 { sf, op, rd, rn, rm } => {
            let (handler, size) = match op {
                DataProc2::Udiv => (pick!(udiv, bool sf), 0),
                DataProc2::Sdiv => (pick!(sdiv, bool sf), 0),
                DataProc2::Lslv => (pick!(shift_by_reg, bool sf, (0) LSL), 0),
                DataProc2::Lsrv => (pick!(shift_by_reg, bool sf, (1) LSR), 0),
                DataProc2::Asrv => (pick!(shift_by_reg, bool sf, (2) ASR), 0),
                DataProc2::Rorv => (pick!(shift_by_reg, bool sf, (3) 3u8), 0),
                DataProc2::Crc32 { size } => (crc::<false> as Handler, size),
                DataProc2::Crc32c { size } => (crc::<true> as Handler, size),
            };
            Lowered::new(handler, [dst(rd), src(rn), src(rm), size])
        }
        Insn::DataProc1 { sf, op, rd, rn } => {
            let handler = match op {
                DataProc1::Rbit => pick!(rbit, bool sf),
                DataProc1::Rev16 => pick!(rev16, bool sf),
                DataProc1::Rev32 => rev32,
                DataProc1::Rev => pick!(rev, bool sf),
                DataProc1::Clz => pick!(clz, bool sf),
                DataProc1::Cls => pick!(cls, bool sf),
            };
            Lowered::new(handler, [dst(rd), src(rn), 0, 0])
        }
        Insn::DataProc3 { sf, op, rd, rn, rm, ra } => {
            let handler: Handler = match op {
                DataProc3::Madd => pick!(multiply_add, bool sf, bool false),
                DataProc3::Msub => pick!(multiply_add, bool sf, bool true),
                DataProc3::Smaddl => multiply_add_long::<true, false>,
                DataProc3::Smsubl => multiply_add_long::<true, true>,
                DataProc3::Umaddl => multiply_add_long::<false, false>,
                DataProc3::Umsubl => multiply_add_long::<false, true>,
                DataProc3::Smulh => multiply_high::<true>,
                DataProc3::Umulh => multiply_high::<false>,
            };
            Lowered::new(handler, [dst(rd), src(rn), src(rm), src(ra)])
        }
        _ => undefined(0),
    }
}

fn branches(insn: Insn, here: i64) -> Lowered {
    match insn {
        Insn::B { offset } => Lowered::new(b, [0; 4]).ends(End::Jump(here + offset)),
        Insn::Bl { offset } => Lowered::new(bl, [0; 4]).ends(End::Jump(here + offset)),
        Insn::BCond { cond, offset } => {
            let handler = pick!(b_cond, (0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) cond);
            Lowered::new(handler, [0; 4]).ends(End::Branch(here + offset))
        }
        Insn::Cbz { sf, nonzero, rt, offset } => {
            Lowered::new(pick!(cbz, bool sf, bool nonzero), [src(rt), 0, 0, 0])
                .ends(End::Branch(here + offset))
        }
        Insn::Tbz { nonzero, bit, rt, offset } => {
            Lowered::new(pick!(tbz, bool nonzero), [src(rt), bit, 0, 0]).ends(End::Branch(here + offset))
        }
        Insn::Br { rn } | Insn::Ret { rn } => Lowered::new(br, [src(rn), 0, 0, 0]).ends(End::Away),
        Insn::Blr { rn } => Lowered::new(blr, [src(rn), 0, 0, 0]).ends(End::Away),
        _ => undefined(0),
    }
}

/// The ISS fields of a single-register transfer to or from `rt` (Arm ARM, ISS encoding for a Data Abort).
fn transfer_iss(size: u8, sign_extend: bool, rt: u8, sf: bool, acquire_release: bool) -> u64 {
    1 << 24
        | u64::from(size) << 22
        | u64::from(sign_extend) << 21
        | u64::from(rt) << 16
        | u64::from(sf) << 15
        | u64::from(acquire_release) << 14
}

fn load_store(op: MemOp, rt: u8, addr: Address, unprivileged: bool, here: i64) -> Lowered {
    let (number, rt_index, iss) = match op {
        MemOp::Store { size } => {
            (kind::STORE + size, src(rt), transfer_iss(size, false, rt, size == 3, false))
        }
        MemOp::Load { size } => (kind::LOAD + size, dst(rt), transfer_iss(size, false, rt, size == 3, false)),
        MemOp::LoadSigned { size, to64: true } => {
            (kind::LOAD_S64 + size, dst(rt), transfer_iss(size, true, rt, true, false))
        }
        MemOp::LoadSigned { size, to64: false } => {
            (kind::LOAD_S32 + size, dst(rt), transfer_iss(size, true, rt, false, false))
        }
        MemOp::StoreSimd { size } => (kind::STORE_SIMD + size, rt, 0),
        MemOp::LoadSimd { size } => (kind::LOAD_SIMD + size, rt, 0),
        MemOp::Prefetch => return Lowered::nothing(),
    };
    let kind_and = |mode: u8| {
        pick!(single, (0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22) number,
              (0 1 2 3 4 5 6 7) mode)
    };
    match addr {
        Address::Imm { rn, offset, mode: index } => {
            let (mode, iss) = match index {
                // Accesses with writeback are not described by a syndrome.
                IndexMode::Pre => (mode::PRE, 0),
                IndexMode::Post => (mode::POST, 0),
                IndexMode::Offset if unprivileged => (mode::UNPRIVILEGED, iss),
                IndexMode::Offset => (mode::IMM, iss),
            };
            Lowered::new(kind_and(mode), [rt_index, sp(rn), 0, 0]).imms(offset as u64, iss).base(
                rn,
                index != IndexMode::Offset,
                Some(offset),
            )
        }
        Address::Reg { rn, rm, extend, shift } => {
            let mode = match extend {
                Extend::Uxtw => mode::REG_UXTW,
                Extend::Sxtw => mode::REG_SXTW,
                _ => mode::REG,
            };
            Lowered::new(kind_and(mode), [rt_index, sp(rn), src(rm), shift])
                .imms(0, iss)
                .base(rn, false, None)
        }
        Address::Literal { offset } => Lowered::new(kind_and(mode::LITERAL), [rt_index, 0, 0, 0])
            .imms(here.wrapping_add(offset) as u64, iss),
    }
}

fn load_store_pair(insn: Insn) -> Lowered {
    let Insn::LoadStorePair { load, simd, size, signed, rt, rt2, rn, offset, mode: index } = insn else {
        return undefined(0);
    };
    let mode = match index {
        IndexMode::Offset => mode::IMM,
        IndexMode::Pre => mode::PRE,
        IndexMode::Post => mode::POST,
    };
    let (handler, a, c) = match (simd, load) {
        (true, _) => (pick!(pair_simd, bool load, (2 3 4) size, (0 1 2) mode), rt, rt2),
        (false, true) => (pick!(pair, bool true, (2 3) size, bool signed, (0 1 2) mode), dst(rt), dst(rt2)),
        (false, false) => (pick!(pair, bool false, (2 3) size, bool false, (0 1 2) mode), src(rt), src(rt2)),
    };
    Lowered::new(handler, [a, sp(rn), c, 0]).imms(offset as u64, 0).base(
        rn,
        index != IndexMode::Offset,
        Some(offset),
    )
}

fn synchronisation(insn: Insn) -> Lowered {
    match insn {
        Insn::LoadExclusive { size, rt, rn, .. } => {
            Lowered::new(pick!(load_exclusive, (0 1 2 3) size), [dst(rt), sp(rn), 0, 0]).base(rn, false, None)
        }
        Insn::StoreExclusive { size, rs, rt, rn, .. } => {
            Lowered::new(pick!(store_exclusive, (0 1 2 3) size), [src(rt), sp(rn), dst(rs), 0])
                .base(rn, false, None)
        }
        Insn::LoadExclusivePair { size, rt, rt2, rn, .. } => {
            Lowered::new(load_exclusive_pair, [dst(rt), sp(rn), dst(rt2), size]).base(rn, false, None)
        }
        Insn::StoreExclusivePair { size, rs, rt, rt2, rn, .. } => {
            Lowered::new(store_exclusive_pair, [src(rt), sp(rn), dst(rs), size])
                .imm(u64::from(src(rt2)))
                .base(rn, false, None)
        }
        Insn::LoadAcquire { size, rt, rn } => {
            Lowered::new(pick!(load_acquire, (0 1 2 3) size), [dst(rt), sp(rn), 0, 0])
                .imms(0, transfer_iss(size, false, rt, size == 3, true))
                .base(rn, false, None)
        }
        Insn::StoreRelease { size, rt, rn } => {
            Lowered::new(pick!(store_release, (0 1 2 3) size), [src(rt), sp(rn), 0, 0])
                .imms(0, transfer_iss(size, false, rt, size == 3, true))
                .base(rn, false, None)
        }
        Insn::Atomic { op, size, rs, rt, rn } => {
            let op = op_number(op);
            Lowered::new(pick!(read_modify, (0 1 2 3 4 5 6 7 8) op), [dst(rt), sp(rn), src(rs), size])
                .base(rn, false, None)
        }
        Insn::CompareSwap { size, rs, rt, rn } => {
            Lowered::new(compare_swap, [src(rt), sp(rn), src(rs), size])
                .imm(u64::from(dst(rs)))
                .base(rn, false, None)
        }
        Insn::CompareSwapPair { size, rs, rt, rn } => {
            let packed = u64::from_le_bytes([src(rt + 1), src(rs + 1), dst(rs), dst(rs + 1), 0, 0, 0, 0]);
            Lowered::new(compare_swap_pair, [src(rt), sp(rn), src(rs), size])
                .imm(packed)
                .base(rn, false, None)
        }
        _ => undefined(0),
    }
}

fn structures(insn: Insn) -> Lowered {
    let post_kind = |post: Option<u8>| match post {
        None => 0,
        Some(31) => 1,
        Some(_) => 2,
    };
    let (handler, structure, rt, rn, post): (Handler, _, _, _, _) = match insn {
        Insn::SimdMulti { load, q, size, rpt, selem, rt, rn, post } => {
            let bytes = if q { 16 } else { 8 };
            let s = Structure { load, bytes, size, rpt, selem, index: 0, post: post_kind(post) };
            (simd_memory::multiple, s, rt, rn, post)
        }
        Insn::SimdSingle { load, size, selem, index, rt, rn, post } => {
            let s = Structure { load, bytes: 16, size, rpt: 1, selem, index, post: post_kind(post) };
            (simd_memory::single, s, rt, rn, post)
        }
        Insn::SimdReplicate { q, size, selem, rt, rn, post } => {
            let bytes = if q { 16 } else { 8 };
            let s = Structure { load: true, bytes, size, rpt: 1, selem, index: 0, post: post_kind(post) };
            (simd_memory::replicate, s, rt, rn, post)
        }
        _ => return undefined(0),
    };
    Lowered::new(handler, [rt, sp(rn), src(post.unwrap_or(31)), 0]).imm(structure.pack()).base(
        rn,
        post.is_some(),
        None,
    )
}

fn system_insn(insn: Insn, el1: bool) -> Lowered {
    let plain = |handler: Handler| Lowered::new(handler, [0; 4]);
    let away = |handler: Handler, imm: u16| plain(handler).imm(u64::from(imm)).ends(End::Away);
    match insn {
        Insn::Svc { imm } => away(system::svc, imm),
        Insn::Brk { imm } => away(system::brk, imm),
        Insn::Hvc { imm } if el1 => away(system::hvc, imm),
        Insn::Smc { imm } if el1 => away(system::smc, imm),
        Insn::Eret if el1 => away(system::eret, 0),
        Insn::Nop | Insn::Yield => Lowered::nothing(),
        Insn::Wfi => plain(system::wait),
        Insn::Wfe => Lowered::new(system::wait, [1, 0, 0, 0]),
        Insn::Sev => plain(system::sev),
        Insn::Sevl => plain(system::sevl),
        Insn::Clrex => plain(system::clrex),
        Insn::Dmb { option } => plain(match option & 3 {
            1 => system::dmb::<1>,
            2 => system::dmb::<2>,
            _ => system::dmb::<0>,
        }),
        Insn::Dsb { .. } => plain(system::dsb),
        // What came in the meantime is looked at between blocks.
        Insn::Isb => plain(system::isb).ends(End::Away),
        Insn::MsrImm { op1, op2, imm } => pstate_field(op1, op2, imm, el1),
        Insn::Sys { op1, crn, crm, op2, rt } => {
            let reg = enc(1, op1.into(), crn.into(), crm.into(), op2.into());
            let handler: Handler = match (el1, op1, crn, crm, op2) {
                (true, 3, 7, 4, 1) => zero_block,
                (true, ..) => system::sys,
                (false, ..) => system::sys_el0,
            };
            Lowered::new(handler, [src(rt), rt, 0, 0]).imm(u64::from(reg))
        }
        // Nothing implements SYSL.
        Insn::Mrs { reg, rt } => {
            let handler: Handler = match reg {
                _ if !el1 && reg != id::TPIDR_EL0 => system::register_el0,
                id::TPIDR_EL0 => system::mrs_tpidr_el0,
                id::TPIDR_EL1 => system::mrs_tpidr_el1,
                id::SP_EL0 => system::mrs_sp_el0,
                id::DAIF => system::mrs_daif,
                _ => system::mrs,
            };
            Lowered::new(handler, [dst(rt), rt, 1, 0]).imm(u64::from(reg))
        }
        Insn::Msr { reg, rt } => {
            let handler: Handler = match reg {
                _ if !el1 => system::register_el0,
                id::SP_EL0 => system::msr_sp_el0,
                _ => system::msr,
            };
            Lowered::new(handler, [src(rt), rt, 0, 0]).imm(u64::from(reg))
        }
        _ => undefined(0),
    }
}

/// MSR (immediate) of SPSel, PAN, DAIFSet and DAIFClr.
fn pstate_field(op1: u8, op2: u8, imm: u8, el1: bool) -> Lowered {
    let field = |reg: u16, value: u64| {
        Lowered::new(system::set_field, [0; 4]).imms(u64::from(reg), value).ends(End::Through)
    };
    // For the trap of EL0: the access as MSR (immediate) encodes it, op0 0 and CRn 4.
    let iss = system::system_iss(enc(0, op1.into(), 4, imm.into(), op2.into()), 31, false);
    match (op1, op2, el1) {
        (0, 4, true) => field(id::PAN, u64::from(imm & 1) << 22),
        (0, 5, true) => Lowered { changes_sp: true, ..field(id::SPSEL, u64::from(imm & 1)) },
        (3, 6, true) => Lowered::new(system::daif_set, [imm & 15, 0, 0, 0]),
        (3, 7, true) => Lowered::new(system::daif_clear, [imm & 15, 0, 0, 0]),
        (3, 6, false) => Lowered::new(system::daif_el0, [imm & 15, 0, 0, 0]).imm(iss),
        (3, 7, false) => Lowered::new(system::daif_el0, [imm & 15, 1, 0, 0]).imm(iss),
        _ => undefined(0),
    }
}
