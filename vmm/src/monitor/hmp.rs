//! The monitor for people: a prompt, a line, an answer, the prompt again. What the commands do is in [`commands`].
//!
//! Programs that drive it wait for text that ends with the prompt, so nothing follows it until the next command; what a command does is
//! done before it. As QEMU's, it echoes what is typed, so that it serves a terminal in raw mode and a program alike.

mod commands;
mod info;
mod line;
mod memory;
mod words;

use std::sync::Arc;

use super::QEMU_VERSION;
use super::outbox::Outbox;
use super::session::Protocol;
use super::target::Target;
use crate::running::MachineEvent;

pub(super) use commands::{Answer, Then, execute};
use line::{Line, Typed};
pub(super) use memory::{Space, save};

/// What the driver waits for.
const PROMPT: &str = "(qemu) ";

/// See the module.
pub(super) struct Hmp {
    target: Arc<dyn Target>,
    line: Line,
}

impl Hmp {
    pub(super) fn new(target: Arc<dyn Target>) -> Self {
        Hmp { target, line: Line::default() }
    }
}

/// Line ends as terminals in raw mode and QEMU's clients know them.
pub(super) fn crlf(text: &str) -> String {
    text.replace('\n', "\r\n")
}

impl Protocol for Hmp {
    fn connected(&mut self, out: &Outbox) {
        self.line = Line::default();
        let [major, minor, micro] = QEMU_VERSION;
        let banner =
            format!("QEMU {major}.{minor}.{micro} monitor - type 'help' for more information\r\n{PROMPT}");
        out.send(banner.as_bytes());
    }

    fn input(&mut self, bytes: &[u8], out: &Outbox) {
        let mut said = Vec::new();
        for byte in bytes {
            let line = match self.line.feed(*byte, &mut said) {
                Typed::Nothing => continue,
                Typed::TooLong => Err(line::TOO_LONG),
                Typed::Line(line) => Ok(line),
            };
            said.extend_from_slice(b"\r\n");
            let answer = match line {
                Ok(line) => execute(self.target.as_ref(), &line),
                Err(error) => Answer::text(format!("{error}\n")),
            };
            said.extend_from_slice(crlf(&answer.text).as_bytes());
            if answer.then == Then::Quit {
                out.send(&said);
                self.target.quit();
                return;
            }
            said.extend_from_slice(PROMPT.as_bytes());
            out.wait_for_room();
            out.send(&said);
            said.clear();
        }
        if !said.is_empty() {
            out.send(&said);
        }
    }

    /// People look for themselves.
    fn message(_event: MachineEvent, _pretty: bool) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
mod tests;
