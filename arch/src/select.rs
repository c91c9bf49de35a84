//! Choosing a backend: the first of a list that works on this host, and why each one before it does not.
//! It opens hypervisors; it makes no machine.

use std::sync::Arc;

use crate::hypervisor::{Accel, Hypervisor, HypervisorError};
use crate::soft::SoftHypervisor;

/// A backend that works, and the ones that were asked for first and do not, each with the reason.
pub type Opened = (Arc<dyn Hypervisor>, Vec<(Accel, HypervisorError)>);

/// Opens the first of `accels` that works on this host, and logs why each one before it does not.
pub fn open(accels: &[Accel]) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let (hypervisor, skipped) = open_first(accels)?;
    for (accel, error) in &skipped {
        log::log!(level(error), "{}", unavailable(*accel, error));
    }
    Ok(hypervisor)
}

/// How much a person should know of it: an accelerator that the host has and the process may not use is lost unnoticed, and a
/// slow one is taken.
fn level(error: &HypervisorError) -> log::Level {
    match error {
        HypervisorError::Forbidden { .. } => log::Level::Warn,
        _ => log::Level::Info,
    }
}

/// Opens the first of `accels` that works on this host. If none does, or there is none, the error gives every reason.
pub fn open_first(accels: &[Accel]) -> Result<Opened, HypervisorError> {
    let mut skipped = Vec::new();
    for &accel in accels {
        match open_one(accel) {
            Ok(hypervisor) => return Ok((hypervisor, skipped)),
            Err(error) => skipped.push((accel, error)),
        }
    }
    Err(none_available(skipped))
}

/// Why there is no `accel`, in words that name it.
fn unavailable(accel: Accel, error: &HypervisorError) -> String {
    format!("{accel} is not available: {}", reason(error))
}

/// The error without the accelerator's name.
fn reason(error: &HypervisorError) -> String {
    match error {
        HypervisorError::Unavailable { reason, .. } | HypervisorError::Forbidden { reason, .. } => {
            reason.clone()
        }
        error => error.to_string(),
    }
}

fn none_available(skipped: Vec<(Accel, HypervisorError)>) -> HypervisorError {
    let mut skipped = skipped.into_iter();
    let Some((accel, first)) = skipped.next() else {
        return HypervisorError::Call {
            call: "open",
            reason: "the list of accelerators is empty; name one of hvf, kvm and soft".to_owned(),
        };
    };
    let mut reason = reason(&first);
    for (accel, error) in skipped {
        reason.push_str(&format!("; {}", unavailable(accel, &error)));
    }
    reason.push_str("; soft works on every host");
    HypervisorError::Unavailable { accel, reason }
}

/// Opens `accel`, or says why this host or this build lacks it and what would help.
fn open_one(accel: Accel) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    match accel {
        Accel::Soft => Ok(Arc::new(SoftHypervisor)),
        Accel::Hvf => crate::hvf::open(),
        Accel::Kvm => crate::kvm::open(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_works_everywhere() {
        let (hypervisor, skipped) = open_first(&[Accel::Soft]).unwrap();
        assert_eq!(hypervisor.accel(), Accel::Soft);
        assert!(skipped.is_empty());
    }

    #[test]
    fn the_automatic_choice_says_why_it_skipped_others() {
        let (_, skipped) = open_first(&Accel::ALL).unwrap();
        let accels: Vec<Accel> = skipped.iter().map(|(accel, _)| *accel).collect();
        assert!(Accel::ALL.starts_with(&accels), "{accels:?}");
        assert!(skipped.iter().all(|(_, error)| !error.to_string().is_empty()));
    }

    #[test]
    fn a_list_without_a_working_backend_names_each_reason() {
        let no = |accel| (accel, HypervisorError::Unavailable { accel, reason: "no".to_owned() });
        let error = none_available(vec![no(Accel::Hvf), no(Accel::Kvm)]).to_string();
        assert!(error.contains("hvf is not available") && error.contains("kvm is not available"), "{error}");
    }

    #[test]
    fn an_accelerator_that_the_process_may_not_use_is_worth_a_warning() {
        let (accel, reason) = (Accel::Hvf, "no".to_owned());
        assert_eq!(level(&HypervisorError::Forbidden { accel, reason: reason.clone() }), log::Level::Warn);
        assert_eq!(level(&HypervisorError::Unavailable { accel, reason }), log::Level::Info);
    }

    #[test]
    fn an_empty_list_is_an_error() {
        assert!(open(&[]).err().unwrap().to_string().contains("empty"));
    }
}
