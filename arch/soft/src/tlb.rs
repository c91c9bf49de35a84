//! The software TLB: what `mmu` found, by virtual page and privilege, in the form in which a load or store uses it.

use crate::machine::PAGE_SIZE;
use crate::mmu::Privilege;

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

/// The data TLB of one CPU, direct mapped.
pub(crate) struct Tlb {
    entries: Box<[Entry; 4 * ENTRIES]>,
    /// Start of the current privilege's entries.
    base: usize,
    /// A mapping larger than 4 KiB is cached, of which TLBI by address must drop every part.
    has_large: bool,
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
        Tlb { entries, base: 0, has_large: false, has_upper_ng: false, has_lower_el1: false }
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
        &self.entries[who as usize * ENTRIES | (va >> 12) as usize & (ENTRIES - 1)]
    }

    /// Caches the page of `va`.
    pub fn insert(&mut self, va: u64, who: Privilege, host_page: u64, read: bool, write: bool, large: bool, ng: bool) {
        let page = va & !(PAGE_SIZE - 1);
        let tag = |allowed| if allowed { page } else { NEVER };
        self.has_large |= large;
        let upper = va >> 55 & 1 != 0;
        self.has_upper_ng |= upper && ng;
        self.has_lower_el1 |= !upper && who != Privilege::El0;
        self.entries[who as usize * ENTRIES | (va >> 12) as usize & (ENTRIES - 1)] =
            Entry { read: tag(read), write: tag(write), addend: host_page.wrapping_sub(page) };
    }

    /// Whether anything of the upper half depends on the ASID.
    pub fn has_upper_ng(&self) -> bool {
        self.has_upper_ng
    }

    /// Notes that the page of `va` was translated for a fetch, which is cached elsewhere.
    pub fn note_fetch(&mut self, va: u64, not_global: bool) {
        self.has_upper_ng |= va >> 55 & 1 != 0 && not_global;
    }

    pub fn flush(&mut self) {
        self.entries.fill(EMPTY);
        self.has_large = false;
        self.has_upper_ng = false;
        self.has_lower_el1 = false;
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
        if self.has_large {
            return self.flush();
        }
        let index = (va >> 12) as usize & (ENTRIES - 1);
        for who in 0..3 {
            let entry = &mut self.entries[who * ENTRIES | index];
            let same = |tag: u64| (tag ^ va) << 8 >> 20 == 0;
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
    page: u64,
}

const FETCH_ENTRIES: usize = 256;

/// The instruction TLB: small, because the jump cache stands before it.
pub(crate) struct FetchTlb {
    entries: [Vec<FetchEntry>; 2],
}

impl FetchTlb {
    pub fn new() -> Self {
        let empty = || vec![FetchEntry { tag: NEVER, page: 0 }; FETCH_ENTRIES];
        FetchTlb { entries: [empty(), empty()] }
    }

    /// Physical page of the virtual page of `va`, at EL0 or EL1.
    pub fn lookup(&self, va: u64, el: usize) -> Option<u64> {
        let entry = self.entries[el & 1].get((va >> 12) as usize & (FETCH_ENTRIES - 1))?;
        (entry.tag == va & !(PAGE_SIZE - 1)).then_some(entry.page)
    }

    pub fn insert(&mut self, va: u64, el: usize, page: u64) {
        if let Some(entry) = self.entries[el & 1].get_mut((va >> 12) as usize & (FETCH_ENTRIES - 1)) {
            *entry = FetchEntry { tag: va & !(PAGE_SIZE - 1), page };
        }
    }

    pub fn flush(&mut self) {
        for entries in &mut self.entries {
            entries.fill(FetchEntry { tag: NEVER, page: 0 });
        }
    }

    /// Drops the lower half (`upper` false) or the upper.
    pub fn flush_half(&mut self, upper: bool) {
        for entry in self.entries.iter_mut().flatten() {
            if (entry.tag >> 55 & 1 != 0) == upper {
                entry.tag = NEVER;
            }
        }
    }
}
