//! Accesses to guest memory on the host's side: the only place where guest data is read or written through raw pointers.
//!
//! Guest CPUs share their memory without locks, as hardware CPUs do. Aligned accesses are host atomics (relaxed: the guest's
//! own barriers order them); unaligned ones may tear, as the architecture allows.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Reads 1 << `LOG2` bytes, zero-extended.
///
/// # Safety
/// `host` must point at that many mapped, readable bytes of guest memory.
#[inline(always)]
pub(crate) unsafe fn read<const LOG2: u8>(host: u64) -> u64 {
    let aligned = host & ((1 << LOG2) - 1) == 0;
    // SAFETY: the caller's promise; the atomic types are used at their alignment only.
    unsafe {
        match (LOG2, aligned) {
            (0, _) => u64::from(AtomicU8::from_ptr(host as *mut u8).load(Ordering::Relaxed)),
            (1, true) => u64::from(AtomicU16::from_ptr(host as *mut u16).load(Ordering::Relaxed)),
            (2, true) => u64::from(AtomicU32::from_ptr(host as *mut u32).load(Ordering::Relaxed)),
            (3, true) => AtomicU64::from_ptr(host as *mut u64).load(Ordering::Relaxed),
            (1, false) => u64::from((host as *const u16).read_unaligned()),
            (2, false) => u64::from((host as *const u32).read_unaligned()),
            _ => (host as *const u64).read_unaligned(),
        }
    }
}

/// Writes the low 1 << `LOG2` bytes of `value`.
///
/// # Safety
/// `host` must point at that many mapped, writable bytes of guest memory.
#[inline(always)]
pub(crate) unsafe fn write<const LOG2: u8>(host: u64, value: u64) {
    let aligned = host & ((1 << LOG2) - 1) == 0;
    // SAFETY: the caller's promise; the atomic types are used at their alignment only.
    unsafe {
        match (LOG2, aligned) {
            (0, _) => AtomicU8::from_ptr(host as *mut u8).store(value as u8, Ordering::Relaxed),
            (1, true) => AtomicU16::from_ptr(host as *mut u16).store(value as u16, Ordering::Relaxed),
            (2, true) => AtomicU32::from_ptr(host as *mut u32).store(value as u32, Ordering::Relaxed),
            (3, true) => AtomicU64::from_ptr(host as *mut u64).store(value, Ordering::Relaxed),
            (1, false) => (host as *mut u16).write_unaligned(value as u16),
            (2, false) => (host as *mut u32).write_unaligned(value as u32),
            _ => (host as *mut u64).write_unaligned(value),
        }
    }
}

/// [`read`] with the size as a value.
///
/// # Safety
/// As [`read`].
pub(crate) unsafe fn read_sized(host: u64, log2: u8) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match log2 {
            0 => read::<0>(host),
            1 => read::<1>(host),
            2 => read::<2>(host),
            _ => read::<3>(host),
        }
    }
}

/// [`write`](fn@write) with the size as a value.
///
/// # Safety
/// As [`write`](fn@write).
pub(crate) unsafe fn write_sized(host: u64, log2: u8, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        match log2 {
            0 => write::<0>(host, value),
            1 => write::<1>(host, value),
            2 => write::<2>(host, value),
            _ => write::<3>(host, value),
        }
    }
}

/// Compares and swaps 16 bytes; returns what was there. Sequentially consistent, and atomic with respect to accesses of
/// every size, as far as the host's hardware has it so.
///
/// # Safety
/// `host` must point at 16 mapped, writable, 16-aligned bytes of guest memory.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn compare_exchange_16(host: u64, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller's promise. Every x86-64 CPU of the last twenty years has CMPXCHG16B. RBX is reserved by the
    // compiler, hence the exchange around the instruction.
    unsafe {
        std::arch::asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{host}]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            host = in(reg) host,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// Compares and swaps 16 bytes; returns what was there. Sequentially consistent.
///
/// # Safety
/// `host` must point at 16 mapped, writable, 16-aligned bytes of guest memory.
#[cfg(target_arch = "aarch64")]
pub(crate) unsafe fn compare_exchange_16(host: u64, expected: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller's promise. On a mismatch the old value is stored back, so that the pair was read atomically.
    unsafe {
        std::arch::asm!(
            "2:",
            "ldaxp {low}, {high}, [{host}]",
            "cmp {low}, {expected_low}",
            "ccmp {high}, {expected_high}, #0, eq",
            "csel {store_low}, {new_low}, {low}, eq",
            "csel {store_high}, {new_high}, {high}, eq",
            "stlxp {status:w}, {store_low}, {store_high}, [{host}]",
            "cbnz {status:w}, 2b",
            "dmb ish",
            low = out(reg) low,
            high = out(reg) high,
            store_low = out(reg) _,
            store_high = out(reg) _,
            status = out(reg) _,
            host = in(reg) host,
            expected_low = in(reg) expected as u64,
            expected_high = in(reg) (expected >> 64) as u64,
            new_low = in(reg) new as u64,
            new_high = in(reg) (new >> 64) as u64,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(16))]
    struct Aligned(u128);

    #[test]
    fn sixteen_byte_swap_happens_only_on_a_match() {
        let mut cell = Aligned(5 << 64 | 7);
        let host = &raw mut cell.0 as u64;
        // SAFETY: the cell is ours and aligned.
        let (seen_miss, seen_hit) =
            unsafe { (compare_exchange_16(host, 1, 2), compare_exchange_16(host, 5 << 64 | 7, 9 << 64 | 3)) };
        assert_eq!((seen_miss, seen_hit, cell.0), (5 << 64 | 7, 5 << 64 | 7, 9 << 64 | 3));
    }
}
