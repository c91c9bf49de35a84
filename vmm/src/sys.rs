//! The only place where host systems differ. Nothing else in this crate asks which system it runs on.

#[cfg(target_os = "linux")]
#[path = "sys/linux.rs"]
mod host;
#[cfg(target_os = "macos")]
#[path = "sys/macos.rs"]
mod host;

pub(crate) use host::{discard, discard_shared, prefer_huge_pages, shared_memory, thread_id};
