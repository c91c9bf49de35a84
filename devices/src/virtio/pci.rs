//! The virtio-pci transport, modern only (virtio 1.2, 4.1): a device as a PCI function. What the common registers mean is in
//! [`super::transport`]; configuration space, BARs and MSI-X as such are in [`crate::pci`].

mod common;
mod signal;

use std::fmt;
use std::sync::{Arc, Mutex};

use hvrun_arch::{Datamatch, EventFds, GuestMemory};
use serde::{Deserialize, Serialize};

use super::device::{DeviceType, VirtioDevice};
use super::doorbells::Doorbells;
use super::transport::{NeedsReset, Registers, RegistersState};
use crate::pci::config::ConfigLayoutError;
use crate::pci::{Bar, BarKind, ConfigSpace, Identity, IntxPin, MsiSink, Msix, MsixState, PciFunction, msix};
use crate::util::{LogLimit, lock};
use signal::Signal;

/// Vendor ID of all virtio devices (4.1.2).
const VENDOR: u16 = 0x1af4;
/// Device ID of the device with the virtio device ID 0 (4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// Subsystem ID, as QEMU has it.
const SUBSYSTEM: u16 = 0x1100;
/// Revision of a device without the legacy interface (4.1.2.1).
const REVISION: u8 = 1;

/// ID of a vendor-specific capability (PCI Local Bus 3.0, appendix H).
const CAP_VENDOR: u8 = 0x09;
/// `cfg_type` of the structures (virtio 1.2, 4.1.4).
mod cfg_type {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}
/// Length of `struct virtio_pci_cap`.
const CAP_LEN: u8 = 16;
/// Length of `struct virtio_pci_notify_cap` and `struct virtio_pci_cfg_cap`.
const CAP_LEN_LONG: u8 = 20;
/// Fields of `struct virtio_pci_cfg_cap` (4.1.4.9).
mod pci_cfg {
    pub const BAR: u16 = 4;
    pub const OFFSET: u16 = 8;
    pub const LENGTH: u16 = 12;
    pub const DATA: u16 = 16;
    pub const END: u16 = 20;
}

/// The BAR with vector table and pending bits, as in QEMU.
const MSIX_BAR: u8 = 1;
/// Least room for the table, and then for the pending bits, in that BAR.
const MSIX_HALF_MIN: u64 = 0x800;
/// The BAR with everything else, as in QEMU.
const VIRTIO_BAR: u8 = 4;
/// Its size.
const VIRTIO_BAR_SIZE: u64 = 0x4000;
/// Where in it the ISR status is. The common structure is at 0.
const ISR: u64 = 0x1000;
/// Where in it the device's configuration is.
const DEVICE_CONFIG: u64 = 0x2000;
/// Where in it the doorbells are.
const NOTIFY: u64 = 0x3000;
/// Bytes of each of these regions.
const REGION: u64 = 0x1000;
/// `notify_off_multiplier`: bytes from one queue's doorbell to the next one's.
const NOTIFY_MULTIPLIER: u32 = 4;
/// As many queues as there is room for doorbells.
const MAX_QUEUES: usize = (REGION / NOTIFY_MULTIPLIER as u64) as usize;

/// Most vectors that a device offers by itself: one for each of 8 queues, and one for the configuration. The interrupt
/// controller's supply is small; a driver that wants more shares one vector among all queues.
const MAX_VECTORS: u16 = 9;

/// Why a device cannot be put on PCI.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VirtioPciError {
    /// Too many queues.
    #[error("{device} has {queues} queues; PCI carries at most {MAX_QUEUES}")]
    Queues {
        /// The device.
        device: String,
        /// How many it has.
        queues: usize,
    },
    /// Its capabilities do not fit.
    #[error(transparent)]
    Layout(#[from] ConfigLayoutError),
}

