//! The in-kernel GICv3 as KVM's device attributes address it, and what puts it back into its reset state: KVM has no call
//! for that (Linux Documentation/virt/kvm/devices/arm-vgic-v3.rst). It touches no device.

pub mod v2;

use crate::aarch64::layout::{V2M_SPI, V2M_SPI_COUNT};
use crate::aarch64::raw::SysReg;

/// How many interrupts the GIC has, the 32 private ones included: a multiple of 32, from 64 to 1024.
pub const IRQS: u32 = (V2M_SPI.intid() + V2M_SPI_COUNT).next_multiple_of(32);

/// Which registers an attribute is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 32 bits each.
    Distributor,
    /// KVM_DEV_ARM_VGIC_GRP_REDIST_REGS of one CPU, 32 bits each.
    Redistributor,
    /// KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS of one CPU, 64 bits each.
    CpuInterface,
    /// KVM_DEV_ARM_VGIC_GRP_CPU_REGS of one CPU's GICv2 interface, 32 bits each.
    V2CpuInterface,
}

/// One register written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Which group it is in.
    pub group: Group,
    /// The attribute: which CPU, which register.
    pub attr: u64,
    /// The value.
    pub value: u64,
}

/// Position of the CPU's affinity in an attribute.
const MPIDR_SHIFT: u32 = 32;

/// Distributor registers (GICv3 spec 12.9).
const GICD_CTLR: u64 = 0x0;
const IGROUPR: u64 = 0x80;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xC00;
const IROUTER: u64 = 0x6000;
/// Offset of the redistributor's SGI_base frame (GICv3 spec 12.10), whose registers lie as the distributor's do.
const SGI_BASE: u64 = 0x1_0000;

/// CPU interface registers (GICv3 spec 12.2).
const ICC_PMR_EL1: SysReg = SysReg::new(3, 0, 4, 6, 0);
const ICC_BPR0_EL1: SysReg = SysReg::new(3, 0, 12, 8, 3);
const ICC_BPR1_EL1: SysReg = SysReg::new(3, 0, 12, 12, 3);
/// See [`cpu_interface_reset`].
pub const ICC_CTLR_EL1: SysReg = SysReg::new(3, 0, 12, 12, 4);
const ICC_IGRPEN0_EL1: SysReg = SysReg::new(3, 0, 12, 12, 6);
const ICC_IGRPEN1_EL1: SysReg = SysReg::new(3, 0, 12, 12, 7);
/// ICC_CTLR_EL1.CBPR and EOImode: all of the register that a guest can change.
const CTLR_WRITABLE: u64 = 0b11;

/// The attribute of distributor register `offset`.
pub const fn distributor(offset: u64) -> u64 {
    offset
}

/// The attribute of register `offset` of the redistributor of the CPU with this affinity.
pub const fn redistributor(mpidr: u64, offset: u64) -> u64 {
    mpidr << MPIDR_SHIFT | offset
}

/// The attribute of system register `reg` of the CPU with this affinity.
pub const fn cpu_interface(mpidr: u64, reg: SysReg) -> u64 {
    mpidr << MPIDR_SHIFT | reg.0 as u64
}

/// The distributor's IGROUPRs for SPIs: their reset value is the kernel's choice, so it must be read before the guest runs.
pub fn spi_groups() -> impl Iterator<Item = u64> {
    (1..u64::from(IRQS / 32)).map(|word| distributor(IGROUPR + 4 * word))
}

/// The redistributor's IGROUPR0; see [`spi_groups`].
pub const fn private_groups(mpidr: u64) -> u64 {
    redistributor(mpidr, SGI_BASE + IGROUPR)
}

/// Makes every SPI level-triggered: the reset state of this machine's GIC, whereas KVM's is edge.
pub fn triggers() -> impl Iterator<Item = Write> {
    let words = 2..u64::from(IRQS / 16);
    words.map(|word| Write { group: Group::Distributor, attr: distributor(ICFGR + 4 * word), value: 0 })
}

/// What resets the distributor, but for the groups. Forwarding is off before anything else changes.
pub fn distributor_reset() -> Vec<Write> {
    let write =
        |offset: u64, value: u64| Write { group: Group::Distributor, attr: distributor(offset), value };
    let words = 1..u64::from(IRQS / 32);
    let mut writes = vec![write(GICD_CTLR, 0)];
    for word in words.clone() {
        writes.push(write(ICENABLER + 4 * word, u32::MAX.into()));
        // To user space these are the pending latches themselves, not a set of bits to set.
        writes.push(write(ISPENDR + 4 * word, 0));
        writes.push(write(ICACTIVER + 4 * word, u32::MAX.into()));
        writes.extend((0..8).map(|quarter| write(IPRIORITYR + 32 * word + 4 * quarter, 0)));
    }
    writes.extend(triggers());
    for intid in 32..u64::from(IRQS) {
        writes.push(write(IROUTER + 8 * intid, 0));
        writes.push(write(IROUTER + 8 * intid + 4, 0));
    }
    writes
}

