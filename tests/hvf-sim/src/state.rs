//! What all calls share: the configuration, the one VM, the list of vCPUs and the broken rules. Locks are held for moments, and
//! never while a guest runs.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::abi::{Failed, UNSUPPORTED};
use crate::config::{Config, MacOs, OnViolation};
use crate::objects::Objects;
use crate::run::Shared;
use crate::vm::Vm;

/// More broken rules than this are the same few again and again.
const VIOLATIONS_KEPT: usize = 1000;

/// Everything but the vCPUs' registers, which their threads keep.
#[derive(Default)]
pub(crate) struct State {
    pub config: Config,
    /// Counts [`configure`]: what belongs to an earlier configuration is dead.
    pub generation: u64,
    pub vm: Option<Vm>,
    pub vcpus: BTreeMap<u64, Arc<Shared>>,
    pub objects: Objects,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
static VIOLATIONS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static ABORT: AtomicBool = AtomicBool::new(false);
/// [`State::generation`], for those who only compare it.
static GENERATION: AtomicU64 = AtomicU64::new(0);
static EXITS: AtomicU64 = AtomicU64::new(0);
static LOST_KICKS: AtomicU64 = AtomicU64::new(0);
static SESSION: Mutex<()> = Mutex::new(());

/// A lock whose holder cannot have left anything half-done: every critical section here is a few assignments.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shared state.
pub(crate) fn state() -> MutexGuard<'static, State> {
    lock(&STATE)
}

/// Records a broken rule. The caller holds no lock.
pub(crate) fn violation(what: impl Into<String>) {
    let what = what.into();
    if ABORT.load(Ordering::SeqCst) {
        // Nobody is left to be told if this fails too.
        let _ = writeln!(std::io::stderr(), "Hypervisor.framework simulator: {what}");
        std::process::abort();
    }
    let mut violations = lock(&VIOLATIONS);
    if violations.len() < VIOLATIONS_KEPT {
        violations.push(what);
    }
}

/// Records a broken rule and gives the error that the call returns.
pub(crate) fn refuse(what: impl Into<String>, error: Failed) -> Failed {
    violation(what);
    error
}

/// Refuses a call that the simulated macOS does not have.
pub(crate) fn since(version: MacOs, name: &str) -> Result<(), Failed> {
    let macos = state().config.macos;
    if macos >= version {
        return Ok(());
    }
    Err(refuse(format!("{name} appeared in {version}; it does not exist in {macos}"), UNSUPPORTED))
}

/// Counts [`configure`].
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::SeqCst)
}

pub(crate) fn count_exit() {
    EXITS.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn count_lost_kick() {
    LOST_KICKS.fetch_add(1, Ordering::Relaxed);
}

/// Makes the process run on a Mac as `config` says, without a VM and with no rule broken yet. What is left of an earlier VM is
/// dead; its threads should be gone.
pub fn configure(config: Config) {
    ABORT.store(config.on_violation == OnViolation::Abort, Ordering::SeqCst);
    let old = {
        let mut state = state();
        let generation = state.generation + 1;
        GENERATION.store(generation, Ordering::SeqCst);
        std::mem::replace(&mut *state, State { config, generation, ..State::default() })
    };
    for vcpu in old.vcpus.values() {
        vcpu.kick();
    }
    // Frees the old machine, whose timer thread is joined: not under the lock.
    drop(old);
    lock(&VIOLATIONS).clear();
    EXITS.store(0, Ordering::Relaxed);
    LOST_KICKS.store(0, Ordering::Relaxed);
}

/// The rules broken since [`configure`], each in a sentence.
pub fn violations() -> Vec<String> {
    lock(&VIOLATIONS).clone()
}

/// How many framework objects (configurations, GIC states) nobody has released.
pub fn leaked_objects() -> usize {
    state().objects.len()
}

/// Does to every vCPU what a host signal does that arrives inside `hv_vcpu_run`: that run, or the next one, ends for an unknown
/// reason.
pub fn interrupt_all() {
    let vcpus: Vec<_> = state().vcpus.values().cloned().collect();
    for vcpu in vcpus {
        vcpu.interrupt();
    }
}

/// What happened since [`configure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// How often `hv_vcpu_run` came back.
    pub exits: u64,
    /// How many vCPUs are inside `hv_vcpu_run` now.
    pub running: usize,
    /// How many kicks came to a vCPU outside `hv_vcpu_run` and were lost.
    pub lost_kicks: u64,
}

/// What happened since [`configure`].
pub fn statistics() -> Statistics {
    let vcpus: Vec<_> = state().vcpus.values().cloned().collect();
    Statistics {
        exits: EXITS.load(Ordering::Relaxed),
        running: vcpus.iter().filter(|vcpu| vcpu.is_running()).count(),
        lost_kicks: LOST_KICKS.load(Ordering::Relaxed),
    }
}

/// The process is one Mac; a session keeps it to one test at a time.
#[derive(Debug)]
pub struct Session(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Session {
    /// Waits until no other session exists, then does as [`configure`].
    pub fn new(config: Config) -> Session {
        let guard = lock(&SESSION);
        configure(config);
        Session(guard)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        configure(Config::default());
    }
}
