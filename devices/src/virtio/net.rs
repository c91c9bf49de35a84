//! The network card (virtio 1.2, 5.1): features, configuration space, and the life of a card. Frames move on the card's own thread
//! (`card.rs`), and where they go is the backend's affair ([`crate::backend::net`]).
//!
//! A guest may always leave checksums and segmentation to the card: what the backend does not understand of that is done here
//! ([`segment`]), so that a switch or a tap device gets plain frames. In the other direction the backend is told what the guest
//! understands.

mod card;
mod config;
mod control;
mod counters;
mod filter;
mod header;
mod mac;
mod pcap;
mod receive;
pub mod segment;
#[cfg(test)]
mod tests;
mod transmit;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use hvrun_arch::GuestMemory;
use serde::{Deserialize, Serialize};

use self::card::Card;
pub use self::config::{
    CommonOptions, MAX_MTU, MIN_MTU, NetBackendConfig, NetBackendError, NetConfig, NetParseError, OpenedNet,
};
use self::counters::Counters;
pub use self::counters::NetCounters;
pub use self::filter::{AddressTable, Filter};
pub use self::mac::{Mac, MacError};
use self::pcap::Pcap;
use super::device::{Activation, DeviceType, Interrupt, VirtioDevice};
use super::queue::{Virtqueue, VirtqueueState};
use crate::backend::net::NetBackend;
use crate::backend::net::user::UserNetHandle;
use crate::sys::Event;
use crate::util::lock;

/// The feature bits (virtio 1.2, 5.1.3): VIRTIO_NET_F_CSUM: the device computes checksums for the driver.
const F_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM: the driver takes frames without checksums.
const F_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: the driver may turn its offloads off and on.
const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// VIRTIO_NET_F_MTU: the configuration space has the MTU.
const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC: the configuration space has the address.
const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4: the driver takes TCP over IPv4 that is not cut into segments.
const F_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6: the same over IPv6.
const F_GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_HOST_TSO4: the device cuts TCP over IPv4 for the driver.
const F_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6: the same over IPv6.
const F_HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_MRG_RXBUF: a frame may take several receive buffers.
const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS: the configuration space has the link's state.
const F_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_F_CTRL_VQ: there is a control queue.
const F_CTRL_VQ: u64 = 1 << 17;
/// VIRTIO_NET_F_CTRL_RX: it takes receive modes.
const F_CTRL_RX: u64 = 1 << 18;
/// VIRTIO_NET_F_CTRL_RX_EXTRA: more of them.
const F_CTRL_RX_EXTRA: u64 = 1 << 20;
/// VIRTIO_NET_F_CTRL_MAC_ADDR: it takes an address.
const F_CTRL_MAC_ADDR: u64 = 1 << 23;

/// The offloads that a driver may turn off and on; their bits in the command are those of the features (virtio 1.2, 5.1.6.5.6.1).
const GUEST_OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;

/// The queues (virtio 1.2, 5.1.2), in their order.
const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
/// Entries of the queues.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// Bytes of `struct virtio_net_config` up to the MTU (virtio 1.2, 5.1.4): the address, le16 status, le16 max_virtqueue_pairs, le16 mtu.
const CONFIG_SIZE: usize = 12;
/// VIRTIO_NET_S_LINK_UP.
const S_LINK_UP: u16 = 1;

/// What a [`Net`] is besides its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOptions {
    /// What monitors and log lines call it.
    pub id: String,
    /// Its address.
    pub mac: Mac,
    /// The MTU it announces, if any.
    pub mtu: Option<u16>,
    /// Where its traffic is recorded, as pcap.
    pub dump: Option<PathBuf>,
}

impl NetOptions {
    /// Those of card number `index` of a machine (0 is the first), where `options` does not say otherwise.
    pub fn of_card(index: usize, options: &CommonOptions) -> Self {
        NetOptions {
            id: options.id.clone().unwrap_or_else(|| format!("net{index}")),
            mac: options.mac.unwrap_or_else(|| Mac::of_card(index)),
            mtu: options.mtu,
            dump: options.dump.clone(),
        }
    }
}

