//! The verbs of the distribution specification, as a client speaks them.
//!
//! ```text
//! Remote ── manifest · blob · has_blob · mount · upload · put_manifest
//!              └─ ask: authorization, retries, errors in words
//! ```
//!
//! Invariant: a manifest leaves here only with the digest that its bytes have; a blob's bytes are
//! checked by who reads them to their end.

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bedplate_model::format::Shown;
use bedplate_model::oci::{DOCKER_INDEX, DOCKER_MANIFEST, DOCUMENT_MAX, OCI_INDEX, OCI_MANIFEST};
use bedplate_model::{ImageName, Sha256};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde::Deserialize;
use sha2::Digest as _;
use tokio::sync::{mpsc, oneshot};

use crate::client::Shared;
use crate::client::auth::{self, AuthError, Challenge, Credential};
use crate::client::config::Place;
use crate::client::http::{self, BodyError, HttpError};

/// How often a request is tried.
const ATTEMPTS: u32 = 4;
/// How long the first retry waits; each later one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// How long a server may make us wait with `Retry-After`.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How long a registry may take to file an upload after its last byte.
const FILING_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How much of an answer that is an error is read.
const ERROR_MAX: u64 = 64 << 10;
/// How long a token's answer may be.
const TOKEN_MAX: u64 = 256 << 10;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What is done with a repository: what a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// A repository at a registry.
#[derive(Clone)]
pub(crate) struct Remote {
    shared: Arc<Shared>,
    place: Place,
    origin: String,
    scope: String,
}

/// A manifest or index as it came, its digest checked.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Sha256,
}

/// The answer to an offer to mount a blob.
pub(crate) enum Opened {
    /// The repository has the blob now.
    Mounted,
    /// The blob is to be sent there.
    Upload(Uri),
}

impl Remote {
    /// Finds out how an image's registry is reached.
    pub(crate) async fn open(
        shared: &Arc<Shared>,
        image: &ImageName,
        access: Access,
    ) -> Result<Self, RegistryError> {
        if image.is_local() {
            return Err(RegistryError::Local(image.clone()));
        }
        let place = shared
            .place(image)
            .ok_or_else(|| RegistryError::Blocked(image.clone()))?;
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let scheme = scheme(shared, &place).await?;
        Ok(Self {
            origin: format!("{scheme}://{}", place.host),
            scope: format!("repository:{}:{actions}", place.repository),
            shared: Arc::clone(shared),
            place,
        })
    }

    fn address(&self, path: &str) -> Result<Uri, RegistryError> {
        format!("{}/v2/{}/{path}", self.origin, self.place.repository)
            .parse()
            .map_err(|_| self.nonsense("its name makes no address"))
    }

    fn nonsense(&self, problem: &'static str) -> RegistryError {
        RegistryError::Nonsense {
            host: self.place.host.clone(),
            problem,
        }
    }

