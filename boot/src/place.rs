//! Where kernel, initrd and device tree lie in RAM. Pure arithmetic: nothing here touches memory or files.
//!
//! ```text
//! ram.base   kernel image, BSS   | initrd (64 KiB aligned) | device tree (2 MiB aligned if there is room) | free
//! ```

use std::fmt;

use hvrun_arch::aarch64::layout::Window;

use crate::fdt::MAX_FDT;

/// The kernel lies `text_offset` behind a boundary of 2 MiB (booting.rst, "Call the kernel image").
const KERNEL_ALIGN: u64 = 0x20_0000;
/// The initrd begins on a page, whatever the kernel's page size is (4, 16 or 64 KiB).
const INITRD_ALIGN: u64 = 0x1_0000;
/// Kernel and initrd lie in one window of this size ...
const INITRD_WINDOW: u64 = 32 << 30;
/// ... that begins on a multiple of this (booting.rst, "Call the kernel image").
const INITRD_WINDOW_ALIGN: u64 = 1 << 30;
/// Kernels before 4.2 map the 2 MiB block around the device tree and no more, so it had better not cross one ...
const FDT_ALIGN: u64 = 0x20_0000;
/// ... unless memory is short; the protocol itself asks for 8 bytes only (booting.rst, "Setup the device tree").
const FDT_TIGHT_ALIGN: u64 = 0x1000;
/// Memory sizes are recommended in steps of this.
const STEP: u64 = 1 << 20;

/// What wants a place in RAM, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// How far behind a 2 MiB boundary the kernel wants to lie.
    pub text_offset: u64,
    /// The kernel with its BSS.
    pub kernel: u64,
    /// The initrd, if there is one.
    pub initrd: Option<u64>,
    /// The device tree.
    pub fdt: u64,
}

/// Where things lie. The windows are inside RAM and do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The kernel with its BSS; it is entered at its first byte.
    pub kernel: Window,
    /// The initrd.
    pub initrd: Option<Window>,
    /// The device tree.
    pub fdt: Window,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// RAM is too small.
    #[error("{} in {} of memory; {} or more would do", what_does_not_fit(needs), Size(*ram), Size(*enough))]
    DoesNotFit {
        /// What was to be placed.
        needs: Needs,
        /// Size of RAM in bytes.
        ram: u64,
        /// Least size of RAM, in whole MiB, in which everything fits.
        enough: u64,
    },
    /// No memory is large enough: the kernel would not find its initrd.
    #[error(
        "an initrd of {} cannot be used: Linux wants kernel and initrd within 32 GiB, so it may have at most {}",
        Size(*initrd),
        Size(*most)
    )]
    InitrdOutOfReach {
        /// Size of the initrd.
        initrd: u64,
        /// Size of the largest initrd that would do.
        most: u64,
    },
    /// The sizes in the kernel's header are nonsense.
    #[error(
        "the kernel's header asks for {kernel:#x} bytes at offset {text_offset:#x}, which no memory has; the file is damaged"
    )]
    Absurd {
        /// The header's `text_offset`.
        text_offset: u64,
        /// The header's `image_size`.
        kernel: u64,
    },
    /// The device tree is larger than Linux maps.
    #[error("the device tree has {fdt} bytes; Linux takes at most {MAX_FDT}")]
    FdtTooLarge {
        /// Its size.
        fdt: u64,
    },
}

/// Finds a place for everything in `ram`.
pub fn place(ram: Window, needs: Needs) -> Result<Placement, PlaceError> {
    if needs.fdt > MAX_FDT {
        return Err(PlaceError::FdtTooLarge { fdt: needs.fdt });
    }
    let absurd = PlaceError::Absurd { text_offset: needs.text_offset, kernel: needs.kernel };
    let tight = lay_out(ram.base, needs, FDT_TIGHT_ALIGN).ok_or(absurd)?;
    check_initrd_window(&tight)?;
    let ram_end = ram.base.checked_add(ram.size).ok_or(absurd)?;
    match lay_out(ram.base, needs, FDT_ALIGN) {
        Some(roomy) if roomy.fdt.end() <= ram_end => Ok(roomy),
        _ if tight.fdt.end() <= ram_end => Ok(tight),
        _ => {
            let enough = align_up(tight.fdt.end() - ram.base, STEP).ok_or(absurd)?;
            Err(PlaceError::DoesNotFit { needs, ram: ram.size, enough })
        }
    }
}

