//! Several CPUs of one machine on threads: atomicity, order, and maintenance that must reach the others. Every run is bounded,
//! and ended by a watchdog if it hangs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use hvrun_soft::{Canceller, Cpu, Exit, Machine, Perms};

use crate::common::{CODE, DATA, EL1H, Memory, Outcome, RAM, RAM_SIZE, VECTORS, desc, outcome, reg, sctlr};
use crate::mmu::VA;

/// How long a run may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);
/// Translation tables: of levels 1 to 3.
const TABLES: [u64; 3] = [RAM + 0x40_0000, RAM + 0x40_1000, RAM + 0x40_2000];
const PAGE: u64 = desc::AF | 3;

/// Adds 1 to X0's memory, X1 times, by exclusives.
#[rustfmt::skip]
const EXCLUSIVE_ADD: &[u32] = &[
    0xc85f_7c02, // ldxr x2, [x0]
    0x9100_0442, // add x2, x2, #1
    0xc803_7c02, // stxr w3, x2, [x0]
    0x35ff_ffa3, // cbnz w3, l
    0xf100_0421, // subs x1, x1, #1
    0x54ff_ff61, // b.ne l
    0xd400_1a02, // hvc #0xd0
];

/// Adds X2 to X0's memory, X1 times, by LSE.
#[rustfmt::skip]
const ATOMIC_ADD: &[u32] = &[
    0xf822_0003, // ldadd x2, x3, [x0]
    0xf100_0421, // subs x1, x1, #1
    0x54ff_ffc1, // b.ne l2
    0xd400_1a02, // hvc #0xd0
];

/// Adds 1 to the first half of X0's 16 bytes and takes 1 from the second, X1 times, by exclusives.
#[rustfmt::skip]
const EXCLUSIVE_PAIR: &[u32] = &[
    0xc87f_0c02, // ldxp x2, x3, [x0]
    0x9100_0442, // add x2, x2, #1
    0xd100_0463, // sub x3, x3, #1
    0xc824_0c02, // stxp w4, x2, x3, [x0]
    0x35ff_ff84, // cbnz w4, l3
    0xf100_0421, // subs x1, x1, #1
    0x54ff_ff41, // b.ne l3
    0xd400_1a02, // hvc #0xd0
];

/// As [`EXCLUSIVE_PAIR`], by CASP.
#[rustfmt::skip]
const SWAP_PAIR: &[u32] = &[
    0xa940_0c02, // ldp x2, x3, [x0]
    // l4b:
    0xaa02_03e6, // mov x6, x2
    0xaa03_03e7, // mov x7, x3
    0x9100_0444, // add x4, x2, #1
    0xd100_0465, // sub x5, x3, #1
    0x4862_fc04, // caspal x2, x3, x4, x5, [x0]
    0xeb06_005f, // cmp x2, x6
    0xfa47_0060, // ccmp x3, x7, #0, eq
    0x54ff_ff21, // b.ne l4b
    0xf100_0421, // subs x1, x1, #1
    0x54ff_fec1, // b.ne l4
    0xd400_1a02, // hvc #0xd0
];

/// Adds 1 to X6's memory, X1 times, plainly, under the lock at X0. X5 is not 0.
#[rustfmt::skip]
const LOCKED_ADD: &[u32] = &[
    0x885f_fc02, // ldaxr w2, [x0]
    0x35ff_ffe2, // cbnz w2, lock
    0x8803_7c05, // stxr w3, w5, [x0]
    0x35ff_ffa3, // cbnz w3, lock
    0xf940_00c4, // ldr x4, [x6]
    0x9100_0484, // add x4, x4, #1
    0xf900_00c4, // str x4, [x6]
    0x889f_fc1f, // stlr wzr, [x0]
    0xf100_0421, // subs x1, x1, #1
    0x54ff_fee1, // b.ne lock
    0xd400_1a02, // hvc #0xd0
];

/// Counts X1 times in X0's memory, then in X6's, by store-release.
#[rustfmt::skip]
const WRITE_RELEASE: &[u32] = &[
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xc89f_fcc2, // stlr x2, [x6]
    0xf100_0421, // subs x1, x1, #1
    0x54ff_ff81, // b.ne wr6
    0xd400_1a02, // hvc #0xd0
];

