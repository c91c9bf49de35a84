//! The GICv2m frame: the doorbell for message-signalled interrupts, each of which is one SPI (Arm SBSA, GICv2m). No ITS and
//! no LPIs. What the registers say is the same for every GIC behind the frame; [`Model`] is ours.

use super::delivery::Model;
use super::registers::{IIDR, V2M_IIDR, V2M_SETSPI_NS, V2M_TYPER};
use crate::aarch64::layout::{V2M_SPI, V2M_SPI_COUNT};

/// Reads the frame. `None`: no such register, or not with this size; it reads as zero.
pub fn read(offset: u64, size: usize) -> Option<u64> {
    match (offset, size) {
        (V2M_TYPER, 4) => Some(u64::from(V2M_SPI.intid() << 16 | V2M_SPI_COUNT)),
        (V2M_IIDR, 4) => Some(IIDR.into()),
        _ => None,
    }
}

/// The INTID that a write to the frame signals. `None`: no such register, not with this size, or not one of the frame's SPIs.
pub fn doorbell(offset: u64, size: usize, value: u64) -> Option<u32> {
    if offset != V2M_SETSPI_NS || !matches!(size, 2 | 4) {
        return None;
    }
    let intid = value as u32 & 0x3FF;
    (V2M_SPI.intid()..V2M_SPI.intid() + V2M_SPI_COUNT).contains(&intid).then_some(intid)
}

impl Model {
    /// Writes the frame; the SPI becomes pending, whatever its trigger, so that no message is lost. `false`: the write is
    /// ignored.
    pub fn v2m_write(&mut self, offset: u64, size: usize, value: u64) -> bool {
        let Some(intid) = doorbell(offset, size, value) else { return false };
        self.change_pending(0, intid, |bank, index| bank.latch |= 1 << index);
        true
    }
}
