//! The distributor frame (IHI 0069, 12.9), and the registers that distributor and redistributor have in common: those that
//! configure a bank of 32 interrupts. SPIs only; SGIs and PPIs belong to the redistributors.

use super::delivery::Model;
use super::registers::{
    AFFINITY_MASK, CTLR_ARE, CTLR_DS, CTLR_ENABLE_GRP0, CTLR_ENABLE_GRP1, FRAME_SIZE, GICD_CLRSPI_NSR,
    GICD_CTLR, GICD_IIDR, GICD_IROUTER, GICD_IROUTER_END, GICD_PIDR0, GICD_SETSPI_NSR, GICD_TYPER, ICACTIVER,
    ICENABLER, ICFGR, ICPENDR, ID_REGISTERS, IGROUPR, IGRPMODR, IIDR, IPRIORITYR, IROUTER_IRM, ISACTIVER,
    ISENABLER, ISPENDR, ITARGETSR, TYPER, id_register,
};
use super::state::{Bank, PRIORITY_MASK};

/// A register of one bank of interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BankReg {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    /// From this interrupt of the bank on, one byte each.
    Priority(usize),
    /// The lower (0) or upper (1) sixteen interrupts, two bits each.
    Config(u32),
}

/// Which bank and which of its registers an access at `offset` means. `None` if there is no such register, or if it may not
/// be accessed with this size: only priorities take bytes (12.1.3).
pub fn bank_register(offset: u64, size: usize) -> Option<(usize, BankReg)> {
    if size != 4 && !(size == 1 && (IPRIORITYR..ITARGETSR).contains(&offset)) {
        return None;
    }
    let word = |first: u64| ((offset - first) / 4) as usize;
    Some(match offset {
        IGROUPR..ISENABLER => (word(IGROUPR), BankReg::Group),
        ISENABLER..ICENABLER => (word(ISENABLER), BankReg::SetEnable),
        ICENABLER..ISPENDR => (word(ICENABLER), BankReg::ClearEnable),
        ISPENDR..ICPENDR => (word(ISPENDR), BankReg::SetPending),
        ICPENDR..ISACTIVER => (word(ICPENDR), BankReg::ClearPending),
        ISACTIVER..ICACTIVER => (word(ISACTIVER), BankReg::SetActive),
        ICACTIVER..IPRIORITYR => (word(ICACTIVER), BankReg::ClearActive),
        IPRIORITYR..ITARGETSR => {
            let intid = (offset - IPRIORITYR) as usize;
            (intid / 32, BankReg::Priority(intid % 32))
        }
        ICFGR..IGRPMODR => (word(ICFGR) / 2, BankReg::Config((offset as u32 >> 2) & 1)),
        _ => return None,
    })
}

/// Reads a register of `bank`.
pub fn read_bank(bank: &Bank, reg: BankReg, size: usize) -> u64 {
    match reg {
        BankReg::Group => bank.group.into(),
        BankReg::SetEnable | BankReg::ClearEnable => bank.enabled.into(),
        BankReg::SetPending | BankReg::ClearPending => bank.pending().into(),
        BankReg::SetActive | BankReg::ClearActive => bank.active.into(),
        BankReg::Priority(first) => {
            let bytes = bank.priority.iter().skip(first).take(size);
            bytes.rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
        }
        BankReg::Config(half) => {
            let edge = bank.edge >> (16 * half);
            (0..16).fold(0, |word, i| word | u64::from(edge >> i & 1) << (2 * i + 1))
        }
    }
}

/// Writes a register of `bank`.
pub fn write_bank(bank: &mut Bank, reg: BankReg, size: usize, value: u64) {
    let word = value as u32;
    match reg {
        BankReg::Group => bank.group = word,
        BankReg::SetEnable => bank.enabled |= word,
        BankReg::ClearEnable => bank.enabled &= !word,
        BankReg::SetPending => bank.latch |= word,
        // A level that is still high keeps the interrupt pending (12.9).
        BankReg::ClearPending => bank.latch &= !word,
        BankReg::SetActive => bank.active |= word,
        BankReg::ClearActive => bank.active &= !word,
        BankReg::Priority(first) => {
            for (i, priority) in bank.priority.iter_mut().skip(first).take(size).enumerate() {
                *priority = (value >> (8 * i)) as u8 & PRIORITY_MASK;
            }
        }
        BankReg::Config(half) => {
            let edge = (0..16).fold(0, |bits, i| bits | (word >> (2 * i + 1) & 1) << i);
            bank.edge = bank.edge & !(0xFFFF << (16 * half)) | edge << (16 * half);
        }
    }
}

