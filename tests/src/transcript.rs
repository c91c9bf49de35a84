//! What a process has written so far, collected by a thread and searched by the test.

use anyhow::{Result, bail};
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    text: Mutex<Text>,
    grown: Condvar,
}

/// Everything that was read from one stream.
#[derive(Debug)]
pub(crate) struct Transcript {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    /// How much of it `expect` has gone past.
    seen: usize,
    /// When `expect` gives up.
    deadline: Instant,
}

impl Transcript {
    /// Reads `source` to its end in a thread of its own. After `deadline`, nothing is waited for any more.
    pub(crate) fn of(mut source: impl Read + Send + 'static, deadline: Instant) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            let mut chunk = vec![0; 65536];
            loop {
                // A pseudo-terminal reports its end as an error (EIO), so that is an end too.
                let count = match source.read(&mut chunk) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    result => result.unwrap_or(0),
                };
                let mut text = writer.text.lock().unwrap_or_else(PoisonError::into_inner);
                text.bytes.extend_from_slice(&chunk[..count]);
                text.ended = count == 0;
                writer.grown.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Transcript { shared, reader: Some(reader), seen: 0, deadline }
    }

    /// Waits for `marker` behind what was seen so far, and returns what lies between.
    pub(crate) fn expect(&mut self, marker: &str) -> Result<String> {
        let needle = marker.as_bytes();
        let mut from = self.seen;
        let mut text = self.shared.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = text.bytes[from..].windows(needle.len()).position(|window| window == needle) {
                let between = String::from_utf8_lossy(&text.bytes[self.seen..from + at]).into_owned();
                self.seen = from + at + needle.len();
                return Ok(between);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if text.ended || left.is_zero() {
                let how = if text.ended { "ended" } else { "went on" };
                let rest = String::from_utf8_lossy(&text.bytes[self.seen..]).into_owned();
                bail!("the output {how} without '{marker}'; it was: {}", tail(&rest));
            }
            from = text.bytes.len().saturating_sub(needle.len()).max(self.seen);
            text = self.shared.grown.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until there are `count` bytes, and returns all there are. It does not change what `expect` has gone past.
    pub(crate) fn expect_bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut text = self.shared.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if text.bytes.len() >= count {
                return Ok(text.bytes.clone());
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if text.ended || left.is_zero() {
                bail!("{} bytes came of {count}", text.bytes.len());
            }
            text = self.shared.grown.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end and returns everything.
    pub(crate) fn finish(self) -> String {
        String::from_utf8_lossy(&self.finish_bytes()).into_owned()
    }

    /// Waits for the end and returns everything, as it came.
    pub(crate) fn finish_bytes(mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.bytes()
    }

    /// Everything until now.
    pub(crate) fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Everything until now, as it came.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.shared.text.lock().unwrap_or_else(PoisonError::into_inner).bytes.clone()
    }
}

/// The last part of a long text.
pub(crate) fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(4000);
    text.get(text.ceil_char_boundary(start)..).unwrap_or(text)
}
