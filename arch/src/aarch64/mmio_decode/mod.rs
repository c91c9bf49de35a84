//! What a data abort on a device wants: a plan of accesses, each of at most 16 bytes, with the registers they belong to.
//! From the syndrome where it says so (ISV = 1), otherwise from the instruction itself (Arm ARM C4.1.88, loads and stores).
//! It performs nothing; `trap_vcpu` carries the plan out and decides what an address is.

use super::esr::DataAccess;

/// Bytes that DC ZVA clears: the block size of every CPU this runs on (DCZID_EL0.BS = 4).
pub const ZVA_BYTES: u64 = 64;
/// The granularity at which one virtual page may lead elsewhere than the next.
const PAGE: u64 = 4096;
/// Most elements of one instruction: DC ZVA in 8 stores of 8 bytes.
const MAX_ELEMENTS: usize = 8;
/// The register number that is the stack pointer as a base and XZR as data.
const SP_OR_ZR: u8 = 31;

/// Where a loaded value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A general register; 31 discards.
    X {
        /// Its number.
        n: u8,
        /// Sign-extend from the width of the access.
        signed: bool,
        /// To 64 bits instead of 32 (the upper half is zero then).
        wide: bool,
    },
    /// A SIMD register, zero-extended.
    Q(u8),
}

/// What happens to an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Memory to register.
    Load(Destination),
    /// This value to memory.
    Store(u128),
}

/// One register's worth of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// Virtual address.
    pub va: u64,
    /// 1, 2, 4, 8 or 16 bytes.
    pub size: u8,
    /// Direction and register.
    pub operation: Operation,
}

/// Everything that one instruction does, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    elements: [Option<Element>; MAX_ELEMENTS],
    /// Base register (31 is SP) and its value afterwards.
    pub writeback: Option<(u8, u64)>,
}

impl Plan {
    fn new() -> Self {
        Plan { elements: [None; MAX_ELEMENTS], writeback: None }
    }

    fn push(&mut self, element: Element) {
        if let Some(slot) = self.elements.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(element);
        }
    }

    /// The elements in order.
    pub fn elements(&self) -> impl Iterator<Item = &Element> {
        self.elements.iter().flatten()
    }

    /// The plan of an access that the syndrome describes. `rt_value` is what a store writes.
    pub fn from_syndrome(access: DataAccess, write: bool, va: u64, rt_value: u64) -> Self {
        let operation = if write {
            Operation::Store(u128::from(rt_value))
        } else {
            Operation::Load(Destination::X {
                n: access.rt,
                signed: access.sign_extend,
                wide: access.sixty_four,
            })
        };
        let mut plan = Plan::new();
        plan.push(Element { va, size: access.size, operation });
        plan
    }

    /// Whether the plan touches the byte at `va` (tags in the top byte do not count).
    pub fn touches(&self, va: u64) -> bool {
        self.elements().any(|e| (va.wrapping_sub(e.va) & !TAG) < u64::from(e.size))
    }
}

/// The top byte of an address, which may be a tag.
const TAG: u64 = 0xff << 56;

/// Why an instruction that aborted has no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// An exclusive or atomic access: a device has no exclusive monitor, so it ends in an external abort.
    Exclusive,
    /// None of the instructions known here.
    Unknown,
}

/// The registers that an instruction reads, as the decoder needs them.
pub trait Registers {
    /// X0 to X30, or zero for 31.
    fn x(&self, n: u8) -> u64;
    /// The current stack pointer.
    fn sp(&self) -> u64;
    /// Q0 to Q31.
    fn q(&self, n: u8) -> u128;
    /// Address of the instruction.
    fn pc(&self) -> u64;
}

/// [`Registers`] read before the instruction is decoded: one that cannot be read fails the decoding as a whole.
#[derive(Debug)]
pub struct Snapshot {
    /// X0 to X30, then zero.
    pub x: [u64; 32],
    /// Q0 to Q31.
    pub q: [u128; 32],
    /// The current stack pointer.
    pub sp: u64,
    /// Address of the instruction.
    pub pc: u64,
}

impl Registers for Snapshot {
    fn x(&self, n: u8) -> u64 {
        self.x[usize::from(n & 31)]
    }
    fn sp(&self) -> u64 {
        self.sp
    }
    fn q(&self, n: u8) -> u128 {
        self.q[usize::from(n & 31)]
    }
    fn pc(&self) -> u64 {
        self.pc
    }
}

