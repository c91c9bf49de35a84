//! What the user says about a network card: plain data, and the option string it is parsed from. It opens nothing. What a backend
//! can be told is the backend's own affair.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::mac::Mac;
use crate::backend::net::NetBackend;
use crate::backend::net::socket::{SocketConfig, SocketError};
use crate::backend::net::switch::{SwitchConfig, SwitchError};
use crate::backend::net::tap::{Tap, TapConfig, TapError};
use crate::backend::net::user::{UserConfig, UserNet, UserNetError, UserNetHandle};
use crate::backend::net::vde::{Vde, VdeConfig, VdeError};
use crate::options::{OptionError, OptionList};

/// Least and largest MTU that a card may announce (virtio 1.2, 5.1.4.1).
pub const MIN_MTU: u16 = 68;
/// See [`MIN_MTU`].
pub const MAX_MTU: u16 = 65535;

/// A network card: the value of `--net`. The same value always describes the same card; nothing in it is open.
///
/// Its text form is what is behind it, with that one's own options, and the options that every card has:
///
/// ```
/// use hvrun_devices::virtio::net::{NetBackendConfig, NetConfig};
///
/// let net: NetConfig = "user,hostfwd=tcp:127.0.0.1:2222-:22,mac=52:54:00:00:00:01".parse().unwrap();
/// assert_eq!(net.common.mac.unwrap().to_string(), "52:54:00:00:00:01");
/// assert!(matches!(net.backend, NetBackendConfig::User(user) if user.hostfwd.len() == 1));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// What every card has.
    #[serde(flatten)]
    pub common: CommonOptions,
    /// What is behind it.
    #[serde(flatten)]
    pub backend: NetBackendConfig,
}

/// What is behind a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackendConfig {
    /// `user`: a network of the guest's own, behind a NAT in this process.
    User(UserConfig),
    /// `vde:DIR`: a VDE switch.
    Vde(VdeConfig),
    /// `socket:stream,...` or `socket:dgram,...`: another program, by frames over a socket.
    Socket(SocketConfig),
    /// `tap:NAME`: a tap interface of the host.
    Tap(TapConfig),
    /// `switch:NAME`: a switch inside this process, for programs with several machines.
    Switch(SwitchConfig),
}

impl NetBackendConfig {
    /// The forms of its text, for help and messages.
    pub const FORMS: &str = "user, vde:DIR, socket:stream,..., socket:dgram,..., tap:NAME and switch:NAME";
}

