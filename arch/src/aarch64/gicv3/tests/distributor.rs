//! Distributor and GICv2m frame: identification, access sizes, triggers, enabling and routing of SPIs.

use super::super::registers::*;
use super::{Bench, EOIR1, IAR1, IGRPEN1, PMR, PRIORITY, SPURIOUS};
use crate::aarch64::layout::{V2M_SPI, V2M_SPI_COUNT};
use crate::hypervisor::Spi;

#[test]
fn typer_announces_288_intids_one_security_state_and_no_lpis() {
    let typer = Bench::cold(2).gicd_read(GICD_TYPER);
    assert_eq!(typer & 0x1F, 8, "ITLinesNumber");
    assert_eq!(typer >> 5 & 7, 0, "CPUNumber is for GICs without affinity routing");
    assert_eq!(typer & (1 << 10 | 1 << 16 | 1 << 17 | 1 << 25), 0, "SecurityExtn, MBIS, LPIS, No1N");
    assert_eq!(typer >> 19 & 0x1F, 9, "IDbits");
}

#[test]
fn control_register_keeps_ds_and_are_set() {
    let bench = Bench::cold(1);
    bench.gicd(GICD_CTLR, 0);
    assert_eq!(bench.gicd_read(GICD_CTLR), CTLR_DS | CTLR_ARE);
    bench.gicd(GICD_CTLR, u32::MAX);
    assert_eq!(bench.gicd_read(GICD_CTLR), CTLR_DS | CTLR_ARE | 3);
}

#[test]
fn architecture_revision_of_distributor_and_redistributor_is_3() {
    let bench = Bench::cold(1);
    assert_eq!(bench.gicd_read(0xFFE8) >> 4 & 15, 3);
    assert_eq!(bench.gicr_rd_read(0, 0xFFE8) >> 4 & 15, 3);
}

#[test]
fn implementer_is_the_same_in_all_frames() {
    let bench = Bench::cold(1);
    assert_eq!(bench.gicd_read(GICD_IIDR), IIDR);
    assert_eq!(bench.gicr_rd_read(0, GICR_IIDR), IIDR);
}

#[test]
fn priorities_keep_five_bits() {
    let bench = Bench::cold(1);
    bench.gicd(IPRIORITYR + 32, 0xFFFF_FFFF);
    assert_eq!(bench.gicd_read(IPRIORITYR + 32), 0xF8F8_F8F8);
}

#[test]
fn a_word_holds_four_priorities_lowest_intid_first() {
    let bench = Bench::cold(1);
    bench.gicd(IPRIORITYR + 32, 0x8060_4020);
    assert_eq!(bench.read::<1>(bench.layout.gic_dist.base + IPRIORITYR + 33), [0x40]);
    assert_eq!(bench.gicd_read(IPRIORITYR + 32), 0x8060_4020);
}

#[test]
fn one_priority_can_be_written_as_a_byte() {
    let bench = Bench::cold(1);
    bench.gicd8(IPRIORITYR + 34, 0x40);
    assert_eq!(bench.gicd_read(IPRIORITYR + 32), 0x0040_0000);
    assert_eq!(bench.read::<1>(bench.layout.gic_dist.base + IPRIORITYR + 34), [0x40]);
}

#[test]
fn bytes_of_word_registers_read_as_zero_and_ignore_writes() {
    let bench = Bench::cold(1);
    bench.gicd8(ISENABLER + 4, 0xFF);
    assert_eq!(bench.gicd_read(ISENABLER + 4), 0);
    bench.gicd(ISENABLER + 4, 0xFF);
    assert_eq!(bench.read::<1>(bench.layout.gic_dist.base + ISENABLER + 4), [0]);
}

#[test]
fn misaligned_and_odd_sized_accesses_read_as_zero() {
    let bench = Bench::cold(1);
    assert_eq!(bench.read::<4>(bench.layout.gic_dist.base + GICD_TYPER + 2), [0; 4]);
    assert_eq!(bench.read::<3>(bench.layout.gic_dist.base + GICD_TYPER), [0; 3]);
    assert_eq!(bench.read::<16>(bench.layout.gic_dist.base + GICD_IROUTER + 256), [0; 16]);
}

