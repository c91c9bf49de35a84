//! What is asked for of a running machine's slots, in the words of QEMU's monitors, and why it is not done. How these words are taken apart
//! is a [`PlugParser`]'s affair: who reads QEMU's command line knows them.

use std::fmt;

use hvrun_devices::backend::disk::{DiskConfig, DiskError, ErrorPolicy};
use hvrun_devices::pci::PciError;
use hvrun_devices::virtio::net::{Mac, NetBackendError, NetError};
use hvrun_devices::virtio::pci::VirtioPciError;

use crate::config::NetdevConfig;

/// Options as somebody gave them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// In one word, such as `virtio-blk-pci,drive=d0,bus=rp0`.
    Text(String),
    /// Taken apart already.
    Pairs(Vec<(String, String)>),
}

/// Understands QEMU's options. What is wrong with them is told in one line, as QEMU would.
pub trait PlugParser: Send + Sync + fmt::Debug {
    /// What `-device` and `device_add` take.
    ///
    /// # Errors
    /// What is wrong.
    fn device(&self, said: &Said) -> Result<DeviceRequest, String>;

    /// What `-drive` and `drive_add` take: a name, and an image.
    ///
    /// # Errors
    /// What is wrong.
    fn drive(&self, said: &Said) -> Result<(String, DiskConfig), String>;

    /// What `blockdev-add` takes.
    ///
    /// # Errors
    /// What is wrong.
    fn node(&self, said: &Said) -> Result<NodeRequest, String>;

    /// What `-netdev` and `netdev_add` take.
    ///
    /// # Errors
    /// What is wrong.
    fn netdev(&self, said: &Said) -> Result<NetdevConfig, String>;
}

/// A device that shall be plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    /// What it will be called. One without a name cannot be pulled out.
    pub id: Option<String>,
    /// What it shall be plugged into.
    pub bus: Option<String>,
    /// What it is.
    pub kind: DeviceKind,
}

/// See [`DeviceRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    /// A disk.
    Disk {
        /// The name of its image.
        drive: String,
        /// Its own properties.
        properties: DiskProperties,
    },
    /// A network card.
    Net(NetProperties),
}

/// What a disk says about itself, rather than its image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskProperties {
    /// The serial number; an empty one is none.
    pub serial: Option<String>,
    /// How many queues.
    pub queues: Option<u16>,
    /// Whether what the guest discards is given back.
    pub discard: Option<bool>,
    /// Others may write to the image at the same time.
    pub shared: bool,
    /// What becomes of write errors.
    pub werror: Option<ErrorPolicy>,
    /// What becomes of read errors.
    pub rerror: Option<ErrorPolicy>,
}

impl DiskProperties {
    /// The image as this disk has it.
    pub fn apply(&self, disk: &mut DiskConfig) {
        if let Some(serial) = &self.serial {
            disk.serial = Some(serial.clone()).filter(|serial| !serial.is_empty());
        }
        disk.queues = self.queues.unwrap_or(disk.queues);
        disk.discard = self.discard.unwrap_or(disk.discard);
        disk.lock &= !self.shared;
        disk.werror = self.werror.unwrap_or(disk.werror);
        disk.rerror = self.rerror.unwrap_or(disk.rerror);
    }
}

/// What a network card says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetProperties {
    /// The name of its network.
    pub netdev: String,
    /// Its address.
    pub mac: Option<Mac>,
    /// The MTU that it announces.
    pub mtu: Option<u16>,
}

/// An image under a name, which stays when its disk goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRequest {
    /// Its name.
    pub name: String,
    /// The image; its path is that of `over` if there is such a thing.
    pub disk: DiskConfig,
    /// The name of another image, whose file it is.
    pub over: Option<String>,
    /// It is a file, and what is in it is somebody else's affair.
    pub is_file: bool,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PlugRequest {
    AddDevice(Said),
    RemoveDevice(String),
    AddDrive(Said),
    RemoveDrive(String),
    AddNode(Said),
    RemoveNode(String),
    AddNetdev(Said),
    RemoveNetdev(String),
}

/// Why something is not plugged in or pulled out. The words are QEMU's where it has some.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// Nothing has that name.
    #[error("Device '{0}' not found")]
    NoDevice(String),
    /// No bus has that name.
    #[error("Bus '{0}' not found")]
    NoBus(String),
    /// What is on this bus stays there.
    #[error("Bus '{0}' does not support hotplugging")]
    FixedBus(String),
    /// A slot has its card already.
    #[error("PCI: no slot/function available for {driver}, all in use or reserved: '{bus}' has its device")]
    Full {
        /// What shall be plugged in.
        driver: &'static str,
        /// Where.
        bus: String,
    },
    /// Something else has that name.
    #[error("Duplicate ID '{id}' for {what}")]
    Duplicate {
        /// The name.
        id: String,
        /// Whose.
        what: &'static str,
    },
    /// Another image has that name.
    #[error("Duplicate nodes with node-name='{0}'")]
    DuplicateNode(String),
    /// No image has that name.
    #[error("Property 'virtio-blk-device.drive' can't find value '{0}'")]
    NoDrive(String),
    /// No image has that name.
    #[error("Failed to find node with node-name='{0}'")]
    NoNode(String),
    /// Another disk has the image.
    #[error("Drive '{drive}' is already in use by another device: '{user}'")]
    DriveInUse {
        /// Which image.
        drive: String,
        /// Who has it.
        user: String,
    },
    /// Somebody has the image.
    #[error("Block device {node} is in use by '{user}'")]
    NodeInUse {
        /// Which image.
        node: String,
        /// Who has it.
        user: String,
    },
    /// No network has that name.
    #[error("Property 'virtio-net-device.netdev' can't find value '{0}'")]
    NoNetdev(String),
    /// Another card has the network.
    #[error("Property 'virtio-net-device.netdev' can't take value '{0}', it's in use")]
    NetdevTaken(String),
    /// A card has the network.
    #[error("netdev '{netdev}' is in use by '{user}'; use device_del first")]
    NetdevInUse {
        /// Which network.
        netdev: String,
        /// Who has it.
        user: String,
    },
    /// The guest was asked already.
    #[error("Device {0} is already in the process of unplug")]
    Leaving(String),
    /// The guest turns the slot's power on or off.
    #[error("Hot-unplug failed: guest is busy (power indicator blinking)")]
    Busy,
    /// What was said makes no sense.
    #[error("{0}")]
    Words(String),
    /// There is nobody to understand it.
    #[error("this machine understands no options of QEMU")]
    NoParser,
    /// An image cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host has no descriptor or thread left for a disk.
    #[error("cannot start the disk")]
    DiskThreads(#[source] std::io::Error),
    /// A network cannot be had.
    #[error(transparent)]
    Netdev(#[from] NetBackendError),
    /// A network card cannot be had.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A device that PCI cannot carry.
    #[error(transparent)]
    VirtioPci(#[from] VirtioPciError),
    /// The bus does not take it.
    #[error(transparent)]
    Pci(#[from] PciError),
}
