//! `-device`: the devices there are, which properties they have, and what they take from where. They become parts of the machine in
//! the order in which QEMU would make them, because that is the order in which a guest counts its disks, cards and consoles.

mod table;

use std::collections::HashSet;
use std::path::PathBuf;

use hvrun_vmm::virtio::balloon::BalloonConfig;
use hvrun_vmm::virtio::console::{ConsoleConfig, PortConfig};
use hvrun_vmm::virtio::rng::RngConfig;
use hvrun_vmm::virtio::vhost_user::{FsConfig, VhostUserConfig, VhostUserDevice};
use hvrun_vmm::{MachineConfig, Transport};

use self::table::{Bus, Kind};
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

pub use self::table::{help, is_known};

/// Properties of whatever is on PCI or virtio-mmio that make no difference here. The guest sees modern devices, in their order.
const PLACE: [&str; 14] = [
    "bus",
    "addr",
    "multifunction",
    "romfile",
    "rombar",
    "romsize",
    "vectors",
    "ioeventfd",
    "event_idx",
    "indirect_desc",
    "acpi-index",
    "failover_pair_id",
    "page-per-vq",
    "any_layout",
];

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
}

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
        if bus != Bus::Other {
            place(&mut opts)?;
        }
        match spec.kind {
            Kind::Block => self.block(&mut opts, &mut backends.drives, id)?,
            Kind::Net => self.net(&mut opts, &mut backends.netdevs, id)?,
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
            Kind::WithoutEffect(why) => {
                log::debug!("{}: makes no difference here: {why}", opts.source());
                opts.without_effect(spec.properties);
            }
            Kind::Refused(why) => return Err(opts.refuse(format_args!("'{driver}' is not supported: {why}"))),
        }
        opts.finish()
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
        device: Option<String>,
    ) -> Result<(), Refusal> {
        let Some(id) = opts.text("drive")? else {
            return Err(opts.refuse("drive=ID is missing: a disk needs a '-drive if=none,id=ID,file=FILE'"));
        };
        let drive = drives.take(&id, opts)?.clone();
        if drive.interface != Interface::None {
            return Err(opts.refuse(format_args!("drive '{id}' makes a disk by itself; give it if=none")));
        }
        let mut disk = drive.disk;
        disk.device = device;
        if let Some(serial) = opts.text("serial")? {
            disk.serial = Some(serial).filter(|serial| !serial.is_empty());
        }
        if let Some(queues) = opts.value("num-queues")? {
            disk.queues = queues;
        }
        if let Some(discard) = opts.switch("discard")? {
            disk.discard = discard;
        }
        if opts.switch("share-rw")? == Some(true) {
            disk.lock = false;
        }
        if let Some(index) = opts.number("bootindex")?
            && !self.boot_indices.insert(index)
        {
            return Err(opts.refuse(format_args!("another device has bootindex={index}; choose another")));
        }
        for key in ["logical_block_size", "physical_block_size"] {
            opts.only(key, &["512"])?;
        }
        for key in ["werror", "rerror"] {
            if let Some(policy) = opts.value(key)? {
                *if key == "werror" { &mut disk.werror } else { &mut disk.rerror } = policy;
            }
        }
        opts.only("scsi", &["off", "false"])?;
        opts.without_effect(&[
            "iothread",
            "write-cache",
            "config-wce",
            "write-zeroes",
            "queue-size",
            "seg-max-adjust",
            "request-merging",
            "min_io_size",
            "opt_io_size",
            "discard_granularity",
            "max-discard-sectors",
            "max-write-zeroes-sectors",
            "cyls",
            "heads",
            "secs",
            "report-discard-granularity",
        ]);
        self.disks.push(disk);
        Ok(())
    }

    fn net(
        &mut self,
        opts: &mut Opts,
        netdevs: &mut Registry<NetBackendConfig>,
        id: Option<String>,
    ) -> Result<(), Refusal> {
        let Some(netdev) = opts.text("netdev")? else {
            return Err(opts.refuse("netdev=ID is missing: a card needs a '-netdev TYPE,id=ID'"));
        };
        let mac = opts.value("mac")?;
        let mtu = match opts.number("host_mtu")? {
            None | Some(0) => None,
            Some(mtu) => match u16::try_from(mtu) {
                Ok(mtu) => Some(mtu),
                Err(_) => return Err(opts.refuse(format_args!("host_mtu={mtu}: an MTU is at most 65535"))),
            },
        };
        opts.only("failover", &["off"])?;
        opts.without_effect(&[
            "bootindex",
            "mq",
            "csum",
            "gso",
            "guest_csum",
            "guest_tso4",
            "guest_tso6",
            "guest_ecn",
            "guest_ufo",
            "guest_uso4",
            "guest_uso6",
            "guest_announce",
            "host_tso4",
            "host_tso6",
            "host_ecn",
            "host_ufo",
            "host_uso",
            "mrg_rxbuf",
            "status",
            "ctrl_vq",
            "ctrl_rx",
            "ctrl_vlan",
            "ctrl_rx_extra",
            "ctrl_mac_addr",
            "ctrl_guest_offloads",
            "rx_queue_size",
            "tx_queue_size",
            "tx",
            "x-txtimer",
            "x-txburst",
            "rss",
            "hash",
            "speed",
            "duplex",
        ]);
        let backend = netdevs.take(&netdev, opts)?.clone();
        self.cards.push(Card { mac, mtu, id, netdev: Some(netdev), backend });
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

/// Where a device is and how it is carried.
fn place(opts: &mut Opts) -> Result<(), Refusal> {
    opts.without_effect(&PLACE);
    opts.only("disable-legacy", &["on", "off", "auto", "true", "false"])?;
    opts.only("disable-modern", &["off", "false"])?;
    for key in ["iommu_platform", "ats", "packed", "aer", "x-disable-pcie"] {
        opts.only(key, &["off", "false"])?;
    }
    Ok(())
}
