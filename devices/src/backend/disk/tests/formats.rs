//! qcow2 images made and judged by qemu-img.

use std::sync::atomic::{AtomicU64, Ordering};

use super::tool::qemu_img;
use super::*;

/// A qcow2 image `name` of the bytes of [`Dir::file`], made with `options`.
fn converted(dir: &Dir, name: &str, options: &[&str]) -> PathBuf {
    let (from, to) = (dir.file("source", 1 << 20), dir.path(name));
    let mut words = vec!["convert", "-f", "raw", "-O", "qcow2"];
    words.extend(options);
    let mut words: Vec<&std::ffi::OsStr> = words.iter().map(std::ffi::OsStr::new).collect();
    words.extend([from.as_os_str(), to.as_os_str()]);
    super::tool::run(&words);
    to
}

fn empty(dir: &Dir, name: &str, options: &str) -> PathBuf {
    let path = dir.path(name);
    qemu_img!("create", "-q", "-f", "qcow2", "-o", options, &path, "16M");
    path
}

#[track_caller]
fn assert_reads_as_source(path: &Path) {
    let disk = open(path, |config| config.readonly = true).unwrap();
    assert_eq!((disk.format(), disk.capacity()), (ImageFormat::Qcow2, 1 << 20));
    assert!(read(&disk, 0, 1 << 20) == pattern(0, 1 << 20));
}

/// A repeatable sequence of numbers.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed | 1), |x| {
        let x = x ^ (x << 13);
        let x = x ^ (x >> 7);
        Some(x ^ (x << 17))
    })
}

/// Writes to `disk` (of 16 MiB) here and there, and gives what it then must hold, `before` having been there.
fn scribble(disk: &Disk, seed: u64, mut before: Vec<u8>) -> Vec<u8> {
    for (n, number) in numbers(seed).take(400).enumerate() {
        let offset = (number >> 8) % (16 << 20) / 512 * 512;
        let len = ((number >> 40) % 64 + 1) * 512;
        let len = len.min((16 << 20) - offset);
        let range = offset as usize..(offset + len) as usize;
        match n % 8 {
            0 => disk.write_zeroes(offset, len, true).map(|()| before[range].fill(0)).unwrap(),
            1 => disk.write_zeroes(offset, len, false).map(|()| before[range].fill(0)).unwrap(),
            2 => disk.flush().unwrap(),
            _ => {
                let bytes = vec![number as u8 | 1; len as usize];
                disk.write_bytes(&bytes, offset).unwrap();
                before[range].copy_from_slice(&bytes);
            }
        }
    }
    before
}

#[track_caller]
fn assert_same_to_qemu(dir: &Dir, image: &Path, expected: &[u8]) {
    qemu_img!("check", "-q", "-f", "qcow2", image);
    let plain = dir.path("expected.raw");
    fs::write(&plain, expected).unwrap();
    qemu_img!("compare", "-q", "-f", "qcow2", "-F", "raw", image, &plain);
}

#[test]
fn an_image_of_version_3_is_read() {
    let dir = Dir::new();
    assert_reads_as_source(&converted(&dir, "a", &[]));
}

#[test]
fn an_image_of_version_2_is_read() {
    let dir = Dir::new();
    assert_reads_as_source(&converted(&dir, "a", &["-o", "compat=0.10"]));
}

#[test]
fn a_compressed_image_is_read() {
    let dir = Dir::new();
    assert_reads_as_source(&converted(&dir, "a", &["-c"]));
}

#[test]
fn images_of_the_smallest_and_the_largest_clusters_are_read() {
    let dir = Dir::new();
    assert_reads_as_source(&converted(&dir, "a", &["-o", "cluster_size=512"]));
    assert_reads_as_source(&converted(&dir, "b", &["-o", "cluster_size=2M"]));
}

#[test]
fn qemu_finds_what_was_written_and_nothing_wrong() {
    let dir = Dir::new();
    let path = empty(&dir, "a", "compat=1.1");
    let disk = open(&path, |_| {}).unwrap();
    let expected = scribble(&disk, 1, vec![0; 16 << 20]);
    assert!(read(&disk, 0, 16 << 20) == expected);
    drop(disk);
    assert_same_to_qemu(&dir, &path, &expected);
}

#[test]
fn qemu_finds_what_was_written_to_version_2_and_nothing_wrong() {
    let dir = Dir::new();
    let path = empty(&dir, "a", "compat=0.10");
    let disk = open(&path, |_| {}).unwrap();
    let expected = scribble(&disk, 2, vec![0; 16 << 20]);
    drop(disk);
    assert_same_to_qemu(&dir, &path, &expected);
}

#[test]
fn after_a_flush_qemu_finds_everything_although_the_disk_is_still_open() {
    let dir = Dir::new();
    let path = empty(&dir, "a", "compat=1.1");
    let disk = open(&path, |config| config.lock = false).unwrap();
    let expected = scribble(&disk, 3, vec![0; 16 << 20]);
    disk.flush().unwrap();
    assert_same_to_qemu(&dir, &path, &expected);
}

