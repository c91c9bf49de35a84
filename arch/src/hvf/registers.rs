//! The registers that a reset of a vCPU must put back, which the framework does not do: by destroying and making anew, a
//! vCPU would lose its place in the interrupt controller. Lists only; who reads and writes is `vcpu`.

use crate::aarch64::raw::SysReg;
use crate::aarch64::sysreg::names;

const fn el1(crn: u8, crm: u8, op2: u8) -> SysReg {
    SysReg::new(3, 0, crn, crm, op2)
}

const fn el0(crn: u8, crm: u8, op2: u8) -> SysReg {
    SysReg::new(3, 3, crn, crm, op2)
}

/// System registers that a guest changes, timers first: they are put back to what they were when the vCPU was made. MPIDR and
/// the ID registers are not among them, they stay. A host does not keep all of them; ACTLR and CNTP came with macOS 15.
pub const GUEST_STATE: [SysReg; 43] = [
    names::CNTV_CTL_EL0,
    names::CNTV_CVAL_EL0,
    names::CNTP_CTL_EL0,
    names::CNTP_CVAL_EL0,
    el1(14, 1, 0), // CNTKCTL_EL1
    names::SCTLR_EL1,
    names::ACTLR_EL1,
    el1(1, 0, 2), // CPACR_EL1
    names::TTBR0_EL1,
    names::TTBR1_EL1,
    names::TCR_EL1,
    el1(10, 2, 0), // MAIR_EL1
    el1(10, 3, 0), // AMAIR_EL1
    names::VBAR_EL1,
    names::SPSR_EL1,
    names::ELR_EL1,
    names::SP_EL0,
    names::SP_EL1,
    names::ESR_EL1,
    names::FAR_EL1,
    el1(5, 1, 0),               // AFSR0_EL1
    el1(5, 1, 1),               // AFSR1_EL1
    el1(7, 4, 0),               // PAR_EL1
    el1(13, 0, 1),              // CONTEXTIDR_EL1
    el1(13, 0, 4),              // TPIDR_EL1
    el1(13, 0, 7),              // SCXTNUM_EL1
    el0(13, 0, 2),              // TPIDR_EL0
    el0(13, 0, 3),              // TPIDRRO_EL0
    el0(13, 0, 5),              // TPIDR2_EL0
    el0(13, 0, 7),              // SCXTNUM_EL0
    SysReg::new(3, 2, 0, 0, 0), // CSSELR_EL1
    names::MDSCR_EL1,
    SysReg::new(2, 0, 0, 2, 0), // MDCCINT_EL1
    el1(2, 1, 0),               // APIAKeyLo_EL1
    el1(2, 1, 1),               // APIAKeyHi_EL1
    el1(2, 1, 2),               // APIBKeyLo_EL1
    el1(2, 1, 3),               // APIBKeyHi_EL1
    el1(2, 2, 0),               // APDAKeyLo_EL1
    el1(2, 2, 1),               // APDAKeyHi_EL1
    el1(2, 2, 2),               // APDBKeyLo_EL1
    el1(2, 2, 3),               // APDBKeyHi_EL1
    el1(2, 3, 0),               // APGAKeyLo_EL1
    el1(2, 3, 1),               // APGAKeyHi_EL1
];

/// The CPU interface of the host's GIC: the group enables last, so that nothing is signalled by a half-made one. `hv_gic_reset`
/// leaves it as it is. ICC_RPR is read-only, ICC_SRE fixed.
pub const GIC_CPU_INTERFACE: [SysReg; 8] = [
    el1(12, 12, 4), // ICC_CTLR_EL1
    el1(4, 6, 0),   // ICC_PMR_EL1
    el1(12, 8, 3),  // ICC_BPR0_EL1
    el1(12, 12, 3), // ICC_BPR1_EL1
    el1(12, 8, 4),  // ICC_AP0R0_EL1
    el1(12, 9, 0),  // ICC_AP1R0_EL1
    el1(12, 12, 6), // ICC_IGRPEN0_EL1
    el1(12, 12, 7), // ICC_IGRPEN1_EL1
];

/// Group enables: off while the others change.
pub const GIC_GROUP_ENABLES: [SysReg; 2] = [el1(12, 12, 6), el1(12, 12, 7)];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_register_is_named_twice() {
        let distinct: BTreeSet<SysReg> = GUEST_STATE.into_iter().collect();
        assert_eq!(distinct.len(), GUEST_STATE.len());
    }

    #[test]
    fn identity_is_not_guest_state() {
        assert!(!GUEST_STATE.contains(&names::MPIDR_EL1));
        assert!(GUEST_STATE.iter().all(|reg| !(0xc000..0xc080).contains(&reg.0)));
    }

    #[test]
    fn encodings_are_the_framework_s() {
        for encoding in
            [0xc082, 0xc108, 0xc119, 0xc288, 0xc3a0, 0xc510, 0xc681, 0xc708, 0xd000, 0xde82, 0xde83]
        {
            assert!(GUEST_STATE.contains(&SysReg(encoding)), "{encoding:#x}");
        }
        let icc = GIC_CPU_INTERFACE.map(|reg| reg.0);
        assert_eq!(icc, [0xc664, 0xc230, 0xc643, 0xc663, 0xc644, 0xc648, 0xc666, 0xc667]);
    }
}
