//! PL011, the Arm UART (ARM DDI 0183, r1p5): the machine's serial port, `ttyAMA0` to Linux.
//!
//! Data path: a guest's write goes through the transmit FIFO into the backend, which never blocks; what the backend has no room
//! for stays in the FIFO, and the guest sees it full. Input stays in the backend until the guest makes room in the receive FIFO,
//! which a read of the data register refills on the spot. No byte is lost in either direction and none is buffered without bound.
//! The line has no speed: divisors and word formats are remembered and otherwise ignored, and DMA requests go nowhere.

mod core;
mod regs;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::core::Core;
use crate::backend::chardev::{CharBackend, CharFrontend};
use crate::bus::MmioDevice;
use crate::irq::IrqLine;
use crate::primecell::{aligned, get, put};
use crate::util::{LogLimit, lock};

/// How long the line stays silent after the guest has enabled the receiver, unless it asks for receive interrupts before that.
///
/// On a wire no character can be complete in that moment either, and drivers count on it: Linux empties the receive FIFO and
/// throws away what it finds between enabling the receiver and enabling its interrupts.
const SETTLE: Duration = Duration::from_millis(20);

/// What a snapshot needs of a PL011. Registers by their names in ARM DDI 0183.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl011State {
    /// Received words that the guest has not read: data, and error bits as in UARTDR.
    pub rx: Vec<u16>,
    /// Bytes that the backend has not taken yet.
    pub tx: Vec<u8>,
    /// Errors of the word last read, and overrun.
    pub rsr: u32,
    /// The next word read carries the overrun bit.
    pub overrun: bool,
    /// UARTILPR.
    pub ilpr: u32,
    /// UARTIBRD.
    pub ibrd: u32,
    /// UARTFBRD.
    pub fbrd: u32,
    /// UARTLCR_H.
    pub lcr_h: u32,
    /// UARTCR.
    pub cr: u32,
    /// UARTIFLS.
    pub ifls: u32,
    /// UARTIMSC.
    pub imsc: u32,
    /// UARTRIS.
    pub ris: u32,
    /// UARTDMACR.
    pub dmacr: u32,
    /// The guest has written UARTCR since the reset.
    pub configured: bool,
}

/// See the module.
pub struct Pl011 {
    irq: IrqLine,
    backend: Arc<dyn CharBackend>,
    core: Mutex<Core>,
    dropped: LogLimit,
}

impl Pl011 {
    /// Size of its window.
    pub const SIZE: u64 = 0x1000;

    /// A UART in its reset state, whose far end is `backend` and whose combined interrupt (UARTINTR, level, high) is `irq`.
    pub fn new(irq: IrqLine, backend: Arc<dyn CharBackend>) -> Arc<Pl011> {
        let uart = Arc::new(Pl011 {
            irq,
            backend: backend.clone(),
            core: Mutex::new(Core::default()),
            dropped: LogLimit::default(),
        });
        let frontend: Weak<Pl011> = Arc::downgrade(&uart);
        backend.attach(frontend);
        uart
    }

    /// Everything that a snapshot needs. Input that still is in the backend is not part of it.
    pub fn save(&self) -> Pl011State {
        lock(&self.core).save()
    }

    /// Puts a saved state back. A state is an allegation: whatever does not fit into a PL011 is cut off.
    pub fn restore(&self, state: &Pl011State) {
        let mut core = lock(&self.core);
        core.restore(state);
        core.transmit(self.backend.as_ref());
        core.receive(self.backend.as_ref());
        self.irq.force(core.interrupt());
    }

    /// Waits until all that the guest has written so far has left the monitor, at most for `timeout`; `None` waits as long as
    /// the consumer takes. Says whether all of it has. For the end of a machine, when no vCPU runs any more.
    pub fn flush(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !self.backend.flush(left) {
                return false;
            }
            let (moved, waiting) = self.with_core(|core| {
                let moved = core.transmit(self.backend.as_ref());
                (moved, core.transmitting())
            });
            if !moved {
                return !waiting;
            }
        }
    }

    /// Receives a break condition, as if the line were pulled low: Linux takes the next key as a SysRq command.
    pub fn receive_break(&self) {
        self.with_core(Core::receive_break);
    }

    /// Runs `body` on the registers and then drives the interrupt line by what they say.
    fn with_core<T>(&self, body: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = lock(&self.core);
        let result = body(&mut core);
        self.irq.set(core.interrupt());
        result
    }

    fn read_register(&self, offset: u64) -> u32 {
        let backend = self.backend.as_ref();
        self.with_core(|core| match offset {
            regs::DR => core.read_data(backend),
            regs::FR => core.flags(backend),
            _ => core.read(offset),
        })
    }

    fn write_register(&self, offset: u64, value: u32) {
        let backend = self.backend.as_ref();
        let taken = self.with_core(|core| match offset {
            regs::DR => core.write_data(value as u8, backend),
            regs::CR => {
                if core.write_control(value) {
                    backend.retry_input(SETTLE);
                }
                true
            }
            _ => {
                core.write(offset, value);
                core.receive(backend);
                true
            }
        });
        if !taken && let Some(suppressed) = self.dropped.allow() {
            log::warn!(
                "PL011: the guest writes although its transmit FIFO is full: byte dropped{suppressed}"
            );
        }
    }
}

impl MmioDevice for Pl011 {
    fn name(&self) -> &str {
        "PL011"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if aligned(offset) {
            put(data, self.read_register(offset));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if aligned(offset) {
            self.write_register(offset, get(data));
        }
    }

    /// Output that waits for its consumer survives: it is as good as on the wire. Input that waits in the backend does, too.
    fn reset(&self) {
        let mut core = lock(&self.core);
        core.reset();
        self.irq.force(false);
    }
}

impl CharFrontend for Pl011 {
    fn input_ready(&self) {
        self.with_core(|core| core.input_ready(self.backend.as_ref()));
    }

    fn input_retry(&self) {
        self.with_core(|core| core.end_silence(self.backend.as_ref()));
    }

    fn output_ready(&self) {
        self.with_core(|core| core.transmit(self.backend.as_ref()));
    }
}

impl fmt::Debug for Pl011 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl011")
            .field("irq", &self.irq)
            .field("backend", &self.backend)
            .field("state", &self.save())
            .finish()
    }
}
