//! Which devices a machine has and where they lie: from a description to a filled bus. Not what they do.
//!
//! The guest counts its disks, consoles and network cards in the order in which it finds them, so virtio devices keep the order of
//! the description: by kind, then as they were named.

use std::sync::Arc;
use std::time::Duration;

use hvrun_arch::aarch64::layout::{GPIO_SPI, Layout, RTC_SPI, UART_SPI, VIRTIO_MMIO_SLOTS, VIRTIO_MMIO_SPI};
use hvrun_arch::hypervisor::Spi;
use hvrun_arch::{GuestMemory, Vm};
use hvrun_devices::backend::chardev::CharBackend;
use hvrun_devices::backend::chardev::StdioStreams;
use hvrun_devices::backend::disk::{Disk, DiskConfig, ErrorAction};
use hvrun_devices::backend::ninep::Share;
use hvrun_devices::irq::EdgeIrq;
use hvrun_devices::pci::{MsiPort, PciHost, RootPort};
use hvrun_devices::virtio::VirtioDevice;
use hvrun_devices::virtio::balloon::{Balloon, BalloonConfig, HostPages};
use hvrun_devices::virtio::block::VirtioBlock;
use hvrun_devices::virtio::console::Console;
use hvrun_devices::virtio::fs9p::Fs9p;
use hvrun_devices::virtio::mmio::VirtioMmio;
use hvrun_devices::virtio::net::Net;
use hvrun_devices::virtio::pci::{VirtioPci, VirtioPciError};
use hvrun_devices::virtio::rng::Rng;
use hvrun_devices::virtio::vhost_user::VhostUser;
use hvrun_devices::{Bus, IrqLine, Pl011, Pl031, Pl061};

use crate::config::{MachineConfig, RootPortConfig, Transport};
use crate::lifecycle::Lifecycle;
use crate::machine::BuildError;
use crate::running::{BlockNames, MachineEvent, RunState};

/// The devices of one machine.
pub(crate) struct Devices {
    pub(crate) bus: Arc<Bus>,
    pub(crate) uart: Arc<Pl011>,
    pub(crate) gpio: Arc<Pl061>,
    pub(crate) pci: Arc<PciHost>,
    /// Where the root ports are on the bus, in their order.
    pub(crate) ports: Vec<u8>,
    pub(crate) virtio: Virtio,
}

/// The virtio devices of one machine, opened.
#[derive(Default)]
pub(crate) struct Virtio {
    /// All of them, in the order in which the guest shall find them.
    pub(crate) all: Vec<Arc<dyn VirtioDevice>>,
    /// The disks, in their order.
    pub(crate) drives: Vec<Arc<Drive>>,
    /// The one with the consoles and ports.
    pub(crate) console: Option<Arc<Console>>,
    /// The network cards, in their order.
    pub(crate) nets: Vec<Arc<Net>>,
    pub(crate) balloon: Option<Arc<Balloon>>,
}

/// A disk: the image, the device in front of it, and what monitors call them.
#[derive(Debug)]
pub(crate) struct Drive {
    pub(crate) names: BlockNames,
    pub(crate) disk: Arc<Disk>,
    pub(crate) device: Arc<VirtioBlock>,
}

impl Drive {
    /// The disk `config`, which has `index` others before it, opened.
    pub(crate) fn open(config: &DiskConfig, index: usize) -> Result<Arc<Drive>, BuildError> {
        let failed = |source| BuildError::DiskThreads { path: config.path.clone(), source };
        // QEMU's names for those without.
        let drive = config.id.clone().unwrap_or_else(|| format!("virtio{index}"));
        let names = BlockNames { drive, node: Drive::node(index) };
        Drive::of(Disk::open(config)?, names).map_err(failed)
    }

    /// An image with a device in front of it.
    pub(crate) fn of(disk: Arc<Disk>, names: BlockNames) -> std::io::Result<Arc<Drive>> {
        let device = Arc::new(VirtioBlock::for_disk(disk.clone())?);
        Ok(Arc::new(Drive { names, disk, device }))
    }

    /// What stands for the name of the disk's node that has so many others before it.
    pub(crate) fn node(index: usize) -> String {
        format!("#block{index:03}")
    }

    /// Has the machine hear of the disk's errors, and stop where that is the disk's policy.
    pub(crate) fn stop_on_errors(&self, lifecycle: &Arc<Lifecycle>) {
        let (lifecycle, names) = (lifecycle.clone(), self.names.clone());
        self.device.on_error(move |error| {
            let stops = error.action == ErrorAction::Stop;
            lifecycle.tell(MachineEvent::BlockIoError { disk: names.clone(), error });
            if stops {
                lifecycle.halt(RunState::IoError);
            }
        });
    }
}

/// What devices are put into: the machine around them.
pub(crate) struct Chassis<'a> {
    pub(crate) vm: &'a dyn Vm,
    pub(crate) layout: &'a Layout,
    pub(crate) memory: &'a GuestMemory,
    pub(crate) transport: Transport,
    pub(crate) msi: &'a Arc<MsiPort>,
    pub(crate) ports: &'a [RootPortConfig],
}