#[test]
fn addresses_outside_the_frames_are_not_handled() {
    let bench = Bench::cold(2);
    let mut data = [0xEE; 4];
    assert!(!bench.gic.mmio_read(0, bench.layout.gic_redist.end(), &mut data));
    assert!(!bench.gic.mmio_write(0, bench.layout.gic_dist.base - 4, &data));
    assert_eq!(data, [0xEE; 4]);
}

#[test]
fn group_modifier_nsacr_and_the_private_bank_read_as_zero() {
    let bench = Bench::cold(1);
    for offset in [IGRPMODR + 4, 0xE04, IGROUPR, ISENABLER, IPRIORITYR, ICFGR, 0x820, 0xF10] {
        bench.gicd(offset, u32::MAX);
        assert_eq!(bench.gicd_read(offset), 0, "{offset:#x}");
    }
}

#[test]
fn interrupts_behind_the_last_spi_do_not_exist() {
    let bench = Bench::new(1);
    bench.gicd(ISENABLER + 4 * 9, u32::MAX);
    assert_eq!(bench.gicd_read(ISENABLER + 4 * 9), 0);
    bench.gic.set_spi(Spi(256), true);
    bench.gic.set_spi(Spi(u32::MAX), true);
    assert!(bench.quiet(0));
}

#[test]
fn the_last_spi_is_delivered() {
    let bench = Bench::new(1);
    bench.enable(0, 287);
    bench.line(287, true);
    assert_eq!(bench.icc_read(0, IAR1), 287);
}

#[test]
fn an_spi_pending_while_disabled_is_delivered_when_enabled() {
    let bench = Bench::new(1);
    bench.line(40, true);
    assert!(bench.quiet(0));
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
    bench.enable(0, 40);
    assert!(bench.irq(0));
    assert_eq!(bench.icc_read(0, IAR1), 40);
}

#[test]
fn disabling_a_pending_spi_withdraws_it_but_keeps_it_pending() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.pend(0, 40);
    bench.disable(0, 40);
    assert!(bench.quiet(0));
    assert!(bench.is_pending(0, 40));
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
}

#[test]
fn disabling_the_group_in_the_distributor_withdraws_its_interrupts() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.pend(0, 40);
    bench.gicd(GICD_CTLR, 1);
    assert!(bench.quiet(0));
    bench.gicd(GICD_CTLR, 2);
    assert!(bench.irq(0));
}

#[test]
fn a_level_still_high_pends_again_after_deactivation() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.line(40, true);
    assert_eq!(bench.icc_read(0, IAR1), 40);
    assert!(bench.quiet(0), "active interrupts are not offered again");
    assert!(bench.is_pending(0, 40) && bench.is_active(0, 40));
    bench.icc(0, EOIR1, 40);
    assert!(bench.irq(0));
}

#[test]
fn a_level_that_fell_while_active_does_not_pend_again() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.line(40, true);
    bench.icc_read(0, IAR1);
    bench.line(40, false);
    bench.icc(0, EOIR1, 40);
    assert!(bench.quiet(0));
    assert!(!bench.is_pending(0, 40));
}

#[test]
fn a_level_that_falls_before_acknowledge_is_spurious() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.line(40, true);
    bench.line(40, false);
    assert!(bench.quiet(0));
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
}

#[test]
fn clearing_pending_does_not_clear_a_level_that_is_high() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.line(40, true);
    bench.unpend(0, 40);
    assert!(bench.is_pending(0, 40) && bench.irq(0));
}

#[test]
fn a_software_pended_level_interrupt_fires_once() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.pend(0, 40);
    assert_eq!(bench.icc_read(0, IAR1), 40);
    bench.icc(0, EOIR1, 40);
    assert!(bench.quiet(0));
}

