//! System registers that trap to the hypervisor: their names, and by a table what is done about each.
//! The policy: debug registers (op0 2) and the ID space read as zero and ignore writes; what is not listed is UNDEFINED,
//! because a wrong zero hides bugs and a panic kills users. The values themselves live in `trap_vcpu`.

use super::raw::SysReg;

/// Names of the registers that this crate uses (Arm ARM, D23 and D24).
pub mod names {
    use super::SysReg;

    /// Multiprocessor affinity.
    pub const MPIDR_EL1: SysReg = SysReg::new(3, 0, 0, 0, 5);
    /// System control.
    pub const SCTLR_EL1: SysReg = SysReg::new(3, 0, 1, 0, 0);
    /// Auxiliary control.
    pub const ACTLR_EL1: SysReg = SysReg::new(3, 0, 1, 0, 1);
    /// Translation table base, lower half.
    pub const TTBR0_EL1: SysReg = SysReg::new(3, 0, 2, 0, 0);
    /// Translation table base, upper half.
    pub const TTBR1_EL1: SysReg = SysReg::new(3, 0, 2, 0, 1);
    /// Translation control.
    pub const TCR_EL1: SysReg = SysReg::new(3, 0, 2, 0, 2);
    /// Saved PSTATE.
    pub const SPSR_EL1: SysReg = SysReg::new(3, 0, 4, 0, 0);
    /// Exception link.
    pub const ELR_EL1: SysReg = SysReg::new(3, 0, 4, 0, 1);
    /// Stack pointer of EL0.
    pub const SP_EL0: SysReg = SysReg::new(3, 0, 4, 1, 0);
    /// Stack pointer of EL1.
    pub const SP_EL1: SysReg = SysReg::new(3, 4, 4, 1, 0);
    /// Exception syndrome.
    pub const ESR_EL1: SysReg = SysReg::new(3, 0, 5, 2, 0);
    /// Fault address.
    pub const FAR_EL1: SysReg = SysReg::new(3, 0, 6, 0, 0);
    /// Vector base.
    pub const VBAR_EL1: SysReg = SysReg::new(3, 0, 12, 0, 0);
    /// Virtual timer control.
    pub const CNTV_CTL_EL0: SysReg = SysReg::new(3, 3, 14, 3, 1);
    /// Virtual timer compare value.
    pub const CNTV_CVAL_EL0: SysReg = SysReg::new(3, 3, 14, 3, 2);
    /// OS lock access.
    pub const OSLAR_EL1: SysReg = SysReg::new(2, 0, 1, 0, 4);
    /// OS lock status.
    pub const OSLSR_EL1: SysReg = SysReg::new(2, 0, 1, 1, 4);
    /// Monitor debug system control.
    pub const MDSCR_EL1: SysReg = SysReg::new(2, 0, 0, 2, 2);
    /// Physical counter.
    pub const CNTPCT_EL0: SysReg = SysReg::new(3, 3, 14, 0, 1);
    /// Virtual counter.
    pub const CNTVCT_EL0: SysReg = SysReg::new(3, 3, 14, 0, 2);
    /// Physical counter, self-synchronised.
    pub const CNTPCTSS_EL0: SysReg = SysReg::new(3, 3, 14, 0, 5);
    /// Virtual counter, self-synchronised.
    pub const CNTVCTSS_EL0: SysReg = SysReg::new(3, 3, 14, 0, 6);
    /// Physical timer value (the compare value relative to now).
    pub const CNTP_TVAL_EL0: SysReg = SysReg::new(3, 3, 14, 2, 0);
    /// Physical timer control.
    pub const CNTP_CTL_EL0: SysReg = SysReg::new(3, 3, 14, 2, 1);
    /// Physical timer compare value.
    pub const CNTP_CVAL_EL0: SysReg = SysReg::new(3, 3, 14, 2, 2);
    /// Performance monitors control.
    pub const PMCR_EL0: SysReg = SysReg::new(3, 3, 9, 12, 0);
    /// Performance monitors cycle counter.
    pub const PMCCNTR_EL0: SysReg = SysReg::new(3, 3, 9, 13, 0);
    /// Performance monitors cycle counter filter.
    pub const PMCCFILTR_EL0: SysReg = SysReg::new(3, 3, 14, 15, 7);
    /// LORegion control.
    pub const LORC_EL1: SysReg = SysReg::new(3, 0, 10, 4, 3);
}

