//! Sizes of the guest physical (IPA) space and of the pages in it. Arithmetic only.

/// Stage 2 works in pages of this size: host addresses, guest addresses and sizes of mappings are multiples of it.
pub const GRANULE: u64 = 16 << 10;
/// The size where the host does not say: 36 bits, the largest without another level of tables.
pub const USUAL_BITS: u32 = 36;
/// Sizes that a guest can be told (ID_AA64MMFR0_EL1.PARange).
const SIZES: [u32; 6] = [32, 36, 40, 42, 44, 48];

/// How many bits to ask for so that addresses below `end` can be mapped: the default if that does, else the least size that
/// does, at most `max`.
pub fn bits_for(end: u64, default: u32, max: u32) -> u32 {
    let reaches = |bits: u32| bits >= 64 || end <= 1 << bits;
    if reaches(default) {
        return default;
    }
    SIZES.into_iter().find(|bits| *bits > default && reaches(*bits)).unwrap_or(max).min(max)
}

/// What is wrong with mapping `size` bytes at host address `host` to `ipa`, if anything. The host's pages are `host_page` bytes.
pub fn misaligned(host: u64, ipa: u64, size: u64, host_page: u64) -> Option<String> {
    if host_page == 0 || !host.is_multiple_of(host_page) {
        return Some(format!(
            "the host address {host:#x} is not a multiple of the host's page size {host_page:#x}"
        ));
    }
    if !ipa.is_multiple_of(GRANULE) {
        return Some(format!("the guest address {ipa:#x} is not a multiple of 16 KiB"));
    }
    if size == 0 || !size.is_multiple_of(GRANULE) {
        return Some(format!("the size {size:#x} is not a multiple of 16 KiB"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_default_is_kept_while_it_does() {
        assert_eq!(bits_for(2 * GIB, 36, 40), 36);
        assert_eq!(bits_for(64 * GIB, 36, 40), 36);
    }

    #[test]
    fn more_is_asked_for_by_need() {
        assert_eq!(bits_for(64 * GIB + 1, 36, 40), 40);
        assert_eq!(bits_for(2 << 40, 36, 48), 42);
    }

    #[test]
    fn never_more_than_the_host_has_is_asked_for() {
        assert_eq!(bits_for(2 << 40, 36, 40), 40);
        assert_eq!(bits_for(65 * GIB, 36, 39), 39);
    }

    #[test]
    fn aligned_mappings_are_fine() {
        assert_eq!(misaligned(0x1_0000, 0x4000_0000, 0x4000, 0x4000), None);
    }

    #[test]
    fn each_misalignment_is_named() {
        let host = misaligned(0x1000, 0x4000_0000, 0x4000, 0x4000).unwrap();
        assert!(host.contains("host address 0x1000"), "{host}");
        let guest = misaligned(0x4000, 0x4000_1000, 0x4000, 0x4000).unwrap();
        assert!(guest.contains("guest address 0x40001000"), "{guest}");
        let size = misaligned(0x4000, 0x4000_0000, 0x5000, 0x4000).unwrap();
        assert!(size.contains("size 0x5000"), "{size}");
    }

    #[test]
    fn an_empty_mapping_is_refused() {
        assert!(misaligned(0x4000, 0x4000_0000, 0, 0x4000).is_some());
    }
}
