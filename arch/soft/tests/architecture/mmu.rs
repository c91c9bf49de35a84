//! Stage 1 translation that succeeds: granules, levels, both halves, tags, ASIDs, TLB maintenance, address translation
//! instructions and accesses across pages. What faults is in `mmu_faults`.

use crate::common::{
    Bench, CODE, DATA, EL0T, EL1H, Half, KERNEL, Outcome, RAM, Taken, USER, VECTORS, desc, msr, reg,
};

/// ldr x0, [x1]
pub const LDR: u32 = 0xf940_0020;
/// str x0, [x1]
pub const STR: u32 = 0xf900_0020;
/// dsb ish
pub const DSB: u32 = 0xd503_3b9f;
/// isb
pub const ISB: u32 = 0xd503_3fdf;
/// An address of the lower half that tests map.
pub const VA: u64 = 0x20_4060_0000;

/// SYS #op1, CRn, CRm, #op2, X1 (DC, IC, AT, TLBI).
pub const fn sys(op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    0xd508_0001 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
}

/// Loads from `va`; the value, or the exception.
pub fn load(bench: &mut Bench, va: u64) -> Result<u64, Taken> {
    bench.cpu.set_x(1, va);
    match bench.run(&[LDR]) {
        Outcome::Done => Ok(bench.cpu.x(0)),
        Outcome::Taken(taken) => Err(taken),
        Outcome::Exit(exit) => panic!("{exit:x?}"),
    }
}

/// Stores `value` to `va`; `Err` is the exception.
pub fn store(bench: &mut Bench, va: u64, value: u64) -> Result<(), Taken> {
    bench.cpu.set_x(0, value);
    bench.cpu.set_x(1, va);
    match bench.run(&[STR]) {
        Outcome::Done => Ok(()),
        Outcome::Taken(taken) => Err(taken),
        Outcome::Exit(exit) => panic!("{exit:x?}"),
    }
}

/// Maps one descriptor of `level` at the top of a lower half of this shape and loads through it.
fn load_through(granule_bits: u32, txsz: u32, level: u32) -> u64 {
    let mut bench = Bench::new();
    let half = Half::new(&mut bench, granule_bits, txsz, false);
    bench.translate_with(half);
    bench.memory.write(DATA + 0x5678, 0x1234_5678_9abc_def0);
    let size = 1u64 << half.level_bits(level);
    let va = (1u64 << (64 - txsz)) - size;
    half.map(&mut bench, va, DATA, level, desc::AF);
    load(&mut bench, va + ((DATA & (size - 1)) + 0x5678) % size).unwrap()
}

/// The same in the upper half, with the kernel in the lower one.
fn load_through_upper(granule_bits: u32, txsz: u32, level: u32) -> u64 {
    let mut bench = Bench::new();
    let lower = Half::new(&mut bench, 12, 25, false);
    lower.map(&mut bench, RAM, RAM, 1, desc::AF);
    let upper = Half::new(&mut bench, granule_bits, txsz, true);
    let size = 1u64 << upper.level_bits(level);
    upper.map(&mut bench, size.wrapping_neg(), DATA, level, desc::AF);
    bench.memory.write(DATA + 0x5678, 0x1234_5678_9abc_def0);
    bench.turn_on(lower, upper);
    let pc = CODE + 0x3000;
    // ldr x0, [x1]; hvc #0xd0
    bench.memory.write_code(pc, &[LDR, 0xd400_1a02]);
    bench.cpu.set_x(1, size.wrapping_neg() + ((DATA & (size - 1)) + 0x5678) % size);
    assert_eq!(bench.run_at(pc), Outcome::Done);
    bench.cpu.x(0)
}

/// What is at `DATA` + 0x5678, or at the page's offset of it for 4 KiB pages, of which the table maps only one.
const STORED: u64 = 0x1234_5678_9abc_def0;

#[test]
fn blocks_of_1_gib_and_2_mib_translate_with_4k_granule() {
    let cases = [(16, 1), (20, 1), (25, 1), (28, 1), (33, 1), (16, 2), (25, 2), (34, 2), (39, 2)];
    assert_eq!(cases.map(|(txsz, level)| load_through(12, txsz, level)), [STORED; 9]);
}

#[test]
fn blocks_of_32_mib_translate_with_16k_granule() {
    assert_eq!([16, 17, 25, 28, 29, 36, 38].map(|txsz| load_through(14, txsz, 2)), [STORED; 7]);
}

