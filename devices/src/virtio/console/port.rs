//! One port of a console device: its two data queues and the character device behind them. No control messages.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hvrun_arch::GuestMemory;
use vm_memory::VolatileSlice;

use super::config::TerminalSize;
use super::{PortKind, PortSetup, PortState};
use crate::backend::chardev::CharBackend;
use crate::util::lock;
use crate::virtio::chain::Chain;
use crate::virtio::queue::Virtqueue;

/// How much is copied at once between guest memory and a character device.
const CHUNK: usize = 32 * 1024;

/// The longest chain that is taken for output, in bytes: far more than a driver sends at once, and what one doorbell may cost.
const MAX_OUTPUT: usize = 64 << 20;

/// One of a port's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortQueue {
    /// Input, filled by the device.
    Receive,
    /// Output of the guest.
    Transmit,
}

/// See the module. Each direction has its own lock, so that output does not wait for input.
pub(super) struct Port {
    id: u32,
    console: bool,
    name: Option<String>,
    backend: Arc<dyn CharBackend>,
    size: Mutex<Option<TerminalSize>>,
    /// The guest takes input. Without it, input waits in the character device.
    guest_open: AtomicBool,
    rx: Mutex<Direction>,
    tx: Mutex<Direction>,
}

/// A queue at work, and what goes with it.
#[derive(Default)]
struct Direction {
    served: Option<(Virtqueue, GuestMemory)>,
    chunk: Vec<u8>,
    /// Bytes of the first available chain that have left already.
    sent: usize,
    /// The character device has no room and will call.
    blocked: bool,
}

impl Direction {
    fn set(&mut self, served: Option<(Virtqueue, GuestMemory)>) {
        if served.is_some() {
            self.chunk.resize(CHUNK, 0);
        }
        self.served = served;
        self.sent = 0;
        self.blocked = false;
    }
}

impl Port {
    /// A port without queues.
    pub(super) fn new(id: u32, setup: PortSetup) -> Self {
        let (console, size) = match setup.kind {
            PortKind::Console(size) => (true, size),
            PortKind::Serial => (false, None),
        };
        Port {
            id,
            console,
            name: setup.name,
            backend: setup.backend,
            size: Mutex::new(size),
            guest_open: AtomicBool::new(false),
            rx: Mutex::default(),
            tx: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn is_console(&self) -> bool {
        self.console
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn backend(&self) -> &dyn CharBackend {
        self.backend.as_ref()
    }

    /// The terminal's size, if that is known.
    pub(super) fn size(&self) -> Option<TerminalSize> {
        *lock(&self.size)
    }

    pub(super) fn set_size(&self, size: TerminalSize) {
        *lock(&self.size) = Some(size);
    }

    /// The guest has opened or closed the port.
    pub(super) fn set_guest_open(&self, open: bool) {
        self.guest_open.store(open, Ordering::SeqCst);
    }

    /// Starts to serve these queues.
    pub(super) fn activate(
        &self,
        memory: &GuestMemory,
        rx: Option<Virtqueue>,
        tx: Option<Virtqueue>,
        guest_open: bool,
    ) {
        let served = |queue: Option<Virtqueue>| queue.map(|queue| (queue, memory.clone()));
        self.set_guest_open(guest_open);
        lock(&self.rx).set(served(rx));
        lock(&self.tx).set(served(tx));
    }

    /// Forgets the queues. When it returns, nobody works on them any more.
    pub(super) fn reset(&self) {
        lock(&self.rx).set(None);
        lock(&self.tx).set(None);
        self.set_guest_open(false);
    }

    pub(super) fn save(&self, state: &mut PortState) {
        state.guest_open = self.guest_open.load(Ordering::SeqCst);
        state.sent = lock(&self.tx).sent as u64;
    }

    pub(super) fn restore(&self, state: &PortState) {
        self.set_guest_open(state.guest_open);
        lock(&self.tx).sent = usize::try_from(state.sent).unwrap_or(usize::MAX);
    }

    /// Whether output waits in the ring for its consumer.
    pub(super) fn is_blocked(&self) -> bool {
        lock(&self.tx).blocked
    }

    /// Moves output from the ring to the character device, until there is none or that one is full; says whether any moved. A chain
    /// of which a part has left stays in the ring until all of it has.
    pub(super) fn transmit(&self) -> bool {
        let mut direction = lock(&self.tx);
        let Direction { served: Some((queue, memory)), chunk, sent, blocked } = &mut *direction else {
            return false;
        };
        let mut chain = Chain::new();
        let mut moved = false;
        *blocked = false;
        loop {
            queue.disable_notification(memory);
            while queue.pop(memory, &mut chain) {
                if chain.readable_len() > MAX_OUTPUT {
                    queue.fail(format_args!("a chain has more than {MAX_OUTPUT} bytes of output"));
                    return moved;
                }
                loop {
                    let count = copy_from(chain.readable(), *sent, chunk);
                    let piece = chunk.get(..count).unwrap_or_default();
                    if piece.is_empty() {
                        break;
                    }
                    let taken = self.backend.send(piece).min(count);
                    *sent = sent.saturating_add(taken);
                    moved |= taken > 0;
                    if taken < count {
                        // The doorbell stays silent: the character device calls when it has room.
                        queue.undo_pop();
                        queue.signal(memory);
                        *blocked = true;
                        return moved;
                    }
                }
                *sent = 0;
                moved = true;
                queue.push(memory, chain.head(), 0);
            }
            queue.signal(memory);
            if !queue.enable_notification(memory) {
                return moved;
            }
        }
    }

    /// Moves input into the buffers that the guest has posted, if it has the port open.
    pub(super) fn receive(&self) {
        let mut direction = lock(&self.rx);
        let Direction { served: Some((queue, memory)), chunk, .. } = &mut *direction else { return };
        if !self.guest_open.load(Ordering::SeqCst) {
            return;
        }
        let mut chain = Chain::new();
        loop {
            queue.disable_notification(memory);
            while self.backend.has_input() && queue.pop(memory, &mut chain) {
                let written = self.fill(&chain, chunk);
                queue.push(memory, chain.head(), written);
            }
            queue.signal(memory);
            // Only who waits for a buffer needs to hear of one.
            if !self.backend.has_input() || !queue.enable_notification(memory) {
                return;
            }
        }
    }

    /// Fills the buffers of `chain` with as much input as there is; says with how much.
    fn fill(&self, chain: &Chain<'_>, chunk: &mut [u8]) -> u32 {
        let mut writer = chain.writer();
        let mut left = chain.writable_len();
        while left > 0 {
            let room = left.min(chunk.len());
            let Some(buf) = chunk.get_mut(..room) else { break };
            let count = self.backend.read(buf);
            let written = buf.get(..count).is_some_and(|input| writer.write_all(input).is_ok());
            if count == 0 || !written {
                break;
            }
            left -= count;
        }
        writer.written()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("console", &self.console)
            .field("backend", &self.backend)
            .field("guest_open", &self.guest_open)
            .finish_non_exhaustive()
    }
}

/// Copies what `slices` hold from byte `skip` on, as much as fits into `buf`; says how much.
fn copy_from(slices: &[VolatileSlice<'_>], mut skip: usize, buf: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        let Some(room) = buf.get_mut(done..).filter(|room| !room.is_empty()) else { break };
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        if let Ok(rest) = slice.offset(skip) {
            done += rest.copy_to(room);
        }
        skip = 0;
    }
    done
}
