//! What lies in guest memory before the first instruction: the kernel, the initrd, the command line and the device tree.
//! Not firmware, and nothing that runs: a [`load`] fills RAM and says where the boot CPU starts.
//!
//! ```
//! use hvrun_arch::{GuestMemory, aarch64::layout::Layout};
//! use hvrun_boot::{BootConfig, BootError, Initrd, Kernel, Loaded};
//!
//! fn boot(memory: &GuestMemory, layout: &Layout) -> Result<Loaded, BootError> {
//!     let config = BootConfig {
//!         kernel: Kernel::open("Image")?,
//!         initrd: Some(Initrd::open("initrd")?),
//!         cmdline: "console=ttyAMA0".to_owned(),
//!         cpus: 2,
//!         seeds: None,
//!         virtio_mmio_slots: 0,
//!     };
//!     config.plan(layout)?; // all that can be told before a machine exists
//!     hvrun_boot::load(memory, layout, &config)
//! }
//! ```

pub mod fdt;
mod file;
pub mod image;
pub mod place;
#[cfg(test)]
mod testing;

use std::fmt;
use std::path::Path;

use hvrun_arch::GuestMemory;
use hvrun_arch::aarch64::layout::{Layout, Window};

pub use fdt::{FdtConfig, FdtError, Seeds};
pub use file::{FileError, Role};
pub use image::{Kernel, KernelError};
pub use place::PlaceError;

use file::SourceFile;
use place::{Needs, Placement};

/// Longest command line in bytes: Linux's COMMAND_LINE_SIZE of 2048 (arch/arm64/include/uapi/asm/setup.h) less the NUL.
pub const MAX_COMMAND_LINE: usize = 2047;

/// Why a guest cannot be booted. Each message stands alone: it names the file, what is wrong and what would work.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The initrd's file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel's file cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Kernel, initrd and device tree do not fit into RAM.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The device tree cannot be built.
    #[error(transparent)]
    Fdt(#[from] FdtError),
    /// The command line is longer than a kernel takes.
    #[error("the kernel command line has {len} bytes; Linux takes at most {MAX_COMMAND_LINE}")]
    CommandLineTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The command line holds a NUL, behind which the kernel would not look.
    #[error("the kernel command line has a NUL character at byte {at}; remove it")]
    CommandLineNul {
        /// Where the NUL is.
        at: usize,
    },
    /// Guest memory does not have the range that the layout promises.
    #[error("guest memory from {start:#x} to {end:#x} cannot take the {what}: {reason}", start = window.base,
        end = window.end())]
    Memory {
        /// What was to be written.
        what: &'static str,
        /// Where.
        window: Window,
        /// What the memory answered.
        reason: String,
    },
}

/// An initrd: a file that is copied behind the kernel as it is.
#[derive(Debug)]
pub struct Initrd {
    source: SourceFile,
}

impl Initrd {
    /// Opens the initrd at `path`. A directory, an empty file and what cannot be read are errors here, not later.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        Ok(Initrd { source: SourceFile::open(Role::Initrd, path.as_ref())? })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty initrd is refused by open")]
    pub fn len(&self) -> u64 {
        self.source.len()
    }
}

/// What to boot. Kept as long as the machine lives: a guest reset loads it again.
#[derive(Debug)]
pub struct BootConfig {
    /// The kernel.
    pub kernel: Kernel,
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
    /// The kernel command line, at most [`MAX_COMMAND_LINE`] bytes.
    pub cmdline: String,
    /// How many CPUs the device tree shows.
    pub cpus: u32,
    /// The guest's first randomness; `None` draws it from the host at each [`load`], as a real guest should have it.
    pub seeds: Option<Seeds>,
    /// How many of the virtio-mmio slots hold a device, from the first on.
    pub virtio_mmio_slots: u32,
}

/// Where everything lies, and where the boot CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Address of the kernel's first instruction (the boot CPU's PC).
    pub entry: u64,
    /// Address of the device tree (the boot CPU's X0).
    pub fdt_addr: u64,
    /// The memory that belongs to the kernel, its BSS included.
    pub kernel: Window,
    /// The initrd.
    pub initrd: Option<Window>,
    /// The device tree.
    pub fdt: Window,
}

impl From<Placement> for Loaded {
    fn from(placement: Placement) -> Self {
        Loaded {
            entry: placement.kernel.base,
            fdt_addr: placement.fdt.base,
            kernel: placement.kernel,
            initrd: placement.initrd,
            fdt: placement.fdt,
        }
    }
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {:#x}..{:#x}", self.kernel.base, self.kernel.end())?;
        if let Some(initrd) = self.initrd {
            write!(f, ", initrd {:#x}..{:#x}", initrd.base, initrd.end())?;
        }
        write!(f, ", device tree {:#x}..{:#x}", self.fdt.base, self.fdt.end())
    }
}

impl BootConfig {
    /// Checks everything that can be known without guest memory (command line, CPUs, sizes) and says where things will lie.
    /// What it cannot find is damage deep inside a compressed kernel; [`load`] finds that, before the first instruction.
    pub fn plan(&self, layout: &Layout) -> Result<Loaded, BootError> {
        check_command_line(&self.cmdline)?;
        // Addresses do not change the tree's size, so a stand-in for the initrd's place tells how much room the tree needs.
        let draft = self.fdt(layout, self.initrd.as_ref().map(|_| Window::new(0, 0)), &Seeds::ZERO)?;
        let needs = Needs {
            text_offset: self.kernel.text_offset(),
            kernel: self.kernel.footprint(),
            initrd: self.initrd.as_ref().map(Initrd::len),
            fdt: draft.len() as u64,
        };
        Ok(place::place(layout.ram, needs)?.into())
    }

    /// The device tree for this configuration.
    fn fdt(&self, layout: &Layout, initrd: Option<Window>, seeds: &Seeds) -> Result<Vec<u8>, FdtError> {
        fdt::build(&FdtConfig {
            layout,
            cpus: self.cpus,
            cmdline: &self.cmdline,
            initrd,
            seeds,
            virtio_mmio_slots: self.virtio_mmio_slots,
        })
    }
}

/// Refuses a command line that the kernel would cut short.
pub fn check_command_line(cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() > MAX_COMMAND_LINE {
        return Err(BootError::CommandLineTooLong { len: cmdline.len() });
    }
    match cmdline.bytes().position(|byte| byte == 0) {
        Some(at) => Err(BootError::CommandLineNul { at }),
        None => Ok(()),
    }
}

/// Puts kernel, initrd and device tree into guest memory by the arm64 boot protocol
/// (Linux Documentation/arch/arm64/booting.rst).
///
/// `memory` must hold the whole of `layout.ram` and must be zero: the kernel's BSS and whatever is not loaded is not
/// written. Fresh mappings are zero; a machine that resets must discard its RAM before it loads again.
pub fn load(memory: &GuestMemory, layout: &Layout, config: &BootConfig) -> Result<Loaded, BootError> {
    let loaded = config.plan(layout)?;
    config.kernel.copy_to(memory, loaded.kernel)?;
    if let (Some(initrd), Some(window)) = (&config.initrd, loaded.initrd) {
        initrd.source.copy_to(memory, window)?;
    }
    let seeds = match &config.seeds {
        Some(seeds) => seeds.clone(),
        None => Seeds::random()?,
    };
    let tree = config.fdt(layout, loaded.initrd, &seeds)?;
    file::write_to(memory, loaded.fdt, 0, &tree, "device tree")?;
    log::debug!("{loaded}; {} {}", config.kernel.path().display(), config.kernel);
    Ok(loaded)
}

#[cfg(test)]
mod tests;
