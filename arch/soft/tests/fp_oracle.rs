//! Floating-point instructions of the software CPU against `qemu-aarch64`, one group a test: random encodings on operands
//! chosen where floating point goes wrong. Named edge cases are tested beside the code.
//!
//! `HVRUN_ORACLE_FACTOR=50` multiplies the number of cases, for a longer search.

use std::fmt::Write;

use hvrun_oracle::{CORTEX_A72, Case, Outcome, PC, State, run_on};
use hvrun_soft::fpsimd::fp::{self, Fp, Shape, UnaryOp};
use hvrun_soft::regs::Regs;

/// Fixed bits of the encoding groups in which floating-point instructions lie: value and mask.
const SCALAR: &[(u32, u32)] = &[(0x1e20_0000, 0x7f20_0000)];
const SCALAR_FIXED_POINT: &[(u32, u32)] = &[(0x1e00_0000, 0x7f20_0000)];
const SCALAR_INTEGER: &[(u32, u32)] = &[(0x1e20_0000, 0x7f20_fc00)];
const SCALAR_ONE_SOURCE: &[(u32, u32)] = &[(0x1e20_4000, 0xff20_7c00)];
const SCALAR_COMPARE: &[(u32, u32)] = &[(0x1e20_2000, 0xff20_fc07)];
const SCALAR_COND_COMPARE: &[(u32, u32)] = &[(0x1e20_0400, 0xff20_0c00)];
const SCALAR_TWO_SOURCE: &[(u32, u32)] = &[(0x1e20_0800, 0xff20_0c00)];
const SCALAR_SELECT: &[(u32, u32)] = &[(0x1e20_0c00, 0xff20_0c00)];
const SCALAR_IMMEDIATE: &[(u32, u32)] = &[(0x1e20_1000, 0xff20_1fe0)];
const SCALAR_THREE_SOURCE: &[(u32, u32)] = &[(0x1f00_0000, 0xff00_0000)];
const THREE_SAME: &[(u32, u32)] = &[(0x0e20_c400, 0x9f20_c400), (0x5e20_c400, 0xdf20_c400)];
const TWO_MISC: &[(u32, u32)] = &[(0x0e20_0800, 0x9f3e_0c00), (0x5e20_0800, 0xdf3e_0c00)];
const REDUCE: &[(u32, u32)] = &[(0x2e30_0800, 0xbf3e_0c00), (0x7e30_0800, 0xff3e_0c00)];
const BY_ELEMENT: &[(u32, u32)] = &[(0x0f80_0000, 0x9f80_0400), (0x5f80_0000, 0xdf80_0400)];
const SHIFT_IMMEDIATE: &[(u32, u32)] = &[(0x0f00_e400, 0x9f80_e400), (0x5f00_e400, 0xdf80_e400)];
const MODIFIED_IMMEDIATE: &[(u32, u32)] = &[(0x0f00_f400, 0x9ff8_fc00)];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A word of one of the groups, whatever its free bits say.
    fn word(&mut self, groups: &[(u32, u32)]) -> u32 {
        let (value, mask) = self.pick(groups);
        self.next() as u32 & !mask | value
    }

    /// A number of the format with these field widths, most often at an edge. `near` is an exponent that operands share.
    fn float(&mut self, exp_bits: u32, frac_bits: u32, near: u64) -> u64 {
        let (exp_max, frac_max) = ((1 << exp_bits) - 1, (1u64 << frac_bits) - 1);
        let bias = exp_max / 2;
        let exp = match self.below(8) {
            0 => self.pick(&[0, 0, 1, 2, exp_max - 2, exp_max - 1, exp_max, exp_max]),
            1 => bias + self.below(5),
            2 => bias + self.pick(&[10, 23, 24, 30, 31, 32, 51, 52, 53, 62, 63, 64, 65]),
            3 => bias - 1 - self.below(bias.min(80)),
            4 => self.next(),
            _ => (near % exp_max).wrapping_add(self.below(9)).wrapping_sub(4),
        } & exp_max;
        let frac = match self.below(8) {
            0 => self.pick(&[
                0,
                1,
                2,
                frac_max,
                frac_max - 1,
                frac_max >> 1,
                (frac_max >> 1) + 1,
                1 << (frac_bits - 2),
            ]),
            1 => self.next() << self.below(u64::from(frac_bits)),
            2 => 1 << self.below(u64::from(frac_bits)),
            3 => (1 << self.below(u64::from(frac_bits))) | 1,
            4 => frac_max << self.below(u64::from(frac_bits)),
            5 => 0,
            _ => self.next(),
        } & frac_max;
        self.below(2) << (exp_bits + frac_bits) | exp << frac_bits | frac
    }

    /// An integer of any length, often beside a power of two or halfway between two floats.
    fn integer(&mut self) -> u64 {
        let length = self.below(65) as u32;
        let value = match self.below(4) {
            0 => 1u64.checked_shl(length).unwrap_or(0).wrapping_add(self.below(5)).wrapping_sub(2),
            1 => (self.next() | 1 << 63) >> (length & 63) & !0 << self.below(64),
            2 => 0x8000_0000_8000_0000,
            _ => self.next() >> (length & 63),
        };
        if self.below(2) == 0 { value } else { value.wrapping_neg() }
    }

    /// 64 bits of a vector register.
    fn operand(&mut self, near: u64) -> u64 {
        match self.below(12) {
            0 => self.integer(),
            1 => self.integer() << 32 | self.integer() & 0xffff_ffff,
            2 | 3 => (0..4).fold(0, |value, _| value << 16 | self.float(5, 10, near)),
            4..8 => self.float(8, 23, near) << 32 | self.float(8, 23, near),
            _ => self.float(11, 52, near),
        }
    }

    fn state(&mut self) -> State {
        let mut state = State::default();
        let near = self.next();
        for q in &mut state.q {
            *q = u128::from(self.operand(near)) << 64 | u128::from(self.operand(near));
        }
        for x in &mut state.x {
            *x = self.integer();
        }
        state.nzcv = (self.next() as u32) << 28;
        // RMode, FZ, DN, AHP; and by themselves often zero, where the common case takes a path of its own.
        state.fpcr = if self.below(3) == 0 { 0 } else { self.next() as u32 & 0x07c0_0000 };
        state.fpsr = match self.below(4) {
            0 => 0,
            1 => self.next() as u32 & 0x0800_009f,
            _ => 1 << 4,
        };
        state
    }
}

