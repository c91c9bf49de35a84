//! The balloon behind virtio-mmio, driven by hand.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::device::F_VERSION_1;
use crate::virtio::testing::{self, BUFFERS, Desc, Driver, RAM, RAM_SIZE, Ring, reg, status, wait_until};

const MIB: u64 = 1 << 20;
/// Where the pages are that tests give away.
const PAGES: u64 = RAM + 8 * MIB;
/// Every feature that the device offers by default.
pub(super) const ALL: u64 = F_STATS_VQ | F_PAGE_REPORTING | F_PAGE_POISON;

/// Remembers what was discarded, and when the guest was told.
#[derive(Debug)]
pub(super) struct Log {
    granule: u64,
    calls: Mutex<Vec<(u64, u64)>>,
    fails: bool,
}

impl Log {
    pub(super) fn new(granule: u64) -> Arc<Log> {
        Arc::new(Log { granule, calls: Mutex::default(), fails: false })
    }

    pub(super) fn calls(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut lock(&self.calls))
    }
}

impl RamDiscard for Log {
    fn granule(&self) -> u64 {
        self.granule
    }

    fn discard(&self, addr: u64, len: u64) -> Result<(), hvrun_arch::HypervisorError> {
        lock(&self.calls).push((addr, len));
        if self.fails {
            return Err(hvrun_arch::HypervisorError::Call { call: "discard", reason: "no".to_owned() });
        }
        Ok(())
    }
}

struct Setup {
    balloon: Arc<Balloon>,
    log: Arc<Log>,
    driver: Driver,
    rings: Vec<Ring>,
}

/// A balloon whose driver has negotiated `features` and set up queues of these sizes.
fn start_with(log: Arc<Log>, features: u64, sizes: &[u16]) -> Setup {
    let memory = testing::memory();
    let config = BalloonConfig { deflate_on_oom: true, free_page_reporting: true };
    let balloon = Arc::new(Balloon::new(config, &memory, log.clone()).unwrap());
    let driver = Driver::with_memory(balloon.clone(), memory);
    let rings = driver.bring_up(features, sizes);
    Setup { balloon, log, driver, rings }
}

fn start(granule: u64) -> Setup {
    start_with(Log::new(granule), 0, &[8, 8])
}

impl Setup {
    /// Gives the device page numbers on `queue` and waits until it has taken them.
    fn send(&mut self, queue: usize, addrs: &[u64]) {
        let bytes: Vec<u8> =
            addrs.iter().flat_map(|addr| ((addr / PAGE_SIZE) as u32).to_le_bytes()).collect();
        self.driver.put(BUFFERS, &bytes);
        self.rings[queue].add(&[Desc::readable(BUFFERS, bytes.len() as u32)]);
        self.finish(queue);
    }

    fn finish(&mut self, queue: usize) {
        self.driver.kick(queue as u16);
        assert_eq!(self.rings[queue].wait_used(1).len(), 1);
    }
}

#[test]
fn it_offers_what_it_was_configured_for() {
    let memory = testing::memory();
    let features = |deflate_on_oom, free_page_reporting| {
        let config = BalloonConfig { deflate_on_oom, free_page_reporting };
        Balloon::new(config, &memory, Log::new(4096)).unwrap().features()
    };
    assert_eq!(features(false, false), F_STATS_VQ);
    assert_eq!(features(true, false), F_STATS_VQ | F_DEFLATE_ON_OOM);
    assert_eq!(features(false, true), ALL);
}

#[test]
fn inflated_pages_go_back_joined() {
    let mut it = start(4096);
    it.send(0, &[PAGES + 0x2000, PAGES, PAGES + 0x1000, PAGES + 0x8000]);
    assert_eq!(it.log.calls(), [(PAGES, 0x3000), (PAGES + 0x8000, 0x1000)]);
}

#[test]
fn a_large_host_page_goes_back_with_its_last_guest_page() {
    let mut it = start(16384);
    it.send(0, &[PAGES, PAGES + 0x1000, PAGES + 0x2000]);
    assert_eq!(it.log.calls(), []);
    it.send(0, &[PAGES + 0x3000]);
    assert_eq!(it.log.calls(), [(PAGES, 0x4000)]);
}

