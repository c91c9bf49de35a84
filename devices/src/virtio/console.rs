//! The virtio console (virtio 1.2, 5.3): consoles (`hvc0` ...) and serial ports with names (`/dev/virtio-ports/NAME`) on one device.
//!
//! Data path: a doorbell of a transmit queue writes to the port's character device right on the vCPU's thread, without blocking; what
//! the other end has no room for stays in the ring, half of a chain too, until the character device's own thread calls back. Input is
//! read only when the guest's port is open and has posted buffers; the rest stays where it came from. So nothing is lost in either
//! direction and nothing is buffered without bound. It knows no sockets and no terminals: those are [`crate::backend::chardev`]'s.

mod config;
mod control;
mod port;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use self::config::{
    ConsoleConfig, ConsoleError, ConsoleParseError, MAX_PORTS, PortConfig, TerminalSize, validate,
};
use self::control::Control;
use self::port::{Port, PortQueue};
use super::device::{Activation, DeviceType, VirtioDevice};
use crate::backend::chardev::{self, CharBackend, CharFrontend, StdioStreams};
use crate::util::lock;

/// VIRTIO_CONSOLE_F_SIZE (virtio 1.2, 5.3.3): the configuration space holds the first console's size.
const F_SIZE: u64 = 1 << 0;
/// VIRTIO_CONSOLE_F_MULTIPORT (virtio 1.2, 5.3.3): there are control queues and more than one port.
const F_MULTIPORT: u64 = 1 << 1;
/// VIRTIO_CONSOLE_F_EMERG_WRITE (virtio 1.2, 5.3.3): a driver without queues can write a character.
const F_EMERG_WRITE: u64 = 1 << 2;

/// Bytes of struct virtio_console_config (virtio 1.2, 5.3.4): le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr.
const CONFIG_SIZE: usize = 12;
/// Offset of emerg_wr in it.
const CONFIG_EMERG_WR: u64 = 8;

/// Entries of a port's queues.
const PORT_QUEUE_SIZE: u16 = 128;
/// Entries of the control queues.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Queue index of the control messages to the driver (virtio 1.2, 5.3.2).
const CONTROL_RX: u16 = 2;
/// Queue index of the control messages to the device.
const CONTROL_TX: u16 = 3;

/// A port to be, whose character device is open: what [`Console::new`] takes.
#[derive(Debug, Clone)]
pub struct PortSetup {
    /// A console (`hvcN`) or a serial port of the guest's programs.
    pub kind: PortKind,
    /// What the guest knows it by. A console needs no name.
    pub name: Option<String>,
    /// What stands behind it.
    pub backend: Arc<dyn CharBackend>,
}

/// What a port is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// A terminal line, with its size if that is known.
    Console(Option<TerminalSize>),
    /// A serial port.
    Serial,
}

/// What a snapshot needs of a console, besides its queues. Input that waits in a character device is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConsoleState {
    /// The ports, in the order of their ids.
    pub ports: Vec<PortState>,
}

/// One port of a [`ConsoleState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortState {
    /// The guest has the port open.
    pub guest_open: bool,
    /// The guest knows the port and wants to hear about it.
    pub ready: bool,
    /// The guest was told that the host has the port open.
    pub told_open: bool,
    /// Bytes of the first chain in the transmit queue that have left already.
    pub sent: u64,
    /// Messages that wait for a buffer in the control queue, as bits.
    pub pending: u8,
}

/// See the module.
pub struct Console {
    name: String,
    queue_sizes: Vec<u16>,
    ports: Vec<Port>,
    control: Mutex<Control>,
    /// What the character devices call; they hold no more than a weak reference.
    ends: Vec<Arc<PortEnd>>,
}

impl Console {
    /// Opens what `consoles` and `ports` name and makes a device of it. The first one on `stdio` takes the streams.
    ///
    /// # Errors
    /// What [`validate`] finds, and a character device that cannot be opened.
    pub fn open(
        consoles: &[ConsoleConfig],
        ports: &[PortConfig],
        stdio: &mut Option<StdioStreams>,
    ) -> Result<Arc<Console>, ConsoleError> {
        validate(consoles, ports)?;
        let mut setups = Vec::with_capacity(consoles.len() + ports.len());
        for (index, console) in consoles.iter().enumerate() {
            let failed = |source| ConsoleError::Open { port: format!("console {index}"), source };
            let backend = open_chardev(&console.to, stdio).map_err(failed)?;
            setups.push(PortSetup {
                kind: PortKind::Console(console.size),
                name: console.name.clone(),
                backend,
            });
        }
        for port in ports {
            let failed = |source| ConsoleError::Open { port: format!("port {}", port.name), source };
            let backend = open_chardev(&port.to, stdio).map_err(failed)?;
            setups.push(PortSetup { kind: PortKind::Serial, name: Some(port.name.clone()), backend });
        }
        Console::new("console", setups)
    }

