//! Exceptions (Arm ARM D1.3): entry to EL1, exception return, and the syndromes of exits to the caller (EL2).

use crate::cpu::{Cpu, Event, Exit};
use crate::mmu::{Access, Fault, fsc};
use crate::op::{At, Next};
use crate::sysreg::sctlr;

/// Exception classes (ESR_ELx.EC).
pub(crate) mod ec {
    pub const UNKNOWN: u64 = 0x00;
    pub const WFX: u64 = 0x01;
    pub const FP_ACCESS: u64 = 0x07;
    pub const ILLEGAL_STATE: u64 = 0x0e;
    pub const SVC64: u64 = 0x15;
    pub const HVC64: u64 = 0x16;
    pub const SMC64: u64 = 0x17;
    pub const SYSTEM: u64 = 0x18;
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    pub const PC_ALIGNMENT: u64 = 0x22;
    pub const DATA_ABORT_LOWER: u64 = 0x24;
    pub const SP_ALIGNMENT: u64 = 0x26;
    pub const BRK64: u64 = 0x3c;
}

/// IL: the instruction was 32 bits long.
const IL: u64 = 1 << 25;
/// Write not read, of a data abort's ISS.
const WNR: u64 = 1 << 6;
/// Cache maintenance, of a data abort's ISS.
pub(crate) const CM: u64 = 1 << 8;
/// Stage 2 fault on a stage 1 walk.
const S1PTW: u64 = 1 << 7;

/// ESR for `ec` with `iss`.
pub(crate) fn syndrome(ec: u64, iss: u64) -> u64 {
    ec << 26 | IL | iss
}

/// Enters EL1 at the vector `kind` (0 synchronous, 0x80 IRQ, 0x100 FIQ), to return to `return_to`.
fn enter(cpu: &mut Cpu, kind: u64, return_to: u64) {
    let from = match (cpu.pstate.el, cpu.pstate.sp_sel) {
        (0, _) => 0x400,
        (_, false) => 0x000,
        (_, true) => 0x200,
    };
    cpu.sys.spsr = cpu.cpsr();
    cpu.sys.elr = return_to;
    cpu.set_mode(1, true);
    cpu.pstate.daif = 0xf;
    cpu.pstate.il = false;
    if cpu.sys.sctlr & sctlr::SPAN == 0 {
        cpu.pstate.pan = true;
    }
    cpu.pc = cpu.sys.vbar.wrapping_add(from + kind);
    cpu.state_changed();
}

/// Takes a synchronous exception with `esr`, to return to `return_to`.
pub(crate) fn synchronous(cpu: &mut Cpu, esr: u64, return_to: u64) {
    cpu.sys.esr = esr;
    enter(cpu, 0, return_to);
}

/// An EC of which "from the same level" is one more than "from a lower level".
fn by_level(cpu: &Cpu, lower: u64) -> u64 {
    lower + u64::from(cpu.pstate.el)
}

pub(crate) fn irq(cpu: &mut Cpu) {
    enter(cpu, 0x80, cpu.pc);
}

pub(crate) fn fiq(cpu: &mut Cpu) {
    enter(cpu, 0x100, cpu.pc);
}

pub(crate) fn illegal_state(cpu: &mut Cpu) {
    synchronous(cpu, syndrome(ec::ILLEGAL_STATE, 0), cpu.pc);
}

pub(crate) fn pc_alignment(cpu: &mut Cpu) {
    cpu.sys.far = cpu.pc;
    synchronous(cpu, syndrome(ec::PC_ALIGNMENT, 0), cpu.pc);
}

/// A stage 1 fault on the instruction fetch at `pc`.
pub(crate) fn instruction_abort(cpu: &mut Cpu, code: u8) {
    cpu.sys.far = cpu.pc;
    let ec = by_level(cpu, ec::INSTRUCTION_ABORT_LOWER);
    synchronous(cpu, syndrome(ec, u64::from(code)), cpu.pc);
}

