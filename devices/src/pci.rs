//! PCI: the host bridge ([`PciHost`]), what is plugged into it ([`PciFunction`]), configuration space, BARs, MSI-X and INTx, and root
//! ports with a slot for a card that comes and goes ([`RootPort`]). Not virtio, and no other bridges.
//!
//! Lock order, outermost first: the host's (configuration space and where BARs are), a function's own, then the leaves
//! (MSI-X, INTx lines, doorbells, the address map). A function never calls the host.

pub mod config;
pub mod host;
pub mod intx;
pub mod msi;
pub mod msix;
pub mod root_port;

use std::sync::Arc;

pub use config::{Bar, BarKind, Command, ConfigSpace, ConfigState, Identity};
pub use host::{Ejected, PciError, PciHost, PciHostState, SlotState};
pub use intx::IntxPin;
pub use msi::{MsiPort, MsiSink};
pub use msix::{Msix, MsixState};
pub use root_port::RootPort;

/// A device (its function 0) behind the host bridge. Calls come from any vCPU's thread, several at once; a function keeps its
/// own locks. What the guest writes may be anything.
///
/// Calls with a [`ConfigSpace`] happen under the host's lock, so a function must not call the [`PciHost`] from within any.
pub trait PciFunction: Send + Sync {
    /// A short name for log lines and error messages.
    fn name(&self) -> &str;

    /// Its configuration space after a reset: who it is, BARs and capabilities. Asked for once, when it is plugged in.
    fn config_space(&self) -> ConfigSpace;

    /// It has been plugged in; `pin` is its interrupt pin from now on.
    fn plugged(&self, pin: Arc<IntxPin>) {
        let _ = pin;
    }

    /// The guest is about to read `len` bytes at `offset` of `config`: the place to refresh a register that changes by itself.
    fn config_read(&self, config: &mut ConfigSpace, offset: u16, len: usize) {
        let _ = (config, offset, len);
    }

    /// The guest has written `len` bytes at `offset` of `config`: the place to act on a capability's register.
    fn config_written(&self, config: &mut ConfigSpace, offset: u16, len: usize) {
        let _ = (config, offset, len);
    }

    /// A saved configuration space has been restored: the place to act on all of it.
    fn config_restored(&self, config: &mut ConfigSpace) {
        let _ = config;
    }

    /// The guest reads `data.len()` bytes at `offset` of BAR `bar`. `data` comes in as zeros and leaves little-endian.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes `data` (little-endian) at `offset` of BAR `bar`.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// BAR `bar` answers at guest physical address `base` now, or (`None`) nowhere.
    fn bar_mapped(&self, bar: u8, base: Option<u64>) {
        let _ = (bar, base);
    }

    /// Puts the function into the state it had when it was plugged in. Its configuration space has been reset and its BARs are
    /// unmapped.
    fn reset(&self);
}
