//! System registers and instructions: what EL0 may use, what is promised, what exits, the timer, waiting, and caches.

use std::time::Duration;

use hvrun_soft::{Cpu, Exit, Line};

use crate::common::{Bench, CODE, DATA, EL0T, EL1H, Outcome, desc, mrs, msr, outcome, reg, sctlr};
use crate::mmu::{DSB, ISB, VA, sys};

const UNDEFINED: u64 = 1 << 25;
const WFI: u32 = 0xd503_207f;
const WFE: u32 = 0xd503_205f;
const SEV: u32 = 0xd503_209f;
const SEVL: u32 = 0xd503_20bf;
const ERET: u32 = 0xd69f_03e0;
/// movz x0, #1; movz x0, #2
const MOVZ: [u32; 2] = [0xd280_0020, 0xd280_0040];
/// ret
const RET: u32 = 0xd65f_03c0;

/// What SCTLR_EL1 lets EL0 do.
const EL0_MAY: u64 = sctlr::UCT | sctlr::UCI | sctlr::DZE | sctlr::UMA | sctlr::NTWI | sctlr::NTWE;

/// ISS of a trapped MSR, MRS or SYS, from the instruction itself.
fn trap_iss(word: u32) -> u64 {
    let word = u64::from(word);
    let (op0, op1, crn, crm, op2) =
        (word >> 19 & 3, word >> 16 & 7, word >> 12 & 15, word >> 8 & 15, word >> 5 & 7);
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | (word & 31) << 5 | crm << 1 | word >> 21 & 1
}

/// ESR of a trapped MSR, MRS or SYS.
fn trap(word: u32) -> u64 {
    0x18 << 26 | 1 << 25 | trap_iss(word)
}

/// The syndrome of the exception that `word` takes at EL0, if it takes one; X1 is an address of memory.
fn at_el0(set: u64, kctl: u64, word: u32) -> Option<u64> {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::EL0);
    bench.sctlr(set, EL0_MAY & !set);
    bench.set(reg::CNTKCTL_EL1, kctl);
    bench.cpu.set_x(1, VA);
    bench.pstate = EL0T;
    match bench.run(&[word]) {
        Outcome::Done => None,
        Outcome::Taken(taken) => {
            assert_eq!(taken.vector, 0x400);
            Some(taken.esr)
        }
        Outcome::Exit(exit) => panic!("{exit:x?}"),
    }
}

/// Checks that each word is allowed at EL0 by `bit` of SCTLR_EL1, and else trapped.
fn check_el0_control(bit: u64, words: &[u32]) {
    for &word in words {
        assert_eq!((at_el0(bit, 0, word), at_el0(0, 0, word)), (None, Some(trap(word))), "{word:#x}");
    }
}

#[test]
fn el0_reads_ctr_if_uct_allows_it() {
    check_el0_control(sctlr::UCT, &[mrs(reg::CTR_EL0, 2)]);
}

#[test]
fn el0_maintains_caches_if_uci_allows_it() {
    check_el0_control(sctlr::UCI, &[sys(3, 7, 5, 1), sys(3, 7, 10, 1), sys(3, 7, 11, 1), sys(3, 7, 14, 1)]);
}

#[test]
fn el0_zeroes_blocks_if_dze_allows_it() {
    check_el0_control(sctlr::DZE, &[sys(3, 7, 4, 1)]);
}

#[test]
fn el0_uses_daif_if_uma_allows_it() {
    // msr daifset, #15
    check_el0_control(sctlr::UMA, &[mrs(reg::DAIF, 2), 0xd503_4fdf]);
}

#[test]
fn el0_writes_daif_if_uma_allows_it() {
    let mut bench = Bench::new();
    bench.sctlr(sctlr::UMA, 0);
    bench.pstate = EL0T;
    bench.cpu.set_x(2, 0x100);
    bench.done(&[msr(reg::DAIF, 2), mrs(reg::DAIF, 3)]);
    assert_eq!(bench.cpu.x(3), 0x100);
}

