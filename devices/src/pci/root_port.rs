//! A root port with a hot-plug slot: the bridge's header and windows, and the slot's registers, by which the guest hears of a card that
//! comes or shall go, and turns its power on and off (PCI Express Base 5.0, 6.7 and 7.5.3). Where the card is and what it does is the
//! [`PciHost`](super::PciHost)'s affair.

use std::fmt;
use std::sync::{Arc, Mutex};

use hvrun_arch::aarch64::layout::Window;

use super::config::{Bar, BarKind, Command, ConfigLayoutError, ConfigSpace, Identity, bridge};
use super::{IntxPin, MsiSink, Msix, PciFunction, msix};
use crate::util::lock;

/// Root port, as QEMU's `pcie-root-port` shows it.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x000c,
    revision: 0,
    class: 0x06_04_00,
    subsystem_vendor: 0,
    subsystem: 0,
    intx: true,
};

/// The BAR with vector table and pending bits.
const MSIX_BAR: u8 = 0;
/// Its size.
const MSIX_BAR_SIZE: u64 = 0x1000;
/// Where in it the pending bits are.
const PBA: u64 = 0x800;
/// The only vector.
const VECTOR: u16 = 0;

/// Registers of the PCI Express capability (PCI Express Base 5.0, 7.5.3), as offsets in it, and their bits.
mod express {
    /// The capability's ID.
    pub const ID: u8 = 0x10;
    /// Bytes of the structure of version 2.
    pub const SIZE: usize = 0x3c;

    /// PCI Express Capabilities (7.5.3.2): version 2, root port, slot implemented, interrupt message 0.
    pub const CAPABILITIES: usize = 0x02;
    pub const CAPABILITIES_VALUE: u16 = 2 | 4 << 4 | 1 << 8;

    /// Device Capabilities (7.5.3.3): role-based error reporting; payloads of 128 bytes.
    pub const DEVICE_CAPABILITIES: usize = 0x04;
    pub const DEVICE_CAPABILITIES_VALUE: u32 = 1 << 15;
    /// Device Control (7.5.3.4): the enables of error reports, without effect.
    pub const DEVICE_CONTROL: usize = 0x08;
    pub const DEVICE_CONTROL_BITS: u16 = 0x000f;

    /// Link Capabilities (7.5.3.6): 2.5 GT/s, one lane, link active reporting; above bit 24 the port's number.
    pub const LINK_CAPABILITIES: usize = 0x0c;
    pub const LINK_CAPABILITIES_VALUE: u32 = 1 | 1 << 4 | 1 << 20;
    pub const LINK_CAPABILITIES_PORT: u32 = 24;
    /// Link Control (7.5.3.7): link disable, common clock and extended synch; the latter two without effect.
    pub const LINK_CONTROL: usize = 0x10;
    pub const LINK_CONTROL_BITS: u16 = LINK_DISABLE | 0x00c0;
    pub const LINK_DISABLE: u16 = 1 << 4;
    /// Link Status (7.5.3.8): 2.5 GT/s over one lane, and whether the data link layer is active.
    pub const LINK_STATUS: usize = 0x12;
    pub const LINK_STATUS_VALUE: u16 = 1 | 1 << 4;
    pub const LINK_ACTIVE: u16 = 1 << 13;

    /// Slot Capabilities (7.5.3.9): attention button, power controller, both indicators, hot-plug capable; above bit 19 the physical
    /// slot's number. A card never leaves by surprise.
    pub const SLOT_CAPABILITIES: usize = 0x14;
    pub const SLOT_CAPABILITIES_VALUE: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6;
    pub const SLOT_NUMBER: u32 = 19;

    /// Slot Control (7.5.3.10): the enables of interrupts in the places of their causes in Slot Status, but for the link's.
    pub const SLOT_CONTROL: usize = 0x18;
    pub const SLOT_CONTROL_BITS: u16 = 0x17fb;
    pub const HOT_PLUG_INTERRUPT: u16 = 1 << 5;
    pub const ATTENTION_OFF: u16 = 3 << 6;
    pub const POWER_INDICATOR: u16 = 3 << 8;
    pub const POWER_INDICATOR_ON: u16 = 1 << 8;
    pub const POWER_INDICATOR_BLINKS: u16 = 2 << 8;
    pub const POWER_INDICATOR_OFF: u16 = 3 << 8;
    pub const POWER_OFF: u16 = 1 << 10;
    pub const LINK_CHANGED_ENABLE: u16 = 1 << 12;

