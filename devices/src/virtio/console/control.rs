//! Control messages between a console device and its driver (virtio 1.2, 5.3.6.2). No data of any port.
//!
//! What is to be told is kept as a few bits a port, not as a queue of messages: a driver that asks much and reads nothing costs no
//! memory, and one that reads late learns how things are by then.

use std::io::{Read, Write};
use std::sync::Arc;

use hvrun_arch::GuestMemory;

use super::PortState;
use super::port::Port;
use crate::util::LogLimit;
use crate::virtio::chain::Chain;
use crate::virtio::device::Interrupt;
use crate::virtio::queue::Virtqueue;

// Events of struct virtio_console_control (virtio 1.2, 5.3.6.2).

/// Driver: it is set up (1) or is not (0).
const DEVICE_READY: u16 = 0;
/// Device: there is this port.
const DEVICE_ADD: u16 = 1;
/// Driver: it has added the port (1) or could not (0).
const PORT_READY: u16 = 3;
/// Device: the port is a console.
const CONSOLE_PORT: u16 = 4;
/// Device: the console's size; le16 cols, le16 rows follow.
const RESIZE: u16 = 5;
/// Both: the port is open (1) or closed (0) on the sender's side.
const PORT_OPEN: u16 = 6;
/// Device: the port's name; it follows, in UTF-8 and without a NUL.
const PORT_NAME: u16 = 7;

bitflags::bitflags! {
    /// What the guest is to be told about a port.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    struct Pending: u8 {
        const ADD = 1 << 0;
        const CONSOLE = 1 << 1;
        const NAME = 1 << 2;
        const SIZE = 1 << 3;
    }
}

/// What the guest knows about a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Known {
    pending: Pending,
    /// It has added the port and wants to hear the rest.
    ready: bool,
    /// It was told that this connection of the host's side (its number) is there.
    told: Option<u64>,
}

/// The next thing to tell about a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    /// One of [`Pending`].
    Pending(Pending),
    /// The connection with this number is there.
    Open(u64),
    /// The one that it was told of has gone.
    Closed,
}

impl Known {
    /// What the guest does not know yet, in the order in which Linux wants it.
    fn next(&self, port: &Port) -> Option<Message> {
        if self.pending.contains(Pending::ADD) {
            return Some(Message::Pending(Pending::ADD));
        }
        if !self.ready {
            return None;
        }
        let pending = [Pending::CONSOLE, Pending::NAME, Pending::SIZE];
        if let Some(first) = pending.into_iter().find(|bit| self.pending.contains(*bit)) {
            return Some(Message::Pending(first));
        }
        let peer = port.backend().peer();
        match self.told {
            Some(told) if told != peer.connections => Some(Message::Closed),
            // What it sent before it went comes first.
            Some(_) if !peer.connected && !port.backend().has_input() => Some(Message::Closed),
            None if peer.connected => Some(Message::Open(peer.connections)),
            _ => None,
        }
    }

    fn done(&mut self, message: Message) {
        match message {
            Message::Pending(bit) => self.pending.remove(bit),
            Message::Open(connection) => self.told = Some(connection),
            Message::Closed => self.told = None,
        }
    }
}

/// See the module.
pub(super) struct Control {
    queues: Option<Queues>,
    /// In the order of the ports.
    known: Vec<Known>,
    /// For a driver that takes the first console's size from the configuration space only.
    config_interrupt: Option<Arc<dyn Interrupt>>,
    odd: LogLimit,
}

struct Queues {
    memory: GuestMemory,
    /// To the driver.
    rx: Option<Virtqueue>,
    /// From the driver.
    tx: Option<Virtqueue>,
}

impl Control {
    /// Without queues, for so many ports.
    pub(super) fn new(ports: usize) -> Self {
        Control {
            queues: None,
            known: vec![Known::default(); ports],
            config_interrupt: None,
            odd: LogLimit::default(),
        }
    }

    pub(super) fn activate(
        &mut self,
        memory: GuestMemory,
        rx: Option<Virtqueue>,
        tx: Option<Virtqueue>,
        config_interrupt: Option<Arc<dyn Interrupt>>,
    ) {
        self.queues = Some(Queues { memory, rx, tx });
        self.config_interrupt = config_interrupt;
        self.known.fill(Known::default());
    }

    pub(super) fn reset(&mut self) {
        self.queues = None;
        self.config_interrupt = None;
        self.known.fill(Known::default());
    }

    pub(super) fn save(&self, index: usize) -> PortState {
        let known = self.known.get(index).copied().unwrap_or_default();
        PortState {
            ready: known.ready,
            told_open: known.told.is_some(),
            pending: known.pending.bits(),
            ..PortState::default()
        }
    }

    pub(super) fn restore(&mut self, index: usize, port: &Port, state: &PortState) {
        if let Some(known) = self.known.get_mut(index) {
            *known = Known {
                pending: Pending::from_bits_truncate(state.pending),
                ready: state.ready,
                told: state.told_open.then(|| port.backend().peer().connections),
            };
        }
    }

    /// The size of a console has changed.
    pub(super) fn resized(&mut self, index: usize, ports: &[Port]) {
        if let Some(known) = self.known.get_mut(index).filter(|known| known.ready) {
            known.pending |= Pending::SIZE;
        }
        match &self.config_interrupt {
            Some(interrupt) if index == 0 => interrupt.config_changed(),
            _ => self.tell(ports),
        }
    }

