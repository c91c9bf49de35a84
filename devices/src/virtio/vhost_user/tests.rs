//! The front end against back ends that obey, lie, fall silent and die, and a driver behind virtio-mmio.

mod peer;
mod running;
mod vsock;

use std::error::Error;
use std::time::Duration;

use self::peer::{Abilities, Peer, Place};
use super::message::{Header, Request, flags, protocol};
use super::*;

/// For back ends that are to answer: never reached.
const LONG: Duration = Duration::from_secs(60);
/// For those that will not.
const SHORT: Duration = Duration::from_millis(50);

fn fs(place: &Place) -> VhostUserConfig {
    VhostUserConfig { socket: place.path(), device: VhostUserDevice::Fs(FsConfig::new("store")) }
}

fn vsock(place: &Place) -> VhostUserConfig {
    VhostUserConfig { socket: place.path(), device: VhostUserDevice::Vsock }
}

/// An error with all its causes.
fn all_of(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", all_of(cause)),
        None => error.to_string(),
    }
}

/// Why a device does not come to be whose back end follows `script`.
fn refusal_of(
    config: fn(&Place) -> VhostUserConfig,
    abilities: Abilities,
    script: impl FnOnce(Peer) + Send + 'static,
) -> String {
    let place = Place::new();
    let peer = place.next(abilities, script);
    let error = VhostUser::open_with(&config(&place), LONG).unwrap_err();
    peer.join().unwrap();
    all_of(&error)
}

fn refusal(script: impl FnOnce(Peer) + Send + 'static) -> String {
    refusal_of(fs, Abilities::default(), script)
}

#[test]
fn a_socket_that_nobody_listens_on_is_refused_with_its_path() {
    let place = Place::new();
    let config = VhostUserConfig { socket: place.path().with_extension("other"), ..fs(&place) };
    let error = all_of(&VhostUser::open(&config).unwrap_err());
    assert!(
        error.starts_with("virtiofs store") && error.contains("s.other") && error.contains("start it"),
        "{error}"
    );
}

#[test]
fn a_path_that_no_socket_can_have_is_refused() {
    let config = VhostUserConfig { socket: "x".repeat(200).into(), device: VhostUserDevice::Vsock };
    let error = all_of(&VhostUser::open(&config).unwrap_err());
    assert!(error.contains("File name too long"), "{error}");
}

#[test]
fn a_back_end_that_hangs_up_is_refused_with_what_it_was_asked() {
    for request in
        [Request::GetFeatures, Request::GetProtocolFeatures, Request::GetQueueNum, Request::SetOwner]
    {
        let error = refusal(move |mut peer| drop(peer.serve_until(request)));
        assert!(error.contains(&format!("hung up at {request}")), "{error}");
    }
}

#[test]
fn a_back_end_that_falls_silent_is_refused_with_what_it_was_asked() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| {
        peer.receive();
        peer.receive()
    });
    let error = all_of(&VhostUser::open_with(&fs(&place), SHORT).unwrap_err());
    assert!(error.contains("has not answered GET_FEATURES"), "{error}");
    assert!(peer.join().unwrap().is_none());
}

#[test]
fn a_back_end_that_takes_its_time_for_each_answer_has_one_deadline_for_all() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| {
        while let Some(message) = peer.receive() {
            // Slow, and yet in time.
            std::thread::sleep(SHORT * 2 / 3);
            peer.answer(&message);
        }
    });
    let error = all_of(&VhostUser::open_with(&fs(&place), SHORT).unwrap_err());
    assert!(error.contains("has not answered"), "{error}");
    peer.join().unwrap();
}

#[test]
fn a_back_end_that_only_listens_is_refused() {
    let error = all_of(&VhostUser::open_with(&fs(&Place::new()), SHORT).unwrap_err());
    assert!(error.contains("has not answered GET_FEATURES"), "{error}");
}

#[test]
fn an_answer_that_stops_in_the_middle_is_no_answer() {
    for sent in [1, 11, 12, 19] {
        let error = refusal(move |mut peer| {
            peer.receive();
            let header = Header { request: 1, flags: flags::VERSION | flags::REPLY, size: 8 };
            let bytes = [&header.encode()[..], &[0xff; 8]].concat();
            std::io::Write::write_all(&mut peer.stream, &bytes[..sent]).unwrap();
        });
        assert!(error.contains("hung up at GET_FEATURES"), "{sent}: {error}");
    }
}

#[test]
fn an_answer_to_something_else_is_refused_with_its_number() {
    let error = refusal(|mut peer| {
        peer.receive();
        peer.send(Header { request: 15, flags: flags::VERSION | flags::REPLY, size: 8 }, &[0xff; 8]);
    });
    assert!(error.contains("answers GET_FEATURES with message 15"), "{error}");
}

#[test]
fn a_message_that_is_no_reply_or_of_another_version_is_refused() {
    for flags in [flags::VERSION, flags::REPLY, flags::REPLY | 2] {
        let error = refusal(move |mut peer| {
            peer.receive();
            peer.send(Header { request: 1, flags, size: 8 }, &[0xff; 8]);
        });
        assert!(error.contains(&format!("message 1 (flags {flags:#x})")), "{error}");
    }
}

#[test]
fn an_answer_of_another_size_is_refused_without_being_read() {
    for size in [0, 7, 9, u32::MAX] {
        let error = refusal(move |mut peer| {
            peer.receive();
            peer.send(Header { request: 1, flags: flags::VERSION | flags::REPLY, size }, &[0; 8]);
        });
        assert!(error.contains(&format!("with {size} bytes instead of 8")), "{error}");
    }
}

