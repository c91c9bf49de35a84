//! The bench that the tests drive a CPU with: guest memory, translation tables, and running a few instructions to their end.
//! It asserts nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hvrun_soft::{Cpu, Exit, Machine, Perms};

/// Guest memory of a bench: vectors, code, data and translation tables.
pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: u64 = 0x80_0000;
/// Where VBAR_EL1 points to: each vector is an HVC that tells its number.
pub const VECTORS: u64 = RAM;
/// Where the programs go.
pub const CODE: u64 = RAM + 0x1000;
const CODE_SIZE: u64 = 0x4000;
/// For the tests to use, 1 MiB.
pub const DATA: u64 = RAM + 0x10_0000;
const TABLES: u64 = RAM + 0x40_0000;

/// Added to a physical address of RAM: its virtual address for EL1, once translation is on.
pub const KERNEL: u64 = 0xffff_ff80_0000_0000;
/// Added to a physical address of code: its virtual address for EL0, once translation is on.
pub const USER: u64 = 0xffff_ff90_0000_0000;

/// PSTATE of EL1 with its own stack pointer, interrupts masked.
pub const EL1H: u64 = 0x3c5;
/// PSTATE of EL0, interrupts masked (as if: EL0 cannot mask them without SCTLR_EL1.UMA).
pub const EL0T: u64 = 0x3c0;

/// The immediate of the HVC (at EL1) or SVC (at EL0) that ends a program.
const END: u32 = 0xd0;
/// The immediate of the HVC of vector 0; that of the others follows.
const VECTOR: u64 = 0x100;

/// System register encodings, `op0:2 op1:3 CRn:4 CRm:4 op2:3`.
pub mod reg {
    const fn enc(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
        op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    }
    macro_rules! registers {
        ($($name:ident = $op0:literal, $op1:literal, $crn:literal, $crm:literal, $op2:literal;)*) => {
            $(pub const $name: u16 = enc($op0, $op1, $crn, $crm, $op2);)*
        };
    }
    registers! {
        MIDR_EL1 = 3,0,0,0,0; MPIDR_EL1 = 3,0,0,0,5;
        ID_AA64PFR0_EL1 = 3,0,0,4,0; ID_AA64PFR1_EL1 = 3,0,0,4,1; ID_AA64DFR0_EL1 = 3,0,0,5,0;
        ID_AA64ISAR0_EL1 = 3,0,0,6,0; ID_AA64ISAR1_EL1 = 3,0,0,6,1;
        ID_AA64MMFR0_EL1 = 3,0,0,7,0; ID_AA64MMFR1_EL1 = 3,0,0,7,1; ID_AA64MMFR2_EL1 = 3,0,0,7,2;
        SCTLR_EL1 = 3,0,1,0,0; ACTLR_EL1 = 3,0,1,0,1; CPACR_EL1 = 3,0,1,0,2;
        TTBR0_EL1 = 3,0,2,0,0; TTBR1_EL1 = 3,0,2,0,1; TCR_EL1 = 3,0,2,0,2;
        SPSR_EL1 = 3,0,4,0,0; ELR_EL1 = 3,0,4,0,1; SP_EL0 = 3,0,4,1,0; SP_EL1 = 3,4,4,1,0;
        SPSEL = 3,0,4,2,0; CURRENTEL = 3,0,4,2,2; PAN = 3,0,4,2,3;
        ESR_EL1 = 3,0,5,2,0; FAR_EL1 = 3,0,6,0,0; PAR_EL1 = 3,0,7,4,0; MAIR_EL1 = 3,0,10,2,0;
        LORC_EL1 = 3,0,10,4,3; VBAR_EL1 = 3,0,12,0,0; ISR_EL1 = 3,0,12,1,0; ICC_IAR1_EL1 = 3,0,12,12,0;
        ICC_EOIR1_EL1 = 3,0,12,12,1; TPIDR_EL1 = 3,0,13,0,4; CNTKCTL_EL1 = 3,0,14,1,0;
        CLIDR_EL1 = 3,1,0,0,1; CTR_EL0 = 3,3,0,0,1; DCZID_EL0 = 3,3,0,0,7;
        NZCV = 3,3,4,2,0; DAIF = 3,3,4,2,1; FPCR = 3,3,4,4,0; FPSR = 3,3,4,4,1;
        PMCR_EL0 = 3,3,9,12,0; TPIDR_EL0 = 3,3,13,0,2; TPIDRRO_EL0 = 3,3,13,0,3;
        CNTFRQ_EL0 = 3,3,14,0,0; CNTPCT_EL0 = 3,3,14,0,1; CNTVCT_EL0 = 3,3,14,0,2;
        CNTV_TVAL_EL0 = 3,3,14,3,0; CNTV_CTL_EL0 = 3,3,14,3,1; CNTV_CVAL_EL0 = 3,3,14,3,2;
        HCR_EL2 = 3,4,1,1,0; SCTLR_EL12 = 3,5,1,0,0; MDSCR_EL1 = 2,0,0,2,2; OSLAR_EL1 = 2,0,1,0,4;
    }
}

