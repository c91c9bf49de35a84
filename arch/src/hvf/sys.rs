//! What differs between a Mac and the simulator of one.

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
mod macos;
#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
pub use macos::*;

#[cfg(not(all(target_os = "macos", target_arch = "aarch64")))]
mod simulator;
#[cfg(not(all(target_os = "macos", target_arch = "aarch64")))]
pub use simulator::*;
