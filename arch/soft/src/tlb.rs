//! The software TLB: what `mmu` found, by virtual page and privilege, in the form in which a load or store uses it.

use crate::machine::PAGE_SIZE;
use crate::mmu::{Access, Privilege, Translation};

/// Entries for each privilege.
const ENTRIES: usize = 1024;
/// A tag that no page has.
const NEVER: u64 = 1;

/// One data TLB entry. A tag is the virtual address of the page, exactly as the guest writes it (with its top byte).
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    /// Tag if loads may use the fast path.
    pub read: u64,
    /// Tag if stores may use the fast path.
    pub write: u64,
    /// Host address minus virtual address.
    pub addend: u64,
}

const EMPTY: Entry = Entry { read: NEVER, write: NEVER, addend: 0 };

/// The addresses of one half that blocks larger than 4 KiB map: TLBI of any of them must drop every part of its block.
#[derive(Debug, Clone, Copy)]
struct Large {
    low: u64,
    high: u64,
}

const NO_LARGE: Large = Large { low: u64::MAX, high: 0 };

/// An address without its top byte, which translation may ignore.
fn untagged(va: u64) -> u64 {
    va << 8 >> 8
}

fn is_upper(va: u64) -> bool {
    va >> 55 & 1 != 0
}

/// [`Large`] for the lower and the upper half.
#[derive(Debug)]
struct LargeHalves([Large; 2]);

impl LargeHalves {
    const NONE: LargeHalves = LargeHalves([NO_LARGE; 2]);

    fn add(&mut self, va: u64, size_bits: u32) {
        if size_bits > 12 {
            let first = untagged(va) >> size_bits << size_bits;
            let large = &mut self.0[usize::from(is_upper(va))];
            large.low = large.low.min(first);
            large.high = large.high.max(first + ((1 << size_bits) - 1));
        }
    }

    fn contains(&self, va: u64) -> bool {
        let large = self.0[usize::from(is_upper(va))];
        (large.low..=large.high).contains(&untagged(va))
    }
}

/// The data TLB of one CPU, direct mapped.
pub(crate) struct Tlb {
    entries: Box<[Entry; 4 * ENTRIES]>,
    /// Start of the current privilege's entries.
    base: usize,
    large: LargeHalves,
    /// A non-global mapping of the upper half is cached (lower-half ones are always dropped with the ASID).
    has_upper_ng: bool,
    /// EL1 has translated lower-half addresses.
    has_lower_el1: bool,
}

impl Tlb {
    pub fn new() -> Self {
        let entries = match vec![EMPTY; 4 * ENTRIES].into_boxed_slice().try_into() {
            Ok(entries) => entries,
            Err(_) => unreachable!("the slice has exactly that length"),
        };
        Tlb { entries, base: 0, large: LargeHalves::NONE, has_upper_ng: false, has_lower_el1: false }
    }

    /// Makes `who` the privilege that [`Tlb::entry`] looks up.
    #[inline]
    pub fn set_privilege(&mut self, who: Privilege) {
        self.base = who as usize * ENTRIES;
    }

    /// The entry in which the page of `va` would be, for the current privilege.
    #[inline(always)]
    pub fn entry(&self, va: u64) -> &Entry {
        &self.entries[(self.base | (va >> 12) as usize & (ENTRIES - 1)) & (4 * ENTRIES - 1)]
    }

    /// As [`Tlb::entry`], for another privilege.
    #[inline(always)]
    pub fn entry_of(&self, va: u64, who: Privilege) -> &Entry {
        &self.entries[(who as usize * ENTRIES) | (va >> 12) as usize & (ENTRIES - 1)]
    }

    /// Caches the page of `va`, which `translation` puts at `host_page`; `write` says whether the memory can be written.
    pub fn insert(
        &mut self,
        va: u64,
        who: Privilege,
        translation: &Translation,
        host_page: u64,
        write: bool,
    ) {
        let page = va & !(PAGE_SIZE - 1);
        let tag = |allowed| if allowed { page } else { NEVER };
        self.large.add(va, translation.size_bits);
        self.has_upper_ng |= is_upper(va) && translation.not_global;
        self.has_lower_el1 |= !is_upper(va) && who != Privilege::El0;
        self.entries[(who as usize * ENTRIES) | (va >> 12) as usize & (ENTRIES - 1)] = Entry {
            read: tag(translation.allows(Access::Read, who)),
            write: tag(write && translation.allows(Access::Write, who)),
            addend: host_page.wrapping_sub(page),
        };
    }

