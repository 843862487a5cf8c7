//! One question to a registry: authorization, retries, and its refusals in words.
//!
//! Invariant: a question that may be repeated is repeated a few times and no more.

use std::sync::PoisonError;
use std::time::Duration;

use bedplate_model::format::Shown;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde::Deserialize;

use super::{RegistryError, Remote};
use crate::client::Shared;
use crate::client::config::Place;
use crate::client::http::{self, HttpError};

/// How often a request is tried.
pub(super) const ATTEMPTS: u32 = 4;
/// How long the first retry waits; each later one waits twice as long.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(250);
/// How long a server may make us wait with `Retry-After`.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How much of an answer that is an error is read.
const ERROR_MAX: u64 = 64 << 10;

impl Remote {
    /// Sends a request that can be repeated, with authorization, and again after transient failures.
    pub(super) async fn ask(
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

    /// Turns an answer with another status into an error in the registry's own words.
    pub(super) async fn expect(
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
pub(super) async fn scheme(shared: &Shared, place: &Place) -> Result<&'static str, RegistryError> {
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

pub(super) fn is_transient(status: StatusCode) -> bool {
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
