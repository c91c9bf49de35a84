//! The guest's stage 1 translation, walked in software: virtual address to intermediate physical address through the
//! guest's own page tables (Arm ARM D8). For fetching the instruction behind a data abort and for monitors, not for running guests:
//! no TLB, no fault is reported to the guest from here, and tables are read as little-endian.

use vm_memory::{Bytes, GuestAddress};

use super::esr::fsc;
use super::raw::{RawVcpu, SysReg};
use super::sysreg::names;
use crate::hypervisor::HypervisorError;
use crate::memory::GuestMemory;

/// SCTLR_EL1.M: stage 1 translation is on.
const SCTLR_M: u64 = 1 << 0;
/// Output address bits of descriptors and TTBRs: 47 down to 0 (no LPA).
const ADDRESS: u64 = 0x0000_ffff_ffff_ffff;
/// Descriptor bit 0: valid.
const VALID: u64 = 1 << 0;
/// Descriptor bit 1: table (levels 0 to 2) or page (level 3).
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AP\[1\]: accessible from EL0.
const AP_USER: u64 = 1 << 6;
/// AP\[2\]: read-only.
const AP_READ_ONLY: u64 = 1 << 7;
/// The access flag.
const AF: u64 = 1 << 10;
/// APTable\[0\]: no EL0 access below this table.
const APTABLE_NO_USER: u64 = 1 << 61;
/// APTable\[1\]: no writes below this table.
const APTABLE_READ_ONLY: u64 = 1 << 62;

/// The registers that define a translation regime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Regime {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub ttbr: [u64; 2],
}

/// Where a virtual address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The intermediate physical address.
    pub ipa: u64,
    /// EL0 may access it.
    pub user: bool,
    /// It may be written.
    pub writable: bool,
}

/// Why a virtual address leads nowhere: the fault status code that the CPU would report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalkFault {
    /// DFSC or IFSC.
    pub fsc: u8,
}

/// The shape of one half of the address space.
#[derive(Debug, Clone, Copy)]
struct Half {
    granule_bits: u32,
    input_bits: u32,
    base: u64,
    walks: bool,
}

impl Regime {
    /// Reads the regime of `raw`.
    pub fn of<R: RawVcpu + ?Sized>(raw: &R) -> Result<Self, HypervisorError> {
        Self::read(|reg| raw.sys_reg(reg))
    }

    /// The regime that is in these system registers.
    pub fn read<E>(sys_reg: impl Fn(SysReg) -> Result<u64, E>) -> Result<Self, E> {
        Ok(Regime {
            sctlr: sys_reg(names::SCTLR_EL1)?,
            tcr: sys_reg(names::TCR_EL1)?,
            ttbr: [sys_reg(names::TTBR0_EL1)?, sys_reg(names::TTBR1_EL1)?],
        })
    }

    /// Translates `va`, reading descriptors from `memory`.
    pub fn translate(&self, memory: &GuestMemory, va: u64) -> Result<Translation, WalkFault> {
        self.walk(va, |ipa| memory.read_obj::<u64>(GuestAddress(ipa)).ok().map(u64::from_le))
    }

    /// Translates `va`; `read` gives the 8 bytes at an address, or `None` if there is no memory.
    pub fn walk(&self, va: u64, read: impl Fn(u64) -> Option<u64>) -> Result<Translation, WalkFault> {
        if self.sctlr & SCTLR_M == 0 {
            return Ok(Translation { ipa: va & ADDRESS, user: true, writable: true });
        }
        let half = self.half(va)?;
        let stride = half.granule_bits - 3;
        let mut level = 4 - (half.input_bits - half.granule_bits).div_ceil(stride);
        let mut table = half.base & ADDRESS & !1;
        let mut user = true;
        let mut writable = true;
        if !half.walks {
            return Err(fault(fsc::TRANSLATION, level));
        }
        loop {
            let shift = half.granule_bits + (3 - level) * stride;
            // The first table may be smaller than a granule, or hold fewer than `stride` bits of index.
            let index_bits = stride.min(half.input_bits - shift);
            let index = va >> shift & ((1 << index_bits) - 1);
            let descriptor = read(table + index * 8).ok_or(fault(fsc::SYNC_EXTERNAL_WALK, level))?;
            if descriptor & VALID == 0 {
                return Err(fault(fsc::TRANSLATION, level));
            }
            let next_table = descriptor & TABLE_OR_PAGE != 0;
            if level == 3 || !next_table {
                if (level == 3) != next_table || !block_allowed(half.granule_bits, level) {
                    return Err(fault(fsc::TRANSLATION, level));
                }
                if descriptor & AF == 0 {
                    return Err(fault(fsc::ACCESS_FLAG, level));
                }
                let offset = (1u64 << shift) - 1;
                return Ok(Translation {
                    ipa: descriptor & ADDRESS & !offset | va & offset,
                    user: user && descriptor & AP_USER != 0,
                    writable: writable && descriptor & AP_READ_ONLY == 0,
                });
            }
            user &= descriptor & APTABLE_NO_USER == 0;
            writable &= descriptor & APTABLE_READ_ONLY == 0;
            table = descriptor & ADDRESS & !((1u64 << half.granule_bits) - 1);
            level += 1;
        }
    }

