//! Offsets, bits and identification values of the GICv3 frames and of the GICv2m frame, each with its section of
//! Arm IHI 0069 ("the GIC specification"). No behaviour lives here.

use super::state::INTID_LIMIT;
use crate::aarch64::raw::SysReg;

/// Distributor Control Register (IHI 0069, 12.9).
pub const GICD_CTLR: u64 = 0x0000;
/// Interrupt Controller Type Register (12.9).
pub const GICD_TYPER: u64 = 0x0004;
/// Distributor Implementer Identification Register (12.9).
pub const GICD_IIDR: u64 = 0x0008;
/// Set Non-secure SPI Pending Register, write-only (12.9).
pub const GICD_SETSPI_NSR: u64 = 0x0040;
/// Clear Non-secure SPI Pending Register, write-only (12.9).
pub const GICD_CLRSPI_NSR: u64 = 0x0048;
/// Interrupt Group Registers; the first of the registers that distributor and redistributor have in common (12.9).
pub const IGROUPR: u64 = 0x0080;
/// Interrupt Set-Enable Registers (12.9).
pub const ISENABLER: u64 = 0x0100;
/// Interrupt Clear-Enable Registers (12.9).
pub const ICENABLER: u64 = 0x0180;
/// Interrupt Set-Pending Registers (12.9).
pub const ISPENDR: u64 = 0x0200;
/// Interrupt Clear-Pending Registers (12.9).
pub const ICPENDR: u64 = 0x0280;
/// Interrupt Set-Active Registers (12.9).
pub const ISACTIVER: u64 = 0x0300;
/// Interrupt Clear-Active Registers (12.9).
pub const ICACTIVER: u64 = 0x0380;
/// Interrupt Priority Registers, byte-accessible (12.9).
pub const IPRIORITYR: u64 = 0x0400;
/// Interrupt Processor Targets Registers; RES0 with affinity routing (12.9).
pub const ITARGETSR: u64 = 0x0800;
/// Interrupt Configuration Registers, two bits an interrupt (12.9).
pub const ICFGR: u64 = 0x0C00;
/// Interrupt Group Modifier Registers; RAZ/WI with a single Security state (12.9).
pub const IGRPMODR: u64 = 0x0D00;
/// First offset behind the Interrupt Group Modifier Registers.
pub const IGRPMODR_END: u64 = 0x0D80;
/// Interrupt Routing Registers, 64 bits each, indexed by INTID (12.9).
pub const GICD_IROUTER: u64 = 0x6000;
/// First offset behind the Interrupt Routing Registers.
pub const GICD_IROUTER_END: u64 = 0x8000;

/// GICD_CTLR.EnableGrp0 with GICD_CTLR.DS = 1 (12.9).
pub const CTLR_ENABLE_GRP0: u32 = 1 << 0;
/// GICD_CTLR.EnableGrp1 with GICD_CTLR.DS = 1 (12.9).
pub const CTLR_ENABLE_GRP1: u32 = 1 << 1;
/// GICD_CTLR.ARE: affinity routing, RAO/WI here (12.9).
pub const CTLR_ARE: u32 = 1 << 4;
/// GICD_CTLR.DS: a single Security state, RAO/WI here (12.9).
pub const CTLR_DS: u32 = 1 << 6;

/// GICD_TYPER (12.9): ITLinesNumber; CPUNumber is 0 because affinity routing cannot be turned off; SecurityExtn, MBIS and
/// LPIS are 0 (the advertised MSI doorbell is the GICv2m frame, which Linux probes only where LPIS is 0); IDbits says ten
/// bits; A3V and RSS are set; No1N is 0.
pub const TYPER: u32 = (INTID_LIMIT / 32 - 1) | (10 - 1) << 19 | 1 << 24 | 1 << 26;
/// GICD_IIDR, GICR_IIDR and MSI_IIDR: product 0x48, revision 0, JEP106 implementer 0x43B (12.9).
pub const IIDR: u32 = 0x4800_043B;

/// First of the identification registers PIDR4..7, PIDR0..3 and CIDR0..3 (12.1.2), in both kinds of frame.
pub const ID_REGISTERS: u64 = 0xFFD0;
/// First offset behind a 64 KiB register frame.
pub const FRAME_SIZE: u64 = 0x1_0000;
/// PIDR0 of the distributor; the redistributor's is one more.
pub const GICD_PIDR0: u32 = 0x92;

/// The identification register at `offset` (at least [`ID_REGISTERS`]) of a frame whose PIDR0 is `pidr0`. PIDR2.ArchRev is
/// 3 for GICv3 (12.9).
pub fn id_register(offset: u64, pidr0: u32) -> u32 {
    let table = [0x44, 0, 0, 0, pidr0, 0xB4, 0x3B, 0, 0x0D, 0xF0, 0x05, 0xB1];
    let index = offset.wrapping_sub(ID_REGISTERS) / 4;
    usize::try_from(index).ok().and_then(|i| table.get(i).copied()).unwrap_or(0)
}

/// Redistributor Control Register (12.11).
pub const GICR_CTLR: u64 = 0x0000;
/// Redistributor Implementer Identification Register (12.11).
pub const GICR_IIDR: u64 = 0x0004;
/// Redistributor Type Register, 64 bits (12.11).
pub const GICR_TYPER: u64 = 0x0008;
/// Upper half of GICR_TYPER, the affinity (12.11).
pub const GICR_TYPER_HIGH: u64 = GICR_TYPER + 4;
/// Redistributor Wake Register (12.11).
pub const GICR_WAKER: u64 = 0x0014;

