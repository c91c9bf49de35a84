//! The trap-level seam: a vCPU as Hypervisor.framework and the software CPU offer it, below PSCI, GIC and device decoding.
//!
//! The contract, common to both: `run` returns with raw traps; pending interrupts set with [`RawVcpu::set_pending`] last for
//! one run only; the virtual timer is masked when it fires and stays silent until unmasked; the PC is already past an HVC
//! but still at an SMC, a trapped MSR/MRS, a WFI and a data abort. `trap_vcpu` turns a `RawVcpu` into a [`crate::Vcpu`].

use crate::hypervisor::{HypervisorError, Kicker};

/// A system register, by its architectural encoding `op0:2 op1:3 CRn:4 CRm:4 op2:3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysReg(pub u16);

impl SysReg {
    /// The register with this encoding.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        SysReg(
            ((op0 as u16 & 3) << 14)
                | ((op1 as u16 & 7) << 11)
                | ((crn as u16 & 15) << 7)
                | ((crm as u16 & 15) << 3)
                | (op2 as u16 & 7),
        )
    }
}

/// A general register of the vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reg {
    /// X0 to X30. There is no SP here: use [`SysReg`] SP_EL0 or SP_EL1.
    X(u8),
    /// Program counter.
    Pc,
    /// PSTATE in SPSR format.
    Cpsr,
    /// Floating-point control.
    Fpcr,
    /// Floating-point status.
    Fpsr,
}

/// The two interrupt inputs of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptLine {
    /// IRQ (group 1 interrupts).
    Irq,
    /// FIQ (group 0 interrupts).
    Fiq,
}

/// Why [`RawVcpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawExit {
    /// A kick.
    Canceled,
    /// A trap to EL2.
    Exception {
        /// ESR_EL2.
        syndrome: u64,
        /// FAR_EL2: the virtual address of an abort.
        far: u64,
        /// The faulting intermediate physical address (from HPFAR_EL2 and the page offset of FAR), for aborts.
        ipa: u64,
    },
    /// The virtual timer's condition became true (CNTV_CTL: ENABLE and ISTATUS set, IMASK clear). It is masked now.
    VtimerActivated,
    /// The host disturbed the run (a signal, say): look around and run again.
    Unknown,
}

/// A vCPU that exits at trap level. All calls but the kicker's come from the thread that created it.
pub trait RawVcpu {
    /// Runs guest code until a trap, the timer or a kick. Clears the pending interrupts before it returns.
    fn run(&mut self) -> Result<RawExit, HypervisorError>;
    /// Reads a general register.
    fn reg(&self, reg: Reg) -> Result<u64, HypervisorError>;
    /// Writes a general register.
    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HypervisorError>;
    /// Reads Q`n`.
    fn simd_reg(&self, n: u8) -> Result<u128, HypervisorError>;
    /// Writes Q`n`.
    fn set_simd_reg(&mut self, n: u8, value: u128) -> Result<(), HypervisorError>;
    /// Reads a system register that the backend keeps.
    fn sys_reg(&self, reg: SysReg) -> Result<u64, HypervisorError>;
    /// Writes a system register that the backend keeps.
    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<(), HypervisorError>;
    /// Makes an interrupt line pending, for the next run only.
    fn set_pending(&mut self, line: InterruptLine, pending: bool) -> Result<(), HypervisorError>;
    /// Whether the virtual timer is masked (at the host, not CNTV_CTL.IMASK).
    fn vtimer_mask(&self) -> Result<bool, HypervisorError>;
    /// Masks or unmasks the virtual timer.
    fn set_vtimer_mask(&mut self, masked: bool) -> Result<(), HypervisorError>;
    /// CNTVOFF: CNTVCT = [`RawVcpu::counter`] - offset.
    fn vtimer_offset(&self) -> Result<u64, HypervisorError>;
    /// Sets CNTVOFF. The same on all vCPUs of a machine, or time goes backwards between them.
    fn set_vtimer_offset(&mut self, offset: u64) -> Result<(), HypervisorError>;
    /// The physical counter (CNTPCT) now, in ticks of [`RawVcpu::counter_frequency`].
    fn counter(&self) -> u64;
    /// CNTFRQ in Hz.
    fn counter_frequency(&self) -> u64;
    /// Makes `run` return [`RawExit::Canceled`]. Whether a kick outside `run` is remembered is not promised.
    fn kicker(&self) -> Kicker;
    /// Whether a kick outside `run` is remembered, so that the next `run` returns at once. Where it is not, kicks are
    /// repeated until they are seen.
    fn remembers_kicks(&self) -> bool {
        false
    }
    /// Drives the input of PPI `intid` of an interrupt controller in the host. Nothing where there is none.
    fn set_host_ppi(&mut self, intid: u32, level: bool) -> Result<(), HypervisorError> {
        let _ = (intid, level);
        Ok(())
    }
    /// Puts every register back to the state after creation.
    fn reset(&mut self) -> Result<(), HypervisorError>;
}
