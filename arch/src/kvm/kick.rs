//! How any thread gets a vCPU out of KVM_RUN: `immediate_exit` in the vCPU's shared page, then a signal to its thread.
//! Linux only; it needs no vCPU, only a file whose first page is such a page.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::rendezvous::Rendezvous;
use crate::hypervisor::Kick;

/// Offset of `immediate_exit` in `struct kvm_run` (uapi linux/kvm.h).
const IMMEDIATE_EXIT: usize = 1;

/// The thread of a vCPU that is gone.
const NOBODY: i32 = 0;

/// Kicks one vCPU. *Publish, kick, recheck*: the flag is set before the signal is sent. A signal that comes between the
/// flag's test in the kernel and the guest's entry ends the run; one that comes earlier finds the flag set at the next
/// KVM_RUN; so no kick is lost, but one may be seen twice.
pub struct KvmKick {
    /// A mapping of the vCPU's page of its own: it stays valid for as long as somebody may kick, and no Rust reference to
    /// the page's other bytes exists through it.
    page: NonNull<u8>,
    len: usize,
    signal: libc::c_int,
    thread: AtomicI32,
    start: Arc<Rendezvous>,
}

// SAFETY: the mapping belongs to the value alone and is only accessed through an atomic.
unsafe impl Send for KvmKick {}
// SAFETY: as above.
unsafe impl Sync for KvmKick {}

impl KvmKick {
    /// For the vCPU with this descriptor, which runs on the calling thread. The thread takes the signal from now on.
    pub fn new(vcpu: BorrowedFd<'_>, start: Arc<Rendezvous>) -> io::Result<Arc<Self>> {
        let signal = signal().ok_or_else(|| io::Error::other("no real-time signal is free"))?;
        // SAFETY: sysconf takes no pointer.
        let len = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(|_| io::Error::last_os_error())?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast::<u8>()).ok_or_else(|| io::Error::other("a mapping at 0"))?;
        unblock(signal)?;
        // SAFETY: gettid takes no pointer and cannot fail.
        let thread = AtomicI32::new(unsafe { libc::gettid() });
        Ok(Arc::new(KvmKick { page, len, signal, thread, start }))
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped while `self` lives, and an AtomicU8 has no alignment. The kernel only reads the byte,
        // and this process writes it through this atomic alone.
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(IMMEDIATE_EXIT)) }
    }

    /// Makes the next KVM_RUN do no more than complete the exit before it.
    pub fn ask(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// Takes note of the kicks so far; says whether there was one.
    pub fn take(&self) -> bool {
        self.immediate_exit().swap(0, Ordering::SeqCst) != 0
    }

    /// Whether there was a kick.
    pub fn is_asked(&self) -> bool {
        self.immediate_exit().load(Ordering::SeqCst) != 0
    }

    /// The vCPU is gone: kicks do nothing any more.
    pub fn retire(&self) {
        self.thread.store(NOBODY, Ordering::SeqCst);
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.ask();
        if !self.start.is_open() {
            self.start.wake();
        }
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != NOBODY {
            // SAFETY: tgkill takes no pointer. The signal has a handler; should the thread have ended since, and another
            // have its number, that one handles a signal that does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, self.signal) };
        }
    }
}

impl Drop for KvmKick {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody else can reach it.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for KvmKick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmKick").field("signal", &self.signal).field("thread", &self.thread).finish()
    }
}

/// The signal of all kicks of this process: the first real-time signal that nobody uses, with a handler that does nothing, and
/// without SA_RESTART, so that KVM_RUN ends with EINTR.
fn signal() -> Option<libc::c_int> {
    static SIGNAL: OnceLock<Option<libc::c_int>> = OnceLock::new();
    *SIGNAL.get_or_init(|| (libc::SIGRTMIN()..=libc::SIGRTMAX()).find(|&signal| install(signal)))
}

extern "C" fn nothing(_: libc::c_int) {}

/// Installs the handler, unless the signal has one.
fn install(signal: libc::c_int) -> bool {
    let mut former = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one.
    if unsafe { libc::sigaction(signal, ptr::null(), former.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: sigaction has written it.
    if unsafe { former.assume_init() }.sa_sigaction != libc::SIG_DFL {
        return false;
    }
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler does nothing, which is async-signal-safe; the pointers are valid.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) == 0 }
}

/// Lets `signal` through to the calling thread.
fn unblock(signal: libc::c_int) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set; the pointers are valid.
    let error = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// A file with a page, in place of a vCPU.
    fn page() -> OwnedFd {
        // SAFETY: the name is a C string; the descriptor is new and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"vcpu".as_ptr(), libc::MFD_CLOEXEC)) };
        // SAFETY: ftruncate takes no pointer.
        assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), 4096) }, 0);
        fd
    }

    fn open() -> Arc<Rendezvous> {
        Arc::new(Rendezvous::new(1))
    }

    #[test]
    fn a_kick_interrupts_a_thread_that_sleeps_in_the_kernel() {
        let (sender, receiver) = mpsc::channel();
        let sleeper = thread::spawn(move || {
            let kick = KvmKick::new(page().as_fd(), open()).unwrap();
            // As KVM_RUN does: nothing comes between the look at the flag and the sleep, which lets the signal in.
            // SAFETY: all pointers are valid; the sets are initialised by the calls that write them.
            let slept = unsafe {
                let mut set = MaybeUninit::<libc::sigset_t>::uninit();
                libc::sigemptyset(set.as_mut_ptr());
                libc::sigaddset(set.as_mut_ptr(), kick.signal);
                libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
                libc::sigemptyset(set.as_mut_ptr());
                sender.send(kick.clone()).unwrap();
                libc::ppoll(ptr::null_mut(), 0, ptr::null(), set.as_ptr())
            };
            assert_eq!((slept, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINTR)));
            assert!(kick.take());
        });
        receiver.recv().unwrap().kick();
        sleeper.join().unwrap();
    }

    #[test]
    fn a_kick_sets_the_byte_that_the_kernel_reads() {
        let file = page();
        let kick = KvmKick::new(file.as_fd(), open()).unwrap();
        kick.kick();
        let mut bytes = [0u8; 4];
        // SAFETY: the buffer is as long as is said.
        let read = unsafe { libc::pread(file.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        assert_eq!((read, bytes), (4, [0, 1, 0, 0]));
    }

    #[test]
    fn a_kick_is_taken_once() {
        let kick = KvmKick::new(page().as_fd(), open()).unwrap();
        kick.kick();
        assert!(kick.take());
        assert!(!kick.take());
    }

    #[test]
    fn a_kick_outlives_its_vcpu() {
        let kick = KvmKick::new(page().as_fd(), open()).unwrap();
        kick.retire();
        kick.kick();
        assert!(kick.is_asked());
    }

    #[test]
    fn a_kick_ends_the_wait_for_the_other_cpus() {
        let start = Arc::new(Rendezvous::new(2));
        start.close();
        let (sender, receiver) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let kick = KvmKick::new(page().as_fd(), start.clone()).unwrap();
            sender.send(kick.clone()).unwrap();
            start.wait(|| kick.is_asked()).unwrap()
        });
        receiver.recv().unwrap().kick();
        assert_eq!(waiting.join().unwrap(), super::super::rendezvous::Waited::Interrupted);
    }
}