/// What a snapshot keeps of the transport. Configuration space is the host bridge's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// The registers that every transport has.
    pub registers: RegistersState,
    /// Vector of configuration changes.
    pub config_vector: u16,
    /// Vector of each queue.
    pub queue_vectors: Vec<u16>,
    /// ISR status.
    pub isr: u8,
    /// Configuration generation.
    pub generation: u8,
    /// Vector table and pending bits.
    pub msix: MsixState,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    device: Arc<dyn VirtioDevice>,
    config: ConfigSpace,
    /// Offset of the PCI configuration access capability.
    pci_cfg: u16,
    /// Offset of the MSI-X capability.
    msix_cap: u16,
    /// Where the pending bits begin in [`MSIX_BAR`].
    pba: u64,
    queues: u64,
    registers: Mutex<Registers>,
    signal: Arc<Signal>,
    doorbells: Doorbells,
    odd_accesses: LogLimit,
}

/// The write that rings for `queue`, where the doorbells begin at `base`: any, since each queue has an address of its own.
fn doorbell(base: u64, queue: u16) -> (u64, Datamatch) {
    (base.wrapping_add(u64::from(queue) * u64::from(NOTIFY_MULTIPLIER)), Datamatch::Any)
}

impl VirtioPci {
    /// `device` as a function whose messages go to `msi`. With `fds`, doorbells that the device offers a descriptor for ring it past
    /// the vCPUs' threads.
    ///
    /// # Errors
    /// The device has more queues than PCI can carry.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: GuestMemory,
        msi: Arc<dyn MsiSink>,
        fds: Option<Arc<dyn EventFds>>,
    ) -> Result<Self, VirtioPciError> {
        let queues = device.queue_sizes().len();
        if queues > MAX_QUEUES {
            return Err(VirtioPciError::Queues { device: device.name().to_owned(), queues });
        }
        // Fits: at most MAX_QUEUES.
        let vectors = (queues as u16 + 1).min(MAX_VECTORS);
        let msix = Msix::new(vectors, msi);
        let half = msix.table_size().max(msix.pba_size()).next_power_of_two().max(MSIX_HALF_MIN);

        let mut config = ConfigSpace::new(identity(device.device_type()));
        config.add_bar(Bar {
            index: MSIX_BAR,
            size: 2 * half,
            kind: BarKind::Memory32,
            prefetchable: false,
        })?;
        config.add_bar(Bar {
            index: VIRTIO_BAR,
            size: VIRTIO_BAR_SIZE,
            kind: BarKind::Memory64,
            prefetchable: true,
        })?;
        let (body, writable) = msix.capability((MSIX_BAR, 0), (MSIX_BAR, half as u32));
        let msix_cap = config.add_capability(msix::CAPABILITY_ID, &body, &writable)?;
        add_structure(&mut config, cfg_type::COMMON, 0, common::SIZE as u64)?;
        add_structure(&mut config, cfg_type::ISR, ISR, 1)?;
        add_structure(&mut config, cfg_type::DEVICE, DEVICE_CONFIG, REGION)?;
        add_notify(&mut config, queues as u64 * u64::from(NOTIFY_MULTIPLIER))?;
        let pci_cfg = add_pci_cfg(&mut config)?;

        let needs_reset = Arc::new(NeedsReset::default());
        let signal = Arc::new(Signal::new(msix, queues, needs_reset.clone()));
        let registers = Registers::new(device.clone(), memory, signal.clone(), needs_reset);
        Ok(VirtioPci {
            config,
            pci_cfg,
            msix_cap,
            pba: half,
            queues: queues as u64,
            registers: Mutex::new(registers),
            signal,
            doorbells: Doorbells::new(device.clone(), fds, doorbell),
            device,
            odd_accesses: LogLimit::default(),
        })
    }

    /// The device behind the transport.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// For a snapshot.
    pub fn state(&self) -> VirtioPciState {
        let registers = lock(&self.registers).state();
        VirtioPciState {
            registers,
            config_vector: self.signal.config_vector(),
            queue_vectors: self.signal.queue_vectors(),
            isr: self.signal.isr(),
            generation: self.signal.generation(),
            msix: self.signal.msix().state(),
        }
    }

    fn virtio_read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            0..ISR => common::read(&lock(&self.registers), &self.signal, offset, data),
            // One byte, and reading it has an effect (4.1.4.5).
            ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.signal.take_isr();
                }
            }
            DEVICE_CONFIG..NOTIFY => self.device.read_config(offset - DEVICE_CONFIG, data),
            _ => self.log_odd_access("a read", offset, data.len()),
        }
    }

    fn virtio_write(&self, offset: u64, data: &[u8]) {
        match offset {
            0..ISR => {
                let mut registers = lock(&self.registers);
                common::write(&mut registers, &self.signal, &self.doorbells, offset, data);
            }
            DEVICE_CONFIG..NOTIFY => self.device.write_config(offset - DEVICE_CONFIG, data),
            NOTIFY..VIRTIO_BAR_SIZE => self.ring((offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER)),
            _ => self.log_odd_access("a write", offset, data.len()),
        }
    }

    /// A doorbell is where it is written, whatever is written (4.1.4.4; VIRTIO_F_NOTIFICATION_DATA is not offered).
    fn ring(&self, queue: u64) {
        if queue < self.queues {
            // Fits: below MAX_QUEUES.
            self.device.notify(queue as u16);
        }
    }

    fn msix_read(&self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(self.pba) {
            None => self.signal.msix().read_table(offset, data),
            Some(offset) => self.signal.msix().read_pba(offset, data),
        }
    }

    /// The access that the driver has described in the PCI configuration access capability (4.1.4.9), if that is one: BAR, offset
    /// and length.
    fn indirect(&self, config: &ConfigSpace) -> Option<(u8, u64, usize)> {
        let [bar] = config.get(self.pci_cfg + pci_cfg::BAR);
        let offset = u32::from_le_bytes(config.get(self.pci_cfg + pci_cfg::OFFSET));
        let len = u32::from_le_bytes(config.get(self.pci_cfg + pci_cfg::LENGTH));
        let size = config.bars().iter().find(|known| known.index == bar)?.size;
        let inside = u64::from(offset) + u64::from(len) <= size;
        let fine = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && inside;
        fine.then_some((bar, offset.into(), len as usize))
    }

    /// Whether an access to configuration space touches the window of [`VirtioPci::indirect`].
    fn is_indirect(&self, offset: u16, len: usize) -> bool {
        let (start, end) = (usize::from(offset), usize::from(offset) + len);
        start < usize::from(self.pci_cfg + pci_cfg::END) && end > usize::from(self.pci_cfg + pci_cfg::DATA)
    }

    fn set_msix_control(&self, config: &ConfigSpace) {
        let control = u16::from_le_bytes(config.get(self.msix_cap + msix::CONTROL_OFFSET));
        self.signal.set_msix_control(control);
    }

    fn log_odd_access(&self, what: &str, offset: u64, len: usize) {
        if let Some(suppressed) = self.odd_accesses.allow() {
            log::debug!(
                "{}: {what} of {len} bytes at {offset:#x} of BAR {VIRTIO_BAR}: ignored{suppressed}",
                self.device.name()
            );
        }
    }
}

