//! Numbers of registers as KVM_GET_ONE_REG and KVM_SET_ONE_REG take them (Linux Documentation/virt/kvm/api.rst 4.68).
//! It reads no register.

use crate::aarch64::raw::{Reg, SysReg};
use crate::aarch64::sysreg::names;

/// KVM_REG_ARM64.
const ARM64: u64 = 0x6 << 60;
/// KVM_REG_SIZE_U32, U64 and U128.
const SIZE_U32: u64 = 2 << 52;
const SIZE_U64: u64 = 3 << 52;
const SIZE_U128: u64 = 4 << 52;
/// KVM_REG_ARM_CORE: what follows is an offset into `struct kvm_regs` in units of 4 bytes.
const CORE: u64 = 0x10 << 16;
/// KVM_REG_ARM64_SYSREG: what follows is the register's encoding.
const SYSREG: u64 = 0x13 << 16;

/// Offsets into `struct kvm_regs` (uapi asm/kvm.h), in bytes.
mod offset {
    pub const REGS: u64 = 0;
    pub const SP: u64 = 31 * 8;
    pub const PC: u64 = 32 * 8;
    pub const PSTATE: u64 = 33 * 8;
    pub const SP_EL1: u64 = 34 * 8;
    pub const ELR_EL1: u64 = 35 * 8;
    pub const SPSR_EL1: u64 = 36 * 8;
    /// Behind five SPSRs, aligned to 16.
    pub const VREGS: u64 = 42 * 8;
    pub const FPSR: u64 = VREGS + 32 * 16;
    pub const FPCR: u64 = FPSR + 4;
}

const fn core(size: u64, offset: u64) -> u64 {
    ARM64 | size | CORE | (offset / 4)
}

/// The number of a general register.
pub const fn general(reg: Reg) -> u64 {
    match reg {
        Reg::X(n) => core(SIZE_U64, offset::REGS + 8 * (if n > 30 { 30 } else { n }) as u64),
        Reg::Pc => core(SIZE_U64, offset::PC),
        Reg::Cpsr => core(SIZE_U64, offset::PSTATE),
        Reg::Fpsr => core(SIZE_U32, offset::FPSR),
        Reg::Fpcr => core(SIZE_U32, offset::FPCR),
    }
}

/// The number of Q`n`.
pub const fn simd(n: u8) -> u64 {
    core(SIZE_U128, offset::VREGS + 16 * (n & 31) as u64)
}

/// The number of a system register. KVM keeps four of them in `struct kvm_regs`; and **it names CNTV_CVAL_EL0 and
/// CNTVCT_EL0 by each other's encoding** (uapi asm/kvm.h, KVM_REG_ARM_TIMER_CVAL).
pub fn system(reg: SysReg) -> u64 {
    let encoding = match reg {
        names::SP_EL0 => return core(SIZE_U64, offset::SP),
        names::SP_EL1 => return core(SIZE_U64, offset::SP_EL1),
        names::ELR_EL1 => return core(SIZE_U64, offset::ELR_EL1),
        names::SPSR_EL1 => return core(SIZE_U64, offset::SPSR_EL1),
        names::CNTV_CVAL_EL0 => names::CNTVCT_EL0.0,
        names::CNTVCT_EL0 => names::CNTV_CVAL_EL0.0,
        other => other.0,
    };
    ARM64 | SIZE_U64 | SYSREG | u64::from(encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_registers_have_the_documented_numbers() {
        assert_eq!(general(Reg::X(0)), 0x6030_0000_0010_0000);
        assert_eq!(general(Reg::X(30)), 0x6030_0000_0010_003c);
        assert_eq!(general(Reg::Pc), 0x6030_0000_0010_0040);
        assert_eq!(general(Reg::Cpsr), 0x6030_0000_0010_0042);
    }

    #[test]
    fn floating_point_registers_have_the_documented_numbers() {
        assert_eq!(simd(0), 0x6040_0000_0010_0054);
        assert_eq!(simd(31), 0x6040_0000_0010_00d0);
        assert_eq!(general(Reg::Fpsr), 0x6020_0000_0010_00d4);
        assert_eq!(general(Reg::Fpcr), 0x6020_0000_0010_00d5);
    }

    #[test]
    fn stack_pointers_and_el1_return_state_are_core_registers() {
        assert_eq!(system(names::SP_EL0), 0x6030_0000_0010_003e);
        assert_eq!(system(names::SP_EL1), 0x6030_0000_0010_0044);
        assert_eq!(system(names::ELR_EL1), 0x6030_0000_0010_0046);
        assert_eq!(system(names::SPSR_EL1), 0x6030_0000_0010_0048);
    }

    #[test]
    fn system_registers_go_by_their_encoding() {
        // MPIDR_EL1, as Linux tests name it: ARM64_SYS_REG(3, 0, 0, 0, 5).
        assert_eq!(system(names::MPIDR_EL1), 0x6030_0000_0013_c005);
    }

    #[test]
    fn the_timer_registers_that_kvm_swapped_are_swapped_back() {
        assert_eq!(system(names::CNTV_CVAL_EL0), 0x6030_0000_0013_df02);
        assert_eq!(system(names::CNTVCT_EL0), 0x6030_0000_0013_df1a);
    }
}
