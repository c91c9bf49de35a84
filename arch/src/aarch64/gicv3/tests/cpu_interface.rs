//! The CPU interface: masks, preemption, groups, end of interrupt.

use super::*;

/// A bench with one CPU and these interrupts enabled, each with its priority.
fn with_priorities(interrupts: &[(u32, u8)]) -> Bench {
    let bench = Bench::new(1);
    for &(intid, priority) in interrupts {
        bench.set_priority(0, intid, priority);
        bench.enable(0, intid);
    }
    bench
}

#[test]
fn acknowledging_nothing_gives_1023_and_changes_nothing() {
    let bench = Bench::new(1);
    let before = bench.gic.save();
    assert_eq!(bench.icc_read(0, IAR0), SPURIOUS);
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
    assert_eq!(bench.gic.save(), before);
}

#[test]
fn acknowledging_makes_active_and_sets_the_running_priority() {
    let bench = with_priorities(&[(40, 0x50)]);
    bench.pend(0, 40);
    assert_eq!(bench.icc_read(0, RPR), 0xFF);
    assert_eq!(bench.icc_read(0, IAR1), 40);
    assert!(bench.is_active(0, 40) && !bench.is_pending(0, 40));
    assert_eq!(bench.icc_read(0, RPR), 0x50);
    assert_eq!(bench.icc_read(0, AP1R0), 1 << (0x50 >> 3));
    assert_eq!(bench.icc_read(0, AP0R0), 0);
}

#[test]
fn end_of_interrupt_returns_to_idle() {
    let bench = with_priorities(&[(40, 0x50)]);
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    bench.icc(0, EOIR1, 40);
    assert!(!bench.is_active(0, 40));
    assert_eq!(bench.icc_read(0, RPR), 0xFF);
    assert_eq!(bench.icc_read(0, AP1R0), 0);
}

#[test]
fn priority_mask_keeps_five_bits() {
    let bench = Bench::new(1);
    bench.icc(0, PMR, 0xFF);
    assert_eq!(bench.icc_read(0, PMR), 0xF8);
    bench.icc(0, PMR, 0x07);
    assert_eq!(bench.icc_read(0, PMR), 0);
}

#[test]
fn a_priority_equal_to_the_mask_is_masked() {
    let bench = with_priorities(&[(40, 0x80)]);
    bench.icc(0, PMR, 0x80);
    bench.pend(0, 40);
    assert!(bench.quiet(0));
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
    bench.icc(0, PMR, 0x88);
    assert!(bench.irq(0));
}

#[test]
fn the_lowest_priority_is_never_signalled() {
    let bench = with_priorities(&[(40, 0xF8)]);
    bench.pend(0, 40);
    assert!(bench.quiet(0));
}

#[test]
fn a_masked_interrupt_is_still_the_highest_pending() {
    let bench = with_priorities(&[(40, 0x80)]);
    bench.icc(0, PMR, 0);
    bench.pend(0, 40);
    assert_eq!(bench.icc_read(0, HPPIR1), 40);
    assert_eq!(bench.icc_read(0, HPPIR0), SPURIOUS);
}

#[test]
fn reading_hppir_does_not_acknowledge() {
    let bench = with_priorities(&[(40, 0x80)]);
    bench.pend(0, 40);
    bench.icc_read(0, HPPIR1);
    assert!(bench.irq(0) && bench.is_pending(0, 40) && !bench.is_active(0, 40));
}

#[test]
fn a_more_urgent_interrupt_preempts_and_both_end_in_order() {
    let bench = with_priorities(&[(40, 0x80), (41, 0x40)]);
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    bench.pend(0, 41);
    assert!(bench.irq(0));
    assert_eq!(bench.icc_read(0, IAR1), 41);
    assert_eq!(bench.icc_read(0, RPR), 0x40);
    bench.icc(0, EOIR1, 41);
    assert_eq!(bench.icc_read(0, RPR), 0x80);
    bench.icc(0, EOIR1, 40);
    assert_eq!(bench.icc_read(0, RPR), 0xFF);
}

