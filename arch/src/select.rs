//! Choosing a backend: the first of a list that works on this host, and why each one before it does not.
//! It opens hypervisors; it makes no machine.

use std::env::consts::{ARCH, OS};
use std::sync::Arc;

use crate::hypervisor::{Accel, Hypervisor, HypervisorError};
use crate::soft::SoftHypervisor;

/// A backend that works, and the ones that were asked for first and do not.
#[derive(Debug)]
pub struct Opened {
    /// The backend.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Which others were tried before it, with the reason why each is not available.
    pub skipped: Vec<(Accel, String)>,
}

/// No backend of the list works on this host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The list of accelerators is empty; name one of hvf, kvm and soft.
    #[error("the list of accelerators is empty; name one of hvf, kvm and soft")]
    Empty,
    /// None of the accelerators asked for is available.
    #[error("{}; soft works on every host", list(.0))]
    NoneAvailable(Vec<(Accel, String)>),
}

fn list(tried: &[(Accel, String)]) -> String {
    let reasons: Vec<_> =
        tried.iter().map(|(accel, reason)| format!("{accel} is not available: {reason}")).collect();
    reasons.join("; ")
}

/// Opens the first of `accels` that works on this host.
pub fn open(accels: &[Accel]) -> Result<Opened, OpenError> {
    if accels.is_empty() {
        return Err(OpenError::Empty);
    }
    let mut skipped = Vec::new();
    for &accel in accels {
        match open_one(accel) {
            Ok(hypervisor) => return Ok(Opened { hypervisor, skipped }),
            Err(HypervisorError::Unavailable { reason, .. }) => skipped.push((accel, reason)),
            Err(error) => skipped.push((accel, error.to_string())),
        }
    }
    Err(OpenError::NoneAvailable(skipped))
}

/// Opens `accel`, or says why this host or this build lacks it and what would help.
fn open_one(accel: Accel) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let unavailable = |reason| Err(HypervisorError::Unavailable { accel, reason });
    match accel {
        Accel::Soft => Ok(Arc::new(SoftHypervisor)),
        Accel::Hvf => unavailable(hvf_reason(OS, ARCH)),
        Accel::Kvm => unavailable(kvm_reason(OS, ARCH)),
    }
}

fn hvf_reason(os: &str, arch: &str) -> String {
    match (os, arch) {
        ("macos", "aarch64") => {
            "this build does not contain the Hypervisor.framework backend yet; use soft".to_owned()
        }
        ("macos", _) => format!("it runs arm64 guests on Apple silicon only, and this Mac is {arch}"),
        _ => format!("Hypervisor.framework exists on macOS only, and this host runs {os}"),
    }
}

fn kvm_reason(os: &str, arch: &str) -> String {
    match (os, arch) {
        ("linux", "aarch64") => "this build does not contain the KVM backend yet; use soft".to_owned(),
        ("linux", _) => format!("KVM runs arm64 guests on arm64 hosts only, and this host is {arch}"),
        _ => format!("KVM exists on Linux only, and this host runs {os}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_works_everywhere() {
        let opened = open(&[Accel::Soft]).unwrap();
        assert_eq!(opened.hypervisor.accel(), Accel::Soft);
        assert!(opened.skipped.is_empty());
    }

    #[test]
    fn the_automatic_choice_says_why_it_skipped_others() {
        let opened = open(&Accel::ALL).unwrap();
        let skipped: Vec<Accel> = opened.skipped.iter().map(|(accel, _)| *accel).collect();
        assert_eq!(skipped, [Accel::Hvf, Accel::Kvm]);
        assert!(opened.skipped.iter().all(|(_, reason)| !reason.is_empty()));
    }

    #[test]
    fn a_list_without_a_working_backend_names_each_reason() {
        let error = open(&[Accel::Hvf, Accel::Kvm]).unwrap_err().to_string();
        assert!(error.contains("hvf is not available") && error.contains("kvm is not available"), "{error}");
    }

    #[test]
    fn an_empty_list_is_an_error() {
        assert!(matches!(open(&[]), Err(OpenError::Empty)));
    }

    #[test]
    fn reasons_name_what_the_host_is() {
        assert!(hvf_reason("linux", "x86_64").contains("linux"));
        assert!(hvf_reason("macos", "x86_64").contains("Apple silicon"));
        assert!(kvm_reason("linux", "x86_64").contains("x86_64"));
        assert!(kvm_reason("macos", "aarch64").contains("macos"));
        assert!(kvm_reason("linux", "aarch64").contains("backend"));
    }
}
