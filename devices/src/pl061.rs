//! PL061, the Arm GPIO controller (ARM DDI 0190): eight lines, of which one is the machine's power button.
//!
//! Nothing else is connected: outputs drive nobody, and the other inputs are pulled low.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hvrun_arch::aarch64::layout::POWER_BUTTON_GPIO;
use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::irq::IrqLine;
use crate::primecell::{aligned, get, id_register, put};
use crate::util::lock;

/// GPIODATA takes all offsets below: bits 9 to 2 of the address select the lines of an access (DDI 0190 3.3.1).
const DATA_END: u64 = 0x400;
/// GPIODIR: direction, 1 is output (3.3.2).
const DIR: u64 = 0x400;
/// GPIOIS: interrupt sense, 1 is level (3.3.3).
const IS: u64 = 0x404;
/// GPIOIBE: interrupt on both edges (3.3.4).
const IBE: u64 = 0x408;
/// GPIOIEV: interrupt event, 1 is rising or high (3.3.5).
const IEV: u64 = 0x40c;
/// GPIOIE: interrupt mask (3.3.6).
const IE: u64 = 0x410;
/// GPIORIS: raw interrupt status (3.3.7).
const RIS: u64 = 0x414;
/// GPIOMIS: masked interrupt status (3.3.8).
const MIS: u64 = 0x418;
/// GPIOIC: interrupt clear (3.3.9).
const IC: u64 = 0x41c;
/// GPIOAFSEL: alternate function select (3.3.10).
const AFSEL: u64 = 0x420;
/// PeriphID0 to 3 (3.3.12).
const PERIPH_ID: u32 = 0x0004_1061;

/// How long a pressed power button stays pressed: longer than the debounce interval of `gpio-keys`, as in QEMU.
const PRESS: Duration = Duration::from_millis(100);

/// What a snapshot needs of a PL061. Registers by their names in ARM DDI 0190; one bit a line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl061State {
    /// What the guest drives its outputs to.
    pub data: u8,
    /// What the outside drives the inputs to.
    pub inputs: u8,
    /// GPIODIR.
    pub dir: u8,
    /// GPIOIS.
    pub is: u8,
    /// GPIOIBE.
    pub ibe: u8,
    /// GPIOIEV.
    pub iev: u8,
    /// GPIOIE.
    pub ie: u8,
    /// Edges seen and not cleared.
    pub edges: u8,
    /// GPIOAFSEL.
    pub afsel: u8,
}

/// See the module.
pub struct Pl061 {
    irq: IrqLine,
    state: Mutex<Pl061State>,
    /// Held by the press in progress.
    pressed: Mutex<bool>,
}

impl Pl061 {
    /// Size of its window.
    pub const SIZE: u64 = 0x1000;

    /// A controller whose combined interrupt (GPIOINTR, level, high) is `irq`.
    pub fn new(irq: IrqLine) -> Arc<Pl061> {
        Arc::new(Pl061 { irq, state: Mutex::default(), pressed: Mutex::new(false) })
    }

    /// Presses the power button and lets it go a tenth of a second later. Returns at once; does nothing while it is pressed.
    pub fn press_power_button(self: &Arc<Self>) {
        if std::mem::replace(&mut *lock(&self.pressed), true) {
            return;
        }
        self.set_input(POWER_BUTTON_GPIO, true);
        let gpio = Arc::downgrade(self);
        let release = move || {
            thread::sleep(PRESS);
            if let Some(gpio) = gpio.upgrade() {
                gpio.release_power_button();
            }
        };
        if let Err(error) = thread::Builder::new().name("power-button".to_owned()).spawn(release) {
            log::warn!("PL061: no thread to let the power button go, it is released at once: {error}");
            self.release_power_button();
        }
    }

    fn release_power_button(&self) {
        self.set_input(POWER_BUTTON_GPIO, false);
        *lock(&self.pressed) = false;
    }

    /// Drives the input `line` (0 to 7; others do not exist) from outside.
    pub fn set_input(&self, line: u32, level: bool) {
        let bit = 1u8.checked_shl(line).unwrap_or(0);
        self.access(|state| state.drive(if level { state.inputs | bit } else { state.inputs & !bit }));
    }

    /// Everything that a snapshot needs.
    pub fn save(&self) -> Pl061State {
        lock(&self.state).clone()
    }

