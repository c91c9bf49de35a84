//! The one description of a machine: plain data that every front door produces, and its validation.
//! It opens no file; what only the host can tell is found out by [`crate::MachineBuilder::build`].

mod hotplug;

use std::collections::HashSet;
use std::path::PathBuf;

use hvrun_arch::aarch64::layout::{MAX_CPUS, RAM_BASE};
use hvrun_arch::hypervisor::UnknownAccel;
use hvrun_arch::{Accel, GicChoice};
use hvrun_devices::backend::chardev::ChardevConfig;
use hvrun_devices::backend::disk::{DiskConfig, DiskConfigError};
use hvrun_devices::backend::ninep::ShareConfig;
use hvrun_devices::virtio::balloon::BalloonConfig;
use hvrun_devices::virtio::console::{self, ConsoleConfig, PortConfig};
use hvrun_devices::virtio::net::NetConfig;
use hvrun_devices::virtio::rng::RngConfig;
use hvrun_devices::virtio::vhost_user::{VhostUserConfig, VhostUserConfigError, VhostUserDevice};
use serde::{Deserialize, Serialize};

pub use hotplug::{CardConfig, DiskCardConfig, DriveConfig, MAX_ROOT_PORTS, NetdevConfig, RootPortConfig};

use crate::ram::MemoryBacking;
use crate::size::MemorySize;

/// Least memory of a machine. Linux wants some 64 MiB; the kernel's own need is checked when its file is known.
pub const MIN_MEMORY: MemorySize = MemorySize::from_mib(2);
/// Memory comes in steps of this, which every host's page size divides.
pub const MEMORY_STEP: MemorySize = MemorySize::from_mib(1);
/// Widest physical address of the architecture in bits (Arm ARM D8.1.10, FEAT_LPA).
const MAX_PA_BITS: u32 = 52;

/// A virtual machine. The same value always describes the same machine; nothing in it is open or running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// What monitors call the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What monitors say its UUID is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Number of CPUs, 1 to [`MAX_CPUS`].
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// Size of RAM, in whole MiB.
    #[serde(default = "default_memory")]
    pub memory: MemorySize,
    /// What RAM is on the host.
    #[serde(default)]
    pub memory_backing: MemoryBacking,
    /// The kernel: an arm64 `Image`, plain, packed with gzip or zstd, or as EFI zboot.
    pub kernel: PathBuf,
    /// The initrd.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// The kernel command line, at most [`hvrun_boot::MAX_COMMAND_LINE`] bytes.
    #[serde(default)]
    pub cmdline: String,
    /// The accelerators to try; the first that works is taken.
    #[serde(default = "default_accel")]
    pub accel: Vec<Accel>,
    /// Whose interrupt controller the machine gets.
    #[serde(default)]
    pub gic: GicChoice,
    /// What the guest's serial port (`ttyAMA0`) is connected to.
    #[serde(default)]
    pub serial: ChardevConfig,
    /// Disks: `/dev/vda`, `/dev/vdb` and so on in the guest.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Directories of the host that the guest may mount by their tags.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// Devices that other processes serve. They need RAM that is shared.
    #[serde(default)]
    pub vhost_user: Vec<VhostUserConfig>,
    /// Network cards: `eth0`, `eth1` and so on in the guest.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Consoles: `/dev/hvc0`, `/dev/hvc1` and so on in the guest.
    #[serde(default)]
    pub consoles: Vec<ConsoleConfig>,
    /// Serial ports for the guest's programs: `/dev/virtio-ports/NAME`.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    /// Monitors: ways to control the machine while it runs.
    #[serde(default)]
    pub monitors: Vec<MonitorConfig>,
    /// A source of entropy.
    #[serde(default = "default_rng")]
    pub rng: Option<RngConfig>,
    /// A balloon, by which memory that the guest does not use goes back to the host.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// What carries the virtio devices.
    #[serde(default)]
    pub transport: Transport,
    /// Slots for disks and network cards that come and go while the machine runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub root_ports: Vec<RootPortConfig>,
    /// Images for disks that come later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare_drives: Vec<DriveConfig>,
    /// Networks for cards that come later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare_netdevs: Vec<NetdevConfig>,
    /// What happens when the guest asks for something to happen to the machine.
    #[serde(default)]
    pub lifecycle: LifecycleConfig,
}

