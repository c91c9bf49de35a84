//! Which requests may take long, found out before anything is done. It changes nothing.
//!
//! A device answers what is quick on the thread that rang the doorbell, often a vCPU's: handing it to another thread and waking that
//! costs more than the request. That is right for names and attributes, for making, renaming and removing files on a file system of
//! this machine: microseconds of work in the host's memory, which the host writes to the disk later. (Where it has to read a directory
//! or an inode from the disk first, the vCPU waits for that once.) It is wrong for
//! - anything on a network file system or one that another program serves: whoever is behind it may take any time to answer;
//! - what moves or waits for data: reads of what is not cached, writes, which wait for the disk when too much is dirty, fsync;
//! - listing a directory, which may be of any size;
//! - freeing the contents of a large file, which unlink, rename over it, truncation, and the last clunk of a removed file all do: for a
//!   file of many GiB that is many milliseconds.

use std::os::fd::AsFd;

use vm_memory::VolatileSlice;

use super::{SMALL_REQUEST, Session};
use crate::backend::ninep::create::is_large;
use crate::backend::ninep::fid::Use;
use crate::backend::ninep::iov::Scatter;
use crate::backend::ninep::proto::{
    AT_REMOVEDIR, Fields, HEADER_SIZE, Outcome, RequestKind, dotl, op, request_kind, setattr,
};
use crate::backend::ninep::tree::NodeId;
use crate::sys::ninep::{self as host, Target};

impl Session {
    /// How long a request may take that has not begun yet; [`request_kind`] with a look at what it is about. Itself it is quick.
    pub fn kind(&self, request: &[VolatileSlice<'_>]) -> RequestKind {
        let input = Scatter(request);
        let mut header = [0; HEADER_SIZE];
        if self.share.remote || input.read_at(0, &mut header) < HEADER_SIZE {
            return RequestKind::MayBlock;
        }
        match header[4] {
            op::TUNLINKAT | op::TRENAME | op::TRENAMEAT | op::TLOPEN | op::TSETATTR | op::TCLUNK => {
                let mut message = [0; SMALL_REQUEST];
                let count = input.read_at(0, &mut message);
                let fields = Fields(message.get(HEADER_SIZE..count).unwrap_or_default());
                match self.frees_much(header[4], fields) {
                    // What fails here fails there, and quickly.
                    Ok(false) | Err(_) => RequestKind::Quick,
                    Ok(true) => RequestKind::MayBlock,
                }
            }
            _ => request_kind(&header),
        }
    }

    /// Whether the host may have a large file to free for a request of one of the kinds that can do that.
    fn frees_much(&self, op: u8, mut fields: Fields<'_>) -> Outcome<bool> {
        let number = fields.u32()?;
        match op {
            op::TUNLINKAT => {
                let (name, flags) = (fields.entry()?, fields.u32()?);
                Ok(flags & AT_REMOVEDIR == 0 && self.is_last_of_large(number, name)?)
            }
            op::TRENAME => {
                let (directory, name) = (fields.u32()?, fields.entry()?);
                self.is_last_of_large(directory, name)
            }
            op::TRENAMEAT => {
                let (_, directory, name) = (fields.entry()?, fields.u32()?, fields.entry()?);
                self.is_last_of_large(directory, name)
            }
            op::TLOPEN => Ok(fields.u32()? & dotl::TRUNC != 0 && self.is_file_large(number)?),
            op::TSETATTR => Ok(fields.u32()? & setattr::SIZE != 0 && self.is_file_large(number)?),
            op::TCLUNK => {
                let node = self.fids.get(number)?.node;
                let removed = self.share.tree().removed(node);
                Ok(removed
                    .is_some_and(|file| host::stat(Target::Open(file.as_fd())).is_ok_and(|a| is_large(&a))))
            }
            _ => Ok(false),
        }
    }

    /// Whether a name is the only one of a large file.
    fn is_last_of_large(&self, directory: u32, name: &[u8]) -> Outcome<bool> {
        let node = self.fids.get(directory)?.node;
        // Who changes names now may have a while to go, and the request would wait for that.
        let Some(_names) = self.share.try_names() else { return Ok(true) };
        self.share.inside(node, |dir| {
            let attr = dir.stat(&self.share.real_name(dir, name)?)?;
            Ok(attr.nlink <= 1 && is_large(&attr))
        })
    }

    /// Whether the file of a fid is large.
    fn is_file_large(&self, number: u32) -> Outcome<bool> {
        let fid = self.fids.get(number)?;
        if let Use::File(file) = &fid.usage {
            return Ok(is_large(&host::stat(Target::Open(file.fd.as_fd()))?));
        }
        let Some(_names) = self.share.try_names() else { return Ok(true) };
        self.is_node_large(fid.node)
    }

    fn is_node_large(&self, node: NodeId) -> Outcome<bool> {
        self.share.at(node, |place| Ok(is_large(&place.stat()?)))
    }
}
