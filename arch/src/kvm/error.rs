//! What KVM's refusals mean, in words: which call, which errno, what would help. It calls nothing.

use std::fmt::Write;
use std::io;

use crate::hypervisor::{Accel, HypervisorError};

/// Where KVM is found.
pub const DEVICE: &str = "/dev/kvm";

/// The KVM API that has not changed since Linux 2.6.22 (api.rst 4.1).
pub const API_VERSION: i32 = 12;

/// Who may open a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its permission bits.
    pub mode: u32,
    /// Its group's number.
    pub gid: u32,
    /// Its group's name, if it has one.
    pub group: Option<String>,
}

/// Why KVM cannot run arm64 guests on a host of this system and architecture.
pub fn wrong_host(os: &str, arch: &str) -> String {
    match (os, arch) {
        ("linux", _) => format!(
            "KVM runs arm64 guests on arm64 hosts only, and this host is {arch} (its {DEVICE}, if it has one, is for \
             {arch} guests)"
        ),
        _ => format!("KVM exists on Linux only, and this host runs {os}"),
    }
}

/// Why [`DEVICE`] did not open.
pub fn cannot_open(errno: i32, access: Option<&Access>) -> String {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => format!(
            "there is no {DEVICE}: this kernel has no KVM, or was not started at EL2. On real hardware the firmware must \
             enter Linux at EL2 (virtualisation extensions on); in a virtual machine its host must offer nested \
             virtualisation; in a container the device must be passed in"
        ),
        libc::EACCES | libc::EPERM => match access {
            Some(access) => {
                let mut text = format!("no permission to open {DEVICE}");
                let group = access.group.clone().unwrap_or_else(|| access.gid.to_string());
                // Writing to a String cannot fail.
                let _ = if access.mode & 0o060 == 0o060 {
                    write!(
                        text,
                        ": it belongs to group {group} (mode {:03o}); join that group (usermod -aG {group} USER, then \
                         log in again)",
                        access.mode & 0o777
                    )
                } else {
                    write!(
                        text,
                        ": its mode {:03o} lets not even its group {group} in; let an administrator set 0660",
                        access.mode & 0o777
                    )
                };
                text
            }
            None => format!("no permission to open {DEVICE}; join the group that owns it"),
        },
        libc::EMFILE | libc::ENFILE => {
            format!("no file descriptor is left to open {DEVICE}; raise ulimit -n")
        }
        _ => format!("{DEVICE} does not open: {}", describe(errno)),
    }
}

/// The error for a [`DEVICE`] that did not open: who has no permission to a device that is there may get it.
pub fn not_opened(errno: i32, access: Option<&Access>) -> HypervisorError {
    let (accel, reason) = (Accel::Kvm, cannot_open(errno, access));
    match errno {
        libc::EACCES | libc::EPERM => HypervisorError::Forbidden { accel, reason },
        _ => HypervisorError::Unavailable { accel, reason },
    }
}

