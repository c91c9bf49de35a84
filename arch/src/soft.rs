//! The software CPU as a backend: `hvrun-soft` behind the trap-level seam. Not the CPU itself; that is the crate `soft/`.

use std::sync::Arc;

use hvrun_soft::{Canceller, Cpu, Exit, Line, Machine, Perms};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::aarch64::layout::MAX_CPUS;
use crate::aarch64::raw::{InterruptLine, RawExit, RawVcpu, Reg, SysReg};
use crate::aarch64::trap_vcpu::{TrapMachine, TrapVcpu};
use crate::hypervisor::{
    Accel, BootState, GicChoice, Hypervisor, HypervisorError, IrqChip, Kick, Kicker, Vcpu, Vm, VmConfig,
};
use crate::memory::GuestMemory;

/// The software CPU, which every host has.
#[derive(Debug, Default)]
pub struct SoftHypervisor;

impl Hypervisor for SoftHypervisor {
    fn accel(&self) -> Accel {
        Accel::Soft
    }

    fn ipa_bits(&self) -> u32 {
        Machine::MAX_IPA_BITS
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, HypervisorError> {
        if config.cpus == 0 || config.cpus > MAX_CPUS {
            return Err(HypervisorError::TooManyCpus {
                accel: Accel::Soft,
                asked: config.cpus,
                max: MAX_CPUS,
            });
        }
        if config.gic == GicChoice::Host {
            let reason = "the software CPU has no interrupt controller in the host; auto and soft would do";
            return Err(HypervisorError::Gic { accel: Accel::Soft, reason: reason.to_owned() });
        }
        let cpus = Machine::new(self.ipa_bits());
        let limit = 1 << self.ipa_bits();
        for region in config.memory.iter() {
            let (ipa, len) = (region.start_addr().0, region.len());
            let end = ipa.saturating_add(len);
            if end > limit {
                return Err(HypervisorError::AddressSpace { accel: Accel::Soft, end, limit });
            }
            // SAFETY: `SoftVm` holds the memory and the machine, and its vCPUs hold a `TrapMachine` with a clone of the
            // memory, so that the mapping outlives every CPU. `GuestMemory` never gives out references into it.
            unsafe { cpus.map(ipa, region.as_ptr(), len, Perms::ALL) }.map_err(|error| {
                HypervisorError::Call { call: "map guest memory", reason: error.to_string() }
            })?;
        }
        Ok(Arc::new(SoftVm { cpus, trap: TrapMachine::new(&config), _memory: config.memory }))
    }
}

/// A machine of software CPUs. Fields are dropped in this order: the mapped memory last.
struct SoftVm {
    cpus: Arc<Machine>,
    trap: Arc<TrapMachine>,
    _memory: GuestMemory,
}

impl Vm for SoftVm {
    fn create_vcpu(&self, id: u32, boot: BootState) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let raw = SoftVcpu(Cpu::new(self.cpus.clone()));
        Ok(Box::new(TrapVcpu::new(self.trap.clone(), id, raw, boot)?))
    }

    fn irq_chip(&self) -> Arc<dyn IrqChip> {
        self.trap.interrupts().irq_chip()
    }

    // No `ram_discard`: RAM can be emptied in place. The host pointers in the CPUs' TLBs stay good, and what was decoded from a page
    // that is empty now is as stale as after any change of code: the guest, which gave the page away, makes the instruction cache
    // coherent (IC IVAU) when it puts code there again.

    fn reset(&self) {
        self.trap.reset();
    }
}

/// One software CPU as a raw vCPU.
#[derive(Debug)]
struct SoftVcpu(Cpu);

struct SoftKick(Canceller);

impl Kick for SoftKick {
    fn kick(&self) {
        self.0.cancel();
    }
}

fn line(line: InterruptLine) -> Line {
    match line {
        InterruptLine::Irq => Line::Irq,
        InterruptLine::Fiq => Line::Fiq,
    }
}

/// The registers that [`Reg`] names but the CPU keeps among its system registers.
const FPCR: SysReg = SysReg::new(3, 3, 4, 4, 0);
const FPSR: SysReg = SysReg::new(3, 3, 4, 4, 1);

fn no_such(reg: SysReg) -> HypervisorError {
    HypervisorError::Call {
        call: "system register access",
        reason: format!("the software CPU does not keep register {:#06x}", reg.0),
    }
}

impl RawVcpu for SoftVcpu {
    fn run(&mut self) -> Result<RawExit, HypervisorError> {
        Ok(match self.0.run() {
            Exit::Canceled => RawExit::Canceled,
            Exit::Exception { syndrome, far, ipa } => RawExit::Exception { syndrome, far, ipa },
            Exit::VtimerActivated => RawExit::VtimerActivated,
        })
    }

