//! The name of the server in a TLS ClientHello (RFC 8446, RFC 6066), read before anything else is known
//! of a connection: so that what stays encrypted can be forwarded, first byte included.

/// The longest ClientHello that is read; those of today are below 2 KiB.
pub const MOST_BYTES: usize = 16 << 10;

/// What was found so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Partial,
    /// It is whole; the name that it asks for, in small letters.
    Whole(Option<String>),
    /// This is no ClientHello.
    Bad,
}

/// Reads the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Hello {
    match handshake(bytes) {
        Ok(Some(message)) => match server_name(&message) {
            Some(name) => Hello::Whole(name),
            None => Hello::Bad,
        },
        Ok(None) if bytes.len() < MOST_BYTES => Hello::Partial,
        Ok(None) | Err(NoHello) => Hello::Bad,
    }
}

struct NoHello;

/// The body of the ClientHello, which may come in several records; none if it is not whole.
fn handshake(bytes: &[u8]) -> Result<Option<Vec<u8>>, NoHello> {
    const RECORD: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    /// A type and the length.
    const HEAD: usize = 4;
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // What is not there yet may still be wrong in its first bytes.
        let is_record = [RECORD, 3]
            .iter()
            .zip(rest)
            .all(|(want, have)| want == have);
        if !is_record {
            return Err(NoHello);
        }
        let [_, _, _, high, low, following @ ..] = rest else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        if len == 0 || len > MOST_BYTES {
            return Err(NoHello);
        }
        let part = &following[..len.min(following.len())];
        message.extend_from_slice(part);
        if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
            return Err(NoHello);
        }
        if let [_, a, b, c, ..] = message[..] {
            let size = u32::from_be_bytes([0, a, b, c]) as usize;
            if size > MOST_BYTES {
                return Err(NoHello);
            }
            if let Some(body) = message.get(HEAD..HEAD + size) {
                return Ok(Some(body.to_vec()));
            }
        }
        match following.get(len..) {
            Some(next) => rest = next,
            None => return Ok(None),
        }
    }
}

/// The name in the body of a ClientHello, if it has one; none at all if it is malformed.
fn server_name(body: &[u8]) -> Option<Option<String>> {
    const VERSION_AND_RANDOM: usize = 2 + 32;
    const SERVER_NAME: u16 = 0;
    const HOST_NAME: u8 = 0;
    let mut body = Reader(body.get(VERSION_AND_RANDOM..)?);
    let _session = body.vector(1)?;
    let _ciphers = body.vector(2)?;
    let _compressions = body.vector(1)?;
    if body.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(body.vector(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let content = extensions.vector(2)?;
        if kind != usize::from(SERVER_NAME) {
            continue;
        }
        let mut names = Reader(Reader(content).vector(2)?);
        if names.number(1)? != usize::from(HOST_NAME) {
            return None;
        }
        let name = std::str::from_utf8(names.vector(2)?).ok()?;
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_good) {
            return None;
        }
        return Some(Some(name.trim_end_matches('.').to_ascii_lowercase()));
    }
    Some(None)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of so many bytes.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        let bytes = self.take(bytes)?;
        Some(
            bytes
                .iter()
                .fold(0, |number, &byte| number << 8 | usize::from(byte)),
        )
    }

    /// Bytes after their length, which has so many bytes.
    fn vector(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let len = self.number(bytes)?;
        self.take(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What curl sent for `https://site.example.org/`.
    const SAMPLE: &[u8] = include_bytes!("../../../tests/fuzz/corpus/client-hello/curl");

    #[test]
    fn the_name_of_the_server_is_found() {
        let whole = Hello::Whole(Some("site.example.org".to_owned()));
        assert_eq!(parse(SAMPLE), whole);
        // Bytes after it are of no concern.
        assert_eq!(parse(&[SAMPLE, b"more"].concat()), whole);
        for len in 0..SAMPLE.len() {
            assert_eq!(parse(&SAMPLE[..len]), Hello::Partial, "{len}");
        }
    }

    #[test]
    fn it_may_come_in_small_records() {
        let small: Vec<u8> = SAMPLE[5..]
            .chunks(7)
            .flat_map(|part| [&[22, 3, 1, 0, part.len() as u8], part].concat())
            .collect();
        assert_eq!(parse(&small), parse(SAMPLE));
    }

    #[test]
    fn what_is_no_client_hello_is_refused_at_once() {
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x02",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x00\x05\x02",
        ] {
            assert_eq!(parse(bad), Hello::Bad, "{bad:?}");
        }
        // Its length is beyond all bounds.
        assert_eq!(parse(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"), Hello::Bad);
        // A length inside of it is.
        let mut damaged = SAMPLE.to_vec();
        damaged[5 + 4 + 34] = 0xff;
        assert_eq!(parse(&damaged), Hello::Bad);
    }
}
