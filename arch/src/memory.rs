//! The guest memory type that every part of the machine shares. Not an allocator: `vmm` decides what is mapped where.

/// Guest RAM: host mappings addressed by guest physical address (GPA). Cloning shares the mappings.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