/// MPIDR_EL1 bit 31 is RES1.
pub const MPIDR_RES1: u64 = 1 << 31;

/// Which register of the emulated physical timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerReg {
    /// CNTP_CTL_EL0.
    Ctl,
    /// CNTP_CVAL_EL0.
    Cval,
    /// CNTP_TVAL_EL0.
    Tval,
}

/// What is done about a trapped register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Reads as zero, ignores writes.
    RazWi,
    /// OSLAR_EL1: a write sets the OS lock to bit 0.
    OsLock,
    /// OSLSR_EL1: reads the OS lock.
    OsLockStatus,
    /// A register that remembers what was written and does nothing: a slot of [`Shadow`].
    Shadow(u8),
    /// CNTPCT_EL0 and PMCCNTR_EL0 in time units: reads the physical counter; the flag says whether writes are ignored.
    PhysicalCounter {
        /// Ignore writes instead of making them UNDEFINED.
        writable: bool,
    },
    /// CNTVCT_EL0: reads the virtual counter.
    VirtualCounter,
    /// The physical timer.
    PhysicalTimer(TimerReg),
    /// The CPU interface of the GIC.
    Gic,
    /// A cache maintenance instruction: nothing to do, caches are coherent.
    CacheMaintenance,
    /// UNDEFINED.
    Undefined,
}

/// Slot of MDSCR_EL1 in [`Shadow`].
const SLOT_MDSCR: u8 = 64;
/// Slot of PMCCFILTR_EL0 in [`Shadow`].
const SLOT_PMCCFILTR: u8 = 65;
/// How many slots there are: 16 each of DBGBVR, DBGBCR, DBGWVR, DBGWCR, and the two above.
const SLOTS: usize = 66;

/// Registers that have a rule of their own; [`rule`] has the ranges.
const TABLE: &[(SysReg, Rule)] = &[
    (names::OSLAR_EL1, Rule::OsLock),
    (names::OSLSR_EL1, Rule::OsLockStatus),
    (names::MDSCR_EL1, Rule::Shadow(SLOT_MDSCR)),
    (names::ACTLR_EL1, Rule::RazWi),
    (names::CNTPCT_EL0, Rule::PhysicalCounter { writable: false }),
    (names::CNTPCTSS_EL0, Rule::PhysicalCounter { writable: false }),
    (names::CNTVCT_EL0, Rule::VirtualCounter),
    (names::CNTVCTSS_EL0, Rule::VirtualCounter),
    (names::CNTP_CTL_EL0, Rule::PhysicalTimer(TimerReg::Ctl)),
    (names::CNTP_CVAL_EL0, Rule::PhysicalTimer(TimerReg::Cval)),
    (names::CNTP_TVAL_EL0, Rule::PhysicalTimer(TimerReg::Tval)),
    (names::PMCCNTR_EL0, Rule::PhysicalCounter { writable: true }),
    (names::PMCCFILTR_EL0, Rule::Shadow(SLOT_PMCCFILTR)),
];

/// What is done about an access to `reg`.
pub fn rule(reg: SysReg) -> Rule {
    if let Some((_, rule)) = TABLE.iter().find(|(r, _)| *r == reg) {
        return *rule;
    }
    let Fields { op0, op1, crn, crm, op2 } = Fields::of(reg);
    match (op0, op1, crn, crm, op2) {
        // Cache maintenance by set and way or by address; not AT (CRm 8 and 9).
        (1, 0 | 3, 7, 1 | 4..=6 | 10..=15, _) => Rule::CacheMaintenance,
        // DBGBVRn, DBGBCRn, DBGWVRn, DBGWCRn.
        (2, 0, 0, n, 4..=7) => Rule::Shadow(n * 4 + (op2 - 4)),
        (2, ..) => Rule::RazWi,
        // The ID space.
        (3, 0, 0, 1..=7, _) => Rule::RazWi,
        // ICC_PMR, then ICC_IAR0 to ICC_IGRPEN1.
        (3, 0, 4, 6, 0) | (3, 0, 12, 8 | 9 | 11 | 12, _) => Rule::Gic,
        // LORSA, LOREA, LORN, LORC, LORID.
        (3, 0, 10, 4, 0..=3 | 7) => Rule::RazWi,
        // PMINTENSET, PMINTENCLR; the PMU with no event counters (PMCR.N is 0).
        (3, 0, 9, 14, 1 | 2) | (3, 3, 9, 12..=14, _) | (3, 3, 14, 8..=15, _) => Rule::RazWi,
        _ => Rule::Undefined,
    }
}

