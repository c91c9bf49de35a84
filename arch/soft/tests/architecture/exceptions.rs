//! Exceptions: entry, vectors, syndromes, interrupts and their masking, return, stack pointers and PSTATE fields. Aborts are
//! in `mmu_faults`.

use hvrun_soft::{Exit, Line};

use crate::common::{Bench, CODE, DATA, EL0T, EL1H, Outcome, Taken, VECTORS, desc, mrs, msr, reg, sctlr};
use crate::mmu::{LDR, VA};

/// PSTATE of EL1 with EL0's stack pointer, interrupts masked.
const EL1T: u64 = 0x3c4;
/// PSTATE of EL1 with its own stack pointer, nothing masked.
const EL1H_OPEN: u64 = 5;
const PAN: u64 = 1 << 22;
/// PSTATE.IL in SPSR.
const ILLEGAL: u64 = 1 << 20;
const NOP: u32 = 0xd503_201f;
const ERET: u32 = 0xd69f_03e0;
/// ldr x0, [sp]
const LDR_SP: u32 = 0xf940_03e0;
/// br x1
const BR: u32 = 0xd61f_0020;

/// ESR_EL1 of an exception of class `ec`.
fn esr(ec: u64, iss: u64) -> u64 {
    ec << 26 | 1 << 25 | iss
}

const UNDEFINED: u64 = 1 << 25;

/// What `word` does in the mode `pstate`, translation off: vector and syndrome, with ELR relative to the instruction.
fn exception(pstate: u64, word: u32) -> (u64, u64, u64) {
    let mut bench = Bench::new();
    bench.pstate = pstate;
    let pc = bench.load(&[word]);
    let Outcome::Taken(taken) = bench.run_at(pc) else { panic!("{word:#x} took no exception") };
    assert_eq!(taken.spsr, pstate);
    (taken.vector, taken.esr, taken.elr.wrapping_sub(pc))
}

#[test]
fn svc_returns_behind_itself_from_every_mode() {
    let found = [EL0T, EL1T, EL1H].map(|pstate| exception(pstate, 0xd400_00a1));
    assert_eq!(found, [0x400, 0, 0x200].map(|vector| (vector, esr(0x15, 5), 4)));
}

#[test]
fn brk_returns_to_itself_from_every_mode() {
    let found = [EL0T, EL1T, EL1H].map(|pstate| exception(pstate, 0xd420_00c0));
    assert_eq!(found, [0x400, 0, 0x200].map(|vector| (vector, esr(0x3c, 6), 0)));
}

#[test]
fn unallocated_words_and_hlt_are_undefined() {
    let found = [0, 0xffff_ffff, 0xd440_0020].map(|word| exception(EL1H, word));
    assert_eq!(found, [(0x200, UNDEFINED, 0); 3]);
}

#[test]
fn privileged_instructions_are_undefined_at_el0() {
    // hvc, smc, eret, msr spsel, msr pan, tlbi vmalle1, ic iallu, at s1e1r, dc isw, dc ivac
    let words = [
        0xd400_0022,
        0xd400_0023,
        ERET,
        0xd500_41bf,
        0xd500_419f,
        0xd508_871f,
        0xd508_751f,
        0xd508_7801,
        0xd508_7641,
        0xd508_7621,
    ];
    assert_eq!(words.map(|word| exception(EL0T, word)), [(0x400, UNDEFINED, 0); 10]);
}

#[test]
fn exception_entry_masks_everything_and_uses_the_stack_of_el1() {
    let mut bench = Bench::new();
    bench.pstate = 4;
    bench.taken(&[0xd400_00a1]);
    assert_eq!(bench.cpu.cpsr(), EL1H);
}

#[test]
fn exception_entry_saves_the_flags() {
    let mut bench = Bench::new();
    bench.pstate = EL0T | 0xa000_0000;
    assert_eq!(bench.taken(&[0xd400_00a1]).spsr, EL0T | 0xa000_0000);
}

