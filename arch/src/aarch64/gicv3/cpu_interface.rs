//! The CPU interface: the ICC_* system registers (IHI 0069, 12.2), acknowledging, priority drop, deactivation and SGIs.
//! A PE has only its own; there is no memory-mapped interface.

use super::delivery::Model;
use super::registers::{ICC_CTLR_CBPR, ICC_CTLR_EOIMODE, ICC_CTLR_FIXED, ICC_SRE, INTID_SPURIOUS, Icc};
use super::state::{BPR0_MIN, BPR1_MIN, CpuInterface, INTID_LIMIT, PRIORITY_MASK};
use crate::aarch64::layout::mpidr;

impl CpuInterface {
    /// ICC_BPRn_EL1 (12.2): with CBPR, BPR1 reads as BPR0 + 1, saturated.
    fn binary_point(&self, group: usize) -> u8 {
        if group == 1 && self.common_bpr { (self.bpr[0] + 1).min(7) } else { self.bpr[group] }
    }

    fn set_binary_point(&mut self, group: usize, value: u64) {
        if group == 0 || !self.common_bpr {
            self.bpr[group] = (value as u8 & 7).max([BPR0_MIN, BPR1_MIN][group]);
        }
    }

    /// ICC_CTLR_EL1.
    fn control(&self) -> u64 {
        let cbpr = if self.common_bpr { ICC_CTLR_CBPR } else { 0 };
        let eoi_mode = if self.eoi_mode { ICC_CTLR_EOIMODE } else { 0 };
        ICC_CTLR_FIXED | cbpr | eoi_mode
    }

    /// Drops the running priority if it belongs to `group`. False if it does not, which an EOIR of the wrong group or
    /// without an interrupt would cause (UNPREDICTABLE; it is ignored).
    fn drop_priority(&mut self, group: usize) -> bool {
        let [mine, other] = [self.active_priorities[group], self.active_priorities[1 - group]];
        let [mine_level, other_level] = [mine.trailing_zeros(), other.trailing_zeros()];
        // On a tie group 0 came later: it cannot have been preempted by an equal priority of group 1.
        let highest = if group == 0 { mine_level <= other_level } else { mine_level < other_level };
        if mine == 0 || !highest {
            return false;
        }
        self.active_priorities[group] = mine & (mine - 1);
        true
    }
}

impl Model {
    /// Reads a CPU interface register of `cpu`. `None`: write-only, the access is UNDEFINED.
    pub fn icc_read(&mut self, cpu: usize, reg: Icc) -> Option<u64> {
        let interface = &self.state.cpus.get(cpu)?.interface;
        Some(match reg {
            Icc::Pmr => interface.pmr.into(),
            Icc::Iar(group) => self.acknowledge(cpu, group).into(),
            Icc::Hppir(group) => match self.offered(cpu) {
                Some(candidate) if candidate.group == group => candidate.intid.into(),
                _ => INTID_SPURIOUS.into(),
            },
            Icc::Bpr(group) => interface.binary_point(group).into(),
            Icc::Apr(group) => interface.active_priorities[group].into(),
            Icc::Rpr => interface.running_priority().into(),
            Icc::Ctlr => interface.control(),
            Icc::Sre => ICC_SRE,
            Icc::Igrpen(group) => u64::from(interface.groups >> group & 1),
            Icc::Eoir(_) | Icc::Dir | Icc::Sgi0r | Icc::Sgi1r | Icc::Asgi1r => return None,
        })
    }

