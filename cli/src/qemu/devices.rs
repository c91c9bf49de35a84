//! `-device`: the devices there are, which properties they have, and what they take from where. They become parts of the machine in
//! the order in which QEMU would make them, because that is the order in which a guest counts its disks, cards and consoles.

mod ports;
pub mod properties;
mod table;

use std::collections::HashSet;
use std::path::PathBuf;

use hvrun_vmm::hotplug::NetProperties;
use hvrun_vmm::virtio::balloon::BalloonConfig;
use hvrun_vmm::virtio::console::{ConsoleConfig, PortConfig};
use hvrun_vmm::virtio::net::{CommonOptions, NetConfig};
use hvrun_vmm::virtio::rng::RngConfig;
use hvrun_vmm::virtio::vhost_user::{FsConfig, VhostUserConfig, VhostUserDevice};
use hvrun_vmm::{CardConfig, DiskCardConfig, MachineConfig, RootPortConfig, Transport};

use self::table::{Bus, Spec};
use super::chardevs::Chardevs;
use super::command::Command;
use super::drives::{Drive, Interface};
use super::nets::{self, Card};
use super::objects::Objects;
use super::opts::{Opts, Refusal};
use super::registry::Registry;
use super::shares;
use super::table::Id;
use hvrun_vmm::disk::DiskConfig;
use hvrun_vmm::ninep::ShareConfig;
use hvrun_vmm::virtio::net::NetBackendConfig;

pub use self::table::{Kind, help, hotplug, is_known};

/// What devices take.
#[derive(Debug)]
pub struct Backends {
    pub drives: Registry<Drive>,
    pub netdevs: Registry<NetBackendConfig>,
    pub fsdevs: Registry<ShareConfig>,
    pub chardevs: Chardevs,
    pub objects: Objects,
}

/// What has been made of the devices so far.
#[derive(Debug, Default)]
struct Made {
    disks: Vec<DiskConfig>,
    shares: Vec<ShareConfig>,
    cards: Vec<Card>,
    consoles: Vec<ConsoleConfig>,
    ports: Vec<PortConfig>,
    vhost_user: Vec<VhostUserConfig>,
    rng: Option<RngConfig>,
    balloon: Option<BalloonConfig>,
    /// A device with consoles and ports.
    has_serial_bus: bool,
    /// What carries the devices so far, and which one said so.
    transport: Option<(Transport, String)>,
    ids: HashSet<String>,
    boot_indices: HashSet<u64>,
    root_ports: Vec<RootPortConfig>,
    /// The ids of other bridges, which are not there: what is behind them is on the first bus.
    bridges: Vec<String>,
}

/// What a device is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The first bus.
    First,
    /// The root port of this number.
    Behind(usize),
}

/// A bridge that is accepted without effect.
const PCI_BRIDGE: &str = "pcie-pci-bridge";

/// Makes all devices; `legacy_cards` are the first of the network cards.
pub fn make(
    command: &Command,
    backends: &mut Backends,
    legacy_cards: Vec<Card>,
    config: &mut MachineConfig,
) -> Result<(), Refusal> {
    let mut made = Made { cards: legacy_cards, ..Made::default() };
    if !made.cards.is_empty() {
        made.transport = Some((Transport::Pci, "a network card of -net or -nic".to_owned()));
    }
    for given in &command.given {
        match given.id {
            Id::Device => made.device(given.opts()?, backends)?,
            Id::Virtfs => {
                made.carried_by(Transport::Pci, &given.opts()?)?;
                made.shares.push(shares::virtfs(given)?);
            }
            _ => {}
        }
    }
    made.disks_of_their_own(backends)?;
    let transport = made.transport.map(|(transport, _)| transport).unwrap_or_default();
    config.nets = nets::finish(made.cards, transport);
    if transport == Transport::Mmio {
        // QEMU fills its virtio-mmio slots from the last one down, so that a guest, which counts from the first, finds them backwards.
        made.disks.reverse();
        made.shares.reverse();
        made.vhost_user.reverse();
        config.nets.reverse();
    }
    config.transport = transport;
    config.disks = made.disks;
    config.shares = made.shares;
    config.vhost_user = made.vhost_user;
    config.consoles = made.consoles;
    config.ports = made.ports;
    config.rng = made.rng;
    config.balloon = made.balloon;
    ports::finish(&mut made.root_ports, backends, config);
    config.root_ports = made.root_ports;
    Ok(())
}