/// Bits `hi` down to `lo`.
fn bits(word: u32, hi: u32, lo: u32) -> u32 {
    word >> lo & ((1 << (hi - lo + 1)) - 1)
}

/// Bits `hi` down to `lo` as a signed number.
fn signed_bits(word: u32, hi: u32, lo: u32) -> i64 {
    i64::from(((word << (31 - hi)) as i32) >> (31 - hi + lo))
}

fn rt(word: u32) -> u8 {
    bits(word, 4, 0) as u8
}

fn rn(word: u32) -> u8 {
    bits(word, 9, 5) as u8
}

fn base<R: Registers + ?Sized>(regs: &R, n: u8) -> u64 {
    if n == SP_OR_ZR { regs.sp() } else { regs.x(n) }
}

/// Which registers data goes to or comes from, and how wide they are.
#[derive(Debug, Clone, Copy)]
struct Kind {
    load: bool,
    simd: bool,
    size: u8,
    signed: bool,
    wide: bool,
}

impl Kind {
    fn element<R: Registers + ?Sized>(self, regs: &R, n: u8, va: u64) -> Element {
        let operation = match (self.load, self.simd) {
            (true, true) => Operation::Load(Destination::Q(n)),
            (true, false) => Operation::Load(Destination::X { n, signed: self.signed, wide: self.wide }),
            (false, true) => Operation::Store(regs.q(n)),
            (false, false) => Operation::Store(u128::from(regs.x(n))),
        };
        Element { va, size: self.size, operation }
    }
}

/// Decodes `word`, the instruction at the PC, against the registers as they are before it.
pub fn decode<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    if word & 0xffff_ffe0 == 0xd50b_7420 {
        return zero_block(word, regs);
    }
    match (bits(word, 29, 27), bits(word, 25, 24)) {
        (0b001, 0b00) if word >> 26 & 1 == 0 => ordered_or_exclusive(word, regs),
        (0b001, 0b00) if word >> 31 == 0 => simd_structures(word, regs),
        (0b011, 0b00) => literal(word, regs),
        (0b011, 0b01) if word >> 26 & 1 == 0 && word >> 21 & 1 == 0 && bits(word, 11, 10) == 0 => {
            unscaled_ordered(word, regs)
        }
        (0b101, 0b00 | 0b01) => pair(word, regs),
        (0b111, 0b00 | 0b01) => single(word, regs),
        _ => Err(Refused::Unknown),
    }
}

/// DC ZVA: zeroes the block around an address.
fn zero_block<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    let start = regs.x(rt(word)) & !(ZVA_BYTES - 1);
    let mut plan = Plan::new();
    for offset in (0..ZVA_BYTES).step_by(8) {
        plan.push(Element { va: start.wrapping_add(offset), size: 8, operation: Operation::Store(0) });
    }
    Ok(plan)
}

/// LDAR and STLR (and their LOR forms) are plain here; LDXR, STXR, LDXP, STXP, CAS and CASP are exclusive.
fn ordered_or_exclusive<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    let plain = bits(word, 23, 23) == 1 && bits(word, 21, 21) == 0;
    if !plain {
        return Err(Refused::Exclusive);
    }
    let size = 1 << bits(word, 31, 30);
    let kind = Kind { load: word >> 22 & 1 == 1, simd: false, size, signed: false, wide: size == 8 };
    let mut plan = Plan::new();
    plan.push(kind.element(regs, rt(word), base(regs, rn(word))));
    Ok(plan)
}

/// LD1 and ST1 of whole registers (multiple structures): memory order is register order.
fn simd_structures<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    let count = match bits(word, 15, 12) {
        0b0111 => 1,
        0b1010 => 2,
        0b0110 => 3,
        0b0010 => 4,
        _ => return Err(Refused::Unknown),
    };
    let post_index = word >> 23 & 1 == 1;
    let rm = bits(word, 20, 16) as u8;
    if word >> 21 & 1 == 1 || (!post_index && rm != 0) {
        return Err(Refused::Unknown);
    }
    let size = if word >> 30 & 1 == 1 { 16 } else { 8 };
    let kind = Kind { load: word >> 22 & 1 == 1, simd: true, size, signed: false, wide: true };
    let start = base(regs, rn(word));
    let mut plan = Plan::new();
    for i in 0..count {
        let va = start.wrapping_add(u64::from(i) * u64::from(size));
        plan.push(kind.element(regs, (rt(word) + i) % 32, va));
    }
    if post_index {
        let step = if rm == 31 { u64::from(count) * u64::from(size) } else { regs.x(rm) };
        plan.writeback = Some((rn(word), start.wrapping_add(step)));
    }
    Ok(plan)
}

