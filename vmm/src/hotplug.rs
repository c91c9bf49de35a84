//! Slots of a running machine: disks and network cards that are plugged in and pulled out, and the images and networks that wait for
//! them. The guest's side of it, the slot's registers, is [`RootPort`](hvrun_devices::pci::RootPort)'s; what monitors say is theirs.
//!
//! A card is pulled out in two steps: the guest is asked, and when it has turned the slot's power off, or the
//! machine is reset, the card goes and what is behind it is closed. Lock order: what is here before the host bridge's.

mod request;
mod store;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hvrun_arch::{EventFds, GuestMemory};
use hvrun_devices::backend::disk::Disk;
use hvrun_devices::pci::{Ejected, MsiPort, PciError, PciFunction, PciHost};
use hvrun_devices::virtio::VirtioDevice;
use hvrun_devices::virtio::net::{CommonOptions, Mac, Net, NetConfig};
use hvrun_devices::virtio::pci::VirtioPci;

use crate::config::{CardConfig, MachineConfig, NetdevConfig};
use crate::devices::{Chassis, Devices, Drive};
use crate::lifecycle::Lifecycle;
use crate::running::MachineEvent;
use crate::signals;
pub(crate) use request::PlugRequest;
pub use request::{
    DeviceKind, DeviceRequest, DiskProperties, NetProperties, NodeRequest, PlugError, PlugParser, Said,
};
pub(crate) use store::{DriveFacts, DriveKind, NetdevFacts};
use store::{Store, UNNAMED};

/// For how long nobody asks the guest again to let go of a card, as in QEMU.
const PATIENCE: Duration = Duration::from_secs(5);
/// The bus of everything that is not behind a root port.
const FIRST_BUS: &str = "pcie.0";
/// What the models are called.
const DISK_MODEL: &str = "virtio-blk-pci";
const NET_MODEL: &str = "virtio-net-pci";

/// The machine around the slots.
pub(crate) struct Surroundings {
    pci: Arc<PciHost>,
    memory: GuestMemory,
    msi: Arc<MsiPort>,
    fds: Option<Arc<dyn EventFds>>,
    lifecycle: Arc<Lifecycle>,
    /// The network cards that stay.
    nets: Vec<Weak<Net>>,
}

impl Surroundings {
    pub(crate) fn of(chassis: &Chassis<'_>, devices: &Devices, lifecycle: Arc<Lifecycle>) -> Self {
        Surroundings {
            pci: devices.pci.clone(),
            memory: chassis.memory.clone(),
            msi: chassis.msi.clone(),
            fds: chassis.vm.event_fds(),
            lifecycle,
            nets: devices.virtio.nets.iter().map(Arc::downgrade).collect(),
        }
    }
}

/// What is in a slot when the machine starts, opened.
#[derive(Debug)]
pub(crate) enum OpenCard {
    Disk(Arc<Disk>),
    Net(Arc<Net>),
}

/// Opens the cards of `config`, an entry for each port.
pub(crate) fn open_cards(config: &MachineConfig) -> Result<Vec<Option<OpenCard>>, PlugError> {
    let mut index = config.nets.len();
    let mut open = |card: &CardConfig| {
        Ok(match card {
            CardConfig::Disk(card) => OpenCard::Disk(Disk::open(&card.disk)?),
            CardConfig::Net(net) => {
                let open = Net::open(net, index)?;
                index += 1;
                OpenCard::Net(Arc::new(open))
            }
        })
    };
    config.root_ports.iter().map(|port| port.card.as_ref().map(&mut open).transpose()).collect()
}

/// See the module.
pub(crate) struct Hotplug {
    around: Surroundings,
    /// The names of devices that stay.
    fixed: Vec<String>,
    /// How many disks stay.
    disks: usize,
    state: Mutex<State>,
}

struct State {
    ports: Vec<Port>,
    store: Store,
    /// How many cards there have been, for those without a name.
    cards: usize,
}

