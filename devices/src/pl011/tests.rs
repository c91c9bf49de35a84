//! The PL011 as a driver sees it, with a far end that the test moves by hand.

use std::collections::VecDeque;

use super::regs::*;
use super::*;
use crate::irq::fake::FakeChip;

/// A far end with as much room as the test gives it.
#[derive(Debug, Default)]
struct FarEnd(Mutex<Ends>);

#[derive(Debug)]
struct Ends {
    input: VecDeque<u8>,
    output: Vec<u8>,
    room: usize,
    retries: usize,
}

impl Default for Ends {
    fn default() -> Self {
        Ends { input: VecDeque::new(), output: Vec::new(), room: usize::MAX, retries: 0 }
    }
}

impl CharBackend for FarEnd {
    fn attach(&self, _frontend: Weak<dyn CharFrontend>) {}

    fn write(&self, data: &[u8]) -> usize {
        let mut ends = lock(&self.0);
        let count = data.len().min(ends.room);
        ends.room -= count;
        ends.output.extend(&data[..count]);
        count
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        let mut ends = lock(&self.0);
        let count = buf.len().min(ends.input.len());
        for (slot, byte) in buf.iter_mut().zip(ends.input.drain(..count)) {
            *slot = byte;
        }
        count
    }

    fn has_input(&self) -> bool {
        !lock(&self.0).input.is_empty()
    }

    fn retry_input(&self, _after: Duration) {
        lock(&self.0).retries += 1;
    }

    fn flush(&self, _timeout: Option<Duration>) -> bool {
        true
    }
}

struct Bench {
    uart: Arc<Pl011>,
    far: Arc<FarEnd>,
    chip: Arc<FakeChip>,
}

impl Bench {
    /// A UART as after reset.
    fn new() -> Bench {
        let (chip, line) = FakeChip::line();
        let far = Arc::new(FarEnd::default());
        Bench { uart: Pl011::new(line, far.clone()), far, chip }
    }

