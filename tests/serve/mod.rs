//! `warmimg serve`: sites that are brought up by the connection that needs them.

mod cold;
mod flood;
mod going_on;
mod operation;
mod passed;
mod proxy;
mod standby;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Killed, LIMIT, Workspace, ask, expect, free_port, journal, servers, wait_until,
};

/// A server that says which one it is: its pid, which each restored one has, and how often it was asked.
const SERVER: &str = r#"
import http.server, sys, threading
asked = 0
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global asked
        asked += 1
        text = str(asked).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1000
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// Waits for connections by epoll, as most servers do; answers how often it was asked.
const ASYNCHRONOUS: &str = r#"
import asyncio, sys
asked = int(sys.argv[2])
async def serve(reader, writer):
    global asked
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            asked += 1
            text = str(asked)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n"
            writer.write((head + text).encode())
            await writer.drain()
    except asyncio.IncompleteReadError:
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"#;

/// Sites and their gateway.
struct Served {
    workspace: Workspace,
    gateway: Option<Killed>,
    port: u16,
}

impl Served {
    /// Captures a server as the image `site`.
    fn new() -> Self {
        let workspace = Workspace::new();
        let (captured, port) = (free_port().to_string(), free_port());
        let script = workspace.write("server.py", SERVER);
        let words = [
            "capture",
            "--name",
            "site",
            "--",
            "/usr/bin/python3",
            &script,
        ];
        workspace.run(words.into_iter().chain([&*captured]));
        Self {
            workspace,
            gateway: None,
            port,
        }
    }

    /// Writes the configuration: of the site `site`, and more.
    fn configure(&self, site: &str, more: &str) -> String {
        let port = self.port;
        let text = format!("[site.site]\nlisten = {port}\n{site}\n{more}");
        self.workspace.write("serve.toml", &text)
    }

    fn start(&mut self, site: &str) {
        self.start_all(site, "", 1);
    }

    /// Starts the gateway, and waits until it listens for that many sites.
    fn start_all(&mut self, site: &str, more: &str, sites: usize) {
        let path = self.configure(site, more);
        self.start_with(&path, sites);
    }

    fn start_text(&mut self, text: &str, sites: usize) {
        let path = self.workspace.write("serve.toml", text);
        self.start_with(&path, sites);
    }

    fn start_with(&mut self, path: &str, sites: usize) {
        let before = self.events("listening").len();
        let gateway = self.workspace.warmimg(["--json", "serve", "-c", path]);
        self.spawn(gateway);
        self.wait_for("listening", before + sites);
    }

    /// Starts the gateway by a command that executes the rest of its arguments.
    fn start_by(&mut self, mut command: Command, path: &str) {
        let gateway = self.workspace.warmimg(["--json", "serve", "-c", path]);
        command
            .arg(gateway.get_program())
            .args(gateway.get_args())
            .current_dir(self.workspace.path())
            .env("WARMIMG_STORE", self.workspace.store());
        self.workspace.mark(&mut command);
        self.spawn(command);
    }

    fn spawn(&mut self, mut gateway: Command) {
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.log()).unwrap();
        gateway.stdin(Stdio::null());
        gateway.stdout(log.try_clone().unwrap()).stderr(log);
        self.gateway = Some(Killed(gateway.spawn().unwrap()));
    }

    fn log(&self) -> std::path::PathBuf {
        self.workspace.path().join("serve.log")
    }

    /// What the gateways have told, of one kind.
    fn events(&self, kind: &str) -> Vec<Value> {
        journal::events(&self.log(), kind)
    }

    fn wait_for(&self, kind: &str, count: usize) -> Vec<Value> {
        journal::wait_for(&self.log(), kind, count)
    }

    /// How the only site does.
    fn status(&self) -> Value {
        serde_json::from_str(&self.workspace.run(["top", "--json"])).unwrap()
    }

    /// Waits until an instance of the only site stands by.
    fn wait_for_standby(&self) {
        wait_until("one to stand by", || {
            let status = self.status();
            match status["standing_by"].as_array().unwrap().len() {
                1 => Ok(()),
                _ => Err(status.to_string()),
            }
        });
    }

    /// The folder of an image.
    fn image(&self, name: &str) -> std::path::PathBuf {
        let inspected = self.workspace.run(["inspect", "--json", name]);
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        let images = self.workspace.store().join("images");
        images.join(inspected["digest"].as_str().unwrap())
    }

    /// Captures the same server under another name; returns its script, which is its own.
    fn capture_another(&self, name: &str) -> String {
        let script = self.workspace.write(&format!("{name}.py"), SERVER);
        let captured = free_port().to_string();
        let words = ["capture", "--name", name, "--", "/usr/bin/python3"];
        let words = words.into_iter().chain([&*script, &captured]);
        self.workspace.run(words);
        script
    }

    /// Captures a server that waits by epoll as the image `site`; it has been asked that often.
    fn capture_asynchronous(&self, captured: u16, asked: &str) {
        let script = self.workspace.write("asynchronous.py", ASYNCHRONOUS);
        let captured = captured.to_string();
        let words = ["capture", "--name", "site", "--", "/usr/bin/python3"];
        let words = words.into_iter().chain([&*script, &captured, asked]);
        self.workspace.run(words);
    }

    /// Has an image lack its memory.
    fn damage(&self, name: &str) {
        fs::write(self.image(name).join("criu/pages-1.img"), "").unwrap();
    }

    fn ask(&self) -> String {
        ask::get(self.port, "/").unwrap()
    }

    fn signal(&self, signal: Signal) {
        self.gateway.as_ref().unwrap().signal(signal);
    }

    /// Ends the gateway by a signal; returns its exit code.
    fn leave(&mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.gateway.take().unwrap().wait()
    }

    fn end(mut self) {
        assert_eq!(self.leave(Signal::SIGTERM), Some(0));
        self.workspace.assert_clean();
    }
}

