//! The GIC as a guest and as devices see it: a bench with register accessors, and one file of sentences a part.

mod cpu_interface;
mod distributor;
mod private;
mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::registers::{
    GICD_CTLR, GICD_IROUTER, GICR_WAKER, ICACTIVER, ICENABLER, ICFGR, ICPENDR, IGROUPR, IPRIORITYR,
    ISACTIVER, ISENABLER, ISPENDR,
};
use super::{Gic, PendingLines};
use crate::aarch64::layout::{GIC_REDIST_SIZE, Layout};
use crate::aarch64::raw::SysReg;
use crate::hypervisor::{Kick, Kicker, Spi};

const PMR: SysReg = SysReg::new(3, 0, 4, 6, 0);
const IAR0: SysReg = SysReg::new(3, 0, 12, 8, 0);
const EOIR0: SysReg = SysReg::new(3, 0, 12, 8, 1);
const HPPIR0: SysReg = SysReg::new(3, 0, 12, 8, 2);
const BPR0: SysReg = SysReg::new(3, 0, 12, 8, 3);
const AP0R0: SysReg = SysReg::new(3, 0, 12, 8, 4);
const AP1R0: SysReg = SysReg::new(3, 0, 12, 9, 0);
const DIR: SysReg = SysReg::new(3, 0, 12, 11, 1);
const RPR: SysReg = SysReg::new(3, 0, 12, 11, 3);
const SGI1R: SysReg = SysReg::new(3, 0, 12, 11, 5);
const ASGI1R: SysReg = SysReg::new(3, 0, 12, 11, 6);
const SGI0R: SysReg = SysReg::new(3, 0, 12, 11, 7);
const IAR1: SysReg = SysReg::new(3, 0, 12, 12, 0);
const EOIR1: SysReg = SysReg::new(3, 0, 12, 12, 1);
const HPPIR1: SysReg = SysReg::new(3, 0, 12, 12, 2);
const BPR1: SysReg = SysReg::new(3, 0, 12, 12, 3);
const CTLR: SysReg = SysReg::new(3, 0, 12, 12, 4);
const SRE: SysReg = SysReg::new(3, 0, 12, 12, 5);
const IGRPEN0: SysReg = SysReg::new(3, 0, 12, 12, 6);
const IGRPEN1: SysReg = SysReg::new(3, 0, 12, 12, 7);

const EOIMODE: u64 = 1 << 1;
const CBPR: u64 = 1 << 0;
const SPURIOUS: u64 = 1023;
const PRIORITY: u8 = 0xA0;

/// Counts the kicks of one CPU.
#[derive(Default)]
struct Counter(AtomicU32);

impl Kick for Counter {
    fn kick(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A GIC and its address map.
struct Bench {
    gic: Gic,
    layout: Layout,
    kicks: Vec<Arc<Counter>>,
}

impl Bench {
    /// A GIC as after reset.
    fn cold(cpus: u32) -> Bench {
        let layout = Layout::new(cpus, 1 << 30);
        let gic = Gic::new(cpus, &layout);
        let kicks: Vec<Arc<Counter>> = (0..cpus).map(|_| Arc::default()).collect();
        for (cpu, counter) in (0..).zip(&kicks) {
            gic.attach_cpu(cpu, Kicker::new(counter.clone()));
        }
        Bench { gic, layout, kicks }
    }

    /// A GIC whose CPUs are awake, with both groups enabled, everything in group 1 and at one priority, no mask, and no
    /// interrupt enabled.
    fn new(cpus: u32) -> Bench {
        let bench = Bench::cold(cpus);
        for word in 1..9 {
            bench.gicd(IGROUPR + 4 * word, u32::MAX);
        }
        for intid in 32..288 {
            bench.gicd8(IPRIORITYR + intid, PRIORITY);
        }
        for cpu in 0..cpus {
            bench.gicr_rd(cpu, GICR_WAKER, 0);
            bench.gicr(cpu, IGROUPR, u32::MAX);
            for intid in 0..32 {
                bench.set_priority(cpu, intid, PRIORITY);
            }
            bench.icc(cpu, PMR, 0xFF);
            bench.icc(cpu, IGRPEN0, 1);
            bench.icc(cpu, IGRPEN1, 1);
        }
        bench.gicd(GICD_CTLR, 3);
        bench
    }

    fn write(&self, addr: u64, data: &[u8]) {
        assert!(self.gic.mmio_write(0, addr, data), "{addr:#x} is the GIC's");
    }

    fn read<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut data = [0xEE; N];
        assert!(self.gic.mmio_read(0, addr, &mut data), "{addr:#x} is the GIC's");
        data
    }

    fn gicd(&self, offset: u64, value: u32) {
        self.write(self.layout.gic_dist.base + offset, &value.to_le_bytes());
    }

    fn gicd8(&self, offset: u64, value: u8) {
        self.write(self.layout.gic_dist.base + offset, &[value]);
    }

    fn gicd_read(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(self.layout.gic_dist.base + offset))
    }

