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
    /// What is in the buffer shall not linger.
    urgent: bool,
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

/// The short way out: a sink that can be asked not to block.
pub(super) trait Direct: Send + Sync {
    /// Writes the first bytes of `data`, as many as go without blocking, and says how many. What can never be written counts as
    /// written.
    fn try_write(&self, data: &[u8]) -> usize;
}

impl Output {
    /// Takes the first bytes of `data`, as many as there is room for.
    pub(super) fn push(&self, data: &[u8]) -> usize {
        self.gather(&mut lock(&self.state), data, false)
    }

    /// Like [`Output::push`], but without the writer's thread if nothing waits for it and `direct` takes the bytes.
    pub(super) fn send(&self, data: &[u8], direct: &dyn Direct) -> usize {
        let mut state = lock(&self.state);
        let sent = if state.buffer.is_empty() && !state.in_flight { direct.try_write(data) } else { 0 };
        match data.get(sent..) {
            Some(rest) if !rest.is_empty() => sent + self.gather(&mut state, rest, true),
            _ => data.len(),
        }
    }

    fn gather(&self, state: &mut State, data: &[u8], urgent: bool) -> usize {
        let taken = data.len().min(CAPACITY.saturating_sub(state.buffer.len()));
        state.buffer.extend_from_slice(&data[..taken]);
        state.starved |= taken < data.len();
        let hurry = !state.urgent && taken > 0 && (urgent || state.buffer.len() >= URGENT);
        state.urgent |= hurry;
        if taken > 0 && (state.idle || hurry) {
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
            while !(state.closed || state.flushing > 0 || state.urgent) {
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
        state.urgent = false;
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

    /// Takes so many bytes and then blocks.
    struct Narrow(Mutex<(usize, Vec<u8>)>);

    impl Direct for Narrow {
        fn try_write(&self, data: &[u8]) -> usize {
            let mut state = lock(&self.0);
            let count = data.len().min(state.0);
            state.0 -= count;
            state.1.extend_from_slice(&data[..count]);
            count
        }
    }

    #[test]
    fn what_a_direct_write_leaves_goes_to_the_writer() {
        let (output, direct) = (Output::default(), Narrow(Mutex::new((3, Vec::new()))));
        assert_eq!(output.send(b"abcde", &direct), 5);
        let mut chunk = Vec::new();
        output.take(&mut chunk);
        assert_eq!((lock(&direct.0).1.as_slice(), chunk.as_slice()), (&b"abc"[..], &b"de"[..]));
    }

    #[test]
    fn nothing_is_written_directly_past_what_waits() {
        let (output, direct) = (Output::default(), Narrow(Mutex::new((100, Vec::new()))));
        output.push(b"first");
        output.send(b"second", &direct);
        assert!(lock(&direct.0).1.is_empty());
        output.take(&mut Vec::new());
        output.send(b"third", &direct);
        assert!(lock(&direct.0).1.is_empty(), "the writer still writes what came before");
    }

    #[test]
    fn a_send_takes_no_more_than_the_capacity_beyond_what_was_written() {
        let (output, direct) = (Output::default(), Narrow(Mutex::new((10, Vec::new()))));
        assert_eq!(output.send(&vec![1; CAPACITY + 100], &direct), CAPACITY + 10);
        assert_eq!(output.take(&mut Vec::new()), Taken::Bytes { starved: true });
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
