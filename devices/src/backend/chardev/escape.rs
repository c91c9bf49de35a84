//! The escape key of a serial port on a terminal: Ctrl-A, then a letter, as QEMU users know it.
//!
//! [`Escape`] is a pure state machine; [`EscapeFilter`] puts it in front of a guest's input. Neither touches a terminal or
//! decides what a command does.

use std::fmt;

use super::InputFilter;

/// The escape key.
pub const CTRL_A: u8 = 0x01;

/// What Ctrl-A H prints, for a terminal in raw mode.
pub const HELP: &str = "\r\n\
    Ctrl-A H    print this help\r\n\
    Ctrl-A X    end the virtual machine\r\n\
    Ctrl-A B    send a break to the guest (Linux: magic SysRq)\r\n\
    Ctrl-A C    switch between the serial port and the monitor, if there is one\r\n\
    Ctrl-A Ctrl-A    send Ctrl-A to the guest\r\n";

/// A command typed after the escape key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapeCommand {
    /// Ctrl-A X: end the machine.
    Quit,
    /// Ctrl-A H (or ?): show the keys. [`EscapeFilter`] answers it itself.
    Help,
    /// Ctrl-A B: a break condition on the line.
    Break,
    /// Ctrl-A C: switch to the monitor and back.
    Monitor,
}

/// What one byte of input meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escaped {
    /// It is for the guest.
    Data(u8),
    /// It completed a command.
    Command(EscapeCommand),
    /// It was the escape key, or an unknown letter after it; the guest sees nothing.
    Nothing,
}

/// Remembers whether the escape key was the last one pressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Takes the next byte.
    pub fn feed(&mut self, byte: u8) -> Escaped {
        if !self.pending {
            self.pending = byte == CTRL_A;
            return if self.pending { Escaped::Nothing } else { Escaped::Data(byte) };
        }
        self.pending = false;
        match byte {
            CTRL_A => Escaped::Data(CTRL_A),
            b'x' | b'X' => Escaped::Command(EscapeCommand::Quit),
            b'h' | b'H' | b'?' => Escaped::Command(EscapeCommand::Help),
            b'b' | b'B' => Escaped::Command(EscapeCommand::Break),
            b'c' | b'C' => Escaped::Command(EscapeCommand::Monitor),
            _ => Escaped::Nothing,
        }
    }
}

/// An [`InputFilter`] that takes the escape sequences out of a guest's input and reports them.
pub struct EscapeFilter {
    escape: Escape,
    on_command: Box<dyn FnMut(EscapeCommand) + Send>,
}

impl EscapeFilter {
    /// `on_command` hears of every command but Help; it is called on the reading thread and should return soon.
    pub fn new(on_command: impl FnMut(EscapeCommand) + Send + 'static) -> Self {
        EscapeFilter { escape: Escape::default(), on_command: Box::new(on_command) }
    }
}

impl InputFilter for EscapeFilter {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>, to_user: &mut Vec<u8>) {
        for byte in input {
            match self.escape.feed(*byte) {
                Escaped::Data(byte) => to_guest.push(byte),
                Escaped::Nothing => {}
                // Once for a chunk is enough, and keeps a paste of it from flooding the terminal.
                Escaped::Command(EscapeCommand::Help) if to_user.is_empty() => {
                    to_user.extend_from_slice(HELP.as_bytes());
                }
                Escaped::Command(EscapeCommand::Help) => {}
                Escaped::Command(command) => (self.on_command)(command),
            }
        }
    }
}

impl fmt::Debug for EscapeFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EscapeFilter").field("escape", &self.escape).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn feed(input: &[u8]) -> Vec<Escaped> {
        let mut escape = Escape::default();
        input.iter().map(|byte| escape.feed(*byte)).collect()
    }

    #[test]
    fn ordinary_bytes_pass() {
        assert_eq!(feed(b"x\0"), [Escaped::Data(b'x'), Escaped::Data(0)]);
    }

    #[test]
    fn ctrl_a_x_quits() {
        assert_eq!(feed(b"\x01x"), [Escaped::Nothing, Escaped::Command(EscapeCommand::Quit)]);
    }

    #[test]
    fn commands_ignore_case() {
        assert_eq!(feed(b"\x01X")[1], Escaped::Command(EscapeCommand::Quit));
        assert_eq!(feed(b"\x01H")[1], Escaped::Command(EscapeCommand::Help));
        assert_eq!(feed(b"\x01B")[1], Escaped::Command(EscapeCommand::Break));
        assert_eq!(feed(b"\x01c")[1], Escaped::Command(EscapeCommand::Monitor));
    }

    #[test]
    fn ctrl_a_twice_sends_one() {
        assert_eq!(feed(b"\x01\x01x"), [Escaped::Nothing, Escaped::Data(CTRL_A), Escaped::Data(b'x')]);
    }

    #[test]
    fn an_unknown_letter_after_the_escape_is_swallowed_and_ends_it() {
        assert_eq!(feed(b"\x01qx"), [Escaped::Nothing, Escaped::Nothing, Escaped::Data(b'x')]);
    }

    #[test]
    fn a_sequence_may_be_split_between_reads() {
        let (sender, commands) = channel();
        let mut filter = EscapeFilter::new(move |command| sender.send(command).unwrap());
        let (mut to_guest, mut to_user) = (Vec::new(), Vec::new());
        filter.filter(b"a\x01", &mut to_guest, &mut to_user);
        filter.filter(b"xb", &mut to_guest, &mut to_user);
        assert_eq!((to_guest.as_slice(), to_user.len()), (&b"ab"[..], 0));
        assert_eq!(commands.try_recv(), Ok(EscapeCommand::Quit));
    }

    #[test]
    fn help_goes_to_the_user_and_not_to_the_guest() {
        let mut filter = EscapeFilter::new(|_| panic!("help is no command of the caller's"));
        let (mut to_guest, mut to_user) = (Vec::new(), Vec::new());
        filter.filter(b"\x01h", &mut to_guest, &mut to_user);
        assert!(to_guest.is_empty());
        assert_eq!(to_user, HELP.as_bytes());
    }
}
