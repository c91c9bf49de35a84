//! The Hypervisor.framework backend: guest CPUs of an Apple silicon Mac behind the trap-level seam.
//!
//! What is arithmetic or policy compiles everywhere and is tested everywhere. What calls the framework compiles on such a Mac
//! and, with the feature `hvf-sim`, wherever a test brings a simulator of the framework along (`tests/hvf-sim`).

pub mod availability;
pub mod clock;
pub mod gic_layout;
pub mod id_registers;
pub mod ipa;
pub mod quiesce;
pub mod registers;

use std::sync::Arc;

use crate::hypervisor::{Hypervisor, HypervisorError};

/// The part that calls the framework.
macro_rules! with_framework {
    ($($item:item)*) => {
        $(#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-sim"))] $item)*
    };
}

with_framework! {
    mod ffi;
    mod ram;
    mod sys;
    mod vcpu;
    mod vm;
    pub use vm::HvfHypervisor;
}

#[cfg(all(feature = "hvf-sim", not(all(target_os = "macos", target_arch = "aarch64"))))]
pub use sys::{Resolver, install_simulator};

/// Opens Hypervisor.framework, or says why this host lacks it and what would help.
#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-sim"))]
pub fn open() -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    Ok(Arc::new(HvfHypervisor::open()?))
}

/// Says why this host lacks Hypervisor.framework.
#[cfg(not(any(all(target_os = "macos", target_arch = "aarch64"), feature = "hvf-sim")))]
pub fn open() -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let reason = availability::foreign_host(std::env::consts::OS, std::env::consts::ARCH);
    Err(HypervisorError::Unavailable { accel: crate::hypervisor::Accel::Hvf, reason })
}
