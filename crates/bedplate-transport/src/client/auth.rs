//! Credentials: where they are kept, and what a registry asks for.
//!
//! ```text
//! auth files ─→ Credential ─┐
//! 401 + WWW-Authenticate ───┴─→ `Basic …`, or a token from the realm ─→ `Bearer …`
//! ```
//!
//! The files are those of podman and docker: keys are registries or `registry/repository` prefixes,
//! the longest that fits wins, and the first file that has one wins over later files.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

/// What proves to a registry who asks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A user and a password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that is exchanged for access tokens.
    IdentityToken(String),
}

impl Credential {
    /// Returns the value of an `Authorization` header, where this credential can stand in one.
    pub(crate) fn basic_header(&self) -> Option<String> {
        match self {
            Self::Basic { user, password } => Some(format!(
                "Basic {}",
                BASE64.encode(format!("{user}:{password}"))
            )),
            Self::IdentityToken(_) => None,
        }
    }
}

impl fmt::Debug for Credential {
    /// Shows everything but the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => write!(f, "Basic {{ user: {user:?}, password: … }}"),
            Self::IdentityToken(_) => write!(f, "IdentityToken(…)"),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// Finds the credential for a repository in the first of these files that has one.
///
/// Files that do not exist are passed over. May run a credential helper, so it may block.
pub(crate) fn find(
    files: &[PathBuf],
    host: &str,
    repository: &str,
) -> Result<Option<Credential>, AuthError> {
    for path in files {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(AuthError::Read {
                    path: path.clone(),
                    source,
                });
            }
        };
        if let Some(credential) = find_in(&text, path, host, repository)? {
            return Ok(Some(credential));
        }
    }
    Ok(None)
}

fn find_in(
    text: &[u8],
    path: &Path,
    host: &str,
    repository: &str,
) -> Result<Option<Credential>, AuthError> {
    let damaged = |problem: String| AuthError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let file: AuthFile =
        serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
    for key in keys(host, repository) {
        if let Some(helper) = file.helpers.get(&key) {
            return ask_helper(helper, &key);
        }
        let entry = file
            .auths
            .iter()
            .find(|(written, _)| normalized(written) == key)
            .map(|(_, entry)| entry);
        match entry {
            Some(Entry {
                identitytoken: Some(token),
                ..
            }) if !token.is_empty() => return Ok(Some(Credential::IdentityToken(token.clone()))),
            Some(Entry {
                auth: Some(auth), ..
            }) if !auth.is_empty() => {
                let credential = decode(auth)
                    .ok_or_else(|| damaged(format!("the entry for {key} is no user:password")))?;
                return Ok(Some(credential));
            }
            _ => {}
        }
    }
    match &file.store {
        Some(helper) => ask_helper(helper, host),
        None => Ok(None),
    }
}

/// Returns the keys that may stand for a repository, the most specific first.
fn keys(host: &str, repository: &str) -> impl Iterator<Item = String> {
    let whole = format!("{host}/{repository}");
    let ends: Vec<usize> = std::iter::once(whole.len())
        .chain(whole.rmatch_indices('/').map(|(at, _)| at))
        .collect();
    // Docker Hub has two more names in these files.
    let aliases: &[&str] = match host {
        "docker.io" => &["index.docker.io", "registry-1.docker.io"],
        _ => &[],
    };
    ends.into_iter()
        .map(move |end| whole[..end].to_owned())
        .chain(aliases.iter().map(|alias| (*alias).to_owned()))
}

/// Brings a key to the form `host[:port][/path]`: docker writes whole addresses.
fn normalized(key: &str) -> &str {
    let stripped = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    match stripped {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key.trim_end_matches('/'),
    }
}

fn decode(auth: &str) -> Option<Credential> {
    let text = String::from_utf8(BASE64.decode(auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credential::Basic {
        user: user.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    })
}

/// Asks `docker-credential-<helper>`, as docker and podman do.
fn ask_helper(helper: &str, key: &str) -> Result<Option<Credential>, AuthError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username")]
        user: String,
        #[serde(rename = "Secret")]
        secret: String,
    }
    let failed = |problem: String| AuthError::Helper {
        helper: format!("docker-credential-{helper}"),
        problem,
    };
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !helper.chars().all(is_word) {
        return Err(failed("its name is no program's name".into()));
    }
    let run = || -> io::Result<std::process::Output> {
        let mut child = Command::new(format!("docker-credential-{helper}"))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(key.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // This sentence is the helpers' protocol for "I have none".
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(said));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("its answer is not what helpers answer".into()))?;
    Ok(Some(match answer.user.as_str() {
        "<token>" => Credential::IdentityToken(answer.secret),
        _ => Credential::Basic {
            user: answer.user,
            password: answer.secret,
        },
    }))
}

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Parses the header's value; of several challenges, the first that is understood counts, and
    /// `Bearer` before `Basic`.
    pub(crate) fn parse(value: &str) -> Option<Self> {
        let mut found = None;
        for (scheme, parameters) in challenges(value) {
            let get = |wanted: &str| {
                parameters
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                    .map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = get("realm")
            {
                return Some(Self::Bearer {
                    realm,
                    service: get("service"),
                    scope: get("scope"),
                });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                found = Some(Self::Basic);
            }
        }
        found
    }
}

type Parameters = Vec<(String, String)>;

