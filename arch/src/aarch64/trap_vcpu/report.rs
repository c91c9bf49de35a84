//! A vCPU's registers for people: fault reports and monitors. Not a format that anything parses.

use std::fmt::Write;

use crate::aarch64::raw::{RawVcpu, Reg, SysReg};
use crate::aarch64::sysreg::names;

const SYSTEM: [(&str, SysReg); 11] = [
    ("SP_EL0", names::SP_EL0),
    ("SP_EL1", names::SP_EL1),
    ("ESR_EL1", names::ESR_EL1),
    ("FAR_EL1", names::FAR_EL1),
    ("ELR_EL1", names::ELR_EL1),
    ("SPSR_EL1", names::SPSR_EL1),
    ("VBAR_EL1", names::VBAR_EL1),
    ("SCTLR_EL1", names::SCTLR_EL1),
    ("TCR_EL1", names::TCR_EL1),
    ("TTBR0_EL1", names::TTBR0_EL1),
    ("TTBR1_EL1", names::TTBR1_EL1),
];

/// The registers of CPU `id`.
pub(super) fn registers<R: RawVcpu>(id: u32, online: bool, raw: &R) -> String {
    format(id, online, |reg| raw.reg(reg).ok(), |reg| raw.sys_reg(reg).ok())
}

/// The registers of CPU `id`, four a line; what cannot be read is a question mark.
pub(crate) fn format(
    id: u32,
    online: bool,
    general: impl Fn(Reg) -> Option<u64>,
    system: impl Fn(SysReg) -> Option<u64>,
) -> String {
    let mut text = format!("CPU {id} ({})\n", if online { "on" } else { "off" });
    let mut column = 0;
    let mut put = |name: &str, value: Option<u64>| {
        // Writing to a String cannot fail.
        let _ = match value {
            Some(value) => write!(text, "{name:>9}={value:016x}"),
            None => write!(text, "{name:>9}={:>16}", "?"),
        };
        column += 1;
        text.push(if column % 4 == 0 { '\n' } else { ' ' });
    };
    put("PC", general(Reg::Pc));
    put("CPSR", general(Reg::Cpsr));
    for n in 0..31 {
        put(&format!("X{n}"), general(Reg::X(n)));
    }
    for (name, reg) in SYSTEM {
        put(name, system(reg));
    }
    text.truncate(text.trim_end().len());
    text
}
