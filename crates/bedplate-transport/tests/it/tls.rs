//! TLS: which certificates are taken, and that no secret leaves an encrypted connection for a plain one.
//!
//! `interop` does the same with docker-registry, where that is installed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bedplate_model::oci::Compression;
use bedplate_store::Store;
use bedplate_transport::{
    AuthError, Client, ClientOptions, ConnectError, HttpError, PullError, PullOptions, Pulled,
    PushOptions, RegistryError, TlsVerify,
};

use crate::fake::{Asked, Fake, Image, Reply, tar};
use crate::transfer::{client, name, quiet};

/// Returns the directory with the tests' certificates.
pub(crate) fn tls() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls")
}

/// Makes a directory like /etc/containers/certs.d that trusts the tests' CA for one registry.
pub(crate) fn trust(dir: &Path, registry: SocketAddr) -> PathBuf {
    let certs = dir.join("certs.d");
    let one = certs.join(registry.to_string());
    std::fs::create_dir_all(&one).unwrap();
    std::fs::copy(tls().join("ca.crt"), one.join("ca.crt")).unwrap();
    certs
}

fn image() -> Image {
    Image::new(&[(Compression::Gzip, tar(&[("usr/tool", b"some bytes")]))])
}

/// A server that counts who comes.
fn counting(
    answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> (
    impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    Arc<AtomicUsize>,
) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let counted = move |asked: &Asked| {
        counter.fetch_add(1, Ordering::Relaxed);
        answer(asked)
    };
    (counted, count)
}

fn pull(options: ClientOptions, registry: SocketAddr) -> Result<Pulled, PullError> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let client = Client::new(options).unwrap();
    let there = name(registry, "team/os:v1");
    client.pull(&store, &there, &PullOptions::new(0), &quiet)
}

