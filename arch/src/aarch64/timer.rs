//! The generic timer: conversions between counter ticks and time, the condition of the virtual timer and the emulated
//! physical timer (Arm ARM D12). Pure state and arithmetic; who sleeps and who is interrupted is `trap_vcpu`'s business.

use std::time::Duration;

use super::layout::TIMER_PPIS;

/// INTID of the non-secure EL1 physical timer (PPI 14, INTID 30).
pub const PHYSICAL_TIMER_INTID: u32 = TIMER_PPIS[1] + 16;
/// INTID of the virtual timer (PPI 11, INTID 27).
pub const VIRTUAL_TIMER_INTID: u32 = TIMER_PPIS[2] + 16;

/// CNTx_CTL bit 0: the timer is enabled.
pub const CTL_ENABLE: u64 = 1 << 0;
/// CNTx_CTL bit 1: the timer's interrupt is masked.
pub const CTL_IMASK: u64 = 1 << 1;
/// CNTx_CTL bit 2: the timer's condition is met (read-only).
pub const CTL_ISTATUS: u64 = 1 << 2;

/// The longest sleep in one go: keeps host clock arithmetic far from its limits.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 60 * 60);

const NS_PER_S: u128 = 1_000_000_000;

/// Nanoseconds in `ticks` of a counter of `frequency` Hz, rounded up so that a sleeper never wakes too early.
pub fn ticks_to_ns(ticks: u64, frequency: u64) -> u128 {
    (u128::from(ticks) * NS_PER_S).div_ceil(u128::from(frequency.max(1)))
}

/// Whole ticks of a counter of `frequency` Hz in `ns` nanoseconds, modulo 2^64 as the counter itself.
pub fn ns_to_ticks(ns: u64, frequency: u64) -> u64 {
    (u128::from(ns) * u128::from(frequency) / NS_PER_S) as u64
}

/// How long to sleep for `ticks`, at most [`LONGEST_SLEEP`].
pub fn ticks_to_sleep(ticks: u64, frequency: u64) -> Duration {
    match u64::try_from(ticks_to_ns(ticks, frequency)) {
        Ok(ns) => Duration::from_nanos(ns).min(LONGEST_SLEEP),
        Err(_) => LONGEST_SLEEP,
    }
}

/// Whether the timer asserts its interrupt: (ENABLE, IMASK, ISTATUS) is (1, 0, 1).
pub fn asserts(ctl: u64) -> bool {
    ctl & (CTL_ENABLE | CTL_IMASK | CTL_ISTATUS) == CTL_ENABLE | CTL_ISTATUS
}

/// Ticks until a timer with this control and compare value asserts its interrupt: 0 if it is due, `None` if it is off or masked.
pub fn ticks_until(ctl: u64, cval: u64, now: u64) -> Option<u64> {
    (ctl & (CTL_ENABLE | CTL_IMASK) == CTL_ENABLE).then(|| cval.saturating_sub(now))
}

/// The EL1 physical timer (CNTP) of one CPU, against a counter that the caller reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PhysicalTimer {
    ctl: u64,
    cval: u64,
}

impl PhysicalTimer {
    /// CNTP_CTL_EL0 with ISTATUS as of counter value `now`.
    pub fn ctl(&self, now: u64) -> u64 {
        let met = self.ctl & CTL_ENABLE != 0 && now >= self.cval;
        self.ctl | if met { CTL_ISTATUS } else { 0 }
    }

    /// Writes CNTP_CTL_EL0; ISTATUS is read-only.
    pub fn set_ctl(&mut self, value: u64) {
        self.ctl = value & (CTL_ENABLE | CTL_IMASK);
    }

    /// CNTP_CVAL_EL0.
    pub fn cval(&self) -> u64 {
        self.cval
    }

    /// Writes CNTP_CVAL_EL0.
    pub fn set_cval(&mut self, value: u64) {
        self.cval = value;
    }

    /// CNTP_TVAL_EL0: the low 32 bits of what is left.
    pub fn tval(&self, now: u64) -> u64 {
        u64::from(self.cval.wrapping_sub(now) as u32)
    }

    /// Writes CNTP_TVAL_EL0: a signed 32-bit distance from now.
    pub fn set_tval(&mut self, value: u64, now: u64) {
        self.cval = now.wrapping_add(value as u32 as i32 as u64);
    }

    /// Level of the timer's interrupt.
    pub fn level(&self, now: u64) -> bool {
        asserts(self.ctl(now))
    }

