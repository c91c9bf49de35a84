//! One monitor at work: its thread, who is connected, and what came from whom. It knows no command.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use hvrun_devices::backend::chardev::{CharBackend, CharFrontend, Peer};

use super::outbox::Outbox;
use crate::running::MachineEvent;

/// Bytes that are taken from the character device at once.
const CHUNK: usize = 16 * 1024;
/// Bytes of peers that have gone, which may wait for a command to end. Behind that, the oldest are forgotten.
const LEFT_BEHIND: usize = 256 * 1024;
/// The same for comings and goings.
const COMINGS: usize = 64;

/// What a monitor's two kinds differ in. Called on the session's thread, but for `event`.
pub(super) trait Protocol: Send + 'static {
    /// Somebody new is there.
    fn connected(&mut self, out: &Outbox);

    /// The peer has sent `bytes`, of any length: a part of a command, or several.
    fn input(&mut self, bytes: &[u8], out: &Outbox);

    /// What peers who want events are to be told of `event`.
    fn message(event: MachineEvent, pretty: bool) -> Option<Vec<u8>>;

    /// Whether messages are laid out for people.
    fn pretty(&self) -> bool {
        false
    }
}

/// What the thread does next.
#[derive(Debug, PartialEq, Eq)]
enum Item {
    Connected,
    Gone,
    Bytes(Vec<u8>),
}

#[derive(Debug)]
struct Inbox {
    /// What happened before the peer that is there now, and its coming.
    items: VecDeque<Item>,
    /// The peer that `items` know of.
    seen: Peer,
    stopped: bool,
}

/// See the module.
pub(super) struct Session {
    chardev: Arc<dyn CharBackend>,
    inbox: Mutex<Inbox>,
    changed: Condvar,
    outbox: Outbox,
    message: fn(MachineEvent, bool) -> Option<Vec<u8>>,
    pretty: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.chardev).finish()
    }
}

impl Session {
    /// A monitor on `chardev`, with its thread.
    pub(super) fn start<P: Protocol>(
        name: &str,
        chardev: Arc<dyn CharBackend>,
        protocol: P,
    ) -> io::Result<Arc<Session>> {
        let session = Arc::new(Session {
            outbox: Outbox::new(chardev.clone()),
            chardev,
            inbox: Mutex::new(Inbox { items: VecDeque::new(), seen: Peer::NOBODY, stopped: false }),
            changed: Condvar::new(),
            message: P::message,
            pretty: protocol.pretty(),
            thread: Mutex::new(None),
        });
        let weak: Weak<Session> = Arc::downgrade(&session);
        session.chardev.attach(weak);
        session.note_peer(&mut session.lock());
        let own = session.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || own.run(protocol))?;
        *session.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(session)
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut protocol: impl Protocol) {
        while let Some(item) = self.next() {
            match item {
                Item::Connected => {
                    self.outbox.clear();
                    protocol.connected(&self.outbox);
                }
                Item::Gone => self.outbox.want_events(false),
                Item::Bytes(bytes) => {
                    self.outbox.wait_for_room();
                    protocol.input(&bytes, &self.outbox);
                }
            }
        }
    }

    /// Waits for something to do; `None` at the end.
    fn next(&self) -> Option<Item> {
        let mut inbox = self.lock();
        loop {
            if inbox.stopped {
                return None;
            }
            if let Some(item) = inbox.items.pop_front() {
                return Some(item);
            }
            // Under the lock: what is read belongs to the peer that has been seen.
            if let Some(bytes) = self.read() {
                return Some(Item::Bytes(bytes));
            }
            inbox = self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; CHUNK];
        let count = self.chardev.read(&mut bytes);
        bytes.truncate(count);
        (count > 0).then_some(bytes)
    }

    /// Puts comings and goings, and what was sent before them, in order.
    fn note_peer(&self, inbox: &mut Inbox) {
        let now = self.chardev.peer();
        let before = std::mem::replace(&mut inbox.seen, now);
        if now == before {
            return;
        }
        let came = now.connections != before.connections;
        if came {
            while let Some(bytes) = self.read() {
                inbox.items.push_back(Item::Bytes(bytes));
            }
            if before.connected {
                inbox.items.push_back(Item::Gone);
            }
            inbox.items.push_back(Item::Connected);
        }
        if !now.connected && (came || before.connected) {
            // Its last words may still be read: a peer may send a command and go.
            while let Some(bytes) = self.read() {
                inbox.items.push_back(Item::Bytes(bytes));
            }
            inbox.items.push_back(Item::Gone);
        }
        let bytes = |item: &Item| if let Item::Bytes(bytes) = item { bytes.len() } else { 0 };
        while inbox.items.len() > COMINGS || inbox.items.iter().map(bytes).sum::<usize>() > LEFT_BEHIND {
            inbox.items.pop_front();
        }
    }

    /// Something has happened to the machine.
    pub(super) fn event(&self, event: MachineEvent) {
        if let Some(message) = (self.message)(event, self.pretty) {
            self.outbox.send_event(&message);
        }
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
        self.outbox.close();
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The machine's last owner may be one of its monitors.
        if let Some(thread) = thread.filter(|own| own.thread().id() != thread::current().id()) {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

impl CharFrontend for Session {
    fn input_ready(&self) {
        // Taking the lock makes sure that the thread waits, or has not looked yet.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn input_retry(&self) {}

    fn output_ready(&self) {
        self.outbox.ready();
    }

    fn peer_changed(&self) {
        self.note_peer(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The sessions of one machine. Dropping it ends them all, after the answers they owe.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Vec<Arc<Session>>);

impl Sessions {
    pub(super) fn add(&mut self, session: Arc<Session>) {
        self.0.push(session);
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.0.iter()
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        for session in &self.0 {
            session.stop();
        }
        for session in &self.0 {
            session.join();
        }
    }
}

#[cfg(test)]
mod tests;
