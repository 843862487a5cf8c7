//! Blobs: reading them whole or in part, and collecting uploads.

use std::fs::File;
use std::io;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bedplate_model::Sha256;
use futures_util::stream;

use super::error::{ApiError, put, received};
use super::limits::Peer;
use super::route::{Repository, parse_digest};
use super::storage::read_at;
use super::uploads::{Taken, Upload};
use super::{Registry, query};

/// The header that names the digest of what is sent.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The header that names an upload.
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// How much of a blob is read at once.
const PIECE: u64 = 256 << 10;

impl Registry {
    pub(super) async fn get_blob(
        self,
        repository: Repository,
        digest: Sha256,
        request: Request,
    ) -> Result<Response, ApiError> {
        let found = self
            .on_disk(move |storage| storage.open_blob(&repository, &digest))
            .await?;
        let (file, size) = found.ok_or_else(|| ApiError::BlobUnknown(digest.to_string()))?;
        let range = match request.headers().get(header::RANGE) {
            Some(value) => parse_range(value.to_str().unwrap_or_default(), size)?,
            None => None,
        };
        let mut headers = HeaderMap::new();
        put(&mut headers, CONTENT_DIGEST, &digest.to_string());
        put(&mut headers, header::ACCEPT_RANGES, "bytes");
        put(
            &mut headers,
            header::CONTENT_TYPE,
            "application/octet-stream",
        );
        put(&mut headers, header::ETAG, &format!("\"{digest}\""));
        let (status, start, end) = match range {
            None => (StatusCode::OK, 0, size),
            Some((start, end)) => {
                let value = format!("bytes {start}-{}/{size}", end - 1);
                put(&mut headers, header::CONTENT_RANGE, &value);
                (StatusCode::PARTIAL_CONTENT, start, end)
            }
        };
        put(
            &mut headers,
            header::CONTENT_LENGTH,
            &(end - start).to_string(),
        );
        let body = if request.method() == Method::HEAD {
            Body::empty()
        } else {
            pieces(file, start, end)
        };
        Ok((status, headers, body).into_response())
    }

    pub(super) async fn delete_blob(
        self,
        repository: Repository,
        digest: Sha256,
    ) -> Result<Response, ApiError> {
        let removed = self
            .on_disk(move |storage| storage.remove_blob(&repository, &digest))
            .await?;
        if removed {
            Ok(StatusCode::ACCEPTED.into_response())
        } else {
            Err(ApiError::BlobUnknown(digest.to_string()))
        }
    }

    pub(super) async fn open_upload(
        self,
        repository: Repository,
        peer: Peer,
        request: Request,
    ) -> Result<Response, ApiError> {
        // An offer that is none here is like one that was not made: the client sends the blob.
        let offer = query(&request, "mount").zip(query(&request, "from"));
        if let Some((mount, from)) = offer
            && let (Ok(digest), Ok(from)) = (parse_digest(&mount), Repository::parse(&from))
        {
            let to = repository.clone();
            let mounted = self
                .on_disk(move |storage| {
                    let there = storage.open_blob(&from, &digest)?.is_some();
                    if there {
                        storage.add_blob(&to, &digest)?;
                    }
                    Ok(there)
                })
                .await?;
            if mounted {
                return Ok(created(&repository, &digest));
            }
        }
        let digest = query(&request, "digest")
            .map(|text| parse_digest(&text))
            .transpose()?;
        let id = self.uploads.open(&self.storage, &repository, peer)?;
        match digest {
            None => Ok(accepted(&repository, &id, 0)),
            Some(digest) => self.finish(repository, id, digest, request).await,
        }
    }

    pub(super) fn upload_status(
        &self,
        repository: &Repository,
        id: &str,
    ) -> Result<Response, ApiError> {
        let offset = self.uploads.offset(repository, id)?;
        let mut response = accepted(repository, id, offset);
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }

    pub(super) async fn continue_upload(
        self,
        repository: Repository,
        id: String,
        request: Request,
    ) -> Result<Response, ApiError> {
        let (upload, taken, outcome) = self.receive(&repository, &id, request).await?;
        let offset = upload.offset;
        taken.put_back(upload);
        outcome?;
        Ok(accepted(&repository, &id, offset))
    }

    pub(super) async fn finish_upload(
        self,
        repository: Repository,
        id: String,
        request: Request,
    ) -> Result<Response, ApiError> {
        let digest = query(&request, "digest")
            .ok_or(ApiError::UploadInvalid("a PUT names the digest"))
            .and_then(|text| parse_digest(&text))?;
        self.finish(repository, id, digest, request).await
    }

    async fn finish(
        self,
        repository: Repository,
        id: String,
        digest: Sha256,
        request: Request,
    ) -> Result<Response, ApiError> {
        let (upload, taken, outcome) = self.receive(&repository, &id, request).await?;
        if let Err(error) = outcome {
            taken.put_back(upload);
            return Err(error);
        }
        // From here on the session ends, whatever comes.
        if upload.digest() != digest {
            return Err(ApiError::DigestInvalid(digest.to_string()));
        }
        let into = repository.clone();
        self.on_disk(move |storage| {
            storage.keep_upload(&into, upload.file(), upload.path(), &digest)
        })
        .await?;
        drop(taken);
        Ok(created(&repository, &digest))
    }