#[test]
fn blocks_of_512_mib_translate_with_64k_granule() {
    assert_eq!([16, 21, 22, 25, 33].map(|txsz| load_through(16, txsz, 2)), [STORED; 5]);
}

#[test]
fn pages_of_64k_translate() {
    assert_eq!([16, 22, 34, 35, 39].map(|txsz| load_through(16, txsz, 3)), [STORED; 5]);
}

#[test]
fn pages_of_16k_translate() {
    // The value is in the second page from `DATA` on.
    let load = |txsz| {
        let mut bench = Bench::new();
        let half = Half::new(&mut bench, 14, txsz, false);
        bench.translate_with(half);
        bench.memory.write(DATA + 0x5678, STORED);
        let va = (1u64 << (64 - txsz)) - 0x4000;
        half.map(&mut bench, va, DATA + 0x4000, 3, desc::AF);
        load(&mut bench, va + 0x1678).unwrap()
    };
    assert_eq!([16, 17, 28, 29, 39].map(load), [STORED; 5]);
}

#[test]
fn pages_of_4k_translate() {
    let load = |txsz| {
        let mut bench = Bench::new();
        let half = Half::new(&mut bench, 12, txsz, false);
        bench.translate_with(half);
        bench.memory.write(DATA + 0x5678, STORED);
        let va = (1u64 << (64 - txsz)) - 0x1000;
        half.map(&mut bench, va, DATA + 0x5000, 3, desc::AF);
        load(&mut bench, va + 0x678).unwrap()
    };
    assert_eq!([16, 17, 24, 25, 33, 34, 39].map(load), [STORED; 7]);
}

#[test]
fn upper_half_translates_with_every_granule() {
    let cases = [(12, 16, 1), (12, 33, 2), (14, 16, 2), (14, 28, 2), (16, 16, 2), (16, 22, 2), (16, 39, 3)];
    let loaded = cases.map(|(granule, txsz, level)| load_through_upper(granule, txsz, level));
    assert_eq!(loaded, [STORED; 7]);
}

#[test]
fn stores_reach_the_page_that_loads_read() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    store(&mut bench, VA + 8, 77).unwrap();
    assert_eq!((load(&mut bench, VA + 8).unwrap(), bench.memory.read(DATA + 8)), (77, 77));
}

#[test]
fn tagged_address_translates_where_top_byte_is_ignored() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    bench.memory.write(DATA, 5);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 37);
    assert_eq!(load(&mut bench, 0xab << 56 | VA).unwrap(), 5);
}

#[test]
fn tagged_upper_address_translates_where_top_byte_is_ignored() {
    let mut bench = Bench::new();
    bench.translate();
    bench.memory.write(DATA, 6);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 38);
    assert_eq!(load(&mut bench, (KERNEL + DATA) & (u64::MAX >> 8) | 0x12 << 56).unwrap(), 6);
}

#[test]
fn invalidation_of_an_address_covers_every_tag() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    bench.memory.write(DATA + 0x1000, 9);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 37);
    load(&mut bench, 0xab << 56 | VA).unwrap();
    half.map(&mut bench, VA, DATA + 0x1000, 3, desc::AF);
    bench.cpu.set_x(1, VA >> 12);
    bench.done(&[sys(0, 8, 7, 1), DSB, ISB]);
    assert_eq!(load(&mut bench, 0xab << 56 | VA).unwrap(), 9);
}

/// The program counter after a branch to `target` with the lower half's top byte ignored.
#[test]
fn branch_to_a_tagged_address_drops_the_tag() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    // adr x2, .; hvc #0xd0
    bench.memory.write_code(DATA, &[0x1000_0002, 0xd400_1a02]);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 37);
    bench.cpu.set_x(1, 0xab << 56 | VA);
    // br x1
    bench.done(&[0xd61f_0020]);
    assert_eq!(bench.cpu.x(2), VA);
}

#[test]
fn exception_return_to_a_tagged_address_drops_the_tag() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::EL0 | desc::RO);
    // svc #1
    bench.memory.write_code(DATA, &[0xd400_0021]);
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 37);
    bench.set(reg::ELR_EL1, 0xab << 56 | VA);
    bench.set(reg::SPSR_EL1, EL0T);
    // eret
    let taken = bench.taken(&[0xd69f_03e0]);
    assert_eq!(taken.elr, VA + 4);
}

