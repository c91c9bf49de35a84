//! For tests: a machine that only writes down what is done to it, and a monitor's peer on a socket pair.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hvrun_arch::Accel;
use hvrun_arch::aarch64::layout::{RAM_BASE, Window};
use hvrun_arch::aarch64::translate::Regime;
use hvrun_devices::backend::chardev::{CharBackend, Stream};
use hvrun_devices::backend::disk::{DiskConfig, ErrorPolicy};
use hvrun_devices::backend::net::user::{HostForward, Protocol};

use hvrun_devices::pci::{Bar, BarKind};
use hvrun_devices::virtio::balloon::BalloonConfig;
use hvrun_devices::virtio::block::{BlockStats, IoStatus};

use super::session::{Protocol as MonitorProtocol, Session, Sessions};
use super::target::{DiskFacts, ForwardError, PciDevice, Target};
use crate::config::MachineConfig;
use crate::hotplug::{PlugError, PlugRequest, Plugged};
use crate::running::{BlockNames, RunState};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(super) struct FakeMachine {
    pub(super) config: MachineConfig,
    /// What was done, in order, as text.
    pub(super) log: Mutex<Vec<String>>,
    pub(super) running: Mutex<RunState>,
    /// RAM from [`RAM_BASE`] on: a page of counting bytes, the two tables that map it at 0x1000 and again at 0x3000, and nothing else.
    pub(super) memory: Vec<u8>,
}

