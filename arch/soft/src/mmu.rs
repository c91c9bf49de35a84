//! Stage 1 translation (Arm ARM D8): the walk, its permissions and its faults. What is cached of it is in `tlb`.

use crate::machine::{PAGE_SIZE, Region};
use crate::sysreg::{SysRegs, sctlr};

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

/// Who makes an access, as far as permissions go. The discriminants index the TLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    El0 = 0,
    El1 = 1,
    /// EL1 with PSTATE.PAN set.
    El1Pan = 2,
}

/// Fault status codes without their level (Arm ARM, ESR_ELx.DFSC).
pub(crate) mod fsc {
    pub const ADDRESS_SIZE: u8 = 0x00;
    pub const TRANSLATION: u8 = 0x04;
    pub const ACCESS_FLAG: u8 = 0x08;
    pub const PERMISSION: u8 = 0x0c;
    pub const ALIGNMENT: u8 = 0x21;
}

/// Why a translation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// For EL1 to handle, with the fault status code.
    Stage1(u8),
    /// The walk touched an intermediate physical address without memory.
    WalkOutsideMemory { ipa: u64, level: u8 },
}

/// A translated page of 4 KiB (a part of the block or page that maps it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Translation {
    /// Physical address of the 4 KiB page.
    pub page: u64,
    /// log2 of the bytes that the descriptor maps.
    pub size_bits: u32,
    /// Only for the current ASID.
    pub not_global: bool,
    /// Device memory: unaligned accesses fault.
    pub device: bool,
    el0_read: bool,
    el0_write: bool,
    el1_write: bool,
    el0_exec: bool,
    el1_exec: bool,
    level: u8,
}

impl Translation {
    /// Whether `who` may do `access`.
    pub fn allows(&self, access: Access, who: Privilege) -> bool {
        match (access, who) {
            (Access::Read, Privilege::El0) => self.el0_read,
            (Access::Write, Privilege::El0) => self.el0_write,
            (Access::Fetch, Privilege::El0) => self.el0_exec,
            (Access::Read, Privilege::El1) => true,
            (Access::Write, Privilege::El1) => self.el1_write,
            (Access::Fetch, _) => self.el1_exec,
            (Access::Read, Privilege::El1Pan) => !self.el0_read,
            (Access::Write, Privilege::El1Pan) => self.el1_write && !self.el0_read,
        }
    }

    /// [`Translation::allows`], or the permission fault.
    pub fn check(&self, access: Access, who: Privilege) -> Result<(), Fault> {
        if self.allows(access, who) { Ok(()) } else { Err(Fault::Stage1(fsc::PERMISSION | self.level)) }
    }
}

fn bits(value: u64, high: u32, low: u32) -> u64 {
    value >> low & ((1 << (high - low + 1)) - 1)
}

/// Whether EL0 is kept out of the half that `va` lies in (TCR_EL1.E0PD0 and E0PD1, Arm ARM D8.4.7).
pub(crate) fn closed_to_el0(regs: &SysRegs, va: u64) -> bool {
    let bit = if va >> 55 & 1 != 0 { 56 } else { 55 };
    regs.sctlr & sctlr::M != 0 && bits(regs.tcr, bit, bit) != 0
}

/// The parameters of one half of the address space.
struct Half {
    granule_bits: u32,
    input_bits: u32,
    table: u64,
}

/// Chooses the half that translates `va` (Arm ARM D8.2), or faults.
fn half(regs: &SysRegs, va: u64) -> Result<Half, Fault> {
    let upper = va >> 55 & 1 != 0;
    let tcr = regs.tcr;
    let (txsz, epd, tbi, ttbr) = if upper {
        (bits(tcr, 21, 16), bits(tcr, 23, 23), bits(tcr, 38, 38), regs.ttbr[1])
    } else {
        (bits(tcr, 5, 0), bits(tcr, 7, 7), bits(tcr, 37, 37), regs.ttbr[0])
    };
    let granule_bits = match (upper, bits(tcr, if upper { 31 } else { 15 }, if upper { 30 } else { 14 })) {
        (false, 0) | (true, 2) => 12,
        (false, 2) | (true, 1) => 14,
        (false, 1) | (true, 3) => 16,
        // Reserved values behave as one of the implemented sizes.
        _ => 12,
    };
    let level0 = Err(Fault::Stage1(fsc::TRANSLATION));
    if !(16..=39).contains(&txsz) || epd != 0 {
        return level0;
    }
    let input_bits = 64 - txsz as u32;
    let top = if tbi != 0 { 56 } else { 64 };
    let above = va << (64 - top) >> (64 - top) >> input_bits;
    let expected = if upper { (1u64 << (top - input_bits)) - 1 } else { 0 };
    if above != expected {
        return level0;
    }
    Ok(Half { granule_bits, input_bits, table: ttbr & 0x0000_ffff_ffff_fffe })
}