/// Puts one thing behind the other from `base` on, as if RAM had no end. `None` if addresses have one.
fn lay_out(base: u64, needs: Needs, fdt_align: u64) -> Option<Placement> {
    let kernel = window_at(align_up(base, KERNEL_ALIGN)?.checked_add(needs.text_offset)?, needs.kernel)?;
    let initrd = match needs.initrd {
        Some(size) => Some(window_at(align_up(kernel.end(), INITRD_ALIGN)?, size)?),
        None => None,
    };
    let fdt = window_at(align_up(initrd.unwrap_or(kernel).end(), fdt_align)?, needs.fdt)?;
    Some(Placement { kernel, initrd, fdt })
}

fn check_initrd_window(placement: &Placement) -> Result<(), PlaceError> {
    let Some(initrd) = placement.initrd else { return Ok(()) };
    let start = placement.kernel.base / INITRD_WINDOW_ALIGN * INITRD_WINDOW_ALIGN;
    let end = start.saturating_add(INITRD_WINDOW);
    if initrd.end() > end {
        let most = end.saturating_sub(initrd.base);
        return Err(PlaceError::InitrdOutOfReach { initrd: initrd.size, most });
    }
    Ok(())
}

/// The window, if it does not wrap around.
fn window_at(base: u64, size: u64) -> Option<Window> {
    base.checked_add(size).map(|_| Window::new(base, size))
}

fn align_up(value: u64, align: u64) -> Option<u64> {
    value.checked_next_multiple_of(align)
}

fn what_does_not_fit(needs: &Needs) -> String {
    match needs.initrd {
        Some(initrd) => format!(
            "an initrd of {} does not fit beside a kernel of {} (with its BSS)",
            Size(initrd),
            Size(needs.kernel)
        ),
        None => format!("a kernel of {} (with its BSS) does not fit", Size(needs.kernel)),
    }
}

