//! A machine of a test, as the NixOS test driver has it: `start`, `succeed`, `crash` and their like, with its words on every socket.

use super::emulator::Emulator;
use super::monitors::{Monitor, Qmp};
use super::shell::{Output, Shell, quote};
use super::{Driver, Guest};
use crate::process::{Ended, Supervised};
use crate::socket::accept;
use crate::transcript::{Transcript, tail};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

/// Between two attempts at something that is to become true.
const PAUSE: Duration = Duration::from_millis(100);
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(100);
/// Where the guest has the folder that all machines of a test share.
const SHARED: &str = "/tmp/shared";

/// Who a machine is and where its files are.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) node: u8,
    /// The machine's own folder, in which it is started.
    pub(super) state: PathBuf,
    pub(super) disk: PathBuf,
    /// The folder of all machines.
    pub(super) shared: PathBuf,
    /// The switch.
    pub(super) vlan: PathBuf,
}

/// A machine, running or not. Dropping it kills it.
#[derive(Debug)]
pub struct Machine {
    place: Place,
    emulator: Emulator,
    guest: Guest,
    running: Option<Running>,
    /// How many files were copied, which keeps their names apart.
    copies: u32,
}

/// A running machine and the driver's ends of its sockets.
#[derive(Debug)]
struct Running {
    process: Supervised,
    _stdin: Option<ChildStdin>,
    console: Transcript,
    /// Where its standard error goes.
    said: PathBuf,
    monitor: Monitor,
    qmp: Qmp,
    shell: Shell,
    connected: bool,
}

impl Machine {
    pub(super) fn new(driver: &Driver, name: &str, node: u8) -> Result<Machine> {
        let top = driver.dir.path();
        let state = top.join(format!("vm-state-{name}"));
        fs::create_dir(&state).with_context(|| format!("cannot create {}", state.display()))?;
        fs::create_dir(state.join("xchg"))?;
        let place = Place {
            name: name.to_owned(),
            node,
            disk: state.join(format!("{name}.qcow2")),
            shared: top.join("shared-xchg"),
            vlan: top.join("vde1.ctl"),
            state,
        };
        let (emulator, guest) = (driver.emulator.clone(), driver.guest.clone());
        Ok(Machine { place, emulator, guest, running: None, copies: 0 })
    }

    /// The disk's image.
    pub fn disk(&self) -> &Path {
        &self.place.disk
    }

    /// The folder that this machine alone has as `/tmp/xchg`.
    pub fn xchg(&self) -> PathBuf {
        self.place.state.join("xchg")
    }

