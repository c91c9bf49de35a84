//! From arguments to what to do: `--opt value`, `--opt=value`, `-ovalue`, `-vv`, `--`. The last of several equal options counts.
//! It knows how values are written, not which ones a machine can have; that is for [`MachineConfig::validate`].

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

use hvrun_vmm::options::{OptionError, OptionList};
use hvrun_vmm::{MachineConfig, MemoryBacking, MemorySize, SizeError, parse_accels};

use crate::options::{Id, OPTIONS, Spec, nearest};

/// What the command shall do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Run a machine; the verbosity is how often `-v` was given.
    Run { config: MachineConfig, verbosity: u8 },
    /// Print its description.
    PrintConfig(MachineConfig),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// What is wrong with the arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn usage<T>(message: impl Into<String>) -> Result<T, UsageError> {
    Err(UsageError(message.into()))
}

/// What the options have said so far.
#[derive(Debug)]
struct Parsed {
    config: MachineConfig,
    files: Vec<PathBuf>,
    verbosity: u8,
    print_config: bool,
    /// `--help` or `--version`, which need no kernel.
    instead: Option<Action>,
}

/// Parses the arguments behind the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Action, UsageError> {
    let mut args = args.into_iter();
    let mut parsed = Parsed {
        config: MachineConfig::new(PathBuf::new()),
        files: Vec::new(),
        verbosity: 0,
        print_config: false,
        instead: None,
    };
    while let Some(arg) = args.next() {
        if arg == "--" {
            parsed.files.extend(args.by_ref().map(PathBuf::from));
            break;
        }
        let bytes = arg.as_encoded_bytes();
        if bytes.starts_with(b"--") {
            parsed.long(&text(&arg)?[2..], &mut args)?;
        } else if bytes.starts_with(b"-") && bytes.len() > 1 {
            parsed.shorts(&text(&arg)?[1..], &mut args)?;
        } else {
            parsed.files.push(arg.into());
        }
        if let Some(instead) = parsed.instead.take() {
            return Ok(instead);
        }
    }
    parsed.finish()
}

/// An argument that must be text.
fn text(arg: &OsStr) -> Result<String, UsageError> {
    match arg.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => usage(format!("{arg:?} is not valid UTF-8")),
    }
}

impl Parsed {
    /// An argument that began with two dashes.
    fn long(&mut self, arg: &str, rest: &mut impl Iterator<Item = OsString>) -> Result<(), UsageError> {
        let (name, attached) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg, None),
        };
        let Some(spec) = OPTIONS.iter().find(|spec| spec.long == name) else {
            return usage(unknown(&format!("--{name}"), name));
        };
        let value = match (spec.value, attached) {
            (None, None) => String::new(),
            (None, Some(value)) => return usage(format!("--{name} takes no value, but it got {value:?}")),
            (Some(_), Some(value)) => value,
            (Some(_), None) => next_value(spec, rest)?,
        };
        self.apply(spec, &value)
    }

    /// An argument that began with one dash: single letters, the last of which may take a value.
    fn shorts(&mut self, letters: &str, rest: &mut impl Iterator<Item = OsString>) -> Result<(), UsageError> {
        for (at, letter) in letters.char_indices() {
            let Some(spec) = OPTIONS.iter().find(|spec| spec.short == Some(letter)) else {
                let name = letters.split('=').next().unwrap_or_default();
                return usage(unknown(&format!("-{letters}"), name));
            };
            if spec.value.is_none() {
                self.apply(spec, "")?;
                continue;
            }
            let attached = &letters[at + letter.len_utf8()..];
            let value = if attached.is_empty() { next_value(spec, rest)? } else { attached.to_owned() };
            return self.apply(spec, &value);
        }
        Ok(())
    }

    fn apply(&mut self, spec: &Spec, value: &str) -> Result<(), UsageError> {
        let option = spec.long;
        let wrong = |error: &dyn std::fmt::Display| UsageError(format!("--{option}: {error}"));
        let config = &mut self.config;
        match spec.id {
            Id::Append => value.clone_into(&mut config.cmdline),
            Id::Memory => {
                (config.memory, config.memory_backing) = memory(value).map_err(|error| wrong(&error))?;
            }
            Id::Cpus => config.cpus = number(value).map_err(|error| wrong(&error))?,
            Id::Accel => config.accel = parse_accels(value).map_err(|error| wrong(&error))?,
            Id::Gic => config.gic = value.parse().map_err(|error| wrong(&error))?,
            Id::Serial => config.serial = value.parse().map_err(|error| wrong(&error))?,
            Id::Disk => config.disks.push(value.parse().map_err(|error| wrong(&error))?),
            Id::Share => config.shares.push(value.parse().map_err(|error| wrong(&error))?),
            Id::VhostUser => config.vhost_user.push(value.parse().map_err(|error| wrong(&error))?),
            Id::Net => config.nets.push(value.parse().map_err(|error| wrong(&error))?),
            Id::Console => config.consoles.push(value.parse().map_err(|error| wrong(&error))?),
            Id::Port => config.ports.push(value.parse().map_err(|error| wrong(&error))?),
            Id::Rng => config.rng = on_or(value).map_err(|error| wrong(&error))?,
            Id::Balloon => config.balloon = on_or(value).map_err(|error| wrong(&error))?,
            Id::Transport => config.transport = value.parse().map_err(|error| wrong(&error))?,
            Id::NoReboot => config.lifecycle.no_reboot = true,
            Id::PrintConfig => self.print_config = true,
            Id::Verbose => self.verbosity = self.verbosity.saturating_add(1),
            Id::Help => self.instead = Some(Action::Help),
            Id::Version => self.instead = Some(Action::Version),
        }
        Ok(())
    }

    fn finish(self) -> Result<Action, UsageError> {
        let Parsed { mut config, files, verbosity, print_config, .. } = self;
        let mut files = files.into_iter();
        match files.next() {
            Some(kernel) => config.kernel = kernel,
            None => return usage("no KERNEL was named: hvrun [OPTIONS] KERNEL [INITRD]"),
        }
        config.initrd = files.next();
        if let Some(surplus) = files.next() {
            return usage(format!("{surplus:?} is one file too many: hvrun [OPTIONS] KERNEL [INITRD]"));
        }
        Ok(if print_config { Action::PrintConfig(config) } else { Action::Run { config, verbosity } })
    }
}

