//! The block device as drivers see it: proper ones here, hostile ones in [`hostile`].

mod errors;
mod fake;
mod hostile;
mod threads;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::backend::disk::DiskConfig;
use crate::virtio::testing::{BUFFERS, Desc, Driver, Ring};
use fake::{Fake, Op};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// All that a usual driver negotiates.
const USUAL: u64 = bit(VIRTIO_BLK_F_FLUSH) | bit(VIRTIO_BLK_F_CONFIG_WCE);
/// Space for one request's head, data and status.
const SLOT: u64 = 0x4000;
/// Where in a slot the data and the status are.
const DATA: u64 = 0x1000;
const STATUS: u64 = 0x800;
/// What a status byte is before the device writes it.
const UNTOUCHED: u8 = 0xee;

/// A driver of one block device with one queue.
struct Guest {
    driver: Driver,
    ring: Ring,
    device: Arc<VirtioBlock>,
    next_slot: u64,
}

impl Guest {
    fn new(device: VirtioBlock, features: u64) -> Guest {
        let device = Arc::new(device);
        let (driver, mut rings) = Driver::start(device.clone(), features, &[QUEUE_SIZE]);
        Guest { driver, ring: rings.remove(0), device, next_slot: 0 }
    }

    fn on(backend: Arc<Fake>) -> Guest {
        Guest::new(VirtioBlock::new(backend, &BlockOptions::default()).unwrap(), USUAL)
    }

    /// The next place for a request, with its head written.
    fn slot(&mut self, kind: u32, sector: u64) -> u64 {
        let slot = BUFFERS + self.next_slot * SLOT;
        self.next_slot = (self.next_slot + 1) % 512;
        let mut head = [0; 16];
        head[..4].copy_from_slice(&kind.to_le_bytes());
        head[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.put(slot, &head);
        self.driver.put(slot + STATUS, &[UNTOUCHED]);
        slot
    }

    /// Offers a request that carries `data`; gives its slot.
    fn offer_out(&mut self, kind: u32, sector: u64, data: &[u8]) -> u64 {
        let slot = self.slot(kind, sector);
        self.driver.put(slot + DATA, data);
        let mut descs = vec![Desc::readable(slot, 16)];
        if !data.is_empty() {
            descs.push(Desc::readable(slot + DATA, data.len() as u32));
        }
        descs.push(Desc::writable(slot + STATUS, 1));
        self.ring.add(&descs);
        slot
    }

    /// Offers a request that asks for `len` bytes; gives its slot.
    fn offer_in(&mut self, kind: u32, sector: u64, len: u32) -> u64 {
        let slot = self.slot(kind, sector);
        self.ring.add(&[
            Desc::readable(slot, 16),
            Desc::writable(slot + DATA, len),
            Desc::writable(slot + STATUS, 1),
        ]);
        slot
    }

    fn status(&self, slot: u64) -> u8 {
        self.driver.get(slot + STATUS, 1)[0]
    }

    /// Rings the doorbell and waits for `count` answers.
    fn wait(&mut self, count: usize) -> Vec<(u32, u32)> {
        self.driver.kick(0);
        self.ring.wait_used(count)
    }

    fn out(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        let slot = self.offer_out(kind, sector, data);
        self.wait(1);
        self.status(slot)
    }

    fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        let slot = self.offer_in(VIRTIO_BLK_T_IN, sector, len);
        self.wait(1);
        (self.status(slot), self.driver.get(slot + DATA, len as usize))
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.out(VIRTIO_BLK_T_OUT, sector, data)
    }

    fn flush(&mut self) -> u8 {
        self.out(VIRTIO_BLK_T_FLUSH, 0, &[])
    }
}

/// `struct virtio_blk_discard_write_zeroes`.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn raw_disk(dir: &tempfile::TempDir, len: usize, edit: impl FnOnce(&mut DiskConfig)) -> VirtioBlock {
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![0; len]).unwrap();
    let mut config = DiskConfig::new(&path);
    edit(&mut config);
    VirtioBlock::for_disk(Disk::open(&config).unwrap()).unwrap()
}

