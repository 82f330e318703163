//! What the gateway and the proxy tell each other: one JSON object a line, over a Unix stream socket.
//! Both sides are one program, so that neither ever meets a version of this that it does not know.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// What the gateway has the proxy do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Listening sockets come along, one for each number; plans name them by it, and it is never given
    /// to another. At most [`MOST_SOCKETS`] at a time.
    Sockets { numbers: Vec<u32> },
    /// What to do from now on. What is the same as before goes on; listeners that are gone accept no
    /// more, and their connections end after the request that they are at.
    Plan(Box<Plan>),
    /// How a site is; all are ready at first.
    State { site: String, state: State },
    /// Asks for [`Notice::Stats`].
    Stats,
    /// Accept no more, finish what is in flight within this time, and exit. The end of the control
    /// socket means the same, and so do SIGTERM and SIGINT, with [`Limits::drain_ms`].
    Drain { limit_ms: u64 },
}

/// How many descriptors one message may bring; the kernel's limit is 253.
pub const MOST_SOCKETS: usize = 128;

/// What the proxy tells the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Notice {
    /// The plan is in force: all its listeners are accepted from.
    Ready,
    /// The plan cannot be carried out; the one before stays in force.
    Refused { reason: String },
    /// The answer to [`Order::Stats`].
    Stats(Box<Stats>),
}

/// The whole configuration of the proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub listeners: Vec<Listener>,
    pub routes: Vec<Route>,
    pub sites: BTreeMap<String, Site>,
    #[serde(default)]
    pub limits: Limits,
    /// Writes a line of JSON for each request to standard output.
    #[serde(default)]
    pub access_log: bool,
}

/// A socket that clients connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its number in [`Order::Sockets`].
    pub socket: u32,
    /// Speaks TLS if there are any. The first is for clients that name no server, or an unknown one.
    #[serde(default)]
    pub tls: Vec<Certificate>,
    /// What TLS of these hosts is forwarded as it is.
    #[serde(default)]
    pub pass_through: Vec<PassThrough>,
}

/// A certificate with its key. It serves the names that are in it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub chain_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is a secret.
        formatter
            .debug_struct("Certificate")
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassThrough {
    /// Names, or `*.` and a name for all below it; none for all.
    pub hosts: Vec<String>,
    pub site: String,
}

/// Which requests are for a site. Of several that match, the one with the more exact host is taken,
/// then the one with the longest path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Names, or `*.` and a name for all below it; none for all.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// `/shop` is that, and all below it.
    #[serde(default = "root")]
    pub path: String,
    pub site: String,
    #[serde(default)]
    pub health: Health,
}

fn root() -> String {
    "/".to_owned()
}

/// Which requests the proxy answers itself, so that asking for its health wakes no site: those for the
/// path, and all from the peers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    pub peers: Vec<Network>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    pub upstream: Upstream,
    /// How many requests may wait for their answer to begin; more are refused with 503.
    pub max_in_flight_waiting: u32,
    /// How long a connection to the site is kept without a request.
    pub idle_connection_ms: u64,
    /// How long a request waits for its answer to begin, the waking of the site included.
    pub first_byte_timeout_ms: u64,
}

/// Where a site listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub enum State {
    Ready,
    /// It is being brought up, by the wake with this id.
    Waking {
        wake: String,
    },
    /// It does not come up; it is tried again in so many seconds.
    Failed {
        retry_after_s: u32,
    },
}

/// Bounds to what clients can make the proxy hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of clients, in all. More wait in the kernel's queue.
    pub connections: usize,
    /// The longest head of a request, or of an answer.
    pub head_bytes: usize,
    /// How long a client may take to send the head of a request, or to shake hands.
    pub head_ms: u64,
    /// How long a connection of a client is kept without a request.
    pub idle_ms: u64,
    /// How long a client may neither send what it has announced nor take what it has asked for.
    pub stall_ms: u64,
    /// How long a drain may take that the gateway has not ordered.
    pub drain_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            head_bytes: 16 << 10,
            head_ms: 10_000,
            idle_ms: 60_000,
            stall_ms: 60_000,
            drain_ms: 30_000,
        }
    }
}

