//! Everything the guest sees behind an address: the bus, the device models, and what stands behind them on the host.
//!
//! Devices know no hypervisor: they raise interrupts through [`IrqLine`] and are called by address through [`Bus`]. Nothing
//! in here reads a command line, prints to stdout or exits the process.

pub mod backend;
pub mod bus;
pub mod irq;
pub mod options;
pub mod pci;
pub mod pl011;
pub mod pl031;
pub mod pl061;
pub mod virtio;

mod primecell;
pub mod sys;
mod util;

pub use bus::{Bus, BusError, MmioDevice};
pub use irq::IrqLine;
pub use pl011::{Pl011, Pl011State};
pub use pl031::{Pl031, Pl031State};
pub use pl061::{Pl061, Pl061State};
