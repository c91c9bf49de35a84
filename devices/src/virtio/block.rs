//! The virtio block device (virtio 1.2, 5.2): features, configuration space, and the life of a disk. What a request means is in
//! `request`, which thread serves it in `pool`, and where the bytes are is the backend's affair.

mod halt;
mod pool;
mod request;
mod stats;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::device::{Activation, DeviceType, VirtioDevice};
use super::queue::VirtqueueState;
use crate::backend::disk::{BlockBackend, Disk, MAX_QUEUES, MAX_SERIAL, SECTOR};
pub use halt::IoStatus;
use pool::Pool;
pub use request::IoError;
use request::{MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, Unit};
pub use stats::{BlockStats, Operation, OperationStats};

/// Entries of each queue. With indirect descriptors, which every driver uses, as many requests.
const QUEUE_SIZE: u16 = 256;
/// The most segments of a request: a queue full of them without indirect descriptors, less the request's head and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Length of `struct virtio_blk_config` (virtio 1.2, 5.2.4) up to the fields for secure erase.
const CONFIG_LEN: usize = 60;
/// Where `writeback` is in it.
const CONFIG_WRITEBACK: u64 = 32;

/// What a [`VirtioBlock`] shows of its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOptions {
    /// The serial number, at most [`MAX_SERIAL`] bytes; what is longer is cut.
    pub serial: String,
    /// How many queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
}

impl Default for BlockOptions {
    fn default() -> Self {
        BlockOptions { serial: String::new(), queues: 1 }
    }
}

/// What a snapshot keeps of a disk. What the image holds is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Whether writes may wait in the cache until a flush.
    pub writeback: bool,
    /// The queues; empty while no driver is there.
    pub queues: Vec<Option<VirtqueueState>>,
}

/// A disk of the guest.
///
/// ```
/// use std::sync::Arc;
/// use hvrun_devices::backend::disk::{Disk, DiskConfig};
/// use hvrun_devices::virtio::VirtioDevice;
/// use hvrun_devices::virtio::block::VirtioBlock;
///
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("data.img");
/// std::fs::write(&path, vec![0; 1 << 20]).unwrap();
///
/// let disk = Disk::open(&DiskConfig { serial: Some("data".into()), ..DiskConfig::new(&path) }).unwrap();
/// let device: Arc<dyn VirtioDevice> = Arc::new(VirtioBlock::for_disk(disk).unwrap());
/// assert_eq!(device.name(), "disk data.img");
/// ```
pub struct VirtioBlock {
    unit: Arc<Unit>,
    queue_sizes: Vec<u16>,
    pool: Pool,
}

