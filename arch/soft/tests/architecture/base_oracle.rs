//! Base instructions, loads and stores against `qemu-aarch64`: random encodings of each group over random operands, at EL0
//! with translation on. Which encodings are allocated is not compared here, nor SIMD and floating-point arithmetic.
//!
//! `HVRUN_ORACLE_FACTOR=50` multiplies the number of cases, for a longer search.

use std::fmt::Write;
use std::sync::Arc;

use hvrun_oracle::{Case, MEM_BASE, Outcome as Expected, PC, State};
use hvrun_soft::decode::decode;
use hvrun_soft::insn::{Address, Extend, IndexMode, Insn, MemOp};
use hvrun_soft::{Cpu, Exit, Machine, Perms};

use crate::common::{EL0T, Memory, Outcome, RAM, Random, VECTORS, desc, outcome, reg, sctlr};

/// Bytes of the memory page that cases use.
const BUFFER: u64 = 512;
/// Page of the tested instruction.
const PC_PAGE: u64 = PC & !0xfff;
const BRK: u32 = 0xd420_0000;
const TABLE: u64 = RAM + 0x1_0000;

/// The software CPU, ready to run one instruction at a time.
struct Ours {
    cpu: Cpu,
    code: Memory,
    data: Memory,
    _ram: Memory,
}

/// What our CPU made of a case.
#[derive(Debug)]
enum Got {
    Done { state: Box<State>, next_pc: u64 },
    Other(Outcome),
}

impl Ours {
    fn new() -> Ours {
        let machine: Arc<Machine> = Machine::new(40);
        let (code, data, ram) =
            (Memory::new(PC_PAGE, 0x1000), Memory::new(MEM_BASE, 0x1000), Memory::new(RAM, 0x2_0000));
        for (memory, base, size) in
            [(&code, PC_PAGE, 0x1000), (&data, MEM_BASE, 0x1000), (&ram, RAM, 0x2_0000)]
        {
            // SAFETY: the memories are dropped after the CPU, whose field comes first.
            unsafe { machine.map(base, memory.host(base), size, Perms::ALL) }.unwrap();
        }
        ram.write_vectors(VECTORS);
        code.write_code(PC_PAGE, &[BRK; 1024]);
        // Blocks of 1 GiB: EL0's, and the one that holds the vectors.
        ram.write(TABLE, desc::AF | desc::EL0 | 1);
        ram.write(TABLE + 8, RAM | desc::AF | desc::UXN | 1);
        Ours { cpu: Cpu::new(machine), code, data, _ram: ram }
    }

    fn run(&mut self, case: &Case) -> Got {
        let before = &case.state;
        self.code.write_code(PC, &[case.insn]);
        for (i, chunk) in before.mem.chunks(8).enumerate() {
            self.data.write(MEM_BASE + 8 * i as u64, u64::from_le_bytes(chunk.try_into().unwrap()));
        }
        let cpu = &mut self.cpu;
        cpu.reset();
        for (register, value) in [
            (reg::VBAR_EL1, VECTORS),
            (reg::CPACR_EL1, 3 << 20),
            (reg::TTBR0_EL1, TABLE),
            (reg::TCR_EL1, 2 << 32 | 25),
            (reg::MAIR_EL1, 0xff),
            (reg::SCTLR_EL1, sctlr::M | sctlr::DZE | sctlr::NTWE | sctlr::NTWI | sctlr::SPAN),
            (reg::SP_EL0, before.sp),
            (reg::FPCR, u64::from(before.fpcr)),
            (reg::FPSR, u64::from(before.fpsr)),
        ] {
            assert!(cpu.set_sys_reg(register, value));
        }
        (0..31).for_each(|n| cpu.set_x(n, before.x[usize::from(n)]));
        (0..32).for_each(|n| cpu.set_q(n, before.q[usize::from(n)]));
        cpu.set_cpsr(EL0T | u64::from(before.nzcv));
        cpu.set_pc(PC);

        let exit = cpu.run();
        let (next_pc, pstate) = match outcome(cpu, exit) {
            // BRK, or the fetch at a branch's target.
            Outcome::Taken(t) if t.vector == 0x400 && matches!(t.esr >> 26, 0x3c | 0x20 | 0x22) => {
                (t.elr, t.spsr)
            }
            Outcome::Exit(Exit::Exception { syndrome, .. }) if syndrome >> 26 == 0x20 => {
                (cpu.pc(), cpu.cpsr())
            }
            other => return Got::Other(other),
        };
        let mem =
            (0..before.mem.len() as u64 / 8).flat_map(|i| self.data.read(MEM_BASE + 8 * i).to_le_bytes());
        let state = State {
            x: std::array::from_fn(|n| cpu.x(n as u8)),
            sp: cpu.sys_reg(reg::SP_EL0).unwrap(),
            nzcv: pstate as u32 & 0xf000_0000,
            q: std::array::from_fn(|n| cpu.q(n as u8)),
            fpcr: cpu.sys_reg(reg::FPCR).unwrap() as u32,
            fpsr: cpu.sys_reg(reg::FPSR).unwrap() as u32,
            mem: mem.collect(),
        };
        Got::Done { state: Box::new(state), next_pc }
    }
}