#[test]
fn el0_wfi_is_trapped_unless_ntwi_is_set() {
    let iss = 1 << 24 | 0xe << 20;
    assert_eq!(at_el0(0, 0, WFI), Some(1 << 26 | 1 << 25 | iss));
}

#[test]
fn el0_wfe_is_trapped_unless_ntwe_is_set() {
    let iss = 1 << 24 | 0xe << 20 | 1;
    let mut bench = Bench::new();
    bench.sctlr(0, sctlr::NTWE);
    bench.pstate = EL0T;
    assert_eq!(bench.taken(&[WFE]).esr, 1 << 26 | 1 << 25 | iss);
}

#[test]
fn el0_reads_counters_if_cntkctl_allows_it() {
    let cases = [(1 << 1, reg::CNTVCT_EL0), (1 << 1, reg::CNTFRQ_EL0), (1 << 0, reg::CNTFRQ_EL0)];
    for (bit, register) in cases {
        let word = mrs(register, 2);
        assert_eq!((at_el0(0, bit, word), at_el0(0, 0x3ff & !3, word)), (None, Some(trap(word))));
    }
}

#[test]
fn el0_physical_counter_is_trapped_without_its_bit() {
    let word = mrs(reg::CNTPCT_EL0, 2);
    assert_eq!(at_el0(0, 0x3ff & !1, word), Some(trap(word)));
}

#[test]
fn el0_uses_the_virtual_timer_if_cntkctl_allows_it() {
    for register in [reg::CNTV_CTL_EL0, reg::CNTV_CVAL_EL0, reg::CNTV_TVAL_EL0] {
        for word in [mrs(register, 2), msr(register, 31)] {
            assert_eq!(
                (at_el0(0, 1 << 8, word), at_el0(0, 0x2ff, word)),
                (None, Some(trap(word))),
                "{word:#x}"
            );
        }
    }
}

#[test]
fn el0_uses_its_own_registers_freely() {
    let words = [
        mrs(reg::NZCV, 2),
        msr(reg::NZCV, 2),
        mrs(reg::FPCR, 2),
        msr(reg::FPSR, 2),
        mrs(reg::TPIDR_EL0, 2),
        msr(reg::TPIDR_EL0, 2),
        mrs(reg::TPIDRRO_EL0, 2),
        mrs(reg::DCZID_EL0, 2),
    ];
    assert_eq!(words.map(|word| at_el0(0, 0, word)), [None; 8]);
}

#[test]
fn el0_has_no_access_to_registers_of_el1() {
    let words = [
        mrs(reg::SCTLR_EL1, 2),
        msr(reg::TTBR0_EL1, 2),
        mrs(reg::MIDR_EL1, 2),
        mrs(reg::ID_AA64PFR0_EL1, 2),
        mrs(reg::CURRENTEL, 2),
        msr(reg::SPSEL, 2),
        mrs(reg::TPIDR_EL1, 2),
        msr(reg::TPIDRRO_EL0, 2),
        mrs(reg::ELR_EL1, 2),
        mrs(reg::ICC_IAR1_EL1, 2),
    ];
    assert_eq!(words.map(|word| at_el0(EL0_MAY, 0x3ff, word)), [Some(UNDEFINED); 10]);
}

#[test]
fn dczid_prohibits_zeroing_where_it_is_trapped() {
    let mut bench = Bench::new();
    bench.sctlr(0, sctlr::DZE);
    bench.done(&[mrs(reg::DCZID_EL0, 2)]);
    bench.pstate = EL0T;
    bench.done(&[mrs(reg::DCZID_EL0, 3)]);
    bench.sctlr(sctlr::DZE, 0);
    bench.done(&[mrs(reg::DCZID_EL0, 4)]);
    assert_eq!([2, 3, 4].map(|n| bench.cpu.x(n)), [4, 4 | 1 << 4, 4]);
}

/// What the guest reads from `register`.
fn read(register: u16) -> u64 {
    let mut bench = Bench::new();
    bench.done(&[mrs(register, 2)]);
    bench.cpu.x(2)
}

