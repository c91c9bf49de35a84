//! Doorbells that the hypervisor rings by itself: what the driver of each queue writes to, bound to the device's eventfd, while the
//! device runs and its registers are mapped. Doorbells without one come in as writes to the transport.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use hvrun_arch::{Datamatch, EventFds};

use super::device::VirtioDevice;
use crate::util::lock;

/// The doorbells of one device.
pub(super) struct Doorbells {
    device: Arc<dyn VirtioDevice>,
    fds: Option<Arc<dyn EventFds>>,
    write: fn(u64, u16) -> (u64, Datamatch),
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// GPA of the transport's doorbells.
    base: Option<u64>,
    running: bool,
    /// What is written where, and the descriptor, of those that the hypervisor rings. A descriptor of our own, since the device may
    /// close its one at any time.
    bound: Vec<(u64, Datamatch, OwnedFd)>,
}

impl Doorbells {
    /// The doorbells of `device`, which go by `fds` if there is such a thing. `write` says where and what the driver writes to ring
    /// for a queue, where the doorbells begin at the address it is given.
    pub(super) fn new(
        device: Arc<dyn VirtioDevice>,
        fds: Option<Arc<dyn EventFds>>,
        write: fn(u64, u16) -> (u64, Datamatch),
    ) -> Self {
        Doorbells { device, fds, write, inner: Mutex::new(Inner::default()) }
    }

    /// The doorbells begin at `base` now, or are nowhere.
    pub(super) fn set_base(&self, base: Option<u64>) {
        self.change(|inner| inner.base = base);
    }

    /// The device has been activated, or is about to be reset.
    pub(super) fn set_running(&self, running: bool) {
        self.change(|inner| inner.running = running);
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let Some(fds) = self.fds.as_deref() else { return };
        let mut inner = lock(&self.inner);
        let before = (inner.base, inner.running);
        change(&mut inner);
        if before == (inner.base, inner.running) {
            return;
        }
        inner.unbind(fds, self.device.name());
        if let (Some(base), true) = (inner.base, inner.running) {
            inner.bind(|queue| (self.write)(base, queue), fds, self.device.as_ref());
        }
    }
}

impl Inner {
    fn bind(
        &mut self,
        write: impl Fn(u16) -> (u64, Datamatch),
        fds: &dyn EventFds,
        device: &dyn VirtioDevice,
    ) {
        for (queue, _) in (0_u16..).zip(device.queue_sizes()) {
            let Some(fd) = device.doorbell(queue).and_then(|fd| fd.try_clone_to_owned().ok()) else {
                continue;
            };
            let (addr, data) = write(queue);
            match fds.register_ioevent(addr, data, fd.as_fd()) {
                Ok(()) => self.bound.push((addr, data, fd)),
                Err(error) => {
                    log::debug!("{}: queue {queue}'s doorbell goes by the vCPUs: {error}", device.name());
                }
            }
        }
    }

    fn unbind(&mut self, fds: &dyn EventFds, name: &str) {
        for (addr, data, fd) in self.bound.drain(..) {
            if let Err(error) = fds.unregister_ioevent(addr, data, fd.as_fd()) {
                log::debug!("{name}: the doorbell at {addr:#x} cannot be taken back: {error}");
            }
        }
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        self.set_running(false);
    }
}

impl fmt::Debug for Doorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = lock(&self.inner).bound.len();
        f.debug_struct("Doorbells").field("bound", &bound).finish_non_exhaustive()
    }
}
