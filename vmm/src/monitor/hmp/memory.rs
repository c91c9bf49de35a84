//! `x`, `xp` and their like: the guest's memory, shown or written to a file. Only RAM: looking at a device may change it.

use std::fmt::Write;
use std::io;
use std::path::Path;

use hvrun_arch::aarch64::translate::Regime;

use super::super::target::Target;

/// What is said where nobody can tell how a CPU translates.
const NO_VIEW: &str = "Cannot access memory\n";
/// The most bytes that are shown at once.
const MOST: u64 = 64 * 1024;
/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;

/// Whose addresses are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum Space {
    /// The machine's.
    Physical,
    /// What that CPU makes of its own.
    Virtual(u32),
}

/// Memory as it is seen through a [`Space`].
struct View<'a> {
    target: &'a dyn Target,
    /// Who translates, if anybody has to.
    regime: Option<Regime>,
}

/// The smallest page: no translation changes within it (Arm ARM D8.1.8).
const PAGE: u64 = 4096;

impl<'a> View<'a> {
    /// `None`: it cannot be told how the CPU translates.
    fn new(target: &'a dyn Target, space: Space) -> Option<Self> {
        let regime = match space {
            Space::Physical => None,
            Space::Virtual(cpu) => Some(target.regime(cpu)?),
        };
        Some(View { target, regime })
    }

    /// Reads memory; false if not all of it is there.
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some(regime) = &self.regime else { return self.target.read_memory(address, data) };
        let word = |at: u64| {
            let mut bytes = [0; 8];
            self.target.read_memory(at, &mut bytes).then(|| u64::from_le_bytes(bytes))
        };
        let (mut at, mut rest) = (address, data);
        while !rest.is_empty() {
            let in_page = usize::try_from(PAGE - at % PAGE).unwrap_or(1).min(rest.len());
            let (part, behind) = rest.split_at_mut(in_page);
            let Ok(found) = regime.walk(at, word) else { return false };
            if !self.target.read_memory(found.ipa, part) {
                return false;
            }
            at = at.wrapping_add(in_page as u64);
            rest = behind;
        }
        true
    }
}

/// How values are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Hex,
    Signed,
    Unsigned,
    Octal,
    Char,
}

/// What is behind the slash: how many values, how long each, how shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    count: u64,
    size: usize,
    base: Base,
}

impl Format {
    /// Reads what is behind the slash; an error is what is said of it.
    fn parse(text: &str) -> Result<Format, String> {
        let letters = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let digits = text.strip_suffix(letters).unwrap_or_default();
        let count = if digits.is_empty() { Ok(1) } else { digits.parse() };
        let mut format = Format { count: count.unwrap_or(u64::MAX), size: 4, base: Base::Hex };
        for letter in letters.chars() {
            match letter {
                'x' => format.base = Base::Hex,
                'd' => format.base = Base::Signed,
                'u' => format.base = Base::Unsigned,
                'o' => format.base = Base::Octal,
                'c' => format.base = Base::Char,
                'b' => format.size = 1,
                'h' => format.size = 2,
                'w' => format.size = 4,
                'g' => format.size = 8,
                'i' => return Err("there is no disassembler; use x instead of i".to_owned()),
                other => return Err(format!("invalid char in format: '{other}'")),
            }
        }
        if format.base == Base::Char {
            format.size = 1;
        }
        Ok(format)
    }

