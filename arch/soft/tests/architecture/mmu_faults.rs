//! Stage 1 faults: which, with exactly which syndrome and address, from EL0 and EL1, for data and instructions. What lies behind
//! stage 1 is in `stage2`.

use crate::common::{Bench, DATA, EL0T, EL1H, Half, KERNEL, Outcome, RAM, Taken, desc, reg, sctlr};
use crate::mmu::{LDR, VA, load, store, sys};

const TRANSLATION: u64 = 0x04;
const ACCESS_FLAG: u64 = 0x08;
const PERMISSION: u64 = 0x0c;
const ALIGNMENT: u64 = 0x21;
/// Writes; the access was one.
const WNR: u64 = 1 << 6;
/// Cache maintenance.
const CM: u64 = 1 << 8;
/// PSTATE.PAN.
const PAN: u64 = 1 << 22;

/// ESR_EL1 of a data abort from EL1 (EC 0x25).
fn data_abort(iss: u64) -> u64 {
    0x25 << 26 | 1 << 25 | iss
}

/// ESR_EL1 of a data abort from EL0 (EC 0x24).
fn data_abort_el0(iss: u64) -> u64 {
    0x24 << 26 | 1 << 25 | iss
}

/// ESR_EL1 of an instruction abort from EL1 (EC 0x21).
fn instruction_abort(iss: u64) -> u64 {
    0x21 << 26 | 1 << 25 | iss
}

/// ESR_EL1 of an instruction abort from EL0 (EC 0x20).
fn instruction_abort_el0(iss: u64) -> u64 {
    0x20 << 26 | 1 << 25 | iss
}

/// A bench with translation on and `VA` mapped to `DATA` with these attributes.
fn mapped(attributes: u64) -> Bench {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, attributes);
    bench
}

/// The fault of a load at EL1 from an address of which the tables hold an invalid descriptor at `level`.
fn fault_at_level(granule_bits: u32, txsz: u32, level: u32) -> u64 {
    let mut bench = Bench::new();
    let half = Half::new(&mut bench, granule_bits, txsz, false);
    bench.translate_with(half);
    half.put(&mut bench, 0, level, 0);
    load(&mut bench, 0x18).unwrap_err().esr
}

#[test]
fn invalid_descriptor_gives_a_translation_fault_of_its_level() {
    let levels = [
        (12, 16, 0),
        (12, 16, 1),
        (12, 16, 2),
        (12, 16, 3),
        (12, 25, 1),
        (12, 34, 2),
        (14, 16, 0),
        (14, 17, 1),
    ];
    let found = levels.map(|(granule, txsz, level)| fault_at_level(granule, txsz, level));
    assert_eq!(found, levels.map(|(_, _, level)| data_abort(TRANSLATION | u64::from(level))));
}

#[test]
fn invalid_descriptor_gives_a_translation_fault_of_its_level_with_64k_granule() {
    let levels = [(16, 1), (22, 2), (16, 3), (35, 3)];
    let found = levels.map(|(txsz, level)| fault_at_level(16, txsz, level));
    assert_eq!(found, levels.map(|(_, level)| data_abort(TRANSLATION | u64::from(level))));
}

#[test]
fn block_where_the_granule_has_none_is_a_translation_fault() {
    let fault = |granule_bits, level| {
        let mut bench = Bench::new();
        let half = Half::new(&mut bench, granule_bits, 16, false);
        bench.translate_with(half);
        half.put(&mut bench, 0, level, RAM | desc::AF | 1);
        load(&mut bench, 0).unwrap_err().esr
    };
    // Bits 1:0 of 01 at level 3 are invalid, too.
    let found = [(12, 0), (14, 1), (16, 1), (12, 3)].map(|(granule, level)| fault(granule, level));
    assert_eq!(found, [0, 1, 1, 3].map(|level| data_abort(TRANSLATION | level)));
}

#[test]
fn data_abort_tells_address_and_instruction() {
    let mut bench = mapped(desc::AF);
    let va = VA + 0x1234;
    bench.cpu.set_x(1, va);
    let pc = bench.load(&[LDR]);
    let expected = Taken { vector: 0x200, esr: data_abort(TRANSLATION | 3), far: va, elr: pc, spsr: EL1H };
    assert_eq!(bench.run_at(pc), Outcome::Taken(expected));
}

