//! A disk image of somebody else's. The input's first byte says how it is opened, the rest is the file. It may be refused, and every
//! access may fail.

use hvrun_devices::backend::disk::{BlockBackend, Disk, DiskConfig, ImageFormat, SECTOR};
use tempfile::TempDir;

/// The most of a range that is zeroed or discarded.
const LONGEST: u64 = 1 << 20;

/// The target `image`.
pub fn run(bytes: &[u8]) {
    let Some((options, image)) = bytes.split_first() else { return };
    let dir = TempDir::new().expect("a directory can be made");
    let path = dir.path().join("image");
    std::fs::write(&path, image).expect("a file can be made");
    std::fs::write(dir.path().join("base"), [0x55; 8192]).expect("a file can be made");
    let config = DiskConfig {
        format: [None, Some(ImageFormat::Raw), Some(ImageFormat::Qcow2), None][usize::from(options & 3)],
        readonly: options & 4 != 0,
        backing: options & 8 == 0,
        ..DiskConfig::new(&path)
    };
    // Twice: the second time with what the first has written.
    for _ in 0..2 {
        let Ok(disk) = Disk::open(&config) else { return };
        use_disk(&disk);
    }
}

fn use_disk(disk: &Disk) {
    let capacity = disk.capacity();
    let sectors = capacity / SECTOR;
    assert_eq!(capacity % SECTOR, 0, "a capacity of {capacity} bytes");
    let mut bytes = vec![0; 4096];
    let starts = [0, 1, 8, sectors / 2, sectors.saturating_sub(8), sectors.saturating_sub(1)];
    for start in starts.map(|sector| sector * SECTOR) {
        // As the device does, only within the capacity.
        let len = capacity.saturating_sub(start).min(bytes.len() as u64);
        let Some(bytes) = bytes.get_mut(..len as usize).filter(|bytes| !bytes.is_empty()) else { continue };
        let _ = disk.read_bytes(bytes, start);
        if !disk.is_read_only() {
            bytes.fill(0xab);
            if disk.write_bytes(bytes, start).is_ok() {
                let _ = disk.read_bytes(bytes, start);
            }
        }
    }
    if !disk.is_read_only() && capacity > 0 {
        let _ = disk.discard(0, capacity.min(SECTOR * 4));
        let _ = disk.write_zeroes(0, capacity.min(LONGEST), true);
        let _ = disk.write_zeroes(capacity - SECTOR, SECTOR, false);
        let _ = disk.flush();
    }
}

/// Bytes of a cluster of the images made here, the least there can be; and its number of bits.
const CLUSTER: usize = 512;
const CLUSTER_BITS: u32 = 9;
/// Clusters of the image: header, refcount table, refcount block, L1 table, L2 table, data, compressed data.
const CLUSTERS: usize = 7;
/// OFLAG_COPIED and OFLAG_COMPRESSED of a table's entry (QEMU, docs/interop/qcow2.txt).
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// A qcow2 image of 16 KiB with one data cluster, a zero cluster and a compressed one.
fn qcow2(version: u32, backing: Option<&str>) -> Vec<u8> {
    let mut image = vec![0; CLUSTERS * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &(16_u64 << 10).to_be_bytes());
    // L1: entries and offset; refcount table: offset and clusters.
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    if version >= 3 {
        // Refcounts of 16 bits; length of the header.
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
    }
    if let Some(name) = backing {
        put(8, &300_u64.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(300, name.as_bytes());
        let extensions = if version >= 3 { 104 } else { 72 };
        // The backing file's format.
        put(extensions, &0xE279_2ACA_u32.to_be_bytes());
        put(extensions + 4, &3_u32.to_be_bytes());
        put(extensions + 8, b"raw");
    }
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    (0..CLUSTERS).for_each(|cluster| put(2 * CLUSTER + cluster * 2, &1_u16.to_be_bytes()));
    put(3 * CLUSTER, &(COPIED | (4 * CLUSTER as u64)).to_be_bytes());
    put(4 * CLUSTER, &(COPIED | (5 * CLUSTER as u64)).to_be_bytes());
    put(4 * CLUSTER + 8, &u64::from(version >= 3).to_be_bytes());
    // With clusters of 512 bytes, the number of further sectors would begin at bit 61; there are none.
    put(4 * CLUSTER + 16, &(COMPRESSED | (6 * CLUSTER as u64)).to_be_bytes());
    put(5 * CLUSTER, &[0x11; CLUSTER]);
    put(6 * CLUSTER, &DEFLATED);
    image
}

/// A cluster of 0x22 as raw deflate (RFC 1951): a literal and two matches in fixed codes.
const DEFLATED: [u8; 8] = [0x53, 0x52, 0x1a, 0x05, 0x23, 0x19, 0x00, 0x00];

/// Images of each kind, each with one or two ways to open it.
pub fn corpus() -> Vec<Vec<u8>> {
    let with = |options: u8, image: Vec<u8>| [vec![options], image].concat();
    let mut overlay = qcow2(3, Some("base"));
    // Nothing of its own: all comes from behind.
    overlay[4 * CLUSTER..5 * CLUSTER].fill(0);
    vec![
        with(0, qcow2(3, None)),
        with(2, qcow2(2, None)),
        with(6, qcow2(3, None)),
        with(2, overlay),
        with(10, qcow2(3, Some("base"))),
        with(0, qcow2(2, Some("base"))),
        with(1, vec![0x77; 2048]),
        with(0, vec![0x77; 1000]),
        with(4, Vec::new()),
        with(0, b"KDMV\x01\0\0\0".to_vec()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first byte of the disk's cluster `cluster`, the image opened as it is in the corpus.
    fn first_byte(image: &[u8], cluster: u64) -> u8 {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, image).unwrap();
        std::fs::write(dir.path().join("base"), [0x55; 8192]).unwrap();
        let disk = Disk::open(&DiskConfig::new(&path)).unwrap();
        let mut sector = [0xff; 512];
        disk.read_bytes(&mut sector, cluster * CLUSTER as u64).unwrap();
        sector[0]
    }

    #[test]
    fn the_seeds_are_images_that_can_be_read() {
        assert_eq!(first_byte(&qcow2(3, None), 0), 0x11);
        assert_eq!(first_byte(&qcow2(2, None), 0), 0x11);
        assert_eq!(first_byte(&qcow2(3, None), 1), 0);
        assert_eq!(first_byte(&qcow2(3, Some("base")), 8), 0x55);
        assert_eq!(first_byte(&qcow2(2, Some("base")), 8), 0x55);
    }

    #[test]
    fn the_compressed_cluster_of_the_seed_is_decompressed() {
        assert_eq!(first_byte(&qcow2(3, None), 2), 0x22);
    }
}
