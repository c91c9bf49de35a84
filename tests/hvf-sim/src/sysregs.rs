//! Which system registers `hv_vcpu_get_sys_reg` and `hv_vcpu_set_sys_reg` know (hv_sys_reg_t), by the version that added them. No
//! values: those are in the software CPU, or in the vCPU's own list for what that does not keep.

use crate::config::MacOs;
use crate::identification::{SMFR0, WRITABLE, ZFR0};

/// MPIDR_EL1.
pub const MPIDR: u16 = 0xc005;
/// CNTV_CTL_EL0.
pub const CNTV_CTL: u16 = 0xdf19;
/// CNTV_CVAL_EL0.
pub const CNTV_CVAL: u16 = 0xdf1a;
/// FPCR, which is a general register to the framework.
pub const FPCR: u16 = 0xda20;
/// FPSR, which is a general register to the framework.
pub const FPSR: u16 = 0xda21;

/// Registers since the first version, beside those in ranges: MDCCINT, MDSCR; MIDR, MPIDR; SCTLR, CPACR; TTBR0, TTBR1, TCR;
/// the pointer authentication keys; SPSR, ELR, SP_EL0; AFSR0, AFSR1, ESR, FAR, PAR; MAIR, AMAIR, VBAR; CONTEXTIDR, TPIDR_EL1;
/// CNTKCTL; CSSELR; TPIDR_EL0, TPIDRRO_EL0; CNTV_CTL, CNTV_CVAL; SP_EL1.
const ALWAYS: &[u16] = &[
    0x8010, 0x8012, 0xc000, MPIDR, 0xc080, 0xc082, 0xc100, 0xc101, 0xc102, 0xc108, 0xc109, 0xc10a, 0xc10b,
    0xc110, 0xc111, 0xc112, 0xc113, 0xc118, 0xc119, 0xc200, 0xc201, 0xc208, 0xc288, 0xc289, 0xc290, 0xc300,
    0xc3a0, 0xc510, 0xc518, 0xc600, 0xc681, 0xc684, 0xc708, 0xd000, 0xde82, 0xde83, CNTV_CTL, CNTV_CVAL,
    0xe208,
];

/// Since macOS 15, without EL2: ACTLR_EL1, CNTP_TVAL, CNTP_CTL, CNTP_CVAL.
const SINCE_15: &[u16] = &[0xc081, 0xdf10, 0xdf11, 0xdf12];

/// Since macOS 15.2: SMPRI, SMCR, SCXTNUM_EL1, TPIDR2, SCXTNUM_EL0.
const SINCE_15_2: &[u16] = &[0xc094, 0xc096, 0xc687, 0xde85, 0xde87];

/// Whether the framework of `macos` knows a register.
pub fn exists(reg: u16, macos: MacOs) -> bool {
    // DBGBVR, DBGBCR, DBGWVR, DBGWCR 0 to 15.
    let debug = reg & !0x7f == 0x8000 && reg & 7 >= 4;
    let identification = WRITABLE.contains(&reg) && !matches!(reg, ZFR0 | SMFR0);
    debug
        || identification
        || ALWAYS.contains(&reg)
        || macos >= MacOs::V15 && SINCE_15.contains(&reg)
        || macos >= MacOs::V15_2 && (SINCE_15_2.contains(&reg) || matches!(reg, ZFR0 | SMFR0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_counter_and_no_sp_register() {
        for reg in [0xdf02, 0xda20, 0xda21, 0xd801] {
            assert!(!exists(reg, MacOs::V26), "{reg:#x}");
        }
    }

    #[test]
    fn the_physical_timer_appeared_in_macos_15() {
        assert!(!exists(0xdf11, MacOs::V14));
        assert!(exists(0xdf11, MacOs::V15));
    }
}
