//! Which answers are no place to send a call?
//!
//! What a name server says is not to be trusted with everything: an answer that points back at this machine
//! or at its surroundings (a cloud's metadata service sits on a link-local address) would turn the client
//! into a door to what is not open to the network.

use std::fmt;
use std::net::IpAddr;

/// Why an address is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    Unspecified,
    Broadcast,
    Multicast,
    LinkLocal,
    Loopback,
}

impl Refusal {
    /// The rule that `ip` breaks, if any. An IPv4 address in IPv6's clothes is judged as what it is.
    pub(super) fn of(ip: IpAddr, allow_loopback: bool) -> Option<Self> {
        let ip = ip.to_canonical();
        let (unspecified, broadcast, link_local) = match ip {
            // All of 0.0.0.0/8 means "this network" (RFC 1122 §3.2.1.3).
            IpAddr::V4(ip) => (ip.octets()[0] == 0, ip.is_broadcast(), ip.is_link_local()),
            IpAddr::V6(ip) => (ip.is_unspecified(), false, ip.is_unicast_link_local()),
        };
        if unspecified {
            Some(Self::Unspecified)
        } else if broadcast {
            Some(Self::Broadcast)
        } else if ip.is_multicast() {
            Some(Self::Multicast)
        } else if link_local {
            Some(Self::LinkLocal)
        } else if ip.is_loopback() && !allow_loopback {
            Some(Self::Loopback)
        } else {
            None
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unspecified",
            Self::Broadcast => "broadcast",
            Self::Multicast => "multicast",
            Self::LinkLocal => "link-local",
            Self::Loopback => "loopback, which Dns::allow_loopback permits",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_address_is_judged_by_its_rule() {
        use Refusal::{Broadcast, LinkLocal, Loopback, Multicast, Unspecified};
        for (ip, refusal) in [
            ("0.0.0.0", Some(Unspecified)),
            ("0.1.2.3", Some(Unspecified)),
            ("::", Some(Unspecified)),
            ("255.255.255.255", Some(Broadcast)),
            ("224.0.0.1", Some(Multicast)),
            ("239.255.255.255", Some(Multicast)),
            ("ff02::1", Some(Multicast)),
            ("169.254.0.0", Some(LinkLocal)),
            ("169.254.169.254", Some(LinkLocal)),
            ("fe80::1", Some(LinkLocal)),
            ("febf:ffff::1", Some(LinkLocal)),
            ("127.0.0.1", Some(Loopback)),
            ("127.255.255.255", Some(Loopback)),
            ("::1", Some(Loopback)),
            ("::ffff:127.0.0.1", Some(Loopback)),
            ("::ffff:169.254.169.254", Some(LinkLocal)),
            ("::ffff:0.0.0.0", Some(Unspecified)),
            ("::ffff:224.0.0.1", Some(Multicast)),
            ("10.0.0.1", None),
            ("192.168.0.1", None),
            ("169.253.255.255", None),
            ("169.255.0.0", None),
            ("223.255.255.255", None),
            ("fec0::1", None),
            ("fd00::1", None),
            ("2001:db8::1", None),
            ("::ffff:10.0.0.1", None),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(Refusal::of(ip, false), refusal, "{ip}");
            let lenient = refusal.filter(|&refusal| refusal != Loopback);
            assert_eq!(
                Refusal::of(ip, true),
                lenient,
                "{ip}, with loopback allowed"
            );
        }
    }
}
