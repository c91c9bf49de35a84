//! What is no disk, or one that we do not read: one clear error each, before anything runs.

use proptest::prelude::*;

use super::tool::qemu_img;
use super::*;

/// The error of opening `path` with all its causes, as the user reads it.
#[track_caller]
fn refusal(path: &Path) -> String {
    let error = open(path, |_| {}).unwrap_err();
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[track_caller]
fn assert_refused(path: &Path, words: &[&str]) {
    let error = refusal(path);
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    assert!(error.contains(&path.display().to_string()), "it does not name the file: {error}");
}

fn qcow2(dir: &Dir, name: &str, options: &str) -> PathBuf {
    let path = dir.path(name);
    qemu_img!("create", "-q", "-f", "qcow2", "-o", options, &path, "16M");
    path
}

fn patch(path: &Path, at: usize, bytes: &[u8]) {
    let mut image = fs::read(path).unwrap();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, image).unwrap();
}

#[test]
fn a_missing_disk_is_named() {
    assert_refused(&Dir::new().path("nothing"), &["no such file", "qemu-img create"]);
}

#[test]
fn a_directory_is_no_disk() {
    let dir = Dir::new();
    assert_refused(dir.0.path(), &["directory"]);
}

#[test]
fn a_fifo_is_no_disk_and_is_not_waited_for() {
    let dir = Dir::new();
    let path = dir.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    assert_refused(&path, &["neither a file nor a block device"]);
}

#[test]
fn a_character_device_is_no_disk() {
    assert_refused(Path::new("/dev/null"), &["neither a file nor a block device"]);
}

#[test]
fn an_image_of_a_foreign_format_is_named() {
    let dir = Dir::new();
    let path = dir.path("a.vmdk");
    qemu_img!("create", "-q", "-f", "vmdk", &path, "1M");
    assert_refused(&path, &["VMDK", "qemu-img convert"]);
}

#[test]
fn a_file_that_is_said_to_be_qcow2_and_is_not_is_refused() {
    let dir = Dir::new();
    let path = dir.file("a", 4096);
    let error = open(&path, |config| config.format = Some(ImageFormat::Qcow2)).unwrap_err().to_string();
    assert!(error.contains("not a qcow2 image"), "{error}");
}

#[test]
fn a_cut_qcow2_image_is_refused() {
    let dir = Dir::new();
    let path = qcow2(&dir, "a", "compat=1.1");
    let image = fs::read(&path).unwrap();
    fs::write(&path, &image[..70_000]).unwrap();
    assert_refused(&path, &["damaged", "ends before"]);
    fs::write(&path, &image[..50]).unwrap();
    assert_refused(&path, &["damaged", "header"]);
}

#[test]
fn a_table_of_absurd_size_is_refused_before_it_is_allocated() {
    let dir = Dir::new();
    let path = qcow2(&dir, "a", "compat=1.1");
    patch(&path, 36, &u32::MAX.to_be_bytes());
    assert_refused(&path, &["damaged", "L1 table size"]);
}

#[test]
fn a_zstd_image_is_named_as_unsupported() {
    let dir = Dir::new();
    assert_refused(&qcow2(&dir, "a", "compression_type=zstd"), &["zstd", "compression_type=zlib"]);
}

#[test]
fn extended_l2_entries_are_named_as_unsupported() {
    let dir = Dir::new();
    assert_refused(&qcow2(&dir, "a", "extended_l2=on"), &["extended L2", "extended_l2=off"]);
}

#[test]
fn an_external_data_file_is_named_as_unsupported_and_not_opened() {
    let dir = Dir::new();
    let data = dir.path("data");
    let path = qcow2(&dir, "a", &format!("data_file={}", data.display()));
    assert_refused(&path, &["external data file"]);
}

#[test]
fn an_encrypted_image_is_named_as_unsupported() {
    let dir = Dir::new();
    let path = qcow2(&dir, "a", "compat=1.1");
    patch(&path, 32, &2u32.to_be_bytes());
    assert_refused(&path, &["encrypted"]);
}

