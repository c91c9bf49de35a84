//! What is behind network cards (`-netdev`, `-net`, `-nic`), and the cards that are no `-device`.

use std::path::PathBuf;

use hvrun_vmm::net::socket::{SocketAddress, SocketConfig};
use hvrun_vmm::net::tap::TapConfig;
use hvrun_vmm::net::user::UserConfig;
use hvrun_vmm::net::vde::VdeConfig;
use hvrun_vmm::virtio::net::{CommonOptions, Mac, NetBackendConfig, NetConfig};
use hvrun_vmm::{NetdevConfig, Transport};

use super::command::Command;
use super::nearest::did_you_mean;
use super::opts::{Opts, Refusal, boolean, join};
use super::registry::Registry;
use super::table::Id;

/// Types of `-netdev`.
pub const TYPES: [&str; 6] = ["user", "vde", "socket", "stream", "dgram", "tap"];
/// Types of QEMU that are refused, each with what would work.
const OTHER_TYPES: [(&str, &str); 11] = [
    ("hubport", "connect cards by vde or socket"),
    ("bridge", "use tap,ifname=NAME with a tap interface of the bridge"),
    ("l2tpv3", "use dgram"),
    ("netmap", "use tap"),
    ("af-xdp", "use tap"),
    ("passt", "start passt with --socket and use stream,addr.type=unix,addr.path=PATH"),
    ("vhost-user", "use tap"),
    ("vhost-vdpa", "use tap"),
    ("vmnet-host", "use stream with socket_vmnet, or user"),
    ("vmnet-shared", "use stream with socket_vmnet, or user"),
    ("vmnet-bridged", "use stream with socket_vmnet, or user"),
];
/// Models of a card that `-net nic,model=` may name: the one that there is.
const MODELS: [&str; 4] =
    ["virtio", "virtio-net-pci", "virtio-net-pci-non-transitional", "virtio-net-pci-transitional"];

/// Reads every `-netdev`.
pub fn read(command: &Command) -> Result<Registry<NetBackendConfig>, Refusal> {
    let mut registry = Registry::new("netdev");
    for given in command.each(Id::Netdev) {
        let opts = given.opts()?;
        let NetdevConfig { id, backend } = netdev(opts.clone())?;
        registry.insert(&opts, id, backend)?;
    }
    Ok(registry)
}

/// One of them.
pub fn netdev(mut opts: Opts) -> Result<NetdevConfig, Refusal> {
    let kind = opts.needed("type")?;
    let id = opts.needed("id")?;
    let backend = backend(&mut opts, &kind)?;
    opts.finish()?;
    Ok(NetdevConfig { id, backend })
}

/// A card with what is behind it, before it has its name and address.
#[derive(Debug)]
pub struct Card {
    pub mac: Option<Mac>,
    pub mtu: Option<u16>,
    /// The id of the `-device`, if it has one.
    pub id: Option<String>,
    /// The id of what is behind it.
    pub netdev: Option<String>,
    pub backend: NetBackendConfig,
}

/// The cards of `-nic` and `-net`, which QEMU makes before those of `-device`: first the former, then the latter. With neither of them
/// and no `-netdev` there is one card behind a NAT.
pub fn legacy_cards(
    command: &Command,
    netdevs: &mut Registry<NetBackendConfig>,
) -> Result<Vec<Card>, Refusal> {
    let mut cards = Vec::new();
    for given in command.each(Id::Nic) {
        cards.extend(nic(given.opts()?, netdevs)?);
    }
    cards.extend(hub(command, netdevs)?);
    let said = [Id::Nodefaults, Id::Net, Id::Nic, Id::Netdev].into_iter().any(|id| command.has(id));
    if !said {
        let backend = NetBackendConfig::User(UserConfig::default());
        cards.push(Card { mac: None, mtu: None, id: None, netdev: None, backend });
    }
    Ok(cards)
}