#[test]
fn data_abort_of_el0_goes_to_the_lower_level_vector() {
    let mut bench = mapped(desc::AF | desc::EL0);
    bench.pstate = EL0T;
    let va = VA + 0x1234;
    bench.cpu.set_x(1, va);
    let pc = bench.load(&[LDR]);
    let expected =
        Taken { vector: 0x400, esr: data_abort_el0(TRANSLATION | 3), far: va, elr: pc, spsr: EL0T };
    assert_eq!(bench.run_at(pc), Outcome::Taken(expected));
}

#[test]
fn store_sets_wnr() {
    let mut bench = mapped(desc::AF);
    assert_eq!(store(&mut bench, VA + 0x1000, 0).unwrap_err().esr, data_abort(WNR | TRANSLATION | 3));
}

/// The syndrome of one access at EL1 to an unmapped page.
fn unmapped(word: u32) -> u64 {
    let mut bench = mapped(desc::AF);
    bench.cpu.set_x(1, VA + 0x1000);
    bench.taken(&[word]).esr
}

#[test]
fn store_exclusive_and_release_to_an_unmapped_page_set_wnr() {
    // stxr w2, x0, [x1]; stlr x0, [x1]; stp x0, x2, [x1]; st1 {v0.16b}, [x1]
    let words = [0xc802_7c20, 0xc89f_fc20, 0xa900_0820, 0x4c00_7020];
    assert_eq!(words.map(unmapped), [data_abort(WNR | TRANSLATION | 3); 4]);
}

#[test]
fn atomic_on_an_unmapped_page_is_reported_as_a_read() {
    // ldadd x2, x0, [x1]; cas x2, x0, [x1]; casp x2, x3, x4, x5, [x1]
    assert_eq!([0xf822_0020, 0xc8a2_7c20, 0x4822_7c24].map(unmapped), [data_abort(TRANSLATION | 3); 3]);
}

#[test]
fn atomic_on_a_read_only_page_is_reported_as_a_write() {
    let found = [0xf822_0020, 0xc8a2_7c20, 0x4822_7c24].map(|word| {
        let mut bench = mapped(desc::AF | desc::RO);
        bench.cpu.set_x(1, VA);
        bench.taken(&[word]).esr
    });
    assert_eq!(found, [data_abort(WNR | PERMISSION | 3); 3]);
}

#[test]
fn block_zeroing_faults_as_a_plain_write_of_the_given_address() {
    let mut bench = mapped(desc::AF);
    bench.cpu.set_x(1, VA + 0x1039);
    // dc zva, x1
    let taken = bench.taken(&[sys(3, 7, 4, 1)]);
    assert_eq!((taken.esr, taken.far), (data_abort(WNR | TRANSLATION | 3), VA + 0x1039));
}

#[test]
fn cache_maintenance_faults_as_a_write_with_cm() {
    let found = [sys(3, 7, 10, 1), sys(3, 7, 11, 1), sys(3, 7, 14, 1), sys(0, 7, 6, 1), sys(3, 7, 5, 1)]
        .map(unmapped);
    assert_eq!(found, [data_abort(CM | WNR | TRANSLATION | 3); 5]);
}

#[test]
fn prefetch_of_an_unmapped_page_does_nothing() {
    let mut bench = mapped(desc::AF);
    bench.cpu.set_x(1, VA + 0x1000);
    // prfm pldl1keep, [x1]
    bench.done(&[0xf980_0020]);
}

#[test]
fn address_above_the_lower_half_is_a_translation_fault_of_level_0() {
    let mut bench = mapped(desc::AF);
    let found = [1 << 39, 1 << 48, 1 << 54, 0x00ff << 48].map(|va| load(&mut bench, va).unwrap_err());
    assert_eq!(
        found.map(|t| (t.esr, t.far)),
        [1 << 39, 1 << 48, 1 << 54, 0x00ff << 48].map(|va| (data_abort(TRANSLATION), va))
    );
}

#[test]
fn address_below_the_upper_half_is_a_translation_fault_of_level_0() {
    let mut bench = mapped(desc::AF);
    let vas = [KERNEL - 8, 0xfff0 << 48 | KERNEL, 1 << 55].map(|va: u64| va & !(0xf << 48));
    assert_eq!(vas.map(|va| load(&mut bench, va).unwrap_err().esr), [data_abort(TRANSLATION); 3]);
}