/// Reads a descriptor of 8 bytes; `None` outside memory.
fn descriptor(regions: &[Region], ipa: u64) -> Option<u64> {
    let region = regions.iter().find(|r| r.host(ipa, 8).is_some())?;
    let host = region.host(ipa, 8)?;
    // SAFETY: the address is 8-aligned (tables and their entries are), inside mapped memory, and only accessed atomically.
    Some(unsafe { (*host.cast::<std::sync::atomic::AtomicU64>()).load(std::sync::atomic::Ordering::Acquire) })
}

/// With stage 1 off every address maps to itself; data is Device-nGnRnE (Arm ARM D8.2.10).
fn flat(va: u64, pa_bits: u32) -> Result<Translation, Fault> {
    if va >> pa_bits != 0 {
        return Err(Fault::Stage1(fsc::ADDRESS_SIZE));
    }
    Ok(Translation {
        page: va & !(PAGE_SIZE - 1),
        size_bits: 12,
        not_global: false,
        device: true,
        el0_read: true,
        el0_write: true,
        el1_write: true,
        el0_exec: true,
        el1_exec: true,
        level: 0,
    })
}

/// Walks the tables for `va`.
pub(crate) fn walk(regs: &SysRegs, regions: &[Region], va: u64, pa_bits: u32) -> Result<Translation, Fault> {
    if regs.sctlr & sctlr::M == 0 {
        return flat(va, pa_bits).map(|t| Translation { el0_read: true, ..t });
    }
    let Half { granule_bits, input_bits, table } = half(regs, va)?;
    let output_bits = match bits(regs.tcr, 34, 32) {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
    .min(pa_bits);
    let stride = granule_bits - 3;
    let mut level = 4 - (input_bits - granule_bits).div_ceil(stride);
    let level_bits = |level: u32| granule_bits + stride * (3 - level);
    let first_index_bits = input_bits - level_bits(level);
    let mut table = table & !((1 << (first_index_bits + 3)) - 1);
    if table >> output_bits != 0 {
        return Err(Fault::Stage1(fsc::ADDRESS_SIZE));
    }
    let mut index_bits = first_index_bits;
    let (mut no_el0, mut read_only, mut uxn, mut pxn) = (false, false, false, false);
    loop {
        let fault = |code: u8| Err(Fault::Stage1(code | level as u8));
        let low = level_bits(level);
        let entry = table + (bits(va, low + index_bits - 1, low) << 3);
        let Some(desc) = descriptor(regions, entry) else {
            return Err(Fault::WalkOutsideMemory { ipa: entry, level: level as u8 });
        };
        if desc & 1 == 0 {
            return fault(fsc::TRANSLATION);
        }
        let address = desc & 0x0000_ffff_ffff_ffff;
        if desc & 2 != 0 && level < 3 {
            table = address & !((1 << granule_bits) - 1);
            if table >> output_bits != 0 {
                return fault(fsc::ADDRESS_SIZE);
            }
            no_el0 |= desc >> 61 & 1 != 0;
            read_only |= desc >> 62 & 1 != 0;
            uxn |= desc >> 60 & 1 != 0;
            pxn |= desc >> 59 & 1 != 0;
            level += 1;
            index_bits = stride;
            continue;
        }
        let is_leaf =
            if desc & 2 != 0 { level == 3 } else { level == 2 || (level == 1 && granule_bits == 12) };
        if !is_leaf {
            return fault(fsc::TRANSLATION);
        }
        let output = address >> low << low;
        if output >> output_bits != 0 {
            return fault(fsc::ADDRESS_SIZE);
        }
        if desc >> 10 & 1 == 0 {
            return fault(fsc::ACCESS_FLAG);
        }
        let el0 = desc >> 6 & 1 != 0 && !no_el0;
        let writable = desc >> 7 & 1 == 0 && !read_only;
        let el0_write = el0 && writable;
        let wxn = regs.sctlr & sctlr::WXN != 0;
        uxn |= (desc >> 54) & 1 != 0;
        pxn |= (desc >> 53) & 1 != 0;
        let attributes = regs.mair >> (bits(desc, 4, 2) * 8) & 0xff;
        return Ok(Translation {
            page: output | (va & ((1 << low) - 1) & !(PAGE_SIZE - 1)),
            size_bits: low,
            not_global: desc >> 11 & 1 != 0,
            device: attributes & 0xf0 == 0,
            el0_read: el0,
            el0_write,
            el1_write: writable,
            el0_exec: !(uxn || wxn && el0_write),
            // What EL0 can write is never executable at EL1.
            el1_exec: !(pxn || wxn && writable || el0_write),
            level: level as u8,
        });
    }
}
