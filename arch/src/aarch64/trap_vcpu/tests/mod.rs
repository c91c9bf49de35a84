//! Tests of `TrapVcpu` over a scripted vCPU: one rule each.

mod device_accesses;
mod host_gic;
mod hypercalls;
mod interrupts;
mod kicks;
mod lost_guests;
mod start;
mod system_registers;
mod timers;
mod undefined;
mod waiting;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::scripted::{Run, Scripted};
use super::*;
use crate::aarch64::esr::{self, ec};
use crate::aarch64::layout::{Layout, RAM_BASE};
use crate::aarch64::psci::PowerState;
use crate::aarch64::raw::SysReg;
use crate::aarch64::timer::{CTL_ENABLE, CTL_IMASK, VIRTUAL_TIMER_INTID};
use crate::hypervisor::{GicChoice, Spi, VmConfig};
use crate::memory::GuestMemory;

const RAM_SIZE: u64 = 1 << 20;
const PC: u64 = RAM_BASE + 0x1000;
const VBAR: u64 = RAM_BASE + 0x8000;
const BOOT: BootState = BootState { pc: PC, x0: 0xfd7 };
const DEVICE: u64 = 0x0900_0000;

fn machine(cpus: u32) -> Arc<TrapMachine> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(RAM_BASE), RAM_SIZE as usize)]).unwrap();
    TrapMachine::new(&VmConfig { cpus, memory, layout: Layout::new(cpus, RAM_SIZE), gic: GicChoice::Auto })
}

fn vcpu_of(machine: &Arc<TrapMachine>, id: u32, raw: Scripted) -> TrapVcpu<Scripted> {
    let mut vcpu = TrapVcpu::new(machine.clone(), id, raw, BOOT).unwrap();
    vcpu.raw.set_sys_reg(names::VBAR_EL1, VBAR).unwrap();
    vcpu
}

fn vcpu() -> TrapVcpu<Scripted> {
    vcpu_of(&machine(1), 0, Scripted::new())
}

fn esr(class: u8, iss: u64) -> u64 {
    u64::from(class) << esr::EC_SHIFT | esr::IL | iss
}

fn sysreg_trap(reg: SysReg, read: bool, rt: u8) -> u64 {
    let f = crate::aarch64::sysreg::Fields::of(reg);
    let iss = u64::from(f.op0) << 20
        | u64::from(f.op2) << 17
        | u64::from(f.op1) << 14
        | u64::from(f.crn) << 10
        | u64::from(rt) << 5
        | u64::from(f.crm) << 1
        | u64::from(read);
    esr(ec::SYSREG, iss)
}

/// A data abort with a valid syndrome: 4 bytes through W`rt`.
fn word_abort(addr: u64, write: bool, rt: u8) -> RawExit {
    let iss = 1 << 24 | 2 << 22 | u64::from(rt) << 16 | u64::from(write) << 6 | 0x06;
    RawExit::Exception { syndrome: esr(ec::DATA_ABORT_LOWER, iss), far: addr, ipa: addr }
}

/// A data abort that does not describe its access.
fn blind_abort(addr: u64) -> RawExit {
    RawExit::Exception { syndrome: esr(ec::DATA_ABORT_LOWER, 0x06), far: addr, ipa: addr }
}

fn instruction_abort(addr: u64) -> RawExit {
    RawExit::Exception { syndrome: esr(ec::INSTRUCTION_ABORT_LOWER, 0x06), far: addr, ipa: addr }
}

/// Runs once with a kick waiting behind the script, so that `run` comes back when the script is done.
fn run_script(vcpu: &mut TrapVcpu<Scripted>) -> VcpuExit<'_> {
    let kicker = vcpu.kicker();
    vcpu.raw.then(move |_| {
        kicker.kick();
        RawExit::Canceled
    });
    vcpu.run().unwrap()
}

/// A thread that does `first`, and kicks once run number `count` has begun.
fn kick_after_run(
    vcpu: &mut TrapVcpu<Scripted>,
    count: usize,
    first: impl FnOnce() + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let (began, runs) = mpsc::channel();
    vcpu.raw.before_run = Some(Box::new(move || {
        // The helper may have seen enough and gone.
        let _ = began.send(());
    }));
    let kicker = vcpu.kicker();
    std::thread::spawn(move || {
        first();
        for _ in 0..count {
            runs.recv().unwrap();
        }
        kicker.kick();
    })
}

fn x(vcpu: &TrapVcpu<Scripted>, n: u8) -> u64 {
    vcpu.raw.reg(Reg::X(n)).unwrap()
}

fn set_x(vcpu: &mut TrapVcpu<Scripted>, n: u8, value: u64) {
    vcpu.raw.set_reg(Reg::X(n), value).unwrap();
}

fn pc(vcpu: &TrapVcpu<Scripted>) -> u64 {
    vcpu.raw.reg(Reg::Pc).unwrap()
}

fn sys(vcpu: &TrapVcpu<Scripted>, reg: SysReg) -> u64 {
    vcpu.raw.sys_reg(reg).unwrap()
}

fn put_instruction(vcpu: &TrapVcpu<Scripted>, word: u32) {
    vcpu.machine.memory().write_obj(word.to_le(), GuestAddress(PC)).unwrap();
}

/// Makes the GIC signal PPI `intid` of CPU 0 (group 1, enabled, all priorities pass).
fn enable_ppi(machine: &TrapMachine, intid: u32) {
    let layout = Layout::new(1, RAM_SIZE);
    let sgi_base = layout.gic_redist.base + 0x1_0000;
    let gic = machine.gic();
    gic.mmio_write(0, layout.gic_redist.base + 0x14, &0u32.to_le_bytes());
    gic.mmio_write(0, layout.gic_dist.base, &0x12u32.to_le_bytes());
    gic.mmio_write(0, sgi_base + 0x80, &u32::MAX.to_le_bytes());
    gic.mmio_write(0, sgi_base + 0x100, &(1u32 << intid).to_le_bytes());
    gic.icc_write(0, SysReg::new(3, 0, 4, 6, 0), 0xff);
    gic.icc_write(0, SysReg::new(3, 0, 12, 12, 7), 1);
}

fn start_virtual_timer(raw: &mut Scripted, ticks: u64) {
    let now = raw.counter() - raw.vtimer_offset().unwrap();
    raw.set_sys_reg(names::CNTV_CVAL_EL0, now + ticks).unwrap();
    raw.set_sys_reg(names::CNTV_CTL_EL0, CTL_ENABLE).unwrap();
}