/// Makes the addend of a fused multiply-add nearly cancel the product.
fn cancel_product(random: &mut Random, insn: &Fp, state: &mut State) {
    let (double, d, n, m) = match *insn {
        Fp::MulAdd { double, rn, rm, ra, .. } => (double, ra, rn, rm),
        Fp::Accumulate { shape, rd, rn, rm, .. } => (matches!(shape, Shape::V2D), rd, rn, rm),
        _ => return,
    };
    let [n, m] = [n, m].map(|r| state.q[usize::from(r)]);
    let noise = random.below(5).wrapping_sub(2);
    let sign = random.below(2);
    let (bits, lanes) = if double { (64, 2) } else { (32, 4) };
    state.q[usize::from(d)] = (0..lanes).fold(0, |value, lane| {
        let (a, b) = ((n >> (lane * bits)) as u64, (m >> (lane * bits)) as u64);
        let product = if double {
            (f64::from_bits(a) * f64::from_bits(b)).to_bits().wrapping_add(noise) ^ sign << 63
        } else {
            let product = f32::from_bits(a as u32) * f32::from_bits(b as u32);
            u64::from(product.to_bits().wrapping_add(noise as u32) ^ (sign as u32) << 31)
        };
        value | u128::from(product) << (lane * bits)
    });
}

/// Executes on the software CPU.
fn execute(insn: &Fp, state: &State) -> State {
    let mut regs = Regs { q: state.q, fpcr: state.fpcr, fpsr: state.fpsr, ..Regs::default() };
    regs.x[..31].copy_from_slice(&state.x);
    regs.flags.set_nzcv(state.nzcv);
    fp::execute(insn, &mut regs);
    let mut after =
        State { q: regs.q, fpcr: regs.fpcr, fpsr: regs.fpsr, nzcv: regs.flags.nzcv(), ..state.clone() };
    after.x.copy_from_slice(&regs.x[..31]);
    after
}

/// What differs, and the operands it came from.
fn describe(insn: &Fp, case: &Case, expected: &State, got: &State) -> String {
    let mut text = format!(
        "{:#010x} {insn:?} with FPCR {:#010x} FPSR {:#x} NZCV {:#x}",
        case.insn, case.state.fpcr, case.state.fpsr, case.state.nzcv
    );
    for n in [0, 5, 10, 16].map(|low| (case.insn >> low & 31) as usize) {
        let _ = write!(text, "\n  operand V{n} = {:#034x}", case.state.q[n]);
        if n < 31 {
            let _ = write!(text, " X{n} = {:#018x}", case.state.x[n]);
        }
    }
    for n in (0..32).filter(|&n| expected.q[n] != got.q[n]) {
        let _ =
            write!(text, "\n  V{n}: expected {:#034x}\n  V{n}:      got {:#034x}", expected.q[n], got.q[n]);
    }
    for n in (0..31).filter(|&n| expected.x[n] != got.x[n]) {
        let _ = write!(text, "\n  X{n}: expected {:#018x} got {:#018x}", expected.x[n], got.x[n]);
    }
    let _ = write!(text, "\n  FPSR: expected {:#x} got {:#x}", expected.fpsr, got.fpsr);
    let _ = write!(text, "\n  NZCV: expected {:#x} got {:#x}", expected.nzcv, got.nzcv);
    text
}

