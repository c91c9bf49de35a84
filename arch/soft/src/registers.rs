//! Reading and writing the system registers this CPU keeps, for the guest (MRS, MSR) and for the caller.

use crate::cpu::{Cpu, Line};
use crate::sysreg::{self, cntv_ctl, id, sctlr};

/// FPCR bits that exist: AHP, DN, FZ, RMode.
const FPCR_BITS: u64 = 0x07c0_0000;
/// FPSR bits that exist: QC and the cumulative exceptions.
const FPSR_BITS: u64 = 0x0800_009f;
/// CNTKCTL_EL1 bits that exist.
const CNTKCTL_BITS: u64 = 0x3ff;
/// CPACR_EL1.FPEN; everything else is of absent extensions.
const CPACR_BITS: u64 = 3 << 20;

/// What a register write did to the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing that execution depends on.
    Plain,
    /// Translation, decoding or interrupt state may have changed: the block must end.
    Context,
}

impl Cpu {
    /// The value of a register that is kept here; `None` for all others.
    pub fn sys_reg(&self, reg: u16) -> Option<u64> {
        let s = &self.sys;
        Some(match reg {
            id::MIDR_EL1 => sysreg::MIDR,
            id::MPIDR_EL1 => s.mpidr,
            id::REVIDR_EL1 | id::AIDR_EL1 => 0,
            id::SCTLR_EL1 => s.sctlr,
            id::CPACR_EL1 => s.cpacr,
            id::TTBR0_EL1 => s.ttbr[0],
            id::TTBR1_EL1 => s.ttbr[1],
            id::TCR_EL1 => s.tcr,
            id::SPSR_EL1 => s.spsr,
            id::ELR_EL1 => s.elr,
            id::SP_EL0 => self.sp_of(0),
            id::SP_EL1 => self.sp_of(1),
            id::SPSEL => u64::from(self.pstate.sp_sel),
            id::CURRENTEL => u64::from(self.pstate.el) << 2,
            id::PAN => u64::from(self.pstate.pan) << 22,
            id::AFSR0_EL1 => s.afsr[0],
            id::AFSR1_EL1 => s.afsr[1],
            id::ESR_EL1 => s.esr,
            id::FAR_EL1 => s.far,
            id::PAR_EL1 => s.par,
            id::MAIR_EL1 => s.mair,
            id::AMAIR_EL1 => s.amair,
            id::VBAR_EL1 => s.vbar,
            id::ISR_EL1 => self.isr(),
            id::CONTEXTIDR_EL1 => s.contextidr,
            id::TPIDR_EL1 => s.tpidr_el1,
            id::CNTKCTL_EL1 => s.cntkctl,
            id::CCSIDR_EL1 => sysreg::ccsidr(s.csselr),
            id::CLIDR_EL1 => sysreg::CLIDR,
            id::CSSELR_EL1 => s.csselr,
            id::CTR_EL0 => sysreg::CTR,
            id::DCZID_EL0 if self.pstate.el == 0 && s.sctlr & sctlr::DZE == 0 => sysreg::DCZID | sysreg::DZP,
            id::DCZID_EL0 => sysreg::DCZID,
            id::NZCV => u64::from(self.regs.flags.nzcv()),
            id::DAIF => u64::from(self.pstate.daif) << 6,
            id::FPCR => u64::from(self.regs.fpcr),
            id::FPSR => u64::from(self.regs.fpsr),
            id::TPIDR_EL0 => s.tpidr_el0,
            id::TPIDRRO_EL0 => s.tpidrro_el0,
            id::CNTFRQ_EL0 => self.machine.counter_frequency(),
            id::CNTVCT_EL0 => self.virtual_counter(),
            id::CNTV_TVAL_EL0 => u64::from(s.cntv_cval.wrapping_sub(self.virtual_counter()) as u32),
            id::CNTV_CTL_EL0 => self.cntv_ctl(),
            id::CNTV_CVAL_EL0 => s.cntv_cval,
            _ => {
                let described = self.identification.iter().find(|(described, _)| *described == reg);
                let own = || sysreg::identification(reg, self.machine.ipa_bits());
                return described.map(|(_, value)| *value).or_else(own);
            }
        })
    }

    /// Sets a register that is kept here, as the caller of [`Cpu::run`]: MPIDR_EL1 and SP_EL1 too. Returns whether there is
    /// such a register to set.
    pub fn set_sys_reg(&mut self, reg: u16, value: u64) -> bool {
        match reg {
            id::MPIDR_EL1 => self.sys.mpidr = value | 1 << 31,
            id::SP_EL1 => self.set_sp_of(1, value),
            _ => return self.write_sys_reg(reg, value).is_some(),
        }
        true
    }

