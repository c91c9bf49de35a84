//! What devices are put into, as fakes: an interrupt controller that forgets, a disk in memory, a discard that only looks, a network
//! that says everything back. No device.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hvrun_arch::hypervisor::RamDiscard;
use hvrun_arch::{GuestMemory, HypervisorError, IrqChip, Spi};
use hvrun_devices::backend::disk::BlockBackend;
use hvrun_devices::backend::net::{FrameInfo, Interest, NetBackend, Offloads, RxRing, Transmit, TxFrame};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

/// Takes every interrupt.
#[derive(Debug)]
pub struct Chip;

impl IrqChip for Chip {
    fn set_spi(&self, _spi: Spi, _level: bool) {}

    fn send_msi(&self, _addr: u64, _data: u32) {}
}

/// Says whether the range is RAM, as a real one must, and gives nothing back.
#[derive(Debug)]
pub struct Discard(pub GuestMemory);

impl RamDiscard for Discard {
    fn granule(&self) -> u64 {
        4096
    }

    fn discard(&self, addr: u64, len: u64) -> Result<(), HypervisorError> {
        let end = addr.checked_add(len);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        assert!(end.is_some(), "the balloon gives back {len:#x} bytes at {addr:#x}");
        assert!(
            self.0.check_range(GuestAddress(addr), len),
            "the balloon gives back {len:#x} bytes at {addr:#x}, which are not all RAM"
        );
        Ok(())
    }
}

/// A disk in memory. Writes to its last sector fail.
#[derive(Debug)]
pub struct MemoryDisk(Mutex<Vec<u8>>);

/// Its size.
const DISK_SIZE: usize = 64 << 10;
/// Where errors begin.
const BAD: u64 = DISK_SIZE as u64 - 512;

impl MemoryDisk {
    /// A disk whose bytes tell where they are.
    pub fn new() -> Self {
        MemoryDisk(Mutex::new((0..DISK_SIZE).map(|at| (at >> 9) as u8).collect()))
    }

    fn data(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The range, which the device has promised to be inside.
    fn range(offset: u64, len: u64) -> std::ops::Range<usize> {
        let end = offset.checked_add(len).filter(|end| *end <= DISK_SIZE as u64);
        assert!(
            end.is_some(),
            "the device asks for {len:#x} bytes at {offset:#x} of a disk of {DISK_SIZE:#x}"
        );
        offset as usize..(offset + len) as usize
    }
}

impl BlockBackend for MemoryDisk {
    fn name(&self) -> &str {
        "disk in memory"
    }

    fn capacity(&self) -> u64 {
        DISK_SIZE as u64
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn read(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for buffer in buffers {
            let range = Self::range(at, buffer.len() as u64);
            buffer.copy_from(&self.data()[range]);
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn write(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for buffer in buffers {
            let range = Self::range(at, buffer.len() as u64);
            if range.end as u64 > BAD {
                return Err(io::ErrorKind::StorageFull.into());
            }
            buffer.copy_to(&mut self.data()[range]);
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        Self::range(offset, len);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        let range = Self::range(offset, len);
        self.data()[range].fill(0);
        Ok(())
    }
}

/// A network whose only other member repeats what it hears.
#[derive(Debug)]
pub struct Echo {
    /// What it understands of the guest's frames.
    offloads: Offloads,
    guest: Offloads,
    frames: VecDeque<(Vec<u8>, FrameInfo)>,
}

/// Frames that wait; beyond it the guest does.
const MOST_FRAMES: usize = 16;

impl Echo {
    /// One that understands `offloads`.
    pub fn new(offloads: Offloads) -> Self {
        Echo { offloads, guest: Offloads::default(), frames: VecDeque::new() }
    }
}

impl NetBackend for Echo {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_guest_offloads(&mut self, guest: Offloads) {
        self.guest = guest;
    }

    fn descriptors(&self, _write: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        Vec::new()
    }

    fn service(&mut self, _now: Instant) -> io::Result<()> {
        Ok(())
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        let held: usize = frame.slices.iter().map(VolatileSlice::len).sum();
        assert_eq!(held, frame.len, "a frame's length is that of its slices");
        assert!(frame.len >= 14, "a frame of {} bytes", frame.len);
        let FrameInfo { checksum, segmentation, .. } = frame.info;
        assert!(
            checksum.is_none() || self.offloads.checksum,
            "{checksum:?} is left to who cannot compute it"
        );
        let cuts = self.offloads.tso4 || self.offloads.tso6;
        assert!(segmentation.is_none() || cuts, "{segmentation:?} is left to who cannot cut");
        if self.frames.len() >= MOST_FRAMES {
            return Transmit::Busy;
        }
        let mut bytes = vec![0; frame.len];
        let mut at = 0;
        for slice in frame.slices {
            at += slice.copy_to(&mut bytes[at..]);
        }
        // A guest gets back what it can understand.
        let info = if self.guest.checksum && self.guest.tso4 && self.guest.tso6 {
            frame.info
        } else {
            FrameInfo::default()
        };
        self.frames.push_back((bytes, info));
        Transmit::Done
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        while let Some((bytes, info)) = self.frames.front() {
            let put = ring.put(bytes.len(), &mut |slices| {
                let mut rest = &bytes[..];
                for slice in slices {
                    let (now, later) = rest.split_at(rest.len().min(slice.len()));
                    slice.copy_from(now);
                    rest = later;
                }
                assert!(rest.is_empty(), "there is less room than was asked for");
                Some((bytes.len(), *info))
            });
            if !put {
                break;
            }
            self.frames.pop_front();
        }
        Ok(())
    }
}

/// Writes to guest memory as far as there is any.
pub fn store(memory: &GuestMemory, addr: u64, bytes: &[u8]) {
    let _ = memory.write_slice(bytes, GuestAddress(addr));
}
