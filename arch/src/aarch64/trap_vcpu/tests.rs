//! Tests of `TrapVcpu` over a scripted vCPU: one rule each.

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
use crate::hypervisor::{Spi, VmConfig};
use crate::memory::GuestMemory;

const RAM_SIZE: u64 = 1 << 20;
const PC: u64 = RAM_BASE + 0x1000;
const VBAR: u64 = RAM_BASE + 0x8000;
const BOOT: BootState = BootState { pc: PC, x0: 0xfd7 };
const DEVICE: u64 = 0x0900_0000;

fn machine(cpus: u32) -> Arc<TrapMachine> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(RAM_BASE), RAM_SIZE as usize)]).unwrap();
    TrapMachine::new(&VmConfig { cpus, memory, layout: Layout::new(cpus, RAM_SIZE) })
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

mod start {
    use super::*;

    #[test]
    fn the_boot_cpu_starts_at_its_entry_in_el1h() {
        let vcpu = vcpu();
        assert_eq!((pc(&vcpu), x(&vcpu, 0)), (PC, 0xfd7));
        assert_eq!(vcpu.raw.reg(Reg::Cpsr).unwrap(), 0x3c5);
    }

    #[test]
    fn mpidr_is_the_cpu_s_affinity() {
        let vcpu = vcpu_of(&machine(3), 2, Scripted::new());
        assert_eq!(sys(&vcpu, names::MPIDR_EL1), 1 << 31 | 2);
    }

    #[test]
    fn the_virtual_counter_starts_at_zero_and_is_the_same_on_all_cpus() {
        let machine = machine(2);
        let first = vcpu_of(&machine, 0, Scripted::new());
        let second = vcpu_of(&machine, 1, Scripted::new());
        assert_eq!(first.raw.vtimer_offset().unwrap(), second.raw.vtimer_offset().unwrap());
    }

    #[test]
    fn a_cpu_beyond_the_machine_is_refused() {
        assert!(TrapVcpu::new(machine(1), 1, Scripted::new(), BOOT).is_err());
    }

    #[test]
    fn reset_starts_over() {
        let mut vcpu = vcpu();
        set_x(&mut vcpu, 5, 5);
        vcpu.raw.set_reg(Reg::Pc, 0).unwrap();
        vcpu.machine.reset();
        vcpu.reset(BOOT).unwrap();
        assert_eq!((pc(&vcpu), x(&vcpu, 0), x(&vcpu, 5)), (PC, 0xfd7, 0));
    }

    #[test]
    fn reset_forgets_an_unanswered_access() {
        let mut vcpu = vcpu();
        vcpu.raw.exits(word_abort(DEVICE, false, 3));
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
        vcpu.reset(BOOT).unwrap();
        assert_eq!(run_script(&mut vcpu), VcpuExit::Kicked);
        assert_eq!(pc(&vcpu), PC);
    }

    #[test]
    fn reset_switches_other_cpus_off() {
        let mut vcpu = vcpu_of(&machine(2), 1, Scripted::new());
        vcpu.online = true;
        vcpu.machine.reset();
        vcpu.reset(BOOT).unwrap();
        assert!(!vcpu.online);
    }

    #[test]
    fn the_description_names_every_register_asked_for() {
        let text = vcpu().describe();
        for name in ["PC", "CPSR", "X0", "X30", "SP_EL1", "ESR_EL1", "FAR_EL1", "ELR_EL1", "SCTLR_EL1", "TTBR1_EL1"] {
            assert!(text.contains(&format!("{name}=")), "{name} is missing in {text}");
        }
    }
}

mod kicks {
    use super::*;

    #[test]
    fn a_kick_before_run_is_not_lost() {
        let mut vcpu = vcpu();
        vcpu.kicker().kick();
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        assert!(vcpu.raw.runs.is_empty());
    }

    #[test]
    fn a_kick_before_run_is_not_lost_by_a_forgetful_kicker() {
        let mut vcpu = vcpu_of(&machine(1), 0, Scripted::forgetful());
        vcpu.kicker().kick();
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    }

    #[test]
    fn a_kick_between_the_check_and_the_run_is_repeated() {
        let mut vcpu = vcpu_of(&machine(1), 0, Scripted::forgetful());
        let kicker = vcpu.kicker();
        vcpu.raw.before_run = Some(Box::new(move || kicker.kick()));
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    }

