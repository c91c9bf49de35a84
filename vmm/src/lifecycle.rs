//! Where the machine's threads meet: the start, a pause, a reset in place, the end. It knows kickers and outcomes, no vCPU and no
//! device.
//!
//! A boot begins when all vCPU threads have come to the [`Lifecycle::gate`]; the last one does what a reset needs and opens it.
//! Requests follow *publish, kick, recheck*: the phase changes first, then every vCPU is kicked, then each looks at the phase
//! at the gate. Because a kick outside `run` is not lost, a vCPU cannot miss a request.
//!
//! While the machine is paused, vCPUs wait at the gate, where no guest code runs and no device is being accessed. The time during which
//! all of them did so is no time for the guest ([`Pass::Clock`]). A reset or the end takes them out of the wait.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hvrun_arch::{BootState, Kicker};

use crate::config::LifecycleConfig;
use crate::running::{Cause, MachineEvent, Outcome, RunError, RunState};
use crate::sys;

/// Who hears of what happens to the machine. Called on whatever thread it happens, so it must return soon.
type Observer = Box<dyn Fn(MachineEvent) + Send + Sync>;

/// See the module.
pub(crate) struct Lifecycle {
    cpus: u32,
    no_reboot: bool,
    state: Mutex<State>,
    changed: Condvar,
    observers: RwLock<Vec<Observer>>,
    /// Held by who wants registers.
    asking: Mutex<()>,
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
    /// Who asked for the reset that vCPUs gather for.
    reset_by: Cause,
    kickers: Vec<Kicker>,
    /// Of each vCPU.
    each: Vec<PerCpu>,
    /// vCPUs are to wait at the gate.
    paused: bool,
    /// Nothing has run since the start or the last reset.
    fresh: bool,
    /// How many vCPU threads wait at the gate because of that.
    parked: u32,
    /// Since when all of them do.
    stopped_since: Option<Instant>,
    /// For how long they did, before that.
    stopped_for: Duration,
    /// Somebody is about to end the machine, and tells the observers first.
    end_claimed: bool,
    /// Set together with [`Phase::Ending`], taken by the one who waits.
    end: Option<Result<Outcome, RunError>>,
    /// When somebody first asked the machine to stop.
    stop_asked: Option<Instant>,
}

#[derive(Debug, Clone, Default)]
struct PerCpu {
    /// The [`State::stopped_for`] that it has heard of.
    stopped_for: Duration,
    /// Somebody wants its registers.
    asked: bool,
    /// The answer.
    registers: Option<String>,
    /// The host's number for its thread.
    thread: u64,
}

/// What a vCPU thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Go on as before.
    Go,
    /// All vCPUs together have been stopped for so long since the first boot; tell the vCPU, and come back to the gate.
    Clock(Duration),
    /// Give [`Lifecycle::described`] the vCPU's registers, and come back to the gate.
    Describe,
    /// Reset the vCPU to this state and go on.
    Restart(BootState),
    /// Drop the vCPU and end the thread.
    End,
}

impl Lifecycle {
    /// A machine of `cpus` vCPUs whose first boot is at `boot`.
    pub(crate) fn new(cpus: u32, config: LifecycleConfig, boot: BootState) -> Self {
        let state = State {
            phase: Phase::Gathering,
            gathered: 0,
            boots: 0,
            boot,
            reset_by: Cause::GuestReset,
            kickers: Vec::new(),
            each: vec![PerCpu::default(); cpus as usize],
            paused: config.paused,
            fresh: true,
            parked: 0,
            stopped_since: None,
            stopped_for: Duration::ZERO,
            end_claimed: false,
            end: None,
            stop_asked: None,
        };
        Lifecycle {
            cpus,
            no_reboot: config.no_reboot,
            state: Mutex::new(state),
            changed: Condvar::new(),
            observers: RwLock::default(),
            asking: Mutex::new(()),
        }
    }