    /// Writes a CPU interface register of `cpu`. `false`: read-only, the access is UNDEFINED.
    pub fn icc_write(&mut self, cpu: usize, reg: Icc, value: u64) -> bool {
        let Some(state) = self.state.cpus.get_mut(cpu) else { return false };
        let interface = &mut state.interface;
        match reg {
            Icc::Pmr => interface.pmr = value as u8 & PRIORITY_MASK,
            Icc::Bpr(group) => interface.set_binary_point(group, value),
            Icc::Apr(group) => interface.active_priorities[group] = value as u32,
            Icc::Ctlr => {
                interface.common_bpr = value & ICC_CTLR_CBPR != 0;
                interface.eoi_mode = value & ICC_CTLR_EOIMODE != 0;
            }
            Icc::Sre => return true,
            Icc::Igrpen(group) => {
                interface.groups = interface.groups & !(1 << group) | (value as u32 & 1) << group;
            }
            Icc::Eoir(group) => self.end_of_interrupt(cpu, group, value as u32 & 0xFF_FFFF),
            Icc::Dir => {
                // UNPREDICTABLE without EOImode (12.2): ignored.
                if interface.eoi_mode {
                    self.deactivate(cpu, value as u32 & 0xFF_FFFF);
                }
            }
            Icc::Sgi1r => {
                self.send_sgi(cpu, value, true);
                return true;
            }
            Icc::Asgi1r | Icc::Sgi0r => {
                self.send_sgi(cpu, value, false);
                return true;
            }
            Icc::Iar(_) | Icc::Hppir(_) | Icc::Rpr => return false,
        }
        self.touch(1 << cpu);
        true
    }

    /// ICC_IARn_EL1 (12.2): the interrupt becomes active and its priority the running one; or 1023, and nothing changes.
    fn acknowledge(&mut self, cpu: usize, group: usize) -> u32 {
        let Some(candidate) = self.offered(cpu).filter(|c| c.group == group) else { return INTID_SPURIOUS };
        let interface = &mut self.state.cpus[cpu].interface;
        if !interface.can_signal(candidate) {
            return INTID_SPURIOUS;
        }
        let level = (candidate.priority & interface.group_priority_mask(group)) >> 3;
        interface.active_priorities[group] |= 1 << level;
        if let Some((bank, index)) = self.bank_mut(cpu, candidate.intid) {
            bank.acknowledge(index);
        }
        // Nobody else was offered it: even a 1-of-N interrupt is given to one PE only.
        self.touch(1 << cpu);
        candidate.intid
    }

    /// ICC_EOIRn_EL1 (12.2): drops the priority and, with EOImode 0, deactivates.
    fn end_of_interrupt(&mut self, cpu: usize, group: usize, intid: u32) {
        // The special INTIDs, and what does not exist.
        if intid >= INTID_LIMIT {
            return;
        }
        let interface = &mut self.state.cpus[cpu].interface;
        if interface.drop_priority(group) && !interface.eoi_mode {
            self.deactivate(cpu, intid);
        }
    }

    fn deactivate(&mut self, cpu: usize, intid: u32) {
        if let Some((bank, index)) = self.bank_mut(cpu, intid) {
            bank.active &= !(1 << index);
            self.touch(self.observers(cpu, intid));
        }
    }

    /// ICC_SGI0R_EL1, ICC_SGI1R_EL1, ICC_ASGI1R_EL1 (12.2): with a single Security state SGI1R sends SGIs of either
    /// group, as each target has configured them, and the other two only those of group 0.
    fn send_sgi(&mut self, sender: usize, value: u64, group1: bool) {
        let intid = value >> 24 & 15;
        let bit = 1_u32 << intid;
        for cpu in 0..self.cpu_count() {
            if !sgi_targets(value, sender, cpu) {
                continue;
            }
            let bank = &mut self.state.cpus[cpu].private;
            if (group1 || bank.group & bit == 0) && bank.latch & bit == 0 {
                bank.latch |= bit;
                self.touch(1 << cpu);
            }
        }
    }
}

/// Whether an SGI register value names `cpu`: everyone but the sender with IRM (bit 40), else Aff3.Aff2.Aff1 and the bit of
/// the target list for Aff0, of which the range selector RS (bits 47:44) gives the upper four bits.
fn sgi_targets(value: u64, sender: usize, cpu: usize) -> bool {
    if value >> 40 & 1 != 0 {
        return cpu != sender;
    }
    let mpidr = mpidr(cpu as u32);
    let aff0 = mpidr & 0xFF;
    value >> 48 & 0xFF == mpidr >> 32 & 0xFF
        && value >> 32 & 0xFF == mpidr >> 16 & 0xFF
        && value >> 16 & 0xFF == mpidr >> 8 & 0xFF
        && value >> 44 & 15 == aff0 >> 4
        && value >> (aff0 & 15) & 1 != 0
}
