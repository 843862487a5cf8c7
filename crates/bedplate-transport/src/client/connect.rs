//! Connections: TCP to the first address that answers, TLS on top where the address says `https`.
//!
//! A certificate is checked against the system's roots and the CA files for that host, unless the
//! user said that this registry is insecure.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::dns::{ResolveError, Resolver};

/// How long one address may take to accept a connection, and how long a TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Opens connections for the HTTP client.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    resolver: Resolver,
    /// Directories with CA files for single registries: `<dir>/<host[:port]>/*.crt`.
    certificates: Vec<PathBuf>,
    /// Whether a host's certificate is taken as it is.
    unverified: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// TLS settings by host.
    tls: Mutex<HashMap<String, TlsConnector>>,
}

impl Connector {
    pub(super) fn new(
        certificates: Vec<PathBuf>,
        unverified: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            resolver: Resolver::default(),
            certificates,
            unverified: Box::new(unverified),
            tls: Mutex::default(),
        }))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.connect(&to).await.map(TokioIo::new) })
    }
}

impl Inner {
    async fn connect(&self, to: &Uri) -> Result<Stream, ConnectError> {
        let https = to.scheme_str() == Some("https");
        let host = to.host().unwrap_or_default();
        let port = to.port_u16().unwrap_or(if https { 443 } else { 80 });
        let addresses = self
            .resolver
            .resolve(host, port)
            .await
            .map_err(ConnectError::Resolve)?;
        let mut outcome = Err(ConnectError::NoAddress);
        for address in addresses {
            outcome = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await
            {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) => Err(ConnectError::Tcp(error)),
                Err(_) => Err(ConnectError::Timeout),
            };
            if outcome.is_ok() {
                break;
            }
        }
        let stream = outcome?;
        // Requests are small and wait for answers; a delay to join them only costs time.
        stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
        if !https {
            return Ok(Stream::Plain(stream));
        }
        let authority = to.authority().map_or(host, |authority| authority.as_str());
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| ConnectError::Tls(io::Error::other(error)))?;
        let handshake = self.tls(authority)?.connect(name, stream);
        match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => Err(ConnectError::Tls(error)),
            Err(_) => Err(ConnectError::Timeout),
        }
    }

    fn tls(&self, authority: &str) -> Result<TlsConnector, ConnectError> {
        let mut known = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tls) = known.get(authority) {
            return Ok(tls.clone());
        }
        let tls = TlsConnector::from(Arc::new(self.tls_config(authority)?));
        known.insert(authority.to_owned(), tls.clone());
        Ok(tls)
    }

    fn tls_config(&self, authority: &str) -> Result<ClientConfig, ConnectError> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider as Arc<CryptoProvider>)
            .with_safe_default_protocol_versions()
            .map_err(|error| ConnectError::Tls(io::Error::other(error)))?;
        let config = if (self.unverified)(authority) {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
        } else {
            builder.with_root_certificates(self.roots(authority)?)
        };
        Ok(config.with_no_client_auth())
    }

    /// Collects the certificates that may vouch for a host.
    fn roots(&self, authority: &str) -> Result<RootCertStore, ConnectError> {
        let mut roots = RootCertStore::empty();
        // A broken file among the system's roots does not spoil the others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for dir in &self.certificates {
            let dir = dir.join(authority);
            let Ok(files) = std::fs::read_dir(&dir) else {
                continue;
            };
            for path in files.flatten().map(|file| file.path()) {
                if path.extension().is_none_or(|extension| extension != "crt") {
                    continue;
                }
                let unreadable = |problem: String| ConnectError::Certificate {
                    path: path.clone(),
                    problem,
                };
                let certificates = CertificateDer::pem_file_iter(&path)
                    .map_err(|error| unreadable(error.to_string()))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
                    roots
                        .add(certificate)
                        .map_err(|error| unreadable(error.to_string()))?;
                }
            }
        }
        Ok(roots)
    }
}

/// A connection to a registry.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

/// Takes every certificate: the user said that this registry is insecure.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("its name cannot be resolved")]
    Resolve(#[source] ResolveError),
    /// The name resolves to nothing.
    #[error("its name has no address")]
    NoAddress,
    /// Nobody answers there.
    #[error("it does not accept connections")]
    Tcp(#[source] io::Error),
    /// It takes too long.
    #[error("it does not answer in time")]
    Timeout,
    /// The other side speaks no TLS, or its certificate is not trusted.
    #[error("no secure connection")]
    Tls(#[source] io::Error),
    /// A CA file for this registry is damaged.
    #[error("the certificate file {} cannot be used: {problem}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl ConnectError {
    /// Returns whether the other side spoke TLS, but its certificate was refused.
    pub(crate) fn is_untrusted(&self) -> bool {
        let Self::Tls(error) = self else {
            return false;
        };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
    }

    /// Returns whether another try may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Resolve(ResolveError::Silent | ResolveError::Server(_))
            | Self::NoAddress
            | Self::Tcp(_)
            | Self::Timeout => true,
            Self::Resolve(ResolveError::Unknown | ResolveError::Configuration(_))
            | Self::Tls(_)
            | Self::Certificate { .. } => false,
        }
    }
}
