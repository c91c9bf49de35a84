//! The library: a machine description ([`MachineConfig`]), a machine ([`Machine`]), a running virtual machine
//! ([`RunningMachine`]). It reads no command line, prints nothing to stdout and never exits the process.
//!
//! ```no_run
//! use hvrun_vmm::{Machine, MachineConfig, Outcome};
//!
//! let mut config = MachineConfig::new("Image");
//! config.initrd = Some("initrd.cpio".into());
//! config.memory = "512M".parse()?;
//! config.serial = "file:serial.log".parse()?;
//!
//! let machine = Machine::build(config)?; // all that can be wrong with files and sizes is found out here
//! let running = machine.start()?;
//! let control = running.control(); // may go to any thread: stop(), power_button()
//! # let _ = control;
//! assert_eq!(running.wait()?, Outcome::PoweredOff);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/embed.rs` hands in its own serial back-end and reads what the guest prints.

pub mod config;
pub mod hotplug;
pub mod machine;
pub mod running;
pub mod size;

mod devices;
mod lifecycle;
mod monitor;
mod ram;
mod signals;
mod sys;
mod vcpu;

pub use config::{
    CardConfig, ConfigError, DiskCardConfig, DriveConfig, LifecycleConfig, MachineConfig, MonitorConfig,
    MonitorKind, MonitorPlace, NetdevConfig, RootPortConfig, Transport, parse_accels,
};
pub use hotplug::{PlugError, PlugParser};
pub use hvrun_arch::{Accel, GicChoice, Hypervisor, HypervisorError};
pub use hvrun_boot::BootError;
pub use hvrun_devices::backend::chardev as serial;
pub use hvrun_devices::backend::{disk, net, ninep};
pub use hvrun_devices::{options, virtio};
pub use machine::{BuildError, Machine, MachineBuilder};
pub use monitor::QEMU_VERSION;
pub use ram::MemoryBacking;
pub use running::{
    BlockNames, Cause, MachineControl, MachineEvent, Outcome, RunError, RunState, RunningMachine,
};
pub use size::{MemorySize, SizeError};
