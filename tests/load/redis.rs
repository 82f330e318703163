//! A Redis whose keys are in its image, and clients that know what each key has to be.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{
    Load, Outcome, Workspace,
    content::{Random, compare, content},
};
use crate::support::{LIMIT, ask::Client, free_port, pause, server::Server, wait_until};

/// Keys of a database that are read and changed.
const KEYS: u32 = 6000;
/// The keys that grow to some megabytes, the first of them.
const GROWING: u32 = 4;
const LARGEST: usize = 4 << 20;
/// How many commands are sent before the answers are read.
const BATCH: u32 = 100;
const CLIENTS: u32 = 2;

/// One that stores nothing by itself, and whose allocator gives memory back soon: first by
/// `MADV_FREE`, then by `MADV_DONTNEED`.
pub fn server() -> Server {
    let port = free_port();
    let text = port.to_string();
    let words = ["redis-server", "--bind", "127.0.0.1", "--port", &text];
    let words = words.into_iter().chain(["--save", ""]);
    Server::new(Client::Http(port), words)
        .environment("MALLOC_CONF", "dirty_decay_ms:300,muzzy_decay_ms:300")
}

/// Starts it, gives it some 50 MB, and makes an image of it; returns the clients.
pub fn fill_and_capture(workspace: &Workspace, server: &Server, name: &str) -> Vec<Keys> {
    let Client::Http(port) = server.client else {
        unreachable!("it is on TCP")
    };
    let cold = server.start_cold(workspace);
    wait_until("Redis to listen", || {
        let connected = TcpStream::connect(("127.0.0.1", port));
        connected.map(drop).map_err(|error| error.to_string())
    });
    let clients = (0..CLIENTS).map(|number| Keys::fill(port, number).unwrap());
    let clients = clients.collect();
    let pid = cold.pid().to_string();
    workspace.run(["checkpoint", "--pid", &pid, "--name", name]);
    clients
}

/// A value: what was written, one after the other.
#[derive(Clone, Default)]
struct Value {
    written: Vec<(u32, usize)>,
    /// By then it will be gone.
    expires: Option<Instant>,
}

impl Value {
    fn bytes(&self) -> Vec<u8> {
        let written = self.written.iter();
        let parts: Vec<_> = written.map(|&(seed, len)| content(seed, len)).collect();
        parts.concat()
    }

    fn len(&self) -> usize {
        self.written.iter().map(|(_, len)| len).sum()
    }
}

/// What a command has to be answered with.
enum Answer {
    Simple(&'static str),
    Number(usize),
    /// Nothing is there, or this.
    Bulk(Option<Vec<u8>>),
    /// An error, too.
    Any,
}

/// The databases of one client: one that it works in, and one that it flushes.
pub struct Keys {
    port: u16,
    number: u32,
    random: Random,
    /// No content is written twice.
    next_seed: u32,
    values: [Vec<Option<Value>>; 2],
}

impl Keys {
    fn fill(port: u16, number: u32) -> Result<Self, String> {
        let mut keys = Self {
            port,
            number,
            random: Random::new(number),
            next_seed: number << 30,
            values: [vec![None; KEYS as usize], vec![None; KEYS as usize]],
        };
        let mut connection = keys.connect()?;
        for half in [0, 1] {
            for first in (0..KEYS).step_by(BATCH as usize) {
                let mut batch = keys.batch(half);
                for key in first..first + BATCH {
                    let len = keys.len();
                    keys.set(&mut batch, half, key, len);
                }
                connection.send(batch)?;
            }
        }
        connection.quit()?;
        Ok(keys)
    }

    fn connect(&self) -> Result<Connection, String> {
        Connection::new(self.port).map_err(|error| format!("cannot connect: {error}"))
    }

    /// Commands for one of the two databases.
    fn batch(&self, half: usize) -> Batch {
        let mut batch = Batch::default();
        let number = self.number + CLIENTS * half as u32;
        batch.add(
            &[b"SELECT", number.to_string().as_bytes()],
            Answer::Simple("OK"),
        );
        batch
    }

    /// The length of a new value: most are small.
    fn len(&mut self) -> usize {
        let most = match self.random.below(100) {
            0..80 => 1000,
            80..98 => 10_000,
            _ => 60_000,
        };
        1 + self.random.below(most) as usize
    }

    fn seed(&mut self) -> u32 {
        self.next_seed += 1;
        self.next_seed
    }

    fn set(&mut self, batch: &mut Batch, half: usize, key: u32, len: usize) {
        let written = vec![(self.seed(), len)];
        let value = Value {
            written,
            expires: None,
        };
        batch.add(&[b"SET", &name(key), &value.bytes()], Answer::Simple("OK"));
        self.values[half][key as usize] = Some(value);
    }

    fn append(&mut self, batch: &mut Batch, half: usize, key: u32, len: usize) {
        let seed = self.seed();
        let value = self.values[half][key as usize].get_or_insert_default();
        value.written.push((seed, len));
        let answer = Answer::Number(value.len());
        batch.add(&[b"APPEND", &name(key), &content(seed, len)], answer);
    }

