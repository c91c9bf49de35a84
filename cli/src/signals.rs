//! Signals that mean "end": the machine ends as by Ctrl-A X. A second one does not wait for it any more. And the one that means a
//! full disk, which is an error of whoever writes and ends nothing.

use std::io;
use std::process;
use std::sync::Arc;
use std::thread;

use hvrun_vmm::serial::terminal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};

use crate::console::Remote;

/// What a shell adds to a signal's number for the exit code of a process that the signal ended.
const EXIT_BY_SIGNAL: i32 = 128;

/// Watches for signals until dropped.
#[derive(Debug)]
pub struct Watch(Handle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// From now on, a write beyond the process' limit on file sizes (`ulimit -f`) fails with EFBIG, as one to a full disk does, instead of
/// ending the process: the guest sees an I/O error of that disk, and the others live on. Programs that are started do not inherit it.
pub fn survive_file_size_limit() -> io::Result<()> {
    // What it sets is of no interest; that there is a handler is.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// Begins to watch, on a thread of its own.
pub fn watch(remote: Remote) -> io::Result<Watch> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let handle = signals.handle();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut asked = false;
        for signal in &mut signals {
            match remote.machine() {
                Some(machine) if !asked => {
                    log::warn!("terminating on signal {signal}");
                    machine.stop();
                    asked = true;
                }
                // Nothing runs yet, or it was asked before and its end is stuck behind a consumer of its output.
                _ => {
                    terminal::restore();
                    process::exit(EXIT_BY_SIGNAL + signal);
                }
            }
        }
    })?;
    Ok(Watch(handle))
}
