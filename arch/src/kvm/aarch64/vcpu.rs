//! One vCPU: its life and its registers. What happens when it runs is in `run`.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ, KVM_MP_STATE_STOPPED,
    kvm_device_attr, kvm_vcpu_init,
};
use kvm_ioctls::VcpuFd;

use super::run::Pending;
use super::vm::Machine;
use crate::aarch64::raw::{Reg, SysReg};
use crate::aarch64::trap_vcpu::report;
use crate::hypervisor::{BootState, HypervisorError, Kicker, Vcpu, VcpuExit};
use crate::kvm::error::call_failed;
use crate::kvm::kick::KvmKick;
use crate::kvm::nisv::GuestRegisters;
use crate::kvm::regs;

/// A vCPU in the kernel. Fields are dropped in this order: the vCPU before what its VM is made of.
#[derive(Debug)]
pub(super) struct KvmVcpu {
    pub(super) cpu: Cpu,
    pub(super) kick: Arc<KvmKick>,
    /// What the exit before left to be done.
    pub(super) pending: Pending,
    /// The data of an MMIO exit, little-endian.
    pub(super) buffer: [u8; 8],
    pub(super) machine: Arc<Machine>,
    id: u32,
}

/// The vCPU's descriptor, as registers.
#[derive(Debug)]
pub(super) struct Cpu(pub(super) VcpuFd);

/// Puts every register of `vcpu` into its reset state, and its power state with them: KVM does that whenever it is asked.
pub(super) fn initialise(vcpu: &VcpuFd, features: &kvm_vcpu_init) -> Result<(), HypervisorError> {
    vcpu.vcpu_init(features).map_err(|e| call_failed("KVM_ARM_VCPU_INIT", e.errno()))
}

/// Gives `vcpu`'s PMU its interrupt, then starts it: KVM_RUN answers EINVAL without. After the GIC.
pub(super) fn start_pmu(vcpu: &VcpuFd, ppi: u32) -> Result<(), HypervisorError> {
    let intid = ppi + 16;
    let set = |call: &'static str, attr: u32, addr: u64| {
        let attribute =
            kvm_device_attr { flags: 0, group: KVM_ARM_VCPU_PMU_V3_CTRL, attr: attr.into(), addr };
        vcpu.set_device_attr(&attribute).map_err(|e| call_failed(call, e.errno()))
    };
    set("KVM_ARM_VCPU_PMU_V3_IRQ", KVM_ARM_VCPU_PMU_V3_IRQ, &raw const intid as u64)?;
    set("KVM_ARM_VCPU_PMU_V3_INIT", KVM_ARM_VCPU_PMU_V3_INIT, 0)
}

impl KvmVcpu {
    /// The initialised `vcpu`, to be run by the calling thread.
    pub(super) fn new(
        machine: Arc<Machine>,
        vcpu: VcpuFd,
        id: u32,
        boot: BootState,
    ) -> Result<Self, HypervisorError> {
        // SAFETY: the descriptor is open for as long as `vcpu` lives, which is longer than this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let kick = KvmKick::new(fd, machine.start().clone())
            .map_err(|error| HypervisorError::Call { call: "mmap of the vCPU", reason: error.to_string() })?;
        let mut cpu = Cpu(vcpu);
        cpu.boot(id, boot)?;
        Ok(KvmVcpu { cpu, kick, pending: Pending::Nothing, buffer: [0; 8], machine, id })
    }

    fn restart(&mut self, boot: BootState) -> Result<(), HypervisorError> {
        self.machine.check_reset()?;
        // An access that the kernel has still to complete would write a register of the CPU that starts anew.
        self.drain()?;
        initialise(&self.cpu.0, &self.machine.features(self.id))?;
        self.cpu.boot(self.id, boot)
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<VcpuExit<'_>, HypervisorError> {
        let stop = self.run_until_stop()?;
        Ok(self.exit(stop))
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.kick.clone())
    }

    fn reset(&mut self, boot: BootState) -> Result<(), HypervisorError> {
        let restarted = self.restart(boot);
        match &restarted {
            Ok(()) => self.machine.start().arrive(),
            Err(error) => self.machine.start().fail(error),
        }
        restarted
    }

    fn set_stopped_time(&mut self, total: Duration) -> Result<(), HypervisorError> {
        self.machine.clock().leave_out(total, &mut self.cpu)
    }

    fn describe(&self) -> String {
        let stopped = self.cpu.0.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_STOPPED);
        report::format(self.id, !stopped, |reg| self.cpu.reg(reg).ok(), |reg| self.cpu.sys_reg(reg).ok())
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.retire();
    }
}

impl Cpu {
    /// The boot CPU starts here; the others wait for PSCI, which tells them where.
    fn boot(&mut self, id: u32, boot: BootState) -> Result<(), HypervisorError> {
        if id == 0 {
            self.set_reg(Reg::Pc, boot.pc)?;
            self.set_reg(Reg::X(0), boot.x0)?;
        }
        Ok(())
    }

    fn get<const N: usize>(&self, id: u64) -> Result<[u8; N], HypervisorError> {
        let mut data = [0; N];
        self.0.get_one_reg(id, &mut data).map_err(|e| failed("KVM_GET_ONE_REG", id, e.errno()))?;
        Ok(data)
    }

    fn set(&mut self, id: u64, data: &[u8]) -> Result<(), HypervisorError> {
        self.0.set_one_reg(id, data).map_err(|e| failed("KVM_SET_ONE_REG", id, e.errno()))?;
        Ok(())
    }
}

fn failed(call: &'static str, id: u64, errno: i32) -> HypervisorError {
    match call_failed(call, errno) {
        HypervisorError::Call { call, reason } => {
            HypervisorError::Call { call, reason: format!("register {id:#x}: {reason}") }
        }
        other => other,
    }
}

impl GuestRegisters for Cpu {
    fn reg(&self, reg: Reg) -> Result<u64, HypervisorError> {
        // Of a 32-bit register only the lower half is written.
        self.get(regs::general(reg)).map(u64::from_le_bytes)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HypervisorError> {
        self.set(regs::general(reg), &value.to_le_bytes())
    }

    fn simd_reg(&self, n: u8) -> Result<u128, HypervisorError> {
        self.get(regs::simd(n)).map(u128::from_le_bytes)
    }

    fn set_simd_reg(&mut self, n: u8, value: u128) -> Result<(), HypervisorError> {
        self.set(regs::simd(n), &value.to_le_bytes())
    }

    fn sys_reg(&self, reg: SysReg) -> Result<u64, HypervisorError> {
        self.get(regs::system(reg)).map(u64::from_le_bytes)
    }

    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<(), HypervisorError> {
        self.set(regs::system(reg), &value.to_le_bytes())
    }
}
