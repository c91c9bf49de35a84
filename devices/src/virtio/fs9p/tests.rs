//! The 9p device behind virtio-mmio, driven by hand: that requests reach the server and replies the ring, whoever serves them.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::backend::ninep::ShareConfig;
use crate::virtio::testing::{BUFFERS, Desc, Driver, Ring};

/// Message types of 9P2000.L; a reply's is one more.
const TVERSION: u8 = 100;
const TATTACH: u8 = 104;
const TFLUSH: u8 = 108;
const TWALK: u8 = 110;
const TREAD: u8 = 116;
const TLOPEN: u8 = 12;
const TGETATTR: u8 = 24;
const TSETATTR: u8 = 26;
const TUNLINKAT: u8 = 76;
const RLERROR: u8 = 7;
const NOFID: u32 = u32::MAX;
/// Room for a reply.
const REPLY: u32 = 0x2000;

fn message(kind: u8, tag: u16, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    let size = u32::try_from(body.len() + HEADER_SIZE).unwrap().to_le_bytes();
    [&size[..], &[kind], &tag.to_le_bytes(), &body].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
}

/// A guest with a share of a directory that has a file `file` with `contents`.
struct Guest {
    driver: Driver,
    ring: Ring,
    dir: TempDir,
}

impl Guest {
    fn start() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "contents").unwrap();
        let share = Share::open(&ShareConfig::new(dir.path(), "tag")).unwrap();
        let (driver, mut rings) = Driver::start(Arc::new(Fs9p::new(share)), F_MOUNT_TAG, &QUEUE_SIZES);
        Guest { driver, ring: rings.remove(0), dir }
    }

    /// Lies in slot `slot` of the buffers: a request, and room for its reply.
    fn add(&mut self, slot: u64, request: &[u8]) -> u16 {
        let at = BUFFERS + slot * 0x1_0000;
        self.driver.put(at, request);
        let len = u32::try_from(request.len()).unwrap();
        self.ring.add(&[Desc::readable(at, len), Desc::writable(at + 0x8000, REPLY)])
    }

    fn reply(&self, slot: u64, len: u32) -> Vec<u8> {
        self.driver.get(BUFFERS + slot * 0x1_0000 + 0x8000, len as usize)
    }

    /// One request and its reply, whoever serves it.
    fn call(&mut self, request: &[u8]) -> Vec<u8> {
        self.add(0, request);
        self.driver.kick(0);
        let used = self.ring.wait_used(1);
        self.reply(0, used[0].1)
    }

    /// Version and attach: fid 0 is the root.
    fn mount(&mut self) {
        let version = self.call(&message(TVERSION, u16::MAX, &[&8192u32.to_le_bytes(), &text("9P2000.L")]));
        assert_eq!(version[4], TVERSION + 1);
        let fids = [0, NOFID].map(u32::to_le_bytes).concat();
        let attach = message(TATTACH, 1, &[&fids, &text("root"), &text(""), &0u32.to_le_bytes()]);
        assert_eq!(self.call(&attach)[4], TATTACH + 1);
    }

    /// Walks to `file` as fid 1 and opens it for reading.
    fn open(&mut self) {
        let fids = [0u32, 1].map(u32::to_le_bytes).concat();
        let walk = message(TWALK, 1, &[&fids, &1u16.to_le_bytes(), &text("file")]);
        assert_eq!(self.call(&walk)[4], TWALK + 1);
        let open = message(TLOPEN, 1, &[&1u32.to_le_bytes(), &0u32.to_le_bytes()]);
        assert_eq!(self.call(&open)[4], TLOPEN + 1);
    }
}

fn unlink(tag: u16, name: &str) -> Vec<u8> {
    message(TUNLINKAT, tag, &[&0u32.to_le_bytes(), &text(name), &0u32.to_le_bytes()])
}

/// How the server takes a request that lies in one piece.
fn kind(share: &Arc<Share>, request: &[u8]) -> RequestKind {
    let session = Session::new(share.clone());
    let mut reply = [0; 8192];
    let fids = [0, NOFID].map(u32::to_le_bytes).concat();
    session.handle_bytes(
        &message(TVERSION, NOFID as u16, &[&8192u32.to_le_bytes(), &text("9P2000.L")]),
        &mut reply,
    );
    let attach = message(TATTACH, 1, &[&fids, &text("root"), &text(""), &0u32.to_le_bytes()]);
    session.handle_bytes(&attach, &mut reply);
    let walk = [0u32, 1].map(u32::to_le_bytes).concat();
    session.handle_bytes(&message(TWALK, 1, &[&walk, &1u16.to_le_bytes(), &text("large")]), &mut reply);
    let mut request = request.to_vec();
    session.kind(&[vm_memory::VolatileSlice::from(&mut request[..])])
}

