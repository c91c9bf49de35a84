//! Choosing a backend: the first of a list that works on this host, and why each one before it does not.
//! It opens hypervisors; it makes no machine.

use std::sync::Arc;

use crate::hypervisor::{Accel, Hypervisor, HypervisorError};
use crate::soft::SoftHypervisor;

/// A backend that works, and the ones that were asked for first and do not, each with the reason.
pub type Opened = (Arc<dyn Hypervisor>, Vec<(Accel, String)>);

/// Opens the first of `accels` that works on this host, and logs why each one before it does not.
pub fn open(accels: &[Accel]) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let (hypervisor, skipped) = open_first(accels)?;
    for (accel, reason) in skipped {
        log::info!("{accel} is not available: {reason}");
    }
    Ok(hypervisor)
}

/// Opens the first of `accels` that works on this host. If none does, or there is none, the error gives every reason.
pub fn open_first(accels: &[Accel]) -> Result<Opened, HypervisorError> {
    let mut skipped = Vec::new();
    for &accel in accels {
        match open_one(accel) {
            Ok(hypervisor) => return Ok((hypervisor, skipped)),
            Err(HypervisorError::Unavailable { reason, .. }) => skipped.push((accel, reason)),
            Err(error) => skipped.push((accel, error.to_string())),
        }
    }
    Err(none_available(skipped))
}

fn none_available(skipped: Vec<(Accel, String)>) -> HypervisorError {
    let mut skipped = skipped.into_iter();
    let Some((accel, mut reason)) = skipped.next() else {
        return HypervisorError::Call {
            call: "open",
            reason: "the list of accelerators is empty; name one of hvf, kvm and soft".to_owned(),
        };
    };
    for (accel, why) in skipped {
        reason.push_str(&format!("; {accel} is not available: {why}"));
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
        assert!(skipped.iter().all(|(_, reason)| !reason.is_empty()));
    }

    #[test]
    fn a_list_without_a_working_backend_names_each_reason() {
        let reasons = vec![(Accel::Hvf, "no".to_owned()), (Accel::Kvm, "no".to_owned())];
        let error = none_available(reasons).to_string();
        assert!(error.contains("hvf is not available") && error.contains("kvm is not available"), "{error}");
    }

    #[test]
    fn an_empty_list_is_an_error() {
        assert!(open(&[]).err().unwrap().to_string().contains("empty"));
    }
}