    #[test]
    fn a_kick_during_run_ends_it() {
        let mut vcpu = vcpu();
        let kicker = vcpu.kicker();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            kicker.kick();
        });
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        helper.join().unwrap();
    }

    #[test]
    fn two_kicks_before_run_are_one() {
        let mut vcpu = vcpu();
        vcpu.kicker().kick();
        vcpu.kicker().kick();
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        vcpu.raw.exits(word_abort(DEVICE, false, 3));
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
    }

    #[test]
    fn a_kick_of_unknown_origin_is_no_exit() {
        let mut vcpu = vcpu();
        vcpu.raw.exits(RawExit::Canceled);
        vcpu.raw.exits(word_abort(DEVICE, false, 3));
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
    }

    #[test]
    fn unknown_exits_are_retried() {
        let mut vcpu = vcpu();
        vcpu.raw.exits(RawExit::Unknown);
        vcpu.raw.exits(RawExit::Unknown);
        vcpu.raw.exits(word_abort(DEVICE, false, 3));
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
    }

    #[test]
    fn unknown_exits_without_end_let_the_caller_look() {
        let mut vcpu = vcpu();
        for _ in 0..UNKNOWN_EXITS {
            vcpu.raw.exits(RawExit::Unknown);
        }
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
    }

    #[test]
    fn a_kick_wakes_a_powered_off_cpu() {
        let mut vcpu = vcpu_of(&machine(2), 1, Scripted::new());
        let kicker = vcpu.kicker();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            kicker.kick();
        });
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        helper.join().unwrap();
        assert!(vcpu.raw.runs.is_empty());
    }
}

mod interrupts {
    use super::*;

    const SPI: Spi = Spi(1);

    fn enable_spi(machine: &TrapMachine) {
        enable_ppi(machine, VIRTUAL_TIMER_INTID);
        let dist = Layout::new(1, RAM_SIZE).gic_dist.base;
        machine.gic().mmio_write(0, dist + 0x84, &u32::MAX.to_le_bytes());
        machine.gic().mmio_write(0, dist + 0x104, &(1u32 << SPI.0).to_le_bytes());
    }

    #[test]
    fn a_pending_interrupt_is_asserted_before_every_run() {
        let mut vcpu = vcpu();
        enable_spi(&vcpu.machine);
        vcpu.machine.gic().set_spi(SPI, true);
        vcpu.raw.exits(RawExit::Canceled);
        run_script(&mut vcpu);
        let run = Run { pc: PC, irq: true, fiq: false };
        assert_eq!(vcpu.raw.runs, [run, run]);
    }

    #[test]
    fn nothing_is_asserted_without_an_interrupt() {
        let mut vcpu = vcpu();
        run_script(&mut vcpu);
        assert_eq!(vcpu.raw.runs, [Run { pc: PC, irq: false, fiq: false }]);
    }

    #[test]
    fn an_interrupt_from_another_thread_reaches_a_running_guest() {
        let mut vcpu = vcpu();
        enable_spi(&vcpu.machine);
        let machine = vcpu.machine.clone();
        let kicker = vcpu.kicker();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            machine.gic().set_spi(SPI, true);
            std::thread::sleep(Duration::from_millis(50));
            kicker.kick();
        });
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        helper.join().unwrap();
        assert!(vcpu.raw.runs.last().unwrap().irq);
    }

    #[test]
    fn acknowledging_through_the_trapped_register_returns_the_intid() {
        let mut vcpu = vcpu();
        enable_spi(&vcpu.machine);
        vcpu.machine.gic().set_spi(SPI, true);
        vcpu.raw.traps(sysreg_trap(SysReg::new(3, 0, 12, 12, 0), true, 4));
        run_script(&mut vcpu);
        assert_eq!(x(&vcpu, 4), u64::from(SPI.intid()));
        assert!(!vcpu.raw.runs[1].irq);
    }
}

mod system_registers {
    use super::*;

    #[test]
    fn a_read_fills_rt_and_advances() {
        let mut vcpu = vcpu();
        set_x(&mut vcpu, 7, 0xdead);
        vcpu.raw.traps(sysreg_trap(names::OSLSR_EL1, true, 7));
        run_script(&mut vcpu);
        assert_eq!(x(&vcpu, 7), 0b1010);
        assert_eq!(pc(&vcpu), PC + 4);
    }

