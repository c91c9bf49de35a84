//! The common configuration structure, interrupts and resets, as a driver that knows what it does sees them.

use super::*;
use crate::virtio::testing::{BUFFERS, Desc};

#[test]
fn both_halves_of_the_features_can_be_read() {
    let bench = Bench::new();
    assert_eq!(bench.read4(at::DEVICE_FEATURE), 0x3000_0020);
    bench.write4(at::DEVICE_FEATURE_SELECT, 1);
    assert_eq!(bench.read4(at::DEVICE_FEATURE), 1);
    bench.write4(at::DEVICE_FEATURE_SELECT, 2);
    assert_eq!(bench.read4(at::DEVICE_FEATURE), 0);
}

#[test]
fn features_that_are_not_offered_are_refused() {
    let bench = Bench::new();
    bench.set_status(3);
    bench.write4(at::DRIVER_FEATURE, 1);
    bench.write4(at::DRIVER_FEATURE_SELECT, 1);
    bench.write4(at::DRIVER_FEATURE, 1);
    bench.set_status(NEGOTIATED);
    assert_eq!(bench.status(), 3);
}

#[test]
fn queues_show_their_size_and_doorbell() {
    let bench = Bench::new();
    assert_eq!(bench.read2(at::NUM_QUEUES), 2);
    bench.write2(at::QUEUE_SELECT, 1);
    let seen = [at::QUEUE_SIZE, at::QUEUE_NOTIFY_OFF, at::QUEUE_ENABLE].map(|field| bench.read2(field));
    assert_eq!(seen, [64, 1, 0]);
}

#[test]
fn a_queue_that_does_not_exist_has_size_0_and_no_vector() {
    let bench = Bench::new();
    bench.write2(at::QUEUE_SELECT, 2);
    bench.write2(at::QUEUE_SIZE, 8);
    bench.write2(at::QUEUE_VECTOR, 0);
    assert_eq!([bench.read2(at::QUEUE_SIZE), bench.read2(at::QUEUE_VECTOR)], [0, 0xffff]);
}

#[test]
fn addresses_can_be_written_whole_in_halves_and_in_bytes() {
    let bench = Bench::new();
    bench.write(at::QUEUE_DESC, &0x0123_4567_89ab_cdef_u64.to_le_bytes());
    bench.write4(at::QUEUE_DRIVER + 4, 0x0123_4567);
    bench.write4(at::QUEUE_DRIVER, 0x89ab_cdef);
    (0..8).for_each(|index| bench.write(at::QUEUE_DEVICE + index, &[0x10 + index as u8]));
    assert_eq!(u64::from_le_bytes(bench.read(at::QUEUE_DESC)), 0x0123_4567_89ab_cdef);
    assert_eq!(u64::from_le_bytes(bench.read(at::QUEUE_DRIVER)), 0x0123_4567_89ab_cdef);
    assert_eq!(u64::from_le_bytes(bench.read(at::QUEUE_DEVICE)), 0x1716_1514_1312_1110);
}

#[test]
fn registers_can_be_read_in_any_width() {
    let bench = Bench::new();
    bench.set_status(3);
    bench.write2(at::QUEUE_SELECT, 1);
    assert_eq!(bench.read4(at::STATUS), 0x0001_0003);
    assert_eq!(bench.read::<1>(at::QUEUE_SIZE), [64]);
    assert_eq!(bench.read::<8>(at::STATUS), [3, 0, 1, 0, 64, 0, 0xff, 0xff]);
}

#[test]
fn driver_ok_starts_the_device_and_a_doorbell_serves_the_queue() {
    let bench = Bench::new();
    let mut ring = bench.start();
    assert!(bench.device.is_running());
    ring.add(&[Desc::writable(BUFFERS, 16)]);
    bench.write2(NOTIFY, 0);
    assert_eq!(ring.used(), [(0, 16)]);
}

#[test]
fn a_doorbell_is_known_by_its_place() {
    let bench = Bench::new();
    bench.write2(NOTIFY + 4, 0);
    bench.write4(NOTIFY, 1);
    bench.write(NOTIFY + 8, &[0; 2]);
    assert_eq!(*lock(&bench.device.rung), [1, 0]);
}

#[test]
fn a_queues_vector_interrupts_for_that_queue() {
    let bench = Bench::new();
    bench.start();
    bench.enable_msix();
    bench.write2(at::QUEUE_SELECT, 1);
    bench.write2(at::QUEUE_VECTOR, 2);
    bench.device.interrupt(|interrupt| interrupt.used(1));
    bench.device.interrupt(|interrupt| interrupt.used(0));
    assert_eq!(bench.messages.all(), [(V2M_DOORBELL, 82)]);
    assert_eq!((bench.isr(), bench.chip.calls().len()), (0, 0));
}