#[test]
fn a_page_that_was_deflated_keeps_its_large_host_page() {
    let mut it = start(16384);
    it.send(0, &[PAGES, PAGES + 0x1000, PAGES + 0x2000]);
    it.send(1, &[PAGES + 0x1000]);
    it.send(0, &[PAGES + 0x3000]);
    assert_eq!(it.log.calls(), []);
}

#[test]
fn page_numbers_outside_ram_are_ignored() {
    let mut it = start(4096);
    it.send(0, &[RAM - 0x1000, RAM + RAM_SIZE, u64::from(u32::MAX) * PAGE_SIZE, 0, PAGES]);
    it.send(1, &[RAM - 0x1000, u64::from(u32::MAX) * PAGE_SIZE]);
    assert_eq!(it.log.calls(), [(PAGES, 0x1000)]);
    assert!(!it.driver.needs_reset());
}

#[test]
fn a_page_number_that_is_cut_off_is_ignored() {
    let mut it = start(4096);
    it.driver.put(BUFFERS, &((PAGES / PAGE_SIZE) as u32).to_le_bytes());
    it.rings[0].add(&[Desc::readable(BUFFERS, 7)]);
    it.finish(0);
    assert_eq!(it.log.calls(), [(PAGES, 0x1000)]);
}

#[test]
fn page_numbers_may_be_spread_over_buffers() {
    let mut it = start(4096);
    it.driver.put(BUFFERS, &((PAGES / PAGE_SIZE) as u32).to_le_bytes());
    it.rings[0].add(&[Desc::readable(BUFFERS, 1), Desc::readable(BUFFERS + 1, 3)]);
    it.finish(0);
    assert_eq!(it.log.calls(), [(PAGES, 0x1000)]);
}

#[test]
fn a_long_list_of_page_numbers_is_taken_to_its_end() {
    let mut it = start(4096);
    let addrs: Vec<u64> = (0..2000).map(|page| PAGES + page * PAGE_SIZE).collect();
    it.send(0, &addrs);
    let bytes: u64 = it.log.calls().iter().map(|(_, len)| len).sum();
    assert_eq!(bytes, 2000 * PAGE_SIZE);
}

#[test]
fn what_the_host_refuses_to_take_is_acknowledged_all_the_same() {
    let log = Arc::new(Log { granule: 4096, calls: Mutex::default(), fails: true });
    let mut it = start_with(log, 0, &[8, 8]);
    it.send(0, &[PAGES]);
    assert_eq!((it.log.calls(), it.driver.needs_reset()), (vec![(PAGES, 0x1000)], false));
}

#[test]
fn a_target_is_told_as_pages_with_an_interrupt() {
    let it = start(4096);
    let generation = it.driver.read(reg::CONFIG_GENERATION);
    it.balloon.set_target(RAM_SIZE - 5 * MIB);
    assert_eq!(u32::from_le_bytes(it.driver.config(0)), 5 * 256);
    assert_eq!((it.driver.acknowledge(), it.balloon.target()), (2, RAM_SIZE - 5 * MIB));
    assert_ne!(it.driver.read(reg::CONFIG_GENERATION), generation);
}

#[test]
fn a_target_above_all_memory_is_all_memory() {
    let it = start(4096);
    it.balloon.set_target(u64::MAX);
    assert_eq!((it.balloon.target(), u32::from_le_bytes(it.driver.config(0))), (RAM_SIZE, 0));
}

#[test]
fn a_target_of_nothing_takes_all_pages() {
    let it = start(4096);
    it.balloon.set_target(0);
    assert_eq!(u64::from(u32::from_le_bytes(it.driver.config(0))), RAM_SIZE / PAGE_SIZE);
}

#[test]
fn a_target_survives_a_reset_and_what_the_guest_gave_does_not() {
    let it = start(4096);
    it.balloon.set_target(RAM_SIZE - MIB);
    it.driver.write(reg::CONFIG + 4, 256);
    let before = it.balloon.actual();
    it.driver.set_status(0);
    assert_eq!((before, it.balloon.actual()), (RAM_SIZE - MIB, RAM_SIZE));
    assert_eq!(u32::from_le_bytes(it.driver.config(0)), 256);
}

#[test]
fn more_than_all_memory_in_the_balloon_leaves_nothing() {
    let it = start(4096);
    it.driver.write(reg::CONFIG + 4, u32::MAX);
    assert_eq!(it.balloon.actual(), 0);
}