    /// Which half of the address space `va` lies in, and its shape; a translation fault between the halves.
    fn half(&self, va: u64) -> Result<Half, WalkFault> {
        let upper = va >> 55 & 1 == 1;
        let field = |lsb: u32, bits: u32| self.tcr >> lsb & ((1 << bits) - 1);
        let (size, granule, walks, ignore_top) = if upper {
            (field(16, 6), field(30, 2), field(23, 1) == 0, field(38, 1) == 1)
        } else {
            (field(0, 6), field(14, 2), field(7, 1) == 0, field(37, 1) == 1)
        };
        // TG0 and TG1 number the granules differently.
        let granule_bits = match (upper, granule) {
            (false, 0) | (true, 2) => 12,
            (false, 2) | (true, 1) => 14,
            (false, 1) | (true, 3) => 16,
            _ => 12,
        };
        let input_bits = 64 - size.clamp(16, 39) as u32;
        let top = if ignore_top { 56 } else { 64 };
        let above = (va << (64 - top)) >> (64 - top) >> input_bits;
        let expected = if upper { (1u64 << (top - input_bits)) - 1 } else { 0 };
        if above != expected {
            return Err(fault(fsc::TRANSLATION, 0));
        }
        Ok(Half { granule_bits, input_bits, base: self.ttbr[usize::from(upper)], walks })
    }
}

fn fault(kind: u8, level: u32) -> WalkFault {
    WalkFault { fsc: kind | (level as u8 & 3) }
}