/// See [`MachineConfig::lifecycle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LifecycleConfig {
    /// A guest's reset ends the machine instead of rebooting it.
    pub no_reboot: bool,
    /// When the guest powers off, the machine is paused instead of ended; after a reset it can be resumed.
    pub no_shutdown: bool,
    /// The machine waits for [`crate::MachineControl::resume`] before its first instruction.
    pub paused: bool,
}

/// A way for a person or a program to control the machine while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorConfig {
    /// Whom it is for.
    pub kind: MonitorKind,
    /// Where it is.
    pub to: MonitorPlace,
    /// Its JSON is laid out for people to read. Only for [`MonitorKind::Qmp`].
    #[serde(default)]
    pub pretty: bool,
}

/// Whom a monitor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MonitorKind {
    /// People: QEMU's monitor with its prompt.
    Hmp,
    /// Programs: QEMU's machine protocol.
    Qmp,
}

/// Where a monitor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MonitorPlace {
    /// On a character device of its own.
    Own(ChardevConfig),
    /// Where the serial port is; Ctrl-A C switches between the two.
    Serial,
}

impl MonitorConfig {
    /// A monitor on a character device of its own.
    pub fn new(kind: MonitorKind, to: ChardevConfig) -> Self {
        MonitorConfig { kind, to: MonitorPlace::Own(to), pretty: false }
    }
}

fn default_rng() -> Option<RngConfig> {
    Some(RngConfig::default())
}

/// What carries a machine's virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// PCI Express, with an interrupt a queue: what firmware and distributions expect.
    #[default]
    Pci,
    /// virtio-mmio: a window and an interrupt a device. For kernels without PCI, at most 32 devices.
    Mmio,
}

impl Transport {
    /// Every transport.
    pub const ALL: [Transport; 2] = [Transport::Pci, Transport::Mmio];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Pci => "pci",
            Transport::Mmio => "mmio",
        }
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Transport::ALL.into_iter().find(|t| t.name() == s).ok_or_else(|| UnknownTransport(s.to_owned()))
    }
}

/// "{0}" is not a transport; the transports are pci and mmio.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a transport; the transports are pci and mmio")]
pub struct UnknownTransport(pub String);

const fn default_cpus() -> u32 {
    1
}

const fn default_memory() -> MemorySize {
    MemorySize::from_mib(1024)
}

fn default_accel() -> Vec<Accel> {
    Accel::ALL.to_vec()
}