    /// Whether anything of the upper half depends on the ASID.
    pub fn has_upper_ng(&self) -> bool {
        self.has_upper_ng
    }

    /// Notes that the page of `va` was translated for a fetch, which is cached elsewhere.
    pub fn note_fetch(&mut self, va: u64, not_global: bool) {
        self.has_upper_ng |= is_upper(va) && not_global;
    }

    pub fn flush(&mut self) {
        self.entries.fill(EMPTY);
        self.large = LargeHalves::NONE;
        self.has_lower_el1 = false;
    }

    /// Nothing of the upper half is cached any more, here or for fetches.
    pub fn forget_upper_ng(&mut self) {
        self.has_upper_ng = false;
    }

    /// Drops what belongs to one ASID (all of EL0's, and whatever of EL1's may be non-global).
    pub fn flush_asid(&mut self) {
        if self.has_lower_el1 || self.has_upper_ng {
            self.flush();
        } else {
            self.entries[..ENTRIES].fill(EMPTY);
        }
    }

    /// Drops the page of `va` for every privilege and whatever top byte.
    pub fn flush_va(&mut self, va: u64) {
        if self.large.contains(va) {
            return self.flush();
        }
        let index = (va >> 12) as usize & (ENTRIES - 1);
        for who in 0..3 {
            let entry = &mut self.entries[(who * ENTRIES) | index];
            let same = |tag: u64| untagged(tag ^ va) >> 12 == 0;
            if same(entry.read) || same(entry.write) {
                *entry = EMPTY;
            }
        }
    }
}

/// One page whose code may be executed.
#[derive(Debug, Clone, Copy)]
struct FetchEntry {
    tag: u64,
    context: u64,
    page: u64,
}

const NO_FETCH: FetchEntry = FetchEntry { tag: NEVER, context: 0, page: 0 };

const FETCH_ENTRIES: usize = 256;
const FILTER_BITS: u64 = 4096;

/// The instruction TLB: small, because the jump cache stands before it. Like that, it is not flushed but outlived: its
/// entries belong to a translation context, and whoever invalidates a translation that was fetched from changes the context.
pub(crate) struct FetchTlb {
    entries: Box<[FetchEntry; FETCH_ENTRIES]>,
    /// Pages of each half that were fetched from since its context last changed, by a hash: most TLBIs concern data.
    fetched: [[u64; FILTER_BITS as usize / 64]; 2],
    large: LargeHalves,
}

impl FetchTlb {
    pub fn new() -> Self {
        FetchTlb {
            entries: Box::new([NO_FETCH; FETCH_ENTRIES]),
            fetched: [[0; FILTER_BITS as usize / 64]; 2],
            large: LargeHalves::NONE,
        }
    }

    /// Physical page of the virtual page of `va` in `context`.
    pub fn lookup(&self, va: u64, context: u64) -> Option<u64> {
        let entry = &self.entries[(va >> 12) as usize & (FETCH_ENTRIES - 1)];
        (entry.tag == va & !(PAGE_SIZE - 1) && entry.context == context).then_some(entry.page)
    }

    /// Remembers where code at `va` is found.
    pub fn insert(&mut self, va: u64, context: u64, translation: &Translation) {
        let (word, bit) = Self::filter_place(va);
        self.fetched[usize::from(is_upper(va))][word] |= bit;
        self.large.add(va, translation.size_bits);
        self.entries[(va >> 12) as usize & (FETCH_ENTRIES - 1)] =
            FetchEntry { tag: va & !(PAGE_SIZE - 1), context, page: translation.page };
    }

    /// Whether code may have been fetched through the translation of `va` since [`FetchTlb::forget`].
    pub fn may_hold(&self, va: u64) -> bool {
        let (word, bit) = Self::filter_place(va);
        self.large.contains(va) || self.fetched[usize::from(is_upper(va))][word] & bit != 0
    }

    /// The context of a half has changed: nothing cached for it is valid any more.
    pub fn forget(&mut self, upper: bool) {
        self.fetched[usize::from(upper)].fill(0);
        self.large.0[usize::from(upper)] = NO_LARGE;
    }

    fn filter_place(va: u64) -> (usize, u64) {
        let page = untagged(va) >> 12;
        let hash = (page ^ page >> 12 ^ page >> 24) % FILTER_BITS;
        ((hash / 64) as usize, 1 << (hash % 64))
    }
}
