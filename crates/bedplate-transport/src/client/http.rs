//! HTTP: one request, its redirects, its time limits.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use bedplate_model::human::Size;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::connect::{ConnectError, Connector};

/// How many redirects are followed.
const REDIRECTS_MAX: usize = 5;
/// How long a server may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a registry may take to answer when it has something to file: some hash or move it first.
pub(crate) const FILING_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How long a server may stay silent in the middle of a body.
const STALL_TIMEOUT: Duration = Duration::from_secs(45);
/// The least that a server must send in so much time of our waiting: 1 KiB a second on the whole.
const PACE_MIN: u64 = 60 << 10;
/// That time.
const PACE_WINDOW: Duration = Duration::from_secs(60);
/// How long a connection is kept for the next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The body of a request.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// Makes a body of nothing.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// Makes a body of bytes in memory.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// Sends requests.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<Connector, Body>,
}

impl Http {
    pub(super) fn new(connector: Connector) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(connector);
        Self { client }
    }

    /// Sends one request and waits for the head of its answer.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, HttpError> {
        let host = authority(request.uri()).to_owned();
        let limit = match *request.method() {
            // A streamed upload lasts as long as it lasts; who feeds it watches for stalls.
            Method::PATCH => None,
            Method::PUT => Some(FILING_TIMEOUT),
            _ => Some(ANSWER_TIMEOUT),
        };
        let answer = self.client.request(request);
        let answer = match limit {
            None => answer.await,
            Some(limit) => match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer,
                Err(_) => return Err(HttpError::Silent { host }),
            },
        };
        answer.map_err(|error| HttpError::of(host, error))
    }

    /// Sends a request without a body and follows redirects.
    ///
    /// Credentials stay with the host that they are for.
    pub(crate) async fn fetch(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        insecure: bool,
    ) -> Result<Response<Incoming>, HttpError> {
        let mut at = uri.clone();
        let mut headers = headers.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::new(empty());
            *request.method_mut() = method.clone();
            *request.uri_mut() = at.clone();
            *request.headers_mut() = headers.clone();
            let answer = self.send(request).await?;
            let redirected = matches!(
                answer.status(),
                StatusCode::MOVED_PERMANENTLY
                    | StatusCode::FOUND
                    | StatusCode::SEE_OTHER
                    | StatusCode::TEMPORARY_REDIRECT
                    | StatusCode::PERMANENT_REDIRECT
            );
            if !redirected {
                return Ok(answer);
            }
            let host = authority(&at).to_owned();
            let next = answer
                .headers()
                .get(header::LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| resolve(&at, location))
                .ok_or(HttpError::BadRedirect { host: host.clone() })?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") && !insecure {
                return Err(HttpError::Downgrade { host });
            }
            if !same_origin(&at, &next) {
                headers.remove(header::AUTHORIZATION);
            }
            at = next;
        }
        Err(HttpError::Redirects {
            host: authority(uri).to_owned(),
        })
    }
}

/// A body while it comes: never silent for long, and never endless by a trickle.
pub(crate) struct Pieces<'a> {
    body: &'a mut Incoming,
    pace: Pace,
}

impl<'a> Pieces<'a> {
    pub(crate) fn of(body: &'a mut Incoming) -> Self {
        Self {
            body,
            pace: Pace::default(),
        }
    }

