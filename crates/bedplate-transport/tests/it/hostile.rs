//! Pulls from registries that fail, lie or attack: a typed error in bounded time and memory, or success
//! after a retry, and a store that holds nothing of what failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bedplate_model::oci::{ANNOTATION_CONFIG, ANNOTATION_ROOT, Compression, OCI_INDEX};
use bedplate_store::Store;
use bedplate_transport::{
    AuthError, Client, ClientOptions, Event, HttpError, LayersError, PullError, PullOptions,
    Pulled, RegistryError,
};

use crate::fake::{Asked, Fake, Image, Reply, digest, gzip, tar};

fn small() -> Image {
    Image::new(&[(Compression::Gzip, tar(&[("usr/tool", b"some bytes")]))])
}

fn pull_with(
    options: &PullOptions,
    answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> Result<Pulled, PullError> {
    let fake = Fake::start(answer);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let client = Client::new(ClientOptions::default()).unwrap();
    let name = format!("{}/os:v1", fake.address()).parse().unwrap();
    let outcome = client.pull(&store, &name, options, &|_: Event| {});
    let resolved = store.resolve(&name).unwrap();
    assert_eq!(
        resolved.is_some(),
        outcome.is_ok(),
        "a ref exactly after success"
    );
    outcome
}

fn pull(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Result<Pulled, PullError> {
    pull_with(&PullOptions::new(0), answer)
}

/// Answers as the image does, except where the test says something else.
fn except(
    image: Image,
    other: impl Fn(&Asked, &Image) -> Option<Reply> + Send + Sync + 'static,
) -> impl Fn(&Asked) -> Reply + Send + Sync + 'static {
    move |asked| other(asked, &image).unwrap_or_else(|| image.answer(asked))
}

fn is_layer(asked: &Asked, image: &Image) -> bool {
    image
        .layers
        .iter()
        .any(|layer| asked.path.ends_with(layer.as_str()))
}

#[test]
fn an_honest_registry_is_pulled_from() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let image = Image::new(&[
            (compression, tar(&[("usr/one", b"1")])),
            (compression, tar(&[("usr/two", &[7; 3_000_000])])),
        ]);
        let manifest = digest(&image.manifest);
        let pulled = pull(move |asked| image.answer(asked)).unwrap();
        assert_eq!((pulled.manifest, pulled.layers), (manifest, 2));
    }
}

#[test]
fn a_layer_that_appears_again_is_fetched_and_counted_once() {
    let one = (Compression::Gzip, tar(&[("usr/one", b"1")]));
    let two = (Compression::Gzip, tar(&[("usr/one", b"2")]));
    let image = Image::new(&[one.clone(), two, one.clone(), one]);
    let fetched = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&fetched);
    let pulled = pull(except(image, move |asked, image| {
        counter.fetch_add(usize::from(is_layer(asked, image)), Ordering::Relaxed);
        None
    }))
    .unwrap();
    assert_eq!(fetched.load(Ordering::Relaxed), 2);
    assert_eq!((pulled.layers, pulled.layers_reused), (2, 0));
}

#[test]
fn an_image_that_announces_too_much_is_refused_before_a_layer_is_fetched() {
    let no_layer = |asked: &Asked, image: &Image| -> Option<Reply> {
        assert!(!is_layer(asked, image));
        None
    };
    let layer = (Compression::Gzip, tar(&[("usr/one", b"1")]));
    let many = Image::new(&vec![layer; 1025]);
    let outcome = pull(except(many, no_layer));
    assert!(
        matches!(outcome, Err(PullError::Layers(LayersError::TooMany(1025)))),
        "{outcome:?}"
    );
    let options = PullOptions {
        fetched_max: 10,
        ..PullOptions::new(0)
    };
    let error = pull_with(&options, except(small(), no_layer)).unwrap_err();
    assert!(
        matches!(
            error,
            PullError::Layers(LayersError::TooLarge { limit: 10, .. })
        ),
        "{error}"
    );
}

#[test]
fn a_manifest_with_another_digest_than_announced_is_refused() {
    let outcome = pull(except(small(), |asked, image| {
        let other = digest(b"other").to_string();
        let headers = [("docker-content-digest", other.as_str())];
        let hit = asked.path.contains("/manifests/");
        hit.then(|| Reply::with(200, &headers, &image.manifest))
    }));
    assert!(matches!(
        outcome,
        Err(PullError::Registry(RegistryError::WrongDigest { .. }))
    ));
}

