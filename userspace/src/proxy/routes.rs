//! Which site a request is for: by the most exact host, then by the longest path.

use std::{borrow::Cow, collections::HashMap, net::IpAddr};

use super::plan::{Health, Route};

/// Something for each host: for its name, for all names below another, or for all.
#[derive(Debug)]
pub struct ByHost<T> {
    exact: HashMap<String, T>,
    /// By the name below which they are, without the dot.
    below: HashMap<String, T>,
    any: Option<T>,
}

impl<T> Default for ByHost<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            below: HashMap::new(),
            any: None,
        }
    }
}

impl<T: Default> ByHost<T> {
    /// What is kept for a host, or for all of a pattern like `*.example.org`.
    pub fn entry(&mut self, pattern: &str) -> &mut T {
        let pattern = pattern.trim_end_matches('.').to_ascii_lowercase();
        match pattern.strip_prefix("*.") {
            Some(parent) => self.below.entry(parent.to_owned()).or_default(),
            None => self.exact.entry(pattern).or_default(),
        }
    }

    /// What is kept for all.
    pub fn any(&mut self) -> &mut T {
        self.any.get_or_insert_default()
    }
}

impl<T> ByHost<T> {
    /// All that a host has, the most exact first. The host is as [`host_name`] makes it.
    pub fn matches<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a T> {
        let parents = std::iter::successors(Some(host), |rest| Some(rest.split_once('.')?.1));
        let below = parents.skip(1).filter_map(|parent| self.below.get(parent));
        self.exact
            .get(host)
            .into_iter()
            .chain(below)
            .chain(&self.any)
    }
}

/// The name in a `Host` field: without the port and a last dot, in small letters. None if it is none.
pub fn host_name(field: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(field).ok()?;
    let name = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            is_port(port).then_some(address)?
        }
        None => match text.split_once(':') {
            Some((name, _)) => is_port(&text[name.len()..]).then_some(name)?,
            None => text,
        },
    };
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%~".contains(&byte);
    if !name.bytes().all(is_good) {
        return None;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    Some(match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => name.to_ascii_lowercase().into(),
        false => name.into(),
    })
}

/// Whether this is nothing, or a colon and a number.
fn is_port(text: &str) -> bool {
    match text.strip_prefix(':') {
        Some(port) => port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()),
        None => text.is_empty(),
    }
}

/// What the requests below a path are for.
#[derive(Debug)]
struct Below<S> {
    path: String,
    site: S,
    health: Health,
}

/// All routes. `S` is what stands for a site.
#[derive(Debug)]
pub struct Routes<S>(ByHost<Vec<Below<S>>>);

/// Where a request goes.
#[derive(Debug, PartialEq)]
pub struct Found<'a, S> {
    pub site: &'a S,
    /// It asks for the health only.
    pub is_health: bool,
}

impl<S: Clone> Routes<S> {
    /// Takes the routes, each with its site.
    pub fn new<'a>(routes: impl IntoIterator<Item = (&'a Route, S)>) -> Self {
        let mut by_host = ByHost::<Vec<Below<S>>>::default();
        for (route, site) in routes {
            let below = || Below {
                path: route.path.trim_end_matches('/').to_owned(),
                site: site.clone(),
                health: route.health.clone(),
            };
            if route.hosts.is_empty() {
                insert(by_host.any(), below());
            }
            for host in &route.hosts {
                insert(by_host.entry(host), below());
            }
        }
        Self(by_host)
    }

    /// Finds the site of a request. The target is a path, with a query or without.
    pub fn find<'a>(
        &'a self,
        host: &'a str,
        target: &str,
        peer: Option<IpAddr>,
    ) -> Option<Found<'a, S>> {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let is_below = |below: &&Below<S>| {
            let rest = path.strip_prefix(&below.path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest == "*")
        };
        let mut all = self.0.matches(host).flatten();
        let below = all.find(is_below)?;
        let is_peer = |peer| below.health.peers.iter().any(|of| of.contains(peer));
        Some(Found {
            site: &below.site,
            is_health: below.health.path.as_deref() == Some(path) || peer.is_some_and(is_peer),
        })
    }
}

/// Keeps the longest paths first; of equal ones the first counts.
fn insert<S>(list: &mut Vec<Below<S>>, below: Below<S>) {
    let place = list.partition_point(|other| other.path.len() >= below.path.len());
    list.insert(place, below);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(hosts: &[&str], path: &str) -> Route {
        Route {
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            path: path.to_owned(),
            site: String::new(),
            health: Health::default(),
        }
    }

    #[test]
    fn the_more_exact_host_counts_then_the_longest_path() {
        let mut routes = [
            route(&["example.org", "www.example.org"], "/"),
            route(&["example.org"], "/shop/"),
            route(&["*.example.org"], "/"),
            route(&["*.b.example.org"], "/x"),
            route(&[], "/"),
        ];
        routes[1].health.path = Some("/shop/up".to_owned());
        routes[1].health.peers = vec!["192.0.2.0/24".parse().unwrap()];
        let routes = Routes::new(routes.iter().zip(0..));
        let site = |host: &str, target: &str| *routes.find(host, target, None).unwrap().site;
        assert_eq!(site("example.org", "/"), 0);
        assert_eq!(site("example.org", "/shop"), 1);
        assert_eq!(site("example.org", "/shop?a=/b"), 1);
        assert_eq!(site("example.org", "/shop/a"), 1);
        assert_eq!(site("example.org", "/shopping"), 0);
        assert_eq!(site("a.example.org", "/shop"), 2);
        assert_eq!(site("a.b.example.org", "/x/y"), 3);
        assert_eq!(site("a.b.example.org", "/y"), 2);
        assert_eq!(site("b.example.org", "/x"), 2);
        assert_eq!(site("", "/"), 4);
        assert_eq!(site("other", "*"), 4);
        let is_health = |target: &str, peer: Option<&str>| {
            let peer = peer.map(|peer| peer.parse().unwrap());
            routes.find("example.org", target, peer).unwrap().is_health
        };
        assert!(is_health("/shop/up?now", None) && !is_health("/shop/upper", None));
        assert!(is_health("/shop", Some("192.0.2.1")) && !is_health("/", Some("192.0.2.1")));
    }

    #[test]
    fn without_a_route_nothing_is_found() {
        let routes = Routes::new([(&route(&["a"], "/x"), ())]);
        assert_eq!(routes.find("a", "/", None), None);
        assert_eq!(routes.find("b", "/x", None), None);
    }

    #[test]
    fn names_of_hosts_are_all_alike() {
        let name = |text: &str| host_name(text.as_bytes()).map(Cow::into_owned);
        assert_eq!(name("Example.ORG.:8080").as_deref(), Some("example.org"));
        assert_eq!(name("[::1]:80").as_deref(), Some("::1"));
        assert_eq!(name("").as_deref(), Some(""));
        for bad in [
            "a b", "a@b", "a/b", "a:b", "a:1:2", "[::1", "[::1]x", "a\u{e9}", "a:123456",
        ] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }
}