#[test]
fn identification_promises_what_is_implemented() {
    let found = [
        reg::ID_AA64PFR0_EL1,
        reg::ID_AA64PFR1_EL1,
        reg::ID_AA64DFR0_EL1,
        reg::ID_AA64ISAR0_EL1,
        reg::ID_AA64ISAR1_EL1,
        reg::ID_AA64MMFR0_EL1,
        reg::ID_AA64MMFR1_EL1,
        reg::ID_AA64MMFR2_EL1,
    ]
    .map(read);
    let expected = [
        // CSV3, CSV2, GICv3, FP and AdvSIMD without FP16, EL1 and EL0 AArch64 only.
        0x1100_0000_0100_0011,
        0,
        // Two breakpoints and watchpoints, Debug v8.0, no PMU.
        0x0010_1006,
        // LSE, CRC32, SHA-256, SHA-1, AES and PMULL.
        0x0021_1120,
        0,
        // All granules, 16-bit ASIDs, 40 bits of address.
        0x0010_0022,
        // PAN.
        0x0010_0000,
        // E0PD.
        1 << 60,
    ];
    assert_eq!(found, expected);
}

#[test]
fn unallocated_identification_registers_read_as_zero() {
    let all = (1..8).flat_map(|crm| (0..8).map(move |op2| 0xc000 | crm << 3 | op2));
    let known = [0xc020, 0xc028, 0xc030, 0xc038, 0xc039, 0xc03a];
    assert_eq!(all.filter(|id| !known.contains(id)).map(read).find(|&value| value != 0), None);
}

#[test]
fn mpidr_is_what_the_caller_set() {
    let mut bench = Bench::new();
    bench.set(reg::MPIDR_EL1, 0x8000_0103);
    bench.done(&[mrs(reg::MPIDR_EL1, 2)]);
    assert_eq!(bench.cpu.x(2), 0x8000_0103);
}

#[test]
fn cache_geometry_fits_its_parts() {
    // DminLine and IminLine of 64 bytes, RES1; a data and instruction cache, then a unified one.
    assert_eq!((read(reg::CTR_EL0) & 0x800f_000f, read(reg::CLIDR_EL1) & 0x1ff), (0x8004_0004, 4 << 3 | 3));
}

#[test]
fn registers_kept_elsewhere_exit_with_their_access() {
    let words = [
        mrs(reg::ICC_IAR1_EL1, 3),
        msr(reg::ICC_EOIR1_EL1, 4),
        mrs(reg::PMCR_EL0, 5),
        msr(reg::PMCR_EL0, 31),
        mrs(reg::MDSCR_EL1, 6),
        msr(reg::MDSCR_EL1, 6),
        msr(reg::OSLAR_EL1, 31),
        mrs(reg::LORC_EL1, 7),
        mrs(reg::ACTLR_EL1, 8),
        mrs(reg::CNTPCT_EL0, 9),
    ];
    for word in words {
        let mut bench = Bench::new();
        let pc = bench.load(&[word]);
        let exit = bench.run_at(pc);
        assert_eq!(
            exit,
            Outcome::Exit(Exit::Exception { syndrome: trap(word), far: 0, ipa: 0 }),
            "{word:#x}"
        );
        assert_eq!((bench.cpu.pc(), bench.cpu.cpsr()), (pc, EL1H));
    }
}

#[test]
fn registers_of_higher_levels_are_undefined() {
    let words = [
        mrs(reg::HCR_EL2, 2),
        msr(reg::HCR_EL2, 2),
        mrs(reg::SCTLR_EL12, 2),
        mrs(reg::SP_EL1, 2),
        msr(reg::SP_EL1, 2),
    ];
    assert_eq!(words.map(|word| Bench::new().taken(&[word]).esr), [UNDEFINED; 5]);
}

