//! Something to be done later, on a thread of its own that exists only once it is needed. Not a precise clock.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::util::lock;

/// Calls a function when its time has come. Dropping it ends the thread and waits for that.
pub(super) struct Alarm {
    name: &'static str,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    bell: Condvar,
    /// Says after what time it wants to be called again, if at all.
    call: Box<dyn Fn() -> Option<Duration> + Send + Sync>,
}

#[derive(Default)]
struct State {
    at: Option<Instant>,
    stop: bool,
}

impl Alarm {
    /// A silent one.
    pub(super) fn new(
        name: &'static str,
        call: impl Fn() -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared { state: Mutex::default(), bell: Condvar::new(), call: Box::new(call) };
        Alarm { name, shared: Arc::new(shared), thread: Mutex::new(None) }
    }

    /// Rings after `delay`, or earlier if that was asked for already.
    pub(super) fn set(&self, delay: Duration) {
        self.shared.set(delay);
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = self.shared.clone();
            match Builder::new().name(self.name.to_owned()).spawn(move || shared.run()) {
                Ok(handle) => *thread = Some(handle),
                // The next doorbell tries again.
                Err(error) => log::warn!("{}: the host gives no thread: {error}", self.name),
            }
        }
    }
}

impl Shared {
    fn set(&self, delay: Duration) {
        // A time that the host's clock cannot express never comes.
        let at = Instant::now().checked_add(delay);
        let mut state = lock(&self.state);
        state.at = state.at.into_iter().chain(at).min();
        self.bell.notify_one();
    }

    fn run(&self) {
        let mut state = lock(&self.state);
        while !state.stop {
            let now = Instant::now();
            state = match state.at {
                None => self.bell.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) if at > now => {
                    let (state, _) =
                        self.bell.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner);
                    state
                }
                Some(_) => {
                    state.at = None;
                    drop(state);
                    if let Some(delay) = (self.call)() {
                        self.set(delay);
                    }
                    lock(&self.state)
                }
            };
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.bell.notify_one();
        if let Some(thread) = lock(&self.thread).take() {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm").field("at", &lock(&self.shared.state).at).finish_non_exhaustive()
    }
}
