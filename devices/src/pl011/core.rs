//! The PL011's registers and FIFOs and what each access does to them.
//!
//! No locks, threads or interrupt lines: [`super::Pl011`] has those. The backend comes in with each call that may move bytes.

use std::collections::VecDeque;

use super::Pl011State;
use super::regs::*;
use crate::backend::chardev::CharBackend;
use crate::primecell::id_register;

/// See the module.
#[derive(Debug)]
pub(super) struct Core {
    rx: VecDeque<u16>,
    tx: VecDeque<u8>,
    rsr: u32,
    overrun: bool,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
    /// The guest has written UARTCR. Until then a guest that just polls, without any set-up, gets its input all the same.
    configured: bool,
    /// The receiver was just enabled and hears nothing yet; see [`super::SETTLE`].
    silent: bool,
}

impl Default for Core {
    fn default() -> Self {
        Core {
            rx: VecDeque::new(),
            tx: VecDeque::new(),
            rsr: 0,
            overrun: false,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: IFLS_RESET,
            imsc: 0,
            ris: 0,
            dmacr: 0,
            configured: false,
            silent: false,
        }
    }
}

impl Core {
    /// Everything to its reset value but the output that is still to be sent.
    pub(super) fn reset(&mut self) {
        let tx = std::mem::take(&mut self.tx);
        *self = Core { tx, ..Core::default() };
    }

    pub(super) fn save(&self) -> Pl011State {
        Pl011State {
            rx: self.rx.iter().copied().collect(),
            tx: self.tx.iter().copied().collect(),
            rsr: self.rsr,
            overrun: self.overrun,
            ilpr: self.ilpr,
            ibrd: self.ibrd,
            fbrd: self.fbrd,
            lcr_h: self.lcr_h,
            cr: self.cr,
            ifls: self.ifls,
            imsc: self.imsc,
            ris: self.ris,
            dmacr: self.dmacr,
            configured: self.configured,
        }
    }

    pub(super) fn restore(&mut self, state: &Pl011State) {
        *self = Core {
            rx: state.rx.iter().copied().take(FIFO_DEPTH).map(|word| word & 0xfff).collect(),
            tx: state.tx.iter().copied().take(FIFO_DEPTH).collect(),
            rsr: state.rsr & 0xf,
            overrun: state.overrun,
            ilpr: state.ilpr & 0xff,
            ibrd: state.ibrd & 0xffff,
            fbrd: state.fbrd & 0x3f,
            lcr_h: state.lcr_h & 0xff,
            cr: state.cr & CR_MASK,
            ifls: state.ifls & 0x3f,
            imsc: state.imsc & INT_MASK,
            ris: state.ris & INT_MASK,
            dmacr: state.dmacr & 7,
            configured: state.configured,
            silent: false,
        };
    }

    /// Level of UARTINTR.
    pub(super) fn interrupt(&self) -> bool {
        self.ris & self.imsc != 0
    }

    /// Whether output waits for the backend.
    pub(super) fn transmitting(&self) -> bool {
        !self.tx.is_empty()
    }

