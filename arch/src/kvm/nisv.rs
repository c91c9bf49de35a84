//! Accesses to devices by instructions that the hardware does not describe (ISV = 0): pairs, write-back, SIMD. KVM leaves
//! them to user space (KVM_EXIT_ARM_NISV); here the instruction is fetched, decoded and carried out, transfer by transfer.
//! It is no device and injects nothing.

use vm_memory::{Bytes, GuestAddress};

use crate::aarch64::inject::pstate;
use crate::aarch64::mmio_decode::{self, Destination, Plan, Progress, Snapshot};
use crate::aarch64::raw::{Reg, SysReg};
use crate::aarch64::sysreg::names;
use crate::aarch64::translate::Regime;
use crate::hypervisor::HypervisorError;
use crate::memory::GuestMemory;

/// Most registers that one instruction loads (LD1 of four).
const MAX_LOADS: usize = 4;

/// A vCPU's registers.
pub trait GuestRegisters {
    /// Reads a general register.
    fn reg(&self, reg: Reg) -> Result<u64, HypervisorError>;
    /// Writes a general register.
    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HypervisorError>;
    /// Reads Q`n`.
    fn simd_reg(&self, n: u8) -> Result<u128, HypervisorError>;
    /// Writes Q`n`.
    fn set_simd_reg(&mut self, n: u8, value: u128) -> Result<(), HypervisorError>;
    /// Reads a system register.
    fn sys_reg(&self, reg: SysReg) -> Result<u64, HypervisorError>;
    /// Writes a system register.
    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<(), HypervisorError>;
}

/// What an access needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A device answers `size` bytes at `addr`, by [`NisvAccess::complete`].
    Read {
        /// Guest physical address.
        addr: u64,
        /// 1, 2, 4 or 8.
        size: u8,
    },
    /// A device takes the low `size` bytes of `data` at `addr`; then [`NisvAccess::complete`].
    Write {
        /// Guest physical address.
        addr: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// What is written.
        data: u64,
    },
    /// The instruction is done, and the registers are written.
    Done,
    /// The access ends in an external abort; no register has changed.
    Abort,
}

/// One instruction's access, some of whose transfers may be done.
#[derive(Debug)]
pub struct NisvAccess {
    regime: Regime,
    user: bool,
    sp: SysReg,
    pc: u64,
    progress: Progress,
    loads: [Option<(Destination, u128)>; MAX_LOADS],
}

impl NisvAccess {
    /// The access of the instruction at the PC. `None`: it is none that a device can serve, and ends in an external abort.
    pub fn begin<G: GuestRegisters>(
        guest: &G,
        memory: &GuestMemory,
    ) -> Result<Option<Self>, HypervisorError> {
        let regime = Regime::read(|reg| guest.sys_reg(reg))?;
        let (pc, mode) = (guest.reg(Reg::Pc)?, guest.reg(Reg::Cpsr)? & pstate::MODE);
        let sp = if mode == pstate::EL1H { names::SP_EL1 } else { names::SP_EL0 };
        let Ok(found) = regime.translate(memory, pc) else { return Ok(None) };
        let Ok(word) = memory.read_obj::<u32>(GuestAddress(found.ipa)).map(u32::from_le) else {
            return Ok(None);
        };
        match mmio_decode::decode(word, &snapshot(guest, sp, pc)?) {
            Ok(plan) => Ok(Some(NisvAccess {
                regime,
                user: mode == pstate::EL0T,
                sp,
                pc,
                progress: Progress::new(plan),
                loads: [None; MAX_LOADS],
            })),
            Err(refused) => {
                log::debug!(
                    "the instruction {word:#010x} at {pc:#x} accesses a device ({refused:?}); it gets an external abort"
                );
                Ok(None)
            }
        }
    }

    /// The plan that is carried out.
    pub fn plan(&self) -> &Plan {
        self.progress.plan()
    }

