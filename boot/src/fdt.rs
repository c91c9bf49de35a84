//! The device tree: what the machine tells the kernel about itself. Not the machine: addresses come from the [`Layout`],
//! interrupts from the constants beside it. Bindings: Linux Documentation/devicetree/bindings.

use std::fmt;

use hvrun_arch::aarch64::layout::{
    GPIO_SPI, GicVersion, Layout, MAX_CPUS, POWER_BUTTON_GPIO, RTC_SPI, TIMER_PPIS, UART_SPI, V2M_SPI,
    V2M_SPI_COUNT, VIRTIO_MMIO_SPI, Window, mpidr,
};
use hvrun_arch::hypervisor::Spi;
use vm_fdt::FdtWriter;

mod pci;

/// Largest device tree that Linux maps (booting.rst, "Setup the device tree").
pub const MAX_FDT: u64 = 0x20_0000;

/// Phandle of the interrupt controller.
const PHANDLE_GIC: u32 = 1;
/// Phandle of the GICv2m frame, for `msi-parent` and `msi-map` of a PCI host bridge.
const PHANDLE_V2M: u32 = 2;
/// Phandle of the clock that the PrimeCell devices name.
const PHANDLE_CLOCK: u32 = 3;
/// Phandle of the GPIO controller.
const PHANDLE_GPIO: u32 = 4;

/// First cell of an interrupt specifier (bindings/interrupt-controller/arm,gic-v3.yaml).
const GIC_SPI: u32 = 0;
/// See [`GIC_SPI`].
const GIC_PPI: u32 = 1;
/// Third cell: rising edge.
const IRQ_TYPE_EDGE_RISING: u32 = 1;
/// Third cell: active high, level-sensitive.
const IRQ_TYPE_LEVEL_HIGH: u32 = 4;

/// KEY_POWER (Linux uapi/linux/input-event-codes.h).
const KEY_POWER: u32 = 116;
/// `GPIO_ACTIVE_HIGH` (bindings/gpio/gpio.txt).
const GPIO_ACTIVE_HIGH: u32 = 0;
/// Frequency of the PrimeCell devices' clock, in Hz. A PL011 driver computes divisors from it that nobody looks at.
const CLOCK_HZ: u32 = 24_000_000;

/// Why there is no device tree.
#[derive(Debug, thiserror::Error)]
pub enum FdtError {
    /// A number of CPUs that the machine cannot have.
    #[error("a machine has 1 to {MAX_CPUS} CPUs, not {0}")]
    Cpus(u32),
    /// The host has no randomness to give.
    #[error("the host gave no randomness for the guest's seeds: {0}")]
    Randomness(getrandom::Error),
    /// The tree cannot be written down.
    #[error("the device tree cannot be written: {0}")]
    Write(vm_fdt::Error),
}

impl From<vm_fdt::Error> for FdtError {
    fn from(error: vm_fdt::Error) -> Self {
        FdtError::Write(error)
    }
}

/// The guest's first randomness.
#[derive(Clone, PartialEq, Eq)]
pub struct Seeds {
    /// `rng-seed`: the kernel credits it to its random number generator.
    pub rng: [u8; 64],
    /// `kaslr-seed`: where the kernel puts itself in its virtual address space. 0 means no seed to Linux.
    pub kaslr: u64,
}

impl Seeds {
    /// No randomness at all.
    pub const ZERO: Seeds = Seeds { rng: [0; 64], kaslr: 0 };

    /// Fresh seeds from the host.
    pub fn random() -> Result<Self, FdtError> {
        let mut seeds = Seeds::ZERO;
        getrandom::fill(&mut seeds.rng).map_err(FdtError::Randomness)?;
        seeds.kaslr = getrandom::u64().map_err(FdtError::Randomness)?;
        Ok(seeds)
    }
}

impl fmt::Debug for Seeds {
    /// Says nothing: a guest's secrets do not belong into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seeds(..)")
    }
}

/// What the device tree is about.
#[derive(Debug, Clone, Copy)]
pub struct FdtConfig<'a> {
    /// Where the machine's windows lie.
    pub layout: &'a Layout,
    /// Number of CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// The kernel command line.
    pub cmdline: &'a str,
    /// Where the initrd lies.
    pub initrd: Option<Window>,
    /// The guest's first randomness.
    pub seeds: &'a Seeds,
    /// How many of the virtio-mmio slots hold a device, from the first on.
    pub virtio_mmio_slots: u32,
}

