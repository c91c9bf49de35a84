//! Vector registers seen as lanes, and the loops that every lane-wise instruction shares. No instruction is known here.
//!
//! Results are stored lane by lane into the register file rather than built up in a `u128`: that is the form that the
//! compiler turns into single vector instructions of the host.

use crate::regs::Regs;

/// FPSR.QC, the cumulative saturation bit (Arm ARM C5.2.9).
pub(super) const FPSR_QC: u32 = 1 << 27;

/// A lane type, of which `N` fill a vector register. Lane 0 is in the least significant bits, which is why hosts are
/// little-endian.
pub(super) trait Lane<const N: usize>: Copy + Default {
    /// The lanes of a register.
    fn view(q: &u128) -> &[Self; N];
    /// The lanes of a register, to be changed.
    fn view_mut(q: &mut u128) -> &mut [Self; N];
}

macro_rules! impl_lane {
    ($($lane:ty: $count:literal),*) => {$(
        impl Lane<$count> for $lane {
            #[inline(always)]
            fn view(q: &u128) -> &[Self; $count] {
                zerocopy::transmute_ref!(q)
            }
            #[inline(always)]
            fn view_mut(q: &mut u128) -> &mut [Self; $count] {
                zerocopy::transmute_mut!(q)
            }
        }
    )*};
}

impl_lane!(u8: 16, i8: 16, u16: 8, i16: 8, u32: 4, i32: 4, u64: 2, i64: 2);

#[cfg(target_endian = "big")]
compile_error!("lanes are laid out for little-endian hosts");

/// Evaluates the body with the type alias bound to the unsigned lane type of a size.
macro_rules! each_unsigned {
    ($size:expr, $T:ident => $body:expr) => {
        match $size {
            Esize::B => {
                type $T = u8;
                $body
            }
            Esize::H => {
                type $T = u16;
                $body
            }
            Esize::S => {
                type $T = u32;
                $body
            }
            Esize::D => {
                type $T = u64;
                $body
            }
        }
    };
}

/// Evaluates the body with the type alias bound to the signed lane type of a size.
macro_rules! each_signed {
    ($size:expr, $T:ident => $body:expr) => {
        match $size {
            Esize::B => {
                type $T = i8;
                $body
            }
            Esize::H => {
                type $T = i16;
                $body
            }
            Esize::S => {
                type $T = i32;
                $body
            }
            Esize::D => {
                type $T = i64;
                $body
            }
        }
    };
}

/// As `each_unsigned!`, with the type of twice the width as well. `Esize::D`, which has none, does nothing.
macro_rules! each_unsigned_wide {
    ($size:expr, $T:ident, $W:ident => $body:expr) => {
        match $size {
            Esize::B => {
                type $T = u8;
                type $W = u16;
                $body
            }
            Esize::H => {
                type $T = u16;
                type $W = u32;
                $body
            }
            Esize::S => {
                type $T = u32;
                type $W = u64;
                $body
            }
            Esize::D => {}
        }
    };
}

/// As `each_signed!`, with the type of twice the width as well. `Esize::D`, which has none, does nothing.
macro_rules! each_signed_wide {
    ($size:expr, $T:ident, $W:ident => $body:expr) => {
        match $size {
            Esize::B => {
                type $T = i8;
                type $W = i16;
                $body
            }
            Esize::H => {
                type $T = i16;
                type $W = i32;
                $body
            }
            Esize::S => {
                type $T = i32;
                type $W = i64;
                $body
            }
            Esize::D => {}
        }
    };
}

pub(super) use {each_signed, each_signed_wide, each_unsigned, each_unsigned_wide};

/// Vn.
#[inline(always)]
pub(super) fn reg(regs: &Regs, n: u8) -> &u128 {
    &regs.q[usize::from(n & 31)]
}

/// Vn, to be changed.
#[inline(always)]
pub(super) fn reg_mut(regs: &mut Regs, n: u8) -> &mut u128 {
    &mut regs.q[usize::from(n & 31)]
}

/// The second source of an instruction: a register, or one element of it in every lane.
pub(super) trait Operand: Copy {
    /// All lanes.
    fn lanes<T: Lane<N>, const N: usize>(self, regs: &Regs) -> [T; N];
    /// The lower or upper half of the lanes. `M` is half of `N`.
    fn half<T: Lane<N>, const N: usize, const M: usize>(self, regs: &Regs, high: bool) -> [T; M];
}

/// A register as it is.
#[derive(Clone, Copy)]
pub(super) struct Whole(pub u8);

