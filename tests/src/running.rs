//! Starting hvrun and talking with its guest. The protocol of [`Running::sh`] is that of `tests/xtask/guest/init` with `hvrun=test`.

use crate::artifacts;
use crate::process::{Ended, Supervised, Usage};
use crate::terminal::Terminal;
use crate::transcript::{Transcript, tail};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The kernel's command line for [`Hvrun::linux`].
pub const TEST_COMMAND_LINE: &str = "console=ttyAMA0 quiet hvrun=test";

/// The same for guests that are there for their devices: without the kernel's tests of its own ciphers, which are more than half of a boot
/// on the software CPU.
pub const QUICK_COMMAND_LINE: &str = "console=ttyAMA0 quiet cryptomgr.notests hvrun=test";
/// The same for [`Hvrun::virtio_linux`]: the guest loads the modules of the devices that it finds.
pub const VIRTIO_COMMAND_LINE: &str = "console=ttyAMA0 quiet cryptomgr.notests hvrun=test modules=auto";

/// Longer than a boot takes on a slow and busy machine, and short enough that a hang is noticed.
const LINUX_LIMIT: Duration = Duration::from_secs(90);
/// The same for guests that end in milliseconds.
const BARE_LIMIT: Duration = Duration::from_secs(20);

/// What hvrun's standard input is.
#[derive(Debug, Default)]
pub enum Input {
    /// A pipe that the test writes to.
    #[default]
    Pipe,
    /// At its end from the start.
    Empty,
    /// Not open at all.
    Closed,
    /// A terminal, for standard output and standard error too.
    Terminal(Terminal),
}

/// hvrun about to be started.
#[derive(Debug)]
pub struct Hvrun {
    args: Vec<std::ffi::OsString>,
    input: Input,
    limit: Duration,
    shell: Option<String>,
    called: Option<String>,
}

impl Hvrun {
    /// hvrun with no arguments but those added with [`Hvrun::arg`].
    pub fn new() -> Self {
        Hvrun { args: Vec::new(), input: Input::default(), limit: BARE_LIMIT, shell: None, called: None }
    }

    /// hvrun by another name, such as one of QEMU's, and with the time that a Linux guest may take.
    pub fn called(name: &str) -> Self {
        Hvrun { called: Some(name.to_owned()), limit: LINUX_LIMIT, ..Self::new() }
    }

    /// Debian's kernel and the test initrd on the software CPU.
    pub fn linux(cpus: u32) -> Result<Self> {
        Self::booting(cpus, TEST_COMMAND_LINE, &artifacts::initrd()?)
    }

    /// The same with Debian's modules in the initrd, those of the devices that are there loaded before the guest is ready. For these guests
    /// there are [`Running::disk`], [`Running::port`] and [`Running::share`]; file systems are loaded when they are mounted.
    pub fn virtio_linux(cpus: u32) -> Result<Self> {
        Self::booting(cpus, VIRTIO_COMMAND_LINE, &artifacts::virtio_initrd()?)
    }

    /// The same with only the modules named, such as `virtio_mmio`, and what they need; with none, none. `load` in the guest loads more.
    pub fn linux_with_modules(cpus: u32, modules: &[&str]) -> Result<Self> {
        let command_line = format!("{QUICK_COMMAND_LINE} modules={}", modules.join(","));
        Self::booting(cpus, &command_line, &artifacts::virtio_initrd()?)
    }

    fn booting(cpus: u32, command_line: &str, initrd: &Path) -> Result<Self> {
        let mut this = Self::new().accel_soft();
        this.limit = LINUX_LIMIT;
        let this = this.arg("--cpus").arg(cpus.to_string()).arg("--append").arg(command_line);
        Ok(this.arg(artifacts::kernel()?).arg(initrd))
    }

    /// A kernel image, such as one made with [`crate::bare`], on the software CPU.
    pub fn kernel(image: &Path) -> Self {
        Self::new().accel_soft().arg(image)
    }