#[test]
fn a_driver_cannot_change_the_target() {
    let it = start(4096);
    it.balloon.set_target(RAM_SIZE - MIB);
    it.driver.write(reg::CONFIG, 0);
    it.driver.mmio.write_all_config();
    assert_eq!(it.balloon.target(), RAM_SIZE - MIB);
}

/// Writes with widths that no driver uses.
trait WriteAll {
    fn write_all_config(&self);
}

impl WriteAll for crate::virtio::mmio::VirtioMmio {
    fn write_all_config(&self) {
        use crate::bus::MmioDevice;
        self.write(reg::CONFIG, &[0xff; 8]);
        self.write(reg::CONFIG + 3, &[0xff; 2]);
        self.write(reg::CONFIG + 8, &[0xff; 4]);
        self.write(reg::CONFIG + 15, &[0xff; 8]);
        self.write(reg::CONFIG + 0xff, &[0xff; 1]);
    }
}

#[test]
fn configuration_behind_its_end_reads_as_zero() {
    let it = start(4096);
    it.driver.write(reg::CONFIG + 12, u32::MAX);
    assert_eq!(it.driver.config::<8>(12), [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(it.driver.config::<4>(16), [0; 4]);
}

/// Reports two free ranges on `queue`.
fn report(it: &mut Setup, queue: usize) {
    it.rings[queue]
        .add(&[Desc::writable(PAGES, 2 * MIB as u32), Desc::writable(PAGES + 4 * MIB, MIB as u32)]);
    it.finish(queue);
}

#[test]
fn reported_pages_go_back() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    report(&mut it, 3);
    assert_eq!(it.log.calls(), [(PAGES, 2 * MIB), (PAGES + 4 * MIB, MIB)]);
}

#[test]
fn without_statistics_the_reporting_queue_moves_up() {
    let mut it = start_with(Log::new(4096), F_PAGE_REPORTING, &[8, 8, 8]);
    report(&mut it, 2);
    assert_eq!(it.log.calls().len(), 2);
}

#[test]
fn a_driver_may_count_queues_as_the_specification_does() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 0, 8]);
    report(&mut it, 4);
    let mut other = start_with(Log::new(4096), F_PAGE_REPORTING, &[8, 8, 0, 0, 8]);
    report(&mut other, 4);
    assert_eq!((it.log.calls().len(), other.log.calls().len()), (2, 2));
}

#[test]
fn a_reporting_queue_that_was_not_negotiated_is_not_served() {
    assert_eq!(serve::reporting_queue(F_STATS_VQ, |_| true), None);
    assert_eq!(serve::reporting_queue(ALL, |queue| queue < 2), None);
}

#[test]
fn poisoned_pages_are_left_as_they_are() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    it.driver.write(reg::CONFIG + 12, 0xaa);
    report(&mut it, 3);
    assert_eq!(it.log.calls(), []);
}

#[test]
fn a_poison_of_zero_is_none() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    it.driver.write(reg::CONFIG + 12, 0);
    report(&mut it, 3);
    assert_eq!(it.log.calls().len(), 2);
}

#[test]
fn a_report_outside_ram_breaks_the_queue_and_discards_nothing() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    it.rings[3].add(&[Desc::writable(RAM + RAM_SIZE - 0x1000, 0x2000)]);
    it.driver.kick(3);
    wait_until(|| it.driver.needs_reset());
    assert_eq!(it.log.calls(), []);
}

/// Puts statistics into the guest's one buffer.
fn send_stats(it: &mut Setup, entries: &[(u16, u64)]) {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|(tag, value)| tag.to_le_bytes().into_iter().chain(value.to_le_bytes()))
        .collect();
    it.driver.put(BUFFERS, &bytes);
    it.rings[2].add(&[Desc::readable(BUFFERS, bytes.len() as u32)]);
    it.driver.kick(2);
}

#[test]
fn statistics_are_kept_and_their_buffer_waits_for_the_next_request() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    assert_eq!(it.balloon.stats(), None);
    send_stats(&mut it, &[(4, 1 << 40), (0, 7), (99, 1), (u16::MAX, 2)]);
    wait_until(|| it.balloon.stats().is_some());
    let stats = it.balloon.stats().unwrap();
    assert_eq!(stats.iter().collect::<Vec<_>>(), [("stat-swap-in", 7), ("stat-free-memory", 1 << 40)]);
    assert_eq!((stats.get("stat-total-memory"), it.rings[2].used()), (None, vec![]));
    it.balloon.request_stats();
    assert_eq!(it.rings[2].wait_used(1), [(0, 0)]);
}

