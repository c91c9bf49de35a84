//! What a console device is made of, as plain data: the values of `--console` and `--port`. Nothing is opened here.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::backend::chardev::{ChardevConfig, ChardevError, ChardevParseError};

/// The most ports that one device has: Linux and QEMU know ids 0 to 30.
pub const MAX_PORTS: usize = 31;

/// The longest name of a port in bytes: it becomes a file's name in the guest.
const MAX_NAME: usize = 255;

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a row.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// A console: `hvc0` in the guest, the next one `hvc1`. The value of `--console` is [`ConsoleConfig::to`] alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// What it is connected to.
    pub to: ChardevConfig,
    /// A name that the guest shows in `/sys/class/virtio-ports`, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How large the terminal at the other end is, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
}

/// A serial port for programs of the guest, `/dev/virtio-ports/NAME` there: the value of `--port`, `name=NAME,to=TO`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfig {
    /// Its name in the guest, such as `org.qemu.guest_agent.0`.
    pub name: String,
    /// What it is connected to.
    pub to: ChardevConfig,
}

/// Why text is no console and no port.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConsoleParseError {
    /// The form is not that of a port.
    #[error(
        "\"{0}\" is no port; it must have the form name=NAME,to=TO, for instance name=org.example.0,to=unix:/tmp/example"
    )]
    Form(String),
    /// The name cannot be one.
    #[error(
        "\"{0}\" is no name for a port; it must have 1 to {MAX_NAME} bytes and neither a slash, a comma nor control characters"
    )]
    Name(String),
    /// The place is none.
    #[error(transparent)]
    To(#[from] ChardevParseError),
}

/// Why there can be no such console device.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Too many ports.
    #[error(
        "{count} consoles and ports are too many; a device has at most {MAX_PORTS}, one of them kept for a console"
    )]
    TooManyPorts {
        /// How many were asked for.
        count: usize,
    },
    /// A name cannot be one.
    #[error(transparent)]
    Name(ConsoleParseError),
    /// Two ports have the same name.
    #[error("two ports are called \"{0}\"; the guest could not tell them apart")]
    DuplicateName(String),
    /// What stands behind a port cannot be opened.
    #[error("cannot connect {port}")]
    Open {
        /// Which one.
        port: String,
        /// Why not.
        source: ChardevError,
    },
}

impl FromStr for ConsoleConfig {
    type Err = ConsoleParseError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(ConsoleConfig { to: s.parse()?, name: None, size: None })
    }
}

/// The form that parses; a name and a size are not part of it.
impl fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)
    }
}

impl FromStr for PortConfig {
    type Err = ConsoleParseError;

    /// `to` comes last, so that its path may have commas.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts = s.strip_prefix("name=").and_then(|rest| rest.split_once(",to="));
        let (name, to) = parts.ok_or_else(|| ConsoleParseError::Form(s.to_owned()))?;
        check_name(name)?;
        Ok(PortConfig { name: name.to_owned(), to: to.parse()? })
    }
}

impl fmt::Display for PortConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "name={},to={}", self.name, self.to)
    }
}

/// Whether one device can have these consoles and ports: how many they are, and their names.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate(consoles: &[ConsoleConfig], ports: &[PortConfig]) -> Result<(), ConsoleError> {
    let count = consoles.len() + ports.len();
    let reserved = usize::from(consoles.is_empty());
    if count + reserved > MAX_PORTS {
        return Err(ConsoleError::TooManyPorts { count });
    }
    let mut names = HashSet::new();
    let console_names = consoles.iter().filter_map(|console| console.name.as_deref());
    for name in console_names.chain(ports.iter().map(|port| port.name.as_str())) {
        check_name(name).map_err(ConsoleError::Name)?;
        if !names.insert(name) {
            return Err(ConsoleError::DuplicateName(name.to_owned()));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ConsoleParseError> {
    let allowed = |c: char| !c.is_control() && c != '/' && c != ',';
    if name.is_empty() || name.len() > MAX_NAME || name == "." || name == ".." || !name.chars().all(allowed) {
        return Err(ConsoleParseError::Name(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> PortConfig {
        PortConfig { name: name.to_owned(), to: ChardevConfig::None }
    }

    #[test]
    fn a_console_is_where_it_goes() {
        let console: ConsoleConfig = "unix:/tmp/shell.sock".parse().unwrap();
        assert_eq!(console.to, ChardevConfig::Unix("/tmp/shell.sock".into()));
        assert_eq!(console.to_string(), "unix:/tmp/shell.sock");
    }

    #[test]
    fn a_port_has_a_name_and_a_place_that_may_have_commas() {
        let port: PortConfig = "name=org.example.0,to=unix:/tmp/a,b".parse().unwrap();
        assert_eq!(port.name, "org.example.0");
        assert_eq!(port.to, ChardevConfig::Unix("/tmp/a,b".into()));
        assert_eq!(port.to_string(), "name=org.example.0,to=unix:/tmp/a,b");
    }

    #[test]
    fn a_port_without_a_name_or_a_place_is_refused_with_the_form() {
        for wrong in ["", "unix:/x", "name=a", "to=pty,name=a", "name=a,unix:/x"] {
            let error = wrong.parse::<PortConfig>().unwrap_err();
            assert!(matches!(error, ConsoleParseError::Form(_)), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_name_that_could_be_no_file_is_refused() {
        let long = "x".repeat(256);
        for wrong in ["", "a/b", "a\nb", "..", "a,b", long.as_str()] {
            let error = format!("name={wrong},to=none").parse::<PortConfig>().unwrap_err();
            assert!(matches!(error, ConsoleParseError::Name(_)), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_wrong_place_says_which_are_right() {
        let error = "name=a,to=tcp:1".parse::<PortConfig>().unwrap_err();
        assert!(error.to_string().contains(ChardevConfig::FORMS), "{error}");
    }

    #[test]
    fn two_ports_of_one_name_are_refused() {
        let error = validate(&[], &[port("a"), port("a")]).unwrap_err();
        assert!(matches!(error, ConsoleError::DuplicateName(_)), "{error}");
    }

    #[test]
    fn thirty_one_ports_are_enough_if_one_is_a_console() {
        let ports: Vec<_> = (0..30).map(|index| port(&format!("p{index}"))).collect();
        assert!(validate(&[ConsoleConfig::default()], &ports).is_ok());
        assert!(validate(&[], &ports).is_ok());
        let error = validate(&[ConsoleConfig::default(), ConsoleConfig::default()], &ports).unwrap_err();
        assert!(matches!(error, ConsoleError::TooManyPorts { count: 32 }), "{error}");
    }

    #[test]
    fn configurations_survive_serialisation() {
        let port: PortConfig = "name=a,to=unix-connect:/x".parse().unwrap();
        let json = serde_json::to_string(&port).unwrap();
        assert_eq!(json, r#"{"name":"a","to":{"unix-connect":"/x"}}"#);
        assert_eq!(serde_json::from_str::<PortConfig>(&json).unwrap(), port);
    }
}