/// A number of bytes, for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        match self.0 {
            bytes if bytes < KIB => write!(f, "{bytes} bytes"),
            bytes if bytes % MIB == 0 => write!(f, "{} MiB", bytes / MIB),
            // Rounded up, so that a thing never looks as if it did fit.
            bytes if bytes < MIB => write!(f, "{} KiB", bytes.div_ceil(KIB)),
            bytes => {
                let tenths = u128::from(bytes).saturating_mul(10).div_ceil(u128::from(MIB));
                write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const BASE: u64 = 0x4000_0000;

    fn ram(size: u64) -> Window {
        Window::new(BASE, size)
    }

    fn needs(kernel: u64, initrd: Option<u64>) -> Needs {
        Needs { text_offset: 0, kernel, initrd, fdt: 8000 }
    }

    #[test]
    fn kernel_lies_text_offset_behind_ram_base() {
        let placement = place(ram(GIB), Needs { text_offset: 0x8_0000, ..needs(10 * MIB, None) }).unwrap();
        assert_eq!(placement.kernel, Window::new(BASE + 0x8_0000, 10 * MIB));
    }

    #[test]
    fn kernel_base_is_rounded_up_to_2_mib() {
        let placement = place(Window::new(BASE + 0x1000, GIB), needs(MIB, None)).unwrap();
        assert_eq!(placement.kernel.base, BASE + 2 * MIB);
    }

    #[test]
    fn initrd_lies_behind_the_bss_on_a_64_kib_page() {
        let placement = place(ram(GIB), needs(0x12_3456, Some(5 * MIB))).unwrap();
        assert_eq!(placement.initrd, Some(Window::new(BASE + 0x13_0000, 5 * MIB)));
    }

    #[test]
    fn fdt_lies_on_a_2_mib_block_of_its_own_if_there_is_room() {
        let placement = place(ram(GIB), needs(3 * MIB, Some(5 * MIB))).unwrap();
        assert_eq!(placement.fdt, Window::new(BASE + 8 * MIB, 8000));
    }

    #[test]
    fn fdt_moves_closer_when_memory_is_short() {
        let placement = place(ram(8 * MIB), needs(3 * MIB, Some(4 * MIB + 1))).unwrap();
        assert_eq!(placement.fdt.base, BASE + 7 * MIB + 0x1000);
    }

    #[test]
    fn initrd_that_does_not_fit_names_sizes_and_enough_memory() {
        let error = place(ram(128 * MIB), needs(33_619_968, Some(120 * MIB))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an initrd of 120 MiB does not fit beside a kernel of 32.1 MiB (with its BSS) in 128 MiB of memory; \
             153 MiB or more would do"
        );
    }

    #[test]
    fn kernel_that_does_not_fit_names_sizes_and_enough_memory() {
        let error = place(ram(16 * MIB), needs(32 * MIB, None)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a kernel of 32 MiB (with its BSS) does not fit in 16 MiB of memory; 33 MiB or more would do"
        );
    }

    #[test]
    fn initrd_beyond_the_32_gib_window_is_refused_though_memory_would_do() {
        let error = place(ram(64 * GIB), needs(32 * MIB, Some(32 * GIB))).unwrap_err();
        assert_eq!(error, PlaceError::InitrdOutOfReach { initrd: 32 * GIB, most: 32 * GIB - 32 * MIB });
    }

    #[test]
    fn largest_initrd_of_the_32_gib_window_is_accepted() {
        let placement = place(ram(64 * GIB), needs(32 * MIB, Some(32 * GIB - 32 * MIB))).unwrap();
        assert_eq!(placement.initrd.unwrap().end(), BASE + 32 * GIB);
    }

    #[test]
    fn window_begins_at_the_gib_below_the_kernel() {
        let high = Window::new(BASE + 512 * MIB, 64 * GIB);
        let error = place(high, needs(32 * MIB, Some(32 * GIB - 32 * MIB))).unwrap_err();
        assert_eq!(
            error,
            PlaceError::InitrdOutOfReach { initrd: 32 * GIB - 32 * MIB, most: 32 * GIB - 544 * MIB }
        );
    }

    #[test]
    fn nonsense_in_the_header_is_damage_not_an_overflow() {
        let absurd = Needs { text_offset: u64::MAX - 5, ..needs(u64::MAX, None) };
        assert!(matches!(place(ram(GIB), absurd), Err(PlaceError::Absurd { .. })));
    }

    #[test]
    fn fdt_above_2_mib_is_refused() {
        let large = Needs { fdt: MAX_FDT + 1, ..needs(MIB, None) };
        assert_eq!(place(ram(GIB), large), Err(PlaceError::FdtTooLarge { fdt: MAX_FDT + 1 }));
    }

    proptest! {
        #[test]
        fn placed_windows_obey_every_rule(
            base in 0u64..0x1_0000_0000, size in 0u64..(40 * GIB), text_offset in 0u64..(4 * MIB),
            kernel in 1u64..(256 * MIB), initrd in proptest::option::of(1u64..(36 * GIB)), fdt in 1u64..=MAX_FDT,
        ) {
            let ram = Window::new(base, size);
            if let Ok(placement) = place(ram, Needs { text_offset, kernel, initrd, fdt }) {
                let mut windows = vec![placement.kernel, placement.fdt];
                windows.extend(placement.initrd);
                for (i, a) in windows.iter().enumerate() {
                    prop_assert!(a.base >= ram.base && a.end() <= ram.end(), "{a:x?} outside {ram:x?}");
                    for b in &windows[i + 1..] {
                        prop_assert!(!a.overlaps(*b), "{a:x?} overlaps {b:x?}");
                    }
                }
                prop_assert_eq!((placement.kernel.base - text_offset) % KERNEL_ALIGN, 0);
                prop_assert_eq!(placement.fdt.base % 8, 0);
                if let Some(initrd) = placement.initrd {
                    prop_assert_eq!(initrd.base % INITRD_ALIGN, 0);
                    let start = placement.kernel.base >> 30 << 30;
                    prop_assert!(initrd.end() <= start + INITRD_WINDOW);
                }
            }
        }

        #[test]
        fn recommended_memory_is_enough_and_one_mib_less_is_not(
            size in 0u64..(64 * MIB), kernel in 1u64..(256 * MIB), initrd in proptest::option::of(1u64..GIB),
            text_offset in 0u64..MIB,
        ) {
            let needs = Needs { text_offset, ..needs(kernel, initrd) };
            if let Err(PlaceError::DoesNotFit { enough, .. }) = place(ram(size), needs) {
                prop_assert!(place(ram(enough), needs).is_ok());
                prop_assert!(place(ram(enough - MIB), needs).is_err());
            }
        }
    }
}