/// The five fields of an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    /// Bits 15:14.
    pub op0: u8,
    /// Bits 13:11.
    pub op1: u8,
    /// Bits 10:7.
    pub crn: u8,
    /// Bits 6:3.
    pub crm: u8,
    /// Bits 2:0.
    pub op2: u8,
}

impl Fields {
    /// The fields of `reg`.
    pub fn of(reg: SysReg) -> Self {
        Fields {
            op0: (reg.0 >> 14) as u8 & 3,
            op1: (reg.0 >> 11) as u8 & 7,
            crn: (reg.0 >> 7) as u8 & 15,
            crm: (reg.0 >> 3) as u8 & 15,
            op2: reg.0 as u8 & 7,
        }
    }
}

impl std::fmt::Display for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "S{}_{}_C{}_C{}_{}", self.op0, self.op1, self.crn, self.crm, self.op2)
    }
}

/// OSLSR_EL1.OSLM bit 3: the OS lock is implemented.
const OSLSR_OSLM: u64 = 1 << 3;

/// Registers without effect that a guest may write and read back: one CPU's.
#[derive(Debug, Clone)]
pub struct Shadow {
    values: [u64; SLOTS],
    os_lock: bool,
}

impl Default for Shadow {
    fn default() -> Self {
        // OSLSR_EL1.OSLK resets to 1.
        Shadow { values: [0; SLOTS], os_lock: true }
    }
}

impl Shadow {
    /// Reads a slot.
    pub fn get(&self, slot: u8) -> u64 {
        self.values.get(usize::from(slot)).copied().unwrap_or(0)
    }

    /// Writes a slot.
    pub fn set(&mut self, slot: u8, value: u64) {
        if let Some(entry) = self.values.get_mut(usize::from(slot)) {
            *entry = value;
        }
    }

    /// OSLSR_EL1.
    pub fn os_lock_status(&self) -> u64 {
        OSLSR_OSLM | u64::from(self.os_lock) << 1
    }

    /// A write to OSLAR_EL1.
    pub fn set_os_lock(&mut self, oslar: u64) {
        self.os_lock = oslar & 1 == 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_match_the_framework_numbers() {
        assert_eq!(names::MPIDR_EL1.0, 0xc005);
        assert_eq!(names::SCTLR_EL1.0, 0xc080);
        assert_eq!(names::CNTV_CTL_EL0.0, 0xdf19);
        assert_eq!(names::CNTV_CVAL_EL0.0, 0xdf1a);
        assert_eq!(names::SP_EL0.0, 0xc208);
        assert_eq!(names::SP_EL1.0, 0xe208);
    }

    #[test]
    fn fields_take_an_encoding_apart() {
        let fields = Fields::of(SysReg::new(3, 3, 14, 2, 1));
        assert_eq!(fields, Fields { op0: 3, op1: 3, crn: 14, crm: 2, op2: 1 });
        assert_eq!(fields.to_string(), "S3_3_C14_C2_1");
    }

    #[test]
    fn os_lock_status_reads_back_what_was_written() {
        let mut shadow = Shadow::default();
        assert_eq!(shadow.os_lock_status(), 0b1010);
        shadow.set_os_lock(0);
        assert_eq!(shadow.os_lock_status(), 0b1000);
    }

    #[test]
    fn breakpoint_registers_have_distinct_slots() {
        let mut slots: Vec<_> = (0..16)
            .flat_map(|n| (4..8).map(move |op2| rule(SysReg::new(2, 0, 0, n, op2))))
            .filter_map(|r| if let Rule::Shadow(slot) = r { Some(slot) } else { None })
            .collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 64);
    }

