//! A data abort carried out: each transfer of its plan goes to the GIC, to RAM (the part of an access beside a device) or,
//! as an MMIO exit, to the caller, whose answer is taken in at the next `run`.

use vm_memory::{Bytes, GuestAddress};

use super::{Stop, TrapVcpu};
use crate::aarch64::esr::{DataAbort, FaultKind, fault_kind, fsc};
use crate::aarch64::inject::{Exception, pstate};
use crate::aarch64::mmio_decode::{self, Chunk, Destination, Plan, Progress, Snapshot};
use crate::aarch64::raw::{RawVcpu, Reg};
use crate::aarch64::sysreg::names;
use crate::aarch64::translate::Regime;
use crate::hypervisor::HypervisorError;

/// The bits of an address that choose a 4 KiB page, without a tag in the top byte.
const PAGE_BITS: u64 = 0x00ff_ffff_ffff_f000;
/// Most registers that one instruction loads (LD1 of four).
const MAX_LOADS: usize = 4;

/// An access whose transfers are not all done.
#[derive(Debug)]
pub(super) struct AccessInFlight {
    progress: Progress,
    /// The byte whose access aborted: its virtual address and where that leads.
    far: u64,
    ipa: u64,
    write: bool,
    /// Loaded values; they reach the registers together, once nothing can fail any more.
    loads: [Option<(Destination, u128)>; MAX_LOADS],
}

impl AccessInFlight {
    fn complete(&mut self, data: u64) {
        if let Some(load) = self.progress.complete(data)
            && let Some(slot) = self.loads.iter_mut().find(|slot| slot.is_none())
        {
            *slot = Some(load);
        }
    }
}

impl<R: RawVcpu> TrapVcpu<R> {
    /// Handles a data abort at virtual address `far`, which leads to `ipa`.
    pub(super) fn data_abort(
        &mut self,
        abort: DataAbort,
        far: u64,
        ipa: u64,
    ) -> Result<Option<Stop>, HypervisorError> {
        if abort.s1ptw {
            let dfsc = self.walk_abort_status(far)?;
            return self.inject_abort(Exception::DataAbort { far, write: abort.write, dfsc });
        }
        if abort.cache_maintenance {
            // Devices have no cache.
            self.advance_pc()?;
            return Ok(None);
        }
        let external = Exception::DataAbort { far, write: abort.write, dfsc: fsc::SYNC_EXTERNAL };
        match fault_kind(abort.dfsc) {
            FaultKind::Other => return self.inject_abort(external),
            FaultKind::Translation | FaultKind::Permission if self.machine.is_memory(ipa) => {
                return Ok(Some(self.fault(&format!(
                    "a data abort (status {:#x}) on RAM at {ipa:#x}, virtual {far:#x}",
                    abort.dfsc
                ))?));
            }
            FaultKind::Translation | FaultKind::Permission => {}
        }
        let plan = match abort.access {
            Some(access) => {
                let va = if abort.far_not_valid { ipa } else { far };
                Some(Plan::from_syndrome(access, abort.write, va, self.x(access.rt)?))
            }
            None if abort.far_not_valid => None,
            None => self.decode_at_pc()?.filter(|plan| plan.touches(far)),
        };
        let Some(plan) = plan else { return self.inject_abort(external) };
        let far = if abort.far_not_valid { ipa } else { far };
        let progress = Progress::new(plan);
        self.access =
            Some(AccessInFlight { progress, far, ipa, write: abort.write, loads: [None; MAX_LOADS] });
        self.continue_access()
    }

    /// Takes in the answer to the MMIO exit that `run` returned last, and goes on with its access.
    pub(super) fn resume_access(&mut self) -> Result<Option<Stop>, HypervisorError> {
        let Some(access) = self.access.as_mut() else { return Ok(None) };
        access.complete(u64::from_le_bytes(self.buffer));
        self.continue_access()
    }

    /// Carries out transfers until one needs the caller, or the instruction is done.
    fn continue_access(&mut self) -> Result<Option<Stop>, HypervisorError> {
        loop {
            let Some(access) = self.access.as_ref() else { return Ok(None) };
            let Some(chunk) = access.progress.next() else {
                self.finish_access()?;
                return Ok(None);
            };
            let ipa = match self.address_of(access, chunk)? {
                Ok(ipa) => ipa,
                Err(dfsc) => {
                    let write = access.write;
                    self.access = None;
                    return self.inject_abort(Exception::DataAbort { far: chunk.va, write, dfsc });
                }
            };
            self.buffer = chunk.write.unwrap_or(0).to_le_bytes();
            if !self.transfer_here(ipa, chunk) {
                // Only a device's answer is progress: a guest may loop on aborts in RAM.
                self.watch.progress();
                let (addr, size) = (ipa, chunk.size);
                return Ok(Some(match chunk.write {
                    Some(_) => Stop::Write { addr, size },
                    None => Stop::Read { addr, size },
                }));
            }
            if let Some(access) = self.access.as_mut() {
                access.complete(u64::from_le_bytes(self.buffer));
            }
        }
    }

