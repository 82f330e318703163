//! The configuration file of `warmimg serve`, read and checked as a whole before anything is done.
//!
//! Invariant: a [`Config`] has no two sites on one listener.

mod limits;
mod metrics;
mod proxy;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

pub use self::{
    metrics::Metrics,
    proxy::{KeyPair, Proxy, Route, plan},
};
use crate::{
    cgroup::{Cpus, Memory},
    listener::Wanted,
    restore::MemoryMode,
    store::{self, StoreError},
};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}:{line}: {what}", .path.display())]
    Invalid {
        path: PathBuf,
        line: usize,
        what: String,
    },
    #[error("{}:{line}: a site cannot have this name", .path.display())]
    Name {
        path: PathBuf,
        line: usize,
        source: StoreError,
    },
    #[error("{}: nothing reaches {site}: it has no `listen`, and the proxy no route to it", .path.display())]
    Unreached { path: PathBuf, site: String },
    #[error("{} has no site", .path.display())]
    NoSite { path: PathBuf },
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub sites: BTreeMap<String, Site>,
    pub proxy: Option<Proxy>,
    pub metrics: Option<Metrics>,
}

/// A server that exists only while somebody asks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Site {
    /// Where the gateway listens for it: PORT, ADDRESS:PORT, or the path of a Unix socket. A port is
    /// at the address that the image's listener has. None if only a proxy is to reach it.
    #[serde(default, deserialize_with = "some_wanted")]
    pub listen: Option<Wanted>,
    /// The name of the image; that of the site, if none is given.
    #[serde(default)]
    pub image: Option<String>,
    /// Which listener of the image this takes the place of; the first, if none is given.
    #[serde(default, deserialize_with = "some_wanted")]
    pub listener: Option<Wanted>,
    /// How long it may be without a connection until it goes to sleep; `never`.
    #[serde(default = "idle", deserialize_with = "limit")]
    pub idle: Option<Duration>,
    /// How long an instance lives, at most; `never`.
    #[serde(default, deserialize_with = "limit")]
    pub max_life: Option<Duration>,
    /// How long it has to end by itself after SIGTERM. With none it is not asked: it is frozen, and
    /// killed if it has no connection then.
    #[serde(default, deserialize_with = "duration")]
    pub grace: Duration,
    /// How long an instance that another one has replaced may have connections.
    #[serde(default = "drain", deserialize_with = "duration")]
    pub drain: Duration,
    #[serde(default)]
    pub memory: MemoryMode,
    /// How many instances are kept restored and frozen while it sleeps.
    #[serde(default)]
    pub standby: u32,
    /// Whether its server is captured again in the background when its image is found to be stale, or to
    /// work no more.
    #[serde(default = "yes")]
    pub recapture: bool,
    /// How many instances there may be.
    #[serde(default = "one")]
    pub max: u32,
    /// From how many connections of each instance on there is to be another one.
    #[serde(default)]
    pub connections: Option<u32>,
    /// How much of the processors an instance may use.
    #[serde(default, deserialize_with = "limits::cpus")]
    pub cpus: Option<Cpus>,
    /// The same when it has more connections than that, and there are as many as there may be.
    #[serde(default, deserialize_with = "limits::cpus")]
    pub busy_cpus: Option<Cpus>,
    /// How much memory an instance may use.
    #[serde(default, deserialize_with = "limits::memory")]
    pub memory_limit: Option<Memory>,
}

impl Site {
    /// The name of its image.
    pub fn image<'a>(&'a self, name: &'a str) -> &'a str {
        self.image.as_deref().unwrap_or(name)
    }
}

fn idle() -> Option<Duration> {
    Some(Duration::from_secs(300))
}

fn drain() -> Duration {
    Duration::from_secs(30)
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    site: BTreeMap<Spanned<String>, Spanned<Site>>,
    #[serde(default)]
    proxy: Option<Spanned<Proxy>>,
    #[serde(default)]
    metrics: Option<Metrics>,
}

fn wanted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Wanted, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Place {
        Port(u16),
        Text(String),
    }
    let text = match Place::deserialize(deserializer)? {
        Place::Port(port) => port.to_string(),
        Place::Text(text) => text,
    };
    text.parse()
        .map_err(|error| D::Error::custom(format!("{text:?} is {error}")))
}