    #[test]
    fn a_read_into_register_31_is_discarded() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(sysreg_trap(names::OSLSR_EL1, true, 31));
        run_script(&mut vcpu);
        assert_eq!(pc(&vcpu), PC + 4);
    }

    #[test]
    fn a_write_from_register_31_writes_zero() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(sysreg_trap(names::OSLAR_EL1, false, 31));
        vcpu.raw.traps(sysreg_trap(names::OSLSR_EL1, true, 1));
        run_script(&mut vcpu);
        assert_eq!(x(&vcpu, 1), 0b1000);
    }

    #[test]
    fn mdscr_remembers_what_was_written() {
        let mut vcpu = vcpu();
        set_x(&mut vcpu, 1, 0x8000);
        vcpu.raw.traps(sysreg_trap(names::MDSCR_EL1, false, 1));
        vcpu.raw.traps(sysreg_trap(names::MDSCR_EL1, true, 2));
        run_script(&mut vcpu);
        assert_eq!(x(&vcpu, 2), 0x8000);
    }

    #[test]
    fn an_unknown_register_is_undefined_at_its_own_pc() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(sysreg_trap(SysReg::new(3, 7, 15, 0, 0), true, 3));
        run_script(&mut vcpu);
        assert_eq!(pc(&vcpu), VBAR + 0x200);
        assert_eq!(sys(&vcpu, names::ELR_EL1), PC);
        assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::UNKNOWN, 0));
    }

    #[test]
    fn writing_a_read_only_gic_register_is_undefined() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(sysreg_trap(SysReg::new(3, 0, 12, 11, 3), false, 3)); // ICC_RPR_EL1
        run_script(&mut vcpu);
        assert_eq!(pc(&vcpu), VBAR + 0x200);
    }

    #[test]
    fn the_counters_run() {
        let mut vcpu = vcpu();
        let before = vcpu.raw.counter();
        vcpu.raw.traps(sysreg_trap(names::CNTPCT_EL0, true, 1));
        vcpu.raw.traps(sysreg_trap(names::CNTVCT_EL0, true, 2));
        run_script(&mut vcpu);
        assert!(x(&vcpu, 1) >= before);
        assert!(x(&vcpu, 2) >= x(&vcpu, 1) - vcpu.raw.vtimer_offset().unwrap());
    }

    #[test]
    fn the_counter_cannot_be_written() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(sysreg_trap(names::CNTPCT_EL0, false, 1));
        run_script(&mut vcpu);
        assert_eq!(pc(&vcpu), VBAR + 0x200);
    }
}

mod undefined {
    use super::*;

    fn is_undefined(class: u8) -> bool {
        let mut vcpu = vcpu();
        vcpu.raw.traps(esr(class, 0));
        run_script(&mut vcpu);
        pc(&vcpu) == VBAR + 0x200 && sys(&vcpu, names::ESR_EL1) == esr(ec::UNKNOWN, 0)
    }

    #[test]
    fn unknown_fp_sve_and_sme_traps_are_undefined() {
        for class in [ec::UNKNOWN, ec::FP_ACCESS, ec::SVE, ec::SME] {
            assert!(is_undefined(class), "class {class:#x}");
        }
    }

    #[test]
    fn a_brk_that_was_routed_to_us_goes_back_to_the_guest() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(esr(ec::BRK64, 0x800));
        run_script(&mut vcpu);
        assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::BRK64, 0x800));
    }

    #[test]
    fn a_class_that_nobody_expects_is_a_fault() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(esr(0x2f, 0));
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("syndrome")));
    }
}

mod hypercalls {
    use super::*;

    fn call(class: u8, function: u64, args: [u64; 3]) -> TrapVcpu<Scripted> {
        let mut vcpu = vcpu_of(&machine(2), 0, Scripted::new());
        set_x(&mut vcpu, 0, function);
        for (n, arg) in (1..).zip(args) {
            set_x(&mut vcpu, n, arg);
        }
        vcpu.raw.traps(esr(class, 0));
        run_script(&mut vcpu);
        vcpu
    }

    #[test]
    fn hvc_leaves_the_pc_where_it_is() {
        let vcpu = call(ec::HVC64, 0x8400_0000, [0; 3]);
        assert_eq!((x(&vcpu, 0), pc(&vcpu)), (0x1_0001, PC));
    }

    #[test]
    fn smc_advances_the_pc() {
        let vcpu = call(ec::SMC64, 0x8400_0000, [0; 3]);
        assert_eq!((x(&vcpu, 0), pc(&vcpu)), (0x1_0001, PC + 4));
    }

    #[test]
    fn an_unknown_function_returns_minus_one() {
        assert_eq!(x(&call(ec::HVC64, 0x8600_ff01, [0; 3]), 0), u64::MAX);
    }

