//! What `--accel kvm` answers on hosts where KVM cannot run arm64 guests. It opens nothing.

use std::env::consts::{ARCH, OS};
use std::sync::Arc;

use super::error::wrong_host;
use crate::hypervisor::{Accel, Hypervisor, HypervisorError};

/// Opens KVM. On this host that is always an error, which says what the host is.
pub fn open() -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    Err(HypervisorError::Unavailable { accel: Accel::Kvm, reason: wrong_host(OS, ARCH) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_cannot_run_arm64_guests_says_what_it_is() {
        let error = open().err().unwrap().to_string();
        assert!(error.contains("kvm is not available") && error.contains(ARCH), "{error}");
    }
}