    /// Starts it. A reset ends it.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(false)
    }

    /// Starts it. A reset boots it again.
    pub fn start_allowing_reboot(&mut self) -> Result<()> {
        self.start_with(true)
    }

    fn start_with(&mut self, allow_reboot: bool) -> Result<()> {
        ensure!(self.running.is_none(), "{} runs already", self.place.name);
        let state = &self.place.state;
        if !self.place.disk.exists() {
            self.emulator.disk(&self.place.disk)?;
        }
        let listen = |name: &str| -> Result<UnixListener> {
            let path = state.join(name);
            // What an earlier start has left.
            let _ = fs::remove_file(&path);
            UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))
        };
        let (monitor, shell) = (listen("monitor")?, listen("shell")?);
        // A file, so that nothing it says is lost, whatever ends first.
        let said = state.join("stderr");
        let mut command = self.emulator.command(&self.guest, &self.place, allow_reboot)?;
        command.current_dir(state).env("TMPDIR", state).env("USE_TMPDIR", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(fs::File::create(&said)?);
        let limit = self.emulator.limit();
        let (process, mut child) = Supervised::spawn(&mut command, limit)?;
        let with_errors = |error: anyhow::Error| {
            let text = fs::read_to_string(&said).unwrap_or_default();
            error.context(format!("{} did not start; it said: {}", self.place.name, tail(&text)))
        };
        let connect = || -> Result<(Monitor, Shell, Qmp)> {
            let monitor = Monitor::new(accept_from(&process, &monitor)?, limit)?;
            let shell = Shell::new(accept_from(&process, &shell)?, limit)?;
            Ok((monitor, shell, Qmp::connect(&state.join("qmp"), limit)?))
        };
        let (mut monitor, shell, qmp) = connect().map_err(with_errors)?;
        // Only now does anything read what the guest writes.
        let deadline = process.started() + limit + Duration::from_secs(1);
        let console = Transcript::of(child.stdout.take().context("no stdout")?, deadline);
        monitor.until_prompt()?;
        let stdin = child.stdin.take();
        self.running =
            Some(Running { process, _stdin: stdin, console, said, monitor, qmp, shell, connected: false });
        Ok(())
    }

    fn running(&mut self) -> Result<&mut Running> {
        let name = &self.place.name;
        self.running.as_mut().with_context(|| format!("{name} is not running"))
    }

    /// Does something with the running machine. An error says what was on its console.
    fn with<T>(&mut self, act: impl FnOnce(&mut Running) -> Result<T>) -> Result<T> {
        let name = self.place.name.clone();
        let running = self.running()?;
        act(running).map_err(|error| {
            let said = fs::read_to_string(&running.said).unwrap_or_default();
            let console = running.console.so_far();
            error.context(format!("{name}; its console: {}\nstandard error: {}", tail(&console), tail(&said)))
        })
    }

    /// Waits for the backdoor. Returns the time from the start of the process; after a reboot it is no measure of anything.
    pub fn connect(&mut self) -> Result<Duration> {
        self.with(|running| {
            if !running.connected {
                running.shell.wait_for_banner()?;
                running.connected = true;
            }
            Ok(running.process.started().elapsed())
        })
    }

    /// Runs a command as root, when the backdoor is there.
    pub fn execute(&mut self, command: &str) -> Result<Output> {
        self.connect()?;
        self.with(|running| running.shell.execute(command).with_context(|| format!("'{command}'")))
    }

    /// Gives the backdoor's own shell a line, and returns the line that comes of it.
    pub fn ask_shell(&mut self, line: &str) -> Result<String> {
        self.connect()?;
        self.with(|running| {
            running.shell.send(&format!("{line}\n"))?;
            Ok(String::from_utf8_lossy(&running.shell.line()?).into_owned())
        })
    }

    /// Runs a command that has to succeed, and returns what it printed.
    pub fn succeed(&mut self, command: &str) -> Result<String> {
        let Output { status, bytes } = self.execute(command)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.with(|_| {
            ensure!(status == 0, "'{command}' ended with {status}: {text}");
            Ok(text)
        })
    }

    /// Runs a command that has to fail, and returns what it printed.
    pub fn fail(&mut self, command: &str) -> Result<String> {
        let Output { status, bytes } = self.execute(command)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        ensure!(status != 0, "'{command}' succeeded: {text}");
        Ok(text)
    }

    /// Waits until a command succeeds, and returns what it printed then.
    pub fn wait_until_succeeds(&mut self, command: &str) -> Result<String> {
        self.connect()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Output { status, bytes } = self.execute(command)?;
            if status == 0 {
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            if Instant::now() > deadline {
                let text = String::from_utf8_lossy(&bytes);
                return self.with(|_| bail!("'{command}' did not succeed within {PATIENCE:?}: {text}"));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until systemd has started a unit.
    pub fn wait_for_unit(&mut self, unit: &str) -> Result<()> {
        self.connect()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.succeed(&format!("systemctl --no-pager show --property=ActiveState {unit}"))?;
            match state.trim() {
                "ActiveState=active" => return Ok(()),
                "ActiveState=failed" => return self.with(|_| bail!("{unit} has failed")),
                other if Instant::now() > deadline => {
                    return self.with(|_| bail!("{unit} was not started within {PATIENCE:?}: {other}"));
                }
                _ => {}
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until the machine has written `text` on its serial port, behind what was waited for before.
    pub fn wait_for_console_text(&mut self, text: &str) -> Result<()> {
        self.with(|running| running.console.expect(text).map(drop))
    }

    /// Copies a file or a folder of the host's to the path `target` in the guest, through the shared folder.
    pub fn copy_from_host(&mut self, source: &Path, target: &str) -> Result<()> {
        let name = self.next_copy();
        let there = self.place.shared.join(&name);
        copy(source, &there)?;
        let (from, to) = (quote(&format!("{SHARED}/{name}")), quote(target));
        self.succeed(&format!("mkdir -p \"$(dirname {to})\"; cp -r {from} {to}"))?;
        Ok(())
    }

    /// Copies a file or a folder of the guest's to the path `target` of the host, through the shared folder.
    pub fn copy_from_vm(&mut self, source: &str, target: &Path) -> Result<()> {
        let name = self.next_copy();
        self.succeed(&format!("cp -r {} {}", quote(source), quote(&format!("{SHARED}/{name}"))))?;
        copy(&self.place.shared.join(&name), target)
    }

    fn next_copy(&mut self) -> String {
        self.copies += 1;
        format!("{}-{}", self.place.name, self.copies)
    }

    /// Gives the monitor a command and returns what it says.
    pub fn send_monitor_command(&mut self, command: &str) -> Result<String> {
        self.with(|running| running.monitor.command(command))
    }

    /// What a QMP command without arguments returns.
    pub fn qmp(&mut self, command: &str) -> Result<serde_json::Value> {
        self.with(|running| running.qmp.execute(command))
    }

    /// Pulls the cable of the VLAN.
    pub fn block(&mut self) -> Result<()> {
        self.send_monitor_command("set_link virtio-net-pci.1 off").map(drop)
    }

    /// Plugs it in again.
    pub fn unblock(&mut self) -> Result<()> {
        self.send_monitor_command("set_link virtio-net-pci.1 on").map(drop)
    }

    /// Connections to the host's port `host` go to the guest's port `guest`.
    pub fn forward_port(&mut self, host: u16, guest: u16) -> Result<()> {
        self.send_monitor_command(&format!("hostfwd_add tcp::{host}-:{guest}")).map(drop)
    }

    /// Ends the machine as a power failure would.
    pub fn crash(&mut self) -> Result<Ended> {
        self.send_monitor_command("quit")?;
        self.wait_for_shutdown()
    }

    /// Has the guest power itself off.
    pub fn shutdown(&mut self) -> Result<Ended> {
        self.connect()?;
        self.with(|running| running.shell.send("poweroff\n"))?;
        self.wait_for_shutdown()
    }

    /// Has the guest boot again, in the same process, and waits for the new backdoor.
    pub fn reboot(&mut self) -> Result<()> {
        self.connect()?;
        self.with(|running| {
            running.connected = false;
            running.shell.send("reboot\n")
        })?;
        self.connect().map(drop)
    }

    /// Asks the process to leave, as the driver does at the end of a test.
    pub fn release(&mut self) -> Result<Ended> {
        self.with(|running| running.process.signal(Signal::TERM))?;
        self.wait_for_shutdown()
    }

    /// Waits for the end of the process, and of its standard output, which no child of its may hold.
    pub fn wait_for_shutdown(&mut self) -> Result<Ended> {
        let name = self.place.name.clone();
        let running = self.running.take().with_context(|| format!("{name} is not running"))?;
        let ended = running.process.wait()?;
        let console = running.console.finish();
        let said = fs::read_to_string(&running.said).unwrap_or_default();
        let context = || format!("; console: {}\nstandard error: {}", tail(&console), tail(&said));
        let limit = self.emulator.limit();
        ensure!(!ended.timed_out, "{name} did not end within {limit:?}{}", context());
        ensure!(ended.status.code() == Some(0), "{name} ended with {}{}", ended.status, context());
        ensure!(!said.contains("panicked at"), "{name} panicked{}", context());
        Ok(ended)
    }
}

/// Waits for a connection from the process, as long as there is one.
fn accept_from(process: &Supervised, listener: &UnixListener) -> Result<UnixStream> {
    loop {
        match accept(listener, PAUSE) {
            Ok(stream) => return Ok(stream),
            Err(error) if process.has_ended()? => return Err(error.context("it has ended")),
            Err(_) => {}
        }
    }
}

/// Copies a file, or a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let attributes = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
    if !attributes.is_dir() {
        fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        return Ok(());
    }
    fs::create_dir(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