impl VirtioBlock {
    /// A disk on `backend`.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(backend: Arc<dyn BlockBackend>, options: &BlockOptions) -> io::Result<Self> {
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let serial = options.serial.as_bytes();
        let unit = Arc::new(Unit::new(backend, serial.get(..MAX_SERIAL).unwrap_or(serial)));
        let pool = Pool::new(unit.clone())?;
        Ok(VirtioBlock { unit, queue_sizes: vec![QUEUE_SIZE; queues.into()], pool })
    }

    /// A disk on an image, as its configuration has it.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn for_disk(disk: Arc<Disk>) -> io::Result<Self> {
        let config = disk.config();
        let options =
            BlockOptions { serial: config.serial.clone().unwrap_or_default(), queues: config.queues };
        VirtioBlock::new(disk, &options)
    }

    /// What is behind it.
    pub fn backend(&self) -> &Arc<dyn BlockBackend> {
        &self.unit.backend
    }

    /// Changes the disk's size to `bytes` and tells the driver.
    ///
    /// # Errors
    /// What the backend says.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        self.unit.backend.resize(bytes)?;
        self.pool.config_changed();
        Ok(())
    }

    /// From now on, `listener` hears of every error of the host, on the thread of the request. Where the backend's policy is to stop the
    /// machine, it sees to that, without waiting for it; until there is a listener, such errors are reported to the driver. Only the first
    /// call has an effect.
    pub fn on_error(&self, listener: impl Fn(IoError) + Send + Sync + 'static) {
        let _ = self.unit.listener.set(Box::new(listener));
    }

    /// Tries again what has stopped the machine, which goes on.
    pub fn retry(&self) {
        self.unit.halt.retry();
    }

    /// Whether a request waits for that.
    pub fn io_status(&self) -> IoStatus {
        self.unit.halt.status()
    }

    /// What it has done so far.
    pub fn stats(&self) -> BlockStats {
        self.unit.counters.get()
    }

    /// Stops taking requests and waits for those in flight, whose answers the driver gets. Doorbells are kept. A request
    /// that has stopped the machine is waited for, too: until [`VirtioBlock::retry`].
    pub fn pause(&self) {
        self.pool.pause();
    }

    /// Goes on after [`VirtioBlock::pause`].
    pub fn resume(&self) {
        self.pool.resume();
    }

    /// For a snapshot, while the device is paused and the vCPUs are stopped.
    pub fn state(&self) -> BlockState {
        BlockState { writeback: self.unit.writeback(), queues: self.pool.queue_states() }
    }

    /// `struct virtio_blk_config` (virtio 1.2, 5.2.4).
    fn config(&self) -> [u8; CONFIG_LEN] {
        let backend = &self.unit.backend;
        let physical = (backend.block_size() / SECTOR as u32).max(1);
        let sectors = if backend.is_read_only() { 0 } else { MAX_DISCARD_SECTORS };
        let unmap = u8::from(backend.can_discard());
        let mut config = [0; CONFIG_LEN];
        let mut put = |offset: usize, bytes: &[u8]| {
            if let Some(field) = config.get_mut(offset..offset + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &(backend.capacity() / SECTOR).to_le_bytes()); // capacity
        put(12, &SEG_MAX.to_le_bytes()); // seg_max
        put(20, &(SECTOR as u32).to_le_bytes()); // blk_size
        put(24, &[physical.trailing_zeros() as u8]); // topology.physical_block_exp
        put(26, &(physical as u16).to_le_bytes()); // topology.min_io_size
        put(CONFIG_WRITEBACK as usize, &[u8::from(self.unit.writeback())]); // writeback
        put(34, &(self.queue_sizes.len() as u16).to_le_bytes()); // num_queues
        put(36, &(sectors * u32::from(unmap)).to_le_bytes()); // max_discard_sectors
        put(40, &(MAX_DISCARD_SEGMENTS * u32::from(unmap)).to_le_bytes()); // max_discard_seg
        put(44, &physical.to_le_bytes()); // discard_sector_alignment
        put(48, &sectors.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &MAX_DISCARD_SEGMENTS.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[unmap]); // write_zeroes_may_unmap
        config
    }
}

/// The bit of a feature number.
const fn bit(feature: u32) -> u64 {
    1 << feature
}

impl VirtioDevice for VirtioBlock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn name(&self) -> &str {
        self.unit.backend.name()
    }

    fn features(&self) -> u64 {
        let backend = &self.unit.backend;
        let mut features = bit(VIRTIO_BLK_F_SEG_MAX)
            | bit(VIRTIO_BLK_F_BLK_SIZE)
            | bit(VIRTIO_BLK_F_FLUSH)
            | bit(VIRTIO_BLK_F_TOPOLOGY)
            | bit(VIRTIO_BLK_F_CONFIG_WCE)
            | bit(VIRTIO_BLK_F_MQ);
        if backend.is_read_only() {
            features |= bit(VIRTIO_BLK_F_RO);
        } else {
            features |= bit(VIRTIO_BLK_F_WRITE_ZEROES);
            if backend.can_discard() {
                features |= bit(VIRTIO_BLK_F_DISCARD);
            }
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        // A driver without CONFIG_WCE has no business here, but does no harm: its mode is set at activation.
        if let (CONFIG_WRITEBACK, [value]) = (offset, data) {
            self.unit.set_writeback(value & 1 != 0);
        }
    }

    fn activate(&self, activation: Activation) {
        // Without either feature the driver knows no flush, so every write is one (virtio 1.2, 5.2.5.2).
        if activation.features & bit(VIRTIO_BLK_F_CONFIG_WCE) == 0 {
            self.unit.set_writeback(activation.features & bit(VIRTIO_BLK_F_FLUSH) != 0);
        }
        self.pool.start(activation);
    }

    fn notify(&self, queue: u16) {
        if usize::from(queue) < self.queue_sizes.len() {
            self.pool.doorbell().signal();
        }
    }

    fn doorbell(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        (usize::from(queue) < self.queue_sizes.len()).then(|| self.pool.doorbell().as_fd())
    }

    fn reset(&self) {
        self.pool.stop();
        self.unit.set_writeback(true);
    }
}

impl fmt::Debug for VirtioBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioBlock")
            .field("backend", &self.unit.backend)
            .field("queues", &self.queue_sizes.len())
            .finish_non_exhaustive()
    }
}