#[test]
fn a_dirty_or_corrupt_image_is_refused_with_what_repairs_it() {
    let dir = Dir::new();
    let path = qcow2(&dir, "a", "compat=1.1");
    patch(&path, 79, &[1]);
    assert_refused(&path, &["not closed properly", "qemu-img check -r all"]);
    patch(&path, 79, &[2]);
    assert_refused(&path, &["corrupt", "qemu-img check -r all"]);
}

#[test]
fn a_backing_file_that_is_gone_is_named_with_the_image_that_wants_it() {
    let dir = Dir::new();
    let base = dir.file("base", 1 << 20);
    let path = dir.path("top");
    qemu_img!("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", &path);
    fs::remove_file(&base).unwrap();
    assert_refused(&path, &["backing image", "base", "no such file"]);
}

#[test]
fn a_chain_that_is_a_loop_is_refused() {
    let dir = Dir::new();
    let (a, b) = (qcow2(&dir, "a", "compat=1.1"), dir.path("b"));
    qemu_img!("create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", &b);
    qemu_img!("rebase", "-u", "-f", "qcow2", "-b", "b", "-F", "qcow2", &a);
    assert_refused(&b, &["comes back"]);
}

#[test]
fn a_chain_that_is_too_long_is_refused() {
    let dir = Dir::new();
    qcow2(&dir, "0", "compat=1.1");
    for n in 1..=chain::MAX_DEPTH {
        let path = dir.path(&n.to_string());
        let base = (n - 1).to_string();
        qemu_img!("create", "-q", "-u", "-f", "qcow2", "-b", &base, "-F", "qcow2", &path, "16M");
    }
    let most = dir.path(&(chain::MAX_DEPTH - 1).to_string());
    assert!(open(&most, |_| {}).is_ok());
    assert_refused(&dir.path(&chain::MAX_DEPTH.to_string()), &["33th image", "32"]);
}

#[test]
fn a_backing_file_without_a_format_is_raw_if_it_looks_raw() {
    let dir = Dir::new();
    dir.file("base", 1 << 20);
    let top = qcow2(&dir, "top", "compat=0.10");
    name_backing(&top, "base");
    let disk = open(&top, |_| {}).unwrap();
    assert_eq!(read(&disk, 512, 512), pattern(512, 512));
}

#[test]
fn a_backing_format_is_never_probed_out_of_what_a_guest_may_have_written() {
    let dir = Dir::new();
    qcow2(&dir, "base", "compat=1.1");
    let top = qcow2(&dir, "top", "compat=0.10");
    name_backing(&top, "base");
    assert_refused(&top, &["does not say which format", "qcow2", "qemu-img rebase"]);
}

/// Writes a backing file's name, and no format, into the header of an image of version 2.
fn name_backing(path: &Path, name: &str) {
    patch(path, 1024, name.as_bytes());
    patch(path, 8, &1024u64.to_be_bytes());
    patch(path, 16, &(name.len() as u32).to_be_bytes());
}

#[test]
fn a_backing_name_with_a_protocol_is_not_followed() {
    let dir = Dir::new();
    for name in ["json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "nbd://host/x", "fat:rw:/tmp"] {
        let top = qcow2(&dir, "top", "compat=0.10");
        name_backing(&top, name);
        assert_refused(&top, &["not a file name"]);
    }
}

#[test]
fn backing_off_opens_no_other_file() {
    let dir = Dir::new();
    dir.file("base", 1 << 20);
    let top = dir.path("top");
    qemu_img!("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", &top);
    let error = open(&top, |config| config.backing = false).unwrap_err().to_string();
    assert!(error.contains("backing=off"), "{error}");
}

#[test]
fn a_backing_image_that_is_being_written_is_refused() {
    let dir = Dir::new();
    let base = dir.file("base", 1 << 20);
    let top = dir.path("top");
    qemu_img!("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", &top);
    let _writer = raw(&base);
    assert_refused(&top, &["backing image", "another process uses it"]);
}

