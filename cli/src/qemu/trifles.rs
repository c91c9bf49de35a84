//! Options whose values are checked and then make no difference to the guest: names, displays, clocks and so on.

use hvrun_vmm::MachineConfig;

use super::command::Command;
use super::devices;
use super::nearest::did_you_mean;
use super::opts::Refusal;
use super::table::Id;

/// Types of `-display`.
pub const DISPLAYS: [&str; 9] =
    ["none", "gtk", "sdl", "cocoa", "curses", "egl-headless", "dbus", "spice-app", "default"];
/// Names of `-vga`.
const CARDS: [&str; 8] = ["none", "std", "virtio", "cirrus", "vmware", "qxl", "tcx", "cg3"];

/// Takes names, and refuses what no QEMU would take either.
pub fn apply(command: &Command, config: &mut MachineConfig) -> Result<(), Refusal> {
    names(command, config)?;
    display(command)?;
    clock(command)?;
    for given in command.each(Id::Global) {
        let mut opts = given.opts()?;
        let driver = match given.argument.split_once('=') {
            // `driver=NAME,property=KEY,value=VALUE`.
            Some(("driver", _)) | None => {
                opts.without_effect(&["property", "value"]);
                let driver = opts.needed("driver")?;
                opts.finish()?;
                driver
            }
            Some((key, _)) => match key.rsplit_once('.') {
                Some((driver, _)) => driver.to_owned(),
                None => return Err(given.refuse("it has to be DEVICE.KEY=VALUE")),
            },
        };
        if !devices::is_known(&driver) {
            return Err(
                given.refuse(format_args!("there is no device '{driver}'; '-device help' names them"))
            );
        }
        log::debug!("-global {} makes no difference here", given.argument);
    }
    only(command, Id::Echr, &["1", "0x1", "0x01"], "the escape key is Ctrl-A (1)")?;
    only(command, Id::Sandbox, &["off", "enable=off"], "there is no sandbox; it can be off")?;
    only(command, Id::Vnc, &["none"], "displays are not there yet; it can be none")?;
    for given in command.each(Id::Audiodev) {
        let mut opts = given.opts()?;
        opts.only("driver", &["none"])?;
        opts.without_effect(&["id", "timer-period", "model"]);
        opts.rest(&[]);
    }
    Ok(())
}

/// An option that may only have one of `values`.
fn only(command: &Command, id: Id, values: &[&str], why: &str) -> Result<(), Refusal> {
    match command.each(id).find(|given| !values.contains(&given.argument.as_str())) {
        Some(given) => Err(given.refuse(why)),
        None => Ok(()),
    }
}

fn names(command: &Command, config: &mut MachineConfig) -> Result<(), Refusal> {
    if let Some(mut opts) = command.merged(Id::Name)? {
        config.name = opts.text("guest")?.filter(|name| !name.is_empty());
        opts.without_effect(&["process", "debug-threads"]);
        opts.finish()?;
    }
    for given in command.each(Id::Uuid) {
        let groups: Vec<usize> = given.argument.split('-').map(str::len).collect();
        let digits = given.argument.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if groups != [8, 4, 4, 4, 12] || !digits {
            return Err(given.refuse("a UUID has the form 550e8400-e29b-41d4-a716-446655440000"));
        }
        config.uuid = Some(given.argument.to_ascii_lowercase());
    }
    if let Some(mut opts) = command.merged(Id::Boot)? {
        for key in ["order", "once"] {
            let Some(order) = opts.text(key)? else { continue };
            if let Some(wrong) = order.chars().find(|drive| !drive.is_ascii_lowercase() || *drive > 'p') {
                return Err(opts.refuse(format_args!("{key}={order}: there is no boot device '{wrong}'")));
            }
        }
        opts.without_effect(&["menu", "splash", "splash-time", "reboot-timeout", "strict"]);
        opts.finish()?;
    }
    Ok(())
}

fn display(command: &Command) -> Result<(), Refusal> {
    for given in command.each(Id::Display) {
        let mut opts = given.opts()?;
        let kind = opts.needed("type")?;
        if !DISPLAYS.contains(&kind.as_str()) {
            let hint = did_you_mean(&kind, DISPLAYS.into_iter());
            return Err(given.refuse(format_args!("there is no display '{kind}'{hint}")));
        }
        if kind != "none" {
            log::info!("{} {}: there are no displays yet", given.option, given.argument);
        }
    }
    for given in command.each(Id::Vga) {
        if !CARDS.contains(&given.argument.as_str()) {
            let hint = did_you_mean(&given.argument, CARDS.into_iter());
            return Err(given.refuse(format_args!("there is no such graphics card{hint}")));
        }
        log::debug!("-vga {} makes no difference here: there are no displays yet", given.argument);
    }
    Ok(())
}

fn clock(command: &Command) -> Result<(), Refusal> {
    let Some(mut opts) = command.merged(Id::Rtc)? else { return Ok(()) };
    if let Some(base) = opts.text("base")?.filter(|base| base != "utc") {
        log::warn!("-rtc base={base}: the guest's clock is the host's, in UTC");
    }
    opts.only("clock", &["host", "rt", "vm"])?;
    opts.only("driftfix", &["none", "slew"])?;
    opts.finish()
}
