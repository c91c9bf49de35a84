//! Writes a new qcow2 image from its beginning to its end (QEMU's docs/interop/qcow2.txt): data in the order of the disk, no cluster
//! twice. Images that exist are imago's affair.
//!
//! The file becomes: header, L1 table, data and L2 tables as they come, refcount table, refcount blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::header::QCOW2_MAGIC;
use super::create::Layout;
use super::deflate;
use super::refcounts::{REFCOUNT_ORDER, clusters_for};

/// Bit 63 of L1 and L2 entries: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// Bit 62 of L2 entries: a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// In what the length of a compressed cluster is counted.
const COMPRESSED_SECTOR: u64 = 512;
/// Header extension types.
const EXT_END: u32 = 0;
pub(super) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Bytes of the headers that we write. Version 3 with the compression type.
const V2_HEADER: u32 = 72;
const V3_HEADER: u32 = 112;
/// Compatible feature bit 0: refcounts may be written late.
const LAZY_REFCOUNTS: u64 = 1;
/// What is compared at a time to find zeros.
const ZEROS: [u8; 4096] = [0; 4096];

/// Whether all of `bytes` are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// An image that is being written.
#[derive(Debug)]
pub(super) struct Qcow2Writer<'a> {
    file: &'a File,
    layout: &'a Layout,
    cluster: u64,
    l1: Vec<u64>,
    l2: Vec<u64>,
    /// Which L2 table `l2` is; none before the first.
    current: Option<usize>,
    /// A refcount for each cluster of the file.
    refcounts: Vec<u16>,
    /// Where the last compressed cluster ended.
    packed: Option<u64>,
}

impl<'a> Qcow2Writer<'a> {
    /// Begins an image in an empty file. The layout's limits have been checked.
    pub(super) fn new(file: &'a File, layout: &'a Layout) -> Self {
        let cluster = layout.cluster_size();
        let l1_entries = layout.l1_entries() as usize;
        let mut writer = Qcow2Writer {
            file,
            layout,
            cluster,
            l1: vec![0; l1_entries],
            l2: vec![0; (cluster / 8) as usize],
            current: None,
            refcounts: Vec::new(),
            packed: None,
        };
        writer.allocate(1 + (l1_entries as u64 * 8).div_ceil(cluster));
        writer
    }

    /// Takes `count` clusters at the file's end; returns where they begin.
    fn allocate(&mut self, count: u64) -> u64 {
        let at = self.end();
        self.refcounts.resize(self.refcounts.len() + count as usize, 1);
        at
    }

    fn end(&self) -> u64 {
        self.refcounts.len() as u64 * self.cluster
    }

