//! How the device reaches its driver: by MSI-X if the driver has enabled it, else by ISR status and interrupt pin (virtio 1.2,
//! 4.1.4.5, 4.1.5.1). No register's place is known here.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use crate::pci::{IntxPin, Msix};
use crate::util::lock;
use crate::virtio::device::Interrupt;
use crate::virtio::transport::NeedsReset;

/// VIRTIO_MSI_NO_VECTOR (4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// ISR status: a queue has used buffers (4.1.4.5).
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration has changed.
const ISR_CONFIG: u8 = 2;

/// The device's interrupts. Not behind the registers' lock, since devices raise them while a reset waits for them.
pub(super) struct Signal {
    msix: Msix,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    generation: AtomicU8,
    needs_reset: Arc<NeedsReset>,
    line: Mutex<Line>,
}

/// ISR status and the pin, which follows it while MSI-X is off.
#[derive(Default)]
struct Line {
    isr: u8,
    pin: Option<Arc<IntxPin>>,
}

impl Line {
    fn drive(&self, level: bool) {
        if let Some(pin) = &self.pin {
            pin.set(level);
        }
    }
}

impl Signal {
    pub(super) fn new(msix: Msix, queues: usize, needs_reset: Arc<NeedsReset>) -> Self {
        Signal {
            msix,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            generation: AtomicU8::new(0),
            needs_reset,
            line: Mutex::new(Line::default()),
        }
    }

    pub(super) fn plugged(&self, pin: Arc<IntxPin>) {
        lock(&self.line).pin = Some(pin);
    }

    pub(super) fn msix(&self) -> &Msix {
        &self.msix
    }

    /// The driver has written MSI-X' Message Control. With MSI-X on the pin is not used (PCI Local Bus 3.0, 6.8.3.3).
    pub(super) fn set_msix_control(&self, control: u16) {
        let line = lock(&self.line);
        self.msix.set_control(control);
        line.drive(line.isr != 0 && !self.msix.enabled());
    }

    /// The driver reads ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        let mut line = lock(&self.line);
        line.drive(false);
        std::mem::take(&mut line.isr)
    }

    pub(super) fn isr(&self) -> u8 {
        lock(&self.line).isr
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    /// A vector that there is not reads back as [`NO_VECTOR`], so that the driver sees that it will not do (4.1.5.1.2.1).
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.usable(vector), Ordering::SeqCst);
    }

    /// The vector of `queue`; [`NO_VECTOR`] for a queue that there is not.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(register) = self.queue_vectors.get(usize::from(queue)) {
            register.store(self.usable(vector), Ordering::SeqCst);
        }
    }

    pub(super) fn queue_vectors(&self) -> Vec<u16> {
        self.queue_vectors.iter().map(|vector| vector.load(Ordering::SeqCst)).collect()
    }

    fn usable(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    /// The driver has reset the device: vectors and ISR status, but not what belongs to PCI.
    pub(super) fn reset_device(&self) {
        self.msix.unbind_all();
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::SeqCst));
        let mut line = lock(&self.line);
        line.isr = 0;
        line.drive(false);
    }

    /// The machine is reset.
    pub(super) fn reset(&self) {
        self.reset_device();
        self.generation.store(0, Ordering::SeqCst);
        self.msix.reset();
    }

    fn raise(&self, cause: u8, vector: u16) {
        if self.msix.trigger(vector) {
            return;
        }
        let mut line = lock(&self.line);
        line.isr |= cause;
        line.drive(!self.msix.enabled());
    }
}

impl Interrupt for Signal {
    fn used(&self, index: u16) {
        self.raise(ISR_QUEUE, self.queue_vector(index));
    }

    fn bind(&self, index: u16, event: BorrowedFd<'_>) {
        self.msix.bind(self.queue_vector(index), event);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(ISR_CONFIG, self.config_vector());
    }

    fn needs_reset(&self) {
        self.needs_reset.set();
        self.raise(ISR_CONFIG, self.config_vector());
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal")
            .field("msix", &self.msix)
            .field("config_vector", &self.config_vector())
            .field("queue_vectors", &self.queue_vectors())
            .finish_non_exhaustive()
    }
}