impl Made {
    fn device(&mut self, mut opts: Opts, backends: &mut Backends) -> Result<(), Refusal> {
        let driver = opts.needed("driver")?;
        let Some((spec, bus)) = table::find(&driver) else {
            let hint = table::suggestion(&driver);
            return Err(opts.refuse(format_args!("there is no device '{driver}'{hint}")));
        };
        let id = opts.text("id")?;
        if let Some(id) = &id
            && !self.ids.insert(id.clone())
        {
            return Err(opts.refuse(format_args!("another device has the id '{id}'; choose another")));
        }
        match bus {
            Bus::Pci => self.carried_by(Transport::Pci, &opts)?,
            Bus::Mmio => self.carried_by(Transport::Mmio, &opts)?,
            Bus::Other => {}
        }
        let place = match bus {
            Bus::Pci => self.place(&mut opts, spec)?,
            Bus::Mmio => {
                opts.without_effect(&["bus"]);
                Place::First
            }
            Bus::Other => Place::First,
        };
        if bus != Bus::Other {
            properties::place(&mut opts)?;
        }
        match spec.kind {
            Kind::Block => self.block(&mut opts, &mut backends.drives, id, place)?,
            Kind::Net => self.net(&mut opts, &mut backends.netdevs, id, place)?,
            Kind::SerialBus => {
                opts.without_effect(&["max_ports", "emergency-write"]);
                self.has_serial_bus = true;
            }
            Kind::Console => self.console(&mut opts, &mut backends.chardevs)?,
            Kind::Port => self.port(&mut opts, &mut backends.chardevs)?,
            Kind::Rng => self.rng(&mut opts, &mut backends.objects)?,
            Kind::Balloon => self.balloon(&mut opts)?,
            Kind::Share => self.share(&mut opts, &mut backends.fsdevs)?,
            Kind::VhostUserFs => self.vhost_user_fs(&mut opts, &mut backends.chardevs)?,
            Kind::VhostUserVsock => self.vhost_user_vsock(&mut opts, &mut backends.chardevs)?,
            Kind::RootPort => self.root_ports.push(ports::root_port(&mut opts, id)?),
            Kind::WithoutEffect(why) => {
                if spec.name == PCI_BRIDGE {
                    self.bridges.extend(id);
                }
                log::debug!("{}: makes no difference here: {why}", opts.source());
                opts.without_effect(spec.properties);
            }
            Kind::Refused(why) => return Err(opts.refuse(format_args!("'{driver}' is not supported: {why}"))),
        }
        opts.finish()
    }

    /// What a device is plugged into. What can come and go is where it is said to be; everything else is on the first bus, where a guest
    /// finds it as well.
    fn place(&self, opts: &mut Opts, spec: &Spec) -> Result<Place, Refusal> {
        let Some(bus) = opts.text("bus")?.filter(|bus| bus != ports::FIRST_BUS) else {
            return Ok(Place::First);
        };
        if self.bridges.contains(&bus) {
            log::debug!("{}: it is on the first bus", opts.source());
            return Ok(Place::First);
        }
        let Some(port) = self.root_ports.iter().position(|port| port.id == bus) else {
            return Err(opts.refuse(format_args!(
                "there is no bus '{bus}' yet; there is {}, and behind it those of '-device pcie-root-port,id=ID'",
                ports::FIRST_BUS
            )));
        };
        if !matches!(spec.kind, Kind::Block | Kind::Net) {
            log::debug!("{}: it is on the first bus, and the slot of '{bus}' stays free", opts.source());
            return Ok(Place::First);
        }
        match self.root_ports.get(port).and_then(|port| port.card.as_ref()) {
            Some(_) => Err(opts.refuse(format_args!("the root port '{bus}' has its device; take another"))),
            None => Ok(Place::Behind(port)),
        }
    }

