//! The PL011's registers and bits, named as in ARM DDI 0183 (revision r1p5) chapter 3. No behaviour.

/// UARTDR: data (3.3.1).
pub(crate) const DR: u64 = 0x000;
/// UARTRSR/UARTECR: receive status, error clear (3.3.2).
pub(crate) const RSR: u64 = 0x004;
/// UARTFR: flags (3.3.3).
pub(crate) const FR: u64 = 0x018;
/// UARTILPR: IrDA low-power counter (3.3.4).
pub(crate) const ILPR: u64 = 0x020;
/// UARTIBRD: integer baud rate divisor (3.3.5).
pub(crate) const IBRD: u64 = 0x024;
/// UARTFBRD: fractional baud rate divisor (3.3.6).
pub(crate) const FBRD: u64 = 0x028;
/// UARTLCR_H: line control (3.3.7).
pub(crate) const LCR_H: u64 = 0x02c;
/// UARTCR: control (3.3.8).
pub(crate) const CR: u64 = 0x030;
/// UARTIFLS: interrupt FIFO levels (3.3.9).
pub(crate) const IFLS: u64 = 0x034;
/// UARTIMSC: interrupt mask (3.3.10).
pub(crate) const IMSC: u64 = 0x038;
/// UARTRIS: raw interrupt status (3.3.11).
pub(crate) const RIS: u64 = 0x03c;
/// UARTMIS: masked interrupt status (3.3.12).
pub(crate) const MIS: u64 = 0x040;
/// UARTICR: interrupt clear (3.3.13).
pub(crate) const ICR: u64 = 0x044;
/// UARTDMACR: DMA control (3.3.14).
pub(crate) const DMACR: u64 = 0x048;

/// PeriphID0 to 3 of revision r1p5, the one with 32-byte FIFOs (3.3.15).
pub(crate) const PERIPH_ID: u32 = 0x0034_1011;

/// Depth of each FIFO when it is enabled.
pub(crate) const FIFO_DEPTH: usize = 32;

/// Break error, in a received word (UARTDR, 3.3.1).
pub(crate) const DR_BE: u16 = 1 << 10;
/// Overrun error, in a received word.
pub(crate) const DR_OE: u16 = 1 << 11;

/// Overrun in UARTRSR (3.3.2); the lower three bits are those of the word last read.
pub(crate) const RSR_OE: u32 = 1 << 3;

/// Clear to send (UARTFR, 3.3.3).
pub(crate) const FR_CTS: u32 = 1 << 0;
/// Data set ready.
pub(crate) const FR_DSR: u32 = 1 << 1;
/// Data carrier detect.
pub(crate) const FR_DCD: u32 = 1 << 2;
/// Transmitting.
pub(crate) const FR_BUSY: u32 = 1 << 3;
/// Receive FIFO empty.
pub(crate) const FR_RXFE: u32 = 1 << 4;
/// Transmit FIFO full.
pub(crate) const FR_TXFF: u32 = 1 << 5;
/// Receive FIFO full.
pub(crate) const FR_RXFF: u32 = 1 << 6;
/// Transmit FIFO empty.
pub(crate) const FR_TXFE: u32 = 1 << 7;
/// Ring indicator.
pub(crate) const FR_RI: u32 = 1 << 8;

/// Enable FIFOs (UARTLCR_H, 3.3.7).
pub(crate) const LCR_H_FEN: u32 = 1 << 4;

/// UART enable (UARTCR, 3.3.8).
pub(crate) const CR_UARTEN: u32 = 1 << 0;
/// Loopback enable.
pub(crate) const CR_LBE: u32 = 1 << 7;
/// Transmit enable.
pub(crate) const CR_TXE: u32 = 1 << 8;
/// Receive enable.
pub(crate) const CR_RXE: u32 = 1 << 9;
/// Data transmit ready; loops back to DSR.
pub(crate) const CR_DTR: u32 = 1 << 10;
/// Request to send; loops back to CTS.
pub(crate) const CR_RTS: u32 = 1 << 11;
/// Complement of Out1; loops back to DCD.
pub(crate) const CR_OUT1: u32 = 1 << 12;
/// Complement of Out2; loops back to RI.
pub(crate) const CR_OUT2: u32 = 1 << 13;
/// Every bit that is not reserved.
pub(crate) const CR_MASK: u32 = 0xff87;
/// Value after reset.
pub(crate) const CR_RESET: u32 = CR_TXE | CR_RXE;

/// Value of UARTIFLS after reset: both FIFOs at one half.
pub(crate) const IFLS_RESET: u32 = 0x12;

/// Modem interrupts by their bit in UARTRIS and the line in UARTFR they watch (3.3.11, 3.3.3).
pub(crate) const MODEM: [(u32, u32); 4] =
    [(1 << 0, FR_RI), (1 << 1, FR_CTS), (1 << 2, FR_DCD), (1 << 3, FR_DSR)];
/// Receive interrupt (3.3.11).
pub(crate) const INT_RX: u32 = 1 << 4;
/// Transmit interrupt.
pub(crate) const INT_TX: u32 = 1 << 5;
/// Receive timeout interrupt.
pub(crate) const INT_RT: u32 = 1 << 6;
/// Break error interrupt.
pub(crate) const INT_BE: u32 = 1 << 9;
/// Overrun error interrupt.
pub(crate) const INT_OE: u32 = 1 << 10;
/// All interrupts.
pub(crate) const INT_MASK: u32 = 0x7ff;