    /// Fetches a manifest or an index by tag or digest.
    pub(crate) async fn manifest(
        &self,
        reference: &str,
        wanted: Option<Sha256>,
    ) -> Result<Fetched, RegistryError> {
        let what = format!("the manifest {}:{reference}", self.place.repository);
        let mut headers = HeaderMap::new();
        let types = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];
        let types = HeaderValue::from_str(&types.join(", "));
        headers.insert(header::ACCEPT, types.expect("media types are header text"));
        let address = self.address(&format!("manifests/{reference}"))?;
        let mut attempt = 0;
        let (announced, bytes) = loop {
            let answer = self.ask(&Method::GET, &address, &headers, None).await?;
            let mut answer = self.expect(answer, &[StatusCode::OK], &what).await?;
            let announced = digest_header(answer.headers());
            match http::read_all(answer.body_mut(), DOCUMENT_MAX).await {
                Ok(bytes) => break (announced, bytes),
                Err(error) if error.is_transient() && attempt + 1 < ATTEMPTS => {
                    tokio::time::sleep(FIRST_WAIT * 2_u32.pow(attempt)).await;
                    attempt += 1;
                }
                Err(source) => return Err(RegistryError::Body { what, source }),
            }
        };
        let digest = Sha256(sha2::Sha256::digest(&bytes).into());
        match wanted.or(announced) {
            Some(wanted) if wanted != digest => Err(RegistryError::WrongDigest {
                what,
                wanted,
                got: digest,
            }),
            _ => Ok(Fetched { bytes, digest }),
        }
    }

    /// Begins to fetch a blob, from an offset where the registry allows it.
    ///
    /// Returns the answer and the offset that its body begins at.
    pub(crate) async fn blob(
        &self,
        digest: &Sha256,
        offset: u64,
    ) -> Result<(Response<Incoming>, u64), RegistryError> {
        let what = format!("the blob {digest}");
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.insert(header::RANGE, range.expect("a number is header text"));
        }
        let address = self.address(&format!("blobs/{digest}"))?;
        let answer = self.ask(&Method::GET, &address, &headers, None).await?;
        let fine = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let answer = self.expect(answer, &fine, &what).await?;
        if answer.status() == StatusCode::OK {
            return Ok((answer, 0));
        }
        let start: Option<u64> = answer
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .and_then(|range| range.strip_prefix("bytes ")?.split_once('-'))
            .and_then(|(start, _)| start.parse().ok());
        match start {
            Some(start) if start == offset => Ok((answer, offset)),
            _ => Err(self.nonsense("it sends another range than it was asked for")),
        }
    }

    /// Returns whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: &Sha256) -> Result<bool, RegistryError> {
        let address = self.address(&format!("blobs/{digest}"))?;
        let answer = self
            .ask(&Method::HEAD, &address, &HeaderMap::new(), None)
            .await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        let what = format!("the blob {digest}");
        self.expect(answer, &[StatusCode::OK], &what).await?;
        Ok(true)
    }

    /// Opens an upload, or has the blob mounted from another repository of the same registry.
    pub(crate) async fn open_upload(
        &self,
        mount: Option<(&Sha256, &str)>,
    ) -> Result<Opened, RegistryError> {
        let what = format!("an upload to {}", self.place.repository);
        let address = match mount {
            Some((digest, from)) => {
                let digest = digest.to_string().replace(':', "%3A");
                self.address(&format!("blobs/uploads/?mount={digest}&from={from}"))?
            }
            None => self.address("blobs/uploads/")?,
        };
        let answer = self
            .ask(
                &Method::POST,
                &address,
                &HeaderMap::new(),
                Some(Bytes::new()),
            )
            .await?;
        if mount.is_some() && answer.status() == StatusCode::CREATED {
            return Ok(Opened::Mounted);
        }
        let answer = self.expect(answer, &[StatusCode::ACCEPTED], &what).await?;
        Ok(Opened::Upload(self.location(&address, &answer)?))
    }

    /// Sends a blob of unknown length and returns where the upload is finished.
    ///
    /// The sender of the pieces drops its end when it is done; an `Err` piece breaks the upload off.
    pub(crate) async fn send(
        &self,
        upload: &Uri,
        pieces: mpsc::Receiver<std::io::Result<Bytes>>,
    ) -> Result<Uri, RegistryError> {
        let (all_sent, sent) = oneshot::channel();
        let stream = futures_util::stream::unfold(
            (pieces, Some(all_sent)),
            |(mut pieces, mut all_sent)| async {
                let piece = pieces.recv().await;
                if piece.is_none()
                    && let Some(all_sent) = all_sent.take()
                {
                    // Nobody waits only when the request failed already.
                    let _ = all_sent.send(());
                }
                piece.map(|piece| (piece.map(Frame::data), (pieces, all_sent)))
            },
        );
        let mut request = Request::new(BodyExt::boxed(StreamBody::new(stream.fuse())));
        *request.method_mut() = Method::PATCH;
        *request.uri_mut() = upload.clone();
        let octets = HeaderValue::from_static("application/octet-stream");
        request.headers_mut().insert(header::CONTENT_TYPE, octets);
        self.authorize(request.headers_mut(), upload);
        let filing = async {
            match sent.await {
                Ok(()) => tokio::time::sleep(FILING_TIMEOUT).await,
                Err(_) => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            answer = self.shared.http.send(request) => answer?,
            () = filing => return Err(self.nonsense("it does not confirm an upload")),
        };
        let fine = [
            StatusCode::ACCEPTED,
            StatusCode::NO_CONTENT,
            StatusCode::CREATED,
        ];
        let answer = self.expect(answer, &fine, "a piece of an upload").await?;
        self.location(upload, &answer)
    }

    /// Ends an upload: the registry checks the digest and has the blob from then on.
    pub(crate) async fn finish_upload(
        &self,
        upload: &Uri,
        digest: &Sha256,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let joint = if upload.query().is_some() { '&' } else { '?' };
        let digest_text = digest.to_string().replace(':', "%3A");
        let address = format!("{upload}{joint}digest={digest_text}")
            .parse()
            .map_err(|_| self.nonsense("its upload has no proper address"))?;
        let mut headers = HeaderMap::new();
        let octets = HeaderValue::from_static("application/octet-stream");
        headers.insert(header::CONTENT_TYPE, octets);
        let answer = self
            .ask(&Method::PUT, &address, &headers, Some(bytes))
            .await?;
        let what = format!("the blob {digest}");
        self.expect(
            answer,
            &[StatusCode::CREATED, StatusCode::NO_CONTENT],
            &what,
        )
        .await?;
        Ok(())
    }

    /// Gives up an upload, so that the registry need not keep it.
    pub(crate) async fn cancel_upload(&self, upload: &Uri) {
        // The registry forgets it by itself, later.
        let _ = self
            .ask(&Method::DELETE, upload, &HeaderMap::new(), None)
            .await;
    }

    /// Stores a manifest under a tag or its digest.
    pub(crate) async fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let address = self.address(&format!("manifests/{reference}"))?;
        let mut headers = HeaderMap::new();
        let media_type = HeaderValue::from_str(media_type)
            .map_err(|_| self.nonsense("the manifest's media type is none"))?;
        headers.insert(header::CONTENT_TYPE, media_type);
        let wanted = Sha256(sha2::Sha256::digest(&bytes).into());
        let answer = self
            .ask(&Method::PUT, &address, &headers, Some(bytes))
            .await?;
        let what = format!("the manifest {}:{reference}", self.place.repository);
        let answer = self.expect(answer, &[StatusCode::CREATED], &what).await?;
        match digest_header(answer.headers()) {
            Some(got) if got != wanted => Err(RegistryError::WrongDigest { what, wanted, got }),
            _ => Ok(()),
        }
    }

    fn location(&self, base: &Uri, answer: &Response<Incoming>) -> Result<Uri, RegistryError> {
        let location = answer
            .headers()
            .get(header::LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| http::resolve(base, location))
            .ok_or_else(|| self.nonsense("it names no place to upload to"))?;
        // Registries behind a proxy sometimes name themselves by http; the connection stays as it is.
        let same_host = location.authority() == base.authority();
        if same_host && location.scheme() != base.scheme() {
            let mut parts = location.into_parts();
            parts.scheme = base.scheme().cloned();
            return Uri::from_parts(parts)
                .map_err(|_| self.nonsense("it names no place to upload to"));
        }
        if base.scheme_str() == Some("https") && location.scheme_str() != Some("https") {
            return Err(self.nonsense("it wants an upload over a plain connection"));
        }
        Ok(location)
    }

    /// Sends a request that can be repeated, with authorization, and again after transient failures.
    async fn ask(
        &self,
        method: &Method,
        address: &Uri,
        headers: &HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut asked_for_token = false;
        let mut attempt = 0;
        loop {
            let mut headers = headers.clone();
            let had_authorization = self.authorize(&mut headers, address);
            let answer = match &body {
                None => {
                    let http = &self.shared.http;
                    http.fetch(method, address, &headers, self.place.insecure)
                        .await
                }
                Some(body) => {
                    let mut request = Request::new(http::full(body.clone()));
                    *request.method_mut() = method.clone();
                    *request.uri_mut() = address.clone();
                    *request.headers_mut() = headers;
                    self.shared.http.send(request).await
                }
            };
            let wait = FIRST_WAIT * 2_u32.pow(attempt);
            let wait = match answer {
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && !asked_for_token => {
                    asked_for_token = true;
                    if had_authorization {
                        self.forget_authorization();
                    }
                    if self.obtain_authorization(answer.headers()).await? {
                        continue;
                    }
                    return Ok(answer);
                }
                Ok(answer) if is_transient(answer.status()) && attempt + 1 < ATTEMPTS => {
                    retry_after(answer.headers()).unwrap_or(wait)
                }
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_transient() && attempt + 1 < ATTEMPTS => wait,
                Err(error) => return Err(error.into()),
            };
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// Adds what authorizes us at our own registry; nobody else gets it.
    fn authorize(&self, headers: &mut HeaderMap, address: &Uri) -> bool {
        let own = address
            .to_string()
            .starts_with(&format!("{}/", self.origin));
        if !own {
            return false;
        }
        let known = self.shared.authorizations.lock();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&(self.origin.clone(), self.scope.clone()));
        if let Some(value) = found {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        found.is_some()
    }

    fn forget_authorization(&self) {
        let known = self.shared.authorizations.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        known.remove(&(self.origin.clone(), self.scope.clone()));
    }

    /// Answers a challenge; returns whether there is something new to try.
    async fn obtain_authorization(&self, answer: &HeaderMap) -> Result<bool, RegistryError> {
        let challenge = answer
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
            .ok_or_else(|| AuthError::Challenge {
                host: self.place.host.clone(),
            })?;
        let credential = self.credential().await?;
        let value = match challenge {
            Challenge::Basic => match credential.and_then(|known| known.basic_header()) {
                Some(value) => value,
                None => return Ok(false),
            },
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let scope = scope.unwrap_or_else(|| self.scope.clone());
                let token = self.token(&realm, service, &scope, credential).await?;
                format!("Bearer {token}")
            }
        };
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| self.nonsense("its token is no header text"))?;
        value.set_sensitive(true);
        let known = self.shared.authorizations.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        known.insert((self.origin.clone(), self.scope.clone()), value);
        Ok(true)
    }

    async fn credential(&self) -> Result<Option<Credential>, RegistryError> {
        let files = self.shared.options.auth_files.clone();
        let host = match self.place.host.as_str() {
            "registry-1.docker.io" => "docker.io".to_owned(),
            host => host.to_owned(),
        };
        let repository = self.place.repository.clone();
        // A credential helper is a program, and it may ask its user something.
        let found =
            tokio::task::spawn_blocking(move || auth::find(&files, &host, &repository)).await;
        match found {
            Ok(found) => Ok(found?),
            Err(_) => Err(self.nonsense("looking up its credentials was interrupted")),
        }
    }

    /// Exchanges a credential, or nothing, for an access token.
    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: &str,
        credential: Option<Credential>,
    ) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let damaged = || AuthError::TokenDamaged {
            realm: Shown(realm.to_owned()).to_string(),
        };
        let plain = self.origin.starts_with("http://");
        if !(realm.starts_with("https://") || plain && realm.starts_with("http://")) {
            return Err(AuthError::Realm {
                host: self.place.host.clone(),
                realm: Shown(realm.to_owned()).to_string(),
            }
            .into());
        }
        let mut parameters = vec![("scope", scope.to_owned())];
        parameters.extend(service.map(|service| ("service", service)));
        let mut headers = HeaderMap::new();
        let answer = if let Some(Credential::IdentityToken(token)) = credential {
            parameters.push(("grant_type", "refresh_token".into()));
            parameters.push(("client_id", "bedplate".into()));
            parameters.push(("refresh_token", token));
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            let mut request = Request::new(http::full(encode(&parameters).into()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = realm.parse().map_err(|_| damaged())?;
            request.headers_mut().insert(header::CONTENT_TYPE, form);
            self.shared.http.send(request).await
        } else {
            if let Some(value) = credential.and_then(|known| known.basic_header()) {
                let value = HeaderValue::from_str(&value);
                headers.insert(header::AUTHORIZATION, value.expect("base64 is header text"));
            }
            let joint = if realm.contains('?') { '&' } else { '?' };
            let address = format!("{realm}{joint}{}", encode(&parameters));
            let address = address.parse().map_err(|_| damaged())?;
            let http = &self.shared.http;
            http.fetch(&Method::GET, &address, &headers, self.place.insecure)
                .await
        };
        let mut answer = answer?;
        if answer.status() != StatusCode::OK {
            return Err(AuthError::Token {
                realm: Shown(realm.to_owned()).to_string(),
                status: answer.status().as_u16(),
            }
            .into());
        }
        let bytes = http::read_all(answer.body_mut(), TOKEN_MAX).await;
        let answer: Answer =
            serde_json::from_slice(&bytes.map_err(|_| damaged())?).map_err(|_| damaged())?;
        let token = answer.token.or(answer.access_token);
        let token = token
            .filter(|token| !token.is_empty())
            .ok_or_else(damaged)?;
        Ok(token)
    }

    /// Turns an answer with another status into an error in the registry's own words.
    async fn expect(
        &self,
        mut answer: Response<Incoming>,
        fine: &[StatusCode],
        what: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        let status = answer.status();
        if fine.contains(&status) {
            return Ok(answer);
        }
        // What it says is only an explanation: one that cannot be read is none.
        let said = http::read_all(answer.body_mut(), ERROR_MAX)
            .await
            .unwrap_or_default();
        let said = explanation(&said);
        let (host, what) = (self.place.host.clone(), what.to_owned());
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Denied { host, what }
            }
            StatusCode::NOT_FOUND => RegistryError::NotFound { host, what },
            _ => RegistryError::Refused {
                host,
                what,
                status: status.as_u16(),
                said,
            },
        })
    }
}

