//! PL031, the Arm real-time clock (ARM DDI 0224): live wall time of the host, and one alarm.
//!
//! The guest may set the clock; that moves an offset, never the host's time. A thread exists only once an alarm with its
//! interrupt enabled was armed.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::irq::IrqLine;
use crate::primecell::{aligned, get, id_register, put};
use crate::util::lock;

/// RTCDR: data (DDI 0224 3.3.1).
const DR: u64 = 0x00;
/// RTCMR: match (3.3.2).
const MR: u64 = 0x04;
/// RTCLR: load (3.3.3).
const LR: u64 = 0x08;
/// RTCCR: control (3.3.4).
const CR: u64 = 0x0c;
/// RTCIMSC: interrupt mask (3.3.5).
const IMSC: u64 = 0x10;
/// RTCRIS: raw interrupt status (3.3.6).
const RIS: u64 = 0x14;
/// RTCMIS: masked interrupt status (3.3.7).
const MIS: u64 = 0x18;
/// RTCICR: interrupt clear (3.3.8).
const ICR: u64 = 0x1c;
/// PeriphID0 to 3 (3.3.9).
const PERIPH_ID: u32 = 0x0004_1031;

/// The alarm thread looks at the wall clock at least this often: the host's clock may be set, or the host may have slept, and
/// neither ends a wait early.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Where the time comes from: the time since 1970, as the host's wall clock shows it now.
pub type WallClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What a snapshot needs of a PL031.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl031State {
    /// What the guest's clock is ahead of the host's, in seconds modulo 2^32.
    pub offset: u32,
    /// RTCMR.
    pub mr: u32,
    /// RTCLR.
    pub lr: u32,
    /// RTCIMSC.
    pub imsc: bool,
    /// RTCRIS.
    pub ris: bool,
    /// The host's wall time in seconds at which the counter will match RTCMR; `None` when no alarm is set.
    pub alarm: Option<u64>,
}

/// See the module.
pub struct Pl031 {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    irq: IrqLine,
    clock: WallClock,
    core: Mutex<Core>,
    /// The alarm thread waits on it.
    changed: Condvar,
}

#[derive(Default)]
struct Core {
    state: Pl031State,
    stopped: bool,
}

impl Pl031 {
    /// Size of its window.
    pub const SIZE: u64 = 0x1000;

    /// A clock that shows the host's wall time and whose interrupt (RTCINTR, level, high) is `irq`.
    pub fn new(irq: IrqLine) -> Self {
        Pl031::with_clock(irq, Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()))
    }

    /// A clock that shows `clock`.
    pub fn with_clock(irq: IrqLine, clock: WallClock) -> Self {
        let shared = Shared { irq, clock, core: Mutex::default(), changed: Condvar::new() };
        Pl031 { shared: Arc::new(shared), thread: Mutex::new(None) }
    }

    /// Everything that a snapshot needs.
    pub fn save(&self) -> Pl031State {
        lock(&self.shared.core).state.clone()
    }

    /// Puts a saved state back. The clock then shows the present time, not that of the snapshot; an alarm that passed
    /// meanwhile goes off.
    pub fn restore(&self, state: &Pl031State) {
        self.access(|state_now, _| *state_now = state.clone());
        self.shared.irq.force(self.shared.irq.level());
    }

    /// Runs `body` on an up-to-date state, with the host's seconds, then follows up on what it changed.
    fn access<T>(&self, body: impl FnOnce(&mut Pl031State, u64) -> T) -> T {
        let shared = &self.shared;
        let mut core = lock(&shared.core);
        let now = (shared.clock)().as_secs();
        core.state.check_alarm(now);
        let result = body(&mut core.state, now);
        core.state.check_alarm(now);
        shared.irq.set(core.state.interrupt());
        let waits = core.state.waits();
        drop(core);
        if waits {
            self.start_thread();
        }
        shared.changed.notify_one();
        result
    }

    fn start_thread(&self) {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = self.shared.clone();
            match thread::Builder::new().name("rtc-alarm".to_owned()).spawn(move || shared.alarm_loop()) {
                Ok(handle) => *thread = Some(handle),
                // The alarm is still noticed at the guest's next look at the device.
                Err(error) => log::warn!("PL031: no thread for the guest's alarm, it may come late: {error}"),
            }
        }
    }
}

