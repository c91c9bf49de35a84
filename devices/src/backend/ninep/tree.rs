//! The names that fids stand for: a tree of (parent, name) with reference counts, and the cache of directory descriptors
//! that hangs on it. Pure bookkeeping: no call to the host is made in here.
//!
//! A fid holds a node, a node holds its parent. Renaming a directory moves its node, and with it every fid below. There is
//! at most one node for a name in a directory, so all fids on a file move together. An entry that is removed takes its
//! node out of the tree; the node then keeps a descriptor of the file, if one could be had, for the fids still on it.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::place::{DirHandle, Name};
use super::proto::{Outcome, errno, fail};

/// A node of the tree. Stays distinct from nodes that are made after this one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId {
    index: u32,
    generation: u32,
}

impl NodeId {
    /// The root of the share, which is always there.
    pub const ROOT: Self = Self { index: 0, generation: 0 };
}

/// No node, in a hash chain.
const END: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Attached,
    Removed,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
    parent: u32,
    /// Next node of the same hash bucket.
    next: u32,
    /// Fids and children, and one for a cached directory.
    references: u32,
    hash: u32,
    /// Kept when the slot is reused, so that walking about allocates nothing.
    name: Vec<u8>,
    directory: Option<Arc<DirHandle>>,
    /// Position in the list of cached directories.
    cached_at: u32,
    /// Used since the clock's hand came by.
    recent: bool,
    removed: Option<Arc<OwnedFd>>,
}

/// Where a directory is.
#[derive(Debug)]
pub(super) enum Located {
    /// Its descriptor is at hand.
    Open(Arc<DirHandle>),
    /// It is at `path`, components separated by `/`, below an open directory.
    Below(Arc<DirHandle>, Vec<u8>),
}

/// Where the file of a node is.
#[derive(Debug)]
pub(super) enum Whereabouts {
    /// At a name in a directory, which is a node of its own.
    In(NodeId),
    /// At no name any more, but a descriptor still leads to it.
    Removed(Arc<OwnedFd>),
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Tree {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Heads of hash chains; the length is a power of two.
    buckets: Vec<u32>,
    hasher: BuildHasherDefault<DefaultHasher>,
    cached: Vec<u32>,
    hand: usize,
    most_nodes: usize,
    most_cached: usize,
}

impl Tree {
    /// A tree with nothing but the root in it.
    pub fn new(root: Arc<DirHandle>, most_nodes: u32, most_cached: u32) -> Self {
        let root = Slot {
            generation: 0,
            state: State::Attached,
            parent: 0,
            next: END,
            references: 1,
            hash: 0,
            name: b".".to_vec(),
            directory: Some(root),
            cached_at: END,
            recent: false,
            removed: None,
        };
        Self {
            slots: vec![root],
            free: Vec::new(),
            buckets: vec![END; 256],
            hasher: BuildHasherDefault::default(),
            cached: Vec::new(),
            hand: 0,
            most_nodes: most_nodes.max(16) as usize,
            most_cached: most_cached.max(4) as usize,
        }
    }

    fn slot(&self, node: NodeId) -> Outcome<&Slot> {
        match self.slots.get(node.index as usize) {
            Some(slot) if slot.generation == node.generation && slot.state != State::Free => Ok(slot),
            _ => fail(errno::EBADF),
        }
    }

    fn id(&self, index: u32) -> NodeId {
        NodeId { index, generation: self.slots[index as usize].generation }
    }

    fn hash(&self, parent: u32, name: &[u8]) -> u32 {
        self.hasher.hash_one((parent, name)) as u32
    }

    fn bucket(&self, hash: u32) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    fn find_index(&self, parent: u32, name: &[u8], hash: u32) -> Option<u32> {
        let mut index = self.buckets[self.bucket(hash)];
        while index != END {
            let slot = &self.slots[index as usize];
            if slot.hash == hash && slot.parent == parent && slot.name == name {
                return Some(index);
            }
            index = slot.next;
        }
        None
    }

    /// The node of `name` in `parent`, if any fid or cached directory has made one.
    pub fn find(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.slot(parent).ok()?;
        self.find_index(parent.index, name, self.hash(parent.index, name)).map(|index| self.id(index))
    }

    /// The node of `name` in `parent`, made if need be, with one more reference to it.
    pub fn child(&mut self, parent: NodeId, name: &[u8]) -> Outcome<NodeId> {
        if self.slot(parent)?.state != State::Attached {
            return fail(errno::ENOENT);
        }
        let hash = self.hash(parent.index, name);
        if let Some(index) = self.find_index(parent.index, name, hash) {
            self.slots[index as usize].references += 1;
            return Ok(self.id(index));
        }
        let index = self.allocate()?;
        let slot = &mut self.slots[index as usize];
        slot.state = State::Attached;
        slot.parent = parent.index;
        slot.references = 1;
        slot.name.clear();
        slot.name.extend_from_slice(name);
        self.attach(index, hash);
        self.slots[parent.index as usize].references += 1;
        Ok(self.id(index))
    }