/// Finds out, once for each registry, whether it speaks TLS.
async fn scheme(shared: &Shared, place: &Place) -> Result<&'static str, RegistryError> {
    if !shared.may_be_plain(place) {
        return Ok("https");
    }
    let known = |shared: &Shared| {
        let schemes = shared.schemes.lock();
        let schemes = schemes.unwrap_or_else(PoisonError::into_inner);
        schemes.get(&place.host).copied()
    };
    if let Some(scheme) = known(shared) {
        return Ok(scheme);
    }
    let mut outcome = Ok("https");
    for scheme in ["https", "http"] {
        let address = format!("{scheme}://{}/v2/", place.host);
        let address = address.parse().map_err(|_| RegistryError::Nonsense {
            host: place.host.clone(),
            problem: "its name makes no address",
        })?;
        let http = &shared.http;
        match http
            .fetch(&Method::GET, &address, &HeaderMap::new(), true)
            .await
        {
            Ok(_) => {
                outcome = Ok(scheme);
                break;
            }
            Err(error) => {
                let untrusted =
                    matches!(&error, HttpError::Connect { source, .. } if source.is_untrusted());
                outcome = Err(error);
                // A registry that speaks TLS is not asked without it.
                if untrusted {
                    break;
                }
            }
        }
    }
    let scheme = outcome?;
    let schemes = shared.schemes.lock();
    let mut schemes = schemes.unwrap_or_else(PoisonError::into_inner);
    schemes.insert(place.host.clone(), scheme);
    Ok(scheme)
}

