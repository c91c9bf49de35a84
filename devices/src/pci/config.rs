//! Type 0 configuration space (PCI Local Bus 3.0, 6.1 and 6.2), and type 1, a bridge's (PCI-to-PCI Bridge 1.2, 3.2): a register
//! file in which every bit knows whether it can be written or cleared. It maps nothing and raises nothing;
//! [`PciHost`](super::PciHost) acts on what is in it.

use std::fmt;
use std::ops::Range;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// Bytes of a conventional function's configuration space. Above them an ECAM bridge answers with ones.
pub const CONFIG_SIZE: usize = 256;
/// How many BARs a type 0 function has.
pub const BAR_COUNT: u8 = 6;

/// Registers of the type 0 header (PCI Local Bus 3.0, 6.1).
pub mod reg {
    /// Vendor and device ID.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device ID.
    pub const DEVICE_ID: u16 = 0x02;
    /// Command.
    pub const COMMAND: u16 = 0x04;
    /// Status.
    pub const STATUS: u16 = 0x06;
    /// Revision, and above it the three bytes of the class code.
    pub const REVISION: u16 = 0x08;
    /// Cache line size: a scratch register here.
    pub const CACHE_LINE_SIZE: u16 = 0x0c;
    /// Header type.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First of the six base address registers.
    pub const BAR0: u16 = 0x10;
    /// First byte behind the base address registers.
    pub const BARS_END: u16 = 0x28;
    /// Subsystem vendor ID.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
    /// Subsystem ID.
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    /// Offset of the first capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line: a scratch register for firmware.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin: 1 is INTA.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// Where capabilities begin.
    pub const HEADER_END: u16 = 0x40;
}

/// Registers of the type 1 header that type 0 does not have (PCI-to-PCI Bridge 1.2, 3.2.5).
pub mod bridge {
    /// First byte behind the two base address registers, and primary bus number.
    pub const PRIMARY_BUS: u16 = 0x18;
    /// The bus behind the bridge.
    pub const SECONDARY_BUS: u16 = 0x19;
    /// The last bus behind the bridge.
    pub const SUBORDINATE_BUS: u16 = 0x1a;
    /// Memory base, and two bytes on the limit: the upper 12 bits of 32-bit addresses.
    pub const MEMORY_BASE: u16 = 0x20;
    /// Prefetchable memory base, and two bytes on the limit.
    pub const PREFETCHABLE_BASE: u16 = 0x24;
    /// Upper halves of the prefetchable base, and four bytes on of the limit.
    pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    /// First byte behind the windows.
    pub const WINDOWS_END: u16 = 0x30;
    /// Bridge control.
    pub const CONTROL: u16 = 0x3e;
    /// Bridge control: the bus behind the bridge is held in reset (3.2.5.18, bit 6).
    pub const CONTROL_SECONDARY_RESET: u16 = 1 << 6;
}

/// Interrupt pin: INTB.
const INTB: u8 = 2;
/// Header type of a bridge.
const HEADER_BRIDGE: u8 = 1;
/// The bits of a bridge's window registers that can be written.
const WINDOW_BITS: u16 = 0xfff0;
/// Low bits of the prefetchable window's registers: there are upper halves.
const WINDOW_64BIT: u16 = 1;
/// The bits of bridge control that can be written: parity error response, SERR# enable and reset. The first two are without effect.
const BRIDGE_CONTROL_BITS: u16 = 0x43;

/// Status: interrupt status (PCI Local Bus 3.0, 6.2.3, bit 3).
const STATUS_INTERRUPT: u8 = 1 << 3;
/// Status: there is a capability list (bit 4).
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// Memory BAR: type field 10b, 64 bits (6.2.5.1).
const BAR_64BIT: u8 = 2 << 1;
/// Memory BAR: prefetchable (6.2.5.1).
const BAR_PREFETCHABLE: u8 = 1 << 3;
/// Smallest memory BAR: the low four bits are not address.
const BAR_MIN_SIZE: u64 = 16;