#[test]
fn a_request_of_statistics_before_there_are_any_is_not_forgotten() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    it.balloon.request_stats();
    send_stats(&mut it, &[(4, 1)]);
    assert_eq!(it.rings[2].wait_used(1), [(0, 0)]);
}

#[test]
fn a_second_buffer_of_statistics_gives_the_first_one_back() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    send_stats(&mut it, &[(4, 1)]);
    wait_until(|| it.balloon.stats().is_some());
    send_stats(&mut it, &[(4, 2)]);
    assert_eq!(it.rings[2].wait_used(1), [(0, 0)]);
    assert_eq!(it.balloon.stats().and_then(|stats| stats.get("stat-free-memory")), Some(2));
}

#[test]
fn statistics_that_are_cut_off_or_endless_are_taken_as_far_as_they_make_sense() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    it.rings[2].add(&[Desc::readable(PAGES, 8 * MIB as u32)]);
    it.driver.put(PAGES, &[4, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1]);
    it.driver.kick(2);
    wait_until(|| it.balloon.stats().is_some());
    assert_eq!(it.balloon.stats().and_then(|stats| stats.get("stat-free-memory")), Some(9));
}

#[test]
fn statistics_go_with_the_driver() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    send_stats(&mut it, &[(4, 1)]);
    wait_until(|| it.balloon.stats().is_some());
    it.driver.set_status(0);
    assert_eq!(it.balloon.stats(), None);
}

#[test]
fn another_kernel_can_take_over_after_a_reset() {
    let mut it = start_with(Log::new(16384), ALL, &[8, 8, 8, 8]);
    it.send(0, &[PAGES, PAGES + 0x1000, PAGES + 0x2000]);
    it.rings = it.driver.bring_up(0, &[8, 8]);
    // What the one before had in the balloon is forgotten.
    it.send(0, &[PAGES + 0x3000]);
    assert_eq!(it.log.calls(), []);
    it.send(0, &[PAGES, PAGES + 0x1000, PAGES + 0x2000]);
    assert_eq!(it.log.calls(), [(PAGES, 0x4000)]);
}

#[test]
fn doorbells_of_a_device_that_was_reset_are_ignored() {
    let mut it = start(4096);
    it.driver.set_status(0);
    it.driver.put(BUFFERS, &((PAGES / PAGE_SIZE) as u32).to_le_bytes());
    it.rings[0].add(&[Desc::readable(BUFFERS, 4)]);
    it.driver.kick(0);
    it.balloon.request_stats();
    assert_eq!((it.rings[0].used(), it.log.calls()), (vec![], vec![]));
}

/// Discards nothing until it may.
#[derive(Debug)]
struct Gate {
    open: Mutex<bool>,
    entered: AtomicBool,
}

impl RamDiscard for Gate {
    fn granule(&self) -> u64 {
        4096
    }

    fn discard(&self, _addr: u64, _len: u64) -> Result<(), hvrun_arch::HypervisorError> {
        self.entered.store(true, Ordering::SeqCst);
        wait_until(|| *lock(&self.open));
        Ok(())
    }
}

/// A balloon in the middle of a discard of the first of two reported ranges.
fn in_the_middle() -> (Arc<Gate>, Arc<Balloon>, Driver, Vec<Ring>) {
    let gate = Arc::new(Gate { open: Mutex::new(false), entered: AtomicBool::new(false) });
    let memory = testing::memory();
    let balloon = Arc::new(Balloon::new(BalloonConfig::default(), &memory, gate.clone()).unwrap());
    let driver = Driver::with_memory(balloon.clone(), memory);
    let mut rings = driver.bring_up(ALL, &[8, 8, 8, 8]);
    rings[3].add(&[Desc::writable(PAGES, 4096), Desc::writable(PAGES + MIB, 4096)]);
    driver.kick(3);
    wait_until(|| gate.entered.load(Ordering::SeqCst));
    (gate, balloon, driver, rings)
}

