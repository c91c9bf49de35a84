//! Where the host's GIC goes: it dictates the sizes of its windows, so that ours move out of its way. Arithmetic only.
//!
//! The redistributors' region has room for all vCPUs that the host could make (32 MiB were seen) and does not fit below the
//! UART, where a region of our own size lies.

use crate::aarch64::layout::{
    GPIO_SPI, Layout, RTC_SPI, UART_SPI, V2M_SPI, V2M_SPI_COUNT, VIRTIO_MMIO_SPI, Window,
};

/// First address that a GIC may have.
const AREA_BASE: u64 = 0x0800_0000;
/// Where the redistributors go if they do not fit where ours are: a free place in QEMU's `virt` too.
const WIDE_REDIST_BASE: u64 = 0x0C00_0000;

/// A window's size and alignment, in bytes, as the host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub size: u64,
    /// What its base must be a multiple of.
    pub align: u64,
}

/// What the host says about its GIC before one is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostGicShape {
    /// Distributor.
    pub dist: Extent,
    /// All redistributors.
    pub redist: Extent,
    /// MSI (GICv2m) frame.
    pub msi: Extent,
    /// First INTID of the SPIs.
    pub spi_base: u32,
    /// How many SPIs there are.
    pub spi_count: u32,
}

/// `layout` with the GIC's windows where the host's can be, or why there is no place.
pub fn place(mut layout: Layout, shape: HostGicShape) -> Result<Layout, String> {
    check_spis(shape)?;
    let names = ["GIC distributor", "GICv2m frame", "GIC redistributors"];
    let mut taken: Vec<Window> = layout
        .windows()
        .into_iter()
        .filter(|(name, _)| !names.contains(name))
        .map(|(_, window)| window)
        .collect();
    let end = layout.pci_mmio32.base;
    let mut find = |name: &str, preferred: &[u64], extent: Extent| {
        let window = first_free(preferred, extent, end, &taken).ok_or_else(|| {
            format!(
                "there is no place for its {name} of {:#x} bytes, aligned to {:#x}",
                extent.size, extent.align
            )
        })?;
        taken.push(window);
        Ok::<_, String>(window)
    };
    layout.gic_dist = find(names[0], &[layout.gic_dist.base], shape.dist)?;
    layout.gic_v2m = find(names[1], &[layout.gic_v2m.base], shape.msi)?;
    layout.gic_redist = find(names[2], &[layout.gic_redist.base, WIDE_REDIST_BASE], shape.redist)?;
    Ok(layout)
}

/// The machine's SPIs must be among the host's.
fn check_spis(shape: HostGicShape) -> Result<(), String> {
    let fixed = [UART_SPI, RTC_SPI, GPIO_SPI, VIRTIO_MMIO_SPI].map(|spi| spi.intid());
    let first = fixed.into_iter().fold(V2M_SPI.intid(), u32::min);
    let last = V2M_SPI.intid() + V2M_SPI_COUNT - 1;
    let have = u64::from(shape.spi_base)..u64::from(shape.spi_base) + u64::from(shape.spi_count);
    if have.contains(&first.into()) && have.contains(&last.into()) {
        return Ok(());
    }
    Err(format!(
        "it has the interrupts {} to {}, and the machine needs {first} to {last}",
        have.start,
        have.end.saturating_sub(1)
    ))
}

