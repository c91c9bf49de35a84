//! The commands that people type: one table says what they are called, what they take, and what they do. Their words for errors are
//! QEMU's.

use std::fmt::Write;
use std::path::Path;

use hvrun_devices::backend::net::user::HostForward;

use super::super::target::{ForwardError, Target};
use super::super::{hotplug, names};
use super::info;
use super::memory::{self, Space};
use super::words;

/// What a command says, and what happens behind its answer.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::monitor) struct Answer {
    pub(in crate::monitor) text: String,
    pub(in crate::monitor) then: Then,
}

/// See [`Answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::monitor) enum Then {
    /// The next command.
    Go,
    /// The machine's end.
    Quit,
}

impl Answer {
    pub(in crate::monitor) fn text(text: impl Into<String>) -> Self {
        Answer { text: text.into(), then: Then::Go }
    }

    pub(in crate::monitor) fn error(error: impl std::fmt::Display) -> Self {
        Answer::text(format!("Error: {error}\n"))
    }
}

/// A command.
pub(super) struct Command {
    /// Its name, and others that it has.
    pub(super) names: &'static [&'static str],
    /// What it takes, for people.
    pub(super) takes: &'static str,
    pub(super) about: &'static str,
    /// How many words it takes.
    pub(super) least: usize,
    pub(super) most: usize,
    pub(super) run: fn(&dyn Target, &[String]) -> Answer,
}

const fn command(
    names: &'static [&'static str],
    takes: &'static str,
    about: &'static str,
    (least, most): (usize, usize),
    run: fn(&dyn Target, &[String]) -> Answer,
) -> Command {
    Command { names, takes, about, least, most, run }
}

/// Every command, by name.
static COMMANDS: &[Command] = &[
    command(&["balloon"], "target", "request VM to change its memory allocation (in MB)", (1, 1), balloon),
    command(&["block_resize"], "device size", "resize a block image (size in MB)", (2, 2), block_resize),
    command(&["change"], "device filename", "change a removable medium", (2, 4), no_medium),
    command(&["cont", "c"], "", "resume emulation", (0, 0), |target, _| match target.resume() {
        true => Answer::text(""),
        false => Answer::error(names::NEEDS_RESET),
    }),
    command(
        &["device_add"],
        "driver[,prop=value][,...]",
        "add device, like -device on the command line",
        (1, 1),
        hotplug::device_add,
    ),
    command(&["device_del"], "device", "remove device", (1, 1), hotplug::device_del),
    command(
        &["drive_add"],
        "[-n] [[<domain>:]<bus>:]<slot> [file=file][,if=type][,readonly=on|off]...",
        "add drive, to be used by device_add",
        (2, 3),
        hotplug::drive_add,
    ),
    command(&["drive_del"], "device", "remove host block device", (1, 1), hotplug::drive_del),
    command(&["eject"], "[-f] device", "eject a removable medium", (1, 2), no_medium),
    command(&["help", "?"], "[cmd]", "show the help", (0, 2), help),
    command(
        &["hostfwd_add"],
        "[netdev_id] [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport",
        "redirect TCP or UDP connections from host to guest",
        (1, 2),
        hostfwd_add,
    ),
    command(
        &["hostfwd_remove"],
        "[netdev_id] [tcp|udp]:[hostaddr]:hostport",
        "remove a redirection from host to guest",
        (1, 2),
        hostfwd_remove,
    ),
    command(&["info"], "[subcommand]", "show various information about the system state", (0, 2), info),
    command(
        &["memsave"],
        "addr size file",
        "save to disk virtual memory dump starting at 'addr' of size 'size'",
        (3, 3),
        |target, args| save(target, Space::Virtual(0), args),
    ),
    command(
        &["netdev_add"],
        "[user|tap|socket|stream|dgram|vde],id=str[,prop=value][,...]",
        "add host network device",
        (1, 1),
        hotplug::netdev_add,
    ),
    command(&["netdev_del"], "id", "remove host network device", (1, 1), hotplug::netdev_del),
    command(&["nmi"], "", "inject an NMI", (0, 0), |_, _| Answer::error(names::UNSUPPORTED)),
    command(
        &["pmemsave"],
        "addr size file",
        "save to disk physical memory dump starting at 'addr' of size 'size'",
        (3, 3),
        |target, args| save(target, Space::Physical, args),
    ),
    command(&["quit", "q"], "", "quit the emulator", (0, 0), |_, _| Answer {
        text: String::new(),
        then: Then::Quit,
    }),
    command(&["set_link"], "name on|off", "change the link status of a network adapter", (2, 2), set_link),
    command(&["stop", "s"], "", "stop emulation", (0, 0), |target, _| {
        target.pause();
        Answer::text("")
    }),
    command(&["system_powerdown"], "", "send system power down event", (0, 0), |target, _| {
        target.power_button();
        Answer::text("")
    }),
    command(&["system_reset"], "", "reset the system", (0, 0), |target, _| {
        target.reset();
        Answer::text("")
    }),
    command(&["system_wakeup"], "", "wakeup guest from suspend", (0, 0), |_, _| Answer::error(NO_WAKEUP)),
    command(
        &["x"],
        "/fmt addr",
        "virtual memory dump starting at 'addr' (of CPU 0)",
        (0, 2),
        |target, args| Answer::text(memory::show(target, "x", Space::Virtual(0), args)),
    ),
    command(&["xp"], "/fmt addr", "physical memory dump starting at 'addr'", (0, 2), |target, args| {
        Answer::text(memory::show(target, "xp", Space::Physical, args))
    }),
];

