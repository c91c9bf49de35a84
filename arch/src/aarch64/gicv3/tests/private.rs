//! Redistributors, SGIs and PPIs.

use super::super::registers::*;
use super::super::{InterruptState, PendingLines};
use super::{ASGI1R, Bench, EOIR1, IAR0, IAR1, SGI0R, SGI1R, SPURIOUS};

const IRM: u64 = 1 << 40;

/// An SGI register value for SGI `intid` to the CPUs of `targets` in affinity 0.0.0.
fn sgi(intid: u64, targets: u64) -> u64 {
    intid << 24 | targets
}

#[test]
fn type_register_tells_affinity_number_and_the_last_one() {
    let bench = Bench::cold(3);
    let typers = [0, 1, 2].map(|cpu| u64::from_le_bytes(bench.read(bench.rd_base(cpu, GICR_TYPER))));
    assert_eq!(typers.map(|t| t >> 32), [0, 1, 2]);
    assert_eq!(typers.map(|t| t >> 8 & 0xFFFF), [0, 1, 2]);
    assert_eq!(typers.map(|t| t & GICR_TYPER_LAST != 0), [false, false, true]);
    assert_eq!(typers.map(|t| t & 0b1001), [0; 3], "PLPIS and DirectLPI");
}

#[test]
fn type_register_can_be_read_in_halves() {
    let bench = Bench::cold(2);
    assert_eq!(bench.gicr_rd_read(1, GICR_TYPER + 4), 1);
    assert_eq!(bench.gicr_rd_read(1, GICR_TYPER) & 0x10, 0x10);
}

#[test]
fn the_address_chooses_the_frame_not_the_accessing_cpu() {
    let bench = Bench::cold(2);
    let addr = bench.rd_base(1, 0x1_0000 + ISENABLER);
    assert!(bench.gic.mmio_write(0, addr, &0xFF_u32.to_le_bytes()));
    assert_eq!(bench.gicr_read(0, ISENABLER), 0);
    assert_eq!(bench.gicr_read(1, ISENABLER), 0xFF);
}

#[test]
fn children_asleep_follows_processor_sleep() {
    let bench = Bench::cold(1);
    assert_eq!(bench.gicr_rd_read(0, GICR_WAKER), 6, "asleep after reset");
    bench.gicr_rd(0, GICR_WAKER, 0);
    assert_eq!(bench.gicr_rd_read(0, GICR_WAKER), 0);
    bench.gicr_rd(0, GICR_WAKER, WAKER_PROCESSOR_SLEEP);
    assert_eq!(bench.gicr_rd_read(0, GICR_WAKER), 6);
}

#[test]
fn a_sleeping_redistributor_holds_interrupts_until_woken() {
    let bench = Bench::new(1);
    bench.enable(0, 27);
    bench.gicr_rd(0, GICR_WAKER, WAKER_PROCESSOR_SLEEP);
    bench.gic.set_ppi(0, 27, true);
    assert!(bench.quiet(0));
    bench.gicr_rd(0, GICR_WAKER, 0);
    assert!(bench.irq(0));
}

#[test]
fn lpi_registers_and_group_modifier_read_as_zero() {
    let bench = Bench::cold(1);
    for offset in [GICR_CTLR, 0x70, 0x78, 0x1_0000 + IGRPMODR, 0x1_0E00, 0x1_0000 + ISENABLER + 4] {
        bench.gicr_rd(0, offset, 1);
        assert_eq!(bench.gicr_rd_read(0, offset), 0, "{offset:#x}");
    }
}

#[test]
fn sgis_are_always_edge_triggered_and_ppis_can_be_configured() {
    let bench = Bench::cold(1);
    bench.gicr(0, ICFGR, 0);
    bench.gicr(0, ICFGR + 4, 0xFFFF_FFFF);
    assert_eq!(bench.gicr_read(0, ICFGR), 0xAAAA_AAAA);
    assert_eq!(bench.gicr_read(0, ICFGR + 4), 0xAAAA_AAAA);
}

#[test]
fn private_priorities_take_bytes_and_words() {
    let bench = Bench::cold(1);
    bench.set_priority(0, 30, 0x77);
    assert_eq!(bench.gicr_read(0, IPRIORITYR + 28), 0x0070_0000);
}

#[test]
fn a_ppi_belongs_to_its_cpu() {
    let bench = Bench::new(2);
    bench.enable(0, 27);
    bench.enable(1, 27);
    bench.gic.set_ppi(1, 27, true);
    assert!(bench.quiet(0) && bench.irq(1));
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
    assert_eq!(bench.icc_read(1, IAR1), 27);
}

#[test]
fn ppi_state_follows_the_interrupts_life() {
    let bench = Bench::new(1);
    let state = |pending, active| InterruptState { pending, active, enabled: true };
    bench.enable(0, 27);
    assert_eq!(bench.gic.ppi_state(0, 27), state(false, false));
    bench.gic.set_ppi(0, 27, true);
    assert_eq!(bench.gic.ppi_state(0, 27), state(true, false));
    bench.icc_read(0, IAR1);
    assert_eq!(bench.gic.ppi_state(0, 27), state(true, true));
    bench.gic.set_ppi(0, 27, false);
    assert_eq!(bench.gic.ppi_state(0, 27), state(false, true));
    bench.icc(0, EOIR1, 27);
    assert_eq!(bench.gic.ppi_state(0, 27), state(false, false));
}

