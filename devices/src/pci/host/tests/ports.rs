//! Root ports and the cards behind them, as a guest's hot-plug driver sees them.

use super::*;
use crate::pci::RootPort;
use crate::pci::config::bridge;
use crate::pci::host::Ejected;
use crate::pci::msi::fake::Messages;

/// Where the capabilities of a root port are: MSI-X first, then PCI Express.
const MSIX: u16 = 0x40;
const EXPRESS: u16 = 0x4c;
const LINK_CONTROL: u16 = EXPRESS + 0x10;
const SLOT_CAPABILITIES: u16 = EXPRESS + 0x14;
const SLOT_CONTROL: u16 = EXPRESS + 0x18;
const SLOT_STATUS: u16 = EXPRESS + 0x1a;

/// Bits of Slot Status (PCI Express Base 5.0, 7.5.3.11).
const BUTTON: u16 = 1;
const PRESENCE_CHANGED: u16 = 1 << 3;
const COMPLETED: u16 = 1 << 4;
const PRESENT: u16 = 1 << 6;
const LINK_CHANGED: u16 = 1 << 8;
/// Slot Control (7.5.3.10): every interrupt that a driver wants; indicator and power on, blinking, off.
const INTERRUPTS: u16 = 0x1039;
const ON: u16 = 1 << 8;
const BLINKS: u16 = 2 << 8;
const OFF: u16 = 3 << 8 | 1 << 10;

const PORT: u64 = 1;
const BUS: u64 = 3;

/// A machine with a root port, whose bus has the number [`BUS`] and whose window is the first MiB of PCI's addresses.
struct Chassis {
    bench: Bench,
    messages: Arc<Messages>,
    released: Arc<Mutex<Vec<u8>>>,
}

impl Chassis {
    fn new() -> Chassis {
        let (bench, messages) = (Bench::new(), Arc::new(Messages::default()));
        let port = RootPort::new("rp0", 7, 2, messages.clone()).unwrap();
        assert_eq!(bench.host.plug_port(None, Arc::new(port)), Ok(PORT as u8));
        let released = Arc::new(Mutex::new(Vec::new()));
        let heard = released.clone();
        bench.host.on_release(move |slot, _| lock(&heard).push(slot));
        let chassis = Chassis { bench, messages, released };
        chassis.number_buses();
        chassis
    }

    /// What a kernel does after each reset.
    fn number_buses(&self) {
        let bench = &self.bench;
        bench.set_config(PORT, bridge::PRIMARY_BUS, (BUS << 8 | BUS << 16) as u32);
        bench.set_config(PORT, bridge::MEMORY_BASE, (LOW >> 16 | LOW) as u32);
        bench.set_command(PORT, Command::MEMORY | Command::BUS_MASTER);
    }

    fn insert(&self, card: &Arc<Probe>, hot: bool) {
        self.bench.host.insert(PORT as u8, card.clone(), hot).unwrap();
    }

    /// A register of the card.
    fn card(&self, register: u16) -> u64 {
        self.bench.layout.pci_ecam.base + (BUS << 20) + u64::from(register)
    }

    fn is_there(&self) -> bool {
        self.bench.read4(self.card(0)) != u32::MAX
    }

    /// Gives the card's first BAR a place, and turns it on.
    fn map_card(&self, at: u64) {
        self.bench.bus.write(self.card(0x10), &(at as u32).to_le_bytes());
        self.bench.bus.write(self.card(reg::COMMAND), &Command::MEMORY.bits().to_le_bytes());
    }

    fn get2(&self, register: u16) -> u16 {
        let mut data = [0; 2];
        self.bench.bus.read(self.bench.register(PORT, register), &mut data);
        u16::from_le_bytes(data)
    }

    fn set2(&self, register: u16, value: u16) {
        self.bench.bus.write(self.bench.register(PORT, register), &value.to_le_bytes());
    }

    fn status(&self) -> u16 {
        self.get2(SLOT_STATUS)
    }

    /// A driver's way: look, and clear what was seen.
    fn take_events(&self) -> u16 {
        let status = self.status();
        self.set2(SLOT_STATUS, status);
        status & !PRESENT
    }

    /// Turns on interrupts by MSI-X, as a driver does.
    fn enable_messages(&self) {
        self.bench.set_config(PORT, 0x10, HIGH_PORT_BAR as u32);
        for (offset, word) in [(0, 0x0802_0040_u32), (4, 0), (8, 99), (12, 0)] {
            self.bench.bus.write(HIGH_PORT_BAR + offset, &word.to_le_bytes());
        }
        self.set2(MSIX + 2, 1 << 15);
        self.set2(SLOT_CONTROL, INTERRUPTS | OFF);
        self.take_events();
    }

    fn messages(&self) -> usize {
        self.messages.all().len()
    }
}

