//! Whether this process can use Hypervisor.framework, and if not, what would help. Texts and numbers only; who asks the host
//! is `vm`.

use std::fmt;
use std::path::Path;

/// The entitlement that a program must be signed with.
pub const ENTITLEMENT: &str = "com.apple.security.hypervisor";

/// What a call of the framework answers (hv_return_t, Hypervisor/hv_error.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
#[must_use]
pub struct HvReturn(pub i32);

impl HvReturn {
    /// HV_SUCCESS.
    pub const SUCCESS: HvReturn = HvReturn(0);
    /// HV_ERROR: unsuccessful, for no stated reason.
    pub const ERROR: HvReturn = HvReturn::error(0x01);
    /// HV_BUSY: the owner of the resource is busy.
    pub const BUSY: HvReturn = HvReturn::error(0x02);
    /// HV_BAD_ARGUMENT.
    pub const BAD_ARGUMENT: HvReturn = HvReturn::error(0x03);
    /// HV_ILLEGAL_GUEST_STATE.
    pub const ILLEGAL_GUEST_STATE: HvReturn = HvReturn::error(0x04);
    /// HV_NO_RESOURCES.
    pub const NO_RESOURCES: HvReturn = HvReturn::error(0x05);
    /// HV_NO_DEVICE: there is no VM, or no vCPU.
    pub const NO_DEVICE: HvReturn = HvReturn::error(0x06);
    /// HV_DENIED: the process may not.
    pub const DENIED: HvReturn = HvReturn::error(0x07);
    /// HV_FAULT.
    pub const FAULT: HvReturn = HvReturn::error(0x08);
    /// HV_UNSUPPORTED: this host cannot.
    pub const UNSUPPORTED: HvReturn = HvReturn::error(0x0f);

    const fn error(low: u32) -> HvReturn {
        HvReturn((0xfae9_4000 | low) as i32)
    }

    fn name(self) -> Option<&'static str> {
        Some(match self {
            HvReturn::SUCCESS => "HV_SUCCESS",
            HvReturn::ERROR => "HV_ERROR",
            HvReturn::BUSY => "HV_BUSY",
            HvReturn::BAD_ARGUMENT => "HV_BAD_ARGUMENT",
            HvReturn::ILLEGAL_GUEST_STATE => "HV_ILLEGAL_GUEST_STATE",
            HvReturn::NO_RESOURCES => "HV_NO_RESOURCES",
            HvReturn::NO_DEVICE => "HV_NO_DEVICE",
            HvReturn::DENIED => "HV_DENIED",
            HvReturn::FAULT => "HV_FAULT",
            HvReturn::UNSUPPORTED => "HV_UNSUPPORTED",
            _ => return None,
        })
    }
}

impl fmt::Display for HvReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({:#x})", self.0),
            // Mach's own codes come through the calls that map memory.
            None => write!(f, "the code {:#x}", self.0),
        }
    }
}

/// Why a host that is no Mac with Apple silicon does not have the framework.
pub fn foreign_host(os: &str, arch: &str) -> String {
    match os {
        "macos" => format!("it runs arm64 guests on Apple silicon only, and this Mac is {arch}"),
        _ => format!("Hypervisor.framework exists on macOS only, and this host runs {os}"),
    }
}

/// What the host says about itself (sysctl).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// kern.hv_support: the CPU can run guests.
    pub hv_support: bool,
    /// kern.hv_vmm_present: the host is itself a guest.
    pub inside_vm: bool,
}

/// Why guests cannot run on such a host at all, if they cannot.
pub fn unsupported(host: Host) -> Option<String> {
    match host {
        Host { hv_support: true, .. } => None,
        Host { inside_vm: true, .. } => Some(
            "this Mac is itself a virtual machine, without nested virtualisation (kern.hv_support is 0); run on the Mac \
             below it, or use the soft accelerator"
                .to_owned(),
        ),
        Host { .. } => Some(
            "this Mac does not support virtualisation (kern.hv_support is 0); use the soft accelerator".to_owned(),
        ),
    }
}