    #[test]
    fn another_immediate_than_zero_is_unknown() {
        let mut vcpu = vcpu();
        set_x(&mut vcpu, 0, 0x8400_0000);
        vcpu.raw.traps(esr(ec::HVC64, 1));
        run_script(&mut vcpu);
        assert_eq!(x(&vcpu, 0), u64::MAX);
    }

    #[test]
    fn upper_bits_of_the_function_are_ignored() {
        assert_eq!(x(&call(ec::HVC64, 0xffff_ffff_8400_0000, [0; 3]), 0), 0x1_0001);
    }

    #[test]
    fn trng_fills_x1_to_x3() {
        let vcpu = call(ec::HVC64, 0xc400_0053, [192, 0, 0]);
        assert_eq!(x(&vcpu, 0), 0);
        assert!((1..4).all(|n| x(&vcpu, n) != 0));
    }

    #[test]
    fn cpu_on_outside_ram_is_an_invalid_address() {
        assert_eq!(x(&call(ec::HVC64, 0xc400_0003, [1, 0x1000, 0]), 0), -9i64 as u64);
    }

    #[test]
    fn system_off_and_reset_leave_run() {
        for (function, exit) in [
            (0x8400_0008, VcpuExit::SystemOff),
            (0x8400_0009, VcpuExit::SystemReset),
            (0xc400_0012, VcpuExit::SystemReset),
        ] {
            let mut vcpu = vcpu();
            set_x(&mut vcpu, 0, function);
            vcpu.raw.traps(esr(ec::HVC64, 0));
            assert_eq!(vcpu.run().unwrap(), exit);
        }
    }

    #[test]
    fn switching_the_last_cpu_off_ends_the_machine() {
        let mut vcpu = vcpu();
        set_x(&mut vcpu, 0, 0x8400_0002);
        vcpu.raw.traps(esr(ec::HVC64, 0));
        assert_eq!(vcpu.run().unwrap(), VcpuExit::SystemOff);
    }

    #[test]
    fn cpu_on_starts_a_waiting_cpu_with_its_context() {
        let machine = machine(2);
        let (ready, started) = mpsc::channel();
        let other = machine.clone();
        let helper = std::thread::spawn(move || {
            let mut second = vcpu_of(&other, 1, Scripted::new());
            ready.send(second.kicker()).unwrap();
            second.raw.exits(word_abort(DEVICE, true, 0));
            let exit = second.run().unwrap();
            let wrote = matches!(exit, VcpuExit::MmioWrite { data, .. } if data == 77u32.to_le_bytes());
            (wrote, second.raw.runs[0].pc)
        });
        started.recv().unwrap();
        let mut first = vcpu_of(&machine, 0, Scripted::new());
        set_x(&mut first, 0, 0xc400_0003);
        set_x(&mut first, 1, 1);
        set_x(&mut first, 2, PC + 0x40);
        set_x(&mut first, 3, 77);
        first.raw.traps(esr(ec::HVC64, 0));
        run_script(&mut first);
        assert_eq!(helper.join().unwrap(), (true, PC + 0x40));
        assert_eq!(x(&first, 0), 0);
        assert_eq!(machine.psci().state(1), PowerState::On);
    }

    #[test]
    fn cpu_off_parks_the_caller_until_it_is_switched_on() {
        let machine = machine(2);
        let mut second = vcpu_of(&machine, 1, Scripted::new());
        let on = crate::aarch64::psci::Call { function: 0xc400_0003, args: [1, PC, 0] };
        machine.psci().call(0, on, |_| true);
        second.raw.then(|raw| {
            raw.set_reg(Reg::X(0), 0x8400_0002).unwrap();
            RawExit::Exception { syndrome: esr(ec::HVC64, 0), far: 0, ipa: 0 }
        });
        let kicker = second.kicker();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            kicker.kick();
        });
        assert_eq!(second.run().unwrap(), VcpuExit::Kicked);
        helper.join().unwrap();
        assert_eq!(second.raw.runs.len(), 1);
        assert_eq!(machine.psci().state(1), PowerState::Off);
    }
}

mod waiting {
    use super::*;

    fn wfi() -> u64 {
        esr(ec::WFX, 0)
    }

