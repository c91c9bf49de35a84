//! Decoded instructions: what the decoder makes of a word and every execution engine starts from. Nothing is executed here.
//!
//! This is the seam between decoding and execution: the interpreter lowers a block of [`Insn`] to threaded code, and a code
//! generator would lower the same block to host instructions. Register numbers are the architectural 0 to 31; whether 31 is
//! SP or ZR is a property of the variant, stated there (and the rule is: bases are SP, everything else ZR unless said).

use crate::fpsimd::FpSimd;

/// AND, ORR, EOR, ANDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogicOp {
    And,
    Orr,
    Eor,
    Ands,
}

/// MOVN, MOVZ, MOVK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MoveOp {
    Movn,
    Movz,
    Movk,
}

/// SBFM, BFM, UBFM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BitfieldOp {
    Sbfm,
    Bfm,
    Ubfm,
}

/// The shift applied to a register operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shift {
    Lsl,
    Lsr,
    Asr,
    Ror,
}

/// The extension applied to a register operand, in encoding order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Extend {
    Uxtb,
    Uxth,
    Uxtw,
    Uxtx,
    Sxtb,
    Sxth,
    Sxtw,
    Sxtx,
}

/// Two-source data processing. For CRC32 the size is log2 of the bytes taken from Rm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DataProc2 {
    Udiv,
    Sdiv,
    Lslv,
    Lsrv,
    Asrv,
    Rorv,
    Crc32 { size: u8 },
    Crc32c { size: u8 },
}

/// One-source data processing. REV32 with `sf` clear is encoded as REV and decoded as [`DataProc1::Rev`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DataProc1 {
    Rbit,
    Rev16,
    /// Bytes within each 32-bit half of a 64-bit register.
    Rev32,
    /// All bytes of the (32- or 64-bit) register.
    Rev,
    Clz,
    Cls,
}

/// Three-source data processing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DataProc3 {
    Madd,
    Msub,
    Smaddl,
    Smsubl,
    Smulh,
    Umaddl,
    Umsubl,
    Umulh,
}

/// CSEL, CSINC, CSINV, CSNEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SelectOp {
    Csel,
    Csinc,
    Csinv,
    Csneg,
}

/// The second operand of a conditional comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CompareOperand {
    Reg(u8),
    Imm(u8),
}

/// LSE read-modify-write operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AtomicOp {
    Add,
    Clr,
    Eor,
    Set,
    Smax,
    Smin,
    Umax,
    Umin,
    Swp,
}

/// What a single-register load or store moves. `size` is log2 of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemOp {
    /// Store the low bytes of a general register (31 is ZR). `size` 0 to 3.
    Store {
        /// log2 of the bytes.
        size: u8,
    },
    /// Load with zero extension to 64 bits.
    Load {
        /// log2 of the bytes.
        size: u8,
    },
    /// Load with sign extension to 32 (`to64` false, upper half zero) or 64 bits.
    LoadSigned {
        /// log2 of the bytes.
        size: u8,
        /// Whether the extension goes to 64 bits.
        to64: bool,
    },
    /// Store of a SIMD register's low bytes. `size` 0 to 4.
    StoreSimd {
        /// log2 of the bytes.
        size: u8,
    },
    /// Load of a SIMD register, upper bits zeroed. `size` 0 to 4.
    LoadSimd {
        /// log2 of the bytes.
        size: u8,
    },
    /// PRFM, PRFUM: a hint, accesses nothing.
    Prefetch,
}

/// When the base register is updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexMode {
    /// Never.
    Offset,
    /// Before the access: the access is at base + offset, and that is written back.
    Pre,
    /// After the access: the access is at base; base + offset is written back.
    Post,
}

/// How a single-register load or store finds its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Base register (31 is SP) and a constant in bytes (already scaled).
    Imm {
        /// Base register.
        rn: u8,
        /// Byte offset.
        offset: i64,
        /// Writeback.
        mode: IndexMode,
    },
    /// Base register (31 is SP) plus an extended (UXTW, UXTX = LSL, SXTW, SXTX), shifted register.
    Reg {
        /// Base register.
        rn: u8,
        /// Index register (31 is ZR).
        rm: u8,
        /// Extension of the index.
        extend: Extend,
        /// Left shift of the index.
        shift: u8,
    },
    /// PC-relative.
    Literal {
        /// Byte offset from this instruction.
        offset: i64,
    },
}

