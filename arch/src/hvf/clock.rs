//! The guest's counter in terms of the host's clock. Arithmetic only; who reads the clock is `ffi`.
//!
//! CNTVCT is `mach_absolute_time - offset`, in ticks of CNTFRQ. On most Macs a tick of the one is a tick of the other (24 MHz);
//! on newer ones, for programs linked against the macOS 15 SDK or later, CNTFRQ is 1 GHz while `mach_absolute_time` still
//! ticks at 24 MHz. In which of the two units the framework then takes the offset is not documented; taken here is
//! `mach_absolute_time`'s, as its documentation has it. Were that wrong, WFI would sleep too long or too short on those Macs,
//! with our own interrupt controller only: the host's sleeps by itself.
//!
//! `mach_absolute_time` stands still while the Mac sleeps, and so does the guest's counter: nothing in the guest times out
//! because a lid was closed. Its wall clock comes from the PL031, which is always right.

/// 24 MHz: what CNTFRQ is where the host does not say.
pub const USUAL_FREQUENCY: u64 = 24_000_000;

const NS_PER_S: u128 = 1_000_000_000;

/// The units of the host's clock and of the guest's counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds in a tick of the host's clock: numerator.
    numer: u32,
    /// Denominator of the same.
    denom: u32,
    /// CNTFRQ in Hz.
    frequency: u64,
}

impl Clock {
    /// A host clock with ticks of `numer / denom` nanoseconds (`mach_timebase_info`) and a guest counter of `frequency` Hz.
    /// A zero is no answer of the host's and is replaced by what is usual.
    pub fn new(numer: u32, denom: u32, frequency: u64) -> Self {
        let (numer, denom) = if numer == 0 || denom == 0 { (125, 3) } else { (numer, denom) };
        let frequency = if frequency == 0 { USUAL_FREQUENCY } else { frequency };
        Clock { numer, denom, frequency }
    }

    /// CNTFRQ in Hz.
    pub fn frequency(self) -> u64 {
        self.frequency
    }

    /// Host ticks as ticks of the guest's counter, modulo 2^64.
    pub fn guest_ticks(self, host: u64) -> u64 {
        let ns = u128::from(host) * u128::from(self.numer) / u128::from(self.denom);
        let rest = u128::from(host) * u128::from(self.numer) % u128::from(self.denom);
        let denom = u128::from(self.denom);
        // ns has at most 96 bits and the frequency 64; split, so that no product overflows and no fraction is lost.
        let frequency = u128::from(self.frequency);
        let (seconds, ns) = (ns / NS_PER_S, ns % NS_PER_S);
        let fraction = (ns * denom + rest) * frequency / (NS_PER_S * denom);
        seconds.wrapping_mul(frequency).wrapping_add(fraction) as u64
    }

    /// Ticks of the guest's counter as host ticks, rounded down, modulo 2^64.
    pub fn host_ticks(self, guest: u64) -> u64 {
        let frequency = u128::from(self.frequency);
        let (seconds, rest) = (u128::from(guest) / frequency, u128::from(guest) % frequency);
        let (numer, denom) = (u128::from(self.numer), u128::from(self.denom));
        // rest / frequency is less than a second, so that everything stays below 2^96.
        let ns_denom = (seconds * NS_PER_S + rest * NS_PER_S / frequency) * denom
            + (rest * NS_PER_S % frequency) * denom / frequency;
        (ns_denom / numer) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most Macs: both tick at 24 MHz.
    const SLOW: Clock = Clock { numer: 125, denom: 3, frequency: 24_000_000 };
    /// Newer ones.
    const FAST: Clock = Clock { numer: 125, denom: 3, frequency: 1_000_000_000 };

    #[test]
    fn at_24_mhz_the_two_units_are_the_same() {
        for ticks in [0, 1, 2, 3, 23_999_999, 24_000_001, u64::MAX / 3, u64::MAX] {
            assert_eq!(SLOW.guest_ticks(ticks), ticks);
            assert_eq!(SLOW.host_ticks(ticks), ticks);
        }
    }

    #[test]
    fn at_1_ghz_three_host_ticks_are_125_guest_ticks() {
        assert_eq!(FAST.guest_ticks(3), 125);
        assert_eq!(FAST.guest_ticks(1), 41);
        assert_eq!(FAST.host_ticks(125), 3);
        assert_eq!(FAST.host_ticks(124), 2);
    }

    #[test]
    fn a_day_at_1_ghz_is_exact() {
        let day = 86_400;
        assert_eq!(FAST.guest_ticks(day * 24_000_000), day * 1_000_000_000);
        assert_eq!(FAST.host_ticks(day * 1_000_000_000), day * 24_000_000);
    }

    #[test]
    fn converting_there_and_back_loses_less_than_a_host_tick() {
        for guest in [1, 41, 42, 1_000_000_007, 0x0123_4567_89ab_cdef] {
            let back = FAST.guest_ticks(FAST.host_ticks(guest));
            assert!(back <= guest && guest - back <= 42, "{guest} came back as {back}");
        }
    }

    #[test]
    fn a_host_that_does_not_say_has_the_usual_clock() {
        assert_eq!(Clock::new(0, 0, 0), SLOW);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let widest = Clock::new(u32::MAX, 1, u64::MAX);
        let _ = (widest.guest_ticks(u64::MAX), widest.host_ticks(u64::MAX));
        let narrowest = Clock::new(1, u32::MAX, 1);
        let _ = (narrowest.guest_ticks(u64::MAX), narrowest.host_ticks(u64::MAX));
    }
}