/// The first of `preferred` that is free, else the lowest free address from [`AREA_BASE`] to `end`.
fn first_free(preferred: &[u64], extent: Extent, end: u64, taken: &[Window]) -> Option<Window> {
    let Extent { size, align } = extent;
    if size == 0 || !align.is_power_of_two() {
        return None;
    }
    // The end of the last window in the way, or `None` if `base` will do.
    let obstacle = |base: u64| {
        let window = Window::new(base, size);
        taken.iter().filter(|other| window.overlaps(**other)).map(|other| other.end()).max()
    };
    let fits = |base: u64| base.checked_add(size).is_some_and(|above| above <= end);
    let chosen = preferred
        .iter()
        .copied()
        .find(|base| base.is_multiple_of(align) && fits(*base) && obstacle(*base).is_none());
    if let Some(base) = chosen {
        return Some(Window::new(base, size));
    }
    let mut base = AREA_BASE.checked_next_multiple_of(align)?;
    while fits(base) {
        match obstacle(base) {
            None => return Some(Window::new(base, size)),
            Some(next) => base = next.checked_next_multiple_of(align)?,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::layout::MAX_CPUS;

    const K64: Extent = Extent { size: 0x1_0000, align: 0x1_0000 };
    /// As seen on a Mac.
    const SEEN: HostGicShape = HostGicShape {
        dist: K64,
        redist: Extent { size: 0x200_0000, align: 0x1_0000 },
        msi: K64,
        spi_base: 32,
        spi_count: 988,
    };

    fn layout() -> Layout {
        Layout::new(MAX_CPUS, 1 << 30)
    }

    fn overlaps(layout: &Layout) -> Vec<String> {
        let windows = layout.windows();
        let pairs =
            windows.iter().enumerate().flat_map(|(i, a)| windows[i + 1..].iter().map(move |b| (a, b)));
        pairs.filter(|(a, b)| a.1.overlaps(b.1)).map(|(a, b)| format!("{a:x?} {b:x?}")).collect()
    }

    #[test]
    fn the_wide_redistributor_region_leaves_the_uart_alone() {
        let placed = place(layout(), SEEN).unwrap();
        assert_eq!(overlaps(&placed), Vec::<String>::new());
        assert_eq!(placed.gic_redist, Window::new(WIDE_REDIST_BASE, 0x200_0000));
    }

    #[test]
    fn small_windows_stay_where_ours_are() {
        let placed = place(layout(), SEEN).unwrap();
        assert_eq!(placed.gic_dist.base, layout().gic_dist.base);
        assert_eq!(placed.gic_v2m.base, layout().gic_v2m.base);
    }

    #[test]
    fn only_the_gic_moves() {
        let placed = place(layout(), SEEN).unwrap();
        let (gic_dist, gic_v2m, gic_redist) = (placed.gic_dist, placed.gic_v2m, placed.gic_redist);
        assert_eq!(placed, Layout { gic_dist, gic_v2m, gic_redist, ..layout() });
    }

    #[test]
    fn a_coarse_alignment_is_kept() {
        let coarse = HostGicShape { msi: Extent { size: 0x1000, align: 0x100_0000 }, ..SEEN };
        let placed = place(layout(), coarse).unwrap();
        assert!(placed.gic_v2m.base.is_multiple_of(0x100_0000));
        assert_eq!(overlaps(&placed), Vec::<String>::new());
    }

    #[test]
    fn a_window_that_does_not_fit_in_its_usual_place_moves() {
        let placed =
            place(layout(), HostGicShape { dist: Extent { size: 0x4_0000, ..K64 }, ..SEEN }).unwrap();
        assert_eq!(overlaps(&placed), Vec::<String>::new());
        assert_ne!(placed.gic_dist.base, layout().gic_dist.base);
    }

    #[test]
    fn a_region_for_which_there_is_no_room_is_refused() {
        let huge = HostGicShape { redist: Extent { size: 1 << 30, align: 0x1_0000 }, ..SEEN };
        let text = place(layout(), huge).unwrap_err();
        assert!(text.contains("GIC redistributors") && text.contains("0x40000000"), "{text}");
    }

    #[test]
    fn a_size_or_alignment_of_nonsense_is_refused() {
        for extent in [
            Extent { size: 0, align: 1 },
            Extent { size: 0x1000, align: 3 },
            Extent { size: u64::MAX, align: 1 },
        ] {
            assert!(place(layout(), HostGicShape { dist: extent, ..SEEN }).is_err(), "{extent:?}");
        }
    }

    #[test]
    fn too_few_interrupts_are_refused() {
        let text = place(layout(), HostGicShape { spi_count: 64, ..SEEN }).unwrap_err();
        assert!(text.contains("32 to 95") && text.contains("33 to 143"), "{text}");
        assert!(place(layout(), HostGicShape { spi_base: 40, ..SEEN }).is_err());
    }
}