/// What is wrong with a card's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetParseError {
    /// No such network.
    #[error("{0:?} is not a network; there are {forms}", forms = NetBackendConfig::FORMS)]
    Unknown(String),
    /// A network without the name of what it is.
    #[error("{0} needs to know where: {0}:{1}")]
    Bare(String, &'static str),
    /// An option that cannot be.
    #[error(transparent)]
    Option(#[from] OptionError),
}

impl FromStr for NetConfig {
    type Err = NetParseError;

    fn from_str(text: &str) -> Result<Self, NetParseError> {
        let (common, text) = CommonOptions::take(text)?;
        Ok(NetConfig { common, backend: text.parse()? })
    }
}

impl FromStr for NetBackendConfig {
    type Err = NetParseError;

    fn from_str(text: &str) -> Result<Self, NetParseError> {
        let first = split(text).first().copied().unwrap_or_default();
        if first == "user" {
            return Ok(NetBackendConfig::User(text.parse()?));
        }
        let kinds = [("vde", "DIR"), ("socket", "stream,path=PATH"), ("tap", "NAME"), ("switch", "NAME")];
        let (kind, rest) = match text.split_once(':') {
            Some(parts) if first.contains(':') => parts,
            _ => match kinds.iter().find(|(kind, _)| *kind == first) {
                Some((kind, example)) => return Err(NetParseError::Bare((*kind).to_owned(), example)),
                None => return Err(NetParseError::Unknown(first.to_owned())),
            },
        };
        match kind {
            "vde" => Ok(NetBackendConfig::Vde(rest.parse()?)),
            "socket" => Ok(NetBackendConfig::Socket(rest.parse()?)),
            "tap" => Ok(NetBackendConfig::Tap(rest.parse()?)),
            "switch" => Ok(NetBackendConfig::Switch(rest.parse()?)),
            _ => Err(NetParseError::Unknown(first.to_owned())),
        }
    }
}

/// Why what is behind a card cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetBackendError {
    /// A user-mode network.
    #[error(transparent)]
    User(#[from] UserNetError),
    /// A VDE switch.
    #[error(transparent)]
    Vde(#[from] VdeError),
    /// Another program's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A tap interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A switch inside this process.
    #[error(transparent)]
    Switch(#[from] SwitchError),
}

impl NetConfig {
    /// What monitors and log lines call the card if it is number `index` of its machine (0 is the first).
    pub fn id(&self, index: usize) -> String {
        self.common.id.clone().unwrap_or_else(|| format!("net{index}"))
    }

    /// The MTU that the card announces: its own option, or that of a network which says another than the usual one.
    pub(super) fn mtu(&self) -> Option<u16> {
        let usual = UserConfig::default().mtu;
        match &self.backend {
            NetBackendConfig::User(user) => self.common.mtu.or((user.mtu != usual).then_some(user.mtu)),
            _ => self.common.mtu,
        }
    }

    /// Opens what is behind the card.
    ///
    /// # Errors
    /// It is not there, or may not be used.
    pub(super) fn open(&self) -> Result<OpenedNet, NetBackendError> {
        match (&self.backend, self.common.mtu) {
            (NetBackendConfig::User(user), Some(mtu)) => {
                NetBackendConfig::User(UserConfig { mtu, ..user.clone() }).open()
            }
            (backend, _) => backend.open(),
        }
    }
}

/// What is behind a card, opened.
pub struct OpenedNet {
    pub(super) backend: Box<dyn NetBackend>,
    pub(super) user: Option<UserNetHandle>,
}

impl std::fmt::Debug for OpenedNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedNet").field("user", &self.user.is_some()).finish_non_exhaustive()
    }
}

impl NetBackendConfig {
    /// Opens it, for a card that may come later.
    ///
    /// # Errors
    /// It is not there, or may not be used.
    pub fn open(&self) -> Result<OpenedNet, NetBackendError> {
        let (backend, user): (Box<dyn NetBackend>, _) = match self {
            NetBackendConfig::User(user) => {
                let net = UserNet::open(user)?;
                let handle = net.handle();
                (Box::new(net), Some(handle))
            }
            NetBackendConfig::Vde(vde) => (Box::new(Vde::open(vde)?), None),
            NetBackendConfig::Socket(socket) => (socket.open()?, None),
            NetBackendConfig::Tap(tap) => (Box::new(Tap::open(tap)?), None),
            NetBackendConfig::Switch(switch) => (Box::new(switch.open()?), None),
        };
        Ok(OpenedNet { backend, user })
    }
}

/// The keys that every card has, whatever is behind it; the rest is for its backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CommonOptions {
    /// Its address; see [`Mac::of_card`] for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The largest packet that the guest may send and is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Where its traffic is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<PathBuf>,
    /// What monitors call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What monitors call what is behind it, if that has a name of its own (QEMU's `-netdev ...,id=NAME`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netdev: Option<String>,
}

impl CommonOptions {
    /// Takes `mac=`, `mtu=`, `dump=` and `id=` out of `text`. The rest, with its commas as they were, is returned with them.
    ///
    /// # Errors
    /// One of these keys without its value, twice, or with one that cannot be.
    pub fn take(text: &str) -> Result<(Self, String), OptionError> {
        let is_common = |part: &&str| {
            part.split_once('=').is_some_and(|(key, _)| ["mac", "mtu", "dump", "id"].contains(&key))
        };
        let parts = split(text);
        let (first, others) = parts.split_first().unwrap_or((&"", &[]));
        let (common, rest): (Vec<&str>, Vec<&str>) = others.iter().copied().partition(is_common);
        // The list's first part has no key.
        let mut list = OptionList::parse(&[&[""], &common[..]].concat().join(","))?;
        let options = CommonOptions {
            mac: list.value("mac", "52:54:00:12:34:56")?,
            mtu: list.value::<Mtu>("mtu", "1500")?.map(|mtu| mtu.0),
            dump: list.text("dump", "traffic.pcap")?.map(PathBuf::from),
            id: list.text("id", "net0")?,
            netdev: None,
        };
        list.finish()?;
        Ok((options, [&[*first], &rest[..]].concat().join(",")))
    }
}

/// An MTU that a card can have.
struct Mtu(u16);

