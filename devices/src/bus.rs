//! Address -> device: which device answers a guest physical address, and what happens where none does.
//!
//! It knows windows and the [`MmioDevice`] trait, no device, no RAM and no hypervisor.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use hvrun_arch::aarch64::layout::Window;

use crate::util::LogLimit;

/// A device behind a window of guest physical addresses. Calls come from any vCPU's thread, several at once; a device keeps
/// its own lock. Offsets and data are the guest's: anything may come in, nothing may panic.
pub trait MmioDevice: Send + Sync {
    /// A short name for log lines and error messages.
    fn name(&self) -> &str;

    /// The guest reads `data.len()` bytes at `offset` from the window's base. `data` comes in as zeros and leaves
    /// little-endian. The access lies inside the window.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` (little-endian) at `offset` from the window's base. The access lies inside the window.
    fn write(&self, offset: u64, data: &[u8]);

    /// Puts the device into the state it had when the machine was built, its interrupt line low.
    fn reset(&self);
}

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The window shares addresses with another device's.
    #[error(
        "{device} at {base:#x} (size {size:#x}) overlaps {other} at {other_base:#x} (size {other_size:#x}); move one of them"
    )]
    Overlap {
        /// The new device.
        device: String,
        /// Its base.
        base: u64,
        /// Its size.
        size: u64,
        /// The device already there.
        other: String,
        /// That device's base.
        other_base: u64,
        /// That device's size.
        other_size: u64,
    },
    /// The window is empty or runs past the last address.
    #[error(
        "{device} at {base:#x} has the size {size:#x}; a window has at least one byte and ends below 2^64"
    )]
    Window {
        /// The new device.
        device: String,
        /// Its base.
        base: u64,
        /// Its size.
        size: u64,
    },
}

#[derive(Clone)]
struct Slot {
    window: Window,
    device: Arc<dyn MmioDevice>,
}