struct Port {
    id: String,
    /// Its place on the first bus.
    slot: u8,
    card: Option<Card>,
}

/// What is in a slot.
struct Card {
    id: Option<String>,
    /// Which card of the machine it is.
    number: usize,
    what: What,
    /// When the guest was asked to let go of it.
    asked: Option<Instant>,
}

enum What {
    Disk { id: String, drive: Arc<Drive> },
    Net { net: Arc<Net>, netdev: String },
}

impl Card {
    /// What monitors call it in an object's path.
    fn path(&self) -> String {
        match &self.id {
            Some(id) => format!("/machine/peripheral/{id}"),
            None => format!("/machine/peripheral-anon/device[{}]", self.number),
        }
    }

    fn name(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.path())
    }
}

/// A network card in a slot, as monitors show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetFacts {
    pub(crate) id: String,
    pub(crate) mac: Mac,
    pub(crate) link: bool,
    pub(crate) netdev: String,
}

/// What is in the slots and waits for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plugged {
    pub(crate) drives: Vec<DriveFacts>,
    pub(crate) netdevs: Vec<NetdevFacts>,
    pub(crate) nets: Vec<NetFacts>,
}

impl Hotplug {
    /// The slots of `config`, its ports being at `places` on the first bus, with the `cards` that are in them.
    pub(crate) fn new(
        around: Surroundings,
        config: &MachineConfig,
        places: &[u8],
        cards: Vec<Option<OpenCard>>,
    ) -> Result<Arc<Self>, PlugError> {
        let ports = config.root_ports.iter().zip(places);
        let ports = ports.map(|(port, slot)| Port { id: port.id.clone(), slot: *slot, card: None }).collect();
        let store = Store::new(config)?;
        let nets = config.nets.iter().filter_map(|net| net.common.id.clone());
        let fixed = nets.chain(config.disks.iter().filter_map(|disk| disk.device.clone())).collect();
        let state = Mutex::new(State { ports, store, cards: 0 });
        let disks = config.disks.len();
        let hotplug = Arc::new(Hotplug { around, fixed, disks, state });
        for (port, card) in config.root_ports.iter().zip(cards) {
            if let (Some(config), Some(card)) = (&port.card, card) {
                hotplug.plug_open(&port.id, config, card, false)?;
            }
        }
        let weak = Arc::downgrade(&hotplug);
        hotplug.around.pci.on_release(move |slot, function| {
            if let Some(hotplug) = weak.upgrade() {
                hotplug.gone(slot, function);
            }
        });
        Ok(hotplug)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs in what `card` describes.
    pub(crate) fn plug(&self, port: &str, card: &CardConfig) -> Result<(), PlugError> {
        signals::blocked(|| {
            let open = match card {
                CardConfig::Disk(card) => OpenCard::Disk(Disk::open(&card.disk)?),
                CardConfig::Net(net) => {
                    let common = self.addressed(&self.lock(), &net.common);
                    let net = NetConfig { common, backend: net.backend.clone() };
                    OpenCard::Net(Arc::new(Net::open(&net, usize::MAX)?))
                }
            };
            self.plug_open(port, card, open, true)
        })
    }

    fn plug_open(&self, port: &str, config: &CardConfig, card: OpenCard, hot: bool) -> Result<(), PlugError> {
        let mut state = self.lock();
        self.check_id(&state, config.id())?;
        let number = state.cards;
        let named = |name: &Option<String>| name.clone().unwrap_or_else(|| format!("{UNNAMED}card{number}"));
        match (config, card) {
            (CardConfig::Disk(config), OpenCard::Disk(disk)) => {
                let drive = named(&config.drive);
                state.check_slot(port, DISK_MODEL)?;
                state.store.add_drive(&drive, DriveKind::Drive, config.disk.clone(), None)?;
                let done = self.plug_disk(&mut state, port, config.id.clone(), &drive, disk, hot);
                if done.is_err() {
                    state.store.let_go_of_drive(&drive);
                }
                done
            }
            (CardConfig::Net(config), OpenCard::Net(net)) => {
                let netdev = named(&config.common.netdev);
                state.check_slot(port, NET_MODEL)?;
                let entry = NetdevConfig { id: netdev.clone(), backend: config.backend.clone() };
                state.store.add_netdev(entry, None)?;
                let done = self.plug_net(&mut state, port, config.common.id.clone(), &netdev, net, hot);
                if done.is_err() {
                    state.store.remove_netdev(&netdev)?;
                }
                done
            }
            // They are opened by these very configurations.
            _ => Err(PlugError::NoBus(port.to_owned())),
        }
    }

    /// Does what a monitor asks for.
    pub(crate) fn perform(
        &self,
        request: PlugRequest,
        parser: Option<&dyn PlugParser>,
    ) -> Result<(), PlugError> {
        let parser = || parser.ok_or(PlugError::NoParser);
        signals::blocked(|| match request {
            PlugRequest::AddDevice(said) => {
                self.add_device(parser()?.device(&said).map_err(PlugError::Words)?)
            }
            PlugRequest::RemoveDevice(id) => self.remove_device(&id),
            PlugRequest::AddDrive(said) => {
                let (id, disk) = parser()?.drive(&said).map_err(PlugError::Words)?;
                let mut state = self.lock();
                state.store.check_drive(&id)?;
                let open = Disk::open(&disk)?;
                state.store.add_drive(&id, DriveKind::Drive, disk, Some(open))
            }
            PlugRequest::RemoveDrive(id) => self.lock().store.remove_drive(&id),
            PlugRequest::AddNode(said) => {
                self.lock().store.add_node(parser()?.node(&said).map_err(PlugError::Words)?)
            }
            PlugRequest::RemoveNode(name) => self.lock().store.remove_node(&name),
            PlugRequest::AddNetdev(said) => {
                let netdev = parser()?.netdev(&said).map_err(PlugError::Words)?;
                let mut state = self.lock();
                state.store.check_netdev(&netdev.id)?;
                let open = netdev.backend.open()?;
                state.store.add_netdev(netdev, Some(open))
            }
            PlugRequest::RemoveNetdev(id) => self.lock().store.remove_netdev(&id),
        })
    }

    fn add_device(&self, request: DeviceRequest) -> Result<(), PlugError> {
        let mut state = self.lock();
        let DeviceRequest { id, bus, kind } = request;
        self.check_id(&state, id.as_deref())?;
        // As in QEMU, a device goes to the first bus if nothing is said.
        let bus = bus.unwrap_or_else(|| FIRST_BUS.to_owned());
        match kind {
            DeviceKind::Disk { drive, properties } => {
                state.check_slot(&bus, DISK_MODEL)?;
                let disk = state.store.open_drive(&drive, id.clone(), &properties)?;
                self.plug_disk(&mut state, &bus, id, &drive, disk, true)
            }
            DeviceKind::Net(NetProperties { netdev, mac, mtu }) => {
                state.check_slot(&bus, NET_MODEL)?;
                let common = CommonOptions {
                    mac,
                    mtu,
                    dump: None,
                    id: Some(id.clone().unwrap_or_else(|| format!("{NET_MODEL}.{}", state.cards))),
                    netdev: Some(netdev.clone()),
                };
                let common = self.addressed(&state, &common);
                let (backend, open) = state.store.open_netdev(&netdev, mtu)?;
                let net = Net::connect(&NetConfig { common, backend }, usize::MAX, open)?;
                self.plug_net(&mut state, &bus, id, &netdev, Arc::new(net), true)
            }
        }
    }

    fn plug_disk(
        &self,
        state: &mut State,
        port: &str,
        id: Option<String>,
        drive: &str,
        disk: Arc<Disk>,
        hot: bool,
    ) -> Result<(), PlugError> {
        // Behind those of the disks that stay.
        let names = state.store.names(drive, Drive::node(self.disks + state.cards));
        let open = Drive::of(disk.clone(), names).map_err(PlugError::DiskThreads)?;
        open.stop_on_errors(&self.around.lifecycle);
        let device = open.device.clone();
        let what = What::Disk { id: drive.to_owned(), drive: open };
        let user = self.insert(state, port, id, what, device, hot)?;
        state.store.take_drive(drive, &disk, user);
        Ok(())
    }

    fn plug_net(
        &self,
        state: &mut State,
        port: &str,
        id: Option<String>,
        netdev: &str,
        net: Arc<Net>,
        hot: bool,
    ) -> Result<(), PlugError> {
        let what = What::Net { net: net.clone(), netdev: netdev.to_owned() };
        let user = self.insert(state, port, id, what, net, hot)?;
        state.store.take_netdev(netdev, user);
        Ok(())
    }

    /// Puts `device` into the slot, and gives the name by which it uses what is behind it.
    fn insert(
        &self,
        state: &mut State,
        port: &str,
        id: Option<String>,
        what: What,
        device: Arc<dyn VirtioDevice>,
        hot: bool,
    ) -> Result<String, PlugError> {
        let Surroundings { pci, memory, msi, fds, .. } = &self.around;
        let number = state.cards;
        let port = state.port(port)?;
        let function = VirtioPci::new(device, memory.clone(), msi.clone(), fds.clone())?;
        pci.insert(port.slot, Arc::new(function), hot)?;
        let card = Card { id, number, what, asked: None };
        let name = card.name();
        port.card = Some(card);
        state.cards += 1;
        Ok(name)
    }

    /// Asks the guest to let go of the device called `id`.
    pub(crate) fn remove_device(&self, id: &str) -> Result<(), PlugError> {
        let slot = {
            let mut state = self.lock();
            let is_port = state.ports.iter().any(|port| port.id == id);
            let found = state.ports.iter_mut().find_map(|port| match &mut port.card {
                Some(card) if card.id.as_deref() == Some(id) => Some((port.slot, card)),
                _ => None,
            });
            let Some((slot, card)) = found else {
                return Err(match is_port || self.fixed.iter().any(|fixed| fixed == id) {
                    true => PlugError::FixedBus(FIRST_BUS.to_owned()),
                    false => PlugError::NoDevice(id.to_owned()),
                });
            };
            if card.asked.is_some_and(|asked| asked.elapsed() < PATIENCE) {
                return Err(PlugError::Leaving(id.to_owned()));
            }
            card.asked = Some(Instant::now());
            slot
        };
        // Without the lock: a card that goes at once takes it.
        match self.around.pci.eject(slot) {
            Ok(Ejected::Asked) => Ok(()),
            Ok(Ejected::Gone(function)) => {
                self.gone(slot, function);
                Ok(())
            }
            Err(error) => {
                let mut state = self.lock();
                let port = state.ports.iter_mut().find(|port| port.slot == slot);
                if let Some(card) = port.and_then(|port| port.card.as_mut()) {
                    card.asked = None;
                }
                match error {
                    PciError::Busy(_) => Err(PlugError::Busy),
                    // It has gone meanwhile.
                    _ => Err(PlugError::NoDevice(id.to_owned())),
                }
            }
        }
    }

    /// The guest has let go of the card behind the port in `slot`: it is closed, and whoever wants to know hears of it.
    fn gone(&self, slot: u8, function: Arc<dyn PciFunction>) {
        let mut state = self.lock();
        let port = state.ports.iter_mut().find(|port| port.slot == slot);
        let Some(card) = port.and_then(|port| port.card.take()) else { return };
        let event = MachineEvent::DeviceDeleted { device: card.id.clone(), path: card.path() };
        // The threads of the device first: they hold what is behind it.
        drop(function);
        match card.what {
            What::Disk { id, drive } => {
                drop(drive);
                state.store.let_go_of_drive(&id);
            }
            What::Net { net, netdev } => {
                drop(net);
                state.store.let_go_of_netdev(&netdev);
            }
        }
        drop(state);
        log::info!("{} is unplugged", card.id.as_deref().unwrap_or("a card"));
        self.around.lifecycle.tell(event);
    }

    /// A card's options with an address that no other card has, if they have none.
    fn addressed(&self, state: &State, common: &CommonOptions) -> CommonOptions {
        let fixed = self.around.nets.iter().filter_map(Weak::upgrade);
        let taken: Vec<Mac> = fixed.chain(state.nets()).map(|net| net.mac()).collect();
        let free = || (0..256).map(Mac::of_card).find(|mac| !taken.contains(mac));
        CommonOptions { mac: common.mac.or_else(free), ..common.clone() }
    }

    fn check_id(&self, state: &State, id: Option<&str>) -> Result<(), PlugError> {
        let Some(id) = id else { return Ok(()) };
        let is_card = |port: &Port| port.card.as_ref().is_some_and(|card| card.id.as_deref() == Some(id));
        let taken = state.ports.iter().any(|port| port.id == id || is_card(port))
            || self.fixed.iter().any(|fixed| fixed == id);
        if taken { Err(PlugError::Duplicate { id: id.to_owned(), what: "device" }) } else { Ok(()) }
    }

    /// The disks in slots.
    pub(crate) fn drives(&self) -> Vec<Arc<Drive>> {
        let state = self.lock();
        let cards = state.ports.iter().filter_map(|port| port.card.as_ref());
        let drive = |card: &Card| match &card.what {
            What::Disk { drive, .. } => Some(drive.clone()),
            What::Net { .. } => None,
        };
        cards.filter_map(drive).collect()
    }

    /// The network cards in slots.
    pub(crate) fn nets(&self) -> Vec<Arc<Net>> {
        self.lock().nets().collect()
    }

    /// What there is, for monitors.
    pub(crate) fn plugged(&self) -> Plugged {
        let state = self.lock();
        let cards = state.ports.iter().filter_map(|port| port.card.as_ref());
        let nets = cards.filter_map(|card| match &card.what {
            What::Net { net, netdev } => Some(NetFacts {
                id: net.id().to_owned(),
                mac: net.mac(),
                link: net.link(),
                netdev: netdev.clone(),
            }),
            What::Disk { .. } => None,
        });
        Plugged { nets: nets.collect(), drives: state.store.drives(), netdevs: state.store.netdevs() }
    }
}

impl State {
    fn port(&mut self, bus: &str) -> Result<&mut Port, PlugError> {
        if bus == FIRST_BUS {
            return Err(PlugError::FixedBus(bus.to_owned()));
        }
        let port = self.ports.iter_mut().find(|port| port.id == bus);
        port.ok_or_else(|| PlugError::NoBus(bus.to_owned()))
    }

    /// Whether there is a slot behind `bus`, and nothing in it.
    fn check_slot(&mut self, bus: &str, driver: &'static str) -> Result<(), PlugError> {
        match &self.port(bus)?.card {
            Some(_) => Err(PlugError::Full { driver, bus: bus.to_owned() }),
            None => Ok(()),
        }
    }

    fn nets(&self) -> impl Iterator<Item = Arc<Net>> {
        self.ports.iter().filter_map(|port| match &port.card.as_ref()?.what {
            What::Net { net, .. } => Some(net.clone()),
            What::Disk { .. } => None,
        })
    }
}

impl fmt::Debug for Hotplug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let ports = state.ports.iter().map(|port| (&port.id, port.card.as_ref().map(Card::name)));
        f.debug_map().entries(ports).finish()
    }
}
