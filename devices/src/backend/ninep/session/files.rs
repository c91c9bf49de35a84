//! Requests about contents: open, read, write, list, lock, and extended attributes.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use vm_memory::VolatileSlice;

use super::{Held, Request, Session};
use crate::backend::ninep::fid::{Fid, OpenFile, Use};
use crate::backend::ninep::iov::Scatter;
use crate::backend::ninep::lock::{self, Owner, Range};
use crate::backend::ninep::place::Place;
use crate::backend::ninep::proto::{
    Fields, HEADER_SIZE, IO_HEADER, NO_FID, Outcome, RREAD_HEADER, Reply, TREAD_SIZE, TWRITE_HEADER, dotl,
    errno, fail, lock as wire, mode, op,
};
use crate::backend::ninep::readdir::OpenDir;
use crate::backend::ninep::share::NewFile;
use crate::backend::ninep::xattr::{VALUE_MAX, XattrFid};
use crate::sys::ninep::{self as host, Attr, Target};

/// Unit of reads and writes that are best for the page cache of a guest.
const PAGE: u64 = 4096;
/// The most that is read in passing: copying it takes some ten microseconds.
const CACHED_MAX: usize = 512 << 10;

impl Session {
    pub(super) fn lopen(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (number, fid) = self.fid(&mut request)?;
        let flags = request.fields.u32()?;
        if !matches!(fid.usage, Use::Idle) {
            return fail(errno::EBUSY);
        }
        let writes = flags & dotl::ACCMODE != 0;
        if writes || flags & dotl::TRUNC != 0 {
            self.share.check_writable()?;
        }
        self.fids.reserve_open()?;
        let opened = self.at(&fid, |place| self.open_place(place, flags));
        let changed =
            opened.and_then(|(usage, attr)| self.fids.change(number, fid.node, usage).map(|_| attr));
        let attr = changed.inspect_err(|_| self.fids.unreserve_open())?;
        reply.qid(&self.share.qid(&attr)).u32(self.io_unit(attr.blksize) as u32);
        Ok(0)
    }

    fn open_place(&self, place: &Place, flags: u32) -> Outcome<(Use, Attr)> {
        if self.share.config.security.is_mapped() {
            match self.share.attr(place)?.mode & mode::FORMAT {
                mode::REGULAR | mode::DIRECTORY => {}
                mode::SYMLINK => return fail(errno::ELOOP),
                _ => return fail(errno::ENXIO),
            }
        }
        let (fd, attr) = place.open(host_flags(flags))?;
        if attr.mode & mode::FORMAT == mode::DIRECTORY {
            let listing = Mutex::new(None);
            let is_root = (attr.dev, attr.ino) == (self.share.root.dev, self.share.root.ino);
            return Ok((
                Use::Dir(Arc::new(OpenDir { fd, dev: attr.dev, ino: attr.ino, is_root, listing })),
                attr,
            ));
        }
        let clears_suid = flags & dotl::ACCMODE != 0 && self.share.clears_suid();
        if flags & dotl::TRUNC != 0 {
            self.share.clear_suid(&fd, clears_suid)?;
        }
        let in_memory = self.share.is_in_memory(&attr);
        Ok((Use::File(Arc::new(OpenFile { fd, clears_suid, in_memory })), attr))
    }

    pub(super) fn lcreate(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (number, fid) = self.fid(&mut request)?;
        let (name, flags) = (request.fields.entry()?, request.fields.u32()?);
        let (permissions, gid) = (request.fields.u32()?, request.fields.u32()?);
        if !matches!(fid.usage, Use::Idle) {
            return fail(errno::EBUSY);
        }
        self.share.check_writable()?;
        self.fids.reserve_open()?;
        let mode = mode::REGULAR | (permissions & mode::PERMISSIONS);
        let new = NewFile { mode, uid: fid.uid, gid, rdev: 0 };
        let exclusive = flags & dotl::EXCL != 0;
        let created = self.share.inside(fid.node, |dir| {
            let (fd, attr, name) = self.share.create_file(dir, name, host_flags(flags), exclusive, new)?;
            let mut tree = self.share.tree();
            tree.saw(fid.node, name.as_bytes(), attr.dev, attr.ino);
            let node = tree.child(fid.node, name.as_bytes())?;
            let (clears_suid, in_memory) = (self.share.clears_suid(), self.share.is_in_memory(&attr));
            Ok((Arc::new(OpenFile { fd, clears_suid, in_memory }), attr, node))
        });
        let changed = created.and_then(|(file, attr, node)| {
            let held = Held::new(&self.share, node);
            let former = self.fids.change(number, node, Use::File(file))?;
            held.keep();
            self.share.release(former);
            Ok(attr)
        });
        let attr = changed.inspect_err(|_| self.fids.unreserve_open())?;
        reply.qid(&self.share.qid(&attr)).u32(self.io_unit(attr.blksize) as u32);
        Ok(0)
    }

