//! One VM: memory slots, vCPUs, and the interrupt lines into the kernel's GIC.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_CAP_ARM_INJECT_EXT_DABT,
    KVM_CAP_ARM_NISV_TO_USER, kvm_enable_cap, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::clock::Clock;
use super::gic::Vgic;
use super::vcpu::{self, KvmVcpu};
use crate::aarch64::gicv3::v2m;
use crate::aarch64::layout::{Layout, V2M_SPI};
use crate::hypervisor::{BootState, EventFds, HypervisorError, IrqChip, Spi, Vcpu, Vm, VmConfig};
use crate::kvm::error::call_failed;
use crate::kvm::irq;
use crate::kvm::rendezvous::Rendezvous;
use crate::memory::GuestMemory;

/// A virtual machine in the kernel.
#[derive(Debug)]
pub(super) struct KvmVm(Arc<Machine>);

/// What the VM, its vCPUs and its devices share.
#[derive(Debug)]
pub(super) struct Machine {
    /// The vCPUs that their threads have not taken yet.
    vcpus: Mutex<Vec<Option<VcpuFd>>>,
    gic: Vgic,
    /// Why the last reset failed.
    broken: Mutex<Option<String>>,
    fd: VmFd,
    layout: Layout,
    /// After a reset the CPUs start together.
    start: Arc<Rendezvous>,
    clock: Clock,
    target: kvm_vcpu_init,
    inject_aborts: bool,
    /// Mapped into the VM, so it goes last.
    memory: GuestMemory,
}

impl KvmVm {
    /// Makes `fd` into the machine of `config`.
    ///
    /// Ordering requirements: memory slots and capabilities, then the vCPUs *in the order of their numbers* (before Linux 6.7
    /// the timer raises its interrupt at the vCPU that was created as the n-th, not at the one numbered n), each initialised;
    /// then the GIC; then the PMUs, whose interrupts it takes. That is why the vCPUs come into being here and not on their
    /// threads; KVM asks for that only for speed.
    pub(super) fn new(fd: VmFd, config: VmConfig) -> Result<Self, HypervisorError> {
        map(&fd, &config.memory)?;
        let cap = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        if let Err(e) = fd.enable_cap(&cap) {
            // Linux before 5.5: such an access ends the guest with an error.
            log::debug!("KVM_CAP_ARM_NISV_TO_USER is not there: {e}");
        }
        let mut target = kvm_vcpu_init::default();
        fd.get_preferred_target(&mut target)
            .map_err(|e| call_failed("KVM_ARM_PREFERRED_TARGET", e.errno()))?;
        let inject_aborts = fd.check_extension_raw(KVM_CAP_ARM_INJECT_EXT_DABT.into()) > 0;
        let mut vcpus = Vec::new();
        for id in 0..config.cpus {
            let vcpu = fd.create_vcpu(id.into()).map_err(|e| call_failed("KVM_CREATE_VCPU", e.errno()))?;
            vcpu::initialise(&vcpu, &features(target, id, config.layout.pmu))?;
            vcpus.push(Some(vcpu));
        }
        let gic = Vgic::new(&fd, &config.layout, config.cpus)?;
        if let Some(ppi) = config.layout.pmu {
            vcpus.iter().flatten().try_for_each(|vcpu| vcpu::start_pmu(vcpu, ppi))?;
        }
        Ok(KvmVm(Arc::new(Machine {
            vcpus: Mutex::new(vcpus),
            gic,
            broken: Mutex::new(None),
            fd,
            layout: config.layout,
            start: Arc::new(Rendezvous::new(config.cpus)),
            clock: Clock::default(),
            target,
            inject_aborts,
            memory: config.memory,
        })))
    }
}

/// Maps the guest's RAM.
fn map(fd: &VmFd, memory: &GuestMemory) -> Result<(), HypervisorError> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the `Machine` will hold the memory, and every vCPU the `Machine`, so that the mapping outlives the VM;
        // if no `Machine` comes of it, the VM is closed before the caller's memory goes. `GuestMemory` never gives out
        // references into it.
        unsafe { fd.set_user_memory_region(region) }
            .map_err(|e| call_failed("KVM_SET_USER_MEMORY_REGION", e.errno()))?;
    }
    Ok(())
}

