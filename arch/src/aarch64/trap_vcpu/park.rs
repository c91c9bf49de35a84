//! Where a vCPU thread waits and how others reach it: *publish, kick, recheck*. It knows no reason for a wake-up but one,
//! the request to leave `run`; all others are looked up by the vCPU itself after it was woken.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Instant;

use super::alarm::AlarmClock;
use crate::hypervisor::{Kick, Kicker};

/// The vCPU's thread looks around, or is outside `run`.
const HOST: u8 = 0;
/// It is in the guest, or about to be.
const GUEST: u8 = 1;
/// It sleeps in [`Park::sleep`].
const ASLEEP: u8 = 2;

/// How to get the vCPU out of the guest.
#[derive(Debug, Clone)]
struct RawKick {
    kicker: Kicker,
    remembered: bool,
}

/// One vCPU's meeting point with other threads.
///
/// The vCPU clears `attention`, looks at everything it may have been woken for, publishes where it is going (`place`) and
/// only goes there if `attention` is still clear. A waker publishes its reason, sets `attention` and then reads `place`.
/// With sequential consistency one of the two sees the other, so that no wake-up is lost.
#[derive(Debug)]
pub(super) struct Park {
    cpu: u32,
    attention: AtomicBool,
    kicked: AtomicBool,
    place: AtomicU8,
    lock: Mutex<()>,
    bell: Condvar,
    raw: RwLock<Option<RawKick>>,
    clock: Arc<AlarmClock>,
}

impl Park {
    pub(super) fn new(cpu: u32, clock: Arc<AlarmClock>) -> Self {
        Park {
            cpu,
            attention: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            place: AtomicU8::new(HOST),
            lock: Mutex::new(()),
            bell: Condvar::new(),
            raw: RwLock::new(None),
            clock,
        }
    }

    /// Says how to get the vCPU out of the guest, and whether such a kick works ahead of time.
    pub(super) fn attach(&self, kicker: Kicker, remembered: bool) {
        let raw = RawKick { kicker, remembered };
        *self.raw.write().unwrap_or_else(PoisonError::into_inner) = Some(raw);
    }

    /// Makes the vCPU look around. The reason must have been published before.
    pub(super) fn wake(&self) {
        let already = self.attention.swap(true, Ordering::SeqCst);
        match self.place.load(Ordering::SeqCst) {
            // Whoever set `attention` first kicks; a second kick would only cost.
            GUEST if !already => self.kick_raw(),
            ASLEEP => {
                // Taking the lock makes sure that the sleeper is waiting, not between its check and the wait.
                drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
                self.bell.notify_all();
            }
            _ => {}
        }
    }

    fn kick_raw(&self) {
        let raw = self.raw.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(raw) = raw {
            raw.kicker.kick();
            if !raw.remembered {
                // It may have come just before the run began. Look again soon.
                self.clock.recheck(self.cpu);
            }
        }
    }

    /// Kicks once more if the last kick has not been seen yet.
    pub(super) fn repeat_unseen_kick(&self) {
        if self.attention.load(Ordering::SeqCst) && self.place.load(Ordering::SeqCst) == GUEST {
            self.kick_raw();
        }
    }

    /// Asks the vCPU to leave `run`.
    pub(super) fn request_exit(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether [`Park::request_exit`] was called; forgets it.
    pub(super) fn take_exit_request(&self) -> bool {
        // The plain load keeps the usual case free of a locked write.
        self.kicked.load(Ordering::SeqCst) && self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Whether [`Park::request_exit`] was called.
    pub(super) fn exit_requested(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    /// Begins to look around: wake-ups from now on count anew.
    pub(super) fn look(&self) {
        self.attention.store(false, Ordering::SeqCst);
    }

    /// Announces that the vCPU goes into the guest. False if it must look around again first.
    pub(super) fn enter_guest(&self) -> bool {
        self.place.store(GUEST, Ordering::SeqCst);
        let clear = !self.attention.load(Ordering::SeqCst);
        if !clear {
            self.leave_guest();
        }
        clear
    }

    /// Announces that the vCPU is back from the guest.
    pub(super) fn leave_guest(&self) {
        self.place.store(HOST, Ordering::SeqCst);
    }

    /// Sleeps until the next wake-up since [`Park::look`], or until `deadline`.
    pub(super) fn sleep(&self, deadline: Option<Instant>) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.place.store(ASLEEP, Ordering::SeqCst);
        while !self.attention.load(Ordering::SeqCst) {
            guard = match deadline {
                None => self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.bell.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        self.place.store(HOST, Ordering::SeqCst);
    }
}

/// Makes the vCPU look around: for the interrupt controller.
pub(super) struct Wake(pub(super) Arc<Park>);

impl Kick for Wake {
    fn kick(&self) {
        self.0.wake();
    }
}

/// Makes the vCPU leave `run`: what `vmm` gets.
pub(super) struct RequestExit(pub(super) Arc<Park>);

impl Kick for RequestExit {
    fn kick(&self) {
        self.0.request_exit();
    }
}