/// A bench whose ASID 1 maps `VA` to `DATA` and whose ASID 2 maps it to `DATA` + 0x1000, each holding its ASID.
fn two_address_spaces(attributes: u64) -> (Bench, [u64; 2]) {
    let mut bench = Bench::new();
    let first = bench.translate();
    let second = Half::new(&mut bench, 12, 25, false);
    bench.memory.write(DATA, 1);
    bench.memory.write(DATA + 0x1000, 2);
    first.map(&mut bench, VA, DATA, 3, desc::AF | attributes);
    second.map(&mut bench, VA, DATA + 0x1000, 3, desc::AF | attributes);
    (bench, [1 << 48 | first.root, 2 << 48 | second.root])
}

#[test]
fn non_global_data_follows_the_asid() {
    let (mut bench, roots) = two_address_spaces(desc::NG);
    let loaded = [0, 1, 0, 1].map(|i: usize| {
        bench.cpu.set_x(3, roots[i]);
        bench.done(&[msr(reg::TTBR0_EL1, 3), ISB]);
        load(&mut bench, VA).unwrap()
    });
    assert_eq!(loaded, [1, 2, 1, 2]);
}

#[test]
fn non_global_data_of_el0_follows_the_asid() {
    let (mut bench, roots) = two_address_spaces(desc::NG | desc::EL0);
    let loaded = [0, 1, 0, 1].map(|i: usize| {
        bench.pstate = EL1H;
        bench.cpu.set_x(3, roots[i]);
        bench.done(&[msr(reg::TTBR0_EL1, 3), ISB]);
        bench.pstate = EL0T;
        load(&mut bench, VA).unwrap()
    });
    assert_eq!(loaded, [1, 2, 1, 2]);
}

#[test]
fn non_global_data_follows_the_asid_in_ttbr1() {
    let (mut bench, roots) = two_address_spaces(desc::NG);
    // TCR_EL1.A1; AS stays 0, so that ASIDs have 8 bits.
    bench.set(reg::TCR_EL1, bench.get(reg::TCR_EL1) | 1 << 22);
    let upper = bench.get(reg::TTBR1_EL1);
    let loaded = [0, 1, 0, 1].map(|i: usize| {
        bench.cpu.set_x(3, upper | roots[i] & 0xffff << 48);
        bench.cpu.set_x(4, roots[i] & 0xffff_ffff_ffff);
        bench.done(&[msr(reg::TTBR1_EL1, 3), msr(reg::TTBR0_EL1, 4), ISB]);
        load(&mut bench, VA).unwrap()
    });
    assert_eq!(loaded, [1, 2, 1, 2]);
}

#[test]
fn non_global_page_of_the_upper_half_follows_the_asid() {
    let mut bench = Bench::new();
    bench.translate();
    let upper = Half { root: bench.get(reg::TTBR1_EL1), ..Half::new(&mut bench, 12, 25, true) };
    let va = KERNEL + 0x20_0000_0000;
    let entry = upper.map(&mut bench, va, DATA, 3, desc::AF | desc::NG);
    bench.memory.write(DATA, 1);
    bench.memory.write(DATA + 0x1000, 2);
    let root = bench.get(reg::TTBR0_EL1);
    let first = load(&mut bench, va).unwrap();
    // Under another ASID nothing of it is cached.
    bench.memory.write(entry, (DATA + 0x1000) | desc::AF | desc::NG | 3);
    bench.cpu.set_x(3, 5 << 48 | root);
    bench.done(&[msr(reg::TTBR0_EL1, 3), ISB]);
    assert_eq!((first, load(&mut bench, va).unwrap()), (1, 2));
}

#[test]
fn code_follows_the_asid() {
    let (mut bench, roots) = two_address_spaces(desc::NG | desc::EL0 | desc::RO);
    // svc #1, svc #2
    bench.memory.write_code(DATA, &[0xd400_0021]);
    bench.memory.write_code(DATA + 0x1000, &[0xd400_0041]);
    let numbers = [0, 1, 0, 1].map(|i: usize| {
        bench.pstate = EL1H;
        bench.cpu.set_x(3, roots[i]);
        bench.done(&[msr(reg::TTBR0_EL1, 3), ISB]);
        bench.pstate = EL0T;
        let Outcome::Taken(taken) = bench.run_at(VA) else { panic!() };
        taken.esr & 0xffff
    });
    assert_eq!(numbers, [1, 2, 1, 2]);
}