/// The exit of an instruction fetch that stage 2 refuses with fault status `code`; `walk`: on the way to its translation.
pub(crate) fn stage2_fetch(pc: u64, ipa: u64, code: u8, walk: bool) -> Exit {
    let iss = u64::from(code) | if walk { S1PTW } else { 0 };
    Exit::Exception { syndrome: syndrome(ec::INSTRUCTION_ABORT_LOWER, iss), far: pc, ipa }
}

impl Cpu {
    /// Virtual address of the instruction of `at`.
    #[inline]
    pub(crate) fn pc_of(&self, at: At) -> u64 {
        self.page_va + u64::from(at.offset)
    }

    /// Takes a synchronous exception at the instruction of `at`.
    #[cold]
    pub(crate) fn raise(&mut self, at: At, ec: u64, iss: u64) -> Next {
        let pc = self.pc_of(at);
        synchronous(self, syndrome(ec, iss), pc);
        Next::Lookup
    }

    /// UNDEFINED.
    #[cold]
    pub(crate) fn undefined(&mut self, at: At) -> Next {
        self.raise(at, ec::UNKNOWN, 0)
    }

    /// Leaves `run` with a trap; `advance` is how far the program counter goes first.
    #[cold]
    pub(crate) fn trap(&mut self, at: At, syndrome: u64, advance: u64) -> Next {
        self.pc = self.pc_of(at).wrapping_add(advance);
        self.event = Event::Exit(Exit::Exception { syndrome, far: 0, ipa: 0 });
        Next::Event
    }

    /// A fault of the data access at `va`. `iss` carries CM if it was cache maintenance.
    #[cold]
    pub(crate) fn data_abort(&mut self, at: At, va: u64, access: Access, fault: Fault, iss: u64) -> Next {
        let write = if access == Access::Write { WNR } else { 0 };
        match fault {
            Fault::Stage1(code) => {
                self.sys.far = va;
                let ec = by_level(self, ec::DATA_ABORT_LOWER);
                self.raise(at, ec, iss & CM | write | u64::from(code))
            }
            Fault::WalkOutsideMemory { ipa, level } => {
                let iss = iss & CM | write | S1PTW | u64::from(fsc::TRANSLATION | level);
                self.stage2_abort(at, va, ipa, iss)
            }
        }
    }

    /// The exit of a data access to `ipa` where there is no memory. `iss` says what the instruction would transfer (ISV and
    /// its fields), if one register says it all.
    #[cold]
    pub(crate) fn outside_memory(&mut self, at: At, va: u64, ipa: u64, access: Access, iss: u64) -> Next {
        let write = if access == Access::Write { WNR } else { 0 };
        self.stage2_abort(at, va, ipa, iss | write | u64::from(fsc::TRANSLATION) | 3)
    }

    /// The exit of an access to `ipa`, which is mapped without the permission for it.
    #[cold]
    pub(crate) fn forbidden_memory(&mut self, at: At, va: u64, ipa: u64, access: Access, iss: u64) -> Next {
        let write = if access == Access::Write { WNR } else { 0 };
        self.stage2_abort(at, va, ipa, iss | write | u64::from(fsc::PERMISSION) | 3)
    }

    fn stage2_abort(&mut self, at: At, va: u64, ipa: u64, iss: u64) -> Next {
        self.pc = self.pc_of(at);
        let syndrome = syndrome(ec::DATA_ABORT_LOWER, iss);
        self.event = Event::Exit(Exit::Exception { syndrome, far: va, ipa });
        Next::Event
    }

    /// ERET (Arm ARM, AArch64.ExceptionReturn).
    pub(crate) fn exception_return(&mut self) {
        self.pc = self.sys.elr;
        let spsr = self.sys.spsr;
        self.set_cpsr(spsr);
        self.monitor.host = 0;
        self.shared.event.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
