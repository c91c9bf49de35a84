//! The one helper thread of a machine: wakes vCPUs that run in the guest when their physical timer is due, and repeats
//! kicks that a hypervisor may have lost. It starts when it is first needed and ends with the machine.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::park::Park;

/// After how long a kick that was not seen is repeated.
const REPEAT_KICK: Duration = Duration::from_millis(1);

/// One vCPU's times.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    alarm: Option<Instant>,
    recheck: Option<Instant>,
}

#[derive(Debug)]
struct State {
    times: Vec<Times>,
    stop: bool,
}

/// What callers and the thread share.
#[derive(Debug)]
pub(super) struct AlarmClock {
    state: Mutex<State>,
    changed: Condvar,
}

impl AlarmClock {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again soon whether `cpu` has seen its kick.
    pub(super) fn recheck(&self, cpu: u32) {
        self.set(cpu, |times| *times.recheck.get_or_insert_with(|| Instant::now() + REPEAT_KICK));
    }

    fn set<T>(&self, cpu: u32, change: impl FnOnce(&mut Times) -> T) {
        if let Some(times) = self.lock().times.get_mut(cpu as usize) {
            change(times);
        }
        self.changed.notify_one();
    }

    /// The thread.
    fn ring(&self, parks: &[Arc<Park>]) {
        let mut state = self.lock();
        while !state.stop {
            let now = Instant::now();
            let mut due = Vec::new();
            for (times, park) in state.times.iter_mut().zip(parks) {
                let alarm = times.alarm.take_if(|at| *at <= now).is_some();
                let recheck = times.recheck.take_if(|at| *at <= now).is_some();
                if alarm || recheck {
                    due.push((park, alarm));
                }
            }
            if !due.is_empty() {
                // Waking may ask for a recheck, which takes this lock.
                drop(state);
                for (park, alarm) in due {
                    if alarm {
                        park.wake();
                    } else {
                        park.repeat_unseen_kick();
                    }
                }
                state = self.lock();
                continue;
            }
            let next = state.times.iter().flat_map(|times| [times.alarm, times.recheck]).flatten().min();
            state = match next {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    self.changed.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// The machine's end of the helper thread.
#[derive(Debug)]
pub(super) struct Alarm {
    clock: Arc<AlarmClock>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Alarm {
    pub(super) fn new(cpus: u32) -> Self {
        let state = State { times: vec![Times::default(); cpus as usize], stop: false };
        Alarm {
            clock: Arc::new(AlarmClock { state: Mutex::new(state), changed: Condvar::new() }),
            thread: Mutex::new(None),
        }
    }

    pub(super) fn clock(&self) -> &Arc<AlarmClock> {
        &self.clock
    }

    /// Starts the thread, if it does not run yet.
    pub(super) fn start(&self, parks: &[Arc<Park>]) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() {
            return;
        }
        let (clock, parks) = (self.clock.clone(), parks.to_vec());
        match std::thread::Builder::new().name("vcpu-alarm".into()).spawn(move || clock.ring(&parks)) {
            Ok(handle) => *thread = Some(handle),
            Err(error) => {
                log::error!("no thread for the physical timers: {error}; they fire late");
            }
        }
    }

    /// Wakes `cpu` at `at` instead of at any earlier given time.
    pub(super) fn set(&self, cpu: u32, at: Instant) {
        self.clock.set(cpu, |times| times.alarm = Some(at));
    }

    /// Forgets every alarm.
    pub(super) fn clear(&self) {
        self.clock.lock().times.fill(Times::default());
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.clock.lock().stop = true;
        self.clock.changed.notify_one();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            log::error!("the thread of the physical timers panicked");
        }
    }
}
