//! What can be said about a user-mode network, in QEMU's words: `net=`, `hostfwd=`, `restrict=` and so on. Plain data; nothing is
//! opened here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::options::{OptionError, OptionList};

/// Keys that may be there several times.
const LISTS: [&str; 3] = ["hostfwd", "guestfwd", "resolver"];
/// The smallest MTU that IPv6 works with (RFC 8200, 5), and the largest that fits an IPv4 packet and leaves room for headers.
pub(super) const MTU: std::ops::RangeInclusive<u16> = 1280..=65520;
/// Where name servers listen if nothing else is said (RFC 1035, 4.2).
const DNS_PORT: u16 = 53;

/// A user-mode network. `Default` is what QEMU has: 10.0.2.0/24 with a router at .2, a name server at .3, guests from .15 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserConfig {
    /// The guest's network.
    pub net: Ipv4Net,
    /// The router, which is the host; the network's second address if not given.
    pub host: Option<Ipv4Addr>,
    /// The name server; the network's third address if not given.
    pub dns: Option<Ipv4Addr>,
    /// Name servers that the guest's questions are passed on to, instead of the host's.
    pub resolvers: Vec<SocketAddr>,
    /// First of the addresses that DHCP gives away; the network's fifteenth if not given.
    pub dhcpstart: Option<Ipv4Addr>,
    /// The name that DHCP gives the guest.
    pub hostname: Option<String>,
    /// The domain that DHCP gives the guest.
    pub domainname: Option<String>,
    /// Nothing leaves but what [`UserConfig::hostfwd`] and [`UserConfig::guestfwd`] name.
    pub restrict: bool,
    /// Whether there is IPv6, fec0::/64.
    pub ipv6: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Folder that TFTP serves, read-only.
    pub tftp: Option<PathBuf>,
    /// The file that DHCP tells the guest to boot.
    pub bootfile: Option<String>,
    /// Ports of the host that lead to the guest.
    pub hostfwd: Vec<HostForward>,
    /// Addresses in the guest's network that lead to the host.
    pub guestfwd: Vec<GuestForward>,
}

impl Default for UserConfig {
    fn default() -> Self {
        UserConfig {
            net: Ipv4Net { address: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 },
            host: None,
            dns: None,
            resolvers: Vec::new(),
            dhcpstart: None,
            hostname: None,
            domainname: None,
            restrict: false,
            ipv6: true,
            mtu: 1500,
            tftp: None,
            bootfile: None,
            hostfwd: Vec::new(),
            guestfwd: Vec::new(),
        }
    }
}

impl FromStr for UserConfig {
    type Err = OptionError;

    /// `[user,]key=value,...`.
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let rest = match text.strip_prefix("user") {
            Some(rest) if rest.is_empty() || rest.starts_with(',') => rest.to_owned(),
            _ => format!(",{text}"),
        };
        let mut options = OptionList::parse_with_lists(&format!("user{rest}"), &LISTS)?;
        options.first("user")?;
        let default = UserConfig::default();
        let config = UserConfig {
            net: options.value("net", "10.0.2.0/24")?.unwrap_or(default.net),
            host: address(&mut options, "host", "10.0.2.2")?,
            dns: address(&mut options, "dns", "10.0.2.3")?,
            resolvers: resolvers(&mut options)?,
            dhcpstart: address(&mut options, "dhcpstart", "10.0.2.15")?,
            hostname: options.text("hostname", "guest")?,
            domainname: options.text("domainname", "example.org")?,
            restrict: options.switch("restrict")?.unwrap_or(false),
            ipv6: options.switch("ipv6")?.unwrap_or(true),
            mtu: mtu(&mut options)?,
            tftp: options.text("tftp", "/srv/tftp")?.map(PathBuf::from),
            bootfile: options.text("bootfile", "/pxelinux.0")?,
            hostfwd: each(&mut options, "hostfwd", "tcp:127.0.0.1:2222-:22")?,
            guestfwd: each(&mut options, "guestfwd", "tcp:10.0.2.100:80-cmd:httpd")?,
        };
        options.finish()?;
        Ok(config)
    }
}

