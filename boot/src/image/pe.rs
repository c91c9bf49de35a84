//! The few fields of a PE header that tell a whole kernel from a truncated one. Not a PE loader: the kernel is not started as
//! an EFI program. Source: Microsoft PE/COFF specification, sections 3.1-4.

use super::{le16, le32};

/// Where the DOS header says where the PE header is.
const PE_POINTER: usize = 0x3c;
/// COFF header: from the PE signature to the optional header.
const COFF_LEN: usize = 24;
/// Length of one section header.
const SECTION_LEN: usize = 40;
/// IMAGE_FILE_MACHINE_ARM64.
pub(super) const MACHINE_ARM64: u16 = 0xaa64;

/// Offset of the PE header in what begins with `head`, if there is one.
fn header(head: &[u8]) -> Option<usize> {
    if !head.starts_with(b"MZ") {
        return None;
    }
    let at = usize::try_from(le32(head, PE_POINTER)?).ok()?;
    head.get(at..)?.starts_with(b"PE\0\0").then_some(at)
}

/// The machine type of the EFI program that begins with `head`.
pub(super) fn machine(head: &[u8]) -> Option<u16> {
    le16(head, header(head)? + 4)
}

/// Where the last section's bytes end in the file: a file that is shorter is truncated. `None` without a section table
/// in `head`, as in a kernel without EFI stub.
pub(super) fn end_of_sections(head: &[u8]) -> Option<u64> {
    let at = header(head)?;
    let count = usize::from(le16(head, at + 6)?);
    let table = at + COFF_LEN + usize::from(le16(head, at + 20)?);
    (0..count)
        .map_while(|index| {
            let section = table + index * SECTION_LEN;
            let size = u64::from(le32(head, section + 16)?);
            let pointer = u64::from(le32(head, section + 20)?);
            Some(pointer + size)
        })
        .max()
}
