//! Root ports on the bus, and the card behind each: it comes, the guest is asked to let go of it, and it goes when the slot's power is
//! turned off or the machine is reset. The port's registers are in [`RootPort`].

use std::sync::Arc;

use hvrun_arch::aarch64::layout::Window;

use super::slot::Slot;
use super::{Inner, PciError, PciHost, SLOTS};
use crate::bus::Bus;
use crate::pci::config::{ConfigSpace, ConfigState};
use crate::pci::{PciFunction, RootPort};
use crate::util::lock;

/// What is behind a root port.
pub(super) struct Port {
    pub(super) port: Arc<RootPort>,
    pub(super) card: Option<Slot>,
    /// The card shall go as soon as the guest lets it.
    leaving: bool,
    /// The card was in reach when this was last looked at.
    reached: bool,
}

/// What became of [`PciHost::eject`].
pub enum Ejected {
    /// The card was without power, and is gone.
    Gone(Arc<dyn PciFunction>),
    /// The guest was asked. The listener hears of it when it lets go.
    Asked,
}

impl std::fmt::Debug for Ejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ejected::Gone(_) => "Gone",
            Ejected::Asked => "Asked",
        })
    }
}

impl Port {
    /// The addresses that reach the card, of `windows` that reach the bus. `config` is the port's.
    pub(super) fn windows(&self, config: &ConfigSpace, windows: &[Window]) -> Vec<Window> {
        if self.port.reaches_card(config) { RootPort::passes(config, windows) } else { Vec::new() }
    }

    /// Takes saved configuration spaces, the port's being taken already; BARs are mapped afterwards.
    pub(super) fn restore(&mut self, config: &mut ConfigSpace, card: Option<&ConfigState>) {
        self.port.restored(config, self.card.is_some());
        if let (Some(slot), Some(state)) = (&mut self.card, card) {
            slot.restore(state);
        }
        self.reached = self.port.reaches_card(config);
    }

    /// The card leaves its slot.
    fn release(&mut self, config: &mut ConfigSpace, bus: &Bus) -> Option<Arc<dyn PciFunction>> {
        let card = self.card.take()?;
        self.leaving = false;
        self.reached = false;
        self.port.set_present(config, false);
        Some(card.take_away(bus))
    }
}

impl PciHost {
    /// Plugs a root port into `slot`, or the lowest free one, and gives its number.
    ///
    /// # Errors
    /// There is no such slot, it is taken, or none is free.
    pub fn plug_port(&self, slot: Option<u8>, port: Arc<RootPort>) -> Result<u8, PciError> {
        let slot = match slot {
            Some(slot) => self.plug_at(slot, port.clone()).map(|()| slot)?,
            None => self.plug(port.clone())?,
        };
        let mut inner = lock(&self.inner);
        let Inner { slots, ports } = &mut *inner;
        if let Some(at) = slots.get_mut(&slot) {
            port.power_on_reset(&mut at.config, false);
        }
        ports.insert(slot, Port { port, card: None, leaving: false, reached: false });
        Ok(slot)
    }

    /// Puts `function` behind the root port in `slot`. If `hot`, the guest is told that a card has come, and turns its power on; else
    /// that is on, as if the card had been there all the time, which is for a machine that does not run.
    ///
    /// # Errors
    /// No port is there, or a card is behind it already.
    pub fn insert(&self, slot: u8, function: Arc<dyn PciFunction>, hot: bool) -> Result<(), PciError> {
        let mut inner = lock(&self.inner);
        let Inner { slots, ports } = &mut *inner;
        let (Some(at), Some(port)) = (slots.get_mut(&slot), ports.get_mut(&slot)) else {
            return Err(PciError::NoPort(slot));
        };
        if let Some(card) = &port.card {
            let (function, card) = (function.name().to_owned(), card.function.name().to_owned());
            return Err(PciError::Occupied { slot, function, card });
        }
        let pin = self.intx.pin_behind(slot);
        function.plugged(pin.clone());
        port.card = Some(Slot::new(function, pin));
        match hot {
            true => port.port.set_present(&mut at.config, true),
            false => port.port.power_on_reset(&mut at.config, true),
        }
        port.reached = port.port.reaches_card(&at.config);
        Ok(())
    }

    /// Asks the guest to let go of the card behind the root port in `slot`, if it has turned its power on.
    ///
    /// # Errors
    /// No port with a card is there, or the guest turns its power on or off just now.
    pub fn eject(&self, slot: u8) -> Result<Ejected, PciError> {
        let mut inner = lock(&self.inner);
        let bus = self.bus.upgrade().ok_or(PciError::NoPort(slot))?;
        let Inner { slots, ports } = &mut *inner;
        let (Some(at), Some(port)) = (slots.get_mut(&slot), ports.get_mut(&slot)) else {
            return Err(PciError::NoPort(slot));
        };
        if port.port.is_busy(&at.config) {
            return Err(PciError::Busy(slot));
        }
        if port.port.is_powered(&at.config) {
            port.leaving = true;
            port.port.press_button(&mut at.config);
            return Ok(Ejected::Asked);
        }
        let function = port.release(&mut at.config, &bus).ok_or(PciError::NoPort(slot))?;
        Ok(Ejected::Gone(function))
    }

    /// Who hears of cards that the guest has let go of, on the thread of the vCPU that did, or of the one that resets the machine. Only
    /// the first one counts.
    pub fn on_release(&self, listener: impl Fn(u8, Arc<dyn PciFunction>) + Send + Sync + 'static) {
        // There is one machine around this bridge.
        let _ = self.released.set(Box::new(listener));
    }

    /// After a write to a port's registers at `offset` of the ECAM window: a card that has lost power is reset, and is gone if it shall
    /// leave.
    pub(super) fn follow(&self, inner: &mut Inner, offset: u64) -> Option<(u8, Arc<dyn PciFunction>)> {
        // Fits: it is masked.
        let slot = (offset >> 15 & u64::from(SLOTS - 1)) as u8;
        if offset >> 20 != 0 {
            return None;
        }
        let Inner { slots, ports } = inner;
        let (at, port) = (slots.get_mut(&slot)?, ports.get_mut(&slot)?);
        let bus = self.bus.upgrade()?;
        if port.leaving && !port.port.is_powered(&at.config) {
            return Some((slot, port.release(&mut at.config, &bus)?));
        }
        let reached = port.port.reaches_card(&at.config);
        if std::mem::replace(&mut port.reached, reached) && !reached {
            port.card.as_mut()?.reset(&bus);
        }
        None
    }

    /// The state after power-on, when the ports' own slots are reset. Cards that shall leave do so.
    pub(super) fn reset_ports(&self, inner: &mut Inner, bus: &Bus) -> Vec<(u8, Arc<dyn PciFunction>)> {
        let mut released = Vec::new();
        let Inner { slots, ports } = inner;
        for (slot, port) in ports {
            let Some(at) = slots.get_mut(slot) else { continue };
            match &mut port.card {
                Some(_) if port.leaving => {
                    released.extend(port.release(&mut at.config, bus).map(|card| (*slot, card)));
                }
                Some(card) => card.reset(bus),
                None => {}
            }
            port.port.power_on_reset(&mut at.config, port.card.is_some());
            port.reached = port.port.reaches_card(&at.config);
        }
        released
    }
}
