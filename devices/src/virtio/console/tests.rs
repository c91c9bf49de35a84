//! A guest that drives a console as Linux does, and one that does what no guest should. The host's end is a fake or a real socket.

mod control;
mod data;
mod hostile;

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::*;
use crate::backend::chardev::Peer;
use crate::virtio::device::F_RING_INDIRECT_DESC;
use crate::virtio::testing::{Desc, Driver, RAM, Ring};

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Buffers for control messages to the guest, one a descriptor.
const CONTROL_BUFFERS: u64 = RAM + 0x50_0000;
/// Size of each.
const CONTROL_BUFFER: u32 = 64;
/// Where the guest writes its control messages.
const CONTROL_OUT: u64 = RAM + 0x51_0000;
/// Buffers for input, one a descriptor.
const INPUT: u64 = RAM + 0x60_0000;
/// Size of each, Linux's.
const INPUT_BUFFER: u32 = 4096;
/// Where the guest puts its output.
const OUTPUT: u64 = RAM + 0x70_0000;
/// Entries of the queues, fewer than the device allows.
const SIZE: u16 = 8;

/// Queue indices of port 0.
const RX: u16 = 0;
const TX: u16 = 1;

/// A character device that does what the test says.
#[derive(Default)]
struct Fake(Mutex<FakeState>);

struct FakeState {
    output: Vec<u8>,
    /// How much more output it takes.
    room: usize,
    input: Vec<u8>,
    peer: Peer,
    frontend: Option<Weak<dyn CharFrontend>>,
}

impl Default for FakeState {
    fn default() -> Self {
        FakeState {
            output: Vec::new(),
            room: usize::MAX,
            input: Vec::new(),
            peer: Peer::ALWAYS,
            frontend: None,
        }
    }
}

impl Fake {
    fn with(&self, change: impl FnOnce(&mut FakeState)) -> Option<Arc<dyn CharFrontend>> {
        let mut state = lock(&self.0);
        change(&mut state);
        state.frontend.as_ref().and_then(Weak::upgrade)
    }

    fn type_in(&self, input: &[u8]) {
        self.with(|state| state.input.extend_from_slice(input)).unwrap().input_ready();
    }

    fn set_peer(&self, change: impl FnOnce(Peer) -> Peer) {
        self.with(|state| state.peer = change(state.peer)).unwrap().peer_changed();
    }

    fn set_room(&self, room: usize) {
        self.with(|state| state.room = room).unwrap().output_ready();
    }

    fn output(&self) -> Vec<u8> {
        lock(&self.0).output.clone()
    }

    fn waiting_input(&self) -> usize {
        lock(&self.0).input.len()
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

impl CharBackend for Fake {
    fn attach(&self, frontend: Weak<dyn CharFrontend>) {
        lock(&self.0).frontend = Some(frontend);
    }

    fn write(&self, data: &[u8]) -> usize {
        let mut state = lock(&self.0);
        let taken = data.len().min(state.room);
        state.room -= taken;
        state.output.extend_from_slice(&data[..taken]);
        taken
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        let mut state = lock(&self.0);
        let count = buf.len().min(state.input.len());
        buf[..count].copy_from_slice(&state.input[..count]);
        state.input.drain(..count);
        count
    }

    fn has_input(&self) -> bool {
        !lock(&self.0).input.is_empty()
    }

    fn retry_input(&self, _after: Duration) {}

    fn flush(&self, _timeout: Option<Duration>) -> bool {
        true
    }

    fn peer(&self) -> Peer {
        lock(&self.0).peer
    }
}

fn console(backend: Arc<dyn CharBackend>) -> PortSetup {
    PortSetup { kind: PortKind::Console(None), name: None, backend }
}

fn serial(name: &str, backend: Arc<dyn CharBackend>) -> PortSetup {
    PortSetup { kind: PortKind::Serial, name: Some(name.to_owned()), backend }
}

/// A control message as the guest reads it.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    id: u32,
    event: u16,
    value: u16,
    more: Vec<u8>,
}

fn heard(id: u32, event: u16, value: u16) -> Heard {
    Heard { id, event, value, more: Vec::new() }
}

/// A guest with a driver for its console.
struct Guest {
    console: Arc<Console>,
    driver: Driver,
    rings: Vec<Ring>,
    /// A buffer for a control message is with the device.
    listening: bool,
}

impl Guest {
    /// Its driver knows about ports and has done nothing yet but to set up its queues.
    fn new(setups: Vec<PortSetup>) -> Guest {
        Guest::with_features(setups, F_MULTIPORT | F_SIZE)
    }

