//! INTA to INTD: level-triggered lines that several functions share. Not messages; those are in `msix` and `msi`.

use std::fmt;
use std::sync::{Arc, Mutex};

use hvrun_arch::{IrqChip, Spi};

use super::host::SLOTS;
use crate::irq::IrqLine;
use crate::util::lock;

/// How many lines a bridge has.
pub(super) const LINES: u8 = 4;

/// The host bridge's four lines, each the OR of the pins behind it.
pub(super) struct IntxLines {
    lines: [Mutex<Line>; LINES as usize],
}

struct Line {
    irq: IrqLine,
    /// One bit a slot, and above them one for each card behind the port in a slot.
    asserted: u64,
}

impl IntxLines {
    /// The lines from `first` on, low.
    pub(super) fn new(chip: &Arc<dyn IrqChip>, first: Spi) -> Arc<Self> {
        let line = |index: u32| {
            let irq = IrqLine::new(chip.clone(), Spi(first.0 + index));
            Mutex::new(Line { irq, asserted: 0 })
        };
        Arc::new(IntxLines { lines: [0, 1, 2, 3].map(line) })
    }

    /// The pin `pin` (1 is INTA) of the device in `slot`.
    pub(super) fn pin(self: &Arc<Self>, slot: u8, pin: u8) -> Arc<IntxPin> {
        let line = swizzle(slot, pin);
        Arc::new(IntxPin {
            lines: self.clone(),
            slot,
            line,
            bit: slot,
            state: Mutex::new(PinState::default()),
        })
    }

    /// The pin INTA of device 0 on the bus behind the port in `slot`: it is INTA of the port (PCI-to-PCI Bridge 1.2, 9.1).
    pub(super) fn pin_behind(self: &Arc<Self>, slot: u8) -> Arc<IntxPin> {
        let (line, bit) = (swizzle(slot, 1), slot.saturating_add(SLOTS));
        Arc::new(IntxPin { lines: self.clone(), slot, line, bit, state: Mutex::new(PinState::default()) })
    }

    fn drive(&self, line: u8, bit: u8, level: bool) {
        let Some(line) = self.lines.get(usize::from(line)) else { return };
        let mut line = lock(line);
        let bit = 1_u64.checked_shl(bit.into()).unwrap_or(0);
        if level {
            line.asserted |= bit;
        } else {
            line.asserted &= !bit;
        }
        line.irq.set(line.asserted != 0);
    }

    /// Tells the interrupt controller every line's level again.
    pub(super) fn force(&self) {
        for line in &self.lines {
            let line = lock(line);
            line.irq.force(line.asserted != 0);
        }
    }
}

/// Which line the pin `pin` (1 is INTA) of the device in `slot` is wired to: the usual rotation (PCI-to-PCI Bridge 1.2, 9.1), which the device tree's
/// `interrupt-map` repeats.
const fn swizzle(slot: u8, pin: u8) -> u8 {
    slot.wrapping_add(pin).wrapping_sub(1) % LINES
}

/// A function's interrupt pin.
pub struct IntxPin {
    lines: Arc<IntxLines>,
    slot: u8,
    line: u8,
    /// Its bit in [`Line::asserted`].
    bit: u8,
    state: Mutex<PinState>,
}

#[derive(Default)]
struct PinState {
    /// What the function wants.
    level: bool,
    /// Interrupt disable in the command register.
    disabled: bool,
}

impl IntxPin {
    /// The function asserts or deasserts its interrupt.
    pub fn set(&self, level: bool) {
        self.change(|state| state.level = level);
    }

    /// Whether the function has its interrupt asserted, be it disabled or not.
    pub fn level(&self) -> bool {
        lock(&self.state).level
    }

    /// The command register says whether the pin may be driven.
    pub(super) fn set_disabled(&self, disabled: bool) {
        self.change(|state| state.disabled = disabled);
    }

    fn change(&self, change: impl FnOnce(&mut PinState)) {
        let mut state = lock(&self.state);
        change(&mut state);
        self.lines.drive(self.line, self.bit, state.level && !state.disabled);
    }
}

impl fmt::Debug for IntxPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntxPin").field("slot", &self.slot).field("level", &self.level()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::fake::FakeChip;

    fn lines() -> (Arc<FakeChip>, Arc<IntxLines>) {
        let chip = Arc::new(FakeChip::default());
        let dynamic: Arc<dyn IrqChip> = chip.clone();
        (chip, IntxLines::new(&dynamic, Spi(3)))
    }

    #[test]
    fn slots_rotate_over_the_four_lines() {
        let (chip, lines) = lines();
        let pins: Vec<_> = [1, 2, 3, 4].map(|slot| lines.pin(slot, 1)).into();
        pins.iter().for_each(|pin| pin.set(true));
        let spis: Vec<u32> = chip.calls().iter().map(|(spi, _)| spi.0).collect();
        assert_eq!(spis, [4, 5, 6, 3]);
    }

    #[test]
    fn a_shared_line_falls_with_its_last_pin() {
        let (chip, lines) = lines();
        let (one, other) = (lines.pin(1, 1), lines.pin(5, 1));
        one.set(true);
        other.set(true);
        one.set(false);
        assert!(chip.level());
        other.set(false);
        assert_eq!(chip.calls(), [(Spi(4), true), (Spi(4), false)]);
    }

    #[test]
    fn a_disabled_pin_drives_nothing_until_it_is_enabled() {
        let (chip, lines) = lines();
        let pin = lines.pin(1, 1);
        pin.set_disabled(true);
        pin.set(true);
        assert!(chip.calls().is_empty() && pin.level());
        pin.set_disabled(false);
        assert_eq!(chip.calls(), [(Spi(4), true)]);
    }
}