/// Why there can be no such card.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// What is behind it cannot be had.
    #[error("network card {id}")]
    Backend {
        /// Which card.
        id: String,
        /// Why not.
        source: NetBackendError,
    },
    /// The record of its traffic cannot be written.
    #[error("cannot record the traffic of {id} in {}", path.display())]
    Dump {
        /// Which card.
        id: String,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The host has no descriptor or thread left.
    #[error("cannot start the thread of {id}")]
    Thread {
        /// Which card.
        id: String,
        /// Why not.
        source: io::Error,
    },
}

/// What a snapshot keeps of a card. Connections of its backend are not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Whether [`Net::set_link`] has the cable in.
    pub link: bool,
    /// What the card takes; `None` while no driver is there.
    pub filter: Option<Filter>,
    /// The guest's offloads that are in use, as feature bits.
    pub offloads: u64,
    /// The queues; empty while no driver is there.
    pub queues: Vec<Option<VirtqueueState>>,
}

/// A network card with one pair of queues.
pub struct Net {
    shared: Arc<Shared>,
    mtu: Option<u16>,
    user: Option<UserNetHandle>,
    thread: Option<JoinHandle<()>>,
}

/// What the card's thread shares with everybody else.
#[derive(Debug)]
struct Shared {
    name: String,
    event: Event,
    /// The thread shall end.
    stop: AtomicBool,
    /// Somebody wants [`Shared::guest`]: the thread keeps away from it.
    pausing: AtomicBool,
    /// The cable is in; see [`Net::set_link`].
    admin_link: AtomicBool,
    /// The backend has all it needs.
    backend_link: AtomicBool,
    /// The address after a reset, and now.
    own_mac: Mac,
    mac: Mutex<Mac>,
    counters: Counters,
    /// What the driver has set up. The thread holds it while it moves frames.
    guest: Mutex<Option<Guest>>,
}

/// The driver's side, from DRIVER_OK to the reset.
#[derive(Debug)]
struct Guest {
    memory: GuestMemory,
    rx: Option<Virtqueue>,
    tx: Option<Virtqueue>,
    control: Option<Virtqueue>,
    features: u64,
    interrupt: Arc<dyn Interrupt>,
    filter: Filter,
    /// The bits of [`GUEST_OFFLOADS`] that are in use.
    offloads: u64,
    /// The link as the driver can have seen it.
    told_link: bool,
    /// The thread has not seen it yet.
    fresh: bool,
}

impl Shared {
    fn link(&self) -> bool {
        self.admin_link.load(Ordering::SeqCst) && self.backend_link.load(Ordering::SeqCst)
    }

    fn set_mac(&self, mac: Mac) {
        *lock(&self.mac) = mac;
    }

    /// Does `work` on the driver's side while the thread is away from it.
    fn with_guest<T>(&self, work: impl FnOnce(&mut Option<Guest>) -> T) -> T {
        self.pausing.store(true, Ordering::SeqCst);
        let mut guest = lock(&self.guest);
        self.pausing.store(false, Ordering::SeqCst);
        let result = work(&mut guest);
        drop(guest);
        self.event.signal();
        result
    }
}

impl Net {
    /// A card in front of `backend`, with its thread.
    ///
    /// # Errors
    /// The record cannot be created, or the host has no descriptor or thread left.
    pub fn new(options: NetOptions, backend: Box<dyn NetBackend>) -> Result<Self, NetError> {
        let NetOptions { id, mac, mtu, dump } = options;
        let dump = match dump {
            Some(path) => match Pcap::create(&path) {
                Ok(pcap) => Some(pcap),
                Err(source) => return Err(NetError::Dump { id, path, source }),
            },
            None => None,
        };
        let event = match Event::new() {
            Ok(event) => event,
            Err(source) => return Err(NetError::Thread { id, source }),
        };
        let thread_name = id.chars().take(15).collect();
        let shared = Arc::new(Shared {
            name: id,
            event,
            stop: AtomicBool::new(false),
            pausing: AtomicBool::new(false),
            admin_link: AtomicBool::new(true),
            backend_link: AtomicBool::new(backend.link()),
            own_mac: mac,
            mac: Mutex::new(mac),
            counters: Counters::default(),
            guest: Mutex::new(None),
        });
        let card = Card::new(shared.clone(), backend, dump);
        match Builder::new().name(thread_name).spawn(move || card.run()) {
            Ok(thread) => Ok(Net { shared, mtu, user: None, thread: Some(thread) }),
            Err(source) => Err(NetError::Thread { id: shared.name.clone(), source }),
        }
    }

