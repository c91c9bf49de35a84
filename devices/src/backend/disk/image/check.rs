//! Checks a qcow2 image: every cluster is counted as often as it is used (QEMU's docs/interop/qcow2.txt). Counts can be put right.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::file::{FileOptions, HostFile};
use super::super::header::Qcow2Header;
use super::super::{CacheMode, DiskError, SyncMode};
use super::ImageError;
use super::info::{be32, be64, extensions, read_first_cluster};

mod tables;

use tables::{Tables, Walk, check_copied};

/// A file of more clusters than these is not looked at: its counts would not fit into memory.
const MAX_CLUSTERS: u64 = 1 << 26;
/// Offsets in L1 and L2 entries, and in those of the refcount table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const REFTABLE_OFFSET: u64 = !0x1ff;
/// Header extension: persistent bitmaps.
const EXT_BITMAPS: u32 = 0x2385_2875;
/// Incompatible features "dirty" and "corrupt": what a check is for.
const DIRTY_OR_CORRUPT: u8 = 3;
/// Where the last byte of the incompatible features is.
const FEATURES_AT: usize = 79;

/// What is put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    No,
    /// Clusters that are counted and not used.
    Leaks,
    /// All wrong counts.
    All,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A cluster that is counted more often than it is used: harmless.
    Leak {
        /// Its number.
        cluster: u64,
        /// What is counted.
        refcount: u64,
        /// How often it is used.
        references: u64,
    },
    /// A cluster that is used more often than it is counted: it will be given away and written over.
    Refcount {
        /// Its number.
        cluster: u64,
        /// What is counted.
        refcount: u64,
        /// How often it is used.
        references: u64,
    },
    /// A table entry that cannot be.
    Entry {
        /// Which table.
        table: &'static str,
        /// What it says.
        entry: u64,
        /// What is wrong with that.
        why: &'static str,
    },
}

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Damage to data, now or at the next write.
    pub corruptions: u64,
    /// Clusters that are lost until a repair.
    pub leaks: u64,
    /// How many of both were put right.
    pub corruptions_fixed: u64,
    /// See `corruptions_fixed`.
    pub leaks_fixed: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Clusters of the disk that have data.
    pub allocated_clusters: u64,
    /// Of these, the ones that do not follow the one before.
    pub fragmented_clusters: u64,
    /// Of these, the compressed ones.
    pub compressed_clusters: u64,
    /// Where the last used cluster ends.
    pub end_offset: u64,
}

/// Checks the qcow2 image at `path`. `found` hears of everything that is wrong.
///
/// # Errors
/// What the host says, or why the image cannot be checked.
pub fn check(
    path: &Path,
    repair: Repair,
    lock: bool,
    found: &mut dyn FnMut(&Finding),
) -> Result<CheckReport, ImageError> {
    let write = repair != Repair::No;
    let options = FileOptions { write, cache: CacheMode::Writeback, sync: SyncMode::Fsync, lock };
    // Locked until the end.
    let locked = HostFile::open(path, options)?;
    let file =
        OpenOptions::new().read(true).write(write).open(path).map_err(ImageError::io(path, "opened"))?;
    let failed = || ImageError::io(path, "read");
    let mut head = read_first_cluster(&file).map_err(failed())?;
    let flags = head.get(FEATURES_AT).copied().unwrap_or(0) & DIRTY_OR_CORRUPT;
    let version3 = be32(&head, 4) >= 3;
    if version3 && let Some(byte) = head.get_mut(FEATURES_AT) {
        *byte &= !DIRTY_OR_CORRUPT;
    }
    let header = Qcow2Header::parse(&head, locked.size())
        .map_err(|reason| DiskError::Qcow2 { path: path.to_owned(), reason })?;
    let clusters = locked.size().div_ceil(1 << header.cluster_bits);
    if clusters > MAX_CLUSTERS {
        return Err(ImageError::unsuitable(
            path,
            format!("its file has {clusters} clusters, too many to count"),
        ));
    }
    let header_len = if version3 { be32(&head, 100) as usize } else { 72 };
    if extensions(&head, header_len).any(|extension| extension.0 == EXT_BITMAPS) {
        return Err(ImageError::unsuitable(
            path,
            "it has persistent bitmaps, whose clusters are not known here",
        ));
    }
    let tables = Tables::new(&file, &head, &header, clusters);
    let mut report =
        CheckReport { total_clusters: header.size.div_ceil(tables.cluster), ..CheckReport::default() };
    let walk = tables.walk(&mut report, found).map_err(failed())?;
    let counts =
        compare(&tables, &walk, repair, &mut report, found).map_err(ImageError::io(path, "checked"))?;
    let all = repair == Repair::All;
    check_copied(&tables, &counts, all, &mut report, found).map_err(ImageError::io(path, "checked"))?;
    if all && version3 && flags != 0 && report.corruptions == 0 {
        clear_flags(&file).map_err(ImageError::io(path, "written"))?;
    }
    locked.sync().map_err(ImageError::io(path, "synced"))?;
    Ok(report)
}