    /// A device with these ports. Ids follow the order of `setups`, but 0 is left to a console: drivers that know only one port
    /// take it for one. `name` is for log lines.
    ///
    /// # Errors
    /// More than [`MAX_PORTS`] ports.
    pub fn new(name: &str, setups: Vec<PortSetup>) -> Result<Arc<Console>, ConsoleError> {
        let mut ports = Vec::with_capacity(setups.len());
        let mut serial_id = 1;
        let mut console_id = 0;
        for setup in setups {
            // Consoles and serial ports share the ids; only the first console has one of its own.
            let id = match setup.kind {
                PortKind::Console(_) if console_id == 0 => {
                    console_id = 1;
                    0
                }
                _ => {
                    serial_id += 1;
                    serial_id - 1
                }
            };
            ports.push(Port::new(id, setup));
        }
        ports.sort_by_key(Port::id);
        let max_ports = ports.last().map_or(1, |port| port.id() + 1);
        if max_ports as usize > MAX_PORTS {
            return Err(ConsoleError::TooManyPorts { count: ports.len() });
        }
        let queue_sizes = (0..2 * (max_ports as u16 + 1))
            .map(|queue| match queue {
                CONTROL_RX | CONTROL_TX => CONTROL_QUEUE_SIZE,
                _ => PORT_QUEUE_SIZE,
            })
            .collect();
        let console = Arc::new_cyclic(|console: &Weak<Console>| Console {
            name: name.to_owned(),
            queue_sizes,
            control: Mutex::new(Control::new(ports.len())),
            ends: (0..ports.len())
                .map(|index| Arc::new(PortEnd { console: console.clone(), index }))
                .collect(),
            ports,
        });
        for (port, end) in console.ports.iter().zip(&console.ends) {
            let end: Weak<PortEnd> = Arc::downgrade(end);
            port.backend().attach(end);
        }
        Ok(console)
    }

    /// Tells the guest the size of console number `console` (0 is `hvc0`). Says whether there is such a console.
    pub fn resize(&self, console: usize, size: TerminalSize) -> bool {
        let is_console = |(_, port): &(usize, &Port)| port.is_console();
        let Some((index, port)) = self.ports.iter().enumerate().filter(is_console).nth(console) else {
            return false;
        };
        port.set_size(size);
        let mut control = lock(&self.control);
        control.resized(index, &self.ports);
        true
    }

    /// The pseudo-terminals behind its ports, as a person needs to know them: the port's id and the path.
    pub fn terminals(&self) -> Vec<(u32, PathBuf)> {
        let terminal = |port: &Port| port.backend().terminal().map(|path| (port.id(), path.to_owned()));
        self.ports.iter().filter_map(terminal).collect()
    }

    /// Waits until all that the guest has written so far has left the monitor, at most for `timeout`; `None` waits as long as
    /// the consumers take. Says whether all of it has. For the end of a machine, when no vCPU runs any more.
    pub fn flush(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.ports.iter().all(|port| {
            loop {
                let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                if !port.backend().flush(left) {
                    return false;
                }
                if !port.transmit() {
                    return !port.is_blocked();
                }
            }
        })
    }

    /// Everything that a snapshot needs besides the queues.
    pub fn save(&self) -> ConsoleState {
        let control = lock(&self.control);
        let state = |(index, port): (usize, &Port)| {
            let mut state = control.save(index);
            port.save(&mut state);
            state
        };
        ConsoleState { ports: self.ports.iter().enumerate().map(state).collect() }
    }

    /// Puts a saved state back, after [`VirtioDevice::activate`]. A state is an allegation: ports that are not there are left out. What
    /// has changed on the host's side since then, the guest is told.
    pub fn restore(&self, state: &ConsoleState) {
        let mut control = lock(&self.control);
        for (index, (port, state)) in self.ports.iter().zip(&state.ports).enumerate() {
            control.restore(index, port, state);
            port.restore(state);
        }
        drop(control);
        self.serve_all();
    }

