//! How many random bytes a guest may have in how much time. Arithmetic only: whoever asks says what time it is.

use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::options::{OptionError, OptionList};

/// An entropy device's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RngConfig {
    /// Most bytes that the guest gets in one period; `None`: as many as it likes.
    pub max_bytes: Option<u64>,
    /// The period in milliseconds.
    pub period: u32,
}

impl RngConfig {
    /// QEMU's: a little more than a minute.
    const PERIOD: u32 = 1 << 16;
}

impl Default for RngConfig {
    fn default() -> Self {
        RngConfig { max_bytes: None, period: Self::PERIOD }
    }
}

/// Why a text does not describe an entropy device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RngConfigError {
    /// A key or its value.
    #[error("rng: {0}")]
    Option(#[from] OptionError),
    /// A limit under which nothing ever comes, or that is none.
    #[error("rng: {0}=0 makes no limit; leave max-bytes out for none, or use max-bytes=1024,period=1000")]
    Zero(&'static str),
}

impl FromStr for RngConfig {
    type Err = RngConfigError;

    /// `max-bytes=1024,period=1000` (milliseconds), both optional.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No value comes first.
        let mut options = OptionList::parse(&format!(",{text}"))?;
        let max_bytes = options.value("max-bytes", "1024")?;
        let period = options.value("period", "1000")?;
        options.finish()?;
        match (max_bytes, period) {
            (Some(0), _) => Err(RngConfigError::Zero("max-bytes")),
            (_, Some(0)) => Err(RngConfigError::Zero("period")),
            _ => Ok(RngConfig { max_bytes, period: period.unwrap_or(RngConfig::PERIOD) }),
        }
    }
}

/// What is left of the limit in the current period. A period begins with the first request in it.
#[derive(Debug)]
pub(super) struct Quota {
    max: u64,
    period: Duration,
    left: u64,
    start: Instant,
}

impl Quota {
    /// A full one; `None` without a limit.
    pub(super) fn new(config: RngConfig, now: Instant) -> Option<Self> {
        // A period of zero, or no bytes at all, would only ever put off.
        let max = config.max_bytes?.max(1);
        let period = Duration::from_millis(config.period.max(1).into());
        Some(Quota { max, period, left: max, start: now })
    }

    /// How many bytes may be given now, at least one; or after what time to ask again.
    pub(super) fn available(&mut self, now: Instant) -> Result<usize, Duration> {
        let elapsed = now.saturating_duration_since(self.start);
        if elapsed >= self.period {
            self.left = self.max;
            self.start = now;
        }
        match self.left {
            0 => Err(self.period.saturating_sub(elapsed)),
            left => Ok(usize::try_from(left).unwrap_or(usize::MAX)),
        }
    }

    /// So many were given.
    pub(super) fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(start: Instant) -> Quota {
        Quota::new(RngConfig { max_bytes: Some(100), period: 1000 }, start).unwrap()
    }

    #[test]
    fn without_max_bytes_there_is_no_quota() {
        assert!(Quota::new(RngConfig::default(), Instant::now()).is_none());
    }

    #[test]
    fn a_quota_that_is_used_up_says_when_the_period_ends() {
        let start = Instant::now();
        let mut quota = quota(start);
        quota.take(100);
        let wait = quota.available(start + Duration::from_millis(400));
        assert_eq!(wait, Err(Duration::from_millis(600)));
    }

    #[test]
    fn the_next_period_has_the_whole_quota_again() {
        let start = Instant::now();
        let mut quota = quota(start);
        quota.take(100);
        assert_eq!(quota.available(start + Duration::from_millis(1000)), Ok(100));
    }

    #[test]
    fn what_is_left_of_a_quota_can_be_had() {
        let start = Instant::now();
        let mut quota = quota(start);
        quota.take(70);
        assert_eq!(quota.available(start), Ok(30));
    }

    #[test]
    fn options_are_read_as_qemu_writes_them() {
        let config: RngConfig = "max-bytes=1024,period=1000".parse().unwrap();
        assert_eq!(config, RngConfig { max_bytes: Some(1024), period: 1000 });
    }

    #[test]
    fn no_options_mean_no_limit() {
        assert_eq!("".parse(), Ok(RngConfig::default()));
    }

    #[test]
    fn a_limit_of_zero_is_refused_with_what_would_work() {
        let error = "max-bytes=0".parse::<RngConfig>().unwrap_err().to_string();
        assert!(error.contains("max-bytes=0") && error.contains("max-bytes=1024"), "{error}");
        assert!("max-bytes=1,period=0".parse::<RngConfig>().is_err());
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_known_ones() {
        let error = "speed=1".parse::<RngConfig>().unwrap_err().to_string();
        assert!(error.contains("speed") && error.contains("max-bytes, period"), "{error}");
    }

    #[test]
    fn the_configuration_survives_serialisation() {
        let config = RngConfig { max_bytes: Some(5), period: 7 };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<RngConfig>(&text).unwrap(), config);
    }
}