fn invalid(key: &str, value: &str, reason: impl Into<String>) -> OptionError {
    OptionError::Value { key: key.to_owned(), value: value.to_owned(), reason: reason.into() }
}

fn address(
    options: &mut OptionList,
    key: &'static str,
    example: &str,
) -> Result<Option<Ipv4Addr>, OptionError> {
    let Some(text) = options.text(key, example)? else { return Ok(None) };
    match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(invalid(key, &text, format!("it has to be an IPv4 address, such as {example}"))),
    }
}

fn resolvers(options: &mut OptionList) -> Result<Vec<SocketAddr>, OptionError> {
    let parse = |text: String| {
        let server = match text.parse() {
            Ok(address) => Some(SocketAddr::new(address, DNS_PORT)),
            Err(_) => text.parse().ok().filter(|server: &SocketAddr| server.port() != 0),
        };
        server.ok_or_else(|| {
            invalid(
                "resolver",
                &text,
                "it has to be an address, with or without a port, such as 127.0.0.53:53",
            )
        })
    };
    options.list("resolver", "127.0.0.53")?.into_iter().map(parse).collect()
}

fn mtu(options: &mut OptionList) -> Result<u16, OptionError> {
    let Some(text) = options.text("mtu", "1500")? else { return Ok(UserConfig::default().mtu) };
    match text.parse() {
        Ok(mtu) if MTU.contains(&mtu) => Ok(mtu),
        _ => Err(invalid("mtu", &text, format!("it can be {} to {}", MTU.start(), MTU.end()))),
    }
}

fn each<T: FromStr<Err = ForwardError>>(
    options: &mut OptionList,
    key: &'static str,
    example: &str,
) -> Result<Vec<T>, OptionError> {
    let parse =
        |text: String| text.parse().map_err(|error: ForwardError| invalid(key, &text, error.to_string()));
    options.list(key, example)?.into_iter().map(parse).collect()
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv4Net {
    /// Its first address.
    pub address: Ipv4Addr,
    /// How many bits all its addresses share, 8 to 29.
    pub prefix: u8,
}

impl Ipv4Net {
    /// The prefix as a mask.
    pub fn mask(&self) -> Ipv4Addr {
        let host_bits = 32u32.saturating_sub(u32::from(self.prefix));
        Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask().to_bits() == self.address.to_bits() & self.mask().to_bits()
    }

    /// The last address: everyone in the network.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask().to_bits())
    }

    /// The address `index` after the first.
    pub(super) fn nth(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits((self.address.to_bits() & self.mask().to_bits()).wrapping_add(index))
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Ipv4Net {
    type Err = ForwardError;

    /// `10.0.2.0/24`, `10.0.2.0/255.255.255.0`, `10.0.2.0`.
    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let wrong = || ForwardError("it has to be a network of 8 to 29 bits, such as 10.0.2.0/24".to_owned());
        let (address, bits) = text.split_once('/').unwrap_or((text, "24"));
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix = match bits.parse::<Ipv4Addr>() {
            Ok(mask) if mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() == 32 => {
                u8::try_from(mask.to_bits().leading_ones()).map_err(|_| wrong())?
            }
            Ok(_) => return Err(wrong()),
            Err(_) => bits.parse().map_err(|_| wrong())?,
        };
        if !(8..=29).contains(&prefix) {
            return Err(wrong());
        }
        let net = Ipv4Net { address, prefix };
        Ok(Ipv4Net { address: net.nth(0), prefix })
    }
}

/// What is wrong with the text of a forwarding, and what would work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ForwardError(String);

/// What is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the host that leads to the guest: `tcp:127.0.0.1:2222-10.0.2.15:22`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostForward {
    /// What is forwarded.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Which guest; the first that DHCP knows if not given.
    pub guest: Option<IpAddr>,
    /// Which of its ports.
    pub guest_port: u16,
}

