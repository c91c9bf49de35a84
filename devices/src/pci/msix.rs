//! MSI-X (PCI Local Bus 3.0, 6.8.2): vector table, pending bits and masking. Where a message goes is [`MsiSink`]'s affair, and
//! in which BARs table and pending bits lie the function's.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::msi::{MsiRoute, MsiSink};
use crate::util::lock;

/// Capability ID (PCI Local Bus 3.0, appendix H).
pub const CAPABILITY_ID: u8 = 0x11;
/// Most vectors a function can have (6.8.2.3).
pub const MAX_VECTORS: u16 = 2048;
/// Bytes of a table entry (6.8.2.6 to 6.8.2.9).
pub const ENTRY_SIZE: u64 = 16;
/// Offset of Message Control in the capability.
pub const CONTROL_OFFSET: u16 = 2;

/// Message Control: MSI-X enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message Control: function mask.
const CONTROL_MASK: u16 = 1 << 14;
/// Vector Control: this vector is masked.
const VECTOR_MASKED: u32 = 1;

/// What a snapshot keeps of MSI-X. Enable and function mask are in configuration space.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Four words an entry: address, upper address, data, vector control.
    pub table: Vec<[u32; 4]>,
    /// Which vectors are pending.
    pub pending: Vec<u64>,
}

/// A function's MSI-X table. Calls come from any thread; a message is sent before the call returns.
pub struct Msix {
    sink: Arc<dyn MsiSink>,
    vectors: u16,
    inner: Mutex<Inner>,
}

struct Inner {
    enabled: bool,
    function_masked: bool,
    entries: Vec<Entry>,
    /// One bit a vector.
    pending: Vec<u64>,
    bindings: Vec<Binding>,
}

/// An event that means a vector; see [`Msix::bind`].
struct Binding {
    vector: u16,
    event: OwnedFd,
    /// The message that it is now, if it is one.
    route: Option<(Entry, MsiRoute)>,
}

/// A table entry as it lies in the BAR.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    address: u32,
    address_high: u32,
    data: u32,
    control: u32,
}

/// Entries are masked after a reset (6.8.2.9).
const RESET_ENTRY: Entry = Entry { address: 0, address_high: 0, data: 0, control: VECTOR_MASKED };

impl Msix {
    /// A table of `vectors` (clamped to 1 to [`MAX_VECTORS`]) masked vectors, disabled.
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Self {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        Msix { sink, vectors, inner: Mutex::new(Inner::new(vectors)) }
    }

    /// How many vectors there are; the valid ones are below.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Bytes of the table.
    pub fn table_size(&self) -> u64 {
        u64::from(self.vectors) * ENTRY_SIZE
    }

    /// Bytes of the pending bit array: whole quadwords (6.8.2.10).
    pub fn pba_size(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }

    /// Body and write mask of the capability, with table and pending bits at (BAR, offset). Offsets are multiples of 8.
    pub fn capability(&self, table: (u8, u32), pba: (u8, u32)) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        let place = |(bar, offset): (u8, u32)| (offset & !7 | u32::from(bar & 7)).to_le_bytes();
        body[..2].copy_from_slice(&(self.vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&place(table));
        body[6..].copy_from_slice(&place(pba));
        (body, (CONTROL_ENABLE | CONTROL_MASK).to_le_bytes())
    }

    /// The guest has written Message Control. Whatever was pending and is unmasked now is sent.
    pub fn set_control(&self, control: u16) {
        let mut inner = lock(&self.inner);
        inner.enabled = control & CONTROL_ENABLE != 0;
        inner.function_masked = control & CONTROL_MASK != 0;
        inner.settle(self.sink.as_ref());
    }

    /// Whether the guest uses MSI-X rather than the interrupt pin.
    pub fn enabled(&self) -> bool {
        lock(&self.inner).enabled
    }

    /// Interrupts by `vector`: at once, or when it is unmasked; for a vector that is none, nothing happens. `false`: MSI-X is off, and
    /// the function is to use its pin.
    pub fn trigger(&self, vector: u16) -> bool {
        let mut inner = lock(&self.inner);
        inner.trigger(vector, self.sink.as_ref());
        inner.enabled
    }