/// Who a device of this type is, with the class that QEMU gives it.
fn identity(device_type: DeviceType) -> Identity {
    let class = match device_type {
        DeviceType::Net => 0x02_00_00,
        DeviceType::Block => 0x01_00_00,
        DeviceType::Console | DeviceType::Vsock => 0x07_80_00,
        DeviceType::Rng | DeviceType::Balloon => 0x00_ff_00,
        DeviceType::Fs9p => 0x00_02_00,
        DeviceType::Fs => 0x01_80_00,
    };
    Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + device_type.id(),
        revision: REVISION,
        class,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
        intx: true,
    }
}

/// What follows ID and link in `struct virtio_pci_cap` (4.1.4).
fn capability_body(cap_len: u8, cfg_type: u8, bar: u8, offset: u64, length: u64) -> Vec<u8> {
    let mut body = vec![cap_len, cfg_type, bar, 0, 0, 0];
    // All of them lie within a BAR of 16 KiB.
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body
}

fn add_structure(
    config: &mut ConfigSpace,
    cfg_type: u8,
    offset: u64,
    length: u64,
) -> Result<u16, ConfigLayoutError> {
    let body = capability_body(CAP_LEN, cfg_type, VIRTIO_BAR, offset, length);
    config.add_capability(CAP_VENDOR, &body, &[])
}

