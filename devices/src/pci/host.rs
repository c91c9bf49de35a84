//! The host bridge (`pci-host-ecam-generic`): finds the function that a configuration access is for, and keeps each BAR on the
//! [`Bus`] where the guest wants it, as far as that is in a PCI window and free. Behind a [`RootPort`] there is a bus with one function,
//! which may come and go while the machine runs (`ports`). Not what a function does behind its BARs.

mod ports;
mod slot;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use hvrun_arch::IrqChip;
use hvrun_arch::aarch64::layout::{Layout, PCI_INTX_SPI, Window};
use serde::{Deserialize, Serialize};

use super::config::{Bar, ConfigSpace, ConfigState, Identity, reg};
use super::intx::IntxLines;
use super::{IntxPin, PciFunction, RootPort};
use crate::bus::{Bus, BusError, MmioDevice};
use crate::util::{LogLimit, lock};
pub use ports::Ejected;
use ports::Port;
use slot::Slot;

/// How many devices a bus has.
pub(super) const SLOTS: u8 = 32;

/// The pin of almost every function.
const INTA: u8 = 1;

/// Host bridge, as QEMU's `gpex` shows it.
const BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    intx: false,
};

/// Why a function could not be plugged in.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PciError {
    /// All slots are taken.
    #[error("there is no PCI slot left for {0}: the bus has slots 1 to 31")]
    Full(String),
    /// The slot asked for is taken or none.
    #[error(
        "PCI slot {slot} cannot be had for {function}: slots 1 to 31 are there, and each takes one function"
    )]
    Slot {
        /// The function.
        function: String,
        /// The slot asked for.
        slot: u8,
    },
    /// A saved state is of another machine.
    #[error("the saved state has a function in PCI slot {0}, where this machine has none")]
    StateSlot(u8),
    /// No port is there.
    #[error("there is no root port in PCI slot {0}")]
    NoPort(u8),
    /// A port has its card already.
    #[error("the root port in PCI slot {slot} has no room for {function}: {card} is behind it")]
    Occupied {
        /// Where the port is.
        slot: u8,
        /// The new function.
        function: String,
        /// The function that is there.
        card: String,
    },
    /// The guest turns the slot's power on or off just now.
    #[error("the guest is busy with the card behind the root port in PCI slot {0}; try again")]
    Busy(u8),
}

/// What a snapshot keeps of the bridge. Each function's own state is its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    /// The slots in use.
    pub slots: Vec<SlotState>,
}

/// What a snapshot keeps of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Its number.
    pub slot: u8,
    /// The function's configuration space.
    pub config: ConfigState,
    /// That of the card behind it, if it is a root port with one.
    #[serde(default)]
    pub card: Option<ConfigState>,
}

/// Who hears of a card that the guest has let go of: the port's slot, and the function, which answers nowhere any more.
type Listener = Box<dyn Fn(u8, Arc<dyn PciFunction>) + Send + Sync>;

/// One PCI bus with up to 31 devices, each with one function, and behind each root port a bus with one.
///
/// [`PciHost::plug`] and [`PciHost::unplug`] may be called while the machine runs.
pub struct PciHost {
    bus: Weak<Bus>,
    windows: [Window; 2],
    intx: Arc<IntxLines>,
    inner: Mutex<Inner>,
    released: OnceLock<Listener>,
    odd_bars: LogLimit,
}

/// What is plugged in.
#[derive(Default)]
struct Inner {
    /// The functions on bus 0.
    slots: BTreeMap<u8, Slot>,
    /// What is behind those of them that are ports.
    ports: BTreeMap<u8, Port>,
}

impl PciHost {
    /// A bridge with no devices, its ECAM and port I/O windows on `bus`.
    ///
    /// # Errors
    /// Something else is in these windows.
    pub fn new(bus: &Arc<Bus>, chip: &Arc<dyn IrqChip>, layout: &Layout) -> Result<Arc<Self>, BusError> {
        let host = Arc::new(PciHost {
            bus: Arc::downgrade(bus),
            windows: [layout.pci_mmio32, layout.pci_mmio64],
            intx: IntxLines::new(chip, PCI_INTX_SPI),
            inner: Mutex::default(),
            released: OnceLock::new(),
            odd_bars: LogLimit::default(),
        });
        lock(&host.inner).slots.insert(0, Slot::new(Arc::new(Bridge), host.intx.pin(0, INTA)));
        bus.insert(layout.pci_ecam, host.clone())?;
        bus.insert(layout.pci_pio, Arc::new(NoPorts))?;
        Ok(host)
    }