    /// Goes on until a device is needed or all is done. Transfers that lead to RAM are served here.
    pub fn step<G: GuestRegisters>(
        &mut self,
        guest: &mut G,
        memory: &GuestMemory,
    ) -> Result<Step, HypervisorError> {
        while let Some(chunk) = self.progress.next() {
            let addr = match self.regime.translate(memory, chunk.va) {
                Ok(found) if self.user && !found.user || chunk.write.is_some() && !found.writable => {
                    return Ok(Step::Abort);
                }
                Ok(found) => found.ipa,
                Err(_) => return Ok(Step::Abort),
            };
            let mut buffer = chunk.write.unwrap_or(0).to_le_bytes();
            let bytes = &mut buffer[..usize::from(chunk.size)];
            let served = match chunk.write {
                Some(_) => memory.write_slice(bytes, GuestAddress(addr)),
                None => memory.read_slice(bytes, GuestAddress(addr)),
            };
            match (served, chunk.write) {
                (Ok(()), _) => self.complete(u64::from_le_bytes(buffer)),
                (Err(_), Some(data)) => return Ok(Step::Write { addr, size: chunk.size, data }),
                (Err(_), None) => return Ok(Step::Read { addr, size: chunk.size }),
            }
        }
        self.finish(guest)?;
        Ok(Step::Done)
    }

    /// Takes in what the device answered (anything, to a write).
    pub fn complete(&mut self, data: u64) {
        if let Some(load) = self.progress.complete(data)
            && let Some(slot) = self.loads.iter_mut().find(|slot| slot.is_none())
        {
            *slot = Some(load);
        }
    }

    /// All transfers are done: registers, base register, next instruction.
    fn finish<G: GuestRegisters>(&self, guest: &mut G) -> Result<(), HypervisorError> {
        for (destination, value) in self.loads.into_iter().flatten() {
            match destination {
                Destination::X { n: 31, .. } => {}
                Destination::X { n, .. } => guest.set_reg(Reg::X(n), value as u64)?,
                Destination::Q(n) => guest.set_simd_reg(n, value)?,
            }
        }
        match self.plan().writeback {
            Some((31, value)) => guest.set_sys_reg(self.sp, value)?,
            Some((n, value)) => guest.set_reg(Reg::X(n), value)?,
            None => {}
        }
        guest.set_reg(Reg::Pc, self.pc.wrapping_add(4))
    }
}