    fn fill(&mut self, port: usize, card: CardConfig) {
        if let Some(port) = self.root_ports.get_mut(port) {
            port.card = Some(card);
        }
    }

    /// Remembers what carries the devices: all by the same.
    fn carried_by(&mut self, transport: Transport, opts: &Opts) -> Result<(), Refusal> {
        match &self.transport {
            None => self.transport = Some((transport, opts.source())),
            Some((other, _)) if *other == transport => {}
            Some((_, source)) => {
                return Err(opts.refuse(format_args!(
                    "{source} is on another bus; write all of them with '-pci', or all with '-device', and add '-nic none'"
                )));
            }
        }
        Ok(())
    }

    fn block(
        &mut self,
        opts: &mut Opts,
        drives: &mut Registry<Drive>,
        id: Option<String>,
        place: Place,
    ) -> Result<(), Refusal> {
        let (drive_id, properties) = properties::disk(opts)?;
        if let Some(index) = opts.number("bootindex")?
            && !self.boot_indices.insert(index)
        {
            return Err(opts.refuse(format_args!("another device has bootindex={index}; choose another")));
        }
        let drive = drives.take(&drive_id, opts)?.clone();
        if drive.interface != Interface::None {
            return Err(
                opts.refuse(format_args!("drive '{drive_id}' makes a disk by itself; give it if=none"))
            );
        }
        let mut disk = drive.disk;
        properties.apply(&mut disk);
        disk.device.clone_from(&id);
        match place {
            Place::First => self.disks.push(disk),
            Place::Behind(port) => {
                let card = CardConfig::Disk(DiskCardConfig { id, drive: Some(drive_id), disk });
                self.fill(port, card);
            }
        }
        Ok(())
    }

    fn net(
        &mut self,
        opts: &mut Opts,
        netdevs: &mut Registry<NetBackendConfig>,
        id: Option<String>,
        place: Place,
    ) -> Result<(), Refusal> {
        let NetProperties { netdev, mac, mtu } = properties::net(opts)?;
        let backend = netdevs.take(&netdev, opts)?.clone();
        match place {
            Place::First => self.cards.push(Card { mac, mtu, id, netdev: Some(netdev), backend }),
            Place::Behind(port) => {
                let common = CommonOptions { mac, mtu, dump: None, id, netdev: Some(netdev) };
                let card = CardConfig::Net(NetConfig { common, backend });
                self.fill(port, card);
            }
        }
        Ok(())
    }

    fn chardev(
        &mut self,
        opts: &mut Opts,
        chardevs: &mut Chardevs,
    ) -> Result<hvrun_vmm::serial::ChardevConfig, Refusal> {
        if !self.has_serial_bus {
            return Err(
                opts.refuse("there is nothing to plug it into; put '-device virtio-serial' before it")
            );
        }
        opts.without_effect(&["bus", "nr"]);
        match opts.text("chardev")? {
            Some(id) => chardevs.for_device(&id, opts),
            None => {
                log::warn!("{}: no chardev is behind it, so its output vanishes", opts.source());
                Ok(hvrun_vmm::serial::ChardevConfig::None)
            }
        }
    }

    fn console(&mut self, opts: &mut Opts, chardevs: &mut Chardevs) -> Result<(), Refusal> {
        let to = self.chardev(opts, chardevs)?;
        let name = opts.text("name")?.filter(|name| !name.is_empty());
        self.consoles.push(ConsoleConfig { to, name, size: None });
        Ok(())
    }

    fn port(&mut self, opts: &mut Opts, chardevs: &mut Chardevs) -> Result<(), Refusal> {
        let to = self.chardev(opts, chardevs)?;
        let name = opts.needed("name")?;
        self.ports.push(PortConfig { name, to });
        Ok(())
    }

