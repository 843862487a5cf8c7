//! Connections: accepted, counted, and ended when they do nothing.
//!
//! ```text
//! listener ─→ a place among all (waits) ─→ a place of this peer (or 429) ─→ HTTP ─→ Registry
//! ```
//!
//! Invariant: a connection that does nothing ends: hyper's timer watches the heads of requests, who reads
//! a body watches it ([`piece`]), and [`Watched`] watches answers that nobody takes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;

use super::limits::{Limits, Peer};
use super::{Registry, serve};

/// How much of a request is held before it is worked on.
const BUFFER_MAX: usize = 256 << 10;
/// How long the server waits when it cannot accept, as when the process has no more files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// How long a peer that has too many connections may take to hear that.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// What such a peer hears.
const REFUSAL: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 5\r\ncontent-length: 0\r\n\
    connection: close\r\n\r\n";

/// The connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    limits: Limits,
    places: Arc<Semaphore>,
    peers: Arc<Mutex<HashMap<Peer, usize>>>,
    stop: watch::Sender<()>,
}

/// A connection that was accepted, with its place among all.
pub(super) struct Accepted {
    stream: TcpStream,
    peer: Peer,
    place: OwnedSemaphorePermit,
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            places: Arc::new(Semaphore::new(
                limits.connections.min(Semaphore::MAX_PERMITS),
            )),
            peers: Arc::default(),
            stop: watch::Sender::new(()),
        }
    }

    /// Waits for a place and for a client. May be cancelled and called again.
    pub(super) async fn accept(&self, listener: &TcpListener) -> Accepted {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("nobody closes the semaphore");
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    let peer = Peer::of(address.ip());
                    return Accepted {
                        stream,
                        peer,
                        place,
                    };
                }
                // The client is gone already.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Answers the requests of a connection, on a task of its own.
    pub(super) fn serve(&self, accepted: Accepted, registry: Registry) {
        let Accepted {
            mut stream,
            peer,
            place,
        } = accepted;
        let Some(counted) = self.count(peer) else {
            tokio::spawn(async move {
                // Who does not listen need not hear it.
                let _ = tokio::time::timeout(REFUSAL_TIME, stream.write_all(REFUSAL)).await;
                drop((stream, place));
            });
            return;
        };
        // Answers are written whole; a delay to join them only costs time.
        let _ = stream.set_nodelay(true);
        let stream = TokioIo::new(Watched {
            stream,
            silence: self.limits.silence,
            untaken: None,
        });
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let answer = serve(registry.clone(), peer, request.map(Body::new));
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(BUFFER_MAX)
            .serve_connection(stream, service);
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            // How a connection ends is its client's business.
            tokio::select! {
                _ = &mut connection => {}
                _ = stop.changed() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop((counted, place));
        });
    }

    /// Lets running requests end, for so long, and idle connections not at all.
    pub(super) async fn finish(&self, grace: Duration) {
        self.stop.send_replace(());
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        // What is left after that is cut off with the runtime.
        let _ = tokio::time::timeout(grace, self.places.acquire_many(all)).await;
    }

    fn count(&self, peer: Peer) -> Option<Counted> {
        let mut peers = lock(&self.peers);
        let held = peers.entry(peer).or_default();
        if *held >= self.limits.connections_of_peer {
            return None;
        }
        *held += 1;
        Some(Counted {
            peers: Arc::clone(&self.peers),
            peer,
        })
    }
}

fn lock(peers: &Mutex<HashMap<Peer, usize>>) -> std::sync::MutexGuard<'_, HashMap<Peer, usize>> {
    // Every change is one number: no panic leaves it half done.
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A peer's connection, counted until this is dropped.
struct Counted {
    peers: Arc<Mutex<HashMap<Peer, usize>>>,
    peer: Peer,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut peers = lock(&self.peers);
        if let Some(held) = peers.get_mut(&self.peer) {
            *held -= 1;
            if *held == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// Why the rest of a request's body does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Its sender fell silent.
    Silent,
    /// The connection ended, or what came over it is no body.
    Broken,
}

/// Returns the next piece of a request's body, or `None` at its end.
pub(super) async fn piece(body: &mut Body, silence: Duration) -> Result<Option<Bytes>, Cut> {
    loop {
        match tokio::time::timeout(silence, body.frame()).await {
            Err(_) => return Err(Cut::Silent),
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => return Err(Cut::Broken),
            Ok(Some(Ok(frame))) => {
                // Trailers mean nothing here.
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
        }
    }
}

/// A connection that fails when its peer takes nothing of an answer for too long.
struct Watched {
    stream: TcpStream,
    silence: Duration,
    /// Runs while there is something to send that the peer does not take.
    untaken: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.untaken = None;
            return written;
        }
        let silence = self.silence;
        let untaken = self
            .untaken
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(silence)));
        untaken
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