    /// A value, with the blank before it.
    fn show(self, text: &mut String, bytes: &[u8]) {
        let mut padded = [0; 8];
        padded.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(padded);
        let bits = self.size * 8;
        // Writing to a string cannot fail. Widths are QEMU's: as many digits as the longest value has.
        let _ = match self.base {
            Base::Hex => write!(text, " 0x{value:00$x}", bits / 4),
            Base::Unsigned => write!(text, " {value:0$}", (bits * 10).div_ceil(33)),
            Base::Signed if self.size == 8 => {
                write!(text, " {:1$}", value.cast_signed(), (bits * 10).div_ceil(33))
            }
            Base::Signed => write!(text, " {value:0$}", (bits * 10).div_ceil(33)),
            Base::Octal => {
                let octal = if value == 0 { "0".to_owned() } else { format!("0{value:o}") };
                write!(text, " {octal:>0$}", bits.div_ceil(3))
            }
            Base::Char => write!(text, " {}", printable(value.to_le_bytes()[0])),
        };
    }
}

fn printable(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b' '..=b'~' => format!("'{}'", char::from(byte)),
        _ => format!(r"'\x{byte:02x}'"),
    }
}

/// A number as people type it: decimal, or hexadecimal with `0x`.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `[/FORMAT] ADDRESS` of `command`: what RAM holds there.
pub(super) fn show(target: &dyn Target, command: &str, space: Space, args: &[String]) -> String {
    let wrong = |what: &str| format!("{what}\nTry \"help {command}\" for more information\n");
    let (format, address) = match args {
        [format, address] => match format.strip_prefix('/').map(Format::parse) {
            Some(Ok(format)) => (format, address),
            Some(Err(what)) => return wrong(&what),
            None => return wrong("extraneous characters at the end of line"),
        },
        [address] if !address.starts_with('/') => (Format { count: 1, size: 4, base: Base::Hex }, address),
        _ => return wrong("unexpected end of expression"),
    };
    let Some(address) = number(address) else {
        return wrong(&format!("'{address}' is no address: a number, such as 0x40000000, is one"));
    };
    if format.count.saturating_mul(format.size as u64) > MOST {
        return wrong(&format!("too much at once: at most {MOST} bytes are shown"));
    }
    match View::new(target, space) {
        Some(view) => dump(&view, format, address),
        None => NO_VIEW.to_owned(),
    }
}

fn dump(view: &View<'_>, format: Format, mut address: u64) -> String {
    // As many to a line as QEMU has.
    let per_line = if format.size == 1 && format.base != Base::Char { 8 } else { 16 / format.size };
    let mut text = String::new();
    let mut left = usize::try_from(format.count).unwrap_or(0);
    while left > 0 {
        let count = left.min(per_line);
        let mut bytes = vec![0; count * format.size];
        if !view.read(address, &mut bytes) {
            text.push_str("Cannot access memory\n");
            return text;
        }
        let _ = write!(text, "{address:016x}:");
        bytes.chunks(format.size).for_each(|value| format.show(&mut text, value));
        text.push('\n');
        address = address.wrapping_add(bytes.len() as u64);
        left -= count;
    }
    text
}