    /// Plugs `function` into the lowest free slot and gives its number.
    ///
    /// # Errors
    /// No slot is free.
    pub fn plug(&self, function: Arc<dyn PciFunction>) -> Result<u8, PciError> {
        let mut inner = lock(&self.inner);
        let free = (1..SLOTS).find(|slot| !inner.slots.contains_key(slot));
        let slot = free.ok_or_else(|| PciError::Full(function.name().to_owned()))?;
        inner.slots.insert(slot, self.slot(slot, function));
        Ok(slot)
    }

    /// Plugs `function` into `slot`.
    ///
    /// # Errors
    /// There is no such slot, or it is taken.
    pub fn plug_at(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let mut inner = lock(&self.inner);
        if !(1..SLOTS).contains(&slot) || inner.slots.contains_key(&slot) {
            return Err(PciError::Slot { function: function.name().to_owned(), slot });
        }
        inner.slots.insert(slot, self.slot(slot, function));
        Ok(())
    }

    fn slot(&self, slot: u8, function: Arc<dyn PciFunction>) -> Slot {
        let [pin] = function.config_space().get(reg::INTERRUPT_PIN);
        let pin = self.intx.pin(slot, pin.max(INTA));
        function.plugged(pin.clone());
        Slot::new(function, pin)
    }

    /// Takes the function in `slot` away, and what is behind it: BARs answer no more, and the interrupt pin is low.
    pub fn unplug(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        if slot == 0 {
            return None;
        }
        let mut inner = lock(&self.inner);
        let mut removed = inner.slots.remove(&slot)?;
        let card = inner.ports.remove(&slot).and_then(|port| port.card);
        if let Some(bus) = self.bus.upgrade() {
            removed.unmap_all(&bus);
            card.into_iter().for_each(|card| drop(card.take_away(&bus)));
        }
        removed.pin.set(false);
        self.map_bars(&mut inner);
        Some(removed.function)
    }

    /// Number and name of every slot in use, the bridge's own first.
    pub fn functions(&self) -> Vec<(u8, String)> {
        lock(&self.inner).slots.iter().map(|(slot, at)| (*slot, at.function.name().to_owned())).collect()
    }

    /// Of every card behind a root port: the port's slot, the number that the guest has given to the bus, and its name.
    pub fn cards(&self) -> Vec<(u8, u8, String)> {
        let inner = lock(&self.inner);
        let card = |(slot, port): (&u8, &Port)| {
            let bus = RootPort::secondary_bus(&inner.slots.get(slot)?.config);
            Some((*slot, bus, port.card.as_ref()?.function.name().to_owned()))
        };
        inner.ports.iter().filter_map(card).collect()
    }

    /// The BARs of the function in `slot`, and the address that the guest has given to each, if it answers there.
    pub fn bars(&self, slot: u8) -> Vec<(Bar, Option<u64>)> {
        lock(&self.inner).slots.get(&slot).map(Slot::bars).unwrap_or_default()
    }

    /// The same of the card behind the root port in `slot`.
    pub fn card_bars(&self, slot: u8) -> Vec<(Bar, Option<u64>)> {
        let inner = lock(&self.inner);
        let card = inner.ports.get(&slot).and_then(|port| port.card.as_ref());
        card.map(Slot::bars).unwrap_or_default()
    }

    /// Brings every BAR to where the guest wants it: first those leave that must, so that two can swap places, then those come
    /// that can.
    fn map_bars(&self, inner: &mut Inner) {
        let Some(bus) = self.bus.upgrade() else { return };
        let Inner { slots, ports } = inner;
        for slot in slots.values_mut() {
            slot.unmap_moved(&bus, &self.windows);
        }
        let mut cards = Vec::new();
        for (at, port) in ports {
            let Some(slot) = slots.get(at) else { continue };
            let windows = port.windows(&slot.config, &self.windows);
            if let Some(card) = &mut port.card {
                card.unmap_moved(&bus, &windows);
                cards.push((card, windows));
            }
        }
        for slot in slots.values_mut() {
            slot.map_wanted(&bus, &self.windows, &self.odd_bars);
        }
        for (card, windows) in cards {
            card.map_wanted(&bus, &windows, &self.odd_bars);
        }
    }

