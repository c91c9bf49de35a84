//! JSON as QEMU writes it: a blank behind each comma and colon, or laid out for people. Some programs look for `"return": {}`.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

struct Blanks;

impl Formatter for Blanks {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `value` and the line's end.
pub(super) fn line(value: &Value, pretty: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory cannot fail, and every value has a text.
    let _ = match pretty {
        true => value
            .serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "))),
        false => value.serialize(&mut Serializer::with_formatter(&mut bytes, Blanks)),
    };
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_one_line_with_blanks_as_qemu_has_them() {
        let text = line(&json!({ "return": { "a": [1, "b\n"], "c": {} } }), false);
        assert_eq!(text, b"{\"return\": {\"a\": [1, \"b\\n\"], \"c\": {}}}\r\n");
    }

    #[test]
    fn pretty_takes_a_line_a_member() {
        assert_eq!(line(&json!({ "return": {} }), true), b"{\n    \"return\": {}\n}\r\n");
    }
}
