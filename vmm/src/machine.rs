//! From a description to a machine that is ready to run: files opened, accelerator chosen, RAM mapped, devices in place, kernel
//! loaded. Everything that can be wrong with what was asked for is found out here, before the first instruction.
//!
//! The order matters: what costs nothing comes first, and the serial port (which may create a file or a socket) last.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

use hvrun_arch::aarch64::layout::{Layout, VIRTIO_MMIO_SLOTS};
use hvrun_arch::{BootState, GuestMemory, Hypervisor, HypervisorError, Vm, VmConfig};
use hvrun_boot::{BootConfig, BootError, Initrd, Kernel, Loaded};
use hvrun_devices::BusError;
use hvrun_devices::backend::chardev::{self, CharBackend, ChardevError, StdioStreams};
use hvrun_devices::backend::disk::DiskError;
use hvrun_devices::backend::ninep::ShareError;
use hvrun_devices::pci::{MsiPort, PciError};
use hvrun_devices::virtio::VirtioDevice;
use hvrun_devices::virtio::console::ConsoleError;
use hvrun_devices::virtio::net::NetError;
use hvrun_devices::virtio::pci::VirtioPciError;
use hvrun_devices::virtio::vhost_user::VhostUserError;

use crate::config::{AddressSpace, ConfigError, MachineConfig, Transport};
use crate::devices::{self, Chassis, Devices};
use crate::hotplug::{self, Hotplug, PlugError, PlugParser, Surroundings};
use crate::lifecycle::Lifecycle;
use crate::monitor::{Key, Monitors, Mux, Parts, Remote, Sessions};
use crate::ram::{self, RamError};
use crate::running::{MachineControl, MachineEvent, RunError, RunningMachine};
use crate::signals;

