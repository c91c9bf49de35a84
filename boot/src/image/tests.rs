//! Which kernels are accepted, what the others are called, and what arrives in memory.

use proptest::prelude::*;

use super::*;
use crate::testing::{RAM_BASE, efi_image, file, gzip, image, memory, read, zboot, zstd};

const LEN: usize = 160_000;
const SIZE: u64 = 1 << 20;

fn refusal(bytes: &[u8]) -> String {
    let path = file(bytes);
    Kernel::open(&path).expect_err("must be refused").to_string()
}

/// Opens and loads; the first error of either as text.
fn load_error(bytes: &[u8]) -> String {
    let path = file(bytes);
    let kernel = match Kernel::open(&path) {
        Ok(kernel) => kernel,
        Err(error) => return error.to_string(),
    };
    let window = Window::new(RAM_BASE, kernel.footprint());
    kernel.copy_to(&memory(8 << 20), window).expect_err("must not load").to_string()
}

/// What lies in memory after a load.
fn loaded(bytes: &[u8]) -> Vec<u8> {
    let path = file(bytes);
    let kernel = Kernel::open(&path).unwrap();
    let memory = memory(4 << 20);
    kernel.copy_to(&memory, Window::new(RAM_BASE, kernel.footprint())).unwrap();
    read(&memory, RAM_BASE, kernel.footprint() as usize)
}

/// `image` with its BSS.
fn with_bss(mut image: Vec<u8>) -> Vec<u8> {
    image.resize(SIZE as usize, 0);
    image
}

#[test]
fn plain_image_arrives_with_zero_bss() {
    let image = efi_image(LEN, SIZE);
    assert!(loaded(&image) == with_bss(image));
}

#[test]
fn gzip_image_arrives_unpacked() {
    let image = efi_image(LEN, SIZE);
    assert!(loaded(&gzip(&image)) == with_bss(image));
}

#[test]
fn zstd_image_arrives_unpacked() {
    let image = efi_image(LEN, SIZE);
    assert!(loaded(&zstd(&image)) == with_bss(image));
}

#[test]
fn gzip_zboot_image_arrives_unpacked() {
    let image = efi_image(LEN, SIZE);
    assert!(loaded(&zboot("gzip", &gzip(&image))) == with_bss(image));
}

#[test]
fn zstd_zboot_image_arrives_unpacked() {
    let image = efi_image(LEN, SIZE);
    assert!(loaded(&zboot("zstd", &zstd(&image))) == with_bss(image));
}

#[test]
fn gzip_members_and_zstd_frames_are_joined() {
    let image = efi_image(LEN, SIZE);
    let (front, back) = image.split_at(LEN / 2);
    assert!(loaded(&[gzip(front), gzip(back)].concat()) == with_bss(image.clone()));
    assert!(loaded(&[zstd(front), zstd(back)].concat()) == with_bss(image));
}

#[test]
fn bytes_behind_gzip_data_are_ignored() {
    let image = efi_image(LEN, SIZE);
    let padded = [gzip(&image), vec![0; 512]].concat();
    assert!(loaded(&padded) == with_bss(image));
}

#[test]
fn bytes_behind_image_size_stay_out_of_memory() {
    let path = file(&image(LEN, 0x1_0000, 0));
    let kernel = Kernel::open(&path).unwrap();
    let memory = memory(1 << 20);
    kernel.copy_to(&memory, Window::new(RAM_BASE, kernel.footprint())).unwrap();
    assert_eq!(read(&memory, RAM_BASE + 0x1_0000, 4), [0; 4]);
}

#[test]
fn packing_is_told() {
    let image = image(LEN, SIZE, 0);
    let packing = |bytes: &[u8]| Kernel::open(file(bytes)).unwrap().packing().to_string();
    assert_eq!(packing(&image), "plain");
    assert_eq!(packing(&gzip(&image)), "gzip");
    assert_eq!(packing(&zboot("zstd", &zstd(&image))), "EFI zboot, zstd");
}

#[test]
fn flags_tell_page_size_and_placement() {
    let open = |flags| Kernel::open(file(&image(LEN, SIZE, flags))).unwrap();
    assert_eq!((open(0b0000).page_size(), open(0b0000).runs_anywhere()), (None, false));
    assert_eq!((open(0b1010).page_size(), open(0b1010).runs_anywhere()), (Some(PageSize::Kib4), true));
    assert_eq!(open(0b0100).page_size(), Some(PageSize::Kib16));
    assert_eq!(open(0b0110).page_size(), Some(PageSize::Kib64));
}

