//! Where a message ends: QMP has no frames, only JSON values, which may take several lines or share one. Bounded, whatever comes.
//!
//! Strings may have single quotes, as QEMU's own may ([`parse`] gives them double ones). After something that is no JSON the rest of the
//! line is skipped.

use std::borrow::Cow;

use serde_json::Value;

/// The longest message in bytes. The largest that programs send are some KiB.
pub(super) const LONGEST: usize = 1024 * 1024;

/// What the bytes so far make.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A whole value.
    Text(String),
    /// Something else, and what is wrong with it.
    Wrong(String),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Outside of strings.
    #[default]
    Plain,
    /// In a string with this quote.
    Quoted(u8),
    /// Behind a backslash in it.
    Escaped(u8),
    /// Behind something wrong: until the line's end.
    Skipping,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Framing {
    at: At,
    /// How many brackets and braces are open.
    depth: u32,
    bytes: Vec<u8>,
}

impl Framing {
    /// Takes the next byte.
    pub(super) fn feed(&mut self, byte: u8) -> Option<Message> {
        if self.at == At::Skipping {
            if byte == b'\n' {
                self.at = At::Plain;
            }
            return None;
        }
        if self.bytes.is_empty() && byte.is_ascii_whitespace() {
            return None;
        }
        // At the end of a scalar, which no bracket closes; no command is one.
        if self.depth == 0 && self.at == At::Plain && byte == b'\n' {
            return Some(self.end());
        }
        // 0xff is what clients send to end whatever came before them.
        if byte == 0xff || byte < 0x20 && !byte.is_ascii_whitespace() {
            return Some(self.wrong(byte, format!("JSON parse error, byte {byte:#04x} is not allowed")));
        }
        if self.bytes.len() >= LONGEST {
            return Some(
                self.wrong(byte, format!("JSON message too long: it has more than {LONGEST} bytes")),
            );
        }
        self.bytes.push(byte);
        match (self.at, byte) {
            (At::Plain, b'{' | b'[') => self.depth = self.depth.saturating_add(1),
            (At::Plain, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    return Some(self.end());
                }
            }
            (At::Plain, b'"' | b'\'') => self.at = At::Quoted(byte),
            (At::Plain | At::Skipping, _) => {}
            (At::Quoted(quote), b'\\') => self.at = At::Escaped(quote),
            (At::Quoted(quote), _) if byte == quote => self.at = At::Plain,
            (At::Quoted(_), _) => {}
            (At::Escaped(quote), _) => self.at = At::Quoted(quote),
        }
        None
    }

    /// The value is whole.
    fn end(&mut self) -> Message {
        let bytes = std::mem::take(self).bytes;
        match String::from_utf8(bytes) {
            Ok(text) => Message::Text(text),
            Err(_) => Message::Wrong("JSON parse error, it is not UTF-8".to_owned()),
        }
    }

    /// It is none, which `byte` has shown.
    fn wrong(&mut self, byte: u8, what: String) -> Message {
        *self = Framing::default();
        if byte != b'\n' && byte != 0xff {
            self.at = At::Skipping;
        }
        Message::Wrong(what)
    }
}

/// The value that `text` is, or what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(&double_quoted(text)).map_err(|error| format!("JSON parse error, {error}"))
}

/// `text` with its single-quoted strings in double quotes.
fn double_quoted(text: &str) -> Cow<'_, str> {
    if !text.contains('\'') {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '"' | '\'') => {
                quote = Some(c);
                quoted.push('"');
            }
            (Some(open), _) if c == open => {
                quote = None;
                quoted.push('"');
            }
            (Some('\''), '"') => quoted.push_str("\\\""),
            (Some(_), '\\') => match chars.next() {
                Some('\'') => quoted.push('\''),
                Some(escaped) => quoted.extend(['\\', escaped]),
                None => quoted.push('\\'),
            },
            _ => quoted.push(c),
        }
    }
    Cow::Owned(quoted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(bytes: &[u8]) -> Vec<Message> {
        let mut framing = Framing::default();
        bytes.iter().filter_map(|byte| framing.feed(*byte)).collect()
    }

    fn text(text: &str) -> Message {
        Message::Text(text.to_owned())
    }

    #[test]
    fn a_message_ends_with_its_last_brace() {
        assert_eq!(messages(b" {\"a\": {}}"), [text("{\"a\": {}}")]);
    }

    #[test]
    fn messages_may_share_a_line_and_take_several() {
        assert_eq!(messages(b"{}{\n\"a\":\r\n[]}\n"), [text("{}"), text("{\n\"a\":\r\n[]}")]);
    }

    #[test]
    fn braces_in_strings_do_not_count() {
        assert_eq!(messages(br#"{"}\"}": '"}'}"#), [text(r#"{"}\"}": '"}'}"#)]);
    }

    #[test]
    fn a_line_that_is_no_json_is_one_message() {
        assert_eq!(messages(b"hello\n{}"), [text("hello"), text("{}")]);
    }

    #[test]
    fn a_control_character_ends_the_message_and_the_line() {
        let found = messages(b"{\"a\x01{}}}\n{}");
        assert!(matches!(&found[..], [Message::Wrong(_), Message::Text(_)]), "{found:?}");
    }

    #[test]
    fn ff_ends_what_came_before_it_and_nothing_else() {
        let found = messages(b"{\"a\": \"\xff{}");
        assert!(matches!(&found[..], [Message::Wrong(_), Message::Text(_)]), "{found:?}");
    }

    #[test]
    fn ten_mib_are_refused_and_not_kept() {
        let mut framing = Framing::default();
        let mut found = Vec::new();
        for byte in b"{\"".iter().chain(&vec![b'a'; 10 << 20]).chain(b"\"}\n{}") {
            found.extend(framing.feed(*byte));
            assert!(framing.bytes.capacity() <= 2 * LONGEST);
        }
        assert!(matches!(&found[..], [Message::Wrong(what), Message::Text(_)] if what.contains("too long")));
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn single_quoted_strings_are_strings() {
        assert_eq!(parse(r#"{'a': 'b "c" \'d\'', "e": "f'g"}"#), Ok(json!({"a": "b \"c\" 'd'", "e": "f'g"})));
    }
}
