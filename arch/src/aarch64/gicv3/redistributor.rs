//! The redistributor frames (IHI 0069, 12.10 and 12.11): RD_base and SGI_base of each PE. The address says whose frame it
//! is, not the PE that accesses it. There are no LPIs, so their registers are RAZ/WI.

use super::delivery::Model;
use super::distributor::{BankReg, bank_register, read_bank, write_bank};
use super::registers::{
    FRAME_SIZE, GICD_PIDR0, GICR_CTLR, GICR_CTLR_DPG0, GICR_CTLR_DPG1NS, GICR_IIDR, GICR_TYPER,
    GICR_TYPER_DPGS, GICR_TYPER_HIGH, GICR_TYPER_LAST, GICR_WAKER, ID_REGISTERS, IIDR, WAKER_CHILDREN_ASLEEP,
    WAKER_PROCESSOR_SLEEP, id_register,
};
use crate::aarch64::layout::{GIC_REDIST_SIZE, mpidr};

/// Splits an offset in the redistributor window into the PE and the offset in its two frames.
fn frame(offset: u64) -> (usize, u64) {
    ((offset / GIC_REDIST_SIZE) as usize, offset % GIC_REDIST_SIZE)
}

impl Model {
    /// Reads the redistributor window. `None`: no such PE or register, or not with this size; it reads as zero.
    pub fn redistributor_read(&self, offset: u64, size: usize) -> Option<u64> {
        let (cpu, offset) = frame(offset);
        let state = self.state.cpus.get(cpu)?;
        if let Some(offset) = offset.checked_sub(FRAME_SIZE) {
            return match bank_register(offset, size)? {
                (0, reg) => Some(read_bank(&state.private, reg, size)),
                _ => None,
            };
        }
        match (offset, size) {
            (GICR_TYPER, 8) => Some(self.redistributor_type(cpu)),
            (GICR_TYPER, 4) => Some(self.redistributor_type(cpu) & 0xFFFF_FFFF),
            (GICR_TYPER_HIGH, 4) => Some(self.redistributor_type(cpu) >> 32),
            (GICR_CTLR, 4) => Some(state.ctlr.into()),
            (GICR_IIDR, 4) => Some(IIDR.into()),
            (GICR_WAKER, 4) if state.asleep => Some((WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP).into()),
            (GICR_WAKER, 4) => Some(0),
            (ID_REGISTERS..FRAME_SIZE, 4) => Some(id_register(offset, GICD_PIDR0 + 1).into()),
            _ => None,
        }
    }

    /// Writes the redistributor window. `false`: no such PE or register, or not with this size; the write is ignored.
    pub fn redistributor_write(&mut self, offset: u64, size: usize, value: u64) -> bool {
        let (cpu, offset) = frame(offset);
        let Some(state) = self.state.cpus.get_mut(cpu) else { return false };
        if let Some(offset) = offset.checked_sub(FRAME_SIZE) {
            match bank_register(offset, size) {
                // SGIs are edge-triggered, always (12.11).
                Some((0, BankReg::Config(0))) => return true,
                Some((0, reg)) => write_bank(&mut state.private, reg, size, value),
                _ => return false,
            }
            self.touch(1 << cpu);
            return true;
        }
        match (offset, size) {
            (GICR_CTLR, 4) => state.ctlr = value as u32 & (GICR_CTLR_DPG0 | GICR_CTLR_DPG1NS),
            (GICR_WAKER, 4) => state.asleep = value as u32 & WAKER_PROCESSOR_SLEEP != 0,
            _ => return false,
        }
        self.touch(1 << cpu);
        true
    }

    /// GICR_TYPER (12.11): affinity in bits 63:32, processor number in 23:8, Last, DPGS. No LPIs.
    fn redistributor_type(&self, cpu: usize) -> u64 {
        let mpidr = mpidr(cpu as u32);
        let affinity = mpidr >> 32 << 24 & 0xFF00_0000 | mpidr & 0xFF_FFFF;
        let last = if cpu + 1 == self.cpu_count() { GICR_TYPER_LAST } else { 0 };
        affinity << 32 | (cpu as u64) << 8 | last | GICR_TYPER_DPGS
    }
}
