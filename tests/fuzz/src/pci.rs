//! A guest that writes to configuration space and moves BARs about, over each other, over other devices and out of every window. What
//! is not in a PCI window stays what it was.

use std::sync::Arc;

use hvrun_arch::IrqChip;
use hvrun_arch::aarch64::layout::{Layout, RAM_BASE, Window};
use hvrun_devices::backend::chardev::Null;
use hvrun_devices::pci::{MsiPort, PciHost, RootPort};
use hvrun_devices::virtio::VirtioDevice;
use hvrun_devices::virtio::block::{BlockOptions, VirtioBlock};
use hvrun_devices::virtio::console::{Console, PortKind, PortSetup};
use hvrun_devices::virtio::pci::VirtioPci;
use hvrun_devices::virtio::rng::{Rng, RngConfig};
use hvrun_devices::{Bus, MmioDevice};

use crate::guest::memory;
use crate::input::{Input, Op};
use crate::parts::{Chip, MemoryDisk};

/// Most operations of one input.
const MOST_OPS: usize = 512;
/// Functions in slots 1 to 3; the bridge is in 0, and a root port with a card behind it in 4.
const SLOTS: u64 = 5;
/// Where the root port is.
const PORT: u8 = 4;
/// BARs of a virtio function, with an offset and a width with which they do not read as zeros: the first vector's mask bit, which is set
/// unless the guest clears it; and the number of queues.
const BARS: [(u16, u64, usize); 2] = [(0x14, 12, 4), (0x20, 0x12, 2)];

/// Operations, by their number modulo the number of them.
mod code {
    /// c to register b of slot a >> 2.
    pub const CONFIG_WRITE: u8 = 0;
    pub const CONFIG_READ: u8 = 1;
    /// c to offset b & 0x3fff of the BAR b >> 14 & 1 of slot a >> 2, wherever it is.
    pub const BAR_WRITE: u8 = 2;
    pub const BAR_READ: u8 = 3;
    /// b to the address c.
    pub const WRITE: u8 = 4;
    pub const READ: u8 = 5;
    pub const RESET: u8 = 6;
    /// The card behind the root port is asked for, or another one comes.
    pub const PLUG: u8 = 7;
    /// c to register b of device 0 on bus a >> 2.
    pub const CARD_WRITE: u8 = 8;
    pub const COUNT: u8 = 9;
}

/// Another device of the machine, which BARs must leave alone.
struct Neighbour;

/// What it reads as.
const NEIGHBOUR: [u8; 4] = [0x5a; 4];