/// Where the port's own BAR is put.
const HIGH_PORT_BAR: u64 = 0x1100_0000;

#[test]
fn a_root_port_is_a_bridge_with_a_hot_plug_slot_of_its_number() {
    let chassis = Chassis::new();
    let bench = &chassis.bench;
    assert_eq!(bench.config(PORT, 0), 0x000c_1b36);
    assert_eq!(bench.config(PORT, 8), 0x0604_0000);
    assert_eq!(bench.config(PORT, reg::HEADER_TYPE & !3) >> 16 & 0xff, 1);
    assert_eq!(bench.config(PORT, EXPRESS) >> 16, 0x0142);
    let slot = bench.config(PORT, SLOT_CAPABILITIES);
    assert_eq!((slot >> 19, slot & 0x7f), (7, 0x5b));
}

#[test]
fn an_empty_slot_is_without_power_and_a_cold_plugged_one_is_not() {
    let chassis = Chassis::new();
    assert_eq!((chassis.get2(SLOT_CONTROL) & (OFF | ON), chassis.status()), (OFF, 0));
    chassis.insert(&Probe::new(1), false);
    assert_eq!((chassis.get2(SLOT_CONTROL) & OFF, chassis.status()), (ON, PRESENT));
    assert!(chassis.is_there());
}

#[test]
fn a_card_that_comes_is_told_and_is_there_when_its_power_is_on() {
    let chassis = Chassis::new();
    chassis.enable_messages();
    let before = chassis.messages();
    chassis.insert(&Probe::new(1), true);
    assert_eq!(chassis.messages(), before + 1);
    assert_eq!(chassis.take_events(), PRESENCE_CHANGED | BUTTON);
    assert!(!chassis.is_there());
    chassis.set2(SLOT_CONTROL, INTERRUPTS | BLINKS);
    assert!(chassis.is_there());
    assert_eq!(chassis.take_events(), COMPLETED | LINK_CHANGED);
    assert_eq!(chassis.get2(LINK_CONTROL + 2) >> 13 & 1, 1);
}

#[test]
fn a_card_is_on_its_own_bus_as_device_0_and_nowhere_else() {
    let chassis = Chassis::new();
    chassis.insert(&Probe::new(5), false);
    let bench = &chassis.bench;
    assert_eq!(bench.read4(chassis.card(0)), 0x1005_1af4);
    let others = [chassis.card(0) + (1 << 15), chassis.card(0) + (1 << 12), chassis.card(0) + (1 << 20)];
    assert_eq!(others.map(|addr| bench.read4(addr)), [u32::MAX; 3]);
    bench.set_config(PORT, bridge::PRIMARY_BUS, 0);
    assert!(!chassis.is_there());
}

#[test]
fn a_card_s_bar_answers_within_the_port_s_window_alone() {
    let chassis = Chassis::new();
    chassis.insert(&Probe::new(1), false);
    for (at, there) in [(LOW, true), (LOW + 0xf_f000, true), (LOW + 0x10_0000, false)] {
        chassis.map_card(at);
        assert_eq!(chassis.bench.windows("probe").contains(&Window::new(at, 0x1000)), there, "{at:#x}");
    }
    chassis.map_card(LOW);
    chassis.bench.set_command(PORT, Command::BUS_MASTER);
    assert_eq!(chassis.bench.windows("probe"), []);
    chassis.bench.set_command(PORT, Command::MEMORY);
    assert_eq!(chassis.bench.read4(LOW), 0x1010_1010);
}

#[test]
fn a_card_s_64_bit_bar_answers_within_the_prefetchable_window() {
    let chassis = Chassis::new();
    chassis.insert(&Probe::new(1), false);
    let bench = &chassis.bench;
    bench.bus.write(chassis.card(0x18), &0_u32.to_le_bytes());
    bench.bus.write(chassis.card(0x1c), &((HIGH >> 32) as u32).to_le_bytes());
    chassis.map_card(0);
    assert_eq!(bench.windows("probe"), []);
    bench.set_config(PORT, bridge::PREFETCHABLE_BASE_UPPER, (HIGH >> 32) as u32);
    bench.set_config(PORT, bridge::PREFETCHABLE_BASE_UPPER + 4, (HIGH >> 32) as u32);
    assert_eq!(bench.windows("probe"), [Window::new(HIGH, 0x4000)]);
}

