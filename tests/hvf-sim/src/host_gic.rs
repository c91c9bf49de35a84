//! The GICv3 that macOS 15 has in its kernel: hvrun's model of a GIC behind the address map, the rules and the GICv2m frame that
//! Apple's has. Who calls it from C is `gic`; who runs with it is `run`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use hvrun_arch::aarch64::gicv3::registers::{
    GICR_TYPER, GICR_TYPER_LAST, ICFGR, IIDR, ISPENDR, V2M_IIDR, V2M_SETSPI_NS, V2M_TYPER,
};
use hvrun_arch::aarch64::gicv3::{Gic, GicState, INTID_LIMIT, PendingLines, SPI_COUNT};
use hvrun_arch::aarch64::layout::{GIC_REDIST_SIZE, Layout, MAX_CPUS, Window};
use hvrun_arch::aarch64::raw::SysReg;
use hvrun_arch::{Kick, Kicker, Spi};

use crate::run::Shared;
use crate::state::violation;

/// Size and alignment of the distributor.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// Size of the redistributor region: frames for the most vCPUs that there can be, whatever there is.
pub const REDISTRIBUTOR_REGION_SIZE: u64 = 32 << 20;
/// Size of one redistributor.
pub const REDISTRIBUTOR_SIZE: u64 = GIC_REDIST_SIZE;
/// Size and alignment of the MSI region.
pub const MSI_REGION_SIZE: u64 = 0x1_0000;
/// Alignment of all regions.
pub const ALIGNMENT: u64 = 0x1_0000;
/// The SPIs: first INTID and how many.
pub const SPIS: (u32, u32) = (INTID_LIMIT - SPI_COUNT, SPI_COUNT);

/// For accesses that come from no vCPU.
const NO_CPU: u32 = u32::MAX;

/// What `hv_gic_create` is given.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GicConfig {
    pub distributor: Option<u64>,
    pub redistributor: Option<u64>,
    pub msi_base: Option<u64>,
    /// First INTID and how many.
    pub msi_range: Option<(u32, u32)>,
}

impl GicConfig {
    /// The regions: base and size.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (u64, u64)> {
        let regions = [
            (self.distributor, DISTRIBUTOR_SIZE),
            (self.redistributor, REDISTRIBUTOR_REGION_SIZE),
            (self.msi_base, MSI_REGION_SIZE),
        ];
        regions.into_iter().filter_map(|(base, size)| base.map(|base| (base, size)))
    }

    pub(crate) fn overlaps(&self, ipa: u64, size: u64) -> bool {
        self.regions().any(|(base, length)| ipa < base + length && base < ipa + size)
    }

    /// Whether `intid` is one that only messages raise.
    pub(crate) fn is_msi(&self, intid: u32) -> bool {
        self.msi_range.is_some_and(|(first, count)| intid.wrapping_sub(first) < count)
    }
}

/// The interrupt controller of the VM.
pub(crate) struct HostGic {
    model: Gic,
    config: GicConfig,
    /// The vCPUs whose MPIDR_EL1 is known, by its lowest field: those have redistributors.
    present: AtomicU32,
}

struct Wake(Weak<Shared>);

impl Kick for Wake {
    fn kick(&self) {
        if let Some(vcpu) = self.0.upgrade() {
            vcpu.wake();
        }
    }
}

impl HostGic {
    /// A GIC in the reset state, with regions that were checked.
    pub(crate) fn new(config: GicConfig) -> HostGic {
        let mut layout = Layout::new(MAX_CPUS, 0);
        layout.gic_dist = Window::new(config.distributor.unwrap_or(0), DISTRIBUTOR_SIZE);
        let redistributors = REDISTRIBUTOR_SIZE * u64::from(MAX_CPUS);
        layout.gic_redist = Window::new(config.redistributor.unwrap_or(0), redistributors);
        // The frame here can be anywhere and have any range, which the model's cannot.
        layout.gic_v2m = Window::new(0, 0);
        HostGic { model: Gic::new(MAX_CPUS, &layout), config, present: AtomicU32::new(0) }
    }

