//! Whatever a driver writes into its rings and registers, the device neither panics nor hangs, and works after a reset.

use std::sync::Arc;

use proptest::prelude::*;

use crate::bus::MmioDevice;
use crate::virtio::rng::{Rng, RngConfig};
use crate::virtio::testing::{BUFFERS, Desc, Driver, RAM, RAM_SIZE, reg};

const SIZE: u16 = 8;

/// Addresses in RAM, around its ends, and anywhere.
fn addresses() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => RAM..RAM + RAM_SIZE,
        2 => RAM + RAM_SIZE - 64..RAM + RAM_SIZE + 64,
        1 => any::<u64>(),
        1 => u64::MAX - 64..=u64::MAX,
    ]
}

fn descriptors() -> impl Strategy<Value = Desc> {
    let len = prop_oneof![4 => 0..64u32, 1 => any::<u32>(), 1 => (0..64u32).prop_map(|n| n * 16)];
    let flags = prop_oneof![4 => 0..8u16, 1 => any::<u16>()];
    let next = prop_oneof![4 => 0..SIZE, 1 => any::<u16>()];
    (addresses(), len, flags, next).prop_map(|(addr, len, flags, next)| Desc { addr, len, flags, next })
}

/// One thing that a driver does.
#[derive(Debug, Clone)]
enum Action {
    Descriptor(u16, Desc),
    Indirect(u16, Desc),
    Offer(u16),
    AvailIdx(u16),
    UsedEvent(u16),
    Kick(u32),
    Register(u64, u32),
    Bytes(u64, Vec<u8>),
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..SIZE, descriptors()).prop_map(|(index, desc)| Action::Descriptor(index, desc)),
        2 => (0..64u16, descriptors()).prop_map(|(index, desc)| Action::Indirect(index, desc)),
        4 => (0..SIZE + 1).prop_map(Action::Offer),
        1 => any::<u16>().prop_map(Action::AvailIdx),
        1 => any::<u16>().prop_map(Action::UsedEvent),
        4 => prop_oneof![4 => Just(0u32), 1 => any::<u32>()].prop_map(Action::Kick),
        2 => (0..0x80u64, any::<u32>()).prop_map(|(index, value)| Action::Register(index * 4, value)),
        1 => (0..0x1f0u64, prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(offset, bytes)| Action::Bytes(offset, bytes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_driver_breaks_more_than_its_device(
        features in prop_oneof![Just(0u64), Just(1 << 28), Just(1 << 29), Just(3 << 28)],
        script in prop::collection::vec(actions(), 1..60),
    ) {
        let (driver, mut rings) = Driver::start(Arc::new(Rng::new(RngConfig::default())), features, &[SIZE]);
        let ring = &mut rings[0];
        for action in script {
            match action {
                Action::Descriptor(index, desc) => ring.set_desc(index, desc),
                // Somewhere that descriptors may point to.
                Action::Indirect(index, desc) => desc.store(&driver.memory, BUFFERS, index),
                Action::Offer(head) => ring.offer(head),
                Action::AvailIdx(idx) => ring.set_avail_idx(idx),
                Action::UsedEvent(idx) => ring.set_used_event(idx),
                Action::Kick(queue) => driver.write(reg::QUEUE_NOTIFY, queue),
                Action::Register(register, value) => {
                    driver.write(register, value);
                    driver.read(register);
                }
                Action::Bytes(offset, mut bytes) => {
                    driver.mmio.write(offset, &bytes);
                    driver.mmio.read(offset, &mut bytes);
                }
            }
        }
        let mut ring = driver.bring_up(features, &[SIZE]).remove(0);
        ring.add(&[Desc::writable(BUFFERS, 16)]);
        driver.kick(0);
        prop_assert_eq!(ring.used(), [(0, 16)]);
    }

    #[test]
    fn no_registers_start_a_queue_outside_ram(
        size in any::<u16>(),
        desc in addresses(),
        avail in addresses(),
        used in addresses(),
    ) {
        let driver = Driver::new(Arc::new(Rng::new(RngConfig::default())));
        driver.negotiate(crate::virtio::device::F_VERSION_1);
        let mut ring = crate::virtio::testing::Ring::new(&driver.memory, 0, SIZE);
        (ring.size, ring.desc, ring.avail, ring.used) = (size, desc, avail, used);
        driver.set_queue(&ring);
        driver.set_status(crate::virtio::testing::status::RUNNING);
        driver.kick(0);
        let entries = u64::from(size);
        let inside = |addr: u64, len: u64| addr >= RAM && addr - RAM <= RAM_SIZE.saturating_sub(len);
        let good = size.is_power_of_two()
            && size <= 64
            && inside(desc, 16 * entries)
            && inside(avail, 6 + 2 * entries)
            && inside(used, 6 + 8 * entries)
            && desc % 16 == 0
            && avail % 2 == 0
            && used % 4 == 0;
        // Good rings in random places may still hold nonsense; bad ones are always refused.
        prop_assert!(good || driver.needs_reset());
    }
}