#[test]
fn a_pulse_on_an_edge_interrupt_is_remembered() {
    let bench = Bench::new(1);
    bench.set_edge(40);
    bench.line(40, true);
    bench.line(40, false);
    bench.enable(0, 40);
    assert_eq!(bench.icc_read(0, IAR1), 40);
    assert!(!bench.is_pending(0, 40));
}

#[test]
fn an_edge_while_active_makes_active_and_pending() {
    let bench = Bench::new(1);
    bench.set_edge(40);
    bench.enable(0, 40);
    bench.line(40, true);
    bench.icc_read(0, IAR1);
    bench.line(40, false);
    bench.line(40, true);
    assert!(bench.is_active(0, 40) && bench.is_pending(0, 40) && bench.quiet(0));
    bench.icc(0, EOIR1, 40);
    assert!(bench.irq(0), "the second edge is delivered");
}

#[test]
fn clearing_pending_drops_an_edge() {
    let bench = Bench::new(1);
    bench.set_edge(40);
    bench.enable(0, 40);
    bench.line(40, true);
    bench.unpend(0, 40);
    assert!(bench.quiet(0) && !bench.is_pending(0, 40));
}

#[test]
fn configuration_reads_back_in_the_upper_bit_of_each_pair() {
    let bench = Bench::cold(1);
    bench.gicd(ICFGR + 8, 0xFFFF_FFFF);
    assert_eq!(bench.gicd_read(ICFGR + 8), 0xAAAA_AAAA);
    assert_eq!(bench.gicd_read(ICFGR + 12), 0);
}

#[test]
fn setting_active_by_register_holds_an_interrupt_back() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.activate(0, 40);
    bench.line(40, true);
    assert!(bench.quiet(0));
    bench.deactivate(0, 40);
    assert!(bench.irq(0));
}

#[test]
fn an_spi_goes_to_the_cpu_of_its_route_only() {
    let bench = Bench::new(4);
    bench.enable(0, 40);
    bench.route(40, 2);
    bench.line(40, true);
    assert!(bench.irq(2));
    assert!(bench.quiet(0) && bench.quiet(1) && bench.quiet(3));
}

#[test]
fn rerouting_moves_a_pending_spi() {
    let bench = Bench::new(2);
    bench.enable(0, 40);
    bench.line(40, true);
    bench.route(40, 1);
    assert!(bench.quiet(0) && bench.irq(1));
}

#[test]
fn a_route_to_no_cpu_delivers_nowhere() {
    let bench = Bench::new(2);
    bench.enable(0, 40);
    bench.route(40, 0x0000_0100);
    bench.line(40, true);
    assert!(bench.quiet(0) && bench.quiet(1));
}

#[test]
fn a_route_can_be_accessed_in_halves() {
    let bench = Bench::cold(1);
    let offset = GICD_IROUTER + 8 * 40;
    bench.gicd(offset, 0xFFFF_FFFF);
    bench.gicd(offset + 4, 0xFFFF_FFFF);
    assert_eq!(bench.gicd_read(offset), 0x80FF_FFFF);
    assert_eq!(bench.gicd_read(offset + 4), 0xFF);
    let whole = u64::from_le_bytes(bench.read(bench.layout.gic_dist.base + offset));
    assert_eq!(whole, 0xFF_80FF_FFFF);
}

#[test]
fn a_1_of_n_spi_goes_to_exactly_one_cpu() {
    let bench = Bench::new(4);
    bench.enable(0, 40);
    bench.route(40, IROUTER_IRM);
    bench.line(40, true);
    assert_eq!((0..4).filter(|&cpu| bench.irq(cpu)).count(), 1);
}

#[test]
fn a_1_of_n_spi_avoids_cpus_that_do_not_take_part() {
    let bench = Bench::new(4);
    bench.gicr_rd(0, GICR_WAKER, WAKER_PROCESSOR_SLEEP);
    bench.icc(1, IGRPEN1, 0);
    bench.gicr_rd(2, GICR_CTLR, GICR_CTLR_DPG1NS);
    bench.enable(0, 40);
    bench.route(40, IROUTER_IRM);
    bench.line(40, true);
    assert!(bench.irq(3));
}

