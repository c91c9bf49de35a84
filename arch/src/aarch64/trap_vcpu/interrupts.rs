//! The interrupt controller of a trap-level machine: our GICv3 model, or one in the host. A vCPU asks the same questions of both;
//! what the host's does by itself (acknowledging, sleeping, the virtual timer's PPI) needs no answer.

use std::fmt;
use std::sync::Arc;

use super::TrapVcpu;
use crate::aarch64::gicv3::{Gic, PendingLines};
use crate::aarch64::raw::{RawVcpu, SysReg};
use crate::hypervisor::{HypervisorError, IrqChip};

/// A GICv3 in the host. Its CPU interface, its register frames, WFI and the virtual timer's PPI never come to user space.
pub trait HostGic: IrqChip + fmt::Debug {
    /// Puts distributor and redistributors into their reset state. No vCPU runs.
    fn reset(&self);
}

/// See the module.
#[derive(Debug, Clone)]
pub enum Interrupts {
    /// Ours.
    Model(Arc<Gic>),
    /// The host's.
    Host(Arc<dyn HostGic>),
}

impl Interrupts {
    /// As devices see it.
    pub fn irq_chip(&self) -> Arc<dyn IrqChip> {
        match self {
            Interrupts::Model(gic) => gic.clone(),
            Interrupts::Host(gic) => gic.clone(),
        }
    }

    /// Back to the reset state. No vCPU runs.
    pub fn reset(&self) {
        match self {
            Interrupts::Model(gic) => gic.reset(),
            Interrupts::Host(gic) => gic.reset(),
        }
    }

    /// The interrupt inputs that the run loop must drive: never any with the host's, which drives them itself.
    pub(super) fn pending(&self, cpu: u32) -> PendingLines {
        match self {
            Interrupts::Model(gic) => gic.pending(cpu),
            Interrupts::Host(_) => PendingLines::default(),
        }
    }

    /// See [`Gic::mmio_read`].
    pub(super) fn mmio_read(&self, cpu: u32, addr: u64, data: &mut [u8]) -> bool {
        match self {
            Interrupts::Model(gic) => gic.mmio_read(cpu, addr, data),
            Interrupts::Host(_) => false,
        }
    }

    /// See [`Gic::mmio_write`].
    pub(super) fn mmio_write(&self, cpu: u32, addr: u64, data: &[u8]) -> bool {
        match self {
            Interrupts::Model(gic) => gic.mmio_write(cpu, addr, data),
            Interrupts::Host(_) => false,
        }
    }

    /// See [`Gic::icc_read`].
    pub(super) fn icc_read(&self, cpu: u32, reg: SysReg) -> Option<u64> {
        match self {
            Interrupts::Model(gic) => gic.icc_read(cpu, reg),
            Interrupts::Host(_) => None,
        }
    }

    /// See [`Gic::icc_write`].
    pub(super) fn icc_write(&self, cpu: u32, reg: SysReg, value: u64) -> bool {
        match self {
            Interrupts::Model(gic) => gic.icc_write(cpu, reg, value),
            Interrupts::Host(_) => false,
        }
    }
}

impl<R: RawVcpu> TrapVcpu<R> {
    /// Drives the input of one of this CPU's PPIs.
    pub(super) fn set_ppi(&mut self, intid: u32, level: bool) -> Result<(), HypervisorError> {
        match self.machine.interrupts() {
            Interrupts::Model(gic) => {
                gic.set_ppi(self.id, intid, level);
                Ok(())
            }
            Interrupts::Host(_) => self.raw.set_host_ppi(intid, level),
        }
    }
}
