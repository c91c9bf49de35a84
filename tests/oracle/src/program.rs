//! The guest half of the oracle as A64 machine code, with its assembly beside it. No case, no record format logic of the host.
//!
//! The program has no main loop: it is one signal handler. The tested instruction sits in a slot, surrounded by `BRK`, so
//! that executing it always ends in a signal. The handler copies the interrupted context to the current record, takes the
//! next record, puts its instruction into the slot and its registers into the context, and returns from the signal.
//! After the last record it writes all records to standard output and exits.

/// Byte offset of the signal handler in [`PROGRAM`].
pub(crate) const HANDLER_OFFSET: u64 = 0x60;

/// The program, entered at its first word. It finds its addresses in the globals page (see [`crate::image`]).
///
/// The context that the handler edits is the kernel's `struct ucontext` of arm64 (fault address at 176, X0 to X30, SP, PC,
/// PSTATE, then from 464 the `fpsimd_context`, and behind it at 992 a terminator instead of SVE's record).
#[rustfmt::skip]
pub(crate) const PROGRAM: &[u32] = &[
    // entry:
    0xd2a1_0009, // mov x9, #0x8000000
    0xd2a1_0000, // mov x0, #0x8000000
    0x9101_0000, // add x0, x0, #0x40
    0xd280_0001, // mov x1, #0x0
    0xd280_1088, // mov x8, #0x84
    0xd400_0001, // svc #0x0
    0xd280_008a, // mov x10, #0x4
    0x9400_000a, // bl act
    0xd280_00aa, // mov x10, #0x5
    0x9400_0008, // bl act
    0xd280_00ea, // mov x10, #0x7
    0x9400_0006, // bl act
    0xd280_010a, // mov x10, #0x8
    0x9400_0004, // bl act
    0xd280_016a, // mov x10, #0xb
    0x9400_0002, // bl act
    0xd420_0000, // brk #0x0
    // act:
    0xaa0a_03e0, // mov x0, x10
    0x9101_8121, // add x1, x9, #0x60
    0xd280_0002, // mov x2, #0x0
    0xd280_0103, // mov x3, #0x8
    0xd280_10c8, // mov x8, #0x86
    0xd400_0001, // svc #0x0
    0xd65f_03c0, // ret
    // handler:
    0xd2a1_0009, // mov x9, #0x8000000
    0xf940_0123, // ldr x3, [x9]
    0xb900_0460, // str w0, [x3, #4]
    0x9102_c044, // add x4, x2, #0xb0
    0x9100_4065, // add x5, x3, #0x10
    0xd280_2306, // mov x6, #0x118
    0x9400_002e, // bl copy
    0x9107_6044, // add x4, x2, #0x1d8
    0x9104_a065, // add x5, x3, #0x128
    0xd280_4106, // mov x6, #0x208
    0x9400_002a, // bl copy
    0xf940_046b, // ldr x11, [x3, #8]
    0xf940_0d24, // ldr x4, [x9, #24]
    0x910c_c065, // add x5, x3, #0x330
    0xaa0b_03e6, // mov x6, x11
    0x9400_0025, // bl copy
    0x910c_c063, // add x3, x3, #0x330
    0x8b0b_0063, // add x3, x3, x11
    0xf900_0123, // str x3, [x9]
    0xf940_052a, // ldr x10, [x9, #8]
    0xeb0a_007f, // cmp x3, x10
    0x5400_04a0, // b.eq finish
    0x9100_4064, // add x4, x3, #0x10
    0x9102_c045, // add x5, x2, #0xb0
    0xd280_2306, // mov x6, #0x118
    0x9400_001b, // bl copy
    0x9104_a064, // add x4, x3, #0x128
    0x9107_6045, // add x5, x2, #0x1d8
    0xd280_4106, // mov x6, #0x208
    0x9400_0017, // bl copy
    0xf901_f05f, // str xzr, [x2, #992]
    0xf940_046b, // ldr x11, [x3, #8]
    0xb400_014b, // cbz x11, slot
    0xf940_0d25, // ldr x5, [x9, #24]
    0x9140_04a6, // add x6, x5, #0x1, lsl #12
    // zero:
    0xa881_7cbf, // stp xzr, xzr, [x5], #16
    0xeb06_00bf, // cmp x5, x6
    0x54ff_ffc1, // b.ne zero
    0x910c_c064, // add x4, x3, #0x330
    0xf940_0d25, // ldr x5, [x9, #24]
    0xaa0b_03e6, // mov x6, x11
    0x9400_000b, // bl copy
    // slot:
    0xb940_0066, // ldr w6, [x3]
    0xf940_1125, // ldr x5, [x9, #32]
    0xb900_00a6, // str w6, [x5]
    0xd50b_7b25, // dc cvau, x5
    0xd503_3b9f, // dsb ish
    0xd50b_7525, // ic ivau, x5
    0xd503_3b9f, // dsb ish
    0xd503_3fdf, // isb
    0xd280_1168, // mov x8, #0x8b
    0xd400_0001, // svc #0x0
    // copy:
    0xb400_00a6, // cbz x6, done
    0xf840_8487, // ldr x7, [x4], #8
    0xf800_84a7, // str x7, [x5], #8
    0xd100_20c6, // sub x6, x6, #0x8
    0x17ff_fffc, // b copy
    // done:
    0xd65f_03c0, // ret
    // finish:
    0xf940_0921, // ldr x1, [x9, #16]
    0xcb01_0062, // sub x2, x3, x1
    // more:
    0xd280_0020, // mov x0, #0x1
    0xd280_0808, // mov x8, #0x40
    0xd400_0001, // svc #0x0
    0xf100_001f, // cmp x0, #0x0
    0x5400_00cd, // b.le fail
    0x8b00_0021, // add x1, x1, x0
    0xeb00_0042, // subs x2, x2, x0
    0x54ff_ff21, // b.ne more
    0xd280_0000, // mov x0, #0x0
    0x1400_0002, // b exit
    // fail:
    0xd280_0020, // mov x0, #0x1
    // exit:
    0xd280_0bc8, // mov x8, #0x5e
    0xd400_0001, // svc #0x0
];