/// Until X6's memory has counted to X1: counts in X7 how often X0's memory, read later, was behind.
#[rustfmt::skip]
const READ_ACQUIRE: &[u32] = &[
    0xc8df_fcc3, // ldar x3, [x6]
    0xf940_0004, // ldr x4, [x0]
    0xeb03_009f, // cmp x4, x3
    0x9a87_24e7, // cinc x7, x7, lo
    0xeb01_007f, // cmp x3, x1
    0x54ff_ff63, // b.lo r6
    0xd400_1a02, // hvc #0xd0
];

/// As [`WRITE_RELEASE`], by a barrier.
#[rustfmt::skip]
const WRITE_BARRIER: &[u32] = &[
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3abf, // dmb ishst
    0xf900_00c2, // str x2, [x6]
    0xf100_0421, // subs x1, x1, #1
    0x54ff_ff61, // b.ne wr7
    0xd400_1a02, // hvc #0xd0
];

/// As [`READ_ACQUIRE`], by a barrier.
#[rustfmt::skip]
const READ_BARRIER: &[u32] = &[
    0xf940_00c3, // ldr x3, [x6]
    0xd503_39bf, // dmb ishld
    0xf940_0004, // ldr x4, [x0]
    0xeb03_009f, // cmp x4, x3
    0x9a87_24e7, // cinc x7, x7, lo
    0xeb01_007f, // cmp x3, x1
    0x54ff_ff43, // b.lo r7
    0xd400_1a02, // hvc #0xd0
];

/// Adds X2 to X0's byte, X1 times, by LSE.
#[rustfmt::skip]
const ATOMIC_ADD_BYTE: &[u32] = &[
    0x3822_0003, // ldaddb w2, w3, [x0]
    0xf100_0421, // subs x1, x1, #1
    0x54ff_ffc1, // b.ne lb
    0xd400_1a02, // hvc #0xd0
];

/// X1 rounds, begun together over X5 (own) and X6 (other's): sets a flag at X0 and stores what is at X2 to X7, all three
/// advancing by 16.
#[rustfmt::skip]
const FLAGS_ORDERED: &[u32] = &[
    0x9100_0484, // add x4, x4, #1
    0xc89f_fca4, // stlr x4, [x5]
    // dw:
    0xc8df_fcc3, // ldar x3, [x6]
    0xeb04_007f, // cmp x3, x4
    0x54ff_ffc3, // b.lo dw
    0xc89f_fc04, // stlr x4, [x0]
    0xc8df_fc43, // ldar x3, [x2]
    0xf801_04e3, // str x3, [x7], #16
    0x9100_4000, // add x0, x0, #16
    0x9100_4042, // add x2, x2, #16
    0xeb01_009f, // cmp x4, x1
    0x54ff_fea3, // b.lo dk
    0xd400_1a02, // hvc #0xd0
];

/// As [`FLAGS_ORDERED`], by a barrier.
#[rustfmt::skip]
const FLAGS_BARRIER: &[u32] = &[
    0x9100_0484, // add x4, x4, #1
    0xc89f_fca4, // stlr x4, [x5]
    // dw2:
    0xc8df_fcc3, // ldar x3, [x6]
    0xeb04_007f, // cmp x3, x4
    0x54ff_ffc3, // b.lo dw2
    0xf900_0004, // str x4, [x0]
    0xd503_3bbf, // dmb ish
    0xf940_0043, // ldr x3, [x2]
    0xf801_04e3, // str x3, [x7], #16
    0x9100_4000, // add x0, x0, #16
    0x9100_4042, // add x2, x2, #16
    0xeb01_009f, // cmp x4, x1
    0x54ff_fe83, // b.lo dk2
    0xd400_1a02, // hvc #0xd0
];

