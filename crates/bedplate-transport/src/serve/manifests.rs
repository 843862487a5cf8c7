//! Manifests: kept byte for byte, under their digest and under tags.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bedplate_model::Sha256;
use bedplate_model::oci::{DOCUMENT_MAX, OCI_MANIFEST};
use serde::Deserialize;
use sha2::Digest as _;

use super::Registry;
use super::blobs::CONTENT_DIGEST;
use super::connections::{Cut, piece};
use super::error::{ApiError, put};
use super::route::{Reference, Repository};
use super::storage::StoredManifest;

/// The header that tells a client that the registry keeps the list of referrers.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// What the registry must know of a manifest, whatever else stands there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outline {
    schema_version: u32,
    pub(super) media_type: Option<String>,
    pub(super) artifact_type: Option<String>,
    pub(super) config: Option<Pointer>,
    layers: Option<Vec<Pointer>>,
    manifests: Option<Vec<Pointer>>,
    pub(super) subject: Option<Pointer>,
    pub(super) annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A descriptor's parts that matter here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pointer {
    pub(super) media_type: Option<String>,
    digest: String,
    #[serde(default)]
    urls: Vec<String>,
}

impl Outline {
    /// Parses a manifest or an index of any kind.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let outline: Self = serde_json::from_slice(bytes)
            .map_err(|error| ApiError::ManifestInvalid(error.to_string()))?;
        if outline.schema_version != 2 {
            return Err(ApiError::ManifestInvalid(format!(
                "schema version {} is not supported (2 is)",
                outline.schema_version
            )));
        }
        Ok(outline)
    }

    /// Returns what this manifest says that it is about.
    pub(super) fn subject_digest(&self) -> Result<Option<Sha256>, ApiError> {
        self.subject.as_ref().map(Pointer::digest).transpose()
    }
}

impl Pointer {
    fn digest(&self) -> Result<Sha256, ApiError> {
        self.digest.parse().map_err(|_| {
            let shown: String = self.digest.chars().take(80).collect();
            ApiError::ManifestInvalid(format!("`{shown}` is not a sha256 digest"))
        })
    }
}

