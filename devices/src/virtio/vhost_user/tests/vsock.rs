//! A vsock device between a driver that others wrote, `virtio-drivers`, and a small back end that accepts connections and sends back what
//! it gets. It shows that number, memory, queues, doorbells and interrupts of one reach the other; what Linux and vhost-device-vsock make of
//! them it does not show.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use virtio_drivers::device::socket::{
    VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent, VsockEventType,
};
use vm_memory::{FileOffset, GuestAddress};

use super::running::shared_memory;
use super::*;
use crate::virtio::chain::Chain;
use crate::virtio::testing::calls::Calls;
use crate::virtio::testing::hal::GuestHal;
use crate::virtio::testing::{Driver, wait_until};

/// Bytes of `struct virtio_vsock_hdr` (virtio 1.2, 5.10.6).
const HEADER: usize = 44;
/// Where in it the length is, and the operation, and the sender's room.
const LEN: usize = 24;
const OP: usize = 30;
const BUF_ALLOC: usize = 36;
/// VIRTIO_VSOCK_OP_REQUEST, _RESPONSE and _RW.
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const RW: u8 = 5;

/// What a back end knows about a queue.
#[derive(Debug, Default)]
struct Parts {
    size: u16,
    addresses: [u64; 3],
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
}

/// Signals the front end.
#[derive(Debug)]
struct Call(File);

impl Interrupt for Call {
    fn used(&self, _index: u16) {
        (&self.0).write_all(&1u64.to_ne_bytes()).unwrap();
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {
        panic!("the driver broke its ring");
    }
}

/// The back end.
struct Echo {
    memory: GuestMemory,
    rx: Virtqueue,
    tx: Virtqueue,
    kick: File,
}

impl Echo {
    /// Lets itself be told of memory and queues.
    fn set_up(peer: &mut Peer) -> Echo {
        let mut parts = [Parts::default(), Parts::default()];
        let (mut memory, mut user, mut enabled) = (None, 0, 0);
        while enabled < 2 {
            let mut message = peer.receive().unwrap();
            peer.answer(&message);
            let index = if message.payload.is_empty() { 0 } else { message.payload[0] as usize };
            if message.is(Request::SetMemTable) {
                user = message.word(24).wrapping_sub(message.word(8));
                let file = FileOffset::new(File::from(message.fds.remove(0)), message.word(32));
                let range = (GuestAddress(message.word(8)), message.word(16) as usize, Some(file));
                memory = Some(GuestMemory::from_ranges_with_files([range]).unwrap());
            } else if message.is(Request::SetVringNum) {
                parts[index].size = message.half(4) as u16;
            } else if message.is(Request::SetVringAddr) {
                parts[index].addresses = [8, 16, 24].map(|at| message.word(at).wrapping_sub(user));
            } else if message.is(Request::SetVringKick) {
                parts[index].kick = message.fds.pop();
            } else if message.is(Request::SetVringCall) {
                parts[index].call = message.fds.pop();
            } else if message.is(Request::SetVringEnable) {
                enabled += 1;
            }
        }
        let memory = memory.unwrap();
        let kick = File::from(parts[1].kick.take().unwrap());
        let [rx, tx] = [0, 1].map(|index| {
            let parts = &mut parts[usize::from(index)];
            let [desc, used, avail] = parts.addresses;
            let state = VirtqueueState { size: parts.size, desc, avail, used, next_avail: 0, next_used: 0 };
            let call = Arc::new(Call(File::from(parts.call.take().unwrap())));
            Virtqueue::new("echo".into(), index, parts.size, state, false, &memory, call).unwrap()
        });
        Echo { memory, rx, tx, kick }
    }

    /// Serves until the front end hangs up.
    fn serve(mut self, peer: &mut Peer) {
        loop {
            self.answer();
            let mut fds = [PollFd::new(&self.kick, PollFlags::IN), PollFd::new(&peer.stream, PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            let [kicked, called] = [0, 1].map(|at: usize| !fds[at].revents().is_empty());
            if kicked {
                let _ = (&self.kick).read(&mut [0; 8]);
            }
            if called {
                // The reset is no reason to go on.
                return peer.serve(drop);
            }
        }
    }

    fn answer(&mut self) {
        let Echo { memory, rx, tx, .. } = self;
        let (mut sent, mut room) = (Chain::new(), Chain::new());
        while tx.pop(memory, &mut sent) {
            let mut packet = vec![0; sent.readable_len()];
            sent.reader().read_exact(&mut packet).unwrap();
            tx.push(memory, sent.head(), 0);
            let header = packet[..HEADER].to_vec();
            // Back to where it came from.
            for (at, from, len) in [(0, 8, 8), (8, 0, 8), (16, 20, 4), (20, 16, 4)] {
                packet[at..at + len].copy_from_slice(&header[from..from + len]);
            }
            packet[OP] = match header[OP] {
                REQUEST => RESPONSE,
                RW => RW,
                _ => continue,
            };
            packet[BUF_ALLOC..BUF_ALLOC + 4].copy_from_slice(&0x1_0000u32.to_le_bytes());
            assert_eq!(packet.len() - HEADER, usize::from(header[LEN]));
            assert!(rx.pop(memory, &mut room), "the driver left no room");
            let mut writer = room.writer();
            writer.write_all(&packet).unwrap();
            rx.push(memory, room.head(), writer.written());
        }
        tx.signal(memory);
        rx.signal(memory);
    }
}

#[test]
fn an_independent_driver_connects_to_the_back_end_and_gets_its_bytes_back() {
    let place = Place::new();
    // The driver knows indirect descriptors and EVENT_IDX, but the back end is a simple one.
    let features = Abilities::default().features & !(F_RING_EVENT_IDX | F_RING_INDIRECT_DESC);
    let peer = place.next(Abilities { features, ..Abilities::default() }, |mut peer| {
        Echo::set_up(&mut peer).serve(&mut peer);
    });
    let device = Arc::new(VhostUser::open_with(&vsock(&place), LONG).unwrap());
    let driver = Driver::with_memory(device, shared_memory());
    GuestHal::use_memory(&driver.memory);
    let socket = VirtIOSocket::<GuestHal, Calls>::new(Calls(driver)).unwrap();
    let mut sockets = VsockConnectionManager::new(socket);
    assert_eq!(sockets.guest_cid(), 42);

    let host = VsockAddr { cid: 2, port: 1234 };
    let next = |sockets: &mut VsockConnectionManager<GuestHal, Calls>| -> VsockEvent {
        let mut event = None;
        wait_until(|| {
            event = sockets.poll().unwrap();
            event.is_some()
        });
        event.unwrap()
    };
    sockets.connect(host, 4321).unwrap();
    let event = next(&mut sockets);
    assert_eq!((event.source, event.event_type), (host, VsockEventType::Connected));
    for _ in 0..50 {
        sockets.send(host, 4321, b"there and back").unwrap();
        assert_eq!(next(&mut sockets).event_type, VsockEventType::Received { length: 14 });
        let mut bytes = [0; 20];
        assert_eq!(sockets.recv(host, 4321, &mut bytes).unwrap(), 14);
        assert_eq!(&bytes[..14], b"there and back");
    }
    drop(sockets);
    peer.join().unwrap();
}