fn snapshot<G: GuestRegisters>(guest: &G, sp: SysReg, pc: u64) -> Result<Snapshot, HypervisorError> {
    let mut registers = Snapshot { x: [0; 32], q: [0; 32], sp: guest.sys_reg(sp)?, pc };
    for n in 0..31 {
        registers.x[usize::from(n)] = guest.reg(Reg::X(n))?;
    }
    for n in 0..32 {
        registers.q[usize::from(n)] = guest.simd_reg(n)?;
    }
    Ok(registers)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const RAM: u64 = 0x4000_0000;
    const UART: u64 = 0x0900_0000;

    /// Registers without a CPU. The MMU is off.
    #[derive(Default)]
    struct Script {
        x: HashMap<u8, u64>,
        q: HashMap<u8, u128>,
        system: HashMap<u16, u64>,
        pc: u64,
    }

    impl GuestRegisters for Script {
        fn reg(&self, reg: Reg) -> Result<u64, HypervisorError> {
            Ok(match reg {
                Reg::X(n) => self.x.get(&n).copied().unwrap_or(0),
                Reg::Pc => self.pc,
                Reg::Cpsr => pstate::EL1H,
                _ => 0,
            })
        }
        fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HypervisorError> {
            match reg {
                Reg::X(n) => _ = self.x.insert(n, value),
                Reg::Pc => self.pc = value,
                _ => {}
            }
            Ok(())
        }
        fn simd_reg(&self, n: u8) -> Result<u128, HypervisorError> {
            Ok(self.q.get(&n).copied().unwrap_or(0))
        }
        fn set_simd_reg(&mut self, n: u8, value: u128) -> Result<(), HypervisorError> {
            self.q.insert(n, value);
            Ok(())
        }
        fn sys_reg(&self, reg: SysReg) -> Result<u64, HypervisorError> {
            Ok(self.system.get(&reg.0).copied().unwrap_or(0))
        }
        fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<(), HypervisorError> {
            self.system.insert(reg.0, value);
            Ok(())
        }
    }

    /// A CPU at the instruction `word`, with X1 pointing to the UART.
    fn at(word: u32) -> (Script, GuestMemory) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(RAM), 0x2000)]).unwrap();
        memory.write_obj(word.to_le(), GuestAddress(RAM)).unwrap();
        let mut script = Script { pc: RAM, ..Script::default() };
        script.x.insert(1, UART);
        (script, memory)
    }

    #[test]
    fn a_pair_load_asks_the_device_twice_and_writes_both_registers() {
        // ldp x2, x3, [x1]
        let (mut guest, memory) = at(0xa940_0c22);
        let mut access = NisvAccess::begin(&guest, &memory).unwrap().unwrap();
        assert_eq!(access.step(&mut guest, &memory).unwrap(), Step::Read { addr: UART, size: 8 });
        access.complete(7);
        assert_eq!(access.step(&mut guest, &memory).unwrap(), Step::Read { addr: UART + 8, size: 8 });
        access.complete(9);
        assert_eq!(access.step(&mut guest, &memory).unwrap(), Step::Done);
        assert_eq!((guest.x[&2], guest.x[&3], guest.pc), (7, 9, RAM + 4));
    }

    #[test]
    fn a_store_with_write_back_moves_its_base() {
        // str w0, [x1], #4
        let (mut guest, memory) = at(0xb800_4420);
        guest.x.insert(0, 0x1_1234_5678);
        let mut access = NisvAccess::begin(&guest, &memory).unwrap().unwrap();
        let write = Step::Write { addr: UART, size: 4, data: 0x1234_5678 };
        assert_eq!(access.step(&mut guest, &memory).unwrap(), write);
        access.complete(0);
        assert_eq!(access.step(&mut guest, &memory).unwrap(), Step::Done);
        assert_eq!((guest.x[&1], guest.pc), (UART + 4, RAM + 4));
    }

    #[test]
    fn the_part_of_an_access_that_leads_to_ram_needs_no_device() {
        // ldp x2, x3, [x1], 8 bytes below RAM
        let (mut guest, memory) = at(0xa940_0c22);
        guest.x.insert(1, RAM - 8);
        let mut access = NisvAccess::begin(&guest, &memory).unwrap().unwrap();
        assert_eq!(access.step(&mut guest, &memory).unwrap(), Step::Read { addr: RAM - 8, size: 8 });
        access.complete(1);
        assert_eq!(access.step(&mut guest, &memory).unwrap(), Step::Done);
        assert_eq!(guest.x[&3] as u32, 0xa940_0c22);
    }

    #[test]
    fn an_exclusive_access_has_no_plan() {
        // ldxr x0, [x1]
        let (guest, memory) = at(0xc85f_7c20);
        assert!(NisvAccess::begin(&guest, &memory).unwrap().is_none());
    }

    #[test]
    fn an_unmapped_transfer_aborts_and_changes_no_register() {
        // ldp x2, x3, [x1], between the halves of the address space, with the MMU on and no way to walk: the fetch was of
        // a page that has gone since.
        let (mut guest, memory) = at(0xa940_0c22);
        let mut access = NisvAccess::begin(&guest, &memory).unwrap().unwrap();
        access.regime = Regime { sctlr: 1, tcr: 25, ttbr: [RAM + 0x1000, 0] };
        assert_eq!(access.step(&mut guest, &memory).unwrap(), Step::Abort);
        assert_eq!((guest.x.get(&2), guest.pc), (None, RAM));
    }
}