#[test]
fn a_card_asked_for_goes_when_its_power_does() {
    let (chassis, card) = (Chassis::new(), Probe::new(1));
    chassis.enable_messages();
    chassis.insert(&card, false);
    chassis.set2(SLOT_CONTROL, INTERRUPTS | ON);
    chassis.take_events();
    chassis.map_card(LOW);
    let before = chassis.messages();
    assert!(matches!(chassis.bench.host.eject(PORT as u8), Ok(Ejected::Asked)));
    assert_eq!((chassis.messages(), chassis.take_events()), (before + 1, BUTTON));
    chassis.set2(SLOT_CONTROL, INTERRUPTS | BLINKS);
    assert!(chassis.is_there() && lock(&chassis.released).is_empty());
    chassis.set2(SLOT_CONTROL, INTERRUPTS | OFF);
    assert_eq!(*lock(&chassis.released), [PORT as u8]);
    assert_eq!((chassis.status() & PRESENT, *lock(&card.resets)), (0, 1));
    assert_eq!((chassis.is_there(), chassis.bench.windows("probe")), (false, vec![]));
    let gone = COMPLETED | PRESENCE_CHANGED | LINK_CHANGED;
    assert_eq!(chassis.take_events() & gone, gone);
    chassis.insert(&Probe::new(2), true);
}

#[test]
fn a_card_whose_power_goes_unasked_stays_and_is_reset() {
    let (chassis, card) = (Chassis::new(), Probe::new(1));
    chassis.insert(&card, false);
    chassis.map_card(LOW);
    chassis.set2(SLOT_CONTROL, OFF);
    assert_eq!((*lock(&card.resets), chassis.bench.windows("probe")), (1, vec![]));
    assert!(lock(&chassis.released).is_empty() && chassis.status() & PRESENT != 0 && !chassis.is_there());
    chassis.set2(SLOT_CONTROL, ON);
    assert!(chassis.is_there());
    assert_eq!(chassis.bench.read4(chassis.card(0x10)), 0);
    chassis.set2(SLOT_CONTROL, OFF);
    assert!(matches!(chassis.bench.host.eject(PORT as u8), Ok(Ejected::Gone(_))));
    assert!(lock(&chassis.released).is_empty() && chassis.status() & PRESENT == 0);
}

#[test]
fn a_guest_that_is_busy_with_the_slot_is_not_asked() {
    let chassis = Chassis::new();
    chassis.insert(&Probe::new(1), false);
    chassis.set2(SLOT_CONTROL, BLINKS);
    let error = chassis.bench.host.eject(PORT as u8).unwrap_err();
    assert_eq!((error, chassis.status() & BUTTON), (PciError::Busy(PORT as u8), 0));
}

#[test]
fn a_bus_held_in_reset_and_a_disabled_link_hide_the_card() {
    let (chassis, card) = (Chassis::new(), Probe::new(1));
    chassis.insert(&card, false);
    chassis.set2(bridge::CONTROL, bridge::CONTROL_SECONDARY_RESET);
    assert_eq!((chassis.is_there(), *lock(&card.resets)), (false, 1));
    chassis.set2(bridge::CONTROL, 0);
    assert!(chassis.is_there());
    chassis.set2(LINK_CONTROL, 1 << 4);
    assert_eq!((chassis.is_there(), *lock(&card.resets)), (false, 2));
    chassis.set2(LINK_CONTROL, 0);
    assert!(chassis.is_there());
}

#[test]
fn events_are_cleared_by_ones_and_one_message_is_sent_for_all_that_wait() {
    let chassis = Chassis::new();
    chassis.enable_messages();
    let before = chassis.messages();
    chassis.insert(&Probe::new(1), true);
    chassis.set2(SLOT_CONTROL, INTERRUPTS | ON);
    assert_eq!(chassis.messages(), before + 1);
    chassis.set2(SLOT_STATUS, 0);
    assert_eq!(chassis.status() & !PRESENT, PRESENCE_CHANGED | BUTTON | COMPLETED | LINK_CHANGED);
    chassis.set2(SLOT_STATUS, PRESENCE_CHANGED | BUTTON);
    assert_eq!(chassis.status() & !PRESENT, COMPLETED | LINK_CHANGED);
    chassis.take_events();
    chassis.set2(SLOT_CONTROL, INTERRUPTS | ON);
    assert_eq!(chassis.messages(), before + 2);
}

#[test]
fn without_msi_x_the_pin_is_held_while_an_event_waits() {
    let chassis = Chassis::new();
    chassis.set2(SLOT_CONTROL, INTERRUPTS | OFF);
    chassis.take_events();
    assert!(!chassis.bench.chip.level());
    chassis.insert(&Probe::new(1), true);
    assert!(chassis.bench.chip.level());
    chassis.take_events();
    assert!(!chassis.bench.chip.level());
}

#[test]
fn a_card_s_pin_is_inta_of_the_port_whose_own_is_intb() {
    let (chassis, card) = (Chassis::new(), Probe::new(1));
    chassis.insert(&card, false);
    assert_eq!(chassis.bench.config(PORT, reg::INTERRUPT_LINE) >> 8 & 0xff, 2);
    card.pin().set(true);
    let calls = chassis.bench.chip.calls();
    assert_eq!(calls.last(), Some(&(Spi(4), true)), "{calls:?}");
    chassis.set2(SLOT_CONTROL, OFF);
    assert!(!chassis.bench.chip.level());
}

