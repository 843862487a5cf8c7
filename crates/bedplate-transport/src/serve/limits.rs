//! What clients may hold of the server, together and each.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// How much clients may hold, and for how long without doing anything.
///
/// The server knows no users, so a client is its address: an IPv4 address, or an IPv6 network of 64
/// bits. Behind a proxy all clients have one address; there, `…_of_peer` should be as large as the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue until one ends.
    pub connections: usize,
    /// Connections of one peer at once; more are answered with status 429 and closed.
    pub connections_of_peer: usize,
    /// How long the head of a request may take, and how long a connection may stay without a request.
    pub head: Duration,
    /// How long a peer may stay silent in the middle of a body, or leave an answer untaken.
    pub silence: Duration,
    /// Uploads that are open at once; one more takes the place of the oldest that rests.
    pub uploads: usize,
    /// Uploads of one peer that are open at once; one more takes the place of its oldest that rests.
    pub uploads_of_peer: usize,
    /// How long an upload that nobody writes to is kept.
    pub upload_rest: Duration,
}

impl Default for Limits {
    /// Fits a process that may open 1024 files: a connection takes up to two, and an upload one.
    fn default() -> Self {
        Self {
            connections: 256,
            connections_of_peer: 64,
            head: Duration::from_secs(20),
            silence: Duration::from_secs(60),
            uploads: 256,
            uploads_of_peer: 64,
            upload_rest: Duration::from_secs(10 * 60),
        }
    }
}

/// Who holds a connection or an upload, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer(IpAddr);

impl Peer {
    /// Counts all addresses that one host can take for itself as one.
    pub(super) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & (u128::MAX << 64);
                Ipv6Addr::from_bits(network).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_peer_whichever_of_its_addresses_it_uses() {
        let peer = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:0:0:1"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
    }
}