    /// Has each signal of `event` be [`Msix::trigger`] of `vector`, past whoever waits on it, whenever the vector can be sent and there is a
    /// way; at other times, and where there is none, the one who waits has to trigger it. Until [`Msix::unbind_all`].
    pub fn bind(&self, vector: u16, event: BorrowedFd<'_>) {
        // Without a descriptor of our own, the one who waits has to do.
        let Ok(event) = event.try_clone_to_owned() else { return };
        let mut inner = lock(&self.inner);
        inner.bindings.push(Binding { vector, event, route: None });
        inner.settle(self.sink.as_ref());
    }

    /// No event is an interrupt any more.
    pub fn unbind_all(&self) {
        lock(&self.inner).bindings.clear();
    }

    /// The guest reads the table: doublewords and quadwords, aligned (6.8.2); others give zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !aligned(offset, data.len()) {
            return;
        }
        let inner = lock(&self.inner);
        for (index, chunk) in data.chunks_exact_mut(4).enumerate() {
            if let Some(word) = inner.word(offset / 4 + index as u64) {
                chunk.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// The guest writes the table (see [`Msix::read_table`]; other writes are ignored). Unmasking sends what was pending.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        let mut inner = lock(&self.inner);
        for (index, chunk) in data.chunks_exact(4).enumerate() {
            if let Ok(word) = chunk.try_into() {
                inner.set_word(offset / 4 + index as u64, u32::from_le_bytes(word));
            }
        }
        inner.settle(self.sink.as_ref());
    }

    /// The guest reads the pending bits. They cannot be written.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !aligned(offset, data.len()) {
            return;
        }
        let inner = lock(&self.inner);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let word = usize::try_from(at / 8).ok().and_then(|index| inner.pending.get(index));
            *byte = word.map_or(0, |word| word.to_le_bytes()[(at % 8) as usize]);
        }
    }

    /// Everything masked, nothing pending, disabled.
    pub fn reset(&self) {
        *lock(&self.inner) = Inner::new(self.vectors);
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> MsixState {
        let inner = lock(&self.inner);
        let words = |entry: &Entry| [entry.address, entry.address_high, entry.data, entry.control];
        MsixState { table: inner.entries.iter().map(words).collect(), pending: inner.pending.clone() }
    }

    /// Takes `state`, as far as there are vectors for it; whether MSI-X is enabled stays.
    pub fn restore(&self, state: &MsixState) {
        let mut inner = lock(&self.inner);
        for (entry, &[address, address_high, data, control]) in inner.entries.iter_mut().zip(&state.table) {
            let control = control & VECTOR_MASKED;
            *entry = Entry { address: address & !3, address_high, data, control };
        }
        for (word, saved) in inner.pending.iter_mut().zip(&state.pending) {
            *word = *saved;
        }
        inner.settle(self.sink.as_ref());
    }
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msix")
            .field("vectors", &self.vectors)
            .field("enabled", &self.enabled())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn new(vectors: u16) -> Self {
        Inner {
            enabled: false,
            function_masked: false,
            entries: vec![RESET_ENTRY; vectors.into()],
            pending: vec![0; usize::from(vectors).div_ceil(64)],
            bindings: Vec::new(),
        }
    }

    fn trigger(&mut self, vector: u16, sink: &dyn MsiSink) {
        let Some(entry) = self.entries.get(usize::from(vector)) else { return };
        if !self.enabled {
            return;
        }
        if self.function_masked || entry.control & VECTOR_MASKED != 0 {
            if let Some(word) = self.pending.get_mut(usize::from(vector / 64)) {
                *word |= 1 << (vector % 64);
            }
            return;
        }
        entry.send(sink);
    }

    /// What can be sent has changed.
    fn settle(&mut self, sink: &dyn MsiSink) {
        self.send_pending(sink);
        let sendable = self.enabled && !self.function_masked;
        for binding in &mut self.bindings {
            let entry = self.entries.get(usize::from(binding.vector));
            let entry = entry.filter(|entry| sendable && entry.control & VECTOR_MASKED == 0);
            if binding.route.as_ref().map(|(entry, _)| entry) == entry {
                continue;
            }
            // First, because an event has one route at a time.
            binding.route = None;
            binding.route = entry.and_then(|entry| {
                Some((*entry, sink.bind(entry.message_address(), entry.data, binding.event.as_fd())?))
            });
        }
    }

    /// Sends and clears what is pending and not masked.
    fn send_pending(&mut self, sink: &dyn MsiSink) {
        if !self.enabled || self.function_masked || self.pending.iter().all(|word| *word == 0) {
            return;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(word) = self.pending.get_mut(index / 64) else { return };
            let bit = 1 << (index % 64);
            if *word & bit != 0 && entry.control & VECTOR_MASKED == 0 {
                *word &= !bit;
                entry.send(sink);
            }
        }
    }

    /// Word `index` of the table.
    fn word(&self, index: u64) -> Option<u32> {
        let entry = self.entries.get(usize::try_from(index / 4).ok()?)?;
        Some([entry.address, entry.address_high, entry.data, entry.control][(index % 4) as usize])
    }

    fn set_word(&mut self, index: u64, word: u32) {
        let entry = usize::try_from(index / 4).ok().and_then(|index| self.entries.get_mut(index));
        let Some(entry) = entry else { return };
        match index % 4 {
            // Messages are doublewords: the address is aligned (6.8.2.6).
            0 => entry.address = word & !3,
            1 => entry.address_high = word,
            2 => entry.data = word,
            _ => entry.control = word & VECTOR_MASKED,
        }
    }
}