/// A decoded instruction. `sf` is true for 64-bit forms. Branch and literal offsets are in bytes from this instruction.
///
/// Instructions of extensions this CPU does not have, and unallocated encodings, decode to `None`. Hints that the CPU does
/// not know (PACIASP, BTI, ...) are [`Insn::Nop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Insn {
    // Data processing - immediate
    /// ADD, ADDS, SUB, SUBS (immediate). `rn` 31 is SP; `rd` 31 is SP, or ZR when flags are set. `imm` is already shifted.
    AddSubImm {
        sf: bool,
        sub: bool,
        set_flags: bool,
        rd: u8,
        rn: u8,
        imm: u32,
    },
    /// AND, ORR, EOR (`rd` 31 is SP), ANDS (ZR) with an expanded bitmask (32-bit forms: upper half zero).
    LogicalImm {
        sf: bool,
        op: LogicOp,
        rd: u8,
        rn: u8,
        imm: u64,
    },
    /// `shift` is 0, 16, 32 or 48.
    MoveWide {
        sf: bool,
        op: MoveOp,
        rd: u8,
        imm: u16,
        shift: u8,
    },
    /// ADR, or ADRP (`page`), whose `offset` is then a multiple of 4096 from this instruction's page.
    Adr {
        page: bool,
        rd: u8,
        offset: i64,
    },
    Bitfield {
        sf: bool,
        op: BitfieldOp,
        rd: u8,
        rn: u8,
        immr: u8,
        imms: u8,
    },
    /// EXTR.
    Extract {
        sf: bool,
        rd: u8,
        rn: u8,
        rm: u8,
        lsb: u8,
    },

    // Data processing - register
    LogicalReg {
        sf: bool,
        op: LogicOp,
        invert: bool,
        shift: Shift,
        amount: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    AddSubReg {
        sf: bool,
        sub: bool,
        set_flags: bool,
        shift: Shift,
        amount: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// ADD/SUB (extended register). `rn` 31 is SP; `rd` 31 is SP, or ZR when flags are set. `amount` 0 to 4.
    AddSubExt {
        sf: bool,
        sub: bool,
        set_flags: bool,
        extend: Extend,
        amount: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// ADC, ADCS, SBC, SBCS.
    AddSubCarry {
        sf: bool,
        sub: bool,
        set_flags: bool,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    /// CCMP (`sub`), CCMN. `nzcv` is 4 bits, N highest.
    CondCompare {
        sf: bool,
        sub: bool,
        cond: u8,
        nzcv: u8,
        rn: u8,
        operand: CompareOperand,
    },
    CondSelect {
        sf: bool,
        op: SelectOp,
        cond: u8,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    DataProc2 {
        sf: bool,
        op: DataProc2,
        rd: u8,
        rn: u8,
        rm: u8,
    },
    DataProc1 {
        sf: bool,
        op: DataProc1,
        rd: u8,
        rn: u8,
    },
    DataProc3 {
        sf: bool,
        op: DataProc3,
        rd: u8,
        rn: u8,
        rm: u8,
        ra: u8,
    },

    // Branches and exceptions
    B {
        offset: i64,
    },
    Bl {
        offset: i64,
    },
    BCond {
        cond: u8,
        offset: i64,
    },
    /// CBZ, CBNZ (`nonzero`).
    Cbz {
        sf: bool,
        nonzero: bool,
        rt: u8,
        offset: i64,
    },
    /// TBZ, TBNZ (`nonzero`).
    Tbz {
        nonzero: bool,
        bit: u8,
        rt: u8,
        offset: i64,
    },
    Br {
        rn: u8,
    },
    Blr {
        rn: u8,
    },
    Ret {
        rn: u8,
    },
    Eret,
    Svc {
        imm: u16,
    },
    Hvc {
        imm: u16,
    },
    Smc {
        imm: u16,
    },
    Brk {
        imm: u16,
    },
    /// HLT: UNDEFINED unless halting debug is on, which it never is.
    Hlt {
        imm: u16,
    },

    // System
    /// NOP, PRFM-like hints and every hint this CPU does not know.
    Nop,
    Yield,
    Wfe,
    Wfi,
    Sev,
    Sevl,
    Clrex,
    /// DMB, with its option field (CRm).
    Dmb {
        option: u8,
    },
    /// DSB, with its option field (CRm). SSBB and PSSBB are DSBs here.
    Dsb {
        option: u8,
    },
    Isb,
    /// MSR (immediate), for the PSTATE field named by op1 and op2. Unknown fields decode to `None`.
    MsrImm {
        op1: u8,
        op2: u8,
        imm: u8,
    },
    /// SYS (op0 = 1): cache, TLB and address translation maintenance. `rt` 31 is ZR.
    Sys {
        op1: u8,
        crn: u8,
        crm: u8,
        op2: u8,
        rt: u8,
    },
    /// SYSL.
    Sysl {
        op1: u8,
        crn: u8,
        crm: u8,
        op2: u8,
        rt: u8,
    },
    /// MRS: `reg` is `op0:2 op1:3 CRn:4 CRm:4 op2:3`, op0 2 or 3. Whether the register exists is decided at execution.
    Mrs {
        reg: u16,
        rt: u8,
    },
    /// MSR (register): as [`Insn::Mrs`].
    Msr {
        reg: u16,
        rt: u8,
    },

    // Loads and stores
    /// One register. `unprivileged` is LDTR and STTR.
    LoadStore {
        op: MemOp,
        rt: u8,
        addr: Address,
        unprivileged: bool,
    },
    /// LDP, STP, LDNP, STNP, LDPSW (`signed`: `size` 2, extended to 64 bits), and their SIMD forms (`size` 2 to 4).
    LoadStorePair {
        load: bool,
        simd: bool,
        size: u8,
        signed: bool,
        rt: u8,
        rt2: u8,
        rn: u8,
        offset: i64,
        mode: IndexMode,
    },
    /// LDXR, LDAXR (`ordered`). Zero-extends.
    LoadExclusive {
        size: u8,
        ordered: bool,
        rt: u8,
        rn: u8,
    },
    /// STXR, STLXR (`ordered`). `rs` gets the status.
    StoreExclusive {
        size: u8,
        ordered: bool,
        rs: u8,
        rt: u8,
        rn: u8,
    },
    /// LDXP, LDAXP. `size` is that of one register, 2 or 3.
    LoadExclusivePair {
        size: u8,
        ordered: bool,
        rt: u8,
        rt2: u8,
        rn: u8,
    },
    /// STXP, STLXP.
    StoreExclusivePair {
        size: u8,
        ordered: bool,
        rs: u8,
        rt: u8,
        rt2: u8,
        rn: u8,
    },
    /// LDAR and LDLAR.
    LoadAcquire {
        size: u8,
        rt: u8,
        rn: u8,
    },
    /// STLR and STLLR.
    StoreRelease {
        size: u8,
        rt: u8,
        rn: u8,
    },
    /// LDADD ... SWP. With `rt` 31 the store-only forms (STADD ...). All host atomics are sequentially consistent.
    Atomic {
        op: AtomicOp,
        size: u8,
        rs: u8,
        rt: u8,
        rn: u8,
    },
    /// CAS.
    CompareSwap {
        size: u8,
        rs: u8,
        rt: u8,
        rn: u8,
    },
    /// CASP; `rs` and `rt` are even; `size` is that of one register, 2 or 3.
    CompareSwapPair {
        size: u8,
        rs: u8,
        rt: u8,
        rn: u8,
    },
    /// LD1-LD4, ST1-ST4 (multiple structures). `size` is log2 of an element; `rpt` and `selem` as in the Arm ARM
    /// (LD1 with n registers: rpt n, selem 1; LDn: rpt 1, selem n). `post`: no writeback, by the bytes moved (`Some(31)`), or
    /// by Xm.
    SimdMulti {
        load: bool,
        q: bool,
        size: u8,
        rpt: u8,
        selem: u8,
        rt: u8,
        rn: u8,
        post: Option<u8>,
    },
    /// LD1-LD4, ST1-ST4 (single structure): lane `index`. `post` as in [`Insn::SimdMulti`].
    SimdSingle {
        load: bool,
        size: u8,
        selem: u8,
        index: u8,
        rt: u8,
        rn: u8,
        post: Option<u8>,
    },
    /// LD1R to LD4R: one element to all lanes. `post` as in [`Insn::SimdMulti`].
    SimdReplicate {
        q: bool,
        size: u8,
        selem: u8,
        rt: u8,
        rn: u8,
        post: Option<u8>,
    },

    /// Data processing on the FP and SIMD registers.
    FpSimd(FpSimd),
}
