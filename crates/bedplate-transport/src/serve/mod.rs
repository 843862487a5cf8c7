//! The embedded registry: the OCI distribution specification 1.1 over a directory.
//!
//! ```text
//! connections ─→ request ─→ route ─→ manifests · blobs · uploads · lists ─→ storage ─→ <dir>/{blobs,repositories,uploads}
//! ```
//!
//! Invariants: nothing has a name before its digest was checked and its bytes were flushed; whatever a
//! client sends ends in an answer; a name from a request is parsed before it touches a path; what a client
//! holds is bounded in number and in time.

mod blobs;
mod connections;
mod error;
mod limits;
mod lists;
mod manifests;
mod route;
mod storage;
mod uploads;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use limits::Limits;

use connections::Connections;
use error::ApiError;
use limits::Peer;
use route::Route;
use storage::Storage;
use uploads::Uploads;

/// How long open connections may go on after the server was told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How often uploads that rest too long are looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);

/// What every request reaches.
#[derive(Clone, Debug)]
struct Registry {
    limits: Limits,
    storage: Arc<Storage>,
    uploads: Arc<Uploads>,
}

/// A registry that listens, and serves once it is run.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    registry: Registry,
}

impl Server {
    /// Opens the directory and listens; port 0 takes a free one.
    pub async fn bind(address: SocketAddr, dir: &Path, limits: Limits) -> Result<Self, ServeError> {
        let storage = Storage::open(dir).map_err(|source| ServeError::Storage {
            dir: dir.to_owned(),
            source,
        })?;
        let listen = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self {
            listener,
            address,
            registry: Registry {
                limits,
                storage: Arc::new(storage),
                uploads: Arc::new(Uploads::new(limits)),
            },
        })
    }

    /// Returns the address that clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready; requests that run then have a few seconds to end.
    pub async fn run_until(self, stop: impl Future<Output = ()> + Send) {
        let connections = Connections::new(self.registry.limits);
        let mut tidy = tokio::time::interval(TIDY_INTERVAL);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = tidy.tick() => self.registry.uploads.forget_idle(),
                accepted = connections.accept(&self.listener) => {
                    connections.serve(accepted, self.registry.clone());
                }
            }
        }
        drop(self.listener);
        connections.finish(STOP_GRACE).await;
    }
}

/// A registry that serves on threads of its own: for callers without an async runtime.
pub struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Starts to serve a directory.
    pub fn start(address: SocketAddr, dir: &Path, limits: Limits) -> Result<Self, ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(ServeError::Runtime)?;
        let server = runtime.block_on(Server::bind(address, dir, limits))?;
        let address = server.local_addr();
        let (stop, told) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("registry".into())
            .spawn(move || {
                runtime.block_on(server.run_until(async {
                    // A handle that was dropped stops the server too.
                    let _ = told.await;
                }));
            })
            .map_err(ServeError::Runtime)?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns the address that clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server and waits for it.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(Err(panic)) = self.thread.take().map(std::thread::JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Serves a directory until the process is told to end (SIGINT or SIGTERM).
///
/// `ready` is called once, with the address, when clients can connect.
pub fn serve_until_signal(
    address: SocketAddr,
    dir: &Path,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
        let server = Server::bind(address, dir, Limits::default()).await?;
        ready(server.local_addr());
        server
            .run_until(async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            })
            .await;
        Ok(())
    })
}

async fn serve(registry: Registry, peer: Peer, request: Request) -> Response {
    let mut response = match registry.answer(peer, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(
        HeaderName::from_static("docker-distribution-api-version"),
        HeaderValue::from_static("registry/2.0"),
    );
    response
}

impl Registry {
    async fn answer(self, peer: Peer, request: Request) -> Result<Response, ApiError> {
        let route = Route::parse(request.uri().path())?;
        let method = request.method().clone();
        match (route, method) {
            (Route::Base, Method::GET | Method::HEAD) => Ok(StatusCode::OK.into_response()),
            (Route::Catalog, Method::GET) => self.catalog(request).await,
            (Route::Tags(repository), Method::GET) => self.tags(repository, request).await,
            (Route::Referrers(repository, subject), Method::GET) => {
                self.referrers(repository, subject, request).await
            }
            (Route::Manifest(repository, reference), method) => match method {
                Method::GET | Method::HEAD => self.get_manifest(repository, reference).await,
                Method::PUT => self.put_manifest(repository, reference, request).await,
                Method::DELETE => self.delete_manifest(repository, reference).await,
                _ => Err(ApiError::MethodNotAllowed),
            },
            (Route::Blob(repository, digest), method) => match method {
                Method::GET | Method::HEAD => self.get_blob(repository, digest, request).await,
                Method::DELETE => self.delete_blob(repository, digest).await,
                _ => Err(ApiError::MethodNotAllowed),
            },
            (Route::NewUpload(repository), Method::POST) => {
                self.open_upload(repository, peer, request).await
            }
            (Route::Upload(repository, id), method) => match method {
                Method::GET => self.upload_status(&repository, &id),
                Method::PATCH => self.continue_upload(repository, id, request).await,
                Method::PUT => self.finish_upload(repository, id, request).await,
                Method::DELETE => self.cancel_upload(&repository, &id),
                _ => Err(ApiError::MethodNotAllowed),
            },
            _ => Err(ApiError::MethodNotAllowed),
        }
    }

    /// Does work on the storage where it may block.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let storage = Arc::clone(&self.storage);
        match tokio::task::spawn_blocking(move || work(&storage)).await {
            Ok(result) => Ok(result?),
            Err(panic) => Err(io::Error::other(panic).into()),
        }
    }
}

/// Returns one parameter of a request's query, its escapes undone.
fn query(request: &Request, wanted: &str) -> Option<String> {
    type Pairs = axum::extract::Query<Vec<(String, String)>>;
    let Pairs { 0: pairs } = Pairs::try_from_uri(request.uri()).ok()?;
    pairs
        .into_iter()
        .find(|(name, _)| name == wanted)
        .map(|(_, value)| value)
}

/// Why a registry does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory cannot be used.
    #[error("cannot serve the directory {}", dir.display())]
    Storage {
        /// The directory.
        dir: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The address cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What went wrong.
        source: io::Error,
    },
    /// No threads, or no signals.
    #[error("cannot start the server's threads")]
    Runtime(#[source] io::Error),
}
