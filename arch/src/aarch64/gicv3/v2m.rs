//! The GICv2m frame: the doorbell for message-signalled interrupts, each of which is one SPI (Arm SBSA, GICv2m). No ITS and
//! no LPIs.

use super::delivery::Model;
use super::registers::{IIDR, V2M_IIDR, V2M_SETSPI_NS, V2M_TYPER};
use crate::aarch64::layout::{V2M_SPI, V2M_SPI_COUNT};

impl Model {
    /// Reads the frame. `None`: no such register, or not with this size; it reads as zero.
    pub fn v2m_read(&self, offset: u64, size: usize) -> Option<u64> {
        match (offset, size) {
            (V2M_TYPER, 4) => Some(u64::from(V2M_SPI.intid() << 16 | V2M_SPI_COUNT)),
            (V2M_IIDR, 4) => Some(IIDR.into()),
            _ => None,
        }
    }

    /// Writes the frame. `false`: no such register, or not with this size; the write is ignored.
    pub fn v2m_write(&mut self, offset: u64, size: usize, value: u64) -> bool {
        if offset != V2M_SETSPI_NS || !matches!(size, 2 | 4) {
            return false;
        }
        self.signal_msi(value as u32 & 0x3FF)
    }

    /// Makes the SPI `intid` pending, whatever its trigger, so that no message is lost. `false` outside the frame's SPIs.
    pub fn signal_msi(&mut self, intid: u32) -> bool {
        if !(V2M_SPI.intid()..V2M_SPI.intid() + V2M_SPI_COUNT).contains(&intid) {
            return false;
        }
        self.change_pending(0, intid, |bank, index| bank.latch |= 1 << index);
        true
    }
}