bitflags! {
    /// The command register's bits that can be written (PCI Local Bus 3.0, 6.2.2). There is no I/O space to enable.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// Memory BARs answer.
        const MEMORY = 1 << 1;
        /// The function may access memory and send messages.
        const BUS_MASTER = 1 << 2;
        /// Parity error response: without effect.
        const PARITY = 1 << 6;
        /// SERR# enable: without effect.
        const SERR = 1 << 8;
        /// The function does not drive its interrupt pin.
        const INTX_DISABLE = 1 << 10;
    }
}

/// Who a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and programming interface, as in 0x010000.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Whether it has an interrupt pin (INTA).
    pub intx: bool,
}

/// How wide a memory BAR's address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// 32 bits.
    Memory32,
    /// 64 bits: takes the next BAR's register too.
    Memory64,
}

/// One memory BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5.
    pub index: u8,
    /// Bytes, a power of two from 16 on.
    pub size: u64,
    /// Width of its address.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

impl Bar {
    /// The registers that hold its address.
    fn registers(self) -> Range<usize> {
        let start = usize::from(reg::BAR0) + 4 * usize::from(self.index);
        let len = match self.kind {
            BarKind::Memory32 => 4,
            BarKind::Memory64 => 8,
        };
        start..start + len
    }
}

/// Why a configuration space cannot be laid out like that.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigLayoutError {
    /// A BAR that cannot be.
    #[error(
        "BAR {index} cannot have {size:#x} bytes: it takes a power of two from 16 on that its address has bits for"
    )]
    BarSize {
        /// Which BAR.
        index: u8,
        /// The size asked for.
        size: u64,
    },
    /// A BAR's registers are another's, or there are none.
    #[error("BAR {0} has no registers of its own: there are six, and a 64-bit BAR takes two")]
    BarIndex(u8),
    /// No space for another capability.
    #[error("there is no room for a capability of {len} bytes at offset {offset:#x}")]
    NoRoom {
        /// Its length.
        len: usize,
        /// Where it would begin.
        offset: usize,
    },
}

/// What a snapshot keeps of a configuration space: all its registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// The [`CONFIG_SIZE`] bytes as a guest would read them.
    pub registers: Vec<u8>,
}