    /// Card number `index` of a machine (0 is the first), with what is behind it.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn open(config: &NetConfig, index: usize) -> Result<Self, NetError> {
        match config.open() {
            Ok(opened) => Net::connect(config, index, opened),
            Err(source) => Err(NetError::Backend { id: config.id(index), source }),
        }
    }

    /// The same in front of what has been opened before.
    ///
    /// # Errors
    /// See [`Net::new`].
    pub fn connect(config: &NetConfig, index: usize, opened: OpenedNet) -> Result<Self, NetError> {
        let options = NetOptions {
            id: config.id(index),
            mtu: config.mtu(),
            ..NetOptions::of_card(index, &config.common)
        };
        let mut net = Net::new(options, opened.backend)?;
        net.user = opened.user;
        Ok(net)
    }

    /// The user-mode network behind it, if that is what there is: forwarded ports come and go while the machine runs.
    pub fn user(&self) -> Option<&UserNetHandle> {
        self.user.as_ref()
    }

    /// What monitors and log lines call it.
    pub fn id(&self) -> &str {
        &self.shared.name
    }

    /// The address it has now: its own, or what the driver has set.
    pub fn mac(&self) -> Mac {
        *lock(&self.shared.mac)
    }

    /// Puts the cable in (`true`) or pulls it out: without it, frames are lost in both directions. The driver hears of it.
    pub fn set_link(&self, up: bool) {
        self.shared.admin_link.store(up, Ordering::SeqCst);
        self.shared.event.signal();
    }

    /// Whether the guest has a link: the cable is in, and the backend has what it needs.
    pub fn link(&self) -> bool {
        self.shared.link()
    }

    /// Its traffic so far.
    pub fn counters(&self) -> NetCounters {
        self.shared.counters.get()
    }

    /// For a snapshot.
    pub fn state(&self) -> NetState {
        let link = self.shared.admin_link.load(Ordering::SeqCst);
        self.shared.with_guest(|guest| match guest {
            None => NetState { link, filter: None, offloads: 0, queues: Vec::new() },
            Some(guest) => NetState {
                link,
                filter: Some(guest.filter.clone()),
                offloads: guest.offloads,
                queues: [&guest.rx, &guest.tx, &guest.control]
                    .map(|queue| queue.as_ref().map(Virtqueue::state))
                    .to_vec(),
            },
        })
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { F_MTU } else { 0 };
        mtu | F_CSUM
            | F_HOST_TSO4
            | F_HOST_TSO6
            | GUEST_OFFLOADS
            | F_MAC
            | F_MRG_RXBUF
            | F_STATUS
            | F_CTRL_VQ
            | F_CTRL_RX
            | F_CTRL_RX_EXTRA
            | F_CTRL_MAC_ADDR
            | F_CTRL_GUEST_OFFLOADS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.shared.link() { S_LINK_UP } else { 0 };
        let mut config = [0; CONFIG_SIZE];
        config[..6].copy_from_slice(&self.mac().0);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        super::read_config_bytes(&config, offset, data);
    }

    fn activate(&self, activation: Activation) {
        let Activation { memory, mut queues, features, interrupt } = activation;
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        let (rx, tx, control) = (take(RX), take(TX), take(CONTROL));
        let guest = Guest {
            memory,
            rx,
            tx,
            control: control.filter(|_| features & F_CTRL_VQ != 0),
            features,
            interrupt,
            filter: Filter::new(self.shared.own_mac),
            offloads: features & GUEST_OFFLOADS,
            told_link: self.shared.link(),
            fresh: true,
        };
        self.shared.set_mac(self.shared.own_mac);
        self.shared.with_guest(|place| *place = Some(guest));
    }

    fn notify(&self, _queue: u16) {
        self.shared.event.signal();
    }

    fn doorbell(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        (usize::from(queue) < QUEUE_SIZES.len()).then(|| self.shared.event.as_fd())
    }

    fn reset(&self) {
        self.shared.with_guest(|guest| *guest = None);
        self.shared.set_mac(self.shared.own_mac);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.event.signal();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed; the card stays silent from then on.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("shared", &self.shared).field("mtu", &self.mtu).finish_non_exhaustive()
    }
}
