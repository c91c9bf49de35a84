//! What a guest tells about its memory (virtio 1.2, 5.5.6.3).

use std::io::Read;
use std::time::SystemTime;

use crate::virtio::chain::ChainReader;

/// Each statistic's name, as QEMU's monitor calls it, at its tag (virtio 1.2, 5.5.6.4; the last six came with 1.3).
const NAMES: [&str; 16] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kill",
    "stat-alloc-stall",
    "stat-async-scan",
    "stat-direct-scan",
    "stat-async-reclaim",
    "stat-direct-reclaim",
];

/// Most entries that are looked at. Guests send one of each kind they know.
const MAX_ENTRIES: usize = 256;

/// A guest's statistics: counters, and sizes in bytes. Each is only the guest's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonStats {
    values: [Option<u64>; NAMES.len()],
    updated: SystemTime,
}

impl BalloonStats {
    /// Reads what the guest sent: pairs of a tag (16 bits) and a value (64 bits), packed. Tags that are not known are left out.
    pub(super) fn read(mut reader: ChainReader<'_, '_>) -> Self {
        let mut values = [None; NAMES.len()];
        for _ in 0..MAX_ENTRIES {
            let (mut tag, mut value) = ([0; 2], [0; 8]);
            if reader.read_exact(&mut tag).is_err() || reader.read_exact(&mut value).is_err() {
                break;
            }
            if let Some(slot) = values.get_mut(usize::from(u16::from_le_bytes(tag))) {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
        BalloonStats { values, updated: SystemTime::now() }
    }

    /// When they came.
    pub fn updated(&self) -> SystemTime {
        self.updated
    }

    /// All that the guest told, with QEMU's names (`stat-free-memory`).
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES.into_iter().zip(self.values).filter_map(|(name, value)| Some((name, value?)))
    }

    /// One by its name; `None` if the guest did not tell it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// All names, known to the guest or not.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.into_iter()
    }
}
