//! What a monitor controls: the machine as its commands see it. Tests have one of their own.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use hvrun_arch::aarch64::layout::Window;
use hvrun_arch::aarch64::translate::Regime;
use hvrun_arch::{Accel, GuestMemory};
use hvrun_devices::Bus;
use hvrun_devices::backend::disk::{BlockBackend, DiskConfig, ImageFormat, SECTOR};
use hvrun_devices::backend::net::user::{HostForward, Protocol, UserNetHandle};
use hvrun_devices::pci::{Bar, PciHost, SlotState};
use hvrun_devices::virtio::balloon::Balloon;
use hvrun_devices::virtio::block::{BlockStats, IoStatus};
use hvrun_devices::virtio::net::Net;
use vm_memory::{Bytes, GuestAddress};

use crate::config::MachineConfig;
use crate::devices::Drive;
use crate::hotplug::{PlugError, PlugParser, PlugRequest, Plugged};
use crate::running::{BlockNames, MachineControl, RunState};

/// A function on the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PciDevice {
    /// Its bus as the guest has numbered it.
    pub(crate) bus: u8,
    pub(crate) slot: u8,
    /// The place on the first bus of the root port that it is behind.
    pub(crate) behind: Option<u8>,
    pub(crate) name: String,
    /// Its configuration space.
    pub(crate) registers: Vec<u8>,
    /// Its BARs, and where each answers.
    pub(crate) bars: Vec<(Bar, Option<u64>)>,
}

impl PciDevice {
    /// The 16-bit register at `offset`.
    pub(crate) fn u16(&self, offset: usize) -> u16 {
        match self.registers.get(offset..offset + 2) {
            Some(&[low, high]) => u16::from_le_bytes([low, high]),
            _ => 0,
        }
    }
}

/// A disk as it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskFacts {
    pub(crate) names: BlockNames,
    /// What the device is called in log lines, and on the PCI bus.
    pub(crate) device: String,
    pub(crate) config: DiskConfig,
    /// `raw` or `qcow2`.
    pub(crate) format: &'static str,
    /// Its size in bytes.
    pub(crate) size: u64,
    pub(crate) status: IoStatus,
    pub(crate) stats: BlockStats,
}

impl DiskFacts {
    /// What is known of `drive`.
    fn of(drive: &Drive) -> Self {
        let disk = &drive.disk;
        DiskFacts {
            names: drive.names.clone(),
            device: disk.name().to_owned(),
            config: disk.config().clone(),
            format: match disk.format() {
                ImageFormat::Raw => "raw",
                ImageFormat::Qcow2 => "qcow2",
            },
            size: disk.capacity(),
            status: drive.device.io_status(),
            stats: drive.device.stats(),
        }
    }
}

/// Why a port is not forwarded, or goes on to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardError {
    /// There is no user-mode network, or none of that name.
    NoNetwork,
    /// It cannot be done.
    Failed(String),
}

/// See the module. `pause`, `registers` and `regime` wait for the vCPUs; everything else returns at once.
pub(crate) trait Target: Send + Sync {
    fn config(&self) -> &MachineConfig;
    fn accel(&self) -> Accel;
    fn run_state(&self) -> RunState;
    fn pause(&self);
    /// False: only a reset helps.
    fn resume(&self) -> bool;
    fn reset(&self);
    fn power_button(&self);
    fn quit(&self);
    /// The host's numbers for the vCPUs' threads.
    fn cpu_threads(&self) -> Vec<u64>;
    fn registers(&self, cpu: u32) -> Option<String>;
    /// How the vCPU translates virtual addresses.
    fn regime(&self, cpu: u32) -> Option<Regime>;
    /// The cable of the card that is called `name`, or is in front of the network of that name; false if there is none.
    fn set_link(&self, name: &str, up: bool) -> bool;
    /// Address and link of each card, in their order.
    fn links(&self) -> Vec<(String, bool)>;
    fn add_forward(&self, netdev: Option<&str>, forward: &HostForward) -> Result<(), ForwardError>;
    fn remove_forward(
        &self,
        netdev: Option<&str>,
        protocol: Protocol,
        host: SocketAddr,
    ) -> Result<(), ForwardError>;
    /// Every forwarded port.
    fn forwards(&self) -> Vec<(String, HostForward)>;
    /// Sends a break on the serial line.
    fn send_break(&self);
    /// How much memory the guest has left, if there is a balloon.
    fn balloon(&self) -> Option<u64>;
    /// Asks the guest to make do with so much.
    fn set_balloon(&self, bytes: u64);
    /// Changes the size of the disk, which is known by its drive's or its node's name.
    fn resize(&self, name: &str, bytes: u64) -> Result<(), String>;
    /// Reads RAM; false if not all of it is.
    fn read_memory(&self, address: u64, data: &mut [u8]) -> bool;
    /// In the order of the configuration, those in slots behind the others.
    fn disks(&self) -> Vec<DiskFacts>;
    /// Name and window of every device on the bus.
    fn memory_map(&self) -> Vec<(String, Window)>;
    /// Those on the first bus, then those behind its ports.
    fn pci(&self) -> Vec<PciDevice>;
    /// Plugs in or pulls out.
    fn plug(&self, request: PlugRequest) -> Result<(), PlugError>;
    /// What is in slots, and waits for one.
    fn plugged(&self) -> Plugged;
}