    /// Puts a saved state back. A power button that was held down then is let go now.
    pub fn restore(&self, state: &Pl061State) {
        let pressed = lock(&self.pressed);
        let mut current = lock(&self.state);
        *current = state.clone();
        if !*pressed {
            let inputs = current.inputs & !(1 << POWER_BUTTON_GPIO);
            current.drive(inputs);
        }
        self.irq.force(current.masked() != 0);
    }

    fn access<T>(&self, body: impl FnOnce(&mut Pl061State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = body(&mut state);
        self.irq.set(state.masked() != 0);
        result
    }
}

impl Pl061State {
    /// The level of every line: an output's is what the guest drives.
    fn levels(&self) -> u8 {
        (self.data & self.dir) | (self.inputs & !self.dir)
    }

    /// The inputs change. Lines set to output see nothing of it.
    fn drive(&mut self, inputs: u8) {
        let changed = (self.inputs ^ inputs) & !self.dir;
        self.inputs = inputs;
        let wanted = self.ibe | !(self.iev ^ inputs);
        self.edges |= changed & wanted & !self.is;
    }

    /// GPIORIS: edges are remembered, levels are as they are.
    fn raw(&self) -> u8 {
        let levels = !(self.levels() ^ self.iev) & self.is & !self.dir;
        self.edges | levels
    }

    /// GPIOMIS.
    fn masked(&self) -> u8 {
        self.raw() & self.ie
    }

    fn read(&self, offset: u64) -> u32 {
        let value = match offset {
            0..DATA_END => self.levels() & (offset >> 2) as u8,
            DIR => self.dir,
            IS => self.is,
            IBE => self.ibe,
            IEV => self.iev,
            IE => self.ie,
            RIS => self.raw(),
            MIS => self.masked(),
            AFSEL => self.afsel,
            _ => return id_register(PERIPH_ID, offset).unwrap_or(0),
        };
        u32::from(value)
    }

    fn write(&mut self, offset: u64, value: u8) {
        match offset {
            0..DATA_END => {
                let mask = (offset >> 2) as u8 & self.dir;
                self.data = (self.data & !mask) | (value & mask);
            }
            DIR => self.dir = value,
            IS => {
                self.is = value;
                // A line that senses levels remembers no edges.
                self.edges &= !value;
            }
            IBE => self.ibe = value,
            IEV => self.iev = value,
            IE => self.ie = value,
            IC => self.edges &= !value,
            AFSEL => self.afsel = value,
            _ => {}
        }
    }
}

impl MmioDevice for Pl061 {
    fn name(&self) -> &str {
        "PL061"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if aligned(offset) {
            put(data, self.access(|state| state.read(offset)));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if aligned(offset) {
            self.access(|state| state.write(offset, get(data) as u8));
        }
    }

    /// The inputs belong to the outside and stay: a button held down is still down.
    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = Pl061State { inputs: state.inputs, ..Pl061State::default() };
        self.irq.force(false);
    }
}

impl fmt::Debug for Pl061 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl061").field("irq", &self.irq).field("state", &self.save()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::fake::FakeChip;

    const BUTTON: u32 = 1 << POWER_BUTTON_GPIO;

    fn gpio() -> (Arc<Pl061>, Arc<FakeChip>) {
        let (chip, line) = FakeChip::line();
        (Pl061::new(line), chip)
    }

