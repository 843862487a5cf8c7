//! The verbs of the distribution specification, as a client speaks them.
//!
//! ```text
//! Remote ── manifest · blob · has_blob · mount · upload · put_manifest
//!              └─ ask: retries, refusals in words
//!                   └─ authorize: credentials and tokens
//! ```
//!
//! Invariant: a manifest leaves here only with the digest that its bytes have; a blob's bytes are
//! checked by who reads them to their end.

mod ask;
mod authorize;
mod error;

use std::sync::Arc;
use std::time::Duration;

use bedplate_model::oci::{DOCKER_INDEX, DOCKER_MANIFEST, DOCUMENT_MAX, OCI_INDEX, OCI_MANIFEST};
use bedplate_model::{ImageName, Sha256};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use sha2::Digest as _;
use tokio::sync::{mpsc, watch};

use crate::client::Shared;
use crate::client::config::Place;
use crate::client::http;
use ask::{ATTEMPTS, FIRST_WAIT};
pub use error::RegistryError;

/// How long a registry may take nothing of an upload that we have bytes for.
const UPLOAD_STALL: Duration = Duration::from_secs(60);

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

/// Where the sender of an upload stands.
#[derive(Clone, Copy, Debug)]
enum Sending {
    /// The registry waits for us.
    Making,
    /// We wait for the registry to take a piece.
    Piece,
    /// We wait for its answer.
    AllSent,
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
        let scheme = ask::scheme(shared, &place).await?;
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

    /// Returns the repository's name at its registry.
    pub(crate) fn repository(&self) -> &str {
        &self.place.repository
    }

    /// Names a manifest for people.
    fn manifest_name(&self, reference: &str) -> String {
        let joint = if reference.contains(':') { '@' } else { ':' };
        format!("the manifest {}{joint}{reference}", self.place.repository)
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
        let what = self.manifest_name(reference);
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
        // Who waits for whom decides how long that may last: making a piece takes what it takes.
        let (say, mut said) = watch::channel(Sending::Making);
        let stream = futures_util::stream::unfold((pieces, say), |(mut pieces, say)| async move {
            say.send_replace(Sending::Making);
            let piece = pieces.recv().await;
            say.send_replace(match piece {
                Some(_) => Sending::Piece,
                None => Sending::AllSent,
            });
            piece.map(|piece| (piece.map(Frame::data), (pieces, say)))
        });
        let mut request = Request::new(BodyExt::boxed(StreamBody::new(stream.fuse())));
        *request.method_mut() = Method::PATCH;
        *request.uri_mut() = upload.clone();
        let octets = HeaderValue::from_static("application/octet-stream");
        request.headers_mut().insert(header::CONTENT_TYPE, octets);
        self.authorize(request.headers_mut(), upload);
        let stalled = async {
            loop {
                let limit = match *said.borrow_and_update() {
                    Sending::Making => None,
                    Sending::Piece => Some(UPLOAD_STALL),
                    Sending::AllSent => Some(http::FILING_TIMEOUT),
                };
                let Some(limit) = limit else {
                    if said.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    continue;
                };
                // After the end nothing changes any more.
                tokio::select! {
                    Ok(()) = said.changed() => {}
                    () = tokio::time::sleep(limit) => return,
                }
            }
        };
        let answer = tokio::select! {
            answer = self.shared.http.send(request) => answer?,
            () = stalled => return Err(self.nonsense("it does not take an upload")),
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
        let what = self.manifest_name(reference);
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
}

fn digest_header(headers: &HeaderMap) -> Option<Sha256> {
    // A digest of another algorithm is passed over: ours is over the bytes themselves.
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}