impl Registry {
    /// Finds the manifest that an address names.
    async fn find(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<StoredManifest>, ApiError> {
        let (repository, reference) = (repository.clone(), reference.clone());
        self.on_disk(move |storage| {
            let digest = match reference {
                Reference::Digest(digest) => Some(digest),
                Reference::Tag(tag) => storage.tag(&repository, &tag)?,
            };
            match digest {
                Some(digest) => storage.manifest(&repository, &digest),
                None => Ok(None),
            }
        })
        .await
    }

    pub(super) async fn get_manifest(
        self,
        repository: Repository,
        reference: Reference,
    ) -> Result<Response, ApiError> {
        let manifest = self
            .find(&repository, &reference)
            .await?
            .ok_or_else(|| unknown(&reference))?;
        let mut headers = HeaderMap::new();
        put(&mut headers, CONTENT_DIGEST, &manifest.digest.to_string());
        put(&mut headers, header::CONTENT_TYPE, &manifest.media_type);
        put(
            &mut headers,
            header::ETAG,
            &format!("\"{}\"", manifest.digest),
        );
        put(
            &mut headers,
            header::CONTENT_LENGTH,
            &manifest.size.to_string(),
        );
        let bytes = self
            .on_disk(move |storage| storage.manifest_bytes(&manifest))
            .await?;
        // hyper sends no body in the answer to HEAD.
        Ok((headers, Body::from(bytes)).into_response())
    }

    pub(super) async fn put_manifest(
        self,
        repository: Repository,
        reference: Reference,
        request: Request,
    ) -> Result<Response, ApiError> {
        let declared = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(|value| {
                value
                    .split(';')
                    .next()
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            });
        let bytes = self.read_document(request.into_body()).await?;
        let digest = Sha256(sha2::Sha256::digest(&bytes).into());
        if let Reference::Digest(wanted) = reference
            && wanted != digest
        {
            return Err(ApiError::DigestInvalid(wanted.to_string()));
        }
        let outline = Outline::parse(&bytes)?;
        let media_type = match (&outline.media_type, declared) {
            (Some(inside), Some(declared)) if *inside != declared => {
                return Err(ApiError::ManifestInvalid(
                    "its mediaType is not its Content-Type".into(),
                ));
            }
            (Some(inside), _) => inside.clone(),
            (None, Some(declared)) => declared,
            (None, None) => OCI_MANIFEST.to_owned(),
        };
        self.check_children(&repository, &outline).await?;
        let subject = outline.subject_digest()?;
        let tag = match &reference {
            Reference::Tag(tag) => Some(tag.clone()),
            Reference::Digest(_) => None,
        };
        let manifest = StoredManifest {
            digest,
            media_type,
            size: bytes.len() as u64,
        };
        let into = repository.clone();
        self.on_disk(move |storage| {
            storage.keep_manifest(&into, &bytes, &manifest, tag.as_deref(), subject.as_ref())
        })
        .await?;
        let mut response = StatusCode::CREATED.into_response();
        let headers = response.headers_mut();
        let location = format!("/v2/{}/manifests/{digest}", repository.as_str());
        put(headers, header::LOCATION, &location);
        put(headers, CONTENT_DIGEST, &digest.to_string());
        if let Some(subject) = subject {
            put(headers, SUBJECT, &subject.to_string());
        }
        Ok(response)
    }

    async fn read_document(&self, mut body: Body) -> Result<Vec<u8>, ApiError> {
        let mut bytes = Vec::new();
        loop {
            match piece(&mut body, self.limits.silence).await {
                Ok(None) => return Ok(bytes),
                Ok(Some(piece)) if (bytes.len() + piece.len()) as u64 > DOCUMENT_MAX => {
                    return Err(ApiError::ManifestTooLarge(DOCUMENT_MAX));
                }
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Err(Cut::Silent | Cut::Broken) => {
                    return Err(ApiError::ManifestInvalid("its body broke off".into()));
                }
            }
        }
    }

    /// Refuses a manifest that points at what the repository does not have.
    async fn check_children(
        &self,
        repository: &Repository,
        outline: &Outline,
    ) -> Result<(), ApiError> {
        let digests = |pointers: &mut dyn Iterator<Item = &Pointer>| {
            pointers
                .map(Pointer::digest)
                .collect::<Result<Vec<_>, ApiError>>()
        };
        // A layer with addresses of its own lies elsewhere.
        let mut layers = (outline.layers.iter().flatten()).filter(|layer| layer.urls.is_empty());
        let blobs = digests(&mut outline.config.iter().chain(&mut layers))?;
        let manifests = digests(&mut outline.manifests.iter().flatten())?;
        let repository = repository.clone();
        let missing = self
            .on_disk(move |storage| {
                for digest in blobs {
                    if storage.open_blob(&repository, &digest)?.is_none() {
                        return Ok(Some(digest));
                    }
                }
                for digest in manifests {
                    if storage.manifest(&repository, &digest)?.is_none() {
                        return Ok(Some(digest));
                    }
                }
                Ok(None)
            })
            .await?;
        match missing {
            None => Ok(()),
            Some(digest) => Err(ApiError::ManifestBlobUnknown(digest.to_string())),
        }
    }

    pub(super) async fn delete_manifest(
        self,
        repository: Repository,
        reference: Reference,
    ) -> Result<Response, ApiError> {
        let manifest = self
            .find(&repository, &reference)
            .await?
            .ok_or_else(|| unknown(&reference))?;
        self.on_disk(move |storage| match reference {
            Reference::Tag(tag) => storage.remove_tag(&repository, &tag),
            Reference::Digest(digest) => {
                let bytes = storage.manifest_bytes(&manifest)?;
                // It was parsed when it came in.
                let subject = Outline::parse(&bytes)
                    .and_then(|outline| outline.subject_digest())
                    .unwrap_or_default();
                storage.remove_manifest(&repository, &digest, subject.as_ref())
            }
        })
        .await?;
        Ok(StatusCode::ACCEPTED.into_response())
    }
}

fn unknown(reference: &Reference) -> ApiError {
    ApiError::ManifestUnknown(match reference {
        Reference::Tag(tag) => tag.clone(),
        Reference::Digest(digest) => digest.to_string(),
    })
}
