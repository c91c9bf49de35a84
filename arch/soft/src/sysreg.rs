//! The system registers this CPU keeps itself: storage, identification values, access rules. Registers that are not here
//! trap to the caller (EC 0x18), as they do under Hypervisor.framework.

/// Encodes a register name `op0:2 op1:3 CRn:4 CRm:4 op2:3`.
pub(crate) const fn enc(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

macro_rules! encodings {
    ($($name:ident = $op0:literal, $op1:literal, $crn:literal, $crm:literal, $op2:literal;)*) => {
        $(pub(crate) const $name: u16 = enc($op0, $op1, $crn, $crm, $op2);)*
    };
}

/// Encodings by architectural name (Arm ARM D17).
pub(crate) mod id {
    use super::enc;
    encodings! {
        MIDR_EL1 = 3,0,0,0,0; MPIDR_EL1 = 3,0,0,0,5; REVIDR_EL1 = 3,0,0,0,6;
        ID_AA64PFR0_EL1 = 3,0,0,4,0; ID_AA64DFR0_EL1 = 3,0,0,5,0;
        ID_AA64ISAR0_EL1 = 3,0,0,6,0;
        ID_AA64MMFR0_EL1 = 3,0,0,7,0; ID_AA64MMFR1_EL1 = 3,0,0,7,1;
        ID_AA64MMFR2_EL1 = 3,0,0,7,2;
        SCTLR_EL1 = 3,0,1,0,0; CPACR_EL1 = 3,0,1,0,2;
        TTBR0_EL1 = 3,0,2,0,0; TTBR1_EL1 = 3,0,2,0,1; TCR_EL1 = 3,0,2,0,2;
        SPSR_EL1 = 3,0,4,0,0; ELR_EL1 = 3,0,4,0,1; SP_EL0 = 3,0,4,1,0; SP_EL1 = 3,4,4,1,0;
        SPSEL = 3,0,4,2,0; CURRENTEL = 3,0,4,2,2; PAN = 3,0,4,2,3;
        AFSR0_EL1 = 3,0,5,1,0; AFSR1_EL1 = 3,0,5,1,1; ESR_EL1 = 3,0,5,2,0; FAR_EL1 = 3,0,6,0,0;
        PAR_EL1 = 3,0,7,4,0; MAIR_EL1 = 3,0,10,2,0; AMAIR_EL1 = 3,0,10,3,0;
        VBAR_EL1 = 3,0,12,0,0; ISR_EL1 = 3,0,12,1,0;
        CONTEXTIDR_EL1 = 3,0,13,0,1; TPIDR_EL1 = 3,0,13,0,4; CNTKCTL_EL1 = 3,0,14,1,0;
        CCSIDR_EL1 = 3,1,0,0,0; CLIDR_EL1 = 3,1,0,0,1; AIDR_EL1 = 3,1,0,0,7; CSSELR_EL1 = 3,2,0,0,0;
        CTR_EL0 = 3,3,0,0,1; DCZID_EL0 = 3,3,0,0,7;
        NZCV = 3,3,4,2,0; DAIF = 3,3,4,2,1; FPCR = 3,3,4,4,0; FPSR = 3,3,4,4,1;
        TPIDR_EL0 = 3,3,13,0,2; TPIDRRO_EL0 = 3,3,13,0,3;
        CNTFRQ_EL0 = 3,3,14,0,0; CNTPCT_EL0 = 3,3,14,0,1; CNTVCT_EL0 = 3,3,14,0,2;
        CNTP_TVAL_EL0 = 3,3,14,2,0; CNTP_CTL_EL0 = 3,3,14,2,1; CNTP_CVAL_EL0 = 3,3,14,2,2;
        CNTV_TVAL_EL0 = 3,3,14,3,0; CNTV_CTL_EL0 = 3,3,14,3,1; CNTV_CVAL_EL0 = 3,3,14,3,2;
    }
}

/// The plain registers of EL1 and EL0: what a read returns is what was written (but for reserved bits).
#[derive(Debug, Clone, Default)]
pub(crate) struct SysRegs {
    pub sctlr: u64,
    pub cpacr: u64,
    pub ttbr: [u64; 2],
    pub tcr: u64,
    pub mair: u64,
    pub amair: u64,
    pub afsr: [u64; 2],
    pub esr: u64,
    pub far: u64,
    pub elr: u64,
    pub spsr: u64,
    pub vbar: u64,
    pub contextidr: u64,
    pub tpidr_el1: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub par: u64,
    pub cntkctl: u64,
    pub csselr: u64,
    pub mpidr: u64,
    pub cntv_ctl: u64,
    pub cntv_cval: u64,
}

/// SCTLR_EL1 (Arm ARM D17.2.118).
pub(crate) mod sctlr {
    pub const M: u64 = 1;
    pub const A: u64 = 1 << 1;
    pub const SA: u64 = 1 << 3;
    pub const SA0: u64 = 1 << 4;
    pub const UMA: u64 = 1 << 9;
    pub const DZE: u64 = 1 << 14;
    pub const UCT: u64 = 1 << 15;
    pub const NTWI: u64 = 1 << 16;
    pub const NTWE: u64 = 1 << 18;
    pub const WXN: u64 = 1 << 19;
    pub const SPAN: u64 = 1 << 23;
    pub const UCI: u64 = 1 << 26;
    /// Bits that read as one when the feature behind them is absent, here always.
    pub const RES1: u64 = 1 << 11 | 1 << 20 | 1 << 22 | 1 << 28 | 1 << 29;
    /// Everything this CPU lets a guest change; the rest is RES0 (big endian, pointer authentication, AArch32, ...).
    pub const WRITABLE: u64 =
        M | A | 1 << 2 | SA | SA0 | UMA | 1 << 12 | DZE | UCT | NTWI | NTWE | WXN | SPAN | UCI;
    /// Out of reset: MMU and caches off, PAN left alone on exceptions, no traps of EL0.
    pub const RESET: u64 = RES1 | SPAN | NTWI | NTWE;
}

/// CNTV_CTL_EL0.
pub(crate) mod cntv_ctl {
    pub const ENABLE: u64 = 1;
    pub const IMASK: u64 = 2;
    pub const ISTATUS: u64 = 4;
}

/// MIDR_EL1: implementer 0 ("reserved for software use"), architecture by ID registers, part "hv".
pub(crate) const MIDR: u64 = 0x000F_6870;

/// CTR_EL0: 64-byte lines, PIPT instruction cache, data caches coherent with it for stores (IDC), but instruction fetch
/// needs IC IVAU (DIC clear): decoded code is only dropped then.
pub(crate) const CTR: u64 = 1 << 31 | 1 << 28 | 4 << 24 | 4 << 20 | 4 << 16 | 3 << 14 | 4;

/// DCZID_EL0: DC ZVA clears 64 bytes.
pub(crate) const DCZID: u64 = 4;
/// DCZID_EL0.DZP: DC ZVA is trapped here.
pub(crate) const DZP: u64 = 1 << 4;
/// Bytes that DC ZVA clears.
pub(crate) const ZVA_BYTES: u64 = 64;

/// CLIDR_EL1: separate level 1 caches, unified level 2, coherent at level 2.
pub(crate) const CLIDR: u64 = 2 << 24 | 1 << 27 | 2 << 21 | 4 << 3 | 3;

/// CCSIDR_EL1 of the cache that CSSELR selects: 32 KiB 2-way level 1, 1 MiB 16-way level 2, 64-byte lines.
pub(crate) fn ccsidr(csselr: u64) -> u64 {
    let (sets, ways) = match csselr & 0xf {
        0 | 1 => (256, 2),
        2 => (1024, 16),
        _ => return 0,
    };
    (sets - 1) << 13 | (ways - 1) << 3 | 2
}

/// The value of an identification register of the space 3,0,0,CRm,op2 (unallocated ones are zero, as the architecture
/// demands), or `None` outside that space.
pub(crate) fn identification(reg: u16, ipa_bits: u32) -> Option<u64> {
    if reg & !0x7f != enc(3, 0, 0, 0, 0) || reg & 0x78 == 0 {
        return None;
    }
    Some(match reg {
        // EL0 and EL1 AArch64 only; FP and AdvSIMD without half-precision arithmetic; GICv3 system registers; CSV2 and
        // CSV3: nothing here speculates.
        id::ID_AA64PFR0_EL1 => 1 << 60 | 1 << 56 | 1 << 24 | 0x11,
        // Debug v8.0 with two breakpoints and two watchpoints (kept by the trap layer), no PMU.
        id::ID_AA64DFR0_EL1 => 1 << 20 | 1 << 12 | 6,
        // AES with PMULL, SHA1, SHA256, CRC32, LSE.
        id::ID_AA64ISAR0_EL1 => 2 << 20 | 1 << 16 | 1 << 12 | 1 << 8 | 2 << 4,
        // All three granules, 16-bit ASIDs.
        id::ID_AA64MMFR0_EL1 => {
            let pa_range = match ipa_bits {
                0..36 => 0,
                36..40 => 1,
                _ => 2,
            };
            1 << 20 | 2 << 4 | pa_range
        }
        // PAN.
        id::ID_AA64MMFR1_EL1 => 1 << 20,
        // E0PD: with it a kernel at a random address need not separate its page tables from user space's (KPTI), which
        // would empty the TLB at each entry to the kernel.
        id::ID_AA64MMFR2_EL1 => 1 << 60,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_match_the_values_that_hypervisor_framework_uses() {
        assert_eq!(id::MPIDR_EL1, 0xc005);
        assert_eq!(id::SCTLR_EL1, 0xc080);
        assert_eq!(id::CNTV_CTL_EL0, 0xdf19);
        assert_eq!(id::SP_EL1, 0xe208);
    }

    #[test]
    fn unallocated_identification_registers_read_as_zero() {
        assert_eq!(identification(enc(3, 0, 0, 7, 7), 40), Some(0));
        assert_eq!(identification(enc(3, 0, 0, 2, 0), 40), Some(0));
    }
}