#[test]
fn non_global_code_of_the_upper_half_follows_the_asid_after_an_unrelated_invalidation() {
    let mut bench = Bench::new();
    let lower = bench.translate();
    let upper = Half { root: bench.get(reg::TTBR1_EL1), upper: true, ..lower };
    let va = KERNEL + 0x20_0000_0000;
    let entry = upper.map(&mut bench, va, DATA, 3, desc::AF | desc::NG);
    // hvc #0xd0; brk #1
    bench.memory.write_code(DATA, &[0xd400_1a02]);
    bench.memory.write_code(DATA + 0x1000, &[0xd420_0020]);
    let first = bench.run_at(va);
    lower.map(&mut bench, VA, DATA, 2, desc::AF);
    load(&mut bench, VA).unwrap();
    bench.cpu.set_x(1, VA >> 12);
    bench.done(&[DSB, sys(0, 8, 7, 1), DSB, ISB]);
    bench.memory.write(entry, (DATA + 0x1000) | desc::AF | desc::NG | 3);
    bench.cpu.set_x(3, 5 << 48 | lower.root);
    bench.done(&[msr(reg::TTBR0_EL1, 3), ISB]);
    assert_eq!(first, Outcome::Done);
    assert!(matches!(bench.run_at(va), Outcome::Taken(taken) if taken.esr & 0xffff == 1));
}

/// Whether `tlbi` (with X1 = `operand`) makes a changed descriptor of `level` count for a load.
fn takes_effect(tlbi: u32, operand: u64, level: u32, attributes: u64) -> bool {
    let mut bench = Bench::new();
    let half = bench.translate();
    bench.set(reg::TTBR0_EL1, 7 << 48 | half.root);
    // At level 2 the new mapping is a table in place of the block.
    half.map(&mut bench, VA, DATA, level, desc::AF | attributes);
    let offset = if level == 3 { 0 } else { DATA & 0x1f_f000 };
    bench.memory.write(DATA, 1);
    bench.memory.write(DATA + 0x1000, 2);
    let before = load(&mut bench, VA + offset).unwrap();
    if level == 2 {
        half.put(&mut bench, VA, 2, 0);
    }
    half.map(&mut bench, VA + offset, DATA + 0x1000, 3, desc::AF | attributes);
    bench.cpu.set_x(1, operand);
    bench.done(&[DSB, tlbi, DSB, ISB]);
    (before, load(&mut bench, VA + offset).unwrap()) == (1, 2)
}

#[test]
fn every_tlb_invalidation_drops_a_changed_page() {
    let page = 7 << 48 | VA >> 12;
    // VMALLE1, VAE1, ASIDE1, VAAE1, VALE1, VAALE1: local and inner shareable.
    let results = [7, 3].map(|crm| {
        [(0, 0), (1, page), (2, 7 << 48), (3, page), (5, page), (7, page)]
            .map(|(op2, operand)| takes_effect(sys(0, 8, crm, op2), operand, 3, desc::NG))
    });
    assert_eq!(results, [[true; 6]; 2]);
}

#[test]
fn invalidation_by_address_drops_a_global_page() {
    assert!(takes_effect(sys(0, 8, 7, 1), 7 << 48 | VA >> 12, 3, 0));
}

#[test]
fn invalidation_by_address_drops_every_part_of_a_block() {
    // The address is another page of the block.
    assert!(takes_effect(sys(0, 8, 7, 1), 7 << 48 | (VA + 0x7000) >> 12, 2, desc::NG));
}

#[test]
fn invalidation_by_address_drops_every_part_of_a_16k_page() {
    let mut bench = Bench::new();
    let half = Half::new(&mut bench, 14, 25, false);
    bench.translate_with(half);
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    bench.memory.write(DATA + 0x3000, 1);
    bench.memory.write(DATA + 0x7000, 2);
    load(&mut bench, VA + 0x3000).unwrap();
    half.map(&mut bench, VA, DATA + 0x4000, 3, desc::AF);
    bench.cpu.set_x(1, VA >> 12);
    bench.done(&[DSB, sys(0, 8, 7, 1), DSB, ISB]);
    assert_eq!(load(&mut bench, VA + 0x3000).unwrap(), 2);
}

