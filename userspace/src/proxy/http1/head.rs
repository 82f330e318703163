//! Heads of HTTP/1 messages (RFC 9112), read strictly: whatever two programs could understand in two ways
//! is refused, so that the proxy and a site never disagree where a request ends.
//!
//! Names, values and the request line are httparse's work; line ends, lengths and encodings are looked
//! at here.

use std::mem::MaybeUninit;

pub use httparse::Header;

use crate::proxy::fields::Field;

/// The most fields in a head.
pub const MOST_FIELDS: usize = 100;

/// Room for the fields of a head.
pub type Fields<'b> = [MaybeUninit<Header<'b>>; MOST_FIELDS];

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("too many fields")]
    TooManyFields,
    #[error("another version of HTTP")]
    Version,
}

impl From<httparse::Error> for Refusal {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::TooManyHeaders => Self::TooManyFields,
            httparse::Error::Version => Self::Version,
            httparse::Error::Token => Self::Malformed("bad method"),
            httparse::Error::HeaderName => Self::Malformed("bad name of a field"),
            httparse::Error::HeaderValue => Self::Malformed("bad value of a field"),
            httparse::Error::NewLine => Self::Malformed("bad end of a line"),
            httparse::Error::Status => Self::Malformed("bad status"),
        }
    }
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// It is the end of the connection: of answers only.
    UntilClose,
}

/// Looks for the empty line that ends fields, as bytes arrive.
#[derive(Debug, Default)]
pub struct Scan {
    line: usize,
    searched: usize,
}

impl Scan {
    /// The length of the section, if all of it is there. `bytes` are those of before, and more.
    ///
    /// # Errors
    /// If a line ends without a carriage return, which not everybody takes for an end.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(place) = memchr::memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + place;
            if end == self.line || bytes[end - 1] != b'\r' {
                return Err(Refusal::Malformed("a line that does not end in CR LF"));
            }
            let is_empty = end - 1 == self.line;
            self.searched = end + 1;
            self.line = end + 1;
            if is_empty {
                return Ok(Some(end + 1));
            }
        }
        self.searched = bytes.len();
        Ok(None)
    }
}

/// The head of a request.
#[derive(Debug)]
pub struct Request<'b> {
    pub method: &'b str,
    /// The path and query, or `*`.
    pub target: &'b str,
    /// The `Host` field, or that of a target in absolute form. Empty if an old client sends none.
    pub host: &'b str,
    pub fields: &'b [Header<'b>],
    pub body: Framing,
    pub is_1_1: bool,
    /// The client wants to go on using the connection.
    pub keep_alive: bool,
    /// The client waits for a `100 Continue`.
    pub expects: bool,
    /// What the client wants to change to.
    pub upgrade: Option<&'b [u8]>,
}

impl<'b> Request<'b> {
    /// Reads a whole head.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn parse(bytes: &'b [u8], fields: &'b mut Fields<'b>) -> Result<Self, Refusal> {
        let mut parsed = httparse::Request::new(&mut []);
        if parsed
            .parse_with_uninit_headers(bytes, fields)?
            .is_partial()
        {
            return Err(Refusal::Malformed("no head"));
        }
        let is_1_1 = parsed.version == Some(1);
        let fields: &'b [Header<'b>] = parsed.headers;
        let facts = Facts::of(fields, is_1_1)?;
        let target = parsed.path.unwrap_or_default();
        let field = match (facts.host, is_1_1) {
            (Some(host), _) => host,
            (None, false) => "",
            (None, true) => return Err(Refusal::Malformed("no Host")),
        };
        let (target, host) = match parsed.method {
            Some("CONNECT") => (target, field),
            Some("OPTIONS") if target == "*" => (target, field),
            _ if target.starts_with('/') => (target, field),
            _ => absolute(target)?,
        };
        // What is cut off or not sent by others, too.
        if target.contains('#') || !target.is_ascii() {
            return Err(Refusal::Malformed("bad target"));
        }
        let body = match (facts.chunked, facts.length) {
            (true, Some(_)) => return Err(Refusal::Malformed("two lengths of the body")),
            (true, None) if !is_1_1 => return Err(Refusal::Malformed("chunks in HTTP/1.0")),
            (true, None) => Framing::Chunked,
            (false, None | Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
        };
        Ok(Self {
            method: parsed.method.unwrap_or_default(),
            target,
            host,
            fields,
            body,
            is_1_1,
            keep_alive: facts.keep_alive,
            expects: facts.expects && is_1_1 && body != Framing::None,
            upgrade: facts.upgrade.filter(|_| is_1_1 && body == Framing::None),
        })
    }
}

