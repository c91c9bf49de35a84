//! Walks all tables of a qcow2 image and counts how often each cluster is used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::super::header::Qcow2Header;
use super::{CheckReport, Finding, OFFSET, REFTABLE_OFFSET, be32, be64};

/// Bit 62 of an L2 entry: compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit 63 of an L1 or L2 entry: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// Bytes of a snapshot's fixed part, and the limits on what QEMU accepts of the rest.
const SNAPSHOT_LEN: u64 = 40;
const MAX_SNAPSHOT_EXTRA: u64 = 1024;
/// QEMU's limit on an L1 table, in entries.
const MAX_L1_ENTRIES: u32 = (32 << 20) / 8;

/// An image's tables, not yet looked at.
#[derive(Debug)]
pub(super) struct Tables<'a> {
    pub(super) file: &'a File,
    pub(super) cluster: u64,
    pub(super) refcount_order: u32,
    cluster_bits: u32,
    clusters: u64,
    l1: (u64, u32),
    reftable: (u64, u32),
    snapshots: (u64, u32),
}

/// What a walk has counted.
#[derive(Debug)]
pub(super) struct Walk {
    /// How often each cluster of the file is used.
    pub(super) references: Vec<u32>,
    /// Where the refcount blocks are.
    pub(super) blocks: Vec<Option<u64>>,
}

/// A walk that is under way.
struct Walker<'a> {
    tables: &'a Tables<'a>,
    walk: Walk,
    report: &'a mut CheckReport,
    found: &'a mut dyn FnMut(&Finding),
}

impl<'a> Tables<'a> {
    /// The tables that a checked header names.
    pub(super) fn new(file: &'a File, head: &[u8], header: &Qcow2Header, clusters: u64) -> Self {
        Tables {
            file,
            cluster: 1 << header.cluster_bits,
            refcount_order: header.refcount_order,
            cluster_bits: header.cluster_bits,
            clusters,
            l1: (be64(head, 40), be32(head, 36)),
            reftable: (header.reftable_offset, be32(head, 56)),
            snapshots: (be64(head, 64), be32(head, 60)),
        }
    }

    pub(super) fn refcounts_per_block(&self) -> u64 {
        (self.cluster * 8) >> self.refcount_order
    }

    /// A cluster of the file, with zeros where the file ends before it does.
    pub(super) fn read_cluster(&self, at: u64) -> io::Result<Vec<u8>> {
        self.read(at, self.cluster)
    }

    fn read(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], at + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(bytes)
    }

    fn read_entries(&self, at: u64, count: u64) -> io::Result<Vec<u64>> {
        Ok(self
            .read(at, count * 8)?
            .as_chunks::<8>()
            .0
            .iter()
            .map(|entry| u64::from_be_bytes(*entry))
            .collect())
    }

    /// Counts all uses.
    pub(super) fn walk(&self, report: &mut CheckReport, found: &mut dyn FnMut(&Finding)) -> io::Result<Walk> {
        let references = vec![0; usize::try_from(self.clusters).map_err(io::Error::other)?];
        let walk = Walk { references, blocks: Vec::new() };
        let mut walker = Walker { tables: self, walk, report, found };
        walker.mark("header", 0, self.cluster);
        walker.l1(self.l1.0, self.l1.1, true)?;
        walker.snapshots()?;
        walker.refcounts()?;
        Ok(walker.walk)
    }
}