#[test]
fn writes_of_read_only_registers_are_undefined() {
    let registers = [
        reg::MIDR_EL1,
        reg::MPIDR_EL1,
        reg::ID_AA64PFR0_EL1,
        reg::ID_AA64MMFR2_EL1,
        reg::CURRENTEL,
        reg::ISR_EL1,
        reg::CTR_EL0,
        reg::DCZID_EL0,
        reg::CNTVCT_EL0,
        reg::CLIDR_EL1,
    ];
    assert_eq!(registers.map(|register| Bench::new().taken(&[msr(register, 2)]).esr), [UNDEFINED; 10]);
}

#[test]
fn unknown_maintenance_operations_are_undefined() {
    // tlbi vmalle1os, tlbi alle2, dc cvap, sys #0 c7 c9, sysl
    let words = [0xd508_811f, 0xd50c_871f, 0xd50b_7c21, 0xd508_791f, 0xd528_7102];
    assert_eq!(words.map(|word| Bench::new().taken(&[word]).esr), [UNDEFINED; 5]);
}

#[test]
fn plain_registers_hold_what_is_written() {
    let registers = [
        reg::TPIDR_EL0,
        reg::TPIDRRO_EL0,
        reg::TPIDR_EL1,
        reg::ELR_EL1,
        reg::FAR_EL1,
        reg::CNTV_CVAL_EL0,
        reg::SP_EL0,
    ];
    let value = 0x0123_4567_89ab_cdef;
    let found = registers.map(|register| {
        let mut bench = Bench::new();
        bench.cpu.set_x(2, value);
        bench.done(&[msr(register, 2), mrs(register, 3)]);
        bench.cpu.x(3)
    });
    assert_eq!(found, [value; 7]);
}

#[test]
fn control_register_keeps_its_reserved_bits() {
    let mut bench = Bench::new();
    bench.cpu.set_x(2, 0);
    bench.done(&[msr(reg::SCTLR_EL1, 2), mrs(reg::SCTLR_EL1, 3)]);
    // RES1: EOS, TSCXT, EIS, and the bits of AArch32 and LSMAOE.
    assert_eq!(bench.cpu.x(3), 0x3050_0800);
}

#[test]
fn timer_value_is_the_distance_to_the_comparator() {
    let mut bench = Bench::new();
    bench.cpu.set_x(2, 0x7000_0000);
    bench.done(&[
        msr(reg::CNTV_TVAL_EL0, 2),
        mrs(reg::CNTV_TVAL_EL0, 3),
        mrs(reg::CNTVCT_EL0, 4),
        mrs(reg::CNTV_CVAL_EL0, 5),
    ]);
    let (left, now, compare) = (bench.cpu.x(3), bench.cpu.x(4), bench.cpu.x(5));
    assert!(left <= 0x7000_0000 && compare > now && compare - now <= left, "{left:#x} {now:#x} {compare:#x}");
}

#[test]
fn negative_timer_value_is_in_the_past() {
    let mut bench = Bench::new();
    bench.cpu.set_vtimer_offset(0u64.wrapping_sub(1 << 40));
    bench.cpu.set_x(2, 0xffff_f000);
    bench.cpu.set_x(4, 3);
    bench.done(&[msr(reg::CNTV_TVAL_EL0, 2), msr(reg::CNTV_CTL_EL0, 4), mrs(reg::CNTV_CTL_EL0, 3)]);
    // ENABLE, IMASK, ISTATUS.
    assert_eq!(bench.cpu.x(3), 7);
}

#[test]
fn timer_status_shows_only_once_the_time_is_reached() {
    let mut bench = Bench::new();
    bench.cpu.set_x(2, u64::MAX);
    bench.cpu.set_x(4, 3);
    bench.done(&[msr(reg::CNTV_CVAL_EL0, 2), msr(reg::CNTV_CTL_EL0, 4), mrs(reg::CNTV_CTL_EL0, 3)]);
    assert_eq!(bench.cpu.x(3), 3);
}

#[test]
fn offset_is_subtracted_from_the_counter() {
    let mut bench = Bench::new();
    let offset = 1 << 50;
    bench.cpu.set_vtimer_offset(0u64.wrapping_sub(offset));
    let before = bench.machine.counter();
    bench.done(&[mrs(reg::CNTVCT_EL0, 2)]);
    assert!((before..=bench.machine.counter()).contains(&(bench.cpu.x(2) - offset)));
}