    fn delete(&mut self, batch: &mut Batch, half: usize, key: u32) {
        let value = self.values[half][key as usize].take();
        let command: &[u8] = if key.is_multiple_of(2) {
            b"DEL"
        } else {
            b"UNLINK"
        };
        batch.add(
            &[command, &name(key)],
            Answer::Number(usize::from(value.is_some())),
        );
    }

    fn get(&self, batch: &mut Batch, half: usize, key: u32) {
        let value = self.values[half][key as usize].as_ref();
        batch.add(&[b"GET", &name(key)], Answer::Bulk(value.map(Value::bytes)));
    }

    fn get_range(&mut self, batch: &mut Batch, half: usize, key: u32) {
        let value = self.values[half][key as usize].as_ref();
        let bytes = value.map(Value::bytes).unwrap_or_default();
        let first = self.random.below(bytes.len() as u32 + 1) as usize;
        let behind = (first + self.random.below(20_000) as usize).min(bytes.len());
        // Redis counts the last as part of it, and a negative number from the end.
        let Some(last) = behind.checked_sub(1).filter(|&last| last >= first) else {
            return;
        };
        let [from, to] = [first, last].map(|place| place.to_string());
        let answer = Answer::Bulk(Some(bytes[first..behind].to_vec()));
        batch.add(
            &[b"GETRANGE", &name(key), from.as_bytes(), to.as_bytes()],
            answer,
        );
    }

    /// Reads and changes keys until the load is over; then reads all of them.
    pub fn work(&mut self, load: &Load) -> Outcome {
        let mut connection = self.connect()?;
        let mut answers = 0;
        let mut batches = 0_u32;
        while load.goes_on() {
            batches += 1;
            let half = usize::from(self.random.below(10) == 0);
            let mut batch = self.batch(half);
            let mut expiring = Vec::new();
            for _ in 0..BATCH {
                self.add_one(&mut batch, half, &mut expiring);
            }
            let key = self.random.below(GROWING);
            match self.values[half][key as usize].as_ref().map(Value::len) {
                Some(LARGEST..) => {
                    self.get(&mut batch, half, key);
                    self.delete(&mut batch, half, key);
                }
                _ => self.append(&mut batch, half, key, 50_000),
            }
            answers += connection.send(batch)?;
            for (key, lifetime) in expiring {
                if let Some(value) = &mut self.values[half][key as usize] {
                    value.expires = Some(Instant::now() + lifetime);
                }
            }
            if batches.is_multiple_of(20) {
                answers += connection.send(self.many(batches / 20))?;
            }
        }
        connection.wait_for_save()?;
        connection.quit()?;
        Ok(answers + self.check_all()?)
    }

    /// One command on one key.
    fn add_one(&mut self, batch: &mut Batch, half: usize, expiring: &mut Vec<(u32, Duration)>) {
        const MARGIN: Duration = Duration::from_millis(5);
        let key = GROWING + self.random.below(KEYS - GROWING);
        let place = key as usize;
        if expiring.iter().any(|(other, _)| *other == key) {
            return;
        }
        if let Some(expires) = self.values[half][place]
            .as_ref()
            .and_then(|value| value.expires)
        {
            if Instant::now() < expires {
                return;
            }
            self.values[half][place] = None;
        }
        match self.random.below(100) {
            0..45 => self.get(batch, half, key),
            45..65 => {
                let len = self.len();
                self.set(batch, half, key, len);
            }
            65..75 => {
                let len = self.len();
                self.append(batch, half, key, len);
            }
            75..85 => self.get_range(batch, half, key),
            85..92 => self.delete(batch, half, key),
            92..96 => {
                let value = self.values[half][place].as_ref();
                let answer = Answer::Number(value.map_or(0, Value::len));
                batch.add(&[b"STRLEN", &name(key)], answer);
            }
            _ => {
                let lifetime = 1 + u64::from(self.random.below(300));
                let is_there = self.values[half][place].is_some();
                let answer = Answer::Number(usize::from(is_there));
                batch.add(
                    &[b"PEXPIRE", &name(key), lifetime.to_string().as_bytes()],
                    answer,
                );
                expiring.push((key, Duration::from_millis(lifetime) + MARGIN));
            }
        }
    }

    /// What concerns many keys at once: in turn, so that each comes often enough.
    fn many(&mut self, turn: u32) -> Batch {
        let mut batch = self.batch([0, 1][usize::from(matches!(turn % 6, 0 | 5))]);
        match turn % 6 {
            // All at once, by the main thread or in the background.
            0 => {
                let how: &[u8] = if turn.is_multiple_of(12) {
                    b"SYNC"
                } else {
                    b"ASYNC"
                };
                batch.add(&[b"FLUSHDB", how], Answer::Simple("OK"));
                batch.add(&[b"DBSIZE"], Answer::Number(0));
                self.values[1].fill(None);
            }
            1 | 4 => batch.add(&[b"MEMORY", b"PURGE"], Answer::Simple("OK")),
            // Keys that were written one after the other, so that whole pages get free.
            2 => {
                let first = GROWING + self.random.below(KEYS - GROWING - 1000);
                for key in first..first + 1000 {
                    // It may be gone by now, or not yet.
                    match self.values[0][key as usize].take() {
                        Some(Value {
                            expires: Some(_), ..
                        }) => {
                            batch.add(&[b"DEL", &name(key)], Answer::Any);
                        }
                        value => {
                            self.values[0][key as usize] = value;
                            self.delete(&mut batch, 0, key);
                        }
                    }
                }
            }
            // A child that has the same memory, and throws away what it has written.
            3 => batch.add(&[b"BGSAVE"], Answer::Any),
            _ => {
                for key in GROWING..KEYS / 4 {
                    let len = self.len();
                    self.set(&mut batch, 1, key, len);
                }
            }
        }
        batch
    }

