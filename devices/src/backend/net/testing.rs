//! What tests of the network backends need: a card's ring without a card, frames, and waiting for a backend as a card does.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use vm_memory::VolatileSlice;

use super::{FrameInfo, Interest, NetBackend, RxRing, TxFrame};

/// Long enough for any machine; no test that passes waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pieces that room for a frame comes in, so that nothing relies on one slice.
const PIECE: usize = 700;

/// Room for so many frames.
pub(super) struct Ring {
    room: usize,
    got: Vec<(Vec<u8>, FrameInfo)>,
}

impl Ring {
    pub(super) fn new(room: usize) -> Self {
        Ring { room, got: Vec::new() }
    }

    pub(super) fn frames(&self) -> Vec<Vec<u8>> {
        self.got.iter().map(|(bytes, _)| bytes.clone()).collect()
    }

    pub(super) fn clear(&mut self) {
        self.got.clear();
    }

    pub(super) fn take(self) -> Vec<(Vec<u8>, FrameInfo)> {
        self.got
    }

    pub(super) fn with_info(&self) -> &[(Vec<u8>, FrameInfo)] {
        &self.got
    }
}

impl RxRing for Ring {
    fn put(
        &mut self,
        max: usize,
        fill: &mut dyn FnMut(&[VolatileSlice<'_>]) -> Option<(usize, FrameInfo)>,
    ) -> bool {
        if self.got.len() >= self.room {
            return false;
        }
        // As a guest's buffers, it has more room than was asked for.
        let mut bytes = vec![0; max + 100];
        let slices: Vec<_> = bytes.chunks_mut(PIECE).map(VolatileSlice::from).collect();
        let filled = fill(&slices);
        if let Some((len, info)) = filled {
            assert!(len <= max, "a frame of {len} bytes where {max} were announced");
            bytes.truncate(len);
            self.got.push((bytes, info));
        }
        true
    }
}

/// A broadcast frame of `len` bytes from station `from`, of a type for experiments (IEEE 802, 0x88b5).
pub(super) fn frame(from: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![from; len];
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&mac(from));
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

/// Like [`frame`], to station `to`.
pub(super) fn unicast(from: u8, to: u8, len: usize) -> Vec<u8> {
    let mut bytes = frame(from, len);
    bytes[..6].copy_from_slice(&mac(to));
    bytes
}

pub(super) fn mac(station: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0x12, 1, station]
}

/// Hands `bytes` to `transmit` as a guest's frame in pieces.
pub(super) fn send<T>(transmit: impl FnOnce(&TxFrame<'_, '_>) -> T, bytes: &[u8]) -> T {
    let mut bytes = bytes.to_vec();
    let len = bytes.len();
    let slices: Vec<_> = bytes.chunks_mut(PIECE).map(VolatileSlice::from).collect();
    transmit(&TxFrame { slices: &slices, len, info: FrameInfo::default() })
}

/// Sends frames and has them leave.
pub(super) fn transmit(backend: &mut dyn NetBackend, bytes: &[u8]) {
    assert_eq!(send(|tx| backend.transmit(tx), bytes), super::Transmit::Done);
    backend.flush();
}

/// Sleeps until one of `backends` has something to do, and lets each do it, until `done` says so. Says the first error.
pub(super) fn drive(
    backends: &mut [(&mut dyn NetBackend, &mut Ring)],
    mut done: impl FnMut(&[&Ring]) -> bool,
) -> std::io::Result<()> {
    let start = Instant::now();
    loop {
        let now = Instant::now();
        assert!(now - start < PATIENCE, "what was waited for has not come");
        for (backend, ring) in &mut *backends {
            backend.service(now)?;
            backend.receive(*ring)?;
            backend.flush();
        }
        if done(&backends.iter().map(|(_, ring)| &**ring).collect::<Vec<_>>()) {
            return Ok(());
        }
        let mut fds = Vec::new();
        for (backend, _) in &*backends {
            for (fd, interest) in backend.descriptors(false) {
                let flags = match interest {
                    Interest::Read => PollFlags::IN,
                    Interest::Write => PollFlags::OUT,
                    Interest::Both => PollFlags::IN | PollFlags::OUT,
                };
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 }));
    }
}

/// Drives one backend until its ring has `count` frames, and returns them.
pub(super) fn collect(backend: &mut dyn NetBackend, count: usize) -> Vec<Vec<u8>> {
    let mut ring = Ring::new(usize::MAX);
    drive(&mut [(backend, &mut ring)], |rings| rings.iter().all(|ring| ring.got.len() >= count)).unwrap();
    ring.frames()
}

/// Drives one backend until it fails, and returns how.
pub(super) fn failure(backend: &mut dyn NetBackend) -> std::io::Error {
    let mut ring = Ring::new(usize::MAX);
    drive(&mut [(backend, &mut ring)], |_| false).expect_err("only a failure ends it")
}

/// A path of a program that a test needs, or a failure that says what to install.
pub(super) fn need(program: &str, package: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is not installed: apt-get install {package}"))
}
