//! The far ends of QEMU's monitors, with patience: the one for people and the one for programs. What the NixOS test driver demands beyond
//! that is in [`driver`](crate::driver).

use crate::socket::Socket;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const PROMPT: &str = "(qemu) ";

/// The monitor for people.
#[derive(Debug)]
pub struct Monitor(Socket);

impl Monitor {
    /// The monitor at the other end of `socket`, when it has greeted.
    pub fn begin(mut socket: Socket) -> Result<Monitor> {
        socket.expect(PROMPT)?;
        Ok(Monitor(socket))
    }

    /// What a command answers, behind its echo.
    pub fn command(&mut self, command: &str) -> Result<String> {
        self.send(command)?;
        self.0.expect(PROMPT)
    }

    /// Types a command, and waits for nothing.
    pub fn send(&mut self, command: &str) -> Result<()> {
        self.0.send(format!("{command}\n").as_bytes())
    }

    /// Waits for its end and returns all that it has said.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish()
    }
}

/// The monitor for programs.
#[derive(Debug)]
pub struct Qmp(Socket);

impl Qmp {
    /// The monitor at the other end of `socket`, when it has greeted and the capabilities are negotiated.
    pub fn begin(mut socket: Socket) -> Result<Qmp> {
        let greeting: Value = serde_json::from_str(&socket.expect("\n")?)?;
        ensure!(greeting["QMP"]["version"]["qemu"]["major"].is_u64(), "{greeting}");
        let mut qmp = Qmp(socket);
        ensure!(qmp.execute("qmp_capabilities", json!({}))? == json!({ "return": {} }), "no capabilities");
        Ok(qmp)
    }

    fn message(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.0.expect("\n")?)?)
    }

    /// What a command answers; events before that are left out.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.0.send(format!("{message}\n").as_bytes())?;
        loop {
            let message = self.message()?;
            if message.get("event").is_none() {
                return Ok(message);
            }
        }
    }

    /// What a command returns.
    pub fn done(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let answer = self.execute(command, arguments)?;
        answer.get("return").cloned().with_context(|| format!("{command}: {answer}"))
    }

    /// How a command fails: class and description.
    pub fn refused(&mut self, command: &str, arguments: Value) -> Result<(String, String)> {
        let answer = self.execute(command, arguments)?;
        let text = |name: &str| answer["error"][name].as_str().map(str::to_owned);
        text("class").zip(text("desc")).with_context(|| format!("{command}: {answer}"))
    }

    /// What a command for people answers.
    pub fn hmp(&mut self, line: &str) -> Result<String> {
        let answer = self.done("human-monitor-command", json!({ "command-line": line }))?;
        answer.as_str().map(str::to_owned).context("no text")
    }

    /// Waits for an event of that name and returns its data.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            let message = self.message()?;
            if message["event"] == name {
                ensure!(message["timestamp"]["microseconds"].is_u64(), "{message}");
                return Ok(message["data"].clone());
            }
        }
    }

    /// What the machine does.
    pub fn status(&mut self) -> Result<Value> {
        Ok(self.done("query-status", json!({}))?["status"].clone())
    }

    /// Waits for its end.
    pub fn finish(self) {
        self.0.finish();
    }
}
