//! How much of the host this process may use. Not what it does use.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::host::MOST_DESCRIPTORS;

/// Raises the soft limit of open descriptors to the hard one, as far as the host lets a process go. macOS starts programs
/// with 256, which a build in a guest or a few hundred of its connections use up at once.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::debug!("the limit of open files stays at {:?}: {error}", limit.current);
        }
    }
}
