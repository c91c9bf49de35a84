//! The identification registers of the simulated Mac, and what a guest must not see of them. The values before a policy is
//! applied promise more than the vCPU has, as those of real Macs do: the backend's policy is what this tests.

use hvrun_soft::Cpu;

/// ID_AA64PFR0_EL1.
pub const PFR0: u16 = 0xc020;
/// ID_AA64PFR1_EL1.
pub const PFR1: u16 = 0xc021;
/// ID_AA64ZFR0_EL1.
pub const ZFR0: u16 = 0xc024;
/// ID_AA64SMFR0_EL1.
pub const SMFR0: u16 = 0xc025;
/// ID_AA64DFR0_EL1.
pub const DFR0: u16 = 0xc028;
/// ID_AA64DFR1_EL1.
pub const DFR1: u16 = 0xc029;
/// ID_AA64ISAR0_EL1.
pub const ISAR0: u16 = 0xc030;
/// ID_AA64ISAR1_EL1.
pub const ISAR1: u16 = 0xc031;
/// ID_AA64MMFR0_EL1.
pub const MMFR0: u16 = 0xc038;
/// ID_AA64MMFR1_EL1.
pub const MMFR1: u16 = 0xc039;
/// ID_AA64MMFR2_EL1.
pub const MMFR2: u16 = 0xc03a;
/// CTR_EL0.
pub const CTR: u16 = 0xd801;
/// CLIDR_EL1.
pub const CLIDR: u16 = 0xc801;
/// DCZID_EL0.
pub const DCZID: u16 = 0xd807;
/// CCSIDR_EL1.
pub const CCSIDR: u16 = 0xc800;
/// CSSELR_EL1.
pub const CSSELR: u16 = 0xd000;

/// hv_feature_reg_t, in its order; the last two since macOS 15.2.
pub const FEATURES: [u16; 14] =
    [DFR0, DFR1, ISAR0, ISAR1, MMFR0, MMFR1, MMFR2, PFR0, PFR1, CTR, CLIDR, DCZID, SMFR0, ZFR0];

/// The identification registers that can be written.
pub const WRITABLE: [u16; 11] = [PFR0, PFR1, ZFR0, SMFR0, DFR0, DFR1, ISAR0, ISAR1, MMFR0, MMFR1, MMFR2];

/// What the hardware says, given what the software CPU says about itself: no GIC (Apple has an AIC), EL2, SVE and SME, a PMU,
/// 40 bits of physical address, CnP and nested virtualisation.
pub fn of_hardware(reg: u16, own: u64) -> u64 {
    match reg {
        PFR0 => own & !(0xf << 24) | 1 << 8 | 1 << 32,
        PFR1 => own | 1 << 24,
        DFR0 => own | 4 << 8,
        MMFR0 => own & !0xf | 2,
        MMFR2 => own | 1 | 1 << 24,
        _ => own,
    }
}

/// A field of four bits.
fn field(cpu: &Cpu, reg: u16, lowest: u32) -> u64 {
    cpu.sys_reg(reg).unwrap_or(0) >> lowest & 0xf
}

/// What is wrong with what the guest would read: promises that nobody keeps.
pub fn broken_promises(cpu: &Cpu, ipa_bits: u32) -> Vec<&'static str> {
    // PARange of MMFR0 (Arm ARM D24.2.88).
    let pa_bits = match field(cpu, MMFR0, 0) {
        0 => 32,
        1 => 36,
        2 => 40,
        _ => 48,
    };
    let rules = [
        (field(cpu, PFR0, 24) == 1, "ID_AA64PFR0_EL1.GIC is not 1: guests look for a GICv2"),
        (field(cpu, PFR0, 32) == 0, "ID_AA64PFR0_EL1 promises SVE"),
        (field(cpu, PFR0, 8) == 0, "ID_AA64PFR0_EL1 promises EL2"),
        (field(cpu, PFR1, 24) == 0, "ID_AA64PFR1_EL1 promises SME"),
        (matches!(field(cpu, DFR0, 8), 0 | 15), "ID_AA64DFR0_EL1 promises a PMU"),
        (pa_bits <= ipa_bits, "ID_AA64MMFR0_EL1.PARange is wider than the IPA space"),
        (field(cpu, MMFR2, 24) == 0, "ID_AA64MMFR2_EL1 promises nested virtualisation"),
        (field(cpu, MMFR2, 0) == 0, "ID_AA64MMFR2_EL1 promises CnP"),
    ];
    rules.into_iter().filter(|(kept, _)| !kept).map(|(_, what)| what).collect()
}