/// What cannot be in a [`MachineConfig`]. Each message names the field, the value and what would work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number of CPUs that no machine has.
    #[error("cpus: a machine has 1 to {MAX_CPUS} CPUs, not {0}")]
    Cpus(u32),
    /// Less memory than anything runs in.
    #[error("memory: {0} is too small; {MIN_MEMORY} is the least, and Linux wants 64M or more{hint}", hint = suffix_hint(*.0))]
    MemoryTooSmall(MemorySize),
    /// Memory that ends within a MiB.
    #[error(
        "memory: {memory} is not a multiple of {MEMORY_STEP}; {} would do",
        MemorySize::from_bytes(memory.bytes() / MEMORY_STEP.bytes() * MEMORY_STEP.bytes())
    )]
    MemoryNotAligned {
        /// The size asked for.
        memory: MemorySize,
    },
    /// Memory above the guest's physical address space.
    #[error("memory: {memory} does not fit into {by}; it may have at most {most}")]
    MemoryTooLarge {
        /// The size asked for.
        memory: MemorySize,
        /// Whose address space it is.
        by: AddressSpace,
        /// The largest size that would do.
        most: MemorySize,
    },
    /// A command line that the kernel would cut short.
    #[error("cmdline: {0}")]
    CommandLine(String),
    /// A disk that cannot be.
    #[error("disk {}", path.display())]
    Disk {
        /// Which image.
        path: PathBuf,
        /// What is wrong.
        source: DiskConfigError,
    },
    /// Two disks that nobody could tell apart.
    #[error("two disks have the id {0:?}; give one of them another")]
    DiskId(String),
    /// Two shares that the guest could not tell apart.
    #[error("two shares have the tag {0:?}, by which the guest mounts them; give one of them another")]
    ShareTag(String),
    /// A device of another process that cannot be.
    #[error("{device}")]
    VhostUser {
        /// Its name.
        device: String,
        /// What is wrong.
        source: VhostUserConfigError,
    },
    /// A device of another process that could not reach RAM.
    #[error(
        "{0}: its back end has to reach the guest's memory; share that with '-object memory-backend-memfd,id=mem,size=SIZE,share=on \
         -machine memory-backend=mem', or --memory SIZE,shared"
    )]
    MemoryNotShared(String),
    /// Two network cards that nobody could tell apart.
    #[error("two network cards have the id {0:?}; give one of them another")]
    NetId(String),
    /// Two ports on the same standard streams.
    #[error(
        "stdio: only one of serial port, consoles, ports and monitors can be there; put the serial port elsewhere with --serial none"
    )]
    StdioTwice,
    /// Consoles and ports that cannot be.
    #[error("{0}")]
    Console(String),
    /// More virtio devices than the transport has places for.
    #[error("{devices} virtio devices are too many for --transport {transport}, which has {most} places")]
    TooManyDevices {
        /// How many there are.
        devices: usize,
        /// What carries them.
        transport: Transport,
        /// How many it can carry.
        most: u32,
    },
    /// More root ports than there are buses.
    #[error("{0} root ports are too many; a machine has at most {MAX_ROOT_PORTS}")]
    TooManyRootPorts(usize),
    /// A root port that cannot be.
    #[error("root port {id}: {why}")]
    RootPort {
        /// Which one.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// Two devices that nobody could tell apart.
    #[error("two devices have the id {0:?}; give one of them another")]
    DeviceId(String),
    /// An empty list of accelerators.
    #[error("accel: no accelerator is named; the accelerators are hvf, kvm and soft")]
    NoAccel,
}

/// Who limits how far guest physical addresses reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressSpace {
    /// The architecture.
    Architecture,
    /// The accelerator that was chosen.
    Accel {
        /// Which one.
        accel: Accel,
        /// How many bits of guest physical address it has.
        bits: u32,
    },
}

impl AddressSpace {
    fn bits(self) -> u32 {
        match self {
            AddressSpace::Architecture => MAX_PA_BITS,
            AddressSpace::Accel { bits, .. } => bits.min(MAX_PA_BITS),
        }
    }

    /// The largest RAM in it.
    fn most_memory(self) -> MemorySize {
        MemorySize::from_bytes((1u64 << self.bits()).saturating_sub(RAM_BASE))
    }

    /// Whether `memory` fits into it.
    pub(crate) fn check(self, memory: MemorySize) -> Result<(), ConfigError> {
        let most = self.most_memory();
        if memory > most {
            return Err(ConfigError::MemoryTooLarge { memory, by: self, most });
        }
        Ok(())
    }
}

impl std::fmt::Display for AddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AddressSpace::Architecture => {
                write!(f, "the {MAX_PA_BITS}-bit physical address space of arm64")
            }
            AddressSpace::Accel { accel, bits } => {
                write!(f, "the {bits}-bit guest physical address space of {accel}")
            }
        }
    }
}

/// A number without a suffix that would be a sensible number of MiB.
fn suffix_hint(memory: MemorySize) -> String {
    match memory.bytes() {
        bytes @ 64..=0xf_ffff => format!(" (a number alone is bytes; {bytes}M?)"),
        _ => String::new(),
    }
}

