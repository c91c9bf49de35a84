//! Exceptions that the hypervisor raises in the guest's EL1: what the CPU's own exception entry would have done
//! (Arm ARM D1.3, AArch64.TakeException). It decides nothing; callers say which exception.

use super::esr::{self, ec};
use super::raw::{RawVcpu, Reg};
use super::sysreg::names;
use crate::hypervisor::HypervisorError;

/// PSTATE bits in SPSR format (Arm ARM C5.2.19).
pub mod pstate {
    /// M\[3:0\]: exception level and stack pointer.
    pub const MODE: u64 = 0xf;
    /// M\[4\]: AArch32.
    pub const AARCH32: u64 = 1 << 4;
    /// Mode EL0.
    pub const EL0T: u64 = 0b0000;
    /// Mode EL1 with SP_EL0.
    pub const EL1T: u64 = 0b0100;
    /// Mode EL1 with SP_EL1.
    pub const EL1H: u64 = 0b0101;
    /// D, A, I and F masked.
    pub const DAIF: u64 = 0xf << 6;
    /// Speculative store bypass safe.
    pub const SSBS: u64 = 1 << 12;
    /// Privileged access never.
    pub const PAN: u64 = 1 << 22;
    /// Data independent timing.
    pub const DIT: u64 = 1 << 24;
    /// The condition flags.
    pub const NZCV: u64 = 0xf << 28;
    /// EL1h with everything masked: the reset state and that of every CPU that PSCI starts.
    pub const RESET: u64 = DAIF | EL1H;
}

/// SCTLR_EL1.SPAN: an exception does not set PSTATE.PAN.
const SCTLR_SPAN: u64 = 1 << 23;
/// SCTLR_EL1.DSSBS: the value of PSTATE.SSBS on exception entry.
const SCTLR_DSSBS: u64 = 1 << 44;

/// An exception to be taken to EL1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exception {
    /// The instruction at the PC is UNDEFINED.
    Undefined,
    /// An instruction fetch failed.
    InstructionAbort {
        /// Virtual address.
        far: u64,
        /// Fault status code.
        ifsc: u8,
    },
    /// A data access failed.
    DataAbort {
        /// Virtual address.
        far: u64,
        /// It was a write.
        write: bool,
        /// Fault status code.
        dfsc: u8,
    },
    /// A debug event that was routed to EL2.
    Debug(esr::DebugEvent, u64),
}

/// Makes the guest take `exception` at its current PC. Returns the address of the vector it continues at.
pub fn inject<R: RawVcpu + ?Sized>(raw: &mut R, exception: Exception) -> Result<u64, HypervisorError> {
    let pc = raw.reg(Reg::Pc)?;
    let old = raw.reg(Reg::Cpsr)?;
    let sctlr = raw.sys_reg(names::SCTLR_EL1)?;
    let vector = raw.sys_reg(names::VBAR_EL1)?.wrapping_add(vector_offset(old));

    let (syndrome, far) = syndrome(exception, from_el0(old));
    raw.set_sys_reg(names::ELR_EL1, pc)?;
    raw.set_sys_reg(names::SPSR_EL1, old)?;
    raw.set_sys_reg(names::ESR_EL1, syndrome)?;
    if let Some(far) = far {
        raw.set_sys_reg(names::FAR_EL1, far)?;
    }
    raw.set_reg(Reg::Cpsr, entry_pstate(old, sctlr))?;
    raw.set_reg(Reg::Pc, vector)?;
    Ok(vector)
}

fn from_el0(pstate: u64) -> bool {
    pstate & pstate::AARCH32 != 0 || pstate & pstate::MODE == pstate::EL0T
}

/// Offset of a synchronous exception's vector (Arm ARM, table D1-7).
fn vector_offset(pstate: u64) -> u64 {
    match pstate & (pstate::AARCH32 | pstate::MODE) {
        pstate::EL1T => 0x000,
        pstate::EL0T => 0x400,
        mode if mode & pstate::AARCH32 != 0 => 0x600,
        _ => 0x200,
    }
}

