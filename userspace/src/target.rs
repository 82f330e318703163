//! What a server is asked: an address with a way to speak to it.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use hyper::{
    Method, Uri,
    header::HeaderName,
    http::{HeaderValue, uri::PathAndQuery},
};

use serde::{Deserialize, Serialize};

use crate::{elsewhere::Elsewhere, listener::Listener};

/// Why a text is not a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{text:?} is none of http://HOST[:PORT][/PATH], tcp://HOST:PORT, unix:SOCKET[:/PATH]")]
    Form { text: String },
    #[error("{0:?} is not a path that can be asked for")]
    Path(String),
    #[error("cannot find the address of {host}")]
    Resolve { host: String, source: io::Error },
}

/// Where and how to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub place: Place,
    pub protocol: Protocol,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// All addresses of a name, of which one is enough.
    Tcp(Vec<SocketAddr>),
    Unix(PathBuf),
}

/// How to speak with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http(Request),
    /// These bytes, if any; whatever comes back is the response.
    Raw { send: Vec<u8> },
}

/// A request by HTTP, without a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub host: HeaderValue,
    pub path: PathAndQuery,
    pub method: Method,
    /// Beyond those that every request has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Request {
    fn get(host: HeaderValue, path: PathAndQuery) -> Self {
        Self {
            host,
            path,
            method: Method::GET,
            headers: vec![],
        }
    }
}

/// What is asked, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Target(Target),
    /// By HTTP where the server listens.
    Path(PathAndQuery),
}

impl Asked {
    /// What that is if the server is this one.
    pub fn of(&self, server: &Target) -> Target {
        match self {
            Self::Target(target) => target.clone(),
            Self::Path(path) => server.clone().with_path(path.clone()),
        }
    }
}

/// Parses a path, which begins with `/`, or a [`Target`].
impl FromStr for Asked {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.starts_with('/') {
            true => {
                let path = text.parse();
                path.map(Self::Path)
                    .map_err(|_| TargetError::Path(text.to_owned()))
            }
            false => text.parse().map(Self::Target),
        }
    }
}

impl Asked {
    /// What is asked if listeners are elsewhere.
    #[must_use]
    pub fn elsewhere(mut self, elsewhere: &Elsewhere) -> Self {
        if let Self::Target(target) = &mut self {
            match &mut target.place {
                Place::Tcp(addresses) => {
                    for address in addresses {
                        let asked = Listener::Tcp { address: *address };
                        if let Some(Listener::Tcp { address: new }) = elsewhere.address(&asked) {
                            *address = new;
                        }
                    }
                }
                Place::Unix(path) => {
                    let asked = Listener::Unix { path: path.clone() };
                    if let Some(Listener::Unix { path: new }) = elsewhere.address(&asked) {
                        *path = new;
                    }
                }
            }
        }
        self
    }
}

impl Target {
    /// Asks what listens here by HTTP. `folder` is that of the server.
    pub fn of_listener(listener: &Listener, folder: &Path) -> Self {
        let (place, host) = match listener {
            Listener::Tcp { address } => {
                let address = SocketAddr::new(reachable(address.ip()), address.port());
                (Place::Tcp(vec![address]), address.to_string())
            }
            Listener::Unix { path } => {
                let file = listener.file(folder).unwrap_or_else(|| path.clone());
                (Place::Unix(file), LOCALHOST.to_owned())
            }
        };
        let host = HeaderValue::from_str(&host).expect("an address is visible ASCII");
        let request = Request::get(host, PathAndQuery::from_static("/"));
        Self {
            place,
            protocol: Protocol::Http(request),
        }
    }

    /// Speaks with the same place by sending these bytes.
    pub fn sending(self, send: Vec<u8>) -> Self {
        let protocol = Protocol::Raw { send };
        Self { protocol, ..self }
    }

    /// The same server, asked for another path by HTTP.
    #[must_use]
    pub fn with_path(mut self, wanted: PathAndQuery) -> Self {
        if let Protocol::Http(request) = &mut self.protocol {
            request.path = wanted;
        }
        self
    }

    /// Whether it is asked by HTTP over TCP, as `http://` says.
    pub fn is_http_url(&self) -> bool {
        matches!(
            (&self.place, &self.protocol),
            (Place::Tcp(_), Protocol::Http(_))
        )
    }

    /// The addresses that a server would have to listen on.
    pub fn listeners(&self) -> Vec<Listener> {
        match &self.place {
            Place::Tcp(addresses) => addresses
                .iter()
                .map(|&address| Listener::Tcp { address })
                .collect(),
            Place::Unix(path) => vec![Listener::Unix { path: path.clone() }],
        }
    }
}

/// The status of HTTP that is expected; any from 200 to 399 if none is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExpectedStatus(pub Option<u16>);

impl ExpectedStatus {
    pub fn accepts(self, found: u16) -> bool {
        self.0
            .map_or((200..400).contains(&found), |wanted| wanted == found)
    }
}

impl fmt::Display for ExpectedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("200 to 399"),
            Some(status) => write!(f, "{status}"),
        }
    }
}

/// The host that is named to a server on a Unix socket.
const LOCALHOST: &str = "localhost";