impl Shared {
    /// Raises the interrupt when an alarm comes due, until the device goes away.
    fn alarm_loop(&self) {
        let mut core = lock(&self.core);
        while !core.stopped {
            let now = (self.clock)();
            core.state.check_alarm(now.as_secs());
            self.irq.set(core.state.interrupt());
            core = match core.state.alarm.filter(|_| core.state.waits()) {
                None => self.changed.wait(core).unwrap_or_else(PoisonError::into_inner),
                Some(alarm) => {
                    let left = Duration::from_secs(alarm).saturating_sub(now).min(LOOK_AGAIN);
                    self.changed.wait_timeout(core, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Pl031State {
    /// The counter at the host's wall time `now`.
    fn counter(&self, now: u64) -> u32 {
        (now as u32).wrapping_add(self.offset)
    }

    fn interrupt(&self) -> bool {
        self.ris && self.imsc
    }

    /// Whether an alarm is to interrupt the guest by itself.
    fn waits(&self) -> bool {
        self.imsc && self.alarm.is_some()
    }

    fn check_alarm(&mut self, now: u64) {
        if self.alarm.is_some_and(|alarm| alarm <= now) {
            self.alarm = None;
            self.ris = true;
        }
    }

    /// Finds the moment at which the counter will next equal RTCMR; a match right now counts.
    fn arm(&mut self, now: u64) {
        let ticks = self.mr.wrapping_sub(self.counter(now));
        self.alarm = Some(now.saturating_add(u64::from(ticks)));
    }

    fn read(&self, offset: u64, now: u64) -> u32 {
        match offset {
            DR => self.counter(now),
            MR => self.mr,
            LR => self.lr,
            // The clock always runs; a write cannot stop it (3.3.4).
            CR => 1,
            IMSC => u32::from(self.imsc),
            RIS => u32::from(self.ris),
            MIS => u32::from(self.interrupt()),
            _ => id_register(PERIPH_ID, offset).unwrap_or(0),
        }
    }

    fn write(&mut self, offset: u64, value: u32, now: u64) {
        match offset {
            MR => {
                self.mr = value;
                self.arm(now);
            }
            LR => {
                self.lr = value;
                self.offset = value.wrapping_sub(now as u32);
                // Set while an alarm is pending, the clock reaches it sooner or later than before.
                if self.alarm.is_some() {
                    self.arm(now);
                }
            }
            IMSC => self.imsc = value & 1 != 0,
            ICR if value & 1 != 0 => self.ris = false,
            _ => {}
        }
    }
}

impl MmioDevice for Pl031 {
    fn name(&self) -> &str {
        "PL031"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if aligned(offset) {
            put(data, self.access(|state, now| state.read(offset, now)));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if aligned(offset) {
            self.access(|state, now| state.write(offset, get(data), now));
        }
    }

    fn reset(&self) {
        self.access(|state, _| *state = Pl031State::default());
        self.shared.irq.force(false);
    }
}

impl Drop for Pl031 {
    fn drop(&mut self) {
        lock(&self.shared.core).stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Pl031 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pl031").field("irq", &self.shared.irq).field("state", &self.save()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::irq::fake::FakeChip;

    const NOW: u64 = 1_800_000_000;

    /// A clock at [`NOW`] that the test moves by hand.
    fn rtc() -> (Pl031, Arc<AtomicU64>, Arc<FakeChip>) {
        let (chip, line) = FakeChip::line();
        let seconds = Arc::new(AtomicU64::new(NOW));
        let source = seconds.clone();
        let clock: WallClock = Arc::new(move || Duration::from_secs(source.load(Ordering::SeqCst)));
        (Pl031::with_clock(line, clock), seconds, chip)
    }

    fn read(rtc: &Pl031, offset: u64) -> u32 {
        let mut data = [0; 4];
        MmioDevice::read(rtc, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(rtc: &Pl031, offset: u64, value: u32) {
        MmioDevice::write(rtc, offset, &value.to_le_bytes());
    }

    #[test]
    fn the_counter_follows_the_hosts_wall_time() {
        let (rtc, seconds, _) = rtc();
        assert_eq!(read(&rtc, DR), NOW as u32);
        seconds.fetch_add(3600, Ordering::SeqCst);
        assert_eq!(read(&rtc, DR), NOW as u32 + 3600);
    }

    #[test]
    fn a_clock_of_its_own_shows_the_present() {
        let (_, line) = FakeChip::line();
        let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32;
        assert!(read(&Pl031::new(line), DR).abs_diff(host) <= 1);
    }

    #[test]
    fn loading_sets_the_clock_and_it_runs_on() {
        let (rtc, seconds, _) = rtc();
        write(&rtc, LR, 1000);
        seconds.fetch_add(5, Ordering::SeqCst);
        assert_eq!((read(&rtc, DR), read(&rtc, LR)), (1005, 1000));
    }

    #[test]
    fn the_counter_wraps_at_32_bits() {
        let (rtc, seconds, _) = rtc();
        write(&rtc, LR, u32::MAX);
        seconds.fetch_add(2, Ordering::SeqCst);
        assert_eq!(read(&rtc, DR), 1);
    }

    #[test]
    fn the_clock_cannot_be_stopped() {
        let (rtc, ..) = rtc();
        write(&rtc, CR, 0);
        assert_eq!(read(&rtc, CR), 1);
    }

    #[test]
    fn a_match_sets_the_raw_status_and_not_the_masked_one() {
        let (rtc, seconds, chip) = rtc();
        write(&rtc, MR, NOW as u32 + 10);
        assert_eq!(read(&rtc, RIS), 0);
        seconds.fetch_add(10, Ordering::SeqCst);
        assert_eq!((read(&rtc, RIS), read(&rtc, MIS)), (1, 0));
        assert!(!chip.level());
    }

    #[test]
    fn an_alarm_interrupts_without_the_guest_looking() {
        let (chip, line) = FakeChip::line();
        let rtc = Pl031::new(line);
        write(&rtc, IMSC, 1);
        let next = read(&rtc, DR).wrapping_add(1);
        write(&rtc, MR, next);
        while !chip.level() {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(chip.level());
    }

    #[test]
    fn a_match_with_the_present_second_interrupts_at_once() {
        let (rtc, _, chip) = rtc();
        write(&rtc, IMSC, 1);
        write(&rtc, MR, NOW as u32);
        assert!(chip.level());
    }

    #[test]
    fn clearing_lowers_the_line() {
        let (rtc, _, chip) = rtc();
        write(&rtc, IMSC, 1);
        write(&rtc, MR, NOW as u32);
        write(&rtc, ICR, 1);
        assert_eq!((read(&rtc, RIS), chip.level()), (0, false));
    }

    #[test]
    fn an_alarm_goes_off_once() {
        let (rtc, seconds, _) = rtc();
        write(&rtc, MR, NOW as u32);
        write(&rtc, ICR, 1);
        seconds.fetch_add(1, Ordering::SeqCst);
        assert_eq!(read(&rtc, RIS), 0);
    }

    #[test]
    fn setting_the_clock_moves_the_alarm() {
        let (rtc, seconds, _) = rtc();
        write(&rtc, MR, NOW as u32 + 100);
        write(&rtc, LR, NOW as u32 + 99);
        seconds.fetch_add(1, Ordering::SeqCst);
        assert_eq!(read(&rtc, RIS), 1);
    }

    #[test]
    fn an_alarm_in_the_past_waits_for_the_counter_to_wrap() {
        let (rtc, ..) = rtc();
        write(&rtc, MR, NOW as u32 - 1);
        assert_eq!(read(&rtc, RIS), 0);
    }

    #[test]
    fn linux_finds_the_ids_it_looks_for() {
        let (rtc, ..) = rtc();
        let id = (0..4).fold(0, |id, i| id | read(&rtc, 0xfe0 + 4 * i) << (8 * i));
        assert_eq!(id & 0x000f_ffff, 0x0004_1031);
        assert_eq!(read(&rtc, 0xff0), 0x0d);
    }

    #[test]
    fn reset_goes_back_to_the_hosts_time_and_lowers_the_line() {
        let (rtc, _, chip) = rtc();
        write(&rtc, IMSC, 1);
        write(&rtc, LR, 5);
        write(&rtc, MR, 5);
        rtc.reset();
        assert_eq!((read(&rtc, DR), read(&rtc, IMSC), chip.level()), (NOW as u32, 0, false));
    }

    #[test]
    fn a_restored_clock_keeps_its_offset_and_its_alarm() {
        let (rtc, ..) = rtc();
        write(&rtc, LR, 1000);
        write(&rtc, IMSC, 1);
        write(&rtc, MR, 1010);
        let saved = serde_json::to_string(&rtc.save()).unwrap();
        let (other, seconds, chip) = self::rtc();
        other.restore(&serde_json::from_str(&saved).unwrap());
        assert_eq!(read(&other, DR), 1000);
        seconds.fetch_add(10, Ordering::SeqCst);
        assert_eq!((read(&other, MIS), chip.level()), (1, true));
    }
}
