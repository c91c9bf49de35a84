//! The monitor for programs: QEMU's machine protocol. JSON objects come in any layout ([`framing`]); answers and events go out one a line,
//! each in one write. What the commands do is in [`commands`].

mod args;
mod commands;
mod framing;
mod json;
mod qom;
mod query;
mod schema;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hvrun_devices::backend::disk::ErrorAction;
use hvrun_devices::virtio::block::{IoError, Operation};
use serde_json::{Map, Value, json};

use super::QEMU_VERSION;
use super::outbox::Outbox;
use super::session::Protocol;
use super::target::Target;
use super::target::with_cause;
use crate::hotplug::PlugError;
use crate::running::{BlockNames, Cause, MachineEvent};
use commands::{Reply, Then};
use framing::{Framing, Message};

/// The command with which a session begins.
const NEGOTIATE: &str = "qmp_capabilities";

/// An error as the protocol has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QmpError {
    class: &'static str,
    desc: String,
}

impl QmpError {
    fn generic(desc: impl Into<String>) -> Self {
        QmpError { class: "GenericError", desc: desc.into() }
    }

    fn not_found(desc: impl Into<String>) -> Self {
        QmpError { class: "CommandNotFound", desc: desc.into() }
    }

    fn no_device(name: &str) -> Self {
        QmpError { class: "DeviceNotFound", desc: format!("Device '{name}' not found") }
    }

    fn plug(error: &PlugError) -> Self {
        let class = if matches!(error, PlugError::NoDevice(_)) { "DeviceNotFound" } else { "GenericError" };
        QmpError { class, desc: with_cause(error) }
    }
}

/// See the module.
pub(super) struct Qmp {
    target: Arc<dyn Target>,
    framing: Framing,
    /// The peer has said [`NEGOTIATE`].
    negotiated: bool,
    pretty: bool,
}

impl Qmp {
    pub(super) fn new(target: Arc<dyn Target>, pretty: bool) -> Self {
        Qmp { target, framing: Framing::default(), negotiated: false, pretty }
    }

    /// Answers one message; what happens behind the answer is returned.
    fn answer(&mut self, text: &str, out: &Outbox) -> Then {
        let mut id = None;
        let result = framing::parse(text)
            .map_err(QmpError::generic)
            .and_then(|value| request(value, &mut id))
            .and_then(|(command, arguments)| self.execute(&command, arguments));
        let (member, then) = match result {
            Ok(Reply { value, then }) => (("return", value), then),
            Err(QmpError { class, desc }) => (("error", json!({ "class": class, "desc": desc })), Then::Go),
        };
        let mut object = Map::new();
        object.insert(member.0.to_owned(), member.1);
        object.extend(id.map(|id| ("id".to_owned(), id)));
        out.wait_for_room();
        out.want_events(self.negotiated);
        out.send(&json::line(&Value::Object(object), self.pretty));
        then
    }

    fn execute(&mut self, command: &str, arguments: Map<String, Value>) -> Result<Reply, QmpError> {
        match (command == NEGOTIATE, self.negotiated) {
            (true, true) => {
                Err(QmpError::not_found("Capabilities negotiation is already complete, command ignored"))
            }
            (true, false) => {
                let reply = commands::negotiate(arguments)?;
                self.negotiated = true;
                Ok(reply)
            }
            (false, false) => {
                Err(QmpError::not_found(format!("Expecting capabilities negotiation with '{NEGOTIATE}'")))
            }
            (false, true) => commands::execute(self.target.as_ref(), command, arguments),
        }
    }
}

/// The command and the arguments that `value` asks for. Its `id` is found whatever else is wrong.
fn request(value: Value, id: &mut Option<Value>) -> Result<(String, Map<String, Value>), QmpError> {
    let Value::Object(mut object) = value else {
        return Err(QmpError::generic("QMP input must be a JSON object"));
    };
    *id = object.shift_remove("id");
    let command = match object.shift_remove("execute") {
        Some(Value::String(command)) => command,
        Some(_) => return Err(QmpError::generic("QMP input member 'execute' must be a string")),
        None => return Err(QmpError::generic("QMP input lacks member 'execute'")),
    };
    let arguments = match object.shift_remove("arguments") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return Err(QmpError::generic("QMP input member 'arguments' must be an object")),
    };
    match object.keys().next() {
        Some(other) => Err(QmpError::generic(format!("QMP input member '{other}' is unexpected"))),
        None => Ok((command, arguments)),
    }
}

