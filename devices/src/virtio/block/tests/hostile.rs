//! A driver that does what no driver should. One test for each way in which other block devices were broken.

use super::*;
use crate::virtio::testing::{RAM, RAM_SIZE, WRITE, wait_until};

fn guest() -> (Guest, Arc<Fake>) {
    let backend = Fake::new(16);
    (Guest::on(backend.clone()), backend)
}

/// The disk serves a proper request, perhaps after a reset.
fn assert_alive(guest: &mut Guest) {
    assert_eq!(guest.read(3, 512), (OK, vec![3; 512]));
}

fn assert_broken_until_reset(guest: &mut Guest) {
    guest.driver.kick(0);
    wait_until(|| guest.driver.needs_reset());
    guest.ring = guest.driver.bring_up(USUAL, &[QUEUE_SIZE]).remove(0);
    assert!(!guest.driver.needs_reset());
    assert_alive(guest);
}

#[test]
fn a_sector_whose_byte_offset_wraps_is_an_io_error() {
    let (mut guest, backend) = guest();
    assert_eq!(guest.read(1 << 55, 512).0, IOERR);
    assert_eq!(guest.read(u64::MAX, 512).0, IOERR);
    assert_eq!(guest.write(u64::MAX / 512, &[1; 512]), IOERR);
    assert_eq!(guest.write((1 << 55) - 1, &[1; 512]), IOERR);
    assert_eq!(backend.ops(), []);
    assert_alive(&mut guest);
}

#[test]
fn a_request_across_the_disks_end_is_an_io_error() {
    let (mut guest, backend) = guest();
    assert_eq!(guest.read(15, 1024).0, IOERR);
    assert_eq!(guest.write(15, &[1; 1024]), IOERR);
    assert_eq!(guest.read(16, 512).0, IOERR);
    assert_eq!(backend.ops(), []);
    assert_eq!(guest.write(15, &[1; 512]), OK);
}

#[test]
fn a_part_of_a_sector_is_an_io_error() {
    let (mut guest, backend) = guest();
    assert_eq!(guest.read(0, 511).0, IOERR);
    assert_eq!(guest.write(0, &[1; 513]), IOERR);
    assert_eq!(backend.ops(), []);
}

#[test]
fn a_read_only_disk_is_not_written_whatever_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(raw_disk(&dir, 8192, |config| config.readonly = true), USUAL);
    assert_eq!(guest.write(0, &[1; 512]), IOERR);
    assert_eq!(guest.out(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 1, 0)), IOERR);
    assert_eq!(guest.out(VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 0)), UNSUPP);
    assert_eq!(guest.flush(), OK);
    assert_eq!(std::fs::read(dir.path().join("disk.img")).unwrap(), vec![0; 8192]);
}

#[test]
fn write_zeroes_arithmetic_does_not_wrap() {
    let (mut guest, backend) = guest();
    let mut zero = |sector, sectors| guest.out(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(sector, sectors, 0));
    assert_eq!(zero(u64::MAX, 1), IOERR);
    assert_eq!(zero(1 << 55, 1), IOERR);
    assert_eq!(zero(u64::MAX - 7, 16), IOERR);
    assert_eq!(zero(0, u32::MAX), IOERR);
    assert_eq!(zero(15, 2), IOERR);
    assert_eq!(zero(16, 0), OK);
    assert_eq!(backend.ops(), []);
}

#[test]
fn a_request_with_one_bad_segment_changes_nothing() {
    let (mut guest, backend) = guest();
    let segments = [segment(0, 1, 0), segment(100, 1, 0)].concat();
    assert_eq!(guest.out(VIRTIO_BLK_T_DISCARD, 0, &segments), IOERR);
    assert_eq!(backend.ops(), []);
}

#[test]
fn segments_that_are_too_many_none_or_cut_are_an_io_error() {
    let (mut guest, backend) = guest();
    let most = MAX_DISCARD_SEGMENTS as usize;
    assert_eq!(guest.out(VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 0).repeat(most + 1)), IOERR);
    assert_eq!(guest.out(VIRTIO_BLK_T_DISCARD, 0, &[]), IOERR);
    assert_eq!(guest.out(VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 0)[..15]), IOERR);
    assert_eq!(backend.ops(), []);
}

#[test]
fn unknown_flags_are_unsupported() {
    let (mut guest, backend) = guest();
    assert_eq!(guest.out(VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 1)), UNSUPP);
    assert_eq!(guest.out(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 1, 2)), UNSUPP);
    assert_eq!(backend.ops(), []);
}

#[test]
fn an_unknown_request_is_unsupported() {
    let (mut guest, _) = guest();
    assert_eq!(guest.out(2, 0, &[]), UNSUPP);
    assert_eq!(guest.out(u32::MAX, u64::MAX, &[1; 512]), UNSUPP);
    assert_alive(&mut guest);
}

#[test]
fn a_head_that_is_too_short_is_answered_and_costs_no_slot() {
    let (mut guest, _) = guest();
    for _ in 0..2 * QUEUE_SIZE {
        let slot = guest.slot(VIRTIO_BLK_T_IN, 0);
        guest.ring.add(&[Desc::readable(slot, 15), Desc::writable(slot + STATUS, 1)]);
        guest.wait(1);
        assert_eq!(guest.status(slot), IOERR);
    }
    assert_alive(&mut guest);
}