/// MRS Xt, `reg`.
pub fn mrs(reg: u16, rt: u32) -> u32 {
    0xd520_0000 | u32::from(reg) << 5 | rt
}

/// MSR `reg`, Xt.
pub fn msr(reg: u16, rt: u32) -> u32 {
    0xd500_0000 | u32::from(reg) << 5 | rt
}

/// SCTLR_EL1 bits.
pub mod sctlr {
    pub const M: u64 = 1;
    pub const A: u64 = 1 << 1;
    pub const SA: u64 = 1 << 3;
    pub const SA0: u64 = 1 << 4;
    pub const UMA: u64 = 1 << 9;
    pub const DZE: u64 = 1 << 14;
    pub const UCT: u64 = 1 << 15;
    pub const NTWI: u64 = 1 << 16;
    pub const NTWE: u64 = 1 << 18;
    pub const WXN: u64 = 1 << 19;
    pub const SPAN: u64 = 1 << 23;
    pub const UCI: u64 = 1 << 26;
}

/// Descriptor bits (Arm ARM D8.3).
pub mod desc {
    /// MAIR index 1 of the bench: Device-nGnRnE.
    pub const DEVICE: u64 = 1 << 2;
    /// AP[1]: EL0 may access.
    pub const EL0: u64 = 1 << 6;
    /// AP[2]: nobody may write.
    pub const RO: u64 = 1 << 7;
    pub const AF: u64 = 1 << 10;
    pub const NG: u64 = 1 << 11;
    pub const PXN: u64 = 1 << 53;
    pub const UXN: u64 = 1 << 54;
    pub const PXN_TABLE: u64 = 1 << 59;
    pub const UXN_TABLE: u64 = 1 << 60;
    /// APTable[0]: no access from EL0 below.
    pub const NO_EL0_TABLE: u64 = 1 << 61;
    /// APTable[1]: read-only below.
    pub const RO_TABLE: u64 = 1 << 62;
}

/// Host memory of the guest, aligned as 64 KiB pages want it. Shared by CPUs and test as the guest's CPUs share it.
pub struct Memory {
    base: u64,
    host: *mut u8,
    _owner: Vec<u64>,
}

