//! Where message-signalled interrupts go: through an eventfd that the hypervisor turns into an SPI, or to the interrupt
//! controller's GICv2m frame. Not the table that they come from; that is `msix`.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use hvrun_arch::aarch64::gicv3::registers::V2M_SETSPI_NS;
use hvrun_arch::aarch64::layout::{V2M_SPI, V2M_SPI_COUNT, Window};
use hvrun_arch::{EventFds, IrqChip, Spi};

use crate::irq::EdgeIrq;

/// Takes the messages of all functions. Calls come from any thread, also under a function's locks.
pub trait MsiSink: Send + Sync {
    /// A write of `data` to the guest physical address `addr`.
    fn send(&self, addr: u64, data: u32);

    /// Has each signal of `event` be such a write, past whoever waits on it, for as long as the value lives. `None` where there is no such
    /// way: then nobody but who waits hears of a signal.
    fn bind(&self, addr: u64, data: u32, event: BorrowedFd<'_>) -> Option<MsiRoute> {
        let _ = (addr, data, event);
        None
    }
}

/// An eventfd whose signals are interrupts; see [`MsiSink::bind`].
pub struct MsiRoute {
    fds: Arc<dyn EventFds>,
    spi: Spi,
    event: OwnedFd,
}

impl Drop for MsiRoute {
    fn drop(&mut self) {
        // The machine may be gone already.
        let _ = self.fds.unregister_irqfd(self.spi, self.event.as_fd());
    }
}

impl fmt::Debug for MsiRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiRoute").field("spi", &self.spi).finish_non_exhaustive()
    }
}

/// The machine's way for messages: the GICv2m frame.
///
/// Where the backend takes eventfds, each SPI that messages come for gets one when the first does, so that a message costs one
/// write and no lock.
pub struct MsiPort {
    chip: Arc<dyn IrqChip>,
    fds: Option<Arc<dyn EventFds>>,
    /// The frame's SETSPI register.
    doorbell: u64,
    /// One an SPI of the frame.
    routes: Box<[OnceLock<EdgeIrq>]>,
}

impl MsiPort {
    /// Messages to the frame at `v2m`.
    pub fn new(chip: Arc<dyn IrqChip>, fds: Option<Arc<dyn EventFds>>, v2m: Window) -> Self {
        let routes = (0..V2M_SPI_COUNT).map(|_| OnceLock::new()).collect();
        MsiPort { chip, fds, doorbell: v2m.base.saturating_add(V2M_SETSPI_NS), routes }
    }

    /// The SPI that this message means, and the place of its eventfd.
    fn spi(&self, addr: u64, data: u32) -> Option<(Spi, &OnceLock<EdgeIrq>)> {
        if addr != self.doorbell {
            return None;
        }
        let index = data.checked_sub(V2M_SPI.intid())?;
        let route = self.routes.get(usize::try_from(index).ok()?)?;
        Some((Spi(V2M_SPI.0.checked_add(index)?), route))
    }

    /// The eventfd of the SPI that this message means, if it has one.
    fn route(&self, addr: u64, data: u32) -> Option<&EdgeIrq> {
        let fds = self.fds.as_ref()?;
        let (spi, route) = self.spi(addr, data)?;
        Some(route.get_or_init(|| EdgeIrq::new(self.chip.clone(), Some(fds.clone()), spi)))
    }
}

impl MsiSink for MsiPort {
    fn send(&self, addr: u64, data: u32) {
        match self.route(addr, data) {
            Some(irq) => irq.raise(),
            None => self.chip.send_msi(addr, data),
        }
    }

    fn bind(&self, addr: u64, data: u32, event: BorrowedFd<'_>) -> Option<MsiRoute> {
        let fds = self.fds.clone()?;
        let (spi, _) = self.spi(addr, data)?;
        let event = event.try_clone_to_owned().ok()?;
        match fds.register_irqfd(spi, event.as_fd()) {
            Ok(()) => Some(MsiRoute { fds, spi, event }),
            Err(error) => {
                log::debug!("SPI {} goes by a thread: {error}", spi.0);
                None
            }
        }
    }
}

