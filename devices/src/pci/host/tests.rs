use std::sync::mpsc;

use hvrun_arch::Spi;

use super::*;
use crate::irq::fake::FakeChip;
use crate::pci::config::reg;
use crate::pci::{Bar, BarKind, Command};

mod ports;

/// Answers reads of its BARs with a tag, and remembers what it is told.
pub(super) struct Probe {
    tag: u8,
    low: u64,
    high: u64,
    pin: Mutex<Option<Arc<IntxPin>>>,
    mapped: Mutex<Vec<(u8, Option<u64>)>>,
    resets: Mutex<u32>,
}

impl Probe {
    fn new(tag: u8) -> Arc<Probe> {
        Probe::with_bars(tag, 0x1000, 0x4000)
    }

    fn with_bars(tag: u8, low: u64, high: u64) -> Arc<Probe> {
        let (pin, mapped, resets) = (Mutex::new(None), Mutex::new(Vec::new()), Mutex::new(0));
        Arc::new(Probe { tag, low, high, pin, mapped, resets })
    }

    fn pin(&self) -> Arc<IntxPin> {
        lock(&self.pin).clone().unwrap()
    }
}

impl PciFunction for Probe {
    fn name(&self) -> &str {
        "probe"
    }

    fn config_space(&self) -> ConfigSpace {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1000 + u16::from(self.tag),
            intx: true,
            ..BRIDGE
        });
        let kind = BarKind::Memory32;
        config.add_bar(Bar { index: 0, size: self.low, kind, prefetchable: false }).unwrap();
        let kind = BarKind::Memory64;
        config.add_bar(Bar { index: 2, size: self.high, kind, prefetchable: true }).unwrap();
        config
    }

    fn plugged(&self, pin: Arc<IntxPin>) {
        *lock(&self.pin) = Some(pin);
    }

    fn bar_read(&self, bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(self.tag << 4 | bar);
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn bar_mapped(&self, bar: u8, base: Option<u64>) {
        lock(&self.mapped).push((bar, base));
    }

    fn reset(&self) {
        *lock(&self.resets) += 1;
    }
}

struct Bench {
    bus: Arc<Bus>,
    chip: Arc<FakeChip>,
    host: Arc<PciHost>,
    layout: Layout,
}

impl Bench {
    fn new() -> Bench {
        let layout = Layout::new(1, 1 << 30).with_ipa_bits(40);
        let (bus, chip) = (Arc::new(Bus::new()), Arc::new(FakeChip::default()));
        let dynamic: Arc<dyn IrqChip> = chip.clone();
        let host = PciHost::new(&bus, &dynamic, &layout).unwrap();
        Bench { bus, chip, host, layout }
    }

    fn with(functions: &[&Arc<Probe>]) -> Bench {
        let bench = Bench::new();
        for function in functions {
            bench.host.plug((*function).clone()).unwrap();
        }
        bench
    }

    fn register(&self, slot: u64, register: u16) -> u64 {
        self.layout.pci_ecam.base + (slot << 15) + u64::from(register)
    }

    fn read4(&self, addr: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.read(addr, &mut data);
        u32::from_le_bytes(data)
    }

    fn config(&self, slot: u64, register: u16) -> u32 {
        self.read4(self.register(slot, register))
    }

    fn set_config(&self, slot: u64, register: u16, value: u32) {
        self.bus.write(self.register(slot, register), &value.to_le_bytes());
    }

    fn set_command(&self, slot: u64, command: Command) {
        self.set_config(slot, reg::COMMAND, command.bits().into());
    }

    /// Where BARs of `name` are on the bus.
    fn windows(&self, name: &str) -> Vec<Window> {
        self.bus.map().into_iter().filter(|(known, _)| known == name).map(|(_, window)| window).collect()
    }
}

const LOW: u64 = 0x1000_0000;
const HIGH: u64 = 512 << 30;

#[test]
fn slot_0_is_the_bridge_and_functions_follow_in_their_order() {
    let bench = Bench::with(&[&Probe::new(1), &Probe::new(2)]);
    assert_eq!([0, 1, 2].map(|slot| bench.config(slot, 0)), [0x0008_1b36, 0x1001_1af4, 0x1002_1af4]);
    assert_eq!(bench.config(0, 8), 0x0600_0000);
}