#[test]
fn tagged_address_faults_where_the_top_byte_counts() {
    let mut bench = mapped(desc::AF);
    assert_eq!(load(&mut bench, 0xab << 56 | VA).unwrap_err().esr, data_abort(TRANSLATION));
}

#[test]
fn fault_address_keeps_its_tag() {
    let mut bench = mapped(desc::AF);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 37);
    let va = 0xab << 56 | (VA + 0x1000);
    assert_eq!(load(&mut bench, va).unwrap_err().far, va);
}

#[test]
fn half_closed_to_el0_is_a_translation_fault_of_level_0() {
    let mut bench = mapped(desc::AF | desc::EL0);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 55);
    bench.cpu.set_x(1, VA);
    // ldtr x2, [x1]: an access with EL0's rights
    assert_eq!(bench.taken(&[0xf840_0822]).esr, data_abort(TRANSLATION));
}

#[test]
fn half_closed_to_el0_is_open_to_el1() {
    let mut bench = mapped(desc::AF);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 55);
    assert!(load(&mut bench, VA).is_ok());
}

#[test]
fn walks_of_the_lower_half_can_be_disabled() {
    let mut bench = mapped(desc::AF);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 7);
    assert_eq!(load(&mut bench, VA).unwrap_err().esr, data_abort(TRANSLATION));
}

#[test]
fn walks_of_the_upper_half_can_be_disabled() {
    let mut bench = Bench::new();
    let lower = Half::new(&mut bench, 12, 25, false);
    lower.map(&mut bench, RAM, RAM, 1, desc::AF);
    let upper = Half::new(&mut bench, 12, 25, true);
    upper.map(&mut bench, KERNEL, RAM, 1, desc::AF);
    bench.turn_on(lower, upper);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 23);
    // ldr x0, [x1]
    bench.memory.write_code(DATA, &[LDR]);
    bench.cpu.set_x(1, KERNEL);
    let Outcome::Taken(taken) = bench.run_at(DATA) else { panic!() };
    assert_eq!(taken.esr, data_abort(TRANSLATION));
}

#[test]
fn descriptor_without_access_flag_faults_at_its_level() {
    let found = [1, 2, 3].map(|level| {
        let mut bench = Bench::new();
        let half = bench.translate();
        half.map(&mut bench, VA, DATA, level, 0);
        load(&mut bench, VA).unwrap_err().esr
    });
    assert_eq!(found, [1, 2, 3].map(|level| data_abort(ACCESS_FLAG | level)));
}

#[test]
fn access_flag_fault_comes_before_the_permission_fault() {
    let mut bench = mapped(desc::RO);
    assert_eq!(store(&mut bench, VA, 0).unwrap_err().esr, data_abort(WNR | ACCESS_FLAG | 3));
}

#[test]
fn output_address_beyond_the_configured_size_is_an_address_size_fault() {
    let found = [1, 2, 3].map(|level| {
        let mut bench = Bench::new();
        let half = bench.translate();
        half.map(&mut bench, VA, 1 << 40, level, desc::AF);
        load(&mut bench, VA).unwrap_err().esr
    });
    assert_eq!(found, [1, 2, 3].map(data_abort));
}

#[test]
fn table_address_beyond_the_configured_size_is_an_address_size_fault() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.put(&mut bench, VA, 2, 1 << 41 | 3);
    assert_eq!(load(&mut bench, VA).unwrap_err().esr, data_abort(2));
}

#[test]
fn first_table_beyond_the_configured_size_is_an_address_size_fault_of_level_0() {
    let mut bench = mapped(desc::AF);
    bench.set(reg::TTBR0_EL1, 1 << 40);
    assert_eq!(load(&mut bench, VA).unwrap_err().esr, data_abort(0));
}

#[test]
fn address_beyond_the_physical_size_with_translation_off_is_an_address_size_fault() {
    let mut bench = Bench::new();
    assert_eq!(load(&mut bench, 1 << 40).unwrap_err().esr, data_abort(0));
}

