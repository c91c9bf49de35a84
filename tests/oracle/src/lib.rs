//! Runs single A64 instructions under `qemu-aarch64` (user mode) on chosen register states: the truth that the software CPU
//! is compared with. It needs no assembler and no cross compiler: it writes the AArch64 program as an ELF file itself.
//!
//! It is not a debugger and runs no instruction sequences: one instruction a case, at the fixed address [`PC`], with one
//! page of memory at the fixed address [`MEM_BASE`].
//!
//! ```no_run
//! use hvrun_oracle::{Case, Outcome, State, MEM_BASE, NEOVERSE_N1, run, run_on};
//!
//! let mut state = State { nzcv: 0x2000_0000, mem: vec![7; 64], ..State::default() };
//! state.x[1] = MEM_BASE + 8;
//! let cases = vec![Case { insn: 0xf940_0020, state }]; // ldr x0, [x1]
//! match &run(&cases)?[0] {
//!     Outcome::Done { state, next_pc } => println!("{:#x} {next_pc:#x}", state.x[0]),
//!     Outcome::Undefined => println!("UNDEFINED"),
//!     Outcome::Fault { signal, address } => println!("signal {signal} at {address:#x}"),
//! }
//! run_on(NEOVERSE_N1, &cases)?;
//! # Ok::<(), anyhow::Error>(())
//! ```

mod image;
mod program;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Address of the tested instruction. The rest of its 4 KiB page holds `BRK #0` (which PC-relative loads read).
pub const PC: u64 = 0x3000_0800;

/// Address of the memory page that a case may load from and store to. The pages around it are not mapped.
pub const MEM_BASE: u64 = 0x2000_0000;

/// Size of the memory page in bytes.
pub const MEM_SIZE: usize = 4096;

/// A CPU with ARMv8.2-A, LSE, CRC32, FP16, DotProd, RCpc and cryptography; no SVE and no pointer authentication. The default.
pub const NEOVERSE_N1: &str = "neoverse-n1";

/// A CPU with ARMv8.0-A, CRC32 and cryptography: no LSE, no FP16.
pub const CORTEX_A72: &str = "cortex-a72";

/// Everything that QEMU emulates but SVE, SME and pointer authentication.
pub const MAX: &str = "max,sve=off,sme=off,pauth=off";

/// How long one run of qemu may take before it is given up: the tested instruction may branch to itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Cases in one run of qemu: bounds the size of the ELF file.
const CASES_PER_RUN: usize = 16384;

/// Signal numbers of Linux.
const SIGILL: u32 = 4;

/// The registers and memory that an instruction works on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// X0 to X30.
    pub x: [u64; 31],
    /// The stack pointer. Any value.
    pub sp: u64,
    /// N, Z, C and V in bits 31 to 28; other bits zero.
    pub nzcv: u32,
    /// V0 to V31, lane 0 in the least significant bits.
    pub q: [u128; 32],
    /// Floating-point control register.
    pub fpcr: u32,
    /// Floating-point status register.
    pub fpsr: u32,
    /// What lies at [`MEM_BASE`], at most [`MEM_SIZE`] bytes; the rest of the page is zero and not given back. Empty: the
    /// instruction must not access memory (the page holds what an earlier case left, and copying is saved).
    pub mem: Vec<u8>,
}

/// One instruction and the state it starts from.
///
/// SVC and semihosting's `HLT #0xf000` cannot be tested: they act on the host. A branch must not go to itself (it would
/// never end) or below 0x1000_0000 (where the harness lies); anywhere else it ends the case, mapped or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The instruction word.
    pub insn: u32,
    /// Where it starts from.
    pub state: State,
}

/// What executing a case's instruction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It completed.
    Done {
        /// The state after it. `mem` is as long as the case's.
        state: Box<State>,
        /// Address of the next instruction: [`PC`] + 4, or a branch's target.
        next_pc: u64,
    },
    /// It is UNDEFINED at EL0 on this CPU (SIGILL).
    Undefined,
    /// It completed with another exception (SIGSEGV, SIGBUS or, for BRK, SIGTRAP).
    Fault {
        /// The signal's number on Linux.
        signal: u32,
        /// The fault address that the signal frame holds, if it is a memory fault.
        address: u64,
    },
}

