//! What becomes of requests that the host cannot do, by each policy.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;
use crate::backend::disk::{ErrorAction, ErrorPolicy};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A guest on a full disk with this policy, and what is heard of it.
fn full(policy: ErrorPolicy) -> (Arc<Fake>, Guest, Receiver<IoError>) {
    let backend = Fake::new(8);
    backend.fail.store(true, Ordering::SeqCst);
    *backend.policy.lock().unwrap() = policy;
    let guest = Guest::on(backend.clone());
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    guest.device.on_error(move |error| tell.lock().unwrap().send(error).unwrap());
    (backend, guest, told)
}

fn error(operation: Operation, action: ErrorAction) -> IoError {
    IoError { operation, action, no_space: true, reason: "no storage space".to_owned() }
}

#[test]
fn a_reported_error_is_the_driver_s_and_is_told() {
    let (_, mut guest, told) = full(ErrorPolicy::Report);
    assert_eq!(guest.write(0, &[1; 512]), IOERR);
    assert_eq!(told.recv_timeout(LIMIT), Ok(error(Operation::Write, ErrorAction::Report)));
    assert_eq!(guest.device.stats().writes.failed, 1);
}

#[test]
fn an_ignored_error_is_a_success_and_is_told() {
    let (backend, mut guest, told) = full(ErrorPolicy::Ignore);
    assert_eq!(guest.flush(), OK);
    assert_eq!(told.recv_timeout(LIMIT), Ok(error(Operation::Flush, ErrorAction::Ignore)));
    assert!(backend.ops().is_empty());
}

#[test]
fn a_request_that_stopped_the_machine_is_answered_after_another_try() {
    for policy in [ErrorPolicy::Stop, ErrorPolicy::Enospc] {
        let (backend, mut guest, told) = full(policy);
        let slot = guest.offer_out(VIRTIO_BLK_T_OUT, 2, &[9; 512]);
        guest.driver.kick(0);
        assert_eq!(told.recv_timeout(LIMIT), Ok(error(Operation::Write, ErrorAction::Stop)));
        assert_eq!((guest.status(slot), guest.device.io_status()), (UNTOUCHED, IoStatus::NoSpace));
        // In vain, as there is still no space.
        guest.device.retry();
        assert_eq!(told.recv_timeout(LIMIT), Ok(error(Operation::Write, ErrorAction::Stop)));
        backend.fail.store(false, Ordering::SeqCst);
        guest.device.retry();
        guest.ring.wait_used(1);
        assert_eq!((guest.status(slot), guest.device.io_status()), (OK, IoStatus::Ok));
        assert_eq!(backend.sector(2), [9; 512]);
    }
}

#[test]
fn a_request_that_stopped_the_machine_holds_up_neither_reset_nor_drop() {
    for reset in [true, false] {
        let (backend, mut guest, told) = full(ErrorPolicy::Stop);
        guest.offer_out(VIRTIO_BLK_T_OUT, 2, &[9; 512]);
        guest.driver.kick(0);
        told.recv_timeout(LIMIT).unwrap();
        if reset {
            guest.device.reset();
            assert_eq!(guest.device.io_status(), IoStatus::Ok);
        }
        drop(guest);
        assert!(backend.ops().is_empty());
    }
}

#[test]
fn without_anybody_to_stop_the_machine_the_driver_sees_the_error() {
    let backend = Fake::new(8);
    backend.fail.store(true, Ordering::SeqCst);
    *backend.policy.lock().unwrap() = ErrorPolicy::Stop;
    assert_eq!(Guest::on(backend).write(0, &[1; 512]), IOERR);
}

#[test]
fn what_was_done_is_counted() {
    let mut guest = Guest::on(Fake::new(8));
    guest.write(1, &[1; 1024]);
    guest.write(0, &[1; 512]);
    guest.read(0, 512);
    guest.flush();
    let stats = guest.device.stats();
    assert_eq!((stats.writes.operations, stats.writes.bytes, stats.highest_write), (2, 1536, 1536));
    assert_eq!((stats.reads.operations, stats.reads.bytes, stats.flushes.operations), (1, 512, 1));
    assert_eq!((stats.reads.failed, stats.discards.operations), (0, 0));
}