/// The machine's address map of devices. Looking a device up is a binary search under a read lock that is released before
/// the device is called, so devices run in parallel and may change the map themselves (a PCI BAR that moves).
#[derive(Default)]
pub struct Bus {
    /// Sorted by base; no two overlap.
    slots: RwLock<Vec<Slot>>,
    unclaimed: LogLimit,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Bus::default()
    }

    /// Puts `device` at `window`.
    pub fn insert(&self, window: Window, device: Arc<dyn MmioDevice>) -> Result<(), BusError> {
        let (base, size) = (window.base, window.size);
        if size == 0 || base.checked_add(size).is_none() {
            return Err(BusError::Window { device: device.name().to_owned(), base, size });
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let at = slots.partition_point(|slot| slot.window.base < base);
        let before = at.checked_sub(1).and_then(|i| slots.get(i));
        let after = slots.get(at);
        if let Some(other) = [before, after].into_iter().flatten().find(|slot| slot.window.overlaps(window)) {
            return Err(BusError::Overlap {
                device: device.name().to_owned(),
                base,
                size,
                other: other.device.name().to_owned(),
                other_base: other.window.base,
                other_size: other.window.size,
            });
        }
        slots.insert(at, Slot { window, device });
        Ok(())
    }

    /// Takes the device whose window begins at `base` off the bus. An access that already found it still completes.
    pub fn remove(&self, base: u64) -> Option<Arc<dyn MmioDevice>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let at = slots.binary_search_by_key(&base, |slot| slot.window.base).ok()?;
        Some(slots.remove(at).device)
    }

    /// The guest reads `data.len()` bytes at `addr`. Where no device answers, zeros.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0);
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => self.log_unclaimed("read", addr, data.len()),
        }
    }

    /// The guest writes `data` at `addr`. Where no device answers, nothing happens.
    pub fn write(&self, addr: u64, data: &[u8]) {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => self.log_unclaimed("write", addr, data.len()),
        }
    }

    /// Resets every device, in the order of their addresses. The machine's vCPUs are stopped.
    pub fn reset(&self) {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner).clone();
        for slot in slots {
            slot.device.reset();
        }
    }

    /// Name and window of every device, by address: for `info mtree` and error reports.
    pub fn map(&self) -> Vec<(String, Window)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().map(|slot| (slot.device.name().to_owned(), slot.window)).collect()
    }

    /// The device that has all `len` bytes at `addr`. An access that straddles a window's end belongs to nobody.
    fn find(&self, addr: u64, len: usize) -> Option<(Arc<dyn MmioDevice>, u64)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let at = slots.partition_point(|slot| slot.window.base <= addr).checked_sub(1)?;
        let slot = slots.get(at)?;
        let offset = addr - slot.window.base;
        let room = slot.window.size.checked_sub(offset)?;
        (len as u64 <= room).then(|| (slot.device.clone(), offset))
    }

    fn log_unclaimed(&self, what: &str, addr: u64, len: usize) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        if let Some(suppressed) = self.unclaimed.allow() {
            log::debug!("guest {what} of {len} bytes at {addr:#x}, where no device is: ignored{suppressed}");
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.map()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::util::lock;

    /// Answers reads with its tag and the offset, and remembers writes.
    struct Probe {
        name: &'static str,
        tag: u8,
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
        resets: Mutex<u32>,
    }

    impl Probe {
        fn new(name: &'static str, tag: u8) -> Arc<Probe> {
            Arc::new(Probe { name, tag, writes: Mutex::new(Vec::new()), resets: Mutex::new(0) })
        }
    }

    impl MmioDevice for Probe {
        fn name(&self) -> &str {
            self.name
        }

        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.tag);
            data[0] = offset as u8;
        }

        fn write(&self, offset: u64, data: &[u8]) {
            lock(&self.writes).push((offset, data.to_vec()));
        }

        fn reset(&self) {
            *lock(&self.resets) += 1;
        }
    }

    fn bus_of_two() -> (Bus, Arc<Probe>, Arc<Probe>) {
        let bus = Bus::new();
        let (low, high) = (Probe::new("low", 0xaa), Probe::new("high", 0xbb));
        bus.insert(Window::new(0x2000, 0x1000), high.clone()).unwrap();
        bus.insert(Window::new(0x1000, 0x800), low.clone()).unwrap();
        (bus, low, high)
    }

    fn read4(bus: &Bus, addr: u64) -> [u8; 4] {
        let mut data = [0x55; 4];
        bus.read(addr, &mut data);
        data
    }

    #[test]
    fn a_read_reaches_the_device_with_its_offset() {
        let (bus, ..) = bus_of_two();
        assert_eq!(read4(&bus, 0x1010), [0x10, 0xaa, 0xaa, 0xaa]);
        assert_eq!(read4(&bus, 0x2ffc), [0xfc, 0xbb, 0xbb, 0xbb]);
    }

    #[test]
    fn a_write_reaches_the_device_with_its_offset() {
        let (bus, low, high) = bus_of_two();
        bus.write(0x1004, &[1, 2]);
        assert_eq!(*lock(&low.writes), [(4, vec![1, 2])]);
        assert!(lock(&high.writes).is_empty());
    }

    #[test]
    fn unclaimed_addresses_read_as_zero() {
        let (bus, ..) = bus_of_two();
        assert_eq!(read4(&bus, 0), [0; 4]);
        assert_eq!(read4(&bus, 0x1800), [0; 4]);
        assert_eq!(read4(&bus, 0x3000), [0; 4]);
        assert_eq!(read4(&bus, u64::MAX), [0; 4]);
    }

    #[test]
    fn unclaimed_writes_reach_nobody() {
        let (bus, low, high) = bus_of_two();
        bus.write(0x1800, &[1]);
        assert!(lock(&low.writes).is_empty() && lock(&high.writes).is_empty());
    }

    #[test]
    fn an_access_across_the_end_of_a_window_belongs_to_nobody() {
        let (bus, low, _) = bus_of_two();
        assert_eq!(read4(&bus, 0x17fe), [0; 4]);
        bus.write(0x17fe, &[1, 2, 3, 4]);
        assert!(lock(&low.writes).is_empty());
    }

    #[test]
    fn an_overlap_is_refused_and_names_both_devices() {
        let (bus, ..) = bus_of_two();
        let error = bus.insert(Window::new(0x17ff, 0x10), Probe::new("new", 0)).unwrap_err();
        assert!(
            matches!(&error, BusError::Overlap { device, other, .. } if device == "new" && other == "low")
        );
        assert_eq!(bus.map().len(), 2);
    }

    #[test]
    fn a_window_that_covers_another_is_refused() {
        let (bus, ..) = bus_of_two();
        assert!(bus.insert(Window::new(0, 0x10000), Probe::new("new", 0)).is_err());
    }

    #[test]
    fn empty_and_wrapping_windows_are_refused() {
        let bus = Bus::new();
        assert!(matches!(bus.insert(Window::new(0, 0), Probe::new("new", 0)), Err(BusError::Window { .. })));
        let wrapping = Window::new(u64::MAX, 2);
        assert!(matches!(bus.insert(wrapping, Probe::new("new", 0)), Err(BusError::Window { .. })));
    }

    #[test]
    fn a_removed_device_answers_no_more() {
        let (bus, ..) = bus_of_two();
        assert!(bus.remove(0x1000).is_some());
        assert_eq!(read4(&bus, 0x1000), [0; 4]);
    }

    #[test]
    fn reset_reaches_every_device_once() {
        let (bus, low, high) = bus_of_two();
        bus.reset();
        assert_eq!((*lock(&low.resets), *lock(&high.resets)), (1, 1));
    }

    #[test]
    fn a_device_may_change_the_map_from_within_a_call() {
        struct Mover(Arc<Bus>);
        impl MmioDevice for Mover {
            fn name(&self) -> &str {
                "mover"
            }
            fn read(&self, _: u64, _: &mut [u8]) {}
            fn write(&self, _: u64, _: &[u8]) {
                self.0.insert(Window::new(0x100, 1), Probe::new("moved", 1)).unwrap();
            }
            fn reset(&self) {}
        }
        let bus = Arc::new(Bus::new());
        bus.insert(Window::new(0, 4), Arc::new(Mover(bus.clone()))).unwrap();
        bus.write(0, &[1]);
        assert_eq!(bus.map().len(), 2);
    }
}
