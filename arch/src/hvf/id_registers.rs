//! What a guest may know about the CPU: the host's ID registers without what a guest cannot have. Values only; who reads
//! and writes the registers is `vcpu`.
//!
//! Field positions are those of the Arm ARM, D24.2 (AArch64 ID registers).

use crate::aarch64::raw::SysReg;

/// ID_AA64PFR0_EL1.
pub const PFR0: SysReg = SysReg::new(3, 0, 0, 4, 0);
/// ID_AA64PFR1_EL1.
pub const PFR1: SysReg = SysReg::new(3, 0, 0, 4, 1);
/// ID_AA64ZFR0_EL1.
pub const ZFR0: SysReg = SysReg::new(3, 0, 0, 4, 4);
/// ID_AA64SMFR0_EL1.
pub const SMFR0: SysReg = SysReg::new(3, 0, 0, 4, 5);
/// ID_AA64DFR0_EL1.
pub const DFR0: SysReg = SysReg::new(3, 0, 0, 5, 0);
/// ID_AA64ISAR1_EL1.
pub const ISAR1: SysReg = SysReg::new(3, 0, 0, 6, 1);
/// ID_AA64MMFR0_EL1.
pub const MMFR0: SysReg = SysReg::new(3, 0, 0, 7, 0);
/// ID_AA64MMFR2_EL1.
pub const MMFR2: SysReg = SysReg::new(3, 0, 0, 7, 2);

/// A register of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRegister {
    /// Its name.
    pub name: &'static str,
    /// Its encoding.
    pub reg: SysReg,
    /// Every host has it. The others came with macOS 15.2 and describe what the guest does not get anyway.
    pub everywhere: bool,
}

const fn everywhere(name: &'static str, reg: SysReg) -> IdRegister {
    IdRegister { name, reg, everywhere: true }
}

const fn newer(name: &'static str, reg: SysReg) -> IdRegister {
    IdRegister { name, reg, everywhere: false }
}

/// The registers that the policy may change.
pub const REGISTERS: [IdRegister; 8] = [
    everywhere("ID_AA64PFR0_EL1", PFR0),
    everywhere("ID_AA64PFR1_EL1", PFR1),
    everywhere("ID_AA64DFR0_EL1", DFR0),
    everywhere("ID_AA64ISAR1_EL1", ISAR1),
    everywhere("ID_AA64MMFR0_EL1", MMFR0),
    everywhere("ID_AA64MMFR2_EL1", MMFR2),
    newer("ID_AA64ZFR0_EL1", ZFR0),
    newer("ID_AA64SMFR0_EL1", SMFR0),
];

/// What the policy depends on besides the host's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Bits of guest physical address.
    pub ipa_bits: u32,
    /// Pointer authentication works alike on all vCPUs: from macOS 15 on.
    pub pointer_authentication: bool,
}

/// A field of four bits.
const fn field(value: u64, lsb: u32) -> u64 {
    value >> lsb & 0xf
}

const fn with_field(value: u64, lsb: u32, new: u64) -> u64 {
    value & !(0xf << lsb) | (new & 0xf) << lsb
}

fn without_fields(value: u64, lsbs: &[u32]) -> u64 {
    lsbs.iter().fold(value, |value, lsb| with_field(value, *lsb, 0))
}

/// What the guest reads from `reg` where the host has `host`.
pub fn policy(reg: SysReg, host: u64, facts: Facts) -> u64 {
    match reg {
        // EL2 [11:8] and EL3 [15:12]: there is EL1 and EL0. SVE [35:32], MPAM [43:40], AMU [47:44]: their registers trap.
        // GIC [27:24] = 1: system registers of a GICv3. The host's value is 0, as a Mac has none; firmware then looks for a
        // GICv2 and hangs.
        PFR0 => with_field(without_fields(host, &[8, 12, 32, 40, 44]), 24, 1),
        // SME [27:24]: its state is not saved. NMI [39:36]: the GIC has none.
        PFR1 => without_fields(host, &[24, 36]),
        // TraceVer [7:4], PMUVer [11:8], PMSVer [35:32], TraceFilt [43:40], TraceBuffer [47:44], BRBE [55:52].
        DFR0 => without_fields(host, &[4, 8, 32, 40, 44, 52]),
        // APA [7:4], API [11:8], GPA [27:24], GPI [31:28].
        ISAR1 if !facts.pointer_authentication => without_fields(host, &[4, 8, 24, 28]),
        // PARange [3:0]: what stage 2 translates, at most what the host has.
        MMFR0 => with_field(host, 0, field(host, 0).min(pa_range(facts.ipa_bits))),
        // CnP [3:0] wants a TLB shared between vCPUs that do not stay on one CPU. NV [27:24] is of no use without EL2.
        MMFR2 => without_fields(host, &[0, 24]),
        ZFR0 | SMFR0 => 0,
        _ => host,
    }
}

