//! Headers byte by byte.

use proptest::prelude::*;

use super::*;

/// A header as `qemu-img create` writes it, of a disk of 16 MiB with clusters of 64 KiB, in a file of four clusters.
fn header() -> Vec<u8> {
    let mut bytes = vec![0; 65536];
    put(&mut bytes, 0, b"QFI\xfb");
    put(&mut bytes, 4, &3u32.to_be_bytes());
    put(&mut bytes, 20, &16u32.to_be_bytes());
    put(&mut bytes, 24, &(16u64 << 20).to_be_bytes());
    put(&mut bytes, 36, &1u32.to_be_bytes());
    put(&mut bytes, 40, &0x30000u64.to_be_bytes());
    put(&mut bytes, 48, &0x10000u64.to_be_bytes());
    put(&mut bytes, 56, &1u32.to_be_bytes());
    put(&mut bytes, 96, &4u32.to_be_bytes());
    put(&mut bytes, 100, &112u32.to_be_bytes());
    bytes
}

const FILE: u64 = 4 << 16;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn with(at: usize, value: &[u8]) -> Result<Qcow2Header, Qcow2Error> {
    let mut bytes = header();
    put(&mut bytes, at, value);
    Qcow2Header::parse(&bytes, FILE)
}

fn field(error: &Result<Qcow2Header, Qcow2Error>) -> &'static str {
    match error {
        Err(Qcow2Error::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_proper_header_is_understood() {
    let expected = Qcow2Header {
        version: 3,
        cluster_bits: 16,
        size: 16 << 20,
        reftable_offset: 0x10000,
        refcount_order: 4,
        backing_file: None,
        backing_format: None,
    };
    assert_eq!(Qcow2Header::parse(&header(), FILE), Ok(expected));
}

#[test]
fn backing_file_and_format_are_found() {
    let mut bytes = header();
    put(&mut bytes, 112, &EXT_BACKING_FORMAT.to_be_bytes());
    put(&mut bytes, 116, &3u32.to_be_bytes());
    put(&mut bytes, 120, b"raw");
    put(&mut bytes, 8, &200u64.to_be_bytes());
    put(&mut bytes, 16, &4u32.to_be_bytes());
    put(&mut bytes, 200, b"base");
    let header = Qcow2Header::parse(&bytes, FILE).unwrap();
    assert_eq!(header.backing_file.as_deref(), Some("base"));
    assert_eq!(header.backing_format.as_deref(), Some("raw"));
}

#[test]
fn clusters_too_small_or_too_large_are_refused() {
    assert_eq!(field(&with(20, &8u32.to_be_bytes())), "cluster size exponent");
    assert_eq!(field(&with(20, &22u32.to_be_bytes())), "cluster size exponent");
    assert_eq!(field(&with(20, &u32::MAX.to_be_bytes())), "cluster size exponent");
}

#[test]
fn tables_out_of_bounds_are_refused() {
    assert_eq!(field(&with(36, &u32::MAX.to_be_bytes())), "L1 table size");
    assert_eq!(field(&with(40, &0x30001u64.to_be_bytes())), "L1 table offset");
    assert_eq!(field(&with(40, &0u64.to_be_bytes())), "L1 table offset");
    assert_eq!(field(&with(40, &(u64::MAX << 16).to_be_bytes())), "L1 table offset");
    assert_eq!(with(40, &0x40000u64.to_be_bytes()), Err(Qcow2Error::Truncated("L1 table")));
    assert_eq!(field(&with(56, &0u32.to_be_bytes())), "refcount table size");
    assert_eq!(field(&with(56, &u32::MAX.to_be_bytes())), "refcount table size");
    assert_eq!(with(48, &0x40000u64.to_be_bytes()), Err(Qcow2Error::Truncated("refcount table")));
}

#[test]
fn a_disk_larger_than_its_table_is_refused() {
    assert_eq!(field(&with(24, &(513u64 << 20).to_be_bytes())), "disk size");
    assert_eq!(field(&with(24, &u64::MAX.to_be_bytes())), "disk size");
    assert!(with(24, &(512u64 << 20).to_be_bytes()).is_ok());
}

#[test]
fn a_name_outside_of_the_first_cluster_is_refused() {
    let mut bytes = header();
    put(&mut bytes, 8, &65530u64.to_be_bytes());
    put(&mut bytes, 16, &10u32.to_be_bytes());
    assert_eq!(field(&Qcow2Header::parse(&bytes, FILE)), "backing file name offset");
    put(&mut bytes, 8, &u64::MAX.to_be_bytes());
    assert_eq!(field(&Qcow2Header::parse(&bytes, FILE)), "backing file name offset");
    put(&mut bytes, 16, &1024u32.to_be_bytes());
    assert_eq!(field(&Qcow2Header::parse(&bytes, FILE)), "backing file name length");
}

#[test]
fn an_extension_that_runs_out_of_the_header_is_refused() {
    let mut bytes = header();
    put(&mut bytes, 112, &1u32.to_be_bytes());
    put(&mut bytes, 116, &u32::MAX.to_be_bytes());
    assert_eq!(field(&Qcow2Header::parse(&bytes, FILE)), "header extension length");
}

#[test]
fn features_are_named() {
    assert_eq!(with(79, &[1 << 5]), Err(Qcow2Error::Features(1 << 5)));
    assert_eq!(with(72, &[1]), Err(Qcow2Error::Features(1 << 56)));
}

#[test]
fn formats_are_known_by_their_first_bytes() {
    assert_eq!(probe(b"QFI\xfb\0\0\0\x03"), Looks::Qcow2);
    assert_eq!(probe(b"QFI\xfb\0\0\0\x01"), Looks::Other("qcow"));
    assert_eq!(probe(b"QFI\xfb"), Looks::Qcow2);
    assert_eq!(probe(b"KDMV"), Looks::Other("VMDK"));
    assert_eq!(probe(b""), Looks::Raw);
    let mut vdi = vec![0; 512];
    put(&mut vdi, 64, &[0x7f, 0x10, 0xda, 0xbe]);
    assert_eq!(probe(&vdi), Looks::Other("VDI"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), size: u64) {
        let _ = Qcow2Header::parse(&bytes, size);
        let _ = probe(&bytes);
    }

    /// Damaged headers get past the first checks, random ones do not.
    #[test]
    fn damaged_headers_are_parsed_or_refused(
        damage in proptest::collection::vec((0usize..256, any::<u8>()), 1..8),
        len in 0usize..65536,
        size: u64,
    ) {
        let mut bytes = header();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        bytes.truncate(len);
        let _ = Qcow2Header::parse(&bytes, size);
    }
}