/// Runs `count` random instructions of `groups` that decode to what `wanted` accepts, and compares everything.
fn check(seed: u64, count: usize, groups: &[(u32, u32)], wanted: impl Fn(&Fp) -> bool) {
    let factor = std::env::var("HVRUN_ORACLE_FACTOR").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    let mut random = Random(seed);
    let mut insns = Vec::new();
    let mut cases = Vec::new();
    while cases.len() < count * factor {
        let word = random.word(groups);
        let Some(insn) = fp::decode(word).filter(&wanted) else { continue };
        let mut state = random.state();
        if random.below(3) == 0 {
            cancel_product(&mut random, &insn, &mut state);
        }
        insns.push(insn);
        cases.push(Case { insn: word, state });
    }
    let outcomes = run_on(CORTEX_A72, &cases).expect("qemu-aarch64 runs the cases");

    let mut mismatches = Vec::new();
    for ((insn, case), outcome) in insns.iter().zip(&cases).zip(&outcomes) {
        match outcome {
            Outcome::Done { state, next_pc } if *next_pc == PC + 4 => {
                let got = execute(insn, &case.state);
                if got != **state {
                    mismatches.push(describe(insn, case, state, &got));
                }
            }
            other => {
                mismatches.push(format!("{:#010x} {insn:?}: expected {other:?}, got executed", case.insn))
            }
        }
    }
    let shown = mismatches.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(mismatches.is_empty(), "{} of {} cases differ:\n{shown}", mismatches.len(), cases.len());
}

#[test]
fn scalar_moves_and_sign_operations_agree() {
    let wanted = |insn: &Fp| {
        matches!(insn, Fp::Unary { op: UnaryOp::Mov | UnaryOp::Abs | UnaryOp::Neg | UnaryOp::Sqrt, .. })
    };
    check(1, 2000, SCALAR_ONE_SOURCE, wanted);
}

#[test]
fn scalar_rounding_to_integral_agrees() {
    check(2, 3000, SCALAR_ONE_SOURCE, |insn| matches!(insn, Fp::Unary { .. }));
}

#[test]
fn scalar_format_conversion_agrees() {
    check(3, 6000, SCALAR_ONE_SOURCE, |insn| matches!(insn, Fp::Convert { .. }));
}

#[test]
fn scalar_arithmetic_agrees() {
    check(4, 6000, SCALAR_TWO_SOURCE, |insn| matches!(insn, Fp::Binary { .. }));
}

#[test]
fn scalar_fused_multiply_add_agrees() {
    check(5, 5000, SCALAR_THREE_SOURCE, |insn| matches!(insn, Fp::MulAdd { .. }));
}

#[test]
fn scalar_comparison_agrees() {
    check(6, 2000, SCALAR_COMPARE, |insn| matches!(insn, Fp::Compare { .. } | Fp::CompareZero { .. }));
}

#[test]
fn scalar_conditional_comparison_agrees() {
    check(7, 2000, SCALAR_COND_COMPARE, |insn| matches!(insn, Fp::CondCompare { .. }));
}

#[test]
fn scalar_selection_agrees() {
    check(8, 1000, SCALAR_SELECT, |insn| matches!(insn, Fp::Select { .. }));
}

#[test]
fn immediate_moves_agree() {
    let groups = [SCALAR_IMMEDIATE, MODIFIED_IMMEDIATE].concat();
    check(9, 2000, &groups, |insn| matches!(insn, Fp::MovImm { .. }));
}

#[test]
fn conversion_to_general_register_agrees() {
    check(10, 5000, SCALAR_INTEGER, |insn| matches!(insn, Fp::ToGpr { .. }));
}

#[test]
fn conversion_from_general_register_agrees() {
    check(11, 3000, SCALAR_INTEGER, |insn| matches!(insn, Fp::FromGpr { .. }));
}

