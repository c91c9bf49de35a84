//! What a snapshot of the GIC holds, as plain data, and the state machine of one interrupt (IHI 0069, 4.1.2).
//!
//! Interrupts are kept 32 to a [`Bank`], one bit each, so that selection works on words. No routing, no locking.

use serde::{Deserialize, Serialize};

use super::registers::{
    AFFINITY_MASK, CTLR_ENABLE_GRP0, CTLR_ENABLE_GRP1, GICR_CTLR_DPG0, GICR_CTLR_DPG1NS, IROUTER_IRM,
};

/// How many SPIs there are: INTIDs 32 to 287.
pub const SPI_COUNT: u32 = 256;
/// First INTID that does not exist.
pub const INTID_LIMIT: u32 = 32 + SPI_COUNT;
/// How many banks of 32 SPIs there are.
pub const SPI_BANKS: usize = (SPI_COUNT / 32) as usize;

/// The implemented bits of a priority: the upper five (IHI 0069, 4.8).
pub const PRIORITY_MASK: u8 = 0xF8;
/// Smallest binary point of group 0 with five priority bits: all of them take part in preemption (4.8).
pub const BPR0_MIN: u8 = 2;
/// Smallest binary point of group 1, which counts from one bit higher (4.8).
pub const BPR1_MIN: u8 = 3;
/// The SGIs of a private bank, which are always edge-triggered (12.11).
const SGIS: u32 = 0xFFFF;

/// Thirty-two interrupts; bit `n` of each word belongs to interrupt `n` of the bank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bank {
    /// 1: group 1 (IRQ), 0: group 0 (FIQ).
    pub group: u32,
    /// Enabled to be forwarded.
    pub enabled: u32,
    /// Pending by an edge, a message or a write of ISPENDR. Taken away when the interrupt is acknowledged.
    pub latch: u32,
    /// Level of the input.
    pub line: u32,
    /// 1: edge-triggered, 0: level-sensitive.
    pub edge: u32,
    /// Acknowledged and not yet deactivated.
    pub active: u32,
    /// Priority, lower is more urgent; only the bits of [`PRIORITY_MASK`].
    pub priority: [u8; 32],
}

impl Bank {
    /// The reset state of the SGIs and PPIs of one PE.
    pub fn private() -> Bank {
        Bank { edge: SGIS, ..Bank::default() }
    }

    /// What is pending: the latches, and the level-sensitive inputs that are high.
    pub fn pending(&self) -> u32 {
        self.latch | self.line & !self.edge
    }

    /// Drives an input. A rising edge is remembered for an edge-triggered interrupt, also while it is active.
    pub fn set_line(&mut self, index: u32, level: bool) {
        let bit = 1 << (index & 31);
        if level {
            self.latch |= bit & self.edge & !self.line;
            self.line |= bit;
        } else {
            self.line &= !bit;
        }
    }

    /// Pending becomes active; a level that is still high keeps the interrupt pending too (4.1.2).
    pub fn acknowledge(&mut self, index: u32) {
        let bit = 1 << (index & 31);
        self.latch &= !bit;
        self.active |= bit;
    }

    fn sanitise(&mut self) {
        for priority in &mut self.priority {
            *priority &= PRIORITY_MASK;
        }
    }
}

/// The CPU interface of one PE (IHI 0069, 12.2). Arrays are indexed by group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuInterface {
    /// ICC_PMR_EL1: only more urgent (lower) priorities are signalled.
    pub pmr: u8,
    /// ICC_BPR0_EL1 and ICC_BPR1_EL1.
    pub bpr: [u8; 2],
    /// ICC_AP0R0_EL1 and ICC_AP1R0_EL1: bit `p >> 3` is set while group priority `p` is active.
    pub active_priorities: [u32; 2],
    /// ICC_IGRPEN0_EL1 in bit 0 and ICC_IGRPEN1_EL1 in bit 1, like GICD_CTLR.
    pub groups: u32,
    /// ICC_CTLR_EL1.CBPR.
    pub common_bpr: bool,
    /// ICC_CTLR_EL1.EOImode.
    pub eoi_mode: bool,
}

impl Default for CpuInterface {
    fn default() -> Self {
        CpuInterface {
            pmr: 0,
            bpr: [BPR0_MIN, BPR1_MIN],
            active_priorities: [0; 2],
            groups: 0,
            common_bpr: false,
            eoi_mode: false,
        }
    }
}

/// What belongs to one PE: its redistributor and its CPU interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// SGIs (0 to 15) and PPIs (16 to 31).
    pub private: Bank,
    /// GICR_WAKER.ProcessorSleep; ChildrenAsleep follows it at once.
    pub asleep: bool,
    /// The writable bits of GICR_CTLR: DPG0 and DPG1NS.
    pub ctlr: u32,
    /// The CPU interface.
    pub interface: CpuInterface,
}