/// One element of a register, repeated.
#[derive(Clone, Copy)]
pub(super) struct Element {
    pub rm: u8,
    pub index: u8,
}

impl Operand for Whole {
    #[inline(always)]
    fn lanes<T: Lane<N>, const N: usize>(self, regs: &Regs) -> [T; N] {
        *T::view(reg(regs, self.0))
    }

    #[inline(always)]
    fn half<T: Lane<N>, const N: usize, const M: usize>(self, regs: &Regs, high: bool) -> [T; M] {
        let (low, upper) = T::view(reg(regs, self.0)).split_at(N / 2);
        let source = if high { upper } else { low };
        let mut half = [T::default(); M];
        for (to, from) in half.iter_mut().zip(source) {
            *to = *from;
        }
        half
    }
}

impl Operand for Element {
    #[inline(always)]
    fn lanes<T: Lane<N>, const N: usize>(self, regs: &Regs) -> [T; N] {
        [T::view(reg(regs, self.rm))[usize::from(self.index) % N]; N]
    }

    #[inline(always)]
    fn half<T: Lane<N>, const N: usize, const M: usize>(self, regs: &Regs, _high: bool) -> [T; M] {
        [T::view(reg(regs, self.rm))[usize::from(self.index) % N]; M]
    }
}

/// Zeroes what lies above the first `bytes` (1, 2, 4, 8 or 16) of Vd: the rest of a 64-bit or scalar result.
#[inline(always)]
pub(super) fn trim(regs: &mut Regs, rd: u8, bytes: u8) {
    if bytes < 16 {
        let lanes = <u64 as Lane<2>>::view_mut(reg_mut(regs, rd));
        lanes[1] = 0;
        if bytes < 8 {
            lanes[0] &= (1 << (8 * u32::from(bytes))) - 1;
        }
    }
}

/// Every lane of Vd from that of Vn.
#[inline(always)]
pub(super) fn map1<T: Lane<N>, const N: usize>(regs: &mut Regs, rd: u8, rn: u8, f: impl Fn(T) -> T) {
    let n = *T::view(reg(regs, rn));
    let d = T::view_mut(reg_mut(regs, rd));
    for i in 0..N {
        d[i] = f(n[i]);
    }
}

/// Every lane of Vd from those of Vn and Vm.
#[inline(always)]
pub(super) fn map2<T: Lane<N>, const N: usize>(
    regs: &mut Regs,
    rd: u8,
    rn: u8,
    m: impl Operand,
    f: impl Fn(T, T) -> T,
) {
    let n = *T::view(reg(regs, rn));
    let m = m.lanes(regs);
    let d = T::view_mut(reg_mut(regs, rd));
    for i in 0..N {
        d[i] = f(n[i], m[i]);
    }
}

/// Every lane of Vd from those of Vd, Vn and Vm.
#[inline(always)]
pub(super) fn map3<T: Lane<N>, const N: usize>(
    regs: &mut Regs,
    rd: u8,
    rn: u8,
    m: impl Operand,
    f: impl Fn(T, T, T) -> T,
) {
    let n = *T::view(reg(regs, rn));
    let m = m.lanes(regs);
    let d = T::view_mut(reg_mut(regs, rd));
    for i in 0..N {
        d[i] = f(d[i], n[i], m[i]);
    }
}

/// The first `bytes` of Vd, lane by lane, from those of Vd, Vn and Vm; the rest becomes zero. Where `f` sets its last argument,
/// FPSR.QC is set: unused lanes must therefore not be computed.
#[inline(always)]
pub(super) fn saturating<T: Lane<N>, const N: usize>(
    regs: &mut Regs,
    bytes: u8,
    rd: u8,
    rn: u8,
    m: impl Operand,
    f: impl Fn(T, T, T, &mut bool) -> T,
) {
    let n = *T::view(reg(regs, rn));
    let m: [T; N] = m.lanes(regs);
    let old = *T::view(reg(regs, rd));
    let mut saturated = false;
    let d = T::view_mut(reg_mut(regs, rd));
    for i in 0..N {
        d[i] = if i * size_of::<T>() < usize::from(bytes) {
            f(old[i], n[i], m[i], &mut saturated)
        } else {
            T::default()
        };
    }
    if saturated {
        regs.fpsr |= FPSR_QC;
    }
}

/// Which half of the narrow operand a widening or narrowing instruction works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The lower half; a narrow result zeroes the upper one.
    Low,
    /// The upper half (the "2" forms); a narrow result keeps the lower one.
    High,
    /// Only lane 0; the rest of the result is zero.
    Scalar,
}