/// X1 times: writes the descriptor X2 or X3 in turn to X0 and invalidates X4. X5's memory is odd during the change and
/// twice their number after it; all ones in the end.
#[rustfmt::skip]
const REMAP: &[u32] = &[
    0x9100_04c6, // add x6, x6, #1
    0xc89f_fca6, // stlr x6, [x5]
    0xd503_3bbf, // dmb ish
    0xf27f_00df, // tst x6, #2
    0x9a83_0047, // csel x7, x2, x3, eq
    0xf900_0007, // str x7, [x0]
    0xd503_3b9f, // dsb ish
    0xd508_8324, // tlbi vae1is, x4
    0xd503_3b9f, // dsb ish
    0x9100_04c6, // add x6, x6, #1
    0xc89f_fca6, // stlr x6, [x5]
    0xd280_2588, // movz x8, #300
    // md:
    0xf100_0508, // subs x8, x8, #1
    0x54ff_ffe1, // b.ne md
    0xf100_0421, // subs x1, x1, #1
    0x54ff_fe21, // b.ne m
    0x9280_0006, // movn x6, #0
    0xc89f_fca6, // stlr x6, [x5]
    0xd400_1a02, // hvc #0xd0
];

/// Loads from X0 while [`REMAP`] runs; counts in X8 loads between two changes and in X7 those that read the wrong page.
/// The barriers make its block long, so that it is often in the middle of it.
#[rustfmt::skip]
const READ_REMAPPED: &[u32] = &[
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xc8df_fca1, // ldar x1, [x5]
    0xf940_0002, // ldr x2, [x0]
    0xd503_39bf, // dmb ishld
    0xf940_00a3, // ldr x3, [x5]
    0xb100_043f, // cmn x1, #1
    0x5400_0120, // b.eq re
    0x3707_fa41, // tbnz x1, #0, rr
    0xeb03_003f, // cmp x1, x3
    0x54ff_fa01, // b.ne rr
    0x9100_0508, // add x8, x8, #1
    0xd341_0423, // ubfx x3, x1, #1, #1
    0xeb03_005f, // cmp x2, x3
    0x9a87_04e7, // cinc x7, x7, ne
    0x17ff_ffcb, // b rr
    // re:
    0xd400_1a02, // hvc #0xd0
];

/// As [`REMAP`], but counts in X7 how often a page (X9 of X2, X10 of X3) changed after it had been replaced.
#[rustfmt::skip]
const REMAP_AND_WATCH: &[u32] = &[
    0xd240_00c6, // eor x6, x6, #1
    0xf100_00df, // cmp x6, #0
    0x9a83_004b, // csel x11, x2, x3, eq
    0x9a89_014c, // csel x12, x10, x9, eq
    0xf900_000b, // str x11, [x0]
    0xd503_3b9f, // dsb ish
    0xd508_8324, // tlbi vae1is, x4
    0xd503_3b9f, // dsb ish
    0xf940_018d, // ldr x13, [x12]
    0xd280_2588, // movz x8, #300
    // sd:
    0xf100_0508, // subs x8, x8, #1
    0x54ff_ffe1, // b.ne sd
    0xf940_018e, // ldr x14, [x12]
    0xeb0e_01bf, // cmp x13, x14
    0x9a87_04e7, // cinc x7, x7, ne
    0xf100_0421, // subs x1, x1, #1
    0x54ff_fe01, // b.ne sm
    0xc89f_fca0, // stlr x0, [x5]
    0xd400_1a02, // hvc #0xd0
];

/// Stores numbers to X0 until X5's memory is not 0.
#[rustfmt::skip]
const WRITE_REMAPPED: &[u32] = &[
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xd503_3bbf, // dmb ish
    0x9100_0442, // add x2, x2, #1
    0xf900_0002, // str x2, [x0]
    0xf940_00a3, // ldr x3, [x5]
    0xb4ff_f8e3, // cbz x3, sw
    0xd400_1a02, // hvc #0xd0
];

