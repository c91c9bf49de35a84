//! The in-kernel GICv2, for hosts that have no other (Linux Documentation/virt/kvm/devices/arm-vgic.rst): what puts it back
//! into its reset state. It touches no device.

use super::{GICD_CTLR, Group, ICACTIVER, ICENABLER, IPRIORITYR, IRQS, Write, triggers};

/// Clears pending latches: unlike a GICv3's, this kernel interface has set and clear registers as the hardware does.
const ICPENDR: u64 = 0x280;
/// Targets, one byte an interrupt (GICv2 spec 4.3.12).
const ITARGETSR: u64 = 0x800;
/// CPU interface registers (GICv2 spec 4.4): control, priority mask, binary points, active priorities.
const GICC: [u64; 5] = [0x00, 0x04, 0x08, 0x1C, 0xD0];
/// Position of the CPU in an attribute.
const CPU_SHIFT: u32 = 32;

/// What resets the GIC of a machine with `cpus` CPUs: the distributor, then each CPU's private interrupts and interface.
pub fn reset(cpus: u32) -> Vec<Write> {
    let mut writes = vec![Write { group: Group::Distributor, attr: GICD_CTLR, value: 0 }];
    for word in 1..u64::from(IRQS / 32) {
        bank(0, word, &mut writes);
        writes.extend((0..8).map(|quarter| Write {
            group: Group::Distributor,
            attr: ITARGETSR + 32 * word + 4 * quarter,
            value: 0,
        }));
    }
    writes.extend(triggers());
    for cpu in 0..u64::from(cpus) {
        bank(cpu, 0, &mut writes);
        writes.extend(GICC.map(|offset| Write {
            group: Group::V2CpuInterface,
            attr: cpu << CPU_SHIFT | offset,
            value: 0,
        }));
    }
    writes
}

/// What resets the 32 interrupts of `word` as `cpu` sees them.
fn bank(cpu: u64, word: u64, writes: &mut Vec<Write>) {
    let write = |offset: u64, value: u32| Write {
        group: Group::Distributor,
        attr: cpu << CPU_SHIFT | offset,
        value: value.into(),
    };
    writes.extend([ICENABLER, ICPENDR, ICACTIVER].map(|offset| write(offset + 4 * word, u32::MAX)));
    writes.extend((0..8).map(|quarter| write(IPRIORITYR + 32 * word + 4 * quarter, 0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_interrupts_are_reset_on_every_cpu() {
        let writes = reset(2);
        for cpu in 0..2 {
            let attr = cpu << CPU_SHIFT | ICPENDR;
            assert!(writes.contains(&Write { group: Group::Distributor, attr, value: u32::MAX.into() }));
        }
    }

    #[test]
    fn every_cpu_interface_is_disabled() {
        let disabled = reset(3).into_iter().filter(|write| {
            write.group == Group::V2CpuInterface && write.attr as u32 == 0 && write.value == 0
        });
        assert_eq!(disabled.count(), 3);
    }
}
