//! A machine that runs: its vCPU threads, how it ends, and the handle that controls it from anywhere.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use hvrun_arch::HypervisorError;
use hvrun_arch::aarch64::translate::Regime;
use hvrun_boot::BootError;
use hvrun_devices::backend::chardev::ChardevError;
use hvrun_devices::virtio::block::IoError;
use hvrun_devices::virtio::net::Net;
use hvrun_devices::{Pl011, Pl061};

use crate::config::CardConfig;
use crate::hotplug::{Hotplug, PlugError};
use crate::lifecycle::Lifecycle;
use crate::machine::Inner;
use crate::ram::RamError;
use crate::{signals, vcpu};

/// How long the last serial output may take to leave after [`MachineControl::stop`]; then what is stuck is given up.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// How often a wait for the last serial output looks whether somebody asked to stop.
const FLUSH_STEP: Duration = Duration::from_millis(100);

/// How a machine ended when nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset itself, and the configuration says `no_reboot`.
    Reset,
    /// [`MachineControl::stop`] was called.
    Stopped,
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// It is paused, and nothing has run since its start or its last reset.
    Prelaunch,
    /// It runs.
    Running,
    /// [`MachineControl::pause`] was called.
    Paused,
    /// It is paused because of an error of a disk, whose request is tried again when it is resumed.
    IoError,
    /// It is paused because the guest powered off, and the configuration says `no_shutdown`.
    PoweredOff,
    /// It has ended.
    Shutdown,
}

/// Why a machine ends or is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The guest powered off.
    GuestShutdown,
    /// The guest reset itself.
    GuestReset,
    /// [`MachineControl::reset`] was called.
    HostReset,
    /// A monitor's `quit`.
    HostQuit,
    /// [`MachineControl::stop`] was called: a signal, a key, an embedding program.
    HostSignal,
    /// An error.
    HostError,
}

impl Cause {
    /// Whether the guest did it.
    pub fn is_guest(self) -> bool {
        matches!(self, Cause::GuestShutdown | Cause::GuestReset)
    }
}

/// What happens to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// It was paused.
    Stopped,
    /// It goes on.
    Resumed,
    /// It was reset.
    Reset(Cause),
    /// It is about to end.
    Shutdown(Cause),
    /// Its power button was pressed.
    PowerButton,
    /// A disk has met an error of the host.
    BlockIoError {
        /// What monitors call the disk, and the image in it.
        disk: BlockNames,
        /// What happened, and what becomes of the request.
        error: IoError,
    },
    /// The guest has let go of a device, which is gone.
    DeviceDeleted {
        /// What it was called, if anything.
        device: Option<String>,
        /// What monitors call it in any case.
        path: String,
    },
}

/// What monitors call a disk and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockNames {
    /// QEMU's `-drive id=`, or what stands for it.
    pub drive: String,
    /// QEMU's name of the node behind it.
    pub node: String,
}

