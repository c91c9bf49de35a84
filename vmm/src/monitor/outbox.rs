//! What a monitor says: whole messages, in order, from several threads, to a peer that may not read them. It knows no protocol.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use hvrun_devices::backend::chardev::CharBackend;

/// With this much unread, a monitor takes no more commands until the peer reads.
const ENOUGH: usize = 64 * 1024;
/// With this much unread, events are dropped: nobody listens.
const TOO_MUCH: usize = 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    chardev: Arc<dyn CharBackend>,
    state: Mutex<State>,
    drained: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What the character device had no room for.
    waiting: Vec<u8>,
    /// The present peer wants events.
    wants_events: bool,
    /// Events were dropped.
    dropping: bool,
    closed: bool,
}

impl Outbox {
    pub(super) fn new(chardev: Arc<dyn CharBackend>) -> Self {
        Outbox { chardev, state: Mutex::default(), drained: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says `message`, in one write as far as the peer can take it.
    pub(super) fn send(&self, message: &[u8]) {
        self.send_locked(&mut self.lock(), message);
    }

    /// Whether the present peer wants events from now on. To be said before the answer that says so to the peer, which may cause one at once.
    pub(super) fn want_events(&self, wants: bool) {
        self.lock().wants_events = wants;
    }

    /// The same as [`Outbox::send`] for what the peer has not asked for: only if it wants events, and dropped if it leaves too much unread.
    pub(super) fn send_event(&self, message: &[u8]) {
        let mut state = self.lock();
        if !state.wants_events {
            return;
        }
        if state.waiting.len() + message.len() <= TOO_MUCH {
            self.send_locked(&mut state, message);
        } else if !std::mem::replace(&mut state.dropping, true) {
            log::warn!("a monitor's peer does not read: it misses events from now on");
        }
    }

    fn send_locked(&self, state: &mut State, message: &[u8]) {
        let sent = if state.waiting.is_empty() { self.chardev.send(message) } else { 0 };
        state.waiting.extend_from_slice(message.get(sent..).unwrap_or_default());
    }

    /// There is room again.
    pub(super) fn ready(&self) {
        let mut state = self.lock();
        let sent = self.chardev.write(&state.waiting).min(state.waiting.len());
        state.waiting.drain(..sent);
        if state.waiting.is_empty() {
            state.dropping = false;
        }
        drop(state);
        self.drained.notify_all();
    }

    /// Forgets what nobody has read, for a peer that has not asked for events yet.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.wants_events = false;
        state.waiting.clear();
        state.dropping = false;
    }

    /// Waits until the peer has read enough for another answer.
    pub(super) fn wait_for_room(&self) {
        let mut state = self.lock();
        while state.waiting.len() > ENOUGH && !state.closed {
            state = self.drained.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends every wait.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.drained.notify_all();
    }
}
