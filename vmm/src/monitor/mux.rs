//! One character device shared by the serial port and a monitor, as QEMU's `mux=on`: both write to it, and Ctrl-A C says which of them
//! reads. It knows neither; each sees a character device of its own.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use hvrun_devices::backend::chardev::escape::{Escape, EscapeCommand, Escaped, HELP};
use hvrun_devices::backend::chardev::{CharBackend, CharFrontend, Peer};

/// Bytes that wait for one of the two before no more are read.
const CAPACITY: usize = 4096;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Serial,
    Monitor,
}

/// Keys behind Ctrl-A that concern the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// X: end it.
    Quit,
    /// B: a break on the serial line.
    Break,
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    frontend: Option<Weak<dyn CharFrontend>>,
}

struct State {
    escape: Escape,
    focus: Side,
    /// The monitor has been looked at: until then, nobody is there for it, and it says nothing between the guest's lines.
    monitor_seen: bool,
    serial: Queue,
    monitor: Queue,
}

impl State {
    fn queue(&mut self, side: Side) -> &mut Queue {
        match side {
            Side::Serial => &mut self.serial,
            Side::Monitor => &mut self.monitor,
        }
    }
}

type OnKey = Box<dyn Fn(Key) + Send + Sync>;

/// See the module.
pub(crate) struct Mux {
    under: Arc<dyn CharBackend>,
    state: Mutex<State>,
    on_key: OnceLock<OnKey>,
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mux").field(&self.under).finish()
    }
}

impl Mux {
    /// Shares `under`; what is typed goes to the serial port at first.
    pub(crate) fn new(under: Arc<dyn CharBackend>) -> Arc<Mux> {
        let state = State {
            escape: Escape::default(),
            focus: Side::Serial,
            monitor_seen: false,
            serial: Queue::default(),
            monitor: Queue::default(),
        };
        let mux = Arc::new(Mux { under, state: Mutex::new(state), on_key: OnceLock::new() });
        let weak: Weak<Mux> = Arc::downgrade(&mux);
        mux.under.attach(weak);
        mux
    }

    /// The serial port's end.
    pub(crate) fn serial(self: &Arc<Self>) -> Arc<dyn CharBackend> {
        Arc::new(Port { mux: self.clone(), side: Side::Serial })
    }

    /// The monitor's end.
    pub(crate) fn monitor(self: &Arc<Self>) -> Arc<dyn CharBackend> {
        Arc::new(Port { mux: self.clone(), side: Side::Monitor })
    }

    /// Says what the keys do that concern the machine. Until then, and after the first time, nothing.
    pub(crate) fn on_key(&self, on_key: impl Fn(Key) + Send + Sync + 'static) {
        let _ = self.on_key.set(Box::new(on_key));
        // What was typed before the machine was there.
        self.under.retry_input(Duration::ZERO);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frontend(&self, side: Side) -> Option<Arc<dyn CharFrontend>> {
        self.lock().queue(side).frontend.as_ref().and_then(Weak::upgrade)
    }

    /// Hands out what has come. On the device's own thread, as everything that calls the two.
    fn pump(&self) {
        // What is typed for the monitor comes behind the news that somebody is there.
        while self.hand_out() {
            if let Some(frontend) = self.frontend(Side::Monitor) {
                frontend.peer_changed();
            }
        }
    }

    /// Hands out what has come, up to where the monitor is first looked at; says whether it is now.
    fn hand_out(&self) -> bool {
        let Some(on_key) = self.on_key.get() else { return false };
        let (mut keys, mut help, mut first_look) = (Vec::new(), false, false);
        let mut fed = [(Side::Serial, false), (Side::Monitor, false)];
        {
            let mut state = self.lock();
            let mut byte = [0];
            // Until the one that reads has enough. Byte by byte: any of them may change who that is.
            loop {
                let focus = state.focus;
                if state.queue(focus).bytes.len() >= CAPACITY || self.under.read(&mut byte) == 0 {
                    break;
                }
                match state.escape.feed(byte[0]) {
                    Escaped::Nothing => {}
                    Escaped::Data(byte) => {
                        state.queue(focus).bytes.push_back(byte);
                        fed.iter_mut().filter(|(side, _)| *side == focus).for_each(|(_, fed)| *fed = true);
                    }
                    Escaped::Command(EscapeCommand::Monitor) => {
                        state.focus = match focus {
                            Side::Serial => Side::Monitor,
                            Side::Monitor => Side::Serial,
                        };
                        if !std::mem::replace(&mut state.monitor_seen, true) {
                            first_look = true;
                            break;
                        }
                    }
                    Escaped::Command(EscapeCommand::Help) => help = true,
                    Escaped::Command(EscapeCommand::Quit) => keys.push(Key::Quit),
                    Escaped::Command(EscapeCommand::Break) => keys.push(Key::Break),
                }
            }
        }
        if help {
            self.under.write(HELP.as_bytes());
        }
        keys.into_iter().for_each(on_key);
        for (side, _) in fed.into_iter().filter(|(_, fed)| *fed) {
            if let Some(frontend) = self.frontend(side) {
                frontend.input_ready();
            }
        }
        first_look
    }

    fn both(&self, tell: impl Fn(&dyn CharFrontend)) {
        for side in [Side::Serial, Side::Monitor] {
            if let Some(frontend) = self.frontend(side) {
                tell(frontend.as_ref());
            }
        }
    }
}

impl CharFrontend for Mux {
    fn input_ready(&self) {
        self.pump();
    }

    fn input_retry(&self) {
        self.pump();
        self.both(|frontend| frontend.input_retry());
    }

    fn output_ready(&self) {
        self.both(|frontend| frontend.output_ready());
    }

    fn peer_changed(&self) {
        self.both(|frontend| frontend.peer_changed());
    }
}

/// One of the two ends.
#[derive(Debug)]
struct Port {
    mux: Arc<Mux>,
    side: Side,
}

impl CharBackend for Port {
    fn attach(&self, frontend: Weak<dyn CharFrontend>) {
        self.mux.lock().queue(self.side).frontend = Some(frontend);
    }

    fn write(&self, data: &[u8]) -> usize {
        self.mux.under.write(data)
    }

    fn send(&self, data: &[u8]) -> usize {
        self.mux.under.send(data)
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        let mut state = self.mux.lock();
        let queue = &mut state.queue(self.side).bytes;
        let was_full = queue.len() >= CAPACITY;
        let count = queue.len().min(buf.len());
        for (place, byte) in buf.iter_mut().zip(queue.drain(..count)) {
            *place = byte;
        }
        let more = was_full && count > 0;
        drop(state);
        if more {
            // What waits is handed out from the device's thread.
            self.mux.under.retry_input(Duration::ZERO);
        }
        count
    }

    fn has_input(&self) -> bool {
        !self.mux.lock().queue(self.side).bytes.is_empty()
    }

    fn retry_input(&self, after: Duration) {
        self.mux.under.retry_input(after);
    }

    fn flush(&self, timeout: Option<Duration>) -> bool {
        self.mux.under.flush(timeout)
    }

    fn peer(&self) -> Peer {
        match self.side == Side::Monitor && !self.mux.lock().monitor_seen {
            true => Peer::NOBODY,
            false => self.mux.under.peer(),
        }
    }
}

#[cfg(test)]
mod tests;
