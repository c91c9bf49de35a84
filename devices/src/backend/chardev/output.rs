//! The output half of a stream: a bounded buffer between a device that may not block and one thread that may.
//!
//! It knows no descriptor; the thread drains whatever has gathered. Knows nothing of input.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::util::lock;

/// Bytes that may wait. Twice this much is held at most: one buffer fills while the other is written.
pub(super) const CAPACITY: usize = 32 * 1024;

/// How long the writer lets output gather after a write. The first byte after a pause goes out at once; the ones that follow
/// share a system call, and the device need not wake anybody for them.
const LINGER: Duration = Duration::from_millis(1);

/// A buffer this full is written without lingering.
const URGENT: usize = CAPACITY / 2;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Output {
    state: Mutex<State>,
    /// The writer waits on it.
    filled: Condvar,
    /// Those who flush wait on it.
    drained: Condvar,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    /// The writer has taken bytes that have not left yet.
    in_flight: bool,
    /// The writer sleeps without a deadline and must be woken.
    idle: bool,
    /// A write found no room; the device waits to hear of some.
    starved: bool,
    /// How many threads wait for the buffer to drain.
    flushing: usize,
    /// Nothing comes after what is in the buffer.
    closed: bool,
}

/// What [`Output::take`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Bytes to write. `starved`: a device waits for room, and there is some now.
    Bytes { starved: bool },
    /// The output was closed and everything is written.
    Closed,
}

impl Output {
    /// Takes the first bytes of `data`, as many as there is room for.
    pub(super) fn push(&self, data: &[u8]) -> usize {
        let mut state = lock(&self.state);
        let before = state.buffer.len();
        let taken = data.len().min(CAPACITY.saturating_sub(before));
        state.buffer.extend_from_slice(&data[..taken]);
        state.starved |= taken < data.len();
        let urgent = before < URGENT && state.buffer.len() >= URGENT;
        if taken > 0 && (state.idle || urgent) {
            state.idle = false;
            self.filled.notify_one();
        }
        taken
    }

    /// The writer's wait: returns when there is something to write, with `chunk` (which must be empty) exchanged for it.
    /// What the previous call handed out counts as written.
    pub(super) fn take(&self, chunk: &mut Vec<u8>) -> Taken {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.in_flight) {
            if state.buffer.is_empty() {
                self.drained.notify_all();
            }
            let deadline = Instant::now() + LINGER;
            while !(state.closed || state.flushing > 0 || state.buffer.len() >= URGENT) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                state = waited.0;
            }
        }
        while state.buffer.is_empty() {
            if state.closed {
                return Taken::Closed;
            }
            state.idle = true;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        state.in_flight = true;
        std::mem::swap(&mut state.buffer, chunk);
        Taken::Bytes { starved: std::mem::take(&mut state.starved) }
    }

    /// Waits until everything pushed so far has been written; says whether it was within `timeout`.
    pub(super) fn flush(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = lock(&self.state);
        state.flushing += 1;
        self.filled.notify_one();
        while !state.buffer.is_empty() || state.in_flight {
            state = match deadline {
                None => self.drained.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.drained.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.flushing -= 1;
        state.buffer.is_empty() && !state.in_flight
    }

    /// Lets the writer end once the buffer is empty.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_takes_no_more_than_the_capacity() {
        let output = Output::default();
        assert_eq!(output.push(&vec![1; CAPACITY + 100]), CAPACITY);
        assert_eq!(output.push(&[2]), 0);
    }

    #[test]
    fn take_tells_that_a_device_waits_for_room() {
        let output = Output::default();
        output.push(&vec![1; CAPACITY + 1]);
        assert_eq!(output.take(&mut Vec::new()), Taken::Bytes { starved: true });
    }

    #[test]
    fn what_is_in_the_buffer_at_closing_is_still_taken() {
        let output = Output::default();
        output.push(b"last words");
        output.close();
        let mut chunk = Vec::new();
        assert_eq!(output.take(&mut chunk), Taken::Bytes { starved: false });
        assert_eq!(chunk, b"last words");
        chunk.clear();
        assert_eq!(output.take(&mut chunk), Taken::Closed);
    }

    #[test]
    fn flush_waits_for_bytes_that_the_writer_has_taken() {
        let output = Output::default();
        output.push(b"x");
        output.take(&mut Vec::new());
        assert!(!output.flush(Some(Duration::ZERO)));
    }

    #[test]
    fn flush_of_nothing_returns_at_once() {
        assert!(Output::default().flush(None));
    }
}