/// The path and the host of a target in absolute form, as for a proxy.
fn absolute(target: &str) -> Result<(&str, &str), Refusal> {
    let bad = Refusal::Malformed("bad target");
    let (scheme, rest) = target.split_once("://").ok_or(bad)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(bad);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    match path {
        _ if host.is_empty() || host.contains('@') => Err(bad),
        "" => Ok(("/", host)),
        path if path.starts_with('/') => Ok((path, host)),
        _ => Err(bad),
    }
}

/// The head of an answer.
#[derive(Debug)]
pub struct Answer<'b> {
    pub status: u16,
    pub reason: &'b str,
    pub fields: &'b [Header<'b>],
    pub body: Framing,
    /// The site wants to go on using the connection.
    pub keep_alive: bool,
    pub upgrade: Option<&'b [u8]>,
}

impl<'b> Answer<'b> {
    /// Reads a whole head. There is never a body if the request was `HEAD`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn parse(
        bytes: &'b [u8],
        fields: &'b mut Fields<'b>,
        to_head: bool,
    ) -> Result<Self, Refusal> {
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let outcome = config.parse_response_with_uninit_headers(&mut parsed, bytes, fields)?;
        if outcome.is_partial() {
            return Err(Refusal::Malformed("no head"));
        }
        let is_1_1 = parsed.version == Some(1);
        let fields: &'b [Header<'b>] = parsed.headers;
        let facts = Facts::of(fields, is_1_1)?;
        let status = parsed.code.unwrap_or_default();
        if !(100..=599).contains(&status) {
            return Err(Refusal::Malformed("bad status"));
        }
        let body = match (facts.chunked, facts.length) {
            _ if to_head || status < 200 || status == 204 || status == 304 => Framing::None,
            (true, Some(_)) => return Err(Refusal::Malformed("two lengths of the body")),
            (true, None) if !is_1_1 => return Err(Refusal::Malformed("chunks in HTTP/1.0")),
            (true, None) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        };
        Ok(Self {
            status,
            reason: parsed.reason.unwrap_or_default(),
            fields,
            body,
            keep_alive: facts.keep_alive && body != Framing::UntilClose,
            upgrade: facts.upgrade,
        })
    }
}

/// What the fields say of the connection and the body.
#[derive(Default)]
struct Facts<'b> {
    host: Option<&'b str>,
    length: Option<u64>,
    chunked: bool,
    keep_alive: bool,
    expects: bool,
    upgrade: Option<&'b [u8]>,
}

impl<'b> Facts<'b> {
    fn of(fields: &'b [Header<'b>], is_1_1: bool) -> Result<Self, Refusal> {
        let (mut close, mut keep, mut upgrades) = (false, false, false);
        let mut facts = Self::default();
        for field in fields {
            match Field::of(field.name) {
                Field::Host => {
                    let value = std::str::from_utf8(field.value);
                    let value = value.map_err(|_| Refusal::Malformed("bad Host"))?;
                    if facts.host.replace(value).is_some() {
                        return Err(Refusal::Malformed("two Hosts"));
                    }
                }
                Field::ContentLength => {
                    let before = facts.length.replace(length(field.value)?);
                    if before.is_some() {
                        return Err(Refusal::Malformed("two Content-Lengths"));
                    }
                }
                Field::TransferEncoding => {
                    if facts.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Refusal::Malformed("another encoding than chunked"));
                    }
                    facts.chunked = true;
                }
                Field::Connection => {
                    for option in options(field.value) {
                        close |= option.eq_ignore_ascii_case(b"close");
                        keep |= option.eq_ignore_ascii_case(b"keep-alive");
                        upgrades |= option.eq_ignore_ascii_case(b"upgrade");
                    }
                }
                Field::Expect => facts.expects = field.value.eq_ignore_ascii_case(b"100-continue"),
                Field::Upgrade => facts.upgrade = Some(field.value),
                _ => {}
            }
        }
        facts.keep_alive = !close && (is_1_1 || keep);
        // To speak HTTP/2 behind the proxy would be to speak past it.
        let is_h2c = |value: &[u8]| options(value).any(|one| one.eq_ignore_ascii_case(b"h2c"));
        facts.upgrade = facts.upgrade.filter(|value| upgrades && !is_h2c(value));
        Ok(facts)
    }
}

