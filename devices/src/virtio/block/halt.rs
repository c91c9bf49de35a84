//! Requests that an error has stopped: they wait until somebody resumes the machine, and are tried again, or until the driver resets
//! the device, and are forgotten. It knows neither the machine nor what went wrong.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::util::lock;

/// How a disk's requests have fared since the machine was last resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoStatus {
    /// None has stopped the machine.
    #[default]
    Ok,
    /// One has, because of an error.
    Failed,
    /// One has, because the host has no space left.
    NoSpace,
}

#[derive(Debug, Default)]
struct State {
    /// How often everything was tried again.
    retries: u64,
    /// Nobody waits any more.
    closed: bool,
    status: IoStatus,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Halt {
    state: Mutex<State>,
    changed: Condvar,
}

impl Halt {
    /// What [`Halt::wait`] is to be told: to be asked for before the attempt, so that no resumption is missed.
    pub(super) fn retries(&self) -> u64 {
        lock(&self.state).retries
    }

    pub(super) fn set_status(&self, status: IoStatus) {
        lock(&self.state).status = status;
    }

    pub(super) fn status(&self) -> IoStatus {
        lock(&self.state).status
    }

    /// Waits for another attempt to make sense since `seen`. False: give up, nobody wants the answer.
    pub(super) fn wait(&self, seen: u64) -> bool {
        let mut state = lock(&self.state);
        while state.retries == seen && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.closed
    }

    /// Has everything that waits tried again.
    pub(super) fn retry(&self) {
        let mut state = lock(&self.state);
        state.retries = state.retries.wrapping_add(1);
        state.status = IoStatus::Ok;
        self.changed.notify_all();
    }

    /// Ends every wait, and lets nobody wait until [`Halt::open`].
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Undoes [`Halt::close`].
    pub(super) fn open(&self) {
        let mut state = lock(&self.state);
        state.closed = false;
        state.status = IoStatus::Ok;
    }
}
