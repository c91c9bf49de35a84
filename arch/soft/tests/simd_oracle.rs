//! Every integer SIMD and cryptographic instruction against `qemu-aarch64`: random encodings on random operands. Floating point is
//! not here, nor is which encodings are allocated.

use hvrun_oracle::{Case, Outcome, PC, State, run};
use hvrun_soft::fpsimd::simd;
use hvrun_soft::regs::Regs;

/// FPSR.QC.
const QC: u32 = 1 << 27;

/// SplitMix64: the same cases on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A lane of `bits` bits: often one at which something overflows, often a shift count.
    fn lane(&mut self, bits: u32) -> u64 {
        let min = 1 << (bits - 1);
        let value = match self.below(12) {
            0 => 0,
            1 => u64::MAX,
            2 => min,
            3 => min - 1,
            4 => 1,
            5 => min + 1,
            6 | 7 => self.below(u64::from(2 * bits) + 4).wrapping_sub(u64::from(bits) + 2),
            _ => self.next(),
        };
        value & (u64::MAX >> (64 - bits))
    }

    /// A register whose lanes have one size, or any.
    fn register(&mut self) -> u128 {
        let bits = 8u32 << self.below(4);
        (0..128 / bits).fold(0, |q, i| q | u128::from(self.lane(bits)) << (i * bits))
    }

    fn state(&mut self) -> State {
        let mut state = State { nzcv: (self.below(16) as u32) << 28, ..State::default() };
        state.x.iter_mut().for_each(|x| *x = self.next());
        state.q.iter_mut().for_each(|q| *q = self.register());
        state.fpsr = if self.below(8) == 0 { QC } else { 0 };
        state
    }

    /// A word with the fixed bits of an encoding group that decodes, its registers often the same.
    fn word(&mut self, group: Group) -> u32 {
        loop {
            let mut word = group.value | self.next() as u32 & !group.mask;
            if self.below(4) == 0 {
                word = word & !31 | word >> 5 & 31;
            }
            if self.below(4) == 0 {
                word = word & !31 | word >> 16 & 31;
            }
            if word & group.mask == group.value && simd::decode(word).is_some() {
                return word;
            }
        }
    }
}

/// The fixed bits of an encoding group.
#[derive(Clone, Copy)]
struct Group {
    mask: u32,
    value: u32,
}

/// The state after our own execution.
fn execute(word: u32, before: &State) -> State {
    let mut regs = Regs { q: before.q, fpcr: before.fpcr, fpsr: before.fpsr, ..Regs::default() };
    regs.x[..31].copy_from_slice(&before.x);
    regs.flags.set_nzcv(before.nzcv);
    let insn = simd::decode(word).expect("only words that decode are tested");
    simd::execute(&insn, &mut regs);
    let mut after = before.clone();
    after.x.copy_from_slice(&regs.x[..31]);
    after.nzcv = regs.flags.nzcv();
    (after.q, after.fpcr, after.fpsr) = (regs.q, regs.fpcr, regs.fpsr);
    after
}

/// What differs between two states, for people.
fn differences(expected: &State, got: &State) -> String {
    let mut lines = Vec::new();
    for i in (0..32).filter(|&i| expected.q[i] != got.q[i]) {
        lines.push(format!("  V{i}: expected {:#034x}, got {:#034x}", expected.q[i], got.q[i]));
    }
    for i in (0..31).filter(|&i| expected.x[i] != got.x[i]) {
        lines.push(format!("  X{i}: expected {:#018x}, got {:#018x}", expected.x[i], got.x[i]));
    }
    for (name, expected, got) in [
        ("FPSR", expected.fpsr, got.fpsr),
        ("FPCR", expected.fpcr, got.fpcr),
        ("NZCV", expected.nzcv, got.nzcv),
    ] {
        if expected != got {
            lines.push(format!("  {name}: expected {expected:#010x}, got {got:#010x}"));
        }
    }
    lines.join("\n")
}

/// Compares one case; `Err` is the report.
fn compare(case: &Case, outcome: &Outcome) -> Result<(), String> {
    let word = case.insn;
    let insn = simd::decode(word);
    let got = execute(word, &case.state);
    let found = match outcome {
        Outcome::Done { state, next_pc } if *next_pc == PC + 4 => {
            if **state == got {
                return Ok(());
            }
            differences(state, &got)
        }
        other => format!("  expected {other:?}, got a result"),
    };
    let [d, n, m] = [word & 31, word >> 5 & 31, word >> 16 & 31]
        .map(|number| format!("V{number} {:#034x}", case.state.q[number as usize]));
    Err(format!(
        "{word:#010x} {insn:?}\n  operands: Rd {d}, Rn {n}, Rm {m}, FPSR {:#x}\n{found}",
        case.state.fpsr
    ))
}