#[test]
fn an_equally_urgent_interrupt_waits() {
    let bench = with_priorities(&[(40, 0x80), (41, 0x80)]);
    bench.pend(0, 41);
    bench.icc_read(0, IAR1);
    bench.pend(0, 40);
    assert!(bench.quiet(0));
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS);
    bench.icc(0, EOIR1, 41);
    assert_eq!(bench.icc_read(0, IAR1), 40);
}

#[test]
fn subpriorities_order_but_do_not_preempt() {
    let bench = with_priorities(&[(40, 0x88), (41, 0x80)]);
    bench.icc(0, BPR1, 4); // group priority [7:4]
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    assert_eq!(bench.icc_read(0, RPR), 0x80, "only the group priority runs");
    bench.pend(0, 41);
    assert!(bench.quiet(0));
    bench.pend(0, 40);
    bench.icc(0, EOIR1, 40);
    assert_eq!(bench.icc_read(0, IAR1), 41);
}

#[test]
fn with_the_smallest_binary_point_every_priority_bit_preempts() {
    let bench = with_priorities(&[(40, 0x88), (41, 0x80)]);
    bench.icc(0, BPR1, 0);
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    bench.pend(0, 41);
    assert!(bench.irq(0));
}

#[test]
fn with_binary_point_7_group_0_never_preempts() {
    let bench = with_priorities(&[(40, 0x80), (41, 0x08)]);
    bench.set_group0(0, 40);
    bench.set_group0(0, 41);
    bench.icc(0, BPR0, 7);
    bench.pend(0, 40);
    assert_eq!(bench.icc_read(0, IAR0), 40);
    bench.pend(0, 41);
    assert!(bench.quiet(0));
}

#[test]
fn binary_points_do_not_go_below_their_minimum() {
    let bench = Bench::new(1);
    bench.icc(0, BPR0, 0);
    bench.icc(0, BPR1, 0);
    assert_eq!([bench.icc_read(0, BPR0), bench.icc_read(0, BPR1)], [2, 3]);
}

#[test]
fn a_common_binary_point_governs_group_1() {
    let bench = with_priorities(&[(40, 0x88), (41, 0x80)]);
    bench.icc(0, BPR0, 3); // group priority [7:4]
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    bench.pend(0, 41);
    assert!(bench.irq(0), "with the binary point of group 1 it preempts");
    bench.icc(0, CTLR, CBPR);
    assert!(bench.quiet(0), "with that of group 0 it does not");
}

#[test]
fn with_a_common_binary_point_bpr1_reads_as_bpr0_plus_1_and_ignores_writes() {
    let bench = Bench::new(1);
    bench.icc(0, BPR0, 3);
    bench.icc(0, CTLR, CBPR);
    bench.icc(0, BPR1, 6);
    assert_eq!(bench.icc_read(0, BPR1), 4);
    bench.icc(0, CTLR, 0);
    assert_eq!(bench.icc_read(0, BPR1), 3);
}

#[test]
fn a_common_binary_point_saturates_at_7() {
    let bench = Bench::new(1);
    bench.icc(0, CTLR, CBPR);
    bench.icc(0, BPR0, 7);
    assert_eq!(bench.icc_read(0, BPR1), 7);
}

#[test]
fn group_0_is_an_fiq_and_group_1_an_irq() {
    let bench = with_priorities(&[(40, 0x80), (41, 0x80)]);
    bench.set_group0(0, 40);
    bench.pend(0, 40);
    assert!(bench.fiq(0));
    assert_eq!(bench.icc_read(0, IAR1), SPURIOUS, "not this group");
    assert_eq!(bench.icc_read(0, IAR0), 40);
    bench.icc(0, EOIR0, 40);
    bench.pend(0, 41);
    assert!(bench.irq(0));
    assert_eq!(bench.icc_read(0, IAR0), SPURIOUS, "not this group");
}

