//! `-help`, `-version`, and what `help` instead of a value prints.

use super::chardevs;
use super::command::Command;
use super::devices;
use super::machine::CPUS;
use super::nets;
use super::objects;
use super::opts::Refusal;
use super::table::{self, Id};
use super::trifles;

/// The text that `command` asks for instead of a machine, if any.
pub fn asked_for(program: &str, command: &Command) -> Result<Option<String>, Refusal> {
    for given in &command.given {
        let text = match given.id {
            Id::Help => table::help(program),
            Id::Version => format!("{}\n", table::version_line()),
            Id::Machine
            | Id::Accel
            | Id::Cpu
            | Id::Device
            | Id::Netdev
            | Id::Nic
            | Id::Net
            | Id::Chardev
            | Id::Object
            | Id::Display => {
                if !given.opts()?.asks_for_help() {
                    continue;
                }
                of_values(given.id)
            }
            _ => continue,
        };
        return Ok(Some(text));
    }
    Ok(None)
}

/// What values an option can have.
fn of_values(id: Id) -> String {
    match id {
        Id::Machine => "Supported machines are:\n\
                        virt                 arm64 machine (alias of virt-9.2)\n\
                        virt-9.2             arm64 machine; every version of virt is this one\n"
            .to_owned(),
        Id::Accel => "Accelerators supported by hvrun:\nhvf\nkvm\ntcg\n".to_owned(),
        Id::Cpu => list("Available CPUs (all of them are what the accelerator has):", CPUS.into_iter()),
        Id::Device => devices::help(),
        Id::Netdev | Id::Nic | Id::Net => list("Available netdev backend types:", nets::TYPES.into_iter()),
        Id::Chardev => list("Available chardev backend types:", chardevs::BACKENDS.into_iter()),
        Id::Object => list("List of user creatable objects:", objects::TYPES.into_iter()),
        _ => list(
            "Available display backend types (none of them opens a window yet):",
            trifles::DISPLAYS.into_iter(),
        ),
    }
}

fn list<'a>(title: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("  {name}\n")).collect();
    format!("{title}\n{}", names.concat())
}
