//! What a server is asked: an address with a way to speak to it.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    str::FromStr,
};

use hyper::Uri;

use crate::listener::Listener;

/// Why a text is not a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{text:?} is not a URL that can be asked")]
    Form { text: String },
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
    /// HTTP/1.1: GET of this path from this host.
    Http { host: String, path: String },
    /// These bytes, if any; whatever comes back is the response.
    Raw { send: Vec<u8> },
}

impl Target {
    /// Asks what listens here by HTTP.
    pub fn of_listener(listener: &Listener) -> Self {
        let (place, host) = match listener {
            Listener::Tcp { address } => {
                let address = SocketAddr::new(reachable(address.ip()), address.port());
                (Place::Tcp(vec![address]), address.to_string())
            }
            Listener::Unix { path } => (Place::Unix(path.clone()), "localhost".to_owned()),
        };
        let path = "/".to_owned();
        let protocol = Protocol::Http { host, path };
        Self { place, protocol }
    }

    /// Speaks with the same place by sending these bytes.
    pub fn sending(self, send: Vec<u8>) -> Self {
        let protocol = Protocol::Raw { send };
        Self { protocol, ..self }
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

/// An address to connect to for one that is bound to.
fn reachable(ip: IpAddr) -> IpAddr {
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
            if !socket.starts_with('/') {
                return Err(form());
            }
            return Ok(Self {
                place: Place::Unix(socket.into()),
                protocol: Protocol::Http {
                    host: "localhost".to_owned(),
                    path: format!("/{path}"),
                },
            });
        }
        let uri: Uri = text.parse().map_err(|_| form())?;
        let host = uri.host().ok_or_else(form)?;
        match (uri.scheme_str(), uri.port_u16()) {
            (Some("http"), port) => Ok(Self {
                place: resolve(host, port.unwrap_or(80))?,
                protocol: Protocol::Http {
                    host: uri.authority().ok_or_else(form)?.to_string(),
                    path: uri
                        .path_and_query()
                        .map_or("/", |path| path.as_str())
                        .to_owned(),
                },
            }),
            (Some("tcp"), Some(port)) => Ok(Self {
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
            (Place::Tcp(_), Protocol::Http { host, path }) => write!(f, "http://{host}{path}"),
            (Place::Unix(socket), Protocol::Http { path, .. }) => {
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
        assert_eq!(shown("unix:/run/app.sock").unwrap(), "unix:/run/app.sock:/");
        for bad in [
            "",
            "localhost:80",
            "https://127.0.0.1/",
            "tcp://127.0.0.1",
            "unix:app.sock",
        ] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_on_all_addresses_is_asked_on_the_loopback() {
        let listener = Listener::Tcp {
            address: "0.0.0.0:80".parse().unwrap(),
        };
        assert_eq!(
            Target::of_listener(&listener).to_string(),
            "http://127.0.0.1:80/"
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