/// A connection that stays.
struct Client(TcpStream);

impl Client {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self(stream)
    }

    fn ask(&mut self) -> String {
        self.0
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        let mut byte = [0];
        while !text.ends_with("\r\n\r\n") {
            self.0.read_exact(&mut byte).unwrap();
            text.push(byte[0] as char);
        }
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }
}

#[test]
fn a_connection_wakes_a_site_and_idleness_ends_it() {
    let mut served = Served::new();
    served.start("idle = '300ms'");
    assert_eq!(served.workspace.run(["ps", "--json"]), "");
    assert_eq!(served.ask(), "200 1");
    assert_eq!(served.ask(), "200 2");
    let woken = served.wait_for("woken", 1);
    assert_eq!(
        (&woken[0]["cause"], &woken[0]["site"]),
        (&"connection".into(), &"site".into())
    );
    let ended = served.wait_for("ended", 1);
    assert_eq!(
        (&ended[0]["cause"], &ended[0]["connections"]),
        (&"idle".into(), &2.into())
    );
    // The next one is the image's again.
    assert_eq!(served.ask(), "200 1");

    // As long as there is a connection, it stays.
    let mut client = Client::connect(served.port);
    assert_eq!(client.ask(), "2");
    // Longer than `idle`: that nothing happens, nothing tells.
    thread::sleep(Duration::from_millis(700));
    assert_eq!(served.events("ended").len(), 1);
    assert_eq!(client.ask(), "3");
    drop(client);
    served.wait_for("ended", 2);
    served.end();
}

#[test]
fn no_request_is_lost_when_a_site_goes_to_sleep() {
    let count = std::env::var("WARMIMG_REQUESTS").map_or(300_u64, |text| text.parse().unwrap());
    let mut served = Served::new();
    served.start("idle = '10ms'");
    // From before the moment of sleeping to after it.
    for number in 0..count {
        let answer = ask::get(served.port, "/");
        assert!(answer.is_ok(), "request {number}: {answer:?}");
        thread::sleep(Duration::from_micros(number * 7919 % 97 * 600));
    }
    let slept = served.events("ended").len();
    println!("{count} requests, {slept} times asleep");
    assert!(slept > count as usize / 20, "{slept} of {count}");
    assert_eq!(
        served.events("exited").len() + served.events("failed").len(),
        0
    );
    served.end();
}

#[test]
fn any_number_of_first_connections_wake_a_site_once() {
    let mut served = Served::new();
    served.start("");
    let port = served.port;
    let clients: Vec<_> = (0..40)
        .map(|_| thread::spawn(move || ask::get(port, "/")))
        .collect();
    for client in clients {
        client.join().unwrap().unwrap();
    }
    assert_eq!(served.wait_for("woken", 1).len(), 1);
    served.end();
}

