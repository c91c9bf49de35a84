//! A back end for tests, which answers as it should until a test has it do something else.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::super::message::{F_PROTOCOL_FEATURES, HEADER_SIZE, Header, Request, flags, protocol};
use crate::virtio::device::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_VERSION_1};

/// A message that has come.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    pub(super) fn is(&self, request: Request) -> bool {
        self.header.request == request as u32
    }

    /// The number at the beginning of the payload.
    pub(super) fn number(&self) -> u64 {
        self.word(0)
    }

    /// Eight bytes of the payload.
    pub(super) fn word(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.payload[at..at + 8].try_into().unwrap())
    }

    /// Four bytes of the payload.
    pub(super) fn half(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// What a back end says that it can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Abilities {
    pub(super) features: u64,
    pub(super) protocol: u64,
    pub(super) queues: u64,
}

impl Default for Abilities {
    fn default() -> Self {
        Abilities {
            features: F_VERSION_1 | F_RING_EVENT_IDX | F_RING_INDIRECT_DESC | F_PROTOCOL_FEATURES,
            protocol: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG,
            queues: 8,
        }
    }
}

/// A connection to a front end.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) stream: UnixStream,
    pub(super) abilities: Abilities,
}

impl Peer {
    /// The next message; `None` when the front end has hung up.
    pub(super) fn receive(&mut self) -> Option<Message> {
        let mut header = [0; HEADER_SIZE];
        let mut fds = Vec::new();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut header)];
        let got = recvmsg(&self.stream, &mut parts, &mut control, RecvFlags::WAITALL).ok()?;
        if got.bytes < HEADER_SIZE {
            return None;
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let header = Header::decode(header);
        let mut payload = vec![0; header.size as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Message { header, payload, fds })
    }

    /// Answers `message` with `payload`.
    pub(super) fn reply(&mut self, message: &Message, payload: &[u8]) {
        let size = payload.len() as u32;
        let header = Header { request: message.header.request, flags: flags::VERSION | flags::REPLY, size };
        self.send(header, payload);
    }

    /// Sends what it likes.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        match self.stream.write_all(&[&header.encode()[..], payload].concat()) {
            // The front end may have given it up already.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            result => result.unwrap(),
        }
    }

    /// Answers `message` as it should.
    pub(super) fn answer(&mut self, message: &Message) {
        let Abilities { features, protocol, queues } = self.abilities;
        let number = |request| match request {
            Request::GetFeatures => features,
            Request::GetProtocolFeatures => protocol,
            _ => queues,
        };
        let asked = [Request::GetFeatures, Request::GetProtocolFeatures, Request::GetQueueNum];
        if let Some(request) = asked.into_iter().find(|request| message.is(*request)) {
            self.reply(message, &number(request).to_ne_bytes());
        } else if message.is(Request::GetVringBase) {
            self.reply(message, &message.payload);
        } else if message.is(Request::GetConfig) {
            let mut payload = message.payload.clone();
            payload[12..].copy_from_slice(&42u64.to_le_bytes());
            self.reply(message, &payload);
        } else if message.header.flags & flags::NEED_REPLY != 0 {
            self.reply(message, &0u64.to_ne_bytes());
        }
    }

    /// Answers everything up to the next `request`, which it leaves to the caller. Returns what was answered, and that message.
    pub(super) fn serve_until(&mut self, request: Request) -> (Vec<Message>, Message) {
        let mut seen = Vec::new();
        loop {
            let message = self.receive().unwrap_or_else(|| panic!("{request} never came: {seen:?}"));
            if message.is(request) {
                return (seen, message);
            }
            self.answer(&message);
            seen.push(message);
        }
    }

    /// Answers everything, and tells of it.
    pub(super) fn serve(&mut self, mut tell: impl FnMut(Message)) {
        while let Some(message) = self.receive() {
            self.answer(&message);
            tell(message);
        }
    }
}

/// A socket at which back ends listen, one after the other.
#[derive(Debug)]
pub(super) struct Place {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Place {
    pub(super) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        Place { dir, listener }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Has `script` talk with the next front end.
    pub(super) fn next<T: Send + 'static>(
        &self,
        abilities: Abilities,
        script: impl FnOnce(Peer) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let listener = self.listener.try_clone().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            script(Peer { stream, abilities })
        })
    }

    /// Has a good back end talk with the next front end, and tells of the messages that come.
    pub(super) fn next_good(&self, abilities: Abilities) -> Receiver<Message> {
        let (sender, receiver) = channel();
        self.next(abilities, move |mut peer| {
            peer.serve(|message| {
                let _ = sender.send(message);
            });
        });
        receiver
    }
}