/// X1 times: makes the instruction at X0 (X2 is MOVZ W0, #0) load the next number; X5 as in [`REMAP`].
#[rustfmt::skip]
const CHANGE_CODE: &[u32] = &[
    0x9100_04c6, // add x6, x6, #1
    0xc89f_fca6, // stlr x6, [x5]
    0xd503_3bbf, // dmb ish
    0x9100_04c7, // add x7, x6, #1
    0xd341_3ce7, // ubfx x7, x7, #1, #15
    0x2a07_1447, // orr w7, w2, w7, lsl #5
    0xb900_0007, // str w7, [x0]
    0xd503_3b9f, // dsb ish
    0xd50b_7520, // ic ivau, x0
    0xd503_3b9f, // dsb ish
    0xd503_3fdf, // isb
    0x9100_04c6, // add x6, x6, #1
    0xc89f_fca6, // stlr x6, [x5]
    0xd280_2588, // movz x8, #300
    // cd:
    0xf100_0508, // subs x8, x8, #1
    0x54ff_ffe1, // b.ne cd
    0xf100_0421, // subs x1, x1, #1
    0x54ff_fde1, // b.ne cc
    0x9280_0006, // movn x6, #0
    0xc89f_fca6, // stlr x6, [x5]
    0xd400_1a02, // hvc #0xd0
];

/// Calls X4 while [`CHANGE_CODE`] runs; counts in X8 calls between two changes and in X7 wrong results.
#[rustfmt::skip]
const CALL_CHANGED: &[u32] = &[
    0xc8df_fca1, // ldar x1, [x5]
    0xb100_043f, // cmn x1, #1
    0x5400_01a0, // b.eq ce
    0x3707_ffa1, // tbnz x1, #0, cl
    0xd503_3fdf, // isb
    0xd63f_0080, // blr x4
    0xd503_39bf, // dmb ishld
    0xf940_00a3, // ldr x3, [x5]
    0xeb03_003f, // cmp x1, x3
    0x54ff_fee1, // b.ne cl
    0x9100_0508, // add x8, x8, #1
    0xd341_3c23, // ubfx x3, x1, #1, #15
    0xeb03_001f, // cmp x0, x3
    0x9a87_04e7, // cinc x7, x7, ne
    0x17ff_fff2, // b cl
    // ce:
    0xd400_1a02, // hvc #0xd0
];

/// X1 times: invalidates all translations and the code at X0 on all CPUs.
#[rustfmt::skip]
const BROADCAST: &[u32] = &[
    0xd508_831f, // tlbi vmalle1is
    0xd503_3b9f, // dsb ish
    0xd50b_7520, // ic ivau, x0
    0xd503_3b9f, // dsb ish
    0xd503_3fdf, // isb
    0xf100_0421, // subs x1, x1, #1
    0x54ff_ff41, // b.ne bb
    0xd400_1a02, // hvc #0xd0
];

/// Loads from X0 and stores a number there, forever.
#[rustfmt::skip]
const LOAD_AND_STORE: &[u32] = &[
    0xf940_0002, // ldr x2, [x0]
    0x9100_0463, // add x3, x3, #1
    0xf900_0003, // str x3, [x0]
    0x17ff_fffd, // b en
];

/// A machine whose CPUs see RAM at its physical address, and one page at `VA`.
struct Cluster {
    machine: Arc<Machine>,
    memory: Memory,
}

/// What one CPU is to run: code and the registers it starts with.
type Program<'a> = (&'a [u32], &'a [(u8, u64)]);

fn on_cpu<'a>(code: &'a [u32], registers: &'a [(u8, u64)]) -> Program<'a> {
    (code, registers)
}

impl Cluster {
    fn new() -> Cluster {
        let memory = Memory::new(RAM, RAM_SIZE);
        let machine = Machine::new(40);
        // SAFETY: the memory lives longer than the CPUs, which end with `run`.
        unsafe { machine.map(RAM, memory.host(RAM), RAM_SIZE, Perms::ALL) }.unwrap();
        memory.write_vectors(VECTORS);
        memory.write(TABLES[0] + 8 * (RAM >> 30), RAM | desc::AF | 1);
        memory.write(TABLES[0] + 8 * (VA >> 30), TABLES[1] | 3);
        memory.write(TABLES[1] + 8 * (VA >> 21 & 511), TABLES[2] | 3);
        memory.write(Self::entry(), DATA | PAGE);
        Cluster { machine, memory }
    }

    /// Where the descriptor of `VA` lies.
    fn entry() -> u64 {
        TABLES[2] + 8 * (VA >> 12 & 511)
    }

