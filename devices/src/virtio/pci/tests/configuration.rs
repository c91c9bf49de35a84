//! What a driver finds in configuration space.

use super::*;

#[test]
fn a_device_is_a_modern_one_of_its_type() {
    let bench = Bench::new();
    assert_eq!(bench.config(0x00), 0x1044_1af4);
    assert_eq!(bench.config(0x08), 0x00ff_0001);
    assert_eq!(bench.config(0x2c), 0x1100_1af4);
}

#[test]
fn msix_has_a_vector_for_each_queue_and_the_configuration() {
    let bench = Bench::new();
    assert_eq!(bench.config(bench.function.msix_cap) >> 16, 3 - 1);
    assert_eq!(bench.config(bench.function.msix_cap + 4), u32::from(MSIX_BAR));
    assert_eq!(bench.config(bench.function.msix_cap + 8), 0x800 | u32::from(MSIX_BAR));
}

#[test]
fn a_device_with_many_queues_offers_few_vectors() {
    let bench = Bench::with(Filler::new(&[64; 100]), None);
    assert_eq!(bench.config(bench.function.msix_cap) >> 16, u32::from(MAX_VECTORS) - 1);
}

#[test]
fn a_device_with_more_queues_than_doorbells_is_refused() {
    let device = Arc::new(Filler::new(&[64; 1025]));
    let error = VirtioPci::new(device, memory(), Arc::new(Messages::default()), None).unwrap_err();
    assert_eq!(error.to_string(), "filler has 1025 queues; PCI carries at most 1024");
}

#[test]
fn the_configuration_access_window_reads_registers_without_a_bar() {
    let bench = Bench::unmapped(Filler::new(&[64]), None);
    let cap = bench.function.pci_cfg;
    bench.set_config(cap + 4, VIRTIO_BAR.into());
    bench.set_config(cap + 8, at::NUM_QUEUES as u32);
    bench.set_config(cap + 12, 2);
    assert_eq!(bench.config(cap + 16), 1);
}

#[test]
fn the_configuration_access_window_writes_registers_without_a_bar() {
    let bench = Bench::unmapped(Filler::new(&[64]), None);
    let cap = bench.function.pci_cfg;
    bench.set_config(cap + 4, VIRTIO_BAR.into());
    bench.set_config(cap + 8, at::STATUS as u32);
    bench.set_config(cap + 12, 1);
    bench.set_config(cap + 16, 3);
    assert_eq!(bench.function.state().registers.status, 3);
}

#[test]
fn the_configuration_access_window_reaches_nothing_outside_of_a_bar() {
    let bench = Bench::new();
    let cap = bench.function.pci_cfg;
    for (bar, offset, len) in
        [(4, 0x4000, 4), (4, u32::MAX, 1), (4, 2, 4), (4, 0, 8), (3, 0, 4), (0xff, 0, 4)]
    {
        bench.set_config(cap + 4, bar);
        bench.set_config(cap + 8, offset);
        bench.set_config(cap + 12, len);
        bench.set_config(cap + 16, 0x0101_0101);
        assert_eq!(bench.config(cap + 16), 0x0101_0101, "BAR {bar}, {len} bytes at {offset:#x}");
    }
    assert_eq!(bench.status(), 0);
}

#[test]
fn vector_table_and_pending_bits_are_in_their_bar() {
    let bench = Bench::new();
    bench.start();
    bench.write2(at::QUEUE_SELECT, 0);
    bench.write2(at::QUEUE_VECTOR, 1);
    bench.set_config(bench.function.msix_cap, 0x8000_0000);
    bench.device.interrupt(|interrupt| interrupt.used(0));
    let mut pending = [0; 8];
    bench.bus.read(MSIX_AT + 0x800, &mut pending);
    assert_eq!((pending[0], bench.messages.all().len()), (2, 0));
    bench.bus.write(MSIX_AT + 16, &V2M_DOORBELL.to_le_bytes());
    bench.bus.write(MSIX_AT + 24, &81_u64.to_le_bytes());
    assert_eq!(bench.messages.all(), [(V2M_DOORBELL, 81)]);
}
