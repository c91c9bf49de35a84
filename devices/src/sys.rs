//! The only place where host systems differ. Nothing else in this crate asks which system it runs on.

#[cfg(target_os = "linux")]
#[path = "sys/linux.rs"]
mod host;
#[cfg(target_os = "macos")]
#[path = "sys/macos.rs"]
mod host;

mod limits;
pub(crate) mod net;
pub(crate) mod ninep;
pub(crate) mod wire;

pub use host::Event;
pub(crate) use host::discard;
pub(crate) use host::disk;
pub(crate) use host::thread_waits;
pub(crate) use host::{SEND_NO_SIGNAL, UNIX_PATH_MAX};
pub(crate) use limits::raise_descriptor_limit;
