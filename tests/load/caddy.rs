//! A Caddy with files, templates and routes, whose configuration is replaced all the time, and the
//! clients that ask it.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::PoisonError,
};

use procfs::net::TcpState;

use super::{
    Load, Outcome, RwLock, Workspace,
    content::{Random, compare, content},
};
use crate::support::{
    LIMIT, ask, ask::Client, expect, free_port, pause, server::Server, wait_until,
};

const FILES: u32 = 20;
/// Routes that answer with text of the configuration.
const ROUTES: u32 = 300;
/// Numbers that the template writes.
const NUMBERS: u64 = 1000;

pub struct Caddy {
    pub name: &'static str,
    port: u16,
    admin: u16,
    server: Server,
    folder: String,
    /// Which configuration it has. Nobody asks while that is being replaced, until the old listener is
    /// closed: connections that it has not accepted are lost then.
    generation: RwLock<u32>,
}

impl Caddy {
    /// One that collects garbage often, and throws memory away as `GODEBUG` says.
    pub fn new(workspace: &Workspace, name: &'static str, setting: &str) -> Self {
        let (port, admin) = (free_port(), free_port());
        let folder = workspace.path().join(name).display().to_string();
        for number in 0..FILES {
            let text = content(number, file_len(number));
            let text = String::from_utf8_lossy(&text).into_owned();
            workspace.write(&format!("{name}/{number}.txt"), &text);
        }
        let template = format!(
            "{{{{$seed := .Req.URL.Query.Get \"seed\" | int}}}}{{{{range $i := until {NUMBERS}}}}}\
             {{{{mod (add (mul $i 7919) $seed) 1000003}}}},{{{{end}}}}{}",
            template_text()
        );
        workspace.write(&format!("{name}/made.html"), &template);
        let configuration = format!("{folder}/Caddyfile");
        let command = ["caddy", "run", "--adapter", "caddyfile", "--config"];
        let command = command.into_iter().chain([configuration.as_str()]);
        let server = Server::new(Client::Http(port), command)
            .environment("GOGC", "10")
            .environment("GODEBUG", setting)
            .environment("XDG_DATA_HOME", &folder)
            .environment("XDG_CONFIG_HOME", &folder);
        let caddy = Self {
            name,
            port,
            admin,
            server,
            folder,
            generation: RwLock::new(0),
        };
        fs::write(configuration, caddy.configuration(0)).unwrap();
        caddy
    }

    /// Captures it when it has been busy, with a large heap.
    pub fn capture(&self, workspace: &Workspace) {
        let port = self.port.to_string();
        let options = [
            &["--name", self.name, "--listener", &port, "--at", "warm"][..],
            &["--warmup", "/made.html?seed=1,count=200,concurrency=16"],
            &["--warmup", "/route/1,count=200,concurrency=16"],
        ];
        expect(0, &mut self.server.capture(workspace, &options.concat()));
    }

    fn configuration(&self, generation: u32) -> String {
        let Self {
            port,
            admin,
            folder,
            ..
        } = self;
        let routes = (0..ROUTES).map(|number| {
            let text = String::from_utf8_lossy(&route(generation, number)).into_owned();
            format!("\trespond /route/{number} {text}\n")
        });
        format!(
            "{{\n\tadmin 127.0.0.1:{admin}\n\tauto_https off\n}}\n\
             http://:{port} {{\n\tbind 127.0.0.1\n\troot * {folder}\n{}\ttemplates\n\tfile_server\n}}\n",
            routes.collect::<String>()
        )
    }

    /// Asks for files, templates and routes until the load is over.
    pub fn ask(&self, load: &Load, seed: u32) -> Outcome {
        let mut random = Random::new(seed);
        let mut answers = 0;
        while load.goes_on() {
            let generation = self
                .generation
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            let (path, expected) = match random.below(10) {
                0..4 => {
                    let number = random.below(FILES);
                    (format!("/{number}.txt"), content(number, file_len(number)))
                }
                4..8 => {
                    let number = random.below(ROUTES);
                    (format!("/route/{number}"), route(*generation, number))
                }
                _ => {
                    let seed = random.below(1_000_000);
                    let numbers = (0..NUMBERS).map(|i| (i * 7919 + u64::from(seed)) % 1_000_003);
                    let numbers = numbers.map(|number| format!("{number},"));
                    let text = numbers.collect::<String>() + &template_text();
                    (format!("/made.html?seed={seed}"), text.into_bytes())
                }
            };
            let answer = ask::get(self.port, &path).map_err(|error| format!("{path}: {error}"))?;
            compare(&path, answer.as_bytes(), &[b"200 ", &expected[..]].concat())?;
            answers += 1;
        }
        Ok(answers)
    }

    /// Replaces its configuration again and again until the load is over.
    pub fn reload(&self, load: &Load) -> Outcome {
        let mut answers = 0;
        while load.goes_on() {
            let mut generation = self
                .generation
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            *generation += 1;
            let posted = self.post("/load", &self.configuration(*generation));
            let posted = posted.map_err(|error| format!("/load: {error}"))?;
            let status = posted.split(' ').nth(1).unwrap_or_default();
            compare("the status of /load", status.as_bytes(), b"200")?;
            self.wait_for_old_listener();
            let path = format!("/route/{}", *generation % ROUTES);
            let expected = route(*generation, *generation % ROUTES);
            let answer = ask::get(self.port, &path).map_err(|error| format!("{path}: {error}"))?;
            compare(&path, answer.as_bytes(), &[b"200 ", &expected[..]].concat())?;
            drop(generation);
            answers += 1;
            // The others get their turns.
            (0..20).for_each(|_| pause());
        }
        Ok(answers)
    }

    /// Waits until only the listener of the new configuration is left. Caddy answers before the old one
    /// is closed: of 600 connections made right after 60 answers, a slowed down Caddy that had never been
    /// captured reset 6.
    fn wait_for_old_listener(&self) {
        wait_until("the old listener to be closed", || {
            let sockets = procfs::net::tcp().unwrap().into_iter();
            let listeners = sockets.filter(|socket| {
                socket.state == TcpState::Listen && socket.local_address.port() == self.port
            });
            match listeners.count() {
                1 => Ok(()),
                count => Err(format!("{count} listeners")),
            }
        });
    }

    /// Posts to its administration; returns all of the answer.
    fn post(&self, path: &str, body: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let (admin, len) = (self.admin, body.len());
        let head = format!(
            "POST {path} HTTP/1.0\r\nHost: 127.0.0.1:{admin}\r\nConnection: close\r\n\
             Content-Type: text/caddyfile\r\nContent-Length: {len}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

fn file_len(number: u32) -> usize {
    100 << (number % 14)
}

/// What a route answers in a configuration.
fn route(generation: u32, number: u32) -> Vec<u8> {
    content(generation * ROUTES + number, 200 + number as usize * 3)
}

/// What the template ends with, which is read into memory for each answer.
fn template_text() -> String {
    String::from_utf8_lossy(&content(4711, 300_000)).into_owned()
}