/// Which of (read, write) at EL1 and (read, write) at EL0 a page with these attributes allows; other faults than its
/// permission faults panic.
fn allowed(attributes: u64, table: u64) -> [bool; 4] {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | attributes);
    let upper_entry = half.entry(&bench, VA, 2);
    let descriptor = bench.memory.read(upper_entry);
    bench.memory.write(upper_entry, descriptor | table);
    let mut result = [false; 4];
    for (i, (pstate, abort)) in
        [(EL1H, data_abort as fn(u64) -> u64), (EL0T, data_abort_el0)].into_iter().enumerate()
    {
        bench.pstate = pstate;
        let read = load(&mut bench, VA);
        result[2 * i] = read.is_ok();
        assert!(read.is_ok() || read.unwrap_err().esr == abort(PERMISSION | 3), "{read:x?}");
        let write = store(&mut bench, VA, 0);
        result[2 * i + 1] = write.is_ok();
        assert!(write.is_ok() || write.unwrap_err().esr == abort(WNR | PERMISSION | 3), "{write:x?}");
    }
    result
}

#[test]
fn access_permissions_are_those_of_ap() {
    let found = [0, desc::EL0, desc::RO, desc::RO | desc::EL0].map(|ap| allowed(ap, 0));
    assert_eq!(
        found,
        [[true, true, false, false], [true; 4], [true, false, false, false], [true, false, true, false]]
    );
}

#[test]
fn table_attributes_take_permissions_away() {
    let found = [desc::NO_EL0_TABLE, desc::RO_TABLE, desc::NO_EL0_TABLE | desc::RO_TABLE]
        .map(|t| allowed(desc::EL0, t));
    assert_eq!(found, [[true, true, false, false], [true, false, true, false], [true, false, false, false]]);
}

#[test]
fn read_fills_the_tlb_without_write_permission() {
    let mut bench = mapped(desc::AF | desc::RO);
    load(&mut bench, VA).unwrap();
    assert_eq!(store(&mut bench, VA, 0).unwrap_err().esr, data_abort(WNR | PERMISSION | 3));
}

#[test]
fn access_of_el1_does_not_open_the_page_to_el0() {
    let mut bench = mapped(desc::AF);
    load(&mut bench, VA).unwrap();
    bench.pstate = EL0T;
    assert_eq!(load(&mut bench, VA).unwrap_err().esr, data_abort_el0(PERMISSION | 3));
}

/// Whether a page with these attributes may be executed by EL1 and by EL0.
fn executable(attributes: u64, table: u64, wxn: bool) -> [bool; 2] {
    [(EL1H, instruction_abort as fn(u64) -> u64), (EL0T, instruction_abort_el0)].map(|(pstate, abort)| {
        let mut bench = Bench::new();
        let half = bench.translate();
        half.map(&mut bench, VA, DATA, 3, desc::AF | attributes);
        let entry = half.entry(&bench, VA, 2);
        let descriptor = bench.memory.read(entry);
        bench.memory.write(entry, descriptor | table);
        if wxn {
            // The kernel's own code is writable.
            let upper = Half { upper: true, root: bench.get(reg::TTBR1_EL1), ..half };
            upper.map(&mut bench, KERNEL + RAM, RAM, 2, desc::AF | desc::UXN | desc::RO);
            bench.sctlr(sctlr::WXN, 0);
        }
        // brk #7
        bench.memory.write_code(DATA, &[0xd420_00e0]);
        bench.pstate = pstate;
        let Outcome::Taken(taken) = bench.run_at(VA) else { panic!() };
        assert_eq!((taken.elr, taken.spsr), (VA, pstate));
        let ran = taken.esr == 0x3c << 26 | 1 << 25 | 7;
        assert!(ran || (taken.esr, taken.far) == (abort(PERMISSION | 3), VA), "{taken:x?}");
        ran
    })
}

#[test]
fn execute_never_bits_keep_each_level_out() {
    let user = desc::EL0 | desc::RO;
    let found = [user, user | desc::PXN, user | desc::UXN, user | desc::PXN | desc::UXN]
        .map(|a| executable(a, 0, false));
    assert_eq!(found, [[true, true], [false, true], [true, false], [false, false]]);
}

#[test]
fn execute_never_bits_of_tables_keep_each_level_out() {
    let user = desc::EL0 | desc::RO;
    let found = [desc::PXN_TABLE, desc::UXN_TABLE].map(|table| executable(user, table, false));
    assert_eq!(found, [[false, true], [true, false]]);
}

