//! Small things that several devices need: locks that outlive a panic, and log lines that a guest cannot flood.
//!
//! Not a place for anything that knows a device.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks `mutex`, also after another thread panicked while it held it: device state is plain data and stays usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many lines a guest may cause within one [`LogLimit::PERIOD`].
const BURST: u32 = 4;

/// Keeps guest-triggerable log lines to a handful a period and counts the ones left out.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Length of a period.
    const PERIOD: Duration = Duration::from_secs(10);

    /// A new one, also for a static.
    pub(crate) const fn new() -> Self {
        LogLimit(Mutex::new(Window { start: None, lines: 0, suppressed: 0 }))
    }

    /// Whether a line may be logged now. If so, says how many were left out since the last one, as a suffix for that line.
    pub(crate) fn allow(&self) -> Option<Suppressed> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<Suppressed> {
        let mut window = lock(&self.0);
        let fresh = window.start.is_none_or(|start| now.saturating_duration_since(start) >= Self::PERIOD);
        if fresh {
            window.start = Some(now);
            window.lines = 0;
        }
        if window.lines >= BURST {
            window.suppressed = window.suppressed.saturating_add(1);
            return None;
        }
        window.lines += 1;
        Some(Suppressed(std::mem::take(&mut window.suppressed)))
    }
}

/// How many lines were left out; prints as nothing when there were none.
pub(crate) struct Suppressed(u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " ({} like it were not logged)", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_after_a_burst() {
        let limit = LogLimit::default();
        let now = Instant::now();
        let allowed = (0..1000).filter(|_| limit.allow_at(now).is_some()).count();
        assert_eq!(allowed, BURST as usize);
    }

    #[test]
    fn the_next_period_tells_how_many_lines_were_left_out() {
        let limit = LogLimit::default();
        let now = Instant::now();
        for _ in 0..BURST + 3 {
            limit.allow_at(now);
        }
        let suffix = limit.allow_at(now + LogLimit::PERIOD).map(|s| s.to_string());
        assert_eq!(suffix.as_deref(), Some(" (3 like it were not logged)"));
    }
}
