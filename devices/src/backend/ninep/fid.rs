//! The fids of a session and what stands behind each. Frees nothing on the host but the descriptors that fids own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::proto::{Outcome, WireError, errno, fail};
use super::readdir::OpenDir;
use super::tree::NodeId;
use super::xattr::XattrFid;
use crate::util::lock;

/// A regular file that a client opened.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub fd: OwnedFd,
    /// Whether a write may leave set-user-id bits behind that the host does not clear: as root it does not.
    pub clears_suid: bool,
    /// Whether reading it never waits for a disk.
    pub in_memory: bool,
}

/// What a fid can be used for.
#[derive(Clone, Debug)]
pub(super) enum Use {
    /// A place in the tree, not opened.
    Idle,
    /// An opened file.
    File(Arc<OpenFile>),
    /// An opened directory.
    Dir(Arc<OpenDir>),
    /// The value of an extended attribute, or the list of their names.
    Xattr(Arc<XattrFid>),
}

/// A fid. Cloning it does not hold its node: a node that is gone by the time it is used is EBADF.
#[derive(Clone, Debug)]
pub(super) struct Fid {
    pub node: NodeId,
    /// The user that attached, to whom files belong that are made through it.
    pub uid: u32,
    pub usage: Use,
}

/// Fids are numbers that the client counts up: any bit mixing will do.
#[derive(Default)]
struct FidHasher(u64);

impl Hasher for FidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

type Shard = HashMap<u32, Fid, BuildHasherDefault<FidHasher>>;

/// All fids of a session.
#[derive(Debug)]
pub(super) struct Fids {
    shards: [Mutex<Shard>; Self::SHARDS],
    count: AtomicU32,
    open: AtomicU32,
    limit: u32,
    open_limit: u32,
    /// Counts resets: a fid made by a request of before a reset is not let in after it.
    epoch: AtomicU32,
}

impl Fids {
    const SHARDS: usize = 8;

    pub fn new(limit: u32, open_limit: u32) -> Self {
        Self {
            shards: Default::default(),
            count: AtomicU32::new(0),
            open: AtomicU32::new(0),
            limit,
            open_limit,
            epoch: AtomicU32::new(0),
        }
    }

    fn shard(&self, fid: u32) -> &Mutex<Shard> {
        &self.shards[fid as usize % Self::SHARDS]
    }

    /// Changes with every reset.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What the client's number stands for.
    pub fn get(&self, fid: u32) -> Outcome<Fid> {
        lock(self.shard(fid)).get(&fid).cloned().ok_or(WireError(errno::EBADF))
    }

    /// Whether the number is in use.
    pub fn contains(&self, fid: u32) -> bool {
        lock(self.shard(fid)).contains_key(&fid)
    }

    /// Lets a new fid in. The caller keeps the node's reference if this fails.
    pub fn insert(&self, number: u32, fid: Fid, epoch: u32) -> Outcome<()> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return fail(errno::EMFILE);
        }
        let mut shard = lock(self.shard(number));
        let vacant = match shard.entry(number) {
            Entry::Vacant(vacant) if self.epoch() == epoch => vacant,
            _ => {
                self.count.fetch_sub(1, Ordering::Relaxed);
                return fail(errno::EBADF);
            }
        };
        vacant.insert(fid);
        Ok(())
    }

    /// Changes an idle fid, atomically: of two requests that open the same fid, one fails. Returns its former node.
    pub fn change(&self, number: u32, node: NodeId, usage: Use) -> Outcome<NodeId> {
        let mut shard = lock(self.shard(number));
        let Some(fid) = shard.get_mut(&number) else { return fail(errno::EBADF) };
        if !matches!(fid.usage, Use::Idle) {
            return fail(errno::EBUSY);
        }
        fid.usage = usage;
        Ok(std::mem::replace(&mut fid.node, node))
    }

    /// Counts a descriptor that a fid is about to own.
    pub fn reserve_open(&self) -> Outcome<()> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.open_limit {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return fail(errno::EMFILE);
        }
        Ok(())
    }

    /// The inverse of [`reserve_open`](Self::reserve_open).
    pub fn unreserve_open(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes a fid out. The caller releases its node.
    pub fn remove(&self, number: u32) -> Outcome<Fid> {
        let removed = lock(self.shard(number)).remove(&number).ok_or(WireError(errno::EBADF))?;
        self.forget(&removed);
        Ok(removed)
    }

    fn forget(&self, fid: &Fid) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if matches!(fid.usage, Use::File(_) | Use::Dir(_)) {
            self.unreserve_open();
        }
    }

    /// Takes all fids out. Those of requests that are still under way do not come in any more.
    pub fn drain(&self) -> Vec<(u32, Fid)> {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).drain());
        }
        for (_, fid) in &all {
            self.forget(fid);
        }
        all
    }

    /// Fids in use.
    pub fn len(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}