/// A share with a small file, a large one, and one of two names.
fn sizes() -> (TempDir, Arc<Share>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("small"), "contents").unwrap();
    fs::write(dir.path().join("large"), vec![1; 8 << 20]).unwrap();
    fs::write(dir.path().join("linked"), vec![1; 8 << 20]).unwrap();
    fs::hard_link(dir.path().join("linked"), dir.path().join("link")).unwrap();
    let share = Share::open(&ShareConfig::new(dir.path(), "tag")).unwrap();
    (dir, share)
}

#[test]
fn removing_a_small_file_is_quick() {
    let (_dir, share) = sizes();
    assert_eq!(kind(&share, &unlink(1, "small")), RequestKind::Quick);
}

#[test]
fn removing_the_only_name_of_a_large_file_may_block() {
    let (_dir, share) = sizes();
    assert_eq!(kind(&share, &unlink(1, "large")), RequestKind::MayBlock);
}

#[test]
fn removing_one_of_two_names_of_a_large_file_is_quick() {
    let (_dir, share) = sizes();
    assert_eq!(kind(&share, &unlink(1, "link")), RequestKind::Quick);
}

#[test]
fn removing_what_is_not_there_is_quick() {
    let (_dir, share) = sizes();
    assert_eq!(kind(&share, &unlink(1, "nothing")), RequestKind::Quick);
}

#[test]
fn truncating_a_large_file_may_block() {
    let (_dir, share) = sizes();
    let valid = 1u32 << 3; // P9_ATTR_SIZE
    let fields = [[1, valid, 0, 0, 0].map(u32::to_le_bytes).concat(), vec![0; 40]].concat();
    assert_eq!(kind(&share, &message(TSETATTR, 1, &[&fields])), RequestKind::MayBlock);
}

#[test]
fn a_request_cut_off_behind_its_header_is_refused_quickly() {
    let (_dir, share) = sizes();
    assert_eq!(kind(&share, &message(TUNLINKAT, 1, &[&[0, 0]])), RequestKind::Quick);
}

fn getattr(tag: u16) -> Vec<u8> {
    message(TGETATTR, tag, &[&0u32.to_le_bytes(), &0x7ffu64.to_le_bytes()])
}

fn read(tag: u16) -> Vec<u8> {
    message(TREAD, tag, &[&1u32.to_le_bytes(), &0u64.to_le_bytes(), &100u32.to_le_bytes()])
}

#[test]
fn the_tag_is_in_the_configuration_space() {
    let guest = Guest::start();
    assert_eq!(guest.driver.config::<6>(0), [3, 0, b't', b'a', b'g', 0]);
}

#[test]
fn a_quick_request_is_answered_before_the_doorbell_returns() {
    let mut guest = Guest::start();
    guest.mount();
    let head = guest.add(0, &getattr(5));
    guest.driver.kick(0);
    let used = guest.ring.used();
    assert_eq!((used.len(), used[0].0), (1, u32::from(head)));
    assert_eq!(guest.reply(0, used[0].1)[4..7], [TGETATTR + 1, 5, 0]);
}

#[test]
fn removing_a_small_file_is_answered_before_the_doorbell_returns() {
    let mut guest = Guest::start();
    guest.mount();
    guest.add(0, &unlink(3, "file"));
    guest.driver.kick(0);
    let used = guest.ring.used();
    assert_eq!(used.len(), 1);
    assert_eq!(guest.reply(0, used[0].1)[4], TUNLINKAT + 1);
    assert!(!guest.dir.path().join("file").exists());
}

#[test]
fn a_large_file_is_removed_too() {
    let mut guest = Guest::start();
    guest.mount();
    let path = guest.dir.path().join("large");
    fs::write(&path, vec![1; 8 << 20]).unwrap();
    assert_eq!(guest.call(&unlink(3, "large"))[4], TUNLINKAT + 1);
    assert!(!path.exists());
}

