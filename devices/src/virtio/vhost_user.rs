//! Devices that another process serves (vhost-user): a virtiofs share, vsock. Registers and configuration are here; the queues are handed
//! to that process, the back end, with the guest's memory and a descriptor each for doorbell and interrupt. No request passes through
//! here, unless the back end is gone: then every one fails.
//!
//! The guest's memory has to be a file that the back end can map ([`vm_memory::GuestMemoryRegion::file_offset`]). Linux only.

mod backend;
mod channel;
mod config;
mod message;
mod orphan;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use hvrun_arch::GuestMemory;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use self::backend::{Backend, Needs, Ring};
pub use self::channel::BackendError;
pub use self::config::{FsConfig, MAX_TAG, VhostUserConfig, VhostUserConfigError, VhostUserDevice};
use self::orphan::{Orphan, Place, VSOCK_EVENTS};
use super::device::{
    Activation, DeviceType, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, Interrupt, VirtioDevice,
};
use super::queue::{Virtqueue, VirtqueueState};
use crate::sys::{Event, PeerEvent};
use crate::util::{LogLimit, lock};

/// How long a back end may take to answer everything that it is asked in one go. It is asked on a vCPU's thread, when the driver sets the
/// device up or resets it, and it answers the latter when it has finished what it was doing.
const TIMEOUT: Duration = Duration::from_secs(10);

/// VIRTIO_VSOCK_F_SEQPACKET (virtio 1.3, 5.10.3).
const VSOCK_F_SEQPACKET: u64 = 1 << 1;
/// Entries of each queue of a vsock device, as in QEMU.
const VSOCK_QUEUE_SIZE: u16 = 128;
/// Bytes of a vsock device's configuration space: the guest's CID (virtio 1.2, 5.10.4).
const VSOCK_CONFIG: usize = 8;

/// Why a device has no back end. `device` is its name.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// The back end is not there, or not fit.
    #[error("{device}: the back end at {}", path.display())]
    Backend {
        /// Whose back end.
        device: String,
        /// Its socket.
        path: PathBuf,
        /// What is wrong with it.
        source: BackendError,
    },
    /// The host has no descriptor or thread left, or is none that this works on.
    #[error("cannot start {device}")]
    Start {
        /// Which device.
        device: String,
        /// Why not.
        source: io::Error,
    },
}

/// A device that another process serves.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use hvrun_devices::virtio::vhost_user::VhostUser;
///
/// let device = VhostUser::open(&"fs:/run/store.sock,tag=nix-store".parse()?)?;
/// let device = Arc::new(device); // hand it to `MachineBuilder::virtio`
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VhostUser {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
    config: Vec<u8>,
    watcher: Option<JoinHandle<()>>,
}

/// What the device and its watcher have in common.
struct Shared {
    name: Arc<str>,
    kind: DeviceType,
    socket: PathBuf,
    needs: Needs,
    timeout: Duration,
    /// What the driver is offered.
    features: u64,
    /// Of each queue that the back end serves.
    doorbells: Vec<Doorbell>,
    /// The state has changed.
    wake: Event,
    state: Mutex<State>,
    losses: LogLimit,
}

/// How a driver and a back end reach each other about one queue.
struct Doorbell {
    kick: PeerEvent,
    call: PeerEvent,
}

#[derive(Default)]
struct State {
    /// `None` when it has gone.
    backend: Option<Backend>,
    active: Option<Active>,
    stop: bool,
}

/// The device between activation and reset.
struct Active {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    features: u64,
    /// By index; `None` are those that the driver did not set up.
    queues: Vec<Option<VirtqueueState>>,
    /// The same queues without a back end, by index.
    orphans: Vec<Option<Orphan>>,
}

impl VhostUser {
    /// Connects to the back end that `config` names.
    ///
    /// # Errors
    /// Nobody listens there, or who does is no back end for this device.
    pub fn open(config: &VhostUserConfig) -> Result<Self, VhostUserError> {
        Self::open_with(config, TIMEOUT)
    }