/// ID_AA64MMFR0_EL1.PARange: the largest size that is not above `bits`.
const fn pa_range(bits: u32) -> u64 {
    match bits {
        0..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        48..52 => 5,
        _ => 6,
    }
}

/// What to say about a register that does not read as it was written; `None` if it does.
pub fn mismatch(register: IdRegister, wanted: u64, got: u64) -> Option<String> {
    (wanted != got).then(|| {
        format!(
            "{} reads as {got:#018x} after {wanted:#018x} was written (bits {:#x}); the guest may use what it cannot have",
            register.name,
            wanted ^ got
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts { ipa_bits: 36, pointer_authentication: true };
    const ALL: u64 = u64::MAX;

    #[test]
    fn encodings_are_the_framework_s() {
        let encodings = REGISTERS.map(|register| register.reg.0);
        assert_eq!(encodings, [0xc020, 0xc021, 0xc028, 0xc031, 0xc038, 0xc03a, 0xc024, 0xc025]);
    }

    #[test]
    fn the_gic_is_announced_where_the_host_has_none() {
        assert_eq!(field(policy(PFR0, 0x1101_0000_0000_1111, FACTS), 24), 1);
        assert_eq!(field(policy(PFR0, ALL, FACTS), 24), 1);
    }

    #[test]
    fn el2_and_el3_are_hidden() {
        assert_eq!(policy(PFR0, 0x1111, FACTS) & 0xffff, 0x0011);
    }

    #[test]
    fn sve_is_hidden() {
        assert_eq!(field(policy(PFR0, ALL, FACTS), 32), 0);
        assert_eq!(policy(ZFR0, ALL, FACTS), 0);
    }

    #[test]
    fn sme_is_hidden() {
        assert_eq!(field(policy(PFR1, ALL, FACTS), 24), 0);
        assert_eq!(policy(SMFR0, ALL, FACTS), 0);
    }

    #[test]
    fn no_pmu_is_promised() {
        assert_eq!(field(policy(DFR0, ALL, FACTS), 8), 0);
        assert_eq!(field(policy(DFR0, ALL, FACTS), 0), 0xf);
    }

    #[test]
    fn the_physical_address_range_follows_the_ipa_size() {
        for (bits, range) in [(32, 0), (36, 1), (39, 1), (40, 2), (42, 3), (44, 4), (48, 5)] {
            assert_eq!(field(policy(MMFR0, 5, Facts { ipa_bits: bits, ..FACTS }), 0), range, "{bits} bits");
        }
    }

    #[test]
    fn the_physical_address_range_is_never_above_the_host_s() {
        assert_eq!(policy(MMFR0, 0xf1, Facts { ipa_bits: 48, ..FACTS }), 0xf1);
    }

    #[test]
    fn nested_virtualisation_and_common_translations_are_hidden() {
        assert_eq!(policy(MMFR2, 0x0200_1011, FACTS), 0x1010);
    }

    #[test]
    fn pointer_authentication_is_hidden_where_vcpus_differ() {
        let before_15 = Facts { pointer_authentication: false, ..FACTS };
        assert_eq!(policy(ISAR1, 0x0000_0001_1111_1551, before_15), 0x0000_0001_0011_1001);
        assert_eq!(policy(ISAR1, 0x0000_0001_1111_1551, FACTS), 0x0000_0001_1111_1551);
    }

    #[test]
    fn the_policy_applied_twice_changes_nothing() {
        for register in REGISTERS {
            let once = policy(register.reg, 0x1234_5678_9abc_def1, FACTS);
            assert_eq!(policy(register.reg, once, FACTS), once, "{}", register.name);
        }
    }

    #[test]
    fn a_register_that_does_not_read_back_is_named() {
        let text = mismatch(REGISTERS[0], 0x11, 0x10).unwrap();
        assert!(text.contains("ID_AA64PFR0_EL1") && text.contains("bits 0x1"), "{text}");
        assert_eq!(mismatch(REGISTERS[0], 7, 7), None);
    }
}
