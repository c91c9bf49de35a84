//! No vCPU may be destroyed while another one runs: macOS crashes the process. Whoever destroys the first one closes the
//! machine here and waits until nobody runs any more; from then on nobody enters the guest again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::hypervisor::Kicker;

/// How long to wait before kicking once more: a kick that comes before its run may be lost.
const REPEAT_KICK: Duration = Duration::from_micros(200);

/// One vCPU's. As far apart as caches work with, since each is written at every run.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Seat {
    running: AtomicBool,
    kicker: Mutex<Option<Kicker>>,
}

/// The vCPUs of one machine.
#[derive(Debug)]
pub struct Quiesce {
    closing: AtomicBool,
    seats: Box<[Seat]>,
}

impl Quiesce {
    /// For CPUs 0 to `cpus - 1`.
    pub fn new(cpus: u32) -> Self {
        Quiesce { closing: AtomicBool::new(false), seats: (0..cpus).map(|_| Seat::default()).collect() }
    }

    /// Says how to get `cpu` out of the guest.
    pub fn attach(&self, cpu: u32, kicker: Kicker) {
        if let Some(seat) = self.seats.get(cpu as usize) {
            *seat.kicker.lock().unwrap_or_else(PoisonError::into_inner) = Some(kicker);
        }
    }

    /// `cpu` wants to run. False: it must not, now or ever. With true, [`Quiesce::leave`] must follow.
    pub fn enter(&self, cpu: u32) -> bool {
        let Some(seat) = self.seats.get(cpu as usize) else { return false };
        // Either this thread sees `closing`, or the closing one sees `running`: both are sequentially consistent.
        seat.running.store(true, Ordering::SeqCst);
        if self.closing.load(Ordering::SeqCst) {
            seat.running.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// `cpu` has come out of its run.
    pub fn leave(&self, cpu: u32) {
        if let Some(seat) = self.seats.get(cpu as usize) {
            seat.running.store(false, Ordering::SeqCst);
        }
    }

    /// Lets nobody enter any more, and returns when nobody runs.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for seat in &self.seats {
            while seat.running.load(Ordering::SeqCst) {
                // Cloned, so that the lock is not held during the call.
                let kicker = seat.kicker.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(kicker) = kicker {
                    kicker.kick();
                }
                thread::sleep(REPEAT_KICK);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::hypervisor::Kick;

    /// Leaves the seat when it is kicked for the third time.
    struct ThirdKick {
        quiesce: Arc<Quiesce>,
        kicks: Mutex<u32>,
    }

    impl Kick for ThirdKick {
        fn kick(&self) {
            let mut kicks = self.kicks.lock().unwrap();
            *kicks += 1;
            if *kicks == 3 {
                self.quiesce.leave(1);
            }
        }
    }

    #[test]
    fn an_open_machine_lets_its_cpus_run() {
        let quiesce = Quiesce::new(2);
        assert!(quiesce.enter(0) && quiesce.enter(1));
    }

    #[test]
    fn a_cpu_that_does_not_exist_never_runs() {
        assert!(!Quiesce::new(2).enter(2));
    }

    #[test]
    fn nobody_enters_a_closed_machine() {
        let quiesce = Quiesce::new(1);
        quiesce.close();
        assert!(!quiesce.enter(0));
    }

    #[test]
    fn closing_kicks_until_the_last_one_is_out() {
        let quiesce = Arc::new(Quiesce::new(2));
        let kick = Arc::new(ThirdKick { quiesce: quiesce.clone(), kicks: Mutex::new(0) });
        quiesce.attach(1, Kicker::new(kick.clone()));
        assert!(quiesce.enter(1));
        quiesce.close();
        assert_eq!(*kick.kicks.lock().unwrap(), 3);
    }
}