fn some_wanted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Wanted>, D::Error> {
    wanted(deserializer).map(Some)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        D::Error::custom(format!(
            "{text:?}: {error}; a time is such as 500ms, 30s or 1h"
        ))
    })
}

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    /// A time, or none.
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Limit(#[serde(deserialize_with = "duration")] Duration);
    let text = String::deserialize(deserializer)?;
    if text == "never" {
        return Ok(None);
    }
    Limit::deserialize(serde::de::value::StringDeserializer::new(text)).map(|limit| Some(limit.0))
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let line = |at: usize| text[..at.min(text.len())].lines().count().max(1);
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Invalid {
            path: path.into(),
            line: error.span().map_or(1, |span| line(span.start + 1)),
            what: error.message().to_owned(),
        })?;
        let mut sites: BTreeMap<String, Site> = BTreeMap::new();
        for (name, site) in file.site {
            let line = line(name.span().start + 1);
            let (name, site) = (name.into_inner(), site.into_inner());
            store::check_name(&name).map_err(|source| ConfigError::Name {
                path: path.into(),
                line,
                source,
            })?;
            let invalid = |what| ConfigError::Invalid {
                path: path.into(),
                line,
                what,
            };
            let same = |other: &Site| other.listen.is_some() && other.listen == site.listen;
            if let (Some(listen), Some((other, _))) =
                (&site.listen, sites.iter().find(|(_, other)| same(other)))
            {
                return Err(invalid(format!(
                    "{name} and {other} both listen on {listen}"
                )));
            }
            if let Some(complaint) = site.complaint() {
                return Err(invalid(format!("{name} {complaint}")));
            }
            sites.insert(name, site);
        }
        if sites.is_empty() {
            return Err(ConfigError::NoSite { path: path.into() });
        }
        let proxy = match file.proxy {
            None => None,
            Some(proxy) => {
                let line = line(proxy.span().start + 1);
                let proxy = proxy.into_inner();
                match proxy.complaint(&sites) {
                    None => Some(proxy),
                    Some(what) => {
                        return Err(ConfigError::Invalid {
                            path: path.into(),
                            line,
                            what,
                        });
                    }
                }
            }
        };
        let is_reached = |name: &String, site: &Site| {
            let mut routes = proxy.iter().flat_map(|proxy| &proxy.route);
            site.listen.is_some() || routes.any(|route| route.site == *name)
        };
        if let Some((name, _)) = sites.iter().find(|(name, site)| !is_reached(name, site)) {
            return Err(ConfigError::Unreached {
                path: path.into(),
                site: name.clone(),
            });
        }
        Ok(Self {
            sites,
            proxy,
            metrics: file.metrics,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("serve.toml"), text).map_err(|error| crate::doctor::chain(&error))
    }

    #[test]
    fn a_site_has_defaults_for_all_but_its_listener() {
        let config = parse("[site.shop]\nlisten = 8080\n").unwrap();
        let shop = &config.sites["shop"];
        assert_eq!(shop.listen, Some(Wanted::Port(8080)));
        assert_eq!(
            (shop.idle, shop.max_life),
            (Some(Duration::from_secs(300)), None)
        );
        assert_eq!((shop.grace, shop.max, shop.standby), (Duration::ZERO, 1, 0));
        let config = parse(
            "[site.shop]\nlisten = '/run/shop.sock'\nidle = 'never'\nmax-life = '1h'\n\
             grace = '500ms'\nmemory = 'copy'\ncpus = 0.5\nmemory-limit = '512M'\n",
        );
        let shop = &config.unwrap().sites["shop"];
        assert_eq!(
            (shop.idle, shop.max_life),
            (None, Some(Duration::from_secs(3600)))
        );
        assert_eq!(shop.grace, Duration::from_millis(500));
        let limits = shop.limits(false).unwrap();
        assert_eq!(limits.cpus, "0.5".parse().ok());
        assert_eq!(limits.memory, Some(Memory(Some(512 << 20))));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, complaint) in [
            ("", "serve.toml has no site"),
            ("[site.a]\n", "serve.toml: nothing reaches a"),
            (
                "[site.a]\n[proxy]\nlisten = ['0.0.0.0:80']\n[[proxy.route]]\nsite = 'b'\n",
                "serve.toml:2: the proxy has a route to b, which is no site",
            ),
            (
                "[site.a]\nlisten = 80\nidel = '1s'\n",
                "serve.toml:3: unknown field `idel`, expected one of `listen`, `image`",
            ),
            (
                "[site.a]\nlisten = 80\n\n[site.b]\nlisten = 80\n",
                "serve.toml:4: b and a both listen on port 80",
            ),
            (
                "[site.a]\nlisten = 'localhost:80'\n",
                "serve.toml:2: \"localhost:80\" is not a port",
            ),
            (
                "[site.a]\nlisten = 80\nidle = 'soon'\n",
                "serve.toml:3: \"soon\": expected number",
            ),
            (
                "[site.'a/b']\nlisten = 80\n",
                "serve.toml:1: a site cannot have this name",
            ),
            (
                "[site.a]\nlisten = 80\nmax = 0\n",
                "serve.toml:1: a may have no instance",
            ),
            (
                "[site.a]\nlisten = 80\ncpus = 'many'\n",
                "serve.toml:3: \"many\": not a number of processors",
            ),
            (
                "[site.a]\nlisten = 80\ncpus = 1\nbusy-cpus = 2\n",
                "serve.toml:1: a has `busy-cpus`, which needs `cpus` and `connections`",
            ),
            ("[site.a\n", "serve.toml:1: "),
        ] {
            let found = parse(text).unwrap_err();
            assert!(found.starts_with(complaint), "{text:?}: {found}");
        }
    }
}