#[test]
fn exception_entry_sets_pan_if_span_is_clear() {
    let mut bench = Bench::new();
    bench.sctlr(0, sctlr::SPAN);
    bench.pstate = EL0T;
    let taken = bench.taken(&[0xd400_00a1]);
    assert_eq!((taken.spsr, bench.cpu.cpsr()), (EL0T, EL1H | PAN));
}

#[test]
fn exception_entry_leaves_pan_alone_if_span_is_set() {
    let mut bench = Bench::new();
    bench.sctlr(sctlr::SPAN, 0);
    let found = [EL1H, EL1H | PAN].map(|pstate| {
        bench.pstate = pstate;
        (bench.taken(&[0xd400_00a1]).spsr, bench.cpu.cpsr())
    });
    assert_eq!(found, [(EL1H, EL1H), (EL1H | PAN, EL1H | PAN)]);
}

/// ERET with these registers; what happens at the target, which is a program's end that was executed before.
fn return_to(elr: u64, spsr: u64) -> (Outcome, u64) {
    let mut bench = Bench::new();
    bench.pstate = EL1H;
    let target = bench.load(&[]);
    assert_eq!(bench.run_at(target), Outcome::Done);
    bench.set(reg::ELR_EL1, if elr == 0 { target } else { elr });
    bench.set(reg::SPSR_EL1, spsr);
    (bench.run(&[ERET]), target)
}

#[test]
fn return_to_a_mode_that_does_not_exist_is_an_illegal_execution_state() {
    // EL0 with SP_EL1, M[1] set, EL2, EL3, AArch32 User and Supervisor.
    for mode in [1, 2, 7, 8, 9, 0xc, 0xd, 0x10, 0x13] {
        let (outcome, target) = return_to(0, 0x3c0 | mode);
        let expected = Taken { vector: 0x200, esr: esr(0x0e, 0), far: 0, elr: target, spsr: EL1H | ILLEGAL };
        assert_eq!(outcome, Outcome::Taken(expected), "mode {mode:#x}");
    }
}

#[test]
fn return_with_the_illegal_bit_set_is_an_illegal_execution_state() {
    let (outcome, target) = return_to(0, EL1H | ILLEGAL);
    let expected = Taken { vector: 0x200, esr: esr(0x0e, 0), far: 0, elr: target, spsr: EL1H | ILLEGAL };
    assert_eq!(outcome, Outcome::Taken(expected));
}

#[test]
fn illegal_return_restores_flags_and_masks_but_not_the_mode() {
    let (outcome, _) = return_to(0, 0x9000_0000 | 0x140 | 8);
    assert!(
        matches!(outcome, Outcome::Taken(t) if t.spsr == 0x9000_0000 | 0x140 | ILLEGAL | 5),
        "{outcome:x?}"
    );
}

#[test]
fn misaligned_return_address_faults_before_the_illegal_state() {
    let (outcome, _) = return_to(CODE + 2, EL1H | ILLEGAL);
    assert!(matches!(outcome, Outcome::Taken(t) if t.esr == esr(0x22, 0)), "{outcome:x?}");
}

#[test]
fn misaligned_branch_target_is_a_pc_alignment_fault_at_the_target() {
    let mut bench = Bench::new();
    for offset in [1, 2, 3] {
        bench.cpu.set_x(1, DATA + offset);
        let expected =
            Taken { vector: 0x200, esr: esr(0x22, 0), far: DATA + offset, elr: DATA + offset, spsr: EL1H };
        assert_eq!(bench.run(&[BR]), Outcome::Taken(expected));
    }
}

#[test]
fn misaligned_return_to_el0_is_a_pc_alignment_fault_of_el0() {
    let (outcome, _) = return_to(DATA + 2, EL0T);
    let expected = Taken { vector: 0x400, esr: esr(0x22, 0), far: DATA + 2, elr: DATA + 2, spsr: EL0T };
    assert_eq!(outcome, Outcome::Taken(expected));
}

