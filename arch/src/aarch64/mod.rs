//! What every arm64 machine has, and what backends that exit at trap level (Hypervisor.framework, the software CPU) share.

pub mod esr;
pub mod gicv3;
pub mod inject;
pub mod layout;
pub mod mmio_decode;
pub mod psci;
pub mod raw;
pub mod smccc;
pub mod sysreg;
pub mod timer;
pub mod translate;
pub mod trap_vcpu;