#[test]
fn a_document_that_is_no_manifest_is_refused() {
    let index_of_nothing =
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
    for text in [
        "",
        "[]",
        "{\"schemaVersion\":1}",
        "{\"a\":",
        "\u{0}",
        &index_of_nothing,
    ] {
        let text = text.to_owned();
        let outcome = pull(except(small(), move |asked, _| {
            asked
                .path
                .contains("/manifests/")
                .then(|| Reply::ok(text.as_bytes()))
        }));
        assert!(
            matches!(
                outcome,
                Err(PullError::Document(_) | PullError::Platform { .. })
            ),
            "{outcome:?}"
        );
    }
}

#[test]
fn an_index_that_leads_to_an_index_is_refused() {
    let manifest = |digest: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_INDEX}","digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"{}"}}}}]}}"#,
            bedplate_transport::architecture_here()
        )
    };
    let inner = manifest(&digest(b"x").to_string());
    let outer = manifest(&digest(inner.as_bytes()).to_string());
    let outcome = pull(except(small(), move |asked, _| {
        let by_tag = asked.path.ends_with("/manifests/v1");
        let inside = asked.path.contains("/manifests/");
        inside.then(|| Reply::ok(if by_tag { &outer } else { &inner }.as_bytes()))
    }));
    assert!(
        matches!(outcome, Err(PullError::NestedIndex(_))),
        "{outcome:?}"
    );
}

#[test]
fn an_endless_manifest_is_cut_off() {
    let outcome = pull(except(small(), |asked, _| {
        let endless = || Reply::Endless("HTTP/1.1 200 x\r\n".into());
        asked.path.contains("/manifests/").then(endless)
    }));
    assert!(matches!(
        outcome,
        Err(PullError::Registry(RegistryError::Body { .. }))
    ));
}

#[test]
fn redirects_in_a_circle_are_left() {
    let outcome = pull(except(small(), |asked, _| {
        asked
            .path
            .contains("/manifests/")
            .then(|| Reply::with(307, &[("location", &asked.path)], b""))
    }));
    let redirects = |error: &HttpError| matches!(error, HttpError::Redirects { .. });
    assert!(
        matches!(&outcome, Err(PullError::Registry(RegistryError::Http(error))) if redirects(error)),
        "{outcome:?}"
    );
}

#[test]
fn a_redirected_blob_is_fetched_without_our_credentials() {
    let image = small();
    let elsewhere = image.clone();
    let cdn = Fake::start(move |asked| {
        assert_eq!(asked.header("authorization"), None);
        elsewhere.answer(asked)
    });
    let cdn_address = cdn.address();
    let dir = tempfile::tempdir().unwrap();
    let outcome = with_credentials(
        dir.path(),
        except(image, move |asked, image| {
            if asked.path != "/v2/" && asked.header("authorization").is_none() {
                return Some(Reply::with(
                    401,
                    &[("www-authenticate", "Basic realm=\"x\"")],
                    b"",
                ));
            }
            let location = format!("http://{cdn_address}{}", asked.path);
            is_layer(asked, image).then(|| Reply::with(307, &[("location", &location)], b""))
        }),
    );
    outcome.unwrap();
}

