//! Accesses that stage 2 refuses: exits to the caller, with the syndrome, address and transfer that Hypervisor.framework
//! reports.

use hvrun_soft::{Exit, Perms};

use crate::common::{Bench, CODE, DATA, EL1H, Memory, Outcome, desc, reg};
use crate::mmu::{LDR, STR, VA, load, sys};

/// An intermediate physical address without memory.
const DEVICE: u64 = 0x0900_0000;
/// ISS of a transfer (ISV).
const ISV: u64 = 1 << 24;
const SSE: u64 = 1 << 21;
const SF: u64 = 1 << 15;
const AR: u64 = 1 << 14;
const S1PTW: u64 = 1 << 7;
const WNR: u64 = 1 << 6;
/// DFSC: translation fault of level 3.
const UNMAPPED: u64 = 7;

const fn size(log2: u64) -> u64 {
    log2 << 22
}

const fn srt(register: u64) -> u64 {
    register << 16
}

fn data_abort(iss: u64) -> u64 {
    0x24 << 26 | 1 << 25 | iss
}

/// A bench with the page of `DEVICE` at `VA`.
fn device() -> Bench {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DEVICE, 3, desc::AF | desc::EL0 | desc::DEVICE);
    bench.cpu.set_x(1, VA + 0x20);
    bench
}

/// The ISS of `word`, an access through X1 to `DEVICE` + 0x20.
fn iss(word: u32) -> u64 {
    let mut bench = device();
    let pc = bench.load(&[word]);
    let exit = bench.run_at(pc);
    let Outcome::Exit(Exit::Exception { syndrome, far, ipa }) = exit else { panic!("{exit:x?}") };
    assert_eq!((syndrome >> 25, far, ipa), (0x24 << 1 | 1, VA + 0x20, DEVICE + 0x20), "{word:#x}");
    assert_eq!((bench.cpu.pc(), bench.cpu.x(1)), (pc, VA + 0x20), "{word:#x}");
    syndrome & 0x1ff_ffff
}

#[test]
fn zero_extending_loads_describe_their_transfer() {
    // ldrb w0; ldrh w5; ldr w6; ldr x7; ldr xzr
    let found = [0x3940_0020, 0x7940_0025, 0xb940_0026, 0xf940_0027, 0xf940_003f].map(iss);
    let expected = [
        ISV | size(0) | srt(0),
        ISV | size(1) | srt(5),
        ISV | size(2) | srt(6),
        ISV | size(3) | srt(7) | SF,
        ISV | size(3) | srt(31) | SF,
    ];
    assert_eq!(found, expected.map(|iss| iss | UNMAPPED));
}

#[test]
fn sign_extending_loads_describe_their_transfer() {
    // ldrsb x2; ldrsb w2; ldrsh x2; ldrsh w2; ldrsw x2
    let found = [0x3980_0022, 0x39c0_0022, 0x7980_0022, 0x79c0_0022, 0xb980_0022].map(iss);
    let expected = [size(0) | SF, size(0), size(1) | SF, size(1), size(2) | SF];
    assert_eq!(found, expected.map(|iss| ISV | SSE | srt(2) | iss | UNMAPPED));
}

#[test]
fn stores_describe_their_transfer() {
    // strb w3; strh w3; str w3; str x3; str wzr
    let found = [0x3900_0023, 0x7900_0023, 0xb900_0023, 0xf900_0023, 0xb900_003f].map(iss);
    let expected =
        [size(0) | srt(3), size(1) | srt(3), size(2) | srt(3), size(3) | srt(3) | SF, size(2) | srt(31)];
    assert_eq!(found, expected.map(|iss| ISV | WNR | iss | UNMAPPED));
}

#[test]
fn every_simple_addressing_mode_describes_its_transfer() {
    // ldur w3, [x1, #0]; ldr w3, [x1, xzr]; ldr w3, [x1, wzr, sxtw #2]; ldtr w3, [x1]
    let found = [0xb840_0023, 0xb87f_6823, 0xb87f_d823, 0xb840_0823].map(iss);
    assert_eq!(found, [ISV | size(2) | srt(3) | UNMAPPED; 4]);
}