impl MachineConfig {
    /// One CPU, 1 GiB of memory, the first accelerator that works, the serial port on stdio, and nothing but a kernel.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        MachineConfig {
            name: None,
            uuid: None,
            cpus: default_cpus(),
            memory: default_memory(),
            memory_backing: MemoryBacking::default(),
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
            accel: default_accel(),
            gic: GicChoice::Auto,
            serial: ChardevConfig::default(),
            disks: Vec::new(),
            shares: Vec::new(),
            vhost_user: Vec::new(),
            nets: Vec::new(),
            consoles: Vec::new(),
            ports: Vec::new(),
            monitors: Vec::new(),
            rng: default_rng(),
            balloon: None,
            transport: Transport::default(),
            root_ports: Vec::new(),
            spare_drives: Vec::new(),
            spare_netdevs: Vec::new(),
            lifecycle: LifecycleConfig::default(),
        }
    }

    /// Where the consoles, the ports and the monitors with a place of their own go.
    fn places_without_serial(&self) -> impl Iterator<Item = &ChardevConfig> {
        let consoles = self.consoles.iter().map(|console| &console.to);
        let ports = self.ports.iter().map(|port| &port.to);
        let monitors = self.monitors.iter().filter_map(|monitor| match &monitor.to {
            MonitorPlace::Own(to) => Some(to),
            MonitorPlace::Serial => None,
        });
        consoles.chain(ports).chain(monitors)
    }

    /// All of these, and the serial port's.
    fn places(&self) -> impl Iterator<Item = &ChardevConfig> {
        std::iter::once(&self.serial).chain(self.places_without_serial())
    }

    /// Whether a console, port or monitor is on standard input and output, wherever the serial port is.
    pub fn is_on_stdio_without_serial(&self) -> bool {
        self.places_without_serial().any(|to| *to == ChardevConfig::Stdio)
    }

    /// Whether a serial port, console or monitor is on standard input and output.
    pub fn is_on_stdio(&self) -> bool {
        self.places().any(|to| *to == ChardevConfig::Stdio)
    }

    /// Checks all that can be told without opening anything. [`crate::MachineBuilder::build`] does it too.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if self.memory < MIN_MEMORY {
            return Err(ConfigError::MemoryTooSmall(self.memory));
        }
        if !self.memory.bytes().is_multiple_of(MEMORY_STEP.bytes()) {
            return Err(ConfigError::MemoryNotAligned { memory: self.memory });
        }
        AddressSpace::Architecture.check(self.memory)?;
        hvrun_boot::check_command_line(&self.cmdline)
            .map_err(|error| ConfigError::CommandLine(error.to_string()))?;
        if self.accel.is_empty() {
            return Err(ConfigError::NoAccel);
        }
        for disk in &self.disks {
            disk.validate().map_err(|source| ConfigError::Disk { path: disk.path.clone(), source })?;
        }
        let mut ids = HashSet::new();
        if let Some(id) = self.disks.iter().filter_map(|disk| disk.id.as_ref()).find(|id| !ids.insert(*id)) {
            return Err(ConfigError::DiskId(id.clone()));
        }
        let mut tags = HashSet::new();
        if let Some(share) = self.shares.iter().find(|share| !tags.insert(share.tag.as_str())) {
            return Err(ConfigError::ShareTag(share.tag.clone()));
        }
        for device in &self.vhost_user {
            let name = device.name();
            device.validate().map_err(|source| ConfigError::VhostUser { device: name.clone(), source })?;
            if !self.memory_backing.is_shared() {
                return Err(ConfigError::MemoryNotShared(name));
            }
        }
        let mut tags = HashSet::new();
        let tag = self.vhost_user.iter().filter_map(|device| match &device.device {
            VhostUserDevice::Fs(fs) => Some(fs.tag.as_str()),
            VhostUserDevice::Vsock => None,
        });
        if let Some(tag) = tag.into_iter().find(|tag| !tags.insert(*tag)) {
            return Err(ConfigError::ShareTag(tag.to_owned()));
        }
        let mut ids = HashSet::new();
        if let Some(id) =
            (0..).zip(&self.nets).map(|(index, net)| net.id(index)).find(|id| !ids.insert(id.clone()))
        {
            return Err(ConfigError::NetId(id));
        }
        hotplug::validate(&self.root_ports)?;
        console::validate(&self.consoles, &self.ports)
            .map_err(|error| ConfigError::Console(error.to_string()))?;
        if self.places().filter(|to| **to == ChardevConfig::Stdio).count() > 1 {
            return Err(ConfigError::StdioTwice);
        }
        Ok(())
    }
}

