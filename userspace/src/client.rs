//! A client that sees a server come up from outside, and asks it.
//!
//! It tries to connect again and again, at intervals that grow with the time that has passed:
//! fine enough for a fast start, and cheap over a slow one. The pauses are by timerfd_create(2),
//! whose precision is that of the kernel's clock; the runtime's own timers are in milliseconds.

use std::{
    cell::Cell,
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Uri, body::Bytes, client::conn::http1, header, http::HeaderValue};
use hyper_util::rt::TokioIo;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, join,
        split,
    },
    net::{TcpStream, UnixStream},
};

use crate::{
    listener::is_abstract,
    sys,
    target::{self, Place, Protocol, Target},
};

/// The shortest pause between two tries.
const SHORTEST: Duration = Duration::from_micros(50);

/// The longest.
const LONGEST: Duration = Duration::from_millis(5);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("it took the connection, and has not answered")]
    Silent,
    #[error("the connection was closed before an answer")]
    Closed,
    #[error("what came back is not HTTP")]
    NotHttp(#[source] hyper::Error),
    #[error("cannot wait")]
    Wait(#[source] io::Error),
}

/// How a server answered.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub connected: Instant,
    pub first_byte: Instant,
    /// When the whole response was there.
    pub end: Instant,
    /// The status of HTTP.
    pub status: Option<u16>,
    /// By how much earlier, at most, the connection might have been made.
    pub resolution: Duration,
}

/// Asks a target until it answers.
pub struct Client<'a> {
    target: &'a Target,
    timer: tokio::io::unix::AsyncFd<OwnedFd>,
    /// Why the last try failed.
    pub last_error: Option<AskError>,
}

impl<'a> Client<'a> {
    /// # Errors
    /// [`AskError::Wait`] if there is no timer.
    pub fn new(target: &'a Target) -> Result<Self, AskError> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags);
        let timer = timer.map_err(io::Error::from).and_then(sys::readable);
        Ok(Self {
            target,
            timer: timer.map_err(AskError::Wait)?,
            last_error: None,
        })
    }

    /// Asks until there is an answer. `begun` is when the server was started. Can be cancelled.
    ///
    /// # Errors
    /// [`AskError::NotHttp`], as trying again would not help, or [`AskError::Wait`].
    pub async fn ask_until_answered(&mut self, begun: Instant) -> Result<Answer, AskError> {
        self.ask(begun, |error| !matches!(error, AskError::NotHttp(_)))
            .await
    }

    /// Asks once there is a connection, and not again: what is asked for may have been done.
    ///
    /// # Errors
    /// All but [`AskError::Connect`].
    pub async fn ask_when_listening(&mut self, begun: Instant) -> Result<Answer, AskError> {
        self.ask(begun, |error| matches!(error, AskError::Connect(_)))
            .await
    }

    async fn ask(
        &mut self,
        begun: Instant,
        may_try_again: impl Fn(&AskError) -> bool,
    ) -> Result<Answer, AskError> {
        let mut connected_first = None;
        let mut last_try = begun;
        loop {
            let tried = Instant::now();
            match connect(self.target).await {
                Ok(stream) => {
                    let now = Instant::now();
                    self.last_error = Some(AskError::Silent);
                    let (connected, resolution) =
                        *connected_first.get_or_insert((now, now - last_try));
                    match ask(stream, &self.target.protocol).await {
                        Ok((first_byte, end, status)) => {
                            return Ok(Answer {
                                connected,
                                first_byte,
                                end,
                                status,
                                resolution,
                            });
                        }
                        Err(error) if !may_try_again(&error) => return Err(error),
                        Err(error) => self.last_error = Some(error),
                    }
                }
                Err(error) => self.last_error = Some(AskError::Connect(error)),
            }
            last_try = tried;
            self.pause(begun.elapsed()).await?;
        }
    }

    async fn pause(&self, passed: Duration) -> Result<(), AskError> {
        let pause = pause(passed);
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(pause.subsec_nanos()),
            },
        };
        rustix::time::timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &time)
            .map_err(|errno| AskError::Wait(errno.into()))?;
        let mut expirations = [0; 8];
        let expired = self.timer.async_io(tokio::io::Interest::READABLE, |timer| {
            Ok(rustix::io::read(timer, &mut expirations)?)
        });
        expired.await.map(drop).map_err(AskError::Wait)
    }
}

/// How long to wait for the next try: 5 % of the time that has passed, but no more than 0.2 ms
/// as long as that is at least 0.2 % of it. Tries more often than that take time of a processor that a
/// server with more than one thread needs.
fn pause(passed: Duration) -> Duration {
    let fine = (passed / 20).clamp(SHORTEST, Duration::from_micros(200));
    fine.max(passed / 500).min(LONGEST)
}