/// Splits `Scheme name="value", name=value, Other …` into schemes with their parameters.
fn challenges(value: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found; // the end, or what is no challenge
        }
        let Some(after) = after.trim_start().strip_prefix('=') else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let after = after.trim_start();
        let (value, after) = if let Some(quoted) = after.strip_prefix('"') {
            quoted_value(quoted)
        } else {
            let end = after.find([' ', '\t', ',']).unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_owned(), value));
        }
        rest = after;
    }
}

/// Reads up to the closing quote, escapes undone; returns the value and what follows.
fn quoted_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

/// Why a credential or a token cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file cannot be read.
    #[error("cannot read the credentials in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("the credentials in {} are damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A credential helper does not help.
    #[error("the credential helper {helper} failed: {problem}")]
    Helper {
        /// The helper's program.
        helper: String,
        /// What it said.
        problem: String,
    },
    /// The registry asks for something that is not spoken here.
    #[error("{host} asks for credentials in a way that is not supported")]
    Challenge {
        /// The registry.
        host: String,
    },
    /// The place that gives tokens is not one to send a password to.
    #[error("{host} sends us to {realm} for a token, which is not a secure address")]
    Realm {
        /// The registry.
        host: String,
        /// The address.
        realm: String,
    },
    /// The place that gives tokens refused.
    #[error("{realm} gave no token (status {status})")]
    Token {
        /// The address.
        realm: String,
        /// The status of its answer.
        status: u16,
    },
    /// The place that gives tokens answered something else.
    #[error("{realm} answered with something that is no token")]
    TokenDamaged {
        /// The address.
        realm: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Credential {
        Credential::Basic {
            user: user.into(),
            password: password.into(),
        }
    }

    fn auth(text: &str) -> String {
        BASE64.encode(text)
    }

    #[test]
    fn the_longest_key_that_fits_wins() {
        let text = format!(
            r#"{{"auths": {{
                "quay.io": {{"auth": "{}"}},
                "quay.io/team": {{"auth": "{}"}},
                "quay.io/team/os": {{"auth": "{}"}},
                "https://index.docker.io/v1/": {{"auth": "{}"}},
                "token.example": {{"auth": "{}", "identitytoken": "t"}},
                "empty.example": {{}}
            }}}}"#,
            auth("host:1"),
            auth("team:2"),
            auth("os:3:4"),
            auth("hub:5"),
            auth("x:y"),
        );
        let find = |host: &str, repository: &str| {
            find_in(text.as_bytes(), Path::new("auth.json"), host, repository).unwrap()
        };
        assert_eq!(find("quay.io", "team/os"), Some(basic("os", "3:4")));
        assert_eq!(find("quay.io", "team/other"), Some(basic("team", "2")));
        assert_eq!(find("quay.io", "teams/os"), Some(basic("host", "1")));
        assert_eq!(find("docker.io", "library/debian"), Some(basic("hub", "5")));
        assert_eq!(
            find("token.example", "a"),
            Some(Credential::IdentityToken("t".into()))
        );
        assert_eq!(find("empty.example", "a"), None);
        assert_eq!(find("example.org", "quay.io"), None);
    }

    #[test]
    fn a_damaged_file_is_named_and_a_missing_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (missing, damaged) = (dir.path().join("none"), dir.path().join("auth.json"));
        assert_eq!(
            find(std::slice::from_ref(&missing), "a.b", "c").unwrap(),
            None
        );
        for text in [
            "",
            "3",
            "{\"auths\": 1}",
            "{\"auths\":{\"a.b\":{\"auth\":\"!\"}}}",
        ] {
            std::fs::write(&damaged, text).unwrap();
            let error = find(&[missing.clone(), damaged.clone()], "a.b", "c").unwrap_err();
            assert!(error.to_string().contains("auth.json"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let shown = format!("{:?}", basic("user", "hunter2"));
        assert!(shown.contains("user") && !shown.contains("hunter2"));
    }

    #[test]
    fn a_helper_that_is_missing_is_named() {
        let text = br#"{"credHelpers": {"a.b": "no-such-helper"}}"#;
        let error = find_in(text, Path::new("x"), "a.b", "c").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("docker-credential-no-such-helper")
        );
        let text = br#"{"credsStore": "../../evil"}"#;
        assert!(find_in(text, Path::new("x"), "a.b", "c").is_err());
    }

    #[test]
    fn challenges_are_read_as_http_has_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        };
        for (text, wanted) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a/t\",service=\"a\",scope=\"repository:x/y:pull,push\"",
                Some(bearer(
                    "https://a/t",
                    Some("a"),
                    Some("repository:x/y:pull,push"),
                )),
            ),
            (
                "Basic realm=\"x\", Bearer realm=https://a/t , service=a",
                Some(bearer("https://a/t", Some("a"), None)),
            ),
            (
                r#"Bearer realm="a\"b\\c""#,
                Some(bearer(r#"a"b\c"#, None, None)),
            ),
            ("Bearer service=\"x\"", None),
            ("Negotiate abc==", None),
            ("", None),
            ("=,=\"", None),
        ] {
            assert_eq!(Challenge::parse(text), wanted, "{text}");
        }
    }

    #[test]
    fn no_header_makes_the_parser_stop_or_panic() {
        for seed in 0..2000_u32 {
            let text: String = (0..seed % 23)
                .map(|at| {
                    let pick = seed.wrapping_mul(2_654_435_761).rotate_left(at * 5) % 9;
                    ['"', '\\', ',', '=', ' ', 'B', 'é', 'r', '\t'][pick as usize]
                })
                .collect();
            let _ = Challenge::parse(&text);
        }
    }
}
