//! Where serial port, consoles, ports and monitors go: `-chardev`, `-serial`, `-monitor`, `-qmp`, `-mon`.

use std::path::PathBuf;

use hvrun_vmm::serial::ChardevConfig;
use hvrun_vmm::{MachineConfig, MonitorConfig, MonitorKind, MonitorPlace};

use super::command::{Command, Given};
use super::nearest::did_you_mean;
use super::opts::{Opts, Refusal};
use super::registry::Registry;
use super::table::Id;

/// Back-ends that `-chardev` has here.
pub const BACKENDS: [&str; 6] = ["socket", "file", "pty", "stdio", "null", "vc"];
/// Back-ends of QEMU that are refused, each with what would work.
const OTHER_BACKENDS: [(&str, &str); 6] = [
    ("pipe", "use socket,path=PATH"),
    ("udp", "use socket,path=PATH"),
    ("serial", "devices of the host cannot be handed through; use pty"),
    ("parallel", "this machine has no parallel port"),
    ("ringbuf", "use file,path=PATH"),
    ("memory", "use file,path=PATH"),
];
/// How `-serial` and its like are written.
const FORMS: &str =
    "it can be stdio, file:PATH, unix:PATH[,server=on,wait=off], pty, null, none, vc or chardev:ID";
const NO_TCP: &str = "TCP sockets are not there; use a unix socket (path=PATH or unix:PATH)";

/// A place as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    To(ChardevConfig),
    /// A console in a window of QEMU.
    Window,
}

impl Place {
    /// The same where there are no windows.
    fn without_window(self) -> ChardevConfig {
        match self {
            Place::To(to) => to,
            Place::Window => {
                log::debug!("there are no windows; what goes into one vanishes");
                ChardevConfig::None
            }
        }
    }
}

/// What `-chardev` defines.
#[derive(Debug)]
pub struct Chardev {
    place: Place,
    /// Several may use it.
    mux: bool,
    users: Vec<User>,
}

/// Who uses a chardev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    Serial,
    Device,
    Monitor,
}

/// All of them.
#[derive(Debug)]
pub struct Chardevs(Registry<Chardev>);

impl Chardevs {
    /// Reads the definitions.
    pub fn read(command: &Command) -> Result<Chardevs, Refusal> {
        let mut registry = Registry::new("chardev");
        for given in command.each(Id::Chardev) {
            let mut opts = given.opts()?;
            let id = opts.needed("id")?;
            let mux = opts.switch("mux")?.unwrap_or(false);
            let place = backend(&mut opts)?;
            opts.clone().finish()?;
            registry.insert(&opts, id, Chardev { place, mux, users: Vec::new() })?;
        }
        Ok(Chardevs(registry))
    }

    /// The place called `id`, for a console or port.
    pub fn for_device(&mut self, id: &str, opts: &Opts) -> Result<ChardevConfig, Refusal> {
        self.claim(id, opts, User::Device).map(Place::without_window)
    }

    /// The socket of the chardev called `id`, at which the back end of a device listens.
    pub fn for_back_end(&mut self, id: &str, opts: &Opts) -> Result<PathBuf, Refusal> {
        match self.claim(id, opts, User::Device)? {
            // One that has gone is looked for again whenever the guest is reset.
            Place::To(ChardevConfig::UnixConnect(path) | ChardevConfig::UnixReconnect { path, .. }) => {
                Ok(path)
            }
            Place::To(ChardevConfig::Unix(_) | ChardevConfig::UnixWait(_)) => Err(opts
                .refuse(format_args!("chardev '{id}': the device's back end listens; leave server=on out"))),
            _ => Err(opts.refuse(format_args!(
                "chardev '{id}' is no socket; use '-chardev socket,id={id},path=PATH'"
            ))),
        }
    }

    fn claim(&mut self, id: &str, opts: &Opts, user: User) -> Result<Place, Refusal> {
        let chardev = self.0.share(id, opts)?;
        if !chardev.users.is_empty() {
            let why = match chardev.mux {
                true => "only the serial port and a monitor can share a chardev",
                false => "something else uses it; mux=on lets the serial port and a monitor share it",
            };
            return Err(opts.refuse(format_args!("chardev '{id}': {why}")));
        }
        chardev.users.push(user);
        Ok(chardev.place.clone())
    }

    /// The place called `id`, for a monitor: that of the serial port, or one of its own.
    fn for_monitor(&mut self, id: &str, opts: &Opts) -> Result<MonitorPlace, Refusal> {
        let chardev = self.0.share(id, opts)?;
        if chardev.mux && chardev.users == [User::Serial] {
            chardev.users.push(User::Monitor);
            return Ok(MonitorPlace::Serial);
        }
        let place = self.claim(id, opts, User::Monitor)?;
        Ok(MonitorPlace::Own(place.without_window()))
    }

    /// Says which ones nobody uses.
    pub fn warn_of_unused(&self) {
        self.0.warn_of_unused();
    }
}

