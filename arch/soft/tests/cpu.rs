//! The CPU as its caller sees it: exits, program counter rules and timers, on tiny programs with the MMU off.

use std::sync::Arc;

use hvrun_soft::{Cpu, Exit, Line, Machine, Perms};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x10_0000;

struct Bench {
    cpu: Cpu,
    _ram: Vec<u64>,
}

fn bench(program: &[u32]) -> Bench {
    let mut ram = vec![0u64; (RAM_SIZE + 4096) / 8];
    let host = (ram.as_mut_ptr() as usize).next_multiple_of(4096) as *mut u8;
    for (i, word) in program.iter().enumerate() {
        // SAFETY: the program is shorter than the RAM.
        unsafe { host.cast::<u32>().add(i).write(*word) };
    }
    let machine: Arc<Machine> = Machine::new(40);
    // SAFETY: the vector lives as long as the CPU, in `Bench`.
    unsafe { machine.map(RAM, host, RAM_SIZE as u64, Perms::ALL) }.unwrap();
    let mut cpu = Cpu::new(machine);
    cpu.set_pc(RAM);
    Bench { cpu, _ram: ram }
}

fn syndrome(exit: Exit) -> u64 {
    match exit {
        Exit::Exception { syndrome, .. } => syndrome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hvc_exits_with_the_program_counter_behind_it() {
    // movz x0, #42; hvc #7
    let mut b = bench(&[0xd280_0540, 0xd400_00e2]);
    let exit = b.cpu.run();
    assert_eq!(
        (syndrome(exit) >> 26, syndrome(exit) & 0xffff, b.cpu.x(0), b.cpu.pc()),
        (0x16, 7, 42, RAM + 8)
    );
}

#[test]
fn smc_exits_with_the_program_counter_at_it() {
    let mut b = bench(&[0xd400_0003]);
    assert_eq!((syndrome(b.cpu.run()) >> 26, b.cpu.pc()), (0x17, RAM));
}

#[test]
fn a_loop_computes_the_sum_of_its_counter() {
    // movz x0, #100; movz x1, #0; l: add x1, x1, x0; subs x0, x0, #1; b.ne l; hvc #0
    let mut b = bench(&[0xd280_0c80, 0xd280_0001, 0x8b00_0021, 0xf100_0400, 0x54ff_ffc1, 0xd400_0002]);
    b.cpu.run();
    assert_eq!(b.cpu.x(1), 5050);
}

#[test]
fn a_store_outside_memory_exits_with_its_transfer_described() {
    // movz x1, #0x900, lsl #16; movz w2, #0x41; strb w2, [x1, #4]
    let mut b = bench(&[0xd2a1_2001, 0x5280_0822, 0x3900_1022]);
    let exit = b.cpu.run();
    let Exit::Exception { syndrome, far, ipa } = exit else { panic!("{exit:?}") };
    let (isv, size, register, write) =
        (syndrome >> 24 & 1, syndrome >> 22 & 3, syndrome >> 16 & 31, syndrome >> 6 & 1);
    assert_eq!((syndrome >> 26, isv, size, register, write), (0x24, 1, 0, 2, 1));
    assert_eq!((far, ipa, b.cpu.pc()), (0x0900_0004, 0x0900_0004, RAM + 8));
}

#[test]
fn a_pending_irq_is_taken_when_unmasked_and_lasts_one_run() {
    // adr x0, .+0x800; msr vbar_el1, x0; msr daifclr, #2; b .     vector 0x280: hvc #1
    let mut program = vec![0; 0x400];
    program[..4].copy_from_slice(&[0x1000_4000, 0xd518_c000, 0xd503_42ff, 0x1400_0000]);
    program[(0x800 + 0x280) / 4] = 0xd400_0022;
    let mut b = bench(&program);
    b.cpu.set_pending(Line::Irq, true);
    let exit = b.cpu.run();
    assert_eq!((syndrome(exit) >> 26, b.cpu.pc(), b.cpu.is_pending(Line::Irq)), (0x16, RAM + 0xa84, false));
}

#[test]
fn a_cancel_outside_run_ends_the_next_run() {
    let mut b = bench(&[0x1400_0000]);
    b.cpu.canceller().cancel();
    assert_eq!(b.cpu.run(), Exit::Canceled);
}

#[test]
fn the_virtual_timer_fires_while_the_guest_loops_and_masks_itself() {
    // movz x0, #0x4240; movk x0, #0xf, lsl #16 (1 ms); msr cntv_tval_el0, x0; movz x0, #1; msr cntv_ctl_el0, x0; b .
    let mut b = bench(&[0xd288_4800, 0xf2a0_01e0, 0xd51b_e300, 0xd280_0020, 0xd51b_e320, 0x1400_0000]);
    assert_eq!(b.cpu.run(), Exit::VtimerActivated);
    assert!(b.cpu.vtimer_mask());
}
