//! The peer of `--net socket:stream`: any bytes where frames are expected, each behind its length. Frames that come out are those that a
//! plain reading of the bytes finds; a length that no frame has ends the connection.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use hvrun_devices::backend::net::socket::Stream;
use hvrun_devices::backend::net::{FrameInfo, NetBackend, TxFrame};
use vm_memory::VolatileSlice;

use crate::ring::Ring;

/// Room for so many frames at a time.
const ROOM: usize = 4;
/// The shortest and the longest frame: an Ethernet header alone, and IP's longest packet behind one with a tag.
const SHORTEST: usize = 14;
const LONGEST: usize = 65_535 + 18;

/// The frames that `bytes` are, up to the first length that none has, and whether there is such a one.
fn frames(mut bytes: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut frames = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > LONGEST {
            return (frames, true);
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else { break };
        frames.push(frame);
        bytes = rest;
    }
    (frames, false)
}

/// The target `net-stream`. The first byte says in how large pieces the rest comes.
pub fn run(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let (ours, mut peer) = UnixStream::pair().expect("a descriptor is left");
    let mut stream = Stream::adopt(OwnedFd::from(ours), "peer").expect("it is a socket");
    let mut ring = Ring::new(0);
    let mut gone = false;
    let mut step = |stream: &mut Stream, ring: &mut Ring| {
        ring.grow(ROOM);
        let now = Instant::now();
        gone |= stream.service(now).is_err() || stream.receive(ring).is_err();
        gone
    };
    for part in bytes.chunks(usize::from(*piece) + 1) {
        // Less than any socket holds.
        let _ = peer.write_all(part);
        step(&mut stream, &mut ring);
        let mut answer = [7; 60];
        let slices = [VolatileSlice::from(&mut answer[..])];
        stream.transmit(&TxFrame { slices: &slices, len: 60, info: FrameInfo::default() });
        stream.flush();
    }
    drop(peer);
    while !step(&mut stream, &mut ring) {}
    let (expected, _) = frames(bytes);
    let expected = expected.into_iter().filter(|frame| frame.len() >= SHORTEST);
    let got = ring.frames.iter().map(|(frame, _)| frame.as_slice());
    assert!(got.clone().count() <= expected.clone().count(), "there are more frames than were sent");
    for (got, expected) in got.zip(expected) {
        assert_eq!(got, expected, "a frame is another than was sent");
    }
}

/// Frames one by one and together, the shortest and the longest that an input holds, and lengths that none has.
pub fn corpus() -> Vec<Vec<u8>> {
    let frame = |len: usize| {
        let mut bytes = u32::try_from(len).unwrap_or_default().to_be_bytes().to_vec();
        bytes.extend((0..len).map(|at| at as u8));
        bytes
    };
    let lies = |length: u32| [&[255][..], &frame(60), &length.to_be_bytes(), &frame(60)].concat();
    vec![
        [&[255][..], &frame(60), &frame(60), &frame(1514)].concat(),
        [&[2][..], &frame(14), &frame(64), &frame(100)].concat(),
        [&[99][..], &frame(3900)].concat(),
        [&[63][..], &frame(0), &frame(13), &frame(60)].concat(),
        lies(u32::MAX),
        lies(LONGEST as u32),
        lies(LONGEST as u32 + 1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_reading_finds_frames_and_lies() {
        let corpus = corpus();
        assert_eq!(frames(&corpus[0][1..]).0.len(), 3);
        assert!(frames(&corpus[4][1..]).1);
    }
}