    /// From now on, `observer` hears of what happens to the machine.
    pub(crate) fn observe(&self, observer: Observer) {
        self.observers.write().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    /// Not to be called with the lock held.
    pub(crate) fn tell(&self, event: MachineEvent) {
        for observer in &*self.observers.read().unwrap_or_else(PoisonError::into_inner) {
            observer(event.clone());
        }
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

    /// Makes vCPU `id` known, before its thread first comes to the gate.
    pub(crate) fn register(&self, id: u32, kicker: Kicker) {
        let mut state = self.lock();
        state.kickers.push(kicker);
        if let Some(cpu) = state.each.get_mut(id as usize) {
            cpu.thread = sys::thread_id();
        }
    }

    /// Called by the thread of vCPU `id` before each run. While vCPUs gather it waits for the others; the last one calls `prepare`,
    /// unless this is the first boot, with no vCPU running, and everybody goes on from the state that it returns.
    pub(crate) fn gate(&self, id: u32, prepare: impl FnOnce() -> Result<BootState, RunError>) -> Pass {
        let mut state = self.lock();
        loop {
            match state.phase {
                Phase::Ending => return Pass::End,
                Phase::Gathering if state.boots == 0 => state = self.begin(state),
                Phase::Gathering => return self.restart(state, prepare),
                Phase::Running if state.end_claimed => {
                    state = self.wait(state);
                    continue;
                }
                Phase::Running => {}
            }
            if state.phase != Phase::Running {
                continue;
            }
            let (paused, stopped_for) = (state.paused, state.stopped_for);
            if let Some(cpu) = state.each.get_mut(id as usize) {
                if !paused && cpu.stopped_for != stopped_for {
                    cpu.stopped_for = stopped_for;
                    return Pass::Clock(stopped_for);
                }
                if std::mem::take(&mut cpu.asked) {
                    return Pass::Describe;
                }
            }
            if !state.paused {
                state.fresh = false;
                return Pass::Go;
            }
            state = self.park(state);
        }
    }

    /// Waits until all vCPUs are there for the first time.
    fn begin<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.gathered += 1;
        if state.gathered < self.cpus {
            while state.phase != Phase::Ending && state.boots == 0 {
                state = self.wait(state);
            }
            return state;
        }
        state.gathered = 0;
        state.boots = 1;
        state.phase = Phase::Running;
        self.changed.notify_all();
        state
    }

    /// Waits until all vCPUs are there for a reset, which the last one makes.
    fn restart<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        prepare: impl FnOnce() -> Result<BootState, RunError>,
    ) -> Pass {
        state.gathered += 1;
        let boots = state.boots;
        let mut event = None;
        if state.gathered < self.cpus {
            while state.phase != Phase::Ending && state.boots == boots {
                state = self.wait(state);
            }
        } else {
            // Without the lock: a reset takes its time, and `stop` must not wait for it.
            drop(state);
            let prepared = prepare();
            state = self.lock();
            match prepared {
                Ok(boot) => {
                    state.boot = boot;
                    state.boots = boots + 1;
                    state.fresh = true;
                    event = Some(MachineEvent::Reset(state.reset_by));
                }
                Err(error) => {
                    // The others are at the gate: nobody waits for the end of this thread in vain.
                    event = (!state.end_claimed).then_some(MachineEvent::Shutdown(Cause::HostError));
                    Self::end_locked(&mut state, Err(error));
                }
            }
            state.gathered = 0;
            if state.phase != Phase::Ending {
                state.phase = Phase::Running;
            }
            self.changed.notify_all();
        }
        // Also if the machine ends meanwhile: a backend may count on every vCPU to take part.
        let pass = if state.boots == boots { Pass::End } else { Pass::Restart(state.boot) };
        drop(state);
        if let Some(event) = event {
            self.tell(event);
        }
        pass
    }