/// LDR (literal) and LDRSW (literal).
fn literal<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    let simd = word >> 26 & 1 == 1;
    let (size, signed) = match (bits(word, 31, 30), simd) {
        (0, _) => (4, false),
        (1, _) => (8, false),
        (2, true) => (16, false),
        (2, false) => (4, true),
        _ => return Err(Refused::Unknown),
    };
    let kind = Kind { load: true, simd, size, signed, wide: signed || size == 8 };
    let va = regs.pc().wrapping_add_signed(signed_bits(word, 23, 5) * 4);
    let mut plan = Plan::new();
    plan.push(kind.element(regs, rt(word), va));
    Ok(plan)
}

/// LDAPUR and STLUR.
fn unscaled_ordered<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    let Some(kind) = integer_kind(bits(word, 31, 30), bits(word, 23, 22)) else {
        return Err(Refused::Unknown);
    };
    let va = base(regs, rn(word)).wrapping_add_signed(signed_bits(word, 20, 12));
    let mut plan = Plan::new();
    plan.push(kind.element(regs, rt(word), va));
    Ok(plan)
}

/// LDP, STP, LDNP, STNP and LDPSW in all index modes.
fn pair<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    let simd = word >> 26 & 1 == 1;
    let load = word >> 22 & 1 == 1;
    let mode = bits(word, 24, 23);
    let (size, signed) = match (bits(word, 31, 30), simd) {
        (0, _) => (4, false),
        (1, true) => (8, false),
        (1, false) if load && mode != 0 => (4, true),
        (2, false) => (8, false),
        (2, true) => (16, false),
        _ => return Err(Refused::Unknown),
    };
    let kind = Kind { load, simd, size, signed, wide: signed || size == 8 };
    let start = base(regs, rn(word));
    let moved = start.wrapping_add_signed(signed_bits(word, 21, 15) * i64::from(size));
    // 0: no-allocate, 1: post-index, 2: offset, 3: pre-index.
    let va = if mode == 1 { start } else { moved };
    let mut plan = Plan::new();
    plan.push(kind.element(regs, rt(word), va));
    plan.push(kind.element(regs, bits(word, 14, 10) as u8, va.wrapping_add(u64::from(size))));
    plan.writeback = (mode & 1 == 1).then_some((rn(word), moved));
    Ok(plan)
}

/// What size and opc say of a load or store of a general register; `None` for prefetches and unallocated encodings.
fn integer_kind(size: u32, opc: u32) -> Option<Kind> {
    let bytes = 1 << size;
    let (load, signed, wide) = match opc {
        0 => (false, false, size == 3),
        1 => (true, false, size == 3),
        2 if size < 3 => (true, true, true),
        3 if size < 2 => (true, true, false),
        _ => return None,
    };
    Some(Kind { load, simd: false, size: bytes, signed, wide })
}

/// As [`integer_kind`], for SIMD registers.
fn simd_kind(size: u32, opc: u32) -> Option<Kind> {
    let bytes = match (opc >> 1, size) {
        (0, size) => 1 << size,
        (_, 0) => 16,
        _ => return None,
    };
    Some(Kind { load: opc & 1 == 1, simd: true, size: bytes, signed: false, wide: true })
}

/// LDR, STR, LDUR, STUR, LDTR, STTR, LDRS* with every way to form the address; LDAPR; LSE atomics.
fn single<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    let simd = word >> 26 & 1 == 1;
    let (size, opc) = (bits(word, 31, 30), bits(word, 23, 22));
    let unsigned_offset = bits(word, 25, 24) == 1;
    let register_form = !unsigned_offset && word >> 21 & 1 == 1;
    if register_form && bits(word, 11, 10) == 0 && !simd {
        return rcpc_or_atomic(word, regs);
    }
    let kind = if simd { simd_kind(size, opc) } else { integer_kind(size, opc) };
    let Some(kind) = kind else { return Err(Refused::Unknown) };
    let start = base(regs, rn(word));
    let mut plan = Plan::new();
    let va = if unsigned_offset {
        start.wrapping_add(u64::from(bits(word, 21, 10)) * u64::from(kind.size))
    } else if register_form {
        if bits(word, 11, 10) != 0b10 {
            return Err(Refused::Unknown);
        }
        let Some(offset) = register_offset(word, regs, kind.size) else { return Err(Refused::Unknown) };
        start.wrapping_add(offset)
    } else {
        let moved = start.wrapping_add_signed(signed_bits(word, 20, 12));
        match bits(word, 11, 10) {
            0b01 => {
                plan.writeback = Some((rn(word), moved));
                start
            }
            0b11 => {
                plan.writeback = Some((rn(word), moved));
                moved
            }
            0b10 if simd => return Err(Refused::Unknown),
            _ => moved,
        }
    };
    plan.push(kind.element(regs, rt(word), va));
    Ok(plan)
}