/// Makes the virtual timer due in `ticks` and lets the guest loop; a cancel after a second ends it.
fn run_to_timer(bench: &mut Bench, ticks: u64, control: u64) -> Outcome {
    let now = bench.machine.counter().wrapping_sub(bench.cpu.vtimer_offset());
    bench.set(reg::CNTV_CVAL_EL0, now.wrapping_add(ticks));
    bench.set(reg::CNTV_CTL_EL0, control);
    let canceller = bench.cpu.canceller();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let _ = wait.recv_timeout(Duration::from_millis(300));
        canceller.cancel();
    });
    // b .
    let outcome = bench.run(&[0x1400_0000]);
    drop(done);
    watchdog.join().unwrap();
    outcome
}

#[test]
fn timer_fires_when_its_time_comes() {
    let mut bench = Bench::new();
    assert_eq!(run_to_timer(&mut bench, 2_000_000, 1), Outcome::Exit(Exit::VtimerActivated));
}

#[test]
fn timer_fires_with_an_offset_into_the_future() {
    // As after a restored snapshot: the guest's counter is ahead of the machine's.
    let mut bench = Bench::new();
    bench.cpu.set_vtimer_offset(0u64.wrapping_sub(3_600_000_000_000));
    assert_eq!(run_to_timer(&mut bench, 2_000_000, 1), Outcome::Exit(Exit::VtimerActivated));
}

#[test]
fn timer_fires_with_an_offset_into_the_past() {
    let mut bench = Bench::new();
    bench.cpu.set_vtimer_offset(bench.machine.counter());
    assert_eq!(run_to_timer(&mut bench, 2_000_000, 1), Outcome::Exit(Exit::VtimerActivated));
}

#[test]
fn masked_and_disabled_timers_do_not_fire() {
    let found = [0, 2, 3].map(|control| run_to_timer(&mut Bench::new(), 1000, control));
    assert_eq!(found, [Outcome::Exit(Exit::Canceled); 3]);
}

#[test]
fn timer_that_the_caller_masks_does_not_fire() {
    let mut bench = Bench::new();
    bench.cpu.set_vtimer_mask(true);
    assert_eq!(run_to_timer(&mut bench, 1000, 1), Outcome::Exit(Exit::Canceled));
}

#[test]
fn timer_fires_again_when_it_is_unmasked_while_due() {
    let mut bench = Bench::new();
    run_to_timer(&mut bench, 1000, 1);
    bench.cpu.set_vtimer_mask(false);
    assert_eq!(bench.run(&[0x1400_0000]), Outcome::Exit(Exit::VtimerActivated));
}

#[test]
fn timer_that_is_pushed_back_fires_at_the_new_time() {
    let mut bench = Bench::new();
    let now = bench.machine.counter();
    bench.set(reg::CNTV_CVAL_EL0, now + 1_000_000);
    bench.set(reg::CNTV_CTL_EL0, 1);
    let outcome = run_to_timer(&mut bench, 20_000_000, 1);
    assert_eq!(outcome, Outcome::Exit(Exit::VtimerActivated));
    assert!(bench.machine.counter() >= now + 20_000_000);
}

#[test]
fn timer_that_is_brought_forward_fires_at_the_new_time() {
    let mut bench = Bench::new();
    bench.set(reg::CNTV_CVAL_EL0, bench.machine.counter() + 3_600_000_000_000);
    bench.set(reg::CNTV_CTL_EL0, 1);
    assert_eq!(run_to_timer(&mut bench, 2_000_000, 1), Outcome::Exit(Exit::VtimerActivated));
}

#[test]
fn timer_at_the_end_of_time_neither_fires_nor_keeps_the_cpu_busy() {
    let mut bench = Bench::new();
    bench.cpu.set_vtimer_offset(bench.machine.counter());
    bench.set(reg::CNTV_CVAL_EL0, u64::MAX);
    bench.set(reg::CNTV_CTL_EL0, 1);
    // wfi: a request left behind would end the run otherwise.
    assert_eq!(bench.exited(&[WFI]).0 >> 26, 1);
}