#[test]
fn pages_are_acknowledged_only_when_they_are_gone() {
    let (gate, _balloon, _driver, mut rings) = in_the_middle();
    let before = rings[3].used();
    *lock(&gate.open) = true;
    assert_eq!((before, rings[3].wait_used(1)), (vec![], vec![(0, 0)]));
}

#[test]
fn a_request_that_a_reset_interrupts_is_not_acknowledged() {
    let (gate, _balloon, driver, mut rings) = in_the_middle();
    let opener = {
        let gate = gate.clone();
        std::thread::spawn(move || *lock(&gate.open) = true)
    };
    driver.set_status(0);
    opener.join().unwrap();
    // Either it was through before the reset, or it never comes.
    let first = rings[3].used();
    driver.kick(3);
    assert!(first.len() <= 1);
    assert_eq!(rings[3].used(), []);
}

#[test]
fn a_device_in_the_middle_of_a_discard_can_be_dropped() {
    let (gate, balloon, driver, _rings) = in_the_middle();
    *lock(&gate.open) = true;
    drop(driver);
    drop(balloon);
}

#[test]
fn state_tells_registers_and_queues() {
    let mut it = start_with(Log::new(4096), ALL, &[8, 8, 8, 8]);
    it.balloon.set_target(RAM_SIZE - MIB);
    it.driver.write(reg::CONFIG + 4, 3);
    send_stats(&mut it, &[(4, 1)]);
    wait_until(|| it.balloon.state().stats_chain.is_some());
    let state = it.balloon.state();
    assert_eq!((state.num_pages, state.actual, state.poison_val, state.stats_chain), (256, 3, 0, Some(0)));
    let next: Vec<_> = state.queues.iter().map(|queue| queue.map(|queue| queue.next_avail)).collect();
    assert_eq!(next, [Some(0), Some(0), Some(1), Some(0), None]);
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<BalloonState>(&text).unwrap(), state);
}

#[test]
fn the_driver_must_have_accepted_version_1() {
    let it = start(4096);
    it.driver.set_status(0);
    it.driver.negotiate(ALL & !F_VERSION_1);
    assert_eq!(it.driver.status() & status::FEATURES_OK, 0);
}

#[test]
fn memory_that_the_guest_gives_reads_as_zeros_and_costs_nothing() {
    let memory = testing::memory();
    // SAFETY: private anonymous memory of the test's, which nobody holds references into.
    let pages = unsafe { HostPages::new(memory.clone()) };
    let balloon = Arc::new(Balloon::new(BalloonConfig::default(), &memory, Arc::new(pages)).unwrap());
    let driver = Driver::with_memory(balloon, memory);
    let mut rings = driver.bring_up(ALL, &[8, 8, 8, 8]);
    driver.put(PAGES, &[0x5a; 2 << 20]);
    rings[3].add(&[Desc::writable(PAGES, MIB as u32)]);
    driver.kick(3);
    rings[3].wait_used(1);
    assert!(driver.get(PAGES, MIB as usize).iter().all(|byte| *byte == 0));
    assert!(driver.get(PAGES + MIB, MIB as usize).iter().all(|byte| *byte == 0x5a));
}

#[test]
fn host_pages_are_given_back_whole_or_not_at_all() {
    let memory = testing::memory();
    // SAFETY: as above.
    let pages = unsafe { HostPages::new(memory.clone()) };
    let granule = pages.granule();
    memory.write_slice(&vec![0x5a; 3 * granule as usize], GuestAddress(PAGES)).unwrap();
    pages.discard(PAGES + 1, 2 * granule).unwrap();
    let mut bytes = vec![0; 3 * granule as usize];
    memory.read_slice(&mut bytes, GuestAddress(PAGES)).unwrap();
    assert_eq!(bytes.iter().filter(|byte| **byte == 0).count() as u64, granule);
    assert_eq!((bytes[granule as usize - 1], bytes[granule as usize]), (0x5a, 0));
}

#[test]
fn host_pages_outside_ram_are_refused() {
    // SAFETY: as above.
    let pages = unsafe { HostPages::new(testing::memory()) };
    for (addr, len) in
        [(RAM - 4096, 8192), (RAM + RAM_SIZE, 4096), (RAM, RAM_SIZE + 1), (RAM, u64::MAX), (RAM, 0)]
    {
        assert!(pages.discard(addr, len).is_err(), "{addr:#x} {len:#x}");
    }
}
