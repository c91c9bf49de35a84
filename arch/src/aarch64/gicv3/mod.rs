//! The GICv3 of every backend that exits at trap level: distributor, redistributors, CPU interface and GICv2m frame, for up to
//! [`MAX_CPUS`] PEs in a single Security state (GICD_CTLR.DS = 1, ARE = 1), without LPIs. Not a hypervisor's own GIC.
//!
//! Arm IHI 0069 is the specification cited. There are five priority bits, and SPIs 0 to 255 (INTIDs 32 to 287).
//!
//! # Locking
//!
//! One mutex holds the whole model; every call takes it for a short, bounded time, and no call-out happens under it. What a
//! vCPU must know before it runs or sleeps is published in one atomic byte a PE ([`Gic::pending`]), written under the lock.
//! When a line of another PE than the caller's rises, its [`Kicker`] is called after the lock is released: *publish, kick*;
//! the vCPU's part is to *recheck* `pending` after every run and before every sleep. Then no wake-up is lost.

mod cpu_interface;
mod delivery;
mod distributor;
mod redistributor;
pub mod registers;
pub mod state;
pub(crate) mod v2m;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

pub use state::{GicState, INTID_LIMIT, RestoreError, SPI_COUNT};

use crate::aarch64::layout::{Layout, MAX_CPUS, Window};
use crate::aarch64::raw::SysReg;
use crate::hypervisor::{IrqChip, Kicker, Spi};
use delivery::{CpuSet, LINE_FIQ, LINE_IRQ, Model, bits};
use registers::{GICD_SETSPI_NSR, Icc, V2M_SETSPI_NS};

/// The interrupt inputs of a PE, as the GIC drives them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PendingLines {
    /// A group 1 interrupt can be taken.
    pub irq: bool,
    /// A group 0 interrupt can be taken.
    pub fiq: bool,
}

impl PendingLines {
    /// Whether either input is asserted: WFI must not sleep.
    pub fn any(self) -> bool {
        self.irq || self.fiq
    }
}

/// Where one SGI or PPI is in its life (IHI 0069, 4.1.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InterruptState {
    /// Waiting to be acknowledged.
    pub pending: bool,
    /// Acknowledged and not yet deactivated.
    pub active: bool,
    /// Enabled by the guest.
    pub enabled: bool,
}

/// What crosses threads for one PE.
#[derive(Debug, Default)]
struct Port {
    /// The published input lines; written only under the model's lock.
    lines: AtomicU8,
    kicker: RwLock<Option<Kicker>>,
}

impl Port {
    fn kick(&self) {
        // Cloned so that not even this lock is held during the call-out.
        let kicker = self.kicker.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(kicker) = kicker {
            kicker.kick();
        }
    }
}

/// The register frames.
#[derive(Debug, Clone, Copy)]
enum Frame {
    Distributor,
    Redistributors,
    V2m,
}

/// A GICv3. Shared by all vCPU and device threads; see the module's notes on locking.
#[derive(Debug)]
pub struct Gic {
    model: Mutex<Model>,
    ports: Box<[Port]>,
    windows: [(Frame, Window); 3],
}

impl Gic {
    /// A GIC in the reset state for `cpus` PEs (1 to [`MAX_CPUS`]; more or fewer are taken as the nearest of these), with its
    /// frames where `layout` puts them. PEs cannot be kicked before [`Gic::attach_cpu`].
    pub fn new(cpus: u32, layout: &Layout) -> Gic {
        let cpus = cpus.clamp(1, MAX_CPUS);
        let gic = Gic {
            model: Mutex::new(Model::new(GicState::new(cpus))),
            ports: (0..cpus).map(|_| Port::default()).collect(),
            windows: [
                (Frame::Distributor, layout.gic_dist),
                (Frame::Redistributors, layout.gic_redist),
                (Frame::V2m, layout.gic_v2m),
            ],
        };
        gic.with(None, |_| ());
        gic
    }

    /// Says how to kick the vCPU of `cpu`. Kicks it at once if something is pending already, so that nothing that happened
    /// before is lost.
    pub fn attach_cpu(&self, cpu: u32, kicker: Kicker) {
        let Some(port) = self.ports.get(cpu as usize) else {
            log::debug!("GIC: CPU {cpu} does not exist; its kicker is not used");
            return;
        };
        *port.kicker.write().unwrap_or_else(PoisonError::into_inner) = Some(kicker);
        if self.pending(cpu).any() {
            port.kick();
        }
    }