/// PSTATE after exception entry: flags, PAN and DIT survive, everything is masked, the rest is cleared.
fn entry_pstate(old: u64, sctlr: u64) -> u64 {
    let mut new = old & (pstate::NZCV | pstate::PAN | pstate::DIT) | pstate::RESET;
    if sctlr & SCTLR_SPAN == 0 {
        new |= pstate::PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        new |= pstate::SSBS;
    }
    new
}

/// ESR_EL1 and, if the exception has one, FAR_EL1.
fn syndrome(exception: Exception, from_el0: bool) -> (u64, Option<u64>) {
    // The class for "same exception level" is one more than that for "lower", but for BRK.
    let class = |lower: u8| lower + u8::from(!from_el0);
    let (class, iss, far) = match exception {
        Exception::Undefined => (ec::UNKNOWN, 0, None),
        Exception::InstructionAbort { far, ifsc } => {
            (class(ec::INSTRUCTION_ABORT_LOWER), u64::from(ifsc), Some(far))
        }
        Exception::DataAbort { far, write, dfsc } => {
            (class(ec::DATA_ABORT_LOWER), u64::from(dfsc) | u64::from(write) << 6, Some(far))
        }
        Exception::Debug(event, far) if event.class == ec::WATCHPOINT_LOWER => {
            (class(event.class), u64::from(event.iss), Some(far))
        }
        Exception::Debug(event, _) if event.class == ec::BRK64 => (event.class, u64::from(event.iss), None),
        Exception::Debug(event, _) => (class(event.class), u64::from(event.iss), None),
    };
    (u64::from(class) << esr::EC_SHIFT | esr::IL | iss, far)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::trap_vcpu::scripted::Scripted;

    const VBAR: u64 = 0x4010_0000;
    const PC: u64 = 0x4008_1234;

    fn guest(mode: u64) -> Scripted {
        let mut raw = Scripted::new();
        raw.set_sys_reg(names::VBAR_EL1, VBAR).unwrap();
        raw.set_sys_reg(names::SCTLR_EL1, SCTLR_SPAN).unwrap();
        raw.set_reg(Reg::Pc, PC).unwrap();
        raw.set_reg(Reg::Cpsr, mode).unwrap();
        raw
    }

    fn sys(raw: &Scripted, reg: crate::aarch64::raw::SysReg) -> u64 {
        raw.sys_reg(reg).unwrap()
    }

    #[test]
    fn undefined_from_el1h_goes_to_0x200() {
        let mut raw = guest(pstate::EL1H);
        assert_eq!(inject(&mut raw, Exception::Undefined).unwrap(), VBAR + 0x200);
        assert_eq!(raw.reg(Reg::Pc).unwrap(), VBAR + 0x200);
        assert_eq!(sys(&raw, names::ESR_EL1), 0x0200_0000);
    }

    #[test]
    fn undefined_from_el1t_goes_to_0() {
        assert_eq!(inject(&mut guest(pstate::EL1T), Exception::Undefined).unwrap(), VBAR);
    }

    #[test]
    fn undefined_from_el0_goes_to_0x400() {
        assert_eq!(inject(&mut guest(pstate::EL0T), Exception::Undefined).unwrap(), VBAR + 0x400);
    }

    #[test]
    fn undefined_from_aarch32_goes_to_0x600() {
        assert_eq!(inject(&mut guest(pstate::AARCH32), Exception::Undefined).unwrap(), VBAR + 0x600);
    }

    #[test]
    fn link_and_saved_state_are_those_of_the_guest() {
        let old = pstate::NZCV | pstate::EL0T;
        let mut raw = guest(old);
        inject(&mut raw, Exception::Undefined).unwrap();
        assert_eq!(sys(&raw, names::ELR_EL1), PC);
        assert_eq!(sys(&raw, names::SPSR_EL1), old);
    }

    #[test]
    fn undefined_leaves_the_fault_address_alone() {
        let mut raw = guest(pstate::EL1H);
        raw.set_sys_reg(names::FAR_EL1, 0x77).unwrap();
        inject(&mut raw, Exception::Undefined).unwrap();
        assert_eq!(sys(&raw, names::FAR_EL1), 0x77);
    }

    #[test]
    fn entry_masks_interrupts_and_keeps_flags() {
        let mut raw = guest(1 << 30 | pstate::EL0T);
        inject(&mut raw, Exception::Undefined).unwrap();
        assert_eq!(raw.reg(Reg::Cpsr).unwrap(), 1 << 30 | 0x3c5);
    }

    #[test]
    fn entry_sets_pan_unless_span_forbids_it() {
        let mut raw = guest(pstate::EL1H);
        raw.set_sys_reg(names::SCTLR_EL1, 0).unwrap();
        inject(&mut raw, Exception::Undefined).unwrap();
        assert_eq!(raw.reg(Reg::Cpsr).unwrap(), pstate::PAN | 0x3c5);
    }

    #[test]
    fn entry_keeps_pan_that_was_set() {
        let mut raw = guest(pstate::PAN | pstate::EL1H);
        inject(&mut raw, Exception::Undefined).unwrap();
        assert_eq!(raw.reg(Reg::Cpsr).unwrap(), pstate::PAN | 0x3c5);
    }

    #[test]
    fn entry_clears_single_step_illegal_state_and_branch_type() {
        let mut raw = guest(1 << 21 | 1 << 20 | 0b11 << 10 | 1 << 23 | pstate::EL1H);
        inject(&mut raw, Exception::Undefined).unwrap();
        assert_eq!(raw.reg(Reg::Cpsr).unwrap(), 0x3c5);
    }

    #[test]
    fn external_abort_of_a_write_from_el1_has_class_25() {
        let mut raw = guest(pstate::EL1H);
        let far = 0xffff_8000_0000_1000;
        inject(&mut raw, Exception::DataAbort { far, write: true, dfsc: 0x10 }).unwrap();
        assert_eq!(sys(&raw, names::ESR_EL1), 0x25 << 26 | 1 << 25 | 1 << 6 | 0x10);
        assert_eq!(sys(&raw, names::FAR_EL1), far);
    }

    #[test]
    fn external_abort_from_el0_has_class_24() {
        let mut raw = guest(pstate::EL0T);
        inject(&mut raw, Exception::DataAbort { far: 8, write: false, dfsc: 0x10 }).unwrap();
        assert_eq!(sys(&raw, names::ESR_EL1), 0x24 << 26 | 1 << 25 | 0x10);
    }

    #[test]
    fn instruction_abort_class_depends_on_the_level_it_came_from() {
        let abort = Exception::InstructionAbort { far: PC, ifsc: 0x10 };
        let mut kernel = guest(pstate::EL1H);
        inject(&mut kernel, abort).unwrap();
        assert_eq!(sys(&kernel, names::ESR_EL1), 0x21 << 26 | 1 << 25 | 0x10);
        let mut user = guest(pstate::EL0T);
        inject(&mut user, abort).unwrap();
        assert_eq!(sys(&user, names::ESR_EL1), 0x20 << 26 | 1 << 25 | 0x10);
    }

    #[test]
    fn brk_has_the_same_class_at_every_level() {
        let event = esr::DebugEvent { class: ec::BRK64, iss: 7 };
        let mut raw = guest(pstate::EL1H);
        inject(&mut raw, Exception::Debug(event, 0)).unwrap();
        assert_eq!(sys(&raw, names::ESR_EL1), 0x3c << 26 | 1 << 25 | 7);
    }

    #[test]
    fn watchpoint_carries_its_address() {
        let event = esr::DebugEvent { class: ec::WATCHPOINT_LOWER, iss: 0x22 };
        let mut raw = guest(pstate::EL1H);
        inject(&mut raw, Exception::Debug(event, 0x1000)).unwrap();
        assert_eq!(sys(&raw, names::ESR_EL1), 0x35 << 26 | 1 << 25 | 0x22);
        assert_eq!(sys(&raw, names::FAR_EL1), 0x1000);
    }
}
