//! The software CPU against the architecture: instructions against an oracle, address translation, exceptions, system
//! registers and several CPUs at once. Decoding, floating point and SIMD arithmetic have tests of their own.

mod base_oracle;
mod common;
mod exceptions;
mod mmu;
mod mmu_faults;
mod smp;
mod stage2;
mod system;
