//! Which addresses may be connected to.
//!
//! Whoever can create a pod writes a reference, and whoever owns the registry that it names says where the rest is: in redirects, and in
//! the realms of token servers. Neither is to reach, through the node, what only the node reaches. What counts is the address that is
//! connected to, after the look-up of its name: a name may have any address, and another one a moment later (GHSA-xf85-363p-868w).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use reqwest::Url;

/// Who names a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamedBy {
    /// The operator: it is the host of a mirror, or of a server that a file of hosts names.
    Operator,
    /// The reference: it is the host of the registry itself.
    Reference,
    /// The registry, or a host that it redirects to.
    Answer,
}

/// How far a connection may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Reach {
    /// Public addresses.
    Public,
    /// Also those of private networks, the cluster's for example.
    Private,
    /// Also loopback addresses.
    Loopback,
}

/// Why an address is not connected to, the least grave reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refused {
    /// No host that is named in an answer has such an address.
    #[error("it has an address in a private network, and is not the registry that `reference` names")]
    Private,
    /// What listens there is for the machine's own programs.
    #[error("it has a loopback address")]
    Loopback,
    /// It is a proxy's name: who resolves it is not looked at.
    #[error("it is the node's HTTP proxy")]
    Proxy,
    /// Nothing that is pulled is there.
    #[error(
        "it has an address that is never connected to: link-local, of a cloud's metadata service, or no host's"
    )]
    Never,
}

impl Refused {
    /// What can be done about it.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Never => "",
            Self::Private | Self::Loopback | Self::Proxy => {
                "; if that is meant, name it in --allow-hosts (registry.allowedHosts in the chart)"
            }
        }
    }
}

/// What an operator allows beyond what holds for everybody.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// Nobody but the one who gives the command names hosts.
    is_trusting: bool,
    hosts: Vec<Pattern>,
    networks: Vec<IpNet>,
}

/// Hosts that an operator names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    /// As URLs have it; of a domain with its dot: `.example.com`.
    name: String,
    /// Any, if not said.
    port: Option<u16>,
}

/// A text is neither a host, a domain nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is no host[:port], domain as *.example.com, or network as 10.0.0.0/8")]
pub struct BadAllowed;

/// What an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Public,
    Private,
    Loopback,
    Never,
}

/// Addresses of metadata services that are not link-local, and what else clouds answer at for the machine itself: of Azure, Alibaba Cloud
/// and Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
/// The same of Google Cloud, Oracle Cloud and Scaleway.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

impl Addresses {
    /// For a command that a person gives: what is named is what that person, or a registry of that person's choice, names. Only
    /// what is never connected to is refused.
    pub fn of_a_command() -> Self {
        Self { is_trusting: true, ..Self::default() }
    }

    /// Allows what `text` names: a host with or without port, a domain, an address or a network.
    ///
    /// # Errors
    /// [`BadAllowed`].
    pub fn allow(&mut self, text: &str) -> Result<(), BadAllowed> {
        if let Ok(network) = text.parse::<IpNet>() {
            self.networks.push(network);
        } else if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            self.networks.push(canonical(address).into());
        } else {
            self.hosts.push(text.parse()?);
        }
        Ok(())
    }

    /// Allows a registry that is spoken to without TLS, at its port and no other.
    ///
    /// # Errors
    /// [`BadAllowed`].
    pub fn allow_plain_http(&mut self, host: &str) -> Result<(), BadAllowed> {
        let pattern: Pattern = host.parse()?;
        self.hosts.push(Pattern { port: Some(pattern.port.unwrap_or(80)), ..pattern });
        Ok(())
    }

    /// How far a connection to the host of `url` may reach. A name without a port, or a domain, stands for many services, and whoever
    /// has it may give it any address: not that of the machine itself.
    pub(super) fn reach(&self, named_by: NamedBy, url: &Url) -> Reach {
        if self.is_trusting
            || named_by == NamedBy::Operator
            || self.patterns_of(url).any(|pattern| pattern.port.is_some())
        {
            return Reach::Loopback;
        }
        let is_allowed = self.patterns_of(url).next().is_some();
        if named_by == NamedBy::Reference || is_allowed { Reach::Private } else { Reach::Public }
    }

    /// Whether the operator has named the host of `url`. That its address is in a network that is allowed says nothing of who it is.
    pub(super) fn names(&self, url: &Url) -> bool {
        self.patterns_of(url).next().is_some()
    }

    fn patterns_of(&self, url: &Url) -> impl Iterator<Item = &Pattern> {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        self.hosts.iter().filter(move |pattern| {
            let is_port = pattern.port.is_none_or(|port| url.port_or_known_default() == Some(port));
            let is_name = match pattern.name.starts_with('.') {
                true => host.ends_with(&pattern.name),
                false => host == pattern.name,
            };
            is_port && is_name
        })
    }

    /// Whether a connection that may reach so far may be to `address`.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, reach: Reach, address: IpAddr) -> Result<(), Refused> {
        let address = canonical(address);
        match place(address) {
            Place::Never => Err(Refused::Never),
            Place::Public => Ok(()),
            _ if self.networks.iter().any(|network| network.contains(&address)) => Ok(()),
            Place::Private if reach >= Reach::Private => Ok(()),
            Place::Private => Err(Refused::Private),
            Place::Loopback if reach == Reach::Loopback => Ok(()),
            Place::Loopback => Err(Refused::Loopback),
        }
    }
}

