//! Authorization: what a registry asks for, and where it is sent.
//!
//! ```text
//! 401 + challenge ─→ credential ─┬─→ `Basic …`                          ─→ the registry itself
//!                                └─→ realm (https, any host) ─→ token ─→ the registry itself
//! ```
//!
//! Invariants: an `Authorization` header goes to the origin that asked for it and to no other, redirects
//! and uploads included. A registry that is reached over TLS gets us to send a credential nowhere without
//! it. The realm may be another host, as with every client: the registry is trusted to name it, because
//! the credential was given for this registry.

use std::sync::PoisonError;

use bedplate_model::format::Shown;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use serde::Deserialize;

use super::{RegistryError, Remote};
use crate::client::auth::{self, AuthError, Challenge, Credential};
use crate::client::http;

/// How long a token's answer may be.
const TOKEN_MAX: u64 = 256 << 10;

impl Remote {
    /// Adds what authorizes us at our own registry; nobody else gets it.
    pub(super) fn authorize(&self, headers: &mut HeaderMap, address: &Uri) -> bool {
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

    pub(super) fn forget_authorization(&self) {
        let known = self.shared.authorizations.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        known.remove(&(self.origin.clone(), self.scope.clone()));
    }

    /// Answers a challenge; returns whether there is something new to try.
    pub(super) async fn obtain_authorization(
        &self,
        answer: &HeaderMap,
    ) -> Result<bool, RegistryError> {
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
            let mut request = Request::new(http::full(http::encode(&parameters).into()));
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
            let address = format!("{realm}{joint}{}", http::encode(&parameters));
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
}