#[test]
fn moves_with_general_registers_agree() {
    let wanted = |insn: &Fp| matches!(insn, Fp::MovToGpr { .. } | Fp::MovFromGpr { .. });
    check(12, 1000, SCALAR_INTEGER, wanted);
}

#[test]
fn fixed_point_conversion_with_general_registers_agrees() {
    check(13, 4000, SCALAR_FIXED_POINT, |insn| matches!(insn, Fp::ToGpr { .. } | Fp::FromGpr { .. }));
}

#[test]
fn lane_arithmetic_agrees() {
    check(14, 10000, THREE_SAME, |insn| matches!(insn, Fp::Binary { .. }));
}

#[test]
fn lane_accumulation_agrees() {
    check(15, 4000, THREE_SAME, |insn| matches!(insn, Fp::Accumulate { .. }));
}

#[test]
fn pairwise_arithmetic_agrees() {
    check(16, 4000, THREE_SAME, |insn| matches!(insn, Fp::Pairwise { .. }));
}

#[test]
fn lane_unary_operations_agree() {
    check(17, 10000, TWO_MISC, |insn| matches!(insn, Fp::Unary { .. }));
}

#[test]
fn lane_integer_conversion_agrees() {
    check(18, 6000, TWO_MISC, |insn| matches!(insn, Fp::ToInt { .. } | Fp::FromInt { .. }));
}

#[test]
fn widening_and_narrowing_agree() {
    let wanted = |insn: &Fp| matches!(insn, Fp::Widen { .. } | Fp::Narrow { .. } | Fp::ConvertOdd { .. });
    check(19, 5000, TWO_MISC, wanted);
}

#[test]
fn reductions_agree() {
    check(20, 4000, REDUCE, |insn| matches!(insn, Fp::Reduce { .. }));
}

#[test]
fn operations_by_element_agree() {
    check(21, 5000, BY_ELEMENT, |insn| matches!(insn, Fp::Element { .. }));
}

#[test]
fn lane_fixed_point_conversion_agrees() {
    check(22, 5000, SHIFT_IMMEDIATE, |insn| matches!(insn, Fp::ToInt { .. } | Fp::FromInt { .. }));
}

/// Words of `groups` that decode to nothing here but execute under QEMU.
fn allocated_but_not_decoded(seed: u64, count: usize, groups: &[(u32, u32)]) -> Vec<String> {
    let mut random = Random(seed);
    let words: Vec<u32> = std::iter::repeat_with(|| random.word(groups))
        .filter(|&word| fp::decode(word).is_none())
        .take(count)
        .collect();
    let cases: Vec<Case> = words.iter().map(|&insn| Case { insn, state: State::default() }).collect();
    let outcomes = run_on(CORTEX_A72, &cases).expect("qemu-aarch64 runs the cases");
    let outcomes = words.iter().zip(&outcomes).filter(|(_, outcome)| **outcome != Outcome::Undefined);
    outcomes.map(|(word, _)| format!("{word:#010x}")).collect()
}

#[test]
fn scalar_encodings_that_decode_to_nothing_are_undefined() {
    let groups = [
        SCALAR,
        SCALAR_FIXED_POINT,
        SCALAR_INTEGER,
        SCALAR_ONE_SOURCE,
        SCALAR_TWO_SOURCE,
        SCALAR_COND_COMPARE,
        SCALAR_THREE_SOURCE,
    ]
    .concat();
    let wrong = allocated_but_not_decoded(23, 3000, &groups);
    assert!(wrong.is_empty(), "allocated, but not decoded: {wrong:?}");
}

#[test]
fn lane_encodings_that_decode_to_nothing_are_undefined() {
    // The opcodes that no integer instruction has: 11xxx and 1011x of the two-register group, x001 and 0101 by element, ...
    let two_misc = TWO_MISC.iter().map(|&(value, mask)| (value | 0x0001_8000, mask | 0x0001_8000));
    let narrow = TWO_MISC.iter().map(|&(value, mask)| (value | 0x0001_6000, mask | 0x0001_e000));
    let by_element = BY_ELEMENT.iter().map(|&(value, mask)| (value | 0x0000_1000, mask | 0x0000_7000));
    let fixed_point = SHIFT_IMMEDIATE.iter().map(|&(value, mask)| (value | 0x0010_0000, mask | 0x0010_0000));
    let groups: Vec<_> = two_misc.chain(narrow).chain(by_element).chain(fixed_point).collect();
    let groups = [&groups, THREE_SAME, MODIFIED_IMMEDIATE].concat();
    let wrong = allocated_but_not_decoded(24, 3000, &groups);
    assert!(wrong.is_empty(), "allocated, but not decoded: {wrong:?}");
}
