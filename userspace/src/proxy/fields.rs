//! Which fields of a message go through the proxy, and which are between it and one neighbour only
//! (RFC 9110, 7.6.1); and the heads that it writes.

use std::{io::Write as _, net::IpAddr};

use super::http1::head::{Framing, options};

/// The fields that the proxy knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Connection,
    ContentLength,
    Expect,
    Host,
    TransferEncoding,
    Upgrade,
    /// Between two neighbours only.
    Hop,
    /// Those that the proxy adds.
    Forwarded,
    ForwardedFor,
    Other,
}

impl Field {
    pub fn of(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is("te") => Self::Hop,
            4 if is("host") => Self::Host,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::Hop,
            12 if is("x-request-id") => Self::Forwarded,
            14 if is("content-length") => Self::ContentLength,
            14 if is("http2-settings") => Self::Hop,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("x-forwarded-host") => Self::Forwarded,
            16 if is("proxy-connection") => Self::Hop,
            17 if is("x-forwarded-proto") => Self::Forwarded,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            19 if is("proxy-authorization") => Self::Hop,
            _ => Self::Other,
        }
    }
}

/// A name and a value.
pub type Pair<'a> = (&'a str, &'a [u8]);

/// Whether a field is of those that `Connection` fields name, and that therefore go no further.
fn is_named<'a>(fields: impl Iterator<Item = Pair<'a>>, name: &str) -> bool {
    let mut connections = fields.filter(|(name, _)| Field::of(name) == Field::Connection);
    connections
        .any(|(_, value)| options(value).any(|option| option.eq_ignore_ascii_case(name.as_bytes())))
}

/// Whether a `Connection` field names others than those that go no further anyway.
fn names_others<'a>(fields: impl Iterator<Item = Pair<'a>>) -> bool {
    let is_ordinary = |option: &[u8]| {
        [&b"close"[..], b"keep-alive", b"upgrade", b"te", b""]
            .iter()
            .any(|known| option.eq_ignore_ascii_case(known))
    };
    let mut connections = fields.filter(|(name, _)| Field::of(name) == Field::Connection);
    connections.any(|(_, value)| !options(value).all(is_ordinary))
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub peer: IpAddr,
    pub is_tls: bool,
}

/// What the head of a request to a site is made of.
pub struct RequestHead<'a, F> {
    pub method: &'a str,
    pub target: &'a str,
    pub host: &'a str,
    pub fields: F,
    pub body: Framing,
    pub expects: bool,
    pub upgrade: Option<&'a [u8]>,
    pub origin: Origin,
    pub request_id: u64,
}

impl<'a, F: Iterator<Item = Pair<'a>> + Clone> RequestHead<'a, F> {
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        line(out, "Host", self.host.as_bytes());
        let names_others = names_others(self.fields.clone());
        let mut forwarded_for: Option<Vec<u8>> = None;
        for (name, value) in self.fields.clone() {
            match Field::of(name) {
                // Those through several proxies may be many; they are one list.
                Field::ForwardedFor => match &mut forwarded_for {
                    Some(list) => {
                        list.extend_from_slice(b", ");
                        list.extend_from_slice(value);
                    }
                    None => forwarded_for = Some(value.to_vec()),
                },
                Field::Other if !names_others || !is_named(self.fields.clone(), name) => {
                    line(out, name, value);
                }
                _ => {}
            }
        }
        write_framing(out, self.body);
        if self.expects {
            line(out, "Expect", b"100-continue");
        }
        if let Some(upgrade) = self.upgrade {
            line(out, "Connection", b"Upgrade");
            line(out, "Upgrade", upgrade);
        }
        out.extend_from_slice(b"X-Forwarded-For: ");
        if let Some(list) = forwarded_for {
            out.extend_from_slice(&list);
            out.extend_from_slice(b", ");
        }
        let scheme = if self.origin.is_tls { "https" } else { "http" };
        // Memory can be written to.
        let _ = write!(
            out,
            "{}\r\nX-Forwarded-Proto: {scheme}\r\nX-Forwarded-Host: {}\r\nX-Request-Id: {:016x}\r\n\r\n",
            self.origin.peer, self.host, self.request_id
        );
    }
}

/// Whether a field of an answer goes on to the client.
pub fn goes_on<'a>(name: &str, fields: impl Iterator<Item = Pair<'a>> + Clone) -> bool {
    matches!(
        Field::of(name),
        Field::Other | Field::Host | Field::Expect | Field::Forwarded | Field::ForwardedFor
    ) && !is_named(fields, name)
}

/// What the head of an answer to a client of HTTP/1 is made of.
pub struct AnswerHead<'a, F> {
    pub status: u16,
    pub reason: &'a str,
    pub fields: F,
    pub body: Framing,
    /// The length that the answer to a `HEAD`, or an unchanged one, tells of.
    pub told_length: Option<&'a [u8]>,
    pub upgrade: Option<&'a [u8]>,
    /// To be said if it is not what the version takes for granted.
    pub connection: Option<&'a str>,
}

impl<'a, F: Iterator<Item = Pair<'a>> + Clone> AnswerHead<'a, F> {
    pub fn write(&self, out: &mut Vec<u8>) {
        let status = self.status;
        let _ = write!(out, "HTTP/1.1 {status} ");
        out.extend_from_slice(self.reason.as_bytes());
        out.extend_from_slice(b"\r\n");
        let names_others = names_others(self.fields.clone());
        for (name, value) in self.fields.clone() {
            let goes_on = match Field::of(name) {
                Field::Other if !names_others => true,
                _ => goes_on(name, self.fields.clone()),
            };
            if goes_on {
                line(out, name, value);
            }
        }
        match self.told_length {
            Some(length) => line(out, "Content-Length", length),
            None => write_framing(out, self.body),
        }
        match (self.upgrade, self.connection) {
            (Some(upgrade), _) => {
                line(out, "Connection", b"Upgrade");
                line(out, "Upgrade", upgrade);
            }
            (None, Some(connection)) => line(out, "Connection", connection.as_bytes()),
            (None, None) => {}
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn write_framing(out: &mut Vec<u8>, body: Framing) {
    match body {
        Framing::Length(length) => {
            let _ = write!(out, "Content-Length: {length}\r\n");
        }
        Framing::Chunked => line(out, "Transfer-Encoding", b"chunked"),
        Framing::None | Framing::UntilClose => {}
    }
}

pub fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether a field may come after a body: none that says where it ends, or where it goes.
pub fn may_trail(name: &str) -> bool {
    const NEVER: [&str; 7] = [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-type",
        "cookie",
        "set-cookie",
        "trailer",
    ];
    Field::of(name) == Field::Other && !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
}
