//! How the CPUs of a machine start together after a reset: each CPU resets itself, and one that another switches on before its
//! own reset would be switched off by it. Each comes here when it is ready; none runs before all have come. It knows nothing
//! of KVM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::hypervisor::HypervisorError;

/// See the module.
#[derive(Debug)]
pub struct Rendezvous {
    cpus: u32,
    state: Mutex<State>,
    changed: Condvar,
    /// A copy of [`State::phase`], so that a running machine takes no lock.
    open: AtomicBool,
}

#[derive(Debug)]
struct State {
    arrived: u32,
    phase: Phase,
}

#[derive(Debug, Clone)]
enum Phase {
    Gathering,
    Open,
    /// One CPU did not make it, for this reason: none ever runs.
    Failed(String),
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    /// All CPUs are there.
    Open,
    /// The caller has something else to do.
    Interrupted,
}

impl Rendezvous {
    /// Of `cpus` CPUs, all of which are ready.
    pub fn new(cpus: u32) -> Self {
        Rendezvous {
            cpus,
            state: Mutex::new(State { arrived: 0, phase: Phase::Open }),
            changed: Condvar::new(),
            open: AtomicBool::new(true),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all CPUs have come.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// One more CPU has come; the last one opens the way. It waits for nobody.
    pub fn arrive(&self) {
        let mut state = self.lock();
        if let Phase::Gathering = state.phase {
            state.arrived += 1;
            if state.arrived >= self.cpus {
                state.phase = Phase::Open;
                self.open.store(true, Ordering::Release);
                self.changed.notify_all();
            }
        }
    }

    /// A CPU will never come: whoever waits gets an error instead of waiting for ever.
    pub fn fail(&self, reason: &HypervisorError) {
        let mut state = self.lock();
        if let Phase::Gathering = state.phase {
            state.phase = Phase::Failed(reason.to_string());
            self.changed.notify_all();
        }
    }

    /// Closes the way: every CPU must come.
    pub fn close(&self) {
        let mut state = self.lock();
        if let Phase::Open = state.phase {
            *state = State { arrived: 0, phase: Phase::Gathering };
            self.open.store(false, Ordering::Release);
        }
    }

    /// Waits until all CPUs have come or `interrupted` says so; it is asked again after each [`Rendezvous::wake`].
    pub fn wait(&self, interrupted: impl Fn() -> bool) -> Result<Waited, HypervisorError> {
        let mut state = self.lock();
        loop {
            match &state.phase {
                Phase::Open => return Ok(Waited::Open),
                Phase::Failed(reason) => return Err(given_up(reason)),
                Phase::Gathering if interrupted() => return Ok(Waited::Interrupted),
                Phase::Gathering => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Makes those who wait ask again whether they are interrupted.
    pub fn wake(&self) {
        // The lock: whoever has asked already is asleep by now and will be woken.
        drop(self.lock());
        self.changed.notify_all();
    }
}

fn given_up(reason: &str) -> HypervisorError {
    HypervisorError::Call { call: "KVM_RUN", reason: format!("another CPU could not be reset: {reason}") }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn closed(cpus: u32) -> Rendezvous {
        let meeting = Rendezvous::new(cpus);
        meeting.close();
        meeting
    }

    #[test]
    fn a_new_machine_runs_at_once() {
        assert_eq!(Rendezvous::new(2).wait(|| true).unwrap(), Waited::Open);
    }

    #[test]
    fn after_a_reset_the_last_cpu_opens_the_way() {
        let meeting = closed(2);
        meeting.arrive();
        assert!(!meeting.is_open());
        meeting.arrive();
        assert!(meeting.is_open());
    }

    #[test]
    fn a_waiting_cpu_goes_on_when_the_last_one_comes() {
        let meeting = closed(2);
        meeting.arrive();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| meeting.wait(|| false).unwrap());
            meeting.arrive();
            assert_eq!(waiting.join().unwrap(), Waited::Open);
        });
    }

    #[test]
    fn a_cpu_that_fails_leaves_nobody_waiting() {
        let meeting = closed(2);
        meeting.arrive();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| meeting.wait(|| false).unwrap_err().to_string());
            meeting.fail(&HypervisorError::Call { call: "KVM_ARM_VCPU_INIT", reason: "no".to_owned() });
            assert!(waiting.join().unwrap().contains("KVM_ARM_VCPU_INIT failed: no"));
        });
    }

    #[test]
    fn a_wait_can_be_interrupted() {
        let meeting = closed(1);
        let asked = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| meeting.wait(|| asked.load(Ordering::Relaxed)).unwrap());
            asked.store(true, Ordering::Relaxed);
            meeting.wake();
            assert_eq!(waiting.join().unwrap(), Waited::Interrupted);
        });
    }

    #[test]
    fn every_reset_gathers_all_cpus_anew() {
        let meeting = closed(1);
        meeting.arrive();
        meeting.close();
        assert!(!meeting.is_open());
    }
}