impl fmt::Display for HostForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-", self.protocol, self.host)?;
        match self.guest {
            Some(guest) => write!(f, "{}", SocketAddr::new(guest, self.guest_port)),
            None => write!(f, ":{}", self.guest_port),
        }
    }
}

impl FromStr for HostForward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let form = "it has to be tcp|udp:[host address]:port-[guest address]:port, such as tcp::2222-:22";
        let wrong = |what: &str| ForwardError(format!("{what}; {form}"));
        let (protocol, rest) = text.split_once(':').ok_or_else(|| wrong("there is no port"))?;
        let protocol = match protocol {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(wrong(&format!("{other:?} is no protocol"))),
        };
        let (host, guest) = rest.split_once('-').ok_or_else(|| wrong("there is no '-'"))?;
        let (host, port) =
            endpoint(host).ok_or_else(|| wrong(&format!("{host:?} is no address and port")))?;
        let (guest, guest_port) =
            endpoint(guest).ok_or_else(|| wrong(&format!("{guest:?} is no address and port")))?;
        if guest_port == 0 {
            return Err(wrong("the guest's port cannot be 0"));
        }
        let unspecified = match guest {
            Some(IpAddr::V6(_)) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let host = SocketAddr::new(host.unwrap_or(unspecified), port);
        let same_family = guest.is_none_or(|guest| guest.is_ipv4() == host.is_ipv4());
        if protocol == Protocol::Udp && (!same_family || guest.is_none() && host.is_ipv6()) {
            return Err(wrong("datagrams need IPv4 or IPv6 on both sides"));
        }
        Ok(HostForward { protocol, host, guest, guest_port })
    }
}

/// `[address]:port`, where an IPv6 address has brackets.
fn endpoint(text: &str) -> Option<(Option<IpAddr>, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let address = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => Some(IpAddr::V6(v6.parse().ok()?)),
        None if address.is_empty() => None,
        None => Some(IpAddr::V4(address.parse().ok()?)),
    };
    Some((address, port))
}

/// An address in the guest's network that leads to the host: `tcp:10.0.2.100:80-cmd:httpd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestForward {
    /// The address, which lies in the guest's network.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// What a connection to it reaches.
    pub target: GuestTarget,
}

/// See [`GuestForward::target`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestTarget {
    /// A command for `sh -c`, started for each connection, which is its standard input and output.
    Cmd(String),
    /// A server that the host reaches.
    Tcp(SocketAddr),
    /// A unix socket that somebody listens on.
    Unix(PathBuf),
}

