//! A 9P2000.L server over a directory of the host: [`Share`] is the directory, [`Session`] one client of it.
//!
//! Not the virtio device, and nothing in here knows a guest: messages come in and go out as byte ranges, scattered or not.
//!
//! # How it is driven
//!
//! One complete T-message in, one R-message out, all of it on the calling thread:
//!
//! ```
//! use hvrun_devices::backend::ninep::{Session, Share, ShareConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let config = ShareConfig::new(dir.path(), "src");
//! let session = Session::new(Share::open(&config)?);
//!
//! // Tversion, tag NOTAG, msize 65536, "9P2000.L"
//! let request = b"\x15\0\0\0\x64\xff\xff\0\0\x01\0\x08\x009P2000.L";
//! let mut reply = [0; 64];
//! let length = session.handle_bytes(request, &mut reply);
//! assert_eq!(reply[4], 101); // Rversion
//! assert_eq!(length, 21);
//! # Ok(())
//! # }
//! ```
//!
//! A virtio device has its messages in guest memory and uses [`Session::handle`], which moves the payload of Tread and
//! Twrite directly between the file and those slices. [`serve()`] speaks 9P over any byte stream:
//!
//! ```no_run
//! use hvrun_devices::backend::ninep::{Session, Share, ShareConfig, serve};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let share = Share::open(&ShareConfig::new("/srv/data", "data"))?;
//! let listener = std::os::unix::net::UnixListener::bind("/tmp/9p.sock")?;
//! for stream in listener.incoming() {
//!     let (stream, share) = (stream?, share.clone());
//!     // A Linux client: mount -t 9p -o trans=unix,version=9p2000.L /tmp/9p.sock /mnt
//!     std::thread::spawn(move || serve(&Session::new(share), stream));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Several threads
//!
//! Every method takes `&self`, so a device may answer quick requests on the thread that rang the doorbell and pass those
//! that may block ([`request_kind`]) to a worker. A request that is queued for a worker is announced with
//! [`Session::admit`] when it is taken off the ring, so that a Tflush for it finds it, and is answered with
//! [`Session::finish`]; [`Session::handle`] does both in one.
//!
//! # What holds
//!
//! - No request reaches a file outside the share: names are single components, symbolic links are never followed, `..` is
//!   resolved in the server's own tree of names, directories are opened beneath the share's root.
//! - Arbitrary bytes as a request, scattered anyhow, neither panic nor allocate more than the [`Limits`] say.
//! - An idle fid costs no descriptor, only a node in a tree of names; renaming a directory carries the fids below it along.
//! - FIFOs, sockets and devices of the host are never opened.

mod attr;
mod casehack;
mod config;
mod create;
mod fid;
mod iov;
mod lock;
mod mapped;
mod option;
mod place;
mod proto;
mod readdir;
mod serve;
mod session;
mod share;
mod tags;
mod tree;
mod xattr;

#[cfg(test)]
mod tests;

pub use config::{
    CaseHack, Limits, Multidevs, ParseOptionError, Resolution, SecurityModel, ShareConfig, ShareError,
};
pub(crate) use proto::dotl;
#[cfg(any(target_os = "macos", test))]
pub(crate) use proto::xattr_flag;
pub use proto::{HEADER_SIZE, MAX_MSIZE, MIN_MSIZE, RequestKind, request_kind};
pub use serve::{ServeError, serve};
pub use session::Session;
pub use share::Share;
pub use tags::Ticket;