#[test]
fn several_threads_write_one_image() {
    let dir = Dir::new();
    let path = empty(&dir, "a", "compat=1.1");
    let disk = open(&path, |_| {}).unwrap();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        (0..4).for_each(|_| {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= 2048 {
                        break;
                    }
                    // In an order that has neighbours in flight together.
                    disk.write_bytes(&[(n % 255 + 1) as u8; 4096], n * 8192).unwrap();
                    if n.is_multiple_of(64) {
                        disk.flush().unwrap();
                    }
                    if n % 100 == 99 {
                        disk.discard((n - 99) * 8192, 4096).unwrap();
                    }
                }
            });
        });
    });
    let expected = read(&disk, 0, 16 << 20);
    let right = |n: &usize| {
        let byte = expected[n * 8192];
        byte == (n % 255 + 1) as u8 && expected[n * 8192..][..4096].iter().all(|b| *b == byte)
    };
    assert!((0..2048).filter(|n| n % 100 != 0).all(|n| right(&n)));
    drop(disk);
    assert_same_to_qemu(&dir, &path, &expected);
}

#[test]
fn a_backing_image_shows_through_and_is_not_written() {
    let dir = Dir::new();
    let base = converted(&dir, "base.qcow2", &[]);
    let middle = dir.path("middle.qcow2");
    let top = dir.path("top.qcow2");
    qemu_img!("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", &middle, "16M");
    qemu_img!("create", "-q", "-f", "qcow2", "-b", &middle, "-F", "qcow2", &top);
    let before = fs::read(&base).unwrap();
    let disk = open(&top, |_| {}).unwrap();
    let mut expected = pattern(0, 1 << 20);
    expected.resize(16 << 20, 0);
    assert!(read(&disk, 0, 16 << 20) == expected);
    let expected = scribble(&disk, 4, expected);
    drop(disk);
    assert!(fs::read(&base).unwrap() == before);
    assert_same_to_qemu(&dir, &top, &expected);
}

#[test]
fn a_raw_backing_image_is_read_whatever_it_looks_like() {
    let dir = Dir::new();
    let inner = converted(&dir, "inner", &[]);
    let top = dir.path("top");
    qemu_img!("create", "-q", "-f", "qcow2", "-b", &inner, "-F", "raw", &top);
    let disk = open(&top, |_| {}).unwrap();
    assert_eq!(read(&disk, 0, 4), b"QFI\xfb");
}

#[test]
fn two_disks_share_a_backing_image() {
    let dir = Dir::new();
    converted(&dir, "base", &[]);
    let (a, b) = (dir.path("a"), dir.path("b"));
    for path in [&a, &b] {
        qemu_img!("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", path);
    }
    let (a, b) = (open(&a, |_| {}).unwrap(), open(&b, |_| {}).unwrap());
    a.write_bytes(&[1; 512], 0).unwrap();
    assert_eq!((read(&a, 0, 1), read(&b, 512, 1)), (vec![1], vec![1]));
}

#[test]
fn an_image_with_internal_snapshots_is_written_and_keeps_them() {
    let dir = Dir::new();
    let path = converted(&dir, "a", &[]);
    qemu_img!("snapshot", "-c", "first", &path);
    open(&path, |_| {}).unwrap().write_bytes(&[0xff; 65536 * 2], 4096).unwrap();
    qemu_img!("check", "-q", &path);
    qemu_img!("snapshot", "-a", "first", &path);
    assert_reads_as_source(&path);
}

#[test]
fn a_grown_qcow2_disk_has_zeros_at_its_end_and_qemu_agrees() {
    let dir = Dir::new();
    let path = empty(&dir, "a", "compat=1.1");
    let disk = open(&path, |_| {}).unwrap();
    disk.resize(32 << 20).unwrap();
    disk.write_bytes(&[5; 512], (32 << 20) - 512).unwrap();
    assert_eq!((disk.capacity(), read(&disk, 16 << 20, 512)), (32 << 20, vec![0; 512]));
    drop(disk);
    qemu_img!("check", "-q", &path);
    assert!(qemu_img!("info", &path).contains("virtual size: 32 MiB"));
}

#[test]
fn qemu_is_kept_from_an_image_in_use() {
    let dir = Dir::new();
    let path = empty(&dir, "a", "compat=1.1");
    let _disk = open(&path, |_| {}).unwrap();
    let output = std::process::Command::new("qemu-img").arg("resize").arg(&path).arg("32M").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("lock"), "{error}");
}

#[test]
fn an_unsafe_disk_is_written_all_the_same_when_it_is_closed() {
    let dir = Dir::new();
    let path = empty(&dir, "a", "compat=1.1");
    let disk = open(&path, |config| config.cache = CacheMode::Unsafe).unwrap();
    let expected = scribble(&disk, 5, vec![0; 16 << 20]);
    drop(disk);
    assert_same_to_qemu(&dir, &path, &expected);
}