    pub(crate) fn config(&self) -> GicConfig {
        self.config
    }

    /// A vCPU has an affinity now, and with it a redistributor.
    pub(crate) fn add_cpu(&self, affinity: u64, shared: &Arc<Shared>) {
        let Ok(cpu @ 0..MAX_CPUS) = u32::try_from(affinity) else {
            violation(format!("the simulator's GIC has CPUs 0 to {}, not {affinity:#x}", MAX_CPUS - 1));
            return;
        };
        self.model.attach_cpu(cpu, Kicker::new(Arc::new(Wake(Arc::downgrade(shared)))));
        self.present.fetch_or(1 << cpu, Ordering::SeqCst);
    }

    /// The redistributor of a vCPU, by number.
    pub(crate) fn cpu_of(&self, vcpu: &Shared) -> Option<u32> {
        let cpu = u32::try_from(vcpu.affinity()?).ok()?;
        self.is_present(cpu).then_some(cpu)
    }

    fn is_present(&self, cpu: u32) -> bool {
        cpu < MAX_CPUS && self.present.load(Ordering::SeqCst) >> cpu & 1 != 0
    }

    pub(crate) fn pending(&self, vcpu: &Shared) -> PendingLines {
        self.cpu_of(vcpu).map_or(PendingLines::default(), |cpu| self.model.pending(cpu))
    }

    pub(crate) fn set_ppi(&self, vcpu: &Shared, intid: u32, level: bool) {
        if let Some(cpu) = self.cpu_of(vcpu) {
            self.model.set_ppi(cpu, intid, level);
        }
    }

    pub(crate) fn icc_read(&self, vcpu: &Shared, reg: SysReg) -> Option<u64> {
        self.model.icc_read(self.cpu_of(vcpu)?, reg)
    }

    pub(crate) fn icc_write(&self, vcpu: &Shared, reg: SysReg, value: u64) -> bool {
        self.cpu_of(vcpu).is_some_and(|cpu| self.model.icc_write(cpu, reg, value))
    }

    /// The offset of an address in the MSI frame.
    fn msi_offset(&self, ipa: u64) -> Option<u64> {
        self.config.msi_base.map(|base| ipa.wrapping_sub(base)).filter(|offset| *offset < MSI_REGION_SIZE)
    }

    /// Which redistributor an address belongs to, and the offset in it.
    fn redistributor(&self, ipa: u64) -> Option<(u32, u64)> {
        let offset = ipa.wrapping_sub(self.config.redistributor?);
        let frame = ((offset / REDISTRIBUTOR_SIZE) as u32, offset % REDISTRIBUTOR_SIZE);
        (offset < REDISTRIBUTOR_REGION_SIZE).then_some(frame)
    }

    /// Whether the redistributors cannot be accessed: no vCPU has told its affinity.
    fn faults(&self) -> bool {
        self.present.load(Ordering::SeqCst) == 0
    }

    /// The last redistributor that belongs to a vCPU.
    fn last_cpu(&self) -> u32 {
        self.present.load(Ordering::SeqCst).checked_ilog2().unwrap_or(0)
    }

    /// Reads a register frame. False: the address is not the GIC's, or faults.
    pub(crate) fn mmio_read(&self, ipa: u64, data: &mut [u8]) -> bool {
        if let Some(offset) = self.msi_offset(ipa) {
            let (first, count) = self.config.msi_range.unwrap_or((0, 0));
            let value = match offset {
                V2M_TYPER => first << 16 | count,
                V2M_IIDR => IIDR,
                _ => 0,
            };
            copy(data, value.into());
            return true;
        }
        let Some((cpu, offset)) = self.redistributor(ipa) else {
            return self.model.mmio_read(NO_CPU, ipa, data);
        };
        if self.faults() {
            return false;
        }
        if !self.is_present(cpu) {
            violation(format!(
                "{ipa:#x} is read: in the redistributor region, but no vCPU's; it hides what else is there"
            ));
            data.fill(0);
            return true;
        }
        let done = self.model.mmio_read(NO_CPU, ipa, data);
        if offset == GICR_TYPER {
            // The model has more redistributors than there are vCPUs.
            if let Some(low) = data.first_mut() {
                *low &= !(GICR_TYPER_LAST as u8);
                *low |= if cpu == self.last_cpu() { GICR_TYPER_LAST as u8 } else { 0 };
            }
        }
        done
    }