    /// The port at queue `queue`, and which of its queues that is (virtio 1.2, 5.3.2).
    fn port_of(&self, queue: u16) -> Option<(usize, PortQueue)> {
        let pair = u32::from(queue / 2);
        // The control queues lie between the first port's and the others'.
        let id = if pair == 0 { 0 } else { pair - 1 };
        let index = self.ports.iter().position(|port| port.id() == id)?;
        Some((index, if queue.is_multiple_of(2) { PortQueue::Receive } else { PortQueue::Transmit }))
    }

    /// Moves input of a port to the guest, and tells the guest when its sender has gone and all of its input is there.
    fn receive(&self, index: usize) {
        let Some(port) = self.ports.get(index) else { return };
        port.receive();
        if !port.backend().peer().connected {
            self.tell();
        }
    }

    /// Tells the guest what has changed at its ports' other ends.
    fn tell(&self) {
        lock(&self.control).tell(&self.ports);
    }

    /// Serves the control queues. Ports that the guest has opened get what waited for that.
    fn serve_control(&self) {
        let opened = lock(&self.control).serve(&self.name, &self.ports);
        for index in 0..self.ports.len() {
            if opened & 1 << index != 0 {
                self.receive(index);
            }
        }
    }

    fn serve_all(&self) {
        self.serve_control();
        for (index, port) in self.ports.iter().enumerate() {
            port.transmit();
            self.receive(index);
        }
    }
}

/// Opens one character device; the first one on stdio takes the streams.
fn open_chardev(
    to: &chardev::ChardevConfig,
    stdio: &mut Option<StdioStreams>,
) -> Result<Arc<dyn CharBackend>, chardev::ChardevError> {
    let streams = if *to == chardev::ChardevConfig::Stdio { stdio.take() } else { None };
    chardev::open(to, streams)
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        F_SIZE | F_MULTIPORT | F_EMERG_WRITE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let first = self.ports.first().filter(|port| port.id() == 0);
        let size = first.and_then(Port::size).unwrap_or_default();
        let max_ports = (self.queue_sizes.len() / 2).saturating_sub(1) as u32;
        let mut config = [0; CONFIG_SIZE];
        config[0..2].copy_from_slice(&size.cols.to_le_bytes());
        config[2..4].copy_from_slice(&size.rows.to_le_bytes());
        config[4..8].copy_from_slice(&max_ports.to_le_bytes());
        super::read_config_bytes(&config, offset, data);
    }

    /// An emergency write (virtio 1.2, 5.3.4): one character to the first console, also before there is a driver. If that one's consumer
    /// is stuck, it is lost: there is no ring where it could wait.
    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (CONFIG_EMERG_WR, Some(character)) = (offset, data.first())
            && let Some(port) = self.ports.first().filter(|port| port.id() == 0)
        {
            port.backend().write(&[*character]);
        }
    }

    fn activate(&self, activation: Activation) {
        let Activation { memory, mut queues, features, interrupt } = activation;
        let multiport = features & F_MULTIPORT != 0;
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        for port in &self.ports {
            let first = if port.id() == 0 { 0 } else { 2 * (port.id() as usize + 1) };
            // Without control queues there is one port, and the driver cannot say that it opens it.
            if multiport || port.id() == 0 {
                port.activate(&memory, take(first), take(first + 1), !multiport);
            }
        }
        let (rx, tx) = match multiport {
            true => (take(usize::from(CONTROL_RX)), take(usize::from(CONTROL_TX))),
            false => (None, None),
        };
        lock(&self.control).activate(memory, rx, tx, (!multiport).then_some(interrupt));
        self.serve_all();
    }

    fn notify(&self, queue: u16) {
        match queue {
            CONTROL_RX | CONTROL_TX => self.serve_control(),
            _ => match self.port_of(queue) {
                Some((index, PortQueue::Receive)) => self.receive(index),
                Some((index, PortQueue::Transmit)) => {
                    if let Some(port) = self.ports.get(index) {
                        port.transmit();
                    }
                }
                None => {}
            },
        }
    }

    fn reset(&self) {
        lock(&self.control).reset();
        for port in &self.ports {
            port.reset();
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("name", &self.name)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// What a character device calls: one port of a console that may be gone.
#[derive(Debug)]
struct PortEnd {
    console: Weak<Console>,
    index: usize,
}

impl CharFrontend for PortEnd {
    fn input_ready(&self) {
        if let Some(console) = self.console.upgrade() {
            console.receive(self.index);
        }
    }

    fn input_retry(&self) {}

    fn output_ready(&self) {
        if let Some(console) = self.console.upgrade()
            && let Some(port) = console.ports.get(self.index)
        {
            port.transmit();
        }
    }

    fn peer_changed(&self) {
        if let Some(console) = self.console.upgrade() {
            console.tell();
        }
    }
}
