//! Requests about attributes: getattr, setattr, readlink, statfs.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::{Request, Session};
use crate::backend::ninep::fid::{Fid, OpenFile, Use};
use crate::backend::ninep::place::Place;
use crate::backend::ninep::proto::{
    Fields, HEADER_SIZE, LINK_MAX, NAME_MAX, Outcome, Reply, V9FS_MAGIC, errno, fail, getattr, mode, setattr,
};
use crate::sys::ninep::{self as host, Attr, Target};

impl Session {
    /// The attributes of a fid's file, of the very file that was opened if it was.
    fn attr(&self, fid: &Fid) -> Outcome<Attr> {
        match &fid.usage {
            Use::File(file) => self.share.attr_of_open(file, || self.share.place(fid.node)),
            _ => self.at(fid, |place| self.share.attr(place)),
        }
    }

    pub(super) fn getattr(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let mask = request.fields.u64()?;
        let attr = self.attr(&fid)?;
        let birth = if mask & getattr::BTIME == 0 {
            None
        } else {
            match &fid.usage {
                Use::File(file) => host::birth_time(Target::Open(file.fd.as_fd())),
                _ => self.at(&fid, |place| Ok(host::birth_time(place.target()))).ok().flatten(),
            }
        };
        reply.u64(getattr::BASIC | if birth.is_some() { getattr::BTIME } else { 0 });
        reply.qid(&self.share.qid(&attr)).u32(attr.mode).u32(attr.uid).u32(attr.gid);
        reply.u64(attr.nlink).u64(attr.rdev).u64(attr.size).u64(self.io_unit(attr.blksize)).u64(attr.blocks);
        for (seconds, nanoseconds) in [attr.atime, attr.mtime, attr.ctime, birth.unwrap_or_default()] {
            reply.u64(seconds).u64(nanoseconds);
        }
        // Generation and data version, which no host tells.
        reply.u64(0).u64(0);
        Ok(0)
    }

    pub(super) fn setattr(&self, mut request: Request<'_>) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let change = Change::parse(&mut request.fields)?;
        self.share.check_writable()?;
        let file = match &fid.usage {
            Use::File(file) => Some(&**file),
            _ => None,
        };
        // The place is only one way to an opened file; without it the descriptor must do.
        if file.is_some() {
            return self.change(self.share.place(fid.node), file, &change);
        }
        self.at(&fid, |place| self.change(Ok(place.clone()), None, &change))
    }

    fn change(&self, place: Outcome<Place>, file: Option<&OpenFile>, change: &Change) -> Outcome<usize> {
        let has = |bit| change.valid & bit != 0;
        if has(setattr::MODE) {
            self.share.chmod(place.clone(), file, change.mode)?;
        }
        let uid = has(setattr::UID).then_some(change.uid);
        let gid = has(setattr::GID).then_some(change.gid);
        // A change of ctime alone is a chown that changes nothing.
        if uid.is_some() || gid.is_some() || change.valid == setattr::CTIME {
            self.share.chown(place.clone(), file, uid, gid)?;
        }
        if has(setattr::SIZE) {
            self.share.truncate(place.clone(), file, change.size)?;
        }
        if has(setattr::ATIME) || has(setattr::MTIME) {
            let times = Timestamps {
                last_access: timestamp(has(setattr::ATIME), has(setattr::ATIME_SET), change.atime),
                last_modification: timestamp(has(setattr::MTIME), has(setattr::MTIME_SET), change.mtime),
            };
            self.share.set_times(place, file, &times)?;
        }
        Ok(0)
    }

    pub(super) fn readlink(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let skip = HEADER_SIZE + 2;
        let written = self.at(&fid, |place| {
            let mut buffer = [MaybeUninit::uninit(); LINK_MAX];
            if self.share.config.security.is_mapped() && place.stat()?.mode & mode::FORMAT == mode::REGULAR {
                if self.share.attr(place)?.mode & mode::FORMAT != mode::SYMLINK {
                    return fail(errno::EINVAL);
                }
                let (file, _) = place.open(OFlags::RDONLY)?;
                let mut target = [0; LINK_MAX];
                let length = rustix::io::pread(&file, &mut target, 0)?;
                return Ok((length, request.output.write_at(skip, &target[..length])));
            }
            let target = place.read_link(&mut buffer)?;
            Ok((target.len(), request.output.write_at(skip, target)))
        })?;
        let (length, written) = written;
        if written < length {
            return fail(errno::EMSGSIZE);
        }
        reply.u16(length as u16);
        Ok(length)
    }

    pub(super) fn statfs(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let info = match &fid.usage {
            Use::File(file) => host::fs_info(file.fd.as_fd())?,
            _ => match self.share.directory(fid.node) {
                Ok(dir) => host::fs_info(dir.as_fd())?,
                Err(_) => self.at(&fid, |place| match place {
                    Place::At(dir, _) => Ok(host::fs_info(dir.as_fd())?),
                    Place::Removed(file) => Ok(host::fs_info(file.as_fd())?),
                })?,
            },
        };
        reply.u32(V9FS_MAGIC).u32(info.block_size);
        reply.u64(info.blocks).u64(info.free).u64(info.available).u64(info.files).u64(info.files_free);
        reply.u64(info.id).u32(NAME_MAX as u32);
        Ok(0)
    }
}

/// The fields of Tsetattr.
struct Change {
    valid: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    atime: (u64, u64),
    mtime: (u64, u64),
}

impl Change {
    fn parse(fields: &mut Fields<'_>) -> Outcome<Self> {
        Ok(Self {
            valid: fields.u32()?,
            mode: fields.u32()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            size: fields.u64()?,
            atime: (fields.u64()?, fields.u64()?),
            mtime: (fields.u64()?, fields.u64()?),
        })
    }
}

/// A time to set: the one given, the host's own now, or none. Nanoseconds out of range become none of the host's magic
/// values.
fn timestamp(wanted: bool, given: bool, (seconds, nanoseconds): (u64, u64)) -> Timespec {
    let tv_nsec = match (wanted, given) {
        (false, _) => UTIME_OMIT as _,
        (true, false) => UTIME_NOW as _,
        (true, true) => nanoseconds.min(999_999_999) as _,
    };
    Timespec { tv_sec: seconds as _, tv_nsec }
}
