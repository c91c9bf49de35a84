//! The software CPU: an ARMv8-A processor in Rust that exits as Hypervisor.framework does.
//!
//! It executes EL1 and EL0 of an AArch64 guest and leaves to its caller what a hypervisor's user space must do: it knows no
//! device, no interrupt controller and no file. A [`Machine`] holds the map of guest memory, a [`Cpu`] runs on a thread of
//! its own and comes back with an [`Exit`].
//!
//! An instruction's way: `code` finds the block at the program counter, or `translate` makes one: `decode` turns words into
//! [`insn::Insn`]s, `translate::lower` turns those into threaded code (`op`), whose handlers are in `exec`. Loads and stores
//! go through `tlb`; what misses goes through `memory` to `mmu`.

mod code;
mod cpu;
pub mod decode;
mod exception;
mod exec;
pub mod fpsimd;
mod host;
pub mod insn;
mod machine;
mod memory;
mod mmu;
mod op;
mod registers;
pub mod regs;
mod sysreg;
mod timer;
mod tlb;
mod translate;

pub use cpu::{Canceller, Cpu, Exit, Line};
pub use machine::{Machine, MapError, Perms};