/// Whether something listens there, even if it takes no connection.
pub async fn is_taken(target: &Target) -> bool {
    const LIMIT: Duration = Duration::from_secs(1);
    match tokio::time::timeout(LIMIT, connect(target)).await {
        Ok(Ok(_)) | Err(_) => true,
        // The queue of a Unix socket is full.
        Ok(Err(error)) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// A connection, of either kind.
trait Connection: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Connection for T {}

async fn connect(target: &Target) -> io::Result<Box<dyn Connection>> {
    match &target.place {
        Place::Unix(path) if is_abstract(path) => {
            let name = &path.as_os_str().as_encoded_bytes()[1..];
            let name = OsString::from_vec([b"\0", name].concat());
            Ok(Box::new(UnixStream::connect(name).await?))
        }
        Place::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Place::Tcp(addresses) => {
            let stream = TcpStream::connect(&addresses[..]).await?;
            stream.set_nodelay(true)?;
            // The kernel may have given the connection the very port that it is for, and have
            // connected it to itself. Reset at once, for the server to find its port free.
            if stream.local_addr()? == stream.peer_addr()? {
                stream.set_zero_linger()?;
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(Box::new(stream))
        }
    }
}

/// Asks over a connection: the first byte, the end, and the status.
async fn ask(
    stream: Box<dyn Connection>,
    protocol: &Protocol,
) -> Result<(Instant, Instant, Option<u16>), AskError> {
    match protocol {
        Protocol::Raw { send } => ask_raw(stream, send).await,
        Protocol::Http(request) => ask_http(stream, request, &Cell::new(None)).await,
    }
}

/// How long [`first_byte`] waits.
pub const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(1);

/// Asks a server that listens, and tells when the first byte of whatever it says was there.
///
/// # Errors
/// [`AskError::Silent`] if none came in time, or why none will come.
pub async fn first_byte(target: &Target) -> Result<Instant, AskError> {
    let first_byte = Cell::new(None);
    let exchange = async {
        let stream = connect(target).await.map_err(AskError::Connect)?;
        match &target.protocol {
            Protocol::Raw { send } => ask_raw(stream, send).await.map(|(first, ..)| first),
            Protocol::Http(request) => {
                let answered = ask_http(stream, request, &first_byte).await;
                answered.map(|(first, ..)| first)
            }
        }
    };
    let outcome = tokio::time::timeout(FIRST_BYTE_LIMIT, exchange).await;
    // It counts though the rest of the answer may be slow, or no HTTP.
    match (first_byte.get(), outcome) {
        (Some(first), _) | (None, Ok(Ok(first))) => Ok(first),
        (None, Ok(Err(error))) => Err(error),
        (None, Err(_)) => Err(AskError::Silent),
    }
}

async fn ask_raw(
    mut stream: Box<dyn Connection>,
    send: &[u8],
) -> Result<(Instant, Instant, Option<u16>), AskError> {
    let mut bytes = vec![0; 64 << 10];
    let exchange = async {
        stream.write_all(send).await?;
        stream.read(&mut bytes).await
    };
    match exchange.await {
        Ok(0) | Err(_) => Err(AskError::Closed),
        Ok(_) => {
            let now = Instant::now();
            Ok((now, now, None))
        }
    }
}

async fn ask_http(
    stream: Box<dyn Connection>,
    wanted: &target::Request,
    first_byte: &Cell<Option<Instant>>,
) -> Result<(Instant, Instant, Option<u16>), AskError> {
    let (stream, writer) = split(stream);
    let stamped = join(Stamped { stream, first_byte }, writer);
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stamped)).await?;
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = wanted.method.clone();
        *request.uri_mut() = Uri::from(wanted.path.clone());
        let agent = HeaderValue::from_static(concat!("warmimg/", env!("CARGO_PKG_VERSION")));
        let headers = request.headers_mut();
        headers.insert(header::HOST, wanted.host.clone());
        headers.insert(header::USER_AGENT, agent);
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        headers.extend(wanted.headers.iter().cloned());
        let answered = async {
            let mut response = sender.send_request(request).await?;
            while let Some(frame) = response.body_mut().frame().await {
                frame?;
            }
            Ok::<_, hyper::Error>(response.status().as_u16())
        };
        // The connection has to be driven; if it ends, the answer knows of it.
        let driven = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            status = answered => status,
            () = driven => unreachable!("it waits for ever"),
        }
    };
    let outcome = exchange.await;
    match (outcome, first_byte.get()) {
        (Ok(status), Some(first_byte)) => Ok((first_byte, Instant::now(), Some(status))),
        (Err(error), Some(_)) if error.is_parse() => Err(AskError::NotHttp(error)),
        _ => Err(AskError::Closed),
    }
}

/// What is read of a stream; remembers when the first byte was.
struct Stamped<'a> {
    stream: ReadHalf<Box<dyn Connection>>,
    first_byte: &'a Cell<Option<Instant>>,
}

impl AsyncRead for Stamped<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before && self.first_byte.get().is_none() {
            self.first_byte.set(Some(Instant::now()));
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_time_that_has_passed() {
        let us = |passed: u64| pause(Duration::from_micros(passed)).as_micros();
        let times = [0, 2_000, 20_000, 1_000_000, 60_000_000];
        assert_eq!(times.map(us), [50, 100, 200, 2_000, 5_000]);
    }

    #[tokio::test]
    async fn a_server_that_comes_up_later_is_seen() {
        let place = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = place.local_addr().unwrap();
        drop(place);
        let target: Target = format!("tcp://{address}").parse().unwrap();
        let target = target.sending(b"hello".to_vec());
        let begun = Instant::now();
        let server = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            // The first connection is lost, as by a server that starts anew.
            drop(listener.accept().await.unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        };
        let mut client = Client::new(&target).unwrap();
        let (answer, ()) = tokio::join!(client.ask_until_answered(begun), server);
        let answer = answer.unwrap();
        assert!(answer.connected - begun >= Duration::from_millis(20));
        assert!(answer.connected < answer.first_byte && answer.status.is_none());
    }
}
