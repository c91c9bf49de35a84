//! The alarm clock of the virtual timers: one thread that raises a request flag when a CPU's deadline passes.
//!
//! It knows nothing of CNTV_CTL; a CPU that sees its flag looks at the timer's condition itself, so that an early or a
//! forgotten alarm is harmless.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::machine::{CpuShared, request};

#[derive(Default)]
struct State {
    alarms: Vec<(Arc<CpuShared>, Instant)>,
    /// Until when the thread sleeps; `None`: until it is woken.
    sleeping_until: Option<Instant>,
    thread: Option<JoinHandle<()>>,
    stop: bool,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    wake: Condvar,
}

/// The alarm clock. Its thread starts with the first alarm and ends with the value.
#[derive(Default)]
pub(crate) struct Timer(Arc<Inner>);

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        let mut state = self.lock();
        while !state.stop {
            let now = Instant::now();
            state.alarms.retain(|(cpu, at)| {
                if *at <= now {
                    cpu.request(request::TIMER);
                }
                *at > now
            });
            let next = state.alarms.iter().map(|(_, at)| *at).min();
            state.sleeping_until = next;
            state = match next {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => self.wake.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}

impl Timer {
    pub fn new() -> Self {
        Timer::default()
    }

    /// Sets the alarm of `cpu`, in place of any earlier one.
    pub fn set(&self, cpu: &Arc<CpuShared>, at: Instant) {
        let mut state = self.0.lock();
        match state.alarms.iter_mut().find(|(c, _)| Arc::ptr_eq(c, cpu)) {
            Some(alarm) => alarm.1 = at,
            None => state.alarms.push((cpu.clone(), at)),
        }
        if state.thread.is_none() {
            let inner = self.0.clone();
            // Without the thread the guest's timer would only fire at other exits: no thread to be had is fatal anyway.
            state.thread = std::thread::Builder::new().name("vtimer".into()).spawn(move || inner.ring()).ok();
        } else if state.sleeping_until.is_none_or(|until| at < until) {
            self.0.wake.notify_one();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let thread = {
            let mut state = self.0.lock();
            state.stop = true;
            self.0.wake.notify_one();
            state.thread.take()
        };
        if let Some(thread) = thread {
            // The thread cannot panic: it locks, compares and waits.
            let _ = thread.join();
        }
    }
}
