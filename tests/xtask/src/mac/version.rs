//! A version of macOS: major and minor, which is all that its interfaces are dated by.

use anyhow::{Context, Result};
use std::fmt;

/// A version of macOS, such as 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u16,
    pub minor: u8,
}

impl Version {
    /// Reads `13.0`.
    pub fn parse(text: &str) -> Result<Version> {
        let wrong = || format!("'{text}' is no version of macOS; one looks like 13.0");
        let (major, minor) = text.split_once('.').with_context(wrong)?;
        Ok(Version { major: major.parse().with_context(wrong)?, minor: minor.parse().with_context(wrong)? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_printed_as_it_was_read() {
        let version = Version::parse("15.2").expect("a version");
        assert_eq!(version.to_string(), "15.2");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version { major: 9, minor: 10 } < Version { major: 13, minor: 0 });
    }

    #[test]
    fn a_version_without_a_minor_is_refused() {
        assert!(Version::parse("13").is_err());
    }
}
