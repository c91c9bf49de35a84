//! QEMU's command line: from `qemu-system-aarch64`'s arguments to a machine's description, nothing else. What the options mean is QEMU's
//! documentation's to say; what is not honoured here is accepted with a line in the log, or refused by name.
//!
//! First everything is read, then back-ends are defined, then devices take them, so that the order of options does not matter where it does
//! not in QEMU.

mod chardevs;
mod command;
mod devices;
mod drives;
mod help;
mod machine;
mod nearest;
mod nets;
mod objects;
mod opts;
mod plug;
mod readconfig;
mod registry;
mod shares;
mod table;
#[cfg(test)]
mod tests;
mod trifles;

use std::ffi::OsString;
use std::path::PathBuf;

use hvrun_vmm::{MachineConfig, MemorySize};

use self::chardevs::Chardevs;
use self::command::Command;
use self::devices::Backends;
use self::objects::Objects;
pub use self::opts::Refusal;
pub use self::plug::Parser;
use self::table::Id;

/// What a program that is called by one of QEMU's names shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Not QEMU.
    Hvrun,
    /// QEMU for arm64 guests.
    Aarch64,
    /// QEMU's tool for disk images.
    Image,
    /// QEMU for guests that are not there.
    Other,
}

impl Program {
    /// What to be by the name it was called by, on a host with the CPU `host` (as [`std::env::consts::ARCH`] has it).
    pub fn called(name: &str, host: &str) -> Program {
        match name.strip_prefix("qemu-system-") {
            Some("aarch64" | "arm64") => Program::Aarch64,
            Some(_) => Program::Other,
            None if name == "qemu-kvm" || name == "kvm" => match host {
                "aarch64" => Program::Aarch64,
                _ => Program::Other,
            },
            None if name == "qemu-img" => Program::Image,
            None => Program::Hvrun,
        }
    }

    /// Why there is no [`Program::Other`] called `name`.
    pub fn not_there(name: &str) -> String {
        let guests = match name.strip_prefix("qemu-system-") {
            None | Some("x86_64" | "i386") => "x86",
            Some(other) => other,
        };
        format!("{guests} guests are not there yet; arm64 guests are, by the name qemu-system-aarch64")
    }
}

/// What the command shall do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Print a text.
    Print(String),
    /// Print a machine's description.
    PrintConfig(MachineConfig),
    /// Run a machine.
    Run {
        /// Which one.
        config: MachineConfig,
        /// Where the process id is to be found while it runs.
        pidfile: Option<PathBuf>,
    },
}

/// Reads the arguments behind the program's name, which is `program`.
pub fn parse(program: &str, args: impl IntoIterator<Item = OsString>) -> Result<Action, Refusal> {
    let command = Command::parse(args)?;
    if let Some(text) = help::asked_for(program, &command)? {
        return Ok(Action::Print(text));
    }
    let config = machine(&command)?;
    if command.has(Id::PrintConfig) {
        return Ok(Action::PrintConfig(config));
    }
    let pidfile = command.last(Id::Pidfile).map(|given| PathBuf::from(&given.argument));
    Ok(Action::Run { config, pidfile })
}

/// The machine that `command` describes.
fn machine(command: &Command) -> Result<MachineConfig, Refusal> {
    let mut config = MachineConfig::new(PathBuf::new());
    trifles::apply(command, &mut config)?;
    let memory = machine::apply(command, &mut config)?;
    let mut backends = Backends {
        objects: Objects::read(command)?,
        chardevs: Chardevs::read(command)?,
        fsdevs: shares::read(command)?,
        netdevs: nets::read(command)?,
        drives: drives::read(command)?,
    };
    if let Some(machine::Backend { id, opts }) = memory {
        let (bytes, backing) = backends.objects.memory(&id, &opts)?;
        match machine::memory(command)? {
            None => config.memory = MemorySize::from_bytes(bytes),
            Some(said) if said == bytes => {}
            Some(said) => {
                let (said, bytes) = (MemorySize::from_bytes(said), MemorySize::from_bytes(bytes));
                return Err(opts.refuse(format_args!("the memory '{id}' has {bytes}, but -m says {said}")));
            }
        }
        config.memory_backing = backing;
    }
    let cards = nets::legacy_cards(command, &mut backends.netdevs)?;
    devices::make(command, &mut backends, cards, &mut config)?;
    backends.objects.record(&mut config.nets)?;
    chardevs::connect(command, &mut backends.chardevs, &mut config)?;
    backends.chardevs.warn_of_unused();
    backends.fsdevs.warn_of_unused();
    backends.netdevs.warn_of_unused();
    backends.drives.warn_of_unused();
    boot(command, &mut config)?;
    Ok(config)
}

/// Kernel, initrd and command line.
fn boot(command: &Command, config: &mut MachineConfig) -> Result<(), Refusal> {
    let Some(kernel) = command.last(Id::Kernel).filter(|given| !given.argument.is_empty()) else {
        return Err(Refusal(format!("no kernel is named: {}", table::NO_FIRMWARE)));
    };
    config.kernel = PathBuf::from(&kernel.argument);
    // An empty name is none, as in QEMU.
    let initrd = command.last(Id::Initrd).filter(|given| !given.argument.is_empty());
    config.initrd = initrd.map(|given| PathBuf::from(&given.argument));
    config.cmdline = command.last(Id::Append).map(|given| given.argument.clone()).unwrap_or_default();
    Ok(())
}
