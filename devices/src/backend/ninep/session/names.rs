//! Requests about names: walk, make, link, rename, remove.

use super::{Held, Request, Session};
use crate::backend::ninep::fid::{Fid, Use};
use crate::backend::ninep::place::{Name, Place};
use crate::backend::ninep::proto::{
    AT_REMOVEDIR, MAX_WALK, NO_FID, Outcome, Qid, Reply, errno, fail, mode, qt,
};
use crate::backend::ninep::share::NewFile;
use crate::backend::ninep::tree::{NodeId, Whereabouts};
use crate::sys::ninep::{Attr, encode_device};

impl Session {
    pub(super) fn walk(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (number, fid) = self.fid(&mut request)?;
        let (new_number, count) = (request.fields.u32()?, usize::from(request.fields.u16()?));
        if count > MAX_WALK || matches!(fid.usage, Use::Xattr(_)) {
            return fail(errno::EINVAL);
        }
        if number != new_number && (self.fids.contains(new_number) || new_number == NO_FID) {
            return fail(errno::EBADF);
        }
        self.share.tree().acquire(fid.node)?;
        let mut current = Held::new(&self.share, fid.node);
        let mut qids = [Qid { kind: qt::FILE, version: 0, path: 0 }; MAX_WALK];
        let mut walked = 0;
        for qid in qids.iter_mut().take(count) {
            let name = request.fields.component()?;
            match self.step(current.node, name) {
                Ok((next, attr)) => {
                    current = Held::new(&self.share, next);
                    *qid = self.share.qid(&attr);
                    walked += 1;
                }
                // Only the first step's failure is the walk's; later ones say how far it came.
                Err(error) if walked == 0 => return Err(error),
                Err(_) => break,
            }
        }
        if walked == count {
            let node = current.keep();
            if number == new_number {
                let replaced = self.fids.change(number, node, Use::Idle);
                self.share.release(*replaced.as_ref().unwrap_or(&node));
                replaced?;
            } else {
                self.insert(new_number, Fid { node, uid: fid.uid, usage: Use::Idle }, request.epoch)?;
            }
        }
        reply.u16(walked as u16);
        for qid in &qids[..walked] {
            reply.qid(qid);
        }
        Ok(0)
    }

    /// From a directory to what is at `name` in it: its node, with a reference, and its attributes.
    fn step(&self, from: NodeId, name: &[u8]) -> Outcome<(NodeId, Attr)> {
        if name == b"." || name == b".." {
            let node = if name == b"." { from } else { self.share.tree().parent(from)? };
            let attr = self.share.at(node, |place| self.share.attr(place))?;
            if attr.mode & mode::FORMAT != mode::DIRECTORY {
                return fail(errno::ENOTDIR);
            }
            self.share.tree().acquire(node)?;
            return Ok((node, attr));
        }
        self.share.inside(from, |dir| {
            let place = Place::At(dir.clone(), self.share.real_name(dir, name)?);
            let attr = self.share.attr(&place)?;
            let Place::At(_, real) = &place else { return fail(errno::EIO) };
            let mut tree = self.share.tree();
            tree.saw(from, real.as_bytes(), attr.dev, attr.ino);
            Ok((tree.child(from, real.as_bytes())?, attr))
        })
    }

    pub(super) fn mkdir(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let name = request.fields.entry()?;
        let (permissions, gid) = (request.fields.u32()?, request.fields.u32()?);
        self.share.check_writable()?;
        let mode = mode::DIRECTORY | (permissions & mode::PERMISSIONS);
        let new = NewFile { mode, uid: fid.uid, gid, rdev: 0 };
        let attr = self.share.inside(fid.node, |dir| self.share.make_directory(dir, name, new))?;
        reply.qid(&self.share.qid(&attr));
        Ok(0)
    }

    pub(super) fn symlink(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let (name, target, gid) =
            (request.fields.entry()?, request.fields.link_target()?, request.fields.u32()?);
        self.share.check_writable()?;
        let new = NewFile { mode: mode::SYMLINK | 0o777, uid: fid.uid, gid, rdev: 0 };
        let attr = self.share.inside(fid.node, |dir| self.share.make_symlink(dir, name, target, new))?;
        reply.qid(&self.share.qid(&attr));
        Ok(0)
    }