/// What is behind a `-chardev`, by its keys.
fn backend(opts: &mut Opts) -> Result<Place, Refusal> {
    let kind = opts.needed("backend")?;
    opts.unsupported(&["logfile", "logappend"], "use file,path=PATH instead of a copy of the output")?;
    match kind.as_str() {
        "socket" => socket(opts).map(Place::To),
        "file" => {
            opts.unsupported(&["input-path"], "a file takes output only")?;
            let path = opts.needed("path")?.into();
            let append = opts.switch("append")?.unwrap_or(false);
            Ok(Place::To(if append { ChardevConfig::FileAppend(path) } else { ChardevConfig::File(path) }))
        }
        "pty" => {
            opts.unsupported(&["path"], "the log names the terminal's path; no link is made to it")?;
            Ok(Place::To(ChardevConfig::Pty))
        }
        "stdio" => {
            // On a terminal, Ctrl-C always goes to the guest and Ctrl-A X ends the machine.
            opts.without_effect(&["signal"]);
            Ok(Place::To(ChardevConfig::Stdio))
        }
        "null" => Ok(Place::To(ChardevConfig::None)),
        "vc" => {
            opts.without_effect(&["width", "height", "cols", "rows"]);
            Ok(Place::Window)
        }
        other => Err(unknown_backend(opts, other)),
    }
}

fn unknown_backend(opts: &Opts, name: &str) -> Refusal {
    match OTHER_BACKENDS.iter().find(|(known, _)| *known == name) {
        Some((_, why)) => opts.refuse(format_args!("chardev '{name}' is not supported: {why}")),
        None => opts
            .refuse(format_args!("there is no chardev '{name}'{}", did_you_mean(name, BACKENDS.into_iter()))),
    }
}

/// A socket, by its keys.
fn socket(opts: &mut Opts) -> Result<ChardevConfig, Refusal> {
    opts.unsupported(&["host", "port", "to", "ipv4", "ipv6"], NO_TCP)?;
    opts.unsupported(&["fd"], "name the socket by path=PATH")?;
    opts.unsupported(&["tls-creds", "tls-authz", "websocket"], "a socket carries plain bytes")?;
    for key in ["telnet", "tn3270", "abstract"] {
        opts.only(key, &["off"])?;
    }
    opts.without_effect(&["tight", "nodelay", "delay"]);
    let path = opts.needed("path")?.into();
    let server = opts.switch("server")?.unwrap_or(false);
    let wait = opts.switch("wait")?;
    let seconds = opts.number("reconnect")?.unwrap_or(0);
    let millis = opts.number("reconnect-ms")?.unwrap_or(0);
    let reconnect = seconds.saturating_add(millis.div_ceil(1000));
    match (server, reconnect) {
        (true, 0) if wait.unwrap_or(true) => Ok(ChardevConfig::UnixWait(path)),
        (true, 0) => Ok(ChardevConfig::Unix(path)),
        (true, _) => {
            Err(opts.refuse("'reconnect' is for a client; with server=on, clients may come and go anyway"))
        }
        (false, 0) => Ok(ChardevConfig::UnixConnect(path)),
        (false, _) if wait == Some(true) => Err(opts.refuse("'wait' is for a server; add server=on")),
        (false, seconds) => match u32::try_from(seconds) {
            Ok(seconds) => Ok(ChardevConfig::UnixReconnect { path, seconds }),
            Err(_) => Err(opts.refuse(format_args!("reconnect={seconds}: that is too long to wait for"))),
        },
    }
}

/// A place as `-serial` and its like have it, without the forms that only some of them have.
fn legacy(given: &Given, text: &str) -> Result<Place, Refusal> {
    let to = match text.split_once(':') {
        None if text == "stdio" => ChardevConfig::Stdio,
        None if text == "pty" => ChardevConfig::Pty,
        None if text == "null" => ChardevConfig::None,
        None if text == "vc" => return Ok(Place::Window),
        Some(("vc", _)) => return Ok(Place::Window),
        Some(("file", path)) if !path.is_empty() => ChardevConfig::File(path.into()),
        Some(("unix", rest)) => {
            let mut opts = Opts::parse(&format!("{} unix:", given.option), rest, Some("path"))?;
            let to = socket(&mut opts)?;
            opts.finish()?;
            to
        }
        Some(("tcp" | "telnet" | "websocket", _)) => return Err(given.refuse(NO_TCP)),
        Some(("udp", _)) => return Err(given.refuse("UDP sockets are not there; use unix:PATH")),
        Some(("pipe", _)) => return Err(given.refuse("pipes are not there; use unix:PATH")),
        _ if text.starts_with("/dev/") => {
            return Err(given.refuse("devices of the host cannot be handed through; use pty"));
        }
        _ => return Err(given.refuse(FORMS)),
    };
    Ok(Place::To(to))
}

