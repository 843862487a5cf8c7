//! What a client may hold of the embedded registry. Limits are injected small; no test measures time: each
//! waits for something that only happens when the limit works.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use bedplate_transport::serve::Limits;

use crate::raw::answer;
use crate::serving::{Registry, digest};

/// A limit that is reached at once.
const SOON: Duration = Duration::from_millis(100);

fn connect(registry: &Registry) -> TcpStream {
    let stream = TcpStream::connect(registry.address()).unwrap();
    // Only a test that fails waits so long.
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    bytes
}

#[test]
fn a_head_that_does_not_come_to_its_end_ends_the_connection() {
    let registry = Registry::with(Limits {
        head: SOON,
        ..Limits::default()
    });
    for start in ["", "GET /v2/ HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let mut stream = connect(&registry);
        stream.write_all(start.as_bytes()).unwrap();
        assert!(!read_to_end(&mut stream).starts_with(b"HTTP/1.1 200"));
    }
}

#[test]
fn a_connection_without_a_second_request_ends() {
    let registry = Registry::with(Limits {
        head: SOON,
        ..Limits::default()
    });
    let mut stream = connect(&registry);
    stream
        .write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    assert!(read_to_end(&mut stream).starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_body_that_stops_is_answered_and_can_be_continued() {
    let registry = Registry::with(Limits {
        silence: SOON,
        ..Limits::default()
    });
    let opened = registry.ask("POST", "/v2/a/blobs/uploads/", &[], b"");
    let at = opened.header("location").unwrap().to_owned();
    let stalled = connect(&registry);
    write!(
        &stalled,
        "PATCH {at} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\nhel"
    )
    .unwrap();
    assert_eq!(answer(stalled).status, 400);
    let path = format!("{at}?digest={}", digest(b"hello"));
    let finished = registry.ask("PUT", &path, &[("content-range", "3-4")], b"lo");
    assert_eq!(finished.status, 201, "{}", finished.text());

    let manifest = connect(&registry);
    let head = "PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    write!(&manifest, "{head}content-length: 9\r\n\r\n{{").unwrap();
    assert_eq!(answer(manifest).status, 400);
}

#[test]
fn an_answer_that_nobody_takes_gives_its_place_to_the_next() {
    let registry = Registry::with(Limits {
        connections: 1,
        silence: SOON,
        ..Limits::default()
    });
    // More than the kernel's buffers of one connection hold.
    let digest = registry.put_blob("a", &vec![7; 48 << 20]);
    let untaken = connect(&registry);
    write!(
        &untaken,
        "GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n"
    )
    .unwrap();
    assert_eq!(registry.get("/v2/").status, 200);
    drop(untaken);
}

#[test]
fn a_connection_beyond_the_limit_waits_for_its_turn() {
    let registry = Registry::with(Limits {
        connections: 1,
        ..Limits::default()
    });
    let first = connect(&registry);
    // The first is accepted for sure when it was answered.
    write!(&first, "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!((&first).read(&mut [0; 1]).unwrap(), 1);
    let second = connect(&registry);
    let request = "GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    write!(&second, "{request}").unwrap();
    second.set_read_timeout(Some(SOON)).unwrap();
    let early = (&second).read(&mut [0; 1]).unwrap_err();
    assert!(matches!(
        early.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));
    drop(first);
    assert_eq!(answer(second).status, 200);
}

#[test]
fn a_peer_with_too_many_connections_is_told_so_until_one_ends() {
    let registry = Registry::with(Limits {
        connections_of_peer: 1,
        ..Limits::default()
    });
    let first = connect(&registry);
    write!(&first, "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!((&first).read(&mut [0; 1]).unwrap(), 1);
    let refused = answer(connect(&registry));
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (429, Some("5"))
    );
    drop(first);
    // The server hears of the end a moment later.
    loop {
        let mut again = connect(&registry);
        // A refusal may come before the request.
        let _ = again.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        if read_to_end(&mut again).starts_with(b"HTTP/1.1 200") {
            break;
        }
    }
}

#[test]
fn one_client_cannot_keep_others_from_uploading() {
    let registry = Registry::with(Limits {
        uploads: 4,
        uploads_of_peer: 3,
        ..Limits::default()
    });
    let open = || registry.ask("POST", "/v2/a/blobs/uploads/", &[], b"");
    let first = open().header("location").unwrap().to_owned();
    for _ in 0..20 {
        assert_eq!(open().status, 202);
    }
    assert_eq!(registry.get(&first).status, 404, "the oldest made place");
}