#[test]
fn acquire_and_release_describe_their_transfer() {
    // ldarb w3; ldar w3; ldar x3; stlrh w3; stlr x3
    let found = [0x08df_fc23, 0x88df_fc23, 0xc8df_fc23, 0x489f_fc23, 0xc89f_fc23].map(iss);
    let expected = [size(0), size(2), size(3) | SF, size(1) | WNR, size(3) | SF | WNR];
    assert_eq!(found, expected.map(|iss| ISV | AR | srt(3) | iss | UNMAPPED));
}

#[test]
fn pairs_do_not_describe_their_transfer() {
    // ldp x0, x2; stp x0, x2; ldp q0, q1; ldpsw x0, x2; ldnp x0, x2
    let found = [0xa940_0820, 0xa900_0820, 0xad40_0420, 0x6940_0820, 0xa840_0820].map(iss);
    assert_eq!(found, [0, WNR, 0, 0, 0].map(|write| write | UNMAPPED));
}

#[test]
fn writeback_does_not_describe_its_transfer() {
    // ldr x0, [x1], #8; str w0, [x1], #8; ldrb w0, [x1, #0]!; str x0, [x1, #0]!
    let found = [0xf840_8420, 0xb800_8420, 0x3840_0c20, 0xf800_0c20].map(iss);
    assert_eq!(found, [0, WNR, 0, WNR].map(|write| write | UNMAPPED));
}

#[test]
fn vector_accesses_do_not_describe_their_transfer() {
    // ldr b0; ldr d0; ldr q0; str s0; str q0; ld1 {v0.16b}; st1 {v0.s}[0]; ld1r {v0.2d}; ldr d0, [x1], #0
    let words = [
        0x3d40_0020,
        0xfd40_0020,
        0x3dc0_0020,
        0xbd00_0020,
        0x3d80_0020,
        0x4c40_7020,
        0x0d00_8020,
        0x4d40_cc20,
        0xfc40_0420,
    ];
    assert_eq!(words.map(iss), [0, 0, 0, WNR, WNR, 0, WNR, 0, 0].map(|write| write | UNMAPPED));
}

#[test]
fn exclusives_do_not_describe_their_transfer() {
    // ldxr x0; ldaxr w0; ldxp x0, x2; stxr w2, x0
    assert_eq!(
        [0xc85f_7c20, 0x885f_fc20, 0xc87f_0820, 0xc802_7c20].map(iss),
        [0, 0, 0, WNR].map(|w| w | UNMAPPED)
    );
}

#[test]
fn atomics_are_reported_as_reads_without_a_transfer() {
    // ldadd x2, x0; swp w2, w0; cas x2, x0; casp x2, x3, x4, x5
    assert_eq!([0xf822_0020, 0xb822_8020, 0xc8a2_7c20, 0x4822_7c24].map(iss), [UNMAPPED; 4]);
}

#[test]
fn block_zeroing_does_not_describe_its_transfer() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DEVICE, 3, desc::AF);
    bench.cpu.set_x(1, VA + 0x40);
    let exit = bench.exited(&[sys(3, 7, 4, 1)]);
    assert_eq!(exit, (data_abort(WNR | UNMAPPED), VA + 0x40, DEVICE + 0x40));
}

#[test]
fn literal_load_describes_its_transfer() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    half.map(&mut bench, VA + 0x1000, DEVICE, 3, desc::AF | desc::DEVICE);
    // ldr w4, .+0x1000
    bench.memory.write_code(DATA + 0x10, &[0x1800_8004]);
    let exit = bench.run_at(VA + 0x10);
    let syndrome = data_abort(ISV | size(2) | srt(4) | UNMAPPED);
    assert_eq!(exit, Outcome::Exit(Exit::Exception { syndrome, far: VA + 0x1010, ipa: DEVICE + 0x10 }));
}

#[test]
fn access_with_translation_off_exits_with_its_address() {
    let mut bench = Bench::new();
    bench.cpu.set_x(1, DEVICE + 4);
    // ldr w0, [x1]
    assert_eq!(bench.exited(&[0xb940_0020]), (data_abort(ISV | size(2) | UNMAPPED), DEVICE + 4, DEVICE + 4));
}