impl FromStr for GuestForward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let form = "it has to be tcp:address:port-cmd:command, -tcp:address:port or -unix:path";
        let wrong = |what: &str| ForwardError(format!("{what}; {form}"));
        let (protocol, rest) = text.split_once(':').ok_or_else(|| wrong("there is no port"))?;
        if !matches!(protocol, "tcp" | "") {
            return Err(wrong(&format!("{protocol:?} cannot be forwarded")));
        }
        let (server, target) = rest.split_once('-').ok_or_else(|| wrong("there is no '-'"))?;
        let (address, port) = match endpoint(server) {
            Some((Some(address), port)) if port != 0 => (address, port),
            _ => return Err(wrong(&format!("{server:?} is no address and port"))),
        };
        let target = match target.split_once(':') {
            Some(("cmd", command)) if !command.trim().is_empty() => GuestTarget::Cmd(command.to_owned()),
            Some(("unix", path)) if !path.is_empty() => GuestTarget::Unix(PathBuf::from(path)),
            Some(("tcp", server)) => match endpoint(server) {
                Some((Some(address), port)) if port != 0 => GuestTarget::Tcp(SocketAddr::new(address, port)),
                _ => return Err(wrong(&format!("{server:?} is no numeric address and port"))),
            },
            _ => return Err(wrong(&format!("{target:?} is no target"))),
        };
        Ok(GuestForward { address, port, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> UserConfig {
        text.parse().unwrap()
    }

    fn error(text: &str) -> String {
        text.parse::<UserConfig>().unwrap_err().to_string()
    }

    #[test]
    fn nothing_at_all_is_qemus_network() {
        assert_eq!(parse(""), UserConfig::default());
        assert_eq!(parse("user"), UserConfig::default());
    }

    #[test]
    fn a_forwarding_without_addresses_is_any_host_address_and_the_first_guest() {
        let expected = HostForward {
            protocol: Protocol::Tcp,
            host: "0.0.0.0:2222".parse().unwrap(),
            guest: None,
            guest_port: 22,
        };
        assert_eq!(parse("hostfwd=tcp::2222-:22").hostfwd, [expected]);
    }

    #[test]
    fn forwardings_add_up() {
        let text = "user,hostfwd=tcp:127.0.0.1:31022-:22,hostfwd=udp::53-10.0.2.15:53,restrict=on";
        let config = parse(text);
        assert!(config.restrict);
        assert_eq!(config.hostfwd.len(), 2);
        assert_eq!(config.hostfwd[1].guest, Some("10.0.2.15".parse().unwrap()));
    }

    #[test]
    fn a_forwarding_is_printed_as_it_is_read() {
        let text = "udp:[::1]:8080-[fec0::15]:80";
        assert_eq!(text.parse::<HostForward>().unwrap().to_string(), text);
    }

    #[test]
    fn a_forwarding_without_a_guest_says_how_one_looks() {
        assert_eq!(
            error("hostfwd=tcp::2222"),
            "hostfwd=tcp::2222: there is no '-'; it has to be tcp|udp:[host address]:port-[guest address]:port, \
             such as tcp::2222-:22"
        );
    }

    #[test]
    fn a_port_beyond_65535_is_refused() {
        assert!(error("hostfwd=tcp::70000-:22").contains("\":70000\" is no address and port"));
    }

    #[test]
    fn a_network_may_have_a_mask_of_either_form() {
        assert_eq!(parse("net=169.0.0.0/8").net.prefix, 8);
        assert_eq!(parse("net=10.1.0.0/255.255.0.0").net.to_string(), "10.1.0.0/16");
    }

    #[test]
    fn a_mask_with_holes_is_refused() {
        assert!(error("net=10.0.0.0/255.0.255.0").contains("such as 10.0.2.0/24"));
    }

    #[test]
    fn a_command_may_have_spaces_and_dashes() {
        let config = parse("guestfwd=tcp:169.254.169.254:80-cmd:micro-httpd -d /srv/x");
        assert_eq!(config.guestfwd[0].target, GuestTarget::Cmd("micro-httpd -d /srv/x".into()));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        assert!(error("smb=/tmp").contains("it can be one of net, host, dns, resolver, dhcpstart"));
    }

    #[test]
    fn a_resolver_may_have_a_port_and_there_may_be_several() {
        let config = parse("resolver=192.0.2.1,resolver=[::1]:5353,resolver=::1");
        let expected = ["192.0.2.1:53", "[::1]:5353", "[::1]:53"].map(|text| text.parse().unwrap());
        assert_eq!(config.resolvers, expected);
    }

    #[test]
    fn a_resolver_by_name_is_refused_with_an_example() {
        let text =
            "resolver=localhost: it has to be an address, with or without a port, such as 127.0.0.53:53";
        assert_eq!(error("resolver=localhost"), text);
    }

    #[test]
    fn an_mtu_out_of_range_is_refused_with_the_range() {
        assert_eq!(error("mtu=100"), "mtu=100: it can be 1280 to 65520");
    }

    #[test]
    fn the_configuration_survives_json() {
        let config = parse("net=10.9.0.0/16,hostfwd=tcp::1-:2,guestfwd=tcp:10.9.0.9:7-unix:/x,tftp=/t");
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<UserConfig>(&json).unwrap(), config);
    }
}