fn clear_flags(file: &File) -> io::Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, FEATURES_AT as u64)?;
    file.write_all_at(&[byte[0] & !DIRTY_OR_CORRUPT], FEATURES_AT as u64)
}

/// Holds what is counted beside what was found, block by block; returns what is counted then.
fn compare(
    tables: &Tables<'_>,
    walk: &Walk,
    repair: Repair,
    report: &mut CheckReport,
    found: &mut dyn FnMut(&Finding),
) -> io::Result<Vec<u32>> {
    let per_block = tables.refcounts_per_block();
    let mut counts = Vec::with_capacity(walk.references.len());
    let mut cluster = 0;
    while cluster < walk.references.len() as u64 {
        let index = (cluster / per_block) as usize;
        let at = walk.blocks.get(index).copied().flatten();
        let mut block = match at {
            Some(at) => tables.read_cluster(at)?,
            None => vec![0; tables.cluster as usize],
        };
        let mut changed = false;
        for in_block in 0..per_block.min(walk.references.len() as u64 - cluster) {
            let number = cluster + in_block;
            let references = walk.references.get(number as usize).copied().unwrap_or(0).into();
            let refcount = get_refcount(&block, in_block, tables.refcount_order);
            if refcount > 0 || references > 0 {
                report.end_offset = (number + 1) * tables.cluster;
            }
            counts.push(u32::try_from(refcount).unwrap_or(u32::MAX));
            if refcount == references {
                continue;
            }
            let leak = refcount > references;
            found(&match leak {
                true => Finding::Leak { cluster: number, refcount, references },
                false => Finding::Refcount { cluster: number, refcount, references },
            });
            let wanted = repair == Repair::All || (repair == Repair::Leaks && leak);
            let fits = tables.refcount_order >= 6 || references >> (1 << tables.refcount_order) == 0;
            let fixed = wanted && at.is_some() && fits;
            if fixed {
                set_refcount(&mut block, in_block, tables.refcount_order, references);
                changed = true;
                if let Some(last) = counts.last_mut() {
                    *last = references as u32;
                }
            }
            *match (leak, fixed) {
                (true, false) => &mut report.leaks,
                (true, true) => &mut report.leaks_fixed,
                (false, false) => &mut report.corruptions,
                (false, true) => &mut report.corruptions_fixed,
            } += 1;
        }
        if let (true, Some(at)) = (changed, at) {
            tables.file.write_all_at(&block, at)?;
        }
        cluster += per_block;
    }
    Ok(counts)
}

/// The refcount at `index`. Widths below a byte begin at the lowest bit, others are big-endian.
fn get_refcount(block: &[u8], index: u64, order: u32) -> u64 {
    let bits = 1_u64 << order;
    let at = (index * bits / 8) as usize;
    if bits < 8 {
        let byte = u64::from(block.get(at).copied().unwrap_or(0));
        return byte >> (index * bits % 8) & ((1 << bits) - 1);
    }
    let bytes = block.get(at..at + (bits / 8) as usize).unwrap_or_default();
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn set_refcount(block: &mut [u8], index: u64, order: u32, value: u64) {
    let bits = 1_u64 << order;
    let at = (index * bits / 8) as usize;
    if bits < 8 {
        let shift = index * bits % 8;
        if let Some(byte) = block.get_mut(at) {
            let mask = ((1_u64 << bits) - 1) << shift;
            *byte = (u64::from(*byte) & !mask | value << shift & mask) as u8;
        }
        return;
    }
    let bytes = value.to_be_bytes();
    if let Some(field) = block.get_mut(at..at + (bits / 8) as usize) {
        field.copy_from_slice(&bytes[8 - field.len()..]);
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Leak { cluster, refcount, references } => {
                write!(f, "Leaked cluster {cluster} refcount={refcount} reference={references}")
            }
            Finding::Refcount { cluster, refcount, references } => {
                write!(f, "ERROR cluster {cluster} refcount={refcount} reference={references}")
            }
            Finding::Entry { table, entry, why } => write!(f, "ERROR {table} entry {entry:#x}: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_refcounts_begin_at_the_lowest_bit() {
        let mut block = [0; 2];
        set_refcount(&mut block, 1, 1, 3);
        assert_eq!((block[0], get_refcount(&block, 1, 1), get_refcount(&block, 2, 1)), (0b1100, 3, 0));
    }

    #[test]
    fn wide_refcounts_are_big_endian() {
        let mut block = [0; 4];
        set_refcount(&mut block, 1, 4, 0x102);
        assert_eq!((block, get_refcount(&block, 1, 4)), ([0, 0, 1, 2], 0x102));
    }
}