#[test]
fn a_1_of_n_spi_moves_on_when_its_cpu_masks_it() {
    let bench = Bench::new(2);
    bench.enable(0, 40);
    bench.route(40, IROUTER_IRM);
    bench.line(40, true);
    assert!(bench.irq(0));
    bench.icc(0, PMR, 0x80);
    assert!(bench.quiet(0) && bench.irq(1));
    assert_eq!(bench.icc_read(1, IAR1), 40);
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
}

#[test]
fn a_1_of_n_level_is_offered_again_after_its_end() {
    let bench = Bench::new(2);
    bench.enable(0, 40);
    bench.route(40, IROUTER_IRM);
    bench.line(40, true);
    bench.icc_read(0, IAR1);
    assert!(bench.quiet(0) && bench.quiet(1));
    bench.icc(0, EOIR1, 40);
    assert!(bench.irq(0) && bench.quiet(1));
}

#[test]
fn setspi_and_clrspi_drive_a_level_spi() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.gicd(GICD_SETSPI_NSR, 40);
    bench.icc_read(0, IAR1);
    bench.icc(0, EOIR1, 40);
    assert!(bench.irq(0), "held until it is cleared");
    bench.gicd(GICD_CLRSPI_NSR, 40);
    assert!(bench.quiet(0));
}

#[test]
fn setspi_takes_a_halfword_and_no_private_interrupt() {
    let bench = Bench::new(1);
    bench.set_edge(40);
    bench.enable(0, 40);
    bench.enable(0, 3);
    bench.gicd(GICD_SETSPI_NSR, 3);
    assert!(bench.quiet(0));
    bench.write(bench.layout.gic_dist.base + GICD_SETSPI_NSR, &40_u16.to_le_bytes());
    assert_eq!(bench.icc_read(0, IAR1), 40);
}

#[test]
fn v2m_frame_tells_its_spis() {
    let bench = Bench::cold(1);
    let typer = u32::from_le_bytes(bench.read(bench.layout.gic_v2m.base + V2M_TYPER));
    assert_eq!(typer >> 16 & 0x3FF, V2M_SPI.intid());
    assert_eq!(typer & 0x3FF, V2M_SPI_COUNT);
}

#[test]
fn a_write_of_the_v2m_doorbell_and_send_msi_are_the_same() {
    let bench = Bench::new(1);
    let doorbell = bench.layout.gic_v2m.base + V2M_SETSPI_NS;
    for intid in [80, 81] {
        bench.set_edge(intid);
        bench.enable(0, intid);
    }
    bench.write(doorbell, &80_u32.to_le_bytes());
    bench.gic.send_msi(doorbell, 81);
    assert_eq!([bench.icc_read(0, IAR1), bench.is_pending(0, 81).into()], [80, 1]);
}

#[test]
fn an_msi_outside_the_frames_spis_is_ignored() {
    let bench = Bench::new(1);
    let doorbell = bench.layout.gic_v2m.base + V2M_SETSPI_NS;
    for (addr, data) in [(doorbell, 79), (doorbell, 144), (doorbell + 4, 80), (0, 80), (doorbell, u32::MAX)] {
        bench.gic.send_msi(addr, data);
    }
    assert!((32..288).all(|intid| !bench.is_pending(0, intid)));
}

#[test]
fn the_lower_of_equal_priorities_wins_by_intid_and_a_lower_value_wins_over_that() {
    let bench = Bench::new(1);
    for intid in [3, 45, 200] {
        bench.enable(0, intid);
        bench.pend(0, intid);
    }
    bench.set_priority(0, 200, PRIORITY - 8);
    let order = [(); 3].map(|()| {
        let intid = bench.icc_read(0, IAR1);
        bench.icc(0, EOIR1, intid);
        intid
    });
    assert_eq!(order, [200, 3, 45]);
}
