//! Host names to addresses, without the C library's resolver: the program is linked statically and
//! runs in images of any distribution, where NSS modules of another libc must not be loaded.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;
use tokio::sync::OnceCell;

/// Looks names up in /etc/hosts and at the servers of /etc/resolv.conf.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    /// Made at the first name that needs it: addresses and `localhost` work without any configuration.
    system: OnceCell<TokioResolver>,
}

impl Resolver {
    /// Returns the addresses of a host, the ones to try first in front.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        if is_localhost(host) {
            return Ok(vec![
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
                SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            ]);
        }
        let system = self
            .system
            .get_or_try_init(|| async {
                TokioResolver::builder_tokio()
                    .and_then(|builder| builder.build())
                    .map_err(io::Error::other)
            })
            .await?;
        let found = system.lookup_ip(host).await.map_err(io::Error::other)?;
        Ok(found
            .iter()
            .map(|address| SocketAddr::new(address, port))
            .collect())
    }
}

/// Returns whether a name means this machine by RFC 6761.
fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost")
}

/// Returns whether a registry's host, with its port, lies on this machine for sure.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    is_localhost(host)
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_and_addresses_of_this_machine_are_loopback() {
        for host in [
            "localhost:5000",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]:5000",
            "a.localhost",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example.org",
            "10.0.2.100:5000",
            "127.0.0.1.nip.io",
            "[::2]:1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
