//! KVM on an arm64 host, through its ioctls. What they are called with comes from the modules beside this one.

mod clock;
mod eventfds;
mod gic;
mod hypervisor;
mod run;
mod vcpu;
mod vm;

pub use hypervisor::open;