    /// Slot Status (7.5.3.11).
    pub const SLOT_STATUS: usize = 0x1a;
    pub const BUTTON_PRESSED: u16 = 1;
    pub const PRESENCE_CHANGED: u16 = 1 << 3;
    pub const COMMAND_COMPLETED: u16 = 1 << 4;
    pub const PRESENT: u16 = 1 << 6;
    pub const LINK_CHANGED: u16 = 1 << 8;
    /// The causes whose enables have the same bits.
    pub const ENABLED_IN_PLACE: u16 = 0x001f;
    /// All that is cleared by writing ones.
    pub const EVENTS: u16 = ENABLED_IN_PLACE | LINK_CHANGED;

    /// Root Control (7.5.3.12): the enables of errors and PME, without effect.
    pub const ROOT_CONTROL: usize = 0x1c;
    pub const ROOT_CONTROL_BITS: u16 = 0x000f;
    /// Link Capabilities 2 (7.5.3.18): 2.5 GT/s.
    pub const LINK_CAPABILITIES_2: usize = 0x2c;
    pub const LINK_CAPABILITIES_2_VALUE: u32 = 1 << 1;
    /// Link Control 2 (7.5.3.19): the same as target.
    pub const LINK_CONTROL_2: usize = 0x30;
    pub const LINK_CONTROL_2_VALUE: u16 = 1;
}

/// A root port. The [`PciHost`](super::PciHost) tells it of its card, and asks it whether that can be reached.
pub struct RootPort {
    name: String,
    config: ConfigSpace,
    /// Offset of the PCI Express capability.
    express: u16,
    /// Offset of the MSI-X capability.
    msix_cap: u16,
    msix: Msix,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// There is a card in the slot.
    present: bool,
    /// An enabled cause is pending.
    asserted: bool,
    pin: Option<Arc<IntxPin>>,
}

impl RootPort {
    /// The port called `name`, whose slot has the number `slot` (13 bits) on the outside of the machine, and which is port `port` itself.
    ///
    /// # Errors
    /// None that depends on these values.
    pub fn new(name: &str, slot: u16, port: u8, msi: Arc<dyn MsiSink>) -> Result<Self, ConfigLayoutError> {
        let msix = Msix::new(1, msi);
        let mut config = ConfigSpace::bridge(IDENTITY);
        config.add_bar(Bar {
            index: MSIX_BAR,
            size: MSIX_BAR_SIZE,
            kind: BarKind::Memory32,
            prefetchable: false,
        })?;
        let (body, writable) = msix.capability((MSIX_BAR, 0), (MSIX_BAR, PBA as u32));
        let msix_cap = config.add_capability(msix::CAPABILITY_ID, &body, &writable)?;
        let express = add_express(&mut config, slot, port)?;
        let state = Mutex::new(State::default());
        Ok(RootPort { name: name.to_owned(), config, express, msix_cap, msix, state })
    }

    fn get(&self, config: &ConfigSpace, register: usize) -> u16 {
        u16::from_le_bytes(config.get(self.express + register as u16))
    }

    fn set(&self, config: &mut ConfigSpace, register: usize, value: u16) {
        config.set(self.express + register as u16, &value.to_le_bytes());
    }

    /// A card has come or gone: the guest hears of it. Whoever puts one in presses the attention button as well (6.7.1.5): a driver may
    /// take presence alone for an accident, and Linux does not ask for it where there is a button. With both, it does not wait.
    pub(super) fn set_present(&self, config: &mut ConfigSpace, present: bool) {
        let mut state = lock(&self.state);
        if std::mem::replace(&mut state.present, present) != present {
            let button = if present { express::BUTTON_PRESSED } else { 0 };
            self.raise(config, express::PRESENCE_CHANGED | button);
        }
        self.refresh(config, &mut state);
    }

    /// The slot as it is after power-on: powered if there is a card in it, with no event for that.
    pub(super) fn power_on_reset(&self, config: &mut ConfigSpace, present: bool) {
        let mut state = lock(&self.state);
        state.present = present;
        let control = match present {
            true => express::ATTENTION_OFF | express::POWER_INDICATOR_ON,
            false => express::ATTENTION_OFF | express::POWER_INDICATOR_OFF | express::POWER_OFF,
        };
        self.set(config, express::SLOT_CONTROL, control);
        self.refresh(config, &mut state);
        let status = self.get(config, express::SLOT_STATUS) & !express::EVENTS;
        self.set(config, express::SLOT_STATUS, status);
        self.refresh(config, &mut state);
    }