    /// A CPU with translation on at the start of a program.
    fn cpu(&self, number: u64, pc: u64, registers: &[(u8, u64)]) -> Cpu {
        let mut cpu = Cpu::new(self.machine.clone());
        for (register, value) in [
            (reg::MPIDR_EL1, number),
            (reg::VBAR_EL1, VECTORS),
            (reg::TTBR0_EL1, TABLES[0]),
            (reg::TCR_EL1, 2 << 32 | 25),
            (reg::MAIR_EL1, 0xff),
            (reg::SCTLR_EL1, sctlr::M | sctlr::SPAN),
        ] {
            assert!(cpu.set_sys_reg(register, value));
        }
        registers.iter().for_each(|&(n, value)| cpu.set_x(n, value));
        cpu.set_cpsr(EL1H);
        cpu.set_pc(pc);
        cpu
    }

    /// Runs each program on a CPU and thread of its own to its end; gives their registers.
    fn run(&self, programs: &[Program]) -> Vec<[u64; 31]> {
        let start = Barrier::new(programs.len());
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let mut cancellers: Vec<Canceller> = Vec::new();
            let (handles, canceller_of) = mpsc::channel();
            for (number, (code, registers)) in programs.iter().enumerate() {
                let (sender, handles, start) = (sender.clone(), handles.clone(), &start);
                let pc = CODE + 0x400 * number as u64;
                self.memory.write_code(pc, code);
                scope.spawn(move || {
                    let mut cpu = self.cpu(number as u64, pc, registers);
                    let _ = handles.send(cpu.canceller());
                    start.wait();
                    let exit = cpu.run();
                    let registers = std::array::from_fn(|n| cpu.x(n as u8));
                    let _ = sender.send((number, outcome(&cpu, exit), registers));
                });
            }
            cancellers.extend(canceller_of.iter().take(programs.len()));
            let mut results = vec![[0; 31]; programs.len()];
            let mut problem = None;
            for _ in programs {
                match receiver.recv_timeout(PATIENCE) {
                    Ok((number, Outcome::Done, registers)) => results[number] = registers,
                    Ok((number, other, _)) => problem = Some(format!("CPU {number}: {other:x?}")),
                    Err(_) => problem = Some(format!("no end within {PATIENCE:?}")),
                }
                if problem.is_some() {
                    cancellers.iter().for_each(Canceller::cancel);
                    break;
                }
            }
            assert_eq!(problem, None);
            results
        })
    }
}

#[test]
fn exclusive_increments_of_four_cpus_add_up() {
    let cluster = Cluster::new();
    cluster.run(&[on_cpu(EXCLUSIVE_ADD, &[(0, DATA), (1, 1_000_000)]); 4]);
    assert_eq!(cluster.memory.read(DATA), 4_000_000);
}

#[test]
fn atomic_increments_of_four_cpus_add_up() {
    let cluster = Cluster::new();
    cluster.run(&[on_cpu(ATOMIC_ADD, &[(0, DATA), (1, 1_000_000), (2, 3)]); 4]);
    assert_eq!(cluster.memory.read(DATA), 12_000_000);
}

#[test]
fn exclusive_and_atomic_increments_add_up() {
    let cluster = Cluster::new();
    let registers = [(0, DATA), (1, 1_000_000), (2, 1)];
    cluster.run(&[
        on_cpu(EXCLUSIVE_ADD, &registers),
        on_cpu(ATOMIC_ADD, &registers),
        on_cpu(EXCLUSIVE_ADD, &registers),
    ]);
    assert_eq!(cluster.memory.read(DATA), 3_000_000);
}

#[test]
fn increments_through_two_addresses_of_one_page_add_up() {
    let cluster = Cluster::new();
    cluster.run(&[
        on_cpu(EXCLUSIVE_ADD, &[(0, DATA), (1, 1_000_000)]),
        on_cpu(EXCLUSIVE_ADD, &[(0, VA), (1, 1_000_000)]),
    ]);
    assert_eq!(cluster.memory.read(DATA), 2_000_000);
}

#[test]
fn atomic_bytes_do_not_disturb_their_neighbours() {
    let cluster = Cluster::new();
    let registers = [0, 1, 2, 3].map(|n| [(0, DATA + n), (1, 1_000_000), (2, n + 1)]);
    cluster.run(&registers.each_ref().map(|r| on_cpu(ATOMIC_ADD_BYTE, r)));
    let bytes = [1, 2, 3, 4].map(|n: u64| (1_000_000 * n) as u8);
    assert_eq!(cluster.memory.read(DATA), u64::from(u32::from_le_bytes(bytes)));
}