    #[test]
    fn wfi_advances_the_pc() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(wfi());
        let kicker = vcpu.kicker();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            kicker.kick();
        });
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        helper.join().unwrap();
        assert_eq!(pc(&vcpu), PC + 4);
    }

    #[test]
    fn wfi_sleeps_until_the_virtual_timer_fires() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, VIRTUAL_TIMER_INTID);
        start_virtual_timer(&mut vcpu.raw, 20_000_000);
        vcpu.raw.traps(wfi());
        run_script(&mut vcpu);
        assert_eq!(vcpu.raw.runs[1], Run { pc: PC + 4, irq: true, fiq: false });
        assert!(vcpu.raw.vtimer_mask().unwrap());
    }

    #[test]
    fn wfi_sleeps_until_the_physical_timer_is_due() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, 30);
        set_x(&mut vcpu, 1, 20_000_000);
        set_x(&mut vcpu, 2, CTL_ENABLE);
        vcpu.raw.traps(sysreg_trap(names::CNTP_TVAL_EL0, false, 1));
        vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 2));
        vcpu.raw.traps(wfi());
        run_script(&mut vcpu);
        assert!(!vcpu.raw.runs[2].irq);
        assert!(vcpu.raw.runs[3].irq);
    }

    #[test]
    fn wfi_wakes_for_an_interrupt_from_another_thread() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, 20);
        vcpu.raw.traps(wfi());
        let machine = vcpu.machine.clone();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            machine.gic().set_ppi_remote(0, 20, true);
        });
        run_script(&mut vcpu);
        helper.join().unwrap();
        assert!(vcpu.raw.runs[1].irq);
    }

    #[test]
    fn wfi_with_a_pending_interrupt_does_not_sleep() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, 20);
        vcpu.machine.gic().set_ppi(0, 20, true);
        vcpu.raw.traps(wfi());
        run_script(&mut vcpu);
        assert!(vcpu.raw.runs[1].irq);
    }

    #[test]
    fn a_timer_whose_interrupt_is_disabled_does_not_end_wfi() {
        let mut vcpu = vcpu();
        start_virtual_timer(&mut vcpu.raw, 1_000_000);
        vcpu.raw.traps(wfi());
        let kicker = vcpu.kicker();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            kicker.kick();
        });
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        helper.join().unwrap();
        assert_eq!(vcpu.raw.runs.len(), 1);
    }

    #[test]
    fn wfit_ends_at_its_deadline() {
        let mut vcpu = vcpu();
        let deadline = vcpu.raw.counter() - vcpu.raw.vtimer_offset().unwrap() + 5_000_000;
        set_x(&mut vcpu, 5, deadline);
        vcpu.raw.traps(esr(ec::WFX, 5 << 5 | 1 << 2 | 2));
        run_script(&mut vcpu);
        assert_eq!(vcpu.raw.runs.len(), 2);
        assert!(vcpu.virtual_counter().unwrap() >= deadline);
    }

    #[test]
    fn wfe_does_not_sleep() {
        let mut vcpu = vcpu();
        vcpu.raw.traps(esr(ec::WFX, 1));
        run_script(&mut vcpu);
        assert_eq!(vcpu.raw.runs[1].pc, PC + 4);
    }

    #[test]
    fn cpu_suspend_waits_and_succeeds() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, VIRTUAL_TIMER_INTID);
        start_virtual_timer(&mut vcpu.raw, 5_000_000);
        set_x(&mut vcpu, 0, 0xc400_0001);
        vcpu.raw.traps(esr(ec::HVC64, 0));
        run_script(&mut vcpu);
        assert_eq!(x(&vcpu, 0), 0);
        assert!(vcpu.raw.runs[1].irq);
    }
}

mod timers {
    use super::*;