    pub(super) fn cancel_upload(
        &self,
        repository: &Repository,
        id: &str,
    ) -> Result<Response, ApiError> {
        drop(self.uploads.take(repository, id)?);
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    /// Adds a request's body to an upload, where it begins at the upload's end.
    async fn receive(
        &self,
        repository: &Repository,
        id: &str,
        request: Request,
    ) -> Result<(Upload, Taken, Result<(), ApiError>), ApiError> {
        let (upload, taken) = self.uploads.take(repository, id)?;
        let range = request
            .headers()
            .get(header::CONTENT_RANGE)
            .map(|value| content_range(value.to_str().unwrap_or_default()));
        let max = match range {
            None => Ok(u64::MAX),
            Some(Some((start, len))) if start == upload.offset => {
                let said = request.headers().get(header::CONTENT_LENGTH);
                let said = said.and_then(|said| said.to_str().ok()?.parse::<u64>().ok());
                match said {
                    Some(said) if said != len => Err(ApiError::SizeInvalid),
                    _ => Ok(len),
                }
            }
            // Another start, or a range that is none.
            Some(_) => Err(ApiError::OutOfOrder {
                offset: upload.offset,
                location: upload_location(repository, id),
            }),
        };
        let max = match max {
            Ok(max) => max,
            Err(error) => {
                taken.put_back(upload);
                return Err(error);
            }
        };
        let body = request.into_body();
        let (upload, outcome) = upload.receive(body, max, &self.limits).await;
        Ok((upload, taken, outcome))
    }
}

/// Makes a body of part of a file, read where it may block.
fn pieces(file: File, start: u64, end: u64) -> Body {
    Body::from_stream(stream::try_unfold(
        (file, start),
        move |(mut file, offset)| async move {
            let len = PIECE.min(end - offset);
            if len == 0 {
                return Ok(None);
            }
            let reading = tokio::task::spawn_blocking(move || {
                read_at(&mut file, offset, len as usize).map(|piece| (piece, file))
            });
            let (piece, file) = reading.await.map_err(io::Error::other)??;
            if piece.len() as u64 != len {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            Ok(Some((Bytes::from(piece), (file, offset + len))))
        },
    ))
}

fn upload_location(repository: &Repository, id: &str) -> String {
    format!("/v2/{}/blobs/uploads/{id}", repository.as_str())
}

fn accepted(repository: &Repository, id: &str, offset: u64) -> Response {
    let mut response = StatusCode::ACCEPTED.into_response();
    let headers = response.headers_mut();
    put(headers, header::LOCATION, &upload_location(repository, id));
    put(headers, header::RANGE, &received(offset));
    put(headers, UPLOAD_ID, id);
    response
}

fn created(repository: &Repository, digest: &Sha256) -> Response {
    let mut response = StatusCode::CREATED.into_response();
    let headers = response.headers_mut();
    let location = format!("/v2/{}/blobs/{digest}", repository.as_str());
    put(headers, header::LOCATION, &location);
    put(headers, CONTENT_DIGEST, &digest.to_string());
    response
}

/// Parses `Range: bytes=…` with one range into start and end, the end not included.
///
/// Several ranges, and what is no range of bytes, are answered with the whole: RFC 9110 allows it.
fn parse_range(value: &str, size: u64) -> Result<Option<(u64, u64)>, ApiError> {
    let Some((first, last)) = value
        .strip_prefix("bytes=")
        .filter(|spec| !spec.contains(','))
        .and_then(|spec| spec.trim().split_once('-'))
    else {
        return Ok(None);
    };
    let range = match (first, last) {
        ("", suffix) => {
            let Ok(suffix) = suffix.parse::<u64>() else {
                return Ok(None);
            };
            (size.saturating_sub(suffix), size)
        }
        (first, last) => {
            let Ok(first) = first.parse::<u64>() else {
                return Ok(None);
            };
            let last = match last {
                "" => u64::MAX,
                last => match last.parse::<u64>() {
                    Ok(last) if last >= first => last,
                    _ => return Ok(None),
                },
            };
            (first, size.min(last.saturating_add(1)))
        }
    };
    if range.0 >= range.1 {
        return Err(ApiError::RangeUnsatisfiable { size });
    }
    Ok(Some(range))
}

/// Parses an upload's `Content-Range: <start>-<end>` into its start and its length; `bytes ` before it is
/// tolerated.
fn content_range(value: &str) -> Option<(u64, u64)> {
    let value = value.strip_prefix("bytes ").unwrap_or(value);
    let (start, rest) = value.split_once('-')?;
    let end = rest.split('/').next()?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    Some((start, end.checked_sub(start)?.checked_add(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_has_them() {
        for (text, wanted) in [
            ("bytes=0-9", Some((0, 10))),
            ("bytes=90-", Some((90, 100))),
            ("bytes=-10", Some((90, 100))),
            ("bytes=-1000", Some((0, 100))),
            ("bytes=50-18446744073709551615", Some((50, 100))),
            ("bytes=0-1,5-6", None),
            ("bytes=5-1", None),
            ("bytes=x-", None),
            ("items=0-1", None),
        ] {
            assert_eq!(parse_range(text, 100).unwrap(), wanted, "{text}");
        }
        for text in ["bytes=100-", "bytes=-0"] {
            assert!(parse_range(text, 100).is_err(), "{text}");
        }
        assert!(parse_range("bytes=0-0", 0).is_err());
    }

    #[test]
    fn the_range_of_a_chunk_is_read_with_and_without_a_unit() {
        assert_eq!(content_range("5-9"), Some((5, 5)));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 5)));
        for text in ["", "5", "9-5", "-5", "a-b", "0-18446744073709551615"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