/// A function's configuration space.
///
/// A guest's writes reach writable bits only, so whatever it does
/// - identity, class, capability list and BAR sizes stay what they were built to be,
/// - [`ConfigSpace::bar_base`] is aligned to the BAR's size.
#[derive(Clone)]
pub struct ConfigSpace {
    registers: [u8; CONFIG_SIZE],
    /// Which bits a guest's write changes.
    writable: [u8; CONFIG_SIZE],
    /// Which bits a guest clears by writing ones.
    clearable: [u8; CONFIG_SIZE],
    /// The registers after a reset.
    initial: [u8; CONFIG_SIZE],
    bars: Vec<Bar>,
    /// First byte behind the base address registers.
    bars_end: u16,
    /// Where the next capability goes.
    next_capability: usize,
    /// The byte that points to it.
    capability_link: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut config = ConfigSpace {
            registers: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            clearable: [0; CONFIG_SIZE],
            initial: [0; CONFIG_SIZE],
            bars: Vec::new(),
            bars_end: reg::BARS_END,
            next_capability: reg::HEADER_END.into(),
            capability_link: reg::CAPABILITIES.into(),
        };
        config.define(reg::VENDOR_ID, &identity.vendor.to_le_bytes());
        config.define(reg::DEVICE_ID, &identity.device.to_le_bytes());
        let class = identity.class << 8 | u32::from(identity.revision);
        config.define(reg::REVISION, &class.to_le_bytes());
        config.define(reg::SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        config.define(reg::SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        config.define(reg::INTERRUPT_PIN, &[identity.intx.into()]);
        config.allow(reg::COMMAND.into(), &Command::all().bits().to_le_bytes());
        config.allow(reg::CACHE_LINE_SIZE.into(), &[0xff]);
        config.allow(reg::INTERRUPT_LINE.into(), &[0xff]);
        config
    }

    /// A PCI-to-PCI bridge with a window for memory, one for prefetchable memory with 64-bit addresses, and none for I/O. Its header
    /// has no place for the subsystem's IDs.
    pub fn bridge(identity: Identity) -> Self {
        let mut config = ConfigSpace::new(Identity { subsystem_vendor: 0, subsystem: 0, ..identity });
        config.bars_end = bridge::PRIMARY_BUS;
        config.define(reg::HEADER_TYPE, &[HEADER_BRIDGE]);
        // A pin of its own: what is behind the bridge has INTA, and Linux, which lets a hot-plug interrupt's thread take a card away, would
        // wait for that thread in it if both had one line.
        config.define(reg::INTERRUPT_PIN, &[if identity.intx { INTB } else { 0 }]);
        config.allow(bridge::PRIMARY_BUS.into(), &[0xff; 3]);
        let window = WINDOW_BITS.to_le_bytes();
        for register in [bridge::MEMORY_BASE, bridge::PREFETCHABLE_BASE] {
            config.allow(register.into(), &window);
            config.allow(usize::from(register) + 2, &window);
        }
        for register in [bridge::PREFETCHABLE_BASE, bridge::PREFETCHABLE_BASE + 2] {
            config.define(register, &WINDOW_64BIT.to_le_bytes());
        }
        config.allow(bridge::PREFETCHABLE_BASE_UPPER.into(), &[0xff; 8]);
        config.allow(bridge::CONTROL.into(), &BRIDGE_CONTROL_BITS.to_le_bytes());
        config
    }

    /// Lets a guest clear the bits of `mask` by writing ones.
    pub fn clear_by_ones(&mut self, offset: u16, mask: &[u8]) {
        let start = usize::from(offset);
        if let Some(bits) = self.clearable.get_mut(start..start + mask.len()) {
            bits.copy_from_slice(mask);
        }
    }

    /// Sets bytes that a guest reads, now and after each reset.
    fn define(&mut self, offset: u16, bytes: &[u8]) {
        let offset = usize::from(offset);
        for (index, byte) in bytes.iter().enumerate() {
            self.registers[offset + index] = *byte;
            self.initial[offset + index] = *byte;
        }
    }

    /// Lets a guest write the bits of `mask`.
    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Adds a BAR.
    ///
    /// # Errors
    /// Its size is none, or its registers are taken.
    pub fn add_bar(&mut self, bar: Bar) -> Result<(), ConfigLayoutError> {
        let Bar { index, size, kind, prefetchable } = bar;
        let widest = match kind {
            BarKind::Memory32 => 1 << 31,
            BarKind::Memory64 => 1 << 62,
        };
        if !size.is_power_of_two() || !(BAR_MIN_SIZE..=widest).contains(&size) {
            return Err(ConfigLayoutError::BarSize { index, size });
        }
        if index >= BAR_COUNT || bar.registers().end > self.bars_end.into() {
            return Err(ConfigLayoutError::BarIndex(index));
        }
        let taken = |other: &Bar| {
            let (new, old) = (bar.registers(), other.registers());
            new.start < old.end && old.start < new.end
        };
        if self.bars.iter().any(taken) {
            return Err(ConfigLayoutError::BarIndex(index));
        }
        let registers = bar.registers();
        let mut flags = 0;
        if kind == BarKind::Memory64 {
            flags |= BAR_64BIT;
        }
        if prefetchable {
            flags |= BAR_PREFETCHABLE;
        }
        self.registers[registers.start] = flags;
        self.initial[registers.start] = flags;
        let mask = (!(size - 1)).to_le_bytes();
        self.allow(registers.start, &mask[..registers.len()]);
        self.bars.push(bar);
        Ok(())
    }

    /// Appends a capability to the list: `body` is what follows the ID and the link, `writable` the bits of it that a guest can
    /// write (what it does not cover is read-only). Gives the capability's offset.
    ///
    /// # Errors
    /// The space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, ConfigLayoutError> {
        let offset = self.next_capability;
        let len = 2 + body.len();
        // Capabilities begin at multiples of four (6.7).
        let end = (offset + len).next_multiple_of(4);
        if end > CONFIG_SIZE || writable.len() > body.len() {
            return Err(ConfigLayoutError::NoRoom { len, offset });
        }
        // Both fit into their types: they are below CONFIG_SIZE.
        let (at, link) = (offset as u16, self.capability_link as u16);
        self.define(link, &[offset as u8]);
        self.define(reg::STATUS, &[STATUS_CAPABILITIES]);
        self.define(at, &[id, 0]);
        self.define(at + 2, body);
        self.allow(offset + 2, writable);
        self.capability_link = offset + 1;
        self.next_capability = end;
        Ok(at)
    }