    /// Reads all keys; returns how many answers there were.
    pub fn check_all(&mut self) -> Outcome {
        let mut connection = self.connect()?;
        let mut answers = 0;
        for half in [0, 1] {
            for first in (0..KEYS).step_by(BATCH as usize) {
                let mut batch = self.batch(half);
                for key in first..first + BATCH {
                    let value = &mut self.values[half][key as usize];
                    match value.as_ref().and_then(|value| value.expires) {
                        Some(expires) if Instant::now() < expires => continue,
                        Some(_) => *value = None,
                        None => {}
                    }
                    self.get(&mut batch, half, key);
                }
                answers += connection.send(batch)?;
            }
        }
        connection.quit()?;
        Ok(answers)
    }
}

fn name(key: u32) -> Vec<u8> {
    format!("key:{key}").into_bytes()
}

/// Commands that are sent together, and what they have to be answered with.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    answers: Vec<(String, Answer)>,
}

impl Batch {
    fn add(&mut self, words: &[&[u8]], answer: Answer) {
        self.bytes
            .extend(format!("*{}\r\n", words.len()).into_bytes());
        for word in words {
            let head = format!("${}\r\n", word.len());
            self.bytes.extend([head.as_bytes(), word, b"\r\n"].concat());
        }
        let shown = words
            .iter()
            .map(|word| String::from_utf8_lossy(&word[..word.len().min(20)]));
        let shown: Vec<_> = shown.collect();
        self.answers.push((shown.join(" "), answer));
    }
}

/// A connection, see Redis' protocol specification.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends commands and compares the answers; returns how many those were.
    fn send(&mut self, batch: Batch) -> Outcome {
        let sent = self.0.get_mut().write_all(&batch.bytes);
        sent.map_err(|error| format!("cannot send: {error}"))?;
        let mut compared = 0;
        for (command, expected) in batch.answers {
            let answer = self.answer();
            let answer = answer.map_err(|error| format!("{command}: {error}"))?;
            match expected {
                Answer::Any => continue,
                Answer::Simple(text) => compare(&command, &answer, format!("+{text}").as_bytes())?,
                Answer::Number(number) => {
                    compare(&command, &answer, format!(":{number}").as_bytes())?;
                }
                Answer::Bulk(Some(bytes)) => {
                    compare(&command, &answer, &[b"$", &bytes[..]].concat())?;
                }
                Answer::Bulk(None) => compare(&command, &answer, b"nothing")?,
            }
            compared += 1;
        }
        Ok(compared)
    }

    /// The next answer with the letter of its kind.
    fn answer(&mut self) -> io::Result<Vec<u8>> {
        let mut head = String::new();
        self.0.read_line(&mut head)?;
        let head = head.trim_end();
        match head.strip_prefix('$') {
            Some("-1") => Ok(b"nothing".to_vec()),
            Some(len) => {
                let len: usize = len.parse().map_err(io::Error::other)?;
                let mut bytes = vec![0; 1 + len + 2];
                bytes[0] = b'$';
                self.0.read_exact(&mut bytes[1..])?;
                bytes.truncate(1 + len);
                Ok(bytes)
            }
            None if head.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Ok(head.as_bytes().to_vec()),
        }
    }

    /// Waits until no child of BGSAVE is left.
    fn wait_for_save(&mut self) -> Result<(), String> {
        let until = Instant::now() + LIMIT;
        loop {
            let words: &[u8] = b"*2\r\n$4\r\nINFO\r\n$11\r\npersistence\r\n";
            let sent = self.0.get_mut().write_all(words);
            let answer = sent.and_then(|()| self.answer());
            let answer = answer.map_err(|error| format!("INFO: {error}"))?;
            let answer = String::from_utf8_lossy(&answer);
            if !answer.contains("rdb_last_bgsave_status:ok") || Instant::now() > until {
                return Err(format!("BGSAVE has failed: {answer}"));
            }
            if answer.contains("rdb_bgsave_in_progress:0") {
                return Ok(());
            }
            pause();
        }
    }

    /// Ends the connection; Redis has closed it when this returns.
    fn quit(mut self) -> Result<(), String> {
        let mut batch = Batch::default();
        batch.add(&[b"QUIT"], Answer::Simple("OK"));
        self.send(batch)?;
        match self.0.read(&mut [0]) {
            Ok(0) => Ok(()),
            other => Err(format!("it goes on after QUIT: {other:?}")),
        }
    }
}
