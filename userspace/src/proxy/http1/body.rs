//! Bodies of HTTP/1 messages: where they end, found strictly, and how they are written anew.

use std::io::Write as _;

use super::head::{Framing, MOST_FIELDS, Refusal, Scan};
use crate::proxy::fields::{line, may_trail};

/// The longest line with the size of a chunk, extensions included.
const MOST_LINE: usize = 256;

/// What is next in the bytes of a body. The caller takes as many bytes as it says.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Not of the body itself.
    Skip(usize),
    Data(usize),
    /// The fields after the body, with the empty line that ends them: the end.
    Trailers(usize),
    /// More bytes are needed.
    More,
    Done,
}

/// Finds the end of a body.
#[derive(Debug)]
pub struct Decoder(State);

#[derive(Debug)]
enum State {
    Remaining(u64),
    UntilClose,
    /// Before the size of a chunk.
    Size,
    Chunk(u64),
    /// After the bytes of a chunk.
    ChunkEnd,
    Trailers,
    Done,
}

impl Decoder {
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::None => State::Done,
            Framing::Length(length) => State::Remaining(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        })
    }

    pub fn is_done(&self) -> bool {
        matches!(self.0, State::Done | State::Remaining(0))
    }

    /// Whether the body may end with the connection here.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.0, State::UntilClose)
    }

    /// Looks at the next bytes.
    ///
    /// # Errors
    /// If they are not what a body has here.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        match &mut self.0 {
            State::Done | State::Remaining(0) => Ok(Step::Done),
            _ if bytes.is_empty() => Ok(Step::More),
            State::UntilClose => Ok(Step::Data(bytes.len())),
            State::Remaining(left) => {
                let len = (*left).min(bytes.len() as u64);
                *left -= len;
                Ok(Step::Data(len as usize))
            }
            State::Chunk(left) => {
                let len = (*left).min(bytes.len() as u64);
                *left -= len;
                if *left == 0 {
                    self.0 = State::ChunkEnd;
                }
                Ok(Step::Data(len as usize))
            }
            State::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.0 = State::Size;
                    Ok(Step::Skip(2))
                }
                b"\r" => Ok(Step::More),
                _ => Err(Refusal::Malformed("a chunk is not of its size")),
            },
            State::Size => match chunk_size(bytes)? {
                Some((0, len)) => {
                    self.0 = State::Trailers;
                    Ok(Step::Skip(len))
                }
                Some((size, len)) => {
                    self.0 = State::Chunk(size);
                    Ok(Step::Skip(len))
                }
                None => Ok(Step::More),
            },
            State::Trailers => match Scan::default().find(bytes)? {
                Some(len) => {
                    self.0 = State::Done;
                    Ok(Step::Trailers(len))
                }
                None => Ok(Step::More),
            },
        }
    }
}

/// The size of a chunk, and the length of the line that has it; none if it is not whole.
fn chunk_size(bytes: &[u8]) -> Result<Option<(u64, usize)>, Refusal> {
    const BAD: Refusal = Refusal::Malformed("bad size of a chunk");
    /// More would not fit into 63 bits.
    const MOST_DIGITS: usize = 15;
    let line = &bytes[..bytes.len().min(MOST_LINE)];
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
    let digits = digits.count();
    let rest = &line[digits..];
    if digits > MOST_DIGITS || (digits == 0 && !line.is_empty()) {
        return Err(BAD);
    }
    // Extensions mean nothing to anybody, but to those who hide something in them.
    let end = match rest.first() {
        Some(b'\r') => Some(0),
        Some(b';') => rest
            .iter()
            .position(|byte| byte.is_ascii_control() && *byte != b'\t'),
        Some(_) => return Err(BAD),
        None => None,
    };
    match end.map(|end| &rest[end..]) {
        Some([b'\r', b'\n', ..]) => {
            let text = std::str::from_utf8(&line[..digits]).map_err(|_| BAD)?;
            let size = u64::from_str_radix(text, 16).map_err(|_| BAD)?;
            Ok(Some((size, digits + end.unwrap_or(0) + 2)))
        }
        None | Some(b"\r") if line.len() < MOST_LINE => Ok(None),
        _ => Err(BAD),
    }
}

/// Writes a piece of a body.
pub fn encode(out: &mut Vec<u8>, data: &[u8], as_chunk: bool) {
    match as_chunk {
        true if data.is_empty() => {}
        true => {
            // Memory can be written to.
            let _ = write!(out, "{:x}\r\n", data.len());
            out.extend_from_slice(data);
            out.extend_from_slice(b"\r\n");
        }
        false => out.extend_from_slice(data),
    }
}

/// Writes the end of a body in chunks, with those of the trailers that may be there.
///
/// # Errors
/// If they are malformed.
pub fn encode_end(out: &mut Vec<u8>, trailers: &[u8]) -> Result<(), Refusal> {
    out.extend_from_slice(b"0\r\n");
    each_trailer(trailers, |name, value| line(out, name, value))?;
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Goes through the fields after a body, but those that may not be there.
///
/// # Errors
/// If they are malformed.
pub fn each_trailer(bytes: &[u8], mut take: impl FnMut(&str, &[u8])) -> Result<(), Refusal> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    match httparse::parse_headers(bytes, &mut fields)? {
        httparse::Status::Complete((_, fields)) => {
            for field in fields.iter().filter(|field| may_trail(field.name)) {
                take(field.name, field.value);
            }
            Ok(())
        }
        httparse::Status::Partial => Err(Refusal::Malformed("bad trailers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes bytes that come in pieces of a size; returns the body, and what was written anew.
    fn decode(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
        let (mut decoder, mut at, mut there) = (Decoder::new(Framing::Chunked), 0, 0);
        let (mut body, mut again) = (Vec::new(), Vec::new());
        loop {
            match decoder.step(&bytes[at..there])? {
                Step::Skip(len) => at += len,
                Step::Data(len) => {
                    body.extend(&bytes[at..at + len]);
                    encode(&mut again, &bytes[at..at + len], true);
                    at += len;
                }
                Step::Trailers(len) => {
                    encode_end(&mut again, &bytes[at..at + len])?;
                    at += len;
                }
                Step::More if there == bytes.len() => return Err(Refusal::Malformed("cut short")),
                Step::More => there = (there + piece).min(bytes.len()),
                Step::Done => return Ok((body, again)),
            }
        }
    }

    #[test]
    fn chunks_are_put_together_however_they_arrive() {
        let bytes =
            b"5\r\nhello\r\n00A;x=y\r\n, world!\r\n\r\n0\r\nDigest: 1\r\nContent-Length: 9\r\n\r\n";
        for piece in 1..bytes.len() {
            let (body, again) = decode(bytes, piece).unwrap();
            assert_eq!(body, b"hello, world!\r\n");
            assert!(again.ends_with(b"0\r\nDigest: 1\r\n\r\n"), "{again:?}");
            assert_eq!(decode(&again, 3).unwrap().0, body);
        }
    }

    #[test]
    fn bad_chunks_are_refused() {
        for bad in [
            &b"\r\n"[..],
            b"x\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"5\rhello\r\n0\r\n\r\n",
            b"5;a\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"10000000000000000\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\n a: b\r\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert!(decode(bad, 1).is_err(), "{bad:?}");
            assert!(decode(bad, 100).is_err(), "{bad:?}");
        }
        assert!(decode(&[b"5;".as_slice(), &[b'a'; 300]].concat(), 400).is_err());
    }
}
