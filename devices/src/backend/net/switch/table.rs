//! Which station is behind which port, learnt from the frames it sends. Bounded: what has no room is not learnt, and frames to it go
//! everywhere.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a silent station is remembered (IEEE 802.1D-2004, table 7-5).
const AGEING: Duration = Duration::from_secs(300);

/// Stations at all ports together.
const MAX_STATIONS: usize = 16 * 1024;

/// Stations at one port, so that one guest cannot take all the room.
const MAX_PER_PORT: usize = 1024;

/// How often the old ones are looked for while there is no room.
const CLEANING: Duration = Duration::from_secs(1);

type Mac = [u8; 6];

#[derive(Debug, Default)]
pub(super) struct Table {
    stations: HashMap<Mac, Station>,
    per_port: HashMap<u64, usize>,
    cleaned: Option<Instant>,
}

#[derive(Debug)]
struct Station {
    port: u64,
    seen: Instant,
}

impl Table {
    /// `mac` has sent a frame from `port`.
    pub(super) fn learn(&mut self, mac: Mac, port: u64, now: Instant) {
        if is_group(mac) || mac == [0; 6] {
            return;
        }
        if let Some(station) = self.stations.get_mut(&mac).filter(|station| station.port == port) {
            station.seen = now;
            return;
        }
        if !self.has_room(port) {
            self.clean(now);
        }
        if self.has_room(port) {
            self.remove(mac);
            self.stations.insert(mac, Station { port, seen: now });
            *self.per_port.entry(port).or_default() += 1;
        }
    }

    /// The port that `target` is behind, if it is known and no group.
    pub(super) fn find(&self, target: Mac, now: Instant) -> Option<u64> {
        let station = self.stations.get(&target)?;
        (now.saturating_duration_since(station.seen) < AGEING).then_some(station.port)
    }

    /// `port` is no more.
    pub(super) fn forget(&mut self, port: u64) {
        self.stations.retain(|_, station| station.port != port);
        self.per_port.remove(&port);
    }

    fn has_room(&self, port: u64) -> bool {
        self.stations.len() < MAX_STATIONS
            && self.per_port.get(&port).is_none_or(|count| *count < MAX_PER_PORT)
    }

    fn clean(&mut self, now: Instant) {
        if self.cleaned.is_some_and(|cleaned| now.saturating_duration_since(cleaned) < CLEANING) {
            return;
        }
        self.cleaned = Some(now);
        self.stations.retain(|_, station| now.saturating_duration_since(station.seen) < AGEING);
        self.per_port.clear();
        for station in self.stations.values() {
            *self.per_port.entry(station.port).or_default() += 1;
        }
    }

    fn remove(&mut self, mac: Mac) {
        if let Some(station) = self.stations.remove(&mac)
            && let Some(count) = self.per_port.get_mut(&station.port)
        {
            *count = count.saturating_sub(1);
        }
    }
}

/// The I/G bit (IEEE 802-2014, 8.2).
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [6, 0, 0, 0, 0, 1];

    fn numbered(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn a_station_that_moves_is_found_at_its_new_port() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.learn(A, 1, now);
        table.learn(A, 2, now);
        assert_eq!(table.find(A, now), Some(2));
        assert_eq!(table.per_port.get(&1), Some(&0));
    }

    #[test]
    fn a_station_that_is_silent_for_long_is_forgotten() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.learn(A, 1, now);
        assert_eq!(table.find(A, now + AGEING), None);
    }

    #[test]
    fn groups_and_zero_are_not_learnt() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.learn([0xff; 6], 1, now);
        table.learn([0; 6], 1, now);
        assert_eq!((table.find([0xff; 6], now), table.find([0; 6], now)), (None, None));
    }

    #[test]
    fn a_port_with_ever_new_addresses_takes_only_its_share() {
        let (mut table, now) = (Table::default(), Instant::now());
        for n in 0..100_000 {
            table.learn(numbered(n), 1, now);
        }
        table.learn(A, 2, now);
        assert_eq!(table.stations.len(), MAX_PER_PORT + 1);
        assert_eq!(table.find(A, now), Some(2));
    }

    #[test]
    fn many_ports_do_not_exceed_the_whole() {
        let (mut table, now) = (Table::default(), Instant::now());
        for n in 0..100_000 {
            table.learn(numbered(n), u64::from(n / 1000), now);
        }
        assert_eq!(table.stations.len(), MAX_STATIONS);
    }

    #[test]
    fn old_stations_make_room_for_new_ones() {
        let (mut table, now) = (Table::default(), Instant::now());
        for n in 0..MAX_PER_PORT as u32 {
            table.learn(numbered(n), 1, now);
        }
        let later = now + AGEING;
        table.learn([2, 9, 9, 9, 9, 9], 1, later);
        assert_eq!(table.find([2, 9, 9, 9, 9, 9], later), Some(1));
    }

    #[test]
    fn a_port_that_goes_takes_its_stations_along() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.learn(A, 1, now);
        table.forget(1);
        assert_eq!((table.find(A, now), table.per_port.len()), (None, 0));
    }
}
