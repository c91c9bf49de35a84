//! What macOS has its own way.

/// Longest path of a unix socket in bytes: `sun_path` has 104, one for the final NUL (unix(4)).
pub(crate) const UNIX_PATH_MAX: usize = 103;