    pub(super) fn mknod(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let (name, mode) = (request.fields.entry()?, request.fields.u32()?);
        let (major, minor, gid) = (request.fields.u32()?, request.fields.u32()?, request.fields.u32()?);
        self.share.check_writable()?;
        let new = NewFile { mode, uid: fid.uid, gid, rdev: encode_device(major, minor) };
        let attr = self.share.inside(fid.node, |dir| self.share.make_node(dir, name, new))?;
        reply.qid(&self.share.qid(&attr));
        Ok(0)
    }

    pub(super) fn link(&self, mut request: Request<'_>) -> Outcome<usize> {
        let (_, directory) = self.fid(&mut request)?;
        let (_, file) = self.fid(&mut request)?;
        let name = request.fields.entry()?;
        self.share.check_writable()?;
        self.at(&file, |from| {
            self.share.inside(directory.node, |dir| self.share.make_link(from, dir, name))
        })?;
        Ok(0)
    }

    pub(super) fn unlinkat(&self, mut request: Request<'_>) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let (name, flags) = (request.fields.entry()?, request.fields.u32()?);
        self.share.check_writable()?;
        if flags & !AT_REMOVEDIR != 0 {
            return fail(errno::EINVAL);
        }
        let alone = self.share.change_names();
        let gone = self.share.remove_entry(fid.node, name, flags & AT_REMOVEDIR != 0)?;
        drop(alone);
        // The host frees a large file now, when nobody waits for names any more.
        drop(gone);
        Ok(0)
    }

    /// Tremove clunks the fid whether or not it can remove the file.
    pub(super) fn remove(&self, mut request: Request<'_>) -> Outcome<usize> {
        let number = request.fields.u32()?;
        let fid = self.fids.remove(number)?;
        // Let go of in the opposite order: names first.
        let _held = Held::new(&self.share, fid.node);
        let _gone;
        let _alone = self.share.change_names();
        crate::backend::ninep::lock::release_fid(self.id, number);
        self.share.check_writable()?;
        let (parent, name) = self.entry_of(fid.node)?;
        let is_directory = self.at(&fid, Place::stat)?.mode & mode::FORMAT == mode::DIRECTORY;
        _gone = self.share.remove_entry(parent, name.as_bytes(), is_directory)?;
        Ok(0)
    }

    pub(super) fn rename(&self, mut request: Request<'_>) -> Outcome<usize> {
        let (_, fid) = self.fid(&mut request)?;
        let (_, directory) = self.fid(&mut request)?;
        let name = request.fields.entry()?;
        self.share.check_writable()?;
        let alone = self.share.change_names();
        let (parent, old_name) = self.entry_of(fid.node)?;
        let gone = self.share.rename_entry((parent, old_name.as_bytes()), (directory.node, name))?;
        drop(alone);
        drop(gone);
        Ok(0)
    }

    pub(super) fn renameat(&self, mut request: Request<'_>) -> Outcome<usize> {
        let (_, old_directory) = self.fid(&mut request)?;
        let old_name = request.fields.entry()?;
        let (_, new_directory) = self.fid(&mut request)?;
        let new_name = request.fields.entry()?;
        self.share.check_writable()?;
        let alone = self.share.change_names();
        let gone = self.share.rename_entry((old_directory.node, old_name), (new_directory.node, new_name))?;
        drop(alone);
        drop(gone);
        Ok(0)
    }

    /// The directory that a node is in and its name there; the root is in none.
    fn entry_of(&self, node: NodeId) -> Outcome<(NodeId, Name)> {
        if node == NodeId::ROOT {
            return fail(errno::EBUSY);
        }
        let mut name = Name::new();
        let whereabouts = self.share.tree().whereabouts(node, &mut name)?;
        match whereabouts {
            Whereabouts::In(parent) => Ok((parent, name)),
            Whereabouts::Removed(_) => fail(errno::ENOENT),
        }
    }
}