/// Connects the serial port and the monitors. The devices have taken their chardevs before.
pub fn connect(
    command: &Command,
    chardevs: &mut Chardevs,
    config: &mut MachineConfig,
) -> Result<(), Refusal> {
    parallel(command)?;
    let defaults = !command.has(Id::Nodefaults);
    let serial = serial(command, chardevs, config)?;
    let named = named_monitors(command, chardevs)?;
    let said = command.has(Id::Monitor)
        || command.has(Id::Qmp)
        || command.has(Id::QmpPretty)
        || command.has(Id::Mon);
    config.monitors.extend(named);
    let nographic = command.has(Id::Nographic);
    config.serial = match serial {
        Some(Place::To(to)) => to,
        None if !defaults => ChardevConfig::None,
        None if nographic => {
            // QEMU's default monitor. Without -nographic it is in a window, so there is none.
            if !said && config.monitors.is_empty() && !config.is_on_stdio_without_serial() {
                let (kind, to) = (MonitorKind::Hmp, MonitorPlace::Serial);
                config.monitors.push(MonitorConfig { kind, to, pretty: false });
            }
            stdio_if_free(config)
        }
        Some(Place::Window) | None if has_window(command)? => stdio_if_free(config),
        Some(Place::Window) | None => ChardevConfig::None,
    };
    Ok(())
}

/// Standard streams, unless something else is there.
fn stdio_if_free(config: &MachineConfig) -> ChardevConfig {
    if config.is_on_stdio_without_serial() { ChardevConfig::None } else { ChardevConfig::Stdio }
}

/// Whether QEMU would open a window, in which a person would look for the serial port. There are none here, so it goes to stdio.
fn has_window(command: &Command) -> Result<bool, Refusal> {
    if command.has(Id::Nographic) {
        return Ok(false);
    }
    let Some(given) = command.last(Id::Display) else { return Ok(true) };
    Ok(given.opts()?.text("type")?.as_deref() != Some("none"))
}

fn parallel(command: &Command) -> Result<(), Refusal> {
    match command.each(Id::Parallel).find(|given| given.argument != "none" && given.argument != "null") {
        Some(given) => Err(given.refuse("this machine has no parallel port; use none")),
        None => Ok(()),
    }
}

/// What `-serial` says; pushes a monitor for `mon:`.
fn serial(
    command: &Command,
    chardevs: &mut Chardevs,
    config: &mut MachineConfig,
) -> Result<Option<Place>, Refusal> {
    let mut place = None;
    for (number, given) in command.each(Id::Serial).enumerate() {
        let (text, monitor) = match given.argument.strip_prefix("mon:") {
            Some(text) => (text, true),
            None => (given.argument.as_str(), false),
        };
        if number > 0 {
            match text {
                "none" | "null" => continue,
                _ => {
                    return Err(
                        given.refuse("this machine has one serial port; use -device virtconsole for more")
                    );
                }
            }
        }
        place = Some(match text.split_once(':') {
            Some(("chardev", id)) => chardevs.claim(id, &given.opts()?, User::Serial)?,
            None if text == "none" => Place::To(ChardevConfig::None),
            _ => legacy(given, text)?,
        });
        if monitor {
            let (kind, to) = (MonitorKind::Hmp, MonitorPlace::Serial);
            config.monitors.push(MonitorConfig { kind, to, pretty: false });
        }
    }
    Ok(place)
}

/// `-monitor`, `-qmp` and `-mon`, in their order.
fn named_monitors(command: &Command, chardevs: &mut Chardevs) -> Result<Vec<MonitorConfig>, Refusal> {
    let mut monitors = Vec::new();
    for given in &command.given {
        let kind = match given.id {
            Id::Monitor => MonitorKind::Hmp,
            Id::Qmp | Id::QmpPretty => MonitorKind::Qmp,
            Id::Mon => {
                monitors.push(mon(given, chardevs)?);
                continue;
            }
            _ => continue,
        };
        let to = match given.argument.split_once(':') {
            None if given.argument == "none" || given.argument == "null" => continue,
            Some(("chardev", id)) => chardevs.for_monitor(id, &given.opts()?)?,
            _ => match legacy(given, &given.argument)? {
                Place::To(to) => MonitorPlace::Own(to),
                // Nobody could reach it.
                Place::Window => continue,
            },
        };
        monitors.push(MonitorConfig { kind, to, pretty: given.id == Id::QmpPretty });
    }
    Ok(monitors)
}

fn mon(given: &Given, chardevs: &mut Chardevs) -> Result<MonitorConfig, Refusal> {
    let mut opts = given.opts()?;
    let kind = match opts.text("mode")?.as_deref() {
        None | Some("readline") => MonitorKind::Hmp,
        Some("control") => MonitorKind::Qmp,
        Some(other) => return Err(opts.refuse(format_args!("mode={other}: it can be readline or control"))),
    };
    let pretty = opts.switch("pretty")?.unwrap_or(false);
    if pretty && kind == MonitorKind::Hmp {
        return Err(opts.refuse("'pretty' is for mode=control"));
    }
    opts.without_effect(&["id"]);
    let chardev = opts.needed("chardev")?;
    let to = chardevs.for_monitor(&chardev, &opts)?;
    opts.finish()?;
    Ok(MonitorConfig { kind, to, pretty })
}
