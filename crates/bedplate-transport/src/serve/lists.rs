//! Lists: the tags of a repository, all repositories, and what refers to a manifest.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse as _, Response};
use bedplate_model::Sha256;
use bedplate_model::oci::{DOCUMENT_MAX, OCI_INDEX};
use serde_json::{Value, json};

use super::error::{ApiError, put};
use super::manifests::Outline;
use super::route::{Repository, parse_digest};
use super::storage::StoredManifest;
use super::{Registry, query};
use crate::client::http::encode;

/// The header that says which filters a list of referrers went through.
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

impl Registry {
    pub(super) async fn tags(
        self,
        repository: Repository,
        request: Request,
    ) -> Result<Response, ApiError> {
        let of = repository.clone();
        let tags = self
            .on_disk(move |storage| storage.tags(&of))
            .await?
            .ok_or_else(|| ApiError::NameUnknown(repository.as_str().to_owned()))?;
        let path = format!("/v2/{}/tags/list", repository.as_str());
        let (tags, link) = page(tags, &path, &request);
        Ok(answer(
            link,
            &json!({"name": repository.as_str(), "tags": tags}),
        ))
    }

    pub(super) async fn catalog(self, request: Request) -> Result<Response, ApiError> {
        let names = self
            .on_disk(|storage| {
                let names = storage.repositories()?;
                Ok(names.iter().map(|name| name.as_str().to_owned()).collect())
            })
            .await?;
        let (names, link) = page(names, "/v2/_catalog", &request);
        Ok(answer(link, &json!({"repositories": names})))
    }

    pub(super) async fn referrers(
        self,
        repository: Repository,
        subject: Sha256,
        request: Request,
    ) -> Result<Response, ApiError> {
        let wanted = query(&request, "artifactType");
        let last = query(&request, "last")
            .map(|text| parse_digest(&text))
            .transpose()?;
        let filter = wanted.clone();
        let path = format!("/v2/{}/referrers/{subject}", repository.as_str());
        let (descriptors, next) = self
            .on_disk(move |storage| {
                let mut descriptors: Vec<Value> = Vec::new();
                // Annotations are as long as who pushed them liked: a list ends when it is as long as a
                // manifest may be, and says where it goes on.
                let mut left = DOCUMENT_MAX;
                let mut listed = last;
                for manifest in storage.referrers(&repository, &subject)? {
                    if last.is_some_and(|last| manifest.digest.0 <= last.0) {
                        continue;
                    }
                    let bytes = storage.manifest_bytes(&manifest)?;
                    let Ok(outline) = Outline::parse(&bytes) else {
                        continue;
                    };
                    let Some(descriptor) = descriptor(&manifest, outline, filter.as_deref()) else {
                        continue;
                    };
                    match left.checked_sub(bytes.len() as u64) {
                        None if !descriptors.is_empty() => return Ok((descriptors, listed)),
                        rest => left = rest.unwrap_or(0),
                    }
                    listed = Some(manifest.digest);
                    descriptors.push(descriptor);
                }
                Ok((descriptors, None))
            })
            .await?;
        let link = next.map(|last| {
            let mut parameters = vec![("last", last.to_string())];
            parameters.extend(wanted.clone().map(|wanted| ("artifactType", wanted)));
            format!("<{path}?{}>; rel=\"next\"", encode(&parameters))
        });
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors});
        let mut response = answer(link, &index);
        put(response.headers_mut(), header::CONTENT_TYPE, OCI_INDEX);
        if wanted.is_some() {
            put(response.headers_mut(), FILTERS_APPLIED, "artifactType");
        }
        Ok(response)
    }
}

/// Describes a manifest that refers to another, where the filter wants it.
fn descriptor(manifest: &StoredManifest, outline: Outline, filter: Option<&str>) -> Option<Value> {
    // Without a type of its own, an artifact is of its config's type.
    let artifact_type = outline
        .artifact_type
        .filter(|artifact_type| !artifact_type.is_empty())
        .or_else(|| outline.config.and_then(|config| config.media_type));
    if filter.is_some() && filter != artifact_type.as_deref() {
        return None;
    }
    let mut descriptor = json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.size,
    });
    if let Some(artifact_type) = artifact_type {
        descriptor["artifactType"] = artifact_type.into();
    }
    if let Some(annotations) = outline.annotations {
        descriptor["annotations"] = annotations.into();
    }
    Some(descriptor)
}

/// Cuts the page out of an ordered list that `n` and `last` ask for, with the address of the next one.
fn page(mut names: Vec<String>, path: &str, request: &Request) -> (Vec<String>, Option<String>) {
    if let Some(last) = query(request, "last") {
        let start = names.partition_point(|name| *name <= last);
        names.drain(..start);
    }
    let wanted = query(request, "n").and_then(|n| n.parse::<usize>().ok());
    let Some(n) = wanted.filter(|n| *n < names.len()) else {
        return (names, None);
    };
    names.truncate(n);
    let link = names
        .last()
        .map(|last| format!("<{path}?n={n}&last={last}>; rel=\"next\""));
    (names, link)
}

fn answer(link: Option<String>, body: &Value) -> Response {
    let mut headers = HeaderMap::new();
    put(&mut headers, header::CONTENT_TYPE, "application/json");
    if let Some(link) = link {
        put(&mut headers, header::LINK, &link);
    }
    (headers, body.to_string()).into_response()
}
