//! The input half of a stream: a small bounded buffer between one reading thread and a device that takes bytes when it can.
//!
//! It knows no descriptor. When the buffer is full the thread stops reading, so that everything further waits at its source.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::util::lock;

/// Bytes that may wait for the device.
pub(super) const CAPACITY: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Input {
    state: Mutex<State>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct State {
    buffer: VecDeque<u8>,
    /// The thread found no room and does not read until told.
    paused: bool,
    /// When the device wants to be called again.
    retry_at: Option<Instant>,
    stopped: bool,
}

/// What the reading thread shall do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// How many bytes there is room for.
    pub(super) room: usize,
    /// How long to wait at most.
    pub(super) timeout: Option<Duration>,
    /// The device asked to be called about now.
    pub(super) retry: bool,
}

impl Input {
    /// An empty buffer.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Input { state: Mutex::default(), waker: Waker::new()? })
    }

    /// What the reading thread waits on besides its source; [`Input::plan`] clears it.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.waker.receiver.as_fd()
    }

    /// The reading thread's next step, or `None` when it shall end.
    pub(super) fn plan(&self) -> Option<Plan> {
        self.waker.clear();
        let mut state = lock(&self.state);
        if state.stopped {
            return None;
        }
        let room = CAPACITY.saturating_sub(state.buffer.len());
        state.paused = room == 0;
        let now = Instant::now();
        let retry = state.retry_at.is_some_and(|at| at <= now);
        if retry {
            state.retry_at = None;
        }
        Some(Plan { room, timeout: state.retry_at.map(|at| at - now), retry })
    }

    /// Appends input that was read.
    pub(super) fn push(&self, data: &[u8]) {
        lock(&self.state).buffer.extend(data);
    }

    /// Hands out the oldest bytes. Restarts a paused thread when half of the room is back.
    pub(super) fn pop(&self, buf: &mut [u8]) -> usize {
        let mut state = lock(&self.state);
        let count = buf.len().min(state.buffer.len());
        let (front, back) = state.buffer.as_slices();
        let (head, tail) = buf[..count].split_at_mut(count.min(front.len()));
        head.copy_from_slice(&front[..head.len()]);
        tail.copy_from_slice(&back[..tail.len()]);
        state.buffer.drain(..count);
        let wake = state.paused && state.buffer.len() <= CAPACITY / 2;
        if wake {
            state.paused = false;
        }
        drop(state);
        if wake {
            self.waker.wake();
        }
        count
    }

    /// Whether there is anything to hand out.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).buffer.is_empty()
    }

    /// Asks for a [`Plan`] with `retry` after `after`.
    pub(super) fn retry(&self, after: Duration) {
        let at = Instant::now().checked_add(after);
        let earlier = std::mem::replace(&mut lock(&self.state).retry_at, at);
        // The thread wakes at the earlier time anyway and then sees the new one: a guest that asks often causes few wake-ups.
        if earlier.is_none() || at < earlier {
            self.waker.wake();
        }
    }

    /// Ends the reading thread.
    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.waker.wake();
    }
}

/// Ends another thread's `poll`. A socket pair of our own, so its non-blocking mode disturbs nobody.
#[derive(Debug)]
struct Waker {
    sender: UnixStream,
    receiver: UnixStream,
    pending: AtomicBool,
}

impl Waker {
    fn new() -> io::Result<Self> {
        let (sender, receiver) = UnixStream::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        Ok(Waker { sender, receiver, pending: AtomicBool::new(false) })
    }

    fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            // A full socket means that the thread is about to wake anyway.
            let _ = (&self.sender).write(&[1]);
        }
    }

    /// Clears a wake-up before the state that it announced is looked at, so that none is lost. The flag falls only with the
    /// byte that belongs to it: a waker may have set the one and not yet written the other.
    fn clear(&self) {
        if self.pending.load(Ordering::SeqCst)
            && (&self.receiver).read(&mut [0; 8]).is_ok_and(|count| count > 0)
        {
            self.pending.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order() {
        let input = Input::new().unwrap();
        input.push(b"abc");
        let mut buf = [0; 2];
        assert_eq!((input.pop(&mut buf), buf), (2, *b"ab"));
        assert_eq!((input.pop(&mut buf), buf[0]), (1, b'c'));
        assert!(input.is_empty());
    }

    #[test]
    fn bytes_stay_in_order_where_the_buffer_wraps() {
        let input = Input::new().unwrap();
        let mut out = Vec::new();
        let sent: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        for chunk in sent.chunks(777) {
            input.push(chunk);
            let mut buf = [0; 771];
            let count = input.pop(&mut buf);
            out.extend_from_slice(&buf[..count]);
        }
        let mut rest = vec![0; CAPACITY];
        let count = input.pop(&mut rest);
        out.extend_from_slice(&rest[..count]);
        assert!(out == sent);
    }

    #[test]
    fn a_full_buffer_has_no_room() {
        let input = Input::new().unwrap();
        input.push(&vec![0; CAPACITY]);
        assert_eq!(input.plan().unwrap().room, 0);
    }

    #[test]
    fn a_paused_reader_is_woken_when_half_is_free() {
        let input = Input::new().unwrap();
        input.push(&vec![0; CAPACITY]);
        input.plan();
        input.pop(&mut vec![0; CAPACITY / 2 - 1]);
        assert!(!input.waker.pending.load(Ordering::SeqCst));
        input.pop(&mut [0]);
        assert!(input.waker.pending.load(Ordering::SeqCst));
    }

    #[test]
    fn a_retry_that_is_due_is_reported_once() {
        let input = Input::new().unwrap();
        input.retry(Duration::ZERO);
        assert!(input.plan().unwrap().retry);
        assert!(!input.plan().unwrap().retry);
    }

    #[test]
    fn a_later_retry_replaces_an_earlier_one() {
        let input = Input::new().unwrap();
        input.retry(Duration::ZERO);
        input.retry(Duration::from_secs(3600));
        let plan = input.plan().unwrap();
        assert!(!plan.retry && plan.timeout.is_some());
    }

    #[test]
    fn a_stopped_reader_has_no_plan() {
        let input = Input::new().unwrap();
        input.stop();
        assert_eq!(input.plan(), None);
    }
}
