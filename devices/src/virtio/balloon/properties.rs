//! Whatever a driver puts into the balloon's queues, only RAM is discarded, and the device works after a reset.

use std::sync::Arc;

use proptest::prelude::*;

use super::tests::{ALL, Log};
use super::{Balloon, BalloonConfig};
use crate::virtio::testing::{self, BUFFERS, Desc, Driver, RAM, RAM_SIZE, WRITE, reg};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_driver_makes_it_discard_anything_but_ram(
        granule in prop_oneof![Just(4096u64), Just(16384), Just(2 << 20)],
        words in prop::collection::vec(prop_oneof![0x3fff0..0x41010u32, any::<u32>()], 1..200),
        chains in prop::collection::vec((0..5usize, 0..0x1000u64, 0..2000u32, any::<bool>()), 1..40),
        config in (0..20u64, any::<u32>()),
    ) {
        let (memory, log) = (testing::memory(), Log::new(granule));
        let balloon = Arc::new(Balloon::new(BalloonConfig::default(), &memory, log.clone()).unwrap());
        let driver = Driver::with_memory(balloon.clone(), memory);
        let mut rings = driver.bring_up(ALL, &[64; 5]);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        driver.put(BUFFERS, &bytes);
        for (queue, offset, len, write) in chains {
            let flags = if write { WRITE } else { 0 };
            rings[queue].add(&[Desc { addr: BUFFERS + offset, len, flags, next: 0 }]);
            driver.kick(queue as u16);
        }
        driver.write(reg::CONFIG + config.0, config.1);
        balloon.request_stats();
        let mut rings = driver.bring_up(0, &[8, 8]);
        rings[0].add(&[Desc::readable(BUFFERS, 4)]);
        driver.kick(0);
        prop_assert_eq!(rings[0].wait_used(1), [(0, 0)]);
        for (addr, len) in log.calls() {
            prop_assert!(addr >= RAM && addr + len <= RAM + RAM_SIZE, "{:#x} {:#x}", addr, len);
        }
    }
}
