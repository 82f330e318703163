//! The proxy of a configuration, and what it comes to as a plan for the proxy's process.

use std::{collections::BTreeMap, fs, io, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{Site, duration};
use crate::{
    listener::Listener,
    proxy::plan::{self, Certificate, Health, Network, PassThrough, Plan, Upstream},
};

/// Ports that several sites are behind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Proxy {
    /// Where it listens for HTTP.
    #[serde(default)]
    pub listen: Vec<SocketAddr>,
    /// Where it listens for HTTP by TLS.
    #[serde(default)]
    pub listen_tls: Vec<SocketAddr>,
    /// Those for TLS; the first is for clients that name no server, or an unknown one.
    #[serde(default)]
    pub certificates: Vec<KeyPair>,
    /// A line of JSON for each request.
    #[serde(default)]
    pub access_log: bool,
    /// How long a site may take to answer, its waking included.
    #[serde(default = "timeout", deserialize_with = "duration")]
    pub timeout: Duration,
    pub route: Vec<Route>,
}

impl Proxy {
    /// Where it listens, in the order of the listeners of its plan.
    pub fn doors(&self) -> impl Iterator<Item = SocketAddr> {
        self.listen.iter().chain(&self.listen_tls).copied()
    }

    /// What does not make sense about it.
    pub(super) fn complaint(&self, sites: &BTreeMap<String, Site>) -> Option<String> {
        if self.doors().next().is_none() {
            return Some(
                "the proxy listens nowhere: it has neither `listen` nor `listen-tls`".into(),
            );
        }
        if !self.listen_tls.is_empty() && self.certificates.is_empty() {
            return Some("the proxy needs `certificates` for `listen-tls`".into());
        }
        for (number, route) in self.route.iter().enumerate() {
            if !sites.contains_key(&route.site) {
                return Some(format!(
                    "the proxy has a route to {}, which is no site",
                    route.site
                ));
            }
            if route.pass_through && self.listen_tls.is_empty() {
                return Some(format!(
                    "`pass-through` to {} needs `listen-tls`",
                    route.site
                ));
            }
            let same = |other: &&Route| {
                (other.pass_through, &other.path) == (route.pass_through, &route.path)
                    && (other.hosts == route.hosts
                        || other.hosts.iter().any(|host| route.hosts.contains(host)))
            };
            if let Some(other) = self.route[..number].iter().find(same) {
                return Some(format!(
                    "the routes to {} and {} are for the same requests",
                    other.site, route.site
                ));
            }
        }
        None
    }
}

/// Where a certificate and its key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Which requests are for which site.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Route {
    pub site: String,
    /// Names, or `*.` and a name for all below it; none for all.
    #[serde(default)]
    pub hosts: Vec<String>,
    #[serde(default = "root")]
    pub path: String,
    /// TLS of these hosts is forwarded as it is.
    #[serde(default)]
    pub pass_through: bool,
    /// What the proxy answers itself, so that asking for its health wakes no site.
    #[serde(default)]
    pub health_path: Option<String>,
    #[serde(default)]
    pub health_peers: Vec<Network>,
}

fn timeout() -> Duration {
    Duration::from_secs(60)
}

fn root() -> String {
    "/".to_owned()
}

/// How many requests of a site may wait for their answer to begin.
const MOST_WAITING: u32 = 1024;

/// How long a connection to a site is kept without a request, at most: it keeps the site awake.
const LONGEST_IDLE: Duration = Duration::from_secs(5);

/// What the proxy is to do. Its listeners have the numbers of [`Proxy::doors`].
///
/// # Errors
/// What cannot be read, and why.
pub fn plan(
    proxy: &Proxy,
    sites: &BTreeMap<String, Site>,
    upstreams: &BTreeMap<String, Listener>,
) -> Result<Plan, (PathBuf, io::Error)> {
    let (passed, routed): (Vec<_>, Vec<_>) =
        proxy.route.iter().partition(|route| route.pass_through);
    let read = |path: &PathBuf| fs::read_to_string(path).map_err(|error| (path.clone(), error));
    let certificates = proxy.certificates.iter().map(|pair| {
        Ok(Certificate {
            chain_pem: read(&pair.certificate)?,
            key_pem: read(&pair.key)?,
        })
    });
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>()?;
    let listeners = proxy.doors().enumerate().map(|(number, _)| {
        let is_tls = number >= proxy.listen.len();
        plan::Listener {
            socket: number as u32,
            tls: if is_tls { certificates.clone() } else { vec![] },
            pass_through: match is_tls {
                true => passed.iter().copied().map(passed_through).collect(),
                false => vec![],
            },
        }
    });
    let limit_ms = proxy.timeout.as_millis() as u64;
    let behind = |route: &Route| {
        let (name, site) = sites.get_key_value(&route.site)?;
        Some((name.clone(), behind(site, upstreams.get(name)?, limit_ms)))
    };
    Ok(Plan {
        listeners: listeners.collect(),
        sites: proxy.route.iter().filter_map(behind).collect(),
        routes: routed.into_iter().map(route).collect(),
        access_log: proxy.access_log,
        ..Plan::default()
    })
}

fn passed_through(route: &Route) -> PassThrough {
    PassThrough {
        hosts: route.hosts.clone(),
        site: route.site.clone(),
    }
}

fn route(route: &Route) -> plan::Route {
    plan::Route {
        hosts: route.hosts.clone(),
        path: route.path.clone(),
        site: route.site.clone(),
        health: Health {
            path: route.health_path.clone(),
            peers: route.health_peers.clone(),
        },
    }
}

fn behind(site: &Site, listener: &Listener, limit_ms: u64) -> plan::Site {
    let idle = site
        .idle
        .map_or(LONGEST_IDLE, |idle| (idle / 2).min(LONGEST_IDLE));
    plan::Site {
        upstream: match listener {
            Listener::Tcp { address } => Upstream::Tcp(*address),
            Listener::Unix { path } => Upstream::Unix(path.clone()),
        },
        max_in_flight_waiting: MOST_WAITING,
        idle_connection_ms: idle.as_millis() as u64,
        first_byte_timeout_ms: limit_ms,
    }
}