/// The value of `spec` in the next argument.
fn next_value(spec: &Spec, rest: &mut impl Iterator<Item = OsString>) -> Result<String, UsageError> {
    match rest.next() {
        Some(value) => text(&value),
        None => usage(format!("--{} needs a value: --{0} {}", spec.long, spec.value.unwrap_or("VALUE"))),
    }
}

fn unknown(arg: &str, name: &str) -> String {
    match nearest(name) {
        Some(long) => format!("there is no option {arg}; did you mean --{long}?"),
        None => format!("there is no option {arg}"),
    }
}

/// The value of an option for a device that is there or not: `on`, `off`, or what it shall be like.
fn on_or<T: Default + FromStr>(text: &str) -> Result<Option<T>, T::Err> {
    match text {
        "off" => Ok(None),
        "on" => Ok(Some(T::default())),
        other => other.parse().map(Some),
    }
}

/// `SIZE[,shared][,file=PATH]`.
fn memory(text: &str) -> Result<(MemorySize, MemoryBacking), String> {
    let parts = || -> Result<_, OptionError> {
        let mut options = OptionList::parse(text)?;
        let size = options.first("the size")?;
        let shared = options.switch("shared")?.unwrap_or(false);
        let file = options.text("file", "/dev/shm")?;
        options.finish()?;
        Ok((size, shared, file))
    };
    let (size, shared, file) = parts().map_err(|error| error.to_string())?;
    let backing = match (shared, file) {
        (_, Some(file)) => MemoryBacking::SharedFile(file.into()),
        (true, None) => MemoryBacking::Shared,
        (false, None) => MemoryBacking::Private,
    };
    Ok((size.parse().map_err(|error: SizeError| error.to_string())?, backing))
}

