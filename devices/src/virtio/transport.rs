//! What every transport has in common: the device status, feature negotiation, and the registers of the queues (virtio 1.2, 2.1,
//! 2.2, 3.1). Not where those registers lie, and not how an interrupt is delivered.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hvrun_arch::GuestMemory;
use serde::{Deserialize, Serialize};

use super::device::{Activation, F_RING_EVENT_IDX, F_VERSION_1, Interrupt, VirtioDevice};
use super::queue::{Virtqueue, VirtqueueState};
use crate::util::LogLimit;

bitflags::bitflags! {
    /// The device status (virtio 1.2, 2.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The driver has found the device.
        const ACKNOWLEDGE = 1;
        /// The driver knows how to drive it.
        const DRIVER = 2;
        /// The driver is set up.
        const DRIVER_OK = 4;
        /// Both sides agree on the features.
        const FEATURES_OK = 8;
        /// The device cannot go on.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

/// One queue's registers. What the driver writes is checked when it sets DRIVER_OK, all at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// The most entries it can have; 0 means that there is no such queue.
    pub max_size: u16,
    /// Entries.
    pub size: u16,
    /// Whether the driver uses it.
    pub ready: bool,
    /// GPA of the descriptor table.
    pub desc: u64,
    /// GPA of the available ring ("driver area").
    pub avail: u64,
    /// GPA of the used ring ("device area").
    pub used: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        QueueRegisters { max_size, size: max_size, ready: false, desc: 0, avail: 0, used: 0 }
    }
}

/// Set by a device that needs a reset, read with the status. Shared with the transport's [`Interrupt`].
#[derive(Debug, Default)]
pub struct NeedsReset(AtomicBool);

impl NeedsReset {
    /// Asks for the reset.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it is asked for.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The registers that every transport shows in its own way, and the device behind them.
///
/// A transport keeps it behind a lock, which doorbells do not take: they go to [`VirtioDevice::notify`] directly.
#[derive(Debug)]
pub struct Registers {
    device: Arc<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    needs_reset: Arc<NeedsReset>,
    status: Status,
    /// Which half of the features the driver reads (0 or 1; others read as 0).
    pub device_feature_select: u32,
    /// Which half of the features the driver writes.
    pub driver_feature_select: u32,
    driver_features: u64,
    /// Which queue the registers are about.
    pub queue_select: u16,
    queues: Vec<QueueRegisters>,
    refusals: LogLimit,
}

/// What a snapshot keeps of a transport's common registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersState {
    /// The status register.
    pub status: u8,
    /// Which half of the features the driver reads.
    pub device_feature_select: u32,
    /// Which half of the features the driver writes.
    pub driver_feature_select: u32,
    /// What the driver has accepted.
    pub driver_features: u64,
    /// Which queue the registers are about.
    pub queue_select: u16,
    /// The queues' registers.
    pub queues: Vec<QueueRegisters>,
}