#[test]
fn exit_from_the_middle_of_a_program_stops_at_the_access() {
    let mut bench = device();
    // movz x2, #1; ldr x0, [x1]; movz x2, #2
    let pc = bench.load(&[0xd280_0022, LDR, 0xd280_0042]);
    bench.run_at(pc);
    assert_eq!((bench.cpu.pc(), bench.cpu.x(2)), (pc + 4, 1));
}

#[test]
fn stage_1_fault_comes_before_the_exit() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DEVICE, 3, desc::AF | desc::RO | desc::DEVICE);
    bench.cpu.set_x(1, VA);
    assert_eq!(bench.taken(&[STR]).esr, 0x25 << 26 | 1 << 25 | WNR | 0xf);
}

#[test]
fn unaligned_device_access_faults_in_the_guest_instead_of_exiting() {
    let mut bench = device();
    assert_eq!(load(&mut bench, VA + 1).unwrap_err().esr, 0x25 << 26 | 1 << 25 | 0x21);
}

#[test]
fn access_half_outside_memory_exits_without_a_transfer() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DATA, 3, desc::AF);
    half.map(&mut bench, VA + 0x1000, DEVICE, 3, desc::AF);
    bench.cpu.set_x(1, VA + 0xffc);
    assert_eq!(bench.exited(&[LDR]), (data_abort(UNMAPPED), VA + 0x1000, DEVICE));
}

#[test]
fn fetch_outside_memory_exits_as_an_instruction_abort() {
    let mut bench = Bench::new();
    let exit = bench.run_at(DEVICE + 0x24);
    let syndrome = 0x20 << 26 | 1 << 25 | UNMAPPED;
    assert_eq!(exit, Outcome::Exit(Exit::Exception { syndrome, far: DEVICE + 0x24, ipa: DEVICE + 0x24 }));
}

#[test]
fn fetch_outside_memory_tells_virtual_and_intermediate_address() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.map(&mut bench, VA, DEVICE, 3, desc::AF);
    let exit = bench.run_at(VA + 0x24);
    let syndrome = 0x20 << 26 | 1 << 25 | UNMAPPED;
    assert_eq!(exit, Outcome::Exit(Exit::Exception { syndrome, far: VA + 0x24, ipa: DEVICE + 0x24 }));
    assert_eq!((bench.cpu.pc(), bench.cpu.cpsr()), (VA + 0x24, EL1H));
}

#[test]
fn walk_outside_memory_exits_with_s1ptw() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.put(&mut bench, VA, 2, DEVICE | 3);
    bench.cpu.set_x(1, VA + 0x3008);
    assert_eq!(bench.exited(&[LDR]), (data_abort(S1PTW | UNMAPPED), VA + 0x3008, DEVICE + 0x18));
}

#[test]
fn walk_for_a_fetch_outside_memory_exits_with_s1ptw() {
    let mut bench = Bench::new();
    let half = bench.translate();
    half.put(&mut bench, VA, 2, DEVICE | 3);
    let exit = bench.run_at(VA + 0x3008);
    let syndrome = 0x20 << 26 | 1 << 25 | S1PTW | UNMAPPED;
    assert_eq!(exit, Outcome::Exit(Exit::Exception { syndrome, far: VA + 0x3008, ipa: DEVICE + 0x18 }));
}

/// A bench with a page of memory at `DEVICE`, mapped with `perms` and at `VA`.
fn restricted(perms: Perms) -> (Bench, Memory) {
    let mut bench = Bench::new();
    let half = bench.translate();
    let memory = Memory::new(DEVICE, 0x1000);
    memory.write(DEVICE + 8, 5);
    // SAFETY: the caller drops the memory after the bench.
    unsafe { bench.machine.map(DEVICE, memory.host(DEVICE), 0x1000, perms) }.unwrap();
    half.map(&mut bench, VA, DEVICE, 3, desc::AF);
    (bench, memory)
}

#[test]
fn read_only_memory_is_read_and_stores_exit_with_a_permission_fault() {
    let (mut bench, memory) = restricted(Perms { read: true, write: false, execute: true });
    let read = load(&mut bench, VA + 8).unwrap();
    bench.cpu.set_x(1, VA + 8);
    let exit = bench.exited(&[STR]);
    assert_eq!((read, exit), (5, (data_abort(ISV | size(3) | SF | WNR | 0xf), VA + 8, DEVICE + 8)));
    assert_eq!(memory.read(DEVICE + 8), 5);
}

