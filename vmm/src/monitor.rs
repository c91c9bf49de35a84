//! Monitors: people's ([`hmp`]) and programs' ([`qmp`]) control of a running machine, as QEMU has them.
//!
//! A monitor is a character device with a [`session`] in front of it, whose thread reads commands and answers them one by one; the two
//! protocols know the machine through [`target::Target`] alone. Nothing here runs on a vCPU's or a device's thread but the sending of
//! events, which never blocks.
//!
//! Order: listening sockets are there before anything connects anywhere ([`Monitors::listen`]), because who accepts our connections may
//! connect to them at once. Sockets of others are connected to when the machine's parts are open ([`Monitors::connect`]), and sessions
//! begin when the machine starts ([`Monitors::start`]).

mod hmp;
mod hotplug;
mod mux;
mod names;
mod outbox;
mod qmp;
mod session;
mod target;
#[cfg(test)]
mod testing;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hvrun_devices::backend::chardev::{self, CharBackend, ChardevConfig, ChardevError, StdioStreams};

use crate::config::{MachineConfig, MonitorKind, MonitorPlace};
use crate::running::{MachineControl, MachineEvent};

pub(crate) use mux::{Key, Mux};
use session::Session;
pub(crate) use session::Sessions;
pub(crate) use target::{Parts, Remote};

/// The QEMU whose command line, monitors and `qemu-img` are understood: its major, minor and micro version.
pub const QEMU_VERSION: [u32; 3] = [9, 2, 0];

/// One monitor until its session begins.
#[derive(Debug)]
struct Place {
    kind: MonitorKind,
    pretty: bool,
    to: MonitorPlace,
    chardev: Option<Arc<dyn CharBackend>>,
}

/// The monitors of a machine to be.
#[derive(Debug)]
pub(crate) struct Monitors(Vec<Place>);

impl Monitors {
    /// Opens those of `config` on which somebody else connects to us. One that waits for its client does so.
    pub(crate) fn listen(config: &MachineConfig) -> Result<Self, ChardevError> {
        let place = |monitor: &crate::config::MonitorConfig| Place {
            kind: monitor.kind,
            pretty: monitor.pretty,
            to: monitor.to.clone(),
            chardev: None,
        };
        let mut monitors = Monitors(config.monitors.iter().map(place).collect());
        // One that waits for its client may keep the others waiting, so it comes behind them.
        let waits = |to: &ChardevConfig| matches!(to, ChardevConfig::UnixWait(_));
        monitors.open(&mut None, |to| matches!(to, ChardevConfig::Unix(_)))?;
        monitors.open(&mut None, waits)?;
        Ok(monitors)
    }

    /// Opens all others but those behind the serial port.
    pub(crate) fn connect(&mut self, stdio: &mut Option<StdioStreams>) -> Result<(), ChardevError> {
        self.open(stdio, |_| true)
    }

    fn open(
        &mut self,
        stdio: &mut Option<StdioStreams>,
        which: impl Fn(&ChardevConfig) -> bool,
    ) -> Result<(), ChardevError> {
        for place in &mut self.0 {
            if let (MonitorPlace::Own(to), None) = (&place.to, &place.chardev)
                && which(to)
            {
                let stdio = if *to == ChardevConfig::Stdio { stdio.take() } else { None };
                place.chardev = Some(chardev::open(to, stdio)?);
            }
        }
        Ok(())
    }

    /// Whether the serial port is shared with a monitor.
    pub(crate) fn is_on_serial(&self) -> bool {
        self.0.iter().any(|place| place.to == MonitorPlace::Serial)
    }

    /// Puts the first monitor that shares the serial port there. There is room for one.
    pub(crate) fn put_on_serial(&mut self, port: Arc<dyn CharBackend>) {
        let mut behind = self.0.iter_mut().filter(|place| place.to == MonitorPlace::Serial);
        if let Some(place) = behind.next() {
            place.chardev = Some(port);
        }
        if behind.next().is_some() {
            log::warn!("more than one monitor shares the serial port; only the first can be reached there");
        }
    }

    /// Begins the sessions. `control` tells them what happens to the machine.
    pub(crate) fn start(self, target: Remote, control: &MachineControl) -> Result<Sessions, ChardevError> {
        let target: Arc<dyn target::Target> = Arc::new(target);
        let mut sessions = Sessions::default();
        let listeners: Arc<Mutex<Vec<Weak<Session>>>> = Arc::default();
        // Before the first session, and under the lock until the last: its peer may end the machine at once, and is to hear of it.
        let mut listening = lock(&listeners);
        let told = listeners.clone();
        control.observe(move |event: MachineEvent| {
            let listeners: Vec<_> = lock(&told).iter().filter_map(Weak::upgrade).collect();
            for session in listeners {
                session.event(event.clone());
            }
        });
        for (number, place) in self.0.into_iter().enumerate() {
            let Some(chardev) = place.chardev else { continue };
            let name = format!("monitor{number}");
            let session = match place.kind {
                MonitorKind::Hmp => Session::start(&name, chardev, hmp::Hmp::new(target.clone())),
                MonitorKind::Qmp => {
                    Session::start(&name, chardev, qmp::Qmp::new(target.clone(), place.pretty))
                }
            };
            let session = session.map_err(|source| ChardevError::Start { name, source })?;
            listening.push(Arc::downgrade(&session));
            sessions.add(session);
        }
        drop(listening);
        Ok(sessions)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