#[test]
fn a_read_moves_the_files_bytes_into_the_reply() {
    let mut guest = Guest::start();
    guest.mount();
    guest.open();
    let reply = guest.call(&read(9));
    assert_eq!(reply[4..7], [TREAD + 1, 9, 0]);
    assert_eq!(&reply[11..], b"contents");
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_of_what_the_host_has_in_memory_is_answered_before_the_doorbell_returns() {
    let mut guest = Guest::start();
    guest.mount();
    guest.open();
    // The first one may have to wait for the disk.
    guest.call(&read(1));
    guest.add(0, &read(2));
    guest.driver.kick(0);
    let used = guest.ring.used();
    assert_eq!(used.len(), 1);
    assert_eq!(&guest.reply(0, used[0].1)[4..], [&[TREAD + 1, 2, 0, 8, 0, 0, 0], &b"contents"[..]].concat());
}

#[test]
fn quick_and_slow_requests_of_one_doorbell_are_all_answered() {
    let mut guest = Guest::start();
    guest.mount();
    guest.open();
    let heads: Vec<u32> = (0..20u16)
        .map(|n| guest.add(n.into(), &if n % 2 == 0 { read(n) } else { getattr(n) }).into())
        .collect();
    guest.driver.kick(0);
    let mut used = guest.ring.wait_used(heads.len());
    used.sort_unstable();
    assert_eq!(used.iter().map(|entry| entry.0).collect::<Vec<_>>(), heads);
    let kinds: Vec<u8> = (0..20).map(|slot| guest.reply(slot, 5)[4]).collect();
    assert!(kinds.chunks(2).all(|pair| pair == [TREAD + 1, TGETATTR + 1]), "{kinds:?}");
}

#[test]
fn every_answer_of_a_doorbell_interrupts_a_driver_without_event_idx() {
    let mut guest = Guest::start();
    guest.mount();
    let before = guest.driver.interrupts();
    guest.add(0, &getattr(1));
    guest.driver.kick(0);
    assert_eq!(guest.driver.interrupts(), before + 1);
}

#[test]
fn a_flush_is_answered_after_the_request_it_names() {
    let mut guest = Guest::start();
    guest.mount();
    guest.open();
    let first = guest.add(0, &read(3));
    let flush = guest.add(1, &message(TFLUSH, 4, &[&3u16.to_le_bytes()]));
    guest.driver.kick(0);
    let used: Vec<u32> = guest.ring.wait_used(2).iter().map(|entry| entry.0).collect();
    assert_eq!(used, [u32::from(first), u32::from(flush)]);
}

#[test]
fn a_reset_clunks_what_the_guest_had() {
    let mut guest = Guest::start();
    guest.mount();
    guest.ring = guest.driver.bring_up(F_MOUNT_TAG, &QUEUE_SIZES).remove(0);
    assert_eq!(guest.call(&getattr(1))[4], RLERROR);
}

#[test]
fn nothing_is_answered_after_a_reset() {
    let mut guest = Guest::start();
    guest.mount();
    guest.open();
    for n in 0..20 {
        guest.add(n.into(), &read(n));
    }
    guest.driver.kick(0);
    guest.driver.set_status(0);
    let answered = guest.ring.used_idx();
    let interrupts = guest.driver.interrupts();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((guest.ring.used_idx(), guest.driver.interrupts()), (answered, interrupts));
}

#[test]
fn a_request_without_room_for_a_reply_goes_back_empty() {
    let mut guest = Guest::start();
    guest.mount();
    guest.driver.put(BUFFERS, &getattr(1));
    let head = guest.ring.add(&[Desc::readable(BUFFERS, 19)]);
    guest.driver.kick(0);
    assert_eq!(guest.ring.wait_used(1), [(u32::from(head), 0)]);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn a_request_cut_off_in_its_header_goes_back_without_harm() {
    let mut guest = Guest::start();
    guest.mount();
    for len in 1..HEADER_SIZE {
        guest.driver.put(BUFFERS, &getattr(1));
        guest.ring.add(&[
            Desc::readable(BUFFERS, u32::try_from(len).unwrap()),
            Desc::writable(BUFFERS + 0x8000, REPLY),
        ]);
        guest.driver.kick(0);
        assert_eq!(guest.ring.wait_used(1).len(), 1, "{len} bytes");
    }
    assert_eq!(guest.call(&getattr(2))[4], TGETATTR + 1);
}

#[test]
fn a_message_scattered_byte_by_byte_is_understood() {
    let mut guest = Guest::start();
    guest.mount();
    guest.driver.put(BUFFERS, &getattr(7));
    let mut descs: Vec<Desc> = (0..19).map(|at| Desc::readable(BUFFERS + at, 1)).collect();
    descs.extend((0..60).map(|at| Desc::writable(BUFFERS + 0x8000 + at * 4, 4)));
    guest.ring.add(&descs);
    guest.driver.kick(0);
    assert_eq!(guest.ring.wait_used(1).len(), 1);
    assert_eq!(guest.reply(0, 7)[4..], [TGETATTR + 1, 7, 0]);
}

#[test]
fn a_doorbell_before_the_driver_is_ready_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let device = Fs9p::new(Share::open(&ShareConfig::new(dir.path(), "tag")).unwrap());
    device.notify(0);
    device.reset();
    assert_eq!(device.state(), Fs9pState { queue: None });
}