    fn with_features(setups: Vec<PortSetup>, features: u64) -> Guest {
        let console = Console::new("console", setups).unwrap();
        let sizes = vec![SIZE; console.queue_sizes().len()];
        let (driver, rings) = Driver::start(console.clone(), features, &sizes);
        Guest { console, driver, rings, listening: false }
    }

    /// Its driver has brought up all ports, as Linux does, and has read what it was told about them.
    fn ready(setups: Vec<PortSetup>) -> Guest {
        let mut guest = Guest::new(setups);
        guest.bring_up_ports();
        guest
    }

    fn bring_up_ports(&mut self) {
        self.say(0xffff_ffff, DEVICE_READY, 1);
        for port in self.hear_all() {
            assert_eq!(port.event, DEVICE_ADD);
            self.say(port.id, PORT_READY, 1);
        }
        self.hear_all();
    }

    /// Resets the device and sets it up again.
    fn restart(&mut self) {
        let sizes = vec![SIZE; self.rings.len()];
        self.rings = self.driver.bring_up(F_MULTIPORT, &sizes);
        self.listening = false;
    }

    /// The same for a driver that uses indirect descriptors.
    fn restart_with_indirect(&mut self) {
        let sizes = vec![SIZE; self.rings.len()];
        self.rings = self.driver.bring_up(F_MULTIPORT | F_RING_INDIRECT_DESC, &sizes);
        self.listening = false;
    }

    /// Sends a control message.
    fn say(&mut self, id: u32, event: u16, value: u16) {
        let bytes = [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.say_bytes(&bytes);
    }

    fn say_bytes(&mut self, bytes: &[u8]) {
        self.driver.put(CONTROL_OUT, bytes);
        self.rings[usize::from(CONTROL_TX)].add(&[Desc::readable(CONTROL_OUT, bytes.len() as u32)]);
        self.driver.kick(CONTROL_TX);
        assert_eq!(self.rings[usize::from(CONTROL_TX)].used().len(), 1);
    }

    /// The next control message, if there is one. Otherwise a buffer for it stays with the device.
    fn hear(&mut self) -> Option<Heard> {
        let ring = &mut self.rings[usize::from(CONTROL_RX)];
        if !self.listening {
            ring.add(&[Desc::writable(CONTROL_BUFFERS, CONTROL_BUFFER)]);
            self.driver.kick(CONTROL_RX);
        }
        let used = ring.used();
        self.listening = used.is_empty();
        let bytes = self.driver.get(CONTROL_BUFFERS, used.first()?.1 as usize);
        Some(Heard {
            id: u32::from_le_bytes(bytes[..4].try_into().unwrap()),
            event: u16::from_le_bytes(bytes[4..6].try_into().unwrap()),
            value: u16::from_le_bytes(bytes[6..8].try_into().unwrap()),
            more: bytes[8..].to_vec(),
        })
    }

    /// Everything that there is to hear.
    fn hear_all(&mut self) -> Vec<Heard> {
        std::iter::from_fn(|| self.hear()).collect()
    }

    /// Puts `data` into the transmit queue `queue` in one buffer and rings the doorbell.
    fn print(&mut self, queue: u16, data: &[u8]) {
        self.driver.put(OUTPUT, data);
        self.rings[usize::from(queue)].add(&[Desc::readable(OUTPUT, data.len() as u32)]);
        self.driver.kick(queue);
    }

    /// Posts the receive queue's next buffer, the one with this number.
    fn post(&mut self, queue: u16, number: u16) {
        let addr = INPUT + u64::from(number % SIZE) * u64::from(INPUT_BUFFER);
        self.rings[usize::from(queue)].add(&[Desc::writable(addr, INPUT_BUFFER)]);
        self.driver.kick(queue);
    }

    /// Input in the used buffers since the last call.
    fn take_input(&mut self, queue: u16) -> Vec<u8> {
        let used = self.rings[usize::from(queue)].used();
        let read = |(head, len): &(u32, u32)| {
            self.driver.get(INPUT + u64::from(*head) * u64::from(INPUT_BUFFER), *len as usize)
        };
        used.iter().flat_map(read).collect()
    }
}

/// Bytes that do not repeat with any power of two.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}
