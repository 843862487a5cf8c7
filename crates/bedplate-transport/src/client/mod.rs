//! The registry client: connections, credentials and configuration behind one value.
//!
//! ```text
//! Client ─→ registry::Remote ─→ http ─→ connect ─→ dns, TLS
//!              └─ auth files, tokens     └─ registries.conf: insecure, blocked, moved
//! ```
//!
//! The client reads no environment and no clock: files and settings come in as values. It has an async
//! runtime of its own, and its verbs block.

pub(crate) mod auth;
pub(crate) mod config;
pub(crate) mod connect;
pub(crate) mod dns;
pub(crate) mod http;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bedplate_model::ImageName;
use hyper::header::HeaderValue;
use tokio::runtime::{Handle, Runtime};

use config::{ConfigError, Place, Registries};
use connect::Connector;
use http::Http;

/// Whether a registry's certificate is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVerify {
    /// Always, except for registries that `registries.conf` calls insecure; a registry on this
    /// machine's loopback may speak plain HTTP.
    #[default]
    On,
    /// Always, on loopback too.
    Strict,
    /// Never: any certificate is taken, and plain HTTP where there is no TLS.
    Off,
}

/// What a client works with.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// Files with credentials; the first that has one for a registry counts.
    pub auth_files: Vec<PathBuf>,
    /// Directories with CA files for single registries, as `<dir>/<host[:port]>/*.crt`.
    pub certificate_dirs: Vec<PathBuf>,
    /// What `registries.conf` says.
    pub registries: Registries,
    /// Whether certificates are checked.
    pub tls_verify: TlsVerify,
}

/// The parts of a process's environment that say where its user keeps credentials.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `REGISTRY_AUTH_FILE`: only this file is read.
    pub registry_auth_file: Option<OsString>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// `DOCKER_CONFIG`.
    pub docker_config: Option<OsString>,
}

impl ClientOptions {
    /// Returns what podman's user would expect on this system.
    pub fn of_system(environment: &Environment) -> Result<Self, ConfigError> {
        let Environment {
            registry_auth_file,
            runtime_dir,
            home,
            docker_config,
        } = environment;
        let auth_files = if let Some(file) = registry_auth_file {
            vec![PathBuf::from(file)]
        } else {
            let docker = docker_config
                .as_ref()
                .map(PathBuf::from)
                .or_else(|| home.as_ref().map(|home| Path::new(home).join(".docker")));
            [
                runtime_dir
                    .as_ref()
                    .map(|dir| Path::new(dir).join("containers/auth.json")),
                home.as_ref()
                    .map(|home| Path::new(home).join(".config/containers/auth.json")),
                Some("/etc/ostree/auth.json".into()),
                docker.map(|dir| dir.join("config.json")),
            ]
            .into_iter()
            .flatten()
            .collect()
        };
        Ok(Self {
            auth_files,
            certificate_dirs: vec![
                "/etc/containers/certs.d".into(),
                "/etc/docker/certs.d".into(),
            ],
            registries: Registries::read(Path::new("/etc/containers/registries.conf"))?,
            tls_verify: TlsVerify::On,
        })
    }
}

/// A client of registries.
pub struct Client {
    runtime: Runtime,
    shared: Arc<Shared>,
}

/// What all requests of a client share.
pub(crate) struct Shared {
    pub(crate) http: Http,
    pub(crate) options: ClientOptions,
    /// How each registry is reached, once that is known: `https` or `http`.
    pub(crate) schemes: Mutex<HashMap<String, &'static str>>,
    /// `Authorization` headers by registry and scope.
    pub(crate) authorizations: Mutex<HashMap<(String, String), HeaderValue>>,
    /// Hosts whose certificates are taken as they are.
    insecure: Arc<Mutex<HashSet<String>>>,
}

impl Client {
    /// Makes a client.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("registry-client")
            .enable_all()
            .build()
            .map_err(ClientError)?;
        let insecure: Arc<Mutex<HashSet<String>>> = Arc::default();
        let known = Arc::clone(&insecure);
        let never = options.tls_verify == TlsVerify::Off;
        let connector = Connector::new(options.certificate_dirs.clone(), move |host| {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            never || known.contains(host)
        });
        Ok(Self {
            runtime,
            shared: Arc::new(Shared {
                http: Http::new(connector),
                options,
                schemes: Mutex::default(),
                authorizations: Mutex::default(),
                insecure,
            }),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.runtime.handle()
    }
}

impl Shared {
    /// Finds out where an image is, and notes what the configuration says of its host.
    pub(crate) fn place(&self, image: &ImageName) -> Option<Place> {
        let mut place = self.options.registries.place(image)?;
        match self.options.tls_verify {
            TlsVerify::On => {}
            TlsVerify::Strict => place.insecure = false,
            TlsVerify::Off => place.insecure = true,
        }
        // Docker Hub's programs' interface has a host of its own, and its own images a hidden prefix.
        if matches!(place.host.as_str(), "docker.io" | "index.docker.io") {
            place.host = "registry-1.docker.io".into();
            if !place.repository.contains('/') {
                place.repository = format!("library/{}", place.repository);
            }
        }
        if place.insecure {
            self.insecure
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(place.host.clone());
        }
        Some(place)
    }

    /// Returns the scheme that a registry is asked with at first.
    pub(crate) fn may_be_plain(&self, place: &Place) -> bool {
        self.options.tls_verify != TlsVerify::Strict
            && (place.insecure || dns::is_loopback(&place.host))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

/// The client's threads cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the registry client")]
pub struct ClientError(#[source] std::io::Error);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_looked_for_where_podman_and_docker_keep_them() {
        let environment = Environment {
            runtime_dir: Some("/run/user/1".into()),
            home: Some("/home/a".into()),
            ..Environment::default()
        };
        let options = ClientOptions::of_system(&environment).unwrap();
        let files: Vec<_> = options
            .auth_files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        assert_eq!(
            files,
            [
                "/run/user/1/containers/auth.json",
                "/home/a/.config/containers/auth.json",
                "/etc/ostree/auth.json",
                "/home/a/.docker/config.json",
            ]
        );
        let only = Environment {
            registry_auth_file: Some("/x".into()),
            ..environment
        };
        let options = ClientOptions::of_system(&only).unwrap();
        assert_eq!(options.auth_files, [PathBuf::from("/x")]);
    }
}