#[test]
fn a_request_without_a_status_is_given_back_and_costs_no_slot() {
    let (mut guest, backend) = guest();
    for _ in 0..2 * QUEUE_SIZE {
        let slot = guest.slot(VIRTIO_BLK_T_OUT, 0);
        guest.ring.add(&[Desc::readable(slot, 16), Desc::readable(slot + DATA, 512)]);
        assert_eq!(guest.wait(1)[0].1, 0);
    }
    assert_eq!(backend.ops(), []);
    assert_alive(&mut guest);
}

#[test]
fn a_request_of_a_status_alone_is_an_io_error() {
    let (mut guest, _) = guest();
    let slot = guest.slot(VIRTIO_BLK_T_IN, 0);
    guest.ring.add(&[Desc::writable(slot + STATUS, 1)]);
    guest.wait(1);
    assert_eq!(guest.status(slot), IOERR);
}

#[test]
fn a_read_of_nothing_and_a_write_of_nothing_do_nothing() {
    let (mut guest, _) = guest();
    assert_eq!(guest.out(VIRTIO_BLK_T_IN, 0, &[]), OK);
    assert_eq!(guest.out(VIRTIO_BLK_T_OUT, 0, &[]), OK);
}

#[test]
fn a_head_beyond_the_table_breaks_the_queue_and_not_the_disk() {
    let (mut guest, _) = guest();
    guest.ring.offer(QUEUE_SIZE);
    assert_broken_until_reset(&mut guest);
}

#[test]
fn a_chain_with_a_loop_breaks_the_queue_and_not_the_disk() {
    let (mut guest, _) = guest();
    guest.ring.set_desc(0, Desc::readable(BUFFERS, 16).then(1));
    guest.ring.set_desc(1, Desc::readable(BUFFERS, 16).then(0));
    guest.ring.offer(0);
    assert_broken_until_reset(&mut guest);
}

#[test]
fn a_buffer_outside_of_ram_breaks_the_queue_and_not_the_disk() {
    let (mut guest, _) = guest();
    guest.ring.add(&[Desc::readable(0x1000, 16), Desc::writable(BUFFERS, 1)]);
    assert_broken_until_reset(&mut guest);
}

#[test]
fn a_buffer_across_the_end_of_ram_breaks_the_queue_and_not_the_disk() {
    let (mut guest, _) = guest();
    let slot = guest.slot(VIRTIO_BLK_T_IN, 0);
    guest.ring.add(&[Desc::readable(slot, 16), Desc::writable(RAM + RAM_SIZE - 512, 513)]);
    assert_broken_until_reset(&mut guest);
}

#[test]
fn a_buffer_whose_end_wraps_breaks_the_queue_and_not_the_disk() {
    let (mut guest, _) = guest();
    let slot = guest.slot(VIRTIO_BLK_T_IN, 0);
    let wrapping = Desc { addr: u64::MAX - 15, len: 512, flags: WRITE, next: 0 };
    guest.ring.add(&[Desc::readable(slot, 16), wrapping]);
    assert_broken_until_reset(&mut guest);
}

#[test]
fn data_to_be_read_behind_data_to_be_written_breaks_the_queue_and_not_the_disk() {
    let (mut guest, _) = guest();
    let slot = guest.slot(VIRTIO_BLK_T_OUT, 0);
    guest.ring.add(&[
        Desc::readable(slot, 16),
        Desc::writable(slot + STATUS, 1),
        Desc::readable(slot + DATA, 512),
    ]);
    assert_broken_until_reset(&mut guest);
}

#[test]
fn an_available_index_too_far_ahead_breaks_the_queue_and_not_the_disk() {
    let (mut guest, _) = guest();
    guest.ring.set_avail_idx(QUEUE_SIZE + 1);
    assert_broken_until_reset(&mut guest);
}

#[test]
fn a_head_offered_over_and_over_is_served_as_often() {
    let (mut guest, backend) = guest();
    let slot = guest.offer_out(VIRTIO_BLK_T_OUT, 1, &[9; 512]);
    (0..QUEUE_SIZE - 1).for_each(|_| guest.ring.offer(0));
    assert_eq!(guest.wait(QUEUE_SIZE.into()).len(), usize::from(QUEUE_SIZE));
    assert_eq!(guest.status(slot), OK);
    assert_eq!(backend.ops().len(), usize::from(QUEUE_SIZE));
}

#[test]
fn writes_to_other_configuration_fields_change_nothing() {
    let (guest, _) = guest();
    let before = guest.driver.config::<60>(0);
    (0..80).filter(|offset| *offset != CONFIG_WRITEBACK).for_each(|offset| {
        guest.device.write_config(offset, &[0xff]);
        guest.device.write_config(offset, &[0xff; 8]);
    });
    guest.device.write_config(u64::MAX, &[0xff; 4]);
    assert_eq!(guest.driver.config::<60>(0), before);
}

#[test]
fn a_guest_that_writes_another_formats_magic_to_a_probed_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(raw_disk(&dir, 8192, |_| {}), USUAL);
    let mut magic = vec![0; 1024];
    magic[..4].copy_from_slice(b"QFI\xfb");
    assert_eq!(guest.write(0, &magic), IOERR);
    assert_eq!(guest.write(1, &magic), OK);
    assert_eq!(guest.read(0, 512), (OK, vec![0; 512]));
}