#[test]
fn group_0_uses_its_own_active_priorities() {
    let bench = with_priorities(&[(40, 0x20)]);
    bench.set_group0(0, 40);
    bench.pend(0, 40);
    bench.icc_read(0, IAR0);
    assert_eq!([bench.icc_read(0, AP0R0), bench.icc_read(0, AP1R0)], [1 << 4, 0]);
}

#[test]
fn a_group_disabled_at_the_cpu_neither_signals_nor_blocks_the_other() {
    let bench = with_priorities(&[(40, 0x20), (41, 0x80)]);
    bench.set_group0(0, 40);
    bench.pend(0, 40);
    bench.pend(0, 41);
    bench.icc(0, IGRPEN0, 0);
    assert!(bench.irq(0));
    assert_eq!(bench.icc_read(0, HPPIR1), 41);
    assert_eq!(bench.icc_read(0, IAR0), SPURIOUS);
    assert_eq!(bench.icc_read(0, IAR1), 41);
}

#[test]
fn group_enables_read_back() {
    let bench = Bench::new(1);
    bench.icc(0, IGRPEN0, 0);
    bench.icc(0, IGRPEN1, 0xFFFF_FFFF);
    assert_eq!([bench.icc_read(0, IGRPEN0), bench.icc_read(0, IGRPEN1)], [0, 1]);
}

#[test]
fn with_eoimode_eoir_drops_the_priority_and_dir_deactivates() {
    let bench = with_priorities(&[(40, 0x80), (41, 0x80)]);
    bench.icc(0, CTLR, EOIMODE);
    bench.line(40, true);
    bench.icc_read(0, IAR1);
    bench.icc(0, EOIR1, 40);
    assert_eq!(bench.icc_read(0, RPR), 0xFF);
    assert!(bench.is_active(0, 40) && bench.quiet(0));
    bench.pend(0, 41);
    assert!(bench.irq(0), "others of the same priority come through");
    assert_eq!(bench.icc_read(0, IAR1), 41);
    bench.icc(0, EOIR1, 41);
    bench.icc(0, DIR, 41);
    bench.icc(0, DIR, 40);
    assert!(!bench.is_active(0, 40) && bench.irq(0), "the level pends again");
}

#[test]
fn another_cpu_may_deactivate_an_spi() {
    let bench = Bench::new(2);
    bench.enable(0, 40);
    bench.icc(0, CTLR, EOIMODE);
    bench.icc(1, CTLR, EOIMODE);
    bench.line(40, true);
    bench.icc_read(0, IAR1);
    bench.icc(0, EOIR1, 40);
    bench.icc(1, DIR, 40);
    assert!(!bench.is_active(0, 40) && bench.irq(0));
    assert_eq!(bench.kicks(0), 2, "CPU 0 is kicked by the line and by the other CPU's write");
}

#[test]
fn dir_without_eoimode_is_ignored() {
    let bench = with_priorities(&[(40, 0x80)]);
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    bench.icc(0, DIR, 40);
    assert!(bench.is_active(0, 40));
}

#[test]
fn end_of_special_or_absent_interrupts_is_ignored() {
    let bench = with_priorities(&[(40, 0x80)]);
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    for intid in [1020, 1021, 1022, 1023, 288, 8192, 0xFF_FFFF] {
        bench.icc(0, EOIR1, intid);
    }
    assert_eq!(bench.icc_read(0, RPR), 0x80);
    assert!(bench.is_active(0, 40));
}

#[test]
fn end_of_interrupt_in_the_wrong_group_is_ignored() {
    let bench = with_priorities(&[(40, 0x80)]);
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    bench.icc(0, EOIR0, 40);
    assert_eq!(bench.icc_read(0, RPR), 0x80);
    assert!(bench.is_active(0, 40));
}

#[test]
fn end_of_interrupt_without_one_running_is_ignored() {
    let bench = with_priorities(&[(40, 0x80)]);
    bench.activate(0, 40);
    bench.icc(0, EOIR1, 40);
    assert!(bench.is_active(0, 40));
}

