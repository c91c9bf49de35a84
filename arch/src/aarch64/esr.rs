//! ESR_EL2 decoded into typed traps: what each exit of a trap-level vCPU says (Arm ARM D24.2.40, ESR_EL2).
//! It only takes the register apart; what is done about a trap is `trap_vcpu`'s business.

use super::raw::SysReg;

/// Position of the exception class in an ESR (EC, bits 31:26).
pub const EC_SHIFT: u32 = 26;
/// Instruction length: set for a 32-bit instruction (IL, bit 25).
pub const IL: u64 = 1 << 25;

/// Exception classes, ESR_ELx.EC (Arm ARM, table of D24.2.40).
pub mod ec {
    /// Unknown reason, which is how an undefined instruction is reported.
    pub const UNKNOWN: u8 = 0x00;
    /// WFI, WFE, WFIT or WFET.
    pub const WFX: u8 = 0x01;
    /// Access to FP or SIMD registers.
    pub const FP_ACCESS: u8 = 0x07;
    /// SVC from AArch32.
    pub const SVC32: u8 = 0x11;
    /// SVC from AArch64.
    pub const SVC64: u8 = 0x15;
    /// HVC from AArch64.
    pub const HVC64: u8 = 0x16;
    /// SMC from AArch64.
    pub const SMC64: u8 = 0x17;
    /// MSR, MRS or a system instruction from AArch64.
    pub const SYSREG: u8 = 0x18;
    /// Access to SVE.
    pub const SVE: u8 = 0x19;
    /// Access to SME.
    pub const SME: u8 = 0x1d;
    /// Instruction abort from a lower exception level.
    pub const INSTRUCTION_ABORT_LOWER: u8 = 0x20;
    /// Instruction abort without a change of exception level.
    pub const INSTRUCTION_ABORT_SAME: u8 = 0x21;
    /// Data abort from a lower exception level.
    pub const DATA_ABORT_LOWER: u8 = 0x24;
    /// Data abort without a change of exception level.
    pub const DATA_ABORT_SAME: u8 = 0x25;
    /// Hardware breakpoint from a lower exception level.
    pub const BREAKPOINT_LOWER: u8 = 0x30;
    /// Software step from a lower exception level.
    pub const STEP_LOWER: u8 = 0x32;
    /// Watchpoint from a lower exception level.
    pub const WATCHPOINT_LOWER: u8 = 0x34;
    /// BRK from AArch64.
    pub const BRK64: u8 = 0x3c;
}

/// Fault status codes, ISS bits 5:0 of an abort (DFSC and IFSC).
pub mod fsc {
    /// Address size fault, level 0; the level is in bits 1:0.
    pub const ADDRESS_SIZE: u8 = 0x00;
    /// Translation fault, level 0; the level is in bits 1:0.
    pub const TRANSLATION: u8 = 0x04;
    /// Access flag fault, level 0; the level is in bits 1:0.
    pub const ACCESS_FLAG: u8 = 0x08;
    /// Permission fault, level 0; the level is in bits 1:0.
    pub const PERMISSION: u8 = 0x0c;
    /// Synchronous external abort, not on a translation table walk.
    pub const SYNC_EXTERNAL: u8 = 0x10;
    /// Synchronous external abort on a translation table walk, level 0; the level is in bits 1:0.
    pub const SYNC_EXTERNAL_WALK: u8 = 0x14;
}