/// A number of CPUs; whether a machine can have so many is not asked here.
fn number(text: &str) -> Result<u32, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{text:?} is not a number of CPUs; write one from 1 to 8"));
    }
    text.parse().map_err(|_| format!("{text} are more CPUs than any machine has; write a number from 1 to 8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvrun_vmm::serial::ChardevConfig;
    use hvrun_vmm::virtio::balloon::BalloonConfig;
    use hvrun_vmm::virtio::rng::RngConfig;
    use hvrun_vmm::{Accel, GicChoice};
    use std::os::unix::ffi::OsStringExt;

    fn parse_words(words: &[&str]) -> Result<Action, UsageError> {
        parse(words.iter().map(OsString::from))
    }

    /// The configuration that these words and a kernel make.
    fn config(words: &[&str]) -> MachineConfig {
        match parse_words(&[words, &["Image"]].concat()) {
            Ok(Action::Run { config, .. }) => config,
            other => panic!("{other:?}"),
        }
    }

    /// What is wrong with these words.
    fn refusal(words: &[&str]) -> String {
        parse_words(words).unwrap_err().0
    }

    #[test]
    fn kernel_alone_gives_the_defaults() {
        assert_eq!(config(&[]), MachineConfig::new("Image"));
    }

    #[test]
    fn second_file_is_the_initrd() {
        let Ok(Action::Run { config, .. }) = parse_words(&["Image", "initrd"]) else { panic!() };
        assert_eq!(config.initrd, Some("initrd".into()));
    }

    #[test]
    fn options_may_follow_the_files() {
        let Ok(Action::Run { config, .. }) = parse_words(&["Image", "-p", "2", "initrd"]) else { panic!() };
        assert_eq!((config.cpus, config.initrd), (2, Some("initrd".into())));
    }

    #[test]
    fn value_may_be_the_next_word_or_attached() {
        for words in [&["--memory", "512M"][..], &["--memory=512M"], &["-m", "512M"], &["-m512M"]] {
            assert_eq!(config(words).memory, MemorySize::from_mib(512), "{words:?}");
        }
    }

    #[test]
    fn append_keeps_everything_behind_the_first_equals_sign() {
        assert_eq!(
            config(&["--append=console=ttyAMA0 root=/dev/vda"]).cmdline,
            "console=ttyAMA0 root=/dev/vda"
        );
    }

    #[test]
    fn value_may_begin_with_a_dash() {
        assert_eq!(config(&["--append", "--x"]).cmdline, "--x");
    }

    #[test]
    fn last_of_equal_options_counts() {
        assert_eq!(config(&["-p1", "-p3"]).cpus, 3);
    }

    #[test]
    fn serial_accel_gic_and_no_reboot_reach_the_configuration() {
        let config =
            config(&["--serial", "file:/tmp/x", "--accel", "kvm:soft", "--gic", "soft", "--no-reboot"]);
        assert_eq!(config.serial, ChardevConfig::File("/tmp/x".into()));
        assert_eq!(config.accel, [Accel::Kvm, Accel::Soft]);
        assert_eq!(config.gic, GicChoice::Soft);
        assert!(config.lifecycle.no_reboot);
    }

    #[test]
    fn disks_shares_consoles_and_ports_keep_their_order() {
        let config = config(&[
            "--disk=root.qcow2,serial=root",
            "--share",
            "/nix/store:nix-store,ro",
            "--disk",
            "data.raw,ro",
            "--console",
            "unix:/tmp/shell.sock",
            "--port",
            "name=org.example.0,to=none",
        ]);
        let disks: Vec<_> = config.disks.iter().map(|disk| (disk.path.to_str(), disk.readonly)).collect();
        assert_eq!(disks, [(Some("root.qcow2"), false), (Some("data.raw"), true)]);
        assert_eq!((config.shares[0].tag.as_str(), config.shares[0].readonly), ("nix-store", true));
        assert_eq!(config.consoles[0].to, ChardevConfig::Unix("/tmp/shell.sock".into()));
        assert_eq!(config.ports[0].name, "org.example.0");
    }

    #[test]
    fn devices_of_other_processes_and_shared_memory_reach_the_configuration() {
        let config = config(&["-m", "2G,shared", "--vhost-user", "fs:/s,tag=t", "--vhost-user=vsock:/v"]);
        assert_eq!(
            (config.memory, config.memory_backing),
            (MemorySize::from_mib(2048), MemoryBacking::Shared)
        );
        let names: Vec<String> = config.vhost_user.iter().map(|device| device.name()).collect();
        assert_eq!(names, ["virtiofs t", "vsock"]);
    }

    #[test]
    fn memory_of_an_unknown_kind_is_refused_with_the_known_ones() {
        let message = refusal(&["-m", "1G,wide", "k"]);
        assert!(message.contains("\"wide\"") && message.contains("shared, file"), "{message}");
    }

    #[test]
    fn shared_memory_can_be_in_a_file() {
        let config = config(&["--memory=1G,file=/dev/shm"]);
        assert_eq!(config.memory_backing, MemoryBacking::SharedFile("/dev/shm".into()));
    }

    #[test]
    fn a_device_can_be_on_off_or_described() {
        assert_eq!(config(&[]).rng, Some(RngConfig::default()));
        assert_eq!(config(&["--rng", "off"]).rng, None);
        assert_eq!(config(&["--balloon", "on"]).balloon, Some(BalloonConfig::default()));
        assert!(refusal(&["--balloon", "huge", "k"]).contains("huge"));
    }

    #[test]
    fn a_disks_unknown_key_is_named_with_the_known_ones() {
        let message = refusal(&["--disk", "a,wet=1", "k"]);
        assert!(message.starts_with("--disk") && message.contains("\"wet\"") && message.contains("serial"));
    }

    #[test]
    fn qemus_names_of_devices_lead_to_ours() {
        assert_eq!(refusal(&["--drive", "x", "k"]), "there is no option --drive; did you mean --disk?");
    }

    #[test]
    fn letters_may_share_a_dash() {
        let Ok(Action::Run { config, verbosity }) = parse_words(&["-vvp4", "Image"]) else { panic!() };
        assert_eq!((config.cpus, verbosity), (4, 2));
    }

    #[test]
    fn file_behind_two_dashes_may_begin_with_a_dash() {
        let Ok(Action::Run { config, .. }) = parse_words(&["--", "-Image"]) else { panic!() };
        assert_eq!(config.kernel, PathBuf::from("-Image"));
    }

    #[test]
    fn file_need_not_be_utf8() {
        let name = OsString::from_vec(b"Im\xffage".to_vec());
        let Ok(Action::Run { config, .. }) = parse([name.clone()]) else { panic!() };
        assert_eq!(config.kernel, PathBuf::from(name));
    }

    #[test]
    fn value_that_is_not_utf8_is_refused() {
        assert!(parse(["--append".into(), OsString::from_vec(vec![0xff])]).is_err());
        assert!(parse([OsString::from_vec(b"--append=\xff".to_vec())]).is_err());
    }

    #[test]
    fn help_and_version_need_no_kernel() {
        assert_eq!(parse_words(&["--help"]), Ok(Action::Help));
        assert_eq!(parse_words(&["-V"]), Ok(Action::Version));
    }

    #[test]
    fn print_config_carries_the_configuration() {
        let Ok(Action::PrintConfig(config)) = parse_words(&["--print-config", "Image"]) else { panic!() };
        assert_eq!(config.kernel, PathBuf::from("Image"));
    }

    #[test]
    fn no_kernel_is_refused() {
        assert!(refusal(&["-v"]).contains("KERNEL"));
    }

    #[test]
    fn third_file_is_refused_by_name() {
        assert!(refusal(&["a", "b", "surplus"]).contains("surplus"));
    }

    #[test]
    fn unknown_option_is_named_with_the_nearest_one() {
        assert_eq!(refusal(&["--memroy=1G", "k"]), "there is no option --memroy; did you mean --memory?");
        assert_eq!(refusal(&["-append", "x", "k"]), "there is no option -append; did you mean --append?");
        assert_eq!(refusal(&["--frobnicate", "k"]), "there is no option --frobnicate");
    }

    #[test]
    fn missing_value_is_refused_with_the_options_name() {
        assert_eq!(refusal(&["k", "--memory"]), "--memory needs a value: --memory SIZE[,...]");
        assert_eq!(refusal(&["k", "-p"]), "--cpus needs a value: --cpus N");
    }

    #[test]
    fn value_for_an_option_without_one_is_refused() {
        assert!(refusal(&["--no-reboot=yes", "k"]).contains("yes"));
    }

    #[test]
    fn malformed_values_are_refused_with_option_and_value() {
        for (option, value) in [
            ("--memory", "lots"),
            ("--cpus", "many"),
            ("--cpus", "-1"),
            ("--cpus", "99999999999"),
            ("--accel", "warp"),
            ("--gic", "mine"),
            ("--serial", "tcp:1"),
            ("--net", "slirp"),
            ("--share", "/nowhere"),
            ("--console", "tcp:1"),
            ("--port", "unix:/x"),
            ("--rng", "max-bytes=x"),
            ("--transport", "isa"),
        ] {
            let message = refusal(&[option, value, "k"]);
            assert!(message.starts_with(option) && message.contains(value), "{message}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_for_the_configuration_to_refuse() {
        assert_eq!(config(&["-p", "0"]).cpus, 0);
        assert_eq!(config(&["-p", "9"]).cpus, 9);
    }
}