    /// A saved configuration space, whose read-only bits were not saved, is that of a slot with or without a card.
    pub(super) fn restored(&self, config: &mut ConfigSpace, present: bool) {
        let mut state = lock(&self.state);
        state.present = present;
        let events = self.get(config, express::SLOT_STATUS) & express::EVENTS;
        self.refresh(config, &mut state);
        // That the link is active is no news.
        let status = self.get(config, express::SLOT_STATUS) & !express::EVENTS;
        self.set(config, express::SLOT_STATUS, status | events);
        self.interrupt(config, &mut state);
    }

    /// Somebody presses the attention button: would the guest please let go of the card.
    pub(super) fn press_button(&self, config: &mut ConfigSpace) {
        let mut state = lock(&self.state);
        self.raise(config, express::BUTTON_PRESSED);
        self.refresh(config, &mut state);
    }

    /// Whether the guest has turned the slot's power on.
    pub(super) fn is_powered(&self, config: &ConfigSpace) -> bool {
        self.get(config, express::SLOT_CONTROL) & express::POWER_OFF == 0
    }

    /// Whether the guest is busy turning the power on or off: it waits for a second press of the button, or does it just now.
    pub(super) fn is_busy(&self, config: &ConfigSpace) -> bool {
        let indicator = self.get(config, express::SLOT_CONTROL) & express::POWER_INDICATOR;
        indicator == express::POWER_INDICATOR_BLINKS
    }

    /// Whether a card in the slot answers: power, link and bus are on.
    pub(super) fn reaches_card(&self, config: &ConfigSpace) -> bool {
        let control = u16::from_le_bytes(config.get(bridge::CONTROL));
        self.get(config, express::LINK_STATUS) & express::LINK_ACTIVE != 0
            && control & bridge::CONTROL_SECONDARY_RESET == 0
    }

    /// The bus behind the port.
    pub(super) fn secondary_bus(config: &ConfigSpace) -> u8 {
        let [bus] = config.get(bridge::SECONDARY_BUS);
        bus
    }

    /// What the port passes on of `windows`: its own for memory and for prefetchable memory (PCI-to-PCI Bridge 1.2, 3.2.5.8 to 3.2.5.10).
    pub(super) fn passes(config: &ConfigSpace, windows: &[Window]) -> Vec<Window> {
        let half = |register: u16| u64::from(u16::from_le_bytes(config.get(register)) & 0xfff0) << 16;
        let upper = |register: u16| u64::from(u32::from_le_bytes(config.get(register))) << 32;
        let (memory, prefetchable) = (bridge::MEMORY_BASE, bridge::PREFETCHABLE_BASE);
        let (base, limit) = (bridge::PREFETCHABLE_BASE_UPPER, bridge::PREFETCHABLE_BASE_UPPER + 4);
        if !config.command().contains(Command::MEMORY) {
            return Vec::new();
        }
        let own = [
            (half(memory), half(memory + 2)),
            (half(prefetchable) | upper(base), half(prefetchable + 2) | upper(limit)),
        ];
        let both = own.into_iter().flat_map(|own| windows.iter().map(move |window| (own, window)));
        let common = both.filter_map(|((base, limit), window)| {
            let base = base.max(window.base);
            // A limit has ones below its register's bits. One below the base means that there is no window.
            let end = (limit | 0xf_ffff).saturating_add(1).min(window.end());
            (base < end).then(|| Window::new(base, end - base))
        });
        common.collect()
    }

    fn raise(&self, config: &mut ConfigSpace, event: u16) {
        let status = self.get(config, express::SLOT_STATUS) | event;
        self.set(config, express::SLOT_STATUS, status);
    }

    /// Brings presence, link and interrupt in line with what they follow from.
    fn refresh(&self, config: &mut ConfigSpace, state: &mut State) {
        let mut slot = self.get(config, express::SLOT_STATUS) & !express::PRESENT;
        if state.present {
            slot |= express::PRESENT;
        }
        let disabled = self.get(config, express::LINK_CONTROL) & express::LINK_DISABLE != 0;
        let link = self.get(config, express::LINK_STATUS);
        let active = state.present && self.is_powered(config) && !disabled;
        let now = if active { link | express::LINK_ACTIVE } else { link & !express::LINK_ACTIVE };
        if now != link {
            self.set(config, express::LINK_STATUS, now);
            slot |= express::LINK_CHANGED;
        }
        self.set(config, express::SLOT_STATUS, slot);
        self.interrupt(config, state);
    }

