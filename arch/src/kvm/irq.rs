//! How an interrupt is named to KVM. It delivers none.

use crate::hypervisor::Spi;

/// Position of the interrupt's type in KVM_IRQ_LINE's `irq` (api.rst 4.25).
const TYPE_SHIFT: u32 = 24;
/// An interrupt of the in-kernel GIC that all CPUs share.
const TYPE_SPI: u32 = 1;

/// KVM_IRQ_LINE's `irq` for `spi`: there it goes by its INTID.
pub const fn line(spi: Spi) -> u32 {
    TYPE_SPI << TYPE_SHIFT | (spi.intid() & 0xffff)
}

/// KVM_IRQFD's `gsi` for `spi`: the routes that every arm64 VM starts with go by the SPI's own number.
pub const fn gsi(spi: Spi) -> u32 {
    spi.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_named_by_type_and_intid() {
        assert_eq!(line(Spi(1)), 0x0100_0021);
    }

    #[test]
    fn a_route_is_named_by_spi() {
        assert_eq!(gsi(Spi(48)), 48);
    }
}
