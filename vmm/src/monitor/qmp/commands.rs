//! The commands of programs: one table, which is also what `query-commands` and, with the types in `schema`, `query-qmp-schema` list.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::target::Target;
use super::super::{hmp, hotplug, names};
use super::args::{ANY, Args};
use super::{NEGOTIATE, QmpError, qom, query, schema};
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

/// A command that shows that there is nothing.
macro_rules! none {
    () => {
        |_, _| Ok(Reply::of(json!([])))
    };
}

/// A command that this machine refuses, whatever it is given.
macro_rules! refuse {
    ($why:expr) => {
        |_, _| Err(QmpError::generic($why))
    };
}

const NO_CONSOLE: &str = "There is no console to take a screendump from";
const NO_INPUT: &str = "There is no keyboard or mouse: this machine has no display";
const NO_CHARDEV: &str = "Character devices cannot be added to or changed in a running machine";
const NO_WAKEUP: &str = "wake-up from suspend is not supported by this guest";

/// Every command but [`NEGOTIATE`], by name, with its arguments. What it returns is in `schema`.
pub(super) static COMMANDS: &[(&str, &[&str], Run)] = &[
    ("balloon", &["value: int"], balloon),
    ("block_resize", &["device?: str", "node-name?: str", "size: int"], block_resize),
    ("blockdev-add", &["driver: str", "node-name: str", ANY], |target, args| {
        plug(target, PlugRequest::AddNode(hotplug::said(args.rest())))
    }),
    (
        "blockdev-change-medium",
        &["device?: str", "id?: str", "filename: str", "format?: str", "force?: bool"],
        no_medium,
    ),
    ("blockdev-del", &["node-name: str"], |target, args| {
        plug(target, PlugRequest::RemoveNode(args.string("node-name")?))
    }),
    ("chardev-add", &["id: str", "backend: any"], refuse!(NO_CHARDEV)),
    ("chardev-change", &["id: str", "backend: any"], chardev_change),
    ("chardev-remove", &["id: str"], chardev_remove),
    ("chardev-send-break", &["id: str"], chardev_send_break),
    ("cont", &[], |target, _| match target.resume() {
        true => Ok(Reply::empty(Then::Go)),
        false => Err(QmpError::generic(names::NEEDS_RESET)),
    }),
    ("device_add", &["driver: str", "bus?: str", "id?: str", ANY], |target, args| {
        plug(target, PlugRequest::AddDevice(hotplug::said(args.rest())))
    }),
    ("device_del", &["id: str"], |target, args| plug(target, PlugRequest::RemoveDevice(device_id(args)?))),
    ("eject", &["device?: str", "id?: str", "force?: bool"], no_medium),
    ("human-monitor-command", &["command-line: str", "cpu-index?: int"], human_monitor_command),
    ("inject-nmi", &[], refuse!(names::UNSUPPORTED)),
    ("input-send-event", &["device?: str", "head?: int", "events: [any]"], refuse!(NO_INPUT)),
    ("memsave", &["val: int", "size: int", "filename: str", "cpu-index?: int"], |target, args| {
        let cpu = args.integer("cpu-index")?.unwrap_or(0);
        let known = u32::try_from(cpu).ok().filter(|cpu| *cpu < target.config().cpus);
        let cpu = known.ok_or_else(|| QmpError::generic("Parameter 'cpu-index' expects a CPU number"))?;
        save(target, hmp::Space::Virtual(cpu), args)
    }),
    ("netdev_add", &["type: str", "id: str", ANY], |target, args| {
        plug(target, PlugRequest::AddNetdev(hotplug::said(args.rest())))
    }),
    ("netdev_del", &["id: str"], |target, args| plug(target, PlugRequest::RemoveNetdev(args.string("id")?))),
    ("pmemsave", &["val: int", "size: int", "filename: str"], |target, args| {
        save(target, hmp::Space::Physical, args)
    }),
    ("qom-get", &["path: str", "property: str"], |target, args| {
        let (path, property) = (args.string("path")?, args.string("property")?);
        qom::get(target, &path, &property).map(Reply::of)
    }),
    ("qom-list", &["path: str"], |target, args| qom::list(target, &args.string("path")?).map(Reply::of)),
    ("query-balloon", &[], |target, _| match target.balloon() {
        Some(bytes) => Ok(Reply::of(json!({ "actual": bytes }))),
        None => Err(no_balloon()),
    }),
    ("query-block", &[], query!(query::block::devices)),
    ("query-block-exports", &[], none!()),
    ("query-block-jobs", &[], none!()),
    ("query-blockstats", &["query-nodes?: bool"], query!(query::block::stats)),
    ("query-chardev", &[], query!(query::chardev)),
    ("query-chardev-backends", &[], query!(query::chardev_backends)),
    ("query-commands", &[], |_, _| Ok(Reply::of(names()))),
    ("query-cpu-definitions", &[], query!(query::cpu_definitions)),
    ("query-cpus-fast", &[], query!(query::cpus_fast)),
    ("query-current-machine", &[], |_, _| Ok(Reply::of(json!({ "wakeup-suspend-support": false })))),
    ("query-display-options", &[], |_, _| Ok(Reply::of(json!({ "type": "none" })))),
    ("query-fdsets", &[], none!()),
    ("query-gic-capabilities", &[], query!(query::gic_capabilities)),
    ("query-hotpluggable-cpus", &[], refuse!("The feature 'query-hotpluggable-cpus' is not enabled")),
    ("query-iothreads", &[], none!()),
    ("query-jobs", &[], none!()),
    ("query-kvm", &[], query!(query::kvm)),
    ("query-machines", &[], query!(query::machines)),
    ("query-memdev", &[], query!(query::memdev)),
    ("query-memory-devices", &[], none!()),
    ("query-memory-size-summary", &[], query!(query::memory_size_summary)),
    ("query-mice", &[], none!()),
    ("query-migrate", &[], |_, _| Ok(Reply::of(json!({})))),
    ("query-name", &[], query!(query::name)),
    ("query-named-block-nodes", &["flat?: bool"], query!(query::block::nodes)),
    ("query-pci", &[], query!(query::pci)),
    ("query-pr-managers", &[], none!()),
    ("query-qmp-schema", &[], |_, _| Ok(Reply::of(schema::schema()))),
    ("query-rx-filter", &["name?: str"], rx_filter),
    ("query-spice", &[], |_, _| {
        Ok(Reply::of(json!({ "enabled": false, "migrated": false, "mouse-mode": "client" })))
    }),
    ("query-status", &[], query!(query::status)),
    ("query-target", &[], query!(query::target)),
    ("query-tpm", &[], none!()),
    ("query-tpm-models", &[], none!()),
    ("query-tpm-types", &[], none!()),
    ("query-uuid", &[], query!(query::uuid)),
    ("query-version", &[], |_, _| Ok(Reply::of(super::version()))),
    ("query-vnc", &[], |_, _| Ok(Reply::of(json!({ "enabled": false })))),
    ("query-vnc-servers", &[], none!()),
    ("quit", &[], |_, _| Ok(Reply::empty(Then::Quit))),
    (
        "screendump",
        &["filename: str", "device?: str", "head?: int", "format?: ImageFormat"],
        refuse!(NO_CONSOLE),
    ),
    ("send-key", &["keys: [any]", "hold-time?: int"], refuse!(NO_INPUT)),
    ("set_link", &["name: str", "up: bool"], set_link),
    ("stop", &[], |target, _| {
        target.pause();
        Ok(Reply::empty(Then::Go))
    }),
    ("system_powerdown", &[], |_, _| Ok(Reply::empty(Then::PowerDown))),
    ("system_reset", &[], |_, _| Ok(Reply::empty(Then::Reset))),
    ("system_wakeup", &[], refuse!(NO_WAKEUP)),
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
    match Args::new(arguments, &["enable?: [QMPCapability]"])?.strings("enable")?.first() {
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

fn no_balloon() -> QmpError {
    QmpError { class: "DeviceNotActive", desc: names::NO_BALLOON.to_owned() }
}

fn balloon(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let value = args.number("value")?;
    match (target.balloon(), u64::try_from(value).ok().filter(|bytes| *bytes > 0)) {
        (None, _) => Err(no_balloon()),
        (_, None) => Err(QmpError::generic("Parameter 'target' expects a size")),
        (_, Some(bytes)) => {
            target.set_balloon(bytes);
            Ok(Reply::empty(Then::Go))
        }
    }
}

fn block_resize(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let (device, node, size) =
        (args.string_or_none("device")?, args.string_or_none("node-name")?, args.number("size")?);
    let Some(name) = device.or(node) else {
        return Err(QmpError::generic("Need exactly one of 'device' and 'node-name'"));
    };
    let Ok(size) = u64::try_from(size) else {
        return Err(QmpError::generic("Parameter 'size' expects a >0 size"));
    };
    match target.resize(&name, size) {
        Ok(()) => Ok(Reply::empty(Then::Go)),
        Err(error) => Err(QmpError::generic(error)),
    }
}

/// `eject` and `blockdev-change-medium`: no disk here has a medium that could be taken out.
fn no_medium(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let (device, id) = (args.string_or_none("device")?, args.string_or_none("id")?);
    let Some(name) = device.or(id) else {
        return Err(QmpError::generic("Need exactly one of 'device' and 'id'"));
    };
    let disks = target.disks();
    let is_meant = |disk: &&_| {
        let disk: &super::super::target::DiskFacts = disk;
        disk.names.drive == name || disk.config.device.as_deref() == Some(&name)
    };
    match disks.iter().find(is_meant) {
        Some(disk) => Err(QmpError::generic(format!("Device '{}' is not removable", disk.names.drive))),
        None => Err(QmpError::no_device(&name)),
    }
}

/// Whether there is a character device called `id`; if not, the answer.
fn known_chardev(target: &dyn Target, id: &str) -> Result<(), QmpError> {
    match names::chardevs(target).iter().any(|(label, _)| label == id) {
        true => Ok(()),
        false => Err(QmpError::generic(format!("Chardev '{id}' not found"))),
    }
}

fn chardev_change(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let id = args.string("id")?;
    args.any("backend")?;
    known_chardev(target, &id)?;
    Err(QmpError::generic(NO_CHARDEV))
}

fn chardev_remove(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let id = args.string("id")?;
    known_chardev(target, &id)?;
    Err(QmpError::generic(format!("Chardev '{id}' is busy")))
}

/// Only the serial port knows what a break is.
fn chardev_send_break(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let id = args.string("id")?;
    known_chardev(target, &id)?;
    if id == "serial0" {
        target.send_break();
    }
    Ok(Reply::empty(Then::Go))
}

/// `memsave` and `pmemsave`.
fn save(target: &dyn Target, space: hmp::Space, args: &mut Args) -> Result<Reply, QmpError> {
    let (address, size, file) = (args.number("val")?, args.number("size")?, args.string("filename")?);
    let (Ok(address), Ok(size)) = (u64::try_from(address), u64::try_from(size)) else {
        return Err(QmpError::generic("Parameters 'val' and 'size' expect numbers that are not negative"));
    };
    match hmp::save(target, space, (address, size), Path::new(&file)) {
        Ok(()) => Ok(Reply::empty(Then::Go)),
        Err(error) => Err(QmpError::generic(error)),
    }
}

fn rx_filter(target: &dyn Target, args: &mut Args) -> Result<Reply, QmpError> {
    let name = args.string_or_none("name")?;
    let cards = query::rx_filters(target, name.as_deref());
    match (cards.is_empty(), name) {
        (true, Some(name)) => Err(QmpError::generic(format!("invalid net client name: {name}"))),
        _ => Ok(Reply::of(Value::Array(cards))),
    }
}
