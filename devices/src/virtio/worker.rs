//! A thread for what a device cannot do on a vCPU's thread: it sleeps on a doorbell, serves, and sleeps again.
//!
//! For devices with one thread; a pool of them is the block device's own affair.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use crate::sys::Event;

/// The thread. Dropping it ends it and waits for that; it must not be dropped by itself.
pub struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    event: Arc<Event>,
    stop: AtomicBool,
}

impl Worker {
    /// Starts a thread that calls `serve` whenever `event` has been signalled, once for any number of signals, and at the start.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn spawn(
        name: &str,
        event: Arc<Event>,
        mut serve: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { event, stop: AtomicBool::new(false) });
        let body = {
            let shared = shared.clone();
            move || {
                while !shared.stop.load(Ordering::SeqCst) {
                    serve();
                    if shared.event.wait().is_err() {
                        break;
                    }
                }
            }
        };
        let thread = Builder::new().name(name.chars().take(15).collect()).spawn(body)?;
        Ok(Worker { shared, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.event.signal();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed; the device stays silent from then on.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("event", &self.shared.event).finish_non_exhaustive()
    }
}