/// Builds the flattened device tree. Its size does not depend on any address or seed.
pub fn build(config: &FdtConfig<'_>) -> Result<Vec<u8>, FdtError> {
    if !(1..=MAX_CPUS).contains(&config.cpus) {
        return Err(FdtError::Cpus(config.cpus));
    }
    let layout = config.layout;
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;

    write_chosen(&mut fdt, config)?;
    write_aliases(&mut fdt, layout)?;
    write_memory(&mut fdt, layout.ram)?;
    write_cpus(&mut fdt, config.cpus)?;
    write_psci(&mut fdt)?;
    write_timer(&mut fdt, config)?;
    write_pmu(&mut fdt, config)?;
    write_gic(&mut fdt, layout)?;
    write_clock(&mut fdt)?;
    write_uart(&mut fdt, layout.uart)?;
    write_rtc(&mut fdt, layout.rtc)?;
    write_gpio(&mut fdt, layout.gpio)?;
    write_power_button(&mut fdt)?;
    pci::write_host(&mut fdt, layout)?;
    for slot in 0..config.virtio_mmio_slots {
        write_virtio_mmio(&mut fdt, layout, slot)?;
    }

    fdt.end_node(root)?;
    Ok(fdt.finish()?)
}

/// The console's node, as `stdout-path` and `serial0` name it.
fn uart_node(layout: &Layout) -> String {
    format!("pl011@{:x}", layout.uart.base)
}

/// bindings: devicetree specification 3.6 and chosen.yaml of dt-schema.
fn write_chosen(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> Result<(), FdtError> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", config.cmdline)?;
    fdt.property_string("stdout-path", &format!("/{}", uart_node(config.layout)))?;
    if let Some(initrd) = config.initrd {
        fdt.property_u64("linux,initrd-start", initrd.base)?;
        fdt.property_u64("linux,initrd-end", initrd.end())?;
    }
    fdt.property("rng-seed", &config.seeds.rng)?;
    fdt.property_u64("kaslr-seed", config.seeds.kaslr)?;
    fdt.end_node(node)?;
    Ok(())
}

fn write_aliases(fdt: &mut FdtWriter, layout: &Layout) -> Result<(), FdtError> {
    let node = fdt.begin_node("aliases")?;
    fdt.property_string("serial0", &format!("/{}", uart_node(layout)))?;
    fdt.end_node(node)?;
    Ok(())
}

fn write_memory(fdt: &mut FdtWriter, ram: Window) -> Result<(), FdtError> {
    let node = fdt.begin_node(&format!("memory@{:x}", ram.base))?;
    fdt.property_string("device_type", "memory")?;
    write_reg(fdt, &[ram])?;
    fdt.end_node(node)?;
    Ok(())
}

/// bindings/arm/cpus.yaml: two address cells, so that an affinity level 3 would fit.
fn write_cpus(fdt: &mut FdtWriter, cpus: u32) -> Result<(), FdtError> {
    let parent = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..cpus {
        let node = fdt.begin_node(&format!("cpu@{:x}", mpidr(id)))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", mpidr(id))?;
        fdt.end_node(node)?;
    }
    fdt.end_node(parent)?;
    Ok(())
}

/// bindings/arm/psci.yaml
fn write_psci(fdt: &mut FdtWriter) -> Result<(), FdtError> {
    let node = fdt.begin_node("psci")?;
    write_compatible(fdt, &["arm,psci-1.0", "arm,psci-0.2"])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)?;
    Ok(())
}

/// bindings/timer/arm,arch_timer.yaml. `always-on`: a vCPU that sleeps does not lose its timer.
fn write_timer(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> Result<(), FdtError> {
    let node = fdt.begin_node("timer")?;
    write_compatible(fdt, &["arm,armv8-timer", "arm,armv7-timer"])?;
    let cells: Vec<u32> = TIMER_PPIS.iter().flat_map(|ppi| ppi_cells(config, *ppi)).collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)?;
    Ok(())
}

