//! Addresses: what a path below `/v2/` asks for.
//!
//! Repository names hold slashes, so paths are read from their end. Every part is parsed into a type
//! here; what is no valid name never reaches the storage.

use bedplate_model::{ImageName, Sha256};

use super::error::ApiError;

/// The name of a repository: checked, so that it is a relative path without dots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Repository(String);

impl Repository {
    /// Parses a repository name by the specification's grammar.
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        // The model's grammar is the only one; a host in front makes it a whole image name.
        match format!("registry.invalid/{text}").parse::<ImageName>() {
            Ok(name) if name.repository() == text => Ok(Self(text.to_owned())),
            _ => Err(ApiError::NameInvalid),
        }
    }

    /// Returns the name.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The last part of a manifest's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    Tag(String),
    Digest(Sha256),
}

impl Reference {
    fn parse(text: &str) -> Result<Self, ApiError> {
        if text.contains(':') {
            return parse_digest(text).map(Self::Digest);
        }
        match format!("registry.invalid/a:{text}").parse::<ImageName>() {
            Ok(name) if name.tag() == Some(text) => Ok(Self::Tag(text.to_owned())),
            _ => Err(ApiError::ManifestUnknown("not a tag".into())),
        }
    }
}

/// Parses a digest, or answers as the specification asks.
pub(super) fn parse_digest(text: &str) -> Result<Sha256, ApiError> {
    text.parse()
        .map_err(|_| ApiError::DigestInvalid(text.chars().take(80).collect()))
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Base,
    Catalog,
    Tags(Repository),
    Manifest(Repository, Reference),
    Blob(Repository, Sha256),
    NewUpload(Repository),
    Upload(Repository, String),
    Referrers(Repository, Sha256),
}

impl Route {
    /// Parses the path of a request.
    pub(super) fn parse(path: &str) -> Result<Self, ApiError> {
        // A colon may come escaped; nothing else in a valid path needs escaping.
        let path = path.replace("%3A", ":").replace("%3a", ":");
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Self::Base),
            Some("/_catalog") => return Ok(Self::Catalog),
            Some(rest) => rest.strip_prefix('/').ok_or(ApiError::NotFound)?,
            None => return Err(ApiError::NotFound),
        };
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags(Repository::parse(name)?));
        }
        if let Some(name) = rest
            .strip_suffix("/blobs/uploads/")
            .or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return Ok(Self::NewUpload(Repository::parse(name)?));
        }
        let (head, last) = rest.rsplit_once('/').ok_or(ApiError::NotFound)?;
        if let Some(name) = head.strip_suffix("/blobs/uploads") {
            return Ok(Self::Upload(Repository::parse(name)?, last.to_owned()));
        }
        let (name, kind) = head.rsplit_once('/').ok_or(ApiError::NotFound)?;
        match kind {
            "manifests" => Ok(Self::Manifest(
                Repository::parse(name)?,
                Reference::parse(last)?,
            )),
            "blobs" => Ok(Self::Blob(Repository::parse(name)?, parse_digest(last)?)),
            "referrers" => Ok(Self::Referrers(
                Repository::parse(name)?,
                parse_digest(last)?,
            )),
            _ => Err(ApiError::NotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(text: &str) -> Repository {
        Repository(text.to_owned())
    }

    #[test]
    fn paths_are_read_from_their_end_because_names_hold_slashes() {
        let hex = "0".repeat(64);
        let digest = Sha256([0; 32]);
        for (path, wanted) in [
            ("/v2/".into(), Route::Base),
            ("/v2/_catalog".into(), Route::Catalog),
            ("/v2/a/b/tags/list".into(), Route::Tags(repository("a/b"))),
            (
                "/v2/a/manifests/manifests/v1".into(),
                Route::Manifest(repository("a/manifests"), Reference::Tag("v1".into())),
            ),
            (
                format!("/v2/a/manifests/sha256%3A{hex}"),
                Route::Manifest(repository("a"), Reference::Digest(digest)),
            ),
            (
                format!("/v2/blobs/uploads/blobs/sha256:{hex}"),
                Route::Blob(repository("blobs/uploads"), digest),
            ),
            (
                "/v2/a/blobs/uploads/".into(),
                Route::NewUpload(repository("a")),
            ),
            (
                "/v2/a/blobs/uploads/x-y".into(),
                Route::Upload(repository("a"), "x-y".into()),
            ),
        ] {
            assert_eq!(Route::parse(&path).unwrap(), wanted, "{path}");
        }
    }

    #[test]
    fn no_path_leads_out_of_the_storage() {
        for path in [
            "/v2/../../etc/tags/list",
            "/v2/a/../b/tags/list",
            "/v2//a/tags/list",
            "/v2/a%2f..%2fb/tags/list",
            "/v2/_manifests/tags/list",
            "/v2/a/manifests/..",
            "/v2/a/manifests/.",
            "/v2/a/blobs/sha256:../../../../etc/passwd",
            "/v2/A/tags/list",
            "/v1/a/tags/list",
        ] {
            assert!(Route::parse(path).is_err(), "{path}");
        }
    }
}
