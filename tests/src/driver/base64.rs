//! Base64 as `base64 -w 0` of coreutils writes it (RFC 4648, section 4), and nothing laxer: a lost or doubled byte is an error.

use anyhow::{Context, Result, ensure};

/// The bytes that `text` stands for.
pub(super) fn decode(text: &[u8]) -> Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(4), "{} characters are no base64", text.len());
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    ensure!(padding <= 2, "base64 does not end with {padding} '='");
    let digits = &text[..text.len() - padding];
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.chunks(4) {
        let mut word = 0;
        for at in 0..4 {
            let value = group.get(at).map_or(Ok(0), |digit| value(*digit))?;
            word = word << 6 | value;
        }
        let [_, first, second, third] = u32::to_be_bytes(word);
        bytes.extend(&[first, second, third][..group.len() * 3 / 4]);
    }
    Ok(bytes)
}

fn value(digit: u8) -> Result<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None.with_context(|| format!("{:?} is no base64", char::from(digit))),
    };
    Ok(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_the_rfc_are_decoded() -> Result<()> {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(decode(text.as_bytes())?, bytes.as_bytes());
        }
        assert_eq!(decode(b"+/+/")?, [0xFB, 0xFF, 0xBF]);
        Ok(())
    }

    #[test]
    fn lost_byte_is_an_error() {
        assert!(decode(b"Zm9vYmF").is_err());
        assert!(decode(b"Zm9v\nYmF").is_err());
    }
}
