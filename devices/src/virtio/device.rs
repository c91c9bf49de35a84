//! What every virtio device is to its transport, and what the transport is to it. No registers and no rings.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hvrun_arch::GuestMemory;

use super::queue::Virtqueue;

/// VIRTIO_F_RING_INDIRECT_DESC (virtio 1.2, 6): descriptors may refer to tables of descriptors.
pub const F_RING_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_RING_EVENT_IDX (virtio 1.2, 6): both sides say from which entry on they want to be notified.
pub const F_RING_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1 (virtio 1.2, 6). Every device offers it, and no driver without it is served.
pub const F_VERSION_1: u64 = 1 << 32;

/// What kind of device it is (virtio 1.2, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceType {
    /// Network card.
    Net,
    /// Block device.
    Block,
    /// Console, and serial ports with names.
    Console,
    /// Entropy source.
    Rng,
    /// Memory balloon.
    Balloon,
    /// 9P transport.
    Fs9p,
    /// Sockets between guest and host.
    Vsock,
    /// File system.
    Fs,
}

impl DeviceType {
    /// The device id (virtio 1.2, 5).
    pub const fn id(self) -> u16 {
        match self {
            DeviceType::Net => 1,
            DeviceType::Block => 2,
            DeviceType::Console => 3,
            DeviceType::Rng => 4,
            DeviceType::Balloon => 5,
            DeviceType::Fs9p => 9,
            DeviceType::Vsock => 19,
            DeviceType::Fs => 26,
        }
    }
}

/// A virtio device, whatever carries it.
///
/// Calls come from any vCPU's thread. A transport never calls [`activate`](VirtioDevice::activate) and
/// [`reset`](VirtioDevice::reset) at the same time; everything else may come at any time, also before the one and after the other.
pub trait VirtioDevice: Send + Sync + fmt::Debug {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// A short name for log lines, such as `disk root.qcow2`.
    fn name(&self) -> &str;

    /// The device's own features: the transport adds [`F_VERSION_1`] and [`VirtioDevice::ring_features`].
    fn features(&self) -> u64;

    /// Which of [`F_RING_INDIRECT_DESC`] and [`F_RING_EVENT_IDX`] there are: both, where [`Virtqueue`] serves the rings.
    fn ring_features(&self) -> u64 {
        F_RING_INDIRECT_DESC | F_RING_EVENT_IDX
    }

    /// The most entries that each of its queues can have, powers of 2. Its length is the number of queues, and never changes.
    fn queue_sizes(&self) -> &[u16];

    /// The driver reads `data.len()` bytes of the device's configuration space at `offset`. What lies outside reads as zeros;
    /// `data` comes in as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// The driver writes to the device's configuration space. What may not be written is ignored.
    fn write_config(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready: serve `activation.queues`. Returns at once. What already lies in the rings is announced by no doorbell
    /// of its own, so the device looks.
    fn activate(&self, activation: Activation);

    /// The driver has rung the doorbell of `queue`, on the thread of the vCPU that did. Must not block; a device that has work which
    /// may block hands it to its worker. Before `activate`, after `reset` and for a queue that does not exist it does nothing.
    fn notify(&self, queue: u16);

    /// A descriptor that means [`notify`](VirtioDevice::notify) for `queue` when it is signalled (an eventfd; see
    /// [`crate::sys::Event`]), if the device waits on one: a hypervisor can then carry the doorbell without the vCPU's thread.
    fn doorbell(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        let _ = queue;
        None
    }

    /// Back to the state before `activate`. When it returns, the device touches no guest memory and raises no interrupt, and what it
    /// holds of queues and interrupt is dropped. Requests in flight are finished or given up, but none is acknowledged afterwards.
    /// Connections on the host's side stay.
    fn reset(&self);
}

/// What a device works with from [`VirtioDevice::activate`] until [`VirtioDevice::reset`].
#[derive(Debug)]
pub struct Activation {
    /// The guest's RAM.
    pub memory: GuestMemory,
    /// As many as [`VirtioDevice::queue_sizes`] has; those that the driver did not set up are `None`.
    pub queues: Vec<Option<Virtqueue>>,
    /// The features that both sides agreed on.
    pub features: u64,
    /// For configuration changes; each queue has its own handle.
    pub interrupt: Arc<dyn Interrupt>,
}

/// How a device reaches its driver. Calls come from any thread, also under a device's locks: a transport never calls the device
/// from within one.
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// There are new used buffers in queue `index`.
    fn used(&self, index: u16);

    /// Has each signal of `event` be [`Interrupt::used`] of queue `index` where the hypervisor can do that by itself, until the device is
    /// reset. The device waits on the event all the same, and calls `used` when it finds a signal there.
    fn bind(&self, index: u16, event: BorrowedFd<'_>) {
        let _ = (index, event);
    }

    /// The configuration space has changed by itself.
    fn config_changed(&self);

    /// The device cannot go on until the driver resets it (virtio 1.2, 2.1.1, DEVICE_NEEDS_RESET).
    fn needs_reset(&self);
}