/// Why no machine could be made of a description.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The description is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Kernel, initrd or command line cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// No accelerator, or it cannot make this machine.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The host has no memory for it.
    #[error(transparent)]
    Memory(#[from] RamError),
    /// The serial port cannot be connected.
    #[error(transparent)]
    Serial(#[from] ChardevError),
    /// A monitor cannot be connected.
    #[error("cannot connect a monitor")]
    Monitor(#[source] ChardevError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host has no descriptor or thread left for a disk.
    #[error("cannot start disk {}", path.display())]
    DiskThreads {
        /// Which disk.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The host has no descriptor left for the balloon.
    #[error("cannot make the balloon")]
    Balloon(#[source] std::io::Error),
    /// A share cannot be used.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A device of another process cannot be connected to it.
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    /// A network card cannot be connected.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Consoles or ports cannot be connected.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A device that PCI cannot carry.
    #[error(transparent)]
    VirtioPci(#[from] VirtioPciError),
    /// The PCI bus has no place left.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// What is in a slot, or waits for one, cannot be used.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// Two devices want the same addresses.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Makes a [`Machine`], with things in it that a [`MachineConfig`] cannot hold.
pub struct MachineBuilder {
    config: MachineConfig,
    serial: Option<Arc<dyn CharBackend>>,
    stdio: Option<StdioStreams>,
    hypervisor: Option<Arc<dyn Hypervisor>>,
    virtio: Vec<Arc<dyn VirtioDevice>>,
    plug_parser: Option<Arc<dyn PlugParser>>,
}

impl MachineBuilder {
    /// A machine by `config` alone.
    pub fn new(config: MachineConfig) -> Self {
        MachineBuilder {
            config,
            serial: None,
            stdio: None,
            hypervisor: None,
            virtio: Vec::new(),
            plug_parser: None,
        }
    }

    /// Connects the serial port to `backend`, whatever [`MachineConfig::serial`] says.
    #[must_use]
    pub fn serial(mut self, backend: Arc<dyn CharBackend>) -> Self {
        self.serial = Some(backend);
        self
    }

    /// The streams for a serial port on `stdio`. The library never takes the process' own by itself.
    #[must_use]
    pub fn stdio(mut self, streams: StdioStreams) -> Self {
        self.stdio = Some(streams);
        self
    }

    /// Runs the machine on `hypervisor`, whatever [`MachineConfig::accel`] says.
    #[must_use]
    pub fn hypervisor(mut self, hypervisor: Arc<dyn Hypervisor>) -> Self {
        self.hypervisor = Some(hypervisor);
        self
    }

    /// Adds a virtio device of one's own, behind those of the configuration.
    #[must_use]
    pub fn virtio(mut self, device: Arc<dyn VirtioDevice>) -> Self {
        self.virtio.push(device);
        self
    }

    /// Who understands what monitors say of devices that shall be plugged in. Without it, they cannot say anything of that.
    #[must_use]
    pub fn plug_parser(mut self, parser: Arc<dyn PlugParser>) -> Self {
        self.plug_parser = Some(parser);
        self
    }

    /// Makes the machine. Threads that come into being block all asynchronous signals.
    pub fn build(self) -> Result<Machine, BuildError> {
        signals::blocked(|| self.build_inner())
    }

    fn build_inner(self) -> Result<Machine, BuildError> {
        let MachineBuilder { config, serial, mut stdio, hypervisor, virtio: others, plug_parser } = self;
        config.validate()?;
        let mut boot_config = boot_config(&config)?;
        // Before anything connects to a socket: whoever accepts that may connect to these at once.
        let mut monitors = Monitors::listen(&config).map_err(BuildError::Monitor)?;
        let mut virtio = devices::open_virtio(&config, &mut stdio)?;
        virtio.all.extend(others);
        let cards = hotplug::open_cards(&config)?;
        if config.transport == Transport::Mmio {
            boot_config.virtio_mmio_slots =
                mmio_slots(virtio.all.len() + usize::from(config.balloon.is_some()))?;
        }
        // RAM is where it is with every accelerator.
        boot_config.plan(&Layout::new(config.cpus, config.memory.bytes()))?;
        let hypervisor = match hypervisor {
            Some(hypervisor) => hypervisor,
            None => hvrun_arch::open(&config.accel)?,
        };
        let accel = hypervisor.accel();
        AddressSpace::Accel { accel, bits: hypervisor.ipa_bits() }.check(config.memory)?;
        let layout = hypervisor.layout(config.cpus, config.memory.bytes(), config.gic)?;
        let memory = ram::map(layout.ram, &config.memory_backing)?;
        let vm = hypervisor.create_vm(VmConfig {
            cpus: config.cpus,
            memory: memory.clone(),
            layout: layout.clone(),
            gic: config.gic,
        })?;
        let boot = boot_state(hvrun_boot::load(&memory, &layout, &boot_config)?);
        monitors.connect(&mut stdio).map_err(BuildError::Monitor)?;
        let serial = match serial {
            Some(serial) => serial,
            None => chardev::open(&config.serial, stdio)?,
        };
        let (serial, mux) = share_serial(serial, &mut monitors);
        if let Some(balloon) = config.balloon {
            let balloon = devices::open_balloon(balloon, vm.as_ref(), &memory)?;
            virtio.all.push(balloon.clone());
            virtio.balloon = Some(balloon);
        }
        let msi = Arc::new(MsiPort::new(vm.irq_chip(), vm.event_fds(), layout.gic_v2m));
        let chassis = Chassis {
            vm: vm.as_ref(),
            layout: &layout,
            memory: &memory,
            transport: config.transport,
            msi: &msi,
            ports: &config.root_ports,
        };
        let devices = Devices::new(&chassis, serial, virtio)?;
        let lifecycle = Arc::new(Lifecycle::new(config.cpus, config.lifecycle, boot));
        let around = Surroundings::of(&chassis, &devices, lifecycle.clone());
        let hotplug = Hotplug::new(around, &config, &devices.ports, cards)?;
        log::info!("{} CPUs, {} of memory, accelerator {accel}", config.cpus, config.memory);
        devices.virtio.drives.iter().for_each(|drive| drive.stop_on_errors(&lifecycle));
        let inner = Inner {
            cpus: config.cpus,
            lifecycle,
            vm,
            devices,
            hotplug,
            memory,
            layout,
            boot: boot_config,
            sessions: OnceLock::new(),
        };
        let control = MachineControl::new(&inner);
        if let Some(mux) = mux {
            obey_keys(&mux, control.clone());
        }
        let remote = Remote::new(Parts {
            control: control.clone(),
            config: Arc::new(config),
            accel,
            bus: Arc::downgrade(&inner.devices.bus),
            pci: Arc::downgrade(&inner.devices.pci),
            drives: inner.devices.virtio.drives.iter().map(Arc::downgrade).collect(),
            balloon: inner.devices.virtio.balloon.as_ref().map(Arc::downgrade),
            memory: inner.memory.clone(),
            plug_parser,
        });
        Ok(Machine { inner: Arc::new(inner), monitors, remote })
    }
}

/// The serial port's end of `serial`, where a monitor may be behind it.
fn share_serial(
    serial: Arc<dyn CharBackend>,
    monitors: &mut Monitors,
) -> (Arc<dyn CharBackend>, Option<Arc<Mux>>) {
    if !monitors.is_on_serial() {
        return (serial, None);
    }
    let mux = Mux::new(serial);
    monitors.put_on_serial(mux.monitor());
    (mux.serial(), Some(mux))
}

/// Does what is typed behind Ctrl-A.
fn obey_keys(mux: &Mux, control: MachineControl) {
    mux.on_key(move |key| match key {
        Key::Quit => control.stop(),
        Key::Break => control.send_break(),
    });
}

impl fmt::Debug for MachineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineBuilder")
            .field("config", &self.config)
            .field("serial", &self.serial)
            .field("stdio", &self.stdio)
            .field("hypervisor", &self.hypervisor)
            .field("virtio", &self.virtio)
            .field("plug_parser", &self.plug_parser)
            .finish()
    }
}

/// Opens the files that `config` names.
fn boot_config(config: &MachineConfig) -> Result<BootConfig, BootError> {
    let open = |path: &Path| Initrd::open(path);
    Ok(BootConfig {
        kernel: Kernel::open(&config.kernel)?,
        initrd: config.initrd.as_deref().map(open).transpose()?,
        cmdline: config.cmdline.clone(),
        cpus: config.cpus,
        seeds: None,
        virtio_mmio_slots: 0,
    })
}

/// How many slots `devices` devices take.
fn mmio_slots(devices: usize) -> Result<u32, ConfigError> {
    let slots = u32::try_from(devices).ok().filter(|slots| *slots <= VIRTIO_MMIO_SLOTS);
    slots.ok_or(ConfigError::TooManyDevices { devices, transport: Transport::Mmio, most: VIRTIO_MMIO_SLOTS })
}

/// The boot CPU's first state, by the arm64 boot protocol.
fn boot_state(loaded: Loaded) -> BootState {
    BootState { pc: loaded.entry, x0: loaded.fdt_addr }
}

/// A machine that is loaded and has not run yet.
#[derive(Debug)]
pub struct Machine {
    pub(crate) inner: Arc<Inner>,
    /// They come to life when the machine does: who hears from one can rely on what was attached to the machine before its start.
    monitors: Monitors,
    remote: Remote,
}

impl Machine {
    /// Makes the machine that `config` describes. For a serial port of one's own, or on stdio, see [`MachineBuilder`].
    pub fn build(config: MachineConfig) -> Result<Machine, BuildError> {
        MachineBuilder::new(config).build()
    }

    /// Starts it: returns when every vCPU runs on a thread of its own.
    pub fn start(self) -> Result<RunningMachine, RunError> {
        let control = self.control();
        let begin = || self.monitors.start(self.remote, &control).map_err(RunError::Monitor);
        // It is empty: this is the only start.
        let _ = self.inner.sessions.set(signals::blocked(begin)?);
        self.inner.retry_when_resumed(&control);
        RunningMachine::start(self.inner)
    }

    /// A handle for other threads, also for the time when it runs.
    pub fn control(&self) -> MachineControl {
        MachineControl::new(&self.inner)
    }
}

/// What the threads of one machine share.
pub(crate) struct Inner {
    pub(crate) cpus: u32,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) devices: Devices,
    pub(crate) hotplug: Arc<Hotplug>,
    memory: GuestMemory,
    layout: Layout,
    boot: BootConfig,
    /// The monitors at work, from the start on.
    sessions: OnceLock<Sessions>,
}

impl Inner {
    /// Has disks try again what stopped the machine when it goes on: behind the monitors, whose peers hear of that first.
    fn retry_when_resumed(&self, control: &MachineControl) {
        let drives: Vec<_> = self.devices.virtio.drives.iter().map(Arc::downgrade).collect();
        let hotplug = Arc::downgrade(&self.hotplug);
        control.observe(move |event| {
            if event == MachineEvent::Resumed {
                let plugged = hotplug.upgrade().map(|hotplug| hotplug.drives()).unwrap_or_default();
                let fixed = drives.iter().filter_map(Weak::upgrade);
                fixed.chain(plugged).for_each(|drive| drive.device.retry());
            }
        });
    }

    /// Puts everything but the vCPUs back into the first state: devices, then interrupt controller and power states, then RAM
    /// with the kernel loaded afresh and new seeds in the device tree. No vCPU may run. The serial port's connection stays.
    pub(crate) fn reset(&self) -> Result<BootState, RunError> {
        log::info!("the machine is reset");
        self.devices.bus.reset();
        self.vm.reset();
        ram::discard(&self.memory).map_err(RunError::ResetMemory)?;
        let loaded = hvrun_boot::load(&self.memory, &self.layout, &self.boot);
        loaded.map(boot_state).map_err(RunError::ResetLoad)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("cpus", &self.cpus)
            .field("lifecycle", &self.lifecycle)
            .field("bus", &self.devices.bus)
            .field("monitors", &self.sessions)
            .finish_non_exhaustive()
    }
}
