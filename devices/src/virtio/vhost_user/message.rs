//! The messages of the vhost-user protocol that a front end needs (QEMU, docs/interop/vhost-user.rst): numbers, flags and payloads. Not
//! how they travel; that is `channel`.
//!
//! Numbers are in the host's byte order: both ends are on one host.

/// A message that the front end sends ("Front-end message types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    GetConfig = 24,
}

impl std::fmt::Display for Request {
    /// The specification's name, without its prefix.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Request::GetFeatures => "GET_FEATURES",
            Request::SetFeatures => "SET_FEATURES",
            Request::SetOwner => "SET_OWNER",
            Request::SetMemTable => "SET_MEM_TABLE",
            Request::SetVringNum => "SET_VRING_NUM",
            Request::SetVringAddr => "SET_VRING_ADDR",
            Request::SetVringBase => "SET_VRING_BASE",
            Request::GetVringBase => "GET_VRING_BASE",
            Request::SetVringKick => "SET_VRING_KICK",
            Request::SetVringCall => "SET_VRING_CALL",
            Request::GetProtocolFeatures => "GET_PROTOCOL_FEATURES",
            Request::SetProtocolFeatures => "SET_PROTOCOL_FEATURES",
            Request::GetQueueNum => "GET_QUEUE_NUM",
            Request::SetVringEnable => "SET_VRING_ENABLE",
            Request::GetConfig => "GET_CONFIG",
        })
    }
}

/// VHOST_USER_F_PROTOCOL_FEATURES, among the features of the device: there are protocol features.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features ("Protocol features").
pub(super) mod protocol {
    /// VHOST_USER_PROTOCOL_F_MQ: the back end says how many queues it has.
    pub(in super::super) const MQ: u64 = 1 << 0;
    /// VHOST_USER_PROTOCOL_F_REPLY_ACK: every message can be acknowledged.
    pub(in super::super) const REPLY_ACK: u64 = 1 << 3;
    /// VHOST_USER_PROTOCOL_F_CONFIG: the back end has the configuration space.
    pub(in super::super) const CONFIG: u64 = 1 << 9;
}

/// Header flags ("Header").
pub(super) mod flags {
    /// Version of the protocol, in the lowest two bits.
    pub(in super::super) const VERSION: u32 = 1;
    /// It is a reply.
    pub(in super::super) const REPLY: u32 = 1 << 2;
    /// The front end wants a reply to a message that has none by itself.
    pub(in super::super) const NEED_REPLY: u32 = 1 << 3;
}

/// Bytes of a header: request, flags, size of the payload.
pub(super) const HEADER_SIZE: usize = 12;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) size: u32,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        for (to, word) in bytes.chunks_exact_mut(4).zip([self.request, self.flags, self.size]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: [u8; HEADER_SIZE]) -> Self {
        let mut words = bytes.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_ne_bytes));
        let mut next = || words.next().unwrap_or_default();
        Header { request: next(), flags: next(), size: next() }
    }
}

/// One region of memory ("Memory region description").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// Guest physical address.
    pub(super) guest: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Address in the front end, which queues' addresses are given by.
    pub(super) user: u64,
    /// Where it begins in its file.
    pub(super) offset: u64,
}

/// Most regions that a table may have.
pub(super) const MAX_REGIONS: usize = 8;

/// The payload of SET_MEM_TABLE ("Multiple Memory regions description").
pub(super) fn mem_table(regions: &[Region]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    let mut payload = [count.to_ne_bytes(), [0; 4]].concat();
    for region in regions {
        for word in [region.guest, region.size, region.user, region.offset] {
            payload.extend(word.to_ne_bytes());
        }
    }
    payload
}

/// The payload of messages about a queue that have one number ("Vring state description").
pub(super) fn vring_state(index: u16, value: u32) -> Vec<u8> {
    [u32::from(index).to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// Where the parts of a queue are, by addresses of the front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VringAddresses {
    pub(super) desc: u64,
    pub(super) used: u64,
    pub(super) avail: u64,
}

/// The payload of SET_VRING_ADDR ("Vring descriptor index for split virtqueues"). Nothing is logged.
pub(super) fn vring_addr(index: u16, at: VringAddresses) -> Vec<u8> {
    let mut payload = vring_state(index, 0);
    for word in [at.desc, at.used, at.avail, 0] {
        payload.extend(word.to_ne_bytes());
    }
    payload
}

/// The payload of SET_VRING_KICK and SET_VRING_CALL, with a descriptor: the queue's index in the lowest 8 bits. `None` for a queue that
/// cannot be named so.
pub(super) fn vring_fd(index: u16) -> Option<Vec<u8>> {
    u8::try_from(index).ok().map(|index| u64::from(index).to_ne_bytes().to_vec())
}

/// What comes before the bytes in the payload of GET_CONFIG ("Virtio device config space"): offset, size, flags.
pub(super) const CONFIG_HEADER_SIZE: usize = 12;

/// Most bytes of configuration space in a message (VHOST_USER_MAX_CONFIG_SIZE).
pub(super) const MAX_CONFIG: usize = 256;

/// The payload of GET_CONFIG for the first `len` bytes: as long as the answer will be.
pub(super) fn config(len: usize) -> Vec<u8> {
    let mut payload = vec![0; CONFIG_HEADER_SIZE + len];
    payload[4..8].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_was_encoded_is_decoded_to_itself() {
        let header = Header { request: 24, flags: 5, size: 0x0102_0304 };
        assert_eq!(Header::decode(header.encode()), header);
    }

    #[test]
    fn a_memory_table_has_32_bytes_a_region_behind_count_and_padding() {
        let region = Region { guest: 1, size: 2, user: 3, offset: 4 };
        let table = mem_table(&[region, region]);
        assert_eq!((table.len(), table[0], table[4]), (8 + 64, 2, 0));
        assert_eq!(table[40..72].iter().step_by(8).copied().collect::<Vec<u8>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_queues_addresses_are_descriptors_used_and_available_ring() {
        let payload = vring_addr(3, VringAddresses { desc: 1, used: 2, avail: 4 });
        assert_eq!(payload.len(), 40);
        assert_eq!((payload[0], payload[8], payload[16], payload[24], payload[32]), (3, 1, 2, 4, 0));
    }

    #[test]
    fn a_queue_beyond_256_has_no_descriptor() {
        assert_eq!(vring_fd(255), Some(255u64.to_ne_bytes().to_vec()));
        assert_eq!(vring_fd(256), None);
    }
}