/// What differs between two states, for people.
fn differences(before: &State, expected: &State, got: &State) -> String {
    let mut text = String::new();
    let mut line = |name: String, before: u128, expected: u128, got: u128| {
        if expected != got {
            let _ = writeln!(text, "  {name}: was {before:#x}, expected {expected:#x}, got {got:#x}");
        }
    };
    for n in 0..31 {
        line(format!("X{n}"), before.x[n].into(), expected.x[n].into(), got.x[n].into());
    }
    for n in 0..32 {
        line(format!("V{n}"), before.q[n], expected.q[n], got.q[n]);
    }
    line("SP".into(), before.sp.into(), expected.sp.into(), got.sp.into());
    line("NZCV".into(), before.nzcv.into(), expected.nzcv.into(), got.nzcv.into());
    line("FPCR".into(), before.fpcr.into(), expected.fpcr.into(), got.fpcr.into());
    line("FPSR".into(), before.fpsr.into(), expected.fpsr.into(), got.fpsr.into());
    for i in 0..expected.mem.len() {
        line(
            format!("[{:#x}]", MEM_BASE + i as u64),
            before.mem[i].into(),
            expected.mem[i].into(),
            got.mem[i].into(),
        );
    }
    text
}

/// The registers of a case that are not zero or the like, for people.
fn operands(state: &State) -> String {
    let mut text = String::new();
    for (n, x) in state.x.iter().enumerate() {
        let _ = write!(text, "{}X{n}={x:#x}", if n % 6 == 0 { "\n  " } else { " " });
    }
    let _ = write!(text, "\n  SP={:#x} NZCV={:#x}", state.sp, state.nzcv);
    text
}

fn compare(ours: &mut Ours, case: &Case, expected: &Expected) -> Result<(), String> {
    let got = ours.run(case);
    let problem = match (expected, got) {
        (Expected::Done { state: expected, next_pc: expected_pc }, Got::Done { state: got, next_pc }) => {
            let mut problem = differences(&case.state, expected, &got);
            if *expected_pc != next_pc {
                let _ = writeln!(problem, "  next PC: expected {expected_pc:#x}, got {next_pc:#x}");
            }
            problem
        }
        (Expected::Done { .. }, Got::Other(got)) => format!("  expected completion, got {got:x?}\n"),
        (expected, got) => format!("  expected {expected:x?}, got {got:x?}\n"),
    };
    if problem.is_empty() {
        return Ok(());
    }
    let insn = decode(case.insn);
    Err(format!("{:#010x} {insn:?}\n{problem}  operands:{}", case.insn, operands(&case.state)))
}

