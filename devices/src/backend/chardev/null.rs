//! The character device that is none: output vanishes, there is no input.

use std::sync::Weak;
use std::time::Duration;

use super::{CharBackend, CharFrontend};

/// See the module. It has no thread and cannot fail.
#[derive(Debug, Clone, Copy, Default)]
pub struct Null;

impl CharBackend for Null {
    fn attach(&self, _frontend: Weak<dyn CharFrontend>) {}

    fn write(&self, data: &[u8]) -> usize {
        data.len()
    }

    fn read(&self, _buf: &mut [u8]) -> usize {
        0
    }

    fn has_input(&self) -> bool {
        false
    }

    /// There never is input, so there is nothing to come back for.
    fn retry_input(&self, _after: Duration) {}

    fn flush(&self, _timeout: Option<Duration>) -> bool {
        true
    }
}
