//! Names for files that are not arm64 kernels, so that the error says what was given. Not a general file(1): what people do
//! hand to a virtual machine by mistake.

use super::{HEADER_LEN, le16, le32, pe};

/// Offset and value of the setup header's magic (Linux Documentation/arch/x86/boot.rst, "header").
const BZIMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// Offset and value of the 32-bit Arm zImage's magic (arch/arm/boot/compressed/head.S).
const ZIMAGE_MAGIC: (usize, u32) = (0x24, 0x016f_2818);
/// Offset and value of the RISC-V image's magic (Linux Documentation/arch/riscv/boot-image-header.rst, `magic2`).
const RISCV_MAGIC: (usize, &[u8]) = (56, b"RSC\x05");

/// What a file is that is not an arm64 kernel. Displayed as a noun with its article.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongImage {
    /// An x86 kernel.
    #[error("an x86 bzImage")]
    BzImage,
    /// An ELF file; a `vmlinux` is one.
    #[error("a {bits}-bit ELF file for {machine}{}", elf_hint(*arm64))]
    Elf {
        /// 32 or 64.
        bits: u8,
        /// The machine's name, or its number in ELF.
        machine: String,
        /// Whether it could be the `vmlinux` that an arm64 Image is made from.
        arm64: bool,
    },
    /// A kernel for 32-bit Arm.
    #[error("a 32-bit Arm zImage")]
    ArmZImage,
    /// An arm64 kernel that would switch the CPU to big-endian.
    #[error("a big-endian arm64 Image")]
    BigEndian,
    /// Packed once more, or with something that is not understood.
    #[error("{0}; unpack it first")]
    Packed(&'static str),
    /// An EFI program.
    #[error("an EFI program for {0}, but no Linux Image (a boot loader, or a unified kernel image?)")]
    Efi(String),
    /// Something else that is known by its first bytes.
    #[error("{0}")]
    Known(&'static str),
    /// Shorter than any kernel's header.
    #[error("only {0} bytes long, shorter than the header of a kernel")]
    TooShort(usize),
    /// Not known.
    #[error("no kernel (it begins with {0})")]
    Unknown(String),
}

/// Says what it is that begins with `head` and has no arm64 `Image` header.
pub(super) fn identify(head: &[u8]) -> WrongImage {
    if has(head, BZIMAGE_MAGIC) {
        return WrongImage::BzImage;
    }
    if let Some(elf) = elf(head) {
        return elf;
    }
    if le32(head, ZIMAGE_MAGIC.0)
        .is_some_and(|magic| magic == ZIMAGE_MAGIC.1 || magic.swap_bytes() == ZIMAGE_MAGIC.1)
    {
        return WrongImage::ArmZImage;
    }
    if has(head, RISCV_MAGIC) {
        return WrongImage::Known("a RISC-V Linux Image");
    }
    if head.starts_with(b"MZ") && has(head, (4, b"zimg")) {
        return WrongImage::Packed("an EFI zboot image packed once more");
    }
    if let Some(machine) = pe::machine(head) {
        return WrongImage::Efi(match machine {
            pe::MACHINE_ARM64 => "arm64".to_owned(),
            0x8664 => "x86-64".to_owned(),
            0x014c => "32-bit x86".to_owned(),
            0x01c0 | 0x01c2 | 0x01c4 => "32-bit Arm".to_owned(),
            0x5064 => "RISC-V".to_owned(),
            0x6264 => "LoongArch".to_owned(),
            other => format!("PE machine {other:#x}"),
        });
    }
    if let Some(known) = by_first_bytes(head) {
        return known;
    }
    if head.len() < HEADER_LEN {
        return WrongImage::TooShort(head.len());
    }
    let first: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    WrongImage::Unknown(first.join(" "))
}

fn has(head: &[u8], (at, magic): (usize, &[u8])) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// ELF: System V ABI, "ELF Header".
fn elf(head: &[u8]) -> Option<WrongImage> {
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let bits = if head.get(4) == Some(&1) { 32 } else { 64 };
    let big_endian = head.get(5) == Some(&2);
    let machine = le16(head, 18).map_or(0, |machine| if big_endian { machine.swap_bytes() } else { machine });
    let name = match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "S/390",
        40 => "32-bit Arm",
        62 => "x86-64",
        183 => "arm64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "",
    };
    let machine_name = if name.is_empty() { format!("machine {machine}") } else { name.to_owned() };
    Some(WrongImage::Elf { bits, machine: machine_name, arm64: machine == 183 && bits == 64 })
}

fn elf_hint(arm64: bool) -> &'static str {
    if arm64 { " (a vmlinux? the build leaves its Image in arch/arm64/boot)" } else { "" }
}

/// Formats that are known by how they begin.
fn by_first_bytes(head: &[u8]) -> Option<WrongImage> {
    const TABLE: &[(&[u8], WrongImage)] = &[
        (b"\x1f\x8b", WrongImage::Packed("gzip data packed once more")),
        (b"\x28\xb5\x2f\xfd", WrongImage::Packed("zstd data packed once more")),
        (b"\xfd7zXZ\0", WrongImage::Packed("xz data")),
        (b"BZh", WrongImage::Packed("bzip2 data")),
        (b"\x02\x21\x4c\x18", WrongImage::Packed("LZ4 data")),
        (b"\x04\x22\x4d\x18", WrongImage::Packed("LZ4 data")),
        (b"\x89LZO", WrongImage::Packed("LZO data")),
        (b"\x5d\0\0", WrongImage::Packed("LZMA data")),
        (b"\x27\x05\x19\x56", WrongImage::Packed("a U-Boot uImage")),
        (b"070701", WrongImage::Known("a cpio archive (an initrd? the kernel is named first)")),
        (b"070702", WrongImage::Known("a cpio archive (an initrd? the kernel is named first)")),
        (b"070707", WrongImage::Known("a cpio archive (an initrd? the kernel is named first)")),
        (b"\xd0\x0d\xfe\xed", WrongImage::Known("a device tree or a U-Boot FIT image")),
        (b"ANDROID!", WrongImage::Known("an Android boot image")),
        (b"QFI\xfb", WrongImage::Known("a qcow2 disk image")),
        (b"hsqs", WrongImage::Known("a squashfs file system")),
        (b"PK\x03\x04", WrongImage::Known("a zip archive")),
        (b"!<arch>\n", WrongImage::Known("an ar archive (a Debian package?)")),
        (b"\xcf\xfa\xed\xfe", WrongImage::Known("a macOS program")),
        (b"#!", WrongImage::Known("a script")),
    ];
    TABLE.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| what.clone())
}