/// What was done since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    pub connections: u64,
    /// Lines of the access log that were dropped, as nobody took them.
    pub log_lines_lost: u64,
    pub sites: BTreeMap<String, SiteStats>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteStats {
    /// Answers of 1xx (upgrades), 2xx, 3xx, 4xx and 5xx; 499 counts requests whose client went away.
    pub answers: [u64; 5],
    /// Requests that were answered with 503 here, as the site failed or too many waited.
    pub refused: u64,
    /// Requests and tunnels.
    pub in_flight: u64,
    /// Of these, how many wait for their answer to begin.
    pub waiting: u64,
    /// Bytes of bodies from clients, and to them.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Time from a request to the first byte of its answer: how many took less than
    /// [`bucket_us`] of their place, and not less than that of the one before.
    pub first_byte: [u64; BUCKETS],
    /// The sum of these times, in µs.
    pub first_byte_us: u64,
}

/// How many buckets the histogram of times has; the last is for all that took longer.
pub const BUCKETS: usize = 20;

/// The bound of a bucket, in µs: 64 µs, and twice the one before.
pub fn bucket_us(place: usize) -> u64 {
    64 << place
}

/// Addresses that have their first bits in common: `192.0.2.0/24`, or one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address nor a network like 192.0.2.0/24")]
pub struct NoNetwork(String);

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        let common = match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u32::from(own) ^ u32::from(other)).leading_zeros()
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (u128::from(own) ^ u128::from(other)).leading_zeros()
            }
            _ => return false,
        };
        common >= u32::from(self.bits)
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let no = || NoNetwork(text.to_owned());
        let (address, bits) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| no())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            "" if !text.contains('/') => most,
            bits => bits.parse().map_err(|_| no())?,
        };
        match bits <= most {
            true => Ok(Self { address, bits }),
            false => Err(no()),
        }
    }
}

impl TryFrom<String> for Network {
    type Error = NoNetwork;

    fn try_from(text: String) -> Result<Self, NoNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        format!("{}/{}", network.address, network.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_the_addresses_that_begin_alike() {
        let has = |network: &str, address: &str| {
            let network: Network = network.parse().unwrap();
            network.contains(address.parse().unwrap())
        };
        assert!(has("192.0.2.0/24", "192.0.2.77"));
        assert!(has("192.0.2.0/24", "::ffff:192.0.2.77"));
        assert!(!has("192.0.2.0/24", "192.0.3.1"));
        assert!(has("0.0.0.0/0", "203.0.113.9") && !has("0.0.0.0/0", "::1"));
        assert!(has("::1", "::1") && !has("::1", "::2"));
        assert!(
            has("2001:db8::/33", "2001:db8:7fff::") && !has("2001:db8::/33", "2001:db8:8000::")
        );
        for bad in ["", "192.0.2.0/33", "::/129", "192.0.2.1/", "host/8", "10/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_come_back_as_they_were_and_unknown_keys_are_refused() {
        let text = r#"{"type":"plan","listeners":[{"socket":1}],"routes":[{"site":"a"}],
            "sites":{"a":{"upstream":{"tcp":"127.0.0.1:1"},"max_in_flight_waiting":1,
            "idle_connection_ms":1,"first_byte_timeout_ms":1}}}"#;
        let order: Order = serde_json::from_str(text).unwrap();
        let written = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&written).unwrap(), order);
        let Order::Plan(plan) = &order else {
            panic!("{order:?}")
        };
        assert_eq!(plan.routes[0].path, "/");
        let unknown = text.replace("\"socket\":1", "\"socket\":1,\"sockets\":2");
        let error = serde_json::from_str::<Order>(&unknown).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `sockets`"),
            "{error}"
        );
    }
}