/// Parses a list of accelerators, best first, such as `hvf:kvm:soft`; `auto` stands for all of them.
pub fn parse_accels(text: &str) -> Result<Vec<Accel>, UnknownAccel> {
    let mut accels = Vec::new();
    for name in text.split(':') {
        let named = if name == "auto" { Accel::ALL.to_vec() } else { vec![name.parse()?] };
        accels.extend(named.into_iter().filter(|accel| !accels.contains(accel)).collect::<Vec<_>>());
    }
    Ok(accels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig::new("/boot/Image")
    }

    fn refusal_of_memory(text: &str) -> String {
        let memory = text.parse().unwrap();
        MachineConfig { memory, ..config() }.validate().unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn no_cpus_are_refused() {
        assert_eq!(MachineConfig { cpus: 0, ..config() }.validate(), Err(ConfigError::Cpus(0)));
    }

    #[test]
    fn nine_cpus_are_refused_and_the_limit_is_named() {
        let error = MachineConfig { cpus: 9, ..config() }.validate().unwrap_err().to_string();
        assert_eq!(error, "cpus: a machine has 1 to 8 CPUs, not 9");
    }

    #[test]
    fn eight_cpus_are_valid() {
        assert_eq!(MachineConfig { cpus: 8, ..config() }.validate(), Ok(()));
    }

    #[test]
    fn too_little_memory_is_named() {
        let error = refusal_of_memory("1M");
        assert!(error.starts_with("memory: 1M is too small; 2M"), "{error}");
    }

    #[test]
    fn forgotten_suffix_is_guessed() {
        let error = refusal_of_memory("512");
        assert!(error.ends_with("512M?)"), "{error}");
    }

    #[test]
    fn memory_within_a_mib_is_refused_with_the_next_smaller_size() {
        assert_eq!(refusal_of_memory("65537K"), "memory: 65537K is not a multiple of 1M; 64M would do");
    }

    #[test]
    fn memory_above_the_architecture_is_refused_with_the_limit() {
        let error = refusal_of_memory("99999999G");
        assert!(error.contains("99999999G") && error.ends_with("at most 4194303G"), "{error}");
    }

    #[test]
    fn memory_above_the_accelerator_is_refused_with_its_name() {
        let space = AddressSpace::Accel { accel: Accel::Kvm, bits: 36 };
        let error = space.check("64G".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(
            error,
            "memory: 64G does not fit into the 36-bit guest physical address space of kvm; it may have at most 63G"
        );
    }

    #[test]
    fn memory_up_to_the_accelerators_limit_is_taken() {
        let space = AddressSpace::Accel { accel: Accel::Kvm, bits: 36 };
        assert_eq!(space.check("63G".parse().unwrap()), Ok(()));
    }

    #[test]
    fn long_command_line_is_refused_with_its_length_and_the_limit() {
        let cmdline = "x".repeat(2048);
        let error = MachineConfig { cmdline, ..config() }.validate().unwrap_err().to_string();
        assert!(
            error.starts_with("cmdline: ") && error.contains("2048") && error.contains("2047"),
            "{error}"
        );
    }

    #[test]
    fn command_line_of_the_largest_length_is_taken() {
        assert_eq!(MachineConfig { cmdline: "x".repeat(2047), ..config() }.validate(), Ok(()));
    }

    #[test]
    fn empty_list_of_accelerators_is_refused() {
        assert_eq!(MachineConfig { accel: vec![], ..config() }.validate(), Err(ConfigError::NoAccel));
    }

    #[test]
    fn accelerators_keep_their_order() {
        assert_eq!(parse_accels("soft:kvm").unwrap(), [Accel::Soft, Accel::Kvm]);
    }

    #[test]
    fn auto_is_every_accelerator_that_was_not_named_before() {
        assert_eq!(parse_accels("kvm:auto").unwrap(), [Accel::Kvm, Accel::Hvf, Accel::Soft]);
    }

    #[test]
    fn unknown_accelerator_is_quoted() {
        assert!(parse_accels("kvm:warp").unwrap_err().to_string().contains("\"warp\""));
        assert!(parse_accels("").is_err());
    }

    #[test]
    fn two_shares_with_one_tag_are_refused_with_the_tag() {
        let mut config = config();
        config.shares = vec!["/a:src".parse().unwrap(), "/b:src".parse().unwrap()];
        assert!(config.validate().unwrap_err().to_string().contains("\"src\""));
    }

    #[test]
    fn serial_port_and_console_cannot_both_be_on_stdio() {
        let mut config = config();
        config.consoles = vec![ConsoleConfig::default()];
        assert_eq!(config.validate(), Err(ConfigError::StdioTwice));
        config.serial = ChardevConfig::None;
        assert_eq!(config.validate(), Ok(()));
        assert!(config.is_on_stdio());
    }

    #[test]
    fn disk_that_cannot_be_is_refused_with_its_path() {
        let mut config = config();
        config.disks = vec![DiskConfig { queues: 99, ..DiskConfig::new("/d.raw") }];
        let error = config.validate().unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(error.to_string().contains("/d.raw") && cause.contains("99"), "{error}: {cause}");
    }

    #[test]
    fn unknown_transport_is_quoted() {
        assert!("isa".parse::<Transport>().unwrap_err().to_string().contains("\"isa\""));
    }

    #[test]
    fn two_network_cards_of_one_id_are_refused() {
        let nets = vec!["vde:/a".parse().unwrap(), "vde:/a,id=net0".parse().unwrap()];
        let error = MachineConfig { nets, ..config() }.validate();
        assert_eq!(error, Err(ConfigError::NetId("net0".into())));
    }

    fn with_vhost_user(devices: &[&str]) -> MachineConfig {
        let vhost_user = devices.iter().map(|device| device.parse().unwrap()).collect();
        MachineConfig { vhost_user, memory_backing: MemoryBacking::Shared, ..config() }
    }

    #[test]
    fn a_device_of_another_process_needs_shared_memory_and_says_how() {
        let shared = with_vhost_user(&["fs:/s,tag=store"]);
        assert_eq!(shared.validate(), Ok(()));
        let private = MachineConfig { memory_backing: MemoryBacking::Private, ..shared };
        let error = private.validate().unwrap_err().to_string();
        assert!(
            error.contains("store") && error.contains("memory-backend-memfd,id=mem,size=SIZE,share=on"),
            "{error}"
        );
    }

    #[test]
    fn two_file_systems_with_one_tag_are_refused_with_the_tag() {
        let error = with_vhost_user(&["fs:/a,tag=t", "fs:/b,tag=t"]).validate();
        assert_eq!(error, Err(ConfigError::ShareTag("t".into())));
    }

    #[test]
    fn serial_port_and_monitor_cannot_both_be_on_stdio() {
        let mut config = config();
        config.monitors = vec![MonitorConfig::new(MonitorKind::Hmp, ChardevConfig::Stdio)];
        assert_eq!(config.validate(), Err(ConfigError::StdioTwice));
    }

    #[test]
    fn survives_json() {
        let mut config = config();
        config.initrd = Some("/boot/initrd".into());
        config.serial = ChardevConfig::File("/tmp/log".into());
        config.disks = vec!["d.qcow2,serial=root,ro".parse().unwrap()];
        config.shares = vec!["/nix/store:nix-store,ro".parse().unwrap()];
        config.consoles = vec!["unix:/tmp/shell".parse().unwrap()];
        config.ports = vec!["name=org.example.0,to=none".parse().unwrap()];
        config.monitors = vec![
            MonitorConfig::new(MonitorKind::Qmp, ChardevConfig::Unix("/tmp/qmp".into())),
            MonitorConfig { kind: MonitorKind::Hmp, to: MonitorPlace::Serial, pretty: false },
        ];
        config.balloon = Some(BalloonConfig::default());
        config.memory_backing = MemoryBacking::SharedFile("/dev/shm".into());
        config.vhost_user =
            vec!["fs:/run/s,tag=t,queues=2".parse().unwrap(), "vsock:/run/v".parse().unwrap()];
        config.transport = Transport::Mmio;
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MachineConfig>(&json).unwrap(), config);
    }

    #[test]
    fn json_needs_the_kernel_only() {
        let config: MachineConfig = serde_json::from_str(r#"{ "kernel": "/boot/Image" }"#).unwrap();
        assert_eq!(config, MachineConfig::new("/boot/Image"));
    }

    #[test]
    fn json_with_an_unknown_field_is_refused() {
        assert!(serde_json::from_str::<MachineConfig>(r#"{ "kernel": "k", "cpu": 2 }"#).is_err());
    }
}
