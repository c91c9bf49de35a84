//! The backend's hypervisor and its virtual machines. macOS allows a process one VM at a time; what a vCPU is, is in `vcpu`.
//!
//! Ordering requirements: the VM, then the host's GIC, then memory, then vCPUs, each on its own thread; at the end every vCPU
//! comes out of the guest before the first is destroyed (`quiesce`), then memory is unmapped exactly as it was mapped, then the
//! VM is destroyed.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::availability;
use super::ffi::{self, Framework, GicPlace};
use super::quiesce::Quiesce;
use super::ram::Ram;
use super::vcpu::HvfVcpu;
use super::{gic_layout, ipa, sys};
use crate::aarch64::layout::{Layout, MAX_CPUS, V2M_SPI, V2M_SPI_COUNT};
use crate::aarch64::trap_vcpu::{HostGic, TrapMachine, TrapVcpu};
use crate::hypervisor::{
    Accel, BootState, GicChoice, Hypervisor, HypervisorError, IrqChip, RamDiscard, Spi, Vcpu, Vm, VmConfig,
};
use crate::memory::GuestMemory;

/// This process has a VM.
static VM_EXISTS: AtomicBool = AtomicBool::new(false);
/// Held while it is tried out whether a VM can be made.
static TRIAL: Mutex<()> = Mutex::new(());

fn unavailable(reason: String) -> HypervisorError {
    HypervisorError::Unavailable { accel: Accel::Hvf, reason }
}

/// What `result` of hv_vm_create on `host` means.
fn refused(result: availability::HvReturn, host: availability::Host) -> HypervisorError {
    let reason = availability::refused(result, host, sys::program().as_deref());
    if availability::is_forbidden(result, host) {
        HypervisorError::Forbidden { accel: Accel::Hvf, reason }
    } else {
        unavailable(reason)
    }
}

/// The right to have the process' one VM.
#[derive(Debug)]
struct Claim;

impl Claim {
    fn new() -> Result<Claim, HypervisorError> {
        let _no_trial = TRIAL.lock().unwrap_or_else(PoisonError::into_inner);
        if VM_EXISTS.swap(true, Ordering::SeqCst) {
            return Err(HypervisorError::Call {
                call: "hv_vm_create",
                reason: "this process has a virtual machine already, and macOS allows it one".to_owned(),
            });
        }
        Ok(Claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        VM_EXISTS.store(false, Ordering::SeqCst);
    }
}

/// The host's GIC and the address map with it, or why not.
type HostGicOrReason = Result<(ffi::Gic, Layout), String>;

/// Hypervisor.framework of this Mac.
#[derive(Debug)]
pub struct HvfHypervisor {
    framework: Arc<Framework>,
    max_ipa_bits: u32,
    default_ipa_bits: u32,
}

impl HvfHypervisor {
    /// Opens it if this Mac has it and this process may use it; otherwise the error says why not and what would help.
    pub fn open() -> Result<Self, HypervisorError> {
        let framework = Framework::load().map_err(unavailable)?;
        let host = sys::host();
        if let Some(reason) = availability::unsupported(host) {
            return Err(unavailable(reason));
        }
        {
            // Whether the process has the entitlement is seen only when it makes a VM. If it has one, it may.
            let _trial = TRIAL.lock().unwrap_or_else(PoisonError::into_inner);
            if !VM_EXISTS.load(Ordering::SeqCst) {
                let result = framework.try_vm();
                if result != availability::HvReturn::SUCCESS {
                    return Err(refused(result, host));
                }
            }
        }
        let max_ipa_bits = framework.max_ipa_bits()?;
        let default_ipa_bits = framework.default_ipa_bits().unwrap_or(ipa::USUAL_BITS);
        Ok(HvfHypervisor { framework, max_ipa_bits, default_ipa_bits })
    }

    /// The host's GIC and the address map with it, if the machine gets it; else the reason why not.
    fn host_gic(&self, layout: Layout, choice: GicChoice) -> Result<HostGicOrReason, HypervisorError> {
        if choice == GicChoice::Soft {
            return Ok(Err("so it was asked for".to_owned()));
        }
        let found = match self.framework.gic() {
            None => Err("macOS has one in its kernel from version 15 on".to_owned()),
            Some(gic) => gic
                .shape()
                .map_err(|error| error.to_string())
                .and_then(|shape| gic_layout::place(layout, shape))
                .map(|layout| (*gic, layout)),
        };
        match found {
            Err(reason) if choice == GicChoice::Host => {
                let reason = format!("{reason}; auto and soft would do");
                Err(HypervisorError::Gic { accel: Accel::Hvf, reason })
            }
            found => Ok(found),
        }
    }

