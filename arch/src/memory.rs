//! The guest memory type that every part of the machine shares. Not an allocator: `vmm` decides what is mapped where.

use std::any::Any;
use std::fmt;

use vm_memory::bitmap::{Bitmap, NewBitmap, WithBitmapSlice};

/// Guest RAM: host mappings addressed by guest physical address (GPA). Cloning shares the mappings.
pub type GuestMemory = vm_memory::GuestMemoryMmap<Owner>;

/// Who takes the mapping of a region of [`GuestMemory`] down, when the last clone of the memory is gone: nobody but the region
/// itself, or a value that is dropped then. (vm-memory maps at addresses of the kernel's choice and owns only what it has
/// mapped; the one place for something that lives as long as a region is where others keep their dirty bitmap. This one
/// tracks nothing.)
#[derive(Default)]
pub struct Owner(Option<Box<dyn Any + Send + Sync>>);

impl Owner {
    /// `mapping` takes it down in its `Drop`.
    pub fn new(mapping: impl Any + Send + Sync) -> Self {
        Owner(Some(Box::new(mapping)))
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Owner(another)" } else { "Owner(region)" })
    }
}

impl WithBitmapSlice<'_> for Owner {
    type S = ();
}

impl Bitmap for Owner {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) {}
}

impl NewBitmap for Owner {
    fn with_len(_len: usize) -> Self {
        Owner::default()
    }
}
