//! Kicks, locking, reset and snapshots.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use crate::hypervisor::IrqChip;

#[test]
fn a_device_interrupt_kicks_its_cpu_only() {
    let bench = Bench::new(2);
    bench.enable(0, 40);
    bench.route(40, 1);
    bench.line(40, true);
    assert_eq!([bench.kicks(0), bench.kicks(1)], [0, 1]);
}

#[test]
fn a_cpu_is_not_kicked_for_what_it_did_itself() {
    let bench = Bench::new(2);
    bench.enable(0, 1);
    bench.enable(1, 1);
    bench.icc(0, SGI1R, 1 << 24 | 0b11);
    assert_eq!([bench.kicks(0), bench.kicks(1)], [0, 1]);
}

#[test]
fn a_cpu_is_kicked_once_until_its_line_falls() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.enable(0, 41);
    bench.line(40, true);
    bench.line(41, true);
    assert_eq!(bench.kicks(0), 1);
    bench.line(40, false);
    bench.line(41, false);
    bench.line(41, true);
    assert_eq!(bench.kicks(0), 2);
}

#[test]
fn an_interrupt_that_cannot_be_taken_kicks_nobody() {
    let bench = Bench::new(1);
    bench.line(40, true);
    bench.enable(0, 41);
    bench.icc(0, PMR, 0);
    bench.line(41, true);
    assert_eq!(bench.kicks(0), 0);
}

#[test]
fn a_ppi_from_its_own_thread_does_not_kick_and_from_another_does() {
    let bench = Bench::new(1);
    bench.enable(0, 27);
    bench.gic.set_ppi(0, 27, true);
    assert_eq!(bench.kicks(0), 0);
    bench.gic.set_ppi(0, 27, false);
    bench.gic.set_ppi_remote(0, 27, true);
    assert_eq!(bench.kicks(0), 1);
}

#[test]
fn attaching_a_cpu_with_something_pending_kicks_it() {
    let bench = Bench::new(1);
    bench.enable(0, 40);
    bench.line(40, true);
    let late = Arc::new(Counter::default());
    bench.gic.attach_cpu(0, Kicker::new(late.clone()));
    assert_eq!(late.0.load(Ordering::SeqCst), 1);
}

/// Calls back into the GIC, which would deadlock if a lock were held.
struct Reentrant(Mutex<Option<Arc<Gic>>>, AtomicBool);

impl Kick for Reentrant {
    fn kick(&self) {
        let gic = self.0.lock().expect("not poisoned").clone().expect("set before the first kick");
        self.1.store(gic.save().cpus.len() == 1 && gic.pending(0).irq, Ordering::SeqCst);
        gic.attach_cpu(5, Kicker::new(Arc::new(Counter::default())));
    }
}

#[test]
fn no_lock_is_held_during_a_kick_and_the_line_is_already_published() {
    let Bench { gic, layout: _, kicks: _ } = {
        let bench = Bench::new(1);
        bench.enable(0, 40);
        bench
    };
    let gic = Arc::new(gic);
    let kick = Arc::new(Reentrant(Mutex::new(Some(gic.clone())), AtomicBool::new(false)));
    gic.attach_cpu(0, Kicker::new(kick.clone()));
    IrqChip::set_spi(&*gic, Spi(8), true);
    assert!(kick.1.load(Ordering::SeqCst));
}

#[test]
fn no_interrupt_is_lost_between_two_threads() {
    const ROUNDS: u32 = 2000;
    /// Remembers a kick until the sleeper looks.
    struct Wake(thread::Thread);
    impl Kick for Wake {
        fn kick(&self) {
            self.0.unpark();
        }
    }
    let bench = Bench::new(2);
    (0..2).for_each(|cpu| bench.enable(cpu, 1));
    // Each CPU answers the other's SGI with one of its own; a lost wake-up would stop the game.
    let play = |cpu: u32| {
        bench.gic.attach_cpu(cpu, Kicker::new(Arc::new(Wake(thread::current()))));
        for _ in 0..ROUNDS {
            while !bench.gic.pending(cpu).any() {
                thread::park();
            }
            let intid = bench.icc_read(cpu, IAR1);
            bench.icc(cpu, EOIR1, intid);
            bench.icc(cpu, SGI1R, 1 << 24 | 1 << (1 - cpu));
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| play(0));
        scope.spawn(|| play(1));
        bench.icc(1, SGI1R, 1 << 24 | 1);
    });
    assert!(bench.irq(0), "the last answer is still waiting");
}

#[test]
fn reset_clears_everything_and_withdraws_what_was_pending() {
    let bench = Bench::new(2);
    bench.enable(0, 40);
    bench.route(40, 1);
    bench.line(40, true);
    bench.gic.reset();
    assert!(bench.quiet(0) && bench.quiet(1));
    assert_eq!(bench.gic.save(), Bench::cold(2).gic.save());
}

#[test]
fn after_reset_the_old_route_is_forgotten() {
    let bench = Bench::new(2);
    bench.route(40, 1);
    bench.gic.reset();
    let fresh = Bench::new(2).gic.save();
    bench.gic.restore(fresh).expect("the shape is right");
    bench.enable(0, 40);
    bench.line(40, true);
    assert!(bench.irq(0) && bench.quiet(1));
}

#[test]
fn a_restored_snapshot_behaves_like_the_original() {
    let original = Bench::new(2);
    original.enable(0, 40);
    original.enable(0, 41);
    original.route(40, 1);
    original.route(41, 1);
    original.set_priority(0, 41, 0x10);
    original.line(40, true);
    original.icc_read(1, IAR1);
    original.line(41, true);

    let copy = Bench::cold(2);
    copy.gic.restore(original.gic.save()).expect("as many CPUs");

    assert!(copy.irq(1) && copy.quiet(0));
    assert_eq!(copy.kicks(1), 1, "the restored CPU is told");
    assert_eq!(copy.icc_read(1, IAR1), 41);
    copy.icc(1, EOIR1, 41);
    copy.icc(1, EOIR1, 40);
    assert!(copy.irq(1), "the level of 40 survived");
}

#[test]
fn a_refused_snapshot_changes_nothing() {
    let bench = Bench::new(2);
    let before = bench.gic.save();
    assert!(bench.gic.restore(Bench::new(1).gic.save()).is_err());
    assert_eq!(bench.gic.save(), before);
}
