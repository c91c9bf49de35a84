//! Tests of `mmio_decode`: instruction words as an assembler makes them.

use super::*;

/// Xn = 0x1000 * (n + 1), SP = 0x8_0000, Qn = n repeated, PC = 0x4_0000.
struct Numbered;

impl Registers for Numbered {
    fn x(&self, n: u8) -> u64 {
        if n == 31 { 0 } else { 0x1000 * (u64::from(n) + 1) }
    }
    fn sp(&self) -> u64 {
        0x8_0000
    }
    fn q(&self, n: u8) -> u128 {
        u128::from_le_bytes([n; 16])
    }
    fn pc(&self) -> u64 {
        0x4_0000
    }
}

fn plan(word: u32) -> Plan {
    match decode(word, &Numbered) {
        Ok(plan) => plan,
        other => panic!("{word:#010x} decodes to {other:?}"),
    }
}

fn elements(word: u32) -> Vec<Element> {
    plan(word).elements().copied().collect()
}

fn load(va: u64, size: u8, n: u8, signed: bool, wide: bool) -> Element {
    Element { va, size, operation: Operation::Load(Destination::X { n, signed, wide }) }
}

fn load_q(va: u64, size: u8, n: u8) -> Element {
    Element { va, size, operation: Operation::Load(Destination::Q(n)) }
}

fn store(va: u64, size: u8, value: u128) -> Element {
    Element { va, size, operation: Operation::Store(value) }
}

fn access(size: u8, sign_extend: bool, sixty_four: bool, rt: u8) -> DataAccess {
    DataAccess { size, sign_extend, rt, sixty_four, acquire_release: false }
}

/// What a syndrome-described load of `data` puts into its register.
fn loaded(access: DataAccess, data: u64) -> u128 {
    let mut progress = Progress::new(Plan::from_syndrome(access, false, 0x1000, 0));
    progress.complete(data).unwrap().1
}

#[test]
fn a_byte_is_zero_extended() {
    assert_eq!(loaded(access(1, false, true, 3), 0xffff_ff80), 0x80);
}

#[test]
fn a_signed_byte_is_extended_to_64_bits() {
    assert_eq!(loaded(access(1, true, true, 3), 0x80), 0xffff_ffff_ffff_ff80);
}

#[test]
fn a_signed_byte_to_w_is_truncated_to_32_bits() {
    assert_eq!(loaded(access(1, true, false, 3), 0x80), 0xffff_ff80);
}

#[test]
fn a_signed_halfword_is_extended() {
    assert_eq!(loaded(access(2, true, true, 3), 0x8001), 0xffff_ffff_ffff_8001);
    assert_eq!(loaded(access(2, true, true, 3), 0x7fff), 0x7fff);
}

#[test]
fn a_signed_word_is_extended_to_64_bits() {
    assert_eq!(loaded(access(4, true, true, 3), 0x8000_0000), 0xffff_ffff_8000_0000);
}

#[test]
fn a_doubleword_is_taken_whole() {
    assert_eq!(loaded(access(8, false, true, 3), u64::MAX), u128::from(u64::MAX));
}

#[test]
fn a_syndrome_store_is_truncated_to_its_width() {
    let progress = Progress::new(Plan::from_syndrome(access(2, false, true, 3), true, 0x1000, 0x1234_5678));
    assert_eq!(progress.next(), Some(Chunk { va: 0x1000, size: 2, write: Some(0x5678) }));
}

#[test]
fn ldr_x_unsigned_offset() {
    // ldr x1, [x2, #16]
    assert_eq!(elements(0xf940_0841), [load(0x3010, 8, 1, false, true)]);
}

#[test]
fn ldr_w_unsigned_offset_is_narrow() {
    // ldr w1, [x2, #4]
    assert_eq!(elements(0xb940_0441), [load(0x3004, 4, 1, false, false)]);
}

#[test]
fn str_w_post_index_writes_the_base_back() {
    // str w1, [x2], #4
    let plan = plan(0xb800_4441);
    assert_eq!(plan.elements().copied().collect::<Vec<_>>(), [store(0x3000, 4, 0x2000)]);
    assert_eq!(plan.writeback, Some((2, 0x3004)));
}

