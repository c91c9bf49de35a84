//! How much room qcow2's refcounts take (QEMU's docs/interop/qcow2.txt, "Host cluster management").

/// Width of the refcounts that we write, in bits, as its base 2 logarithm: 16 bits, the only one that version 2 knows.
pub(super) const REFCOUNT_ORDER: u32 = 4;

/// How many clusters the refcount table and the refcount blocks take of an image with `used` other clusters: (table, blocks).
pub(super) fn clusters_for(used: u64, cluster_bits: u32, refcount_order: u32) -> (u64, u64) {
    // A block is a cluster of refcounts of 2^order bits; a table is one of offsets of 8 bytes.
    let per_block = 1 << (cluster_bits + 3 - refcount_order);
    let per_table = 1 << (cluster_bits - 3);
    let (mut table, mut blocks) = (0_u64, 0_u64);
    loop {
        let total = used.saturating_add(table).saturating_add(blocks);
        let more_blocks = total.div_ceil(per_block);
        let more_table = more_blocks.div_ceil(per_table);
        if (more_table, more_blocks) == (table, blocks) {
            return (table, blocks);
        }
        (table, blocks) = (more_table, more_blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_count_themselves() {
        // A block of 64 KiB counts 32768 clusters.
        assert_eq!(clusters_for(32766, 16, 4), (1, 1));
        assert_eq!(clusters_for(32767, 16, 4), (1, 2));
    }
}
