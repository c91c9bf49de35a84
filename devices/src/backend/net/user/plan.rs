//! Which addresses there are in a user-mode network and what is behind each, seen from either side. Pure; no sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::UserNetError;
use super::config::{GuestTarget, Ipv4Net, MTU, UserConfig};

/// fec0::/64, as slirp has it (site-local, RFC 3513, 2.5.6; deprecated, and for that reason nobody else's).
pub(super) const PREFIX6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0);
/// The router in it.
pub(super) const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// The name server in it.
pub(super) const DNS6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);
/// The router's link-local address.
pub(super) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// What is behind an address that the guest sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The router: the host's loopback.
    Router,
    /// The name server.
    Dns,
    /// The guest's network, and nobody there; or nothing that can be sent to.
    Nowhere,
    /// Somewhere else.
    Outside,
}

/// The addresses of one network.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) net: Ipv4Net,
    pub(super) router: Ipv4Addr,
    pub(super) dns: Ipv4Addr,
    pub(super) dhcp_start: Ipv4Addr,
    pub(super) ipv6: bool,
    pub(super) restrict: bool,
    pub(super) mtu: u16,
    pub(super) forwards: Vec<(SocketAddr, GuestTarget)>,
}

impl Plan {
    pub(super) fn new(config: &UserConfig) -> Result<Plan, UserNetError> {
        let net = config.net;
        if !(8..=29).contains(&net.prefix) {
            return Err(UserNetError::Prefix(net.prefix));
        }
        if !MTU.contains(&config.mtu) {
            return Err(UserNetError::Mtu(config.mtu));
        }
        let start = if net.prefix <= 27 { 15 } else { 4 };
        let plan = Plan {
            net,
            router: config.host.unwrap_or(net.nth(2)),
            dns: config.dns.unwrap_or(net.nth(3)),
            dhcp_start: config.dhcpstart.unwrap_or(net.nth(start)),
            ipv6: config.ipv6,
            restrict: config.restrict,
            mtu: config.mtu,
            forwards: config
                .guestfwd
                .iter()
                .map(|f| (SocketAddr::new(f.address, f.port), f.target.clone()))
                .collect(),
        };
        let inside = [("host", plan.router), ("dns", plan.dns), ("dhcpstart", plan.dhcp_start)];
        for (key, address) in inside {
            if !plan.assignable(address) {
                return Err(UserNetError::Outside { key, address: address.into(), net });
            }
        }
        if plan.router == plan.dns || [plan.router, plan.dns].contains(&plan.dhcp_start) {
            return Err(UserNetError::Same(plan.dhcp_start));
        }
        for (server, _) in &plan.forwards {
            let good = match server.ip() {
                IpAddr::V4(address) => plan.assignable(address),
                IpAddr::V6(address) => plan.ipv6 && in_prefix6(address),
            };
            if !good {
                return Err(UserNetError::Outside { key: "guestfwd", address: server.ip(), net });
            }
        }
        Ok(plan)
    }

    /// Whether a host of the network can have `address`.
    pub(super) fn assignable(&self, address: Ipv4Addr) -> bool {
        self.net.contains(address) && address != self.net.nth(0) && address != self.net.broadcast()
    }

    /// The router's Ethernet address, which everything comes from: locally administered, with the IPv4 address in it, as slirp's.
    pub(super) fn mac(&self) -> Mac {
        let [a, b, c, d] = self.router.octets();
        [0x52, 0x55, a, b, c, d]
    }

