//! Apple's Hypervisor.framework for tests off macOS: the C symbols `hv_*`, implemented with the software CPU, and strict about
//! every rule that real hardware punishes. It is no hypervisor for users; what it does is slow and suspicious on purpose.
//!
//! A test chooses what Mac it is on with [`configure`] (or, where tests share a process, with a [`Session`]), lets a backend
//! make its calls, and asks [`violations`] afterwards: each broken rule is one sentence there, whatever the call returned.
//!
//! `vm`, `vcpu`, `gic` and `objects` hold the exported calls, one file a part of the framework; `run` is a vCPU inside
//! `hv_vcpu_run`, `host_gic` the interrupt controller that macOS 15 has in its kernel, `state` what all of them share.

#![cfg(not(target_os = "macos"))]

mod abi;
mod config;
mod gic;
mod gic_state;
mod host_gic;
mod identification;
mod objects;
mod registers;
mod run;
mod state;
mod symbols;
mod sysregs;
mod vcpu;
mod vm;

pub use config::{Config, Kicks, MacOs, OnViolation};
pub use state::{Session, Statistics, configure, interrupt_all, leaked_objects, statistics, violations};
pub use symbols::hv_sim_dlsym;
