//! One client of a share: takes requests apart, keeps its fids, puts replies together. The operations are in the parts
//! below: [`names`] walks and changes names, [`files`] opens and moves data, [`attrs`] asks and sets attributes;
//! [`duration`] says beforehand which of them may take long.

mod attrs;
mod duration;
mod files;
mod names;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::VolatileSlice;

use super::config::Limits;
use super::fid::{Fid, Fids, Use};
use super::iov::Scatter;
use super::lock;
use super::place::Place;
use super::proto::{
    Fields, HEADER_SIZE, MAX_MSIZE, MIN_MSIZE, NO_FID, Outcome, Reply, TWRITE_HEADER, VERSION,
    VERSION_UNKNOWN, WireError, errno, fail, op,
};
use super::share::Share;
use super::tags::{Tags, Ticket};
use super::tree::NodeId;
use super::xattr::Budget;

/// Requests up to this size are copied to the stack, larger ones (long names, long links) to the heap.
const SMALL_REQUEST: usize = 512;
/// Larger than any valid request but Twrite: Tsymlink with the longest name and target, Twalk with 16 longest names.
const LARGEST_REQUEST: usize = 8192;

/// One client's connection to a [`Share`]: its fids, its msize and its requests in flight. Usable from several threads at
/// once. Dropping it clunks all fids and releases all locks.
#[derive(Debug)]
pub struct Session {
    share: Arc<Share>,
    limits: Limits,
    /// Tells the locks of one session from those of another.
    id: u64,
    /// As agreed with Tversion; 0 before.
    msize: AtomicU32,
    fids: Fids,
    tags: Tags,
    xattr_budget: Arc<Budget>,
    listing_budget: Arc<Budget>,
}

/// A request that is being carried out.
struct Request<'a> {
    op: u8,
    fields: Fields<'a>,
    input: Scatter<'a>,
    output: Scatter<'a>,
    /// Largest reply.
    room: usize,
    ticket: &'a Ticket,
    /// Of the fids when it began.
    epoch: u32,
}

impl Session {
    /// A session on a share, within the limits of the share. It knows nothing until the client says Tversion.
    pub fn new(share: Arc<Share>) -> Self {
        let limits = share.config.limits;
        Self::with_limits(share, limits)
    }

