//! Host names to addresses, without the C library's resolver: the program is linked statically and
//! runs in images of any distribution, where NSS modules of another libc must not be loaded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use tokio::sync::OnceCell;

/// Looks names up in /etc/hosts and at the servers of /etc/resolv.conf.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    /// Made at the first name that needs it: addresses and `localhost` work without any configuration.
    system: OnceCell<TokioResolver>,
}

impl Resolver {
    /// Returns the addresses of a host, the ones to try first in front.
    pub(super) async fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
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
                    .map_err(ResolveError::Configuration)
            })
            .await?;
        let found = system.lookup_ip(host).await.map_err(ResolveError::of)?;
        Ok(found
            .iter()
            .map(|address| SocketAddr::new(address, port))
            .collect())
    }
}

/// Why a name has no address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// The servers know no such name, or no address of it.
    #[error("there is no such name")]
    Unknown,
    /// No server answered.
    #[error("no name server answers")]
    Silent,
    /// /etc/resolv.conf or /etc/hosts cannot be used.
    #[error("the system's resolver configuration cannot be used")]
    Configuration(#[source] NetError),
    /// What the servers answered is no answer.
    #[error("the name server's answer cannot be used")]
    Server(#[source] NetError),
}

impl ResolveError {
    fn of(error: NetError) -> Self {
        // The resolver's own words for these two are a dump of its query.
        if error.is_no_records_found() {
            return Self::Unknown;
        }
        match error {
            NetError::Timeout | NetError::NoConnections | NetError::Io(_) => Self::Silent,
            error => Self::Server(error),
        }
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
    fn a_failed_lookup_is_told_in_words_and_not_as_a_dump_of_the_query() {
        use hickory_resolver::net::{DnsError, NoRecords};
        use hickory_resolver::proto::op::{Query, ResponseCode};
        let unknown = NoRecords::new(Query::default(), ResponseCode::NXDomain);
        for (error, words) in [
            (DnsError::NoRecordsFound(unknown).into(), "no such name"),
            (NetError::Timeout, "no name server answers"),
        ] {
            let error = ResolveError::of(error).to_string();
            assert!(error.contains(words) && !error.contains('{'), "{error}");
        }
    }

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