#[test]
fn legacy_image_has_its_known_text_offset_and_room_for_a_bss() {
    let image = image(LEN, 0, 0);
    let plain = Kernel::open(file(&image)).unwrap();
    let packed = Kernel::open(file(&gzip(&image))).unwrap();
    assert_eq!((plain.text_offset(), plain.footprint()), (0x8_0000, LEN as u64 + LEGACY_BSS));
    assert_eq!((packed.text_offset(), packed.footprint()), (0x8_0000, LEN as u64 + LEGACY_BSS));
}

#[test]
fn x86_bzimage_is_named() {
    let mut bytes = vec![0; 4096];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    let message = refusal(&bytes);
    assert!(
        message.contains("is an x86 bzImage; what boots here is a little-endian arm64 Linux Image"),
        "{message}"
    );
}

#[test]
fn elf_is_named_with_its_machine() {
    let elf = |class: u8, data: u8, machine: [u8; 2]| {
        let mut bytes = vec![0; 4096];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, data]);
        bytes[18..20].copy_from_slice(&machine);
        refusal(&bytes)
    };
    assert!(elf(2, 1, [62, 0]).contains("is a 64-bit ELF file for x86-64;"));
    assert!(
        elf(2, 1, [183, 0]).contains("is a 64-bit ELF file for arm64 (a vmlinux? the build leaves its Image")
    );
    assert!(elf(1, 1, [40, 0]).contains("is a 32-bit ELF file for 32-bit Arm;"));
    assert!(elf(2, 2, [0, 22]).contains("is a 64-bit ELF file for S/390;"));
    assert!(elf(2, 1, [0x34, 0x12]).contains("is a 64-bit ELF file for machine 4660;"));
}

#[test]
fn arm_zimage_is_named_in_either_byte_order() {
    let mut bytes = vec![0; 4096];
    bytes[0x24..0x28].copy_from_slice(&0x016f_2818u32.to_le_bytes());
    assert!(refusal(&bytes).contains("is a 32-bit Arm zImage;"));
    bytes[0x24..0x28].copy_from_slice(&0x016f_2818u32.to_be_bytes());
    assert!(refusal(&bytes).contains("is a 32-bit Arm zImage;"));
}

#[test]
fn big_endian_image_is_named() {
    assert!(refusal(&image(LEN, SIZE, 1)).contains("is a big-endian arm64 Image;"));
}

#[test]
fn riscv_image_is_named() {
    let mut bytes = vec![0; 4096];
    bytes[56..60].copy_from_slice(b"RSC\x05");
    assert!(refusal(&bytes).contains("is a RISC-V Linux Image;"));
}

#[test]
fn efi_program_is_named_with_its_machine() {
    let mut bytes = efi_image(LEN, SIZE);
    bytes[56..60].fill(0);
    assert!(refusal(&bytes).contains("is an EFI program for arm64, but no Linux Image"));
    bytes[68..70].copy_from_slice(&0x8664u16.to_le_bytes());
    assert!(refusal(&bytes).contains("is an EFI program for x86-64, but no Linux Image"));
}

#[test]
fn initrd_in_the_kernels_place_is_named_even_when_packed() {
    let mut cpio = b"070701".to_vec();
    cpio.resize(1000, b'0');
    assert!(refusal(&cpio).contains("is a cpio archive (an initrd?"));
    assert!(refusal(&gzip(&cpio)).contains("is gzip data, and what it holds is a cpio archive (an initrd?"));
}

#[test]
fn other_compressions_are_named() {
    let named = |magic: &[u8]| {
        let mut bytes = magic.to_vec();
        bytes.resize(1000, 1);
        refusal(&bytes)
    };
    assert!(named(b"\xfd7zXZ\0").contains("is xz data; unpack it first"));
    assert!(named(b"\x02\x21\x4c\x18").contains("is LZ4 data; unpack it first"));
}

#[test]
fn twice_packed_kernel_is_named() {
    let image = image(LEN, SIZE, 0);
    assert!(refusal(&gzip(&gzip(&image))).contains("holds is gzip data packed once more; unpack it first"));
    assert!(refusal(&gzip(&zboot("gzip", &gzip(&image)))).contains("an EFI zboot image packed once more"));
}

#[test]
fn zboot_with_an_unknown_compression_names_it() {
    assert!(
        refusal(&zboot("xzkern", &[0; 100])).contains("packed with \"xzkern\"; gzip and zstd are understood")
    );
}

#[test]
fn unknown_file_is_described_by_its_beginning() {
    assert!(refusal(&[0x5a; 4096]).contains("is no kernel (it begins with 5a 5a 5a 5a 5a 5a 5a 5a);"));
}

#[test]
fn file_shorter_than_a_header_is_told() {
    assert!(refusal(b"tiny").contains("is only 4 bytes long"));
    assert!(refusal(&image(LEN, SIZE, 0)[..62]).contains("is truncated: 62 bytes are there"));
}