    fn allocate(&mut self) -> Outcome<u32> {
        if let Some(index) = self.free.pop() {
            return Ok(index);
        }
        if self.slots.len() >= self.most_nodes {
            return fail(errno::ENFILE);
        }
        self.slots.push(Slot {
            generation: 0,
            state: State::Free,
            parent: 0,
            next: END,
            references: 0,
            hash: 0,
            name: Vec::new(),
            directory: None,
            cached_at: END,
            recent: false,
            removed: None,
        });
        if self.slots.len() > self.buckets.len() {
            self.grow();
        }
        Ok((self.slots.len() - 1) as u32)
    }

    /// Doubles the number of hash buckets.
    fn grow(&mut self) {
        let attached: Vec<u32> = (1..self.slots.len() as u32)
            .filter(|index| self.slots[*index as usize].state == State::Attached)
            .collect();
        self.buckets = vec![END; self.buckets.len() * 2];
        for index in attached {
            self.attach(index, self.slots[index as usize].hash);
        }
    }

    fn attach(&mut self, index: u32, hash: u32) {
        let bucket = self.bucket(hash);
        let slot = &mut self.slots[index as usize];
        slot.hash = hash;
        slot.next = self.buckets[bucket];
        self.buckets[bucket] = index;
    }

    fn detach(&mut self, index: u32) {
        let bucket = self.bucket(self.slots[index as usize].hash);
        let next = self.slots[index as usize].next;
        let mut at = self.buckets[bucket];
        if at == index {
            self.buckets[bucket] = next;
            return;
        }
        while at != END {
            let slot = &mut self.slots[at as usize];
            if slot.next == index {
                slot.next = next;
                return;
            }
            at = slot.next;
        }
    }

    /// One more reference.
    pub fn acquire(&mut self, node: NodeId) -> Outcome<()> {
        self.slot(node)?;
        self.slots[node.index as usize].references += 1;
        Ok(())
    }

    /// One reference less; the last one takes the node away, and whatever of its parents nobody else holds. Returns what kept a
    /// removed file reachable: closing it may free the file, which nobody who waits for the tree should wait for.
    #[must_use = "to be closed when the tree is free again"]
    pub fn release(&mut self, node: NodeId) -> Option<Arc<OwnedFd>> {
        let removed = self.slot(node).ok()?.removed.clone();
        self.release_index(node.index);
        removed
    }

    /// What keeps the file of this node reachable, if it has been removed.
    pub fn removed(&self, node: NodeId) -> Option<Arc<OwnedFd>> {
        self.slot(node).ok()?.removed.clone()
    }

    fn release_index(&mut self, mut index: u32) {
        loop {
            let slot = &mut self.slots[index as usize];
            slot.references = slot.references.saturating_sub(1);
            if slot.references > 0 || index == 0 {
                return;
            }
            let parent = slot.parent;
            if slot.state == State::Attached {
                self.detach(index);
            }
            let slot = &mut self.slots[index as usize];
            slot.state = State::Free;
            slot.generation = slot.generation.wrapping_add(1);
            slot.removed = None;
            slot.directory = None;
            self.free.push(index);
            index = parent;
        }
    }

    /// The node that `..` of this one is; the root's is the root.
    pub fn parent(&self, node: NodeId) -> Outcome<NodeId> {
        let slot = self.slot(node)?;
        Ok(self.id(slot.parent))
    }

    /// Where the file of this node is, and the name it has there (`.` for the root).
    pub fn whereabouts(&self, node: NodeId, name: &mut Name) -> Outcome<Whereabouts> {
        let slot = self.slot(node)?;
        match (&slot.removed, slot.state) {
            (Some(file), _) => Ok(Whereabouts::Removed(file.clone())),
            (None, State::Removed) => fail(errno::ENOENT),
            _ => {
                name.set(&slot.name)?;
                Ok(Whereabouts::In(self.id(slot.parent)))
            }
        }
    }

