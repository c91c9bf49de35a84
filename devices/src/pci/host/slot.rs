//! One slot of the bus: a function, its configuration space, and where its BARs are on the [`Bus`].
//! It decides for itself alone; that several slots want the same addresses is the bridge's affair.

use std::sync::Arc;

use hvrun_arch::aarch64::layout::Window;

use super::{IntxPin, PciFunction};
use crate::bus::{Bus, MmioDevice};
use crate::pci::config::{Bar, Command, ConfigSpace, ConfigState, bridge, reg};
use crate::util::LogLimit;

/// What is plugged into a slot.
pub(super) struct Slot {
    pub(super) function: Arc<dyn PciFunction>,
    pub(super) pin: Arc<IntxPin>,
    pub(super) config: ConfigSpace,
    /// Where each BAR is on the bus, in the order of [`ConfigSpace::bars`].
    mapped: Vec<Option<Window>>,
}

impl Slot {
    pub(super) fn new(function: Arc<dyn PciFunction>, pin: Arc<IntxPin>) -> Self {
        let config = function.config_space();
        let mapped = vec![None; config.bars().len()];
        Slot { function, pin, config, mapped }
    }

    /// The guest reads configuration space.
    pub(super) fn config_read(&mut self, register: u16, data: &mut [u8]) {
        if ConfigSpace::serves(register, data.len()) {
            self.config.set_interrupt_status(self.pin.level());
            self.function.config_read(&mut self.config, register, data.len());
        }
        self.config.read(register, data);
    }

    /// The guest writes configuration space. Says whether BARs may have to move.
    pub(super) fn config_write(&mut self, register: u16, data: &[u8]) -> bool {
        if !self.config.write(register, data) {
            return false;
        }
        self.pin.set_disabled(self.config.command().contains(Command::INTX_DISABLE));
        self.function.config_written(&mut self.config, register, data.len());
        // The smallest unit is a byte, and all that BARs depend on lies from the command register to the last BAR, or a bridge's last
        // window.
        (reg::COMMAND..bridge::WINDOWS_END).contains(&register)
    }

    /// The BARs, and the address that the guest has given to each, if it answers there.
    pub(super) fn bars(&self) -> Vec<(Bar, Option<u64>)> {
        let enabled = self.config.command().contains(Command::MEMORY);
        let base = |bar: &Bar| Some(self.config.bar_base(*bar)).filter(|base| enabled && *base != 0);
        self.config.bars().iter().map(|bar| (*bar, base(bar))).collect()
    }

    /// Where `bar` should be: nowhere while memory decoding is off, or outside of the windows that lead to PCI.
    fn wanted(&self, bar: Bar, windows: &[Window]) -> Option<Window> {
        if !self.config.command().contains(Command::MEMORY) {
            return None;
        }
        let base = self.config.bar_base(bar);
        let end = base.checked_add(bar.size)?;
        let fits = |window: &Window| base >= window.base && end <= window.end();
        windows.iter().any(fits).then_some(Window::new(base, bar.size))
    }

    /// Takes the BARs off the bus that should be elsewhere.
    pub(super) fn unmap_moved(&mut self, bus: &Bus, windows: &[Window]) {
        for index in 0..self.mapped.len() {
            let Some(bar) = self.config.bars().get(index).copied() else { return };
            if self.mapped[index].is_some() && self.mapped[index] != self.wanted(bar, windows) {
                self.unmap(index, bar, bus);
            }
        }
    }

    fn unmap(&mut self, index: usize, bar: Bar, bus: &Bus) {
        if let Some(window) = self.mapped[index].take() {
            self.function.bar_mapped(bar.index, None);
            bus.remove(window.base);
        }
    }

    /// Puts the BARs on the bus that should be there and are not, where no other device is.
    pub(super) fn map_wanted(&mut self, bus: &Bus, windows: &[Window], odd_bars: &LogLimit) {
        for index in 0..self.mapped.len() {
            let Some(bar) = self.config.bars().get(index).copied() else { return };
            let (None, Some(window)) = (self.mapped[index], self.wanted(bar, windows)) else { continue };
            let device = Arc::new(BarWindow { function: self.function.clone(), bar: bar.index });
            match bus.insert(window, device) {
                Ok(()) => {
                    self.mapped[index] = Some(window);
                    self.function.bar_mapped(bar.index, Some(window.base));
                }
                Err(error) => {
                    if let Some(suppressed) = odd_bars.allow() {
                        log::debug!("PCI BAR {} does not answer: {error}{suppressed}", bar.index);
                    }
                }
            }
        }
    }

    /// Takes every BAR off the bus.
    pub(super) fn unmap_all(&mut self, bus: &Bus) {
        for index in 0..self.mapped.len() {
            let Some(bar) = self.config.bars().get(index).copied() else { return };
            self.unmap(index, bar, bus);
        }
    }

    /// The function for somebody else, off the bus, its pin low, in the state after power-on.
    pub(super) fn take_away(mut self, bus: &Bus) -> Arc<dyn PciFunction> {
        self.reset(bus);
        self.function
    }

    /// The state after power-on.
    pub(super) fn reset(&mut self, bus: &Bus) {
        self.unmap_all(bus);
        self.config.reset();
        self.function.reset();
        self.pin.set(false);
        self.pin.set_disabled(false);
    }

    /// Takes a saved configuration space; BARs are mapped afterwards.
    pub(super) fn restore(&mut self, state: &ConfigState) {
        self.config.restore(state);
        self.pin.set_disabled(self.config.command().contains(Command::INTX_DISABLE));
        self.function.config_restored(&mut self.config);
    }
}

/// A BAR on the bus.
struct BarWindow {
    function: Arc<dyn PciFunction>,
    bar: u8,
}

impl MmioDevice for BarWindow {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.bar_read(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(self.bar, offset, data);
    }

    /// The bridge resets its functions, wherever their BARs are.
    fn reset(&self) {}
}
