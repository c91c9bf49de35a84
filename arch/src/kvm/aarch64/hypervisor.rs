//! Opening KVM, and finding out what it can do before a machine is made of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::gic;
use super::vm::KvmVm;
use crate::aarch64::layout::{GicVersion, Layout, MAX_CPUS, PMU_PPI};
use crate::hypervisor::{Accel, GicChoice, Hypervisor, HypervisorError, Vm, VmConfig};
use crate::kvm::error::{self, Access, call_failed, missing};

/// Guest physical addresses of a kernel that does not say how many (before Linux 4.20).
const DEFAULT_IPA_BITS: u32 = 40;

/// Opens KVM.
pub fn open() -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    Ok(Arc::new(KvmHypervisor::new()?))
}

/// The kernel's KVM.
#[derive(Debug)]
pub(super) struct KvmHypervisor {
    kvm: Kvm,
    /// What KVM_CAP_ARM_VM_IPA_SIZE says; 0 if the kernel does not know it.
    ipa_limit: u32,
    gic: GicVersion,
    /// The VM that the kernel was asked about, for the first machine.
    spare: Mutex<Option<VmFd>>,
}

fn unavailable(reason: String) -> HypervisorError {
    HypervisorError::Unavailable { accel: Accel::Kvm, reason }
}

impl KvmHypervisor {
    fn new() -> Result<Self, HypervisorError> {
        let kvm = Kvm::new().map_err(|e| error::not_opened(e.errno(), access().as_ref()))?;
        let version = kvm.get_api_version();
        if version != error::API_VERSION {
            return Err(unavailable(format!(
                "{} speaks version {version} of its interface, and only {} is known",
                error::DEVICE,
                error::API_VERSION
            )));
        }
        let needed = [
            (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2", "without which a guest cannot start its CPUs"),
            (Cap::OneReg, "KVM_CAP_ONE_REG", "without which no register can be set"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "without which a CPU cannot be stopped reliably"),
            (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL", "without which there is no interrupt controller"),
        ];
        for (capability, name, meaning) in needed {
            if !kvm.check_extension(capability) {
                return Err(missing(name, meaning));
            }
        }
        let ipa_limit = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(0);
        let vm = create_vm(&kvm, ipa_limit)?;
        let gic = gic::supported(&vm)?;
        Ok(KvmHypervisor { kvm, ipa_limit, gic, spare: Mutex::new(Some(vm)) })
    }

    /// Refuses what cannot be, before anything is made.
    fn check(&self, config: &VmConfig) -> Result<(), HypervisorError> {
        let accel = Accel::Kvm;
        let host = u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(MAX_CPUS);
        let max = MAX_CPUS.min(host);
        if config.cpus == 0 || config.cpus > max {
            return Err(HypervisorError::TooManyCpus { accel, asked: config.cpus, max });
        }
        check_gic(config.gic)?;
        let limit = 1u64 << self.ipa_bits();
        let ends = config.memory.iter().map(|r| r.start_addr().0.saturating_add(r.len()));
        match ends.max() {
            Some(end) if end > limit => Err(HypervisorError::AddressSpace { accel, end, limit }),
            _ => Ok(()),
        }
    }
}

impl Hypervisor for KvmHypervisor {
    fn accel(&self) -> Accel {
        Accel::Kvm
    }

    fn ipa_bits(&self) -> u32 {
        if self.ipa_limit == 0 { DEFAULT_IPA_BITS } else { self.ipa_limit }
    }

    fn layout(&self, cpus: u32, ram: u64, gic: GicChoice) -> Result<Layout, HypervisorError> {
        check_gic(gic)?;
        let pmu = self.kvm.check_extension(Cap::ArmPmuV3).then_some(PMU_PPI);
        Ok(Layout { gic: self.gic, pmu, ..Layout::new(cpus, ram).with_ipa_bits(self.ipa_bits()) })
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, HypervisorError> {
        self.check(&config)?;
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let vm = match spare {
            Some(vm) => vm,
            None => create_vm(&self.kvm, self.ipa_limit)?,
        };
        Ok(Arc::new(KvmVm::new(vm, config)?))
    }
}

fn check_gic(choice: GicChoice) -> Result<(), HypervisorError> {
    match choice {
        GicChoice::Auto | GicChoice::Host => Ok(()),
        GicChoice::Soft => Err(HypervisorError::Gic {
            accel: Accel::Kvm,
            reason: "KVM's CPUs work with the kernel's interrupt controller; auto and host would do"
                .to_owned(),
        }),
    }
}

/// KVM_CREATE_VM with all the guest physical addresses that the host has: PCI's upper window lies behind RAM.
fn create_vm(kvm: &Kvm, ipa_limit: u32) -> Result<VmFd, HypervisorError> {
    kvm.create_vm_with_ipa_size(ipa_limit).map_err(|e| call_failed("KVM_CREATE_VM", e.errno()))
}

/// Who may open KVM's device, for a message about somebody who may not.
fn access() -> Option<Access> {
    let metadata = fs::metadata(error::DEVICE).ok()?;
    let gid = metadata.gid();
    let group = fs::read_to_string("/etc/group").ok().and_then(|text| error::group_name(&text, gid));
    Some(Access { mode: metadata.mode(), gid, group })
}