impl FromStr for Pattern {
    type Err = BadAllowed;

    fn from_str(text: &str) -> Result<Self, BadAllowed> {
        let domain = text.strip_prefix("*.");
        let has_only_a_host = !text.contains(['/', '@', '?', '#', '\\']);
        let url = Url::parse(&format!("http://{}", domain.unwrap_or(text)));
        let url = url.ok().filter(|_| has_only_a_host).ok_or(BadAllowed)?;
        let host = url.host_str().ok_or(BadAllowed)?.trim_end_matches('.');
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_name) || (domain.is_some() && address_of(&url).is_some()) {
            return Err(BadAllowed);
        }
        // A URL drops the port that its scheme has anyway.
        let says_80 = text.ends_with(":80").then_some(80);
        let name = if domain.is_some() { format!(".{host}") } else { host.to_owned() };
        Ok(Self { name, port: url.port().or(says_80) })
    }
}

/// The address that `url` names, if it names no name.
pub(super) fn address_of(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// The address of IPv4 that one of IPv6 stands for: mapped, of NAT64 (RFC 6052, RFC 8215 as a prefix of 96 bits), or of 6to4 (RFC
/// 3056). Any other is itself.
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [first, second, third, fourth, fifth, sixth, seventh, eighth] = v6.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match (first, second, third) {
        (0x64, 0xff9b, 0 | 1) if [fourth, fifth, sixth] == [0, 0, 0] => embedded(seventh, eighth),
        (0x2002, ..) => embedded(second, third),
        _ => address.to_canonical(),
    }
}

fn place(address: IpAddr) -> Place {
    match canonical(address) {
        IpAddr::V4(address) => place_v4(address),
        IpAddr::V6(address) => place_v6(address),
    }
}

/// IANA's IPv4 Special-Purpose Address Registry. What is reserved is used inside some clusters.
fn place_v4(address: Ipv4Addr) -> Place {
    let [first, second, third, _] = address.octets();
    match (first, second) {
        _ if METADATA_V4.contains(&address) || address.is_broadcast() => Place::Never,
        (127, _) => Place::Loopback,
        (10, _) | (172, 16..=31) | (192, 168) | (100, 64..=127) | (198, 18 | 19) | (240.., _) => {
            Place::Private
        }
        (192, 0) if third == 0 => Place::Private,
        // This host, link-local, and multicast.
        (0, _) | (169, 254) | (224..=239, _) => Place::Never,
        _ => Place::Public,
    }
}

