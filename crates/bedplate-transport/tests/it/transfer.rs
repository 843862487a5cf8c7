//! Push and pull between stores through the embedded registry.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use bedplate_model::ImageName;
use bedplate_model::oci::{Compression, Manifest};
use bedplate_store::Store;
use bedplate_transport::serve::{Limits, Running};
use bedplate_transport::{
    Client, ClientOptions, Event, PullOptions, PushError, PushOptions, Recipe,
};

use crate::fake::{Fake, Image, tar};

pub(crate) fn client() -> Client {
    Client::new(ClientOptions::default()).unwrap()
}

pub(crate) fn serve(dir: &Path) -> Running {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    Running::start(address, dir, Limits::default()).unwrap()
}

pub(crate) fn name(registry: SocketAddr, rest: &str) -> ImageName {
    format!("{registry}/{rest}").parse().unwrap()
}

pub(crate) fn quiet(_: Event) {}

/// Pulls an image of a few compressions into a store, under the returned name.
fn pulled(store: &Store, compressions: &[Compression]) -> ImageName {
    let tars: Vec<_> = compressions
        .iter()
        .enumerate()
        .map(|(at, compression)| {
            let file = format!("usr/file-{at}");
            (*compression, tar(&[(&file, &vec![at as u8; 200_000])]))
        })
        .collect();
    let image = Image::new(&tars);
    let fake = Fake::start(move |asked| image.answer(asked));
    let name = name(fake.address(), "theirs/os:v1");
    client()
        .pull(store, &name, &PullOptions::new(7), &quiet)
        .unwrap();
    name
}

#[test]
fn plain_layers_of_others_are_pushed_as_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let source = pulled(&store, &[Compression::None, Compression::None]);
    let registry = serve(&dir.path().join("registry"));
    let there = name(registry.local_addr(), "a/b:v1");
    let pushed = client()
        .push(&store, &source, &there, &PushOptions::default(), &quiet)
        .unwrap();
    assert!(!pushed.remade);
    assert_eq!(
        Some(pushed.manifest),
        store.resolve(&source).unwrap().unwrap().manifest
    );

    let other = Store::create(&dir.path().join("other")).unwrap();
    let pulled = client()
        .pull(&other, &there, &PullOptions::new(8), &quiet)
        .unwrap();
    assert_eq!(pulled.root, store.resolve(&source).unwrap().unwrap().root);
    assert_eq!(pulled.manifest, pushed.manifest);
}

#[test]
fn compressed_layers_of_others_get_a_manifest_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let source = pulled(
        &store,
        &[Compression::Gzip, Compression::None, Compression::Zstd],
    );
    let registry = serve(&dir.path().join("registry"));
    let there = name(registry.local_addr(), "a/b:v1");
    let options = PushOptions::default();
    let pushed = client()
        .push(&store, &source, &there, &options, &quiet)
        .unwrap();
    assert!(pushed.remade);

    let other = Store::create(&dir.path().join("other")).unwrap();
    let events = Mutex::new(Vec::new());
    let observer = |event: Event| events.lock().unwrap().push(event);
    let pulled = client()
        .pull(&other, &there, &PullOptions::new(8), &observer)
        .unwrap();
    assert_eq!(pulled.root, store.resolve(&source).unwrap().unwrap().root);
    assert_eq!(pulled.manifest, pushed.manifest);
    let manifest: Manifest =
        serde_json::from_slice(&other.blob(&pulled.manifest).unwrap()).unwrap();
    let recipes: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| {
            layer
                .annotations
                .get("dev.bedplate.compression")
                .map(String::as_str)
        })
        .collect();
    assert_eq!(recipes, [Some("zstd-3"), None, Some("zstd-3")]);
    let events = events.into_inner().unwrap();
    let told: u64 = events
        .iter()
        .map(|event| match event {
            Event::Bytes { count, .. } => *count,
            _ => 0,
        })
        .sum();
    assert_eq!(told, pulled.bytes_fetched, "every byte was told of");

    // What was remade once can be made again: the second push sends nothing.
    let elsewhere = name(registry.local_addr(), "a/c:v1");
    let again = client()
        .push(&other, &there, &elsewhere, &options, &quiet)
        .unwrap();
    assert_eq!(
        (again.remade, again.manifest, again.bytes_sent),
        (false, pushed.manifest, 0)
    );
}

#[test]
fn a_second_pull_fetches_no_layer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let registry = serve(&dir.path().join("registry"));
    let source = pulled(&store, &[Compression::None]);
    let first = name(registry.local_addr(), "a:v1");
    let second = name(registry.local_addr(), "b:v1");
    for there in [&first, &second] {
        client()
            .push(&store, &source, there, &PushOptions::default(), &quiet)
            .unwrap();
    }
    let other = Store::create(&dir.path().join("other")).unwrap();
    let one = client()
        .pull(&other, &first, &PullOptions::new(1), &quiet)
        .unwrap();
    let two = client()
        .pull(&other, &second, &PullOptions::new(2), &quiet)
        .unwrap();
    assert_eq!((one.root, one.layers_reused), (two.root, 0));
    assert_eq!((two.layers_reused, two.bytes_fetched), (1, 0));
    let target = other.resolve(&second).unwrap().unwrap();
    assert_eq!((target.manifest, target.created), (Some(two.manifest), 2));
}

#[test]
fn an_image_that_is_not_there_or_has_another_digest_is_not_pushed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let source = pulled(&store, &[Compression::None]);
    let registry = serve(&dir.path().join("registry"));
    let there = name(registry.local_addr(), "a/b:v1");
    let missing = "localhost/none".parse().unwrap();
    let outcome = client().push(&store, &missing, &there, &PushOptions::default(), &quiet);
    assert!(matches!(outcome, Err(PushError::Missing(_))));
    let fixed = there.with_digest(bedplate_model::Sha256([0; 32]));
    let outcome = client().push(&store, &source, &fixed, &PushOptions::default(), &quiet);
    assert!(matches!(outcome, Err(PushError::OtherDigest { .. })));
}

#[test]
fn every_recipe_names_its_compression() {
    for (recipe, compression) in [
        (Recipe::None, Compression::None),
        (Recipe::GZIP, Compression::Gzip),
        (Recipe::ZSTD, Compression::Zstd),
    ] {
        assert_eq!(recipe.compression(), compression);
    }
}