/// The group called number `gid` in the text of a group file (group(5)).
pub fn group_name(group_file: &str, gid: u32) -> Option<String> {
    group_file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        (number.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// The error for a call that failed with `errno`.
pub fn call_failed(call: &'static str, errno: i32) -> HypervisorError {
    let mut reason = describe(errno);
    if let Some(hint) = hint(call, errno) {
        reason.push_str("; ");
        reason.push_str(hint);
    }
    HypervisorError::Call { call, reason }
}

/// The error for a capability that this host's KVM lacks.
pub fn missing(capability: &str, meaning: &str) -> HypervisorError {
    HypervisorError::Unavailable {
        accel: Accel::Kvm,
        reason: format!("this host's KVM lacks {capability}, {meaning}; a newer kernel would help"),
    }
}

fn describe(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

/// What the errno of this call means where the errno's own words mislead (Linux virt/kvm, arch/arm64/kvm).
fn hint(call: &str, errno: i32) -> Option<&'static str> {
    Some(match (call, errno) {
        ("KVM_CREATE_VM", libc::EINVAL) => "the kernel does not take this size of guest physical addresses",
        (_, libc::ENOMEM) => "the host is short of kernel memory",
        (_, libc::EMFILE | libc::ENFILE) => "no file descriptor is left; raise ulimit -n",
        ("KVM_SET_USER_MEMORY_REGION", libc::EINVAL) => {
            "the range does not fit the guest's physical addresses"
        }
        ("KVM_CREATE_VCPU", libc::EINVAL) => "the host has no room for a CPU of this number",
        ("KVM_ARM_VCPU_INIT", libc::EINVAL | libc::ENOENT) => {
            "the host's CPU does not have what was asked for"
        }
        ("KVM_CREATE_DEVICE", libc::ENODEV | libc::EINVAL) => {
            "the host's interrupt controller cannot be virtualised (is it a GICv3, or a GICv2 with virtualisation?)"
        }
        ("KVM_CREATE_DEVICE", libc::EBUSY) => "a CPU was running while the interrupt controller was made",
        ("KVM_DEV_ARM_VGIC_GRP_ADDR", libc::E2BIG) => {
            "the interrupt controller lies beyond the guest's addresses"
        }
        ("KVM_RUN", libc::EFAULT) => "the host could not supply guest memory",
        ("KVM_RUN", libc::ENOEXEC) => "the CPU was not initialised",
        ("KVM_RUN", libc::EPERM) => "the host's security policy forbids it",
        ("KVM_RUN", libc::ENOSYS) => {
            "the guest accessed a device with an instruction that the kernel cannot describe"
        }
        ("KVM_IOEVENTFD", libc::EEXIST) => "this doorbell has an eventfd already",
        ("KVM_IOEVENTFD", libc::ENOSPC) => "KVM has no room for one more doorbell",
        _ => return None,
    })
}

/// The reason of KVM_EXIT_INTERNAL_ERROR (api.rst 5, `internal.suberror`).
pub fn internal_error(suberror: u32) -> String {
    let meaning = match suberror {
        1 => "it could not emulate an instruction",
        2 => "an exception came while another was delivered",
        3 => "the guest exited while an event was delivered",
        4 => "it met an exit that it does not know",
        _ => "it does not say why",
    };
    format!("KVM reports an internal error ({suberror}): {meaning}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_x86_host_is_told_that_it_is_one() {
        let reason = wrong_host("linux", "x86_64");
        assert!(reason.contains("arm64 guests on arm64 hosts only") && reason.contains("x86_64"), "{reason}");
    }

    #[test]
    fn another_system_is_named() {
        assert!(wrong_host("macos", "aarch64").contains("macos"));
    }

    #[test]
    fn a_missing_device_speaks_of_el2_and_nesting() {
        let reason = cannot_open(libc::ENOENT, None);
        assert!(reason.contains("EL2") && reason.contains("nested"), "{reason}");
    }

    #[test]
    fn a_denied_device_names_its_group() {
        let access = Access { mode: 0o20660, gid: 104, group: Some("kvm".to_owned()) };
        let reason = cannot_open(libc::EACCES, Some(&access));
        assert!(reason.contains("group kvm (mode 660)"), "{reason}");
    }

    #[test]
    fn a_device_closed_to_its_group_asks_for_another_mode() {
        let access = Access { mode: 0o20600, gid: 0, group: None };
        let reason = cannot_open(libc::EACCES, Some(&access));
        assert!(reason.contains("mode 600") && reason.contains("group 0"), "{reason}");
    }

    #[test]
    fn a_denied_device_is_forbidden_and_a_missing_one_is_not() {
        assert!(matches!(not_opened(libc::EACCES, None), HypervisorError::Forbidden { .. }));
        assert!(matches!(not_opened(libc::ENOENT, None), HypervisorError::Unavailable { .. }));
    }

    #[test]
    fn groups_are_found_by_number() {
        let file = "root:x:0:\nbroken\nkvm:x:104:alice,bob\n";
        assert_eq!(group_name(file, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(file, 105), None);
    }

    #[test]
    fn a_failed_call_names_itself_and_what_it_means() {
        let text = call_failed("KVM_CREATE_DEVICE", libc::ENODEV).to_string();
        assert!(text.starts_with("KVM_CREATE_DEVICE failed: ") && text.contains("GICv3"), "{text}");
    }

    #[test]
    fn an_internal_error_shows_its_number() {
        assert!(internal_error(1).contains("(1)"));
    }
}