/// bindings/arm/pmu.yaml
fn write_pmu(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> Result<(), FdtError> {
    let Some(ppi) = config.layout.pmu else { return Ok(()) };
    let node = fdt.begin_node("pmu")?;
    fdt.property_string("compatible", "arm,armv8-pmuv3")?;
    fdt.property_array_u32("interrupts", &ppi_cells(config, ppi))?;
    fdt.end_node(node)?;
    Ok(())
}

/// The specifier of a level-triggered PPI of all CPUs, which a GICv2's third cell lists in bits 15 to 8.
fn ppi_cells(config: &FdtConfig<'_>, ppi: u32) -> [u32; 3] {
    let cpus = match config.layout.gic {
        GicVersion::V3 => 0,
        GicVersion::V2 => (1 << config.cpus.min(8)) - 1,
    };
    [GIC_PPI, ppi, cpus << 8 | IRQ_TYPE_LEVEL_HIGH]
}

/// bindings/interrupt-controller/arm,gic-v3.yaml or arm,gic.yaml (GICv2), and arm,gic.yaml for the v2m frame in it.
fn write_gic(fdt: &mut FdtWriter, layout: &Layout) -> Result<(), FdtError> {
    let node = fdt.begin_node(&format!("intc@{:x}", layout.gic_dist.base))?;
    let (compatible, second) = match layout.gic {
        GicVersion::V3 => ("arm,gic-v3", layout.gic_redist),
        GicVersion::V2 => ("arm,cortex-a15-gic", layout.gic_cpu),
    };
    fdt.property_string("compatible", compatible)?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    if layout.gic == GicVersion::V3 {
        fdt.property_u32("#redistributor-regions", 1)?;
    }
    write_reg(fdt, &[layout.gic_dist, second])?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_phandle(PHANDLE_GIC)?;

    let frame = fdt.begin_node(&format!("v2m@{:x}", layout.gic_v2m.base))?;
    fdt.property_string("compatible", "arm,gic-v2m-frame")?;
    fdt.property_null("msi-controller")?;
    write_reg(fdt, &[layout.gic_v2m])?;
    // Numbered like the frame's MSI_TYPER register: by INTID, unlike an interrupt specifier.
    fdt.property_u32("arm,msi-base-spi", V2M_SPI.intid())?;
    fdt.property_u32("arm,msi-num-spis", V2M_SPI_COUNT)?;
    fdt.property_phandle(PHANDLE_V2M)?;
    fdt.end_node(frame)?;

    fdt.end_node(node)?;
    Ok(())
}

fn write_clock(fdt: &mut FdtWriter) -> Result<(), FdtError> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(node)?;
    Ok(())
}

/// bindings/serial/pl011.yaml
fn write_uart(fdt: &mut FdtWriter, window: Window) -> Result<(), FdtError> {
    let node = fdt.begin_node(&format!("pl011@{:x}", window.base))?;
    write_compatible(fdt, &["arm,pl011", "arm,primecell"])?;
    write_reg(fdt, &[window])?;
    write_spi(fdt, UART_SPI)?;
    fdt.property_array_u32("clocks", &[PHANDLE_CLOCK, PHANDLE_CLOCK])?;
    write_strings(fdt, "clock-names", &["uartclk", "apb_pclk"])?;
    fdt.end_node(node)?;
    Ok(())
}

/// bindings/rtc/arm,pl031.yaml
fn write_rtc(fdt: &mut FdtWriter, window: Window) -> Result<(), FdtError> {
    let node = fdt.begin_node(&format!("pl031@{:x}", window.base))?;
    write_compatible(fdt, &["arm,pl031", "arm,primecell"])?;
    write_reg(fdt, &[window])?;
    write_spi(fdt, RTC_SPI)?;
    write_apb_clock(fdt)?;
    fdt.end_node(node)?;
    Ok(())
}

/// bindings/gpio/pl061-gpio.yaml
fn write_gpio(fdt: &mut FdtWriter, window: Window) -> Result<(), FdtError> {
    let node = fdt.begin_node(&format!("pl061@{:x}", window.base))?;
    write_compatible(fdt, &["arm,pl061", "arm,primecell"])?;
    write_reg(fdt, &[window])?;
    write_spi(fdt, GPIO_SPI)?;
    write_apb_clock(fdt)?;
    fdt.property_u32("#gpio-cells", 2)?;
    fdt.property_null("gpio-controller")?;
    fdt.property_phandle(PHANDLE_GPIO)?;
    fdt.end_node(node)?;
    Ok(())
}

/// bindings/input/gpio-keys.yaml
fn write_power_button(fdt: &mut FdtWriter) -> Result<(), FdtError> {
    let node = fdt.begin_node("gpio-keys")?;
    fdt.property_string("compatible", "gpio-keys")?;
    let key = fdt.begin_node("poweroff")?;
    fdt.property_string("label", "power button")?;
    fdt.property_u32("linux,code", KEY_POWER)?;
    fdt.property_array_u32("gpios", &[PHANDLE_GPIO, POWER_BUTTON_GPIO, GPIO_ACTIVE_HIGH])?;
    fdt.end_node(key)?;
    fdt.end_node(node)?;
    Ok(())
}

/// bindings/virtio/mmio.yaml
fn write_virtio_mmio(fdt: &mut FdtWriter, layout: &Layout, slot: u32) -> Result<(), FdtError> {
    let window = layout.virtio_mmio_slot(slot);
    let node = fdt.begin_node(&format!("virtio_mmio@{:x}", window.base))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    write_reg(fdt, &[window])?;
    fdt.property_array_u32("interrupts", &[GIC_SPI, VIRTIO_MMIO_SPI.0 + slot, IRQ_TYPE_EDGE_RISING])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)?;
    Ok(())
}