/// Whether a granule has block descriptors at `level` (Arm ARM, table D8-16, without LPA).
fn block_allowed(granule_bits: u32, level: u32) -> bool {
    match level {
        3 | 2 => true,
        1 => granule_bits == 12,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const ON: u64 = SCTLR_M;
    const PAGE: u64 = AF | AP_USER | TABLE_OR_PAGE | VALID;
    const BLOCK: u64 = AF | AP_USER | VALID;
    const TABLE: u64 = TABLE_OR_PAGE | VALID;

    fn regime(tcr: u64) -> Regime {
        Regime { sctlr: ON, tcr, ttbr: [0x1_0000, 0x2_0000] }
    }

    fn walk(regime: Regime, tables: &[(u64, u64)], va: u64) -> Result<Translation, WalkFault> {
        let tables: HashMap<u64, u64> = tables.iter().copied().collect();
        regime.walk(va, |ipa| (ipa < 0x10_0000).then(|| tables.get(&ipa).copied().unwrap_or(0)))
    }

    fn ipa(regime: Regime, tables: &[(u64, u64)], va: u64) -> u64 {
        walk(regime, tables, va).unwrap().ipa
    }

    #[test]
    fn without_mmu_addresses_are_physical() {
        let regime = Regime::default();
        assert_eq!(ipa(regime, &[], 0x4008_0123), 0x4008_0123);
    }

    #[test]
    fn a_4k_page_of_48_bits_takes_four_levels() {
        let va = 3 << 39 | 5 << 30 | 7 << 21 | 9 << 12 | 0x123;
        let tables = [
            (0x1_0000 + 3 * 8, 0x3_0000 | TABLE),
            (0x3_0000 + 5 * 8, 0x4_0000 | TABLE),
            (0x4_0000 + 7 * 8, 0x5_0000 | TABLE),
            (0x5_0000 + 9 * 8, 0x4444_5000 | PAGE),
        ];
        assert_eq!(ipa(regime(16), &tables, va), 0x4444_5123);
    }

    #[test]
    fn a_39_bit_space_starts_at_level_1() {
        let va = 5 << 30 | 0x12345;
        assert_eq!(ipa(regime(25), &[(0x1_0000 + 5 * 8, 0x8000_0000 | BLOCK)], va), 0x8001_2345);
    }

    #[test]
    fn a_2m_block_keeps_21_bits_of_offset() {
        let va = 1 << 30 | 2 << 21 | 0x1f_fff0;
        let tables = [(0x1_0000 + 8, 0x3_0000 | TABLE), (0x3_0000 + 16, 0x4020_0000 | BLOCK)];
        assert_eq!(ipa(regime(25), &tables, va), 0x403f_fff0);
    }

    #[test]
    fn the_upper_half_uses_ttbr1() {
        let va = 0xffff_ff80_0000_0000 | 4 << 30 | 0x678;
        assert_eq!(
            ipa(regime(25 << 16 | 2 << 30), &[(0x2_0000 + 4 * 8, 0x4000_0000 | BLOCK)], va),
            0x4000_0678
        );
    }

    #[test]
    fn a_16k_page_of_47_bits_takes_three_levels() {
        let va = 2 << 36 | 3 << 25 | 4 << 14 | 0x3abc;
        let tables = [
            (0x1_0000 + 2 * 8, 0x3_0000 | TABLE),
            (0x3_0000 + 3 * 8, 0x4_0000 | TABLE),
            (0x4_0000 + 4 * 8, 0x4000_c000 | PAGE),
        ];
        assert_eq!(ipa(regime(17 | 2 << 14), &tables, va), 0x4000_fabc);
    }

    #[test]
    fn a_64k_page_of_48_bits_takes_three_levels() {
        let va = 2 << 42 | 3 << 29 | 4 << 16 | 0xbcde;
        let tables = [
            (0x1_0000 + 2 * 8, 0x3_0000 | TABLE),
            (0x3_0000 + 3 * 8, 0x4_0000 | TABLE),
            (0x4_0000 + 4 * 8, 0x4005_0000 | PAGE),
        ];
        assert_eq!(ipa(regime(16 | 1 << 14), &tables, va), 0x4005_bcde);
    }

    #[test]
    fn a_64k_granule_has_512m_blocks_at_level_2() {
        let va = 3 << 29 | 0x123_4567;
        let tables = [(0x1_0000, 0x3_0000 | TABLE), (0x3_0000 + 3 * 8, 0x6000_0000 | BLOCK)];
        assert_eq!(ipa(regime(16 | 1 << 14), &tables, va), 0x6123_4567);
    }

    #[test]
    fn an_invalid_descriptor_faults_at_its_level() {
        let tables = [(0x1_0000, 0x3_0000 | TABLE)];
        assert_eq!(walk(regime(16), &tables, 0), Err(WalkFault { fsc: 0x05 }));
    }

    #[test]
    fn a_block_at_level_0_faults() {
        assert_eq!(walk(regime(16), &[(0x1_0000, BLOCK)], 0), Err(WalkFault { fsc: 0x04 }));
    }

    #[test]
    fn a_clear_access_flag_faults() {
        assert_eq!(walk(regime(25), &[(0x1_0000, VALID)], 0), Err(WalkFault { fsc: 0x09 }));
    }

    #[test]
    fn a_table_outside_memory_is_an_external_abort_on_the_walk() {
        let tables = [(0x1_0000, 0x4000_0000 | TABLE)];
        assert_eq!(walk(regime(16), &tables, 0), Err(WalkFault { fsc: 0x15 }));
    }

    #[test]
    fn an_address_between_the_halves_faults() {
        assert_eq!(walk(regime(16), &[], 1 << 50), Err(WalkFault { fsc: 0x04 }));
    }

    #[test]
    fn a_disabled_half_faults() {
        assert_eq!(walk(regime(16 | 1 << 7), &[], 0), Err(WalkFault { fsc: 0x04 }));
    }

    #[test]
    fn top_byte_is_ignored_if_asked_for() {
        let va = 0xab00_0000_0000_0000 | 5 << 30;
        let tables = [(0x1_0000 + 5 * 8, 0x8000_0000 | BLOCK)];
        assert_eq!(ipa(regime(25 | 1 << 37), &tables, va), 0x8000_0000);
        assert!(walk(regime(25), &tables, va).is_err());
    }

    #[test]
    fn permissions_come_from_descriptor_and_tables() {
        let leaf = [(0x1_0000, AF | AP_READ_ONLY | VALID)];
        let found = walk(regime(25), &leaf, 0).unwrap();
        assert_eq!((found.user, found.writable), (false, false));
        let through_table =
            [(0x1_0000, 0x3_0000 | APTABLE_READ_ONLY | TABLE), (0x3_0000, 0x4000_0000 | BLOCK)];
        let found = walk(regime(25), &through_table, 0).unwrap();
        assert_eq!((found.user, found.writable), (true, false));
    }

    #[test]
    fn a_small_first_table_is_indexed_with_few_bits() {
        // 36 bits of input: level 1 has 6 bits of index.
        let va = 63 << 30 | 0x10;
        assert_eq!(ipa(regime(28), &[(0x1_0000 + 63 * 8, 0x4000_0000 | BLOCK)], va), 0x4000_0010);
    }
}