impl MmioDevice for Neighbour {
    fn name(&self) -> &str {
        "neighbour"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(NEIGHBOUR[0]);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

struct Machine {
    bus: Arc<Bus>,
    host: Arc<PciHost>,
    msi: Arc<MsiPort>,
    layout: Layout,
}

impl Machine {
    fn new() -> Machine {
        let layout = Layout::new(1, 1 << 30).with_ipa_bits(40);
        let chip: Arc<dyn IrqChip> = Arc::new(Chip);
        let bus = Arc::new(Bus::new());
        bus.insert(layout.uart, Arc::new(Neighbour)).expect("the bus is empty");
        // One that lies where BARs may be.
        bus.insert(neighbour(&layout), Arc::new(Neighbour)).expect("the place is free");
        let host = PciHost::new(&bus, &chip, &layout).expect("the places are free");
        let msi = Arc::new(MsiPort::new(chip, None, layout.gic_v2m));
        let memory = memory();
        for device in devices() {
            let function = VirtioPci::new(device, memory.clone(), msi.clone(), None).expect("few queues");
            host.plug(Arc::new(function)).expect("the slots are free");
        }
        let port = RootPort::new("port", 1, 1, msi.clone()).expect("its capabilities fit");
        host.plug_port(Some(PORT), Arc::new(port)).expect("the slot is free");
        let machine = Machine { bus, host, msi, layout };
        machine.plug(false);
        machine
    }

    /// A card comes, if none is there.
    fn plug(&self, hot: bool) {
        let device = Arc::new(Rng::new(RngConfig::default()));
        let card = VirtioPci::new(device, memory(), self.msi.clone(), None).expect("few queues");
        let _ = self.host.insert(PORT, Arc::new(card), hot);
    }

    /// The card goes, is asked for, or comes.
    fn change_card(&self) {
        match self.host.cards().is_empty() {
            true => self.plug(true),
            false => drop(self.host.eject(PORT)),
        }
    }

    fn register(&self, slot: u64, register: u16) -> u64 {
        self.layout.pci_ecam.base + ((slot % SLOTS) << 15) + u64::from(register & 0xfff)
    }

    /// Where a BAR is, whether or not anything answers there.
    fn bar(&self, slot: u64, register: u16) -> u64 {
        let mut data = [0; 8];
        self.bus.read(self.register(slot, register), &mut data[..4]);
        if data[0] & 4 != 0 {
            self.bus.read(self.register(slot, register + 4), &mut data[4..]);
        }
        u64::from_le_bytes(data) & !0xf
    }

    fn perform(&self, op: Op) {
        let (width, data, mut answer) = (op.width(), op.data(), [0; 8]);
        let slot = u64::from(op.a >> 2);
        let (bar, ..) = BARS[usize::from(op.b >> 14 & 1)];
        let in_bar = || self.bar(slot, bar).wrapping_add(u64::from(op.b & 0x3fff));
        match op.code % code::COUNT {
            code::CONFIG_WRITE => self.bus.write(self.register(slot, op.b), &data[..width]),
            code::CONFIG_READ => self.bus.read(self.register(slot, op.b), &mut answer[..width]),
            code::BAR_WRITE => self.bus.write(in_bar(), &data[..width]),
            code::BAR_READ => self.bus.read(in_bar(), &mut answer[..width]),
            code::WRITE => self.bus.write(op.c.into(), &op.b.to_le_bytes()),
            code::READ => self.bus.read(op.c.into(), &mut answer[..width]),
            code::PLUG => self.change_card(),
            code::CARD_WRITE => {
                let at = (slot % 16) << 20 | u64::from(op.b & 0xfff);
                self.bus.write(self.layout.pci_ecam.base + at, &data[..width]);
            }
            _ => self.bus.reset(),
        }
    }

    /// BARs answer in PCI windows alone, and not over others.
    fn check(&self) {
        for window in [self.layout.uart, neighbour(&self.layout)] {
            let mut data = [0; 4];
            self.bus.read(window.base, &mut data);
            assert_eq!(data, NEIGHBOUR, "a BAR lies over the device at {:#x}", window.base);
        }
        let mut bridge = [0; 2];
        self.bus.read(self.layout.pci_ecam.base, &mut bridge);
        assert_eq!(u16::from_le_bytes(bridge), 0x1b36, "a BAR lies over the ECAM window");
        let known =
            [self.layout.pci_mmio32, self.layout.pci_mmio64, self.layout.pci_pio, self.layout.pci_ecam];
        let functions = 1..u64::from(PORT);
        for (slot, (bar, offset, width)) in functions.flat_map(|slot| BARS.map(|bar| (slot, bar))) {
            let at = self.bar(slot, bar).saturating_add(offset);
            if known.iter().any(|window| window.contains(at)) || self.layout.uart.contains(at) {
                continue;
            }
            let mut data = [0; 4];
            self.bus.read(at, &mut data[..width]);
            assert_eq!(data, [0; 4], "a BAR answers at {at:#x}, outside of the PCI windows");
        }
        let mut ram = [0; 4];
        self.bus.read(RAM_BASE, &mut ram);
        assert_eq!(ram, [0; 4], "a BAR lies over RAM");
    }
}

/// A device in the midst of PCI's addresses.
fn neighbour(layout: &Layout) -> Window {
    Window::new(layout.pci_mmio32.base + (1 << 20), 0x1000)
}

fn devices() -> [Arc<dyn VirtioDevice>; 3] {
    let options = BlockOptions { serial: String::new(), queues: 2 };
    let block = VirtioBlock::new(Arc::new(MemoryDisk::new()), &options).expect("a descriptor is left");
    let port = PortSetup { kind: PortKind::Console(None), name: None, backend: Arc::new(Null) };
    let console = Console::new("console", vec![port]).expect("one port");
    [Arc::new(block), Arc::new(Rng::new(RngConfig::default())), console]
}

/// The target `pci`.
pub fn run(bytes: &[u8]) {
    let machine = Machine::new();
    let mut input = Input(bytes);
    for _ in 0..MOST_OPS {
        let Some(op) = input.op() else { break };
        machine.perform(op);
    }
    machine.check();
}

/// Offsets in configuration space (PCI Local Bus 3.0, 6.1): command, BARs, the list of capabilities.
const COMMAND: u16 = 0x04;
const CAPABILITIES: u16 = 0x34;

fn write(slot: u8, register: u16, value: u32) -> Op {
    Op::new(code::CONFIG_WRITE, slot << 2 | 2, register, value)
}

fn read(slot: u8, register: u16) -> Op {
    Op::new(code::CONFIG_READ, slot << 2 | 2, register, 0)
}

/// What firmware and a kernel do to one function: size its BARs, give them places, turn it on, look through its capabilities.
fn set_up(slot: u8, msix_at: u32, virtio_at: u32, high: u32) -> Vec<Op> {
    let mut ops = vec![read(slot, 0), write(slot, COMMAND, 0)];
    for bar in (0x10..0x28).step_by(4) {
        ops.extend([write(slot, bar, u32::MAX), read(slot, bar)]);
    }
    ops.extend([write(slot, 0x14, msix_at), write(slot, 0x20, virtio_at), write(slot, 0x24, high)]);
    ops.push(write(slot, COMMAND, 6));
    ops.extend((CAPABILITIES..0xc0).step_by(4).map(|register| read(slot, register)));
    ops
}

/// Accesses behind both BARs.
fn use_bars(slot: u8) -> Vec<Op> {
    let bar = |code, offset, value| Op::new(code, slot << 2 | 2, offset, value);
    let virtio = |code, offset: u16, value| bar(code, 0x4000 | offset, value);
    vec![
        bar(code::BAR_WRITE, 0, 0x0802_0040),
        bar(code::BAR_WRITE, 8, 80),
        bar(code::BAR_WRITE, 12, 0),
        bar(code::BAR_READ, 0x800, 0),
        virtio(code::BAR_READ, 0x04, 0),
        virtio(code::BAR_WRITE, 0x14, 1),
        virtio(code::BAR_READ, 0x1000, 0),
        virtio(code::BAR_READ, 0x2000, 0),
        virtio(code::BAR_WRITE, 0x3000, 0),
    ]
}

/// Set-ups that are valid, and some that are clever.
pub fn corpus() -> Vec<Vec<u8>> {
    let bytes = |ops: Vec<Op>| ops.into_iter().flat_map(Op::bytes).collect::<Vec<u8>>();
    let low = (1..4).flat_map(|slot: u8| {
        let at = 0x1000_0000 + (u32::from(slot) << 16);
        [set_up(slot, at, at + 0x8000, 0), use_bars(slot)].concat()
    });
    let high = [set_up(1, 0x1000_0000, 0, 0x80), use_bars(1)].concat();
    // Two that swap places, one that goes where another device is, ones that leave the windows.
    let swap = [set_up(1, 0x1000_0000, 0x1001_0000, 0), set_up(2, 0x1001_0000, 0x1000_0000, 0), use_bars(1)];
    let over = [set_up(1, 0x1010_0000, 0x3f00_0000, 0), set_up(2, 0x0900_0000, 0x4000_0000, 0), use_bars(1)];
    let edge = [set_up(1, 0x3efe_f000, 0xffff_c000, u32::MAX), set_up(2, 0xffff_f000, 0, 0), use_bars(2)];
    let reset = [set_up(1, 0x1000_0000, 0x1001_0000, 0), vec![Op::new(code::RESET, 0, 0, 0)], use_bars(1)];
    let raw = vec![Op::new(code::WRITE, 2, 7, 0x3f00_8004), Op::new(code::READ, 3, 0, 0x3f00_8000)];
    vec![
        bytes(low.collect()),
        bytes(high),
        bytes(swap.concat()),
        bytes(over.concat()),
        bytes(edge.concat()),
        bytes(reset.concat()),
        bytes(raw),
        bytes(window_accesses()),
        bytes(cards()),
    ]
}

/// What a hot-plug driver does: buses, windows and interrupts of the port, a card that is used, goes, and comes again.
fn cards() -> Vec<Op> {
    let card = |register, value| Op::new(code::CARD_WRITE, 1 << 2 | 2, register, value);
    let slot_control = |value: u32| write(PORT, EXPRESS + 0x18, value);
    let mut ops = vec![
        write(PORT, 0x18, 0x01_0100),
        write(PORT, 0x20, 0x1010_1010),
        write(PORT, 0x24, 0xfff1_0001),
        write(PORT, COMMAND, 6),
        slot_control(0x1139),
        card(0x14, 0x1010_0000),
        card(0x20, 0x1010_8000),
        card(COMMAND, 6),
        Op::new(code::READ, 3, 0, 0x1010_800c),
    ];
    let change = Op::new(code::PLUG, 0, 0, 0);
    ops.extend([change, read(PORT, EXPRESS + 0x18), slot_control(0x1239), slot_control(0x01ff_1739)]);
    ops.extend([change, slot_control(0x01ff_1139), card(COMMAND, 6), write(PORT, 0x3c, 0x40_0000)]);
    ops
}

/// Where the root port's PCI Express capability is.
const EXPRESS: u16 = 0x4c;

/// Accesses through the PCI configuration access capability (virtio 1.2, 4.1.4.9), wherever it is: `cfg_type` 5 is looked for at each
/// place where a capability may begin.
fn window_accesses() -> Vec<Op> {
    let mut ops = set_up(1, 0x1000_0000, 0x1001_0000, 0);
    for at in (0x40..0xc0).step_by(4) {
        // BAR 4, offset 0x12, 2 bytes; then the data, which does nothing where the capability is not.
        ops.extend([write(1, at + 4, 4), write(1, at + 8, 0x12), write(1, at + 12, 2), read(1, at + 16)]);
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ops: &[Op]) -> Machine {
        let machine = Machine::new();
        ops.iter().for_each(|op| machine.perform(*op));
        machine
    }

    #[test]
    fn the_bar_of_a_valid_seed_answers() {
        let machine = after(&set_up(1, 0x1000_0000, 0x1001_0000, 0));
        let mut queues = [0; 2];
        machine.bus.read(0x1001_0012, &mut queues);
        assert_eq!(u16::from_le_bytes(queues), 2);
    }

    #[test]
    fn the_offsets_that_are_checked_do_not_read_as_zeros() {
        let machine = after(&set_up(2, 0x1000_0000, 0x1001_0000, 0));
        let read = |base: u64, (_, offset, width): (u16, u64, usize)| {
            let mut data = [0; 4];
            machine.bus.read(base + offset, &mut data[..width]);
            data
        };
        assert_ne!(read(0x1000_0000, BARS[0]), [0; 4]);
        assert_ne!(read(0x1001_0000, BARS[1]), [0; 4]);
    }

    #[test]
    fn the_seed_of_a_hot_plug_driver_uses_a_card_and_lets_it_go() {
        let ops = cards();
        let used = after(&ops[..9]);
        assert!(used.bus.map().iter().any(|(_, window)| window.base == 0x1010_0000));
        let gone = after(&ops[..13]);
        assert!(gone.host.cards().is_empty());
        assert_eq!(after(&ops).host.cards().len(), 1);
    }

    #[test]
    fn a_bar_is_found_where_it_was_put() {
        let machine = after(&set_up(1, 0x1000_0000, 0, 0x80));
        assert_eq!((machine.bar(1, 0x14), machine.bar(1, 0x20)), (0x1000_0000, 0x80 << 32));
    }
}
