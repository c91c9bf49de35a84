//! Images that we make, as QEMU's own tool sees them.

use std::fs;
use std::os::unix::fs::FileExt;

use super::super::tests::tool::qemu_img;
use super::*;

fn new_image(path: &Path, size: u64) -> NewImage {
    NewImage {
        path: path.to_owned(),
        format: ImageFormat::Qcow2,
        layout: Layout::new(size),
        preallocate: false,
    }
}

#[test]
fn every_cluster_size_makes_a_sound_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    for cluster_bits in 9..=21 {
        let mut image = new_image(&path, 100 << 20);
        image.layout.cluster_bits = cluster_bits;
        image.preallocate = cluster_bits > 11;
        image.create().unwrap();
        qemu_img!("check", &path);
    }
}

#[test]
fn a_failed_convert_leaves_the_old_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, source, path) = (dir.path().join("raw"), dir.path().join("source"), dir.path().join("a"));
    fs::write(&raw, vec![1; 1 << 20]).unwrap();
    let compress = ConvertOptions { compress: true, sync: false };
    let disk = open(&raw, Some(ImageFormat::Raw), true).unwrap();
    convert(&disk, &new_image(&source, 1 << 20), compress, &mut |_, _| {}).unwrap();
    // Behind header and L1 table: compressed data, which begins with a block of a type that there is not.
    let file = fs::OpenOptions::new().write(true).open(&source).unwrap();
    file.write_all_at(&[0xff; 16], 2 << 16).unwrap();
    fs::write(&path, b"old").unwrap();
    let disk = open(&source, None, true).unwrap();
    let result = convert(&disk, &new_image(&path, 1 << 20), ConvertOptions::default(), &mut |_, _| {});
    assert!(matches!(result, Err(ImageError::Io { what: "read", .. })), "{result:?}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn a_link_stays_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    std::os::unix::fs::symlink("file", &link).unwrap();
    new_image(&link, 1 << 20).create().unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::metadata(&file).unwrap().is_file());
}

#[test]
fn a_wrong_count_is_found_and_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    new_image(&path, 1 << 20).create().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // Header, L1 table, refcount table, refcount block; of 2 bytes each, the count of the L1 table.
    let count = 3 * 65536 + 2;
    bytes[count..count + 2].copy_from_slice(&[0, 0]);
    fs::write(&path, &bytes).unwrap();
    let report = check(&path, Repair::No, true, &mut |_| {}).unwrap();
    assert_eq!((report.corruptions, report.leaks), (1, 0));
    let report = check(&path, Repair::All, true, &mut |_| {}).unwrap();
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1));
    qemu_img!("check", &path);
}
