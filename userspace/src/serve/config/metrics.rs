//! Where the metrics of a configuration are read.

use std::net::Ipv4Addr;

use serde::Deserialize;

use super::wanted;
use crate::listener::{Listener, Wanted};

/// The metrics of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// PORT (of 127.0.0.1), ADDRESS:PORT, or the path of a Unix socket.
    #[serde(deserialize_with = "wanted")]
    listen: Wanted,
}

impl Metrics {
    pub fn listener(&self) -> Listener {
        match &self.listen {
            Wanted::Exactly(listener) => listener.clone(),
            Wanted::Port(port) => Listener::Tcp {
                address: (Ipv4Addr::LOCALHOST, *port).into(),
            },
        }
    }
}