/// IANA's IPv6 Special-Purpose Address Registry.
fn place_v6(address: Ipv6Addr) -> Place {
    let [first, second, ..] = address.segments();
    match (first, second) {
        _ if address.is_loopback() => Place::Loopback,
        _ if METADATA_V6.contains(&address) => Place::Never,
        // What AWS answers at for the machine itself.
        (0xfd00, 0xec2) => Place::Never,
        // Unspecified, and what stands for IPv4 in another way than those that are known.
        (0, 0) | (0x64, 0xff9b) | (0x2001, 0) => Place::Never,
        (0xfc00..=0xfdff | 0xfec0..=0xfeff, _) => Place::Private,
        // Link-local, and multicast.
        (0xfe80..=0xfebf | 0xff00.., _) => Place::Never,
        _ => Place::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    #[test]
    fn addresses_are_what_they_stand_for() {
        let table = [
            (
                Place::Public,
                "1.1.1.1 172.32.0.1 100.128.0.1 192.0.1.1 2606:4700::1111 64:ff9b::1.1.1.1 ::ffff:8.8.8.8",
            ),
            (
                Place::Private,
                "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 198.18.0.1 fc00::1 fd12::1",
            ),
            (
                Place::Private,
                "::ffff:10.0.0.1 64:ff9b::10.0.0.1 64:ff9b:1::10.0.0.1 2002:a00:1::1 fec0::1 240.0.0.1",
            ),
            (Place::Loopback, "127.0.0.1 127.255.0.1 ::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1::"),
            (Place::Never, "169.254.169.254 169.254.1.1 fe80::1 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe"),
            (
                Place::Never,
                "0.0.0.0 0.1.2.3 :: 224.0.0.1 255.255.255.255 ff02::1 ::127.0.0.1 2001::1 2002:a9fe:a9fe::",
            ),
            (
                Place::Never,
                "fd00:ec2::254 168.63.129.16 100.100.100.200 192.0.0.192 ::ffff:168.63.129.16 64:ff9b::a83f:8110",
            ),
        ];
        for (expected, addresses) in table {
            for address in addresses.split(' ') {
                assert_eq!(place(address.parse().expect(address)), expected, "{address}");
            }
        }
    }

    #[test]
    fn t32_a_reference_reaches_private_networks_and_an_answer_does_not() {
        let addresses = Addresses::default();
        let check = |named_by, address: &str| {
            let reach = addresses.reach(named_by, &url("https://r.example/"));
            addresses.check(reach, address.parse().expect(address))
        };
        assert_eq!(check(NamedBy::Reference, "10.0.0.1"), Ok(()));
        assert_eq!(check(NamedBy::Answer, "10.0.0.1"), Err(Refused::Private));
        assert_eq!(check(NamedBy::Answer, "1.1.1.1"), Ok(()));
        for named_by in [NamedBy::Reference, NamedBy::Answer] {
            assert_eq!(check(named_by, "127.0.0.1"), Err(Refused::Loopback));
            assert_eq!(check(named_by, "169.254.169.254"), Err(Refused::Never));
        }
    }

    #[test]
    fn what_is_allowed_is_a_host_a_domain_or_a_network() {
        let mut addresses = Addresses::default();
        for text in
            ["Localhost:5000", "*.corp.example", "s3.internal.", "10.1.0.0/16", "[0:0::1]:5000", "127.0.0.2"]
        {
            addresses.allow(text).expect(text);
        }
        for (text, expected) in [
            ("http://localhost:5000/", Reach::Loopback),
            ("http://localhost:5001/", Reach::Public),
            ("https://a.b.corp.example/", Reach::Private),
            ("https://a.corp.example./", Reach::Private),
            ("https://corp.example/", Reach::Public),
            ("https://evilcorp.example/", Reach::Public),
            ("https://s3.internal:9000/", Reach::Private),
            ("https://10.1.2.3/", Reach::Public),
            ("https://[::1]:5000/", Reach::Loopback),
            ("https://[::1]:5001/", Reach::Public),
        ] {
            assert_eq!(addresses.reach(NamedBy::Answer, &url(text)), expected, "{text}");
            assert_eq!(addresses.names(&url(text)), expected != Reach::Public, "{text}");
        }
        // Whatever name has such an address.
        for address in ["10.1.0.9", "::ffff:10.1.0.9", "64:ff9b::10.1.0.9", "127.0.0.2"] {
            assert_eq!(addresses.check(Reach::Public, address.parse().expect(address)), Ok(()), "{address}");
        }
        assert!(addresses.check(Reach::Private, "127.0.0.3".parse().expect("one")).is_err());
        for text in [
            "",
            "*",
            "*corp",
            "*.10.0.0.1",
            "a b",
            "host:port",
            "10.0.0.0/40",
            "https://x",
            "a/b",
            "u@h",
            "*.*.x",
        ] {
            assert_eq!(Addresses::default().allow(text), Err(BadAllowed), "{text}");
        }
    }

    #[test]
    fn a_registry_without_tls_is_allowed_at_its_port_alone() {
        let mut addresses = Addresses::default();
        for text in ["127.0.0.1", "localhost:5000", "[::1]:5000"] {
            addresses.allow_plain_http(text).expect(text);
        }
        for (text, expected) in [
            ("http://127.0.0.1/", Reach::Loopback),
            ("https://127.0.0.1:10250/", Reach::Private),
            ("http://localhost:5000/", Reach::Loopback),
            ("https://localhost/", Reach::Private),
            ("http://[::1]:5000/", Reach::Loopback),
        ] {
            assert_eq!(addresses.reach(NamedBy::Reference, &url(text)), expected, "{text}");
        }
        assert!(addresses.check(Reach::Private, "127.0.0.1".parse().expect("one")).is_err());
    }

    #[test]
    fn a_command_reaches_what_the_person_reaches() {
        let addresses = Addresses::of_a_command();
        let reach = addresses.reach(NamedBy::Answer, &url("http://localhost/"));
        assert_eq!(addresses.check(reach, "127.0.0.1".parse().expect("one")), Ok(()));
        assert_eq!(addresses.check(reach, "169.254.169.254".parse().expect("one")), Err(Refused::Never));
    }
}