#[test]
fn withdrawn_write_permission_counts_after_invalidation() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    store(&mut bench, VA, 1).unwrap();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::RO);
    bench.cpu.set_x(1, VA >> 12);
    bench.done(&[DSB, sys(0, 8, 7, 1), DSB, ISB]);
    assert!(store(&mut bench, VA, 2).is_err());
}

#[test]
fn executed_page_that_was_remapped_is_fetched_anew() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::EL0 | desc::RO);
    // svc #1, svc #2
    bench.memory.write_code(DATA, &[0xd400_0021]);
    bench.memory.write_code(DATA + 0x1000, &[0xd400_0041]);
    bench.pstate = EL0T;
    let Outcome::Taken(first) = bench.run_at(VA) else { panic!() };
    half.map(&mut bench, VA, DATA + 0x1000, 3, desc::AF | desc::EL0 | desc::RO);
    bench.pstate = EL1H;
    bench.cpu.set_x(1, VA >> 12);
    bench.done(&[DSB, sys(0, 8, 7, 1), DSB, ISB]);
    bench.pstate = EL0T;
    let Outcome::Taken(second) = bench.run_at(VA) else { panic!() };
    assert_eq!((first.esr & 0xffff, second.esr & 0xffff), (1, 2));
}

#[test]
fn code_that_remaps_its_own_page_goes_on_in_the_new_one() {
    let mut bench = Bench::new();
    let half = bench.translate();
    let entry = half.map(&mut bench, VA, DATA, 3, desc::AF);
    // str x2, [x3]; dsb ish; tlbi vae1, x1; dsb ish; isb; then the pages differ: brk #1, hvc #0xd0
    let program = [0xf900_0062, DSB, sys(0, 8, 7, 1), DSB, ISB];
    bench.memory.write_code(DATA, &program);
    bench.memory.write_code(DATA + 20, &[0xd420_0020]);
    bench.memory.write_code(DATA + 0x1000, &program);
    bench.memory.write_code(DATA + 0x1000 + 20, &[0xd400_1a02]);
    // The old page's rest has been decoded.
    bench.run_at(VA + 20);
    bench.cpu.set_x(1, VA >> 12);
    bench.cpu.set_x(2, (DATA + 0x1000) | desc::AF | 3);
    bench.cpu.set_x(3, KERNEL + entry);
    assert_eq!(bench.run_at(VA), Outcome::Done);
}

#[test]
fn translation_turned_off_uses_physical_addresses() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, RAM, DATA, 3, desc::AF);
    bench.memory.write(DATA, 1);
    let on = load(&mut bench, RAM).unwrap();
    bench.set(reg::VBAR_EL1, VECTORS);
    bench.sctlr(0, 1);
    let off = load(&mut bench, RAM).unwrap();
    assert_eq!((on, off), (1, bench.memory.read(RAM)));
}

/// PAR_EL1 after AT with `op2` of `va`.
fn translate_address(bench: &mut Bench, op2: u32, va: u64) -> u64 {
    bench.cpu.set_x(1, va);
    bench.done(&[sys(0, 7, 8, op2), ISB]);
    bench.get(reg::PAR_EL1)
}

const PA_MASK: u64 = 0xffff_ffff_f000;

#[test]
fn address_translation_gives_the_physical_page() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA + 0x3000, 3, desc::AF | desc::EL0);
    let pars = [0, 1, 2, 3].map(|op2| translate_address(&mut bench, op2, VA + 0x123));
    assert_eq!(pars.map(|par| (par & 1, par & PA_MASK)), [(0, DATA + 0x3000); 4]);
}

#[test]
fn address_translation_of_el0_fails_on_a_kernel_page() {
    let mut bench = Bench::new();
    bench.translate();
    let par = translate_address(&mut bench, 2, KERNEL + DATA);
    // F, and a permission fault of level 2 in FST.
    assert_eq!((par & 1, par >> 1 & 0x3f), (1, 0x0e));
}

#[test]
fn address_translation_for_writing_fails_on_a_read_only_page() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::EL0 | desc::RO);
    let pars = [0, 1, 2, 3].map(|op2| translate_address(&mut bench, op2, VA));
    assert_eq!(pars.map(|par| (par & 1) * (par >> 1 & 0x3f)), [0, 0x0f, 0, 0x0f]);
}

