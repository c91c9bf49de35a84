//! The PCI host bridge's node. Bindings: pci/host-generic-pci.yaml, pci/pci-msi.txt, and the PCI Bus Binding to Open Firmware
//! (IEEE Std 1275), whose sections are cited.

use hvrun_arch::aarch64::layout::{Layout, PCI_INTX_SPI, Window};
use vm_fdt::FdtWriter;

use super::{FdtError, GIC_SPI, IRQ_TYPE_LEVEL_HIGH, PHANDLE_GIC, PHANDLE_V2M, write_reg};

/// `ranges`: I/O space (2.2.1.1).
const SPACE_IO: u32 = 0x0100_0000;
/// `ranges`: memory below 4 GiB.
const SPACE_MEMORY_32: u32 = 0x0200_0000;
/// `ranges`: memory that takes a 64-bit address. Prefetchable BARs may lie in it too.
const SPACE_MEMORY_64: u32 = 0x0300_0000;

/// Bytes of ECAM a bus (PCI Express Base 3.0, 7.2.2).
const ECAM_BUS_SIZE: u64 = 1 << 20;
/// INTA to INTD.
const LINES: u32 = 4;
/// Where the device number is in the first cell of an address (2.2.1.1).
const DEVICE_SHIFT: u32 = 11;

/// Writes the node. Addresses on the bus are the CPUs'.
pub(super) fn write_host(fdt: &mut FdtWriter, layout: &Layout) -> Result<(), FdtError> {
    let ecam = layout.pci_ecam;
    let buses = u32::try_from(ecam.size / ECAM_BUS_SIZE).unwrap_or(u32::MAX);
    let node = fdt.begin_node(&format!("pcie@{:x}", ecam.base))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_u32("linux,pci-domain", 0)?;
    fdt.property_array_u32("bus-range", &[0, buses.saturating_sub(1)])?;
    fdt.property_null("dma-coherent")?;
    write_reg(fdt, &[ecam])?;
    fdt.property_array_u32("ranges", &ranges(layout))?;
    // Every function's messages, whatever its requester ID, go to the GICv2m frame.
    fdt.property_array_u32("msi-map", &[0, PHANDLE_V2M, 0, 0x1_0000])?;
    fdt.property_array_u32("interrupt-map-mask", &[(LINES - 1) << DEVICE_SHIFT, 0, 0, 7])?;
    fdt.property_array_u32("interrupt-map", &interrupt_map())?;
    fdt.end_node(node)?;
    Ok(())
}

fn ranges(layout: &Layout) -> Vec<u32> {
    let mut cells = Vec::new();
    // I/O ports are numbered from 0.
    push_range(&mut cells, SPACE_IO, 0, layout.pci_pio);
    push_range(&mut cells, SPACE_MEMORY_32, layout.pci_mmio32.base, layout.pci_mmio32);
    if layout.pci_mmio64.size != 0 {
        push_range(&mut cells, SPACE_MEMORY_64, layout.pci_mmio64.base, layout.pci_mmio64);
    }
    cells
}

fn push_range(cells: &mut Vec<u32>, space: u32, bus_address: u64, window: Window) {
    cells.push(space);
    for value in [bus_address, window.base, window.size] {
        cells.extend([(value >> 32) as u32, value as u32]);
    }
}

/// INTA to INTD of four devices; the mask makes every fourth device alike. Device `d` has its pin `p` (1 is INTA) on line
/// `(d + p - 1) % 4`, as the host bridge wires it.
fn interrupt_map() -> Vec<u32> {
    let mut cells = Vec::new();
    for device in 0..LINES {
        for pin in 1..=LINES {
            let spi = PCI_INTX_SPI.0 + (device + pin - 1) % LINES;
            cells.extend([device << DEVICE_SHIFT, 0, 0, pin]);
            // The interrupt controller has two address cells.
            cells.extend([PHANDLE_GIC, 0, 0, GIC_SPI, spi, IRQ_TYPE_LEVEL_HIGH]);
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_room_above_ram_there_is_no_64_bit_range() {
        let layout = Layout::new(1, 1 << 30);
        assert_eq!(ranges(&layout).len(), 2 * 7);
        assert_eq!(ranges(&layout.with_ipa_bits(36)).len(), 3 * 7);
    }

    #[test]
    fn inta_of_the_first_device_behind_the_bridge_is_the_second_line() {
        let map = interrupt_map();
        let entry = map.chunks(10).find(|entry| entry[0] == 1 << DEVICE_SHIFT && entry[3] == 1);
        assert_eq!(entry.map(|entry| entry[8]), Some(PCI_INTX_SPI.0 + 1));
    }
}
