//! Connections to sites: made anew, or kept from the request before.
//!
//! A connection is made to a socket that is always there; while the site sleeps it waits in the kernel's
//! queue. A kept one may have ended meanwhile: then a request of which the site has read nothing is sent
//! again, and no other.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpStream, UnixStream, tcp, unix},
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    plan::Upstream,
    site::Site,
    stream::{Sink, Source},
};

/// How many connections to a site each worker keeps.
const MOST_KEPT: usize = 64;

/// How often a request is sent that the site has not read.
const MOST_TRIES: u32 = 4;

/// A Unix socket whose queue is full says so at once: how long until it is tried again.
const RETRY: Duration = Duration::from_millis(2);

/// What a connection is read from, and written to.
#[derive(Debug)]
pub enum Reader {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
}

#[derive(Debug)]
pub enum Writer {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_read(context, buffer),
            Self::Unix(half) => Pin::new(half).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_write(context, bytes),
            Self::Unix(half) => Pin::new(half).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Neither kind of socket holds anything back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_shutdown(context),
            Self::Unix(half) => Pin::new(half).poll_shutdown(context),
        }
    }
}

/// A connection to a site.
#[derive(Debug)]
pub struct Connection {
    pub source: Source<Reader>,
    pub sink: Sink<Writer>,
    /// It has served requests.
    is_used: bool,
}

impl Connection {
    /// Puts together what has served a request.
    pub fn from_parts(source: Source<Reader>, sink: Sink<Writer>) -> Self {
        Self {
            source,
            sink,
            is_used: true,
        }
    }

    pub fn into_parts(self) -> (Source<Reader>, Sink<Writer>) {
        (self.source, self.sink)
    }

    /// The error that the socket has had and nobody was told of.
    fn pending_error(&self) -> Option<io::Error> {
        match self.source.reader() {
            Reader::Tcp(half) => half.as_ref().take_error().ok().flatten(),
            Reader::Unix(half) => half.as_ref().take_error().ok().flatten(),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("cannot connect to the site")]
    Connect(#[source] io::Error),
    #[error("the connection to the site ended before an answer")]
    Ended,
    #[error("the site takes too long")]
    Late,
}

/// Connects to a site.
///
/// # Errors
/// [`AskError::Connect`], or [`AskError::Late`] at the deadline.
pub async fn connect(
    site: &Site,
    deadline: Instant,
    buffer: usize,
) -> Result<Connection, AskError> {
    let connected = timeout_at(deadline, open(&site.settings.upstream)).await;
    let (reader, writer) = match connected {
        Err(_) => return Err(AskError::Late),
        Ok(opened) => opened.map_err(AskError::Connect)?,
    };
    Ok(Connection {
        source: Source::new(reader, buffer),
        sink: Sink::new(writer),
        is_used: false,
    })
}

async fn open(upstream: &Upstream) -> io::Result<(Reader, Writer)> {
    match upstream {
        Upstream::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok((Reader::Tcp(reader), Writer::Tcp(writer)))
        }
        Upstream::Unix(path) => loop {
            match UnixStream::connect(path).await {
                Ok(stream) => {
                    let (reader, writer) = stream.into_split();
                    return Ok((Reader::Unix(reader), Writer::Unix(writer)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        },
    }
}

/// A whole request, which can be sent more than once.
pub struct Whole<'a> {
    pub bytes: &'a [u8],
    /// Doing it twice does no more than doing it once (RFC 9110, 9.2.2).
    pub is_idempotent: bool,
}

/// Where to ask from.
#[derive(Clone, Copy)]
pub struct Asker {
    /// The number of the worker.
    pub worker: usize,
    /// The size of the buffer for answers.
    pub buffer: usize,
}

/// Sends a request; returns the connection when the first bytes of the answer are there.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(
    site: &Arc<Site>,
    request: Whole<'_>,
    asker: Asker,
) -> Result<Connection, AskError> {
    let deadline = Instant::now() + site.first_byte_timeout();
    for attempt in 1..=MOST_TRIES {
        // Where one kept connection has ended, the others most likely have.
        let kept = (attempt == 1).then(|| take_kept(site, asker.worker));
        let mut connection = match kept.flatten() {
            Some(kept) => kept,
            None => connect(site, deadline, asker.buffer).await?,
        };
        let asked = timeout_at(deadline, send(&mut connection, request.bytes)).await;
        let was_read = match asked.map_err(|_| AskError::Late)? {
            Outcome::Answered => return Ok(connection),
            Outcome::NotRead => false,
            Outcome::Ended => true,
        };
        // An old connection that ends under a request has most likely not seen it.
        let may_repeat = !was_read || (connection.is_used && request.is_idempotent);
        if !may_repeat {
            break;
        }
    }
    Err(AskError::Ended)
}

enum Outcome {
    Answered,
    /// The connection ended, and nobody has read the request.
    NotRead,
    Ended,
}

async fn send(connection: &mut Connection, bytes: &[u8]) -> Outcome {
    if connection.sink.writer.write_all(bytes).await.is_err() {
        return Outcome::NotRead;
    }
    match connection.source.read().await {
        Ok(0) => match connection.pending_error() {
            // The other end was closed before the request came: it was thrown away.
            Some(_) => Outcome::NotRead,
            None => Outcome::Ended,
        },
        Ok(_) => Outcome::Answered,
        // It was closed with the request unread.
        Err(_) => Outcome::NotRead,
    }
}

/// Connections of one worker that wait for a request; the oldest first.
#[derive(Debug, Default)]
pub struct Pool {
    kept: VecDeque<(Instant, Connection)>,
    /// A task closes those that have waited for too long.
    is_watched: bool,
}

/// Takes the connection that was used last, if it is still open.
fn take_kept(site: &Site, worker: usize) -> Option<Connection> {
    let mut pool = site.live.pools[worker]
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    while let Some((_, mut connection)) = pool.kept.pop_back() {
        if is_silent(&mut connection) {
            return Some(connection);
        }
    }
    None
}

/// Whether nothing has come, not even the end: what comes without a request is no answer.
fn is_silent(connection: &mut Connection) -> bool {
    let mut context = Context::from_waker(std::task::Waker::noop());
    let read = std::pin::pin!(connection.source.read());
    read.poll(&mut context).is_pending()
}

/// Keeps a connection for the next request.
pub fn keep(site: &Arc<Site>, worker: usize, mut connection: Connection) {
    connection.is_used = true;
    let mut pool = site.live.pools[worker]
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if pool.kept.len() == MOST_KEPT {
        pool.kept.pop_front();
    }
    pool.kept
        .push_back((Instant::now() + site.idle(), connection));
    if !std::mem::replace(&mut pool.is_watched, true) {
        tokio::spawn(close_idle(site.clone(), worker));
    }
}

/// Closes what has waited for too long: an open connection keeps a site awake.
async fn close_idle(site: Arc<Site>, worker: usize) {
    loop {
        let next = {
            let pool = &site.live.pools[worker];
            let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            while pool.kept.front().is_some_and(|(until, _)| *until <= now) {
                pool.kept.pop_front();
            }
            match pool.kept.front() {
                Some((until, _)) => *until,
                None => {
                    pool.is_watched = false;
                    return;
                }
            }
        };
        sleep_until(next).await;
    }
}
