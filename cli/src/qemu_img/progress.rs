//! `-p`: how far it is, on a line of its own that is written over.

use std::io::Write;

/// Steps of less than this many hundredths of a percent are not shown.
const STEP: u64 = 100;

/// Shows progress, or does not.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    last: Option<u64>,
}

impl Progress {
    /// `shown`: `-p` was given.
    pub fn new(shown: bool) -> Self {
        Progress { shown, last: None }
    }

    /// `done` of `total` are done.
    pub fn update(&mut self, done: u64, total: u64) {
        // In hundredths of a percent; nothing to be done is done.
        let part = (u128::from(done) * 10000).checked_div(u128::from(total)).unwrap_or(10000) as u64;
        let new = self.last.is_none_or(|last| part >= last + STEP || (part == 10000 && last != part));
        if !self.shown || !new {
            return;
        }
        self.last = Some(part);
        let mut stdout = std::io::stdout().lock();
        // Whoever does not look at it loses nothing.
        let _ = write!(stdout, "    ({}.{:02}/100%)\r", part / 100, part % 100).and_then(|()| stdout.flush());
    }

    /// All is done.
    pub fn finish(mut self) {
        self.update(1, 1);
        if self.shown {
            let _ = writeln!(std::io::stdout().lock());
        }
    }
}
