//! KVM_RUN, and what each way out of it means. What needs a device or the machine as a whole goes to the caller.

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuExit as KvmExit;

use super::vcpu::KvmVcpu;
use crate::hypervisor::{HypervisorError, VcpuExit};
use crate::kvm::error::{call_failed, internal_error};
use crate::kvm::nisv::{NisvAccess, Step};
use crate::kvm::rendezvous::Waited;

/// What the exit before left to be done.
#[derive(Debug)]
pub(super) enum Pending {
    Nothing,
    /// KVM completes a read of this many bytes, or a write (0), at the next KVM_RUN.
    Mmio(usize),
    /// An access of ours goes on with the answer.
    Access(Box<NisvAccess>),
}

/// Why a vCPU stopped; [`VcpuExit`] without its borrow.
#[derive(Debug)]
pub(super) enum Stop {
    Read { addr: u64, size: usize },
    Write { addr: u64, size: usize },
    Off,
    Reset,
    Kicked,
    Fault(String),
}

/// An exit of KVM's that needs more than a look.
enum Event {
    Stop(Stop),
    NoSyndrome,
    Internal,
    Again,
}

impl KvmVcpu {
    /// What `stop` is to the caller.
    pub(super) fn exit(&mut self, stop: Stop) -> VcpuExit<'_> {
        match stop {
            Stop::Read { addr, size } => {
                self.buffer = [0; 8];
                VcpuExit::MmioRead { addr, data: &mut self.buffer[..size] }
            }
            Stop::Write { addr, size } => VcpuExit::MmioWrite { addr, data: &self.buffer[..size] },
            Stop::Off => VcpuExit::SystemOff,
            Stop::Reset => VcpuExit::SystemReset,
            Stop::Kicked => VcpuExit::Kicked,
            Stop::Fault(reason) => VcpuExit::Fault(reason),
        }
    }

    /// Runs the guest until the caller is needed.
    pub(super) fn run_until_stop(&mut self) -> Result<Stop, HypervisorError> {
        let start = self.machine.start();
        if !start.is_open()
            && let Waited::Interrupted = start.wait(|| self.kick.is_asked())?
        {
            self.kick.take();
            return Ok(Stop::Kicked);
        }
        if let Some(stop) = self.resume()? {
            return Ok(stop);
        }
        loop {
            match self.enter()? {
                Event::Stop(stop) => return Ok(stop),
                Event::Again => {}
                Event::NoSyndrome => {
                    if let Some(stop) = self.begin_access()? {
                        return Ok(stop);
                    }
                }
                Event::Internal => {
                    // SAFETY: KVM_EXIT_INTERNAL_ERROR says which member is meant; it is a plain number.
                    let suberror = unsafe { self.cpu.0.get_kvm_run().__bindgen_anon_1.internal.suberror };
                    return Ok(Stop::Fault(internal_error(suberror)));
                }
            }
        }
    }

    /// One KVM_RUN.
    fn enter(&mut self) -> Result<Event, HypervisorError> {
        let exit = match self.cpu.0.run() {
            Ok(exit) => exit,
            Err(e) => {
                return match e.errno() {
                    libc::EINTR => {
                        self.kick.take();
                        Ok(Event::Stop(Stop::Kicked))
                    }
                    libc::EAGAIN => Ok(Event::Again),
                    errno => Err(call_failed("KVM_RUN", errno)),
                };
            }
        };
        Ok(match exit {
            KvmExit::MmioRead(addr, data) => {
                if self.machine.mmio_read(addr, data) {
                    return Ok(Event::Again);
                }
                let size = data.len().min(self.buffer.len());
                self.pending = Pending::Mmio(size);
                Event::Stop(Stop::Read { addr, size })
            }
            KvmExit::MmioWrite(addr, data) => {
                if self.machine.mmio_write(addr, data) {
                    return Ok(Event::Again);
                }
                let size = data.len().min(self.buffer.len());
                self.buffer[..size].copy_from_slice(&data[..size]);
                self.pending = Pending::Mmio(0);
                Event::Stop(Stop::Write { addr, size })
            }
            KvmExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Event::Stop(Stop::Off),
            KvmExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Event::Stop(Stop::Reset),
            KvmExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => fault("the guest reported a crash".to_owned()),
            KvmExit::SystemEvent(kind, _) => fault(format!("the guest raised system event {kind}")),
            KvmExit::Intr => {
                self.kick.take();
                Event::Stop(Stop::Kicked)
            }
            KvmExit::Unsupported(KVM_EXIT_ARM_NISV) => Event::NoSyndrome,
            KvmExit::InternalError => Event::Internal,
            KvmExit::FailEntry(reason, cpu) => {
                fault(format!("the hardware refused to enter the guest (reason {reason:#x}, host CPU {cpu})"))
            }
            KvmExit::MemoryFault { flags, gpa, size } => fault(format!(
                "the host has no memory for the guest's {gpa:#x} to {:#x} (flags {flags:#x})",
                gpa.saturating_add(size)
            )),
            other => fault(format!("KVM_RUN came back for a reason that arm64 does not have: {other:?}")),
        })
    }

    /// Does what the exit before left.
    fn resume(&mut self) -> Result<Option<Stop>, HypervisorError> {
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => Ok(None),
            Pending::Mmio(size) => {
                // SAFETY: the exit before was KVM_EXIT_MMIO, and nothing has run since; every value of the bytes is valid.
                let data = unsafe { &mut self.cpu.0.get_kvm_run().__bindgen_anon_1.mmio.data };
                data[..size].copy_from_slice(&self.buffer[..size]);
                Ok(None)
            }
            Pending::Access(mut access) => {
                access.complete(u64::from_le_bytes(self.buffer));
                self.go_on(access)
            }
        }
    }

    /// KVM_EXIT_ARM_NISV: the access is carried out here.
    fn begin_access(&mut self) -> Result<Option<Stop>, HypervisorError> {
        match NisvAccess::begin(&self.cpu, self.machine.memory())? {
            Some(access) => self.go_on(Box::new(access)),
            None => self.abort(),
        }
    }

    fn go_on(&mut self, mut access: Box<NisvAccess>) -> Result<Option<Stop>, HypervisorError> {
        loop {
            match access.step(&mut self.cpu, self.machine.memory())? {
                Step::Done => return Ok(None),
                Step::Abort => return self.abort(),
                Step::Read { addr, size } => {
                    let size = usize::from(size);
                    let mut answer = [0; 8];
                    if self.machine.mmio_read(addr, &mut answer[..size]) {
                        access.complete(u64::from_le_bytes(answer));
                        continue;
                    }
                    self.pending = Pending::Access(access);
                    return Ok(Some(Stop::Read { addr, size }));
                }
                Step::Write { addr, size, data } => {
                    let size = usize::from(size);
                    self.buffer = data.to_le_bytes();
                    if self.machine.mmio_write(addr, &self.buffer[..size]) {
                        access.complete(0);
                        continue;
                    }
                    self.pending = Pending::Access(access);
                    return Ok(Some(Stop::Write { addr, size }));
                }
            }
        }
    }

    /// Ends an access in an external abort.
    fn abort(&mut self) -> Result<Option<Stop>, HypervisorError> {
        if !self.machine.injects_aborts() {
            return Ok(Some(Stop::Fault(
                "the guest accessed a device in a way that no device can answer".to_owned(),
            )));
        }
        let mut events =
            self.cpu.0.get_vcpu_events().map_err(|e| call_failed("KVM_GET_VCPU_EVENTS", e.errno()))?;
        events.exception.ext_dabt_pending = 1;
        self.cpu.0.set_vcpu_events(&events).map_err(|e| call_failed("KVM_SET_VCPU_EVENTS", e.errno()))?;
        Ok(None)
    }

    /// Lets KVM complete the exit before without entering the guest.
    pub(super) fn drain(&mut self) -> Result<(), HypervisorError> {
        if let Pending::Mmio(_) = std::mem::replace(&mut self.pending, Pending::Nothing) {
            self.kick.ask();
            match self.cpu.0.run() {
                Err(e) if e.errno() != libc::EINTR => return Err(call_failed("KVM_RUN", e.errno())),
                // A kick that is forgotten here asked for nothing but a look, which comes after the reset.
                _ => _ = self.kick.take(),
            }
        }
        Ok(())
    }
}

fn fault(reason: String) -> Event {
    Event::Stop(Stop::Fault(reason))
}