    fn check_cpus(&self, cpus: u32) -> Result<(), HypervisorError> {
        let max = self.framework.max_vcpus()?.min(MAX_CPUS);
        if cpus == 0 || cpus > max {
            return Err(HypervisorError::TooManyCpus { accel: Accel::Hvf, asked: cpus, max });
        }
        Ok(())
    }
}

impl Hypervisor for HvfHypervisor {
    fn accel(&self) -> Accel {
        Accel::Hvf
    }

    fn ipa_bits(&self) -> u32 {
        self.max_ipa_bits
    }

    fn layout(&self, cpus: u32, ram: u64, gic: GicChoice) -> Result<Layout, HypervisorError> {
        let layout = Layout::new(cpus, ram);
        // PCIe memory takes the room that is left in the smallest address space that RAM fits into.
        let bits = ipa::bits_for(layout.ram.end(), self.default_ipa_bits, self.max_ipa_bits);
        let layout = layout.with_ipa_bits(bits);
        Ok(self.host_gic(layout.clone(), gic)?.map_or(layout, |(_, layout)| layout))
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, HypervisorError> {
        self.check_cpus(config.cpus)?;
        let layout = Layout::new(config.cpus, config.layout.ram.size);
        let host_gic = match self.host_gic(layout, config.gic)? {
            Ok((gic, layout)) => {
                check_gic_windows(&config.layout, &layout)?;
                Some(gic)
            }
            Err(reason) => {
                log::info!("the interrupt controller is ours: {reason}");
                None
            }
        };
        let end = config.layout.windows().into_iter().map(|(_, window)| window.end()).fold(0, u64::max);
        let end = config
            .memory
            .iter()
            .map(|region| region.start_addr().0.saturating_add(region.len()))
            .fold(end, u64::max);
        if self.max_ipa_bits < 64 && end > 1 << self.max_ipa_bits {
            return Err(HypervisorError::AddressSpace {
                accel: Accel::Hvf,
                end,
                limit: 1 << self.max_ipa_bits,
            });
        }
        let ipa_bits = ipa::bits_for(end, self.default_ipa_bits, self.max_ipa_bits);
        let asked = (ipa_bits != self.default_ipa_bits).then_some(ipa_bits);
        let mut guest = Guest::create(self.framework.clone(), ipa_bits, asked, &config)?;
        if let Some(gic) = host_gic {
            guest.create_gic(gic, &config.layout)?;
        }
        guest.map_memory()?;
        let guest = Arc::new(guest);
        let trap = match host_gic {
            Some(gic) => TrapMachine::with_host_gic(&config, Arc::new(HvfGic(gic))),
            None => TrapMachine::new(&config),
        };
        log::debug!("{ipa_bits} bits of guest address, interrupt controller: {:?}", trap.interrupts());
        Ok(Arc::new(HvfVm { trap, guest }))
    }
}

/// The host's GIC can only be where [`Hypervisor::layout`] puts it.
fn check_gic_windows(asked: &Layout, right: &Layout) -> Result<(), HypervisorError> {
    let windows = |layout: &Layout| [layout.gic_dist, layout.gic_v2m, layout.gic_redist];
    if windows(asked) == windows(right) {
        return Ok(());
    }
    Err(HypervisorError::Gic {
        accel: Accel::Hvf,
        reason: format!(
            "the address map has it at {:x?}, and it must be at {:x?}: take the map that the backend gives",
            windows(asked),
            windows(right)
        ),
    })
}

/// The process' VM: everything but its vCPUs. It goes when the last of those and the machine are gone.
pub struct Guest {
    framework: Arc<Framework>,
    ipa_bits: u32,
    gic: Option<ffi::Gic>,
    quiesce: Quiesce,
    memory: GuestMemory,
    /// Its mappings, once they are made.
    ram: Option<Ram>,
    /// Last, so that it is dropped when all is over.
    _claim: Claim,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("ipa_bits", &self.ipa_bits)
            .field("host_gic", &self.gic.is_some())
            .field("ram", &self.ram)
            .finish_non_exhaustive()
    }
}

impl Guest {
    fn create(
        framework: Arc<Framework>,
        ipa_bits: u32,
        asked: Option<u32>,
        config: &VmConfig,
    ) -> Result<Self, HypervisorError> {
        let claim = Claim::new()?;
        let result = framework.create_vm(asked)?;
        if result != availability::HvReturn::SUCCESS {
            return Err(refused(result, sys::host()));
        }
        Ok(Guest {
            framework,
            ipa_bits,
            gic: None,
            quiesce: Quiesce::new(config.cpus),
            memory: config.memory.clone(),
            ram: None,
            _claim: claim,
        })
    }

