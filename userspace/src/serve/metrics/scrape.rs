//! The socket by which metrics are read: `GET /metrics` by HTTP/1.1, one request a connection.
//!
//! Bounded whatever comes: so many readers at a time, each for so long. Others wait in the kernel.

use std::{convert::Infallible, io, rc::Rc, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::render;
use crate::{
    listener::Listener,
    serve::{overview::Overview, socket::Socket},
};

/// How many may read at a time.
const MOST: usize = 8;

/// How long each may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How long nothing is accepted without descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// The longest head of a request, in bytes.
const HEAD: usize = 8 << 10;

/// The listening end.
pub struct Door {
    pub socket: Rc<Socket>,
    accepts: Accepts,
    places: Arc<Semaphore>,
}

enum Accepts {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Somebody who reads.
pub struct Reader {
    stream: Box<dyn Stream>,
    _place: OwnedSemaphorePermit,
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl Door {
    /// Accepts from a socket that does not block.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn open(socket: Rc<Socket>) -> io::Result<Self> {
        let descriptor = socket.descriptor.try_clone()?;
        let accepts = match &socket.listener {
            Listener::Tcp { .. } => Accepts::Tcp(TcpListener::from_std(descriptor.into())?),
            Listener::Unix { .. } => Accepts::Unix(UnixListener::from_std(descriptor.into())?),
        };
        Ok(Self {
            socket,
            accepts,
            places: Arc::new(Semaphore::new(MOST)),
        })
    }

    /// Waits for somebody who wants to read, and for a place. Can be cancelled.
    pub async fn accept(&self) -> Reader {
        loop {
            let Ok(place) = self.places.clone().acquire_owned().await else {
                // Nobody closes it.
                return std::future::pending().await;
            };
            let accepted: io::Result<Box<dyn Stream>> = match &self.accepts {
                Accepts::Tcp(listener) => listener.accept().await.map(|(it, _)| Box::new(it) as _),
                Accepts::Unix(listener) => listener.accept().await.map(|(it, _)| Box::new(it) as _),
            };
            match accepted {
                Ok(stream) => {
                    return Reader {
                        stream,
                        _place: place,
                    };
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }
}

/// Answers somebody.
pub async fn answer(reader: Reader, overview: Overview) {
    let service = service_fn(async |request| respond(&request, &overview).await);
    let mut http = http1::Builder::new();
    let served = http
        .keep_alive(false)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(reader.stream), service);
    // Who is too slow has not read it.
    let _ = tokio::time::timeout(LIMIT, served).await;
}

async fn respond(
    request: &Request<Incoming>,
    overview: &Overview,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, render(overview).await),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (
            StatusCode::NOT_FOUND,
            "metrics are at /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, header::HeaderValue::from_static("GET"));
    }
    Ok(response)
}