fn nic(mut opts: Opts, netdevs: &mut Registry<NetBackendConfig>) -> Result<Option<Card>, Refusal> {
    let kind = opts.needed("type")?;
    if kind == "none" {
        opts.finish()?;
        return Ok(None);
    }
    let netdev = opts.text("id")?;
    let mac = opts.value("mac")?;
    model(&mut opts)?;
    opts.without_effect(&["addr", "vectors"]);
    let backend = backend(&mut opts, &kind)?;
    opts.clone().finish()?;
    reserve(netdevs, &opts, netdev.as_deref(), &backend)?;
    Ok(Some(Card { mac, mtu: None, id: None, netdev, backend }))
}

/// Has the id of a network that comes with its card taken, so that no other has it.
fn reserve(
    netdevs: &mut Registry<NetBackendConfig>,
    opts: &Opts,
    id: Option<&str>,
    backend: &NetBackendConfig,
) -> Result<(), Refusal> {
    let Some(id) = id else { return Ok(()) };
    netdevs.insert(opts, id.to_owned(), backend.clone())?;
    netdevs.take(id, opts).map(|_| ())
}

fn model(opts: &mut Opts) -> Result<(), Refusal> {
    opts.only("model", &MODELS)
}

/// `-net`: cards with a `netdev`, or one card and one network that belong together.
fn hub(command: &Command, netdevs: &mut Registry<NetBackendConfig>) -> Result<Vec<Card>, Refusal> {
    let mut cards = Vec::new();
    let (mut alone, mut networks) = (Vec::new(), Vec::new());
    for given in command.each(Id::Net) {
        let mut opts = given.opts()?;
        match opts.needed("type")?.as_str() {
            "none" => opts.finish()?,
            "nic" => {
                let mac = opts.value("macaddr")?;
                model(&mut opts)?;
                let id = opts.text("name")?;
                opts.without_effect(&["addr", "vectors", "id"]);
                let netdev = opts.text("netdev")?;
                opts.clone().finish()?;
                match netdev {
                    Some(netdev) => {
                        let backend = netdevs.take(&netdev, &opts)?.clone();
                        cards.push(Card { mac, mtu: None, id, netdev: Some(netdev), backend });
                    }
                    None => alone.push((opts, mac, id)),
                }
            }
            kind => {
                let name = opts.text("name")?;
                let id = opts.text("id")?.or(name);
                let backend = backend(&mut opts, kind)?;
                opts.clone().finish()?;
                reserve(netdevs, &opts, id.as_deref(), &backend)?;
                networks.push((opts, id, backend));
            }
        }
    }
    match (alone.pop(), networks.pop()) {
        (None, None) => {}
        (Some((_, mac, id)), Some((_, netdev, backend))) if alone.is_empty() && networks.is_empty() => {
            cards.push(Card { mac, mtu: None, id, netdev, backend });
        }
        (None, Some((opts, ..))) => {
            log::warn!("{}: no card is in front of it, so it is left alone", opts.source());
        }
        (Some((opts, ..)), None) => {
            return Err(opts.refuse("nothing is behind this card; add netdev=ID, or '-net user'"));
        }
        (Some((opts, ..)), Some(_)) => {
            return Err(opts.refuse("more than one card and one network need names; use -netdev and -device"));
        }
    }
    Ok(cards)
}

/// What is behind a card, by its keys.
fn backend(opts: &mut Opts, kind: &str) -> Result<NetBackendConfig, Refusal> {
    match kind {
        "user" => user(opts).map(NetBackendConfig::User),
        "vde" => {
            let sock = opts.needed("sock")?.into();
            let port = opts.value::<u16>("port")?.filter(|port| *port != 0);
            // They are for the directory of a switch that libvdeplug would make.
            opts.without_effect(&["group", "mode"]);
            Ok(NetBackendConfig::Vde(VdeConfig { sock, port }))
        }
        "socket" => socket(opts).map(NetBackendConfig::Socket),
        "stream" => stream(opts).map(NetBackendConfig::Socket),
        "dgram" => dgram(opts).map(NetBackendConfig::Socket),
        "tap" => tap(opts).map(NetBackendConfig::Tap),
        other => match OTHER_TYPES.iter().find(|(known, _)| *known == other) {
            Some((_, why)) => Err(opts.refuse(format_args!("'{other}' is not supported: {why}"))),
            None => {
                let hint = did_you_mean(other, TYPES.into_iter());
                Err(opts.refuse(format_args!("there is no network '{other}'{hint}")))
            }
        },
    }
}