/// Compares `count` random cases of each group.
fn check(seed: u64, count: usize, groups: &[Group]) {
    let mut random = Random(seed);
    let mut cases = Vec::new();
    for &group in groups {
        for _ in 0..count {
            cases.push(Case { insn: random.word(group), state: random.state() });
        }
    }
    let outcomes = run(&cases).expect("qemu-aarch64 runs the cases");
    let reports: Vec<String> =
        cases.iter().zip(&outcomes).filter_map(|(case, outcome)| compare(case, outcome).err()).collect();
    assert!(
        reports.is_empty(),
        "{} of {} cases differ, the first of them:\n{}",
        reports.len(),
        cases.len(),
        reports.iter().take(8).cloned().collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn three_same_agrees_with_qemu() {
    check(1, 4000, &[Group { mask: 0x9f20_0400, value: 0x0e20_0400 }]);
}

#[test]
fn three_same_scalar_agrees_with_qemu() {
    check(2, 2500, &[Group { mask: 0xdf20_0400, value: 0x5e20_0400 }]);
}

#[test]
fn three_different_agrees_with_qemu() {
    check(
        3,
        3000,
        &[Group { mask: 0x9f20_0c00, value: 0x0e20_0000 }, Group { mask: 0xdf20_0c00, value: 0x5e20_0000 }],
    );
}

#[test]
fn doubleword_polynomial_product_agrees_with_qemu() {
    check(4, 1000, &[Group { mask: 0xbfe0_fc00, value: 0x0ee0_e000 }]);
}

#[test]
fn two_register_agrees_with_qemu() {
    check(
        5,
        3000,
        &[Group { mask: 0x9f3e_0c00, value: 0x0e20_0800 }, Group { mask: 0xdf3e_0c00, value: 0x5e20_0800 }],
    );
}

#[test]
fn reductions_agree_with_qemu() {
    check(6, 1500, &[Group { mask: 0x9f3e_0c00, value: 0x0e30_0800 }]);
    check(7, 200, &[Group { mask: 0xdf3e_0c00, value: 0x5e30_0800 }]);
}

#[test]
fn copies_agree_with_qemu() {
    check(
        8,
        2000,
        &[Group { mask: 0x9fe0_8400, value: 0x0e00_0400 }, Group { mask: 0xdfe0_8400, value: 0x5e00_0400 }],
    );
}

#[test]
fn permutations_agree_with_qemu() {
    check(
        9,
        1500,
        &[Group { mask: 0xbf20_8c00, value: 0x0e00_0800 }, Group { mask: 0xbf20_8400, value: 0x2e00_0000 }],
    );
}

#[test]
fn table_lookups_agree_with_qemu() {
    check(10, 2000, &[Group { mask: 0xbfe0_8c00, value: 0x0e00_0000 }]);
}

#[test]
fn modified_immediates_agree_with_qemu() {
    check(11, 2000, &[Group { mask: 0x9ff8_0c00, value: 0x0f00_0400 }]);
}

#[test]
fn shifts_by_immediate_agree_with_qemu() {
    check(12, 5000, &[Group { mask: 0x9f80_0400, value: 0x0f00_0400 }]);
}

#[test]
fn scalar_shifts_by_immediate_agree_with_qemu() {
    check(13, 3000, &[Group { mask: 0xdf80_0400, value: 0x5f00_0400 }]);
}

#[test]
fn multiplications_by_element_agree_with_qemu() {
    check(
        14,
        3000,
        &[Group { mask: 0x9f00_0400, value: 0x0f00_0000 }, Group { mask: 0xdf00_0400, value: 0x5f00_0000 }],
    );
}

#[test]
fn aes_agrees_with_qemu() {
    check(15, 1000, &[Group { mask: 0xfffe_0c00, value: 0x4e28_0800 }]);
}

#[test]
fn sha_agrees_with_qemu() {
    check(
        16,
        1500,
        &[Group { mask: 0xffe0_8c00, value: 0x5e00_0000 }, Group { mask: 0xfffe_0c00, value: 0x5e28_0800 }],
    );
}