/// What ends a machine that ran, or was about to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The host has no thread left.
    #[error("cannot start the thread of CPU {cpu}")]
    Thread {
        /// Whose thread.
        cpu: u32,
        /// Why not.
        source: io::Error,
    },
    /// A monitor cannot be served.
    #[error(transparent)]
    Monitor(ChardevError),
    /// The hypervisor failed.
    #[error("CPU {cpu} cannot run")]
    Vcpu {
        /// Which CPU.
        cpu: u32,
        /// Why not.
        source: HypervisorError,
    },
    /// The guest did something that cannot be continued.
    #[error("the guest cannot go on: {reason}\n{registers}", registers = registers.trim_end())]
    Fault {
        /// On which CPU.
        cpu: u32,
        /// What it did.
        reason: String,
        /// The CPU's registers.
        registers: String,
    },
    /// A bug in the monitor.
    #[error("the thread of CPU {cpu} panicked, which is a bug in hvrun: {message}")]
    Panicked {
        /// Whose thread.
        cpu: u32,
        /// What the panic said.
        message: String,
    },
    /// RAM could not be emptied for a reset.
    #[error("the guest's reset failed")]
    ResetMemory(#[source] RamError),
    /// The guest could not be loaded again.
    #[error("the guest's reset failed")]
    ResetLoad(#[source] BootError),
}

/// A machine whose vCPUs run. Dropping it stops it and waits for its threads.
#[derive(Debug)]
pub struct RunningMachine {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

impl RunningMachine {
    /// Starts the vCPU threads; returns when all vCPUs exist and run.
    pub(crate) fn start(inner: Arc<Inner>) -> Result<Self, RunError> {
        let mut running = RunningMachine { inner: inner.clone(), threads: Vec::new() };
        signals::blocked(|| {
            for id in 0..inner.cpus {
                match vcpu::spawn(&inner, id) {
                    Ok(thread) => running.threads.push(thread),
                    Err(error) => {
                        inner.lifecycle.end(Err(error), Cause::HostError);
                        break;
                    }
                }
            }
        });
        if !inner.lifecycle.wait_for_start() {
            running.join();
            if let Some(Err(error)) = inner.lifecycle.take_end() {
                return Err(error);
            }
        }
        Ok(running)
    }

    /// A handle for other threads.
    pub fn control(&self) -> MachineControl {
        MachineControl::new(&self.inner)
    }

    /// Waits until the machine has ended, its threads are gone and its serial output has left the process.
    ///
    /// A consumer of the serial port that is stuck is waited for if the guest ended by itself, and for half a second after
    /// [`MachineControl::stop`] or an error.
    pub fn wait(mut self) -> Result<Outcome, RunError> {
        self.inner.lifecycle.wait_for_end();
        self.join();
        let end = self.inner.lifecycle.take_end().unwrap_or(Ok(Outcome::Stopped));
        self.flush(end.is_ok());
        end
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic has been caught in the thread and is the machine's outcome.
            let _ = thread.join();
        }
    }

    /// Lets the last output leave. What is lost is reported by the serial port's back-end, when it is dropped.
    fn flush(&self, patiently: bool) {
        let devices = &self.inner.devices;
        if !patiently {
            devices.flush(STOP_GRACE);
            return;
        }
        while !devices.flush(FLUSH_STEP) && !self.inner.lifecycle.stop_asked_before(STOP_GRACE) {}
    }
}

impl Drop for RunningMachine {
    fn drop(&mut self) {
        self.inner.lifecycle.stop(Cause::HostSignal);
        self.join();
    }
}

/// Controls a machine from any thread. It does not keep the machine alive: when that is gone, the calls do nothing.
#[derive(Clone)]
pub struct MachineControl {
    lifecycle: Arc<Lifecycle>,
    uart: Weak<Pl011>,
    gpio: Weak<Pl061>,
    nets: Vec<Weak<Net>>,
    hotplug: Weak<Hotplug>,
}

impl MachineControl {
    pub(crate) fn new(inner: &Inner) -> Self {
        MachineControl {
            lifecycle: inner.lifecycle.clone(),
            uart: Arc::downgrade(&inner.devices.uart),
            gpio: Arc::downgrade(&inner.devices.gpio),
            nets: inner.devices.virtio.nets.iter().map(Arc::downgrade).collect(),
            hotplug: Arc::downgrade(&inner.hotplug),
        }
    }

    /// Ends the machine as if its plug were pulled; [`RunningMachine::wait`] returns [`Outcome::Stopped`] soon. Returns at
    /// once. Before [`Machine::start`](crate::Machine::start) it makes the start futile.
    pub fn stop(&self) {
        self.lifecycle.stop(Cause::HostSignal);
    }

    /// The same on behalf of a monitor.
    pub(crate) fn quit(&self) {
        self.lifecycle.stop(Cause::HostQuit);
    }

    /// Stops the guest's CPUs until [`MachineControl::resume`]; returns when they have stopped. Time stands still for the guest:
    /// its virtual counter leaves out the pause. What devices have begun (a disk's write, a frame from the network) they finish. Does
    /// nothing if the machine is paused already.
    pub fn pause(&self) {
        self.lifecycle.pause();
    }

    /// Lets a paused machine go on. False: it cannot, as the guest has powered off; reset it first.
    pub fn resume(&self) -> bool {
        self.lifecycle.resume()
    }

    /// Resets the machine as if its reset button were pressed: soon, not at once. Where the configuration says `no_reboot`, it ends. A
    /// paused machine stays paused.
    pub fn reset(&self) {
        self.lifecycle.reset(Cause::HostReset);
    }

    /// What the machine does.
    pub fn run_state(&self) -> RunState {
        self.lifecycle.run_state()
    }

    /// From now on, `observer` hears of what happens to the machine, on whatever thread it happens: it must return soon, and may not
    /// call [`MachineControl::pause`].
    pub fn observe(&self, observer: impl Fn(MachineEvent) + Send + Sync + 'static) {
        self.lifecycle.observe(Box::new(observer));
    }

    /// The registers of CPU `id`, as text; none unless the machine was started and has not ended.
    pub fn registers(&self, id: u32) -> Option<String> {
        self.lifecycle.describe(id).map(|described| described.registers)
    }

    /// How CPU `id` translates virtual addresses; none when there are no registers, or the hypervisor cannot tell.
    pub fn regime(&self, id: u32) -> Option<Regime> {
        self.lifecycle.describe(id)?.regime
    }

    /// The host's numbers for the threads of the CPUs.
    pub fn cpu_threads(&self) -> Vec<u64> {
        self.lifecycle.threads()
    }

    /// Presses the power button: a guest that listens to it shuts down in its own time.
    pub fn power_button(&self) {
        if let Some(gpio) = self.gpio.upgrade() {
            signals::blocked(|| gpio.press_power_button());
            self.lifecycle.tell(MachineEvent::PowerButton);
        }
    }

    /// Sends a break on the serial line: Linux takes the next key as a SysRq command.
    pub fn send_break(&self) {
        if let Some(uart) = self.uart.upgrade() {
            uart.receive_break();
        }
    }

    /// The network cards, in their order, those in slots last. Who keeps one keeps what is behind it, too.
    pub fn nets(&self) -> Vec<Arc<Net>> {
        let plugged = self.hotplug.upgrade().map(|hotplug| hotplug.nets()).unwrap_or_default();
        self.nets.iter().filter_map(Weak::upgrade).chain(plugged).collect()
    }

    /// The network card called `id`: its link, its traffic. Who keeps it keeps what is behind it, too.
    pub fn net(&self, id: &str) -> Option<Arc<Net>> {
        self.nets().into_iter().find(|net| net.id() == id)
    }

    /// Plugs `card` into the slot of the root port called `port`. The guest hears of it at once, and uses it when it likes.
    ///
    /// # Errors
    /// There is no such port, something is in its slot, the card's name is taken, or what is behind it cannot be opened.
    pub fn plug(&self, port: &str, card: &CardConfig) -> Result<(), PlugError> {
        self.hotplug()?.plug(port, card)
    }

    /// Asks the guest to let go of the card called `id`: its attention button is pressed. [`MachineEvent::DeviceDeleted`] says when it has
    /// done so, and what was behind the card is closed. (Linux gives people five seconds to think again.) A reset of the machine does it,
    /// too.
    ///
    /// # Errors
    /// There is no such card, it is not in a slot, or the guest was asked less than five seconds ago.
    pub fn unplug(&self, id: &str) -> Result<(), PlugError> {
        self.hotplug()?.remove_device(id)
    }

    /// The machine's slots.
    pub(crate) fn hotplug(&self) -> Result<Arc<Hotplug>, PlugError> {
        self.hotplug.upgrade().ok_or(PlugError::Ended)
    }

    /// Whether the machine has ended.
    pub fn has_ended(&self) -> bool {
        self.lifecycle.has_ended()
    }
}

impl fmt::Debug for MachineControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MachineControl").field(&self.lifecycle).finish()
    }
}
