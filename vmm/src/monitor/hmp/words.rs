//! A command line's words: separated by blanks, with double quotes around those that have some.

/// Why a line has no words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unterminated;

/// The words of `line`. Within quotes, a backslash takes the next character as it is, or stands for a line's end (`\n`, `\r`).
pub(super) fn split(line: &str) -> Result<Vec<String>, Unterminated> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(first) = chars.next() else { return Ok(words) };
        let mut word = String::new();
        if first == '"' {
            loop {
                match chars.next().ok_or(Unterminated)? {
                    '"' => break,
                    '\\' => match chars.next().ok_or(Unterminated)? {
                        'n' => word.push('\n'),
                        'r' => word.push('\r'),
                        other => word.push(other),
                    },
                    other => word.push(other),
                }
            }
        } else {
            word.push(first);
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
        }
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_separate_words() {
        assert_eq!(split("  set_link\tnet0  off ").unwrap(), ["set_link", "net0", "off"]);
        assert!(split(" ").unwrap().is_empty());
    }

    #[test]
    fn quotes_keep_a_word_together() {
        assert_eq!(split(r#"screendump "/tmp/a b\"\\" x"#).unwrap(), ["screendump", r#"/tmp/a b"\"#, "x"]);
    }

    #[test]
    fn a_quote_that_does_not_end_is_an_error() {
        assert_eq!(split("x \"a b"), Err(Unterminated));
        assert_eq!(split("\"\\"), Err(Unterminated));
    }
}