#[test]
fn exclusive_pairs_change_both_halves_together() {
    let cluster = Cluster::new();
    cluster.run(&[on_cpu(EXCLUSIVE_PAIR, &[(0, DATA), (1, 1_000_000)]); 3]);
    assert_eq!(
        (cluster.memory.read(DATA), cluster.memory.read(DATA + 8)),
        (3_000_000, 0u64.wrapping_sub(3_000_000))
    );
}

#[test]
fn swapped_pairs_change_both_halves_together() {
    let cluster = Cluster::new();
    cluster.run(&[on_cpu(SWAP_PAIR, &[(0, DATA), (1, 1_000_000)]); 3]);
    assert_eq!(
        (cluster.memory.read(DATA), cluster.memory.read(DATA + 8)),
        (3_000_000, 0u64.wrapping_sub(3_000_000))
    );
}

#[test]
fn lock_of_exclusives_guards_plain_data() {
    let cluster = Cluster::new();
    cluster.run(&[on_cpu(LOCKED_ADD, &[(0, DATA), (1, 5_000), (5, 1), (6, DATA + 0x100)]); 3]);
    assert_eq!(cluster.memory.read(DATA + 0x100), 15_000);
}

#[test]
fn message_is_there_when_its_released_flag_is_seen() {
    let cluster = Cluster::new();
    let registers = [(0, DATA), (1, 200_000), (6, DATA + 0x100)];
    let after = cluster.run(&[on_cpu(WRITE_RELEASE, &registers), on_cpu(READ_ACQUIRE, &registers)]);
    assert_eq!(after[1][7], 0);
}

#[test]
fn message_is_there_when_its_flag_behind_barriers_is_seen() {
    let cluster = Cluster::new();
    let registers = [(0, DATA), (1, 200_000), (6, DATA + 0x100)];
    let after = cluster.run(&[on_cpu(WRITE_BARRIER, &registers), on_cpu(READ_BARRIER, &registers)]);
    assert_eq!(after[1][7], 0);
}

/// In how many rounds neither of two CPUs saw the other's flag.
fn both_missed(program: &[u32]) -> usize {
    const ROUNDS: u64 = 10_000;
    let cluster = Cluster::new();
    let (flags, rounds, seen) = (DATA, DATA + 0x8_0000, DATA + 0x10_0000);
    let registers = |own: u64| {
        let other = own ^ 8;
        let line = |n: u64| rounds + 16 * n;
        [(0, flags + own), (1, ROUNDS), (2, flags + other), (5, line(own)), (6, line(other)), (7, seen + own)]
    };
    cluster.run(&[on_cpu(program, &registers(0)), on_cpu(program, &registers(8))]);
    let missed = |address| cluster.memory.read(address) == 0;
    (0..ROUNDS).filter(|round| missed(seen + 16 * round) && missed(seen + 16 * round + 8)).count()
}

#[test]
fn ordered_flags_are_seen_by_at_least_one_side() {
    assert_eq!(both_missed(FLAGS_ORDERED), 0);
}

#[test]
fn flags_before_a_barrier_are_seen_by_at_least_one_side() {
    assert_eq!(both_missed(FLAGS_BARRIER), 0);
}

#[test]
fn load_after_broadcast_invalidation_reads_the_new_page() {
    let cluster = Cluster::new();
    cluster.memory.write(DATA + 0x1000, 1);
    let sequence = DATA + 0x3000;
    let remap = [
        (0, Cluster::entry()),
        (1, 1_000),
        (2, (DATA + 0x1000) | PAGE),
        (3, DATA | PAGE),
        (4, VA >> 12),
        (5, sequence),
    ];
    let read = [(0, VA), (5, sequence)];
    let after = cluster.run(&[on_cpu(REMAP, &remap), on_cpu(READ_REMAPPED, &read)]);
    assert_eq!(after[1][7], 0, "of {}", after[1][8]);
}