    /// The guest reads. What is no access of 1, 2 or 4 aligned bytes inside the space gives ones, as a read that no function
    /// claims does.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        match access(offset, data.len()).and_then(|range| self.registers.get(range)) {
            Some(registers) => data.copy_from_slice(registers),
            None => data.fill(0xff),
        }
    }

    /// The guest writes. Bits that cannot be written keep their value; what is no access (see [`ConfigSpace::read`]) is ignored.
    /// Says whether it was one.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let Some(range) = access(offset, data.len()) else { return false };
        let masks = self.writable[range.clone()].iter().zip(&self.clearable[range.clone()]);
        for ((register, (mask, clearable)), new) in self.registers[range].iter_mut().zip(masks).zip(data) {
            *register = ((*register & !mask) | (new & mask)) & !(new & clearable);
        }
        true
    }

    /// Whether `len` bytes at `offset` are an access that [`ConfigSpace::read`] and [`ConfigSpace::write`] serve.
    pub fn serves(offset: u16, len: usize) -> bool {
        access(offset, len).is_some()
    }

    /// Reads one of the device's own registers, whatever its alignment. Past the end there are zeros.
    pub fn get<const N: usize>(&self, offset: u16) -> [u8; N] {
        let start = usize::from(offset);
        let mut bytes = [0; N];
        if let Some(registers) = self.registers.get(start..start + N) {
            bytes.copy_from_slice(registers);
        }
        bytes
    }

    /// The device changes a register behind the guest's back. Past the end nothing happens.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        let start = usize::from(offset);
        if let Some(registers) = self.registers.get_mut(start..start + bytes.len()) {
            registers.copy_from_slice(bytes);
        }
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(u16::from_le_bytes(self.get(reg::COMMAND)))
    }

    /// The function's BARs, in the order they were added.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// The address that the guest gave `bar`; it may be anything.
    pub fn bar_base(&self, bar: Bar) -> u64 {
        let mut address = [0; 8];
        let registers = bar.registers();
        address[..registers.len()].copy_from_slice(&self.registers[registers]);
        u64::from_le_bytes(address) & !(bar.size - 1)
    }

    /// Whether the status register says that the interrupt pin is asserted.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        let status = &mut self.registers[usize::from(reg::STATUS)];
        *status = (*status & !STATUS_INTERRUPT) | if asserted { STATUS_INTERRUPT } else { 0 };
    }

    /// Puts every register back.
    pub fn reset(&mut self) {
        self.registers = self.initial;
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> ConfigState {
        ConfigState { registers: self.registers.to_vec() }
    }

    /// Takes the bits that a guest can change out of `state`; the others are what the function was built with.
    pub fn restore(&mut self, state: &ConfigState) {
        self.registers = self.initial;
        let masks =
            self.writable.iter().zip(&self.clearable).map(|(writable, clearable)| writable | clearable);
        for ((register, mask), new) in self.registers.iter_mut().zip(masks).zip(&state.registers) {
            *register = (*register & !mask) | (new & mask);
        }
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [vendor, device] = [reg::VENDOR_ID, reg::DEVICE_ID].map(|at| u16::from_le_bytes(self.get(at)));
        f.debug_struct("ConfigSpace")
            .field("id", &format_args!("{vendor:04x}:{device:04x}"))
            .field("command", &self.command())
            .field("bars", &self.bars)
            .finish_non_exhaustive()
    }
}

