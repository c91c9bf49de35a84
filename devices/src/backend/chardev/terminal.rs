//! Raw mode of the terminal that a person sits at, undone on every way out of the process.
//!
//! It knows no serial port. There is one such terminal a process, so its former mode is kept in a static, where a panic hook or
//! a signal-handling thread finds it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcgetpgrp, tcsetattr,
};

use crate::util::lock;

/// The terminal in raw mode, and how it was before.
static SAVED: Mutex<Option<Saved>> = Mutex::new(None);

/// Numbers the guards, so that one whose terminal was restored already leaves its successor's alone.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

struct Saved {
    /// Which [`RawTerminal`] this belongs to.
    id: u64,
    fd: OwnedFd,
    termios: Termios,
}

/// Why raw mode could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// There is only one terminal to sit at.
    #[error("the terminal already is in raw mode")]
    AlreadyRaw,
    /// The descriptor cannot be used.
    #[error("cannot set the terminal's mode")]
    Mode(#[source] io::Error),
}

/// A terminal in raw mode: keys reach the guest as they are typed, Ctrl-C and Ctrl-Z too. Dropping it restores the mode.
#[derive(Debug)]
pub struct RawTerminal {
    id: u64,
}

impl RawTerminal {
    /// Puts the terminal behind `fd` into raw mode. `None` if it is none: a pipe or a file needs no mode.
    ///
    /// Output processing stays as it is, so that log lines on the same terminal begin at its left edge.
    pub fn enter(fd: impl AsFd) -> Result<Option<RawTerminal>, TerminalError> {
        let fd = fd.as_fd();
        if !isatty(fd) {
            return Ok(None);
        }
        let mut saved = lock(&SAVED);
        if saved.is_some() {
            return Err(TerminalError::AlreadyRaw);
        }
        let failed = |error: rustix::io::Errno| TerminalError::Mode(error.into());
        let termios = tcgetattr(fd).map_err(failed)?;
        let own = fd.try_clone_to_owned().map_err(TerminalError::Mode)?;
        let raw = raw(termios.clone());
        // Kept before it is needed: a signal may ask for it right after the mode has changed.
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        *saved = Some(Saved { id, fd: own, termios });
        if let Err(error) = tcsetattr(fd, OptionalActions::Now, &raw) {
            *saved = None;
            return Err(failed(error));
        }
        Ok(Some(RawTerminal { id }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_if(|saved| saved.id == self.id);
    }
}

/// Gives the terminal its former mode back, if it was changed. Does nothing the second time. For panic hooks and threads that
/// handle signals; it takes a lock, so it must not be called from within a signal handler itself.
pub fn restore() {
    restore_if(|_| true);
}

fn restore_if(condition: impl FnOnce(&mut Saved) -> bool) {
    let Some(saved) = lock(&SAVED).take_if(condition) else { return };
    // In the background this would stop the process (SIGTTOU), and the terminal is another program's now.
    if tcgetpgrp(&saved.fd).is_ok_and(|group| group != rustix::process::getpgrp()) {
        return;
    }
    let _ = tcsetattr(&saved.fd, OptionalActions::Now, &saved.termios);
}

/// `mode` without everything that keeps a key from the guest.
fn raw(mut mode: Termios) -> Termios {
    mode.input_modes -= InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON;
    mode.local_modes -=
        LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG | LocalModes::IEXTEN;
    mode.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
    mode.control_modes |= ControlModes::CS8;
    mode.special_codes[SpecialCodeIndex::VMIN] = 1;
    mode.special_codes[SpecialCodeIndex::VTIME] = 0;
    mode
}
