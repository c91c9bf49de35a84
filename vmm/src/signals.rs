//! Keeps the process' signals away from the machine's threads, so that they reach the threads that expect them.
//! It handles no signal.

use std::mem::MaybeUninit;

/// Signals that report a fault of the very thread; blocking them would only make it die without a word.
const SYNCHRONOUS: [libc::c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS];

/// Runs `body` with all asynchronous signals blocked. The threads it starts inherit that for good.
pub(crate) fn blocked<T>(body: impl FnOnce() -> T) -> T {
    let _guard = Blocked::new();
    body()
}

/// Restores the thread's signal mask when dropped.
struct Blocked {
    former: libc::sigset_t,
}

impl Blocked {
    fn new() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut former = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises `all` and pthread_sigmask `former`; with valid pointers and a known `how` neither
        // can fail (POSIX.1-2017).
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            for signal in SYNCHRONOUS {
                libc::sigdelset(all.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), former.as_mut_ptr());
            Blocked { former: former.assume_init() }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: `former` is a mask that pthread_sigmask has written; a null pointer means no answer is wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.former, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_blocked(signal: libc::c_int) -> bool {
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: without a new mask the call only writes the present one.
        let mask = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr());
            mask.assume_init()
        };
        // SAFETY: `mask` is initialised.
        unsafe { libc::sigismember(&raw const mask, signal) == 1 }
    }

    #[test]
    fn threads_started_inside_block_sigterm_and_not_sigsegv() {
        let thread =
            blocked(|| std::thread::spawn(|| (is_blocked(libc::SIGTERM), is_blocked(libc::SIGSEGV))));
        assert_eq!(thread.join().unwrap(), (true, false));
    }

    #[test]
    fn callers_mask_is_restored() {
        blocked(|| ());
        assert!(!is_blocked(libc::SIGTERM));
    }
}