    fn open_with(config: &VhostUserConfig, timeout: Duration) -> Result<Self, VhostUserError> {
        let device = || config.name();
        let failed = |source| VhostUserError::Start { device: device(), source };
        let (kind, queue_sizes, served) = match &config.device {
            VhostUserDevice::Fs(fs) => {
                // One more, for what may not wait (virtio 1.2, 5.11.2).
                let queues = usize::from(fs.request_queues) + 1;
                (DeviceType::Fs, vec![fs.queue_size; queues], queues)
            }
            // Events are not the back end's.
            VhostUserDevice::Vsock => {
                (DeviceType::Vsock, vec![VSOCK_QUEUE_SIZE; 3], usize::from(VSOCK_EVENTS))
            }
        };
        let doorbell = |_| Ok(Doorbell { kick: PeerEvent::new()?, call: PeerEvent::new()? });
        let doorbells = (0..served).map(doorbell).collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let needs =
            Needs { queues: served, config: if kind == DeviceType::Vsock { VSOCK_CONFIG } else { 0 } };
        let bad = |source| VhostUserError::Backend { device: device(), path: config.socket.clone(), source };
        let mut backend = Backend::connect(&config.socket, needs, timeout).map_err(bad)?;
        let bytes = match &config.device {
            VhostUserDevice::Fs(fs) => fs_config(fs),
            VhostUserDevice::Vsock => backend.config(VSOCK_CONFIG).map_err(bad)?,
        };
        let own = if kind == DeviceType::Vsock { VSOCK_F_SEQPACKET } else { 0 };
        let shared = Arc::new(Shared {
            name: device().into(),
            kind,
            socket: config.socket.clone(),
            needs,
            timeout,
            features: backend.features() & (own | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX),
            doorbells,
            wake: Event::new().map_err(failed)?,
            state: Mutex::new(State { backend: Some(backend), ..State::default() }),
            losses: LogLimit::new(),
        });
        let watched = shared.clone();
        let watcher = Builder::new().name("vhost-user".to_owned()).spawn(move || watched.watch());
        Ok(VhostUser { shared, queue_sizes, config: bytes, watcher: Some(watcher.map_err(failed)?) })
    }
}

/// The configuration space of a file system (virtio 1.2, 5.11.4): tag, number of request queues.
fn fs_config(fs: &FsConfig) -> Vec<u8> {
    let mut bytes = fs.tag.as_bytes().to_vec();
    bytes.resize(MAX_TAG, 0);
    bytes.extend(u32::from(fs.request_queues).to_le_bytes());
    bytes
}

impl VirtioDevice for VhostUser {
    fn device_type(&self) -> DeviceType {
        self.shared.kind
    }

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn features(&self) -> u64 {
        self.shared.features & !(F_RING_INDIRECT_DESC | F_RING_EVENT_IDX)
    }

    fn ring_features(&self) -> u64 {
        self.shared.features & (F_RING_INDIRECT_DESC | F_RING_EVENT_IDX)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config, offset, data);
    }

    fn activate(&self, activation: Activation) {
        self.shared.activate(activation);
    }

    fn notify(&self, queue: u16) {
        if let Some(doorbell) = self.shared.doorbells.get(usize::from(queue)) {
            doorbell.kick.signal();
        }
    }

    fn doorbell(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        self.shared.doorbells.get(usize::from(queue)).map(|doorbell| doorbell.kick.as_fd())
    }

    fn reset(&self) {
        self.shared.reset();
    }
}

impl Shared {
    fn activate(&self, activation: Activation) {
        let Activation { memory, queues, features, interrupt } = activation;
        let queues: Vec<_> = queues.iter().map(|queue| queue.as_ref().map(Virtqueue::state)).collect();
        let mut state = lock(&self.state);
        let state = &mut *state;
        let active = state.active.insert(Active { memory, interrupt, features, queues, orphans: Vec::new() });
        let result = self.start(&mut state.backend, active);
        match result {
            Ok(()) => {
                for (index, doorbell) in (0..).zip(&self.doorbells) {
                    active.interrupt.bind(index, doorbell.call.as_fd());
                    // What lies in the rings already is announced by nobody else.
                    doorbell.kick.signal();
                }
            }
            Err(error) => self.lost(state, &error),
        }
        self.wake.signal();
    }

    /// Has the back end serve, after another connection to it if the last one has ended.
    fn start(&self, slot: &mut Option<Backend>, active: &Active) -> Result<(), BackendError> {
        let backend = match slot {
            Some(backend) => backend,
            None => {
                let backend = Backend::connect(&self.socket, self.needs, self.timeout)?;
                let missing = self.features & !backend.features();
                if missing != 0 {
                    return Err(BackendError::FewerFeatures(missing));
                }
                log::info!("{}: connected to the back end at {} again", self.name, self.socket.display());
                slot.insert(backend)
            }
        };
        let rings: Vec<Ring<'_>> = self
            .served(&active.queues)
            .map(|(index, state, doorbell)| Ring { index, state, kick: &doorbell.kick, call: &doorbell.call })
            .collect();
        backend.start(active.features, &active.memory, &rings)
    }

