//! Debian's virtiofsd, serving a folder: the counterpart of virtiofs devices. It needs root.

use crate::process::Supervised;
use crate::transcript::Transcript;
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where Debian has it: with QEMU up to Debian 12, in a package of its own since then.
pub const PLACES: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// A virtiofsd that waits for a machine, or serves one. Dropping it kills it.
#[derive(Debug)]
pub struct Virtiofsd {
    process: Supervised,
    socket: PathBuf,
    _log: Transcript,
}

impl Virtiofsd {
    /// Starts one that serves `folder` at `socket`, for at most `limit`; returns when it listens.
    pub fn start(folder: &Path, socket: &Path, limit: Duration) -> Result<Self> {
        let binary = PLACES.iter().find(|place| Path::new(place).exists());
        let binary =
            binary.context("there is no virtiofsd: run 'cargo xtask test tools', which installs it")?;
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new(binary);
        command.arg(format!("--socket-path={}", socket.display()));
        command.arg("-o").arg(format!("source={},cache=auto,sandbox=chroot", folder.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (process, mut child) = Supervised::spawn(&mut command, limit)?;
        let mut log = Transcript::of(child.stderr.take().context("no stderr")?, Instant::now() + limit);
        log.expect("Waiting for vhost-user socket connection").context("virtiofsd does not start")?;
        Ok(Virtiofsd { process, socket: socket.to_owned(), _log: log })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Kills it; returns when it is gone.
    pub fn kill(self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait().map(drop)
    }
}