fn user(opts: &mut Opts) -> Result<UserConfig, Refusal> {
    const KEYS: [&str; 10] =
        ["net", "host", "dns", "dhcpstart", "hostname", "domainname", "restrict", "ipv6", "tftp", "bootfile"];
    opts.unsupported(&["smb", "smbserver"], "a folder can be shared with -virtfs")?;
    opts.unsupported(
        &[
            "dnssearch",
            "tftp-server-name",
            "ipv6-net",
            "ipv6-prefix",
            "ipv6-prefixlen",
            "ipv6-host",
            "ipv6-dns",
        ],
        "the network has no such setting",
    )?;
    opts.only("ipv4", &["on", "yes", "true", "y"])?;
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for key in KEYS {
        let value = match key {
            "restrict" | "ipv6" => opts.switch(key)?.map(|on| if on { "on" } else { "off" }.to_owned()),
            _ => opts.text(key)?,
        };
        pairs.extend(value.filter(|value| !value.is_empty()).map(|value| (key, value)));
    }
    // A forwarding has no comma, so what is behind one is a key of its own: `hostfwd=...,,restrict=on` is what shell scripts with an
    // empty variable in it make.
    for value in opts.list("hostfwd")? {
        let (forward, rest) = value.split_once(',').unwrap_or((&value, ""));
        pairs.push(("hostfwd", forward.to_owned()));
        for part in rest.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("hostfwd", value)) => pairs.push(("hostfwd", value.to_owned())),
                Some(("restrict", value)) if boolean(value).is_some() => {
                    pairs.push(("restrict", value.to_owned()))
                }
                _ => {
                    return Err(
                        opts.refuse(format_args!("hostfwd={value}: '{part}' is no part of a forwarding"))
                    );
                }
            }
        }
    }
    for value in opts.list("guestfwd")? {
        pairs.push(("guestfwd", value.strip_suffix(',').unwrap_or(&value).to_owned()));
    }
    let text = join(pairs.iter().map(|(key, value)| (*key, value.as_str())));
    text.parse().map_err(|error| opts.refuse(error))
}

/// QEMU's older form of `stream` and `dgram`.
fn socket(opts: &mut Opts) -> Result<SocketConfig, Refusal> {
    opts.unsupported(&["fd"], "name the socket by its address")?;
    let (listen, connect) = (opts.text("listen")?, opts.text("connect")?);
    let (mcast, udp) = (opts.text("mcast")?, opts.text("udp")?);
    let local = opts.text("localaddr")?;
    let config = match (listen, connect, mcast, udp) {
        (Some(listen), None, None, None) => {
            SocketConfig::Stream { address: address(opts, &listen)?, server: true, reconnect: None }
        }
        (None, Some(connect), None, None) => {
            SocketConfig::Stream { address: address(opts, &connect)?, server: false, reconnect: None }
        }
        (None, None, Some(group), None) => {
            SocketConfig::Dgram { local: None, remote: address(opts, &group)? }
        }
        (None, None, None, Some(peer)) => {
            let local = local.as_deref().map(|local| address(opts, local)).transpose()?;
            SocketConfig::Dgram { local, remote: address(opts, &peer)? }
        }
        _ => return Err(opts.refuse("one of listen=, connect= and udp= says where the peer is")),
    };
    Ok(config)
}

fn address(opts: &Opts, text: &str) -> Result<SocketAddress, Refusal> {
    text.parse().map_err(|error| opts.refuse(error))
}