#[test]
fn what_is_written_is_in_the_file_and_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(raw_disk(&dir, 1 << 20, |_| {}), USUAL);
    assert_eq!(guest.write(3, &[0x5a; 1024]), OK);
    assert_eq!(guest.read(3, 1024), (OK, vec![0x5a; 1024]));
    let file = std::fs::read(dir.path().join("disk.img")).unwrap();
    assert_eq!(file[3 * 512..5 * 512], [0x5a; 1024]);
    assert_eq!((file[3 * 512 - 1], file[5 * 512]), (0, 0));
}

#[test]
fn a_request_may_be_cut_into_buffers_anywhere() {
    let backend = Fake::new(8);
    let mut guest = Guest::on(backend.clone());
    let slot = guest.slot(VIRTIO_BLK_T_OUT, 1);
    guest.driver.put(slot + DATA, &[7; 512]);
    // The head in two pieces, the data in three, the first of them together with the head's end in memory order only.
    guest.ring.add(&[
        Desc::readable(slot, 5),
        Desc::readable(slot + 5, 11),
        Desc::readable(slot + DATA, 1),
        Desc::readable(slot + DATA + 1, 510),
        Desc::readable(slot + DATA + 511, 1),
        Desc::writable(slot + STATUS, 1),
    ]);
    guest.wait(1);
    assert_eq!(guest.status(slot), OK);
    assert_eq!(backend.sector(1), [7; 512]);
}

#[test]
fn the_status_may_share_a_buffer_with_the_data() {
    let mut guest = Guest::on(Fake::new(8));
    let slot = guest.slot(VIRTIO_BLK_T_IN, 2);
    guest.driver.put(slot + DATA, &[UNTOUCHED; 513]);
    guest.ring.add(&[Desc::readable(slot, 16), Desc::writable(slot + DATA, 513)]);
    assert_eq!(guest.wait(1)[0].1, 513);
    let data = guest.driver.get(slot + DATA, 513);
    assert_eq!((data[0], data[511], data[512]), (2, 2, OK));
}

#[test]
fn an_indirect_request_is_served() {
    let mut guest = Guest::on(Fake::new(8));
    let slot = guest.slot(VIRTIO_BLK_T_IN, 5);
    let table = slot + 0x400;
    Desc::readable(slot, 16).then(1).store(&guest.driver.memory, table, 0);
    Desc::writable(slot + DATA, 512).then(2).store(&guest.driver.memory, table, 1);
    Desc::writable(slot + STATUS, 1).store(&guest.driver.memory, table, 2);
    guest.ring.add(&[Desc::indirect(table, 3)]);
    guest.wait(1);
    assert_eq!((guest.status(slot), guest.driver.get(slot + DATA, 2)), (OK, vec![5, 5]));
}

#[test]
fn a_flush_reaches_the_backend_after_the_write_before_it() {
    let backend = Fake::new(8);
    let mut guest = Guest::on(backend.clone());
    assert_eq!((guest.write(0, &[1; 512]), guest.flush()), (OK, OK));
    assert_eq!(backend.ops(), [Op::Write(0, 512), Op::Flush]);
}

#[test]
fn a_driver_without_flush_gets_every_write_flushed() {
    let backend = Fake::new(8);
    let device = VirtioBlock::new(backend.clone(), &BlockOptions::default()).unwrap();
    let mut guest = Guest::new(device, 0);
    assert_eq!(guest.write(1, &[1; 512]), OK);
    assert_eq!(backend.ops(), [Op::Write(512, 512), Op::Flush]);
}

#[test]
fn turning_the_cache_off_flushes_every_write() {
    let backend = Fake::new(8);
    let mut guest = Guest::on(backend.clone());
    guest.device.write_config(CONFIG_WRITEBACK, &[0]);
    assert_eq!(guest.driver.config::<1>(CONFIG_WRITEBACK), [0]);
    assert_eq!(guest.write(0, &[1; 512]), OK);
    assert_eq!(backend.ops(), [Op::Write(0, 512), Op::Flush]);
}

