//! What Linux has its own way.

/// Longest path of a unix socket in bytes: `sun_path` has 108, one for the final NUL (unix(7)).
pub(crate) const UNIX_PATH_MAX: usize = 107;