    /// Takes what the driver says and answers. Gives the ports that it has opened, as bits by their place in `ports`.
    pub(super) fn serve(&mut self, name: &str, ports: &[Port]) -> u32 {
        let Control { queues, known, odd, .. } = self;
        let mut opened = 0;
        if let Some(Queues { memory, tx: Some(tx), .. }) = queues {
            tx.drain(memory, &mut Chain::new(), |chain| {
                match Event::read(chain) {
                    Some(event) => match event.handle(known, ports) {
                        Ok(ports) => opened |= ports,
                        Err(why) => {
                            if let Some(suppressed) = odd.allow() {
                                log::warn!("{name}: the driver says {event:?}: {why}{suppressed}");
                            }
                        }
                    },
                    None => {
                        if let Some(suppressed) = odd.allow() {
                            log::warn!(
                                "{name}: a control message of the driver is too short: ignored{suppressed}"
                            );
                        }
                    }
                }
                0
            });
        }
        self.tell(ports);
        opened
    }

    /// Tells the driver what it does not know yet, as far as it has posted buffers for it.
    pub(super) fn tell(&mut self, ports: &[Port]) {
        let Some(Queues { memory, rx: Some(rx), .. }) = &mut self.queues else { return };
        let mut chain = Chain::new();
        loop {
            rx.disable_notification(memory);
            let mut waiting = false;
            'ports: for (known, port) in self.known.iter_mut().zip(ports) {
                while let Some(message) = known.next(port) {
                    waiting = !rx.pop(memory, &mut chain);
                    if waiting {
                        break 'ports;
                    }
                    let written = write_message(&chain, message, port);
                    rx.push(memory, chain.head(), written);
                    known.done(message);
                }
            }
            rx.signal(memory);
            if !waiting || !rx.enable_notification(memory) {
                return;
            }
        }
    }
}

/// What a driver has said: struct virtio_console_control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Event {
    id: u32,
    event: u16,
    value: u16,
}

impl Event {
    fn read(chain: &Chain<'_>) -> Option<Event> {
        let mut bytes = [0; 8];
        chain.reader().read_exact(&mut bytes).ok()?;
        let [i0, i1, i2, i3, e0, e1, v0, v1] = bytes;
        Some(Event {
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            event: u16::from_le_bytes([e0, e1]),
            value: u16::from_le_bytes([v0, v1]),
        })
    }

    /// Gives the ports that it opens, as bits, or says what is odd about it.
    fn handle(self, known: &mut [Known], ports: &[Port]) -> Result<u32, &'static str> {
        if self.event == DEVICE_READY {
            return match self.value {
                0 => Err("it cannot use the device"),
                _ => {
                    known.fill(Known { pending: Pending::ADD, ..Known::default() });
                    Ok(0)
                }
            };
        }
        let index = ports.iter().position(|port| port.id() == self.id).ok_or("there is no such port")?;
        let (Some(port), Some(known)) = (ports.get(index), known.get_mut(index)) else { return Ok(0) };
        match (self.event, self.value) {
            (PORT_READY, 0) => {
                known.ready = false;
                Err("it cannot use the port")
            }
            (PORT_READY, _) => {
                let mut pending = Pending::empty();
                pending.set(Pending::CONSOLE, port.is_console());
                pending.set(Pending::NAME, port.name().is_some());
                pending.set(Pending::SIZE, port.is_console() && port.size().is_some());
                *known = Known { pending, ready: true, told: None };
                Ok(0)
            }
            (PORT_OPEN, value) => {
                port.set_guest_open(value != 0);
                Ok(if value != 0 { 1 << index } else { 0 })
            }
            _ => Err("that is no message for a device; ignored"),
        }
    }
}

/// Puts `message` into the buffers of `chain`, as far as they reach; says how many bytes that are.
fn write_message(chain: &Chain<'_>, message: Message, port: &Port) -> u32 {
    let (event, value) = match message {
        Message::Pending(Pending::ADD) => (DEVICE_ADD, 1),
        Message::Pending(Pending::CONSOLE) => (CONSOLE_PORT, 1),
        Message::Pending(Pending::NAME) => (PORT_NAME, 1),
        Message::Pending(_) => (RESIZE, 1),
        Message::Open(_) => (PORT_OPEN, 1),
        Message::Closed => (PORT_OPEN, 0),
    };
    let mut bytes = Vec::with_capacity(16);
    bytes.extend_from_slice(&port.id().to_le_bytes());
    bytes.extend_from_slice(&u16::to_le_bytes(event));
    bytes.extend_from_slice(&u16::to_le_bytes(value));
    match event {
        PORT_NAME => bytes.extend_from_slice(port.name().unwrap_or_default().as_bytes()),
        // The order of the specification; Linux before its commit 5326ab737a47 reads rows first.
        RESIZE => {
            let size = port.size().unwrap_or_default();
            bytes.extend_from_slice(&size.cols.to_le_bytes());
            bytes.extend_from_slice(&size.rows.to_le_bytes());
        }
        _ => {}
    }
    let mut writer = chain.writer();
    // A driver with buffers that are too small gets the beginning.
    let _ = writer.write_all(&bytes);
    writer.written()
}
