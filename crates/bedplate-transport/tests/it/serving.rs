//! The embedded registry, beyond what the specification says (`conformance`): restarts, damage, races.

use std::net::SocketAddr;

use bedplate_model::Sha256;
use bedplate_transport::serve::{Limits, Running};
use sha2::Digest as _;

use crate::raw::{Answer, request};

pub(crate) struct Registry {
    running: Running,
    dir: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = Running::start(loopback(), dir.path(), limits).unwrap();
        Self { running, dir }
    }

    fn restart(self) -> Self {
        let Self { running, dir } = self;
        running.stop();
        let running = Running::start(loopback(), dir.path(), Limits::default()).unwrap();
        Self { running, dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.local_addr()
    }

    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        request(self.running.local_addr(), method, path, headers, body)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub(crate) fn put_blob(&self, repository: &str, bytes: &[u8]) -> Sha256 {
        let digest = digest(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(self.ask("POST", &path, &[], bytes).status, 201);
        digest
    }

    /// Stores an image without layers, and returns its manifest's digest and bytes.
    pub(crate) fn put_image(&self, repository: &str, tag: &str, note: &str) -> (Sha256, Vec<u8>) {
        let config = self.put_blob(repository, b"{}");
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"a/b","digest":"{config}","size":2}},"layers":[],"annotations":{{"note":"{note}"}}}}"#
        );
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = self.ask(
            "PUT",
            &path,
            &[("content-type", MANIFEST)],
            manifest.as_bytes(),
        );
        assert_eq!(answer.status, 201, "{}", answer.text());
        let digest = digest(manifest.as_bytes());
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(&*digest.to_string())
        );
        (digest, manifest.into_bytes())
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) fn digest(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

pub(crate) fn code(answer: &Answer) -> String {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

#[test]
fn a_blob_comes_back_whole_in_part_and_as_a_head() {
    let registry = Registry::start();
    let bytes: Vec<u8> = (0..700_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let path = format!("/v2/a/b/blobs/{}", registry.put_blob("a/b", &bytes));

    let whole = registry.get(&path);
    assert_eq!((whole.status, whole.body == bytes), (200, true));
    let head = registry.ask("HEAD", &path, &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("2800000"));

    let part = registry.ask("GET", &path, &[("range", "bytes=1000-1999")], b"");
    assert_eq!((part.status, part.body == bytes[1000..2000]), (206, true));
    assert_eq!(
        part.header("content-range"),
        Some("bytes 1000-1999/2800000")
    );
    let none = registry.ask("GET", &path, &[("range", "bytes=2800000-")], b"");
    assert_eq!(none.status, 416);
    assert_eq!(
        registry.get(&path.replace("a/b", "a/c")).status,
        404,
        "another repository"
    );
}

#[test]
fn a_wrong_digest_leaves_nothing_behind() {
    let registry = Registry::start();
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest(b"other"));
    let answer = registry.ask("POST", &path, &[], b"bytes");
    assert_eq!(
        (answer.status, code(&answer)),
        (400, "DIGEST_INVALID".into())
    );
    for bytes in [&b"bytes"[..], b"other"] {
        let path = format!("/v2/a/blobs/{}", digest(bytes));
        assert_eq!(registry.get(&path).status, 404);
    }
    let left = std::fs::read_dir(registry.dir.path().join("uploads")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_manifest_is_found_by_tag_and_digest_after_a_restart() {
    let registry = Registry::start();
    let (digest, bytes) = registry.put_image("team/os", "v1", "one");
    let registry = registry.restart();
    for reference in ["v1".to_owned(), digest.to_string()] {
        let answer = registry.get(&format!("/v2/team/os/manifests/{reference}"));
        assert_eq!((answer.status, answer.body == bytes), (200, true));
        assert_eq!(answer.header("content-type"), Some(MANIFEST));
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(&*digest.to_string())
        );
    }
    let head = registry.ask("HEAD", "/v2/team/os/manifests/v1", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(
        head.header("content-length"),
        Some(&*bytes.len().to_string())
    );
    assert_eq!(
        code(&registry.get("/v2/team/os/manifests/v2")),
        "MANIFEST_UNKNOWN"
    );
}

#[test]
fn a_manifest_that_names_what_is_not_there_is_refused() {
    let registry = Registry::start();
    let missing = digest(b"missing");
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"{missing}","size":7}},"layers":[]}}"#
    );
    let answer = registry.ask("PUT", "/v2/a/manifests/v1", &[], text.as_bytes());
    assert_eq!(
        (answer.status, code(&answer)),
        (400, "MANIFEST_BLOB_UNKNOWN".into())
    );
    for text in [
        "",
        "{}",
        "[1",
        r#"{"schemaVersion":1}"#,
        r#"{"schemaVersion":2,"config":{"digest":"../x"}}"#,
    ] {
        let answer = registry.ask("PUT", "/v2/a/manifests/v1", &[], text.as_bytes());
        assert_eq!(
            (answer.status, code(&answer)),
            (400, "MANIFEST_INVALID".into()),
            "{text}"
        );
    }
    let huge = vec![b' '; (4 << 20) + 1];
    assert_eq!(
        registry.ask("PUT", "/v2/a/manifests/v1", &[], &huge).status,
        413
    );
}