#[test]
fn absent_devices_functions_and_buses_read_as_ones() {
    let bench = Bench::with(&[&Probe::new(1)]);
    let ecam = bench.layout.pci_ecam.base;
    let absent =
        [ecam + (2 << 15), ecam + (1 << 15) + (1 << 12), ecam + (1 << 20) + (1 << 15), ecam + 0xff_fffc];
    assert_eq!(absent.map(|addr| bench.read4(addr)), [u32::MAX; 4]);
}

#[test]
fn extended_configuration_space_reads_as_ones() {
    let bench = Bench::with(&[&Probe::new(1)]);
    assert_eq!([bench.config(1, 0x100), bench.config(0, 0x100)], [u32::MAX; 2]);
}

#[test]
fn eight_bytes_of_configuration_space_read_as_ones() {
    let bench = Bench::with(&[&Probe::new(1)]);
    let mut data = [0; 8];
    bench.bus.read(bench.register(1, 0), &mut data);
    assert_eq!(data, [0xff; 8]);
}

#[test]
fn port_io_reads_as_ones() {
    let bench = Bench::new();
    assert_eq!(bench.read4(bench.layout.pci_pio.base + 0x3f8), u32::MAX);
}

#[test]
fn a_bar_answers_once_memory_decoding_is_on() {
    let bench = Bench::with(&[&Probe::new(1)]);
    bench.set_config(1, 0x10, LOW as u32);
    assert_eq!(bench.read4(LOW), 0);
    bench.set_command(1, Command::MEMORY);
    assert_eq!(bench.read4(LOW), 0x1010_1010);
    bench.set_command(1, Command::empty());
    assert_eq!(bench.read4(LOW), 0);
}

#[test]
fn a_64_bit_bar_answers_above_ram() {
    let bench = Bench::with(&[&Probe::new(1)]);
    bench.set_command(1, Command::MEMORY);
    bench.set_config(1, 0x18, 0x8000);
    bench.set_config(1, 0x1c, (HIGH >> 32) as u32);
    assert_eq!(bench.read4(HIGH + 0x8000), 0x1212_1212);
}

#[test]
fn a_moved_bar_leaves_its_old_place() {
    let probe = Probe::new(1);
    let bench = Bench::with(&[&probe]);
    bench.set_config(1, 0x10, LOW as u32);
    bench.set_command(1, Command::MEMORY);
    bench.set_config(1, 0x10, LOW as u32 + 0x1000);
    assert_eq!([bench.read4(LOW), bench.read4(LOW + 0x1000)], [0, 0x1010_1010]);
    assert_eq!(*lock(&probe.mapped), [(0, Some(LOW)), (0, None), (0, Some(LOW + 0x1000))]);
}

#[test]
fn sizing_a_bar_while_decoding_is_on_leaves_it_mapped_afterwards() {
    let bench = Bench::with(&[&Probe::new(1)]);
    bench.set_config(1, 0x10, LOW as u32);
    bench.set_command(1, Command::MEMORY);
    bench.set_config(1, 0x10, u32::MAX);
    assert_eq!(bench.config(1, 0x10), 0xffff_f000);
    bench.set_config(1, 0x10, LOW as u32);
    assert_eq!(bench.windows("probe"), [Window::new(LOW, 0x1000)]);
}

#[test]
fn a_bar_outside_of_the_pci_windows_is_not_mapped() {
    let bench = Bench::with(&[&Probe::with_bars(1, 0x1000, 1 << 40)]);
    bench.set_command(1, Command::MEMORY);
    let mmio32_end = bench.layout.pci_mmio32.end() as u32;
    for address in [0, 0x0900_0000, 0x4000_0000, mmio32_end, 0xffff_f000] {
        bench.set_config(1, 0x10, address);
        assert_eq!(bench.windows("probe"), [], "{address:#x}");
    }
    // A terabyte covers the whole window and more, and the last one ends at 2^64.
    bench.set_config(1, 0x1c, u32::MAX);
    assert_eq!(bench.windows("probe"), []);
}