#[test]
fn instances_come_and_go_with_the_load() {
    let mut served = Served::new();
    served.start("max = 3\nconnections = 2\nidle = '200ms'");
    served.workspace.run(["wake", "site"]);
    let mut clients = vec![];
    for _ in 0..6 {
        let mut client = Client::connect(served.port);
        client.ask();
        clients.push(client);
    }
    let woken = served.wait_for("woken", 3);
    let causes: Vec<_> = woken
        .iter()
        .map(|event| event["cause"].as_str().unwrap())
        .collect();
    assert_eq!(causes, ["asked", "load", "load"]);
    let top = served.workspace.run(["top"]);
    let row: Vec<&str> = top.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..6], ["site", "awake", "6", "6", "3", "3"], "{top}");
    for client in &mut clients {
        client.ask();
    }
    drop(clients);
    let ended = served.wait_for("ended", 3);
    assert!(
        ended.iter().any(|event| event["cause"] == "calm"),
        "{ended:?}"
    );
    served.end();
}

#[test]
fn an_instance_is_replaced_while_it_is_asked() {
    let mut served = Served::new();
    served.start("max-life = '300ms'\nidle = 'never'\ndrain = '20s'");
    let begun = Instant::now();
    let mut asked = 0;
    while served.events("woken").len() < 4 {
        served.ask();
        asked += 1;
        assert!(begun.elapsed() < LIMIT);
    }
    println!("{asked} requests");
    let ended = served.wait_for("ended", 2);
    assert!(
        ended.iter().all(|event| event["cause"] == "max-life"),
        "{ended:?}"
    );
    served.end();
}

#[test]
fn a_site_that_fails_harms_no_other() {
    let mut served = Served::new();
    let broken = free_port();
    let script = served.capture_another("broken");
    served.damage("broken");
    // So that it cannot be started cold either.
    fs::remove_file(script).unwrap();
    served.start_all("", &format!("[site.broken]\nlisten = {broken}"), 2);
    for _ in 0..3 {
        assert!(ask::get(broken, "/").is_err());
    }
    // It is not tried again for each of them.
    let failed = served.wait_for("failed", 1);
    assert!(failed.len() <= 2, "{failed:?}");
    let error = failed[0]["error"].as_str().unwrap();
    assert!(error.contains("has ended before it listened"), "{error}");
    assert!(error.contains("broken.py"), "{error}");
    let cold = served.events("cold");
    let reason = cold[0]["description"].as_str().unwrap();
    assert!(reason.contains("pages-1.img"), "{reason}");
    assert_eq!(served.ask(), "200 1");

    // One that crashes is brought up again by the next connection, after a pause that grows.
    for (number, pause_ms) in [(1, 500.0), (2, 1000.0)] {
        // It answers before the gateway has let it go.
        served.wait_for("woken", number);
        let ps = served.workspace.run(["ps", "--json"]);
        let record: Value = serde_json::from_str(&ps).unwrap();
        let init = nix::unistd::Pid::from_raw(record["init"].as_i64().unwrap() as i32);
        nix::sys::signal::kill(init, Signal::SIGKILL).unwrap();
        served.wait_for("exited", number);
        let of_site = |event: &Value| event["site"] == "site";
        wait_until("it to be back", || match ask::get(served.port, "/") {
            Ok(answer) => {
                assert_eq!(answer, "200 1");
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        });
        let failed: Vec<_> = served
            .events("failed")
            .into_iter()
            .filter(of_site)
            .collect();
        assert_eq!(failed.len(), number, "{failed:?}");
        assert_eq!(failed[number - 1]["pause_ms"], pause_ms);
    }
    // It has served since.
    wait_until("it to sleep", || {
        match served.workspace.warmimg(["sleep", "site"]).output() {
            Ok(output) if output.status.success() => Ok(()),
            output => Err(format!("{output:?}")),
        }
    });
    let top = served.workspace.run(["top", "--json"]);
    let mut sites = top.lines().map(|line| serde_json::from_str(line).unwrap());
    let site: Value = sites.find(|site: &Value| site["site"] == "site").unwrap();
    assert_eq!(site["failures"], 0);
    served.end();
}

#[test]
fn real_servers_are_handed_a_socket() {
    let workspace = Workspace::new();
    let unix = servers::uvicorn_on_a_unix_socket(&workspace);
    let all: BTreeMap<&str, _> = BTreeMap::from([
        ("express", servers::express()),
        ("fastapi", servers::fastapi_on_uvicorn()),
        ("django", servers::django_on_gunicorn()),
        ("nginx", servers::nginx(&workspace)),
        ("unix", unix),
    ]);
    let mut text = String::new();
    let mut ports = BTreeMap::new();
    // Its own: it gives the socket another mode.
    let socket = workspace.path().join("server.sock");
    for (name, server) in &all {
        expect(0, &mut server.capture(&workspace, &["--name", name]));
        server.wait_for_silence();
        let port = free_port();
        ports.insert(*name, port);
        let listen = match *name {
            "unix" => format!("'{}'", socket.display()),
            _ => port.to_string(),
        };
        writeln!(text, "[site.{name}]\nlisten = {listen}\nidle = '200ms'").unwrap();
    }
    let config = workspace.write("serve.toml", &text);
    let log = workspace.path().join("serve.log");
    let mut command = workspace.warmimg(["--json", "serve", "-c", &config]);
    command
        .stdout(fs::File::create(&log).unwrap())
        .stderr(Stdio::inherit());
    let mut gateway = Killed(command.spawn().unwrap());
    wait_until("the sockets", || match socket.exists() {
        true => Ok(()),
        false => Err("no socket".into()),
    });
    let count = |kind: &str| fs::read_to_string(&log).unwrap().matches(kind).count();
    for round in 1..=3 {
        if round == 3 {
            // They start cold, on the same socket.
            for name in all.keys() {
                let inspected = workspace.run(["inspect", "--json", name]);
                let inspected: Value = serde_json::from_str(&inspected).unwrap();
                let image = workspace.store().join("images");
                let image = image.join(inspected["digest"].as_str().unwrap());
                fs::write(image.join("criu/inventory.img"), "").unwrap();
            }
        }
        for (name, port) in &ports {
            let answer = match *name {
                "unix" => ask::Client::HttpOverUnix(socket.clone()).ask(),
                _ => ask::get(*port, "/"),
            };
            assert!(
                answer
                    .as_ref()
                    .is_ok_and(|answer| answer.starts_with("200")),
                "{name}: {answer:?}\n{}",
                fs::read_to_string(&log).unwrap()
            );
        }
        wait_until("all to sleep", || match count("\"event\":\"ended\"") {
            found if found == round * ports.len() => Ok(()),
            _ => Err(fs::read_to_string(&log).unwrap()),
        });
    }
    let log_text = fs::read_to_string(&log).unwrap();
    assert_eq!(count("\"event\":\"woken\""), 3 * ports.len(), "{log_text}");
    assert_eq!(count("\"event\":\"cold\""), ports.len());
    assert!(socket.exists());
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait(), Some(0));
    workspace.assert_clean();
}

