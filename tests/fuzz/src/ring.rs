//! A card's receive ring without a card: room for frames, and what a network put there.

use hvrun_devices::backend::net::{FrameInfo, RxRing};
use vm_memory::VolatileSlice;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ring {
    room: usize,
    pub(crate) frames: Vec<(Vec<u8>, FrameInfo)>,
}

impl Ring {
    /// Room for so many frames.
    pub(crate) fn new(room: usize) -> Self {
        Ring { room, frames: Vec::new() }
    }

    /// Makes room for so many more.
    pub(crate) fn grow(&mut self, room: usize) {
        self.room = self.frames.len().saturating_add(room);
    }
}

impl RxRing for Ring {
    fn put(
        &mut self,
        max: usize,
        fill: &mut dyn FnMut(&[VolatileSlice<'_>]) -> Option<(usize, FrameInfo)>,
    ) -> bool {
        if self.frames.len() >= self.room {
            return false;
        }
        let mut bytes = vec![0; max];
        let slices: Vec<_> = bytes.chunks_mut(1000).map(VolatileSlice::from).collect();
        if let Some((len, info)) = fill(&slices) {
            assert!(len <= max, "a frame of {len} bytes in room for {max}");
            bytes.truncate(len);
            self.frames.push((bytes, info));
        }
        true
    }
}