    /// For a snapshot.
    pub fn state(&self) -> PciHostState {
        let inner = lock(&self.inner);
        let state = |(slot, at): (&u8, &Slot)| SlotState {
            slot: *slot,
            config: at.config.state(),
            card: inner.ports.get(slot).and_then(|port| Some(port.card.as_ref()?.config.state())),
        };
        PciHostState { slots: inner.slots.iter().map(state).collect() }
    }

    /// Takes `state`: configuration spaces and with them the BARs' places.
    ///
    /// # Errors
    /// It has a slot or a card that is not here; nothing is changed then.
    pub fn restore(&self, state: &PciHostState) -> Result<(), PciError> {
        let mut inner = lock(&self.inner);
        let missing = |saved: &&SlotState| {
            let card = || inner.ports.get(&saved.slot).is_some_and(|port| port.card.is_some());
            !inner.slots.contains_key(&saved.slot) || saved.card.is_some() && !card()
        };
        if let Some(missing) = state.slots.iter().find(missing) {
            return Err(PciError::StateSlot(missing.slot));
        }
        let Inner { slots, ports } = &mut *inner;
        for saved in &state.slots {
            let Some(slot) = slots.get_mut(&saved.slot) else { continue };
            slot.restore(&saved.config);
            if let Some(port) = ports.get_mut(&saved.slot) {
                port.restore(&mut slot.config, saved.card.as_ref());
            }
        }
        self.map_bars(&mut inner);
        self.intx.force();
        Ok(())
    }

    /// Tells the listener of cards that have gone. Not to be called with the lock held.
    fn tell_of(&self, released: Option<(u8, Arc<dyn PciFunction>)>) {
        if let (Some((slot, function)), Some(listener)) = (released, self.released.get()) {
            listener(slot, function);
        }
    }
}

impl Inner {
    /// Whose configuration space is at an offset into the ECAM window, and which of its registers (PCI Express Base 5.0, 7.2.2).
    fn find(&mut self, offset: u64) -> Option<(&mut Slot, u16)> {
        let (bus, device, function) = (offset >> 20, offset >> 15 & 0x1f, offset >> 12 & 7);
        // All fit: they are masked, or a window is no larger.
        let (bus, device, register) = (bus as u8, device as u8, (offset & 0xfff) as u16);
        if function != 0 {
            return None;
        }
        if bus == 0 {
            return Some((self.slots.get_mut(&device)?, register));
        }
        let slots = &self.slots;
        let leads_there =
            |at: &u8| slots.get(at).is_some_and(|slot| RootPort::secondary_bus(&slot.config) == bus);
        let (at, port) = self.ports.iter_mut().find(|(at, _)| leads_there(at))?;
        // A port's bus has one device (PCI Express Base 5.0, 7.3.1).
        let reached = device == 0 && port.port.reaches_card(&slots.get(at)?.config);
        Some((port.card.as_mut().filter(|_| reached)?, register))
    }
}

impl MmioDevice for PciHost {
    fn name(&self) -> &str {
        "PCI host bridge"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match lock(&self.inner).find(offset) {
            Some((slot, register)) => slot.config_read(register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = lock(&self.inner);
        let Some((slot, register)) = inner.find(offset) else { return };
        let moves = slot.config_write(register, data);
        let released = self.follow(&mut inner, offset);
        if moves || released.is_some() {
            self.map_bars(&mut inner);
        }
        drop(inner);
        self.tell_of(released);
    }

    fn reset(&self) {
        let mut inner = lock(&self.inner);
        let Some(bus) = self.bus.upgrade() else { return };
        for slot in inner.slots.values_mut() {
            slot.reset(&bus);
        }
        let released = self.reset_ports(&mut inner, &bus);
        drop(inner);
        released.into_iter().for_each(|card| self.tell_of(Some(card)));
    }
}

impl fmt::Debug for PciHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciHost").field("functions", &self.functions()).finish_non_exhaustive()
    }
}

/// The bridge's own function, in slot 0. It does nothing.
struct Bridge;

impl PciFunction for Bridge {
    fn name(&self) -> &str {
        "PCI host bridge"
    }

    fn config_space(&self) -> ConfigSpace {
        ConfigSpace::new(BRIDGE)
    }

    fn bar_read(&self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

/// Port I/O: the window is there because drivers expect one, and nobody answers in it.
struct NoPorts;

impl MmioDevice for NoPorts {
    fn name(&self) -> &str {
        "PCI I/O ports"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

#[cfg(test)]
mod tests;
