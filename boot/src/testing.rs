//! Small kernels and memories for this crate's tests. Nothing here can run.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hvrun_arch::GuestMemory;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use vm_memory::{Bytes, GuestAddress};

pub(crate) use hvrun_arch::aarch64::layout::RAM_BASE;

/// Guest memory of `size` bytes.
pub(crate) fn memory(size: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(RAM_BASE), size)]).unwrap()
}

/// What guest memory holds at `addr`.
pub(crate) fn read(memory: &GuestMemory, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

/// An arm64 `Image` of `len` bytes, without EFI stub. Its body does not compress well, so that damage is not skipped.
pub(crate) fn image(len: usize, image_size: u64, flags: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut bytes: Vec<u8> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0x3f
        })
        .collect();
    bytes[..64].fill(0);
    bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
    bytes[24..32].copy_from_slice(&flags.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}

/// The same with an EFI stub whose PE header says that the last section ends at `len`.
pub(crate) fn efi_image(len: usize, image_size: u64) -> Vec<u8> {
    let mut bytes = image(len, image_size, 0xa);
    bytes[..2].copy_from_slice(b"MZ");
    bytes[60..64].copy_from_slice(&64u32.to_le_bytes());
    bytes[64..0x200].fill(0);
    bytes[64..68].copy_from_slice(b"PE\0\0");
    bytes[68..70].copy_from_slice(&0xaa64u16.to_le_bytes());
    bytes[70..72].copy_from_slice(&2u16.to_le_bytes());
    bytes[84..86].copy_from_slice(&0xa0u16.to_le_bytes());
    let table = 64 + 24 + 0xa0;
    for (index, (pointer, size)) in
        [(0x1000u32, 0x1000u32), (0x2000, len as u32 - 0x2000)].into_iter().enumerate()
    {
        let section = table + 40 * index;
        bytes[section + 16..section + 20].copy_from_slice(&size.to_le_bytes());
        bytes[section + 20..section + 24].copy_from_slice(&pointer.to_le_bytes());
    }
    bytes
}

/// `bytes` as one gzip member.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `bytes` as one zstd frame.
pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// An EFI zboot image that carries `payload`.
pub(crate) fn zboot(name: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0x1000];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[4..8].copy_from_slice(b"zimg");
    bytes[8..12].copy_from_slice(&0x1000u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes[24..24 + name.len()].copy_from_slice(name.as_bytes());
    bytes.extend(payload);
    // The unpacked size, and what else the linker puts behind the payload.
    bytes.extend([0xaa; 512]);
    bytes
}

/// A file with `bytes` in it, gone when the value is.
pub(crate) fn file(bytes: &[u8]) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file.into_temp_path()
}
