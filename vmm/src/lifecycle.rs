//! Where the machine's threads meet: the start, a reset in place, the end. It knows kickers and outcomes, no vCPU and no device.
//!
//! A boot begins when all vCPU threads have come to the [`Lifecycle::gate`]; the last one does what a reset needs and opens it.
//! Requests follow *publish, kick, recheck*: the phase changes first, then every vCPU is kicked, then each looks at the phase
//! at the gate. Because a kick outside `run` is not lost, a vCPU cannot miss a request.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hvrun_arch::{BootState, Kicker};

use crate::running::{Outcome, RunError};

/// See the module.
pub(crate) struct Lifecycle {
    cpus: u32,
    no_reboot: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// vCPUs are to come to the gate.
    Gathering,
    /// vCPUs run.
    Running,
    /// vCPUs are to end.
    Ending,
}

struct State {
    phase: Phase,
    /// How many vCPU threads are at the gate.
    gathered: u32,
    /// How often the gate has opened: 0 until the first boot.
    boots: u64,
    /// Where the boot CPU starts.
    boot: BootState,
    kickers: Vec<Kicker>,
    /// Set together with [`Phase::Ending`], taken by the one who waits.
    end: Option<Result<Outcome, RunError>>,
    /// When somebody first asked the machine to stop.
    stop_asked: Option<Instant>,
}

/// What a vCPU thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Go on as before.
    Go,
    /// Reset the vCPU to this state and go on.
    Restart(BootState),
    /// Drop the vCPU and end the thread.
    End,
}

impl Lifecycle {
    /// A machine of `cpus` vCPUs whose first boot is at `boot`.
    pub(crate) fn new(cpus: u32, no_reboot: bool, boot: BootState) -> Self {
        let state = State {
            phase: Phase::Gathering,
            gathered: 0,
            boots: 0,
            boot,
            kickers: Vec::new(),
            end: None,
            stop_asked: None,
        };
        Lifecycle { cpus, no_reboot, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the boot CPU of the coming boot starts.
    pub(crate) fn boot(&self) -> BootState {
        self.lock().boot
    }

    /// Makes a vCPU known, before its thread first comes to the gate.
    pub(crate) fn register(&self, kicker: Kicker) {
        self.lock().kickers.push(kicker);
    }

    /// Called by every vCPU thread before each run. While vCPUs gather it waits for the others; the last one calls `prepare`,
    /// unless this is the first boot, with no vCPU running, and everybody goes on from the state that it returns.
    pub(crate) fn gate(&self, prepare: impl FnOnce() -> Result<BootState, RunError>) -> Pass {
        let mut state = self.lock();
        match state.phase {
            Phase::Running => return Pass::Go,
            Phase::Ending => return Pass::End,
            Phase::Gathering => state.gathered += 1,
        }
        let boots = state.boots;
        if state.gathered < self.cpus {
            while state.phase != Phase::Ending && state.boots == boots {
                state = self.wait(state);
            }
        } else {
            if boots > 0 {
                // Without the lock: a reset takes its time, and `stop` must not wait for it.
                drop(state);
                let prepared = prepare();
                state = self.lock();
                match prepared {
                    Ok(boot) => state.boot = boot,
                    Err(error) => self.end_locked(&mut state, Err(error)),
                }
            }
            state.gathered = 0;
            state.boots = boots + 1;
            if state.phase != Phase::Ending {
                state.phase = Phase::Running;
            }
            self.changed.notify_all();
        }
        match (state.phase, boots) {
            (Phase::Ending, _) => Pass::End,
            (_, 0) => Pass::Go,
            _ => Pass::Restart(state.boot),
        }
    }

    /// The guest asked for a reset.
    pub(crate) fn reset(&self) {
        if self.no_reboot {
            return self.end(Ok(Outcome::Reset));
        }
        let mut state = self.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Gathering;
            self.kick(state);
        }
    }

    /// Ends the machine. The first to do so says how it ended.
    pub(crate) fn end(&self, end: Result<Outcome, RunError>) {
        let mut state = self.lock();
        if state.phase != Phase::Ending {
            self.end_locked(&mut state, end);
            self.kick(state);
        }
    }

    /// Ends the machine from outside, soon: whoever waits for its last output does not wait for long any more.
    pub(crate) fn stop(&self) {
        self.lock().stop_asked.get_or_insert_with(Instant::now);
        self.end(Ok(Outcome::Stopped));
    }

    fn end_locked(&self, state: &mut State, end: Result<Outcome, RunError>) {
        if state.phase != Phase::Ending {
            state.phase = Phase::Ending;
            state.end = Some(end);
            self.changed.notify_all();
        }
    }

    fn kick(&self, state: MutexGuard<'_, State>) {
        let kickers = state.kickers.clone();
        drop(state);
        for kicker in kickers {
            kicker.kick();
        }
    }

    /// Waits until the first boot has begun, or the machine has ended before it. Says whether it has begun.
    pub(crate) fn wait_for_start(&self) -> bool {
        let mut state = self.lock();
        while state.boots == 0 && state.phase != Phase::Ending {
            state = self.wait(state);
        }
        state.boots > 0
    }

    /// Waits until the machine has ended.
    pub(crate) fn wait_for_end(&self) {
        let mut state = self.lock();
        while state.phase != Phase::Ending {
            state = self.wait(state);
        }
    }

    /// Whether the machine has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().phase == Phase::Ending
    }

    /// How the machine ended, once.
    pub(crate) fn take_end(&self) -> Option<Result<Outcome, RunError>> {
        self.lock().end.take()
    }

    /// Whether somebody asked the machine to stop more than `grace` ago.
    pub(crate) fn stop_asked_before(&self, grace: Duration) -> bool {
        self.lock().stop_asked.is_some_and(|asked| asked.elapsed() >= grace)
    }
}

impl fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Lifecycle")
            .field("phase", &state.phase)
            .field("boots", &state.boots)
            .field("gathered", &state.gathered)
            .finish_non_exhaustive()
    }
}