/// The version as the greeting and `query-version` show it.
fn version() -> Value {
    let [major, minor, micro] = QEMU_VERSION;
    json!({
        "qemu": { "micro": micro, "minor": minor, "major": major },
        "package": concat!("hvrun ", env!("CARGO_PKG_VERSION")),
    })
}

/// What QEMU calls the reason of an end or a reset (ShutdownCause in its schema).
fn reason(cause: Cause) -> &'static str {
    match cause {
        Cause::GuestShutdown => "guest-shutdown",
        Cause::GuestReset => "guest-reset",
        Cause::HostReset => "host-qmp-system-reset",
        Cause::HostQuit => "host-qmp-quit",
        Cause::HostSignal => "host-signal",
        Cause::HostError => "host-error",
    }
}

/// The data of BLOCK_IO_ERROR.
fn io_error(disk: BlockNames, error: IoError) -> Value {
    json!({
        "device": disk.drive,
        "node-name": disk.node,
        "operation": if error.operation == Operation::Read { "read" } else { "write" },
        "action": match error.action {
            ErrorAction::Report => "report",
            ErrorAction::Ignore => "ignore",
            ErrorAction::Stop => "stop",
        },
        "nospace": error.no_space,
        "reason": error.reason,
    })
}

/// An event at `time` since the epoch.
fn event(event: MachineEvent, time: std::time::Duration) -> Value {
    let caused = |cause: Cause| Some(json!({ "guest": cause.is_guest(), "reason": reason(cause) }));
    let (name, data) = match event {
        MachineEvent::Stopped => ("STOP", None),
        MachineEvent::Resumed => ("RESUME", None),
        MachineEvent::Reset(cause) => ("RESET", caused(cause)),
        MachineEvent::Shutdown(cause) => ("SHUTDOWN", caused(cause)),
        MachineEvent::PowerButton => ("POWERDOWN", None),
        MachineEvent::BlockIoError { disk, error } => ("BLOCK_IO_ERROR", Some(io_error(disk, error))),
        MachineEvent::DeviceDeleted { device: Some(device), path } => {
            ("DEVICE_DELETED", Some(json!({ "device": device, "path": path })))
        }
        MachineEvent::DeviceDeleted { device: None, path } => {
            ("DEVICE_DELETED", Some(json!({ "path": path })))
        }
    };
    let mut value = json!({
        "timestamp": { "seconds": time.as_secs(), "microseconds": time.subsec_micros() },
        "event": name,
    });
    if let (Some(object), Some(data)) = (value.as_object_mut(), data) {
        object.insert("data".to_owned(), data);
    }
    value
}

impl Protocol for Qmp {
    fn connected(&mut self, out: &Outbox) {
        self.framing = Framing::default();
        self.negotiated = false;
        let greeting = json!({ "QMP": { "version": version(), "capabilities": [] } });
        out.send(&json::line(&greeting, self.pretty));
    }

    fn input(&mut self, bytes: &[u8], out: &Outbox) {
        for byte in bytes {
            let then = match self.framing.feed(*byte) {
                None => continue,
                Some(Message::Text(text)) => self.answer(&text, out),
                Some(Message::Wrong(desc)) => {
                    let error = json!({ "error": { "class": "GenericError", "desc": desc } });
                    out.wait_for_room();
                    out.send(&json::line(&error, self.pretty));
                    continue;
                }
            };
            match then {
                Then::Go => {}
                Then::Quit => return self.target.quit(),
                Then::Reset => self.target.reset(),
                Then::PowerDown => self.target.power_button(),
            }
        }
    }

    fn message(what: MachineEvent, pretty: bool) -> Option<Vec<u8>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(json::line(&event(what, now), pretty))
    }

    fn pretty(&self) -> bool {
        self.pretty
    }
}

#[cfg(test)]
mod tests;
