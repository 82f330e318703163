//! What a connection of a client has with it: who it is, by which listener it came, and the plan in force.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc, watch};

use super::{
    accept::Accepted,
    fields::Origin,
    plan::Limits,
    record::{Asked, Record},
    routes::{ByHost, Routes},
    site::Site,
    tls::Tls,
    upstream::Asker,
};
use crate::report::access::Log;

/// A plan in force.
#[derive(Debug)]
pub struct Active {
    pub routes: Routes<Arc<Site>>,
    pub limits: Limits,
    pub log: Option<Arc<Log>>,
}

/// A thread with connections of its own, from their first byte to their last, and with connections of its
/// own to the sites: nothing on the way of a request waits for another thread.
#[derive(Debug)]
pub struct Worker {
    pub number: usize,
    active: Mutex<Arc<Active>>,
    pub connections: AtomicUsize,
    pub accepted: mpsc::UnboundedSender<Accepted>,
    /// Ends the connection that has been without a request for longest.
    pub crowded: Notify,
    next_id: AtomicU64,
}

impl Worker {
    pub fn new(
        number: usize,
        active: Arc<Active>,
        accepted: mpsc::UnboundedSender<Accepted>,
        seed: u64,
    ) -> Self {
        Self {
            number,
            active: Mutex::new(active),
            connections: AtomicUsize::new(0),
            accepted,
            crowded: Notify::new(),
            next_id: AtomicU64::new(seed),
        }
    }

    pub fn active(&self) -> Arc<Active> {
        self.active
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set_active(&self, active: Arc<Active>) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = active;
    }

    /// An id that no other request has, and that does not tell how many there were (splitmix64).
    fn new_id(&self) -> u64 {
        let mut id = self.next_id.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        id ^ (id >> 31)
    }
}

/// What clients connect to, under one plan.
#[derive(Debug, Default)]
pub struct Entrance {
    pub tls: Option<Tls>,
    pub pass_through: Option<ByHost<Option<Arc<Site>>>>,
}

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    pub worker: Arc<Worker>,
    pub entrance: Arc<Entrance>,
    pub peer: SocketAddr,
    /// The name that was asked for with TLS.
    pub server_name: Option<String>,
    pub is_tls: bool,
    /// True when the connection should end with the request that it is at.
    pub stop: watch::Receiver<bool>,
}

impl Client {
    pub fn origin(&self) -> Origin {
        Origin {
            peer: self.peer.ip().to_canonical(),
            is_tls: self.is_tls,
        }
    }

    pub fn asker(&self, limits: &Limits) -> Asker {
        Asker {
            worker: self.worker.number,
            buffer: limits.head_bytes,
        }
    }

    pub fn record(&self, active: &Active, method: &str, host: &str, path: &str) -> Record {
        let log = active.log.as_ref().map(|log| {
            let asked = Asked {
                method: method.to_owned(),
                host: host.to_owned(),
                path: path.to_owned(),
                peer: self.peer,
            };
            (log.clone(), asked)
        });
        Record::new(self.worker.new_id(), log)
    }

    /// Whether a request for a host came by a connection whose certificate is not for it, while there is
    /// one that is (RFC 9110, 15.5.20).
    pub fn is_misdirected(&self, host: &str) -> bool {
        match (&self.entrance.tls, &self.server_name) {
            (Some(tls), Some(name)) => tls.place(name) != tls.place(host),
            _ => false,
        }
    }

    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits until the connection should end.
    pub async fn stopped(&self) {
        let mut stop = self.stop.clone();
        if stop.wait_for(|stop| *stop).await.is_err() {
            // Whoever would say so is gone, and so is the whole process soon.
            std::future::pending().await
        }
    }
}

pub fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number)
}