// SAFETY: the memory lives as long as the value, and is only accessed atomically (here) or as guest memory (in the CPUs).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `size` bytes of zeroes for the guest address `base`.
    pub fn new(base: u64, size: u64) -> Memory {
        let mut owner = vec![0u64; (size as usize + 0x1_0000) / 8];
        let host = (owner.as_mut_ptr() as usize).next_multiple_of(0x1_0000) as *mut u8;
        Memory { base, host, _owner: owner }
    }

    /// Where the guest address `ipa` lies.
    pub fn host(&self, ipa: u64) -> *mut u8 {
        self.host.wrapping_add((ipa - self.base) as usize)
    }

    pub fn read(&self, ipa: u64) -> u64 {
        // SAFETY: tests only use 8-aligned addresses inside the memory.
        unsafe { AtomicU64::from_ptr(self.host(ipa).cast()) }.load(Ordering::SeqCst)
    }

    pub fn write(&self, ipa: u64, value: u64) {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.host(ipa).cast()) }.store(value, Ordering::SeqCst);
    }

    pub fn write_code(&self, ipa: u64, words: &[u32]) {
        for (i, word) in words.iter().enumerate() {
            // SAFETY: as above, 4-aligned.
            unsafe { AtomicU32::from_ptr(self.host(ipa + 4 * i as u64).cast()) }
                .store(*word, Ordering::SeqCst);
        }
    }

    /// Fills the 16 vectors at `ipa` with HVCs.
    pub fn write_vectors(&self, ipa: u64) {
        for vector in 0..16 {
            self.write_code(ipa + 0x80 * vector, &[0xd400_0002 | ((VECTOR + vector) as u32) << 5]);
        }
    }
}

/// An exception that the guest took to EL1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Offset from VBAR_EL1.
    pub vector: u64,
    pub esr: u64,
    pub far: u64,
    pub elr: u64,
    pub spsr: u64,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was executed.
    Done,
    /// It took an exception to EL1.
    Taken(Taken),
    /// It left `Cpu::run`.
    Exit(Exit),
}

/// What the exit `exit` of `cpu` means, given the vectors of [`Memory::write_vectors`].
pub fn outcome(cpu: &Cpu, exit: Exit) -> Outcome {
    let get = |r| cpu.sys_reg(r).unwrap();
    let Exit::Exception { syndrome, .. } = exit else { return Outcome::Exit(exit) };
    if syndrome >> 26 != 0x16 {
        return Outcome::Exit(exit);
    }
    let number = syndrome & 0xffff;
    let esr = get(reg::ESR_EL1);
    let from_el0 = number == VECTOR + 8 && esr == 0x15 << 26 | 1 << 25 | u64::from(END);
    if number == u64::from(END) || from_el0 {
        return Outcome::Done;
    }
    Outcome::Taken(Taken {
        vector: (number - VECTOR) * 0x80,
        esr,
        far: get(reg::FAR_EL1),
        elr: get(reg::ELR_EL1),
        spsr: get(reg::SPSR_EL1),
    })
}

/// One CPU with its machine and memory.
pub struct Bench {
    pub cpu: Cpu,
    pub machine: Arc<Machine>,
    pub memory: Arc<Memory>,
    /// PSTATE at the start of each program.
    pub pstate: u64,
    next_code: u64,
    next_table: u64,
}

impl Bench {
    /// A CPU at EL1 with translation off, FP enabled and VBAR_EL1 set.
    pub fn new() -> Bench {
        let memory = Arc::new(Memory::new(RAM, RAM_SIZE));
        let machine = Machine::new(40);
        // SAFETY: the memory is dropped after the CPU, whose field comes first.
        unsafe { machine.map(RAM, memory.host(RAM), RAM_SIZE, Perms::ALL) }.unwrap();
        memory.write_vectors(VECTORS);
        let cpu = Cpu::new(machine.clone());
        let mut bench = Bench { cpu, machine, memory, pstate: EL1H, next_code: CODE, next_table: TABLES };
        bench.set(reg::VBAR_EL1, VECTORS);
        bench.set(reg::CPACR_EL1, 3 << 20);
        bench
    }

    pub fn set(&mut self, reg: u16, value: u64) {
        assert!(self.cpu.set_sys_reg(reg, value), "{reg:#x} is no register to set");
    }

    pub fn get(&self, reg: u16) -> u64 {
        self.cpu.sys_reg(reg).unwrap()
    }