    fn rng(&mut self, opts: &mut Opts, objects: &mut Objects) -> Result<(), Refusal> {
        if let Some(id) = opts.text("rng")? {
            objects.check_rng(&id, opts)?;
        }
        let max_bytes = opts.number("max-bytes")?;
        let period = opts.value("period")?;
        let config = RngConfig { max_bytes, period: period.unwrap_or(RngConfig::default().period) };
        if config.max_bytes == Some(0) || config.period == 0 {
            return Err(opts.refuse("a limit of 0 is none; leave max-bytes= and period= out"));
        }
        match &self.rng {
            None => self.rng = Some(config),
            Some(_) => {
                log::debug!("{}: makes no difference here: one source of entropy is enough", opts.source())
            }
        }
        Ok(())
    }

    fn balloon(&mut self, opts: &mut Opts) -> Result<(), Refusal> {
        if self.balloon.is_some() {
            return Err(opts.refuse("a machine has one balloon"));
        }
        let deflate_on_oom = opts.switch("deflate-on-oom")?.unwrap_or(false);
        let free_page_reporting = opts.switch("free-page-reporting")?.unwrap_or(false);
        opts.without_effect(&[
            "free-page-hint",
            "guest-stats-polling-interval",
            "page-poison",
            "iothread",
            "qemu-4-0-config-size",
        ]);
        self.balloon = Some(BalloonConfig { deflate_on_oom, free_page_reporting });
        Ok(())
    }

    fn share(&mut self, opts: &mut Opts, fsdevs: &mut Registry<ShareConfig>) -> Result<(), Refusal> {
        let Some(id) = opts.text("fsdev")? else {
            return Err(opts.refuse(
                "fsdev=ID is missing: a share needs a '-fsdev local,id=ID,path=DIR,security_model=...'",
            ));
        };
        let tag = shares::tag(opts)?;
        let share = fsdevs.take(&id, opts)?.clone();
        self.shares.push(ShareConfig { tag, ..share });
        Ok(())
    }

    fn vhost_user_fs(&mut self, opts: &mut Opts, chardevs: &mut Chardevs) -> Result<(), Refusal> {
        let socket = back_end(opts, chardevs)?;
        let mut fs = FsConfig::new(opts.needed("tag")?);
        if let Some(queues) = opts.value("num-request-queues")? {
            fs.request_queues = queues;
        }
        if let Some(size) = opts.value("queue-size")? {
            fs.queue_size = size;
        }
        opts.only("cache-size", &["0"])?;
        opts.without_effect(&["bootindex", "migration"]);
        self.vhost_user.push(VhostUserConfig { socket, device: VhostUserDevice::Fs(fs) });
        Ok(())
    }

    fn vhost_user_vsock(&mut self, opts: &mut Opts, chardevs: &mut Chardevs) -> Result<(), Refusal> {
        let socket = back_end(opts, chardevs)?;
        // It is the back end that knows the number.
        opts.unsupported(&["guest-cid"], "the back end has it; give it to that")?;
        opts.without_effect(&["seqpacket"]);
        self.vhost_user.push(VhostUserConfig { socket, device: VhostUserDevice::Vsock });
        Ok(())
    }

    /// The disks of drives that no device names. QEMU makes them behind all of `-device`.
    fn disks_of_their_own(&mut self, backends: &mut Backends) -> Result<(), Refusal> {
        let own: Vec<String> = backends
            .drives
            .iter()
            .filter(|entry| entry.value.interface == Interface::Virtio)
            .map(|entry| entry.id.clone())
            .collect();
        for id in own {
            let opts = Opts::parse("-drive", &format!("id={}", id.replace(',', ",,")), None)?;
            self.carried_by(Transport::Pci, &opts)?;
            let drive = backends.drives.take(&id, &opts)?;
            self.disks.push(drive.disk.clone());
        }
        Ok(())
    }
}

/// Where the back end of a vhost-user device listens.
fn back_end(opts: &mut Opts, chardevs: &mut Chardevs) -> Result<PathBuf, Refusal> {
    match opts.text("chardev")? {
        Some(id) => chardevs.for_back_end(&id, opts),
        None => {
            Err(opts.refuse("chardev=ID is missing: the device needs a '-chardev socket,id=ID,path=PATH'"))
        }
    }
}