#[test]
fn descriptors_with_an_answer_are_not_kept() {
    let place = Place::new();
    let peer = place.next(Abilities::default(), |mut peer| {
        let message = peer.receive().unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let header = Header { request: 1, flags: flags::VERSION | flags::REPLY, size: 8 };
        let bytes = [&header.encode()[..], &peer.abilities.features.to_ne_bytes()].concat();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [theirs.as_fd()];
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        let parts = [std::io::IoSlice::new(&bytes)];
        rustix::net::sendmsg(&peer.stream, &parts, &mut control, rustix::net::SendFlags::empty()).unwrap();
        assert!(message.is(Request::GetFeatures));
        drop(theirs);
        peer.serve_until(Request::SetOwner);
        // Its other end is nowhere any more.
        std::io::Read::read(&mut &ours, &mut [0; 1]).unwrap()
    });
    VhostUser::open_with(&fs(&place), LONG).unwrap_err();
    assert_eq!(peer.join().unwrap(), 0);
}

#[test]
fn a_legacy_back_end_is_refused() {
    let abilities = Abilities { features: 1 << 30, ..Abilities::default() };
    let error = refusal_of(fs, abilities, |mut peer| peer.serve(drop));
    assert!(error.contains("no VIRTIO_F_VERSION_1"), "{error}");
}

#[test]
fn a_back_end_with_too_few_queues_is_refused_with_both_numbers() {
    let abilities = Abilities { queues: 1, ..Abilities::default() };
    let error = refusal_of(fs, abilities, |mut peer| peer.serve(drop));
    assert!(error.contains("has 1 queues, but the device has 2"), "{error}");
}

#[test]
fn a_command_that_the_back_end_refuses_is_named_with_its_error() {
    let error = refusal(|mut peer| {
        let (_, message) = peer.serve_until(Request::SetOwner);
        peer.reply(&message, &22u64.to_ne_bytes());
        peer.serve(drop);
    });
    assert!(error.contains("refuses SET_OWNER (error 22)"), "{error}");
}

#[test]
fn a_vsock_back_end_without_configuration_space_is_refused() {
    let abilities = Abilities { protocol: protocol::REPLY_ACK, ..Abilities::default() };
    let error = refusal_of(vsock, abilities, |mut peer| peer.serve(drop));
    assert!(error.starts_with("vsock") && error.contains("no configuration space"), "{error}");
}

#[test]
fn a_configuration_space_of_another_size_is_refused() {
    let error = refusal_of(vsock, Abilities::default(), |mut peer| {
        let (_, message) = peer.serve_until(Request::GetConfig);
        peer.reply(&message, &[0; 4096]);
        peer.serve(drop);
    });
    assert!(error.contains("answers GET_CONFIG with 4096 bytes instead of 20"), "{error}");
}

#[test]
fn the_handshake_asks_for_what_is_needed_in_order() {
    let place = Place::new();
    let messages = place.next_good(Abilities::default());
    let device = VhostUser::open_with(&vsock(&place), LONG).unwrap();
    let mut cid = [0; 8];
    device.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), 42);
    drop(device);
    let names: Vec<u32> = messages.iter().map(|message| message.header.request).collect();
    // Features, protocol features, the same set, number of queues, owner, configuration.
    assert_eq!(names, [1, 15, 16, 17, 3, 24]);
}

#[test]
fn a_back_end_without_protocol_features_is_told_what_all_understand() {
    let place = Place::new();
    let features = Abilities::default().features & !(1 << 30);
    let messages = place.next_good(Abilities { features, ..Abilities::default() });
    let device = VhostUser::open_with(&fs(&place), LONG).unwrap();
    drop(device);
    let seen: Vec<(u32, u32)> = messages.iter().map(|at| (at.header.request, at.header.flags)).collect();
    assert_eq!(seen, [(1, flags::VERSION), (3, flags::VERSION)]);
}

#[test]
fn a_file_system_has_its_tag_and_queues_for_the_guest_to_read() {
    let place = Place::new();
    let _messages = place.next_good(Abilities::default());
    let queues = FsConfig { request_queues: 3, queue_size: 256, ..FsConfig::new("store") };
    let config = VhostUserConfig { device: VhostUserDevice::Fs(queues), ..fs(&place) };
    let device = VhostUser::open_with(&config, LONG).unwrap();
    let mut bytes = [0xff; 48];
    device.read_config(0, &mut bytes[..44]);
    assert_eq!((&bytes[..6], &bytes[36..40]), (&b"store\0"[..], &[3, 0, 0, 0][..]));
    assert_eq!(device.queue_sizes(), [256; 4]);
    assert_eq!(device.device_type().id(), 26);
}

#[test]
fn the_driver_is_offered_only_what_device_and_back_end_both_have() {
    let place = Place::new();
    // Also a feature of the file system that needs a queue more, the log of a migration, packed rings.
    let features = F_VERSION | F_RING_EVENT_IDX | 1 | 1 << 26 | 1 << 34;
    let _messages = place.next_good(Abilities { features, ..Abilities::default() });
    let device = VhostUser::open_with(&fs(&place), LONG).unwrap();
    assert_eq!((device.features(), device.ring_features()), (0, F_RING_EVENT_IDX));
}

/// VIRTIO_F_VERSION_1.
const F_VERSION: u64 = crate::virtio::device::F_VERSION_1;
