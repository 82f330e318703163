//! The demo server: a search engine for the types of the running kernel.
//!
//! At its start it reads the kernel's own type information, some 5 MB and 70,000 names, and
//! builds an index of every three letters that occur in them: work that a real server does, on
//! data that every host has. Then it answers `GET /?q=TEXT` with the names that contain the text,
//! and the members of a structure that is called so.
//!
//! Usage: `kernel-types PORT`

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
};

use warmimg::watch::btf::Btf;

type AnyError = Box<dyn std::error::Error>;

/// How many names an answer lists.
const LISTED: usize = 20;

/// Every name, and for every three letters the names they occur in.
struct Index<'a> {
    btf: Btf<'a>,
    names: Vec<&'a str>,
    letters: HashMap<[u8; 3], Vec<u32>>,
}

impl<'a> Index<'a> {
    fn build(data: &'a [u8]) -> Result<Self, AnyError> {
        let btf = Btf::parse(data)?;
        let names: Vec<&str> = btf.names().collect::<BTreeSet<_>>().into_iter().collect();
        let mut letters: HashMap<[u8; 3], Vec<u32>> = HashMap::new();
        for (number, name) in (0..).zip(&names) {
            for window in name.as_bytes().windows(3) {
                let found = letters
                    .entry([window[0], window[1], window[2]])
                    .or_default();
                if found.last() != Some(&number) {
                    found.push(number);
                }
            }
        }
        Ok(Self {
            btf,
            names,
            letters,
        })
    }

    fn search(&self, text: &str) -> Vec<&str> {
        let candidates = text
            .as_bytes()
            .windows(3)
            .map(|w| {
                self.letters
                    .get(&[w[0], w[1], w[2]])
                    .map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|numbers| numbers.len())
            .unwrap_or_default();
        let names = candidates.iter().map(|&number| self.names[number as usize]);
        names.filter(|name| name.contains(text)).collect()
    }

    fn answer(&self, query: &str) -> String {
        let found = self.search(query);
        let mut text = format!(
            "{} of {} names contain {query:?}\n",
            found.len(),
            self.names.len()
        );
        for name in found.iter().take(LISTED) {
            let _ = writeln!(text, "  {name}");
        }
        for (member, offset) in self.btf.members(query) {
            let _ = writeln!(text, "  {query}.{member} at byte {offset}");
        }
        text
    }
}

fn main() -> Result<(), AnyError> {
    let port: u16 = std::env::args()
        .nth(1)
        .ok_or("usage: kernel-types PORT")?
        .parse()?;
    let data = std::fs::read("/sys/kernel/btf/vmlinux")?;
    let index = Index::build(&data)?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!(
        "{} names are ready at http://127.0.0.1:{port}/?q=sock",
        index.names.len()
    );
    for stream in listener.incoming() {
        if let Err(error) = serve(&index, stream?) {
            eprintln!("{error}");
        }
    }
    Ok(())
}

fn serve(index: &Index<'_>, mut stream: TcpStream) -> Result<(), AnyError> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().ok_or("no request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let target = request.split(' ').nth(1).unwrap_or("/");
    let query = target
        .split_once("?q=")
        .map_or("task_struct", |(_, query)| query);
    let body = index.answer(query);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}