#[test]
fn a_reset_turns_the_cache_on_again() {
    let guest = Guest::on(Fake::new(8));
    guest.device.write_config(CONFIG_WRITEBACK, &[0]);
    guest.driver.set_status(0);
    assert_eq!(guest.driver.config::<1>(CONFIG_WRITEBACK), [1]);
}

#[test]
fn the_serial_number_is_told_and_padded() {
    let options = BlockOptions { serial: "root".into(), queues: 1 };
    let mut guest = Guest::new(VirtioBlock::new(Fake::new(8), &options).unwrap(), USUAL);
    let slot = guest.offer_in(VIRTIO_BLK_T_GET_ID, 0, 20);
    guest.driver.put(slot + DATA, &[UNTOUCHED; 20]);
    guest.wait(1);
    assert_eq!(guest.status(slot), OK);
    assert_eq!(guest.driver.get(slot + DATA, 20), [&b"root"[..], &[0; 16]].concat());
}

#[test]
fn a_serial_number_that_is_too_long_is_cut() {
    let options = BlockOptions { serial: "x".repeat(30), queues: 1 };
    let mut guest = Guest::new(VirtioBlock::new(Fake::new(8), &options).unwrap(), USUAL);
    let slot = guest.offer_in(VIRTIO_BLK_T_GET_ID, 0, 24);
    guest.wait(1);
    assert_eq!(guest.driver.get(slot + DATA, 24), [&[b'x'; 20][..], &[0; 4]].concat());
}

#[test]
fn discard_and_write_zeroes_reach_the_backend_segment_by_segment() {
    let backend = Fake::new(64);
    let mut guest = Guest::on(backend.clone());
    let two = [segment(1, 2, 0), segment(8, 4, 0)].concat();
    assert_eq!(guest.out(VIRTIO_BLK_T_DISCARD, 0, &two), OK);
    assert_eq!(guest.out(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(16, 1, 1)), OK);
    assert_eq!(guest.out(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(17, 1, 0)), OK);
    let expected = [
        Op::Discard(512, 1024),
        Op::Discard(4096, 2048),
        Op::Zero(8192, 512, true),
        Op::Zero(8704, 512, false),
    ];
    assert_eq!(backend.ops(), expected);
}

#[test]
fn an_error_of_the_backend_is_an_io_error_and_the_disk_goes_on() {
    let backend = Fake::new(8);
    let mut guest = Guest::on(backend.clone());
    backend.fail.store(true, Ordering::SeqCst);
    assert_eq!((guest.read(0, 512).0, guest.write(0, &[1; 512]), guest.flush()), (IOERR, IOERR, IOERR));
    backend.fail.store(false, Ordering::SeqCst);
    assert_eq!(guest.read(3, 512), (OK, vec![3; 512]));
}

#[test]
fn a_backend_that_panics_is_an_io_error_and_the_disk_goes_on() {
    let backend = Fake::new(8);
    let mut guest = Guest::on(backend.clone());
    backend.panic.store(true, Ordering::SeqCst);
    assert_eq!(guest.read(0, 512).0, IOERR);
    backend.panic.store(false, Ordering::SeqCst);
    assert_eq!(guest.read(3, 512).0, OK);
}

#[test]
fn the_configuration_space_describes_the_disk() {
    let options = BlockOptions { serial: String::new(), queues: 4 };
    let device = Arc::new(VirtioBlock::new(Fake::new(100), &options).unwrap());
    let driver = Driver::new(device);
    assert_eq!(u64::from_le_bytes(driver.config(0)), 100);
    assert_eq!(u32::from_le_bytes(driver.config(12)), 254);
    assert_eq!(u32::from_le_bytes(driver.config(20)), 512);
    assert_eq!(u16::from_le_bytes(driver.config(34)), 4);
    assert_eq!(u32::from_le_bytes(driver.config(36)), MAX_DISCARD_SECTORS);
    assert_eq!(driver.config::<1>(56), [1]);
    assert_eq!(driver.config::<4>(60), [0; 4]);
}

