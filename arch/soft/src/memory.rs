//! The slow path of loads and stores: translation, alignment, page crossing, and addresses without memory. The fast path,
//! a TLB hit, is in `exec::memory`.

use crate::cpu::Cpu;
use crate::host;
use crate::machine::PAGE_SIZE;
use crate::mmu::{self, Access, Fault, Privilege, Translation, fsc};
use crate::op::{At, Next};
use crate::sysreg::{ZVA_BYTES, sctlr};

const OFFSET: u64 = PAGE_SIZE - 1;

impl Cpu {
    /// Translates `va` and checks the permission.
    pub(crate) fn translate(&self, va: u64, access: Access, who: Privilege) -> Result<Translation, Fault> {
        if who == Privilege::El0 && mmu::closed_to_el0(&self.sys, va) {
            return Err(Fault::Stage1(fsc::TRANSLATION));
        }
        let translation = mmu::walk(&self.sys, &self.regions, va, self.machine.ipa_bits())?;
        translation.check(access, who)?;
        Ok(translation)
    }

    /// The host address of `va` for one access inside its page; fills the TLB. `align` is the alignment that the access must
    /// have where alignment is checked. `iss` describes the transfer, should it turn out to be a device's address.
    pub(crate) fn locate(
        &mut self,
        at: At,
        va: u64,
        align: u64,
        access: Access,
        who: Privilege,
        iss: u64,
    ) -> Result<u64, Next> {
        let checked = self.sys.sctlr & sctlr::A != 0;
        let misaligned = va & (align - 1) != 0;
        if checked && misaligned {
            return Err(self.alignment_fault(at, va, access));
        }
        let translation =
            self.translate(va, access, who).map_err(|fault| self.data_abort(at, va, access, fault, 0))?;
        if translation.device && misaligned {
            return Err(self.alignment_fault(at, va, access));
        }
        let ipa = translation.page | va & OFFSET;
        let Some((host_page, perms)) = self
            .regions
            .iter()
            .find_map(|r| r.host(translation.page, PAGE_SIZE).map(|host| (host as u64, r.perms)))
        else {
            return Err(self.outside_memory(at, va, ipa, access, iss));
        };
        let permitted = if access == Access::Write { perms.write } else { perms.read };
        if !permitted {
            return Err(self.forbidden_memory(at, va, ipa, access, iss));
        }
        if !translation.device && !checked && perms.read {
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
        let low = self.locate(at, va, bytes, Access::Read, who, 0)?;
        let high = self.locate(at, va.wrapping_add(first), 1, Access::Read, who, 0)?;
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
        let low = self.locate(at, va, bytes, Access::Write, who, 0)?;
        let high = self.locate(at, va.wrapping_add(first), 1, Access::Write, who, 0)?;
        for i in 0..bytes {
            let host = if i < first { low + i } else { high + i - first };
            // SAFETY: as above, for each part.
            unsafe { host::write::<0>(host, value >> (8 * i)) };
        }
        Ok(())
    }

    #[cold]
    fn alignment_fault(&mut self, at: At, va: u64, access: Access) -> Next {
        self.data_abort(at, va, access, Fault::Stage1(fsc::ALIGNMENT), 0)
    }

    /// Refuses the access of a 128-bit register, which is made in halves, where its alignment is checked.
    #[cold]
    pub(crate) fn check_vector(&mut self, at: At, va: u64, access: Access) -> Result<(), Next> {
        let strict = || {
            let translation = self.translate(va, access, self.privilege());
            self.sys.sctlr & sctlr::A != 0 || translation.is_ok_and(|t| t.device)
        };
        if va & 15 != 0 && strict() { Err(self.alignment_fault(at, va, access)) } else { Ok(()) }
    }

    /// The host address of the aligned block around `va` that DC ZVA clears. Device memory cannot be cleared like that.
    #[cold]
    pub(crate) fn locate_block(&mut self, at: At, va: u64) -> Result<u64, Next> {
        let who = self.privilege();
        if self.translate(va, Access::Write, who).is_ok_and(|t| t.device) {
            return Err(self.alignment_fault(at, va, Access::Write));
        }
        let host = self.locate(at, va, 1, Access::Write, who, 0)?;
        Ok(host & !(ZVA_BYTES - 1))
    }

    /// The host address for an atomic read and write. What fails for reading is reported as a read (ESR_ELx.WnR).
    pub(crate) fn locate_atomic(&mut self, at: At, va: u64, bytes: u64) -> Result<u64, Next> {
        if va & (bytes - 1) == 0 && self.tlb.entry(va).write == va & !OFFSET {
            return Ok(va.wrapping_add(self.tlb.entry(va).addend));
        }
        self.locate_aligned(at, va, bytes, Access::Read, 0)?;
        self.locate_aligned(at, va, bytes, Access::Write, 0)
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
            return Err(self.alignment_fault(at, va, access));
        }
        let entry = self.tlb.entry(va);
        let tag = if access == Access::Write { entry.write } else { entry.read };
        if tag == va & !OFFSET {
            return Ok(va.wrapping_add(entry.addend));
        }
        self.locate(at, va, bytes, access, self.privilege(), iss)
    }
}
