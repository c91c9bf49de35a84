//! The in-kernel interrupt controller: making it, and putting it back into its reset state. Lines are driven by the VM.

use kvm_bindings::{
    KVM_CREATE_DEVICE_TEST, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CPU_REGS, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::aarch64::layout::{GicVersion, Layout, mpidr};
use crate::hypervisor::{Accel, HypervisorError};
use crate::kvm::error::call_failed;
use crate::kvm::vgic::{self, Group, Write};

/// An initialised vGIC.
#[derive(Debug)]
pub(super) struct Vgic {
    device: DeviceFd,
    version: GicVersion,
    cpus: u32,
    /// The groups as the kernel chose them.
    groups: Vec<Write>,
}

fn device_type(version: GicVersion) -> u32 {
    match version {
        GicVersion::V3 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        GicVersion::V2 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
    }
}

/// The best GIC that this host can give to a guest.
pub(super) fn supported(vm: &VmFd) -> Result<GicVersion, HypervisorError> {
    let found = [GicVersion::V3, GicVersion::V2].into_iter().find(|&version| {
        let mut ask = kvm_create_device { type_: device_type(version), fd: 0, flags: KVM_CREATE_DEVICE_TEST };
        match vm.create_device(&mut ask) {
            Ok(device) => {
                // A test makes no device: what came back has nobody's descriptor, and must not close it.
                std::mem::forget(device);
                true
            }
            Err(_) => false,
        }
    });
    found.ok_or_else(|| HypervisorError::Unavailable {
        accel: Accel::Kvm,
        reason: "this host's interrupt controller (neither GICv3 nor GICv2 with virtualisation) cannot be given to guests"
            .to_owned(),
    })
}

impl Vgic {
    /// Makes the GIC. Order: after every vCPU has been created and initialised (its redistributors are counted), and before
    /// any has run; addresses and the number of interrupts before CTRL_INIT.
    pub(super) fn new(vm: &VmFd, layout: &Layout, cpus: u32) -> Result<Self, HypervisorError> {
        let version = layout.gic;
        let mut ask = kvm_create_device { type_: device_type(version), fd: 0, flags: 0 };
        let device = vm.create_device(&mut ask).map_err(|e| call_failed("KVM_CREATE_DEVICE", e.errno()))?;
        let mut gic = Vgic { device, version, cpus, groups: Vec::new() };
        let windows = match version {
            GicVersion::V3 => [
                (KVM_VGIC_V3_ADDR_TYPE_DIST, layout.gic_dist),
                (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout.gic_redist),
            ],
            GicVersion::V2 => {
                [(KVM_VGIC_V2_ADDR_TYPE_DIST, layout.gic_dist), (KVM_VGIC_V2_ADDR_TYPE_CPU, layout.gic_cpu)]
            }
        };
        for (kind, window) in windows {
            gic.set("KVM_DEV_ARM_VGIC_GRP_ADDR", KVM_DEV_ARM_VGIC_GRP_ADDR, kind.into(), &window.base)?;
        }
        gic.set("KVM_DEV_ARM_VGIC_GRP_NR_IRQS", KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &vgic::IRQS)?;
        gic.set::<u64>(
            "KVM_DEV_ARM_VGIC_CTRL_INIT",
            KVM_DEV_ARM_VGIC_GRP_CTRL,
            KVM_DEV_ARM_VGIC_CTRL_INIT.into(),
            &0,
        )?;
        gic.groups = gic.read_groups()?;
        vgic::triggers().try_for_each(|write| gic.write(write))?;
        Ok(gic)
    }

    fn read_groups(&self) -> Result<Vec<Write>, HypervisorError> {
        if self.version == GicVersion::V2 {
            return Ok(Vec::new());
        }
        let spis = vgic::spi_groups().map(|attr| (Group::Distributor, attr));
        let private = (0..self.cpus).map(|id| (Group::Redistributor, vgic::private_groups(mpidr(id))));
        spis.chain(private)
            .map(|(group, attr)| Ok(Write { group, attr, value: self.get(group, attr)? }))
            .collect()
    }

    /// Puts the GIC back into the state after [`Vgic::new`]. No vCPU may be in KVM_RUN, or the kernel refuses (EBUSY).
    pub(super) fn reset(&self) -> Result<(), HypervisorError> {
        if self.version == GicVersion::V2 {
            return self.write_all(&vgic::v2::reset(self.cpus));
        }
        self.write_all(&vgic::distributor_reset())?;
        for mpidr in (0..self.cpus).map(mpidr) {
            self.write_all(&vgic::redistributor_reset(mpidr))?;
            let ctlr = self.get(Group::CpuInterface, vgic::cpu_interface(mpidr, vgic::ICC_CTLR_EL1))?;
            self.write_all(&vgic::cpu_interface_reset(mpidr, ctlr))?;
        }
        self.write_all(&self.groups)
    }

    fn write_all(&self, writes: &[Write]) -> Result<(), HypervisorError> {
        writes.iter().try_for_each(|write| self.write(*write))
    }

    fn write(&self, write: Write) -> Result<(), HypervisorError> {
        let (call, group) = (name(write.group), number(write.group));
        match write.group {
            Group::CpuInterface => self.set(call, group, write.attr, &write.value),
            _ => self.set(call, group, write.attr, &(write.value as u32)),
        }
    }

    /// Sets one attribute from `value`, which is as wide as the kernel reads.
    fn set<T>(&self, call: &'static str, group: u32, attr: u64, value: &T) -> Result<(), HypervisorError> {
        let attribute = kvm_device_attr { flags: 0, group, attr, addr: std::ptr::from_ref(value) as u64 };
        self.device.set_device_attr(&attribute).map_err(|e| call_failed(call, e.errno()))
    }

    fn get(&self, group: Group, attr: u64) -> Result<u64, HypervisorError> {
        // Wide enough for every group; the 32-bit ones fill the lower half of a little-endian host's word.
        let mut value = 0u64;
        let mut attribute =
            kvm_device_attr { flags: 0, group: number(group), attr, addr: &raw mut value as u64 };
        // SAFETY: the kernel writes 4 or 8 bytes to `value`, which lives until after the call.
        unsafe { self.device.get_device_attr(&mut attribute) }
            .map_err(|e| call_failed(name(group), e.errno()))?;
        Ok(value)
    }
}

fn number(group: Group) -> u32 {
    match group {
        Group::Distributor => KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
        Group::Redistributor => KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
        Group::CpuInterface => KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
        Group::V2CpuInterface => KVM_DEV_ARM_VGIC_GRP_CPU_REGS,
    }
}

fn name(group: Group) -> &'static str {
    match group {
        Group::Distributor => "KVM_DEV_ARM_VGIC_GRP_DIST_REGS",
        Group::Redistributor => "KVM_DEV_ARM_VGIC_GRP_REDIST_REGS",
        Group::CpuInterface => "KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS",
        Group::V2CpuInterface => "KVM_DEV_ARM_VGIC_GRP_CPU_REGS",
    }
}