impl Walker<'_> {
    /// Counts a use of what is at `at`; says whether it lies in the file.
    fn mark(&mut self, table: &'static str, at: u64, len: u64) -> bool {
        let cluster = self.tables.cluster;
        let end = at.saturating_add(len).div_ceil(cluster);
        if end > self.tables.clusters {
            self.wrong(table, at, "it lies beyond the file's end");
            return false;
        }
        for number in at / cluster..end {
            if let Some(count) = self.walk.references.get_mut(number as usize) {
                *count = count.saturating_add(1);
            }
        }
        true
    }

    fn wrong(&mut self, table: &'static str, entry: u64, why: &'static str) {
        self.report.corruptions += 1;
        (self.found)(&Finding::Entry { table, entry, why });
    }

    fn is_aligned(&mut self, table: &'static str, entry: u64, at: u64) -> bool {
        let aligned = at.is_multiple_of(self.tables.cluster);
        if !aligned {
            self.wrong(table, entry, "it is not at the beginning of a cluster");
        }
        aligned
    }

    fn l1(&mut self, at: u64, entries: u32, active: bool) -> io::Result<()> {
        if entries == 0 || !self.mark("L1 table", at, u64::from(entries) * 8) {
            return Ok(());
        }
        for (index, entry) in self.tables.read_entries(at, entries.into())?.into_iter().enumerate() {
            let table = entry & OFFSET;
            if table == 0 || !self.is_aligned("L1", entry, table) {
                continue;
            }
            if !self.mark("L1", table, self.tables.cluster) {
                continue;
            }
            let first = (index as u64) * (self.tables.cluster / 8);
            self.l2(table, first, active)?;
        }
        Ok(())
    }

    fn l2(&mut self, at: u64, first: u64, active: bool) -> io::Result<()> {
        let mut next = None;
        let entries = self.tables.read_entries(at, self.tables.cluster / 8)?;
        for (index, entry) in entries.into_iter().enumerate() {
            // What lies behind the disk's end counts, too, but is not of the disk.
            let counts = active && first + (index as u64) < self.report.total_clusters;
            if entry & COMPRESSED != 0 {
                let shift = 62 - (self.tables.cluster_bits - 8);
                let offset = entry & ((1 << shift) - 1);
                let sectors = ((entry & !(COPIED | COMPRESSED)) >> shift) + 1;
                let start = offset & !511;
                self.mark("L2 (compressed)", start, sectors * 512);
                if entry & COPIED != 0 {
                    self.wrong("L2", entry, "a compressed cluster is marked as one that may be written");
                }
                if counts {
                    self.report.allocated_clusters += 1;
                    self.report.fragmented_clusters += 1;
                    self.report.compressed_clusters += 1;
                }
                continue;
            }
            let offset = entry & OFFSET;
            if offset == 0 || !self.is_aligned("L2", entry, offset) {
                continue;
            }
            if !self.mark("L2", offset, self.tables.cluster) {
                continue;
            }
            if counts {
                self.report.allocated_clusters += 1;
                self.report.fragmented_clusters += u64::from(next.is_some_and(|next: u64| next != offset));
                next = Some(offset + self.tables.cluster);
            }
        }
        Ok(())
    }

    fn snapshots(&mut self) -> io::Result<()> {
        let (start, count) = self.tables.snapshots;
        let mut at = start;
        for _ in 0..count {
            let fixed = self.tables.read(at, SNAPSHOT_LEN)?;
            let extra = u64::from(be32(&fixed, 36));
            let names = u64::from(be32(&fixed, 12) >> 16) + u64::from(be32(&fixed, 12) & 0xffff);
            if extra > MAX_SNAPSHOT_EXTRA || be32(&fixed, 8) > MAX_L1_ENTRIES {
                self.wrong("snapshot table", at, "its fields make no sense");
                return Ok(());
            }
            self.l1(be64(&fixed, 0), be32(&fixed, 8), false)?;
            at = at.saturating_add((SNAPSHOT_LEN + extra + names).next_multiple_of(8));
        }
        if count > 0 {
            self.mark("snapshot table", start, at - start);
        }
        Ok(())
    }

    fn refcounts(&mut self) -> io::Result<()> {
        let (at, clusters) = self.tables.reftable;
        let len = u64::from(clusters) * self.tables.cluster;
        if !self.mark("refcount table", at, len) {
            return Ok(());
        }
        for entry in self.tables.read_entries(at, len / 8)? {
            let block = entry & REFTABLE_OFFSET;
            let good = block != 0
                && self.is_aligned("refcount table", entry, block)
                && self.mark("refcount table", block, self.tables.cluster);
            self.walk.blocks.push(good.then_some(block));
        }
        Ok(())
    }
}

/// A second walk, of the active tables: whether their entries say "refcount is one" of exactly the clusters of which that is so. One that
/// says it of a cluster that others use as well lets a write change all of them.
pub(super) fn check_copied(
    tables: &Tables<'_>,
    refcounts: &[u32],
    repair: bool,
    report: &mut CheckReport,
    found: &mut dyn FnMut(&Finding),
) -> io::Result<()> {
    let (at, count) = tables.l1;
    let mut l1 = tables.read_entries(at, count.into())?;
    let l2s: Vec<u64> = l1.iter().map(|entry| entry & OFFSET).collect();
    copied_table(tables, ("L1", at, &mut l1), refcounts, repair, report, found)?;
    for l2_at in l2s {
        // What cannot be was found by the first walk.
        if l2_at != 0 && l2_at.is_multiple_of(tables.cluster) && l2_at / tables.cluster < tables.clusters {
            let mut l2 = tables.read_entries(l2_at, tables.cluster / 8)?;
            copied_table(tables, ("L2", l2_at, &mut l2), refcounts, repair, report, found)?;
        }
    }
    Ok(())
}

fn copied_table(
    tables: &Tables<'_>,
    (table, at, entries): (&'static str, u64, &mut [u64]),
    refcounts: &[u32],
    repair: bool,
    report: &mut CheckReport,
    found: &mut dyn FnMut(&Finding),
) -> io::Result<()> {
    let mut changed = false;
    for entry in entries.iter_mut() {
        let offset = *entry & OFFSET;
        if offset == 0 || (table == "L2" && *entry & COMPRESSED != 0) {
            continue;
        }
        let Some(refcount) = refcounts.get((offset / tables.cluster) as usize) else { continue };
        if (*refcount == 1) == (*entry & COPIED != 0) {
            continue;
        }
        let why = "it is marked as the only user of a cluster that is counted otherwise, or the reverse";
        found(&Finding::Entry { table, entry: *entry, why });
        if repair {
            *entry ^= COPIED;
            changed = true;
            report.corruptions_fixed += 1;
        } else {
            report.corruptions += 1;
        }
    }
    if changed {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        tables.file.write_all_at(&bytes, at)?;
    }
    Ok(())
}
