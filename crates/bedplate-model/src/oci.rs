//! The documents of OCI registries: manifests, indexes, configs and the descriptors between them.
//!
//! Only what Bedplate uses has a field; the documents themselves are kept as the bytes that came,
//! because their digest is over those. Formats: OCI image specification 1.1 and Docker's image
//! manifest version 2, schema 2, which differ in media types alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;

/// Media types of manifests.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of an OCI config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The annotation of a manifest that says which root digest its layers give, and by which rule set:
/// who pulls the image flattens by those rules and refuses another result.
pub const ANNOTATION_ROOT: &str = "dev.bedplate.root";
/// The annotation of a manifest that says for which config [`ANNOTATION_ROOT`] holds. Tools that derive
/// an image copy annotations along; with another config, the root digest is the base's, and void.
pub const ANNOTATION_CONFIG: &str = "dev.bedplate.config";
/// The annotation of a layer that says how its compressed bytes are made again: `zstd-3`, `gzip-6`.
pub const ANNOTATION_COMPRESSION: &str = "dev.bedplate.compression";
/// The label of a config that marks a bootable image (bootc's contract).
pub const LABEL_BOOTC: &str = "containers.bootc";
/// The label of a config with the image's version.
pub const LABEL_VERSION: &str = "org.opencontainers.image.version";

/// The most bytes of a manifest, index or config that are read: what registries accept.
pub const DOCUMENT_MAX: u64 = 4 << 20;

/// A pointer to a blob: what it is, how long, and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The kind of the blob.
    pub media_type: String,
    /// The digest of the blob.
    pub digest: Sha256,
    /// The length of the blob in bytes.
    pub size: u64,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// The platform that a manifest in an index is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The processor architecture as Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// The operating system.
    pub os: String,
    /// The variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image manifest: one config and its layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The media type of this document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The config.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An index: one manifest for each platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The media type of this document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// When the image was made, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The processor architecture as Go names it.
    pub architecture: String,
    /// The operating system.
    pub os: String,
    /// How to run a container of it; labels stand here.
    #[serde(default)]
    pub config: RunConfig,
    /// The uncompressed layers.
    pub rootfs: RootFs,
    /// One entry for each step that made the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// The part of a config that says how to run it. Unknown settings are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Labels.
    #[serde(
        default,
        rename = "Labels",
        with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Whatever else stands there.
    #[serde(flatten)]
    pub rest: BTreeMap<String, serde_json::Value>,
}

/// The uncompressed layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digest of each uncompressed layer, the lowest first.
    pub diff_ids: Vec<Sha256>,
}

/// One step that made an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By what command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Whether the step made no layer.
    #[serde(default, skip_serializing_if = "is_false")]
    pub empty_layer: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Docker writes `"Labels": null` for none.
mod null_as_default {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        value.serialize(s)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: Default + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Option::deserialize(deserializer)?.unwrap_or_default())
    }
}

/// How a layer's bytes are compressed on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more Zstandard frames.
    Zstd,
}

impl Compression {
    /// Returns the compression of a layer with this media type, or `None` where it is no layer.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Some(Self::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Returns the OCI media type of a layer with this compression.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A manifest or an index, told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// One image for each platform.
    Index(Index),
}

impl Document {
    /// Parses what a registry answered to a request for a manifest.
    ///
    /// The kind is decided by the document's own fields, which its digest covers; the
    /// `Content-Type` header is only a stranger's word.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Peek {
            schema_version: u32,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let peek: Peek = serde_json::from_slice(bytes)?;
        if peek.schema_version != 2 {
            return Err(DocumentError::Schema(peek.schema_version));
        }
        match (peek.media_type.as_deref(), &peek.manifests, &peek.layers) {
            (Some(OCI_INDEX | DOCKER_INDEX) | None, Some(_), None) => {
                Ok(Self::Index(serde_json::from_slice(bytes)?))
            }
            (Some(OCI_MANIFEST | DOCKER_MANIFEST) | None, None, Some(_)) => {
                Ok(Self::Manifest(serde_json::from_slice(bytes)?))
            }
            (media_type, ..) => Err(DocumentError::Kind(crate::format::Shown(
                media_type
                    .unwrap_or("a document without a media type")
                    .to_owned(),
            ))),
        }
    }
}

/// Why a document of a registry is none that Bedplate reads.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or a field is missing or wrong.
    #[error("the document is not a valid manifest")]
    Json(#[from] serde_json::Error),
    /// An old schema.
    #[error("manifest schema version {0} is not supported (2 is)")]
    Schema(u32),
    /// Neither manifest nor index, or both at once.
    #[error("{0} is neither an image manifest nor an index")]
    Kind(crate::format::Shown),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> String {
        format!("sha256:{}", "0".repeat(64))
    }

    #[test]
    fn a_document_that_claims_to_be_both_is_refused() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[],"layers":[],"config":{{"mediaType":"x","digest":"{}","size":1}}}}"#,
            digest()
        );
        assert!(matches!(
            Document::parse(text.as_bytes()),
            Err(DocumentError::Kind(_))
        ));
    }

    #[test]
    fn dockers_null_labels_are_no_labels() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Labels":null,"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert!(config.config.labels.is_empty());
        assert_eq!(config.config.rest["Cmd"][0], "sh");
    }

    #[test]
    fn each_compression_knows_its_own_media_type() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            assert_eq!(
                Compression::of_media_type(compression.media_type()),
                Some(compression)
            );
        }
        assert_eq!(Compression::of_media_type("application/json"), None);
    }
}