#[test]
fn address_translation_of_an_unmapped_address_tells_the_level() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.put(&mut bench, VA, 3, 0);
    assert_eq!(translate_address(&mut bench, 0, VA) >> 1 & 0x3f, 0x07);
}

#[test]
fn address_translation_ignores_pan() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF | desc::EL0);
    bench.pstate = EL1H | 1 << 22;
    assert_eq!(translate_address(&mut bench, 0, VA) & 1, 0);
}

/// A bench with two pages at `VA` whose physical pages are not neighbours, filled with bytes that count up.
fn split_pages() -> Bench {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA + 0x5000, 3, desc::AF | desc::EL0);
    half.map(&mut bench, VA + 0x1000, DATA + 0x2000, 3, desc::AF | desc::EL0);
    for i in 0..8 {
        let bytes = u64::from_le_bytes(std::array::from_fn(|b| (8 * i + b + 1) as u8));
        bench.memory.write(if i < 4 { DATA + 0x5fe0 } else { DATA + 0x2000 - 0x20 } + 8 * i as u64, bytes);
    }
    bench
}

/// The byte at `va`, which lies within 32 bytes of the end of the first page.
fn byte(va: u64) -> u64 {
    va.wrapping_sub(VA + 0xfe0 - 1) & 0xff
}

#[test]
fn loads_across_pages_read_both() {
    let mut bench = split_pages();
    // ldrh, ldr w, ldr x
    for (word, bytes) in [(0x7940_0020, 2), (0xb940_0020, 4), (0xf940_0020, 8)] {
        let pc = bench.load(&[word]);
        for offset in 1..bytes {
            let va = VA + 0x1000 - offset;
            bench.cpu.set_x(1, va);
            assert_eq!(bench.run_at(pc), Outcome::Done);
            let expected = (0..bytes).fold(0, |value, i| value | byte(va + i) << (8 * i));
            assert_eq!(bench.cpu.x(0), expected, "{bytes} bytes at {va:#x}");
        }
    }
}

#[test]
fn pair_and_vector_loads_across_pages_read_both() {
    let mut bench = split_pages();
    let [ldp, ldr_q, ld1, ld2] =
        [0xa940_0820, 0x3dc0_0020, 0x4c40_7020, 0x4c40_8020].map(|word| bench.load(&[word]));
    for offset in 1..16 {
        let va = VA + 0x1000 - offset;
        bench.cpu.set_x(1, va);
        let bytes = |n: u64| (0..16).fold(0, |value, i| value | u128::from(byte(va + i * n)) << (8 * i));
        assert_eq!(bench.run_at(ldp), Outcome::Done);
        let pair = u128::from(bench.cpu.x(2)) << 64 | u128::from(bench.cpu.x(0));
        assert_eq!(bench.run_at(ldr_q), Outcome::Done);
        let q = bench.cpu.q(0);
        assert_eq!(bench.run_at(ld1), Outcome::Done);
        assert_eq!((pair, q, bench.cpu.q(0)), (bytes(1), bytes(1), bytes(1)), "{va:#x}");
        assert_eq!(bench.run_at(ld2), Outcome::Done);
        assert_eq!(bench.cpu.q(0), bytes(2), "{va:#x}");
    }
}

#[test]
fn stores_across_pages_write_both() {
    let mut bench = split_pages();
    let pc = bench.load(&[STR]);
    for offset in 1..8 {
        bench.cpu.set_x(0, 0x8877_6655_4433_2211);
        bench.cpu.set_x(1, VA + 0x1000 - offset);
        bench.memory.write(DATA + 0x5ff8, 0);
        bench.memory.write(DATA + 0x2000, 0);
        assert_eq!(bench.run_at(pc), Outcome::Done);
        let (first, second) = (bench.memory.read(DATA + 0x5ff8), bench.memory.read(DATA + 0x2000));
        let both = u128::from(second) << 64 | u128::from(first);
        assert_eq!(both, 0x8877_6655_4433_2211 << (64 - 8 * offset), "offset {offset}");
    }
}

#[test]
fn el0_runs_code_of_the_upper_half() {
    let mut bench = Bench::new();
    bench.translate();
    bench.pstate = EL0T;
    // adr x2, .
    let pc = bench.load(&[0x1000_0002]);
    assert_eq!(bench.run_at(pc), Outcome::Done);
    assert_eq!((bench.cpu.x(2), pc & USER), (pc, USER));
}