/// What resets a redistributor, but for the groups. The triggers of private interrupts are fixed.
pub fn redistributor_reset(mpidr: u64) -> Vec<Write> {
    let write = |offset: u64, value: u64| Write {
        group: Group::Redistributor,
        attr: redistributor(mpidr, SGI_BASE + offset),
        value,
    };
    let mut writes =
        vec![write(ICENABLER, u32::MAX.into()), write(ISPENDR, 0), write(ICACTIVER, u32::MAX.into())];
    writes.extend((0..8).map(|quarter| write(IPRIORITYR + 4 * quarter, 0)));
    writes
}

/// What resets a CPU interface whose ICC_CTLR_EL1 reads `ctlr`: the kernel insists on its read-only fields.
pub fn cpu_interface_reset(mpidr: u64, ctlr: u64) -> Vec<Write> {
    let write = |reg: SysReg, value: u64| Write {
        group: Group::CpuInterface,
        attr: cpu_interface(mpidr, reg),
        value,
    };
    let mut writes = vec![
        write(ICC_IGRPEN0_EL1, 0),
        write(ICC_IGRPEN1_EL1, 0),
        write(ICC_CTLR_EL1, ctlr & !CTLR_WRITABLE),
        write(ICC_PMR_EL1, 0),
        write(ICC_BPR0_EL1, 0),
        write(ICC_BPR1_EL1, 0),
    ];
    for n in 0..active_priority_registers(ctlr) {
        // ICC_AP0R<n>_EL1 and ICC_AP1R<n>_EL1.
        writes.push(write(SysReg::new(3, 0, 12, 8, 4 | n), 0));
        writes.push(write(SysReg::new(3, 0, 12, 9, n), 0));
    }
    writes
}

/// How many ICC_AP0Rn_EL1 there are: one for each 32 preemption levels (ICC_CTLR_EL1.PRIbits, one less than the bits).
fn active_priority_registers(ctlr: u64) -> u8 {
    match (ctlr >> 8 & 7) + 1 {
        7.. => 4,
        6 => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interrupts_are_a_number_that_kvm_takes_and_cover_every_msi() {
        assert!(IRQS.is_multiple_of(32) && (64..=1024).contains(&IRQS));
        assert!(V2M_SPI.intid() + V2M_SPI_COUNT <= IRQS);
    }

    #[test]
    fn an_attribute_carries_the_affinity_above_the_register() {
        assert_eq!(redistributor(3, 0x1_0080), 0x3_0001_0080);
        assert_eq!(cpu_interface(1, ICC_PMR_EL1), 0x1_0000_c230);
    }

    #[test]
    fn the_distributor_stops_forwarding_before_it_changes() {
        assert_eq!(distributor_reset()[0], Write { group: Group::Distributor, attr: 0, value: 0 });
    }

    #[test]
    fn the_distributor_reset_leaves_private_interrupts_alone() {
        let banks = [ICENABLER, ISPENDR, ICACTIVER];
        assert!(distributor_reset().iter().all(|write| !banks.contains(&write.attr)));
    }

    #[test]
    fn every_spi_is_routed_to_the_boot_cpu() {
        let last = IROUTER + 8 * u64::from(IRQS - 1);
        let writes = distributor_reset();
        let routes = writes.iter().filter(|write| write.attr >= IROUTER);
        assert_eq!(routes.clone().count(), 2 * (IRQS as usize - 32));
        assert!(routes.clone().all(|write| write.value == 0));
        assert!(routes.clone().any(|write| write.attr == last + 4));
    }

    #[test]
    fn the_triggers_of_private_interrupts_are_left_alone() {
        let attrs: Vec<u64> = triggers().map(|write| write.attr).collect();
        assert_eq!((attrs[0], attrs.len()), (ICFGR + 8, IRQS as usize / 16 - 2));
    }

    #[test]
    fn a_cpu_interface_keeps_the_kernels_read_only_fields() {
        let writes = cpu_interface_reset(0, 0x403);
        let ctlr = writes.iter().find(|write| write.attr == u64::from(ICC_CTLR_EL1.0)).unwrap();
        assert_eq!(ctlr.value, 0x400);
    }

    #[test]
    fn more_priority_bits_have_more_active_priority_registers() {
        assert_eq!(active_priority_registers(4 << 8), 1);
        assert_eq!(active_priority_registers(5 << 8), 2);
        assert_eq!(active_priority_registers(6 << 8), 4);
    }
}
