//! Which frames a card takes for its guest: its addresses and receive modes, as the control queue sets them (virtio 1.2, 5.1.6.5.1
//! and 5.1.6.5.2). It knows no queue.

use serde::{Deserialize, Serialize};

use super::mac::Mac;

/// Most addresses in each table; more make the card take all addresses of the kind, which a driver must expect.
pub(super) const MAX_ADDRESSES: usize = 64;

/// A receive mode, by its command of class VIRTIO_NET_CTRL_RX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Promiscuous = 0,
    AllMulticast = 1,
    AllUnicast = 2,
    NoMulticast = 3,
    NoUnicast = 4,
    NoBroadcast = 5,
}

impl Mode {
    pub(super) const ALL: [Mode; 6] = [
        Mode::Promiscuous,
        Mode::AllMulticast,
        Mode::AllUnicast,
        Mode::NoMulticast,
        Mode::NoUnicast,
        Mode::NoBroadcast,
    ];
}

/// A table of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AddressTable {
    /// The addresses, at most 64.
    pub addresses: Vec<Mac>,
    /// There were more than that, so that all addresses count as being in it.
    pub overflow: bool,
}

impl AddressTable {
    fn contains(&self, mac: Mac) -> bool {
        self.overflow || self.addresses.contains(&mac)
    }
}

/// What a card takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// The card's own address.
    pub mac: Mac,
    /// The receive modes, bit by bit in the order of their commands.
    pub modes: u8,
    /// Other addresses it answers to.
    pub unicast: AddressTable,
    /// Groups it listens to.
    pub multicast: AddressTable,
}

impl Filter {
    /// After a reset: promiscuous, so that a driver that knows nothing of this gets everything (virtio 1.2, 5.1.6.5.1).
    pub(super) fn new(mac: Mac) -> Self {
        let modes = 1 << Mode::Promiscuous as u8;
        Filter { mac, modes, unicast: AddressTable::default(), multicast: AddressTable::default() }
    }

    pub(super) fn set(&mut self, mode: Mode, on: bool) {
        let bit = 1 << mode as u8;
        self.modes = if on { self.modes | bit } else { self.modes & !bit };
    }

    fn has(&self, mode: Mode) -> bool {
        self.modes & 1 << mode as u8 != 0
    }

    /// Whether a frame to `destination` is for this guest.
    pub(super) fn accepts(&self, destination: Mac) -> bool {
        if self.has(Mode::Promiscuous) {
            return true;
        }
        if destination == Mac::BROADCAST {
            return !self.has(Mode::NoBroadcast);
        }
        if destination.is_multicast() {
            return !self.has(Mode::NoMulticast)
                && (self.has(Mode::AllMulticast) || self.multicast.contains(destination));
        }
        !self.has(Mode::NoUnicast)
            && (self.has(Mode::AllUnicast) || destination == self.mac || self.unicast.contains(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x57]);
    const GROUP: Mac = Mac([0x01, 0, 0x5e, 0, 0, 1]);

    fn selective() -> Filter {
        let mut filter = Filter::new(OWN);
        filter.set(Mode::Promiscuous, false);
        filter
    }

    #[test]
    fn a_card_after_a_reset_takes_everything() {
        assert!([OWN, OTHER, GROUP, Mac::BROADCAST].iter().all(|mac| Filter::new(OWN).accepts(*mac)));
    }

    #[test]
    fn a_card_that_is_not_promiscuous_takes_its_own_and_broadcasts() {
        assert!(selective().accepts(OWN) && selective().accepts(Mac::BROADCAST));
        assert!(!selective().accepts(OTHER) && !selective().accepts(GROUP));
    }

    #[test]
    fn addresses_in_the_tables_are_taken() {
        let mut filter = selective();
        filter.unicast.addresses.push(OTHER);
        filter.multicast.addresses.push(GROUP);
        assert!(filter.accepts(OTHER) && filter.accepts(GROUP));
    }

    #[test]
    fn a_table_that_overflowed_takes_all_of_its_kind() {
        let mut filter = selective();
        filter.multicast.overflow = true;
        assert!(filter.accepts(GROUP) && !filter.accepts(OTHER));
    }

    #[test]
    fn all_multicast_takes_groups_and_no_other_station() {
        let mut filter = selective();
        filter.set(Mode::AllMulticast, true);
        assert!(filter.accepts(GROUP) && !filter.accepts(OTHER));
    }

    #[test]
    fn all_unicast_takes_other_stations_and_no_groups() {
        let mut filter = selective();
        filter.set(Mode::AllUnicast, true);
        assert!(filter.accepts(OTHER) && !filter.accepts(GROUP));
    }

    #[test]
    fn the_modes_that_refuse_win_over_those_that_take() {
        let mut filter = selective();
        [Mode::AllMulticast, Mode::AllUnicast, Mode::NoMulticast, Mode::NoUnicast, Mode::NoBroadcast]
            .iter()
            .for_each(|mode| filter.set(*mode, true));
        assert!([OWN, OTHER, GROUP, Mac::BROADCAST].iter().all(|mac| !filter.accepts(*mac)));
    }
}