    fn reg(&self, reg: Reg) -> Result<u64, HypervisorError> {
        Ok(match reg {
            Reg::X(n) => self.0.x(n),
            Reg::Pc => self.0.pc(),
            Reg::Cpsr => self.0.cpsr(),
            Reg::Fpcr => return self.sys_reg(FPCR),
            Reg::Fpsr => return self.sys_reg(FPSR),
        })
    }

    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HypervisorError> {
        match reg {
            Reg::X(n) => self.0.set_x(n, value),
            Reg::Pc => self.0.set_pc(value),
            Reg::Cpsr => self.0.set_cpsr(value),
            Reg::Fpcr => return self.set_sys_reg(FPCR, value),
            Reg::Fpsr => return self.set_sys_reg(FPSR, value),
        }
        Ok(())
    }

    fn simd_reg(&self, n: u8) -> Result<u128, HypervisorError> {
        Ok(self.0.q(n))
    }

    fn set_simd_reg(&mut self, n: u8, value: u128) -> Result<(), HypervisorError> {
        self.0.set_q(n, value);
        Ok(())
    }

    fn sys_reg(&self, reg: SysReg) -> Result<u64, HypervisorError> {
        self.0.sys_reg(reg.0).ok_or_else(|| no_such(reg))
    }

    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<(), HypervisorError> {
        if self.0.set_sys_reg(reg.0, value) { Ok(()) } else { Err(no_such(reg)) }
    }

    fn set_pending(&mut self, to: InterruptLine, pending: bool) -> Result<(), HypervisorError> {
        self.0.set_pending(line(to), pending);
        Ok(())
    }

    fn vtimer_mask(&self) -> Result<bool, HypervisorError> {
        Ok(self.0.vtimer_mask())
    }

    fn set_vtimer_mask(&mut self, masked: bool) -> Result<(), HypervisorError> {
        self.0.set_vtimer_mask(masked);
        Ok(())
    }

    fn vtimer_offset(&self) -> Result<u64, HypervisorError> {
        Ok(self.0.vtimer_offset())
    }

    fn set_vtimer_offset(&mut self, offset: u64) -> Result<(), HypervisorError> {
        self.0.set_vtimer_offset(offset);
        Ok(())
    }

    fn counter(&self) -> u64 {
        self.0.machine().counter()
    }

    fn counter_frequency(&self) -> u64 {
        Machine::COUNTER_FREQUENCY
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(Arc::new(SoftKick(self.0.canceller())))
    }

    fn remembers_kicks(&self) -> bool {
        true
    }

