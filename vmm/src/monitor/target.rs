//! What a monitor controls: the machine as its commands see it. Tests have one of their own.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use hvrun_arch::Accel;
use hvrun_arch::aarch64::layout::Window;
use hvrun_devices::Bus;
use hvrun_devices::backend::disk::{BlockBackend, Disk, ImageFormat};
use hvrun_devices::backend::net::user::{HostForward, Protocol, UserNetHandle};
use hvrun_devices::pci::{PciHost, SlotState};
use hvrun_devices::virtio::net::Net;

use crate::config::MachineConfig;
use crate::hotplug::{PlugError, PlugParser, PlugRequest, Plugged};
use crate::running::{MachineControl, RunState};

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
    /// `raw` or `qcow2`.
    pub(crate) format: &'static str,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// What the guest cannot write to.
    pub(crate) readonly: bool,
}

/// Why a port is not forwarded, or goes on to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardError {
    /// There is no user-mode network, or none of that name.
    NoNetwork,
    /// It cannot be done.
    Failed(String),
}

/// See the module. `pause` and `registers` wait for the vCPUs; everything else returns at once.
pub(crate) trait Target: Send + Sync {
    fn config(&self) -> &MachineConfig;
    fn accel(&self) -> Accel;
    fn run_state(&self) -> RunState;
    fn pause(&self);
    fn resume(&self);
    fn reset(&self);
    fn power_button(&self);
    fn quit(&self);
    /// The host's numbers for the vCPUs' threads.
    fn cpu_threads(&self) -> Vec<u64>;
    fn registers(&self, cpu: u32) -> Option<String>;
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
    /// In the order of the configuration.
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
    pub(crate) disks: Vec<Weak<Disk>>,
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

    fn resume(&self) {
        self.0.control.resume();
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

    fn disks(&self) -> Vec<DiskFacts> {
        let facts = |disk: Arc<Disk>| DiskFacts {
            format: match disk.format() {
                ImageFormat::Raw => "raw",
                ImageFormat::Qcow2 => "qcow2",
            },
            size: disk.capacity(),
            readonly: disk.config().readonly,
        };
        self.0.disks.iter().filter_map(Weak::upgrade).map(facts).collect()
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
            let name = name.unwrap_or_default();
            first.push(PciDevice { bus: 0, slot, behind: None, name, registers: config.registers });
            let known = cards.iter().find(|(at, ..)| *at == slot);
            if let (Some(card), Some((_, bus, name))) = (card, known) {
                let (bus, name, registers) = (*bus, name.clone(), card.registers);
                behind.push(PciDevice { bus, slot: 0, behind: Some(slot), name, registers });
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
