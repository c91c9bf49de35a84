//! A pseudo-terminal that stands in for the person's terminal.

use anyhow::Result;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{ControlModes, InputModes, LocalModes, OutputModes, tcgetattr};
use std::fs::File;
use std::process::Stdio;

/// The settings of a terminal that raw mode changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    input: InputModes,
    output: OutputModes,
    control: ControlModes,
    local: LocalModes,
}

impl Modes {
    /// Whether lines are edited, echoed, and Ctrl-C is a signal, as a shell wants it.
    pub fn is_cooked(&self) -> bool {
        self.local.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    /// The person's end.
    person: File,
    /// The program's end, kept open so that its settings can be looked at after the program has ended.
    program: File,
}

impl Terminal {
    /// A new terminal in its usual (cooked) settings.
    pub fn open() -> Result<Self> {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&person)?;
        unlockpt(&person)?;
        let name = ptsname(&person, Vec::new())?;
        let program = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        Ok(Terminal { person: person.into(), program: program.into() })
    }

    /// Its settings at the moment.
    pub fn modes(&self) -> Result<Modes> {
        let termios = tcgetattr(&self.program)?;
        Ok(Modes {
            input: termios.input_modes,
            output: termios.output_modes,
            control: termios.control_modes,
            local: termios.local_modes,
        })
    }

    /// Another handle on the same terminal, to look at its settings later.
    pub fn try_clone(&self) -> Result<Terminal> {
        Ok(Terminal { person: self.person.try_clone()?, program: self.program.try_clone()? })
    }

    pub(crate) fn person(&self) -> Result<File> {
        Ok(self.person.try_clone()?)
    }

    pub(crate) fn stdio(&self) -> Result<Stdio> {
        Ok(self.program.try_clone()?.into())
    }
}