    /// Address of an offset in RD_base of `cpu`; SGI_base is 64 KiB further.
    fn rd_base(&self, cpu: u32, offset: u64) -> u64 {
        self.layout.gic_redist.base + GIC_REDIST_SIZE * u64::from(cpu) + offset
    }

    fn gicr_rd(&self, cpu: u32, offset: u64, value: u32) {
        self.write(self.rd_base(cpu, offset), &value.to_le_bytes());
    }

    fn gicr_rd_read(&self, cpu: u32, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(self.rd_base(cpu, offset)))
    }

    fn gicr(&self, cpu: u32, offset: u64, value: u32) {
        self.gicr_rd(cpu, 0x1_0000 + offset, value);
    }

    fn gicr_read(&self, cpu: u32, offset: u64) -> u32 {
        self.gicr_rd_read(cpu, 0x1_0000 + offset)
    }

    fn icc(&self, cpu: u32, reg: SysReg, value: u64) {
        assert!(self.gic.icc_write(cpu, reg, value), "{reg:?} can be written");
    }

    fn icc_read(&self, cpu: u32, reg: SysReg) -> u64 {
        self.gic.icc_read(cpu, reg).expect("the register can be read")
    }

    /// A bit of a one-bit-an-interrupt register, private or shared.
    fn set_bit(&self, cpu: u32, register: u64, intid: u32) {
        match intid {
            0..32 => self.gicr(cpu, register, 1 << intid),
            _ => self.gicd(register + u64::from(intid / 32 * 4), 1 << (intid % 32)),
        }
    }

    fn bit(&self, cpu: u32, register: u64, intid: u32) -> bool {
        let word = match intid {
            0..32 => self.gicr_read(cpu, register),
            _ => self.gicd_read(register + u64::from(intid / 32 * 4)),
        };
        word >> (intid % 32) & 1 != 0
    }

    fn enable(&self, cpu: u32, intid: u32) {
        self.set_bit(cpu, ISENABLER, intid);
    }

    fn disable(&self, cpu: u32, intid: u32) {
        self.set_bit(cpu, ICENABLER, intid);
    }

    fn pend(&self, cpu: u32, intid: u32) {
        self.set_bit(cpu, ISPENDR, intid);
    }

    fn unpend(&self, cpu: u32, intid: u32) {
        self.set_bit(cpu, ICPENDR, intid);
    }

    fn activate(&self, cpu: u32, intid: u32) {
        self.set_bit(cpu, ISACTIVER, intid);
    }

    fn deactivate(&self, cpu: u32, intid: u32) {
        self.set_bit(cpu, ICACTIVER, intid);
    }

    fn is_pending(&self, cpu: u32, intid: u32) -> bool {
        self.bit(cpu, ISPENDR, intid)
    }

    fn is_active(&self, cpu: u32, intid: u32) -> bool {
        self.bit(cpu, ISACTIVER, intid)
    }

    fn set_priority(&self, cpu: u32, intid: u32, priority: u8) {
        match intid {
            0..32 => {
                self.write(self.rd_base(cpu, 0x1_0000 + IPRIORITYR + u64::from(intid)), &[priority]);
            }
            _ => self.gicd8(IPRIORITYR + u64::from(intid), priority),
        }
    }

    /// Puts an interrupt into group 0.
    fn set_group0(&self, cpu: u32, intid: u32) {
        match intid {
            0..32 => self.gicr(cpu, IGROUPR, self.gicr_read(cpu, IGROUPR) & !(1 << intid)),
            _ => {
                let register = IGROUPR + u64::from(intid / 32 * 4);
                self.gicd(register, self.gicd_read(register) & !(1 << (intid % 32)));
            }
        }
    }

    fn set_edge(&self, intid: u32) {
        let register = ICFGR + u64::from(intid / 16 * 4);
        self.gicd(register, self.gicd_read(register) | 2 << (intid % 16 * 2));
    }

    fn route(&self, intid: u32, route: u64) {
        let addr = self.layout.gic_dist.base + GICD_IROUTER + 8 * u64::from(intid);
        self.write(addr, &route.to_le_bytes());
    }

    fn line(&self, intid: u32, level: bool) {
        self.gic.set_spi(Spi(intid - 32), level);
    }

    fn irq(&self, cpu: u32) -> bool {
        self.gic.pending(cpu) == PendingLines { irq: true, fiq: false }
    }

    fn fiq(&self, cpu: u32) -> bool {
        self.gic.pending(cpu) == PendingLines { irq: false, fiq: true }
    }

    fn quiet(&self, cpu: u32) -> bool {
        self.gic.pending(cpu) == PendingLines::default()
    }

    fn kicks(&self, cpu: usize) -> u32 {
        self.kicks[cpu].0.load(Ordering::SeqCst)
    }
}