/// An address by its keys `PREFIX.type`, `.path`, `.host`, `.port`.
fn keyed_address(opts: &mut Opts, keys: [&'static str; 4]) -> Result<Option<SocketAddress>, Refusal> {
    let [kind, path, host, port] = keys;
    match opts.text(kind)?.as_deref() {
        None => Ok(None),
        Some("unix") => Ok(Some(SocketAddress::Unix(PathBuf::from(opts.needed(path)?)))),
        Some("inet") => {
            let name = opts.text(host)?.unwrap_or_default();
            let number = opts.needed(port)?;
            let number =
                number.parse().map_err(|_| opts.refuse(format_args!("{port}={number}: that is no port")))?;
            Ok(Some(SocketAddress::Inet { host: name, port: number }))
        }
        Some(other) => Err(opts.refuse(format_args!("{kind}={other}: it can be unix or inet"))),
    }
}

fn stream(opts: &mut Opts) -> Result<SocketConfig, Refusal> {
    let address = keyed_address(opts, ["addr.type", "addr.path", "addr.host", "addr.port"])?;
    let Some(address) = address else {
        return Err(opts.refuse("addr.type=unix or addr.type=inet is missing"));
    };
    for key in ["addr.abstract", "addr.ipv4", "addr.ipv6", "addr.tight"] {
        opts.without_effect(&[key]);
    }
    let server = opts.switch("server")?.unwrap_or(false);
    let seconds = opts.number("reconnect")?.unwrap_or(0);
    let millis = opts.number("reconnect-ms")?.unwrap_or(0);
    let seconds = seconds.saturating_add(millis.div_ceil(1000));
    if server && seconds != 0 {
        return Err(opts.refuse("'reconnect' is for a client; with server=on, peers may come and go anyway"));
    }
    let reconnect = u32::try_from(seconds).map_err(|_| opts.refuse("'reconnect' is too long to wait for"))?;
    Ok(SocketConfig::Stream { address, server, reconnect: (reconnect != 0).then_some(reconnect) })
}

fn dgram(opts: &mut Opts) -> Result<SocketConfig, Refusal> {
    let local = keyed_address(opts, ["local.type", "local.path", "local.host", "local.port"])?;
    let remote = keyed_address(opts, ["remote.type", "remote.path", "remote.host", "remote.port"])?;
    match (local, remote) {
        (None, Some(SocketAddress::Unix(_))) => {
            Err(opts.refuse("local.type=unix,local.path=... is missing, for the peer to answer to"))
        }
        (local, Some(remote)) => Ok(SocketConfig::Dgram { local, remote }),
        (_, None) => Err(opts.refuse("remote.type=unix or remote.type=inet is missing")),
    }
}

fn tap(opts: &mut Opts) -> Result<TapConfig, Refusal> {
    opts.unsupported(&["fd", "fds", "vhostfd", "vhostfds", "helper"], "name the interface by ifname=NAME")?;
    opts.unsupported(&["br"], "put the tap interface into the bridge yourself")?;
    for key in ["script", "downscript"] {
        match opts.text(key)?.as_deref() {
            None | Some("no" | "") => {}
            Some(script) => {
                return Err(opts.refuse(format_args!(
                    "{key}={script}: no scripts are run; set the interface up before and use {key}=no"
                )));
            }
        }
    }
    opts.without_effect(&["vhost", "vhostforce", "vnet_hdr", "sndbuf", "poll-us"]);
    opts.only("queues", &["1"])?;
    Ok(TapConfig::new(opts.needed("ifname")?))
}

/// Gives the cards their names and addresses as QEMU does: a card without an id is called after its model and number, and one without an
/// address gets the first that no other has.
pub fn finish(cards: Vec<Card>, transport: Transport) -> Vec<NetConfig> {
    let model = match transport {
        Transport::Pci => "virtio-net-pci",
        Transport::Mmio => "virtio-net-device",
    };
    let mut taken: Vec<Mac> = cards.iter().filter_map(|card| card.mac).collect();
    let mut nets = Vec::new();
    for (index, card) in cards.into_iter().enumerate() {
        let mac = card.mac.or_else(|| (0..256).map(Mac::of_card).find(|mac| !taken.contains(mac)));
        taken.extend(mac);
        let id = Some(card.id.unwrap_or_else(|| format!("{model}.{index}")));
        let common = CommonOptions { mac, mtu: card.mtu, dump: None, id, netdev: card.netdev };
        nets.push(NetConfig { common, backend: card.backend });
    }
    nets
}