/// The syndrome that a program exits with, if it does.
fn waits(bench: &mut Bench, words: &[u32]) -> Option<u64> {
    match bench.run(words) {
        Outcome::Done => None,
        Outcome::Exit(Exit::Exception { syndrome, .. }) => Some(syndrome),
        other => panic!("{other:x?}"),
    }
}

#[test]
fn wfi_and_wfe_exit_at_themselves() {
    let mut bench = Bench::new();
    let found = [WFI, WFE].map(|word| {
        let pc = bench.load(&[word]);
        let Outcome::Exit(Exit::Exception { syndrome, .. }) = bench.run_at(pc) else { panic!() };
        (syndrome, bench.cpu.pc() == pc)
    });
    let wfx = 1 << 26 | 1 << 25 | 1 << 24 | 0xe << 20;
    assert_eq!(found, [(wfx, true), (wfx | 1, true)]);
}

#[test]
fn wfi_goes_on_if_an_interrupt_is_pending_though_masked() {
    let mut bench = Bench::new();
    bench.cpu.set_pending(Line::Irq, true);
    assert_eq!(waits(&mut bench, &[WFI]), None);
}

#[test]
fn event_ends_one_wfe() {
    let mut bench = Bench::new();
    let found = [
        waits(&mut bench, &[SEVL, WFE]),
        waits(&mut bench, &[SEV, WFE]),
        waits(&mut bench, &[SEVL, WFE, WFE]),
    ];
    assert_eq!(found.map(|syndrome| syndrome.is_some()), [false, false, true]);
}

#[test]
fn event_does_not_end_wfi() {
    assert!(waits(&mut Bench::new(), &[SEVL, WFI]).is_some());
}

#[test]
fn exception_return_is_an_event() {
    let mut bench = Bench::new();
    let target = bench.load(&[WFE]);
    bench.set(reg::ELR_EL1, target);
    bench.set(reg::SPSR_EL1, EL1H);
    assert_eq!(waits(&mut bench, &[ERET]), None);
}

#[test]
fn sev_reaches_the_other_cpus() {
    let mut bench = Bench::new();
    let mut other = Cpu::new(bench.machine.clone());
    bench.done(&[SEV]);
    let pc = bench.load(&[WFE]);
    other.set_pc(pc);
    let exit = other.run();
    assert_eq!(outcome(&other, exit), Outcome::Done);
}

/// A bench with a function at `DATA` that returns 1 in X0 and has been called; the call's program.
fn called() -> (Bench, u64) {
    let mut bench = Bench::new();
    bench.memory.write_code(DATA, &[MOVZ[0], RET]);
    bench.cpu.set_x(1, DATA);
    // blr x1
    let pc = bench.load(&[0xd63f_0020]);
    assert_eq!((bench.run_at(pc), bench.cpu.x(0)), (Outcome::Done, 1));
    (bench, pc)
}

#[test]
fn changed_code_runs_after_instruction_cache_maintenance() {
    // ic ivau, x1; ic iallu; ic ialluis
    let found = [0xd50b_7521, 0xd508_751f, 0xd508_711f].map(|word| {
        let (mut bench, pc) = called();
        bench.memory.write_code(DATA, &MOVZ[1..]);
        bench.done(&[DSB, word, DSB, ISB]);
        bench.run_at(pc);
        bench.cpu.x(0)
    });
    assert_eq!(found, [2; 3]);
}

#[test]
fn code_that_changes_itself_runs_as_changed_behind_the_barriers() {
    let mut bench = Bench::new();
    bench.cpu.set_x(1, CODE + 20);
    bench.cpu.set_x(2, u64::from(MOVZ[1]));
    // str w2, [x1]; dsb ish; ic ivau, x1; dsb ish; isb; movz x0, #1, which is overwritten
    let pc = bench.load(&[0xb900_0022, DSB, 0xd50b_7521, DSB, ISB, MOVZ[0]]);
    // Once without the change, so that everything is decoded.
    bench.cpu.set_x(2, u64::from(MOVZ[0]));
    let first = (bench.run_at(pc), bench.cpu.x(0));
    bench.cpu.set_x(2, u64::from(MOVZ[1]));
    let second = (bench.run_at(pc), bench.cpu.x(0));
    assert_eq!((first, second), ((Outcome::Done, 1), (Outcome::Done, 2)));
}