/// Options with `user:pass` for a registry, whose certificate is trusted.
fn with_password(dir: &Path, registry: SocketAddr) -> ClientOptions {
    let file = dir.join("auth.json");
    let text = format!(r#"{{"auths":{{"{registry}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#);
    std::fs::write(&file, text).unwrap();
    ClientOptions {
        auth_files: vec![file],
        certificate_dirs: vec![trust(dir, registry)],
        ..ClientOptions::default()
    }
}

#[test]
fn a_private_ca_vouches_for_its_registry_alone() {
    let image = image();
    let other = image.clone();
    let (known, unknown) = (
        Fake::start_tls(move |asked| image.answer(asked)),
        Fake::start_tls(move |asked| other.answer(asked)),
    );
    let dir = tempfile::tempdir().unwrap();
    let options = ClientOptions {
        certificate_dirs: vec![trust(dir.path(), known.address())],
        tls_verify: TlsVerify::Strict,
        ..ClientOptions::default()
    };
    pull(options.clone(), known.address()).unwrap();
    assert_untrusted(&pull(options, unknown.address()));
}

fn assert_untrusted(outcome: &Result<Pulled, PullError>) {
    let untrusted = |error: &HttpError| {
        matches!(
            error,
            HttpError::Connect {
                source: ConnectError::Tls(_),
                ..
            }
        )
    };
    assert!(
        matches!(outcome, Err(PullError::Registry(RegistryError::Http(error))) if untrusted(error)),
        "{outcome:?}"
    );
}

#[test]
fn an_unknown_certificate_is_taken_only_by_who_said_so() {
    let image = image();
    let (answer, asked) = counting(move |asked| image.answer(asked));
    let registry = Fake::start_tls(answer);
    for tls_verify in [TlsVerify::On, TlsVerify::Strict] {
        let options = ClientOptions {
            tls_verify,
            ..ClientOptions::default()
        };
        assert_untrusted(&pull(options, registry.address()));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0, "not without TLS either");
    let options = ClientOptions {
        tls_verify: TlsVerify::Off,
        ..ClientOptions::default()
    };
    pull(options, registry.address()).unwrap();
}

#[test]
fn a_damaged_ca_file_is_named() {
    let registry = Fake::start_tls(|_| Reply::status(404));
    let dir = tempfile::tempdir().unwrap();
    let certs = trust(dir.path(), registry.address());
    let file = certs.join(registry.address().to_string()).join("ca.crt");
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\n!\n").unwrap();
    let options = ClientOptions {
        certificate_dirs: vec![certs],
        tls_verify: TlsVerify::Strict,
        ..ClientOptions::default()
    };
    let error = pull(options, registry.address()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("ca.crt"), "{error}: {source}");
}

#[test]
fn a_password_for_an_encrypted_registry_is_never_sent_to_a_plain_realm() {
    let (answer, asked) = counting(|_| Reply::ok(br#"{"token":"x"}"#));
    let plain = Fake::start(answer);
    let realm = format!("http://{}/token", plain.address());
    let registry = Fake::start_tls(move |asked| {
        let challenge = format!(r#"Bearer realm="{realm}""#);
        match asked.path.as_str() {
            "/v2/" => Reply::ok(b""),
            _ => Reply::with(401, &[("www-authenticate", &challenge)], b""),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    for tls_verify in [TlsVerify::On, TlsVerify::Strict, TlsVerify::Off] {
        let options = ClientOptions {
            tls_verify,
            ..with_password(dir.path(), registry.address())
        };
        let outcome = pull(options, registry.address());
        let refused = |error: &AuthError| matches!(error, AuthError::Realm { .. });
        assert!(
            matches!(&outcome, Err(PullError::Registry(RegistryError::Auth(error))) if refused(error)),
            "{outcome:?}"
        );
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[test]
fn a_realm_that_redirects_to_a_plain_address_gets_no_password_there() {
    let (answer, asked) = counting(|asked| {
        assert_eq!(asked.header("authorization"), None);
        Reply::ok(br#"{"token":"x"}"#)
    });
    let plain = Fake::start(answer);
    let elsewhere = format!("http://{}/token", plain.address());
    let registry = Fake::start_tls(move |asked| {
        let host = asked.header("host").unwrap();
        let challenge = format!(r#"Bearer realm="https://{host}/token""#);
        if asked.path == "/v2/" {
            return Reply::ok(b"");
        }
        if asked.path.starts_with("/token") {
            assert_eq!(asked.header("authorization"), Some("Basic dXNlcjpwYXNz"));
            return Reply::with(307, &[("location", &elsewhere)], b"");
        }
        Reply::with(401, &[("www-authenticate", &challenge)], b"")
    });
    let dir = tempfile::tempdir().unwrap();
    let options = with_password(dir.path(), registry.address());
    let outcome = pull(options, registry.address());
    let downgrade = |error: &HttpError| matches!(error, HttpError::Downgrade { .. });
    assert!(
        matches!(&outcome, Err(PullError::Registry(RegistryError::Http(error))) if downgrade(error)),
        "{outcome:?}"
    );
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[test]
fn an_upload_that_is_sent_to_another_host_goes_there_without_our_credentials() {
    let (answer, uploads) = counting(|asked| {
        assert_eq!(asked.header("authorization"), None);
        let status = if asked.method == "PUT" { 201 } else { 202 };
        Reply::with(status, &[("location", "/upload")], b"")
    });
    let elsewhere = Fake::start_tls(answer);
    let location = format!("https://{}/upload", elsewhere.address());
    let registry = Fake::start_tls(move |asked| {
        if asked.path == "/v2/" {
            return Reply::ok(b"");
        }
        if asked.header("authorization") != Some("Basic dXNlcjpwYXNz") {
            return Reply::with(401, &[("www-authenticate", "Basic realm=\"x\"")], b"");
        }
        match asked.method.as_str() {
            "HEAD" => Reply::status(404),
            "POST" => Reply::with(202, &[("location", &location)], b""),
            _ => Reply::status(201),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let image = image();
    let theirs = Fake::start(move |asked| image.answer(asked));
    let source = name(theirs.address(), "os:v1");
    client()
        .pull(&store, &source, &PullOptions::new(0), &quiet)
        .unwrap();
    trust(dir.path(), elsewhere.address());
    let options = with_password(dir.path(), registry.address());
    let there = name(registry.address(), "team/os:v1");
    Client::new(options)
        .unwrap()
        .push(&store, &source, &there, &PushOptions::default(), &quiet)
        .unwrap();
    // A layer in two requests, and the config in one.
    assert_eq!(uploads.load(Ordering::Relaxed), 3);
}
