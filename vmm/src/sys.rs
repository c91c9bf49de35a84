//! The only place where host systems differ. Nothing else in this crate asks which system it runs on.

#[cfg(target_os = "linux")]
#[path = "sys/linux.rs"]
mod host;
#[cfg(target_os = "macos")]
#[path = "sys/macos.rs"]
mod host;

pub(crate) use host::{discard, prefer_huge_pages, thread_id};