#[test]
fn call_to_a_misaligned_address_links_first() {
    let mut bench = Bench::new();
    bench.cpu.set_x(1, DATA + 2);
    // blr x1
    let pc = bench.load(&[0xd63f_0020]);
    bench.run_at(pc);
    assert_eq!(bench.cpu.x(30), pc + 4);
}

#[test]
fn return_to_el0_runs_with_its_stack_and_flags() {
    let mut bench = Bench::new();
    bench.set(reg::SP_EL0, 0x1110);
    bench.set(reg::SP_EL1, 0x2220);
    // mov x3, sp; brk #6
    bench.memory.write_code(DATA, &[0x9100_03e3, 0xd420_00c0]);
    bench.set(reg::ELR_EL1, DATA);
    bench.set(reg::SPSR_EL1, 0x6000_0000);
    let taken = bench.taken(&[ERET]);
    assert_eq!((bench.cpu.x(3), taken.vector, taken.spsr, taken.elr), (0x1110, 0x400, 0x6000_0000, DATA + 4));
}

#[test]
fn return_to_el1t_uses_the_stack_of_el0() {
    let mut bench = Bench::new();
    bench.set(reg::SP_EL0, 0x1110);
    // mov x3, sp; mrs x4, spsel; mrs x5, currentel; brk #6
    bench.memory.write_code(DATA, &[0x9100_03e3, mrs(reg::SPSEL, 4), mrs(reg::CURRENTEL, 5), 0xd420_00c0]);
    bench.set(reg::ELR_EL1, DATA);
    bench.set(reg::SPSR_EL1, EL1T);
    let taken = bench.taken(&[ERET]);
    assert_eq!((bench.cpu.x(3), bench.cpu.x(4), bench.cpu.x(5), taken.vector), (0x1110, 0, 4, 0));
}

#[test]
fn stack_pointers_are_banked_by_spsel() {
    let mut bench = Bench::new();
    bench.cpu.set_x(2, 0x3330);
    bench.cpu.set_x(4, 0x4440);
    // mov sp, x2; msr spsel, #0; mov sp, x4; msr spsel, #1; mov x3, sp; mrs x5, sp_el0
    bench.done(&[0x9100_005f, 0xd500_40bf, 0x9100_009f, 0xd500_41bf, 0x9100_03e3, mrs(reg::SP_EL0, 5)]);
    assert_eq!((bench.cpu.x(3), bench.cpu.x(5)), (0x3330, 0x4440));
}

#[test]
fn sp_el0_is_undefined_while_it_is_in_use() {
    let found = [mrs(reg::SP_EL0, 2), msr(reg::SP_EL0, 2)].map(|word| exception(EL1T, word));
    assert_eq!(found, [(0, UNDEFINED, 0); 2]);
}

#[test]
fn pstate_immediates_and_registers_agree() {
    let mut bench = Bench::new();
    bench.pstate = EL1H_OPEN;
    // msr daifset, #5; mrs x2; msr daifset, #2; msr daifclr, #10; mrs x3; msr pan, #1; mrs x4; msr pan, #0; mrs x5
    bench.done(&[
        0xd503_45df,
        mrs(reg::DAIF, 2),
        0xd503_42df,
        0xd503_4aff,
        mrs(reg::DAIF, 3),
        0xd500_419f,
        mrs(reg::PAN, 4),
        0xd500_409f,
        mrs(reg::PAN, 5),
        0xd503_4fdf,
    ]);
    assert_eq!([2, 3, 4, 5].map(|n| bench.cpu.x(n)), [5 << 6, 5 << 6, PAN, 0]);
}

#[test]
fn daif_register_sets_all_masks() {
    let mut bench = Bench::new();
    bench.cpu.set_x(2, 0x280);
    bench.done(&[msr(reg::DAIF, 2), mrs(reg::DAIF, 3)]);
    assert_eq!(bench.cpu.x(3), 0x280);
}

