//! Images and networks by their names: those that wait for a device, and those that one has. A device is only a name here.

use std::sync::Arc;

use hvrun_devices::backend::disk::{BlockBackend, Disk, DiskConfig};
use hvrun_devices::virtio::net::{NetBackendConfig, OpenedNet};

use super::request::{DiskProperties, NodeRequest, PlugError};
use crate::config::{DriveConfig, MachineConfig, NetdevConfig};
use crate::running::BlockNames;

/// What the names of those begin with that nobody has named.
pub(super) const UNNAMED: char = '#';

/// What an image is to whoever named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DriveKind {
    /// It goes with its disk (`drive_add`).
    Drive,
    /// It stays when its disk goes (`blockdev-add`).
    Node,
    /// The same, and it is a file whose contents may be another one's.
    File,
}

struct Drive {
    id: String,
    kind: DriveKind,
    config: DiskConfig,
    /// Open while it waits, and, if it stays, while a disk has it.
    open: Option<Arc<Disk>>,
    /// Its size, once it was open.
    size: u64,
    format: Option<&'static str>,
    user: Option<String>,
}

struct Netdev {
    config: NetdevConfig,
    /// Open until a card takes it.
    open: Option<OpenedNet>,
    user: Option<String>,
}

/// An image, as monitors show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DriveFacts {
    pub(crate) id: String,
    pub(crate) kind: DriveKind,
    pub(crate) config: DiskConfig,
    pub(crate) format: &'static str,
    pub(crate) size: u64,
    pub(crate) user: Option<String>,
}

/// A network, as monitors show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetdevFacts {
    pub(crate) config: NetdevConfig,
    pub(crate) user: Option<String>,
}

/// See the module.
pub(super) struct Store {
    /// The names of drives that stay with their disks.
    fixed: Vec<String>,
    drives: Vec<Drive>,
    netdevs: Vec<Netdev>,
}

impl Store {
    /// What waits from the start.
    pub(super) fn new(config: &MachineConfig) -> Result<Self, PlugError> {
        let fixed = config.disks.iter().filter_map(|disk| disk.id.clone()).collect();
        let mut store = Store { fixed, drives: Vec::new(), netdevs: Vec::new() };
        for DriveConfig { id, disk } in &config.spare_drives {
            store.add_drive(id, DriveKind::Drive, disk.clone(), Some(Disk::open(disk)?))?;
        }
        for netdev in &config.spare_netdevs {
            let open = netdev.backend.open()?;
            store.add_netdev(netdev.clone(), Some(open))?;
        }
        Ok(store)
    }

    fn drive(&mut self, id: &str) -> Option<&mut Drive> {
        self.drives.iter_mut().find(|drive| drive.id == id)
    }

    fn netdev(&mut self, id: &str) -> Option<&mut Netdev> {
        self.netdevs.iter_mut().find(|netdev| netdev.config.id == id)
    }

    /// Whether an image may have this name.
    pub(super) fn check_drive(&mut self, id: &str) -> Result<(), PlugError> {
        match self.drive(id).is_some() || self.fixed.iter().any(|fixed| fixed == id) {
            true => Err(PlugError::Duplicate { id: id.to_owned(), what: "drive" }),
            false => Ok(()),
        }
    }

    pub(super) fn add_drive(
        &mut self,
        id: &str,
        kind: DriveKind,
        config: DiskConfig,
        open: Option<Arc<Disk>>,
    ) -> Result<(), PlugError> {
        self.check_drive(id)?;
        let mut drive =
            Drive { id: id.to_owned(), kind, config, open: None, size: 0, format: None, user: None };
        if let Some(open) = open {
            drive.opened(open);
        }
        self.drives.push(drive);
        Ok(())
    }

    pub(super) fn add_node(&mut self, request: NodeRequest) -> Result<(), PlugError> {
        let NodeRequest { name, mut disk, over, is_file } = request;
        if self.drive(&name).is_some() {
            return Err(PlugError::DuplicateNode(name));
        }
        if is_file {
            // Not opened before it is known what is in it.
            return self.add_drive(&name, DriveKind::File, disk, None);
        }
        if let Some(over) = &over {
            let file = self.drive(over).filter(|file| file.kind == DriveKind::File);
            let file = file.ok_or_else(|| PlugError::NoNode(over.clone()))?;
            if let Some(user) = &file.user {
                return Err(PlugError::NodeInUse { node: over.clone(), user: user.clone() });
            }
            disk.path.clone_from(&file.config.path);
            disk.lock &= file.config.lock;
        }
        let open = Disk::open(&disk)?;
        if let Some(file) = over.as_deref().and_then(|over| self.drive(over)) {
            file.user = Some(name.clone());
        }
        self.add_drive(&name, DriveKind::Node, disk, Some(open))
    }

    /// Takes away an image that no disk has.
    pub(super) fn remove_drive(&mut self, id: &str) -> Result<(), PlugError> {
        let drive = self.drive(id).filter(|drive| drive.kind == DriveKind::Drive);
        match drive.map(|drive| drive.user.clone()) {
            None => Err(PlugError::NoDevice(id.to_owned())),
            Some(Some(user)) => Err(PlugError::DriveInUse { drive: id.to_owned(), user }),
            Some(None) => {
                self.drives.retain(|drive| drive.id != id);
                Ok(())
            }
        }
    }

    /// The same for one that stays when its disk goes.
    pub(super) fn remove_node(&mut self, name: &str) -> Result<(), PlugError> {
        let drive = self.drive(name).filter(|drive| drive.kind != DriveKind::Drive);
        match drive.map(|drive| drive.user.clone()) {
            None => Err(PlugError::NoNode(name.to_owned())),
            Some(Some(user)) => Err(PlugError::NodeInUse { node: name.to_owned(), user }),
            Some(None) => {
                self.drives.retain(|drive| drive.id != name);
                let over = self.drives.iter_mut().filter(|drive| drive.user.as_deref() == Some(name));
                over.for_each(|file| file.user = None);
                Ok(())
            }
        }
    }

