//! A line as it is typed: from bytes to a command, with an echo. Bounded, whatever comes.

/// The longest command in bytes, as in QEMU (READLINE_CMD_BUF_SIZE).
const LONGEST: usize = 4095;

/// What is said of a longer one.
pub(super) const TOO_LONG: &str = "The line is too long: a command has at most 4095 bytes";

const CTRL_U: u8 = 0x15;
const CTRL_W: u8 = 0x17;
const BACKSPACE: u8 = 0x08;
const ESCAPE: u8 = 0x1b;
const DELETE: u8 = 0x7f;

/// What a byte meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    Nothing,
    /// The end of this line.
    Line(String),
    /// The end of a line that was longer than a command may be.
    TooLong,
}

/// Where in a terminal's key sequence the line is (ECMA-48, 5.4).
#[derive(Debug, Default, PartialEq, Eq)]
enum Key {
    #[default]
    Plain,
    Escape,
    Sequence,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Line {
    bytes: Vec<u8>,
    too_long: bool,
    key: Key,
    /// The last byte was a carriage return, whose line feed is part of the same key.
    returned: bool,
}

impl Line {
    /// Takes the next byte; appends to `echo` what the one who types shall see of it.
    pub(super) fn feed(&mut self, byte: u8, echo: &mut Vec<u8>) -> Typed {
        let returned = std::mem::replace(&mut self.returned, byte == b'\r');
        match std::mem::take(&mut self.key) {
            Key::Plain => {}
            // A sequence that no key sends must not swallow a command.
            _ if matches!(byte, b'\r' | b'\n') => {}
            Key::Escape => {
                if matches!(byte, b'[' | b'O') {
                    self.key = Key::Sequence;
                }
                return Typed::Nothing;
            }
            Key::Sequence => {
                if !(0x40..=0x7e).contains(&byte) {
                    self.key = Key::Sequence;
                }
                return Typed::Nothing;
            }
        }
        match byte {
            b'\n' if returned => {}
            b'\r' | b'\n' => {
                let bytes = std::mem::take(&mut self.bytes);
                return match std::mem::take(&mut self.too_long) {
                    true => Typed::TooLong,
                    false => Typed::Line(String::from_utf8_lossy(&bytes).into_owned()),
                };
            }
            ESCAPE => self.key = Key::Escape,
            BACKSPACE | DELETE => self.erase(echo),
            CTRL_U => {
                while !self.bytes.is_empty() {
                    self.erase(echo);
                }
            }
            CTRL_W => {
                while self.bytes.last() == Some(&b' ') {
                    self.erase(echo);
                }
                while self.bytes.last().is_some_and(|byte| *byte != b' ') {
                    self.erase(echo);
                }
            }
            0..0x20 => {}
            _ if self.bytes.len() >= LONGEST => self.too_long = true,
            _ => {
                self.bytes.push(byte);
                echo.push(byte);
            }
        }
        Typed::Nothing
    }

    /// Takes the last character away.
    fn erase(&mut self, echo: &mut Vec<u8>) {
        let mut erased = self.bytes.pop();
        // The bytes of a UTF-8 character behind its first.
        while erased.is_some_and(|byte| byte & 0xc0 == 0x80) {
            erased = self.bytes.pop();
        }
        if erased.is_some() {
            echo.extend_from_slice(b"\x08 \x08");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines typed, and the echo.
    fn typed(bytes: &[u8]) -> (Vec<String>, String) {
        let (mut line, mut echo, mut lines) = (Line::default(), Vec::new(), Vec::new());
        for byte in bytes {
            match line.feed(*byte, &mut echo) {
                Typed::Nothing => {}
                Typed::Line(text) => lines.push(text),
                Typed::TooLong => lines.push(TOO_LONG.to_owned()),
            }
        }
        (lines, String::from_utf8(echo).unwrap())
    }

    #[test]
    fn every_way_to_end_a_line_ends_one() {
        assert_eq!(typed(b"a\nb\rc\r\nd\n").0, ["a", "b", "c", "d"]);
    }

    #[test]
    fn an_empty_line_is_one() {
        assert_eq!(typed(b"\n\n").0, ["", ""]);
    }

    #[test]
    fn backspace_takes_back_a_character_of_several_bytes() {
        let (lines, echo) = typed("äb\x7f\x7fc\n".as_bytes());
        assert_eq!((lines, echo.as_str()), (vec!["c".to_owned()], "äb\x08 \x08\x08 \x08c"));
    }

    #[test]
    fn ctrl_w_takes_back_a_word_and_ctrl_u_all() {
        assert_eq!(typed(b"info status \x17kvm\n").0, ["info kvm"]);
        assert_eq!(typed(b"info status\x15stop\n").0, ["stop"]);
    }

    #[test]
    fn cursor_keys_are_no_text() {
        assert_eq!(typed(b"\x1b[Asto\x1b[3~p\x1bOB\n").0, ["stop"]);
    }

    #[test]
    fn an_unfinished_key_does_not_swallow_the_next_command() {
        assert_eq!(typed(b"\x1b[\nstop\n").0, ["", "stop"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_told_and_not_kept() {
        let mut input = vec![b'a'; LONGEST];
        input.push(b'\n');
        assert_eq!(typed(&input).0, ["a".repeat(LONGEST)]);
        input.insert(0, b'a');
        input.extend(b"stop\n");
        assert_eq!(typed(&input).0, [TOO_LONG, "stop"]);
    }

    #[test]
    fn control_characters_are_neither_kept_nor_echoed() {
        assert_eq!(typed(b"s\0t\x07op\n"), (vec!["stop".to_owned()], "stop".to_owned()));
    }
}
