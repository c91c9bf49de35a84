//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2): one small window and one edge-triggered interrupt a device.
//! What the registers mean is in [`super::transport`].

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use hvrun_arch::{Datamatch, EventFds, GuestMemory};
use serde::{Deserialize, Serialize};

use super::device::{Interrupt, VirtioDevice};
use super::doorbells::Doorbells;
use super::transport::{NeedsReset, QueueRegisters, Registers, RegistersState};
use crate::bus::MmioDevice;
use crate::irq::EdgeIrq;
use crate::util::{LogLimit, lock};

/// Size of a device's window, as in QEMU's `virt`.
pub const WINDOW_SIZE: u64 = 0x200;

/// Register offsets (virtio 1.2, table 4.1).
mod reg {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Length 0xffff_ffff: there is no such shared memory region.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// "virt" in little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of the transport without the legacy interface.
const VERSION: u32 = 2;
/// "QEMU" in little-endian: drivers do not care, and people know it.
const VENDOR: u32 = 0x554d_4551;

/// InterruptStatus: the device has used a buffer.
const INT_USED_RING: u32 = 1;
/// InterruptStatus: the configuration has changed.
const INT_CONFIG: u32 = 2;

/// A virtio device in a virtio-mmio slot.
pub struct VirtioMmio {
    device: Arc<dyn VirtioDevice>,
    registers: Mutex<Registers>,
    signal: Arc<Signal>,
    doorbells: Doorbells,
    odd_accesses: LogLimit,
}

/// The interrupt of a slot. Not behind the registers' lock, since devices raise it while a reset waits for them.
#[derive(Debug)]
struct Signal {
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: Arc<NeedsReset>,
    irq: EdgeIrq,
}

impl Signal {
    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::SeqCst);
        self.irq.raise();
    }
}

impl Interrupt for Signal {
    fn used(&self, _index: u16) {
        self.raise(INT_USED_RING);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(INT_CONFIG);
    }

    fn needs_reset(&self) {
        self.needs_reset.set();
        self.raise(INT_CONFIG);
    }
}

/// What a snapshot keeps of the transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioMmioState {
    /// The registers that every transport has.
    pub registers: RegistersState,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
}

impl VirtioMmio {
    /// `device` in a slot whose interrupt is `irq`.
    pub fn new(device: Arc<dyn VirtioDevice>, memory: GuestMemory, irq: EdgeIrq) -> Self {
        let needs_reset = Arc::new(NeedsReset::default());
        let signal = Arc::new(Signal {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: needs_reset.clone(),
            irq,
        });
        let registers = Registers::new(device.clone(), memory, signal.clone(), needs_reset);
        let doorbells = Doorbells::new(device.clone(), None, doorbell);
        VirtioMmio {
            device,
            registers: Mutex::new(registers),
            signal,
            doorbells,
            odd_accesses: LogLimit::default(),
        }
    }

    /// The same at the address `base`, for a hypervisor that can ring by itself for devices with a descriptor.
    #[must_use]
    pub fn with_event_fds(mut self, fds: Option<Arc<dyn EventFds>>, base: u64) -> Self {
        self.doorbells = Doorbells::new(self.device.clone(), fds, doorbell);
        self.doorbells.set_base(Some(base));
        self
    }