    /// An image for a disk with `properties`, if no other has it. It is opened anew if they make a difference.
    pub(super) fn open_drive(
        &mut self,
        id: &str,
        device: Option<String>,
        properties: &DiskProperties,
    ) -> Result<Arc<Disk>, PlugError> {
        let drive = self.drive(id).ok_or_else(|| PlugError::NoDrive(id.to_owned()))?;
        if let Some(user) = &drive.user {
            return Err(PlugError::DriveInUse { drive: id.to_owned(), user: user.clone() });
        }
        let mut wanted = drive.config.clone();
        properties.apply(&mut wanted);
        wanted.device = device;
        match drive.open.take() {
            Some(open) if *open.config() == wanted => {
                drive.open = Some(open.clone());
                Ok(open)
            }
            before => {
                // Its lock has to go before it can be locked again.
                drop(before);
                let open = Disk::open(&wanted)?;
                drive.opened(open.clone());
                Ok(open)
            }
        }
    }

    /// What monitors call the image: a drive by its name, with `node` behind it, and a node by its own.
    pub(super) fn names(&mut self, id: &str, node: String) -> BlockNames {
        let is_node = self.drive(id).is_some_and(|drive| drive.kind != DriveKind::Drive);
        match is_node {
            true => BlockNames { drive: String::new(), node: id.to_owned() },
            false => BlockNames { drive: id.to_owned(), node },
        }
    }

    /// The device `user` has the image now.
    pub(super) fn take_drive(&mut self, id: &str, disk: &Arc<Disk>, user: String) {
        if let Some(drive) = self.drive(id) {
            drive.opened(disk.clone());
            drive.user = Some(user);
        }
    }

    /// Its disk has gone.
    pub(super) fn let_go_of_drive(&mut self, id: &str) {
        self.drives.retain(|drive| drive.id != id || drive.kind != DriveKind::Drive);
        if let Some(drive) = self.drive(id) {
            drive.user = None;
        }
    }

    /// Whether a network may have this name.
    pub(super) fn check_netdev(&mut self, id: &str) -> Result<(), PlugError> {
        match self.netdev(id) {
            Some(_) => Err(PlugError::Duplicate { id: id.to_owned(), what: "netdev" }),
            None => Ok(()),
        }
    }

    pub(super) fn add_netdev(
        &mut self,
        config: NetdevConfig,
        open: Option<OpenedNet>,
    ) -> Result<(), PlugError> {
        self.check_netdev(&config.id)?;
        self.netdevs.push(Netdev { config, open, user: None });
        Ok(())
    }

    /// Takes away a network that no card has.
    pub(super) fn remove_netdev(&mut self, id: &str) -> Result<(), PlugError> {
        match self.netdev(id).map(|netdev| netdev.user.clone()) {
            None => Err(PlugError::NoDevice(id.to_owned())),
            Some(Some(user)) => Err(PlugError::NetdevInUse { netdev: id.to_owned(), user }),
            Some(None) => {
                self.netdevs.retain(|netdev| netdev.config.id != id);
                Ok(())
            }
        }
    }

    /// A network for a card, if no other has it. One that had a card before, or shall have another MTU, is opened anew.
    pub(super) fn open_netdev(
        &mut self,
        id: &str,
        mtu: Option<u16>,
    ) -> Result<(NetBackendConfig, OpenedNet), PlugError> {
        let netdev = self.netdev(id).ok_or_else(|| PlugError::NoNetdev(id.to_owned()))?;
        if netdev.user.is_some() {
            return Err(PlugError::NetdevTaken(id.to_owned()));
        }
        let mut wanted = netdev.config.backend.clone();
        if let (NetBackendConfig::User(user), Some(mtu)) = (&mut wanted, mtu) {
            user.mtu = mtu;
        }
        let before = netdev.open.take().filter(|_| wanted == netdev.config.backend);
        let open = match before {
            Some(open) => open,
            None => wanted.open()?,
        };
        Ok((wanted, open))
    }

    /// The device `user` has the network now.
    pub(super) fn take_netdev(&mut self, id: &str, user: String) {
        if let Some(netdev) = self.netdev(id) {
            netdev.user = Some(user);
        }
    }

    /// Its card has gone, and with it a network that had no name of its own.
    pub(super) fn let_go_of_netdev(&mut self, id: &str) {
        if id.starts_with(UNNAMED) {
            self.netdevs.retain(|netdev| netdev.config.id != id);
        }
        if let Some(netdev) = self.netdev(id) {
            netdev.user = None;
        }
    }

    /// For monitors.
    pub(super) fn drives(&self) -> Vec<DriveFacts> {
        let facts = |drive: &Drive| DriveFacts {
            id: drive.id.clone(),
            kind: drive.kind,
            config: drive.config.clone(),
            format: drive.format.unwrap_or("file"),
            size: drive.size,
            user: drive.user.clone(),
        };
        self.drives.iter().map(facts).collect()
    }

    /// For monitors.
    pub(super) fn netdevs(&self) -> Vec<NetdevFacts> {
        let facts =
            |netdev: &Netdev| NetdevFacts { config: netdev.config.clone(), user: netdev.user.clone() };
        self.netdevs.iter().map(facts).collect()
    }
}

impl Drive {
    fn opened(&mut self, disk: Arc<Disk>) {
        self.size = disk.capacity();
        self.format = Some(disk.format().name());
        self.open = Some(disk);
    }
}