    /// The interrupt inputs of `cpu` now. Takes no lock: an atomic load.
    pub fn pending(&self, cpu: u32) -> PendingLines {
        let lines = self.ports.get(cpu as usize).map_or(0, |port| port.lines.load(Ordering::SeqCst));
        PendingLines { irq: lines & LINE_IRQ != 0, fiq: lines & LINE_FIQ != 0 }
    }

    /// Reads `data.len()` bytes at `addr` on behalf of `cpu`, which is not kicked. `false`: the address is none of the GIC's
    /// and `data` is untouched. What is no register, or not with this size and alignment, reads as zero.
    pub fn mmio_read(&self, cpu: u32, addr: u64, data: &mut [u8]) -> bool {
        let Some((frame, offset)) = self.find(addr) else { return false };
        let size = data.len();
        let value = if is_natural(offset, size) {
            self.with(Some(cpu), |model| match frame {
                Frame::Distributor => model.distributor_read(offset, size),
                Frame::Redistributors => model.redistributor_read(offset, size),
                Frame::V2m => v2m::read(offset, size),
            })
        } else {
            None
        };
        if value.is_none() {
            log::debug!("GIC: {size}-byte read at {addr:#x} ({frame:?} + {offset:#x}) gives zero");
        }
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(value.unwrap_or(0).to_le_bytes()) {
            *byte = value;
        }
        true
    }

    /// Writes `data` at `addr` on behalf of `cpu`, which is not kicked. `false`: the address is none of the GIC's. Writes of
    /// what is no register, or not with this size and alignment, are ignored.
    pub fn mmio_write(&self, cpu: u32, addr: u64, data: &[u8]) -> bool {
        let Some((frame, offset)) = self.find(addr) else { return false };
        let size = data.len();
        let value = data.iter().take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        let written = is_natural(offset, size)
            && self.with(Some(cpu), |model| match frame {
                Frame::Distributor => model.distributor_write(offset, size, value),
                Frame::Redistributors => model.redistributor_write(offset, size, value),
                Frame::V2m => model.v2m_write(offset, size, value),
            });
        if !written {
            log::debug!(
                "GIC: {size}-byte write of {value:#x} at {addr:#x} ({frame:?} + {offset:#x}) is ignored"
            );
        }
        true
    }

    /// MRS of an ICC_*_EL1 register on `cpu`. `None`: not such a register, or write-only; inject UNDEF. Check
    /// [`Gic::pending`] afterwards: acknowledging changes it.
    pub fn icc_read(&self, cpu: u32, reg: SysReg) -> Option<u64> {
        let reg = Icc::decode(reg)?;
        self.with(Some(cpu), |model| model.icc_read(cpu as usize, reg))
    }

    /// MSR of an ICC_*_EL1 register on `cpu`. `false`: not such a register, or read-only; inject UNDEF. Check
    /// [`Gic::pending`] afterwards: almost any write may change it.
    pub fn icc_write(&self, cpu: u32, reg: SysReg, value: u64) -> bool {
        let Some(reg) = Icc::decode(reg) else { return false };
        self.with(Some(cpu), |model| model.icc_write(cpu as usize, reg, value))
    }

    /// Drives the line of `spi`, from any thread. SPIs from [`SPI_COUNT`] on do not exist and are ignored.
    pub fn set_spi(&self, spi: Spi, level: bool) {
        if spi.0 >= SPI_COUNT {
            log::debug!("GIC: SPI {} does not exist; there are {SPI_COUNT}", spi.0);
            return;
        }
        self.with(None, |model| model.change_pending(0, spi.intid(), |bank, i| bank.set_line(i, level)));
    }

    /// Drives the input of PPI `intid` (16 to 31) of `cpu`. Private interrupts come from the PE's own timers, so this belongs
    /// to the vCPU's own thread, and it is not kicked. From another thread use [`Gic::set_ppi_remote`].
    pub fn set_ppi(&self, cpu: u32, intid: u32, level: bool) {
        self.drive_ppi(Some(cpu), cpu, intid, level);
    }