    /// Sets and clears bits of SCTLR_EL1.
    pub fn sctlr(&mut self, set: u64, clear: u64) {
        let value = self.get(reg::SCTLR_EL1);
        self.set(reg::SCTLR_EL1, value & !clear | set);
    }

    /// Virtual address at which code of the physical address `pa` is run.
    pub fn code_va(&self, pa: u64) -> u64 {
        match (self.get(reg::SCTLR_EL1) & sctlr::M != 0, self.pstate & 0xc) {
            (false, _) => pa,
            (true, 0) => USER + pa,
            (true, _) => KERNEL + pa,
        }
    }

    /// Writes a program where none was, with the end behind it; returns its virtual address.
    pub fn load(&mut self, words: &[u32]) -> u64 {
        let at = self.next_code;
        self.next_code += 4 * (words.len() as u64 + 1);
        assert!(self.next_code <= CODE + CODE_SIZE, "too many programs");
        let end = if self.pstate & 0xc == 0 { 0xd400_0001 } else { 0xd400_0002 } | END << 5;
        self.memory.write_code(at, words);
        self.memory.write_code(at + 4 * words.len() as u64, &[end]);
        self.code_va(at)
    }

    /// Runs from `pc` until the guest leaves.
    pub fn run_at(&mut self, pc: u64) -> Outcome {
        self.cpu.set_cpsr(self.pstate);
        self.cpu.set_pc(pc);
        let exit = self.cpu.run();
        outcome(&self.cpu, exit)
    }

    /// Runs a few instructions.
    pub fn run(&mut self, words: &[u32]) -> Outcome {
        let pc = self.load(words);
        self.run_at(pc)
    }

    /// As [`Bench::run`], for programs that must take an exception.
    pub fn taken(&mut self, words: &[u32]) -> Taken {
        match self.run(words) {
            Outcome::Taken(taken) => taken,
            other => panic!("no exception: {other:x?}"),
        }
    }

    /// As [`Bench::run`], for programs that must leave `Cpu::run`: syndrome, FAR and IPA.
    pub fn exited(&mut self, words: &[u32]) -> (u64, u64, u64) {
        match self.run(words) {
            Outcome::Exit(Exit::Exception { syndrome, far, ipa }) => (syndrome, far, ipa),
            other => panic!("no exit: {other:x?}"),
        }
    }

    /// As [`Bench::run`], for programs that must run to their end.
    pub fn done(&mut self, words: &[u32]) {
        assert_eq!(self.run(words), Outcome::Done);
    }

    /// An empty translation table of 64 KiB, fit for every granule.
    pub fn table(&mut self) -> u64 {
        self.next_table += 0x1_0000;
        assert!(self.next_table <= RAM + RAM_SIZE, "too many tables");
        self.next_table - 0x1_0000
    }

    /// Turns translation on: the kernel's view of RAM and EL0's of the code in the upper half (4 KiB granule, 39 bits), and
    /// an empty lower half of the same shape, which is returned.
    pub fn translate(&mut self) -> Half {
        let lower = Half::new(self, 12, 25, false);
        self.translate_with(lower)
    }

    /// As [`Bench::translate`], with the lower half given.
    pub fn translate_with(&mut self, lower: Half) -> Half {
        let upper = Half::new(self, 12, 25, true);
        for block in (0..RAM_SIZE).step_by(0x20_0000) {
            upper.map(self, KERNEL + RAM + block, RAM + block, 2, desc::AF | desc::UXN);
        }
        for page in (0..CODE_SIZE).step_by(0x1000) {
            upper.map(self, USER + CODE + page, CODE + page, 3, desc::AF | desc::EL0 | desc::RO | desc::PXN);
        }
        self.turn_on(lower, upper);
        self.set(reg::VBAR_EL1, KERNEL + VECTORS);
        lower
    }