    /// Writes a register frame. False: the address is not the GIC's, or faults.
    pub(crate) fn mmio_write(&self, ipa: u64, data: &[u8]) -> bool {
        if let Some(offset) = self.msi_offset(ipa) {
            if offset == V2M_SETSPI_NS {
                let value = data.iter().take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                self.send_msi(value);
            }
            return true;
        }
        let Some((cpu, _)) = self.redistributor(ipa) else {
            return self.model.mmio_write(NO_CPU, ipa, data);
        };
        if self.faults() {
            return false;
        }
        if !self.is_present(cpu) {
            violation(format!(
                "{ipa:#x} is written: in the redistributor region, but no vCPU's; it hides what else is there"
            ));
            return true;
        }
        self.model.mmio_write(NO_CPU, ipa, data)
    }

    /// Reads the distributor register at `offset`.
    pub(crate) fn distributor_read(&self, offset: u64, size: usize) -> u64 {
        let mut data = [0; 8];
        self.model.mmio_read(NO_CPU, self.config.distributor.unwrap_or(0) + offset, &mut data[..size]);
        u64::from_le_bytes(data)
    }

    /// Writes the distributor register at `offset`.
    pub(crate) fn distributor_write(&self, offset: u64, size: usize, value: u64) {
        let address = self.config.distributor.unwrap_or(0) + offset;
        self.model.mmio_write(NO_CPU, address, &value.to_le_bytes()[..size]);
    }

    /// Whether the guest has made `intid` edge-triggered.
    fn is_edge(&self, intid: u32) -> bool {
        let config = self.distributor_read(ICFGR + u64::from(intid / 16) * 4, 4);
        config >> (2 * (intid % 16) + 1) & 1 != 0
    }

    /// Drives an SPI. For an edge-triggered one every high level is an edge, and low ones are ignored.
    pub(crate) fn set_spi(&self, intid: u32, level: bool) {
        let Some(spi) = intid.checked_sub(SPIS.0).map(Spi) else { return };
        if self.is_edge(intid) {
            if !level {
                return;
            }
            self.model.set_spi(spi, false);
        }
        self.model.set_spi(spi, level);
    }

    /// Makes the SPI of a message pending. False: it is not one of the MSI range.
    pub(crate) fn send_msi(&self, intid: u32) -> bool {
        if !self.config.is_msi(intid) {
            return false;
        }
        self.distributor_write(ISPENDR + u64::from(intid / 32) * 4, 4, 1 << (intid % 32));
        true
    }

    /// Resets distributor and redistributors; the CPU interfaces belong to the vCPUs.
    pub(crate) fn reset(&self) {
        let mut new = GicState::new(MAX_CPUS);
        for (new, old) in new.cpus.iter_mut().zip(self.model.save().cpus) {
            new.interface = old.interface;
        }
        // It has the shape of this GIC.
        let _ = self.model.restore(new);
    }

    /// Everything but the CPU interfaces.
    pub(crate) fn save(&self) -> GicState {
        let mut state = self.model.save();
        state.cpus.iter_mut().for_each(|cpu| cpu.interface = Default::default());
        state
    }

    /// Takes over what [`HostGic::save`] gave. False: it does not fit.
    pub(crate) fn restore(&self, mut state: GicState) -> bool {
        for (new, old) in state.cpus.iter_mut().zip(self.model.save().cpus) {
            new.interface = old.interface;
        }
        self.model.restore(state).is_ok()
    }
}

fn copy(data: &mut [u8], value: u64) {
    data.fill(0);
    for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
        *byte = value;
    }
}