    /// Bytes that a client best reads or writes at a time: as many whole blocks as a message holds.
    pub(super) fn io_unit(&self, block_size: u64) -> u64 {
        let most = u64::from(self.msize().saturating_sub(IO_HEADER));
        let round = |unit: u64| most - most % unit.max(1);
        [round(block_size.max(PAGE)), round(PAGE), most].into_iter().find(|size| *size > 0).unwrap_or(PAGE)
    }

    pub(super) fn read(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let (offset, count) = (request.fields.u64()?, request.fields.u32()? as usize);
        let count = count.min(request.room.saturating_sub(RREAD_HEADER));
        let done = match &fid.usage {
            Use::File(file) => request.output.fill_from_file(RREAD_HEADER, count, file.fd.as_fd(), offset)?,
            Use::Xattr(xattr) => {
                let rest = usize::try_from(offset)
                    .ok()
                    .and_then(|start| xattr.value().map(|v| v.get(start..)).transpose());
                let rest = rest.transpose()?.unwrap_or_default();
                request.output.write_at(RREAD_HEADER, &rest[..count.min(rest.len())])
            }
            Use::Dir(_) => return fail(errno::EISDIR),
            Use::Idle => return fail(errno::EBADF),
        };
        reply.u32(done as u32);
        Ok(done)
    }

