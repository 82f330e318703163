//! Asking servers that come up: one as `warmimg bench` asks, or many at once.

use std::{
    io,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use warmimg::{client::Client, target::Target};

/// How often each of many is tried: fifty clients that try more often would take part of the
/// processors that are measured.
const INTERVAL: Duration = Duration::from_millis(10);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Lets this process, but not those that it starts, run before ordinary ones, as the client of
/// `warmimg bench` does: it would otherwise wait for its turn.
pub fn run_first() {
    let pid = std::process::id().to_string();
    let status = std::process::Command::new("chrt")
        .args(["--rr", "--reset-on-fork", "--pid", "1", &pid])
        .status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("the client runs at ordinary priority");
    }
}

/// The time until the first byte of a server's first response.
pub async fn first_byte(port: u16, begun: Instant) -> Duration {
    let target: Target = format!("http://127.0.0.1:{port}/").parse().unwrap();
    let mut client = Client::new(&target).unwrap();
    let answer = client.ask_until_answered(begun).await.unwrap();
    assert_eq!(answer.status, Some(200), "port {port}");
    answer.first_byte - begun
}

/// The time until the first byte of each of many servers.
pub async fn first_bytes(ports: &[u16], begun: Instant) -> Vec<Duration> {
    let ask = |&port: &u16| tokio::spawn(first_byte_of_many(port, begun));
    let clients: Vec<_> = ports.iter().map(ask).collect();
    let mut times = Vec::new();
    for client in clients {
        times.push(client.await.unwrap());
    }
    times
}

async fn first_byte_of_many(port: u16, begun: Instant) -> Duration {
    loop {
        if let Ok(answered) = connect_and_ask(port).await {
            return answered.first_byte - begun;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A connection that has been answered on, and is still open.
pub struct Answered {
    pub stream: TcpStream,
    pub first_byte: Instant,
}

/// Asks once.
pub async fn connect_and_ask(port: u16) -> io::Result<Answered> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(REQUEST).await?;
    let mut bytes = [0; 1024];
    let len = stream.read(&mut bytes).await?;
    let first_byte = Instant::now();
    // HTTP/1.0 or 1.1.
    match bytes[..len].get(8..13) {
        Some(b" 200 ") => Ok(Answered { stream, first_byte }),
        _ => Err(io::Error::other("no answer, or not a good one")),
    }
}

/// Ports that nothing listens on, others each time. They are none of those that the kernel gives
/// to connections: a client that tries one of these would now and then be connected to itself.
pub fn ports(count: usize) -> Vec<u16> {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let next = || {
        let offset = std::process::id() as u16 % 6_000 + NEXT.fetch_add(1, Ordering::Relaxed);
        PORTS.start + offset % PORTS.len() as u16
    };
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(next)
        .filter(is_free)
        .take(count)
        .collect()
}