/// What a trap is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// EC 0x00: an instruction that the CPU does not know.
    Unknown,
    /// EC 0x01: the guest wants to wait.
    Wfx(Wfx),
    /// EC 0x07, 0x19, 0x1d: an extension that is not there for the guest.
    Extension(Extension),
    /// EC 0x11, 0x15: SVC, which never reaches EL2 of an ordinary machine.
    Svc,
    /// EC 0x16: HVC with its immediate. The PC is already past it.
    Hvc(u16),
    /// EC 0x17: SMC with its immediate. The PC is still at it.
    Smc(u16),
    /// EC 0x18: MSR, MRS or SYS.
    SysReg(SysRegAccess),
    /// EC 0x20.
    InstructionAbort(InstructionAbort),
    /// EC 0x24.
    DataAbort(DataAbort),
    /// EC 0x30, 0x32, 0x34, 0x3c: only with debug exceptions routed to EL2.
    Debug(DebugEvent),
    /// Any other class, by number.
    Other(u8),
}

/// An extension whose instructions trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// FP and AdvSIMD (CPTR_EL2).
    Fp,
    /// Scalable vectors.
    Sve,
    /// Scalable matrices.
    Sme,
}

/// Which wait instruction trapped (ISS of EC 0x01).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wfx {
    /// Waits for an event instead of an interrupt (TI bit 0).
    pub event: bool,
    /// The register with the deadline, if it has one (TI bit 1; RN is meaningful if RV is set).
    pub deadline: Option<u8>,
}

/// A trapped system register access (ISS of EC 0x18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SysRegAccess {
    /// Which register, or which system instruction (op0 1).
    pub reg: SysReg,
    /// MRS (or SYSL) instead of MSR (or SYS).
    pub read: bool,
    /// The general register; 31 is XZR.
    pub rt: u8,
}

/// An instruction abort from the guest (ISS of EC 0x20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstructionAbort {
    /// FAR is not valid (FnV).
    pub far_not_valid: bool,
    /// It happened on a stage 1 table walk (S1PTW).
    pub s1ptw: bool,
    /// Fault status code (IFSC).
    pub ifsc: u8,
}

/// A data abort from the guest (ISS of EC 0x24).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataAbort {
    /// The access, if the syndrome describes it (ISV).
    pub access: Option<DataAccess>,
    /// FAR is not valid (FnV).
    pub far_not_valid: bool,
    /// External abort type (EA).
    pub external: bool,
    /// A cache maintenance or address translation instruction (CM).
    pub cache_maintenance: bool,
    /// It happened on a stage 1 table walk (S1PTW).
    pub s1ptw: bool,
    /// A write (WnR).
    pub write: bool,
    /// Fault status code (DFSC).
    pub dfsc: u8,
}

/// A single-register access as the syndrome of a data abort describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataAccess {
    /// Width in bytes: 1, 2, 4 or 8 (SAS).
    pub size: u8,
    /// Sign-extend what is read (SSE).
    pub sign_extend: bool,
    /// The general register; 31 is XZR (SRT).
    pub rt: u8,
    /// The register is 64 bits wide (SF).
    pub sixty_four: bool,
    /// Acquire or release semantics (AR).
    pub acquire_release: bool,
}

/// A debug event, with what must be repeated when it is handed to EL1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebugEvent {
    /// Its exception class: one of [`ec::BREAKPOINT_LOWER`], [`ec::STEP_LOWER`], [`ec::WATCHPOINT_LOWER`], [`ec::BRK64`].
    pub class: u8,
    /// Its ISS.
    pub iss: u32,
}

/// Which group of faults a fault status code belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing is mapped there, or it is beyond the output size.
    Translation,
    /// The access flag or a permission is missing.
    Permission,
    /// Anything else: external aborts, alignment, TLB conflicts.
    Other,
}

/// The group of the fault status code `fsc`.
pub fn fault_kind(fsc: u8) -> FaultKind {
    match fsc & 0x3c {
        fsc::ADDRESS_SIZE | fsc::TRANSLATION => FaultKind::Translation,
        fsc::ACCESS_FLAG | fsc::PERMISSION => FaultKind::Permission,
        _ => FaultKind::Other,
    }
}

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 == 1
}

fn field(value: u64, lsb: u32, width: u32) -> u8 {
    (value >> lsb & ((1 << width) - 1)) as u8
}