    /// Waits, once, for the pause to end or for something to do meanwhile.
    fn park<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.parked += 1;
        if state.parked == self.cpus {
            state.stopped_since.get_or_insert_with(Instant::now);
        }
        self.changed.notify_all();
        state = self.wait(state);
        state.parked -= 1;
        state
    }

    /// Stops the vCPUs; returns when all have stopped. Not to be called on a vCPU's thread, for which it would wait.
    pub(crate) fn pause(&self) {
        let mut state = self.lock();
        if state.paused || state.phase == Phase::Ending {
            return;
        }
        state.paused = true;
        self.kick(state);
        state = self.lock();
        // At the first boot they stop before they have begun.
        while state.paused && state.phase != Phase::Ending && state.boots > 0 && state.parked < self.cpus {
            state = self.wait(state);
        }
        let still = state.paused && state.phase != Phase::Ending;
        drop(state);
        if still {
            self.tell(MachineEvent::Stopped);
        }
    }

    /// Lets the vCPUs go on after [`Lifecycle::pause`].
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        if !state.paused || state.phase == Phase::Ending {
            return;
        }
        state.paused = false;
        if let Some(since) = state.stopped_since.take() {
            state.stopped_for += since.elapsed();
        }
        drop(state);
        // Before a vCPU does anything that is worth an event.
        self.tell(MachineEvent::Resumed);
        self.changed.notify_all();
    }

    /// What the machine does.
    pub(crate) fn run_state(&self) -> RunState {
        let state = self.lock();
        match (state.phase, state.paused) {
            (Phase::Ending, _) => RunState::Shutdown,
            (_, true) if state.fresh => RunState::Prelaunch,
            (_, true) => RunState::Paused,
            _ => RunState::Running,
        }
    }

    /// The registers of vCPU `id`, as text; none before the start and after the end. Not to be called on a vCPU's thread.
    pub(crate) fn registers(&self, id: u32) -> Option<String> {
        let _one_at_a_time = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        if state.boots == 0 {
            return None;
        }
        state.each.get_mut(id as usize)?.asked = true;
        self.changed.notify_all();
        self.kick(state);
        state = self.lock();
        while state.phase != Phase::Ending {
            if let Some(text) = state.each.get_mut(id as usize)?.registers.take() {
                return Some(text);
            }
            state = self.wait(state);
        }
        None
    }

    /// The answer to [`Pass::Describe`].
    pub(crate) fn described(&self, id: u32, registers: String) {
        if let Some(cpu) = self.lock().each.get_mut(id as usize) {
            cpu.registers = Some(registers);
        }
        self.changed.notify_all();
    }

    /// The host's number for the thread of each vCPU.
    pub(crate) fn threads(&self) -> Vec<u64> {
        self.lock().each.iter().map(|cpu| cpu.thread).collect()
    }

    /// Resets the machine, or ends it if that is what a reset means.
    pub(crate) fn reset(&self, by: Cause) {
        if self.no_reboot {
            return self.end(Ok(Outcome::Reset), by);
        }
        let mut state = self.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Gathering;
            state.reset_by = by;
            self.changed.notify_all();
            self.kick(state);
        }
    }

    /// Ends the machine. The first to do so says how it ended. The observers hear of it before it has: whoever waits for the end may
    /// take them away.
    pub(crate) fn end(&self, end: Result<Outcome, RunError>, by: Cause) {
        let mut state = self.lock();
        if state.phase == Phase::Ending || std::mem::replace(&mut state.end_claimed, true) {
            return;
        }
        drop(state);
        self.tell(MachineEvent::Shutdown(by));
        let mut state = self.lock();
        Self::end_locked(&mut state, end);
        self.changed.notify_all();
        self.kick(state);
    }

    /// Ends the machine from outside, soon: whoever waits for its last output does not wait for long any more.
    pub(crate) fn stop(&self, by: Cause) {
        self.lock().stop_asked.get_or_insert_with(Instant::now);
        self.end(Ok(Outcome::Stopped), by);
    }

    fn end_locked(state: &mut State, end: Result<Outcome, RunError>) {
        if state.phase != Phase::Ending {
            state.phase = Phase::Ending;
            state.end = Some(end);
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
            .field("paused", &state.paused)
            .finish_non_exhaustive()
    }
}
