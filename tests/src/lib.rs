//! What the end-to-end tests and the benchmarks share: starting hvrun under a watchdog, talking with its guest, and tiny guests made
//! by hand. The tests themselves are in `tests/`; nothing here knows how hvrun works inside.

pub mod artifacts;
pub mod bare;
pub mod disks;
pub mod driver;
pub mod monitors;
pub mod probe;
pub mod process;
mod running;
pub mod socket;
pub mod spread;
mod terminal;
mod transcript;
pub mod vde;
pub mod virtiofsd;

pub use running::{Hvrun, Input, Outcome, QUICK_COMMAND_LINE, Running, VIRTIO_COMMAND_LINE};
pub use terminal::{Modes, Terminal};