    /// Serves a transfer that needs no device of the caller's: the GIC and RAM. False: it does.
    fn transfer_here(&mut self, ipa: u64, chunk: Chunk) -> bool {
        let buffer = &mut self.buffer[..usize::from(chunk.size)];
        let interrupts = self.machine.interrupts();
        match chunk.write {
            Some(_) if interrupts.mmio_write(self.id, ipa, buffer) => true,
            None if interrupts.mmio_read(self.id, ipa, buffer) => true,
            Some(_) => self.machine.memory().write_slice(buffer, GuestAddress(ipa)).is_ok(),
            None => self.machine.memory().read_slice(buffer, GuestAddress(ipa)).is_ok(),
        }
    }

    /// Where a transfer goes: beside the address that aborted, or through the page tables if it lies in another page.
    fn address_of(&self, access: &AccessInFlight, chunk: Chunk) -> Result<Result<u64, u8>, HypervisorError> {
        if (chunk.va ^ access.far) & PAGE_BITS == 0 {
            return Ok(Ok(access.ipa & !0xfff | chunk.va & 0xfff));
        }
        let user = self.raw.reg(Reg::Cpsr)? & pstate::MODE == pstate::EL0T;
        let found = Regime::of(&self.raw)?.translate(self.machine.memory(), chunk.va);
        Ok(match found {
            Ok(found) if user && !found.user || chunk.write.is_some() && !found.writable => {
                Err(fsc::PERMISSION | 3)
            }
            Ok(found) => Ok(found.ipa),
            Err(fault) => Err(fault.fsc),
        })
    }

    /// All transfers are done: registers, base register, next instruction.
    fn finish_access(&mut self) -> Result<(), HypervisorError> {
        let Some(access) = self.access.take() else { return Ok(()) };
        for (destination, value) in access.loads.into_iter().flatten() {
            match destination {
                Destination::X { n, .. } => self.set_x(n, value as u64)?,
                Destination::Q(n) => self.raw.set_simd_reg(n, value)?,
            }
        }
        match access.progress.plan().writeback {
            Some((31, value)) => {
                let sp = self.stack_pointer()?;
                self.raw.set_sys_reg(sp, value)?;
            }
            Some((n, value)) => self.set_x(n, value)?,
            None => {}
        }
        self.advance_pc()
    }

    /// Which stack pointer is in use.
    fn stack_pointer(&self) -> Result<crate::aarch64::raw::SysReg, HypervisorError> {
        let mode = self.raw.reg(Reg::Cpsr)? & pstate::MODE;
        Ok(if mode == pstate::EL1H { names::SP_EL1 } else { names::SP_EL0 })
    }

    /// The plan of the load or store at the PC, if it is one that a device can serve.
    fn decode_at_pc(&self) -> Result<Option<Plan>, HypervisorError> {
        let pc = self.raw.reg(Reg::Pc)?;
        let Ok(found) = Regime::of(&self.raw)?.translate(self.machine.memory(), pc) else { return Ok(None) };
        let Ok(word) = self.machine.memory().read_obj::<u32>(GuestAddress(found.ipa)) else {
            return Ok(None);
        };
        let word = u32::from_le(word);
        let mut registers =
            Snapshot { x: [0; 32], q: [0; 32], sp: self.raw.sys_reg(self.stack_pointer()?)?, pc };
        for n in 0..31 {
            registers.x[usize::from(n)] = self.raw.reg(Reg::X(n))?;
        }
        for n in 0..32 {
            registers.q[usize::from(n)] = self.raw.simd_reg(n)?;
        }
        match mmio_decode::decode(word, &registers) {
            Ok(plan) => Ok(Some(plan)),
            Err(refused) => {
                log::log!(
                    self.machine.guest_log_level(),
                    "CPU {}: the instruction {word:#010x} at {pc:#x} accesses a device ({refused:?}); \
                     it gets an external abort",
                    self.id
                );
                Ok(None)
            }
        }
    }

    /// The fault status of an external abort on the table walk for `va`: its level comes from walking.
    pub(super) fn walk_abort_status(&self, va: u64) -> Result<u8, HypervisorError> {
        let walked = Regime::of(&self.raw)?.translate(self.machine.memory(), va);
        Ok(match walked {
            Err(fault) if fault.fsc & !3 == fsc::SYNC_EXTERNAL_WALK => fault.fsc,
            // Somebody has changed the tables since.
            _ => fsc::SYNC_EXTERNAL_WALK,
        })
    }
}