impl Entry {
    fn message_address(&self) -> u64 {
        u64::from(self.address_high) << 32 | u64::from(self.address)
    }

    fn send(&self, sink: &dyn MsiSink) {
        sink.send(self.message_address(), self.data);
    }
}

/// Whether an access to table or pending bits is one that there is.
fn aligned(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

#[cfg(test)]
mod tests {
    use hvrun_arch::aarch64::layout::Window;

    use super::*;
    use crate::irq::fake::FakeChip;
    use crate::pci::msi::MsiPort;
    use crate::pci::msi::fake::{Fds, Messages};

    const ENABLE: u16 = CONTROL_ENABLE;
    const ENABLE_MASKED: u16 = CONTROL_ENABLE | CONTROL_MASK;

    fn msix(vectors: u16) -> (Arc<Messages>, Msix) {
        let sink = Arc::new(Messages::default());
        (sink.clone(), Msix::new(vectors, sink))
    }

    /// Gives `vector` a message of its own, unmasked.
    fn program(msix: &Msix, vector: u16) {
        let base = u64::from(vector) * ENTRY_SIZE;
        msix.write_table(base, &0x0802_0040_u64.to_le_bytes());
        msix.write_table(base + 8, &u64::from(80 + vector).to_le_bytes());
    }

    fn pending(msix: &Msix) -> u64 {
        let mut bits = [0; 8];
        msix.read_pba(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    #[test]
    fn an_unmasked_vector_sends_its_message() {
        let (sink, msix) = msix(2);
        msix.set_control(ENABLE);
        program(&msix, 1);
        msix.trigger(1);
        assert_eq!(sink.all(), [(0x0802_0040, 81)]);
    }

    #[test]
    fn nothing_is_sent_while_disabled() {
        let (sink, msix) = msix(1);
        program(&msix, 0);
        msix.trigger(0);
        msix.set_control(ENABLE);
        assert!(sink.all().is_empty());
    }

    #[test]
    fn vectors_are_masked_after_reset() {
        let (sink, msix) = msix(1);
        msix.set_control(ENABLE);
        program(&msix, 0);
        msix.reset();
        msix.set_control(ENABLE);
        msix.trigger(0);
        assert_eq!((sink.all().len(), pending(&msix)), (0, 1));
    }

    #[test]
    fn a_masked_vectors_message_is_sent_once_when_it_is_unmasked() {
        let (sink, msix) = msix(3);
        msix.set_control(ENABLE);
        program(&msix, 2);
        msix.write_table(2 * ENTRY_SIZE + 12, &1_u32.to_le_bytes());
        msix.trigger(2);
        msix.trigger(2);
        assert_eq!((sink.all().len(), pending(&msix)), (0, 4));
        msix.write_table(2 * ENTRY_SIZE + 12, &0_u32.to_le_bytes());
        assert_eq!((sink.all(), pending(&msix)), (vec![(0x0802_0040, 82)], 0));
    }

    #[test]
    fn the_function_mask_holds_every_vector_back() {
        let (sink, msix) = msix(2);
        msix.set_control(ENABLE_MASKED);
        program(&msix, 0);
        program(&msix, 1);
        msix.trigger(0);
        msix.trigger(1);
        assert_eq!((sink.all().len(), pending(&msix)), (0, 3));
        msix.set_control(ENABLE);
        assert_eq!((sink.all(), pending(&msix)), (vec![(0x0802_0040, 80), (0x0802_0040, 81)], 0));
    }

    #[test]
    fn a_vector_that_is_none_does_nothing() {
        let (sink, msix) = msix(2);
        msix.set_control(ENABLE);
        msix.trigger(2);
        msix.trigger(u16::MAX);
        assert_eq!((sink.all().len(), pending(&msix)), (0, 0));
    }

    #[test]
    fn table_accesses_beyond_the_last_vector_do_nothing() {
        let (_, msix) = msix(1);
        let before = msix.state();
        msix.write_table(16, &[0xff; 8]);
        msix.write_table(u64::MAX - 7, &[0xff; 8]);
        let mut data = [0xaa; 8];
        msix.read_table(u64::MAX - 7, &mut data);
        assert_eq!((msix.state(), data), (before, [0; 8]));
    }

    #[test]
    fn bytes_and_unaligned_accesses_of_the_table_do_nothing() {
        let (_, msix) = msix(1);
        let before = msix.state();
        msix.write_table(0, &[0xff]);
        msix.write_table(2, &[0xff; 4]);
        msix.write_table(4, &[0xff; 8]);
        assert_eq!(msix.state(), before);
    }

    #[test]
    fn only_the_mask_bit_of_vector_control_is_kept() {
        let (_, msix) = msix(1);
        msix.write_table(12, &[0xff; 4]);
        assert_eq!(msix.state().table[0][3], 1);
    }

    #[test]
    fn pending_bits_of_many_vectors_are_in_their_words() {
        let (_, msix) = msix(130);
        msix.set_control(ENABLE);
        msix.trigger(64);
        msix.trigger(129);
        let read = |offset| {
            let mut bits = [0; 4];
            msix.read_pba(offset, &mut bits);
            u32::from_le_bytes(bits)
        };
        assert_eq!([read(0), read(8), read(16), read(24)], [0, 1, 2, 0]);
        assert_eq!(msix.pba_size(), 24);
    }

    #[test]
    fn a_bound_event_is_an_interrupt_only_while_its_vector_can_be_sent() {
        let fds = Arc::new(Fds::default());
        let v2m = Window::new(0x0802_0000, 0x1000);
        let port = MsiPort::new(Arc::new(FakeChip::default()), Some(fds.clone()), v2m);
        let msix = Msix::new(2, Arc::new(port));
        let spis = || fds.spis().iter().map(|spi| spi.0).collect::<Vec<u32>>();
        let event = crate::sys::Event::new().unwrap();
        program(&msix, 1);
        msix.bind(1, event.as_fd());
        assert_eq!(spis(), [] as [u32; 0], "MSI-X is off");
        msix.set_control(ENABLE);
        assert_eq!(spis(), [49]);
        msix.write_table(ENTRY_SIZE + 12, &1_u32.to_le_bytes());
        assert_eq!(spis(), [] as [u32; 0], "the vector is masked");
        msix.write_table(ENTRY_SIZE + 8, &82_u64.to_le_bytes());
        assert_eq!(spis(), [50], "it has another message");
        msix.set_control(ENABLE_MASKED);
        assert_eq!(spis(), [] as [u32; 0], "the function is masked");
        msix.set_control(ENABLE);
        msix.unbind_all();
        assert_eq!(spis(), [] as [u32; 0], "it is bound no longer");
    }

    #[test]
    fn the_capability_names_size_and_places() {
        let (_, msix) = msix(3);
        let (body, mask) = msix.capability((1, 0), (1, 0x800));
        assert_eq!(body, [2, 0, 1, 0, 0, 0, 1, 8, 0, 0]);
        assert_eq!(mask, [0, 0xc0]);
    }

    #[test]
    fn a_restored_table_sends_what_was_pending() {
        let (_, msix) = msix(2);
        msix.set_control(ENABLE_MASKED);
        program(&msix, 1);
        msix.trigger(1);
        let json = serde_json::to_string(&msix.state()).unwrap();
        let (sink, other) = self::msix(2);
        other.restore(&serde_json::from_str(&json).unwrap());
        assert!(sink.all().is_empty());
        other.set_control(ENABLE);
        assert_eq!(sink.all(), [(0x0802_0040, 81)]);
    }
}