/// `struct virtio_pci_notify_cap` (4.1.4.4).
fn add_notify(config: &mut ConfigSpace, length: u64) -> Result<u16, ConfigLayoutError> {
    let mut body = capability_body(CAP_LEN_LONG, cfg_type::NOTIFY, VIRTIO_BAR, NOTIFY, length);
    body.extend(NOTIFY_MULTIPLIER.to_le_bytes());
    config.add_capability(CAP_VENDOR, &body, &[])
}

/// `struct virtio_pci_cfg_cap` (4.1.4.9): BAR, offset, length and data are the driver's to write.
fn add_pci_cfg(config: &mut ConfigSpace) -> Result<u16, ConfigLayoutError> {
    let mut body = capability_body(CAP_LEN_LONG, cfg_type::PCI, 0, 0, 0);
    body.extend([0; 4]);
    let mut writable = vec![0; body.len()];
    writable[usize::from(pci_cfg::BAR) - 2] = 0xff;
    writable[usize::from(pci_cfg::OFFSET) - 2..].fill(0xff);
    config.add_capability(CAP_VENDOR, &body, &writable)
}

impl PciFunction for VirtioPci {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn config_space(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn plugged(&self, pin: Arc<IntxPin>) {
        self.signal.plugged(pin);
    }

    fn config_read(&self, config: &mut ConfigSpace, offset: u16, len: usize) {
        if !self.is_indirect(offset, len) {
            return;
        }
        if let Some((bar, offset, len)) = self.indirect(config) {
            let mut data = [0; 4];
            if let Some(data) = data.get_mut(..len) {
                self.bar_read(bar, offset, data);
            }
            config.set(self.pci_cfg + pci_cfg::DATA, &data);
        }
    }

    fn config_written(&self, config: &mut ConfigSpace, offset: u16, len: usize) {
        if self.is_indirect(offset, len)
            && let Some((bar, offset, len)) = self.indirect(config)
        {
            let data: [u8; 4] = config.get(self.pci_cfg + pci_cfg::DATA);
            if let Some(data) = data.get(..len) {
                self.bar_write(bar, offset, data);
            }
        }
        self.set_msix_control(config);
    }

    fn config_restored(&self, config: &mut ConfigSpace) {
        self.set_msix_control(config);
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match bar {
            MSIX_BAR => self.msix_read(offset, data),
            VIRTIO_BAR => self.virtio_read(offset, data),
            _ => {}
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        match bar {
            // Pending bits cannot be written.
            MSIX_BAR if offset < self.pba => self.signal.msix().write_table(offset, data),
            VIRTIO_BAR => self.virtio_write(offset, data),
            _ => {}
        }
    }

    fn bar_mapped(&self, bar: u8, base: Option<u64>) {
        if bar == VIRTIO_BAR {
            self.doorbells.set_base(base.and_then(|base| base.checked_add(NOTIFY)));
        }
    }

    fn reset(&self) {
        self.doorbells.set_running(false);
        let mut registers = lock(&self.registers);
        registers.reset();
        self.signal.reset();
    }
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci")
            .field("device", &self.device)
            .field("signal", &self.signal)
            .field("doorbells", &self.doorbells)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