const NO_DISPLAY: &str = "There is no display";
const NO_KEYBOARD: &str = "There is no keyboard";
const NO_MOUSE: &str = "There is no mouse";
const NO_HOTPLUG: &str = "only disks and network cards can be added to or taken from a running machine";
const NO_WAKEUP: &str = "wake-up from suspend is not supported by this guest";
const NO_SNAPSHOT: &str = "snapshots of a machine are not there yet";

/// Commands of QEMU that are refused, each with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("chardev-add", NO_HOTPLUG),
    ("chardev-remove", NO_HOTPLUG),
    ("delvm", NO_SNAPSHOT),
    ("gdbserver", "a debugger's server is not there yet"),
    ("loadvm", NO_SNAPSHOT),
    ("migrate", "a machine cannot move to another host yet"),
    ("mouse_button", NO_MOUSE),
    ("mouse_move", NO_MOUSE),
    ("mouse_set", NO_MOUSE),
    ("object_add", NO_HOTPLUG),
    ("object_del", NO_HOTPLUG),
    ("savevm", NO_SNAPSHOT),
    ("screendump", NO_DISPLAY),
    ("sendkey", NO_KEYBOARD),
];

/// Does what `line` says.
pub(in crate::monitor) fn execute(target: &dyn Target, line: &str) -> Answer {
    let Ok(words) = words::split(line) else {
        return Answer::text("unterminated string literal\n");
    };
    let Some((name, args)) = words.split_first() else { return Answer::text("") };
    // QEMU allows a format behind a slash, such as x/4w.
    let (name, format) = match name.find('/') {
        Some(at) => name.split_at(at),
        None => (name.as_str(), ""),
    };
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return Answer::error(format_args!("{name}: {why}"));
    }
    let args: Vec<String> = Some(format.to_owned())
        .filter(|format| !format.is_empty())
        .into_iter()
        .chain(args.iter().cloned())
        .collect();
    match COMMANDS.iter().find(|command| command.names.contains(&name)) {
        None => Answer::text(format!("unknown command: '{name}'\n")),
        Some(command) => run(target, command, &args),
    }
}

fn run(target: &dyn Target, command: &Command, args: &[String]) -> Answer {
    let name = command.names.first().copied().unwrap_or_default();
    let wrong = if args.len() < command.least {
        "string expected"
    } else if args.len() > command.most {
        "extraneous characters at the end of line"
    } else {
        return (command.run)(target, args);
    };
    Answer::text(format!("{name}: {wrong}\nTry \"help {name}\" for more information\n"))
}

/// A command's line of the help.
fn describe(text: &mut String, prefix: &str, command: &Command) {
    let names = command.names.join("|");
    let blank = if command.takes.is_empty() { "" } else { " " };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{prefix}{names}{blank}{} -- {}", command.takes, command.about);
}

fn help(_target: &dyn Target, args: &[String]) -> Answer {
    let mut text = String::new();
    match args.first().map(String::as_str) {
        None => COMMANDS.iter().for_each(|command| describe(&mut text, "", command)),
        Some("info") => return Answer::text(info::help(args.get(1).map(String::as_str))),
        Some(name) => {
            let named = COMMANDS.iter().filter(|command| command.names.contains(&name));
            named.for_each(|command| describe(&mut text, "", command));
        }
    }
    Answer::text(text)
}

fn info(target: &dyn Target, args: &[String]) -> Answer {
    let Some((name, args)) = args.split_first() else { return Answer::text(info::help(None)) };
    Answer::text(match info::TOPICS.iter().find(|topic| topic.name == name) {
        None => format!("unknown command: 'info {name}'\n"),
        Some(topic) if !args.is_empty() && topic.takes.is_empty() => format!(
            "info {name}: extraneous characters at the end of line\nTry \"help info {name}\" for more information\n"
        ),
        Some(topic) => (topic.show)(target, args.first().map(String::as_str)),
    })
}