fn write_apb_clock(fdt: &mut FdtWriter) -> Result<(), FdtError> {
    fdt.property_u32("clocks", PHANDLE_CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    Ok(())
}

/// `interrupts` of a device with one level-triggered SPI.
fn write_spi(fdt: &mut FdtWriter, spi: Spi) -> Result<(), FdtError> {
    Ok(fdt.property_array_u32("interrupts", &[GIC_SPI, spi.0, IRQ_TYPE_LEVEL_HIGH])?)
}

/// `reg` under two address and two size cells.
fn write_reg(fdt: &mut FdtWriter, windows: &[Window]) -> Result<(), FdtError> {
    let cells: Vec<u64> = windows.iter().flat_map(|window| [window.base, window.size]).collect();
    Ok(fdt.property_array_u64("reg", &cells)?)
}

fn write_compatible(fdt: &mut FdtWriter, values: &[&str]) -> Result<(), FdtError> {
    write_strings(fdt, "compatible", values)
}

fn write_strings(fdt: &mut FdtWriter, name: &str, values: &[&str]) -> Result<(), FdtError> {
    Ok(fdt.property_string_list(name, values.iter().map(|value| (*value).to_owned()).collect())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config<'a>(layout: &'a Layout, cpus: u32, seeds: &'a Seeds) -> FdtConfig<'a> {
        FdtConfig { layout, cpus, cmdline: "", initrd: None, seeds, virtio_mmio_slots: 0 }
    }

    #[test]
    fn no_cpu_and_nine_cpus_are_refused() {
        let layout = Layout::new(1, 1 << 30);
        let none = build(&config(&layout, 0, &Seeds::ZERO)).unwrap_err().to_string();
        let nine = build(&config(&layout, 9, &Seeds::ZERO)).unwrap_err().to_string();
        assert_eq!(none, "a machine has 1 to 8 CPUs, not 0");
        assert_eq!(nine, "a machine has 1 to 8 CPUs, not 9");
    }

    #[test]
    fn size_does_not_depend_on_addresses_or_seeds() {
        let layout = Layout::new(8, 1 << 30);
        let seeds = Seeds { rng: [0xff; 64], kaslr: u64::MAX };
        let low = FdtConfig { initrd: Some(Window::new(0, 0)), ..config(&layout, 8, &Seeds::ZERO) };
        let high = FdtConfig { initrd: Some(Window::new(1 << 40, 1 << 30)), ..config(&layout, 8, &seeds) };
        assert_eq!(build(&low).unwrap().len(), build(&high).unwrap().len());
    }

    #[test]
    fn equal_seeds_give_equal_trees() {
        let layout = Layout::new(1, 1 << 30);
        let seeds = Seeds { rng: [7; 64], kaslr: 9 };
        assert_eq!(build(&config(&layout, 1, &seeds)).unwrap(), build(&config(&layout, 1, &seeds)).unwrap());
    }

    #[test]
    fn two_draws_of_seeds_differ() {
        assert_ne!(Seeds::random().unwrap(), Seeds::random().unwrap());
    }

    fn contains(tree: &[u8], text: &[u8]) -> bool {
        tree.windows(text.len()).any(|window| window == text)
    }

    #[test]
    fn a_gicv2_is_described_as_one() {
        let layout = Layout { gic: GicVersion::V2, ..Layout::new(2, 1 << 30) };
        let tree = build(&config(&layout, 2, &Seeds::ZERO)).unwrap();
        assert!(contains(&tree, b"arm,cortex-a15-gic\0") && !contains(&tree, b"arm,gic-v3\0"));
    }

    #[test]
    fn a_gicv2_lists_the_cpus_of_a_private_interrupt() {
        let layout = Layout { gic: GicVersion::V2, ..Layout::new(3, 1 << 30) };
        assert_eq!(ppi_cells(&config(&layout, 3, &Seeds::ZERO), 11), [GIC_PPI, 11, 0x704]);
    }

    #[test]
    fn only_cpus_with_a_pmu_have_a_node_for_it() {
        let without = Layout::new(1, 1 << 30);
        let with = Layout { pmu: Some(7), ..without.clone() };
        let tree = |layout| build(&config(layout, 1, &Seeds::ZERO)).unwrap();
        assert!(contains(&tree(&with), b"arm,armv8-pmuv3\0"));
        assert!(!contains(&tree(&without), b"arm,armv8-pmuv3\0"));
    }

    #[test]
    fn debug_output_keeps_the_seeds_secret() {
        assert_eq!(format!("{:?}", Seeds { rng: [7; 64], kaslr: 9 }), "Seeds(..)");
    }
}