    fn read_register(&self, offset: u64) -> u32 {
        // What does not need the lock.
        match offset {
            reg::MAGIC_VALUE => return MAGIC,
            reg::VERSION => return VERSION,
            reg::DEVICE_ID => return self.device.device_type().id().into(),
            reg::VENDOR_ID => return VENDOR,
            reg::INTERRUPT_STATUS => return self.signal.status.load(Ordering::SeqCst),
            reg::CONFIG_GENERATION => return self.signal.generation.load(Ordering::SeqCst),
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => return u32::MAX,
            _ => {}
        }
        let registers = lock(&self.registers);
        match offset {
            reg::DEVICE_FEATURES => registers.selected_device_features(),
            reg::QUEUE_NUM_MAX => registers.queue().map_or(0, |queue| queue.max_size.into()),
            reg::QUEUE_READY => registers.queue().map_or(0, |queue| queue.ready.into()),
            reg::STATUS => registers.status().into(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            reg::QUEUE_NOTIFY => {
                // A number that does not fit is no queue's.
                if let Ok(queue) = u16::try_from(value) {
                    self.device.notify(queue);
                }
                return;
            }
            reg::INTERRUPT_ACK => {
                self.signal.status.fetch_and(!value, Ordering::SeqCst);
                return;
            }
            _ => {}
        }
        let mut registers = lock(&self.registers);
        match offset {
            reg::DEVICE_FEATURES_SEL => registers.device_feature_select = value,
            reg::DRIVER_FEATURES => registers.set_driver_features(value),
            reg::DRIVER_FEATURES_SEL => registers.driver_feature_select = value,
            // A number that does not fit selects a queue that there is not.
            reg::QUEUE_SEL => registers.queue_select = u16::try_from(value).unwrap_or(u16::MAX),
            reg::STATUS => {
                // The upper bits are reserved.
                let value = value as u8;
                if value == 0 {
                    self.doorbells.set_running(false);
                }
                registers.set_status(value);
                self.doorbells.set_running(registers.is_running());
                if value == 0 {
                    self.signal.status.store(0, Ordering::SeqCst);
                }
            }
            reg::QUEUE_READY if value & 1 == 0 && registers.is_running() => {
                self.doorbells.set_running(false);
                registers.stop_queue();
            }
            _ => {
                if let Some(queue) = registers.queue_mut() {
                    write_queue_register(queue, offset, value);
                }
            }
        }
    }
}

/// The write that rings for `queue` of the device at `base`.
fn doorbell(base: u64, queue: u16) -> (u64, Datamatch) {
    (base.wrapping_add(reg::QUEUE_NOTIFY), Datamatch::U32(queue.into()))
}

fn write_queue_register(queue: &mut QueueRegisters, offset: u64, value: u32) {
    let low = |old: u64| (old & !u64::from(u32::MAX)) | u64::from(value);
    let high = |old: u64| (old & u64::from(u32::MAX)) | u64::from(value) << 32;
    match offset {
        reg::QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
        reg::QUEUE_READY => queue.ready = value & 1 != 0,
        reg::QUEUE_DESC_LOW => queue.desc = low(queue.desc),
        reg::QUEUE_DESC_HIGH => queue.desc = high(queue.desc),
        reg::QUEUE_DRIVER_LOW => queue.avail = low(queue.avail),
        reg::QUEUE_DRIVER_HIGH => queue.avail = high(queue.avail),
        reg::QUEUE_DEVICE_LOW => queue.used = low(queue.used),
        reg::QUEUE_DEVICE_HIGH => queue.used = high(queue.used),
        _ => {}
    }
}

impl VirtioMmio {
    /// For a snapshot.
    pub fn state(&self) -> VirtioMmioState {
        VirtioMmioState {
            registers: lock(&self.registers).state(),
            interrupt_status: self.signal.status.load(Ordering::SeqCst),
            config_generation: self.signal.generation.load(Ordering::SeqCst),
        }
    }

    fn log_odd_access(&self, what: &str, offset: u64, len: usize) {
        if let Some(suppressed) = self.odd_accesses.allow() {
            log::debug!(
                "{}: {what} of {len} bytes at register {offset:#x}: ignored{suppressed}",
                self.name()
            );
        }
    }
}

impl MmioDevice for VirtioMmio {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= reg::CONFIG {
            return self.device.read_config(offset - reg::CONFIG, data);
        }
        // Registers are 32 bits wide and accessed so (virtio 1.2, 4.2.2.2).
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(data) if offset.is_multiple_of(4) => *data = self.read_register(offset).to_le_bytes(),
            _ => self.log_odd_access("a read", offset, data.len()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= reg::CONFIG {
            return self.device.write_config(offset - reg::CONFIG, data);
        }
        match <[u8; 4]>::try_from(data) {
            Ok(data) if offset.is_multiple_of(4) => self.write_register(offset, u32::from_le_bytes(data)),
            _ => self.log_odd_access("a write", offset, data.len()),
        }
    }

    fn reset(&self) {
        self.doorbells.set_running(false);
        lock(&self.registers).reset();
        self.signal.status.store(0, Ordering::SeqCst);
        self.signal.generation.store(0, Ordering::SeqCst);
    }
}

impl fmt::Debug for VirtioMmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioMmio").field("device", &self.device).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod independent;
#[cfg(test)]
mod tests;
