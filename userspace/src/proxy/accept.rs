//! Connections of clients: accepted in one place, where they are counted, and served by the worker that
//! has the fewest.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with, sockopt};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::{
    client::{Client, Entrance, Worker, milliseconds},
    hello::{self, Hello},
    http1, http2,
    prefixed::Prefixed,
    record::Record,
    routes::host_name,
    stream::{Sink, Source, tunnel},
    upstream,
};
use crate::sys;

/// How long to wait when the process has no descriptors left.
const BREATH: Duration = Duration::from_millis(10);

/// After how long without a byte the kernel asks whether a client is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A connection on its way to a worker.
#[derive(Debug)]
pub struct Accepted {
    socket: OwnedFd,
    peer: SocketAddr,
    entrance: Arc<Entrance>,
    stop: watch::Receiver<bool>,
    /// Given back when the connection ends.
    _place: OwnedSemaphorePermit,
}

/// A listening socket that is accepted from.
pub struct Door {
    pub entrance: Arc<Mutex<Arc<Entrance>>>,
    /// Says that its connections should end; so does dropping this.
    pub stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
        self.stop.send_replace(true);
    }
}

impl Door {
    /// Begins to accept.
    ///
    /// # Errors
    /// If the socket cannot be watched.
    pub fn open(
        socket: OwnedFd,
        entrance: Entrance,
        places: Arc<Semaphore>,
        workers: Arc<[Arc<Worker>]>,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let socket = sys::readable(socket)?;
        let (stop, stopped) = watch::channel(false);
        let entrance = Arc::new(Mutex::new(Arc::new(entrance)));
        let current = entrance.clone();
        let task = tokio::spawn(async move {
            loop {
                if places.available_permits() == 0 {
                    // Who has nothing to ask makes room.
                    workers
                        .iter()
                        .for_each(|worker| worker.crowded.notify_one());
                }
                // At the limit the rest waits in the kernel.
                let Ok(place) = places.clone().acquire_owned().await else {
                    return;
                };
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let accept = |socket: &OwnedFd| Ok(acceptfrom_with(socket, flags)?);
                let accepted = socket.async_io(tokio::io::Interest::READABLE, accept).await;
                let (socket, peer) = match accepted {
                    Ok((socket, Some(peer))) => (socket, peer),
                    // It went before it was accepted.
                    Ok((_, None)) => continue,
                    Err(_) => {
                        tokio::time::sleep(BREATH).await;
                        continue;
                    }
                };
                let Some(peer) = address(&peer) else { continue };
                let entrance = current
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let accepted = Accepted {
                    socket,
                    peer,
                    entrance,
                    stop: stopped.clone(),
                    _place: place,
                };
                let by_load = |worker: &&Arc<Worker>| worker.connections.load(Relaxed);
                let worker = workers.iter().min_by_key(by_load);
                let worker = worker.expect("there is a worker");
                worker.connections.fetch_add(1, Relaxed);
                if worker.accepted.send(accepted).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            entrance,
            stop,
            task,
        })
    }
}

fn address(peer: &SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(peer.clone()).ok()
}

/// What a worker's thread does: serves all connections that it is given, until there are no more to come.
pub async fn serve(worker: Arc<Worker>, mut accepted: mpsc::UnboundedReceiver<Accepted>) {
    while let Some(connection) = accepted.recv().await {
        let counted = Counted(worker.clone());
        tokio::spawn(async move {
            // A client that does not keep to the protocol, or is gone, is told nothing more.
            let _ = serve_one(&counted.0, connection).await;
        });
    }
}

/// A connection among those of its worker, as long as it lasts.
struct Counted(Arc<Worker>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

async fn serve_one(worker: &Arc<Worker>, accepted: Accepted) -> io::Result<()> {
    let begun = Instant::now();
    let stream = std::net::TcpStream::from(accepted.socket);
    sockopt::set_tcp_nodelay(&stream, true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE)?;
    let stream = TcpStream::from_std(stream)?;
    let entrance = accepted.entrance;
    let mut client = Client {
        worker: worker.clone(),
        peer: accepted.peer,
        server_name: None,
        is_tls: entrance.tls.is_some(),
        stop: accepted.stop,
        entrance,
    };
    let deadline = begun + milliseconds(worker.active().limits.head_ms);
    let stream = match client.entrance.pass_through.is_some() {
        false => Prefixed::new(stream, Vec::new()),
        true => {
            let hello = timeout_at(deadline, read_hello(stream)).await??;
            match pass_through(&client, hello).await {
                Some(stream) => stream,
                None => return Ok(()),
            }
        }
    };
    let Some(tls) = &client.entrance.tls else {
        let (reader, writer) = stream.into_split();
        http1::serve(&client, reader, writer, begun).await;
        return Ok(());
    };
    let shake_hands = TlsAcceptor::from(tls.config.clone()).accept(stream);
    let stream = timeout_at(deadline, shake_hands).await??;
    let (_, session) = stream.get_ref();
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    client.server_name = session.server_name().map(str::to_ascii_lowercase);
    if is_http2 {
        http2::serve(client, stream).await;
    } else {
        let (reader, writer) = tokio::io::split(stream);
        http1::serve(&client, reader, writer, begun).await;
    }
    Ok(())
}

/// The first bytes of a connection, and the name in them.
struct Greeted {
    stream: TcpStream,
    bytes: Vec<u8>,
    name: Option<String>,
}

async fn read_hello(mut stream: TcpStream) -> io::Result<Greeted> {
    let mut bytes = Vec::with_capacity(2 << 10);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match hello::parse(&bytes) {
            Hello::Partial => {}
            Hello::Whole(name) => {
                return Ok(Greeted {
                    stream,
                    bytes,
                    name,
                });
            }
            Hello::Bad => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Forwards a connection whose name is for a site that speaks TLS itself; all others come back.
async fn pass_through(client: &Client, greeted: Greeted) -> Option<Prefixed> {
    let name = greeted.name.as_deref().unwrap_or_default();
    let name = host_name(name.as_bytes())?;
    let sites = client.entrance.pass_through.as_ref()?;
    let Some(site) = sites.matches(&name).flatten().next() else {
        return Some(Prefixed::new(greeted.stream, greeted.bytes));
    };
    let active = client.worker.active();
    let mut record: Record = client.record(&active, "", &name, "");
    let until = Instant::now() + site.first_byte_timeout();
    record.admit(site).ok()?;
    let mut far = upstream::connect(site, until, active.limits.head_bytes)
        .await
        .ok()?;
    // Whoever waits for a handshake is not waiting for an answer.
    record.note_first_byte();
    record.set_status(101);
    let (reader, writer) = Prefixed::new(greeted.stream, greeted.bytes).into_split();
    let mut near = (
        Source::new(reader, active.limits.head_bytes),
        Sink::new(writer),
    );
    let _ = tunnel(
        (&mut near.0, &mut near.1),
        (&mut far.source, &mut far.sink),
        |len| record.count_in(len),
        |len| record.count_out(len),
    )
    .await;
    None
}
