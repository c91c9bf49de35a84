//! The cache of decoded code: basic blocks by physical page, and the jump cache that finds them by virtual address.
//!
//! Blocks are decoded once for each physical page and execution state ([`Variant`]); they hold no virtual address, so every
//! mapping of the page shares them. Nothing here watches stores: as on hardware with separate caches, decoded code is
//! dropped by IC instructions.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::machine::{PAGE_SHIFT, PAGE_SIZE};
use crate::op::Op;

/// What of the CPU's state decoding depends on: bit 0 EL1, bit 1 FP and SIMD accessible.
pub(crate) type Variant = u8;
/// Number of variants.
const VARIANTS: usize = 4;

/// Most ops kept before the cache is emptied (32 bytes each).
const MAX_OPS: usize = 1 << 20;
/// Most pages kept, for their indices (2 KiB each): a guest may execute one instruction of each of its pages.
const MAX_PAGES: usize = 1 << 14;

/// A way out of a block to a block of the same page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// Where it leads, relative to the page; outside 0..4096 it is never resolved.
    pub target: i64,
    /// Valid if `epoch` is the cache's.
    pub block: *const Block,
    pub epoch: u64,
}

/// A row of ops that ends with one that returns to the run loop.
#[derive(Debug)]
pub(crate) struct Block {
    pub ops: Box<[Op]>,
    /// Physical page, and offset in it, of the first instruction.
    pub page: u64,
    pub offset: u16,
    pub variant: Variant,
    /// Taken, and fall through.
    pub links: [std::cell::Cell<Link>; 2],
}

/// Blocks of one physical page and variant.
struct Page {
    /// Index + 1 into `blocks`, by instruction.
    index: Box<[u16; (PAGE_SIZE / 4) as usize]>,
    // Boxed: links and jump cache point at blocks.
    #[allow(clippy::vec_box)]
    blocks: Vec<Box<Block>>,
}

/// Page numbers hash well enough by one multiplication.
#[derive(Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // The golden ratio in 64 bits; hashbrown takes its tag from the top bits and its bucket from the low ones.
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

const JUMPS: usize = 4096;

#[derive(Clone, Copy)]
struct Jump {
    pc: u64,
    context: u64,
    block: *const Block,
}

const NO_JUMP: Jump = Jump { pc: 1, context: 0, block: std::ptr::null() };

/// The code cache of one CPU.
pub(crate) struct CodeCache {
    pages: HashMap<u64, Page, BuildHasherDefault<PageHasher>>,
    jumps: Box<[Jump; JUMPS]>,
    ops: usize,
    /// Changes whenever a block is freed: links of older epochs are void.
    pub epoch: u64,
}

fn key(page: u64, variant: Variant) -> u64 {
    page >> PAGE_SHIFT << 2 | u64::from(variant)
}

impl CodeCache {
    pub fn new() -> Self {
        let jumps = match vec![NO_JUMP; JUMPS].into_boxed_slice().try_into() {
            Ok(jumps) => jumps,
            Err(_) => unreachable!("the slice has exactly that length"),
        };
        CodeCache { pages: HashMap::default(), jumps, ops: 0, epoch: 1 }
    }

    #[inline(always)]
    fn slot(pc: u64) -> usize {
        ((pc >> 2) ^ (pc >> 14)) as usize & (JUMPS - 1)
    }

    /// The block at `pc` in the translation context `context`, if it was jumped to before.
    #[inline(always)]
    pub fn jump(&self, pc: u64, context: u64) -> *const Block {
        let jump = &self.jumps[Self::slot(pc)];
        if jump.pc == pc && jump.context == context { jump.block } else { std::ptr::null() }
    }

    /// Remembers where a jump led.
    pub fn set_jump(&mut self, pc: u64, context: u64, block: *const Block) {
        self.jumps[Self::slot(pc)] = Jump { pc, context, block };
    }

    /// The block at `offset` of the physical `page`, if decoded.
    pub fn find(&self, page: u64, offset: u64, variant: Variant) -> Option<*const Block> {
        let page = self.pages.get(&key(page, variant))?;
        let index = page.index[(offset & (PAGE_SIZE - 1)) as usize >> 2];
        page.blocks.get(usize::from(index).checked_sub(1)?).map(|b| &raw const **b)
    }

    /// Whether the next insertion should be preceded by [`CodeCache::flush`].
    pub fn is_full(&self) -> bool {
        self.ops > MAX_OPS || self.pages.len() > MAX_PAGES
    }

    /// Adds a block. The pointer is valid until the epoch changes.
    pub fn insert(&mut self, block: Block) -> *const Block {
        let (page, offset, variant) = (block.page, u64::from(block.offset), block.variant);
        self.ops += block.ops.len();
        let page = self
            .pages
            .entry(key(page, variant))
            .or_insert_with(|| Page { index: Box::new([0; (PAGE_SIZE / 4) as usize]), blocks: Vec::new() });
        page.blocks.push(Box::new(block));
        // At most 1024 blocks begin in a page, one an instruction.
        page.index[(offset & (PAGE_SIZE - 1)) as usize >> 2] = page.blocks.len() as u16;
        page.blocks.last().map_or(std::ptr::null(), |b| &raw const **b)
    }

    /// Drops everything.
    pub fn flush(&mut self) {
        self.pages.clear();
        self.ops = 0;
        self.freed();
    }

    /// Drops the blocks of one physical page.
    pub fn flush_page(&mut self, page: u64) {
        let mut any = false;
        for variant in 0..VARIANTS as u8 {
            if let Some(page) = self.pages.remove(&key(page, variant)) {
                self.ops -= page.blocks.iter().map(|b| b.ops.len()).sum::<usize>();
                any = true;
            }
        }
        if any {
            self.freed();
        }
    }

    fn freed(&mut self) {
        self.epoch += 1;
        self.jumps.fill(NO_JUMP);
    }
}
