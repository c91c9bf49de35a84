//! The control queue (virtio 1.2, 5.1.6.5): receive modes, addresses and the guest's offloads. Commands are answered one by one, with
//! an error for what is not known or not whole.

use std::io::Read;

use super::filter::{AddressTable, Filter, MAX_ADDRESSES, Mode};
use super::mac::Mac;
use super::{F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, GUEST_OFFLOADS};
use crate::virtio::chain::{Chain, ChainReader};

/// Command classes: VIRTIO_NET_CTRL_RX, _MAC, _GUEST_OFFLOADS.
const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_GUEST_OFFLOADS: u8 = 5;
/// VIRTIO_NET_CTRL_MAC_TABLE_SET and _ADDR_SET.
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
/// VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET.
const GUEST_OFFLOADS_SET: u8 = 0;
/// Most entries of a table that are read at all; no driver has so many.
const MAX_ENTRIES: usize = 4096;
/// VIRTIO_NET_OK and VIRTIO_NET_ERR.
const OK: u8 = 0;
const ERR: u8 = 1;

/// What the driver can change by commands.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    pub(super) filter: &'a mut Filter,
    /// The bits of [`GUEST_OFFLOADS`] that are in use.
    pub(super) guest_offloads: &'a mut u64,
}

/// Carries out the command in `chain`. Says how many bytes the answer has.
pub(super) fn execute(chain: &Chain<'_>, features: u64, settings: &mut Settings<'_>) -> u32 {
    let done = command(&mut chain.reader(), features, settings);
    let mut writer = chain.writer();
    let answer = if done.is_some() { OK } else { ERR };
    // A driver that leaves no room for the answer gets none.
    let _ = writer.write_obj(answer);
    writer.written()
}

/// `None`: a command that is not known, not negotiated, or not whole.
fn command(reader: &mut ChainReader<'_, '_>, features: u64, settings: &mut Settings<'_>) -> Option<()> {
    let [class, command] = bytes(reader)?;
    let has = |feature: u64| (features & feature != 0).then_some(());
    match (class, command) {
        (CLASS_RX, _) => {
            let mode = *Mode::ALL.get(usize::from(command))?;
            has(if command <= Mode::AllMulticast as u8 { F_CTRL_RX } else { F_CTRL_RX_EXTRA })?;
            let [on] = bytes(reader)?;
            settings.filter.set(mode, on != 0);
        }
        (CLASS_MAC, MAC_TABLE_SET) => {
            has(F_CTRL_RX)?;
            let (unicast, multicast) = (table(reader)?, table(reader)?);
            settings.filter.unicast = unicast;
            settings.filter.multicast = multicast;
        }
        (CLASS_MAC, MAC_ADDR_SET) => {
            has(F_CTRL_MAC_ADDR)?;
            let mac = Mac(bytes(reader)?);
            if mac.is_multicast() {
                return None;
            }
            settings.filter.mac = mac;
        }
        (CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET) => {
            has(F_CTRL_GUEST_OFFLOADS)?;
            let offloads = u64::from_le_bytes(bytes(reader)?);
            if offloads & !(features & GUEST_OFFLOADS) != 0 {
                return None;
            }
            *settings.guest_offloads = offloads;
        }
        _ => return None,
    }
    Some(())
}

/// The next bytes.
fn bytes<const N: usize>(reader: &mut ChainReader<'_, '_>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// A table: the number of its entries as le32, and the entries.
fn table(reader: &mut ChainReader<'_, '_>) -> Option<AddressTable> {
    let count = u32::from_le_bytes(bytes(reader)?) as usize;
    if count > MAX_ENTRIES || count > reader.remaining() / Mac::LEN {
        return None;
    }
    let mut table = AddressTable { addresses: Vec::new(), overflow: count > MAX_ADDRESSES };
    for index in 0..count {
        let mac = Mac(bytes(reader)?);
        if index < MAX_ADDRESSES && !table.overflow {
            table.addresses.push(mac);
        }
    }
    Some(table)
}