#[test]
fn a_group_0_interrupt_preempts_group_1_and_each_ends_in_its_own() {
    let bench = with_priorities(&[(40, 0x80), (41, 0x20)]);
    bench.set_group0(0, 41);
    bench.pend(0, 40);
    bench.icc_read(0, IAR1);
    bench.pend(0, 41);
    assert_eq!(bench.icc_read(0, IAR0), 41);
    bench.icc(0, EOIR1, 40);
    assert_eq!(bench.icc_read(0, RPR), 0x20, "the group 0 interrupt runs");
    assert!(bench.is_active(0, 40) && bench.icc_read(0, AP1R0) != 0, "out of order: ignored");
    bench.icc(0, EOIR0, 41);
    bench.icc(0, EOIR1, 40);
    assert_eq!(bench.icc_read(0, RPR), 0xFF);
}

#[test]
fn active_priorities_can_be_written_and_hold_interrupts_back() {
    let bench = with_priorities(&[(40, 0x80)]);
    bench.icc(0, AP1R0, 1 << 2);
    bench.pend(0, 40);
    assert_eq!(bench.icc_read(0, RPR), 0x10);
    assert!(bench.quiet(0));
    bench.icc(0, AP1R0, 0);
    assert!(bench.irq(0));
}

#[test]
fn changing_the_priority_of_a_pending_interrupt_takes_effect() {
    let bench = with_priorities(&[(40, 0xF8)]);
    bench.pend(0, 40);
    bench.set_priority(0, 40, 0x80);
    assert!(bench.irq(0));
}

#[test]
fn control_register_tells_five_priority_bits_and_16_id_bits() {
    let bench = Bench::new(1);
    bench.icc(0, CTLR, u64::MAX);
    let ctlr = bench.icc_read(0, CTLR);
    assert_eq!(ctlr >> 8 & 7, 4, "PRIbits");
    assert_eq!(ctlr >> 11 & 7, 0, "IDbits");
    assert_eq!(ctlr & 0xFF, CBPR | EOIMODE);
}

#[test]
fn affinity_bits_of_control_register_agree_with_the_distributors() {
    let bench = Bench::new(1);
    let (ctlr, typer) = (bench.icc_read(0, CTLR), bench.gicd_read(super::super::registers::GICD_TYPER));
    assert_eq!(ctlr >> 15 & 1, u64::from(typer >> 24 & 1), "A3V");
    assert_eq!(ctlr >> 18 & 1, u64::from(typer >> 26 & 1), "RSS");
}

#[test]
fn system_register_enable_cannot_be_cleared() {
    let bench = Bench::new(1);
    bench.icc(0, SRE, 0);
    assert_eq!(bench.icc_read(0, SRE), 7);
}

#[test]
fn read_only_registers_refuse_writes_and_write_only_ones_reads() {
    let bench = Bench::new(1);
    assert!([IAR0, IAR1, HPPIR0, HPPIR1, RPR].iter().all(|&reg| !bench.gic.icc_write(0, reg, 0)));
    let write_only = [EOIR0, EOIR1, DIR, SGI0R, SGI1R, ASGI1R];
    assert!(write_only.iter().all(|&reg| bench.gic.icc_read(0, reg).is_none()));
}

#[test]
fn what_is_no_register_of_the_cpu_interface_is_refused() {
    let bench = Bench::new(1);
    let ap0r1 = SysReg::new(3, 0, 12, 8, 5); // exists with six priority bits only
    let vbar = SysReg::new(3, 0, 12, 0, 0);
    let icc_sre_el2 = SysReg::new(3, 4, 12, 9, 5);
    for reg in [ap0r1, vbar, icc_sre_el2] {
        assert_eq!(bench.gic.icc_read(0, reg), None, "{reg:?}");
        assert!(!bench.gic.icc_write(0, reg, 0), "{reg:?}");
    }
}

#[test]
fn a_cpu_that_does_not_exist_has_no_registers() {
    let bench = Bench::new(1);
    assert_eq!(bench.gic.icc_read(1, PMR), None);
    assert!(!bench.gic.icc_write(u32::MAX, PMR, 0));
    assert!(bench.quiet(8));
}