    fn create_gic(&mut self, gic: ffi::Gic, layout: &Layout) -> Result<(), HypervisorError> {
        let place = GicPlace {
            dist: layout.gic_dist,
            redist: layout.gic_redist,
            msi: layout.gic_v2m,
            msi_intid: V2M_SPI.intid(),
            msi_count: V2M_SPI_COUNT,
        };
        gic.create(&self.framework, place).map_err(|error| HypervisorError::Gic {
            accel: Accel::Hvf,
            reason: format!("{error}; soft would do"),
        })?;
        self.gic = Some(gic);
        Ok(())
    }

    fn map_memory(&mut self) -> Result<(), HypervisorError> {
        self.ram = Some(Ram::map(self.framework.clone(), self.memory.clone())?);
        Ok(())
    }

    /// The calls.
    pub fn framework(&self) -> &Arc<Framework> {
        &self.framework
    }

    /// Bits of guest physical address.
    pub fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// The host's GIC, if the machine has it.
    pub fn host_gic(&self) -> Option<&ffi::Gic> {
        self.gic.as_ref()
    }

    /// The RAM.
    pub fn ram(&self) -> Option<&Ram> {
        self.ram.as_ref()
    }

    /// Who runs.
    pub fn quiesce(&self) -> &Quiesce {
        &self.quiesce
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.ram = None;
        // SAFETY: every vCPU holds a reference to this value, so there is none any more.
        if let Err(error) = unsafe { self.framework.destroy_vm() } {
            log::error!("the virtual machine cannot be destroyed: {error}");
        }
    }
}

/// One machine.
struct HvfVm {
    trap: Arc<TrapMachine>,
    guest: Arc<Guest>,
}

impl Vm for HvfVm {
    fn create_vcpu(&self, id: u32, boot: BootState) -> Result<Box<dyn Vcpu>, HypervisorError> {
        if id >= self.trap.cpus() {
            return Err(HypervisorError::Call {
                call: "create_vcpu",
                reason: format!("there is no CPU {id}; the machine has {}", self.trap.cpus()),
            });
        }
        sys::prefer_this_thread();
        let raw = HvfVcpu::create(self.guest.clone(), id)?;
        Ok(Box::new(TrapVcpu::new(self.trap.clone(), id, raw, boot)?))
    }

    fn irq_chip(&self) -> Arc<dyn IrqChip> {
        self.trap.interrupts().irq_chip()
    }

    fn ram_discard(&self) -> Option<Arc<dyn RamDiscard>> {
        Some(Arc::new(GuestRam(Arc::downgrade(&self.guest))))
    }

    fn reset(&self) {
        self.trap.reset();
    }
}

/// The RAM of a machine that may be gone.
struct GuestRam(Weak<Guest>);

impl fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestRam")
    }
}

impl RamDiscard for GuestRam {
    fn granule(&self) -> u64 {
        Ram::granule()
    }

    fn discard(&self, addr: u64, len: u64) -> Result<(), HypervisorError> {
        let guest = self.0.upgrade();
        let ram = guest.as_ref().and_then(|guest| guest.ram());
        let gone = || HypervisorError::Call { call: "discard", reason: "the machine is gone".to_owned() };
        ram.ok_or_else(gone)?.discard(addr, len)
    }
}

/// The host's GIC as devices and the machine see it.
struct HvfGic(ffi::Gic);

impl fmt::Debug for HvfGic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host's GIC")
    }
}

impl IrqChip for HvfGic {
    fn set_spi(&self, spi: Spi, level: bool) {
        if let Err(error) = self.0.set_spi(spi.intid(), level) {
            log::debug!("SPI {} to {level}: {error}", spi.0);
        }
    }

    fn send_msi(&self, addr: u64, data: u32) {
        if let Err(error) = self.0.send_msi(addr, data) {
            log::debug!("MSI {data:#x} to {addr:#x}: {error}");
        }
    }
}

impl HostGic for HvfGic {
    fn reset(&self) {
        if let Err(error) = self.0.reset() {
            log::error!("the interrupt controller cannot be reset: {error}");
        }
    }
}
