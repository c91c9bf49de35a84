//! Images as others made them, images as others read them, and files that are no images at all.

mod bad;
mod formats;
pub(super) mod tool;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::*;

/// A folder and what is in it.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of `len` bytes, each the number of its sector.
    fn file(&self, name: &str, len: usize) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, pattern(0, len)).unwrap();
        path
    }
}

/// What [`Dir::file`] writes from `offset` on.
fn pattern(offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len).map(|at| (at / 512) as u8).collect()
}

fn open(path: &Path, edit: impl FnOnce(&mut DiskConfig)) -> Result<Arc<Disk>, DiskError> {
    let mut config = DiskConfig::new(path);
    edit(&mut config);
    Disk::open(&config)
}

fn raw(path: &Path) -> Arc<Disk> {
    open(path, |config| config.format = Some(ImageFormat::Raw)).unwrap()
}

fn read(disk: &Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    disk.read_bytes(&mut bytes, offset).unwrap();
    bytes
}

#[test]
fn a_raw_image_is_its_file() {
    let dir = Dir::new();
    let path = dir.file("a", 8192);
    let disk = raw(&path);
    disk.write_bytes(&[0xaa; 1024], 1024).unwrap();
    assert_eq!(read(&disk, 512, 512), pattern(512, 512));
    assert_eq!(fs::read(&path).unwrap()[1024..2048], [0xaa; 1024]);
}

#[test]
fn a_file_that_ends_within_a_sector_is_padded_with_zeros_and_completed_by_a_write() {
    let dir = Dir::new();
    let path = dir.file("a", 600);
    let disk = raw(&path);
    assert_eq!(disk.capacity(), 1024);
    assert_eq!(read(&disk, 512, 512), [vec![1; 88], vec![0; 424]].concat());
    disk.write_bytes(&[9; 512], 512).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 1024);
}

#[test]
fn many_buffers_are_moved_in_one_request() {
    let dir = Dir::new();
    let disk = raw(&dir.file("a", 4096 * 512));
    // More buffers than a system call takes.
    let mut memory = vec![0u8; 2000 * 512];
    let buffers: Vec<VolatileSlice<'_>> = memory.chunks_mut(512).map(VolatileSlice::from).collect();
    disk.read(&buffers, 512).unwrap();
    disk.write(&buffers, 1024).unwrap();
    assert_eq!(read(&disk, 1024, 2000 * 512), pattern(512, 2000 * 512));
}

#[test]
fn zeroes_are_written_where_they_shall_be_and_nowhere_else() {
    let dir = Dir::new();
    let disk = raw(&dir.file("a", 1 << 20));
    disk.write_zeroes(512, 70_000 / 512 * 512, true).unwrap();
    disk.write_zeroes(512 * 1000, 1024, false).unwrap();
    let mut expected = pattern(0, 1 << 20);
    expected[512..512 + 70_000 / 512 * 512].fill(0);
    expected[512 * 1000..512 * 1002].fill(0);
    assert!(read(&disk, 0, 1 << 20) == expected);
}

#[test]
fn a_discard_gives_blocks_back_to_the_host() {
    use std::os::unix::fs::MetadataExt;
    let dir = Dir::new();
    let path = dir.path("a");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let before = fs::metadata(&path).unwrap().blocks();
    raw(&path).discard(0, 1 << 19).unwrap();
    assert!(fs::metadata(&path).unwrap().blocks() < before);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
}

#[test]
fn discard_off_keeps_the_blocks() {
    let dir = Dir::new();
    let path = dir.file("a", 1 << 16);
    open(&path, |config| config.discard = false).unwrap().discard(0, 1 << 16).unwrap();
    assert!(fs::read(&path).unwrap() == pattern(0, 1 << 16));
}