#[test]
fn tags_and_repositories_come_in_pages() {
    let registry = Registry::start();
    assert_eq!(code(&registry.get("/v2/a/tags/list")), "NAME_UNKNOWN");
    for tag in ["v3", "v1", "v2"] {
        registry.put_image("a", tag, tag);
    }
    registry.put_image("a/tags", "x", "a repository below another");
    assert_eq!(
        registry.get("/v2/a/tags/list").text(),
        r#"{"name":"a","tags":["v1","v2","v3"]}"#
    );
    let page = registry.get("/v2/a/tags/list?n=2");
    assert_eq!(page.text(), r#"{"name":"a","tags":["v1","v2"]}"#);
    assert_eq!(
        page.header("link"),
        Some("</v2/a/tags/list?n=2&last=v2>; rel=\"next\"")
    );
    let last = registry.get("/v2/a/tags/list?n=2&last=v2");
    assert_eq!(
        (last.text(), last.header("link")),
        (r#"{"name":"a","tags":["v3"]}"#, None)
    );
    assert_eq!(
        registry.get("/v2/_catalog").text(),
        r#"{"repositories":["a","a/tags"]}"#
    );
}

#[test]
fn deleting_takes_away_names_and_a_restart_takes_away_bytes() {
    let registry = Registry::start();
    let (digest_one, _) = registry.put_image("a", "v1", "one");
    registry.put_image("a", "v2", "two");
    let path = format!("/v2/a/manifests/{digest_one}");
    assert_eq!(registry.ask("DELETE", &path, &[], b"").status, 202);
    assert_eq!(
        registry.get("/v2/a/manifests/v1").status,
        404,
        "its tag went with it"
    );
    assert_eq!(
        registry
            .ask("DELETE", "/v2/a/manifests/v2", &[], b"")
            .status,
        202
    );
    assert_eq!(
        registry.get("/v2/a/tags/list").text(),
        r#"{"name":"a","tags":[]}"#
    );

    let blob = format!("/v2/a/blobs/{}", digest(b"{}"));
    assert_eq!(registry.ask("DELETE", &blob, &[], b"").status, 202);
    assert_eq!(registry.get(&blob).status, 404);
    let hex = digest(b"{}").to_hex();
    let file = format!("blobs/sha256/{}/{hex}", &hex[..2]);
    assert!(registry.dir.path().join(&file).exists());
    let registry = registry.restart();
    assert!(!registry.dir.path().join(&file).exists());
}

#[test]
fn pushes_at_once_of_the_same_blob_and_tag_all_succeed() {
    let registry = Registry::start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..5 {
                    registry.put_image("a", "latest", &round.to_string());
                }
            });
        }
    });
    let answer = registry.get("/v2/a/manifests/latest");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("docker-content-digest"),
        Some(&*digest(&answer.body).to_string())
    );
}

#[test]
fn one_directory_has_one_server() {
    let registry = Registry::start();
    let again = Running::start(loopback(), registry.dir.path(), Limits::default());
    let error = again.unwrap_err();
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("another registry")
    );
}

#[test]
fn nonsense_is_answered_and_the_server_goes_on() {
    let registry = Registry::start();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v2/../../../etc/passwd"),
        ("GET", "/v2/a/blobs/sha256:zz"),
        ("PUT", "/v2/a/blobs/uploads/../../../x?digest=sha256:00"),
        ("PATCH", "/v2/a/blobs/uploads/nothing"),
        ("BREW", "/v2/a/tags/list"),
        ("POST", "/v2/a/manifests/v1"),
        ("GET", "/v2/a/tags/list?n=-1&last=%00"),
    ] {
        let answer = registry.ask(method, path, &[], b"");
        assert!(
            (400..500).contains(&answer.status),
            "{method} {path}: {}",
            answer.status
        );
    }
    assert_eq!(registry.get("/v2/").status, 200);
}