    /// Makes the guest read `value` from an identification register of the space 3,0,0,1-7,op2, whatever this CPU can do; also
    /// after a reset. Returns whether `reg` is such a register.
    pub fn describe_as(&mut self, reg: u16, value: u64) -> bool {
        if sysreg::identification(reg, self.machine.ipa_bits()).is_none() {
            return false;
        }
        self.identification.retain(|(described, _)| *described != reg);
        self.identification.push((reg, value));
        true
    }

    /// Sets a register as the guest does; `None` if it is unknown or read-only.
    pub(crate) fn write_sys_reg(&mut self, reg: u16, value: u64) -> Option<Written> {
        let s = &mut self.sys;
        match reg {
            id::SPSR_EL1 => s.spsr = value & 0xffff_ffff,
            id::ELR_EL1 => s.elr = value,
            id::SP_EL0 => self.set_sp_of(0, value),
            id::AFSR0_EL1 => s.afsr[0] = value,
            id::AFSR1_EL1 => s.afsr[1] = value,
            id::ESR_EL1 => s.esr = value & 0xffff_ffff,
            id::FAR_EL1 => s.far = value,
            id::PAR_EL1 => s.par = value,
            id::VBAR_EL1 => s.vbar = value & !0x7ff,
            id::CONTEXTIDR_EL1 => s.contextidr = value & 0xffff_ffff,
            id::TPIDR_EL1 => s.tpidr_el1 = value,
            id::TPIDR_EL0 => s.tpidr_el0 = value,
            id::TPIDRRO_EL0 => s.tpidrro_el0 = value,
            id::CNTKCTL_EL1 => s.cntkctl = value & CNTKCTL_BITS,
            id::CSSELR_EL1 => s.csselr = value & 0xf,
            id::NZCV => self.regs.flags.set_nzcv(value as u32 & 0xf000_0000),
            id::FPCR => self.regs.fpcr = (value & FPCR_BITS) as u32,
            id::FPSR => self.regs.fpsr = (value & FPSR_BITS) as u32,
            id::AMAIR_EL1 => s.amair = value,
            id::CNTV_TVAL_EL0 => {
                s.cntv_cval = 0;
                let tval = i64::from(value as i32);
                self.sys.cntv_cval = self.virtual_counter().wrapping_add_signed(tval);
                self.update_timer();
            }
            id::CNTV_CVAL_EL0 => {
                s.cntv_cval = value;
                self.update_timer();
            }
            id::CNTV_CTL_EL0 => {
                s.cntv_ctl = value & (cntv_ctl::ENABLE | cntv_ctl::IMASK);
                self.update_timer();
            }
            _ => return self.write_context_register(reg, value),
        }
        Some(Written::Plain)
    }

    /// The registers on which translation, decoding or interrupts depend.
    fn write_context_register(&mut self, reg: u16, value: u64) -> Option<Written> {
        let s = &mut self.sys;
        match reg {
            id::SCTLR_EL1 => {
                let new = value & sctlr::WRITABLE | sctlr::RES1;
                let translation = sctlr::M | sctlr::A | sctlr::WXN;
                let changed = (new ^ s.sctlr) & translation != 0;
                s.sctlr = new;
                if changed {
                    self.flush_translations();
                }
            }
            id::CPACR_EL1 => {
                s.cpacr = value & CPACR_BITS;
                self.state_changed();
            }
            id::TTBR0_EL1 | id::TTBR1_EL1 => {
                let upper = usize::from(reg == id::TTBR1_EL1);
                let before = self.asid();
                let table_changed = (self.sys.ttbr[upper] ^ value) & 0xffff_ffff_ffff != 0;
                self.sys.ttbr[upper] = value;
                if table_changed && upper == 1 {
                    self.flush_translations();
                } else if before != self.asid() || table_changed {
                    self.asid_changed();
                }
            }
            id::TCR_EL1 => {
                let changed = s.tcr != value;
                s.tcr = value;
                if changed {
                    self.flush_translations();
                }
            }
            id::MAIR_EL1 => {
                let changed = s.mair != value;
                s.mair = value;
                if changed {
                    self.flush_translations();
                }
            }
            id::SPSEL => {
                self.set_mode(self.pstate.el, value & 1 != 0);
                self.state_changed();
            }
            id::PAN => {
                self.pstate.pan = value >> 22 & 1 != 0;
                self.state_changed();
            }
            id::DAIF => self.pstate.daif = (value >> 6) as u8 & 0xf,
            _ => return None,
        }
        Some(Written::Context)
    }

    /// Whether accesses through a misaligned SP fault.
    pub(crate) fn checks_sp(&self) -> bool {
        self.sys.sctlr & if self.pstate.el == 0 { sctlr::SA0 } else { sctlr::SA } != 0
    }

    /// Whether a line is pending that would wake WFI.
    pub(crate) fn wakes(&self) -> bool {
        self.is_pending(Line::Irq) || self.is_pending(Line::Fiq)
    }
}