fn is_transient(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}

fn digest_header(headers: &HeaderMap) -> Option<Sha256> {
    // A digest of another algorithm is passed over: ours is over the bytes themselves.
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// Encodes parameters for a query or a form.
fn encode(parameters: &[(&str, String)]) -> String {
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

/// Returns the first message of an error body, for people.
fn explanation(body: &[u8]) -> Shown {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Option<Errors> = serde_json::from_slice(body).ok();
    let first = errors.and_then(|body| body.errors.into_iter().next());
    Shown(first.map_or_else(
        || "it does not say why".to_owned(),
        |error| {
            format!("{} {}", error.code, error.message)
                .trim()
                .to_owned()
        },
    ))
}

/// Why a registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is for this store only.
    #[error("{0} is a local name: no registry has it")]
    Local(ImageName),
    /// The configuration forbids the registry.
    #[error("{0} is blocked by registries.conf")]
    Blocked(ImageName),
    /// There was no answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Credentials or a token could not be had.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The registry does not let us.
    #[error("{host} does not allow access to {what}")]
    Denied {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry does not have it.
    #[error("{host} does not have {what}")]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry answered with an error.
    #[error("{host} refused {what} (status {status}): {said}")]
    Refused {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The status of its answer.
        status: u16,
        /// Its own words.
        said: Shown,
    },
    /// The answer ended early, or never.
    #[error("{what} did not come whole")]
    Body {
        /// What was asked for.
        what: String,
        /// What went wrong.
        source: BodyError,
    },
    /// What came is something else.
    #[error("{what} should be {wanted} and is {got}")]
    WrongDigest {
        /// What was asked for.
        what: String,
        /// The digest it should have.
        wanted: Sha256,
        /// The digest it has.
        got: Sha256,
    },
    /// What came has another length.
    #[error("{what} should have {wanted} bytes and has {got}")]
    WrongLength {
        /// What was asked for.
        what: String,
        /// The length it should have.
        wanted: u64,
        /// How much came, at least.
        got: u64,
    },
    /// The answer makes no sense.
    #[error("{host} does not speak the registry's protocol: {problem}")]
    Nonsense {
        /// The registry.
        host: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl RegistryError {
    /// Returns whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Http(error) => error.is_transient(),
            Self::Body { source, .. } => source.is_transient(),
            Self::Refused { status, .. } => StatusCode::from_u16(*status).is_ok_and(is_transient),
            Self::Local(_)
            | Self::Blocked(_)
            | Self::Auth(_)
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::WrongDigest { .. }
            | Self::WrongLength { .. }
            | Self::Nonsense { .. } => false,
        }
    }
}