#[test]
fn what_cannot_be_served_is_refused() {
    let mut served = Served::new();
    let path = served.workspace.path().join("serve.toml");
    let check = |text: &str, code: i32, complaint: &str| {
        served.workspace.write("serve.toml", text);
        let words = ["serve", "--check", "-c", path.to_str().unwrap()];
        let (_, said) = expect(code, &mut served.workspace.warmimg(words));
        assert!(said.contains(complaint), "{said}");
    };
    check(
        "[site.site]\nlisten = 80\nmax-live = '1s'\n",
        2,
        "serve.toml:3: unknown field `max-live`",
    );
    check(
        "[site.site]\nlisten = '127.0.0.1:80'\n[site.two]\nimage = 'site'\nlisten = '0.0.0.0:80'\n",
        2,
        "site and two both listen on tcp:0.0.0.0:80",
    );
    check(
        "[site.nobody]\nlisten = 80\n",
        107,
        "the site nobody has no image",
    );
    check(
        "[site.site]\nlisten = 80\nlistener = 1\n",
        2,
        "does not listen on port 1",
    );
    check(
        "[site.site]\nlisten = '/tmp/a.sock'\n",
        2,
        "cannot become unix:/tmp/a.sock",
    );
    let words = ["serve", "-c", "/no/such/file"];
    let (_, said) = expect(2, &mut served.workspace.warmimg(words));
    assert!(said.contains("cannot read /no/such/file"), "{said}");

    let (_, said) = expect(112, &mut served.workspace.warmimg(["wake", "site"]));
    assert!(said.contains("no gateway serves from this store"), "{said}");
    served.start("");
    let words = ["serve", "-c", path.to_str().unwrap()];
    let (_, said) = expect(119, &mut served.workspace.warmimg(words));
    assert!(
        said.contains("another gateway serves from the store already"),
        "{said}"
    );
    let (_, said) = expect(112, &mut served.workspace.warmimg(["wake", "nobody"]));
    assert!(said.contains("Hint: there are: site"), "{said}");

    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = served
        .workspace
        .write("other.toml", &format!("[site.site]\nlisten = {port}\n"));
    assert_eq!(served.leave(Signal::SIGINT), Some(0));
    let (_, said) = expect(109, &mut served.workspace.warmimg(["serve", "-c", &config]));
    assert!(said.contains("cannot listen on tcp:127.0.0.1"), "{said}");
    served.workspace.assert_clean();
}
