//! One request from its head to its end: counted for its site and told in the access log, however it ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime},
};

use super::site::{InFlight, Site};
use crate::report::access::{Line, Log};

/// What a request is recorded as whose client went away before an answer, as nginx does.
const CLIENT_CLOSED: u16 = 499;

/// A request.
#[derive(Debug)]
pub struct Record {
    pub id: u64,
    pub begun: Instant,
    status: AtomicU16,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    in_flight: Option<InFlight>,
    /// None if nobody wants to know.
    log: Option<(Arc<Log>, Asked)>,
}

/// What was asked for, and by whom.
#[derive(Debug)]
pub struct Asked {
    pub method: String,
    pub host: String,
    pub path: String,
    pub peer: SocketAddr,
}

impl Record {
    pub fn new(id: u64, log: Option<(Arc<Log>, Asked)>) -> Self {
        Self {
            id,
            begun: Instant::now(),
            status: AtomicU16::new(CLIENT_CLOSED),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            in_flight: None,
            log,
        }
    }

    /// Lets the request in at a site.
    ///
    /// # Errors
    /// See [`Site::admit`].
    pub fn admit(&mut self, site: &Arc<Site>) -> Result<(), u32> {
        self.in_flight = Some(site.admit(self.begun)?);
        Ok(())
    }

    /// The site has begun to answer.
    pub fn note_first_byte(&self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.note_first_byte();
        }
    }

    pub fn has_first_byte(&self) -> bool {
        let in_flight = self.in_flight.as_ref();
        in_flight.is_some_and(|in_flight| in_flight.first_byte().is_some())
    }

    /// What is answered.
    pub fn set_status(&self, status: u16) {
        self.status.store(status, Relaxed);
    }

    /// Bytes of the body from the client.
    pub fn count_in(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes of the body to the client.
    pub fn count_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let (status, bytes_in) = (self.status.load(Relaxed), self.bytes_in.load(Relaxed));
        let bytes_out = self.bytes_out.load(Relaxed);
        if let Some(in_flight) = &self.in_flight {
            let live = &in_flight.site().live;
            live.count_answer(status);
            live.bytes_in.fetch_add(bytes_in, Relaxed);
            live.bytes_out.fetch_add(bytes_out, Relaxed);
        }
        if let Some((log, asked)) = &self.log {
            let in_flight = self.in_flight.as_ref();
            let first_byte = in_flight.and_then(InFlight::first_byte);
            let wake = in_flight
                .zip(first_byte)
                .and_then(|(in_flight, first_byte)| {
                    let live = &in_flight.site().live;
                    live.wake(self.begun, self.begun + first_byte)
                });
            log.write(&Line {
                time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
                request_id: format!("{:016x}", self.id),
                site: in_flight.map(|in_flight| in_flight.site().name.as_str()),
                wake,
                peer: asked.peer,
                method: &asked.method,
                host: &asked.host,
                path: &asked.path,
                status,
                bytes_in,
                bytes_out,
                first_byte_ms: first_byte.map(|time| time.as_secs_f64() * 1e3),
                total_ms: self.begun.elapsed().as_secs_f64() * 1e3,
            });
        }
    }
}