impl FakeMachine {
    /// A machine with a network card `net0` in front of the network `user.0`, and a disk.
    pub(super) fn new() -> Arc<FakeMachine> {
        let mut config = MachineConfig::new("Image");
        config.nets = vec!["user,id=net0".parse().unwrap()];
        config.nets[0].common.netdev = Some("user.0".to_owned());
        config.disks = vec![
            DiskConfig {
                id: Some("drive1".to_owned()),
                device: Some("root".to_owned()),
                werror: ErrorPolicy::Enospc,
                ..DiskConfig::new("/images/root.qcow2")
            },
            DiskConfig { readonly: true, ..DiskConfig::new("/images/cd.iso") },
        ];
        config.name = Some("horus".to_owned());
        config.balloon = Some(BalloonConfig::default());
        let mut memory: Vec<u8> = (0..=255).cycle().take(4096).collect();
        memory.resize(0x3000, 0);
        // Valid table; valid page with the access flag (Arm ARM D8.3).
        let (table, page) = ((RAM_BASE + 0x2000) | 3, RAM_BASE | 0x403);
        for (at, descriptor) in [(0x1000, table), (0x2008, page), (0x2018, page)] {
            memory[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
        }
        let running = Mutex::new(RunState::Running);
        Arc::new(FakeMachine { config, log: Mutex::default(), running, memory })
    }

    fn note(&self, what: impl Into<String>) {
        self.log.lock().unwrap().push(what.into());
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

impl Target for FakeMachine {
    fn config(&self) -> &MachineConfig {
        &self.config
    }

    fn accel(&self) -> Accel {
        Accel::Soft
    }

    fn run_state(&self) -> RunState {
        *self.running.lock().unwrap()
    }

    fn pause(&self) {
        *self.running.lock().unwrap() = RunState::Paused;
        self.note("pause");
    }

    fn resume(&self) -> bool {
        if self.run_state() == RunState::PoweredOff {
            return false;
        }
        *self.running.lock().unwrap() = RunState::Running;
        self.note("resume");
        true
    }

    fn reset(&self) {
        self.note("reset");
    }

    fn power_button(&self) {
        self.note("power button");
    }

    fn quit(&self) {
        self.note("quit");
    }

    fn cpu_threads(&self) -> Vec<u64> {
        vec![1234]
    }

    fn registers(&self, cpu: u32) -> Option<String> {
        (cpu == 0).then(|| "PC=1000\n".to_owned())
    }

    /// Addresses of 30 bits in pages of 4 KiB; see [`FakeMachine::memory`].
    fn regime(&self, cpu: u32) -> Option<Regime> {
        (cpu == 0).then_some(Regime { sctlr: 1, tcr: 34, ttbr: [RAM_BASE + 0x1000, 0] })
    }

    fn set_link(&self, name: &str, up: bool) -> bool {
        self.note(format!("link {name} {up}"));
        name == "net0"
    }

    fn links(&self) -> Vec<(String, bool)> {
        vec![("52:54:00:12:34:56".to_owned(), true)]
    }

    fn add_forward(&self, netdev: Option<&str>, forward: &HostForward) -> Result<(), ForwardError> {
        self.note(format!("forward {netdev:?} {forward}"));
        match (netdev, forward.host.port()) {
            (Some("none"), _) => Err(ForwardError::NoNetwork),
            (_, 80) => Err(ForwardError::Failed("it is taken".to_owned())),
            _ => Ok(()),
        }
    }

    fn remove_forward(
        &self,
        netdev: Option<&str>,
        protocol: Protocol,
        host: SocketAddr,
    ) -> Result<(), ForwardError> {
        self.note(format!("no forward {netdev:?} {protocol} {host}"));
        if host.port() == 80 { Err(ForwardError::Failed("no".to_owned())) } else { Ok(()) }
    }

    fn forwards(&self) -> Vec<(String, HostForward)> {
        vec![("net0".to_owned(), "tcp::2222-:22".parse().unwrap())]
    }

    fn disks(&self) -> Vec<DiskFacts> {
        let facts = |(index, config): (usize, &DiskConfig)| DiskFacts {
            names: BlockNames {
                drive: config.id.clone().unwrap_or_else(|| format!("virtio{index}")),
                node: format!("#block{index:03}"),
            },
            device: format!("disk {index}"),
            config: config.clone(),
            format: "qcow2",
            size: 1 << 30,
            status: IoStatus::Ok,
            stats: BlockStats::default(),
        };
        self.config.disks.iter().enumerate().map(facts).collect()
    }

    fn send_break(&self) {
        self.note("break");
    }

    fn balloon(&self) -> Option<u64> {
        self.config.balloon.map(|_| 512 << 20)
    }

    fn set_balloon(&self, bytes: u64) {
        self.note(format!("balloon {bytes}"));
    }

    fn resize(&self, name: &str, bytes: u64) -> Result<(), String> {
        self.note(format!("resize {name} {bytes}"));
        if name == "drive1" { Ok(()) } else { Err(format!("Cannot find device='{name}' nor node-name=''")) }
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        let at = address.checked_sub(RAM_BASE).and_then(|offset| usize::try_from(offset).ok());
        let found = at.and_then(|at| self.memory.get(at..at.checked_add(data.len())?));
        found.inspect(|found| data.copy_from_slice(found)).is_some()
    }

    fn memory_map(&self) -> Vec<(String, Window)> {
        vec![("PL011".to_owned(), Window { base: 0x900_0000, size: 0x1000 })]
    }

    fn pci(&self) -> Vec<PciDevice> {
        let mut registers = vec![0; 256];
        registers[..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
        registers[0x0b] = 2;
        let bar = Bar { index: 4, size: 0x4000, kind: BarKind::Memory64, prefetchable: true };
        vec![PciDevice {
            bus: 0,
            slot: 1,
            behind: None,
            name: "net0".to_owned(),
            registers,
            bars: vec![(bar, Some(0x80_0000_0000))],
        }]
    }

    fn plug(&self, request: PlugRequest) -> Result<(), PlugError> {
        self.note(format!("{request:?}"));
        match request {
            PlugRequest::RemoveDevice(id) => Err(PlugError::NoDevice(id)),
            _ => Ok(()),
        }
    }

    fn plugged(&self) -> Plugged {
        Plugged::default()
    }
}

/// Who sits at a monitor.
#[derive(Debug)]
pub(super) struct Person {
    stream: UnixStream,
    sessions: Sessions,
}

impl Person {
    /// Connected to a monitor that speaks `protocol`.
    pub(super) fn at(protocol: impl MonitorProtocol) -> Person {
        let (stream, other) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        let chardev: Arc<dyn CharBackend> = Arc::new(Stream::socket("test", other).unwrap());
        let mut sessions = Sessions::default();
        sessions.add(Session::start("monitor", chardev, protocol).unwrap());
        Person { stream, sessions }
    }

    /// The monitor's session.
    pub(super) fn session(&self) -> &Arc<Session> {
        self.sessions.all().next().unwrap()
    }

    pub(super) fn say(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// Everything until `end`, with it.
    pub(super) fn hear(&mut self, end: &str) -> String {
        let mut heard = Vec::new();
        while !heard.ends_with(end.as_bytes()) {
            let mut byte = [0];
            let read = self.stream.read(&mut byte);
            let so_far = || String::from_utf8_lossy(&heard).into_owned();
            assert_eq!(read.unwrap_or_else(|error| panic!("{error}: {:?}", so_far())), 1, "{:?}", so_far());
            heard.push(byte[0]);
        }
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// Hangs up, waits for the session to end, and returns what came until then.
    pub(super) fn leave(self) -> String {
        let Person { mut stream, sessions } = self;
        drop(sessions);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        String::from_utf8(rest).unwrap()
    }
}
