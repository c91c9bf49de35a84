//! The static AArch64 ELF file that carries the program and the records of one run. It runs nothing.

use crate::program::{HANDLER_OFFSET, PROGRAM};
use crate::{MEM_BASE, MEM_SIZE, PC};

/// Where [`PROGRAM`] is loaded.
const PROGRAM_BASE: u64 = 0x0040_0000;
/// The globals page; the program knows this address (`mov x9, #0x8000000`).
const GLOBALS: u64 = 0x0800_0000;
/// Size of the globals, which the records follow.
const GLOBALS_SIZE: u64 = 0x1000;
/// The stack that the signal handler runs on: the tested instruction may have any SP.
const ALT_STACK: u64 = 0x0700_0000;
/// Its size; an arm64 signal frame takes about 5 KiB.
const ALT_STACK_SIZE: u64 = 0x1_0000;
const PAGE: u64 = 0x1000;
/// `BRK #0`, which fills the page around the tested instruction.
const BRK: u32 = 0xd420_0000;

/// `SA_SIGINFO | SA_ONSTACK` of Linux.
const SA_FLAGS: u64 = 0x4 | 0x0800_0000;

/// PT_LOAD and its p_flags (ELF-64, System V gABI chapter 5).
const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

struct Segment {
    address: u64,
    flags: u32,
    bytes: Vec<u8>,
}

fn words(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn globals(records: u64) -> Vec<u8> {
    let start = GLOBALS + GLOBALS_SIZE;
    let mut page = vec![0; GLOBALS_SIZE as usize];
    // Offsets as in the program: current, end, start, MEM_BASE, slot; stack_t at 64; struct sigaction at 96.
    page[0..40].copy_from_slice(&words(&[start, start + records, start, MEM_BASE, PC]));
    page[64..88].copy_from_slice(&words(&[ALT_STACK, 0, ALT_STACK_SIZE]));
    page[96..128].copy_from_slice(&words(&[PROGRAM_BASE + HANDLER_OFFSET, SA_FLAGS, 0, u64::MAX]));
    page
}

/// Builds the ELF file for `records`, whose first one the program uses only as a place to store its own start context.
pub(crate) fn build(records: &[u8]) -> Vec<u8> {
    let mut data = globals(records.len() as u64);
    data.extend_from_slice(records);
    let segments = [
        Segment {
            address: PROGRAM_BASE,
            flags: PF_R | PF_X,
            bytes: PROGRAM.iter().flat_map(|word| word.to_le_bytes()).collect(),
        },
        Segment { address: ALT_STACK, flags: PF_R | PF_W, bytes: vec![0; ALT_STACK_SIZE as usize] },
        Segment { address: GLOBALS, flags: PF_R | PF_W, bytes: data },
        Segment { address: MEM_BASE, flags: PF_R | PF_W, bytes: vec![0; MEM_SIZE] },
        Segment {
            address: PC & !(PAGE - 1),
            flags: PF_R | PF_W | PF_X,
            bytes: BRK.to_le_bytes().repeat(PAGE as usize / 4),
        },
    ];

    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // e_type ET_EXEC, e_machine EM_AARCH64, e_version.
    for (half, version) in [(2u16, None), (183, Some(1u32))] {
        file.extend_from_slice(&half.to_le_bytes());
        file.extend(version.into_iter().flat_map(u32::to_le_bytes));
    }
    // e_entry, e_phoff, e_shoff, then e_flags and e_ehsize, e_phentsize, e_phnum and no sections.
    file.extend_from_slice(&words(&[PROGRAM_BASE, 64, 0]));
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64, 56, segments.len() as u16, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let mut offset = PAGE;
    for segment in &segments {
        let size = segment.bytes.len() as u64;
        file.extend_from_slice(&PT_LOAD.to_le_bytes());
        file.extend_from_slice(&segment.flags.to_le_bytes());
        file.extend_from_slice(&words(&[offset, segment.address, segment.address, size, size, PAGE]));
        offset += size.next_multiple_of(PAGE);
    }
    for segment in segments {
        file.resize(file.len().next_multiple_of(PAGE as usize), 0);
        file.extend_from_slice(&segment.bytes);
    }
    file
}