    /// Answers a Tread without waiting, if `request` is one and the host has what it asks for in memory; `None` if not, and then
    /// nothing has happened. It need not be [admitted](Self::admit), as long as no request behind it is until this returns.
    pub fn read_cached(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> Option<usize> {
        let (input, output) = (Scatter(request), Scatter(reply));
        let mut header = [0; TREAD_SIZE];
        if input.read_at(0, &mut header) < TREAD_SIZE || header[4] != op::TREAD || self.msize() == 0 {
            return None;
        }
        let tag = u16::from_le_bytes([header[5], header[6]]);
        let mut fields = Fields(&header[HEADER_SIZE..]);
        let (number, offset, count) = (fields.u32().ok()?, fields.u64().ok()?, fields.u32().ok()? as usize);
        let room = output.len().min(self.msize() as usize);
        let count = count.min(room.checked_sub(RREAD_HEADER)?);
        let fid = self.fids.get(number).ok()?;
        let Use::File(file) = &fid.usage else { return None };
        if count > CACHED_MAX {
            return None;
        }
        let done = match file.in_memory {
            true => output.fill_from_file(RREAD_HEADER, count, file.fd.as_fd(), offset).ok()?,
            false => output.fill_from_cache(RREAD_HEADER, count, file.fd.as_fd(), offset).ok()?,
        };
        // A short reply means to the client that the file ends here.
        if done < count {
            let size = u64::try_from(rustix::fs::fstat(&file.fd).ok()?.st_size).ok()?;
            if offset.checked_add(done as u64)? < size {
                return None;
            }
        }
        let mut head = Reply::new(op::TREAD, tag);
        head.u32(u32::try_from(done).ok()?);
        output.write_at(0, head.finish(done));
        Some(RREAD_HEADER + done)
    }

    pub(super) fn write(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let (offset, count) = (request.fields.u64()?, request.fields.u32()? as usize);
        if count > request.input.len().saturating_sub(TWRITE_HEADER) {
            return fail(errno::EPROTO);
        }
        let done = match &fid.usage {
            Use::File(file) => {
                self.share.clear_suid(&file.fd, file.clears_suid)?;
                request.input.drain_to_file(TWRITE_HEADER, count, file.fd.as_fd(), offset)?
            }
            Use::Xattr(xattr) => {
                let mut value = vec![0; count.min(VALUE_MAX as usize)];
                request.input.read_at(TWRITE_HEADER, &mut value);
                xattr.write(offset, &value)?
            }
            Use::Dir(_) => return fail(errno::EISDIR),
            Use::Idle => return fail(errno::EBADF),
        };
        reply.u32(done as u32);
        Ok(0)
    }

    pub(super) fn readdir(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let (cookie, count) = (request.fields.u64()?, request.fields.u32()? as usize);
        let Use::Dir(dir) = &fid.usage else { return fail(errno::ENOTDIR) };
        let count = count.min(request.room.saturating_sub(RREAD_HEADER));
        let done =
            self.share.read_dir(dir, cookie, count, request.output, RREAD_HEADER, &self.listing_budget)?;
        reply.u32(done as u32);
        Ok(done)
    }

    pub(super) fn fsync(&self, mut request: Request<'_>) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        // Clients from before 2011 do not send it.
        let data_only = request.fields.u32().unwrap_or(0) != 0;
        match &fid.usage {
            Use::File(file) => host::sync(file.fd.as_fd(), data_only)?,
            Use::Dir(dir) => host::sync(dir.fd.as_fd(), data_only)?,
            Use::Idle | Use::Xattr(_) => return fail(errno::EBADF),
        }
        Ok(0)
    }

    pub(super) fn xattrwalk(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let (new_number, name) = (request.fields.u32()?, request.fields.xattr_name()?);
        if new_number == NO_FID || self.fids.contains(new_number) {
            return fail(errno::EBADF);
        }
        let xattr = match &fid.usage {
            Use::File(file) => self.share.read_xattr(Target::Open(file.fd.as_fd()), name, &self.xattr_budget),
            _ => self.at(&fid, |place| self.share.read_xattr(place.target(), name, &self.xattr_budget)),
        }?;
        let size = xattr.value()?.len();
        self.share.tree().acquire(fid.node)?;
        self.insert(new_number, Fid { usage: Use::Xattr(Arc::new(xattr)), ..fid }, request.epoch)?;
        reply.u64(size as u64);
        Ok(0)
    }

    pub(super) fn xattrcreate(&self, mut request: Request<'_>) -> Outcome<usize> {
        let (number, fid) = self.fid(&mut request)?;
        let (name, size, flags) =
            (request.fields.xattr_name()?, request.fields.u64()?, request.fields.u32()?);
        self.share.check_writable()?;
        self.share.check_xattr_writable(name, flags)?;
        let xattr = XattrFid::to_write(name, size, flags, &self.xattr_budget)?;
        self.fids.change(number, fid.node, Use::Xattr(Arc::new(xattr)))?;
        Ok(0)
    }

    pub(super) fn lock(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (number, fid) = self.fid(&mut request)?;
        let (kind, _flags) = (request.fields.u8()?, request.fields.u32()?);
        let (file, range) = self.range(&mut request, number, &fid, kind)?;
        let status = match kind {
            wire::UNLOCK => {
                lock::release(file, &range);
                wire::SUCCESS
            }
            _ => lock::acquire(file, range, self.limits.locks)?,
        };
        reply.u8(status);
        Ok(0)
    }

    pub(super) fn getlock(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (number, fid) = self.fid(&mut request)?;
        let kind = request.fields.u8()?;
        let mut client = request.fields;
        let (file, range) = self.range(&mut request, number, &fid, kind)?;
        let (start, length, process) = (client.u64()?, client.u64()?, client.u32()?);
        match lock::conflict(file, &range) {
            None => reply.u8(wire::UNLOCK).u64(start).u64(length).u32(process),
            Some(held) => {
                let kind = if held.exclusive { wire::WRITE } else { wire::READ };
                reply.u8(kind).u64(held.start).u64(held.length()).u32(held.owner.process)
            }
        };
        reply.string(client.string()?);
        Ok(0)
    }

    /// The file and the range of a lock request, from `start[8]` on.
    fn range(
        &self,
        request: &mut Request<'_>,
        number: u32,
        fid: &Fid,
        kind: u8,
    ) -> Outcome<((u64, u64), Range)> {
        let (start, length) = (request.fields.u64()?, request.fields.u64()?);
        let (process, client) = (request.fields.u32()?, request.fields.string()?);
        if kind > wire::UNLOCK {
            return fail(errno::EINVAL);
        }
        let Use::File(file) = &fid.usage else { return fail(errno::EBADF) };
        let attr = host::stat(Target::Open(file.fd.as_fd()))?;
        let owner = Owner::new(self.id, process, client);
        Ok(((attr.dev, attr.ino), Range::new(owner, number, kind == wire::WRITE, start, length)?))
    }
}

/// Flags for the host's open. Appending is the host's business only for files that are open for nothing but writing: a
/// client that caches writes opens for reading too, and then rewrites pages at offsets, which must not land at the end.
fn host_flags(flags: u32) -> OFlags {
    let rewrites = flags & dotl::ACCMODE == dotl::RDWR;
    host::open_flags(if rewrites { flags & !dotl::APPEND } else { flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appending_is_left_to_the_host_for_files_that_are_only_written() {
        let only_written = host_flags(dotl::WRONLY | dotl::APPEND).contains(OFlags::APPEND);
        let rewritten = host_flags(dotl::RDWR | dotl::APPEND).contains(OFlags::APPEND);
        assert_eq!((only_written, rewritten), (true, false));
    }

    #[test]
    fn direct_and_noatime_are_not_passed_to_the_host() {
        assert_eq!(host_flags(dotl::DIRECT | dotl::NOATIME | dotl::CREATE), OFlags::RDONLY);
    }
}