/// The members of a list.
pub fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

fn length(value: &[u8]) -> Result<u64, Refusal> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| is_number);
    let number = text.and_then(|text| text.parse().ok());
    let is_sane = |&number: &u64| number <= i64::MAX as u64;
    number
        .filter(is_sane)
        .ok_or(Refusal::Malformed("bad Content-Length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<(String, String, Framing), Refusal> {
        let mut fields = [MaybeUninit::uninit(); MOST_FIELDS];
        let end = Scan::default().find(text.as_bytes())?;
        let head = &text.as_bytes()[..end.expect("the sample is whole")];
        let request = Request::parse(head, &mut fields)?;
        Ok((request.host.into(), request.target.into(), request.body))
    }

    fn is_refused(fields: &str) {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        assert!(request(&text).is_err(), "{fields:?}");
    }

    #[test]
    fn a_body_has_one_length_or_is_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: -5",
            "Content-Length: 0x5",
            "Content-Length: 5 5",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding:\x0bchunked",
        ] {
            is_refused(fields);
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(request(old).is_err());
        let good = |fields: &str| {
            request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
                .unwrap()
                .2
        };
        assert_eq!(good("Content-Length: 5\r\n"), Framing::Length(5));
        assert_eq!(good("Transfer-Encoding: Chunked \r\n"), Framing::Chunked);
        assert_eq!(good(""), Framing::None);
    }

    #[test]
    fn lines_and_names_that_not_all_understand_alike_are_refused() {
        for fields in [
            "A: b\r\n c",
            "A: b\nC: d",
            "A : b",
            " A: b",
            "A: b\rC: d",
            "A: \0",
            "A b",
            ": b",
            "A\x0b: b",
            "Host: b",
        ] {
            is_refused(fields);
        }
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET /\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n",
            "G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert!(request(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_counts() {
        let found = request("GET http://b/x?y HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!((&*found.0, &*found.1), ("b", "/x?y"));
        let found = request("GET http://b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!((&*found.0, &*found.1), ("b", "/"));
        let found = request("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!((&*found.0, &*found.1), ("a", "*"));
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_it_is_cut() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nmore";
        for cut in 0..text.len() {
            let mut scan = Scan::default();
            let first = scan.find(&text[..cut]).unwrap();
            assert_eq!(first.is_some(), cut >= text.len() - 4);
            if first.is_none() {
                assert_eq!(scan.find(text).unwrap(), Some(text.len() - 4));
            }
        }
    }

    #[test]
    fn answers_to_head_and_some_others_have_no_body() {
        let body = |text: &str, to_head| {
            let mut fields = [MaybeUninit::uninit(); MOST_FIELDS];
            Answer::parse(text.as_bytes(), &mut fields, to_head).map(|answer| answer.body)
        };
        let five = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(body(five, false), Ok(Framing::Length(5)));
        assert_eq!(body(five, true), Ok(Framing::None));
        let unchanged = "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(body(unchanged, false), Ok(Framing::None));
        assert_eq!(body("HTTP/1.0 200\r\n\r\n", false), Ok(Framing::UntilClose));
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(body(both, false).is_err());
    }
}