    /// A UART as Linux leaves it: FIFOs and receive interrupts on.
    fn linux() -> Bench {
        let bench = Bench::new();
        bench.write(LCR_H, 0x70);
        bench.write(CR, CR_UARTEN | CR_TXE | CR_RXE | CR_DTR | CR_RTS);
        bench.write(IMSC, INT_RX | INT_RT);
        bench
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        MmioDevice::read(&*self.uart, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        MmioDevice::write(&*self.uart, offset, &value.to_le_bytes());
    }

    fn flag(&self, flag: u32) -> bool {
        self.read(FR) & flag != 0
    }

    /// Somebody types.
    fn send(&self, data: &[u8]) {
        lock(&self.far.0).input.extend(data);
        self.uart.input_ready();
    }

    fn set_room(&self, room: usize) {
        lock(&self.far.0).room = room;
    }

    fn output(&self) -> Vec<u8> {
        lock(&self.far.0).output.clone()
    }

    /// Reads as a driver does: until the FIFO says that it is empty.
    fn drain(&self) -> Vec<u8> {
        let mut data = Vec::new();
        while !self.flag(FR_RXFE) {
            data.push(self.read(DR) as u8);
        }
        data
    }
}

#[test]
fn registers_have_their_reset_values() {
    let bench = Bench::new();
    assert_eq!(bench.read(FR) & 0xf8, FR_TXFE | FR_RXFE);
    assert_eq!((bench.read(CR), bench.read(IFLS), bench.read(IMSC)), (0x300, 0x12, 0));
    assert_eq!((bench.read(RIS), bench.read(LCR_H), bench.read(RSR)), (0, 0, 0));
}

#[test]
fn the_ids_are_those_of_revision_r1p5() {
    let bench = Bench::new();
    let id = (0..4).fold(0, |id, i| id | bench.read(0xfe0 + 4 * i) << (8 * i));
    let cell = (0..4).fold(0, |id, i| id | bench.read(0xff0 + 4 * i) << (8 * i));
    assert_eq!((id, cell), (0x0034_1011, 0xb105_f00d));
}

#[test]
fn plain_registers_keep_their_implemented_bits() {
    let bench = Bench::new();
    for (register, mask) in [(ILPR, 0xff), (IBRD, 0xffff), (FBRD, 0x3f), (LCR_H, 0xff), (DMACR, 7)] {
        bench.write(register, u32::MAX);
        assert_eq!(bench.read(register), mask, "register {register:#x}");
    }
}

#[test]
fn an_early_console_prints_without_any_set_up() {
    let bench = Bench::new();
    bench.write(DR, b'A'.into());
    assert_eq!(bench.output(), b"A");
    assert!(bench.flag(FR_TXFE) && !bench.flag(FR_BUSY));
}

#[test]
fn byte_and_halfword_accesses_reach_the_data_register() {
    let bench = Bench::new();
    MmioDevice::write(&*bench.uart, DR, b"A");
    MmioDevice::write(&*bench.uart, DR, &[b'B', 0]);
    assert_eq!(bench.output(), b"AB");
}

#[test]
fn accesses_beside_a_registers_first_byte_do_nothing() {
    let bench = Bench::new();
    MmioDevice::write(&*bench.uart, DR + 1, b"A");
    assert!(bench.output().is_empty());
}

#[test]
fn a_guest_that_only_polls_gets_its_input() {
    let bench = Bench::new();
    bench.send(b"hi");
    assert_eq!(bench.drain(), b"hi");
}

#[test]
fn a_stuck_consumer_fills_the_fifo_and_then_raises_txff() {
    let bench = Bench::linux();
    bench.set_room(0);
    for _ in 0..FIFO_DEPTH - 1 {
        bench.write(DR, b'x'.into());
    }
    assert!(!bench.flag(FR_TXFF));
    bench.write(DR, b'x'.into());
    assert!(bench.flag(FR_TXFF) && bench.flag(FR_BUSY) && !bench.flag(FR_TXFE));
}

#[test]
fn without_fifos_one_byte_makes_the_transmitter_full() {
    let bench = Bench::new();
    bench.set_room(0);
    bench.write(DR, b'x'.into());
    assert!(bench.flag(FR_TXFF));
}

#[test]
fn waiting_output_leaves_in_order_when_there_is_room_again() {
    let bench = Bench::linux();
    bench.set_room(1);
    for byte in *b"abcd" {
        bench.write(DR, byte.into());
    }
    bench.set_room(2);
    bench.uart.output_ready();
    bench.set_room(usize::MAX);
    bench.uart.output_ready();
    assert_eq!(bench.output(), b"abcd");
    assert!(bench.flag(FR_TXFE) && !bench.flag(FR_BUSY));
}

#[test]
fn the_transmit_interrupt_is_not_set_before_anything_was_written() {
    let bench = Bench::linux();
    bench.write(IMSC, INT_TX);
    assert_eq!(bench.read(RIS) & INT_TX, 0);
}

#[test]
fn a_byte_that_leaves_at_once_sets_the_transmit_interrupt() {
    let bench = Bench::linux();
    bench.write(IMSC, INT_TX);
    bench.write(DR, b'x'.into());
    assert!(bench.chip.level());
}

#[test]
fn filling_above_the_trigger_clears_the_transmit_interrupt() {
    let bench = Bench::linux();
    bench.write(IMSC, INT_TX);
    bench.set_room(0);
    for _ in 0..FIFO_DEPTH / 2 {
        bench.write(DR, b'x'.into());
    }
    assert!(bench.chip.level());
    bench.write(DR, b'x'.into());
    assert!(!bench.chip.level());
}

#[test]
fn draining_to_the_trigger_sets_the_transmit_interrupt_and_no_earlier() {
    let bench = Bench::linux();
    bench.write(IMSC, INT_TX);
    bench.set_room(0);
    for _ in 0..FIFO_DEPTH {
        bench.write(DR, b'x'.into());
    }
    bench.set_room(FIFO_DEPTH / 2 - 1);
    bench.uart.output_ready();
    assert!(!bench.chip.level());
    bench.set_room(1);
    bench.uart.output_ready();
    assert!(bench.chip.level());
}

#[test]
fn a_cleared_transmit_interrupt_stays_clear_until_the_next_write() {
    let bench = Bench::linux();
    bench.write(IMSC, INT_TX);
    bench.write(DR, b'x'.into());
    bench.write(ICR, INT_TX);
    bench.uart.output_ready();
    assert!(!bench.chip.level());
}

#[test]
fn a_write_to_a_full_fifo_is_dropped_and_the_rest_survives() {
    let bench = Bench::linux();
    bench.set_room(0);
    for byte in 0..=FIFO_DEPTH as u32 {
        bench.write(DR, byte);
    }
    bench.set_room(usize::MAX);
    bench.uart.output_ready();
    assert_eq!(bench.output(), (0..FIFO_DEPTH as u8).collect::<Vec<_>>());
}

#[test]
fn input_below_the_trigger_raises_the_receive_timeout() {
    let bench = Bench::linux();
    bench.send(b"x");
    assert_eq!(bench.read(MIS), INT_RT);
    assert!(bench.chip.level());
}

#[test]
fn input_at_the_trigger_raises_the_receive_interrupt() {
    let bench = Bench::linux();
    bench.send(&[b'x'; FIFO_DEPTH / 2]);
    assert_ne!(bench.read(MIS) & INT_RX, 0);
}

#[test]
fn the_trigger_follows_ifls() {
    let bench = Bench::linux();
    bench.write(IFLS, 0);
    bench.send(&[b'x'; 3]);
    assert_eq!(bench.read(RIS) & INT_RX, 0);
    bench.send(b"x");
    assert_ne!(bench.read(RIS) & INT_RX, 0);
}

#[test]
fn without_fifos_every_byte_raises_the_receive_interrupt() {
    let bench = Bench::linux();
    bench.write(LCR_H, 0x60);
    bench.send(b"x");
    assert_eq!(bench.read(MIS), INT_RX);
}

#[test]
fn reading_everything_lowers_the_line() {
    let bench = Bench::linux();
    bench.send(&[b'x'; 40]);
    assert_eq!(bench.drain().len(), 40);
    assert_eq!(bench.read(RIS) & (INT_RX | INT_RT), 0);
    assert!(!bench.chip.level());
}

#[test]
fn a_rest_below_the_trigger_keeps_the_line_high() {
    let bench = Bench::linux();
    bench.send(&[b'x'; FIFO_DEPTH / 2]);
    bench.read(DR);
    assert_eq!(bench.read(MIS), INT_RT);
}

#[test]
fn input_beyond_the_fifo_waits_in_the_backend() {
    let bench = Bench::linux();
    bench.send(&[b'x'; 100]);
    assert!(bench.flag(FR_RXFF));
    assert_eq!(lock(&bench.far.0).input.len(), 100 - FIFO_DEPTH);
    assert_eq!(bench.read(RIS) & INT_OE, 0);
}

#[test]
fn reading_refills_the_fifo_in_order() {
    let bench = Bench::linux();
    let data: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    bench.send(&data);
    assert_eq!(bench.drain(), data);
}

#[test]
fn new_input_reminds_a_guest_that_cleared_the_interrupt_unread() {
    let bench = Bench::linux();
    bench.send(&[b'x'; FIFO_DEPTH]);
    bench.write(ICR, INT_RX | INT_RT);
    assert!(!bench.chip.level());
    bench.send(b"y");
    assert!(bench.chip.level());
}

#[test]
fn a_disabled_receiver_leaves_input_in_the_backend() {
    let bench = Bench::linux();
    bench.write(CR, CR_UARTEN | CR_TXE);
    bench.send(b"later");
    assert!(bench.flag(FR_RXFE));
    assert_eq!(lock(&bench.far.0).input.len(), 5);
}

#[test]
fn input_typed_before_linux_opens_the_port_survives_its_draining() {
    let bench = Bench::new();
    bench.send(b"early");
    bench.write(LCR_H, 0x70);
    bench.write(IMSC, INT_RX | INT_RT);
    bench.write(CR, CR_UARTEN | CR_TXE | CR_RXE);
    bench.write(ICR, INT_RX | INT_RT);
    assert!(bench.drain().is_empty());
    bench.write(IMSC, INT_RX | INT_RT);
    assert_eq!(bench.drain(), b"early");
}

#[test]
fn enabling_the_receiver_asks_the_backend_to_come_back() {
    let bench = Bench::new();
    bench.write(CR, CR_UARTEN | CR_RXE);
    assert_eq!(lock(&bench.far.0).retries, 1);
}

#[test]
fn a_polling_guest_with_set_up_gets_its_input_after_the_silence() {
    let bench = Bench::new();
    bench.write(CR, CR_UARTEN | CR_RXE);
    bench.send(b"z");
    assert!(bench.flag(FR_RXFE));
    bench.uart.input_retry();
    assert_eq!(bench.drain(), b"z");
}

#[test]
fn toggling_the_fifos_empties_the_receiver() {
    let bench = Bench::linux();
    bench.send(b"abc");
    bench.write(LCR_H, 0x60);
    assert!(bench.flag(FR_RXFE));
    assert!(!bench.chip.level());
}

#[test]
fn loopback_returns_output_as_input_and_sends_nothing() {
    let bench = Bench::linux();
    bench.write(CR, CR_UARTEN | CR_TXE | CR_RXE | CR_LBE);
    bench.write(DR, b'L'.into());
    assert_eq!(bench.read(DR), u32::from(b'L'));
    assert!(bench.output().is_empty());
}

#[test]
fn loopback_keeps_outside_input_out() {
    let bench = Bench::linux();
    bench.write(CR, CR_UARTEN | CR_TXE | CR_RXE | CR_LBE);
    bench.send(b"outside");
    assert!(bench.flag(FR_RXFE));
}

#[test]
fn loopback_turns_modem_outputs_into_inputs() {
    let bench = Bench::new();
    bench.write(CR, CR_LBE | CR_RTS | CR_OUT2);
    assert_eq!(bench.read(FR) & (FR_CTS | FR_DSR | FR_DCD | FR_RI), FR_CTS | FR_RI);
    assert_eq!(bench.read(RIS) & 0xf, 0b1101);
}

#[test]
fn an_overrun_is_flagged_in_every_place_and_cleared_by_ecr() {
    let bench = Bench::linux();
    bench.write(CR, CR_UARTEN | CR_RXE | CR_LBE);
    for _ in 0..=FIFO_DEPTH {
        bench.write(DR, b'x'.into());
    }
    assert_ne!(bench.read(RIS) & INT_OE, 0);
    assert_eq!(bench.read(DR), u32::from(b'x') | u32::from(DR_OE));
    assert_ne!(bench.read(RSR) & RSR_OE, 0);
    bench.write(RSR, 0);
    assert_eq!(bench.read(RSR), 0);
}

#[test]
fn a_break_arrives_as_a_zero_with_its_error_bit() {
    let bench = Bench::linux();
    bench.write(IMSC, INT_BE);
    bench.uart.receive_break();
    assert!(bench.chip.level());
    assert_eq!(bench.read(DR), u32::from(DR_BE));
    assert_eq!(bench.read(RSR), u32::from(DR_BE >> 8));
}

#[test]
fn masked_interrupts_leave_the_line_low() {
    let bench = Bench::linux();
    bench.write(IMSC, 0);
    bench.send(b"x");
    assert_eq!((bench.read(RIS), bench.read(MIS)), (INT_RT, 0));
    assert!(!bench.chip.level());
}

#[test]
fn reset_restores_registers_and_lowers_the_line() {
    let bench = Bench::linux();
    bench.send(b"x");
    bench.uart.reset();
    assert_eq!((bench.read(CR), bench.read(IMSC), bench.read(RIS)), (0x300, 0, 0));
    assert!(!bench.chip.level());
}

#[test]
fn reset_loses_no_output() {
    let bench = Bench::linux();
    bench.set_room(0);
    bench.write(DR, b'!'.into());
    bench.uart.reset();
    bench.set_room(1);
    bench.uart.output_ready();
    assert_eq!(bench.output(), b"!");
}

#[test]
fn flush_moves_the_fifo_out() {
    let bench = Bench::linux();
    bench.set_room(0);
    bench.write(DR, b'!'.into());
    bench.set_room(1);
    assert!(bench.uart.flush(None));
    assert_eq!(bench.output(), b"!");
}

#[test]
fn a_restored_uart_goes_on_where_the_saved_one_stopped() {
    let bench = Bench::linux();
    bench.send(b"abc");
    bench.set_room(0);
    bench.write(DR, b'!'.into());
    let saved = serde_json::to_string(&bench.uart.save()).unwrap();
    let other = Bench::new();
    other.uart.restore(&serde_json::from_str(&saved).unwrap());
    assert!(other.chip.level());
    assert_eq!((other.drain(), other.output()), (b"abc".to_vec(), b"!".to_vec()));
}

#[test]
fn a_hostile_saved_state_is_cut_to_size() {
    let bench = Bench::new();
    let state = Pl011State {
        rx: vec![u16::MAX; 5000],
        tx: vec![0; 5000],
        cr: u32::MAX,
        imsc: u32::MAX,
        ifls: u32::MAX,
        ..bench.uart.save()
    };
    bench.set_room(0);
    bench.uart.restore(&state);
    let saved = bench.uart.save();
    assert_eq!((saved.rx.len(), saved.tx.len(), saved.rx[0]), (FIFO_DEPTH, FIFO_DEPTH, 0xfff));
    assert_eq!((saved.cr, saved.imsc, saved.ifls), (CR_MASK, INT_MASK, 0x3f));
}

#[test]
fn every_offset_and_width_is_harmless() {
    let bench = Bench::new();
    for offset in 0..Pl011::SIZE {
        for width in [1, 2, 4, 8] {
            MmioDevice::write(&*bench.uart, offset, &[0xff; 8][..width]);
            MmioDevice::read(&*bench.uart, offset, &mut [0; 8][..width]);
        }
    }
    bench.uart.reset();
    assert_eq!(bench.read(CR), 0x300);
}