    /// A session on a share, within limits of its own.
    pub fn with_limits(share: Arc<Share>, limits: Limits) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            share,
            limits,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            msize: AtomicU32::new(0),
            fids: Fids::new(limits.fids, limits.open_files),
            tags: Tags::default(),
            xattr_budget: Budget::new(limits.xattr_bytes),
            listing_budget: Budget::new(limits.listing_bytes),
        }
    }

    /// The share it is on.
    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Fids in use.
    pub fn fids(&self) -> u32 {
        self.fids.len()
    }

    /// The msize agreed with the client in bytes, 0 before Tversion.
    pub fn msize(&self) -> u32 {
        self.msize.load(Ordering::Relaxed)
    }

    /// Announces a request by its first bytes, when it is taken off the ring: from now on a Tflush for its tag finds it. The
    /// ticket must go to [`finish`](Self::finish).
    pub fn admit(&self, header: &[u8; HEADER_SIZE]) -> Ticket {
        self.tags.admit(u16::from_le_bytes([header[5], header[6]]))
    }

    /// Carries out a request that was [admitted](Self::admit): `request` is one complete T-message, `reply` where the
    /// R-message is written to. Then calls `publish` with the length of the reply in bytes, to hand it to the client; only
    /// when that returns is the request over for a Tflush that waits for it.
    ///
    /// The length is 0 if the request was flushed before it began, or if there is no room for even an error: then there is
    /// no reply, and the buffers go back as they are.
    pub fn finish(
        &self,
        ticket: Ticket,
        request: &[VolatileSlice<'_>],
        reply: &[VolatileSlice<'_>],
        publish: impl FnOnce(usize),
    ) {
        let length =
            if self.tags.start(&ticket) { self.answer(&ticket, Scatter(request), Scatter(reply)) } else { 0 };
        publish(length);
        self.tags.finish(&ticket);
    }

    /// Carries out a request on this thread: [`admit`](Self::admit) and [`finish`](Self::finish) in one. Returns the length
    /// of the reply in bytes.
    pub fn handle(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize {
        let mut header = [0; HEADER_SIZE];
        Scatter(request).read_at(0, &mut header);
        let mut length = 0;
        self.finish(self.admit(&header), request, reply, |written| length = written);
        length
    }

    /// The same for messages that are each in one piece.
    pub fn handle_bytes(&self, request: &[u8], reply: &mut [u8]) -> usize {
        // SAFETY: the range is that of `request`, which outlives the call; ranges of requests are only ever read.
        let request = unsafe { VolatileSlice::new(request.as_ptr().cast_mut(), request.len()) };
        self.handle(&[request], &[VolatileSlice::from(reply)])
    }

    /// Clunks all fids and releases all locks, as Tversion does and as the reset of a device must. Extended attributes that
    /// were not written completely are not set.
    pub fn reset(&self) {
        let fids = self.fids.drain();
        let mut tree = self.share.tree();
        let gone: Vec<_> = fids.iter().filter_map(|(_, fid)| tree.release(fid.node)).collect();
        drop(tree);
        drop(gone);
        lock::release_session(self.id);
        self.msize.store(0, Ordering::Relaxed);
    }

    /// Lets go of the descriptors of the directories above a fid's file, as when many others are used meanwhile.
    #[cfg(test)]
    pub(super) fn forget_directories_of(&self, fid: u32) {
        if let Ok(fid) = self.fids.get(fid) {
            self.share.tree().forget_chain(fid.node);
        }
    }

    /// Takes a request apart, carries it out and writes the reply.
    fn answer(&self, ticket: &Ticket, input: Scatter<'_>, output: Scatter<'_>) -> usize {
        let mut small = [0_u8; SMALL_REQUEST];
        let available = input.read_at(0, &mut small);
        let Some((header, _)) = small.split_first_chunk::<HEADER_SIZE>().filter(|_| available >= HEADER_SIZE)
        else {
            return 0;
        };
        let [s0, s1, s2, s3, kind, t0, t1] = *header;
        let (size, tag) = (u32::from_le_bytes([s0, s1, s2, s3]) as usize, u16::from_le_bytes([t0, t1]));
        let msize = match self.msize() {
            0 => MAX_MSIZE,
            agreed => agreed,
        };
        let room = output.len().min(msize as usize);
        let mut reply = Reply::new(kind, tag);
        let outcome = self.body(kind, size, available, &small, input).and_then(|body| {
            let fields = Fields(body.as_slice(&small));
            let request = Request { op: kind, fields, input, output, room, ticket, epoch: self.fids.epoch() };
            self.dispatch(request, &mut reply)
        });
        let outcome =
            outcome.and_then(
                |payload| if reply.len() + payload > room { fail(errno::EMSGSIZE) } else { Ok(payload) },
            );
        let payload = outcome.unwrap_or_else(|error| {
            reply = Reply::error(tag, error);
            0
        });
        if reply.len() + payload > output.len() {
            return 0;
        }
        output.write_at(0, reply.finish(payload));
        reply.len() + payload
    }

    /// Finds the fields of a request: on the stack, or for a large one on the heap.
    fn body(
        &self,
        kind: u8,
        size: usize,
        available: usize,
        small: &[u8],
        input: Scatter<'_>,
    ) -> Outcome<Body> {
        if kind == op::TWRITE {
            // Linux leaves the data out of the size when it hands over its pages (`p9_virtio_zc_request`).
            return Ok(Body::Small(HEADER_SIZE..available.clamp(HEADER_SIZE, TWRITE_HEADER)));
        }
        if size < HEADER_SIZE || size > input.len() {
            return fail(errno::EPROTO);
        }
        if size <= small.len() {
            return Ok(Body::Small(HEADER_SIZE..size));
        }
        let mut large = vec![0; size.min(LARGEST_REQUEST) - HEADER_SIZE];
        input.read_at(HEADER_SIZE, &mut large);
        Ok(Body::Large(large))
    }

    fn dispatch(&self, request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        if self.msize() == 0 && request.op != op::TVERSION {
            return fail(errno::EPROTO);
        }
        // Names must stay as they are while these use them.
        let _names = match request.op {
            op::TRENAME | op::TRENAMEAT | op::TREMOVE | op::TUNLINKAT | op::TCLUNK => None,
            op::TREAD
            | op::TWRITE
            | op::TFSYNC
            | op::TREADDIR
            | op::TFLUSH
            | op::TVERSION
            | op::TLOCK
            | op::TGETLOCK => None,
            _ => Some(self.share.names()),
        };
        match request.op {
            op::TVERSION => self.version(request, reply),
            op::TATTACH => self.attach(request, reply),
            op::TFLUSH => self.flush(request),
            op::TWALK => self.walk(request, reply),
            op::TGETATTR => self.getattr(request, reply),
            op::TREADLINK => self.readlink(request, reply),
            op::TLOPEN => self.lopen(request, reply),
            op::TREAD => self.read(request, reply),
            op::TWRITE => self.write(request, reply),
            op::TCLUNK => self.clunk(request),
            op::TREADDIR => self.readdir(request, reply),
            op::TLCREATE => self.lcreate(request, reply),
            op::TSETATTR => self.setattr(request),
            op::TSTATFS => self.statfs(request, reply),
            op::TSYMLINK => self.symlink(request, reply),
            op::TMKNOD => self.mknod(request, reply),
            op::TMKDIR => self.mkdir(request, reply),
            op::TLINK => self.link(request),
            op::TRENAME => self.rename(request),
            op::TRENAMEAT => self.renameat(request),
            op::TUNLINKAT => self.unlinkat(request),
            op::TREMOVE => self.remove(request),
            op::TFSYNC => self.fsync(request),
            op::TXATTRWALK => self.xattrwalk(request, reply),
            op::TXATTRCREATE => self.xattrcreate(request),
            op::TLOCK => self.lock(request, reply),
            op::TGETLOCK => self.getlock(request, reply),
            // Whoever may reach this server needs no further proof of who they are, and it would know none.
            op::TAUTH => fail(errno::EOPNOTSUPP),
            _ => fail(errno::EOPNOTSUPP),
        }
    }

    fn version(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (asked, version) = (request.fields.u32()?, request.fields.string()?);
        self.tags.cancel_all(request.ticket);
        self.reset();
        let msize = asked.min(self.limits.msize.clamp(MIN_MSIZE, MAX_MSIZE));
        if msize < MIN_MSIZE {
            return fail(errno::EMSGSIZE);
        }
        if version != VERSION {
            reply.u32(msize).string(VERSION_UNKNOWN);
            return Ok(0);
        }
        self.msize.store(msize, Ordering::Relaxed);
        reply.u32(msize).string(VERSION);
        Ok(0)
    }

    fn attach(&self, mut request: Request<'_>, reply: &mut Reply) -> Outcome<usize> {
        let (number, auth) = (request.fields.u32()?, request.fields.u32()?);
        let (_user, _tree) = (request.fields.string()?, request.fields.string()?);
        let uid = request.fields.u32()?;
        if auth != NO_FID {
            return fail(errno::EOPNOTSUPP);
        }
        let attr = self.share.at(NodeId::ROOT, |place| self.share.attr(place))?;
        self.share.tree().acquire(NodeId::ROOT)?;
        self.insert(number, Fid { node: NodeId::ROOT, uid, usage: Use::Idle }, request.epoch)?;
        reply.qid(&self.share.qid(&attr));
        Ok(0)
    }

    fn flush(&self, mut request: Request<'_>) -> Outcome<usize> {
        let tag = request.fields.u16()?;
        self.tags.flush(tag, request.ticket);
        Ok(0)
    }

    fn clunk(&self, mut request: Request<'_>) -> Outcome<usize> {
        let number = request.fields.u32()?;
        let fid = self.fids.remove(number)?;
        let written = match &fid.usage {
            Use::Xattr(xattr) => {
                let _names = self.share.names();
                self.share.at(fid.node, |place| self.share.write_xattr(place.target(), xattr))
            }
            Use::File(_) => {
                lock::release_fid(self.id, number);
                Ok(())
            }
            _ => Ok(()),
        };
        self.share.release(fid.node);
        written.map(|()| 0)
    }

    /// Lets a fid in whose node has a reference already, which goes if it does not come in.
    fn insert(&self, number: u32, fid: Fid, epoch: u32) -> Outcome<()> {
        let node = fid.node;
        if number == NO_FID {
            self.share.release(node);
            return fail(errno::EINVAL);
        }
        self.fids.insert(number, fid, epoch).inspect_err(|_| self.share.release(node))
    }

    /// What the client's number stands for, with its file or directory if it is to be one that is not an attribute.
    fn fid(&self, request: &mut Request<'_>) -> Outcome<(u32, Fid)> {
        let number = request.fields.u32()?;
        Ok((number, self.fids.get(number)?))
    }

    /// Does something where a fid's file is.
    fn at<T>(&self, fid: &Fid, act: impl Fn(&Place) -> Outcome<T>) -> Outcome<T> {
        self.share.at(fid.node, act)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reset();
    }
}

/// Where the fields of a request are.
enum Body {
    Small(std::ops::Range<usize>),
    Large(Vec<u8>),
}

impl Body {
    fn as_slice<'a>(&'a self, small: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Small(range) => small.get(range.clone()).unwrap_or_default(),
            Self::Large(bytes) => bytes,
        }
    }
}

/// A node that was acquired on the way and is released unless it is kept.
struct Held<'a> {
    share: &'a Share,
    node: NodeId,
}

impl<'a> Held<'a> {
    /// Takes over a reference.
    fn new(share: &'a Share, node: NodeId) -> Self {
        Self { share, node }
    }

    /// The reference is the caller's again.
    fn keep(self) -> NodeId {
        let node = self.node;
        std::mem::forget(self);
        node
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.share.release(self.node);
    }
}

impl From<WireError> for std::io::Error {
    fn from(error: WireError) -> Self {
        Self::from_raw_os_error(error.0.cast_signed())
    }
}
