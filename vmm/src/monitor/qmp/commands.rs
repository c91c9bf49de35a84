//! The commands of programs: one table, which is also what `query-commands` lists.

use serde_json::{Map, Value, json};

use super::super::target::Target;
use super::super::{hmp, hotplug};
use super::args::{ANY, Args};
use super::{NEGOTIATE, QmpError, query};
use crate::hotplug::PlugRequest;

/// What a command returns, and what happens behind its answer.
#[derive(Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) value: Value,
    pub(super) then: Then,
}

/// See [`Reply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Go,
    Quit,
    Reset,
    PowerDown,
}

impl Reply {
    fn of(value: Value) -> Self {
        Reply { value, then: Then::Go }
    }

    /// `{}`, and then `then`.
    fn empty(then: Then) -> Self {
        Reply { value: json!({}), then }
    }
}

type Run = fn(&dyn Target, &mut Args) -> Result<Reply, QmpError>;

/// A command that takes nothing and shows something.
macro_rules! query {
    ($show:path) => {
        |target, _| Ok(Reply::of($show(target)))
    };
}

/// Every command but [`NEGOTIATE`], by name, with the names of its arguments.
static COMMANDS: &[(&str, &[&str], Run)] = &[
    ("blockdev-add", ANY, |target, args| plug(target, PlugRequest::AddNode(hotplug::said(args.rest())))),
    ("blockdev-del", &["node-name"], |target, args| {
        plug(target, PlugRequest::RemoveNode(args.string("node-name")?))
    }),
    ("cont", &[], |target, _| {
        target.resume();
        Ok(Reply::empty(Then::Go))
    }),
    ("device_add", ANY, |target, args| plug(target, PlugRequest::AddDevice(hotplug::said(args.rest())))),
    ("device_del", &["id"], |target, args| plug(target, PlugRequest::RemoveDevice(device_id(args)?))),
    ("human-monitor-command", &["command-line", "cpu-index"], human_monitor_command),
    ("netdev_add", ANY, |target, args| plug(target, PlugRequest::AddNetdev(hotplug::said(args.rest())))),
    ("netdev_del", &["id"], |target, args| plug(target, PlugRequest::RemoveNetdev(args.string("id")?))),
    ("query-block", &[], query!(query::block)),
    ("query-chardev", &[], query!(query::chardev)),
    ("query-commands", &[], |_, _| Ok(Reply::of(names()))),
    ("query-cpus-fast", &[], query!(query::cpus_fast)),
    ("query-kvm", &[], query!(query::kvm)),
    ("query-memory-size-summary", &[], query!(query::memory_size_summary)),
    ("query-name", &[], query!(query::name)),
    ("query-pci", &[], query!(query::pci)),
    ("query-status", &[], query!(query::status)),
    ("query-target", &[], query!(query::target)),
    ("query-uuid", &[], query!(query::uuid)),
    ("query-version", &[], |_, _| Ok(Reply::of(super::version()))),
    ("quit", &[], |_, _| Ok(Reply::empty(Then::Quit))),
    ("set_link", &["name", "up"], set_link),
    ("stop", &[], |target, _| {
        target.pause();
        Ok(Reply::empty(Then::Go))
    }),
    ("system_powerdown", &[], |_, _| Ok(Reply::empty(Then::PowerDown))),
    ("system_reset", &[], |_, _| Ok(Reply::empty(Then::Reset))),
];

/// The names of all commands.
fn names() -> Value {
    let all = COMMANDS.iter().map(|(name, ..)| *name).chain([NEGOTIATE]);
    Value::Array(all.map(|name| json!({ "name": name })).collect())
}

/// Does what `command` says.
pub(super) fn execute(
    target: &dyn Target,
    command: &str,
    arguments: Map<String, Value>,
) -> Result<Reply, QmpError> {
    let Some((_, takes, run)) = COMMANDS.iter().find(|(name, ..)| *name == command) else {
        return Err(QmpError::not_found(format!("The command {command} has not been found")));
    };
    run(target, &mut Args::new(arguments, takes)?)
}

/// The beginning of a session. There is no capability that a client could enable.
pub(super) fn negotiate(arguments: Map<String, Value>) -> Result<Reply, QmpError> {
    match Args::new(arguments, &["enable"])?.strings("enable")?.first() {
        Some(name) => Err(QmpError::generic(format!("Capability '{name}' is not available"))),
        None => Ok(Reply::empty(Then::Go)),
    }
}

fn plug(target: &dyn Target, request: PlugRequest) -> Result<Reply, QmpError> {
    match target.plug(request) {
        Ok(()) => Ok(Reply::empty(Then::Go)),
        Err(error) => Err(QmpError::plug(&error)),
    }
}

/// A device by its id, or by its path, which ends in it.
fn device_id(args: &mut Args) -> Result<String, QmpError> {
    let id = args.string("id")?;
    Ok(id.strip_prefix("/machine/peripheral/").map_or(id.clone(), str::to_owned))
}

fn set_link(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let (name, up) = (args.string("name")?, args.boolean("up")?);
    match target.set_link(&name, up) {
        true => Ok(Reply::empty(Then::Go)),
        false => Err(QmpError::no_device(&name)),
    }
}

fn human_monitor_command(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let line = args.string("command-line")?;
    // Registers are asked for by name of the CPU; nothing else depends on one.
    args.integer("cpu-index")?;
    let answer = hmp::execute(target, &line);
    let then = match answer.then {
        hmp::Then::Go => Then::Go,
        hmp::Then::Quit => Then::Quit,
    };
    Ok(Reply { value: Value::String(hmp::crlf(&answer.text)), then })
}