/// Takes an ESR_EL2 apart.
pub fn decode(esr: u64) -> Trap {
    let class = field(esr, EC_SHIFT, 6);
    match class {
        ec::UNKNOWN => Trap::Unknown,
        ec::WFX => Trap::Wfx(Wfx {
            event: bit(esr, 0),
            deadline: (bit(esr, 1) && bit(esr, 2)).then(|| field(esr, 5, 5)),
        }),
        ec::FP_ACCESS => Trap::Extension(Extension::Fp),
        ec::SVE => Trap::Extension(Extension::Sve),
        ec::SME => Trap::Extension(Extension::Sme),
        ec::SVC32 | ec::SVC64 => Trap::Svc,
        ec::HVC64 => Trap::Hvc(esr as u16),
        ec::SMC64 => Trap::Smc(esr as u16),
        ec::SYSREG => Trap::SysReg(decode_sysreg(esr)),
        ec::INSTRUCTION_ABORT_LOWER => Trap::InstructionAbort(InstructionAbort {
            far_not_valid: bit(esr, 10),
            s1ptw: bit(esr, 7),
            ifsc: field(esr, 0, 6),
        }),
        ec::DATA_ABORT_LOWER => Trap::DataAbort(decode_data_abort(esr)),
        ec::BREAKPOINT_LOWER | ec::STEP_LOWER | ec::WATCHPOINT_LOWER | ec::BRK64 => {
            Trap::Debug(DebugEvent { class, iss: (esr & 0x01ff_ffff) as u32 })
        }
        other => Trap::Other(other),
    }
}

fn decode_sysreg(esr: u64) -> SysRegAccess {
    SysRegAccess {
        reg: SysReg::new(
            field(esr, 20, 2),
            field(esr, 14, 3),
            field(esr, 10, 4),
            field(esr, 1, 4),
            field(esr, 17, 3),
        ),
        read: bit(esr, 0),
        rt: field(esr, 5, 5),
    }
}

