//! Which requests are in flight, so that Tflush is answered after the request it names, or instead of it.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::util::lock;

/// A request that was announced and is to be finished exactly once.
#[derive(Debug)]
#[must_use = "a request that is never finished makes a Tflush for it wait forever"]
pub struct Ticket {
    serial: u64,
}

#[derive(Debug)]
struct InFlight {
    serial: u64,
    tag: u16,
    started: bool,
    cancelled: bool,
}

#[derive(Debug, Default)]
struct Table {
    requests: Vec<InFlight>,
    next_serial: u64,
    waiting: u32,
}

/// The requests of a session that are announced and not yet answered.
#[derive(Debug, Default)]
pub(super) struct Tags {
    table: Mutex<Table>,
    answered: Condvar,
}

impl Tags {
    /// A request has arrived.
    pub fn admit(&self, tag: u16) -> Ticket {
        let mut table = lock(&self.table);
        let serial = table.next_serial;
        table.next_serial += 1;
        table.requests.push(InFlight { serial, tag, started: false, cancelled: false });
        Ticket { serial }
    }

    /// The request is about to be carried out. `false` if it was cancelled meanwhile and must not be.
    pub fn start(&self, ticket: &Ticket) -> bool {
        let mut table = lock(&self.table);
        let Some(request) = table.requests.iter_mut().find(|r| r.serial == ticket.serial) else {
            return true;
        };
        request.started = true;
        !request.cancelled
    }

    /// The request was answered.
    pub fn finish(&self, ticket: &Ticket) {
        let mut table = lock(&self.table);
        if let Some(at) = table.requests.iter().position(|r| r.serial == ticket.serial) {
            table.requests.swap_remove(at);
        }
        if table.waiting > 0 {
            self.answered.notify_all();
        }
    }

    /// Returns once no request of `tag` that came before `ticket` will be answered any more.
    pub fn flush(&self, tag: u16, ticket: &Ticket) {
        let mut table = lock(&self.table);
        for request in &mut table.requests {
            if request.tag == tag && request.serial < ticket.serial && !request.started {
                request.cancelled = true;
            }
        }
        table.waiting += 1;
        while table.requests.iter().any(|r| r.tag == tag && r.serial < ticket.serial && !r.cancelled) {
            table = self.answered.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        table.waiting -= 1;
    }

    /// Cancels whatever was announced before `ticket` and has not started.
    pub fn cancel_all(&self, ticket: &Ticket) {
        for request in &mut lock(&self.table).requests {
            if request.serial < ticket.serial && !request.started {
                request.cancelled = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_that_has_not_started_is_cancelled_by_a_flush() {
        let tags = Tags::default();
        let request = tags.admit(1);
        let flush = tags.admit(2);
        tags.flush(1, &flush);
        assert!(!tags.start(&request));
    }

    #[test]
    fn a_flush_of_an_unknown_tag_returns_at_once() {
        let tags = Tags::default();
        let flush = tags.admit(2);
        tags.flush(77, &flush);
        tags.finish(&flush);
    }

    #[test]
    fn a_flush_of_itself_returns_at_once() {
        let tags = Tags::default();
        let flush = tags.admit(2);
        tags.flush(2, &flush);
        tags.finish(&flush);
    }

    #[test]
    fn a_flush_waits_for_a_request_that_has_started() {
        let tags = Tags::default();
        let request = tags.admit(1);
        tags.start(&request);
        let flush = tags.admit(2);
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let tags = &tags;
            scope.spawn(move || {
                tags.flush(1, &flush);
                sender.send("flushed").ok();
            });
            let early = receiver.recv_timeout(Duration::from_millis(50));
            tags.finish(&request);
            assert_eq!((early.is_err(), receiver.recv().ok()), (true, Some("flushed")));
        });
    }
}
