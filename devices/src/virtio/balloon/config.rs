//! A balloon's options.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::options::{OptionError, OptionList};

/// A balloon's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BalloonConfig {
    /// The guest may take pages back before it kills a program for want of memory.
    pub deflate_on_oom: bool,
    /// The guest reports free pages, which go back to the host.
    pub free_page_reporting: bool,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        BalloonConfig { deflate_on_oom: false, free_page_reporting: true }
    }
}

/// Why a text does not describe a balloon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("balloon: {0}")]
pub struct BalloonConfigError(#[from] OptionError);

impl FromStr for BalloonConfig {
    type Err = BalloonConfigError;

    /// `deflate-on-oom=on,free-page-reporting=off`, both optional.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let default = BalloonConfig::default();
        // No value comes first.
        let mut options = OptionList::parse(&format!(",{text}"))?;
        let deflate_on_oom = options.switch("deflate-on-oom")?.unwrap_or(default.deflate_on_oom);
        let free_page_reporting =
            options.switch("free-page-reporting")?.unwrap_or(default.free_page_reporting);
        options.finish()?;
        Ok(BalloonConfig { deflate_on_oom, free_page_reporting })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_qemu_writes_them() {
        let config: BalloonConfig = "deflate-on-oom=on,free-page-reporting=off".parse().unwrap();
        assert_eq!(config, BalloonConfig { deflate_on_oom: true, free_page_reporting: false });
    }

    #[test]
    fn no_options_are_the_default() {
        assert_eq!("".parse(), Ok(BalloonConfig::default()));
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_known_ones() {
        let error = "size=1".parse::<BalloonConfig>().unwrap_err().to_string();
        assert!(error.contains("size") && error.contains("deflate-on-oom, free-page-reporting"), "{error}");
    }
}