/// The bytes that an access concerns, or `None` if it is none: 1, 2 or 4 bytes, aligned, inside the space (PCI Express Base 3.0,
/// 7.2.2: larger ones need not be supported by ECAM).
fn access(offset: u16, len: usize) -> Option<Range<usize>> {
    let start = usize::from(offset);
    let fine = matches!(len, 1 | 2 | 4) && start.is_multiple_of(len) && start + len <= CONFIG_SIZE;
    fine.then(|| start..start + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_00_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        intx: true,
    };

    fn config() -> ConfigSpace {
        let mut config = ConfigSpace::new(IDENTITY);
        let low = Bar { index: 1, size: 0x1000, kind: BarKind::Memory32, prefetchable: false };
        let high = Bar { index: 4, size: 0x4000, kind: BarKind::Memory64, prefetchable: true };
        config.add_bar(low).unwrap();
        config.add_bar(high).unwrap();
        config
    }

    fn read4(config: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_is_where_the_header_has_it() {
        let config = config();
        assert_eq!(read4(&config, 0), 0x1042_1af4);
        assert_eq!(read4(&config, 8), 0x0100_0001);
        assert_eq!(read4(&config, 0x2c), 0x1100_1af4);
        assert_eq!(read4(&config, 0x3c), 0x0000_0100);
    }

    #[test]
    fn identity_cannot_be_written() {
        let mut config = config();
        config.write(0, &[0; 4]);
        config.write(8, &[0; 4]);
        config.write(0x3d, &[4]);
        assert_eq!(
            [read4(&config, 0), read4(&config, 8), read4(&config, 0x3c)],
            [0x1042_1af4, 0x0100_0001, 0x100]
        );
    }

    #[test]
    fn ones_in_a_32_bit_bar_read_back_as_its_size() {
        let mut config = config();
        config.write(0x14, &[0xff; 4]);
        assert_eq!(read4(&config, 0x14), 0xffff_f000);
    }

    #[test]
    fn ones_in_a_64_bit_bar_read_back_as_its_size_and_flags() {
        let mut config = config();
        config.write(0x20, &[0xff; 4]);
        config.write(0x24, &[0xff; 4]);
        assert_eq!([read4(&config, 0x20), read4(&config, 0x24)], [0xffff_c00c, 0xffff_ffff]);
    }

    #[test]
    fn a_bar_that_is_not_there_reads_as_zero_after_ones() {
        let mut config = config();
        config.write(0x10, &[0xff; 4]);
        config.write(0x18, &[0xff; 4]);
        assert_eq!([read4(&config, 0x10), read4(&config, 0x18)], [0, 0]);
    }

    #[test]
    fn a_bars_base_is_its_address_without_flags() {
        let mut config = config();
        config.write(0x20, &0x0000_8000_u32.to_le_bytes());
        config.write(0x24, &0x80_u32.to_le_bytes());
        let bar = config.bars()[1];
        assert_eq!(config.bar_base(bar), 0x80_0000_8000);
    }

    #[test]
    fn capabilities_are_linked_in_order() {
        let mut config = config();
        let first = config.add_capability(9, &[3, 0xaa, 0xbb], &[]).unwrap();
        let second = config.add_capability(0x11, &[0; 10], &[0, 0xc0]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(read4(&config, 0x34), 0x40);
        assert_eq!([read4(&config, 0x40) & 0xffff, read4(&config, 0x48) & 0xffff], [0x4809, 0x0011]);
        assert_eq!(read4(&config, 4) >> 16, 0x10);
    }

    #[test]
    fn only_the_writable_bits_of_a_capability_change() {
        let mut config = config();
        let offset = config.add_capability(0x11, &[0; 10], &[0, 0xc0]).unwrap();
        config.write(offset, &[0xff; 4]);
        assert_eq!(read4(&config, offset), 0xc000_0011);
    }

    #[test]
    fn a_capability_that_does_not_fit_is_refused() {
        let mut config = config();
        config.add_capability(9, &[0; 190], &[]).unwrap();
        assert!(matches!(config.add_capability(9, &[0; 3], &[]), Err(ConfigLayoutError::NoRoom { .. })));
    }

    #[test]
    fn bars_share_no_register() {
        let mut config = config();
        let wide = |index| Bar { index, size: 0x1000, kind: BarKind::Memory64, prefetchable: false };
        assert_eq!(config.add_bar(wide(0)), Err(ConfigLayoutError::BarIndex(0)));
        assert_eq!(config.add_bar(wide(5)), Err(ConfigLayoutError::BarIndex(5)));
        assert_eq!(config.add_bar(wide(6)), Err(ConfigLayoutError::BarIndex(6)));
        assert_eq!(config.add_bar(wide(2)), Ok(()));
    }

    #[test]
    fn a_bars_size_is_a_power_of_two() {
        let mut config = ConfigSpace::new(IDENTITY);
        let bar = |size| Bar { index: 0, size, kind: BarKind::Memory32, prefetchable: false };
        assert!(config.add_bar(bar(0x1800)).is_err());
        assert!(config.add_bar(bar(8)).is_err());
        assert!(config.add_bar(bar(0)).is_err());
        assert!(config.add_bar(bar(1 << 32)).is_err());
    }

    #[test]
    fn unaligned_wide_and_outside_reads_give_ones() {
        let config = config();
        let read = |offset, len: usize| {
            let mut data = vec![0; len];
            config.read(offset, &mut data);
            data.iter().all(|byte| *byte == 0xff)
        };
        assert!(
            read(1, 2)
                && read(2, 4)
                && read(0, 8)
                && read(0, 3)
                && read(0x100, 4)
                && read(0xffff, 1)
                && read(0, 0)
        );
    }

    #[test]
    fn unaligned_wide_and_outside_writes_are_ignored() {
        let mut config = config();
        let before = config.state();
        assert!(!config.write(0x15, &[0xff; 2]));
        assert!(!config.write(0x10, &[0xff; 8]));
        assert!(!config.write(0xfffe, &[0xff; 4]));
        assert_eq!(config.state(), before);
    }

    #[test]
    fn bytes_and_halves_of_a_register_can_be_accessed() {
        let mut config = config();
        config.write(0x16, &[0x34, 0x12]);
        config.write(0x15, &[0xf0]);
        let mut byte = [0];
        config.read(0x17, &mut byte);
        assert_eq!((read4(&config, 0x14), byte), (0x1234_f000, [0x12]));
    }

    #[test]
    fn command_bits_that_mean_nothing_here_stay_zero() {
        let mut config = config();
        config.write(reg::COMMAND, &[0xff, 0xff]);
        assert_eq!(config.command(), Command::all());
        assert_eq!(read4(&config, 4), 0x0546);
    }

    #[test]
    fn reset_puts_every_register_back() {
        let mut config = config();
        let before = config.state();
        config.write(reg::COMMAND, &[0xff, 0xff]);
        config.write(0x14, &[0xff; 4]);
        config.reset();
        assert_eq!(config.state(), before);
    }

    #[test]
    fn a_restored_state_reads_the_same() {
        let mut config = config();
        config.write(0x20, &[0, 0, 1, 0]);
        config.write(reg::COMMAND, &[6, 0]);
        let json = serde_json::to_string(&config.state()).unwrap();
        let mut other = self::config();
        other.restore(&serde_json::from_str(&json).unwrap());
        assert_eq!(other.state(), config.state());
    }

    #[test]
    fn a_restored_state_cannot_change_the_identity() {
        let mut config = config();
        config.restore(&ConfigState { registers: vec![0; 1000] });
        assert_eq!(read4(&config, 0), 0x1042_1af4);
    }
}
