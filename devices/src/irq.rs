//! The interrupt line a device holds: one SPI of the machine's interrupt controller, level or edge.
//!
//! Not the controller itself, and no message-signalled interrupts.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use hvrun_arch::hypervisor::EventFds;
use hvrun_arch::{IrqChip, Spi};

use crate::sys::Event;
use crate::util::lock;

/// One wire from a device to the interrupt controller. The controller hears of changes only, so a device may call
/// [`IrqLine::set`] after every register access.
///
/// A device calls it under its own lock; an [`IrqChip`] therefore never calls back into a device.
pub struct IrqLine {
    chip: Arc<dyn IrqChip>,
    spi: Spi,
    level: Mutex<bool>,
}

impl IrqLine {
    /// The line of `spi`, low.
    pub fn new(chip: Arc<dyn IrqChip>, spi: Spi) -> Self {
        IrqLine { chip, spi, level: Mutex::new(false) }
    }

    /// Drives the line.
    pub fn set(&self, level: bool) {
        let mut current = lock(&self.level);
        if *current != level {
            *current = level;
            self.chip.set_spi(self.spi, level);
        }
    }

    /// Drives the line even if it has that level already: the controller may have been reset or restored behind our back.
    pub fn force(&self, level: bool) {
        let mut current = lock(&self.level);
        *current = level;
        self.chip.set_spi(self.spi, level);
    }

    /// The level last driven.
    pub fn level(&self) -> bool {
        *lock(&self.level)
    }

    /// Which interrupt this is.
    pub fn spi(&self) -> Spi {
        self.spi
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine").field("spi", &self.spi).field("level", &self.level()).finish()
    }
}

/// An edge-triggered SPI: each [`EdgeIrq::raise`] is one interrupt, for a device that tells its causes apart by a register.
///
/// Where the hypervisor takes eventfds, the edge is one write to such a descriptor.
pub struct EdgeIrq {
    chip: Arc<dyn IrqChip>,
    spi: Spi,
    bound: Option<(Event, Arc<dyn EventFds>)>,
}

impl EdgeIrq {
    /// The interrupt `spi`, by way of `fds` if they take it.
    pub fn new(chip: Arc<dyn IrqChip>, fds: Option<Arc<dyn EventFds>>, spi: Spi) -> Self {
        let bound = fds.and_then(|fds| {
            let event = Event::new().ok()?;
            match fds.register_irqfd(spi, event.as_fd()) {
                Ok(()) => Some((event, fds)),
                Err(error) => {
                    log::debug!("SPI {} goes by the interrupt controller: {error}", spi.0);
                    None
                }
            }
        });
        EdgeIrq { chip, spi, bound }
    }

    /// One interrupt.
    pub fn raise(&self) {
        match &self.bound {
            Some((event, _)) => event.signal(),
            None => {
                self.chip.set_spi(self.spi, true);
                self.chip.set_spi(self.spi, false);
            }
        }
    }
}

impl Drop for EdgeIrq {
    fn drop(&mut self) {
        if let Some((event, fds)) = &self.bound {
            // The machine may be gone already.
            let _ = fds.unregister_irqfd(self.spi, event.as_fd());
        }
    }
}

impl fmt::Debug for EdgeIrq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeIrq").field("spi", &self.spi).field("irqfd", &self.bound.is_some()).finish()
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! An interrupt controller that only remembers what it was told.

    use super::*;

    /// Remembers every change of every line.
    #[derive(Default)]
    pub(crate) struct FakeChip(Mutex<Vec<(Spi, bool)>>);

    impl FakeChip {
        /// A line on a new controller, and the controller.
        pub(crate) fn line() -> (Arc<FakeChip>, IrqLine) {
            let chip = Arc::new(FakeChip::default());
            let line = IrqLine::new(chip.clone(), Spi(1));
            (chip, line)
        }

        /// All calls so far.
        pub(crate) fn calls(&self) -> Vec<(Spi, bool)> {
            lock(&self.0).clone()
        }

        /// The last level driven.
        pub(crate) fn level(&self) -> bool {
            lock(&self.0).last().is_some_and(|call| call.1)
        }
    }

    impl IrqChip for FakeChip {
        fn set_spi(&self, spi: Spi, level: bool) {
            lock(&self.0).push((spi, level));
        }

        fn send_msi(&self, _addr: u64, _data: u32) {}
    }
}

#[cfg(test)]
mod tests {
    use super::fake::FakeChip;
    use super::*;

    #[test]
    fn the_controller_hears_of_changes_only() {
        let (chip, line) = FakeChip::line();
        line.set(false);
        line.set(true);
        line.set(true);
        line.set(false);
        assert_eq!(chip.calls(), [(Spi(1), true), (Spi(1), false)]);
    }

    #[test]
    fn an_edge_is_a_pulse_of_the_line() {
        let chip = Arc::new(FakeChip::default());
        EdgeIrq::new(chip.clone(), None, Spi(16)).raise();
        assert_eq!(chip.calls(), [(Spi(16), true), (Spi(16), false)]);
    }

    #[test]
    fn force_drives_an_unchanged_level_again() {
        let (chip, line) = FakeChip::line();
        line.force(false);
        assert_eq!(chip.calls(), [(Spi(1), false)]);
    }
}