#[test]
fn ldrb_pre_index_accesses_the_moved_base() {
    // ldrb w1, [x2, #-1]!
    let plan = plan(0x385f_fc41);
    assert_eq!(plan.elements().copied().collect::<Vec<_>>(), [load(0x2fff, 1, 1, false, false)]);
    assert_eq!(plan.writeback, Some((2, 0x2fff)));
}

#[test]
fn ldur_has_no_writeback() {
    // ldur x1, [x2, #-8]
    let plan = plan(0xf85f_8041);
    assert_eq!(plan.elements().copied().collect::<Vec<_>>(), [load(0x2ff8, 8, 1, false, true)]);
    assert_eq!(plan.writeback, None);
}

#[test]
fn sturh_stores_a_halfword() {
    // sturh w1, [x2, #1]
    assert_eq!(elements(0x7800_1041), [store(0x3001, 2, 0x2000)]);
}

#[test]
fn ldtr_and_sttr_are_like_unscaled() {
    // ldtr x1, [x2, #8] ; sttr x1, [x2, #8]
    assert_eq!(elements(0xf840_8841), [load(0x3008, 8, 1, false, true)]);
    assert_eq!(elements(0xf800_8841), [store(0x3008, 8, 0x2000)]);
}

#[test]
fn ldrsb_knows_both_widths() {
    // ldrsb x1, [x2] ; ldrsb w1, [x2]
    assert_eq!(elements(0x3980_0041), [load(0x3000, 1, 1, true, true)]);
    assert_eq!(elements(0x39c0_0041), [load(0x3000, 1, 1, true, false)]);
}

#[test]
fn ldrsw_extends_to_64_bits() {
    // ldrsw x1, [x2, #8]
    assert_eq!(elements(0xb980_0841), [load(0x3008, 4, 1, true, true)]);
}

#[test]
fn base_31_is_the_stack_pointer() {
    // ldr x1, [sp, #8]
    assert_eq!(elements(0xf940_07e1), [load(0x8_0008, 8, 1, false, true)]);
}

#[test]
fn storing_register_31_stores_zero() {
    // str xzr, [x2]
    assert_eq!(elements(0xf900_005f), [store(0x3000, 8, 0)]);
}

#[test]
fn register_offset_is_shifted_by_the_size() {
    // ldr x1, [x2, x3, lsl #3]
    assert_eq!(elements(0xf863_7841), [load(0x3000 + (0x4000 << 3), 8, 1, false, true)]);
}

#[test]
fn register_offset_unshifted() {
    // strb w1, [x2, x3]
    assert_eq!(elements(0x3823_6841), [store(0x7000, 1, 0x2000)]);
}

#[test]
fn register_offset_sign_extends_a_word() {
    struct Negative;
    impl Registers for Negative {
        fn x(&self, n: u8) -> u64 {
            if n == 3 { 0xffff_fffc } else { 0x1000 }
        }
        fn sp(&self) -> u64 {
            0
        }
        fn q(&self, _: u8) -> u128 {
            0
        }
        fn pc(&self) -> u64 {
            0
        }
    }
    // ldr w1, [x2, w3, sxtw]
    let Ok(plan) = decode(0xb863_c841, &Negative) else { panic!("not an access") };
    assert_eq!(plan.elements().next(), Some(&load(0xffc, 4, 1, false, false)));
    // ldr w1, [x2, w3, uxtw]
    let Ok(plan) = decode(0xb863_4841, &Negative) else { panic!("not an access") };
    assert_eq!(plan.elements().next(), Some(&load(0x1_0000_0ffc, 4, 1, false, false)));
}

#[test]
fn ldp_x_loads_two_registers() {
    // ldp x0, x1, [x2, #-16]
    assert_eq!(elements(0xa97f_0440), [load(0x2ff0, 8, 0, false, true), load(0x2ff8, 8, 1, false, true)]);
}

#[test]
fn stp_w_post_index() {
    // stp w0, w1, [x2], #8
    let plan = plan(0x2881_0440);
    assert_eq!(
        plan.elements().copied().collect::<Vec<_>>(),
        [store(0x3000, 4, 0x1000), store(0x3004, 4, 0x2000)]
    );
    assert_eq!(plan.writeback, Some((2, 0x3008)));
}

