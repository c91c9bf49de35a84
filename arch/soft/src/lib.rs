//! The software CPU: an ARMv8-A processor in Rust that exits as Hypervisor.framework does.
//!
//! It executes EL1 and EL0 of an AArch64 guest and leaves to its caller what a hypervisor's user space must do: it knows no
//! device, no interrupt controller and no file.

pub mod fpsimd;
pub mod insn;
pub mod regs;