#[test]
fn memory_without_read_permission_exits_on_loads() {
    let (mut bench, _memory) = restricted(Perms { read: false, write: true, execute: false });
    bench.cpu.set_x(1, VA + 8);
    let exit = bench.exited(&[LDR]);
    assert_eq!(exit, (data_abort(ISV | size(3) | SF | 0xf), VA + 8, DEVICE + 8));
}

#[test]
fn memory_without_execute_permission_exits_on_fetches() {
    let (mut bench, _memory) = restricted(Perms { read: true, write: true, execute: false });
    let exit = bench.run_at(VA + 8);
    let syndrome = 0x20 << 26 | 1 << 25 | 0xf;
    assert_eq!(exit, Outcome::Exit(Exit::Exception { syndrome, far: VA + 8, ipa: DEVICE + 8 }));
}

#[test]
fn cache_maintenance_of_device_memory_does_nothing() {
    device().done(&[sys(3, 7, 10, 1), sys(3, 7, 11, 1), sys(3, 7, 14, 1)]);
}

#[test]
fn memory_that_is_unmapped_exits_on_the_next_access() {
    let (mut bench, _memory) = restricted(Perms::ALL);
    load(&mut bench, VA + 8).unwrap();
    bench.machine.unmap(DEVICE, 0x1000).unwrap();
    bench.cpu.set_x(1, VA + 8);
    assert_eq!(bench.exited(&[LDR]).2, DEVICE + 8);
}

#[test]
fn code_of_memory_that_is_unmapped_is_not_executed() {
    let (mut bench, memory) = restricted(Perms::ALL);
    // hvc #0xd0
    memory.write_code(DEVICE, &[0xd400_1a02]);
    let before = bench.run_at(VA);
    bench.machine.unmap(DEVICE, 0x1000).unwrap();
    let after = bench.run_at(VA);
    assert_eq!(before, Outcome::Done);
    assert!(matches!(after, Outcome::Exit(Exit::Exception { ipa: DEVICE, .. })), "{after:x?}");
}

#[test]
fn memory_mapped_where_a_device_was_is_used() {
    let mut bench = device();
    bench.cpu.set_x(1, VA);
    bench.exited(&[LDR]);
    let memory = Memory::new(DEVICE, 0x1000);
    memory.write(DEVICE, 6);
    // SAFETY: the memory is unmapped before it is dropped.
    unsafe { bench.machine.map(DEVICE, memory.host(DEVICE), 0x1000, Perms::ALL) }.unwrap();
    let read = load(&mut bench, VA).unwrap();
    bench.machine.unmap(DEVICE, 0x1000).unwrap();
    assert_eq!(read, 6);
}

#[test]
fn exit_leaves_the_exception_registers_alone() {
    let mut bench = device();
    let registers = [reg::ESR_EL1, reg::FAR_EL1, reg::ELR_EL1, reg::SPSR_EL1];
    registers.iter().for_each(|&r| bench.set(r, 0x1230));
    bench.exited(&[LDR]);
    assert_eq!(registers.map(|r| bench.get(r)), [0x1230; 4]);
}

#[test]
fn overlapping_unaligned_and_unknown_ranges_are_refused() {
    use hvrun_soft::MapError;
    let bench = Bench::new();
    let memory = Memory::new(DEVICE, 0x2000);
    let map = |ipa, len| {
        // SAFETY: every one of these is refused.
        unsafe { bench.machine.map(ipa, memory.host(DEVICE), len, Perms::ALL) }
    };
    assert_eq!(
        [map(CODE, 0x1000), map(DEVICE, 0x800), map(1 << 40, 0x1000), bench.machine.unmap(DEVICE, 0x1000)],
        [
            Err(MapError::Overlap { ipa: CODE, len: 0x1000 }),
            Err(MapError::Unaligned { ipa: DEVICE, len: 0x800 }),
            Err(MapError::OutOfRange { ipa: 1 << 40, len: 0x1000, bits: 40 }),
            Err(MapError::NotMapped { ipa: DEVICE, len: 0x1000 }),
        ]
    );
}
