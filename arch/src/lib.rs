//! How a guest CPU runs: the hypervisor seam, what its trap-level backends share, and the backends.
//!
//! This crate knows no device and no file; it turns guest execution into [`VcpuExit`]s and interrupts into guest exceptions.

pub mod aarch64;
pub mod hvf;
pub mod hypervisor;
pub mod kvm;
pub mod memory;
pub mod select;
pub mod soft;

pub use hypervisor::{
    Accel, BootState, Datamatch, EventFds, GicChoice, Hypervisor, HypervisorError, IrqChip, Kick, Kicker,
    RamDiscard, Spi, Vcpu, VcpuExit, Vm, VmConfig,
};
pub use memory::GuestMemory;
pub use select::{open, open_first};
