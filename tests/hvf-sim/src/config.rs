//! What Mac the simulator is: version, hardware, and how hard it is on those who break a rule.

use std::fmt;

/// A version of macOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacOs(pub u32, pub u32);

impl MacOs {
    /// Big Sur, the first with Hypervisor.framework on Apple silicon.
    pub const V11: MacOs = MacOs(11, 0);
    /// `hv_vm_allocate`.
    pub const V12_1: MacOs = MacOs(12, 1);
    /// The VM configuration with its IPA size.
    pub const V13: MacOs = MacOs(13, 0);
    /// Sonoma; nothing new for hypervisors.
    pub const V14: MacOs = MacOs(14, 0);
    /// The GIC in the kernel.
    pub const V15: MacOs = MacOs(15, 0);
    /// SME.
    pub const V15_2: MacOs = MacOs(15, 2);
    /// The IPA granule.
    pub const V26: MacOs = MacOs(26, 0);
}

impl fmt::Display for MacOs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "macOS {}.{}", self.0, self.1)
    }
}

/// What becomes of a `hv_vcpus_exit` for a vCPU that is not inside `hv_vcpu_run`. Sources disagree, so backends must live with
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kicks {
    /// The next run returns at once.
    Sticky,
    /// Nothing.
    Lost,
}

/// What the simulator does when a rule is broken, besides recording it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnViolation {
    /// The call returns an error.
    Refuse,
    /// The process is killed, as macOS does for some.
    Abort,
}

/// The Mac that is simulated.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its system. Calls that are newer do not exist: `dlsym` does not find them, and calling them anyway is a violation.
    pub macos: MacOs,
    /// What becomes of early kicks.
    pub kicks: Kicks,
    /// What broken rules lead to.
    pub on_violation: OnViolation,
    /// Frequency of the guest's counter in Hz: 24 MHz, or 1 GHz on newer ones. At most 1 GHz.
    pub counter_hz: u64,
    /// Frequency of `mach_absolute_time` in Hz, in whose ticks the virtual timer's offset counts.
    pub mach_hz: u64,
    /// What host addresses must be multiples of: a Mac's page size, whatever the page size of the machine that simulates it.
    pub host_page: u64,
    /// The process has the entitlement `com.apple.security.hypervisor`.
    pub entitlement: bool,
    /// The Mac is itself a virtual machine, without nested virtualisation.
    pub virtual_machine: bool,
    /// Width of the IPA space if a VM does not ask for one.
    pub default_ipa_bits: u32,
    /// Widest IPA space that a VM may ask for, 40 at most.
    pub max_ipa_bits: u32,
    /// Most vCPUs of a VM.
    pub max_vcpus: u32,
    /// `hv_gic_create` fails.
    pub refuse_gic: bool,
}

impl Default for Config {
    /// macOS 15 on a Mac with a 24 MHz counter that keeps kicks.
    fn default() -> Self {
        Config {
            macos: MacOs::V15,
            kicks: Kicks::Sticky,
            on_violation: OnViolation::Refuse,
            counter_hz: 24_000_000,
            mach_hz: 24_000_000,
            host_page: 16 << 10,
            entitlement: true,
            virtual_machine: false,
            default_ipa_bits: 36,
            max_ipa_bits: 40,
            max_vcpus: 64,
            refuse_gic: false,
        }
    }
}