impl Model {
    /// Reads the distributor. `None`: no such register, or not with this size; it reads as zero.
    pub fn distributor_read(&self, offset: u64, size: usize) -> Option<u64> {
        if (GICD_IROUTER..GICD_IROUTER_END).contains(&offset) {
            let route = *self.state.routes.get(route_index(offset)?)?;
            return match size {
                8 => Some(route),
                4 => Some(route >> (8 * (offset & 4)) & 0xFFFF_FFFF),
                _ => None,
            };
        }
        if let Some((bank, reg)) = bank_register(offset, size) {
            // Bank 0, the private interrupts, is RES0 here with affinity routing.
            return self.state.spis.get(bank.checked_sub(1)?).map(|bank| read_bank(bank, reg, size));
        }
        if size != 4 {
            return None;
        }
        match offset {
            GICD_CTLR => Some((self.state.ctlr | CTLR_ARE | CTLR_DS).into()),
            GICD_TYPER => Some(TYPER.into()),
            GICD_IIDR => Some(IIDR.into()),
            ID_REGISTERS..FRAME_SIZE => Some(id_register(offset, GICD_PIDR0).into()),
            _ => None,
        }
    }

    /// Writes the distributor. `false`: no such register, or not with this size; the write is ignored.
    pub fn distributor_write(&mut self, offset: u64, size: usize, value: u64) -> bool {
        if (GICD_IROUTER..GICD_IROUTER_END).contains(&offset) {
            return self.write_route(offset, size, value);
        }
        if let Some((bank, reg)) = bank_register(offset, size) {
            let Some(bank) = bank.checked_sub(1).and_then(|spi_bank| self.state.spis.get_mut(spi_bank))
            else {
                return false;
            };
            write_bank(bank, reg, size, value);
            self.touch_all();
            return true;
        }
        match (offset, size) {
            (GICD_CTLR, 4) => {
                self.state.ctlr = value as u32 & (CTLR_ENABLE_GRP0 | CTLR_ENABLE_GRP1);
                self.touch_all();
            }
            (GICD_SETSPI_NSR, 2 | 4) => self.message(value, true),
            (GICD_CLRSPI_NSR, 2 | 4) => self.message(value, false),
            _ => return false,
        }
        true
    }

    /// A message-based SPI (IHI 0069, 4.5, 12.9): the INTID is in bits 12:0. An edge is remembered, a level stays until
    /// the message that clears it.
    fn message(&mut self, value: u64, set: bool) {
        let intid = value as u32 & 0x1FFF;
        if intid < 32 {
            return;
        }
        self.change_pending(0, intid, |bank, index| {
            let bit = 1 << index;
            match (bank.edge & bit != 0, set) {
                (true, true) => bank.latch |= bit,
                (true, false) => bank.latch &= !bit,
                (false, level) => bank.set_line(index, level),
            }
        });
    }

    fn write_route(&mut self, offset: u64, size: usize, value: u64) -> bool {
        let Some(spi) = route_index(offset) else { return false };
        let Some(route) = self.state.routes.get_mut(spi) else { return false };
        let shift = 8 * (offset & 4);
        let new = match size {
            8 => value,
            4 => *route & !(0xFFFF_FFFF << shift) | (value & 0xFFFF_FFFF) << shift,
            _ => return false,
        };
        *route = new & (AFFINITY_MASK | IROUTER_IRM);
        self.route_spi(spi);
        true
    }
}

/// Which SPI the GICD_IROUTER at `offset` belongs to. The first 32 places are reserved.
fn route_index(offset: u64) -> Option<usize> {
    (((offset - GICD_IROUTER) / 8) as usize).checked_sub(32)
}