#[test]
fn a_bar_over_the_edge_of_a_window_is_not_mapped() {
    let bench = Bench::with(&[&Probe::with_bars(1, 0x20_0000, 0x4000)]);
    bench.set_command(1, Command::MEMORY);
    // The window ends at 0x3eff_0000, in the middle of these two megabytes.
    bench.set_config(1, 0x10, 0x3ee0_0000);
    assert_eq!(bench.windows("probe"), []);
    bench.set_config(1, 0x10, 0x3ec0_0000);
    assert_eq!(bench.windows("probe"), [Window::new(0x3ec0_0000, 0x20_0000)]);
}

#[test]
fn of_two_bars_at_one_place_the_first_answers_until_it_leaves() {
    let (one, other) = (Probe::new(1), Probe::new(2));
    let bench = Bench::with(&[&one, &other]);
    for slot in [1, 2] {
        bench.set_config(slot, 0x10, LOW as u32);
        bench.set_command(slot, Command::MEMORY);
    }
    assert_eq!(bench.read4(LOW), 0x1010_1010);
    bench.set_command(1, Command::empty());
    assert_eq!(bench.read4(LOW), 0x2020_2020);
}

#[test]
fn two_bars_of_one_function_do_not_overlap() {
    let bench = Bench::with(&[&Probe::new(1)]);
    bench.set_command(1, Command::MEMORY);
    bench.set_config(1, 0x18, LOW as u32);
    bench.set_config(1, 0x10, LOW as u32 + 0x1000);
    assert_eq!(bench.windows("probe"), [Window::new(LOW, 0x4000)]);
}

#[test]
fn a_bar_never_replaces_another_device_in_the_window() {
    let bench = Bench::with(&[&Probe::new(1)]);
    bench.bus.insert(Window::new(LOW, 0x10), Arc::new(NoPorts)).unwrap();
    bench.set_config(1, 0x10, LOW as u32);
    bench.set_command(1, Command::MEMORY);
    assert_eq!((bench.windows("probe"), bench.read4(LOW)), (vec![], u32::MAX));
}

#[test]
fn an_asserted_pin_shows_in_the_status_register() {
    let probe = Probe::new(1);
    let bench = Bench::with(&[&probe]);
    probe.pin().set(true);
    assert_eq!(bench.config(1, 4) >> 16 & 8, 8);
    probe.pin().set(false);
    assert_eq!(bench.config(1, 4) >> 16 & 8, 0);
}

#[test]
fn a_disabled_pin_is_asserted_in_the_status_register_only() {
    let probe = Probe::new(1);
    let bench = Bench::with(&[&probe]);
    bench.set_command(1, Command::INTX_DISABLE);
    probe.pin().set(true);
    assert_eq!((bench.config(1, 4) >> 16 & 8, bench.chip.calls().len()), (8, 0));
    bench.set_command(1, Command::empty());
    assert_eq!(bench.chip.calls(), [(Spi(4), true)]);
}

#[test]
fn a_machine_reset_unmaps_bars_and_lowers_pins() {
    let probe = Probe::new(1);
    let bench = Bench::with(&[&probe]);
    bench.set_config(1, 0x10, LOW as u32);
    bench.set_command(1, Command::MEMORY);
    probe.pin().set(true);
    bench.bus.reset();
    assert_eq!((bench.read4(LOW), bench.config(1, 0x10), bench.config(1, 4)), (0, 0, 0));
    assert_eq!((*lock(&probe.resets), bench.chip.level()), (1, false));
    assert_eq!(lock(&probe.mapped).last(), Some(&(0, None)));
}

#[test]
fn an_unplugged_function_is_gone_with_its_bars_and_its_interrupt() {
    let probe = Probe::new(1);
    let bench = Bench::with(&[&probe]);
    bench.set_config(1, 0x10, LOW as u32);
    bench.set_command(1, Command::MEMORY);
    probe.pin().set(true);
    assert!(bench.host.unplug(1).is_some());
    assert_eq!((bench.config(1, 0), bench.read4(LOW), bench.chip.level()), (u32::MAX, 0, false));
}

#[test]
fn the_bridge_itself_cannot_be_unplugged() {
    let bench = Bench::new();
    assert!(bench.host.unplug(0).is_none());
    assert_eq!(bench.config(0, 0), 0x0008_1b36);
}

#[test]
fn a_function_takes_the_lowest_free_slot() {
    let bench = Bench::with(&[&Probe::new(1), &Probe::new(2)]);
    bench.host.unplug(1);
    assert_eq!(bench.host.plug(Probe::new(3)), Ok(1));
}