    fn accel_soft(self) -> Self {
        self.arg("--accel").arg("soft")
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Chooses the standard input.
    #[must_use]
    pub fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Gives it another time after which the watchdog kills it.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// No file that it writes may become larger than `kib` KiB (`ulimit -f`).
    #[must_use]
    pub fn file_size_limit(self, kib: u64) -> Self {
        // POSIX: in units of 512 bytes.
        self.through(&format!("ulimit -f {} && exec \"$0\" \"$@\"", kib * 2))
    }

    /// It begins with at most `count` open files (`ulimit -S -n`), which it may raise.
    #[must_use]
    pub fn descriptor_limit(self, count: u64) -> Self {
        self.through(&format!("ulimit -S -n {count} && exec \"$0\" \"$@\""))
    }

    /// Starts it with a script for the shell, which gets the whole command line as `"$0" "$@"` and has to `exec` it.
    #[must_use]
    pub fn through(mut self, script: &str) -> Self {
        self.shell = Some(script.to_owned());
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Running> {
        let binary = artifacts::hvrun()?;
        let in_shell = |script: &str| {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(script).arg(&binary);
            shell
        };
        let mut command = match (&self.input, &self.shell) {
            (Input::Closed, _) => in_shell("exec \"$0\" \"$@\" <&-"),
            (_, Some(script)) => in_shell(script),
            _ => Command::new(&binary),
        };
        if let Some(name) = &self.called {
            command.arg0(name);
        }
        command.args(&self.args).env_remove("RUST_LOG");
        let (stdin, stdout, stderr) = match &self.input {
            Input::Pipe => (Stdio::piped(), Stdio::piped(), Stdio::piped()),
            Input::Empty | Input::Closed => (Stdio::null(), Stdio::piped(), Stdio::piped()),
            Input::Terminal(terminal) => (terminal.stdio()?, terminal.stdio()?, Stdio::piped()),
        };
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let (process, mut child) = Supervised::spawn(&mut command, self.limit)?;
        // Only the child may hold the program's end of a terminal's handles that `command` took.
        drop(command);
        // The watchdog comes first; this is for a terminal, whose output does not end with the process.
        let deadline = process.started() + self.limit + Duration::from_secs(1);
        let stderr = Transcript::of(child.stderr.take().context("no stderr")?, deadline);
        let (input, serial) = match &self.input {
            Input::Terminal(terminal) => {
                (Some(terminal.person()?), Transcript::of(terminal.person()?, deadline))
            }
            _ => {
                let stdin = child.stdin.take().map(|pipe| File::from(std::os::fd::OwnedFd::from(pipe)));
                (stdin, Transcript::of(child.stdout.take().context("no stdout")?, deadline))
            }
        };
        let on_terminal = matches!(self.input, Input::Terminal(_));
        Ok(Running { process, input, serial, stderr, limit: self.limit, on_terminal })
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Result<Outcome> {
        self.start()?.wait()
    }
}

impl Default for Hvrun {
    fn default() -> Self {
        Self::new()
    }
}

/// A hvrun that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    process: Supervised,
    input: Option<File>,
    serial: Transcript,
    stderr: Transcript,
    limit: Duration,
    on_terminal: bool,
}

/// How a hvrun ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What came out of its standard output (empty with [`Input::Terminal`]): the guest's serial port.
    pub serial: String,
    /// What came out of its standard error.
    pub stderr: String,
    /// What it cost.
    pub usage: Usage,
    /// From its start to its end.
    pub wall: Duration,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Waits until the guest has written `marker`, and returns what it wrote before.
    pub fn expect(&mut self, marker: &str) -> Result<String> {
        self.serial.expect(marker).map_err(|error| {
            error.context(format!(
                "waited at most {:?}; standard error was: {}",
                self.limit,
                tail(&self.stderr.so_far())
            ))
        })
    }

    /// Writes to the guest's serial port.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.input
            .as_mut()
            .context("its standard input is not ours")?
            .write_all(bytes)
            .context("hvrun's stdin")
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits until the initrd says that it takes commands.
    pub fn ready(&mut self) -> Result<String> {
        self.expect("HVRUN-READY\n")
    }

    /// Runs a command in the guest and returns its output; an error if it fails.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        self.send(format!("{command}\n").as_bytes())?;
        self.done(command)
    }

    /// Waits for the end of a command that was sent.
    pub fn done(&mut self, command: &str) -> Result<String> {
        let output = self.expect("HVRUN-DONE:")?;
        let status = self.expect("\n")?;
        ensure!(status == "0", "'{command}' ended with {status}: {output}");
        Ok(output)
    }

    /// Waits for the disk with that serial in a guest of [`Hvrun::virtio_linux`], and returns its device, such as `/dev/vda`.
    pub fn disk(&mut self, serial: &str) -> Result<String> {
        Ok(self.sh(&format!("disk '{serial}'"))?.trim().to_owned())
    }

    /// Waits for the virtio-serial port with that name, and returns its device, such as `/dev/vport1p1`.
    pub fn port(&mut self, name: &str) -> Result<String> {
        Ok(self.sh(&format!("port '{name}'"))?.trim().to_owned())
    }

    /// Mounts a 9p share at `dir`; `options` are further ones of the mount, such as `ro,msize=131072`, or nothing.
    pub fn share(&mut self, tag: &str, dir: &str, options: &str) -> Result<()> {
        self.sh(&format!("share '{tag}' '{dir}' '{options}'")).map(drop)
    }

    /// Asks the guest to power off, and waits for the end.
    pub fn poweroff(mut self) -> Result<Outcome> {
        self.send(b"poweroff\n")?;
        self.wait()
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits for its end; an error if the watchdog had to end it, or if it panicked. Its standard input stays open until then.
    pub fn wait(self) -> Result<Outcome> {
        use std::os::unix::process::ExitStatusExt;
        let Running { process, input, serial, stderr, limit, on_terminal } = self;
        let Ended { status, usage, wall, timed_out } = process.wait()?;
        drop(input);
        let stderr = stderr.finish();
        // A terminal that the test keeps open has no end to wait for.
        let serial = if on_terminal { serial.so_far() } else { serial.finish() };
        ensure!(
            !timed_out,
            "hvrun did not end within {limit:?}; serial: {}\nstandard error: {}",
            tail(&serial),
            tail(&stderr)
        );
        ensure!(!stderr.contains("panicked at"), "hvrun panicked: {}", tail(&stderr));
        Ok(Outcome { code: status.code(), signal: status.signal(), serial, stderr, usage, wall })
    }
}