#[test]
fn tables_full_of_rubbish_are_errors_and_no_panics() {
    let dir = Dir::new();
    let path = qcow2(&dir, "a", "compat=1.1");
    let original = fs::read(&path).unwrap();
    // Every byte behind the header cluster: the refcount table, a refcount block, the L1 table.
    for rubbish in [0x01, 0x80, 0xff] {
        let mut image = original.clone();
        image[65536..].fill(rubbish);
        fs::write(&path, &image).unwrap();
        let Ok(disk) = open(&path, |_| {}) else { continue };
        let mut bytes = [0; 4096];
        let _ = disk.read_bytes(&mut bytes, 0);
        let _ = disk.write_bytes(&bytes, 8192);
        let _ = disk.flush();
    }
}

/// Where the refcount table and its first block are in a new image with clusters of 64 KiB.
const REFTABLE: usize = 65536;
const REFBLOCK: usize = 2 * 65536;

#[test]
fn a_refcount_table_that_does_not_count_the_header_is_damaged_and_not_searched_without_end() {
    let dir = Dir::new();
    let path = qcow2(&dir, "a", "compat=1.1");
    patch(&path, REFTABLE, &0u64.to_be_bytes());
    assert_refused(&path, &["damaged", "first refcount block offset"]);
    assert!(open(&path, |config| config.readonly = true).is_ok());
}

#[test]
fn a_header_whose_refcount_is_zero_is_not_given_away_to_the_guest() {
    let dir = Dir::new();
    let path = qcow2(&dir, "a", "compat=1.1");
    patch(&path, REFBLOCK, &0u16.to_be_bytes());
    assert_refused(&path, &["damaged", "refcount of its own header"]);
}

#[test]
fn refcounts_of_every_width_are_understood() {
    let dir = Dir::new();
    for bits in ["1", "2", "4", "8", "16", "32", "64"] {
        let path = qcow2(&dir, bits, &format!("compat=1.1,refcount_bits={bits}"));
        let disk = open(&path, |_| {}).unwrap();
        disk.write_bytes(&[1; 512], 0).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever follows the magic, opening ends, without a panic.
    #[test]
    fn random_bytes_behind_the_magic_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let dir = Dir::new();
        let path = dir.path("a");
        fs::write(&path, [&b"QFI\xfb\0\0\0\x03"[..], &tail].concat()).unwrap();
        let _ = open(&path, |_| {});
    }

    /// Damage to a proper image is an error or goes unnoticed; it is never a panic, also when the disk is used.
    #[test]
    fn damage_anywhere_never_panics(damage in proptest::collection::vec((0usize..196_700, any::<u8>()), 1..16)) {
        use std::sync::OnceLock;
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        let dir = Dir::new();
        let path = dir.path("a");
        let image = IMAGE.get_or_init(|| {
            let dir = Dir::new();
            let path = qcow2(&dir, "a", "compat=1.1");
            let disk = open(&path, |_| {}).unwrap();
            disk.write_bytes(&[1; 4096], 0).unwrap();
            drop(disk);
            fs::read(&path).unwrap()
        });
        let mut image = image.clone();
        for (at, byte) in damage {
            // Half of it into the header, where most of the meaning is.
            let at = if byte % 2 == 0 { at % 112 } else { at };
            if let Some(place) = image.get_mut(at) {
                *place ^= byte;
            }
        }
        fs::write(&path, &image).unwrap();
        if let Ok(disk) = open(&path, |config| config.backing = false) {
            let mut bytes = [0; 4096];
            let _ = disk.read_bytes(&mut bytes, 0);
            let end = disk.capacity().min(16 << 20);
            if end >= 8192 {
                let _ = disk.write_bytes(&bytes, end - 4096);
                let _ = disk.write_zeroes(0, 4096, true);
            }
            let _ = disk.flush();
        }
    }
}