    /// Returns the next piece, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let began = Instant::now();
            let frame = tokio::time::timeout(STALL_TIMEOUT, self.body.frame()).await;
            let piece = match frame {
                Err(_) => return Err(BodyError::Stalled),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(BodyError::Broken(error)),
                // Trailers mean nothing here, and take their time too.
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            if !self.pace.holds(began.elapsed(), piece.len() as u64) {
                return Err(BodyError::Slow);
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}

/// How fast a body comes, as far as we wait for it: who reads slowly has only itself to blame.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Adds a wait and what came of it; returns whether that is fast enough.
    fn holds(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited = self.waited.saturating_add(waited);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.waited < PACE_WINDOW {
            return true;
        }
        let enough = self.bytes >= PACE_MIN;
        *self = Self::default();
        enough
    }
}

/// Reads a whole body of at most `max` bytes.
pub(crate) async fn read_all(body: &mut Incoming, max: u64) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    let mut pieces = Pieces::of(body);
    while let Some(piece) = pieces.next().await? {
        if (bytes.len() as u64).saturating_add(piece.len() as u64) > max {
            return Err(BodyError::TooLong(max));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Returns the host of an address, with its port.
pub(crate) fn authority(uri: &Uri) -> &str {
    uri.authority().map_or("", |authority| authority.as_str())
}

/// Returns whether two addresses lead to the same server.
pub(crate) fn same_origin(left: &Uri, right: &Uri) -> bool {
    left.scheme() == right.scheme() && left.authority() == right.authority()
}

/// Resolves what a `Location` header says against the address that was asked.
pub(crate) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let absolute = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", base.scheme_str()?)
    } else {
        let origin = format!("{}://{}", base.scheme_str()?, base.authority()?);
        match location.chars().next()? {
            '/' => format!("{origin}{location}"),
            '?' => format!("{origin}{}{location}", base.path()),
            _ => {
                let (parent, _) = base.path().rsplit_once('/')?;
                format!("{origin}{parent}/{location}")
            }
        }
    };
    let uri: Uri = absolute.parse().ok()?;
    uri.host().filter(|host| !host.is_empty())?;
    Some(uri)
}

/// Encodes parameters for a query or a form.
pub(crate) fn encode(parameters: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in parameters {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                text.push(byte.into());
            } else {
                // Writing to a string does not fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// There is no connection.
    #[error("cannot connect to {host}")]
    Connect {
        /// The host.
        host: String,
        /// What went wrong.
        source: ConnectError,
    },
    /// The server accepted the request and said nothing.
    #[error("{host} does not answer")]
    Silent {
        /// The host.
        host: String,
    },
    /// The connection ended, or what came over it is not HTTP.
    #[error("the connection to {host} broke")]
    Broken {
        /// The host.
        host: String,
        /// What went wrong.
        source: legacy::Error,
    },
    /// Redirects without an end.
    #[error("{host} redirects more than {REDIRECTS_MAX} times")]
    Redirects {
        /// The host.
        host: String,
    },
    /// A redirect to nowhere.
    #[error("{host} redirects to an address that is none")]
    BadRedirect {
        /// The host.
        host: String,
    },
    /// A redirect that gives up encryption.
    #[error("{host} redirects from an encrypted to a plain connection")]
    Downgrade {
        /// The host.
        host: String,
    },
}

impl HttpError {
    fn of(host: String, error: legacy::Error) -> Self {
        if !error.is_connect() {
            return Self::Broken {
                host,
                source: error,
            };
        }
        // The connector's own error lies below hyper's, unless hyper refused the address itself.
        match into_connect_error(&error) {
            Some(source) => Self::Connect { host, source },
            None => Self::Broken {
                host,
                source: error,
            },
        }
    }

    /// Returns whether another try may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.is_transient(),
            Self::Silent { .. } | Self::Broken { .. } => true,
            Self::Redirects { .. } | Self::BadRedirect { .. } | Self::Downgrade { .. } => false,
        }
    }
}

/// Finds the connector's error below hyper's, and copies what can be told of it.
fn into_connect_error(error: &legacy::Error) -> Option<ConnectError> {
    let again = |error: &io::Error| match error.get_ref() {
        Some(inner) => match inner.downcast_ref::<rustls::Error>() {
            Some(tls) => io::Error::new(error.kind(), tls.clone()),
            None => io::Error::new(error.kind(), inner.to_string()),
        },
        None => error
            .raw_os_error()
            .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
    };
    let found = error.source()?.downcast_ref::<ConnectError>()?;
    Some(match found {
        ConnectError::Resolve(error) => ConnectError::Resolve(error.clone()),
        ConnectError::NoAddress => ConnectError::NoAddress,
        ConnectError::Tcp(error) => ConnectError::Tcp(again(error)),
        ConnectError::Timeout => ConnectError::Timeout,
        ConnectError::Tls(error) => ConnectError::Tls(again(error)),
        ConnectError::Certificate { path, problem } => ConnectError::Certificate {
            path: path.clone(),
            problem: problem.clone(),
        },
    })
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke.
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
    /// Nothing came for too long.
    #[error("the answer stopped coming")]
    Stalled,
    /// So little comes that it would take for ever.
    #[error("the answer comes at less than 1 KiB a second")]
    Slow,
    /// More came than is read.
    #[error("the answer has more than {}", Size(*.0))]
    TooLong(u64),
}

impl BodyError {
    /// Returns whether another try may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Stalled | Self::Slow => true,
            Self::TooLong(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_too_slow_and_a_slow_line_is_not() {
        let minute = |bytes_a_second: u64| {
            let mut pace = Pace::default();
            (0..600).all(|_| pace.holds(Duration::from_secs(1), bytes_a_second))
        };
        assert!(!minute(0) && !minute(100) && minute(1024));
        let mut pace = Pace::default();
        assert!(
            (0..1000).all(|_| pace.holds(Duration::ZERO, 1)),
            "what is there at once is never too slow"
        );
    }

    #[test]
    fn locations_are_resolved_against_the_address_that_was_asked() {
        let base: Uri = "https://a.example:5000/v2/x/blobs/uploads/"
            .parse()
            .unwrap();
        for (location, wanted) in [
            ("https://b.example/y", "https://b.example/y"),
            ("//b.example/y", "https://b.example/y"),
            ("/y?z=1", "https://a.example:5000/y?z=1"),
            ("id?z=1", "https://a.example:5000/v2/x/blobs/uploads/id?z=1"),
            ("?z=1", "https://a.example:5000/v2/x/blobs/uploads/?z=1"),
            ("/y#part", "https://a.example:5000/y"),
        ] {
            assert_eq!(resolve(&base, location).unwrap(), wanted, "{location}");
        }
        for location in ["", "#x", "https://", "http:///x", "//", "\u{1}"] {
            assert_eq!(resolve(&base, location), None, "{location:?}");
        }
    }
}