#[test]
fn only_ppis_have_a_private_line() {
    let bench = Bench::new(1);
    for intid in [0, 15, 32, u32::MAX] {
        bench.gic.set_ppi(0, intid, true);
    }
    bench.gic.set_ppi(99, 27, true);
    assert_eq!(bench.gicr_read(0, ISPENDR), 0);
    assert_eq!(bench.gic.ppi_state(99, 27), InterruptState::default());
    assert_eq!(bench.gic.ppi_state(0, 32), InterruptState::default());
}

#[test]
fn an_sgi_reaches_the_listed_cpus_and_no_other() {
    let bench = Bench::new(4);
    (0..4).for_each(|cpu| bench.enable(cpu, 5));
    bench.icc(0, SGI1R, sgi(5, 0b1010));
    assert_eq!([0, 1, 2, 3].map(|cpu| bench.irq(cpu)), [false, true, false, true]);
    assert_eq!(bench.icc_read(3, IAR1), 5);
    assert!(bench.irq(1), "each target has its own");
}

#[test]
fn an_sgi_can_target_its_sender() {
    let bench = Bench::new(1);
    bench.enable(0, 0);
    bench.icc(0, SGI1R, sgi(0, 1));
    assert_eq!(bench.icc_read(0, IAR1), 0);
}

#[test]
fn a_broadcast_sgi_reaches_all_but_its_sender() {
    let bench = Bench::new(4);
    (0..4).for_each(|cpu| bench.enable(cpu, 7));
    bench.icc(2, SGI1R, IRM | sgi(7, 0));
    assert_eq!([0, 1, 2, 3].map(|cpu| bench.irq(cpu)), [true, true, false, true]);
}

#[test]
fn a_broadcast_sgi_ignores_its_target_list() {
    let bench = Bench::new(2);
    (0..2).for_each(|cpu| bench.enable(cpu, 7));
    bench.icc(0, SGI1R, IRM | sgi(7, 0b01) | 0xFF << 16);
    assert!(bench.quiet(0) && bench.irq(1));
}

#[test]
fn an_sgi_with_another_affinity_reaches_nobody() {
    let bench = Bench::new(2);
    (0..2).for_each(|cpu| bench.enable(cpu, 1));
    for aff in [1 << 16, 1 << 32, 1 << 48] {
        bench.icc(0, SGI1R, aff | sgi(1, 0b11));
    }
    assert!(bench.quiet(0) && bench.quiet(1));
}

#[test]
fn an_sgi_with_a_range_selector_names_cpus_from_16_on() {
    let bench = Bench::new(2);
    (0..2).for_each(|cpu| bench.enable(cpu, 1));
    bench.icc(0, SGI1R, 1 << 44 | sgi(1, 0b11));
    assert!(bench.quiet(0) && bench.quiet(1));
}

#[test]
fn two_sgis_before_acknowledge_are_one_interrupt() {
    let bench = Bench::new(1);
    bench.enable(0, 1);
    bench.icc(0, SGI1R, sgi(1, 1));
    bench.icc(0, SGI1R, sgi(1, 1));
    assert_eq!(bench.icc_read(0, IAR1), 1);
    bench.icc(0, EOIR1, 1);
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
}

#[test]
fn an_sgi_while_active_is_delivered_after_the_end() {
    let bench = Bench::new(1);
    bench.enable(0, 1);
    bench.icc(0, SGI1R, sgi(1, 1));
    bench.icc_read(0, IAR1);
    bench.icc(0, SGI1R, sgi(1, 1));
    assert!(bench.quiet(0));
    bench.icc(0, EOIR1, 1);
    assert_eq!(bench.icc_read(0, IAR1), 1);
}

#[test]
fn sgi0r_and_asgi1r_send_group_0_only() {
    let bench = Bench::new(1);
    bench.set_group0(0, 2);
    (0..4).for_each(|intid| bench.enable(0, intid));
    bench.icc(0, SGI0R, sgi(1, 1));
    bench.icc(0, ASGI1R, sgi(3, 1));
    assert!(bench.quiet(0), "SGIs 1 and 3 are of group 1");
    bench.icc(0, SGI0R, sgi(2, 1));
    assert!(bench.fiq(0));
    assert_eq!(bench.icc_read(0, IAR0), 2);
}

#[test]
fn sgi1r_sends_either_group_as_the_target_is_configured() {
    let bench = Bench::new(2);
    bench.set_group0(1, 2);
    (0..2).for_each(|cpu| bench.enable(cpu, 2));
    bench.icc(0, SGI1R, sgi(2, 0b11));
    assert!(bench.irq(0) && bench.fiq(1));
}

#[test]
fn an_sgi_can_be_pended_by_the_redistributor() {
    let bench = Bench::new(2);
    bench.enable(1, 4);
    bench.pend(1, 4);
    assert_eq!(bench.icc_read(1, IAR1), 4);
}

#[test]
fn a_reset_gic_delivers_nothing() {
    let bench = Bench::cold(1);
    bench.gic.set_ppi(0, 27, true);
    bench.icc(0, SGI1R, sgi(1, 1));
    assert_eq!(bench.gic.pending(0), PendingLines::default());
}