#[test]
fn a_configuration_change_has_its_own_vector_and_a_new_generation() {
    let bench = Bench::new();
    bench.start();
    bench.enable_msix();
    bench.write2(at::CONFIG_VECTOR, 1);
    bench.device.interrupt(|interrupt| interrupt.config_changed());
    assert_eq!(bench.messages.all(), [(V2M_DOORBELL, 81)]);
    assert_eq!(bench.read::<1>(at::GENERATION), [1]);
}

#[test]
fn a_vector_that_there_is_not_reads_back_as_none() {
    let bench = Bench::new();
    for vector in [3, 0x7fff, 0xffff] {
        bench.write2(at::QUEUE_VECTOR, vector);
        bench.write2(at::CONFIG_VECTOR, vector);
        assert_eq!([bench.read2(at::QUEUE_VECTOR), bench.read2(at::CONFIG_VECTOR)], [0xffff; 2]);
    }
    bench.write2(at::QUEUE_VECTOR, 2);
    assert_eq!(bench.read2(at::QUEUE_VECTOR), 2);
}

#[test]
fn without_msix_the_pin_is_asserted_until_the_isr_is_read() {
    let bench = Bench::new();
    bench.start();
    bench.device.interrupt(|interrupt| interrupt.used(0));
    bench.device.interrupt(|interrupt| interrupt.config_changed());
    assert!(bench.chip.level());
    assert_eq!((bench.isr(), bench.isr()), (3, 0));
    assert!(!bench.chip.level());
}

#[test]
fn with_msix_on_the_pin_is_low() {
    let bench = Bench::new();
    bench.start();
    bench.device.interrupt(|interrupt| interrupt.used(0));
    bench.enable_msix();
    assert!(!bench.chip.level());
}

#[test]
fn a_device_that_needs_a_reset_says_so_and_interrupts() {
    let bench = Bench::new();
    bench.start();
    bench.device.interrupt(|interrupt| interrupt.needs_reset());
    assert_eq!((bench.status(), bench.isr()), (RUNNING | NEEDS_RESET, 2));
    bench.set_status(0);
    assert_eq!(bench.status(), 0);
}

#[test]
fn a_reset_by_the_driver_takes_everything_of_the_device_back_but_not_msix() {
    let bench = Bench::new();
    bench.start();
    bench.device.interrupt(|interrupt| interrupt.used(0));
    bench.write2(at::CONFIG_VECTOR, 0);
    bench.write2(at::QUEUE_VECTOR, 1);
    bench.enable_msix();
    bench.set_status(0);
    assert_eq!((bench.device.is_running(), *lock(&bench.device.resets)), (false, 1));
    let seen = [at::CONFIG_VECTOR, at::QUEUE_VECTOR, at::QUEUE_ENABLE, at::QUEUE_SIZE]
        .map(|field| bench.read2(field));
    assert_eq!((seen, bench.isr()), ([0xffff, 0xffff, 0, 256], 0));
    assert!(bench.function.signal.msix().enabled());
}

#[test]
fn a_second_driver_can_start_the_device_again() {
    let bench = Bench::new();
    bench.start();
    let mut ring = bench.start();
    ring.add(&[Desc::writable(BUFFERS, 4)]);
    bench.write2(NOTIFY, 0);
    assert_eq!((ring.used(), bench.status()), (vec![(0, 4)], RUNNING));
}

#[test]
fn the_devices_configuration_is_read_and_written_through_the_bar() {
    let bench = Bench::new();
    bench.write(DEVICE_CONFIG + 6, b"42");
    assert_eq!(&bench.read::<8>(DEVICE_CONFIG), b"filler42");
    assert_eq!(bench.read::<4>(DEVICE_CONFIG + 8), [0; 4]);
}

#[test]
fn a_machine_reset_takes_function_and_device_back() {
    let bench = Bench::new();
    bench.start();
    bench.enable_msix();
    bench.device.interrupt(|interrupt| interrupt.config_changed());
    bench.bus.reset();
    let fresh = Bench::unmapped(Filler::new(&[256, 64]), None);
    assert_eq!(bench.function.state(), fresh.function.state());
    assert_eq!(bench.host.state(), fresh.host.state());
    assert!(!bench.device.is_running() && !bench.function.signal.msix().enabled());
}

#[test]
fn the_state_survives_serialisation() {
    let bench = Bench::new();
    bench.start();
    bench.enable_msix();
    let state = bench.function.state();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<VirtioPciState>(&json).unwrap(), state);
}