/// What a [`Remote`] is made of.
pub(crate) struct Parts {
    pub(crate) control: MachineControl,
    pub(crate) config: Arc<MachineConfig>,
    pub(crate) accel: Accel,
    pub(crate) bus: Weak<Bus>,
    pub(crate) pci: Weak<PciHost>,
    pub(crate) drives: Vec<Weak<Drive>>,
    pub(crate) balloon: Option<Weak<Balloon>>,
    pub(crate) memory: GuestMemory,
    pub(crate) plug_parser: Option<Arc<dyn PlugParser>>,
}

/// A machine, from outside. Like [`MachineControl`], it does not keep it alive.
pub(crate) struct Remote(Parts);

impl Remote {
    pub(crate) fn new(parts: Parts) -> Self {
        Remote(parts)
    }

    /// The card called `name`, or the one in front of that network.
    fn net(&self, name: &str) -> Option<Arc<Net>> {
        self.0.control.net(name).or_else(|| {
            let of_netdev =
                |net: &hvrun_devices::virtio::net::NetConfig| net.common.netdev.as_deref() == Some(name);
            if let Some(index) = self.0.config.nets.iter().position(of_netdev) {
                return self.0.control.nets().into_iter().nth(index);
            }
            let card = self.plugged().nets.into_iter().find(|card| card.netdev == name)?;
            self.0.control.net(&card.id)
        })
    }

    /// The disks: those that stay, then those in slots.
    fn drives(&self) -> Vec<Arc<Drive>> {
        let fixed = self.0.drives.iter().filter_map(Weak::upgrade);
        let plugged = self.0.control.hotplug().map(|hotplug| hotplug.drives()).unwrap_or_default();
        fixed.chain(plugged).collect()
    }

    /// The user-mode network that is meant: the first, if none is named.
    fn user(&self, name: Option<&str>) -> Result<UserNetHandle, ForwardError> {
        let user = match name {
            Some(name) => self.net(name).and_then(|net| net.user().cloned()),
            None => self.0.control.nets().iter().find_map(|net| net.user().cloned()),
        };
        user.ok_or(ForwardError::NoNetwork)
    }
}

/// An error with its causes, in one line.
pub(super) fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn failed(error: impl std::error::Error) -> ForwardError {
    ForwardError::Failed(with_cause(&error))
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Remote").field(&self.0.control).finish()
    }
}

impl Target for Remote {
    fn config(&self) -> &MachineConfig {
        &self.0.config
    }

    fn accel(&self) -> Accel {
        self.0.accel
    }

    fn run_state(&self) -> RunState {
        self.0.control.run_state()
    }

    fn pause(&self) {
        self.0.control.pause();
    }

    fn resume(&self) -> bool {
        self.0.control.resume()
    }

    fn reset(&self) {
        self.0.control.reset();
    }

    fn power_button(&self) {
        self.0.control.power_button();
    }

    fn quit(&self) {
        self.0.control.quit();
    }

    fn cpu_threads(&self) -> Vec<u64> {
        self.0.control.cpu_threads()
    }

    fn registers(&self, cpu: u32) -> Option<String> {
        self.0.control.registers(cpu)
    }