/// Pulls with a user and a password for any registry on loopback.
fn with_credentials(
    dir: &std::path::Path,
    answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> Result<Pulled, PullError> {
    let fake = Fake::start(answer);
    let auth_file = dir.join("auth.json");
    let text = format!(
        r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#,
        fake.address()
    );
    std::fs::write(&auth_file, text).unwrap();
    let store = Store::create(&dir.join("store")).unwrap();
    let client = Client::new(ClientOptions {
        auth_files: vec![auth_file],
        ..ClientOptions::default()
    })
    .unwrap();
    let name = format!("{}/os:v1", fake.address()).parse().unwrap();
    client.pull(&store, &name, &PullOptions::new(0), &|_: Event| {})
}

#[test]
fn a_token_is_fetched_with_the_password_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = with_credentials(
        dir.path(),
        except(small(), |asked, _| {
            if asked.path == "/v2/" {
                return None;
            }
            if let Some(query) = asked.path.strip_prefix("/token?") {
                assert_eq!(asked.header("authorization"), Some("Basic dXNlcjpwYXNz"));
                assert_eq!(query, "scope=repository%3Aos%3Apull&service=here");
                return Some(Reply::ok(br#"{"access_token":"secret"}"#));
            }
            if asked.header("authorization") == Some("Bearer secret") {
                return None;
            }
            let host = asked.header("host").unwrap();
            let challenge = format!(r#"Bearer realm="http://{host}/token",service="here""#);
            Some(Reply::with(401, &[("www-authenticate", &challenge)], b""))
        }),
    );
    outcome.unwrap();
}

#[test]
fn a_token_endpoint_that_talks_nonsense_is_named() {
    for reply in [
        "",
        "{}",
        "{\"token\":3}",
        "{\"token\":\"a\\nb\"}",
        "not json",
    ] {
        let outcome = pull(except(small(), move |asked, _| {
            if asked.path.starts_with("/token") {
                return Some(Reply::ok(reply.as_bytes()));
            }
            let host = asked.header("host").unwrap();
            let challenge = format!(r#"Bearer realm="http://{host}/token""#);
            let ask = || Reply::with(401, &[("www-authenticate", &challenge)], b"");
            (asked.path != "/v2/").then(ask)
        }));
        assert!(
            matches!(
                outcome,
                Err(PullError::Registry(
                    RegistryError::Auth(AuthError::TokenDamaged { .. })
                        | RegistryError::Nonsense { .. }
                ))
            ),
            "{reply}: {outcome:?}"
        );
    }
}

#[test]
fn a_registry_that_always_asks_for_credentials_is_left() {
    let asked_times = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked_times);
    let outcome = pull(except(small(), move |asked, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        if asked.path.starts_with("/token") {
            return Some(Reply::ok(br#"{"token":"x"}"#));
        }
        let host = asked.header("host").unwrap();
        let challenge = format!(r#"Bearer realm="http://{host}/token""#);
        let ask = || Reply::with(401, &[("www-authenticate", &challenge)], b"");
        (asked.path != "/v2/").then(ask)
    }));
    assert!(matches!(
        outcome,
        Err(PullError::Registry(RegistryError::Denied { .. }))
    ));
    assert!(asked_times.load(Ordering::Relaxed) < 8);
}

#[test]
fn a_transient_failure_is_tried_again() {
    let failures = AtomicUsize::new(0);
    let outcome = pull(except(small(), move |asked, _| {
        let first =
            asked.path != "/v2/" && failures.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        first.then(|| Reply::with(503, &[("retry-after", "0")], b""))
    }));
    outcome.unwrap();
}

#[test]
fn a_missing_image_is_not_found_at_once() {
    let outcome = pull(|asked| Reply::status(if asked.path == "/v2/" { 200 } else { 404 }));
    let error = outcome.unwrap_err();
    assert!(!error.is_transient());
    assert!(
        matches!(error, PullError::Registry(RegistryError::NotFound { .. })),
        "{error}"
    );
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let image = Image::new(&[(Compression::None, tar(&[("usr/big", &[3; 900_000])]))]);
    let resumed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&resumed);
    let outcome = pull(except(image, move |asked, image| {
        if !is_layer(asked, image) {
            return None;
        }
        let blob = &image.blobs[asked.path.rsplit('/').next().unwrap()];
        let start: usize = match asked.header("range") {
            Some(range) => {
                counter.fetch_add(1, Ordering::Relaxed);
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()?
            }
            None => 0,
        };
        let end = blob.len().min(start + 400_000);
        let status = if start == 0 { 200 } else { 206 };
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{}\r\n",
            blob.len() - start,
            blob.len() - 1,
            blob.len(),
        );
        Some(Reply::Raw(head, blob[start..end].to_vec()))
    }));
    outcome.unwrap();
    assert_eq!(resumed.load(Ordering::Relaxed), 2);
}

#[test]
fn a_server_without_ranges_begins_again_and_the_known_part_is_passed_over() {
    let image = Image::new(&[(Compression::None, tar(&[("usr/big", &[3; 900_000])]))]);
    let times = AtomicUsize::new(0);
    let outcome = pull(except(image, move |asked, image| {
        let first = is_layer(asked, image) && times.fetch_add(1, Ordering::Relaxed) == 0;
        let blob = &image.blobs.get(asked.path.rsplit('/').next()?)?;
        let head = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n", blob.len());
        first.then(|| Reply::Raw(head, blob[..500_000].to_vec()))
    }));
    outcome.unwrap();
}

#[test]
fn a_blob_that_is_always_short_is_given_up() {
    let outcome = pull(except(small(), |asked, image| {
        let blob = image.blobs.get(asked.path.rsplit('/').next()?)?;
        let short = || Reply::ok(&blob[..blob.len() / 2]);
        is_layer(asked, image).then(short)
    }));
    assert!(
        matches!(
            outcome,
            Err(PullError::Registry(RegistryError::WrongLength { .. }))
        ),
        "{outcome:?}"
    );
}

#[test]
fn a_blob_that_does_not_end_is_cut_off_at_its_length() {
    let outcome = pull(except(small(), |asked, image| {
        is_layer(asked, image).then(|| Reply::Endless("HTTP/1.1 200 x\r\n".into()))
    }));
    assert!(
        matches!(
            outcome,
            Err(PullError::Registry(RegistryError::WrongLength { .. }))
        ),
        "{outcome:?}"
    );
}

#[test]
fn a_blob_with_other_bytes_is_refused() {
    let outcome = pull(except(small(), |asked, image| {
        let mut blob = image.blobs.get(asked.path.rsplit('/').next()?)?.clone();
        *blob.last_mut()? ^= 1;
        is_layer(asked, image).then(|| Reply::ok(&blob))
    }));
    assert!(
        matches!(
            outcome,
            Err(PullError::Registry(RegistryError::WrongDigest { .. }))
        ),
        "{outcome:?}"
    );
}

#[test]
fn a_layer_that_unpacks_to_something_else_is_refused() {
    let honest = small();
    let mut lying = Image::new(&[(Compression::Gzip, tar(&[("usr/tool", b"other")]))]);
    // The manifest of the one image with the config of the other.
    let text = String::from_utf8(lying.manifest.clone()).unwrap();
    let config = |image: &Image| {
        let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["config"]["digest"].as_str().unwrap().to_owned()
    };
    lying.manifest = text.replace(&config(&lying), &config(&honest)).into_bytes();
    lying.blobs.extend(honest.blobs);
    let outcome = pull(move |asked| lying.answer(asked));
    assert!(
        matches!(outcome, Err(PullError::WrongDiffId { .. })),
        "{outcome:?}"
    );
}

#[test]
fn a_layer_that_is_no_gzip_or_is_damaged_is_refused() {
    let tar = tar(&[("usr/tool", &[5; 100_000])]);
    let mut damaged = gzip(&tar);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    for blob in [
        b"nonsense".to_vec(),
        damaged,
        gzip(&tar)[..100].to_vec(),
        Vec::new(),
    ] {
        let mut image = Image::new(&[(Compression::Gzip, tar.clone())]);
        let text = String::from_utf8(image.manifest.clone()).unwrap();
        let old = image.blobs[&image.layers[0]].len();
        let text = text
            .replace(&image.layers[0], &digest(&blob).to_string())
            .replace(
                &format!("\"size\":{old}}}],"),
                &format!("\"size\":{}}}],", blob.len()),
            );
        image.manifest = text.into_bytes();
        image.blobs.insert(digest(&blob).to_string(), blob);
        let outcome = pull(move |asked| image.answer(asked));
        assert!(
            matches!(
                outcome,
                Err(PullError::Damaged { .. } | PullError::WrongDiffId { .. })
            ),
            "{outcome:?}"
        );
    }
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let bomb = vec![0; 300 << 20];
    for compression in [Compression::Gzip, Compression::Zstd] {
        let image = Image::new(&[(compression, bomb.clone())]);
        let options = PullOptions {
            unpacked_max: 10 << 20,
            ..PullOptions::new(0)
        };
        let outcome = pull_with(&options, move |asked| image.answer(asked));
        assert!(
            matches!(
                outcome,
                Err(PullError::TooMuch { .. } | PullError::Layer { .. })
            ),
            "{outcome:?}"
        );
    }
}

#[test]
fn an_announced_root_that_the_layers_do_not_give_is_refused() {
    let tars = [(Compression::Gzip, tar(&[("usr/tool", b"some bytes")]))];
    let announce = |root: &str| {
        let annotations =
            serde_json::json!({ANNOTATION_ROOT: root, ANNOTATION_CONFIG: "THE-CONFIG"});
        let annotations = annotations.to_string();
        let image = Image::with_annotations(&tars, &annotations);
        pull(move |asked| image.answer(asked))
    };
    let outcome = announce(&format!("exact-1/v1-sha256-12:{}", "0".repeat(64)));
    assert!(
        matches!(outcome, Err(PullError::WrongRoot { .. })),
        "{outcome:?}"
    );
    let outcome = announce("exact-9/x");
    assert!(
        matches!(outcome, Err(PullError::AnnouncedRoot(_))),
        "{outcome:?}"
    );
}

#[test]
fn a_local_name_is_never_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let client = Client::new(ClientOptions::default()).unwrap();
    let name = "os:v1".parse().unwrap();
    let outcome = client.pull(&store, &name, &PullOptions::new(0), &|_: Event| {});
    assert!(matches!(
        outcome,
        Err(PullError::Registry(RegistryError::Local(_)))
    ));
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let client = Client::new(ClientOptions::default()).unwrap();
    for (name, host) in [
        ("127.0.0.1:1/os", "127.0.0.1:1"),
        ("no-such-host.invalid/os", "no-such-host.invalid"),
    ] {
        let outcome = client.pull(
            &store,
            &name.parse().unwrap(),
            &PullOptions::new(0),
            &|_: Event| {},
        );
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains(host), "{error}");
        // A name may be unknown for good; a host that refuses may be starting.
        assert!(
            error.is_transient() || host.ends_with(".invalid"),
            "{error}"
        );
    }
}
