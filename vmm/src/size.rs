//! Sizes of memory as people write them: `512M`, `4G`. Not for file sizes or anything with a fraction.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a suffix multiplies with, largest first.
const SUFFIXES: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

/// A number of bytes. Shown and serialised with the largest suffix that leaves a whole number (`1G`, `1536M`, `100`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize(u64);

impl MemorySize {
    /// This many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        MemorySize(bytes)
    }

    /// This many MiB.
    pub const fn from_mib(mib: u32) -> Self {
        MemorySize((mib as u64) << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: &u64| self.0 != 0 && self.0.is_multiple_of(*unit);
        match SUFFIXES.iter().find(|(_, unit)| fits(unit)) {
            // 999999G must come back as it was written, so T is for reading only.
            Some(('T', _)) => write!(f, "{}G", self.0 >> 30),
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> String {
        size.to_string()
    }
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It is no number with a known suffix.
    #[error(
        "\"{0}\" is not a size; write a whole number with K, M or G behind it, as in 512M or 4G (a number alone is bytes)"
    )]
    NotASize(String),
    /// It is a size that 64 bits do not hold.
    #[error("{0} is more than any memory has; use a smaller size, such as 4G")]
    TooLarge(String),
}

impl FromStr for MemorySize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let last = text.chars().next_back().map(|last| last.to_ascii_uppercase());
        let unit = SUFFIXES.iter().find(|(suffix, _)| last == Some(*suffix)).map(|(_, unit)| *unit);
        // A suffix is one byte long.
        let digits = if unit.is_some() { &text[..text.len() - 1] } else { text };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SizeError::NotASize(text.to_owned()));
        }
        let number: Option<u64> = digits.parse().ok();
        let bytes = number.and_then(|number| number.checked_mul(unit.unwrap_or(1)));
        bytes.map(MemorySize).ok_or_else(|| SizeError::TooLarge(text.to_owned()))
    }
}

impl TryFrom<String> for MemorySize {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<u64, SizeError> {
        text.parse().map(MemorySize::bytes)
    }

    #[test]
    fn suffixes_are_powers_of_1024_in_either_case() {
        assert_eq!(bytes("1K"), Ok(1 << 10));
        assert_eq!(bytes("512m"), Ok(512 << 20));
        assert_eq!(bytes("64G"), Ok(64 << 30));
        assert_eq!(bytes("2t"), Ok(2 << 40));
    }

    #[test]
    fn number_alone_is_bytes() {
        assert_eq!(bytes("1048576"), Ok(1 << 20));
    }

    #[test]
    fn what_is_no_size_is_quoted() {
        for text in ["", "G", "lots", "-1G", "+1G", "1.5G", "1 G", "1GB", "0x10", "1Ğ", "é"] {
            assert_eq!(bytes(text), Err(SizeError::NotASize(text.to_owned())));
        }
    }

    #[test]
    fn overflow_in_the_number_or_by_the_suffix_is_too_large() {
        for text in ["99999999999999999999G", "17179869184G"] {
            assert_eq!(bytes(text), Err(SizeError::TooLarge(text.to_owned())));
        }
    }

    #[test]
    fn shown_as_it_would_be_written() {
        for text in ["0", "1023", "1K", "1536M", "1G", "999999G", "2048G"] {
            assert_eq!(text.parse::<MemorySize>().map(|size| size.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn serialises_as_text_and_back() {
        let json = serde_json::to_string(&MemorySize::from_mib(512)).unwrap();
        assert_eq!(json, "\"512M\"");
        assert_eq!(serde_json::from_str::<MemorySize>(&json).unwrap(), MemorySize::from_mib(512));
    }
}