#[test]
fn directory_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let message = Kernel::open(dir.path()).unwrap_err().to_string();
    assert!(message.ends_with("is a directory; name the file in it"), "{message}");
}

#[test]
fn image_without_its_last_byte_is_truncated_by_its_section_table() {
    let message = refusal(&efi_image(LEN, SIZE)[..LEN - 1]);
    assert!(
        message.contains("(plain) is truncated: 159999 bytes are there, its header describes 160000"),
        "{message}"
    );
}

#[test]
fn truncated_image_inside_whole_gzip_data_is_truncated_too() {
    let message = load_error(&gzip(&efi_image(LEN, SIZE)[..LEN - 1]));
    assert!(message.contains("(gzip) is truncated: 159999 bytes are there"), "{message}");
}

#[test]
fn truncated_zboot_payload_is_truncated() {
    let zboot = zboot("gzip", &gzip(&efi_image(LEN, SIZE)));
    let message = refusal(&zboot[..0x2000]);
    assert!(message.contains("(EFI zboot, gzip) is truncated: 8192 bytes are there"), "{message}");
}

#[test]
fn truncated_gzip_data_ends_too_early() {
    let packed = gzip(&efi_image(LEN, SIZE));
    let message = load_error(&packed[..packed.len() / 2]);
    assert!(message.contains("its gzip data is damaged: it ends too early"), "{message}");
}

#[test]
fn gzip_data_without_its_checksum_ends_too_early() {
    let packed = gzip(&efi_image(LEN, SIZE));
    let message = load_error(&packed[..packed.len() - 8]);
    assert!(message.contains("its gzip data is damaged: it ends too early"), "{message}");
}

#[test]
fn wrong_gzip_checksum_is_damage() {
    let mut packed = gzip(&efi_image(LEN, SIZE));
    let crc = packed.len() - 8;
    packed[crc] ^= 1;
    let message = load_error(&packed);
    assert!(
        message.contains("its gzip data is damaged: corrupt gzip stream does not have a matching checksum"),
        "{message}"
    );
}

#[test]
fn truncated_zstd_data_ends_too_early() {
    let packed = zstd(&efi_image(LEN, SIZE));
    let message = load_error(&packed[..packed.len() / 2]);
    assert!(message.contains("its zstd data is damaged: it ends too early"), "{message}");
    let message = load_error(&packed[..5]);
    assert!(message.contains("its zstd data is damaged: it ends too early"), "{message}");
}

#[test]
fn wrong_zstd_checksum_is_damage() {
    let mut packed = zstd(&efi_image(LEN, SIZE));
    let last = packed.len() - 1;
    packed[last] ^= 1;
    let message = load_error(&packed);
    assert!(message.contains("its zstd data is damaged: its checksum does not match"), "{message}");
}

#[test]
fn unpacking_stops_behind_the_size_that_the_header_promises() {
    let mut bomb = image(LEN, 0x1_0000, 0);
    bomb.resize(2 << 20, 0);
    let message = load_error(&gzip(&bomb));
    assert!(
        message.contains("is damaged: it unpacks to more than the 1114112 bytes it may have"),
        "{message}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damaged_data_never_panics_and_never_loads_wrong_bytes(at in 0usize..20_000, bit in 0u8..8, codec in 0..2) {
        let image = image(20_000, 0x8000, 0);
        let mut packed = if codec == 0 { gzip(&image) } else { zstd(&image) };
        let at = at % packed.len();
        packed[at] ^= 1 << bit;
        let path = file(&packed);
        let memory = memory(1 << 20);
        let result = Kernel::open(&path).map_err(BootError::from).and_then(|kernel| {
            kernel.copy_to(&memory, Window::new(RAM_BASE, 0x8000))
        });
        if result.is_ok() {
            prop_assert!(read(&memory, RAM_BASE, image.len()) == image);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_opened_without_a_panic(
        head in proptest::collection::vec(any::<u8>(), 1..700), kind in 0..6,
    ) {
        let mut bytes = head;
        let mark = |bytes: &mut Vec<u8>, at: usize, magic: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + magic.len()) {
                place.copy_from_slice(magic);
            }
        };
        match kind {
            0 => mark(&mut bytes, 56, MAGIC),
            1 => { mark(&mut bytes, 0, b"MZ"); mark(&mut bytes, 4, b"zimg") }
            2 => { mark(&mut bytes, 0, b"MZ"); mark(&mut bytes, 60, &[64, 0, 0, 0, b'P', b'E', 0, 0]) }
            3 => mark(&mut bytes, 0, b"\x1f\x8b\x08"),
            4 => mark(&mut bytes, 0, b"\x28\xb5\x2f\xfd"),
            _ => mark(&mut bytes, 0, b"\x7fELF"),
        }
        let _ = Kernel::open(file(&bytes));
    }
}