#[test]
fn a_32nd_function_and_a_taken_slot_are_refused() {
    let bench = Bench::new();
    bench.host.plug_at(5, Probe::new(1)).unwrap();
    assert!(matches!(bench.host.plug_at(5, Probe::new(2)), Err(PciError::Slot { slot: 5, .. })));
    assert!(matches!(bench.host.plug_at(32, Probe::new(2)), Err(PciError::Slot { slot: 32, .. })));
    let slots = (1..31).map(|tag| bench.host.plug(Probe::new(tag)));
    assert!(slots.filter_map(Result::ok).eq([1, 2, 3, 4].into_iter().chain(6..32)));
    assert_eq!(bench.host.plug(Probe::new(2)), Err(PciError::Full("probe".to_owned())));
}

#[test]
fn a_restored_state_maps_bars_where_they_were() {
    let bench = Bench::with(&[&Probe::new(1)]);
    bench.set_config(1, 0x10, LOW as u32);
    bench.set_command(1, Command::MEMORY | Command::INTX_DISABLE);
    let json = serde_json::to_string(&bench.host.state()).unwrap();
    let probe = Probe::new(1);
    let other = Bench::with(&[&probe]);
    other.host.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    probe.pin().set(true);
    assert_eq!(other.read4(LOW), 0x1010_1010);
    assert!(!other.chip.level());
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let bench = Bench::with(&[&Probe::new(1)]);
    let state = bench.host.state();
    assert_eq!(Bench::new().host.restore(&state), Err(PciError::StateSlot(1)));
}

#[test]
fn configuration_and_bar_accesses_from_two_threads_do_not_deadlock() {
    let bench = Bench::with(&[&Probe::new(1), &Probe::new(2)]);
    let (bus, register) = (bench.bus.clone(), bench.register(1, reg::COMMAND));
    let (done, finished) = mpsc::channel();
    let reader = {
        let (bus, done) = (bench.bus.clone(), done.clone());
        move || {
            (0..5000).for_each(|_| bus.read(LOW, &mut [0; 4]));
            done.send(()).unwrap();
        }
    };
    bench.set_config(1, 0x10, LOW as u32);
    std::thread::spawn(reader);
    std::thread::spawn(move || {
        (0..5000_u16).for_each(|turn| bus.write(register, &(turn % 2 * 2).to_le_bytes()));
        done.send(()).unwrap();
    });
    let patience = std::time::Duration::from_secs(60);
    assert!(finished.recv_timeout(patience).is_ok() && finished.recv_timeout(patience).is_ok());
}

mod any_write {
    //! Whatever a guest writes to configuration space: nothing panics, and no BAR is outside of the PCI windows.

    use proptest::prelude::*;

    use super::*;

    /// A write at a register that matters, or anywhere in ECAM.
    fn write() -> impl Strategy<Value = (u64, Vec<u8>)> {
        let interesting = prop_oneof![
            Just(vec![0xff; 4]),
            Just(vec![0x06, 0x00]),
            (0..0x40_u32).prop_map(|n| (0x1000_0000 + n * 0x1000).to_le_bytes().to_vec()),
            (0..0x100_u32).prop_map(|n| n.to_le_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 1..=8),
        ];
        let offset = prop_oneof![
            4 => (0..3_u64, 0..0x10_u64).prop_map(|(slot, word)| (slot << 15) + word * 4),
            1 => 0..0x0100_0000_u64,
        ];
        (offset, interesting)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

        #[test]
        fn leaves_every_bar_inside_a_pci_window(writes in prop::collection::vec(write(), 1..60)) {
            let bench = Bench::with(&[&Probe::new(1), &Probe::new(2)]);
            let ecam = bench.layout.pci_ecam.base;
            for (offset, data) in writes {
                bench.bus.write(ecam + offset, &data);
                bench.bus.read(ecam + offset, &mut vec![0; data.len()]);
            }
            for window in bench.windows("probe") {
                let inside = |outer: Window| window.base >= outer.base && window.end() <= outer.end();
                prop_assert!(inside(bench.layout.pci_mmio32) || inside(bench.layout.pci_mmio64), "{window:x?}");
            }
            bench.bus.reset();
            prop_assert!(bench.windows("probe").is_empty());
        }
    }
}