impl Default for CpuState {
    fn default() -> Self {
        CpuState { private: Bank::private(), asleep: true, ctlr: 0, interface: CpuInterface::default() }
    }
}

/// The whole GIC: what a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GicState {
    /// GICD_CTLR.EnableGrp0 and EnableGrp1.
    pub ctlr: u32,
    /// The SPIs, 32 a bank, from INTID 32 on.
    pub spis: Vec<Bank>,
    /// GICD_IROUTER of each SPI, from INTID 32 on.
    pub routes: Vec<u64>,
    /// One entry a PE, by its number.
    pub cpus: Vec<CpuState>,
}

/// Why a saved state does not fit this GIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The number of CPUs differs.
    #[error(
        "the saved GIC has {saved} CPUs, this machine has {machine}; restore into a machine with {saved}"
    )]
    Cpus {
        /// CPUs in the saved state.
        saved: usize,
        /// CPUs of this machine.
        machine: usize,
    },
    /// The number of SPIs differs.
    #[error("the saved GIC has {saved} SPIs, this one has {SPI_COUNT}; it comes from another version")]
    Spis {
        /// SPIs in the saved state.
        saved: usize,
    },
}

impl GicState {
    /// The reset state of a GIC for `cpus` PEs.
    pub fn new(cpus: u32) -> GicState {
        GicState {
            ctlr: 0,
            spis: vec![Bank::default(); SPI_BANKS],
            routes: vec![0; SPI_COUNT as usize],
            cpus: vec![CpuState::default(); cpus as usize],
        }
    }

    /// Checks that a state from outside fits a GIC of `cpus` PEs, and clears the bits that no register could hold.
    pub fn validated(mut self, cpus: usize) -> Result<GicState, RestoreError> {
        if self.cpus.len() != cpus {
            return Err(RestoreError::Cpus { saved: self.cpus.len(), machine: cpus });
        }
        if self.spis.len() != SPI_BANKS {
            return Err(RestoreError::Spis { saved: self.spis.len().saturating_mul(32) });
        }
        if self.routes.len() != SPI_COUNT as usize {
            return Err(RestoreError::Spis { saved: self.routes.len() });
        }
        let groups = CTLR_ENABLE_GRP0 | CTLR_ENABLE_GRP1;
        self.ctlr &= groups;
        self.spis.iter_mut().for_each(Bank::sanitise);
        self.routes.iter_mut().for_each(|route| *route &= AFFINITY_MASK | IROUTER_IRM);
        for cpu in &mut self.cpus {
            cpu.private.sanitise();
            cpu.private.edge |= SGIS;
            cpu.ctlr &= GICR_CTLR_DPG0 | GICR_CTLR_DPG1NS;
            let interface = &mut cpu.interface;
            interface.pmr &= PRIORITY_MASK;
            interface.groups &= groups;
            interface.bpr = [interface.bpr[0].clamp(BPR0_MIN, 7), interface.bpr[1].clamp(BPR1_MIN, 7)];
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_interrupt_follows_its_line() {
        let mut bank = Bank::default();
        bank.set_line(3, true);
        assert_eq!(bank.pending(), 1 << 3);
        bank.set_line(3, false);
        assert_eq!(bank.pending(), 0);
    }

    #[test]
    fn an_edge_interrupt_stays_pending_when_its_line_falls() {
        let mut bank = Bank { edge: u32::MAX, ..Bank::default() };
        bank.set_line(3, true);
        bank.set_line(3, false);
        assert_eq!(bank.pending(), 1 << 3);
    }

    #[test]
    fn an_edge_line_that_stays_high_gives_one_interrupt() {
        let mut bank = Bank { edge: u32::MAX, ..Bank::default() };
        bank.set_line(3, true);
        bank.acknowledge(3);
        bank.set_line(3, true);
        assert_eq!(bank.pending(), 0);
    }

    #[test]
    fn a_saved_state_with_other_cpus_is_refused() {
        let saved = GicState::new(2);
        assert_eq!(saved.validated(4), Err(RestoreError::Cpus { saved: 2, machine: 4 }));
    }

    #[test]
    fn a_saved_state_with_too_few_routes_is_refused() {
        let mut saved = GicState::new(1);
        saved.routes.truncate(7);
        assert_eq!(saved.validated(1), Err(RestoreError::Spis { saved: 7 }));
    }

    #[test]
    fn impossible_bits_of_a_saved_state_are_cleared() {
        let mut saved = GicState::new(1);
        saved.cpus[0].interface.bpr = [0, 200];
        saved.cpus[0].private.edge = 0;
        saved.spis[0].priority[5] = 0xFF;
        let state = saved.validated(1).expect("the shape is right");
        assert_eq!(state.cpus[0].interface.bpr, [BPR0_MIN, 7]);
        assert_eq!(state.cpus[0].private.edge, 0xFFFF);
        assert_eq!(state.spis[0].priority[5], PRIORITY_MASK);
    }
}