/// The offset of a register-offset form: Rm extended by `option`, shifted by the access size if S is set.
fn register_offset<R: Registers + ?Sized>(word: u32, regs: &R, size: u8) -> Option<u64> {
    let rm = regs.x(bits(word, 20, 16) as u8);
    let extended = match bits(word, 15, 13) {
        0b010 => u64::from(rm as u32),
        0b110 => i64::from(rm as i32) as u64,
        0b011 | 0b111 => rm,
        _ => return None,
    };
    let shift = if word >> 12 & 1 == 1 { size.trailing_zeros() } else { 0 };
    Some(extended << shift)
}

/// The forms with bit 21 set and bits 11:10 clear: LDAPR is a plain load, the rest are LSE atomics.
fn rcpc_or_atomic<R: Registers + ?Sized>(word: u32, regs: &R) -> Result<Plan, Refused> {
    if word & 0x3fff_fc00 != 0x38bf_c000 {
        return Err(Refused::Exclusive);
    }
    let size = 1 << bits(word, 31, 30);
    let kind = Kind { load: true, simd: false, size, signed: false, wide: size == 8 };
    let mut plan = Plan::new();
    plan.push(kind.element(regs, rt(word), base(regs, rn(word))));
    Ok(plan)
}

/// One transfer: a power of two of at most 8 bytes that stays within its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Virtual address.
    pub va: u64,
    /// 1, 2, 4 or 8 bytes.
    pub size: u8,
    /// What to write; `None` is a read.
    pub write: Option<u64>,
}

/// A plan being carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    plan: Plan,
    element: usize,
    done: u8,
    value: u128,
}

impl Progress {
    /// At the beginning of `plan`.
    pub fn new(plan: Plan) -> Self {
        Progress { plan, element: 0, done: 0, value: 0 }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn current(&self) -> Option<Element> {
        self.plan.elements.get(self.element).copied().flatten()
    }

    /// The next transfer, or `None` if all is done.
    pub fn next(&self) -> Option<Chunk> {
        let element = self.current()?;
        let va = element.va.wrapping_add(u64::from(self.done));
        let left = element.size.saturating_sub(self.done);
        let mut size = 8u8;
        while size > 1 && (size > left || va % PAGE + u64::from(size) > PAGE) {
            size /= 2;
        }
        let write = match element.operation {
            Operation::Load(_) => None,
            Operation::Store(value) => Some(truncate(value >> (8 * self.done), size)),
        };
        Some(Chunk { va, size, write })
    }

    /// Takes note that the [`Progress::next`] transfer is done and, for a read, gave `data`. If that completes a load,
    /// returns where its value goes and the value in full.
    pub fn complete(&mut self, data: u64) -> Option<(Destination, u128)> {
        let chunk = self.next()?;
        let element = self.current()?;
        self.value |= u128::from(truncate(u128::from(data), chunk.size)) << (8 * self.done);
        self.done += chunk.size;
        if self.done < element.size {
            return None;
        }
        let value = std::mem::take(&mut self.value);
        self.done = 0;
        self.element += 1;
        match element.operation {
            Operation::Load(destination) => Some((destination, extend(destination, value, element.size))),
            Operation::Store(_) => None,
        }
    }
}

fn truncate(value: u128, size: u8) -> u64 {
    if size >= 8 { value as u64 } else { value as u64 & ((1 << (8 * size)) - 1) }
}

/// Sign- or zero-extends what was read to the width of its register.
fn extend(destination: Destination, value: u128, size: u8) -> u128 {
    let Destination::X { signed, wide, .. } = destination else { return value };
    let shift = 64 - 8 * u32::from(size.min(8));
    let low = value as u64;
    let extended = if signed { (((low << shift) as i64) >> shift) as u64 } else { low };
    u128::from(if wide { extended } else { u64::from(extended as u32) })
}

#[cfg(test)]
mod tests;
