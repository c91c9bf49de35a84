//! Extended attributes: fids that hold a value, and the bound on what all of them hold together.

use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::config::SecurityModel;
use super::mapped;
use super::proto::{Outcome, WireError, errno, fail, xattr_flag};
use super::share::Share;
use crate::sys::ninep::{self as host, Target};
use crate::util::lock;

/// Largest value, and largest list of names, in bytes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX` of Linux).
pub(super) const VALUE_MAX: u64 = 65_536;

/// Bytes that a session may hold for one purpose.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), limit: u64::from(limit) })
    }

    /// Sets bytes aside until the reservation is dropped. ENOMEM if there are not enough left.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Outcome<Reservation> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        let reservation = Reservation { budget: self.clone(), bytes };
        if used.saturating_add(bytes) > self.limit { fail(errno::ENOMEM) } else { Ok(reservation) }
    }
}

/// Bytes of a budget that are taken.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a fid of Txattrwalk or Txattrcreate holds.
#[derive(Debug)]
pub(super) enum XattrFid {
    /// A value, or a list of names, to be read.
    Read { value: Vec<u8>, _reserved: Reservation },
    /// A value that is being written and will be set when the fid is clunked.
    Write { name: CString, size: usize, flags: u32, value: Mutex<Vec<u8>>, _reserved: Reservation },
}

impl XattrFid {
    /// A fid to write a value of `size` bytes.
    pub fn to_write(name: &[u8], size: u64, flags: u32, budget: &Arc<Budget>) -> Outcome<Self> {
        if size > VALUE_MAX {
            return fail(errno::ENOSPC);
        }
        let name = CString::new(name).map_err(|_| WireError(errno::EINVAL))?;
        let reserved = budget.reserve(size + name.as_bytes().len() as u64)?;
        let value = Mutex::new(Vec::with_capacity(size as usize));
        Ok(Self::Write { name, size: size as usize, flags, value, _reserved: reserved })
    }

    /// The value to be read.
    pub fn value(&self) -> Outcome<&[u8]> {
        match self {
            Self::Read { value, .. } => Ok(value),
            Self::Write { .. } => fail(errno::EBADF),
        }
    }

    /// Writes a part of the value, `bytes` at `offset`; the value does not grow beyond what was announced.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Outcome<usize> {
        let Self::Write { size, value, .. } = self else { return fail(errno::EBADF) };
        let Some(start) = usize::try_from(offset).ok().filter(|start| start <= size) else {
            return fail(errno::ENOSPC);
        };
        let count = bytes.len().min(size - start);
        let mut value = lock(value);
        if start > value.len() {
            return fail(errno::EINVAL);
        }
        let overlap = count.min(value.len() - start);
        value[start..start + overlap].copy_from_slice(&bytes[..overlap]);
        value.extend_from_slice(&bytes[overlap..count]);
        Ok(count)
    }
}

impl Share {
    /// Reads the attribute `name` of a file, or with an empty name the list of all names.
    pub(super) fn read_xattr(
        &self,
        target: Target<'_>,
        name: &[u8],
        budget: &Arc<Budget>,
    ) -> Outcome<XattrFid> {
        if name.is_empty() {
            let names = grow(|buffer| host::list_xattrs(target, buffer))?;
            let mut value = Vec::with_capacity(names.len());
            for name in names.split_inclusive(|byte| *byte == 0) {
                if self.xattr_is_visible(name.strip_suffix(b"\0").unwrap_or(name)) {
                    value.extend_from_slice(name);
                }
            }
            return held(value, budget);
        }
        if !self.xattr_is_visible(name) {
            // Asked for before every write: answered without asking the host.
            return fail(if name.starts_with(b"user.") || name == b"security.capability" {
                errno::ENODATA
            } else {
                errno::EOPNOTSUPP
            });
        }
        let name = CString::new(name).map_err(|_| WireError(errno::EINVAL))?;
        let value = grow(|buffer| host::get_xattr(target, &name, buffer))?;
        held(value, budget)
    }

    /// Carries out what a fid of Txattrcreate was for. Of no bytes and to replace means to remove, which is how Linux says
    /// it.
    pub(super) fn write_xattr(&self, target: Target<'_>, fid: &XattrFid) -> Outcome<()> {
        let XattrFid::Write { name, size, flags, value, .. } = fid else { return Ok(()) };
        let value = lock(value);
        if value.len() != *size {
            return fail(errno::EINVAL);
        }
        if value.is_empty() && flags & xattr_flag::REPLACE != 0 {
            return Ok(host::remove_xattr(target, name)?);
        }
        Ok(host::set_xattr(target, name, &value, *flags)?)
    }

    /// Whether a client may set this attribute.
    pub(super) fn check_xattr_writable(&self, name: &[u8], flags: u32) -> Outcome<()> {
        if flags & !(xattr_flag::CREATE | xattr_flag::REPLACE) != 0 || name.is_empty() {
            return fail(errno::EINVAL);
        }
        match self.xattr_is_visible(name) {
            true => Ok(()),
            false if name.starts_with(b"user.") => fail(errno::EACCES),
            false => fail(errno::EOPNOTSUPP),
        }
    }

    fn xattr_is_visible(&self, name: &[u8]) -> bool {
        let own =
            self.config.security == SecurityModel::MappedXattr && name.starts_with(mapped::XATTR_PREFIX);
        !own && host::xattr_is_visible(name, self.config.security == SecurityModel::Passthrough)
    }
}

fn held(value: Vec<u8>, budget: &Arc<Budget>) -> Outcome<XattrFid> {
    let reserved = budget.reserve(value.len() as u64)?;
    Ok(XattrFid::Read { value, _reserved: reserved })
}

/// Calls with larger and larger buffers until the answer fits.
fn grow(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Outcome<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if (buffer.len() as u64) < VALUE_MAX => buffer.resize(buffer.len() * 8, 0),
            Err(error) => return Err(error.into()),
        }
    }
}
