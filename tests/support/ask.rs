//! Small clients: HTTP over TCP and Unix sockets, FastCGI.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

/// How to ask a server.
#[derive(Clone, Debug)]
pub enum Client {
    Http(u16),
    HttpOverUnix(PathBuf),
    /// Asks for the script of this path.
    FastCgi(u16, String),
}

/// How long a single try may take.
const TRY: Duration = Duration::from_secs(10);

impl Client {
    /// Asks once; returns the status and body of the answer.
    pub fn ask(&self) -> io::Result<String> {
        match self {
            Self::Http(port) => get(*port, "/"),
            Self::HttpOverUnix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(TRY))?;
                http(stream, "/")
            }
            Self::FastCgi(port, script) => fast_cgi(connect(*port)?, script),
        }
    }

    /// Asks until there is an answer.
    pub fn ask_until_answered(&self) -> String {
        let mut answer = String::new();
        super::wait_until("an answer", || match self.ask() {
            Ok(text) => {
                answer = text;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        });
        answer
    }

    /// Whether nothing listens any more.
    pub fn is_refused(&self) -> bool {
        match self.ask() {
            Ok(_) => false,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ),
        }
    }
}

/// Asks an HTTP server for a path; returns the status and body of the answer.
pub fn get(port: u16, path: &str) -> io::Result<String> {
    http(connect(port)?, path)
}

/// Asks one that is not on the loopback.
pub fn get_at(address: SocketAddr, path: &str) -> io::Result<String> {
    http(connect_to(address)?, path)
}

fn connect(port: u16) -> io::Result<TcpStream> {
    connect_to(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TRY)?;
    stream.set_read_timeout(Some(TRY))?;
    Ok(stream)
}

/// The status line and the body; headers like the date differ from one answer to the next.
fn http(mut stream: impl Read + Write, path: &str) -> io::Result<String> {
    // Written at once: a server may read no more than the first part.
    let head = "HTTP/1.0\r\nHost: localhost\r\nConnection: close";
    stream.write_all(format!("GET {path} {head}\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other(format!("no answer: {text:?}")))?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        return Err(io::Error::other(format!("status {status}: {body}")));
    }
    Ok(format!("{status} {}", body.trim()))
}

/// One request by the FastCGI specification: a responder, its parameters, an empty body.
pub fn fast_cgi_request(script: &str) -> Vec<u8> {
    const BEGIN: u8 = 1;
    const PARAMS: u8 = 4;
    const STDIN: u8 = 5;
    let record = |kind: u8, body: &[u8]| {
        let len = (body.len() as u16).to_be_bytes();
        [&[1, kind, 0, 1, len[0], len[1], 0, 0], body].concat()
    };
    let mut params = Vec::new();
    let pairs = [
        ("SCRIPT_FILENAME", script),
        ("REQUEST_METHOD", "GET"),
        ("SCRIPT_NAME", "/"),
    ];
    for (name, value) in pairs {
        params.extend([name.len() as u8, value.len() as u8]);
        params.extend(name.as_bytes());
        params.extend(value.as_bytes());
    }
    [
        record(BEGIN, &[0, 1, 0, 0, 0, 0, 0, 0]),
        record(PARAMS, &params),
        record(PARAMS, &[]),
        record(STDIN, &[]),
    ]
    .concat()
}

fn fast_cgi(mut stream: TcpStream, script: &str) -> io::Result<String> {
    const END: u8 = 3;
    const STDOUT: u8 = 6;
    stream.write_all(&fast_cgi_request(script))?;
    let mut output = Vec::new();
    loop {
        let mut head = [0; 8];
        stream.read_exact(&mut head)?;
        let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let mut body = vec![0; len + usize::from(head[6])];
        stream.read_exact(&mut body)?;
        match head[1] {
            STDOUT => output.extend(&body[..len]),
            END => break,
            _ => {}
        }
    }
    let text = String::from_utf8_lossy(&output);
    let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    Ok(format!("200 {}", body.trim()))
}
