//! diod, a 9P server of others, on a unix socket: what hvrun's server is measured beside. It starts it; the client is the same for both
//! (`devices/examples/ninep_bench.rs`).

use crate::test;
use anyhow::{Context, Result};
use hvrun_tests::process::Supervised;
use hvrun_tests::socket;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The server, and the Debian package that has it.
const DIOD: (&str, &str) = ("/usr/sbin/diod", "diod");
/// How long the server may live.
const LIMIT: Duration = Duration::from_secs(120);

/// A diod that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Diod {
    socket: PathBuf,
    export: PathBuf,
    _process: Supervised,
    _child: Child,
}

impl Diod {
    /// Starts it with a socket and an empty directory to export in `dir`.
    pub fn start(dir: &Path) -> Result<Diod> {
        test::install_debian_packages(&[DIOD])?;
        let (socket, export) = (dir.join("socket"), dir.join("export"));
        fs::create_dir(&export).with_context(|| format!("cannot make {}", export.display()))?;
        let mut server = Command::new(DIOD.0);
        server.args([
            "--foreground",
            "--no-auth",
            "--no-userdb",
            "--logdest",
            "stderr",
            "--config-file",
            "/dev/null",
        ]);
        server.arg("--listen").arg(&socket).arg("--export").arg(&export);
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (process, child) = Supervised::spawn(&mut server, LIMIT)?;
        // It listens when somebody can connect.
        drop(socket::connect(&socket)?);
        Ok(Diod { socket, export, _process: process, _child: child })
    }

    /// The options of `ninep_bench` for it.
    pub fn options(&self) -> [&std::ffi::OsStr; 6] {
        let (socket, export) = (self.socket.as_os_str(), self.export.as_os_str());
        ["--socket".as_ref(), socket, "--aname".as_ref(), export, "--directory".as_ref(), export]
    }
}