    fn read(gpio: &Pl061, offset: u64) -> u32 {
        let mut data = [0; 4];
        MmioDevice::read(gpio, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(gpio: &Pl061, offset: u64, value: u32) {
        MmioDevice::write(gpio, offset, &value.to_le_bytes());
    }

    #[test]
    fn pressing_the_power_button_pulses_its_line() {
        let (gpio, chip) = gpio();
        write(&gpio, IBE, BUTTON);
        write(&gpio, IE, BUTTON);
        gpio.press_power_button();
        assert!(chip.level());
        assert_eq!(read(&gpio, 0x3fc), BUTTON);
        write(&gpio, IC, BUTTON);
        while !chip.level() {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(read(&gpio, 0x3fc), 0);
    }

    #[test]
    fn a_second_press_while_pressed_changes_nothing() {
        let (gpio, chip) = gpio();
        write(&gpio, IEV, BUTTON);
        write(&gpio, IE, BUTTON);
        gpio.press_power_button();
        gpio.press_power_button();
        assert_eq!(chip.calls().len(), 1);
    }

    #[test]
    fn the_address_masks_data_reads() {
        let (gpio, _) = gpio();
        gpio.set_input(0, true);
        gpio.set_input(3, true);
        assert_eq!(read(&gpio, 0b1000 << 2), 0b1000);
        assert_eq!(read(&gpio, 0b0110 << 2), 0);
    }

    #[test]
    fn the_address_masks_data_writes() {
        let (gpio, _) = gpio();
        write(&gpio, DIR, 0xff);
        write(&gpio, 0x3fc, 0xf0);
        write(&gpio, 0b0001_0001 << 2, 0x0f);
        assert_eq!(read(&gpio, 0x3fc), 0xe1);
    }

    #[test]
    fn inputs_cannot_be_written() {
        let (gpio, _) = gpio();
        write(&gpio, 0x3fc, 0xff);
        assert_eq!(read(&gpio, 0x3fc), 0);
    }

    #[test]
    fn a_rising_edge_is_remembered_until_cleared() {
        let (gpio, chip) = gpio();
        write(&gpio, IEV, 1);
        write(&gpio, IE, 1);
        gpio.set_input(0, true);
        gpio.set_input(0, false);
        assert_eq!((read(&gpio, RIS), read(&gpio, MIS), chip.level()), (1, 1, true));
        write(&gpio, IC, 1);
        assert_eq!((read(&gpio, RIS), chip.level()), (0, false));
    }

    #[test]
    fn a_falling_edge_is_not_a_rising_one() {
        let (gpio, _) = gpio();
        gpio.set_input(0, true);
        write(&gpio, IC, 0xff);
        write(&gpio, IEV, 1);
        gpio.set_input(0, false);
        assert_eq!(read(&gpio, RIS), 0);
    }

    #[test]
    fn both_edges_count_when_asked_for() {
        let (gpio, _) = gpio();
        write(&gpio, IBE, 1);
        gpio.set_input(0, true);
        assert_eq!(read(&gpio, RIS), 1);
        write(&gpio, IC, 1);
        gpio.set_input(0, false);
        assert_eq!(read(&gpio, RIS), 1);
    }

    #[test]
    fn a_level_interrupt_ends_with_the_level_and_not_with_a_clear() {
        let (gpio, chip) = gpio();
        write(&gpio, IS, 1);
        write(&gpio, IEV, 1);
        write(&gpio, IE, 1);
        gpio.set_input(0, true);
        write(&gpio, IC, 1);
        assert!(chip.level());
        gpio.set_input(0, false);
        assert!(!chip.level());
    }

    #[test]
    fn a_masked_interrupt_leaves_the_line_low() {
        let (gpio, chip) = gpio();
        write(&gpio, IEV, 1);
        gpio.set_input(0, true);
        assert_eq!((read(&gpio, RIS), read(&gpio, MIS), chip.level()), (1, 0, false));
    }

    #[test]
    fn a_line_that_does_not_exist_is_ignored() {
        let (gpio, _) = gpio();
        gpio.set_input(8, true);
        gpio.set_input(1000, true);
        assert_eq!(read(&gpio, 0x3fc), 0);
    }

    #[test]
    fn linux_finds_the_ids_it_looks_for() {
        let (gpio, _) = gpio();
        let id = (0..4).fold(0, |id, i| id | read(&gpio, 0xfe0 + 4 * i) << (8 * i));
        assert_eq!((id & 0x000f_ffff, read(&gpio, 0xffc)), (0x0004_1061, 0xb1));
    }

    #[test]
    fn reset_clears_registers_and_the_line() {
        let (gpio, chip) = gpio();
        write(&gpio, AFSEL, 0xff);
        write(&gpio, IS, 1);
        write(&gpio, IE, 1);
        assert!(chip.level());
        gpio.reset();
        assert_eq!((read(&gpio, AFSEL), read(&gpio, IE), chip.level()), (0, 0, false));
    }

    #[test]
    fn a_restored_state_drives_the_line_again() {
        let (gpio, _) = gpio();
        write(&gpio, IEV, 1);
        write(&gpio, IE, 1);
        gpio.set_input(0, true);
        let saved = serde_json::to_string(&gpio.save()).unwrap();
        let (other, chip) = self::gpio();
        other.restore(&serde_json::from_str(&saved).unwrap());
        assert!(chip.level());
    }
}