fn set_link(target: &dyn Target, args: &[String]) -> Answer {
    let [name, state] = args else { return Answer::text("") };
    let up = match state.as_str() {
        "on" => true,
        "off" => false,
        _ => return Answer::error("Parameter 'up' expects 'on' or 'off'"),
    };
    match target.set_link(name, up) {
        true => Answer::text(""),
        false => Answer::error(format_args!("Device '{name}' not found")),
    }
}

fn balloon(target: &dyn Target, args: &[String]) -> Answer {
    let bytes = args.first().and_then(|text| size(text)).filter(|bytes| *bytes > 0);
    match (target.balloon(), bytes) {
        (None, _) => Answer::error(names::NO_BALLOON),
        (_, None) => Answer::error("Parameter 'target' expects a size"),
        (_, Some(bytes)) => {
            target.set_balloon(bytes);
            Answer::text("")
        }
    }
}

fn block_resize(target: &dyn Target, args: &[String]) -> Answer {
    let [device, bytes] = args else { return Answer::text("") };
    let Some(bytes) = size(bytes) else { return Answer::error("Parameter 'size' expects a size") };
    match target.resize(device, bytes) {
        Ok(()) => Answer::text(""),
        Err(error) => Answer::error(error),
    }
}

/// A size as people type it: in MiB, or with a suffix.
fn size(text: &str) -> Option<u64> {
    let suffixes = [('b', 0), ('k', 10), ('m', 20), ('g', 30), ('t', 40)];
    let last = text.chars().last()?.to_ascii_lowercase();
    let (digits, shift) = match suffixes.iter().find(|(suffix, _)| *suffix == last) {
        Some((_, shift)) => (text.get(..text.len() - 1)?, *shift),
        None => (text, 20),
    };
    memory::number(digits)?.checked_mul(1 << shift)
}

/// `eject` and `change`: no disk here has a medium that could be taken out.
fn no_medium(target: &dyn Target, args: &[String]) -> Answer {
    let device = args.iter().find(|arg| !arg.starts_with('-')).map(String::as_str).unwrap_or_default();
    match target.disks().iter().any(|disk| disk.names.drive == device) {
        true => Answer::error(format_args!("Device '{device}' is not removable")),
        false => Answer::error(format_args!("Device '{device}' not found")),
    }
}

/// `memsave` and `pmemsave`.
fn save(target: &dyn Target, space: Space, args: &[String]) -> Answer {
    let [address, size, file] = args else { return Answer::text("") };
    let (Some(address), Some(size)) = (memory::number(address), memory::number(size)) else {
        return Answer::error("Parameters 'addr' and 'size' expect numbers");
    };
    match memory::save(target, space, (address, size), Path::new(file)) {
        Ok(()) => Answer::text(""),
        Err(error) => Answer::error(error),
    }
}

/// The network that is meant, if one is named, and what is said of it.
fn forwarding(args: &[String]) -> (Option<&str>, &str) {
    match args {
        [netdev, rule, ..] => (Some(netdev), rule),
        [rule] => (None, rule),
        [] => (None, ""),
    }
}

fn no_network(netdev: Option<&str>) -> Answer {
    match netdev {
        Some(name) => Answer::text(format!("Device '{name}' not found or no user mode network\n")),
        None => Answer::text("user mode network stack not in use\n"),
    }
}

fn hostfwd_add(target: &dyn Target, args: &[String]) -> Answer {
    let (netdev, rule) = forwarding(args);
    let forward: HostForward = match rule.parse() {
        Ok(forward) => forward,
        Err(error) => return Answer::error(format_args!("Invalid host forwarding rule '{rule}' ({error})")),
    };
    match target.add_forward(netdev, &forward) {
        Ok(()) => Answer::text(""),
        Err(ForwardError::NoNetwork) => no_network(netdev),
        Err(ForwardError::Failed(why)) => {
            Answer::error(format_args!("Could not set up host forwarding rule '{rule}' ({why})"))
        }
    }
}

fn hostfwd_remove(target: &dyn Target, args: &[String]) -> Answer {
    let (netdev, rule) = forwarding(args);
    // A rule without its guest's half; a whole one is taken, too.
    let host = rule.split('-').next().unwrap_or_default();
    let Ok(forward) = format!("{host}-:1").parse::<HostForward>() else {
        return Answer::text("invalid format\n");
    };
    match target.remove_forward(netdev, forward.protocol, forward.host) {
        Ok(()) => Answer::text(format!("host forwarding rule for {rule} removed\n")),
        Err(ForwardError::NoNetwork) => no_network(netdev),
        Err(ForwardError::Failed(_)) => Answer::text(format!("host forwarding rule for {rule} not found\n")),
    }
}