/// Writes `size` bytes from `address` on to the file `path`; an error is what is said of it.
pub(in crate::monitor) fn save(
    target: &dyn Target,
    space: Space,
    (address, size): (u64, u64),
    path: &Path,
) -> Result<(), String> {
    let view = View::new(target, space).ok_or("It cannot be told how the CPU translates addresses")?;
    let failed = |error: io::Error| format!("Could not write '{}': {error}", path.display());
    // Before the file is touched.
    let last = address.checked_add(size.saturating_sub(1));
    if size > 0 && !last.is_some_and(|last| [address, last].iter().all(|at| view.read(*at, &mut [0]))) {
        return Err(format!("Invalid addr 0x{address:016x}/size {size} specified"));
    }
    let mut file = std::fs::File::create(path).map_err(failed)?;
    let (mut at, mut left) = (address, size);
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let mut bytes = vec![0; count];
        if !view.read(at, &mut bytes) {
            return Err(format!("Invalid addr 0x{address:016x}/size {size} specified"));
        }
        io::Write::write_all(&mut file, &bytes).map_err(failed)?;
        at = at.wrapping_add(count as u64);
        left -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::FakeMachine;
    use super::*;

    fn shown(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        show(FakeMachine::new().as_ref(), "xp", Space::Physical, &words)
    }

    #[test]
    fn values_are_laid_out_as_qemu_lays_them_out() {
        for (format, expected) in [
            (
                "/5xw",
                "0000000040000004: 0x07060504 0x0b0a0908 0x0f0e0d0c 0x13121110\n0000000040000014: 0x17161514\n",
            ),
            ("/9xb", "0000000040000004: 0x04 0x05 0x06 0x07 0x08 0x09 0x0a 0x0b\n000000004000000c: 0x0c\n"),
            ("/1gx", "0000000040000004: 0x0b0a090807060504\n"),
            ("/2dh", "0000000040000004:  1284  1798\n"),
            ("/2uw", "0000000040000004:  117835012  185207048\n"),
            ("/2oh", "0000000040000004:  02404  03406\n"),
            ("/8c", "0000000040000004: '\\x04' '\\x05' '\\x06' '\\x07' '\\x08' '\\x09' '\\n' '\\x0b'\n"),
        ] {
            assert_eq!(shown(&[format, "0x40000004"]), expected, "{format}");
        }
        assert_eq!(shown(&["0x40000000"]), "0000000040000000: 0x03020100\n");
    }

    #[test]
    fn what_is_not_ram_is_not_shown() {
        assert_eq!(shown(&["/2xw", "0x40002ffc"]), "Cannot access memory\n");
        assert_eq!(shown(&["0x9000000"]), "Cannot access memory\n");
        assert_eq!(shown(&["/1xg", "0xfffffffffffffffc"]), "Cannot access memory\n");
    }

    #[test]
    fn wrong_formats_and_addresses_are_told() {
        for (words, wrong) in [
            (&["/z", "0"][..], "invalid char in format: 'z'"),
            (&["/i", "0"], "there is no disassembler"),
            (&["/99999999999999999999x", "0"], "too much at once"),
            (&["/100000xw", "0x40000000"], "too much at once"),
            (&["nowhere"], "'nowhere' is no address"),
            (&["/4xw"], "unexpected end of expression"),
            (&[], "unexpected end of expression"),
            (&["1", "2"], "extraneous characters"),
        ] {
            let text = shown(words);
            assert!(
                text.starts_with(wrong) && text.ends_with("Try \"help xp\" for more information\n"),
                "{text}"
            );
        }
    }

    #[test]
    fn saved_memory_is_in_the_file_and_a_wrong_range_makes_none() {
        let machine = FakeMachine::new();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        for range in [(0x4000_0000, 0x3001), (0, 1), (u64::MAX, 2)] {
            let error = save(machine.as_ref(), Space::Physical, range, &path).unwrap_err();
            assert!(error.starts_with("Invalid addr") && !path.exists(), "{error}");
        }
        save(machine.as_ref(), Space::Physical, (0x4000_0010, 3), &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0x10, 0x11, 0x12]);
        save(machine.as_ref(), Space::Virtual(0), (0x3020, 2), &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0x20, 0x21]);
    }

    #[test]
    fn virtual_addresses_go_through_the_page_tables() {
        let machine = FakeMachine::new();
        let shown = |cpu: u32, format: &str, address: &str| {
            show(machine.as_ref(), "x", Space::Virtual(cpu), &[format.to_owned(), address.to_owned()])
        };
        assert_eq!(shown(0, "/2xb", "0x1005"), "0000000000001005: 0x05 0x06\n");
        assert_eq!(shown(0, "/1xb", "0x30ff"), "00000000000030ff: 0xff\n");
        // What is mapped ends in the middle of the second value.
        assert_eq!(shown(0, "/2xw", "0x1ffa"), "Cannot access memory\n");
        assert_eq!(shown(0, "/1xw", "0x40000000"), "Cannot access memory\n");
        assert_eq!(shown(7, "/1xw", "0x1000"), "Cannot access memory\n");
    }
}