/// Why the first VM could not be made on `host`, given what `hv_vm_create` answered. `program` is the running binary, if known.
pub fn refused(result: HvReturn, host: Host, program: Option<&Path>) -> String {
    match result {
        HvReturn::UNSUPPORTED if host.inside_vm => format!(
            "hv_vm_create answers {result}: this Mac is itself a virtual machine, and what it runs in offers no nested \
             virtualisation; run on the Mac below it, or use the soft accelerator"
        ),
        _ if is_forbidden(result, host) => {
            let program = program.map_or_else(|| "hvrun".to_owned(), |path| quoted(&path.to_string_lossy()));
            format!(
                "the program lacks the entitlement {ENTITLEMENT} (hv_vm_create answers {result}); every build and every \
                 signature without it drops it. Sign it: \
                 codesign --force --sign - --entitlements entitlements.plist {program}"
            )
        }
        HvReturn::BUSY => format!(
            "hv_vm_create answers {result}: this process has a virtual machine already, and macOS allows it one"
        ),
        HvReturn::NO_RESOURCES => {
            format!("hv_vm_create answers {result}: too many virtual machines run on this Mac; end one")
        }
        _ => format!("hv_vm_create answers {result}"),
    }
}

/// Whether that answer means that the Mac could make a VM, and that it is for this process to become one that may.
pub fn is_forbidden(result: HvReturn, host: Host) -> bool {
    result == HvReturn::DENIED || result == HvReturn::UNSUPPORTED && !host.inside_vm
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Host = Host { hv_support: true, inside_vm: false };
    const GUEST: Host = Host { hv_support: true, inside_vm: true };

    #[test]
    fn error_codes_are_apple_s() {
        assert_eq!(HvReturn::DENIED.0 as u32, 0xfae9_4007);
        assert_eq!(HvReturn::UNSUPPORTED.0 as u32, 0xfae9_400f);
        assert_eq!(HvReturn::BUSY.to_string(), "HV_BUSY (0xfae94002)");
    }

    #[test]
    fn a_code_that_is_not_the_framework_s_is_shown_as_it_is() {
        assert_eq!(HvReturn(3).to_string(), "the code 0x3");
    }

    #[test]
    fn a_missing_entitlement_is_named_with_the_line_that_mends_it() {
        let text = refused(HvReturn::DENIED, MAC, Some(Path::new("/usr/local/bin/hvrun")));
        assert!(text.contains("lacks the entitlement com.apple.security.hypervisor"), "{text}");
        assert!(
            text.ends_with(
                "codesign --force --sign - --entitlements entitlements.plist /usr/local/bin/hvrun"
            ),
            "{text}"
        );
    }

    #[test]
    fn unsupported_on_a_mac_that_supports_it_means_the_entitlement() {
        assert!(refused(HvReturn::UNSUPPORTED, MAC, None).contains("lacks the entitlement"));
    }

    #[test]
    fn unsupported_inside_a_virtual_machine_means_nesting() {
        let text = refused(HvReturn::UNSUPPORTED, GUEST, None);
        assert!(text.contains("itself a virtual machine") && !text.contains("entitlement"), "{text}");
    }

    #[test]
    fn denied_inside_a_virtual_machine_still_means_the_entitlement() {
        assert!(refused(HvReturn::DENIED, GUEST, None).contains("lacks the entitlement"));
    }

    #[test]
    fn only_what_a_signature_mends_is_forbidden() {
        assert!(is_forbidden(HvReturn::DENIED, MAC) && is_forbidden(HvReturn::UNSUPPORTED, MAC));
        assert!(!is_forbidden(HvReturn::UNSUPPORTED, GUEST) && !is_forbidden(HvReturn::BUSY, MAC));
    }

    #[test]
    fn a_mac_without_support_says_whether_it_is_a_guest() {
        assert_eq!(unsupported(MAC), None);
        let guest = unsupported(Host { hv_support: false, inside_vm: true }).unwrap();
        assert!(guest.contains("nested"), "{guest}");
        let mac = unsupported(Host { hv_support: false, inside_vm: false }).unwrap();
        assert!(mac.contains("does not support") && !mac.contains("nested"), "{mac}");
    }

    #[test]
    fn a_foreign_host_is_told_what_it_is() {
        assert!(foreign_host("linux", "x86_64").contains("linux"));
        assert!(foreign_host("macos", "x86_64").contains("Apple silicon"));
    }

    #[test]
    fn a_path_with_a_space_stays_one_word() {
        let text = refused(HvReturn::DENIED, MAC, Some(Path::new("/My Apps/it's/hvrun")));
        assert!(text.ends_with(r"'/My Apps/it'\''s/hvrun'"), "{text}");
    }
}