    #[test]
    fn a_shadow_slot_remembers_its_value() {
        let mut shadow = Shadow::default();
        shadow.set(17, 0x1234);
        assert_eq!(shadow.get(17), 0x1234);
        assert_eq!(shadow.get(18), 0);
    }

    #[test]
    fn debug_space_is_benign() {
        assert_eq!(rule(SysReg::new(2, 0, 1, 3, 4)), Rule::RazWi); // OSDLR_EL1
        assert_eq!(rule(SysReg::new(2, 0, 0, 2, 0)), Rule::RazWi); // MDCCINT_EL1
        assert_eq!(rule(SysReg::new(2, 0, 7, 14, 6)), Rule::RazWi); // DBGAUTHSTATUS_EL1
    }

    #[test]
    fn mdscr_is_a_shadow() {
        assert!(matches!(rule(names::MDSCR_EL1), Rule::Shadow(_)));
    }

    #[test]
    fn id_space_is_benign() {
        assert_eq!(rule(SysReg::new(3, 0, 0, 4, 7)), Rule::RazWi);
        assert_eq!(rule(SysReg::new(3, 0, 0, 1, 0)), Rule::RazWi);
    }

    #[test]
    fn pmu_is_benign() {
        assert_eq!(rule(names::PMCR_EL0), Rule::RazWi);
        assert_eq!(rule(SysReg::new(3, 3, 9, 14, 0)), Rule::RazWi); // PMUSERENR_EL0
        assert_eq!(rule(SysReg::new(3, 0, 9, 14, 1)), Rule::RazWi); // PMINTENSET_EL1
        assert_eq!(rule(SysReg::new(3, 3, 14, 8, 3)), Rule::RazWi); // PMEVCNTR3_EL0
        assert_eq!(rule(names::PMCCNTR_EL0), Rule::PhysicalCounter { writable: true });
        assert!(matches!(rule(names::PMCCFILTR_EL0), Rule::Shadow(_)));
    }

    #[test]
    fn lor_is_benign() {
        assert_eq!(rule(names::LORC_EL1), Rule::RazWi);
        assert_eq!(rule(SysReg::new(3, 0, 10, 4, 7)), Rule::RazWi);
    }

    #[test]
    fn cpu_interface_registers_go_to_the_gic() {
        for reg in [
            SysReg::new(3, 0, 4, 6, 0),   // PMR
            SysReg::new(3, 0, 12, 8, 0),  // IAR0
            SysReg::new(3, 0, 12, 9, 0),  // AP1R0
            SysReg::new(3, 0, 12, 11, 5), // SGI1R
            SysReg::new(3, 0, 12, 12, 7), // IGRPEN1
        ] {
            assert_eq!(rule(reg), Rule::Gic, "{}", Fields::of(reg));
        }
    }

    #[test]
    fn vbar_is_not_taken_for_a_gic_register() {
        assert_eq!(rule(names::VBAR_EL1), Rule::Undefined);
    }

    #[test]
    fn set_way_maintenance_is_a_no_op() {
        assert_eq!(rule(SysReg::new(1, 0, 7, 14, 2)), Rule::CacheMaintenance); // DC CISW
        assert_eq!(rule(SysReg::new(1, 0, 7, 6, 2)), Rule::CacheMaintenance); // DC ISW
    }

    #[test]
    fn address_translation_instructions_are_not_cache_maintenance() {
        assert_eq!(rule(SysReg::new(1, 0, 7, 8, 0)), Rule::Undefined);
    }

    #[test]
    fn an_unlisted_register_is_undefined() {
        assert_eq!(rule(SysReg::new(3, 7, 15, 2, 1)), Rule::Undefined);
        assert_eq!(rule(SysReg::new(3, 4, 14, 1, 0)), Rule::Undefined); // CNTHCTL_EL2
    }
}
