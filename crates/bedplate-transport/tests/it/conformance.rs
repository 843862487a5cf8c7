//! The OCI distribution specification 1.1, point by point, against the embedded registry.
//!
//! Each row is one request in the order of a session with one registry. `@` at the start of a path is the
//! last `Location` of an answer. `end-…` are the specification's numbers of its endpoints.

use bedplate_model::oci::OCI_INDEX;

use crate::serving::{MANIFEST, Registry, digest};

/// What a row asks for besides its address.
#[derive(Default)]
struct Ask<'a> {
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
}

/// What a row wants: a status, headers with their values, and text in the body.
struct Want<'a> {
    status: u16,
    headers: &'a [(&'a str, &'a str)],
    text: &'a str,
}

fn with<'a>(headers: &'a [(&'a str, &'a str)], body: &'a [u8]) -> Ask<'a> {
    Ask { headers, body }
}

fn nothing<'a>() -> Ask<'a> {
    Ask::default()
}

fn want<'a>(status: u16) -> Want<'a> {
    Want {
        status,
        headers: &[],
        text: "",
    }
}

impl<'a> Want<'a> {
    fn header(self, headers: &'a [(&'a str, &'a str)]) -> Self {
        Self { headers, ..self }
    }

    fn text(self, text: &'a str) -> Self {
        Self { text, ..self }
    }
}

type Row<'a> = (&'a str, &'a str, &'a str, Ask<'a>, Want<'a>);

