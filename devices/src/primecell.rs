//! What Arm's PrimeCell peripherals (PL011, PL031, PL061) have in common: 32-bit registers and identification bytes.
//!
//! No device of its own.

/// First identification register (UARTPeriphID0 in ARM DDI 0183 3.3.15; the same offset in every PrimeCell).
pub(crate) const ID_BASE: u64 = 0xfe0;

/// PrimeCellID0 to 3, the same in every PrimeCell (ARM DDI 0183 3.3.16).
const PCELL_ID: u32 = 0xb105_f00d;

/// The identification register at `offset` of a device whose PeriphID0 to 3 make up `periph_id`.
pub(crate) fn id_register(periph_id: u32, offset: u64) -> Option<u32> {
    let index = offset.checked_sub(ID_BASE)? / 4;
    match index {
        0..=3 => Some((periph_id >> (8 * index)) & 0xff),
        4..=7 => Some((PCELL_ID >> (8 * (index - 4))) & 0xff),
        _ => None,
    }
}

/// Whether an access addresses a register from its first byte; the others have no effect and read as zero.
pub(crate) fn aligned(offset: u64) -> bool {
    offset & 3 == 0
}

/// Puts a register's value into the (zeroed) answer, cut to the width of the access.
pub(crate) fn put(data: &mut [u8], value: u32) {
    for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
        *byte = value;
    }
}

/// The value of a write of any width.
pub(crate) fn get(data: &[u8]) -> u32 {
    let mut bytes = [0; 4];
    for (byte, value) in bytes.iter_mut().zip(data) {
        *byte = *value;
    }
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_registers_spell_peripheral_and_primecell_id() {
        let ids: Vec<_> = (0..8).filter_map(|i| id_register(0x0034_1011, ID_BASE + 4 * i)).collect();
        assert_eq!(ids, [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn nothing_lies_around_the_id_registers() {
        assert_eq!(id_register(0x0034_1011, ID_BASE - 4), None);
        assert_eq!(id_register(0x0034_1011, ID_BASE + 32), None);
    }

    #[test]
    fn narrow_and_wide_accesses_are_cut_and_zero_extended() {
        let mut wide = [0; 8];
        put(&mut wide, 0x0403_0201);
        let mut narrow = [0; 1];
        put(&mut narrow, 0x0403_0201);
        assert_eq!((wide, narrow), ([1, 2, 3, 4, 0, 0, 0, 0], [1]));
        assert_eq!((get(&[1]), get(&[1, 2, 3, 4, 5, 6, 7, 8])), (1, 0x0403_0201));
    }
}
