//! From arguments to a list of options in the order in which they were given, those of `-readconfig` files in its place. What an
//! option's value means is not looked at here, so that every device may name what comes behind it.

use std::ffi::OsString;

use super::opts::{Opts, Refusal};
use super::readconfig;
use super::table::{self, Id, Spec, Treatment};

/// An option that was given.
#[derive(Debug)]
pub struct Given {
    pub id: Id,
    /// With one dash, under its main name.
    pub option: String,
    /// Its argument as text.
    pub argument: String,
    /// Its argument in parts, if it came from a file.
    parts: Option<Opts>,
}

impl Given {
    /// One that was read from a file.
    pub fn from_file(spec: &Spec, id: Id, parts: Opts) -> Given {
        Given { id, option: format!("-{}", spec.name), argument: String::new(), parts: Some(parts) }
    }

    /// Its argument in parts.
    pub fn opts(&self) -> Result<Opts, Refusal> {
        match &self.parts {
            Some(parts) => Ok(parts.clone()),
            None => Opts::parse(&self.option, &self.argument, implied_key(self.id)),
        }
    }

    /// A refusal of it.
    pub fn refuse(&self, why: impl std::fmt::Display) -> Refusal {
        Refusal(format!("{} {}: {why}", self.option, self.argument))
    }
}

/// The key that the first part of an option's value has if it has none.
fn implied_key(id: Id) -> Option<&'static str> {
    match id {
        Id::Machine | Id::Netdev | Id::Net | Id::Nic | Id::Display | Id::Numa => Some("type"),
        Id::Accel => Some("accel"),
        Id::Cpu => Some("model"),
        Id::Smp => Some("cpus"),
        Id::Memory => Some("size"),
        Id::Device | Id::Audiodev => Some("driver"),
        Id::Fsdev | Id::Virtfs => Some("fsdriver"),
        Id::Chardev => Some("backend"),
        Id::Mon => Some("chardev"),
        Id::Object => Some("qom-type"),
        Id::Boot => Some("order"),
        Id::Name => Some("guest"),
        Id::Sandbox => Some("enable"),
        _ => None,
    }
}

/// All that was given.
#[derive(Debug, Default)]
pub struct Command {
    pub given: Vec<Given>,
}

impl Command {
    /// Reads the arguments behind the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Refusal> {
        let mut command = Command::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let arg = text(arg)?;
            let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                let option = "-hda".to_owned();
                command.given.push(Given { id: Id::Image, option, argument: arg, parts: None });
                continue;
            };
            let Some(spec) = table::find(name) else {
                return Err(Refusal(format!("{arg}: there is no such option{}", table::suggestion(name))));
            };
            let argument = match spec.argument {
                None => String::new(),
                Some(what) => match args.next() {
                    Some(argument) => text(argument)?,
                    None => return Err(Refusal(format!("{arg} needs an argument: -{} {what}", spec.name))),
                },
            };
            command.add(spec, argument)?;
        }
        Ok(command)
    }

    fn add(&mut self, spec: &'static Spec, argument: String) -> Result<(), Refusal> {
        let option = match spec.name {
            "M" => "-machine".to_owned(),
            name => format!("-{name}"),
        };
        match spec.treatment {
            Treatment::Honoured(Id::Readconfig) => self.given.extend(readconfig::read(&argument)?),
            Treatment::Honoured(id) => self.given.push(Given { id, option, argument, parts: None }),
            Treatment::WithoutEffect => log::debug!("{option} {argument} makes no difference here"),
            Treatment::Refused(why) => {
                let space = if argument.is_empty() { "" } else { " " };
                return Err(Refusal(format!("{option}{space}{argument} is not supported: {why}")));
            }
        }
        Ok(())
    }

    /// Whether an option was given.
    pub fn has(&self, id: Id) -> bool {
        self.each(id).next().is_some()
    }

    /// Every occurrence of an option, in order.
    pub fn each(&self, id: Id) -> impl Iterator<Item = &Given> {
        self.given.iter().filter(move |given| given.id == id)
    }

    /// The last occurrence of an option.
    pub fn last(&self, id: Id) -> Option<&Given> {
        self.each(id).last()
    }

    /// All occurrences of an option as one, in which the last value of each key counts.
    pub fn merged(&self, id: Id) -> Result<Option<Opts>, Refusal> {
        let mut all: Option<Opts> = None;
        for given in self.each(id) {
            let opts = given.opts()?;
            match &mut all {
                Some(all) => all.merge(opts),
                None => all = Some(opts),
            }
        }
        Ok(all)
    }
}

fn text(arg: OsString) -> Result<String, Refusal> {
    arg.into_string().map_err(|arg| Refusal(format!("{arg:?} is not valid UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Result<Command, Refusal> {
        Command::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn one_dash_and_two_are_the_same() {
        let command = command(&["-m", "1", "--m", "2"]).unwrap();
        assert_eq!(command.last(Id::Memory).unwrap().argument, "2");
        assert_eq!(command.each(Id::Memory).count(), 2);
    }

    #[test]
    fn an_argument_may_begin_with_a_dash() {
        assert_eq!(command(&["-append", "-x"]).unwrap().last(Id::Append).unwrap().argument, "-x");
    }

    #[test]
    fn an_unknown_option_is_named_with_the_nearest() {
        let refusal = command(&["--kernle", "x"]).unwrap_err().to_string();
        assert_eq!(refusal, "--kernle: there is no such option; did you mean 'kernel'?");
    }

    #[test]
    fn a_missing_argument_is_named() {
        assert!(command(&["-kernel"]).unwrap_err().to_string().contains("-kernel FILE"));
    }

    #[test]
    fn a_refused_option_has_its_reason() {
        let refusal = command(&["-bios", "x.fd"]).unwrap_err().to_string();
        assert_eq!(refusal, format!("-bios x.fd is not supported: {}", table::NO_FIRMWARE));
    }

    #[test]
    fn a_file_name_alone_is_the_first_disk() {
        let command = command(&["disk.qcow2"]).unwrap();
        assert_eq!((command.given[0].id, command.given[0].option.as_str()), (Id::Image, "-hda"));
    }
}