#[test]
fn maintenance_by_another_alias_drops_the_code() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::EL0 | desc::RO);
    half.map(&mut bench, VA + 0x1000, DATA, 3, desc::AF);
    // brk #1, brk #2
    bench.memory.write_code(DATA, &[0xd420_0020]);
    let Outcome::Taken(first) = bench.run_at(VA) else { panic!() };
    bench.memory.write_code(DATA, &[0xd420_0040]);
    bench.cpu.set_x(1, VA + 0x1000);
    bench.done(&[DSB, 0xd50b_7521, DSB, ISB]);
    let Outcome::Taken(second) = bench.run_at(VA) else { panic!() };
    assert_eq!((first.esr & 0xffff, second.esr & 0xffff), (1, 2));
}

#[test]
fn maintenance_on_one_cpu_drops_the_code_of_another() {
    for word in [0xd50b_7521, 0xd508_711f] {
        let mut bench = Bench::new();
        // movz x0, #1; hvc #0xd0
        bench.memory.write_code(DATA, &[MOVZ[0], 0xd400_1a02]);
        let mut other = Cpu::new(bench.machine.clone());
        let mut run = || {
            other.set_pc(DATA);
            let exit = other.run();
            (outcome(&other, exit), other.x(0))
        };
        let first = run();
        bench.memory.write_code(DATA, &MOVZ[1..]);
        bench.cpu.set_x(1, DATA);
        bench.done(&[DSB, word, DSB, ISB]);
        assert_eq!((first, run()), ((Outcome::Done, 1), (Outcome::Done, 2)), "{word:#x}");
    }
}

#[test]
fn data_cache_maintenance_changes_no_data() {
    let mut bench = Bench::new();
    bench.memory.write(DATA, 7);
    bench.cpu.set_x(1, DATA);
    // dc cvau, cvac, civac, ivac; isw, csw, cisw
    bench.done(&[0xd50b_7b21, 0xd50b_7a21, 0xd50b_7e21, 0xd508_7621, 0xd508_7641, 0xd508_7a41, 0xd508_7e41]);
    assert_eq!(bench.memory.read(DATA), 7);
}

#[test]
fn block_zeroing_clears_its_64_bytes_only() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    (0..16).for_each(|i| bench.memory.write(DATA + 8 * i, u64::MAX));
    bench.cpu.set_x(1, VA + 0x2b);
    bench.done(&[sys(3, 7, 4, 1)]);
    let words = (0..16).map(|i| bench.memory.read(DATA + 8 * i));
    assert!(words.eq([[0; 8], [u64::MAX; 8]].concat()));
}

#[test]
fn reset_forgets_registers_and_code() {
    let (mut bench, pc) = called();
    bench.memory.write_code(DATA, &MOVZ[1..]);
    bench.set(reg::TPIDR_EL1, 5);
    bench.cpu.reset();
    let registers = (
        bench.get(reg::TPIDR_EL1),
        bench.get(reg::VBAR_EL1),
        bench.cpu.pc(),
        bench.cpu.cpsr(),
        bench.cpu.x(1),
    );
    bench.cpu.set_x(1, DATA);
    bench.run_at(pc);
    assert_eq!((registers, bench.cpu.x(0)), ((0, 0, 0, EL1H, 0), 2));
}

#[test]
fn cancel_from_another_thread_ends_an_endless_loop() {
    let mut bench = Bench::new();
    let canceller = bench.cpu.canceller();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        canceller.cancel();
    });
    let outcome = bench.run(&[0x1400_0000]);
    thread.join().unwrap();
    assert_eq!(outcome, Outcome::Exit(Exit::Canceled));
}
