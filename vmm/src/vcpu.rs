//! One thread a vCPU, and the one loop that answers the exits of every backend. What an exit means to the machine as a whole
//! (a reset, the end) is decided in `lifecycle`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use hvrun_arch::{HypervisorError, Vcpu, VcpuExit};
use hvrun_devices::Bus;

use crate::lifecycle::{Described, Pass};
use crate::machine::Inner;
use crate::running::{Cause, RunError};

/// Starts the thread of vCPU `id`. The thread makes the vCPU, runs it and drops it, and ends with the machine; should it end
/// in any other way, so does the machine.
pub(crate) fn spawn(machine: &Arc<Inner>, id: u32) -> Result<JoinHandle<()>, RunError> {
    let machine = machine.clone();
    let body = move || {
        let end = match catch_unwind(AssertUnwindSafe(|| vcpu_thread(&machine, id))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(payload) => RunError::Panicked { cpu: id, message: panic_message(payload.as_ref()) },
        };
        machine.lifecycle.end(Err(end), Cause::HostError);
    };
    thread::Builder::new()
        .name(format!("vcpu{id}"))
        .spawn(body)
        .map_err(|source| RunError::Thread { cpu: id, source })
}

/// The life of a vCPU; returns when the machine has ended.
fn vcpu_thread(machine: &Inner, id: u32) -> Result<(), RunError> {
    let lifecycle = &machine.lifecycle;
    let failed = |source| RunError::Vcpu { cpu: id, source };
    let mut vcpu = machine.vm.create_vcpu(id, lifecycle.boot()).map_err(failed)?;
    lifecycle.register(id, vcpu.kicker());
    loop {
        match lifecycle.gate(id, || machine.reset()) {
            Pass::Go => {}
            Pass::Clock(stopped) => {
                vcpu.set_stopped_time(stopped).map_err(failed)?;
                continue;
            }
            Pass::Describe => {
                let described = Described { registers: vcpu.describe(), regime: vcpu.regime() };
                lifecycle.described(id, described);
                continue;
            }
            Pass::Restart(boot) => {
                vcpu.reset(boot).map_err(failed)?;
                // Back to the gate: another request may have come meanwhile.
                continue;
            }
            Pass::End => return Ok(()),
        }
        match run(vcpu.as_mut(), &machine.devices.bus).map_err(failed)? {
            Event::PowerOff => lifecycle.power_off(),
            Event::Reset => lifecycle.reset(Cause::GuestReset),
            Event::Look => {}
            Event::Fault(reason) => {
                return Err(RunError::Fault { cpu: id, reason, registers: vcpu.describe() });
            }
        }
    }
}

/// What a vCPU's run loop cannot answer by itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest wants the machine off.
    PowerOff,
    /// The guest wants the machine reset.
    Reset,
    /// Somebody kicked: there may be a request.
    Look,
    /// The guest cannot go on, for this reason.
    Fault(String),
}

/// Runs guest code and lets the devices answer, until the machine as a whole is concerned.
pub(crate) fn run(vcpu: &mut dyn Vcpu, bus: &Bus) -> Result<Event, HypervisorError> {
    loop {
        match vcpu.run()? {
            VcpuExit::MmioRead { addr, data } => bus.read(addr, data),
            VcpuExit::MmioWrite { addr, data } => bus.write(addr, data),
            VcpuExit::SystemOff => return Ok(Event::PowerOff),
            VcpuExit::SystemReset => return Ok(Event::Reset),
            VcpuExit::Kicked => return Ok(Event::Look),
            VcpuExit::Fault(reason) => return Ok(Event::Fault(reason)),
        }
    }
}

/// What a panic said.
fn panic_message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "it did not say why".to_owned(),
    }
}