    /// As [`Gic::set_ppi`], from any thread: the vCPU is kicked if it must look.
    pub fn set_ppi_remote(&self, cpu: u32, intid: u32, level: bool) {
        self.drive_ppi(None, cpu, intid, level);
    }

    fn drive_ppi(&self, caller: Option<u32>, cpu: u32, intid: u32, level: bool) {
        if !(16..32).contains(&intid) {
            log::debug!("GIC: INTID {intid} is not a PPI; ignored");
            return;
        }
        self.with(caller, |model| {
            model.change_pending(cpu as usize, intid, |bank, index| bank.set_line(index, level));
        });
    }

    /// Delivers the message `data` written to `addr`: MSI_SETSPI_NS of the GICv2m frame, or GICD_SETSPI_NSR. Others are
    /// ignored.
    pub fn send_msi(&self, addr: u64, data: u32) {
        let sent = self.with(None, |model| match self.find(addr) {
            Some((Frame::V2m, V2M_SETSPI_NS)) => model.v2m_write(V2M_SETSPI_NS, 4, data.into()),
            Some((Frame::Distributor, GICD_SETSPI_NSR)) => {
                model.distributor_write(GICD_SETSPI_NSR, 4, data.into())
            }
            _ => false,
        });
        if !sent {
            log::debug!("GIC: MSI {data:#x} to {addr:#x} reaches no doorbell or no SPI of its; ignored");
        }
    }

    /// Where SGI or PPI `intid` of `cpu` is in its life. Nothing, if there is no such CPU or interrupt.
    pub fn ppi_state(&self, cpu: u32, intid: u32) -> InterruptState {
        let model = self.lock();
        let Some(state) = model.state.cpus.get(cpu as usize).filter(|_| intid < 32) else {
            return InterruptState::default();
        };
        let test = |word: u32| word >> intid & 1 != 0;
        let bank = &state.private;
        InterruptState {
            pending: test(bank.pending()),
            active: test(bank.active),
            enabled: test(bank.enabled),
        }
    }

    /// Puts everything back into the reset state, input lines included: devices drive theirs anew after their own reset.
    pub fn reset(&self) {
        self.with(None, |model| {
            model.state = GicState::new(model.cpu_count() as u32);
            model.rebuild();
        });
    }

    /// The whole state, for a snapshot.
    pub fn save(&self) -> GicState {
        self.lock().state.clone()
    }

    /// Takes over a saved state. It must come from a machine with as many CPUs; otherwise nothing changes.
    pub fn restore(&self, state: GicState) -> Result<(), RestoreError> {
        let state = state.validated(self.ports.len())?;
        self.with(None, |model| {
            model.state = state;
            model.rebuild();
        });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` under the lock, publishes the lines that it changed, and then, without the lock, kicks the PEs one of
    /// whose lines rose, except `caller`, whose thread this is.
    fn with<R>(&self, caller: Option<u32>, change: impl FnOnce(&mut Model) -> R) -> R {
        let mut rose: CpuSet = 0;
        let result = {
            let mut model = self.lock();
            let result = change(&mut model);
            for cpu in bits(model.refresh()) {
                let new = model.lines(cpu as usize);
                let Some(port) = self.ports.get(cpu as usize) else { continue };
                let old = port.lines.swap(new, Ordering::SeqCst);
                if new & !old != 0 && caller != Some(cpu) {
                    rose |= 1 << cpu;
                }
            }
            result
        };
        for cpu in bits(rose) {
            self.ports[cpu as usize].kick();
        }
        result
    }

    fn find(&self, addr: u64) -> Option<(Frame, u64)> {
        let (frame, window) = self.windows.iter().find(|(_, window)| window.contains(addr))?;
        Some((*frame, addr - window.base))
    }
}

/// Whether an access has a size that registers may have, and is aligned to it.
fn is_natural(offset: u64, size: usize) -> bool {
    matches!(size, 1 | 2 | 4 | 8) && offset & (size as u64 - 1) == 0
}

impl IrqChip for Gic {
    fn set_spi(&self, spi: Spi, level: bool) {
        Gic::set_spi(self, spi, level);
    }

    fn send_msi(&self, addr: u64, data: u32) {
        Gic::send_msi(self, addr, data);
    }
}
