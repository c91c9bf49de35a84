//! A back end that has said what it can do, and is told what to do: features, memory, queues. How messages travel is `channel`'s affair,
//! and what becomes of the device when a call fails the device's.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hvrun_arch::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::channel::{BackendError, Channel};
use super::message::{
    self, CONFIG_HEADER_SIZE, F_PROTOCOL_FEATURES, MAX_CONFIG, MAX_REGIONS, Region, Request, VringAddresses,
    flags, protocol,
};
use crate::sys::PeerEvent;
use crate::virtio::device::F_VERSION_1;
use crate::virtio::queue::VirtqueueState;

/// What a device asks of its back end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needs {
    /// How many queues it is to serve.
    pub(super) queues: usize,
    /// How many bytes of configuration space it has; 0 if that is the front end's.
    pub(super) config: usize,
}

/// A queue that it serves.
#[derive(Debug)]
pub(super) struct Ring<'a> {
    pub(super) index: u16,
    pub(super) state: VirtqueueState,
    pub(super) kick: &'a PeerEvent,
    pub(super) call: &'a PeerEvent,
}

/// A connection with all that was negotiated at its beginning.
#[derive(Debug)]
pub(super) struct Backend {
    channel: Channel,
    features: u64,
    protocol: u64,
}

impl Backend {
    /// Connects to the socket at `path` and makes sure that the back end there has what the device `needs`.
    pub(super) fn connect(path: &Path, needs: Needs, timeout: Duration) -> Result<Self, BackendError> {
        let channel = Channel::connect(path, timeout)?;
        let mut backend = Backend { channel, features: 0, protocol: 0 };
        backend.features = backend.number(Request::GetFeatures)?;
        if backend.features & F_VERSION_1 == 0 {
            return Err(BackendError::Lacks("VIRTIO_F_VERSION_1"));
        }
        if backend.features & F_PROTOCOL_FEATURES != 0 {
            let offered = backend.number(Request::GetProtocolFeatures)?;
            let wanted = if needs.config > 0 { protocol::CONFIG } else { 0 };
            let accepted = offered & (protocol::MQ | protocol::REPLY_ACK | wanted);
            backend.tell(Request::SetProtocolFeatures, &accepted.to_ne_bytes(), &[])?;
            backend.protocol = accepted;
        }
        if needs.config > 0 && backend.protocol & protocol::CONFIG == 0 {
            return Err(BackendError::Lacks("configuration space"));
        }
        if backend.protocol & protocol::MQ != 0 {
            let has = backend.number(Request::GetQueueNum)?;
            if usize::try_from(has).is_ok_and(|has| has < needs.queues) {
                return Err(BackendError::Queues { has, needed: needs.queues });
            }
        }
        backend.tell(Request::SetOwner, &[], &[])?;
        Ok(backend)
    }

    /// The features of the device that it offers.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// The socket, to wait for its end on.
    pub(super) fn watch(&self) -> Arc<UnixStream> {
        self.channel.watch()
    }

    /// The first `len` bytes of the configuration space.
    pub(super) fn config(&mut self, len: usize) -> Result<Vec<u8>, BackendError> {
        let request = Request::GetConfig;
        let mut payload = message::config(len.min(MAX_CONFIG));
        self.channel.send(request, 0, &payload, &[])?;
        self.channel.receive(request, &mut payload)?;
        Ok(payload.split_off(CONFIG_HEADER_SIZE))
    }

    /// Has it serve `rings` from now on, for a driver that has accepted `features`.
    pub(super) fn start(
        &mut self,
        features: u64,
        memory: &GuestMemory,
        rings: &[Ring<'_>],
    ) -> Result<(), BackendError> {
        self.channel.begin();
        let features = features | (self.features & F_PROTOCOL_FEATURES);
        self.tell(Request::SetFeatures, &features.to_ne_bytes(), &[])?;
        self.set_memory(memory)?;
        for ring in rings {
            self.set_ring(memory, ring)?;
        }
        for ring in rings {
            self.enable(ring.index, true)?;
        }
        Ok(())
    }

    /// Has it serve `rings` no longer: when this returns, it touches neither them nor the guest's memory behind them.
    pub(super) fn stop(&mut self, rings: impl Iterator<Item = u16> + Clone) -> Result<(), BackendError> {
        self.channel.begin();
        for index in rings.clone() {
            self.enable(index, false)?;
        }
        for index in rings {
            // It answers when it has let go of the queue. Where it stopped makes no difference: the driver starts anew.
            let mut state = message::vring_state(index, 0);
            self.channel.send(Request::GetVringBase, 0, &state, &[])?;
            self.channel.receive(Request::GetVringBase, &mut state)?;
        }
        Ok(())
    }

    fn set_memory(&mut self, memory: &GuestMemory) -> Result<(), BackendError> {
        let mut regions = Vec::new();
        let mut files = Vec::new();
        for region in memory.iter() {
            let file = region.file_offset().ok_or(BackendError::Memory("it is private to this process"))?;
            regions.push(Region {
                guest: region.start_addr().0,
                size: region.len(),
                user: region.as_ptr() as u64,
                offset: file.start(),
            });
            files.push(file.file().as_fd());
        }
        if regions.len() > MAX_REGIONS {
            return Err(BackendError::Memory("it is in too many parts"));
        }
        self.tell(Request::SetMemTable, &message::mem_table(&regions), &files)
    }

    fn set_ring(&mut self, memory: &GuestMemory, ring: &Ring<'_>) -> Result<(), BackendError> {
        let Ring { index, state, .. } = *ring;
        let user = |addr| {
            let found = memory.get_host_address(GuestAddress(addr)).map(|at| at as u64);
            found.map_err(|_| BackendError::Memory("a queue lies outside of it"))
        };
        let at =
            VringAddresses { desc: user(state.desc)?, used: user(state.used)?, avail: user(state.avail)? };
        let number = message::vring_fd(index).ok_or(BackendError::Lacks("queue beyond 256"))?;
        self.tell(Request::SetVringNum, &message::vring_state(index, state.size.into()), &[])?;
        self.tell(Request::SetVringBase, &message::vring_state(index, 0), &[])?;
        self.tell(Request::SetVringAddr, &message::vring_addr(index, at), &[])?;
        self.tell(Request::SetVringCall, &number, &[ring.call.as_fd()])?;
        self.tell(Request::SetVringKick, &number, &[ring.kick.as_fd()])
    }

    /// Without protocol features, queues are enabled by their kick descriptors.
    fn enable(&mut self, index: u16, on: bool) -> Result<(), BackendError> {
        if self.features & F_PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.tell(Request::SetVringEnable, &message::vring_state(index, on.into()), &[])
    }

    /// Asks for a number.
    fn number(&mut self, request: Request) -> Result<u64, BackendError> {
        self.channel.send(request, 0, &[], &[])?;
        let mut reply = [0; 8];
        self.channel.receive(request, &mut reply)?;
        Ok(u64::from_ne_bytes(reply))
    }

    /// Sends a message that is a command, and waits until the back end has obeyed if it can say so.
    fn tell(&mut self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), BackendError> {
        if self.protocol & protocol::REPLY_ACK == 0 {
            return self.channel.send(request, 0, payload, fds);
        }
        self.channel.send(request, flags::NEED_REPLY, payload, fds)?;
        let mut reply = [0; 8];
        self.channel.receive(request, &mut reply)?;
        match u64::from_ne_bytes(reply) {
            0 => Ok(()),
            code => Err(BackendError::Refused { request: request.to_string(), code }),
        }
    }
}