    /// Turns translation on with these two halves.
    pub fn turn_on(&mut self, lower: Half, upper: Half) {
        self.set(reg::TTBR0_EL1, lower.root);
        self.set(reg::TTBR1_EL1, upper.root);
        // 40 bits of physical address.
        self.set(reg::TCR_EL1, 2 << 32 | lower.tcr() | upper.tcr());
        self.set(reg::MAIR_EL1, 0x44_00ff);
        self.sctlr(sctlr::M, 0);
    }
}

/// The translation tables of one half of the address space.
#[derive(Debug, Clone, Copy)]
pub struct Half {
    pub granule_bits: u32,
    pub txsz: u32,
    pub upper: bool,
    pub root: u64,
}

impl Half {
    /// An empty table of the first level.
    pub fn new(bench: &mut Bench, granule_bits: u32, txsz: u32, upper: bool) -> Half {
        Half { granule_bits, txsz, upper, root: bench.table() }
    }

    /// This half's part of TCR_EL1.
    pub fn tcr(&self) -> u64 {
        let txsz = u64::from(self.txsz);
        if self.upper {
            let tg1 = [2, 1, 3][(self.granule_bits as usize - 12) / 2];
            txsz << 16 | tg1 << 30
        } else {
            let tg0 = [0, 2, 1][(self.granule_bits as usize - 12) / 2];
            txsz | tg0 << 14
        }
    }

    /// log2 of the bytes that a descriptor of `level` maps.
    pub fn level_bits(&self, level: u32) -> u32 {
        self.granule_bits + (self.granule_bits - 3) * (3 - level)
    }

    /// The level of the first table.
    pub fn first_level(&self) -> u32 {
        (0..4)
            .rev()
            .find(|&level| self.level_bits(level) + self.granule_bits - 3 >= 64 - self.txsz)
            .unwrap_or(0)
    }

    /// The lowest address of this half.
    pub fn start(&self) -> u64 {
        if self.upper { !0 << (64 - self.txsz) } else { 0 }
    }

    /// Where the descriptor of `level` for `va` lies. The tables above must exist.
    pub fn entry(&self, bench: &Bench, va: u64, level: u32) -> u64 {
        let mut table = self.root;
        for l in self.first_level()..level {
            table = bench.memory.read(self.index(table, va, l)) & 0xffff_ffff_0000;
        }
        self.index(table, va, level)
    }

    fn index(&self, table: u64, va: u64, level: u32) -> u64 {
        let offset = va - self.start();
        let index = offset >> self.level_bits(level);
        let mask = if level == self.first_level() { u64::MAX } else { (1 << (self.granule_bits - 3)) - 1 };
        table + 8 * (index & mask)
    }

    /// Maps what one descriptor of `level` maps, making the tables above it; returns where the descriptor lies.
    pub fn map(&self, bench: &mut Bench, va: u64, pa: u64, level: u32, attributes: u64) -> u64 {
        let kind = if level == 3 { 3 } else { 1 };
        self.put(bench, va, level, pa >> self.level_bits(level) << self.level_bits(level) | attributes | kind)
    }

    /// Writes a descriptor, making the tables above it; returns where it lies.
    pub fn put(&self, bench: &mut Bench, va: u64, level: u32, descriptor: u64) -> u64 {
        for l in self.first_level()..level {
            let entry = self.entry(bench, va, l);
            if bench.memory.read(entry) == 0 {
                let table = bench.table();
                bench.memory.write(entry, table | 3);
            }
        }
        let entry = self.entry(bench, va, level);
        bench.memory.write(entry, descriptor);
        entry
    }
}

/// SplitMix64: the same numbers on every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A register's value: often an edge.
    pub fn value(&mut self) -> u64 {
        let edge = match self.below(10) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << 63,
            3 => (1 << 63) - 1,
            4 => 1 << 31,
            5 => (1 << 31) - 1,
            6 => self.below(70),
            7 => 1 << self.below(64),
            _ => return self.next(),
        };
        if self.below(4) == 0 { edge ^ self.next() << 32 } else { edge }
    }
}