/// Runs `cases` on the default CPU, [`NEOVERSE_N1`]. The outcomes come in the order of the cases.
///
/// # Errors
/// If `qemu-aarch64` is not installed or does not end well, or a case is one that cannot be run.
pub fn run(cases: &[Case]) -> Result<Vec<Outcome>> {
    run_on(NEOVERSE_N1, cases)
}

/// Runs `cases` on the CPU that QEMU calls `cpu`; see [`run`].
///
/// # Errors
/// As [`run`].
pub fn run_on(cpu: &str, cases: &[Case]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(cases.len());
    for chunk in cases.chunks(CASES_PER_RUN) {
        // The first record takes the context of the program's own first trap.
        let mut records = record::encode(0, &State::default())?;
        for (index, case) in chunk.iter().enumerate() {
            let index = outcomes.len() + index;
            ensure!(
                case.insn & 0xffe0_001f != 0xd400_0001 && case.insn != 0xd45e_0000,
                "case {index}: {:#010x} is a system call, which would act on the host",
                case.insn
            );
            records.extend(record::encode(case.insn, &case.state).with_context(|| format!("case {index}"))?);
        }
        let output = execute(cpu, &image::build(&records))?;
        ensure!(
            output.len() == records.len(),
            "qemu-aarch64 -cpu {cpu} wrote {} bytes of records instead of {}",
            output.len(),
            records.len()
        );
        let mut rest = &output[record::FIXED_SIZE..];
        for case in chunk {
            let (outcome, size) = record::decode(rest, case.state.mem.len());
            outcomes.push(outcome);
            rest = &rest[size..];
        }
    }
    Ok(outcomes)
}

/// Runs the ELF file `image` and returns what it wrote to its standard output.
fn execute(cpu: &str, image: &[u8]) -> Result<Vec<u8>> {
    let mut file = tempfile::Builder::new().prefix("hvrun-oracle-").tempfile()?;
    file.write_all(image).context("writing the oracle's program")?;
    // QEMU refuses a file that is not executable.
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o700))?;

    let spawned = Command::new("qemu-aarch64")
        .args(["-cpu", cpu])
        .arg(file.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("qemu-aarch64 not found; install Debian's qemu-user")
        }
        other => other.context("starting qemu-aarch64")?,
    };
    let (sender, receiver) = mpsc::channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let result = stdout.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut output));
        // The receiver is gone only if it gave up waiting.
        let _ = sender.send(result.map(|_| output));
    });
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        child.kill()?;
        child.wait()?;
        bail!("qemu-aarch64 -cpu {cpu} did not end within {PATIENCE:?}; does a case branch to itself?");
    };
    let status = child.wait()?;
    if !status.success() {
        let mut message = String::new();
        stderr.map_or(Ok(0), |mut pipe| pipe.read_to_string(&mut message))?;
        bail!("qemu-aarch64 -cpu {cpu} ended with {status}: {}", message.trim());
    }
    output.context("reading the output of qemu-aarch64")
}

/// The form in which the program takes a case and gives back its outcome.
mod record {
    use super::{MEM_SIZE, Outcome, PC, Result, SIGILL, State, ensure};

    /// Size of a record without its memory.
    pub(crate) const FIXED_SIZE: usize = 816;
    // Instruction at 0, signal at 4, length of the memory at 8, then as in the kernel's sigcontext: fault address, X0 to
    // X30, SP, PC, PSTATE; then FPSR and FPCR as in its fpsimd_context, V0 to V31; then the memory.
    const SIGNAL: usize = 4;
    const MEM_LEN: usize = 8;
    const FAULT_ADDRESS: usize = 16;
    const X: usize = 24;
    const SP: usize = X + 31 * 8;
    const NEXT_PC: usize = SP + 8;
    const PSTATE: usize = NEXT_PC + 8;
    const FPSR: usize = PSTATE + 8;
    const FPCR: usize = FPSR + 4;
    const V: usize = FPCR + 4;

