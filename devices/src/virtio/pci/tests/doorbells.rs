//! Doorbells that the hypervisor rings by itself.

use std::os::fd::AsRawFd;

use hvrun_arch::{Datamatch, HypervisorError, Spi};

use super::*;

/// A backend that knows which addresses it watches.
#[derive(Default)]
struct Fds {
    watched: Mutex<Vec<(u64, i32)>>,
    full: bool,
}

impl Fds {
    fn addresses(&self) -> Vec<u64> {
        lock(&self.watched).iter().map(|(addr, _)| *addr).collect()
    }
}

impl EventFds for Fds {
    fn register_irqfd(&self, _: Spi, _: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        Ok(())
    }

    fn unregister_irqfd(&self, _: Spi, _: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        Ok(())
    }

    fn register_ioevent(&self, addr: u64, _: Datamatch, fd: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        if self.full {
            return Err(HypervisorError::Call { call: "KVM_IOEVENTFD", reason: "no space left".to_owned() });
        }
        lock(&self.watched).push((addr, fd.as_raw_fd()));
        Ok(())
    }

    fn unregister_ioevent(&self, addr: u64, _: Datamatch, fd: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        lock(&self.watched).retain(|known| *known != (addr, fd.as_raw_fd()));
        Ok(())
    }
}

fn bench_with(fds: Fds) -> (Arc<Fds>, Bench) {
    let fds = Arc::new(fds);
    let doorbells = vec![Event::new().unwrap(), Event::new().unwrap()];
    let device = Filler { doorbells, ..Filler::new(&[256, 64]) };
    (fds.clone(), Bench::with(device, Some(fds)))
}

const WATCHED: [u64; 2] = [VIRTIO_AT + NOTIFY, VIRTIO_AT + NOTIFY + 4];

#[test]
fn doorbells_are_bound_while_the_device_runs() {
    let (fds, bench) = bench_with(Fds::default());
    assert!(fds.addresses().is_empty());
    bench.start();
    assert_eq!(fds.addresses(), WATCHED);
    bench.set_status(0);
    assert!(fds.addresses().is_empty());
}

#[test]
fn doorbells_follow_their_bar() {
    let (fds, bench) = bench_with(Fds::default());
    bench.start();
    bench.set_config(0x20, 0x8000);
    assert_eq!(fds.addresses(), WATCHED.map(|addr| addr + 0x8000));
    bench.set_config(reg::COMMAND, 0);
    assert!(fds.addresses().is_empty());
}

#[test]
fn a_machine_reset_and_the_end_of_the_device_unbind_doorbells() {
    let (fds, bench) = bench_with(Fds::default());
    bench.start();
    bench.bus.reset();
    assert!(fds.addresses().is_empty());
    let (fds, bench) = bench_with(Fds::default());
    bench.start();
    drop(bench);
    assert!(fds.addresses().is_empty());
}

#[test]
fn a_doorbell_that_cannot_be_bound_comes_in_as_a_write() {
    let (_, bench) = bench_with(Fds { full: true, ..Fds::default() });
    bench.start();
    bench.write2(NOTIFY + 4, 1);
    assert_eq!(*lock(&bench.device.rung), [1]);
}

#[test]
fn a_device_without_descriptors_has_no_doorbell_bound() {
    let fds = Arc::new(Fds::default());
    let bench = Bench::with(Filler::new(&[256]), Some(fds.clone()));
    bench.start();
    assert!(fds.addresses().is_empty());
}