    /// Ticks until the interrupt is asserted: 0 if it is, `None` if it never will be.
    pub fn ticks_until(&self, now: u64) -> Option<u64> {
        ticks_until(self.ctl, self.cval, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intids_are_the_architecture_s() {
        assert_eq!(VIRTUAL_TIMER_INTID, 27);
        assert_eq!(PHYSICAL_TIMER_INTID, 30);
    }

    #[test]
    fn a_second_is_exact_at_24_mhz() {
        assert_eq!(ticks_to_ns(24_000_000, 24_000_000), 1_000_000_000);
    }

    #[test]
    fn three_ticks_at_24_mhz_are_125_ns() {
        assert_eq!(ticks_to_ns(3, 24_000_000), 125);
    }

    #[test]
    fn one_tick_at_24_mhz_is_rounded_up() {
        assert_eq!(ticks_to_ns(1, 24_000_000), 42);
    }

    #[test]
    fn ticks_at_62_5_mhz_are_16_ns() {
        assert_eq!(ticks_to_ns(1, 62_500_000), 16);
        assert_eq!(ticks_to_ns(62_500_000, 62_500_000), 1_000_000_000);
    }

    #[test]
    fn ticks_at_1_ghz_are_nanoseconds() {
        assert_eq!(ticks_to_ns(123_456_789, 1_000_000_000), 123_456_789);
    }

    #[test]
    fn the_largest_tick_count_does_not_overflow() {
        assert_eq!(ticks_to_ns(u64::MAX, 24_000_000), 768_614_336_404_564_650_625);
    }

    #[test]
    fn nanoseconds_become_whole_ticks() {
        assert_eq!(ns_to_ticks(1_000_000_000, 24_000_000), 24_000_000);
        assert_eq!(ns_to_ticks(41, 24_000_000), 0);
        assert_eq!(ns_to_ticks(42, 24_000_000), 1);
        assert_eq!(ns_to_ticks(160, 62_500_000), 10);
        assert_eq!(ns_to_ticks(7, 1_000_000_000), 7);
    }

    #[test]
    fn ticks_survive_the_way_there_and_back() {
        for frequency in [24_000_000, 62_500_000, 1_000_000_000] {
            for ticks in [0, 1, 2, 3, 1_000_003, 86_400 * frequency + 1] {
                let ns = ticks_to_ns(ticks, frequency) as u64;
                assert_eq!(ns_to_ticks(ns, frequency), ticks, "{ticks} at {frequency} Hz");
            }
        }
    }

    #[test]
    fn a_zero_frequency_does_not_divide_by_zero() {
        assert_eq!(ticks_to_ns(2, 0), 2_000_000_000);
    }

    #[test]
    fn sleeps_are_capped() {
        assert_eq!(ticks_to_sleep(u64::MAX, 24_000_000), LONGEST_SLEEP);
        assert_eq!(ticks_to_sleep(24, 24_000_000), Duration::from_micros(1));
    }

    #[test]
    fn only_enabled_unmasked_and_met_asserts() {
        let asserting: Vec<u64> = (0..8).filter(|ctl| asserts(*ctl)).collect();
        assert_eq!(asserting, [CTL_ENABLE | CTL_ISTATUS]);
    }

    #[test]
    fn a_timer_that_is_off_or_masked_has_no_deadline() {
        assert_eq!(ticks_until(0, 100, 50), None);
        assert_eq!(ticks_until(CTL_ENABLE | CTL_IMASK, 100, 50), None);
        assert_eq!(ticks_until(CTL_ENABLE, 100, 50), Some(50));
        assert_eq!(ticks_until(CTL_ENABLE, 100, 150), Some(0));
    }

    #[test]
    fn istatus_follows_the_counter() {
        let mut timer = PhysicalTimer::default();
        timer.set_cval(100);
        timer.set_ctl(CTL_ENABLE);
        assert_eq!(timer.ctl(99), CTL_ENABLE);
        assert_eq!(timer.ctl(100), CTL_ENABLE | CTL_ISTATUS);
    }

    #[test]
    fn istatus_cannot_be_written() {
        let mut timer = PhysicalTimer::default();
        timer.set_cval(100);
        timer.set_ctl(CTL_ENABLE | CTL_ISTATUS);
        assert_eq!(timer.ctl(0), CTL_ENABLE);
    }

    #[test]
    fn tval_is_relative_and_signed() {
        let mut timer = PhysicalTimer::default();
        timer.set_tval(50, 1000);
        assert_eq!(timer.cval(), 1050);
        assert_eq!(timer.tval(1020), 30);
        timer.set_tval(0xffff_ffff, 1000);
        assert_eq!(timer.cval(), 999);
        assert_eq!(timer.tval(1000), 0xffff_ffff);
    }

    #[test]
    fn imask_holds_the_level_down() {
        let mut timer = PhysicalTimer::default();
        timer.set_ctl(CTL_ENABLE);
        assert!(timer.level(1));
        timer.set_ctl(CTL_ENABLE | CTL_IMASK);
        assert!(!timer.level(1));
    }
}