    /// An interrupt is a message when the first enabled cause comes (6.7.3.4), or the pin for as long as there is one.
    fn interrupt(&self, config: &ConfigSpace, state: &mut State) {
        let (control, status) =
            (self.get(config, express::SLOT_CONTROL), self.get(config, express::SLOT_STATUS));
        let link = status & express::LINK_CHANGED != 0 && control & express::LINK_CHANGED_ENABLE != 0;
        let causes = status & control & express::ENABLED_IN_PLACE != 0 || link;
        let asserted = causes && control & express::HOT_PLUG_INTERRUPT != 0;
        let by_message = self.msix.enabled();
        if asserted && !state.asserted && by_message {
            self.msix.trigger(VECTOR);
        }
        state.asserted = asserted;
        if let Some(pin) = &state.pin {
            pin.set(asserted && !by_message);
        }
    }

    fn set_msix_control(&self, config: &ConfigSpace) {
        let control = u16::from_le_bytes(config.get(self.msix_cap + msix::CONTROL_OFFSET));
        self.msix.set_control(control);
    }
}

/// The PCI Express capability.
fn add_express(config: &mut ConfigSpace, slot: u16, port: u8) -> Result<u16, ConfigLayoutError> {
    let (mut registers, mut writable) = ([0; express::SIZE], [0; express::SIZE]);
    let link = express::LINK_CAPABILITIES_VALUE | u32::from(port) << express::LINK_CAPABILITIES_PORT;
    let number = u32::from(slot) << express::SLOT_NUMBER;
    let long = [
        (express::DEVICE_CAPABILITIES, express::DEVICE_CAPABILITIES_VALUE),
        (express::LINK_CAPABILITIES, link),
        (express::SLOT_CAPABILITIES, express::SLOT_CAPABILITIES_VALUE | number),
        (express::LINK_CAPABILITIES_2, express::LINK_CAPABILITIES_2_VALUE),
    ];
    for (register, value) in long {
        registers[register..register + 4].copy_from_slice(&value.to_le_bytes());
    }
    let short = [
        (express::CAPABILITIES, express::CAPABILITIES_VALUE),
        (express::LINK_STATUS, express::LINK_STATUS_VALUE),
        (express::LINK_CONTROL_2, express::LINK_CONTROL_2_VALUE),
    ];
    for (register, value) in short {
        registers[register..register + 2].copy_from_slice(&value.to_le_bytes());
    }
    let bits = [
        (express::DEVICE_CONTROL, express::DEVICE_CONTROL_BITS),
        (express::LINK_CONTROL, express::LINK_CONTROL_BITS),
        (express::SLOT_CONTROL, express::SLOT_CONTROL_BITS),
        (express::ROOT_CONTROL, express::ROOT_CONTROL_BITS),
    ];
    for (register, mask) in bits {
        writable[register..register + 2].copy_from_slice(&mask.to_le_bytes());
    }
    let offset = config.add_capability(express::ID, &registers[2..], &writable[2..])?;
    config.clear_by_ones(offset + express::SLOT_STATUS as u16, &express::EVENTS.to_le_bytes());
    Ok(offset)
}

impl PciFunction for RootPort {
    fn name(&self) -> &str {
        &self.name
    }

    fn config_space(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn plugged(&self, pin: Arc<IntxPin>) {
        lock(&self.state).pin = Some(pin);
    }

    fn config_written(&self, config: &mut ConfigSpace, offset: u16, len: usize) {
        self.set_msix_control(config);
        let mut state = lock(&self.state);
        let (start, end) = (usize::from(offset), usize::from(offset) + len);
        let control = usize::from(self.express) + express::SLOT_CONTROL;
        self.refresh(config, &mut state);
        // Any write to Slot Control is a command, and it is done at once (6.7.3.2).
        if start < control + 2 && end > control {
            self.raise(config, express::COMMAND_COMPLETED);
            self.interrupt(config, &mut state);
        }
    }

    fn config_restored(&self, config: &mut ConfigSpace) {
        self.set_msix_control(config);
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(PBA) {
            None => self.msix.read_table(offset, data),
            Some(offset) => self.msix.read_pba(offset, data),
        }
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        // Pending bits cannot be written.
        if offset < PBA {
            self.msix.write_table(offset, data);
        }
    }

    fn reset(&self) {
        self.msix.reset();
        lock(&self.state).asserted = false;
    }
}

impl fmt::Debug for RootPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootPort")
            .field("name", &self.name)
            .field("present", &lock(&self.state).present)
            .field("msix", &self.msix)
            .finish_non_exhaustive()
    }
}