#[test]
fn page_that_el0_may_write_is_never_executed_by_el1() {
    assert_eq!(executable(desc::EL0, 0, false), [false, true]);
}

#[test]
fn page_that_el0_may_not_access_may_be_executed_by_it() {
    // Execute-only: AP[1] is about data.
    assert_eq!(executable(desc::RO, 0, false), [true, true]);
}

#[test]
fn writable_pages_are_not_executed_with_wxn() {
    let found = [0, desc::EL0, desc::RO, desc::EL0 | desc::RO].map(|ap| executable(ap, 0, true));
    assert_eq!(found, [[false, true], [false, false], [true, true], [true, true]]);
}

#[test]
fn fetch_from_an_unmapped_page_is_an_instruction_abort() {
    let mut bench = mapped(desc::AF);
    let va = VA + 0x1008;
    let expected =
        Taken { vector: 0x200, esr: instruction_abort(TRANSLATION | 3), far: va, elr: va, spsr: EL1H };
    assert_eq!(bench.run_at(va), Outcome::Taken(expected));
}

#[test]
fn fetch_by_el0_from_an_unmapped_page_is_an_instruction_abort() {
    let mut bench = mapped(desc::AF);
    bench.pstate = EL0T;
    let va = VA + 0x1008;
    let expected =
        Taken { vector: 0x400, esr: instruction_abort_el0(TRANSLATION | 3), far: va, elr: va, spsr: EL0T };
    assert_eq!(bench.run_at(va), Outcome::Taken(expected));
}

#[test]
fn execution_that_runs_off_a_page_faults_at_the_next_one() {
    let mut bench = mapped(desc::AF);
    // nop
    bench.memory.write_code(DATA + 0xffc, &[0xd503_201f]);
    let Outcome::Taken(taken) = bench.run_at(VA + 0xffc) else { panic!() };
    assert_eq!(
        (taken.esr, taken.far, taken.elr),
        (instruction_abort(TRANSLATION | 3), VA + 0x1000, VA + 0x1000)
    );
}

#[test]
fn pan_keeps_el1_out_of_user_pages() {
    let found = [desc::EL0, desc::EL0 | desc::RO].map(|ap| {
        let mut bench = mapped(desc::AF | ap);
        bench.pstate = EL1H | PAN;
        let read = load(&mut bench, VA).unwrap_err().esr;
        (read, store(&mut bench, VA, 0).unwrap_err().esr)
    });
    assert_eq!(found, [(data_abort(PERMISSION | 3), data_abort(WNR | PERMISSION | 3)); 2]);
}

#[test]
fn pan_lets_el1_use_its_own_pages() {
    let mut bench = mapped(desc::AF);
    bench.pstate = EL1H | PAN;
    assert_eq!((load(&mut bench, VA).is_ok(), store(&mut bench, VA, 0).is_ok()), (true, true));
}

#[test]
fn pan_takes_effect_on_a_cached_page() {
    let mut bench = mapped(desc::AF | desc::EL0);
    bench.cpu.set_x(1, VA);
    // ldr x0, [x1]; msr pan, #1; ldr x0, [x1]
    let pc = bench.load(&[LDR, 0xd500_419f, LDR]);
    let Outcome::Taken(taken) = bench.run_at(pc) else { panic!() };
    assert_eq!((taken.elr, taken.esr), (pc + 8, data_abort(PERMISSION | 3)));
}

#[test]
fn pan_does_not_concern_unprivileged_accesses() {
    let mut bench = mapped(desc::AF | desc::EL0);
    bench.pstate = EL1H | PAN;
    bench.cpu.set_x(1, VA);
    // ldtr x0, [x1]; sttr x0, [x1]
    bench.done(&[0xf840_0820, 0xf800_0820]);
}

#[test]
fn pan_does_not_concern_cache_maintenance() {
    let mut bench = mapped(desc::AF | desc::EL0);
    bench.pstate = EL1H | PAN;
    bench.cpu.set_x(1, VA);
    bench.done(&[sys(3, 7, 10, 1), sys(3, 7, 11, 1), sys(3, 7, 14, 1), sys(0, 7, 6, 1), sys(3, 7, 5, 1)]);
}