impl fmt::Debug for MsiPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self.routes.iter().filter(|route| route.get().is_some()).count();
        f.debug_struct("MsiPort").field("eventfds", &self.fds.is_some()).field("routes", &routes).finish()
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A sink and a backend that only remember.

    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    use hvrun_arch::{Datamatch, HypervisorError};

    use super::*;
    use crate::util::lock;

    /// Remembers every message.
    #[derive(Default)]
    pub(crate) struct Messages(Mutex<Vec<(u64, u32)>>);

    impl Messages {
        /// All messages so far.
        pub(crate) fn all(&self) -> Vec<(u64, u32)> {
            lock(&self.0).clone()
        }
    }

    impl MsiSink for Messages {
        fn send(&self, addr: u64, data: u32) {
            lock(&self.0).push((addr, data));
        }
    }

    /// A backend with eventfds: knows which SPIs have one.
    #[derive(Default)]
    pub(crate) struct Fds(Mutex<Vec<(Spi, i32)>>);

    impl Fds {
        /// The SPIs that have one.
        pub(crate) fn spis(&self) -> Vec<Spi> {
            lock(&self.0).iter().map(|(spi, _)| *spi).collect()
        }
    }

    impl EventFds for Fds {
        fn register_irqfd(&self, spi: Spi, fd: BorrowedFd<'_>) -> Result<(), HypervisorError> {
            lock(&self.0).push((spi, fd.as_raw_fd()));
            Ok(())
        }

        fn unregister_irqfd(&self, spi: Spi, fd: BorrowedFd<'_>) -> Result<(), HypervisorError> {
            lock(&self.0).retain(|known| *known != (spi, fd.as_raw_fd()));
            Ok(())
        }

        fn register_ioevent(&self, _: u64, _: Datamatch, _: BorrowedFd<'_>) -> Result<(), HypervisorError> {
            Ok(())
        }

        fn unregister_ioevent(&self, _: u64, _: Datamatch, _: BorrowedFd<'_>) -> Result<(), HypervisorError> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::fake::Fds;
    use super::*;
    use crate::util::lock;

    const V2M: Window = Window::new(0x0802_0000, 0x1000);
    const DOORBELL: u64 = 0x0802_0040;

    #[derive(Default)]
    struct Chip(Mutex<Vec<(u64, u32)>>);

    impl IrqChip for Chip {
        fn set_spi(&self, _: Spi, _: bool) {}

        fn send_msi(&self, addr: u64, data: u32) {
            lock(&self.0).push((addr, data));
        }
    }

    fn port_with_fds() -> (Arc<Chip>, Arc<Fds>, MsiPort) {
        let (chip, fds) = (Arc::new(Chip::default()), Arc::new(Fds::default()));
        let port = MsiPort::new(chip.clone(), Some(fds.clone()), V2M);
        (chip, fds, port)
    }

    #[test]
    fn without_eventfds_messages_go_to_the_interrupt_controller() {
        let chip = Arc::new(Chip::default());
        MsiPort::new(chip.clone(), None, V2M).send(DOORBELL, 80);
        assert_eq!(*lock(&chip.0), [(DOORBELL, 80)]);
    }

    #[test]
    fn each_spi_gets_one_eventfd_when_its_first_message_comes() {
        let (chip, fds, port) = port_with_fds();
        port.send(DOORBELL, 80);
        port.send(DOORBELL, 80);
        port.send(DOORBELL, 143);
        let spis = fds.spis();
        assert_eq!(spis, [Spi(48), Spi(111)]);
        assert!(lock(&chip.0).is_empty());
    }

    #[test]
    fn messages_for_others_go_to_the_interrupt_controller() {
        let (chip, fds, port) = port_with_fds();
        let others =
            [(DOORBELL, 79), (DOORBELL, 144), (DOORBELL, u32::MAX), (DOORBELL + 4, 80), (0x4000_0000, 80)];
        others.iter().for_each(|(addr, data)| port.send(*addr, *data));
        assert_eq!(*lock(&chip.0), others);
        assert!(fds.spis().is_empty());
    }

    #[test]
    fn a_bound_event_is_its_spis_until_the_route_is_dropped() {
        let (_, fds, port) = port_with_fds();
        let event = crate::sys::Event::new().unwrap();
        let route = port.bind(DOORBELL, 81, event.as_fd());
        let spis = fds.spis();
        assert_eq!(spis, [Spi(49)]);
        drop(route);
        assert!(fds.spis().is_empty());
    }

    #[test]
    fn an_event_cannot_be_bound_to_what_is_no_message() {
        let (_, fds, port) = port_with_fds();
        let event = crate::sys::Event::new().unwrap();
        for (addr, data) in [(DOORBELL, 79), (DOORBELL, 144), (DOORBELL + 4, 80)] {
            assert!(port.bind(addr, data, event.as_fd()).is_none(), "{addr:#x} {data}");
        }
        assert!(fds.spis().is_empty());
    }

    #[test]
    fn a_dropped_port_takes_its_eventfds_back() {
        let (_, fds, port) = port_with_fds();
        port.send(DOORBELL, 80);
        drop(port);
        assert!(fds.spis().is_empty());
    }
}