/// A bench whose SP (of EL1) is not a multiple of 16, with the checks on.
fn misaligned_stack() -> Bench {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::EL0);
    bench.sctlr(sctlr::SA | sctlr::SA0, 0);
    bench.set(reg::SP_EL1, VA + 0x108);
    bench.set(reg::SP_EL0, VA + 0x104);
    bench
}

#[test]
fn every_access_through_a_misaligned_sp_faults() {
    // ldr x0, [sp]; ldr x0, [sp, #8]!; stp x0, x2, [sp, #-16]; ldxr x0, [sp]; ldadd x2, x0, [sp]; ld1 {v0.16b}, [sp];
    // ldr q0, [sp]; ldr x0, [sp], #8
    let words =
        [LDR_SP, 0xf840_8fe0, 0xa93f_0be0, 0xc85f_7fe0, 0xf822_03e0, 0x4c40_73e0, 0x3dc0_03e0, 0xf840_87e0];
    let found = words.map(|word| {
        let mut bench = misaligned_stack();
        let pc = bench.load(&[word]);
        let Outcome::Taken(taken) = bench.run_at(pc) else { panic!("{word:#x}") };
        (taken.esr, taken.elr == pc)
    });
    assert_eq!(found, [(esr(0x26, 0), true); 8]);
}

#[test]
fn misaligned_sp_faults_at_el0_by_its_own_control_bit() {
    let mut bench = misaligned_stack();
    bench.pstate = EL0T;
    let on = bench.taken(&[LDR_SP]).esr;
    bench.sctlr(0, sctlr::SA0);
    assert_eq!((on, bench.run(&[LDR_SP])), (esr(0x26, 0), Outcome::Done));
}

#[test]
fn misaligned_sp_is_allowed_without_the_check() {
    let mut bench = misaligned_stack();
    bench.sctlr(0, sctlr::SA);
    bench.done(&[LDR_SP]);
}

#[test]
fn misaligned_sp_without_an_access_is_no_fault() {
    // add sp, sp, #8; prfm [sp]; mov x3, sp
    misaligned_stack().done(&[0x9100_23ff, 0xf980_03e0, 0x9100_03e3]);
}

#[test]
fn sp_that_a_block_misaligns_faults_at_its_next_use() {
    // add sp, sp, #8; add sp, sp, x2; mov sp, x2; add sp, sp, w2, uxtw; ldr x0, [sp], #8
    let found = [0x9100_23ff, 0x8b22_63ff, 0x9100_005f, 0x8b22_43ff, 0xf840_87e0].map(|word| {
        let mut bench = misaligned_stack();
        bench.set(reg::SP_EL1, VA + 0x100);
        bench.cpu.set_x(2, 8);
        let pc = bench.load(&[LDR_SP, word, LDR_SP]);
        let Outcome::Taken(taken) = bench.run_at(pc) else { panic!("{word:#x}") };
        (taken.esr, taken.elr - pc)
    });
    assert_eq!(found, [(esr(0x26, 0), 8); 5]);
}

#[test]
fn sp_that_a_block_aligns_is_usable() {
    let mut bench = misaligned_stack();
    // add sp, sp, #8; ldr x0, [sp]; ldr x0, [sp, #16]!; str x0, [sp, #16]; sub sp, sp, #16; ldr x0, [sp]
    bench.done(&[0x9100_23ff, LDR_SP, 0xf841_0fe0, 0xf900_0be0, 0xd100_43ff, LDR_SP]);
}

#[test]
fn switching_stacks_in_a_block_checks_the_other_one() {
    let mut bench = misaligned_stack();
    bench.set(reg::SP_EL1, VA + 0x100);
    // ldr x0, [sp]; msr spsel, #0; ldr x0, [sp]
    let pc = bench.load(&[LDR_SP, 0xd500_40bf, LDR_SP]);
    let Outcome::Taken(taken) = bench.run_at(pc) else { panic!() };
    assert_eq!((taken.vector, taken.esr, taken.elr), (0, esr(0x26, 0), pc + 8));
}

