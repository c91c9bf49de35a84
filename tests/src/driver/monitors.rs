//! Both monitors as the driver speaks with them: the one for people, which it waits for until it says its prompt and nothing behind it, and
//! QMP, which it greets.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const PROMPT: &[u8] = b"(qemu) ";

/// The monitor for people.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: UnixStream,
}

impl Monitor {
    pub(super) fn new(stream: UnixStream, limit: Duration) -> Result<Monitor> {
        stream.set_read_timeout(Some(limit))?;
        Ok(Monitor { stream })
    }

    /// What it says until its prompt, or until its end.
    pub(super) fn until_prompt(&mut self) -> Result<String> {
        let mut text = Vec::new();
        let mut chunk = [0; 1024];
        while !text.ends_with(PROMPT) {
            let count = self.stream.read(&mut chunk).context("the monitor does not answer")?;
            text.extend_from_slice(&chunk[..count]);
            if count == 0 {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Gives it a command and returns what it says.
    pub(super) fn command(&mut self, command: &str) -> Result<String> {
        self.stream.write_all(format!("{command}\n").as_bytes()).context("the monitor is gone")?;
        self.until_prompt()
    }
}

/// QMP, connected and greeted.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects, at the first attempt, because the driver has no second one.
    pub(super) fn connect(path: &Path, limit: Duration) -> Result<Qmp> {
        let stream = UnixStream::connect(path).context("QMP's socket does not serve yet")?;
        stream.set_read_timeout(Some(limit))?;
        let reader = BufReader::new(stream.try_clone()?);
        let mut qmp = Qmp { stream, reader };
        let greeting = qmp.message()?;
        ensure!(greeting.get("QMP").is_some(), "QMP greets with {greeting}");
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// What a command returns.
    pub(super) fn execute(&mut self, command: &str) -> Result<Value> {
        self.stream.write_all(format!("{}\n", json!({ "execute": command })).as_bytes())?;
        loop {
            let message = self.message()?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            ensure!(message.get("event").is_some(), "QMP answers {command} with {message}");
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context("QMP does not answer")?;
        serde_json::from_str(&line).with_context(|| format!("'{line}' is not JSON"))
    }
}
