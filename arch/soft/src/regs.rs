//! The register file that instructions work on: general registers, flags, FP and SIMD. No system registers.

/// Index in [`Regs::x`] that always reads as zero (XZR as a source).
pub const ZR: usize = 31;
/// Index in [`Regs::x`] of the current stack pointer.
pub const SP: usize = 32;
/// Index in [`Regs::x`] that takes results nobody wants (XZR as a destination).
pub const SINK: usize = 33;

/// The condition flags, each in the form in which it is cheapest to produce.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Flags {
    /// N is the sign bit of this.
    pub n: u64,
    /// Z is set if this is zero.
    pub z: u64,
    /// C: 0 or 1.
    pub c: u64,
    /// V is the sign bit of this.
    pub v: u64,
}

impl Flags {
    /// The flags in PSTATE position: N, Z, C, V at bits 31 to 28, everything else zero.
    #[inline]
    pub fn nzcv(&self) -> u32 {
        ((self.n >> 63) as u32) << 31
            | u32::from(self.z == 0) << 30
            | (self.c as u32) << 29
            | ((self.v >> 63) as u32) << 28
    }

    /// Sets all four from PSTATE position.
    #[inline]
    pub fn set_nzcv(&mut self, nzcv: u32) {
        self.n = u64::from(nzcv >> 31) << 63;
        self.z = u64::from(nzcv & (1 << 30) == 0);
        self.c = u64::from(nzcv >> 29 & 1);
        self.v = u64::from(nzcv >> 28 & 1) << 63;
    }

    /// Whether condition `cond` (0 EQ to 15 NV) holds (Arm ARM, ConditionHolds).
    #[inline]
    pub fn holds(&self, cond: u8) -> bool {
        let base = match cond >> 1 {
            0 => self.z == 0,
            1 => self.c != 0,
            2 => (self.n as i64) < 0,
            3 => (self.v as i64) < 0,
            4 => self.c != 0 && self.z != 0,
            5 => ((self.n ^ self.v) as i64) >= 0,
            6 => self.z != 0 && ((self.n ^ self.v) as i64) >= 0,
            _ => return true,
        };
        base != (cond & 1 == 1)
    }
}

/// General registers, flags, FP and SIMD registers of one CPU.
#[derive(Debug, Clone)]
#[repr(C, align(16))]
pub struct Regs {
    /// X0 to X30, then [`ZR`], [`SP`] and [`SINK`]. Nothing may write index [`ZR`]. As long as a `u8` can count, so that
    /// the interpreter's register numbers need no bounds check; the tail is never touched.
    pub x: [u64; 256],
    /// N, Z, C and V.
    pub flags: Flags,
    /// V0 to V31, lane 0 in the least significant bits.
    pub q: [u128; 32],
    /// Floating-point control register.
    pub fpcr: u32,
    /// Floating-point status register.
    pub fpsr: u32,
}

impl Default for Regs {
    fn default() -> Self {
        let mut regs = Regs { x: [0; 256], flags: Flags::default(), q: [0; 32], fpcr: 0, fpsr: 0 };
        regs.flags.set_nzcv(0);
        regs
    }
}

impl Regs {
    /// Xn, where 31 is XZR.
    #[inline]
    pub fn read_x(&self, n: u8) -> u64 {
        self.x[usize::from(n & 31)]
    }

    /// Sets Xn, where 31 is XZR (the value is dropped).
    #[inline]
    pub fn write_x(&mut self, n: u8, value: u64) {
        self.x[if n & 31 == 31 { SINK } else { usize::from(n & 31) }] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nzcv_value_survives_a_round_trip() {
        for nzcv in (0..16).map(|n: u32| n << 28) {
            let mut flags = Flags::default();
            flags.set_nzcv(nzcv);
            assert_eq!(flags.nzcv(), nzcv);
        }
    }
}