#[test]
fn stp_x_pre_index() {
    // stp x29, x30, [sp, #-32]!
    let plan = plan(0xa9be_7bfd);
    assert_eq!(
        plan.elements().copied().collect::<Vec<_>>(),
        [store(0x7_ffe0, 8, 0x1e000), store(0x7_ffe8, 8, 0x1f000)]
    );
    assert_eq!(plan.writeback, Some((31, 0x7_ffe0)));
}

#[test]
fn ldpsw_sign_extends_both() {
    // ldpsw x0, x1, [x2]
    assert_eq!(elements(0x6940_0440), [load(0x3000, 4, 0, true, true), load(0x3004, 4, 1, true, true)]);
}

#[test]
fn ldnp_has_no_writeback() {
    // ldnp x0, x1, [x2, #16]
    let plan = plan(0xa841_0440);
    assert_eq!(plan.elements().count(), 2);
    assert_eq!(plan.writeback, None);
}

#[test]
fn ldp_q_is_two_times_16_bytes() {
    // ldp q0, q1, [x2, #32]
    assert_eq!(elements(0xad41_0440), [load_q(0x3020, 16, 0), load_q(0x3030, 16, 1)]);
}

#[test]
fn stp_d_stores_lower_halves() {
    // stp d1, d2, [x3]
    let bytes = |n: u8| u128::from_le_bytes([n; 16]);
    assert_eq!(elements(0x6d00_0861), [store(0x4000, 8, bytes(1)), store(0x4008, 8, bytes(2))]);
}

#[test]
fn simd_loads_of_every_width() {
    // ldr b1, h1, s1, d1, q1 from [x2]
    for (word, size) in
        [(0x3d40_0041, 1), (0x7d40_0041, 2), (0xbd40_0041, 4), (0xfd40_0041, 8), (0x3dc0_0041, 16)]
    {
        assert_eq!(elements(word), [load_q(0x3000, size, 1)], "{word:#x}");
    }
}

#[test]
fn str_q_post_index() {
    // str q1, [x2], #16
    let plan = plan(0x3c81_0441);
    assert_eq!(plan.elements().next(), Some(&store(0x3000, 16, u128::from_le_bytes([1; 16]))));
    assert_eq!(plan.writeback, Some((2, 0x3010)));
}

#[test]
fn ldr_literal_is_relative_to_the_pc() {
    // ldr x1, .-8 ; ldrsw x1, .+4 ; ldr q1, .+16
    assert_eq!(elements(0x58ff_ffc1), [load(0x3_fff8, 8, 1, false, true)]);
    assert_eq!(elements(0x9800_0021), [load(0x4_0004, 4, 1, true, true)]);
    assert_eq!(elements(0x9c00_0081), [load_q(0x4_0010, 16, 1)]);
}

#[test]
fn dc_zva_clears_the_whole_block() {
    // dc zva, x2
    let elements = elements(0xd50b_7422);
    assert_eq!(elements.len(), 8);
    assert_eq!((elements[0], elements[7]), (store(0x3000, 8, 0), store(0x3038, 8, 0)));
}

#[test]
fn ld1_and_st1_of_four_registers() {
    // ld1 {v0.16b-v3.16b}, [x2], #64 ; st1 {v30.8b, v31.8b}, [x2]
    let ld1 = plan(0x4cdf_2040);
    assert_eq!(ld1.elements().last(), Some(&load_q(0x3030, 16, 3)));
    assert_eq!(ld1.writeback, Some((2, 0x3040)));
    let st1 = elements(0x0c00_a05e);
    assert_eq!(st1.len(), 2);
    assert_eq!(st1[1], store(0x3008, 8, u128::from_le_bytes([31; 16])));
}

#[test]
fn ldar_and_stlr_are_plain_accesses() {
    // ldar w1, [x2] ; stlr x1, [x2] ; ldarb w1, [x2]
    assert_eq!(elements(0x88df_fc41), [load(0x3000, 4, 1, false, false)]);
    assert_eq!(elements(0xc89f_fc41), [store(0x3000, 8, 0x2000)]);
    assert_eq!(elements(0x08df_fc41), [load(0x3000, 1, 1, false, false)]);
}

