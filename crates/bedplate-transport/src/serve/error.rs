//! The error body of the distribution specification, "Error Codes".

use std::io;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("no such repository: {0}")]
    NameUnknown(String),
    #[error("this is no repository name")]
    NameInvalid,
    #[error("no such manifest: {0}")]
    ManifestUnknown(String),
    #[error("the manifest is refused: {0}")]
    ManifestInvalid(String),
    #[error("the manifest names {0}, which this repository does not have")]
    ManifestBlobUnknown(String),
    #[error("a manifest has at most {0} bytes")]
    ManifestTooLarge(u64),
    #[error("no such blob: {0}")]
    BlobUnknown(String),
    #[error("`{0}` is not a sha256 digest, or not that of the content")]
    DigestInvalid(String),
    #[error("no such upload")]
    UploadUnknown,
    #[error("the upload is refused: {0}")]
    UploadInvalid(&'static str),
    #[error("the upload stands at {offset}; send from there")]
    OutOfOrder { offset: u64, location: String },
    #[error("the body is not as long as its Content-Range says")]
    SizeInvalid,
    #[error("the range lies outside of the {size} bytes")]
    RangeUnsatisfiable { size: u64 },
    #[error("too many uploads at once; try again later")]
    TooManyUploads,
    #[error("this address takes no such method")]
    MethodNotAllowed,
    #[error("the registry has no such address")]
    NotFound,
    #[error("the registry cannot read or write its storage")]
    Storage(#[from] io::Error),
}

impl ApiError {
    const fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NameUnknown(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::NameInvalid => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::ManifestUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestBlobUnknown(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::BlobUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::DigestInvalid(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::UploadInvalid(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::SizeInvalid => (StatusCode::BAD_REQUEST, "SIZE_INVALID"),
            Self::OutOfOrder { .. } | Self::RangeUnsatisfiable { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID")
            }
            Self::TooManyUploads => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::NotFound => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Self::Storage(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let body = json!({"errors": [{"code": code, "message": self.to_string()}]}).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        match &self {
            Self::OutOfOrder { offset, location } => {
                put(headers, header::LOCATION, location);
                put(headers, header::RANGE, &received(*offset));
            }
            Self::RangeUnsatisfiable { size } => {
                put(headers, header::CONTENT_RANGE, &format!("bytes */{size}"));
            }
            Self::TooManyUploads => put(headers, header::RETRY_AFTER, "5"),
            _ => {}
        }
        response
    }
}

/// Sets a header whose value this server made from checked parts.
pub(super) fn put(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    // Values come from parsed names and digests; one that is no header text is left out.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Prints how much of an upload arrived, as the specification has it: `0-<last byte>`.
pub(super) fn received(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}