    #[test]
    fn a_fired_virtual_timer_asserts_its_ppi() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, VIRTUAL_TIMER_INTID);
        start_virtual_timer(&mut vcpu.raw, 0);
        vcpu.raw.exits(RawExit::VtimerActivated);
        run_script(&mut vcpu);
        assert!(vcpu.raw.runs[1].irq);
    }

    #[test]
    fn the_timer_stays_masked_while_its_condition_holds() {
        let mut vcpu = vcpu();
        start_virtual_timer(&mut vcpu.raw, 0);
        vcpu.raw.exits(RawExit::VtimerActivated);
        vcpu.raw.exits(RawExit::Canceled);
        run_script(&mut vcpu);
        assert!(vcpu.raw.vtimer_mask().unwrap());
    }

    #[test]
    fn reprogramming_unmasks_the_timer_and_releases_the_ppi() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, VIRTUAL_TIMER_INTID);
        start_virtual_timer(&mut vcpu.raw, 0);
        vcpu.raw.exits(RawExit::VtimerActivated);
        vcpu.raw.then(|raw| {
            start_virtual_timer(raw, 60_000_000_000);
            RawExit::Canceled
        });
        run_script(&mut vcpu);
        assert!(!vcpu.raw.vtimer_mask().unwrap());
        assert!(!vcpu.raw.runs[2].irq);
    }

    #[test]
    fn masking_in_the_guest_unmasks_at_the_host() {
        let mut vcpu = vcpu();
        start_virtual_timer(&mut vcpu.raw, 0);
        vcpu.raw.exits(RawExit::VtimerActivated);
        vcpu.raw.then(|raw| {
            raw.set_sys_reg(names::CNTV_CTL_EL0, CTL_ENABLE | CTL_IMASK).unwrap();
            RawExit::Canceled
        });
        run_script(&mut vcpu);
        assert!(!vcpu.raw.vtimer_mask().unwrap());
    }

    #[test]
    fn the_physical_timer_kicks_a_running_guest() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, 30);
        set_x(&mut vcpu, 1, 20_000_000);
        set_x(&mut vcpu, 2, CTL_ENABLE);
        vcpu.raw.traps(sysreg_trap(names::CNTP_TVAL_EL0, false, 1));
        vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 2));
        // Out of script: stays in the guest until it is kicked, then the next run has the interrupt.
        let kicker = vcpu.kicker();
        let helper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            kicker.kick();
        });
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        helper.join().unwrap();
        assert!(!vcpu.raw.runs[2].irq);
        assert!(vcpu.raw.runs.last().unwrap().irq);
    }

    #[test]
    fn the_physical_timer_reads_back() {
        let mut vcpu = vcpu();
        set_x(&mut vcpu, 1, 0x1234_5678_9abc);
        vcpu.raw.traps(sysreg_trap(names::CNTP_CVAL_EL0, false, 1));
        vcpu.raw.traps(sysreg_trap(names::CNTP_CVAL_EL0, true, 2));
        run_script(&mut vcpu);
        assert_eq!(x(&vcpu, 2), 0x1234_5678_9abc);
    }

    #[test]
    fn a_masked_physical_timer_releases_its_ppi() {
        let mut vcpu = vcpu();
        enable_ppi(&vcpu.machine, 30);
        set_x(&mut vcpu, 2, CTL_ENABLE);
        set_x(&mut vcpu, 3, CTL_ENABLE | CTL_IMASK);
        vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 2));
        vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 3));
        run_script(&mut vcpu);
        assert!(vcpu.raw.runs[1].irq);
        assert!(!vcpu.raw.runs[2].irq);
    }
}

mod device_accesses {
    use super::*;

    #[test]
    fn a_read_is_completed_by_the_next_run() {
        let mut vcpu = vcpu();
        vcpu.raw.exits(word_abort(DEVICE, false, 3));
        match vcpu.run().unwrap() {
            VcpuExit::MmioRead { addr: DEVICE, data } => data.copy_from_slice(&0x8765_4321u32.to_le_bytes()),
            other => panic!("{other:?}"),
        }
        assert_eq!(pc(&vcpu), PC);
        run_script(&mut vcpu);
        assert_eq!((x(&vcpu, 3), pc(&vcpu)), (0x8765_4321, PC + 4));
    }

    #[test]
    fn a_write_carries_the_register() {
        let mut vcpu = vcpu();
        set_x(&mut vcpu, 3, 0x1_2345_6789);
        vcpu.raw.exits(word_abort(DEVICE + 4, true, 3));
        assert_eq!(
            vcpu.run().unwrap(),
            VcpuExit::MmioWrite { addr: DEVICE + 4, data: &0x2345_6789u32.to_le_bytes() }
        );
        run_script(&mut vcpu);
        assert_eq!(pc(&vcpu), PC + 4);
    }