#[test]
fn store_after_broadcast_invalidation_leaves_the_old_page_alone() {
    let cluster = Cluster::new();
    let (first, second, stop) = (DATA, DATA + 0x1000, DATA + 0x3000);
    let remap = [
        (0, Cluster::entry()),
        (1, 1_000),
        (2, first | PAGE),
        (3, second | PAGE),
        (4, VA >> 12),
        (5, stop),
        (9, first),
        (10, second),
    ];
    let write = [(0, VA), (5, stop)];
    let after = cluster.run(&[on_cpu(REMAP_AND_WATCH, &remap), on_cpu(WRITE_REMAPPED, &write)]);
    assert_eq!(after[0][7], 0);
}

#[test]
fn call_after_broadcast_code_maintenance_runs_the_new_code() {
    let cluster = Cluster::new();
    // movz w0, #0; ret
    cluster.memory.write_code(DATA, &[0x5280_0000, 0xd65f_03c0]);
    let sequence = DATA + 0x3000;
    let change = [(0, DATA), (1, 1_000), (2, 0x5280_0000), (5, sequence)];
    let call = [(4, DATA), (5, sequence)];
    let after = cluster.run(&[on_cpu(CHANGE_CODE, &change), on_cpu(CALL_CHANGED, &call)]);
    assert_eq!(after[1][7], 0, "of {}", after[1][8]);
}

#[test]
fn cpus_that_broadcast_at_each_other_all_come_to_an_end() {
    // `run` panics if they do not.
    Cluster::new().run(&[on_cpu(BROADCAST, &[(0, CODE), (1, 1_000)]); 4]);
}

#[test]
fn broadcast_does_not_wait_for_cpus_that_come_go_and_idle() {
    let cluster = Cluster::new();
    let idle = cluster.cpu(9, CODE, &[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let mut cpu = cluster.cpu(8, CODE + 0x3000, &[]);
                cpu.canceller().cancel();
                cpu.run();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cluster.run(&[on_cpu(BROADCAST, &[(0, CODE), (1, 2_000)]); 2]);
        }));
        done.store(true, Ordering::SeqCst);
        assert!(result.is_ok());
    });
    drop(idle);
}

#[test]
fn unmapped_memory_is_not_touched_after_unmapping() {
    const WINDOW: u64 = 0x4800_0000;
    const ROUNDS: u64 = 100;
    let cluster = Cluster::new();
    let window = Memory::new(WINDOW, 0x1000);
    cluster.memory.write_code(CODE, LOAD_AND_STORE);
    let (done, touched) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut cpu = cluster.cpu(0, CODE, &[(0, WINDOW)]);
            while !done.load(Ordering::SeqCst) {
                // What the caller does for a device: skips the access.
                if let Exit::Exception { .. } = cpu.run() {
                    cpu.set_pc(cpu.pc() + 4);
                }
            }
        });
        let machine = &cluster.machine;
        for round in 0..ROUNDS {
            // SAFETY: it is unmapped below, and the window outlives the threads.
            unsafe { machine.map(WINDOW, window.host(WINDOW), 0x1000, Perms::ALL) }.unwrap();
            std::thread::sleep(Duration::from_micros(300));
            machine.unmap(WINDOW, 0x1000).unwrap();
            window.write(WINDOW, u64::MAX - round);
            std::thread::sleep(Duration::from_micros(300));
            touched.fetch_add(u64::from(window.read(WINDOW) != u64::MAX - round), Ordering::SeqCst);
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(touched.load(Ordering::SeqCst), 0);
}

#[test]
fn every_cancel_from_another_thread_ends_a_run() {
    let cluster = Cluster::new();
    // b .
    cluster.memory.write_code(CODE, &[0x1400_0000]);
    let (handles, handle) = mpsc::channel();
    let (ended, end) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut cpu = cluster.cpu(0, CODE, &[]);
            handles.send(cpu.canceller()).unwrap();
            (0..100).for_each(|_| ended.send(cpu.run()).unwrap());
        });
        let canceller = handle.recv().unwrap();
        for _ in 0..100 {
            canceller.cancel();
            assert_eq!(end.recv_timeout(PATIENCE), Ok(Exit::Canceled));
        }
    });
}
