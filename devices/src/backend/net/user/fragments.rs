//! Puts the guest's fragments together again. What overlaps is thrown away whole, as RFC 5722 wants it for IPv6: no honest sender
//! makes such, and slirp has had holes there.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::packet::{Ip, ip_packet};

/// Datagrams in the making at a time: 1 MiB at most. A new one takes the place of the oldest.
const MAX_DATAGRAMS: usize = 16;
/// How long one may take (RFC 8200, 4.5 says 60 seconds; RFC 791, 3.2 suggests 15).
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest payload.
const MAX_LEN: usize = 65535;
/// Pieces of one datagram: 64 KiB of 8 bytes each would only be for making work.
const MAX_PIECES: usize = 256;

#[derive(Debug)]
struct Datagram {
    key: (IpAddr, IpAddr, u8, u32),
    since: Instant,
    /// Where pieces begin and end, sorted.
    pieces: Vec<(usize, usize)>,
    total: Option<usize>,
    /// Something was wrong: the rest is thrown away, too.
    broken: bool,
    bytes: Vec<u8>,
}

/// Datagrams in the making.
#[derive(Debug, Default)]
pub(super) struct Fragments(Vec<Datagram>);

impl Fragments {
    /// Takes a fragment. If it was the last that was missing, gives the packet as if it had never been cut.
    pub(super) fn add(&mut self, now: Instant, ip: &Ip, packet: &[u8]) -> Option<Vec<u8>> {
        let fragment = ip.fragment?;
        let key = (ip.source, ip.destination, ip.protocol, fragment.id);
        self.0.retain(|datagram| now.saturating_duration_since(datagram.since) < TIMEOUT);
        let at = match self.0.iter().position(|datagram| datagram.key == key) {
            Some(at) => at,
            None => {
                if self.0.len() >= MAX_DATAGRAMS {
                    self.0.remove(0);
                }
                self.0.push(Datagram {
                    key,
                    since: now,
                    pieces: Vec::new(),
                    total: None,
                    broken: false,
                    bytes: Vec::new(),
                });
                self.0.len() - 1
            }
        };
        let datagram = self.0.get_mut(at)?;
        if datagram.broken {
            return None;
        }
        if datagram.place(fragment.offset, fragment.more, ip.payload(packet)).is_none() {
            datagram.broken = true;
            datagram.bytes = Vec::new();
            return None;
        }
        if !datagram.is_complete() {
            return None;
        }
        let datagram = self.0.remove(at);
        ip_packet(ip.source, ip.destination, ip.protocol, &datagram.bytes, None)
    }
}

impl Datagram {
    /// Puts a piece where it belongs; `None` if it cannot be there.
    fn place(&mut self, offset: usize, more: bool, piece: &[u8]) -> Option<()> {
        let end = offset.checked_add(piece.len()).filter(|end| *end <= MAX_LEN)?;
        // All but the last are a multiple of 8 long (RFC 791, 3.2).
        if piece.is_empty() || more && !piece.len().is_multiple_of(8) || self.pieces.len() >= MAX_PIECES {
            return None;
        }
        if !more && self.total.is_some_and(|total| total != end) {
            return None;
        }
        // The very same again is a repetition and no overlap.
        if self.pieces.contains(&(offset, end)) {
            return Some(());
        }
        if self.pieces.iter().any(|(from, to)| offset < *to && *from < end) {
            return None;
        }
        if !more {
            self.total = Some(end);
        }
        if self.total.is_some_and(|total| end > total || self.pieces.iter().any(|(_, to)| *to > total)) {
            return None;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(offset..end)?.copy_from_slice(piece);
        self.pieces.push((offset, end));
        Some(())
    }

    fn is_complete(&self) -> bool {
        // No two overlap, so what they hold together tells.
        let held: usize = self.pieces.iter().map(|(from, to)| to - from).sum();
        self.total == Some(held)
    }
}