impl Devices {
    /// Puts the platform's devices and `virtio` into the machine.
    pub(crate) fn new(
        chassis: &Chassis<'_>,
        serial: Arc<dyn CharBackend>,
        virtio: Virtio,
    ) -> Result<Self, BuildError> {
        let layout = chassis.layout;
        let line = |spi| IrqLine::new(chassis.vm.irq_chip(), spi);
        let bus = Arc::new(Bus::new());
        let uart = Pl011::new(line(UART_SPI), serial);
        let gpio = Pl061::new(line(GPIO_SPI));
        bus.insert(layout.uart, uart.clone())?;
        bus.insert(layout.rtc, Arc::new(Pl031::new(line(RTC_SPI))))?;
        bus.insert(layout.gpio, gpio.clone())?;
        // The bridge is in the device tree whatever carries the devices.
        let pci = PciHost::new(&bus, &chassis.vm.irq_chip(), layout)?;
        // Those that must be somewhere come first, all others behind the devices, whose places do not depend on them then.
        let mut ports = vec![None; chassis.ports.len()];
        plug_ports(chassis, &pci, &mut ports, |port| port.addr.is_some())?;
        match chassis.transport {
            Transport::Mmio => insert_mmio(chassis, &bus, &virtio.all)?,
            Transport::Pci => plug(chassis, &pci, &virtio.all)?,
        }
        plug_ports(chassis, &pci, &mut ports, |port| port.addr.is_none())?;
        let ports = ports.into_iter().flatten().collect();
        Ok(Devices { bus, uart, gpio, pci, ports, virtio })
    }

    /// Waits until the last output of serial port and consoles has left, at most for `timeout` each. Says whether it has.
    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let console = self.virtio.console.as_ref();
        let uart = self.uart.flush(Some(timeout));
        console.is_none_or(|console| console.flush(Some(timeout))) && uart
    }
}

/// The virtio devices that `config` describes, opened, in the order in which the guest shall find them.
pub(crate) fn open_virtio(
    config: &MachineConfig,
    stdio: &mut Option<StdioStreams>,
) -> Result<Virtio, BuildError> {
    let mut virtio = Virtio::default();
    let devices = &mut virtio.all;
    for (index, disk) in config.disks.iter().enumerate() {
        let drive = Drive::open(disk, index)?;
        devices.push(drive.device.clone());
        virtio.drives.push(drive);
    }
    for share in &config.shares {
        devices.push(Arc::new(Fs9p::new(Share::open(share)?)));
    }
    for device in &config.vhost_user {
        devices.push(Arc::new(VhostUser::open(device)?));
    }
    for (index, net) in config.nets.iter().enumerate() {
        let net = Arc::new(Net::open(net, index)?);
        devices.push(net.clone());
        virtio.nets.push(net);
    }
    if !config.consoles.is_empty() || !config.ports.is_empty() {
        let console = Console::open(&config.consoles, &config.ports, stdio)?;
        devices.push(console.clone());
        virtio.console = Some(console);
    }
    if let Some(rng) = &config.rng {
        devices.push(Arc::new(Rng::new(*rng)));
    }
    Ok(virtio)
}

/// The balloon of a machine that is mapped already.
pub(crate) fn open_balloon(
    config: BalloonConfig,
    vm: &dyn Vm,
    memory: &GuestMemory,
) -> Result<Arc<Balloon>, BuildError> {
    let discard = vm.ram_discard().unwrap_or_else(|| {
        // SAFETY: RAM is a private anonymous mapping, or a shared one of the file that its region has (`ram::map` makes no other), which
        // everybody reaches through volatile accesses, and a backend that must hear of a change behind its back gives a discard of its own.
        Arc::new(unsafe { HostPages::new(memory.clone()) })
    });
    let balloon = Balloon::new(config, memory, discard).map_err(BuildError::Balloon)?;
    Ok(Arc::new(balloon))
}

/// One PCI slot a device, from the first behind the host bridge on.
fn plug(chassis: &Chassis<'_>, host: &PciHost, virtio: &[Arc<dyn VirtioDevice>]) -> Result<(), BuildError> {
    let fds = chassis.vm.event_fds();
    for device in virtio {
        let msi = chassis.msi.clone();
        let function = VirtioPci::new(device.clone(), chassis.memory.clone(), msi, fds.clone())?;
        host.plug(Arc::new(function))?;
    }
    Ok(())
}

/// Puts those root ports on the bus that `which` chooses, and notes their places.
fn plug_ports(
    chassis: &Chassis<'_>,
    host: &PciHost,
    places: &mut [Option<u8>],
    which: impl Fn(&RootPortConfig) -> bool,
) -> Result<(), BuildError> {
    for (config, place) in chassis.ports.iter().zip(places).filter(|(config, _)| which(config)) {
        let port = RootPort::new(&config.id, config.slot, config.port, chassis.msi.clone());
        let port = port.map_err(VirtioPciError::Layout)?;
        *place = Some(host.plug_port(config.addr, Arc::new(port))?);
    }
    Ok(())
}

/// One virtio-mmio slot a device, from the first on.
fn insert_mmio(chassis: &Chassis<'_>, bus: &Bus, virtio: &[Arc<dyn VirtioDevice>]) -> Result<(), BuildError> {
    let fds = chassis.vm.event_fds();
    for (slot, device) in (0..VIRTIO_MMIO_SLOTS).zip(virtio) {
        let (spi, window) = (Spi(VIRTIO_MMIO_SPI.0 + slot), chassis.layout.virtio_mmio_slot(slot));
        let irq = EdgeIrq::new(chassis.vm.irq_chip(), fds.clone(), spi);
        let slot_device = VirtioMmio::new(device.clone(), chassis.memory.clone(), irq);
        bus.insert(window, Arc::new(slot_device.with_event_fds(fds.clone(), window.base)))?;
    }
    Ok(())
}