    /// The queues of `queues` that the back end serves.
    fn served<'a>(
        &'a self,
        queues: &'a [Option<VirtqueueState>],
    ) -> impl Iterator<Item = (u16, VirtqueueState, &'a Doorbell)> + Clone {
        let numbered = (0..).zip(queues).zip(&self.doorbells);
        numbered.filter_map(|((index, queue), doorbell)| Some((index, (*queue)?, doorbell)))
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        let Some(active) = state.active.take() else { return };
        if let Some(backend) = &mut state.backend {
            let indices = self.served(&active.queues).map(|(index, ..)| index);
            if let Err(error) = backend.stop(indices) {
                self.lost(&mut state, &error);
            }
        }
        for doorbell in &self.doorbells {
            // What rang last is not for who comes next.
            doorbell.call.take();
            doorbell.kick.take();
        }
        self.wake.signal();
    }

    /// The back end is of no use any more: closes the connection, so that it lets go of the guest's memory, and fails what the guest asks.
    fn lost(&self, state: &mut State, why: &BackendError) {
        state.backend = None;
        if let Some(suppressed) = self.losses.allow() {
            let cause = std::error::Error::source(why).map(|cause| format!(" ({cause})")).unwrap_or_default();
            log::error!(
                "{}: the back end at {} {why}{cause}; what the guest asks of it fails until the guest is reset and a back end is there again{suppressed}",
                self.name,
                self.socket.display()
            );
        }
        let Some(active) = &mut state.active else { return };
        active.orphans = (0..)
            .zip(&active.queues)
            .map(|(index, queue)| {
                let place = Place {
                    device: self.name.clone(),
                    kind: self.kind,
                    index,
                    state: (*queue)?,
                    event_idx: active.features & F_RING_EVENT_IDX != 0,
                    interrupt: active.interrupt.clone(),
                };
                Orphan::take_over(place, &active.memory)
            })
            .collect();
        for orphan in active.orphans.iter_mut().flatten() {
            orphan.serve(&active.memory);
            orphan.reset_transport(&active.memory);
        }
        active.interrupt.needs_reset();
    }

    /// The watcher's life: carries interrupts, notices the back end's end, and serves the queues after it.
    fn watch(&self) {
        loop {
            let socket = {
                let state = lock(&self.state);
                if state.stop {
                    return;
                }
                state.backend.as_ref().map(Backend::watch)
            };
            match self.wait(socket.as_deref()) {
                Ok(happened) => self.handle(&happened),
                Err(error) => {
                    log::error!("{}: no interrupts any more: {error}", self.name);
                    return;
                }
            }
        }
    }

    /// Waits until something happens, to the back end behind `socket` if there is one.
    fn wait(&self, socket: Option<&UnixStream>) -> Result<Happened, Errno> {
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(self.doorbells.iter().map(|doorbell| PollFd::new(&doorbell.call, PollFlags::IN)));
        match socket {
            // Only its end: what it says is read by who has asked.
            Some(socket) => fds.push(PollFd::new(socket, PollFlags::empty())),
            None => {
                fds.extend(self.doorbells.iter().map(|doorbell| PollFd::new(&doorbell.kick, PollFlags::IN)));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Happened::default()),
            Err(error) => return Err(error),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let (wake, rest) = ready.split_first().map_or((false, &[][..]), |(wake, rest)| (*wake, rest));
        if wake {
            // It has been signalled, so this returns at once.
            let _ = self.wake.wait();
        }
        let (_, last) = rest.split_at_checked(self.doorbells.len()).unwrap_or_default();
        Ok(Happened { hung_up: socket.is_some() && last.first() == Some(&true) })
    }

    fn handle(&self, happened: &Happened) {
        let mut state = lock(&self.state);
        for (index, doorbell) in (0..).zip(&self.doorbells) {
            if doorbell.call.take()
                && let Some(active) = &state.active
            {
                active.interrupt.used(index);
            }
        }
        if happened.hung_up && state.backend.is_some() {
            self.lost(&mut state, &BackendError::HungUp);
        }
        if state.backend.is_none() {
            // Rings that nobody hears are forgotten, or they would ring for ever.
            let rung = self.doorbells.iter().map(|doorbell| doorbell.kick.take());
            let rung: Vec<bool> = rung.collect();
            if let Some(active) = &mut state.active {
                let served = active.orphans.iter_mut().zip(rung);
                for orphan in served.filter_map(|(orphan, rung)| orphan.as_mut().filter(|_| rung)) {
                    orphan.serve(&active.memory);
                }
            }
        }
    }
}

/// What [`Shared::wait`] has seen, besides doorbells.
#[derive(Debug, Default)]
struct Happened {
    hung_up: bool,
}

impl VhostUser {
    /// The socket of its back end.
    pub fn socket(&self) -> &Path {
        &self.shared.socket
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.wake.signal();
        if let Some(watcher) = self.watcher.take() {
            // A panic in it has been printed.
            let _ = watcher.join();
        }
    }
}

impl fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.shared.state);
        f.debug_struct("VhostUser")
            .field("name", &self.shared.name)
            .field("socket", &self.shared.socket)
            .field("backend", &state.backend)
            .field("active", &state.active.is_some())
            .finish_non_exhaustive()
    }
}