    #[test]
    fn register_31_writes_zero_and_discards_reads() {
        let mut vcpu = vcpu();
        vcpu.raw.exits(word_abort(DEVICE, true, 31));
        vcpu.raw.exits(word_abort(DEVICE, false, 31));
        assert_eq!(vcpu.run().unwrap(), VcpuExit::MmioWrite { addr: DEVICE, data: &[0; 4] });
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { .. }));
        run_script(&mut vcpu);
        assert_eq!(pc(&vcpu), PC + 8);
    }

    #[test]
    fn a_pair_load_is_two_exits_and_a_writeback() {
        let mut vcpu = vcpu();
        put_instruction(&vcpu, 0xa8c1_0440); // ldp x0, x1, [x2], #16
        set_x(&mut vcpu, 2, DEVICE);
        vcpu.raw.exits(blind_abort(DEVICE));
        for (offset, value) in [(0, 0x11u64), (8, 0x22)] {
            match vcpu.run().unwrap() {
                VcpuExit::MmioRead { addr, data } if addr == DEVICE + offset => {
                    data.copy_from_slice(&value.to_le_bytes());
                }
                other => panic!("{other:?}"),
            }
        }
        run_script(&mut vcpu);
        assert_eq!((x(&vcpu, 0), x(&vcpu, 1), x(&vcpu, 2)), (0x11, 0x22, DEVICE + 16));
        assert_eq!(pc(&vcpu), PC + 4);
    }

    #[test]
    fn writeback_to_the_stack_pointer() {
        let mut vcpu = vcpu();
        put_instruction(&vcpu, 0xf800_87e1); // str x1, [sp], #8
        vcpu.raw.set_sys_reg(names::SP_EL1, DEVICE).unwrap();
        vcpu.raw.exits(blind_abort(DEVICE));
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioWrite { addr: DEVICE, .. }));
        run_script(&mut vcpu);
        assert_eq!(sys(&vcpu, names::SP_EL1), DEVICE + 8);
    }

    #[test]
    fn a_simd_load_reaches_its_register() {
        let mut vcpu = vcpu();
        put_instruction(&vcpu, 0x3dc0_0041); // ldr q1, [x2]
        set_x(&mut vcpu, 2, DEVICE);
        vcpu.raw.exits(blind_abort(DEVICE));
        for value in [1u64, 2] {
            match vcpu.run().unwrap() {
                VcpuExit::MmioRead { data, .. } => data.copy_from_slice(&value.to_le_bytes()),
                other => panic!("{other:?}"),
            }
        }
        run_script(&mut vcpu);
        assert_eq!(vcpu.raw.simd_reg(1).unwrap(), 2 << 64 | 1);
    }

    #[test]
    fn an_exclusive_on_a_device_is_an_external_abort() {
        let mut vcpu = vcpu();
        put_instruction(&vcpu, 0x885f_7c41); // ldxr w1, [x2]
        set_x(&mut vcpu, 2, DEVICE);
        vcpu.raw.exits(blind_abort(DEVICE));
        run_script(&mut vcpu);
        assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::DATA_ABORT_SAME, 0x10));
        assert_eq!(sys(&vcpu, names::FAR_EL1), DEVICE);
        assert_eq!(pc(&vcpu), VBAR + 0x200);
    }

    #[test]
    fn an_instruction_that_does_not_touch_the_fault_is_an_external_abort() {
        let mut vcpu = vcpu();
        put_instruction(&vcpu, 0xf940_0041); // ldr x1, [x2]
        set_x(&mut vcpu, 2, DEVICE + 0x100);
        vcpu.raw.exits(blind_abort(DEVICE));
        run_script(&mut vcpu);
        assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::DATA_ABORT_SAME, 0x10));
    }

    #[test]
    fn cache_maintenance_on_a_device_is_skipped() {
        let mut vcpu = vcpu();
        let syndrome = esr(ec::DATA_ABORT_LOWER, 1 << 8 | 0x06);
        vcpu.raw.exits(RawExit::Exception { syndrome, far: DEVICE, ipa: DEVICE });
        run_script(&mut vcpu);
        assert_eq!(pc(&vcpu), PC + 4);
    }

    #[test]
    fn page_tables_outside_memory_are_an_external_abort_on_the_walk() {
        let mut vcpu = vcpu();
        vcpu.raw.set_sys_reg(names::SCTLR_EL1, 1).unwrap();
        vcpu.raw.set_sys_reg(names::TCR_EL1, 25).unwrap();
        vcpu.raw.set_sys_reg(names::TTBR0_EL1, 0x1000).unwrap();
        let syndrome = esr(ec::DATA_ABORT_LOWER, 1 << 7 | 0x06);
        vcpu.raw.exits(RawExit::Exception { syndrome, far: 0x5000, ipa: 0x1000 });
        run_script(&mut vcpu);
        assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::DATA_ABORT_SAME, 0x15));
        assert_eq!(sys(&vcpu, names::FAR_EL1), 0x5000);
    }

    #[test]
    fn an_external_abort_is_passed_on() {
        let mut vcpu = vcpu();
        let syndrome = esr(ec::DATA_ABORT_LOWER, 1 << 6 | 0x10);
        vcpu.raw.exits(RawExit::Exception { syndrome, far: DEVICE, ipa: DEVICE });
        run_script(&mut vcpu);
        assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::DATA_ABORT_SAME, 1 << 6 | 0x10));
    }

    #[test]
    fn an_abort_on_ram_is_a_fault() {
        let mut vcpu = vcpu();
        vcpu.raw.exits(word_abort(RAM_BASE + 0x10, false, 0));
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("RAM")));
    }

    #[test]
    fn the_gic_is_served_without_an_exit() {
        let mut vcpu = vcpu();
        let layout = Layout::new(1, RAM_SIZE);
        vcpu.raw.exits(word_abort(layout.gic_dist.base + 4, false, 1)); // GICD_TYPER
        vcpu.raw.exits(word_abort(layout.gic_redist.base + 8, false, 2)); // GICR_TYPER
        assert_eq!(run_script(&mut vcpu), VcpuExit::Kicked);
        assert_ne!(x(&vcpu, 1), 0);
        assert_ne!(x(&vcpu, 2), 0);
    }

    #[test]
    fn the_ram_part_of_an_access_beside_a_device_is_memory() {
        let mut vcpu = vcpu();
        put_instruction(&vcpu, 0xa940_0440); // ldp x0, x1, [x2]
        let end = RAM_BASE + RAM_SIZE;
        vcpu.machine.memory().write_obj(0x55u64, GuestAddress(end - 8)).unwrap();
        set_x(&mut vcpu, 2, end - 8);
        vcpu.raw.exits(blind_abort(end));
        match vcpu.run().unwrap() {
            VcpuExit::MmioRead { addr, data } if addr == end => data.copy_from_slice(&0x66u64.to_le_bytes()),
            other => panic!("{other:?}"),
        }
        run_script(&mut vcpu);
        assert_eq!((x(&vcpu, 0), x(&vcpu, 1)), (0x55, 0x66));
    }

    #[test]
    fn a_kick_does_not_lose_the_answer_to_a_read() {
        let mut vcpu = vcpu();
        vcpu.raw.exits(word_abort(DEVICE, false, 3));
        match vcpu.run().unwrap() {
            VcpuExit::MmioRead { data, .. } => data.copy_from_slice(&7u32.to_le_bytes()),
            other => panic!("{other:?}"),
        }
        vcpu.kicker().kick();
        assert_eq!(vcpu.run().unwrap(), VcpuExit::Kicked);
        assert_eq!((x(&vcpu, 3), pc(&vcpu)), (7, PC + 4));
    }
}