#[test]
fn ldapr_and_ldapur_are_plain_accesses() {
    // ldapr x1, [x2] ; ldapur w1, [x2, #4]
    assert_eq!(elements(0xf8bf_c041), [load(0x3000, 8, 1, false, true)]);
    assert_eq!(elements(0x9940_4041), [load(0x3004, 4, 1, false, false)]);
}

#[test]
fn exclusives_and_atomics_are_no_device_accesses() {
    for (name, word) in [
        ("ldxr w1, [x2]", 0x885f_7c41),
        ("stxr w3, w1, [x2]", 0x8803_7c41),
        ("ldaxr x1, [x2]", 0xc85f_fc41),
        ("stlxr w3, x1, [x2]", 0xc803_fc41),
        ("ldxp x1, x3, [x2]", 0xc87f_0c41),
        ("cas x1, x3, [x2]", 0xc8a1_7c43),
        ("casp x0, x1, x4, x5, [x2]", 0x4820_7c44),
        ("ldadd w1, w3, [x2]", 0xb821_0043),
        ("swp x1, x3, [x2]", 0xf821_8043),
    ] {
        assert_eq!(decode(word, &Numbered), Err(Refused::Exclusive), "{name}");
    }
}

#[test]
fn other_instructions_are_unknown() {
    for (name, word) in [
        ("nop", 0xd503_201f),
        ("add x0, x1, x2", 0x8b02_0020),
        ("prfm pldl1keep, [x2]", 0xf980_0040),
        ("udf #0", 0x0000_0000),
        ("all ones", 0xffff_ffff),
        ("ld2 {v0.16b, v1.16b}, [x2]", 0x4c40_8040),
    ] {
        assert_eq!(decode(word, &Numbered), Err(Refused::Unknown), "{name}");
    }
}

#[test]
fn no_word_makes_the_decoder_panic() {
    let mut word = 1u32;
    for _ in 0..200_000 {
        // A full-period generator is enough to reach every branch.
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if let Ok(plan) = decode(word, &Numbered) {
            let mut progress = Progress::new(plan);
            while progress.next().is_some() {
                progress.complete(u64::MAX);
            }
        }
    }
}

#[test]
fn sixteen_bytes_are_two_transfers() {
    // ldr q1, [x2]
    let mut progress = Progress::new(plan(0x3dc0_0041));
    assert_eq!(progress.next(), Some(Chunk { va: 0x3000, size: 8, write: None }));
    assert_eq!(progress.complete(0x1111), None);
    assert_eq!(progress.next(), Some(Chunk { va: 0x3008, size: 8, write: None }));
    assert_eq!(progress.complete(0x2222), Some((Destination::Q(1), 0x2222 << 64 | 0x1111)));
    assert_eq!(progress.next(), None);
}

#[test]
fn a_16_byte_store_is_split_low_half_first() {
    // str q1, [x2], #16 with q1 = 01 repeated
    let mut progress = Progress::new(plan(0x3c81_0441));
    assert_eq!(progress.next().unwrap().write, Some(0x0101_0101_0101_0101));
    progress.complete(0);
    assert_eq!(progress.next().unwrap().va, 0x3008);
}

#[test]
fn a_transfer_never_crosses_a_page() {
    let plan = Plan::from_syndrome(access(8, false, true, 1), false, 0x1ffd, 0);
    let mut progress = Progress::new(plan);
    let mut chunks = Vec::new();
    let mut result = None;
    while let Some(chunk) = progress.next() {
        chunks.push((chunk.va, chunk.size));
        result = progress.complete(0x1122_3344_5566_7788 >> (8 * (chunk.va - 0x1ffd)));
    }
    assert_eq!(chunks, [(0x1ffd, 2), (0x1fff, 1), (0x2000, 4), (0x2004, 1)]);
    assert_eq!(result.unwrap().1, 0x1122_3344_5566_7788);
}

#[test]
fn a_plan_knows_which_bytes_it_touches() {
    // ldp x0, x1, [x2, #-16]
    let plan = plan(0xa97f_0440);
    assert!(plan.touches(0x2ff0) && plan.touches(0x2fff));
    assert!(!plan.touches(0x2fef) && !plan.touches(0x3000));
    assert!(plan.touches(0xab00_0000_0000_2ff8));
}