    /// The descriptor of the directory that this node is, or from where to open it.
    pub fn locate(&mut self, node: NodeId) -> Outcome<Located> {
        self.slot(node)?;
        let slot = &mut self.slots[node.index as usize];
        if let Some(directory) = &slot.directory {
            slot.recent = true;
            return Ok(Located::Open(directory.clone()));
        }
        let mut chain = Vec::new();
        let mut index = node.index;
        let from = loop {
            let slot = &self.slots[index as usize];
            if slot.state != State::Attached {
                return fail(errno::ENOENT);
            }
            if let Some(directory) = &slot.directory {
                break directory.clone();
            }
            chain.push(index);
            index = slot.parent;
        };
        let mut path = Vec::new();
        for index in chain.iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&self.slots[*index as usize].name);
        }
        Ok(Located::Below(from, path))
    }

    /// Keeps the descriptor of a directory for later, and lets go of one that was not used for long if there are many.
    pub fn keep(&mut self, node: NodeId, directory: &Arc<DirHandle>) {
        if !self.slot(node).is_ok_and(|slot| slot.state == State::Attached) {
            return;
        }
        let slot = &mut self.slots[node.index as usize];
        let was_cached = slot.directory.replace(directory.clone()).is_some();
        slot.recent = true;
        if was_cached {
            return;
        }
        slot.references += 1;
        if self.cached.len() >= self.most_cached {
            self.evict();
        }
        self.slots[node.index as usize].cached_at = self.cached.len() as u32;
        self.cached.push(node.index);
    }

    /// Lets go of a descriptor by the clock algorithm.
    fn evict(&mut self) {
        for _ in 0..=2 * self.cached.len() {
            self.hand = (self.hand + 1) % self.cached.len().max(1);
            let Some(&index) = self.cached.get(self.hand) else { return };
            let slot = &mut self.slots[index as usize];
            if !std::mem::take(&mut slot.recent) {
                self.forget_index(index);
                return;
            }
        }
    }

    fn forget_index(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let at = slot.cached_at as usize;
        if index == 0 || slot.directory.take().is_none() {
            return;
        }
        slot.cached_at = END;
        self.cached.swap_remove(at);
        if let Some(&moved) = self.cached.get(at) {
            self.slots[moved as usize].cached_at = at as u32;
        }
        self.release_index(index);
    }

    /// Lets go of the descriptors of a directory and of all above it, because the host has moved or removed one of them.
    pub fn forget_chain(&mut self, node: NodeId) {
        let Ok(_) = self.acquire(node) else { return };
        let mut index = node.index;
        while index != 0 {
            let parent = self.slots[index as usize].parent;
            // The chain below holds a reference to `parent` until `node` is released.
            self.forget_index(index);
            index = parent;
        }
        drop(self.release(node));
    }

    /// What was just seen at this name: a kept descriptor of something else that was there before is let go of.
    pub fn saw(&mut self, parent: NodeId, name: &[u8], dev: u64, ino: u64) {
        let Some(node) = self.find(parent, name) else { return };
        let stale = self.slots[node.index as usize]
            .directory
            .as_ref()
            .is_some_and(|directory| (directory.dev, directory.ino) != (dev, ino));
        if stale {
            self.forget_index(node.index);
        }
    }

    /// The entry is gone from the host. Fids on it keep `file`, if there is one.
    pub fn remove(&mut self, parent: NodeId, name: &[u8], file: Option<Arc<OwnedFd>>) {
        let Some(node) = self.find(parent, name) else { return };
        self.remove_index(node.index, file);
    }

    fn remove_index(&mut self, index: u32, file: Option<Arc<OwnedFd>>) {
        self.slots[index as usize].references += 1;
        self.forget_index(index);
        self.detach(index);
        let slot = &mut self.slots[index as usize];
        slot.state = State::Removed;
        slot.removed = file;
        self.release_index(index);
    }

    /// The entry has another name on the host now. What was at that name before is gone; fids on it keep `replaced`.
    pub fn rename(
        &mut self,
        (parent, name): (NodeId, &[u8]),
        (new_parent, new_name): (NodeId, &[u8]),
        replaced: Option<Arc<OwnedFd>>,
    ) -> Outcome<()> {
        self.slot(new_parent)?;
        let node = self.find(parent, name);
        let target = self.find(new_parent, new_name);
        if let Some(target) = target.filter(|target| Some(*target) != node) {
            self.remove_index(target.index, replaced);
        }
        // The target may have been all that held the source's parents: look again.
        let Some(node) = node.filter(|node| self.slot(*node).is_ok()) else { return Ok(()) };
        self.detach(node.index);
        let slot = &mut self.slots[node.index as usize];
        let old_parent = std::mem::replace(&mut slot.parent, new_parent.index);
        slot.name.clear();
        slot.name.extend_from_slice(new_name);
        let hash = self.hash(new_parent.index, new_name);
        self.attach(node.index, hash);
        self.slots[new_parent.index as usize].references += 1;
        self.release_index(old_parent);
        Ok(())
    }

    /// Nodes in use, the root among them.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state != State::Free).count()
    }

    /// Directories whose descriptors are kept, without the root.
    #[cfg(test)]
    pub fn cached(&self) -> usize {
        self.cached.len()
    }
}