fn check(registry: &Registry, rows: &[Row<'_>]) {
    let mut location = String::new();
    for (point, method, path, ask, want) in rows {
        let path = match path.strip_prefix('@') {
            Some(rest) => format!("{location}{rest}"),
            None => (*path).to_owned(),
        };
        let answer = registry.ask(method, &path, ask.headers, ask.body);
        let row = format!("{point}: {method} {path}");
        assert_eq!(answer.status, want.status, "{row}: {}", answer.text());
        for (name, value) in want.headers {
            match *value {
                "" => assert_eq!(answer.header(name), None, "{row}"),
                value => assert_eq!(answer.header(name), Some(value), "{row}: {name}"),
            }
        }
        assert!(
            answer.text().contains(want.text),
            "{row}: {}",
            answer.text()
        );
        if *method == "HEAD" || answer.status == 204 {
            assert!(answer.body.is_empty(), "{row}");
        } else if answer.status >= 400 {
            assert!(
                answer.text().starts_with(r#"{"errors":[{"code":""#),
                "{row}"
            );
        }
        if let Some(at) = answer.header("location") {
            at.clone_into(&mut location);
        }
    }
}

#[test]
fn uploads_are_as_specified() {
    let registry = Registry::start();
    let whole = digest(b"hello world").to_string();
    let blob = format!("/v2/a/b/blobs/{whole}");
    let uploads = "/v2/a/b/blobs/uploads/";
    let at_once = format!("{uploads}?digest={whole}");
    let sha512 = format!("{uploads}?digest=sha512:{}", "0".repeat(128));
    let done = format!("@?digest={whole}");
    let wrong = format!("@?digest={}", digest(b"other"));
    let created = [
        ("location", &*blob),
        ("docker-content-digest", &*whole),
        ("content-length", "0"),
    ];
    check(
        &registry,
        &[
            ("end-1", "GET", "/v2/", nothing(), want(200)),
            (
                "end-4a opens",
                "POST",
                uploads,
                nothing(),
                want(202).header(&[("range", "0-0")]),
            ),
            (
                "end-13 status",
                "GET",
                "@",
                nothing(),
                want(204).header(&[("range", "0-0")]),
            ),
            (
                "end-5 a chunk",
                "PATCH",
                "@",
                with(&[("content-range", "0-4")], b"hello"),
                want(202).header(&[("range", "0-4")]),
            ),
            (
                "end-5 a gap",
                "PATCH",
                "@",
                with(&[("content-range", "7-8")], b"or"),
                want(416).header(&[("range", "0-4")]),
            ),
            (
                "end-5 again",
                "PATCH",
                "@",
                with(&[("content-range", "0-4")], b"hello"),
                want(416).header(&[("range", "0-4")]),
            ),
            (
                "end-5 no range",
                "PATCH",
                "@",
                with(&[("content-range", "all")], b"x"),
                want(416).header(&[("range", "0-4")]),
            ),
            (
                "end-5 another length",
                "PATCH",
                "@",
                with(&[("content-range", "5-6")], b"x"),
                want(400).text("SIZE_INVALID"),
            ),
            (
                "end-13 status",
                "GET",
                "@",
                nothing(),
                want(204).header(&[("range", "0-4")]),
            ),
            (
                "end-6 a gap",
                "PUT",
                &done,
                with(&[("content-range", "6-10")], b"world"),
                want(416),
            ),
            ("end-6 without a digest", "PUT", "@", nothing(), want(400)),
            (
                "end-6 the last chunk",
                "PUT",
                &done,
                with(&[("content-range", "5-10")], b" world"),
                want(201).header(&created),
            ),
            (
                "end-2 what came",
                "GET",
                "@",
                nothing(),
                want(200).text("hello world"),
            ),
            ("end-4a", "POST", uploads, nothing(), want(202)),
            (
                "end-6 another digest",
                "PUT",
                &wrong,
                with(&[], b"x"),
                want(400).text("DIGEST_INVALID"),
            ),
            (
                "end-5 it is over",
                "PATCH",
                "@",
                with(&[], b"x"),
                want(404).text("BLOB_UPLOAD_UNKNOWN"),
            ),
            ("end-4a", "POST", uploads, nothing(), want(202)),
            ("cancel", "DELETE", "@", nothing(), want(204)),
            ("end-13 cancelled", "GET", "@", nothing(), want(404)),
            ("end-4a", "POST", uploads, nothing(), want(202)),
            (
                "end-6 at once",
                "PUT",
                &done,
                with(&[], b"hello world"),
                want(201).header(&created),
            ),
            (
                "end-4b",
                "POST",
                &at_once,
                with(&[], b"hello world"),
                want(201).header(&created),
            ),
            (
                "end-4b sha512",
                "POST",
                &sha512,
                nothing(),
                want(400).text("DIGEST_INVALID"),
            ),
        ],
    );
}

#[test]
fn blobs_and_mounts_are_as_specified() {
    let registry = Registry::start();
    let blob = registry.put_blob("a/b", b"hello world").to_string();
    let missing = digest(b"missing").to_string();
    let at = |repository: &str, digest: &str| format!("/v2/{repository}/blobs/{digest}");
    let mount = |query: &str| format!("/v2/c/blobs/uploads/?{query}");
    let headers = [("content-length", "11"), ("docker-content-digest", &*blob)];
    let part = [("content-range", "bytes 6-10/11"), ("content-length", "5")];
    check(
        &registry,
        &[
            (
                "end-2",
                "HEAD",
                &at("a/b", &blob),
                nothing(),
                want(200).header(&headers),
            ),
            (
                "end-2",
                "GET",
                &at("a/b", &blob),
                nothing(),
                want(200).header(&headers).text("hello"),
            ),
            ("end-2", "HEAD", &at("a/b", &missing), nothing(), want(404)),
            (
                "end-2",
                "GET",
                &at("a/b", &missing),
                nothing(),
                want(404).text("BLOB_UNKNOWN"),
            ),
            (
                "end-2",
                "GET",
                &at("a/b", "sha256:00"),
                nothing(),
                want(400).text("DIGEST_INVALID"),
            ),
            (
                "end-2",
                "GET",
                &at("A", &blob),
                nothing(),
                want(400).text("NAME_INVALID"),
            ),
            (
                "end-2",
                "GET",
                &at(&"a".repeat(256), &blob),
                nothing(),
                want(400).text("NAME_INVALID"),
            ),
            (
                "end-2 a part",
                "GET",
                &at("a/b", &blob),
                with(&[("range", "bytes=6-")], b""),
                want(206).header(&part).text("world"),
            ),
            (
                "end-2 beyond",
                "GET",
                &at("a/b", &blob),
                with(&[("range", "bytes=11-")], b""),
                want(416).header(&[("content-range", "bytes */11")]),
            ),
            (
                "end-2 not there yet",
                "HEAD",
                &at("c", &blob),
                nothing(),
                want(404),
            ),
            (
                "end-11",
                "POST",
                &mount(&format!("mount={blob}&from=a/b")),
                nothing(),
                want(201).header(&[("location", &*at("c", &blob))]),
            ),
            (
                "end-11",
                "GET",
                "@",
                nothing(),
                want(200).text("hello world"),
            ),
            (
                "end-11",
                "POST",
                &mount(&format!("mount={missing}&from=a/b")),
                nothing(),
                want(202),
            ),
            (
                "end-11",
                "POST",
                &mount(&format!("mount={blob}&from=no/such")),
                nothing(),
                want(202),
            ),
            (
                "end-11",
                "POST",
                &mount(&format!("mount={blob}&from=../x")),
                nothing(),
                want(202),
            ),
            (
                "end-11",
                "POST",
                &mount("mount=sha512:00&from=a/b"),
                nothing(),
                want(202),
            ),
            (
                "end-11",
                "POST",
                &mount(&format!("mount={blob}")),
                nothing(),
                want(202),
            ),
            ("end-10", "DELETE", &at("c", &blob), nothing(), want(202)),
            (
                "end-10",
                "DELETE",
                &at("c", &blob),
                nothing(),
                want(404).text("BLOB_UNKNOWN"),
            ),
            (
                "end-10 the other's",
                "HEAD",
                &at("a/b", &blob),
                nothing(),
                want(200),
            ),
            ("end-10", "DELETE", &at("a/b", "x"), nothing(), want(400)),
            (
                "no such method",
                "PUT",
                &at("a/b", &blob),
                nothing(),
                want(405),
            ),
        ],
    );
}

#[test]
fn manifests_and_tags_are_as_specified() {
    let registry = Registry::start();
    let (name, bytes) = registry.put_image("a/b", "v1", "one");
    let name = name.to_string();
    let at = |reference: &str| format!("/v2/a/b/manifests/{reference}");
    let list = |query: &str| format!("/v2/a/b/tags/list{query}");
    let kind = [("content-type", MANIFEST)];
    let length = bytes.len().to_string();
    let headers = [
        ("content-type", MANIFEST),
        ("content-length", &*length),
        ("docker-content-digest", &*name),
    ];
    let created = [("location", &*at(&name)), ("docker-content-digest", &*name)];
    let other = digest(b"other").to_string();
    let unknown = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"{other}","size":5}},"layers":[]}}"#
    );
    let too_large = vec![b' '; (4 << 20) + 1];
    let next = [("link", "</v2/a/b/tags/list?n=1&last=v1>; rel=\"next\"")];
    check(
        &registry,
        &[
            (
                "end-3",
                "GET",
                &at("v1"),
                nothing(),
                want(200).header(&headers).text("one"),
            ),
            (
                "end-3",
                "HEAD",
                &at("v1"),
                nothing(),
                want(200).header(&headers),
            ),
            (
                "end-3",
                "HEAD",
                &at(&name),
                nothing(),
                want(200).header(&headers),
            ),
            (
                "end-3",
                "GET",
                &at("v9"),
                nothing(),
                want(404).text("MANIFEST_UNKNOWN"),
            ),
            ("end-3", "HEAD", &at("v9"), nothing(), want(404)),
            (
                "end-3",
                "GET",
                &at(&other),
                nothing(),
                want(404).text("MANIFEST_UNKNOWN"),
            ),
            (
                "end-7",
                "PUT",
                &at("v2"),
                with(&kind, &bytes),
                want(201).header(&created),
            ),
            (
                "end-7",
                "PUT",
                &at(&name),
                with(&kind, &bytes),
                want(201).header(&created),
            ),
            (
                "end-7",
                "PUT",
                &at(&other),
                with(&kind, &bytes),
                want(400).text("DIGEST_INVALID"),
            ),
            (
                "end-7 another type",
                "PUT",
                &at("v3"),
                with(&[("content-type", OCI_INDEX)], &bytes),
                want(400).text("MANIFEST_INVALID"),
            ),
            (
                "end-7 a blob that is not there",
                "PUT",
                &at("v3"),
                with(&kind, unknown.as_bytes()),
                want(400).text("MANIFEST_BLOB_UNKNOWN"),
            ),
            (
                "end-7",
                "PUT",
                &at("v3"),
                with(&kind, b"{"),
                want(400).text("MANIFEST_INVALID"),
            ),
            (
                "end-7 too large",
                "PUT",
                &at("v3"),
                with(&kind, &too_large),
                want(413),
            ),
            (
                "end-8a",
                "GET",
                &list(""),
                nothing(),
                want(200)
                    .header(&[("link", "")])
                    .text(r#"{"name":"a/b","tags":["v1","v2"]}"#),
            ),
            (
                "end-8b",
                "GET",
                &list("?n=1"),
                nothing(),
                want(200).header(&next).text(r#"["v1"]"#),
            ),
            (
                "end-8b the rest",
                "GET",
                &list("?n=1&last=v1"),
                nothing(),
                want(200).header(&[("link", "")]).text(r#"["v2"]"#),
            ),
            (
                "end-8b none",
                "GET",
                &list("?n=0"),
                nothing(),
                want(200).header(&[("link", "")]).text(r#""tags":[]"#),
            ),
            (
                "end-8b a last that is none",
                "GET",
                &list("?last=v10"),
                nothing(),
                want(200).text(r#"["v2"]"#),
            ),
            (
                "end-8a",
                "GET",
                "/v2/no/such/tags/list",
                nothing(),
                want(404).text("NAME_UNKNOWN"),
            ),
            ("end-9 a tag", "DELETE", &at("v1"), nothing(), want(202)),
            ("end-9 a tag", "DELETE", &at("v1"), nothing(), want(404)),
            (
                "end-9 the manifest stays",
                "HEAD",
                &at(&name),
                nothing(),
                want(200),
            ),
            ("end-9", "DELETE", &at(&name), nothing(), want(202)),
            (
                "end-9",
                "DELETE",
                &at(&name),
                nothing(),
                want(404).text("MANIFEST_UNKNOWN"),
            ),
            ("end-9 its tags go", "GET", &at("v2"), nothing(), want(404)),
            (
                "end-8a",
                "GET",
                &list(""),
                nothing(),
                want(200).text(r#""tags":[]"#),
            ),
            ("no such method", "POST", &at("v1"), nothing(), want(405)),
        ],
    );
}

#[test]
fn referrers_are_as_specified() {
    let registry = Registry::start();
    let (subject, bytes) = registry.put_image("a", "v1", "one");
    let config = registry.put_blob("a", b"{}");
    let referrer = |kind: &str, note: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}",{kind}"config":{{"mediaType":"test/config","digest":"{config}","size":2}},"layers":[],"subject":{{"mediaType":"{MANIFEST}","digest":"{subject}","size":{}}},"annotations":{{"note":"{note}"}}}}"#,
            bytes.len()
        )
    };
    let typed = referrer(r#""artifactType":"test/signature","#, "typed");
    let untyped = referrer(r#""artifactType":"","#, "untyped");
    // A list of three would be longer than a manifest may be.
    let long = |n: u8| referrer("", &char::from(b'a' + n).to_string().repeat(2 << 20));
    let (one, two, three) = (long(0), long(1), long(2));
    let put = |bytes: &str| format!("/v2/a/manifests/{}", digest(bytes.as_bytes()));
    let list = |query: &str| format!("/v2/a/referrers/{subject}{query}");
    let of = |digest: &str| format!("/v2/a/referrers/{digest}");
    let kind = [("content-type", MANIFEST)];
    let subject_text = subject.to_string();
    let told = [("oci-subject", &*subject_text)];
    let filtered = [
        ("oci-filters-applied", "artifactType"),
        ("content-type", OCI_INDEX),
    ];
    let unfiltered = [("oci-filters-applied", ""), ("content-type", OCI_INDEX)];
    let signatures = list("?artifactType=test%2Fsignature");
    let fallback = format!("/v2/a/manifests/sha256-{}", subject.to_hex());
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
    let empty = r#""manifests":[]"#;
    check(
        &registry,
        &[
            (
                "end-12a nothing yet",
                "GET",
                &list(""),
                nothing(),
                want(200).header(&unfiltered).text(empty),
            ),
            (
                "end-12a unknown",
                "GET",
                &of(&digest(b"x").to_string()),
                nothing(),
                want(200).text(empty),
            ),
            ("end-12a no digest", "GET", &of("x"), nothing(), want(400)),
            (
                "end-7",
                "PUT",
                &put(&typed),
                with(&kind, typed.as_bytes()),
                want(201).header(&told),
            ),
            (
                "end-7",
                "PUT",
                &put(&untyped),
                with(&kind, untyped.as_bytes()),
                want(201).header(&told),
            ),
            (
                "end-12a",
                "GET",
                &list(""),
                nothing(),
                want(200).text(r#""note":"typed""#),
            ),
            (
                "end-12a the config's type",
                "GET",
                &list(""),
                nothing(),
                want(200).text(r#""artifactType":"test/config""#),
            ),
            (
                "end-12b",
                "GET",
                &signatures,
                nothing(),
                want(200)
                    .header(&filtered)
                    .text(r#""artifactType":"test/signature""#),
            ),
            (
                "end-12b",
                "GET",
                &list("?artifactType=x"),
                nothing(),
                want(200).header(&filtered).text(empty),
            ),
            ("end-9", "DELETE", &put(&typed), nothing(), want(202)),
            (
                "end-12b",
                "GET",
                &signatures,
                nothing(),
                want(200).text(empty),
            ),
            (
                "the fallback of old clients is a tag like others",
                "PUT",
                &fallback,
                with(&[("content-type", OCI_INDEX)], index.as_bytes()),
                want(201),
            ),
            (
                "the fallback",
                "GET",
                &fallback,
                nothing(),
                want(200).text(empty),
            ),
            (
                "end-7",
                "PUT",
                &put(&one),
                with(&kind, one.as_bytes()),
                want(201),
            ),
            (
                "end-7",
                "PUT",
                &put(&two),
                with(&kind, two.as_bytes()),
                want(201),
            ),
            (
                "end-7",
                "PUT",
                &put(&three),
                with(&kind, three.as_bytes()),
                want(201),
            ),
        ],
    );
    // However long the list is, its pages are bounded and lead to its end.
    let mut path = list("");
    let mut seen = Vec::new();
    let mut pages = 0;
    loop {
        pages += 1;
        let page = registry.get(&path);
        assert!(page.body.len() < 5 << 20);
        let index: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
        let digests = index["manifests"].as_array().unwrap().iter();
        seen.extend(digests.map(|entry| entry["digest"].as_str().unwrap().to_owned()));
        match page.header("link") {
            Some(link) => link[1..].split('>').next().unwrap().clone_into(&mut path),
            None => break,
        }
    }
    let mut wanted = [&untyped, &one, &two, &three].map(|text| digest(text.as_bytes()).to_string());
    wanted.sort_unstable();
    assert_eq!(seen, wanted);
    assert!(pages > 1);
}