    /// A read of any register without side effects.
    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            RSR => self.rsr,
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.ris,
            MIS => self.ris & self.imsc,
            DMACR => self.dmacr,
            _ => id_register(PERIPH_ID, offset).unwrap_or(0),
        }
    }

    /// A write of any register but UARTDR and UARTCR.
    pub(super) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            // UARTECR: any value clears the errors.
            RSR => self.rsr = 0,
            ILPR => self.ilpr = value & 0xff,
            IBRD => self.ibrd = value & 0xffff,
            FBRD => self.fbrd = value & 0x3f,
            LCR_H => self.write_line_control(value & 0xff),
            IFLS => {
                self.ifls = value & 0x3f;
                self.update_receive_interrupts();
            }
            IMSC => {
                self.imsc = value & INT_MASK;
                // The driver is ready for input.
                if value & (INT_RX | INT_RT) != 0 {
                    self.silent = false;
                }
            }
            ICR => self.ris &= !value,
            DMACR => self.dmacr = value & 7,
            _ => {}
        }
    }

    fn write_line_control(&mut self, value: u32) {
        let toggled = (self.lcr_h ^ value) & LCR_H_FEN != 0;
        self.lcr_h = value;
        if toggled {
            // Turning the FIFOs on or off empties the receive FIFO. The transmit FIFO stays: DDI 0183 3.3.8 has the guest wait
            // for the end of the transmission first, which here takes as long as a consumer likes.
            self.rx.clear();
            self.overrun = false;
            self.update_receive_interrupts();
        }
    }

    /// A write of UARTCR. Says whether the receiver was just enabled and wants a [`Core::end_silence`] after [`super::SETTLE`].
    pub(super) fn write_control(&mut self, value: u32) -> bool {
        let (was_receiving, lines) = (self.receiving(), self.modem_lines());
        self.cr = value & CR_MASK;
        self.configured = true;
        let changed = lines ^ self.modem_lines();
        for (interrupt, line) in MODEM {
            if changed & line != 0 {
                self.ris |= interrupt;
            }
        }
        let rises = self.receiving() && !was_receiving;
        self.silent = self.receiving() && (self.silent || rises);
        rises
    }

    /// The time has come for the first character after the receiver was enabled.
    pub(super) fn end_silence(&mut self, backend: &dyn CharBackend) {
        self.silent = false;
        self.receive(backend);
    }

    /// A read of UARTFR.
    pub(super) fn flags(&self, backend: &dyn CharBackend) -> u32 {
        let mut flags = self.modem_lines();
        if self.rx.is_empty() && !(self.unconfigured() && backend.has_input()) {
            flags |= FR_RXFE;
        }
        if self.rx.len() >= self.depth() {
            flags |= FR_RXFF;
        }
        if self.tx.is_empty() {
            flags |= FR_TXFE;
        } else {
            flags |= FR_BUSY;
        }
        if self.tx.len() >= self.depth() {
            flags |= FR_TXFF;
        }
        flags
    }

    /// Modem status inputs as they stand in UARTFR. The far end is always there and ready; in loopback they are the guest's own
    /// outputs (3.3.8, LBE).
    fn modem_lines(&self) -> u32 {
        if self.cr & CR_LBE == 0 {
            return FR_CTS | FR_DSR | FR_DCD;
        }
        let loops = [(CR_RTS, FR_CTS), (CR_DTR, FR_DSR), (CR_OUT1, FR_DCD), (CR_OUT2, FR_RI)];
        loops.iter().filter(|(output, _)| self.cr & output != 0).fold(0, |lines, (_, input)| lines | input)
    }

    /// A read of UARTDR.
    pub(super) fn read_data(&mut self, backend: &dyn CharBackend) -> u32 {
        if self.rx.is_empty() && self.unconfigured() {
            let mut byte = [0];
            backend.read(&mut byte);
            return u32::from(byte[0]);
        }
        let Some(mut word) = self.rx.pop_front() else { return 0 };
        if std::mem::take(&mut self.overrun) {
            word |= DR_OE;
        }
        // UARTRSR has the errors of the word last read; overrun stays until it is cleared (3.3.2).
        self.rsr = (self.rsr & RSR_OE) | u32::from(word >> 8);
        self.receive(backend);
        self.update_receive_interrupts();
        u32::from(word)
    }

    /// A write of UARTDR. Says whether there was room. Like the hardware's reset state and QEMU, this does not ask whether the
    /// transmitter is enabled: early consoles do not enable it.
    pub(super) fn write_data(&mut self, byte: u8, backend: &dyn CharBackend) -> bool {
        if self.cr & CR_LBE != 0 {
            if self.enabled() {
                self.push_received(u16::from(byte));
            }
            self.ris |= INT_TX;
            return true;
        }
        if self.tx.len() >= self.depth() {
            return false;
        }
        // The usual case: nothing waits and the backend has room.
        if !(self.tx.is_empty() && backend.write(&[byte]) == 1) {
            self.tx.push_back(byte);
        }
        self.update_transmit_interrupt();
        true
    }

    /// Moves waiting output to the backend; says whether anything moved.
    pub(super) fn transmit(&mut self, backend: &dyn CharBackend) -> bool {
        let mut moved = false;
        while !self.tx.is_empty() {
            let count = backend.write(self.tx.make_contiguous()).min(self.tx.len());
            if count == 0 {
                break;
            }
            self.tx.drain(..count);
            moved = true;
        }
        if moved {
            self.update_transmit_interrupt();
        }
        moved
    }

    /// The transmit interrupt after the FIFO has changed (2.8.3): raised when it has drained to the trigger level, which a byte
    /// that left at once does on its way; cleared by filling it above. A masked driver can so write until the FIFO is full, and
    /// one that waits for the interrupt finds at least the room that the level promises.
    fn update_transmit_interrupt(&mut self) {
        let level = if self.fifos_enabled() { trigger(self.ifls) } else { 0 };
        if self.tx.len() <= level {
            self.ris |= INT_TX;
        } else {
            self.ris &= !INT_TX;
        }
    }

    /// Takes input while the receiver is on and the FIFO has room.
    pub(super) fn receive(&mut self, backend: &dyn CharBackend) {
        if !self.receiving() || self.silent {
            return;
        }
        let mut received = false;
        let mut buf = [0; FIFO_DEPTH];
        while let room @ 1.. = self.depth().saturating_sub(self.rx.len()) {
            let room = room.min(buf.len());
            let count = backend.read(&mut buf[..room]).min(room);
            self.rx.extend(buf[..count].iter().map(|byte| u16::from(*byte)));
            received |= count > 0;
            if count < room {
                break;
            }
        }
        if received {
            self.update_receive_interrupts();
        }
    }

    /// There is new input. Even if the FIFO is full and it has to wait, the guest is reminded: it may have cleared the interrupt
    /// without reading.
    pub(super) fn input_ready(&mut self, backend: &dyn CharBackend) {
        self.receive(backend);
        if self.receiving() {
            self.update_receive_interrupts();
        }
    }

    /// A break condition arrives: one zero with the break bit (3.3.1).
    pub(super) fn receive_break(&mut self) {
        if self.receiving() {
            self.ris |= INT_BE;
            self.push_received(DR_BE);
        }
    }

    /// A word that cannot wait for room: loopback or break.
    fn push_received(&mut self, word: u16) {
        if self.rx.len() < self.depth() {
            self.rx.push_back(word);
            self.update_receive_interrupts();
        } else {
            self.overrun = true;
            self.rsr |= RSR_OE;
            self.ris |= INT_OE;
        }
    }

    /// The receive interrupts after the FIFO has changed (2.8.2, 2.8.4). The timeout needs no clock: between two looks of the
    /// guest an unlimited time passes on a line without speed, so any rest in the FIFO is a rest that no more data follows.
    fn update_receive_interrupts(&mut self) {
        let level = if self.fifos_enabled() { trigger(self.ifls >> 3) } else { 1 };
        if self.rx.len() >= level {
            self.ris |= INT_RX;
        } else {
            self.ris &= !INT_RX;
        }
        if self.rx.is_empty() {
            self.ris &= !INT_RT;
        } else if self.fifos_enabled() {
            self.ris |= INT_RT;
        }
    }

    fn fifos_enabled(&self) -> bool {
        self.lcr_h & LCR_H_FEN != 0
    }

    /// How much each FIFO holds.
    fn depth(&self) -> usize {
        if self.fifos_enabled() { FIFO_DEPTH } else { 1 }
    }

    /// UART and receiver are on.
    fn enabled(&self) -> bool {
        self.cr & (CR_UARTEN | CR_RXE) == CR_UARTEN | CR_RXE
    }

    /// Input from outside is taken into the FIFO.
    fn receiving(&self) -> bool {
        self.enabled() && self.cr & CR_LBE == 0
    }

    /// The guest has set nothing up: input is handed out byte by byte as it reads.
    fn unconfigured(&self) -> bool {
        !self.configured
    }
}

/// The FIFO level that a 3-bit field of UARTIFLS selects (3.3.9): 1/8, 1/4, 1/2, 3/4 or 7/8. Reserved values act as 7/8.
fn trigger(field: u32) -> usize {
    match field & 7 {
        0 => FIFO_DEPTH / 8,
        1 => FIFO_DEPTH / 4,
        2 => FIFO_DEPTH / 2,
        3 => FIFO_DEPTH * 3 / 4,
        _ => FIFO_DEPTH * 7 / 8,
    }
}