/// Whether an FP instruction is trapped (EC 0x07) with this CPACR_EL1.FPEN.
fn fp_trapped(fpen: u64, pstate: u64, word: u32) -> bool {
    let mut bench = Bench::new();
    bench.set(reg::CPACR_EL1, fpen << 20);
    bench.pstate = pstate;
    bench.cpu.set_x(1, DATA);
    match bench.run(&[word]) {
        Outcome::Done => false,
        Outcome::Taken(taken) => {
            assert_eq!(taken.esr, esr(7, 1 << 24 | 0xe << 20));
            true
        }
        Outcome::Exit(exit) => panic!("{exit:x?}"),
    }
}

#[test]
fn fp_is_trapped_as_fpen_says() {
    // fmov d0, #1.0
    let found = [0, 1, 2, 3].map(|fpen| [EL1H, EL0T].map(|pstate| fp_trapped(fpen, pstate, 0x1e6e_1000)));
    assert_eq!(found, [[true, true], [false, true], [true, true], [false, false]]);
}

#[test]
fn every_kind_of_fp_instruction_is_trapped() {
    // ldr d0, [x1]; mrs x2, fpcr; msr fpsr, x2; st1 {v0.b}[0], [x1]; aese v0.16b, v1.16b; ldr q0, [sp]
    let words = [0xfd40_0020, 0xd53b_4402, 0xd51b_4422, 0x0d00_0020, 0x4e28_4820, 0x3dc0_03e0];
    assert_eq!(words.map(|word| fp_trapped(0, EL1H, word)), [true; 6]);
}

#[test]
fn unallocated_fp_word_is_undefined_though_fp_is_off() {
    let mut bench = Bench::new();
    bench.set(reg::CPACR_EL1, 0);
    // FADD with ftype 10, which does not exist.
    assert_eq!(bench.taken(&[0x1ea0_2800]).esr, UNDEFINED);
}

#[test]
fn trapped_fp_instruction_runs_once_fp_is_enabled() {
    let mut bench = Bench::new();
    bench.set(reg::CPACR_EL1, 0);
    let pc = bench.load(&[0x1e6e_1000]);
    let first = bench.run_at(pc);
    bench.cpu.set_x(2, 3 << 20);
    bench.done(&[msr(reg::CPACR_EL1, 2), 0xd503_3fdf]);
    let second = bench.run_at(pc);
    assert!(matches!(first, Outcome::Taken(taken) if taken.esr >> 26 == 7), "{first:x?}");
    assert_eq!((second, bench.cpu.q(0)), (Outcome::Done, u128::from(1f64.to_bits())));
}

/// What a program that may be interrupted does with these lines pending.
fn interrupted(pstate: u64, lines: &[Line]) -> Option<(u64, u64)> {
    let mut bench = Bench::new();
    bench.pstate = pstate;
    for &line in lines {
        bench.cpu.set_pending(line, true);
    }
    let pc = bench.load(&[NOP]);
    match bench.run_at(pc) {
        Outcome::Done => None,
        Outcome::Taken(taken) => {
            assert_eq!((taken.elr, taken.spsr), (pc, pstate));
            Some((taken.vector, bench.cpu.cpsr()))
        }
        Outcome::Exit(exit) => panic!("{exit:x?}"),
    }
}

#[test]
fn irq_is_taken_at_the_vector_of_its_mode() {
    let found = [0, 4, 5].map(|pstate| interrupted(pstate, &[Line::Irq]));
    assert_eq!(found, [0x480, 0x080, 0x280].map(|vector| Some((vector, EL1H))));
}

#[test]
fn fiq_is_taken_at_the_vector_of_its_mode() {
    let found = [0, 4, 5].map(|pstate| interrupted(pstate, &[Line::Fiq]));
    assert_eq!(found, [0x500, 0x100, 0x300].map(|vector| Some((vector, EL1H))));
}

#[test]
fn fiq_comes_before_irq() {
    assert_eq!(interrupted(5, &[Line::Irq, Line::Fiq]).map(|i| i.0), Some(0x300));
}

