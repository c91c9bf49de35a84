//! The slow path of loads and stores: translation, alignment, page crossing, and addresses without memory. The fast path,
//! a TLB hit, is in `exec::memory`.

use crate::cpu::Cpu;
use crate::host;
use crate::machine::PAGE_SIZE;
use crate::mmu::{self, Access, Fault, Privilege, Translation, fsc};
use crate::op::{At, Next};
use crate::sysreg::sctlr;

const OFFSET: u64 = PAGE_SIZE - 1;

impl Cpu {
    /// Translates `va` and checks the permission.
    pub(crate) fn translate(&self, va: u64, access: Access, who: Privilege) -> Result<Translation, Fault> {
        let translation = mmu::walk(&self.sys, &self.regions, va, self.machine.ipa_bits())?;
        translation.check(access, who)?;
        Ok(translation)
    }

    /// The host address of the `bytes` bytes at `va`, all of one page, for one access; fills the TLB. `iss` describes the
    /// transfer, should it turn out to be a device's address.
    pub(crate) fn locate(
        &mut self,
        at: At,
        va: u64,
        bytes: u64,
        access: Access,
        who: Privilege,
        iss: u64,
    ) -> Result<u64, Next> {
        let translation =
            self.translate(va, access, who).map_err(|fault| self.data_abort(at, va, access, fault, 0))?;
        let strict = translation.device || self.sys.sctlr & sctlr::A != 0;
        if strict && va & (bytes.next_power_of_two().min(16) - 1) != 0 {
            return Err(self.data_abort(at, va, access, Fault::Stage1(fsc::ALIGNMENT), 0));
        }
        let ipa = translation.page | va & OFFSET;
        let Some((host_page, perms)) = self
            .regions
            .iter()
            .find_map(|r| r.host(translation.page, PAGE_SIZE).map(|host| (host as u64, r.perms)))
        else {
            return Err(self.outside_memory(at, va, ipa, access, iss));
        };
        if access == Access::Write && !perms.write {
            return Err(self.read_only_memory(at, va, ipa, iss));
        }
        if !strict {
            self.tlb.insert(va, who, &translation, host_page, perms.write);
        }
        Ok(host_page + (va & OFFSET))
    }

    /// Loads 1 << `log2` bytes at `va`, zero-extended.
    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow(
        &mut self,
        at: At,
        va: u64,
        log2: u8,
        who: Privilege,
        iss: u64,
    ) -> Result<u64, Next> {
        let bytes = 1u64 << log2;
        let first = PAGE_SIZE - (va & OFFSET);
        if first >= bytes {
            let host = self.locate(at, va, bytes, Access::Read, who, iss)?;
            // SAFETY: `locate` found that many bytes of readable guest memory.
            return Ok(unsafe { host::read_sized(host, log2) });
        }
        self.check_crossing(at, va, Access::Read)?;
        let low = self.locate(at, va, first, Access::Read, who, 0)?;
        let high = self.locate(at, va.wrapping_add(first), bytes - first, Access::Read, who, 0)?;
        let mut value = 0;
        for i in 0..bytes {
            let host = if i < first { low + i } else { high + i - first };
            // SAFETY: as above, for each part.
            value |= unsafe { host::read::<0>(host) } << (8 * i);
        }
        Ok(value)
    }

    /// Stores the low 1 << `log2` bytes of `value` at `va`.
    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow(
        &mut self,
        at: At,
        va: u64,
        log2: u8,
        value: u64,
        who: Privilege,
        iss: u64,
    ) -> Result<(), Next> {
        let bytes = 1u64 << log2;
        let first = PAGE_SIZE - (va & OFFSET);
        if first >= bytes {
            let host = self.locate(at, va, bytes, Access::Write, who, iss)?;
            // SAFETY: `locate` found that many bytes of writable guest memory.
            unsafe { host::write_sized(host, log2, value) };
            return Ok(());
        }
        self.check_crossing(at, va, Access::Write)?;
        let low = self.locate(at, va, first, Access::Write, who, 0)?;
        let high = self.locate(at, va.wrapping_add(first), bytes - first, Access::Write, who, 0)?;
        for i in 0..bytes {
            let host = if i < first { low + i } else { high + i - first };
            // SAFETY: as above, for each part.
            unsafe { host::write::<0>(host, value >> (8 * i)) };
        }
        Ok(())
    }

    /// An access that crosses a page is unaligned: refused if SCTLR.A is set. (Device memory is found by `locate`.)
    fn check_crossing(&mut self, at: At, va: u64, access: Access) -> Result<(), Next> {
        if self.sys.sctlr & sctlr::A != 0 {
            return Err(self.data_abort(at, va, access, Fault::Stage1(fsc::ALIGNMENT), 0));
        }
        Ok(())
    }

    /// The host address of an access that must be aligned to its size: exclusives, atomics, acquire and release.
    pub(crate) fn locate_aligned(
        &mut self,
        at: At,
        va: u64,
        bytes: u64,
        access: Access,
        iss: u64,
    ) -> Result<u64, Next> {
        if va & (bytes - 1) != 0 {
            return Err(self.data_abort(at, va, access, Fault::Stage1(fsc::ALIGNMENT), 0));
        }
        let entry = self.tlb.entry(va);
        let tag = if access == Access::Write { entry.write } else { entry.read };
        if tag == va & !OFFSET {
            return Ok(va.wrapping_add(entry.addend));
        }
        self.locate(at, va, bytes, access, self.privilege(), iss)
    }
}
