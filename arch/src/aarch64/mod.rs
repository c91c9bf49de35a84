//! What every arm64 machine has, and what backends that exit at trap level (Hypervisor.framework, the software CPU) share.

pub mod layout;
pub mod raw;