#[test]
fn interrupts_are_masked_each_by_its_own_bit() {
    let irq = [0x80 | 5, 0x40 | 5].map(|pstate| interrupted(pstate, &[Line::Irq]).map(|i| i.0));
    let fiq = [0x80 | 5, 0x40 | 5].map(|pstate| interrupted(pstate, &[Line::Fiq]).map(|i| i.0));
    assert_eq!((irq, fiq), ([None, Some(0x280)], [Some(0x300), None]));
}

#[test]
fn masked_fiq_does_not_hide_an_irq() {
    assert_eq!(interrupted(0x40 | 5, &[Line::Irq, Line::Fiq]).map(|i| i.0), Some(0x280));
}

#[test]
fn irq_leaves_the_syndrome_alone() {
    let mut bench = Bench::new();
    bench.set(reg::ESR_EL1, 0x1234);
    bench.pstate = EL1H_OPEN;
    bench.cpu.set_pending(Line::Irq, true);
    assert_eq!(bench.taken(&[NOP]).esr, 0x1234);
}

/// ELR of the IRQ that a program (IRQs masked at first) takes, relative to its start.
fn irq_after(words: &[u32]) -> u64 {
    let mut bench = Bench::new();
    bench.cpu.set_pending(Line::Irq, true);
    bench.cpu.set_x(2, 0x340);
    let pc = bench.load(words);
    match bench.run_at(pc) {
        Outcome::Taken(taken) if taken.vector == 0x280 => taken.elr - pc,
        other => panic!("{other:x?}"),
    }
}

#[test]
fn pending_irq_is_taken_right_behind_its_unmasking() {
    // msr daifclr, #2; msr daif, x2
    assert_eq!([irq_after(&[NOP, 0xd503_42ff, NOP]), irq_after(&[NOP, msr(reg::DAIF, 2), NOP])], [8, 8]);
}

#[test]
fn pending_irq_is_taken_at_the_target_of_the_return_that_unmasks_it() {
    let mut bench = Bench::new();
    bench.cpu.set_pending(Line::Irq, true);
    bench.set(reg::ELR_EL1, DATA);
    bench.set(reg::SPSR_EL1, 0);
    let taken = bench.taken(&[ERET]);
    assert_eq!((taken.vector, taken.elr), (0x480, DATA));
}

#[test]
fn pending_lines_show_in_isr_though_masked() {
    let mut bench = Bench::new();
    bench.cpu.set_pending(Line::Irq, true);
    bench.done(&[mrs(reg::ISR_EL1, 2)]);
    bench.cpu.set_pending(Line::Fiq, true);
    bench.done(&[mrs(reg::ISR_EL1, 3)]);
    assert_eq!((bench.cpu.x(2), bench.cpu.x(3)), (1 << 7, 1 << 6));
}

#[test]
fn pending_lines_are_clear_after_an_exit_of_any_kind() {
    let mut bench = Bench::new();
    bench.cpu.set_pending(Line::Irq, true);
    bench.cpu.set_x(1, 0x0900_0000);
    bench.exited(&[LDR]);
    assert!(!bench.cpu.is_pending(Line::Irq));
}

#[test]
fn exception_in_a_handler_without_a_vector_ends_in_an_exit() {
    let mut bench = Bench::new();
    bench.translate();
    // The vectors are not mapped: every fetch faults again, until somebody cancels.
    bench.set(reg::VBAR_EL1, VA);
    bench.cpu.canceller().cancel();
    let first = bench.run(&[0]);
    let canceller = bench.cpu.canceller();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        canceller.cancel();
    });
    let second = bench.run(&[0]);
    thread.join().unwrap();
    assert_eq!([first, second], [Outcome::Exit(Exit::Canceled); 2]);
}

#[test]
fn vector_base_is_aligned_to_2_kib() {
    let mut bench = Bench::new();
    bench.cpu.set_x(2, VECTORS + 0x7ff);
    bench.done(&[msr(reg::VBAR_EL1, 2)]);
    assert_eq!(bench.get(reg::VBAR_EL1), VECTORS);
}