#[test]
fn a_disk_without_the_page_cache_takes_requests_of_any_alignment() {
    // Beside the test program, as /tmp may be a file system without direct I/O.
    let program = std::env::current_exe().unwrap();
    let dir = Dir(tempfile::tempdir_in(program.parent().unwrap()).unwrap());
    let path = dir.file("a", 1 << 16);
    let disk = open(&path, |config| config.cache = CacheMode::None).unwrap();
    let mut memory = vec![0xccu8; 4096 + 1];
    let (first, second) = memory[1..].split_at_mut(1536);
    disk.write(&[VolatileSlice::from(&mut first[..512])], 512).unwrap();
    disk.write(&[VolatileSlice::from(first), VolatileSlice::from(&mut second[..512])], 7168).unwrap();
    let mut expected = pattern(0, 1 << 16);
    expected[512..1024].fill(0xcc);
    expected[7168..7168 + 2048].fill(0xcc);
    assert!(read(&disk, 0, 1 << 16) == expected);
    assert_eq!(read(&disk, (1 << 16) - 512, 512), pattern((1 << 16) - 512, 512));
    disk.flush().unwrap();
}

#[test]
fn a_second_writer_is_refused() {
    let dir = Dir::new();
    let path = dir.file("a", 4096);
    let first = raw(&path);
    assert!(matches!(open(&path, |_| {}), Err(DiskError::Locked { writing: true, .. })));
    drop(first);
    assert!(open(&path, |_| {}).is_ok());
}

#[test]
fn a_reader_of_what_is_being_written_is_refused() {
    let dir = Dir::new();
    let path = dir.file("a", 4096);
    let _first = raw(&path);
    let second = open(&path, |config| config.readonly = true);
    assert!(matches!(second, Err(DiskError::Locked { writing: false, .. })));
}

#[test]
fn readers_share_and_keep_writers_out() {
    let dir = Dir::new();
    let path = dir.file("a", 4096);
    let read_only = |config: &mut DiskConfig| config.readonly = true;
    let _readers = (open(&path, read_only).unwrap(), open(&path, read_only).unwrap());
    assert!(matches!(open(&path, |_| {}), Err(DiskError::Locked { writing: true, .. })));
}

#[test]
fn without_locks_writers_share() {
    let dir = Dir::new();
    let path = dir.file("a", 4096);
    let unlocked = |config: &mut DiskConfig| config.lock = false;
    let _writers = (open(&path, unlocked).unwrap(), open(&path, unlocked).unwrap());
}

#[test]
fn a_grown_disk_has_zeros_at_its_end() {
    let dir = Dir::new();
    let path = dir.file("a", 1024);
    let disk = raw(&path);
    disk.resize(4096).unwrap();
    assert_eq!((disk.capacity(), read(&disk, 1024, 3072)), (4096, vec![0; 3072]));
    assert_eq!(disk.resize(1000).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_probed_raw_disk_never_becomes_another_format() {
    let dir = Dir::new();
    let path = dir.path("a");
    fs::write(&path, vec![0; 4096]).unwrap();
    let disk = open(&path, |_| {}).unwrap();
    for magic in [&b"QFI\xfb"[..], b"KDMV", b"vhdxfile", b"conectix", b"QED\0"] {
        let mut sectors = vec![0; 1024];
        sectors[..magic.len()].copy_from_slice(magic);
        let error = disk.write_bytes(&sectors, 0).unwrap_err();
        assert!(error.to_string().contains("format=raw"), "{error}");
    }
    disk.write_bytes(&[1; 1024], 0).unwrap();
    disk.write_bytes(b"QFI\xfb", 512).unwrap();
    assert_eq!(fs::read(&path).unwrap()[..512], [1; 512]);
}

#[test]
fn a_disk_that_is_raw_by_word_takes_any_bytes() {
    let dir = Dir::new();
    let path = dir.file("a", 4096);
    raw(&path).write_bytes(b"QFI\xfb", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap()[..4], *b"QFI\xfb");
}

#[test]
fn an_ignored_read_error_reads_as_zeros() {
    let dir = Dir::new();
    let path = dir.file("a", 4096);
    let disk = open(&path, |config| config.rerror = ErrorPolicy::Ignore).unwrap();
    let mut buffer = [7; 512];
    // Beyond what a file offset can be: the host refuses.
    assert!(disk.read_bytes(&mut buffer, 1 << 63).is_err());
    assert_eq!(buffer, [0; 512]);
}
