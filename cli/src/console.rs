//! The person's side of the serial port: standard streams, raw mode of the terminal, and the keys behind Ctrl-A.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use hvrun_vmm::serial::escape::{EscapeCommand, EscapeFilter};
use hvrun_vmm::serial::terminal::{self, RawTerminal};
use hvrun_vmm::serial::{InputFilter, StdioStreams};
use hvrun_vmm::{MachineBuilder, MachineConfig, MachineControl, MonitorPlace};

/// Gives the terminal its mode back before a panic's message is printed.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore();
        print(info);
    }));
}

/// Controls the machine once there is one. Keys and signals may come earlier.
#[derive(Debug, Clone, Default)]
pub struct Remote(Arc<OnceLock<MachineControl>>);

impl Remote {
    /// From now on this machine is meant.
    pub fn attach(&self, control: MachineControl) {
        // There is one machine a process.
        let _ = self.0.set(control);
    }

    /// The machine, if there is one by now.
    pub fn machine(&self) -> Option<&MachineControl> {
        self.0.get()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Console {
    remote: Remote,
    /// The serial port or a console is on standard input and output.
    on_stdio: bool,
    /// A monitor shares the serial port, so the machine looks for the keys itself.
    shared: bool,
}

impl Console {
    /// The person's side of the machine that `config` describes, which is not there yet.
    pub fn new(config: &MachineConfig) -> Self {
        let shared = config.monitors.iter().any(|monitor| monitor.to == MonitorPlace::Serial);
        Console { remote: Remote::default(), on_stdio: config.is_on_stdio(), shared }
    }

    /// What keys and signals control.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// The machine to be, with the standard streams for what is on them.
    pub fn connect(&self, config: MachineConfig) -> Result<MachineBuilder> {
        let builder = MachineBuilder::new(config);
        Ok(if self.on_stdio { builder.stdio(self.streams()?) } else { builder })
    }

    /// Duplicates, so that closing them leaves the process' own descriptors alone.
    fn streams(&self) -> Result<StdioStreams> {
        let stdin = io::stdin();
        let input = stdin.as_fd().try_clone_to_owned().context("cannot use standard input")?;
        let output = io::stdout().as_fd().try_clone_to_owned().context("cannot use standard output")?;
        // What comes through a pipe is data; only a person types Ctrl-A X.
        let filter = (stdin.is_terminal() && !self.shared).then(|| self.keys());
        Ok(StdioStreams { input: Some(input), output, filter })
    }

    fn keys(&self) -> Box<dyn InputFilter> {
        let remote = self.remote.clone();
        Box::new(EscapeFilter::new(move |command| {
            let Some(machine) = remote.machine() else { return };
            match command {
                EscapeCommand::Quit => machine.stop(),
                EscapeCommand::Break => machine.send_break(),
                // The filter answers Help itself, and where there is a monitor to switch to, there is no filter.
                EscapeCommand::Help | EscapeCommand::Monitor => {}
            }
        }))
    }

    /// Puts the terminal on standard input, if the serial port is there and there is one, into raw mode until the returned
    /// value is dropped.
    pub fn enter_raw_mode(&self) -> Result<Option<RawTerminal>> {
        if !self.on_stdio {
            return Ok(None);
        }
        Ok(RawTerminal::enter(io::stdin())?)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::tcgetattr;

    use super::*;

    #[test]
    fn panic_of_any_thread_gives_the_terminal_its_mode_back() {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let mode = || tcgetattr(&terminal).unwrap().local_modes;
        let cooked = mode();
        restore_on_panic();
        let _raw = RawTerminal::enter(&terminal).unwrap();
        let raw = mode();

        std::thread::spawn(|| panic!("on purpose")).join().unwrap_err();

        assert_ne!(raw, cooked);
        assert_eq!(mode(), cooked);
    }
}
