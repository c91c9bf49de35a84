//! Interrupts and doorbells as eventfds: the kernel carries them past the vCPU threads.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::EventFd;

use super::vm::Machine;
use crate::hypervisor::{Datamatch, EventFds, HypervisorError, Spi};
use crate::kvm::error::call_failed;
use crate::kvm::irq;

/// `fd` as KVM's wrapper wants it. It never closes the descriptor.
fn borrowed(fd: BorrowedFd<'_>) -> ManuallyDrop<EventFd> {
    // SAFETY: the descriptor is open for as long as `fd` is borrowed, which is as long as the callers use the value; not
    // dropping it leaves the descriptor to its owner.
    ManuallyDrop::new(unsafe { EventFd::from_raw_fd(fd.as_raw_fd()) })
}

impl EventFds for Machine {
    fn register_irqfd(&self, spi: Spi, fd: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        self.fd()
            .register_irqfd(&borrowed(fd), irq::gsi(spi))
            .map_err(|e| call_failed("KVM_IRQFD", e.errno()))
    }

    fn unregister_irqfd(&self, spi: Spi, fd: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        self.fd()
            .unregister_irqfd(&borrowed(fd), irq::gsi(spi))
            .map_err(|e| call_failed("KVM_IRQFD", e.errno()))
    }

    fn register_ioevent(
        &self,
        addr: u64,
        data: Datamatch,
        fd: BorrowedFd<'_>,
    ) -> Result<(), HypervisorError> {
        let (fd, addr, vm) = (borrowed(fd), IoEventAddress::Mmio(addr), self.fd());
        match data {
            Datamatch::Any => vm.register_ioevent(&fd, &addr, NoDatamatch),
            Datamatch::U16(data) => vm.register_ioevent(&fd, &addr, data),
            Datamatch::U32(data) => vm.register_ioevent(&fd, &addr, data),
            Datamatch::U64(data) => vm.register_ioevent(&fd, &addr, data),
        }
        .map_err(|e| call_failed("KVM_IOEVENTFD", e.errno()))
    }

    fn unregister_ioevent(
        &self,
        addr: u64,
        data: Datamatch,
        fd: BorrowedFd<'_>,
    ) -> Result<(), HypervisorError> {
        let (fd, addr, vm) = (borrowed(fd), IoEventAddress::Mmio(addr), self.fd());
        match data {
            Datamatch::Any => vm.unregister_ioevent(&fd, &addr, NoDatamatch),
            Datamatch::U16(data) => vm.unregister_ioevent(&fd, &addr, data),
            Datamatch::U32(data) => vm.unregister_ioevent(&fd, &addr, data),
            Datamatch::U64(data) => vm.unregister_ioevent(&fd, &addr, data),
        }
        .map_err(|e| call_failed("KVM_IOEVENTFD", e.errno()))
    }
}