/// An address to connect to for one that is bound to.
pub fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Parses `http://HOST[:PORT][/PATH]`, `tcp://HOST:PORT`, or `unix:SOCKET[:/PATH]`, which is HTTP.
impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let form = || TargetError::Form {
            text: text.to_owned(),
        };
        if let Some(rest) = text.strip_prefix("unix:") {
            let (socket, path) = rest.split_once(":/").unwrap_or((rest, ""));
            if !socket.starts_with(['/', '@']) {
                return Err(form());
            }
            let path = format!("/{path}").parse().map_err(|_| form())?;
            let request = Request::get(HeaderValue::from_static(LOCALHOST), path);
            return Ok(Self {
                place: Place::Unix(socket.into()),
                protocol: Protocol::Http(request),
            });
        }
        let uri: Uri = text.parse().map_err(|_| form())?;
        let authority = uri.authority().ok_or_else(form)?;
        let (host, port) = (authority.host(), authority.port_u16());
        // A port that is no number is none; a user is nothing that is sent.
        if port.is_none() && authority.as_str() != host || authority.as_str().contains('@') {
            return Err(form());
        }
        match (uri.scheme_str(), port) {
            (Some("http"), port) => Ok(Self {
                place: resolve(host, port.unwrap_or(80))?,
                protocol: Protocol::Http(Request::get(
                    HeaderValue::from_str(authority.as_str()).map_err(|_| form())?,
                    match (uri.path(), uri.query()) {
                        (path, None) => path.parse(),
                        (path, Some(query)) => format!("{path}?{query}").parse(),
                    }
                    .map_err(|_| form())?,
                )),
            }),
            (Some("tcp"), Some(port)) if matches!(uri.path(), "" | "/") => Ok(Self {
                place: resolve(host, port)?,
                protocol: Protocol::Raw { send: vec![] },
            }),
            _ => Err(form()),
        }
    }
}

fn resolve(host: &str, port: u16) -> Result<Place, TargetError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = (bare, port).to_socket_addrs();
    let addresses = addresses.map_err(|source| TargetError::Resolve {
        host: host.to_owned(),
        source,
    })?;
    Ok(Place::Tcp(addresses.collect()))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, &self.protocol) {
            (Place::Tcp(_), Protocol::Http(Request { host, path, .. })) => {
                write!(f, "http://{}{path}", host.to_str().unwrap_or_default())
            }
            (Place::Unix(socket), Protocol::Http(Request { path, .. })) => {
                write!(f, "unix:{}:{path}", socket.display())
            }
            (Place::Tcp(addresses), Protocol::Raw { .. }) => match addresses.first() {
                Some(address) => write!(f, "tcp://{address}"),
                None => f.write_str("tcp://"),
            },
            (Place::Unix(socket), Protocol::Raw { .. }) => write!(f, "unix:{}", socket.display()),
        }
    }
}

/// The bytes of a text in which `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH` stand for bytes.
///
/// # Errors
/// The escape that is none of these.
pub fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            bytes.extend(c.to_string().as_bytes());
            continue;
        }
        let escape = rest.next();
        bytes.push(match escape {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('\\') => b'\\',
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).map_err(|_| format!("\\x{digits}: no byte"))?
            }
            _ => return Err(format!("\\{}: unknown", escape.unwrap_or_default())),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown() {
        let shown = |text: &str| text.parse::<Target>().map(|target| target.to_string());
        for same in [
            "http://127.0.0.1:3000/a?b=c",
            "tcp://127.0.0.1:6379",
            "unix:/run/app.sock:/health",
            "http://[::1]:80/",
        ] {
            assert_eq!(shown(same).unwrap(), same);
        }
        assert_eq!(shown("http://127.0.0.1").unwrap(), "http://127.0.0.1/");
        assert_eq!(
            shown("http://127.0.0.1:1?a").unwrap(),
            "http://127.0.0.1:1/?a"
        );
        assert_eq!(shown("unix:/run/app.sock").unwrap(), "unix:/run/app.sock:/");
        for bad in [
            "",
            "localhost:80",
            "https://127.0.0.1/",
            "tcp://127.0.0.1",
            "unix:app.sock",
            "unix:/app.sock:/a b",
            "http://127.0.0.1:99999/",
            "http://me@127.0.0.1/",
            "tcp://127.0.0.1:80/path",
        ] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_on_all_addresses_is_asked_on_the_loopback() {
        let listener = Listener::Tcp {
            address: "0.0.0.0:80".parse().unwrap(),
        };
        let shown = |listener| Target::of_listener(&listener, Path::new("/srv")).to_string();
        assert_eq!(shown(listener), "http://127.0.0.1:80/");
        for (path, url) in [
            ("run/a.sock", "unix:/srv/run/a.sock:/"),
            ("@a", "unix:@a:/"),
        ] {
            assert_eq!(shown(Listener::Unix { path: path.into() }), url);
        }
    }

    #[test]
    fn statuses_from_200_to_399_are_expected_unless_one_is_named() {
        let any = ExpectedStatus(None);
        assert!(any.accepts(200) && any.accepts(302) && !any.accepts(404));
        let one = ExpectedStatus(Some(404));
        assert!(one.accepts(404) && !one.accepts(200));
        assert_eq!(
            (any.to_string(), one.to_string()),
            ("200 to 399".into(), "404".into())
        );
    }

    #[test]
    fn escapes_stand_for_bytes() {
        assert_eq!(
            unescape(r"PING\r\n\x00é\\").unwrap(),
            "PING\r\n\0é\\".as_bytes()
        );
        assert!(unescape(r"\q").is_err() && unescape(r"\x1").is_ok() && unescape("\\").is_err());
    }
}