/// GICR_CTLR.DPG0: this PE takes no 1-of-N interrupts of group 0 (12.11).
pub const GICR_CTLR_DPG0: u32 = 1 << 24;
/// GICR_CTLR.DPG1NS: this PE takes no 1-of-N interrupts of group 1 (12.11).
pub const GICR_CTLR_DPG1NS: u32 = 1 << 25;
/// GICR_TYPER.Last: the last redistributor of the region (12.11).
pub const GICR_TYPER_LAST: u64 = 1 << 4;
/// GICR_TYPER.DPGS: the DPG bits of GICR_CTLR exist (12.11).
pub const GICR_TYPER_DPGS: u64 = 1 << 5;
/// GICR_WAKER.ProcessorSleep (12.11).
pub const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
/// GICR_WAKER.ChildrenAsleep (12.11).
pub const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

/// MSI_TYPER of the GICv2m frame: first INTID in bits 25:16, number of SPIs in bits 9:0 (Arm SBSA, GICv2m).
pub const V2M_TYPER: u64 = 0x008;
/// MSI_SETSPI_NS of the GICv2m frame, write-only: the doorbell (Arm SBSA, GICv2m).
pub const V2M_SETSPI_NS: u64 = 0x040;
/// MSI_IIDR of the GICv2m frame (Arm SBSA, GICv2m).
pub const V2M_IIDR: u64 = 0xFCC;

/// The affinity fields of GICD_IROUTER and MPIDR_EL1: Aff3 in bits 39:32, Aff2 to Aff0 in bits 23:0 (12.9).
pub const AFFINITY_MASK: u64 = 0xFF_00FF_FFFF;
/// GICD_IROUTER.Interrupt_Routing_Mode: any participating PE (12.9).
pub const IROUTER_IRM: u64 = 1 << 31;

/// ICC_CTLR_EL1.CBPR: BPR0 serves both groups (12.2).
pub const ICC_CTLR_CBPR: u64 = 1 << 0;
/// ICC_CTLR_EL1.EOImode: EOIR only drops the priority, DIR deactivates (12.2).
pub const ICC_CTLR_EOIMODE: u64 = 1 << 1;
/// The read-only part of ICC_CTLR_EL1 (12.2): PRIbits = 5 - 1, IDbits = 0 (16 bits), A3V = 1, RSS = 1.
pub const ICC_CTLR_FIXED: u64 = 4 << 8 | 1 << 15 | 1 << 18;
/// ICC_SRE_EL1 (12.2): SRE, DFB and DIB, all RAO/WI, because there is neither a memory-mapped interface nor bypass.
pub const ICC_SRE: u64 = 0b111;

/// INTID that says "nothing to acknowledge" (2.2.1).
pub const INTID_SPURIOUS: u32 = 1023;

/// A register of the CPU interface that exists with five priority bits (12.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icc {
    /// ICC_PMR_EL1, priority mask.
    Pmr,
    /// ICC_IAR0_EL1 and ICC_IAR1_EL1, interrupt acknowledge, by group.
    Iar(usize),
    /// ICC_EOIR0_EL1 and ICC_EOIR1_EL1, end of interrupt, by group.
    Eoir(usize),
    /// ICC_HPPIR0_EL1 and ICC_HPPIR1_EL1, highest priority pending interrupt, by group.
    Hppir(usize),
    /// ICC_BPR0_EL1 and ICC_BPR1_EL1, binary point, by group.
    Bpr(usize),
    /// ICC_AP0R0_EL1 and ICC_AP1R0_EL1, active priorities, by group. The others exist only with six or seven priority bits.
    Apr(usize),
    /// ICC_DIR_EL1, deactivate interrupt.
    Dir,
    /// ICC_RPR_EL1, running priority.
    Rpr,
    /// ICC_SGI1R_EL1: SGIs of group 1.
    Sgi1r,
    /// ICC_ASGI1R_EL1: SGIs of the other Security state's group 1.
    Asgi1r,
    /// ICC_SGI0R_EL1: SGIs of group 0.
    Sgi0r,
    /// ICC_CTLR_EL1, control.
    Ctlr,
    /// ICC_SRE_EL1, system register enable.
    Sre,
    /// ICC_IGRPEN0_EL1 and ICC_IGRPEN1_EL1, group enable, by group.
    Igrpen(usize),
}

impl Icc {
    /// The register with this encoding, if it is one of the CPU interface's.
    pub fn decode(reg: SysReg) -> Option<Icc> {
        const PMR: u16 = SysReg::new(3, 0, 4, 6, 0).0;
        // Everything else shares op0 = 3, op1 = 0, CRn = 12; what is left is CRm and op2.
        const BASE: u16 = SysReg::new(3, 0, 12, 0, 0).0;
        if reg.0 == PMR {
            return Some(Icc::Pmr);
        }
        if reg.0 & !0x7F != BASE {
            return None;
        }
        Some(match (reg.0 >> 3 & 15, reg.0 & 7) {
            (8, 0) => Icc::Iar(0),
            (8, 1) => Icc::Eoir(0),
            (8, 2) => Icc::Hppir(0),
            (8, 3) => Icc::Bpr(0),
            (8, 4) => Icc::Apr(0),
            (9, 0) => Icc::Apr(1),
            (11, 1) => Icc::Dir,
            (11, 3) => Icc::Rpr,
            (11, 5) => Icc::Sgi1r,
            (11, 6) => Icc::Asgi1r,
            (11, 7) => Icc::Sgi0r,
            (12, 0) => Icc::Iar(1),
            (12, 1) => Icc::Eoir(1),
            (12, 2) => Icc::Hppir(1),
            (12, 3) => Icc::Bpr(1),
            (12, 4) => Icc::Ctlr,
            (12, 5) => Icc::Sre,
            (12, 6) => Icc::Igrpen(0),
            (12, 7) => Icc::Igrpen(1),
            _ => return None,
        })
    }
}