    /// Writes `bytes` to the disk at `offset`, the beginning of a cluster. Clusters of zeros take no room.
    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let cluster = self.cluster as usize;
        while !bytes.is_empty() {
            let zero = is_zero(&bytes[..cluster.min(bytes.len())]);
            let mut len = 0;
            while len < bytes.len() && is_zero(&bytes[len..(len + cluster).min(bytes.len())]) == zero {
                len = (len + cluster).min(bytes.len());
            }
            let (run, rest) = bytes.split_at(len);
            if !zero {
                self.write_run(offset, run)?;
            }
            offset += len as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn write_run(&mut self, offset: u64, run: &[u8]) -> io::Result<()> {
        let count = (run.len() as u64).div_ceil(self.cluster);
        let at = self.allocate(count);
        self.file.write_all_at(run, at)?;
        for number in 0..count {
            self.map(offset / self.cluster + number, (at + number * self.cluster) | COPIED)?;
        }
        Ok(())
    }

    /// Writes one cluster compressed, or as it is where that takes less.
    pub(super) fn write_compressed(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if is_zero(bytes) {
            return Ok(());
        }
        let mut whole;
        let bytes = if (bytes.len() as u64) < self.cluster {
            whole = bytes.to_vec();
            whole.resize(self.cluster as usize, 0);
            &whole[..]
        } else {
            bytes
        };
        let Some(compressed) = deflate::deflate(bytes) else {
            return self.write_run(offset, bytes);
        };
        let len = compressed.len() as u64;
        let fits = |at: u64| {
            at.next_multiple_of(self.cluster) == self.end() || at % self.cluster + len <= self.cluster
        };
        let at = self.packed.filter(|at| fits(*at)).unwrap_or(self.end());
        let last = (at + len - 1) / self.cluster;
        for number in at / self.cluster..=last {
            match self.refcounts.get_mut(number as usize) {
                // Room in a cluster of other compressed ones; 65535 of them would not fit.
                Some(count) => *count = count.saturating_add(1),
                None => drop(self.allocate(1)),
            }
        }
        self.file.write_all_at(&compressed, at)?;
        self.packed = Some(at + len);
        let sectors = (at + len - 1) / COMPRESSED_SECTOR - at / COMPRESSED_SECTOR;
        let shift = 62 - (self.layout.cluster_bits - 8);
        self.map(offset / self.cluster, COMPRESSED | sectors << shift | at)
    }

    /// Gives every cluster of the disk a place in the file.
    pub(super) fn preallocate(&mut self) -> io::Result<()> {
        for number in 0..self.layout.size.div_ceil(self.cluster) {
            let at = self.allocate(1);
            self.map(number, at | COPIED)?;
        }
        Ok(())
    }

    fn map(&mut self, cluster: u64, entry: u64) -> io::Result<()> {
        let per_table = self.cluster / 8;
        let table = (cluster / per_table) as usize;
        if self.current != Some(table) {
            self.finish_l2()?;
            self.current = Some(table);
        }
        if let Some(slot) = self.l2.get_mut((cluster % per_table) as usize) {
            *slot = entry;
        }
        Ok(())
    }

    fn finish_l2(&mut self) -> io::Result<()> {
        let Some(table) = self.current.take() else { return Ok(()) };
        let at = self.allocate(1);
        self.file.write_all_at(&big_endian(&self.l2), at)?;
        self.l2.fill(0);
        if let Some(slot) = self.l1.get_mut(table) {
            *slot = at | COPIED;
        }
        Ok(())
    }

    /// Writes the tables and the header, and returns the file's length.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.finish_l2()?;
        if self.l1.iter().any(|entry| *entry != 0) {
            self.file.write_all_at(&big_endian(&self.l1), self.cluster)?;
        }
        let (table, blocks) =
            clusters_for(self.refcounts.len() as u64, self.layout.cluster_bits, REFCOUNT_ORDER);
        let table_at = self.allocate(table);
        let blocks_at = self.allocate(blocks);
        let offsets: Vec<u64> = (0..blocks).map(|number| blocks_at + number * self.cluster).collect();
        self.file.write_all_at(&big_endian(&offsets), table_at)?;
        let counts: Vec<u8> = self.refcounts.iter().flat_map(|count| count.to_be_bytes()).collect();
        self.file.write_all_at(&counts, blocks_at)?;
        let header = self.header(table_at, table as u32);
        self.file.write_all_at(&header, 0)?;
        Ok(self.end())
    }

    fn header(&self, table_at: u64, table_clusters: u32) -> Vec<u8> {
        let layout = self.layout;
        let mut header = Vec::with_capacity(512);
        header.extend(QCOW2_MAGIC);
        put32(&mut header, layout.version);
        // The backing file's name, known below.
        put64(&mut header, 0);
        put32(&mut header, 0);
        put32(&mut header, layout.cluster_bits);
        put64(&mut header, layout.size);
        // No encryption.
        put32(&mut header, 0);
        put32(&mut header, self.l1.len() as u32);
        put64(&mut header, if self.l1.is_empty() { 0 } else { self.cluster });
        put64(&mut header, table_at);
        put32(&mut header, table_clusters);
        // No internal snapshots.
        put32(&mut header, 0);
        put64(&mut header, 0);
        if layout.version >= 3 {
            put64(&mut header, 0);
            put64(&mut header, if layout.lazy_refcounts { LAZY_REFCOUNTS } else { 0 });
            put64(&mut header, 0);
            put32(&mut header, REFCOUNT_ORDER);
            put32(&mut header, V3_HEADER);
            // Compression type 0: zlib; padding.
            put64(&mut header, 0);
        }
        debug_assert_eq!(header.len() as u32, if layout.version >= 3 { V3_HEADER } else { V2_HEADER });
        append_backing(&mut header, layout.backing.as_deref(), layout.backing_format.as_deref(), &[]);
        header
    }
}

/// Completes a header: `extensions` as they are, then the backing file's format and name, if there is one, and where that is.
pub(super) fn append_backing(
    header: &mut Vec<u8>,
    name: Option<&str>,
    format: Option<&str>,
    extensions: &[u8],
) {
    header.extend(extensions);
    if let Some(format) = format {
        put32(header, EXT_BACKING_FORMAT);
        put32(header, format.len() as u32);
        header.extend(format.as_bytes());
        header.resize(header.len().next_multiple_of(8), 0);
    }
    put32(header, EXT_END);
    put32(header, 0);
    let (at, len) = name.map_or((0, 0), |name| (header.len() as u64, name.len() as u32));
    header.extend(name.unwrap_or_default().as_bytes());
    if let Some(field) = header.get_mut(8..16) {
        field.copy_from_slice(&at.to_be_bytes());
    }
    if let Some(field) = header.get_mut(16..20) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

fn put32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend(value.to_be_bytes());
}

fn put64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend(value.to_be_bytes());
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