/// Every lane of the wide Vd from its old value and the lanes of a half of Vn and Vm.
#[inline(always)]
pub(super) fn lengthen<T: Lane<N>, W: Lane<M>, const N: usize, const M: usize>(
    regs: &mut Regs,
    high: bool,
    rd: u8,
    rn: u8,
    m: impl Operand,
    f: impl Fn(W, T, T) -> W,
) {
    let n: [T; M] = Whole(rn).half(regs, high);
    let m: [T; M] = m.half(regs, high);
    let d = W::view_mut(reg_mut(regs, rd));
    for i in 0..M {
        d[i] = f(d[i], n[i], m[i]);
    }
}

/// As [`lengthen`], for instructions that may saturate and have scalar forms.
#[inline(always)]
pub(super) fn lengthen_saturating<T: Lane<N>, W: Lane<M>, const N: usize, const M: usize>(
    regs: &mut Regs,
    part: Part,
    rd: u8,
    rn: u8,
    m: impl Operand,
    f: impl Fn(W, T, T, &mut bool) -> W,
) {
    let n: [T; M] = Whole(rn).half(regs, part == Part::High);
    let m: [T; M] = m.half(regs, part == Part::High);
    let mut saturated = false;
    let d = W::view_mut(reg_mut(regs, rd));
    for i in 0..M {
        d[i] =
            if i == 0 || part != Part::Scalar { f(d[i], n[i], m[i], &mut saturated) } else { W::default() };
    }
    if saturated {
        regs.fpsr |= FPSR_QC;
    }
}

/// A half of the narrow Vd from the lanes of the wide Vn and Vm.
#[inline(always)]
pub(super) fn narrow<T: Lane<N>, W: Lane<M>, const N: usize, const M: usize>(
    regs: &mut Regs,
    high: bool,
    rd: u8,
    rn: u8,
    rm: u8,
    f: impl Fn(W, W) -> T,
) {
    let n = *W::view(reg(regs, rn));
    let m = *W::view(reg(regs, rm));
    let (low, upper) = T::view_mut(reg_mut(regs, rd)).split_at_mut(N / 2);
    let to = if high { upper } else { low };
    for i in 0..M {
        to[i] = f(n[i], m[i]);
    }
    trim(regs, rd, if high { 16 } else { 8 });
}

/// As [`narrow`] with one source, for instructions that may saturate and have scalar forms.
#[inline(always)]
pub(super) fn narrow_saturating<T: Lane<N>, W: Lane<M>, const N: usize, const M: usize>(
    regs: &mut Regs,
    part: Part,
    rd: u8,
    rn: u8,
    f: impl Fn(W, &mut bool) -> T,
) {
    let n = *W::view(reg(regs, rn));
    let mut saturated = false;
    let (low, upper) = T::view_mut(reg_mut(regs, rd)).split_at_mut(N / 2);
    let to = if part == Part::High { upper } else { low };
    for i in 0..M {
        to[i] = if i == 0 || part != Part::Scalar { f(n[i], &mut saturated) } else { T::default() };
    }
    trim(regs, rd, if part == Part::High { 16 } else { 8 });
    if saturated {
        regs.fpsr |= FPSR_QC;
    }
}

/// Two neighbours of Vn, then of Vm, to one lane of Vd each. With `q` clear only the lower halves are read and written.
#[inline(always)]
pub(super) fn pairwise<T: Lane<N>, const N: usize>(
    regs: &mut Regs,
    q: bool,
    rd: u8,
    rn: u8,
    rm: u8,
    f: impl Fn(T, T) -> T,
) {
    let n = *T::view(reg(regs, rn));
    let m = *T::view(reg(regs, rm));
    let d = T::view_mut(reg_mut(regs, rd));
    if q {
        for i in 0..N / 2 {
            d[i] = f(n[2 * i], n[2 * i + 1]);
            d[N / 2 + i] = f(m[2 * i], m[2 * i + 1]);
        }
    } else {
        for i in 0..N / 4 {
            d[i] = f(n[2 * i], n[2 * i + 1]);
            d[N / 4 + i] = f(m[2 * i], m[2 * i + 1]);
        }
        trim(regs, rd, 8);
    }
}

/// Clamps to a lane type's range, noting whether that changed anything.
#[inline(always)]
pub(super) fn clamp(value: i128, min: i128, max: i128, saturated: &mut bool) -> i128 {
    let clamped = value.clamp(min, max);
    *saturated |= clamped != value;
    clamped
}