impl Registers {
    /// The registers of `device` after a reset. `needs_reset` is what `interrupt` sets.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: Arc<dyn Interrupt>,
        needs_reset: Arc<NeedsReset>,
    ) -> Self {
        let queues = device.queue_sizes().iter().map(|max_size| QueueRegisters::new(*max_size)).collect();
        Registers {
            device,
            memory,
            interrupt,
            needs_reset,
            status: Status::empty(),
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            refusals: LogLimit::new(),
        }
    }

    /// A line about what the driver did wrong.
    fn warn(&self, what: fmt::Arguments<'_>) {
        if let Some(suppressed) = self.refusals.allow() {
            log::warn!("{}: {what}{suppressed}", self.device.name());
        }
    }

    /// What the device offers.
    pub fn device_features(&self) -> u64 {
        self.device.features() | F_VERSION_1 | self.device.ring_features()
    }

    /// The half of the features that the driver has selected to read.
    pub fn selected_device_features(&self) -> u32 {
        half(self.device_features(), self.device_feature_select)
    }

    /// The half of its own features that the driver has selected.
    pub fn selected_driver_features(&self) -> u32 {
        half(self.driver_features, self.driver_feature_select)
    }

    /// The driver accepts features, in the half it has selected. Too late after FEATURES_OK.
    pub fn set_driver_features(&mut self, value: u32) {
        if self.status.contains(Status::FEATURES_OK) {
            return;
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// The selected queue's registers; `None` where there is no such queue.
    pub fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue's registers, to be written. `None` also while the device runs: a driver may not change a live queue, and
    /// one that does changes nothing (virtio 1.2, 4.1.4.3.2).
    pub fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        if self.is_running() {
            return None;
        }
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The driver takes the selected queue out of service while the device runs, which it may (virtio 1.2, 4.2.2.2) and only does
    /// before it goes away. Then all of the device stops, until a reset: it touches no guest memory any more.
    pub fn stop_queue(&mut self) {
        if self.is_running() && self.queue().is_some_and(|queue| queue.ready) {
            log::debug!("{}: the driver stops queue {}", self.device.name(), self.queue_select);
            self.device.reset();
            self.queues.iter_mut().for_each(|queue| queue.ready = false);
        }
    }

    /// Whether the device has been activated.
    pub fn is_running(&self) -> bool {
        self.status.contains(Status::DRIVER_OK)
    }

    /// The status register. DEVICE_NEEDS_RESET comes from the device.
    pub fn status(&self) -> u8 {
        let mut status = self.status;
        status.set(Status::DEVICE_NEEDS_RESET, self.needs_reset.get());
        status.bits()
    }

    /// The driver writes the status register. Zero resets the device.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let asked = Status::from_bits_truncate(value) - Status::DEVICE_NEEDS_RESET;
        // Bits can only be added; taking one back means a reset (virtio 1.2, 2.1.1).
        let mut fresh = asked - self.status;
        if fresh.contains(Status::FEATURES_OK) && !self.features_are_acceptable() {
            fresh -= Status::FEATURES_OK;
        }
        if fresh.contains(Status::DRIVER_OK) && !(self.status | fresh).contains(Status::FEATURES_OK) {
            self.warn(format_args!("a driver that has not agreed on features is not served"));
            fresh -= Status::DRIVER_OK;
        }
        self.status |= fresh;
        if fresh.contains(Status::DRIVER_OK) {
            self.activate();
        }
    }

    /// Whether the driver took only what was offered, and VERSION_1 (virtio 1.2, 2.2.2, 6.2).
    fn features_are_acceptable(&self) -> bool {
        let unknown = self.driver_features & !self.device_features();
        if unknown != 0 {
            self.warn(format_args!("the driver wants features that are not offered: {unknown:#x}"));
        }
        unknown == 0 && self.driver_features & F_VERSION_1 != 0
    }

    /// DRIVER_OK: hands the queues to the device, if they are what they must be.
    fn activate(&mut self) {
        let event_idx = self.driver_features & F_RING_EVENT_IDX != 0;
        let name: Arc<str> = self.device.name().into();
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, registers) in (0..).zip(&self.queues) {
            if !registers.ready {
                queues.push(None);
                continue;
            }
            let state = VirtqueueState {
                size: registers.size,
                desc: registers.desc,
                avail: registers.avail,
                used: registers.used,
                next_avail: 0,
                next_used: 0,
            };
            let interrupt = self.interrupt.clone();
            let queue = Virtqueue::new(
                name.clone(),
                index,
                registers.max_size,
                state,
                event_idx,
                &self.memory,
                interrupt,
            );
            match queue {
                Ok(queue) => queues.push(Some(queue)),
                Err(error) => {
                    self.warn(format_args!("the driver set up queue {index} as {state:x?}: {error}"));
                    self.interrupt.needs_reset();
                    return;
                }
            }
        }
        self.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            features: self.driver_features,
            interrupt: self.interrupt.clone(),
        });
    }

    /// Back to the state after power-on, the device included.
    pub fn reset(&mut self) {
        if self.is_running() {
            self.device.reset();
        }
        self.needs_reset.0.store(false, Ordering::SeqCst);
        self.status = Status::empty();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
    }

    /// For a snapshot.
    pub fn state(&self) -> RegistersState {
        RegistersState {
            status: self.status(),
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }
}

/// Half `select` of a 64-bit register that the driver sees through a 32-bit window.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}