    fn reset(&mut self) -> Result<(), HypervisorError> {
        self.0.reset();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::aarch64::layout::{Layout, RAM_BASE};
    use crate::hypervisor::VcpuExit;

    const RAM_SIZE: u64 = 1 << 20;
    const BOOT: BootState = BootState { pc: RAM_BASE, x0: 0x1234 };
    const UART: u64 = 0x0900_0000;

    fn config(cpus: u32, base: u64) -> VmConfig {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(base), RAM_SIZE as usize)]).unwrap();
        VmConfig { cpus, memory, layout: Layout::new(cpus, RAM_SIZE), gic: GicChoice::Auto }
    }

    /// A machine whose boot CPU runs `words`.
    fn machine(cpus: u32, words: &[u32]) -> Arc<dyn Vm> {
        let config = config(cpus, RAM_BASE);
        for (i, word) in (0u64..).zip(words) {
            config.memory.write_obj(word.to_le(), GuestAddress(RAM_BASE + 4 * i)).unwrap();
        }
        SoftHypervisor.create_vm(config).unwrap()
    }

    #[test]
    fn more_cpus_than_there_can_be_are_refused() {
        for cpus in [0, MAX_CPUS + 1] {
            let error = SoftHypervisor.create_vm(config(cpus, RAM_BASE)).err().unwrap();
            assert!(matches!(error, HypervisorError::TooManyCpus { max: MAX_CPUS, .. }), "{error}");
        }
    }

    #[test]
    fn memory_beyond_the_address_space_is_refused() {
        let error = SoftHypervisor.create_vm(config(1, 1 << 40)).err().unwrap();
        assert!(matches!(error, HypervisorError::AddressSpace { .. }), "{error}");
    }

    #[test]
    fn system_off_by_hvc_leaves_run() {
        // movz w0, #0x8400, lsl #16 ; movk w0, #8 ; hvc #0
        let vm = machine(1, &[0x52b0_8000, 0x7280_0100, 0xd400_0002]);
        let mut cpu = vm.create_vcpu(0, BOOT).unwrap();
        assert_eq!(cpu.run().unwrap(), VcpuExit::SystemOff);
    }

    #[test]
    fn a_store_to_a_device_is_a_write_exit() {
        // movz x1, #0x0900, lsl #16 ; str w0, [x1] ; ldrh w2, [x1, #4] ; str w2, [x1]
        let vm = machine(1, &[0xd2a1_2001, 0xb900_0020, 0x7940_0822, 0xb900_0022]);
        let mut cpu = vm.create_vcpu(0, BOOT).unwrap();
        assert_eq!(cpu.run().unwrap(), VcpuExit::MmioWrite { addr: UART, data: &0x1234u32.to_le_bytes() });
        match cpu.run().unwrap() {
            VcpuExit::MmioRead { addr, data } => {
                assert_eq!((addr, data.len()), (UART + 4, 2));
                data.copy_from_slice(&[0xcd, 0xab]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(cpu.run().unwrap(), VcpuExit::MmioWrite { addr: UART, data: &0xabcdu32.to_le_bytes() });
    }

    #[test]
    fn a_pair_store_to_a_device_is_two_write_exits() {
        // movz x1, #0x0900, lsl #16 ; stp x0, x1, [x1, #16]! ; str w1, [x1]
        let vm = machine(1, &[0xd2a1_2001, 0xa981_0420, 0xb900_0021]);
        let mut cpu = vm.create_vcpu(0, BOOT).unwrap();
        let writes: Vec<u64> = (0..3)
            .map(|_| match cpu.run().unwrap() {
                VcpuExit::MmioWrite { addr, .. } => addr,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(writes, [UART + 16, UART + 24, UART + 16]);
    }

    #[test]
    fn an_endless_loop_is_left_by_a_kick() {
        // b .
        let vm = machine(1, &[0x1400_0000]);
        let mut cpu = vm.create_vcpu(0, BOOT).unwrap();
        let kicker = cpu.kicker();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            kicker.kick();
        });
        assert_eq!(cpu.run().unwrap(), VcpuExit::Kicked);
        helper.join().unwrap();
    }

    #[test]
    fn a_second_cpu_starts_by_cpu_on() {
        let entry = RAM_BASE + 0x20;
        // movz w0, #0xc400, lsl #16 ; movk w0, #3 ; mov x1, #1 ; adr x2, .+20 ; mov x3, #77 ; hvc #0 ; wfi ; b .-4
        // entry: movz x1, #0x0900, lsl #16 ; str w0, [x1] ; b .
        let words = [
            0x52b8_8000,
            0x7280_0060,
            0xd280_0021,
            0x1000_00a2,
            0xd280_09a3,
            0xd400_0002,
            0xd503_207f,
            0x17ff_ffff,
            0xd2a1_2001,
            0xb900_0020,
            0x1400_0000,
        ];
        let vm = machine(2, &words);
        let other = vm.clone();
        let second = std::thread::spawn(move || {
            let mut cpu = other.create_vcpu(1, BOOT).unwrap();
            matches!(cpu.run().unwrap(), VcpuExit::MmioWrite { addr: UART, data } if data == 77u32.to_le_bytes())
        });
        let mut first = vm.create_vcpu(0, BOOT).unwrap();
        let kicker = first.kicker();
        let waiter = std::thread::spawn(move || {
            let wrote = second.join().unwrap();
            kicker.kick();
            wrote
        });
        assert_eq!(first.run().unwrap(), VcpuExit::Kicked);
        assert!(waiter.join().unwrap(), "CPU 1 did not start at {entry:#x}");
    }

    #[test]
    fn a_jump_to_nowhere_with_vectors_outside_ram_is_a_fault() {
        // mov x0, #0 ; br x0, with VBAR_EL1 = 0
        let vm = machine(1, &[0xd280_0000, 0xd61f_0000]);
        let mut cpu = vm.create_vcpu(0, BOOT).unwrap();
        assert!(matches!(cpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("vectors")));
    }

    #[test]
    fn a_fired_virtual_timer_shows_in_its_control_register() {
        // mrs x1, cntvct_el0 ; add x1, x1, #1024, lsl #12 ; msr cntv_cval_el0, x1 ; mov x0, #1 ; msr cntv_ctl_el0, x0 ;
        // mrs x0, cntv_ctl_el0 ; tbz w0, #2, .-4 ; movz x1, #0x0900, lsl #16 ; str w0, [x1]
        let vm = machine(
            1,
            &[
                0xd53b_e041,
                0x9150_0021,
                0xd51b_e341,
                0xd280_0020,
                0xd51b_e320,
                0xd53b_e320,
                0x3617_ffe0,
                0xd2a1_2001,
                0xb900_0020,
            ],
        );
        let mut cpu = vm.create_vcpu(0, BOOT).unwrap();
        assert_eq!(cpu.run().unwrap(), VcpuExit::MmioWrite { addr: UART, data: &5u32.to_le_bytes() });
    }
}