mod lost_guests {
    use super::*;

    #[test]
    fn a_jump_outside_ram_is_an_external_abort() {
        let mut vcpu = vcpu();
        vcpu.raw.then(|raw| {
            raw.set_reg(Reg::Pc, 0x1000).unwrap();
            instruction_abort(0x1000)
        });
        run_script(&mut vcpu);
        assert_eq!(sys(&vcpu, names::ESR_EL1), esr(ec::INSTRUCTION_ABORT_SAME, 0x10));
        assert_eq!((sys(&vcpu, names::ELR_EL1), sys(&vcpu, names::FAR_EL1)), (0x1000, 0x1000));
        assert_eq!(pc(&vcpu), VBAR + 0x200);
    }

    #[test]
    fn vectors_outside_ram_end_in_a_fault() {
        let mut vcpu = vcpu();
        vcpu.raw.set_sys_reg(names::VBAR_EL1, 0).unwrap();
        vcpu.raw.set_reg(Reg::Pc, 0x1000).unwrap();
        for _ in 0..10 {
            vcpu.raw.then(|raw| instruction_abort(raw.reg(Reg::Pc).unwrap()));
        }
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("vectors")));
    }

    #[test]
    fn a_guest_that_returns_to_the_same_abort_for_ever_ends_in_a_fault() {
        let mut vcpu = vcpu();
        for _ in 0..20_000 {
            vcpu.raw.then(|raw| {
                raw.set_reg(Reg::Pc, 0x1000).unwrap();
                instruction_abort(0x1000)
            });
        }
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(text) if text.contains("again and again")));
    }

    #[test]
    fn aborts_at_different_places_are_no_loop() {
        let mut vcpu = vcpu();
        for n in 0..20_000u64 {
            vcpu.raw.then(move |raw| {
                let addr = 0x1000 + 4 * (n % 2);
                raw.set_reg(Reg::Pc, addr).unwrap();
                instruction_abort(addr)
            });
        }
        assert_eq!(run_script(&mut vcpu), VcpuExit::Kicked);
    }

    #[test]
    fn an_instruction_abort_on_ram_is_a_fault() {
        let mut vcpu = vcpu();
        vcpu.raw.exits(instruction_abort(PC));
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::Fault(_)));
    }
}