    /// Whether it is us who answer for `address` on the link.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        let ours = match address {
            IpAddr::V4(v4) => v4 == self.router || v4 == self.dns,
            IpAddr::V6(v6) => self.ipv6 && [ROUTER6, DNS6, LINK_LOCAL].contains(&v6),
        };
        ours || self.forwards.iter().any(|(server, _)| server.ip() == address)
    }

    /// What is behind `address`.
    pub(super) fn place(&self, address: IpAddr) -> Place {
        match address {
            IpAddr::V4(v4) if v4 == self.router => Place::Router,
            IpAddr::V4(v4) if v4 == self.dns => Place::Dns,
            IpAddr::V4(v4) => {
                let special =
                    v4.octets()[0] == 0 || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast();
                if special || self.net.contains(v4) { Place::Nowhere } else { Place::Outside }
            }
            IpAddr::V6(_) if !self.ipv6 => Place::Nowhere,
            IpAddr::V6(ROUTER6 | LINK_LOCAL) => Place::Router,
            IpAddr::V6(DNS6) => Place::Dns,
            IpAddr::V6(v6) => {
                // A mapped or compatible address would reach IPv4, loopback included, past the rules above.
                let embeds_v4 = v6.to_ipv4().is_some();
                let special = v6.is_multicast() || v6.is_unicast_link_local() || embeds_v4;
                if special || in_prefix6(v6) { Place::Nowhere } else { Place::Outside }
            }
        }
    }

    /// Where on the host a packet to `destination` goes, resolvers aside.
    pub(super) fn host_address(&self, destination: SocketAddr) -> Option<SocketAddr> {
        let ip = match (self.place(destination.ip()), destination.ip()) {
            (Place::Router, IpAddr::V4(_)) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            (Place::Router, IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            (Place::Outside, ip) => ip,
            (Place::Dns | Place::Nowhere, _) => return None,
        };
        Some(SocketAddr::new(ip, destination.port()))
    }

    /// How the guest sees `peer` of the host: those that it could not answer are the router. Where nothing leaves the guest has no
    /// way out, so there all are.
    pub(super) fn guest_view(&self, peer: SocketAddr, v6: bool) -> SocketAddr {
        let router = if v6 { IpAddr::V6(ROUTER6) } else { IpAddr::V4(self.router) };
        let ip = peer.ip().to_canonical();
        let ip = if ip.is_ipv6() == v6 && !self.restrict && self.place(ip) == Place::Outside {
            ip
        } else {
            router
        };
        SocketAddr::new(ip, peer.port())
    }
}

fn in_prefix6(address: Ipv6Addr) -> bool {
    address.octets()[..8] == PREFIX6.octets()[..8]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Plan, UserNetError> {
        Plan::new(&text.parse().unwrap())
    }

    fn place(address: &str) -> Place {
        plan("").unwrap().place(address.parse().unwrap())
    }

    #[test]
    fn the_hosts_loopback_is_reached_through_the_router_alone() {
        assert_eq!(place("10.0.2.2"), Place::Router);
        assert_eq!(place("127.0.0.1"), Place::Nowhere);
        assert_eq!(place("::1"), Place::Nowhere);
        assert_eq!(place("::ffff:127.0.0.1"), Place::Nowhere);
        assert_eq!(place("0.0.0.0"), Place::Nowhere);
        assert_eq!(place("0.1.2.3"), Place::Nowhere);
    }

    #[test]
    fn another_address_of_the_guests_network_is_nowhere() {
        assert_eq!(place("10.0.2.77"), Place::Nowhere);
        assert_eq!(place("fec0::77"), Place::Nowhere);
    }

    #[test]
    fn a_peer_on_loopback_looks_like_the_router_to_the_guest() {
        let view = plan("").unwrap().guest_view("127.0.0.1:5000".parse().unwrap(), false);
        assert_eq!(view, "10.0.2.2:5000".parse().unwrap());
    }

    #[test]
    fn a_peer_looks_like_the_router_to_a_guest_without_a_way_out() {
        let peer = "192.0.2.9:5000".parse().unwrap();
        assert_eq!(plan("").unwrap().guest_view(peer, false), peer);
        let view = plan("restrict=on").unwrap().guest_view(peer, false);
        assert_eq!(view, "10.0.2.2:5000".parse().unwrap());
    }

    #[test]
    fn an_mtu_out_of_range_is_refused_with_the_range() {
        let config = UserConfig { mtu: 576, ..UserConfig::default() };
        assert_eq!(Plan::new(&config).unwrap_err().to_string(), "mtu=576: it can be 1280 to 65520");
    }

    #[test]
    fn addresses_follow_the_network() {
        let plan = plan("net=192.168.76.0/24").unwrap();
        assert_eq!(plan.router, Ipv4Addr::new(192, 168, 76, 2));
        assert_eq!(plan.dhcp_start, Ipv4Addr::new(192, 168, 76, 15));
    }

    #[test]
    fn a_router_outside_of_the_network_is_refused() {
        let error = plan("host=10.0.3.2").unwrap_err().to_string();
        assert_eq!(error, "host=10.0.3.2 has to be an address in the network 10.0.2.0/24");
    }

    #[test]
    fn a_guestfwd_outside_of_the_network_is_refused() {
        assert!(plan("guestfwd=tcp:192.0.2.1:80-cmd:x").unwrap_err().to_string().contains("192.0.2.1"));
    }
}
