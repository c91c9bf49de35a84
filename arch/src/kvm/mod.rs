//! The KVM backend: arm64 guests on arm64 Linux hosts, with GIC, timer and PSCI in the kernel. No device model.
//!
//! This file is the one place that looks at the host: `aarch64` talks to the kernel, `other` says why it cannot. What needs no
//! kernel (numbers, encodings, texts, the rules of starting together) lies beside them and is tested on every host.

pub mod error;
pub mod irq;
#[cfg(target_os = "linux")]
pub mod kick;
pub mod nisv;
pub mod regs;
pub mod rendezvous;
pub mod vgic;

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod aarch64;
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
pub use aarch64::open;

#[cfg(not(all(target_os = "linux", target_arch = "aarch64")))]
mod other;
#[cfg(not(all(target_os = "linux", target_arch = "aarch64")))]
pub use other::open;