/// Runs `count` cases that `make` produces (`None`: not to be tested) on both CPUs.
fn check(seed: u64, count: usize, mut make: impl FnMut(&mut Random) -> Option<Case>) {
    let factor = std::env::var("HVRUN_ORACLE_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    let mut random = Random(seed);
    let cases: Vec<Case> =
        std::iter::from_fn(|| Some(make(&mut random))).flatten().take(count * factor).collect();
    let expected = hvrun_oracle::run(&cases).unwrap();
    let mut ours = Ours::new();
    let mismatches: Vec<String> =
        cases.iter().zip(&expected).filter_map(|(case, e)| compare(&mut ours, case, e).err()).collect();
    let shown: Vec<_> = mismatches.iter().take(6).map(String::as_str).collect();
    assert!(mismatches.is_empty(), "{} of {} cases:\n{}", mismatches.len(), cases.len(), shown.join("\n"));
}

/// Registers and flags of random values, without memory.
fn state(random: &mut Random) -> State {
    State {
        x: std::array::from_fn(|_| random.value()),
        sp: random.value(),
        nzcv: (random.below(16) as u32) << 28,
        ..State::default()
    }
}

/// A word with the fixed bits `value` under `mask`, its registers often the same or 31, that decodes.
fn word(random: &mut Random, value: u32, mask: u32) -> (u32, Insn) {
    loop {
        let mut word = random.next() as u32;
        for (to, from) in [(0, 5), (0, 16), (5, 16)] {
            if random.below(8) == 0 {
                word = word & !(31 << to) | (word >> from & 31) << to;
            }
        }
        for field in [0, 5, 16] {
            if random.below(10) == 0 {
                word |= 31 << field;
            }
        }
        word = word & !mask | value;
        if let Some(insn) = decode(word) {
            return (word, insn);
        }
    }
}

/// Checks a group of instructions that neither branch nor access memory.
fn check_group(value: u32, mask: u32) {
    check(u64::from(value), 1500, |random| {
        let (insn, _) = word(random, value, mask);
        Some(Case { insn, state: state(random) })
    });
}

#[test]
fn add_and_subtract_immediate_match_qemu() {
    check_group(0x1100_0000, 0x1f80_0000);
}

#[test]
fn logical_immediate_matches_qemu() {
    check_group(0x1200_0000, 0x1f80_0000);
}

#[test]
fn move_wide_matches_qemu() {
    check_group(0x1280_0000, 0x1f80_0000);
}

#[test]
fn pc_relative_addresses_match_qemu() {
    check_group(0x1000_0000, 0x1f00_0000);
}

#[test]
fn bitfield_moves_match_qemu() {
    check_group(0x1300_0000, 0x1f80_0000);
}

#[test]
fn extract_matches_qemu() {
    check_group(0x1380_0000, 0x1f80_0000);
}

#[test]
fn logical_register_matches_qemu() {
    check_group(0x0a00_0000, 0x1f00_0000);
}

#[test]
fn add_and_subtract_shifted_register_match_qemu() {
    check_group(0x0b00_0000, 0x1f20_0000);
}

#[test]
fn add_and_subtract_extended_register_match_qemu() {
    check_group(0x0b20_0000, 0x1fe0_0000);
}

#[test]
fn add_and_subtract_with_carry_match_qemu() {
    check_group(0x1a00_0000, 0x1fe0_fc00);
}

#[test]
fn conditional_compare_matches_qemu() {
    check_group(0x3a40_0000, 0x3fe0_0410);
}

#[test]
fn conditional_select_matches_qemu() {
    check_group(0x1a80_0000, 0x3fe0_0800);
}

#[test]
fn two_source_instructions_match_qemu() {
    check_group(0x1ac0_0000, 0x7fe0_c000);
}

#[test]
fn crc32_matches_qemu() {
    check_group(0x1ac0_4000, 0x7fe0_e000);
}

#[test]
fn one_source_instructions_match_qemu() {
    check_group(0x5ac0_0000, 0x7fff_e000);
}

#[test]
fn three_source_instructions_match_qemu() {
    check_group(0x1b00_0000, 0x7f00_0000);
}

#[test]
fn hints_match_qemu() {
    // WFE and WFI (CRm:op2 of 2 and 3) would wait.
    check(1, 200, |random| {
        let number = random.below(128) as u32;
        (number >> 1 != 1).then(|| Case { insn: 0xd503_201f | number << 5, state: state(random) })
    });
}

#[test]
fn barriers_match_qemu() {
    check(2, 200, |random| {
        let (insn, decoded) = word(random, 0xd503_301f, 0xffff_f01f);
        (decoded != Insn::Wfi).then(|| Case { insn, state: state(random) })
    });
}

#[test]
fn flag_and_fp_status_registers_match_qemu() {
    check(3, 1000, |random| {
        let register = [reg::NZCV, reg::FPCR, reg::FPSR][random.below(3) as usize];
        let mut state = state(random);
        // FZ16 is of FEAT_FP16, which only QEMU's CPU has; bits that no extension defines are not compared.
        let valid = match register {
            reg::NZCV => 0xf000_0000,
            reg::FPCR => 0x07c0_0000,
            _ => 0x0800_009f,
        };
        state.x.iter_mut().for_each(|x| *x &= valid);
        state.fpcr = random.next() as u32 & 0x07c0_0000;
        state.fpsr = random.next() as u32 & 0x0800_009f;
        let read = (random.below(2) as u32) << 21;
        Some(Case { insn: 0xd500_0000 | read | u32::from(register) << 5 | random.below(32) as u32, state })
    });
}

/// Checks a group of direct branches. One to itself never ends, and the oracle's program lies at low addresses.
fn check_branches(value: u32, mask: u32) {
    check(u64::from(value), 1500, |random| {
        let (insn, decoded) = word(random, value, mask);
        let (Insn::B { offset }
        | Insn::Bl { offset }
        | Insn::BCond { offset, .. }
        | Insn::Cbz { offset, .. }
        | Insn::Tbz { offset, .. }) = decoded
        else {
            return None;
        };
        (offset != 0).then(|| Case { insn, state: state(random) })
    });
}

#[test]
fn unconditional_branches_match_qemu() {
    check_branches(0x1400_0000, 0x7c00_0000);
}

#[test]
fn conditional_branches_match_qemu() {
    check_branches(0x5400_0000, 0xff00_0010);
}

#[test]
fn compare_and_branch_matches_qemu() {
    check_branches(0x3400_0000, 0x7e00_0000);
}

#[test]
fn test_and_branch_matches_qemu() {
    check_branches(0x3600_0000, 0x7e00_0000);
}

#[test]
fn register_branches_match_qemu() {
    check(4, 1500, |random| {
        let opc = random.below(3) as u32;
        let rn = random.below(31) as u32;
        let mut state = state(random);
        state.x[rn as usize] = 0x1000_0000 + 4 * random.below(0x0c00_0000);
        (state.x[rn as usize] != PC).then_some(Case { insn: 0xd61f_0000 | opc << 21 | rn << 5, state })
    });
}

/// Makes register `n` (31: SP) hold `value`.
fn set_base(state: &mut State, n: u8, value: u64) {
    if n == 31 {
        state.sp = value;
    } else {
        state.x[usize::from(n)] = value;
    }
}

fn get(state: &State, n: u8) -> u64 {
    if n == 31 { 0 } else { state.x[usize::from(n)] }
}

/// A random state with the buffer, whose every byte is random or an edge.
fn memory_state(random: &mut Random) -> State {
    let mut state = state(random);
    state.q = std::array::from_fn(|_| u128::from(random.next()) << 64 | u128::from(random.value()));
    state.mem = (0..BUFFER / 8).flat_map(|_| random.value().to_le_bytes()).collect();
    state
}

/// An address of the buffer with room for `bytes`, a multiple of `align`.
fn place(random: &mut Random, bytes: u64, align: u64) -> u64 {
    MEM_BASE + random.below((BUFFER - bytes) / align + 1) * align
}

fn bytes_of(op: MemOp) -> u64 {
    match op {
        MemOp::Store { size }
        | MemOp::Load { size }
        | MemOp::LoadSigned { size, .. }
        | MemOp::StoreSimd { size }
        | MemOp::LoadSimd { size } => 1 << size,
        MemOp::Prefetch => 8,
    }
}

fn is_simd(op: MemOp) -> bool {
    matches!(op, MemOp::StoreSimd { .. } | MemOp::LoadSimd { .. })
}

/// Points the address registers of a single-register access at the buffer. `None` for CONSTRAINED UNPREDICTABLE ones.
fn aim_single(random: &mut Random, op: MemOp, rt: u8, addr: Address) -> Option<State> {
    let mut state = memory_state(random);
    let target = place(random, bytes_of(op), 1);
    match addr {
        Address::Imm { rn, offset, mode } => {
            if mode != IndexMode::Offset && rn == rt && rn != 31 && !is_simd(op) {
                return None;
            }
            let offset = if mode == IndexMode::Post { 0 } else { offset };
            set_base(&mut state, rn, target.wrapping_sub(offset as u64));
        }
        Address::Reg { rn, rm, extend, shift } => {
            if rn == rm && rn != 31 {
                return None;
            }
            let raw = get(&state, rm);
            let index = match extend {
                Extend::Uxtw => u64::from(raw as u32),
                Extend::Sxtw => raw as i32 as u64,
                _ => raw,
            };
            set_base(&mut state, rn, target.wrapping_sub(index << shift));
        }
        // Inside the page of the instruction, which is all BRK else.
        Address::Literal { offset } if (-0x800..0x7f0).contains(&offset) => {}
        Address::Literal { .. } => return None,
    }
    Some(state)
}

fn check_single(value: u32, mask: u32) {
    check(u64::from(value), 2500, |random| {
        let (insn, decoded) = word(random, value, mask);
        let Insn::LoadStore { op, rt, addr, .. } = decoded else { return None };
        Some(Case { insn, state: aim_single(random, op, rt, addr)? })
    });
}

#[test]
fn loads_and_stores_with_unsigned_offset_match_qemu() {
    check_single(0x3900_0000, 0x3b00_0000);
}

#[test]
fn loads_and_stores_unscaled_indexed_and_unprivileged_match_qemu() {
    check_single(0x3800_0000, 0x3b20_0000);
}

#[test]
fn loads_and_stores_with_register_offset_match_qemu() {
    check_single(0x3820_0800, 0x3b20_0c00);
}

#[test]
fn literal_loads_match_qemu() {
    // The upper bits of the offset follow its sign, so that it stays inside the page.
    check(5, 2000, |random| {
        let sign = if random.below(2) == 0 { 0 } else { 0x00ff_c000 };
        let (insn, decoded) = word(random, 0x1800_0000 | sign, 0x3bff_c000);
        let Insn::LoadStore { op, rt, addr, .. } = decoded else { return None };
        Some(Case { insn, state: aim_single(random, op, rt, addr)? })
    });
}

#[test]
fn pairs_match_qemu() {
    check(6, 2500, |random| {
        let (insn, decoded) = word(random, 0x2800_0000, 0x3a00_0000);
        let Insn::LoadStorePair { load, simd, size, rt, rt2, rn, offset, mode, .. } = decoded else {
            return None;
        };
        let writes_back = mode != IndexMode::Offset && rn != 31 && !simd;
        if load && rt == rt2 || writes_back && (rn == rt || rn == rt2) {
            return None;
        }
        let mut state = memory_state(random);
        let offset = if mode == IndexMode::Post { 0 } else { offset };
        let target = place(random, 2 << size, 1);
        set_base(&mut state, rn, target.wrapping_sub(offset as u64));
        Some(Case { insn, state })
    });
}

#[test]
fn exclusives_acquire_and_release_match_qemu() {
    check(7, 2500, |random| {
        let (word, _) = word(random, 0x0800_0000, 0x3f00_0000);
        // Register fields that an instruction does not use are ones.
        let (insn, bytes) = match decode(word)? {
            Insn::LoadExclusive { size, .. } => (word | 0x001f_7c00, 1 << size),
            Insn::StoreExclusive { size, rs, rt, rn, .. } if rs != rt && (rs != rn || rn == 31) => {
                (word | 0x7c00, 1 << size)
            }
            Insn::LoadExclusivePair { size, rt, rt2, .. } if rt != rt2 => (word | 0x001f_0000, 2 << size),
            Insn::StoreExclusivePair { size, rs, rt, rt2, rn, .. }
                if rs != rt && rs != rt2 && (rs != rn || rn == 31) =>
            {
                (word, 2 << size)
            }
            Insn::LoadAcquire { size, .. } | Insn::StoreRelease { size, .. } => {
                (word | 0x001f_7c00, 1 << size)
            }
            _ => return None,
        };
        let mut state = memory_state(random);
        let target = place(random, bytes, bytes);
        set_base(&mut state, (insn >> 5 & 31) as u8, target);
        Some(Case { insn, state })
    });
}

#[test]
fn compare_and_swap_matches_qemu() {
    check(8, 2500, |random| {
        let (insn, decoded) = word(random, 0x0820_7c00, 0x3f20_7c00);
        let (size, rs, rn, pair) = match decoded {
            Insn::CompareSwap { size, rs, rn, .. } => (size, rs, rn, false),
            Insn::CompareSwapPair { size, rs, rn, .. } => (size, rs, rn, true),
            _ => return None,
        };
        let mut state = memory_state(random);
        let bytes = if pair { 2 << size } else { 1 << size };
        let target = place(random, bytes, bytes);
        // Half of the comparisons succeed: what is compared is what is there.
        if random.below(2) == 0 {
            let at = (target - MEM_BASE) as usize;
            for half in 0..if pair { 2 } else { 1 } {
                let start = at + (half << size);
                let mut value = random.next().to_le_bytes();
                value[..1 << size].copy_from_slice(&state.mem[start..start + (1 << size)]);
                if rs + (half as u8) < 31 {
                    state.x[usize::from(rs) + half] = u64::from_le_bytes(value);
                }
            }
        }
        set_base(&mut state, rn, target);
        Some(Case { insn, state })
    });
}

#[test]
fn atomic_memory_operations_match_qemu() {
    check(9, 2500, |random| {
        let (insn, decoded) = word(random, 0x3820_0000, 0x3f20_0c00);
        let Insn::Atomic { size, rn, .. } = decoded else { return None };
        let mut state = memory_state(random);
        set_base(&mut state, rn, place(random, 1 << size, 1 << size));
        Some(Case { insn, state })
    });
}

fn check_structures(value: u32, mask: u32) {
    check(u64::from(value), 2500, |random| {
        let (insn, decoded) = word(random, value, mask);
        let (Insn::SimdMulti { rn, .. } | Insn::SimdSingle { rn, .. } | Insn::SimdReplicate { rn, .. }) =
            decoded
        else {
            return None;
        };
        let mut state = memory_state(random);
        set_base(&mut state, rn, place(random, 64, 1));
        Some(Case { insn, state })
    });
}

#[test]
fn multiple_structure_accesses_match_qemu() {
    check_structures(0x0c00_0000, 0xbfa0_0000);
    check_structures(0x0c80_0000, 0xbfa0_0000);
}

#[test]
fn single_structure_accesses_match_qemu() {
    check_structures(0x0d00_0000, 0xbf80_0000);
    check_structures(0x0d80_0000, 0xbf80_0000);
}

#[test]
fn zeroing_a_block_matches_qemu() {
    check(10, 300, |random| {
        let rt = random.below(31) as u8;
        let mut state = memory_state(random);
        set_base(&mut state, rt, place(random, 1, 1));
        Some(Case { insn: 0xd50b_7420 | u32::from(rt), state })
    });
}