    fn regime(&self, cpu: u32) -> Option<Regime> {
        self.0.control.regime(cpu)
    }

    fn set_link(&self, name: &str, up: bool) -> bool {
        let net = self.net(name);
        if let Some(net) = &net {
            net.set_link(up);
        }
        net.is_some()
    }

    fn links(&self) -> Vec<(String, bool)> {
        self.0.control.nets().iter().map(|net| (net.mac().to_string(), net.link())).collect()
    }

    fn add_forward(&self, netdev: Option<&str>, forward: &HostForward) -> Result<(), ForwardError> {
        self.user(netdev)?.add_hostfwd(forward).map(drop).map_err(failed)
    }

    fn remove_forward(
        &self,
        netdev: Option<&str>,
        protocol: Protocol,
        host: SocketAddr,
    ) -> Result<(), ForwardError> {
        self.user(netdev)?.remove_hostfwd(protocol, host).map_err(failed)
    }

    fn forwards(&self) -> Vec<(String, HostForward)> {
        let of = |net: Arc<Net>| {
            let forwards = net.user().map(UserNetHandle::hostfwds).unwrap_or_default();
            forwards.into_iter().map(move |forward| (net.id().to_owned(), forward))
        };
        self.0.control.nets().into_iter().flat_map(of).collect()
    }

    fn send_break(&self) {
        self.0.control.send_break();
    }

    fn balloon(&self) -> Option<u64> {
        self.0.balloon.as_ref()?.upgrade().map(|balloon| balloon.actual())
    }

    fn set_balloon(&self, bytes: u64) {
        if let Some(balloon) = self.0.balloon.as_ref().and_then(Weak::upgrade) {
            balloon.set_target(bytes);
        }
    }

    fn resize(&self, name: &str, bytes: u64) -> Result<(), String> {
        let is_meant =
            |drive: &Arc<Drive>| [&drive.names.drive, &drive.names.node].contains(&&name.to_owned());
        let drive = self
            .drives()
            .into_iter()
            .find(is_meant)
            .ok_or_else(|| format!("Cannot find device='{name}' nor node-name=''"))?;
        if !bytes.is_multiple_of(SECTOR) {
            return Err(format!("The new size must be a multiple of {SECTOR}"));
        }
        if drive.disk.config().readonly {
            return Err("Image is read-only".to_owned());
        }
        drive.device.resize(bytes).map_err(|error| format!("Failed to resize {}: {error}", drive.names.drive))
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        self.0.memory.read_slice(data, GuestAddress(address)).is_ok()
    }

    fn disks(&self) -> Vec<DiskFacts> {
        self.drives().iter().map(|drive| DiskFacts::of(drive)).collect()
    }

    fn memory_map(&self) -> Vec<(String, Window)> {
        self.0.bus.upgrade().map(|bus| bus.map()).unwrap_or_default()
    }

    fn pci(&self) -> Vec<PciDevice> {
        let Some(host) = self.0.pci.upgrade() else { return Vec::new() };
        let (names, cards) = (host.functions(), host.cards());
        let (mut first, mut behind) = (Vec::new(), Vec::new());
        for SlotState { slot, config, card } in host.state().slots {
            let name = names.iter().find(|(at, _)| *at == slot).map(|(_, name)| name.clone());
            let (name, bars) = (name.unwrap_or_default(), host.bars(slot));
            first.push(PciDevice { bus: 0, slot, behind: None, name, registers: config.registers, bars });
            let known = cards.iter().find(|(at, ..)| *at == slot);
            if let (Some(card), Some((_, bus, name))) = (card, known) {
                let (bus, name, bars) = (*bus, name.clone(), host.card_bars(slot));
                let (behind_port, registers) = (Some(slot), card.registers);
                behind.push(PciDevice { bus, slot: 0, behind: behind_port, name, registers, bars });
            }
        }
        first.extend(behind);
        first
    }

    fn plug(&self, request: PlugRequest) -> Result<(), PlugError> {
        self.0.control.hotplug()?.perform(request, self.0.plug_parser.as_deref())
    }

    fn plugged(&self) -> Plugged {
        self.0.control.hotplug().map(|hotplug| hotplug.plugged()).unwrap_or_default()
    }
}