/// What KVM_ARM_VCPU_INIT takes for vCPU `id`. SVE and pointer authentication stay off.
fn features(target: kvm_vcpu_init, id: u32, pmu: Option<u32>) -> kvm_vcpu_init {
    let mut init = target;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    if pmu.is_some() {
        init.features[0] |= 1 << KVM_ARM_VCPU_PMU_V3;
    }
    if id != 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    init
}

impl Machine {
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub(super) fn start(&self) -> &Arc<Rendezvous> {
        &self.start
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Whether KVM_SET_VCPU_EVENTS can make an external data abort.
    pub(super) fn injects_aborts(&self) -> bool {
        self.inject_aborts
    }

    fn broken(&self) -> MutexGuard<'_, Option<String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What KVM_ARM_VCPU_INIT takes for vCPU `id`, always the same.
    pub(super) fn features(&self, id: u32) -> kvm_vcpu_init {
        features(self.target, id, self.layout.pmu)
    }

    /// An error if the GIC could not be reset.
    pub(super) fn check_reset(&self) -> Result<(), HypervisorError> {
        match &*self.broken() {
            Some(reason) => Err(HypervisorError::Call { call: "reset of the GIC", reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Answers a read in the GICv2m frame. `false`: `addr` lies elsewhere.
    pub(super) fn mmio_read(&self, addr: u64, data: &mut [u8]) -> bool {
        if !self.layout.gic_v2m.contains(addr) {
            return false;
        }
        let value = v2m::read(addr - self.layout.gic_v2m.base, data.len()).unwrap_or(0);
        let len = data.len().min(8);
        data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
        true
    }

    /// Takes a write to the GICv2m frame. `false`: `addr` lies elsewhere.
    pub(super) fn mmio_write(&self, addr: u64, data: &[u8]) -> bool {
        if !self.layout.gic_v2m.contains(addr) {
            return false;
        }
        let mut bytes = [0; 8];
        let len = data.len().min(8);
        bytes[..len].copy_from_slice(&data[..len]);
        let offset = addr - self.layout.gic_v2m.base;
        self.message(v2m::doorbell(offset, data.len(), u64::from_le_bytes(bytes)));
        true
    }

    /// A message is an edge on the line of its SPI.
    fn message(&self, intid: Option<u32>) {
        let Some(intid) = intid else { return };
        let spi = Spi(intid.wrapping_sub(V2M_SPI.intid()).wrapping_add(V2M_SPI.0));
        self.set_spi(spi, true);
        self.set_spi(spi, false);
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, id: u32, boot: BootState) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let mut vcpus = self.0.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = usize::try_from(id).ok().and_then(|id| vcpus.get_mut(id)).and_then(Option::take);
        drop(vcpus);
        let Some(vcpu) = taken else {
            let reason = format!("there is no CPU {id}, or it has been made already");
            return Err(HypervisorError::Call { call: "KVM_CREATE_VCPU", reason });
        };
        Ok(Box::new(KvmVcpu::new(self.0.clone(), vcpu, id, boot)?))
    }

    fn irq_chip(&self) -> Arc<dyn IrqChip> {
        self.0.clone()
    }

    fn reset(&self) {
        self.0.start.close();
        *self.0.broken() = self.0.gic.reset().err().map(|error| error.to_string());
    }

    fn event_fds(&self) -> Option<Arc<dyn EventFds>> {
        Some(self.0.clone())
    }
}

impl IrqChip for Machine {
    fn set_spi(&self, spi: Spi, level: bool) {
        if let Err(e) = self.fd.set_irq_line(irq::line(spi), level) {
            log::debug!("KVM_IRQ_LINE of SPI {} failed: {e}", spi.0);
        }
    }

    fn send_msi(&self, addr: u64, data: u32) {
        if !self.mmio_write(addr, &data.to_le_bytes()) {
            log::debug!("a message to {addr:#x}, which is not in the GICv2m frame, goes nowhere");
        }
    }
}