    const NZCV_MASK: u32 = 0xf000_0000;

    fn padded(len: usize) -> usize {
        len.next_multiple_of(16)
    }

    fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&bytes[at..at + N]);
        value
    }

    /// The record of a case.
    pub(crate) fn encode(insn: u32, state: &State) -> Result<Vec<u8>> {
        let len = state.mem.len();
        ensure!(len <= MEM_SIZE, "a memory of {len} bytes does not fit the page of {MEM_SIZE}");
        let mut bytes = vec![0; FIXED_SIZE + padded(len)];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &insn.to_le_bytes());
        put(MEM_LEN, &(padded(len) as u64).to_le_bytes());
        for (n, value) in state.x.iter().enumerate() {
            put(X + n * 8, &value.to_le_bytes());
        }
        put(SP, &state.sp.to_le_bytes());
        put(NEXT_PC, &PC.to_le_bytes());
        put(PSTATE, &u64::from(state.nzcv & NZCV_MASK).to_le_bytes());
        put(FPSR, &state.fpsr.to_le_bytes());
        put(FPCR, &state.fpcr.to_le_bytes());
        for (n, value) in state.q.iter().enumerate() {
            put(V + n * 16, &value.to_le_bytes());
        }
        put(FIXED_SIZE, &state.mem);
        Ok(bytes)
    }

    /// The outcome in the record at the start of `bytes`, and the record's size.
    pub(crate) fn decode(bytes: &[u8], mem_len: usize) -> (Outcome, usize) {
        let size = FIXED_SIZE + padded(mem_len);
        let signal = u32::from_le_bytes(get(bytes, SIGNAL));
        let next_pc = u64::from_le_bytes(get(bytes, NEXT_PC));
        // A signal elsewhere is that of the BRK, or the unmapped page, behind the instruction.
        let outcome = match (next_pc == PC, signal) {
            (true, SIGILL) => Outcome::Undefined,
            (true, signal) => {
                Outcome::Fault { signal, address: u64::from_le_bytes(get(bytes, FAULT_ADDRESS)) }
            }
            (false, _) => {
                let state = State {
                    x: std::array::from_fn(|n| u64::from_le_bytes(get(bytes, X + n * 8))),
                    sp: u64::from_le_bytes(get(bytes, SP)),
                    nzcv: u32::from_le_bytes(get(bytes, PSTATE)) & NZCV_MASK,
                    q: std::array::from_fn(|n| u128::from_le_bytes(get(bytes, V + n * 16))),
                    fpcr: u32::from_le_bytes(get(bytes, FPCR)),
                    fpsr: u32::from_le_bytes(get(bytes, FPSR)),
                    mem: bytes[FIXED_SIZE..FIXED_SIZE + mem_len].to_vec(),
                };
                Outcome::Done { state: Box::new(state), next_pc }
            }
        };
        (outcome, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_one(insn: u32, state: State) -> Outcome {
        run(&[Case { insn, state }]).unwrap().remove(0)
    }

    fn done(insn: u32, state: State) -> State {
        match run_one(insn, state) {
            Outcome::Done { state, .. } => *state,
            other => panic!("{insn:#010x} gave {other:?}"),
        }
    }

    /// Every register different, so that one that is lost or swapped shows.
    fn distinct() -> State {
        State {
            x: std::array::from_fn(|n| 0x0101_0101_0101_0101 * (n as u64 + 1)),
            sp: 0x1234_5678_9abc_def1,
            nzcv: 0x6000_0000,
            q: std::array::from_fn(|n| (n as u128 + 1) << 100 | 0xabcd_0000 | n as u128),
            fpcr: 3 << 22,
            fpsr: 0x0800_0011,
            mem: (0..=255).collect(),
        }
    }

    #[test]
    fn nop_changes_nothing() {
        assert_eq!(done(0xd503_201f, distinct()), distinct());
    }

    #[test]
    fn adds_sets_carry_and_zero() {
        let mut state = State::default();
        state.x[1] = u64::MAX;
        state.x[2] = 1;
        let after = done(0xab02_0020, state); // adds x0, x1, x2
        assert_eq!((after.x[0], after.nzcv), (0, 0x6000_0000));
    }

    #[test]
    fn unallocated_word_is_undefined() {
        assert_eq!(run_one(0x0000_0000, State::default()), Outcome::Undefined);
    }

    #[test]
    fn lse_is_undefined_on_a_cortex_a72() {
        let case = Case { insn: 0xf821_0040, state: State::default() }; // ldadd x1, x0, [x2]
        assert_eq!(run_on(CORTEX_A72, &[case]).unwrap(), [Outcome::Undefined]);
    }

    #[test]
    fn load_reads_the_memory_of_its_case() {
        let mut state = State { mem: (0..=255).collect(), ..State::default() };
        state.x[1] = MEM_BASE;
        assert_eq!(done(0xf940_0420, state).x[0], 0x0f0e_0d0c_0b0a_0908); // ldr x0, [x1, #8]
    }

    #[test]
    fn store_shows_in_the_memory_of_its_case_only() {
        let mut storing = State { mem: vec![0; 16], ..State::default() };
        storing.x[0] = 0xaa;
        storing.x[1] = MEM_BASE + 1;
        let mut loading = State { mem: vec![0; 8], ..State::default() };
        loading.x[1] = MEM_BASE + 1;
        let outcomes = run(&[
            Case { insn: 0x3900_0020, state: storing }, // strb w0, [x1]
            Case { insn: 0x3940_0020, state: loading }, // ldrb w0, [x1]
        ])
        .unwrap();
        let [Outcome::Done { state: stored, .. }, Outcome::Done { state: loaded, .. }] = &outcomes[..] else {
            panic!("{outcomes:?}")
        };
        assert_eq!((stored.mem[1], loaded.x[0]), (0xaa, 0));
    }

    #[test]
    fn fp_add_rounds_as_fpcr_says_and_raises_inexact() {
        let mut state = State { fpcr: 1 << 22, ..State::default() }; // RMode 01: towards plus infinity
        state.q[1] = u128::from(1f64.to_bits());
        state.q[2] = u128::from(1e-300f64.to_bits());
        let after = done(0x1e62_2820, state); // fadd d0, d1, d2
        assert_eq!((after.q[0], after.fpsr), (u128::from(1f64.to_bits() + 1), 0x10));
    }

    #[test]
    fn access_outside_the_page_is_a_fault_with_its_address() {
        let mut state = State { mem: vec![0; 16], ..State::default() };
        state.x[1] = MEM_BASE - 8;
        let outcome = run_one(0xf940_0020, state); // ldr x0, [x1]
        assert_eq!(outcome, Outcome::Fault { signal: 11, address: MEM_BASE - 8 });
    }

    #[test]
    fn taken_branch_gives_its_target_and_link() {
        let Outcome::Done { state, next_pc } = run_one(0x9400_0010, State::default()) else { panic!() }; // bl +64
        assert_eq!((next_pc, state.x[30]), (PC + 64, PC + 4));
    }

    #[test]
    fn system_call_is_refused() {
        let error = run(&[Case { insn: 0xd400_0001, state: State::default() }]).unwrap_err();
        assert!(error.to_string().contains("system call"), "{error}");
    }

    #[test]
    fn more_cases_than_one_run_takes_keep_their_order() {
        let cases: Vec<_> = (0..CASES_PER_RUN as u64 + 10)
            .map(|n| {
                let mut state = State::default();
                state.x[1] = n;
                Case { insn: 0x9100_0420, state } // add x0, x1, #1
            })
            .collect();
        let sums: Vec<_> = run(&cases)
            .unwrap()
            .into_iter()
            .map(|outcome| match outcome {
                Outcome::Done { state, .. } => state.x[0],
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(sums.into_iter().eq(1..=CASES_PER_RUN as u64 + 10));
    }
}