impl FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mtu = text.parse().ok().filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu));
        mtu.map(Mtu).ok_or_else(|| format!("an MTU is a number of bytes from {MIN_MTU} to {MAX_MTU}"))
    }
}

/// Splits at single commas and leaves doubled ones, which stand for one in a value, as they are.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    let bytes = text.as_bytes();
    while let Some(byte) = bytes.get(at) {
        match (byte, bytes.get(at + 1)) {
            (b',', Some(b',')) => at += 1,
            (b',', _) => {
                parts.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_keys_are_taken_out_and_the_rest_stays_as_it_is() {
        let text =
            "user,hostfwd=a,mac=52:54:00:00:00:01,hostfwd=b,,c,mtu=1400,id=lan,dump=a,,b.pcap,restrict";
        let (options, rest) = CommonOptions::take(text).unwrap();
        assert_eq!(rest, "user,hostfwd=a,hostfwd=b,,c,restrict");
        let expected = CommonOptions {
            mac: Some("52:54:00:00:00:01".parse().unwrap()),
            mtu: Some(1400),
            dump: Some("a,b.pcap".into()),
            id: Some("lan".into()),
            netdev: None,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn a_first_part_like_a_common_key_is_the_backends() {
        assert_eq!(CommonOptions::take("id=x").unwrap(), (CommonOptions::default(), "id=x".to_owned()));
    }

    #[test]
    fn wrong_values_are_refused_with_key_and_value() {
        for text in ["user,mac=1", "user,mtu=67", "user,mtu=70000", "user,id=", "user,id=a,id=b"] {
            let error = CommonOptions::take(text).unwrap_err().to_string();
            assert!(error.contains("mac") || error.contains("mtu") || error.contains("id"), "{error}");
        }
    }

    #[test]
    fn each_network_has_its_form() {
        let backend = |text: &str| text.parse::<NetConfig>().unwrap().backend;
        assert_eq!(backend("user"), NetBackendConfig::User(UserConfig::default()));
        assert_eq!(backend("vde:/run/vde.ctl"), NetBackendConfig::Vde(VdeConfig::new("/run/vde.ctl")));
        assert_eq!(backend("tap:tap0,mtu=9000"), NetBackendConfig::Tap(TapConfig::new("tap0")));
        assert!(matches!(backend("socket:stream,path=/tmp/x"), NetBackendConfig::Socket(_)));
        let lan = SwitchConfig { name: "lan".to_owned() };
        assert_eq!(backend("switch:lan,id=x"), NetBackendConfig::Switch(lan));
    }

    #[test]
    fn an_mtu_of_the_network_is_the_cards_too() {
        let mtu = |config: UserConfig| {
            NetConfig { common: CommonOptions::default(), backend: NetBackendConfig::User(config) }.mtu()
        };
        assert_eq!(mtu(UserConfig::default()), None);
        assert_eq!(mtu(UserConfig { mtu: 9000, ..UserConfig::default() }), Some(9000));
        assert_eq!("user,mtu=9000".parse::<NetConfig>().unwrap().mtu(), Some(9000));
    }

    #[test]
    fn an_unknown_network_is_quoted_with_the_known_ones() {
        for text in ["", "slirp", "vmnet:en0", "users,net=x"] {
            let error = text.parse::<NetConfig>().unwrap_err().to_string();
            assert!(error.starts_with('"') && error.contains("vde:DIR"), "{error}");
        }
    }

    #[test]
    fn a_network_without_its_place_is_refused_with_an_example() {
        let error = |text: &str| text.parse::<NetConfig>().unwrap_err().to_string();
        assert_eq!(error("vde,mac=52:54:00:00:00:01"), "vde needs to know where: vde:DIR");
        assert_eq!(error("switch"), "switch needs to know where: switch:NAME");
        assert!(error("switch:").contains("the switch's name"), "{}", error("switch:"));
    }

    #[test]
    fn a_card_survives_json() {
        for text in [
            "user,mac=52:54:00:00:00:01,mtu=1400,restrict",
            "vde:/a,port=3,id=lan",
            "tap:tap0,dump=x",
            "socket:stream,path=/a,reconnect=2",
            "switch:lan,mac=52:54:00:00:00:01",
        ] {
            let config: NetConfig = text.parse().unwrap();
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<NetConfig>(&json).unwrap(), config, "{json}");
        }
    }
}