#[test]
fn pan_concerns_block_zeroing() {
    let mut bench = mapped(desc::AF | desc::EL0);
    bench.pstate = EL1H | PAN;
    bench.cpu.set_x(1, VA);
    assert_eq!(bench.taken(&[sys(3, 7, 4, 1)]).esr, data_abort(WNR | PERMISSION | 3));
}

#[test]
fn unprivileged_accesses_need_the_permissions_of_el0() {
    let mut kernel = mapped(desc::AF);
    kernel.cpu.set_x(1, VA);
    let read = kernel.taken(&[0xf840_0820]).esr;
    let mut read_only = mapped(desc::AF | desc::EL0 | desc::RO);
    read_only.cpu.set_x(1, VA);
    let write = read_only.taken(&[0xf800_0820]).esr;
    assert_eq!((read, write), (data_abort(PERMISSION | 3), data_abort(WNR | PERMISSION | 3)));
}

/// The fault of `word` at `va`, if it faults.
fn fault(bench: &mut Bench, word: u32, va: u64) -> Option<(u64, u64)> {
    bench.cpu.set_x(1, va);
    match bench.run(&[word]) {
        Outcome::Done => None,
        Outcome::Taken(taken) => Some((taken.esr, taken.far)),
        Outcome::Exit(exit) => panic!("{exit:x?}"),
    }
}

#[test]
fn unaligned_access_to_device_memory_faults() {
    let mut bench = mapped(desc::AF | desc::DEVICE);
    let found = [0x7940_0020, 0xb940_0020, LDR].map(|word| fault(&mut bench, word, VA + 1));
    assert_eq!(found, [Some((data_abort(ALIGNMENT), VA + 1)); 3]);
}

#[test]
fn unaligned_access_to_normal_memory_does_not_fault() {
    let mut bench = mapped(desc::AF);
    let found =
        [0x7940_0020, 0xb940_0020, LDR, 0xa940_0820, 0x3dc0_0020].map(|word| fault(&mut bench, word, VA + 1));
    assert_eq!(found, [None; 5]);
}

#[test]
fn aligned_access_to_device_memory_does_not_fault() {
    let mut bench = mapped(desc::AF | desc::DEVICE);
    assert_eq!(
        [0x7940_0020, 0xb940_0020, LDR, 0xa940_0820].map(|word| fault(&mut bench, word, VA + 8)),
        [None; 4]
    );
}

#[test]
fn unaligned_access_across_device_pages_faults() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::DEVICE);
    half.map(&mut bench, VA + 0x1000, DATA + 0x1000, 3, desc::AF | desc::DEVICE);
    let found = [4, 2, 1].map(|before| fault(&mut bench, LDR, VA + 0x1000 - before));
    assert_eq!(found, [4, 2, 1].map(|before| Some((data_abort(ALIGNMENT), VA + 0x1000 - before))));
}

#[test]
fn vector_register_on_device_memory_wants_16_byte_alignment() {
    let mut bench = mapped(desc::AF | desc::DEVICE);
    // ldr q0, [x1]; str q0, [x1]
    let found = [0x3dc0_0020, 0x3d80_0020].map(|word| fault(&mut bench, word, VA + 8));
    assert_eq!(found, [Some((data_abort(ALIGNMENT), VA + 8)), Some((data_abort(WNR | ALIGNMENT), VA + 8))]);
}

#[test]
fn block_zeroing_of_device_memory_is_an_alignment_fault() {
    let mut bench = mapped(desc::AF | desc::DEVICE);
    assert_eq!(fault(&mut bench, sys(3, 7, 4, 1), VA), Some((data_abort(WNR | ALIGNMENT), VA)));
}

#[test]
fn alignment_check_of_sctlr_refuses_unaligned_accesses() {
    let mut bench = mapped(desc::AF);
    bench.sctlr(sctlr::A, 0);
    // ldrh w0, [x1]; ldr w0, [x1]; ldr x0, [x1]; ldp x0, x2, [x1]; ldr q0, [x1]
    let found =
        [0x7940_0020, 0xb940_0020, LDR, 0xa940_0820, 0x3dc0_0020].map(|word| fault(&mut bench, word, VA + 1));
    assert_eq!(found, [Some((data_abort(ALIGNMENT), VA + 1)); 5]);
}