#[test]
fn a_reset_keeps_a_card_with_power_and_lets_one_go_that_was_asked_for() {
    let chassis = Chassis::new();
    chassis.insert(&Probe::new(1), true);
    chassis.bench.bus.reset();
    assert_eq!((chassis.get2(SLOT_CONTROL) & OFF, chassis.status()), (ON, PRESENT));
    chassis.number_buses();
    assert!(chassis.is_there() && matches!(chassis.bench.host.eject(PORT as u8), Ok(Ejected::Asked)));
    chassis.bench.bus.reset();
    assert_eq!((chassis.get2(SLOT_CONTROL) & OFF, chassis.status()), (OFF, 0));
    assert_eq!(*lock(&chassis.released), [PORT as u8]);
}

#[test]
fn a_port_takes_one_card_and_a_slot_without_port_none() {
    let chassis = Chassis::new();
    chassis.insert(&Probe::new(1), true);
    let host = &chassis.bench.host;
    assert!(matches!(host.insert(PORT as u8, Probe::new(2), true), Err(PciError::Occupied { .. })));
    assert_eq!(host.insert(2, Probe::new(2), true), Err(PciError::NoPort(2)));
    assert!(matches!(host.eject(2), Err(PciError::NoPort(2))));
}

#[test]
fn a_saved_state_has_the_card_and_where_its_bars_are() {
    let make = || {
        let chassis = Chassis::new();
        chassis.insert(&Probe::new(1), false);
        chassis
    };
    let saved = make();
    saved.map_card(LOW);
    let json = serde_json::to_string(&saved.bench.host.state()).unwrap();
    let state: PciHostState = serde_json::from_str(&json).unwrap();
    let restored = make();
    restored.bench.host.restore(&state).unwrap();
    assert_eq!(restored.bench.host.state(), state);
    assert_eq!(restored.bench.read4(LOW), 0x1010_1010);
    let empty = Chassis::new();
    assert_eq!(empty.bench.host.restore(&state), Err(PciError::StateSlot(PORT as u8)));
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    /// What a guest, or somebody at a monitor, does to the port.
    #[derive(Debug, Clone)]
    enum Step {
        Write(u16, Vec<u8>),
        Card(u16, Vec<u8>),
        Memory(u64, Vec<u8>),
        Insert,
        Eject,
        Reset,
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = || prop::collection::vec(any::<u8>(), 1..=8);
        // Where the registers are that matter, more often than elsewhere.
        let register = prop_oneof![0_u16..0x100, SLOT_CONTROL..SLOT_STATUS + 2, 0x18_u16..0x40];
        let windows = prop_oneof![LOW..LOW + 0x20_0000, HIGH..HIGH + 0x20_0000];
        prop_oneof![
            4 => (register, bytes()).prop_map(|(register, bytes)| Step::Write(register, bytes)),
            2 => (0_u16..0x1000, bytes()).prop_map(|(register, bytes)| Step::Card(register, bytes)),
            1 => (windows, bytes()).prop_map(|(addr, bytes)| Step::Memory(addr, bytes)),
            1 => Just(Step::Insert),
            1 => Just(Step::Eject),
            1 => Just(Step::Reset),
        ]
    }

    proptest! {
        /// Whatever happens to it, a port stays a bridge, and says that a card is there when one is.
        #[test]
        fn a_port_survives_whatever_is_written_to_it(steps in prop::collection::vec(step(), 1..60)) {
            let chassis = Chassis::new();
            let bench = &chassis.bench;
            for step in steps {
                match step {
                    Step::Write(register, bytes) => bench.bus.write(bench.register(PORT, register), &bytes),
                    Step::Card(register, bytes) => bench.bus.write(chassis.card(register), &bytes),
                    Step::Memory(addr, bytes) => bench.bus.write(addr, &bytes),
                    Step::Insert => drop(bench.host.insert(PORT as u8, Probe::new(1), true)),
                    Step::Eject => drop(bench.host.eject(PORT as u8)),
                    Step::Reset => bench.bus.reset(),
                }
                let present = bench.host.cards().len() == 1;
                prop_assert_eq!(chassis.status() & PRESENT != 0, present);
                prop_assert_eq!(bench.config(PORT, 0), 0x000c_1b36);
                let inside = |window: &Window| {
                    let windows = [bench.layout.pci_mmio32, bench.layout.pci_mmio64];
                    windows.iter().any(|all| window.base >= all.base && window.end() <= all.end())
                };
                prop_assert!(bench.windows("probe").iter().all(inside));
            }
        }
    }
}