fn decode_data_abort(esr: u64) -> DataAbort {
    DataAbort {
        access: bit(esr, 24).then(|| DataAccess {
            size: 1 << field(esr, 22, 2),
            sign_extend: bit(esr, 21),
            rt: field(esr, 16, 5),
            sixty_four: bit(esr, 15),
            acquire_release: bit(esr, 14),
        }),
        far_not_valid: bit(esr, 10),
        external: bit(esr, 9),
        cache_maintenance: bit(esr, 8),
        s1ptw: bit(esr, 7),
        write: bit(esr, 6),
        dfsc: field(esr, 0, 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn esr(class: u8, iss: u64) -> u64 {
        u64::from(class) << EC_SHIFT | IL | iss
    }

    #[test]
    fn unknown_reason_is_class_zero() {
        assert_eq!(decode(esr(0, 0)), Trap::Unknown);
    }

    #[test]
    fn wfi_has_no_event_and_no_deadline() {
        assert_eq!(decode(esr(1, 0)), Trap::Wfx(Wfx { event: false, deadline: None }));
    }

    #[test]
    fn wfe_waits_for_an_event() {
        assert_eq!(decode(esr(1, 1)), Trap::Wfx(Wfx { event: true, deadline: None }));
    }

    #[test]
    fn wfit_names_its_deadline_register() {
        assert_eq!(decode(esr(1, 5 << 5 | 1 << 2 | 2)), Trap::Wfx(Wfx { event: false, deadline: Some(5) }));
    }

    #[test]
    fn fp_sve_and_sme_are_extensions() {
        assert_eq!(decode(esr(0x07, 0)), Trap::Extension(Extension::Fp));
        assert_eq!(decode(esr(0x19, 0)), Trap::Extension(Extension::Sve));
        assert_eq!(decode(esr(0x1d, 0)), Trap::Extension(Extension::Sme));
    }

    #[test]
    fn svc_of_both_widths_is_recognised() {
        assert_eq!(decode(esr(0x11, 0)), Trap::Svc);
        assert_eq!(decode(esr(0x15, 0)), Trap::Svc);
    }

    #[test]
    fn hvc_and_smc_carry_their_immediate() {
        assert_eq!(decode(esr(0x16, 0x1234)), Trap::Hvc(0x1234));
        assert_eq!(decode(esr(0x17, 0xffff)), Trap::Smc(0xffff));
    }

    #[test]
    fn sysreg_trap_names_register_direction_and_rt() {
        // mrs x7, cntpct_el0: op0 3, op1 3, CRn 14, CRm 0, op2 1
        let iss = 3 << 20 | 1 << 17 | 3 << 14 | 14 << 10 | 7 << 5 | 1;
        assert_eq!(
            decode(esr(0x18, iss)),
            Trap::SysReg(SysRegAccess { reg: SysReg::new(3, 3, 14, 0, 1), read: true, rt: 7 })
        );
    }

    #[test]
    fn sysreg_write_keeps_crm() {
        // msr dbgbcr3_el1, xzr: op0 2, op1 0, CRn 0, CRm 3, op2 5
        let iss = 2 << 20 | 5 << 17 | 31 << 5 | 3 << 1;
        assert_eq!(
            decode(esr(0x18, iss)),
            Trap::SysReg(SysRegAccess { reg: SysReg::new(2, 0, 0, 3, 5), read: false, rt: 31 })
        );
    }

    #[test]
    fn data_abort_with_valid_syndrome_describes_the_access() {
        let iss = 1 << 24 | 1 << 22 | 1 << 21 | 9 << 16 | 1 << 15 | 1 << 6 | 0x07;
        let Trap::DataAbort(abort) = decode(esr(0x24, iss)) else { panic!("not a data abort") };
        assert_eq!(
            abort.access,
            Some(DataAccess { size: 2, sign_extend: true, rt: 9, sixty_four: true, acquire_release: false })
        );
        assert!(abort.write);
        assert_eq!(fault_kind(abort.dfsc), FaultKind::Translation);
    }

    #[test]
    fn data_abort_flags_are_each_at_their_bit() {
        let Trap::DataAbort(abort) = decode(esr(0x24, 1 << 10 | 1 << 9 | 1 << 8 | 1 << 7 | 0x10)) else {
            panic!("not a data abort")
        };
        assert_eq!(
            abort,
            DataAbort {
                access: None,
                far_not_valid: true,
                external: true,
                cache_maintenance: true,
                s1ptw: true,
                write: false,
                dfsc: 0x10
            }
        );
    }

    #[test]
    fn instruction_abort_reports_walk_and_status() {
        assert_eq!(
            decode(esr(0x20, 1 << 7 | 0x06)),
            Trap::InstructionAbort(InstructionAbort { far_not_valid: false, s1ptw: true, ifsc: 0x06 })
        );
    }

    #[test]
    fn debug_classes_keep_their_iss() {
        for class in [0x30, 0x32, 0x34, 0x3c] {
            assert_eq!(decode(esr(class, 0x22)), Trap::Debug(DebugEvent { class, iss: 0x22 }));
        }
    }

    #[test]
    fn an_unlisted_class_keeps_its_number() {
        assert_eq!(decode(esr(0x2f, 0)), Trap::Other(0x2f));
    }

    #[test]
    fn fault_kinds_follow_the_status_code_table() {
        assert_eq!(fault_kind(0x00), FaultKind::Translation);
        assert_eq!(fault_kind(0x05), FaultKind::Translation);
        assert_eq!(fault_kind(0x09), FaultKind::Permission);
        assert_eq!(fault_kind(0x0f), FaultKind::Permission);
        assert_eq!(fault_kind(0x10), FaultKind::Other);
        assert_eq!(fault_kind(0x21), FaultKind::Other);
    }
}