#[test]
fn alignment_check_of_sctlr_counts_elements_of_structures() {
    let mut bench = mapped(desc::AF);
    bench.sctlr(sctlr::A, 0);
    // ld1 {v0.16b}, [x1]; ld1 {v0.8h}, [x1]; ld1 {v0.b}[0], [x1]
    let found = [0x4c40_7020, 0x4c40_7420, 0x0d40_0020].map(|word| fault(&mut bench, word, VA + 1));
    assert_eq!(found, [None, Some((data_abort(ALIGNMENT), VA + 1)), None]);
}

#[test]
fn alignment_check_of_sctlr_comes_before_translation() {
    let mut bench = mapped(desc::AF);
    bench.sctlr(sctlr::A, 0);
    assert_eq!(fault(&mut bench, LDR, VA + 0x1001), Some((data_abort(ALIGNMENT), VA + 0x1001)));
}

#[test]
fn exclusives_and_ordered_accesses_must_be_aligned() {
    let mut bench = mapped(desc::AF);
    // ldxr x0, [x1]; ldar x0, [x1]; ldxp x0, x2, [x1]
    let reads = [0xc85f_7c20, 0xc8df_fc20, 0xc87f_0820].map(|word| fault(&mut bench, word, VA + 4));
    // stxr w2, x0, [x1]; stlr x0, [x1]; stxp w3, x0, x2, [x1]
    let writes = [0xc802_7c20, 0xc89f_fc20, 0xc823_0820].map(|word| fault(&mut bench, word, VA + 4));
    assert_eq!(reads, [Some((data_abort(ALIGNMENT), VA + 4)); 3]);
    assert_eq!(writes, [Some((data_abort(WNR | ALIGNMENT), VA + 4)); 3]);
}

#[test]
fn pair_exclusive_must_be_aligned_to_the_pair() {
    let mut bench = mapped(desc::AF);
    assert_eq!(fault(&mut bench, 0xc87f_0820, VA + 8), Some((data_abort(ALIGNMENT), VA + 8)));
}

#[test]
fn atomics_must_be_aligned() {
    let mut bench = mapped(desc::AF);
    // ldadd x2, x0, [x1]; cas x2, x0, [x1]; casp x2, x3, x4, x5, [x1]
    let found = [0xf822_0020, 0xc8a2_7c20, 0x4822_7c24].map(|word| fault(&mut bench, word, VA + 4));
    // Whether it counts as a read or a write is the first access that faults: the read.
    assert_eq!(found, [Some((data_abort(ALIGNMENT), VA + 4)); 3]);
}

#[test]
fn access_across_pages_reports_the_page_that_faults() {
    let mut bench = mapped(desc::AF);
    let second = fault(&mut bench, LDR, VA + 0xffd);
    let first = fault(&mut bench, LDR, VA - 3);
    assert_eq!(
        (second, first.map(|f| f.1)),
        (Some((data_abort(TRANSLATION | 3), VA + 0x1000)), Some(VA - 3))
    );
}

#[test]
fn faulting_access_leaves_the_base_register_alone() {
    let mut bench = mapped(desc::AF);
    bench.cpu.set_x(1, VA + 0x1000);
    // ldr x0, [x1, #8]!; then post-indexed; ldp x0, x2, [x1], #16; ld1 {v0.16b}, [x1], #16
    let found = [0xf840_8c20, 0xf840_8420, 0xa8c1_0820, 0x4cdf_7020].map(|word| {
        bench.taken(&[word]);
        bench.cpu.x(1)
    });
    assert_eq!(found, [VA + 0x1000; 4]);
}

#[test]
fn faulting_store_pair_is_restarted_after_the_page_is_mapped() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    bench.cpu.set_x(0, 1);
    bench.cpu.set_x(1, VA + 0x1000);
    bench.cpu.set_x(2, 2);
    // stp x0, x2, [x1, #-8]!
    let pc = bench.load(&[0xa9bf_8820]);
    let first = bench.run_at(pc);
    half.map(&mut bench, VA + 0x1000, DATA + 0x1000, 3, desc::AF);
    let second = bench.run_at(pc);
    assert!(matches!(first, Outcome::Taken(taken) if taken.far == VA + 0x1000), "{first:x?}");
    assert_eq!((second, bench.cpu.x(1)), (Outcome::Done, VA + 0xff8));
    assert_eq!((bench.memory.read(DATA + 0xff8), bench.memory.read(DATA + 0x1000)), (1, 2));
}
