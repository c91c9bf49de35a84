//! A real `vde_switch` with its console. What is plugged into it is the caller's.

use crate::process::{Supervised, need};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Longer than anything with a switch takes on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// A running `vde_switch`. Dropping it kills it, as an accident would.
#[derive(Debug)]
pub struct Switch {
    _process: Supervised,
    console: ChildStdin,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Switch {
    /// Starts one whose sockets are in the folder `dir`, and waits until it serves. `arguments` are further ones, such as `--hub`.
    pub fn start(dir: &Path, arguments: &[&str]) -> Result<Switch> {
        Switch::start_for(LIMIT, dir, arguments)
    }

    /// The same, but it is killed after `limit`.
    pub fn start_for(limit: Duration, dir: &Path, arguments: &[&str]) -> Result<Switch> {
        let mut command = Command::new(need("vde_switch", "vde2")?);
        command.arg("--sock").arg(dir).args(["--dirmode", "0700"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let (process, Child { stdin, stdout, .. }) = Supervised::spawn(&mut command, limit)?;
        let lines = BufReader::new(stdout.context("no stdout")?).lines();
        let mut switch = Switch { _process: process, console: stdin.context("no stdin")?, lines };
        // An answer says that it serves.
        switch.ask("showinfo")?;
        Ok(switch)
    }

    /// Gives a command to the switch's console and returns what it says.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        // In one piece: it takes whatever it reads at once for a command.
        self.console.write_all(format!("{command}\n").as_bytes())?;
        let mut answer = String::new();
        for line in &mut self.lines {
            let line = line?;
            if line.contains("1000 Success") {
                return Ok(answer);
            }
            answer += &format!("{line}\n");
        }
        bail!("vde_switch ended: {answer}");
    }
}