#[test]
fn a_read_only_disk_offers_nothing_that_writes() {
    let dir = tempfile::tempdir().unwrap();
    let device = raw_disk(&dir, 4096, |config| config.readonly = true);
    let features = device.features();
    assert_ne!(features & bit(VIRTIO_BLK_F_RO), 0);
    assert_eq!(features & (bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES)), 0);
}

#[test]
fn discard_off_is_not_offered_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let device = raw_disk(&dir, 4096, |config| config.discard = false);
    assert_eq!(device.features() & bit(VIRTIO_BLK_F_DISCARD), 0);
    let mut guest = Guest::new(device, USUAL);
    assert_eq!(guest.out(VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 0)), UNSUPP);
}

#[test]
fn a_resize_is_announced_and_the_new_room_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(raw_disk(&dir, 4096, |_| {}), USUAL);
    assert_eq!(guest.write(8, &[1; 512]), IOERR);
    guest.driver.acknowledge();
    guest.device.resize(8192).unwrap();
    // Bit 1 of the interrupt status: the configuration has changed.
    assert_eq!(guest.driver.acknowledge() & 2, 2);
    assert_eq!(u64::from_le_bytes(guest.driver.config(0)), 16);
    assert_eq!(guest.write(8, &[1; 512]), OK);
}

#[test]
fn every_queue_is_served() {
    let options = BlockOptions { serial: String::new(), queues: 3 };
    let device = Arc::new(VirtioBlock::new(Fake::new(8), &options).unwrap());
    let features = USUAL | bit(VIRTIO_BLK_F_MQ);
    let (driver, mut rings) = Driver::start(device, features, &[QUEUE_SIZE; 3]);
    for (index, ring) in (0..).zip(&mut rings) {
        let slot = BUFFERS + u64::from(index) * SLOT;
        driver.put(slot, &[0; 16]);
        ring.add(&[
            Desc::readable(slot, 16),
            Desc::writable(slot + DATA, 512),
            Desc::writable(slot + STATUS, 1),
        ]);
        driver.kick(index);
        assert_eq!(ring.wait_used(1), [(0, 513)]);
    }
}

#[test]
fn what_lies_in_the_ring_before_the_driver_is_ready_is_served_without_a_doorbell() {
    let device = Arc::new(VirtioBlock::new(Fake::new(8), &BlockOptions::default()).unwrap());
    let driver = Driver::new(device);
    driver.negotiate(USUAL | crate::virtio::device::F_VERSION_1);
    let mut ring = Ring::new(&driver.memory, 0, QUEUE_SIZE);
    driver.set_queue(&ring);
    driver.put(BUFFERS, &[0; 16]);
    ring.add(&[Desc::readable(BUFFERS, 16), Desc::writable(BUFFERS + DATA, 513)]);
    driver.set_status(crate::virtio::testing::status::RUNNING);
    assert_eq!(ring.wait_used(1), [(0, 513)]);
}

#[test]
fn a_paused_disk_keeps_requests_until_it_goes_on() {
    let mut guest = Guest::on(Fake::new(8));
    assert_eq!(guest.read(0, 512).0, OK);
    guest.device.pause();
    let slot = guest.offer_in(VIRTIO_BLK_T_IN, 4, 512);
    guest.driver.kick(0);
    let state = guest.device.state();
    assert_eq!(state.queues[0].map(|queue| (queue.next_avail, queue.next_used)), Some((1, 1)));
    guest.device.resume();
    guest.ring.wait_used(1);
    assert_eq!(guest.status(slot), OK);
}

#[test]
fn a_disk_can_be_brought_up_again_after_a_reset() {
    let mut guest = Guest::on(Fake::new(8));
    assert_eq!(guest.read(1, 512).0, OK);
    guest.ring = guest.driver.bring_up(USUAL, &[QUEUE_SIZE]).remove(0);
    assert_eq!(guest.read(2, 512), (OK, vec![2; 512]));
}
