//! The access log of the proxy: a line of JSON for each request, on standard output. Whoever reads it too
//! slowly misses lines, which are counted; no request waits for it.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use serde::Serialize;

/// How many lines may wait to be written.
const MOST_LINES: usize = 8192;

/// One request.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// When it ended (RFC 3339).
    pub time: String,
    /// The site gets it as `X-Request-Id`.
    pub request_id: String,
    pub site: Option<&'a str>,
    /// The wake that it waited for.
    pub wake: Option<String>,
    pub peer: SocketAddr,
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    /// 499 if the client went away before an answer.
    pub status: u16,
    /// Of the bodies.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// From the head of the request; none if no site was asked.
    pub first_byte_ms: Option<f64>,
    pub total_ms: f64,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    lines: mpsc::SyncSender<Vec<u8>>,
    lost: AtomicU64,
}

impl Log {
    /// Starts the thread that writes, as a pipe can be full.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start() -> io::Result<Self> {
        let (lines, waiting) = mpsc::sync_channel::<Vec<u8>>(MOST_LINES);
        let write = move || {
            while let Ok(mut text) = waiting.recv() {
                waiting.try_iter().for_each(|line| text.extend(line));
                if io::stdout().lock().write_all(&text).is_err() {
                    // Nobody reads it any more.
                    return;
                }
            }
        };
        let builder = thread::Builder::new().name("access-log".to_owned());
        builder.spawn(write)?;
        Ok(Self {
            lines,
            lost: AtomicU64::new(0),
        })
    }

    pub fn write(&self, line: &Line<'_>) {
        let Ok(mut text) = serde_json::to_vec(line) else {
            return;
        };
        text.push(b'\n');
        if self.lines.try_send(text).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// How many lines were not written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}
